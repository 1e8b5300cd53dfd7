"""The mined tasks: on a small package written here, whose every sentence is known, and on what is really installed."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from prefinetune.demo import mine as mining
from prefinetune.demo import read as reading_module
from prefinetune.demo import rows
from prefinetune.demo.mine import divide, mine
from prefinetune.demo.read import normal, plain, prose, read_packages, sentences
from prefinetune.splits import open_task

NUMPY = '''
def {verb}_{noun}(first, second={number}, third=None, fourth="{noun}"):
    """{Verb} every {noun} of a collection that was opened {number} minutes ago.

    The {noun} is taken as it stands and nothing about {noun} {number} is kept. Call ``{verb}_{noun}`` twice to be sure of it.

    >>> {verb}_{noun}(1)
    2

    A third sentence tells how :func:`~{package}.tools.{noun}` differs from any other {noun} of order {number}.

    Parameters
    ----------
    first : array_like of shape (n,)
        The values that the {noun} of order {number} begins with.
    second : int, default={number}
        How often to {verb} the {noun} before it stops. Defaults to {number}.
    third : bool or None
        Whether the {noun} is left as it was on day {number}.
    fourth : {{"{noun}", "other"}}
        Which of the {noun} kinds is to {verb} on day {number}.

    Returns
    -------
    {type}
        The part of the {noun} that could {verb} at least {number} times.

    Raises
    ------
    {error}
        If the {noun} has no end after {number} steps.
    """
'''
GOOGLE = '''
class {Verb}{Noun}(Base):
    """{Verb} one {noun} after another until {number} of them are gone.

    It never looks back at a {noun} that is older than {number} days.

    Args:
        limit (int): Most of the {noun} pieces that may {verb} in {number} days.
        path (str, optional): Where the {noun} of {number} days is written.
    """

    def {verb}(self, noun):
        """Let the {noun} of this object {verb} itself {number} times.

        :param noun: the {noun} that stands at place {number} in line
        :type noun: str
        :returns: what is left of the {noun} after {number} rounds
        :rtype: list
        :raises {error}: when the {noun} was {verb}ed more than {number} times
        """
'''
VERBS = ("sort", "fold", "merge", "split", "paint", "clean", "store", "weigh", "count", "bend", "lift", "drain")
NOUNS = ("river", "window", "letter", "garden", "engine", "basket", "ticket", "mirror", "candle", "bridge", "pencil")
TYPES, ERRORS = ("int", "list", "str"), ("ValueError", "KeyError", "TypeError")


@pytest.fixture
def packages(tmp_path: Path) -> list[Path]:
    """Four packages of 130 functions, classes and methods each; one file cannot be read, one must not be run."""
    number = 10
    for package in ("alpha", "beta", "scipy", "sklearn"):
        for part in ("tools", "models"):
            folder = tmp_path / package / part
            folder.mkdir(parents=True)
            for at, verb in enumerate(VERBS):
                text = [f'"""Routines of {package} to {verb} things, number {at} of the {part} there are."""\nBase = object\n']
                for noun in NOUNS:
                    number += 1
                    words = {
                        "verb": verb, "noun": noun, "Verb": verb.title(), "Noun": noun.title(), "package": package,
                        "number": number, "type": TYPES[number % 3], "error": ERRORS[number % 3],
                    }  # fmt: skip
                    text.append((NUMPY if part == "tools" else GOOGLE).format(**words))
                (folder / f"{verb}s.py").write_text("".join(text))
    (tmp_path / "alpha" / "broken.py").write_text('def broken(:\n    """Never seen by anyone."""\n')
    (tmp_path / "alpha" / "bytes.py").write_bytes(b'"""Not in \xff\xfe any encoding."""\n')
    marker = tmp_path / "was_run"
    (tmp_path / "alpha" / "harmful.py").write_text(
        f'"""Writes a file when it is run."""\nopen({str(marker)!r}, "w")\nraise SystemExit(3)\n'
    )
    return [tmp_path / package for package in ("alpha", "beta", "scipy", "sklearn")]


def texts_in(value) -> list[str]:
    """Every text in a row."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts_in(part)]
    return [text for part in value for text in texts_in(part)] if isinstance(value, (list, tuple)) else []


def rows_of(tasks, *roles: str) -> list[dict]:
    return [row for task in tasks for role in roles for row in task.source.tables.get(role, ())]


def test_nothing_that_is_read_is_run(packages):
    mine(packages=packages)
    assert not (packages[0].parent / "was_run").exists()


def test_files_that_are_not_python_are_skipped_and_counted(packages):
    reading = read_packages(packages)
    assert reading.unreadable == 2
    assert not any("Never seen" in doc.summary for doc in reading.docs)
    assert any(doc.summary == "Writes a file when it is run." for doc in reading.docs)


def test_all_three_docstring_styles_are_taken_apart(packages):
    docs = {(doc.package, doc.module, doc.name): doc for doc in read_packages(packages[:1]).docs}
    numpy = docs["alpha", "tools.sorts", "sort_river"]
    assert numpy.kind == "function"
    assert numpy.summary == "Sort every river of a collection that was opened 11 minutes ago."
    assert numpy.body[1] == "Call sort_river twice to be sure of it."
    assert numpy.body[2] == "A third sentence tells how river differs from any other river of order 11."
    assert [(param.name, param.optional) for param in numpy.params] == [
        ("first", False), ("second", True), ("third", True), ("fourth", True)
    ]  # fmt: skip
    assert [rows.type_label(param.type) for param in numpy.params] == ["array", "int", "bool", "one of"]
    assert numpy.returned == (TYPES[11 % 3], "The part of the river that could sort at least 11 times.")
    assert numpy.raised == ((ERRORS[11 % 3], "If the river has no end after 11 steps."),)
    google = next(doc for doc in docs.values() if doc.name == "SortRiver")
    assert [(param.name, rows.type_label(param.type), param.optional) for param in google.params] == [
        ("limit", "int", None), ("path", "str", True)
    ]  # fmt: skip
    sphinx = next(doc for doc in read_packages(packages[:1]).docs if doc.summary.startswith("Let the river of"))
    assert sphinx.kind == "method"
    assert sphinx.params[0].text.startswith("the river that stands at place")
    assert sphinx.returned[0] == "list"
    assert sphinx.raised[0][1].startswith("when the river was ")


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("See :class:`~a.b.Thing` and :meth:`run`.", "See Thing and run."),
        ("A ``literal``, `single`, **bold** and *soft* word [1]_.", "A literal, single, bold and soft word."),
        ("The `guide <https://a.b/c>`_ and [page](https://a.b).", "The guide and page."),
        ("Made by [`~models.Maker`] or [`Maker.run`].", "Made by Maker or run."),
    ],
)
def test_markup_is_taken_off(markup, text):
    assert plain(markup) == text


def test_code_tables_and_directives_are_left_out():
    text = "One.\n\n>>> f(1)\n2\n\nTwo::\n\n    x = 1\n\n.. note::\n\n   Hidden.\n\n=== ===\n| a | b |\n\n```py\ny\n```\n\nThree."
    assert prose(text) == ["One.", "Two:", "Three."]


def test_names_that_give_the_answer_away_are_masked(packages):
    mined = mine(packages=packages)
    for row in rows_of([task for task in mined.targets if task.name == "docs/scipy-module"], "train", "test"):
        assert not re.search(r"\b(scipy|tools|models)\b", row["text"], re.I)
    for row in rows_of([task for task in mined.tasks if task.name == "docs/verb"], "train"):
        assert not re.search(rf"\b{row['label']}", row["text"], re.I)
    assert rows.mask("The Alpha.tools module makes Alphabets.", {"alpha", "tools"}) == "The NAME module makes Alphabets."
    assert rows.mask("It computed what X computes.", (), rows.forms("compute x")) == "It NAME what NAME NAME."


def test_span_answers_start_where_they_say(packages):
    mined = mine(packages=packages)
    spans = [task for task in (*mined.tasks, *mined.targets) if task.family.kind == "span"]
    assert len(spans) >= 2
    for row in rows_of(spans, "train", "validation", "test"):
        (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(answer)] == answer


def test_a_label_is_what_the_object_says(packages):
    docs = [doc for doc in read_packages(packages).docs if doc.name == "sort_river" and doc.package == "alpha"]
    first = lambda maker: next(iter(maker(docs, random.Random(0))))[1]  # noqa: E731
    assert first(rows.verb_rows)["label"] == "sort"
    assert first(rows.verb_rows)["text"].startswith("NAME every river of a collection that was opened")
    assert first(rows.noun_rows)["text"].startswith("Sort every NAME of a collection")
    assert first(rows.noun_rows)["label"] == "river"
    assert first(rows.first_word_rows)["label"] == "sort"


def test_two_processes_read_and_make_what_one_does(packages, monkeypatch):
    def everything():
        mined = mine(packages=packages)
        return mined.texts, [(task.name, task.family, task.source.tables) for task in (*mined.tasks, *mined.targets)]

    monkeypatch.setattr(reading_module, "CHUNK", 5)  # more items than are worth a second process
    in_two = everything()
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert everything() == in_two


def test_what_an_evaluation_object_shares_with_a_training_one_is_cut(packages):
    docs = read_packages(packages).docs
    training, evaluation = divide(docs)
    assert 0.15 < len(evaluation) / len(docs) < 0.35
    seen = {normal(piece) for doc in training for piece in doc.pieces()}
    assert not any(normal(piece) in seen for doc in evaluation for piece in doc.pieces() if piece)


def check_no_leaks(mined, docs) -> None:
    """No text of a target's test split and no text of an evaluation object stands in anything that is trained on."""

    def unmasked(text):
        return normal(text.replace(rows.NAME, "masked-name"))  # else NAME would be the word "name"

    trained = [*rows_of(mined.tasks, "train", "validation"), *rows_of(mined.targets, "train", "validation")]
    texts = {text for row in trained for text in texts_in(row)}.union(mined.texts)
    texts |= {part for text in texts for part in sentences(text)}
    names = {rows.spelled(named.name) for doc in docs for named in (doc, *doc.params)}  # the words of a name are no text
    whole = {unmasked(text) for text in texts} - names
    for doc in divide(docs)[1]:
        for piece in (doc.summary, *doc.body, doc.returned[1], *(param.text for param in doc.params)):
            # A very short text (a name, a number) may be a part of any other.
            assert len(piece.split()) < 3 or unmasked(piece) not in whole, piece
    for task in mined.targets:
        own = {mining.shown(row) for row in rows_of([task], "train", "validation")}
        for row in rows_of([task], "test"):
            assert mining.shown(row) not in own
            text = row["context" if task.family.kind == "span" else "text"]
            assert rows.NAME in text or unmasked(text) not in whole, (task.name, text)


def test_no_evaluation_text_is_trained_on(packages):
    check_no_leaks(mine(packages=packages), read_packages(packages).docs)


def test_the_same_seed_gives_the_same_rows_and_another_gives_others(packages):
    def everything(seed):
        mined = mine(seed, packages=packages)
        return mined.texts, {task.name: task.source.tables for task in (*mined.tasks, *mined.targets)}

    assert everything(0) == everything(0)
    assert everything(0)[1] != everything(1)[1]


def test_too_little_documentation_gives_no_task(packages):
    mined = mine(packages=[packages[0] / "tools"])
    assert not mined.targets
    assert all(len(task.source.tables["train"]) >= mining.LEAST_ROWS for task in mined.tasks)


def test_what_is_installed_gives_tasks_of_several_families_and_targets_without_leaks(monkeypatch):
    reading, said = read_packages(), []
    monkeypatch.setattr(mining, "read_packages", lambda *_: reading)
    mined = mine(progress=said.append)
    assert said[-1].endswith(f"{len(mined.texts):,} texts")
    assert len(mined.tasks) >= 16
    assert len(mined.targets) >= 5
    assert {task.family.kind for task in mined.tasks} >= {"classification", "span", "denoising"}
    assert len({task.family.kind for task in mined.targets}) >= 2
    assert not {task.name for task in mined.tasks} & {task.name for task in mined.targets}
    assert len(set(mined.texts)) == len(mined.texts)
    for task in (*mined.tasks, *mined.targets):
        assert len(task.source.tables["train"]) >= 400
        for row in rows_of([task], "train", "validation", "test")[::5]:
            task.family.example(row)
        if task.family.kind == "classification":
            counts = Counter(row["label"] for row in task.source.tables["train"])
            assert set(counts) == set(task.family.labels)
            assert min(counts.values()) >= mining.LEAST_PER_LABEL // 3  # what held-out rows and bounds may leave
        assert len(open_task(task).split("validation")) == len(task.source.tables["validation"])
    check_no_leaks(mined, reading.docs)
