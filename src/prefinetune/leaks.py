"""Training rows that stand in an evaluation split: found by what their texts say, within a task and across tasks.

A row has one or more texts (a question and its passage, say). A training row *shows* a text of an evaluation row when it holds
the same letters and digits, or enough of that text's n-grams of words; it *touches* it when enough of its own n-grams stand
there, as those of a sentence do in its passage. The evaluation row *leaks* when one training row shows one of its texts and at
least touches the others: what will be asked has been seen. Otherwise the two only share a context (the longest text) or another
text, which is counted and told apart, but is no leak: a shared passage with another question is fair.

Texts become hashes at once (text_index.py): memory grows with the evaluation splits and not with the training rows, time with the
number of words.
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

from prefinetune.cache import cache_folder, mark_used
from prefinetune.display import Display
from prefinetune.errors import FieldError, InputError, listing
from prefinetune.families import Field
from prefinetune.families.base import plain, read
from prefinetune.files import write
from prefinetune.splits import OpenTask
from prefinetune.text_index import CONTEXT, KINDS, LEVELS, TEXT, Index, Matches, Texts, joined

FORMAT = 3  # of what is found; part of the cache's key
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
        dict(numbered(index, leaking, splits)),
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


# ---- what was found


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


def numbered(index: Index, rows: np.ndarray, splits: Sequence[tuple[OpenTask, str]]) -> Iterator[tuple[str, np.ndarray]]:
    """Split -> the numbers that chosen rows [rows, bool] have in their source; only of splits that have some."""
    for number, (one, role) in enumerate(splits):
        here = slice(*np.searchsorted(index.splits, [number, number + 1]))
        if rows[here].any():
            yield (
                split_name(one, role),
                np.array([one.split(role).number(row) for row in np.flatnonzero(rows[here]).tolist()]),
            )


def example(level: int, opened: OpenTask, row: int, other: OpenTask, role: str, at: int) -> dict[str, Any]:
    """A pair of rows that share texts, for eyes."""
    return {
        "kind": KINDS[level],
        "training_row": opened.split("train").number(row), "training": shorten(opened, "train", row),
        "evaluation_row": other.split(role).number(at), "evaluation": shorten(other, role, at),
    }  # fmt: skip


def shorten(opened: OpenTask, role: str, index: int) -> list[str]:
    row = opened.split(role).rows[int(index)]  # older datasets take no number of numpy
    family = opened.task.family
    texts = (field_text(field_values(row, where), family.any_order) for where in (*family.inputs(), *family.outputs()))
    return [text if len(text) <= 300 else text[:300] + " …" for text in texts if text]


# ---- what training makes of it


def known_leaks(
    opened: Sequence[OpenTask], against: Sequence[OpenTask], cache: Path | None, display: Display, only_against: bool = False
) -> Leaks:
    """`find_leaks`, or what it found in the same rows before."""
    named = [[(one.task.name, role, one.digest(role)) for role in one.roles] for one in (*opened, *against)]
    families = [one.task.family for one in (*opened, *against)]
    fields = [[family.kind, *plain([*family.inputs(), *family.outputs()])] for family in families]
    key = hashlib.blake2b(json.dumps([FORMAT, named, fields, len(opened), only_against]).encode(), digest_size=16).hexdigest()
    path = (cache or cache_folder()) / "leaks" / f"{key}.json"
    if path.exists():
        try:
            found = Leaks.from_dict(json.loads(path.read_text(encoding="utf-8")))
            mark_used(path)
            return found
        except (ValueError, KeyError, TypeError, AttributeError):  # damaged: look again
            path.unlink(missing_ok=True)
    splits = evaluation_splits(against if only_against else (*opened, *against))
    total = sum(len(one.split(role)) for one, role in splits) + sum(
        len(one.split("train")) for one in opened if "train" in one.roles
    )
    with display.counting("rows compared with evaluation splits", total) as advance:
        found = find_leaks(opened, against, progress=advance, only_against=only_against)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{key}.{os.getpid()}.json")  # another process may be writing the same
    write(beside, json.dumps(found.as_dict(), ensure_ascii=False))
    beside.replace(path)
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
    counts = leaks.counts
    return [one.without("train", leaks.rows(one.task.name)) if one.task.name in counts else one for one in opened], leaks


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
