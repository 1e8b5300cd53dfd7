"""What a task's rows become, for eyes: row, example, tokens, target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefinetune.errors import FieldError
from prefinetune.families.base import plain
from prefinetune.sources import open_task
from prefinetune.task import Task
from prefinetune.tokenizer import Tokenizer


def preview_task(task: Task, num_rows: int, tokenizer: Tokenizer | None = None, data_root: Path | None = None) -> dict[str, Any]:
    """The first rows of a task through its adapter, and with a tokenizer as the model reads them.

    Raises:
        InputError: the rows cannot be found or used.
    """
    opened = open_task(task, data_root)
    role = opened.roles[0]
    split = opened.split(role)
    examples: list[dict[str, Any]] = []
    _, rows = next(iter(split.chunks(max(num_rows * 4, 8))))
    for index, row in enumerate(rows):
        if len(examples) == num_rows:
            break
        if opened.family.skips(row):
            continue
        try:
            example = opened.family.example(row)
        except FieldError as error:
            raise error.at(split.place, split.number(index)) from None
        shown: dict[str, Any] = {
            "row": split.number(index), "texts": example.texts, "target": opened.family.name_target(example),
        }  # fmt: skip
        if tokenizer:
            encoded = opened.family.encode([example], tokenizer)
            shown["tokens"] = [tokenizer.tokenizer.decode(ids) for one in encoded for ids in one.sequences]
            shown["written"] = [tokenizer.tokenizer.decode(one.output) for one in encoded if one.output is not None]
        examples.append(shown)
    return {
        "task": task.name, "family": task.family.kind, "fields": plain(opened.family.settings()),
        "rows": {role: len(opened.split(role)) for role in opened.roles}, "examples": examples,
    }  # fmt: skip
