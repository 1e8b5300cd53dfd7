"""The command line: a few lines per verb over a function of the library.

Results go to standard output, progress and messages to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from prefinetune.cli.shared import Cache, DataRoot, Json, Out, Resume, Seed, Settings, SkipMissing, emit, find_suite, show_table
from prefinetune.cli.tasks import tasks_app
from prefinetune.errors import InputError

app = typer.Typer(
    name="prefinetune",
    help="Pre-finetuning: many labelled datasets in, a better language model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(tasks_app, name="tasks")


@app.command()
def train(
    suite: Annotated[str, typer.Argument(help="A suite file, or names and tags of the catalogue: glue/rte,nli,all,-generation.")],
    settings: Settings = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A hub name, a model folder, or a run to go on from.")] = "",
    recipe: Annotated[str, typer.Option(help="Settings, and a model if none is given, by name: see `prefinetune recipes`.")] = "",
    out: Out = Path("runs/train"),
    against: Annotated[str, typer.Option(help="Tasks whose evaluation rows must not be trained on, as SUITE.")] = "",
    data_root: DataRoot = None,
    skip_missing: SkipMissing = False,
    cache: Cache = None,
    seed: Seed = 0,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Pre-finetune a model on many tasks at once."""
    from prefinetune.config import make_config
    from prefinetune.display import Display
    from prefinetune.recipes import recipe as find_recipe
    from prefinetune.train import train as run

    chosen = find_suite(suite)
    known = find_recipe(recipe) if recipe else None
    layers = ({"seed": seed}, known.config if known else {}, {"mixture": dict(chosen.mixture)})
    config = make_config(*layers, overrides=settings or ())
    model = model or (known.model if known else "")
    if not model:
        raise InputError("--model is missing: a hub name such as roberta-base, or a folder")
    display = Display()
    done = run(
        chosen, model, out, config=config, data_root=data_root, cache=cache, resume=resume,
        against=find_suite(against).tasks if against else (), skip_missing=skip_missing, display=display,
    )  # fmt: skip
    display.scores(done.scores)
    display.say(f"{done.updates:,} updates, {done.examples:,} examples in {done.seconds:,.0f} s; the model is in {done.model}")
    if as_json:
        emit({"out": str(done.folder), "model": str(done.model), "updates": done.updates, "examples": done.examples,
              "seconds": done.seconds, "scores": done.scores})  # fmt: skip


@app.command()
def finetune(
    task: Annotated[str, typer.Argument(help="A file with one task, or the name of one in the catalogue.")],
    settings: Settings = None,
    start: Annotated[str, typer.Option("--from", "-f", help="A run, a hub name or a model folder.")] = "",
    out: Out = Path("runs/finetune"),
    labels: Annotated[str | None, typer.Option(help="Use so many labelled examples (128), or that share of them (0.1).")] = None,
    new_head: Annotated[bool, typer.Option("--new-head", help="Do not keep the run's head for this task.")] = False,
    data_root: DataRoot = None,
    cache: Cache = None,
    seed: Seed = 0,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Fine-tune on one task; the result is a plain Transformers model."""
    from prefinetune.config import make_config
    from prefinetune.display import Display
    from prefinetune.finetune import finetune as run

    if not start:
        raise InputError("--from is missing: a run, a hub name or a model folder")
    # Only what was said goes on: the rest of the schedule follows from the number of labels.
    said = make_config({"seed": seed}, overrides=settings or ()).model_dump(exclude_unset=True)
    display = Display()
    done = run(
        task, start, out, labels=parse_labels(labels), keep_head=not new_head, config=said, data_root=data_root, cache=cache,
        resume=resume, display=display,
    )  # fmt: skip
    record = done.record
    shown = ", ".join(f"{name} {value:.4f}" for name, value in record["scores"].items())
    display.say(f"{record['task']} from {record['base']} with {record['labels']:,} labels ({record['head']} head)")
    display.say(f"{record['split']} ({record['rows']:,} rows): {shown}")
    display.say(f"the model is in {done.folder / 'model'}")
    if as_json:
        emit(record)


@app.command()
def compare(
    tasks: Annotated[
        list[str],
        typer.Argument(metavar="TASK... [SECTION.FIELD=VALUE]...", help="Files with one task each, or names; settings."),
    ],
    start: Annotated[str, typer.Option("--from", "-f", help="The pre-finetuned run (or model) that is judged.")] = "",
    base: Annotated[str, typer.Option(help="What it is judged against; what the run started from, when left out.")] = "",
    arm: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MODEL_OR_RUN", help="A control: one more starting point. May be repeated.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Numbers of labelled examples, with commas; all is all there are.")] = "32,128,all",
    seeds: Annotated[int, typer.Option(help="Labelled subsets, orders and heads; an interval takes two.")] = 5,
    grid: Annotated[str, typer.Option(help="Learning rates to choose from, on the base arm's validation.")] = "1e-5,3e-5,1e-4",
    processes: Annotated[int, typer.Option(min=1, help="Fine-tunings side by side: for small models on many cores.")] = 1,
    out: Out = Path("runs/compare"),
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Did it help? Fine-tune from several starting points, with intervals. Finished parts are not run again."""
    from prefinetune.compare import compare as run
    from prefinetune.config import make_config
    from prefinetune.display import Display

    if not start:
        raise InputError("--from is missing: a run, a hub name or a model folder")
    given = [text for text in tasks if "=" in text and not Path(text).exists()]
    found = [text for text in tasks if text not in given]
    if not found:
        raise InputError("a task is missing: a file with one task, or the name of one in the catalogue")
    said = make_config(overrides=given).model_dump(exclude_unset=True)
    display = Display()
    comparison = run(
        found, start, out, base=base or None, arms=parse_arms(arm or ()), labels=parse_counts(labels), seeds=seeds,
        grid=parse_rates(grid), config=said, data_root=data_root, cache=cache, processes=processes,
        display=display,
    )  # fmt: skip
    display.say(f"the cells are in {out}; `prefinetune report {out} --open` draws them")
    display.comparison(comparison)
    if as_json:
        from dataclasses import asdict

        emit({"out": str(out), "lines": [asdict(line) for line in comparison.lines], "missing": comparison.missing,
              "problems": comparison.problems, "sentences": comparison.sentences()})  # fmt: skip


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs, comparisons, or folders that hold some.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    show_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Draw runs and comparisons on one page that needs no network."""
    from prefinetune.report import write_report

    page = write_report(folders, out)
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    if as_json:
        emit({"out": str(page)})
    if show_it:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs under a folder: state, tasks, updates, best score, and what to type next."""
    from dataclasses import asdict

    from prefinetune.report import list_runs

    lines = list_runs(folder)
    if as_json:
        emit([asdict(line) for line in lines])
        return
    for line in lines:
        score = f", {line.best}" if line.best else ""
        print(f"{line.folder}  {line.kind}, {line.state}: {line.tasks} tasks, {line.done}{score}")
        for text in (*line.problems, *([f"next: {line.next_command}"] if line.next_command else [])):
            print(f"    {text}")
    print(f"{len(lines)} runs and comparisons", file=sys.stderr)


@app.command()
def settings(as_json: Json = False) -> None:
    """List all settings with their defaults."""
    from prefinetune.config import Config, Section

    rows = []
    for section, item in Config.model_fields.items():
        inner = item.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            rows += [(f"{section}.{name}", field.default, field.description or "") for name, field in inner.model_fields.items()]
        else:
            rows.append((section, item.default, item.description or ""))
    if as_json:
        emit({name: {"default": default, "description": text} for name, default, text in rows})
    else:
        show_table(("setting", "default", "meaning"), [(name, str(default), text) for name, default, text in rows])


@app.command()
def schema() -> None:
    """Print the JSON Schema of suite files, by which editors complete and check them."""
    from prefinetune.schema import suite_schema

    print(json.dumps(suite_schema(), indent=1, ensure_ascii=False))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show its settings, and where each comes from.")] = None,
    as_json: Json = False,
) -> None:
    """List the recipes: a model and settings under one name."""
    from prefinetune.recipes import RECIPES
    from prefinetune.recipes import recipe as find_recipe

    found = [find_recipe(name)] if name else list(RECIPES)
    if as_json:
        emit([{"name": one.name, "model": one.model, "settings": [s._asdict() for s in one.settings]} for one in found])
    elif name:
        print(f"{name}: starts from {found[0].model}")
        show_table(("setting", "value", "from"), [(s.name, str(s.value), s.origin) for s in found[0].settings])
    else:
        show_table(("recipe", "model"), [(one.name, one.model) for one in found])


@app.command()
def demo(
    out: Out = Path("demo-run"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Pre-train, pre-finetune and compare a small model on tasks mined from the documentation of installed packages."""
    from prefinetune.demo.run import run_demo
    from prefinetune.display import Display

    result = run_demo(out, seed, Display())
    if as_json:
        emit(result)


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


def parse_counts(text: str) -> list[int | None]:
    counts: list[int | None] = []
    for part in text.split(","):
        count = parse_labels(part.strip())
        if isinstance(count, float):
            raise InputError(f"--labels: {part.strip()!r} is not accepted; expected numbers such as 32,128 or all")
        counts.append(count)
    return counts


def parse_rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise InputError(f"--grid: {text!r} is not accepted; expected learning rates such as 1e-5,3e-5,1e-4")
    return rates


def parse_arms(texts: Sequence[str]) -> dict[str, str]:
    arms: dict[str, str] = {}
    for text in texts:
        name, equals, start = text.partition("=")
        if not (name and equals and start) or name in arms:
            raise InputError(f"--arm: {text!r} is not accepted; expected NAME=MODEL_OR_RUN, each name once")
        arms[name] = start
    return arms


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a fault of ours (with its traceback), 2 the user's input, 130 interrupted."""
    # Threads that spin while they wait make a step many times slower as soon as anything else runs on the machine; threads that
    # never spin, a third slower when nothing does; a short spin costs 5 % then (measured with two). Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        app(standalone_mode=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:  # Typer turns the first into the second
        code = stop.code if isinstance(stop, SystemExit) else 130
        if code == 130:
            print("interrupted; go on with --resume where a checkpoint was written", file=sys.stderr)
        sys.exit(code)
