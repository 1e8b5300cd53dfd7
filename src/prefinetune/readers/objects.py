"""JSON: lines, or one list; and dictionaries that are in memory already."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefinetune.errors import FieldError, InputError
from prefinetune.quarantine import Fault
from prefinetune.readers.arrow import ArrowWriter
from prefinetune.readers.collector import UNFIT, Collector
from prefinetune.readers.table import Table, make_table
from prefinetune.readers.text import LONGEST_TEXT, Text, why_not_text

if TYPE_CHECKING:
    import pyarrow as pa

MOST_COLUMNS, DEEPEST = 1_000, 32  # of a table, nested ones included; Arrow files hold no more than 64 levels
BLOCK = 1 << 20  # characters of a list read at a time


class Objects:
    """Dictionaries as batches whose schema grows."""

    def __init__(self) -> None:
        import pyarrow as pa

        self.schema = pa.schema([])

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
        import pyarrow as pa

        names = dict.fromkeys(chain(self.schema.names, chain.from_iterable(rows)))
        values = {name: [row.get(name) for row in rows] for name in names}
        arrays = {name: pa.array(column) for name, column in values.items()}
        found = pa.schema([(name, array.type) for name, array in arrays.items()])
        merged = pa.unify_schemas([self.schema, found], promote_options="permissive")
        check_size(merged)
        for one in merged:
            if holds_fractions(one.type) and not all(fits(value, one.type) for value in values[one.name]):
                raise TypeError(f"{one.name!r} holds true or false among numbers")  # which pyarrow would make 1.0 or 0.0
        batch = pa.record_batch(
            [
                arrays[one.name] if arrays[one.name].type == one.type else pa.array(values[one.name], one.type) for one in merged
            ],
            schema=merged,
        )  # fmt: skip
        self.schema = merged
        return batch

    def reason(self, row: Mapping[str, Any], error: Exception) -> str:
        import pyarrow as pa

        if isinstance(error, UnicodeEncodeError):
            return why_not_text(error)
        for name, value in row.items():
            there = self.schema.field(name).type if name in self.schema.names else pa.null()
            try:
                kind = pa.array([value]).type
            except UNFIT as problem:
                return str(FieldError(name, value, f"a value that a column can hold ({problem})"))
            try:
                merged = pa.unify_schemas([pa.schema({name: there}), pa.schema({name: kind})], promote_options="permissive")
                pa.array([value], merged.field(0).type)
            except UNFIT:
                return str(FieldError(name, value, f"{there}, as in the rows before"))
        return str(error)


def holds_fractions(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_floating(kind) or any(holds_fractions(kind.field(at).type) for at in range(kind.num_fields))


def fits(value: Any, kind: pa.DataType) -> bool:
    """Whether no truth value stands where a column has fractions."""
    import pyarrow as pa

    if isinstance(value, bool):
        return not pa.types.is_floating(kind)
    if isinstance(value, Mapping) and pa.types.is_struct(kind):
        return all(fits(value.get(kind.field(at).name), kind.field(at).type) for at in range(kind.num_fields))
    if isinstance(value, list) and pa.types.is_list(kind):
        return all(fits(part, kind.value_type) for part in value)
    return True


def check_size(schema: pa.Schema) -> None:
    """Raises ValueError for a table too wide or too deep to be stored."""
    level, depth, count = list(schema), 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        if count > MOST_COLUMNS:
            raise ValueError(f"with this row, the table has more than {MOST_COLUMNS:,} different keys")
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")
        level = [one.type.field(at) for one in level for at in range(one.type.num_fields)]


def read_json(text: Text, writer: ArrowWriter, allowed: float) -> tuple[list[Fault], int]:
    """Write the objects of a file; returns (faults, blank lines)."""
    decode = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=CONSTANTS.__getitem__).decode
    rows = Collector(str(text.path), Objects(), writer.write, allowed, text)
    blank_lines = 0
    for line, source in elements(text) if is_list(text.path) else ((text.line, source) for source in text):
        if source.isspace():
            blank_lines += 1
            continue
        try:
            row = decode(source)
        except json.JSONDecodeError as error:
            rows.fault(f"not valid JSON: {error.msg} at column {error.pos + 1}: {source.strip()[:80]!r}", line)
        except RecursionError:
            rows.fault("nested too deeply", line)
        except ValueError as error:
            rows.fault(str(error), line)
        else:
            if isinstance(row, dict) and row:
                rows.add(row, line)
            else:
                rows.fault(f"expected an object with keys, not {source.strip()[:80]!r}", line)
    rows.flush()
    return rows.faults, blank_lines


CONSTANTS = {"NaN": None, "Infinity": float("inf"), "-Infinity": float("-inf")}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"a key stands twice: {next(name for name in names if names.count(name) > 1)!r}")
    return found


def is_list(path: Path) -> bool:
    """Whether a .json file is a list, and not a line per object."""
    if ".json" not in [suffix.lower() for suffix in path.suffixes[-2:]]:
        return False
    with Text(path) as text:
        while block := text.stream.read(BLOCK):
            if not block.isspace():
                return block.lstrip().startswith("[")
    return False


MARK = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)  # a whole text, the beginning of one, or punctuation


def elements(text: Text) -> Iterator[tuple[int, str]]:
    """(line, source) of each element of a list, found by its commas and brackets alone.

    Raises:
        InputError: the list is never closed, or something follows it; nobody can say how many rows are lost then.
    """
    buffer, scanned, line, count, depth, done = "", 0, 1, 0, 0, False
    while block := text.stream.read(BLOCK):
        buffer += block
        text.characters += len(block)
        begin = 0  # of the element in hand
        for mark in MARK.finditer(buffer, scanned) if not done else ():
            if mark[0] == '"':  # it goes on in the next block
                break
            scanned = mark.end()
            if depth == 0:  # the list's own bracket
                depth, begin = 1, scanned
                continue
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
            if depth == 0 or (depth == 1 and mark[0] == ","):
                source = buffer[begin : mark.start()]
                if count or depth or source.strip():
                    lead = len(source) - len(source.lstrip())
                    yield line + buffer.count("\n", 0, begin + lead), source.strip()
                count, begin = count + 1, scanned
                if depth == 0:
                    done = True
                    break
        if done and (rest := buffer[begin:].strip()):
            raise InputError(f"{text.path}: the list ends at element {count - 1}, but {rest[:80]!r} follows")
        line, buffer, scanned = line + buffer.count("\n", 0, begin), buffer[begin:], scanned - begin
        if len(buffer) > LONGEST_TEXT:
            break
    if not done:
        raise InputError(
            f"{text.path}, row {count} (line {line}): begins here and is never closed; the file is cut off, or a quote or "
            "bracket is missing"
        )


def collect(rows: Iterable[Any], place: str) -> Table:
    """Dictionaries in memory as a table, by the rules for JSON.

    Raises:
        InputError: they are no rows at all.
    """
    import pyarrow as pa
    from datasets import Dataset

    batches: list[pa.RecordBatch] = []
    found = Collector(place, Objects(), batches.append)
    for row in rows:
        if isinstance(row, Mapping) and row:
            found.add(dict(row))
        else:
            found.fault(f"expected a dictionary with keys, not {str(row)[:80]!r}")
    found.flush()
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    return make_table(Dataset(table), found.faults, place)
