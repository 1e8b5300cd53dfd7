"""The verbs about a suite that was trained on: which of its sets pull together, which hurt, and the smaller suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefinetune.cli.shared import Json, console, emit, show_table

suite_app = typer.Typer(help="A suite that was trained on: which sets help or hurt, and a smaller one.", no_args_is_help=True)
Run = Annotated[Path, typer.Argument(help="A run that was trained with train.affinity_every.")]
Targets = Annotated[
    str,
    typer.Option(help="What the suite is judged by, with commas; the run's --against, or all of its own tasks, when left out."),
]


@suite_app.command("affinity")
def affinity(run: Run, targets: Targets = "", as_json: Json = False) -> None:
    """Which tasks pull the trunk the same way, and which help or hurt the targets, as sampled during training."""
    from prefinetune.affinity import RESAMPLES, read_affinity, shown

    found = read_affinity(run, names(targets))
    if as_json:
        emit({
            "tasks": found.tasks, "kept_out": found.kept_out, "targets": found.targets, "samples": found.samples,
            "cosines": found.cosines.mean.tolist(), "transfer": {task: vars(one) for task, one in found.over_targets.items()},
            "removal": {task: vars(one) for task, one in found.removal_over_targets.items()}, "clusters": found.clusters,
            "held": found.held, "together": found.together.tolist(), "hurting": found.hurting,
            "sentences": [*found.sentences(), *found.cluster_sentences()], "problems": found.problems,
        })  # fmt: skip
        return
    worst = sorted(found.tasks, key=lambda task: found.over_targets[task].mean)
    show_table(
        ("task", "lowers the targets' losses by, to first order", "without it they would be higher by"),
        [(task, shown(found.over_targets[task]), shown(found.removal_over_targets[task])) for task in worst],
    )
    for number, (group, held) in enumerate(zip(found.clusters, found.held, strict=True), 1):
        told = f" (in {held} of {RESAMPLES} resamples)" if found.enough else ""
        console().print(f"cluster {number}{told}: {', '.join(group)}", soft_wrap=True)
    for text in (*found.sentences(), *found.cluster_sentences(), *found.problems):
        console().print(text, soft_wrap=True)


@suite_app.command("prune")
def prune(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="The suite file to write.")] = Path("smaller.yaml"),
    targets: Targets = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a suite file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write the run's suite without the sets that clearly hurt the targets; where none does, as it was."""
    from prefinetune.prune import prune as run_prune

    done = run_prune(run, out, names(targets), overwrite)
    if as_json:
        emit({"out": str(done.path), "kept": done.kept, "left_out": done.left_out, "sentences": done.affinity.sentences()})
        return
    for text in done.affinity.sentences():
        console().print(text, soft_wrap=True)
    told = f"without {', '.join(done.left_out)}" if done.left_out else "the suite as it was"
    console().print(f"{done.path}: {told}, {len(done.kept)} tasks", soft_wrap=True)
    if done.left_out:
        told = f"prefinetune compare TARGET... --from RUN-OF-{done.path.stem} --arm whole={run}"
        console().print(f"once that is trained, this judges it: {told}", soft_wrap=True)


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
