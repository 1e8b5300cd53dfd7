"""Tagging: a list of words -> a tag for each (entities, parts of speech). One head per dataset.

A word is read off its first token. The mean over the words of an example of their cross-entropies, / log n (MUPPET 3.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prefinetune.errors import FieldError, InputError
from prefinetune.families.base import (
    Encoded,
    Example,
    Family,
    Field,
    Segment,
    check_fields,
    read,
    symmetric_kl,
)
from prefinetune.families.labels import (
    check_labels,
    f1_of_counts,
    hub_labels,
    label_index,
    labels_in,
    listed_values,
    name_outputs,
)
from prefinetune.families.language import mean_by_example

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from prefinetune.model import Backbone, Head, States
    from prefinetune.tokenizer import Tokenizer

OUTSIDE = "O"  # the tag of words that belong to no span
CHUNK_TAG = re.compile(r"[BIES](-.+)?")  # the beginning, inside or end of a span, or all of it


@dataclass(frozen=True)
class Tagging(Family):
    """Fields `tokens`: a list of words, or a text that is split at white space; `tags`: a list of as many names or indices, or a
    text of names. `labels` in the order of their indices (read from the data when left out).

    Where every label but "O" begins with B, I, E or S ("B-PER"), scores are of the spans that the tags make. Otherwise (parts of
    speech, say) every word whose tag is not "O" is a span of its own.
    """

    tokens: Field
    tags: Field = "tags"
    labels: tuple[str, ...] | None = None

    kind: ClassVar[str] = "tagging"
    hub_task: ClassVar[str] = "token-classification"
    metric: ClassVar[str] = "f1"
    label_words: ClassVar[str] = "tags of words"
    head_kind: ClassVar[str] = "token"
    target_type: ClassVar[type] = np.int32
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    answer_type: ClassVar[Any] = list[str]
    probability_type: ClassVar[Any] = list

    def __post_init__(self) -> None:
        check_fields(tokens=self.tokens, tags=self.tags)
        for name, value in (("tokens", self.tokens), ("tags", self.tags)):
            if isinstance(value, tuple):
                raise InputError(f"{name}: {value!r} is not accepted; expected one field")
        if self.labels is not None:
            check_labels(self.labels, "labels")

    def check(self, tokenizer: Tokenizer) -> None:
        """Any tokenizer will do: a word is read where it stands."""

    def fields(self) -> tuple[Field, ...]:
        return (self.tokens, self.tags)

    def inputs(self) -> tuple[Field, ...]:
        return (self.tokens,)

    def label_field(self) -> Field:
        return self.tags

    @property
    def is_frozen(self) -> bool:
        return self.labels is not None

    def freeze(self, rows: Dataset, place: str) -> Tagging:
        if self.is_frozen:
            return self
        if names := hub_labels(rows, self.tags):
            return replace(self, labels=names)
        given = lambda row: () if self.skips(row) else self._parts(row, self.tags, "tags")  # noqa: E731
        return replace(self, labels=labels_in(listed_values(rows, self.tags, given, place), self.tags, place))

    def _parts(self, row: Mapping[str, Any], where: Field, what: str) -> list[Any]:
        value = read(row, where)
        parts = value.split() if isinstance(value, str) else value
        if not isinstance(parts, Sequence):
            raise FieldError(where, value, f"a list of {what}, or a text with {what} between white space")
        return list(parts)

    def example(self, row: Mapping[str, Any]) -> Example:
        """The reference is the words."""
        assert self.labels is not None, "freeze() comes before example()"
        words = self._words(row)
        tags = self._parts(row, self.tags, "tags")
        if len(words) != len(tags):
            raise FieldError(self.tags, read(row, self.tags), f"{len(words)} tags, one for each word; there are {len(tags)}")
        target = tuple(label_index(tag, self.labels, self.tags) for tag in tags)
        return Example(((" ".join(words), None),), target, words)

    def unanswered(self, row: Mapping[str, Any]) -> Example:
        words = self._words(row)
        return Example(((" ".join(words), None),), (0,) * len(words), words)

    def _words(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        words = tuple(word_text(word, self.tokens) for word in self._parts(row, self.tokens, "words"))
        if not any(word.strip() for word in words):
            raise FieldError(self.tokens, read(row, self.tokens), "at least one word")
        return words

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, for_training: bool = True) -> list[Encoded]:
        """Training takes what fits of a long text; evaluation reads all of it, in overlapping windows, and takes each word from
        the window in whose middle it stands. A target is each word's (window, place of its first token, tag); words that
        the tokenizer drops have place -1, and are not trained on."""
        encoded = []
        words = tokenizer.words([example.reference for example in examples], whole=not for_training)
        for index, (example, (sequences, places, cut)) in enumerate(zip(examples, words, strict=True)):
            target: np.ndarray = np.concatenate([places, np.array([example.target])]).astype(self.target_type)  # [3, w]
            if for_training:
                target = target[:, places[1] >= 0]
            encoded.append(
                Encoded(
                    sequences=sequences,
                    first=[len(ids) for ids in sequences],
                    target=target.reshape(-1),
                    source=index,
                    truncated=int(cut),
                    reference=None if for_training else example.reference,
                    # Where there is a decoder, its head reads the encoder only.
                    output=None if tokenizer.decoder is None else np.zeros(0, dtype=np.int32),
                )
            )
        return encoded

    def collate(self, examples: Sequence[Encoded]) -> torch.Tensor:
        """[4, m]: for each of the m words with a token its example, its row in the segment, its place there and its tag."""
        import torch

        words = [example.target.reshape(3, -1) for example in examples]
        first_rows = np.cumsum([0, *(len(example.sequences) for example in examples)])
        found = []
        for index, (window, place, tag) in enumerate(words):
            there = place >= 0
            owner = np.full(there.sum(), index)
            found.append(np.stack([owner, first_rows[index] + window[there], place[there], tag[there]]))
        return torch.from_numpy(np.concatenate(found, axis=1).astype(np.int64))

    def name_target(self, example: Example) -> str:
        """As in "Ann/B-PER left/O"."""
        return " ".join(f"{word}/{tag}" for word, tag in zip(example.reference, self._names(example.target), strict=True))

    def label_names(self, example: Example) -> tuple[str, ...]:
        return tuple(self._names(example.target))

    def num_labelled(self, example: Example) -> int:
        return len(example.target)

    def _names(self, indices: Any) -> list[str]:
        assert self.labels is not None
        return [self.labels[index] for index in indices]

    def head(self, backbone: Backbone) -> Head:
        assert self.labels is not None
        return backbone.new_head(self.head_kind, num_labels=len(self.labels))

    def apply(self, head: Head, states: States, segment: Segment) -> torch.Tensor:
        _, row, place, _ = segment.targets
        return head.chosen_tokens(states, segment.rows[row], place)  # [m, n]

    def loss(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        return mean_by_example(cross_entropy(output.float(), segment.targets[3], reduction="none"), segment)

    def outcomes(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        import torch

        return torch.full_like(segment.weights, output.shape[-1])

    def divergence(self, output: torch.Tensor, noised: torch.Tensor, segment: Segment) -> torch.Tensor:
        """The mean over an example's words of each one's."""
        return mean_by_example(symmetric_kl(output, noised), segment)

    def predict(self, output: torch.Tensor, segment: Segment) -> list[list[str]]:
        """A tag per word; one that the tokenizer drops gets "O", or the first label where there is no "O"."""
        assert self.labels is not None
        nothing = self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0
        best, at = output.argmax(-1).cpu().numpy(), 0
        found = []
        for example in segment.examples:
            there = example.target.reshape(3, -1)[1] >= 0
            tags = np.full(len(there), nothing)
            tags[there] = best[at : at + there.sum()]
            at += there.sum()
            found.append(self._names(tags))
        return found

    def choices(self, output: torch.Tensor, segment: Segment) -> list[np.ndarray]:
        """One per word."""
        logits, at = output.double().cpu().numpy(), 0
        found = []
        for example in segment.examples:
            there = example.target.reshape(3, -1)[1] >= 0
            mine = np.full((len(there), logits.shape[1]), np.nan)
            mine[there] = logits[at : at + there.sum()]
            at += there.sum()
            found.append(mine)
        return found

    def chosen(self, example: Encoded) -> np.ndarray:
        return example.target.reshape(3, -1)[2]

    def named_probabilities(self, probabilities: np.ndarray) -> list[float | None]:
        """Of the tag that each word got; None for a word that the tokenizer drops."""
        return [None if np.isnan(most) else float(most) for most in probabilities.max(axis=-1)]

    def _gold(self, example: Encoded) -> list[str]:
        return self._names(example.target.reshape(3, -1)[2])

    def readable(self, prediction: Sequence[str], example: Encoded) -> dict[str, Any]:
        return {"tokens": list(example.reference), "prediction": list(prediction), "reference": self._gold(example)}

    def spans(self, tags: Sequence[str]) -> set[tuple[str, int, int]]:
        """(type, first word, last word) of each span, as conlleval and seqeval count them: it goes on while inside and end tags
        of its type follow, but not after the tag of an end; one that begins with an inside tag counts. Tags that are not those of
        beginnings and insides are a span per word."""
        if not all(label == OUTSIDE or CHUNK_TAG.fullmatch(label) for label in self.labels or ()):
            return {(tag, at, at) for at, tag in enumerate(tags) if tag != OUTSIDE}
        found: list[tuple[str, int, int]] = []
        before = OUTSIDE
        for at, tag in enumerate(tags):
            type_ = tag[2:]
            if tag[0] in "IE" and before[0] in "BI" and before[2:] == type_:
                found[-1] = (type_, found[-1][1], at)
            elif tag != OUTSIDE:
                found.append((type_, at, at))
            before = tag
        return set(found)

    def score(self, predictions: Sequence[Sequence[str]], examples: Sequence[Encoded]) -> dict[str, float]:
        """Micro F1, precision and recall of spans, and the share of words with the right tag."""
        counts = self.row_statistics(predictions, examples)
        right, predicted, true = counts.sum(axis=0)
        pairs = zip(predictions, examples, strict=True)
        hits = np.concatenate([np.array(found) == np.array(self._gold(example)) for found, example in pairs])
        return {
            "f1": float(self.score_of_means(counts.mean(axis=0))),
            "precision": float(right / max(1, predicted)),
            "recall": float(right / max(1, true)),
            "accuracy": float(hits.mean()),
        }

    def row_statistics(self, predictions: Sequence[Sequence[str]], examples: Sequence[Encoded]) -> np.ndarray:
        """[e, 3]: how many spans are right, predicted and true."""
        rows = []
        for found, example in zip(predictions, examples, strict=True):
            predicted, true = self.spans(found), self.spans(self._gold(example))
            rows.append([len(predicted & true), len(predicted), len(true)])
        return np.array(rows, dtype=np.float64)

    @classmethod
    def score_of_means(cls, means: np.ndarray) -> np.ndarray:
        return f1_of_counts(means)

    def head_identity(self) -> dict[str, Any]:
        return {**super().head_identity(), "labels": list(self.labels or ())}

    def finish(self, model: Any, tokenizer: Tokenizer | None = None) -> None:
        name_outputs(model.config, self.labels or ())

    def identity(self) -> dict[str, Any]:
        if self.labels is None:
            raise InputError("labels are not known yet")
        return super().identity()


def word_text(value: Any, where: Field) -> str:
    """A word, or a number as one.

    Raises:
        FieldError: it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    raise FieldError(where, value, f"words, not {type(value).__name__}")
