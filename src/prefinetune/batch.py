"""The sub-batches of one update as micro-batches: length-sorted rectangles under a token budget.

Each example's weight in the whole update is fixed before anything is cut, so that the cut is a matter of speed only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from prefinetune.families import Encoded, Family, Segment

# What one more micro-batch costs beside its tokens (kernel launches, adding up weight gradients), in tokens of compute.
# Measured on CPU: from 32 to 128 MiniLM-L6 differs by under 5 %, and from 64 to 600 a model of 2 layers x 128 by under 13 %.
MICRO_BATCH_COST = 64


class Drawn(NamedTuple):
    """An example in an update."""

    example: Encoded
    task: str
    family: Family
    weight: float  # 1 / (K x size of its sub-batch), over the whole update
    noised: bool = False  # whether it has a noised pass as well (R3F)


@dataclass(slots=True)
class Batch:
    """One micro-batch: rows of several tasks, and which are whose. Rows from `clean` on are copies with noised embeddings."""

    ids: torch.Tensor  # [b, l]
    mask: torch.Tensor  # [b, l]
    token_types: torch.Tensor | None  # [b, l]
    outputs: torch.Tensor | None  # [b, t] what a decoder shall have read when it has read all; None: there is nothing to read
    segments: list[Segment]
    clean: int

    @property
    def tokens(self) -> int:
        """Real ones that the model reads, but for noised copies."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def padded(self) -> int:
        """The same with padding."""
        return self.clean * (self.ids.shape[1] + (0 if self.outputs is None else self.outputs.shape[1]))

    def to(self, device: torch.device | str) -> Batch:
        if torch.device(device).type == "cpu":
            return self
        types = None if self.token_types is None else self.token_types.to(device)
        outputs = None if self.outputs is None else self.outputs.to(device)
        segments = [segment.to(device) for segment in self.segments]
        return Batch(self.ids.to(device), self.mask.to(device), types, outputs, segments, self.clean)


def lay_out(
    lengths: Sequence[int], rows: Sequence[int], token_budget: int, decoded: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Cut examples, longest first, into micro-batches of least total cost (tokens with padding, and a fixed cost each).

    Args:
        lengths: [n] tokens of each example's longest sequence.
        rows: [n] sequences of each example; they stay together.
        token_budget: most tokens of a micro-batch, padding included; an example larger than that stands alone.
        decoded: [n] tokens that a decoder reads beside each sequence of an example. Examples that have as many as their sequence
            (it is read again) come after those that have a target of their own, which is mostly much shorter.

    Returns:
        Index arrays, one per micro-batch; each example in exactly one.
    """
    encoder, decoder = np.asarray(lengths), np.zeros(len(lengths), np.int64) if decoded is None else np.asarray(decoded)
    order = np.lexsort((np.arange(len(encoder)), -decoder, -encoder, decoder == encoder))
    sizes = np.asarray(rows)[order]
    encoder, decoder = encoder[order], decoder[order]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    best = np.zeros(len(order) + 1)  # least cost of the first i examples
    cut = np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        starts = np.arange(max(0, end - 1024), end)
        longest = longest_from(encoder[starts]) + longest_from(decoder[starts])
        tokens = (ends[end] - ends[starts]) * longest
        allowed = (tokens <= token_budget) | (starts == end - 1)
        starts, tokens = starts[allowed], tokens[allowed]
        costs = best[starts] + tokens + MICRO_BATCH_COST
        choice = int(np.argmin(costs))
        best[end], cut[end] = costs[choice], starts[choice]
    pieces, end = [], len(order)
    while end:
        pieces.append(order[cut[end] : end])
        end = int(cut[end])
    return pieces[::-1]


def longest_from(lengths: np.ndarray) -> np.ndarray:
    """The largest of each and all that follow it."""
    return np.maximum.accumulate(lengths[::-1])[::-1]


def decoded_length(example: Encoded) -> int:
    """Tokens that a decoder reads beside each sequence of an example: its output, or the sequence once more."""
    return example.length if example.output is None else len(example.output)


def rectangle(sequences: Sequence[np.ndarray], fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences as one array [n, longest], and their lengths [n]."""
    lengths = np.array([len(sequence) for sequence in sequences])
    filled = np.full((len(sequences), int(lengths.max())), fill, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        filled[row, : len(sequence)] = sequence
    return filled, lengths


def make_batch(drawn: Sequence[Drawn], pad_id: int, token_types: bool, decodes: bool = False) -> Batch:
    """One micro-batch; examples of a task become one segment, those with a noised pass another one.

    Args:
        decodes: whether the model has a decoder.
    """
    by_segment: dict[tuple[str, bool], list[Drawn]] = {}
    for one in drawn:
        by_segment.setdefault((one.task, one.noised), []).append(one)
    examples = [one.example for group in by_segment.values() for one in group]
    ids, lengths = rectangle([sequence for example in examples for sequence in example.sequences], pad_id)
    place = np.arange(ids.shape[1])
    mask = (place < lengths[:, None]).astype(np.int64)
    types, outputs, decoded = None, None, np.zeros_like(lengths)
    if token_types:
        first = np.array([value for example in examples for value in example.first])
        types = ((place >= first[:, None]) & (mask == 1)).astype(np.int64)
    if decodes:
        read = [sequence if one.output is None else one.output for one in examples for sequence in one.sequences]
        outputs, decoded = rectangle(read, pad_id)
    segments, start, copies = [], 0, [np.arange(len(ids))]
    copied = len(ids)
    for (task, noised), group in by_segment.items():
        mine = [one.example for one in group]
        sizes = [len(example.sequences) for example in mine]
        end = start + sum(sizes)
        segment = Segment(
            task,
            group[0].family,
            mine,
            rows=torch.arange(start, end),
            sizes=torch.tensor(sizes),
            lengths=torch.from_numpy(lengths[start:end]),
            targets=group[0].family.collate(mine),
            weights=torch.tensor([one.weight for one in group], dtype=torch.float32),
            tokens=int(lengths[start:end].sum() + decoded[start:end].sum()),
        )
        if noised:
            segment.noised = replace(segment, rows=torch.arange(copied, copied + end - start))
            copies.append(np.arange(start, end))
            copied += end - start
        segments.append(segment)
        start = end
    rows = np.concatenate(copies)

    def tensor(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None or not array.shape[1] else torch.from_numpy(array[rows])

    return Batch(torch.from_numpy(ids[rows]), torch.from_numpy(mask[rows]), tensor(types), tensor(outputs), segments, len(ids))


def micro_batches(
    drawn: Sequence[Drawn], token_budget: int, pad_id: int, token_types: bool, decodes: bool = False
) -> list[Batch]:
    """All micro-batches of an update; noised copies count in the budget."""
    examples = [one.example for one in drawn]
    rows = [len(one.example.sequences) * (2 if one.noised else 1) for one in drawn]
    decoded = [decoded_length(example) for example in examples] if decodes else None
    cuts = lay_out([example.length for example in examples], rows, token_budget, decoded)
    return [make_batch([drawn[i] for i in cut], pad_id, token_types, decodes) for cut in cuts]
