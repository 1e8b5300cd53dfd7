"""Text files, decompressed, as lines."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefinetune.errors import InputError
from prefinetune.readers.kinds import COMPRESSED

LONGEST_TEXT = 1 << 26  # characters of one cell or one element; more is a quote or a bracket that is never closed


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


def why_not_text(error: UnicodeEncodeError) -> str:
    """What is wrong with a text that no column takes."""
    character = ord(error.object[error.start])
    if 0xDC80 <= character <= 0xDCFF:
        return f"byte 0x{character - 0xDC00:02x} is not valid UTF-8; save the file as UTF-8"
    return f"\\u{character:04x} alone is no character"
