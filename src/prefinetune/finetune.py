"""One task from a run, a model name or a folder: the loop of `loop.py` on one task, then a plain Transformers model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefinetune import launcher
from prefinetune.card import write_card
from prefinetune.config import Config, TrainSettings, make_config
from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.evaluate import predict, readable
from prefinetune.export import load_head, save_task_model
from prefinetune.families import Encoded, Examples, Family
from prefinetune.files import digest_of
from prefinetune.leaks import leave_out
from prefinetune.lineage import seen_rows
from prefinetune.loop import fit
from prefinetune.lora import adapt, check_lora, save_adapter
from prefinetune.mixture import hash_key, permute
from prefinetune.model import MultiTask
from prefinetune.prepare import describe, report_cuts
from prefinetune.pretrained import hub_commit, load_backbone
from prefinetune.quarantine import Account, write_quarantine
from prefinetune.ranks import gathered
from prefinetune.results import RunFolder
from prefinetune.splits import OpenTask, open_task, spread_rows
from prefinetune.start import model_folder, model_tokenizer
from prefinetune.store import Store, build_store, encode_split
from prefinetune.task import Task, find_task
from prefinetune.tokenizer import Tokenizer
from prefinetune.tracking import check_trackers
from prefinetune.update import TaskData

DEFAULTS: Mapping[str, Any] = {
    "mixture": {"sub_batches": 8, "sub_batch_size": 4},
    "optimizer": {"weight_decay": 0.01, "warmup": 0.1},
    "train": {"checkpoint_every": None, "evaluation_rows": 2000, "patience": 5},
}
EPOCHS, LEAST_UPDATES, EVALUATIONS = 10, 200, 10  # where neither epochs nor updates are given: few labels need enough updates


@dataclass
class Tuned:
    """A fine-tuned model and how it scored."""

    folder: Path
    record: dict[str, Any]  # as in results.jsonl
    predictions: list[Any]  # on the scored split, in row order

    @property
    def score(self) -> float:
        return self.record["score"]


def finetune(
    task: Task | str | Path,
    start: str | Path,
    out: str | Path,
    *,
    labels: int | float | None = None,
    keep_head: bool = True,
    config: Config | Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> Tuned:
    """Fine-tune on one task.

    Early stopping watches the validation split; the score reported is of the test split, or, where there is none, of that
    half of the validation rows that early stopping never saw.

    Args:
        task: a Task, the name of one that ships with us, or the path of a suite file that holds one.
        start: a run's folder, a hub name or a model folder.
        out: folder of the result; out/model is the plain Transformers model.
        labels: train on so many examples (an int) or that share of them (a float below 1), stratified by label where there are
            labels, chosen by the seed; a smaller number's examples are among a larger one's.
        keep_head: start from the run's head for this task, where it has one.

    Raises:
        InputError: anything in task, data, model or settings that cannot be used.
    """
    display, name = display or Display(quiet=True), str(model_folder(start))
    prepared, examples, config = prepare_tuning(task, start, labels, config, data_root, cache, display)
    task = prepared.opened.task
    identity = {
        "kind": "finetune", "model": name, "settings": config.digest(), "data": prepared.store.manifest["digest"],
        "labels": labels, "keep_head": keep_head,
    }  # fmt: skip
    folder, resolved = RunFolder(out), describe(prepared.opened, prepared.store, prepared.accounts)
    told = {"name": task.name, "model": name, "commit": hub_commit(name), "tasks": [resolved]}
    with folder.claimed(identity, config.to_yaml(), told, resume):
        if launcher.is_main():
            write_quarantine(folder.path, prepared.accounts)
        report_cuts([resolved], prepared.accounts, display)

        learned = learn(prepared, start, examples, config, keep_head, folder, display, resume)
        save_task_model(learned.model, task.name, prepared.tokenizer, folder.path / "model")
        save_adapter(learned.model.backbone, folder.path / "adapter")
        record = {"arm": "finetune", **learned.record, "digest": digest_of(identity)}
        folder.write_predictions(task.slug, readable(prepared.opened.family, prepared.scored, learned.predictions))
        folder.add_result(record)
        write_card(folder.path, folder.path / "model", evidence=())
    return Tuned(folder.path, record, learned.predictions)


@dataclass(frozen=True)
class Prepared:
    """A task as one tokenizer reads it: all that fine-tunings of it share."""

    opened: OpenTask
    tokenizer: Tokenizer
    store: Store
    selection: Sequence[Encoded]  # for early stopping, or to choose settings by
    scored: Sequence[Encoded]
    split: str  # what the scored rows are
    accounts: list[Account]  # what became of the rows of each role

    def examples(self, labels: int | float | None, seed: int) -> Examples:
        """The training examples of a few-label subset; all where `labels` is None."""
        chosen = choose(self.store, self.opened.family, labels, seed)
        return self.store if chosen is None else [self.store[index] for index in chosen.tolist()]


def prepare_tuning(
    task: Task | str | Path,
    start: str | Path,
    labels: int | float | None,
    config: Config | Mapping[str, Any] | None,
    data_root: str | Path | None,
    cache: str | Path | None,
    display: Display,
) -> tuple[Prepared, Examples, Config]:
    """All that a fine-tuning is a function of, before the first update: the task, the examples of its few-label subset, and the
    settings with their length; arguments and errors as of `finetune`. Writes to the cache alone."""
    task = task if isinstance(task, Task) else find_task(task)
    given = config.model_dump(exclude_unset=True) if isinstance(config, Config) else dict(config or {})
    config = make_config(DEFAULTS, given)
    check_lora(config.lora)
    check_trackers(config.train.track)
    tokenizer = model_tokenizer(str(model_folder(start)), [task], config.data)
    seen = seen_rows([start], task, config.data, data_root, cache, display)
    prepared = prepare_task(task, tokenizer, config, data_root, cache, display, seen)
    examples = prepared.examples(labels, config.seed)
    return prepared, examples, with_length(config, given, len(examples))


def prepare_task(
    task: Task,
    tokenizer: Tokenizer,
    config: Config,
    data_root: str | Path | None,
    cache: str | Path | None,
    display: Display,
    seen: Mapping[str, np.ndarray] | None = None,
) -> Prepared:
    """Read and tokenize a task's splits.

    Args:
        seen: numbers of evaluation rows to leave out, by role; see `lineage.seen_rows`.

    Raises:
        InputError: the task's data cannot be used.
    """
    opened = open_task(task, data_root, config.data.max_rows, config.data.bad_rows, cache)
    if "train" not in opened.roles:
        raise InputError(f"task {task.name!r}: no train split; there are {', '.join(opened.source.splits())}")
    (opened,), _ = leave_out([opened], [], config.data.leaks, Path(cache) if cache else None, display)
    for role, rows in (seen or {}).items():
        opened = opened.without(role, rows)
    with display.counting("rows prepared", len(opened.split("train"))) as advance:
        store = build_store(opened, "train", tokenizer, Path(cache) if cache else None, advance)
    selection, scored, split, accounts = held_out(opened, tokenizer, config.train)
    return Prepared(opened, tokenizer, store, selection, scored, split, [store.account, *accounts])


@dataclass
class Learned:
    """What `learn` gives back."""

    model: MultiTask
    record: dict[str, Any]  # as in results.jsonl, but for what only the caller knows
    predictions: list[Any]


def learn(
    prepared: Prepared,
    start: str | Path,
    examples: Examples,
    config: Config,
    keep_head: bool = True,
    folder: RunFolder | None = None,
    display: Display | None = None,
    resume: bool = False,
) -> Learned:
    """Fine-tune on prepared examples, and score. Without a folder nothing is written."""
    opened, task = prepared.opened, prepared.opened.task.name
    family = opened.family
    model, kept = build(prepared, start, config, keep_head, display)
    data = [TaskData(task, family, examples)]
    watched = {task: prepared.selection} if prepared.selection else {}
    result = fit(model, prepared.tokenizer, data, watched, config, folder, display, resume)
    validation = result.scores[task][family.metric] if watched else None
    progress = result.progress
    with gathered(model.backbone):
        predictions = predict(model, prepared.tokenizer, task, prepared.scored)
    scores = family.score(predictions, prepared.scored)
    record = {
        "task": task, "family": family.kind, "base": str(start), "labels": len(examples), "seed": config.seed,
        "metric": family.metric, "score": scores[family.metric], "scores": scores, "split": prepared.split,
        "rows": len(prepared.scored), "head": "kept" if kept else "new",
        "best_update": progress.best_update or None,  # none where nothing was scored on the way
        "validation": validation, "examples": progress.examples, "updates": progress.updates,
        "seconds": round(progress.seconds, 2),
    }  # fmt: skip
    return Learned(model, record, predictions)


def build(
    prepared: Prepared, start: str | Path, config: Config, keep_head: bool, display: Display | None = None
) -> tuple[MultiTask, bool]:
    """The model before the first update, and whether its head is one that `start` has."""
    task, family = prepared.opened.task.name, prepared.opened.family
    backbone = load_backbone(str(model_folder(start)), config.model.attention_dropout, config.objective.spectral_norm)
    if (line := adapt(backbone, config.lora, config.seed)) and display:
        display.say(line)
    model = MultiTask(backbone, {task: family}, config.seed, config.objective.heads == "separate")
    return model, keep_head and load_head(model, task, Path(start))


def with_length(config: Config, given: Mapping[str, Any], num_examples: int) -> Config:
    """Where nothing was said: enough updates for few labels, evaluated ten times on the way."""
    train = dict(given.get("train", {}))
    per_update = config.mixture.sub_batches * config.mixture.sub_batch_size
    if "epochs" not in train and "updates" not in train:
        train["updates"] = max(LEAST_UPDATES, math.ceil(EPOCHS * num_examples / per_update))
    if "evaluate_every" not in train:
        updates = train.get("updates") or math.ceil(config.train.epochs * num_examples / per_update)
        train["evaluate_every"] = max(1, updates // EVALUATIONS)
    return make_config(config.model_dump(), {"train": train})


def choose(store: Store, family: Family, labels: int | float | None, seed: int) -> np.ndarray | None:
    """Positions of a few-label subset, None for all: nested (a smaller subset lies in a larger one of the same seed) and, for
    families with labels, in the proportions of the classes with at least one example each as far as the number allows.

    Raises:
        InputError: the number is not between 1 and the number of examples, nor a share between 0 and 1.
    """
    total = len(store)
    if labels is None:
        return None
    is_share = isinstance(labels, float)
    count = round(labels * total) if is_share else int(labels)
    if not 1 <= count <= total or (is_share and labels >= 1):
        raise InputError(f"labels: {labels} is not accepted; expected 1 to {total:,} examples, or a share between 0 and 1")
    order = permute(np.arange(total), total, hash_key(seed, 5))
    strata = family.strata(store.all_targets())[order]
    rank = np.zeros(total)
    size = np.zeros(total)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        rank[members], size[members] = np.arange(len(members)), len(members)
    turn = np.lexsort(((rank + 0.5) / size, rank > 0))
    return np.sort(order[turn[:count]])


def held_out(
    opened: OpenTask, tokenizer: Tokenizer, settings: TrainSettings
) -> tuple[Sequence[Encoded], Sequence[Encoded], str, list[Account]]:
    """(examples for early stopping, examples to score, what the latter are, what became of the rows of each role). Without a test
    split, the validation split is halved for them."""
    if "test" in opened.roles:
        validation = encode_split(opened, "validation", tokenizer, settings.evaluation_rows)
        test = encode_split(opened, "test", tokenizer, settings.test_rows)
        return validation, test, "test", [validation.account, test.account]
    validation = encode_split(opened, "validation", tokenizer)
    if len(validation) < 2:
        raise InputError(f"{opened.split('validation').place}: too few rows to stop early on some and score others")
    half = "validation, the half not used for early stopping"
    selection, scored = validation[::2], validation[1::2]
    return spread(selection, settings.evaluation_rows), spread(scored, settings.test_rows), half, [validation.account]


def spread(examples: Sequence[Encoded], most: int | None) -> Sequence[Encoded]:
    """At most so many examples, spread over all."""
    return examples if most is None else [examples[index] for index in spread_rows(len(examples), most).tolist()]
