"""Regression: a text or a pair of texts -> a number in a known range. One head per dataset.

log(outcomes) has no meaning for a number, so the family states its own scale: targets are mapped to [0, 1] and the loss is
12 (prediction - target)^2. Against targets spread evenly over the range, the uninformed answer 1/2 then has expected loss 1, as
uniform predictions have in every other family (the variance of the uniform distribution on [0, 1] is 1/12).
"""

from __future__ import annotations

import math
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
from prefinetune.families.labels import listed_values

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from prefinetune.model import Backbone, Head, States
    from prefinetune.tokenizer import Tokenizer


@dataclass(frozen=True)
class Regression(Family):
    """Fields `text`, optional `pair`, `label` (a number); `low` and `high` bound it (read from the data when left out)."""

    text: Field
    pair: Field | None = None
    label: Field = "label"
    low: float | None = None
    high: float | None = None

    kind: ClassVar[str] = "regression"
    hub_task: ClassVar[str] = "text-classification"
    metric: ClassVar[str] = "pearson"
    head_kind: ClassVar[str] = "sentence"
    target_type: ClassVar[type] = np.float32
    answer_type: ClassVar[Any] = float

    def __post_init__(self) -> None:
        check_fields(text=self.text, pair=self.pair, label=self.label)
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise InputError(f"low: {self.low} is not below high: {self.high}")

    def fields(self) -> tuple[Field, ...]:
        return tuple(part for part in (self.text, self.pair, self.label) if part is not None)

    def inputs(self) -> tuple[Field, ...]:
        return apart(self.text, self.pair)

    @property
    def is_frozen(self) -> bool:
        return self.low is not None and self.high is not None

    def freeze(self, rows: Dataset, place: str) -> Regression:
        if self.is_frozen:
            return self
        given = lambda row: () if self.skips(row) else (self._number(row),)  # noqa: E731
        values = list(listed_values(rows, self.label, given, place))
        if not values:
            raise InputError(f"{place}: no row has a number in {self.label!r}")
        low, high = min(values), max(values)
        low, high = (low if self.low is None else self.low), (high if self.high is None else self.high)
        if not low < high:
            raise InputError(f"{place}: every value of {self.label!r} is {low}; regression needs at least two different values")
        return replace(self, low=low, high=high)

    def _number(self, row: Mapping[str, Any]) -> float:
        value = read(row, self.label)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise FieldError(self.label, value, "a number") from None
        if not math.isfinite(number):
            raise FieldError(self.label, value, "a finite number")
        return number

    def example(self, row: Mapping[str, Any]) -> Example:
        value = self._number(row)
        assert self.low is not None, "freeze() comes before example()"
        assert self.high is not None
        if not self.low <= value <= self.high:
            raise FieldError(self.label, value, f"a number between {self.low} and {self.high}")
        return Example(self.texts(row), (value - self.low) / (self.high - self.low))

    def name_target(self, example: Example) -> float:
        assert self.low is not None
        assert self.high is not None
        return example.target * (self.high - self.low) + self.low

    def head(self, backbone: Backbone) -> Head:
        return backbone.new_head(self.head_kind, num_labels=1)

    def apply(self, head: Head, states: States, segment: Segment) -> torch.Tensor:
        return head.sentence(states, segment.rows).squeeze(-1)  # [e]

    def loss(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        return 12 * (output.float() - segment.targets) ** 2

    def outcomes(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        import torch

        return torch.full_like(segment.weights, math.e)  # log e = 1: the loss carries its own scale

    def divergence(self, output: torch.Tensor, noised: torch.Tensor, segment: Segment) -> torch.Tensor:
        """24 (a - b)^2: the loss is the negative log-likelihood of a normal distribution of variance 1/24 around the prediction,
        and this is the symmetric KL divergence of two of them."""
        return 24 * (output.float() - noised.float()) ** 2

    def predict(self, output: torch.Tensor, segment: Segment) -> list[float]:
        assert self.low is not None
        assert self.high is not None
        return (output.float() * (self.high - self.low) + self.low).tolist()

    def readable(self, prediction: float, example: Encoded) -> dict[str, Any]:
        assert self.low is not None
        assert self.high is not None
        return {"prediction": prediction, "reference": float(example.target[0]) * (self.high - self.low) + self.low}

    def score(self, predictions: Sequence[float], examples: Sequence[Encoded]) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr

        assert self.low is not None
        assert self.high is not None
        gold = np.array([example.target[0] for example in examples]) * (self.high - self.low) + self.low
        found = np.asarray(predictions, dtype=np.float64)
        varied = len(found) > 1 and np.ptp(found) > 0 and np.ptp(gold) > 0  # a constant has no correlation: 0 by convention
        return {
            "pearson": float(pearsonr(gold, found).statistic) if varied else 0.0,
            "spearman": float(spearmanr(gold, found).statistic) if varied else 0.0,
            "rmse": float(np.sqrt(np.mean((gold - found) ** 2))),
        }

    def row_statistics(self, predictions: Sequence[float], examples: Sequence[Encoded]) -> np.ndarray:
        """[e, 5]: target x, prediction y, xx, yy, xy; both centred first, which a correlation does not mind, so that sums of
        squares keep their digits."""
        gold = np.array([float(example.target[0]) for example in examples])
        found = np.asarray(predictions, dtype=np.float64)
        x, y = gold - gold.mean(), found - found.mean()
        return np.stack([x, y, x * x, y * y, x * y], axis=1)

    @classmethod
    def score_of_means(cls, means: np.ndarray) -> np.ndarray:
        """Pearson's correlation; 0 where either side does not vary, as in `score`."""
        x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
        spread = np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0)
        return np.where(spread > 1e-24, (xy - x * y) / np.sqrt(np.where(spread > 1e-24, spread, 1)), 0.0)

    def head_identity(self) -> dict[str, Any]:
        return {**super().head_identity(), "low": self.low, "high": self.high}

    def finish(self, model: Any, tokenizer: Tokenizer | None = None) -> None:
        """Fold the range into the output layer, so that the plain model answers in the data's own units."""
        import torch

        assert self.low is not None
        assert self.high is not None
        last = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 1][-1]
        with torch.no_grad():
            last.weight *= self.high - self.low
            last.bias.mul_(self.high - self.low).add_(self.low)
        model.config.problem_type = "regression"

    def finished(self) -> Regression:
        return replace(self, low=0.0, high=1.0)
