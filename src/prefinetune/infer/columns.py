"""A sample of a table as columns: what they are called, what their values are like, and what they could serve as."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from prefinetune.infer.words import ABOUT, HEADING, MAIN, QUESTION, SECOND_OF_PAIR, WRITTEN, called

FEW_ROWS = 8  # fewer say little
MOST_LABELS = 300  # different values; more are hardly labels
LABEL_CHARACTERS = 60  # on average; longer values are texts, unless few of them are repeated over and over


@dataclass(frozen=True)
class Column:
    """Sampled values of a column (or of a part of a nested one); missing ones are None."""

    name: str
    values: tuple[Any, ...]
    names: tuple[str, ...] | None = None  # of its labels, where the table itself declares them

    @cached_property
    def present(self) -> list[Any]:
        return [value for value in self.values if value is not None]

    @property
    def missing(self) -> int:
        return len(self.values) - len(self.present)

    @cached_property
    def kind(self) -> str:
        """text, number, list, record, other, or empty where no value is there."""
        kinds = {kind_of(value) for value in self.present}
        if kinds == {"text"} and all(parse(value) is not None for value in self.present):
            return "number"  # as a table of texts writes it
        return kinds.pop() if len(kinds) == 1 else "other" if kinds else "empty"

    @cached_property
    def numbers(self) -> list[float]:
        return [number for number in map(parse, self.present) if number is not None] if self.kind == "number" else []

    @cached_property
    def whole(self) -> bool:
        """Whether all of it are whole numbers."""
        return bool(self.numbers) and all(number == int(number) for number in self.numbers)

    @cached_property
    def counts(self) -> Counter[Any]:
        """How often each value occurs, the most frequent first."""
        return Counter(dict(Counter(value if isinstance(value, str) else repr(value) for value in self.present).most_common()))

    @property
    def distinct(self) -> int:
        return len(self.counts)

    @cached_property
    def words(self) -> float:
        """Words per text, on average."""
        return float(np.mean([len(value.split()) for value in self.present])) if self.kind == "text" else 0.0

    @cached_property
    def characters(self) -> float:
        return float(np.mean([len(value) for value in self.present])) if self.kind == "text" else 0.0

    @cached_property
    def is_nested_text(self) -> bool:
        """Whether it holds lists or records that were written as texts."""
        ends = {(value.strip()[0], value.strip()[-1]) for value in self.present} if self.kind == "text" else set()
        return bool(ends) and ends <= {("[", "]"), ("{", "}")}

    @cached_property
    def is_about(self) -> bool:
        """Whether it tells rows apart, or where they come from: nothing to learn from, or nothing to learn."""
        if self.kind not in ("text", "number"):
            return False
        if self.kind == "text" and self.words >= 4:
            return False
        distinct = self.distinct == len(self.present) >= FEW_ROWS
        if called(self.name, ABOUT):
            return True
        if self.kind == "number":
            steps = np.diff(self.numbers)
            return bool(distinct and self.whole and (steps == steps[0]).all())
        without_spaces = not any(" " in value.strip() for value in self.present)
        codes = np.mean([any(sign.isdigit() for sign in value) or "/" in value for value in self.present])
        return bool(distinct and without_spaces and codes > 0.5)

    @cached_property
    def is_label(self) -> bool:
        """Whether its values recur, as those of a label do."""
        n, d = len(self.present), self.distinct
        if self.kind not in ("text", "number") or d < 2 or d > min(MOST_LABELS, n / 2):
            return False
        if self.kind == "number":
            return self.whole
        recurs = n / d
        return self.characters <= LABEL_CHARACTERS if recurs < 8 else self.characters <= 2 * LABEL_CHARACTERS and self.words < 16

    @cached_property
    def is_text(self) -> bool:
        """Whether it is written in words, and is no label."""
        if self.kind != "text" or self.distinct < 2 or self.is_about or self.is_nested_text:
            return False
        if self.is_label and not (called(self.name, MAIN) and self.distinct > 0.3 * len(self.present)):
            return False
        return self.words >= 3 or self.characters >= 25 or called(self.name, MAIN | HEADING | WRITTEN | SECOND_OF_PAIR | QUESTION)

    def tell(self) -> str:
        """What is in it, in a few words."""
        if self.kind == "text" and not self.is_label:
            many = "all different" if self.distinct == len(self.present) else f"{self.distinct:,} different"
            words = "1 word" if round(self.words) == 1 else f"{self.words:.0f} words"
            return f"{quoted(self.name)}: texts of {words} on average, {many}"
        if self.kind == "number" and not self.is_label:
            kind = "whole numbers" if self.whole else "numbers"
            return f"{quoted(self.name)}: {kind} from {min(self.numbers):g} to {max(self.numbers):g}, {self.distinct:,} different"
        ordered = (
            sorted(self.counts.items(), key=lambda item: parse(item[0]) or 0) if self.kind == "number" else self.counts.items()
        )
        return f"{quoted(self.name)}: {self.distinct:,} values, {tally(ordered)}"


@dataclass(frozen=True)
class Table:
    """A sample of a table's rows, as columns."""

    columns: tuple[Column, ...]
    rows: int  # sampled
    remarks: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def texts(self) -> list[Column]:
        return [column for column in self.columns if column.is_text]


def kind_of(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, (bool, int, float, np.integer, np.floating, np.bool_)):
        return "number"
    if isinstance(value, (list, tuple)):
        return "list"
    return "record" if isinstance(value, Mapping) else "other"


def parse(value: Any) -> float | None:
    """The number a value is or spells; None where there is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and "_" not in str(value) else None


def quoted(name: Any) -> str:
    return f"'{name}'"


def tally(counts: Iterable[tuple[Any, int]], most: int = 6) -> str:
    """The first few values with how often they occur."""
    given = list(counts)
    shown = ", ".join(f"{brief(str(value))} ({count:,})" for value, count in given[:most])
    return shown + (", …" if len(given) > most else "")


def brief(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def look(rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any] | None = None) -> Table:
    """The columns of sampled rows; records and short lists of records become a column per part."""
    columns: list[Column] = []
    remarks: list[str] = []

    def add(name: str, values: list[Any], names: tuple[str, ...] | None = None) -> None:
        column = Column(name, tuple(None if is_missing(value) else value for value in values), names)
        columns.append(column)
        if column.kind == "record" and not is_squad(column):
            for part in dict.fromkeys(part for value in column.present for part in value):
                add(f"{name}.{part}", [None if value is None else value.get(part) for value in column.values])
        elif column.kind == "list" and all(isinstance(one, Mapping) for value in column.present for one in value):
            lengths = {len(value) for value in column.present}
            if len(lengths) == 1 and column.missing == 0 and 0 < (length := lengths.pop()) <= 10:
                for at in range(length):
                    add(f"{name}.{at}", [value[at] for value in column.values])

    for name in dict.fromkeys(name for row in rows for name in row):
        if not name:
            remarks.append("a column without a name is not used")
        elif "." in name:
            remarks.append(f"{quoted(name)} is not used: a dot in a name leads into nested columns; rename it to use it")
        else:
            add(name, [row.get(name) for row in rows], getattr((features or {}).get(name), "names", None))
    return Table(tuple(columns), len(rows), remarks)


def is_missing(value: Any) -> bool:
    return (
        value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and not math.isfinite(value))
    )


def is_squad(column: Column) -> bool:
    """{"text": [...], "answer_start": [...]} in every row."""
    return column.kind == "record" and all({"text", "answer_start"} <= set(value) for value in column.present)
