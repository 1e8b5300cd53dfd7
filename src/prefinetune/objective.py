"""The objective: how per-example losses become the one number that is differentiated. Only this file weighs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from prefinetune.config import ObjectiveSettings


def scaled(losses: torch.Tensor, outcomes: torch.Tensor, scaling: Literal["log", "none"] = "log") -> torch.Tensor:
    """Loss / log(outcomes), per example [e]: 1 for a uniform guess in every family (MUPPET 3.3). "none" leaves the loss as it is,
    to compare with."""
    return losses if scaling == "none" else losses / outcomes.to(losses.dtype).log()


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


def draw_noise(keys: torch.Tensor, width: int, settings: ObjectiveSettings) -> torch.Tensor:
    """Noise for token embeddings [..., width], in float32 whatever precision the model computes in: 1e-5 beside an embedding of
    0.1 is lost in half precision.

    Args:
        keys: [...] int64, one for each token. A token's noise depends on its key alone, so that it is the same however an update
            is cut and on whichever process it is computed.
    """
    even = 2 * uniform(keys, width) - 1  # in (-1, 1)
    if settings.noise_kind == "normal":
        return even.erfinv_().mul_(math.sqrt(2) * settings.noise)
    return even.mul_(settings.noise)


def uniform(keys: torch.Tensor, width: int) -> torch.Tensor:
    """Numbers evenly spread over (0, 1), [..., width], by hashing key and place: two rounds of the 32-bit mixer `lowbias32` (C.
    Wellons 2018), whose integer steps every device does alike."""
    places = torch.arange(width, dtype=torch.int64, device=keys.device) * 0x9E3779B1
    low, high = (part.to(torch.int32)[..., None] for part in (keys, keys >> 32))
    mixed = lowbias32(lowbias32(low ^ lowbias32(high)) + places.to(torch.int32))
    return ((mixed >> 8) & 0xFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-24)


def lowbias32(value: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 whose output bits each depend on all input bits; multiplication wraps around by design."""
    value = value ^ ((value >> 16) & 0xFFFF)
    value = value * 0x7FEB352D
    value = value ^ ((value >> 15) & 0x1FFFF)
    value = value * (0x846CA68B - (1 << 32))
    return value ^ ((value >> 16) & 0xFFFF)
