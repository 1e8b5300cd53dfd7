"""Denoising: a self-supervised task on raw text that may be part of any mixture. A suite of only this *is* pre-training.

Texts are corrupted anew each time an example is drawn, in the way the model's own pre-training does:

- encoders: masked language modelling (BERT, Devlin et al. 2019, section 3.1): 15 % of the tokens are to be predicted; of those
  80 % become the mask token, 10 % a random token, 10 % stay.
- BART: text infilling (Lewis et al. 2020, section 2.2): spans with 30 % of the tokens, their lengths Poisson with mean 3, become
  one mask token each (an empty span inserts one); sentences may be permuted first. The decoder writes the whole text.
- T5: span corruption (Raffel et al. 2020, section 3.1.4): spans with 15 % of the tokens, of 3 on average, become one sentinel
  each. The decoder writes each sentinel and what it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prefinetune.errors import InputError
from prefinetune.families.base import Encoded, Example, Field, Segment, apart, check_fields, read_text
from prefinetune.families.language import Language

if TYPE_CHECKING:
    import torch

    from prefinetune.model import Head, States
    from prefinetune.tokenizer import Tokenizer

MASKED_RATE, INFILLED_RATE, SPAN_TOKENS = 0.15, 0.30, 3


@dataclass(frozen=True)
class Denoising(Language):
    """Field `text`; `rate` is the share of tokens that is hidden (0.15, for BART 0.30, when left out). A long text becomes
    several examples. `permute_sentences` is for BART's kind of models."""

    text: Field
    rate: float | None = None
    permute_sentences: bool = False

    kind: ClassVar[str] = "denoising"
    hub_task: ClassVar[str] = "fill-mask"
    metric: ClassVar[str] = "accuracy"
    draws: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("text",)
    answer_type: ClassVar[Any] = list[str]

    def __post_init__(self) -> None:
        check_fields(text=self.text)
        if self.rate is not None and not 0 < self.rate < 1:
            raise InputError(f"rate: {self.rate} is not accepted; expected a share of tokens between 0 and 1")

    def check(self, tokenizer: Tokenizer) -> None:
        if tokenizer.decoder and tokenizer.decoder.writes_sentinels:
            if not tokenizer.sentinels:
                raise InputError("denoising on this model needs sentinel tokens (<extra_id_0>, ...), and this tokenizer has none")
        elif tokenizer.mask_id is None:
            raise InputError("denoising needs a mask token, and this tokenizer has none")
        if tokenizer.decoder:
            tokenizer.check_targets()
        if self.permute_sentences and not (tokenizer.decoder and not tokenizer.decoder.writes_sentinels):
            raise InputError("permute_sentences is for models whose decoder writes the whole text (BART, mBART)")

    def fields(self) -> tuple[Field, ...]:
        return (self.text,)

    def inputs(self) -> tuple[Field, ...]:
        return apart(self.text)

    def example(self, row: Mapping[str, Any]) -> Example:
        return Example(self.texts(row), None)

    def texts(self, row: Mapping[str, Any]) -> tuple[tuple[str, str | None], ...]:
        return ((read_text(row, self.text), None),)

    def encode_unanswered(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Encoded]:
        """Texts as they are, their holes already in them: mask tokens or sentinels."""
        encoded = []
        for index, (ids, first, cut) in enumerate(tokenizer.pairs([example.texts[0] for example in examples])):
            holes = np.flatnonzero(ids == tokenizer.mask_id)
            output = None if tokenizer.decoder is None else np.zeros(0, dtype=np.int32)
            target = np.concatenate([holes, np.zeros_like(holes)])
            encoded.append(Encoded([ids], [first], target, source=index, truncated=int(cut), output=output))
        return encoded

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, for_training: bool = True) -> list[Encoded]:
        nothing = np.zeros(0, dtype=np.int64)
        pieces = tokenizer.pieces([example.texts[0][0] for example in examples])
        encoded = [Encoded([ids], [len(ids)], nothing, source=index) for index, mine in enumerate(pieces) for ids in mine]
        if not for_training:  # the same holes at every evaluation, whatever else was drawn before
            encoded = [
                self.draw(one, tokenizer, np.random.default_rng([at, len(one.sequences[0])])) for at, one in enumerate(encoded)
            ]
        return encoded

    def draw(self, encoded: Encoded, tokenizer: Tokenizer, generator: np.random.Generator) -> Encoded:
        """Corrupt. An encoder's target becomes [positions..., their true ids...]; a decoder's, what it shall write."""
        ids = encoded.sequences[0].astype(np.int64)
        if tokenizer.decoder is None:
            return self._mask_words(encoded, ids, tokenizer, generator)
        words = np.flatnonzero(~np.isin(ids, tokenizer.special_ids))
        if not len(words):  # nothing to hide
            return replace(encoded, output=ids)
        start, end = int(words[0]), int(words[-1]) + 1  # special tokens stand around the text, not in it
        before, text, after = ids[:start], ids[start:end], ids[end:]
        if tokenizer.decoder.writes_sentinels:
            text, written = self._corrupt_spans(text, tokenizer, generator)
            output = np.concatenate([written, after])
        else:
            text, output = self._infill(text, tokenizer, generator), ids
        sequence = np.concatenate([before, text, after])
        return replace(encoded, sequences=[sequence], first=[len(sequence)], output=output)

    def _mask_words(self, encoded: Encoded, ids: np.ndarray, tokenizer: Tokenizer, generator: np.random.Generator) -> Encoded:
        assert tokenizer.mask_id is not None
        words = np.flatnonzero(~np.isin(ids, tokenizer.special_ids))
        count = min(len(words), self._hidden(len(words), MASKED_RATE, generator))
        places = np.sort(generator.choice(words, count, replace=False))
        true = ids[places]
        fate = generator.random(count)
        ids[places[fate < 0.8]] = tokenizer.mask_id
        swapped = places[fate >= 0.9]
        ids[swapped] = generator.integers(0, tokenizer.vocab_size, len(swapped))
        return replace(encoded, sequences=[ids], target=np.concatenate([places, true]))

    def _hidden(self, words: int, default: float, generator: np.random.Generator) -> int:
        """How many of so many words are hidden: the rate on average, and never none."""
        return max(1, int((self.rate or default) * words + generator.random()))

    def _infill(self, text: np.ndarray, tokenizer: Tokenizer, generator: np.random.Generator) -> np.ndarray:
        """BART's source: every hidden span one mask token."""
        if self.permute_sentences:
            sentences = np.split(text, np.flatnonzero(np.isin(text[:-1], tokenizer.sentence_ends)) + 1)
            text = np.concatenate([sentences[at] for at in generator.permutation(len(sentences))])
        lengths = poisson_lengths(min(len(text), self._hidden(len(text), INFILLED_RATE, generator)), generator)
        mask = np.array([tokenizer.mask_id])
        return replace_spans(text, place_spans(len(text), lengths, generator), [mask] * len(lengths))

    def _corrupt_spans(
        self, text: np.ndarray, tokenizer: Tokenizer, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """T5's source and target: hidden spans are named by sentinels in order."""
        hidden = min(len(text), self._hidden(len(text), MASKED_RATE, generator))
        lengths = composition(hidden, min(max(1, round(hidden / SPAN_TOKENS)), len(tokenizer.sentinels)), generator)
        spans = place_spans(len(text), lengths, generator)
        names = [np.array([sentinel]) for sentinel in tokenizer.sentinels[: len(spans)]]
        written = [
            part for name, (start, length) in zip(names, spans, strict=True) for part in (name, text[start : start + length])
        ]
        return replace_spans(text, spans, names), np.concatenate(written)

    def reply(self, head: Head, states: States, segment: Segment, tokenizer: Tokenizer) -> list[list[str]]:
        """What belongs in a text's holes: for each mask its token, for each sentinel its span; of BART, the one text without
        holes."""
        if tokenizer.decoder is None:
            words = tokenizer.texts(self.apply(head, states, segment).argmax(-1)[:, None])
            owner = segment.targets[0].cpu().numpy()
            return [[words[hole] for hole in np.flatnonzero(owner == at)] for at in range(len(segment.examples))]
        from transformers import GenerationConfig

        config = GenerationConfig(max_new_tokens=tokenizer.decoder.max_length, **tokenizer.generation_tokens())
        written = head.generate(states, segment.rows, config).cpu().numpy()
        if not tokenizer.decoder.writes_sentinels:
            return [[text] for text in tokenizer.texts(written)]
        spans = [np.split(ids, np.flatnonzero(np.isin(ids, tokenizer.sentinels)))[1:] for ids in written]
        return [tokenizer.texts([span[1:] for span in mine]) for mine in spans]

    def predict(self, output: torch.Tensor, segment: Segment) -> list[tuple[int, int]]:
        """Per example: how many tokens it names rightly, and how many there were to name."""
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

    def readable(self, prediction: tuple[int, int], example: Encoded) -> dict[str, Any]:
        return {"prediction": prediction[0], "reference": prediction[1]}

    def score(self, predictions: Sequence[tuple[int, int]], examples: Sequence[Encoded]) -> dict[str, float]:
        right, masked = np.array(predictions).sum(axis=0)
        return {"accuracy": float(right / masked)}

    def row_statistics(self, predictions: Sequence[tuple[int, int]], examples: Sequence[Encoded]) -> np.ndarray:
        """[e, 2]: tokens named rightly, tokens to name."""
        return np.array(predictions, dtype=np.float64)

    @classmethod
    def score_of_means(cls, means: np.ndarray) -> np.ndarray:
        return means[..., 0] / means[..., 1]


def poisson_lengths(hidden: int, generator: np.random.Generator) -> list[int]:
    """Span lengths, Poisson with mean 3, until they hide so many tokens; the last is cut to fit, and some may be 0."""
    lengths: list[int] = []
    while (left := hidden - sum(lengths)) > 0:
        lengths.append(min(left, int(generator.poisson(SPAN_TOKENS))))
    return lengths


def composition(total: int, parts: int, generator: np.random.Generator) -> list[int]:
    """`total` as a sum of so many positive numbers, all such sums equally likely."""
    cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1 if parts > 1 else np.zeros(0, dtype=np.int64)
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(int).tolist()


def place_spans(tokens: int, lengths: list[int], generator: np.random.Generator) -> list[tuple[int, int]]:
    """(start, length) of spans of these lengths in order, at random; between two there is at least one token, as far as there are
    enough."""
    gaps = tokens - sum(lengths) + 1  # before, between and behind the tokens that stay
    places = np.sort(generator.choice(gaps, len(lengths), replace=len(lengths) > gaps))
    before = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int)
    return list(zip((places + before).tolist(), lengths, strict=True))


def replace_spans(text: np.ndarray, spans: Sequence[tuple[int, int]], names: Sequence[np.ndarray]) -> np.ndarray:
    """The text with each span replaced by what stands for it."""
    parts, at = [], 0
    for (start, length), name in zip(spans, names, strict=True):
        parts += [text[at:start], name]
        at = start + length
    return np.concatenate([*parts, text[at:]])
