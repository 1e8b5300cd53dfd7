"""The micro-world is what it says: the same for a seed, answerable, and with targets that no training task gives away."""

import random
from itertools import islice

import pytest

from microworld import PROBLEMS, RULES, SPECIALS, TARGET_RULES, World, model_config, targets, tokenizer, vocabulary, world


def rows(task, split="train"):
    return task.source.tables[split]


def test_a_seed_makes_the_same_rows_again_and_another_seed_others():
    first, again, other = (world(seed, rows_per_task=5) for seed in (0, 0, 1))
    assert [rows(task) for task in first] == [rows(task) for task in again]
    assert all(rows(task) != rows(other[task.name]) for task in first)


def test_there_are_36_training_tasks_in_five_forms_and_7_targets():
    forms = [problem.form for problem in PROBLEMS.values()]
    assert {form: forms.count(form) for form in forms} == {"single": 18, "pair": 4, "span": 5, "choice": 5, "fill": 4}
    assert len(targets(0, train_rows=1)) == 7
    assert [task.name for task in world(3, num_tasks=4)] == [task.name for task in world(3, num_tasks=4, rows_per_task=1)]


def test_no_target_divides_sentences_as_a_training_task_does():
    def division(rule):
        labels = [rule(sentence) for sentence in sentences]
        return tuple(labels.index(label) for label in labels)  # the same whatever the labels are called

    sentences = list(islice(World(0).sentences(random.Random(0)), 500))
    assert not {division(rule) for rule in RULES.values()} & {division(rule) for rule in TARGET_RULES.values()}


def test_every_span_answer_stands_where_it_says():
    for task in world(0, rows_per_task=50).select("span"):
        for row in rows(task):
            (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start : start + len(text)] == text
            assert row["context"][start - 1] == " "
            assert row["context"][start + len(text)] == " "
            assert len(text.split()) == (2 if task.name == "micro/find-plant" else 1)


@pytest.mark.parametrize("seed", range(3))
def test_no_target_can_be_won_by_its_most_frequent_label(seed):
    for task in targets(seed):
        labels = [row["label"] for row in rows(task, "test")]
        assert max(labels.count(label) for label in set(labels)) / len(labels) <= 0.65, task.name


def test_every_word_is_a_token_of_the_models_vocabulary():
    tokens = tokenizer()
    known = set(tokens.get_vocab())
    assert len(tokens) == model_config().vocab_size == len(SPECIALS) + len(set(vocabulary()))
    for task in world(0, rows_per_task=20):
        for row in rows(task):
            texts = [row[part] for part in ("text", "pair", "question", "context") if part in row] + row.get("options", [])
            assert set(" ".join(texts).split()) <= known
