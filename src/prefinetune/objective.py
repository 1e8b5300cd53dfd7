"""The objective: how per-example losses become the one number that is differentiated. Only this file weighs."""

from __future__ import annotations

from collections.abc import Sequence

import torch


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
