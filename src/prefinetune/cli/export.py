"""The verb that takes models out of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefinetune.cli.shared import Cache, Json, emit, show_table
from prefinetune.errors import InputError


def export(
    run: Annotated[Path, typer.Argument(help="A run of train or finetune.")],
    to: Annotated[Path | None, typer.Option("--to", help="The folder to write.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only this task: trunk and head as one model.")] = None,
    every_task: Annotated[bool, typer.Option("--all", help="Besides the trunk a model per task, in DIR/tasks.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit a temperature per task on the run's validation rows.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="With --task or --all: add model.onnx, of encoders.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    push: Annotated[str, typer.Option("--push", metavar="ORG/NAME", help="Upload it to the hub; private, if it is new.")] = "",
    public: Annotated[bool, typer.Option("--public", help="With --push: for everyone to see, if it is new.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --push: write DIR, and show what would be uploaded.")] = False,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Write a run as folders that plain Transformers loads: the trunk with its heads, or one model per task."""
    from prefinetune import publish
    from prefinetune.display import Display

    if to is None:
        raise InputError("--to is missing: the folder to write")
    if (public or dry_run) and not push:
        raise InputError(f"{'--public' if public else '--dry-run'} goes with --push ORG/NAME")
    if push:
        publish.check_name(push)
    display = Display()
    publish.export(
        run, to, task=task, every_task=every_task, calibrate=calibrate, onnx=onnx, cache=cache, overwrite=overwrite,
        display=display,
    )  # fmt: skip
    files = publish.files_of(to)
    display.say(f"{to}: {len(files)} files, {sum(size for _, size in files) / 1e6:,.1f} MB")
    result = {"out": str(to), "files": dict(files)}
    if push and dry_run:
        display.say(f"would be uploaded to {push} ({'public' if public else 'private'}, if it is new):")
        if not as_json:
            show_table(("file", "bytes"), [(name, f"{size:,}") for name, size in files])
    elif push:
        result["address"] = publish.push(to, push, public)
        display.say(f"uploaded to {result['address']}")
    if as_json:
        emit(result)
