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
from prefinetune.safety import visible

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType

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


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
