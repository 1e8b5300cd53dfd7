"""The loop that pre-finetuning and fine-tuning share: one update after another, and nothing hidden. What an update does is in
update.py."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator

from prefinetune import ranks
from prefinetune.balancing import balancing_of
from prefinetune.batch import Batch, micro_batches
from prefinetune.checkpoint import CannotSave, load_checkpoint, load_optimizer_state, save_checkpoint
from prefinetune.config import Config, OptimizerSettings, TrainSettings
from prefinetune.display import Display
from prefinetune.emissions import measured
from prefinetune.errors import InputError
from prefinetune.evaluate import Evaluation, evaluate, main_scores, mean_score
from prefinetune.families import Encoded
from prefinetune.gradients import Sampler
from prefinetune.memory import Memory, Work
from prefinetune.mixture import Mixture, hash_key, shares
from prefinetune.model import MultiTask
from prefinetune.notice import Notice, Preempted
from prefinetune.progress import Progress, Window
from prefinetune.results import RunFolder
from prefinetune.store import iter_ahead
from prefinetune.tokenizer import Tokenizer
from prefinetune.update import Place, TaskData, Update, draw, update


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
    display = display or Display(quiet=True)
    loop = Loop(model, tokenizer, tasks, validation, config, folder, display)
    loop.take_up(resume)
    if config.train.affinity_every and folder:
        loop.sample_gradients(kept_out, targets)
    with (
        measured(folder.path if folder else None),
        display.training(loop.mixture.num_updates, loop.progress.updates),
        Notice("finishing the update, then saving", active=folder is not None) as notice,
        ThreadPoolExecutor(1) as ahead,
    ):
        loop.started = time.perf_counter()
        # An update is drawn and laid out while the one before is computed.
        for work in iter_ahead(ahead, map(loop.prepare, loop.numbers())):
            loop.step(work)
            loop.log()
            loop.score()
            loop.save_or_leave(notice.given)
            if loop.progress.stopped:
                break
            loop.started = time.perf_counter()
    return loop.end()


class Loop:
    """A `fit` under way: what its updates share. Its arguments are those of `fit`."""

    def __init__(
        self,
        model: MultiTask,
        tokenizer: Tokenizer,
        tasks: Sequence[TaskData],
        validation: Mapping[str, Sequence[Encoded]],
        config: Config,
        folder: RunFolder | None,
        display: Display,
    ) -> None:
        self.model, self.tokenizer, self.tasks, self.validation = model, tokenizer, tasks, validation
        self.config, self.settings, self.folder, self.display = config, config.train, folder, display
        self.accelerator = ranks.Process(precision_of(self.settings), self.settings.rank_timeout)
        self.place = Place(self.accelerator.process_index, self.accelerator.num_processes)
        model.to(self.accelerator.device)
        if self.settings.gradient_checkpointing:
            model.backbone.checkpoint_gradients()
        self.mixture = make_mixture([len(task.store) for task in tasks], config)
        ranks.shard(model, self.accelerator)
        sharded = ranks.is_sharded(model.backbone)
        model.balancing = balancing_of(config.objective, model).to(self.accelerator.device)
        if self.place.ranks > 1:
            display.say(f"{self.place.ranks} processes{', each with a piece of the trunk' if sharded else ''}")
        if self.accelerator.precision == "bfloat16" and self.accelerator.device.type == "cpu" and emulates_bfloat16():
            display.say("train.precision=bfloat16 is slow on this processor, which does not multiply it; float32 is faster")
        self.optimizer = make_optimizer(model, config.optimizer)
        self.memory = Memory(self.settings.token_budget, self.settings.halve_budget and not sharded)
        self.layout = model.layout(tokenizer)
        self.sampler: Sampler | None = None
        self.progress, self.window, self.found = Progress(), Window(), Evaluation()
        self.best: dict[str, torch.Tensor] | None = None  # weights, with patience
        self.started = 0.0  # when the update in hand was begun

    def take_up(self, resume: bool) -> None:
        """Go on from the folder's newest checkpoint, if we shall and there is one."""
        if not self.folder:
            return
        if resume:
            self.progress, self.best = restore(self.model, self.optimizer, self.folder, self.accelerator)
            self.window = Window(**self.progress.window)
        if self.progress.updates:
            self.display.say(f"going on from update {self.progress.updates} of {self.mixture.num_updates}")
        self.folder.forget_metrics_after(self.progress.updates)  # also those of a run that had no checkpoint yet
        self.folder.track(self.config, self.progress.updates, self.display.say)

    def sample_gradients(self, kept_out: Sequence[TaskData], targets: Sequence[str]) -> None:
        """From now on, at the updates that train.affinity_every asks for."""
        self.sampler = Sampler(
            self.model, self.tokenizer, self.tasks, kept_out, targets, self.mixture, self.config, self.accelerator
        )
        self.display.say(self.sampler.told())

    def numbers(self) -> range:
        """Of the updates that are to be made."""
        return range(self.progress.updates, self.progress.updates if self.progress.stopped else self.mixture.num_updates)

    def prepare(self, number: int) -> Work:
        drawn = draw(self.mixture, number, self.tasks, self.tokenizer, self.config.objective, self.place)
        budget = self.memory.budget
        return Work(number, drawn, micro_batches(drawn, budget, self.layout), budget)

    def share(self, number: int) -> float:
        """Of its peak, a rate in update `number`."""
        return schedule(number, self.mixture.num_updates, self.config.optimizer.warmup, self.config.optimizer.decay_power)

    def step(self, work: Work) -> None:
        """One update and what it came to.

        Raises:
            InputError: too many in a row were not finite; memory ran out.
        """
        share, sample = self.share(work.number), None
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        if self.sampler and self.sampler.is_due(work.number):
            sample = self.sampler.sample(work.number, self.optimizer, self.memory.budget)
            self.started = time.perf_counter()
        report = self.memory.run(partial(self.update, work.number), work, self.layout, self.display)
        seconds = time.perf_counter() - self.started
        self.progress.add(report, seconds)
        self.display.updated(self.progress.updates, report)
        if report.skipped:
            self.take_skip(report)
            return
        self.window.add(report, seconds)
        if self.sampler and sample and self.folder:
            self.folder.add_affinity(self.sampler.record(sample, self.progress.updates, share, report.grad_norm))

    def update(self, number: int, batches: Sequence[Batch]) -> Update:
        """Dropout is a function of (seed, update, process) like all else, so there is no generator state to save."""
        place = [self.place.rank] if self.place.rank else []
        torch.manual_seed(int(hash_key(self.config.seed, 4, number, *place) >> np.uint64(1)))
        return update(self.model, self.optimizer, batches, self.config.optimizer.clip, self.accelerator, self.config.objective)

    def take_skip(self, report: Update) -> None:
        self.display.say(f"update {self.progress.updates} skipped: not finite: {report.culprits}")
        if self.progress.skipped_in_a_row >= self.settings.max_skipped:
            if self.settings.checkpoint_every:
                self.save()
            raise InputError(
                f"{self.progress.skipped_in_a_row} updates in a row were not finite (last: {report.culprits}); a lower "
                "optimizer.learning_rate, or a look at these rows, should help"
            )

    def is_due(self, every: int | None) -> bool:
        """Whether what is done every so many updates, and after the last, is to be done now."""
        return self.progress.updates == self.mixture.num_updates or bool(every and self.progress.updates % every == 0)

    def log(self) -> None:
        """A line of metrics, where one is due."""
        if self.is_due(self.settings.log_every):
            rate = self.config.optimizer.learning_rate * self.share(self.progress.updates - 1)
            record = self.window.record(self.progress, self.mixture, rate)
            if self.folder:
                self.folder.add_metrics(record)
            self.display.logged(record)
            self.window = Window()

    def score(self) -> None:
        """The validation examples, where that is due; with patience, the best weights are kept."""
        if self.validation and self.settings.evaluate_every and self.is_due(self.settings.evaluate_every):
            self.found = self.evaluate()
            mean = mean_score(self.found.scores, self.model.families)
            self.display.evaluated(self.progress.updates, self.found.scores, mean)
            if self.folder:
                self.folder.add_scores(self.progress.updates, main_scores(self.found.scores, self.model.families))
            if self.progress.judge(mean, self.settings.patience) and self.settings.patience:
                self.best = {name: tensor.clone() for name, tensor in self.model.unique_state().items()}

    def evaluate(self) -> Evaluation:
        return evaluate(self.model, self.tokenizer, self.validation, 2 * self.settings.token_budget, self.accelerator)

    def save_or_leave(self, told_to_go: str | None) -> None:
        """A checkpoint where one is due, and before we go.

        Raises:
            Preempted: this process, or one of the others, was told to go.
        """
        leaving = ranks.anyone(told_to_go is not None, self.accelerator)
        every = self.settings.checkpoint_every
        if leaving or (every and (self.progress.stopped or self.is_due(every))):
            self.save()
        if leaving:
            done = f"{self.progress.updates:,} of {self.mixture.num_updates:,} updates are done and saved"
            raise Preempted(done, told_to_go)

    def save(self) -> None:
        if not self.folder:
            return
        state = asdict(self.progress) | {"window": asdict(self.window)}
        where, kept = self.folder.checkpoints, self.settings.keep_checkpoints
        try:
            save_checkpoint(where, self.progress.updates, self.model, self.optimizer, state, self.best, kept)
        except CannotSave as error:
            if self.settings.on_failed_checkpoint == "stop":
                raise
            self.display.say(f"{error.problem}; going on without it")

    def end(self) -> Fit:
        """The best weights into the model, and its scores."""
        if self.best is not None:
            self.model.load_unique_state(self.best)
        if self.validation and (self.best is not None or not self.found.scores):
            count, tasks = sum(map(len, self.validation.values())), len(self.validation)
            self.display.say(f"scoring {count:,} validation examples of {tasks} tasks")
            self.found = self.evaluate()
        return Fit(self.progress, self.found, self.accelerator)


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


def precision_of(settings: TrainSettings) -> Literal["float32", "bfloat16"]:
    """Of `auto`, bfloat16 where the hardware multiplies it faster: GPUs that know it. On CPUs that depends on the cores
    (docs/performance.md), and float32 is taken."""
    if settings.precision == "auto":
        return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return settings.precision


def emulates_bfloat16() -> bool:
    """Whether this processor has no instructions that multiply bfloat16, as far as torch knows: many times slower then."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions of torch
    return bool(known) and not any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"))


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
