"""How the modules beside this one write a Task: tags, and long lists of labels, as words."""

from __future__ import annotations

from typing import Any

from prefinetune.families import Family
from prefinetune.sources import Hub
from prefinetune.task import Task


def record(name: str, hub: Hub, family: Family, tags: str, **more: Any) -> Task:
    """`more` is any other field of Task; a set whose licence is unknown leaves `license` out."""
    return Task(name, hub, family, tags=frozenset(words(tags)), **more)


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())
