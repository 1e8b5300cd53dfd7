"""Did it help? The same few-label fine-tunings from several starting points, one cell each; `evidence.py` reads them.

Fair by construction: in every arm the same labelled rows, order and number of updates, no early stopping, and one learning rate,
chosen on the base arm. See docs/evidence.md for why.
"""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, product, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from prefinetune.config import Config, make_config, same_settings
from prefinetune.display import Display
from prefinetune.environment import environment, now
from prefinetune.errors import InputError, listing
from prefinetune.evidence import Comparison, best_rates, planned_cells, read_comparison, read_plan, rows_file
from prefinetune.files import append, digest_of, read_records, refuse_others, set_torn_aside, write, writing, writing_alone
from prefinetune.finetune import DEFAULTS, Prepared, learn, prepare_task, with_length
from prefinetune.lineage import entries, seen_rows
from prefinetune.memory import give_back
from prefinetune.notice import CLUSTER, Notice, Preempted
from prefinetune.quarantine import Account, write_quarantine
from prefinetune.start import Start, as_start, model_folder, model_tokenizer, weights_digest
from prefinetune.store import Store
from prefinetune.task import Task, find_task
from prefinetune.tokenizer import Tokenizer
from prefinetune.workers import workers

BASE, TREATED = "base", "pre-finetuned"
LABELS, SEEDS, TUNING_SEEDS = (32, 128, None), 5, 2
GRID = (1e-5, 3e-5, 1e-4)  # learning rates tried on the base arm
NO_STOPPING: Mapping[str, Any] = {"train": {"checkpoint_every": None, "evaluate_every": None, "patience": None}}

Outcome = tuple[dict[str, Any], np.ndarray | None]  # a cell's record, and its row statistics
Runner = Callable[[Sequence["Cell"], Notice], Iterable[Outcome]]


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
    start: str | Path | Start,
    out: str | Path,
    *,
    base: str | Path | None = None,
    arms: Mapping[str, str | Path | Start] | None = None,
    treated: str = TREATED,
    labels: Sequence[int | float | None] = LABELS,
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
        arms: further starting points by name: controls. A `Start` may have an objective of its own.
        treated: what the judged arm is called.
        labels: numbers of labelled examples, or (below 1) shares of those there are; None is all.
        seeds: how many; a seed is one labelled subset, order, head and dropout.
        grid: learning rates; one is chosen per task and number of labels, on the base arm's validation score.
        tuning_seeds: seeds whose mean that validation score is.
        config: settings of every cell; a learning rate in it replaces the grid.
        processes: cells that run side by side, with an equal share of the cores each.

    Raises:
        InputError: anything in tasks, data, models or settings that cannot be used, or a folder that holds another comparison,
            or that another process is writing to.
    """
    display, folder = display or Display(quiet=True), Path(out)
    plan, bench, accounts = plan_comparison(
        tasks, start, base, arms, treated, labels, seeds, grid, tuning_seeds, config, data_root, cache, display
    )
    refuse_others(folder, "comparison.json", "no comparison")
    with writing_alone(folder):
        claim(folder, plan, display)
        write_quarantine(folder, accounts)
        for line in filter(None, (account.told() for account in accounts)):
            display.say(line)

        cells = list(tuning_cells(plan, bench))
        display.say(
            f"{len(plan['tasks'])} tasks x {len(plan['labels'])} label counts x {len(plan['arms'])} arms x {seeds} seeds; the "
            f"learning rate is chosen on the base arm from {listing(plan['grid'])} ({len(cells)} cells)"
        )
        with cell_runner(bench, processes) as run:
            run_missing(cells, folder, run, "tuning cells", display)
            rates = best_rates(plan, read_records(folder / "results.jsonl"))
            run_missing(list(compared_cells(plan, bench, rates)), folder, run, "cells", display)
    return read_comparison(folder)


def plan_comparison(
    tasks: Sequence[Task | str | Path],
    start: str | Path | Start,
    base: str | Path | None,
    arms: Mapping[str, str | Path | Start] | None,
    treated: str,
    labels: Sequence[int | float | None],
    seeds: int,
    grid: Sequence[float],
    tuning_seeds: int,
    config: Config | Mapping[str, Any] | None,
    data_root: str | Path | None,
    cache: str | Path | None,
    display: Display,
) -> tuple[dict[str, Any], Bench, list[Account]]:
    """What comparison.json says, what all cells share, and what became of the rows; arguments and errors as of `compare`. Writes
    to the cache alone."""
    given = config.model_dump(exclude_unset=True) if isinstance(config, Config) else dict(config or {})
    settings, grid = cell_settings(given, seeds, labels, grid)
    found = [task if isinstance(task, Task) else find_task(task) for task in tasks]
    names = [task.name for task in found]
    if len(set(names)) < len(names):
        raise InputError(f"tasks: given twice: {listing(sorted({name for name in names if names.count(name) > 1}))}")
    bench = Bench(dict(zip(names, tasks, strict=True)), settings, given, data_root, Path(cache) if cache else None)
    named = all_arms(as_start(start), base, arms or {}, treated)
    starts = {name: one.place for name, one in named.items()}
    bench.objectives = {name: dict(one.objective) for name, one in named.items() if one.objective}
    for name in bench.objectives:
        bench.config(1, 0, grid[0], name)  # its errors
    around = environment()
    counts = list(dict.fromkeys(map(label_name, labels)))
    plan = {
        "format": 1, "base": BASE, "treated": treated,
        "arms": {
            name: {"start": str(where), "weights": weights_digest(where)}
            | ({"objective": bench.objectives[name]} if name in bench.objectives else {})
            for name, where in starts.items()
        },
        "tasks": {}, "labels": counts, "seeds": list(range(seeds)),
        "grid": sorted(grid), "tuning_seeds": list(range(min(tuning_seeds, seeds))), "settings": bench.told(), "left_out": [],
        "command": around["command"], "started": now(), "environment": around,
    }  # fmt: skip
    for where in starts.values():  # before any data is read: a task may not be one for this model
        bench.tokenizer(where)
    accounts = [account for task in found for account in plan_task(plan, bench, task, starts, labels, display)]
    return plan, bench, accounts


def cell_settings(
    given: Mapping[str, Any], seeds: int, labels: Sequence[int | float | None], grid: Sequence[float]
) -> tuple[Config, list[float]]:
    """The settings of all cells, and the rates to choose from: that of the settings where they have one.

    Raises:
        InputError: settings by which arms would not get the same, or none of something.
    """
    if said := {"patience", "evaluate_every"} & set(given.get("train", {})):
        raise InputError(f"train.{said.pop()}: a comparison gives every arm the same number of updates; it does not stop early")
    settings = make_config(DEFAULTS, given, NO_STOPPING)
    if "learning_rate" in given.get("optimizer", {}):
        grid = (settings.optimizer.learning_rate,)
    if seeds < 1 or not grid or not labels:
        raise InputError(f"seeds: {seeds}, labels: {labels}, grid: {grid} are not accepted; at least one of each is needed")
    return settings, list(grid)


def all_arms(start: Start, base: str | Path | None, others: Mapping[str, str | Path | Start], treated: str) -> dict[str, Start]:
    """Every arm's starting point by name: the base, the pre-finetuned run, and the controls."""
    if base is None:
        try:
            base = json.loads((Path(start.place) / "run.json").read_text())["model"]
        except (OSError, ValueError, KeyError):
            raise InputError(
                f"--base is missing, and {start.place} is no run that tells what it started from; `prefinetune runs` lists runs"
            ) from None
    for name in others:
        if name in (BASE, treated):
            raise InputError(f"--arm: the name {name!r} is taken; choose another")
    return {BASE: Start(base), treated: start, **{name: as_start(one) for name, one in others.items()}}


def plan_task(
    plan: dict[str, Any],
    bench: Bench,
    task: Task,
    starts: Mapping[str, str | Path],
    labels: Sequence[int | float | None],
    display: Display,
) -> list[Account]:
    """Read a task as every tokenizer does, and enter into the plan which label counts it has examples for. Returns what became of
    its rows."""
    bench.seen[task.name] = seen_rows(list(starts.values()), task, bench.settings.data, bench.data_root, bench.cache, display)
    prepared = [bench.read(task.name, where, display) for where in starts.values()]
    opened, total = prepared[0].opened, min(len(one.store) for one in prepared)
    role = "test" if "test" in opened.roles else "validation"
    halved = [] if role == "test" else [prepared[0].split]
    bench.data[task.name] = digest_of([opened.digest("train"), opened.digest(role), opened.family.identity(), *halved])
    if hidden := len(bench.seen[task.name].get(role, ())):
        rows = f"{hidden:,} of {len(opened.split(role)) + hidden:,} {role} rows"
        plan["left_out"].append(f"{task.name}: {rows}, on which an arm was trained; no arm is scored on them")
    counts: dict[str, int] = {}
    for asked in labels:
        count = examples_of(asked, total)
        if not 1 <= count <= total:
            plan["left_out"].append(f"{task.name}, {label_name(asked)} labels: it has {total:,} training examples")
        elif count not in counts.values():
            counts[label_name(asked)] = count
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


def label_name(asked: int | float | None) -> str:
    """A label count as plans, tables and records of comparisons name it: 32, 10 %, all."""
    return "all" if asked is None else f"{100 * asked:g} %" if isinstance(asked, float) else str(asked)


def examples_of(asked: int | float | None, total: int) -> int:
    """How many of so many examples a label count comes to."""
    return total if asked is None else round(asked * total) if isinstance(asked, float) else asked


def claim(folder: Path, plan: Mapping[str, Any], display: Display) -> None:
    """Write the plan, or make sure that what the folder holds is of this comparison (which may since have grown).

    Raises:
        InputError: it holds another one.
    """
    if (folder / "comparison.json").exists():
        known = read_plan(folder)
        differing = [] if same_settings(known["settings"], plan["settings"]) else ["settings"]
        for kind, mark in (("arms", "weights"), ("tasks", "data")):
            for name, entry in plan[kind].items():
                if name in known[kind] and any(known[kind][name].get(key) != entry.get(key) for key in (mark, "objective")):
                    differing.append(f"{mark} of {name}")
        if differing:
            raise InputError(
                f"{folder} already holds another comparison (it differs in {listing(differing)}); choose another --out"
            )
        earlier = {name: entry for name, entry in known["arms"].items() if name not in plan["arms"]}
        plan = {**plan, "started": known["started"], "arms": {**plan["arms"], **earlier}}
    for number, _ in set_torn_aside(folder / "results.jsonl"):
        display.say(f"results.jsonl: line {number} was half-written; it is now in results.jsonl.torn, and its cell runs again")
    write(folder / "comparison.json", json.dumps(plan, indent=1, ensure_ascii=False))
    (folder / "rows").mkdir(exist_ok=True)


# ---- cells


@dataclass
class Bench:
    """What all cells share. Each process has its own, and keeps the tasks it has read."""

    tasks: dict[str, Task | str | Path]  # as they were given: a record with functions in it does not travel to another process
    settings: Config
    given: Mapping[str, Any]  # what the user said of them
    data_root: str | Path | None
    cache: Path | None
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)  # arm -> settings of the objective that only it has
    data: dict[str, str] = field(default_factory=dict)  # task -> digest of its rows
    seen: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # task -> role -> evaluation rows an arm was trained on
    tokenizers: dict[str, Tokenizer] = field(default_factory=dict, repr=False)  # by model
    prepared: dict[tuple[str, str], Prepared] = field(default_factory=dict, repr=False)  # by task and tokenizer

    def told(self) -> dict[str, Any]:
        """The settings that are the same in all cells, as the plan states them."""
        settings = self.settings.model_dump(exclude={"seed"})
        del settings["optimizer"]["learning_rate"]
        return settings

    def config(self, labels: int, seed: int, learning_rate: float, arm: str = BASE) -> Config:
        """A cell's settings."""
        own = {"seed": seed, "optimizer": {"learning_rate": learning_rate}, "objective": self.objectives.get(arm, {})}
        settings = make_config(self.settings.model_dump(), own)
        return make_config(with_length(settings, self.given, labels).model_dump(), NO_STOPPING)

    def cell(self, plan: Mapping[str, Any], task: str, arm: str, labels: int, seed: int, learning_rate: float) -> Cell:
        settings = self.config(labels, seed, learning_rate, arm).digest()
        identity = [plan["arms"][arm]["weights"], self.data[task], labels, settings, task, arm]
        return Cell(task, arm, plan["arms"][arm]["start"], labels, seed, learning_rate, digest_of(identity))

    def run(self, cell: Cell) -> Outcome:
        """A cell's record and row statistics. A fine-tuning that comes to nothing (its loss not finite, say) is a record too."""
        give_back()  # what the cell before has left
        config = self.config(cell.labels, cell.seed, cell.learning_rate, cell.arm)
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
    """Run the cells that results.jsonl does not hold, and write each as soon as it is done.

    Raises:
        Preempted: we were told to go (SIGTERM, SIGUSR1, Ctrl-C); cells that were being run are finished, and stay.
    """
    done = {record.get("digest") for record in read_records(folder / "results.jsonl")}
    wanted = [cell for cell in cells if cell.digest not in done]
    if not wanted:
        return
    if there := len(cells) - len(wanted):
        display.say(f"{there} of {len(cells)} {unit} are there already")
    finishing = "finishing the cells that are being run; what is finished stays"
    with display.counting(unit, len(wanted)) as advance, Notice(finishing) as notice:
        for record, rows in run(wanted, notice):
            if rows is not None:  # first, so that a line in results.jsonl means that they are there
                save_rows(rows_file(folder, record["digest"]), rows)
            else:
                place = f"{record['task']}, {record['labels']} labels, {record['arm']}, rate {record['learning_rate']}"
                display.say(f"failed: {place}: {record['failed']}")
            append(folder / "results.jsonl", {**record, "when": now()})
            there += 1
            advance(1)
        if there < len(cells):
            told = f"{there:,} of {len(cells):,} {unit} are done and stay in {folder}"
            raise Preempted(told, notice.given, again="the same command")


def save_rows(path: Path, rows: np.ndarray) -> None:
    """Write row statistics so that the file is there whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    beside = writing(path)
    beside.write_bytes(buffer.getvalue())
    beside.replace(path)


@contextmanager
def cell_runner(bench: Bench, processes: int) -> Iterator[Runner]:
    """A function that runs cells and gives their results as they come: here, or in processes of their own."""
    if processes == 1:

        def run_here(cells: Sequence[Cell], notice: Notice) -> Iterator[Outcome]:
            return map(bench.run, takewhile(lambda _: not notice.given, cells))

        yield run_here
        return
    fresh = replace(bench, tokenizers={}, prepared={})  # what they keep, they read themselves
    with workers(processes, keep_bench, fresh) as pool:

        def run_there(cells: Sequence[Cell], notice: Notice) -> Iterator[Outcome]:
            left, done, waiting = iter(cells), set[Future[Outcome]](), set[Future[Outcome]]()
            while True:
                if not notice.given:  # no more than are run: what a pool has queued begins even when it is shut down
                    waiting |= {pool.submit(run_in_worker, cell) for cell in islice(left, processes - len(waiting))}
                try:
                    yield from (future.result() for future in done)
                except BrokenProcessPool:  # a worker that was still starting was told to go as well
                    if notice.given:
                        return
                    raise
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)

        yield run_there


worker_bench: Bench  # of a worker process


def keep_bench(bench: Bench) -> None:
    global worker_bench
    for number in CLUSTER:  # which clusters send to all of a job; the parent decides what becomes of us
        signal.signal(number, signal.SIG_IGN)
    worker_bench = bench


def run_in_worker(cell: Cell) -> Outcome:
    return worker_bench.run(cell)
