"""Where each task pulls the trunk: its gradient on a few examples, kept as a sketch, between two updates of a run. `affinity.py`
reads what this writes; see docs/affinity.md.

Nothing of the training is touched: gradients are asked for and not accumulated, dropout is off, and examples, signs and
the first weights of heads are functions of the seed and the update, so that a resumed run writes the same lines.

Letters: a tasks and kept-out targets, m numbers of a sketch, p parameters of the trunk.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from prefinetune import ranks
from prefinetune.batch import Batch, Drawn, micro_batches
from prefinetune.config import Config
from prefinetune.errors import InputError
from prefinetune.mixture import Mixture
from prefinetune.model import MultiTask, States
from prefinetune.objective import scaled
from prefinetune.tokenizer import Tokenizer

if TYPE_CHECKING:
    from prefinetune.update import TaskData

# Numbers of a sketch. A prime, so that the columns of a matrix do not come to lie on one another.
SIZE = 65521
POOL = 2000  # most examples of a task that are drawn from
FIT, STEPS, RATE = 64, 40, 3e-3  # examples and steps by which a target that is not trained on gets a head, and their rate

Pairs = list[list[float]]  # the lower triangle of a symmetric matrix [a, a], row by row


class Sample(NamedTuple):
    """What one sampled update found."""

    losses: list[float]  # [a] mean scaled loss
    cosines: Pairs  # on the diagonal, between two samples of one task
    products: Pairs  # g P h, with P the optimizer's scaling
    seconds: float


@dataclass
class Sampler:
    """Takes samples of a run.

    Args:
        model: what is trained.
        tasks: of the suite.
        kept_out: further tasks to see the gradients of; each gets a head on the trunk as it is, at each sample anew.
        targets: names of those, and of `tasks`, that the suite shall be judged by.
        size: numbers of a sketch; from the number of parameters on it is exact.

    Raises:
        InputError: the trunk is sharded.
    """

    model: MultiTask
    tokenizer: Tokenizer
    tasks: Sequence[TaskData]
    kept_out: Sequence[TaskData]
    targets: Sequence[str]
    mixture: Mixture
    config: Config
    accelerator: Accelerator
    size: int = SIZE
    judge: MultiTask = field(init=False)  # the same trunk with the heads of kept-out targets
    fresh: dict[str, list[torch.Tensor]] = field(init=False)  # their first weights, of those that are not in the model
    pools: list[tuple[np.ndarray, np.ndarray]] = field(init=False)  # of each task, examples to draw from, and each one's stratum

    def __post_init__(self) -> None:
        if ranks.is_sharded(self.model.backbone):
            raise InputError("train.affinity_every: gradients of single tasks cannot be sampled from a sharded trunk (FSDP) yet")
        families, objective = {task.name: task.family for task in self.kept_out}, self.config.objective
        self.judge = MultiTask(self.model.backbone, families, self.config.seed, objective.heads == "separate")
        for key in set(self.judge.heads) & set(self.model.heads):
            self.judge.heads[key] = self.model.heads[key]
        self.judge.to(self.accelerator.device)
        self.fresh = {
            task.name: [parameter.detach().clone() for parameter in self.own(task)]
            for task in self.kept_out
            # A language-model head has what it needs from pre-training.
            if task.family.head_kind != "language" and self.judge.head_keys[task.name] not in self.model.heads
        }

        self.pools = [self.pool(task) for task in (*self.tasks, *self.kept_out)]

    def pool(self, task: TaskData) -> tuple[np.ndarray, np.ndarray]:
        count = len(task.store)
        examples = np.unique(np.linspace(0, count - 1, min(count, POOL)).astype(np.int64))
        return examples, task.family.strata([task.store[index].target for index in examples.tolist()])

    def own(self, task: TaskData) -> list[torch.nn.Parameter]:
        """The parameters of a kept-out target's head that are not the trunk's."""
        trunk = {id(parameter) for parameter in self.model.backbone.parameters()}
        return [parameter for parameter in self.judge.head(task.name).parameters() if id(parameter) not in trunk]

    @property
    def every(self) -> int:
        return self.config.train.affinity_every or 0

    @property
    def examples(self) -> int:
        """Of each of the two gradients of a task."""
        return self.config.train.affinity_examples // 2

    def is_due(self, number: int) -> bool:
        """Whether there is a sample before an update; not before the first, when the optimizer scales nothing yet."""
        return number > 0 and number % self.every == 0

    def told(self) -> str:
        """How often, and how much more is computed for it."""
        samples = (self.mixture.num_updates - 1) // self.every
        one = 2 * self.examples * (len(self.tasks) + len(self.kept_out)) + FIT / 3 * len(
            self.fresh
        )  # a head costs forward passes
        usual = self.every * self.mixture.sub_batches * self.mixture.sub_batch_size
        return f"affinities: {samples:,} samples of {len(self.tasks) + len(self.kept_out)} tasks, {one / usual:.1%} more examples"

    def record(self, sample: Sample, step: int, share: float, grad_norm: float) -> dict[str, Any]:
        """A line of affinity.jsonl.

        Args:
            step: updates done, the sampled one included.
            share: of the peak learning rate.
            grad_norm: of the whole update, before it was clipped.
        """
        clip = self.config.optimizer.clip
        return {
            "step": step,
            "updates": self.mixture.num_updates,
            # What a gradient was multiplied with, after the optimizer's scaling.
            "rate": self.config.optimizer.learning_rate * share * (min(1.0, clip / (grad_norm + 1e-6)) if clip else 1.0),
            "tasks": [task.name for task in self.tasks],
            "kept_out": [task.name for task in self.kept_out],
            "targets": list(self.targets),
            "shares": rounded([(self.mixture.counts / self.mixture.counts.sum()).tolist()])[0],
            "losses": rounded([sample.losses])[0],
            "cosines": rounded(sample.cosines),
            "products": rounded(sample.products),
            "seconds": round(sample.seconds, 3),
        }

    def sample(self, number: int, optimizer: torch.optim.Optimizer, token_budget: int) -> Sample | None:
        """What all tasks' gradients are before update `number`; None where something is not finite. The processes of a job
        share the tasks.

        Args:
            token_budget: most tokens of a micro-batch.
        """
        started = time.perf_counter()
        everything = (*self.tasks, *self.kept_out)
        parameters = [parameter for parameter in self.model.backbone.parameters() if parameter.requires_grad]
        signs = draw_signs(
            sum(map(torch.numel, parameters)), np.random.default_rng([self.config.seed, 8, number]), parameters[0].device
        )
        roots = scaling_roots(parameters, optimizer)
        # Two sketches of each task's two gradients: plain, and in the optimizer's scaling.
        sketches = np.zeros((2, len(everything), 2, self.size), np.float32)
        losses = np.zeros(len(everything))
        with at_rest(self.model, self.judge):
            for at in range(self.accelerator.process_index, len(everything), self.accelerator.num_processes):
                task, model = everything[at], self.model if at < len(self.tasks) else self.judge
                fit = FIT if task.name in self.fresh and model is self.judge else 0
                drawn = self.draw(at, fit, np.random.default_rng([self.config.seed, 9, number, at]))
                if fit:
                    self.fit_head(task, drawn[2 * self.examples :], token_budget)
                for half in range(2):
                    mine = drawn[half * self.examples : (half + 1) * self.examples]
                    gradients, loss = self.gradient(model, mine, parameters, token_budget)
                    sketches[:, at, half] = sketch(gradients, signs, roots, self.size)
                    losses[at] += loss / 2
        sketches, losses = ranks.total(sketches, self.accelerator), ranks.total(losses, self.accelerator)
        if not (np.isfinite(sketches).all() and np.isfinite(losses).all()):
            return None
        norms = np.linalg.norm(sketches[0], axis=-1, keepdims=True)
        cosines = between(sketches[0] / np.where(norms > 0, norms, 1))
        return Sample(losses.tolist(), cosines, between(sketches[1]), time.perf_counter() - started)

    def draw(self, at: int, more: int, generator: np.random.Generator) -> list[Drawn]:
        """Examples of a task for two gradients, and `more` for a head, all different where there are enough. Each of these has
        labels in proportion: a few examples have too many of one by chance, and all of a gradient may be that."""
        task, (examples, strata) = (*self.tasks, *self.kept_out)[at], self.pools[at]
        places = np.empty(len(examples))
        for stratum in np.unique(strata):
            members = generator.permutation(np.flatnonzero(strata == stratum))
            places[members] = (np.arange(len(members)) + generator.random()) / len(members)
        wanted = 2 * self.examples + more
        chosen = np.resize(examples[np.argsort(places)], wanted)
        drawn = []
        for index in chosen.tolist():
            example = task.store[index]
            if task.family.draws:
                example = task.family.draw(example, self.tokenizer, generator)
            drawn.append(Drawn(example, task.name, task.family, 1.0))
        return drawn

    def gradient(
        self, model: MultiTask, drawn: Sequence[Drawn], parameters: Sequence[torch.nn.Parameter], token_budget: int
    ) -> tuple[list[torch.Tensor], float]:
        """The gradient of the mean scaled loss of some examples by each parameter, and that loss."""
        gradients: list[torch.Tensor] = []
        loss = 0.0
        for batch in self.batches(model, drawn, token_budget):
            with self.accelerator.autocast():
                part = sum_of_losses(model, batch, model.backbone(batch), self.config.objective.scaling) / len(drawn)
            # Some tasks do not use a pooler, say.
            found = torch.autograd.grad(part, parameters, allow_unused=True, materialize_grads=True)
            gradients = [one + more for one, more in zip(gradients, found, strict=True)] if gradients else list(found)
            loss += float(part.detach())
        return gradients, loss

    def batches(self, model: MultiTask, drawn: Sequence[Drawn], token_budget: int) -> Iterator[Batch]:
        for batch in micro_batches(drawn, token_budget, model.layout(self.tokenizer)):
            yield batch.to(self.accelerator.device)

    def fit_head(self, task: TaskData, drawn: Sequence[Drawn], token_budget: int) -> None:
        """Give a kept-out target a head: a few steps of AdamW from its first weights, on states of the trunk as it is."""
        parameters = self.own(task)
        for parameter, first in zip(parameters, self.fresh[task.name], strict=True):
            parameter.data.copy_(first)
        with torch.no_grad(), self.accelerator.autocast():
            read = [(batch, self.judge.backbone(batch)) for batch in self.batches(self.judge, drawn, token_budget)]
        optimizer = torch.optim.AdamW(parameters, lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            for batch, states in read:
                with self.accelerator.autocast():
                    loss = sum_of_losses(self.judge, batch, states, self.config.objective.scaling) / len(drawn)
                loss.backward()
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None


def sum_of_losses(model: MultiTask, batch: Batch, states: States, scaling: Literal["log", "none"]) -> torch.Tensor:
    """Of all examples of a micro-batch, scaled as in training; without the divergence of R3F."""
    losses = []
    for segment in batch.segments:
        output = segment.family.apply(model.head(segment.task), states, segment)
        losses.append(scaled(segment.family.loss(output, segment), segment.family.outcomes(output, segment), scaling))
    return torch.cat(losses).sum()


@contextmanager
def at_rest(*models: MultiTask) -> Iterator[None]:
    """Within, models have no dropout, so that nothing draws from torch's generators."""
    were = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    yield
    for module, training in were:
        module.training = training


def draw_signs(count: int, generator: np.random.Generator, device: torch.device) -> torch.Tensor:
    """[p] of int8: 1 or -1, as chance has it."""
    bits = np.unpackbits(generator.integers(0, 256, -(-count // 8), dtype=np.uint8))[:count]
    return torch.from_numpy(bits.view(np.int8)).to(device).mul_(2).sub_(1)


def sketch(
    gradients: Iterable[torch.Tensor], signs: torch.Tensor, roots: Sequence[torch.Tensor | float], size: int
) -> np.ndarray:
    """Two count sketches [2, m], of a gradient and of the same in the optimizer's scaling: number i, with its sign, is added to
    number i mod m.

    Products of sketches are those of the gradients x and y on the mean over signs, with a variance of at most
    (|x|^2 |y|^2 + (x y)^2) / m where large numbers do not come together (Charikar et al. 2002; Weinberger et al. 2009, arXiv
    0902.2206, section 3). From m = p on they are exact.

    Args:
        gradients: by parameter.
        signs: [p] of all parameters.
        roots: by parameter, what scales it.
    """
    found = signs.new_zeros(2, size, dtype=torch.float64)
    at = 0
    for one, root in zip(gradients, roots, strict=True):
        start, at = at, at + one.numel()
        signed = one.reshape(-1) * signs[start:at]
        found[0] += fold(signed, start, size)
        found[1] += fold((signed.view_as(one) * root).reshape(-1), start, size)
    return found.cpu().numpy()


def fold(numbers: torch.Tensor, start: int, size: int) -> torch.Tensor:
    """[m]: each of the numbers added to its place mod m; the first has place `start`."""
    rows = len(numbers) // size
    folded = numbers[: rows * size].view(rows, size).sum(0)
    folded[: len(numbers) - rows * size] += numbers[rows * size :]
    return folded.roll(start % size)


def scaling_roots(parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> list[torch.Tensor | float]:
    """By parameter, the root of what AdamW divides its gradient by, inverted: a step of rate r is -r x root^2 x gradient (Kingma
    and Ba 2015, arXiv 1412.6980, algorithm 1, with the mean of gradients in place of its running mean). 0 for one that was
    never moved."""
    roots: list[torch.Tensor | float] = []
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in parameters:
        state, group = optimizer.state.get(parameter, {}), groups[id(parameter)]
        if "exp_avg_sq" not in state:
            roots.append(0.0)
            continue
        correction = 1 - group["betas"][1] ** float(state["step"])
        roots.append((state["exp_avg_sq"] / correction).sqrt_().add_(group["eps"]).rsqrt_())
    return roots


def between(sketches: np.ndarray) -> Pairs:
    """Products of sketches [a, 2, m] of two gradients each, the lower triangle. Of different tasks it is the mean over the four
    pairs of gradients, of a task with itself that of its two: no gradient is multiplied with itself, so noise adds nothing."""
    means = sketches.mean(axis=1)
    products = means @ means.T
    np.fill_diagonal(products, np.einsum("am,am->a", sketches[:, 0], sketches[:, 1]))
    return [row[: at + 1].tolist() for at, row in enumerate(products)]


def rounded(rows: Sequence[Sequence[float]]) -> Pairs:
    """To five digits."""
    return [[float(f"{value:.5g}") for value in row] for row in rows]
