"""Choice: which of the options goes with the context. One head for all choice datasets (MUPPET 3.1).

Each (context, option) pair is read on its own, gets one score, and the softmax runs over the options of the example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prefinetune.errors import FieldError, field_name
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
    read_text,
)

if TYPE_CHECKING:
    import torch

    from prefinetune.model import Head, States


@dataclass(frozen=True)
class Choice(Family):
    """Fields `text` (the context; several are joined), `options` (a column that holds a list, or a tuple of columns), `label`.

    `label` holds the index of the right option, counted from 0, or one of `keys`: a tuple of names ("A", "B", ...) or a column
    that holds a list of them. A one-letter label needs no `keys`.
    """

    text: Field
    options: Field
    label: Field = "label"
    keys: Field | None = None

    kind: ClassVar[str] = "choice"
    hub_task: ClassVar[str] = "multiple-choice"
    shared_head: ClassVar[bool] = True
    metric: ClassVar[str] = "accuracy"
    head_kind: ClassVar[str] = "option"
    any_order: ClassVar[bool] = True
    label_words: ClassVar[str] = "place of the right option"
    reads: ClassVar[tuple[str, ...]] = ("text", "options")
    probability_type: ClassVar[Any] = list

    def __post_init__(self) -> None:
        check_fields(text=self.text, options=self.options, label=self.label)

    def fields(self) -> tuple[Field, ...]:
        keys = () if self.keys is None or isinstance(self.keys, tuple) else (self.keys,)
        return (self.text, self.options, self.label, *keys)

    def inputs(self) -> tuple[Field, ...]:
        return (*apart(self.text), self.options)

    def texts(self, row: Mapping[str, Any]) -> tuple[tuple[str, str | None], ...]:
        if isinstance(self.options, tuple):
            options = [read_text(row, part) for part in self.options]
        else:
            options = read(row, self.options)
            if isinstance(options, str) or not isinstance(options, Sequence):
                raise FieldError(self.options, options, "a list of options")
            options = [read_text({field_name(self.options): option}, field_name(self.options)) for option in options]
        if len(options) < 2:
            raise FieldError(self.options, options, "at least two options")
        context = read_text(row, self.text)
        return tuple((context, option) for option in options)

    def example(self, row: Mapping[str, Any]) -> Example:
        texts = self.texts(row)
        return Example(texts, self._index(row, len(texts)))

    def unanswered(self, row: Mapping[str, Any]) -> Example:
        """The reference is the options."""
        texts = self.texts(row)
        return Example(texts, 0, tuple(option for _, option in texts))

    def _index(self, row: Mapping[str, Any], num_options: int) -> int:
        value = read(row, self.label)
        keys = self.keys if self.keys is None or isinstance(self.keys, tuple) else read(row, self.keys)
        if keys is not None:
            names = [str(key) for key in keys][:num_options]
            if str(value) in names:
                return names.index(str(value))
            raise FieldError(self.label, value, f"one of {', '.join(names)}")
        if isinstance(value, str) and value.strip().isdigit():
            value = int(value)
        if isinstance(value, str) and len(value) == 1 and value.isalpha():
            value = ord(value.upper()) - ord("A")
        if isinstance(value, (int, np.integer)) and 0 <= value < num_options:
            return int(value)
        raise FieldError(self.label, value, f"the index of an option, 0 to {num_options - 1}, or its letter")

    def name_target(self, example: Example) -> str | None:
        return example.texts[example.target][1]

    def label_names(self, example: Example) -> tuple[str, ...]:
        return (str(example.target),)

    def apply(self, head: Head, states: States, segment: Segment) -> torch.Tensor:
        """Scores [e, options of the widest example], -inf where an example has fewer."""
        import torch

        scores = head.option(states, segment.rows).squeeze(-1)  # [r]
        widest = max(len(example.sequences) for example in segment.examples)
        real = torch.arange(widest, device=scores.device) < segment.sizes[:, None]  # [e, widest]
        return torch.full(real.shape, -torch.inf, device=scores.device).masked_scatter(real, scores.float())

    def loss(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(output, segment.targets, reduction="none")

    def outcomes(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        return segment.sizes.to(segment.weights.dtype)

    def predict(self, output: torch.Tensor, segment: Segment) -> list[int]:
        return output.argmax(-1).tolist()

    def readable(self, prediction: int, example: Encoded) -> dict[str, Any]:
        return {"prediction": prediction, "reference": int(example.target[0])}

    def named(self, predictions: Sequence[int], segment: Segment) -> list[str]:
        """The texts of the options chosen."""
        return [example.reference[index] for index, example in zip(predictions, segment.examples, strict=True)]

    def choices(self, output: torch.Tensor, segment: Segment) -> list[np.ndarray]:
        pairs = zip(output.double().cpu().numpy(), segment.examples, strict=True)
        return [logits[None, : len(example.sequences)] for logits, example in pairs]

    def named_probabilities(self, probabilities: np.ndarray) -> list[float]:
        """In the order of the options."""
        return probabilities[0].tolist()

    def score(self, predictions: Sequence[int], examples: Sequence[Encoded]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score

        gold = [int(example.target[0]) for example in examples]
        return {
            "accuracy": float(accuracy_score(gold, predictions)),
            "majority": max(gold.count(label) for label in set(gold)) / len(gold),
            "chance": float(np.mean([1 / len(example.sequences) for example in examples])),
        }

    def row_statistics(self, predictions: Sequence[int], examples: Sequence[Encoded]) -> np.ndarray:
        return is_right(predictions, examples)
