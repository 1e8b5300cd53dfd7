"""Labelled tasks from documentation: what the demo learns from, offline and without any data of its own.

Objects that `read` found are divided once. An object of the evaluation part stands in the targets' test splits and nowhere else:
not in a pre-finetuning task, not in a target's training rows, not in the raw text. Names that would give an answer away are
replaced by NAME.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from prefinetune.demo.read import STDLIB, Doc, digest, normal, read_packages
from prefinetune.families import Choice, Classification, Denoising, Family, Regression, Span
from prefinetune.sources import Rows
from prefinetune.task import Task

EVALUATION_PERCENT = 25  # of objects
LEAST_ROWS, LEAST_PER_CLASS, MOST_CLASSES = 400, 30, 12
TRAIN_ROWS, VALIDATION_ROWS = 12_000, 300  # of a pre-finetuning task
TARGET_ROWS = {"train": 4_000, "validation": 400, "test": 1_000}
TEXT_WORDS, CONTEXT_WORDS, ANSWER_WORDS, RAW_WORDS = 60, 120, 25, 200
KEPT_OUT = {"scipy": 10, "sklearn": 10}  # packages whose sub-modules are targets, and how many of these
MODULE_TASKS = 8  # packages whose sub-modules are a pre-finetuning task
NAME = "NAME"

Row = tuple[str, dict[str, Any]]  # the key of the object it is from, and its columns
Maker = Callable[[Sequence[Doc], random.Random], Iterable[Row]]


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


def mine(
    seed: int = 0, progress: Callable[[str], None] | None = None, packages: Sequence[Path] | None = None
) -> Mined:
    """Read the documentation of `packages` (folders; by default of all that is installed) and make tasks of it.

    The same seed and installation give the same rows. A task with fewer than 400 training rows or two classes is left out.
    """
    reading = read_packages(packages, progress)
    training, evaluation = divide(reading.docs)
    texts = raw_texts(training)
    tasks = [task for recipe in recipes(training) if (task := learned(recipe, training, seed))]
    targets = [task for recipe in target_recipes() if (task := kept_out(recipe, training, evaluation, seed))]
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
    seen = {normal(piece) for doc in training for piece in doc.pieces()}
    new = lambda text: text if normal(text) not in seen else ""  # noqa: E731
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
    rows = distinct(recipe.rows(docs, rng))
    labels = classes(recipe, rows)
    train, validation = split(balanced(rows, labels, rng), VALIDATION_ROWS)
    return record(recipe, labels, {"train": train[:TRAIN_ROWS], "validation": validation})


def kept_out(recipe: Recipe, training: Sequence[Doc], evaluation: Sequence[Doc], seed: int) -> Task | None:
    rng = random.Random(f"{seed} {recipe.name}")
    rows = distinct(recipe.rows(training, rng))
    labels = classes(recipe, rows)
    train, validation = split(balanced(rows, labels, rng), TARGET_ROWS["validation"])
    test = balanced(distinct(recipe.rows(evaluation, rng)), labels, rng)
    if len(test) < LEAST_PER_CLASS:
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
        recipe.family if labels is None else replace(recipe.family, labels=labels),
        tags=frozenset({"demo"}),
        license="as the package it was read from",
        cite="the documentation of the Python packages installed here",
        note=recipe.note,
    )


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The first row of each text: two labels for one text would teach nothing."""
    once: dict[str, Row] = {}
    for key, row in rows:
        text = " | ".join(str(value) for column, value in row.items() if column not in ("label", "answers"))
        once.setdefault(text.lower(), (key, row))
    return list(once.values())


def classes(recipe: Recipe, rows: Sequence[Row]) -> tuple[str, ...] | None:
    """The labels with enough rows, most frequent first; None outside classification."""
    if not isinstance(recipe.family, Classification):
        return None
    counts = Counter(row["label"] for _, row in rows)
    return tuple(name for name, count in counts.most_common(recipe.most) if count >= 1.5 * LEAST_PER_CLASS)


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


# ---- words and names


WORD = re.compile(r"[A-Za-z_]\w*")
SPOKEN = {"sklearn": ("scikit",), "torch": ("pytorch",), "huggingface_hub": ("huggingface", "hub"), STDLIB: ("cpython",)}


def mask(text: str, names: Iterable[str], within: Iterable[str] = ()) -> str:
    """`text` with NAME for every word that is one of `names`, or holds one of `within`, in any case."""
    names = {name.lower() for name in names if len(name) > 1}
    within = [part for part in within if len(part) > 2]
    hides = lambda word: word in names or any(part in word for part in within)  # noqa: E731
    masked = WORD.sub(lambda match: NAME if hides(match[0].lower()) else match[0], text)
    return re.sub(rf"\b{NAME}(\.{NAME})+\b", NAME, masked)


def own_names(doc: Doc) -> set[str]:
    """What points at this object: its name, its package's, and the parts of its module's path."""
    parts = doc.module.split(".")
    return {doc.name, doc.name.strip("_"), doc.package, *parts, *(part.strip("_") for part in parts)}


def spelled(name: str) -> str:
    """The words of an identifier: fit_transform, FitTransform -> "fit transform"."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()


def first_words(parts: Iterable[str], most: int) -> str:
    """As many of the first parts as `most` words hold."""
    taken: list[str] = []
    words = 0
    for part in parts:
        words += len(part.split())
        if words > most:
            break
        taken.append(part)
    return " ".join(taken)


def opening(doc: Doc) -> str:
    return first_words([closed(doc.summary), *doc.body], TEXT_WORDS)


def closed(sentence: str) -> str:
    return sentence if sentence[-1] in ".!?:" else sentence + "."


def neighbours(docs: Sequence[Doc]) -> Callable[[Doc], Sequence[Doc]]:
    """For an object those of its file, or where these are few, of its package: hard to tell from it."""
    files, packages = defaultdict(list), defaultdict(list)
    for doc in docs:
        files[doc.package, doc.module].append(doc)
        packages[doc.package].append(doc)
    return lambda doc: near if len(near := files[doc.package, doc.module]) >= 8 else packages[doc.package]


def others(doc: Doc, near: Sequence[Doc], count: int, rng: random.Random) -> list[Doc]:
    """`count` neighbours with other summaries; fewer where there are not as many."""
    found = {doc.key: doc}
    for _ in range(6 * count):
        other = near[rng.randrange(len(near))]
        found.setdefault(other.key, other)
        if len(found) > count:
            break
    return list(found.values())[1:]


# ---- classification of one text


def package_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    names = {doc.package for doc in docs}
    within = sorted({name.lower() for name in (*names, *sum(SPOKEN.values(), ())) if len(name) > 3})
    for doc in docs:
        yield doc.key, {"text": mask(opening(doc), own_names(doc), within), "label": doc.package}


def kind_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    said = {"function", "method", "class", "module", "property", "attribute", "exception", "error", "warning"}
    said |= {word + "s" for word in said} | {"classes", "properties"}
    for doc in docs:
        yield doc.key, {"text": mask(opening(doc), own_names(doc) | said, ("error", "exception")), "label": doc.kind}


def module_rows(package: str, most: int) -> Maker:
    def rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
        mine = [doc for doc in docs if doc.package == package and doc.module]
        labels = sub_modules(mine, most)
        said = {part for label in set(labels) for part in label.split(".")}
        for doc, label in zip(mine, labels, strict=True):
            yield doc.key, {"text": mask(opening(doc), own_names(doc) | said), "label": label}

    return rows


def sub_modules(docs: Sequence[Doc], most: int) -> list[str]:
    """The first part of each module's path; where one part has most of the objects (pandas.core), it is taken apart."""
    parts = [[part.strip("_") or part for part in doc.module.split(".")] for doc in docs]
    labels = [path[0] for path in parts]
    for depth in (2, 3):
        counts = Counter(labels)
        big = {label for label, count in counts.items() if count > 0.4 * len(docs)}
        labels = [
            ".".join(path[:depth]) if label in big else label for path, label in zip(parts, labels, strict=True)
        ]
    return labels


def section_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        found = {"summary": doc.summary, "body": rng.choice(doc.body) if doc.body else ""}
        found["parameter"] = rng.choice(doc.params).text if doc.params else ""
        found["result"] = doc.returned[1]
        found["failure"] = doc.raised[0][1] if doc.raised else ""
        for label, text in found.items():
            if text:
                yield doc.key, {"text": mask(closed(text), own_names(doc)), "label": label}


GIVEN = re.compile(r"\b(default|optional|omitted|not (given|provided|specified|set|passed)|unspecified)|\b(is|be) None", re.I)


def optional_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        for param in rng.sample(doc.params, min(3, len(doc.params))):
            said = [part for part in re.split(r"(?<=[.;]) ", param.text) if not GIVEN.search(part)]
            if param.optional is not None and said:
                text = mask(f"{spelled(param.name) or param.name}: {' '.join(said)}", own_names(doc))
                yield doc.key, {"text": text, "label": "optional" if param.optional else "required"}


def deprecated_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    near = neighbours(docs)
    said = re.compile(r"deprecat|removed? in|will be removed|instead|legacy|backward|since version", re.I)

    def row(doc: Doc, label: str) -> Row:
        parts = [part for part in (closed(doc.summary), *doc.body) if not said.search(part)]
        return doc.key, {"text": mask(first_words(parts, TEXT_WORDS), own_names(doc)), "label": label}

    for doc in docs:
        if doc.deprecated:
            pair = [row(doc, "deprecated")] + [row(other, "current") for other in others(doc, near(doc), 1, rng) if not other.deprecated]  # fmt: skip
            yield from (one for one in pair if one[1]["text"])


# ---- classification of pairs


def name_fits_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    near = neighbours(docs)
    for doc in docs:
        for other in others(doc, near(doc), 1, rng):
            shown = doc if rng.random() < 0.5 else other
            # Both names are masked in either case, so that NAME says nothing about the answer.
            text = mask(shown.summary, {doc.name, other.name})
            if len(spelled(doc.name).split()) > 1:
                yield doc.key, {"name": spelled(doc.name), "text": text, "label": "fits" if shown is doc else "other"}


def body_continues_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    docs = [doc for doc in docs if doc.body]
    near = neighbours(docs)
    for doc in docs:
        for other in others(doc, near(doc), 1, rng):
            shown = doc if rng.random() < 0.5 else other
            names = {doc.name, other.name}
            body = first_words(shown.body[:3], TEXT_WORDS) or shown.body[0]
            yield doc.key, {
                "text": mask(doc.summary, names), "body": mask(body, names), "label": "continues" if shown is doc else "other",
            }  # fmt: skip


def order_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        if len(doc.body) >= 2:
            at = rng.randrange(len(doc.body) - 1)
            first, second = (mask(text, own_names(doc)) for text in doc.body[at : at + 2])
            if rng.random() < 0.5:
                yield doc.key, {"first": first, "second": second, "label": "in order"}
            else:
                yield doc.key, {"first": second, "second": first, "label": "swapped"}


def same_module_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    """Not from packages whose sub-modules are targets: which of their summaries belong together is what these ask."""
    files, packages = defaultdict(list), defaultdict(list)
    for doc in docs:
        if doc.package not in KEPT_OUT:
            files[doc.package, doc.module].append(doc)
            packages[doc.package].append(doc)
    for (package, module), mine in files.items():
        for doc in mine if len(mine) > 1 else ():
            label = "same" if rng.random() < 0.5 else "other"
            pool = mine if label == "same" else packages[package]
            for other in others(doc, pool, 1, rng):
                if (other.module == module) == (label == "same"):
                    names = own_names(doc) | own_names(other)
                    yield doc.key, {"first": mask(doc.summary, names), "second": mask(other.summary, names), "label": label}


# ---- choice


def choice_row(doc: Doc, text: str, right: str, wrong: Sequence[str], rng: random.Random) -> Iterator[Row]:
    """A row with the right option at a random place; none unless there are three wrong ones that differ from it."""
    if text and len({normal(option) for option in (right, *wrong)}) == 4:
        options, place = list(wrong), rng.randrange(4)
        options.insert(place, right)
        yield doc.key, {"text": text, "options": options, "label": place}


def summary_of_name_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    near = neighbours(docs)
    for doc in docs:
        if len(spelled(doc.name).split()) > 1:
            wrong = others(doc, near(doc), 3, rng)
            names = {one.name for one in (doc, *wrong)}
            shown = [mask(one.summary, names) for one in wrong]
            yield from choice_row(doc, spelled(doc.name), mask(doc.summary, names), shown, rng)


def summary_of_body_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    near = neighbours(docs)
    for doc in docs:
        if doc.body:
            wrong = others(doc, near(doc), 3, rng)
            names = {one.name for one in (doc, *wrong)}
            shown = [mask(one.summary, names) for one in wrong]
            yield from choice_row(doc, mask(first_words(doc.body, TEXT_WORDS), names), mask(doc.summary, names), shown, rng)


def next_sentence_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    docs = [doc for doc in docs if len(doc.body) >= 2]
    near = neighbours(docs)
    for doc in docs:
        at = rng.randrange(len(doc.body) - 1)
        wrong = others(doc, near(doc), 3, rng)
        names = {one.name for one in (doc, *wrong)}
        shown = [mask(rng.choice(one.body), names) for one in wrong]
        yield from choice_row(doc, mask(doc.body[at], names), mask(doc.body[at + 1], names), shown, rng)


def parameter_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        if len(doc.params) >= 4:
            names = {param.name for param in doc.params}
            for _ in range(2):
                right, *wrong = rng.sample(doc.params, 4)
                shown = [spelled(param.name) or param.name for param in (right, *wrong)]
                text = mask(right.text, names | {doc.name}, (right.name.lower(),))
                yield from choice_row(doc, text, shown[0], shown[1:], rng)


# ---- span


def span_row(doc: Doc, question: str, pieces: Sequence[str], at: int, answer: str) -> Iterator[Row]:
    """A row whose context is the pieces in a line; the answer is the end of piece number `at`, or stands in it once."""
    inside = pieces[at].find(answer)
    context = " ".join(pieces)
    if inside >= 0 and len(context.split()) <= CONTEXT_WORDS and 1 <= len(answer.split()) <= ANSWER_WORDS:
        start = sum(len(piece) + 1 for piece in pieces[:at]) + inside
        yield doc.key, {
            "question": question, "context": context, "answers": {"text": [answer], "answer_start": [start]}
        }  # fmt: skip


def first_sentence(text: str) -> str:
    return closed(re.split(r"(?<=[.!?]) ", text)[0])


def described_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    """Where does the text say what x is: among three to six neighbouring parameters."""
    for doc in docs:
        if len(doc.params) >= 3:
            for _ in range(2):
                size = min(len(doc.params), rng.randint(3, 6))
                start = rng.randrange(len(doc.params) - size + 1)
                shown = doc.params[start : start + size]
                at = rng.randrange(size)
                pieces = [f"{param.name}: {first_sentence(param.text)}" for param in shown]
                answer = first_sentence(shown[at].text).rstrip(".:")
                yield from span_row(doc, f"What is {shown[at].name}?", pieces, at, answer)


def default_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    """What the parser found as a default, where the description's own words say it."""
    for doc in docs:
        for index, param in enumerate(doc.params):
            found = re.search(rf"\bdefaults?( value)?( is| to|:)? ({re.escape(param.default)})(?!\w)", param.text, re.I)
            if param.default and found:
                shown = list(doc.params[max(0, index - 1) : index + 2])
                pieces = [f"{one.name}: {closed(one.text)}" for one in shown]
                at = shown.index(param)
                for _, row in span_row(doc, f"What is the default of {param.name}?", pieces, at, found[0]):
                    # The words before the value only served to find it.
                    lead = len(found[0]) - len(found[3])
                    row["answers"] = {"text": [found[3]], "answer_start": [row["answers"]["answer_start"][0] + lead]}
                    yield doc.key, row


def among_rows(question: str, answer_of: Callable[[Doc], str]) -> Maker:
    """Where is the one sentence about X: among sentences about everything else, in random order and without headings."""

    def rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
        for doc in docs:
            if answer := answer_of(doc):
                rest = [closed(doc.summary), *doc.body[:2]]
                rest += [first_sentence(param.text) for param in rng.sample(doc.params, min(3, len(doc.params)))]
                rest = [text for text in dict.fromkeys(rest) if text != closed(answer)]
                rng.shuffle(rest)
                at = rng.randint(0, len(rest))
                pieces = [mask(text, {doc.name}, ("error", "exception")) for text in (*rest[:at], closed(answer), *rest[at:])]
                if len(rest) >= 2:
                    yield from span_row(doc, question, pieces, at, pieces[at].rstrip(".:"))

    return rows


def returned_text(doc: Doc) -> str:
    return first_sentence(doc.returned[1]) if doc.returned[1] else ""


def raised_text(doc: Doc) -> str:
    return first_sentence(doc.raised[0][1]) if doc.raised else ""


# ---- regression


def position_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        text = [closed(doc.summary), *doc.body]
        if len(text) >= 4:
            for at in rng.sample(range(len(text)), 2):
                yield doc.key, {"text": mask(text[at], own_names(doc)), "label": round(at / (len(text) - 1), 3)}


# ---- types and exceptions


TYPES = {
    "bool": r"bool(ean)?s?|true|false", "int": r"int(eger)?s?|non-?negative int(eger)?|positive int(eger)?", "float": r"floats?|double|real( number)?|scalar|number",
    "str": r"str(ing)?s?", "list": r"lists?|sequence|iterable|collection", "dict": r"dict(ionary|ionaries)?s?|mapping|ordereddict|defaultdict", "tuple": r"\w*tuples?",
    "array": r"(nd)?arrays?|ndarrays?|array[-_ ]?like|sparse matrix|matrix", "tensor": r"\w*tensors?", "callable": r"callables?|function", "graph": r"(networkx )?(multi)?(di)?graph", "frame": r"dataframe|series|index",
    "path": r"(os\.)?path(like|-like)?", "set": r"(frozen)?sets?", "iterator": r"\w*iterator|generator", "none": r"none", "expression": r"expr|basic|poly", "object": r"object|any",
}  # fmt: skip
TYPE = {label: re.compile(rf"(?:[\w]+\.)*(?:{pattern})", re.I) for label, pattern in TYPES.items()}
TYPE_WORDS = {
    "bool", "boolean", "booleans", "int", "ints", "integer", "integers", "float", "floats", "str", "strs", "string", "strings", "list", "lists", "sequence",
    "iterable", "dict", "dicts", "dictionary", "mapping", "tuple", "tuples", "array", "arrays", "ndarray", "array_like", "matrix", "tensor", "tensors", "callable",
    "function", "graph", "digraph", "dataframe", "series", "index", "path", "set", "sets", "iterator", "generator", "none", "true", "false", "number", "scalar", "expression", "expr", "object",
}  # fmt: skip


def type_label(said: str) -> str:
    """One of TYPES or "one of" for {'a', 'b'}; empty for what is none or several of these."""
    said = re.sub(r"[`*'\"~!]|:\w+:|\[`|`\]", "", said).strip()
    if said.startswith(("{", "Literal[")):
        return "one of"
    while match := re.fullmatch(r"(?:\w+\.)*(?:Optional|Union)\[(.*)\]", said):
        said = match[1].replace(",", " |") if "[" not in match[1] else match[1]
    said = re.split(r",? *\b(optional|default\w*|of|with|shape|keyword)\b| *[,(=<;:]|\[", said)[0]
    parts = {part.strip(" .[]") for part in re.split(r"\||\bor\b|/", said)}
    parts = {part for part in parts if part and part.lower() != "none"} or parts
    labels = {next((label for label, pattern in TYPE.items() if pattern.fullmatch(part)), "") for part in parts}
    return labels.pop() if len(labels) == 1 else ""


def parameter_type_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        for param in doc.params:
            if label := type_label(param.type):
                text = mask(f"{spelled(param.name) or param.name}: {param.text}", own_names(doc) | TYPE_WORDS, ("tensor",))
                yield doc.key, {"text": text, "label": label}


def return_type_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        if label := type_label(doc.returned[0]):
            yield doc.key, {"text": mask(opening(doc), own_names(doc) | TYPE_WORDS, ("tensor",)), "label": label}


def exception_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        for what, text in doc.raised:
            label = re.sub(r"\W+$", "", re.split(r",|\bor\b| ", what)[0]).rpartition(".")[2].strip("[]`~: ")
            text = mask(closed(text), own_names(doc) | TYPE_WORDS, ("error", "exception"))
            yield doc.key, {"text": text, "label": label}


# ---- which tasks there are


def recipes(docs: Sequence[Doc]) -> list[Recipe]:
    """What pre-finetuning learns."""
    counts = Counter(doc.package for doc in docs if doc.package not in KEPT_OUT)
    modular = [
        Recipe(f"{package}-module".replace("_", "-"), Classification("text"), module_rows(package, MOST_CLASSES),
               f"Which part of {package} does this describe?")
        for package, _ in counts.most_common(MODULE_TASKS)
    ]  # fmt: skip
    return [
        Recipe("package", Classification("text"), package_rows, "Which package is this from?"),
        Recipe("kind", Classification("text"), kind_rows, "What kind of object does this describe?"),
        *modular,
        Recipe("section", Classification("text"), section_rows, "Which part of a docstring is this sentence from?"),
        Recipe("optional", Classification("text"), optional_rows, "May this parameter be left out?"),
        Recipe("deprecated", Classification("text"), deprecated_rows, "Is what this describes deprecated?"),
        Recipe("name-fits", Classification("name", "text"), name_fits_rows, "Does this summary fit this name?"),
        Recipe("body-continues", Classification("text", "body"), body_continues_rows, "Does this body continue this summary?"),
        Recipe("sentence-order", Classification("first", "second"), order_rows, "Are these two sentences in order?"),
        Recipe("same-module", Classification("first", "second"), same_module_rows, "Do these describe objects of one file?"),
        Recipe("summary-of-name", Choice("text", "options"), summary_of_name_rows, "Which summary fits this name?"),
        Recipe("summary-of-body", Choice("text", "options"), summary_of_body_rows, "Which summary fits this body?"),
        Recipe("next-sentence", Choice("text", "options"), next_sentence_rows, "Which sentence comes next?"),
        Recipe("described-span", Span("question", "context"), described_rows, "Where does the text say what x is?"),
        Recipe("default-span", Span("question", "context"), default_rows, "What is the default of x?"),
        Recipe("raised-span", Span("question", "context"), among_rows("When does this fail?", raised_text), "When is an error raised?"),
        Recipe("position", Regression("text", low=0.0, high=1.0), position_rows, "Where in its text does this sentence stand?"),
    ]  # fmt: skip


def target_recipes() -> list[Recipe]:
    """What is kept out; none asks what a pre-finetuning task asks."""
    modular = [
        Recipe(f"{package}-module", Classification("text"), module_rows(package, most), f"Which part of {package} does this describe?", most)
        for package, most in KEPT_OUT.items()
    ]  # fmt: skip
    return [
        *modular,
        Recipe("return-type", Classification("text"), return_type_rows, "What type does this function return?"),
        Recipe("parameter-type", Classification("text"), parameter_type_rows, "What type is this parameter?", 10),
        Recipe("exception", Classification("text"), exception_rows, "Which exception does this raise?", 10),
        Recipe("parameter-choice", Choice("text", "options"), parameter_rows, "Which parameter does this describe?"),
        Recipe("returned-span", Span("question", "context"), among_rows("What is returned?", returned_text), "Where does the text say what is returned?"),
    ]  # fmt: skip
