"""Markdown of texts that others wrote (names, licences, labels, commands): they end no table and begin no HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from prefinetune.safety import visible

PAPERS = (  # identifiers of papers in citations, and where those are
    (re.compile(r"arXiv ((?:[\w-]+/)?\d{4}\.?\d{3,5})"), "https://arxiv.org/abs/"),
    (re.compile(r"\b([A-Z]\d{2}-\d{4}|\d{4}\.[a-z]+-[a-z]+\.\d+)\b"), "https://aclanthology.org/"),
)


class Raw(str):
    """A text that is Markdown already."""


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def escaped(text: object) -> str:
    """A text as Markdown shows it: in one line, and nothing in it is markup."""
    plain = html.escape(visible(one_line(text)), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", plain)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells that are not Raw are texts."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(one if isinstance(one, Raw) else escaped(one) for one in line)} |" for line in lines)


def fenced(text: str, language: str) -> str:
    """A block of code, whatever stands in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def linked(cite: str) -> str:
    """A citation, its identifiers of papers as links."""
    text = escaped(cite)
    for pattern, place in PAPERS:
        text = pattern.sub(rf"[\g<0>]({place}\1)", text)
    return text


def last_part(path: object) -> str:
    """What a file or folder is called, without where it is."""
    return re.split(r"[/\\]", str(path).rstrip("/\\"))[-1]


def called(start: object) -> str:
    """What a starting point is called: a name of the hub, or the folder without where it is."""
    path = Path(str(start))
    return last_part(path.parent if path.name == "model" else path) if path.is_absolute() or path.exists() else str(start)


def number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if isinstance(value, float) else ""
