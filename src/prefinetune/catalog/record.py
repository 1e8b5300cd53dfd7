"""How the modules beside this one write a Task: tags, and long lists of labels, as words; what a benchmark's records share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefinetune.families import Family
from prefinetune.sources import Hub
from prefinetune.task import Task

HIDDEN: Mapping[str, None] = {"test": None}  # the splits of a set whose test answers are kept back


def record(name: str, hub: Hub, family: Family, tags: str, **more: Any) -> Task:
    """`more` is any other field of Task; a set whose licence is unknown leaves `license` out."""
    return Task(name, hub, family, tags=frozenset(words(tags)), **more)


def glue(config: str, family: Family, tags: str, **more: Any) -> Task:
    return record(f"glue/{config}", Hub("nyu-mll/glue", config), family, f"{tags} glue", **{"splits": HIDDEN, **more})


def superglue(name: str, family: Family, tags: str, config: str | None = None, **more: Any) -> Task:
    hub = Hub("aps/super_glue", config or name, "3de24cf8022e94f4ee4b9d55a6f539891524d646")
    return record(f"super_glue/{name}", hub, family, f"{tags} superglue", splits=HIDDEN, **more)


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())
