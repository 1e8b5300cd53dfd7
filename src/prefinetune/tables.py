"""What commands show at their end or before they begin, as tables on a terminal: scores, comparisons, studies, plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from prefinetune.display import clock
from prefinetune.errors import listing

if TYPE_CHECKING:
    from rich.console import Console

    from prefinetune.display import Display
    from prefinetune.evidence import Comparison
    from prefinetune.infer import Inferred
    from prefinetune.plan import ComparisonPlan, RunPlan
    from prefinetune.statistics import Effect
    from prefinetune.study_results import StudyResults


def show_scores(scores: Mapping[str, Mapping[str, float]], display: Display) -> None:
    """A table of validation scores."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("task", "validation scores"):
        table.add_column(name)
    for task, values in scores.items():
        table.add_row(Text(task), Text("  ".join(f"{name} {value:.3f}" for name, value in values.items())))
    display.console.print(table)


def show_comparison(comparison: Comparison, display: Display) -> None:
    """A table per label count, losers first, what is missing, and last the sentences that the numbers justify."""
    arms = list(comparison.plan["arms"])
    for at in comparison.plan["labels"]:
        lines = comparison.at(at)
        if not lines:
            continue
        table = Table(title=f"{at} labels", title_justify="left", box=None, pad_edge=False)
        table.add_column("task", min_width=16)
        for heading in ("metric", "majority", *arms, "gain", "95 % interval", "P(helps)", "detectable"):
            table.add_column(heading, justify="right", no_wrap=heading not in arms)
        table.add_column("gain by seed")
        for line in lines:
            majority = "-" if line.majority is None else f"{line.majority:.3f}"
            means = [f"{line.mean(arm):.3f}" if arm in line.scores else "-" for arm in arms]
            table.add_row(Text(line.task), line.metric, majority, *means, *effect_cells(line.effects.get(comparison.base)))
        display.console.print(table)
    for problem in comparison.problems:
        display.say(problem)
    if comparison.missing:
        display.say(f"not run: {listing(comparison.missing, 6)}")
    for sentence in comparison.sentences():
        display.say(sentence)


def show_protocol(protocol: Mapping[str, Any], display: Display) -> None:
    """A study's plan: groups with their members, what it takes, what is left out."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("group", "role", "members", "what it is"):
        table.add_column(heading, justify="right" if heading == "members" else "left")
    for name, group in protocol["groups"].items():
        count = sum(arm["group"] == name for arm in protocol["arms"].values())
        table.add_row(Text(name), group["role"], str(count), Text(group["told"]))
    display.console.print(table)
    runs = {arm["run"] for arm in protocol["arms"].values() if arm["run"]}
    costs = protocol["costs"]
    display.say(
        f"{len(runs)} pre-finetunings, {len(protocol['targets'])} targets x {listing(protocol['labels'])} labels x "
        f"{len(protocol['seeds'])} seeds: {costs['examples']:,} examples, scoring one counted as a third"
    )
    if costs["seconds"] is not None:
        display.say(f"{clock(costs['seconds'])} at {costs['examples_per_second']:,.0f} examples/s, the speed {costs['speed']}")
    for line in protocol["left_out"]:
        display.say(f"left out: {line}")


def show_plan(plan: RunPlan, display: Display) -> None:
    """A run before it is one: a table of its tasks, and then its size, memory and time."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("task", "family", "rows", "set aside", "leaking", "scored", "in the run", "tokens each"):
        table.add_column(heading, justify="left" if heading in ("task", "family") else "right", overflow="fold")
    for task in plan.tasks:
        counts = (task.rows, task.set_aside, task.left_out, task.validation, task.examples)
        table.add_row(Text(task.name), task.family, *(f"{count:,}" for count in counts), f"{task.tokens:.0f}")
    display.console.print(table)
    display.say(
        f"{plan.updates:,} updates of {plan.examples_per_update:,} examples, about {plan.tokens_per_update:,} tokens each"
    )
    trained = "" if plan.trainable == plan.parameters else f", {plan.trainable:,} of them trained"
    display.say(f"{plan.parameters:,} weights{trained}, on {plan.device}")
    parts = ", ".join(f"{name} {size(count)}" for name, count in plan.memory.items())
    display.say(f"memory: about {size(sum(plan.memory.values()))} and what Python and its libraries take ({parts})")
    display.say(
        f"time: about {clock(plan.seconds)} with scoring, by {plan.timed} updates of {plan.update_seconds:.2f} s; the data "
        "is prepared. Nothing was written"
    )


def show_comparison_plan(plan: ComparisonPlan, display: Display) -> None:
    """A comparison before it is one."""
    display.say("one cell, the first task from the base arm with the most labels:")
    show_plan(plan.cell, display)
    for line in plan.left_out:
        display.say(f"left out: {line}")
    there = f", {plan.there:,} of them there already" if plan.there else ""
    display.say(
        f"{plan.cells:,} cells{there}; what is to be run learns from {plan.examples:,} examples, about {clock(plan.seconds)}"
    )


def show_study(found: StudyResults, display: Display) -> None:
    """A table per label count, the largest loss first, then contrasts, what is missing, and the sentences."""
    from prefinetune.study_results import range_words

    numbers = (
        "members", "gain", "95 % interval", "P(helps)", "detectable", "for these targets", "gained", "p (signs)", "restarts"
    )  # fmt: skip
    for at in found.labels:
        table = Table(title=f"{at} labels: gain over the base", title_justify="left", box=None, pad_edge=False)
        for heading in ("group", "against", *numbers, "hurt (Holm)"):
            table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
        changes = {one.group: one.change for one in found.restarts if one.at == at}
        contrasts = sorted((one for one in found.contrasts if one.at == at), key=lambda one: one.effect.mean)
        for one in (*found.at(at), *contrasts):
            change = changes.get(one.group) if one.against == found.base else None
            table.add_row(
                Text(one.group), Text(one.against), str(len(one.members)), *effect_cells(one.effect)[:4],
                range_words(one), f"{one.gained} of {len(one.targets)}", f"{one.sign_p:.3f}",
                f"{change.mean:+.3f}" if change else "", Text(listing(target.task for target in one.harmed)),
            )  # fmt: skip
        display.console.print(table)
    for problem in found.problems:
        display.say(problem)
    for line in found.missing:
        display.say(f"not run: {line}")
    for sentence in found.sentences():
        display.say(sentence)


def show_inferred(found: Inferred, console: Console) -> None:
    """Print the proposals and what is left out; the suite file has the reasons."""
    from prefinetune.infer.text import fields_of, flow, relative

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "family", "confidence"):
        table.add_column(heading, overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("reads", overflow="fold")
    for one in found.proposals:
        told = ", ".join(f"{key}={flow(value)}" for key, value in fields_of(one.task.family).items() if key != "labels")
        table.add_row(Text(one.task.name), one.task.family.kind, one.confidence, f"{sum(one.rows.values()):,}", Text(told))
    if found.proposals:
        console.print(table)
    for one in found.proposals:
        for remark in one.remarks:
            console.print(f"! {one.task.name}: {remark}", markup=False, highlight=False)
    for out in found.left_out:
        names = listing((relative(str(path), found.folder) for path in out.files), 4)
        console.print(f"- left out: {names}: {out.reason}", markup=False, highlight=False)


def effect_cells(effect: Effect | None) -> list[str]:
    """Gain, interval, probability of help, detectable effect, and the gain of every seed."""
    if effect is None:
        return ["-"] * 5
    by_seed = " ".join(f"{difference:+.3f}" for difference in effect.differences)
    if effect.low is None or effect.high is None or effect.probability is None or effect.detectable is None:
        return [f"{effect.mean:+.3f}", "-", "-", "-", by_seed]
    interval = f"{effect.low:+.3f} to {effect.high:+.3f}"
    return [f"{effect.mean:+.3f}", interval, f"{effect.probability:.2f}", f"{effect.detectable:.3f}", by_seed]


def size(count: int) -> str:
    """Bytes as 1.2 GB or 340 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
