"""Training rows that stand in an evaluation split: found by what their texts say, within a task and across tasks.

A row has one or more texts (a question and its passage, say). A training row *shows* a text of an evaluation row when it holds
the same letters and digits, or enough of that text's n-grams of words; it *touches* it when enough of its own n-grams stand
there, as those of a sentence do in its passage. The evaluation row *leaks* when one training row shows one of its texts and at
least touches the others: what will be asked has been seen. Otherwise the two only share a context (the longest text) or another
text, which is counted and told apart, but is no leak: a shared passage with another question is fair.

Texts become 64-bit hashes (xxhash) at once, so memory grows with the evaluation splits and not with the training rows, and time
with the number of words.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prefinetune.display import Display
from prefinetune.errors import FieldError, InputError, listing
from prefinetune.families import Field
from prefinetune.families.base import plain, read
from prefinetune.results import write
from prefinetune.sources import OpenTask
from prefinetune.store import cache_folder

FORMAT = 3  # of what is found; part of the cache's key
LEAST_LETTERS = 15  # letters and digits that the shared texts of two rows must have together to tell these rows from others
COMMON = 200  # a text that more evaluation rows share tells none of them from the others ("Which is right?")
WIDESPREAD = 64  # an n-gram in more texts than that is a phrase of its genre
MOST_GRAMS = 40_000_000  # n-grams of evaluation texts kept; of more, an even sample by hash
LEVELS = (0, 1, 2)  # of a leak: by its very texts, by their letters and digits, by n-grams
CONTEXT, TEXT = -1, -2  # no leak: only the longest text of the evaluation row is shared, or only another
KINDS = {0: "exact", 1: "normalised", 2: "n-grams", CONTEXT: "shared context", TEXT: "shared text"}
EVALUATION = ("validation", "test")


@dataclass(frozen=True)
class Overlap:
    """What the training rows of a task share with one evaluation split."""

    task: str
    against: str
    role: str  # validation or test
    exact: int  # training rows that leak, by how they were found first
    normalised: int
    ngram: int
    evaluation_rows: int  # that leak
    evaluation_size: int
    shared_context: int  # evaluation rows that do not leak, but whose longest text stands in a training row
    shared_text: int  # the same of another text
    examples: tuple[dict[str, Any], ...] = ()  # some pairs of rows, for eyes

    @property
    def rows(self) -> int:
        """Training rows that leak."""
        return self.exact + self.normalised + self.ngram


@dataclass(frozen=True)
class Leaks:
    """What `find_leaks` found. `drop[task]["other/test"]` are the numbers of training rows, in their source, to leave out."""

    overlaps: tuple[Overlap, ...]
    drop: Mapping[str, Mapping[str, np.ndarray]]
    leaking: Mapping[str, np.ndarray]  # by split, "glue-rte/test": numbers of the evaluation rows that leak
    training_rows: Mapping[str, int]  # looked at, by task
    evaluation_rows: Mapping[str, int]  # by task/role
    n: int
    share: float
    slugs: Mapping[str, str] = field(default_factory=dict)

    def rows(self, task: str) -> np.ndarray:
        """Sorted numbers of the training rows of a task that leak into any evaluation split."""
        found = list(self.drop.get(task, {}).values())
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    @property
    def counts(self) -> dict[str, int]:
        """Training rows that leak, by task; only tasks that have some."""
        return {task: len(self.rows(task)) for task in self.drop if len(self.rows(task))}

    def drop_list(self) -> dict[str, Any]:
        """As a mirror's overlap-*.json holds it: {"train_rows": {SLUG: {OTHER: [row, ...]}}}."""
        return {
            "about": f"Training rows (counted from 0) that show an evaluation row: its letters and digits, or {self.share:.0%} "
            f"of its {self.n}-grams of words. In a mirror's folder, as overlap-NAME.json, this leaves them out of training.",
            "train_rows": {
                self.slugs[task]: {other: rows.tolist() for other, rows in others.items()} for task, others in self.drop.items()
            },
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            **self.drop_list(), "n": self.n, "share": self.share, "slugs": dict(self.slugs),
            "training_rows": dict(self.training_rows), "evaluation_rows": dict(self.evaluation_rows),
            "leaking": {split: rows.tolist() for split, rows in self.leaking.items()},
            "overlaps": [asdict(one) for one in self.overlaps],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Leaks:
        slugs = found["slugs"]
        names = {slug: name for name, slug in slugs.items()}
        drop = {
            names[slug]: {other: np.array(rows, np.int64) for other, rows in others.items()}
            for slug, others in found["train_rows"].items()
        }
        overlaps = tuple(Overlap(**{**one, "examples": tuple(one["examples"])}) for one in found["overlaps"])
        leaking = {split: np.array(rows, np.int64) for split, rows in found["leaking"].items()}
        return cls(overlaps, drop, leaking, found["training_rows"], found["evaluation_rows"], found["n"], found["share"], slugs)


def find_leaks(
    opened: Sequence[OpenTask],
    against: Sequence[OpenTask] = (),
    n: int = 13,
    share: float = 0.5,
    progress: Callable[[int], None] | None = None,
    only_against: bool = False,
) -> Leaks:
    """Compare every training split with every evaluation split.

    Args:
        opened: tasks whose training rows are looked at, and whose validation and test rows they are compared with.
        against: further tasks of which only the evaluation rows count.
        n: words in an n-gram (GPT-3, Brown et al. 2020, appendix C, uses 13). Shorter texts are compared as a whole.
        share: of a text's n-grams that must stand in another to be shown or touched by it.
        progress: called with the number of rows done since the last call.
        only_against: leave the evaluation rows of the tasks themselves out.

    Raises:
        InputError: rows cannot be found, two tasks have one slug, or `n` or `share` is out of range.
    """
    if n < 2 or not 0 < share <= 1:
        raise InputError(f"n-grams of {n} words, share {share}: expected at least 2 words and a share above 0 and up to 1")
    slugs = {one.task.slug: one.task.name for one in (*opened, *against)}
    for one in (*opened, *against):
        if slugs[one.task.slug] != one.task.name:
            raise InputError(f"tasks {one.task.name!r} and {slugs[one.task.slug]!r} would share the folder {one.task.slug!r}")
    splits = evaluation_splits(against if only_against else (*opened, *against))
    index = Index(n)
    for number, (one, role) in enumerate(splits):
        for _, prints in each_chunk(one, role, index.fingerprint, one.task.family.inputs()):
            index.add(number, prints)
            if progress:
                progress(prints.rows)
    index.finish()
    overlaps: list[Overlap] = []
    drop: dict[str, dict[str, np.ndarray]] = {}
    leaking = np.zeros(index.num_rows, bool)
    trained = [one for one in opened if "train" in one.roles]
    for one in trained:
        found = Found(index, len(splits))
        fields = (*one.task.family.inputs(), *one.task.family.outputs())
        for start, (prints, matches) in each_chunk(
            one, "train", lambda texts: index.match(index.fingerprint(texts), share), fields, parts=True
        ):
            found.add(start, matches)
            if progress:
                progress(prints.rows)
        found.leaks |= found.leaks[index.twin]
        overlaps += found.overlaps(one, splits)
        leaking |= found.leaks
        rows = found.drop(one, splits)
        if rows:
            drop[one.task.name] = rows
    overlaps.sort(key=lambda one: (-one.rows, -one.shared_context - one.shared_text, one.task, one.against, one.role))
    return Leaks(
        tuple(overlaps),
        drop,
        dict(index.numbered(leaking, splits)),
        {one.task.name: len(one.split("train")) for one in trained},
        {split_name(one, role): len(one.split(role)) for one, role in splits},
        n,
        share,
        {one.task.name: one.task.slug for one in opened},
    )


def evaluation_splits(opened: Sequence[OpenTask]) -> list[tuple[OpenTask, str]]:
    """Every evaluation split once."""
    tasks = {one.task.name: one for one in opened}
    return [(one, role) for one in tasks.values() for role in EVALUATION if role in one.roles]


def split_name(opened: OpenTask, role: str) -> str:
    return f"{opened.task.slug}/{role}"


# ---- texts to hashes


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


def each_chunk(
    opened: OpenTask, role: str, work: Callable[[Texts], Any], fields: Sequence[Field], parts: bool = False
) -> Iterator[tuple[int, Any]]:
    """(index of the first row, result of `work`) for a split in pieces, two at a time: Arrow and NumPy work outside the
    interpreter's lock."""
    ahead: list[tuple[int, Future]] = []
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start, texts in row_texts(opened, role, fields, parts):
            ahead.append((start, pool.submit(work, texts)))
            if len(ahead) > workers:
                first, future = ahead.pop(0)
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()


@dataclass(slots=True)
class Texts:
    """The texts of some rows, with the row of each."""

    rows: int
    texts: list[str]
    owner: list[int]


def row_texts(opened: OpenTask, role: str, fields: Sequence[Field], parts: bool) -> Iterator[tuple[int, Texts]]:
    """(index of the first row, texts of rows); with `parts`, each option of a row is also a text of its own."""
    split = opened.split(role)
    for start, rows in split.chunks(4000):
        texts: list[str] = []
        owner: list[int] = []
        for number, row in enumerate(rows):
            for where in fields:
                values, any_order = field_values(row, where), opened.task.family.any_order
                alone = values if parts and any_order and len(values) > 1 else []
                for text in [field_text(values, any_order), *alone]:
                    if text:
                        texts.append(text)
                        owner.append(number)
        yield start, Texts(len(rows), texts, owner)


def field_values(row: Mapping[str, Any], where: Field) -> list[str]:
    """What a field holds, each option or token; what is no text, which training will set aside, is none."""
    try:
        values = [read(row, part) for part in where] if isinstance(where, tuple) else read(row, where)
    except FieldError:
        return []
    return [str(value) for value in (values if isinstance(values, (list, tuple)) else [values]) if value is not None]


def field_text(values: Sequence[str], any_order: bool) -> str:
    """What a field holds as one text."""
    return " ".join(sorted(values) if any_order else values)


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


# ---- the evaluation splits, to be asked


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
        # Rows of nothing but common texts are found by all of these together: one of the equal rows of a split stands for all.
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

    def numbered(self, rows: np.ndarray, splits: Sequence[tuple[OpenTask, str]]) -> Iterator[tuple[str, np.ndarray]]:
        """Split -> the numbers that chosen rows [rows, bool] have in their source; only of splits that have some."""
        for number, (one, role) in enumerate(splits):
            here = slice(*np.searchsorted(self.splits, [number, number + 1]))
            if rows[here].any():
                yield (
                    split_name(one, role),
                    np.array([one.split(role).number(row) for row in np.flatnonzero(rows[here]).tolist()]),
                )

    def match(self, prints: Prints, share: float) -> tuple[Prints, Matches]:
        """The evaluation rows that share texts with training rows."""
        width = max(len(self.keys), 1)
        touched, equal_texts, shown = self._touched(prints, share)
        equal = np.isin(touched, equal_texts)
        training, text = np.divmod(touched, width)
        # From touched texts to the rows that hold them.
        useful = ~self.is_common[text]
        counts = np.where(useful, self.text_starts[text + 1] - self.text_starts[text], 0)
        rows = self.rows_by_text[spread(self.text_starts[text], counts)]
        pairs, inverse = np.unique(np.repeat(training, counts) * max(self.num_rows, 1) + rows, return_inverse=True)
        number = np.bincount(inverse, minlength=len(pairs))
        letters = np.bincount(inverse, np.repeat(self.letters[text], counts), minlength=len(pairs))
        by_grams = np.bincount(inverse, np.repeat(~equal, counts), minlength=len(pairs)) > 0
        is_shown = np.bincount(inverse, np.repeat(shown, counts), minlength=len(pairs)) > 0
        row, evaluation = np.divmod(pairs, max(self.num_rows, 1))
        has_common, common_letters = self._common(row, evaluation, touched, width)
        kept = letters + common_letters >= LEAST_LETTERS
        whole = is_shown & (number == self.needed[evaluation]) & has_common
        row, evaluation, by_grams, whole = row[kept], evaluation[kept], by_grams[kept], whole[kept]
        level = np.where(by_grams, 2, 1)
        equal_rows = np.flatnonzero(whole & ~by_grams)
        level[equal_rows] = self._equal_level(prints, row[equal_rows], evaluation[equal_rows])
        context = np.isin(row * width + self.longest[evaluation], touched)
        level = np.where(whole, level, np.where(context, CONTEXT, TEXT))
        # Rows of common texts only.
        training, text = np.divmod(equal_texts, width)
        counts = np.where(self.is_common[text], self.common_starts[text + 1] - self.common_starts[text], 0)
        same, other = np.repeat(training, counts), self.common_rows[spread(self.common_starts[text], counts)]
        whole = self._common(same, other, equal_texts, width)[0]
        same, other = same[whole], other[whole]
        same_level = self._equal_level(prints, same, other)
        return prints, Matches(*map(np.concatenate, ((row, same), (evaluation, other), (level, same_level))))

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

    def _common(self, row: np.ndarray, evaluation: np.ndarray, touched: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Pair by pair: whether the training row also touches the common texts of the evaluation row, and how many letters of
        these it touches."""
        starts, counts = self.row_starts[evaluation], np.diff(self.row_starts)[evaluation]
        pair, texts = np.repeat(np.arange(len(row)), counts), self.text_of[spread(starts, counts)]
        pair, texts = pair[self.is_common[texts]], texts[self.is_common[texts]]
        there = np.isin(row[pair] * width + texts, touched)
        missing = np.bincount(pair, ~there, minlength=len(row))
        return missing == 0, np.bincount(pair, self.letters[texts] * there, minlength=len(row))


class Found:
    """What the training rows of one task share with the evaluation splits."""

    def __init__(self, index: Index, num_splits: int) -> None:
        self.index, self.num_splits = index, num_splits
        self.rows: list[list[np.ndarray]] = [[] for _ in range(num_splits)]  # training rows that leak, per split and chunk
        self.levels: list[list[np.ndarray]] = [[] for _ in range(num_splits)]
        self.leaks, self.context, self.text = np.zeros((3, index.num_rows), bool)  # evaluation rows
        self.pairs: list[list[tuple[int, int, int]]] = [[] for _ in range(num_splits)]  # (level, training row, evaluation row)

    def add(self, start: int, matches: Matches) -> None:
        self.context[matches.evaluation[matches.level == CONTEXT]] = True
        self.text[matches.evaluation[matches.level == TEXT]] = True
        self.leaks[matches.evaluation[matches.level >= 0]] = True
        splits = self.index.splits[matches.evaluation]
        for split in np.unique(splits).tolist():
            here = np.flatnonzero(splits == split)
            whole = here[matches.level[here] >= 0]
            order = whole[np.lexsort((matches.level[whole], matches.training[whole]))]
            rows, first = np.unique(matches.training[order], return_index=True)
            self.rows[split].append(rows + start)
            self.levels[split].append(matches.level[order][first])
            self._keep_examples(split, start, matches, here)

    def _keep_examples(self, split: int, start: int, matches: Matches, here: np.ndarray) -> None:
        levels = [level for level, _, _ in self.pairs[split]]
        for at in here[np.unique(matches.level[here], return_index=True)[1]].tolist():
            level = int(matches.level[at])
            if level not in levels:
                self.pairs[split].append((level, int(matches.training[at]) + start, int(matches.evaluation[at])))

    def overlaps(self, opened: OpenTask, splits: Sequence[tuple[OpenTask, str]]) -> Iterator[Overlap]:
        """One per evaluation split with which anything is shared."""
        for number, (other, role) in enumerate(splits):
            here = slice(*np.searchsorted(self.index.splits, [number, number + 1]))
            leaks = self.leaks[here]
            context, text = (part[here] & ~leaks for part in (self.context, self.text))
            if leaks.any() or context.any() or text.any():
                exact, normalised, ngram = np.bincount(joined(self.levels[number]), minlength=len(LEVELS)).tolist()
                yield Overlap(
                    opened.task.name, other.task.name, role, exact, normalised, ngram,
                    evaluation_rows=int(leaks.sum()), evaluation_size=len(leaks),
                    shared_context=int(context.sum()), shared_text=int((text & ~context).sum()),
                    examples=tuple(
                        example(level, opened, row, other, role, at - here.start) for level, row, at in sorted(self.pairs[number])
                    ),
                )  # fmt: skip

    def drop(self, opened: OpenTask, splits: Sequence[tuple[OpenTask, str]]) -> dict[str, np.ndarray]:
        """Split -> numbers of the training rows, in their source, that leak into it."""
        split = opened.split("train")
        numbered = {
            split_name(*splits[number]): np.array([split.number(row) for row in joined(rows).tolist()], np.int64)
            for number, rows in enumerate(self.rows)
        }
        return {name: np.sort(rows) for name, rows in numbered.items() if len(rows)}


def example(level: int, opened: OpenTask, row: int, other: OpenTask, role: str, at: int) -> dict[str, Any]:
    """A pair of rows that share texts, for eyes."""
    return {
        "kind": KINDS[level],
        "training_row": opened.split("train").number(row), "training": shorten(opened, "train", row),
        "evaluation_row": other.split(role).number(at), "evaluation": shorten(other, role, at),
    }  # fmt: skip


def shorten(opened: OpenTask, role: str, index: int) -> list[str]:
    row = opened.split(role).rows[index]
    family = opened.task.family
    texts = (field_text(field_values(row, where), family.any_order) for where in (*family.inputs(), *family.outputs()))
    return [text if len(text) <= 300 else text[:300] + " …" for text in texts if text]


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


# ---- what training makes of it


def known_leaks(
    opened: Sequence[OpenTask], against: Sequence[OpenTask], cache: Path | None, display: Display, only_against: bool = False
) -> Leaks:
    """`find_leaks`, or what it found in the same rows before."""
    named = [[(one.task.name, role, one.digest(role)) for role in one.roles] for one in (*opened, *against)]
    fields = [plain([*one.task.family.inputs(), *one.task.family.outputs()]) for one in (*opened, *against)]
    key = hashlib.blake2b(json.dumps([FORMAT, named, fields, len(opened), only_against]).encode(), digest_size=16).hexdigest()
    path = (cache or cache_folder()) / "leaks" / f"{key}.json"
    if path.exists():
        return Leaks.from_dict(json.loads(path.read_text(encoding="utf-8")))
    splits = evaluation_splits(against if only_against else (*opened, *against))
    total = sum(len(one.split(role)) for one, role in splits) + sum(
        len(one.split("train")) for one in opened if "train" in one.roles
    )
    with display.counting("rows compared with evaluation splits", total) as advance:
        found = find_leaks(opened, against, progress=advance, only_against=only_against)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(found.as_dict(), ensure_ascii=False))
    return found


def leave_out(
    opened: Sequence[OpenTask], against: Sequence[OpenTask], setting: str, cache: Path | None, display: Display
) -> tuple[list[OpenTask], Leaks | None]:
    """The tasks as `data.leaks` wants them: without the training rows that leak (drop), as they are with word of it (report), or
    unseen (off).

    Raises:
        InputError: all training rows of a task leak.
    """
    if setting == "off":
        return list(opened), None
    leaks = known_leaks(opened, against, cache, display)
    display.say(told(leaks, setting == "drop"))
    if setting == "report":
        return list(opened), leaks
    for one in opened:
        if leaks.training_rows.get(one.task.name) == len(leaks.rows(one.task.name)):
            raise InputError(
                f"task {one.task.name!r}: every training row shows an evaluation row ({listing(leaks.drop[one.task.name])}); "
                "take the task out of the suite, or train on these rows all the same with data.leaks=report"
            )
    return [one.without("train", leaks.rows(one.task.name)) if one.task.name in leaks.counts else one for one in opened], leaks


def told(leaks: Leaks, left_out: bool | None) -> str:
    """One line about what was found, and (unless None) what training does with it."""
    counts = sorted(leaks.counts.items(), key=lambda item: -item[1])
    if not counts:
        return f"no leaks: no training row shows one of {sum(leaks.evaluation_rows.values()):,} evaluation rows"
    total, rows = sum(count for _, count in counts), sum(leaks.training_rows.values())
    most = ", ".join(f"{task} {count:,}" for task, count in counts[:4])
    done = {None: "", True: " and are left out of training", False: " and are trained on all the same (data.leaks=report)"}[
        left_out
    ]
    return f"leaks: {total:,} of {rows:,} training rows show evaluation rows{done}; most: {most}"
