"""Denoising with a decoder: spans become masks (BART) or sentinels (T5), and what is written gives the text back.

Texts are made of words that are all different, so that where a word stands in a source tells where it stood in the text.
"""

import math
import re
from collections import Counter
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import poisson

import microworld
from prefinetune.families import Denoising, Example, denoising
from prefinetune.families.denoising import composition, place_spans, poisson_lengths
from prefinetune.tokenizer import Decoder, Tokenizer

WORDS = [word for word in microworld.vocabulary() if word.isalpha()]
START, END, MASK = 0, 2, 4  # of the micro-world's tokenizer, which is BART's in form
T5_END, SENTINELS = 1, list(range(3, 103))


def t5_tokenizer():
    """One token per word, <pad>, </s>, <unk> and a hundred sentinels before them; `A </s>`, as T5 has it."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    sentinels = [f"<extra_id_{number}>" for number in range(100)]
    ids = {word: at for at, word in enumerate(["<pad>", "</s>", "<unk>", *sentinels, *WORDS, "."])}
    words = Backend(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", pair=None, special_tokens=[("</s>", 1)])
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=sentinels, **roles)


TOKENIZERS = {
    "bart": Tokenizer(microworld.tokenizer(), 64, False, Decoder(64, 64, start=2, writes_sentinels=False)),
    "t5": Tokenizer(t5_tokenizer(), 64, False, Decoder(64, 10**9, start=0, writes_sentinels=True)),
}


def stored(name, text):
    (encoded,) = Denoising("text").encode([Example(((text, None),), None)], TOKENIZERS[name])
    return encoded


def drawn(name, text, key=0, **settings):
    """(original, source, target) of a text, as lists of ids."""
    encoded = stored(name, text)
    one = Denoising("text", **settings).draw(encoded, TOKENIZERS[name], np.random.default_rng(key))
    assert one.first == [len(one.sequences[0])]
    return [part.tolist() for part in (encoded.sequences[0], one.sequences[0], one.output)]


def hidden_of(rate, words):
    """How many words may be hidden."""
    return {max(1, math.floor(rate * words)), min(words, max(1, math.ceil(rate * words)))}


texts = st.integers(1, 60).map(lambda count: " ".join(WORDS[:count]))
rates, keys = st.floats(0.01, 0.99), st.integers(0, 2**32)

# ---- BART


@given(texts, rates, keys)
def test_bart_reads_the_text_with_masks_for_what_is_hidden_and_writes_all_of_it(text, rate, key):
    original, source, target = drawn("bart", text, key, rate=rate)
    assert target == original
    assert (source[0], source[-1]) == (START, END)
    pattern = "".join("( [0-9]+)*?" if token == MASK else f" {token}" for token in source)
    assert re.fullmatch(pattern, "".join(f" {token}" for token in original))
    words = len(original) - 2
    assert words - sum(token not in (START, END, MASK) for token in source) in hidden_of(rate, words)


def spans_of(original, source):
    """The length of what each mask hides, between the words that stayed on its two sides."""
    place = {token: at for at, token in enumerate(original)}
    stayed = [None if token == MASK else place[token] for token in source]
    for at, here in enumerate(stayed):
        if here is None:
            yield stayed[at + 1] - stayed[at - 1] - 1
        elif at and stayed[at - 1] is not None:
            assert here == stayed[at - 1] + 1


@pytest.fixture(scope="module")
def bart_spans():
    """Lengths of the hidden spans of 500 draws of a text of 55 words."""
    text = " ".join(WORDS[:55])
    return [list(spans_of(*drawn("bart", text, key)[:2])) for key in range(500)]


def test_thirty_of_a_hundred_words_are_hidden_from_bart(bart_spans):
    hidden = [sum(lengths) for lengths in bart_spans]
    assert set(hidden) == {16, 17}  # 0.3 x 55 = 16.5
    assert np.mean(hidden) == pytest.approx(16.5, abs=4 * 0.5 / math.sqrt(500))


def test_hidden_spans_are_of_any_length_and_an_empty_one_inserts_a_mask(bart_spans):
    lengths = Counter(length for each in bart_spans for length in each)
    total = sum(lengths.values())
    assert lengths[0] / total == pytest.approx(math.exp(-3), abs=4 * math.sqrt(0.05 / total))
    assert {1, 2, 3, 4, 5, 6} < set(lengths)
    assert sum(length * count for length, count in lengths.items()) / total == pytest.approx(3, abs=0.3)  # the last is cut


SENTENCES = ["the duni kuno .", "never gilas ?", "bili bano balas boni ."]


def permuted(monkeypatch, key):
    """The sentences of a source from which nothing is hidden."""
    monkeypatch.setattr(denoising, "poisson_lengths", lambda *_: [])
    original, source, target = drawn("bart", " ".join(SENTENCES), key, permute_sentences=True)
    assert target == original
    read = TOKENIZERS["bart"].tokenizer.decode(source[1:-1])
    return tuple(re.findall(r"\S[^.?]*[.?]", read))


def test_sentences_come_in_every_order_equally_often_and_each_is_whole(monkeypatch):
    times = Counter(permuted(monkeypatch, key) for key in range(600))
    assert set(times) == set(permutations(SENTENCES))
    assert max(abs(count - 100) for count in times.values()) < 4 * math.sqrt(100 * 5 / 6)


def test_words_of_permuted_sentences_are_hidden_too_and_the_text_is_written_in_order():
    for key in range(50):
        original, source, target = drawn("bart", " ".join(SENTENCES), key, permute_sentences=True)
        stayed = Counter(token for token in source if token != MASK)
        assert target == original
        assert stayed <= Counter(original)
        assert len(original) - stayed.total() in hidden_of(0.3, len(original) - 2)


# ---- T5


def filled(source, target):
    """The source with what the target says of each sentinel in its place."""
    said = {}
    for token in target:
        if token in SENTINELS:
            said[token] = []
            last = token
        else:
            said[last].append(token)
    return [word for token in source for word in said.get(token, [token])]


@given(texts, rates, keys)
def test_t5s_source_filled_with_its_target_is_the_text(text, rate, key):
    original, source, target = drawn("t5", text, key, rate=rate)
    assert target[-1] == source[-1] == T5_END
    assert filled(source, target[:-1]) == original
    names = [[token for token in part if token in SENTINELS] for part in (source, target)]
    assert names[0] == names[1] == SENTINELS[: len(names[0])]
    hidden = len(target) - 1 - len(names[0])
    assert hidden in hidden_of(rate, len(original) - 1)
    assert len(names[0]) == max(1, round(hidden / 3))


def test_fifteen_of_a_hundred_words_are_hidden_from_t5():
    text, hidden = " ".join(WORDS[:55]), []
    for key in range(500):
        original, source, _ = drawn("t5", text, key)
        hidden.append(len(set(original) - set(source)))
    assert set(hidden) == {8, 9}  # 0.15 x 55 = 8.25
    assert np.mean(hidden) == pytest.approx(8.25, abs=4 * 0.5 / math.sqrt(500))


def test_t5_hides_no_more_spans_than_it_has_names_for(monkeypatch):
    monkeypatch.setattr(TOKENIZERS["t5"], "sentinels", SENTINELS[:2])
    original, source, target = drawn("t5", " ".join(WORDS[:40]), rate=0.5)
    assert [token for token in source if token in SENTINELS] == SENTINELS[:2]
    assert filled(source, target[:-1]) == original


# ---- both


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_same_key_hides_the_same_and_the_stored_example_is_left_alone(name):
    encoded, family, tokenizer = stored(name, " ".join(WORDS[:30])), Denoising("text"), TOKENIZERS[name]
    before = encoded.sequences[0].copy()
    one, again, other = (family.draw(encoded, tokenizer, np.random.default_rng(key)) for key in (1, 1, 2))
    np.testing.assert_array_equal(one.sequences[0], again.sequences[0])
    np.testing.assert_array_equal(one.output, again.output)
    assert one.sequences[0].tolist() != other.sequences[0].tolist()
    np.testing.assert_array_equal(encoded.sequences[0], before)
    assert encoded.output is None


@pytest.mark.parametrize("name", TOKENIZERS)
def test_evaluation_hides_the_same_every_time(name):
    rows = [Example(((" ".join(WORDS[start : start + 20]), None),), None) for start in range(5)]
    once, again = (Denoising("text").encode(rows, TOKENIZERS[name], for_training=False) for _ in range(2))
    assert [one.sequences[0].tolist() for one in once] == [one.sequences[0].tolist() for one in again]
    assert all(len(one.output) for one in once)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_of_a_text_without_any_word_nothing_is_hidden(name):
    original, source, target = drawn(name, "unheard-of unseen")
    assert source == target == original


# ---- lengths and places


@given(st.integers(1, 400), keys)
def test_poisson_lengths_hide_as_much_as_was_asked(hidden, key):
    lengths = poisson_lengths(hidden, np.random.default_rng(key))
    assert sum(lengths) == hidden
    assert min(lengths) >= 0
    assert lengths[-1] > 0


def test_poisson_lengths_are_poisson_with_mean_three():
    lengths = poisson_lengths(15_000, np.random.default_rng(0))
    assert np.mean(lengths) == pytest.approx(3, abs=4 * math.sqrt(3 / 5000))
    shares = np.bincount(lengths, minlength=8)[:8] / len(lengths)
    np.testing.assert_allclose(shares, poisson.pmf(range(8), 3), atol=4 * math.sqrt(0.25 / 5000))


@given(st.integers(1, 60), st.integers(1, 60), keys)
def test_a_composition_is_so_many_positive_parts_of_the_total(total, parts, key):
    parts = min(parts, total)
    found = composition(total, parts, np.random.default_rng(key))
    assert (sum(found), len(found)) == (total, parts)
    assert min(found) >= 1


def test_all_compositions_are_equally_likely():
    generator = np.random.default_rng(0)
    times = Counter(tuple(composition(6, 3, generator)) for _ in range(5000))
    assert len(times) == math.comb(5, 2)
    assert max(abs(count - 500) for count in times.values()) < 4 * math.sqrt(500)


@given(st.integers(1, 80), st.lists(st.integers(0, 9), min_size=1, max_size=20), keys)
def test_spans_keep_their_lengths_and_order_inside_the_text_and_apart_where_there_is_room(tokens, lengths, key):
    while sum(lengths) > tokens:
        lengths = lengths[:-1] or [tokens]
    spans = place_spans(tokens, lengths, np.random.default_rng(key))
    assert [length for _, length in spans] == lengths
    assert spans[0][0] >= 0
    assert sum(spans[-1]) <= tokens
    between = [start - sum(before) for before, (start, _) in pairwise(spans)]
    assert min(between, default=1) >= (1 if len(lengths) <= tokens - sum(lengths) + 1 else 0)


def test_spans_stand_everywhere_equally_often():
    generator = np.random.default_rng(0)
    times = Counter(tuple(place_spans(6, [2, 1], generator)) for _ in range(3000))
    # Three words stay, so there are four places; the second span comes after the two words of the first.
    assert set(times) == {((one, 2), (other + 2, 1)) for one, other in combinations(range(4), 2)}
    assert max(abs(count - 500) for count in times.values()) < 4 * math.sqrt(500)
