"""What a person sees while a run goes on: a live screen on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from prefinetune import launcher
from prefinetune.errors import listing
from prefinetune.safety import visible

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType

    from prefinetune.evidence import Comparison
    from prefinetune.plan import ComparisonPlan, RunPlan
    from prefinetune.statistics import Effect
    from prefinetune.study_results import StudyResults
    from prefinetune.update import Update

SMOOTHING = 0.9  # of the per-task losses on the screen
LINE_EVERY = 10.0  # seconds between plain lines


class Terminal(Console):
    """Rich's console for texts that others wrote: names, labels and rows are no markup, and command no terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for part in super().render(renderable, options):
            yield part if part.control else Segment(visible(part.text), part.style)


class Display:
    """Progress of one command. With `quiet`, nothing is shown."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        quiet = quiet or not launcher.is_main()
        self.console = console or Terminal(stderr=True, quiet=quiet)
        self.live_screen = self.console.is_terminal and not quiet
        if not self.console.is_terminal:
            self.console.width = 160  # a file has no width of its own, and tables cut to 80 columns read badly
        self.losses: dict[str, float] = {}
        self.last_line = 0.0
        self.record: Mapping[str, Any] = {}

    def say(self, message: str) -> None:
        self.console.print(message, soft_wrap=True)

    @contextmanager
    def counting(self, unit: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar over things that are counted; gives the function that advances it."""
        if not self.live_screen:
            started = time.monotonic()
            yield lambda count: None
            self.say(f"{total:,} {unit} in {time.monotonic() - started:.1f} s")
            return
        with self._bar(unit) as bar:
            job = bar.add_task("", total=total)
            yield lambda count: bar.advance(job, count)

    @contextmanager
    def training(self, total: int, done: int) -> Iterator[None]:
        """Around the updates of a run."""
        self.losses, self.record, self.last_line = {}, {}, 0.0
        self.total, self.started, self.started_at = total, time.monotonic(), done
        if not self.live_screen:
            yield
            return
        self.bar = self._bar("updates")
        self.job = self.bar.add_task("training", total=total, completed=done)
        # Drawn when it is refreshed, not at every update: with a hundred tasks drawing costs milliseconds.
        with Live(get_renderable=self._screen, console=self.console, refresh_per_second=4):
            yield

    def updated(self, number: int, report: Update) -> None:
        for task, loss in report.loss_by_task.items():
            self.losses[task] = SMOOTHING * self.losses.get(task, loss) + (1 - SMOOTHING) * loss
        if self.live_screen:
            self.bar.update(self.job, completed=number)

    def logged(self, record: Mapping[str, Any]) -> None:
        self.record = record
        now = time.monotonic()
        if not self.live_screen and (now - self.last_line >= LINE_EVERY or record["step"] == self.total):
            self.last_line = now
            done = record["step"] - self.started_at
            left = (now - self.started) / max(done, 1) * (self.total - record["step"])
            self.say(f"update {record['step']}/{self.total}  {self._numbers()}  {clock(left)} left")

    def evaluated(self, number: int, scores: Mapping[str, Mapping[str, float]], mean: float) -> None:
        self.say(f"update {number}: mean validation score {mean:.4f} over {len(scores)} tasks")

    def scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """A table of validation scores."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("task", "validation scores"):
            table.add_column(name)
        for task, values in scores.items():
            table.add_row(Text(task), Text("  ".join(f"{name} {value:.3f}" for name, value in values.items())))
        self.console.print(table)

    def comparison(self, comparison: Comparison) -> None:
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
            self.console.print(table)
        for problem in comparison.problems:
            self.say(problem)
        if comparison.missing:
            self.say(f"not run: {listing(comparison.missing, 6)}")
        for sentence in comparison.sentences():
            self.say(sentence)

    def protocol(self, protocol: Mapping[str, Any]) -> None:
        """A study's plan: groups with their members, what it takes, what is left out."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in ("group", "role", "members", "what it is"):
            table.add_column(heading, justify="right" if heading == "members" else "left")
        for name, group in protocol["groups"].items():
            count = sum(arm["group"] == name for arm in protocol["arms"].values())
            table.add_row(Text(name), group["role"], str(count), Text(group["told"]))
        self.console.print(table)
        runs = {arm["run"] for arm in protocol["arms"].values() if arm["run"]}
        costs = protocol["costs"]
        self.say(
            f"{len(runs)} pre-finetunings, {len(protocol['targets'])} targets x {listing(protocol['labels'])} labels x "
            f"{len(protocol['seeds'])} seeds: {costs['examples']:,} examples, scoring one counted as a third"
        )
        if costs["seconds"] is not None:
            self.say(f"{clock(costs['seconds'])} at {costs['examples_per_second']:,.0f} examples/s, the speed {costs['speed']}")
        for line in protocol["left_out"]:
            self.say(f"left out: {line}")

    def plan(self, plan: RunPlan) -> None:
        """A run before it is one: a table of its tasks, and then its size, memory and time."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in ("task", "family", "rows", "set aside", "leaking", "scored", "in the run", "tokens each"):
            table.add_column(heading, justify="left" if heading in ("task", "family") else "right", overflow="fold")
        for task in plan.tasks:
            counts = (task.rows, task.set_aside, task.left_out, task.validation, task.examples)
            table.add_row(Text(task.name), task.family, *(f"{count:,}" for count in counts), f"{task.tokens:.0f}")
        self.console.print(table)
        self.say(
            f"{plan.updates:,} updates of {plan.examples_per_update:,} examples, about {plan.tokens_per_update:,} tokens each"
        )
        trained = "" if plan.trainable == plan.parameters else f", {plan.trainable:,} of them trained"
        self.say(f"{plan.parameters:,} weights{trained}, on {plan.device}")
        parts = ", ".join(f"{name} {size(count)}" for name, count in plan.memory.items())
        self.say(f"memory: about {size(sum(plan.memory.values()))} and what Python and its libraries take ({parts})")
        self.say(
            f"time: about {clock(plan.seconds)} with scoring, by {plan.timed} updates of {plan.update_seconds:.2f} s; the data "
            "is prepared. Nothing was written"
        )

    def comparison_plan(self, plan: ComparisonPlan) -> None:
        """A comparison before it is one."""
        self.say("one cell, the first task from the base arm with the most labels:")
        self.plan(plan.cell)
        for line in plan.left_out:
            self.say(f"left out: {line}")
        there = f", {plan.there:,} of them there already" if plan.there else ""
        self.say(
            f"{plan.cells:,} cells{there}; what is to be run learns from {plan.examples:,} examples, about {clock(plan.seconds)}"
        )

    def study(self, found: StudyResults) -> None:
        """A table per label count, the largest loss first, then contrasts, what is missing, and the sentences."""
        numbers = ("members", "gain", "95 % interval", "P(helps)", "detectable", "gained", "p (signs)", "restarts")
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
                    f"{one.gained} of {len(one.targets)}", f"{one.sign_p:.3f}", f"{change.mean:+.3f}" if change else "",
                    Text(listing(target.task for target in one.harmed)),
                )  # fmt: skip
            self.console.print(table)
        for problem in found.problems:
            self.say(problem)
        for line in found.missing:
            self.say(f"not run: {line}")
        for sentence in found.sentences():
            self.say(sentence)

    def _numbers(self) -> str:
        r = self.record
        if not r:
            return ""
        loss = "-" if r["loss"] is None else f"{r['loss']:.4f}"
        skipped = f"  {r['skipped']} skipped" if r["skipped"] else ""
        divergence = f"divergence {r['divergence']:.4f}  " if "divergence" in r else ""  # with R3F
        return (
            f"loss {loss}  {divergence}{r['examples_per_second']:.0f} examples/s  {r['tokens_per_second']:,.0f} tokens/s  "
            f"padding {r['padding']:.1%}{skipped}"
        )

    def _bar(self, unit: str) -> Progress:
        return Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=self.console,
        )  # fmt: skip

    def _screen(self) -> Group:
        """The bar, the numbers, and as many tasks as fit, highest loss first (1 = a uniform guess)."""
        columns = max(1, min(4, self.console.width // 36))
        fits = columns * max(3, self.console.height - 8)
        shown = sorted(self.losses.items(), key=lambda item: -item[1])[:fits]
        table = Table.grid(padding=(0, 2))
        height = -(-len(shown) // columns)
        for row in range(height):
            cells = []
            for task, loss in shown[row::height]:
                style = "green" if loss < 0.7 else "yellow" if loss < 1.0 else "red"
                cells += [Text(task[:24]), Text(f"{loss:.3f}", style=style)]
            table.add_row(*cells)
        more = len(self.losses) - len(shown)
        foot = f"loss per task, 1 = a uniform guess{f'; {more} lower ones not shown' if more > 0 else ''}" if shown else ""
        return Group(self.bar, Text(self._numbers()), Text(foot, style="dim"), table)


def effect_cells(effect: Effect | None) -> list[str]:
    """Gain, interval, probability of help, detectable effect, and the gain of every seed."""
    if effect is None:
        return ["-"] * 5
    by_seed = " ".join(f"{difference:+.3f}" for difference in effect.differences)
    if effect.low is None or effect.high is None or effect.probability is None or effect.detectable is None:
        return [f"{effect.mean:+.3f}", "-", "-", "-", by_seed]
    interval = f"{effect.low:+.3f} to {effect.high:+.3f}"
    return [f"{effect.mean:+.3f}", interval, f"{effect.probability:.2f}", f"{effect.detectable:.3f}", by_seed]


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def size(count: int) -> str:
    """Bytes as 1.2 GB or 340 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
