"""Where prepared data is kept: tables of files, token stores. A folder of it is there whole or not at all, and however many
processes share a cache, it is built once."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prefinetune.errors import InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota used up, a limit on the size of files
KINDS = {  # folders of the cache, and what they hold
    "tables": "files, read", "stores": "splits, as tokens", "leaks": "what leaks were found", "native": "compiled kernels",
}  # fmt: skip
PREFIX, DAY = ".building-", 24 * 3600.0  # of folders that are being written; seconds


def cache_folder() -> Path:
    """Where prepared data is kept: $PREFINETUNE_CACHE, or prefinetune in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("PREFINETUNE_CACHE") or Path(home) / "prefinetune")


@contextmanager
def claimed(folder: Path, cache: Path, wait: float = -1) -> Iterator[bool]:
    """Whether this process alone may build a folder of the cache; it may until the block ends, or the process.

    The claim is a lock of the operating system on a file in CACHE/locks: a process that was killed leaves none behind.

    Args:
        wait: seconds to wait for a process that builds it now; -1 waits until it is done.
    """
    from filelock import FileLock, Timeout

    (cache / "locks").mkdir(parents=True, exist_ok=True)
    name = hashlib.blake2b(folder.relative_to(cache).as_posix().encode(), digest_size=16).hexdigest()
    lock = FileLock(cache / "locks" / f"{name}.lock")
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def space_for(folder: Path, cache: Path, needed: Callable[[], float | None] = lambda: None) -> Iterator[None]:
    """A disk without space is an error that says what to do.

    Args:
        needed: bytes that `folder` still takes when it is begun again, where they are known.

    Raises:
        InputError: there was no space left.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        free, more = shutil.disk_usage(cache).free, needed()
        missing = "" if more is None else f" About {in_megabytes(more)} are needed for the rest of it."
        raise InputError(
            f"{folder}: {os.strerror(error.errno).lower()}; {in_megabytes(free)} are free there.{missing} Make space "
            "(`prefinetune cache` says what could go), or keep prepared data elsewhere with --cache (PREFINETUNE_CACHE). "
            "What is finished stays, and the same command goes on from there"
        ) from error


def in_megabytes(size: float) -> str:
    return f"{size / 1e6:,.{0 if size >= 1e7 else 2}f} MB"


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `folder` when all went well and is gone when not. What killed processes left
    beside it goes, too."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    made = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{socket.gethostname()}-{os.getpid()}-", dir=folder.parent))
    try:
        yield made
        try:
            made.rename(folder)
        except OSError:  # another process was faster; both are the same
            if not (folder / "manifest.json").exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove folders that nobody will finish: their process, on this machine, is gone, or nothing was written for a day."""
    for folder in parent.glob(f"{PREFIX}*"):
        named = re.fullmatch(rf"{re.escape(PREFIX)}(.*)-(\d+)-[^-]*", folder.name)
        try:
            written = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        except FileNotFoundError:  # it was finished, or swept by another process, a moment ago
            continue
        gone = named is not None and named[1] == socket.gethostname() and not is_running(int(named[2]))
        if gone or time.time() - written > DAY:
            shutil.rmtree(folder, ignore_errors=True)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user, and alive
        return True
    return True


# ---- what it holds


@dataclass(frozen=True)
class Entry:
    """A table, a store, or another thing that is kept, and made anew when it is gone.

    Attributes:
        used: when it was made or last opened, in seconds since 1970.
    """

    path: Path
    kind: str
    bytes: int
    used: float


def mark_used(path: Path) -> None:
    """Note that something in the cache was opened now."""
    with suppress(OSError):  # a cache that is only read, or of another user
        os.utime(path)


def entries(cache: Path | None = None) -> list[Entry]:
    """All that is kept, by kind and name; `cache_folder()` when no other folder is given."""
    found = []
    for kind in KINDS:
        for path in sorted(((cache or cache_folder()) / kind).glob("*")):
            if not is_ours(path):
                continue
            with suppress(FileNotFoundError):  # removed a moment ago
                parts = [path, *path.rglob("*")]
                folders = [part for part in parts if part.is_dir()] or [path]  # `mark_used` marks these, not the files in them
                size = sum(part.stat().st_size for part in parts if part.is_file())
                found.append(Entry(path, kind, size, max(part.stat().st_mtime for part in folders)))
    return found


def is_ours(path: Path) -> bool:
    """Whether something in a folder that is called as one of the cache's was finished by us: another folder may be given for the
    cache by mistake, and nothing of it may be lost."""
    if path.name.startswith(PREFIX) or not re.search(r"[0-9a-f]{16}", path.name):  # being written; no digest in its name
        return False
    if path.is_dir():
        return any(path.glob("manifest.json")) or any(path.glob("*-of-*/manifest.json"))  # or those of a store's shards
    return path.suffix == ".json"


def remove_unused(cache: Path | None = None, seconds: float = 30 * DAY) -> list[Entry]:
    """Remove what was neither made nor opened for so long; what a process builds just now stays.

    Returns:
        What was removed.
    """
    root, before, removed = cache or cache_folder(), time.time() - seconds, []
    for entry in entries(root):
        if entry.used > before:
            continue
        with claimed(entry.path, root, wait=0) as mine:
            if mine:
                gone = entry.path.with_name(f"{PREFIX}{socket.gethostname()}-{os.getpid()}-{entry.path.name}")
                entry.path.rename(gone)  # for others it is there whole, or not at all
                shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
                removed.append(entry)
    return removed
