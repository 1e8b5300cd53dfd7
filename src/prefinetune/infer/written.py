"""Texts to be written from other texts, and texts alone."""

from __future__ import annotations

from collections.abc import Iterator

from prefinetune.errors import listing
from prefinetune.families import Denoising, Generation
from prefinetune.infer.columns import Column, Table, is_squad, quoted
from prefinetune.infer.roles import Guess, filled_texts, joined
from prefinetune.infer.words import CONTEXT, MAIN, MAYBE_WRITTEN, REMARK, SHORTER, WRITTEN, called, one_of


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
