"""What a run was trained on, opened again: from its suite.yaml, and from leaks.json the rows that it left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from prefinetune.config import DataSettings, make_config
from prefinetune.display import Display
from prefinetune.errors import InputError, listing
from prefinetune.families import FAMILIES, Family
from prefinetune.leaks import EVALUATION, evaluation_splits, known_leaks, split_name
from prefinetune.sources import IN_MEMORY
from prefinetune.splits import OpenTask, open_task
from prefinetune.task import Task, build, read_source

HELD_OUT = "held out of train"  # how suite.yaml names a split that the source has not


def entries(run: str | Path) -> list[dict[str, Any]]:
    """The tasks of a run as its suite.yaml has them; none for a model that is no run."""
    path = Path(run) / "suite.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else []


def seen_rows(
    starts: Sequence[str | Path],
    task: Task,
    settings: DataSettings,
    data_root: str | Path | None,
    cache: str | Path | None,
    display: Display,
) -> dict[str, np.ndarray]:
    """Evaluation rows of a task that stand in what any of the starting points was trained on, and on which no score should rest:
    their numbers by role. None unless `data.leaks` is drop.

    Raises:
        InputError: all rows of a split do.
    """
    found: dict[str, np.ndarray] = {}
    if settings.leaks == "off":
        return found
    target = open_task(task, data_root, settings.max_rows, settings.bad_rows, cache)
    for start in dict.fromkeys(run for one in starts for run in line_of(one)):
        if keeps_clear(start, target):
            continue
        trained, unknown = trained_rows(start, cache)
        if unknown:
            display.say(f"{start}: whether it was trained on rows of {task.name} is not known for {listing(unknown)}, which "
                        f"cannot be opened again ({next(iter(unknown.values()))})")  # fmt: skip
        if not trained:
            continue
        leaks = known_leaks(trained, [target], Path(cache) if cache else None, display, only_against=True)
        for role in EVALUATION:
            rows = leaks.leaking.get(f"{task.slug}/{role}")
            if rows is None:
                continue
            size = len(target.split(role))
            done = "are not scored" if settings.leaks == "drop" else "are scored all the same (data.leaks=report)"
            display.say(f"{task.name}: {len(rows):,} of {size:,} {role} rows stand in what {start} was trained on and {done}")
            found[role] = np.union1d(found.get(role, rows), rows)
            if settings.leaks == "drop" and len(found[role]) == size:
                raise InputError(
                    f"task {task.name!r}: every {role} row stands in what {start} was trained on, so that no score would mean "
                    "anything; data.leaks=report scores them all the same"
                )
    return found if settings.leaks == "drop" else {}


def line_of(start: str | Path) -> list[Path]:
    """The runs behind a starting point, the last one first: a run, the run that it started from, and so on. None for a model that
    is no run."""
    runs: list[Path] = []
    place = Path(start)
    while True:
        run = place.parent if place.name == "model" and (place.parent / "run.json").exists() else place
        if run in runs or not (run / "run.json").exists():
            return runs
        runs.append(run)
        place = Path(json.loads((run / "run.json").read_text(encoding="utf-8"))["model"])


def trained_rows(run: str | Path, cache: str | Path | None = None) -> tuple[list[OpenTask], dict[str, str]]:
    """The tasks of a run with the training rows it used, and those that cannot be opened again, each with the reason. Of a model
    that is no run nothing is known."""
    left_out = dropped(Path(run))
    path = Path(run) / "config.yaml"
    settings = make_config(yaml.safe_load(path.read_text(encoding="utf-8"))).data if path.exists() else DataSettings()
    opened: list[OpenTask] = []
    unknown: dict[str, str] = {}
    for entry in entries(run):
        try:
            one = reopen(entry, settings, cache)
            rows = left_out.get(one.task.slug)
            opened.append(one if rows is None else one.without("train", rows))
        except InputError as problem:
            unknown[entry["name"]] = str(problem)
    return opened, unknown


def keeps_clear(run: Path, target: OpenTask) -> bool:
    """Whether a run has left out what shows the evaluation rows of a task, as they are now."""
    path = run / "leaks.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    compared = found.get("compared_with", {}) if found.get("left_out") else {}
    return all(compared.get(split_name(target, role)) == target.digest(role) for _, role in evaluation_splits([target]))


def dropped(run: Path) -> dict[str, np.ndarray]:
    """Training rows that a run left out for leaks, by slug."""
    path = run / "leaks.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    listed = found["train_rows"] if found["left_out"] else {}
    return {slug: np.unique(np.concatenate([np.array(rows) for rows in others.values()])) for slug, others in listed.items()}


def reopen(entry: Mapping[str, Any], settings: DataSettings, cache: str | Path | None) -> OpenTask:
    """One task of a suite.yaml.

    Raises:
        InputError: its rows are not there any more, or were only in memory, or its fields are functions that we do not know.
    """
    name, source = entry["name"], entry["source"]
    if isinstance(source, str) and source.startswith(IN_MEMORY):
        raise InputError(f"task {name!r}: its rows were in memory")
    splits = {role: own for role, own in entry["splits"].items() if own != HELD_OUT and own != role}
    task = Task(name, read_source(source, Path(), name), family_of(entry), splits)
    folder = Path(source) if isinstance(source, str) else Path()
    is_mirror = not str(source).startswith("hub:") and folder.is_dir() and folder.name == task.slug
    one = open_task(task, folder.parent if is_mirror else None, settings.max_rows, settings.bad_rows, cache)
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
