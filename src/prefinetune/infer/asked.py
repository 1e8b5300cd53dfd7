"""Questions: whose answer stands in a text (spans), or among options (choices)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from prefinetune.errors import listing
from prefinetune.families import Choice, Span
from prefinetune.infer.columns import Column, Table, is_squad, quoted
from prefinetune.infer.roles import Guess, enumerated, first_called, is_flag
from prefinetune.infer.words import (
    ABOUT,
    ANSWER,
    CONTEXT,
    FIRST_OF_PAIR,
    HEADING,
    LABEL,
    MAIN,
    OPTION,
    QUESTION,
    REMARK,
    called,
    words_of,
)  # fmt: skip


def spans(table: Table) -> Iterator[Guess]:
    """A question, a context, and an answer that stands in it."""
    for answers in table.columns:
        if is_squad(answers):
            given = [
                ([value["text"]] if isinstance(value["text"], str) else list(value["text"] or ()))
                for value in answers.values
                if value
            ]
            for context in table.texts:
                inside = [
                    all(text in where for text in texts) for texts, where in zip(given, context.values, strict=False) if where
                ]
                if inside and np.mean(inside) >= 0.95 and any(given):
                    others = [column for column in table.texts if column is not context]
                    if others:
                        question = first_called(others, QUESTION)
                        reasons = (
                            f"{quoted(answers.name)}: answers with their places in {quoted(context.name)}",
                            question.tell(),
                        )
                        yield Guess(Span(question.name, context.name, answers=answers.name), 95, reasons)
    flat = [column for column in table.columns if column.kind == "text" and not column.missing]
    lists = [
        Column(f"{column.name}.0", tuple(value[0] for value in column.values))
        for column in table.columns
        if column.kind == "list" and not column.missing and all(value and isinstance(value[0], str) for value in column.values)
    ]
    for context in table.texts:
        if context.missing or context.words < 6:
            continue
        for answer in [*flat, *lists]:
            if answer is context or 2 * answer.characters > context.characters or is_option(table, answer):
                continue
            pairs = list(zip(answer.values, context.values, strict=True))
            verbatim = float(np.mean([text in where for text, where in pairs]))
            others = [
                column for column in table.texts if column not in (context, answer) and not called(column.name, REMARK | HEADING)
            ]
            marks = [column for column in others if np.mean([value.rstrip().endswith("?") for value in column.present]) > 0.5]
            named = [column for column in others if called(column.name, QUESTION)]
            if not (marks or named) or verbatim < 0.9 or answer.distinct < min(8, 0.2 * len(pairs)):
                continue
            question = (named or marks)[0]
            start = position_of(table, answer, context)
            family = Span(question.name, context.name, answer=answer.name, answer_start=start)
            helps = 8 * (verbatim == 1) + 6 * called(answer.name, ANSWER) + 6 * bool(named) + 4 * called(context.name, CONTEXT)
            share = "every row" if verbatim == 1 else f"{verbatim:.0%} of the rows"
            reasons = (f"{quoted(answer.name)} stands word for word in {quoted(context.name)} in {share}", question.tell())
            doubts = () if verbatim == 1 else (f"{1 - verbatim:.1%} of the answers do not stand in their context",)
            yield Guess(family, 72 + helps, reasons, doubts)


def position_of(table: Table, answer: Column, context: Column) -> str | None:
    """The column that says at which character of the context the answer begins."""
    for column in table.columns:
        if column.whole and not column.missing:
            rows = zip(answer.values, context.values, column.values, strict=True)
            if all(where.startswith(text, int(float(start))) for text, where, start in rows):
                return column.name
    return None


def is_option(table: Table, column: Column) -> bool:
    return any(column.name in group for group in enumerated(table))


def choices(table: Table) -> Iterator[Guess]:
    """Options in a list or in columns that count, and a column that says which is right."""
    sets: list[tuple[Any, list[Any], float]] = []  # (field, options of each row, score)
    for column in table.columns:
        if column.kind == "list" and not column.missing and all(is_options(value) for value in column.values):
            sets.append((column.name, list(column.values), 78 + 8 * called(column.name.removesuffix(".text"), OPTION)))
    for group in enumerated(table):
        parts = [table[name] for name in group]
        if any(part.missing == table.rows for part in parts) or all(map(is_flag, parts)):
            continue
        stem = re.sub(r"(\d+\D*|[A-Ja-j])$", "", group[0])
        bare = stem in ("", *(f"{column.name}." for column in table.columns))
        score = 84.0 if bare or (stem and called(stem.rstrip("_-. "), OPTION)) else 44.0 if len(group) > 2 else 0.0
        if score:
            sets.append((group, list(zip(*(part.values for part in parts), strict=True)), score))
    for options, given, score in sets:
        mine = set(options) if isinstance(options, tuple) else {options}
        for label in table.columns:
            if label.name in mine or label.kind not in ("text", "number", "list") or not label.present:
                continue
            keys, how = right_option(table, label, given, options)
            if how is None:
                continue
            texts, reasons = choice_text(table, mine, label, keys)
            if not texts:
                continue
            where = (
                f"{quoted(options)} holds them as a list" if isinstance(options, str) else f"{listing(options)}: one column each"
            )
            numbers = Counter(len(value) for value in given)
            family = Choice(texts[0] if len(texts) == 1 else tuple(texts), options, label.name, keys)
            told = (f"options: {listing(sorted(numbers))} a row; {where}", f"{quoted(label.name)} {how}", *reasons)
            doubts: tuple[str, ...] = ()
            if how.endswith("?"):
                doubts = (f"{quoted(label.name)} never is 0 nor the last number: whether it counts from 0 or 1 does not show",)
            points = score + 6 * called(label.name, ANSWER | LABEL) - 20 * called(label.name, ABOUT - {"index", "id", "key"})
            yield Guess(family, points, told, doubts)


def is_options(value: Any) -> bool:
    return len(value) >= 2 and all(isinstance(one, (str, int)) for one in value) and len(set(value)) > 1


def right_option(table: Table, label: Column, given: list[Any], options: Any) -> tuple[Any, str | None]:
    """(keys, how the label names the right option), the second None where it does not."""
    rows = [(value, row) for value, row in zip(label.values, given, strict=True) if value is not None]
    if label.whole:
        values = [int(float(value)) for value, _ in rows]
        if all(0 <= value < len(row) for value, (_, row) in zip(values, rows, strict=True)):
            unsure = min(values) > 0 and max(len(row) for _, row in rows) > 2 and not called(label.name, LABEL | ANSWER)
            return None, "is its number, counted from 0" + ("?" if unsure else "")
        if min(values) > 0 and all(value <= len(row) for value, (_, row) in zip(values, rows, strict=True)):
            most = max(len(row) for _, row in rows)
            return tuple(str(number) for number in range(1, most + 1)), "is its number, counted from 1"
        return None, None
    if label.kind != "text":
        return None, None
    for column in table.columns:
        beside = isinstance(options, str) and column.name.rpartition(".")[0] == options.rpartition(".")[0]
        if column.kind == "list" and column.name != options and beside and not column.missing:
            keyed = [(value, keys) for value, keys in zip(label.values, column.values, strict=True) if value is not None]
            if all(value in [str(key) for key in keys] for value, keys in keyed):
                return column.name, f"is one of the keys in {quoted(column.name)}"
    letters = [ord(value.strip().upper()) - ord("A") if len(value.strip()) == 1 else -1 for value, _ in rows]
    if all(0 <= letter < len(row) for letter, (_, row) in zip(letters, rows, strict=True)):
        return None, "is its letter"
    if isinstance(options, str) and all(value in row for value, row in rows):
        return options, "is its text"
    if isinstance(options, tuple):
        for names in (options, tuple(words_of(name)[-1] for name in options)):
            if len(set(names)) == len(names) and all(value in names for value, _ in rows):
                return names, "is the name of its column"
    return None, None


def choice_text(table: Table, options: set[str], label: Column, keys: Any) -> tuple[list[str], list[str]]:
    """The columns of the context of a choice, a question first, and words about them."""
    used = {*options, label.name, *([keys] if isinstance(keys, str) else [])}
    roots = {name.split(".")[0] for name in used}
    left = [
        column
        for column in table.columns
        if column.name not in used
        and column.name.split(".")[0] not in roots
        and not called(column.name, REMARK)
        and not column.is_about
        and (column.is_text or (column.kind == "text" and called(column.name, QUESTION | MAIN | CONTEXT)))
        and not column.missing
    ]
    named = [column for column in left if called(column.name, QUESTION | CONTEXT | MAIN | FIRST_OF_PAIR)]
    chosen = sorted(named or left, key=lambda column: not called(column.name, QUESTION))
    return [column.name for column in chosen], [column.tell() for column in chosen]
