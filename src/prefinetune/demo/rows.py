"""How rows of each mined task are made of documented objects. `mine` divides the objects, balances the rows and names the tasks.

A maker gets objects and a generator, and yields (key of the object, row). Names that would give the answer away become NAME.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prefinetune.demo.read import STDLIB, Doc, normal, sentences

NAME = "NAME"
TEXT_WORDS, CONTEXT_WORDS, ANSWER_WORDS = 60, 120, 25
LEAST_PER_LABEL = 42  # of all rows, so that 30 are left for training after an eighth went to validation
TARGET_PACKAGES = {"scipy": 10, "sklearn": 10}  # whose sub-modules are kept out, and how many of these

Row = tuple[str, dict[str, Any]]  # the key of the object it is from, and its columns
Maker = Callable[[Sequence[Doc], random.Random], Iterable[Row]]


# ---- words and names


WORD = re.compile(r"[A-Za-z_]\w*")
REPEATED = re.compile(rf"\b{NAME}(\.{NAME})+\b")
SPOKEN = {"sklearn": ("scikit",), "torch": ("pytorch",), "huggingface_hub": ("huggingface", "hub"), STDLIB: ("cpython",)}


FAILURE = re.compile("error|exception")


def mask(text: str, names: Iterable[str], within: re.Pattern[str] | None = None) -> str:
    """`text` with NAME for every word that is one of `names`, or in which `within` is found, in any case."""
    words = set(WORD.findall(text.lower()))
    hidden = words.intersection(name.lower() for name in names if len(name) > 1)
    if within is not None:
        hidden.update(word for word in words if within.search(word))
    if not hidden:
        return text
    masked = WORD.sub(lambda match: NAME if match[0].lower() in hidden else match[0], text)
    return REPEATED.sub(NAME, masked)


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
    said = {name.lower() for name in (*names, *sum(SPOKEN.values(), ())) if len(name) > 3}
    within = re.compile("|".join(map(re.escape, sorted(said))))
    for doc in docs:
        yield doc.key, {"text": mask(opening(doc), own_names(doc), within), "label": doc.package}


def kind_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    said = {"function", "method", "class", "module", "property", "attribute", "exception", "error", "warning"}
    said |= {word + "s" for word in said} | {"classes", "properties"}
    for doc in docs:
        yield doc.key, {"text": mask(opening(doc), own_names(doc) | said, FAILURE), "label": doc.kind}


def module_rows(package: str) -> Maker:
    def rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
        mine = [doc for doc in docs if doc.package == package and doc.module]
        labels = sub_modules(mine)
        said = {part for label in set(labels) for part in label.split(".")}
        for doc, label in zip(mine, labels, strict=True):
            yield doc.key, {"text": mask(opening(doc), own_names(doc) | said), "label": label}

    return rows


def sub_modules(docs: Sequence[Doc]) -> list[str]:
    """The first part of each module's path; where one part has most of the objects (pandas.core), it is taken apart, unless
    what comes out is mostly too small to be learned (transformers.models)."""
    parts = [[part.strip("_") or part for part in doc.module.split(".")] for doc in docs]
    labels = [path[0] for path in parts]
    for depth in (2, 3):
        finer = [".".join(path[:depth]) for path in parts]
        counts, finer_counts = Counter(labels), Counter(finer)
        kept = Counter(label for label, fine in zip(labels, finer, strict=True) if finer_counts[fine] >= LEAST_PER_LABEL)
        apart = {label for label, count in counts.items() if count > 0.4 * len(docs) and kept[label] > count / 2}
        labels = [fine if label in apart else label for label, fine in zip(labels, finer, strict=True)]
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
    said = re.compile("deprecat", re.I)

    def row(doc: Doc, label: str) -> Row:
        parts = [part for part in (closed(doc.summary), *doc.body) if not said.search(part)]
        return doc.key, {"text": mask(first_words(parts, TEXT_WORDS), own_names(doc)), "label": label}

    for doc in docs:
        if doc.deprecated:
            current = [other for other in others(doc, near(doc), 1, rng) if not other.deprecated]
            pair = [row(doc, "deprecated"), *(row(other, "current") for other in current)]
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
                yield doc.key, {"first": spelled(doc.name), "second": text, "label": "fits" if shown is doc else "other"}


def body_continues_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    docs = [doc for doc in docs if doc.body]
    near = neighbours(docs)
    for doc in docs:
        for other in others(doc, near(doc), 1, rng):
            shown = doc if rng.random() < 0.5 else other
            names = {doc.name, other.name}
            body = first_words(shown.body[:3], TEXT_WORDS) or shown.body[0]
            label = "continues" if shown is doc else "other"
            yield doc.key, {"first": mask(doc.summary, names), "second": mask(body, names), "label": label}


def order_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        if len(doc.body) >= 2:
            at = rng.randrange(len(doc.body) - 1)
            first, second = (mask(text, own_names(doc)) for text in doc.body[at : at + 2])
            if rng.random() < 0.5:
                yield doc.key, {"first": first, "second": second, "label": "in order"}
            else:
                yield doc.key, {"first": second, "second": first, "label": "swapped"}


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


def parameter_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        if len(doc.params) >= 4:
            names = {param.name for param in doc.params}
            for _ in range(2):
                right, *wrong = rng.sample(doc.params, 4)
                shown = [spelled(param.name) or param.name for param in (right, *wrong)]
                within = re.compile(re.escape(right.name.lower())) if len(right.name) > 2 else None
                text = mask(right.text, names | {doc.name}, within)
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
    return closed(sentences(text)[0])


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


# Not "the default behaviour is"; what follows is one word or number and ends its clause.
DEFAULT = re.compile(r"\bdefaults?(?: value)?(?: is| to|:|=) *([\w\"'+-][\w.\"'/+-]*?)(?=[.;,)]*(?: |$))", re.I)


def default_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    """What is used if x is left out, where the description's own words say it."""
    for doc in docs:
        for index, param in enumerate(doc.params):
            found = DEFAULT.search(param.text)
            if found and re.match(r"[.;,)]|$", param.text[found.end() :]):
                near = doc.params[max(0, index - 1) : index + 2]
                pieces = [f"{one.name}: {closed(one.text)}" for one in near]
                at = near.index(param)
                for key, row in span_row(doc, f"What is the default of {param.name}?", pieces, at, found[0]):
                    # The words before the value only served to find it.
                    start = row["answers"]["answer_start"][0] + len(found[0]) - len(found[1])
                    yield key, row | {"answers": {"text": [found[1]], "answer_start": [start]}}


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
                pieces = [mask(text, {doc.name}, FAILURE) for text in (*rest[:at], closed(answer), *rest[at:])]
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
    "bool": r"bool(ean)?s?|true|false",
    "int": r"int(eger)?s?|(non-?negative|positive) int(eger)?",
    "float": r"floats?|double|real( number)?|scalar|number",
    "str": r"str(ing)?s?",
    "list": r"lists?|sequence|iterable|collection",
    "dict": r"dict(ionary|ionaries)?s?|mapping|ordereddict|defaultdict",
    "tuple": r"\w*tuples?",
    "array": r"(nd)?arrays?|array[-_ ]?like|(sparse )?matrix",
    "tensor": r"\w*tensors?",
    "callable": r"callables?|function",
    "graph": r"(networkx )?(multi)?(di)?graph",
    "frame": r"dataframe|series|index",
    "path": r"(os\.)?path(like|-like)?",
    "set": r"(frozen)?sets?",
    "iterator": r"\w*iterator|generator",
    "none": r"none",
    "expression": r"expr|basic|poly",
    "object": r"object|any",
}
TYPE = {label: re.compile(rf"(?:[\w]+\.)*(?:{pattern})", re.I) for label, pattern in TYPES.items()}
TYPE_WORD = re.compile(
    r"tensor|^(bool(ean)?s?|true|false|int(eger)?s?|floats?|number|scalar|str(ing)?s?|lists?|sequence|iterable|collection|"
    r"dict(ionary|s)?|mapping|tuples?|(nd)?arrays?|array_like|matrix|callable|function|(di)?graph|dataframe|series|index|"
    r"path|sets?|iterator|generator|none|expr(ession)?|object)$"
)


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
                text = mask(f"{spelled(param.name) or param.name}: {param.text}", own_names(doc), TYPE_WORD)
                yield doc.key, {"text": text, "label": label}


def return_type_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        if label := type_label(doc.returned[0]):
            yield doc.key, {"text": mask(opening(doc), own_names(doc), TYPE_WORD), "label": label}


RAISES = re.compile(r"\brais\w*(?: an?| the)? (\w*(?:Error|Exception|Interrupt|Iteration))\b.*\b(?:if|when|unless|for)\b", re.I)


def exception_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    """From the fields of a docstring and from sentences such as "Raises ValueError if ..."."""
    for doc in docs:
        said = [(match[1], text) for text in (doc.summary, *doc.body) if (match := RAISES.search(text))]
        for what, text in (*doc.raised, *said):
            label = re.sub(r"\W+$", "", re.split(r",|\bor\b| ", what)[0]).rpartition(".")[2].strip("[]`~: ")
            text = mask(closed(text), own_names(doc), FAILURE)
            yield doc.key, {"text": text, "label": label}
