"""Denoising: masked language modelling on raw text, a self-supervised task that may be part of any mixture.

A suite of only this *is* pre-training. Tokens are masked anew each time an example is drawn (15 %; of those 80 % become the mask
token, 10 % a random token, 10 % stay: BERT, Devlin et al. 2019, section 3.1). Outcomes = vocabulary size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prefinetune.errors import InputError
from prefinetune.families.base import Encoded, Example, Family, Field, Segment, check_fields, read_text

if TYPE_CHECKING:
    import torch

    from prefinetune.model import Backbone, Head, States
    from prefinetune.tokenizer import Tokenizer


@dataclass(frozen=True)
class Denoising(Family):
    """Field `text`; `rate` is the share of tokens to be predicted. A long text becomes several examples."""

    text: Field
    rate: float = 0.15

    kind: ClassVar[str] = "denoising"
    shared_head: ClassVar[bool] = True
    metric: ClassVar[str] = "accuracy"
    auto_model: ClassVar[str] = "AutoModelForMaskedLM"

    def __post_init__(self) -> None:
        check_fields(text=self.text)
        if not 0 < self.rate < 1:
            raise InputError(f"rate: {self.rate} is not accepted; expected a share of tokens between 0 and 1")

    def fields(self) -> tuple[Field, ...]:
        return (self.text,)

    def example(self, row: Mapping[str, Any]) -> Example:
        return Example(((read_text(row, self.text), None),), None)

    def target(self, example: Example) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, for_training: bool = True) -> list[Encoded]:
        if tokenizer.mask_id is None:
            raise InputError("denoising needs a mask token, and this tokenizer has none")
        nothing = np.zeros(0, dtype=np.int64)
        pieces = tokenizer.pieces([example.texts[0][0] for example in examples])
        encoded = [Encoded([ids], [len(ids)], nothing, source=index) for index, mine in enumerate(pieces) for ids in mine]
        if not for_training:  # the same masks at every evaluation, whatever else was drawn before
            encoded = [
                self.draw(one, tokenizer, np.random.default_rng([at, len(one.sequences[0])])) for at, one in enumerate(encoded)
            ]
        return encoded

    def draw(self, encoded: Encoded, tokenizer: Tokenizer, generator: np.random.Generator) -> Encoded:
        """Mask; the target becomes [positions..., their true ids...]."""
        assert tokenizer.mask_id is not None
        ids = encoded.sequences[0].astype(np.int64)
        words = np.flatnonzero(~np.isin(ids, tokenizer.special_ids))
        count = min(len(words), max(1, int(self.rate * len(words) + generator.random())))
        places = np.sort(generator.choice(words, count, replace=False))
        true = ids[places]
        fate = generator.random(count)
        ids[places[fate < 0.8]] = tokenizer.mask_id
        swapped = places[fate >= 0.9]
        ids[swapped] = generator.integers(0, tokenizer.vocab_size, len(swapped))
        return replace(encoded, sequences=[ids], target=np.concatenate([places, true]))

    def collate(self, examples: Sequence[Encoded]) -> torch.Tensor:
        """[3, m]: for each of the m masked tokens its example, its position and its true id."""
        import torch

        halves = [example.target.reshape(2, -1) for example in examples]
        owner = np.repeat(np.arange(len(halves)), [half.shape[1] for half in halves])
        return torch.from_numpy(np.concatenate([owner[None], np.concatenate(halves, axis=1)]))

    def apply(self, head: Head, states: States, segment: Segment) -> torch.Tensor:
        owner, place, _ = segment.targets
        return head.chosen_tokens(states, segment.rows[owner], place)  # [m, vocabulary]

    def loss(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        owner, _, true = segment.targets
        each = cross_entropy(output.float(), true, reduction="none")  # [m]
        total = torch.zeros_like(segment.weights).index_add(0, owner, each)
        return total / torch.bincount(owner, minlength=len(segment.weights)).clamp(min=1)

    def outcomes(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        import torch

        return torch.full_like(segment.weights, output.shape[-1])

    def head(self, backbone: Backbone) -> Head:
        return backbone.language_head()

    def predict(self, output: torch.Tensor, segment: Segment) -> list[tuple[int, int]]:
        """Per example: how many masked tokens it names rightly, and how many there were."""
        owner, _, true = (part.cpu().numpy() for part in segment.targets)
        right = output.argmax(-1).cpu().numpy() == true
        size = len(segment.examples)
        return list(
            zip(
                np.bincount(owner, right, size).astype(int).tolist(),
                np.bincount(owner, minlength=size).tolist(),
                strict=True,
            )
        )

    def score(self, predictions: Sequence[tuple[int, int]], examples: Sequence[Encoded]) -> dict[str, float]:
        right, masked = np.array(predictions).sum(axis=0)
        return {"accuracy": float(right / masked)}

    def row_statistics(self, predictions: Sequence[tuple[int, int]], examples: Sequence[Encoded]) -> np.ndarray:
        """[e, 2]: tokens named rightly, tokens masked."""
        return np.array(predictions, dtype=np.float64)

    @classmethod
    def score_of_means(cls, means: np.ndarray) -> np.ndarray:
        return means[..., 0] / means[..., 1]
