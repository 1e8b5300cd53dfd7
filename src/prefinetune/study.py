"""Studies: many pre-finetunings that differ in one thing, and one comparison over all of them.

The protocol (`study.json`) is written before the first run: which groups there are (`study_design.py`), which of their members
fit the budget, how the targets are learned and what is computed of them. Then all that it names is run (`study_runs.py`), and
read back (`study_results.py`). docs/evidence.md says why the protocol is as it is.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefinetune.compare import GRID, LABELS, SEEDS, TUNING_SEEDS
from prefinetune.config import Config, make_config, same_settings
from prefinetune.display import Display
from prefinetune.environment import now
from prefinetune.errors import InputError, listing
from prefinetune.files import refuse_others, write, writing_alone
from prefinetune.start import Start
from prefinetune.study_design import CONTROLS, COUNTS, FACTORS, Design, make_design
from prefinetune.study_results import StudyResults, read_protocol, read_study
from prefinetune.study_runs import Cells, Lab, portable
from prefinetune.tables import show_protocol
from prefinetune.task import Suite, Task, read_suite

MEMBERS = 3  # pre-finetunings of a group


def study(
    kind: str,
    suite: Suite | str | Path | None,
    model: str | Path,
    out: str | Path,
    targets: Sequence[Task | str | Path],
    *,
    labels: Sequence[int | float | None] = LABELS,
    seeds: int = SEEDS,
    members: int = MEMBERS,
    counts: Sequence[int | None] = COUNTS,
    factors: Sequence[str] = FACTORS,
    controls: Sequence[str] = CONTROLS,
    arms: Mapping[str, Sequence[str | Start]] | None = None,
    config: Config | Mapping[str, Any] | None = None,
    finetuning: Mapping[str, Any] | None = None,
    grid: Sequence[float] = GRID,
    tuning_seeds: int = TUNING_SEEDS,
    budget: str | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    processes: int = 1,
    skip_missing: bool = False,
    plan_only: bool = False,
    display: Display | None = None,
) -> StudyResults:
    """Write the protocol of a study, run what of it is not there yet, and read what it found.

    Args:
        kind: what differs: the number of tasks (scale), the number of labels (labels), one setting (ablations) or the one task
            that is learned from (transfer).
        suite: tasks to pre-finetune on; a study of labels may do without, given arms.
        model: the untouched base: a hub name, a model folder or a run.
        out: the study's folder. What it holds is not run again.
        targets: tasks to learn from few labels, none of them in the suite.
        labels: of the fine-tunings, as in `compare`; so are seeds, grid and tuning_seeds.
        finetuning: settings of the fine-tunings.
        members: pre-finetunings of a group, which differ in their seed, and so in the tasks where these are drawn.
        counts: of tasks, for scale; 0 is the base, None is all.
        factors: of `study_design.FACTORS`, for ablations.
        controls: of `study_design.CONTROLS`: as long on texts without labels, NLI alone, as many random tasks, one task per
            update; of an encoder-decoder also R3F in its fine-tuning alone.
        arms: for labels: groups of models or runs that are there already, by name.
        config: settings of the base run. `train.updates` must be among them, as all runs have it in common.
        budget: a time ("2h", "90m", "45s") or a number of examples ("500000"): the most that the whole study may take. Members
            that fit are planned, in an order that gives every group its first before any gets a second.
        processes: trainings, and fine-tunings, side by side.
        skip_missing: go on without the tasks of the suite whose rows cannot be found.
        plan_only: write the protocol and run nothing.

    Raises:
        InputError: anything that cannot be used, a folder that holds a study with another protocol, a budget that is too small.
        Preempted: the process was told to go; what was done is saved.
    """
    display, folder = display or Display(quiet=True), Path(out)
    suite = suite if isinstance(suite, Suite) or suite is None else read_suite(suite)
    if not isinstance(config, Config):
        config = make_config({"mixture": dict(suite.mixture) if suite else {}}, config or {})
    if suite and config.train.updates is None:
        raise InputError("train.updates is missing: every pre-finetuning of a study makes the same number; give train.updates=N")
    if members < 1:
        raise InputError(f"members: {members} is not accepted; at least one is needed")
    known = read_protocol(folder) if (folder / "study.json").exists() else None
    refuse_others(folder, "study.json", "no study")
    targets = [portable(task) for task in targets] if processes > 1 else targets
    cells = Cells(list(targets), dict(finetuning or {}), seeds, list(labels), list(grid), tuning_seeds, data_root, cache)
    lab = Lab(folder, suite, str(model), config, cells, processes, display)
    rows = known["rows"] if known else lab.rows(skip_missing)
    lab.tasks = [task for task in lab.tasks if task.name in rows]
    first = range(config.seed, config.seed + (known["begun_with"] if known else members))
    design = make_design(kind, lab.tasks, config, rows, first, counts, factors, controls, arms, lab.r3f_alone())
    protocol = lab.protocol(kind, design, rows, members, budget)
    if known:
        grow(folder, known, protocol)
    if known is None or any(known[key] != protocol[key] for key in ("budget", *GROWING)):
        choose_members(protocol, known, lab, design)
    else:
        protocol = known
    with writing_alone(folder):
        if protocol != known:
            write(folder / "study.json", json.dumps(protocol, indent=1, ensure_ascii=False))
        show_protocol(protocol, display)
        if not plan_only:
            lab.pre_finetune(protocol)
            lab.compare(protocol)
    return read_study(folder)


# ---- the protocol

FIXED = {  # what may not change, and how a message calls it
    "kind": "kind", "weights": "model", "suite": "suite", "digest": "settings", "finetuning": "settings of the fine-tuning",
    "grid": "grid", "tuning_seeds": "tuning seeds", "groups": "groups, counts, factors or controls", "contrasts": "contrasts",
}  # fmt: skip
GROWING = ("labels", "seeds", "members", "targets")


def grow(folder: Path, known: Mapping[str, Any], new: dict[str, Any]) -> None:
    """Make a protocol one that has grown out of another.

    Raises:
        InputError: they differ in more than further labels, seeds, members and targets; with what differs.
    """
    differing = [
        told for key, told in FIXED.items()
        if not (same_settings if key == "finetuning" else operator.eq)(known[key], new[key])
    ]  # fmt: skip
    differing += [f"target {name}, which is missing" for name in known["targets"] if name not in new["targets"]]
    if differing:
        raise InputError(
            f"{folder} already holds a study with another protocol (it differs in {listing(differing)}). A protocol grows by "
            "label counts, seeds, members and targets, and otherwise stays; choose another --out"
        )
    for key in GROWING:
        new[key] = max(known[key], new[key]) if key == "members" else list(dict.fromkeys([*known[key], *new[key]]))
    for key in ("settings", "rows", "begun_with", "tuned_on", "against", "started", "command", "environment"):
        new[key] = known[key]
    changed = {key: new[key] for key in ("budget", *GROWING) if new[key] != known[key]}
    new["grown"] = [*known["grown"], {"when": now(), **changed}] if changed else known["grown"]


def choose_members(protocol: dict[str, Any], known: Mapping[str, Any] | None, lab: Lab, design: Design) -> None:
    """Enter into the protocol the members that fit its budget, after those that it had before, and what is left out.

    Raises:
        InputError: a budget that is none, or in which nothing fits.
    """
    budget, before = protocol["budget"], known["arms"] if known else {}
    amount, unit = parse_budget(budget) if budget else (math.inf, "examples")
    rate, told = lab.speed(known) if unit == "seconds" else (None, "")
    limit = amount * rate if rate else amount

    def amount_of(examples: float) -> str:
        return f"{examples / rate:,.0f} s at {rate:,.0f} examples/s" if rate else f"{examples:,.0f} examples"

    total, of_cells = lab.cells.costs(protocol)
    taken: dict[str, dict[str, Any]] = {}
    owner: dict[tuple[str, str], str] = {}  # run or model -> the arm that has its cells: what two groups share is run once
    left: list[tuple[str, float]] = []
    for arm in sorted(lab.arms(design, protocol), key=lambda arm: arm.name not in before):
        own = arm.entry.get("objective")
        cost = 0.0 if arm.place in owner else lab.cost(arm) + (lab.cells.costs(protocol, own)[1] if own else of_cells)
        if arm.name not in before and total + cost > limit:
            left.append((arm.name, cost))
            continue
        total += cost
        taken[arm.name] = {**arm.entry, "cells": owner.setdefault(arm.place, arm.name)}
    if not taken:
        least = amount_of(total + min(cost for _, cost in left))
        raise InputError(f"--budget: {budget!r} is not accepted; the base and one pre-finetuning, with their cells, take {least}")
    protocol["arms"] = taken
    protocol["left_out"] = [
        *(f"{name}: its rows cannot be found" for name in protocol["suite"]["missing"]), *design.left_out,
        *(f"{name}: {amount_of(cost)}, beyond the budget of {budget}" for name, cost in left)
    ]  # fmt: skip
    protocol["costs"] = {
        "examples": round(total), "examples_per_second": rate, "seconds": round(total / rate) if rate else None, "speed": told,
    }  # fmt: skip


def parse_budget(text: str) -> tuple[float, str]:
    """(amount, "seconds" or "examples").

    Raises:
        InputError: it is neither a time nor a number.
    """
    units = {"h": 3600, "min": 60, "m": 60, "s": 1}
    match = re.fullmatch(rf"(\d+(?:\.\d+)?(?:e\d+)?) ?({'|'.join(units)})?", text.strip().replace(",", "").replace("_", ""))
    if not match or not float(match[1]):
        raise InputError(f"--budget: {text!r} is not accepted; expected a time (2h, 90m, 45s) or a number of examples (500000)")
    return float(match[1]) * units.get(match[2], 1), "seconds" if match[2] else "examples"
