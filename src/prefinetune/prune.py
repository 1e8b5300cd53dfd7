"""A run's suite without the sets that clearly hurt, as a file that `train` reads. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prefinetune.affinity import Affinity, read_affinity, shown
from prefinetune.config import Config, make_config
from prefinetune.errors import InputError, listing
from prefinetune.families import FAMILIES
from prefinetune.files import write
from prefinetune.infer.text import comment, flow
from prefinetune.lineage import HELD_OUT, entries
from prefinetune.sources import IN_MEMORY


@dataclass(frozen=True)
class Pruned:
    """A suite file that was written."""

    path: Path
    affinity: Affinity
    kept: tuple[str, ...]
    left_out: Mapping[str, str]  # task -> why


def prune(run: str | Path, out: str | Path, targets: Sequence[str] = (), overwrite: bool = False) -> Pruned:
    """Write the suite of a run without the sets that clearly hurt its targets; where none does, as it was.

    Args:
        targets: what the suite is judged by; see `read_affinity`.

    Raises:
        InputError: nothing was sampled in this run, there is no such target, a task's rows were only in memory, or `out` is there
            already and `overwrite` is false.
    """
    run, out = Path(run), Path(out)
    affinity = read_affinity(run, targets)
    if out.exists() and not overwrite:
        raise InputError(f"{out} is there already; name another file, or say that it may be overwritten")
    resolved = {entry["name"]: entry for entry in entries(run)}
    hurting = affinity.hurting if len(affinity.hurting) < len(resolved) else {}
    left_out = {task: reason(affinity, task) for task in hurting}
    kept = [name for name in resolved if name not in left_out]
    settings = make_config(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))).mixture.model_dump()
    mixture = {name: value for name, value in settings.items() if value != getattr(Config().mixture, name)}
    lines = comment(
        f"Written by `prefinetune suite prune {run}`: {len(kept)} of {len(resolved)} tasks. {' '.join(affinity.sentences())}"
    )
    for task, why in left_out.items():
        lines += comment(f"{task} is left out: {why}", mark="- ")
    lines += [f"name: {flow(out.stem)}", "tasks:"]
    lines += [f"  - {flow(suite_entry(resolved[name]))}" for name in kept]
    if mixture:
        lines.append(f"mixture: {flow(mixture)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, "\n".join(lines) + "\n")
    return Pruned(out, affinity, tuple(kept), left_out)


def reason(affinity: Affinity, task: str) -> str:
    """Why a task is left out."""
    targets = affinity.hurting[task]
    return (
        f"to first order its steps changed the targets' losses for the worse, on the mean {shown(affinity.over_targets[task])}"
        + (f"; most clearly those of {listing(targets, 5)}" if targets else "")
    )


def suite_entry(entry: Mapping[str, Any]) -> Any:
    """A task of a run's suite.yaml as an entry of a suite file: the name of one of ours, or all that it is.

    Raises:
        InputError: its rows were in memory, or its fields are functions that we do not know.
    """
    name, source, kind = entry["name"], entry["source"], next(kind for kind in FAMILIES if kind in entry)
    if is_ours(entry, kind):
        return name
    if isinstance(source, str) and source.startswith(IN_MEMORY):
        raise InputError(
            f"task {name!r}: its rows were in memory, and a suite file cannot name them; use Suite.without in Python"
        )
    if "function " in str(entry[kind]):
        raise InputError(f"task {name!r}: its fields are functions, which a suite file cannot name; use Suite.without in Python")
    splits: dict[str, Any] = {role: own for role, own in entry["splits"].items() if own not in (HELD_OUT, role)}
    if "test" not in entry["splits"]:
        splits["test"] = None
    about = {key: entry[key] for key in ("tags", "license", "cite") if entry.get(key)}
    return {"name": name, "source": absolute(source), kind: entry[kind], "splits": splits, **about}


def is_ours(entry: Mapping[str, Any], kind: str) -> bool:
    """Whether a task is the catalogue's of that name, from where the catalogue says or from a mirror."""
    from prefinetune.catalog import catalog
    from prefinetune.families.base import plain

    task = {task.name: task for task in catalog()}.get(entry["name"])
    if task is None or task.family.kind != kind:
        return False
    source = entry["source"]
    somewhere = source == plain(task.source.describe()) or (isinstance(source, str) and Path(source).name == task.slug)
    return somewhere and all(entry[kind].get(key) == plain(value) for key, value in task.family.settings().items())


def absolute(source: Any) -> Any:
    """A source whose paths hold wherever the suite file is."""
    if isinstance(source, Mapping):
        return {split: str(Path(path).resolve()) for split, path in source.items()}
    return source if source.startswith(("hub:", "tasksource:")) else str(Path(source).resolve())
