"""All that a run is a function of, before the first update: its tasks opened, leaking rows left out, texts turned into tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefinetune.balancing import check_balancing
from prefinetune.config import Config, make_config
from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.export import load_head
from prefinetune.families import Family
from prefinetune.families.base import plain
from prefinetune.files import digest_of
from prefinetune.leaks import Leaks, leave_out
from prefinetune.lora import adapt, check_lora
from prefinetune.mirror import origin
from prefinetune.model import MultiTask
from prefinetune.pretrained import load_backbone, read_config
from prefinetune.quarantine import Account
from prefinetune.splits import OpenTask, open_task, open_tasks
from prefinetune.start import check_tasks, model_folder, model_tokenizer
from prefinetune.store import EncodedSplit, Store, build_stores, encode_split
from prefinetune.task import Suite, Task, read_suite
from prefinetune.tokenizer import Tokenizer
from prefinetune.tracking import check_trackers
from prefinetune.update import TaskData

KEPT_OUT_ROWS = 2000  # most training rows of a kept-out task that gradients are sampled from


@dataclass(frozen=True)
class PreparedSuite:
    """A suite as one tokenizer reads it: all that a run is a function of, before the first update."""

    suite: Suite  # of the tasks that were found
    config: Config
    model: str  # hub name or folder of the weights
    tokenizer: Tokenizer
    opened: list[OpenTask]
    protected: list[OpenTask]  # further ones whose evaluation rows must not be trained on
    leaks: Leaks | None
    stores: list[Store]
    validation: dict[str, EncodedSplit]  # by task

    @property
    def families(self) -> dict[str, Family]:
        return {one.task.name: one.family for one in self.opened}

    @property
    def tasks(self) -> list[TaskData]:
        return [TaskData(one.task.name, one.family, store) for one, store in zip(self.opened, self.stores, strict=True)]

    @property
    def accounts(self) -> list[Account]:
        """What became of the rows of every split."""
        pairs = zip(self.stores, self.validation.values(), strict=True)
        return [account for store, examples in pairs for account in (store.account, examples.account)]

    def resolved(self) -> list[dict[str, Any]]:
        """Every task as it was resolved, for suite.yaml."""
        parts = zip(self.opened, self.stores, self.validation.values(), strict=True)
        return [describe(one, store, (store.account, examples.account)) for one, store, examples in parts]

    def identity(self) -> dict[str, Any]:
        """What tells the run from others."""
        stores = [(one.task.name, store.summary["digest"]) for one, store in zip(self.opened, self.stores, strict=True)]
        return {"kind": "train", "model": self.model, "settings": self.config.digest(), "data": digest_of(stores)}

    def build(self, start: str | Path, display: Display) -> MultiTask:
        """The model before the first update; `start` is the model as it was named, as a run has heads, which go on where they
        fit."""
        backbone = load_backbone(self.model, self.config.model.attention_dropout, self.config.objective.spectral_norm)
        if line := adapt(backbone, self.config.lora, self.config.seed):
            display.say(line)
        model = MultiTask(backbone, self.families, self.config.seed, self.config.objective.heads == "separate")
        for task in self.suite:
            load_head(model, task.name, Path(start))
        return model


def prepare_suite(
    suite: Suite | str | Path,
    model: str | Path,
    config: Config | Mapping[str, Any] | None,
    data_root: str | Path | None,
    cache: str | Path | None,
    against: Sequence[Task],
    skip_missing: bool,
    display: Display,
) -> PreparedSuite:
    """Open a suite's tasks, leave leaking rows out, and tokenize; arguments and errors as of `train`. Writes to the cache
    alone."""
    suite = suite if isinstance(suite, Suite) else read_suite(suite)
    if not isinstance(config, Config):
        config = make_config({"mixture": dict(suite.mixture)}, config or {})
    check_balancing(config.objective.balancing)
    check_lora(config.lora)
    check_trackers(config.train.track)
    for task in suite:
        if task.evaluation_only:
            raise InputError(f"task {task.name!r} is for evaluation only and must not be trained on; take it out of the suite")
    name = str(model_folder(model))
    tokenizer = model_tokenizer(name, suite.tasks, config.data)
    opened = open_tasks(
        suite, data_root, max_rows=config.data.max_rows, skip_missing=skip_missing, needed="train", say=display.say,
        bad_rows=config.data.bad_rows, cache=cache,
    )  # fmt: skip
    suite = Suite(suite.name, tuple(one.task for one in opened), suite.mixture)
    protected = open_tasks(against, data_root, say=display.say, bad_rows=config.data.bad_rows, cache=cache) if against else []
    opened, leaks = leave_out(opened, protected, config.data.leaks, Path(cache) if cache else None, display)
    stores = prepare(opened, tokenizer, Path(cache) if cache else None, display)
    validation = {one.task.name: encode_split(one, "validation", tokenizer, config.train.evaluation_rows) for one in opened}
    return PreparedSuite(suite, config, name, tokenizer, opened, protected, leaks, stores, validation)


def open_kept_out(
    model: str,
    against: Sequence[Task],
    suite: Suite,
    tokenizer: Tokenizer,
    config: Config,
    data_root: str | Path | None,
    cache: str | Path | None,
    display: Display,
) -> list[TaskData]:
    """The tasks that the model will be judged by as `fit` samples their gradients: some of their training rows, and no others.
    Those of the suite are there already; one that has no training rows, or that the model cannot learn, is left out and named."""
    found: list[TaskData] = []
    for task in against if config.train.affinity_every else ():
        if task.name in {one.name for one in suite}:
            continue
        try:
            check_tasks([task], read_config(model), tokenizer, model)
            one = open_task(task, data_root, KEPT_OUT_ROWS, config.data.bad_rows, cache)
            if "train" not in one.roles:
                raise InputError(f"task {task.name!r}: no train split")
            (store,) = prepare([one], tokenizer, Path(cache) if cache else None, display)
        except InputError as problem:
            display.say(f"no affinities with {task.name}: {problem}")
            continue
        found.append(TaskData(task.name, one.family, store))
    return found


def prepare(
    opened: Sequence[OpenTask],
    tokenizer: Tokenizer,
    cache: Path | None,
    display: Display,
) -> list[Store]:
    """The training store of every task; each is looked at before the first long work starts."""
    for one in opened:
        if "train" not in one.roles:
            raise InputError(f"task {one.task.name!r}: no train split; there are {', '.join(one.source.splits())}")
    total = sum(len(one.split("train")) for one in opened)
    with display.counting("rows prepared", total) as advance:
        return build_stores(opened, "train", tokenizer, cache, advance)


def describe(opened: OpenTask, store: Store, accounts: Iterable[Account]) -> dict[str, Any]:
    """A task as it was resolved, for suite.yaml."""
    task = opened.task
    return {
        "name": task.name,
        "source": plain(opened.source.describe()),
        **({"origin": where} if (where := origin(opened)) else {}),
        "splits": {role: opened.names.get(role, "held out of train") for role in opened.roles},
        opened.family.kind: opened.family.settings(),
        "tags": sorted(task.tags),
        "license": task.license,
        "cite": task.cite,
        "rows": {account.role: account.as_dict() for account in accounts},
        "store": store.summary,
    }


def report_cuts(resolved: Sequence[Mapping[str, Any]], accounts: Iterable[Account], display: Display) -> None:
    """Say what was cut or set aside, where someone may want to act on it."""
    for account in accounts:
        if line := account.told():
            display.say(line)
    for count, what in (
        ("truncated", "texts longer than the model reads"),
        ("outputs_cut", "targets longer than data.max_target_length"),
    ):
        cut = {entry["name"]: entry["store"][count] / entry["store"]["examples"] for entry in resolved}
        most = sorted((share, name) for name, share in cut.items() if share >= 0.01)[::-1]
        if most:
            shown = ", ".join(f"{name} {share:.0%}" for share, name in most[:6])
            display.say(f"{what} were cut in {len(most)} tasks: {shown}")
