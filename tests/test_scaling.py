"""What a run finds prepared is what it would have made, and is found again only while all that it depends on is as it was; and
benchmarks/scaling.py measures what it says."""

import json
import mmap
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import transformers

from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.families import (
    Choice,
    Classification,
    Denoising,
    Encoded,
    Family,
    Generation,
    MultiLabel,
    Regression,
    Span,
    Tagging,
)
from prefinetune.families.base import plain as plain_field
from prefinetune.leaks import known_leaks
from prefinetune.mixture import permute
from prefinetune.sources import Files, Rows
from prefinetune.splits import HELD_OUT_MOST, HELD_OUT_SHARE, open_task, spread_rows
from prefinetune.store import EncodedSplit, build_store, encode_split
from prefinetune.task import Task
from prefinetune.tasksource import OneOrTwoTexts
from prefinetune.tokenizer import Tokenizer, load_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import scaling
import workload

LENGTH = 24
FAMILIES = {
    "text": Classification("text", labels=("a", "b")),
    "pair": Classification("text", pair="other", labels=("a", "b")),
    "moods": MultiLabel("text", label="moods", labels=("a", "b", "c")),
    "number": Regression("text", pair="other", label="score", low=0, high=1),
    "options": Choice("text", "options", label="right"),
    "span": Span("other", "text"),
    "tags": Tagging("words", tags="tags", labels=("x", "y")),
    "raw": Denoising("text"),
}


def made_rows(count: int = 60, seed: int = 0) -> list[dict]:
    """Rows that every family reads; many texts are longer than a sequence, and some answers are two."""
    rng = random.Random(seed)
    words = ["the", "duni", "kuno", "never", "gilas", "bili", "bano", "."]

    def text(least: int = 1, most: int = 50) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    rows = []
    for number in range(count):
        context = text(3)
        answers = {"text": [], "answer_start": []} if number % 5 == 0 else {"text": context.split()[:2], "answer_start": []}
        answers["answer_start"] = [context.index(answer) for answer in answers["text"]]
        tokens = text(1, 40).split()
        rows.append({
            "text": context, "other": text(1, 12), "label": rng.choice("ab"), "moods": rng.sample("abc", rng.randint(0, 3)),
            "score": rng.random(), "options": [text(1, 9) for _ in range(rng.randint(2, 4))], "right": rng.randrange(2),
            "answers": answers, "words": tokens, "tags": rng.choices("xy", k=len(tokens)), "references": [text(), text()],
        })  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def tokenizers(tiny_model, tiny_bart) -> dict[str, Tokenizer]:
    config = transformers.AutoConfig.from_pretrained(tiny_bart)
    return {"encoder": load_tokenizer(str(tiny_model), LENGTH), "decoder": load_tokenizer(str(tiny_bart), LENGTH, config, 12)}


def opened(family: Family, rows: list[dict], cache: Path | None = None, **more):
    task = Task("mine", Rows({"train": rows, "validation": rows}), family)
    return open_task(task, bad_rows=1.0, cache=cache, **more)


def plain(one: Encoded) -> tuple:
    """All that scoring and training read of an example."""
    offsets = None if one.offsets is None else [part.tolist() for part in one.offsets]
    output = None if one.output is None else one.output.tolist()
    return [ids.tolist() for ids in one.sequences], one.first, one.target.tolist(), one.source, one.reference, offsets, output


def encoded(family: Family, rows: list[dict], numbers: list[int], tokenizer: Tokenizer) -> list[tuple]:
    """What scoring needs of some rows, made here and now."""
    found = family.encode([family.example(rows[number]) for number in numbers], tokenizer, for_training=False)
    return [plain(replace(one, source=numbers[one.source])) for one in found]


# ---- what scoring needs


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("name", [*FAMILIES, "summary"])
def test_what_scoring_finds_prepared_is_what_the_family_makes_of_the_rows(name, kind, tokenizers, tmp_path, monkeypatch):
    if (name, kind) == ("summary", "encoder"):
        pytest.skip("an encoder writes nothing")
    family = FAMILIES.get(name) or Generation("text", target="other", references="references")
    tokenizer, rows = tokenizers[kind], made_rows()
    for most in (None, 23):
        numbers = list(range(len(rows))) if most is None else spread_rows(len(rows), most).tolist()
        expected = encoded(family, rows, numbers, tokenizer)
        assert len(expected) >= len(numbers)
        for _ in ("made", "found"):
            split = encode_split(opened(family, rows, tmp_path), "validation", tokenizer, most)
            assert isinstance(split, EncodedSplit)
            assert list(map(plain, split)) == expected
            assert [one is other for one, other in zip(split, split, strict=True)] == [True] * len(split), "the same objects"
            assert split[2:4] == [split[2], split[3]]
            with pytest.raises(IndexError):
                split[len(split)]
            assert (split.account.rows, split.account.counts["stored"]) == (len(rows), len(numbers))


def test_what_was_prepared_is_not_made_again(tokenizers, tmp_path, monkeypatch):
    rows, family = made_rows(), FAMILIES["span"]
    first = [plain(one) for one in encode_split(opened(family, rows, tmp_path), "validation", tokenizers["encoder"])]

    def made_again(*_, **__):
        raise AssertionError("it was there already")

    monkeypatch.setattr(Span, "encode", made_again)
    monkeypatch.setattr(Span, "example", made_again)
    monkeypatch.setattr(Tokenizer, "_copy", made_again)
    again = load_tokenizer(tokenizers["encoder"].tokenizer.name_or_path, LENGTH)
    assert [plain(one) for one in encode_split(opened(family, rows, tmp_path), "validation", again)] == first


def test_what_training_and_what_scoring_needs_of_the_same_rows_are_kept_apart(tokenizers, tmp_path):
    rows, family, tokenizer = made_rows(), FAMILIES["span"], tokenizers["encoder"]
    scored = encode_split(opened(family, rows, tmp_path), "train", tokenizer)
    trained = build_store(opened(family, rows, tmp_path), "train", tokenizer, tmp_path)
    assert trained.folder != scored.store.folder
    assert sum(len(one.sequences) for one in scored) > len(trained), "all windows of long texts"
    assert {len(trained[index].sequences) for index in range(len(trained))} == {1}
    assert {(one.reference, one.offsets) for one in map(trained.__getitem__, range(len(trained)))} == {(None, None)}


def test_scoring_takes_rows_of_one_label(tokenizers, tmp_path):
    """Training does not."""
    rows = [{**row, "label": "a"} for row in made_rows()]
    assert len(encode_split(opened(FAMILIES["text"], rows, tmp_path), "train", tokenizers["encoder"])) == len(rows)
    with pytest.raises(InputError, match="every row has the same 'label'"):
        build_store(opened(FAMILIES["text"], rows, tmp_path), "train", tokenizers["encoder"], tmp_path)


def test_references_are_what_they_were(tmp_path, tokenizers):
    odd = 'a "quote", \u2028 a line, \N{GRINNING FACE}, \\n, 12'
    rows = [{"text": odd, "other": odd, "references": [odd, "x", "y"]}, {"text": "kuno", "other": "bano", "references": ["1.0"]}]
    family = Generation("text", target="other", references="references")
    split = encode_split(opened(family, rows, tmp_path), "validation", tokenizers["decoder"])
    assert [one.reference for one in split] == [(odd, "x", "y"), ("1.0",)]


# ---- what is prepared depends on


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for role, seed in (("train", 0), ("validation", 1)):
        write_rows(folder / f"{role}.jsonl", made_rows(seed=seed))
    return folder


def test_a_changed_file_is_noticed_whatever_its_size_and_time_say(files, tokenizers, tmp_path):
    path, task = files / "validation.jsonl", Task("mine", Files(str(files)), FAMILIES["text"])

    def prepared() -> list[tuple]:
        return [plain(one) for one in encode_split(open_task(task, cache=tmp_path), "validation", tokenizers["encoder"])]

    before, rows, status = prepared(), made_rows(seed=1), path.stat()
    assert prepared() == before == encoded(task.family, rows, list(range(60)), tokenizers["encoder"])
    rows[7]["label"] = "ab".replace(rows[7]["label"], "")  # of the same size
    write_rows(path, rows)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    after = prepared()
    assert [at for at in range(60) if before[at] != after[at]] == [7]
    assert after == encoded(task.family, rows, list(range(60)), tokenizers["encoder"])


CHANGES = {
    "a row": lambda rows, given: ([*rows[:7], {**rows[7], "text": "kuno"}, *rows[8:]], given),
    "a row less": lambda rows, given: (rows[:-1], given),
    "the order of rows": lambda rows, given: (rows[::-1], given),
    "a column that is read": lambda rows, given: (rows, {**given, "family": Classification("other", labels=("a", "b"))}),
    "the order of labels": lambda rows, given: (rows, {**given, "family": Classification("text", labels=("b", "a"))}),
    "a label that is none": lambda rows, given: (rows, {**given, "family": replace(given["family"], skip=("a",))}),
    "how many rows are scored": lambda rows, given: (rows, {**given, "most": 20}),
    "the longest sequence": lambda rows, given: (rows, {**given, "length": LENGTH - 1}),
    "the tokenizer": lambda rows, given: (rows, {**given, "words": ["more"]}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_scoring_sees_what_changed(change, tiny_model, tmp_path):
    def prepared(rows, given) -> tuple[list[tuple], list[tuple]]:
        """What there is in the cache, and what is right."""
        loaded = transformers.AutoTokenizer.from_pretrained(tiny_model)
        loaded.add_tokens(given["words"])
        tokenizer, most = Tokenizer(loaded, given["length"], False), given["most"]
        split = encode_split(opened(given["family"], rows, tmp_path), "validation", tokenizer, most)
        numbers = list(range(len(rows))) if most is None else spread_rows(len(rows), most).tolist()
        numbers = [number for number in numbers if not given["family"].skips(rows[number])]
        return split.store.folder, [plain(one) for one in split], encoded(given["family"], rows, numbers, tokenizer)

    given = {"family": FAMILIES["text"], "most": None, "length": LENGTH, "words": []}
    first, found, right = prepared(made_rows(), given)
    assert found == right
    other, found, right = prepared(*CHANGES[change](made_rows(), given))
    assert found == right
    assert other != first


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "references.bin", "reference_ends.bin"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_damaged_examples_for_scoring_are_made_again(name, harm, tokenizers, tmp_path):
    rows, tokenizer = made_rows(), tokenizers["encoder"]
    split = encode_split(opened(FAMILIES["span"], rows, tmp_path), "validation", tokenizer)
    path, expected = split.store.folder / name, encoded(FAMILIES["span"], rows, list(range(60)), tokenizer)
    content = path.read_bytes()
    assert len(content) > 100
    path.unlink()
    if harm == "flipped":
        path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
    elif harm == "cut":
        path.write_bytes(content[:-8])
    again = encode_split(opened(FAMILIES["span"], rows, tmp_path), "validation", tokenizer)
    assert [plain(one) for one in again] == expected
    assert path.read_bytes() == content


def test_leaks_of_other_kinds_of_task_are_looked_for_again(tmp_path):
    """Options mean the same in any order, and parts of a text do not."""
    first, second = ("the duni kuno never gilas", "the bili bano never gilas the duni kuno")
    rows = {
        "train": [{"text": "which one is it", "options": [first, second], "label": 0}],
        "validation": [{"text": "which one is it", "options": [second, first], "label": 1}],
    }
    found = []
    for family in (Choice("text", "options"), Classification("text", pair="options", labels=("0", "1"))):
        one = open_task(Task("mine", Rows(rows), family))
        for _ in ("looked for", "found"):
            leaks = known_leaks([one], [], tmp_path, Display(quiet=True))
            found.append([overlap.exact for overlap in leaks.overlaps])
    assert found == [[1], [1], [], []]


# ---- rows held out and left out


@pytest.mark.parametrize("count", [2, 9, 250, 30_000])
@pytest.mark.parametrize("most", [None, 1, 40])
def test_rows_held_out_and_chosen_are_the_first_of_a_shuffle_of_all(count, most):
    rows = [{"text": str(number), "label": "ab"[number % 2]} for number in range(count)]
    one = open_task(Task("mine", Rows({"train": rows}), FAMILIES["text"]), max_rows=most)
    shuffled = permute(np.arange(count), count, 0)
    held_out = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * count)))
    assert one.split("validation").kept.tolist() == sorted(shuffled[:held_out].tolist())
    left = np.sort(shuffled[held_out:])
    chosen = left if most is None or most >= len(left) else np.sort(left[permute(np.arange(len(left)), len(left), 1)[:most]])
    assert one.split("train").kept.tolist() == chosen.tolist()
    assert one.account("train").rows == count


# ---- the benchmark


def test_the_rows_of_a_point_are_its_random_examples_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "DRAWN", 7)
    point = scaling.Point("small", tasks=3, rows=50, lengths=(3, 9))
    folders = scaling.write_stores(tmp_path, point)
    stores = [task.store for task in scaling.Trainer(point, folders).tasks]
    assert list(map(len, stores)) == [17, 17, 16]
    assert [len(store.example_ends) for store in stores] == [17, 17, 16], "and no more are written"
    for number, store in enumerate(stores):
        examples = scaling.random_examples(7, (3, 9), scaling.number_of_labels(number), number)
        assert [store[at].source for at in range(len(store))] == list(range(len(store)))
        for at in range(len(store)):
            assert store[at].sequences[0].tolist() == examples[at % 7].sequences[0].tolist()
            assert store[at].target.tolist() == examples[at % 7].target.tolist()
            assert 3 <= len(store[at].sequences[0]) <= 9


def test_a_turn_counts_what_its_updates_learned_from(tmp_path):
    point = scaling.Point("small", tasks=2, rows=40, lengths=(5, 5), examples=8)
    trainer = scaling.Trainer(point, scaling.write_stores(tmp_path, point))
    before = {name: tensor.clone() for name, tensor in trainer.model.unique_state().items()}
    found = trainer.turn(3)
    assert found["work"] == list(workload.Work(24, tokens=120, squares=24 * 25, outputs=0, output_squares=0, crossed=0))
    assert found["seconds"] > 0
    assert trainer.done == 3
    moved = [name for name, tensor in trainer.model.unique_state().items() if not tensor.equal(before[name])]
    assert any(name.startswith("backbone") for name in moved)
    assert any(name.startswith("heads") for name in moved)


def test_memory_is_without_mapped_files(tmp_path):
    path = tmp_path / "zeros"
    path.write_bytes(bytes(64 << 20))
    before = scaling.memory(os.getpid())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[at] for at in range(0, 64 << 20, 4096)) == 0
        assert scaling.memory(os.getpid()) - before < 16
        # Pages of its own: an array may be given some that were freed before and still count.
        with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
            held.write(b"1" * (64 << 20))
            assert scaling.memory(os.getpid()) - before > 48


def test_points_are_measured_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    points = {rows: scaling.Point("small", tasks=2, rows=rows, examples=8, updates=2) for rows in (80, 800)}
    monkeypatch.setenv("PREFINETUNE_NATIVE", "0")  # nothing to compile
    monkeypatch.setattr(scaling, "CHARTS", {"tasks": scaling.Chart("number of rows", points)})
    monkeypatch.setattr(scaling, "goals", lambda found: [{"goal": "none", "found": 2.0, "most": 1.0, "met": False}])
    out, chart = tmp_path / "made" / "scaling.json", tmp_path / "scaling.html"
    words = ["--only", "tasks", "--turns", "2", "--out", str(out), "--chart", str(chart)]
    assert scaling.main(words) == 0
    found = json.loads(out.read_text())
    assert list(found["tasks"]) == ["80", "800"]
    for one in found["tasks"].values():
        assert [turn["examples"] for turn in one["turns"]] == [16, 16]
        rates = [turn["examples"] / turn["seconds"] for turn in one["turns"]]
        weights = 2 * (4 * 128**2 + 2 * 128 * 512)  # of two layers
        for turn in one["turns"]:  # forward and backward; attention adds a little, as texts are short
            assert 1 < turn["GFLOP"] / (6 * weights * turn["tokens"] / 1e9) < 1.1
        assert min(rates) <= one["examples/s"] <= max(rates)
        assert 50 < one["peak MB"] < 3000
    page = chart.read_text()
    assert "plotly" in page
    assert "<script src=" not in page
    assert "number of rows" in page
    monkeypatch.setattr(scaling, "measure", lambda *_: iter([{80: found["tasks"]["80"]}]))
    assert scaling.main([*words, "--check"]) == 1
    assert "missed none: 2.00, at most 1" in " ".join(capsys.readouterr().err.split())


def made_up_result(**spoiled: float) -> dict:
    """Every goal met, but for what is given."""
    seconds = {"tasks": 1.0, "rows": 1.0, "megabytes": 300.0, "start": 4.0} | spoiled

    def point(seconds: float, peak: float = 300.0) -> dict:
        return {"turns": [{"seconds": busy * seconds, "examples": 10} for busy in (1, 3, 2)], "peak MB": peak}

    return {
        "tasks": {"8": point(1), "120": point(seconds["tasks"])},
        "rows": {"1000": point(1), "10000": point(1), "10000000": point(seconds["rows"], seconds["megabytes"])},
        "start": {"tasks": 120, "ready": [seconds["start"], 99.0]},
    }


@pytest.mark.parametrize(
    ("spoiled", "missed"),
    [
        ({}, []),
        ({"tasks": 1.09, "rows": 1.09, "megabytes": 319, "start": 4.9}, []),
        ({"tasks": 1.11}, ["time of an example, 120 tasks to 8"]),
        ({"rows": 1.11}, ["time of an example, 10,000,000 rows to 1,000"]),
        ({"megabytes": 321}, ["MB that 10,000,000 rows take more than 10,000"]),
        ({"start": 5.1}, ["seconds to the first update of 120 tasks"]),
    ],
)
def test_each_goal_that_is_missed_is_named(spoiled, missed):
    found = scaling.goals(made_up_result(**spoiled))
    assert len(found) == 4
    assert [check["goal"] for check in found if not check["met"]] == missed
    assert scaling.goals({}) == []


# ---- a warm start

START = """
import json, sys
from pathlib import Path
import prefinetune
from prefinetune.families import Choice, Classification, Regression, Span

rows, model, cache, out = sys.argv[1:]
families = {
    "text": Classification("text", labels=("a", "b")),
    "number": Regression("text", label="score", low=0, high=1),
    "options": Choice("text", "options", label="right"), "span": Span("other", "text"),
}
tasks = [prefinetune.Task(name, prefinetune.Files(rows), family) for name, family in families.items()]
prefinetune.train
module = sys.modules["prefinetune.loop"]
work = module.update

def update(*arguments):
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules} & {"datasets", "pandas", "sklearn"})))
    return work(*arguments)

module.update = update
settings = {"train": {"updates": 1}, "data": {"bad_rows": 1.0}}
prefinetune.train(prefinetune.Suite("four", tasks), model, out, config=settings, cache=cache)
"""


def test_a_run_that_finds_everything_prepared_reads_no_rows(files, tiny_model, tmp_path, monkeypatch):
    """Which is seen by what it does not import."""
    monkeypatch.setenv("PREFINETUNE_NATIVE", "0")  # nothing to compile
    loaded, results = [], []
    for number in range(2):
        out = tmp_path / f"run{number}"
        words = [sys.executable, "-c", START, files, tiny_model, tmp_path / "cache", out]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
        loaded.append(json.loads(done.stdout.splitlines()[0]))
        results.append([json.loads(line)["scores"] for line in (out / "results.jsonl").read_text().splitlines()])
    assert "datasets" in loaded[0]
    assert loaded[1] == []
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("family", "is_frozen"),
    [
        (Classification("text"), False), (Classification("text", labels=("a", "b")), True),
        (MultiLabel("text"), False), (MultiLabel("text", labels=("a", "b")), True),
        (Tagging("words"), False), (Tagging("words", labels=("x", "y")), True),
        (Regression("text"), False), (Regression("text", low=0), False), (Regression("text", low=0, high=1), True),
        (Choice("text", "options"), True), (Span("other", "text"), True), (Denoising("text"), True),
        (OneOrTwoTexts("text", "other", labels=("a", "b")), False),
    ],
)  # fmt: skip
def test_a_record_that_leaves_nothing_open_says_so(family, is_frozen):
    assert family.is_frozen == is_frozen


def reading(column: str):
    return lambda row: row[column]


def reading_by_default(column: str):
    return lambda row, column=column: row[column]


NAMES = {"of": "text"}


def reading_by_table(row):
    return helped(row)


def helped(row):
    return row[NAMES["of"]]


def test_functions_that_read_other_columns_are_other_functions(monkeypatch):
    """Also where their code is the same."""
    for make in (reading, reading_by_default):
        assert plain_field(make("text")) == plain_field(make("text")) != plain_field(make("other"))
    before = plain_field(reading_by_table)
    monkeypatch.setitem(NAMES, "of", "other")
    assert plain_field(reading_by_table) != before
    monkeypatch.setitem(NAMES, "of", "text")
    assert plain_field(reading_by_table) == before
    monkeypatch.setattr(sys.modules[__name__], "helped", lambda row: row["text"])
    assert plain_field(reading_by_table) != before


def test_a_field_that_is_another_function_is_tokenized_again(tokenizers, tmp_path):
    rows = made_rows()
    families = [Classification(reading(column), labels=("a", "b")) for column in ("text", "other")]
    found = [build_store(opened(family, rows), "train", tokenizers["encoder"], tmp_path) for family in families]
    assert found[0].folder != found[1].folder
