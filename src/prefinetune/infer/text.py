"""A suite file as text for a person: entries on lines of their own, and comments between them."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from prefinetune.families import Family
from prefinetune.families.base import plain
from prefinetune.sources import Files
from prefinetune.task import Task

WIDTH = 110  # characters of a comment


def suite_name(folder: Path) -> str:
    return folder.resolve().name or "suite"


def moved(task: Task, place: Path) -> Task:
    """A task whose files are named as a suite file in the folder `place` leads to them."""
    assert isinstance(task.source, Files)
    paths = task.source.paths
    there = lambda path: str(place / relative(path, place))  # noqa: E731
    new = {split: there(path) for split, path in paths.items()} if isinstance(paths, Mapping) else there(paths)
    return replace(task, source=Files(new))


def relative(path: str, place: Path) -> str:
    """A path as seen from a folder."""
    found = os.path.relpath(path, place).replace(os.sep, "/")
    return f"./{found}" if found.startswith("hub:") else found


def entry_of(task: Task, place: Path | None = None) -> dict[str, Any]:
    """A task as an entry of a suite file; with `place`, paths relative to that folder."""
    source: Any = task.source.describe()
    if place is not None:
        source = {s: relative(p, place) for s, p in source.items()} if isinstance(source, Mapping) else relative(source, place)
    more = {"evaluation_only": True} if task.evaluation_only else {}
    return {"name": task.name, "source": source, task.family.kind: fields_of(task.family), **more}


def fields_of(family: Family) -> dict[str, Any]:
    """A family's fields as a suite file says them: what differs from the default, and columns in any case."""
    columns = {name: getattr(family, name, None) for name in ("text", "pair", "label", "tags", "answers")}
    given = {**family.settings(), **{name: plain(column) for name, column in columns.items() if column is not None}}
    order = [item.name for item in sorted(fields(family), key=lambda item: item.kw_only is True)]
    return {name: given[name] for name in order if name in given}


def entry_lines(task: Task, place: Path, indent: str = "  ") -> list[str]:
    entry = entry_of(task, place)
    return [f"{indent}{'- ' if at == 0 else '  '}{key}: {flow(value)}" for at, (key, value) in enumerate(entry.items())]


def comment(text: str, indent: str = "", mark: str = "") -> list[str]:
    """A text as lines of a comment; whatever could end one is taken out of it."""
    clean = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    lines = textwrap.wrap(clean, WIDTH - len(indent), subsequent_indent="  " if mark else "", initial_indent=mark,
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return [f"{indent}# {line}" for line in lines]


def flow(value: Any) -> str:
    """A value on one line of YAML."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()
