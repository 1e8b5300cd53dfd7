"""Which problem a table poses: its columns looked at by name and by value, and the families they could serve, best first.

Every guess says why in words. Names alone never decide: a column "label" that is different in every row is no label. Values alone
may, but then the confidence is lower. `propose.py` finds the tables and keeps what is guessed here.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefinetune.infer.asked import choices, spans
from prefinetune.infer.columns import FEW_ROWS, Table
from prefinetune.infer.labelled import labelled, multi_labels, taggings
from prefinetune.infer.roles import Guess
from prefinetune.infer.written import generations, raw_texts

CONFIDENCE = ("low", "medium", "high")


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
