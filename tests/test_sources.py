"""Rows come out the same whatever holds them; what is held out, dropped or named is exactly what should be."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from prefinetune.catalog import catalog
from prefinetune.errors import InputError
from prefinetune.families import Choice, Classification, Span
from prefinetune.sources import Files, Hub, Rows
from prefinetune.splits import open_task
from prefinetune.task import Task


@pytest.fixture(autouse=True)
def own_cache(cache):
    """Tables of files go to a folder of each test's own."""


TABLE = [
    {"text": 'the kuno, "big"', "label": "NA"},
    {"text": "the bano\nof two lines", "label": "null"},
    {"text": "déjà vu", "label": "1"},
    {"text": "None", "label": "1.0"},
    {"text": "007", "label": "true"},
]  # fmt: skip


def csv_text(sep: str = ",") -> str:
    return pd.DataFrame(TABLE).to_csv(index=False, sep=sep)


def json_lines() -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TABLE)


WRITERS = {
    "a.csv": lambda path: path.write_text(csv_text()),
    "a.tsv": lambda path: path.write_text(csv_text("\t")),
    "bom.csv": lambda path: path.write_text(csv_text(), encoding="utf-8-sig"),
    "a.jsonl": lambda path: path.write_text(json_lines()),
    "a.ndjson": lambda path: path.write_text(json_lines()),
    "a.json": lambda path: path.write_text(json.dumps(TABLE)),
    "a.parquet": lambda path: pd.DataFrame(TABLE).to_parquet(path),
    "a.csv.zst": lambda path: path.write_bytes(pa.compress(csv_text().encode(), codec="zstd", asbytes=True)),
    "a.json.zst": lambda path: path.write_bytes(pa.compress(json.dumps(TABLE).encode(), codec="zstd", asbytes=True)),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(csv_text().encode())),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json_lines().encode())),
}


def write_arrow(path: Path) -> None:
    folder = path.parent / "saved"
    Dataset.from_list(TABLE).save_to_disk(folder)
    next(folder.glob("*.arrow")).rename(path)


@pytest.mark.parametrize("name", [*WRITERS, "a.arrow"])
def test_every_kind_of_file_gives_the_same_rows(name, tmp_path):
    WRITERS.get(name, write_arrow)(tmp_path / name)
    source = Files(str(tmp_path / name))
    assert source.splits() == ["train"]
    assert list(source.read("train").rows) == TABLE


def test_rows_in_memory_give_the_same_rows():
    for table in (TABLE, pd.DataFrame(TABLE), Dataset.from_list(TABLE), Dataset.from_list(TABLE).with_format("numpy")):
        assert list(Rows({"train": table}).read("train").rows) == TABLE


def test_labels_of_a_table_are_what_their_author_wrote(tmp_path):
    (tmp_path / "a.csv").write_text(csv_text())
    opened = open_task(Task("mine", Files({"train": str(tmp_path / "a.csv"), "validation": str(tmp_path / "a.csv")}),
                            Classification("text")))  # fmt: skip
    assert opened.family.labels == ("1", "1.0", "NA", "null", "true")


def test_a_text_longer_than_the_csv_modules_limit_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "word " * 40_000 + ",x\n")
    assert len(Files(str(tmp_path / "a.csv")).read("train").rows[0]["text"]) == 200_000


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    with pytest.raises(InputError, match=r"a\.csv: columns named twice: text"):
        Files(str(tmp_path / "a.csv")).read("train")


def test_a_folder_holds_split_files_and_shards(tmp_path):
    frame = pd.DataFrame(TABLE)
    frame[:2].to_parquet(tmp_path / "train-00000-of-00002.parquet")
    frame[2:].to_parquet(tmp_path / "train-00001-of-00002.parquet")
    (tmp_path / "dev.csv").write_text(csv_text())
    (tmp_path / "README.md").write_text("not data")
    source = Files(str(tmp_path))
    assert sorted(source.splits()) == ["train", "validation"]
    assert list(source.read("train").rows) == list(source.read("validation").rows) == TABLE
    assert source.place("train") == f"{tmp_path}/train*"


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("not data")
    with pytest.raises(InputError, match=r"no data in this folder; expected train, validation or test as \.csv"):
        Files(str(tmp_path)).splits()


def test_a_mapping_names_splits_and_a_task_maps_its_own(tmp_path):
    (tmp_path / "a.csv").write_text(csv_text())
    (tmp_path / "b.jsonl").write_text(json_lines())
    source = Files({"first": str(tmp_path / "a.csv"), "second": str(tmp_path / "b.jsonl")})
    opened = open_task(Task("mine", source, Classification("text"), splits={"train": "second", "test": "first"}))
    assert opened.roles == ["train", "validation", "test"]
    assert opened.split("train").place.endswith("b.jsonl")
    assert opened.split("test").place.endswith("a.csv")
    assert len(opened.split("test")) == 5
    assert len(opened.split("train")) + len(opened.split("validation")) == 5


def numbered(count: int) -> list[dict]:
    return [{"text": f"text {index}", "label": index % 2} for index in range(count)]


def test_held_out_rows_are_fixed_disjoint_and_a_twentieth():
    splits = []
    for _ in range(2):
        opened = open_task(Task("mine", Rows({"train": numbered(400)}), Classification("text")))
        train, validation = (opened.split(role) for role in ("train", "validation"))
        assert (len(train), len(validation)) == (380, 20)
        assert sorted([*train.rows["text"], *validation.rows["text"]]) == sorted(row["text"] for row in numbered(400))
        assert validation.rows["text"] == [f"text {validation.number(index)}" for index in range(20)]
        splits.append(list(validation.rows["text"]))
    assert splits[0] == splits[1]
    assert len(open_task(Task("mine", Rows({"train": numbered(30_000)}), Classification("text"))).split("validation")) == 1000


def test_a_sample_of_rows_is_fixed_and_leaves_validation_alone():
    task = Task("mine", Rows({"train": numbered(400)}), Classification("text"))
    whole, some = open_task(task), open_task(task, max_rows=100)
    assert some.split("validation").rows["text"] == whole.split("validation").rows["text"]
    assert len(some.split("train")) == 100
    assert set(some.split("train").rows["text"]) < set(whole.split("train").rows["text"])
    assert some.digest("train") != whole.digest("train")
    assert some.digest("train") == open_task(task, max_rows=100).digest("train")


@pytest.fixture
def mirror(tmp_path) -> Path:
    """A mirror with one set of 60 numbered rows, of which two files list some as overlaps; row 7 has no text."""
    folder = tmp_path / "mirror" / "team-set"
    folder.mkdir(parents=True)
    rows = numbered(60)
    rows[7]["text"] = ""
    pd.DataFrame(rows).to_parquet(folder / "train.parquet")
    pd.DataFrame(numbered(10)).to_parquet(folder / "validation.parquet")
    lists = {
        "overlap-a.json": {"team-set": {"x": [0, 3], "y": [3, 5]}},
        "overlap-b.json": {"team-set": {"z": [59]}, "other": {"x": [1]}},
    }
    for name, train_rows in lists.items():
        (folder.parent / name).write_text(json.dumps({"train_rows": train_rows}))
    return folder.parent


def test_rows_that_a_mirror_lists_as_overlaps_are_dropped(mirror):
    opened = open_task(Task("team/set", Hub("team/set"), Classification("text")), mirror)
    train = opened.split("train")
    numbers = [train.number(index) for index in range(len(train))]
    assert numbers == [row for row in range(60) if row not in (0, 3, 5, 59)]
    assert train.rows["text"][4:] == [f"text {row}" if row != 7 else "" for row in numbers[4:]]
    assert len(opened.split("validation")) == 10


def test_a_list_of_overlaps_that_is_written_later_counts_too(mirror):
    task = Task("team/set", Hub("team/set"), Classification("text", labels=("0", "1")))
    before = set(open_task(task, mirror).split("train").numbers.tolist())
    (mirror / "overlap-later.json").write_text(json.dumps({"train_rows": {"team-set": {"b": [10, 11]}}}))
    assert before - set(open_task(task, mirror).split("train").kept.tolist()) >= {10, 11}


def test_messages_name_the_row_of_the_file_after_rows_were_dropped(mirror, tmp_path, tiny_model):
    from prefinetune.store import build_store
    from prefinetune.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_model), 32)
    opened = open_task(Task("team/set", Hub("team/set"), Classification("text", labels=("0", "1"))), mirror)
    with pytest.raises(InputError, match=r"train\.parquet, row 7: field 'text'"):
        build_store(opened, "train", tokenizer, tmp_path)
    by_text = open_task(Task("team/set", Hub("team/set"), Classification("text", label="text")), mirror)
    assert len(by_text.family.labels) == 60 - 1, "the label that is none is passed over"
    with pytest.raises(InputError, match=r"train\.parquet, row 7: field 'text'"):
        build_store(by_text, "train", tokenizer, tmp_path)


def test_dropped_rows_of_a_real_mirror_are_those_that_its_files_list(shared_data):
    listed = {}
    for path in shared_data.glob("overlap*.json"):
        for slug, others in json.loads(path.read_text())["train_rows"].items():
            listed.setdefault(slug, set()).update(*others.values())
    checked = 0
    for task in catalog():
        if listed.get(task.slug) and (shared_data / task.slug).is_dir() and checked < 4:
            opened = open_task(task, shared_data)
            total = len(opened.source.read(opened.names["train"]).rows)
            held_out = 0 if "validation" in opened.names else len(opened.split("validation"))
            assert len(opened.split("train")) == total - len(listed[task.slug]) - held_out
            checked += 1
    if not checked:
        pytest.skip("the mirror lists no overlaps")


def test_dotted_paths_reach_into_nested_columns():
    rows = [
        {"a": {"text": f"t{index}", "tags": ["x", "y"]}, "o": [{"v": "p"}, {"v": f"q{index}"}], "label": index % 2}
        for index in range(4)
    ]
    task = Task("mine", Rows({"train": rows, "validation": rows}), Classification("a.text", pair="o.1.v", label="a.tags.0"))
    opened = open_task(Task("mine", task.source, Classification("a.text", pair="o.1.v", label="label")))
    examples = [opened.family.example(row) for _, chunk in opened.split("train").chunks(3) for row in chunk]
    assert [example.texts for example in examples] == [((f"t{index}", f"q{index}"),) for index in range(4)]
    assert [example.target for example in examples] == [0, 1, 0, 1]
    with pytest.raises(InputError, match="only the label 'x'"):
        _ = open_task(task).family


def test_functions_of_a_row_see_all_its_columns():
    rows = [{"a": f"t{index}", "b": f"u{index}", "label": index % 2} for index in range(4)]
    family = Classification(("a", lambda row: row["b"].upper()), label="label")
    opened = open_task(Task("mine", Rows({"train": rows, "validation": rows}), family))
    [(_, chunk)] = opened.split("train").chunks()
    assert opened.family.example(chunk[2]).texts == (("t2 U2", None),)


def test_columns_that_no_field_names_are_not_read():
    rows = [{"q": "a", "options": ["b", "c"], "label": 0, "essay": "long"}] * 4
    opened = open_task(Task("mine", Rows({"train": rows, "validation": rows}), Choice("q", "options")))
    assert opened.split("train").rows.column_names == ["q", "options", "label"]


def test_the_hubs_own_label_names_are_used():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": 0}], features=features)
    opened = open_task(Task("mine", Rows({"train": rows, "validation": rows}), Classification("text")))
    assert opened.family.labels == ("no", "yes")
    assert [opened.family.example(row).target for row in rows] == [1, 0]


def test_a_digest_follows_the_content_and_not_the_time(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nold,x\n")
    source = Files(str(path))
    before, time = source.read("train"), path.stat().st_mtime_ns
    assert before.rows[0]["text"] == "old"
    os.utime(path, (1, 1))
    assert source.read("train").digest == before.digest
    path.write_text("text,label\nnew,x\n")
    os.utime(path, ns=(time, time))  # of the same name, size and time as what was read before
    assert source.read("train").digest != before.digest
    assert source.read("train").rows[0]["text"] == "new"


def test_the_digest_of_rows_in_memory_follows_their_content():
    def digest(table: object) -> str:
        return Rows({"train": table}).read("train").digest

    changed = [dict(row) for row in TABLE]
    changed[3]["text"] = "Nine"
    assert digest(TABLE) == digest([dict(row) for row in TABLE]) != digest(changed)
    whole = Dataset.from_list(numbered(5000))
    assert digest(whole) == digest(whole.select(np.arange(5000))) != digest(whole.select(np.arange(4999)))


def test_numbers_survive_being_taken_twice():
    split = open_task(Task("mine", Rows({"train": numbered(50), "validation": numbered(9)}), Classification("text"))).split(
        "train"
    )
    twice = split.take(np.arange(10, 40)).take(np.array([0, 5, 29]))
    assert [twice.number(index) for index in range(3)] == [10, 15, 39]
    assert twice.rows["text"] == ["text 10", "text 15", "text 39"]
    assert [start for start, _ in split.chunks(20)] == [0, 20, 40]
    for part in (split, twice, split.take(np.arange(0, 50, 3))):  # whole, far between, and close together
        assert [row["text"] for _, rows in part.chunks(7) for row in rows] == part.rows["text"]


def test_all_bad_rows_of_a_split_may_stand_in_one_of_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("prefinetune.readers.collector.HOPELESS", 10)
    monkeypatch.setattr("prefinetune.readers.collector.CHUNK", 20)
    for shard in range(20):
        (tmp_path / f"train-{shard:02}.csv").write_text("text,label\n" + ("ragged row\n" if shard == 7 else "the kuno,x\n") * 100)
    (tmp_path / "validation.csv").write_text("text,label\nthe,x\n")
    for share in (0.05, 0.04):
        opened = open_task(Task("mine", Files(str(tmp_path)), Classification("text")), bad_rows=share)
        if share == 0.05:
            assert (len(opened.split("train")), len(opened.split("train").faults)) == (1900, 100)
        else:
            with pytest.raises(InputError, match=r"train-07\.csv, row 0 \(line 2\).*100 rows of 2,000"):
                opened.split("train")


def test_columns_are_those_of_any_row_and_a_row_of_another_type_is_at_fault():
    table = Rows({"train": [{"a": 1}, {"a": 2.5, "b": ["x"]}, {"a": "three"}, {"a": None, "b": [None]}, 5]}).read("train")
    assert list(table.rows) == [{"a": 1.0, "b": None}, {"a": 2.5, "b": ["x"]}, {"a": None, "b": [None]}]
    assert {row: fault.reason for row, fault in table.faults.items()} == {
        2: "field 'a': 'three' is not accepted; expected double, as in the rows before",
        4: "expected a dictionary with keys, not '5'",
    }
    frame = pd.DataFrame({"a": ["x", 1, None]})
    assert list(Rows({"train": frame}).read("train").faults) == [1]


def test_a_row_that_cannot_be_read_stays_in_its_role_when_it_is_put_right(tmp_path):
    lines = [f"text {row},{row % 2}\n" for row in range(200)]
    roles = {}
    for name, broken in (("whole", []), ("broken", [5, 77, 150])):
        path = tmp_path / f"{name}.csv"
        path.write_text("text,label\n" + "".join("ragged\n" if row in broken else line for row, line in enumerate(lines)))
        opened = open_task(Task("mine", Files(str(path)), Classification("text")), max_rows=100, bad_rows=0.1)
        roles[name] = [opened.split(role) for role in ("train", "validation")]
    for whole, some in zip(roles["whole"], roles["broken"], strict=True):
        assert whole.kept.tolist() == some.kept.tolist()
        assert set(whole.numbers) - set(some.numbers) == set(whole.kept) & {5, 77, 150} == {fault.row for fault in some.faults}
        assert some.rows["text"] == [f"text {number}" for number in some.numbers]
        assert [some.locate(index) for index in (0, 1)] == [(str(tmp_path / "broken.csv"), int(row)) for row in some.numbers[:2]]


def test_a_row_of_a_shard_is_named_by_its_own_file(tmp_path):
    for shard in range(3):
        rows = [{"text": f"{shard} {row}", "label": row % 2} for row in range(4)]
        lines = [json.dumps(row) for row in rows]
        if shard == 1:
            lines[2] = "{"
        (tmp_path / f"train-{shard}.jsonl").write_text("\n".join(lines))
    (tmp_path / "validation.jsonl").write_text('{"text": "a", "label": 0}\n')
    split = open_task(Task("mine", Files(str(tmp_path)), Classification("text")), bad_rows=0.1).split("train")
    assert [split.number(index) for index in range(len(split))] == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert split.locate(6) == (str(tmp_path / "train-1.jsonl"), 3)
    assert split.rows["text"][6] == "1 3"
    [fault] = split.faults
    assert (fault.place, fault.row, fault.line) == (str(tmp_path / "train-1.jsonl"), 2, 3)


def test_a_hub_name_prefers_the_mirror(mirror):
    assert Hub("team/set").at("team-set", mirror) == Files(str(mirror / "team-set"))
    assert Hub("team/set").at("team-other", mirror) == Hub("team/set")
    with pytest.raises(InputError, match="no folder 'team-none'"):
        Hub(None).at("team-none", mirror)
    with pytest.raises(InputError, match="--data-root"):
        Hub(None).at("team-none", None)


def test_span_columns_of_a_table_are_flat(tmp_path):
    (tmp_path / "a.csv").write_text("q,c,a,s\nwho ?,the kuno,kuno,4\nwho ?,the bano,,\n")
    family = Span("q", "c", answer="a", answer_start="s")
    opened = open_task(Task("mine", Files({"train": str(tmp_path / "a.csv"), "validation": str(tmp_path / "a.csv")}), family))
    [(_, rows)] = opened.split("train").chunks()
    assert [opened.family.example(row).target for row in rows] == [(4, 8), None]
