"""Micro-batches: every example in exactly one, none over the budget, at the least cost, and padded as a naive loop would."""

from functools import cache as remembered
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefinetune.batch import MICRO_BATCH_COST, Drawn, Layout, deal, lay_out, make_batch, micro_batches
from prefinetune.families import Choice, Classification, Denoising, Encoded, Generation, Regression, Span
from prefinetune.objective import example_weights

PAD = 77  # not 0, so that nothing is right by luck

shapes = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 5)), min_size=1, max_size=40)  # (tokens, rows) per example


def tokens_of(piece, lengths, rows):
    """A micro-batch's tokens with padding."""
    return max(lengths[i] for i in piece) * sum(rows[i] for i in piece)


def cost_of(pieces, lengths, rows):
    return sum(tokens_of(piece, lengths, rows) + MICRO_BATCH_COST for piece in pieces)


def least_cost(lengths, rows, budget):
    """The cheapest cut of the examples, longest first, by trying all of them."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])

    @remembered
    def from_(start):
        if start == len(order):
            return 0
        pieces = [order[start:end] for end in range(start + 1, len(order) + 1)]
        fitting = [one for one in pieces if len(one) == 1 or tokens_of(one, lengths, rows) <= budget]
        return min(cost_of([one], lengths, rows) + from_(start + len(one)) for one in fitting)

    return from_(0)


@given(shapes, st.integers(1, 3000))
def test_every_example_is_in_exactly_one_micro_batch_and_only_a_lone_one_exceeds_the_budget(shapes, budget):
    lengths, rows = zip(*shapes, strict=True)
    pieces = lay_out(lengths, rows, budget)
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(lengths)))
    assert all(len(piece) == 1 or tokens_of(piece, lengths, rows) <= budget for piece in pieces)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 4)), min_size=1, max_size=12), st.integers(1, 2500))
def test_no_cut_of_the_sorted_examples_costs_less(shapes, budget):
    lengths, rows = zip(*shapes, strict=True)
    assert cost_of(lay_out(lengths, rows, budget), lengths, rows) == least_cost(lengths, rows, budget)


def test_padding_stays_small_where_lengths_vary():
    lengths = np.random.default_rng(0).integers(8, 128, 400)
    pieces = lay_out(lengths, [1] * 400, 4096)
    assert lengths.sum() / (cost_of(pieces, lengths, [1] * 400) - MICRO_BATCH_COST * len(pieces)) > 0.9


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_weights_of_an_update_sum_to_one_and_sub_batches_weigh_the_same(sizes):
    weights = example_weights(sizes)
    assert sum(weight * size for weight, size in zip(weights, sizes, strict=True)) == pytest.approx(1)
    assert [weight * size for weight, size in zip(weights, sizes, strict=True)] == pytest.approx([1 / len(sizes)] * len(sizes))


# ---- with a decoder, which reads either the sequence again or a target of its own

# (tokens, tokens that the decoder reads, rows) per example
decoded_shapes = st.tuples(st.integers(1, 200), st.none() | st.integers(0, 60), st.integers(1, 3)).map(
    lambda shape: (shape[0], shape[0] if shape[1] is None else shape[1], shape[2])
)


def cost_with_decoder(piece, lengths, decoded, rows):
    """A micro-batch's tokens with padding, of encoder and decoder."""
    return sum(rows[i] for i in piece) * (max(lengths[i] for i in piece) + max(decoded[i] for i in piece))


@given(st.lists(decoded_shapes, min_size=1, max_size=40), st.integers(1, 3000))
def test_with_a_decoder_no_example_is_lost_and_the_decoders_tokens_count_in_the_budget(shapes, budget):
    lengths, decoded, rows = zip(*shapes, strict=True)
    pieces = lay_out(lengths, rows, budget, decoded)
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(lengths)))
    assert all(len(piece) == 1 or cost_with_decoder(piece, lengths, decoded, rows) <= budget for piece in pieces)


@given(st.lists(decoded_shapes, min_size=1, max_size=9), st.integers(1, 2500))
def test_with_a_decoder_no_cut_of_the_examples_in_their_order_costs_less(shapes, budget):
    lengths, decoded, rows = zip(*shapes, strict=True)
    found = [piece.tolist() for piece in lay_out(lengths, rows, budget, decoded)]
    order = np.concatenate(found).tolist()
    costs = []
    for marks in product((False, True), repeat=len(order) - 1):
        ends = [at + 1 for at, cut in enumerate(marks) if cut]
        pieces = [order[start:end] for start, end in pairwise([0, *ends, len(order)])]
        each = [cost_with_decoder(piece, lengths, decoded, rows) for piece in pieces]
        if all(cost <= budget or len(piece) == 1 for cost, piece in zip(each, pieces, strict=True)):
            costs.append(sum(each) + MICRO_BATCH_COST * len(pieces))
    each = [cost_with_decoder(piece, lengths, decoded, rows) for piece in found]
    assert sum(each) + MICRO_BATCH_COST * len(found) == min(costs)


@given(st.lists(decoded_shapes, min_size=1, max_size=40))
def test_examples_with_a_target_of_their_own_come_before_those_read_again_and_both_the_longest_first(shapes):
    lengths, decoded, rows = zip(*shapes, strict=True)
    order = np.concatenate(lay_out(lengths, rows, 1000, decoded)).tolist()
    found = [(lengths[i] == decoded[i], -lengths[i], -decoded[i]) for i in order]
    assert found == sorted(found)


# ---- the tensors of a micro-batch

FAMILIES = {
    "topic": Classification("text", labels=("a", "b", "c")),
    "story": Choice("text", "options"),
    "likeness": Regression("text", low=0, high=1),
    "reading": Span("question", "context"),
    "words": Denoising("text"),
}


def drawn_examples(generator, count=25):
    """Examples of all families with random tokens, lengths and numbers of rows, their tasks in any order."""
    for source in range(count):
        task = str(generator.choice(list(FAMILIES)))
        rows = int(generator.integers(2, 5)) if task == "story" else 1
        sequences = [generator.integers(100, 200, generator.integers(4, 40)) for _ in range(rows)]
        first = [int(generator.integers(1, len(sequence) + 1)) for sequence in sequences]
        target = {
            "topic": np.array([source % 3]),
            "story": np.array([rows - 1]),
            "likeness": np.array([source / count], dtype=np.float32),
            "reading": np.array([1, 3]),
            "words": np.concatenate([np.arange(1 + source % 3), 50 + np.arange(1 + source % 3)]),
        }[task]
        yield Drawn(Encoded(sequences, first, target, source), task, FAMILIES[task], float(generator.random()))


@pytest.mark.parametrize("seed", range(5))
def test_a_micro_batch_is_its_sequences_end_to_end_or_padded_with_each_task_in_one_segment(seed):
    drawn = list(drawn_examples(np.random.default_rng(seed)))
    batch = make_batch(drawn, Layout(PAD, token_types=True))
    longest = max(one.example.length for one in drawn)
    assert sorted(segment.task for segment in batch.segments) == sorted({one.task for one in drawn})
    rectangle, mask, types = batch.rectangle()
    assert rectangle.shape == mask.shape == types.shape
    assert sorted(torch.cat([segment.rows for segment in batch.segments]).tolist()) == list(range(len(rectangle)))
    assert batch.bounds.total == len(batch.ids) == len(batch.token_types) == batch.clean_tokens
    for segment in batch.segments:
        mine = [one for one in drawn if one.task == segment.task]
        assert segment.family is FAMILIES[segment.task]
        assert [example.source for example in segment.examples] == [one.example.source for one in mine]
        assert segment.sizes.tolist() == [len(one.example.sequences) for one in mine]
        assert segment.weights.tolist() == pytest.approx([one.weight for one in mine])
        expected = [(ids, first) for one in mine for ids, first in zip(one.example.sequences, one.example.first, strict=True)]
        assert segment.lengths.tolist() == [len(ids) for ids, _ in expected]
        for row, (ids, first) in zip(segment.rows.tolist(), expected, strict=True):
            padding = longest - len(ids)
            start, end = batch.bounds.ends[row : row + 2].tolist()
            assert batch.ids[start:end].tolist() == ids.tolist()
            assert batch.token_types[start:end].tolist() == [0] * first + [1] * (len(ids) - first)
            assert rectangle[row].tolist() == [*ids.tolist(), *[PAD] * padding]
            assert mask[row].tolist() == [1] * len(ids) + [0] * padding
            assert types[row].tolist() == [0] * first + [1] * (len(ids) - first) + [0] * padding
    assert batch.tokens == sum(one.example.tokens for one in drawn) == len(batch.ids)
    assert batch.padded == rectangle.numel()
    assert make_batch(drawn, Layout(PAD, packed=True)).padded == batch.tokens


def test_targets_come_in_the_form_of_their_family():
    drawn = list(drawn_examples(np.random.default_rng(0), 40))
    targets = {segment.task: segment.targets for segment in make_batch(drawn, Layout(PAD)).segments}
    of = {task: [one.example.target for one in drawn if one.task == task] for task in FAMILIES}
    assert targets["topic"].tolist() == [int(one[0]) for one in of["topic"]]
    assert targets["story"].tolist() == [int(one[0]) for one in of["story"]]
    assert targets["likeness"].tolist() == [float(one[0]) for one in of["likeness"]]
    assert targets["reading"].tolist() == [[1, 3]] * len(of["reading"])
    expected = [(e, int(place), int(true)) for e, one in enumerate(of["words"]) for place, true in one.reshape(2, -1).T]
    assert targets["words"].T.tolist() == [list(one) for one in expected]


def test_a_model_without_token_types_is_given_none():
    batch = make_batch(list(drawn_examples(np.random.default_rng(0))), Layout(PAD))
    assert batch.token_types is None
    assert batch.rectangle()[2] is None


@pytest.mark.parametrize("packed", [False, True])
def test_an_update_keeps_every_example_and_its_weight_however_it_is_cut(packed):
    drawn = list(drawn_examples(np.random.default_rng(1), 60))
    for budget in (1, 100, 500, 100_000):
        batches = micro_batches(drawn, budget, Layout(PAD, packed=packed))
        found = sorted(
            (example.source, weight)
            for batch in batches
            for segment in batch.segments
            for example, weight in zip(segment.examples, segment.weights.tolist(), strict=True)
        )
        expected = sorted((one.example.source, one.weight) for one in drawn)
        assert [source for source, _ in found] == [source for source, _ in expected]
        assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


def test_a_micro_batch_moves_to_a_device_whole():
    moved = make_batch(list(drawn_with_outputs((1,))), Layout(PAD, token_types=True, decodes=True)).to("meta")
    bounds = (moved.bounds, moved.output_bounds, moved.kept_bounds)
    tensors = [moved.ids, moved.token_types, moved.outputs, moved.anchors, moved.kept, *(one.ends for one in bounds)]
    for segment in moved.segments:
        mine = [segment, *([segment.noised] if segment.noised else [])]
        tensors += [tensor for one in mine for tensor in (one.rows, one.sizes, one.lengths, one.targets, one.weights)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


# ---- rows that a decoder reads, and noised copies

SUMMARY = Generation("text", "target")


def drawn_with_outputs(noised=()):
    """Two summaries, choices of two and of three options, and a text with a label; those at `noised` have a noised pass."""
    generator = np.random.default_rng(0)
    shapes = [  # (task, family, lengths of the sequences, length of the output)
        ("s", SUMMARY, [9], 3), ("s", SUMMARY, [4], 5), ("c", FAMILIES["story"], [6, 7], None),
        ("c", FAMILIES["story"], [3, 12, 5], None), ("t", FAMILIES["topic"], [8], None),
    ]  # fmt: skip
    for at, (task, family, lengths, written) in enumerate(shapes):
        sequences = [generator.integers(100, 200, length) for length in lengths]
        output = None if written is None else generator.integers(200, 300, written)
        target = np.zeros(0 if written else 1, np.int64)
        yield Drawn(Encoded(sequences, [2] * len(lengths), target, at, output=output), task, family, 0.2, at in noised)


def padded_rows(sequences):
    longest = max(map(len, sequences))
    return [[*map(int, ids), *[PAD] * (longest - len(ids))] for ids in sequences]


def test_the_decoder_reads_an_output_of_its_own_or_the_sequence_again():
    drawn = list(drawn_with_outputs())
    batch = make_batch(drawn, Layout(PAD, decodes=True))
    sequences = [ids for one in drawn for ids in one.example.sequences]
    read = [ids if one.example.output is None else one.example.output for one in drawn for ids in one.example.sequences]
    assert batch.ids.tolist() == np.concatenate(sequences).tolist()
    assert batch.outputs.tolist() == np.concatenate(read).tolist()
    assert batch.rectangle()[0].tolist() == padded_rows(sequences)
    assert batch.output_bounds.spread(batch.outputs, PAD).tolist() == padded_rows(read)
    assert batch.tokens == sum(map(len, sequences)) + sum(map(len, read))
    assert batch.padded == 8 * (12 + 12)
    assert [segment.tokens for segment in batch.segments] == [(9 + 4) + (3 + 5), 2 * (6 + 7 + 3 + 12 + 5), 2 * 8]


def test_targets_of_generation_are_each_tokens_example_place_and_id():
    drawn = list(drawn_with_outputs())[:2]
    (segment,) = make_batch(drawn, Layout(PAD, decodes=True)).segments
    expected = [(e, place, int(true)) for e, one in enumerate(drawn) for place, true in enumerate(one.example.output)]
    assert segment.targets.T.tolist() == [list(one) for one in expected]


def test_there_is_nothing_for_a_decoder_to_read_where_it_writes_by_itself_or_is_not_there():
    drawn = list(drawn_with_outputs())
    for one in drawn:
        one.example.output = None if one.example.output is None else one.example.output[:0]
    assert make_batch(drawn[:2], Layout(PAD, decodes=True)).outputs is None
    assert make_batch(drawn, Layout(PAD)).outputs is None
    batch = make_batch(drawn, Layout(PAD, decodes=True))
    assert batch.output_bounds.lengths[:2].tolist() == [0, 0]
    assert batch.output_bounds.spread(batch.outputs, PAD)[:2].tolist() == [[PAD] * 12] * 2


@pytest.mark.parametrize("decodes", [False, True])
def test_noised_copies_are_appended_and_a_task_with_and_without_them_has_two_segments(decodes):
    batch, plain = (make_batch(list(drawn_with_outputs(noised)), Layout(PAD, True, decodes)) for noised in ((1, 3), ()))
    assert batch.clean == 8
    assert len(batch.bounds.lengths) == 8 + 1 + 3  # a summary and a choice of three options once more
    assert batch.clean_tokens == len(plain.ids)
    assert torch.equal(batch.ids[: batch.clean_tokens], plain.ids)
    assert (batch.tokens, batch.padded) == (plain.tokens, plain.padded)  # what is reported is what was read of the data
    found = {(segment.task, segment.noised is not None): segment for segment in batch.segments}
    assert sorted(found) == [("c", False), ("c", True), ("s", False), ("s", True), ("t", False)]
    copied = []
    for segment in batch.segments:
        if segment.noised is not None:
            copies = segment.noised.rows
            outputs = [batch.output_bounds.spread(batch.outputs, PAD)] if decodes else []
            for rectangle in (*batch.rectangle(), *outputs):
                assert torch.equal(rectangle[copies], rectangle[segment.rows])
            assert torch.equal(segment.noised.targets, segment.targets)
            assert torch.equal(segment.noised.sizes, segment.sizes)
            copied += copies.tolist()
    assert sorted(copied) == [8, 9, 10, 11]
    assert [one.source for one in found["c", True].examples] == [3]


@pytest.mark.parametrize("packed", [False, True])
def test_noised_copies_count_in_the_budget(packed):
    drawn = list(drawn_with_outputs(noised=(0, 2, 4)))
    for budget in (1, 80, 150, 400):
        for batch in micro_batches(drawn, budget, Layout(PAD, decodes=True, packed=packed)):
            alone = sum(len(segment.examples) for segment in batch.segments) == 1
            read = len(batch.ids) + len(batch.outputs)
            if not packed:
                read = batch.rectangle()[0].numel() + batch.output_bounds.mask().numel()
            assert alone or read <= budget


# ---- dealing an update out to processes


@given(st.lists(st.integers(1, 600), max_size=80), st.integers(1, 9))
def test_dealt_examples_are_all_there_once_and_no_process_has_more_than_the_bound(costs, ranks):
    dealt = deal(np.array(costs, dtype=np.int64), ranks)
    assert len(dealt) == ranks
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(costs)))
    loads = [sum(costs[index] for index in mine) for mine in dealt]
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0) * (1 - 1 / ranks) + 1e-9
    if len(costs) >= ranks:
        assert min(map(len, dealt)) >= 1


def test_many_examples_are_dealt_within_one_percent():
    costs = np.random.default_rng(0).lognormal(4, 0.8, 64 * 64).astype(np.int64) + 1
    loads = [costs[mine].sum() for mine in deal(costs, 64)]
    assert max(loads) / np.mean(loads) < 1.01


def test_a_batch_without_weight_is_the_same_batch_and_has_no_part_in_the_objective():
    batch = make_batch(drawn_examples(np.random.default_rng(0)), Layout(0))
    idle = batch.without_weight()
    assert torch.equal(idle.ids, batch.ids)
    assert all(not segment.weights.any() for segment in idle.segments)
    assert all(segment.weights.all() for segment in batch.segments)
