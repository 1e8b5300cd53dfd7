"""How long it takes to find leaked rows, in how much memory, and whether all that were planted are found.

    python benchmarks/leaks.py --out leaks.json

Rows are a question of 8 to 12 words and a passage of about 60, drawn from a vocabulary of Zipf's form; a tenth of them are
validation rows. For each kind of leak, training rows as many as 1 % of all rows are made from these, and as many again share only
the passage, which is no leak. Every size is read from Parquet files by a process of its own, so that its peak is its own: the
largest resident set, pages of the mapped files included. Time is that of `find_leaks`, with the rows opened before.

Limits, for two cores and nothing else running: a million rows in under 180 seconds and 2 GB, and in at most 8 x 1.25 times what
125,000 take. Processor seconds are shown too: on a busy machine they say more. The exit code is 1 when a limit is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (125_000, 250_000, 500_000, 1_000_000)
MOST_SECONDS, MOST_GB, MOST_GROWTH = 180, 2.0, 1.25  # growth: of the time per row, from the smallest size to the largest
VOCABULARY, EVALUATION, PLANTED = (
    50_000,
    0.1,
    0.01,
)  # words; share of the rows that are validation rows, and that are leaks of a kind
LEAKS = ("exact", "normalised", "near copy", "inside a longer passage")
KINDS = (*LEAKS, "same passage, other question")
WRITTEN_AT_ONCE = 50_000  # rows


class Writer:
    """Draws rows, and makes leaks of others."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        lengths = self.generator.integers(2, 10, VOCABULARY)
        self.words = np.array(["".join(self.generator.choice(letters, length)) for length in lengths])
        weights = 1 / np.arange(1, VOCABULARY + 1)
        self.upto = np.cumsum(weights / weights.sum())

    def texts(self, lengths: np.ndarray) -> list[str]:
        """A text per length in words."""
        which = np.searchsorted(self.upto, self.generator.random(lengths.sum()) * self.upto[-1])
        words, ends = self.words[which].tolist(), np.cumsum(lengths).tolist()
        return [" ".join(words[end - length : end]) for length, end in zip(lengths.tolist(), ends, strict=True)]

    def questions(self, count: int) -> list[str]:
        return [text + "?" for text in self.texts(self.generator.integers(8, 13, count))]

    def rows(self, count: int) -> list[tuple[str, str]]:
        """(question, passage) pairs."""
        lengths = np.clip(self.generator.lognormal(np.log(55), 0.4, count), 20, 300).astype(int)
        return list(zip(self.questions(count), self.texts(lengths), strict=True))

    def leak(self, kind: str, question: str, passage: str) -> tuple[str, str]:
        if kind == "exact":
            return question, passage
        if kind == "normalised":
            return question.upper(), passage.title().replace(" ", ", ", 3)
        if kind == "near copy":
            return question.title(), passage.rsplit(" ", 2)[0] + " " + self.texts(np.array([4]))[0]
        if kind == "inside a longer passage":
            before, after = self.texts(np.array([40, 40]))
            return question, f"{before} {passage} {after}"
        return self.questions(1)[0], passage


def write_rows(folder: Path, size: int) -> None:
    """train.parquet, validation.parquet and planted.json: {kind: [training row, ...]}."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, folder = Writer(size), Path(folder)
    others = writer.rows(int(size * EVALUATION))
    num_train, each = size - len(others), int(size * PLANTED)
    copied = writer.generator.choice(len(others), each * len(KINDS), replace=False).reshape(len(KINDS), each)
    places = writer.generator.choice(num_train, each * len(KINDS), replace=False).reshape(len(KINDS), each)
    planted = {
        int(place): (kind, int(source))
        for kind, rows, at in zip(KINDS, copied, places, strict=True)
        for source, place in zip(rows, at, strict=True)
    }
    schema = pa.schema({"question": pa.string(), "passage": pa.string(), "label": pa.int64()})

    def write(file: pq.ParquetWriter, rows: list[tuple[str, str]]) -> None:
        questions, passages = zip(*rows, strict=True)
        file.write_table(pa.table([questions, passages, [0] * len(rows)], schema=schema))

    with pq.ParquetWriter(folder / "validation.parquet", schema) as file:
        write(file, others)
    with pq.ParquetWriter(folder / "train.parquet", schema) as file:
        for start in range(0, num_train, WRITTEN_AT_ONCE):
            rows = writer.rows(min(WRITTEN_AT_ONCE, num_train - start))
            for place in range(start, start + len(rows)):
                if place in planted:
                    kind, source = planted[place]
                    rows[place - start] = writer.leak(kind, *others[source])
            write(file, rows)
    by_kind = {kind: sorted(rows.tolist()) for kind, rows in zip(KINDS, places, strict=True)}
    (folder / "planted.json").write_text(json.dumps(by_kind))


def measure(folder: Path) -> dict[str, Any]:
    """Time, memory and what was found; called in a process of its own."""
    from prefinetune.families import Classification
    from prefinetune.leaks import find_leaks
    from prefinetune.sources import Files
    from prefinetune.splits import open_task
    from prefinetune.task import Task

    opened = open_task(Task("made", Files(str(folder)), Classification("question", pair="passage")))
    num_rows = len(opened.split("train")) + len(opened.split("validation"))
    started, busy = time.perf_counter(), time.process_time()
    found = find_leaks([opened])
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    rows = set(found.rows("made").tolist())
    planted = {kind: set(places) for kind, places in json.loads((folder / "planted.json").read_text()).items()}
    leaked = set().union(*(planted[kind] for kind in LEAKS))
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return {
        "rows": num_rows, "seconds": seconds, "processor_seconds": busy, "seconds_per_100k_rows": seconds / num_rows * 1e5,
        "peak_gb": int(peak[1]) / 1e6, "recall": {kind: len(planted[kind] & rows) / len(planted[kind]) for kind in LEAKS},
        "planted": len(leaked), "false": len(rows - leaked),
        "shared_passages_told_apart": sum(one.shared_context for one in found.overlaps) / len(planted[KINDS[-1]]),
    }  # fmt: skip


def measured(size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), size)
        caches = {"HF_DATASETS_CACHE": f"{folder}/datasets", "PREFINETUNE_CACHE": f"{folder}/cache"}
        done = subprocess.run(
            [sys.executable, __file__, "--measure", folder], stdout=subprocess.PIPE, text=True, check=True,
            env={**os.environ, **caches, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])


def broken_limits(found: list[dict[str, Any]]) -> list[str]:
    """What is over its limit; the speed of sizes that were not measured is not judged."""
    by_size = {one["rows"]: one for one in found}
    broken = []
    if SIZES[-1] in by_size:
        largest = by_size[SIZES[-1]]
        if largest["seconds"] >= MOST_SECONDS:
            broken.append(f"{largest['seconds']:.0f} seconds for a million rows")
        if largest["peak_gb"] >= MOST_GB:
            broken.append(f"{largest['peak_gb']:.2f} GB for a million rows")
        if SIZES[0] in by_size:
            growth = largest["processor_seconds"] / by_size[SIZES[0]]["processor_seconds"] * SIZES[0] / SIZES[-1]
            if growth > MOST_GROWTH:
                broken.append(f"{growth:.2f} times the processor seconds per row of {SIZES[0]:,} rows")
    for one in found:
        missed = {kind: share for kind, share in one["recall"].items() if share < 1}
        if missed or one["false"]:
            broken.append(f"{one['rows']:,} rows: {one['false']} false ones, found of the planted ones {missed or 'all'}")
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="rows")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    print(f"{'rows':>9} {'seconds':>8} {'processor s':>11} {'s / 100k':>8} {'peak GB':>7}   found, of the planted ones")
    found = []
    for size in arguments.sizes:
        one = measured(size)
        found.append(one)
        recall = ", ".join(f"{kind} {share:.1%}" for kind, share in one["recall"].items())
        speed = (
            f"{one['seconds']:8.1f} {one['processor_seconds']:11.1f} {one['seconds_per_100k_rows']:8.2f} {one['peak_gb']:7.2f}"
        )
        print(f"{one['rows']:>9,} {speed}   {recall}; false {one['false']}", flush=True)
    broken = broken_limits(found)
    print("over a limit: " + "; ".join(broken) if broken else "within all limits")
    if arguments.out:
        arguments.out.write_text(json.dumps({"sizes": found, "over_a_limit": broken, "cores": os.cpu_count()}, indent=1))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
