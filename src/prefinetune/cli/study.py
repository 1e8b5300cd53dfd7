"""The verbs of studies: what differs between many pre-finetunings, and what that does to tasks with few labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefinetune.cli.shared import (
    Cache,
    DataRoot,
    Json,
    Seed,
    SkipMissing,
    complete_settings,
    complete_tasks,
    emit,
    find_suite,
    parse_arm,
    parse_counts,
    parse_rates,
)
from prefinetune.errors import InputError

if TYPE_CHECKING:
    from prefinetune.start import Start

study_app = typer.Typer(
    help="Many pre-finetunings that differ in one thing, and what that does to tasks with few labels. A study writes its "
    "protocol first, has its controls in it, goes on where it stopped when the command is given again, and tells harm first. "
    "For example: prefinetune study scale suite.yaml --targets targets.yaml --model roberta-base train.updates=2000 --budget 8h",
    short_help="Many pre-finetunings that differ in one thing, and what that does to tasks with few labels.",
    no_args_is_help=True,
)

SuiteName = Annotated[
    str,
    typer.Argument(
        help="Tasks to pre-finetune on: a suite file, or names and tags of the catalogue (glue/rte,nli,-generation).",
        autocompletion=complete_tasks,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.FIELD=VALUE]...",
        help="Settings of every pre-finetuning; `prefinetune settings` lists all. train.updates=N is needed: all make as many.",
        autocompletion=complete_settings,
    ),
]
Targets = Annotated[
    str,
    typer.Option(
        "--targets",
        "-t",
        help="Tasks to learn from few labels, none of them in SUITE: a suite file, or names and tags.",
        autocompletion=complete_tasks,
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="The untouched base: a hub name, a model folder or a run.")]
Labels = Annotated[
    str, typer.Option(help="Numbers of labelled examples (128) or shares (0.1), with commas; all is all there are.")
]
Seeds = Annotated[
    int, typer.Option(help="Fine-tunings of each target from each pre-finetuning, with other labelled rows and heads.")
]
Members = Annotated[
    int, typer.Option(min=1, help="Pre-finetunings of each kind, with other seeds: their luck is then in the interval.")
]
Controls = Annotated[
    str,
    typer.Option(
        help="What else could explain a gain, with commas: further (as long on the same texts without labels), nli (NLI tasks "
        "alone), random (as many random tasks), homogeneous (one task per update), r3f (of encoder-decoders the base, fine-tuned "
        "with R3F); or none."
    ),
]
FineTune = Annotated[
    list[str] | None,
    typer.Option("--finetune", metavar="SECTION.FIELD=VALUE", help="A setting of the fine-tunings. May be repeated."),
]
Grid = Annotated[str, typer.Option(help="Learning rates to choose from, on the base's validation rows.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="The most that the whole study may take: a time (2h, 90m) or a number of examples. What is left out is said."
    ),
]
Processes = Annotated[int, typer.Option(min=1, help="Trainings side by side: for small models on many cores.")]
Plan = Annotated[bool, typer.Option("--plan", help="Only write the protocol and show it, so that it can be committed first.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the study; what it holds is gone on with.")]

EVERY_CONTROL = "further,nli,random,homogeneous,r3f"


@study_app.command("scale")
def scale(
    suite: SuiteName,
    settings: Settings = None,
    targets: Targets = "",
    model: Model = "",
    counts: Annotated[str, typer.Option(help="Numbers of tasks, with commas; 0 is the base.")] = "0,5,10,20,40,all",
    members: Annotated[
        int, typer.Option("--orders", min=1, help="Random orders in which tasks are added, each with a seed of its own.")
    ] = 3,
    labels: Labels = "32,128,all",
    seeds: Seeds = 5,
    controls: Controls = EVERY_CONTROL,
    finetune: FineTune = None,
    grid: Grid = "1e-5,3e-5,1e-4",
    budget: Budget = None,
    processes: Processes = 1,
    plan: Plan = False,
    out: Out = Path("runs/scale"),
    data_root: DataRoot = None,
    skip_missing: SkipMissing = False,
    cache: Cache = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Does it take many tasks? Nested numbers of tasks in random orders, at the same updates, and also at the same rows."""
    run("scale", **locals())


@study_app.command("labels")
def labels(
    suite: Annotated[str, typer.Argument(help="As for the other studies; may be left out where --arm is given.")] = "",
    settings: Settings = None,
    targets: Targets = "",
    model: Model = "",
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="NAME=MODEL_OR_RUN[:objective.FIELD=VALUE]",
            help="One that is there already. Again with the same name: one more of its group. Its fine-tunings have the "
            "objective behind a colon, such as objective.r3f=1.",
        ),
    ] = None,
    labels: Labels = "16,32,64,128,256,512,0.1,all",
    seeds: Seeds = 5,
    members: Members = 3,
    controls: Controls = EVERY_CONTROL,
    finetune: FineTune = None,
    grid: Grid = "1e-5,3e-5,1e-4",
    budget: Budget = None,
    processes: Processes = 1,
    plan: Plan = False,
    out: Out = Path("runs/labels"),
    data_root: DataRoot = None,
    skip_missing: SkipMissing = False,
    cache: Cache = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """How few labels are enough? Every target from few labels to all, from each checkpoint."""
    run("labels", **locals())


@study_app.command("ablations")
def ablations(
    suite: SuiteName,
    settings: Settings = None,
    targets: Targets = "",
    model: Model = "",
    factors: Annotated[
        str, typer.Option(help="What to change, one at a time, with commas: order, scaling, sampling, r3f, heads, denoising.")
    ] = "order,scaling,sampling,r3f,heads,denoising",
    labels: Labels = "32,128,all",
    seeds: Seeds = 8,
    members: Members = 3,
    controls: Controls = EVERY_CONTROL,
    finetune: FineTune = None,
    grid: Grid = "1e-5,3e-5,1e-4",
    budget: Budget = None,
    processes: Processes = 1,
    plan: Plan = False,
    out: Out = Path("runs/ablations"),
    data_root: DataRoot = None,
    skip_missing: SkipMissing = False,
    cache: Cache = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Which part of the method matters? The base run, and it with one thing different at a time."""
    run("ablations", **locals())


@study_app.command("transfer")
def transfer(
    suite: SuiteName,
    settings: Settings = None,
    targets: Targets = "",
    model: Model = "",
    labels: Labels = "128",
    seeds: Seeds = 5,
    members: Members = 3,
    controls: Controls = "further",
    finetune: FineTune = None,
    grid: Grid = "1e-5,3e-5,1e-4",
    budget: Budget = None,
    processes: Processes = 1,
    plan: Plan = False,
    out: Out = Path("runs/transfer"),
    data_root: DataRoot = None,
    skip_missing: SkipMissing = False,
    cache: Cache = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Which task helps which? One pre-finetuning per task of the suite, and what every target gains from it."""
    run("transfer", **locals())


def run(
    kind: str,
    *,
    suite: str,
    settings: list[str] | None,
    targets: str,
    model: str,
    labels: str,
    seeds: int,
    controls: str,
    finetune: list[str] | None,
    grid: str,
    budget: str | None,
    processes: int,
    plan: bool,
    out: Path,
    data_root: Path | None,
    skip_missing: bool,
    cache: Path | None,
    seed: int,
    as_json: bool,
    **own: Any,
) -> None:
    """A study as the command line asks for it; `own` are the options that only its kind has."""
    from prefinetune.config import make_config
    from prefinetune.display import Display
    from prefinetune.study import study
    from prefinetune.tables import show_study

    if not targets:
        raise InputError("--targets is missing: the tasks to learn from few labels, as a suite file, or names and tags")
    if not model:
        raise InputError("--model is missing: the untouched base, a hub name such as roberta-base, a model folder or a run")
    if "=" in suite:  # a first setting, where there is no suite
        suite, settings = "", [suite, *(settings or ())]
    chosen = find_suite(suite) if suite else None
    config = make_config({"seed": seed, "mixture": dict(chosen.mixture) if chosen else {}}, overrides=settings or ())
    display = Display()
    found = study(
        kind, chosen, model, out, find_suite(targets).tasks, labels=parse_counts(labels), seeds=seeds,
        controls=parse_names(controls), config=config,
        finetuning=make_config(overrides=finetune or ()).model_dump(exclude_unset=True),
        grid=parse_rates(grid), budget=budget, data_root=data_root, cache=cache, processes=processes,
        skip_missing=skip_missing, plan_only=plan,
        display=display, **{name: PARSERS[name](value) if name in PARSERS else value for name, value in own.items()},
    )  # fmt: skip
    if plan:
        display.say(f"the protocol is {out / 'study.json'}: commit it, and then give the same command without --plan")
    else:
        show_study(found, display)
        display.say(f"the study is in {out}; `prefinetune report {out} --open` draws it")
    if as_json:
        emit({"out": str(out), "protocol": found.protocol, **found.as_dict()})


def parse_names(text: str) -> list[str]:
    return [] if text in ("", "none") else [part.strip() for part in text.split(",")]


def parse_sizes(text: str) -> list[int | None]:
    try:
        return [None if part.strip() == "all" else int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--counts: {text!r} is not accepted; expected numbers of tasks such as 0,5,10,all") from None


def parse_groups(texts: list[str] | None) -> dict[str, list[Start]]:
    groups: dict[str, list[Start]] = {}
    for text in texts or ():
        name, start = parse_arm(text)
        groups.setdefault(name, []).append(start)
    return groups


PARSERS: dict[str, Callable[[Any], Any]] = {"counts": parse_sizes, "factors": parse_names, "arms": parse_groups}
