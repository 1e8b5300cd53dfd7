"""What the verbs share: options, tables, JSON, and how tasks are named on a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from prefinetune.task import Suite

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.FIELD=VALUE]...", help="Settings, such as mixture.cap=20000; `prefinetune settings` lists all."
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(envvar="PREFINETUNE_DATA_ROOT", help="A mirror of hub datasets: DATA_ROOT/SLUG/SPLIT.parquet."),
]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Go on without the datasets that cannot be found.")]
Cache = Annotated[Path | None, typer.Option(envvar="PREFINETUNE_CACHE", help="Where token stores are kept.")]
Seed = Annotated[int, typer.Option(help="Of heads, orders, masks and dropout.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")]


def find_suite(text: str) -> Suite:
    """A suite file, or names, families and tags of the catalogue and tasksource:NAME, separated by commas; a pattern with a '-'
    before it is left out again."""
    from prefinetune.catalog import catalog
    from prefinetune.task import Suite, named_task, read_suite
    from prefinetune.tasksource import PREFIX

    if Path(text).suffix in (".yaml", ".yml"):
        return read_suite(text)
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
    print(json.dumps(value, ensure_ascii=False, default=str))


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for at, name in enumerate(header):
        is_number = bool(rows) and all(row[at].replace(",", "").isdigit() for row in rows)
        table.add_column(name, overflow="fold", justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def console() -> Console:
    """Standard output."""
    from rich.console import Console

    return Console(highlight=False, markup=False)
