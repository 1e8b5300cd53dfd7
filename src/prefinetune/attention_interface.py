"""Streams through Transformers' own modules, for architectures that let their attention be replaced and be told positions.

Transformers takes any function as a model's attention. Ours attends within the sequences of a stream; the rest of the forward
pass is the model's own, on one row of n tokens. What `stream` writes out is faster, as it joins steps and leaves out the last
layer for tokens that no head reads; this takes no line per architecture.

An architecture belongs here if its layers hand keyword arguments down to their attention, and if nothing else in it looks at a
token's neighbours: MobileBERT's embeddings do, and would join the end of one sequence to the beginning of the next.

Letters: n tokens of a stream, h heads, e size of a head, d hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

from prefinetune.ops import Bounds, attend

MODEL_TYPES = ("albert", "modernbert", "roberta-prelayernorm", "xlm-roberta-xl")
NAME = "prefinetune"  # Transformers makes no mask for an attention that it has no mask of


def run(
    trunk: Any, words: torch.Tensor, positions: torch.Tensor, token_types: torch.Tensor | None, bounds: Bounds
) -> torch.Tensor:
    """The states [n, d] that a trunk makes of token embeddings [n, d], position ids [n] and token types [n]."""
    types = {} if token_types is None else {"token_type_ids": token_types[None]}
    with attending(trunk.config):
        output = trunk(inputs_embeds=words[None], position_ids=positions[None], bounds=bounds, **types)
    return output.last_hidden_state[0]


@contextmanager
def attending(config: Any) -> Iterator[None]:
    """Within, a model's attention is ours; before and after, as who loads, saves or copies it finds it, its own."""
    own = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own


def attend_within_sequences(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: None,
    *,
    scaling: float,
    bounds: Bounds,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`attend` in the form that Transformers calls.

    Args:
        query: [1, h, n, e].
        key: [1, h, n, e].
        value: [1, h, n, e].
        sliding_window: how far a token sees on either side, itself counted.

    Returns:
        [1, n, h, e], and no weights.
    """
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    window = None if sliding_window is None else sliding_window - 1
    return attend(query, key, value, bounds, bounds, scale=scaling, dropout=dropout, window=window)[None], None


AttentionInterface.register(NAME, attend_within_sequences)
