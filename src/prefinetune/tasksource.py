"""Tasks of the tasksource catalogue (Sileo 2024), by name: `tasksource:glue/rte` in a suite file.

The package, an extra of ours, finds the rows on the hub and brings them into one of three forms; here those become tasks of ours.
What it does to the rows on the way (version 0.1.1), so that nobody takes a score on them for one on the original:

- Columns get standard names, and all others are left out. Many tasks filter, join or rewrite rows first; a few take a fixed
  sample of the training rows.
- Splits that are missing are made, with a fixed seed: a tenth of the training rows becomes validation, half of the validation
  rows becomes test. A test split whose answers are hidden is replaced so, too. Rows without a label are left out.
- Multiple choice keeps four options at most: the right one and the first of the others, in an order that depends on their texts.
  Where options are a list, no row keeps more than the shortest list of the set has.
- Labels that are texts are numbered in their sorted order (entailment, neutral, contradiction in this one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefinetune.errors import InputError, Unavailable, nearest
from prefinetune.families import Choice, Classification, Family, Regression, Tagging
from prefinetune.readers import Table, make_table
from prefinetune.sources import Files, Source

if TYPE_CHECKING:
    from datasets import Dataset

    from prefinetune.task import Task

PREFIX, MULTILINGUAL = "tasksource:", "multilingual/"  # the latter as in tasksource's own metadata
CITE = "tasksource: Sileo 2024, aclanthology.org/2024.lrec-main.1361"
OPTION = re.compile(r"choice(\d+)")


@dataclass(frozen=True)
class Entry:
    """What tasksource knows of a task without its rows."""

    id: str
    multilingual: bool
    kind: str  # Classification, MultipleChoice or TokenClassification
    mapping: Any


def package() -> Any:
    """The tasksource package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import tasksource
    except ImportError as error:
        raise InputError(
            f"tasks of tasksource need its package ({error}); install it with pip install 'prefinetune[tasksource]'"
        ) from None
    return tasksource


@cache
def entries() -> Mapping[str, Entry]:
    """By name: the English ones by their id, the others as multilingual/ID."""
    found = {}
    for multilingual in (False, True):
        for row in package().list_tasks(multilingual=multilingual).itertuples():
            found[MULTILINGUAL * multilingual + row.id] = Entry(row.id, multilingual, row.task_type, row.mapping)
    return found


def tasksource_names() -> list[str]:
    """The names that may stand behind `tasksource:`.

    Raises:
        InputError: tasksource is not installed.
    """
    return list(entries())


def entry(name: str) -> Entry:
    found = entries().get(name)
    if found is None:
        raise InputError(f"tasksource has no task {name!r}{nearest(name, entries())}")
    return found


def tasksource_task(name: str) -> Task:
    """A task of the tasksource catalogue, called tasksource/NAME. Its rows are not touched yet.

    Raises:
        InputError: tasksource is not installed, or has no such task.
    """
    from prefinetune.task import Task

    found, known = entry(name), package()
    question = found.mapping.question
    if not isinstance(question, str | None):  # by configuration
        question = question.get(name.rsplit("/", 1)[-1])
    license = known.task_licenses([found.id], multilingual=found.multilingual).iloc[0].license
    origin = known.task_provenance(found.id, multilingual=found.multilingual)
    rows = [origin.get("dataset"), *origin.get("data_files_from", ()), *origin.get("originals", ())]
    return Task(
        "tasksource/" + re.sub(r"[^\w+/-]", "_", name, flags=re.ASCII),
        TaskSource(name),
        family(found),
        tags={"tasksource", *(["multilingual"] if found.multilingual else []), *found.id.split("/")[:-1][:1]},
        license="unknown" if license == "unspecified" else license,
        cite=f"{CITE}; rows: {', '.join(filter(None, rows))}" if any(rows) else CITE,
        note=question or "",
    )


def family(found: Entry) -> Family:
    """What a task is with us, by the columns that `TaskSource` gives it.

    Raises:
        InputError: it is of another kind.
    """
    if found.kind == "MultipleChoice":
        return Choice("inputs", options="choices", label="labels")
    if found.kind == "TokenClassification":
        return Tagging("tokens", tags="labels")
    if found.kind != "Classification":
        raise InputError(f"tasksource task {found.id!r} is of a kind that has no family here: {found.kind}")
    if getattr(found.mapping, "regression", False):
        pair = None if found.mapping.sentence2 is None else "sentence2"
        return Regression("sentence1", pair, label="labels", low=found.mapping.low, high=found.mapping.high)
    return OneOrTwoTexts("sentence1", "sentence2", label="labels")


class OneOrTwoTexts(Classification):
    """Whether there is a second text is known when the rows are there: tasksource's records need not say so."""

    is_frozen = False

    def freeze(self, rows: Dataset, place: str) -> Classification:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if is_empty(rows, self.pair):
            values["pair"] = None
        return Classification(**values).freeze(rows, place)


def is_empty(rows: Dataset, column: Any) -> bool:
    pieces = rows.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    return all(piece[column].null_count == len(piece) for piece in pieces)


@dataclass(frozen=True)
class TaskSource(Source):
    """The rows of a task of tasksource, as columns that our families read: sentence1, sentence2 (empty where there is no second
    text) and labels; inputs, choices (a list) and labels; or tokens and labels."""

    name: str

    @cached_property
    def _tables(self) -> Mapping[str, Dataset]:
        """By split, as tasksource gives them.

        Raises:
            InputError: there is no such task, or (Unavailable) its rows cannot be had.
        """
        import datasets

        found = entry(self.name)
        datasets.disable_progress_bars()
        try:
            return dict(package().load_task(found.id, multilingual=found.multilingual))
        except Exception as error:  # of the hub's client, or of tasksource's own work on the rows
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise Unavailable(
                f"{self.describe()!r} could not be read ({type(error).__name__}: {reason[:200]}). Offline? Give a folder that "
                "holds a mirror of it with --data-root",
                unreachable=isinstance(error, (ConnectionError, TimeoutError)),
            ) from error

    def at(self, slug: str, data_root: Path | None) -> Source:
        folder = Path(data_root or "") / slug
        return Files(str(folder)) if data_root is not None and folder.is_dir() else self

    def splits(self) -> list[str]:
        return list(self._tables)

    def read(self, split: str, cache: Path | None = None, allowed: float = 1.0) -> Table:
        return make_table(standard(self._tables[split]), [], self.place(split))

    def place(self, split: str) -> str:
        return f"{self.describe()} [{split}]"

    def describe(self) -> str:
        return PREFIX + self.name


def standard(rows: Dataset) -> Dataset:
    """Options as one list, and a second text everywhere."""
    from datasets import Features, List, Value

    options = sorted((column for column in rows.column_names if OPTION.fullmatch(column)), key=option_number)
    features = {name: feature for name, feature in rows.features.items() if name not in options}
    added: dict[str, Any]
    work: Any
    if options:
        added, work, given = {"choices": List(Value("string"))}, gather, {"options": options}
    elif "sentence1" in features and "sentence2" not in features:
        added, work, given = {"sentence2": Value("string")}, without_second, {}
    else:
        return rows
    return rows.map(work, batched=True, fn_kwargs=given, remove_columns=options, features=Features({**features, **added}))


def option_number(column: str) -> int:
    return int(column.removeprefix("choice"))


def gather(columns: Mapping[str, list[Any]], options: list[str]) -> dict[str, list[Any]]:
    """Columns of options as lists without what is padding; the label still counts the same option. It is None where that is
    padding itself, so that the row is set aside as one without a label."""
    choices, labels = [], []
    for label, *row in zip(columns["labels"], *(columns[name] for name in options), strict=True):
        there = [index for index, option in enumerate(row) if option is not None]
        choices.append([str(row[index]) for index in there])
        labels.append(there.index(label) if label in there else None)
    return {"choices": choices, "labels": labels}


def without_second(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {"sentence2": [None] * len(columns["sentence1"])}
