"""Generation: what is read and written, the loss by its formula, scores by hand, and texts by plain Transformers.

Letters: m target tokens of a segment, v size of the vocabulary.
"""

import gc
import json
import random

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy.special import log_softmax

import microworld
from prefinetune.batch import Drawn, Layout, make_batch
from prefinetune.errors import FieldError, InputError
from prefinetune.evaluate import predict
from prefinetune.export import assemble
from prefinetune.families import Classification, Encoded, Generation
from prefinetune.finetune import finetune
from prefinetune.model import MultiTask
from prefinetune.objective import scaled
from prefinetune.pretrained import load_backbone
from prefinetune.sources import Rows
from prefinetune.splits import open_task, spread_rows
from prefinetune.store import build_store, encode_split
from prefinetune.task import Suite, Task
from prefinetune.tokenizer import load_tokenizer
from prefinetune.train import train

EOS, SOURCE_LENGTH, TARGET_LENGTH = 2, 32, 12
SUMMARY = Generation("text", "target")


@pytest.fixture(scope="module")
def tokenizer(tiny_bart):
    """One token per word; 32 tokens to read and 12 to write."""
    return load_tokenizer(str(tiny_bart), SOURCE_LENGTH, transformers.AutoConfig.from_pretrained(tiny_bart), TARGET_LENGTH)


def phrase(rng, least, most):
    return " ".join(rng.choices(microworld.vocabulary(), k=rng.randint(least, most)))


def made_rows(count=24, longest=25, longest_target=9):
    rng = random.Random(0)
    return [
        {"text": phrase(rng, 2, longest), "target": phrase(rng, 1, longest_target), "pair": phrase(rng, 1, 3)}
        for _ in range(count)
    ]


def encoded(family, rows, tokenizer, for_training=True):
    return family.encode([family.example(row) for row in rows], tokenizer, for_training)


# ---- rows to tokens


@pytest.mark.parametrize(
    ("family", "read"),
    [
        (SUMMARY, ["the bali"]),
        (Generation("text", "target", prefix="which noun ? "), ["which noun ? the bali"]),
        (Generation("text", "target", pair="pair", prefix="which "), ["which the bali", "kuno"]),
        (Generation(("text", "pair"), "target"), ["the bali kuno"]),
    ],
)
def test_the_encoder_reads_prefix_text_and_pair_and_the_decoder_writes_the_target(family, read, tokenizer):
    (one,) = encoded(family, [{"text": "the bali", "pair": "kuno", "target": "gilas bano ."}], tokenizer)
    assert one.sequences[0].tolist() == tokenizer.tokenizer(*read)["input_ids"]
    assert one.output.tolist() == tokenizer.tokenizer("gilas bano .")["input_ids"]
    assert one.output[-1] == EOS
    assert (len(one.sequences), one.target.size, one.truncated, one.output_cut) == (1, 0, 0, False)


def test_for_evaluation_the_references_are_kept_and_nothing_is_given_to_write(tokenizer):
    row = {"text": "the bali", "target": "kuno", "others": ["bano .", "the kuno"]}
    family = Generation("text", "target", references="others")
    (one,) = encoded(SUMMARY, [row], tokenizer, for_training=False)
    (several,) = encoded(family, [row], tokenizer, for_training=False)
    (without,) = encoded(family, [{**row, "others": []}], tokenizer, for_training=False)
    assert one.reference == without.reference == ("kuno",)
    assert several.reference == ("bano .", "the kuno")
    assert len(one.output) == len(several.output) == 0


def test_texts_and_targets_that_are_cut_are_counted_apart_and_targets_still_end(tokenizer, tmp_path):
    rows = made_rows(40, longest=50, longest_target=20)
    store = build_store(open_task(Task("mine", Rows({"train": rows, "validation": rows}), SUMMARY)), "train", tokenizer, tmp_path)
    lengths = [[len(tokenizer.tokenizer(row[name])["input_ids"]) for row in rows] for name in ("text", "target")]
    expected = [sum(length > most for length in each) for each, most in zip(lengths, (SOURCE_LENGTH, TARGET_LENGTH), strict=True)]
    assert [store.summary["truncated"], store.summary["outputs_cut"]] == expected
    assert 0 < expected[0] != expected[1] > 0
    for index, row in enumerate(rows):
        whole = tokenizer.tokenizer(row["target"])["input_ids"]
        kept = whole if len(whole) <= TARGET_LENGTH else [*whole[: TARGET_LENGTH - 1], EOS]
        assert store[index].output.tolist() == kept


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "target": " "}, "field 'target': ' ' is not accepted; expected a text that is not empty"),
        ({"text": "a", "target": None}, "field 'target': None is not accepted; .*missing"),
        ({"text": "", "target": "a"}, "field 'text': '' is not accepted"),
        ({"text": "a", "target": "a", "others": "b"}, "field 'others': 'b' is not accepted; expected a list of texts"),
        ({"text": "a", "target": "a", "others": ["b", ""]}, "field 'others': '' is not accepted"),
    ],
)
def test_a_row_without_a_text_to_write_is_refused(row, message):
    with pytest.raises(FieldError, match=message):
        Generation("text", "target", references="others").example({"others": [], **row})


# ---- the loss


def segment_of(outputs):
    """The segment of examples that write these tokens."""
    drawn = [
        Drawn(Encoded([np.array([0, 5, EOS])], [3], np.zeros(0, np.int64), output=np.array(ids)), "t", SUMMARY, 1.0)
        for ids in outputs
    ]
    (segment,) = make_batch(drawn, Layout(pad_id=1, decodes=True)).segments
    return segment


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(10, 2000), st.floats(-8, 8, width=32), st.floats(0, 0.9))
def test_equal_logits_cost_one_in_generation_whatever_the_vocabulary_the_lengths_and_the_smoothing(
    lengths, size, value, smoothing
):
    family, segment = Generation("text", "target", label_smoothing=smoothing), segment_of([range(length) for length in lengths])
    logits = torch.full((sum(lengths), size), value)
    losses = scaled(family.loss(logits, segment), family.outcomes(logits, segment))
    torch.testing.assert_close(losses, torch.ones(len(lengths)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_loss_is_the_mean_over_target_tokens_of_their_smoothed_cross_entropy(smoothing):
    outputs, logits = [[4, 2], [3, 1, 4, 1, 2], [2]], np.random.default_rng(0).normal(0, 2, (8, 10))  # [m, v]
    log_p, true = log_softmax(logits, axis=1), np.concatenate(outputs)
    each = -(1 - smoothing) * log_p[np.arange(8), true] - smoothing * log_p.mean(axis=1)
    found = Generation("text", "target", label_smoothing=smoothing).loss(torch.tensor(logits), segment_of(outputs))
    np.testing.assert_allclose(found.numpy(), [each[:2].mean(), each[2:7].mean(), each[7]], rtol=1e-5)


@pytest.fixture(scope="module")
def model(tiny_bart):
    return MultiTask(load_backbone(str(tiny_bart)), {"summary": SUMMARY}).eval()


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_an_examples_loss_is_that_of_plain_transformers_on_it_alone_whatever_is_beside_it(model, tokenizer, tiny_bart, packed):
    plain = transformers.BartForConditionalGeneration.from_pretrained(tiny_bart).eval()
    examples = encoded(SUMMARY, made_rows(8), tokenizer)
    batch = make_batch([Drawn(one, "summary", SUMMARY, 1.0) for one in examples], microworld.layout(model, packed))
    ((segment, output, _),) = model(batch)
    losses = Generation("text", "target", label_smoothing=0.0).loss(output, segment)
    for one, loss in zip(examples, losses, strict=True):
        ids, labels = (torch.tensor(part.astype(np.int64))[None] for part in (one.sequences[0], one.output))
        torch.testing.assert_close(loss, plain(input_ids=ids, labels=labels).loss, rtol=1e-5, atol=1e-5)
    assert len({len(one.output) for one in examples}) > 3


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_the_vocabulary_is_computed_for_real_target_tokens_only(model, tokenizer, packed):
    examples, seen = encoded(SUMMARY, made_rows(8), tokenizer), []
    hook = model.head("summary").model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    list(model(make_batch([Drawn(one, "summary", SUMMARY, 1.0) for one in examples], microworld.layout(model, packed))))
    hook.remove()
    assert seen == [(1, sum(len(one.output) for one in examples), 32)]


# ---- scores


def scored(predictions, references, family=SUMMARY):
    examples = [Encoded([np.zeros(1)], [1], np.zeros(0), reference=tuple(texts)) for texts in references]
    return family.score(predictions, examples), family.row_statistics(predictions, examples)


def test_scores_are_what_their_definitions_give_by_hand():
    predictions = ["the cat sat", " a dog ", "one two three four"]
    references = [["the cat sat down"], ["a dog"], ["five", "one three four two"]]
    scores, rows = scored(predictions, references)
    f = lambda precision, recall: 2 * precision * recall / (precision + recall)  # noqa: E731
    expected = [  # ROUGE-1, -2, -L
        [f(3 / 3, 3 / 4), f(2 / 2, 2 / 3), f(3 / 3, 3 / 4)],
        [1, 1, 1],
        [1, 1 / 3, 3 / 4],  # the better of two references: one bigram of three, and "one three four" in order
    ]
    np.testing.assert_allclose(rows, expected)
    means = np.mean(expected, axis=0)
    assert next(iter(scores)) == SUMMARY.metric == "rougeL"
    assert scores == pytest.approx({
        "rouge1": means[0], "rouge2": means[1], "rougeL": means[2], "exact_match": 1 / 3,
        "length_ratio": (3 + 2 + 4) / (4 + 2 + 4),
    })  # fmt: skip


def test_words_are_compared_by_their_stems():
    assert scored(["running dogs"], [["run dog"]])[0]["rouge1"] == 1


texts = st.lists(st.sampled_from(["the", "cats", "cat", "sat", "sitting", "down"]), min_size=1, max_size=8).map(" ".join)


@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_rouge_is_that_of_rouge_score_with_the_best_of_the_references(pairs):
    scores, rows = scored(*zip(*pairs, strict=True))
    for at, name in enumerate(("rouge1", "rouge2", "rougeL")):
        scorer = RougeScorer([name], use_stemmer=True)
        expected = [max(scorer.score(text, found)[name].fmeasure for text in references) for found, references in pairs]
        np.testing.assert_allclose(rows[:, at], expected)
        assert scores[name] == pytest.approx(np.mean(expected))
    assert SUMMARY.score_of_means(rows.mean(axis=0)) == pytest.approx(scores[SUMMARY.metric])


# ---- texts


def texts_alone(plain, examples, **settings):
    """What a plain Transformers model writes for each source alone."""
    tokenizer = microworld.tokenizer()
    for one in examples:
        (written,) = plain.generate(torch.tensor(one.sequences[0].astype(np.int64))[None], **settings)
        yield tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize(
    "decoding", [None, {"num_beams": 1}, {"num_beams": 3, "length_penalty": 2.0, "no_repeat_ngram_size": 2}], ids=str
)
def test_predictions_of_padded_batches_are_what_transformers_writes_for_each_source_alone_in_order(
    decoding, tokenizer, tiny_bart
):
    family = Generation("text", "target", decoding=decoding)
    model = MultiTask(load_backbone(str(tiny_bart)), {"summary": family})
    examples = encoded(family, made_rows(12), tokenizer, for_training=False)
    found = predict(model, tokenizer, "summary", examples, token_budget=100)
    plain = transformers.BartForConditionalGeneration.from_pretrained(tiny_bart).eval()
    plain.generation_config.forced_eos_token_id = None  # this checkpoint's own, which the record does not ask for
    assert found == list(texts_alone(plain, examples, max_new_tokens=TARGET_LENGTH, **(decoding or {"num_beams": 4})))
    assert len(set(found)) > 5


@torch.no_grad()
def test_a_saved_model_writes_what_was_scored_whatever_its_checkpoint_says_of_generation(tokenizer, tiny_bart, tmp_path):
    checkpoint = transformers.BartForConditionalGeneration.from_pretrained(tiny_bart)
    checkpoint.generation_config.no_repeat_ngram_size = 1
    checkpoint.save_pretrained(tmp_path)
    model = MultiTask(load_backbone(str(tmp_path)), {"summary": SUMMARY})
    examples = encoded(SUMMARY, made_rows(8), tokenizer, for_training=False)
    assert predict(model, tokenizer, "summary", examples) == list(texts_alone(assemble(model, "summary", tokenizer), examples))


def written_lines(folder):
    return [json.loads(line) for line in (folder / "predictions" / "my-summary.jsonl").read_text().splitlines()]


def test_predictions_are_written_beside_the_scores_of_training_and_fine_tuning(tiny_bart, cache, tmp_path):
    rows, rng = made_rows(20), random.Random(0)
    for row in rows:
        row["others"] = [phrase(rng, 90, 90)]  # so long that some words of what is written are in it
    tables = {"train": rows, "validation": rows[:6], "test": rows[10:15]}
    family = Generation("text", "target", references="others", decoding={"num_beams": 2, "max_new_tokens": 5})
    task = Task("my/summary", Rows(tables), family)
    config = {"train": {"updates": 1, "checkpoint_every": None}, "mixture": {"sub_batches": 2}}
    done = train(Suite("one", (task,)), tiny_bart, tmp_path / "run", config=config)
    tuned = finetune(task, done.folder, tmp_path / "tuned", config=config)
    for folder, expected, scores in (
        (done.folder, rows[:6], done.scores["my/summary"]),
        (tuned.folder, rows[10:15], tuned.record["scores"]),
    ):
        lines = written_lines(folder)
        assert [line["row"] for line in lines] == list(range(len(expected)))
        assert [line["reference"] for line in lines] == [row["others"] for row in expected]
        assert scores == scored([line["prediction"] for line in lines], [line["reference"] for line in lines])[0]
        assert scores["rouge1"] > 0
    assert [line["prediction"] for line in written_lines(tuned.folder)] == tuned.predictions


# ---- decoding settings


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({"num_beam": 4}, r"decoding: Transformers' generate has no setting 'num_beam' \(did you mean 'num_beams'\?\)"),
        ({"num_beams": 0}, "decoding: num_beams 0 is not accepted; expected a whole number from 1"),
        ({"num_beams": 2.5}, "decoding: num_beams 2.5 is not accepted; expected a whole number from 1"),
        ({"num_beams": 3, "num_return_sequences": 2}, "decoding: num_return_sequences 2 is not accepted; expected 1"),
        ({"max_new_tokens": 65}, "decoding: max_new_tokens 65 is more than the decoder takes; at most 64"),
        ({"max_new_tokens": 0}, "is refused by Transformers' generate: .*max_new_tokens.* greater than 0"),
        ({"early_stopping": "maybe"}, "is refused by Transformers' generate: .*early_stopping"),
        ({"num_beams": 1, "length_penalty": 2.0}, "is refused by Transformers' generate: .*length_penalty"),
    ],
)
def test_decoding_that_transformers_does_not_know_or_refuses_is_refused(decoding, message, tokenizer):
    with pytest.raises(InputError, match="(?s)" + message):
        Generation("text", "target", decoding=decoding).check(tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_token_id": 4}, "configuration has eos_token_id 4, and its tokenizer 2"),
        ({"decoder_start_token_id": None}, "this bart model has no decoder_start_token_id"),
    ],
)
def test_a_configuration_that_does_not_say_how_a_target_begins_and_ends_is_refused(change, message, tiny_bart):
    config = transformers.AutoConfig.from_pretrained(tiny_bart)
    config.update(change)
    with pytest.raises(InputError, match=message):
        load_tokenizer(str(tiny_bart), None, config)


@pytest.mark.parametrize(
    "decoding",
    [
        {"max_length": 5},
        {"min_length": "a"},
        {"repetition_penalty": 0.0},
        {"return_dict_in_generate": True},
        {"stop_strings": "a"},
    ],
    ids=str,
)
def test_decoding_that_would_be_passed_over_or_fail_at_the_first_evaluation_is_refused(decoding, tokenizer):
    with pytest.raises(InputError, match=next(iter(decoding))):
        Generation("text", "target", decoding=decoding).check(tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoding": 4}, "decoding: 4 is not accepted; expected settings such as {num_beams: 4}"),
        ({"label_smoothing": 1.0}, "label_smoothing: 1.0 is not accepted; expected a share from 0 to below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing: -0.1 is not accepted"),
        ({"target": 3}, "target: 3 is not a field"),
    ],
)
def test_a_record_that_cannot_be_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Generation(**{"text": "text", "target": "target", **settings})


@pytest.mark.parametrize("length", [3, 65])
def test_a_target_length_that_the_decoder_does_not_take_is_refused(length, tiny_bart):
    config = transformers.AutoConfig.from_pretrained(tiny_bart)
    with pytest.raises(InputError, match=f"data.max_target_length: {length} is not what the decoder takes; expected 4 to 64"):
        load_tokenizer(str(tiny_bart), None, config, length)


def test_a_validation_split_keeps_the_numbers_of_its_rows_when_some_are_left_out(tokenizer):
    rows, scored = made_rows(30), spread_rows(30, 15).tolist()
    rows[scored[2]]["target"] = ""
    task = Task("m", Rows({"train": rows, "validation": rows}), SUMMARY)
    found = encode_split(open_task(task, bad_rows=0.1), "validation", tokenizer, 15)
    chosen = [*scored[:2], *scored[3:]]
    assert [one.source for one in found] == chosen
    assert [one.reference for one in found] == [(rows[at]["target"],) for at in chosen]


def test_all_heads_of_an_encoder_decoder_have_one_trunk_in_common(tiny_bart):
    """And no copy of it each: a hundred tasks would need a hundred times the memory."""

    def trunks():
        gc.collect()
        return sum(isinstance(one, transformers.BartModel) for one in gc.get_objects())

    before = trunks()
    model = MultiTask(load_backbone(str(tiny_bart)), {name: Classification("text", labels=("a", "b")) for name in "xyz"})
    assert trunks() - before == 1
    assert len(model.heads) == 3
