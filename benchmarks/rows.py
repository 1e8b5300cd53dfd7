"""Ten million rows from a file to a trained model: do speed and memory stay as they are for a hundred thousand?

    python benchmarks/rows.py --out rows.json     # 10 to 20 minutes on two cores

Tables of short rows are generated, read, tokenized with MiniLM's tokenizer and stored, and then a small model is trained on them
for some updates: all by the library's own commands, each table in a process of its own. Memory is what the process holds beyond
what it held with all libraries loaded, without the files mapped into it, which the system takes back when it needs to.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import prefinetune
from prefinetune.display import Display
from prefinetune.families import Classification
from prefinetune.files import write
from prefinetune.sources import Files
from prefinetune.splits import open_task
from prefinetune.store import SHARD, build_store
from prefinetune.task import Suite, Task
from prefinetune.tokenizer import load_tokenizer
from prepare import LENGTH, memory, minilm

LABELS = ("billing", "delivery", "other")
POINTS = [(".csv", 10**5), (".csv", 10**6), (".jsonl", 10**6), (".parquet", 10**6), (".csv", 10**7)]
UPDATES = 50
MOST_MEMORY, MOST_TIME = 300, 1.25  # goals: MB that ten million rows take more than a hundred thousand; times the time per row
SETTINGS = {"data": {"leaks": "off"}, "train": {"updates": UPDATES, "checkpoint_every": None}}


def texts(count: int) -> Iterator[str]:
    """Five to fifteen words of the tokenizer's vocabulary."""
    words = sorted(word for word in minilm().tokenizer.get_vocab() if word.isalpha() and len(word) > 1)
    rng = random.Random(0)
    drawn = rng.choices(words, [1 / (rank + 10) for rank in range(len(words))], k=1_000_000)
    for _ in range(count):
        start = int(rng.random() * 999_980)
        yield " ".join(drawn[start : start + 5 + int(rng.random() * 11)])


def write_table(path: Path, count: int) -> None:
    """As the ending says. One row in 5,000 has no label, and cannot be used."""
    rows = ((text, "" if at % 5000 == 4321 else LABELS[at % 3]) for at, text in enumerate(texts(count)))
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema({"text": pa.string(), "label": pa.string()})
        with pq.ParquetWriter(path, schema) as file:
            while columns := list(zip(*islice(rows, 50_000), strict=True)):
                file.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([("text", "label")])
            csv.writer(file).writerows(rows)
        else:
            file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


@contextmanager
def watched(found: dict[str, Any], name: str) -> Iterator[None]:
    """Seconds (wall clock, processor) of a block, and the most memory during it."""
    before, done = memory(), threading.Event()
    peak = [before]

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, processor = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        seconds = [time.perf_counter() - wall, time.process_time() - processor]
        done.set()
        watcher.join()
    found[name] = {"seconds": seconds, "MB before": before, "peak MB": peak[0]}


def measured(path: Path, model: Path, cache: Path) -> dict[str, Any]:
    """In a process of its own: from the file to a trained model, and the start of another process's work."""
    tokenizer, found = load_tokenizer(str(model), LENGTH), dict[str, Any]()
    tokenizer.pairs([("warm", None)])
    import datasets  # noqa: F401  # its import is not what is measured

    prefinetune.train  # noqa: B018  # nor that of torch and transformers
    loaded = memory()
    task = Task("tickets", Files({"train": str(path)}), Classification("text", labels=LABELS))
    with watched(found, "read"):
        opened = open_task(task, cache=cache)
        rows = len(opened.split("train").table)
    with watched(found, "built"):
        store = build_store(opened, "train", tokenizer, cache)
    stored = {"shards": len(store.shards), "stored": len(store), "tokens": store.summary["tokens"]}
    stored["set aside"] = store.summary["bad_rows"]
    del opened, store  # what comes next is measured as if it came first
    with watched(found, "found again"):
        build_store(open_task(task, cache=cache), "train", tokenizer, cache)
    with tempfile.TemporaryDirectory() as folder, watched(found, "trained"):
        prefinetune.train(
            Suite("rows", (task,)), model, Path(folder) / "run", config=SETTINGS, cache=cache, display=Display(quiet=True)
        )
    return {
        "rows": rows, "kind": path.suffix[1:], "file MB": path.stat().st_size / 1e6, **stored,
        "rows/s read": rows / found["read"]["seconds"][0], "rows/s built": rows / found["built"]["seconds"][0],
        "MB more": {name: one["peak MB"] - loaded for name, one in found.items()}, "phases": found,
    }  # fmt: skip


def write_model(folder: Path) -> Path:
    """A small model of random weights for MiniLM's vocabulary, and its tokenizer."""
    import transformers

    tokenizer = minilm().tokenizer
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def goals(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is asked of the largest table against the smallest."""
    few, many = points[0], points[-1]
    memory_more = max(many["MB more"].values()) - max(few["MB more"].values())
    each = [one["phases"]["built"]["seconds"][1] / one["rows"] for one in (few, many)]
    return [
        {"goal": f"MB that {many['rows']:,} rows take more than {few['rows']:,}", "found": memory_more, "most": MOST_MEMORY},
        {"goal": "processor time of a row, as a multiple", "found": each[1] / each[0], "most": MOST_TIME},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON with all that was measured, written after each table")
    parser.add_argument("--folder", type=Path, help="for tables and stores, 4 GB; a temporary one when left out")
    parser.add_argument("--most", type=int, default=10**7, help="rows of the largest table")
    parser.add_argument("--measure", nargs=3, type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measured(*asked.measure)))
        return
    found: dict[str, Any] = {"rows in a shard": SHARD, "updates": UPDATES, "points": []}
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        model = write_model(Path(folder) / "model")
        for suffix, count in POINTS:
            if count > asked.most:
                continue
            path = Path(folder) / f"{count}{suffix}"
            write_table(path, count)
            words = [sys.executable, __file__, "--measure", path, model, Path(folder) / "cache"]
            done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, text=True, check=True)
            found["points"].append(json.loads(done.stdout.splitlines()[-1]))
            path.unlink()
            found["goals"] = goals(found["points"])
            if asked.out:
                write(asked.out, json.dumps(found, indent=1))
            one = {key: value for key, value in found["points"][-1].items() if key != "phases"}
            print(json.dumps(one), flush=True)
    print(json.dumps(found["goals"], indent=1))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
