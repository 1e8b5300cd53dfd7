"""The tasks that ship with us: records only, one module per subject.

A record names a hub copy where that copy has the columns the record reads; where none is known, or the set was brought into
another form, the source is `Hub(None)` (only a mirror will do) and the note says what it was made from. Labels stand in the order
of their indices; a licence is given as the set's own publisher states it.

Suites are tags. Benchmarks: `glue` (nine sets), `superglue` (eight, of which RTE is GLUE's), `tweeteval`. The paper's mixture:
`muppet` (46 sets), the same as `muppet-bart`; `muppet-roberta` is without summarization, which an encoder cannot write;
`muppet-evaluation` marks the sets that the paper's tables report on, some of them evaluation only. Which sets these are stands
in muppet.py; docs/catalog.md lists them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module

from prefinetune.catalog.muppet import suites
from prefinetune.task import Suite

SUBJECTS = (
    "nli", "similarity", "language", "sentiment", "topic", "social", "intent", "relations", "commonsense", "exams", "reading",
    "spans", "generation",
)  # fmt: skip


@cache
def catalog() -> Suite:
    """All records, in the order of the subjects."""
    modules = [import_module(f"prefinetune.catalog.{subject}") for subject in SUBJECTS]
    records = [task for module in modules for task in module.TASKS]
    return Suite("catalog", tuple(replace(task, tags={*task.tags, *suites(task)}) for task in records))
