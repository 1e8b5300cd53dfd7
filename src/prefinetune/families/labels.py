"""How label values in rows become indices: shared by the families that have labels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefinetune.errors import FieldError, InputError, listing
from prefinetune.families.base import Field, distinct_rows

if TYPE_CHECKING:
    from datasets import Dataset

NUMBER = re.compile(r"-?[0-9]{1,18}")  # a table's cells are texts: "10" comes after "2" all the same


def label_index(value: Any, labels: tuple[str, ...], where: Field) -> int:
    """The index of a label value: by name first, then, for a whole number, by position (the hub's ClassLabel form).

    Raises:
        FieldError: the value is neither.
    """
    if isinstance(value, (bool, np.bool_)):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = str(value)
    if name in labels:
        return labels.index(name)
    if isinstance(value, str) and value.isdecimal():  # as tables hold it
        value = int(value)
    if isinstance(value, (int, np.integer)) and 0 <= value < len(labels):
        return int(value)
    raise FieldError(where, value, f"one of the labels {listing(labels)}")


def hub_labels(rows: Dataset, where: Field) -> tuple[str, ...] | None:
    """The names that the hub gives the values of a column, or of the lists in it, where it does."""
    feature = rows.features.get(where) if isinstance(where, str) else None
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return tuple(names) if names else None


def listed_values(rows: Dataset, where: Field, given: Callable[[Mapping[str, Any]], Iterable[Any]], place: str) -> Iterator[Any]:
    """The values in what `given` makes of the rows. Rows for which it raises FieldError are passed over: they will be set aside.

    Raises:
        InputError: it raises FieldError for all of them.
    """
    problem, usable = None, False
    for row in distinct_rows(rows, where):
        try:
            yield from given(row)
            usable = True
        except FieldError as error:
            problem = problem or error
    if problem and not usable:
        raise InputError(f"{place}: {problem}")


def labels_in(values: Iterable[Any], where: Field, place: str) -> tuple[str, ...]:
    """The distinct labels among values, sorted (numbers by size), as names. Values that are no labels are passed over: their rows
    will be set aside.

    Raises:
        InputError: there are fewer than two.
    """
    seen: set[Any] = set()
    problem = None
    for value in values:
        if value is None or (isinstance(value, float) and (math.isnan(value) or not value.is_integer())) or value == "":
            problem = problem or FieldError(where, value, "a label (a name or a whole number)")
        elif not isinstance(value, (str, bool, int, float, np.integer)):
            problem = problem or FieldError(where, value, f"a label (a name or a whole number), not {type(value).__name__}")
        else:
            seen.add(int(value) if isinstance(value, (bool, float, np.integer)) else value)
    if problem and not seen:
        raise InputError(f"{place}: {problem}")
    names = tuple(sorted(map(str, seen), key=lambda name: (0, int(name), name) if NUMBER.fullmatch(name) else (1, 0, name)))
    check_labels(names, place)
    return names


def check_labels(labels: tuple[str, ...], place: str) -> None:
    if len(labels) < 2:
        has = f"only the label {labels[0]!r}" if labels else "no label at all"
        raise InputError(f"{place}: {has}; a task needs at least two different labels")
    if len(set(labels)) != len(labels):
        twice = sorted({name for name in labels if labels.count(name) > 1})
        raise InputError(f"{place}: labels declared twice: {listing(twice)}")


def name_outputs(config: Any, labels: Sequence[str]) -> None:
    """Tell a Transformers configuration what its outputs are called."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}


def f1_of_counts(counts: np.ndarray) -> np.ndarray:
    """F1 [...] of how many were right, predicted and true [..., 3], or of means of these; 0 where there is none of them."""
    right, predicted, true = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    both = predicted + true
    return np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
