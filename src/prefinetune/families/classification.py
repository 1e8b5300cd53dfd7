"""Classification: a text or a pair of texts -> one of n labels. One head per dataset, cross-entropy / log n (MUPPET 3.1, 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prefinetune.errors import InputError
from prefinetune.families.base import (
    Encoded,
    Example,
    Family,
    Field,
    Segment,
    apart,
    check_fields,
    is_right,
    read,
)
from prefinetune.families.labels import check_labels, label_index, labels_in, listed_values

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from prefinetune.model import Backbone, Head, States
    from prefinetune.tokenizer import Tokenizer


@dataclass(frozen=True)
class Classification(Family):
    """Fields `text`, optional `pair`, `label`; `labels` in the order of their indices (read from the data when left out)."""

    text: Field
    pair: Field | None = None
    label: Field = "label"
    labels: tuple[str, ...] | None = None

    kind: ClassVar[str] = "classification"
    hub_task: ClassVar[str] = "text-classification"
    metric: ClassVar[str] = "accuracy"
    head_kind: ClassVar[str] = "sentence"
    probability_type: ClassVar[Any] = dict

    def __post_init__(self) -> None:
        check_fields(text=self.text, pair=self.pair, label=self.label)
        if self.labels is not None:
            check_labels(self.labels, "labels")

    def fields(self) -> tuple[Field, ...]:
        return tuple(part for part in (self.text, self.pair, self.label) if part is not None)

    def inputs(self) -> tuple[Field, ...]:
        return apart(self.text, self.pair)

    @property
    def is_frozen(self) -> bool:
        return self.labels is not None

    def freeze(self, rows: Dataset, place: str) -> Classification:
        names = getattr(rows.features.get(self.label), "names", None) if isinstance(self.label, str) else None
        if self.labels is not None:
            family = self
        elif names:
            family = replace(self, labels=tuple(names))
        else:
            given = lambda row: () if self.skips(row) else (read(row, self.label),)  # noqa: E731
            values = listed_values(rows, self.label, given, place)
            family = replace(self, labels=labels_in(values, self.label, place))
        return family

    def example(self, row: Mapping[str, Any]) -> Example:
        assert self.labels is not None, "freeze() comes before example()"
        target = label_index(read(row, self.label), self.labels, self.label)
        return Example(self.texts(row), target)

    def name_target(self, example: Example) -> str:
        assert self.labels is not None
        return self.labels[example.target]

    def label_names(self, example: Example) -> tuple[str, ...]:
        return (self.name_target(example),)

    def head(self, backbone: Backbone) -> Head:
        assert self.labels is not None
        return backbone.new_head(self.head_kind, num_labels=len(self.labels))

    def apply(self, head: Head, states: States, segment: Segment) -> torch.Tensor:
        return head.sentence(states, segment.rows)  # [e, n]

    def loss(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(output.float(), segment.targets, reduction="none")

    def outcomes(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        import torch

        assert self.labels is not None
        return torch.full_like(segment.weights, len(self.labels))

    def predict(self, output: torch.Tensor, segment: Segment) -> list[int]:
        return output.argmax(-1).tolist()

    def readable(self, prediction: int, example: Encoded) -> dict[str, Any]:
        assert self.labels is not None
        return {"prediction": self.labels[prediction], "reference": self.labels[int(example.target[0])]}

    def choices(self, output: torch.Tensor, segment: Segment) -> list[np.ndarray]:
        return list(output.double().cpu().numpy()[:, None])

    def named_probabilities(self, probabilities: np.ndarray) -> dict[str, float]:
        assert self.labels is not None
        return dict(zip(self.labels, probabilities[0].tolist(), strict=True))

    def score(self, predictions: Sequence[int], examples: Sequence[Encoded]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        gold = [int(example.target[0]) for example in examples]
        most = max(gold.count(label) for label in set(gold)) / len(gold)
        return {
            "accuracy": float(accuracy_score(gold, predictions)),
            "macro_f1": float(f1_score(gold, predictions, average="macro", zero_division=0)),
            "matthews": float(matthews_corrcoef(gold, predictions)) if len({*gold, *predictions}) > 1 else 0.0,
            "majority": most,  # accuracy of always answering the most frequent label of this split
        }

    def row_statistics(self, predictions: Sequence[int], examples: Sequence[Encoded]) -> np.ndarray:
        return is_right(predictions, examples)

    def strata(self, targets: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(targets)

    def head_identity(self) -> dict[str, Any]:
        return {**super().head_identity(), "labels": list(self.labels or ())}

    def finish(self, model: Any, tokenizer: Tokenizer | None = None) -> None:
        model.config.id2label = dict(enumerate(self.labels or ()))
        model.config.label2id = {label: index for index, label in enumerate(self.labels or ())}
        model.config.problem_type = "single_label_classification"

    def identity(self) -> dict[str, Any]:
        if self.labels is None:
            raise InputError("labels are not known yet")
        return super().identity()
