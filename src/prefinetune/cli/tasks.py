"""The verbs about tasks: what there is, what rows become, whether they can be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prefinetune.cli.shared import DataRoot, Json, SkipMissing, emit, find_suite, show_table

tasks_app = typer.Typer(help="What is in the catalogue, and how a task's rows reach the model.", no_args_is_help=True)


@tasks_app.command("list")
def list_tasks(
    patterns: Annotated[
        list[str] | None, typer.Argument(help="Names (glue/*), families or tags to list; all when left out.")
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
def show_task(name: Annotated[str, typer.Argument(help="A task's name.")], as_json: Json = False) -> None:
    """Show one record of the catalogue."""
    from prefinetune.catalog import catalog

    record = about(catalog()[name])
    if as_json:
        emit(record)
    else:
        import yaml

        print(yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=110).rstrip())


@tasks_app.command("preview")
def preview(
    suite: Annotated[str, typer.Argument(help="A suite file, or names and tags of the catalogue.")],
    rows: Annotated[int, typer.Option(help="Rows of each task.")] = 2,
    model: Annotated[str, typer.Option("--model", "-m", help="Also show tokens, as this model reads them.")] = "",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Show what a task's first rows become: row, example, tokens, target."""
    from prefinetune.preview import preview_task

    chosen, tokenizer = find_suite(suite), None
    if model:
        from prefinetune.config import DataSettings
        from prefinetune.train import model_tokenizer

        tokenizer = model_tokenizer(model, chosen.tasks, DataSettings())
    found = [preview_task(task, rows, tokenizer, data_root) for task in chosen]
    if as_json:
        emit(found)
        return
    for task in found:
        print(f"{task['task']} ({task['family']}): " + ", ".join(f"{n:,} {role}" for role, n in task["rows"].items()))
        for example in task["examples"]:
            print(f"  row {example['row']}")
            for index, (first, second) in enumerate(example["texts"]):
                print(f"    text {index}: {first}" + ("" if second is None else f"\n      pair: {second}"))
            print(f"    target: {example['target']}")
            for ids in example.get("tokens", ()):
                print(f"    tokens: {ids}")
            for ids in example.get("written", ()):
                print(f"    written: {ids}")


@tasks_app.command("leaks")
def leaks(
    suite: Annotated[str, typer.Argument(help="A suite file, or names and tags of the catalogue.")],
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
    from prefinetune.leaks import find_leaks, told
    from prefinetune.report.leaks import write_leaks
    from prefinetune.results import write
    from prefinetune.sources import open_tasks

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


def about(task: Any) -> dict[str, Any]:
    """A record as plain values."""
    from prefinetune.families.base import plain

    return {
        "name": task.name, "source": plain(task.source.describe()), "slug": task.slug, task.family.kind: task.family.settings(),
        "splits": dict(task.splits), "tags": sorted(task.tags), "license": task.license, "cite": task.cite,
        "evaluation_only": task.evaluation_only, "note": task.note,
    }  # fmt: skip
