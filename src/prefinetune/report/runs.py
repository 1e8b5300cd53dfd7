"""What is in a folder, and what to type next: a line per run, comparison and study."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefinetune.errors import InputError
from prefinetune.report.read import (
    DAMAGE,
    Progress,
    Run,
    default_settings,
    explained,
    find,
    flat,
    read_progress,
    read_run,
    starts,
)
from prefinetune.study_results import read_protocol

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {"finished": "green", "damaged": "red", "planned": "cyan"}  # of states on a terminal; yellow otherwise


@dataclass(frozen=True)
class RunLine:
    """One run, comparison or study in a few words; a study stands for its runs and its comparison too."""

    folder: str
    kind: str  # train, finetune, comparison, study or unknown
    state: str  # planned, running or stopped, finished, damaged
    tasks: int
    count: int  # updates or cells that are done
    planned: int | None
    unit: str  # what is counted: updates or cells
    scores: Mapping[str, float]  # what it came to, by what it is: "mean validation score", "gain at 32 labels"
    next_command: str  # empty where none would help
    problems: tuple[str, ...]

    @property
    def done(self) -> str:
        """600 of 1,200 updates."""
        of = f" of {self.planned:,}" if self.planned is not None and self.planned != self.count else ""
        return f"{self.count:,}{of} {self.unit}"

    @property
    def best(self) -> str:
        """What it came to, in short: a score, or the gain at each label count."""
        if self.kind == "comparison":
            return ", ".join(f"{gain:+.3f} ({name.split()[2]})" for name, gain in self.scores.items())
        return ", ".join(f"{score:.3f}" for score in self.scores.values())


def list_runs(folder: str | Path) -> list[RunLine]:
    """Every run, comparison and study under a folder, parents first; an empty list where there are none.

    Raises:
        InputError: the folder does not exist or is a file.
    """
    lines, studies = [], list[Path]()
    for place, _ in find([folder]):
        if any(study in place.parents for study in studies):
            continue
        if (place / "study.json").exists():
            studies.append(place)
            try:
                lines.append(study_line(place))
            except DAMAGE as error:
                lines.append(RunLine(str(place), "study", "damaged", 0, 0, None, "cells", {}, "", (explained(error),)))
        if (place / "run.json").exists():
            lines.append(run_line(read_run(place)))
        if (place / "comparison.json").exists():
            try:
                lines.append(comparison_line(read_progress(place)))
            except DAMAGE as error:
                lines.append(RunLine(str(place), "comparison", "damaged", 0, 0, None, "cells", {}, "", (explained(error),)))
    return lines


def show_runs(lines: Sequence[RunLine], screen: Console) -> None:
    """A table on a terminal, then what is wrong with each and what to type next."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("run", "kind", "state", "tasks", "done", "score or gain"):
        table.add_column(heading, justify="right" if heading == "tasks" else "left", overflow="fold")
    for line in lines:
        state = Text(line.state, style=COLOURS.get(line.state, "yellow"))
        table.add_row(Text(line.folder), line.kind, state, str(line.tasks), line.done, line.best)
    screen.print(table)
    for line in lines:
        for text in line.problems:
            screen.print(f"{line.folder}: {text}", style="red", soft_wrap=True)
    if any(line.next_command for line in lines):
        screen.print("\nnext:", style="bold")
    for line in lines:
        if line.next_command:
            screen.print(f"  {line.next_command}", soft_wrap=True)


def run_line(run: Run) -> RunLine:
    scores = {} if run.score is None else {"score" if run.kind == "finetune" else "mean validation score": run.score}
    if run.damaged:
        command = ""
    elif not run.finished:
        command = resume_command(run)
    elif run.kind == "train":
        command = f"prefinetune compare TASK --from {quoted(run.folder)}"
    else:
        command = f"prefinetune report {quoted(run.folder)} --open"
    return RunLine(
        str(run.folder), run.kind, run.state, len(run.tasks), run.updates, run.planned, "updates", scores, command, run.problems
    )


def comparison_line(progress: Progress) -> RunLine:
    finished = progress.done >= progress.planned
    state = "finished" if finished else "running or stopped" if progress.done else "planned"
    scores = {f"gain at {at} labels": gain for at, gain in progress.gains.items()}
    if finished:
        command = f"prefinetune report {quoted(progress.folder)} --open"
    else:  # one that was started from Python has no command of its own
        start = str(starts(progress.plan).get(progress.plan["treated"], "RUN"))
        made = f"prefinetune compare TASK --from {shlex.quote(start)} --out {quoted(progress.folder)}"
        command = recorded(progress.plan) or made
    return RunLine(
        str(progress.folder), "comparison", state, len(progress.plan["tasks"]), progress.done, progress.planned, "cells",
        scores, command, (),
    )  # fmt: skip


def study_line(folder: Path) -> RunLine:
    """How far a study is; its cells are planned once all its pre-finetunings are there."""
    protocol = read_protocol(folder)
    runs = {str(arm["run"]) for arm in protocol["arms"].values() if arm["run"]}
    trained = all((folder / run / "model" / "config.json").exists() for run in runs)
    progress = read_progress(folder / "comparison") if (folder / "comparison" / "comparison.json").exists() else None
    done, planned = (progress.done, progress.planned) if progress else (0, None)
    finished = trained and progress is not None and done >= progress.planned
    begun = done or any((folder / run / "run.json").exists() for run in runs)
    state = "finished" if finished else "running or stopped" if begun else "planned"
    command = f"prefinetune report {quoted(folder)} --open" if finished else recorded(protocol)
    return RunLine(str(folder), "study", state, len(protocol["targets"]), done, planned, "cells", {}, command, ())


def resume_command(run: Run) -> str:
    """The command that goes on with a run: the one recorded in environment.json where there is one, else what its files allow to
    say. Where the tasks came from a suite file its name is not known, and SUITE or TASK stands in its place."""
    if command := recorded(run.environment):
        return command if "--resume" in shlex.split(command) else f"{command} --resume"
    model = Path(run.model)
    if model.name == "model" and (model.parent / "run.json").exists():
        model = model.parent  # a run stands for the trunk in it, and also gives its heads
    words = ["prefinetune", run.kind, ",".join(task.name for task in run.tasks)]
    if not from_catalog(run):
        words[-1] = "SUITE" if run.kind == "train" else "TASK"
    words += ["--model" if run.kind == "train" else "--from", str(model), "--out", str(run.folder)]
    if run.identity.get("labels") is not None:
        words += ["--labels", str(run.identity["labels"])]
    if run.identity.get("keep_head") is False:
        words.append("--new-head")
    defaults = default_settings()
    settings = {name: value for name, value in flat(run.config).items() if name in defaults and value != defaults[name]}
    if seed := settings.pop("seed", None):
        words += ["--seed", str(seed)]
    return shlex.join([*words, "--resume", *(f"{name}={'null' if value is None else value}" for name, value in settings.items())])


def recorded(record: Mapping[str, Any]) -> str:
    """The command that a file remembers; empty where there is none, or one that is not ours: people paste what we print."""
    try:
        words = shlex.split(str(record.get("command") or ""))
    except ValueError:  # a quote that is never closed
        return ""
    return shlex.join(words) if words[:1] == ["prefinetune"] else ""


def from_catalog(run: Run) -> bool:
    """Whether every task of the run can be named on the command line."""
    from prefinetune.catalog import catalog

    try:
        return bool(run.tasks) and all(catalog()[task.name].family.kind == task.family for task in run.tasks)
    except InputError:
        return False


def quoted(folder: Path) -> str:
    return shlex.quote(str(folder))
