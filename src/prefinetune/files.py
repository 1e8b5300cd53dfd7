"""Files that are there whole or as they were, lines that no crash tears further, and folders that one process writes to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from prefinetune.errors import InputError

LOCK = ".lock"  # in a folder, held while a process writes to it


@contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """Within, no other process writes to a folder; it is made where it is missing.

    Raises:
        InputError: another process is writing to it, or it cannot be written to.
    """
    lock = FileLock(folder / LOCK, timeout=0)  # the system takes it back from a process that dies
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder} is in use: another process is writing to it; wait, or choose another --out") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}); choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def refuse_others(folder: Path, mark: str, others: str, before: Iterable[str] = ()) -> None:
    """Make sure that a folder is new, empty, or has what we left there.

    Args:
        mark: the file that ours have.
        others: what a message calls all else: "no comparison", say.
        before: files that are written before that one; a process may have died in between.

    Raises:
        InputError: it holds something else.
    """
    if not folder.exists() or (folder / mark).exists():
        return
    begun = {LOCK, *before, *(writing(folder / name).name for name in (mark, *before))}
    if not folder.is_dir() or any(path.name not in begun for path in folder.iterdir()):
        raise InputError(f"{folder} exists and holds something that is {others}; choose another --out")


def digest_of(value: Any) -> str:
    """What tells values apart that JSON can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def write(path: Path, text: str) -> None:
    """Replace a file so that it is there whole or as it was."""
    beside = writing(path)
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def writing(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(f".{path.name}.writing")


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line, whole and on disk: a line that a crash left half-written is ended first, so that it harms no other."""
    line = json.dumps(record, ensure_ascii=False) + "\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


class Lines(NamedTuple):
    """A JSON-lines file, read: its records, and the lines that are none with their numbers from 1."""

    records: list[dict[str, Any]]
    torn: list[tuple[int, str]]


def read_lines(path: Path) -> Lines:
    """The records of a JSON-lines file, and what a process that was killed while writing left half-written in it."""
    found = Lines([], [])
    if not path.exists():
        return found
    # Only \n ends a line here: splitlines() would also cut at U+2028 and its like, which may stand inside a text.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            found.records.append(record)
        elif line.strip():
            found.torn.append((number, line))
    return found


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a half-written line is passed over: what it held was not reported as done."""
    return read_lines(path).records


def set_torn_aside(path: Path) -> list[tuple[int, str]]:
    """Move lines that are no records from `path` to `path`.torn, so that the file is whole again; gives them back."""
    records, torn = read_lines(path)
    if torn:
        aside = path.with_name(path.name + ".torn")
        kept = aside.read_text(encoding="utf-8") if aside.exists() else ""
        write(aside, kept + "".join(line + "\n" for _, line in torn))
        write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return torn
