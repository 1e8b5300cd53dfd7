"""Where rows come from: a hub dataset or a local mirror of it, files of a team's own, or rows in memory.

The only file that may touch a network, and only for a hub name that no mirror holds. `readers` reads files; `splits.py` says
which rows belong to which role.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefinetune.errors import InputError, Unavailable, listing, nearest
from prefinetune.readers import COMPRESSED, KINDS, Table, collect, file_kind, join, make_table, read_file
from prefinetune.safety import is_name

if TYPE_CHECKING:
    pass

ALIASES = {
    "dev": "validation",
    "valid": "validation",
    "val": "validation",
    "eval": "validation",
    "evaluation": "validation",
}
ROLES = ("train", "validation", "test")
IN_MEMORY = "rows in memory"
PARQUET = "refs/convert/parquet"  # the hub's own branch with a set's rows as Parquet files, CONFIG/SPLIT/0000.parquet
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


class Source:
    """Rows by split name."""

    def splits(self) -> list[str]:
        raise NotImplementedError

    def read(self, split: str, cache: Path | None = None, allowed: float = 1.0) -> Table:
        """The rows of a split, and those that cannot be read.

        Args:
            cache: where tables of files are kept; `cache_folder()` when None.
            allowed: the share of bad rows beyond which reading may stop.
        """
        raise NotImplementedError

    def place(self, split: str) -> str:
        """What messages call this split: its file, for one."""
        raise NotImplementedError

    def at(self, slug: str, data_root: Path | None) -> Source:
        """The source to read: itself, or for a hub name its folder in a mirror."""
        return self

    def describe(self) -> Any:
        """As a suite file says it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Hub(Source):
    """A dataset on the Hugging Face hub; `id` None where only mirrors of it are known. The revision PARQUET is the copy that the
    hub itself made of a set whose repository holds a script; there a configuration is a folder."""

    id: str | None
    config: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        """Raises InputError for what may not be a dataset of the hub: its client takes folders and addresses, too."""
        places = [part for text in (self.id, self.config, self.revision) if text is not None for part in text.split("/")]
        if (self.id is not None and not HUB_ID.fullmatch(self.id)) or not all(map(is_name, places)):
            raise InputError(
                f"{self.describe()!r} is not accepted; expected hub:NAMESPACE/NAME[:CONFIG][@REVISION], with letters, digits, "
                "'_', '-' and '.' in the name, and no part '..'"
            )

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

    def read(self, split: str, cache: Path | None = None, allowed: float = 1.0) -> Table:
        rows = self._ask(lambda d: d.load_dataset(self.id, self._name, split=split, revision=self.revision, **self._folder))
        return make_table(rows, [], self.place(split))

    @property
    def _name(self) -> str | None:
        return None if self.revision == PARQUET else self.config

    @property
    def _folder(self) -> dict[str, str]:
        return {"data_dir": self.config} if self.revision == PARQUET and self.config else {}

    def place(self, split: str) -> str:
        return f"{self.describe()} [{split}]"

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
        try:
            return self._find()
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise InputError(f"{self.describe()!r} cannot be read: {error.strerror}") from None

    def _find(self) -> dict[str, list[Path]]:
        if isinstance(self.paths, Mapping):
            given = {split: [Path(path)] for split, path in self.paths.items()}
        elif Path(self.paths).is_dir():
            given = {}
            for path in sorted(Path(self.paths).iterdir()):
                stem = path.name.split(".")[0].split("-")[0]
                if file_kind(path) and ALIASES.get(stem, stem) in ROLES:
                    given.setdefault(ALIASES.get(stem, stem), []).append(path)
            if not given:
                raise InputError(f"{self.paths}: no data in this folder; expected train, validation or test as {listing(KINDS)}")
        else:
            given = {"train": [Path(self.paths)]}
        for paths in given.values():
            for path in paths:
                if not path.is_file():
                    others = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
                    raise InputError(f"no file {str(path)!r}{nearest(path.name, others)}")
                if not file_kind(path):
                    raise InputError(
                        f"{path}: unknown kind of file; accepted: {listing(KINDS)}; text also as {listing(COMPRESSED)}"
                    )
                if path.stat().st_size == 0:
                    raise InputError(f"{path}: the file is empty")
        return given

    def splits(self) -> list[str]:
        return list(self.files)

    def read(self, split: str, cache: Path | None = None, allowed: float = 1.0) -> Table:
        sizes = {path: path.stat().st_size for path in self.files[split]}
        whole = sum(sizes.values())  # the share is of the split: all its bad rows may stand in one file
        return join([read_file(path, cache, allowed * whole / size) for path, size in sizes.items()], self.place(split))

    def place(self, split: str) -> str:
        paths = self.files[split]
        return str(paths[0]) if len(paths) == 1 else f"{paths[0].parent}/{split}*"

    def describe(self) -> Any:
        return dict(self.paths) if isinstance(self.paths, Mapping) else self.paths


@dataclass(frozen=True, eq=False)
class Rows(Source):
    """Rows in memory by split: lists of dictionaries, pandas DataFrames or `datasets.Dataset`s. A column has one type, that of
    the rows before."""

    tables: Mapping[str, Any] = field(repr=False)
    name: str = IN_MEMORY

    def splits(self) -> list[str]:
        return list(self.tables)

    def read(self, split: str, cache: Path | None = None, allowed: float = 1.0) -> Table:
        from datasets import Dataset

        table, place = self.tables[split], self.place(split)
        if isinstance(table, Dataset):
            return make_table(table.with_format(None), [], place)
        if hasattr(table, "to_dict") and hasattr(table, "columns"):
            try:
                return make_table(Dataset.from_pandas(table, preserve_index=False), [], place)
            except Exception:  # of pyarrow's, about a column of several types: row by row it is clear which row is at fault
                table = table.astype(object).where(table.notna(), None).to_dict("records")
        if isinstance(table, (str, bytes, Mapping)) or not hasattr(table, "__iter__"):
            raise InputError(
                f"{place}: {type(table).__name__} could not be read as a table; expected a list of dictionaries, a DataFrame or "
                "a Dataset"
            )
        if not hasattr(table, "__len__"):
            raise InputError(
                f"{place}: {type(table).__name__} has no length; a split must be finite and have one, so that an epoch sees "
                "every row once and a run can go on where it stopped. Write the rows to a file, or give "
                "datasets.Dataset.from_generator(lambda: iter(rows)), which keeps them on disk; of an "
                "IterableDataset, rows.take(n) are the first n"
            )
        return collect(table, place)

    def place(self, split: str) -> str:
        return f"{self.name} [{split}]"

    def describe(self) -> str:
        return self.name if self.name == IN_MEMORY else f"{IN_MEMORY}: {self.name}"  # no path, whatever its name
