"""Span: where in the context is the answer. One head for all span datasets (MUPPET 3.1).

The candidates of start and end are the real tokens of the sequence, so each of the two cross-entropies is divided by log(length);
an unanswerable question points at the first token, as in Transformers' own recipe.
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
    read,
    read_text,
    symmetric_kl,
)

if TYPE_CHECKING:
    import torch

    from prefinetune.model import Head, States
    from prefinetune.tokenizer import Tokenizer, Window

MAX_ANSWER_TOKENS = 30  # longest answer considered when predicting, as in Transformers' question-answering examples


@dataclass(frozen=True)
class Span(Family):
    """Fields `question`, `context`, `answers`: SQuAD's form, {"text": [...], "answer_start": [...]}, both empty if unanswerable.

    `answer` and `answer_start` name two flat columns instead, for tables. An `answers` function may give None for a row whose
    answer is no piece of the context (a number to be reckoned, yes or no): such rows are left out and counted.
    """

    question: Field
    context: Field
    answers: Field | None = None
    answer: Field | None = None
    answer_start: Field | None = None

    kind: ClassVar[str] = "span"
    hub_task: ClassVar[str] = "question-answering"
    shared_head: ClassVar[bool] = True
    metric: ClassVar[str] = "f1"
    open_ended: ClassVar[bool] = True
    head_kind: ClassVar[str] = "span"
    reads: ClassVar[tuple[str, ...]] = ("question", "context")

    def __post_init__(self) -> None:
        check_fields(question=self.question, context=self.context, answers=self.answers, answer=self.answer)
        if self.answers is None and self.answer is None:
            object.__setattr__(self, "answers", "answers")

    def check(self, tokenizer: Tokenizer) -> None:
        """Any tokenizer will do: a span is read off all states, also of a decoder."""

    def fields(self) -> tuple[Field, ...]:
        parts = (self.question, self.context, self.answers, self.answer, self.answer_start)
        return tuple(part for part in parts if part is not None)

    def inputs(self) -> tuple[Field, ...]:
        return apart(self.question, self.context)

    def texts(self, row: Mapping[str, Any]) -> tuple[tuple[str, str | None], ...]:
        context = read_text(row, self.context)
        return ((read_text(row, self.question), context),)

    def unanswered(self, row: Mapping[str, Any]) -> Example:
        return Example(self.texts(row), None, ())

    def example(self, row: Mapping[str, Any]) -> Example:
        ((question, context),) = self.texts(row)
        assert context is not None
        found = self._answers(row, context)
        target = None
        for text, start in found:
            if context[start : start + len(text)] != text:
                there = context[start : start + len(text)]
                accepted = f"the position of {text[:60]!r} in the context (at {start} stands {there[:60]!r})"
                raise FieldError(self.answer_start or f"{field_name(self.answers)}.answer_start", start, accepted)
            target = target or (start, start + len(text))
        return Example(((question, context),), target, tuple(text for text, _ in found))

    def skips(self, row: Mapping[str, Any]) -> bool:
        return (callable(self.answers) and read(row, self.answers) is None) or super().skips(row)

    def _answers(self, row: Mapping[str, Any], context: str) -> list[tuple[str, int]]:
        """The gold answers as (text, first character), stripped of white space; an empty list if unanswerable."""
        if self.answers is not None:
            value = read(row, self.answers)
            if not isinstance(value, Mapping) or not {"text", "answer_start"} <= set(value):
                raise FieldError(self.answers, value, "a record with the lists 'text' and 'answer_start'")
            texts, starts = value["text"], value["answer_start"]
            if isinstance(texts, str):
                texts, starts = [texts], [starts]
            if len(texts) != len(starts):
                raise FieldError(self.answers, value, "as many 'answer_start' as 'text'")
        else:
            assert self.answer is not None
            text = read(row, self.answer)
            texts = [text] if isinstance(text, str) and text.strip() else []
            starts = [read(row, self.answer_start) if self.answer_start is not None else context.find(text) for text in texts]
        found = []
        for text, start in zip(texts, starts, strict=True):
            try:
                start = int(start)
            except (TypeError, ValueError):
                raise FieldError(self.answer_start or self.answers, start, "a character position (a whole number)") from None
            if start < 0:
                raise FieldError(self.answer_start or self.answers, start, "a character position in the context, from 0")
            if not isinstance(text, str) or not text.strip():
                raise FieldError(self.answer or self.answers, text, "an answer text that is not empty")
            lead = len(text) - len(text.lstrip())
            if context[start : start + len(text)] == text:
                text, start = text.strip(), start + lead
            found.append((text, start))
        return found

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, for_training: bool = True) -> list[Encoded]:
        """Windows over long contexts. Training keeps the one in which the answer stands most central, or, where none holds all of
        a long answer, a window that begins with it, so that it is never cut away; evaluation reads all."""
        windows = tokenizer.windows(
            [(question, context or "") for ((question, context),) in (example.texts for example in examples)]
        )
        encoded = []
        for index, (example, mine) in enumerate(zip(examples, windows, strict=True)):
            if for_training:
                place, best = (0, 0), mine[0]
                if example.target is not None:
                    start, end = example.target
                    found = most_central(mine, start, end)
                    if found is None:
                        question, context = example.texts[0]
                        (after,) = tokenizer.windows([(question, (context or "")[start:])])
                        found = after[0], answer_tokens(after[0].offsets, 0, end - start)
                    best, place = found
                mine = [best]
            else:
                place = (0, 0)
            encoded.append(
                Encoded(
                    sequences=[window.ids for window in mine],
                    first=[window.first for window in mine],
                    target=np.array(place, dtype=np.int64),
                    source=index,
                    truncated=int(mine[0].cut),
                    reference=None if for_training else (example.texts[0][1], example.reference),
                    offsets=None if for_training else [window.offsets for window in mine],
                )
            )
        return encoded

    def name_target(self, example: Example) -> str:
        return " | ".join(example.reference) or "(no answer)"

    def collate(self, examples: Sequence[Encoded]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.stack([example.target for example in examples]))  # [e, 2]

    def head(self, backbone: Any) -> Head:
        return backbone.new_head(self.head_kind, num_labels=2)

    def apply(self, head: Head, states: States, segment: Segment) -> torch.Tensor:
        """Logits [r, l, 2] of start and end, -inf on padding."""
        import torch

        logits = head.tokens(states, segment.rows).float()
        real = torch.arange(logits.shape[1], device=logits.device) < segment.lengths[:, None]  # [r, l]
        return logits.masked_fill(~real[..., None], -torch.inf)

    def loss(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(output, segment.targets, reduction="none").mean(-1)  # [e, l, 2] with [e, 2]

    def outcomes(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        return segment.lengths.to(segment.weights.dtype)

    def divergence(self, output: torch.Tensor, noised: torch.Tensor, segment: Segment) -> torch.Tensor:
        """The mean of start's and end's, over the real tokens of the sequence."""
        return symmetric_kl(output.transpose(1, 2), noised.transpose(1, 2)).mean(-1)

    def predict(self, output: torch.Tensor, segment: Segment) -> list[str]:
        """The text under the best span over all windows; "" where pointing at the first token scores higher."""
        answers, row = [], 0
        logits = output.cpu().numpy()
        for example in segment.examples:
            assert example.offsets is not None, "predictions need examples that were encoded for evaluation"
            best, text, nothing = -np.inf, "", np.inf
            for window, offsets in enumerate(example.offsets):
                start, end = logits[row + window, : len(offsets), 0], logits[row + window, : len(offsets), 1]
                nothing = min(nothing, start[0] + end[0])
                in_context = offsets[:, 0] >= 0
                scores = np.where(in_context[:, None] & in_context[None, :], start[:, None] + end[None, :], -np.inf)
                scores = np.triu(scores) - np.where(np.tri(len(scores), k=-1) > 0, np.inf, 0)
                scores[np.triu(np.ones_like(scores, dtype=bool), MAX_ANSWER_TOKENS)] = -np.inf
                at = np.unravel_index(np.argmax(scores), scores.shape)
                if scores[at] > best:
                    best = scores[at]
                    text = example.reference[0][offsets[at[0], 0] : offsets[at[1], 1]]
            answers.append(text if best > nothing else "")
            row += len(example.offsets)
        return answers

    def readable(self, prediction: str, example: Encoded) -> dict[str, Any]:
        return {"prediction": prediction, "reference": list(example.reference[1])}

    def score(self, predictions: Sequence[str], examples: Sequence[Encoded]) -> dict[str, float]:
        return squad_scores(predictions, [example.reference[1] for example in examples])

    def row_statistics(self, predictions: Sequence[str], examples: Sequence[Encoded]) -> np.ndarray:
        """[e, 1]: the F1 of each answer."""
        pairs = zip(predictions, examples, strict=True)
        return np.array([[squad_scores([text], [example.reference[1]])["f1"]] for text, example in pairs])


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means of SQuAD's F1 and exact match; no answer at all is the empty text."""
    from torchmetrics.functional.text import squad

    found: Any = [{"id": str(i), "prediction_text": text} for i, text in enumerate(predictions)]
    gold: Any = [{"id": str(i), "answers": {"text": list(texts) or [""], "answer_start": [0]}} for i, texts in enumerate(answers)]
    scores = squad(found, gold)
    return {"f1": float(scores["f1"]) / 100, "exact_match": float(scores["exact_match"]) / 100}


def most_central(windows: Sequence[Window], start: int, end: int) -> tuple[Window, tuple[int, int]] | None:
    """The window that holds characters start to end with the most context on its shorter side, and the answer's tokens in it;
    None where no window holds all of them."""
    found, margin = None, -1
    for window in windows:
        offsets = window.offsets
        context = np.flatnonzero(offsets[:, 0] >= 0)
        if not len(context) or offsets[context[0], 0] > start or offsets[context[-1], 1] < end:
            continue
        first, last = answer_tokens(offsets, start, end)
        here = min(first - int(context[0]), int(context[-1]) - last)
        if here > margin:
            found, margin = (window, (first, last)), here
    return found


def answer_tokens(offsets: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """The first and the last token of a window [l, 2] over characters start to end; (0, 0) where the tokenizer has none for them
    (control characters, say)."""
    inside = np.flatnonzero((offsets[:, 0] >= 0) & (offsets[:, 1] > start) & (offsets[:, 0] < end))
    return (int(inside[0]), int(inside[-1])) if len(inside) else (0, 0)
