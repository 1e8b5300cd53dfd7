"""Where rows come from: a hub dataset or a local mirror of it, files of a team's own, or rows in memory.

The only file that may touch a network, and only for a hub name that no mirror holds. Reading itself is `datasets`' work; here
its results are checked, so that a bad file is named with its row and not trained on.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefinetune.errors import FieldError, InputError, RowError, Unavailable, listing, nearest
from prefinetune.mixture import permute

if TYPE_CHECKING:
    from datasets import Dataset

    from prefinetune.task import Task

READERS = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
ALIASES = {
    "dev": "validation",
    "valid": "validation",
    "val": "validation",
    "eval": "validation",
    "evaluation": "validation",
}
ROLES = ("train", "validation", "test")
PARQUET = "refs/convert/parquet"  # the hub's own branch with a set's rows as Parquet files, CONFIG/SPLIT/0000.parquet
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 1000  # of the training rows, where a source has no validation split


class Source:
    """Rows by split name."""

    def splits(self) -> list[str]:
        raise NotImplementedError

    def read(self, split: str) -> Dataset:
        raise NotImplementedError

    def place(self, split: str) -> str:
        """What messages call this split: its file, for one."""
        raise NotImplementedError

    def digest(self, split: str) -> str:
        """Changes when the rows do."""
        raise NotImplementedError

    def at(self, slug: str, data_root: Path | None) -> Source:
        """The source to read: itself, or for a hub name its folder in a mirror."""
        return self

    def describe(self) -> Any:
        """As a suite file says it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Hub(Source):
    """A dataset on the Hugging Face hub; `id` None where only mirrors of it are known. With the revision PARQUET it is the copy that
    the hub itself made of a set whose repository holds a script, in which a configuration is a folder."""

    id: str | None
    config: str | None = None
    revision: str | None = None

    def at(self, slug: str, data_root: Path | None) -> Source:
        if data_root is not None:
            folder = Path(data_root) / slug
            if folder.is_dir():
                return Files(str(folder))
        if self.id is None:
            where = f"{data_root} has no folder {slug!r}" if data_root else "give its mirror's folder with --data-root"
            raise Unavailable(f"{slug}: no copy of this set on the hub is known; {where}", obtainable=False)
        return self

    def _ask(self, question: Any) -> Any:
        import datasets

        datasets.disable_progress_bars()
        try:
            return question(datasets)
        except InputError:
            raise
        except Exception as error:  # every failure of the hub client, offline or not found, is one message to the user
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise Unavailable(
                f"hub dataset {self.describe()!r} could not be read ({type(error).__name__}: {reason[:200]}). Offline? "
                "Give a folder that holds a mirror of it as SLUG/SPLIT.parquet with --data-root",
                unreachable=isinstance(error, (ConnectionError, TimeoutError)),
            ) from error

    def splits(self) -> list[str]:
        return self._ask(lambda d: list(d.get_dataset_split_names(self.id, self._name, revision=self.revision, **self._folder)))

    def read(self, split: str) -> Dataset:
        return self._ask(lambda d: d.load_dataset(self.id, self._name, split=split, revision=self.revision, **self._folder))

    @property
    def _name(self) -> str | None:
        return None if self.revision == PARQUET else self.config

    @property
    def _folder(self) -> dict[str, str]:
        return {"data_dir": self.config} if self.revision == PARQUET and self.config else {}

    def place(self, split: str) -> str:
        return f"{self.describe()} [{split}]"

    def digest(self, split: str) -> str:
        return digest_rows(self.read(split))

    def describe(self) -> str:
        return (
            "hub:" + (self.id or "") + (f":{self.config}" if self.config else "") + (f"@{self.revision}" if self.revision else "")
        )


@dataclass(frozen=True)
class Files(Source):
    """CSV, TSV, JSON lines, Parquet or Arrow: one file (all of it training rows), a folder with a file per split (train.*,
    validation.* or dev.*, test.*, or shards such as train-00000-of-00002.parquet), or a mapping from split to path."""

    paths: str | Mapping[str, str]

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """Split -> its files, in order."""
        if isinstance(self.paths, Mapping):
            given = {split: [Path(path)] for split, path in self.paths.items()}
        elif Path(self.paths).is_dir():
            given = {}
            for path in sorted(Path(self.paths).iterdir()):
                stem = path.name.split(".")[0].split("-")[0]
                if reader(path) and ALIASES.get(stem, stem) in ROLES:
                    given.setdefault(ALIASES.get(stem, stem), []).append(path)
            if not given:
                raise InputError(
                    f"{self.paths}: no data in this folder; expected train, validation or test as {listing(READERS)}"
                )
        else:
            given = {"train": [Path(self.paths)]}
        for paths in given.values():
            for path in paths:
                if not path.is_file():
                    others = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
                    raise InputError(f"no file {str(path)!r}{nearest(path.name, others)}")
                if not reader(path):
                    raise InputError(f"{path}: unknown kind of file; accepted: {listing(READERS)}, each also as .gz")
                if path.stat().st_size == 0:
                    raise InputError(f"{path}: the file is empty")
        return given

    def splits(self) -> list[str]:
        return list(self.files)

    def read(self, split: str) -> Dataset:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its complaints reach the user through ours
        paths = self.files[split]
        kind = reader(paths[0])
        options: dict[str, Any] = {}
        if kind == "csv":
            header, *_ = [check_table(path) for path in paths]
            # Everything as text, nothing guessed: a label "NA" or a title "null" is what its author wrote.
            features = datasets.Features({column: datasets.Value("string") for column in header})
            options = {"sep": delimiter(paths[0]), "features": features, "keep_default_na": False}
        elif kind == "json":
            for path in paths:
                check_encoding(path)
        try:
            # Named by content: what `datasets` keeps of a file it knows by path and time only, and these can stay the same.
            name = f"{kind}-{self.digest(split)}"
            rows = datasets.load_dataset(kind, name, data_files=[str(path) for path in paths], split="train", **options)
        except Exception as error:
            for path in paths:
                explain(path, kind)
            if "corresponds to no data" in str(error):
                raise InputError(f"{self.place(split)}: there are no rows") from None
            cause = error.__cause__ or error
            raise InputError(f"{self.place(split)}: could not be read as {kind}: {str(cause).splitlines()[0][:300]}") from error
        return rows

    def place(self, split: str) -> str:
        paths = self.files[split]
        return str(paths[0]) if len(paths) == 1 else f"{paths[0].parent}/{split}*"

    def digest(self, split: str) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for path in self.files[split]:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def describe(self) -> Any:
        return dict(self.paths) if isinstance(self.paths, Mapping) else self.paths


@dataclass(frozen=True, eq=False)
class Rows(Source):
    """Rows in memory by split: lists of dictionaries, pandas DataFrames or `datasets.Dataset`s."""

    tables: Mapping[str, Any]
    name: str = "rows in memory"

    def splits(self) -> list[str]:
        return list(self.tables)

    def read(self, split: str) -> Dataset:
        from datasets import Dataset

        table = self.tables[split]
        if isinstance(table, Dataset):
            return table.with_format(None)
        try:
            if hasattr(table, "to_dict") and hasattr(table, "columns"):
                return Dataset.from_pandas(table, preserve_index=False)
            return Dataset.from_list(list(table))
        except Exception as error:  # pyarrow's many complaints about columns of mixed types, and things that are no table
            raise InputError(
                f"{self.place(split)}: {type(table).__name__} could not be read as a table ({str(error).splitlines()[0][:200]}); "
                "expected a list of dictionaries, a DataFrame or a Dataset, with one type per column"
            ) from error

    def place(self, split: str) -> str:
        return f"{self.name} [{split}]"

    def digest(self, split: str) -> str:
        return digest_rows(self.read(split))

    def describe(self) -> str:
        return self.name


@dataclass(frozen=True)
class Split:
    """Rows in one role of a task, with what a message needs to point at one of them."""

    rows: Dataset
    place: str
    numbers: np.ndarray | None = None  # row numbers in that place, where rows were taken out

    def __len__(self) -> int:
        return len(self.rows)

    def number(self, index: int) -> int:
        return int(index if self.numbers is None else self.numbers[index])

    def take(self, indices: np.ndarray) -> Split:
        numbers = indices if self.numbers is None else self.numbers[indices]
        return Split(self.rows.select(indices), self.place, numbers)

    def chunks(self, size: int = 1000) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(index of the first row, rows) in pieces, so that memory does not grow with the number of rows."""
        for start in range(0, len(self.rows), size):
            columns = self.rows[start : start + size]
            yield (
                start,
                [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
            )


@dataclass(frozen=True)
class OpenTask:
    """A task whose source was found: its rows by role, and its family with labels and ranges frozen from the training rows."""

    task: Task
    source: Source
    data_root: Path | None = None
    max_rows: int | None = None
    _cache: dict[str, Split] = field(default_factory=dict, repr=False, compare=False)

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
            InputError: the task has no such split, its file is unusable, or a column is missing.
        """
        if role not in self._cache:
            if role not in self.roles:
                raise InputError(f"task {self.task.name!r}: no {role} split; there are {listing(self.source.splits())}")
            self._cache[role] = self._open(role)
        return self._cache[role]

    def _open(self, role: str) -> Split:
        name = self.names.get(role, self.names.get("train", ""))
        rows, place = self.source.read(name), self.source.place(name)
        if not len(rows):
            raise InputError(f"{place}: there are no rows")
        for column in self.task.family.columns():
            if column not in rows.column_names:
                raise InputError(
                    f"{place}: no column {column!r}{nearest(column, rows.column_names)}; there are {listing(rows.column_names)}"
                )
        parts = [part for field in self.task.family.fields() for part in (field if isinstance(field, tuple) else (field,))]
        if not any(callable(part) for part in parts):  # a function may read any column
            rows = rows.select_columns(self.task.family.columns())
        split = Split(rows, place)
        if role == "train" or role not in self.names:
            kept = np.setdiff1d(np.arange(len(rows)), overlapping_rows(self.data_root, self.task.slug))
            if "validation" not in self.names:
                order = kept[permute(np.arange(len(kept)), len(kept), 0)]
                count = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(order))))
                kept = np.sort(order[:count] if role == "validation" else order[count:])
            if role == "train" and self.max_rows is not None and len(kept) > self.max_rows:
                kept = np.sort(kept[permute(np.arange(len(kept)), len(kept), 1)[: self.max_rows]])
            if not len(kept):
                raise InputError(f"{place}: too few rows to hold some out for validation; name a validation split")
            if len(kept) < len(rows):
                split = split.take(kept)
        return split

    @cached_property
    def family(self) -> Any:
        role = self.roles[0] if self.roles else "train"
        split = self.split(role)
        try:
            return self.task.family.freeze(split.rows, split.place)
        except RowError as error:  # a family counts the rows it was given; people count those of the file
            raise error.problem.at(split.place, split.number(error.row)) from None
        except FieldError as error:
            raise InputError(f"{split.place}: {error}") from None

    def without(self, role: str, numbers: np.ndarray) -> OpenTask:
        """The same task without some rows of a role, given by their numbers in the source."""
        split = self.split(role)
        own = np.arange(len(split)) if split.numbers is None else split.numbers
        return replace(self, _cache={**self._cache, role: split.take(np.flatnonzero(~np.isin(own, numbers)))})

    def digest(self, role: str) -> str:
        """Of the rows of a role: the source's content and which of its rows were taken."""
        split = self.split(role)
        digest = hashlib.blake2b(self.source.digest(self.names.get(role, self.names.get("train", ""))).encode(), digest_size=16)
        if split.numbers is not None:
            digest.update(split.numbers.astype("<i8").tobytes())
        return digest.hexdigest()


def open_task(task: Task, data_root: str | Path | None = None, max_rows: int | None = None) -> OpenTask:
    """Find a task's rows.

    Raises:
        InputError: they are nowhere to be found.
    """
    root = Path(data_root) if data_root is not None else None
    if root is not None and not root.is_dir():
        raise InputError(f"data root {str(root)!r} is not a folder; expected a mirror of hub datasets, SLUG/SPLIT.parquet")
    return OpenTask(task, task.source.at(task.slug, root), root, max_rows)


def open_tasks(
    tasks: Iterable[Task],
    data_root: str | Path | None = None,
    max_rows: int | None = None,
    skip_missing: bool = False,
    needed: str | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> list[OpenTask]:
    """Find the rows of many tasks, and tell all at once which cannot be found.

    Datasets of which no copy on the hub is known, and that the mirror does not hold, are left out and named.

    Args:
        skip_missing: leave the others that cannot be found out, too.
        needed: a role that every task must have, such as train.
        say: told what is left out.

    Raises:
        InputError: a task's rows cannot be found and `skip_missing` is false, or nothing is left.
    """
    opened: list[OpenTask] = []
    mirror_only: list[str] = []
    missing: dict[str, Unavailable] = {}
    unreachable: Unavailable | None = None
    for task in tasks:
        try:
            one = open_task(task, data_root, max_rows)
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


# ---- checks


def reader(path: Path) -> str | None:
    """The `datasets` reader for a file, by its ending (.gz may follow)."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return READERS.get(suffixes[-1]) if suffixes else None


def delimiter(path: Path) -> str:
    return "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","


def open_text(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def check_table(path: Path) -> list[str]:
    """The column names of a table. Refuses one with a ragged row, which readers would fill or shift silently, with two columns of
    one name, or with bytes that are not UTF-8."""
    csv.field_size_limit(2**31 - 1)  # a text may be a book
    previous, header = 0, []
    try:
        with open_text(path) as file:
            lines = csv.reader(file, delimiter=delimiter(path))
            header = next(lines, [])
            twice = sorted({column for column in header if header.count(column) > 1})
            if twice:
                raise InputError(f"{path}: columns named twice: {listing(twice)}")
            previous = lines.line_num
            for cells in lines:
                if cells and len(cells) != len(header):
                    raise InputError(
                        f"{path}, line {previous + 1}: {len(cells)} cells, but the header has {len(header)} "
                        f"({listing(header)}); a text that holds {delimiter(path)!r} must stand in quotes"
                    )
                previous = lines.line_num
    except UnicodeDecodeError:
        explain_encoding(path)
    except csv.Error as error:
        raise InputError(f"{path}, line {previous + 1}: {error}") from None
    return header


def explain(path: Path, kind: str | None) -> None:
    """Raise a message that names the line of a text file that cannot be read; return if none is found."""
    if kind == "json":
        try:
            with open_text(path) as file:
                for number, line in enumerate(file, 1):
                    if line.strip() and ".json" not in path.suffixes:
                        check_json(line, f"{path}, line {number}")
        except UnicodeDecodeError:
            explain_encoding(path)


def check_json(line: str, place: str) -> None:
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not valid JSON: {error.msg} at column {error.colno}: {line[:80]!r}") from None


def check_encoding(path: Path) -> None:
    """Refuse a text file that is not UTF-8; the JSON reader would pass its bytes on."""
    try:
        with open_text(path) as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        explain_encoding(path)


def explain_encoding(path: Path) -> None:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = line[error.start : error.start + 1]
                raise InputError(
                    f"{path}, line {number}: byte {bad!r} at column {error.start + 1} is not valid UTF-8; save the file as UTF-8"
                ) from None


@lru_cache(maxsize=4)
def overlaps(data_root: Path) -> dict[str, np.ndarray]:
    """Training rows that a mirror's overlap-*.json files list as standing in another set's evaluation split, by slug."""
    found: dict[str, set[int]] = {}
    for path in sorted(data_root.glob("overlap*.json")):
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


def digest_rows(rows: Dataset) -> str:
    """Digest of all cells, read in pieces."""
    digest = hashlib.blake2b(repr(rows.features).encode(), digest_size=16)
    for table in rows.with_format("arrow").iter(batch_size=1000):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()
