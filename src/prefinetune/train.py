"""The loop: one update after another, and nothing hidden. `train` is the pre-finetuning stage; `fit` is the loop that it and
fine-tuning share; `update` is one optimizer step, the method in one function."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from prefinetune.batch import Batch, Drawn, micro_batches
from prefinetune.checkpoint import load_checkpoint, load_optimizer_state, save_checkpoint
from prefinetune.config import Config, DataSettings, ObjectiveSettings, OptimizerSettings, TrainSettings, make_config
from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.evaluate import Evaluation, evaluate, mean_score, readable
from prefinetune.export import load_head, save_trunk_and_heads
from prefinetune.families import Encoded, Examples, Family, Segment
from prefinetune.families.base import plain
from prefinetune.leaks import evaluation_splits, leave_out, split_name
from prefinetune.mixture import Mixture, hash_key, shares
from prefinetune.model import MultiTask, check_tasks, load_backbone, read_config
from prefinetune.objective import draw_noise, draw_noised, example_weights, regularized, scaled, weighted_sum
from prefinetune.quarantine import Account, write_quarantine
from prefinetune.results import RunFolder
from prefinetune.sources import OpenTask, open_tasks
from prefinetune.store import Store, build_store, encode_split
from prefinetune.task import Suite, Task, read_suite
from prefinetune.tokenizer import Tokenizer, load_tokenizer

NO_R3F = ObjectiveSettings()


@dataclass
class TaskData:
    """A task as the loop sees it: something with a length that gives example i, and the family that knows what to do with it."""

    name: str
    family: Family
    store: Examples


@dataclass
class Update:
    """What one update did."""

    loss: float  # mean over sub-batches of their mean scaled loss; the objective, where there is no divergence
    divergence: float | None  # the same mean of scaled divergences (R3F), over the examples that have one
    loss_by_task: dict[str, float]  # mean scaled loss
    examples_by_task: dict[str, int]
    tokens_by_task: dict[str, int]  # real ones
    grad_norm: float
    examples: int
    tokens: int  # real ones
    padded: int  # with padding
    bad: list[tuple[str, int]]  # (task, row) of examples whose loss was not finite

    @property
    def skipped(self) -> bool:
        """Whether nothing was stepped, as something was not finite."""
        return bool(self.bad) or not math.isfinite(self.grad_norm)

    @property
    def culprits(self) -> str:
        """What was not finite, in words."""
        return ", ".join(f"{task} row {row}" for task, row in self.bad[:5]) or "the gradient's norm"


def draw(
    mixture: Mixture,
    number: int,
    tasks: Sequence[TaskData],
    tokenizer: Tokenizer,
    objective: ObjectiveSettings = NO_R3F,
) -> list[Drawn]:
    """The examples of update `number`, each with its weight in the whole update, and whether it has a noised pass."""
    sub_batches = mixture.update(number)
    sizes = [len(sub_batch.examples) for sub_batch in sub_batches]
    noised = iter(draw_noised(sum(sizes), objective, np.random.default_rng([mixture.seed, 6, number])).tolist())
    drawn = []
    for sub_batch, weight in zip(sub_batches, example_weights(sizes), strict=True):
        task, generator = tasks[sub_batch.task], np.random.default_rng(sub_batch.key)
        for index in sub_batch.examples.tolist():
            example = task.family.draw(task.store[index], tokenizer, generator)
            drawn.append(Drawn(example, task.name, task.family, weight, next(noised)))
    return drawn


def update(
    model: MultiTask,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    clip: float,
    accelerator: Accelerator,
    objective: ObjectiveSettings = NO_R3F,
) -> Update:
    """One optimizer step over all micro-batches of an update (MUPPET 3.2 and 3.3).

    Every example adds weight x loss / log(outcomes) to one sum, whose gradient is accumulated over micro-batches, clipped
    once, and stepped once. With R3F, its loss is joined by the divergence between the prediction and that of a noised copy in the
    same forward pass. A head that no example used keeps gradient None, so that the optimizer does not move it.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    noise = partial(draw_noise, settings=objective) if objective.r3f else None
    parts: list[Part] = []
    for batch in batches:
        batch = batch.to(accelerator.device)
        total = torch.zeros((), device=accelerator.device)
        with accelerator.autocast():
            for segment, output, noised in model(batch, noise):
                family = segment.family
                outcomes = family.outcomes(output, segment)
                losses = scaled(family.loss(output, segment), outcomes)  # [e]
                divergences = None if noised is None else scaled(family.divergence(output, noised, segment), outcomes)
                total = total + weighted_sum(regularized(losses, divergences, objective), segment.weights)
                parts.append(Part(segment, losses.detach(), None if divergences is None else divergences.detach()))
        accelerator.backward(total)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    report = read_losses(parts, float(norm), batches)
    if not report.skipped:
        optimizer.step()
    return report


class Part(NamedTuple):
    """What one segment of an update came to."""

    segment: Segment
    losses: torch.Tensor  # [e]
    divergences: torch.Tensor | None  # [e]


def read_losses(parts: Sequence[Part], norm: float, batches: Sequence[Batch]) -> Update:
    """Per-example losses of an update as numbers: one transfer from the device, after all work was queued."""
    losses = torch.cat([part.losses for part in parts]).double().cpu().numpy()
    weights = torch.cat([part.segment.weights for part in parts]).double().cpu().numpy()
    apart = [torch.full_like(part.losses, math.nan) if part.divergences is None else part.divergences for part in parts]
    divergences = torch.cat(apart).double().cpu().numpy()
    diverging = np.concatenate([np.full(len(part.losses), part.divergences is not None) for part in parts])
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    examples_by_task: Counter[str] = Counter()
    tokens_by_task: Counter[str] = Counter()
    bad, at = [], 0
    finite = np.isfinite(losses) & (np.isfinite(divergences) | ~diverging)
    for segment, mine, _ in parts:
        examples_by_task[segment.task] += len(segment.examples)
        tokens_by_task[segment.task] += segment.tokens
        here = slice(at, at + len(mine))
        at += len(mine)
        sums[segment.task] += losses[here] @ weights[here], weights[here].sum()
        bad += [(segment.task, segment.examples[i].source) for i in np.flatnonzero(~finite[here])]
    return Update(
        loss=float(losses @ weights),
        divergence=float(np.average(divergences[diverging], weights=weights[diverging])) if diverging.any() else None,
        loss_by_task={task: float(total / weight) for task, (total, weight) in sums.items()},
        examples_by_task=dict(examples_by_task),
        tokens_by_task=dict(tokens_by_task),
        grad_norm=norm,
        examples=len(losses),
        tokens=sum(batch.tokens for batch in batches),
        padded=sum(batch.padded for batch in batches),
        bad=bad,
    )


def make_optimizer(model: MultiTask, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW (fused), weight decay on matrices only; a group's `peak` is its highest rate."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        groups[name.startswith("heads."), parameter.ndim > 1].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay if is_matrix else 0.0,
                "peak": (settings.head_learning_rate or settings.learning_rate) if is_head else settings.learning_rate,
            }
            for (is_head, is_matrix), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )


def schedule(number: int, total: int, warmup: float, power: float) -> float:
    """The rate of update `number` as a share of its peak: linear warm-up, then polynomial decay to zero."""
    rising = max(1, round(warmup * total))
    if number < rising and warmup > 0:
        return (number + 1) / rising
    return (1 - (number - rising * (warmup > 0)) / max(1, total - rising * (warmup > 0))) ** power


def autocast_precision(settings: TrainSettings) -> str:
    """bfloat16 where the hardware multiplies it faster: GPUs that know it. On CPUs it measured slower than float32."""
    if settings.precision == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return {"float32": "no", "bfloat16": "bf16"}[settings.precision]


@dataclass
class Progress:
    """All that a run must remember beside weights and optimizer; small, and written with every checkpoint."""

    updates: int = 0
    examples: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0  # spent in updates
    best_score: float | None = None
    best_update: int = 0
    evaluations_since_best: int = 0
    stopped: bool = False
    window: dict[str, Any] = field(default_factory=dict)  # sums since the last line of metrics

    def add(self, report: Update, seconds: float) -> None:
        self.updates += 1
        self.examples += report.examples
        self.tokens += report.tokens
        self.seconds += seconds
        self.skipped += report.skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if report.skipped else 0

    def judge(self, score: float, patience: int | None) -> bool:
        """Take note of an evaluation's mean score; whether it is the best so far."""
        better = self.best_score is None or score > self.best_score
        if better:
            self.best_score, self.best_update = score, self.updates
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        self.stopped = patience is not None and self.evaluations_since_best >= patience
        return better


@dataclass
class Fit:
    """What `fit` gives back; the model it was given holds the weights."""

    progress: Progress
    evaluation: Evaluation  # of the validation examples at the end (of the best weights, with patience)

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        return self.evaluation.scores


def fit(
    model: MultiTask,
    tokenizer: Tokenizer,
    tasks: Sequence[TaskData],
    validation: Mapping[str, Sequence[Encoded]],
    config: Config,
    folder: RunFolder | None = None,
    display: Display | None = None,
    resume: bool = False,
) -> Fit:
    """Run all updates of a configuration; the model is changed in place.

    Args:
        validation: examples to score by task; may be empty.
        folder: where metrics and checkpoints go; None writes nothing.
        resume: go on from the newest checkpoint in `folder`.

    Raises:
        InputError: `train.max_skipped` updates in a row had losses that are not finite.
    """
    display, settings = display or Display(quiet=True), config.train
    accelerator = Accelerator(mixed_precision=autocast_precision(settings))
    model.to(accelerator.device)
    layout = model.layout(tokenizer)
    mixture = make_mixture([len(task.store) for task in tasks], config)
    optimizer = make_optimizer(model, config.optimizer)
    progress, best, found = Progress(), None, Evaluation()
    if resume and folder and (checkpoint := load_checkpoint(folder.checkpoints)):
        model.load_unique_state(checkpoint.model)
        load_optimizer_state(model, optimizer, checkpoint.optimizer)
        progress, best = Progress(**checkpoint.state), checkpoint.best
        folder.forget_metrics_after(progress.updates)
        display.say(f"going on from update {progress.updates} of {mixture.num_updates}")
    window = Window(**progress.window)

    def save() -> None:
        if folder and settings.checkpoint_every:
            state = asdict(progress) | {"window": asdict(window)}
            save_checkpoint(folder.checkpoints, progress.updates, model, optimizer, state, best, settings.keep_checkpoints)

    with display.training(mixture.num_updates, progress.updates):
        while progress.updates < mixture.num_updates and not progress.stopped:
            started, number = time.perf_counter(), progress.updates
            # Dropout is a function of (seed, update) like all else, so there is no generator state to save.
            torch.manual_seed(int(hash_key(config.seed, 4, number) >> np.uint64(1)))
            share = schedule(number, mixture.num_updates, config.optimizer.warmup, config.optimizer.decay_power)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            drawn = draw(mixture, number, tasks, tokenizer, config.objective)
            batches = micro_batches(drawn, settings.token_budget, layout)
            report = update(model, optimizer, batches, config.optimizer.clip, accelerator, config.objective)
            seconds = time.perf_counter() - started
            progress.add(report, seconds)
            display.updated(progress.updates, report)

            if report.skipped:
                display.say(f"update {progress.updates} skipped: not finite: {report.culprits}")
                if progress.skipped_in_a_row >= settings.max_skipped:
                    save()
                    raise InputError(
                        f"{progress.skipped_in_a_row} updates in a row were not finite (last: {report.culprits}); a lower "
                        "optimizer.learning_rate, or a look at these rows, should help"
                    )
            else:
                window.add(report, seconds)
            last = progress.updates == mixture.num_updates
            if progress.updates % settings.log_every == 0 or last:
                record = window.record(progress, mixture, config.optimizer.learning_rate * share)
                if folder:
                    folder.add_metrics(record)
                display.logged(record)
                window = Window()
            if validation and settings.evaluate_every and (progress.updates % settings.evaluate_every == 0 or last):
                found = evaluate(model, tokenizer, validation, 2 * settings.token_budget)
                mean = mean_score(found.scores, model.families)
                display.evaluated(progress.updates, found.scores, mean)
                if progress.judge(mean, settings.patience) and settings.patience:
                    best = {name: tensor.clone() for name, tensor in model.unique_state().items()}
            if last or progress.stopped or (settings.checkpoint_every and progress.updates % settings.checkpoint_every == 0):
                save()
    if best is not None:
        model.load_unique_state(best)
    if validation and (best is not None or not found.scores):
        display.say(f"scoring {sum(map(len, validation.values())):,} validation examples of {len(validation)} tasks")
        found = evaluate(model, tokenizer, validation, 2 * settings.token_budget)
    return Fit(progress, found)


@dataclass
class Window:
    """Sums over the updates since the last line of metrics."""

    updates: int = 0
    loss: float = 0.0
    divergence: float = 0.0
    diverging: int = 0  # updates that had one
    grad_norm: float = 0.0
    examples: int = 0
    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0
    by_task: dict[str, list[Any]] = field(default_factory=dict)  # task -> sums of [loss, updates it was in, examples, tokens]

    def add(self, report: Update, seconds: float) -> None:
        self.updates += 1
        self.loss += report.loss
        if report.divergence is not None:
            self.divergence += report.divergence
            self.diverging += 1
        self.grad_norm += report.grad_norm
        self.examples += report.examples
        self.tokens += report.tokens
        self.padded += report.padded
        self.seconds += seconds
        for task, loss in report.loss_by_task.items():
            sums = self.by_task.setdefault(task, [0.0, 0, 0, 0])
            added = (loss, 1, report.examples_by_task[task], report.tokens_by_task[task])
            self.by_task[task] = [old + new for old, new in zip(sums, added, strict=True)]

    def record(self, progress: Progress, mixture: Mixture, rate: float) -> dict[str, Any]:
        """One line of metrics.jsonl: means over the window, counters over the run; by task, what the window added."""
        count, seconds = max(self.updates, 1), max(self.seconds, 1e-9)
        return {
            "step": progress.updates,
            "epoch": round(progress.updates / mixture.updates_per_epoch, 4),
            "loss": self.loss / count if self.updates else None,  # None: every update of the window was skipped
            **({"divergence": self.divergence / self.diverging} if self.diverging else {}),  # only with R3F
            "loss_by_task": {task: sums[0] / sums[1] for task, sums in sorted(self.by_task.items())},
            "examples_by_task": {task: sums[2] for task, sums in sorted(self.by_task.items())},
            "tokens_by_task": {task: sums[3] for task, sums in sorted(self.by_task.items())},
            "lr": rate,
            "grad_norm": self.grad_norm / count,
            "examples": progress.examples,
            "tokens": progress.tokens,
            "padding": 1 - self.tokens / self.padded if self.padded else 0.0,
            "examples_per_second": self.examples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "skipped": progress.skipped,
        }


def make_mixture(sizes: Sequence[int], config: Config) -> Mixture:
    settings = config.mixture
    return Mixture(
        sizes=tuple(sizes),
        contributions=tuple(shares(sizes, settings.sampling, settings.cap, settings.temperature).tolist()),
        sub_batches=settings.sub_batches,
        sub_batch_size=settings.sub_batch_size,
        order=settings.order,
        seed=config.seed,
        updates=config.train.updates,
        epochs=config.train.epochs,
    )


# ---- the pre-finetuning stage


@dataclass
class Run:
    """A finished pre-finetuning stage."""

    folder: Path
    scores: dict[str, dict[str, float]]
    updates: int
    examples: int
    seconds: float

    @property
    def model(self) -> Path:
        """The trunk, as a plain Transformers folder."""
        return self.folder / "model"


def train(
    suite: Suite | str | Path,
    model: str | Path,
    out: str | Path,
    *,
    config: Config | Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    against: Sequence[Task] = (),
    skip_missing: bool = False,
    display: Display | None = None,
) -> Run:
    """Pre-finetune a model on a suite.

    Args:
        suite: a Suite, or the path of a suite file.
        model: a hub name, a folder, or the folder of an earlier run.
        out: the run's folder; see docs/design.md for what it holds at the end.
        config: settings that differ from the defaults and the suite's mixture; a whole Config replaces both.
        data_root: a mirror of hub datasets, DATA_ROOT/SLUG/SPLIT.parquet.
        cache: where token stores are kept.
        resume: go on with the run that `out` holds.
        against: further tasks whose evaluation rows must not be trained on, such as those the model will be judged by.
        skip_missing: go on without the datasets that cannot be found.

    Raises:
        InputError: anything in suite, data, model or settings that cannot be used.
    """
    display = display or Display(quiet=True)
    suite = suite if isinstance(suite, Suite) else read_suite(suite)
    if not isinstance(config, Config):
        config = make_config({"mixture": dict(suite.mixture)}, config or {})
    for task in suite:
        if task.evaluation_only:
            raise InputError(f"task {task.name!r} is for evaluation only and must not be trained on; take it out of the suite")
    name = str(model_folder(model))
    tokenizer = model_tokenizer(name, suite.tasks, config.data)
    opened = open_tasks(
        suite, data_root, max_rows=config.data.max_rows, skip_missing=skip_missing, needed="train", say=display.say,
        bad_rows=config.data.bad_rows, cache=cache,
    )  # fmt: skip
    suite = Suite(suite.name, tuple(one.task for one in opened), suite.mixture)
    protected = open_tasks(against, data_root, say=display.say, bad_rows=config.data.bad_rows, cache=cache) if against else []
    opened, leaks = leave_out(opened, protected, config.data.leaks, Path(cache) if cache else None, display)
    stores = prepare(opened, tokenizer, Path(cache) if cache else None, display)
    validation = {one.task.name: encode_split(one, "validation", tokenizer, config.train.evaluation_rows) for one in opened}
    families = {one.task.name: one.family for one in opened}
    accounts = [(store.account, examples.account) for store, examples in zip(stores, validation.values(), strict=True)]

    folder = RunFolder(out)
    resolved = [describe(one, store, rows) for one, store, rows in zip(opened, stores, accounts, strict=True)]
    identity = {
        "kind": "train",
        "model": name,
        "settings": config.digest(),
        "data": digest_of([(entry["name"], entry["store"]["digest"]) for entry in resolved]),
    }
    recorded = {record["task"]: record for record in folder.results() if record["digest"] == digest_of(identity)}
    if resume and len(recorded) == len(suite):
        display.say(f"{folder.path} is complete; nothing is left to do")
        last, scores = next(iter(recorded.values())), {task: record["scores"] for task, record in recorded.items()}
        return Run(folder.path, scores, last["updates"], last["examples"], last["seconds"])
    folder.start(identity, config.to_yaml(), {"name": suite.name, "model": name, "tasks": resolved}, resume)
    if leaks:
        compared = {split_name(one, role): one.digest(role) for one, role in evaluation_splits((*opened, *protected))}
        folder.write_leaks({**leaks.as_dict(), "left_out": config.data.leaks == "drop", "compared_with": compared})
    write_quarantine(folder.path, chain.from_iterable(accounts))
    report_cuts(resolved, chain.from_iterable(accounts), display)

    backbone = load_backbone(name, config.model.attention_dropout, config.objective.spectral_norm)
    multitask = MultiTask(backbone, families, config.seed)
    for task in suite:  # an earlier run's heads go on where they fit
        load_head(multitask, task.name, Path(model))
    tasks = [TaskData(one.task.name, one.family, store) for one, store in zip(opened, stores, strict=True)]
    result = fit(multitask, tokenizer, tasks, validation, config, folder, display, resume)

    save_trunk_and_heads(multitask, tokenizer, folder.path)
    for task in suite:
        predictions = result.evaluation.predictions[task.name]
        folder.write_predictions(task.slug, readable(families[task.name], validation[task.name], predictions))
    progress = result.progress
    shared = {
        "arm": "train", "base": name, "labels": "all", "seed": config.seed, "split": "validation", "examples": progress.examples,
        "updates": progress.updates, "seconds": round(progress.seconds, 1), "digest": digest_of(identity),
    }  # fmt: skip
    for task_name, scores in result.scores.items():
        if task_name not in recorded:
            family = families[task_name]
            own = {"task": task_name, "family": family.kind, "metric": family.metric, "score": scores[family.metric]}
            folder.add_result({**own, "scores": scores, "rows": len(validation[task_name]), **shared})
    return Run(folder.path, result.scores, progress.updates, progress.examples, progress.seconds)


def model_tokenizer(name: str, tasks: Sequence[Task], settings: DataSettings) -> Tokenizer:
    """A model's tokenizer, when it is clear that the model can learn these tasks.

    Raises:
        InputError: it cannot, or there is no such model or tokenizer.
    """
    architecture = read_config(name)
    tokenizer = load_tokenizer(name, settings.max_length, architecture, settings.max_target_length)
    check_tasks(tasks, architecture, tokenizer, name)
    return tokenizer


def prepare(
    opened: Sequence[OpenTask],
    tokenizer: Tokenizer,
    cache: Path | None,
    display: Display,
) -> list[Store]:
    """The training store of every task; each is looked at before the first long work starts."""
    for one in opened:
        if "train" not in one.roles:
            raise InputError(f"task {one.task.name!r}: no train split; there are {', '.join(one.source.splits())}")
    total = sum(len(one.split("train")) for one in opened)
    with display.counting("rows prepared", total) as advance:
        return [build_store(one, "train", tokenizer, cache, advance) for one in opened]


def describe(opened: OpenTask, store: Store, accounts: Iterable[Account]) -> dict[str, Any]:
    """A task as it was resolved, for suite.yaml."""
    task = opened.task
    return {
        "name": task.name,
        "source": plain(opened.source.describe()),
        "splits": {role: opened.names.get(role, "held out of train") for role in opened.roles},
        opened.family.kind: opened.family.settings(),
        "tags": sorted(task.tags),
        "license": task.license,
        "cite": task.cite,
        "rows": {account.role: account.as_dict() for account in accounts},
        "store": store.summary,
    }


def report_cuts(resolved: Sequence[Mapping[str, Any]], accounts: Iterable[Account], display: Display) -> None:
    """Say what was cut or set aside, where someone may want to act on it."""
    for account in accounts:
        if line := account.told():
            display.say(line)
    for count, what in (
        ("truncated", "texts longer than the model reads"),
        ("outputs_cut", "targets longer than data.max_target_length"),
    ):
        cut = {entry["name"]: entry["store"][count] / entry["store"]["examples"] for entry in resolved}
        most = sorted((share, name) for name, share in cut.items() if share >= 0.01)[::-1]
        if most:
            shown = ", ".join(f"{name} {share:.0%}" for share, name in most[:6])
            display.say(f"{what} were cut in {len(most)} tasks: {shown}")


def model_folder(model: str | Path) -> str | Path:
    """Where weights are: a run's folder stands for the trunk in it."""
    inner = Path(model) / "model"
    return inner if (Path(model) / "run.json").exists() and inner.is_dir() else model


def digest_of(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
