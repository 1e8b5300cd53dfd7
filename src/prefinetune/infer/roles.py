"""A guess, and what columns are to each other: which belong together, and which texts a label is about."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from prefinetune.errors import listing
from prefinetune.families import Family
from prefinetune.infer.columns import Column, Table, quoted
from prefinetune.infer.words import CONTEXT, FIRST_OF_PAIR, HEADING, LABEL, MAIN, QUESTION, REMARK, SECOND_OF_PAIR, called


@dataclass(frozen=True)
class Guess:
    """A family that a table could serve.

    Attributes:
        score: how well names and values agree with it; comparable among guesses of one table.
        reasons: what speaks for it.
        doubts: what speaks against it; each lowers the confidence by a step.
    """

    family: Family
    score: float
    reasons: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def inputs(table: Table, taken: set[str]) -> tuple[Any, Any, tuple[str, ...], tuple[str, ...]]:
    """(text, pair, reasons, doubts): which of the text columns a label is about; text None where there is none."""
    texts = [column for column in filled_texts(table) if column.name not in taken]
    texts = [column for column in texts if not called(column.name, REMARK - MAIN)] or texts
    if not texts:
        return None, None, (), ()
    first, second, doubts = readings(table, texts, taken)
    together = ("a heading and its text are read as one",) if len(first) > 1 else ()
    return joined(first), joined(second), (*(column.tell() for column in [*first, *second]), *together), doubts


def readings(table: Table, texts: list[Column], taken: set[str]) -> tuple[list[Column], list[Column], tuple[str, ...]]:
    """(columns of the first text, columns of the second one, doubts)."""
    for group in enumerated(table):
        pair = [column for column in texts if column.name in group]
        if len(pair) == 2:
            return pair[:1], pair[1:], ()
    headings = [column for column in texts if called(column.name, HEADING)]
    bodies = [column for column in texts if called(column.name, MAIN) and column not in headings]
    if len(texts) == 2 and len(headings) == len(bodies) == 1:
        return [headings[0], bodies[0]], [], ()
    asked = [next((c for c in texts if called(c.name, known)), None) for known in (CONTEXT, QUESTION, {"answer"})]
    if None not in asked and len({id(column) for column in asked}) == 3:
        return asked[:1], asked[1:], ()  # type: ignore[return-value]
    recurring = [  # an aspect, say, or a hypothesis that stands with many premises
        column
        for column in table.columns
        if column.is_label and column.kind == "text" and not column.is_about and column.name not in taken
        and called(column.name, SECOND_OF_PAIR - LABEL)
    ]  # fmt: skip
    for first in texts:
        for second in [*texts, *recurring]:
            if first is not second and called(first.name, FIRST_OF_PAIR) and called(second.name, SECOND_OF_PAIR):
                either = called(first.name, SECOND_OF_PAIR) and called(second.name, FIRST_OF_PAIR)
                if not either or texts.index(first) < [*texts, *recurring].index(second):
                    return [first], [second], ()
    prose = [column for column in texts if column.words >= 3]
    main = [column for column in prose if called(column.name, MAIN)]
    if len(texts) == 1:
        return texts, [], ()
    if len(main) == 1 or len(prose) == 1:
        chosen = (main if len(main) == 1 else prose)[0]
        others = [column for column in prose if column is not chosen]
        names = listing(quoted(column.name) for column in others)
        doubts = [f"whether {names} should be read too"] if others else []
        if any(column.words > chosen.words / 2 for column in others):
            doubts.append(f"{names} and {quoted(chosen.name)} are about as long, which speaks for a pair")
        return [chosen], [], tuple(doubts)
    first, second = (main if len(main) == 2 else prose if len(prose) >= 2 else texts)[:2]
    return [first], [second], (f"whether {quoted(first.name)} and {quoted(second.name)} are a pair, or one of them is enough",)


def joined(columns: list[Column]) -> Any:
    """The field that these columns are together."""
    names = tuple(column.name for column in columns)
    return names if len(names) > 1 else names[0] if names else None


def filled_texts(table: Table) -> list[Column]:
    """Text columns that are hardly ever empty, as a row without its text is of no use; where there is none, the fullest."""
    full = [column for column in table.texts if column.missing <= 0.02 * table.rows]
    return full or sorted(table.texts, key=lambda column: column.missing)[:1]


def enumerated(table: Table) -> list[tuple[str, ...]]:
    """Groups of text columns whose names differ only in a number or letter that counts: option1, option2; A, B, C."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for column in table.columns:
        if column.kind not in ("text", "number"):
            continue
        for pattern in (r"(.*?)(\d+)(\D*)", r"(.*?(?:^|[_\-. ]|(?<=[a-z])))([A-J])()", r"(.*?(?:^|[_\-. ]))([a-j])()"):
            if match := re.fullmatch(pattern, column.name):
                before, mark, after = match.groups()
                groups.setdefault((before, after), {})[mark] = column.name
                break
    found = []
    for marks in groups.values():
        order = sorted(marks, key=lambda mark: int(mark) if mark.isdigit() else ord(mark))
        places = [int(mark) if mark.isdigit() else ord(mark.upper()) - ord("A") for mark in order]
        if len(order) >= 2 and places == list(range(places[0], places[0] + len(places))) and places[0] in (0, 1):
            found.append(tuple(marks[mark] for mark in order))
    return found


def is_flag(column: Column) -> bool:
    return column.kind == "number" and set(column.numbers) <= {0.0, 1.0}


def first_called(columns: Sequence[Column], known: Set[str]) -> Column:
    return next((column for column in columns if called(column.name, known)), columns[0])
