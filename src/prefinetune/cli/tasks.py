"""The verbs about tasks: what there is, what rows become, whether they can be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefinetune.cli.shared import DataRoot, Json, SkipMissing, SuiteName, complete_tasks, console, emit, find_suite, show_table

if TYPE_CHECKING:
    from prefinetune.task import Suite
    from prefinetune.tokenizer import Tokenizer

tasks_app = typer.Typer(help="Our datasets and yours: what there is, what rows become, what leaks.", no_args_is_help=True)


@tasks_app.command("list")
def list_tasks(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(help="Names (glue/*), families or tags to list; all when left out.", autocompletion=complete_tasks),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the catalogue."""
    from prefinetune.catalog import catalog

    found = catalog().select(*(patterns or ["all"]))
    if as_json:
        emit([about(task) for task in found])
        return
    rows = [
        (
            task.name,
            task.family.kind,
            ", ".join(sorted(task.tags)),
            "evaluation only" if task.evaluation_only else "",
            task.license,
        )
        for task in found
    ]
    show_table(("task", "family", "tags", "", "licence"), rows)
    print(f"{len(rows)} tasks", file=sys.stderr)


@tasks_app.command("show")
def show_task(
    name: Annotated[str, typer.Argument(help="A task's name.", autocompletion=complete_tasks)], as_json: Json = False
) -> None:
    """Show one record of the catalogue."""
    from prefinetune.catalog import catalog

    record = about(catalog()[name])
    if as_json:
        emit(record)
    else:
        import yaml

        print(yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=110).rstrip())


@tasks_app.command("infer")
def infer(
    folder: Annotated[Path, typer.Argument(help="A folder of CSV, TSV, JSON, JSON lines, Parquet or Arrow files.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The suite file; FOLDER/suite.yaml when left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a suite file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Propose a suite file for a folder of your own files, with reasons, to be reviewed."""
    from prefinetune.infer import infer_suite
    from prefinetune.tables import show_inferred

    found = infer_suite(folder)
    path = found.write(out or folder / "suite.yaml", overwrite)
    if as_json:
        emit({"out": str(path), **found.as_dict()})
        return
    show_inferred(found, console())
    print(f"{path} is to be reviewed; then `prefinetune tasks preview {path}`", file=sys.stderr)


@tasks_app.command("check")
def check(
    suite: SuiteName,
    model: Annotated[str, typer.Option("--model", "-m", help="Also whether this model can learn them, and what it cuts.")] = "",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Put every row of every split through its adapter, without a model; exit code 2 where a task cannot be used."""
    from dataclasses import asdict

    from prefinetune.check import check_suite, show_reports

    chosen = find_suite(suite)
    reports = check_suite(chosen, data_root, tokenizer_for(model, chosen))
    if as_json:
        emit([{**asdict(one), "ok": one.ok} for one in reports])
    else:
        show_reports(reports, console())
    if not all(one.ok for one in reports):
        raise typer.Exit(2)


@tasks_app.command("preview")
def preview(
    suite: SuiteName,
    rows: Annotated[int, typer.Option(help="Rows of each task.")] = 2,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Also show tokens and their number, as this model reads them.")
    ] = "",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Show what a task's rows become: row, example, tokens, answer; how long texts are, and how frequent labels."""
    from prefinetune.preview import preview_task, show_preview

    chosen = find_suite(suite)
    tokenizer = tokenizer_for(model, chosen)
    found = [preview_task(task, rows, tokenizer, data_root) for task in chosen]
    if as_json:
        emit(found)
        return
    for task in found:
        show_preview(task, console())


@tasks_app.command("mirror")
def mirror(
    suite: SuiteName,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The mirror, for --data-root on machines without the hub.")],
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Write datasets of the hub to a folder, as SLUG/SPLIT.parquet; what is there already is not fetched again."""
    from collections import Counter

    from prefinetune.display import Display
    from prefinetune.mirror import mirror as write_mirror

    found = write_mirror(find_suite(suite), folder, Display().say, data_root)
    counts = Counter(one.status for one in found)
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + f"; the mirror is {folder}", file=sys.stderr)
    if as_json:
        emit([one.as_dict() for one in found])
    if counts["failed"]:
        raise typer.Exit(2)


@tasks_app.command("leaks")
def leaks(
    suite: SuiteName,
    against: Annotated[str, typer.Option(help="Further tasks whose evaluation rows must not be trained on.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for leaks.json (also a drop list) and leaks.html.")
    ] = None,
    ngram: Annotated[int, typer.Option(min=2, help="Words in an n-gram.")] = 13,
    share: Annotated[float, typer.Option(help="Of a text's n-grams that must stand in another.")] = 0.5,
    data_root: DataRoot = None,
    skip_missing: SkipMissing = False,
    as_json: Json = False,
) -> None:
    """Find training rows that show evaluation rows, within a task and across tasks. Training leaves them out by itself."""
    from prefinetune.display import Display
    from prefinetune.files import write
    from prefinetune.leaks import find_leaks, told
    from prefinetune.report.leaks import write_leaks
    from prefinetune.splits import open_tasks

    display = Display()
    opened = open_tasks(find_suite(suite), data_root, skip_missing=skip_missing, say=display.say)
    others = open_tasks(find_suite(against), data_root, say=display.say) if against else []
    with display.counting(
        "rows compared", sum(len(one.split(role)) for one in (*opened, *others) for role in one.roles)
    ) as advance:
        found = find_leaks(opened, others, ngram, share, advance)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write(out / "leaks.json", json.dumps(found.as_dict(), ensure_ascii=False))
        write_leaks(found, suite, out / "leaks.html")
        display.say(f"{out / 'leaks.html'} shows pairs; {out / 'leaks.json'}, as overlap-NAME.json in a mirror, is a drop list")
    if as_json:
        emit(found.as_dict())
        return
    leaking = [one for one in found.overlaps if one.rows]
    if leaking:
        show_table(
            ("training task", "evaluation split", "exact", "norm.", "n-gram", "evaluation rows"),
            [
                (one.task, f"{one.against}/{one.role}", f"{one.exact:,}", f"{one.normalised:,}", f"{one.ngram:,}",
                 f"{one.evaluation_rows:,} of {one.evaluation_size:,}")
                for one in leaking
            ],
        )  # fmt: skip
    if sharing := len(found.overlaps) - len(leaking):
        display.say(f"{sharing} more pairs of splits have contexts or other texts in common, which is no leak; --out shows them")
    display.say(told(found, left_out=None))


def tokenizer_for(model: str, suite: Suite) -> Tokenizer | None:
    """A model's tokenizer, when it can learn these tasks; None without a model."""
    if not model:
        return None
    from prefinetune.config import DataSettings
    from prefinetune.start import model_tokenizer

    return model_tokenizer(model, suite.tasks, DataSettings())


def about(task: Any) -> dict[str, Any]:
    """A record as plain values."""
    from prefinetune.families.base import plain

    return {
        "name": task.name, "source": plain(task.source.describe()), "slug": task.slug, task.family.kind: task.family.settings(),
        "splits": dict(task.splits), "tags": sorted(task.tags), "license": task.license, "cite": task.cite,
        "evaluation_only": task.evaluation_only, "note": task.note,
    }  # fmt: skip
