"""A mirror holds exactly the rows of its source, whole sets only, and goes on where it was stopped."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from prefinetune.errors import InputError, Unavailable
from prefinetune.families import Classification, Tagging
from prefinetune.mirror import mirror, read_manifest, save, verify_mirror
from prefinetune.readers import make_table
from prefinetune.sources import Files, Hub, Rows
from prefinetune.splits import open_task
from prefinetune.task import Task

SPLITS = ("train", "validation_matched", "test", "extra")


def rows(name: str, split: str, count: int = 40) -> Dataset:
    features = Features({
        "text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "idx": Value("int32"),
        "words": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-X"])), "more": {"of": List(Value("float64"))},
    })  # fmt: skip
    return Dataset.from_list(
        [
            {"text": f"{name} {split} {i} é\u2028🙂", "label": i % 2, "idx": i, "words": ["a", str(i)], "tags": [0, i % 2],
             "more": {"of": [i / 3, None]}}
            for i in range(count)
        ],
        features=features,
    )  # fmt: skip


class FakeHub:
    """What `Hub` asks, answered from memory; counts what was read."""

    def __init__(self) -> None:
        self.commit: dict[str, str | None] = {}
        self.gone: dict[str, bool] = {}  # set -> whether the whole hub is out of reach
        self.reads: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.before_read = lambda name, split: None

    def splits(self, hub: Hub) -> list[str]:
        self.asked.append(str(hub.id))
        if hub.id in self.gone:
            raise Unavailable(f"{hub.id} could not be read", unreachable=self.gone[hub.id])
        return list(SPLITS)

    def read(self, hub: Hub, split: str, *_) -> object:
        self.before_read(hub.id, split)
        self.reads.append((str(hub.id), split))
        return make_table(rows(str(hub.id), split), [], "hub")


@pytest.fixture
def hub(monkeypatch, cache) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(Hub, "splits", lambda self: fake.splits(self))
    monkeypatch.setattr(Hub, "read", lambda self, *arguments: fake.read(self, *arguments))

    class Api:
        def dataset_info(self, name, revision=None):
            if name not in fake.commit:
                raise ConnectionError("no network")
            return type("Info", (), {"sha": fake.commit[name]})()

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return fake


def task(name: str, **more) -> Task:
    splits = {"validation": "validation_matched", "test": None}
    source = Hub(f"team/{name.replace('/', '.')}", "plain")
    return Task(name, source, Classification("text"), splits, license="MIT", cite="We 2026", **more)


def outcomes(found) -> dict[str, str]:
    return {one.task: one.status for one in found}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_rows_labels_and_types_are_those_of_the_hub(hub, tmp_path):
    tagging = Task("tags", Hub("team/tags"), Tagging("words", "tags"), {"validation": "validation_matched"})
    mirror([task("a/b"), tagging], tmp_path / "m")
    for one, roles in ((task("a/b"), ["train", "validation"]), (tagging, ["train", "validation", "test"])):
        there, here = open_task(one), open_task(one, tmp_path / "m")
        assert here.roles == there.roles == roles
        assert here.family == there.family
        assert here.family.labels is not None
        for role in roles:
            assert list(here.split(role).rows) == list(there.split(role).rows)
            whole = here.source.read(role).rows
            assert list(whole) == list(rows(str(one.source.id), there.names[role]))
            assert whole.features == rows("x", "x", 1).features
    assert sorted(path.name for path in (tmp_path / "m" / "a-b").iterdir()) == ["train.parquet", "validation.parquet"]
    assert ("team/a/b", "test") not in hub.reads  # its answers are kept back
    assert not [name for name in files(tmp_path / "m") if name.startswith(".")]


def test_the_manifest_says_what_each_set_is_and_where_it_came_from(hub, tmp_path):
    hub.commit["team/a.b"] = "abc123"
    found = mirror([task("a/b")], tmp_path)
    assert [one.as_dict() for one in found] == [
        {"task": "a/b", "slug": "a-b", "status": "done", "reason": "", "rows": {"train": 40, "validation": 40}}
    ]
    (line,) = (tmp_path / "manifest.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert read_manifest(tmp_path) == {"a-b": entry}
    expected = {
        "slug": "a-b", "task": "a/b", "hub_id": "team/a.b", "hub_config": "plain", "revision": None, "commit": "abc123",
        "license": "MIT", "cite": "We 2026", "rows": {"train": 40, "validation": 40}, "from_mirror": False,
    }  # fmt: skip
    assert {key: entry[key] for key in expected} == expected
    assert list(entry["columns"]) == ["text", "label", "idx", "words", "tags", "more"]
    import hashlib

    for role in ("train", "validation"):
        data = (tmp_path / "a-b" / f"{role}.parquet").read_bytes()
        assert entry["files"][role] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_one_set_that_cannot_be_had_does_not_stop_the_others(hub, tmp_path):
    hub.gone["team/gone"] = False

    def fail(name, split):
        if name == "team/odd" and split == "validation_matched":
            raise OSError("disk trouble")

    hub.before_read = fail
    unknown = Task("mirror/only", Hub(None), Classification("text"))
    own = Task("own", Files("own.csv"), Classification("text"))
    held = Task("held", Rows({"train": [{"text": "a"}]}), Classification("text"))
    wrong = Task("wrong", Hub("team/wrong"), Classification("text"), {"validation": "dev"})
    said: list[str] = []
    found = mirror([task("gone"), unknown, own, held, task("odd"), wrong, task("good")], tmp_path, said.append)
    assert outcomes(found) == {
        "gone": "failed", "mirror/only": "skipped", "own": "skipped", "held": "skipped", "odd": "failed", "wrong": "failed",
        "good": "done",
    }  # fmt: skip
    reasons = {one.task: one.reason for one in found}
    assert "could not be read" in reasons["gone"]
    assert "no copy of this set on the hub is known" in reasons["mirror/only"]
    assert reasons["own"] == reasons["held"] == "its rows are not on the hub"
    assert reasons["odd"] == "disk trouble"
    assert "no split 'dev'" in reasons["wrong"]
    assert said[:2] == [f"gone: failed ({reasons['gone']})", f"mirror/only: skipped ({reasons['mirror/only']})"]
    assert said[-3:] == ["good: reading train", "good: reading validation", "good: done"]
    assert set(read_manifest(tmp_path)) == {"good"}
    assert not (tmp_path / "odd").exists()


def test_a_hub_that_is_out_of_reach_is_not_asked_for_every_set(hub, tmp_path):
    names = [f"s{i}" for i in range(8)]
    mirror([task("s5")], tmp_path)
    hub.asked.clear()
    hub.gone = {f"team/{name}": True for name in names}
    found = mirror([task(name) for name in names], tmp_path)
    assert outcomes(found) == {name: "skipped" if name == "s5" else "failed" for name in names}
    assert hub.asked == ["team/s0", "team/s1", "team/s2"]
    assert "not tried" in found[-1].reason


def test_a_hub_that_answers_now_and_then_is_asked_for_every_set(hub, tmp_path):
    names = [f"s{i}" for i in range(8)]
    hub.gone = {f"team/s{i}": True for i in (0, 1, 3, 4)}
    found = mirror([task(name) for name in names], tmp_path)
    assert [one.status for one in found] == ["failed", "failed", "done", "failed", "failed", "done", "done", "done"]


def test_sets_of_another_mirror_are_taken_while_the_hub_is_out_of_reach(hub, tmp_path):
    mirror([task("a"), task("b")], tmp_path / "one")
    hub.gone, hub.asked = {f"team/s{i}": True for i in range(5)}, []
    gone = [task(f"s{i}") for i in range(5)]
    found = mirror([gone[0], task("a"), *gone[1:], task("b")], tmp_path / "two", data_root=tmp_path / "one")
    assert [one.status for one in found] == ["failed", "done", *["failed"] * 4, "done"]
    assert hub.asked == ["team/s0", "team/s1", "team/s2"]


def test_what_is_there_is_not_fetched_again(hub, tmp_path):
    tasks = [task("a"), task("b")]
    mirror(tasks, tmp_path)
    before, hub.reads = files(tmp_path), []
    hub.gone = {"team/a": True, "team/b": True}  # and the hub is not even asked
    found = mirror(tasks, tmp_path)
    assert outcomes(found) == {"a": "skipped", "b": "skipped"}
    assert {one.reason for one in found} == {"is there"}
    assert hub.reads == []
    assert files(tmp_path) == before


@pytest.mark.parametrize("moment", ["second split", "write", "manifest", "folder"])
def test_a_mirror_that_is_killed_goes_on_and_never_shows_half_a_set(moment, hub, tmp_path, monkeypatch):
    """In a process that dies at once, as by kill -9, at one of four moments."""
    tasks = [task("a"), task("b")]
    mirror(tasks, tmp_path / "whole")

    def die(*_, **__):
        os._exit(9)

    def work() -> None:
        if moment == "second split":
            hub.before_read = lambda name, split: die() if (name, split) == ("team/b", "validation_matched") else None
        elif moment == "write":
            real = Dataset.to_parquet
            Dataset.to_parquet = lambda self, file, **k: (  # type: ignore[method-assign]
                (file.write(b"PAR1 half"), file.flush(), die()) if len(hub.reads) == before + 4 else real(self, file, **k)
            )
        elif moment == "manifest":  # known, and not yet in its place
            real_rename = Path.rename
            Path.rename = lambda self, to: die() if "mirroring" in self.name and ".b." in self.name else real_rename(self, to)
        else:  # in its place, and not yet tidied up
            real_unlink = Path.unlink
            Path.unlink = lambda self, *a, **k: die() if self.parent.name == "b" else real_unlink(self, *a, **k)
        mirror(tasks, tmp_path / "m")

    before = len(hub.reads)
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == 9
    there = {path.name for path in (tmp_path / "m").iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert there == ({"a", "b"} if moment == "folder" else {"a"})
    hub.reads = []
    found = mirror(tasks, tmp_path / "m")
    again = {"second split": ["validation_matched"], "write": ["validation_matched"], "manifest": [], "folder": []}[moment]
    assert hub.reads == [("team/b", split) for split in again]
    assert outcomes(found) == {"a": "skipped", "b": "skipped" if moment == "folder" else "done"}
    assert verify_mirror(tmp_path / "m") == []
    for name in "ab":
        for role in ("train", "validation"):
            both = [Files(str(tmp_path / folder / name)).read(role).rows for folder in ("whole", "m")]
            assert list(both[0]) == list(both[1])
    hidden = [name for name in files(tmp_path / "m") if name.startswith(".")]
    assert hidden == []


def test_damage_is_found_and_only_the_damaged_split_is_fetched_again(hub, tmp_path):
    tasks = [task("a"), task("b")]
    mirror(tasks, tmp_path)
    assert verify_mirror(tmp_path) == []
    before, hub.reads = files(tmp_path), []
    path = tmp_path / "a" / "validation.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (tmp_path / "b" / "train.parquet").unlink()
    with (tmp_path / "b" / "validation.parquet").open("ab") as file:
        file.write(b"x")
    assert [(str(found.path.relative_to(tmp_path)), found.reason.split()[0]) for found in verify_mirror(tmp_path)] == [
        ("a/validation.parquet", "is"), ("b/train.parquet", "is"), ("b/validation.parquet", "has")]  # fmt: skip
    assert outcomes(mirror(tasks, tmp_path)) == {"a": "done", "b": "done"}
    assert hub.reads == [("team/a", "validation_matched"), ("team/b", "train"), ("team/b", "validation_matched")]
    assert verify_mirror(tmp_path) == []
    assert {name: data for name, data in files(tmp_path).items() if name != "manifest.jsonl"} == {
        name: data for name, data in before.items() if name != "manifest.jsonl"
    }


def test_splits_of_different_commits_never_stand_beside_each_other(hub, tmp_path):
    hub.commit["team/a"] = "first"
    mirror([task("a")], tmp_path)
    (tmp_path / "a" / "train.parquet").unlink()
    hub.commit["team/a"], hub.reads = "second", []
    mirror([task("a")], tmp_path)
    assert hub.reads == [("team/a", "train"), ("team/a", "validation_matched")]
    assert read_manifest(tmp_path)["a"]["commit"] == "second"


def test_a_set_that_changes_while_it_is_read_fails(hub, tmp_path):
    hub.commit["team/a"] = "first"

    def change(name, split):
        hub.commit[name] = split

    hub.before_read = change
    (found,) = mirror([task("a")], tmp_path)
    assert found.status == "failed"
    assert "changed on the hub while it was read" in found.reason
    assert not (tmp_path / "a").exists()


def test_another_revision_replaces_a_set_when_it_is_whole(hub, tmp_path):
    mirror([task("a")], tmp_path)
    pinned = Task("a", Hub("team/a", "plain", "v2"), Classification("text"), {"validation": "validation_matched"})
    (found,) = mirror([pinned], tmp_path)
    assert (found.status, set(found.rows or {})) == ("done", {"train", "validation", "test"})
    assert read_manifest(tmp_path)["a"]["revision"] == "v2"
    assert sorted(files(tmp_path)) == ["a/test.parquet", "a/train.parquet", "a/validation.parquet", "manifest.jsonl"]


def test_nothing_of_somebody_elses_is_overwritten(hub, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.parquet").write_text("years of work")
    found = mirror([task("a"), task("x/y"), task("x-y")], tmp_path)
    assert outcomes(found) == {"a": "failed", "x/y": "done", "x-y": "failed"}
    assert "does not know it" in found[0].reason
    assert "is the folder of 'x/y'" in found[2].reason
    assert (tmp_path / "a" / "train.parquet").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        mirror([task("a")], tmp_path / "file")


def test_a_mirror_is_made_of_another_one_with_its_commits_and_overlap_lists(hub, tmp_path):
    hub.commit["team/a"] = "abc"
    mirror([task("a"), task("b")], tmp_path / "one")
    (tmp_path / "one" / "overlap-x.json").write_text('{"train_rows": {"a": {"b": [0, 3]}}}')
    hub.reads = []
    unknown = Task("b", Hub(None), Classification("text"))
    found = mirror([task("a"), unknown], tmp_path / "two", data_root=tmp_path / "one")
    assert outcomes(found) == {"a": "done", "b": "done"}
    assert hub.reads == []
    entry = read_manifest(tmp_path / "two")["a"]
    assert (entry["commit"], entry["from_mirror"], entry["rows"]) == ("abc", True, {"train": 40, "validation": 40})
    first, second = (open_task(task("a"), tmp_path / name) for name in ("one", "two"))
    assert list(first.split("train").rows) == list(second.split("train").rows)
    assert len(second.split("train")) == 38


def test_a_folder_that_is_no_mirror_is_not_verified(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"slug": "a", "rows": {"train": 3}}\n')
    with pytest.raises(InputError, match=r"no manifest\.jsonl of a mirror"):
        verify_mirror(tmp_path)


def long_rows(count: int) -> Iterator[dict]:
    return ({"text": "x" * 100_000, "n": index} for index in range(count))


def test_memory_does_not_grow_with_the_rows_of_a_split(tmp_path):
    """Peak memory of Arrow while a split is written, for two sizes of it."""
    import pyarrow as pa

    peaks = []
    for count in (200, 2000):
        source = Dataset.from_generator(long_rows, gen_kwargs={"count": count}, cache_dir=str(tmp_path))
        pool = pa.proxy_memory_pool(pa.system_memory_pool())
        old = pa.default_memory_pool()
        pa.set_memory_pool(pool)
        try:
            save(source, tmp_path / f"{count}.parquet")
        finally:
            pa.set_memory_pool(old)
        peaks.append(pool.max_memory())
    assert peaks[1] < 2 * peaks[0] + 50_000_000
    assert peaks[1] < 2000 * 100_000
