"""What the verbs share: options, tables, JSON, and how tasks are named on a command line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefinetune import launcher
from prefinetune.errors import InputError
from prefinetune.safety import visible

if TYPE_CHECKING:
    from prefinetune.display import Terminal
    from prefinetune.start import Start
    from prefinetune.task import Suite


# ---- what a shell completes; nothing heavy is loaded for it


def complete_tasks(incomplete: str) -> list[str]:
    """Names, families and tags of the catalogue, behind the last comma; for anything else the shell knows files."""
    from prefinetune.catalog import catalog

    before, comma, last = incomplete.rpartition(",")
    minus = "-" if last.startswith("-") else ""
    names = {"all", *(name for task in catalog() for name in (task.name, task.family.kind, *task.tags))}
    return [f"{before}{comma}{minus}{name}" for name in sorted(names) if name.startswith(last.removeprefix("-"))]


def complete_settings(incomplete: str) -> list[str]:
    from prefinetune.config import setting_names

    return [f"{name}=" for name in setting_names() if name.startswith(incomplete)]


def complete_recipes(incomplete: str) -> list[str]:
    from prefinetune.recipes import RECIPES

    return [one.name for one in RECIPES if one.name.startswith(incomplete)]


# ---- arguments and options

SuiteName = Annotated[
    str,
    typer.Argument(
        help="A suite file, or names and tags of the catalogue: glue/rte,nli,all,-generation.", autocompletion=complete_tasks
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.FIELD=VALUE]...", help="Settings, such as mixture.cap=20000; `prefinetune settings` lists all.",
        autocompletion=complete_settings,
    ),
]  # fmt: skip
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(envvar="PREFINETUNE_DATA_ROOT", help="A mirror of hub datasets: DATA_ROOT/SLUG/SPLIT.parquet."),
]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Go on without the datasets that cannot be found.")]
Cache = Annotated[Path | None, typer.Option(envvar="PREFINETUNE_CACHE", help="Where token stores are kept.")]
Seed = Annotated[int, typer.Option(help="Of heads, orders, masks and dropout.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be done, and about what time and memory it takes; writes no run.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")]

ENDLESS = 100_000  # columns: more than any row needs
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track", "--report-to", metavar="TRACKER",
        help="Also tell tensorboard, wandb, mlflow or trackio how it goes (docs/tracking.md). May be repeated.",
    ),
]  # fmt: skip
Lora = Annotated[
    str,
    typer.Option(
        metavar="r=16[,alpha=32,dropout=0.05,targets=query+value]",
        help="Train adapters beside the trunk's weights (docs/lora.md).",
    ),
]


def find_suite(text: str) -> Suite:
    """A suite file, or names, families and tags of the catalogue and tasksource:NAME, separated by commas; a pattern with a '-'
    before it is left out again."""
    from prefinetune.catalog import catalog
    from prefinetune.task import Suite, named_task, read_suite, refuse_data
    from prefinetune.tasksource import PREFIX

    if Path(text).suffix in (".yaml", ".yml"):
        return read_suite(text)
    refuse_data(text)
    tasks: dict[str, Any] = {}
    for pattern in text.split(","):
        if pattern.startswith(PREFIX):
            task = named_task(pattern)
            tasks[task.name] = task
            continue
        chosen = catalog().select(pattern.removeprefix("-"))
        if pattern.startswith("-"):
            tasks = {name: task for name, task in tasks.items() if task not in chosen.tasks}
        else:
            tasks.update({task.name: task for task in chosen if not task.evaluation_only or task.name == pattern})
    return Suite(text, tuple(tasks.values()))


def emit(value: Any) -> None:
    """A result on standard output; of several processes the main one speaks."""
    if launcher.is_main():
        is_unicode = sys.stdout.encoding.lower().startswith("utf")
        print(visible(json.dumps(value, ensure_ascii=not is_unicode, default=str)))


def wants_json() -> bool:
    """Whether standard output is for a program: then what went wrong is told there, too."""
    return "--json" in sys.argv[1:]


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output: folded to a terminal's width, a line per row elsewhere, for `grep` and its like."""
    from rich.measure import Measurement
    from rich.table import Table

    screen = console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for at, name in enumerate(header):
        is_number = bool(rows) and all(row[at].replace(",", "").isdigit() for row in rows)
        table.add_column(name, overflow="fold", justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*row)
    if not screen.is_terminal:
        screen.width = Measurement.get(screen, screen.options.update(width=ENDLESS), table).maximum
    screen.print(table)


def console() -> Terminal:
    """Standard output."""
    from prefinetune.display import Terminal

    return Terminal()


# ---- values of options


def parse_labels(text: str | None) -> int | float | None:
    if text is None or text == "all":
        return None
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise InputError(
            f"--labels: {text!r} is not accepted; expected a number such as 128, a share such as 0.1, or all"
        ) from None


def parse_trackers(names: Sequence[str] | None) -> list[str]:
    """--track as a setting: one per flag, or several with commas."""
    return [f"train.track={json.dumps([name for text in names for name in text.split(',')])}"] if names else []


def parse_lora(text: str) -> list[str]:
    """--lora as settings: r=16,targets=query+value is lora.rank=16 and lora.targets=[query, value]."""
    settings = []
    for part in filter(None, text.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        name = "rank" if name == "r" else name
        if not (equals and value) or name not in ("rank", "alpha", "dropout", "targets"):
            raise InputError(
                f"--lora: {part!r} is not accepted; expected r=16, or with more: r=16,alpha=32,dropout=0.05,targets=query+value"
            )
        settings.append(f"lora.{name}={json.dumps(value.split('+')) if name == 'targets' else value}")
    return settings


def parse_counts(text: str) -> list[int | float | None]:
    return [parse_labels(part.strip()) for part in text.split(",")]


def parse_arm(text: str) -> tuple[str, Start]:
    """NAME=START, or NAME=START:objective.FIELD=VALUE where the arm's fine-tunings have an objective of their own."""
    from prefinetune.config import make_config
    from prefinetune.start import Start

    named, *own = re.split(r":(?=[a-z_]+\.[a-z0-9_]+=)", text)
    name, _, place = named.partition("=")
    if not (name and place):
        raise InputError(f"--arm: {text!r} is not accepted; expected NAME=MODEL_OR_RUN, or NAME=MODEL_OR_RUN:objective.r3f=1")
    settings = make_config(overrides=own).model_dump(exclude_unset=True)
    if set(settings) - {"objective"}:
        raise InputError(
            f"--arm: {text!r} is not accepted; an arm may have an objective of its own (objective.r3f=1), while rows, order, "
            "updates and learning rate are the same in all"
        )
    return name, Start(place, settings.get("objective", {}))


def parse_rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise InputError(f"--grid: {text!r} is not accepted; expected learning rates such as 1e-5,3e-5,1e-4")
    return rates
