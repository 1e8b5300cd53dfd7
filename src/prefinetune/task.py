"""Records: a Task says where rows are and what kind of problem they pose; a Suite is tasks and how they are mixed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefinetune.config import MixtureSettings, explain
from prefinetune.errors import InputError, listing, nearest
from prefinetune.families import FAMILIES, Family
from prefinetune.positions import Part, read_yaml, shown
from prefinetune.safety import without_secrets
from prefinetune.schema import (
    SOURCE,
    check,
    family_schema,
    include_schema,
    suite_keys,
    task_schema,
    tasksource_schema,
)
from prefinetune.sources import Files, Hub, Rows, Source

NAME = re.compile(r"(?=.{1,128}$)[A-Za-z0-9][A-Za-z0-9_+\-]*(/[A-Za-z0-9][A-Za-z0-9_+\-]*)*")


@dataclass(frozen=True)
class Task:
    """A dataset and the problem it poses.

    Attributes:
        name: letters, digits, "_", "-" and "+", with "/" between parts, as in "glue/rte"; at most 128 characters.
        source: where the rows are.
        family: the kind of problem, with the columns it reads.
        splits: from train, validation and test to the source's own names where they differ. A role the source lacks is left out,
            and one whose answers it keeps back is None. Without a validation split a fixed part of the training rows is held out.
        tags: words by which it can be chosen.
        license: of the rows.
        cite: who made them.
        evaluation_only: keeps the task out of training mixtures.
        note: for people.
    """

    name: str
    source: Source
    family: Family
    splits: Mapping[str, str | None] = field(default_factory=dict)
    tags: Collection[str] = frozenset()
    license: str = "unknown"
    cite: str = ""
    evaluation_only: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise InputError(
                f"task name {self.name!r} is not accepted; expected letters, digits, '_', '-', '+' and '/' between them, "
                "at most 128 in all"
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
        slugs = {task.slug.lower(): task.name for task in self.tasks}  # some file systems do not tell A from a
        for task in self.tasks:
            if (other := slugs[task.slug.lower()]) != task.name:
                raise InputError(f"suite {self.name!r}: tasks {task.name!r} and {other!r} would share the folder {task.slug!r}")

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
        InputError: naming the file with line and column, the task and the field, what stands there and what is accepted.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(missing_file(path))
    return SuiteFile(path, ()).read()


def find_task(task: str | Path) -> Task:
    """A single task: of a suite file that holds one, or by name from the catalogue or (tasksource:NAME) from that of tasksource.

    Raises:
        InputError: there is no such file or name, or the file holds several tasks.
    """
    refuse_data(str(task))
    if is_suite_file(str(task)):
        suite = read_suite(task)
        if len(suite) != 1:
            names = listing(one.name for one in suite)
            raise InputError(f"{task}: expected one task, found {len(suite)} ({names})")
        return suite.tasks[0]
    return named_task(str(task))


def named_task(name: str) -> Task:
    """A task of our catalogue, or, as tasksource:NAME, of that of tasksource."""
    from prefinetune.catalog import catalog
    from prefinetune.tasksource import PREFIX, tasksource_task

    return tasksource_task(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else catalog()[name]


def refuse_data(text: str) -> None:
    """Raises InputError where a file or folder of data stands in place of a suite."""
    path = Path(text)
    if path.exists() and not is_suite_file(text):
        folder = path if path.is_dir() else path.parent
        raise InputError(f"{text} is no suite file (.yaml); `prefinetune tasks infer {folder}` proposes one for the data there")


def is_suite_file(text: str) -> bool:
    return Path(text).suffix in (".yaml", ".yml")


def missing_file(path: Path) -> str:
    return f"no suite file {str(path)!r}{nearest(path.name, [p.name for p in path.parent.glob('*.y*ml')])}"


class SuiteFile:
    """A suite file while it is read: the tasks found so far, and which files are being read around it."""

    def __init__(self, path: Path, around: tuple[Path, ...]) -> None:
        self.path, self.around = path, (*around, path)
        self.tasks: dict[str, Task] = {}

    def read(self) -> Suite:
        root = read_yaml(self.path)
        if not isinstance(root.value, dict):
            raise root.refuse(f"expected a mapping with 'tasks', found {shown(root.value)}")
        check(root, {"properties": suite_keys(), "additionalProperties": False})
        if "tasks" not in root and "include" not in root:
            raise root.refuse("'tasks' is missing: a list with at least one task")
        if "include" in root:
            self.include(root["include"])
        for number, entry in enumerate(root.get("tasks", ()), 1):
            name = entry.value.get("name") if isinstance(entry.value, dict) else None
            self.add(entry.called(f"task {number}" + (f" ({shown(name)[1:-1]})" if isinstance(name, str) else "")))
        if "exclude" in root:
            self.tasks = exclude(self.tasks, root["exclude"])
        if not self.tasks:
            raise root.refuse("no task is left")
        mixture = dict(root.value.get("mixture") or {})
        for key in mixture:
            check_setting(root["mixture"], key)
        return Suite(root.value.get("name", self.path.stem), tuple(self.tasks.values()), mixture)

    def add(self, entry: Part) -> None:
        """The tasks of one entry: a task of its own, the name of one that ships with us, or `include:` with patterns."""
        if isinstance(entry.value, str):
            self.take(at(entry, named_task, entry.value), entry, own=False)
        elif not isinstance(entry.value, dict):
            raise entry.refuse(f"expected a task (a mapping) or the name of one, found {shown(entry.value)}{entry.quoting}")
        elif "include" in entry:
            check(entry, include_schema())
            self.include(entry["include"], entry.get("exclude"))
        elif "tasksource" in entry:
            self.take(tasksource_entry(entry), entry)
        else:
            self.take(own_task(entry, self.path.parent), entry)

    def take(self, task: Task, entry: Part, own: bool = True) -> None:
        known = self.tasks.get(task.name)
        if known is None:
            self.tasks[task.name] = task
        elif own or known != task:  # a task of ours may be asked for by name and by several tags
            raise entry.get("name", entry).refuse(f"task names used twice: {task.name}")

    def include(self, patterns: Part, but: Part | None = None) -> None:
        """The tasks that patterns name, without those for evaluation only unless they are named as such."""
        found: dict[str, Task] = {}
        places: dict[str, Part] = {}
        for pattern in each(patterns):
            chosen = [task for task in self.named(pattern) if not task.evaluation_only or task.name == pattern.value]
            if not chosen:
                raise pattern.refuse(f"{pattern.value!r} names no task that can be trained on")
            for task in chosen:
                if found.setdefault(task.name, task) != task:
                    raise pattern.refuse(f"task names used twice: {task.name}")
                places[task.name] = pattern
        for name, task in (found if but is None else exclude(found, but)).items():
            self.take(task, places[name], own=False)

    def named(self, pattern: Part) -> Collection[Task]:
        """What one pattern stands for: a suite file, a name of the tasksource catalogue, or a pattern of ours."""
        from prefinetune.catalog import catalog
        from prefinetune.tasksource import PREFIX

        if pattern.value.startswith(PREFIX):
            return [at(pattern, named_task, pattern.value)]
        if not is_suite_file(pattern.value):
            return at(pattern, catalog().select, pattern.value).tasks
        path = self.path.parent / pattern.value
        if not path.is_file():
            raise pattern.refuse(missing_file(path))
        if path.resolve() in [one.resolve() for one in self.around]:
            raise pattern.refuse(f"a file cannot include itself: {' -> '.join(map(str, (*self.around, path)))}")
        try:
            return SuiteFile(path, self.around).read().tasks
        except InputError as error:
            raise InputError(f"{error} (included from {pattern.place})") from None


def exclude(tasks: Mapping[str, Task], patterns: Part) -> dict[str, Task]:
    """The tasks that no pattern matches.

    Raises:
        InputError: a pattern matches none.
    """
    left = dict(tasks)
    for pattern in each(patterns):
        out = [name for name, task in tasks.items() if matches(task, pattern.value)]
        if not out:
            words = {word for task in tasks.values() for word in (task.name, task.family.kind, *task.tags)}
            raise pattern.refuse(f"{pattern.value!r} excludes nothing{nearest(pattern.value, sorted(words))}")
        for name in out:
            left.pop(name, None)
    return left


def each(patterns: Part) -> list[Part]:
    """One text, or a list of them."""
    return [patterns] if isinstance(patterns.value, str) else list(patterns)


def at(part: Part, what: Any, *arguments: Any) -> Any:
    """What a function gives; its errors are about a part."""
    try:
        return what(*arguments)
    except InputError as error:
        raise part.refuse(str(error)) from None


def check_setting(mixture: Part, key: str) -> None:
    """A setting of the mixture, of exactly the type that it has."""
    try:
        MixtureSettings.model_validate({key: mixture.value[key]}, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        message = explain({**problem, "loc": ("mixture", *problem["loc"])})
        unknown = problem["type"] == "extra_forbidden"
        raise (mixture.refuse_key(key, message) if unknown else mixture[key].called("mixture").refuse(message)) from None


def tasksource_entry(entry: Part) -> Task:
    """A task of tasksource, with what the entry says differently."""
    from prefinetune.tasksource import tasksource_task

    check(entry, tasksource_schema())
    task = at(entry["tasksource"], tasksource_task, entry["tasksource"].value)
    return make_task(entry, {**vars(task), **{key: value for key, value in entry.value.items() if key != "tasksource"}})


def own_task(entry: Part, folder: Path) -> Task:
    """A task of one's own; paths are relative to `folder`."""
    kinds = [kind for kind in FAMILIES if kind in entry]
    message = f"expected exactly one family out of {listing(FAMILIES)}; found {listing(kinds) or 'none'}"
    if len(kinds) > 1:
        raise entry.refuse_key(max(kinds, key=lambda kind: entry.keys.get(kind, 0)), message)
    check(entry, task_schema())
    if not kinds:
        raise entry.refuse(message)
    given = {key: value for key, value in entry.value.items() if key not in FAMILIES}
    family = make_family(FAMILIES[kinds[0]], entry[kinds[0]])
    return make_task(entry, {**given, "source": make_source(entry["source"], folder), "family": family})


def make_task(entry: Part, values: Mapping[str, Any]) -> Task:
    try:
        return Task(**values)
    except InputError as error:
        raise field_of(str(error).removeprefix("task "), entry).refuse(str(error)) from None


def make_family(family: type[Family], part: Part) -> Family:
    """A family from its fields; lists become tuples, and labels texts."""
    check(part, family_schema(family.kind))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in part.value.items()}
    if values.get("labels"):
        for label in part["labels"]:
            if label.written not in (None, str(label.value)):
                raise label.refuse(f"{label.written} is not accepted as a label{label.quoting}")
        values["labels"] = tuple(map(str, values["labels"]))
    try:
        return family(**values)
    except InputError as error:
        raise field_of(str(error), part).refuse(str(error)) from None


def field_of(message: str, part: Part) -> Part:
    """The part that a record's complaint is about, which begins with the field's name; the whole where it does not."""
    name = message.split(":")[0].split()[0]
    return part[name].called(part.name) if name in part else part


def make_source(part: Part, folder: Path) -> Source:
    """`hub:ID[:CONFIG][@REVISION]`, `tasksource:NAME`, a path, or a mapping from split to path."""
    from prefinetune.tasksource import PREFIX, TaskSource

    check(part, SOURCE)
    for one in map(part.__getitem__, part.value) if isinstance(part.value, dict) else (part,):
        if "://" in one.value:
            hidden = without_secrets(one.value)
            raise one.refuse(f"{hidden!r} is not accepted: addresses are not read; expected {SOURCE['description']}")
    if isinstance(part.value, dict):
        return Files({split: str(folder / path) for split, path in part.value.items()})
    kind, _, rest = part.value.partition(":")
    if kind not in ("hub", PREFIX[:-1]):
        return Files(str(folder / part.value))
    name, _, revision = rest.partition("@")
    hub_id, _, config = name.partition(":")
    if not (rest if kind == PREFIX[:-1] else hub_id):
        raise part.refuse(f"{part.value!r} is not accepted; expected a name behind the colon")
    return TaskSource(rest) if kind == PREFIX[:-1] else at(part, Hub, hub_id, config or None, revision or None)


# ---- the same for values that stand in no suite file


def read_task(entry: Mapping[str, Any], place: str, folder: Path) -> Task:
    return own_task(Part.of(entry, place), folder)


def read_source(value: Any, folder: Path, place: str) -> Source:
    return make_source(Part.of(value, f"{place}, source"), folder)


def build(family: type[Family], settings: Any, place: str) -> Family:
    return make_family(family, Part.of(settings, place))


__all__ = ["Files", "Hub", "Rows", "Source", "Suite", "Task", "find_task", "read_suite"]
