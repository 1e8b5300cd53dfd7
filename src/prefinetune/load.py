"""A run, or what was exported of one, ready to answer: its model with the heads of its tasks, and how each task reads rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prefinetune.config import make_config
from prefinetune.errors import FieldError, InputError, listing, nearest
from prefinetune.families import FAMILIES, Encoded, Example, Family
from prefinetune.families.base import Field, plain
from prefinetune.quarantine import Fault
from prefinetune.sources import Files, Rows
from prefinetune.splits import Split, open_task
from prefinetune.task import NAME, Task, build

if TYPE_CHECKING:
    from prefinetune.model import MultiTask
    from prefinetune.tokenizer import Tokenizer

ABOUT = "prefinetune.json"  # beside an exported model: what a run keeps in suite.yaml and config.yaml
FORMAT = 1  # of that file
AT_ONCE = 2000  # rows that are tokenized and held at a time
TOKEN_BUDGET = 8192  # of a micro-batch


@dataclass(frozen=True)
class About:
    """What a folder holds.

    Attributes:
        model: the folder with weights, configuration and tokenizer.
        is_whole: whether it holds one task's model with its head; or else the trunk, with heads in `heads_in`/heads.
        tasks: by name, the family that each reads its rows with.
        separate_heads, max_length, max_target_length: as the run had them; see `prefinetune settings`.
        temperatures: by task, those that were fitted.
    """

    model: Path
    is_whole: bool
    tasks: Mapping[str, Family]
    separate_heads: bool = False
    max_length: int | None = None
    max_target_length: int | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    heads_in: Path = Path()

    def find(self, task: str | None) -> str:
        """A task by its name; the only one where none is given.

        Raises:
            InputError: there is no such task, or several and no name.
        """
        if task is None and len(self.tasks) > 1:
            raise InputError(f"{self.heads_in}: which of {len(self.tasks)} tasks? Give one with --task: {listing(self.tasks)}")
        if task is None:
            return next(iter(self.tasks))
        if task not in self.tasks:
            raise InputError(f"{self.heads_in}: no task {task!r}{nearest(task, self.tasks)}; there are {listing(self.tasks)}")
        return task

    def record(self, tasks: Sequence[str], is_whole: bool, temperatures: Mapping[str, float]) -> dict[str, Any]:
        """As prefinetune.json says it, of some of the tasks."""
        return {
            "format": FORMAT,
            "is_whole": is_whole,
            "tasks": [{"name": task, self.tasks[task].kind: self.tasks[task].settings()} for task in tasks],
            "separate_heads": self.separate_heads,
            "max_length": self.max_length,
            "max_target_length": self.max_target_length,
            "temperatures": {task: value for task, value in temperatures.items() if task in tasks},
        }


def read_about(folder: str | Path) -> About:
    """What a run's folder holds, or an exported one.

    Raises:
        InputError: it is neither, or the run has not finished.
    """
    folder = Path(folder)
    if folder.name == "model" and (folder.parent / "run.json").exists():
        folder = folder.parent
    if (folder / ABOUT).is_file():
        try:
            known = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            tasks = families_of(known.pop("tasks"), folder / ABOUT)
            if known.pop("format") != FORMAT:
                raise InputError(f"{folder / ABOUT}: of another version of prefinetune; this one reads format {FORMAT}")
            return About(model=folder, tasks=tasks, heads_in=folder, **known)
        except (ValueError, KeyError, TypeError) as error:
            raise error if isinstance(error, InputError) else InputError(
                f"{folder / ABOUT}: not as `prefinetune export` writes it ({error!r}); export the run again"
            ) from None  # fmt: skip
    if not (folder / "run.json").is_file():
        what = "is no run and no export of one" if folder.is_dir() else "does not exist" if not folder.exists() else "is a file"
        raise InputError(
            f"{folder} {what}; expected what `prefinetune train`, `finetune` or `export` wrote (`prefinetune runs` lists runs)"
        )
    kind = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("kind")
    is_whole = kind == "finetune"
    if not (folder / "model" / "config.json").exists() or not (is_whole or (folder / "heads").is_dir()):
        raise InputError(f"{folder} has not finished: it has no model yet; go on with the same {kind} command and --resume")
    suite = yaml.safe_load((folder / "suite.yaml").read_text(encoding="utf-8"))
    config = make_config(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    return About(
        folder / "model",
        is_whole,
        families_of(suite["tasks"], folder / "suite.yaml"),
        config.objective.heads == "separate",
        config.data.max_length,
        config.data.max_target_length,
        heads_in=folder,
    )


def families_of(entries: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Family]:
    """By name, the families of a file's tasks.

    Raises:
        InputError: a name is none that a task may have: it becomes that of a folder.
    """
    for entry in entries:
        if not NAME.fullmatch(entry["name"]):
            raise InputError(f"{path}: {entry['name']!r} is no name of a task")
    return {entry["name"]: family_of(entry) for entry in entries}


def family_of(entry: Mapping[str, Any]) -> Family:
    """The family that a task of a suite.yaml reads its rows with. A field that was a function is the catalogue's where that is
    the same one, or else the column of the field's name."""
    from prefinetune.catalog import catalog

    kind = next(kind for kind in FAMILIES if kind in entry)
    settings, functions = dict(entry[kind]), {}
    if gone := [name for name, value in settings.items() if "function " in json.dumps(value)]:
        known = next((task.family for task in catalog() if task.name == entry["name"]), None)
        for name in gone:
            function = getattr(known, name, None)
            if function is not None and plain(function) == settings[name]:
                functions[name] = function
            settings[name] = name
    return replace(build(FAMILIES[kind], settings, entry["name"]), **functions)


# ---- rows


def open_rows(rows: Any, family: Family) -> Split:
    """Rows to be answered, as far as a family reads them.

    Args:
        rows: a list of dictionaries, a DataFrame, a `datasets.Dataset`, or the path of a CSV, TSV, JSON, Parquet or Arrow file.

    Raises:
        InputError: they cannot be read, or a column is missing.
    """
    import numpy as np

    source = Files({"rows": str(rows)}) if isinstance(rows, (str, Path)) else Rows({"rows": rows})
    place = source.place("rows").removesuffix(" [rows]")
    table = source.read("rows")
    parts = [part for one in family.inputs() for part in (one if isinstance(one, tuple) else (one,))]
    columns = list(
        dict.fromkeys(part if part in table.columns else part.split(".")[0] for part in parts if isinstance(part, str))
    )
    for column in columns if table.readable else ():
        if column not in table.columns:
            raise InputError(
                f"{place}: no column {column!r}{nearest(column, table.columns)}; there are {listing(table.columns)}. Say which "
                f"columns the model shall read, as in --columns {family.reads[0]}={table.columns[0]}"
            )
    if table.readable and not any(callable(part) for part in parts):  # a function may read any column
        table = table.select(columns)
    return Split(table, place, np.arange(len(table)))


def reading(family: Family, columns: Mapping[str, Field]) -> Family:
    """A family whose inputs stand in other columns.

    Args:
        columns: from names of fields, such as text, to columns; a tuple of columns is joined, or is the options.

    Raises:
        InputError: the family has no such field.
    """
    for name in columns:
        if name not in family.reads or getattr(family, name) is None:
            there = [one for one in family.reads if getattr(family, one) is not None]
            raise InputError(f"columns: a {family.kind} task reads no {name!r}{nearest(name, there)}; it reads {listing(there)}")
    changed: dict[str, Any] = dict(columns)
    return replace(family, **changed)


def adapted(family: Family, split: Split, which: range) -> tuple[list[Example], list[int], list[Fault]]:
    """Some rows of a split, by number, as (examples, the number of each, the rows that cannot be used)."""
    import numpy as np

    first, last = np.searchsorted(split.numbers, [which.start, which.stop]).tolist()
    examples, numbers = [], []
    faults = [split.table.faults[number] for number in which if number in split.table.faults]
    for start, rows in split.chunks(len(which), range(first, last)) if last > first else ():
        for index, row in enumerate(rows, start):
            try:
                examples.append(family.unanswered(row))
                numbers.append(split.number(index))
            except FieldError as error:
                faults.append(Fault(*split.locate(index), str(error)))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # data has no end of surprises
                faults.append(Fault(*split.locate(index), f"cannot be read as {family.kind} ({type(error).__name__}: {error})"))
    return examples, numbers, faults


# ---- answers


@dataclass
class Loaded:
    """A model with the heads of its tasks.

    Attributes:
        about: what its folder holds.
        model: in evaluation mode, where it is to compute.
        tokenizer: cut to the length that the run read.
        temperatures: by task; those of the export, and what `calibrate` has fitted since.
    """

    about: About
    model: MultiTask
    tokenizer: Tokenizer
    temperatures: dict[str, float]

    @property
    def tasks(self) -> list[str]:
        return list(self.model.families)

    def family(self, task: str, columns: Mapping[str, Field] | None = None) -> Family:
        """How a task reads rows.

        Raises:
            InputError: there is no such task, or it has no such field.
        """
        return reading(self.model.families[self.about.find(task)], columns or {})

    def predict(self, task: str, rows: Any, *, columns: Mapping[str, Field] | None = None) -> list[Any]:
        """One answer per row, in their order: the name of a label or a list of names, a number in the data's units, the text of
        an option, of a span ("" for none) or of what is generated, a tag per word, or what belongs in a text's masks.

        Args:
            rows: a list of dictionaries, a DataFrame, a `datasets.Dataset`, or a file's path (CSV, TSV, JSON, Parquet, Arrow).
            columns: where the rows have other names than the task's record: {"text": "body"}.

        Raises:
            InputError: there is no such task, or a row cannot be used; `prefinetune predict` sets such rows aside.
        """
        return [one for one, _ in self._both(task, rows, columns, None)]

    def predict_proba(
        self, task: str, rows: Any, *, columns: Mapping[str, Field] | None = None, calibrated: bool = False
    ) -> list[Any]:
        """One entry per row: {label: probability}, for choice a list by option, for tagging that of each word's tag.

        Args:
            calibrated: divide logits by the temperature that `calibrate` fitted, or `prefinetune export --calibrate`.

        Raises:
            InputError: as `predict`; or the family has no probabilities, or no temperature was fitted.
        """
        return [one for _, one in self._both(task, rows, columns, self.temperature(task, calibrated))]

    def temperature(self, task: str, calibrated: bool) -> float:
        """What logits are divided by: 1, or what was fitted.

        Raises:
            InputError: the family has no probabilities, or nothing was fitted.
        """
        family = self.family(task)
        if family.probability_type is None:
            having = [kind for kind, one in FAMILIES.items() if one.probability_type is not None]
            raise InputError(f"task {task!r}: {family.kind} has no probabilities; {listing(having)} have")
        if calibrated and task not in self.temperatures:
            raise InputError(
                f"task {task!r}: no temperature was fitted; `prefinetune export RUN --to DIR --calibrate` fits one on validation "
                "rows, or in Python load(DIR).calibrate(task, rows)"
            )
        return self.temperatures[task] if calibrated else 1.0

    def calibrate(self, task: str, rows: Any) -> float:
        """Fit a task's temperature on rows with labels (Guo et al. 2017, arXiv 1706.04599), which it was not trained on.

        Returns:
            The temperature, which minimises the mean negative log-likelihood; also kept in `temperatures`.

        Raises:
            InputError: rows cannot be used, or the family has no probabilities.
        """
        from prefinetune.store import encode_split

        source = Files({"validation": str(rows)}) if isinstance(rows, (str, Path)) else Rows({"validation": rows})
        opened = open_task(Task(task, source, self.family(task)))
        return self.calibrate_on(task, encode_split(opened, "validation", self.tokenizer))

    def calibrate_on(self, task: str, examples: Sequence[Encoded]) -> float:
        """The same, on examples that were encoded for evaluation."""
        from prefinetune.calibration import fit_temperature
        from prefinetune.evaluate import choices

        self.temperature(task, calibrated=False)
        gold = [self.family(task).chosen(example) for example in examples]
        self.temperatures[task] = fit_temperature(choices(self.model, self.tokenizer, task, examples), gold)
        return self.temperatures[task]

    def _both(
        self, task: str, rows: Any, columns: Mapping[str, Field] | None, temperature: float | None
    ) -> Iterator[tuple[Any, Any]]:
        family = self.family(task, columns)
        split = open_rows(rows, family)
        for start in range(0, len(split.table), AT_ONCE):
            examples, _, faults = adapted(family, split, range(start, min(start + AT_ONCE, len(split.table))))
            if faults:
                raise InputError(str(min(faults, key=lambda fault: fault.row)))
            yield from self.answer(task, self.encode(task, examples), temperature)

    def encode(self, task: str, examples: Sequence[Example]) -> list[Encoded]:
        """Adapted rows as the model reads them."""
        return self.model.families[task].encode_unanswered(examples, self.tokenizer) if examples else []

    def answer(self, task: str, examples: Sequence[Encoded], temperature: float | None = None) -> list[tuple[Any, Any]]:
        """(answer, probabilities) of each; probabilities None where `temperature` is."""
        from prefinetune.evaluate import answer

        return answer(self.model, self.tokenizer, task, examples, temperature, TOKEN_BUDGET)


def load(folder: str | Path, tasks: Sequence[str] | None = None, device: str | None = None) -> Loaded:
    """A run with all its heads, or what `prefinetune export` wrote of it, ready to predict.

    Args:
        folder: of `train`, `finetune` or `export`.
        tasks: load only the heads of these.
        device: where to compute; a GPU where there is one, when left out.

    Raises:
        InputError: it is no such folder, the run has not finished, there is no such task, or the model cannot be loaded.
    """
    import torch
    import transformers

    from prefinetune.export import load_head
    from prefinetune.model import MultiTask, quiet
    from prefinetune.pretrained import load_backbone
    from prefinetune.tokenizer import load_tokenizer

    about = read_about(folder)
    wanted = [about.find(task) for task in (about.tasks if tasks is None else tasks)]
    about = replace(about, tasks={task: about.tasks[task] for task in wanted})
    families = {task: about.tasks[task].finished() if about.is_whole else about.tasks[task] for task in wanted}
    backbone = load_backbone(str(about.model))
    tokenizer = load_tokenizer(str(about.model), about.max_length, backbone.config, about.max_target_length)
    model = MultiTask(backbone, families, separate_heads=about.separate_heads)
    for task in wanted:
        if about.is_whole:
            with quiet():
                whole = getattr(transformers, model.head(task).auto_model).from_pretrained(
                    about.model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                )
            model.head(task).load_plain_state(whole.state_dict())
        elif not load_head(model, task, about.heads_in):
            raise InputError(f"{about.heads_in / 'heads'}: no head for task {task!r}; it was removed, or is of other labels")
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return Loaded(about, model, tokenizer, dict(about.temperatures))
