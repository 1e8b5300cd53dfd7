"""The compiled kernels against formulas in float64, their dropout masks, how they are built, and what is done without them."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from prefinetune import native
from prefinetune.ops import Bounds

COMPILER = shutil.which(os.environ.get("CXX") or "g++")
compiled = pytest.mark.skipif(
    COMPILER is None or os.environ.get("PREFINETUNE_NATIVE") == "0", reason="no C++ compiler here, or switched off"
)
WIDEST = torch.backends.cpu.get_cpu_capability()
MACHINES = {"AVX512": ["AVX512", "AVX2", "DEFAULT"], "AVX2": ["AVX2", "DEFAULT"]}.get(WIDEST, [WIDEST])
WIDTHS = {"AVX512": 16, "AVX2": 8}  # floats; 4 elsewhere


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def fresh(monkeypatch, tmp_path) -> Path:
    """An empty cache, and kernels as a new process finds them: not loaded."""
    monkeypatch.setenv("PREFINETUNE_CACHE", str(tmp_path / "cache"))
    native.library.cache_clear()
    yield tmp_path / "cache"
    native.library.cache_clear()


# ---- what is compared


def randoms(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


def apart(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same values as views of one tensor [n, number of tensors, ...], so that tokens do not lie side by side."""
    return list(torch.stack(list(tensors), 1).unbind(1))


def formula(query, key, value, queries, keys, scale, causal=False, window=None, factors=None):
    """Attention of each sequence. `factors` [n, h, longest] are what weights are multiplied with, in place of dropout."""
    rows = []
    for i in range(len(queries.lengths)):
        asked, seen = slice(*queries.ends[i : i + 2].tolist()), slice(*keys.ends[i : i + 2].tolist())
        scores = torch.einsum("ihe,jhe->hij", query[asked], key[seen]) * scale
        ahead = torch.arange(scores.shape[2]) - torch.arange(scores.shape[1])[:, None]
        if causal:
            scores = scores.masked_fill(ahead > 0, -torch.inf)
        if window is not None:
            scores = scores.masked_fill(ahead.abs() > window, -torch.inf)
        weights = scores.softmax(-1)
        if factors is not None:
            weights = weights * factors[asked, :, : scores.shape[2]].transpose(0, 1)
        rows.append(torch.einsum("hij,jhe->ihe", weights, value[seen]))
    return torch.cat(rows)


def values_and_gradients(compute, inputs, weight):
    """Of `compute(*inputs)`, and of its product with `weight` in all inputs, in the precision of `weight`."""
    leaves = [one.detach().to(weight.dtype).requires_grad_() for one in inputs]
    out = compute(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight, materialize_grads=True)]


def assert_near(found, expected, tolerance=1e-5):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        size = float(other.detach().abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=tolerance * max(1.0, size))


def compare(compute, reference, inputs, tolerance=1e-5):
    """A kernel in float32 with a formula in float64."""
    weight = torch.randn_like(compute(*inputs))
    expected = values_and_gradients(reference, inputs, weight.double())
    assert_near(values_and_gradients(compute, inputs, weight), expected, tolerance)


def self_attention(lengths, heads, size) -> tuple[Bounds, list[torch.Tensor]]:
    bounds = Bounds.of(np.array(lengths))
    return bounds, [randoms(bounds.total, heads, size) for _ in range(3)]


def attend(query, key, value, queries, keys, scale=0.2, dropout=0.0, causal=False, window=None):
    return native.attend(query, key, value, queries.ends, keys.ends, scale, dropout, causal, window)


# ---- attention without dropout


@compiled
@pytest.mark.parametrize("seeing", [{}, {"causal": True}, {"window": 0}, {"window": 7}, {"causal": True, "window": 20}])
@pytest.mark.parametrize("size", [16, 32, 48, 64, 80])
def test_attention_and_its_gradients_are_the_formulas(size, seeing):
    bounds, inputs = self_attention([1, 2, 3, 15, 16, 17, 31, 33, 47, 49, 64, 96, 97, 130, 300], 2, size)
    compare(
        lambda *them: attend(*them, bounds, bounds, **seeing), lambda *them: formula(*them, bounds, bounds, 0.2, **seeing), inputs
    )


@compiled
@pytest.mark.parametrize("size", [16, 32, 48, 64, 80])
def test_attention_to_another_stream_and_its_gradients_are_the_formulas(size):
    queries, keys = Bounds.of(np.array([0, 1, 50, 3, 0, 200, 1, 17, 0])), Bounds.of(np.array([9, 70, 1, 33, 1, 18, 300, 16, 5]))
    inputs = [randoms(bounds.total, 3, size) for bounds in (queries, keys, keys)]
    compare(lambda *them: attend(*them, queries, keys), lambda *them: formula(*them, queries, keys, 0.2), inputs)
    unread = [slice(*keys.ends[i : i + 2].tolist()) for i in (0, 4, 8)]
    for gradient in values_and_gradients(lambda *them: attend(*them, queries, keys), inputs, inputs[0].detach())[2:]:
        assert all(not gradient[of_none].any() for of_none in unread)


pairs_of_lengths = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=7)


@compiled
@given(
    pairs_of_lengths,
    st.sampled_from(["self", "cross", "causal", "window"]),
    st.integers(1, 4),
    st.sampled_from([16, 32, 64, 80]),
    st.booleans(),
    st.integers(0, 40),
    st.floats(0.01, 1.0),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_attention_of_any_lengths_in_any_layout_is_the_formula(pairs, kind, heads, size, strided, window, scale, seed):
    torch.manual_seed(seed)
    asked, seen = np.array(pairs).T
    queries = Bounds.of(asked)
    keys = Bounds.of(seen) if kind == "cross" else queries
    inputs = [randoms(bounds.total, heads, size) for bounds in (queries, keys, keys)]
    seeing = {"causal": {"causal": True}, "window": {"window": window}}.get(kind, {})

    def ours(query, key, value):
        if strided:
            query, key, value = [query, *apart([key, value])] if kind == "cross" else apart([query, key, value])
            assert not key.is_contiguous() or not key.numel()
        return attend(query, key, value, queries, keys, scale, **seeing)

    compare(ours, lambda *them: formula(*them, queries, keys, scale, **seeing), inputs, 2e-5)


@compiled
def test_inputs_of_any_strides_are_read_where_they_lie():
    bounds, inputs = self_attention([20, 5, 40], 3, 32)
    expected = attend(*inputs, bounds, bounds)
    together = torch.stack(inputs, 1)  # [n, 3, h, e]
    assert torch.equal(attend(*together.unbind(1), bounds, bounds), expected)
    transposed = [one.transpose(0, 1).contiguous().transpose(0, 1) for one in inputs]  # heads outside
    assert torch.equal(attend(*transposed, bounds, bounds), expected)
    backwards = [one.transpose(1, 2).contiguous().transpose(1, 2) for one in inputs]  # elements of a head apart
    assert torch.equal(attend(*backwards, bounds, bounds), expected)
    weight = torch.randn(expected.shape)
    found = values_and_gradients(lambda *them: attend(*them, bounds, bounds), inputs, weight)
    spread = torch.stack([weight, weight], -1)[..., 0]  # a gradient that is not contiguous
    assert_near(torch.autograd.grad(expected, inputs, spread), found[1:], 0.0)


@compiled
@pytest.mark.parametrize("shift", [-300.0, 0.0, 300.0])
def test_large_scores_do_not_overflow(shift):
    """Only differences of scores matter: a number that is added to all of them changes nothing."""
    bounds = Bounds.of(np.array([40]))
    query, key, value = torch.ones(40, 1, 32), torch.randn(40, 1, 32), randoms(40, 1, 32)
    found = attend(query, key + shift, value, bounds, bounds, 1.0)
    assert_near([found], [formula(query, key, value, bounds, bounds, 1.0)], 0.01)
    assert all(one.isfinite().all() for one in torch.autograd.grad(found.sum(), value))


@compiled
def test_no_tokens_no_sequences_and_empty_sequences():
    for lengths in ([], [0], [0, 0], [0, 3, 0, 1, 0]):
        bounds, inputs = self_attention(np.array(lengths, dtype=int), 2, 32)
        out = attend(*inputs, bounds, bounds, dropout=0.5)
        gradients = torch.autograd.grad(out.sum(), inputs)
        assert [one.shape for one in (out, *gradients)] == [(bounds.total, 2, 32)] * 4
    none = torch.zeros(0, 64, requires_grad=True)
    vectors = [randoms(64) for _ in range(3)]
    joined = native.dropout_add_norm(none, vectors[0], none, *vectors[1:], 1e-12, 0.1)
    for out in (joined, native.bias_gelu(none, vectors[0]), native.drop(none, 0.1)):
        assert out.shape == (0, 64)
        assert not any(
            one is not None and one.any() for one in torch.autograd.grad(out.sum(), [none, *vectors], allow_unused=True)
        )


# ---- sequences are apart


@compiled
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_is_in_a_sequence_does_not_reach_the_others(dropout):
    lengths = [16, 5, 40, 17, 1, 33]
    bounds, inputs = self_attention(lengths, 2, 32)
    weight = torch.randn(bounds.total, 2, 32)

    def run(*them):
        torch.manual_seed(7)
        return values_and_gradients(lambda *given: attend(*given, bounds, bounds, dropout=dropout), them, weight)

    before = run(*inputs)
    for changed in range(len(lengths)):
        inside = torch.arange(bounds.total)
        inside = (inside >= bounds.ends[changed]) & (inside < bounds.ends[changed + 1])
        for which in range(3):
            for value in (9.0, torch.nan, torch.inf, -torch.inf):
                them = [one.detach().clone() for one in inputs]
                them[which][int(bounds.ends[changed + 1]) - 1, 0, 3] = value
                after = run(*them)
                assert all(torch.equal(one[~inside], other[~inside]) for one, other in zip(before, after, strict=True))
                if value != 9.0 and not dropout:
                    assert not after[0][inside].isfinite().all()


@compiled
def test_what_is_not_a_number_in_a_row_stays_in_it_and_is_not_lost():
    hidden, residual = torch.randn(6, 64), torch.randn(6, 64)
    ones, zeros = torch.ones(64), torch.zeros(64)
    others = [0, 1, 2, 4, 5]
    for bad in (torch.nan, torch.inf, -torch.inf):
        wrong = hidden.clone()
        wrong[3, 40] = bad
        for compute in (
            lambda x: native.dropout_add_norm(x, zeros, residual, ones, zeros, 1e-12, 0.0),
            lambda x: native.bias_gelu(x, zeros),
            lambda x: native.drop(x, 1e-9),
        ):
            assert torch.equal(compute(wrong)[others], compute(hidden)[others])
        assert native.dropout_add_norm(wrong, zeros, residual, ones, zeros, 1e-12, 0.0)[3].isnan().all()
        torch.testing.assert_close(native.bias_gelu(wrong, zeros)[3, 40], functional.gelu(wrong[3, 40]), equal_nan=True)
        torch.testing.assert_close(native.drop(wrong, 1e-9)[3, 40], wrong[3, 40], equal_nan=True)


# ---- row by row


@compiled
@pytest.mark.parametrize(("n", "d"), [(1, 16), (37, 384), (100, 80), (3, 768), (33, 1024)])
def test_adding_and_normalising_and_its_gradients_are_the_formulas(n, d):
    inputs = [randoms(n, d), randoms(d), randoms(n, d), randoms(d), randoms(d)]
    compare(
        lambda hidden, bias, residual, weight, shift: native.dropout_add_norm(hidden, bias, residual, weight, shift, 1e-5, 0.0),
        lambda hidden, bias, residual, weight, shift: functional.layer_norm(hidden + bias + residual, (d,), weight, shift, 1e-5),
        inputs,
    )


@compiled
def test_the_variance_of_rows_far_from_zero_is_not_lost():
    hidden = torch.randn(5, 384) + 1000
    zeros, ones = torch.zeros(384), torch.ones(384)
    found = native.dropout_add_norm(hidden, zeros, torch.zeros(5, 384), ones, zeros, 1e-12, 0.0)
    assert_near([found], [functional.layer_norm(hidden.double(), (384,), eps=1e-12)], 1e-3)


@compiled
@pytest.mark.parametrize(("n", "d"), [(1, 16), (37, 1536), (100, 80)])
def test_gelu_and_its_gradients_are_the_formulas(n, d):
    compare(native.bias_gelu, lambda hidden, bias: functional.gelu(hidden + bias), [randoms(n, d) * 3, randoms(d)])


@compiled
def test_gelu_is_right_from_far_below_zero_to_far_above():
    hidden = torch.cat([torch.linspace(-12, 12, 4000), torch.tensor([-1e30, -200.0, -40.0, -0.0, 40.0, 200.0, 1e30, 1e-30])])
    hidden = functional.pad(hidden, (0, -len(hidden) % 16))[None]
    compute = lambda one: native.bias_gelu(one, torch.zeros(hidden.shape[1]))  # noqa: E731
    found = values_and_gradients(compute, [hidden], torch.ones_like(hidden))
    expected = values_and_gradients(functional.gelu, [hidden], torch.ones_like(hidden, dtype=torch.float64))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@compiled
def test_rows_and_vectors_of_any_strides_are_read_right():
    hidden, residual = (torch.randn(64, 20).t() for _ in range(2))
    bias, weight, shift = torch.randn(64, 3).unbind(1)  # elements 3 apart
    expected = functional.layer_norm(hidden + bias + residual, (64,), weight, shift, 1e-5)
    assert_near([native.dropout_add_norm(hidden, bias, residual, weight, shift, 1e-5, 0.0)], [expected])
    assert_near([native.bias_gelu(hidden, bias)], [functional.gelu(hidden + bias)])
    assert_near([native.drop(hidden, 1e-9)], [hidden])


# ---- dropout


def row_factors(n: int, d: int, dropout: float, seed: int) -> torch.Tensor:
    """What elements [n, d] are multiplied with."""
    torch.manual_seed(seed)
    return native.drop(torch.ones(n, d), dropout)


def weight_factors(queries: Bounds, keys: Bounds, heads: int, dropout: float, seed: int) -> torch.Tensor:
    """What attention weights are multiplied with, [n, h, longest]: read off attention to all keys alike, whose values are the
    rows of a unit matrix, some of its columns at a time."""
    size = 64
    nothing, found = torch.zeros(queries.total, heads, size), []
    for first in range(0, keys.longest, size):
        unit = functional.one_hot(keys.places(), -(-keys.longest // size) * size)[:, first : first + size]
        torch.manual_seed(seed)
        value = unit.float()[:, None].repeat(1, heads, 1)
        found.append(attend(nothing, torch.zeros_like(value), value, queries, keys, dropout=dropout))
    return torch.cat(found, -1)[..., : keys.longest] * queries.of_each_token(keys.lengths)[:, None, None]


@compiled
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["self", "cross", "causal", "window"])
def test_with_dropout_attention_and_its_gradients_are_the_formulas_with_the_same_mask(kind, dropout):
    queries = keys = Bounds.of(np.array([1, 20, 16, 70, 130]))
    if kind == "cross":
        queries = Bounds.of(np.array([3, 0, 60, 1, 49]))
    inputs = [randoms(bounds.total, 3, 32) for bounds in (queries, keys, keys)]
    seeing = {"causal": {"causal": True}, "window": {"window": 9}}.get(kind, {})
    factors = weight_factors(queries, keys, 3, dropout, seed=5).double()

    def ours(*them):
        torch.manual_seed(5)
        return attend(*them, queries, keys, dropout=dropout, **seeing)

    compare(ours, lambda *them: formula(*them, queries, keys, 0.2, **seeing, factors=factors), inputs)


@compiled
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_with_dropout_rows_and_their_gradients_are_the_formulas_with_the_same_mask(dropout):
    inputs = [randoms(50, 96), randoms(96), randoms(50, 96), randoms(96), randoms(96)]
    factors = row_factors(50, 96, dropout, seed=5).double()

    def added(hidden, bias, residual, weight, shift):
        torch.manual_seed(5)
        return native.dropout_add_norm(hidden, bias, residual, weight, shift, 1e-5, dropout)

    def dropped(hidden):
        torch.manual_seed(5)
        return native.drop(hidden, dropout)

    compare(
        added,
        lambda hidden, bias, residual, weight, shift: functional.layer_norm(
            (hidden + bias) * factors + residual, (96,), weight, shift, 1e-5
        ),
        inputs,
    )
    compare(dropped, lambda hidden: hidden * factors, inputs[:1])


QUERIES = Bounds.of(np.array([7, 20, 1, 50]))
KEYS = Bounds.of(np.array([30, 20, 9, 50]))
WITH_DROPOUT = {
    "attend": (
        lambda *them: attend(*them, QUERIES, KEYS, dropout=0.3),
        [(QUERIES.total, 2, 16), (KEYS.total, 2, 16), (KEYS.total, 2, 16)],
    ),
    "dropout_add_norm": (
        lambda hidden, bias, residual, weight, shift: native.dropout_add_norm(hidden, bias, residual, weight, shift, 1e-5, 0.3),
        [(40, 64), (64,), (40, 64), (64,), (64,)],
    ),
    "drop": (lambda hidden: native.drop(hidden, 0.3), [(40, 64)]),
}


@compiled
@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_with_dropout_the_gradient_is_the_slope_in_every_direction(name):
    compute, shapes = WITH_DROPOUT[name]
    inputs = [torch.randn(shape) for shape in shapes]

    def run(*them):
        torch.manual_seed(11)
        return compute(*them)

    weight = torch.randn_like(run(*inputs))
    _, *gradients = values_and_gradients(run, inputs, weight)
    for _ in range(4):
        directions = [torch.randn(shape) for shape in shapes]
        expected = sum(float(g.double().flatten() @ d.double().flatten()) for g, d in zip(gradients, directions, strict=True))

        def total(step, directions=directions):
            moved = [one + step * direction for one, direction in zip(inputs, directions, strict=True)]
            return float((run(*moved).double() * weight).sum())

        halves = [(total(step) - total(-step)) / (2 * step) for step in (0.01, 0.02)]
        slope = (4 * halves[0] - halves[1]) / 3  # without the error of second order
        assert slope == pytest.approx(expected, rel=2e-3, abs=2e-2)


def near_chance(kept: torch.Tensor, dropout: float) -> bool:
    """Whether as many are kept as chance keeps, within 5 standard deviations."""
    deviation = (dropout * (1 - dropout) / kept.numel()) ** 0.5
    return abs(float(kept.double().mean()) - (1 - dropout)) < 5 * deviation


def independent(one: torch.Tensor, other: torch.Tensor, dropout: float) -> bool:
    """Whether two masks are kept together as often as chance has it, within 5 standard deviations."""
    products = (one.double() - (1 - dropout)) * (other.double() - (1 - dropout))
    return abs(float(products.sum())) < 5 * dropout * (1 - dropout) * products.numel() ** 0.5


@compiled
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_masks_of_rows_keep_what_chance_keeps_and_scale_it_exactly(dropout):
    factors = row_factors(500, 384, dropout, seed=1)
    assert set(factors.unique().tolist()) == {0.0, float(np.float32(1 / (1 - dropout)))}
    kept = factors > 0
    assert near_chance(kept, dropout)
    assert all(near_chance(column, dropout) for column in kept.T)
    assert all(near_chance(row, dropout) for row in kept)
    for step in (1, 2, 3, 4, 8, 16, 32, 64, 128):  # along a row, and down the rows
        assert independent(kept[:, step:], kept[:, :-step], dropout)
        assert independent(kept[step:], kept[:-step], dropout)
        assert independent(kept[step:, step:], kept[:-step, :-step], dropout)
    for other in (2, 3, 2**31):
        assert independent(kept, row_factors(500, 384, dropout, seed=other) > 0, dropout)


@compiled
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_masks_of_attention_keep_what_chance_keeps_apart_for_rows_heads_sequences_and_calls(dropout):
    count, length, heads = 12, 60, 6
    bounds = Bounds.of(np.full(count, length))
    torch.manual_seed(3)
    factors = weight_factors(bounds, bounds, heads, dropout, seed=3)
    assert float(factors.max()) == pytest.approx(1 / (1 - dropout), rel=1e-5)
    assert not ((factors > 1e-3) & (factors < 0.999 / (1 - dropout))).any()
    kept = (factors > 0).reshape(count, length, heads, length)  # sequence, query, head, key
    assert near_chance(kept, dropout)
    assert all(near_chance(kept.select(axis, at), dropout) for axis in range(4) for at in range(kept.shape[axis]))
    assert independent(kept[:, 1:], kept[:, :-1], dropout)
    assert independent(kept[..., 1:], kept[..., :-1], dropout)
    above = torch.ones(length, length, dtype=torch.bool).triu(1)  # (query, key) with (key, query)
    assert independent(kept.transpose(1, 2)[..., above], kept.permute(0, 2, 3, 1)[..., above], dropout)
    for one, other in combinations(range(heads), 2):
        assert independent(kept[:, :, one], kept[:, :, other], dropout)
    for one, other in combinations(range(count), 2):
        assert independent(kept[one], kept[other], dropout)
    assert independent(kept, weight_factors(bounds, bounds, heads, dropout, seed=4).reshape(kept.shape) > 0, dropout)


@compiled
def test_where_all_is_dropped_nothing_is_left():
    values = torch.randn(3, 64)
    assert torch.equal(native.drop(values, 1.0), torch.zeros(3, 64))
    bounds, inputs = self_attention([5, 20], 2, 32)
    assert not attend(*inputs, bounds, bounds, dropout=1.0).any()


@compiled
@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_the_seed_of_torch_decides_and_every_call_draws_anew(name):
    compute, shapes = WITH_DROPOUT[name]
    inputs = [torch.randn(shape) for shape in shapes]
    torch.manual_seed(1)
    first, second = compute(*inputs), compute(*inputs)
    torch.manual_seed(1)
    again = compute(*inputs)
    torch.manual_seed(2)
    other = compute(*inputs)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


# ---- threads, machines, precision of inputs


def everything(dropout: float) -> list[torch.Tensor]:
    """Values and gradients of all kernels, from a fixed seed."""
    torch.manual_seed(21)
    bounds = Bounds.of(np.array([50, 1, 130, 17, 16, 80]))
    states = [torch.randn(bounds.total, 4, 32) for _ in range(3)]
    rows = [torch.randn(333, 96) for _ in range(2)]
    vectors = [torch.randn(96) for _ in range(3)]
    found = []
    for compute, inputs in (
        (lambda *them: attend(*them, bounds, bounds, dropout=dropout), states),
        (lambda *them: attend(*them, bounds, bounds, dropout=dropout, causal=True), states),
        (lambda h, r, b, w, s: native.dropout_add_norm(h, b, r, w, s, 1e-5, dropout), [*rows, *vectors]),
        (native.bias_gelu, [rows[0], vectors[0]]),
        (lambda h: native.drop(h, dropout), rows[:1]),
    ):
        weight = torch.randn_like(compute(*inputs))
        found += values_and_gradients(compute, inputs, weight)
    return found


@compiled
def test_any_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = everything(0.2)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(one, everything(0.2), strict=True))
    finally:
        torch.set_num_threads(before)


@compiled
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is loaded")
def test_there_is_one_pool_of_threads():
    """No OpenMP library of the system beside PyTorch's; that of scikit-learn, which Transformers loads, has another name."""
    assert native.library() is not None
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libgomp.so" in line}
    assert len(loaded) <= 1


@compiled
def test_kernels_for_every_machine_agree(monkeypatch):
    """With the same dropout masks, too."""
    results = []
    for machine in MACHINES:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda machine=machine: machine)
        library = ctypes.CDLL(str(native.built()))
        assert library.vector_width() == WIDTHS.get(machine, 4)
        monkeypatch.setattr(native, "library", lambda library=library: library)
        results.append(everything(0.2))
    for other in results[1:]:
        assert_near(other, results[0], 2e-6)


@compiled
def test_takes_only_what_it_can_compute():
    good = torch.zeros(3, 2, 32)
    assert native.takes(good, good[:0], torch.zeros(5, 384))
    assert not native.takes(good.double())
    assert not native.takes(good.bfloat16())
    assert not native.takes(good, good.half())
    assert not native.takes(good, good.to("meta"))
    width = native.library().vector_width()
    assert native.takes(torch.zeros(3, 3 * width))
    assert not native.takes(torch.zeros(3, 3 * width + 1), good)
    assert not native.takes(good, torch.zeros(3, 3 * width - width // 2))


@compiled
def test_without_gradients_nothing_is_kept():
    bounds, inputs = self_attention([5, 20], 2, 32)
    expected = attend(*inputs, bounds, bounds)
    with torch.no_grad():
        found = attend(*inputs, bounds, bounds)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    fixed = [one.detach() for one in inputs]
    assert not attend(*fixed, bounds, bounds).requires_grad
    query = fixed[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(attend(query, *fixed[1:], bounds, bounds).sum(), query)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), inputs)[0])


# ---- building

MODULES = "import sys, torch, prefinetune.native as native"


def python(script: str, **environment: str) -> str:
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"{MODULES}\n{script}"], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_import_builds_and_loads_nothing(tmp_path):
    script = """
import prefinetune, prefinetune.ops
print(native.library.cache_info().currsize, any("kernels.so" in line for line in open("/proc/self/maps")))
"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("only Linux lists what is loaded")
    assert python(script, PREFINETUNE_CACHE=str(tmp_path / "cache")).split() == ["0", "False"]
    assert not (tmp_path / "cache").exists()


def test_without_a_compiler_everything_is_computed_plainly_and_one_line_says_so(tmp_path):
    script = """
import logging, numpy
from torch.nn import functional
from prefinetune import ops
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s", level=logging.WARNING)
bounds = ops.Bounds.of(numpy.array([3, 9, 1]))
query, key, value = torch.randn(3, bounds.total, 2, 32)
assert not native.takes(query)
assert not native.takes(query, key)
attended = ops.attend(query, key, value, bounds, bounds, scale=0.2)
assert torch.equal(attended, ops.attend_in_groups(query, key, value, bounds, bounds, scale=0.2))
hidden, norm = query.flatten(1), torch.nn.LayerNorm(64)
assert torch.equal(ops.bias_gelu(hidden, norm.weight), functional.gelu(hidden + norm.weight))
assert torch.equal(ops.dropout_add_norm(hidden, norm.bias, hidden, norm, 0.0), norm(hidden + hidden))
assert set((ops.drop(torch.ones(9, 64), 0.5)).unique().tolist()) == {0.0, 2.0}
"""
    nowhere = {"PATH": "", "CXX": "", "PREFINETUNE_CACHE": str(tmp_path / "cache"), "PREFINETUNE_NATIVE": ""}
    (line,) = python(script, **nowhere).splitlines()
    assert line.startswith("WARNING compiled CPU kernels are not used")
    assert "there is no C++ compiler 'g++'" in line
    assert "A C++ compiler (g++, or the one that CXX names)" in line


def test_switched_off_it_takes_nothing_and_is_silent(monkeypatch, fresh, caplog):
    monkeypatch.setenv("PREFINETUNE_NATIVE", "0")
    with caplog.at_level(logging.INFO, "prefinetune"):
        assert not native.takes(torch.zeros(3, 32))
        assert not native.takes(torch.zeros(3, 32))
    assert [record.getMessage() for record in caplog.records] == ["compiled CPU kernels are switched off by PREFINETUNE_NATIVE=0"]
    assert warnings_of(caplog) == []
    assert not fresh.exists()


SMALL = 'extern "C" int vector_width() {{ return {width}; }}'  # a source that compiles at once
BROKEN = {
    "fails": ('echo "kernels.cpp:1: error: no such thing" >&2; echo "compilation terminated." >&2; exit 1', "no such thing"),
    "fails silently": ("exit 1", "exit status 1"),
    "writes garbage": ('while [ "$1" != -o ]; do shift; done; echo garbage > "$2"', "kernels.so"),
    "writes nothing": ("exit 0", "kernels.so"),
}


@pytest.fixture
def compiler(monkeypatch, tmp_path) -> Path:
    """A shell script to be written, which is what CXX names; the source is a small one."""
    if os.name != "posix":
        pytest.skip("the compiler is a shell script")
    script, source = tmp_path / "compiler", tmp_path / "kernels.cpp"
    script.touch(0o755)
    source.write_text(SMALL.format(width=1))
    monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.delenv("PREFINETUNE_NATIVE", raising=False)
    return script


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_compiler_is_one_warning_that_leaves_nothing_behind(how, fresh, compiler, caplog):
    script, reason = BROKEN[how]
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    with caplog.at_level(logging.INFO, "prefinetune"):
        assert not native.takes(torch.zeros(3, 32))
        assert not native.takes(torch.zeros(3, 32))
    (warning,) = warnings_of(caplog)
    assert reason in warning
    assert list((fresh / "native").iterdir()) == []
    if COMPILER is not None:  # once it is repaired, the next process builds
        compiler.write_text(f'#!/bin/sh\nexec {COMPILER} "$@"\n')
        native.library.cache_clear()
        assert native.takes(torch.zeros(3, 32))


@compiled
def test_processes_that_build_at_once_all_get_the_kernels(fresh, compiler, tmp_path):
    """The compiler waits until it runs for both."""
    (tmp_path / "running").mkdir()
    wait = 'for i in $(seq 600); do [ $(ls "$at" | wc -l) -ge 2 ] && break; sleep 0.1; done'
    compiler.write_text(f'#!/bin/sh\nat={tmp_path}/running\ntouch "$at/$$"\n{wait}\nexec {COMPILER} "$@"\n')
    script = f"""
from pathlib import Path
native.SOURCE = Path({str(native.SOURCE)!r})
print(native.takes(torch.zeros(3, 32)), native.library().vector_width())
"""
    command = [sys.executable, "-c", f"{MODULES}\n{script}"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=300)[0].split() for process in processes] == [["True", "1"]] * 2
    assert len(list((tmp_path / "running").iterdir())) == 2
    (built,) = (fresh / "native").iterdir()
    assert sorted(path.name for path in built.iterdir()) == ["kernels.so", "manifest.json"]


@compiled
def test_what_was_built_is_found_again_and_built_anew_when_the_source_is_another(monkeypatch, fresh, tmp_path):
    source, found = tmp_path / "kernels.cpp", []
    monkeypatch.setattr(native, "SOURCE", source)
    for width in (3, 3, 5):
        source.write_text(SMALL.format(width=width))
        found.append(native.built())
        assert ctypes.CDLL(str(found[-1])).vector_width() == width
    assert found[0] == found[1] != found[2]
    assert len(list((fresh / "native").iterdir())) == 2


@compiled
@pytest.mark.skipif(WIDEST not in WIDTHS, reason="PyTorch has no narrower form for this machine")
def test_kernels_are_for_the_instructions_that_pytorch_uses():
    script = "print(native.library().vector_width())"
    for capability, width in (("avx2", 8), ("default", 4)):
        assert python(script, ATEN_CPU_CAPABILITY=capability).strip() == str(width)
    assert native.library().vector_width() == WIDTHS[WIDEST]
