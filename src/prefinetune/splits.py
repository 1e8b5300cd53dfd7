"""Which rows of a source belong to which role of a task: train, validation or test.

What is held out, left out or sampled of the rows is decided here, by row number, so that a row which cannot be read takes part
like any other: put right, it moves no other row to another role.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefinetune.errors import FieldError, InputError, Unavailable, listing, nearest
from prefinetune.mixture import permute
from prefinetune.quarantine import BAD_ROWS, BEYOND_MOST, HELD_OUT, LEAK, NOT_SCORED, OVERLAP, Account, Fault
from prefinetune.readers import Table, without
from prefinetune.sources import ROLES, Hub, Source

if TYPE_CHECKING:
    from datasets import Dataset

    from prefinetune.task import Task

AT_ONCE = 1 << 16  # rows of a sample that are drawn together: drawing takes 150 bytes each
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 1000  # of the training rows, where a source has no validation split


@dataclass(frozen=True)
class Split:
    """Rows in one role of a task. `split.rows[i]` is row `split.number(i)` of the source.

    Attributes:
        table: all rows of the source.
        place: what messages call it.
        kept: numbers of the rows in this role, ascending, those that could not be read among them.
        left_out: how many of the source's rows are not in this role, by rule (see quarantine.RULES).
    """

    table: Table
    place: str
    kept: np.ndarray
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def numbers(self) -> np.ndarray:
        """Of the rows that could be read."""
        return self.kept[self.readable] if self.table.faults else self.kept

    @cached_property
    def readable(self) -> np.ndarray:
        """[kept] whether a row could be read."""
        return without(len(self.table), np.fromiter(self.table.faults, np.int64))[self.kept]

    @cached_property
    def rows(self) -> Dataset:
        """Those that could be read."""
        return self.table.rows if len(self) == self.table.readable else self.table.rows.select(self.positions)

    @cached_property
    def positions(self) -> np.ndarray:
        """Where they stand in the table."""
        return self.numbers if self.table.numbers is None else np.searchsorted(self.table.numbers, self.numbers)

    @property
    def faults(self) -> list[Fault]:
        """Those that could not."""
        return [self.table.faults[number] for number in self.kept[~self.readable].tolist()] if self.table.faults else []

    def number(self, index: int) -> int:
        return int(self.numbers[index])

    def locate(self, index: int) -> tuple[str, int]:
        """(file of a row, number in that file)."""
        return self.table.locate(self.number(index))

    def keep(self, numbers: np.ndarray, rule: str) -> Split:
        """Only these rows, ascending; the others are counted under a rule."""
        if len(numbers) == len(self.kept):
            return self
        left_out = {**self.left_out, rule: self.left_out.get(rule, 0) + len(self.kept) - len(numbers)}
        return replace(self, kept=numbers, left_out=left_out)

    def drop(self, numbers: np.ndarray, rule: str) -> Split:
        """All but these rows, which are counted under a rule."""
        return self.keep(self.kept[without(len(self.table), numbers)[self.kept]], rule) if len(numbers) else self

    def sample(self, most: int, key: int) -> np.ndarray:
        """Numbers of at most so many rows, chosen at random, ascending."""
        size = len(self.kept)
        chosen = np.zeros(size, dtype=bool)
        for start in range(0, min(most, size), AT_ONCE):
            chosen[permute(np.arange(start, min(start + AT_ONCE, most, size)), size, key)] = True
        return self.kept[chosen]

    def take(self, indices: np.ndarray) -> Split:
        """Some of the rows that could be read, by index."""
        return self.keep(np.sort(self.numbers[indices]), NOT_SCORED)

    def spread(self, most: int) -> Split:
        """At most so many rows, spread over the split."""
        return self.keep(self.kept[spread_rows(len(self.kept), most)], NOT_SCORED) if len(self.kept) > most else self

    def chunks(self, size: int = 1000, which: range | None = None) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(index of the first row, rows) in pieces, so that memory does not grow with the number of rows; of `which` rows, by
        index."""
        import pyarrow as pa

        rows = self.table.rows.with_format("arrow")
        wanted = range(len(self)) if which is None else which
        for start in wanted[::size]:
            at = self.positions[start : min(start + size, wanted.stop)]
            first, last = int(at[0]), int(at[-1]) + 1
            if last - first > 4 * len(at):  # far between
                columns = rows[at.tolist()].to_pydict()
            else:
                piece = rows[first:last]
                columns = (piece if last - first == len(at) else piece.take(pa.array(at - first))).to_pydict()
            yield start, [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def spread_rows(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` row numbers, ascending: one out of each of equal stretches, drawn at random, so that a table in
    which something comes back every few rows is not misread."""
    if count <= most:
        return np.arange(count)
    edges = np.linspace(0, count, most + 1).astype(np.int64)
    return np.random.default_rng(0).integers(edges[:-1], edges[1:])


@dataclass(frozen=True)
class OpenTask:
    """A task whose source was found: its rows by role, and its family with labels and ranges frozen from the training rows."""

    task: Task
    source: Source
    data_root: Path | None = None
    max_rows: int | None = None
    bad_rows: float = BAD_ROWS  # the share of a role's rows that may be of no use
    cache: Path | None = None  # of tables of files; `cache_folder()` when None
    _cache: dict[str, Split] = field(default_factory=dict, repr=False, compare=False)
    _tables: dict[str, Table] = field(default_factory=dict, repr=False, compare=False)  # by the source's name of the split

    @cached_property
    def names(self) -> dict[str, str]:
        """Role -> the source's own split name. In a mirror of a hub set every role has its own name."""
        there = self.source.splits()
        named = self.task.splits if self.source is self.task.source else {}
        for role, name in named.items():
            if name is not None and name not in there:
                wanted = f"no split {name!r} (wanted for {role}){nearest(name, there)}"
                raise InputError(f"task {self.task.name!r}: {wanted}; there are {listing(there)}")
        return {role: name for role in ROLES if (name := named.get(role, role)) in there}

    @property
    def roles(self) -> list[str]:
        return [role for role in ROLES if role in self.names or (role == "validation" and "train" in self.names)]

    def split(self, role: str) -> Split:
        """The rows of a role: without rows that a mirror lists as overlaps, and with validation rows held out of training.

        Raises:
            InputError: the task has no such split, its file is unusable, more of its rows than `bad_rows` allows cannot be read,
                or a column is missing.
        """
        if role not in self._cache:
            if role not in self.roles:
                raise InputError(f"task {self.task.name!r}: no {role} split; there are {listing(self.source.splits())}")
            split = self._open(role)
            self._account(role, split)
            self._cache[role] = split
        return self._cache[role]

    def account(self, role: str) -> Account:
        """What became of a role's rows so far: those left out by rule, and those that cannot be read."""
        return self._account(role, self.split(role))

    def _account(self, role: str, split: Split) -> Account:
        """Raises InputError where too many cannot be read."""
        blank_lines = split.table.blank_lines if role in self.names else 0  # held-out rows: they are counted with the others
        rows = len(split.kept) + sum(split.left_out.values())
        account = Account(self.task.name, role, split.place, rows, self.bad_rows, dict(split.left_out), blank_lines=blank_lines)
        account.set_aside(*split.faults)
        return account

    def _open(self, role: str) -> Split:
        name = self.names.get(role, self.names.get("train", ""))
        place = self.source.place(name)
        if name not in self._tables:
            self._tables[name] = self.source.read(name, self.cache, self.bad_rows)
        table = self._tables[name]
        if not len(table):
            raise InputError(f"{place}: there are no rows")
        if not table.readable:
            raise InputError(f"{next(iter(table.faults.values()))}; none of {len(table):,} rows can be used")
        there, columns = table.columns, self.task.family.columns()
        for column in columns:
            if column not in there:
                raise InputError(f"{place}: no column {column!r}{nearest(column, there)}; there are {listing(there)}")
        parts = [part for field in self.task.family.fields() for part in (field if isinstance(field, tuple) else (field,))]
        if not any(callable(part) for part in parts):  # a function may read any column
            table = table.select(columns)
        split = Split(table, place, np.arange(len(table)))
        if role == "train" or role not in self.names:
            split = split.drop(overlapping_rows(self.data_root, self.task.slug), OVERLAP)
            if "validation" not in self.names:
                count = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(split.kept))))
                held_out = split.sample(count, 0)
                split = Split(table, place, held_out) if role == "validation" else split.drop(held_out, HELD_OUT)
            if role == "train" and self.max_rows is not None:
                split = split.keep(split.sample(self.max_rows, 1), BEYOND_MOST)
            if not len(split.kept):
                raise InputError(f"{place}: too few rows to hold some out for validation; name a validation split")
        return split

    @cached_property
    def family(self) -> Any:
        """The record's family, with what it left open read from all rows of the training file, also from those that are held out
        or left out: what the labels or the range are does not depend on which rows are trained on."""
        role = self.roles[0] if self.roles else "train"
        split = self.split(role)
        if self.task.family.is_frozen:
            return self.task.family
        try:
            return self.task.family.freeze(split.table.rows, split.place)
        except FieldError as error:
            raise InputError(f"{split.place}: {error}") from None

    def without(self, role: str, numbers: np.ndarray, rule: str = LEAK) -> OpenTask:
        """The same task without some rows of a role, given by their numbers in the source; they are counted under a rule."""
        split = self.split(role)
        return replace(self, _cache={**self._cache, role: split.drop(numbers, rule)})

    def digest(self, role: str) -> str:
        """Of the rows of a role: the source's content and which of its rows were taken."""
        split = self.split(role)
        digest = hashlib.blake2b(split.table.digest.encode(), digest_size=16)
        if len(split.kept) < len(split.table):
            digest.update(np.ascontiguousarray(split.kept, "<i8").data)  # not its bytes: they would be a copy
        return digest.hexdigest()


def open_task(
    task: Task,
    data_root: str | Path | None = None,
    max_rows: int | None = None,
    bad_rows: float = BAD_ROWS,
    cache: str | Path | None = None,
) -> OpenTask:
    """Find a task's rows.

    Args:
        data_root: a mirror of hub datasets, DATA_ROOT/SLUG/SPLIT.parquet.
        max_rows: most training rows, a fixed sample.
        bad_rows: the share of a role's rows that may be of no use; they are set aside.
        cache: folder of prepared data; `cache_folder()` when None.

    Raises:
        InputError: they are nowhere to be found.
    """
    root = Path(data_root) if data_root is not None else None
    if root is not None and not root.is_dir():
        raise InputError(f"data root {str(root)!r} is not a folder; expected a mirror of hub datasets, SLUG/SPLIT.parquet")
    return OpenTask(task, task.source.at(task.slug, root), root, max_rows, bad_rows, Path(cache) if cache else None)


def open_tasks(
    tasks: Iterable[Task],
    data_root: str | Path | None = None,
    max_rows: int | None = None,
    skip_missing: bool = False,
    needed: str | None = None,
    say: Callable[[str], None] = lambda message: None,
    bad_rows: float = BAD_ROWS,
    cache: str | Path | None = None,
) -> list[OpenTask]:
    """Find the rows of many tasks, and tell all at once which cannot be found.

    Datasets of which no copy on the hub is known, and that the mirror does not hold, are left out and named.

    Args:
        skip_missing: leave the others that cannot be found out, too.
        needed: a role that every task must have, such as train.
        say: told what is left out.
        bad_rows: see `open_task`; so is cache.

    Raises:
        InputError: a task's rows cannot be found and `skip_missing` is false, or nothing is left.
    """
    opened: list[OpenTask] = []
    mirror_only: list[str] = []
    missing: dict[str, Unavailable] = {}
    unreachable: Unavailable | None = None
    for task in tasks:
        try:
            one = open_task(task, data_root, max_rows, bad_rows, cache)
            if unreachable and isinstance(one.source, Hub):  # each would wait for the same time-out
                raise unreachable
            roles = one.roles  # which asks the hub for its splits
            if needed and needed not in roles:
                raise Unavailable(f"task {task.name!r}: no {needed} split; there are {listing(one.source.splits())}")
            opened.append(one)
        except Unavailable as problem:
            unreachable = problem if problem.unreachable else unreachable
            if problem.obtainable:
                missing[task.name] = problem
            else:
                mirror_only.append(task.name)
    if mirror_only:
        say(f"left out, as no copy on the hub is known and the mirror has none: {listing(mirror_only, 200)}")
    if missing:
        first = next(iter(missing.values()))
        if not skip_missing:
            raise InputError(
                f"{len(missing)} datasets cannot be found: {listing(missing, 200)}. The first: {first}. On a machine that "
                "reaches the hub, `prefinetune tasks mirror SUITE DIR` writes them to a folder for --data-root; "
                "--skip-missing goes on without them"
            )
        say(f"left out, as they cannot be found: {listing(missing, 200)}")
    if not opened:
        raise InputError("none of the datasets can be found" + (f": {next(iter(missing.values()))}" if missing else ""))
    return opened


# ---- rows that stand elsewhere


def overlaps(data_root: Path) -> dict[str, np.ndarray]:
    """Training rows that a mirror's overlap-*.json files list as standing in another set's evaluation split, by slug."""
    paths = sorted(data_root.glob("overlap*.json"))
    return _overlaps(*((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=4)
def _overlaps(*files: tuple[Path, int, int]) -> dict[str, np.ndarray]:
    found: dict[str, set[int]] = {}
    for path, *_ in files:
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))["train_rows"]
            for slug, others in listed.items():
                found.setdefault(slug, set()).update(*others.values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f'{path}: expected {{"train_rows": {{SLUG: {{OTHER: [row, ...]}}}}}} ({error!r})') from None
    return {slug: np.array(sorted(rows), dtype=np.int64) for slug, rows in found.items()}


def overlapping_rows(data_root: Path | None, slug: str) -> np.ndarray:
    nothing = np.zeros(0, dtype=np.int64)
    return nothing if data_root is None else overlaps(data_root).get(slug, nothing)
