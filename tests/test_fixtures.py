"""Every record of the catalogue on a few rows made up for it, tests/hub/SLUG/SPLIT.jsonl: what it says can be read, learned from
and scored, on any machine. With a mirror of the real data at hand: the form of the rows is theirs, and no text is.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefinetune.catalog import catalog
from prefinetune.families import Generation
from prefinetune.splits import OpenTask, open_task
from prefinetune.task import Task
from test_catalog import MIRROR, RIGHT_OPTION, SPLITS, WRITTEN, check_span, check_text, with_mirror

HUB = Path(__file__).parent / "hub"
TASKS = [task for task in catalog() if (HUB / task.slug).is_dir()]  # the first test says which have none
FEW = 5  # labels, at most, must all occur
COPIED = 25  # characters from which on a text that stands in the real data, too, was not made up
ARC = dict.fromkeys(  # some of its questions number their options
    ("ai2_arc/ARC-Challenge", "ai2_arc/ARC-Easy"),
    lambda row: row["choices"]["text"]["ABCDE12345".index(row["answerKey"]) % 5],
)
RIGHT = RIGHT_OPTION | ARC


def rows_of(slug: str) -> dict[str, list[dict[str, Any]]]:
    """Split -> its rows, as the files have them."""
    files = {split: HUB / slug / f"{split}.jsonl" for split in SPLITS}
    return {
        split: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for split, path in files.items()
        if path.exists()
    }


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory):
    """A cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFINETUNE_CACHE", str(tmp_path_factory.mktemp("prepared")))
        yield


@cache
def opened(name: str) -> OpenTask:
    return open_task(catalog()[name], HUB)


def examples_of(task: Task, split: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """(row, its example) of the rows that have a label."""
    family = opened(task.name).family
    for row in rows_of(task.slug)[split]:
        if not family.skips(row):
            yield row, family.example(row)


def named(tasks: Any) -> Any:
    return pytest.mark.parametrize("task", list(tasks), ids=lambda task: task.name)


# ---- the files


def test_every_record_has_a_folder_of_rows_and_no_folder_is_left_over():
    assert {folder.name for folder in HUB.iterdir()} == {task.slug for task in catalog()}


@named(TASKS)
def test_a_folder_holds_three_to_five_rows_to_begin_with_and_a_few_for_every_other_split(task: Task):
    assert {path.name for path in (HUB / task.slug).iterdir()} <= {f"{split}.jsonl" for split in SPLITS}
    first, *others = rows_of(task.slug).values()
    assert 3 <= len(first) <= 5
    assert all(1 <= len(rows) <= 5 for rows in others)
    assert task.evaluation_only == ("train" not in rows_of(task.slug))


@named(task for task in TASKS if len(getattr(task.family, "labels", None) or ()) in range(1, FEW + 1))
def test_a_few_labels_all_occur_in_the_first_split(task: Task):
    family, split = opened(task.name).family, next(iter(rows_of(task.slug)))
    seen: set[str] = set()
    for _, example in examples_of(task, split):
        indices = np.atleast_1d(example.target).tolist()  # one, one per word, or one per label that applies
        seen |= {family.labels[index] for index in indices}
    assert seen == set(family.labels)


@named(task for task in TASKS if task.family.skip)
def test_a_record_that_leaves_rows_out_has_such_a_row(task: Task):
    assert any(task.family.skips(row) for rows in rows_of(task.slug).values() for row in rows)


# ---- what becomes of them


def check_option(task: Task, row: dict[str, Any], example: Any, _: Any) -> None:
    assert task.family.name_target(example) == RIGHT[task.name](row)
    assert [option for _, option in example.texts].count(RIGHT[task.name](row)) == 1


@named(task for task in TASKS if task.name in RIGHT or task.name in WRITTEN or task.family.kind == "span")
def test_the_answer_is_the_one_that_the_row_names(task: Task):
    check = {"choice": check_option, "generation": check_text, "span": check_span}[task.family.kind]
    for split in rows_of(task.slug):
        for row, example in examples_of(task, split):
            check(task, row, example, {})


def test_every_row_is_learned_from_or_scored_and_costs_a_finite_loss(tiny_model, tiny_bart):
    import torch
    import transformers

    from prefinetune.batch import Drawn, micro_batches
    from prefinetune.model import MultiTask
    from prefinetune.objective import scaled
    from prefinetune.pretrained import load_backbone
    from prefinetune.start import check_tasks
    from prefinetune.store import build_store, encode_split
    from prefinetune.tokenizer import load_tokenizer

    losses: dict[str, list[float]] = defaultdict(list)
    expected: dict[str, int] = {}
    for folder, generates in ((tiny_model, False), (tiny_bart, True)):
        tasks = [task for task in TASKS if isinstance(task.family, Generation) == generates]
        config = transformers.AutoConfig.from_pretrained(folder)
        tokenizer = load_tokenizer(str(folder), None, config)
        check_tasks(tasks, config, tokenizer, folder.name)
        drawn = []
        for task in tasks:
            one = opened(task.name)
            scored = {role: len(encode_split(one, role, tokenizer)) for role in one.roles}
            assert sum(scored.values()) == sum(len(list(examples_of(task, split))) for split in rows_of(task.slug)), (
                f"{task.name}: rows got lost"
            )
            store = build_store(one, one.roles[0], tokenizer)
            examples = [one.family.draw(store[at], tokenizer, np.random.default_rng(at)) for at in range(len(store))]
            drawn += [Drawn(example, task.name, one.family, 1.0) for example in examples]
            expected[task.name] = scored[one.roles[0]]
        model = MultiTask(load_backbone(str(folder)), {task.name: opened(task.name).family for task in tasks}).eval()
        with torch.no_grad():
            for batch in micro_batches(drawn, 8192, model.layout(tokenizer)):
                for segment, output, _ in model(batch):
                    family = segment.family
                    losses[segment.task] += scaled(family.loss(output, segment), family.outcomes(output, segment)).tolist()
    assert {name: len(found) for name, found in losses.items()} == expected
    assert expected.keys() == {task.name for task in TASKS}
    assert all(math.isfinite(loss) and loss > 0 for found in losses.values() for loss in found)


# ---- with the data


@with_mirror
def test_the_rows_have_the_columns_and_types_of_the_real_ones():
    import pyarrow as pa
    import pyarrow.parquet as pq

    problems = []
    for task in TASKS:
        real = {path.stem: pq.read_schema(path) for path in (MIRROR / task.slug).glob("*.parquet")}
        made = rows_of(task.slug)
        if not real.keys() <= made.keys():
            problems.append(f"{task.name}: splits {sorted(made)}, in the mirror {sorted(real)}")
        for split, rows in made.items() if real else ():
            schema = real.get(split) or next(iter(real.values()))
            for row in rows:
                if list(row) != schema.names:
                    problems.append(f"{task.name}, {split}: columns {list(row)}, in the mirror {schema.names}")
                    break
            else:
                for column in schema:
                    values = [row[column.name] for row in rows]
                    try:
                        same = pa.array(values, column.type).to_pylist() == values
                    except (pa.ArrowInvalid, pa.ArrowTypeError):
                        same = False
                    if not same:
                        problems.append(f"{task.name}, {split}: {column.name} is no {column.type}")
    assert not problems, "\n".join(problems)


@with_mirror
def test_no_text_was_copied_from_the_real_rows():
    import pyarrow.parquet as pq

    copied, compared = [], 0
    for task in TASKS:
        columns = [column for path in sorted((MIRROR / task.slug).glob("*.parquet")) for column in pq.read_table(path).columns]
        real = "\n".join(text for column in columns for text in texts_in(column.to_pylist())).lower()
        made = {text for text in texts_in(rows_of(task.slug)) if len(text) >= COPIED}
        copied += [f"{task.name}: {text!r}" for text in sorted(made) if text.lower() in real]
        compared += len(made) if real else 0
    assert compared > 1000
    assert not copied, "\n".join(copied)


def texts_in(value: Any) -> Iterator[str]:
    """All texts in nested lists and dictionaries, keys aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)
