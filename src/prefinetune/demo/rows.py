"""How rows of each mined task are made of documented objects. `mine` divides the objects, balances the rows and names the tasks.

A maker gets objects and a generator, and yields (key of the object, row). Names that would give the answer away become NAME.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from prefinetune.demo.read import TARGET_PACKAGES, Doc, sentences

NAME = "NAME"
TEXT_WORDS, CONTEXT_WORDS, ANSWER_WORDS = 40, 45, 20
LEAST_PER_LABEL = 30  # of all rows: validation and the bounds on rows take some of them

Row = tuple[str, dict[str, Any]]  # the key of the object it is from, and its columns
Maker = Callable[[Sequence[Doc], random.Random], Iterable[Row]]


# ---- words and names


WORD = re.compile(r"[A-Za-z_]\w*")
REPEATED = re.compile(rf"\b{NAME}(\.{NAME})+\b")
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
    """As many of the first parts as `most` words hold, and at least one."""
    taken: list[str] = []
    words = 0
    for part in parts:
        words += len(part.split())
        if taken and words > most:
            break
        taken.append(part)
    return " ".join(taken)


def opening(doc: Doc) -> str:
    return first_words([closed(doc.summary), *doc.body], TEXT_WORDS)


def closed(sentence: str) -> str:
    return sentence if sentence[-1] in ".!?:" else sentence + "."


@cache
def forms(words: str) -> re.Pattern[str]:
    """Finds the words and what endings make of them: compute -> computes, computed, computing."""
    stems = "|".join(re.escape(word.removesuffix("e") or word) for word in words.lower().split())
    return re.compile(rf"^(?:{stems})\w{{0,4}}$")


# ---- classification of one text


def kind_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    said = {"function", "method", "class", "module", "property", "attribute", "exception", "error", "warning"}
    said |= {word + "s" for word in said} | {"classes", "properties"}
    for doc in docs:
        yield doc.key, {"text": mask(opening(doc), own_names(doc) | said, FAILURE), "label": doc.kind}


def module_rows(package: str) -> Maker:
    return lambda docs, rng: in_modules([doc for doc in docs if doc.package == package and doc.module])


def place_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    """The modules of all packages, as labels of one task."""
    packages = defaultdict(list)
    for doc in docs:
        if doc.package not in TARGET_PACKAGES and doc.module:
            packages[doc.package].append(doc)
    rows = [
        (key, row | {"label": f"{package}.{row['label']}"}) for package, mine in packages.items() for key, row in in_modules(mine)
    ]
    yield from rng.sample(rows, len(rows))


def in_modules(docs: Sequence[Doc]) -> Iterator[Row]:
    """The objects of one package, labelled with its sub-modules."""
    labels = sub_modules(docs)
    said = {part for label in set(labels) for part in label.split(".")}
    for doc, label in zip(docs, labels, strict=True):
        yield doc.key, {"text": mask(opening(doc), own_names(doc) | said), "label": label}


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
    """Without what is returned, which a target asks for."""
    for doc in docs:
        found = {"summary": doc.summary, "body": rng.choice(doc.body) if doc.body else ""}
        found["parameter"] = rng.choice(doc.params).text if doc.params else ""
        found["failure"] = doc.raised[0][1] if doc.raised else ""
        for label, text in found.items():
            if text:
                yield doc.key, {"text": mask(closed(text), own_names(doc)), "label": label}


def verb_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        words = spelled(doc.name).split()
        if doc.kind in ("function", "method") and len(words) > 1:
            yield doc.key, {"text": mask(opening(doc), own_names(doc), forms(words[0])), "label": words[0]}


def noun_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        words = spelled(doc.name).split()
        if doc.kind not in ("module", "exception") and len(words) > 1:
            yield doc.key, {"text": mask(opening(doc), own_names(doc), forms(words[-1])), "label": words[-1]}


def first_word_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        first, _, rest = opening(doc).partition(" ")
        label = re.sub("(?<=[a-z]{2}[^isu])s$", "", first.lower())  # Returns -> return
        if label.isalpha():
            yield doc.key, {"text": mask(f"{NAME} {rest}", own_names(doc), forms(label)), "label": label}


def file_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    """Files of one name, such as utils or base, stand in many packages."""
    for doc in docs:
        if doc.package not in TARGET_PACKAGES and doc.module:
            label = doc.module.rpartition(".")[2].strip("_")
            yield doc.key, {"text": mask(opening(doc), own_names(doc), forms(label)), "label": label}


# ---- classification of a parameter's description


def parameter_name_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        for param in rng.sample(doc.params, min(4, len(doc.params))):
            text = mask(param.text, own_names(doc), forms(spelled(param.name) or param.name))
            yield doc.key, {"text": text, "label": param.name}


GIVEN = re.compile(r"\b(default|optional|omitted|not (given|provided|specified|set|passed)|unspecified)|\b(is|be) None", re.I)


def optional_rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
    for doc in docs:
        for param in rng.sample(doc.params, min(3, len(doc.params))):
            said = [part for part in re.split(r"(?<=[.;]) ", param.text) if not GIVEN.search(part)]
            if param.optional is not None and said:
                text = mask(f"{spelled(param.name) or param.name}: {' '.join(said)}", own_names(doc))
                yield doc.key, {"text": text, "label": "optional" if param.optional else "required"}


# ---- span


def span_row(doc: Doc, question: str, pieces: Sequence[str], at: int, answer: str) -> Iterator[Row]:
    """A row whose context is the pieces in a line; the answer stands in piece number `at`."""
    inside = pieces[at].find(answer)
    context = " ".join(pieces)
    if inside >= 0 and len(context.split()) <= CONTEXT_WORDS and 1 <= len(answer.split()) <= ANSWER_WORDS:
        start = sum(len(piece) + 1 for piece in pieces[:at]) + inside
        yield doc.key, {
            "question": question, "context": context, "answers": {"text": [answer], "answer_start": [start]}
        }  # fmt: skip


def first_sentence(text: str) -> str:
    return closed(sentences(text)[0])


def among_rows(question: str, answer_of: Callable[[Doc], str], without: str = "") -> Maker:
    """Where is the one sentence about X: among sentences about everything else, in random order and without headings."""

    def rows(docs: Sequence[Doc], rng: random.Random) -> Iterator[Row]:
        for doc in docs:
            if answer := answer_of(doc):
                rest = [closed(doc.summary), *doc.body[:2]]
                if without != "parameters":
                    rest += [first_sentence(param.text) for param in rng.sample(doc.params, min(3, len(doc.params)))]
                if without != "result" and doc.returned[1]:
                    rest.append(first_sentence(doc.returned[1]))
                rest = [text for text in dict.fromkeys(rest) if text != closed(answer)]
                rng.shuffle(rest)
                at = rng.randint(0, len(rest))
                pieces = [mask(text, {doc.name}, FAILURE) for text in (*rest[:at], closed(answer), *rest[at:])]
                if len(rest) >= 2:
                    yield from span_row(doc, question, pieces, at, pieces[at].rstrip(".:"))

    return rows


def returned_text(doc: Doc) -> str:
    return first_sentence(doc.returned[1]) if doc.returned[1] else ""


def summary_text(doc: Doc) -> str:
    return closed(doc.summary)


def parameter_text(doc: Doc) -> str:
    return first_sentence(doc.params[0].text) if doc.params else ""


def raised_text(doc: Doc) -> str:
    return first_sentence(doc.raised[0][1]) if doc.raised else ""


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
