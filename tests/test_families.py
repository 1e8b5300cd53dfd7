"""Families: losses and scores against formulas written out again, scaled losses of a uniform guess, spans, and masks.

Letters: e examples of a segment, n labels, r rows, l tokens of the longest row, m masked tokens, v words of the vocabulary.
"""

import csv
import json
import math
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

import microworld
from prefinetune.batch import Drawn, Layout, make_batch
from prefinetune.families import Choice, Classification, Denoising, Encoded, Example, Regression, Segment, Span
from prefinetune.families.span import MAX_ANSWER_TOKENS, answer_tokens
from prefinetune.objective import scaled
from prefinetune.tokenizer import Tokenizer
from prefinetune.train import train

SPAN, CHOICE, DENOISING = Span("question", "context"), Choice("text", "options"), Denoising("text")


def labels_of(count):
    return tuple(f"label {index}" for index in range(count))


def segment_of(family, targets, sizes=None, lengths=None, examples=()):
    """A segment made by hand; one row per example unless `sizes` says otherwise."""
    count = len(sizes) if sizes is not None else len(lengths) if lengths is not None else len(targets)
    sizes = torch.tensor(sizes if sizes is not None else [1] * count)
    return Segment(
        task="made by hand",
        family=family,
        examples=list(examples),
        rows=torch.arange(int(sizes.sum())),
        sizes=sizes,
        lengths=torch.tensor(lengths if lengths is not None else [7] * int(sizes.sum())),
        targets=torch.as_tensor(targets),
        weights=torch.full((count,), 1 / count),
    )


def scaled_loss(family, output, segment):
    return scaled(family.loss(output, segment), family.outcomes(output, segment))


def ragged(scores):
    """Lists of different lengths as one tensor, -inf where there is nothing: the form of choice and span outputs."""
    widest = max(len(row) for row in scores)
    return torch.tensor([[*row, *[-math.inf] * (widest - len(row))] for row in scores])


def assert_all_one(losses):
    torch.testing.assert_close(losses, torch.ones_like(losses), rtol=1e-6, atol=0)


# ---- a uniform guess costs 1, whatever there is to choose among

level = st.floats(-8, 8, width=32)


@given(st.integers(2, 300), st.integers(1, 5), level)
def test_equal_logits_cost_one_in_classification_whatever_the_number_of_labels(num_labels, examples, value):
    family = Classification("text", labels=labels_of(num_labels))
    segment = segment_of(family, [index % num_labels for index in range(examples)])
    assert_all_one(scaled_loss(family, torch.full((examples, num_labels), value), segment))


@given(st.lists(st.integers(2, 12), min_size=1, max_size=6), level)
def test_equal_scores_cost_one_in_choice_whatever_the_numbers_of_options(sizes, value):
    segment = segment_of(CHOICE, [size - 1 for size in sizes], sizes)
    assert_all_one(scaled_loss(CHOICE, ragged([[value] * size for size in sizes]), segment))


@given(st.lists(st.integers(2, 512), min_size=1, max_size=6), level)
def test_equal_logits_cost_one_in_spans_whatever_the_lengths(lengths, value):
    one = ragged([[value] * length for length in lengths])  # [r, l]
    segment = segment_of(SPAN, [[length // 2, length - 1] for length in lengths], lengths=lengths)
    assert_all_one(scaled_loss(SPAN, torch.stack([one, one], dim=-1), segment))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(2, 2000), level)
def test_equal_logits_cost_one_in_denoising_whatever_the_vocabulary_and_the_number_of_masks(masks, vocabulary, value):
    owner = [example for example, count in enumerate(masks) for _ in range(count)]
    segment = segment_of(DENOISING, [owner, owner, [place % vocabulary for place in range(len(owner))]], [1] * len(masks))
    assert_all_one(scaled_loss(DENOISING, torch.full((len(owner), vocabulary), value), segment))


def test_answering_one_half_costs_one_in_regression_where_targets_are_spread_evenly():
    family = Regression("text", low=-3, high=11)
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000  # middles of equal steps over the range
    segment = segment_of(family, grid)
    assert float(scaled_loss(family, torch.full_like(grid, 0.5), segment).mean()) == pytest.approx(1, abs=1e-6)


# ---- losses against their formulas in float64


def test_classification_loss_is_minus_the_log_probability_of_the_label():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(0, 3, (6, 5)), [0, 4, 2, 2, 1, 3]
    family = Classification("text", labels=labels_of(5))
    output = family.loss(torch.tensor(logits, dtype=torch.float32), segment_of(family, labels))
    expected = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-5)


def test_choice_loss_is_a_softmax_over_the_options_that_an_example_has():
    scores, labels = [[0.5, -2.0], [3.0, 1.0, -1.0, 0.25], [7.0, 7.5, -20.0]], [1, 3, 0]
    segment = segment_of(CHOICE, labels, sizes=[2, 4, 3])
    expected = [-log_softmax(np.array(row))[label] for row, label in zip(scores, labels, strict=True)]
    np.testing.assert_allclose(CHOICE.loss(ragged(scores), segment).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        scaled_loss(CHOICE, ragged(scores), segment).numpy(), np.array(expected) / np.log([2, 4, 3]), rtol=1e-5
    )


def test_span_loss_is_the_mean_of_start_and_end_over_the_real_tokens():
    generator = np.random.default_rng(1)
    lengths, targets = [3, 8, 5], [[0, 2], [5, 7], [4, 4]]
    starts, ends = ([generator.normal(0, 2, length) for length in lengths] for _ in range(2))
    expected = [
        -(log_softmax(start)[first] + log_softmax(end)[last]) / 2
        for start, end, (first, last) in zip(starts, ends, targets, strict=True)
    ]
    output = torch.stack([ragged(starts), ragged(ends)], dim=-1).float()
    segment = segment_of(SPAN, targets, lengths=lengths)
    np.testing.assert_allclose(SPAN.loss(output, segment).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(scaled_loss(SPAN, output, segment).numpy(), expected / np.log(lengths), rtol=1e-5)


def test_denoising_loss_is_the_mean_over_the_masked_tokens_of_each_example():
    generator = np.random.default_rng(2)
    owner, true = [0, 0, 0, 1, 2, 2], [3, 1, 4, 1, 5, 9]
    logits = generator.normal(0, 2, (6, 10))
    each = np.array([-log_softmax(row)[word] for row, word in zip(logits, true, strict=True)])
    segment = segment_of(DENOISING, [owner, [0] * 6, true], sizes=[1, 1, 1])
    expected = [each[:3].mean(), each[3], each[4:].mean()]
    np.testing.assert_allclose(DENOISING.loss(torch.tensor(logits, dtype=torch.float32), segment).numpy(), expected, rtol=1e-5)


def test_regression_loss_is_twelve_squares_of_the_distance_as_a_share_of_the_range():
    family = Regression("text", label="score", low=1, high=5)
    scores, predictions = [1.0, 5.0, 2.0, 3.5], np.array([0.1, 0.7, 0.25, -1.0])
    targets = torch.tensor([family.example({"text": "a", "score": score}).target for score in scores])
    expected = [12 * (p - (score - 1) / 4) ** 2 for p, score in zip(predictions, scores, strict=True)]
    output = torch.tensor(predictions, dtype=torch.float32)
    np.testing.assert_allclose(family.loss(output, segment_of(family, targets)).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(scaled_loss(family, output, segment_of(family, targets)).numpy(), expected, rtol=1e-5)


# ---- scores


def gold(*targets, dtype=np.int64, **more):
    return [Encoded([np.zeros(1, np.int32)], [1], np.array([target], dtype), **more) for target in targets]


def test_classification_scores_are_scikit_learns():
    family = Classification("text", labels=labels_of(3))
    right, found = [0, 1, 2, 2, 1, 0, 0, 2], [0, 1, 2, 0, 1, 2, 0, 1]
    scores = family.score(found, gold(*right))
    assert scores == pytest.approx(
        {
            "accuracy": accuracy_score(right, found),
            "macro_f1": f1_score(right, found, average="macro"),
            "matthews": matthews_corrcoef(right, found),
            "majority": 3 / 8,
        }
    )


def test_choice_reports_accuracy_beside_chance_and_majority():
    sequence = np.zeros(1, np.int32)
    examples = [Encoded([sequence] * size, [1] * size, np.array([target])) for size, target in [(2, 0), (4, 0), (4, 3)]]
    scores = CHOICE.score([0, 1, 3], examples)
    assert scores == pytest.approx({"accuracy": 2 / 3, "majority": 2 / 3, "chance": (1 / 2 + 1 / 4 + 1 / 4) / 3})


def test_regression_scores_are_correlations_and_the_error_in_the_datas_units():
    family = Regression("text", low=2, high=10)
    right, found = [2.0, 4.0, 10.0, 7.0], [3.0, 3.5, 8.0, 9.0]
    scores = family.score(found, gold(*[(value - 2) / 8 for value in right], dtype=np.float32))
    assert scores["pearson"] == pytest.approx(pearsonr(right, found)[0])
    assert scores["spearman"] == pytest.approx(spearmanr(right, found)[0])
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean((np.array(right) - found) ** 2)), rel=1e-5)


def test_denoising_accuracy_counts_tokens_not_examples():
    assert DENOISING.score([(1, 1), (0, 3)], gold(0, 0)) == {"accuracy": 0.25}


def test_a_function_as_a_field_is_named_the_same_in_every_process_and_otherwise_when_it_does_something_else():
    function = "lambda row: ' '.join(x.{0}() for x in row if x in {{'a', 'b'}})"
    source = f"from prefinetune.families.base import plain\nprint(plain({function}))"

    def name(method):
        command = [sys.executable, "-c", source.format(method)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert name("upper") == name("upper") != name("lower")


def test_span_scores_follow_squads_definition():
    """F1 over bags of words without articles and punctuation, the best of the gold answers (Rajpurkar et al. 2016)."""
    references = [("", ("The cat.", "a black cat")), ("", ("seven days",)), ("", ()), ("", ())]
    examples = [Encoded([np.zeros(1, np.int32)], [1], np.zeros(2, np.int64), reference=one) for one in references]
    scores = SPAN.score(["cat", "seven long days", "", "something"], examples)
    assert scores["exact_match"] == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert scores["f1"] == pytest.approx((1 + 2 * (2 / 3 * 1) / (2 / 3 + 1) + 1 + 0) / 4)


# ---- spans: nothing is cut away silently


@pytest.fixture(scope="module")
def short_tokenizer():
    """One token per word, sequences of at most 32."""
    return Tokenizer(microworld.tokenizer(), 32, token_types=False)


def words(generator, count):
    return generator.choice(microworld.vocabulary()[:140], count).tolist()


def long_examples(count=60, longest=4):
    """(example, context words, answer) with contexts of up to 120 words and answers of up to `longest`."""
    generator = np.random.default_rng(3)
    for _ in range(count):
        context = words(generator, generator.integers(5, 120))
        first = int(generator.integers(0, len(context)))
        last = min(len(context) - 1, first + int(generator.integers(0, longest)))
        start, text = len(" ".join([*context[:first], ""])), " ".join(context[first : last + 1])
        row = {
            "question": "which large ?",
            "context": " ".join(context),
            "answers": {"text": [text], "answer_start": [start]},
        }
        yield SPAN.example(row), context, text


def test_the_training_window_of_a_long_context_always_holds_the_answer(short_tokenizer):
    for example, context, text in long_examples():
        (encoded,) = SPAN.encode([example], short_tokenizer)
        (ids,), (start, end) = encoded.sequences, encoded.target
        assert len(ids) <= 32
        assert 0 < start <= end
        assert short_tokenizer.tokenizer.decode(ids[start : end + 1]) == text
        assert bool(encoded.truncated) == (len(context) > 32 - 3 - 4)  # the question's words and four special tokens


def test_an_answer_longer_than_windows_overlap_is_kept_from_its_first_word_on(short_tokenizer):
    lengths = set()
    for example, _, text in long_examples(200, longest=40):
        (encoded,) = SPAN.encode([example], short_tokenizer)
        (ids,), (start, end) = encoded.sequences, encoded.target
        assert 0 < start <= end < len(ids) <= 32
        kept = short_tokenizer.tokenizer.decode(ids[start : end + 1])
        assert kept == " ".join(text.split()[: 32 - 3 - 4])  # all that fits beside the question and four special tokens
        lengths.add(len(text.split()))
    assert max(lengths) > 32


def test_a_training_window_is_one_of_the_evaluation_windows_where_one_holds_the_answer(short_tokenizer):
    for example, _, _ in long_examples():
        (encoded,) = SPAN.encode([example], short_tokenizer)
        (whole,) = SPAN.encode([example], short_tokenizer, for_training=False)
        assert any(np.array_equal(encoded.sequences[0], window) for window in whole.sequences)


def test_an_answer_that_the_tokenizer_drops_points_at_the_first_token(short_tokenizer):
    row = {"question": "which ?", "context": "a \u200b b", "answers": {"text": ["\u200b"], "answer_start": [2]}}
    example, offsets = SPAN.example(row), np.array([[-1, -1], [0, 1], [4, 5], [-1, -1]])
    assert example.target == (2, 3)
    assert answer_tokens(offsets, *example.target) == (0, 0)


def test_evaluation_windows_cover_the_whole_context_and_each_holds_the_whole_question(short_tokenizer):
    for example, _, _ in long_examples():
        (encoded,) = SPAN.encode([example], short_tokenizer, for_training=False)
        question, text = example.texts[0]
        covered = np.zeros(len(text), dtype=bool)
        spans = []
        for ids, offsets in zip(encoded.sequences, encoded.offsets, strict=True):
            assert len(ids) == len(offsets) <= 32
            assert short_tokenizer.tokenizer.decode(ids[1:4]) == question
            inside = offsets[offsets[:, 0] >= 0]
            for (start, end), word in zip(inside, ids[offsets[:, 0] >= 0], strict=True):
                assert short_tokenizer.tokenizer.decode([word]) == text[start:end]
                covered[start:end] = True
            spans.append((inside[0, 0], inside[-1, 1]))
        assert (covered | (np.array(list(text)) == " ")).all()
        assert all(second[0] < first[1] for first, second in pairwise(spans))  # neighbours overlap
        assert encoded.reference == (text, example.reference)


def test_an_unanswerable_question_points_at_the_first_token(short_tokenizer):
    row = {"question": "which ?", "context": "the bali .", "answers": {"text": [], "answer_start": []}}
    (encoded,) = SPAN.encode([SPAN.example(row)], short_tokenizer)
    assert encoded.target.tolist() == [0, 0]


def test_the_predicted_span_is_the_best_of_all_spans_of_all_windows(short_tokenizer):
    generator = np.random.default_rng(4)
    found = []
    for example, _, _ in long_examples(40):
        (encoded,) = SPAN.encode([example], short_tokenizer, for_training=False)
        (segment,) = make_batch([Drawn(encoded, "t", SPAN, 1.0)], Layout(pad_id=1)).segments
        output = torch.full((len(segment.rows), int(segment.lengths.max()), 2), -torch.inf)
        for row, ids in enumerate(encoded.sequences):
            output[row, : len(ids)] = torch.tensor(generator.normal(0, 2, (len(ids), 2)), dtype=torch.float32)
        best, nothing = (-np.inf, ""), np.inf
        for row, offsets in enumerate(encoded.offsets):
            logits = output[row].numpy()
            nothing = min(nothing, logits[0, 0] + logits[0, 1])
            for start in range(len(offsets)):
                for end in range(start, min(start + MAX_ANSWER_TOKENS, len(offsets))):
                    if offsets[start, 0] >= 0 and offsets[end, 0] >= 0:
                        here = (logits[start, 0] + logits[end, 1], example.texts[0][1][offsets[start, 0] : offsets[end, 1]])
                        best = max(best, here, key=lambda one: one[0])
        expected = best[1] if best[0] > nothing else ""
        assert SPAN.predict(output, segment) == [expected]
        found.append(expected)
    assert any(found)


def test_a_span_that_points_at_the_first_token_more_than_anywhere_else_is_no_answer(short_tokenizer):
    example, _, _ = next(long_examples(1))
    (encoded,) = SPAN.encode([example], short_tokenizer, for_training=False)
    (segment,) = make_batch([Drawn(encoded, "t", SPAN, 1.0)], Layout(pad_id=1)).segments
    output = torch.zeros(len(encoded.sequences), 32, 2)
    output[:, 0] = 5
    assert SPAN.predict(output, segment) == [""]


# ---- denoising


@pytest.fixture(scope="module")
def text(short_tokenizer):
    """An encoded text of 30 words and its two special tokens."""
    sentence = " ".join(words(np.random.default_rng(5), 30))
    (encoded,) = DENOISING.encode([Example(((sentence, None),), None)], short_tokenizer)
    return encoded


def draws(text, tokenizer, count=4000):
    for key in range(count):
        drawn = DENOISING.draw(text, tokenizer, np.random.default_rng(key))
        places, true = drawn.target.reshape(2, -1)
        yield drawn.sequences[0], places, true


def test_fifteen_of_a_hundred_words_are_masked_and_their_true_ids_are_the_targets(text, short_tokenizer):
    counts = []
    for ids, places, true in draws(text, short_tokenizer, 1000):
        assert len(set(places)) == len(places)
        np.testing.assert_array_equal(text.sequences[0][places], true)
        others = np.setdiff1d(np.arange(len(ids)), places)
        np.testing.assert_array_equal(ids[others], text.sequences[0][others])
        counts.append(len(places))
    assert set(counts) == {4, 5}  # 0.15 x 30 = 4.5
    assert np.mean(counts) == pytest.approx(4.5, abs=0.06)


def test_of_the_chosen_words_eight_in_ten_are_hidden_one_is_swapped_and_one_stays(text, short_tokenizer):
    hidden = stays = total = 0
    for ids, places, true in draws(text, short_tokenizer):
        hidden += int((ids[places] == short_tokenizer.mask_id).sum())
        stays += int((ids[places] == true).sum())
        total += len(places)
    spread = 4 * math.sqrt(0.25 / total)  # four standard errors at most
    by_chance = 0.1 / short_tokenizer.vocab_size  # a random token may be the true one, or the mask
    assert hidden / total == pytest.approx(0.8 + by_chance, abs=spread)
    assert stays / total == pytest.approx(0.1 + by_chance, abs=spread)


def test_every_word_is_chosen_equally_often_and_special_tokens_never(text, short_tokenizer):
    times = np.zeros(len(text.sequences[0]))
    for _, places, _ in draws(text, short_tokenizer):
        times[places] += 1
    assert times[0] == times[-1] == 0
    expected = 0.15 * 4000
    assert np.abs(times[1:-1] - expected).max() < 5 * math.sqrt(expected * 0.85)


def test_masks_are_a_function_of_the_key_and_leave_the_stored_example_alone(text, short_tokenizer):
    before = text.sequences[0].copy()
    one, again, other = (DENOISING.draw(text, short_tokenizer, np.random.default_rng(key)) for key in (1, 1, 2))
    np.testing.assert_array_equal(one.sequences[0], again.sequences[0])
    np.testing.assert_array_equal(one.target, again.target)
    assert one.target.tolist() != other.target.tolist()
    np.testing.assert_array_equal(text.sequences[0], before)


def test_a_long_text_becomes_pieces_that_hold_all_of_its_words(short_tokenizer):
    sentence = words(np.random.default_rng(6), 100)
    pieces = DENOISING.encode([Example(((" ".join(sentence), None),), None)], short_tokenizer)
    assert [len(piece.sequences[0]) for piece in pieces] == [32, 32, 32, 12]
    decoded = " ".join(short_tokenizer.tokenizer.decode(piece.sequences[0][1:-1]) for piece in pieces)
    assert decoded == " ".join(sentence)


# ---- from files


def test_a_suite_file_trains_multi_label_and_tagging_on_tables_and_lists(tmp_path, tiny_model, cache):
    world = microworld.World(0)
    problems, rng = (microworld.SEVERAL, microworld.TAGS), random.Random(0)
    labelled, tagged = ([problem.draw(world, rng) for _ in range(12)] for problem in problems)
    labelled[0]["labels"] = []  # an empty cell
    names = microworld.SEVERAL.family.labels
    tables = {
        "joined.csv": [["text", "labels"], *([row["text"], "; ".join(row["labels"])] for row in labelled)],
        "columns.csv": [["text", *names], *([row["text"], *(int(name in row["labels"]) for name in names)] for row in labelled)],
    }
    for name, rows in tables.items():
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tagged))
    both = lambda name: {"train": name, "validation": name}  # noqa: E731
    entries = [
        {"name": "joined", "source": both("joined.csv"), "multi-label": {"text": "text", "label": "labels", "separator": ";"}},
        {"name": "columns", "source": both("columns.csv"), "multi-label": {"text": "text", "label": list(names)}},
        {"name": "words", "source": both("words.jsonl"), "tagging": {"tokens": "tokens"}},
    ]
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"name": "three", "tasks": entries}))
    config = {"train": {"updates": 2, "log_every": 1}, "objective": {"r3f": 1.0, "noise": 0.1}, "data": {"leaks": "off"}}
    run = train(tmp_path / "suite.yaml", tiny_model, tmp_path / "run", config=config)
    resolved = {one["name"]: one for one in yaml.safe_load((run.folder / "suite.yaml").read_text())["tasks"]}
    assert resolved["joined"]["multi-label"]["labels"] == sorted(names)
    assert resolved["columns"]["multi-label"]["labels"] == list(names)
    assert resolved["words"]["tagging"]["labels"] == ["B-ACT", "B-PHRASE", "I-PHRASE", "O"]
    updates = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < update["divergence"] < math.inf and math.isfinite(update["loss"]) for update in updates)
    lines = [json.loads(line) for line in (run.folder / "predictions" / "columns.jsonl").read_text().splitlines()]
    assert [line["reference"] for line in lines] == [row["labels"] for row in labelled]
    lines = [json.loads(line) for line in (run.folder / "predictions" / "words.jsonl").read_text().splitlines()]
    assert [(line["tokens"], line["reference"]) for line in lines] == [(row["tokens"], row["tags"]) for row in tagged]
