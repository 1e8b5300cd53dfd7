"""Predictions of a file, row by row into another. The file is read, and predictions are written, a part at a time: memory does
not grow with the number of rows, and what a process that was killed had finished is not computed again."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from prefinetune.checkpoint import sync
from prefinetune.display import Display
from prefinetune.errors import InputError, listing
from prefinetune.families import Encoded, Family
from prefinetune.families.base import Field
from prefinetune.files import write, writing_alone
from prefinetune.load import AT_ONCE, About, Loaded, adapted, open_rows
from prefinetune.quarantine import Fault
from prefinetune.readers import file_digest
from prefinetune.splits import Split
from prefinetune.store import iter_ahead

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1  # of parts
KINDS = (".parquet", ".jsonl", ".csv")
SHOWN = 3  # bad rows that are told of one by one


@dataclass(frozen=True)
class Predictions:
    """What became of a file's rows."""

    path: Path
    rows: int
    set_aside: int  # rows that could not be predicted
    first: list[Fault]  # of these


def predict_file(
    loaded: Loaded,
    task: str | None,
    file: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, Field] | None = None,
    probabilities: bool = False,
    calibrated: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
) -> Predictions:
    """Predict every row of a file.

    The result has a line per row of the file, in its order: `row`, its number from 0; `prediction`, as `Loaded.predict` gives it;
    `probabilities` where they are asked for; and `reason`, which says why a row could not be predicted. In CSV, lists and
    probabilities are JSON. Parts wait in a folder beside it until all are there; the same call goes on where another was killed.

    Args:
        task: may be left out where there is one.
        file: CSV, TSV, JSON, Parquet or Arrow.
        out: .parquet, .jsonl or .csv.
        columns: where the file has other names than the task's record: {"text": "body"}.
        probabilities: give them, too; with `calibrated`, at the temperature that was fitted.
        overwrite: replace an `out` that is there.

    Raises:
        InputError: the file cannot be read or lacks a column, there is no such task, it has no probabilities, or `out` is there,
            is of an unknown kind, or is being written by another process.
    """
    display, file, out = display or Display(quiet=True), Path(file), Path(out)
    if out.suffix not in KINDS:
        raise InputError(f"{out}: unknown kind of file; accepted: {listing(KINDS)}")
    if out.exists() and not overwrite:
        raise InputError(f"{out} is there already; choose another --out, or replace it with --overwrite")
    task = loaded.about.find(task)
    family = loaded.family(task, columns)
    temperature = loaded.temperature(task, calibrated) if probabilities or calibrated else None
    split = open_rows(file, family)
    identity = {
        "format": FORMAT, "task": task, "family": family.identity(), "model": model_digest(loaded.about),
        "tokenizer": loaded.tokenizer.digest, "file": file_digest(file), "temperature": temperature, "at_once": AT_ONCE,
    }  # fmt: skip
    ranges = [range(start, min(start + AT_ONCE, len(split.table))) for start in range(0, len(split.table), AT_ONCE)]
    schema = schema_of(family, temperature is not None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with claimed(out.with_name(f".{out.name}.parts"), identity) as parts, ThreadPoolExecutor(1) as reader:
        paths = [parts / f"{number:06d}.parquet" for number in range(len(ranges))]
        left = [number for number, path in enumerate(paths) if not path.exists()]
        rows = sum(len(ranges[number]) for number in left)
        if rows < len(split.table):
            display.say(f"going on: {len(split.table) - rows:,} of {len(split.table):,} rows are predicted already")
        # The next rows are read and tokenized while these are computed.
        pieces = iter_ahead(reader, (encoded(loaded, task, family, split, ranges[number]) for number in left))
        with display.counting("rows predicted", rows) as advance:
            for number, piece in zip(left, pieces, strict=True):
                write_part(paths[number], answered(loaded, task, piece, temperature, schema))
                advance(len(ranges[number]))
        write_out(paths, out, schema)
        faults = [Fault(str(file), *fault) for path in paths for fault in faults_in(path)]
    shutil.rmtree(parts)
    for fault in faults[:SHOWN]:
        display.say(str(fault))
    if faults:
        display.say(f"{len(faults):,} of {len(split.table):,} rows could not be predicted; `reason` in {out} says why of each")
    return Predictions(out, len(split.table), len(faults), faults[:SHOWN])


@contextmanager
def claimed(parts: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """Within, a folder of parts is this process's; those of other predictions are gone from it.

    Raises:
        InputError: another process is writing to it.
    """
    about = parts / "about.json"
    with writing_alone(parts):
        known = json.dumps(identity, sort_keys=True)
        if not about.exists() or about.read_text() != known:
            for old in parts.glob("*.parquet"):
                old.unlink()
            write(about, known)
        yield parts


def model_digest(about: About) -> str:
    """Of weights and configurations."""
    paths = [*about.model.glob("*.safetensors"), *about.model.glob("*.json"), *(about.heads_in / "heads").rglob("*.safetensors")]
    parts = [[str(path.relative_to(about.heads_in)), file_digest(path)] for path in sorted(paths)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


class Piece(NamedTuple):
    """Some rows of a file, tokenized."""

    examples: list[Encoded]
    numbers: list[int]  # of the row of each
    faults: list[Fault]  # the other rows


def encoded(loaded: Loaded, task: str, family: Family, split: Split, which: range) -> Piece:
    examples, numbers, faults = adapted(family, split, which)
    return Piece(loaded.encode(task, examples), numbers, faults)


def answered(loaded: Loaded, task: str, piece: Piece, temperature: float | None, schema: pa.Schema) -> pa.Table:
    """A line for each row of a piece, by number."""
    import pyarrow as pa

    found = loaded.answer(task, piece.examples, temperature)
    lines = [
        {"row": number, "prediction": one, "probabilities": probabilities}
        for number, (one, probabilities) in zip(piece.numbers, found, strict=True)
    ]
    lines += [{"row": fault.row, "reason": fault.reason} for fault in piece.faults]
    return pa.Table.from_pylist(sorted(lines, key=lambda line: line["row"]), schema)


def schema_of(family: Family, probabilities: bool) -> pa.Schema:
    """The columns of predictions."""
    import pyarrow as pa

    answers = {str: pa.string(), float: pa.float64(), list[str]: pa.list_(pa.string())}
    columns = {"row": pa.int64(), "prediction": answers[family.answer_type]}
    if probabilities:
        by_label = family.probability_type is dict
        labels: Any = getattr(family, "labels", ())
        columns["probabilities"] = pa.struct(dict.fromkeys(labels, pa.float64())) if by_label else pa.list_(pa.float64())
    return pa.schema({**columns, "reason": pa.string()})


def write_part(path: Path, table: pa.Table) -> None:
    """There whole or not at all."""
    import pyarrow.parquet as pq

    writing = path.with_suffix(".writing")
    pq.write_table(table, writing)
    sync(writing)
    writing.rename(path)


def faults_in(path: Path) -> Iterator[tuple[int, str]]:
    """(row, reason) of the rows of a part that could not be predicted."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["row", "reason"])
    for line in table.filter(pc.field("reason").is_valid()).to_pylist():
        yield line["row"], line["reason"]


def write_out(parts: Sequence[Path], out: Path, schema: pa.Schema) -> None:
    """Parts, one after another, as one file; it is there whole or as it was."""
    import pyarrow.parquet as pq

    writing = out.with_name(f".{out.name}.writing")
    tables = (pq.read_table(path, schema=schema) for path in parts)
    if out.suffix == ".parquet":
        with pq.ParquetWriter(writing, schema) as file:
            for table in tables:
                file.write_table(table)
    else:
        with writing.open("w", encoding="utf-8", newline="") as text:
            if out.suffix == ".csv":
                csv.writer(text).writerow(schema.names)
            for table in tables:
                write_lines(text, table, out.suffix)
    sync(writing)
    writing.replace(out)


def write_lines(text: TextIO, table: pa.Table, suffix: str) -> None:
    lines = table.to_pylist()
    if suffix == ".jsonl":
        text.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    else:
        in_json = lambda value: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value  # noqa: E731
        csv.writer(text).writerows([in_json(value) for value in line.values()] for line in lines)
