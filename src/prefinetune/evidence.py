"""Did it help? What the records of a comparison say, with intervals. Reads files and computes; imports no torch.

A comparison's folder holds `comparison.json` (what was planned), `results.jsonl` (one line per finished cell) and
`rows/DIGEST.npy` (per scored row, what its score is made of). `read_comparison` turns them into lines and effects; the table of
`prefinetune compare` and the page of `prefinetune report` show the same ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefinetune.errors import InputError, listing
from prefinetune.families import FAMILIES
from prefinetune.files import read_lines
from prefinetune.safety import is_name
from prefinetune.statistics import Effect, effect_over_tasks, paired_effect, resampled_scores

# ---- a comparison, read back


@dataclass(frozen=True)
class Line:
    """One task at one number of labels: every arm's scores, and what pre-finetuning changed against each other arm."""

    task: str
    family: str
    metric: str
    at: str  # the label count as it was asked for: "32", "128", "all"
    labels: int  # examples it came to
    rate: float  # learning rate, chosen on the base arm
    majority: float | None  # score of always giving the most frequent answer, where the metric has one
    scores: Mapping[str, Mapping[int, float]]  # arm -> seed -> score
    effects: Mapping[str, Effect]  # other arm -> pre-finetuned minus it

    def mean(self, arm: str) -> float:
        return float(np.mean(list(self.scores[arm].values())))


@dataclass(frozen=True)
class Comparison:
    """What a comparison's folder says so far."""

    folder: Path
    plan: Mapping[str, Any]
    lines: tuple[Line, ...]  # the largest loss against the base first, by label count
    missing: tuple[str, ...] = ()  # planned and not run, in words
    problems: tuple[str, ...] = field(default=())  # what in the files could not be read

    @property
    def base(self) -> str:
        return self.plan["base"]

    @property
    def treated(self) -> str:
        return self.plan["treated"]

    @property
    def controls(self) -> list[str]:
        """All arms but the pre-finetuned one, the base first."""
        return [name for name in self.plan["arms"] if name != self.treated]

    def at(self, labels: str) -> list[Line]:
        return [line for line in self.lines if line.at == labels]

    def over_tasks(self, labels: str, control: str | None = None) -> Effect | None:
        """The mean over tasks at one label count, against the base or another arm; of one task, its own effect."""
        effects = [line.effects[control or self.base] for line in self.at(labels) if (control or self.base) in line.effects]
        if len(effects) == 1:
            return effects[0]
        return effect_over_tasks([effect.mean for effect in effects]) if effects else None

    def sentences(self) -> list[str]:
        """What the numbers justify, one sentence per label count, gain, harm or neither."""
        return [verdict(self, labels) for labels in self.plan["labels"] if self.at(labels)]


def rows_file(folder: Path, digest: str) -> Path:
    """Raises ValueError for a digest that names a file elsewhere."""
    if not is_name(digest):
        raise ValueError(f"{digest!r} is no digest")
    return folder / "rows" / f"{digest}.npy"


def read_plan(folder: Path) -> dict[str, Any]:
    """comparison.json.

    Raises:
        InputError: there is none, or it is damaged.
    """
    return read_own(folder, "comparison")


def read_own(folder: Path, kind: str) -> dict[str, Any]:
    """What says of a folder that it holds something of a kind: KIND.json.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / f"{kind}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {kind} (no {path.name})") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}); start the {kind} again in another folder") from None


def planned_cells(plan: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """(task, label count as asked for, examples) of everything that is compared."""
    return [(name, at, count) for name, entry in plan["tasks"].items() for at, count in entry["labels"].items()]


def best_rates(plan: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """The learning rate of each (task, examples): of the grid, the one with the best mean validation score of the base arm
    over the tuning seeds; the lower of equal ones. Left out where the grid is not finished."""
    found: dict[tuple[str, int, float], dict[int, float]] = {}
    for record in records:
        if record.get("arm") == plan["base"] and record["seed"] in plan["tuning_seeds"] and "learning_rate" in record:
            score = -math.inf if record["validation"] is None else record["validation"]  # None: the rate was too high to learn at
            found.setdefault((record["task"], record["labels"], record["learning_rate"]), {})[record["seed"]] = score
    rates = {}
    for task, _, count in planned_cells(plan):
        if len(plan["grid"]) == 1:
            rates[task, count] = plan["grid"][0]
            continue
        scores = [found.get((task, count, rate), {}) for rate in plan["grid"]]
        if all(len(seeds) == len(plan["tuning_seeds"]) for seeds in scores):
            means = [float(np.mean(list(seeds.values()))) for seeds in scores]
            rates[task, count] = plan["grid"][int(np.argmax(means))]
    return rates


NEEDED = {
    "task",
    "family",
    "arm",
    "labels",
    "seed",
    "metric",
    "score",
    "scores",
    "learning_rate",
    "validation",
    "digest",
    "subset",
    "rows",
}


@dataclass(frozen=True)
class Finished:
    """The finished cells of one task at one label count."""

    task: str
    at: str  # the label count as it was asked for
    count: int  # examples it came to
    rate: float
    cells: Mapping[tuple[str, int], Mapping[str, Any]]  # (arm, seed) -> record, with a finite score


class Read(NamedTuple):
    """A comparison's folder, read: the plan, what is finished, and in words what is not and what could not be read."""

    plan: dict[str, Any]
    finished: list[Finished]
    missing: list[str]
    problems: list[str]


def read_finished(folder: Path) -> Read:
    """Every finished cell of a comparison, at the learning rate that was chosen.

    Raises:
        InputError: the folder holds no comparison.
    """
    plan = read_plan(folder)
    lines_read = read_lines(folder / "results.jsonl")
    problems = [f"results.jsonl, line {number}: not a whole record, passed over" for number, _ in lines_read.torn]
    records, older = [], 0
    for record in lines_read.records:
        if record.keys() >= NEEDED:
            records.append(record)
        else:
            older += 1
    if older:
        problems.append(f"results.jsonl: {older} records of another kind or version were left out")
    rates = best_rates(plan, records)
    known = {(r["task"], r["labels"], r["arm"], r["seed"], r["learning_rate"]): r for r in records}
    finished, missing = [], list(plan.get("left_out", ()))
    for task, at, count in planned_cells(plan):
        rate = rates.get((task, count))
        if rate is None:
            missing.append(f"{task}, {at} labels: the learning rate is not chosen yet")
            continue
        cells: dict[tuple[str, int], Mapping[str, Any]] = {}
        for arm, seed in product(plan["arms"], plan["seeds"]):
            cell = known.get((task, count, arm, seed, rate))
            if cell and cell["score"] is not None and math.isfinite(cell["score"]):
                cells[arm, seed] = cell
            elif cell:
                missing.append(f"{task}, {at} labels, {arm}, seed {seed}: it failed ({cell.get('failed', 'no finite score')})")
            else:
                missing.append(f"{task}, {at} labels, {arm}, seed {seed}")
        if cells:
            finished.append(Finished(task, at, count, rate, cells))
    return Read(plan, finished, missing, problems)


def read_comparison(folder: str | Path) -> Comparison:
    """Everything a comparison found so far, finished or not.

    Raises:
        InputError: the folder holds no comparison.
    """
    folder = Path(folder)
    plan, finished, missing, problems = read_finished(folder)
    lines = []
    for one in finished:
        line, lost = make_line(folder, plan, one)
        lines.append(line)
        problems += lost
    order = {at: index for index, at in enumerate(plan["labels"])}
    lines.sort(key=lambda line: (order[line.at], line.effects[plan["base"]].mean if plan["base"] in line.effects else math.inf))
    return Comparison(folder, plan, tuple(lines), tuple(missing), tuple(problems))


def resampled_cells(
    folder: Path, plan: Mapping[str, Any], one: Finished, without: str
) -> tuple[dict[tuple[str, int], np.ndarray], list[str]]:
    """(arm, seed) -> the cell's scores [resamples] on resampled test rows, the same ones for all cells, and what is wrong with
    their files.

    Args:
        without: what becomes of cells whose rows cannot be read, as the problem says it.
    """
    problems, rows, lost = [], {}, {}
    for seed in plan["seeds"]:
        if len({record["subset"] for (_, other), record in one.cells.items() if other == seed}) > 1:
            problems.append(f"{one.task}, {one.at} labels, seed {seed}: the arms did not see the same labelled rows")
    for (arm, seed), record in one.cells.items():
        try:
            found = np.load(rows_file(folder, record["digest"]), allow_pickle=False)
            if found.ndim != 2 or len(found) != record["rows"]:
                raise ValueError(f"{found.shape} numbers for {record['rows']} rows")
            rows[arm, seed] = found
        except (OSError, ValueError) as error:
            lost[f"{arm} (seed {seed})"] = error
    if lost:
        where, first = f"{one.task}, {one.at} labels, {listing(lost, 2)}", next(iter(lost.values()))
        problems.append(f"{where}: rows that cannot be read ({first}), so {without}")
    if not rows:
        return {}, problems
    score = FAMILIES[next(iter(one.cells.values()))["family"]].score_of_means
    table = resampled_scores(list(rows.values()), score)
    return {key: table[:, index] for index, key in enumerate(rows)}, problems


def make_line(folder: Path, plan: Mapping[str, Any], one: Finished) -> tuple[Line, list[str]]:
    """One line from the cells of a task at one label count, and what is wrong with their files."""
    cells, first = one.cells, next(iter(one.cells.values()))
    resampled, problems = resampled_cells(folder, plan, one, "these are in no interval")
    treated, effects = plan["treated"], {}
    for arm in plan["arms"]:
        paired = [seed for seed in plan["seeds"] if (arm, seed) in resampled and (treated, seed) in resampled]
        if arm != treated and paired:
            ours, theirs = ([float(cells[name, seed]["score"]) for seed in paired] for name in (treated, arm))
            draws = (np.stack([resampled[name, seed] for seed in paired], axis=1) for name in (treated, arm))
            effects[arm] = paired_effect(ours, theirs, next(draws), next(draws))
    by_arm = {
        arm: {seed: float(cells[arm, seed]["score"]) for seed in plan["seeds"] if (arm, seed) in cells} for arm in plan["arms"]
    }
    by_arm = {arm: scores for arm, scores in by_arm.items() if scores}
    majority = first["scores"].get("majority")
    return Line(one.task, first["family"], first["metric"], one.at, one.count, one.rate, majority, by_arm, effects), problems


# ---- in words


def verdict(comparison: Comparison, labels: str) -> str:
    """One sentence about one label count: against the base, then against every control."""
    effect = comparison.over_tasks(labels)
    lines = comparison.at(labels)
    count = with_labels(labels)
    if effect is None:
        return f"{count}: too few cells are finished to say anything."
    size = len(lines)
    over = f"on the mean over {size} tasks" if size > 1 else f"on {lines[0].task}"
    judged = {
        "gain": "pre-finetuning helped",
        "harm": "pre-finetuning hurt",
        "unclear": "no difference that this comparison could show",
    }[effect.verdict]
    parts = [f"{count}, {judged}: {shown(effect)} {over}"]
    if size > 1:
        better = sum(line.effects[comparison.base].mean > 0 for line in lines if comparison.base in line.effects)
        parts[0] += f", {better} of {size} gained"
    for control in comparison.controls[1:]:
        against = comparison.over_tasks(labels, control)
        if against is not None:
            words = {"gain": "ahead", "harm": "behind", "unclear": "not clearly different"}[against.verdict]
            parts.append(f"against {control} {words}: {shown(against)}")
    return "; ".join(parts) + "."


def with_labels(at: str) -> str:
    return f"With {at} of the labels" if at.endswith("%") else f"With {at} labels"


def shown(effect: Effect) -> str:
    if effect.low is None or effect.high is None:
        return f"{effect.mean:+.3f} (no interval: it takes two seeds or two tasks)"
    return f"{effect.mean:+.3f} (95 % interval {effect.low:+.3f} to {effect.high:+.3f})"
