"""Tasks of the tasksource catalogue become tasks of ours: by name, with its labels, options and words.

Half of the tests have a module in the place of tasksource and run everywhere; the others have tasksource itself, with rows from
memory in the place of the hub's, and are skipped where it is not installed.
"""

import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

import prefinetune.tasksource as bridge
from prefinetune.errors import InputError, Unavailable
from prefinetune.families import Choice, Classification, Regression, Tagging
from prefinetune.mirror import mirror, read_manifest
from prefinetune.sources import Files
from prefinetune.splits import open_task
from prefinetune.task import Task, find_task, read_suite
from prefinetune.tasksource import TaskSource, tasksource_names, tasksource_task


def pairs(second: bool = True) -> DatasetDict:
    columns = {"sentence1": Value("string"), "labels": ClassLabel(names=["entailment", "neutral"])}
    features = Features({**columns, **({"sentence2": Value("string")} if second else {})})
    more = lambda i: {"sentence2": f"b {i}"} if second else {}  # noqa: E731
    rows = [{"sentence1": f"a {i}", "labels": i % 2, **more(i)} for i in range(30)]
    return DatasetDict({split: Dataset.from_list(rows, features=features) for split in ("train", "validation", "test")})


def options() -> DatasetDict:
    rows = [
        {"inputs": "q0", "choice0": "a", "choice1": "b", "choice2": "c", "choice10": "k", "labels": 3},
        {"inputs": "q1", "choice0": "a", "choice1": "b", "choice2": None, "choice10": None, "labels": 1},
        {"inputs": "q2", "choice0": None, "choice1": "b", "choice2": "c", "choice10": None, "labels": 2},
        {"inputs": "q3", "choice0": "a", "choice1": "b", "choice2": None, "choice10": None, "labels": 2},
    ]
    return DatasetDict(train=Dataset.from_list(rows), validation=Dataset.from_list(rows[:1]))


def words() -> DatasetDict:
    features = Features({"tokens": List(Value("string")), "labels": List(ClassLabel(names=["O", "B-PER"]))})
    rows = [{"tokens": ["Ann", "left"], "labels": [1, 0]}] * 4
    return DatasetDict(train=Dataset.from_list(rows, features=features))


@pytest.fixture
def fake(monkeypatch) -> SimpleNamespace:
    """A module in the place of tasksource, with five tasks; `loads` are the calls of load_task."""

    def row(id: str, kind: str, question=None, **mapping) -> dict:
        return {"id": id, "task_type": kind, "mapping": SimpleNamespace(question=question, **mapping)}

    english = [
        row("glue/rte", "Classification", "Does it follow?"),
        row("one.text&more", "Classification", {"other": "no"}),
        row("glue/stsb", "Classification", regression=True, low=0, high=5, sentence2="sentence2"),
        row("tone", "Classification", regression=True, low=-1, high=1, sentence2=None),
        row("quiz", "MultipleChoice"),
        row("pictures", "VisualThing"),
    ]
    other = [row("glue/rte", "TokenClassification", {"rte": "Which words?"})]
    found = SimpleNamespace(
        loads=[], tables={"glue/rte": pairs(), "one.text&more": pairs(False), "quiz": options(), "de": words()}
    )

    def load_task(id: str, multilingual: bool) -> DatasetDict:
        found.loads.append((id, multilingual))
        return found.tables["de" if multilingual else id]

    module = ModuleType("tasksource")
    module.list_tasks = lambda multilingual: pd.DataFrame(other if multilingual else english)
    module.load_task = load_task
    module.task_licenses = lambda ids, multilingual: pd.DataFrame(
        {"id": ids, "license": ["unspecified" if multilingual else "mit"]}
    )
    module.task_provenance = lambda id, multilingual: {"dataset": "team/rows", "originals": ["old/rows"]} if id != "quiz" else {}
    monkeypatch.setitem(sys.modules, "tasksource", module)
    bridge.entries.cache_clear()
    yield found
    bridge.entries.cache_clear()


def test_names_are_ids_and_those_of_other_languages_say_so(fake):
    assert tasksource_names() == [
        "glue/rte", "one.text&more", "glue/stsb", "tone", "quiz", "pictures", "multilingual/glue/rte"]  # fmt: skip


def test_a_task_has_licence_citation_tags_and_question_and_no_rows_are_touched(fake):
    task = tasksource_task("glue/rte")
    assert (task.name, task.slug) == ("tasksource/glue/rte", "tasksource-glue-rte")
    assert (task.license, task.note, task.tags) == ("mit", "Does it follow?", {"tasksource", "glue"})
    assert task.cite == "tasksource: Sileo 2024, aclanthology.org/2024.lrec-main.1361; rows: team/rows, old/rows"
    german = tasksource_task("multilingual/glue/rte")
    assert (german.name, german.license, german.note) == ("tasksource/multilingual/glue/rte", "unknown", "Which words?")
    assert german.tags == {"tasksource", "glue", "multilingual"}
    quiz = tasksource_task("quiz")
    assert (quiz.cite, quiz.note, quiz.tags) == (
        "tasksource: Sileo 2024, aclanthology.org/2024.lrec-main.1361",
        "",
        {"tasksource"},
    )
    assert tasksource_task("one.text&more").name == "tasksource/one_text_more"
    assert fake.loads == []


def test_kinds_become_families(fake):
    families = {name: tasksource_task(name).family for name in ("glue/stsb", "tone", "quiz", "multilingual/glue/rte")}
    assert families == {
        "glue/stsb": Regression("sentence1", "sentence2", "labels", low=0, high=5),
        "tone": Regression("sentence1", None, "labels", low=-1, high=1),
        "quiz": Choice("inputs", "choices", "labels"),
        "multilingual/glue/rte": Tagging("tokens", "labels"),
    }
    with pytest.raises(InputError, match="'pictures' is of a kind that has no family here: VisualThing"):
        tasksource_task("pictures")


def test_a_second_text_is_read_where_there_is_one(fake):
    both, one = (open_task(tasksource_task(name)) for name in ("glue/rte", "one.text&more"))
    labels = ("entailment", "neutral")
    assert both.family == Classification("sentence1", "sentence2", "labels", labels=labels)
    assert one.family == Classification("sentence1", None, "labels", labels=labels)
    assert type(one.family) is Classification
    assert both.family.example(both.split("train").rows[3]) == ((("a 3", "b 3"),), 1, None)
    assert one.family.example(one.split("train").rows[3]) == ((("a 3", None),), 1, None)
    assert both.roles == ["train", "validation", "test"]
    assert both.split("test").place == "tasksource:glue/rte [test]"
    assert both.digest("train") == open_task(tasksource_task("glue/rte")).digest("train") != one.digest("train")
    assert fake.loads[:2] == [("glue/rte", False), ("one.text&more", False)]  # once for all splits of a task


def test_padding_is_no_option_and_the_label_still_counts_the_right_one(fake):
    opened = open_task(tasksource_task("quiz"))
    rows = list(opened.split("train").rows)
    assert [row["choices"] for row in rows] == [["a", "b", "c", "k"], ["a", "b"], ["b", "c"], ["a", "b"]]
    chosen = [row["choices"][row["labels"]] for row in rows[:3]]
    assert chosen == ["k", "b", "c"]
    with pytest.raises(InputError, match="'labels': None is not accepted"):
        opened.family.example(rows[3])
    assert [opened.family.example(row).texts[0] for row in rows[:3]] == [("q0", "a"), ("q1", "a"), ("q2", "b")]


def test_words_are_tagged_by_name(fake):
    opened = open_task(tasksource_task("multilingual/glue/rte"))
    assert opened.family == Tagging("tokens", "labels", labels=("O", "B-PER"))
    assert opened.family.name_target(opened.family.example(opened.split("train").rows[0])) == "Ann/B-PER left/O"
    assert fake.loads[0] == ("glue/rte", True)


def test_a_name_that_tasksource_has_not_is_answered_with_the_nearest(fake):
    with pytest.raises(InputError, match=r"tasksource has no task 'glue/rt' \(did you mean 'glue/rte'\?\)"):
        tasksource_task("glue/rt")
    with pytest.raises(InputError, match="tasksource has no task 'x y'"):
        TaskSource("x y").splits()


def test_rows_that_cannot_be_had_are_told_with_the_way_out(fake):
    fake.tables = {}
    with pytest.raises(
        Unavailable, match=r"'tasksource:glue/rte' could not be read \(KeyError: 'glue/rte'\)\. Offline\?"
    ) as raised:
        open_task(tasksource_task("glue/rte")).roles  # noqa: B018
    assert (raised.value.obtainable, raised.value.unreachable) == (True, False)

    class Away(dict):
        def __missing__(self, key):
            raise ConnectionError("no route")

    fake.tables = Away()
    with pytest.raises(Unavailable, match="no route") as raised:
        open_task(tasksource_task("glue/rte")).roles  # noqa: B018
    assert raised.value.unreachable


@pytest.mark.skipif(find_spec("tasksource") is not None, reason="tasksource is installed")
def test_without_the_package_its_extra_is_named():
    bridge.entries.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'prefinetune\[tasksource\]'"):
        tasksource_names()


def test_suite_files_name_tasks_of_tasksource_in_three_ways(fake, tmp_path):
    (tmp_path / "suite.yaml").write_text(
        "include: tasksource:quiz\n"
        "tasks:\n"
        "  - tasksource:glue/rte\n"
        "  - {tasksource: glue/rte, name: mine, tags: [own], evaluation_only: true, splits: {test: null}}\n"
        "  - {name: again, source: 'tasksource:glue/rte', classification: {text: sentence1, label: labels}}\n"
    )
    suite = read_suite(tmp_path / "suite.yaml")
    assert [task.name for task in suite] == ["tasksource/quiz", "tasksource/glue/rte", "mine", "again"]
    record = tasksource_task("glue/rte")
    assert suite["tasksource/glue/rte"] == record == find_task("tasksource:glue/rte")
    assert suite["mine"] == Task(
        "mine", record.source, record.family, {"test": None}, {"own"}, "mit", record.cite, True, record.note
    )
    assert suite["again"] == Task("again", TaskSource("glue/rte"), Classification("sentence1", label="labels"))
    assert open_task(suite["again"]).family.labels == ("entailment", "neutral")
    for text, place in (("tasks:\n  - sick\n  - tasksource:glue/rt\n", "3:5: task 2: "),
                        ("tasks:\n  - {name: a, tasksource: glue/rt}\n", "2:27: task 1 (a), tasksource: ")):  # fmt: skip
        (tmp_path / "suite.yaml").write_text(text)
        with pytest.raises(InputError) as raised:
            read_suite(tmp_path / "suite.yaml")
        assert f"suite.yaml:{place}tasksource has no task 'glue/rt'" in str(raised.value)


def test_a_mirror_holds_the_same_rows_labels_and_kind_of_task(fake, cache, tmp_path):
    tasks = [tasksource_task(name) for name in ("glue/rte", "one.text&more", "quiz", "multilingual/glue/rte")]
    assert [one.status for one in mirror(tasks, tmp_path)] == ["done"] * 4
    assert read_manifest(tmp_path)["tasksource-quiz"]["asked"]["source"] == "tasksource:quiz"
    there = [open_task(task) for task in tasks]
    fake.tables = {}
    for task, one in zip(tasks, there, strict=True):
        here = open_task(task, tmp_path)
        assert isinstance(here.source, Files)
        assert here.family == one.family
        assert list(here.split("train").rows) == list(one.split("train").rows)


# ---- with tasksource itself

real = pytest.mark.skipif(
    find_spec("tasksource") is None, reason="tasksource is not installed: pip install 'prefinetune[tasksource]'"
)


@pytest.fixture
def hub(monkeypatch):
    """Answers tasksource's calls of load_dataset from memory: set the rows, by split."""
    import tasksource.access

    answers = SimpleNamespace(rows=None, asked=[])

    def load_dataset(*arguments, **_):
        answers.asked.append(arguments)
        return DatasetDict(answers.rows)

    monkeypatch.setattr(tasksource.access, "load_dataset", load_dataset)
    bridge.entries.cache_clear()
    return answers


def labelled(rows: list[dict], label: str, names: list[str]) -> Dataset:
    found = Dataset.from_list(rows)
    return found.cast_column(label, ClassLabel(names=names))


@real
def test_every_task_of_tasksource_is_a_task_of_ours(hub):
    found = bridge.entries()
    assert len(found) > 1000
    assert {bridge.family(one).kind for one in found.values()} == {"classification", "choice", "tagging", "regression"}
    some = [tasksource_task(name) for name in list(found)[::40]]
    assert len({task.name for task in some}) == len(some)
    assert hub.asked == []


@real
def test_glue_comes_with_its_names_and_without_the_hidden_test_split(hub):
    names = ["entailment", "not_entailment"]
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2, "idx": i} for i in range(40)]
    hidden = [{**row, "label": -1} for row in rows]
    hub.rows = {split: labelled(rows, "label", names) for split in ("train", "validation")} | {
        "test": labelled(hidden, "label", names)
    }
    opened = open_task(tasksource_task("glue/rte"))
    assert opened.family == Classification("sentence1", "sentence2", "labels", labels=tuple(names))
    assert list(opened.split("train").rows) == [
        {"sentence1": f"a {i}", "sentence2": f"b {i}", "labels": i % 2} for i in range(40)
    ]
    assert hub.asked == [("nyu-mll/glue", "rte")]
    # half of the validation rows in the place of the test rows, as the module says
    halves = [opened.split(role).rows["sentence1"] for role in ("validation", "test")]
    assert [len(half) for half in halves] == [20, 20]
    assert sorted([*halves[0], *halves[1]]) == sorted(row["sentence1"] for row in rows)


@real
def test_a_single_text_is_one(hub):
    rows = [{"sentence": f"a {i}", "label": i % 2} for i in range(40)]
    hub.rows = {split: labelled(rows, "label", ["unacceptable", "acceptable"]) for split in ("train", "validation")}
    assert open_task(tasksource_task("glue/cola")).family == Classification(
        "sentence1", None, "labels", labels=("unacceptable", "acceptable")
    )


@real
def test_at_most_four_options_come_and_the_right_one_is_still_right(hub):
    rows = []
    for i in range(40):
        answers = {f"answer{k}": f"{'right' if k == i % 4 else 'wrong'} {i} {k}" for k in range(4)}
        rows.append({"context": "c", "question": f"q {i}", **answers, "label": i % 4, "id": str(i)})
    hub.rows = {split: Dataset.from_list(rows) for split in ("train", "validation")}
    opened = open_task(tasksource_task("cosmos_qa"))
    taken = list(opened.split("train").rows)
    assert [row["inputs"] for row in taken] == [f"c q {i}" for i in range(40)]
    for index, row in enumerate(taken):
        assert row["choices"][row["labels"]] == f"right {index} {index % 4}"
        assert sorted(row["choices"]) == sorted(rows[index][f"answer{k}"] for k in range(4))
    assert [row["labels"] for row in taken] != [row["label"] for row in rows]  # tasksource has another order


@real
def test_no_row_keeps_more_options_than_the_shortest_list_has(hub):
    lists = [["w 0", "right", "w 1"], ["w 0", "w 1", "w 2", "right", "w 3"]] * 20
    rows = [{"ctx_a": "c", "ctx_b": "", "endings": one, "label": one.index("right")} for one in lists]
    hub.rows = {split: Dataset.from_list(rows) for split in ("train", "validation")}
    for row in open_task(tasksource_task("hellaswag")).split("train").rows:
        assert len(row["choices"]) == 3
        assert row["choices"][row["labels"]].strip() == "right"


@real
def test_tags_of_words_have_their_names(hub):
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-PER"]))})
    rows = Dataset.from_list([{"tokens": ["Ann", "left"], "ner_tags": [1, 0]}] * 20, features=features)
    hub.rows = {"train": rows, "validation": rows, "test": rows}
    opened = open_task(tasksource_task("conll2003/ner_tags"))
    assert opened.family == Tagging("tokens", "labels", labels=("O", "B-PER"))
    assert opened.family.name_target(opened.family.example(opened.split("test").rows[0])) == "Ann/B-PER left/O"


@real
def test_degrees_of_similarity_are_numbers(hub):
    rows = Dataset.from_list([{"sentence1": f"a {i}", "sentence2": "b", "label": i / 8} for i in range(40)])
    hub.rows = {"train": rows, "validation": rows, "test": rows}
    opened = open_task(tasksource_task("glue/stsb"))
    assert opened.family == Regression("sentence1", "sentence2", "labels", low=0, high=5)
    assert opened.family.example(opened.split("test").rows[8]).target == 0.2  # of the range from 0 to 5


@real
def test_a_network_that_is_missing_is_told(hub, monkeypatch):
    import tasksource.access

    def unreachable(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(tasksource.access, "load_dataset", unreachable)
    with pytest.raises(Unavailable, match="no route to the hub") as raised:
        open_task(tasksource_task("glue/rte")).split("train")
    assert raised.value.unreachable
