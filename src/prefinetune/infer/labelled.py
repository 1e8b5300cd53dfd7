"""Texts with a label, several, a number, or a tag for every word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from prefinetune.errors import listing
from prefinetune.families import FAMILIES, Classification, Family, Regression
from prefinetune.infer.columns import MOST_LABELS, Column, Table, quoted, tally
from prefinetune.infer.roles import Guess, inputs, is_flag
from prefinetune.infer.words import CATEGORY, LABEL, NUMBER, called, words_of


def taggings(table: Table) -> Iterator[Guess]:
    """Two lists of equal length in every row: words, and a tag for each."""
    if "tagging" not in FAMILIES:
        return
    lists = [column for column in table.columns if column.kind == "list" and not column.missing]
    for tokens in lists:
        words = [one for value in tokens.values for one in value]
        if (
            not all(tokens.values)
            or not all(isinstance(one, str) for one in words)
            or np.mean([" " in one for one in words]) > 0.1
        ):
            continue
        for tags in lists:
            if tags is tokens or not all(len(a) == len(b) for a, b in zip(tokens.values, tags.values, strict=True)):
                continue
            values = Counter(tag for row in tags.values for tag in row)
            different = len(set(words))
            simple = all(isinstance(tag, (str, int)) for tag in values)
            if (
                not simple
                or not 2 <= len(values) <= MOST_LABELS
                or len({len(row) for row in tokens.values}) < 2
                or len(values) >= different
            ):
                continue
            named = called(tags.name, {"tags", "tag", "labels", "label", "ner", "pos", "bio", "iob", "entities", "slots"})
            score = (
                72
                + 10 * named
                + 8 * called(tokens.name, {"tokens", "words", "token", "word"})
                - 4 * ("pos" in words_of(tags.name))
            )
            reasons = (
                f"{quoted(tokens.name)} and {quoted(tags.name)} are equally long in every row",
                f"{quoted(tags.name)}: {len(values)} tags, {tally(values.most_common())}",
            )
            yield Guess(FAMILIES["tagging"](tokens=tokens.name, tags=tags.name), score, reasons)  # type: ignore[call-arg]


def multi_labels(table: Table) -> Iterator[Guess]:
    """Several labels for one text: in a list, in one text with something between them, or as columns of 0 and 1."""
    if "multi-label" not in FAMILIES:
        return
    make: Callable[..., Family] = FAMILIES["multi-label"]
    for column in table.columns:
        if column.kind == "list":
            simple = all(isinstance(one, (str, int)) for value in column.present for one in value)
            separator, given = None, [list(value) for value in column.present] if simple else []
        elif column.kind == "text" and not column.is_about:
            separator, given = split_by(column)
        else:
            continue
        parts = Counter(part for row in given for part in row)
        lengths = {len(row) for row in given}
        if (
            not 2 <= len(parts) <= MOST_LABELS
            or sum(parts.values()) < 2.5 * len(parts)
            or (len(lengths) == 1 and separator is None and lengths != {1})
        ):
            continue
        if any(len(set(row)) < len(row) for row in given):
            continue
        text, pair, reasons, doubts = inputs(table, {column.name})
        if text is None:
            continue
        named = called(column.name, LABEL | CATEGORY | {"emotions", "themes", "genres", "keywords", "subjects"})
        how = "a list" if separator is None else f"parts with {separator!r} between them"
        most = f"{min(lengths)} to {max(lengths)}" if len(lengths) > 1 else f"{max(lengths)}"
        told = f"{quoted(column.name)}: {how}, {most} of {len(parts)} labels a row, {tally(parts.most_common())}"
        family = make(text=text, pair=pair, label=column.name, separator=separator)
        yield Guess(family, (68 if separator is None else 56) + 14 * named, (told, *reasons), doubts)
    flags = [column for column in table.columns if not column.missing and column.kind in ("number", "text") and is_flag(column)]
    if len(flags) >= 3:
        text, pair, reasons, doubts = inputs(table, {column.name for column in flags})
        if text is not None:
            told = f"{len(flags)} columns of 0 and 1, {tally((flag.name, int(sum(flag.numbers))) for flag in flags)}"
            sums = {int(sum(values)) for values in zip(*(flag.numbers for flag in flags), strict=True)}
            if sums == {1}:
                doubts = (
                    *doubts,
                    "exactly one of these columns is 1 in every row: a single label in a column of its own would say it",
                )
            yield Guess(make(text=text, pair=pair, label=tuple(flag.name for flag in flags)), 66, (told, *reasons), doubts)


def split_by(column: Column) -> tuple[str | None, list[list[str]]]:
    """The sign between the parts of a column's values, and the parts; (None, []) where there is none."""
    for separator in ("|", ";", ","):
        rows = [[part.strip() for part in value.split(separator) if part.strip()] for value in column.present]
        several = np.mean([len(row) > 1 for row in rows])
        short = np.mean([len(part.split()) <= 3 for row in rows for part in row]) if rows else 0
        if several >= 0.15 and short >= 0.95 and all(rows):
            return separator, rows
    return None, []


def labelled(table: Table) -> Iterator[Guess]:
    """Classification and regression: a text, or two, and a column that is a label or a number."""
    candidates = [column for column in table.columns if column.present and (column.is_label or is_measure(column))]
    for column in candidates:
        same = {other.name for other in table.columns if other is not column and says_the_same(column, other)}
        text, pair, reasons, doubts = inputs(table, {column.name, *same})
        if text is None:
            continue
        strength = strength_of(column)
        numbers = [other for other in table.columns if other.name in same and other.kind == "number"]
        if column.kind == "text" and numbers:  # names are worth more than the numbers that stand for them
            strength = max(strength, *map(strength_of, numbers)) + 6
            reasons = (
                *reasons,
                f"{quoted(column.name)} has the names for the numbers in {listing(quoted(c.name) for c in numbers)}",
            )
        told, score = (column.tell(), *reasons), 50 + strength
        label = column.name
        as_class = None if not column.is_label else Classification(text, pair, label)
        as_number = None if column.kind != "number" else Regression(text, pair, label)
        if as_class is not None:
            kind, why = label_or_number(column)
        else:
            kind, why = "regression", f"{quoted(label)} has {'whole' if column.whole else 'broken'} numbers on a scale"
            if column.whole and called(label, LABEL | CATEGORY):
                doubts = (
                    *doubts,
                    f"{quoted(label)} sounds like a label, but {column.distinct:,} in {table.rows:,} rows are very many",
                )
                score -= 26
        if why:
            told = (*told, why)
        for family in (as_class, as_number):
            if family is not None:
                unsure = kind == "either" and family.kind == "classification"
                right = family.kind == kind or unsure
                more = (f"the numbers of {quoted(label)} are in order: regression would use that",) if unsure else ()
                if family.kind == "regression" and kind == "either":
                    told = (f"the numbers of {quoted(label)} are in order", *told)
                if right or kind == "either":
                    yield Guess(family, score if right else score - 4 - 6 * (column.distinct > 2), told, (*doubts, *more))


def strength_of(column: Column) -> int:
    """How much a column's name, and what it is apart from that, speak for its being the label."""
    strength = 30 if called(column.name, LABEL) else 22 if called(column.name, CATEGORY | NUMBER) else 0
    strength -= 22 * (column.is_about and strength < 30)
    return strength - 25 * bool(column.kind == "text" and split_by(column)[0])  # several labels in one text


def is_measure(column: Column) -> bool:
    """Whether it holds numbers that could be learned."""
    return column.kind == "number" and column.distinct > 2 and not column.is_about


def label_or_number(column: Column) -> tuple[str, str]:
    """Whether a column whose values recur is a label ("classification"), a number ("regression") or could be both ("either")."""
    if column.kind == "text" or column.names or column.distinct == 2:
        return "classification", ""
    low, high, d = min(column.numbers), max(column.numbers), column.distinct
    without_gaps = high - low + 1 == d
    label, number = called(column.name, LABEL | CATEGORY), called(column.name, NUMBER)
    if label and not number:
        return "classification", ""
    if without_gaps and d <= 10:
        return ("either", "") if number else ("classification", "")
    if number:
        return "regression", f"{quoted(column.name)} sounds like a number on a scale"
    if without_gaps and low in (0, 1) and len(column.present) / d >= 5:
        return "classification", f"{quoted(column.name)} counts from {low:g} to {high:g} without gaps, as numbered labels do"
    return "regression", f"{quoted(column.name)} has gaps between its whole numbers, as a measure has"


def says_the_same(one: Column, other: Column) -> bool:
    """Whether each value of one goes with exactly one value of the other: a label and its name."""
    if one.distinct != other.distinct or not (one.is_label and other.is_label):
        return False
    pairs = {(repr(a), repr(b)) for a, b in zip(one.values, other.values, strict=True) if a is not None and b is not None}
    return len(pairs) == one.distinct
