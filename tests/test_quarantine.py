"""A few bad rows do not stop a run, and none goes unmentioned: every row is stored, set aside, or left out by a rule."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prefinetune.cache import PREFIX, building, sweep
from prefinetune.compare import compare
from prefinetune.config import make_config
from prefinetune.display import Display
from prefinetune.errors import FieldError, InputError
from prefinetune.families import Choice, Classification, MultiLabel, Regression
from prefinetune.finetune import finetune, held_out
from prefinetune.quarantine import Account, Fault
from prefinetune.sources import Files, Hub, Rows
from prefinetune.splits import open_task
from prefinetune.store import build_store, encode_split
from prefinetune.task import Suite, Task
from prefinetune.tokenizer import load_tokenizer
from prefinetune.train import train

WORDS = ("kuno", "bano", "gilas", "bili", "duni", "never", "no", "the")


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(str(tiny_model), 32)


def write_table(path: Path, rows: int, bad: dict[int, str], seed: int = 0) -> Path:
    """A table with two labels, in which some rows are replaced by other lines."""
    rng = random.Random(seed)
    good = [f"{seed} {row} {' '.join(rng.choices(WORDS, k=6))},{'yes' if rng.random() < 0.5 else 'no'}" for row in range(rows)]
    path.write_text("text,label\n" + "".join(bad.get(row, line) + "\n" for row, line in enumerate(good)))
    return path


def task_of(path: Path, family=None, **others: Path) -> Task:
    splits = {"train": path, **others}
    return Task("intent", Files({role: str(place) for role, place in splits.items()}), family or Classification("text"))


SMALL = {
    "mixture": {"sub_batches": 2, "sub_batch_size": 2},
    "train": {"updates": 2, "checkpoint_every": None},
    "data": {"leaks": "off"},
}


@pytest.fixture
def spoiled(tmp_path) -> dict[str, Path]:
    """400 training rows, of which a ragged one, one without a text and one without a label are bad; 150 to evaluate, one bad."""
    return {
        "train": write_table(tmp_path / "train.csv", 400, {17: "ragged", 101: " ,yes", 333: "the kuno,"}),
        "validation": write_table(tmp_path / "validation.csv", 150, {140: "the kuno,maybe not,no"}, seed=1),
    }


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


EXPECTED = [
    ("train", "train.csv", 17, 19, "1 cells, but the header has 2"),
    ("train", "train.csv", 101, None, "field 'text': ' ' is not accepted; expected a text that is not empty"),
    ("train", "train.csv", 333, None, "field 'label': '' is not accepted; expected one of the labels no, yes"),
    ("validation", "validation.csv", 140, 142, "3 cells, but the header has 2"),
]


def check_quarantine(path: Path, folder: Path) -> None:
    found = lines(path)
    assert [one["task"] for one in found] == ["intent"] * len(EXPECTED)
    for one, (role, file, row, line, reason) in zip(found, EXPECTED, strict=True):
        assert (one["role"], one["place"], one["row"], one.get("line")) == (role, str(folder / file), row, line)
        assert reason in one["reason"]


def test_a_run_names_the_rows_it_sets_aside_and_says_the_same_when_its_stores_are_in_the_cache(
    spoiled, tmp_path, tiny_model, cache, capsys
):
    suite = Suite("mine", (task_of(spoiled["train"], validation=spoiled["validation"]),))
    said = []
    for out in (tmp_path / "first", tmp_path / "second"):
        train(suite, tiny_model, out, config=SMALL, display=Display())
        check_quarantine(out / "quarantine.jsonl", tmp_path)
        [entry] = yaml.safe_load((out / "suite.yaml").read_text())["tasks"]
        assert entry["rows"] == {
            "train": {"rows": 400, "quarantined": 3, "stored": 397},
            "validation": {"rows": 150, "quarantined": 1, "stored": 149},
        }
        said.append([line for line in capsys.readouterr().err.splitlines() if "set aside" in line])
    assert said[0] == said[1] == [
        f"intent: 3 of 400 rows set aside (quarantine.jsonl); the first: {spoiled['train']}, row 17 (line 19): 1 cells, but the "
        "header has 2 (text, label); a text that holds ',' must stand in quotes",
        f"intent: 1 of 150 validation rows set aside (quarantine.jsonl); the first: {spoiled['validation']}, row 140 (line 142): "
        "3 cells, but the header has 2 (text, label); a text that holds ',' must stand in quotes",
    ]  # fmt: skip
    train(suite, tiny_model, tmp_path / "first", config=SMALL, resume=True)  # nothing is left to do
    check_quarantine(tmp_path / "first" / "quarantine.jsonl", tmp_path)


def test_a_fine_tuning_and_a_comparison_do_the_same(spoiled, tmp_path, tiny_model, cache, capsys):
    task = task_of(spoiled["train"], validation=spoiled["validation"])
    finetune(task, tiny_model, tmp_path / "tuned", config=SMALL)
    check_quarantine(tmp_path / "tuned" / "quarantine.jsonl", tmp_path)
    arguments = {"base": tiny_model, "labels": [8], "seeds": 1, "grid": [1e-3], "config": {**SMALL, "train": {"updates": 1}}}
    compare([task], tiny_model, tmp_path / "compared", **arguments, display=Display())
    check_quarantine(tmp_path / "compared" / "quarantine.jsonl", tmp_path)
    assert "intent: 3 of 400 rows set aside" in capsys.readouterr().err
    other = Task("other", Files(str(write_table(tmp_path / "other.csv", 300, {7: "ragged"}))), Classification("text"))
    compare([other], tiny_model, tmp_path / "compared", **arguments)
    found = lines(tmp_path / "compared" / "quarantine.jsonl")
    assert [(one["task"], one["row"]) for one in found] == [*(("intent", row) for _, _, row, _, _ in EXPECTED), ("other", 7)]


def test_of_a_large_test_split_a_part_may_be_scored_the_same_for_every_start(spoiled, tmp_path, tiny_model, cache):
    task = task_of(spoiled["train"], test=write_table(tmp_path / "test.csv", 150, {}, seed=2))
    scored = {}
    for most in (None, 40):
        config = {**SMALL, "train": {**SMALL["train"], "test_rows": most}}
        record = finetune(task, tiny_model, tmp_path / str(most), config=config).record
        scored[most] = {line["row"]: line for line in lines(tmp_path / str(most) / "predictions" / "intent.jsonl")}
        assert len(scored[most]) == record["rows"]
    assert scored[40].items() <= scored[None].items()  # the same answers
    assert list(scored[None]) == list(range(150))
    for at, row in enumerate(scored[40]):  # one of each stretch of the split
        assert 150 * at // 40 <= row < 150 * (at + 1) // 40
    counts = yaml.safe_load((tmp_path / "40" / "suite.yaml").read_text())["tasks"][0]["rows"]["test"]
    assert counts == {"rows": 150, "evaluation_rows": 110, "stored": 40}


def test_without_a_test_split_half_the_validation_rows_are_scored_however_few_choose_when_to_stop(
    spoiled, tmp_path, tiny_model, tokenizer, cache
):
    task = task_of(spoiled["train"], validation=spoiled["validation"])
    for train_settings, rows in (({"evaluation_rows": 10}, 74), ({"evaluation_rows": 10, "test_rows": 20}, 20)):
        config = {**SMALL, "train": {**SMALL["train"], **train_settings}}
        record = finetune(task, tiny_model, tmp_path / str(rows), config=config).record
        assert (record["split"], record["rows"]) == ("validation, the half not used for early stopping", rows)
        scored = {line["row"] for line in lines(tmp_path / str(rows) / "predictions" / "intent.jsonl")}
        assert len(scored) == rows
        opened = open_task(task, cache=cache)
        watched, again, *_ = held_out(opened, tokenizer, make_config(config).train)
        assert len(watched) == 10
        assert {one.source for one in again} == scored
        assert not scored & {one.source for one in watched}


@pytest.mark.parametrize("role", ["train", "validation"])
@pytest.mark.parametrize("verb", ["train", "finetune", "compare"])
def test_too_many_bad_rows_stop_every_verb_before_it_claims_its_folder(verb, role, spoiled, tmp_path, tiny_model, cache):
    bad = {row: f"text {row}," for row in range(20, 29)}
    write_table(spoiled[role], 400, bad)
    task, out = task_of(spoiled["train"], validation=spoiled["validation"]), tmp_path / "run"
    work = {
        "train": lambda: train(Suite("mine", (task,)), tiny_model, out, config=SMALL),
        "finetune": lambda: finetune(task, tiny_model, out, config=SMALL),
        "compare": lambda: compare([task], tiny_model, out, base=tiny_model, labels=[8], seeds=1, grid=[1e-3], config=SMALL),
    }
    with pytest.raises(InputError) as caught:
        work[verb]()
    place = str(spoiled[role])
    for fragment in (
        f"{place}, row 20: field 'label': ''",
        f"{place}, row 22",
        "and 2 more",
        "5 rows of 400",
        "data.bad_rows=0.02",
    ):
        assert fragment in str(caught.value)
    assert not out.exists()
    if verb == "train":
        train(Suite("mine", (task,)), tiny_model, out, config={**SMALL, "data": {"leaks": "off", "bad_rows": 0.05}})
        assert sum(one["role"] == role for one in lines(out / "quarantine.jsonl")) == 9


def test_the_share_is_exact_and_reading_stops_as_soon_as_it_is_passed(tokenizer, tmp_path, cache):
    seen = []

    class Watched(Classification):
        def example(self, row):
            seen.append(row["text"])
            return super().example(row)

    family = Watched("text", labels=("no", "yes"))
    path = write_table(tmp_path / "a.csv", 300, dict.fromkeys((5, 6, 7), "the kuno,maybe"))
    other = write_table(tmp_path / "v.csv", 10, {})
    store = build_store(open_task(task_of(path, family, validation=other), bad_rows=0.01), "train", tokenizer)
    assert store.manifest["account"] == {"rows": 300, "quarantined": 3, "stored": 297}
    for share, stopped_at in ((0.009, 8), (0.0067, 8), (0.0066, 7), (0, 6)):
        seen.clear()
        write_table(path, 300, dict.fromkeys((5, 6, 7), "the kuno,maybe"), seed=1 + round(1e6 * share))
        with pytest.raises(InputError, match=f"data.bad_rows={share:g} allows"):
            build_store(open_task(task_of(path, family, validation=other), bad_rows=share), "train", tokenizer)
        assert len(seen) == stopped_at


def test_one_bad_row_of_few_stops_and_the_message_says_how_to_go_on(tokenizer, tmp_path, cache):
    path = write_table(tmp_path / "a.csv", 50, {3: "the kuno,"})
    with pytest.raises(InputError, match=r"row 3: .* 1 row of 50 cannot be used, more than data.bad_rows=0.01 allows; .*=0.05"):
        build_store(open_task(task_of(path, validation=path)), "train", tokenizer)
    store = build_store(open_task(task_of(path, validation=path), bad_rows=0.05), "train", tokenizer)
    assert len(store) == 49
    with pytest.raises(InputError, match=r"row 3: .* 1 row of 50"):  # the store is there, and is not believed to be good enough
        build_store(open_task(task_of(path, validation=path)), "train", tokenizer)


@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(path.read_bytes()[:-30]), Path.unlink], ids=["cut", "gone"])
def test_a_store_whose_quarantine_is_damaged_is_built_again(harm, spoiled, tokenizer, cache):
    opened = open_task(task_of(spoiled["train"], validation=spoiled["validation"]))
    path = build_store(opened, "train", tokenizer).folder / "quarantine.jsonl"
    content = path.read_bytes()
    harm(path)
    assert [fault.row for fault in build_store(opened, "train", tokenizer).account.faults] == [17, 101, 333]
    assert path.read_bytes() == content


def test_bad_labels_do_not_stop_the_reading_of_labels(tokenizer, cache):
    def rows(values: list) -> Rows:
        made = [{"text": f"the {word}", "label": value} for word, value in zip(WORDS * 40, values, strict=False)]
        return Rows({"train": made, "validation": made})

    found = open_task(Task("a", rows([None, "x", "", "y"] * 3), Classification("text")), bad_rows=1)
    assert found.family.labels == ("x", "y")
    assert build_store(found, "train", tokenizer).rows.tolist() == [1, 3, 5, 7, 9, 11]
    numbers = open_task(Task("a", rows(["1", "high", "7", "nan", "", "inf", "3"]), Regression("text")), bad_rows=1)
    assert (numbers.family.low, numbers.family.high) == (1, 7)
    assert build_store(numbers, "train", tokenizer).rows.tolist() == [0, 2, 6]
    lists = open_task(Task("a", rows([["x"], None, ["y", "x"], []]), MultiLabel("text")), bad_rows=1)
    assert lists.family.labels == ("x", "y")
    for family, values, message in (
        (Classification("text"), [None, "", None], "field 'label': None is not accepted; expected a label"),
        (Classification("text"), ["x", None, "x"], "only the label 'x'"),
        (Regression("text"), ["high", "low"], "field 'label': 'high' is not accepted; expected a number"),
        (Regression("text"), ["2", "2", "high"], "every value of 'label' is 2"),
    ):
        with pytest.raises(InputError, match=message):
            _ = open_task(Task("a", rows(values), family), bad_rows=1).family


def test_labels_and_ranges_are_those_of_all_rows_also_of_rows_that_are_left_out(tmp_path):
    mirror = tmp_path / "mirror"
    (mirror / "a").mkdir(parents=True)
    (mirror / "a" / "train.csv").write_text("text,label\n" + "the,x\nkuno,y\nbano,z\n" * 10)
    (mirror / "a" / "validation.csv").write_text("text,label\nthe,x\n")
    (mirror / "overlap.json").write_text(json.dumps({"train_rows": {"a": {"b": list(range(2, 30, 3))}}}))
    opened = open_task(Task("a", Hub("team/a"), Classification("text")), mirror, cache=tmp_path)
    assert opened.family.labels == ("x", "y", "z")

    rows = [{"text": f"row {number}", "label": float(number)} for number in range(60)]
    alone = open_task(Task("b", Rows({"train": rows}), Regression("text")))
    held = {row["label"] for row in alone.split("validation").rows}
    without = alone.without("train", np.array([number for number in (0, 59) if number not in held], np.int64))
    for one in (alone, without):
        assert (one.family.low, one.family.high) == (0.0, 59.0)
        assert all(one.family.example(row) for row in one.split("validation").rows)


@settings(max_examples=40)
@given(data=st.data())
def test_the_account_of_any_table_is_that_of_an_independent_count(data, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("account")
    rows = data.draw(st.integers(30, 120))
    kinds = st.sampled_from(["good"] * 6 + ["ragged", "no text", "no label", "skip", "overlap"])
    drawn = data.draw(st.lists(kinds, min_size=rows, max_size=rows))
    lines = {"ragged": "ragged", "no text": ",yes", "no label": "the kuno,", "skip": "the kuno,?"}
    (folder / "mirror" / "a").mkdir(parents=True)
    text = [lines.get(kind, f"{row} kuno,{('no', 'yes')[row % 2]}") for row, kind in enumerate(drawn)]
    (folder / "mirror" / "a" / "train.csv").write_text("text,label\n" + "\n".join(text))
    overlaps = [row for row, kind in enumerate(drawn) if kind == "overlap"]
    (folder / "mirror" / "overlap.json").write_text(json.dumps({"train_rows": {"a": {"b": overlaps}}}))
    most = data.draw(st.none() | st.integers(10, 150))
    family = Classification("text", labels=("no", "yes"), skip=("?",))
    opened = open_task(Task("a", Hub("team/a"), family), folder / "mirror", most, bad_rows=1.0, cache=folder)
    leaks = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=5)), dtype=np.int64)
    opened = opened.without("train", leaks)
    tokenizer, scored = load_tokenizer(str(tiny_model), 32), data.draw(st.none() | st.integers(1, 6))
    outcomes = []
    for work in (
        lambda: (build_store(opened, "train", tokenizer, folder).account, "train"),
        lambda: (encode_split(opened, "validation", tokenizer, scored).account, "validation"),
    ):
        with suppress(InputError):  # no row left, or all of one label
            outcomes.append(work())
    for account, role in outcomes:
        counts = account.as_dict()
        assert counts.pop("rows") == sum(counts.values())
        held = max(1, round(0.05 * (rows - len(overlaps))))
        assert account.rows == (rows if role == "train" else held)
        assert counts.get("overlap", 0) == (len(overlaps) if role == "train" else 0)
        assert counts.get("held_out", 0) == (held if role == "train" else 0)
        if role == "train":
            beyond = max(0, rows - len(overlaps) - held - most) if most else 0
            assert counts.get("max_rows", 0) == beyond
        else:
            assert counts.get("evaluation_rows", 0) == (max(0, held - scored) if scored else 0)
        bad = {row for row, kind in enumerate(drawn) if kind in ("ragged", "no text", "no label")}
        assert {fault.row for fault in account.faults} <= bad
        if role == "train" and not most:
            split = opened.split("train")
            mine = {int(row) for row in split.kept}
            assert {fault.row for fault in account.faults} == bad & mine
            assert counts.get("skip", 0) == sum(drawn[row] == "skip" for row in mine)
            assert counts.get("stored", 0) == sum(drawn[row] == "good" for row in mine)


def test_an_account_that_does_not_add_up_is_an_error_of_ours():
    account = Account("a", "train", "a.csv", 10)
    account.add("stored", 9)
    with pytest.raises(RuntimeError, match=r"a, train: 10 rows, but accounted for are {'stored': 9}"):
        account.check()
    account.add("skip")
    account.check()
    account.add("unheard of", 0)
    with pytest.raises(RuntimeError, match="unheard of"):
        account.check()


def test_a_family_that_loses_a_row_is_noticed(tokenizer, cache, monkeypatch):
    rows = [{"text": f"the {word}", "label": at % 2} for at, word in enumerate(WORDS)]
    opened = open_task(Task("a", Rows({"train": rows, "validation": rows}), Classification("text")))
    encode = Classification.encode
    monkeypatch.setattr(Classification, "encode", lambda *given, **named: encode(*given, **named)[:-1])
    for work in (lambda: build_store(opened, "train", tokenizer), lambda: encode_split(opened, "validation", tokenizer)):
        with pytest.raises(RuntimeError, match=r"8 rows, but accounted for are {'stored': 7}"):
            work()


def test_an_adapter_that_stumbles_over_a_value_sets_its_row_aside(tokenizer, cache):
    rows = [{"text": "the", "options": ["kuno", "bano"], "label": "ab"[at % 2], "keys": ["a", "b"]} for at in range(9)]
    rows[4] = {**rows[4], "keys": None}
    opened = open_task(Task("a", Rows({"train": rows, "validation": rows}), Choice("text", "options", keys="keys")), bad_rows=1)

    class Stumbling(Choice):
        def example(self, row):
            if row["keys"] is None:
                raise TypeError("'NoneType' object is not iterable")
            return super().example(row)

    opened.__dict__["family"] = Stumbling("text", "options", keys="keys")
    store = build_store(opened, "train", tokenizer)
    assert [(fault.row, fault.reason) for fault in store.account.faults] == [
        (4, "the adapter of this choice task cannot read the row (TypeError: 'NoneType' object is not iterable)")
    ]


def test_a_fault_says_where_and_why():
    problem = FieldError("label", None, "a label")
    assert str(Fault("a.jsonl", 3, str(problem), 7)) == (
        "a.jsonl, row 3 (line 7): field 'label': None is not accepted; expected a label"
    )
    assert Fault("a.parquet", 3, "why").record() == {"place": "a.parquet", "row": 3, "reason": "why"}


# ---- folders that nobody finishes


def test_what_killed_builders_left_is_swept_and_what_is_being_built_is_not(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    host, day = socket.gethostname(), 24 * 3600
    left = {
        f"{PREFIX}{host}-{gone.stdout.strip()}-abc": True,  # its process is gone
        f"{PREFIX}{host}-{os.getpid()}-abc": False,
        f"{PREFIX}elsewhere-{gone.stdout.strip()}-abc": False,  # of another machine: nobody can know
        f"{PREFIX}elsewhere-1-old": True,  # but a day is too long
        f"{PREFIX}old-style": True,
        f"{PREFIX}oldstyle": False,
    }
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens.bin").write_bytes(b"x")
        if "old-style" in name or name.endswith("-old"):
            for path in (tmp_path / name / "tokens.bin", tmp_path / name):
                os.utime(path, (time.time() - 2 * day,) * 2)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, goes in left.items() if not goes}


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(IsADirectoryError), building(tmp_path / "a" / "b") as made:
        made.write_text("a folder is no file")
    assert list((tmp_path / "a").iterdir()) == []
    for content in ("first", "second"):  # the second is too late, and is dropped
        with building(tmp_path / "a" / "b") as made:
            (made / "manifest.json").write_text(content)
    assert (tmp_path / "a" / "b" / "manifest.json").read_text() == "first"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
