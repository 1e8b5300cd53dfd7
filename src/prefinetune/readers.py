"""Files to tables, read once and by one parser: every row of a file is in its table or among its faults.

What a row is:
- A table (CSV, TSV): a record, as Python's `csv` reads it in its strict form; a text in quotes may span lines. Everything is
  text, and nothing is guessed: a label "NA" or "007" is what its author wrote. A record with more or fewer cells than the header
  is a fault. One whose quotes are wrong is a fault per line that it spans: nobody can say which of them belong together.
- JSON lines: a line. In a .json file that begins with a bracket: an element of the list. It must be an object without a key that
  stands twice. A column has one type, that of the rows before; numbers may widen to fractions, and objects gain keys. NaN, which
  JSON does not know but Python writes for what is missing, is missing.
- Parquet, Arrow: a row. These files hold checks of their own, and one that fails them is refused.

A line that holds nothing is no row; such lines are counted. What a file holds is written to an Arrow file in the cache, piece
by piece: memory does not grow with the number of rows. The copy is named by the file's content and opened again in no time.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefinetune.cache import NO_SPACE, building, cache_folder, claimed, space_for
from prefinetune.errors import FieldError, InputError, listing
from prefinetune.files import read_records
from prefinetune.quarantine import Fault, too_many, write_records

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

FORMAT = 1  # of the tables in the cache, and of what the rules above make of a file
KINDS = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}  # of text files
CHUNK, CHUNK_CHARACTERS = 10_000, 1 << 24  # rows, and characters, converted at a time
LONGEST_TEXT = 1 << 26  # characters of one cell or one element; more is a quote or a bracket that is never closed
MOST_COLUMNS, DEEPEST = 1_000, 32  # of a table, nested ones included; Arrow files hold no more than 64 levels
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
BLOCK = 1 << 20  # characters of a list read at a time
HOPELESS = 1_000  # bad rows, before a file is given up unread
UNFIT = (ValueError, TypeError, OverflowError, NotImplementedError, LookupError)  # pyarrow's, for values that make no column


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


def file_kind(path: Path) -> str | None:
    """What a file is, by its ending; text may be compressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSED
    kind = KINDS.get(suffixes[-1 - compressed]) if len(suffixes) > compressed else None
    return None if compressed and kind in ("parquet", "arrow") else kind


def delimiter(path: Path) -> str:
    return "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]] else ","


def file_digest(path: Path) -> str:
    """Of a file's content, computed once per process as long as nobody touches the file."""
    found = path.stat()
    return _file_digest(str(path.resolve()), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=4096)
def _file_digest(path: str, *_: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def read_file(path: Path, cache: Path | None = None, allowed: float = 1.0) -> Table:
    """The table of a file, from the cache where that holds it.

    Args:
        cache: folder of the cache; `cache_folder()` when None.
        allowed: share of bad rows beyond which reading may stop before the end of the file.

    Raises:
        InputError: the file is no table at all, or too many of its rows are bad.
    """
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() in (*KINDS, *COMPRESSED)]
    name = f"{file_digest(path)}-{FORMAT}{''.join(endings[-2:])}"  # the ending decides how content is read
    cache = cache or cache_folder()
    folder = cache / "tables" / name
    found = open_table(folder, path)
    if found is None:
        with space_for(folder, cache), claimed(folder, cache):
            found = open_table(folder, path)  # another process may have been faster
            if found is None:
                shutil.rmtree(folder, ignore_errors=True)
                with building(folder) as made:
                    write_table(made, path, allowed)
                found = open_table(folder, path)
        assert found is not None, "it was written a moment ago"
    return found


def open_table(folder: Path, path: Path) -> Table | None:
    """A table in the cache; None where there is none, or a damaged one."""
    import pyarrow as pa

    content = str(folder / "rows.arrow")
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        with pa.memory_map(content) as file:
            if file.size() != manifest["bytes"]:
                return None
            rows = pa.ipc.open_stream(file).read_all()
        place = str(path)
        faults = {one["row"]: Fault(place, **one) for one in read_records(folder / "faults.jsonl")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if (rows.num_rows, len(faults)) != (manifest["rows"], manifest["faults"]):
        return None
    load, places = partial(read_arrow, content), ((0, place),)
    return Table(load, rows.column_names, rows.num_rows, faults, places, manifest["blank_lines"], folder.name)


def read_arrow(path: str) -> Dataset:
    from datasets import Dataset

    return Dataset.from_file(path)


def write_table(folder: Path, path: Path, allowed: float) -> None:
    """Read a file into `folder`: rows.arrow, faults.jsonl and manifest.json."""
    from datasets import Dataset

    kind, out = file_kind(path), folder / "rows.arrow"
    faults: list[Fault] = []
    blank_lines = 0
    try:
        if kind in ("csv", "json"):
            with Text(path) as text, ArrowWriter(out) as writer:
                faults, blank_lines = (read_csv if kind == "csv" else read_json)(text, writer, allowed)
        else:
            copy_batches(path, kind, out)
        rows = Dataset.from_file(str(out))
    except InputError:
        raise
    except Exception as error:  # whatever a parser of foreign bytes comes up with is one message to the user
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InputError(f"{path}: could not be read as {kind}: {reason}") from error
    write_records(folder / "faults.jsonl", [{"row": one.row, "reason": one.reason, "line": one.line} for one in faults])
    counts = {"rows": len(rows), "faults": len(faults), "blank_lines": blank_lines, "bytes": out.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(counts))


# ---- Arrow


class ArrowWriter:
    """Record batches to one Arrow file. Its schema may grow on the way: then what was written is written once more at the end."""

    def __init__(self, path: Path) -> None:
        self.path, self.parts = path, 0
        self.schema: pa.Schema | None = None
        self.stream: Any = None

    def __enter__(self) -> ArrowWriter:
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        import pyarrow as pa

        if self.stream is None or batch.schema != self.schema:
            self._close()
            self.schema = batch.schema
            self.stream = pa.ipc.new_stream(str(self._part(self.parts)), self.schema)
            self.parts += 1
        self.stream.write_batch(batch)

    def __exit__(self, kind: Any, *_: Any) -> None:
        import pyarrow as pa

        self._close()
        if kind is not None:
            return
        if self.parts == 1:
            self._part(0).rename(self.path)
            return
        schema = self.schema or pa.schema([])
        with pa.ipc.new_stream(str(self.path), schema) as whole:
            for part in map(self._part, range(self.parts)):
                with pa.memory_map(str(part)) as file:
                    for batch in pa.ipc.open_stream(file):
                        old = [pa.Table.from_batches([batch]), schema.empty_table()]
                        whole.write_table(pa.concat_tables(old, promote_options="permissive").select(schema.names))
                part.unlink()

    def _part(self, number: int) -> Path:
        return self.path.with_name(f"part-{number}.arrow")

    def _close(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def copy_batches(path: Path, kind: str | None, out: Path) -> None:
    """A Parquet or Arrow file, checked, as an Arrow stream."""
    import datasets
    import pyarrow as pa

    with pa.OSFile(str(path)) as file:
        schema, batches, expected = open_batches(file, kind)
        names = schema.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"{path}: columns named twice: {listing(twice)}")
        for at, one in enumerate(schema):
            if pa.types.is_dictionary(one.type):  # pandas' categories
                schema = schema.set(at, one.with_type(one.type.value_type))
        datasets.Features.from_arrow_schema(schema)  # raises for types that `datasets` does not know
        count = 0
        with pa.ipc.new_stream(str(out), schema) as stream:
            for batch in batches:
                batch.validate(full=True)
                arrays = [
                    array.dictionary_decode() if pa.types.is_dictionary(array.type) else array for array in batch.columns
                ]  # fmt: skip
                stream.write_batch(pa.record_batch(arrays, schema=schema))
                count += batch.num_rows
        if expected is not None and count != expected:
            raise ValueError(f"{count:,} rows found, {expected:,} announced")


def open_batches(file: Any, kind: str | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch], int | None]:
    """(schema, batches, number of rows announced, if it is)."""
    import pyarrow as pa

    if kind == "parquet":
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        return parquet.schema_arrow, parquet.iter_batches(batch_size=CHUNK), parquet.metadata.num_rows
    if file.read(6) == b"ARROW1":
        whole = pa.ipc.open_file(file)
        return whole.schema, (whole.get_batch(at) for at in range(whole.num_record_batches)), None
    file.seek(max(file.size() - len(END_OF_STREAM), 0))
    if file.read() != END_OF_STREAM:  # else a file cut off between two batches would look whole
        raise ValueError("it does not end as an Arrow stream does; the file is cut off, or is none")
    file.seek(0)
    stream = pa.ipc.open_stream(file)
    return stream.schema, iter(stream), None


# ---- text


class Text:
    """A text file as lines, decompressed; bytes that are not UTF-8 are surrogates in it, which no column takes.

    Attributes:
        line: the number of lines read so far.
        characters: in lines read since the number was last set to 0.
        has_nul: whether one of them holds the character 0; set back by whoever asks.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self.line = self.characters = 0
        self.has_nul = False

    def __enter__(self) -> Text:
        import pyarrow as pa

        codec = COMPRESSED.get(self.path.suffix.lower())
        self.file: Any = self.path.open("rb") if codec is None else pa.OSFile(str(self.path))
        inner = self.file if codec is None else io.BufferedReader(pa.CompressedInputStream(self.file, codec), 1 << 18)
        if inner.peek(3)[:3] == codecs.BOM_UTF8:  # Python's utf-8-sig would also swallow a part of it at the end of a file
            inner.read(3)
        self.stream = io.TextIOWrapper(inner, encoding="utf-8", errors="surrogateescape", newline="")
        return self

    def __exit__(self, *_: Any) -> None:
        self.stream.close()
        self.file.close()

    def __iter__(self) -> Iterator[str]:
        readline = self.stream.readline
        while line := readline(LONGEST_TEXT):
            self.line += 1
            self.characters += len(line)
            if "\0" in line:
                self.has_nul = True
            if len(line) == LONGEST_TEXT:
                raise InputError(f"{self.path}, line {self.line}: longer than {LONGEST_TEXT:,} characters; is this a text file?")
            yield line

    def share(self) -> float:
        """Of the file's bytes that were read."""
        return max(self.file.tell() / max(self.size, 1), 1e-9)


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
        columns: Cells | Objects,
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


def why_not_text(error: UnicodeEncodeError) -> str:
    """What is wrong with a text that no column takes."""
    character = ord(error.object[error.start])
    if 0xDC80 <= character <= 0xDCFF:
        return f"byte 0x{character - 0xDC00:02x} is not valid UTF-8; save the file as UTF-8"
    return f"\\u{character:04x} alone is no character"


# ---- tables


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


# ---- JSON


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
