"""Texts to token ids in batches, by the fast tokenizer's own threads; the four ways families cut what is too long."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from prefinetune.errors import InputError

LONGEST = 512  # tokens, where a model states no limit of its own or a larger one; a setting overrides it
LONGEST_TARGET = 256  # the same for what a decoder writes

SENTINEL_MODELS = ("t5", "mt5")  # denoising asks for sentinels
LANGUAGE_CODE_MODELS = ("mbart",)  # a target ends with the code of its language, which the decoder reads first


@dataclass(slots=True)
class Window:
    """One window over a (question, context) pair."""

    ids: np.ndarray
    first: int  # leading tokens of type 0
    offsets: np.ndarray  # [l, 2] characters of the context under each token, -1 on all others
    cut: bool  # whether the context has more windows


@dataclass(frozen=True)
class Decoder:
    """What turning texts into targets depends on."""

    max_length: int  # tokens of a target, special tokens included
    most: int  # of a target that the model takes
    start: int | None  # id that the decoder reads first; None where it is the target's own last one (mBART's language code)
    writes_sentinels: bool  # whether denoising asks for sentinels and what they stand for (T5) or for the whole text (BART)


class Tokenizer:
    """A Transformers tokenizer with a maximum length in tokens, as one model reads with it (and writes, where it has a decoder).

    Raises:
        InputError: it is not a fast tokenizer, or lacks a padding token.
    """

    def __init__(self, tokenizer: Any, max_length: int, token_types: bool = True, decoder: Decoder | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(f"{type(tokenizer).__name__} has no fast tokenizer (a tokenizer.json); save one beside the model")
        if tokenizer.pad_token_id is None:
            raise InputError("the tokenizer has no padding token; set pad_token in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.token_types = token_types and "token_type_ids" in tokenizer.model_input_names
        self.pad_id: int = tokenizer.pad_token_id
        self.mask_id: int | None = tokenizer.mask_token_id
        self.vocab_size = len(tokenizer)
        self.special_ids = np.array(sorted(tokenizer.all_special_ids), dtype=np.int64)
        self.decoder = decoder

    # Copies are made when texts are first to be cut: a run that finds its stores in the cache has none.

    @cached_property
    def _truncating(self) -> Any:
        return self._copy(strategy="longest_first", stride=0)

    @cached_property
    def _windowing(self) -> Any:
        return self._copy(strategy="only_second", stride=self.max_length // 4)

    @cached_property
    def _plain(self) -> Any:
        return self._copy(strategy=None, stride=0)

    def _copy(self, strategy: str | None, stride: int) -> Any:
        from tokenizers import Tokenizer as Backend

        copy = Backend.from_str(self.tokenizer.backend_tokenizer.to_str())
        copy.no_padding()
        copy.no_truncation()
        if strategy:
            copy.enable_truncation(self.max_length, stride=stride, strategy=strategy)
        return copy

    @cached_property
    def digest(self) -> str:
        parts = f"{self.tokenizer.backend_tokenizer.to_str()} {self.max_length} {self.token_types} {self.decoder}"
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    def pairs(self, pairs: Sequence[tuple[str, str | None]]) -> list[tuple[np.ndarray, int, bool]]:
        """(ids, leading tokens of type 0, whether text was cut) of each pair; the longer text of a pair is cut first."""
        texts = [first if second is None else (first, second) for first, second in pairs]
        encodings = self._truncating.encode_batch_fast(texts)
        encoded = []
        for encoding in encodings:
            ids = np.array(encoding.ids, dtype=np.int32)
            first = encoding.type_ids.count(0) if self.token_types else len(ids)
            encoded.append((ids, first, len(ids) >= self.max_length and bool(encoding.overflowing)))
        return encoded

    @cached_property
    def _writer(self) -> Any:
        """A copy for targets: calling a tokenizer changes its truncation, which is part of what is saved."""
        return deepcopy(self.tokenizer)

    def targets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, bool]]:
        """(ids, whether text was cut) of what a decoder is to write, special tokens included."""
        assert self.decoder is not None
        batch = self._writer(text_target=list(texts), truncation=True, max_length=self.decoder.max_length)
        return [(np.array(encoding.ids, dtype=np.int32), bool(encoding.overflowing)) for encoding in batch.encodings]

    def texts(self, ids: Any) -> list[str]:
        """What generated ids [n, t] say."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def generation_tokens(self) -> dict[str, int | None]:
        """The special tokens of `generate`, under its names."""
        assert self.decoder is not None
        start = self.decoder.start
        return {
            "pad_token_id": self.pad_id, "bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": self.tokenizer.eos_token_id,
            "decoder_start_token_id": int(self.targets(["a"])[0][0][-1]) if start is None else start,
        }  # fmt: skip

    @cached_property
    def ends_sentences(self) -> bool:
        """Whether every encoded text holds an end-of-sequence token."""
        return self.tokenizer.eos_token_id is not None and self.tokenizer.eos_token_id in self.pairs([("a", None)])[0][0]

    def check_targets(self) -> None:
        """Whether targets end.

        Raises:
            InputError: they do not, so that a decoder would never learn to stop.
        """
        if self.tokenizer.eos_token_id is None or self.tokenizer.eos_token_id not in self.targets(["a"])[0][0]:
            raise InputError(
                "a decoder's targets must end, and this tokenizer adds no end-of-sequence token (eos_token) to a text"
            )

    @cached_property
    def sentinels(self) -> list[int]:
        """Ids of T5's <extra_id_0>, <extra_id_1> and so on."""
        vocabulary = self.tokenizer.get_vocab()
        found: list[int] = []
        while (name := f"<extra_id_{len(found)}>") in vocabulary:
            found.append(vocabulary[name])
        return found

    @cached_property
    def sentence_ends(self) -> np.ndarray:
        """Ids of tokens that end a sentence."""
        return np.array([at for token, at in self.tokenizer.get_vocab().items() if token[-1:] in (".", "!", "?")], dtype=np.int64)

    def windows(self, pairs: Sequence[tuple[str, str]]) -> list[list[Window]]:
        """All windows over each (question, context): the question whole in every one, contexts overlapping by a quarter of the
        maximum length. A question longer than half of it is cut to that."""
        questions = self._shortened([question for question, _ in pairs])
        contexts = [context for _, context in pairs]
        encodings = self._windowing.encode_batch(list(zip(questions, contexts, strict=True)))
        return [self._windows(encoding) for encoding in encodings]

    def _windows(self, encoding: Any) -> list[Window]:
        """What stands around the context, and so where it begins, is the same in all windows of a pair."""
        parts = [encoding, *encoding.overflowing]
        in_context = [part == 1 for part in encoding.sequence_ids]
        before = in_context.index(True) if any(in_context) else len(in_context)
        after = in_context[::-1].index(True) if any(in_context) else 0
        first = encoding.type_ids.count(0) if self.token_types else None
        windows = []
        for part in parts:
            ids = np.array(part.ids, dtype=np.int32)
            offsets = np.full((len(ids), 2), -1, dtype=np.int32)
            inside = part.offsets[before : len(ids) - after]
            offsets[before : len(ids) - after] = np.fromiter(chain.from_iterable(inside), np.int32, 2 * len(inside)).reshape(
                -1, 2
            )
            windows.append(Window(ids, len(ids) if first is None else first, offsets, len(parts) > 1))
        return windows

    def _shortened(self, questions: Sequence[str]) -> list[str]:
        most = self.max_length // 2
        shortened = list(questions)
        long = [at for at, question in enumerate(questions) if len(question.encode()) > most]  # a token is a byte or more
        encodings = self._plain.encode_batch([questions[at] for at in long], add_special_tokens=False)
        for at, encoding in zip(long, encodings, strict=True):
            if len(encoding.ids) > most:
                shortened[at] = questions[at][: encoding.offsets[most - 1][1]]
        return shortened

    def words(self, rows: Sequence[Sequence[str]], whole: bool) -> list[tuple[list[np.ndarray], np.ndarray, bool]]:
        """Lists of words, as they stand in running text.

        Args:
            whole: read long ones in windows that overlap by a quarter of the maximum length; or else cut them.

        Returns:
            Per list (ids of each window, the first token of each of its w words [2, w], whether it was cut). A token is given by
            window and place, out of the window in whose middle it stands; place -1: the word was cut or dropped.
        """
        spaced = [[words[0], *(f" {word}" if word.strip() else word for word in words[1:])] for words in rows]
        encodings = self._plain.encode_batch(spaced, is_pretokenized=True)
        return [self._words(encoding, len(words), whole) for encoding, words in zip(encodings, rows, strict=True)]

    def _words(self, encoding: Any, num_words: int, whole: bool) -> tuple[list[np.ndarray], np.ndarray, bool]:
        ids = np.array(encoding.ids, dtype=np.int32)
        inside = np.flatnonzero([part is not None for part in encoding.sequence_ids])
        before, after = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (len(ids), len(ids))
        room = self.max_length - before - (len(ids) - after)
        overlap = self.max_length // 4
        step = room - overlap
        starts = np.arange(0, after - before - overlap, step) if whole and after - before > room else np.array([0])
        owners = np.array([-1 if word is None else word for word in encoding.word_ids[before:after]], dtype=np.int64)
        owned, firsts = np.unique(owners, return_index=True)
        first = np.full(num_words, -1)
        first[owned[owned >= 0]] = firsts[owned >= 0]
        window = np.clip(np.rint((first - room / 2) / step), 0, len(starts) - 1).astype(np.int64)
        place = np.where((first >= 0) & (first - starts[window] < room), before + first - starts[window], -1)
        ends = (min(start + room, after - before) for start in starts.tolist())
        windows = [
            np.concatenate([ids[:before], ids[before + start : before + end], ids[after:]])
            for start, end in zip(starts.tolist(), ends, strict=True)
        ]
        return windows, np.stack([window, place]), after - before > room and not whole

    def pieces(self, texts: Sequence[str]) -> list[list[np.ndarray]]:
        """Each text cut into as many sequences as it needs; a last piece of fewer than 8 tokens is dropped."""
        found = []
        for encoding in self._truncating.encode_batch_fast(list(texts)):
            parts = [np.array(part.ids, dtype=np.int32) for part in (encoding, *encoding.overflowing)]
            found.append(parts[:1] + [part for part in parts[1:] if len(part) >= 8])
        return found


def load_tokenizer(
    name_or_folder: str, max_length: int | None = None, config: Any = None, max_target_length: int | None = None
) -> Tokenizer:
    """The tokenizer of a model, cut to what the model takes.

    Raises:
        InputError: there is none, or a length is more than the model takes.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_folder, trust_remote_code=False)
    except Exception as error:  # one message for the many ways in which loading fails
        raise InputError(
            f"model {name_or_folder!r}: no tokenizer could be loaded ({str(error).strip().splitlines()[0][:200]}); "
            "expected tokenizer.json (or vocabulary files) beside the model"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what Transformers makes up where the files are missing
        raise InputError(f"model {name_or_folder!r}: its tokenizer is empty; expected tokenizer.json beside the model")
    decoder = make_decoder(config, tokenizer, max_target_length) if getattr(config, "is_encoder_decoder", False) else None
    token_types = getattr(config, "type_vocab_size", 2) > 1
    return Tokenizer(tokenizer, usable_length(tokenizer, config, max_length), token_types, decoder)


def make_decoder(config: Any, tokenizer: Any, max_length: int | None) -> Decoder:
    """What targets of a model look like; `max_length` replaces LONGEST_TARGET.

    Raises:
        InputError: it is more than the decoder takes, or configuration and tokenizer do not say how a target begins and ends.
    """
    if config.eos_token_id != tokenizer.eos_token_id:
        raise InputError(
            f"the model's configuration has eos_token_id {config.eos_token_id}, and its tokenizer {tokenizer.eos_token_id}: one "
            "of them is not this model's"
        )
    if config.decoder_start_token_id is None and config.model_type not in LANGUAGE_CODE_MODELS:
        raise InputError(f"the configuration of this {config.model_type} model has no decoder_start_token_id")
    most = getattr(config, "max_position_embeddings", None) or 10**9
    if max_length is not None and not 4 <= max_length <= most:
        raise InputError(f"data.max_target_length: {max_length} is not what the decoder takes; expected 4 to {most}")
    return Decoder(
        max_length=max_length or min(most, LONGEST_TARGET),
        most=most,
        start=config.decoder_start_token_id,
        writes_sentinels=config.model_type in SENTINEL_MODELS,
    )


def usable_length(tokenizer: Any, config: Any, max_length: int | None) -> int:
    """Tokens per sequence: the model's limit, at most LONGEST unless `max_length` says otherwise."""
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    if getattr(config, "model_type", "") in (
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "longformer",
        "mpnet",
        "data2vec-text",
    ):
        positions -= (config.pad_token_id or 0) + 1  # positions count from pad + 1 in these
    if getattr(config, "position_biased_input", True) is False and getattr(config, "relative_attention", False):
        positions = 10**9  # DeBERTa: relative positions only
    limit = min(positions, tokenizer.model_max_length)
    if max_length is not None and max_length > limit:
        raise InputError(f"data.max_length: {max_length} is more than the model takes; at most {limit}")
    if max_length is not None and max_length < 16:
        raise InputError(f"data.max_length: {max_length} is too short; at least 16")
    return max_length if max_length is not None else min(limit, LONGEST)
