"""Rows that could be read, beside those that could not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from prefinetune.errors import InputError
from prefinetune.quarantine import Fault

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Table:
    """The rows of a source, and those that could not be read.

    Attributes:
        load: gives those that could be read.
        columns: their names.
        readable: how many they are.
        faults: the others, by number.
        places: (number of its first row, file) of each file of the source.
        blank_lines: lines that hold nothing.
        key: a digest of what it was read from, where that is known.
    """

    load: Callable[[], Dataset]
    columns: Sequence[str]
    readable: int
    faults: Mapping[int, Fault] = field(default_factory=dict)
    places: Sequence[tuple[int, str]] = ()
    blank_lines: int = 0
    key: str | None = None

    def __len__(self) -> int:
        return self.readable + len(self.faults)

    @cached_property
    def rows(self) -> Dataset:
        """Those that could be read. A run that finds its stores in the cache never asks, and need not import `datasets`."""
        return self.load()

    @cached_property
    def numbers(self) -> np.ndarray | None:
        """[readable] the numbers of these in the source, ascending; None where all could be read."""
        return np.flatnonzero(without(len(self), np.fromiter(self.faults, np.int64))) if self.faults else None

    def select(self, columns: Sequence[str]) -> Table:
        """Only these columns of the same content."""
        return replace(self, load=lambda: self.rows.select_columns(columns), columns=columns, key=self.digest)

    @cached_property
    def digest(self) -> str:
        """Changes when the source does: the key, or a digest of all cells and faults."""
        if self.key is not None:
            return self.key
        digest = hashlib.blake2b(repr([self.rows.features, list(self.faults.values())]).encode(), digest_size=16)
        for table in self.rows.with_format("arrow").iter(batch_size=1000):
            for batch in table.combine_chunks().to_batches():
                digest.update(batch.serialize())
        return digest.hexdigest()

    def locate(self, number: int) -> tuple[str, int]:
        """The file of a row, and its number there."""
        first, place = [entry for entry in self.places if entry[0] <= number][-1]
        return place, number - first


def make_table(rows: Dataset, faults: Sequence[Fault], place: str) -> Table:
    """Rows that are there already, as a table."""
    return Table(lambda: rows, rows.column_names, len(rows), {fault.row: fault for fault in faults}, ((0, place),))


def without(count: int, numbers: np.ndarray) -> np.ndarray:
    """[count] False at some numbers, True elsewhere; those beyond are none of them."""
    mask = np.ones(count, dtype=bool)
    mask[numbers[numbers < count]] = False
    return mask


def join(tables: Sequence[Table], place: str) -> Table:
    """The tables of several files as one, in their order.

    Raises:
        InputError: a column has different types in two of them.
    """
    if len(tables) == 1:
        return tables[0]
    from datasets import concatenate_datasets

    ends = np.cumsum([len(table) for table in tables]).tolist()
    placed = list(zip([0, *ends], tables, strict=False))  # (number of its first row, table)
    try:
        rows = concatenate_datasets([table.rows for table in tables])
    except Exception as error:  # of many kinds
        raise InputError(f"{place}: the files do not go together: {str(error).splitlines()[0][:300]}") from error
    faults = {start + row: fault for start, table in placed for row, fault in table.faults.items()}
    places = [(start, table.places[0][1]) for start, table in placed]
    blank_lines = sum(table.blank_lines for table in tables)
    key = hashlib.blake2b("".join(table.digest for table in tables).encode(), digest_size=16).hexdigest()
    return Table(lambda: rows, rows.column_names, len(rows), faults, places, blank_lines, key)
