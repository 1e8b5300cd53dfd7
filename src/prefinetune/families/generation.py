"""Generation: a text -> a text (summaries, headlines, questions, data in words). The decoder writes it; nothing is added to the
model (MUPPET 3.1). Label-smoothed cross-entropy per target token, averaged over them, / log(vocabulary) (MUPPET 3.3).

Only encoder-decoders can. Predictions come from Transformers' `generate`, scores from Google's `rouge-score`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prefinetune.errors import FieldError, InputError, field_name, nearest
from prefinetune.families.base import Encoded, Example, Field, Segment, apart, check_fields, read, read_text
from prefinetune.families.language import Language, token_loss

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from prefinetune.model import Head, States
    from prefinetune.tokenizer import Tokenizer

DECODING: Mapping[str, Any] = {"num_beams": 4}
ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Generation(Language):
    """Fields `text`, optional `pair` (a question about it, say), `target`; `references`, a column with a list of texts, takes the
    target's place when scoring, where it is not empty. `prefix` stands before every text ("summarize: ", as T5 knows it).

    `decoding` is settings of Transformers' `generate` under its names, such as {"num_beams": 6, "length_penalty": 2.0}; four
    beams when left out.
    """

    text: Field
    target: Field
    pair: Field | None = None
    references: Field | None = None
    prefix: str = ""
    label_smoothing: float = 0.1
    decoding: Mapping[str, Any] | None = None

    kind: ClassVar[str] = "generation"
    hub_task: ClassVar[str] = "text-generation"
    metric: ClassVar[str] = "rougeL"

    def __post_init__(self) -> None:
        check_fields(text=self.text, pair=self.pair, target=self.target, references=self.references)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing: {self.label_smoothing} is not accepted; expected a share from 0 to below 1")
        if not isinstance(self.decoding, Mapping | None):
            raise InputError(f"decoding: {self.decoding!r} is not accepted; expected settings such as {{num_beams: 4}}")

    def check(self, tokenizer: Tokenizer) -> None:
        if tokenizer.decoder is None:
            raise InputError(
                "generation needs a decoder, and this model is an encoder; expected a model such as BART or T5, or tasks of "
                "other families (names and tags may be followed by ',-generation'; of a suite file, take the task out)"
            )
        tokenizer.check_targets()
        config = self.generation_config(tokenizer)
        try:
            rehearse(config, tokenizer.vocab_size)
        except Exception as error:  # whatever `generate` raises about a setting, at its first step
            raise refused(self.decoding, error) from None

    def fields(self) -> tuple[Field, ...]:
        return tuple(part for part in (self.text, self.pair, self.target, self.references) if part is not None)

    def inputs(self) -> tuple[Field, ...]:
        return apart(self.text, self.pair)

    def outputs(self) -> tuple[Field, ...]:
        return (self.target,)

    def example(self, row: Mapping[str, Any]) -> Example:
        target = read_text(row, self.target)
        return Example(self.texts(row), target, self._references(row) or (target,))

    def texts(self, row: Mapping[str, Any]) -> tuple[tuple[str, str | None], ...]:
        ((text, pair),) = super().texts(row)
        return ((self.prefix + text, pair),)

    def unanswered(self, row: Mapping[str, Any]) -> Example:
        return Example(self.texts(row), "", ())

    def _references(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        if self.references is None:
            return ()
        found = read(row, self.references)
        if isinstance(found, str) or not isinstance(found, Sequence):
            raise FieldError(self.references, found, "a list of texts")
        return tuple(read_text({field_name(self.references): text}, field_name(self.references)) for text in found)

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, for_training: bool = True) -> list[Encoded]:
        encoded = super().encode(examples, tokenizer, for_training)
        written = tokenizer.targets([example.target for example in examples])
        for one, (ids, cut) in zip(encoded, written, strict=True):
            one.output, one.output_cut = (ids if for_training else ids[:0]), cut
        return encoded

    def loss(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        return token_loss(output, segment, self.label_smoothing)

    def generation_config(self, tokenizer: Tokenizer) -> GenerationConfig:
        """What `generate` is told: this record's decoding, and the model's special tokens.

        Raises:
            InputError: Transformers does not know a setting, or refuses its value.
        """
        from transformers import GenerationConfig

        assert tokenizer.decoder is not None
        decoding, known = dict(DECODING if self.decoding is None else self.decoding), GenerationConfig().to_dict()
        for name in decoding:
            if name not in known:
                raise InputError(f"decoding: Transformers' generate has no setting {name!r}{nearest(name, known)}")
        if "max_length" in decoding:
            raise InputError("decoding: max_length is not accepted; expected max_new_tokens")
        for name, accepted in (("num_beams", "a whole number from 1"), ("num_return_sequences", "1")):
            value = decoding.get(name, 1)
            if type(value) is not int or value < 1 or (accepted == "1" and value != 1):
                raise InputError(f"decoding: {name} {value!r} is not accepted; expected {accepted}")
        longest = tokenizer.decoder.max_length
        new = decoding.get("max_new_tokens", longest)
        if isinstance(new, int) and new > tokenizer.decoder.most:
            raise InputError(f"decoding: max_new_tokens {new} is more than the decoder takes; at most {tokenizer.decoder.most}")
        settings = {"max_new_tokens": longest, **tokenizer.generation_tokens(), **decoding}
        try:
            config = GenerationConfig(**settings)
            config.validate(strict=True)
        except (ValueError, TypeError) as error:
            raise refused(decoding, error) from None
        return config

    def respond(self, head: Head, states: States, segment: Segment, tokenizer: Tokenizer) -> list[str]:
        return tokenizer.texts(head.generate(states, segment.rows, self.generation_config(tokenizer)))

    def readable(self, prediction: str, example: Encoded) -> dict[str, Any]:
        return {"prediction": prediction, "reference": list(example.reference)}

    def score(self, predictions: Sequence[str], examples: Sequence[Encoded]) -> dict[str, float]:
        """ROUGE F-measures (stemmed; the best over an example's references), the share of predictions equal to a reference, and
        words written per word of the references closest in length."""
        rows = self.row_statistics(predictions, examples)
        means = dict(zip(ROUGE, rows.mean(axis=0).tolist(), strict=True))
        pairs = list(zip(predictions, (example.reference for example in examples), strict=True))
        right = [any(text.strip() == reference.strip() for reference in references) for text, references in pairs]
        words = [(len(text.split()), [len(reference.split()) for reference in references]) for text, references in pairs]
        closest = sum(min((abs(length - mine), length) for length in lengths)[1] for mine, lengths in words)
        return {
            self.metric: means.pop(self.metric), **means,
            "exact_match": float(np.mean(right)), "length_ratio": sum(mine for mine, _ in words) / closest,
        }  # fmt: skip

    def row_statistics(self, predictions: Sequence[str], examples: Sequence[Encoded]) -> np.ndarray:
        """[e, 3]: ROUGE-1, -2 and -L of each text."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(ROUGE, use_stemmer=True)
        found = (scorer.score_multi(example.reference, text) for text, example in zip(predictions, examples, strict=True))
        return np.array([[scores[name].fmeasure for name in ROUGE] for scores in found])

    @classmethod
    def score_of_means(cls, means: np.ndarray) -> np.ndarray:
        return means[..., ROUGE.index(cls.metric)]

    def finish(self, model: Any, tokenizer: Tokenizer | None = None) -> None:
        """The saved model generates as this record does."""
        if tokenizer is not None:
            model.generation_config = self.generation_config(tokenizer)


def refused(decoding: Mapping[str, Any] | None, error: Exception) -> InputError:
    return InputError(f"decoding: {dict(decoding or {})} is refused by Transformers' generate: {error}")


def rehearse(config: GenerationConfig, vocabulary: int) -> None:
    """Generate one token with a model of next to no size, so that settings which `validate` lets pass fail now, and not at the
    first evaluation.

    Raises:
        Exception: what `generate` raises.
        ValueError: it does not return one text.
    """
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    shape = BartConfig(
        vocab_size=vocabulary, d_model=2, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=2, decoder_ffn_dim=2,
        encoder_attention_heads=1, decoder_attention_heads=1, max_position_embeddings=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = BartForConditionalGeneration(shape).eval()
    short = deepcopy(config)
    short.max_new_tokens = 1
    model.generation_config = short
    written = model.generate(torch.zeros((1, 1), dtype=torch.long), generation_config=short)
    if not isinstance(written, torch.Tensor) or len(written) != 1:
        raise ValueError(f"it gives {type(written).__name__}, not the ids of one text")
