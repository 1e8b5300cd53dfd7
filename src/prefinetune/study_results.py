"""What a study found: gains of every group of pre-finetunings over the untouched base and over one another. Imports no torch.

A study's folder holds `study.json` (the protocol, written before the first run), `runs/` (the pre-finetunings) and `comparison/`
(one comparison over all of them). `read_study` turns them into readings; the table of `prefinetune study` and the page of
`prefinetune report` show the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefinetune.errors import listing
from prefinetune.evidence import Finished, Read, planned_cells, read_finished, read_own, resampled_cells, shown, with_labels
from prefinetune.statistics import (
    LEVEL,
    Effect,
    deviations,
    effect_on_target,
    effect_on_these_targets,
    effect_over_targets,
    holm,
    sign_test,
)

BASE = "base"  # the untouched model, in readings and in the comparison
NO_ROWS = "intervals of this target with these hold what checkpoints and seeds add, and not what rows add"


@dataclass(frozen=True)
class Group:
    """What is averaged over: pre-finetunings that differ in nothing but their member (a seed, or an order of tasks)."""

    name: str
    told: str  # a sentence of what it is
    role: str  # main, point or control
    series: str  # the curve it is a point of: "same updates", say; "" for none
    x: float | None  # where it stands on that curve: the number of tasks, say
    arms: Mapping[str, str]  # member -> arm of the comparison


@dataclass(frozen=True)
class TargetGain:
    """What a group gained on one target over what it is read against. A cell that is not finished is nan; means and effects are
    of the seeds that all members on both sides have finished."""

    task: str
    family: str
    metric: str
    scores: np.ndarray  # [members, seeds] of the group
    control: np.ndarray  # [members, seeds] of what it is read against; the base has one row
    gains: np.ndarray  # [members, seeds] differences on the same labelled rows; of groups without pairs, to the control's mean
    majority: float | None  # score of always giving the most frequent answer
    effect: Effect  # of this target alone: members, seeds and test rows could have been otherwise; differences are by member
    adjusted: float | None  # its p-value after Holm's correction over the reading's targets; None without an interval
    # The task's other scores, macro-F1 for one: name -> mean of the group, mean of what it is read against.
    others: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    row_deviation: float | None = None  # of the mean gain on resampled test rows; None where they cannot be read

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """[members] mean scores of both sides over the seeds that all have finished."""
        done = complete(self.scores, self.control)
        return self.scores[:, done].mean(axis=1), self.control[:, done].mean(axis=1)


@dataclass(frozen=True)
class Reading:
    """A group against the base, or against another group, at one number of labels."""

    group: str
    against: str  # BASE, or the name of a group
    at: str  # label count as it was asked for: "32", "128", "10 %", "all"
    members: tuple[str, ...]  # rows of the targets' arrays
    seeds: tuple[int, ...]  # columns
    paired: bool  # whether member m of one group belongs to member m of the other: the same seed, the same order of tasks
    targets: tuple[TargetGain, ...]  # the largest loss first
    effect: Effect  # mean over targets; hierarchical interval over targets, members and seeds; differences are by target
    gained: int  # targets whose mean gain is above zero
    lost: int  # below
    sign_p: float  # two-sided sign test over targets, ties left out

    @property
    def harmed(self) -> list[TargetGain]:
        """Targets that lose also after Holm's correction."""
        return [one for one in self.targets if one.effect.mean < 0 and one.adjusted is not None and one.adjusted < 1 - LEVEL]

    @cached_property
    def on_these_targets(self) -> Effect | None:
        """The same mean with the interval for these very targets: checkpoints, seeds and test rows could have been otherwise.
        Only of seeds that all targets have finished; None without any."""
        return on_these_targets(self.targets, self.paired)

    @property
    def for_these(self) -> str:
        """Its verdict."""
        here = self.on_these_targets
        return here.verdict if here else "unclear"

    def by_family(self) -> dict[str, Effect]:
        """The mean over the targets of each family."""
        families = dict.fromkeys(target.family for target in self.targets)
        return {
            name: over_targets([target for target in self.targets if target.family == name], self.paired) for name in families
        }


@dataclass(frozen=True)
class Restarts:
    """How much a group's scores vary between restarts: fine-tunings that differ in seed alone (labelled rows, order, head)."""

    group: str  # or BASE
    at: str
    targets: tuple[str, ...]  # those with two seeds or more
    deviation: Effect  # standard deviation over seeds, mean over targets and members; differences are by target
    change: Effect | None  # minus the base's; below zero: steadier. None for the base


@dataclass(frozen=True)
class StudyResults:
    """What a study's folder says so far, finished or not."""

    folder: Path
    protocol: Mapping[str, Any]  # study.json
    groups: Mapping[str, Group]
    readings: tuple[Reading, ...]  # of every group against the base, by label count
    contrasts: tuple[Reading, ...]  # of group against group, as the protocol pairs them
    restarts: tuple[Restarts, ...]
    missing: tuple[str, ...] = ()  # left out or not run yet, in words
    problems: tuple[str, ...] = ()  # what in the files could not be read

    @property
    def kind(self) -> str:
        return self.protocol["kind"]

    @property
    def base(self) -> str:
        """What readings against the untouched model call it."""
        return BASE

    @property
    def labels(self) -> list[str]:
        """Label counts that have readings, in the protocol's order."""
        there = {reading.at for reading in self.readings}
        return [at for at in self.protocol["labels"] if at in there]

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(group.series for group in self.groups.values() if group.series))

    def at(self, labels: str) -> list[Reading]:
        """Every group against the base at one label count, the largest loss first."""
        return sorted((one for one in self.readings if one.at == labels), key=lambda one: one.effect.mean)

    def reading(self, group: str, labels: str, against: str = BASE) -> Reading | None:
        for one in (*self.readings, *self.contrasts):
            if (one.group, one.at, one.against) == (group, labels, against):
                return one
        return None

    def curve(self, series: str, labels: str) -> list[tuple[float, Reading]]:
        """(x, reading) of a series' groups against the base, by x."""
        points = []
        for group in self.groups.values():
            reading = self.reading(group.name, labels)
            if group.series == series and group.x is not None and reading:
                points.append((group.x, reading))
        return sorted(points, key=lambda point: point[0])

    def by_labels(self, group: str) -> list[Reading]:
        """A group against the base at every label count: its low-resource curve."""
        return [reading for at in self.labels if (reading := self.reading(group, at))]

    def as_dict(self) -> dict[str, Any]:
        """All readings as plain values."""
        return {
            "readings": [as_plain(one) for one in self.readings], "contrasts": [as_plain(one) for one in self.contrasts],
            "restarts": [asdict(one) for one in self.restarts], "missing": self.missing, "problems": self.problems,
            "sentences": self.sentences(),
        }  # fmt: skip

    def sentences(self) -> list[str]:
        """What the numbers justify: per label count first the groups that hurt, then every main group with its contrasts."""
        found = []
        for at in self.labels:
            readings, count = self.at(at), with_labels(at)
            if hurt := [one for one in readings if one.effect.verdict == "harm"]:
                found.append(f"{count}, these hurt: {listing(f'{one.group} {shown(one.effect)}' for one in hurt)}.")
            if here := [one for one in readings if one not in hurt and one.for_these == "harm"]:
                found.append(f"{count}, these hurt on these very targets: {listing(f'{one.group} {told(one)}' for one in here)}.")
            found += [self._sentence(one) for one in readings if self.groups[one.group].role == "main"]
        return found

    def _sentence(self, reading: Reading) -> str:
        size, members = len(reading.targets), len(reading.members)
        parts = [
            f"{with_labels(reading.at)}, {reading.group}: {verdict_words(reading)}: {shown(reading.effect)} on the mean over "
            f"{size} target{'s' * (size > 1)} and {members} checkpoint{'s' * (members > 1)}, {reading.gained} gained and "
            f"{reading.lost} lost"
        ]
        if size > 1 and (here := range_words(reading)):
            parts[0] += f", for these very targets {here}"
        if reading.harmed:
            parts[0] += f", after Holm's correction also {listing(one.task for one in reading.harmed)}"
        words = {"harm": "behind", "gain": "ahead of"}
        contrasts = sorted(
            (one for one in self.contrasts if (one.group, one.at) == (reading.group, reading.at)),
            key=lambda one: one.effect.mean,
        )
        parts += [
            f"{words[one.effect.verdict]} {one.against}: {shown(one.effect)}" for one in contrasts if one.effect.verdict in words
        ]
        if unclear := [f"{one.against} {told(one)}" for one in contrasts if one.effect.verdict not in words]:
            parts.append(f"not clearly different from {listing(unclear)}")
        if members == 1:
            parts.append("one checkpoint: its own luck is in no interval")
        return "; ".join(parts) + "."


def verdict_words(reading: Reading) -> str:
    words = {"gain": "helped", "harm": "hurt"}
    if word := words.get(reading.effect.verdict):
        return word
    if word := words.get(reading.for_these):
        return f"{word} on these targets, and may not on others"
    return "no difference that this study could show"


def range_words(reading: Reading) -> str:
    """The interval for these very targets; nothing where there is none."""
    here = reading.on_these_targets
    return f"{here.low:+.3f} to {here.high:+.3f}" if here and here.low is not None else ""


def told(reading: Reading) -> str:
    """A mean gain that is unclear over targets, with the interval for these very ones where that is clear."""
    here = f", for these targets {range_words(reading)}" if reading.for_these != "unclear" else ""
    return f"({reading.effect.mean:+.3f}{here})"


def as_plain(reading: Reading) -> dict[str, Any]:
    """A reading as JSON has it: arrays are lists, and a cell that is not finished is null."""

    def table(values: np.ndarray) -> list[list[float | None]]:
        return [[None if np.isnan(value) else float(value) for value in row] for row in values]

    arrays = ("scores", "control", "gains")
    targets = [asdict(one) | {name: table(getattr(one, name)) for name in arrays} for one in reading.targets]
    here = reading.on_these_targets
    return asdict(replace(reading, targets=())) | {"targets": targets, "on_these_targets": here and asdict(here)}


def over_targets(targets: Sequence[TargetGain], paired: bool) -> Effect:
    """The mean over some targets of a reading; of a single one, its own effect."""
    if len(targets) == 1:
        return targets[0].effect
    treated, control = (np.stack(side) for side in zip(*(target.means for target in targets), strict=True))  # [t, m] each
    return effect_over_targets(treated, control, paired)


def on_these_targets(targets: Sequence[TargetGain], paired: bool) -> Effect | None:
    """The mean over some targets of a reading, for these alone; None where no seed is finished on all."""
    scores, control = (np.stack(side) for side in zip(*((one.scores, one.control) for one in targets), strict=True))  # [t, m, s]
    done = complete(*scores, *control)
    if not done.any():
        return None
    rows = [one.row_deviation for one in targets if one.row_deviation is not None]
    return effect_on_these_targets(scores[..., done], control[..., done], paired, rows if len(rows) == len(targets) else None)


def complete(*scores: np.ndarray) -> np.ndarray:
    """[seeds] which seeds every row of every table [., seeds] has finished."""
    return np.all([np.isfinite(table).all(axis=0) for table in scores], axis=0)


# ---- reading a folder


def read_protocol(folder: Path) -> dict[str, Any]:
    """study.json.

    Raises:
        InputError: there is none, or it is damaged.
    """
    return read_own(folder, "study")


def read_study(folder: str | Path) -> StudyResults:
    """Everything a study found so far, finished or not.

    Raises:
        InputError: the folder holds no study.
    """
    folder = Path(folder)
    protocol = read_protocol(folder)
    groups = {name: read_group(protocol, name) for name in protocol["groups"]}
    missing = list(protocol["left_out"])
    begun = (folder / "comparison" / "comparison.json").exists()
    read = read_finished(folder / "comparison") if begun else None
    whole = whole_arms(protocol, read) if read else set()
    runs = sorted({arm["run"] for arm in protocol["arms"].values() if arm["run"]})
    over = {arm["run"] for arm in protocol["arms"].values() if arm["cells"] in whole}  # their weights may have been deleted
    if waiting := [run for run in runs if run not in over and not (folder / run / "model" / "config.json").exists()]:
        missing.append(f"pre-finetunings: {len(waiting)} of {len(runs)} are not finished ({listing(waiting, 4)})")
    if read is None:
        return StudyResults(folder, protocol, groups, (), (), (), (*missing, "the comparison: it has not begun"))
    plan, finished, not_run, problems = read
    missing += [*plan["left_out"], *(f"{len(not_run) - len(plan['left_out']):,} cells of the comparison" for _ in not_run[:1])]
    readings: list[Reading] = []
    contrasts: list[Reading] = []
    restarts: list[Restarts] = []
    for at in plan["labels"]:
        scored = []
        for one in finished:
            if one.at == at:
                resampled, lost = resampled_cells(folder / "comparison", plan, one, NO_ROWS)
                scored.append(Scored(one, resampled))
                problems += lost
        seeds = tuple(plan["seeds"])
        for group in groups.values():
            if reading := read_against(group, None, at, seeds, scored):
                readings.append(reading)
        for name, other in protocol["contrasts"]:
            if reading := read_against(groups[name], groups[other], at, seeds, scored):
                contrasts.append(reading)
        restarts += read_restarts([reading for reading in readings if reading.at == at])
    return StudyResults(
        folder, protocol, groups, tuple(readings), tuple(contrasts), tuple(restarts), tuple(missing), tuple(problems)
    )


def read_group(protocol: Mapping[str, Any], name: str) -> Group:
    entry = protocol["groups"][name]
    arms = {arm["member"]: arm["cells"] for arm in protocol["arms"].values() if arm["group"] == name}
    return Group(name, entry["told"], entry["role"], entry["series"], entry["x"], arms)


def whole_arms(protocol: Mapping[str, Any], read: Read) -> set[str]:
    """Arms of a study's comparison that have every cell of the protocol: nothing is computed from their weights any more."""
    plan = read.plan
    if not (set(protocol["targets"]) <= set(plan["tasks"]) and set(protocol["labels"]) <= set(plan["labels"])):
        return set()
    found = {(one.task, one.at): one.cells for one in read.finished}
    wanted = [(task, at) for task, at, _ in planned_cells(plan)]
    return {
        arm for arm in plan["arms"]
        if all((arm, seed) in found.get(place, {}) for place in wanted for seed in protocol["seeds"])
    }  # fmt: skip


class Scored(NamedTuple):
    """The finished cells of one target at one label count, with their scores on resampled rows."""

    one: Finished
    resampled: Mapping[tuple[str, int], np.ndarray]  # (arm, seed) -> [resamples]

    def table(self, arms: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """[arms, seeds] scores; nan where a cell is not finished."""
        cells = self.one.cells
        return np.array([[cells[arm, seed]["score"] if (arm, seed) in cells else np.nan for seed in seeds] for arm in arms])

    def mean_score(self, arms: Sequence[str], seeds: Sequence[int], name: str) -> float:
        return float(np.mean([self.one.cells[arm, seed]["scores"][name] for arm in arms for seed in seeds]))

    def resampled_difference(self, ours: Sequence[str], theirs: Sequence[str], seeds: Sequence[int]) -> np.ndarray | None:
        """[resamples] the difference of mean scores on resampled rows; None where rows of a cell cannot be read."""
        if any((arm, seed) not in self.resampled for arm in (*ours, *theirs) for seed in seeds):
            return None
        means = (np.mean([self.resampled[arm, seed] for arm in arms for seed in seeds], axis=0) for arms in (ours, theirs))
        return next(means) - next(means)


def furthest(arms: Mapping[str, str], seeds: Sequence[int], scored: Sequence[Scored]) -> list[str]:
    """The members of a group that have finished as many targets as the one that has finished most: while a study goes on, a
    checkpoint that has only begun takes no target from the others."""
    counts = {member: sum(any((arm, seed) in one.one.cells for seed in seeds) for one in scored) for member, arm in arms.items()}
    return [member for member, count in counts.items() if count and count == max(counts.values())]


def read_against(group: Group, other: Group | None, at: str, seeds: tuple[int, ...], scored: Sequence[Scored]) -> Reading | None:
    """A group against another, or (None) against the base, at one label count; None where nothing can be read yet."""
    arms, controls = group.arms, other.arms if other else {BASE: BASE}
    members, their_members = furthest(arms, seeds, scored), furthest(controls, seeds, scored)
    common = [member for member in members if member in their_members]
    paired = bool(common) and len(common) == min(len(members), len(their_members))
    if paired:
        members = their_members = common
    ours, theirs = [arms[member] for member in members], [controls[member] for member in their_members]
    targets = []
    for one in scored:
        scores, control = one.table(ours, seeds), one.table(theirs, seeds)
        if not ours or not theirs or not (done := complete(scores, control)).any():
            continue
        used = [seed for seed, whole in zip(seeds, done, strict=True) if whole]
        resampled = one.resampled_difference(ours, theirs, used)
        effect = effect_on_target(scores[:, done], control[:, done], paired, resampled)
        first = next(iter(one.one.cells.values()))
        majority = first["scores"].get("majority")
        gains = scores - (control if paired else control.mean(axis=0))
        others = {
            name: (one.mean_score(ours, used, name), one.mean_score(theirs, used, name))
            for name in first["scores"] if name not in (first["metric"], "majority")
        }  # fmt: skip
        deviation = None if resampled is None else float(resampled.std())
        about = (one.one.task, first["family"], first["metric"])
        targets.append(TargetGain(*about, scores, control, gains, majority, effect, None, others, deviation))
    if not targets:
        return None
    targets = adjusted(sorted(targets, key=lambda target: target.effect.mean))
    gained, lost, sign_p = sign_test([target.effect.mean for target in targets])
    against = other.name if other else BASE
    effect = over_targets(targets, paired)
    return Reading(group.name, against, at, tuple(members), seeds, paired, tuple(targets), effect, gained, lost, sign_p)


def adjusted(targets: Sequence[TargetGain]) -> list[TargetGain]:
    """The same with Holm's correction over those that have a p-value."""
    judged = {target.task: target.effect.p for target in targets if target.effect.p is not None}
    corrected = dict(zip(judged, holm(list(judged.values())), strict=True))
    return [replace(target, adjusted=corrected.get(target.task)) for target in targets]


def read_restarts(readings: Sequence[Reading]) -> list[Restarts]:
    """The deviation between restarts of every group at one label count, and of the base before them; none where
    no target has two seeds."""
    found: list[Restarts] = []
    for reading in readings:
        names, sides = [], []
        for target in reading.targets:
            done = complete(target.scores, target.control)
            if done.sum() > 1:
                names.append(target.task)
                sides.append((deviations(target.scores[:, done]), deviations(target.control[:, done])))
        if not sides:
            continue
        ours, base = (np.stack(side) for side in zip(*sides, strict=True))  # [t, m], [t, 1]
        nothing = np.zeros((len(ours), 1))
        if not found:
            found.append(Restarts(BASE, reading.at, tuple(names), effect_over_targets(base, nothing, False), None))
        deviation, change = effect_over_targets(ours, nothing, False), effect_over_targets(ours, base, False)
        found.append(Restarts(reading.group, reading.at, tuple(names), deviation, change))
    return found
