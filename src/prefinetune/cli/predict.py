"""The verb that answers the rows of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from prefinetune.cli.shared import Json, emit
from prefinetune.errors import InputError


def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run of train or finetune, or what was exported of one.")],
    file: Annotated[Path, typer.Argument(help="The rows: CSV, TSV, JSON, Parquet or Arrow.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where predictions go: .parquet, .jsonl or .csv.")] = Path(
        "predictions.parquet"
    ),
    task: Annotated[str | None, typer.Option("--task", help="Which of its tasks, where there are several.")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="The model's text is in another column: text=body. May be repeated."),
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Give these, too.")] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Give them at the temperature of `export --calibrate`.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Predict every row of a file. What a killed prediction had finished is not computed again."""
    from prefinetune.display import Display
    from prefinetune.load import load, read_about
    from prefinetune.predict import predict_file

    display, loaded = Display(), load(folder, [read_about(folder).find(task)])
    try:
        done = predict_file(
            loaded, loaded.tasks[0], file, out, columns=parse_columns(columns or ()), probabilities=probabilities,
            calibrated=calibrated, overwrite=overwrite, display=display,
        )  # fmt: skip
    except KeyboardInterrupt:
        display.say("what is done is kept: the same command goes on from there")
        raise
    if as_json:
        first = [fault.record() for fault in done.first]
        emit({"out": str(done.path), "task": loaded.tasks[0], "rows": done.rows, "set_aside": done.set_aside, "first": first})


def parse_columns(texts: Sequence[str]) -> dict[str, str | tuple[str, ...]]:
    """FIELD=COLUMN, or FIELD=COLUMN,COLUMN for several that are joined, or that are the options."""
    found: dict[str, str | tuple[str, ...]] = {}
    for text in texts:
        name, equals, column = text.partition("=")
        if not (name and equals and column) or name in found:
            raise InputError(f"--columns: {text!r} is not accepted; expected FIELD=COLUMN, such as text=body, each field once")
        found[name] = tuple(column.split(",")) if "," in column else column
    return found
