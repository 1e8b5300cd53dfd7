"""Multi-label: labels in all the forms that data has them, the loss by its formula, scores by scikit-learn and by hand.

Letters: e examples, n labels.
"""

import math
from itertools import chain, combinations

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from sklearn.metrics import accuracy_score, f1_score

import microworld
from prefinetune.errors import FieldError, InputError
from prefinetune.families import Encoded, MultiLabel, Segment
from prefinetune.families.base import symmetric_kl
from prefinetune.finetune import finetune
from prefinetune.objective import scaled
from prefinetune.sources import Rows
from prefinetune.splits import open_task
from prefinetune.store import build_store, encode_split
from prefinetune.task import Task, build
from prefinetune.tokenizer import load_tokenizer

MOODS = ("joy", "anger", "fear", "calm")
FAMILY = MultiLabel("text", labels=MOODS)


def encoded(*targets):
    return [Encoded([np.zeros(1, np.int32)], [1], np.array(target, np.int8)) for target in targets]


def segment_of(targets):
    examples = encoded(*targets)
    one = torch.ones(len(targets))
    return Segment("t", FAMILY, examples, one.long(), one.long(), one.long(), FAMILY.collate(examples), one / len(targets))


tables = st.tuples(st.integers(1, 6), st.integers(2, 5)).flatmap(lambda shape: arrays(np.int8, shape, elements=st.integers(0, 1)))
pairs_of_tables = tables.flatmap(lambda one: st.tuples(st.just(one), arrays(np.int8, one.shape, elements=st.integers(0, 1))))


def indices(table):
    return [np.flatnonzero(row).tolist() for row in table]


# ---- rows to targets


@pytest.mark.parametrize(
    ("family", "columns"),
    [
        (MultiLabel("text", label="moods", labels=MOODS), {"moods": ["calm", "anger"]}),
        (MultiLabel("text", label="moods", labels=MOODS), {"moods": [3, 1, 3]}),
        (MultiLabel("text", label="of.moods", labels=MOODS), {"of": {"moods": ("anger", 3)}}),
        (MultiLabel("text", label="moods", labels=MOODS, separator=";"), {"moods": "calm ; anger;"}),
        (MultiLabel("text", label=MOODS, labels=MOODS), {"joy": 0, "anger": 1, "fear": False, "calm": 1.0}),
        (MultiLabel("text", label=MOODS, labels=MOODS), {"joy": "0", "anger": "1", "fear": "False", "calm": "true"}),
        (MultiLabel("text", label="moods", labels=MOODS, separator=" "), {"moods": "3 1"}),
        (MultiLabel("text", label=lambda row: row["x"].split("+"), labels=MOODS), {"x": "calm+anger"}),
    ],
)
def test_lists_of_names_or_indices_one_text_and_columns_of_0_and_1_are_read_alike(family, columns):
    example = family.example({"text": "a b", **columns})
    assert example.texts == (("a b", None),)
    assert example.target == (1, 3)
    assert family.name_target(example) == ["anger", "calm"]
    assert family.stored_target(example).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"label": "moods"}, {"moods": []}),
        ({"label": "moods", "separator": ","}, {"moods": ""}),
        ({"label": "moods", "separator": ","}, {"moods": None}),  # an empty cell of a table
        ({"label": MOODS}, dict.fromkeys(MOODS, 0)),
    ],
)
def test_a_row_may_have_no_label(fields, columns):
    family = MultiLabel("text", "pair", labels=MOODS, **fields)
    example = family.example({"text": "a", "pair": "b", **columns})
    assert (example.texts, example.target) == ((("a", "b"),), ())
    assert family.stored_target(example).tolist() == [0, 0, 0, 0]


def test_labels_are_the_hubs_names_or_the_columns_or_what_training_rows_have():
    named = Dataset.from_dict(
        {"text": ["a"], "label": [[1]]},
        features=Features({"text": Value("string"), "label": List(ClassLabel(names=["z", "y", "x"]))}),
    )
    assert MultiLabel("text").freeze(named, "here").labels == ("z", "y", "x")
    read = Dataset.from_dict({"text": ["a", "b", "c"], "label": [["z", "b"], [], ["c", "b"]]})
    assert MultiLabel("text").freeze(read, "here").labels == ("b", "c", "z")
    assert MultiLabel("text", skip=(["z", "b"],)).freeze(read, "here").labels == ("b", "c")
    joined = Dataset.from_dict({"text": ["a", "b", "c"], "label": ["z, b", None, "c"]})
    assert MultiLabel("text", separator=",").freeze(joined, "here").labels == ("b", "c", "z")
    flags = Dataset.from_dict({"text": ["a"], "rude": [0], "kind": [1]})
    assert MultiLabel("text", label=("rude", "kind")).freeze(flags, "here").labels == ("rude", "kind")
    assert MultiLabel("text", label=("rude", "kind"), labels=("R", "K")).freeze(flags, "here").labels == ("R", "K")


BAD_ROWS = {  # what is wrong -> (the family's fields, the row's columns, the column that is named, the value, what is accepted)
    "an unknown name": ({}, {"label": ["joy", "jo"]}, "label", "'jo'", "joy, anger, fear, calm"),
    "an index too high": ({}, {"label": [4]}, "label", "4", "joy, anger, fear, calm"),
    "a number in place of a list": ({}, {"label": 2}, "label", "2", "a list of labels"),
    "a text in place of a list": ({}, {"label": "joy;fear"}, "label", "'joy;fear'", "a separator"),
    "nothing in place of a list": ({}, {"label": None}, "label", "None", "a list of labels"),
    "an unknown name in a text": ({"separator": ";"}, {"label": "joy;glee"}, "label", "'glee'", "joy, anger, fear, calm"),
    "a list in place of a text": ({"separator": ";"}, {"label": ["joy"]}, "label", "['joy']", "labels between ';'"),
    "a column with 2": ({"label": MOODS}, dict.fromkeys(MOODS, 0) | {"fear": 2}, "fear", "2", "0 or 1"),
    "a column without a value": ({"label": MOODS}, dict.fromkeys(MOODS, 1) | {"calm": None}, "calm", "None", "0 or 1"),
    "a column with a word": ({"label": MOODS}, dict.fromkeys(MOODS, 1) | {"joy": "yes"}, "joy", "'yes'", "0 or 1"),
    "a missing column": ({"label": MOODS}, {"joy": 1, "anger": 0, "fear": 0}, "calm", "None", "one of the columns"),
}


@pytest.mark.parametrize("wrong", BAD_ROWS)
def test_a_bad_row_is_refused_by_field_and_value(wrong):
    fields, columns, column, value, accepted = BAD_ROWS[wrong]
    with pytest.raises(FieldError) as refusal:
        MultiLabel("text", labels=MOODS, **fields).example({"text": "a", **columns})
    assert str(refusal.value).startswith(f"field '{column}': {value} is not accepted; expected ")
    assert accepted in str(refusal.value)


def test_a_bad_row_is_named_with_its_place(tiny_model, cache):
    rows = [{"text": "a", "label": ["joy"]}, {"text": "b", "label": ["fear"]}, {"text": "c", "label": "joy"}]
    source = Rows({"train": rows[:2], "validation": rows[:2]}, name="moods")
    tokenizer = load_tokenizer(str(tiny_model), None, transformers.AutoConfig.from_pretrained(tiny_model))
    assert len(build_store(open_task(Task("moods", source, MultiLabel("text"))), "train", tokenizer, cache)) == 2
    mixed = Dataset.from_list([{"text": "a", "label": "joy"}, {"text": "b", "label": "fear"}])
    with pytest.raises(InputError, match=r"nowhere\.csv: field 'label': 'joy' is not accepted; expected a list of labels"):
        MultiLabel("text").freeze(mixed, "nowhere.csv")
    unknown = Rows({"train": [*rows[:2], {"text": "c", "label": ["glee"]}], "validation": rows[:2]}, name="moods")
    with pytest.raises(InputError, match=r"moods.*row 2: field 'label': 'glee' is not accepted; expected .*joy, anger, fear"):
        build_store(open_task(Task("moods", unknown, MultiLabel("text", labels=MOODS))), "train", tokenizer, cache)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"separator": ""}, "separator: ''"),
        ({"separator": 3}, "separator: 3"),
        ({"separator": ";", "label": ("a", "b")}, "separator: a label of several columns"),
        ({"label": ("a", "b"), "labels": ("x", "y", "z")}, "labels: 3 names for 2 columns"),
        ({"label": (len, max)}, "labels: missing"),
        ({"labels": ("x",)}, "only the label 'x'"),
        ({"labels": ("x", "x")}, "labels declared twice: x"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        MultiLabel("text", **fields)


@pytest.mark.parametrize(
    "family",
    [
        MultiLabel("text"),
        MultiLabel("text", "pair", "labels", MOODS, skip=("?",)),
        MultiLabel("text", label="moods", separator=";"),
        MultiLabel(("title", "text"), label=("rude", "kind")),
    ],
)
def test_a_record_survives_yaml(family):
    assert build(MultiLabel, family.settings(), "here") == family


def test_the_model_reads_texts_only():
    family = MultiLabel(("title", "text"), "pair", ("rude", "kind"))
    assert family.inputs() == ("title", "text", "pair")
    assert family.columns() == ["title", "text", "pair", "rude", "kind"]


# ---- loss


@given(tables)
def test_answering_one_half_costs_one_in_multi_label_whatever_the_labels_and_their_number(table):
    segment = segment_of(table)
    output = torch.zeros(table.shape)
    losses = scaled(FAMILY.loss(output, segment), FAMILY.outcomes(output, segment))
    torch.testing.assert_close(losses, torch.ones_like(losses), rtol=1e-6, atol=0)


def test_multi_label_loss_is_the_mean_over_labels_of_minus_the_log_probability_of_the_right_answer():
    generator = np.random.default_rng(0)
    logits, table = generator.normal(0, 3, (6, 5)), generator.integers(0, 2, (6, 5))
    output = FAMILY.loss(torch.tensor(logits, dtype=torch.float32), segment_of(table))
    right = np.where(table == 1, expit(logits), 1 - expit(logits))  # float64
    np.testing.assert_allclose(output.numpy(), -np.log(right).mean(1), rtol=1e-5)


def test_the_divergence_of_multi_label_is_the_mean_over_labels_of_that_of_two_answers():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn((4, 3), generator=generator) * 3 for _ in range(2))
    segment = segment_of(np.zeros((4, 3)))
    found = FAMILY.divergence(first, second, segment)

    def yes_or_no(logits):
        return torch.stack([logits, torch.zeros_like(logits)], dim=-1)  # [e, n, 2]

    torch.testing.assert_close(found, symmetric_kl(yes_or_no(first), yes_or_no(second)).mean(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, FAMILY.divergence(second, first, segment))
    assert (found > 0).all()
    assert (FAMILY.divergence(first, first, segment) == 0).all()


# ---- scores


def test_labels_that_are_more_likely_than_not_are_predicted():
    output = torch.tensor([[0.1, -0.1, 3.0], [-1.0, -2.0, -0.01], [0.0, 5.0, 1e-6]])
    assert FAMILY.predict(output, segment_of(np.zeros((3, 3)))) == [[0, 2], [], [1, 2]]


@given(pairs_of_tables)
def test_multi_label_scores_are_scikit_learns_and_row_statistics_make_micro_f1(tables):
    gold, found = tables
    family = MultiLabel("text", labels=tuple(map(str, range(gold.shape[1]))))
    scores = family.score(indices(found), encoded(*gold))
    assert scores["micro_f1"] == pytest.approx(f1_score(gold, found, average="micro", zero_division=0))
    assert scores["macro_f1"] == pytest.approx(f1_score(gold, found, average="macro", zero_division=0))
    assert scores["exact_match"] == pytest.approx(accuracy_score(gold, found))
    statistics = family.row_statistics(indices(found), encoded(*gold))
    assert statistics.tolist() == [
        [sum(g and f for g, f in zip(*rows, strict=True)), sum(rows[1]), sum(rows[0])]
        for rows in zip(gold.tolist(), found.tolist(), strict=True)
    ]
    assert family.score_of_means(statistics.mean(0)) == pytest.approx(scores["micro_f1"])
    assert family.score_of_means(np.stack([statistics.mean(0)] * 2)).tolist() == pytest.approx([scores["micro_f1"]] * 2)


@settings(max_examples=40)
@given(tables)
def test_the_base_rate_is_the_best_of_all_answers_that_are_the_same_for_every_row(gold):
    family, num_labels = MultiLabel("text", labels=tuple(map(str, range(gold.shape[1])))), gold.shape[1]
    answers = chain.from_iterable(combinations(range(num_labels), size) for size in range(num_labels + 1))
    right = [(len(answer), int(gold[:, list(answer)].sum())) for answer in answers]
    same = [2 * hits / max(1, size * len(gold) + int(gold.sum())) for size, hits in right]
    assert family.score([[]] * len(gold), encoded(*gold))["majority"] == pytest.approx(max(same))


def test_predictions_are_read_by_name():
    (example,) = encoded([0, 1, 1, 0])
    assert FAMILY.readable([0, 2], example) == {"prediction": ["joy", "fear"], "reference": ["anger", "fear"]}


def test_an_example_is_counted_with_its_rarest_label():
    table = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]], np.int8)
    assert FAMILY.strata(list(table)).tolist() == [0, 1, 2, 3, 0, 1]


# ---- learned, and saved


@pytest.fixture(scope="module")
def tuned(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    task = microworld.make_task(0, "several", microworld.SEVERAL, {"train": 512, "validation": 64, "test": 128})
    config = {"optimizer": {"learning_rate": 3e-3}, "train": {"updates": 300, "evaluate_every": 150}}
    return task, finetune(task, tiny_model, folder / "out", config=config, cache=folder / "cache")


def test_a_small_task_is_learned(tuned):
    scores = tuned[1].record["scores"]
    assert tuned[1].record["metric"] == "micro_f1"
    assert scores["micro_f1"] > 0.85 > 0.75 > scores["majority"]


def test_a_saved_model_gives_each_label_its_probability_in_a_pipeline(tuned):
    task, result = tuned
    config = transformers.AutoConfig.from_pretrained(result.folder / "model")
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == dict(enumerate(task.family.labels))
    answer = transformers.pipeline("text-classification", model=str(result.folder / "model"), device="cpu", top_k=None)
    texts = [row["text"] for row in task.source.tables["test"]]
    said = [sorted(one["label"] for one in labels if one["score"] > 0.5) for labels in answer(texts)]
    assert said == [sorted(task.family.labels[index] for index in found) for found in result.predictions]
    assert len(set(map(tuple, said))) > 8


def test_plain_transformers_computes_the_same_loss_of_a_saved_model(tuned):
    task, result = tuned
    folder = str(result.folder / "model")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    opened = open_task(task)
    tokenizer = load_tokenizer(folder, None, plain.config)
    examples = encode_split(opened, "test", tokenizer)
    batch = tokenizer.tokenizer([row["text"] for row in task.source.tables["test"]], padding=True, return_tensors="pt")
    labels = opened.family.collate(examples)
    with torch.no_grad():
        output = plain(**batch, labels=labels)
        segment = segment_of(labels.numpy())
    ours = opened.family.loss(output.logits, segment).mean()
    assert float(output.loss) == pytest.approx(float(ours), rel=1e-5)
    assert math.isfinite(float(ours))
