"""The operations a transformer layer is made of, on a stream: the tokens of many sequences end to end, without padding.

Each has a plain PyTorch form, which defines what it computes, and on CPUs a compiled one (see `native`) that is used where it
could be built and takes the inputs at hand. On GPUs attention is FlashAttention (Dao 2023, arXiv 2307.08691), which PyTorch
brings, and `torch.compile` joins the steps of the rest.

Letters: n tokens of a stream, m tokens that it attends to, s sequences, h heads, e size of a head, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from prefinetune import native


class Bounds(NamedTuple):
    """Where the sequences of a stream lie: sequence i is tokens `ends[i]` up to `ends[i + 1]`, FlashAttention's cu_seqlens."""

    ends: torch.Tensor  # [s + 1] int32, from 0 to n
    longest: int
    total: int  # n

    @classmethod
    def of(cls, lengths: np.ndarray) -> Bounds:
        """Of sequences of these lengths [s]."""
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return cls(torch.from_numpy(ends), int(lengths.max(initial=0)), int(ends[-1]))

    @property
    def starts(self) -> torch.Tensor:
        """[s] the first token of each."""
        return self.ends[:-1]

    @property
    def lengths(self) -> torch.Tensor:
        """[s] tokens of each."""
        return self.ends[1:] - self.ends[:-1]

    def places(self) -> torch.Tensor:
        """[n] of each token, its place in its sequence."""
        return torch.arange(self.total, device=self.ends.device) - self.of_each_token(self.starts)

    def of_each_token(self, values: torch.Tensor) -> torch.Tensor:
        """What each sequence has [s, ...], for each token [n, ...]."""
        return values.repeat_interleave(self.lengths, 0, output_size=self.total)

    def mask(self) -> torch.Tensor:
        """[s, longest] whether there is a token, were the sequences padded to the longest."""
        return torch.arange(self.longest, device=self.ends.device) < self.lengths[:, None]

    def spread(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """Values of tokens [n, ...] in a rectangle [s, longest, ...]."""
        padded = values.new_full((len(self.lengths), self.longest, *values.shape[1:]), fill)
        padded[self.of_each_token(torch.arange(len(self.lengths), device=self.ends.device)), self.places()] = values
        return padded

    def to(self, device: torch.device | str) -> Bounds:
        return self._replace(ends=move(self.ends, device))


def move(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor on a device; on its way there, if that is a GPU, from pinned memory, so that nobody waits for it."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Bounds,
    keys: Bounds,
    *,
    scale: float,
    dropout: float = 0.0,
    causal: bool = False,
    window: int | None = None,
) -> torch.Tensor:
    """softmax(query key^T x scale) value within each sequence; no token sees another sequence.

    Args:
        query: [n, h, e]; sequence i of it attends to sequence i of the keys.
        key: [m, h, e].
        value: [m, h, e].
        queries: where sequences lie in `query`; a sequence may have none.
        keys: where they lie in `key` and `value`.
        dropout: of attention weights.
        causal: a token sees itself and those before it; both sides must have equal lengths.
        window: a token sees those at most this far on either side; both sides must have equal lengths.

    Returns:
        [n, h, e].
    """
    if native.takes(query, key, value):
        return native.attend(query, key, value, queries.ends, keys.ends, scale, dropout, causal, window)
    if precision := flash_precision(query):
        query, key, value = (states.to(precision) for states in (query, key, value))
        return attend_by_flash(query, key, value, queries, keys, scale=scale, dropout=dropout, causal=causal, window=window)
    return attend_in_groups(query, key, value, queries, keys, scale=scale, dropout=dropout, causal=causal, window=window)


def dropout_add_norm(
    hidden: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    norm: torch.nn.LayerNorm,
    dropout: float,
) -> torch.Tensor:
    """norm(residual + dropout(hidden + bias)), [n, d]: what follows both halves of a post-norm layer."""
    if native.takes(hidden, bias, residual, norm.weight, norm.bias):
        return native.dropout_add_norm(hidden, bias, residual, norm.weight, norm.bias, norm.eps, dropout)
    run = joined(plain_dropout_add_norm) if joins(hidden) else plain_dropout_add_norm
    return run(hidden, bias, residual, norm.weight, norm.bias, norm.eps, dropout)


def bias_gelu(hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(hidden + bias), the exact form with erf, [n, d]."""
    if native.takes(hidden, bias):
        return native.bias_gelu(hidden, bias)
    return (joined(plain_bias_gelu) if joins(hidden) else plain_bias_gelu)(hidden, bias)


def drop(hidden: torch.Tensor, dropout: float) -> torch.Tensor:
    """Dropout, [n, d]."""
    if dropout and native.takes(hidden):
        return native.drop(hidden, dropout)
    return functional.dropout(hidden, dropout)


# ---- on GPUs


def plain_dropout_add_norm(
    hidden: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor,
    epsilon: float,
    dropout: float,
) -> torch.Tensor:
    summed = residual + functional.dropout(hidden + bias, dropout)
    return functional.layer_norm(summed, summed.shape[-1:], weight, shift, epsilon)


def plain_bias_gelu(hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.gelu(hidden + bias)


def joins(hidden: torch.Tensor) -> bool:
    """Whether steps are joined into one pass over memory: on GPUs for which kernels can be made."""
    return hidden.is_cuda and has_triton()


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def joined(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A function compiled for any number of tokens, once, the first time that it meets a second number of them: its kernels do
    not depend on the number, so that streams need no fixed length and nothing is compiled again. Parameters are arguments,
    not modules, so that all layers share them."""
    return torch.compile(function)


def flash_precision(query: torch.Tensor) -> torch.dtype | None:
    """The half precision in which FlashAttention would take a query [n, h, e]; None where it does not."""
    if query.device.type != "cuda" or not flash_works(query.device.index) or query.shape[-1] % 8 or query.shape[-1] > 128:
        return None
    precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    return precision if precision in (torch.float16, torch.bfloat16) else None


def flash_works(device: int) -> bool:
    """Whether PyTorch was built with FlashAttention, and a GPU is of a kind that runs it (from Ampere on)."""
    built = torch.version.cuda is not None and torch.backends.cuda.is_flash_attention_available()
    return built and torch.cuda.get_device_capability(device) >= (8, 0)


def attend_by_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Bounds,
    keys: Bounds,
    *,
    scale: float,
    dropout: float = 0.0,
    causal: bool = False,
    window: int | None = None,
) -> torch.Tensor:
    """`attend` by the operator behind `torch.nn.attention.varlen.varlen_attn`, which itself takes no dropout."""
    left, right = (None, None) if window is None else (window, 0 if causal else window)
    attended, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, queries.ends, keys.ends, queries.longest, keys.longest, dropout, causal, False, scale=scale,
        window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return attended


# ---- attention in plain PyTorch

GROUP = 1.15  # how many times longer the longest sequence of a group may be than the shortest


def attend_in_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Bounds,
    keys: Bounds,
    *,
    scale: float,
    dropout: float = 0.0,
    causal: bool = False,
    window: int | None = None,
) -> torch.Tensor:
    """`attend`, with sequences of similar lengths padded to the longest of them and given to PyTorch's attention together."""
    rows, outputs = [], []
    for group in groups_of(queries.lengths.cpu().numpy(), keys.lengths.cpu().numpy()):
        asked, seen = Rectangle.of(queries, group), Rectangle.of(keys, group)
        allowed = seen.real[:, None]  # [g, 1 or i, j]
        if causal or window is not None:
            ahead = torch.arange(seen.longest, device=query.device) - torch.arange(asked.longest, device=query.device)[:, None]
            if causal:
                allowed = allowed & (ahead <= 0)
            if window is not None:
                allowed = allowed & (ahead.abs() <= window)
            allowed = allowed | ~asked.real[:, :, None]  # a padded query must see something: softmax over nothing is not a number
        mask = None if bool(allowed.all()) else allowed[:, None]
        parts = (asked.take(query), seen.take(key), seen.take(value))  # [g, h, i or j, e] each
        attended = functional.scaled_dot_product_attention(*parts, attn_mask=mask, dropout_p=dropout, scale=scale)
        rows.append(asked.tokens[asked.real])
        outputs.append(attended.transpose(1, 2)[asked.real])
    return torch.cat(outputs)[torch.cat(rows).argsort()] if rows else query


def groups_of(queries: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """Sequences that are padded together: of about as many queries, and of about as many keys; those without queries in none."""
    bins = [np.log(np.maximum(lengths, 1)) // np.log(GROUP) for lengths in (queries, keys)]
    order = np.lexsort((keys, queries, *bins))
    order = order[queries[order] > 0]
    changes = np.flatnonzero(np.any([np.diff(bin[order]) != 0 for bin in bins], axis=0)) + 1
    return [group for group in np.split(order, changes) if len(group)]


class Rectangle(NamedTuple):
    """Some sequences of a stream, padded to the longest of them."""

    tokens: torch.Tensor  # [g, longest] their places in the stream; where there is none, the sequence's first
    real: torch.Tensor  # [g, longest] whether there is one
    longest: int

    @classmethod
    def of(cls, bounds: Bounds, group: np.ndarray) -> Rectangle:
        chosen = torch.from_numpy(group).to(bounds.ends.device)
        starts, lengths = bounds.starts[chosen][:, None], bounds.lengths[chosen][:, None]
        longest = int(lengths.max())
        place = torch.arange(longest, device=bounds.ends.device)
        real = place < lengths
        return cls(starts + torch.where(real, place, 0), real, longest)

    def take(self, stream: torch.Tensor) -> torch.Tensor:
        """[n, h, e] as [g, h, longest, e]."""
        return stream[self.tokens].transpose(1, 2)
