"""A suite file says what it means, and a mistake in one is answered with file, line and column."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefinetune.catalog import catalog
from prefinetune.errors import InputError
from prefinetune.families import Choice, Classification, Regression
from prefinetune.sources import Files, Hub
from prefinetune.task import Suite, find_task, read_suite

SUPPORT = """\
name: support
tasks:
  - {name: intent,  source: data/intent.csv,   classification: {text: message, label: intent}}
  - {name: urgency, source: data/urgency.csv,  regression: {text: message, label: hours, low: 0, high: 72}}
  - name: routing
    source: {train: data/routing.jsonl, held: data/more.jsonl}
    splits: {validation: held, test: null}
    tags: [support, routing]
    evaluation_only: yes
    choice: {text: [subject, message], options: teams, label: team}
  - {name: replies, source: 'hub:team/mail:de@abc', generation: {text: ticket, target: reply, decoding: {num_beams: 6}}}
  - include: nli    # all tasks of ours with that tag
    exclude: [glue/*, snli]
  - glue/rte
mixture: {sampling: natural, cap: 1_000}
"""


def read(folder: Path, text: str | bytes, name: str = "suite.yaml") -> Suite:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_suite(folder / name)


def complaint(folder: Path, text: str | bytes) -> tuple[int, int, str]:
    """(line, column, message) of what is said about a suite file."""
    with pytest.raises(InputError) as raised:
        read(folder, text)
    found = re.fullmatch(r"(.*?):(\d+):(\d+): (.*)", str(raised.value), re.DOTALL)
    assert found, raised.value
    assert found[1] == str(folder / "suite.yaml")
    return int(found[2]), int(found[3]), found[4]


def test_a_suite_file_is_read_as_records(tmp_path):
    suite = read(tmp_path, SUPPORT)
    assert suite.name == "support"
    assert suite.mixture == {"sampling": "natural", "cap": 1000}
    assert suite["intent"].family == Classification("message", label="intent")
    assert suite["intent"].source == Files(str(tmp_path / "data/intent.csv"))
    assert suite["urgency"].family == Regression("message", label="hours", low=0, high=72)
    routing = suite["routing"]
    assert routing.family == Choice(("subject", "message"), "teams", "team")
    assert routing.source == Files({"train": str(tmp_path / "data/routing.jsonl"), "held": str(tmp_path / "data/more.jsonl")})
    assert (routing.splits, routing.tags, routing.evaluation_only) == (
        {"validation": "held", "test": None}, {"support", "routing"}, True)  # fmt: skip
    assert suite["replies"].source == Hub("team/mail", "de", "abc")
    assert suite["replies"].family.decoding == {"num_beams": 6}
    assert suite["glue/rte"] is catalog()["glue/rte"]
    nli = [task.name for task in catalog().select("nli") if not task.evaluation_only]
    wanted = [name for name in nli if not name.startswith("glue/") and name != "snli"]
    assert [task.name for task in suite][4:] == [*wanted, "glue/rte"]


# sentence -> (a file with ▸ where the complaint points, what it must hold)
ONE = "tasks:\n  - {name: mine, source: a.csv, classification: {text: text, label: label%s}}\n"
MISTAKES = {
    "an unknown key of a family": (
        "tasks:\n  - name: intent\n    source: a.csv\n    classification:\n      text: message\n      ▸lable: intent\n",
        ["task 1 (intent), classification: unknown key 'lable' (did you mean 'label'?)", "accepted: text, pair, label, labels"]),
    "an unknown key of a task": (
        "tasks:\n  - {name: mine, ▸sources: a.csv, denoising: {text: text}}\n",
        ["task 1 (mine): unknown key 'sources' (did you mean 'source'?)"]),
    "an unknown key of a suite": ("include: nli\n▸mixtures: {}\n", ["unknown key 'mixtures' (did you mean 'mixture'?)"]),
    "an unknown role": (
        "tasks:\n  - {name: mine, source: a.csv, splits: {▸dev: x}, denoising: {text: text}}\n",
        ["task 1 (mine), splits: unknown key 'dev'", "train, validation, test"]),
    "a missing name": ("tasks:\n  - ▸{source: a.csv, denoising: {text: text}}\n", ["task 1: 'name' missing"]),
    "a missing source": ("tasks:\n  - ▸{name: mine, denoising: {text: text}}\n", ["task 1 (mine): 'source' missing"]),
    "a missing field": (
        "tasks:\n  - {name: mine, source: a.csv, span: ▸{question: q}}\n", ["task 1 (mine), span: 'context' missing"]),
    "no family": ("tasks:\n  - ▸{name: mine, source: a.csv}\n", ["task 1 (mine): expected exactly one family", "found none"]),
    "two families": (
        "tasks:\n  - {name: mine, source: a.csv, span: {}, ▸classification: {text: text}}\n",
        ["task 1 (mine): expected exactly one family", "found classification, span"]),
    "two families in the order of ours": (
        "tasks:\n  - {name: mine, source: a.csv, classification: {text: text}, ▸span: {}}\n", ["found classification, span"]),
    "a family that is no mapping": (
        "tasks:\n  - {name: mine, source: a.csv, denoising: ▸text}\n", ["denoising: 'text' is not accepted; expected a mapping"]),
    "a column that is a number": (ONE % ", pair: ▸3", ["pair: 3 is not accepted", "a column", 'the number 3: write "3"']),
    "a column in a list that is a number": (ONE % ", pair: [a, ▸4]", ["pair 2: 4 is not accepted"]),
    "a column that YAML reads as a boolean": (
        ONE % ", pair: ▸on", ["pair: True is not accepted", 'YAML reads on without quotes as a boolean: write "on"']),
    "a label that YAML reads as a boolean": (
        ONE % ", labels: [yes, ▸no]".replace("[yes", "[maybe"), ["labels 2: False", 'write "no"']),
    "a label that YAML reads as another number": (ONE % ", labels: [1, ▸007]", ["labels 2: 007", "the number 7", 'write "007"']),
    "a label that YAML reads as nothing": (ONE % ", labels: [▸null, a]", ["labels 1: None", 'as nothing: write "null"']),
    "a date": (ONE % ", labels: [a, ▸2024-01-31]", ["a date", 'write "2024-01-31"']),
    "a column that is empty": (ONE % ", pair: ▸''", ["pair: an empty text"]),
    "no columns at all": (ONE % ", pair: ▸[]", ["pair: an empty list"]),
    "labels declared twice": (ONE % ", labels: ▸[a, b, a]", ["classification: labels", "declared twice: a"]),
    "a number out of its range": (
        "tasks:\n  - {name: mine, source: a.csv, denoising: {text: text, rate: ▸1.5}}\n",
        ["task 1 (mine), denoising: rate: 1.5 is not accepted", "between 0 and 1"]),
    "a number that is none": (
        "tasks:\n  - {name: mine, source: a.csv, denoising: {text: text, rate: ▸much}}\n", ["rate: 'much'", "a number"]),
    "a number without end": (
        "tasks:\n  - {name: mine, source: a.csv, regression: {text: text, high: ▸.inf}}\n", [".inf is not accepted"]),
    "a name with a space": ("tasks:\n  - {name: ▸my task, source: a.csv, denoising: {text: text}}\n", ["'my task'", "letters"]),
    "a name that is a number": ("tasks:\n  - {name: ▸20, source: a.csv, denoising: {text: text}}\n", ["name: 20", 'write "20"']),
    "a name used twice": (ONE % "" + "  - {name: ▸mine, source: b.csv, denoising: {text: text}}\n", ["used twice: mine"]),
    "the same task twice": (
        "tasks:\n  - {name: mine, source: a, denoising: {text: t}}\n  - {name: ▸mine, source: a, denoising: {text: t}}\n",
        ["task 2 (mine)", "used twice: mine"]),
    "the name of a task of ours": (
        "tasks:\n  - glue/rte\n  - {name: ▸glue/rte, source: b.csv, denoising: {text: text}}\n", ["used twice: glue/rte"]),
    "tags that are one text": (
        "tasks:\n  - {name: mine, source: a.csv, tags: ▸nli, denoising: {text: text}}\n", ["tags: 'nli'", "expected a list"]),
    "a switch that is a text": (
        "tasks:\n  - {name: mine, source: a.csv, evaluation_only: ▸'yes', denoising: {text: text}}\n", ["true or false"]),
    "a source that is a number": ("tasks:\n  - {name: mine, source: ▸3, denoising: {text: text}}\n", ["source: 3", "hub:ID"]),
    "a source without files": ("tasks:\n  - {name: mine, source: ▸{}, denoising: {text: text}}\n", ["an empty mapping"]),
    "a hub without a name": ("tasks:\n  - {name: mine, source: ▸'hub:', denoising: {text: text}}\n", ["'hub:'", "a name"]),
    "a task that the catalogue does not know": (
        "tasks:\n  - snli\n  - ▸glue/rtee\n", ["task 2: no task 'glue/rtee'", "did you mean 'glue/rte'"]),
    "an entry that is none": ("tasks:\n  - ▸[a]\n", ["task 1: expected a task (a mapping) or the name of one, found ['a']"]),
    "an entry that is nothing": ("tasks:\n  - snli\n  -▸\n", ["task 2", "nothing stands here"]),
    "a tag that does not exist": ("include: [nli, ▸sentimental]\n", ["'sentimental'", "did you mean 'sentiment'"]),
    "an exclusion of nothing": ("include: nli\nexclude: [snli, ▸sent]\n", ["'sent' excludes nothing"]),
    "an entry's exclusion of nothing": (
        "tasks:\n  - include: nli\n    exclude: ▸imdb\n", ["task 1, exclude: 'imdb' excludes nothing"]),
    "nothing left": ("▸include: nli\nexclude: all\n", ["no task is left"]),
    "nothing to train on": ("include: [nli, ▸anli/*]\n", ["'anli/*' names no task that can be trained on"]),
    "an unknown setting": ("include: nli\nmixture: {cap: 3, ▸samplin: natural}\n", ["'mixture.samplin'", "'mixture.sampling'"]),
    "a setting out of its range": ("include: nli\nmixture:\n  cap: ▸-1\n", ["'mixture.cap': -1", "greater than 0"]),
    "a setting of the wrong type": ("include: nli\nmixture: {cap: ▸'9'}\n", ["'mixture.cap': '9'", "integer"]),
    "a setting that is none of those accepted": ("include: nli\nmixture: {order: ▸random}\n", ["'random'", "'heterogeneous'"]),
    "settings that are a list": ("include: nli\nmixture: ▸[a]\n", ["mixture: ['a'] is not accepted"]),
    "no tasks": ("▸name: mine\n", ["'tasks' is missing"]),
    "an empty list of tasks": ("name: mine\ntasks: ▸[]\n", ["tasks: an empty list"]),
    "a list in place of a suite": ("▸- snli\n- sick\n", ["expected a mapping with 'tasks', found ['snli', 'sick']"]),
    "an empty file": ("▸", ["the file is empty"]),
    "a file of comments": ("▸# name: mine\n\n", ["the file is empty"]),
    "a key that stands twice": ("include: nli\nname: a\n▸name: b\n", ["the key 'name' stands twice, first at 2:1"]),
    "a key that is a number": (ONE % ", ▸1: a", ["the key 1 is not text", 'write "1"']),
    "a key that YAML reads as a boolean": (
        ONE % ", ▸on: a", ["the key True", 'YAML reads on without quotes as a boolean: write "on"']),
    "a key that is a list": ("? ▸[a]\n: b\n", ["the key ['a'] is not text"]),
    "a tab": ("tasks:\n▸\t- snli\n", ["not valid YAML", "a tab; YAML is indented with spaces"]),
    "a bracket that is never closed": ("tasks: [▸\n", ["not valid YAML"]),
    "a line that is indented too little": (
        "tasks:\n  - name: mine\n   ▸source: a.csv\n", ["not valid YAML", "while parsing a block collection that begins at 2:3"]),
    "a character that YAML does not know": ("name: a▸\x01\n", ["not valid YAML: character U+0001"]),
    "two documents": ("include: nli\n▸---\ninclude: sick\n", ["a second document begins here"]),
    "an alias that means nothing": ("include: ▸*x\n", ["undefined alias"]),
    "an alias of itself": ("tasks: ▸&x\n  - *x\n", ["an alias of itself"]),
    "a tag of another program": ("include: ▸!!python/name:os.system x\n", ["tag", "python/name"]),
    "a tag of a collection": ("include: ▸!!set {nli}\n", ["the tag !!set is not accepted"]),
    "a number that YAML cannot read": ("name: ▸0b_\n", ["'0b_' is not accepted", 'write "0b_"']),
    "a boolean that YAML cannot read": ("name: ▸!!bool maybe\n", ["'maybe' is not accepted"]),
    "nesting without end": ("include: " + "[" * 31 + "▸" + "[" * 2000, ["nested more than 32 deep"]),
    "a merge of what is no mapping": ("tasks:\n  - {<<: ▸3, name: a}\n", ["'<<' takes a mapping"]),
    "a mistake in what is merged": (
        "tasks:\n  - {name: a, source: a.csv, span: &s {question: q, context: c, ▸answerz: a}}\n"
        "  - {name: b, source: b.csv, span: {<<: *s, context: d}}\n", ["unknown key 'answerz'"]),
}  # fmt: skip


@pytest.mark.parametrize("sentence", MISTAKES)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_mistake_is_answered_with_its_line_and_column(sentence, ends, tmp_path):
    text, fragments = MISTAKES[sentence]
    before, after = text.replace("\n", ends).split("▸") if text.count("▸") == 1 else pytest.fail("one mark")
    line, column, message = complaint(tmp_path, before + after)
    for fragment in fragments:
        assert fragment in message
    lines = before.split(ends)
    assert (line, column) == (len(lines), len(lines[-1]) + 1), message


def test_the_place_counts_characters_as_editors_do(tmp_path):
    line, column, _ = complaint(tmp_path, "\ufeffname: 'né\u2028\u0085日本 🙂'\ntasks: [snli, '🙂', x]\n")
    assert (line, column) == (2, 15)
    line, column, _ = complaint(tmp_path, "\ufeffinclude: sentimental\n")
    assert (line, column) == (1, 10)
    line, column, message = complaint(tmp_path, "name: été\nnote: caf".encode() + "é".encode("latin-1") + b"\n")
    assert (line, column, message) == (2, 10, "byte 0xe9 is not valid UTF-8")


def test_aliases_and_merged_keys_are_read_and_own_keys_win(tmp_path):
    suite = read(tmp_path, "tasks:\n"
        "  - {name: a, source: &file a.csv, classification: &base {text: t, label: l, labels: ['yes', 'no']}}\n"
        "  - {name: b, source: *file, classification: {<<: *base, label: m}}\n"
        "  - {name: c, source: *file, classification: {label: m, <<: [{label: z, pair: p}, *base]}}\n")  # fmt: skip
    assert suite["b"].family == Classification("t", label="m", labels=("yes", "no"))
    assert suite["c"].family == Classification("t", "p", "m", labels=("yes", "no"))
    assert suite["a"].source == suite["b"].source == suite["c"].source


def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path):
    text = "name: &a0 [x, x]\n" + "".join(f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    assert "more than 100,000 values" in complaint(tmp_path, text)[2]


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(name, tmp_path):
    (tmp_path / "missin.yaml").write_text("include: nli\n")
    with pytest.raises(InputError, match="no suite file") as raised:
        read_suite(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


# ---- include and exclude


def names(suite: Suite) -> list[str]:
    return [task.name for task in suite]


def test_a_suite_includes_tags_families_patterns_and_names(tmp_path):
    trainable = [task for task in catalog() if not task.evaluation_only]
    assert names(read(tmp_path, "include: nli\n")) == [task.name for task in trainable if "nli" in task.tags]
    assert names(read(tmp_path, "include: regression\n")) == [task.name for task in trainable if task.family.kind == "regression"]
    assert names(read(tmp_path, "include: [glue/*, anli/r1]\nexclude: [glue/wnli, glue/q*]\n")) == [
        *(task.name for task in trainable if task.name.startswith("glue/") and task.name[5:] not in ("wnli", "qnli", "qqp")),
        "anli/r1",
    ]


def test_a_task_that_several_patterns_name_comes_once(tmp_path):
    both = names(read(tmp_path, "include: [nli, superglue]\ntasks: [glue/rte, {include: nli}]\n"))
    assert len(both) == len(set(both))
    assert set(both) == {task.name for task in catalog().select("nli", "superglue") if not task.evaluation_only}


def test_a_suite_includes_another_file_with_its_own_paths_and_without_its_mixture(tmp_path):
    (tmp_path / "team" / "deep").mkdir(parents=True)
    (tmp_path / "team" / "base.yaml").write_text(
        "include: deep/more.yaml\ntasks:\n  - {name: base, source: a.csv, denoising: {text: t}}\nmixture: {cap: 3}\n"
    )
    (tmp_path / "team" / "deep" / "more.yaml").write_text("tasks:\n  - {name: more, source: a.csv, denoising: {text: t}}\n")
    suite = read(tmp_path, "include: [team/base.yaml, team/deep/more.yaml]\ntasks: [sick]\nexclude: base\n")
    assert names(suite) == ["more", "sick"]
    assert suite["more"].source == Files(str(tmp_path / "team" / "deep" / "a.csv"))
    assert suite.mixture == {}


def test_a_mistake_in_an_included_file_is_told_with_both_places(tmp_path):
    (tmp_path / "other.yaml").write_text("tasks:\n  - {name: a, source: a.csv, denoising: {txt: t}}\n")
    with pytest.raises(InputError) as raised:
        read(tmp_path, "tasks:\n  - snli\n  - include: [nli, other.yaml]\n")
    assert str(raised.value).startswith(f"{tmp_path}/other.yaml:2:42: task 1 (a), denoising: unknown key 'txt'")
    assert str(raised.value).endswith(f"(included from {tmp_path}/suite.yaml:3:20)")


def test_files_that_include_each_other_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("include: b.yaml\n")
    (tmp_path / "b.yaml").write_text("tasks:\n  - include: ../" + tmp_path.name + "/a.yaml\n")
    with pytest.raises(InputError, match=r"b\.yaml:2:14: .*a file cannot include itself: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        read_suite(tmp_path / "a.yaml")


def test_two_different_tasks_of_one_name_are_refused_however_they_come(tmp_path):
    for name in "xy":
        (tmp_path / f"{name}.yaml").write_text(f"tasks:\n  - {{name: mine, source: {name}.csv, denoising: {{text: t}}}}\n")
    assert complaint(tmp_path, "include: [x.yaml, y.yaml]\n")[:2] == (1, 19)
    assert complaint(tmp_path, "include: x.yaml\ntasks:\n  - include: y.yaml\n")[:2] == (3, 14)


def test_a_file_that_is_included_and_not_there_is_named_with_the_nearest(tmp_path):
    (tmp_path / "other.yaml").write_text("include: nli\n")
    line, column, message = complaint(tmp_path, "include: othr.yaml\n")
    assert (line, column) == (1, 10)
    assert "did you mean 'other.yaml'" in message


def test_a_single_task_is_found_in_a_file_or_the_catalogue(tmp_path):
    (tmp_path / "one.yaml").write_text("tasks: [sick]\n")
    (tmp_path / "two.yaml").write_text("tasks: [sick, snli]\n")
    assert find_task(tmp_path / "one.yaml") is find_task("sick") is catalog()["sick"]
    with pytest.raises(InputError, match=r"two\.yaml: expected one task, found 2 \(sick, snli\)"):
        find_task(tmp_path / "two.yaml")


# ---- any file at all

PIECES = [
    "\t", "\n", "\r", " ", "  ", "- ", ": ", ":", "{", "}", "[", "]", ",", "#", "&a ", "*a", "<<: ", "!!str ", "!!int ", "|", ">",
    "'", '"', "?", "? ", "---\n", "...\n", "%", "@", "yes", "null", "3", ".nan", "2024-01-01", "0b_", "=", "é", "\u2028", "\x00",
    "\ufeff",
    "name", "tasks", "include", "labels", "include: nli", "tasksource: ", "hub:", "hub:a@",
]  # fmt: skip


@st.composite
def mutated(draw) -> str:
    text = SUPPORT
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        end = at + draw(st.integers(0, 12))
        put = draw(st.sampled_from(PIECES) | st.text(max_size=3) | st.just(text[at : at + 30]))
        text = text[:at] + put + text[end:]
    return text


@settings(max_examples=300, deadline=None)
@given(text=mutated())
def test_whatever_stands_in_a_file_is_read_or_refused_with_a_place_in_it(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", "replace"))
    message = None
    try:
        assert len(read_suite(path)) > 0
    except InputError as error:
        message = str(error)
    if message is not None:
        found = re.match(rf"{re.escape(str(path))}:(\d+):(\d+): ", message)
        assert found, message
        lines = re.split("\r\n|\r|\n", path.read_bytes().decode("utf-8-sig"))
        line, column = map(int, found.groups())
        assert 1 <= line <= len(lines)
        assert 1 <= column <= len(lines[line - 1]) + 1
