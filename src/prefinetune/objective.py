"""The objective: how per-example losses become the one number that is differentiated. Only this file weighs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prefinetune.config import ObjectiveSettings


def scaled(losses: torch.Tensor, outcomes: torch.Tensor) -> torch.Tensor:
    """Loss / log(outcomes), per example [e]: 1 for a uniform guess in every family (MUPPET 3.3)."""
    return losses / outcomes.to(losses.dtype).log()


def example_weights(sub_batch_sizes: Sequence[int]) -> list[float]:
    """Each example's weight, by sub-batch: 1 / (K x size). They sum to 1 over the update, however it is cut afterwards: the mean
    over sub-batches of each one's mean loss, which is what the paper's workers compute (MUPPET 3.2)."""
    return [1 / (len(sub_batch_sizes) * size) for size in sub_batch_sizes]


def weighted_sum(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """A segment's part of the update's loss, a scalar."""
    return (losses * weights).sum()


# ---- R3F (Aghajanyan et al. 2020, arXiv 2008.03156): loss + r3f x symmetric KL between a clean and a noised pass


def regularized(losses: torch.Tensor, divergences: torch.Tensor | None, settings: ObjectiveSettings) -> torch.Tensor:
    """Loss + r3f x divergence, per example [e], or the loss where there is none. Where only a share of the examples has a
    divergence, each stands for 1 / share of them, so that the expected gradient is the same."""
    if divergences is None:
        return losses
    return losses + settings.r3f / settings.r3f_share * divergences


def draw_noised(count: int, settings: ObjectiveSettings, generator: np.random.Generator) -> np.ndarray:
    """Which of an update's examples [count] have a noised pass: each with probability `r3f_share`, evenly spread over the update
    (every 1 / share-th example, from a random start)."""
    if not settings.r3f:
        return np.zeros(count, dtype=bool)
    steps = np.floor(np.arange(count + 1) * settings.r3f_share + generator.random())
    return np.diff(steps) > 0


def draw_noise(embeddings: torch.Tensor, settings: ObjectiveSettings) -> torch.Tensor:
    """Noise for token embeddings [r, l, d], in float32 whatever precision the model computes in: 1e-5 beside an embedding of 0.1
    is lost in half precision."""
    noise = torch.empty(embeddings.shape, dtype=torch.float32, device=embeddings.device)
    if settings.noise_kind == "normal":
        return noise.normal_(std=settings.noise) if settings.noise else noise.zero_()
    return noise.uniform_(-settings.noise, settings.noise)
