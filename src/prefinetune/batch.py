"""The sub-batches of one update as micro-batches under a token budget. A micro-batch is a *stream*: the tokens of its sequences
end to end, and where each sequence lies. A model that can read streams computes no padding; for others a stream is laid out as a
rectangle, and examples of similar lengths go together.

Each example's weight in the whole update is fixed before anything is cut, so that the cut is a matter of speed only.

Letters: b sequences of a micro-batch, n tokens of its stream, t tokens that its decoder reads, k tokens that its heads read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from heapq import heapreplace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from prefinetune.families import Encoded, Family, Segment
from prefinetune.mixture import hash_key
from prefinetune.ops import Bounds, move

# What one more rectangle costs beside its tokens (kernel launches, adding up weight gradients), in tokens of compute.
# Measured on CPU: from 32 to 128 MiniLM-L6 differs by under 5 %, and from 64 to 600 a model of 2 layers x 128 by under 13 %.
MICRO_BATCH_COST = 64


class Layout(NamedTuple):
    """How a model reads its micro-batches; `MultiTask.layout` tells."""

    pad_id: int
    token_types: bool = False  # whether it tells a pair's second text by another type
    decodes: bool = False  # whether it has a decoder
    packed: bool = False  # whether it reads streams as they are
    sentence_id: int | None = None  # a sentence is read off its last token of this id; None: off its first token
    pools: bool = False  # a sentence is read off all of its tokens
    one_task: bool = False  # whether every micro-batch is of one task, as its gradient must stay apart from others' (balancing)


class Drawn(NamedTuple):
    """An example in an update."""

    example: Encoded
    task: str
    family: Family
    weight: float  # 1 / (K x size of its sub-batch), over the whole update
    noised: bool = False  # whether it has a noised pass as well (R3F)
    key: int = 0  # of the noise in that


@dataclass(slots=True)
class Batch:
    """One micro-batch: sequences of several tasks, and whose they are. From `clean` on they are copies with noised embeddings."""

    ids: torch.Tensor  # [n]
    bounds: Bounds  # of the b sequences in it
    token_types: torch.Tensor | None  # [n]
    outputs: torch.Tensor | None  # [t] what a decoder shall have read when it has read all; None: there is nothing to read
    output_bounds: Bounds | None  # of the b sequences in that
    anchors: torch.Tensor  # [b] place of the token that a sentence is read off, in its sequence
    kept: torch.Tensor  # [k] the tokens that heads read, in the stream (in the decoder's, where there is one)
    kept_bounds: Bounds
    segments: list[Segment]
    clean: int
    clean_tokens: int  # of the n
    copy_keys: torch.Tensor  # [b - clean] int64, of the noise on each copy
    layout: Layout

    @property
    def tokens(self) -> int:
        """Real ones that the model reads, but for noised copies."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def padded(self) -> int:
        """The same with padding."""
        if self.layout.packed:
            return self.tokens
        return self.clean * (self.bounds.longest + (0 if self.output_bounds is None else self.output_bounds.longest))

    def rectangle(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The sequences padded to the longest of them: ids, mask (1 on real tokens) and token types, [b, longest] each."""
        mask = self.bounds.mask()
        types = None if self.token_types is None else self.bounds.spread(self.token_types, 0)
        return self.bounds.spread(self.ids, self.layout.pad_id), mask.long(), types

    def noise_keys(self) -> torch.Tensor:
        """[n - clean_tokens] a key for the noise on each token of the copies."""
        lengths, count = self.bounds.lengths[self.clean :], self.bounds.total - self.clean_tokens
        places = self.bounds.places()[self.clean_tokens :]
        return token_keys(self.copy_keys.repeat_interleave(lengths, output_size=count), places)

    def noise_keys_in_rectangle(self) -> torch.Tensor:
        """[b - clean, longest] the same, and some on padding."""
        return token_keys(self.copy_keys[:, None], torch.arange(self.bounds.longest, device=self.copy_keys.device))

    def to(self, device: torch.device | str) -> Batch:
        """On a device. To a GPU it is copied from pinned memory, while the GPU goes on computing."""
        if torch.device(device).type == "cpu":
            return self
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) if isinstance(value, Bounds) else value for name, value in moved.items()}
        moved = {name: move(value, device) if isinstance(value, torch.Tensor) else value for name, value in moved.items()}
        return Batch(**moved | {"segments": [segment.to(device) for segment in self.segments]})

    def without_weight(self) -> Batch:
        """The same, with no part in the objective."""
        return replace(self, segments=[replace(one, weights=torch.zeros_like(one.weights)) for one in self.segments])


def deal(costs: np.ndarray, ranks: int) -> list[np.ndarray]:
    """Deal examples out to processes so that each has about the same to compute: the dearest first, each to the one that has
    least so far (Graham 1969: at most 4/3 of the best there is, and far less with many small ones).

    Args:
        costs: [n] tokens that a model reads of each example.
        ranks: processes.

    Returns:
        Indices for each process, ascending; some may have none.
    """
    loads = [(0, rank) for rank in range(ranks)]
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for index in np.argsort(-np.asarray(costs), kind="stable").tolist():
        load, rank = loads[0]
        dealt[rank].append(index)
        heapreplace(loads, (load + int(costs[index]), rank))
    return [np.sort(np.array(mine, dtype=np.int64)) for mine in dealt]


def lay_out(
    lengths: Sequence[int], rows: Sequence[int], token_budget: int, decoded: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Cut examples, longest first, into rectangles of least total cost (tokens with padding, and a fixed cost each).

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


def divide(tokens: Sequence[int], token_budget: int) -> list[np.ndarray]:
    """Cut examples of so many tokens, in their order, into as few streams as the budget allows, and those as equal as can be (the
    largest is as small as it could be); an example over the budget stands alone. Returns index arrays, one per micro-batch."""

    def cuts(limit: int) -> list[int]:
        found, size = [0], 0
        for at, count in enumerate(tokens):
            if size and size + count > limit:
                found.append(at)
                size = 0
            size += count
        return [*found, len(tokens)]

    fewest = len(cuts(token_budget))
    limit = bisect_left(range(token_budget), -fewest, key=lambda limit: -len(cuts(limit)))
    return [np.arange(start, end) for start, end in pairwise(cuts(limit))]


def token_keys(keys: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """A key for each token, of its sequence's key and its place in it."""
    return keys + places * 0x632BE59BD9B4E019


def decoded_length(example: Encoded) -> int:
    """Tokens that a decoder reads beside each sequence of an example: its output, or the sequence once more."""
    return example.length if example.output is None else len(example.output)


def read_length(one: Drawn, decodes: bool) -> int:
    """Tokens that a model reads of an example, by encoder and decoder, noised copies included."""
    again = sum(map(len, one.example.sequences)) if decodes and one.example.output is None else 0
    return (one.example.tokens + again) * (2 if one.noised else 1)


def make_batch(drawn: Sequence[Drawn], layout: Layout) -> Batch:
    """One micro-batch; examples of a task become one segment, those with a noised pass another one."""
    by_segment: dict[tuple[str, bool], list[Drawn]] = {}
    for one in drawn:
        by_segment.setdefault((one.task, one.noised), []).append(one)
    examples = [one.example for group in by_segment.values() for one in group]
    sequences = [sequence for example in examples for sequence in example.sequences]
    read = [sequence if one.output is None else one.output for one in examples for sequence in one.sequences]
    read = read if layout.decodes else [sequence[:0] for sequence in sequences]
    lengths, decoded = (np.array([len(sequence) for sequence in group]) for group in (sequences, read))
    segments, start, copies = [], 0, [np.arange(len(sequences))]
    copy_keys: list[np.ndarray] = [np.zeros(0, np.int64)]
    copied, whole = len(sequences), np.zeros(len(sequences), dtype=bool)
    for (task, noised), group in by_segment.items():
        mine, family = [one.example for one in group], group[0].family
        sizes = [len(example.sequences) for example in mine]
        end = start + sum(sizes)
        segment = Segment(
            task,
            family,
            mine,
            rows=torch.arange(start, end),
            sizes=torch.tensor(sizes),
            lengths=torch.from_numpy(lengths[start:end]),
            targets=family.collate(mine),
            weights=torch.tensor([one.weight for one in group], dtype=torch.float32),
            tokens=int(lengths[start:end].sum() + decoded[start:end].sum()),
        )
        whole[start:end] = layout.pools or not family.reads_one_token
        if noised:
            segment.noised = replace(segment, rows=torch.arange(copied, copied + end - start))
            copies.append(np.arange(start, end))
            copy_keys += [hash_key(one.key, np.arange(size)).view(np.int64) for one, size in zip(group, sizes, strict=True)]
            copied += end - start
        segments.append(segment)
        start = end
    rows = np.concatenate(copies)
    sequences, read = [sequences[row] for row in rows], [read[row] for row in rows]
    anchors = np.array([anchor(sequence, layout.sentence_id) for sequence in sequences])
    bounds, output_bounds = Bounds.of(lengths[rows]), Bounds.of(decoded[rows])
    kept, kept_bounds = keep(anchors, whole[rows], decoded[rows] if layout.decodes else lengths[rows])
    types = np.concatenate([np.arange(len(sequence)) for sequence in sequences]) if layout.token_types else None
    if types is not None:
        first = np.array([value for example in examples for value in example.first])[rows]
        types = (types >= np.repeat(first, lengths[rows])).astype(np.int64)
    decodes = layout.decodes and output_bounds.longest > 0
    return Batch(
        ids=stream(sequences),
        bounds=bounds,
        token_types=None if types is None else torch.from_numpy(types),
        outputs=stream(read) if decodes else None,
        output_bounds=output_bounds if decodes else None,
        anchors=torch.from_numpy(anchors),
        kept=kept,
        kept_bounds=kept_bounds,
        segments=segments,
        clean=len(copies[0]),
        clean_tokens=int(lengths.sum()),
        copy_keys=torch.from_numpy(np.concatenate(copy_keys)),
        layout=layout,
    )


def stream(sequences: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(sequences).astype(np.int64))


def anchor(sequence: np.ndarray, sentence_id: int | None) -> int:
    """The place that a sentence is read off: that of the last token of an id, or the first place."""
    found = np.flatnonzero(sequence == sentence_id)
    return 0 if sentence_id is None or not len(found) else int(found[-1])


def keep(anchors: np.ndarray, whole: np.ndarray, lengths: np.ndarray) -> tuple[torch.Tensor, Bounds]:
    """Which tokens of a stream are read: all of some sequences, the anchors of others (none of those that are empty)."""
    starts = np.cumsum(lengths) - lengths
    counts = np.where(whole, lengths, np.minimum(lengths, 1))
    bounds = Bounds.of(counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(np.repeat(starts + np.where(whole, 0, anchors), counts) + within), bounds


def micro_batches(drawn: Sequence[Drawn], token_budget: int, layout: Layout) -> list[Batch]:
    """All micro-batches of an update; noised copies count in the budget."""
    if layout.one_task:
        by_task: dict[str, list[Drawn]] = {}
        for one in drawn:
            by_task.setdefault(one.task, []).append(one)
        mixed = layout._replace(one_task=False)
        return [batch for mine in by_task.values() for batch in micro_batches(mine, token_budget, mixed)]
    if layout.packed:
        cuts = divide([read_length(one, layout.decodes) for one in drawn], token_budget)
    else:
        examples = [one.example for one in drawn]
        rows = [len(one.example.sequences) * (2 if one.noised else 1) for one in drawn]
        decoded = [decoded_length(example) for example in examples] if layout.decodes else None
        cuts = lay_out([example.length for example in examples], rows, token_budget, decoded)
    return [make_batch([drawn[i] for i in cut], layout) for cut in cuts]
