"""What a study runs, and what that takes: each pre-finetuning is a `train` of its own, shared by digest, and one `compare` does
the rest."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefinetune.catalog import catalog
from prefinetune.compare import Bench, cell_settings, compare, examples_of, label_name
from prefinetune.config import Config, ObjectiveSettings, make_config
from prefinetune.display import Display
from prefinetune.environment import environment, now
from prefinetune.errors import FieldError, InputError, listing
from prefinetune.evidence import read_finished
from prefinetune.families import Denoising
from prefinetune.families.base import plain
from prefinetune.files import digest_of, read_records, writing
from prefinetune.lineage import entries
from prefinetune.notice import Preempted
from prefinetune.pretrained import read_config
from prefinetune.sources import Files
from prefinetune.splits import OpenTask, open_task, open_tasks
from prefinetune.start import Start, as_start, model_folder, model_tokenizer, weights_digest
from prefinetune.statistics import LEVEL, POWER
from prefinetune.study_design import Design, Group
from prefinetune.study_results import whole_arms
from prefinetune.task import Suite, Task, find_task
from prefinetune.train import train
from prefinetune.workers import Job, side_by_side

TEXTS = "study/texts"  # the task of raw texts
TRIAL = 30  # updates by which speed is measured
LEAST_SECONDS = 0.05  # of a run: its record is rounded to tenths
SCORING = 1 / 3  # what scoring an example costs, in examples trained on: a forward pass without its backward pass
STATISTICS = {
    "gain": "score from a pre-finetuning minus score from the untouched base: same target, labelled rows, order, head and rate",
    "interval": f"{LEVEL:.0%} over targets, checkpoints and seeds: Student's t for each, and test rows bootstrapped",
    "signs": "two-sided sign test over targets",
    "correction": "Holm, over the targets of a group at one label count",
    "detectable": f"the true gain whose interval would exclude zero {POWER:.0%} of the time",
    "restarts": "standard deviation over seeds of the fine-tuning, and its change from the base's",
}


@dataclass(frozen=True)
class Arm:
    """A member of a group."""

    name: str
    entry: dict[str, Any]  # as the protocol has it
    config: Config | None  # None for a model or run that is there already

    @property
    def place(self) -> tuple[str, str]:
        """What decides its cells: a run or model, and an objective of its own."""
        return self.entry["run"] or self.entry["start"], repr(self.entry.get("objective"))


@dataclass
class Cells:
    """How targets are learned: what `compare` is told."""

    targets: list[Task | str | Path]
    given: dict[str, Any]  # settings
    seeds: int
    labels: list[int | float | None]
    grid: list[float]
    tuning_seeds: int
    data_root: str | Path | None
    cache: str | Path | None

    def __post_init__(self) -> None:
        self.settings, self.grid = cell_settings(self.given, self.seeds, self.labels, self.grid)
        self.tasks = [task if isinstance(task, Task) else find_task(task) for task in self.targets]
        self.names = [task.name for task in self.tasks]
        given = dict(zip(self.names, self.targets, strict=True))
        self.bench = Bench(given, self.settings, self.given, self.data_root, Path(self.cache) if self.cache else None)

    def costs(self, protocol: Mapping[str, Any], objective: Mapping[str, Any] | None = None) -> tuple[float, float]:
        """What the base arm takes, rates being chosen on it, and what every other starting point takes: in examples trained on;
        scoring one counts as a third.

        Args:
            objective: settings of an arm's own.
        """
        tuning = cells = 0.0
        noised = passes(make_config(self.settings.model_dump(), {"objective": objective or {}}).objective)
        for task in self.tasks:
            opened = open_task(task, self.data_root, self.settings.data.max_rows, self.settings.data.bad_rows, self.cache)
            total = len(opened.split("train"))
            validation, train = len(opened.split("validation")), self.settings.train
            scored = len(opened.split("test")) if "test" in opened.roles else validation // 2  # see finetune.held_out
            chosen_on = validation if "test" in opened.roles else validation - scored
            scored, chosen_on = min(scored, train.test_rows or scored), min(chosen_on, train.evaluation_rows or chosen_on)
            for count in {examples_of(asked_for(at), total) for at in protocol["labels"]}:
                if 1 <= count <= total:
                    config = self.bench.config(count, 0, self.grid[0])
                    per_update = config.mixture.sub_batches * config.mixture.sub_batch_size
                    updates = config.train.updates or math.ceil(config.train.epochs * count / per_update)
                    trained = updates * per_update * noised
                    cells += len(protocol["seeds"]) * (trained + SCORING * scored)
                    tried = len(self.grid) * len(protocol["tuned_on"]) if len(self.grid) > 1 else 0
                    tuning += tried * (trained + SCORING * (scored + chosen_on))
        return tuning + cells, cells


@dataclass
class Lab:
    """What all pre-finetunings of a study share."""

    folder: Path
    suite: Suite | None
    model: str
    config: Config  # of the base run
    cells: Cells
    processes: int
    display: Display

    def __post_init__(self) -> None:
        self.tasks = list(self.suite) if self.suite else []
        both = {task.name for task in self.tasks} & set(self.cells.names)
        if both:
            raise InputError(f"targets: {listing(sorted(both))} stand in the suite too; what is learned there is no new task")
        self.cells.bench.tokenizer(self.model)  # a task may not be one for this model
        if self.tasks:
            model_tokenizer(str(model_folder(self.model)), self.tasks, self.config.data)

    def open(self, skip_missing: bool = False) -> list[OpenTask]:
        data = self.config.data
        return open_tasks(
            self.tasks, self.cells.data_root, max_rows=data.max_rows, skip_missing=skip_missing, needed="train",
            say=self.display.say, bad_rows=data.bad_rows, cache=self.cells.cache,
        )  # fmt: skip

    def rows(self, skip_missing: bool) -> dict[str, int]:
        """Training rows by task, of those that can be found."""
        return {one.task.name: len(one.split("train")) for one in self.open(skip_missing)} if self.tasks else {}

    def protocol(self, kind: str, design: Design, rows: Mapping[str, int], members: int, budget: str | None) -> dict[str, Any]:
        """All but the members, which a budget decides."""
        around, cells = environment(), self.cells
        protocol = {
            "format": 1, "kind": kind, "model": self.model, "weights": weights_digest(self.model),
            "suite": {
                "name": self.suite.name if self.suite else "", "tasks": [task.name for task in self.tasks],
                "digest": digest_of([identity(task) for task in self.tasks]),
                "missing": [task.name for task in self.suite or () if task not in self.tasks],
            },
            "rows": rows, "targets": cells.names, "against": cells.names, "settings": self.config.model_dump(),
            "digest": self.config.digest(), "labels": list(dict.fromkeys(map(label_name, cells.labels))),
            "seeds": list(range(cells.seeds)), "members": members, "begun_with": members, "grid": sorted(cells.grid),
            "tuning_seeds": cells.tuning_seeds, "tuned_on": list(range(min(cells.tuning_seeds, cells.seeds))),
            "finetuning": cells.bench.told(), "statistics": STATISTICS,
            "groups": {
                group.name: {"told": group.told, "role": group.role, "series": group.series, "x": group.x}
                for group in design.groups
            },
            "contrasts": design.contrasts, "budget": budget, "arms": {}, "left_out": [], "costs": {}, "grown": [],
            "processes": self.processes, "command": around["command"], "started": now(), "environment": around,
        }  # fmt: skip
        return json.loads(json.dumps(protocol))

    def arms(self, design: Design, protocol: Mapping[str, Any]) -> Iterator[Arm]:
        """Every member of every group: the first of all groups, then the second."""
        for member in range(max(protocol["members"], *(len(group.given) for group in design.groups))):
            for group in design.groups:
                if group.given:
                    if member < len(group.given):
                        yield self.given(group, member)
                elif member < protocol["members"]:
                    yield self.made(group, self.config.seed + member, protocol)

    def r3f_alone(self) -> Start | None:
        """The base with R3F in its fine-tunings. Of encoder-decoders the paper found that to be as good as pre-finetuning; where
        all fine-tunings have R3F anyway it is the base itself."""
        writes = read_config(str(model_folder(self.model))).is_encoder_decoder
        if not writes or self.cells.settings.objective.r3f:
            return None
        return Start(self.model, {"r3f": self.config.objective.r3f or 1.0})

    def given(self, group: Group, member: int) -> Arm:
        name, start = f"run {member + 1}", as_start(group.given[member])
        entry: dict[str, Any] = {
            "group": group.name, "member": name, "x": group.x, "tasks": [], "settings": {}, "texts": 0, "seed": None, "run": None,
            "start": str(start.place), **({"objective": dict(start.objective)} if start.objective else {}),
        }  # fmt: skip
        weights_digest(start.place)  # its errors are the clear ones
        return Arm(f"{group.name} · {name}", entry, None)

    def made(self, group: Group, seed: int, protocol: Mapping[str, Any]) -> Arm:
        variant = group.member(seed)
        config = make_config(self.config.model_dump(), variant.settings, {"seed": seed})
        read = self.tasks if variant.texts else [task for task in self.tasks if task.name in variant.tasks]
        digest = digest_of([
            protocol["weights"], [identity(task) for task in read], list(variant.tasks), variant.texts, config.digest(),
            protocol["against"],
        ])  # fmt: skip
        entry = {
            "group": group.name, "member": f"seed {seed}", "x": group.x, "tasks": list(variant.tasks),
            "settings": plain(dict(variant.settings)), "texts": variant.texts, "seed": seed, "run": f"runs/{digest}",
            "start": self.model,
        }  # fmt: skip
        return Arm(f"{group.name} · seed {seed}", entry, config)

    def cost(self, arm: Arm) -> float:
        """What a pre-finetuning takes, in examples trained on. A noised pass costs what a clean one does."""
        if arm.config is None:
            return 0.0
        mixture, objective, training = arm.config.mixture, arm.config.objective, arm.config.train
        assert training.updates
        scored = (training.evaluation_rows or 0) * max(1, len(arm.entry["tasks"]))  # at most
        return training.updates * mixture.sub_batches * mixture.sub_batch_size * passes(objective) + SCORING * scored

    def speed(self, known: Mapping[str, Any] | None) -> tuple[float, str]:
        """(examples per second of the whole machine, how that is known).

        Raises:
            InputError: there is nothing to measure it by.
        """
        runs = {arm["run"] for arm in known["arms"].values() if arm["run"]} if known else set()
        done = [read_records(self.folder / run / "results.jsonl")[-1] for run in runs if finished(self.folder / run)]
        if known and done:
            seconds = sum(max(one["seconds"], LEAST_SECONDS) for one in done)
            rate = sum(one["examples"] for one in done) / seconds * known["processes"]
            return rate, f"of {len(done)} finished runs, {known['processes']} side by side"
        if not self.tasks:
            raise InputError("--budget: a time needs a run to measure speed by; give a number of examples")
        self.display.say(f"measuring speed: {TRIAL} updates of the base run")
        train_settings = {"updates": TRIAL, "log_every": TRIAL // 2, "checkpoint_every": None, "evaluate_every": None,
                          "evaluation_rows": 1}  # fmt: skip
        config = make_config(self.config.model_dump(), {"train": train_settings})
        names = [task.name for task in self.tasks]
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder) / f"trial {number + 1}" for number in range(self.processes)]
            trials = [Job(place.name, place, self.training(place, names, 0, config, self.cells.names).run) for place in places]
            for problem in side_by_side(trials, self.processes, Display(quiet=True)).values():
                raise problem
            rate = sum(read_records(place / "metrics.jsonl")[-1]["examples_per_second"] for place in places)
        return rate, f"of the second half of {TRIAL} updates of the base run, {self.processes} side by side"

    def training(self, run: Path, names: Sequence[str], texts: int, config: Config, against: Sequence[str]) -> Training:
        """The call of `train` that an arm stands for."""
        tasks = [task for task in self.tasks if task.name in names] + ([self.texts(texts)] if texts else [])
        shielded = [given for given, name in zip(self.cells.targets, self.cells.names, strict=True) if name in against]
        return Training(
            run, self.suite.name if self.suite else "", tuple(map(portable, tasks) if self.processes > 1 else tasks), self.model,
            config, tuple(shielded), self.cells.data_root, self.cells.cache,
        )  # fmt: skip

    def texts(self, every: int) -> Task:
        """The distinct texts of the suite's training rows as a task without labels, or one in so many of them."""
        path = self.folder / "texts" / f"one-in-{every}.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_texts(self.open(), path, every)
        return Task(TEXTS, Files({"train": str(path)}), Denoising("text"))

    def whole_arms(self, protocol: Mapping[str, Any]) -> set[str]:
        """Arms that have all their cells."""
        folder = self.folder / "comparison"
        return whole_arms(protocol, read_finished(folder)) if (folder / "comparison.json").exists() else set()

    def pre_finetune(self, protocol: Mapping[str, Any]) -> None:
        """Run the pre-finetunings that are not finished.

        Raises:
            InputError: none can be run; with the reason of the first.
            Preempted: we were told to go.
        """
        arms: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for name, arm in protocol["arms"].items():
            if arm["run"]:
                arms.setdefault(arm["run"], (name, arm))
        jobs, whole = [], self.whole_arms(protocol)
        for run, (name, arm) in arms.items():
            place = self.folder / run
            if arm["cells"] not in whole and not finished(place):
                config = make_config(self.config.model_dump(), arm["settings"], {"seed": arm["seed"]})
                jobs.append(Job(name, place, self.training(place, arm["tasks"], arm["texts"], config, protocol["against"]).run))
        if not jobs:
            return
        self.display.say(f"{len(jobs)} of {len(arms)} pre-finetunings are to be run, {min(self.processes, len(jobs))} at a time")
        try:
            failed = side_by_side(jobs, self.processes, self.display)
        except Preempted as stop:
            raise Preempted(stop.done, stop.by, again="the same command") from None
        if len(failed) == len(arms):
            raise next(iter(failed.values()))

    def compare(self, protocol: Mapping[str, Any]) -> None:
        """One comparison over all arms whose run is finished; one that has all its cells stays as it is, without its weights."""
        starts: dict[str, str | Start] = {}
        for name, arm in protocol["arms"].items():
            if arm["cells"] == name:
                if arm["run"] is None:
                    starts[name] = Start(arm["start"], arm.get("objective", {}))
                elif finished(self.folder / arm["run"]):
                    starts[name] = str(self.folder / arm["run"])
        if not starts and self.whole_arms(protocol):
            return
        (judged, start), *others = starts.items()
        cells = self.cells
        compare(
            cells.targets, start, self.folder / "comparison", base=self.model, treated=judged, arms=dict(others),
            labels=[asked_for(at) for at in protocol["labels"]], seeds=len(protocol["seeds"]), grid=cells.grid,
            tuning_seeds=len(protocol["tuned_on"]), config=cells.given, data_root=cells.data_root, cache=cells.cache,
            processes=self.processes, display=self.display,
        )  # fmt: skip


@dataclass(frozen=True)
class Training:
    """A pre-finetuning that may run in another process."""

    folder: Path
    name: str
    tasks: tuple[Task | str | Path, ...]
    model: str
    config: Config
    against: tuple[Task | str | Path, ...]
    data_root: str | Path | None
    cache: str | Path | None

    def run(self, display: Display | None = None) -> None:
        tasks, against = (
            [one if isinstance(one, Task) else find_task(one) for one in each] for each in (self.tasks, self.against)
        )
        train(
            Suite(self.name or "texts", tuple(tasks)), self.model, self.folder, config=self.config, data_root=self.data_root,
            cache=self.cache, resume=True, against=against, display=display,
        )  # fmt: skip
        # Three times the model each, and nothing goes on from them.
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)


def passes(objective: ObjectiveSettings) -> float:
    """Of an example that is trained on: one, and for those that R3F reads with noise another."""
    return 1 + (objective.r3f_share if objective.r3f else 0.0)


def finished(run: Path) -> bool:
    """Whether a pre-finetuning has come to its end: its model is there, and the scores of all its tasks."""
    return (run / "model" / "config.json").exists() and len(read_records(run / "results.jsonl")) >= len(entries(run))


def portable(task: Task | str | Path) -> Task | str | Path:
    """A task as it travels to another process: one whose fields are functions goes by its name in the catalogue.

    Raises:
        InputError: it has none there.
    """
    if not isinstance(task, Task) or all(map(has_a_place, task.family.fields())):
        return task
    if {one.name: one for one in catalog()}.get(task.name) == task:
        return task.name
    raise InputError(
        f"task {task.name!r}: its fields are functions that no module names, and do not travel to other processes; give them as "
        "functions of a module, or the task as a suite file"
    )


def has_a_place(field: Any) -> bool:
    """Whether another process finds what a field is made of: a name, or a function at the top of a module."""
    parts = field if isinstance(field, tuple) else (field,)
    return all(not callable(part) or (part.__module__ != "__main__" and part.__qualname__.isidentifier()) for part in parts)


def identity(task: Task) -> Any:
    """What tells two tasks apart, but for what their rows say."""
    return plain([task.name, task.source.describe(), task.family.kind, task.family.settings(), dict(task.splits)])


def asked_for(name: str) -> int | float | None:
    """The label count that a name stands for; see `compare.label_name`."""
    return None if name == "all" else float(name.removesuffix(" %")) / 100 if name.endswith("%") else int(name)


def write_texts(opened: Sequence[OpenTask], path: Path, every: int) -> None:
    """Write the distinct texts that models read of the training rows, or one in so many of them, as a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet
    from xxhash import xxh64_intdigest

    seen: set[int] = set()
    beside, schema = writing(path), pa.schema({"text": pa.string()})
    with parquet.ParquetWriter(beside, schema) as file:
        for one in opened:
            for _, rows in one.split("train").chunks():
                found = []
                for row in rows:
                    try:
                        pairs = one.family.example(row).texts
                    except FieldError:  # a row that cannot be used in the task either
                        continue
                    for text in (text for pair in pairs for text in pair if text and text.strip()):
                        digest = xxh64_intdigest(text.encode())
                        if digest not in seen and digest % every == 0:
                            found.append(text)
                        seen.add(digest)
                file.write_table(pa.table({"text": found}, schema))
    beside.replace(path)
