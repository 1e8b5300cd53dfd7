"""The loop: one update after another, and nothing hidden. `train` is the pre-finetuning stage; `fit` is the loop that it and
fine-tuning share; what one update does is in update.py."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from prefinetune import launcher, ranks
from prefinetune.balancing import balancing_of
from prefinetune.batch import Batch, micro_batches
from prefinetune.card import write_card
from prefinetune.checkpoint import CannotSave, load_checkpoint, load_optimizer_state, save_checkpoint
from prefinetune.config import Config, OptimizerSettings, TrainSettings
from prefinetune.display import Display
from prefinetune.emissions import measured
from prefinetune.errors import InputError
from prefinetune.evaluate import Evaluation, evaluate, main_scores, mean_score, readable
from prefinetune.export import save_trunk_and_heads
from prefinetune.families import Encoded
from prefinetune.files import digest_of
from prefinetune.gradients import Sampler
from prefinetune.leaks import evaluation_splits, split_name
from prefinetune.lora import save_adapter
from prefinetune.memory import Memory, Work
from prefinetune.mixture import Mixture, hash_key, shares
from prefinetune.model import MultiTask, hub_commit
from prefinetune.notice import Notice, Preempted
from prefinetune.prepare import PreparedSuite, open_kept_out, prepare_suite, report_cuts
from prefinetune.quarantine import write_quarantine
from prefinetune.results import RunFolder
from prefinetune.store import iter_ahead
from prefinetune.task import Suite, Task
from prefinetune.tokenizer import Tokenizer
from prefinetune.update import Place, TaskData, Update, draw, update


def make_optimizer(model: MultiTask, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW (fused), weight decay on matrices only; a group's `peak` is its highest rate."""
    peaks = {
        "backbone": settings.learning_rate,
        "heads": settings.head_learning_rate or settings.learning_rate,
        "balancing": settings.uncertainty_learning_rate,
    }
    groups: dict[tuple[str, bool, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():  # sharded ones apart: one step takes either kind
        if parameter.requires_grad:
            groups[name.partition(".")[0], parameter.ndim > 1, ranks.is_piece(parameter)].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay if is_matrix else 0.0,
                "peak": peaks[part],
            }
            for (part, is_matrix, _), parameters in groups.items()
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
    """bfloat16 where the hardware multiplies it faster: GPUs that know it. On CPUs that depends on the cores
    (docs/performance.md), and float32 is taken."""
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
    accelerator: Accelerator

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
    kept_out: Sequence[TaskData] = (),
    targets: Sequence[str] = (),
) -> Fit:
    """Run all updates of a configuration; the model is changed in place.

    Args:
        validation: examples to score by task; may be empty.
        folder: where metrics and checkpoints go; None writes nothing.
        resume: go on from the newest checkpoint in `folder`.
        kept_out: tasks that are not trained on, whose gradients are sampled with those of `tasks` (train.affinity_every).
        targets: names of those, and of `tasks`, that the suite shall be judged by.

    Raises:
        InputError: `train.max_skipped` updates in a row had losses that are not finite; memory ran out; a checkpoint could not
            be written.
        Preempted: the process was told to go (SIGTERM, SIGUSR1, Ctrl-C) and there is a folder; what was done is saved in it.
    """
    display, settings = display or Display(quiet=True), config.train
    accelerator = ranks.join(autocast_precision(settings), settings.rank_timeout)
    place = Place(accelerator.process_index, accelerator.num_processes)
    model.to(accelerator.device)
    if settings.gradient_checkpointing:
        model.backbone.checkpoint_gradients()
    mixture = make_mixture([len(task.store) for task in tasks], config)
    ranks.shard(model, accelerator)
    model.balancing = balancing_of(config.objective, model).to(accelerator.device)
    if place.ranks > 1:
        display.say(f"{place.ranks} processes{', each with a piece of the trunk' if ranks.is_sharded(model.backbone) else ''}")
    optimizer = make_optimizer(model, config.optimizer)
    progress, best = restore(model, optimizer, folder, accelerator) if resume and folder else (Progress(), None)
    if progress.updates:
        display.say(f"going on from update {progress.updates} of {mixture.num_updates}")
    if folder:
        folder.forget_metrics_after(progress.updates)  # also those of a run that had no checkpoint yet
        folder.track(config, progress.updates, display.say)
    window, found = Window(**progress.window), Evaluation()
    memory = Memory(settings.token_budget, settings.halve_budget and not ranks.is_sharded(model.backbone))
    layout = model.layout(tokenizer)
    sampler = None
    if settings.affinity_every and folder:
        sampler = Sampler(model, tokenizer, tasks, kept_out, targets, mixture, config, accelerator)
        display.say(sampler.told())

    def save() -> None:
        if not folder:
            return
        state = asdict(progress) | {"window": asdict(window)}
        try:
            save_checkpoint(folder.checkpoints, progress.updates, model, optimizer, state, best, settings.keep_checkpoints)
        except CannotSave as error:
            if settings.on_failed_checkpoint == "stop":
                raise
            display.say(f"{error.problem}; going on without it")

    def prepare(number: int) -> Work:
        drawn, budget = draw(mixture, number, tasks, tokenizer, config.objective, place), memory.budget
        return Work(number, drawn, micro_batches(drawn, budget, layout), budget)

    def step(seed: int, batches: Sequence[Batch]) -> Update:
        torch.manual_seed(seed)
        return update(model, optimizer, batches, config.optimizer.clip, accelerator, config.objective)

    with (
        measured(folder.path if folder else None),
        display.training(mixture.num_updates, progress.updates),
        Notice("finishing the update, then saving", active=folder is not None) as notice,
        ThreadPoolExecutor(1) as ahead,
    ):
        started = time.perf_counter()
        # An update is drawn and laid out while the one before is computed.
        numbers = range(progress.updates, mixture.num_updates if not progress.stopped else progress.updates)
        for work in iter_ahead(ahead, map(prepare, numbers)):
            share = schedule(work.number, mixture.num_updates, config.optimizer.warmup, config.optimizer.decay_power)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            # Dropout is a function of (seed, update, process) like all else, so there is no generator state to save.
            seed = int(hash_key(config.seed, 4, work.number, *([place.rank] if place.rank else [])) >> np.uint64(1))
            sample = None
            if sampler and sampler.is_due(work.number):
                sample = sampler.sample(work.number, optimizer, memory.budget)
                started = time.perf_counter()
            report = memory.run(partial(step, seed), work, layout, display)
            seconds = time.perf_counter() - started
            progress.add(report, seconds)
            display.updated(progress.updates, report)

            if report.skipped:
                display.say(f"update {progress.updates} skipped: not finite: {report.culprits}")
            else:
                window.add(report, seconds)
                if sampler and sample and folder:
                    folder.add_affinity(sampler.record(sample, progress.updates, share, report.grad_norm))
            if progress.skipped_in_a_row >= settings.max_skipped:
                if settings.checkpoint_every:
                    save()
                raise InputError(
                    f"{progress.skipped_in_a_row} updates in a row were not finite (last: {report.culprits}); a lower "
                    "optimizer.learning_rate, or a look at these rows, should help"
                )
            last = progress.updates == mixture.num_updates
            if progress.updates % settings.log_every == 0 or last:
                record = window.record(progress, mixture, config.optimizer.learning_rate * share)
                if folder:
                    folder.add_metrics(record)
                display.logged(record)
                window = Window()
            if validation and settings.evaluate_every and (progress.updates % settings.evaluate_every == 0 or last):
                found = evaluate(model, tokenizer, validation, 2 * settings.token_budget, accelerator)
                mean = mean_score(found.scores, model.families)
                display.evaluated(progress.updates, found.scores, mean)
                if folder:
                    folder.add_scores(progress.updates, main_scores(found.scores, model.families))
                if progress.judge(mean, settings.patience) and settings.patience:
                    best = {name: tensor.clone() for name, tensor in model.unique_state().items()}
            leaving = ranks.anyone(notice.given is not None, accelerator)
            due = last or progress.stopped or progress.updates % (settings.checkpoint_every or mixture.num_updates) == 0
            if leaving or (settings.checkpoint_every and due):
                save()
            if leaving:
                done = f"{progress.updates:,} of {mixture.num_updates:,} updates are done and saved"
                raise Preempted(done, notice.given)
            if progress.stopped:
                break
            started = time.perf_counter()
    if best is not None:
        model.load_unique_state(best)
    if validation and (best is not None or not found.scores):
        display.say(f"scoring {sum(map(len, validation.values())):,} validation examples of {len(validation)} tasks")
        found = evaluate(model, tokenizer, validation, 2 * settings.token_budget, accelerator)
    return Fit(progress, found, accelerator)


def restore(
    model: MultiTask, optimizer: torch.optim.Optimizer, folder: RunFolder, accelerator: Accelerator
) -> tuple[Progress, dict[str, torch.Tensor] | None]:
    """Put model and optimizer back to the newest checkpoint of a run, if it has one; how far that was, and the best weights."""
    checkpoint = load_checkpoint(folder.checkpoints)
    ranks.agree("checkpoint", checkpoint.folder.name if checkpoint else None, accelerator)
    if checkpoint is None:
        return Progress(), None
    model.load_unique_state(checkpoint.model)
    load_optimizer_state(model, optimizer, checkpoint.optimizer)
    return Progress(**checkpoint.state), checkpoint.best


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
    weights: dict[str, list[Any]] = field(default_factory=dict)  # task -> sums of [weight, updates that gave one]

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
        for task, weight in report.weight_by_task.items():
            total, count = self.weights.get(task, (0.0, 0))
            self.weights[task] = [total + weight, count + 1]

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
            **(
                {"weight_by_task": {task: sums[0] / sums[1] for task, sums in sorted(self.weights.items())}}
                if self.weights
                else {}
            ),
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
    prepared = prepare_suite(suite, model, config, data_root, cache, against, skip_missing, display)
    suite, config, tokenizer = prepared.suite, prepared.config, prepared.tokenizer
    folder, identity = RunFolder(out), prepared.identity()
    if resume and len(recorded := recorded_results(folder, identity)) == len(suite):
        display.say(f"{folder.path} is complete; nothing is left to do")
        if not (folder.path / "model" / "README.md").exists():  # it was stopped just before
            write_card(folder.path, folder.path / "model", evidence=())
        last, scores = next(iter(recorded.values())), {task: record["scores"] for task, record in recorded.items()}
        return Run(folder.path, scores, last["updates"], last["examples"], last["seconds"])
    resolved = prepared.resolved()
    told = {"name": suite.name, "model": prepared.model, "commit": hub_commit(prepared.model), "tasks": resolved}
    with folder.claimed(identity, config.to_yaml(), told, resume):
        write_rows_left_out(folder, prepared)
        report_cuts(resolved, prepared.accounts, display)
        multitask = prepared.build(model, display)
        kept_out = open_kept_out(prepared.model, against, suite, tokenizer, config, data_root, cache, display)
        sampled = {task.name for task in (*prepared.tasks, *kept_out)}
        targets = [task.name for task in against if task.name in sampled]
        result = fit(
            multitask, tokenizer, prepared.tasks, prepared.validation, config, folder, display, resume, kept_out, targets
        )
        write_outcome(folder, prepared, multitask, result)
    progress = result.progress
    return Run(folder.path, result.scores, progress.updates, progress.examples, progress.seconds)


def recorded_results(folder: RunFolder, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By task, what results.jsonl holds of this very run."""
    return {record["task"]: record for record in folder.results() if record["digest"] == digest_of(identity)}


def write_rows_left_out(folder: RunFolder, prepared: PreparedSuite) -> None:
    """Which rows are not trained on: those that show evaluation rows, and those that could not be used."""
    if leaks := prepared.leaks:
        splits = evaluation_splits((*prepared.opened, *prepared.protected))
        compared = {split_name(one, role): one.digest(role) for one, role in splits}
        left_out = prepared.config.data.leaks == "drop"
        folder.write_leaks({**leaks.as_dict(), "left_out": left_out, "compared_with": compared})
    if launcher.is_main():
        write_quarantine(folder.path, prepared.accounts)


def write_outcome(folder: RunFolder, prepared: PreparedSuite, model: MultiTask, result: Fit) -> None:
    """Trunk, heads, predictions, scores and card; the scores last but for the card: they say that the rest is there."""
    families, validation, progress = prepared.families, prepared.validation, result.progress
    readables = {
        task: list(readable(families[task], validation[task], predictions))
        for task, predictions in result.evaluation.predictions.items()
    }
    readables = ranks.merged(readables, result.accelerator)
    save_trunk_and_heads(model, prepared.tokenizer, folder.path)
    save_adapter(model.backbone, folder.path / "adapter")
    for task in prepared.suite:
        folder.write_predictions(task.slug, readables[task.name])
    identity = prepared.identity()
    shared = {
        "arm": "train", "base": prepared.model, "labels": "all", "seed": prepared.config.seed, "split": "validation",
        "examples": progress.examples, "updates": progress.updates, "seconds": round(progress.seconds, 1),
        "digest": digest_of(identity),
    }  # fmt: skip
    there = recorded_results(folder, identity)
    for name, scores in result.scores.items():
        if name not in there:
            family = families[name]
            own = {"task": name, "family": family.kind, "metric": family.metric, "score": scores[family.metric]}
            folder.add_result({**own, "scores": scores, "rows": len(validation[name]), **shared})
    write_card(folder.path, folder.path / "model", evidence=())
