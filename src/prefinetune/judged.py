"""What comparisons and studies say of a run, in few words: what pre-finetuning changed on each task. It reads files only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefinetune.errors import InputError, listing
from prefinetune.markdown import called

if TYPE_CHECKING:
    from prefinetune.statistics import Effect


class Finding(NamedTuple):
    """What pre-finetuning changed on a task at a number of labels."""

    task: str
    at: str
    metric: str
    base: float  # mean score from the model it started from
    score: float  # mean score from the pre-finetuned model
    effect: Effect


class Evidence(NamedTuple):
    """A comparison or a study."""

    name: str  # of its folder
    told: str  # what it is
    sentences: Sequence[str]
    findings: Sequence[Finding]
    missing: int  # planned and not done


def read_evidence(folder: Path, runs: Sequence[Path]) -> Evidence:
    """What a folder says of a run: that a comparison judges, or that is of the kind a study judges.

    Raises:
        InputError: it holds neither, or a comparison of another run.
    """
    if (folder / "comparison.json").exists():
        from prefinetune.evidence import read_comparison

        one = read_comparison(folder)
        if not judges(one.plan, runs) and not same_weights(one.plan, runs):
            start = one.plan["arms"][one.treated]["start"]
            raise InputError(f"{folder} judges {start!r}; expected a comparison of {listing(runs)}")
        findings = [
            Finding(line.task, line.at, line.metric, line.mean(one.base), line.mean(one.treated), line.effects[one.base])
            for line in one.lines
            if one.base in line.effects
        ]
        base = called(one.plan["arms"][one.base]["start"])
        told = f"a comparison with {base}: every task is fine-tuned from both, {len(one.plan['seeds'])} seeds each"
        return Evidence(folder.resolve().name, told, one.sentences(), findings, len(one.missing))
    if (folder / "study.json").exists():
        from prefinetune.study_results import read_study

        study = read_study(folder)
        readings = [reading for reading in study.readings if study.groups[reading.group].role == "main"]
        findings = []
        for reading in readings:
            for target in reading.targets:
                ours, theirs = (float(side.mean()) for side in target.means)
                findings.append(Finding(target.task, reading.at, target.metric, theirs, ours, target.effect))
        told = f"a study of the method, against {called(study.protocol['model'])}: several pre-finetunings, several seeds each"
        return Evidence(folder.resolve().name, told, study.sentences(), findings, len(study.missing))
    raise InputError(f"{folder} holds no comparison and no study; expected what `prefinetune compare` or `study` wrote")


def judges(plan: Mapping[str, Any], runs: Sequence[Path]) -> bool:
    """Whether a comparison judges one of these runs, by its place."""
    from prefinetune.report.read import starts

    return starts(plan).get(plan["treated"]) in [run.resolve() for run in runs]


def same_weights(plan: Mapping[str, Any], runs: Sequence[Path]) -> bool:
    """The same for a run that was moved."""
    from prefinetune.start import weights_digest

    return plan["arms"][plan["treated"]]["weights"] in [weights_digest(run) for run in runs]


def evidence_beside(runs: Sequence[Path]) -> list[Path]:
    """Comparisons that stand beside a run and judge it, and the study that it is a part of."""
    from prefinetune.evidence import read_plan
    from prefinetune.report.read import DAMAGE

    found = []
    for run in (run.resolve() for run in runs):
        for path in sorted(run.parent.glob("*/comparison.json")):
            try:
                if judges(read_plan(path.parent), [run]):
                    found.append(path.parent)
            except DAMAGE:  # which run it judged cannot be told, so it tells nothing of this one
                continue
        if (run.parent.parent / "study.json").exists():
            found.append(run.parent.parent)
    return found
