"""How label values in rows become indices: shared by the families that have labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from prefinetune.errors import FieldError, InputError, listing
from prefinetune.families.base import Field


def label_index(value: Any, labels: tuple[str, ...], where: Field) -> int:
    """The index of a label value: by name first, then, for an integer, by position (the hub's ClassLabel form).

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
    if isinstance(value, (int, np.integer)) and 0 <= value < len(labels):
        return int(value)
    raise FieldError(where, value, f"one of the labels {listing(labels)}")


def labels_in(values: Iterable[tuple[int, Any]], where: Field, place: str) -> tuple[str, ...]:
    """The distinct values among (row, value) pairs, sorted (numbers by size), as names.

    Raises:
        InputError: there are fewer than two, or a value cannot be a label.
    """
    seen: set[Any] = set()
    for row, value in values:
        if value is None or (isinstance(value, float) and (math.isnan(value) or not value.is_integer())) or value == "":
            raise FieldError(where, value, "a label (a name or a whole number)").at(place, row)
        if not isinstance(value, (str, bool, int, float, np.integer)):
            raise FieldError(where, value, f"a label (a name or a whole number), not {type(value).__name__}").at(place, row)
        seen.add(int(value) if isinstance(value, (bool, float, np.integer)) else value)
    names = tuple(str(value) for value in sorted(seen, key=lambda v: (isinstance(v, str), v)))
    check_labels(names, place)
    return names


def check_labels(labels: tuple[str, ...], place: str) -> None:
    if len(labels) < 2:
        has = f"only the label {labels[0]!r}" if labels else "no label at all"
        raise InputError(f"{place}: {has}; classification needs at least two different labels")
    if len(set(labels)) != len(labels):
        twice = sorted({name for name in labels if labels.count(name) > 1})
        raise InputError(f"{place}: labels declared twice: {listing(twice)}")
