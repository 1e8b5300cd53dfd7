"""The mixture: how often each task is drawn, and the stream of sub-batches that results, a pure function of (seed, position).

Nothing is shuffled in memory: orders are keyed permutations that can be entered at any point, so that the state of the stream
is one integer and its memory is O(tasks), for a thousand rows as for a billion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

ROUNDS = 10  # of the Feistel network: with fewer, the smallest ranges show which places were neighbours (test_mixture.py)


def mix(value: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A 64-bit hash of value and key (the finalizer of SplitMix64, Steele et al. 2014); wraps around by design. Arrays: numpy
    warns of scalars that wrap around."""
    value = (value + key * np.uint64(0x9E3779B97F4A7C15)) ^ (key >> np.uint64(29))
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hash_key(*parts: int | np.ndarray) -> np.ndarray:
    """A 64-bit key from several integers, or one key per element of arrays of them."""
    key = np.full(np.broadcast_shapes(*(np.shape(part) for part in parts)), 0x243F6A8885A308D3, dtype=np.uint64)
    with np.errstate(over="ignore"):
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
    return walk(index, size, key, feistel)


def unpermute(index: np.ndarray, size: np.ndarray | int, key: np.ndarray | int) -> np.ndarray:
    """The inverse of `permute`: what goes to each index. With it, any example's place in a stream is found without a search."""
    return walk(index, size, key, feistel_back)


Halves = tuple[np.ndarray, np.ndarray]


def walk(index: np.ndarray, size: np.ndarray | int, key: np.ndarray | int, network: Callable[..., Halves]) -> np.ndarray:
    """Each index through a network until it is in range(size) again."""
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
        left, right = network(result[pending] >> shift, result[pending] & low, low, secret)
        result[pending] = (left << shift) | right
        pending = pending[result[pending] >= size[pending]]
    return result.astype(np.int64)


def feistel(left: np.ndarray, right: np.ndarray, mask: np.ndarray, key: np.ndarray) -> Halves:
    """Both halves of each number, after all rounds."""
    for number in range(ROUNDS):
        left, right = right, left ^ (mix(right, salted(key, number)) & mask)
    return left, right


def feistel_back(left: np.ndarray, right: np.ndarray, mask: np.ndarray, key: np.ndarray) -> Halves:
    """What `feistel` made these of."""
    for number in reversed(range(ROUNDS)):
        left, right = right ^ (mix(left, salted(key, number)) & mask), left
    return left, right


def salted(key: np.ndarray, number: int) -> np.ndarray:
    """The key of a round."""
    return key + np.uint64(number * 0xD1B54A32D192ED03 & 0xFFFFFFFFFFFFFFFF)


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

    # Arrays over tasks are made once: an update's own work does not grow with their number.

    @cached_property
    def counts(self) -> np.ndarray:
        """Sub-batches per epoch, by task."""
        return -(-self._contributions // self.sub_batch_size)

    @cached_property
    def _contributions(self) -> np.ndarray:
        return np.asarray(self.contributions)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.asarray(self.sizes)

    @cached_property
    def _ends(self) -> np.ndarray:
        """Of each task's sub-batches in the row of all of an epoch."""
        return np.cumsum(self.counts)

    @cached_property
    def _update_counts(self) -> np.ndarray:
        """Homogeneous updates per epoch, by task."""
        return -(-self.counts // self.sub_batches)

    @cached_property
    def _update_ends(self) -> np.ndarray:
        return np.cumsum(self._update_counts)

    @cached_property
    def _turns(self) -> tuple[np.ndarray, np.ndarray]:
        """(the tasks in the order of their stints, the update at which each stint ends)."""
        tasks = len(self._update_counts)
        turn = permute(np.arange(tasks), tasks, hash_key(self.seed, 1))
        ends = np.cumsum(self._update_counts[turn]) / self._update_counts.sum() * self.num_updates
        return turn, np.round(ends).astype(np.int64)

    @property
    def updates_per_epoch(self) -> float:
        if self.order == "heterogeneous":
            return float(self._ends[-1] / self.sub_batches)
        return float(self._update_counts.sum())

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
        return max(1, round(self.epochs * int(self._ends[-1])))

    def update(self, number: int) -> list[SubBatch]:
        """The sub-batches of update `number`, counted from 0."""
        task, place = getattr(self, "_" + self.order.replace("-", "_"))(number)
        return self._draw(task, place)

    # Each order answers: which task, and which of the task's sub-batches counted over all epochs. Both [k].

    def _heterogeneous(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        total = int(self._ends[-1])
        positions = np.arange(number * self.sub_batches, (number + 1) * self.sub_batches)
        if self.updates is None:  # exact coverage ends with the last epoch
            positions = positions[positions < self._last_position]
        epoch, within = positions // total, positions % total
        shuffled = permute(within, total, hash_key(self.seed, 1, epoch))
        task = np.searchsorted(self._ends, shuffled, side="right")
        return task, epoch * self.counts[task] + shuffled - (self._ends[task] - self.counts[task])

    def _batch_homogeneous(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        total = int(self._update_ends[-1])
        epoch, within = divmod(number, total)
        shuffled = permute(np.array([within]), total, hash_key(self.seed, 1, epoch))[0]
        task = int(np.searchsorted(self._update_ends, shuffled, side="right"))
        first = int(shuffled - (self._update_ends[task] - self._update_counts[task])) * self.sub_batches
        place = np.arange(first, min(first + self.sub_batches, int(self.counts[task])))
        return np.full(len(place), task), epoch * self.counts[task] + place

    def _dataset_homogeneous(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        turn, bounds = self._turns
        stint = int(np.searchsorted(bounds, number, side="right"))
        task = int(turn[stint])
        epoch, within = divmod(number - (int(bounds[stint - 1]) if stint else 0), int(self._update_counts[task]))
        first = within * self.sub_batches
        place = np.arange(first, min(first + self.sub_batches, int(self.counts[task])))
        return np.full(len(place), task), epoch * self.counts[task] + place

    def _draw(self, task: np.ndarray, place: np.ndarray) -> list[SubBatch]:
        """The examples of each sub-batch. A task's examples are one endless sequence of shuffled passes; epoch e covers the e-th
        stretch of `contributions` of them, so that a capped task goes on where it stopped and misses nothing in the long run."""
        sizes, contributions = self._sizes, self._contributions
        epoch, within = place // self.counts[task], place % self.counts[task]
        starts = within * self.sub_batch_size
        widths = np.minimum(self.sub_batch_size, contributions[task] - starts)
        ends = np.cumsum(widths)
        owner = np.repeat(np.arange(len(task)), widths)
        offset = np.arange(len(owner)) - np.repeat(ends - widths, widths)
        position = (epoch * contributions[task] + starts)[owner] + offset
        tasks, size = task[owner], sizes[task[owner]]
        examples = permute(position % size, size, hash_key(self.seed, 2, tasks, position // size))
        keys = (hash_key(self.seed, 3, task, place) >> np.uint64(1)).tolist()
        pieces = [examples[start:end] for start, end in zip((ends - widths).tolist(), ends.tolist(), strict=True)]
        return [SubBatch(*parts) for parts in zip(task.tolist(), pieces, keys, strict=True)]
