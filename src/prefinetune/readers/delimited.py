"""CSV and TSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefinetune.errors import InputError, listing
from prefinetune.quarantine import Fault
from prefinetune.readers.arrow import ArrowWriter
from prefinetune.readers.collector import Collector
from prefinetune.readers.kinds import delimiter
from prefinetune.readers.text import LONGEST_TEXT, Text, why_not_text

if TYPE_CHECKING:
    import pyarrow as pa


class Cells:
    """Lists of texts, all as long as the header, as batches."""

    def __init__(self, header: Sequence[str]) -> None:
        import pyarrow as pa

        self.schema = pa.schema([(name, pa.string()) for name in header])

    def batch(self, rows: Sequence[Sequence[str]]) -> pa.RecordBatch:
        import pyarrow as pa

        return pa.record_batch([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], schema=self.schema)

    def reason(self, row: Sequence[str], error: Exception) -> str:
        return why_not_text(error) if isinstance(error, UnicodeEncodeError) else str(error)


def read_csv(text: Text, writer: ArrowWriter, allowed: float) -> tuple[list[Fault], int]:
    """Write a table's rows; returns (faults, blank lines)."""
    csv.field_size_limit(LONGEST_TEXT)
    records = csv.reader(text, delimiter=delimiter(text.path), strict=True)
    header, blank_lines = read_header(text, records)
    columns = Cells(header)
    writer.schema = columns.schema  # also where no row follows
    rows = Collector(str(text.path), columns, writer.write, allowed, text)
    width, start = len(header), records.line_num + 1
    while True:
        try:
            cells = next(records, None)
        except csv.Error as error:
            reason = why_not_csv(error, start)
            for line in range(start, records.line_num + 1):
                rows.fault(reason, line)
        else:
            if cells is None:
                break
            if text.has_nul:
                rows.fault("a NUL character", start)
            elif len(cells) == width:
                rows.add(cells, start)
            elif not cells or (len(cells) == 1 and cells[0].isspace()):
                blank_lines += 1
            else:
                rows.fault(
                    f"{len(cells)} cells, but the header has {width} ({listing(header)}); a text that holds "
                    f"{delimiter(text.path)!r} must stand in quotes", start,
                )  # fmt: skip
        text.has_nul, start = False, records.line_num + 1
    rows.flush()
    return rows.faults, blank_lines


def read_header(text: Text, records: Any) -> tuple[list[str], int]:
    """(column names of a table, blank lines before them)."""
    blank_lines = 0
    try:
        while not (header := next(records, None)):
            if header is None:
                raise InputError(f"{text.path}: the file is empty")
            blank_lines += 1
        "".join(header).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{text.path}, line {text.line}: {why_not_text(error)}") from None
    except csv.Error as error:
        raise InputError(f"{text.path}, line {text.line}: {why_not_csv(error, blank_lines + 1)}") from None
    if text.has_nul:
        raise InputError(f"{text.path}, line {text.line}: a NUL character; is this a text file in UTF-8?")
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise InputError(f"{text.path}: columns named twice: {listing(name or '(no name)' for name in twice)}")
    return header, blank_lines


def why_not_csv(error: csv.Error, line: int) -> str:
    """The strict reader's complaints in words that help."""
    if "unexpected end" in str(error):
        return f"a quote that opens in line {line} is never closed"
    if "limit" in str(error):
        return f"a text of more than {LONGEST_TEXT:,} characters, or a quote that opens in line {line} and is never closed"
    return f'a quote within the quoted text that begins in line {line}; it must be doubled ("")'
