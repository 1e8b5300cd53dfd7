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
from contextlib import contextmanager
from pathlib import Path

from prefinetune.errors import InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota used up, a limit on the size of files
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
            f"{folder}: {os.strerror(error.errno).lower()}; {in_megabytes(free)} are free there.{missing} Make space, or "
            "keep prepared data elsewhere with --cache (PREFINETUNE_CACHE). What is finished stays, and the same command goes on "
            "from there"
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
