"""What a study is made of: its groups of pre-finetunings, and which of them are read against which. Nothing is run or read here.

A group's members are told apart by a seed alone, which also draws tasks where tasks are drawn. A budget is spent in the order of
groups, so the main ones come first.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prefinetune.config import Config
from prefinetune.errors import InputError, listing, nearest
from prefinetune.study_results import BASE
from prefinetune.task import Task

if TYPE_CHECKING:
    from prefinetune.start import Start

COUNTS = (0, 5, 10, 20, 40, None)  # numbers of tasks; 0 is the base, None is all
CONTROLS = ("further", "nli", "random", "homogeneous", "r3f")
# Ablations: by factor a setting and its values; those that differ from the base run's are tried, one at a time.
SETTINGS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "order": ("mixture.order", ("heterogeneous", "batch-homogeneous", "dataset-homogeneous")),
    "scaling": ("objective.scaling", ("log", "none")),
    "sampling": ("mixture.sampling", ("natural", "temperature", "uniform")),
    "r3f": ("objective.r3f", (0.0, 1.0)),
    "heads": ("objective.heads", ("shared", "separate")),
}
FACTORS = (*SETTINGS, "denoising")  # the last is no setting: raw texts as one more task
TERM_SHARE = 4  # of the texts one in so many, for that task
FURTHER, NLI, HOMOGENEOUS, R3F = "further training", "NLI only", "one task per update", "R3F in fine-tuning"


@dataclass(frozen=True)
class Variant:
    """What a pre-finetuning is beside its seed: its tasks, the settings unlike the base run's, and how much raw text."""

    tasks: Sequence[str] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    texts: int = 0  # one in so many of the distinct texts of the suite's training rows, as one more task; 0 for none


@dataclass(frozen=True)
class Group:
    """What a study averages over: variants by seed, or models and runs that are there already."""

    name: str
    told: str
    member: Callable[[int], Variant] = lambda seed: Variant()
    role: Literal["main", "point", "control"] = "point"
    series: str = ""
    x: float | None = None
    given: Sequence[str | Start] = ()


@dataclass
class Design:
    """All groups of a study, what is read against what beside every group against the base, and what had to be left out."""

    groups: list[Group] = field(default_factory=list)
    contrasts: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def make_design(
    kind: str,
    tasks: Sequence[Task],
    config: Config,
    rows: Mapping[str, int],
    begun_with: Sequence[int],
    counts: Sequence[int | None] = COUNTS,
    factors: Sequence[str] = FACTORS,
    controls: Sequence[str] = CONTROLS,
    arms: Mapping[str, Sequence[str | Start]] | None = None,
    r3f_alone: Start | None = None,
) -> Design:
    """The groups of a kind of study.

    Args:
        tasks: of the suite; none where there is no suite.
        config: of the base run.
        rows: training rows by task.
        begun_with: the seeds of the members that the study was begun with.
        counts, factors, controls, arms: see `study.study`.
        r3f_alone: the untouched base with R3F in its fine-tunings, where that says something.

    Raises:
        InputError: unknown kinds, factors, controls or counts, names used twice, or a suite that is missing.
    """
    for what, given, accepted in (("kind", [kind], DESIGNS), ("--factors", factors, FACTORS), ("--controls", controls, CONTROLS)):
        for name in given:
            if name not in accepted:
                raise InputError(f"{what}: {name!r} is not accepted{nearest(name, accepted)}; expected {listing(accepted)}")
    if arms and kind != "labels":
        raise InputError(f"--arm is for studies of labels; a study of {kind} makes all its runs")
    if not tasks and not arms:
        raise InputError(
            "a suite is missing: a file, or names and tags of the catalogue; only a study of labels may do with --arm"
        )
    design = Design()
    if tasks:
        design = DESIGNS[kind](tasks, config=config, rows=rows, begun_with=begun_with, counts=counts, factors=factors)
    for name, starts in (arms or {}).items():
        design.groups.append(Group(name, "made before the study", role="main", given=starts))
    mains = [group.name for group in design.groups if group.role == "main"]
    if tasks:
        add_controls(kind, design, tasks, config, controls)
    if r3f_alone and "r3f" in controls and kind != "transfer":
        told = "the untouched base, fine-tuned with R3F: what pre-finetuning with R3F is to beat in encoder-decoders"
        design.groups.append(Group(R3F, told, role="control", given=[r3f_alone]))
    found = [group.name for group in design.groups if group.role == "control"]
    design.contrasts += [(main, control) for main in mains for control in found] + [(mains[0], other) for other in mains[1:]]
    names = [group.name for group in design.groups]
    for name in names:
        if names.count(name) > 1 or name == BASE:
            raise InputError(f"the name {name!r} is taken; choose another")
    role = {"main": 0, "control": 1, "point": 2}
    design.groups.sort(key=lambda group: role[group.role])
    return design


def drawn(tasks: Sequence[Task], size: int, seed: int, what: str) -> list[str]:
    """So many names of tasks; a larger number's are among them. In the suite's order, on which a mixture depends."""
    names = [task.name for task in tasks]
    return sorted(random.Random(f"{seed} {what}").sample(names, len(names))[:size], key=names.index)


def scale(
    tasks: Sequence[Task], *, rows: Mapping[str, int], begun_with: Sequence[int], counts: Sequence[int | None], **_: Any
) -> Design:
    """Nested numbers of tasks in random orders, at the same number of updates: once with all rows of every task, and once with
    the same number of distinct rows in all, as more tasks would else also be more rows."""
    total = len(tasks)
    asked = {total if count is None else count for count in counts}
    sizes = sorted(size for size in asked if 0 < size <= total)
    if not sizes or min(asked) < 0:
        raise InputError(f"--counts: {listing(counts)} are not accepted; expected numbers of tasks up to {total}, or all")
    design = Design(left_out=[f"{size} tasks: the suite has {total}" for size in sorted(asked) if size > total])
    # What the smallest number of tasks has in every order of the beginning, so that all numbers can have it.
    same = min(sum(rows[name] for name in drawn(tasks, sizes[0], seed, "order")) for seed in begun_with)

    def natural(size: int, seed: int) -> Variant:
        return Variant(drawn(tasks, size, seed, "order"))

    def capped(size: int, seed: int) -> Variant:
        chosen = drawn(tasks, size, seed, "order")
        cap = cap_for(same, [rows[name] for name in chosen])
        cuts = any(rows[name] > cap for name in chosen)
        return Variant(chosen, {"data": {"max_rows": cap}} if cuts else {})

    for series, suffix, variant, told in (
        ("same updates", "", natural, "all rows"),
        ("same rows", ", same rows", capped, f"about {same:,} distinct rows in all"),
    ):
        names = {size: f"{size} task{'s' * (size > 1)}{suffix}" for size in sizes}
        for size, name in names.items():
            role: Literal["main", "point"] = "main" if variant is natural and size == sizes[-1] else "point"
            told_of = f"{size} of {total} tasks in a random order, nested; {told}; the same updates"
            design.groups.append(Group(name, told_of, partial(variant, size), role, series, size))
        design.contrasts += [(names[sizes[-1]], names[size]) for size in sizes[:-1]]
    return design


def cap_for(most: int, rows: Sequence[int]) -> int:
    """The largest cap on rows per task with which tasks have at most so many rows together; at least 1."""
    return max(1, bisect_right(range(1, max(rows) + 1), most, key=lambda cap: int(np.minimum(rows, cap).sum())))


def labels(tasks: Sequence[Task], **_: Any) -> Design:
    """One pre-finetuning on all tasks; what differs are the labels of the targets."""
    return Design([whole(tasks, "pre-finetuned")])


def ablations(tasks: Sequence[Task], *, config: Config, factors: Sequence[str], **_: Any) -> Design:
    """The base run, and it with one thing different at a time."""
    design, names = Design([whole(tasks, "base run")]), [task.name for task in tasks]
    sharing = [task.family.kind for task in tasks if task.family.shared_head]
    for factor in factors:
        if factor == "denoising":
            told = "the base run with raw text as one more task: a quarter of the distinct texts of its training rows"
            design.groups.append(Group("with denoising", told, always(Variant(names, texts=TERM_SHARE))))
            continue
        name, values = SETTINGS[factor]
        if factor == "heads" and len(set(sharing)) == len(sharing):
            design.left_out.append(f"{name}: no two tasks of the suite share a head")
            continue
        section, key = name.split(".")
        now = getattr(getattr(config, section), key)
        for value in values:
            if value != now:
                variant = Variant(names, {section: {key: value}})
                told = f"the base run with {name}={value} instead of {now}"
                design.groups.append(Group(f"{key}={value}", told, always(variant)))
    design.contrasts = [(design.groups[0].name, group.name) for group in design.groups[1:]]
    return design


def transfer(tasks: Sequence[Task], **_: Any) -> Design:
    """One pre-finetuning per source task, and one on all of them."""
    alone = [
        Group(task.name, f"{task.name} alone; the same updates", always(Variant([task.name])), series="source task")
        for task in tasks
    ]
    return Design([whole(tasks, "all tasks"), *alone])


def always(variant: Variant) -> Callable[[int], Variant]:
    """The same for every member, which then differ in their seed alone."""
    return lambda seed: variant


def whole(tasks: Sequence[Task], name: str) -> Group:
    variant = Variant([task.name for task in tasks])
    return Group(name, f"all {len(tasks)} tasks, the settings of the study", always(variant), "main")


DESIGNS: Mapping[str, Callable[..., Design]] = {
    "scale": scale, "labels": labels, "ablations": ablations, "transfer": transfer,
}  # fmt: skip


def add_controls(kind: str, design: Design, tasks: Sequence[Task], config: Config, wanted: Sequence[str]) -> None:
    """What else could explain a gain, as groups of their own where they make sense; docs/evidence.md says what each rules out."""
    names, nli = [task.name for task in tasks], [task.name for task in tasks if "nli" in task.tags]
    if "further" in wanted:
        told = "as many updates on the texts of the same training rows, without labels"
        design.groups.append(Group(FURTHER, told, always(Variant(texts=1)), "control"))
        if kind == "transfer":
            design.contrasts += [(name, FURTHER) for name in names]
    if 0 < len(nli) < len(names) and kind != "transfer":
        random_name = f"{len(nli)} random task{'s' * (len(nli) > 1)}"
        if "nli" in wanted:
            told = f"as many updates on the {len(nli)} tasks tagged nli alone"
            design.groups.append(Group(NLI, told, always(Variant(nli)), "control"))
        if "random" in wanted and kind != "scale":  # whose points are random sub-sets already
            told = f"as many updates on {len(nli)} tasks, drawn anew for every member: what so few tasks do, whichever they are"
            design.groups.append(
                Group(random_name, told, lambda seed: Variant(drawn(tasks, len(nli), seed, "sub-set")), "control")
            )
            design.contrasts += [(NLI, random_name)] if "nli" in wanted else []
    order = "batch-homogeneous"
    if "homogeneous" in wanted and kind in ("scale", "labels") and config.mixture.order != order and len(names) > 1:
        variant = Variant(names, {"mixture": {"order": order}})
        design.groups.append(Group(HOMOGENEOUS, "all tasks, and every update of one task only", always(variant), "control"))
