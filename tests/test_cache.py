"""What the cache holds, and that only what nobody uses leaves it."""

import json
import os
import time
from pathlib import Path

import pytest

from prefinetune import native
from prefinetune.cache import DAY, KINDS, claimed, entries, remove_unused
from prefinetune.cli.cache import parse_age
from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.families import Classification
from prefinetune.leaks import known_leaks
from prefinetune.sources import Files
from prefinetune.splits import open_task
from prefinetune.store import build_store
from prefinetune.task import Task
from prefinetune.tokenizer import load_tokenizer


@pytest.fixture
def prepare(tmp_path, tiny_model, cache):
    """Prepares a table of rows of its own by name; gives its tokens."""
    tokenizer = load_tokenizer(str(tiny_model), 24)

    def prepare(name: str) -> list[list[int]]:
        data = tmp_path / f"{name}.csv"
        if not data.exists():
            data.write_text("text,label\n" + "".join(f"{name} {row},{'ab'[row % 2]}\n" for row in range(40)))
        task = open_task(Task(name, Files({"train": str(data)}), Classification("text", label="label")), cache=cache)
        known_leaks([task], [], cache, Display(quiet=True))
        store = build_store(task, "train", tokenizer, cache)
        return [store[at].sequences[0].tolist() for at in range(len(store))]

    return prepare


def age(cache: Path, days: float) -> None:
    """As if all of it had last been opened so many days ago."""
    for path in [cache, *cache.rglob("*")]:
        os.utime(path, (time.time() - days * DAY,) * 2)


def names(found) -> set[tuple[str, str]]:
    return {(one.kind, one.path.name) for one in found}


def test_what_no_run_opened_goes_what_one_opened_stays_and_what_went_is_made_anew(prepare, cache):
    first = prepare("left")
    left = names(entries())
    kept = prepare("kept")
    age(cache, 31)
    assert prepare("kept") == kept
    removed = remove_unused(cache, 30 * DAY)
    assert names(removed) == left
    assert {kind for kind, _ in left} == {"tables", "stores", "leaks"}
    assert not names(entries()) & left
    assert {kind for kind, _ in names(entries())} == {"tables", "stores", "leaks"}
    assert prepare("left") == first
    assert names(entries()) >= left


def test_what_is_being_built_stays(prepare, cache):
    prepare("mine")
    age(cache, 31)
    one = next(one for one in entries() if one.kind == "stores")
    with claimed(one.path, cache):
        assert one.path not in {gone.path for gone in remove_unused(cache, 30 * DAY)}
    assert [gone.path for gone in remove_unused(cache, 30 * DAY)] == [one.path]


def test_what_is_not_ours_stays(prepare, cache):
    """Whoever names another folder as the cache loses nothing."""
    prepare("mine")
    own = [cache / "tables" / "budget.csv", cache / "stores" / "shop" / "manifest.json", cache / "leaks" / "kitchen.json"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    age(cache, 31)
    assert len(remove_unused(cache, 30 * DAY)) == 3
    assert all(path.read_text() == "mine" for path in own)
    assert entries() == []


def test_a_store_of_shards_is_one_entry_used_when_one_of_them_is(prepare, cache, monkeypatch):
    monkeypatch.setattr("prefinetune.store.SHARD", 15)
    tokens = prepare("mine")
    (store,) = (one for one in entries() if one.kind == "stores")
    assert len([path for path in store.path.iterdir() if path.is_dir()]) > 1
    age(cache, 31)
    assert prepare("mine") == tokens
    assert remove_unused(cache, 30 * DAY) == []
    age(cache, 31)
    assert store.path in {one.path for one in remove_unused(cache, 30 * DAY)}
    assert not store.path.exists()


def test_sizes_are_those_of_the_files(prepare, cache):
    prepare("mine")
    sizes = sum(path.stat().st_size for kind in KINDS for path in (cache / kind).rglob("*") if path.is_file())
    assert sum(one.bytes for one in entries()) == sizes > 0


def test_an_opened_library_of_kernels_is_in_use(cache):
    try:
        native.built()
    except OSError as error:
        pytest.skip(f"no compiler: {error}")
    age(cache, 31)
    native.built()
    assert remove_unused(cache, 30 * DAY) == []
    assert names(entries()) == {("native", native.recipe()[1].name)}


def test_the_command_says_what_is_there_and_what_it_removed(prepare, cache, command):
    assert command("cache")[0] == 0  # where there is none yet
    prepare("mine")
    code, text, _ = command("cache", "--cache", cache)
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == ["kind", *KINDS, f"{cache}:"]
    age(cache, 2)
    code, out, _ = command("cache", "--cache", cache, "--remove-unused", "36h", "--json")
    told = json.loads(out)
    assert (code, told["removed"]["entries"]) == (0, 3)
    assert all(kind == {"entries": 0, "bytes": 0} for kind in told["kinds"].values())


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1w", "all"])
def test_an_age_without_a_unit_is_no_age(text, command):
    with pytest.raises(InputError, match="expected days"):
        parse_age(text)
    code, _, said = command("cache", f"--remove-unused={text}")
    assert code == 2
    assert "30d" in said
