"""Stores in shards: the same as in one, built by many processes together; nothing is lost when one is killed or a disk is full,
and no bit that flipped is believed."""

import multiprocessing
import os
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import microworld
from prefinetune import cache as cache_module
from prefinetune import shard, splits, store
from prefinetune.cache import claimed
from prefinetune.errors import InputError
from prefinetune.families import Choice, Classification, Denoising, Generation, Span
from prefinetune.mixture import permute
from prefinetune.readers import cached
from prefinetune.shard import CHECKED, Damaged, Shard
from prefinetune.sources import Files, Rows
from prefinetune.splits import open_task
from prefinetune.store import build_store, build_stores, encode_split
from prefinetune.task import Task
from prefinetune.tokenizer import Decoder, Tokenizer, load_tokenizer

ROWS, SHARD = 230, 40
SHARDS = 6  # of so many rows


def made_rows(count: int = ROWS, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.choice(STEMS) for _ in range(rng.randint(2, 40))]
        first = rng.randrange(len(words))
        start = len(" ".join(words[:first])) + (first > 0)
        rows.append({
            "text": " ".join(words), "label": rng.choice("ab"), "question": " ".join(words[:3]),
            "answers": {"text": [words[first]], "answer_start": [start]}, "options": [" ".join(words[:2]), words[-1]], "right": 0,
        })  # fmt: skip
        rows[-1]["right"] = rng.randrange(2)
    return rows


STEMS = [stem + "o" for stem in microworld.STEMS[:40]]
LABELLED = Classification("text", labels=("a", "b"))


def opened(rows, family=LABELLED, **other):
    return open_task(Task("mine", Rows({"train": rows, "validation": rows}), family), **other)


@pytest.fixture
def tokenizer(tiny_model) -> Tokenizer:
    return load_tokenizer(str(tiny_model), 24)


@pytest.fixture
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(store, "SHARD", SHARD)
    monkeypatch.setattr(store, "CHUNK", 15)  # does not divide SHARD


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder, without those that only tell when they were checked."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CHECKED
    }


def plain(one) -> tuple:
    sequences, offsets = ([part.tolist() for part in parts or []] for parts in (one.sequences, one.offsets))
    output = None if one.output is None else one.output.tolist()
    return sequences, one.first, one.target.tolist(), one.source, one.reference, offsets, output


def flip(path: Path, at: int = 40) -> None:
    """One bit, in place."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 64]))


# ---- shards


@pytest.mark.parametrize("scored", [False, True], ids=["train", "scored"])
@pytest.mark.parametrize(
    "family",
    [
        LABELLED,
        Span("question", "text"),
        Choice("text", "options", label="right"),
        Denoising("text"),
        Generation("text", "question"),
    ],
    ids=lambda family: family.kind,
)
def test_many_shards_hold_what_one_holds(family, scored, tiny_model, tmp_path, monkeypatch):
    decoder = Decoder(12, 64, start=0, writes_sentinels=False) if family.kind == "generation" else None
    tokenizer = Tokenizer(load_tokenizer(str(tiny_model), 24).tokenizer, 24, decoder=decoder)
    rows = made_rows()
    rows[77]["text"] = rows[190]["text"] = " "

    def built(cache: Path) -> store.Store:
        one = opened(rows, family, bad_rows=0.02, cache=cache)
        return encode_split(one, "train", tokenizer).store if scored else build_store(one, "train", tokenizer, cache)

    monkeypatch.setattr(store, "CHUNK", 20)
    whole = built(tmp_path / "one")
    monkeypatch.setattr(store, "SHARD", SHARD)
    for _ in ("built", "opened again"):
        parts = built(tmp_path / "many")
        assert (len(whole.shards), len(parts.shards)) == (1, SHARDS)
        assert [plain(parts[at]) for at in range(len(parts))] == [plain(whole[at]) for at in range(len(whole))]
        for name in ("rows", "all_targets", "lengths"):
            one, other = (getattr(each, name) for each in (whole, parts))
            one, other = (one, other) if name == "rows" else (one(), other())
            assert len(one) == len(other)
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        some = np.random.default_rng(0).permutation(len(parts))[: len(parts) // 2]
        assert parts.token_counts(some).tolist() == [whole[at].tokens for at in some.tolist()]
        assert {**parts.manifest, "digest": None} == {**whole.manifest, "digest": None}
        assert parts.account == whole.account
        assert [fault.row for fault in parts.account.faults] == [77, 190]
        with pytest.raises(IndexError):
            parts[len(parts)]


def test_a_split_of_one_shard_has_no_folders_in_its_folder(tokenizer, tmp_path, monkeypatch):
    for size, folders in ((ROWS, 0), (ROWS - 1, 2)):
        monkeypatch.setattr(store, "SHARD", size)
        found = build_store(opened(made_rows()), "train", tokenizer, tmp_path)
        assert sum(path.is_dir() for path in found.folder.iterdir()) == folders
        assert [len(one) for one in found.shards] == ([ROWS] if not folders else [ROWS - 1, 1])


@pytest.mark.usefixtures("small_shards")
def test_a_shard_without_examples_is_one(tokenizer, tmp_path):
    rows = [{**row, "label": None if 40 <= at < 80 else row["label"]} for at, row in enumerate(made_rows())]
    family = Classification("text", labels=("a", "b"), skip=(None,))
    for _ in ("built", "opened again"):
        found = build_store(opened(rows, family), "train", tokenizer, tmp_path)
        assert [len(one) for one in found.shards] == [40, 0, 40, 40, 40, 30]
        assert found.rows.tolist() == [at for at in range(ROWS) if not 40 <= at < 80]
        assert [found[at].source for at in range(len(found))] == found.rows.tolist()


@pytest.mark.usefixtures("small_shards")
def test_one_label_in_a_shard_is_no_error_and_one_in_all_is(tokenizer, tmp_path):
    rows = [{**row, "label": "ab"[at >= 200]} for at, row in enumerate(made_rows())]
    assert len(build_store(opened(rows), "train", tokenizer, tmp_path)) == ROWS
    with pytest.raises(InputError, match="every row has the same 'label'"):
        build_store(opened([{**row, "label": "a"} for row in rows]), "train", tokenizer, tmp_path)


@pytest.mark.usefixtures("small_shards")
def test_bad_rows_are_counted_over_shards_and_what_was_built_stays(tokenizer, tmp_path, monkeypatch):
    rows = made_rows()
    for at in (5, 50, 51, 100):  # 4 of 230 are too many when the fourth is seen, in the third shard
        rows[at]["text"] = " "
    for _ in ("nothing is there", "two shards are"):
        with pytest.raises(InputError, match=r"row 5: .*row 50: .*row 51: .*and 1 more. 4 rows of 230 .*=0.0165 allows"):
            build_store(opened(rows, bad_rows=0.0165), "train", tokenizer, tmp_path)
        [folder] = (tmp_path / "stores").iterdir()
        assert sorted(path.name for path in folder.iterdir()) == ["00000-of-00006", "00001-of-00006"]
    before, seen = content(folder), []
    example = Classification.example
    monkeypatch.setattr(Classification, "example", lambda self, row: seen.append(row) or example(self, row))
    found = build_store(opened(rows, bad_rows=0.02), "train", tokenizer, tmp_path)
    assert len(seen) == ROWS - 2 * SHARD
    assert [fault.row for fault in found.account.faults] == [5, 50, 51, 100]
    assert before.items() <= content(folder).items()
    with pytest.raises(InputError, match="4 rows of 230"):  # all is there, and it is not good enough
        build_store(opened(rows, bad_rows=0.0165), "train", tokenizer, tmp_path)


def test_a_process_maps_any_number_of_shards_without_a_file_held_open(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD", 5)
    before = len(os.listdir("/proc/self/fd"))
    found = build_store(opened(made_rows()), "train", tokenizer, tmp_path)
    assert len(found.shards) == 46
    assert len(os.listdir("/proc/self/fd")) < before + 10


def test_a_sample_drawn_in_parts_is_the_sample_drawn_at_once(monkeypatch):
    whole = opened(made_rows()).split("train")
    for most in (1, 7, 50, ROWS, 1000):
        expected = sorted(permute(np.arange(min(most, ROWS)), ROWS, 1).tolist())
        for at_once in (7, 1 << 16):
            monkeypatch.setattr(splits, "AT_ONCE", at_once)
            assert whole.sample(most, 1).tolist() == expected


# ---- damage


HARM = {"flipped": flip, "cut": lambda path: os.truncate(path, path.stat().st_size - 8), "gone": Path.unlink}


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize(
    "name", ["tokens.bin", "targets.bin", "example_ends.bin", "checksums.bin", "manifest.json", "quarantine.jsonl"]
)
def test_a_damaged_shard_is_built_again_alone(name, harm, tokenizer, tmp_path):
    rows = made_rows()
    rows[99]["text"] = " "
    one = opened(rows, bad_rows=0.01)
    folder = build_store(one, "train", tokenizer, tmp_path).folder
    before, times = content(folder), {path: path.stat().st_mtime_ns for path in folder.rglob("*.bin")}
    HARM[harm](folder / "00002-of-00006" / name)
    with pytest.warns(UserWarning, match=rf"00002-of-00006 is damaged: .*{name}.*; it is built again|is damaged: .*built again"):
        again = build_store(one, "train", tokenizer, tmp_path)
    assert content(folder) == before
    assert {path.parent.name for path in times if path.stat().st_mtime_ns != times[path]} == {"00002-of-00006"}
    assert len(again) == ROWS - 1


def flip_unseen(path: Path, at: int = 40) -> None:
    """As a disk does it: no time of a file tells."""
    flip(path, at)
    later = time.time_ns() + 10**9
    os.utime(path.parent / CHECKED, ns=(later, later))


ARRAYS = [
    "tokens", "first", "sequence_ends", "example_ends", "rows", "targets", "target_ends", "checksums", "offsets", "references",
    "reference_ends", "outputs", "output_ends",
]  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_no_example_is_used_that_is_not_what_was_written(name, tiny_model, tmp_path):
    """Whatever array it is in that a bit flipped, and at any place of it."""
    decodes = name.startswith("output")
    decoder = Decoder(12, 64, start=0, writes_sentinels=False) if decodes else None
    tokenizer = Tokenizer(load_tokenizer(str(tiny_model), 24).tokenizer, 24, decoder=decoder)
    one = opened(made_rows(60), Generation("text", "question") if decodes else Span("question", "text"), cache=tmp_path)
    found = build_store(one, "train", tokenizer, tmp_path, for_training=decodes)
    expected, path = [plain(found[at]) for at in range(60)], found.folder / f"{name}.bin"
    rng = random.Random(0)
    for _ in range(12):
        at = rng.randrange(path.stat().st_size)
        flip_unseen(path, at)
        harmed, caught = Shard(found.folder), []  # nothing is noticed yet
        for index in range(60):
            try:
                assert plain(harmed[index]) == expected[index]
            except Damaged as problem:
                caught.append((index, str(problem)))
        assert caught
        assert all(told.startswith(f"{found.folder}: example {index} is not what was written") for index, told in caught)
        assert not (found.folder / CHECKED).exists(), "the next start compares whole files"
        with pytest.raises(Damaged, match=f"{name}.bin does not match its checksum"):
            Shard(found.folder)
        flip(path, at)  # back again
        assert len(Shard(found.folder)) == 60


def test_a_run_that_met_a_damaged_example_goes_on_after_another_start(tokenizer, tmp_path):
    one = opened(made_rows())
    found = build_store(one, "train", tokenizer, tmp_path)
    expected = [plain(found[at]) for at in range(ROWS)]
    flip_unseen(found.folder / "tokens.bin", found.shards[0].tokens.nbytes // 2)
    found = build_store(one, "train", tokenizer, tmp_path)
    with pytest.raises(InputError, match="Start again: this part of the data is then built again"):
        [found[at] for at in range(ROWS)]
    with pytest.warns(UserWarning, match="tokens.bin does not match its checksum; it is built again"):
        found = build_store(one, "train", tokenizer, tmp_path)
    assert [plain(found[at]) for at in range(ROWS)] == expected


def test_whole_files_are_compared_once_and_again_when_one_was_touched(tokenizer, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(shard, "file_checksum", lambda path, made=shard.file_checksum: compared.append(path.name) or made(path))
    folder = build_store(opened(made_rows()), "train", tokenizer, tmp_path).folder
    past = time.time_ns() - 10**9  # as if it had been built before
    for path in folder.glob("*.bin"):
        os.utime(path, ns=(past, past))
    time.sleep(0.02)  # the clock of a file system is coarse
    (folder / CHECKED).touch()
    compared.clear()
    Shard(folder)
    assert compared == []
    time.sleep(0.02)
    os.utime(folder / "rows.bin", ns=(past, past))  # its time says nothing, but it was touched
    Shard(folder)
    assert sorted(compared) == sorted(f"{name}.bin" for name in ARRAYS)
    (folder / CHECKED).unlink()
    compared.clear()
    Shard(folder)
    assert compared
    assert (folder / CHECKED).exists()


def test_a_process_that_may_open_no_more_files_destroys_no_store(tokenizer, tmp_path, monkeypatch):
    one = opened(made_rows())
    folder = build_store(one, "train", tokenizer, tmp_path).folder
    before = content(folder)

    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(shard.os, "stat", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        Shard(folder)
    monkeypatch.undo()
    assert content(folder) == before


# ---- several processes


def build_in(cache: Path, model: Path, data: Path, size: int, told: Path | None = None, rows: int = 50) -> None:
    """In a process of its own: a store in shards of so many rows; tells which it builds."""
    store.SHARD, store.CHUNK = size, rows
    if told is not None:
        build = store.Piece.build

        def telling(piece, progress):
            with told.open("a") as file:
                file.write(f"{piece.folder.name} {os.getpid()}\n")
            build(piece, progress)

        store.Piece.build = telling
    tasks = [open_task(Task(f"task{at}", Files({"train": str(path), "validation": str(path)}), LABELLED), cache=cache)
             for at, path in enumerate(sorted(data.iterdir()))]  # fmt: skip
    build_stores(tasks, "train", load_tokenizer(str(model), 24), cache)


@pytest.fixture(scope="module")
def processes():
    """Processes that start in no time: forked from one that has imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prefinetune.train", "prefinetune.store", "datasets", "filelock", "test_big_data"])
    return context


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """A folder with two files: one of 8 shards of 100 rows, one of 1."""
    folder = tmp_path_factory.mktemp("tables")
    for name, count in (("a.csv", 760), ("b.csv", 90)):
        lines = [f"{row['text']},{row['label']}" for row in made_rows(count)]
        (folder / name).write_text("text,label\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def undisturbed(processes, tables, tiny_model, tmp_path_factory) -> tuple[Path, float]:
    """(what should be in the cache, how long that takes)."""
    for turn in range(2):  # the first starts the server
        cache, started = tmp_path_factory.mktemp(f"undisturbed{turn}"), time.perf_counter()
        process = processes.Process(target=build_in, args=(cache, tiny_model, tables, 100))
        process.start()
        process.join()
        assert process.exitcode == 0
    return cache, time.perf_counter() - started


def test_a_build_that_is_killed_again_and_again_is_in_the_end_what_it_would_have_been(
    processes, undisturbed, tables, tiny_model, tmp_path
):
    """kill -9 at random moments; what was finished before is not made again."""
    expected, seconds = undisturbed
    for turn in range(2):
        kills, begun = kill_again_and_again(processes, expected, seconds, tables, tiny_model, tmp_path / str(turn))
        print(f"killed {kills} times; {begun} shards begun for 9")
        assert kills >= 3
        assert 9 <= begun <= 9 + kills, "each kill costs the shard in hand and no other"


def kill_again_and_again(processes, expected, seconds, tables, tiny_model, folder) -> tuple[int, int]:
    """(kills, shards begun) until a build comes to its end."""
    rng, cache, told, kills = random.Random(folder.name), folder / "cache", folder / "told", 0
    folder.mkdir()
    while True:
        process = processes.Process(target=build_in, args=(cache, tiny_model, tables, 100, told))
        process.start()
        process.join(rng.uniform(0, 0.5 * seconds) if kills < 25 else None)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        kills += 1
        process.kill()
        process.join()
        for path in (cache / "stores").glob("**/manifest.json"):
            if not any(part.startswith(".") for part in path.parts):
                Shard(path.parent)  # nothing is there by half
    found = {name: data for name, data in content(cache).items() if not name.startswith("locks")}
    assert found == {name: data for name, data in content(expected).items() if not name.startswith("locks")}
    return kills, len(told.read_text().splitlines())


def test_processes_share_the_work_and_do_none_of_it_twice(processes, undisturbed, tables, tiny_model, tmp_path):
    expected, _ = undisturbed
    told, cache = tmp_path / "told", tmp_path / "cache"
    group = [processes.Process(target=build_in, args=(cache, tiny_model, tables, 100, told)) for _ in range(3)]
    for process in group:
        process.start()
    for process in group:
        process.join()
    assert [process.exitcode for process in group] == [0, 0, 0]
    begun = [line.split() for line in told.read_text().splitlines()]
    assert len(begun) == len({name for name, _ in begun}) == 9
    assert len({process for _, process in begun}) > 1, "one did not do it all"
    assert content(cache / "stores") == content(expected / "stores")


def test_what_a_killed_process_was_building_another_builds(processes, undisturbed, tables, tiny_model, tmp_path):
    expected, _ = undisturbed
    told, cache = tmp_path / "told", tmp_path / "cache"
    group = [processes.Process(target=build_in, args=(cache, tiny_model, tables, 100, told)) for _ in range(3)]
    for process in group:
        process.start()
    deadline = time.monotonic() + 20
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    first = int(told.read_text().split()[1])
    os.kill(first, 9)
    for process in group:
        process.join()
    assert sorted(process.exitcode for process in group) == [-9, 0, 0]
    assert content(cache / "stores") == content(expected / "stores")


def test_a_claim_is_one_process_s_and_ends_with_it(processes, tmp_path):
    folder = tmp_path / "cache" / "stores" / "a"
    process = processes.Process(target=hold, args=(folder, tmp_path / "cache", tmp_path / "held"))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with claimed(folder, tmp_path / "cache", wait=0) as mine:
        assert not mine
    with claimed(folder.with_name("b"), tmp_path / "cache", wait=0) as mine:
        assert mine
    process.kill()
    process.join()
    with claimed(folder, tmp_path / "cache", wait=0) as mine:
        assert mine


def hold(folder: Path, cache: Path, told: Path) -> None:
    with claimed(folder, cache) as mine:
        assert mine
        told.touch()
        time.sleep(60)


def read_in(cache: Path, data: Path, told: Path) -> None:
    write = cached.write_table

    def telling(folder, path, allowed):
        with told.open("a") as file:
            file.write(path.name + "\n")
        time.sleep(0.3)
        write(folder, path, allowed)

    cached.write_table = telling
    assert len(cached.read_file(data, cache)) == 760


def test_a_file_is_read_by_one_process_and_the_others_wait_for_its_table(processes, tables, tmp_path):
    group = [processes.Process(target=read_in, args=(tmp_path / "cache", tables / "a.csv", tmp_path / "told")) for _ in range(3)]
    for process in group:
        process.start()
    for process in group:
        process.join()
    assert [process.exitcode for process in group] == [0, 0, 0]
    assert (tmp_path / "told").read_text() == "a.csv\n"


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own whose size can be set in kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")

    def resize(kilobytes: int) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", folder], check=True)
        return folder

    yield resize
    subprocess.run(["umount", "--lazy", folder], check=True)  # shards are still mapped


def kilobytes(files: dict[str, bytes]) -> int:
    """What files take on a disk."""
    return sum(4 * -(-len(data) // 4096) for data in files.values())


def test_a_full_disk_is_a_clear_error_and_the_next_start_goes_on(small_disk, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD", 500)
    one = opened(made_rows(3000))
    build_store(one, "train", tokenizer, tmp_path / "whole")
    whole = content(tmp_path / "whole" / "stores")
    cache = small_disk(kilobytes(whole) * 6 // 10)
    with pytest.raises(InputError) as caught:
        build_store(one, "train", tokenizer, cache)
    message = str(caught.value)
    assert str(cache) in message
    assert "no space left on device" in message
    assert "MB are free there. About " in message
    assert "the same command goes on from there" in message
    there = content(cache / "stores")
    assert 0 < len(there) < len(whole)
    assert there.items() <= whole.items(), "what was finished stays, and nothing else does"
    times = {path: path.stat().st_mtime_ns for path in cache.rglob("*.bin")}
    small_disk(20_000)
    assert len(build_store(one, "train", tokenizer, cache)) == 3000
    assert content(cache / "stores") == whole
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())


def test_what_a_full_disk_lacks_is_about_what_it_takes(small_disk, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 100)
    one = opened(made_rows(3000))
    whole = content(build_store(one, "train", tokenizer, tmp_path / "whole").folder)
    with pytest.raises(InputError, match="About") as caught:
        build_store(one, "train", tokenizer, small_disk(kilobytes(whole) * 7 // 10))
    told = float(str(caught.value).split("About ")[1].split()[0]) * 1e6
    assert told == pytest.approx(sum(map(len, whole.values())), rel=0.1)


def test_a_disk_that_is_full_when_a_file_is_read_is_no_fault_of_the_file(small_disk, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in made_rows(3000)))
    with pytest.raises(InputError, match=r"tables.*: no space left on device; .* MB are free there. Make space") as caught:
        cached.read_file(path, small_disk(150))
    assert "could not be read" not in str(caught.value)
    assert len(cached.read_file(path, small_disk(20_000))) == 3000


def limited(cache: Path, model: Path, data: Path, told: Path) -> None:
    """In a process of its own, which may write no file of more than 10 kB."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        build_in(cache, model, data, 10_000)
    except InputError as error:
        told.write_text(str(error)[-3000:])


def test_a_limit_on_the_size_of_files_is_told_as_one(processes, tables, tiny_model, tmp_path):
    """Also where no disk can be mounted."""
    process = processes.Process(target=limited, args=(tmp_path / "cache", tiny_model, tables, tmp_path / "told"))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert "file too large" in (tmp_path / "told").read_text()
    assert not list((tmp_path / "cache").rglob("*.bin")), "what was begun is gone"


def test_other_errors_of_the_disk_are_not_told_as_a_full_one(tmp_path):
    with pytest.raises(PermissionError), cache_module.space_for(tmp_path / "a", tmp_path):
        raise PermissionError(13, "Permission denied")


# ---- sources without a length


def test_rows_that_stream_are_refused_with_what_to_do_instead(tmp_path):
    import datasets

    def rows():
        yield from made_rows(3)

    streaming = datasets.IterableDataset.from_generator(rows)
    for given in (streaming, rows()):
        with pytest.raises(InputError, match=r"rows in memory \[train\]: .* has no length; a split must be finite and have one"):
            open_task(Task("mine", Rows({"train": given, "validation": made_rows(3)}), LABELLED)).split("train")
    few = streaming.take(2)
    for finite in (list(few), datasets.Dataset.from_generator(lambda: iter(few), cache_dir=str(tmp_path))):
        taken = open_task(Task("mine", Rows({"train": finite, "validation": made_rows(3)}), LABELLED))
        assert [row["text"] for row in taken.split("train").rows] == [row["text"] for row in made_rows(3)[:2]]
