"""What is in folders: every run, every comparison, every study, whatever state they were left in, as plain records.

A file that is torn, old or damaged is no reason to show nothing: what can be read is kept, and what cannot is said in `problems`.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prefinetune.affinity import FILE as AFFINITY_FILE
from prefinetune.affinity import Affinity, read_affinity
from prefinetune.config import Config
from prefinetune.errors import InputError
from prefinetune.evidence import Comparison, best_rates, planned_cells, read_comparison, read_plan
from prefinetune.families import FAMILIES
from prefinetune.files import read_lines
from prefinetune.mixture import Mixture, shares
from prefinetune.safety import is_name
from prefinetune.study_results import StudyResults, read_study

PASSED_OVER = {"cache", "stores", "checkpoints", "heads", "rows"}  # folders that hold no runs and may hold many files
ACCEPTED = (
    "the folder of a run (with run.json), of a comparison (with comparison.json), of a study (with study.json), or one that "
    "holds some"
)
SIGNS = {"run.json", "comparison.json", "study.json", "demo.json"}  # the files by which a folder is known
# What reading a damaged file as if it were whole can raise.
DAMAGE = (InputError, LookupError, TypeError, ValueError, AttributeError, OSError)


@dataclass(frozen=True)
class TaskEntry:
    """A task of a run, as suite.yaml resolved it."""

    name: str
    family: str = ""
    source: str = ""
    license: str = ""
    digest: str = ""  # of its token store
    examples: int | None = None
    tokens: int | None = None
    truncated: int | None = None
    leaking: int | None = None  # training rows left out, as they show evaluation rows
    set_aside: int | None = None  # training rows of no use


@dataclass(frozen=True)
class Point:
    """One line of metrics.jsonl; what it lacks is None."""

    step: int
    loss: float | None = None
    loss_by_task: Mapping[str, float] = field(default_factory=dict)
    examples_by_task: Mapping[str, float] = field(default_factory=dict)  # since the point before
    tokens_by_task: Mapping[str, float] = field(default_factory=dict)
    examples_per_second: float | None = None
    tokens_per_second: float | None = None
    padding: float | None = None


@dataclass(frozen=True)
class Run:
    """A folder with a run.json."""

    folder: Path
    name: str  # the folder as a person would say it
    kind: str  # train or finetune; unknown where run.json does not say
    model: str
    identity: Mapping[str, Any]  # run.json
    config: Mapping[str, Any]
    tasks: tuple[TaskEntry, ...]
    environment: Mapping[str, Any]
    points: tuple[Point, ...]
    results: tuple[Mapping[str, Any], ...]  # the last record of every task that has a score
    updates: int  # done, as metrics, checkpoints or results say
    planned: int | None
    best: float | None  # the best mean validation score a checkpoint remembers
    damaged: bool = False
    problems: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        scored = {result["task"] for result in self.results}
        return bool(scored) and (self.kind == "finetune" or scored >= {task.name for task in self.tasks})

    @property
    def state(self) -> str:
        """planned, running or stopped (files cannot tell which), finished, or damaged."""
        if self.damaged:
            return "damaged"
        if self.finished:
            return "finished"
        return "running or stopped" if self.updates else "planned"

    @property
    def score(self) -> float | None:
        """The mean over tasks of the final scores; of a run that goes on, the best mean so far."""
        scores = [result["score"] for result in self.results]
        return sum(scores) / len(scores) if scores else self.best

    @property
    def started(self) -> str:
        return str(self.environment.get("started", ""))

    @property
    def ended(self) -> str:
        """When the last result was written; empty for a run that has none."""
        return max((str(result.get("when", "")) for result in self.results), default="")

    def shares(self) -> tuple[dict[str, tuple[float, float]], bool]:
        """Per task the share of examples and of tokens, and whether they were counted, in the metrics, or are only expected."""
        examples: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for point in self.points:
            examples.update(point.examples_by_task)
            tokens.update(point.tokens_by_task)
        if not examples:
            return self.expected_shares(), False
        all_examples, all_tokens = examples.total(), tokens.total() or 1.0
        return {task: (count / all_examples, tokens[task] / all_tokens) for task, count in examples.items()}, True

    def expected_shares(self) -> dict[str, tuple[float, float]]:
        """Per task the share of examples and of tokens that its store's size and the mixture's rates let expect."""
        entries = [task for task in self.tasks if task.examples]
        mixture = self.config.get("mixture", {})
        try:
            rates = shares([task.examples or 0 for task in entries], mixture["sampling"], mixture["cap"], mixture["temperature"])
        except DAMAGE:
            return {}
        examples = [float(rate) for rate in rates]
        tokens = [rate * (task.tokens or 0) / (task.examples or 1) for rate, task in zip(examples, entries, strict=True)]
        all_examples, all_tokens = sum(examples) or 1.0, sum(tokens) or 1.0
        return {
            task.name: (mine / all_examples, own / all_tokens) for task, mine, own in zip(entries, examples, tokens, strict=True)
        }


@dataclass(frozen=True)
class Progress:
    """How far a comparison is, without its intervals, which take longer to compute."""

    folder: Path
    name: str
    plan: Mapping[str, Any]
    done: int  # cells
    planned: int
    gains: Mapping[str, float]  # label count -> mean gain over the base so far
    ended: str = ""


@dataclass(frozen=True)
class Compared:
    """A comparison with all its numbers, and how far it is."""

    progress: Progress
    comparison: Comparison

    @property
    def name(self) -> str:
        return self.progress.name


@dataclass(frozen=True)
class Studied:
    """A study with all its numbers, its pre-finetunings that were begun, and how far its comparison is."""

    name: str
    results: StudyResults
    runs: Mapping[str, Run]  # by their place in the study's folder, such as runs/0123abcd
    progress: Progress | None  # None before the comparison has begun


@dataclass(frozen=True)
class Found:
    """Everything under some folders; the runs and the comparison of a study are found there only."""

    runs: tuple[Run, ...]
    comparisons: tuple[Compared, ...]
    studies: tuple[Studied, ...]
    affinities: Mapping[Path, Affinity]  # by the folder of the run in which they were sampled
    stages: Mapping[str, Mapping[str, float]]  # folder of a demo -> seconds by stage
    problems: tuple[str, ...]


def read_folders(folders: Sequence[str | Path]) -> Found:
    """Everything under the folders, nested ones too.

    Raises:
        InputError: a folder does not exist, or there is no run and no comparison in any of them.
    """
    runs, comparisons, studies, stages, problems = [], [], list[Studied](), {}, list[str]()
    for folder, name in find(folders):
        if any(study.results.folder in folder.parents for study in studies):
            continue
        if (folder / "study.json").exists():
            try:
                studies.append(read_studied(folder, name))
            except DAMAGE as error:
                problems.append(f"{name}: the study cannot be shown ({explained(error)})")
            else:
                problems += [f"{name}: {problem}" for problem in studies[-1].results.problems]
                problems += [f"{name}/{place}: {problem}" for place, run in studies[-1].runs.items() for problem in run.problems]
        if (folder / "run.json").exists():
            run = read_run(folder, name)
            runs.append(run)
            problems += [f"{name}: {problem}" for problem in run.problems]
        if (folder / "comparison.json").exists():
            try:
                compared = Compared(read_progress(folder, name), read_comparison(folder))
            except DAMAGE as error:
                problems.append(f"{name}: the comparison cannot be shown ({explained(error)})")
            else:
                comparisons.append(compared)
                problems += [f"{name}: {problem}" for problem in compared.comparison.problems]
        if (folder / "demo.json").exists():
            try:
                seconds = json.loads((folder / "demo.json").read_text(encoding="utf-8"))["seconds"]
                stages[name] = {str(stage): float(value) for stage, value in seconds.items()}
            except DAMAGE as error:
                problems.append(f"{name}/demo.json cannot be read ({explained(error)})")
    if not runs and not comparisons and not studies and not problems:
        raise InputError(f"there is no run in {', '.join(str(folder) for folder in folders)}; expected {ACCEPTED}")
    # What the comparisons' numbers are about comes first: the pre-finetuning, then what it is compared with.
    plans = [compared.comparison.plan for compared in comparisons]
    treated = {start for plan in plans for arm, start in starts(plan).items() if arm == plan["treated"]}
    others = {start for plan in plans for start in starts(plan).values()}
    ranks = {run.folder: 0 if run.folder.resolve() in treated else 1 if run.folder.resolve() in others else 2 for run in runs}
    runs.sort(key=lambda run: (ranks[run.folder], run.started, run.name))
    affinities = read_affinities([*runs, *(run for study in studies for run in study.runs.values())], problems)
    return Found(tuple(runs), tuple(comparisons), tuple(studies), affinities, stages, tuple(problems))


def read_studied(folder: Path, name: str) -> Studied:
    """A study with its runs, each once.

    Raises:
        One of DAMAGE: the protocol cannot be read.
    """
    results = read_study(folder)
    if not isinstance(results.protocol.get("kind"), str):
        raise InputError("study.json lacks its kind")
    for group in results.groups.values():
        words = (group.told, group.role, group.series)
        if not all(isinstance(text, str) for text in words) or (group.x is not None and finite(group.x) is None):
            raise InputError(f"study.json: group {group.name!r} is damaged")
    places = dict.fromkeys(str(arm["run"]) for arm in results.protocol["arms"].values() if arm["run"])
    inside = [place for place in places if place == f"runs/{Path(place).name}" and is_name(Path(place).name)]
    runs = {place: read_run(folder / place, place) for place in inside if (folder / place / "run.json").exists()}
    begun = (folder / "comparison" / "comparison.json").exists()
    return Studied(name, results, runs, read_progress(folder / "comparison") if begun else None)


def read_affinities(runs: Sequence[Run], problems: list[str]) -> dict[Path, Affinity]:
    """Of every run in which gradients were sampled, what they say of its tasks."""
    found = {}
    for run in runs:
        if (run.folder / AFFINITY_FILE).exists():
            try:
                found[run.folder] = read_affinity(run.folder)
            except DAMAGE as error:
                problems.append(f"{run.name}: the affinities cannot be shown ({explained(error)})")
            else:
                problems += [f"{run.name}: {problem}" for problem in found[run.folder].problems]
    return found


def find(folders: Sequence[str | Path]) -> Iterator[tuple[Path, str]]:
    """(folder, name for people) of every folder that holds a run, a comparison, a study or a demo, each once, parents first.

    Raises:
        InputError: one of `folders` does not exist or is a file.
    """
    seen: set[Path] = set()
    for given in map(Path, folders):
        if not given.is_dir():
            what = "is a file" if given.exists() else "does not exist"
            raise InputError(f"{given} {what}; expected {ACCEPTED}")
        for place, inner, files in os.walk(given):
            inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in PASSED_OVER)
            folder = Path(place)
            if SIGNS & set(files) and folder.resolve() not in seen:
                seen.add(folder.resolve())
                within = folder.relative_to(given)
                yield folder, str(Path(given.resolve().name) / within)


# ---- a run


def read_run(folder: Path, name: str = "") -> Run:
    """A run's folder, whatever is left of it; never raises for what a file holds."""
    problems: list[str] = []
    identity = read_mapping(folder / "run.json", problems)
    config = read_mapping(folder / "config.yaml", problems)
    suite = read_mapping(folder / "suite.yaml", problems)
    damaged = bool(problems)
    kind = str(identity.get("kind", "unknown"))
    if identity and kind not in ("train", "finetune"):
        problems.append(f"run.json: kind {kind!r} is not known; expected train or finetune")
        damaged = True
    environment = read_mapping(folder / "environment.json", problems)
    entries = suite.get("tasks")
    tasks = tuple(read_task(entry) for entry in entries if isinstance(entry, Mapping)) if isinstance(entries, list) else ()
    points = read_points(folder / "metrics.jsonl", problems)
    results = read_results(folder / "results.jsonl", problems)
    checkpoints = sorted(folder.glob("checkpoints/step-*/state.json"))
    state = read_mapping(checkpoints[-1], problems) if checkpoints else {}
    counts = [points[-1].step if points else 0, whole(state.get("updates")) or 0]
    counts += [whole(result.get("updates")) or 0 for result in results]
    return Run(
        folder=folder,
        name=name or folder.name,
        kind=kind,
        model=str(identity.get("model", "")),
        identity=identity,
        config=config,
        tasks=tasks,
        environment=environment,
        points=points,
        results=results,
        updates=max(counts),
        planned=planned_updates(identity, config, tasks),
        best=finite(state.get("best_score")),
        damaged=damaged,
        problems=tuple(problems),
    )


def read_mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON or YAML file that should hold a mapping; an empty one, with a line in `problems`, where it does not."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read ({explained(error)})")
    else:
        if isinstance(value, dict):
            return value
        problems.append(f"{path.name}: expected a mapping, found {type(value).__name__}")
    return {}


def read_task(entry: Mapping[str, Any]) -> TaskEntry:
    store = entry.get("store")
    store = store if isinstance(store, Mapping) else {}
    rows = entry.get("rows")
    account = rows.get("train") if isinstance(rows, Mapping) else None
    account = account if isinstance(account, Mapping) else {}
    return TaskEntry(
        name=str(entry.get("name", "")),
        family=next((kind for kind in FAMILIES if kind in entry), ""),
        source=str(entry.get("source", "")),
        license=str(entry.get("license", "")),
        digest=str(store.get("digest", "")),
        examples=whole(store.get("examples")),
        tokens=whole(store.get("tokens")),
        truncated=whole(store.get("truncated")),
        leaking=whole(account.get("leak", 0)) if account else None,
        set_aside=whole(account.get("quarantined", 0)) if account else None,
    )


def read_points(path: Path, problems: list[str]) -> tuple[Point, ...]:
    """The lines of metrics.jsonl by step; of two with one step the later, which a resumed run wrote."""
    read = read_lines(path)
    found: dict[int, Point] = {}
    unusable = not_finite = 0
    for record in read.records:
        step = whole(record.get("step"))
        if step is None:
            unusable += 1
            continue
        given = record.get("loss_by_task")
        given = given if isinstance(given, Mapping) else {}
        losses = {str(task): loss for task, value in given.items() if (loss := finite(value)) is not None}
        not_finite += len(given) - len(losses)
        numbers = {key: finite(record.get(key)) for key in ("loss", "examples_per_second", "tokens_per_second", "padding")}
        examples, tokens = counted(record.get("examples_by_task")), counted(record.get("tokens_by_task"))
        found[step] = Point(step=step, loss_by_task=losses, examples_by_task=examples, tokens_by_task=tokens, **numbers)
    problems += torn_lines(path, read.torn)
    if unusable:
        problems.append(f"{path.name}: {unusable} records without a step were left out")
    if not_finite:
        problems.append(f"{path.name}: {not_finite} losses are not finite numbers and are not drawn")
    return tuple(found[step] for step in sorted(found))


def counted(value: Any) -> dict[str, float]:
    """A record's counts by task; those that are no numbers are left out."""
    pairs = value.items() if isinstance(value, Mapping) else ()
    return {str(task): count for task, given in pairs if (count := finite(given)) is not None}


def read_results(path: Path, problems: list[str]) -> tuple[Mapping[str, Any], ...]:
    """The last record of every task that has a score."""
    read = read_lines(path)
    usable = [
        {**record, "task": str(record["task"]), "score": score}
        for record in read.records
        if "task" in record and (score := finite(record.get("score"))) is not None
    ]
    problems += torn_lines(path, read.torn)
    if len(usable) < len(read.records):
        problems.append(f"{path.name}: {len(read.records) - len(usable)} records without a task or a finite score were left out")
    return tuple({record["task"]: record for record in usable}.values())


def torn_lines(path: Path, torn: Sequence[tuple[int, str]]) -> list[str]:
    return [f"{path.name}, line {number}: not a whole record, passed over" for number, _ in torn]


def planned_updates(identity: Mapping[str, Any], config: Mapping[str, Any], tasks: Sequence[TaskEntry]) -> int | None:
    """How many updates a run was meant to make; None where its files do not say."""
    try:
        train, mixture = config["train"], config["mixture"]
        if train["updates"] is not None:
            return int(train["updates"])
        sizes = [task.examples or 0 for task in tasks]
        labels = identity.get("labels")
        if identity["kind"] == "finetune" and labels is not None:
            sizes = [round(labels * sizes[0]) if isinstance(labels, float) and labels < 1 else int(labels)]
        contributions = shares(sizes, mixture["sampling"], mixture["cap"], mixture["temperature"]).tolist()
        return Mixture(
            tuple(sizes), tuple(contributions), mixture["sub_batches"], mixture["sub_batch_size"], mixture["order"],
            epochs=train["epochs"],
        ).num_updates  # fmt: skip
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return None


# ---- a comparison


def read_progress(folder: Path, name: str = "") -> Progress:
    """How far a comparison is, and its mean gain so far.

    Raises:
        InputError: there is no plan in the folder, or it is damaged.
    """
    plan = read_plan(folder)
    needed = {"base", "treated", "arms", "tasks", "labels", "seeds", "grid", "tuning_seeds"}
    if not isinstance(plan, dict) or not plan.keys() >= needed:
        lacking = needed - plan.keys() if isinstance(plan, dict) else needed
        raise InputError(f"comparison.json lacks {', '.join(sorted(lacking))}")
    keys = ("task", "labels", "arm", "seed", "learning_rate", "score")
    records = [record for record in read_lines(folder / "results.jsonl").records if all(key in record for key in keys)]
    try:
        rates = best_rates(plan, records)
        cells = {(r["task"], r["labels"], r["arm"], r["seed"], r["learning_rate"]): finite(r["score"]) for r in records}
        wanted, gains = 0, dict[str, list[float]]()
        counted = set()
        for task, at, count in planned_cells(plan):
            choosing = plan["tuning_seeds"] if len(plan["grid"]) > 1 else ()
            trials = {(task, count, plan["base"], seed, rate) for rate in plan["grid"] for seed in choosing}
            again = len(set(plan["seeds"]) & set(choosing))  # trials that are cells of the base arm as well
            wanted += len(trials) + len(plan["arms"]) * len(plan["seeds"]) - again
            rate = rates.get((task, count))
            chosen = {(task, count, arm, seed, rate) for arm in plan["arms"] for seed in plan["seeds"]}
            counted |= (trials | chosen) & cells.keys()
            pairs = [[cells.get((task, count, arm, s, rate)) for arm in (plan["base"], plan["treated"])] for s in plan["seeds"]]
            differences = [after - before for before, after in pairs if before is not None and after is not None]
            if differences:
                gains.setdefault(at, []).append(sum(differences) / len(differences))
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / 'comparison.json'} is not a plan that can be read ({explained(error)})") from None
    ended = max((str(record.get("when", "")) for record in records), default="")
    means = {at: sum(gains[at]) / len(gains[at]) for at in plan["labels"] if at in gains}
    return Progress(folder, name or folder.name, plan, len(counted), wanted, means, ended)


def starts(plan: Mapping[str, Any]) -> dict[str, Path]:
    """The folder each arm starts from; a run's folder also where the trunk in it was named."""
    found = {}
    for arm, about in plan["arms"].items():
        if isinstance(about, Mapping) and about.get("start"):
            folder = Path(str(about["start"])).resolve()
            found[arm] = folder.parent if folder.name == "model" and (folder.parent / "run.json").exists() else folder
    return found


# ---- values


def finite(value: Any) -> float | None:
    """The value where it is a finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def whole(value: Any) -> int | None:
    """The value where it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def explained(error: Exception) -> str:
    """An error in one line that says something even where its message is a bare key."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= 200 else text[:199] + "…"


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as section.field."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def default_settings() -> dict[str, Any]:
    return flat(Config().model_dump(mode="json"))  # as config.yaml has them
