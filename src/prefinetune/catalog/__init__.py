"""The tasks that ship with us: records only, one module per subject.

A record names a hub copy where that copy has the columns the record reads; where none is known, or the set was brought into
another form, the source is `Hub(None)` (only a mirror will do) and the note says what it was made from. Labels stand in the order
of their indices; a licence is given as the set's own publisher states it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from prefinetune.task import Suite

SUBJECTS = (
    "nli", "similarity", "language", "sentiment", "topic", "social", "intent", "relations", "commonsense", "exams", "reading",
    "spans", "generation",
)  # fmt: skip


@cache
def catalog() -> Suite:
    """All records, in the order of the subjects."""
    modules = [import_module(f"prefinetune.catalog.{subject}") for subject in SUBJECTS]
    return Suite("catalog", tuple(task for module in modules for task in module.TASKS))
