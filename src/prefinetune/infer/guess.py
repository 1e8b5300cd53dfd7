"""Which problem a table poses: its columns looked at by name and by value, and the families they could serve, best first.

Every guess says why in words. Names alone never decide: a column "label" that is different in every row is no label. Values alone
may, but then the confidence is lower. `propose.py` finds the tables and keeps what is guessed here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefinetune.errors import listing
from prefinetune.families import FAMILIES, Choice, Classification, Denoising, Family, Generation, Regression, Span
from prefinetune.infer.columns import FEW_ROWS, MOST_LABELS, Column, Table, is_squad, quoted, tally
from prefinetune.infer.words import (
    ABOUT,
    ANSWER,
    CATEGORY,
    CONTEXT,
    FIRST_OF_PAIR,
    HEADING,
    LABEL,
    MAIN,
    MAYBE_WRITTEN,
    NUMBER,
    OPTION,
    QUESTION,
    REMARK,
    SECOND_OF_PAIR,
    SHORTER,
    WRITTEN,
    called,
    one_of,
    words_of,
)

CONFIDENCE = ("low", "medium", "high")


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


def guess(table: Table) -> list[Guess]:
    """What the table could be, best first; an empty list where nothing fits."""
    found = [
        one for family in (spans, choices, taggings, multi_labels, labelled, generations, raw_texts) for one in family(table)
    ]
    return sorted(found, key=lambda one: -one.score)


def confidence(table: Table, found: Sequence[Guess]) -> str:
    """Of the first guess: from how well it fits, what speaks against it, and how close the next one comes."""
    best = found[0]
    level = 2 if best.score >= 70 else 1 if best.score >= 45 else 0
    level -= len(best.doubts)
    if table.rows < FEW_ROWS:
        level = 0
    label = getattr(best.family, "label", None)
    rivals = [
        one
        for one in found[1:]
        if best.score - one.score < 8 and (one.family.kind != best.family.kind or getattr(one.family, "label", None) != label)
    ]
    return CONFIDENCE[max(0, level - bool(rivals))]


# ---- one generator per family


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


def is_flag(column: Column) -> bool:
    return column.kind == "number" and set(column.numbers) <= {0.0, 1.0}


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


def generations(table: Table) -> Iterator[Guess]:
    """A text, and a text to be written from it."""
    texts = filled_texts(table)
    if len(texts) < 2 or any(is_squad(column) for column in table.columns):
        return
    target, score, doubts = written(table, texts)
    others = [column for column in texts if column is not target]
    sources = sorted([column for column in others if not called(column.name, REMARK)] or others, key=lambda column: column.words)
    reasons = (f"written: {target.tell()}", *(f"read: {column.tell()}" for column in sources))
    if len(sources) == 2:  # the shorter is a question about the longer, or something like it
        family = Generation(sources[0].name, target.name, pair=sources[1].name)
    else:
        family = Generation(joined(sources), target.name)
    yield Guess(family, score, reasons, doubts)


def written(table: Table, texts: list[Column]) -> tuple[Column, float, tuple[str, ...]]:
    """(the text that is to be written, score, doubts)."""
    unlabelled = not any(column.is_label and not column.is_about for column in table.columns)
    longest = max(texts, key=lambda column: column.words)
    fit = [column for column in texts if column.words >= 2 and not (column is longest and called(column.name, SHORTER))]
    strong = [column for column in fit if called(column.name, WRITTEN)]
    weak = [column for column in fit if called(column.name, MAYBE_WRITTEN) and column not in strong]
    if strong:
        others = [column for column in texts if column is not strong[-1]]
        named = any(called(column.name, MAIN | CONTEXT) for column in others)
        return strong[-1], (76 if named or unlabelled else 66) - 16 * (len(strong) > 1), ()
    if len(weak) == 1:
        return weak[0], 60 if unlabelled else 46, ()
    read = [column for column in texts if called(column.name, one_of("dialogue conversation transcript document input"))]
    if len(read) == 1 and len(texts) == 2:
        return next(column for column in texts if column not in read), 55, ()
    target = [column for column in texts if column is not longest][-1]
    return target, 40, (f"that {quoted(target.name)} is the one to be written is a guess: it is the shorter one",)


def raw_texts(table: Table) -> Iterator[Guess]:
    """Texts and nothing to be learned about them: their own words can be hidden and guessed."""
    texts = filled_texts(table)
    if not texts:
        return
    named = [column for column in texts if called(column.name, MAIN)]
    text = max(named or texts, key=lambda column: column.words)
    others = [column for column in table.columns if column is not text]
    score = 20 if not all(column.is_about for column in others) else 72 if called(text.name, MAIN) else 60
    reasons = (text.tell(), "there is no label" if score > 20 else "no other column can be learned from it")
    recur = [
        quoted(c.name)
        for c in others
        if c.is_label or (c.kind == "number" and c.distinct > 2 and not (c.whole and c.distinct == len(c.present)))
    ]
    doubts = (f"going by its values {listing(recur)} could be a label",) if recur else ()
    yield Guess(Denoising(text.name), score - 17 * bool(recur) if score > 20 else score, reasons, doubts)


def first_called(columns: Sequence[Column], known: Set[str]) -> Column:
    return next((column for column in columns if called(column.name, known)), columns[0])
