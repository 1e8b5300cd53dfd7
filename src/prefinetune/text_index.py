"""Texts as hashes, and an index of rows by their texts: which evaluation rows share texts with training rows, and how.

All work is on arrays of 64-bit hashes (xxhash), by Arrow and NumPy. `leaks.py` says what is compared with what, and what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_LETTERS = 15  # letters and digits that the shared texts of two rows must have together to tell these rows from others
COMMON = 200  # a text that more evaluation rows share tells none of them from the others ("Which is right?")
WIDESPREAD = 64  # an n-gram in more texts than that is a phrase of its genre
MOST_GRAMS = 40_000_000  # n-grams of evaluation texts kept; of more, an even sample by hash
LEVELS = (0, 1, 2)  # of a leak: by its very texts, by their letters and digits, by n-grams
CONTEXT, TEXT = -1, -2  # no leak: only the longest text of the evaluation row is shared, or only another
KINDS = {0: "exact", 1: "normalised", 2: "n-grams", CONTEXT: "shared context", TEXT: "shared text"}

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # training rows, evaluation rows, levels: what Matches are made of


@dataclass(slots=True)
class Texts:
    """The texts of some rows, with the row of each."""

    rows: int
    texts: list[str]
    owner: list[int]


@dataclass(slots=True)
class Prints:
    """Hashes of the texts of some rows; t texts, g n-grams."""

    rows: int
    owner: np.ndarray  # [t] whose row the text is
    key: np.ndarray  # [t] of its letters and digits in lower case
    raw: np.ndarray  # [t] of the text itself
    letters: np.ndarray  # [t] how many letters and digits it has
    grams: np.ndarray  # [g]
    gram_text: np.ndarray  # [g] which text the n-gram is of


def fingerprint(given: Texts, n: int, every: int = 1) -> Prints:
    """Hash texts.

    Args:
        n: words in an n-gram.
        every: keep one n-gram in so many, the same ones everywhere (a power of two).
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import xxhash

    owner = np.array(given.owner, np.int64)
    texts = pa.array(given.texts, pa.large_string())
    lower = pc.utf8_lower(pc.utf8_normalize(texts, "NFKC"))
    words = pc.utf8_trim_whitespace(pc.replace_substring_regex(lower, r"[^\pL\pN]+", " "))
    unicode = pc.replace_substring(words, " ", "")
    # Copies of a set often lose the letters beyond ASCII ("clich" for "cliché"): where these are few they do not count.
    ascii = pc.replace_substring_regex(unicode, "[^a-z0-9]+", "")
    letters = pc.utf8_length(unicode).to_numpy().astype(np.int64)
    num_ascii = pc.utf8_length(ascii).to_numpy()
    joined = pc.if_else(pa.array((letters - num_ascii) * 10 <= letters), ascii, unicode)
    digest = xxhash.xxh3_64_intdigest
    raw = np.fromiter(map(digest, texts.cast(pa.large_binary()).to_pylist()), np.uint64, len(texts))
    key = np.fromiter(map(digest, joined.cast(pa.large_binary()).to_pylist()), np.uint64, len(texts))
    key = np.where(letters > 0, key, raw)  # ":-)" has no letters, and is not every other text without letters

    lists = pc.split_pattern(words, " ")
    ends = lists.offsets.to_numpy()
    spelled = lists.flatten().dictionary_encode()
    vocabulary = np.fromiter(map(digest, spelled.dictionary.cast(pa.large_binary()).to_pylist()), np.uint64)
    hashes = vocabulary[spelled.indices.to_numpy()] if len(spelled) else np.zeros(0, np.uint64)
    counts = np.maximum(np.diff(ends) - n + 1, 0)  # n-grams of each text
    gram_text = np.repeat(np.arange(len(counts)), counts)
    # Where each n-gram begins: its text's first word, and one further for each of the text's n-grams before it.
    first = np.repeat(ends[:-1] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    rolled = np.zeros(max(len(hashes) - n + 1, 0), np.uint64)
    for at in range(n):  # a polynomial in the words' hashes, modulo 2**64
        rolled *= np.uint64(0x9E3779B97F4A7C15)
        rolled += hashes[at : at + len(rolled)]
    same = np.concatenate([[0], np.cumsum(hashes[1:] == hashes[:-1])]) if len(hashes) else np.zeros(0, np.int64)
    varied = same[first + n - 1] - same[first] <= n // 2  # "@user @user @user ..." is a habit, not a text
    first, gram_text = first[varied], gram_text[varied]
    grams = rolled[first]
    grams ^= grams >> np.uint64(33)
    grams *= np.uint64(0xFF51AFD7ED558CCD)
    grams ^= grams >> np.uint64(29)
    if every > 1:
        kept = (grams & np.uint64(every - 1)) == 0
        grams, gram_text = grams[kept], gram_text[kept]
    return Prints(given.rows, owner, key, raw, letters, grams, gram_text)


@dataclass(slots=True)
class Matches:
    """Pairs of a training row (index in its chunk) and an evaluation row."""

    training: np.ndarray
    evaluation: np.ndarray
    level: np.ndarray  # a key of KINDS


class Index:
    """All texts of the evaluation rows. Distinct texts are numbered by their sorted keys; rows as they come."""

    def __init__(self, n: int) -> None:
        self.n, self.every = n, 1
        self.num_rows = 0
        self._seen: set[int] = set()
        self._keys, self._letters, self._owner = [], [], []  # type: ignore[var-annotated]
        self._splits, self._raw = [], []  # type: ignore[var-annotated]
        self._grams, self._gram_keys, self._num_grams = [], [], 0  # type: ignore[var-annotated]

    def fingerprint(self, texts: Texts) -> Prints:
        return fingerprint(texts, self.n, self.every)

    def add(self, split: int, prints: Prints) -> None:
        self._keys.append(prints.key)
        self._letters.append(prints.letters)
        self._owner.append(prints.owner + self.num_rows)
        self._splits.append(np.full(prints.rows, split))
        self._raw.append(prints.raw)
        self.num_rows += prints.rows
        # Of texts with equal letters the n-grams of the first count; others differ at most in where words are parted.
        new = np.array([self._is_new(key) for key in prints.key.tolist()], bool)
        kept = new[prints.gram_text] if len(new) else np.zeros(0, bool)
        kept &= (prints.grams & np.uint64(self.every - 1)) == 0  # hashed ahead, perhaps before the last thinning
        self._grams.append(prints.grams[kept])
        self._gram_keys.append(prints.key[prints.gram_text[kept]])
        self._num_grams += int(kept.sum())
        while self._num_grams > MOST_GRAMS:
            self.every *= 2
            self._thin()

    def _is_new(self, key: int) -> bool:
        size = len(self._seen)
        self._seen.add(key)
        return len(self._seen) > size

    def _thin(self) -> None:
        for at, grams in enumerate(self._grams):
            kept = (grams & np.uint64(self.every - 1)) == 0
            self._grams[at], self._gram_keys[at] = grams[kept], self._gram_keys[at][kept]
        self._num_grams = sum(map(len, self._grams))

    def finish(self) -> None:
        """Sort what was added, so that it can be asked."""
        self._seen.clear()
        self._sort_texts()
        self._sort_common_rows()
        self._sort_grams()

    def _sort_texts(self) -> None:
        keys, owner, letters = joined(self._keys, np.uint64), joined(self._owner), joined(self._letters)
        self.splits, self.raw = joined(self._splits), joined(self._raw, np.uint64)
        self.raw_starts = np.searchsorted(owner, np.arange(self.num_rows + 1))
        self.keys, first, text = np.unique(keys, return_index=True, return_inverse=True)
        self.letters = letters[first]
        # Rows -> texts and texts -> rows, each distinct text of a row once.
        pairs = np.unique(owner * max(len(self.keys), 1) + text)
        self.row_of, self.text_of = np.divmod(pairs, max(len(self.keys), 1))
        self.row_starts = np.searchsorted(self.row_of, np.arange(self.num_rows + 1))
        by_text = np.argsort(self.text_of, kind="stable")
        self.rows_by_text = self.row_of[by_text]
        self.text_starts = np.searchsorted(self.text_of[by_text], np.arange(len(self.keys) + 1))
        self.is_common = np.diff(self.text_starts) > COMMON
        # What telling rows from each other takes: how many of a row's texts are not common, and which is its longest.
        self.needed = np.bincount(self.row_of[~self.is_common[self.text_of]], minlength=self.num_rows)
        order = np.lexsort((self.letters[self.text_of], self.row_of))
        last = np.searchsorted(self.row_of[order], np.arange(self.num_rows), side="right") - 1
        self.longest = self.text_of[order][np.maximum(last, 0)] if len(order) else np.zeros(self.num_rows, np.int64)

    def _sort_common_rows(self) -> None:
        """Rows of nothing but common texts are found by all of these together; of equal ones in a split, one stands for all."""
        row_letters = np.bincount(self.row_of, self.letters[self.text_of], minlength=self.num_rows)
        common_rows = np.flatnonzero((self.needed == 0) & (row_letters >= LEAST_LETTERS))
        row_key = sum_by(self.row_of, self.keys[self.text_of], self.num_rows)[common_rows]
        order = np.lexsort((common_rows, self.splits[common_rows], row_key))
        common_rows, row_key = common_rows[order], row_key[order]
        is_first = np.ones(len(common_rows), bool)
        is_first[1:] = (row_key[1:] != row_key[:-1]) | (self.splits[common_rows[1:]] != self.splits[common_rows[:-1]])
        self.twin = np.arange(self.num_rows)
        self.twin[common_rows] = common_rows[is_first][np.cumsum(is_first) - 1]
        first = common_rows[is_first]
        self.common_rows = first[np.argsort(self.longest[first], kind="stable")]
        self.common_starts = np.searchsorted(self.longest[self.common_rows], np.arange(len(self.keys) + 1))

    def _sort_grams(self) -> None:
        grams, texts = joined(self._grams, np.uint64), np.searchsorted(self.keys, joined(self._gram_keys, np.uint64))
        self._grams, self._gram_keys = [], []
        order = np.lexsort((texts, grams))
        grams, texts = grams[order], texts[order].astype(np.int32)
        once = np.ones(len(grams), bool)
        once[1:] = (grams[1:] != grams[:-1]) | (texts[1:] != texts[:-1])
        self.grams, self.gram_text = grams[once], texts[once]
        self.gram_counts = np.bincount(self.gram_text, minlength=len(self.keys))
        # Most n-grams of training rows stand in no evaluation text: a table of bits says so faster than a search.
        bits = max(16, min(30, int(np.log2(max(len(self.grams), 1))) + 4))
        self.shift = np.uint64(64 - bits)
        self.present = np.zeros(2**bits, bool)
        self.present[self.grams >> self.shift] = True

    def match(self, prints: Prints, share: float) -> tuple[Prints, Matches]:
        """The evaluation rows that share texts with training rows.

        Args:
            share: of a text's n-grams that must stand in another to be shown or touched by it.
        """
        touched, equal, shown = self._touched(prints, share)
        parts = (self._by_telling_texts(prints, touched, equal, shown), self._by_common_texts(prints, equal))
        return prints, Matches(*map(np.concatenate, zip(*parts, strict=True)))

    def _by_telling_texts(self, prints: Prints, touched: np.ndarray, equal: np.ndarray, shown: np.ndarray) -> Pairs:
        """Evaluation rows with texts that are not common: all pairs that share enough, with their levels."""
        width, height = max(len(self.keys), 1), max(self.num_rows, 1)
        training, text = np.divmod(touched, width)
        # From touched texts to the rows that hold them.
        counts = np.where(self.is_common[text], 0, self.text_starts[text + 1] - self.text_starts[text])
        rows = self.rows_by_text[spread(self.text_starts[text], counts)]
        pairs, inverse = np.unique(np.repeat(training, counts) * height + rows, return_inverse=True)
        row, evaluation = np.divmod(pairs, height)

        def any_of(marks: np.ndarray) -> np.ndarray:
            return np.bincount(inverse, np.repeat(marks, counts), minlength=len(pairs)) > 0

        number = np.bincount(inverse, minlength=len(pairs))
        letters = np.bincount(inverse, np.repeat(self.letters[text], counts), minlength=len(pairs))
        has_common, common_letters = self._common(row, evaluation, touched)
        whole = any_of(shown) & (number == self.needed[evaluation]) & has_common
        level = np.where(any_of(~np.isin(touched, equal)), 2, 1)
        equal_rows = np.flatnonzero(whole & (level == 1))
        level[equal_rows] = self._equal_level(prints, row[equal_rows], evaluation[equal_rows])
        context = np.isin(row * width + self.longest[evaluation], touched)
        level = np.where(whole, level, np.where(context, CONTEXT, TEXT))
        kept = letters + common_letters >= LEAST_LETTERS
        return row[kept], evaluation[kept], level[kept]

    def _by_common_texts(self, prints: Prints, equal: np.ndarray) -> Pairs:
        """Evaluation rows of common texts only, that equal a training row's texts."""
        training, text = np.divmod(equal, max(len(self.keys), 1))
        counts = np.where(self.is_common[text], self.common_starts[text + 1] - self.common_starts[text], 0)
        row, evaluation = np.repeat(training, counts), self.common_rows[spread(self.common_starts[text], counts)]
        whole = self._common(row, evaluation, equal)[0]
        row, evaluation = row[whole], evaluation[whole]
        return row, evaluation, self._equal_level(prints, row, evaluation)

    def _touched(self, prints: Prints, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which evaluation texts the training rows touch, as sorted numbers row * texts + text; those that are equal; and whether
        the former are shown."""
        width = max(len(self.keys), 1)
        at = np.searchsorted(self.keys, prints.key)
        same = is_at(self.keys, at, prints.key)
        equal = np.unique(prints.owner[same] * width + at[same])

        maybe = np.flatnonzero(self.present[prints.grams >> self.shift])
        low = np.searchsorted(self.grams, prints.grams[maybe])
        there = is_at(self.grams, low, prints.grams[maybe])
        # Each n-gram of a text once, also where the text repeats it; then the evaluation texts that hold it.
        grams = np.unique(prints.gram_text[maybe[there]] * max(len(self.grams), 1) + low[there])
        texts, low = np.divmod(grams, max(len(self.grams), 1))
        counts = np.searchsorted(self.grams, self.grams[low], side="right") - low
        texts, low, counts = (part[counts <= WIDESPREAD] for part in (texts, low, counts))
        pairs, shared = np.unique(np.repeat(texts, counts) * width + self.gram_text[spread(low, counts)], return_counts=True)
        text, other = np.divmod(pairs, width)
        asked = np.flatnonzero(np.isin(prints.gram_text, texts))
        order = asked[np.lexsort((prints.grams[asked], prints.gram_text[asked]))]
        of, gram = prints.gram_text[order], prints.grams[order]
        once = np.ones(len(order), bool)
        once[1:] = (of[1:] != of[:-1]) | (gram[1:] != gram[:-1])
        own = np.bincount(of[once], minlength=len(prints.key))
        near = prints.owner[text] * width + other
        is_shown = shared >= share * self.gram_counts[other]
        touched = np.union1d(equal, near[is_shown | (shared >= share * own[text])])
        return touched, equal, np.isin(touched, equal) | np.isin(touched, near[is_shown])

    def _equal_level(self, prints: Prints, row: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
        """For pairs of rows that share letters and digits: 0 where every text of the evaluation row stands in the training row
        as it is, else 1."""
        tag = np.uint64(0x9E3779B97F4A7C15)  # a text's hash and its row in one number
        counts = np.diff(self.raw_starts)[evaluation]
        pair, raw = np.repeat(np.arange(len(row)), counts), self.raw[spread(self.raw_starts[evaluation], counts)]
        own = prints.raw + prints.owner.astype(np.uint64) * tag
        missing = ~np.isin(raw + row[pair].astype(np.uint64) * tag, own)
        return (np.bincount(pair, missing, minlength=len(row)) > 0).astype(np.int64)

    def _common(self, row: np.ndarray, evaluation: np.ndarray, touched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pair by pair: whether the training row also touches the common texts of the evaluation row, and how many letters of
        these it touches."""
        starts, counts = self.row_starts[evaluation], np.diff(self.row_starts)[evaluation]
        pair, texts = np.repeat(np.arange(len(row)), counts), self.text_of[spread(starts, counts)]
        pair, texts = pair[self.is_common[texts]], texts[self.is_common[texts]]
        there = np.isin(row[pair] * max(len(self.keys), 1) + texts, touched)
        missing = np.bincount(pair, ~there, minlength=len(row))
        return missing == 0, np.bincount(pair, self.letters[texts] * there, minlength=len(row))


# ---- arrays


def joined(parts: Sequence[np.ndarray], dtype: Any = np.int64) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype) for part in parts]) if parts else np.zeros(0, dtype)


def spread(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + count - 1 for each of them, in a row."""
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def sum_by(owner: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sums of hashes by their owner, modulo 2**64: the same whatever the order."""
    total = np.zeros(size, np.uint64)
    np.add.at(total, owner, values)
    return total


def is_at(sorted_keys: np.ndarray, at: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Indices of the keys that `searchsorted` found where it said."""
    if not len(sorted_keys):
        return np.zeros(0, np.int64)
    return np.flatnonzero(sorted_keys[np.minimum(at, len(sorted_keys) - 1)] == keys)
