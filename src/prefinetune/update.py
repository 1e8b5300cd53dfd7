"""One update: its examples are drawn, its losses computed and weighed, its gradient summed over processes and stepped. The method
is `update`, in one function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from prefinetune import ranks
from prefinetune.balancing import Gradient
from prefinetune.batch import Batch, Drawn, deal
from prefinetune.config import ObjectiveSettings
from prefinetune.families import Examples, Family, Segment
from prefinetune.mixture import Mixture, hash_key
from prefinetune.model import MultiTask
from prefinetune.objective import draw_noise, draw_noised, example_weights, regularized, scaled, weighted_sum
from prefinetune.store import Store
from prefinetune.tokenizer import Tokenizer

NO_R3F = ObjectiveSettings()


@dataclass
class TaskData:
    """A task as the loop sees it: something with a length that gives example i, and the family that knows what to do with it."""

    name: str
    family: Family
    store: Examples

    def costs(self, examples: np.ndarray) -> np.ndarray:
        """Tokens of some examples, [n]."""
        if isinstance(self.store, Store):
            return self.store.token_counts(examples)
        return np.array([self.store[index].tokens for index in examples.tolist()])


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
    weight_by_task: dict[str, float]  # how much each counted beside its share of the update; nothing where balancing is static

    @property
    def skipped(self) -> bool:
        """Whether nothing was stepped, as something was not finite."""
        return bool(self.bad) or not math.isfinite(self.grad_norm)

    @property
    def culprits(self) -> str:
        """What was not finite, in words."""
        return ", ".join(f"{task} row {row}" for task, row in self.bad[:5]) or "the gradient's norm"


class Place(NamedTuple):
    """A process among those that share every update."""

    rank: int
    ranks: int


ALONE = Place(0, 1)


def draw(
    mixture: Mixture,
    number: int,
    tasks: Sequence[TaskData],
    tokenizer: Tokenizer,
    objective: ObjectiveSettings = NO_R3F,
    place: Place = ALONE,
) -> list[Drawn]:
    """The examples of update `number` that a process computes, each with its weight in the whole update, and whether it has a
    noised pass. All processes together have every example once; one that would have none computes another's with weight 0, as
    all take part in what a sharded trunk does."""
    sub_batches = mixture.update(number)
    sizes = [len(sub_batch.examples) for sub_batch in sub_batches]
    generator = np.random.default_rng([mixture.seed, 6, number])
    noised = draw_noised(sum(sizes), objective, generator)
    weights = np.repeat(example_weights(sizes), sizes)
    mine: Sequence[int] = range(len(weights))
    if place.ranks > 1:
        costs = np.concatenate([tasks[sub_batch.task].costs(sub_batch.examples) for sub_batch in sub_batches]) * (1 + noised)
        dealt = deal(costs, place.ranks)[place.rank].tolist()
        mine = dealt or [place.rank % len(weights)]
        weights = weights if dealt else np.zeros_like(weights)
    owners = np.repeat(np.arange(len(sizes)), sizes).tolist()
    within = np.concatenate([np.arange(size) for size in sizes]).tolist()
    drawn = []
    for at in mine:
        sub_batch = sub_batches[owners[at]]
        task, key = tasks[sub_batch.task], int(hash_key(sub_batch.key, within[at]) >> np.uint64(1))
        example = task.store[int(sub_batch.examples[within[at]])]
        if task.family.draws:
            example = task.family.draw(example, tokenizer, np.random.default_rng(key))
        drawn.append(Drawn(example, task.name, task.family, float(weights[at]), bool(noised[at]), key))
    return drawn


def update(
    model: MultiTask,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    clip: float,
    accelerator: Accelerator,
    objective: ObjectiveSettings = NO_R3F,
) -> Update:
    """One optimizer step over all micro-batches of an update, on one process or several (MUPPET 3.2 and 3.3).

    Every example adds weight x loss / log(outcomes) to one sum, whose gradient is accumulated over micro-batches and processes,
    clipped once, and stepped once. With R3F, its loss is joined by the divergence between the prediction and that of a noised
    copy in the same forward pass. A head that no example used keeps gradient None, so that the optimizer does not move it.
    Balancing may weigh tasks' losses, or keep their gradients on the trunk apart until all are there; static does neither.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    noise = partial(draw_noise, settings=objective) if objective.r3f else None
    parts: list[Part] = []
    apart: dict[str, Gradient] = {}
    for batch in ranks.even(batches, model.backbone, accelerator):
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            each = [of_segment(*passed) for passed in model(batch, noise)]
            losses, outcomes, divergences = (torch.cat(column) for column in zip(*each, strict=True))  # [e]
            part = Part(batch.segments, *(scaled(each, outcomes, objective.scaling) for each in (losses, divergences)))
            weights = torch.cat([segment.weights for segment in batch.segments])
            balanced = model.balancing.weigh(regularized(part.losses, part.divergences, objective), batch.segments)
            total = weighted_sum(balanced, weights)
        accelerator.backward(total)
        model.balancing.set_apart(apart, batch, model)
        parts.append(part)
    weight_by_task = model.balancing.add_up(apart, model, accelerator)
    norm = ranks.clip(model.parameters(), clip)
    padded = sum(batch.padded for batch in batches)
    report = read_losses(parts, norm, padded, list(model.families), weight_by_task, accelerator)
    if not report.skipped:
        optimizer.step()
    return report


def of_segment(
    segment: Segment, output: torch.Tensor, noised: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, outcomes, and divergence (0 where there is no noised pass) of each example of a segment, [e] all."""
    family = segment.family
    losses = family.loss(output, segment)
    divergences = torch.zeros_like(losses) if noised is None else family.divergence(output, noised, segment)
    return losses, family.outcomes(output, segment), divergences


class Part(NamedTuple):
    """What one micro-batch of an update came to."""

    segments: list[Segment]
    losses: torch.Tensor  # [e] scaled, of all segments
    divergences: torch.Tensor  # [e] scaled


def read_losses(
    parts: Sequence[Part],
    norm: float,
    padded: int,
    tasks: Sequence[str],
    weight_by_task: dict[str, float],
    accelerator: Accelerator,
) -> Update:
    """What all processes computed in an update, as numbers: one transfer from the device after all work was queued, and one sum
    over processes."""
    segments = [segment for part in parts for segment in part.segments]
    losses = torch.cat([part.losses.detach() for part in parts]).double().cpu().numpy()
    divergences = torch.cat([part.divergences.detach() for part in parts]).double().cpu().numpy()
    weights = torch.cat([segment.weights for segment in segments]).double().cpu().numpy()
    finite = np.isfinite(losses) & np.isfinite(divergences)
    sums, bad, at = np.zeros((len(tasks) + 1, 6)), [], 0
    for segment in segments:
        here = slice(at, at + len(segment.examples))
        at = here.stop
        if not weights[here].any():  # it was computed only to take part
            continue
        weight = weights[here].sum()
        sums[tasks.index(segment.task)] += (
            losses[here] @ weights[here], weight, len(segment.examples), segment.tokens,
            divergences[here] @ weights[here], weight if segment.noised is not None else 0,
        )  # fmt: skip
        bad += [(segment.task, segment.examples[i].source) for i in np.flatnonzero(~finite[here])]
    sums[-1, :2] = padded, len(bad)
    sums = ranks.total(sums, accelerator)
    *by_task, (all_padded, num_bad, *_) = sums.tolist()
    if num_bad:
        bad = [(task, row) for each in ranks.tell(bad, accelerator) for task, row in each]
    used = {task: row for task, row in zip(tasks, by_task, strict=True) if row[2]}
    loss, _, examples, tokens, divergence, diverged = sums[:-1].sum(axis=0).tolist()
    return Update(
        loss=loss,
        divergence=divergence / diverged if diverged else None,
        loss_by_task={task: row[0] / row[1] for task, row in used.items()},
        examples_by_task={task: int(row[2]) for task, row in used.items()},
        tokens_by_task={task: int(row[3]) for task, row in used.items()},
        grad_norm=norm,
        examples=int(examples),
        tokens=int(tokens),
        padded=int(all_padded),
        bad=bad,
        weight_by_task=weight_by_task,
    )
