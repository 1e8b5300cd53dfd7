"""Did it help? The same few-label fine-tunings from several starting points, one cell each; `evidence.py` reads them.

Fair by construction: in every arm the same labelled rows, order and number of updates, no early stopping, and one learning rate,
chosen on the base arm. See docs/evidence.md for why.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from prefinetune.checkpoint import checksum
from prefinetune.config import Config, make_config
from prefinetune.display import Display
from prefinetune.errors import InputError, listing
from prefinetune.evidence import Comparison, best_rates, planned_cells, read_comparison, read_plan, rows_file
from prefinetune.finetune import DEFAULTS, Prepared, learn, prepare_task, with_length
from prefinetune.lineage import entries, seen_rows
from prefinetune.model import read_config
from prefinetune.quarantine import Account, write_quarantine
from prefinetune.results import append, environment, now, read_records, set_torn_aside, write
from prefinetune.store import Store
from prefinetune.task import Task, find_task
from prefinetune.tokenizer import Tokenizer
from prefinetune.train import digest_of, model_folder, model_tokenizer

BASE, TREATED = "base", "pre-finetuned"
LABELS, SEEDS, TUNING_SEEDS = (32, 128, None), 5, 2
GRID = (1e-5, 3e-5, 1e-4)  # learning rates tried on the base arm
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
NO_STOPPING: Mapping[str, Any] = {"train": {"checkpoint_every": None, "evaluate_every": None, "patience": None}}

Outcome = tuple[dict[str, Any], np.ndarray | None]  # a cell's record, and its row statistics
Runner = Callable[[Sequence["Cell"]], Iterable[Outcome]]


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of a comparison."""

    task: str
    arm: str
    start: str
    labels: int
    seed: int
    learning_rate: float
    digest: str


def compare(
    tasks: Sequence[Task | str | Path],
    start: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    arms: Mapping[str, str | Path] | None = None,
    labels: Sequence[int | None] = LABELS,
    seeds: int = SEEDS,
    grid: Sequence[float] = GRID,
    tuning_seeds: int = TUNING_SEEDS,
    config: Config | Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    processes: int = 1,
    display: Display | None = None,
) -> Comparison:
    """Fine-tune every task from every arm with every number of labels and every seed, and say what the scores justify.

    Args:
        tasks: Tasks, names of ones that ship with us, or suite files with one task.
        start: the pre-finetuned run (or model) that is judged.
        out: the comparison's folder. Finished cells that it holds are not run again.
        base: what it is judged against; what the run started from, when left out.
        arms: further starting points by name: controls.
        labels: numbers of labelled examples; None is all there are.
        seeds: how many; a seed is one labelled subset, order, head and dropout.
        grid: learning rates; one is chosen per task and number of labels, on the base arm's validation score.
        tuning_seeds: seeds whose mean that validation score is.
        config: settings of every cell; a learning rate in it replaces the grid.
        processes: cells that run side by side, with an equal share of the cores each.

    Raises:
        InputError: anything in tasks, data, models or settings that cannot be used, or a folder that holds another comparison.
    """
    display, folder = display or Display(quiet=True), Path(out)
    given = config.model_dump(exclude_unset=True) if isinstance(config, Config) else dict(config or {})
    if said := {"patience", "evaluate_every"} & set(given.get("train", {})):
        raise InputError(f"train.{said.pop()}: a comparison gives every arm the same number of updates; it does not stop early")
    settings = make_config(DEFAULTS, given, NO_STOPPING)
    if "learning_rate" in given.get("optimizer", {}):
        grid = (settings.optimizer.learning_rate,)
    if seeds < 1 or not grid or not labels:
        raise InputError(f"seeds: {seeds}, labels: {labels}, grid: {grid} are not accepted; at least one of each is needed")
    found = [task if isinstance(task, Task) else find_task(task) for task in tasks]
    names = [task.name for task in found]
    if len(set(names)) < len(names):
        raise InputError(f"tasks: given twice: {listing(sorted({name for name in names if names.count(name) > 1}))}")
    bench = Bench(dict(zip(names, tasks, strict=True)), settings, given, data_root, Path(cache) if cache else None)
    starts = all_arms(start, base, arms or {})
    around = environment()
    counts = list(dict.fromkeys("all" if count is None else str(count) for count in labels))
    plan = {
        "format": 1, "base": BASE, "treated": TREATED,
        "arms": {name: {"start": str(where), "weights": weights_digest(where)} for name, where in starts.items()},
        "tasks": {}, "labels": counts, "seeds": list(range(seeds)),
        "grid": sorted(grid), "tuning_seeds": list(range(min(tuning_seeds, seeds))), "settings": bench.told(), "left_out": [],
        "command": around["command"], "started": now(), "environment": around,
    }  # fmt: skip
    for where in starts.values():  # before any data is read: a task may not be one for this model
        bench.tokenizer(where)
    accounts = [account for task in found for account in plan_task(plan, bench, task, starts, labels, display)]
    claim(folder, plan, display)
    write_quarantine(folder, accounts)
    for line in filter(None, (account.told() for account in accounts)):
        display.say(line)

    cells = list(tuning_cells(plan, bench))
    display.say(
        f"{len(found)} tasks x {len(labels)} label counts x {len(starts)} arms x {seeds} seeds; the learning rate is chosen on "
        f"the base arm from {listing(grid)} ({len(cells)} cells)"
    )
    with cell_runner(bench, processes) as run:
        run_missing(cells, folder, run, "tuning cells", display)
        rates = best_rates(plan, read_records(folder / "results.jsonl"))
        run_missing(list(compared_cells(plan, bench, rates)), folder, run, "cells", display)
    return read_comparison(folder)


def all_arms(start: str | Path, base: str | Path | None, others: Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Every arm's starting point by name: the base, the controls, and the pre-finetuned run."""
    if base is None:
        try:
            base = json.loads((Path(start) / "run.json").read_text())["model"]
        except (OSError, ValueError, KeyError):
            raise InputError(f"--base is missing, and {start} is no run that tells what it started from") from None
    for name in others:
        if name in (BASE, TREATED):
            raise InputError(f"--arm: the name {name!r} is taken; choose another")
    return {BASE: base, TREATED: start, **others}


def weights_digest(start: str | Path) -> str:
    """What tells two starting points apart: a digest of a folder's weights, heads, configuration and tokenizer, or a commit."""
    config = read_config(str(model_folder(start)))  # its errors are the clear ones
    if not Path(start).is_dir():
        return f"hub {getattr(config, '_commit_hash', None)}"
    root = Path(start)
    model = Path(model_folder(root))
    files = sorted([*(file for kind in MODEL_FILES for file in model.glob(kind)), *(root / "heads").rglob("*.safetensors")])
    return digest_of([(str(file.relative_to(root)), checksum(file)) for file in files])


def plan_task(
    plan: dict[str, Any],
    bench: Bench,
    task: Task,
    starts: Mapping[str, str | Path],
    labels: Sequence[int | None],
    display: Display,
) -> list[Account]:
    """Read a task as every tokenizer does, and enter into the plan which label counts it has examples for. Returns what became of
    its rows."""
    bench.seen[task.name] = seen_rows(list(starts.values()), task, bench.settings.data, bench.data_root, bench.cache, display)
    prepared = [bench.read(task.name, where, display) for where in starts.values()]
    opened, total = prepared[0].opened, min(len(one.store) for one in prepared)
    role = "test" if "test" in opened.roles else "validation"
    bench.data[task.name] = digest_of([opened.digest("train"), opened.digest(role), opened.family.identity()])
    if hidden := len(bench.seen[task.name].get(role, ())):
        rows = f"{hidden:,} of {len(opened.split(role)) + hidden:,} {role} rows"
        plan["left_out"].append(f"{task.name}: {rows}, on which an arm was trained; no arm is scored on them")
    counts: dict[str, int] = {}
    for count in labels:
        if count is not None and not 1 <= count <= total:
            plan["left_out"].append(f"{task.name}, {count} labels: it has {total:,} training examples")
        elif (count or total) not in counts.values():
            counts["all" if count is None else str(count)] = count or total
    if not counts:
        raise InputError(f"labels: {listing(plan['labels'])} are not accepted; {task.name} has {total:,} training examples")
    family = opened.family
    plan["tasks"][task.name] = {
        "family": family.kind, "metric": family.metric, "labels": counts, "data": bench.data[task.name],
        "source": str(opened.source.describe()), "license": task.license,
    }  # fmt: skip
    for name, where in starts.items():
        if name != BASE and task.name in {entry["name"] for entry in entries(where)}:
            display.say(f"{task.name} was in the suite of {where}: what arm {name!r} gains on it is not transfer to a new task")
    return prepared[0].accounts


def claim(folder: Path, plan: Mapping[str, Any], display: Display) -> None:
    """Write the plan, or make sure that what the folder holds is of this comparison (which may since have grown).

    Raises:
        InputError: it holds another one.
    """
    if (folder / "comparison.json").exists():
        known = read_plan(folder)
        differing = [key for key in ("settings",) if known[key] != plan[key]]
        for kind, mark in (("arms", "weights"), ("tasks", "data")):
            for name, entry in plan[kind].items():
                if name in known[kind] and known[kind][name][mark] != entry[mark]:
                    differing.append(f"{mark} of {name}")
        if differing:
            raise InputError(
                f"{folder} already holds another comparison (it differs in {listing(differing)}); choose another --out"
            )
        plan = {**plan, "started": known["started"]}
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds something that is no comparison; choose another --out")
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for number, _ in set_torn_aside(folder / "results.jsonl"):
        display.say(f"results.jsonl: line {number} was half-written; it is now in results.jsonl.torn, and its cell runs again")
    write(folder / "comparison.json", json.dumps(plan, indent=1, ensure_ascii=False))


# ---- cells


@dataclass
class Bench:
    """What all cells share. Each process has its own, and keeps the tasks it has read."""

    tasks: dict[str, Task | str | Path]  # as they were given: a record with functions in it does not travel to another process
    settings: Config
    given: Mapping[str, Any]  # what the user said of them
    data_root: str | Path | None
    cache: Path | None
    data: dict[str, str] = field(default_factory=dict)  # task -> digest of its rows
    seen: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # task -> role -> evaluation rows an arm was trained on
    tokenizers: dict[str, Tokenizer] = field(default_factory=dict, repr=False)  # by model
    prepared: dict[tuple[str, str], Prepared] = field(default_factory=dict, repr=False)  # by task and tokenizer

    def told(self) -> dict[str, Any]:
        """The settings that are the same in all cells, as the plan states them."""
        settings = self.settings.model_dump(exclude={"seed"})
        del settings["optimizer"]["learning_rate"]
        return settings

    def config(self, labels: int, seed: int, learning_rate: float) -> Config:
        """A cell's settings."""
        settings = make_config(self.settings.model_dump(), {"seed": seed, "optimizer": {"learning_rate": learning_rate}})
        return make_config(with_length(settings, self.given, labels).model_dump(), NO_STOPPING)

    def cell(self, plan: Mapping[str, Any], task: str, arm: str, labels: int, seed: int, learning_rate: float) -> Cell:
        identity = [
            plan["arms"][arm]["weights"], self.data[task], labels, self.config(labels, seed, learning_rate).digest(), task, arm
        ]  # fmt: skip
        return Cell(task, arm, plan["arms"][arm]["start"], labels, seed, learning_rate, digest_of(identity))

    def run(self, cell: Cell) -> Outcome:
        """A cell's record and row statistics. A fine-tuning that comes to nothing (its loss not finite, say) is a record too."""
        config = self.config(cell.labels, cell.seed, cell.learning_rate)
        prepared = self.read(cell.task, cell.start, Display(quiet=True))
        family = prepared.opened.family
        known = {"arm": cell.arm, "learning_rate": cell.learning_rate, "digest": cell.digest}
        examples = prepared.examples(cell.labels, cell.seed)
        sources = examples.rows.tolist() if isinstance(examples, Store) else [examples[i].source for i in range(len(examples))]
        known["subset"] = digest_of(sources)
        if cell.arm != BASE:  # nothing is chosen on the other arms
            prepared = replace(prepared, selection=[])
        try:
            learned = learn(prepared, cell.start, examples, config)
        except InputError as problem:
            failed = {
                "task": cell.task, "family": family.kind, "metric": family.metric, "base": cell.start, "labels": cell.labels,
                "seed": cell.seed, "rows": len(prepared.scored), "score": None, "scores": {}, "validation": None,
                "failed": str(problem),
            }  # fmt: skip
            return failed | known, None
        return learned.record | known, family.row_statistics(learned.predictions, prepared.scored)

    def tokenizer(self, start: str | Path) -> Tokenizer:
        """The tokenizer of a starting point."""
        name = str(model_folder(start))
        if name not in self.tokenizers:
            tasks = [task if isinstance(task, Task) else find_task(task) for task in self.tasks.values()]
            self.tokenizers[name] = model_tokenizer(name, tasks, self.settings.data)
        return self.tokenizers[name]

    def read(self, name: str, start: str | Path, display: Display) -> Prepared:
        """A task as the tokenizer of a starting point reads it; the last few are kept, as cells come task by task."""
        tokenizer = self.tokenizer(start)
        key = name, tokenizer.digest
        if key not in self.prepared:
            given = self.tasks[name]
            task = given if isinstance(given, Task) else find_task(given)
            while len(self.prepared) >= 8:
                del self.prepared[next(iter(self.prepared))]
            seen = self.seen.get(name)
            self.prepared[key] = prepare_task(task, tokenizer, self.settings, self.data_root, self.cache, display, seen)
        return self.prepared[key]


def tuning_cells(plan: Mapping[str, Any], bench: Bench) -> Iterator[Cell]:
    if len(plan["grid"]) > 1:
        for (task, _, count), rate, seed in product(planned_cells(plan), plan["grid"], plan["tuning_seeds"]):
            yield bench.cell(plan, task, plan["base"], count, seed, rate)


def compared_cells(plan: Mapping[str, Any], bench: Bench, rates: Mapping[tuple[str, int], float]) -> Iterator[Cell]:
    for (task, _, count), seed, arm in product(planned_cells(plan), plan["seeds"], plan["arms"]):
        if (task, count) in rates:
            yield bench.cell(plan, task, arm, count, seed, rates[task, count])


def run_missing(cells: Sequence[Cell], folder: Path, run: Runner, unit: str, display: Display) -> None:
    """Run the cells that results.jsonl does not hold, and write each as soon as it is done."""
    done = {record.get("digest") for record in read_records(folder / "results.jsonl")}
    wanted = [cell for cell in cells if cell.digest not in done]
    if not wanted:
        return
    if len(wanted) < len(cells):
        display.say(f"{len(cells) - len(wanted)} of {len(cells)} {unit} are there already")
    with display.counting(unit, len(wanted)) as advance:
        for record, rows in run(wanted):
            if rows is not None:  # first, so that a line in results.jsonl means that they are there
                save_rows(rows_file(folder, record["digest"]), rows)
            else:
                place = f"{record['task']}, {record['labels']} labels, {record['arm']}, rate {record['learning_rate']}"
                display.say(f"failed: {place}: {record['failed']}")
            append(folder / "results.jsonl", {**record, "when": now()})
            advance(1)


def save_rows(path: Path, rows: np.ndarray) -> None:
    """Write row statistics so that the file is there whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    beside = path.with_name(f".{path.name}.writing")
    beside.write_bytes(buffer.getvalue())
    beside.replace(path)


@contextmanager
def cell_runner(bench: Bench, processes: int) -> Iterator[Runner]:
    """A function that runs cells and gives their results as they come: here, or in processes of their own."""
    if processes == 1:
        yield lambda cells: map(bench.run, cells)
        return
    spawn = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // processes)
    fresh = replace(bench, tokenizers={}, prepared={})  # what they keep, they read themselves
    pool = ProcessPoolExecutor(processes, spawn, initializer=start_worker, initargs=(fresh, threads, os.getpid()))

    def run(cells: Sequence[Cell]) -> Iterator[Outcome]:
        waiting: list[Future[Outcome]] = [pool.submit(run_in_worker, cell) for cell in cells]
        for future in as_completed(waiting):
            yield future.result()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


worker_bench: Bench  # of a worker process


def start_worker(bench: Bench, threads: int, parent: int) -> None:
    global worker_bench
    import torch

    worker_bench = bench
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and stops us between cells

    def leave_with_parent() -> None:  # a killed parent cannot
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def run_in_worker(cell: Cell) -> Outcome:
    return worker_bench.run(cell)
