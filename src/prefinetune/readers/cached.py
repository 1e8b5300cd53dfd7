"""A file's table, read once: afterwards it is an Arrow file in the cache, with its faults beside it."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefinetune.cache import NO_SPACE, building, cache_folder, claimed, mark_used, space_for
from prefinetune.errors import InputError
from prefinetune.files import read_records
from prefinetune.quarantine import Fault, write_records
from prefinetune.readers.arrow import ArrowWriter, copy_batches
from prefinetune.readers.delimited import read_csv
from prefinetune.readers.kinds import COMPRESSED, KINDS, file_digest, file_kind
from prefinetune.readers.objects import read_json
from prefinetune.readers.table import Table
from prefinetune.readers.text import Text

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 1  # of the tables in the cache, and of what the rules of this package make of a file


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
    mark_used(folder)
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
