"""Records: a Task says where rows are and what kind of problem they pose; a Suite is tasks and how they are mixed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from prefinetune.config import make_config
from prefinetune.errors import InputError, listing, nearest
from prefinetune.families import FAMILIES, Family
from prefinetune.sources import Files, Hub, Rows, Source

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+\-]*(/[A-Za-z0-9][A-Za-z0-9_+\-]*)*")


@dataclass(frozen=True)
class Task:
    """A dataset and the problem it poses.

    `splits` maps train, validation and test to the source's own names where they differ; a role the source lacks is left out.
    Without a validation split a fixed part of the training rows is held out. `evaluation_only` keeps a task out of training
    mixtures. `note` is for people.
    """

    name: str
    source: Source
    family: Family
    splits: Mapping[str, str] = field(default_factory=dict)
    tags: Collection[str] = frozenset()
    license: str = "unknown"
    cite: str = ""
    evaluation_only: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise InputError(
                f"task name {self.name!r} is not accepted; expected letters, digits, '_', '-', '+' and '/' between them"
            )
        unknown = set(self.splits) - {"train", "validation", "test"}
        if unknown:
            raise InputError(
                f"task {self.name!r}, splits: {listing(sorted(unknown))} not accepted; expected train, validation, test"
            )
        object.__setattr__(self, "tags", frozenset(self.tags))

    @property
    def slug(self) -> str:
        """The task's folder in a mirror: glue/rte -> glue-rte."""
        return self.name.replace("/", "-")


@dataclass(frozen=True)
class Suite:
    """Tasks to be learned together, and settings of the mixture that differ from the defaults."""

    name: str
    tasks: tuple[Task, ...]
    mixture: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.tasks:
            raise InputError(f"suite {self.name!r} has no tasks")
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"suite {self.name!r}: task names used twice: {listing(twice)}")

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __getitem__(self, name: str) -> Task:
        for task in self.tasks:
            if task.name == name:
                return task
        names = [task.name for task in self.tasks]
        raise InputError(f"no task {name!r} in {self.name!r}{nearest(name, names)}; it has {listing(names)}")

    def select(self, *patterns: str) -> Suite:
        """The tasks whose name, family or one of whose tags is, or matches (`glue/*`), one of the patterns.

        Raises:
            InputError: a pattern matches none.
        """
        for pattern in patterns:
            if not any(matches(task, pattern) for task in self.tasks):
                names = {"all", *(name for task in self.tasks for name in (task.name, task.family.kind, *task.tags))}
                raise InputError(f"no task, family or tag {pattern!r} in suite {self.name!r}{nearest(pattern, sorted(names))}")
        return replace(
            self,
            tasks=tuple(task for task in self.tasks if any(matches(task, pattern) for pattern in patterns)),
        )

    def without(self, *patterns: str) -> Suite:
        return replace(
            self,
            tasks=tuple(task for task in self.tasks if not any(matches(task, pattern) for pattern in patterns)),
        )

    def add(self, *tasks: Task) -> Suite:
        return replace(self, tasks=(*self.tasks, *tasks))


def matches(task: Task, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    return pattern == "all" or pattern in task.tags or pattern == task.family.kind or fnmatchcase(task.name, pattern)


# ---- records in YAML


def read_suite(path: str | Path) -> Suite:
    """A suite file.

    Raises:
        InputError: naming the file, the task and the field, what stands there and what is accepted.
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"no suite file {str(path)!r}{nearest(path.name, [p.name for p in path.parent.glob('*.y*ml')])}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected a mapping with 'tasks', found {type(content).__name__}")
    check_keys(content, ("name", "tasks", "mixture"), str(path))
    entries = content.get("tasks")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: 'tasks' must be a list with at least one task")
    tasks: list[Task] = []
    for number, entry in enumerate(entries, 1):
        tasks.extend(read_entry(entry, f"{path}, task {number}", path.parent))
    mixture = content.get("mixture") or {}
    if not isinstance(mixture, Mapping):
        raise InputError(f"{path}, mixture: expected settings, found {mixture!r}")
    try:
        make_config({"mixture": mixture})
        return Suite(str(content.get("name", path.stem)), tuple(tasks), dict(mixture))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def find_task(task: str | Path) -> Task:
    """A single task: of a suite file that holds one, or by name from the catalogue.

    Raises:
        InputError: there is no such file or name, or the file holds several tasks.
    """
    from prefinetune.catalog import catalog

    if Path(task).suffix in (".yaml", ".yml"):
        suite = read_suite(task)
        if len(suite) != 1:
            names = listing(one.name for one in suite)
            raise InputError(f"{task}: expected one task, found {len(suite)} ({names})")
        return suite.tasks[0]
    return catalog()[str(task)]


def read_entry(entry: Any, place: str, folder: Path) -> Iterable[Task]:
    """One entry of a suite file: a task of its own, the name of one that ships with us, or `include:` with a pattern."""
    from prefinetune.catalog import catalog

    if isinstance(entry, str):
        return [catalog()[entry]]
    if not isinstance(entry, Mapping):
        raise InputError(f"{place}: expected a task (a mapping) or the name of one, found {entry!r}")
    if "include" in entry:
        check_keys(entry, ("include", "exclude"), place)
        listed = lambda value: [value] if isinstance(value, str) else list(value or ())  # noqa: E731
        found = catalog().select(*listed(entry["include"])).without(*listed(entry.get("exclude")))
        trainable = [task for task in found if not task.evaluation_only]
        if not trainable:
            raise InputError(f"{place}: include: {entry['include']!r} names no task that can be trained on")
        return trainable
    return [read_task(entry, place, folder)]


def read_task(entry: Mapping[str, Any], place: str, folder: Path) -> Task:
    if "name" not in entry:
        raise InputError(f"{place}: 'name' is missing")
    place = f"{place} ({entry['name']})"
    own = ("name", "source", "splits", "tags", "license", "cite", "evaluation_only", "note")
    check_keys(entry, (*own, *FAMILIES), place)
    kinds = [kind for kind in FAMILIES if kind in entry]
    if len(kinds) != 1:
        raise InputError(f"{place}: expected exactly one family out of {listing(FAMILIES)}; found {listing(kinds) or 'none'}")
    if "source" not in entry:
        raise InputError(f"{place}: 'source' is missing: a file, a folder, or hub:NAME or hub:NAME:CONFIG")
    family = build(FAMILIES[kinds[0]], entry[kinds[0]], f"{place}, {kinds[0]}")
    extra = {key: entry[key] for key in own[2:] if key in entry}
    for key in ("splits",):
        if not isinstance(extra.get(key, {}), Mapping):
            raise InputError(f"{place}, {key}: expected a mapping such as {{validation: dev}}, found {extra[key]!r}")
    extra["tags"] = frozenset(extra.get("tags", ()))
    try:
        return Task(str(entry["name"]), read_source(entry["source"], folder, place), family, **extra)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def read_source(value: Any, folder: Path, place: str) -> Source:
    """`hub:ID[:CONFIG][@REVISION]`, a path, or a mapping from split to path."""
    if isinstance(value, str) and value.startswith("hub:"):
        name, _, revision = value[4:].partition("@")
        hub_id, _, config = name.partition(":")
        return Hub(hub_id, config or None, revision or None)
    if isinstance(value, str):
        return Files(str(folder / value))
    if isinstance(value, Mapping) and all(isinstance(part, str) for part in value.values()):
        return Files({str(split): str(folder / part) for split, part in value.items()})
    raise InputError(f"{place}, source: {value!r} is not accepted; expected a path, hub:NAME, or a mapping from split to path")


def build(family: type[Family], settings: Any, place: str) -> Family:
    """A family record from YAML settings; lists become tuples."""
    if not isinstance(settings, Mapping):
        raise InputError(f"{place}: expected fields such as {{{fields(family)[0].name}: COLUMN}}, found {settings!r}")
    known = {item.name: item for item in fields(family)}
    check_keys(settings, tuple(known), place)
    missing = [name for name, item in known.items() if item.default is MISSING and name not in settings]
    if missing:
        raise InputError(f"{place}: {listing(missing)} missing")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    if values.get("labels"):
        values["labels"] = tuple(str(label) for label in values["labels"])
    try:
        return family(**values)
    except InputError as error:
        raise InputError(f"{place}, {error}") from None


def check_keys(content: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in content:
        if key not in known:
            raise InputError(f"{place}: unknown key {key!r}{nearest(key, known)}; accepted: {listing(known, 20)}")


__all__ = ["Files", "Hub", "Rows", "Source", "Suite", "Task", "read_suite", "read_task"]
