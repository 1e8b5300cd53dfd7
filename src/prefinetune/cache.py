"""Where prepared data is kept: tables of files, token stores. A folder of it is there whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX, DAY = ".building-", 24 * 3600.0  # of folders that are being written; seconds


def cache_folder() -> Path:
    """Where prepared data is kept: $PREFINETUNE_CACHE, or prefinetune in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("PREFINETUNE_CACHE") or Path(home) / "prefinetune")


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
