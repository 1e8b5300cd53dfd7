"""Labelled tasks from documentation: what the demo learns from, offline and without any data of its own.

Objects that `read` found are divided once. An object of the evaluation part stands in the targets' test splits and nowhere else:
not in a pre-finetuning task, not in a target's training rows, not in the raw text. Names that would give an answer away are
replaced by NAME.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from prefinetune.demo import rows as made
from prefinetune.demo.read import TARGET_PACKAGES, Doc, digest, in_processes, normal, read_packages, sentences
from prefinetune.demo.rows import LEAST_PER_LABEL, Maker, Row, first_words
from prefinetune.families import Classification, Denoising, Family, Span
from prefinetune.sources import Rows
from prefinetune.task import Task

EVALUATION_PERCENT = 25  # of objects
LEAST_ROWS, MOST_CLASSES = 400, 12
MOST_FOUND = 20_000  # rows of a pre-finetuning task to choose from
TRAIN_ROWS, VALIDATION_ROWS = 8_000, 300
TARGET_ROWS = {"train": 4_000, "validation": 400, "test": 600}
LEAST_TEST_ROWS = 200  # with fewer, intervals are wider than any gain that may be hoped for
RAW_WORDS = 200  # of a text for denoising
MODULE_TASKS = 9  # packages whose sub-modules are a pre-finetuning task


@dataclass(frozen=True)
class Mined:
    texts: list[str]  # raw text for denoising, no two alike
    tasks: tuple[Task, ...]  # for pre-finetuning
    targets: tuple[Task, ...]  # kept out of it


@dataclass(frozen=True)
class Recipe:
    """How rows of one task are made. Classes are declared when the rows are there; `most` bounds their number."""

    name: str
    family: Family
    rows: Maker
    note: str
    most: int = MOST_CLASSES


def mine(seed: int = 0, progress: Callable[[str], None] | None = None, packages: Sequence[Path] | None = None) -> Mined:
    """Read the documentation of `packages` (folders; by default of all that is installed) and make tasks of it.

    The same seed and installation give the same rows. A task with fewer than 400 training rows or two classes is left out.
    """
    reading = read_packages(packages, progress)
    training, evaluation = divide(reading.docs)
    texts = raw_texts(training)
    ours = recipes(training)
    jobs = [partial(learned, recipe, training, seed) for recipe in ours]
    jobs += [partial(kept_out, recipe, training, evaluation, seed) for recipe in target_recipes()]
    done = list(in_processes(lambda at: jobs[at](), range(len(jobs))))
    tasks, targets = ([task for task in part if task] for part in (done[: len(ours)], done[len(ours) :]))
    if len(texts) >= LEAST_ROWS:
        tasks.append(denoising(texts, seed))
    if progress is not None:
        progress(
            f"{len(reading.docs):,} objects in {reading.files:,} files ({reading.unreadable} unreadable): "
            f"{len(tasks)} tasks, {len(targets)} targets, {len(texts):,} texts"
        )
    return Mined(texts, tuple(tasks), tuple(targets))


def divide(docs: Sequence[Doc]) -> tuple[list[Doc], list[Doc]]:
    """(training, evaluation) by a hash of the summary; what an evaluation object says word for word as a training one is cut."""
    held = {doc.key for doc in docs if int(doc.key, 16) % 100 < EVALUATION_PERCENT}
    training = [doc for doc in docs if doc.key not in held]
    pieces = {piece for doc in training for piece in doc.pieces()}
    seen = {normal(part) for piece in pieces for part in (piece, *sentences(piece))}
    new = lambda text: text if seen.isdisjoint(map(normal, (text, *sentences(text)[:1]))) else ""  # noqa: E731
    evaluation = [
        replace(
            doc,
            body=tuple(filter(new, doc.body)),
            params=tuple(param for param in doc.params if new(param.text)),
            returned=(doc.returned[0], new(doc.returned[1])),
            raised=tuple(item for item in doc.raised if new(item[1])),
        )
        for doc in docs
        if doc.key in held and new(doc.summary)
    ]
    return training, evaluation


def raw_texts(docs: Sequence[Doc]) -> list[str]:
    """One text per object, without sentences that stood in an earlier one."""
    texts, seen = [], set()
    for doc in docs:
        fields = [f"{param.name}: {param.text}" for param in doc.params]
        parts = []
        for part in [doc.summary, *doc.body, *fields, doc.returned[1], *(text for _, text in doc.raised)]:
            if part and (once := normal(part)) not in seen:
                seen.add(once)
                parts.append(part if part[-1] in ".!?:" else part + ".")
        if text := first_words(parts, RAW_WORDS):
            texts.append(text)
    return texts


# ---- rows -> tasks


def learned(recipe: Recipe, docs: Sequence[Doc], seed: int) -> Task | None:
    """A pre-finetuning task, or None if there is too little for it."""
    rng = random.Random(f"{seed} {recipe.name}")
    found = islice(recipe.rows(rng.sample(docs, len(docs)), rng), MOST_FOUND)
    rows = distinct(found)
    labels = classes(recipe, rows)
    train, validation = split(balanced(rows, labels, rng), VALIDATION_ROWS)
    return record(recipe, labels, {"train": train[:TRAIN_ROWS], "validation": validation})


def kept_out(recipe: Recipe, training: Sequence[Doc], evaluation: Sequence[Doc], seed: int) -> Task | None:
    rng = random.Random(f"{seed} {recipe.name}")
    rows = distinct(recipe.rows(training, rng))
    labels = classes(recipe, rows)
    train, validation = split(balanced(rows, labels, rng), TARGET_ROWS["validation"])
    # Two texts that differ only in a name are one text after masking.
    test = balanced(distinct(recipe.rows(evaluation, rng), others=rows), labels, rng)
    if len(test) < LEAST_TEST_ROWS:
        return None
    splits = {"train": train, "validation": validation, "test": [row for _, row in test]}
    return record(recipe, labels, {name: rows[: TARGET_ROWS[name]] for name, rows in splits.items()})


def denoising(texts: list[str], seed: int) -> Task:
    recipe = Recipe("raw-text", Denoising("text"), lambda docs, rng: (), "Fill in masked words of documentation.")
    order = random.Random(f"{seed} {recipe.name}").sample(range(len(texts)), len(texts))
    held = min(VALIDATION_ROWS, len(texts) // 10)
    rows = [{"text": texts[index]} for index in order]
    task = record(recipe, None, {"train": rows[held : held + TRAIN_ROWS], "validation": rows[:held]})
    assert task is not None
    return task


def record(recipe: Recipe, labels: tuple[str, ...] | None, splits: Mapping[str, list[dict[str, Any]]]) -> Task | None:
    if len(splits["train"]) < LEAST_ROWS or not splits["validation"] or (labels is not None and len(labels) < 2):
        return None
    return Task(
        f"docs/{recipe.name}",
        Rows(splits, name=f"documentation, {recipe.name}"),
        replace(recipe.family, labels=labels) if isinstance(recipe.family, Classification) else recipe.family,
        tags=frozenset({"demo"}),
        license="as the package it was read from",
        cite="the documentation of the Python packages installed here",
        note=recipe.note,
    )


def distinct(rows: Iterable[Row], others: Iterable[Row] = ()) -> list[Row]:
    """The first row of each text, unless it stands in `others`: two labels for one text would teach nothing."""
    once: dict[str, Row] = {}
    for key, row in rows:
        once.setdefault(shown(row), (key, row))
    for _, row in others:
        once.pop(shown(row), None)
    return list(once.values())


def shown(row: Mapping[str, Any]) -> str:
    """What a model sees of a row."""
    return normal(" | ".join(str(value) for column, value in row.items() if column not in ("label", "answers")))


def classes(recipe: Recipe, rows: Sequence[Row]) -> tuple[str, ...] | None:
    """The labels with enough rows, most frequent first; None outside classification."""
    if not isinstance(recipe.family, Classification):
        return None
    counts = Counter(row["label"] for _, row in rows)
    return tuple(name for name, count in counts.most_common(recipe.most) if count >= LEAST_PER_LABEL)


def balanced(rows: Sequence[Row], labels: tuple[str, ...] | None, rng: random.Random) -> list[Row]:
    """The rows in random order, of each label at most three times as many as of the middle one."""
    rows = rng.sample(rows, len(rows))
    if labels is None:
        return rows
    counts = Counter(row["label"] for _, row in rows)
    most = 3 * median(counts[label] for label in labels) if labels else 0
    taken: Counter[str] = Counter()
    kept = []
    for key, row in rows:
        if row["label"] in labels and taken[row["label"]] < most:
            taken[row["label"]] += 1
            kept.append((key, row))
    return kept


def split(rows: Sequence[Row], size: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(train, validation): the objects with the least hashes are held out, until there are enough of their rows."""
    size = min(size, len(rows) // 8)
    counts = Counter(key for key, _ in rows)
    held: set[str] = set()
    for key in sorted(counts, key=lambda key: digest("validation " + key)):
        if size <= 0:
            break
        held.add(key)
        size -= counts[key]
    return [row for key, row in rows if key not in held], [row for key, row in rows if key in held]


# ---- which tasks there are


def recipes(docs: Sequence[Doc]) -> list[Recipe]:
    """What pre-finetuning learns: one short text each, or a span; pairs and choices stayed at chance at the demo's size."""
    counts = Counter(doc.package for doc in docs if doc.package not in TARGET_PACKAGES)
    one, span = Classification("text"), Span("question", "context")
    summary = made.among_rows("Where does the text say what this is for?", made.summary_text)
    parameter = made.among_rows("Where does the text describe a parameter?", made.parameter_text, without="parameters")
    raised = made.among_rows("When does this fail?", made.raised_text)
    return [
        Recipe("kind", one, made.kind_rows, "What kind of object does this describe?"),
        *(module_recipe(package, 30) for package, _ in counts.most_common(MODULE_TASKS)),
        Recipe("place", one, made.place_rows, "Which part of which package does this describe?", 200),
        Recipe("file", one, made.file_rows, "What is the file called in which this stands?", 60),
        Recipe("verb", one, made.verb_rows, "Which word does the name of this function begin with?", 40),
        Recipe("noun", one, made.noun_rows, "Which word does the name of this object end with?", 60),
        Recipe("first-word", one, made.first_word_rows, "Which word does this text begin with?", 40),
        Recipe("section", one, made.section_rows, "Which part of a docstring is this sentence from?"),
        Recipe("parameter-name", one, made.parameter_name_rows, "What is this parameter called?", 60),
        Recipe("optional", one, made.optional_rows, "May this parameter be left out?"),
        Recipe("summary-span", span, summary, "Where does the text say what this is for?"),
        Recipe("parameter-span", span, parameter, "Where does the text describe a parameter?"),
        Recipe("raised-span", span, raised, "Where does the text say when an error is raised?"),
    ]


def target_recipes() -> list[Recipe]:
    """What is kept out; none asks what a pre-finetuning task asks."""
    one, span = Classification("text"), Span("question", "context")
    returned = made.among_rows("What is returned?", made.returned_text, without="result")
    return [
        *(module_recipe(package, most) for package, most in TARGET_PACKAGES.items()),
        Recipe("return-type", one, made.return_type_rows, "What type does this function return?"),
        Recipe("parameter-type", one, made.parameter_type_rows, "What type is this parameter?", 10),
        Recipe("exception", one, made.exception_rows, "Which exception does this raise?", 10),
        Recipe("returned-span", span, returned, "Where does the text say what is returned?"),
    ]


def module_recipe(package: str, most: int) -> Recipe:
    rows = made.module_rows(package)
    note = f"Which part of {package} does this describe?"
    return Recipe(f"{package}-module".replace("_", "-"), Classification("text"), rows, note, most)
