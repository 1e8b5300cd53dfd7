"""Record batches to one Arrow file; Parquet and Arrow files, checked, to such a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefinetune.errors import InputError, listing

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 10_000  # rows of a Parquet file read at a time
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


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
        return parquet.schema_arrow, parquet.iter_batches(batch_size=BATCH), parquet.metadata.num_rows
    if file.read(6) == b"ARROW1":
        whole = pa.ipc.open_file(file)
        return whole.schema, (whole.get_batch(at) for at in range(whole.num_record_batches)), None
    file.seek(max(file.size() - len(END_OF_STREAM), 0))
    if file.read() != END_OF_STREAM:  # else a file cut off between two batches would look whole
        raise ValueError("it does not end as an Arrow stream does; the file is cut off, or is none")
    file.seek(0)
    stream = pa.ipc.open_stream(file)
    return stream.schema, iter(stream), None
