"""The forward pass of post-norm transformers over a stream, written out: BERT and what was made after it, and BART.

Modules and weights stay Transformers' own. What differs from their forward pass is what is *not* computed: padding, attention
between different sequences, and the last layer for tokens that no head reads. Transformers' own attention, given a stream, would
let sequences see each other (only its FlashAttention knows where they end).

Letters: n tokens of a stream, k of them that heads read, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import GELUActivation

from prefinetune import attention_interface
from prefinetune.ops import Bounds, attend, bias_gelu, drop, dropout_add_norm

if TYPE_CHECKING:
    from prefinetune.batch import Batch

Noise = Callable[[torch.Tensor, int], torch.Tensor]  # (keys of tokens [...], d) -> noise for their embeddings [..., d]

BERT = ("bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta")
ROBERTA = ("camembert", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl")  # count from behind the padding id


class Attention(NamedTuple):
    """One attention of a layer, whatever its class calls the parts; rates are 0 outside training."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    norm: nn.LayerNorm
    heads: int
    dropout: float  # of the weights
    output_dropout: float


class FeedForward(NamedTuple):
    up: nn.Linear
    activation: nn.Module
    down: nn.Linear
    norm: nn.LayerNorm
    inner_dropout: float
    output_dropout: float


class Layer(NamedTuple):
    attention: Attention
    cross: Attention | None  # to the encoder, in a decoder
    feed_forward: FeedForward


def reads_streams(config: Any, recompute: bool = False) -> bool:
    """Whether the architecture is written out here, or can be read through Transformers' own modules (which, called again in
    backward, would no longer know of the stream)."""
    if recompute and config.model_type in attention_interface.MODEL_TYPES:
        return False
    if config.model_type == "bart":
        return not (config.encoder_layerdrop or config.decoder_layerdrop)
    known = config.model_type in (*BERT, "distilbert", *attention_interface.MODEL_TYPES)
    unknown = ("is_causal", "is_decoder", "use_task_id")
    return (
        known
        and not any(getattr(config, name, False) for name in unknown)
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


def encode(trunk: Any, batch: Batch, noise: Noise | None = None, recompute: bool = False) -> torch.Tensor:
    """The states [k, d] of the tokens that heads read. `noise` goes on the token embeddings of sequences that are copies; with
    `recompute`, what layers make is computed again in backward instead of being kept."""
    config = trunk.config
    words = with_noise(trunk.get_input_embeddings()(batch.ids), batch, noise)
    if config.model_type in ROBERTA:
        positions = roberta_positions(batch.ids, batch.bounds, config.pad_token_id)
    else:
        positions = batch.bounds.places()
    if config.model_type in attention_interface.MODEL_TYPES:
        hidden = attention_interface.run(trunk, words, positions, batch.token_types, batch.bounds)
        return hidden.index_select(0, batch.kept)
    table = trunk.embeddings
    hidden = words + table.position_embeddings(positions)
    if hasattr(table, "token_type_embeddings"):
        types = torch.zeros_like(batch.ids) if batch.token_types is None else batch.token_types
        hidden = hidden + table.token_type_embeddings(types)
    hidden = drop(table.LayerNorm(hidden), rate(table.dropout))
    if hasattr(trunk, "embeddings_project"):  # ELECTRA
        hidden = trunk.embeddings_project(hidden)
    *layers, last = distilbert_layers(trunk) if config.model_type == "distilbert" else bert_layers(trunk)
    run = runner(recompute)
    for layer in layers:
        hidden = run(encoder_layer, layer, hidden, batch.bounds)
    hidden = add_attention(last.attention, hidden.index_select(0, batch.kept), hidden, batch.kept_bounds, batch.bounds)
    return add_feed_forward(last.feed_forward, hidden)


def encode_and_decode(
    trunk: Any, batch: Batch, noise: Noise | None = None, recompute: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder's states [k, d] of the tokens that heads read, and the encoder's [n, d]; the encoder's twice where there is
    nothing for the decoder to read. `noise` goes on what the encoder reads."""
    memory = embed(
        trunk.encoder, batch.ids, batch.bounds, lambda words: with_noise(words, batch, noise, trunk.encoder.embed_tokens)
    )
    run = runner(recompute)
    for layer in bart_layers(trunk.encoder):
        memory = run(encoder_layer, layer, memory, batch.bounds)
    if batch.outputs is None or batch.output_bounds is None:
        return memory, memory
    bounds = batch.output_bounds
    hidden = embed(trunk.decoder, shifted(batch.outputs, bounds, trunk.config.decoder_start_token_id), bounds)
    layers = bart_layers(trunk.decoder)
    for number, layer in enumerate(layers, 1):
        kept = (batch.kept, batch.kept_bounds) if number == len(layers) else None
        hidden = run(decoder_layer, layer, hidden, bounds, memory, batch.bounds, kept)
    return hidden, memory


def pool(trunk: Any, hidden: torch.Tensor) -> torch.Tensor | None:
    """What a trunk's pooler makes of the states of sentences, [b, d] both; None where it has none."""
    pooler = getattr(trunk, "pooler", None)
    if pooler is None:
        return None
    if isinstance(pooler, nn.Linear):  # ALBERT
        return trunk.pooler_activation(pooler(hidden))
    return pooler(hidden[:, None])  # it takes the first token of whole sequences


# ---- a layer, and its two halves


def runner(recompute: bool) -> Callable[..., torch.Tensor]:
    """What calls layers."""
    if recompute and torch.is_grad_enabled():
        return partial(checkpoint, use_reentrant=False)
    return lambda layer, *given: layer(*given)


def encoder_layer(layer: Layer, hidden: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    return add_feed_forward(layer.feed_forward, add_attention(layer.attention, hidden, hidden, bounds, bounds))


def decoder_layer(
    layer: Layer,
    hidden: torch.Tensor,
    bounds: Bounds,
    memory: torch.Tensor,
    memory_bounds: Bounds,
    kept: tuple[torch.Tensor, Bounds] | None,
) -> torch.Tensor:
    """`kept`: the tokens that go on after attention to those before, where it is not all of them."""
    hidden = add_attention(layer.attention, hidden, hidden, bounds, bounds, causal=True)
    if kept is not None:
        hidden, bounds = hidden.index_select(0, kept[0]), kept[1]
    assert layer.cross is not None
    hidden = add_attention(layer.cross, hidden, memory, bounds, memory_bounds)
    return add_feed_forward(layer.feed_forward, hidden)


def add_attention(
    part: Attention, hidden: torch.Tensor, seen: torch.Tensor, queries: Bounds, keys: Bounds, causal: bool = False
) -> torch.Tensor:
    """norm(hidden + attention of hidden to what is seen), [n, d]."""
    query, key, value = (
        project(states).unflatten(-1, (part.heads, -1))
        for project, states in ((part.query, hidden), (part.key, seen), (part.value, seen))
    )
    scale = query.shape[-1] ** -0.5
    attended = attend(query, key, value, queries, keys, scale=scale, dropout=part.dropout, causal=causal)
    return project_add_norm(part.output, attended.flatten(1), hidden, part.norm, part.output_dropout)


def add_feed_forward(part: FeedForward, hidden: torch.Tensor) -> torch.Tensor:
    """norm(hidden + feed-forward of hidden), [n, d]."""
    if isinstance(part.activation, GELUActivation):
        inner = bias_gelu(*apart(part.up, hidden))
    else:
        inner = part.activation(part.up(hidden))
    return project_add_norm(part.down, drop(inner, part.inner_dropout), hidden, part.norm, part.output_dropout)


def project_add_norm(
    project: nn.Linear, inner: torch.Tensor, residual: torch.Tensor, norm: nn.LayerNorm, dropout: float
) -> torch.Tensor:
    return dropout_add_norm(*apart(project, inner), residual, norm, dropout)


def apart(project: nn.Linear, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a linear layer makes of [n, d] but for its bias, and the bias, which the next step adds in passing. One that is more
    than a matrix (LoRA's) is called as it is, and leaves nothing to add."""
    if type(project) is nn.Linear:
        return nn.functional.linear(hidden, project.weight), project.bias
    return project(hidden), torch.zeros_like(project.bias)


# ---- where each architecture keeps its parts


def rate(module: Any, p: float | None = None) -> float:
    """The dropout rate of a module now; `p`, if given, where it is no module of its own but part of one."""
    return (module.p if p is None else p) if module.training else 0.0


def bert_layers(trunk: Any) -> list[Layer]:
    return [
        Layer(
            Attention(
                layer.attention.self.query, layer.attention.self.key, layer.attention.self.value,
                layer.attention.output.dense, layer.attention.output.LayerNorm, layer.attention.self.num_attention_heads,
                rate(layer.attention.self.dropout), rate(layer.attention.output.dropout),
            ),
            None,
            FeedForward(
                layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense, layer.output.LayerNorm,
                0.0, rate(layer.output.dropout),
            ),
        )
        for layer in trunk.encoder.layer
    ]  # fmt: skip


def distilbert_layers(trunk: Any) -> list[Layer]:
    return [
        Layer(
            Attention(
                layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin, layer.attention.out_lin,
                layer.sa_layer_norm, layer.attention.n_heads, rate(layer.attention.dropout), 0.0,
            ),
            None,
            FeedForward(
                layer.ffn.lin1, layer.ffn.activation, layer.ffn.lin2, layer.output_layer_norm, 0.0, rate(layer.ffn.dropout),
            ),
        )
        for layer in trunk.transformer.layer
    ]  # fmt: skip


def bart_layers(stack: Any) -> list[Layer]:
    """Of BART's encoder or its decoder."""

    def attention(layer: Any, part: Any, norm: nn.LayerNorm) -> Attention:
        weights, output = rate(layer, part.dropout), rate(layer, layer.dropout)
        return Attention(part.q_proj, part.k_proj, part.v_proj, part.out_proj, norm, part.num_heads, weights, output)

    return [
        Layer(
            attention(layer, layer.self_attn, layer.self_attn_layer_norm),
            attention(layer, layer.encoder_attn, layer.encoder_attn_layer_norm) if hasattr(layer, "encoder_attn") else None,
            FeedForward(
                layer.fc1, layer.activation_fn, layer.fc2, layer.final_layer_norm,
                rate(layer, layer.activation_dropout), rate(layer, layer.dropout),
            ),
        )
        for layer in stack.layers
    ]  # fmt: skip


def embed(
    stack: Any, ids: torch.Tensor, bounds: Bounds, change: Callable[[torch.Tensor], torch.Tensor] = lambda words: words
) -> torch.Tensor:
    """What BART's encoder or decoder starts from, [n, d]."""
    table = stack.embed_positions
    positions = nn.functional.embedding(bounds.places() + table.offset, table.weight)
    hidden = stack.layernorm_embedding(change(stack.embed_tokens(ids)) + positions)
    return drop(hidden, rate(stack, stack.dropout))


def shifted(outputs: torch.Tensor, bounds: Bounds, start_id: int) -> torch.Tensor:
    """What a decoder reads in order to write `outputs` [n]: each sequence one token later, its start token first."""
    return torch.where(bounds.places() == 0, start_id, outputs.roll(1))


def roberta_positions(ids: torch.Tensor, bounds: Bounds, padding_id: int) -> torch.Tensor:
    """RoBERTa counts from behind the padding id, and passes over padding (which a text may contain, spelled out)."""
    real = (ids != padding_id).long()
    counted = real.cumsum(0)
    before = bounds.of_each_token((counted - real)[bounds.starts.long()])
    return (counted - before) * real + padding_id


def with_noise(words: torch.Tensor, batch: Batch, noise: Noise | None, table: nn.Module | None = None) -> torch.Tensor:
    """Token embeddings [n, d], with noise on those of copies. Gradients flow through both."""
    if noise is None:
        return words
    clean, copies = words[: batch.clean_tokens], words[batch.clean_tokens :]
    # Some tables scale what they look up; the noise is on what is looked up.
    made = noise(batch.noise_keys(), copies.shape[-1])
    return torch.cat([clean, copies + made * getattr(table, "embed_scale", 1.0)])
