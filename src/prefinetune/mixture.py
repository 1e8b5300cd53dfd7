"""The mixture: how often each task is drawn, and the stream of sub-batches that results, a pure function of (seed, position).

Nothing is shuffled in memory: orders are keyed permutations that can be entered at any point, so that the state of the stream
is one integer and its memory is O(tasks), for a thousand rows as for a billion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ROUNDS = 10  # of the Feistel network: with fewer, the smallest ranges show which places were neighbours (test_mixture.py)


def mix(value: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A 64-bit hash of value and key (the finalizer of SplitMix64, Steele et al. 2014); wraps around by design."""
    with np.errstate(over="ignore"):
        value = (value + key * np.uint64(0x9E3779B97F4A7C15)) ^ (key >> np.uint64(29))
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def hash_key(*parts: int | np.ndarray) -> np.ndarray:
    """A 64-bit key from several integers, or one key per element of arrays of them."""
    key = np.full(np.broadcast_shapes(*(np.shape(part) for part in parts)), 0x243F6A8885A308D3, dtype=np.uint64)
    for part in parts:
        key = mix(key, np.asarray(part).astype(np.uint64) + np.uint64(1))
    return key


def permute(index: np.ndarray, size: np.ndarray | int, key: np.ndarray | int) -> np.ndarray:
    """Where each index goes in a keyed permutation of range(size): a Feistel network on the smallest even number of bits that
    holds size, walked until it lands inside (fewer than four steps on average).

    Args:
        index: [n] int64, each in range(size).
        size: one size, or [n] sizes, for elements of different permutations.
        key: one key, or [n] keys.

    Returns:
        [n] int64. For one size and key, a bijection of range(size).
    """
    index = np.asarray(index, dtype=np.uint64)
    size = np.broadcast_to(np.asarray(size, dtype=np.uint64), index.shape)
    key = np.broadcast_to(np.asarray(key).astype(np.uint64), index.shape)
    bits = np.ceil(np.log2(np.maximum(size, 2).astype(np.float64) + 0.5)).astype(np.uint64)
    half = (bits + np.uint64(1)) >> np.uint64(1)
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = np.array(index)
    pending = np.arange(len(index))
    while len(pending):
        shift, low, secret = half[pending], mask[pending], key[pending]
        left, right = result[pending] >> shift, result[pending] & low
        for number in range(ROUNDS):
            with np.errstate(over="ignore"):
                salted = secret + np.uint64(number * 0xD1B54A32D192ED03 & 0xFFFFFFFFFFFFFFFF)
            left, right = right, left ^ (mix(right, salted) & low)
        result[pending] = (left << shift) | right
        pending = pending[result[pending] >= size[pending]]
    return result.astype(np.int64)


class SubBatch(NamedTuple):
    """Some examples of one task: the unit that the mixture draws and an update averages over."""

    task: int
    examples: np.ndarray  # positions in the task's store
    key: int  # for whatever is drawn about these examples: masks, say


def shares(sizes: Sequence[int], sampling: str = "natural", cap: int | None = None, temperature: float = 1.0) -> np.ndarray:
    """Examples each task contributes to an epoch [tasks].

    natural: all of them, so that an epoch is exact coverage (MUPPET 3.4). temperature: in proportion to
    size ** (1 / temperature), with as many examples in all. uniform: equally many each. `cap` bounds a task's size beforehand
    (T5, Raffel et al. 2020, 3.5.2).
    """
    sizes_ = np.asarray(sizes, dtype=np.float64)
    capped = np.minimum(sizes_, cap) if cap is not None else sizes_
    if sampling == "natural":
        return capped.astype(np.int64)
    weights = capped ** (1 / temperature) if sampling == "temperature" else np.ones_like(capped)
    return np.maximum(1, np.round(weights / weights.sum() * capped.sum())).astype(np.int64)


@dataclass(frozen=True)
class Mixture:
    """The stream of updates of a run.

    Args:
        sizes: examples per task.
        contributions: examples each task contributes to an epoch; see `shares`.
        sub_batches: how many sub-batches an update averages (K).
        sub_batch_size: examples in a sub-batch; the last of a task's epoch may be smaller.
        order: 'heterogeneous' (updates mix tasks as chance has it), 'batch-homogeneous' (every update is one task's, updates
            shuffled) or 'dataset-homogeneous' (tasks one after another): MUPPET 5.2.
        seed: of all orders.
        updates: length of the run; None for `epochs` epochs.
        epochs: epochs to run where `updates` is None.
    """

    sizes: tuple[int, ...]
    contributions: tuple[int, ...]
    sub_batches: int
    sub_batch_size: int
    order: str = "heterogeneous"
    seed: int = 0
    updates: int | None = None
    epochs: float = 1.0

    @property
    def counts(self) -> np.ndarray:
        """Sub-batches per epoch, by task."""
        return -(-np.asarray(self.contributions) // self.sub_batch_size)

    @property
    def updates_per_epoch(self) -> float:
        if self.order == "heterogeneous":
            return float(self.counts.sum() / self.sub_batches)
        return float((-(-self.counts // self.sub_batches)).sum())

    @property
    def num_updates(self) -> int:
        """Of the whole run. The last update of a run by epochs may hold fewer than `sub_batches` sub-batches."""
        if self.updates is not None:
            return self.updates
        if self.order == "heterogeneous":
            return -(-self._last_position // self.sub_batches)
        return max(1, int(np.ceil(self.epochs * self.updates_per_epoch - 1e-9)))

    @property
    def _last_position(self) -> int:
        """Sub-batches of a heterogeneous run by epochs, all together."""
        return max(1, round(self.epochs * int(self.counts.sum())))

    def update(self, number: int) -> list[SubBatch]:
        """The sub-batches of update `number`, counted from 0."""
        task, place = getattr(self, "_" + self.order.replace("-", "_"))(number)
        return self._draw(task, place)

    # Each order answers: which task, and which of the task's sub-batches counted over all epochs. Both [k].

    def _heterogeneous(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        total, ends = int(self.counts.sum()), np.cumsum(self.counts)
        positions = np.arange(number * self.sub_batches, (number + 1) * self.sub_batches)
        if self.updates is None:  # exact coverage ends with the last epoch
            positions = positions[positions < self._last_position]
        epoch, within = positions // total, positions % total
        shuffled = permute(within, total, hash_key(self.seed, 1, epoch))
        task = np.searchsorted(ends, shuffled, side="right")
        return task, epoch * self.counts[task] + shuffled - (ends - self.counts)[task]

    def _batch_homogeneous(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        per_task = -(-self.counts // self.sub_batches)
        total, ends = int(per_task.sum()), np.cumsum(per_task)
        epoch, within = divmod(number, total)
        shuffled = permute(np.array([within]), total, hash_key(self.seed, 1, epoch))[0]
        task = int(np.searchsorted(ends, shuffled, side="right"))
        first = int(shuffled - (ends - per_task)[task]) * self.sub_batches
        place = np.arange(first, min(first + self.sub_batches, int(self.counts[task])))
        return np.full(len(place), task), epoch * self.counts[task] + place

    def _dataset_homogeneous(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        per_task = -(-self.counts // self.sub_batches)
        turn = permute(np.arange(len(per_task)), len(per_task), hash_key(self.seed, 1))
        bounds = np.round(np.cumsum(per_task[turn]) / per_task.sum() * self.num_updates).astype(np.int64)
        stint = int(np.searchsorted(bounds, number, side="right"))
        task = int(turn[stint])
        epoch, within = divmod(number - (int(bounds[stint - 1]) if stint else 0), int(per_task[task]))
        first = within * self.sub_batches
        place = np.arange(first, min(first + self.sub_batches, int(self.counts[task])))
        return np.full(len(place), task), epoch * self.counts[task] + place

    def _draw(self, task: np.ndarray, place: np.ndarray) -> list[SubBatch]:
        """The examples of each sub-batch. A task's examples are one endless sequence of shuffled passes; epoch e covers the e-th
        stretch of `contributions` of them, so that a capped task goes on where it stopped and misses nothing in the long run."""
        sizes, contributions = np.asarray(self.sizes), np.asarray(self.contributions)
        epoch, within = place // self.counts[task], place % self.counts[task]
        starts = within * self.sub_batch_size
        widths = np.minimum(self.sub_batch_size, contributions[task] - starts)
        owner = np.repeat(np.arange(len(task)), widths)
        offset = np.arange(len(owner)) - np.repeat(np.cumsum(widths) - widths, widths)
        position = (epoch * contributions[task] + starts)[owner] + offset
        tasks, size = task[owner], sizes[task[owner]]
        examples = permute(position % size, size, hash_key(self.seed, 2, tasks, position // size))
        keys = (hash_key(self.seed, 3, task, place) >> np.uint64(1)).tolist()
        pieces = np.split(examples, np.cumsum(widths)[:-1])
        return [SubBatch(*parts) for parts in zip(task.tolist(), pieces, keys, strict=True)]
