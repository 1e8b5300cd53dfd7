"""Balancing: what is done where tasks pull at the trunk they share with different strength, or in different directions.

Static balancing does nothing here: tasks count as the mixture drew them. Uncertainty weighs each task's loss by a variance that
is learned with everything else. Aggregation takes the gradient of each task on the trunk by itself and puts them together so that
they conflict less, with the weights that TorchJD computes; heads keep their plain gradients.

Letters: t tasks of an update, e examples of a micro-batch, c numbers of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from prefinetune import ranks
from prefinetune.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from prefinetune.batch import Batch, Segment
    from prefinetune.config import ObjectiveSettings
    from prefinetune.model import MultiTask

Gradient = list[torch.Tensor | None]  # on each parameter of the trunk; None where it was not used
Weighting = Callable[[torch.Tensor], torch.Tensor]  # [t, t] products of tasks' gradients, of trace 1 -> [t] weights

COLUMNS = 2**16  # numbers of the gradient of every task that are looked at together
CAGRAD_RADIUS = 0.4  # c, as Liu et al. 2021 chose it for NYU-v2


class Balancing(nn.Module):
    """Static: every example counts with its weight in the update, and gradients are added up. Others override what differs."""

    by_task = False  # whether a micro-batch must be of one task

    def weigh(self, losses: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """What each example of a micro-batch adds to the objective, times its weight in the update, given its loss; [e] both."""
        return losses

    def set_apart(self, gradients: dict[str, Gradient], batch: Batch, model: MultiTask) -> None:
        """Take what a micro-batch's backward pass left on the trunk into `gradients`, by task, where they must not mix yet."""

    def add_up(self, gradients: Mapping[str, Gradient], model: MultiTask, accelerator: Accelerator) -> dict[str, float]:
        """Make one gradient of the whole update, over micro-batches and processes.

        Returns:
            How much each task counted beside its share of the update (1 is as in static balancing); nothing if always 1.
        """
        ranks.add_up(model.parameters(), accelerator)
        return {}


class Uncertainty(Balancing):
    """Losses / variance + log(variance) / 2, with a learned variance per task (Kendall et al. 2018, arXiv 1705.07115, 3.2).

    The paper has 1 / (2 variance) for squared errors and 1 / variance for cross-entropies; here every family's loss is a negative
    log-likelihood (regression's too, see docs/method.md), so that all have the latter. At variance 1, where they start, tasks
    count as in static balancing. As heads do, the variance of a task that an update does not have stays as it is.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        for task in tasks:
            self.register_parameter(f"log_variance/{task}", nn.Parameter(torch.zeros(())))

    def log_variance(self, task: str) -> nn.Parameter:
        return self.get_parameter(f"log_variance/{task}")

    def weigh(self, losses: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        each = torch.cat([self.log_variance(one.task).expand(len(one.examples)) for one in segments])
        return losses * (-each).exp() + each / 2

    def add_up(self, gradients: Mapping[str, Gradient], model: MultiTask, accelerator: Accelerator) -> dict[str, float]:
        super().add_up(gradients, model, accelerator)
        weights = torch.stack([-self.log_variance(task).detach() for task in self.tasks]).exp().tolist()
        return dict(zip(self.tasks, weights, strict=True))


class Aggregation(Balancing):
    """The trunk's gradient is a weighted sum of tasks' gradients, each that of the task's part of the update, and the weights are
    a function of their products. With weights of 1 it is that of static balancing; that is also what it is with one task, and
    with tasks whose gradients are the same.

    Costs the memory of as many gradients of the trunk as an update has tasks.
    """

    by_task = True

    def __init__(self, weighting: Weighting) -> None:
        super().__init__()
        self.weighting = weighting

    def set_apart(self, gradients: dict[str, Gradient], batch: Batch, model: MultiTask) -> None:
        (task,) = {segment.task for segment in batch.segments}
        trunk = list(model.backbone.parameters())
        taken = take(trunk)
        gradients[task] = taken if task not in gradients else list(map(plus, gradients[task], taken))

    def add_up(self, gradients: Mapping[str, Gradient], model: MultiTask, accelerator: Accelerator) -> dict[str, float]:
        trunk = list(model.backbone.parameters())
        of_trunk = set(trunk)
        ranks.add_up([one for one in model.parameters() if one not in of_trunk], accelerator)

        tasks = sorted({task for mine in ranks.tell(list(gradients), accelerator) for task in mine})
        rows = [summed(gradients.get(task, [None] * len(trunk)), trunk, accelerator) for task in tasks]
        weights = self.weights(products(rows))
        weights = ranks.tell(weights, accelerator)[0]  # the same to the bit, as all must make the same step
        put_together(rows, weights, trunk)
        return dict(zip(tasks, weights, strict=True))

    def weights(self, gramian: torch.Tensor) -> list[float]:
        """The weight of each task [t], given the products of their gradients [t, t]."""
        scale = gramian.trace()
        if not (scale > 0 and scale.isfinite()):  # nothing to weigh, or the update will be skipped
            return [1.0] * len(gramian)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())  # the update's, whatever dropout drew since: PCGrad has an order to draw
            return self.weighting(gramian / scale).tolist()


def balancing_of(objective: ObjectiveSettings, model: MultiTask) -> Balancing:
    """The balancing that settings ask for, between the tasks of a model.

    Raises:
        InputError: it needs a package that is not installed, or it needs whole gradients of a trunk that is sharded.
    """
    if objective.balancing == "static":
        return Balancing()
    if objective.balancing == "uncertainty":
        return Uncertainty(list(model.families))
    weighting = weighting_of(objective.balancing)
    if ranks.is_sharded(model.backbone):
        raise InputError(
            f"objective.balancing: {objective.balancing!r} is not possible with a sharded trunk (FSDP), as it needs each task's "
            "whole gradient; expected static or uncertainty, or processes that have the whole trunk each"
        )
    return Aggregation(weighting)


def check_balancing(balancing: str) -> None:
    """Whether what a balancing needs is installed; asked before any data is read.

    Raises:
        InputError: it is not.
    """
    if balancing not in ("static", "uncertainty"):
        weighting_of(balancing)


def weighting_of(balancing: str) -> Weighting:
    """TorchJD's weights for an aggregator, scaled so that they are 1 where all gradients are the same.

    - pcgrad: each gradient loses its part along every other that it conflicts with, in random order; their sum (Yu et al. 2020,
      arXiv 2001.06782, algorithm 1).
    - cagrad: of the gradients near the mean, within `CAGRAD_RADIUS` of its norm, the one that helps the worst-off task most (Liu
      et al. 2021, arXiv 2110.14048, algorithm 1).
    - upgrad: each gradient is projected to where it conflicts with none; their sum (Quinton and Rey 2024, arXiv 2406.16232).

    Raises:
        InputError: TorchJD or what it needs is not installed.
    """
    try:
        from torchjd import aggregation

        if balancing == "pcgrad":
            return aggregation.PCGradWeighting()
        if balancing == "cagrad":
            cagrad = aggregation.CAGradWeighting(CAGRAD_RADIUS)
            return lambda gramian: cagrad(gramian) * len(gramian) / (1 + CAGRAD_RADIUS)  # it starts from the mean
        upgrad = aggregation.UPGradWeighting()
        return lambda gramian: upgrad(gramian) * len(gramian)  # it is a mean
    except ImportError as error:
        raise InputError(
            f"objective.balancing: {balancing!r} needs TorchJD ({error.name or 'a part of it'} is not installed): "
            "`pip install prefinetune[balancing]`; static and uncertainty need nothing"
        ) from None


# ---- gradients by task


def take(parameters: Sequence[nn.Parameter]) -> Gradient:
    """The gradients of parameters, which have none afterwards."""
    taken: Gradient = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return taken


def plus(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    """The sum of two gradients, in the place of the first."""
    return other if one is None else one if other is None else one.add_(other)


def summed(gradient: Gradient, trunk: Sequence[nn.Parameter], accelerator: Accelerator) -> Gradient:
    """A task's gradient over all processes."""
    for parameter, one in zip(trunk, gradient, strict=True):
        parameter.grad = one
    ranks.add_up(trunk, accelerator)
    return take(trunk)


def columns(rows: Sequence[Gradient]) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """The gradients of tasks piece by piece: of which parameter, which of its numbers, and these of each task, [t, c].
    Stacking all of them at once would double the memory; pieces stay in a processor's cache."""
    for at, each in enumerate(zip(*rows, strict=True)):
        given = next((one for one in each if one is not None), None)
        if given is None:
            continue
        flat = [torch.zeros_like(given).view(-1) if one is None else one.reshape(-1) for one in each]
        for start in range(0, given.numel(), COLUMNS):
            piece = slice(start, start + COLUMNS)
            yield at, piece, torch.stack([one[piece] for one in flat])


def products(rows: Sequence[Gradient]) -> torch.Tensor:
    """Products [t, t] of the gradients of tasks with one another, in float64 on the CPU."""
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for _, _, piece in columns(rows):
        found = found.to(piece.device) + piece @ piece.T
    return found.cpu()


def put_together(rows: Sequence[Gradient], weights: Sequence[float], trunk: Sequence[nn.Parameter]) -> None:
    """Give the trunk the weighted sum of the gradients of tasks; what no task used keeps none."""
    for at, piece, numbers in columns(rows):
        parameter = trunk[at]
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.view(-1)[piece] = torch.tensor(weights, dtype=numbers.dtype, device=numbers.device) @ numbers
