"""Rows to batches: numbered, converted in chunks, and the bad ones noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from prefinetune.quarantine import Fault, too_many
from prefinetune.readers.text import Text

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK, CHUNK_CHARACTERS = 10_000, 1 << 24  # rows, and characters, converted at a time
HOPELESS = 1_000  # bad rows, before a file is given up unread
UNFIT = (ValueError, TypeError, OverflowError, NotImplementedError, LookupError)  # pyarrow's, for values that make no column


class Columns(Protocol):
    """How rows of one kind become batches."""

    def batch(self, rows: list[Any]) -> pa.RecordBatch:
        """Raises one of UNFIT where they make no columns."""

    def reason(self, row: Any, error: Exception) -> str:
        """Why a row alone makes none."""


class Collector:
    """Rows as they are read: numbered, converted in chunks, and the bad ones noted.

    Args:
        place: what messages call the source.
        columns: how rows become batches.
        emit: takes each batch.
        allowed: share of bad rows that is too much in any case when it is passed twice over.
        text: the file they are from.
    """

    def __init__(
        self,
        place: str,
        columns: Columns,
        emit: Callable[[pa.RecordBatch], Any],
        allowed: float = 1.0,
        text: Text | None = None,
    ) -> None:
        self.place, self.columns, self.emit, self.allowed, self.text = place, columns, emit, allowed, text
        self.count = self.blank_lines = 0
        self.faults: list[Fault] = []
        self.waiting: list[Any] = []
        self.numbers: list[tuple[int, int | None]] = []  # (row, line) of those waiting

    def add(self, row: Any, line: int | None = None) -> None:
        self.waiting.append(row)
        self.numbers.append((self.count, line))
        self.count += 1
        if len(self.waiting) >= CHUNK or (self.text is not None and self.text.characters >= CHUNK_CHARACTERS):
            self.flush()

    def fault(self, reason: str, line: int | None = None) -> None:
        self.faults.append(Fault(self.place, self.count, reason, line))
        self.count += 1
        if len(self.faults) % CHUNK == 0:
            self.flush()

    def flush(self) -> None:
        """Convert what waits.

        Raises:
            InputError: so many rows are bad that the rest of the file cannot make up for it.
        """
        for at, found in self._convert(self.waiting, 0):
            if isinstance(found, str):
                row, line = self.numbers[at]
                self.faults.append(Fault(self.place, row, found, line))
            else:
                self.emit(found)
        self.waiting, self.numbers = [], []
        self.faults.sort(key=lambda fault: fault.row)
        if self.text is not None:
            self.text.characters = 0
            if len(self.faults) > HOPELESS and len(self.faults) > 2 * self.allowed * self.count / self.text.share():
                raise too_many(self.faults, f"the first {self.count:,}", len(self.faults) / self.count, self.allowed)

    def _convert(self, rows: list[Any], start: int) -> Iterator[tuple[int, Any]]:
        """(index, batch) of each run of rows that goes into one, (index, reason) of each row that goes into none: halves of
        halves, the earlier first, so that of two rows that do not go together the later is at fault."""
        if not rows:
            return
        try:
            yield start, self.columns.batch(rows)
            return
        except UNFIT as error:
            if len(rows) == 1:
                yield start, self.columns.reason(rows[0], error)
                return
        half = len(rows) // 2
        yield from self._convert(rows[:half], start)
        yield from self._convert(rows[half:], start + half)
