"""What a run would come to, before it is one: rows, updates, memory, time. Caches are filled; nothing else is written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from prefinetune import launcher, ranks
from prefinetune.balancing import balancing_of
from prefinetune.batch import Batch, micro_batches
from prefinetune.compare import GRID, LABELS, SEEDS, TREATED, TUNING_SEEDS, compared_cells, plan_comparison, tuning_cells
from prefinetune.config import Config
from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.families import Encoded
from prefinetune.files import read_records
from prefinetune.finetune import build, prepare_tuning
from prefinetune.loop import make_mixture, make_optimizer, precision_of
from prefinetune.model import MultiTask
from prefinetune.prepare import prepare_suite
from prefinetune.quarantine import LEAK, SET_ASIDE, Account
from prefinetune.start import Start
from prefinetune.task import Suite, Task
from prefinetune.tokenizer import Tokenizer
from prefinetune.update import TaskData, draw, update

TIMED, ENOUGH = 3, 60.0  # updates that are timed after a first one; seconds in updates after which none begins
SCORING = 1 / 3  # what scoring a token costs beside learning from it: forward without backward
SAMPLE = 10_000  # examples of a task that its mean length is taken from


@dataclass(frozen=True)
class TaskPlan:
    """A task's part of a run.

    Attributes:
        rows: training examples there are, less those set aside or left out.
        set_aside, left_out: training rows that cannot be used, and that show evaluation rows.
        validation: examples that are scored.
        examples: of the task in the whole run, as expected; more than `rows`: some come again.
        tokens: of an example, on average.
    """

    name: str
    family: str
    rows: int
    set_aside: int
    left_out: int
    validation: int
    examples: int
    tokens: float


@dataclass(frozen=True)
class RunPlan:
    """A run before it is one.

    Attributes:
        memory: bytes by what takes them: weights, gradients, optimizer, activations; see `memory_of`.
        seconds: of the whole run, scoring included; data that is prepared already is in no need of any.
        update_seconds: of one update, the median of those that were `timed`.
    """

    tasks: list[TaskPlan]
    updates: int
    examples_per_update: int
    tokens_per_update: int
    parameters: int
    trainable: int
    device: str
    memory: dict[str, int]
    seconds: float
    update_seconds: float
    timed: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison before it is one: cells in all and those that the folder holds, what is left out, and the time of the others,
    one after another. `cell` is a fine-tuning of the first task from the base, with the most labels."""

    cells: int
    there: int
    left_out: list[str]
    examples: int  # of the cells that are missing
    seconds: float
    cell: RunPlan

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_train(
    suite: Suite | str | Path,
    model: str | Path,
    *,
    config: Config | Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    against: Sequence[Task] = (),
    skip_missing: bool = False,
    display: Display | None = None,
) -> RunPlan:
    """What `train` would do with these arguments; its errors too."""
    display = display or Display(quiet=True)
    prepared = prepare_suite(suite, model, config, data_root, cache, against, skip_missing, display)
    return plan_fit(
        prepared.build(model, display),
        prepared.tokenizer,
        prepared.tasks,
        prepared.validation,
        prepared.config,
        prepared.accounts,
    )


def plan_finetune(
    task: Task | str | Path,
    start: str | Path,
    *,
    labels: int | float | None = None,
    keep_head: bool = True,
    config: Config | Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    display: Display | None = None,
) -> RunPlan:
    """What `finetune` would do with these arguments; its errors too."""
    prepared, examples, settings = prepare_tuning(
        task, start, labels, config, data_root, cache, display or Display(quiet=True)
    )  # fmt: skip
    name, family = prepared.opened.task.name, prepared.opened.family
    model, _ = build(prepared, start, settings, keep_head)
    watched = {name: prepared.selection} if prepared.selection else {}
    return plan_fit(
        model, prepared.tokenizer, [TaskData(name, family, examples)], watched, settings, prepared.accounts, len(prepared.scored)
    )


def plan_compare(
    tasks: Sequence[Task | str | Path],
    start: str | Path | Start,
    out: str | Path,
    *,
    base: str | Path | None = None,
    arms: Mapping[str, str | Path | Start] | None = None,
    labels: Sequence[int | float | None] = LABELS,
    seeds: int = SEEDS,
    grid: Sequence[float] = GRID,
    config: Config | Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    display: Display | None = None,
) -> ComparisonPlan:
    """What `compare` would do with these arguments; its errors too, but for those about the folder."""
    plan, bench, accounts = plan_comparison(
        tasks, start, base, arms, TREATED, labels, seeds, grid, TUNING_SEEDS, config, data_root, cache,
        display or Display(quiet=True),
    )  # fmt: skip
    # Which rate will be chosen is not known, and has no part in what a cell costs.
    rates = {(task, count): plan["grid"][0] for task, entry in plan["tasks"].items() for count in entry["labels"].values()}
    cells = [*tuning_cells(plan, bench), *compared_cells(plan, bench, rates)]
    done = {record.get("digest") for record in read_records(Path(out) / "results.jsonl")}
    missing = [cell for cell in cells if cell.digest not in done]

    first = max((cell for cell in cells if cell.task == next(iter(plan["tasks"]))), key=lambda cell: cell.labels)
    prepared = bench.read(first.task, first.start, Display(quiet=True))
    settings = bench.config(first.labels, first.seed, first.learning_rate)
    name, family = first.task, prepared.opened.family
    model, _ = build(prepared, first.start, settings, keep_head=True)
    data = [TaskData(name, family, prepared.examples(first.labels, first.seed))]
    cell = plan_fit(model, prepared.tokenizer, data, {}, settings, accounts, len(prepared.scored))

    learned = scored = 0
    for one in missing:
        mixture = settings.mixture
        updates = bench.config(one.labels, one.seed, one.learning_rate).train.updates
        per_epoch = one.labels * settings.train.epochs
        learned += updates * mixture.sub_batches * mixture.sub_batch_size if updates else round(per_epoch)
        scored += len(bench.read(one.task, one.start, Display(quiet=True)).scored)
    seconds = (learned + SCORING * scored) * cell.update_seconds / cell.examples_per_update
    return ComparisonPlan(len(cells), len(cells) - len(missing), plan["left_out"], learned, seconds, cell)


def plan_fit(
    model: MultiTask,
    tokenizer: Tokenizer,
    tasks: Sequence[TaskData],
    validation: Mapping[str, Sequence[Encoded]],
    config: Config,
    accounts: Sequence[Account] = (),
    scored: int = 0,
) -> RunPlan:
    """What `fit` would do with these arguments, from the first updates of it, one that warms up and at most three that are timed.
    The model is changed, and of no use afterwards.

    Args:
        accounts: what became of the tasks' rows.
        scored: further examples that are scored once at the end.

    Raises:
        InputError: there are several processes; memory ran out.
    """
    if launcher.count() > 1:
        raise InputError("--dry-run is for one process; give the same command without torchrun or accelerate launch")
    settings = config.train
    accelerator = ranks.Process(precision_of(settings), settings.rank_timeout)
    model.to(accelerator.device)
    model.balancing = balancing_of(config.objective, model).to(accelerator.device)
    mixture = make_mixture([len(task.store) for task in tasks], config)
    optimizer, layout = make_optimizer(model, config.optimizer), model.layout(tokenizer)
    examples_per_update = config.mixture.sub_batches * config.mixture.sub_batch_size

    def batches_of(number: int) -> list[Batch]:
        drawn = draw(mixture, number % mixture.num_updates, tasks, tokenizer, config.objective)
        return micro_batches(drawn, settings.token_budget, layout)

    def step(batches: Sequence[Batch]) -> float:
        started = time.perf_counter()
        update(model, optimizer, batches, config.optimizer.clip, accelerator, config.objective)
        return time.perf_counter() - started

    # With recomputation little is kept that could be measured: a small micro-batch is measured without.
    batches = batches_of(0)
    measured = (min if settings.gradient_checkpointing else max)(batches, key=lambda batch: batch.padded)
    kept = Kept(model)
    with torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor):
        step([measured])
    if settings.gradient_checkpointing:
        model.backbone.checkpoint_gradients()
    times = [step(batches)]
    while len(times) <= TIMED and sum(times) < ENOUGH:
        times.append(step(batches_of(len(times))))
    times = times[1:] or times

    epochs = mixture.epochs if mixture.updates is None else mixture.updates / mixture.updates_per_epoch
    of_task = [
        task_plan(task, validation.get(task.name, ()), accounts, epochs * contributed)
        for task, contributed in zip(tasks, mixture.contributions, strict=True)
    ]
    drawn = sum(task.examples for task in of_task)
    tokens = examples_per_update * sum(task.examples * task.tokens for task in of_task) / max(drawn, 1)
    rounds = 1 if not settings.evaluate_every else -(-mixture.num_updates // settings.evaluate_every)
    to_score = rounds * sum(task.validation for task in of_task) + scored
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    full = min(settings.token_budget, sum(batch.padded for batch in batches))
    seconds = median(times)
    return RunPlan(
        of_task, mixture.num_updates, examples_per_update, round(tokens), sum(one.numel() for one in model.parameters()),
        trainable, str(accelerator.device), memory_of(model, kept.bytes / measured.padded, full, settings.gradient_checkpointing),
        mixture.num_updates * seconds + SCORING * to_score * seconds / examples_per_update, seconds, len(times),
    )  # fmt: skip


def task_plan(task: TaskData, validation: Sequence[Encoded], accounts: Sequence[Account], examples: float) -> TaskPlan:
    rows = len(task.store)
    some = np.unique(np.linspace(0, rows - 1, min(rows, SAMPLE)).round().astype(np.int64))
    account = next((one for one in accounts if (one.task, one.role) == (task.name, "train")), None)
    set_aside, left_out = (account.counts.get(rule, 0) if account else 0 for rule in (SET_ASIDE, LEAK))
    return TaskPlan(
        task.name, task.family.kind, rows, set_aside, left_out, len(validation), round(examples),
        round(float(task.costs(some).mean()), 1),
    )  # fmt: skip


class Kept:
    """Adds up what autograd keeps of a forward pass for the backward one: each storage once, and weights not at all."""

    def __init__(self, model: MultiTask) -> None:
        self.bytes = 0
        self._seen = {one.untyped_storage().data_ptr() for one in model.parameters()}

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def memory_of(model: MultiTask, bytes_per_token: float, tokens: int, recomputed: bool) -> dict[str, int]:
    """Bytes that training takes at its peak, beside what the interpreter, the libraries and the data take (0.5 to 1 GB).

    weights + gradients + optimizer + activations, where gradients are as large as the weights that are trained and AdamW has two
    numbers for each (so 16 bytes a weight in float32); activations are what autograd keeps per token (measured) x the tokens of a
    full micro-batch. Recomputed layer by layer (train.gradient_checkpointing), they are those of one layer and the states between
    layers. A test holds this to within a factor of 1.5 of what a process was seen to have in use; on CPUs the C library may hold
    on to much that is no longer (364 MB were seen where 106 were in use). Not in it: gradients that objective.balancing keeps
    apart by task.
    """
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    trained = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    activations = bytes_per_token * tokens
    if recomputed:
        config = model.backbone.trunk.config
        activations = activations / config.num_hidden_layers + 4 * config.hidden_size * config.num_hidden_layers * tokens
    return {"weights": weights, "gradients": trained, "optimizer": 2 * trained, "activations": round(activations)}
