"""What a run was trained on, opened again: from its suite.yaml, and from leaks.json the rows that it left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from prefinetune.errors import InputError
from prefinetune.families import FAMILIES, Family
from prefinetune.sources import OpenTask, open_task
from prefinetune.task import Task, build, read_source

HELD_OUT = "held out of train"  # how suite.yaml names a split that the source has not


def entries(run: str | Path) -> list[dict[str, Any]]:
    """The tasks of a run as its suite.yaml has them; none for a model that is no run."""
    path = Path(run) / "suite.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else []


def trained_rows(run: str | Path, max_rows: int | None = None) -> tuple[list[OpenTask], dict[str, str]]:
    """The tasks of a run with the training rows it used, and those that cannot be opened again, each with the reason.

    Args:
        run: a run's folder; a model that is no run was trained on nothing we know.
        max_rows: the run's `data.max_rows`.
    """
    left_out = dropped(Path(run))
    opened: list[OpenTask] = []
    unknown: dict[str, str] = {}
    for entry in entries(run):
        try:
            one = reopen(entry, max_rows)
            rows = left_out.get(one.task.slug)
            opened.append(one if rows is None else one.without("train", rows))
        except InputError as problem:
            unknown[entry["name"]] = str(problem)
    return opened, unknown


def dropped(run: Path) -> dict[str, np.ndarray]:
    """Training rows that a run left out for leaks, by slug."""
    path = run / "leaks.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    listed = found["train_rows"] if found["left_out"] else {}
    return {slug: np.unique(np.concatenate([np.array(rows) for rows in others.values()])) for slug, others in listed.items()}


def reopen(entry: Mapping[str, Any], max_rows: int | None) -> OpenTask:
    """One task of a suite.yaml.

    Raises:
        InputError: its rows are not there any more, or were only in memory, or its fields are functions that we do not know.
    """
    name, source = entry["name"], entry["source"]
    if source == "rows in memory":
        raise InputError(f"task {name!r}: its rows were in memory")
    splits = {role: own for role, own in entry["splits"].items() if own != HELD_OUT and own != role}
    task = Task(name, read_source(source, Path(), name), family_of(entry), splits)
    folder = Path(source) if isinstance(source, str) else Path()
    is_mirror = not str(source).startswith("hub:") and folder.is_dir() and folder.name == task.slug
    one = open_task(task, folder.parent if is_mirror else None, max_rows)
    one.split("train")
    return one


def family_of(entry: Mapping[str, Any]) -> Family:
    """The family a suite.yaml tells of; fields that are functions come from the catalogue's record of that name."""
    from prefinetune.catalog import catalog

    kind = next(kind for kind in FAMILIES if kind in entry)
    if "function " not in json.dumps(entry[kind]):
        return build(FAMILIES[kind], entry[kind], entry["name"])
    known = {task.name: task for task in catalog()}.get(entry["name"])
    if known is None or known.family.kind != kind:
        raise InputError(f"task {entry['name']!r}: its fields are functions, and the catalogue has no such task")
    return known.family
