"""Multi-label: a text or a pair of texts -> any number of n labels, none included. One head per dataset.

Each label is a question of its own with two answers: the mean over labels of their binary cross-entropies, / log 2 (MUPPET 3.3).
"""

from __future__ import annotations

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
    apart,
    check_fields,
    read,
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

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from prefinetune.model import Backbone, Head, States
    from prefinetune.tokenizer import Tokenizer


@dataclass(frozen=True)
class MultiLabel(Family):
    """Fields `text`, optional `pair`, `label`: a column with a list of labels; or, with a `separator`, with one string of them
    (";" in "anger;fear"); or a tuple of columns with 0 or 1, one per label, which give the labels their names.

    `labels` in the order of their indices (read from the data when left out).
    """

    text: Field
    pair: Field | None = None
    label: Field = "label"
    labels: tuple[str, ...] | None = None
    separator: str | None = None

    kind: ClassVar[str] = "multi-label"
    hub_task: ClassVar[str] = "text-classification"
    metric: ClassVar[str] = "micro_f1"
    head_kind: ClassVar[str] = "sentence"
    target_type: ClassVar[type] = np.int8
    answer_type: ClassVar[Any] = list[str]
    probability_type: ClassVar[Any] = dict

    def __post_init__(self) -> None:
        check_fields(text=self.text, pair=self.pair, label=self.label)
        if self.separator is not None and (not isinstance(self.separator, str) or not self.separator):
            raise InputError(f"separator: {self.separator!r} is not accepted; expected what stands between labels, such as ';'")
        if isinstance(self.label, tuple):
            if self.separator is not None:
                raise InputError("separator: a label of several columns with 0 or 1 is not one text that could be split")
            if self.labels is None and not all(isinstance(part, str) for part in self.label):
                raise InputError("labels: missing; functions in place of columns give the labels no names")
            if self.labels is not None and len(self.labels) != len(self.label):
                raise InputError(f"labels: {len(self.labels)} names for {len(self.label)} columns; expected as many")
        if self.labels is not None:
            check_labels(self.labels, "labels")

    def fields(self) -> tuple[Field, ...]:
        return tuple(part for part in (self.text, self.pair, self.label) if part is not None)

    def inputs(self) -> tuple[Field, ...]:
        return apart(self.text, self.pair)

    @property
    def is_frozen(self) -> bool:
        return self.labels is not None

    def freeze(self, rows: Dataset, place: str) -> MultiLabel:
        if self.is_frozen:
            return self
        if isinstance(self.label, tuple):
            return replace(self, labels=tuple(str(column) for column in self.label))
        if names := hub_labels(rows, self.label):
            return replace(self, labels=names)
        values = listed_values(rows, self.label, lambda row: () if self.skips(row) else self._given(row), place)
        return replace(self, labels=labels_in(values, self.label, place))

    def _given(self, row: Mapping[str, Any]) -> Sequence[Any]:
        """The labels of a row, as names or indices."""
        value = read(row, self.label)
        if self.separator is not None:
            if value is None:  # how tables hold an empty text
                return ()
            if not isinstance(value, str):
                raise FieldError(self.label, value, f"a text with labels between {self.separator!r}")
            return [part for part in map(str.strip, value.split(self.separator)) if part]
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise FieldError(self.label, value, "a list of labels (or a separator, where they are one text)")
        return value

    def example(self, row: Mapping[str, Any]) -> Example:
        assert self.labels is not None, "freeze() comes before example()"
        if isinstance(self.label, tuple):
            chosen = [index for index, column in enumerate(self.label) if is_set(read(row, column), column)]
        else:
            chosen = sorted({label_index(value, self.labels, self.label) for value in self._given(row)})
        return Example(self.texts(row), tuple(chosen))

    def unanswered(self, row: Mapping[str, Any]) -> Example:
        return Example(self.texts(row), ())

    def stored_target(self, example: Example) -> np.ndarray:
        """[n] with 1 for the labels that the example has."""
        assert self.labels is not None
        target: np.ndarray = np.zeros(len(self.labels), dtype=self.target_type)
        target[list(example.target)] = 1
        return target

    def collate(self, examples: Sequence[Encoded]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.stack([example.target for example in examples]).astype(np.float32))  # [e, n]

    def name_target(self, example: Example) -> list[str]:
        return self._names(example.target)

    def label_names(self, example: Example) -> tuple[str, ...]:
        return tuple(self._names(example.target))

    def _names(self, indices: Sequence[int]) -> list[str]:
        assert self.labels is not None
        return [self.labels[index] for index in indices]

    def head(self, backbone: Backbone) -> Head:
        assert self.labels is not None
        return backbone.new_head(self.head_kind, num_labels=len(self.labels))

    def apply(self, head: Head, states: States, segment: Segment) -> torch.Tensor:
        return head.sentence(states, segment.rows)  # [e, n]

    def loss(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(output.float(), segment.targets, reduction="none").mean(-1)

    def outcomes(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        import torch

        return torch.full_like(segment.weights, 2)

    def divergence(self, output: torch.Tensor, noised: torch.Tensor, segment: Segment) -> torch.Tensor:
        """The mean over labels of each one's, between two yes-or-no answers."""
        first, second = output.float(), noised.float()
        return ((first.sigmoid() - second.sigmoid()) * (first - second)).mean(-1)

    def predict(self, output: torch.Tensor, segment: Segment) -> list[list[int]]:
        """The labels that are more likely than not."""
        return [np.flatnonzero(row).tolist() for row in (output > 0).cpu().numpy()]

    def readable(self, prediction: Sequence[int], example: Encoded) -> dict[str, Any]:
        gold = np.flatnonzero(example.target).tolist()
        return {"prediction": self._names(prediction), "reference": self._names(gold)}

    def choices(self, output: torch.Tensor, segment: Segment) -> list[np.ndarray]:
        """Each label is a choice between no and yes."""
        logits = output.double().cpu().numpy()
        return list(np.stack([np.zeros_like(logits), logits], axis=-1))

    def named_probabilities(self, probabilities: np.ndarray) -> dict[str, float]:
        assert self.labels is not None
        return dict(zip(self.labels, probabilities[:, 1].tolist(), strict=True))

    def score(self, predictions: Sequence[Sequence[int]], examples: Sequence[Encoded]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        gold = np.stack([example.target for example in examples])
        found = as_rows(predictions, gold.shape[1])
        counts = np.sort(gold.sum(axis=0, dtype=np.int64))[::-1].cumsum()  # [n] hits of always answering the k most frequent
        constant = 2 * counts / (np.arange(1, len(counts) + 1) * len(gold) + max(1, counts[-1]))
        return {
            "micro_f1": float(f1_score(gold, found, average="micro", zero_division=0)),
            "macro_f1": float(f1_score(gold, found, average="macro", zero_division=0)),
            "exact_match": float(accuracy_score(gold, found)),
            "majority": float(constant.max()),  # micro F1 of the best answer that is the same for every row of this split
        }

    def row_statistics(self, predictions: Sequence[Sequence[int]], examples: Sequence[Encoded]) -> np.ndarray:
        """[e, 3]: how many labels are right, predicted and true."""
        gold = np.stack([example.target for example in examples])
        found = as_rows(predictions, gold.shape[1])
        return np.stack([(found & gold).sum(1), found.sum(1), gold.sum(1)], axis=1).astype(np.float64)

    @classmethod
    def score_of_means(cls, means: np.ndarray) -> np.ndarray:
        return f1_of_counts(means)

    def strata(self, targets: Sequence[np.ndarray]) -> np.ndarray:
        """The rarest of an example's labels, so that a small subset has each; those without any are one more group."""
        rows = np.stack(targets)  # [e, n]
        rarity = np.where(rows == 1, rows.sum(axis=0, dtype=np.int64), len(rows) + 1)
        return np.where(rows.any(axis=1), rarity.argmin(axis=1), rows.shape[1])

    def head_identity(self) -> dict[str, Any]:
        return {**super().head_identity(), "labels": list(self.labels or ())}

    def finish(self, model: Any, tokenizer: Tokenizer | None = None) -> None:
        name_outputs(model.config, self.labels or ())
        model.config.problem_type = "multi_label_classification"

    def identity(self) -> dict[str, Any]:
        if self.labels is None:
            raise InputError("labels are not known yet")
        return super().identity()


def is_set(value: Any, where: Field) -> bool:
    """Whether a column of 0 and 1 says yes.

    Raises:
        FieldError: it holds something else.
    """
    if isinstance(value, str):  # as tables hold it
        value = {"0": 0, "1": 1, "false": 0, "true": 1}.get(value.strip().lower(), value)
    if isinstance(value, (bool, int, float, np.bool_, np.number)) and value in (0, 1):
        return bool(value)
    raise FieldError(where, value, "0 or 1, true or false")


def as_rows(predictions: Sequence[Sequence[int]], num_labels: int) -> np.ndarray:
    """[e, n]: 1 for each index that was predicted."""
    rows = np.zeros((len(predictions), num_labels), dtype=np.int8)
    for row, indices in zip(rows, predictions, strict=True):
        row[list(indices)] = 1
    return rows
