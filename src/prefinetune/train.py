"""The pre-finetuning stage: a suite and a model in, a run's folder out. Its updates are made by loop.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefinetune import launcher, ranks
from prefinetune.card import write_card
from prefinetune.config import Config
from prefinetune.display import Display
from prefinetune.evaluate import readable
from prefinetune.export import save_trunk_and_heads
from prefinetune.files import digest_of
from prefinetune.leaks import evaluation_splits, split_name
from prefinetune.loop import Fit, fit
from prefinetune.lora import save_adapter
from prefinetune.model import MultiTask
from prefinetune.prepare import PreparedSuite, open_kept_out, prepare_suite, report_cuts
from prefinetune.pretrained import hub_commit
from prefinetune.quarantine import write_quarantine
from prefinetune.results import RunFolder
from prefinetune.task import Suite, Task


@dataclass
class Run:
    """A finished pre-finetuning stage."""

    folder: Path
    scores: dict[str, dict[str, float]]
    updates: int
    examples: int
    seconds: float

    @property
    def model(self) -> Path:
        """The trunk, as a plain Transformers folder."""
        return self.folder / "model"


def train(
    suite: Suite | str | Path,
    model: str | Path,
    out: str | Path,
    *,
    config: Config | Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    against: Sequence[Task] = (),
    skip_missing: bool = False,
    display: Display | None = None,
) -> Run:
    """Pre-finetune a model on a suite.

    Args:
        suite: a Suite, or the path of a suite file.
        model: a hub name, a folder, or the folder of an earlier run.
        out: the run's folder; see docs/design.md for what it holds at the end.
        config: settings that differ from the defaults and the suite's mixture; a whole Config replaces both.
        data_root: a mirror of hub datasets, DATA_ROOT/SLUG/SPLIT.parquet.
        cache: where token stores are kept.
        resume: go on with the run that `out` holds.
        against: further tasks whose evaluation rows must not be trained on, such as those the model will be judged by.
        skip_missing: go on without the datasets that cannot be found.

    Raises:
        InputError: anything in suite, data, model or settings that cannot be used.
    """
    display = display or Display(quiet=True)
    prepared = prepare_suite(suite, model, config, data_root, cache, against, skip_missing, display)
    suite, config, tokenizer = prepared.suite, prepared.config, prepared.tokenizer
    folder, identity = RunFolder(out), prepared.identity()
    if resume and len(recorded := recorded_results(folder, identity)) == len(suite):
        display.say(f"{folder.path} is complete; nothing is left to do")
        if not (folder.path / "model" / "README.md").exists():  # it was stopped just before
            write_card(folder.path, folder.path / "model", evidence=())
        last, scores = next(iter(recorded.values())), {task: record["scores"] for task, record in recorded.items()}
        return Run(folder.path, scores, last["updates"], last["examples"], last["seconds"])
    resolved = prepared.resolved()
    told = {"name": suite.name, "model": prepared.model, "commit": hub_commit(prepared.model), "tasks": resolved}
    with folder.claimed(identity, config.to_yaml(), told, resume):
        write_rows_left_out(folder, prepared)
        report_cuts(resolved, prepared.accounts, display)
        multitask = prepared.build(model, display)
        kept_out = open_kept_out(prepared.model, against, suite, tokenizer, config, data_root, cache, display)
        sampled = {task.name for task in (*prepared.tasks, *kept_out)}
        targets = [task.name for task in against if task.name in sampled]
        result = fit(
            multitask, tokenizer, prepared.tasks, prepared.validation, config, folder, display, resume, kept_out, targets
        )
        write_outcome(folder, prepared, multitask, result)
    progress = result.progress
    return Run(folder.path, result.scores, progress.updates, progress.examples, progress.seconds)


def recorded_results(folder: RunFolder, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By task, what results.jsonl holds of this very run."""
    return {record["task"]: record for record in folder.results() if record["digest"] == digest_of(identity)}


def write_rows_left_out(folder: RunFolder, prepared: PreparedSuite) -> None:
    """Which rows are not trained on: those that show evaluation rows, and those that could not be used."""
    if leaks := prepared.leaks:
        splits = evaluation_splits((*prepared.opened, *prepared.protected))
        compared = {split_name(one, role): one.digest(role) for one, role in splits}
        left_out = prepared.config.data.leaks == "drop"
        folder.write_leaks({**leaks.as_dict(), "left_out": left_out, "compared_with": compared})
    if launcher.is_main():
        write_quarantine(folder.path, prepared.accounts)


def write_outcome(folder: RunFolder, prepared: PreparedSuite, model: MultiTask, result: Fit) -> None:
    """Trunk, heads, predictions, scores and card; the scores last but for the card: they say that the rest is there."""
    families, validation, progress = prepared.families, prepared.validation, result.progress
    readables = {
        task: list(readable(families[task], validation[task], predictions))
        for task, predictions in result.evaluation.predictions.items()
    }
    readables = ranks.merged(readables, result.accelerator)
    save_trunk_and_heads(model, prepared.tokenizer, folder.path)
    save_adapter(model.backbone, folder.path / "adapter")
    for task in prepared.suite:
        folder.write_predictions(task.slug, readables[task.name])
    identity = prepared.identity()
    shared = {
        "arm": "train", "base": prepared.model, "labels": "all", "seed": prepared.config.seed, "split": "validation",
        "examples": progress.examples, "updates": progress.updates, "seconds": round(progress.seconds, 1),
        "digest": digest_of(identity),
    }  # fmt: skip
    there = recorded_results(folder, identity)
    for name, scores in result.scores.items():
        if name not in there:
            family = families[name]
            own = {"task": name, "family": family.kind, "metric": family.metric, "score": scores[family.metric]}
            folder.add_result({**own, "scores": scores, "rows": len(validation[name]), **shared})
    write_card(folder.path, folder.path / "model", evidence=())
