"""What is said about a task before any model is there: bad rows, labels, repeated rows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import microworld
from prefinetune.check import check_suite, show_reports
from prefinetune.families import Choice, Classification, Denoising, Generation, MultiLabel, Regression, Span, Tagging
from prefinetune.sources import Files, Rows
from prefinetune.splits import spread_rows
from prefinetune.task import Suite, Task
from prefinetune.tokenizer import Tokenizer

ONLY_A = [{"text": f"t{at}", "label": "a"} for at in range(97)]
GOOD = [{"text": f"text number {at}", "label": "ab"[at % 2]} for at in range(20)]


def check(family, *, name="mine", **splits):
    (report,) = check_suite([Task(name, Rows(splits, name="here"), family)])
    return report


@pytest.fixture(autouse=True)
def own_cache(cache):
    """Tables are kept beside the test."""


def test_a_sound_task_has_counts_and_nothing_to_say():
    report = check(
        Classification("text"), train=GOOD, validation=[{"text": "new", "label": "a"}, {"text": "newer", "label": "b"}]
    )
    assert report.ok
    assert report.remarks == ()
    assert report.labels == ("a", "b")
    train, validation = report.splits
    assert (train.role, train.rows, train.examples, train.skipped, train.bad) == ("train", 20, 20, 0, 0)
    assert dict(train.labels) == {"a": 10, "b": 10}
    assert dict(validation.labels) == {"a": 1, "b": 1}


@given(
    st.lists(
        st.tuples(st.sampled_from(["one", "two", "three", ""]), st.sampled_from(["a", "b", "none"])), min_size=1, max_size=30
    ),
    st.lists(st.tuples(st.sampled_from(["one", "four"]), st.sampled_from(["a", "b"])), min_size=1, max_size=8),
)
def test_counts_are_those_of_a_plain_count(train, validation):
    start = [("zero", "a"), ("minus", "b")]
    rows = [{"text": text, "label": label} for text, label in [*start, *train]]
    report = check(
        Classification("text", labels=("a", "b"), skip=("none",)), train=rows,
        validation=[{"text": text, "label": label} for text, label in validation],
    )  # fmt: skip
    kept = [(text, label) for text, label in [*start, *train] if label != "none" and text]
    texts = {text for text, _ in kept}
    answers = {text: {label for other, label in kept if other == text} for text in texts}
    first, second = report.splits
    assert first.rows == len(train) + 2
    assert first.skipped == sum(label == "none" for _, label in train)
    assert first.bad == sum(label != "none" and not text for text, label in train)
    assert first.examples == len(kept)
    assert first.duplicates == len(kept) - len(set(kept))
    assert first.contradictions == len({pair for pair in kept if len(answers[pair[0]]) > 1})
    assert second.seen_in_training == sum(text in texts for text, _ in validation)


def test_bad_rows_are_named_with_their_file_and_those_that_cannot_be_read_count_too(tmp_path):
    lines = [json.dumps(row) for row in GOOD] + ['{"text": "", "label": "a"}', "not json", '{"text": "x", "label": "a"}']
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "dev.jsonl").write_text("\n".join(lines[:4]))
    (report,) = check_suite([Task("mine", Files(str(tmp_path)), Classification("text"))])
    train = report.splits[0]
    assert (train.rows, train.examples, train.bad) == (23, 21, 2)
    (error,) = report.errors
    assert error.startswith("train: 2 rows of 23 cannot be used, more than data.bad_rows=0.01 allows")
    assert f"{tmp_path}/train.jsonl, row 20: field 'text': ''" in error
    assert f"{tmp_path}/train.jsonl, row 21 (line 22): not valid JSON" in error


def test_a_few_bad_rows_among_many_are_a_remark():
    rows = [{"text": f"text {at}", "label": "ab"[at % 2]} for at in range(400)]
    report = check(Classification("text"), train=[*rows, {"text": " ", "label": "a"}], validation=GOOD)
    assert report.ok
    assert any("1 row cannot be used and will be set aside; the first: here [train], row 400" in one for one in report.remarks)


@pytest.mark.parametrize(
    ("family", "splits", "error"),
    [
        (Classification("text"), {"train": ONLY_A}, "only the label 'a'"),
        (Classification("text", labels=("a", "b")), {"train": ONLY_A}, "nothing to tell apart"),
        (Classification("text"), {"train": GOOD, "validation": []}, "there are no rows"),
        (Classification("body"), {"train": GOOD}, "no column 'body'"),
        (Classification("text", skip=("a", "b"), labels=("a", "b")), {"train": GOOD},
         "no row can be used (19 without a label, 0 bad)"),
        (Classification("text"), {"dev": GOOD}, "train"),
        (Regression("text"), {"train": [{"text": "t", "label": 1.0}] * 9}, "regression needs at least two different values"),
    ],
)  # fmt: skip
def test_what_stops_a_run_is_an_error(family, splits, error):
    report = check(family, **splits)
    assert not report.ok
    assert any(error in one for one in report.errors), report.errors


@pytest.mark.parametrize(
    ("family", "splits", "remark"),
    [
        (Classification("text", labels=("a", "b", "c")), {"train": GOOD, "validation": [{"text": "new", "label": "c"}]},
         "validation: never trained on: 'c'"),
        (Classification("text", labels=("a", "b", "c")), {"train": GOOD, "validation": GOOD}, "train: no row has the label 'c'"),
        (Classification("text"), {"train": [*GOOD, *GOOD[:3]], "validation": GOOD[:2]}, "train: 3 rows repeat earlier ones"),
        (Classification("text"), {"train": GOOD, "validation": GOOD[:2]},
         "validation: 2 rows of 2 have a text that is also in the training rows"),
        (Classification("text"), {"train": [*GOOD, {"text": "text number 0", "label": "b"}], "validation": GOOD[:2]},
         "train: 2 rows have a text that also stands with another answer"),
        (Classification("text"), {"train": [*ONLY_A, *GOOD[1:6:2]], "validation": GOOD},
         "train: in 97.0% of the rows the label is 'a'"),
        (Choice("text", "o"), {"train": [{"text": f"t{at}", "o": ["x", "y"], "label": int(at == 0)} for at in range(30)],
                               "validation": [{"text": "t", "o": ["x", "y"], "label": 1}]},
         "train: in 96.7% of the rows the right option is number '0'"),
    ],
)  # fmt: skip
def test_what_a_person_should_know_is_a_remark(family, splits, remark):
    report = check(family, **splits)
    assert report.ok, report.errors
    assert any(remark in one for one in report.remarks), report.remarks


def test_labels_of_all_families_that_have_them_are_counted():
    rows = [
        {"t": ["x", "y"], "g": ["O", "B-P"], "m": ["p", "q"], "text": f"a b {at}", "o": ["u", "v"], "i": at % 2}
        for at in range(4)
    ]
    assert dict(check(Tagging("t", "g"), train=rows, validation=rows).splits[0].labels) == {"O": 4, "B-P": 4}
    assert dict(check(MultiLabel("text", label="m"), train=rows, validation=rows).splits[0].labels) == {"p": 4, "q": 4}
    assert dict(check(Choice("text", "o", "i"), train=rows, validation=rows).splits[0].labels) == {"0": 2, "1": 2}
    assert dict(check(Denoising("text"), train=rows, validation=rows).splits[0].labels) == {}


def test_several_answers_to_one_question_contradict_each_other_only_where_there_is_one_right_one():
    rows = [{"q": "who?", "c": "Ann and Bob", "a": name} for name in ("Ann", "Bob")]
    for family in (Span("q", "c", answer="a"), Generation("q", "a", pair="c")):
        assert check(family, train=rows, validation=rows).splits[0].contradictions == 0
    assert check(Classification("q", label="a"), train=rows, validation=rows).splits[0].contradictions == 2


def test_one_bad_task_does_not_stop_the_others(tmp_path):
    suite = Suite("two", (Task("gone", Files(str(tmp_path / "gone.csv")), Classification("text")),
                          Task("there", Rows({"train": GOOD, "validation": GOOD[:2]}), Classification("text"))))  # fmt: skip
    gone, there = check_suite(suite)
    assert "no file" in gone.errors[0]
    assert there.ok


def test_with_a_tokenizer_models_that_cannot_learn_a_task_and_cut_texts_are_told():
    tokenizer = Tokenizer(microworld.tokenizer(), 16)
    rows = [{"text": "the cat " * (20 if at < 5 else 1) + str(at), "label": "ab"[at % 2]} for at in range(20)]
    tasks = [
        Task("mine", Rows({"train": rows, "validation": rows}), family)
        for family in (Classification("text"), Generation("text", "label"))
    ]
    long, impossible = check_suite(tasks, tokenizer=tokenizer)
    assert "train: 25.0% of the examples are longer than 16 tokens, and are cut" in long.remarks
    assert "generation needs a decoder" in impossible.errors[0]


@given(st.integers(0, 5000), st.integers(1, 300))
def test_spread_rows_are_one_of_each_equal_stretch(count, most):
    found = spread_rows(count, most)
    assert len(found) == min(count, most)
    assert (np.diff(found) > 0).all()
    if count > most:
        edges = np.linspace(0, count, most + 1).astype(int)
        assert ((edges[:-1] <= found) & (found < edges[1:])).all()


def test_the_report_fits_80_columns_and_ends_with_the_sum(capsys):
    console = Console(width=80, force_terminal=False)
    bad = Task("a-task-with-a-rather-long-name/of-two-parts", Rows({"train": GOOD[:1]}), Classification("nothing"))
    show_reports(check_suite([Task("good", Rows({"train": GOOD, "validation": GOOD}), Classification("text")), bad]), console)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines[-2:]).split()).endswith(
        "2 tasks checked, 1 cannot be used: a-task-with-a-rather-long-name/of-two-parts"
    )
    assert "\x1b" not in "".join(lines)
