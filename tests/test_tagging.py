"""Tagging: every word is read off its first token, none is left out of the score, and spans are counted as seqeval does.

Letters: w words of an example, m words of a segment, n labels.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import microworld
from prefinetune.batch import Drawn, Layout, make_batch
from prefinetune.errors import FieldError, InputError
from prefinetune.evaluate import predict, readable
from prefinetune.export import assemble
from prefinetune.families import Encoded, Segment, Tagging
from prefinetune.families.base import symmetric_kl
from prefinetune.finetune import choose, finetune
from prefinetune.model import Backbone, MultiTask
from prefinetune.objective import scaled
from prefinetune.pretrained import ENCODERS, load_backbone
from prefinetune.sources import Rows
from prefinetune.splits import open_task
from prefinetune.store import build_store, encode_split
from prefinetune.stream import reads_streams
from prefinetune.task import Task, build
from prefinetune.tokenizer import Tokenizer, load_tokenizer

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-PER")
FAMILY = Tagging("tokens", labels=LABELS)
KINDS = Tagging("tokens", labels=("NOUN", "VERB", "I"))  # parts of speech
SHORT = 16  # tokens of a sequence of the tokenizers below


def one_row(tokens, tags):
    return {"tokens": tokens, "tags": tags}


# ---- rows to examples


@pytest.mark.parametrize(
    "row",
    [
        one_row(["Ann", "left", "Rome"], ["B-PER", "O", "B-LOC"]),
        one_row(["Ann", "left", "Rome"], [1, 0, 3]),
        one_row("Ann left  Rome", "B-PER O\tB-LOC"),
        one_row(("Ann", "left", "Rome"), ("B-PER", 0, "3")) | {"tags": ["B-PER", 0, 3]},
    ],
)
def test_words_and_tags_are_lists_or_texts(row):
    example = FAMILY.example(row)
    assert example.texts == (("Ann left Rome", None),)
    assert example.target == (1, 0, 3)
    assert FAMILY.name_target(example) == "Ann/B-PER left/O Rome/B-LOC"


def test_a_number_among_words_is_a_word():
    assert FAMILY.name_target(FAMILY.example(one_row(["in", 1992], ["O", "O"]))) == "in/O 1992/O"


BAD_ROWS = {  # what is wrong -> (row, the field that is named, the value, what is accepted)
    "more words than tags": (one_row(["a", "b"], ["O"]), "tags", "['O']", "2 tags, one for each word; there are 1"),
    "more tags than words": (one_row("a", "O O"), "tags", "'O O'", "1 tags, one for each word; there are 2"),
    "no words": (one_row([], []), "tokens", "[]", "at least one word"),
    "only white space": (one_row([" ", ""], ["O", "O"]), "tokens", "[' ', '']", "at least one word"),
    "an unknown tag": (one_row(["a", "b"], ["O", "B-ORG"]), "tags", "'B-ORG'", "O, B-PER, I-PER"),
    "an index too high": (one_row(["a"], [7]), "tags", "7", "O, B-PER, I-PER"),
    "a tag that is missing": (one_row(["a"], [None]), "tags", "None", "O, B-PER, I-PER"),
    "tags that are missing": (one_row(["a"], None), "tags", "None", "a list of tags"),
    "words that are missing": (one_row(None, ["O"]), "tokens", "None", "a list of words"),
    "a word that is missing": (one_row(["a", None], ["O", "O"]), "tokens", "None", "words, not NoneType"),
    "a word that is a list": (one_row([["a"]], ["O"]), "tokens", "['a']", "words, not list"),
}


@pytest.mark.parametrize("wrong", BAD_ROWS)
def test_a_bad_row_is_refused_by_field_and_value(wrong):
    row, field, value, accepted = BAD_ROWS[wrong]
    with pytest.raises(FieldError) as refusal:
        FAMILY.example(row)
    assert str(refusal.value).startswith(f"field '{field}': {value} is not accepted; expected ")
    assert accepted in str(refusal.value)


def test_labels_are_the_hubs_names_or_what_training_rows_have():
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-X", "I-X"]))})
    named = Dataset.from_dict({"tokens": [["a"]], "tags": [[1]]}, features=features)
    assert Tagging("tokens").freeze(named, "here").labels == ("O", "B-X", "I-X")
    lists = Dataset.from_dict({"tokens": [["a"], ["b", "c"]], "tags": [["O"], ["B-X", "O"]]})
    assert Tagging("tokens").freeze(lists, "here").labels == ("B-X", "O")
    texts = Dataset.from_dict({"words": ["a", "b c"], "its tags": ["O", "B-X O"]})
    assert Tagging("words", "its tags").freeze(texts, "here").labels == ("B-X", "O")
    numbers = Dataset.from_dict({"tokens": [["a"], ["b", "c"]], "tags": [[10], [2, 10]]})
    assert Tagging("tokens").freeze(numbers, "here").labels == ("2", "10")
    with pytest.raises(InputError, match="only the label 'O'"):
        Tagging("tokens").freeze(lists.select([0]), "here")


@pytest.mark.parametrize("family", [Tagging("tokens"), Tagging("of.words", "of.tags", LABELS, skip=("",))])
def test_a_record_survives_yaml(family):
    assert build(Tagging, family.settings(), "here") == family
    assert family.inputs() == (family.tokens,)
    assert family.fields() == (family.tokens, family.tags)


def test_a_record_with_several_columns_of_words_is_refused():
    with pytest.raises(InputError, match=r"tokens: \('a', 'b'\) is not accepted; expected one field"):
        Tagging(("a", "b"))


# ---- examples to tokens

SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
            "unk_token": "<unk>"}  # fmt: skip


def trained(style):
    """A tokenizer with several pieces to a word, of the style of BERT, of RoBERTa or of T5."""
    texts = ["unbelievable Washington doesn't re-enter U.N. talks, in 1992-93 café"]
    special = list(dict.fromkeys(SPECIALS.values()))
    if style == "wordpiece":
        backend = Backend(models.WordPiece(unk_token="<unk>"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=False)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
        backend.train_from_iterator(texts, trainer)
    elif style == "bytes":
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(texts, trainer)
        backend.decoder = decoders.ByteLevel()
    else:
        backend = Backend(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=40, special_tokens=special, unk_token="<unk>", show_progress=False)
        backend.train_from_iterator(texts, trainer)
    end = [("</s>", backend.token_to_id("</s>")), ("<s>", backend.token_to_id("<s>"))]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=end)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=1000, **SPECIALS)


@pytest.fixture(scope="module")
def tokenizers():
    return {style: trained(style) for style in ("wordpiece", "bytes", "unigram")}


WORD = st.sampled_from(["unbelievable", "doesn't", "U.N.", "1992-93", "café", "in", "Washington", "x", "...", "\u200b", " ", ""])


@settings(max_examples=60)
@given(st.lists(WORD, min_size=1, max_size=9), st.sampled_from(["wordpiece", "unigram"]))
def test_a_word_is_read_off_the_first_token_that_transformers_itself_gives_it(tokenizers, words, style):
    plain = tokenizers[style]
    ((sequences, places, cut),) = Tokenizer(plain, 400, False).words([words], whole=False)
    encoding = plain(words, is_split_into_words=True)
    assert [ids.tolist() for ids in sequences] == [encoding["input_ids"]]
    assert not cut
    owners = encoding.word_ids()
    assert places.tolist() == [[0] * len(words), [owners.index(at) if at in owners else -1 for at in range(len(words))]]


@settings(max_examples=60)
@given(st.lists(WORD.filter(str.strip), min_size=1, max_size=9))
def test_byte_tokenizers_read_words_as_running_text(tokenizers, words):
    """Given a list, they would take each word for the continuation of the one before, unless told to put spaces."""
    plain = tokenizers["bytes"]
    ((sequences, places, _),) = Tokenizer(plain, 400, False).words([words], whole=False)
    encoding = plain(" ".join(words))
    assert [ids.tolist() for ids in sequences] == [encoding["input_ids"]]
    begin = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])  # characters
    assert places[1].tolist() == [encoding.char_to_token(int(max(0, at - 1))) for at in begin]


@settings(max_examples=60)
@given(st.lists(WORD.filter(str.isascii), min_size=1, max_size=30), st.sampled_from(["wordpiece", "bytes", "unigram"]))
def test_windows_hold_every_token_and_each_word_is_read_where_it_has_most_around_it(tokenizers, words, style):
    short, long = Tokenizer(tokenizers[style], SHORT, False), Tokenizer(tokenizers[style], 10_000, False)
    ((windows, places, cut),) = short.words([words], whole=True)
    (((ids,), (_, whole), _),) = long.words([words], whole=False)
    step, room = SHORT - 2 - SHORT // 4, SHORT - 2
    content = ids[1:-1]
    assert not cut
    assert len(windows) == 1 or (len(windows) - 2) * step + room < len(content)  # no window too many
    for at, window in enumerate(windows):
        assert (window[0], window[-1]) == (ids[0], ids[-1])
        assert window[1:-1].tolist() == content[at * step : at * step + room].tolist()
    assert (len(windows) - 1) * step + room >= len(content)
    for (window, place), first in zip(places.T.tolist(), whole.tolist(), strict=True):
        assert (place < 0) == (first < 0)
        if first >= 0:
            assert window * step + place == first

            def margin(at, first=first):  # tokens on the shorter side
                return min(first - 1 - at * step, at * step + room - first) if at * step < first <= at * step + room else -1

            best = max(margin(at) for at in range(len(windows)))
            assert margin(window) >= best - 1  # in the very middle of two, either will do


@settings(max_examples=60)
@given(st.lists(WORD, min_size=1, max_size=30), st.sampled_from(["wordpiece", "bytes", "unigram"]))
def test_training_takes_what_fits_and_counts_the_rest_as_cut(tokenizers, words, style):
    short, long = Tokenizer(tokenizers[style], SHORT, False), Tokenizer(tokenizers[style], 10_000, False)
    (((ids,), (_, places), cut),) = short.words([words], whole=False)
    (((all_ids,), (_, all_places), _),) = long.words([words], whole=False)
    assert ids.tolist() == [*all_ids[:-1][: SHORT - 1], all_ids[-1]]
    assert cut == (len(all_ids) > SHORT)
    assert places.tolist() == [place if place < SHORT - 1 else -1 for place in all_places.tolist()]


@pytest.fixture(scope="module")
def word_tokenizer():
    """One token per word, sequences of at most 16."""
    return Tokenizer(microworld.tokenizer(), SHORT, False)


def long_rows(count=12):
    generator = np.random.default_rng(0)
    lengths = [1, 14, 15, *generator.integers(2, 60, count - 3)]
    vocabulary = microworld.vocabulary()
    return [one_row(generator.choice(vocabulary, k).tolist(), generator.integers(0, len(LABELS), k).tolist()) for k in lengths]


def test_a_training_example_has_the_tags_of_the_words_that_fit(word_tokenizer):
    rows = long_rows()
    for row, one in zip(rows, FAMILY.encode([FAMILY.example(row) for row in rows], word_tokenizer), strict=True):
        fit = min(len(row["tokens"]), SHORT - 2)
        assert one.target.reshape(3, -1).tolist() == [[0] * fit, list(range(1, fit + 1)), row["tags"][:fit]]
        assert word_tokenizer.tokenizer.decode(one.sequences[0][1:-1]).split() == row["tokens"][:fit]
        assert (one.truncated, one.reference, one.output) == (int(len(row["tokens"]) > fit), None, None)
        assert one.first == [len(one.sequences[0])]


def test_evaluation_keeps_every_word_and_gets_a_tag_for_each(word_tokenizer):
    """What comes out of windows, each token saying which tag it is for, is the tags of the words."""
    rows = [*long_rows(), one_row(["", "the", " "], [1, 2, 3])]
    examples = FAMILY.encode([FAMILY.example(row) for row in rows], word_tokenizer, for_training=False)
    batch = make_batch([Drawn(one, "t", FAMILY, 1.0) for one in examples], Layout(pad_id=1))
    (segment,) = batch.segments
    owner, row, place, tag = segment.targets
    tokens = batch.ids[batch.bounds.starts[segment.rows[row]] + place]
    words = [(at, word) for at, one in enumerate(rows) for word in one["tokens"] if word.strip()]
    assert owner.tolist() == [at for at, _ in words]
    assert word_tokenizer.tokenizer.convert_ids_to_tokens(tokens) == [word for _, word in words]
    output = torch.nn.functional.one_hot(tag, len(LABELS)).float()
    found = FAMILY.predict(output, segment)
    assert found[:-1] == [[LABELS[tag] for tag in one["tags"]] for one in rows[:-1]]
    assert found[-1] == ["O", "I-PER", "O"]  # what the tokenizer drops has no tag, and counts
    assert len(segment.rows) > len(rows)


def test_where_there_is_no_outside_tag_a_dropped_word_gets_the_first(word_tokenizer):
    (one,) = KINDS.encode([KINDS.example(one_row(["the", ""], ["VERB", "VERB"]))], word_tokenizer, for_training=False)
    (segment,) = make_batch([Drawn(one, "t", KINDS, 1.0)], Layout(pad_id=1)).segments
    assert KINDS.predict(torch.tensor([[0.0, 1.0, 0.5]]), segment) == [["VERB", "NOUN"]]


def test_a_store_gives_back_targets_of_any_length(word_tokenizer, cache):
    rows = long_rows()
    source = Rows({"train": rows, "validation": rows[:2]}, name="words")
    opened = open_task(Task("words", source, FAMILY))
    store = build_store(opened, "train", word_tokenizer, cache)
    expected = FAMILY.encode([FAMILY.example(row) for row in rows], word_tokenizer)
    assert len(store) == len(rows)
    for at, one in enumerate(expected):
        assert store[at].target.tolist() == one.target.tolist()
        assert store[at].sequences[0].tolist() == one.sequences[0].tolist()
    assert [target.tolist() for target in store.all_targets()] == [one.target.tolist() for one in expected]
    assert store.summary["truncated"] == sum(len(row["tokens"]) > SHORT - 2 for row in rows)
    assert len(choose(store, FAMILY, 5, seed=0)) == 5


# ---- loss


def segment_of(tags):
    """A segment of lists of tags, each word at a place of its own."""
    examples = []
    for one in tags:
        target = np.stack([np.zeros(len(one)), np.arange(len(one)), one]).astype(np.int32)
        examples.append(Encoded([np.zeros(len(one) + 1, np.int32)], [1], target.reshape(-1)))
    ones = torch.ones(len(tags))
    rows = torch.arange(len(tags))
    return Segment("t", FAMILY, examples, rows, ones.long(), ones.long(), FAMILY.collate(examples), ones / len(tags))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(2, 40), st.floats(-8, 8, width=32))
def test_equal_logits_cost_one_in_tagging_whatever_the_numbers_of_words_and_labels(lengths, num_labels, value):
    segment = segment_of([[at % num_labels for at in range(length)] for length in lengths])
    output = torch.full((sum(lengths), num_labels), value)
    losses = scaled(FAMILY.loss(output, segment), FAMILY.outcomes(output, segment))
    torch.testing.assert_close(losses, torch.ones_like(losses), rtol=1e-6, atol=0)


def test_tagging_loss_is_the_mean_over_the_words_of_an_example_of_minus_the_log_probability_of_the_tag():
    tags = [[1, 0, 2], [4], [3, 3]]
    logits = np.random.default_rng(0).normal(0, 3, (6, 5))
    each = [-log_softmax(row)[tag] for row, tag in zip(logits, [1, 0, 2, 4, 3, 3], strict=True)]  # float64
    expected = [np.mean(each[:3]), each[3], np.mean(each[4:])]
    output = FAMILY.loss(torch.tensor(logits, dtype=torch.float32), segment_of(tags))
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-5)


def test_an_example_of_which_the_tokenizer_leaves_nothing_costs_nothing():
    segment = segment_of([[1, 2], []])
    output = torch.randn(2, 5, requires_grad=True)
    losses = FAMILY.loss(output, segment)
    assert losses[1] == 0
    losses.sum().backward()
    assert output.grad.isfinite().all()


def test_the_divergence_of_tagging_is_the_mean_over_the_words_of_each_example():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn((4, 5), generator=generator) for _ in range(2))
    segment = segment_of([[1, 0, 2], [4]])
    found, each = FAMILY.divergence(first, second, segment), symmetric_kl(first, second)
    torch.testing.assert_close(found, torch.stack([each[:3].mean(), each[3]]))
    torch.testing.assert_close(found, FAMILY.divergence(second, first, segment))
    assert (found > 0).all()
    assert (FAMILY.divergence(first, first, segment) == 0).all()


# ---- scores


def scored(tags, family=FAMILY):
    labels = family.labels
    return [
        Encoded([np.zeros(1, np.int32)], [1], np.array([[0] * len(one), [1] * len(one), [*map(labels.index, one)]]).reshape(-1),
                reference=("w",) * len(one))
        for one in tags
    ]  # fmt: skip


def spans_by_hand(tags):
    """conlleval's spans, written as a walk: a span goes on while neither its type changes nor a tag begins or ends one."""
    spans, start, kind, ended = set(), None, None, False
    for at, tag in enumerate([*tags, "O"]):
        prefix, _, here = tag.partition("-")
        goes_on = start is not None and prefix in "IE" and here == kind and not ended
        if start is not None and not goes_on:
            spans.add((kind, start, at - 1))
            start = None
        if tag != "O" and not goes_on:
            start, kind = at, here
        ended = prefix in "ES"
    return spans


def rows_of_tags(labels):
    pair = st.tuples(st.sampled_from(labels), st.sampled_from(labels))
    return st.lists(st.lists(pair, min_size=1, max_size=9), min_size=1, max_size=4)


@settings(max_examples=300)
@given(rows_of_tags(LABELS))
def test_tagging_scores_are_seqevals_also_for_tags_that_do_not_fit_together(rows):
    gold, found = [[g for g, _ in row] for row in rows], [[f for _, f in row] for row in rows]
    scores, zero = FAMILY.score(found, scored(gold)), {"zero_division": 0}
    assert scores == pytest.approx(
        {
            "f1": f1_score(gold, found, **zero), "precision": precision_score(gold, found, **zero),
            "recall": recall_score(gold, found, **zero), "accuracy": accuracy_score(gold, found),
        }
    )  # fmt: skip
    statistics = FAMILY.row_statistics(found, scored(gold))
    assert FAMILY.score_of_means(statistics.mean(0)) == pytest.approx(scores["f1"])
    for g, f, counts in zip(gold, found, statistics.tolist(), strict=True):
        predicted, true = spans_by_hand(f), spans_by_hand(g)
        assert counts == [len(predicted & true), len(predicted), len(true)]


@given(rows_of_tags(KINDS.labels))
def test_where_tags_make_no_spans_every_word_is_one_and_f1_is_accuracy(rows):
    gold, found = [[g for g, _ in row] for row in rows], [[f for _, f in row] for row in rows]
    scores = KINDS.score(found, scored(gold, KINDS))
    right = np.mean([g == f for row in rows for g, f in row])
    assert scores == pytest.approx({"f1": right, "precision": right, "recall": right, "accuracy": right})


def test_words_outside_are_no_spans_where_tags_have_no_beginnings():
    family = Tagging("tokens", labels=("O", "PER", "LOC"))
    scores = family.score([["PER", "O", "LOC", "O", "O"]], scored([["PER", "PER", "O", "O", "O"]], family))
    assert scores == pytest.approx({"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.6})


def test_predictions_are_read_beside_their_words():
    (example,) = scored([["B-PER", "O"]])
    assert FAMILY.readable(["O", "O"], example) == {
        "tokens": ["w", "w"], "prediction": ["O", "O"], "reference": ["B-PER", "O"],
    }  # fmt: skip


# ---- heads

SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SHAPE |= {"max_position_embeddings": 40, "pad_token_id": 1, "initializer_range": 0.2}
OTHER_SHAPES = {
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "pad_token_id": 1,
                   "initializer_range": 0.2},
    "xlm": {"vocab_size": 40, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40, "pad_index": 1,
            "pad_token_id": 1, "embed_init_std": 0.2, "init_std": 0.2},
    "albert": SHAPE | {"embedding_size": 8},
    "electra": SHAPE | {"embedding_size": 8},
    "mobilebert": SHAPE | {"embedding_size": 8, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "squeezebert": SHAPE | {"embedding_size": 16, "q_groups": 2, "k_groups": 2, "v_groups": 2, "post_attention_groups": 1,
                            "intermediate_groups": 2, "output_groups": 2},
    "rembert": SHAPE | {"input_embedding_size": 8, "output_embedding_size": 8},
    "eurobert": SHAPE | {"num_key_value_heads": 2, "head_dim": 8},
}  # fmt: skip


def tagged(generator, count=4):
    """Examples with random tokens, of one window or two, and of words at random places."""
    for _ in range(count):
        sequences = [
            generator.integers(5, 40, generator.integers(6, 25)).astype(np.int32) for _ in range(generator.integers(1, 3))
        ]
        window = generator.integers(0, len(sequences), 3)
        place = np.array([generator.integers(0, len(sequences[at])) for at in window])
        target = np.stack([window, place, generator.integers(0, len(LABELS), 3)])
        yield Encoded(sequences, [len(ids) for ids in sequences], target.reshape(-1).astype(np.int32))


def assert_heads_are_plain(model, examples, packed=False):
    batch = make_batch([Drawn(one, "t", FAMILY, 1.0) for one in examples], microworld.layout(model, packed))
    ((segment, output, _),) = model(batch)
    whole, m = assemble(model, "t"), 0
    assert type(whole).__name__.endswith("ForTokenClassification")
    for one in segment.examples:
        alone = [
            whole(input_ids=torch.tensor(ids)[None], attention_mask=torch.ones(1, len(ids))).logits[0] for ids in one.sequences
        ]
        for window, place, _ in one.target.reshape(3, -1).T:
            torch.testing.assert_close(output[m], alone[window][place], rtol=1e-5, atol=1e-5)
            m += 1
    assert m == len(output)
    assert output.std() > 1e-3  # they are not equal for being all the same


def config_of(name):
    return transformers.AutoConfig.for_model(name, **OTHER_SHAPES.get(name, SHAPE))


@pytest.mark.parametrize(
    ("name", "packed"), [(name, packed) for name in ENCODERS for packed in (False, True)[: 1 + reads_streams(config_of(name))]]
)
@torch.no_grad()
def test_the_head_on_chosen_words_of_a_mixed_batch_is_plain_transformers_on_each_sequence_alone(name, packed):
    torch.manual_seed(0)
    config = config_of(name)
    model = MultiTask(Backbone(transformers.AutoModel.from_config(config)), {"t": FAMILY}).eval()
    assert_heads_are_plain(model, list(tagged(np.random.default_rng(0))), packed)


T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}


@pytest.mark.parametrize("name", ["t5", "mt5"])
@torch.no_grad()
def test_t5s_head_reads_the_encoder_as_transformers_own_does(name, tmp_path):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **T5, pad_token_id=1)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "whole")
    model = MultiTask(load_backbone(str(tmp_path / "whole")), {"t": FAMILY}).eval()
    examples = list(tagged(np.random.default_rng(0)))
    for at, one in enumerate(examples):  # what the decoder reads, if anything, does not matter
        one.output = np.arange(5, 5 + 2 * at, dtype=np.int32)
    assert_heads_are_plain(model, examples)
    assemble(model, "t").save_pretrained(tmp_path / "tagger")
    with pytest.raises(InputError, match=f"is a {name} without its decoder"):
        load_backbone(str(tmp_path / "tagger"))


# ---- learned, and saved


@pytest.fixture(scope="module")
def tuned(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    task = microworld.make_task(0, "tags", microworld.TAGS, {"train": 512, "validation": 64, "test": 128})
    config = {"optimizer": {"learning_rate": 3e-3}, "train": {"updates": 200, "evaluate_every": 100}}
    return task, finetune(task, tiny_model, folder / "out", config=config, cache=folder / "cache")


def test_a_small_task_is_learned(tuned):
    task, result = tuned
    assert result.record["metric"] == "f1"
    assert result.score > 0.95
    outside = [["O"] * len(row["tags"]) for row in task.source.tables["test"]]
    assert (
        result.record["scores"]["accuracy"]
        > 0.95
        > np.mean([tag == "O" for row in task.source.tables["test"] for tag in row["tags"]])
    )
    assert f1_score([row["tags"] for row in task.source.tables["test"]], outside, zero_division=0) == 0


PIPELINE = """
import json, sys, transformers
tag = transformers.pipeline("token-classification", model=sys.argv[1], device="cpu", ignore_labels=[])
print(json.dumps([[one["entity"] for one in words] for words in tag(json.load(open(sys.argv[2])))]))
assert "prefinetune" not in sys.modules
"""


def test_a_token_classification_pipeline_says_what_we_predict(tuned, tmp_path):
    task, result = tuned
    rows = task.source.tables["test"]
    (tmp_path / "texts.json").write_text(json.dumps([" ".join(row["tokens"]) for row in rows]))
    command = [sys.executable, "-c", PIPELINE, result.folder / "model", tmp_path / "texts.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == result.predictions  # one token per word
    assert f1_score([row["tags"] for row in rows], result.predictions) == pytest.approx(result.score)


def test_predictions_of_a_model_do_not_depend_on_how_they_are_batched(tuned):
    task, result = tuned
    folder, opened = str(result.folder / "model"), open_task(task)
    tokenizer = load_tokenizer(folder, SHORT, transformers.AutoConfig.from_pretrained(folder))
    model = MultiTask(load_backbone(folder), {task.name: opened.family}, seed=1)
    plain = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    model.head(task.name).load_plain_state(plain.classifier.state_dict(prefix="classifier."))
    long = Rows({"test": [one_row(row["tokens"] * 4, row["tags"] * 4) for row in task.source.tables["test"][:6]]}, name="long")
    examples = encode_split(open_task(Task("long", long, opened.family, evaluation_only=True)), "test", tokenizer)
    assert all(len(one.sequences) > 1 for one in examples)
    few, many = (predict(model, tokenizer, task.name, examples, budget) for budget in (40, 4000))
    assert few == many
    lines = list(readable(opened.family, examples, few))
    assert [line["tokens"] for line in lines] == [row["tokens"] for row in long.tables["test"]]
    assert [line["reference"] for line in lines] == [row["tags"] for row in long.tables["test"]]
    assert f1_score([line["reference"] for line in lines], few) > 0.5  # windows cut sentences, no more
