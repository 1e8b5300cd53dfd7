"""The operations, in their plain and their compiled forms, against formulas in float64, and which of the forms is taken."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from prefinetune import native, ops
from prefinetune.ops import Bounds

FORMS = ["plain", "compiled"]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=FORMS)
def form(request, monkeypatch) -> str:
    """Either of the forms."""
    if request.param == "plain":
        monkeypatch.setattr(native, "takes", lambda *tensors: False)
    elif not native.takes(torch.zeros(1, 16)):
        pytest.skip("no compiled kernels here")
    return request.param


def layer_norm(size: int) -> torch.nn.LayerNorm:
    """With weights that a test can tell from others."""
    norm = torch.nn.LayerNorm(size, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def gradients(out, leaves, weight):
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def assert_near(found, expected, tolerance=1e-5):
    for one, other in zip(found, expected, strict=True):
        size = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=tolerance * size)


# ---- either form against formulas in float64


def attention(query, key, value, queries, keys, scale, causal, window):
    """softmax(query key^T x scale) value, written out for each sequence."""
    found = []
    for i in range(len(queries.lengths)):
        asked, seen = slice(*queries.ends[i : i + 2].tolist()), slice(*keys.ends[i : i + 2].tolist())
        scores = torch.einsum("ihe,jhe->hij", query[asked], key[seen]) * scale
        place, other = torch.arange(scores.shape[1])[:, None], torch.arange(scores.shape[2])
        hidden = torch.zeros(scores.shape[1:], dtype=torch.bool)
        if causal:
            hidden |= other > place
        if window is not None:
            hidden |= (other - place).abs() > window
        weights = torch.exp(scores).masked_fill(hidden, 0)
        found.append(torch.einsum("hij,jhe->ihe", weights / weights.sum(-1, keepdim=True), value[seen]))
    return torch.cat(found)


@pytest.mark.parametrize(
    ("asked", "seen", "causal", "window"),
    [
        ([1, 8, 40, 41, 3], None, False, None),
        ([1, 8, 40, 41, 3], None, True, None),
        ([1, 8, 40, 41, 3], None, False, 4),
        ([1, 8, 40, 41, 3], None, True, 4),
        ([0, 8, 1, 20, 0], [7, 9, 30, 1, 5], False, None),
    ],
)
def test_attention_and_its_gradients_are_the_formulas(form, asked, seen, causal, window):
    queries, keys = Bounds.of(np.array(asked)), Bounds.of(np.array(seen or asked))
    leaves = [torch.randn(bounds.total, 2, 32, requires_grad=True) for bounds in (queries, keys, keys)]
    exact = [one.detach().double().requires_grad_() for one in leaves]
    weight = torch.randn(queries.total, 2, 32)
    found = gradients(ops.attend(*leaves, queries, keys, scale=0.3, causal=causal, window=window), leaves, weight)
    assert_near(found, gradients(attention(*exact, queries, keys, 0.3, causal, window), exact, weight.double()))


def test_adding_and_normalising_and_its_gradients_are_the_formulas(form):
    hidden, residual = (torch.randn(30, 64, requires_grad=True) for _ in range(2))
    bias, norm = torch.randn(64, requires_grad=True), layer_norm(64)
    leaves = [hidden, bias, residual, norm.weight, norm.bias]
    exact = [one.detach().double().requires_grad_() for one in leaves]
    weight = torch.randn(30, 64)
    z = exact[0] + exact[1] + exact[2]
    off = z - z.mean(-1, keepdim=True)
    expected = off / (off.square().mean(-1, keepdim=True) + 1e-5).sqrt() * exact[3] + exact[4]
    found = gradients(ops.dropout_add_norm(hidden, bias, residual, norm, 0.0), leaves, weight)
    assert_near(found, gradients(expected, exact, weight.double()))


def test_gelu_and_its_gradients_are_the_formulas(form):
    hidden, bias = (torch.randn(30, 64) * 3).requires_grad_(), torch.randn(64, requires_grad=True)
    exact = [one.detach().double().requires_grad_() for one in (hidden, bias)]
    weight, u = torch.randn(30, 64), exact[0] + exact[1]
    expected = u * (1 + torch.erf(u / 2**0.5)) / 2
    assert_near(gradients(ops.bias_gelu(hidden, bias), [hidden, bias], weight), gradients(expected, exact, weight.double()))


# ---- dropout in either form


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_keeps_what_chance_keeps_and_its_gradient_is_of_the_same_elements(form, dropout):
    values = torch.ones(200, 64, requires_grad=True)
    out = ops.drop(values, dropout)
    assert sorted(out.unique().tolist()) == pytest.approx([0, 1 / (1 - dropout)])
    deviation = (dropout * (1 - dropout) / out.numel()) ** 0.5
    assert abs(float((out > 0).double().mean()) - (1 - dropout)) < 5 * deviation
    (gradient,) = torch.autograd.grad(out.sum(), values)
    assert torch.equal(gradient, out)


def test_without_dropout_nothing_is_dropped_and_no_randomness_is_used(form):
    values, bounds, norm = torch.randn(20, 64), Bounds.of(np.array([5, 15])), layer_norm(64)
    before = torch.get_rng_state()
    assert torch.equal(ops.drop(values, 0.0), values)
    states = values.unflatten(1, (2, 32))
    ops.attend(states, states, states, bounds, bounds, scale=0.2)
    ops.dropout_add_norm(values, norm.bias, values, norm, 0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_before_the_norm_is_of_the_sum_with_the_bias_and_not_of_the_residual(form):
    n, d, dropout = 4000, 64, 0.25
    hidden, bias, residual = torch.zeros(n, d), torch.full((d,), 3.0), torch.zeros(n, d)
    residual[:, 0] = 1000.0
    norm = torch.nn.LayerNorm(d)
    out = ops.dropout_add_norm(hidden, bias, residual, norm, dropout)
    assert (out[:, 0] > 7).all()  # the residual is always there
    rest = out[:, 1:]
    middle = (rest.max(1, keepdim=True).values + rest.min(1, keepdim=True).values) / 2
    kept = float((rest > middle).double().mean())
    assert abs(kept - (1 - dropout)) < 5 * (dropout * (1 - dropout) / rest.numel()) ** 0.5


def test_the_mean_of_attention_with_dropout_is_attention_without_and_its_spread_is_that_of_chance(form):
    """The variance of a sum of weights x values, each kept with probability 1 - p and then divided by it, is
    p / (1 - p) x the sum of their squares."""
    bounds, calls, dropout = Bounds.of(np.array([4, 9, 17])), 400, 0.2
    query, key, value = torch.randn(3, bounds.total, 2, 32)
    with torch.no_grad():
        each = torch.stack(
            [ops.attend(query, key, value, bounds, bounds, scale=0.2, dropout=dropout) for _ in range(calls)]
        ).double()
    expected = attention(query.double(), key.double(), value.double(), bounds, bounds, 0.2, False, None)
    doubled = attention(query.double(), key.double(), value.double() * 0 + 1, bounds, bounds, 0.2, False, None)
    assert_near([doubled], [torch.ones_like(doubled)])  # weights add up to 1
    variance = torch.zeros_like(expected)
    for start, end in zip(bounds.ends[:-1].tolist(), bounds.ends[1:].tolist(), strict=True):
        weights = (torch.einsum("ihe,jhe->hij", query[start:end], key[start:end]).double() * 0.2).softmax(-1)
        variance[start:end] = torch.einsum("hij,jhe->ihe", weights.square(), value[start:end].double().square())
    variance *= dropout / (1 - dropout)
    assert float(each.var(0).sum() / variance.sum()) == pytest.approx(1, abs=0.05)
    distance = (each.mean(0) - expected) / (variance / calls).sqrt()
    assert float(distance.square().mean()) == pytest.approx(1, abs=0.25)
    assert float(distance.abs().max()) < 5.5


# ---- which form is taken


def test_the_compiled_form_is_taken_for_all_operations_where_there_is_one(monkeypatch):
    if not native.takes(torch.zeros(1, 16)):
        pytest.skip("no compiled kernels here")
    called = []
    for name in ("attend", "dropout_add_norm", "bias_gelu", "drop"):
        own = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *given, own=own, name=name: called.append(name) or own(*given))
    bounds, norm = Bounds.of(np.array([3, 5])), layer_norm(64)

    def run(values):
        states = values.unflatten(1, (2, 32))
        ops.attend(states, states, states, bounds, bounds, scale=0.2)
        ops.dropout_add_norm(values, values[0], values, norm.to(values.dtype), 0.1)
        ops.bias_gelu(values, values[0])
        ops.drop(values, 0.1)

    values = torch.randn(8, 64)
    run(values)
    assert called == ["attend", "dropout_add_norm", "bias_gelu", "drop"]
    called.clear()
    ops.drop(values, 0.0)  # nothing to do
    run(values.double())
    run(values.bfloat16())
    assert called == []


def test_one_input_that_is_not_taken_makes_the_operation_plain():
    bounds, norm = Bounds.of(np.array([3, 5])), layer_norm(66)
    odd = torch.randn(8, 66)  # no whole number of vectors on any machine
    states = odd.unflatten(1, (3, 22))
    assert torch.equal(
        ops.attend(states, states, states, bounds, bounds, scale=0.2),
        ops.attend_in_groups(states, states, states, bounds, bounds, scale=0.2),
    )
    assert torch.equal(ops.dropout_add_norm(odd, norm.bias, odd, norm, 0.0), norm(odd + norm.bias + odd))
    assert torch.equal(ops.bias_gelu(odd, norm.bias), functional.gelu(odd + norm.bias))
    assert set(ops.drop(torch.ones(8, 66), 0.5).unique().tolist()) == {0.0, 2.0}


# ---- a stream without tokens


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_nothing_attends_to_nothing(form, lengths):
    bounds = Bounds.of(np.array(lengths, dtype=np.int64))
    leaves = [torch.zeros(0, 2, 32, requires_grad=True) for _ in range(3)]
    out = ops.attend(*leaves, bounds, bounds, scale=0.2)
    assert out.shape == (0, 2, 32)
    (gradient,) = torch.autograd.grad(out.sum(), leaves[:1])
    assert gradient.shape == (0, 2, 32)


# ---- bounds (what they say of tokens is tested with the streams they describe)


@given(st.lists(st.integers(0, 9), max_size=8))
def test_bounds_are_cumulative_lengths_and_move_to_devices_whole(lengths):
    bounds = Bounds.of(np.array(lengths, dtype=np.int64))
    assert bounds.ends.tolist() == [sum(lengths[:row]) for row in range(len(lengths) + 1)]
    moved = bounds.to("meta")
    assert moved.ends.device.type == "meta"
    assert (moved.ends.dtype, moved.longest, moved.total) == (torch.int32, max(lengths, default=0), sum(lengths))
    assert bounds.ends.device.type == "cpu"


def test_parameters_of_another_precision_are_not_read_as_single():
    hidden, residual, bias = torch.randn(5, 32), torch.randn(5, 32), torch.randn(32).double()
    norm = torch.nn.LayerNorm(32).double()
    assert torch.equal(ops.bias_gelu(hidden, bias), torch.nn.functional.gelu(hidden + bias))
    assert torch.equal(ops.dropout_add_norm(hidden, bias, residual, norm, 0.0), norm(residual + (hidden + bias)))


# ---- attention on GPUs, as far as it can be seen without one


def test_flash_attention_takes_what_it_is_given_and_has_a_gradient():
    """PyTorch's own operator, on tensors without content."""
    queries, keys = (Bounds.of(np.array(lengths)).to("meta") for lengths in ([3, 0, 5], [3, 2, 9]))
    query = torch.zeros(8, 2, 32, device="meta", dtype=torch.bfloat16, requires_grad=True)
    key, value = (torch.zeros(14, 2, 32, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    out = ops.attend_by_flash(query, key, value, queries, keys, scale=0.2, dropout=0.1, causal=True, window=4)
    assert (out.shape, out.dtype) == (query.shape, torch.bfloat16)
    gradients = torch.autograd.grad(out.sum(), [query, key, value])
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 3), (True, 3)])
def test_flash_attention_is_asked_for_the_same_as_plain_attention(causal, window, monkeypatch):
    """By an operator in its place that reads its arguments as FlashAttention documents them."""
    bounds = Bounds.of(np.array([7, 1, 4]))
    states = [torch.randn(12, 2, 32) for _ in range(3)]
    expected = ops.attend(*states, bounds, bounds, scale=0.3, causal=causal, window=window)

    def operator(query, key, value, query_ends, key_ends, longest, longest_key, dropout, is_causal, debug, *, scale, **sides):
        assert (query_ends.dtype, longest, longest_key, dropout, debug) == (torch.int32, 7, 7, 0.0, False)
        ahead = torch.arange(12) - torch.arange(12)[:, None]
        sequence = torch.bucketize(torch.arange(12), query_ends[1:].long(), right=True)
        allowed = sequence == torch.bucketize(torch.arange(12), key_ends[1:].long(), right=True)[:, None]
        left, right = sides["window_size_left"], sides["window_size_right"]
        allowed &= (left is None) | (-ahead <= (left or 0))
        allowed &= (right is None) | (ahead <= (right or 0))
        allowed &= (ahead <= 0) | (not is_causal)
        scores = torch.einsum("ihe,jhe->hij", query, key) * scale
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        return (torch.einsum("hij,jhe->ihe", weights, value), None, None, None, None)

    monkeypatch.setattr(native, "takes", lambda *_: False)
    monkeypatch.setattr(ops, "flash_precision", lambda query: torch.float32)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", operator)
    found = ops.attend(*states, bounds, bounds, scale=0.3, causal=causal, window=window)
    torch.testing.assert_close(found, expected)


# ---- steps joined by torch.compile, which GPUs use (any back end shows what is compiled, and when)


@pytest.fixture
def joining(monkeypatch):
    """Steps are joined as on a GPU; gives the number of graphs compiled so far."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    ops.joined.cache_clear()
    monkeypatch.setattr(native, "takes", lambda *tensors: False)
    monkeypatch.setattr(ops, "joins", lambda hidden: True)
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend="aot_eager", **options))
    before = counters["stats"]["unique_graphs"]
    yield lambda: counters["stats"]["unique_graphs"] - before
    ops.joined.cache_clear()


def test_joined_steps_are_compiled_for_any_number_of_tokens_and_any_layer_at_once(joining):
    def layers(tokens: int) -> None:
        for norm in norms:
            hidden = torch.randn(tokens, 16, requires_grad=True)
            ops.dropout_add_norm(hidden, bias, torch.randn(tokens, 16), norm, 0.1).sum().backward()
            ops.bias_gelu(hidden, bias).sum().backward()

    norms, bias = [layer_norm(16) for _ in range(3)], torch.randn(16, requires_grad=True)
    layers(7)
    layers(11)
    warm = joining()
    assert warm
    for tokens in (5, 300, 64, 12, 2):
        layers(tokens)
    assert joining() == warm


def test_joined_steps_are_the_plain_ones(joining, monkeypatch):
    norm = layer_norm(16)
    leaves = [torch.randn(9, 16, requires_grad=True), torch.randn(16, requires_grad=True), torch.randn(9, 16, requires_grad=True)]
    weight = torch.randn(9, 16)

    def all_of() -> list[torch.Tensor]:
        hidden, bias, residual = leaves
        added = ops.dropout_add_norm(hidden, bias, residual, norm, 0.0)
        return gradients(added, [*leaves, *norm.parameters()], weight) + gradients(
            ops.bias_gelu(hidden, bias), leaves[:2], weight
        )

    found = all_of()
    assert joining()
    monkeypatch.setattr(ops, "joins", lambda hidden: False)
    assert_near(found, all_of())
