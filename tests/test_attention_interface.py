"""Streams through Transformers' own modules: what is special to it. That loss and gradient are right is in `test_stream.py`."""

import json

import numpy as np
import pytest
import torch
import transformers

from prefinetune import attention_interface
from prefinetune.attention_interface import MODEL_TYPES, NAME, attending
from prefinetune.batch import make_batch
from prefinetune.export import assemble
from prefinetune.stream import reads_streams
from test_stream import (
    assert_near,
    kernel,  # noqa: F401
    layout_of,
    make_drawn,
    make_model,
    plain,
    read_alone,
    states_of,
    step,
    token_types,
)


def packed(model, drawn):
    return make_batch(drawn, layout_of(model, packed=True))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("albert", {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}),  # layers that share weights
        ("modernbert", {"classifier_pooling": "mean"}),
        ("modernbert", {"local_attention": 128}),  # farther than any sequence here is long
        ("modernbert", {"global_attn_every_n_layers": 1, "norm_bias": True, "attention_bias": True}),
    ],
)
def test_variants_of_an_architecture_have_transformers_loss_and_gradient(name, settings, kernel):  # noqa: F811
    model = make_model(name, **settings)
    drawn = make_drawn(model)
    expected_loss, expected = plain(model, drawn)
    loss, found = step(model, drawn, layout_of(model, packed=True))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_near(found, expected)


@pytest.mark.parametrize("width", [2, 8, 16])
@torch.no_grad()
def test_a_local_layer_of_modernbert_sees_half_its_width_on_either_side(width, kernel):  # noqa: F811
    """One such layer: a token's state changes with the words at most width // 2 away, and with no others."""
    layer = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "local_attention": width}
    model = make_model("modernbert", tasks=("words",), **layer).eval()
    one, *_ = make_drawn(model, count=1)
    ids = np.arange(5, 35, dtype=np.uint16)
    one.example.sequences[0] = ids
    _, ((before,),) = states_of(model, [one])
    for place in (0, 13, 29):
        one.example.sequences[0] = np.where(np.arange(30) == place, 40, ids).astype(np.uint16)
        _, ((after,),) = states_of(model, [one])
        moved = (before != after).any(-1).nonzero()[:, 0].tolist()
        assert moved == list(range(max(0, place - width // 2), min(30, place + width // 2 + 1)))


@torch.no_grad()
def test_mobileberts_embeddings_would_mix_neighbours_so_that_it_is_padded():
    model = make_model("mobilebert", tasks=("words",), embedding_size=32, intra_bottleneck_size=32).eval()
    assert not reads_streams(model.backbone.config)
    batch = make_batch(make_drawn(model, count=2), layout_of(model, packed=False))
    trunk, second, found = model.backbone.trunk, int(batch.bounds.starts[1]), []
    for word in (7, 8):
        ids = torch.where(torch.arange(batch.bounds.total) == second, word, batch.ids)
        words = trunk.get_input_embeddings()(ids)
        found.append(attention_interface.run(trunk, words, batch.bounds.places(), None, batch.bounds)[:second])
    assert not torch.equal(*found)  # states of the first sequence, of which no word was changed


@pytest.mark.parametrize("name", MODEL_TYPES)
@pytest.mark.parametrize("settings", [{"is_decoder": True}, {"is_causal": True}])
def test_models_that_look_only_back_are_left_to_transformers(name, settings):
    assert reads_streams(transformers.AutoConfig.for_model(name))
    assert not reads_streams(transformers.AutoConfig.for_model(name, **settings))


# ---- the model keeps its own attention


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_a_model_has_its_own_attention_before_and_after_a_forward_pass_also_one_that_fails(own):
    model = make_model("modernbert", tasks=("topic",))
    config, seen = model.backbone.config, []
    model.backbone.trunk.set_attn_implementation(own)
    model.backbone.trunk.final_norm.register_forward_pre_hook(lambda *_: seen.append(config._attn_implementation))
    model.backbone(packed(model, make_drawn(model)))
    assert (seen, config._attn_implementation) == ([NAME], own)
    with pytest.raises(ZeroDivisionError), attending(config):
        1 / 0  # noqa: B018
    assert config._attn_implementation == own


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_no_mask_is_made_for_a_stream(name, monkeypatch):
    """It would have as many places as tokens times tokens."""
    masks, implementations = [], transformers.AttentionInterface._global_mapping
    own = implementations[NAME]
    monkeypatch.setitem(implementations, NAME, lambda *given, **how: masks.append(given[4]) or own(*given, **how))
    model = make_model(name, tasks=("topic",))
    model.backbone(packed(model, make_drawn(model)))
    assert len(masks) > 0
    assert set(masks) == {None}


@pytest.mark.parametrize("name", MODEL_TYPES)
@torch.no_grad()
def test_what_is_saved_is_a_plain_model_with_equal_logits_and_says_nothing_of_attention(name, tmp_path):
    model = make_model(name, tasks=("topic",)).eval()
    ((segment, logits, _),) = model(packed(model, make_drawn(model)))
    assemble(model, "topic").save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    assert NAME not in config
    assert "attn_implementation" not in json.loads(config)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    for example, expected in zip(segment.examples, logits, strict=True):
        alone = read_alone(loaded, example.sequences[0], example.first[0], None, token_types(model))
        torch.testing.assert_close(alone.logits[0], expected, rtol=1e-4, atol=1e-5)
