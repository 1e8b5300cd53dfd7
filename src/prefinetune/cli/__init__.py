"""The command line: a few lines per verb over a function of the library.

Results go to standard output, progress and messages to standard error.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from prefinetune import launcher
from prefinetune.cli.cache import cache
from prefinetune.cli.card import card
from prefinetune.cli.env import env
from prefinetune.cli.export import export
from prefinetune.cli.predict import predict
from prefinetune.cli.shared import (
    Cache,
    DataRoot,
    DryRun,
    Json,
    Lora,
    Out,
    Resume,
    Seed,
    Settings,
    SkipMissing,
    SuiteName,
    Track,
    complete_recipes,
    complete_settings,
    complete_tasks,
    console,
    emit,
    find_suite,
    parse_arm,
    parse_counts,
    parse_labels,
    parse_lora,
    parse_rates,
    parse_trackers,
    show_table,
    wants_json,
)
from prefinetune.cli.study import study_app
from prefinetune.cli.suite import suite_app
from prefinetune.cli.tasks import tasks_app
from prefinetune.errors import InputError
from prefinetune.notice import INTERRUPTED, Preempted
from prefinetune.safety import visible, without_secrets

if TYPE_CHECKING:
    from prefinetune.display import Display
    from prefinetune.plan import RunPlan
    from prefinetune.start import Start


class Verbs(TyperGroup):
    """All verbs. Their help has room for them alone; a command line that cannot be read is told with --json, too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for one in self.params:
            if one.name in ("install_completion", "show_completion"):  # the last line of the help names it
                one.hidden = True  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if wants_json() and hasattr(error, "format_message"):  # one of Typer's own
                emit({"error": error.format_message()})
            raise


app = typer.Typer(
    name="prefinetune",
    cls=Verbs,
    help="Pre-finetuning: many labelled datasets in, a better language model out.",
    epilog="So that your shell completes verbs, options, tasks and settings: prefinetune --install-completion",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(tasks_app, name="tasks")
app.add_typer(suite_app, name="suite")
app.add_typer(study_app, name="study")


def say_version(wanted: bool) -> None:
    if wanted:
        from prefinetune import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=say_version, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Pre-finetuning: many labelled datasets in, a better language model out."""


@app.command()
def train(
    suite: SuiteName,
    settings: Settings = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A hub name, a model folder, or a run to go on from.")] = "",
    recipe: Annotated[
        str,
        typer.Option(
            help="Settings, and a model if none is given, by name: see `prefinetune recipes`.", autocompletion=complete_recipes
        ),
    ] = "",
    out: Out = Path("runs/train"),
    against: Annotated[
        str, typer.Option(help="Tasks whose evaluation rows must not be trained on, as SUITE.", autocompletion=complete_tasks)
    ] = "",
    lora: Lora = "",
    track: Track = None,
    data_root: DataRoot = None,
    skip_missing: SkipMissing = False,
    cache: Cache = None,
    seed: Seed = 0,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Pre-finetune a model on many tasks at once."""
    from prefinetune.config import make_config
    from prefinetune.display import Display
    from prefinetune.recipes import recipe as find_recipe
    from prefinetune.tables import show_scores
    from prefinetune.train import train as run

    chosen = find_suite(suite)
    known = find_recipe(recipe) if recipe else None
    layers = ({"seed": seed}, known.config if known else {}, {"mixture": dict(chosen.mixture)})
    config = make_config(*layers, overrides=[*parse_lora(lora), *parse_trackers(track), *(settings or ())])
    model = model or (known.model if known else "")
    if not model:
        raise InputError(
            "--model is missing: a hub name such as roberta-base, or a folder; or --recipe (`prefinetune recipes` lists them)"
        )
    display, others = Display(), find_suite(against).tasks if against else ()
    if dry_run:
        from prefinetune.plan import plan_train

        plan = plan_train(
            chosen, model, config=config, data_root=data_root, cache=cache, against=others, skip_missing=skip_missing,
            display=display,
        )  # fmt: skip
        return tell_plan(plan, display, as_json)
    done = run(
        chosen, model, out, config=config, data_root=data_root, cache=cache, resume=resume, against=others,
        skip_missing=skip_missing, display=display,
    )  # fmt: skip
    show_scores(done.scores, display)
    display.say(f"{done.updates:,} updates, {done.examples:,} examples in {done.seconds:,.0f} s; the model is in {done.model}")
    if as_json:
        emit({"out": str(done.folder), "model": str(done.model), "updates": done.updates, "examples": done.examples,
              "seconds": done.seconds, "scores": done.scores})  # fmt: skip


@app.command()
def finetune(
    task: Annotated[
        str, typer.Argument(help="A file with one task, or the name of one in the catalogue.", autocompletion=complete_tasks)
    ],
    settings: Settings = None,
    start: Annotated[str, typer.Option("--from", "-f", help="A run, a hub name or a model folder.")] = "",
    out: Out = Path("runs/finetune"),
    labels: Annotated[str | None, typer.Option(help="Use so many labelled examples (128), or that share of them (0.1).")] = None,
    new_head: Annotated[bool, typer.Option("--new-head", help="Do not keep the run's head for this task.")] = False,
    lora: Lora = "",
    track: Track = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    seed: Seed = 0,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fine-tune on one task; the result is a plain Transformers model."""
    from prefinetune.config import make_config
    from prefinetune.display import Display
    from prefinetune.finetune import finetune as run

    if not start:
        raise InputError("--from is missing: a run, a hub name or a model folder")
    # Only what was said goes on: the rest of the schedule follows from the number of labels.
    overrides = [*parse_lora(lora), *parse_trackers(track), *(settings or ())]
    said = make_config({"seed": seed}, overrides=overrides).model_dump(exclude_unset=True)
    display = Display()
    if dry_run:
        from prefinetune.plan import plan_finetune

        plan = plan_finetune(
            task, start, labels=parse_labels(labels), keep_head=not new_head, config=said, data_root=data_root, cache=cache,
            display=display,
        )  # fmt: skip
        return tell_plan(plan, display, as_json)
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
        typer.Argument(
            metavar="TASK... [SECTION.FIELD=VALUE]...",
            help="Files with one task each, or names; settings.",
            autocompletion=lambda incomplete: [*complete_tasks(incomplete), *complete_settings(incomplete)],
        ),
    ],
    start: Annotated[str, typer.Option("--from", "-f", help="The pre-finetuned run (or model) that is judged.")] = "",
    base: Annotated[str, typer.Option(help="What it is judged against; what the run started from, when left out.")] = "",
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL_OR_RUN[:objective.FIELD=VALUE]",
            help="A control: one more starting point. May be repeated. Its fine-tunings have the objective behind a colon, such "
            "as objective.r3f=1.",
        ),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Numbers of labelled examples (128) or shares (0.1), with commas; all is all there are.")
    ] = "32,128,all",
    seeds: Annotated[int, typer.Option(help="Labelled subsets, orders and heads; an interval takes two.")] = 5,
    grid: Annotated[str, typer.Option(help="Learning rates to choose from, on the base arm's validation.")] = "1e-5,3e-5,1e-4",
    processes: Annotated[int, typer.Option(min=1, help="Fine-tunings side by side: for small models on many cores.")] = 1,
    out: Out = Path("runs/compare"),
    data_root: DataRoot = None,
    cache: Cache = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Did it help? Fine-tune from several starting points, with intervals. Finished parts are not run again."""
    from prefinetune.compare import compare as run
    from prefinetune.config import make_config
    from prefinetune.display import Display
    from prefinetune.tables import show_comparison, show_comparison_plan

    if not start:
        raise InputError("--from is missing: a run, a hub name or a model folder")
    given = [text for text in tasks if "=" in text and not Path(text).exists()]
    found = [text for text in tasks if text not in given]
    if not found:
        raise InputError("a task is missing: a file with one task, or the name of one in the catalogue")
    said = make_config(overrides=given).model_dump(exclude_unset=True)
    display = Display()
    alike: dict[str, Any] = {
        "base": base or None, "arms": parse_arms(arm or ()), "labels": parse_counts(labels), "seeds": seeds,
        "grid": parse_rates(grid), "config": said, "data_root": data_root, "cache": cache, "display": display,
    }  # fmt: skip
    if dry_run:
        from prefinetune.plan import plan_compare

        plan = plan_compare(found, start, out, **alike)
        show_comparison_plan(plan, display)
        if as_json:
            emit(plan.as_dict())
        return
    comparison = run(found, start, out, processes=processes, **alike)
    display.say(f"the cells are in {out}; `prefinetune report {out} --open` draws them")
    show_comparison(comparison, display)
    if as_json:
        from dataclasses import asdict

        emit({"out": str(out), "lines": [asdict(line) for line in comparison.lines], "missing": comparison.missing,
              "problems": comparison.problems, "sentences": comparison.sentences()})  # fmt: skip


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs, comparisons, studies, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    show_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Draw runs, comparisons and studies on one page that needs no network."""
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
    from prefinetune.report.runs import show_runs

    if not folder.exists():
        raise InputError(f"there is no folder {folder}; `prefinetune train SUITE --model MODEL --out {folder}/NAME` begins a run")
    lines = list_runs(folder)
    if as_json:
        emit([asdict(line) for line in lines])
        return
    screen = console()
    if screen.is_terminal:
        show_runs(lines, screen)
    else:
        for line in lines:
            score = f", {line.best}" if line.best else ""
            print(visible(f"{line.folder}  {line.kind}, {line.state}: {line.tasks} tasks, {line.done}{score}"))
            for text in (*line.problems, *([f"next: {line.next_command}"] if line.next_command else [])):
                print(visible(f"    {text}"))
    print(f"{len(lines)} runs and comparisons", file=sys.stderr)


# The help lists verbs in the order in which one needs them.
app.command()(export)
app.command()(predict)
app.command()(card)


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
def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of suite files, by which editors complete and check them; with --json on one line."""
    import json

    from prefinetune.schema import suite_schema

    if as_json:
        emit(suite_schema())
    else:
        print(json.dumps(suite_schema(), indent=1))


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Show its settings, and where each comes from.", autocompletion=complete_recipes)
    ] = None,
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
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of its runs; demo-run, or demo-quick.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="All stages in a minute or two, to see that they work: the numbers say nothing.")
    ] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Pre-train, pre-finetune and compare a small model on tasks mined from the documentation of installed packages."""
    from prefinetune.demo.run import QUICK, WHOLE, run_demo
    from prefinetune.display import Display

    try:
        result = run_demo(out or Path("demo-quick" if quick else "demo-run"), seed, Display(), QUICK if quick else WHOLE)
    except Preempted as notice:
        notice.again = "the same command"
        raise
    if as_json:
        emit(result)


# ---- values of options


app.command()(cache)
app.command()(env)


def tell_plan(plan: RunPlan, display: Display, as_json: bool) -> None:
    """What a dry run came to."""
    from prefinetune.tables import show_plan

    show_plan(plan, display)
    if as_json:
        emit(plan.as_dict())


def parse_arms(texts: Sequence[str]) -> dict[str, Start]:
    arms: dict[str, Start] = {}
    for text in texts:
        name, start = parse_arm(text)
        if name in arms:
            raise InputError(f"--arm: the name {name!r} is given twice; expected each once")
        arms[name] = start
    return arms


def main() -> None:
    """Run the command line. Exit codes: 0 done, or saved when a cluster told us to stop, 1 a fault of ours (with its traceback),
    2 the user's input, 130 interrupted, and what could be saved is."""
    # Threads that spin while they wait make a step many times slower as soon as anything else runs on the machine; threads that
    # never spin, a third slower when nothing does; a short spin costs 5 % then (measured with two). Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what its encoding lacks is escaped
    try:
        app()
    except InputError as error:
        refuse(str(error))
    except Preempted as notice:
        stop(str(notice), notice.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        refuse(f"{error.filename}: the name is too long")
    except (KeyboardInterrupt, SystemExit) as ended:  # Typer turns the first into the second
        if not isinstance(ended, SystemExit) or ended.code == INTERRUPTED:
            stop(
                "interrupted: what was finished stays, and the same command goes on (train and finetune with --resume)",
                INTERRUPTED,
            )
        raise


def refuse(message: str) -> NoReturn:
    message = visible(without_secrets(message))
    print(f"error: {message}", file=sys.stderr)
    if wants_json():
        emit({"error": message})
    sys.exit(2)


def stop(message: str, code: int) -> NoReturn:
    if launcher.is_main():
        print(visible(message), file=sys.stderr)
    if wants_json():
        emit({"stopped": message})
    sys.exit(code)
