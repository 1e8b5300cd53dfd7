"""What a file is by its ending, and by its content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

KINDS = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}  # of text files


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
