"""What denoising and generation share: their answers are tokens of the vocabulary, read off one language-model head.

That head is the checkpoint's own, with its output layer tied to the embeddings where the architecture ties them, so that nothing
is added to the model. Logits are computed for the tokens that have a target and for no others. Outcomes = vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prefinetune.families.base import Encoded, Example, Family, Segment, symmetric_kl

if TYPE_CHECKING:
    import torch

    from prefinetune.model import Backbone, Head, States


@dataclass(frozen=True)
class Language(Family):
    """A target is tokens and where each is read: (place in the states, id)."""

    shared_head: ClassVar[bool] = True
    open_ended: ClassVar[bool] = True
    head_kind: ClassVar[str] = "language"

    def head_key(self, task: str, separate: bool = False) -> str:
        """One in any case: it is the model's own, its output layer mostly the trunk's embeddings."""
        return self.head_kind

    def head_identity(self) -> dict[str, Any]:
        return {"family": self.head_kind}

    def head(self, backbone: Backbone) -> Head:
        return backbone.language_head()

    def stored_target(self, example: Example) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)

    def collate(self, examples: Sequence[Encoded]) -> torch.Tensor:
        """[3, m]: for each of the m tokens with a target its example, its place and its true id."""
        import torch

        halves = [places_and_ids(example) for example in examples]
        owner = np.repeat(np.arange(len(halves)), [half.shape[1] for half in halves])
        return torch.from_numpy(np.concatenate([owner[None], np.concatenate(halves, axis=1)]))

    def apply(self, head: Head, states: States, segment: Segment) -> torch.Tensor:
        owner, place, _ = segment.targets
        return head.chosen_tokens(states, segment.rows[owner], place)  # [m, vocabulary]

    def loss(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        return token_loss(output, segment)

    def divergence(self, output: torch.Tensor, noised: torch.Tensor, segment: Segment) -> torch.Tensor:
        """The mean over an example's tokens of each one's divergence."""
        return mean_by_example(symmetric_kl(output, noised), segment)

    def outcomes(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        import torch

        return torch.full_like(segment.weights, output.shape[-1])


def places_and_ids(example: Encoded) -> np.ndarray:
    """[2, m]: a decoder's output is read where it stands, a masked token where it was."""
    if example.output is None:
        return example.target.reshape(2, -1)
    return np.stack([np.arange(len(example.output)), example.output.astype(np.int64)])


def token_loss(output: torch.Tensor, segment: Segment, label_smoothing: float = 0.0) -> torch.Tensor:
    """The mean over an example's tokens of their cross-entropy [e]; equal logits cost log(vocabulary), smoothed or not."""
    from torch.nn.functional import cross_entropy

    true = segment.targets[2]
    return mean_by_example(cross_entropy(output.float(), true, reduction="none", label_smoothing=label_smoothing), segment)


def mean_by_example(values: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Means [e] of values [m] over the tokens of each example."""
    import torch

    owner, zeros = segment.targets[0], torch.zeros_like(segment.weights)
    values = values.to(zeros.dtype)
    # Not `bincount`: on GPUs it waits for all that was queued.
    return zeros.index_add(0, owner, values) / zeros.index_add(0, owner, torch.ones_like(values)).clamp(min=1)
