"""Leaked rows are those that a comparison of every row with every other one finds, in plain Python and without hashes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from prefinetune import leaks, text_index
from prefinetune.catalog import catalog
from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.families import Choice, Classification, Denoising, Family, Generation, Span
from prefinetune.leaks import Leaks, Overlap, find_leaks, known_leaks, told
from prefinetune.sources import Files, Hub, Rows
from prefinetune.splits import OpenTask, Split, open_task
from prefinetune.task import Suite, Task
from prefinetune.text_index import KINDS, LEAST_LETTERS

# ---- the same in plain Python


class Text(NamedTuple):
    raw: str
    key: str  # what is compared: its letters and digits, in lower case
    letters: int
    words: tuple[str, ...]


def read_words(text: str) -> list[str]:
    lower = unicodedata.normalize("NFKC", text).lower()
    return "".join(letter if unicodedata.category(letter)[0] in "LN" else " " for letter in lower).split()


def make_text(text: str) -> Text:
    words = read_words(text)
    letters = "".join(words)
    plain = "".join(letter for letter in letters if letter in "abcdefghijklmnopqrstuvwxyz0123456789")
    few_are_lost = (len(letters) - len(plain)) * 10 <= len(letters)
    return Text(text, (plain if few_are_lost else letters) if letters else text, len(letters), tuple(words))


def grams(text: Text, n: int) -> list[tuple[str, ...]]:
    """Its n-grams, without those of which most words repeat the one before."""
    found = [text.words[at : at + n] for at in range(len(text.words) - n + 1)]
    return [gram for gram in found if sum(first == second for first, second in pairwise(gram)) <= n // 2]


class Shared(NamedTuple):
    """What a training row and an evaluation row share."""

    level: int | None  # of a leak, or None
    any_longest: bool  # whether the longest text is shared: one of those that are equally long
    all_longest: bool


def compare_rows(training: Sequence[Text], evaluation: Sequence[Text], n: int, share: float) -> Shared | None:
    distinct = {text.key: text for text in evaluation}
    equal = {text.key for text in training} & distinct.keys()
    shown, touched = set(equal), set(equal)
    for key, text in distinct.items():
        theirs = set(grams(text, n))
        for other in training:
            own = set(grams(other, n))
            both = theirs & own
            if both and len(both) >= share * len(theirs):
                shown.add(key)
            if both and (len(both) >= share * len(theirs) or len(both) >= share * len(own)):
                touched.add(key)
    if not touched or sum(distinct[key].letters for key in touched) < LEAST_LETTERS:
        return None
    longest = max(text.letters for text in distinct.values())
    among = [key in touched for key, text in distinct.items() if text.letters == longest]
    level = None
    if shown and touched == distinct.keys():
        same = {text.raw for text in evaluation} <= {text.raw for text in training}
        level = 2 if touched > equal else 0 if same else 1
    return Shared(level, any(among), all(among))


def texts_of(opened: OpenTask, role: str, extract: Any) -> list[tuple[int, list[Text]]]:
    """(number in the source, texts) of each row, with what `extract` reads from it."""
    split = opened.split(role)
    return [(split.number(index), [make_text(text) for text in extract(row) if text]) for index, row in enumerate(split.rows)]


class Expected:
    """What `find_leaks` must find, by comparing each training row with each evaluation row.

    `inputs` and `outputs` give, by task, what its rows hold.
    """

    def __init__(
        self, opened: Sequence[OpenTask], against: Sequence[OpenTask], inputs: Mapping, outputs: Mapping, n: int, share: float
    ) -> None:
        splits = {
            (one.task.name, role): texts_of(one, role, inputs[one.task.name])
            for one in (*opened, *against)
            for role in ("validation", "test")
            if role in one.roles
        }
        first: dict[str, Text] = {}  # of several evaluation texts with the same letters, the first one's words count
        for rows in splits.values():
            for _, texts in rows:
                texts[:] = [first.setdefault(text.key, text)._replace(raw=text.raw) for text in texts]
        slug = {one.task.name: one.task.slug for one in (*opened, *against)}
        self.drop: dict[str, dict[str, dict[int, int]]] = {}  # task, split: training row -> level
        self.leaking: dict[str, set[int]] = {}
        self.pairs: dict[tuple[str, str, str], dict[tuple[int, int], Shared]] = {}
        for one in opened:
            if "train" not in one.roles:
                continue
            own = texts_of(one, "train", lambda row, name=one.task.name: [*inputs[name](row), *outputs[name](row)])
            for (other, role), rows in splits.items():
                split = f"{slug[other]}/{role}"
                for training, texts in own:
                    for evaluation, its in rows:
                        shared = compare_rows(texts, its, n, share)
                        if shared is None:
                            continue
                        self.pairs.setdefault((one.task.name, other, role), {})[training, evaluation] = shared
                        if shared.level is not None:
                            levels = self.drop.setdefault(one.task.name, {}).setdefault(split, {})
                            levels[training] = min(levels.get(training, 2), shared.level)
                            self.leaking.setdefault(split, set()).add(evaluation)

    def agree(self, found: Leaks) -> None:
        assert plain(found.drop) == {
            task: {other: sorted(rows) for other, rows in others.items()} for task, others in self.drop.items()
        }
        assert {split: rows.tolist() for split, rows in found.leaking.items()} == {
            split: sorted(rows) for split, rows in self.leaking.items()
        }
        assert {(one.task, one.against, one.role) for one in found.overlaps} == self.pairs.keys()
        for one in found.overlaps:
            pairs = self.pairs[one.task, one.against, one.role]
            levels: dict[int, int] = {}
            for (training, _), shared in pairs.items():
                if shared.level is not None:
                    levels[training] = min(levels.get(training, 2), shared.level)
            assert Counter(levels.values()) == Counter({0: one.exact, 1: one.normalised, 2: one.ngram})
            leaking = {evaluation for (_, evaluation), shared in pairs.items() if shared.level is not None}
            assert one.evaluation_rows == len(leaking)
            only = {evaluation for _, evaluation in pairs} - leaking
            assert one.shared_context + one.shared_text == len(only)
            least, most = (
                len({evaluation for (_, evaluation), shared in pairs.items() if evaluation in only and getattr(shared, name)})
                for name in ("all_longest", "any_longest")
            )
            assert least <= one.shared_context <= most
            assert {example["kind"] for example in one.examples} >= {
                KINDS[shared.level] for shared in pairs.values() if shared.level is not None
            }
            for example in one.examples:
                shared = pairs[example["training_row"], example["evaluation_row"]]
                if shared.level is None:
                    kinds = {KINDS[leaks.CONTEXT]} if shared.all_longest else {KINDS[leaks.TEXT]}
                    assert example["kind"] in kinds or shared.any_longest != shared.all_longest
                else:
                    assert example["kind"] == KINDS[shared.level]


def plain(drop: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, list[int]]]:
    return {task: {other: rows.tolist() for other, rows in others.items()} for task, others in drop.items()}


# ---- small worlds

WORDS = ("one", "two", "three", "four", "cliché", "clich", "Zürich", "数据", "b4", "x", "@user", ":-)", "ﬁne")
NOTHING = lambda row: []  # noqa: E731
OPTIONS = {"listed": lambda row: row["options"], "columns": lambda row: [row["b"], row["c"]]}  # each also on its own
SHAPES: dict[str, tuple[Family, Any, Any]] = {  # a family, and what its rows hold: read by the model, shown by training
    "one": (Classification("a"), lambda row: [row["a"]], NOTHING),
    "pair": (Classification("a", pair="b"), lambda row: [row["a"], row["b"]], NOTHING),
    "three": (Classification(("a", "b"), pair="c"), lambda row: [row["a"], row["b"], row["c"]], NOTHING),
    "listed": (
        Choice("a", "options"),
        lambda row: [row["a"], " ".join(sorted(option for option in row["options"] if option is not None))],
        OPTIONS["listed"],
    ),
    "columns": (
        Choice("a", ("b", "c")),
        lambda row: [row["a"], " ".join(sorted(row[option] for option in "bc" if row[option] is not None))],
        OPTIONS["columns"],
    ),
    "span": (Span("a", "b", answers="answers"), lambda row: [row["a"], row["b"]], NOTHING),
    "written": (Generation("a", target="b"), lambda row: [row["a"]], lambda row: [row["b"]]),
    "raw": (Denoising("a"), lambda row: [row["a"]], NOTHING),
}


def spell(code: int, pool: Sequence[Sequence[str]]) -> str:
    """A text that a number stands for: words of the pool, edited and styled."""
    code, which = divmod(code, len(pool))
    code, other = divmod(code, len(pool))
    style, edit = divmod(code, 9)
    words = list(pool[which])
    if edit == 1:
        words = [*words, *pool[other]]
    elif edit == 2:
        words = [*pool[other][:2], *words, "x"]
    elif edit == 3:
        words = words[1:]
    elif edit == 4:
        words = words[:-1]
    elif edit == 5:
        words[len(words) // 2] = "other"
    elif edit == 6:
        words = words * 2
    elif edit == 7:
        words = ["@user"] * 4 + words
    elif edit == 8 and which == 0:
        words = []
    text = ("  " if style % 6 == 1 else {2: ", ", 3: "-", 4: ""}.get(style % 6, " ")).join(words)
    return text.upper() if style % 6 == 1 else text.title() if style % 6 == 3 else text + "!" if style % 6 == 5 else text


CODES = st.integers(0, 4 * 4 * 9 * 6 - 1)


@st.composite
def worlds(draw: Any) -> tuple[list[OpenTask], list[OpenTask], dict, dict]:
    """(tasks, tasks to compare with, what rows hold by task)."""
    pool = draw(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), min_size=2, max_size=4))
    known = draw(st.lists(st.tuples(CODES, CODES, CODES), min_size=2, max_size=5))
    # A row is a known one of which one text may be another, so that copies are frequent.
    row = st.builds(
        lambda which, at, code: [code if place == at else old for place, old in enumerate(known[which])],
        st.integers(0, len(known) - 1), st.integers(0, 5), CODES,
    )  # fmt: skip
    opened, inputs, outputs = [], {}, {}
    for number in range(draw(st.integers(1, 3))):
        shape = draw(st.sampled_from(sorted(SHAPES)))
        name = f"set/{number}"
        tables = {}
        for split, least in (("train", 2), ("validation", 0), ("test", 0)):
            table = []
            for codes in draw(st.lists(row, min_size=least, max_size=6 if split == "train" else 3)):
                a, b, c = (spell(code, pool) for code in codes)
                missing = None if codes[1] == 7 else b
                table.append({"a": a, "b": missing, "c": c, "options": [c, missing, a], "label": 0, "answers": None})
            if table:
                tables[split] = table
        family, inputs[name], outputs[name] = SHAPES[shape]
        opened.append(open_task(Task(name, Rows(tables), family)))
    cut = draw(st.integers(1, len(opened)))
    return opened[:cut], opened[cut:], inputs, outputs


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes splits give their rows in pieces of a size of ours."""
    original = Split.chunks

    def set_size(size: int) -> None:
        monkeypatch.setattr(Split, "chunks", lambda self, _=0: original(self, size))

    return set_size


SMALL = settings(max_examples=70, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@SMALL
@given(worlds(), st.integers(2, 4), st.sampled_from((0.3, 0.5, 0.75, 1.0)), st.integers(1, 7))
def test_leaks_are_those_that_comparing_every_pair_of_rows_finds(chunks, world, n, share, size):
    opened, against, inputs, outputs = world
    chunks(size)
    Expected(opened, against, inputs, outputs, n, share).agree(find_leaks(opened, against, n, share))


@SMALL
@given(worlds(), st.integers(2, 4), st.sampled_from((0.5, 1.0)), st.integers(0, 2), st.integers(0, 3))
def test_with_few_texts_and_ngrams_looked_up_every_leak_found_is_a_real_one(monkeypatch, world, n, share, common, widespread):
    opened, against, inputs, outputs = world
    monkeypatch.setattr(text_index, "COMMON", common)
    monkeypatch.setattr(text_index, "WIDESPREAD", widespread)
    expected = Expected(opened, against, inputs, outputs, n, share)
    found = find_leaks(opened, against, n, share)
    for task, others in found.drop.items():
        for other, rows in others.items():
            assert set(rows.tolist()) <= expected.drop[task][other].keys()
    for split, rows in found.leaking.items():
        assert set(rows.tolist()) <= expected.leaking[split]


@SMALL
@given(worlds(), st.integers(2, 4), st.integers(0, 12))
def test_with_few_ngrams_kept_equal_rows_are_found_and_every_leak_shares_a_text_or_an_ngram(monkeypatch, world, n, most):
    opened, against, inputs, outputs = world
    monkeypatch.setattr(text_index, "MOST_GRAMS", most)
    found = find_leaks(opened, against, n, 1.0)
    exact = Expected(opened, against, inputs, outputs, n, 1.0)
    for task, others in exact.drop.items():
        for other, levels in others.items():
            assert {row for row, level in levels.items() if level < 2} <= set(plain(found.drop).get(task, {}).get(other, []))
    loose = Expected(opened, against, inputs, outputs, n, 1e-9)  # one n-gram is enough
    for task, others in found.drop.items():
        for other, rows in others.items():
            assert set(rows.tolist()) <= loose.drop[task][other].keys()


def test_ngrams_are_thinned_evenly_and_the_same_everywhere(monkeypatch, chunks):
    """With an eighth of the n-grams, near duplicates are still found, and rows that share a fifth of a text are not."""
    monkeypatch.setattr(text_index, "MOST_GRAMS", 5_000)
    chunks(50)
    evaluation = [{"text": prose(row, 150)} for row in range(200)]
    near = [{"text": f"{row['text']} and then some more"} for row in evaluation]
    fifth = [{"text": " ".join([*row["text"].split()[:30], prose(at, 120, "other")])} for at, row in enumerate(evaluation)]
    found = find_leaks([trained(near), evaluated(evaluation)])
    assert found.overlaps[0].ngram == found.overlaps[0].evaluation_rows == 200
    assert len(find_leaks([trained(fifth), evaluated(evaluation)]).rows("ours")) <= 4


# ---- cases by name


def prose(seed: object, words: int = 30, kind: str = "text") -> str:
    """Words that no other seed gives."""
    rng = random.Random(f"{seed} {kind}")
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8))) for _ in range(words))


def complete(rows: list[dict], family: Family) -> list[dict]:
    """Rows with the columns that nothing here looks at, such as labels."""
    return [{**dict.fromkeys(family.columns(), 0 if "label" in family.columns() else None), **row} for row in rows]


TEXT, PAIR, READING = Classification("text"), Classification("text", pair="pair"), Span("question", "context")


def trained(train: list[dict], family: Family = TEXT, name: str = "ours", **tables: list[dict]) -> OpenTask:
    """A task with training rows, and a validation row that has nothing to do with them."""
    unrelated = {column: [prose("unrelated")] if isinstance(value, list) else None for column, value in train[0].items()}
    tables = {"train": train, "validation": [unrelated], **tables}
    return open_task(Task(name, Rows({split: complete(rows, family) for split, rows in tables.items()}), family))


def evaluated(test: list[dict], family: Family = TEXT) -> OpenTask:
    return open_task(Task("theirs", Rows({"test": complete(test, family)}), family, evaluation_only=True))


def overlap(
    train: list[dict], test: list[dict], family: Family = TEXT, other: Family | None = None, **settings: Any
) -> Overlap | None:
    """What training rows share with test rows of another task."""
    found = find_leaks([trained(train, family)], [evaluated(test, other or family)], only_against=True, **settings)
    assert len(found.overlaps) <= 1
    assert found.counts == ({"ours": found.overlaps[0].rows} if found.overlaps and found.overlaps[0].rows else {})
    return found.overlaps[0] if found.overlaps else None


def by_kind(found: Overlap | None) -> tuple[int, int, int]:
    return (found.exact, found.normalised, found.ngram) if found else (0, 0, 0)


REVIEW = "A film that one remembers for its music."


def test_an_exact_copy_is_found():
    found = overlap([{"text": prose(0)}, {"text": REVIEW}, {"text": REVIEW}], [{"text": prose(1)}, {"text": REVIEW}])
    assert (by_kind(found), found.evaluation_rows, found.evaluation_size) == ((2, 0, 0), 1, 2)
    assert (found.task, found.against, found.role) == ("ours", "theirs", "test")
    [example] = found.examples
    assert example == {
        "kind": "exact", "training_row": 1, "training": [REVIEW], "evaluation_row": 1, "evaluation": [REVIEW],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("training", "evaluation"),
    [
        (REVIEW.upper(), REVIEW),
        (REVIEW.replace(" ", "  ") + "\n", REVIEW),
        ("a film , that one remembers -- for its music", REVIEW),
        ("afilmthatone remembersforitsmusic", REVIEW),
        ("Ein Café, in dem man gern sitzt", "ein cafe\u0301 in dem man gern sitzt!"),  # an accent as a character of its own
        ("Ein Caf, in dem man gern sitzt", "Ein Café, in dem man gern sitzt"),  # lost in some copy
        ("ｆｕｌｌ ｗｉｄｔｈ ｌｅｔｔｅｒｓ", "full width letters"),
        ("ПРИВЕТ, ВСЕМ ЧИТАТЕЛЯМ", "привет всем читателям"),
        ("这是一个关于数据的很长的句子吗", "这是一个关于数据的很长的句子吗？"),
    ],
)
def test_case_spacing_and_punctuation_do_not_hide_a_copy(training, evaluation):
    assert by_kind(overlap([{"text": training}], [{"text": evaluation}])) == (0, 1, 0)


def test_texts_that_differ_in_letters_beyond_ascii_are_not_copies():
    assert overlap([{"text": "这是一个关于数据的很长的句子吗"}], [{"text": "这是一个关于音乐的很长的句子吗"}]) is None
    assert overlap([{"text": "привет всем читателям"}], [{"text": "спасибо всем писателям"}]) is None


def test_letters_beyond_ascii_do_not_count_where_they_are_a_tenth_or_less():
    two, three = "abcdefgh ijklmnopqr", "abcdefgh ijklmnopq"  # 18 letters, and 17
    assert by_kind(overlap([{"text": two}], [{"text": f"é{two}é"}])) == (0, 1, 0)
    assert overlap([{"text": three}], [{"text": f"é{three}éé"}]) is None


def test_a_pair_in_the_other_order_is_a_copy():
    first, second = "Where does the train stop?", "It stops in the next village."
    found = overlap([{"text": second, "pair": first}], [{"text": first, "pair": second}], PAIR)
    assert by_kind(found) == (1, 0, 0)


def test_options_in_another_order_are_a_copy():
    family = Choice("text", "options")
    rows = [{"text": "Where does one read?", "options": ["in bed", "in a library", "under water"], "label": 0}]
    other = [{**rows[0], "options": rows[0]["options"][::-1], "label": 2}]
    assert by_kind(overlap(rows, other, family)) == (1, 0, 0)
    assert by_kind(overlap(rows, [{**rows[0], "options": ["in bed", "in a library", "on a roof"]}], family)) == (0, 0, 0)


def test_options_in_a_list_and_options_in_columns_are_the_same():
    listed = [{"text": "Where does one read?", "options": ["in bed", "in a library"], "label": 0}]
    columns = [{"text": "Where does one read?", "first": "in a library", "second": "in bed", "label": 0}]
    found = find_leaks([trained(listed, Choice("text", "options"))], [evaluated(columns, Choice("text", ("first", "second")))])
    assert [by_kind(one) for one in found.overlaps if one.against == "theirs"] == [(1, 0, 0)]


def test_a_shared_passage_with_another_question_is_no_leak():
    passage = prose("passage", 120)
    found = overlap(
        [{"question": "Who wrote the first of these letters?", "context": passage}],
        [{"question": "When was the last of them sent?", "context": passage}],
        READING,
    )
    assert (found.rows, found.evaluation_rows, found.shared_context, found.shared_text) == (0, 0, 1, 0)
    assert [example["kind"] for example in found.examples] == ["shared context"]


def test_a_shared_question_with_another_passage_is_no_leak():
    question = "Who wrote the first of these letters?"
    found = overlap(
        [{"question": question, "context": prose(1, 120)}], [{"question": question, "context": prose(2, 120)}], READING
    )
    assert (found.rows, found.evaluation_rows, found.shared_context, found.shared_text) == (0, 0, 0, 1)
    assert [example["kind"] for example in found.examples] == ["shared text"]


def test_the_same_question_about_the_same_passage_is_a_leak_also_where_the_passage_was_cut():
    question, passage = "Who wrote the first of these letters?", prose("passage", 120)
    for context, kind in ((passage, (1, 0, 0)), (passage.title(), (0, 1, 0)), (" ".join(passage.split()[:50]), (0, 0, 1))):
        found = overlap([{"question": question, "context": context}], [{"question": question, "context": passage}], READING)
        assert (by_kind(found), found.shared_context) == (kind, 0)


def test_a_sentence_of_a_passage_with_the_question_about_it_is_a_leak():
    question, passage = "Who wrote the first of these letters?", prose("passage", 120).split()
    reading = [{"question": question, "context": " ".join(passage)}]
    asking = [{"source": " ".join(passage[40:60]), "target": question}]
    write = Generation("source", "target")
    assert by_kind(overlap(asking, reading, write, READING)) == (0, 0, 1), "the question is what training wrote"
    assert by_kind(overlap(reading, asking, READING, write)) == (0, 0, 1), "the sentence stands in a passage that training read"
    elsewhere = [{"source": prose("elsewhere", 20), "target": question}]
    found = overlap(elsewhere, reading, write, READING)
    assert (found.rows, found.shared_text) == (0, 1)


def test_a_sentence_of_an_evaluation_text_alone_does_not_show_it():
    passage = prose("passage", 120).split()
    found = overlap([{"text": " ".join(passage[40:60])}], [{"text": " ".join(passage)}])
    assert (found.rows, found.evaluation_rows, found.shared_context) == (0, 0, 1)


def test_a_near_copy_is_found_by_its_ngrams():
    words = prose("near").split()  # 30: 18 13-grams
    for at, is_leak in ((2, True), (28, True), (14, False)):  # 3, 2 and 13 of them hold that word
        changed = [*words[:at], "changed", *words[at + 1 :]]
        assert by_kind(overlap([{"text": " ".join(changed)}], [{"text": " ".join(words)}])) == (0, 0, int(is_leak))
    assert by_kind(overlap([{"text": " ".join(changed)}], [{"text": " ".join(words)}], share=5 / 18)) == (0, 0, 1)


def test_a_text_shorter_than_an_ngram_is_compared_as_a_whole():
    words = prose("short", 13).split()
    embedded = " ".join([*prose("before", 5).split(), *words, *prose("after", 5).split()])
    assert by_kind(overlap([{"text": embedded}], [{"text": " ".join(words)}])) == (0, 0, 1)
    assert overlap([{"text": embedded}], [{"text": " ".join(words[:12])}]) is None
    assert by_kind(overlap([{"text": embedded}], [{"text": " ".join(words[:4])}], n=4)) == (0, 0, 1)


def test_a_word_that_is_said_again_and_again_is_no_text():
    names = "@user " * 40
    assert overlap([{"text": names + "how are you today"}], [{"text": names + "what a match this was"}]) is None
    assert by_kind(overlap([{"text": names + "how are you"}], [{"text": names + "how are you!"}])) == (0, 1, 0)


def test_a_short_answer_that_many_give_is_no_leak():
    train = [{"text": f"Is number {at} larger than the one before it?", "pair": "yes"} for at in range(30)]
    test = [{"text": f"Does a train of kind {at} stop in this village?", "pair": "yes"} for at in range(30)]
    assert overlap(train, test, PAIR) is None


def test_fourteen_letters_tell_no_row_from_another_and_fifteen_do():
    fourteen, fifteen = "Good: 7 of 10, abcde", "Good: 7 of 10, abcdef"
    assert (len("".join(read_words(fourteen))), len("".join(read_words(fifteen)))) == (LEAST_LETTERS - 1, LEAST_LETTERS)
    assert overlap([{"text": fourteen}], [{"text": fourteen}]) is None
    assert by_kind(overlap([{"text": fifteen}], [{"text": fifteen}])) == (1, 0, 0)
    pair = [{"text": "Good: 7", "pair": "abcdefghijk"}]
    assert by_kind(overlap(pair, pair, PAIR)) == (1, 0, 0), "the texts of a row count together"


def test_texts_without_letters_are_compared_as_they_are():
    family = [{"text": REVIEW, "pair": ":-)"}]
    assert by_kind(overlap(family, [{"text": REVIEW, "pair": ":-)"}], PAIR)) == (1, 0, 0)
    assert by_kind(overlap(family, [{"text": REVIEW, "pair": ":-("}], PAIR)) == (0, 0, 0)
    assert overlap([{"text": ":-) :-) :-) :-) :-) :-)"}], [{"text": ":-) :-) :-) :-) :-) :-)"}]) is None


def test_validation_rows_that_are_held_out_of_training_are_looked_for_in_it():
    rows = [{"text": prose(at // 2)} for at in range(40)]  # every row twice
    opened = open_task(Task("ours", Rows({"train": complete(rows, TEXT)}), TEXT))
    found = find_leaks([opened])
    held_out = [opened.split("validation").number(at) for at in range(2)]
    twins = sorted(row ^ 1 for row in held_out if row ^ 1 not in held_out)
    assert plain(found.drop) == {"ours": {"ours/validation": twins}}
    assert found.leaking["ours/validation"].tolist() == sorted(row ^ 1 for row in twins)
    assert (found.training_rows, found.evaluation_rows) == ({"ours": 38}, {"ours/validation": 2})


def test_of_tasks_to_compare_with_only_evaluation_rows_count():
    ours, theirs = [{"text": prose("ours")}], [{"text": prose("theirs")}]
    first = trained(ours, name="first", test=theirs)
    second = trained(theirs, name="second", test=ours)
    both = find_leaks([first, second])
    assert plain(both.drop) == {"first": {"second/test": [0]}, "second": {"first/test": [0]}}
    found = find_leaks([first], [second])
    assert plain(found.drop) == {"first": {"second/test": [0]}}
    assert found.training_rows == {"first": 1}
    assert found.evaluation_rows == {"first/validation": 1, "first/test": 1, "second/validation": 1, "second/test": 1}
    assert find_leaks([first], [second], only_against=True).evaluation_rows == {"second/validation": 1, "second/test": 1}
    assert find_leaks([first], only_against=True).overlaps == ()


def test_the_same_source_with_another_text_to_write_is_a_leak():
    write = Generation("source", "target")
    source = prose("source", 60)
    train = [{"source": source, "target": "A summary of some words."}, {"source": prose("x"), "target": "Another summary of it."}]
    found = overlap(train, [{"source": source, "target": "Quite another summary."}], write)
    assert (found.rows, found.evaluation_rows) == (1, 1)
    assert overlap(train, [{"source": prose("y"), "target": "Another summary of it."}], write) is None, "the source was not seen"


def test_raw_text_that_holds_an_evaluation_text_is_a_leak():
    book = prose("book", 3000).split()
    found = overlap([{"raw": prose(1)}, {"raw": " ".join(book)}], [{"text": " ".join(book[700:730])}], Denoising("raw"),
                    Classification("text"))  # fmt: skip
    assert (by_kind(found), found.examples[0]["training_row"]) == ((0, 0, 1), 1)
    assert found.examples[0]["training"] == [" ".join(book)[:300] + " …"]


def test_fields_may_be_functions_dotted_paths_and_several_columns():
    def question(row: Mapping[str, Any]) -> str:
        return row["asked"]["text"].strip("<>")

    nested = [{"asked": {"text": "<Where does the train stop?>"}, "parts": ["It stops", "in the next village."]}]
    flat = [{"text": "Where does the train stop?", "first": "It stops", "second": "in the next village."}]
    found = overlap(
        nested, flat, Classification((question, "parts.0"), pair="parts.1"), Classification(("text", "first"), pair="second")
    )
    assert by_kind(found) == (1, 0, 0)
    by_path = Classification("asked.text", pair="parts.0")
    assert by_kind(overlap(nested, [{"text": "where does the train stop", "pair": "it stops"}], by_path, PAIR)) == (0, 1, 0)


def test_a_field_that_a_row_lacks_does_not_stop_the_others():
    def first_word(row: Mapping[str, Any]) -> str:
        return row["text"].split()[0]

    rows = [{"text": None, "pair": None}, {"text": "", "pair": "  "}, {"text": REVIEW, "pair": None}]
    family = Classification(("text", first_word), pair="pair")
    assert by_kind(overlap(rows, [{"text": REVIEW}, {"text": None}], family, Classification(("text", first_word)))) == (1, 0, 0)
    nested = [{"at": {"text": REVIEW}}, {"at": None}]
    assert by_kind(overlap(nested, nested, Classification("at.text"))) == (1, 0, 0)


def test_rows_without_any_text_share_nothing():
    empty = [{"text": ""}, {"text": ""}]
    assert overlap(empty, [{"text": REVIEW}]) is None
    assert overlap([{"text": REVIEW}], empty) is None
    assert overlap(empty, empty) is None


def test_numbers_outside_their_ranges_are_refused():
    opened = [trained([{"text": REVIEW}])]
    for settings_ in ({"n": 1}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(InputError, match=r"n-grams of \d+ words, share .*: expected at least 2 words and a share above 0"):
            find_leaks(opened, **settings_)


# ---- texts and n-grams that are everywhere


def test_a_text_that_is_everywhere_is_not_asked_for_but_must_be_there(monkeypatch):
    monkeypatch.setattr(text_index, "COMMON", 3)
    premise = "Which of these sentences is the right one?"
    test = [{"text": premise, "pair": f"The sentence of number {at} stands here."} for at in range(8)]
    assert overlap([{"text": premise, "pair": prose(1)}], test, PAIR) is None, "shared by all, it tells nothing"
    assert by_kind(overlap([test[5]], test, PAIR)) == (1, 0, 0)
    found = overlap([{**test[5], "text": prose(2)}], test, PAIR)
    assert (found.rows, found.shared_context + found.shared_text) == (0, 1)


def test_rows_of_nothing_but_texts_that_are_everywhere_are_found_when_equal(monkeypatch):
    monkeypatch.setattr(text_index, "COMMON", 3)
    premise, answers = "Which of these sentences is the right one?", ("The first of them.", "The second of them.")
    test = [{"text": premise, "pair": answer} for answer in answers for _ in range(5)]
    found = overlap([{"text": premise, "pair": answers[1].upper()}, {"text": premise, "pair": "The third."}], test, PAIR)
    assert (by_kind(found), [example["training_row"] for example in found.examples]) == ((0, 1, 0), [0])


def test_a_phrase_that_is_everywhere_does_not_make_rows_alike(monkeypatch):
    monkeypatch.setattr(text_index, "WIDESPREAD", 4)
    phrase = prose("phrase", 20)
    test = [{"text": f"{phrase} {prose(at, 3)}"} for at in range(5)]
    train = [{"text": f"{phrase} {prose('mine', 3)}"}, {"text": f"{test[2]['text']}!"}]
    assert by_kind(overlap(train, test)) == (0, 1, 0), "what is equal is still found"
    assert by_kind(overlap(train, test[:4])) == (0, 1, 1)


# ---- what is made of it


def test_a_drop_list_in_a_mirror_leaves_out_exactly_these_rows(tmp_path):
    tables = {
        "team-set": {"train": range(20), "validation": (2, 3, 80), "test": (3, 11)},
        "team-held": {"train": range(15, 75)},
        "other": {"test": (0, 3, 16, 17)},
    }
    for slug, splits in tables.items():
        (tmp_path / "first" / slug).mkdir(parents=True)
        for split, numbers in splits.items():
            rows = complete([{"text": prose(number)} for number in numbers], TEXT)
            pd.DataFrame(rows).to_parquet(tmp_path / "first" / slug / f"{split}.parquet")

    def open_all(folder: str) -> list[OpenTask]:
        return [
            open_task(Task(name, Hub(f"a/{name.replace('/', '-')}"), TEXT), tmp_path / folder)
            for name in ("team/set", "team/held", "other")
        ]

    before = open_all("first")
    found = find_leaks(before)
    held_out = {row + 15 for row in before[1].split("validation").numbers.tolist()}
    assert len(held_out) == 3
    leaking = {
        "team/set": sorted({0, 2, 3, 11, 16, 17} | (held_out & set(range(20)))),
        "team/held": sorted(row - 15 for row in {16, 17} - held_out),
    }
    assert {task: found.rows(task).tolist() for task in leaking} == leaking
    assert found.counts == {task: len(rows) for task, rows in leaking.items()}
    listed = found.drop_list()
    assert listed["train_rows"]["team-set"]["other/test"] == [0, 3, 16, 17]
    assert listed["train_rows"]["team-set"]["team-set/test"] == [3, 11]

    (tmp_path / "first").rename(tmp_path / "second")  # lists are read once per folder and process
    (tmp_path / "second" / "overlap-x.json").write_text(json.dumps(listed))
    after = open_all("second")
    assert after[0].split("train").numbers.tolist() == [row for row in range(20) if row not in leaking["team/set"]]
    both = [row for role in ("train", "validation") for row in after[1].split(role).numbers.tolist()]
    assert sorted(both) == [row for row in range(60) if row not in leaking["team/held"]]
    assert find_leaks(after[:1], after[2:]).counts == {}


def world_of_files(folder: Path, seed: int = 0) -> list[OpenTask]:
    """Three tasks of files with copies, near copies and shared passages."""
    rng = random.Random(seed)
    passages = [prose(("passage", at), 60).split() for at in range(12)]
    questions = [prose(("question", at), 6) + "?" for at in range(12)]

    def rows(count: int) -> list[dict]:
        made = []
        for _ in range(count):
            at, begin = rng.randrange(12), rng.choice((0, 0, 10, 20))
            text = " ".join(passages[at][begin : begin + rng.choice((20, 60))])
            text = rng.choice((text, text.upper(), text + " " + prose(rng.random(), 3)))
            question = rng.choice((questions[at], rng.choice(questions), "Why?"))
            made.append({"question": question, "context": text})
        return made

    shapes = {"a": READING, "b": Generation("context", "question"), "c": Denoising("context")}
    opened = []
    for name, family in shapes.items():
        (folder / name).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            if (name, split) != ("c", "validation"):
                pd.DataFrame(complete(rows(90 if split == "train" else 40), family)).to_parquet(
                    folder / name / f"{split}.parquet"
                )
        opened.append(open_task(Task(name, Files(str(folder / name)), family)))
    return opened


def as_text(found: Leaks) -> str:
    return json.dumps(found.as_dict(), sort_keys=True)


def test_what_was_found_is_the_same_after_a_way_through_json(tmp_path):
    found = find_leaks(world_of_files(tmp_path), n=5)
    assert len(found.overlaps) > 5
    assert found.drop
    again = Leaks.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again.overlaps == found.overlaps
    assert plain(again.drop) == plain(found.drop)
    assert plain({"": again.leaking}) == plain({"": found.leaking})
    for name in ("training_rows", "evaluation_rows", "n", "share", "slugs", "counts"):
        assert getattr(again, name) == getattr(found, name)
    assert all(again.rows(task).tolist() == found.rows(task).tolist() for task in ("a", "b", "c"))
    assert all(rows.dtype == np.int64 for others in again.drop.values() for rows in others.values())


def test_how_many_rows_are_read_at_once_and_by_how_many_threads_changes_nothing(tmp_path, chunks, monkeypatch):
    opened = world_of_files(tmp_path)
    expected = as_text(find_leaks(opened, n=5))
    for size, threads in ((7, 1), (7, 4), (1, 3), (40, 2), (1000, 1)):
        chunks(size)
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        assert as_text(find_leaks(opened, n=5)) == expected


def test_the_order_of_tasks_changes_nothing(tmp_path):
    opened = world_of_files(tmp_path)
    expected = as_text(find_leaks(opened, n=5))
    for order in ((2, 1, 0), (1, 0, 2), (2, 0, 1)):
        assert as_text(find_leaks([opened[at] for at in order], n=5)) == expected
    some = find_leaks(opened[:1], opened[1:], n=5)
    assert plain(some.drop) == {"a": plain(find_leaks(opened, n=5).drop)["a"]}


def test_hash_seeds_change_nothing(tmp_path):
    opened = world_of_files(tmp_path)
    expected = as_text(find_leaks(opened, n=5))
    code = """
import json, sys
from prefinetune.families import Denoising, Generation, Span
from prefinetune.leaks import find_leaks
from prefinetune.sources import Files
from prefinetune.splits import open_task
from prefinetune.task import Task
shapes = {"a": Span("question", "context"), "b": Generation("context", "question"), "c": Denoising("context")}
opened = [open_task(Task(name, Files(f"{sys.argv[1]}/{name}"), family)) for name, family in shapes.items()]
print(json.dumps(find_leaks(opened, n=5).as_dict(), sort_keys=True))
"""
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == expected


def test_progress_counts_every_row_once(tmp_path, chunks):
    chunks(7)
    opened, done = world_of_files(tmp_path), []
    found = find_leaks(opened, n=5, progress=done.append)
    assert sum(done) == sum(found.training_rows.values()) + sum(found.evaluation_rows.values())
    assert sum(found.training_rows.values()) + found.evaluation_rows["c/validation"] == 270
    assert max(done) <= 7


def test_what_was_found_is_kept_until_rows_or_fields_change(tmp_path, cache, monkeypatch):
    looked = []
    monkeypatch.setattr(leaks, "find_leaks", lambda *given, **more: looked.append(1) or find_leaks(*given, **more))
    display = Display(quiet=True)
    first = world_of_files(tmp_path / "data")
    found = known_leaks(first, (), cache, display)
    assert as_text(known_leaks(world_of_files(tmp_path / "same"), (), cache, display)) == as_text(found)
    assert len(looked) == 1
    known_leaks(first[:1], first[1:], cache, display)
    known_leaks(first[:1], first[1:], cache, display, only_against=True)
    known_leaks(world_of_files(tmp_path / "other", seed=1), (), cache, display)
    known_leaks([open_task(Task("a", first[0].source, Denoising("context"))), *first[1:]], (), cache, display)
    assert len(looked) == 5
    assert as_text(known_leaks(first, (), cache, display)) == as_text(find_leaks(first))


def lines_of(work: Callable[[Display], Any]) -> tuple[Any, str]:
    """What a function gives, and what it shows."""
    written = StringIO()
    return work(Display(console=Console(file=written))), written.getvalue()


def test_leaking_rows_are_left_out_reported_or_not_looked_for(cache):
    ours = trained([{"text": prose(at)} for at in range(6)], test=[{"text": prose(4)}])
    theirs = evaluated([{"text": prose(at)} for at in (1, 9)])
    (dropped, found), said = lines_of(lambda display: leaks.leave_out([ours], [theirs], "drop", cache, display))
    assert dropped[0].split("train").numbers.tolist() == [0, 2, 3, 5]
    assert dropped[0].split("test").rows["text"] == [prose(4)]
    assert found.rows("ours").tolist() == [1, 4]
    assert "leaks: 2 of 6 training rows show evaluation rows and are left out of training; most: ours 2" in said
    (kept, found), said = lines_of(lambda display: leaks.leave_out([ours], [theirs], "report", cache, display))
    assert kept == [ours]
    assert len(kept[0].split("train")) == 6
    assert found.counts == {"ours": 2}
    assert "trained on all the same" in said
    (kept, found), said = lines_of(lambda display: leaks.leave_out([ours], [theirs], "off", cache, display))
    assert (len(kept[0].split("train")), found, said) == (6, None, "")


def test_a_task_of_nothing_but_leaks_is_refused(cache):
    ours = trained([{"text": prose(at)} for at in range(2)])
    theirs = evaluated([{"text": prose(at)} for at in range(3)])
    with pytest.raises(
        InputError, match=r"'ours': every training row shows an evaluation row \(theirs/test\).*data.leaks=report"
    ):
        leaks.leave_out([ours], [theirs], "drop", cache, Display(quiet=True))


def test_finding_nothing_is_said():
    found = find_leaks([trained([{"text": prose(0)}])], [evaluated([{"text": prose(1)}])])
    assert told(found, True) == "no leaks: no training row shows one of 2 evaluation rows"


# ---- with the data


@pytest.fixture(scope="module")
def bare_mirror(shared_data, tmp_path_factory) -> Path:
    """The mirror without its lists of overlaps."""
    folder = tmp_path_factory.mktemp("mirror")
    for path in shared_data.iterdir():
        if path.is_dir():
            (folder / path.name).symlink_to(path)
    return folder


def open_real(folder: Path, *names: str) -> list[OpenTask]:
    missing = [name for name in names if not (folder / catalog()[name].slug).is_dir()]
    if missing:
        pytest.skip(f"the mirror has no {missing}")
    return [open_task(catalog()[name], folder) for name in names]


def column_of(opened: OpenTask, role: str, extract: Callable[[dict], str]) -> list[tuple[int, str]]:
    """(number in the source, what `extract` makes of the row in words of letters and digits)."""
    split = opened.split(role)
    return [(split.number(index), " ".join(read_words(extract(row)))) for index, row in enumerate(split.rows)]


def test_rows_that_a_mirror_lists_are_found_in_it_and_more(bare_mirror, shared_data):
    path = shared_data / "overlap-classification.json"
    if not path.exists():
        pytest.skip("the mirror has no overlap-classification.json")
    listed = json.loads(path.read_text(encoding="utf-8"))["train_rows"]
    slugs = {*listed, *(other.rpartition("/")[0] for others in listed.values() for other in others)}
    opened = {task.slug: open_task(task, bare_mirror) for task in catalog() if task.slug in slugs}
    found = find_leaks(list(opened.values()))
    num_listed, num_found = 0, 0
    for slug in listed.keys() & opened.keys():
        split = opened[slug].split("train")
        training = set(range(len(split)) if split.numbers is None else split.numbers.tolist())  # others were held out
        for other, rows in listed[slug].items():
            if other.rpartition("/")[0] in opened:
                ours = set(found.drop.get(opened[slug].task.name, {}).get(other, np.zeros(0)).tolist())
                assert training & set(rows) <= ours, f"{slug}, {other}: {sorted(training & set(rows) - ours)[:10]}"
                num_listed, num_found = num_listed + len(training & set(rows)), num_found + len(ours)
    assert num_found > num_listed > 8_000
    assert num_found < 1.5 * num_listed


def test_dialogues_that_stand_in_training_and_validation_are_found(bare_mirror):
    [opened] = open_real(bare_mirror, "dialogsum")
    found = find_leaks([opened])
    train = {dialogue.replace(" ", "") for _, dialogue in column_of(opened, "train", lambda row: row["dialogue"])}
    validation = column_of(opened, "validation", lambda row: row["dialogue"])
    copies = {number for number, dialogue in validation if dialogue.replace(" ", "") in train}
    assert len(copies) >= 52
    assert copies <= set(found.leaking["dialogsum/validation"].tolist())


def test_facts_that_two_sets_word_are_found(bare_mirror):
    opened = open_real(bare_mirror, "dart/resplit", "web_nlg/webnlg_challenge_2017")
    dart, web = opened
    found = find_leaks(opened)
    triples = lambda row: " ".join(part for triple in row["tripleset"] for part in triple)  # noqa: E731
    train = {facts.replace(" ", "") for _, facts in column_of(dart, "train", triples)}
    test = column_of(web, "test", lambda row: " ".join(row["input"]))
    copies = {number for number, facts in test if facts.replace(" ", "") in train}
    assert len(copies) > 1_500
    assert copies <= set(found.leaking["web_nlg-webnlg_challenge_2017/test"].tolist())
    [one] = [one for one in found.overlaps if (one.task, one.against, one.role) == (dart.task.name, web.task.name, "test")]
    assert len(copies) <= one.evaluation_rows <= len(copies) * 1.05


def test_sentences_of_which_training_read_the_passage_are_found(bare_mirror):
    opened = open_real(bare_mirror, "squad/resplit", "squad_qg/nqg-resplit")
    found = find_leaks(opened[:1], opened[1:])
    passages = {passage for _, passage in column_of(opened[0], "train", lambda row: row["context"])}
    book = " | ".join(sorted(passages))
    sentences = column_of(opened[1], "validation", lambda row: row["source"])
    inside = {number for number, sentence in sentences if len(sentence.split()) >= 13 and f" {sentence} " in book}
    assert len(inside) > 500
    leaking = set(found.leaking["squad_qg-nqg-resplit/validation"].tolist())
    assert inside <= leaking
    assert len(leaking) <= 1.25 * len(inside)


# ---- cases that went wrong once


def test_how_many_ngrams_are_kept_does_not_depend_on_chunks_and_threads(monkeypatch, chunks):
    monkeypatch.setattr(text_index, "MOST_GRAMS", 3_000)
    evaluation = [{"text": prose(row, 60)} for row in range(240)]
    halves = [{"text": " ".join([*row["text"].split()[:36], prose(at, 24, "other")])} for at, row in enumerate(evaluation)]
    opened, found = [trained(halves), evaluated(evaluation)], []
    for size, threads in ((240, 1), (10, 1), (3, 4), (60, 2)):
        chunks(size)
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        found.append(plain(find_leaks(opened).drop))
    assert all(one == found[0] for one in found)


def test_an_exact_copy_of_a_row_with_a_text_to_write_is_exact():
    write = Generation("source", "target")
    row = {"source": prose("source"), "target": prose("target", 6)}
    assert by_kind(overlap([row], [row], write)) == (1, 0, 0)


def test_an_ngram_that_a_training_text_repeats_counts_once():
    question, sentence = "Who wrote the first of these letters?", prose("sentence", 14)
    reading = [{"question": question, "context": f"{prose(0, 60)} {sentence} {prose(1, 60)}"}]
    twice = [{"source": f"{sentence} {prose(2, 12)} {sentence}", "target": question}]  # 2 of 27 distinct n-grams stand there
    often = [{"source": " ".join([sentence] * 5), "target": question}]  # 14 distinct ones, of which 2 do
    write = Generation("source", "target")
    assert [by_kind(overlap(rows, reading, write, READING, share=0.1)) for rows in (twice, often)] == [(0, 0, 0), (0, 0, 1)]


def test_an_option_of_a_training_row_shows_a_text_of_an_evaluation_row():
    """e_care: premise and options; e_care/explanation: the premise and the right option."""
    choosing = [{"text": "There is a light rain today.", "options": ["The roots stay dry.", "Tourists see many ripples."]}]
    writing = [{"cause": "There is a light rain today.", "effect": "Tourists see many ripples.", "why": "Rain falls on water."}]
    found = overlap(choosing, writing, Choice("text", "options"), Generation(("cause", "effect"), "why"))
    assert (found.rows, found.evaluation_rows) == (1, 1)


@SMALL
@given(worlds(), st.integers(2, 4), st.integers(0, 2))
def test_training_rows_that_equal_an_evaluation_row_are_found_however_many_share_their_texts(monkeypatch, world, n, common):
    opened, against, inputs, _ = world
    monkeypatch.setattr(text_index, "COMMON", common)
    found = find_leaks(opened, against, n)
    seen = set()
    for one in (*opened, *against):
        for role in {"validation", "test"} & set(one.roles):
            for _, texts in texts_of(one, role, inputs[one.task.name]):
                distinct = {text.key: text.letters for text in texts}
                if sum(distinct.values()) >= LEAST_LETTERS + len(distinct):  # a lost letter is not counted
                    seen.add(frozenset(distinct))
    for one in opened:
        rows = texts_of(one, "train", inputs[one.task.name]) if "train" in one.roles else []
        equal = {number for number, texts in rows if {text.key for text in texts} in seen}
        assert equal <= set(found.rows(one.task.name).tolist())


@pytest.mark.parametrize(
    ("train", "test", "family"),
    [
        ([{"text": REVIEW, "pair": REVIEW}], [{"text": REVIEW, "pair": REVIEW}] * 5, PAIR),  # a text twice
        ([{"question": "Why?", "context": REVIEW}],
         [{"question": question, "context": REVIEW} for question in ("Why?", "How?", "Who?", "When?")], READING),  # few letters
        ([{"source": REVIEW, "target": "music"}], [{"source": REVIEW, "target": "music"}] * 5, Generation("source", "target")),
    ],
    ids=["a text twice", "few letters beside a common text", "a text to write"],
)  # fmt: skip
def test_a_copy_of_a_row_with_common_texts_is_found(monkeypatch, train, test, family):
    monkeypatch.setattr(text_index, "COMMON", 3)
    assert overlap(train, test, family).rows == 1


def test_every_evaluation_row_of_common_texts_that_stands_in_training_leaks(monkeypatch):
    monkeypatch.setattr(text_index, "COMMON", 3)
    copies = [{"text": REVIEW}] * 3
    theirs = [open_task(Task(name, Rows({"test": complete(copies, TEXT)}), TEXT)) for name in ("a", "b")]
    found = find_leaks([trained([{"text": REVIEW}])], theirs)
    assert {split: rows.tolist() for split, rows in found.leaking.items()} == {"a/test": [0, 1, 2], "b/test": [0, 1, 2]}
    assert plain(found.drop) == {"ours": {"a/test": [0], "b/test": [0]}}


def test_tasks_whose_folders_have_one_name_are_refused():
    ours = [trained([{"text": prose(at)} for at in range(3)], name=name) for name in ("a/b", "a-b")]
    with pytest.raises(InputError, match=r"'a/b' and 'a-b' would share the folder 'a-b'"):
        find_leaks(ours, [evaluated([{"text": prose(1)}])], only_against=True)
    with pytest.raises(InputError, match=r"'a/b' and 'a-b' would share the folder 'a-b'"):
        Suite("both", tuple(one.task for one in ours))


def test_causes_and_effects_that_were_options_are_found(bare_mirror):
    """An eighth of the validation pairs of e_care/explanation, as its record says."""
    opened = open_real(bare_mirror, "e_care", "e_care/explanation")
    found = find_leaks(opened)
    train = opened[0].split("train").rows
    seen = {
        frozenset(("".join(read_words(row["premise"])), "".join(read_words(row[option]))))
        for row in train
        for option in ("choice1", "choice2")
    }
    copies = {
        number
        for number, row in enumerate(opened[1].split("validation").rows)
        if frozenset(("".join(read_words(row["cause"])), "".join(read_words(row["effect"])))) in seen
    }
    assert len(copies) > 200
    assert copies <= set(found.leaking["e_care-explanation/validation"].tolist())
