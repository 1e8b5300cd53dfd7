"""Streams: loss and gradient of an update are those of plain Transformers on each example alone, and no sequence sees another.

Letters: n tokens of a stream, s sequences, h heads, e size of a head, d hidden size.
"""

import math
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

import microworld
from prefinetune import native, stream
from prefinetune.attention_interface import MODEL_TYPES
from prefinetune.batch import Drawn, divide, keep, make_batch, micro_batches
from prefinetune.config import LoraSettings, ObjectiveSettings
from prefinetune.errors import InputError
from prefinetune.families import (
    Choice,
    Classification,
    Denoising,
    Encoded,
    Generation,
    MultiLabel,
    Regression,
    Span,
    Tagging,
)
from prefinetune.lora import adapt
from prefinetune.model import MultiTask
from prefinetune.ops import GROUP, Bounds, Rectangle, attend_in_groups, groups_of
from prefinetune.pretrained import ENCODER_DECODERS, ENCODERS, backbone_class
from prefinetune.stream import reads_streams, roberta_positions
from prefinetune.tokenizer import Tokenizer
from prefinetune.update import update

VOCABULARY, PAD, END = 60, 1, 2
PLAIN = ObjectiveSettings()
NO_DROPOUT = {"hidden": 0.0, "attention": 0.0, "activation": 0.0, "head": 0.0}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More cost time on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ADAPTED = {
    "roberta": {"query", "key", "value", "dense"}, "distilbert": {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"},
    "bart": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}, "modernbert": {"Wqkv", "Wi", "Wo"},
    "t5": {"q", "k", "v", "o", "wi", "wo"},
}  # fmt: skip


@pytest.fixture(params=["plain", "native"])
def kernel(request, monkeypatch):
    """The operations in plain PyTorch, or the compiled ones, which then must have been used."""
    used = []
    if request.param == "plain":
        monkeypatch.setattr(native, "takes", lambda *_: False)
    elif not native.takes(torch.zeros(8, 2, 32)):
        pytest.skip("the compiled operations are not available here")
    else:
        compiled = native.attend
        monkeypatch.setattr(native, "attend", lambda *given: used.append(1) or compiled(*given))
    yield request.param
    assert used or request.param == "plain"


# ---- the architectures

SPECIALS = {"bos_token_id": 0, "pad_token_id": PAD, "eos_token_id": END}
SHAPE = SPECIALS | {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96,
    "max_position_embeddings": 48, "initializer_range": 0.2,
}  # fmt: skip
BART_SHAPE = SPECIALS | {
    "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 48, "init_std": 0.2,
    "decoder_start_token_id": END,
}  # fmt: skip
SHAPES = {
    "albert": SHAPE | {"embedding_size": 48},
    "electra": SHAPE | {"embedding_size": 48},
    "modernbert": SHAPE | {"local_attention": 8, "num_hidden_layers": 4},
    "distilbert": SPECIALS | {
        "vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 96, "max_position_embeddings": 48,
        "initializer_range": 0.2,
    },
    "bart": BART_SHAPE,
    "mbart": BART_SHAPE | {"scale_embedding": True},
    "t5": SPECIALS | {
        "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 32, "d_ff": 96, "num_layers": 2, "num_heads": 2,
        "decoder_start_token_id": PAD,
    },
    "deberta-v2": SHAPE | {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]},
} | {name: SHAPE | {"type_vocab_size": 1} for name in stream.ROBERTA}  # fmt: skip
# Every architecture that is read as a stream is compared below, whatever it is called.
ACCEPTED = (*ENCODERS, *ENCODER_DECODERS)
STREAMED = [name for name in ACCEPTED if reads_streams(transformers.AutoConfig.for_model(name))]
WRITTEN_OUT = [name for name in STREAMED if name not in MODEL_TYPES]
PADDED = ("deberta-v2", "mpnet", "mbart", "t5")


def config_of(name, rates=NO_DROPOUT, **settings):
    """A configuration of two layers x 64 with dropout in some of the places that there are."""
    config = transformers.AutoConfig.for_model(name, **SHAPES.get(name, SHAPE) | settings)
    places = {
        "hidden": ("hidden_dropout_prob", "dropout", "dropout_rate", "embedding_dropout", "mlp_dropout"),
        "attention": ("attention_probs_dropout_prob", "attention_dropout"),
        "activation": ("activation_dropout",),
        "head": ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "qa_dropout", "summary_last_dropout"),
    }
    found = {field: rates[place] for place, fields in places.items() for field in fields if hasattr(config, field)}
    config.update(found)
    return config


FAMILIES = {
    "topic": Classification("text", labels=("a", "b", "c")),
    "several": MultiLabel("text", labels=("a", "b", "c", "d")),
    "likeness": Regression("text", low=-2, high=3),
    "story": Choice("text", "options"),
    "reading": Span("question", "context"),
    "tags": Tagging("tokens", labels=("O", "B", "I")),
    "words": Denoising("text"),
    "summary": Generation("text", "target"),
}


def tasks_of(config):
    """Those for which the architecture has a head."""
    known = backbone_class(config).AUTO_MODELS

    def has_head(family):
        return type(config) in getattr(transformers, known[family.head_kind])._model_mapping

    absent = ("tags",) if config.is_encoder_decoder else ("summary",)
    return tuple(task for task, family in FAMILIES.items() if task not in absent and has_head(family))


def make_model(name, rates=NO_DROPOUT, tasks=None, **settings):
    """A model on all tasks that its architecture knows."""
    config = config_of(name, rates, **settings)
    torch.manual_seed(0)
    trunk = transformers.AutoModel.from_config(config)
    with torch.no_grad():  # biases and norms that start at 0 and 1 would hide what is left out
        for parameter in trunk.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return MultiTask(backbone_class(config)(trunk), {task: FAMILIES[task] for task in tasks or tasks_of(config)})


def layout_of(model, packed):
    return microworld.layout(model, packed, token_types(model))


def token_types(model):
    return getattr(model.backbone.config, "type_vocab_size", 0) > 1


# ---- examples


def sequence(generator, least=6, most=26):
    """<s> words </s>, sometimes with an end of sequence or a padding id within, as a text may spell them out."""
    ids = np.array([0, *generator.integers(5, VOCABULARY, generator.integers(least, most)), END], dtype=np.uint16)
    if len(ids) > 4 and generator.random() < 0.3:
        ids[generator.integers(1, len(ids) - 1)] = generator.choice([PAD, END])
    return ids


def make_example(generator, task, source, decodes):
    rows = {"story": 2 + source % 3, "tags": 1 + source % 2}.get(task, 1)
    sequences = [sequence(generator) for _ in range(rows)]
    places = generator.choice(6, 1 + source % 3, replace=False)
    windows = generator.integers(0, rows, 3)
    target = {
        "topic": [source % 3],
        "several": generator.integers(0, 2, 4),
        "likeness": [generator.random()],
        "story": [source % rows],
        "reading": [1, 4],
        "tags": [*windows, *(generator.integers(0, len(sequences[at])) for at in windows), *generator.integers(0, 3, 3)],
        "words": [] if decodes else [*places, *sequences[0][places]],
        "summary": [],
    }[task]
    kind = np.float32 if task == "likeness" else np.int64
    output = {"words": sequence(generator), "summary": sequence(generator, 0, 9)}.get(task) if decodes else None
    first = [int(generator.integers(1, len(ids) + 1)) for ids in sequences]
    return Encoded(sequences, first, np.array(target, dtype=kind), source, output=output)


def make_drawn(model, tasks=None, count=3, noised=False, seed=0):
    """Examples of some tasks in any order, each of another weight."""
    generator, decodes = np.random.default_rng(seed), model.backbone.config.is_encoder_decoder
    drawn = []
    for task in tasks or model.families:
        for source in range(count):
            example = make_example(generator, task, source, decodes)
            weight = float(generator.uniform(0.5, 2))
            drawn.append(Drawn(example, task, FAMILIES[task], weight, noised and source % 2 == 0, len(drawn)))
    total = sum(one.weight for one in drawn)
    return [drawn[at]._replace(weight=drawn[at].weight / total) for at in generator.permutation(len(drawn))]


# ---- the reference: each example alone through Transformers' own class, in float64


@contextmanager
def whole(model, task):
    """Transformers' model of a task: the head's class with the trunk in its place, so that gradients reach the same weights."""
    head, trunk = model.head(task), model.backbone.trunk
    for part in head.parts:
        setattr(head.model, part, getattr(trunk, part) if len(head.parts) > 1 else trunk)
    try:
        yield head.model
    finally:
        for part in head.parts:
            setattr(head.model, part, head.given)


def read_alone(one, ids, first, output, types):
    """What a Transformers model makes of one sequence without padding."""
    inputs = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if types:
        inputs["token_type_ids"] = (torch.arange(len(ids)) >= first).long()[None]
    if "MultipleChoice" in type(one).__name__:
        inputs = {name: value[None] for name, value in inputs.items()}
    if output is not None:
        inputs["labels"] = torch.from_numpy(output.astype(np.int64))[None]
    return one(**inputs)


def formula(family, alone, example):
    """Loss / log(outcomes) of one example from what was made of its sequences, as docs/method.md has it."""
    target = torch.from_numpy(example.target)
    if family.kind == "span":
        ends = torch.stack([alone[0].start_logits[0], alone[0].end_logits[0]])
        return -ends.log_softmax(-1)[[0, 1], target].mean() / math.log(ends.shape[1])
    logits = [one.logits[0] for one in alone]
    if family.kind == "regression":
        return 12 * (logits[0][0] - target[0]) ** 2
    if family.kind == "multi-label":
        p = logits[0].sigmoid()
        return -(target * p.log() + (1 - target) * (1 - p).log()).mean() / math.log(2)
    if family.kind == "choice":
        return -torch.cat(logits).log_softmax(-1)[target[0]] / math.log(len(logits))
    if family.kind == "classification":
        return -logits[0].log_softmax(-1)[target[0]] / math.log(len(logits[0]))
    if family.kind == "tagging":
        each = [-logits[window][place].log_softmax(-1)[tag] for window, place, tag in target.reshape(3, -1).T]
        return torch.stack(each).mean() / math.log(3)
    places, true = target.reshape(2, -1)
    if example.output is not None:
        places, true = slice(None), torch.from_numpy(example.output.astype(np.int64))
    log_p = logits[0][places].log_softmax(-1)
    smoothing = family.label_smoothing if family.kind == "generation" else 0.0
    each = (1 - smoothing) * log_p[torch.arange(len(true)), true] + smoothing * log_p.mean(-1)
    return -each.mean() / math.log(log_p.shape[1])


def plain(model, drawn):
    """(loss, gradients) of an update, one example after another."""
    model, total = deepcopy(model).double().train(), 0.0
    for one in drawn:
        with whole(model, one.task) as transformers_own:
            alone = [
                read_alone(transformers_own, ids, first, one.example.output, token_types(model))
                for ids, first in zip(one.example.sequences, one.example.first, strict=True)
            ]
        loss = one.weight * formula(one.family, alone, one.example)
        loss.backward()
        total += loss.item()
    return total, gradients(model)


@cache
def mixed(name):
    """(model, examples of all its families, loss, gradients)"""
    model = make_model(name)
    drawn = make_drawn(model)
    return model, drawn, *plain(model, drawn)


def gradients(model):
    return {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def norm_of(gradients):
    return math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))


def assert_near(found, expected, tolerance=1e-5):
    """Equal up to a share of the norm of all parameters together, and of each up to three times that share of its own (or of a
    hundredth of all, where it has less: the keys' biases have none but by rounding)."""
    assert found.keys() == expected.keys()
    apart = {name: found[name] - expected[name] for name in expected}
    norm = norm_of(expected)
    assert norm > 0
    assert norm_of(apart) <= tolerance * norm
    for name in expected:
        assert float(apart[name].norm()) <= 3 * tolerance * max(float(expected[name].norm()), 1e-2 * norm), name


def step(model, drawn, layout, budget=10_000, objective=PLAIN):
    """(loss, gradients) of an update that moves nothing."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    report = update(model, optimizer, micro_batches(drawn, budget, layout), 0.0, Accelerator(), objective)
    return report.loss, gradients(model)


# ---- loss and gradient


def test_the_usual_architectures_are_read_as_streams_and_others_are_not():
    """So that none of them is lost by a change of `reads_streams`, which is where the tests below take their names from."""
    assert {"bart", "bert", "camembert", "distilbert", "electra", "ernie", "roberta", "xlm-roberta"} == set(WRITTEN_OUT)
    assert {"albert", "modernbert", "roberta-prelayernorm", "xlm-roberta-xl"} == set(STREAMED) - set(WRITTEN_OUT)


@pytest.mark.parametrize(
    ("name", "task"), [(name, task) for name in STREAMED for task in tasks_of(transformers.AutoConfig.for_model(name))]
)
def test_a_familys_loss_and_gradient_are_those_of_transformers_own_class_on_each_example_alone(name, task, kernel):
    model = make_model(name, tasks=(task,))
    drawn = make_drawn(model, count=4)
    expected_loss, expected = plain(model, drawn)
    loss, found = step(model, drawn, layout_of(model, packed=True))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_near(found, expected)


@pytest.mark.parametrize("name", STREAMED)
def test_an_update_of_all_families_has_the_gradient_of_the_examples_alone_however_it_is_cut(name, kernel):
    model, drawn, expected_loss, expected = mixed(name)
    layout, numbers = layout_of(model, packed=True), set()
    for budget in (1, 100, 400, 10_000):
        loss, found = step(model, drawn, layout, budget)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert_near(found, expected)
        numbers.add(len(micro_batches(drawn, budget, layout)))
    assert len(numbers) == 4


@pytest.mark.parametrize("name", ["roberta", "distilbert", "bart", "modernbert", "t5"])
def test_with_adapters_an_update_has_the_gradient_of_pefts_layers_in_transformers_own_model(name):
    model = make_model(name)
    adapt(model.backbone, LoraSettings(rank=4, alpha=3), seed=0)
    trunk = {key: tensor for key, tensor in model.named_parameters() if key.startswith("backbone.")}
    with torch.no_grad():  # they start at zero, which would hide what is left out
        for key, tensor in trunk.items():
            if "lora_B" in key:
                tensor.normal_(0, 0.3)
    drawn = make_drawn(model)
    expected_loss, expected = plain(model, drawn)
    loss, found = step(model, drawn, layout_of(model, packed=name != "t5"))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_near(found, expected)
    learned = {key for key in trunk if key in found}
    assert learned <= {key for key in trunk if "lora_" in key}
    assert {key.rpartition(".lora_")[0].rpartition(".")[2] for key in learned} >= ADAPTED[name]


@pytest.mark.parametrize("name", STREAMED)
def test_in_float64_nothing_is_left_between_them_but_the_losses_float32(name):
    """A thousandth of the above: losses are computed in float32, states are not."""
    model, drawn, expected_loss, expected = mixed(name)
    loss, found = step(deepcopy(model).double(), drawn, layout_of(model, packed=True))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_near(found, expected, 1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bert", {"hidden_act": "relu", "layer_norm_eps": 0.1}),
        ("bert", {"hidden_act": "gelu_new", "num_hidden_layers": 1}),
        ("electra", {"embedding_size": 64}),  # nothing to project
        ("distilbert", {"activation": "relu", "sinusoidal_pos_embds": True}),
        ("bart", {"activation_function": "relu", "scale_embedding": True}),
        ("bart", {"activation_function": "silu", "decoder_start_token_id": 0}),
        ("bart", {"encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_ffn_dim": 48}),
    ],
)
def test_streams_follow_the_configuration(name, settings, kernel):
    model = make_model(name, tasks=("topic", "reading", "summary") if name == "bart" else ("topic", "reading"), **settings)
    drawn = make_drawn(model, count=2)
    expected_loss, expected = plain(model, drawn)
    loss, found = step(model, drawn, layout_of(model, packed=True))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_near(found, expected)


@pytest.mark.parametrize("name", ["roberta", "bart"])
def test_in_bfloat16_the_gradient_is_about_the_same(name):
    model, drawn, expected_loss, expected = mixed(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss, found = step(model, drawn, layout_of(model, packed=True))
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert_near(found, expected, 0.1)


# ---- no sequence sees another


def states_of(model, drawn):
    """The batch, and the states of all tokens as [l, d] of each sequence: a decoder's, and an encoder's where both are there."""
    batch = make_batch(drawn, layout_of(model, packed=True)._replace(pools=True))  # all are read
    states = model.backbone(batch)
    found = [states.hidden.split(states.lengths.tolist())]
    if states.encoded is not None:
        found.append(states.encoded.hidden.split(states.encoded.lengths.tolist()))
    return batch, found


def changed(drawn, at):
    """The same with other words in one example."""
    example = drawn[at].example
    sequences = [np.where(ids > 4, 5 + (ids + 7) % 50, ids) for ids in example.sequences]
    output = None if example.output is None else np.where(example.output > 4, 5 + (example.output + 7) % 50, example.output)
    other = Encoded(sequences, example.first, example.target, example.source, output=output)
    return [*drawn[:at], drawn[at]._replace(example=other), *drawn[at + 1 :]]


@pytest.mark.parametrize("name", STREAMED)
@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(name, kernel):
    """States are equal to the bit, whatever words their neighbours have."""
    model = make_model(name, tasks=("reading", "summary" if name == "bart" else "words")).eval()
    drawn = make_drawn(model, count=3)
    batch, expected = states_of(model, drawn)
    places = {id(example): at for at, example in enumerate(one for segment in batch.segments for one in segment.examples)}
    for at in range(len(drawn)):
        _, found = states_of(model, changed(drawn, at))
        for before, after in zip(expected, found, strict=True):
            same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
            assert [row for row, equal in enumerate(same) if not equal] == [places[id(drawn[at].example)]]


@pytest.mark.parametrize("name", STREAMED)
def test_no_gradient_flows_from_one_packed_sequence_to_another(name, kernel):
    model = make_model(name, tasks=("reading", "summary" if name == "bart" else "words")).eval()
    drawn, words = make_drawn(model, count=2), []
    encoder = model.backbone.trunk.get_encoder() if name == "bart" else model.backbone.trunk
    encoder.get_input_embeddings().register_forward_hook(lambda _, __, output: words.append(output))
    batch, (states, *_) = states_of(model, drawn)
    for row, mine in enumerate(states):
        (gradient,) = torch.autograd.grad(mine.pow(2).sum(), words[0], retain_graph=True)
        each = [part.abs().max() > 0 for part in gradient.split(batch.bounds.lengths.tolist())]
        assert [at for at, seen in enumerate(each) if seen] == [row]


@pytest.mark.parametrize("name", ["bert", "roberta"])
@torch.no_grad()
def test_transformers_own_attention_lets_the_sequences_of_a_stream_see_each_other(name):
    """Positions that start anew tell it nothing (only FlashAttention looks at them); this is why stream.py is there."""
    model = make_model(name, tasks=("reading",)).eval()
    drawn = make_drawn(model, count=2)
    trunk, found = model.backbone.trunk, []
    assert trunk.config._attn_implementation == "sdpa"
    for one in (drawn, changed(drawn, 1)):
        batch = make_batch(one, layout_of(model, packed=True))
        positions = batch.bounds.places() + (PAD + 1 if name == "roberta" else 0)
        mask = torch.ones_like(batch.ids)
        given = {"input_ids": batch.ids[None], "position_ids": positions[None], "attention_mask": mask[None]}
        found.append(trunk(**given).last_hidden_state[0].split(batch.bounds.lengths.tolist()))
    _, (alone,) = states_of(model, drawn[:1])
    assert (found[0][0] - found[1][0]).abs().max() > 0.1  # its words are the same
    assert (found[0][0] - alone[0]).abs().max() > 0.1


# ---- what heads read


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_the_last_layer_is_computed_for_what_heads_read_and_gives_what_it_gives_for_all(name, kernel, monkeypatch):
    model = make_model(name, tasks=("topic", "likeness", "story", "reading"))
    drawn, layout, asked = make_drawn(model), layout_of(model, packed=True), []
    attend = stream.attend
    monkeypatch.setattr(stream, "attend", lambda query, *rest, **how: asked.append(len(query)) or attend(query, *rest, **how))
    loss, found = step(model, drawn, layout)
    some = list(asked)
    asked.clear()
    expected_loss, expected = step(model, drawn, layout._replace(pools=True))
    sentences = sum(len(one.example.sequences) for one in drawn if one.task != "reading")
    kept = sentences + sum(one.example.tokens for one in drawn if one.task == "reading")
    assert set(asked) == {sum(one.example.tokens for one in drawn)}
    assert some == [*asked[:-1], kept]
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_near(found, expected)


@pytest.mark.parametrize("answer", [np.zeros(0, np.uint16), None])
@torch.no_grad()
def test_a_decoder_with_nothing_to_read_leaves_others_and_the_encoder_as_they_are(answer, kernel):
    """In evaluation a generated text has no tokens to be read; all sequences of a batch may be of that kind."""
    model = make_model("bart", tasks=("topic", "summary")).eval()
    drawn = make_drawn(model, count=3)
    for one in drawn:
        if one.task == "summary":
            one.example.output = one.example.output[:0]
    drawn = [one for one in drawn if answer is not None or one.task == "summary"]
    batch = make_batch(drawn, layout_of(model, packed=True))
    states, trunk = model.backbone(batch), model.backbone.trunk
    assert (batch.outputs is None) == (answer is None)
    for segment in batch.segments:
        for row, example in zip(segment.rows, segment.examples, strict=True):
            ids = torch.from_numpy(example.sequences[0].astype(np.int64))[None]
            hidden, mask = states.encoded.sequences(row[None])
            torch.testing.assert_close(hidden[mask.bool()], trunk.get_encoder()(ids).last_hidden_state[0], rtol=1e-4, atol=1e-5)
    for segment, output, _ in model(batch) if answer is not None else ():
        if segment.task == "topic":
            with whole(model, "topic") as one:
                alone = [read_alone(one, example.sequences[0], 0, None, False).logits[0] for example in segment.examples]
            torch.testing.assert_close(output, torch.stack(alone), rtol=1e-4, atol=1e-5)


# ---- positions


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=6))
def test_robertas_positions_are_transformers_for_each_sequence_alone(sequences):
    """Ids equal to the padding id are passed over, also within a text."""
    from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

    bounds = Bounds.of(np.array([len(ids) for ids in sequences]))
    ids = torch.tensor([one for ids in sequences for one in ids])
    expected = [RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([ids]), PAD)[0] for ids in sequences]
    assert roberta_positions(ids, bounds, PAD).tolist() == torch.cat(expected).tolist()


@pytest.mark.parametrize("name", STREAMED)
@torch.no_grad()
def test_a_padding_id_within_a_text_is_a_token_at_transformers_position(name, kernel):
    model = make_model(name, tasks=("reading",)).eval()
    drawn = make_drawn(model, count=3)
    for one in drawn:
        one.example.sequences[0][[2, 3, 5]] = PAD
    _, (states, *_) = states_of(model, drawn)
    for one, found in zip(drawn, states, strict=True):
        alone = read_alone(model.backbone.trunk, one.example.sequences[0], one.example.first[0], None, token_types(model))
        torch.testing.assert_close(found, alone.last_hidden_state[0], rtol=1e-4, atol=1e-5)


# ---- dropout


def seeded(model, drawn, packed, seed):
    torch.manual_seed(seed)
    return step(model, drawn, layout_of(model, packed))


EVERYWHERE = dict.fromkeys(NO_DROPOUT, 0.2)


@pytest.mark.parametrize("name", STREAMED)
def test_with_dropout_an_update_is_the_same_from_the_same_seed_and_another_from_another(name, kernel):
    model = make_model(name, EVERYWHERE)
    drawn = make_drawn(model, count=1)
    (_, one), (_, same), (_, other) = (seeded(model, drawn, True, seed) for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert norm_of({key: one[key] - other[key] for key in one}) > 0.01 * norm_of(one)


@pytest.mark.parametrize("name", STREAMED)
def test_dropout_is_where_transformers_has_it_and_at_its_rates(name, monkeypatch):
    """With a multiplication in its place, nothing is left to chance, and an update is that of rectangles."""
    functional, attend = torch.nn.functional, torch.nn.functional.scaled_dot_product_attention

    def shrink(states, p=0.5, training=True, inplace=False):
        return states * (1 - p) if training else states

    def attend_and_shrink(*parts, dropout_p=0.0, **how):
        return shrink(attend(*parts, **how), dropout_p)

    monkeypatch.setattr(native, "takes", lambda *_: False)
    monkeypatch.setattr(functional, "dropout", shrink)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend_and_shrink)
    rates = {"hidden": 0.2, "attention": 0.3, "activation": 0.4, "head": 0.5}
    model = make_model(name, rates)
    drawn = make_drawn(model, count=2)
    expected_loss, expected = step(deepcopy(model).double(), drawn, layout_of(model, packed=False))
    loss, found = step(model, drawn, layout_of(model, packed=True))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_near(found, expected)
    _, without = step(make_model(name), drawn, layout_of(model, packed=True))
    assert norm_of({key: without[key] - expected[key] for key in expected}) > 0.1 * norm_of(expected)


def real_states(model, batch):
    """[n, d] of all tokens that a layout holds, sequence after sequence."""
    states = model.backbone(batch)
    hidden, mask = states.sequences(torch.arange(len(batch.anchors)))
    return hidden[mask.bool()]


@pytest.mark.parametrize("place", ["hidden", "attention", "activation"])
@torch.no_grad()
def test_each_kind_of_dropout_moves_states_as_much_as_in_a_rectangle_and_their_mean_not_at_all(place, kernel):
    model = make_model("bart", NO_DROPOUT | {place: 0.3}, tasks=("reading",)).train()
    drawn, seeds, found = make_drawn(model, count=8), 24, {}
    for packed in (False, True):
        batch = make_batch(drawn, layout_of(model, packed))
        torch.manual_seed(packed)
        each = torch.stack([real_states(model, batch) for _ in range(seeds)])  # [seeds, n, d]
        found[packed] = each.mean(0), each.var(0).sum()
    (mean, spread), (expected, expected_spread) = found[True], found[False]
    assert float(spread / expected_spread) == pytest.approx(1, abs=0.15)
    assert float(expected_spread) > 0.01 * float(expected.pow(2).sum())
    chance = (spread + expected_spread) / seeds  # what means of so many draws differ by
    assert float((mean - expected).pow(2).sum() / chance) == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("name", ["bert", "bart"])
@torch.no_grad()
def test_the_expected_loss_of_an_update_with_dropout_is_that_of_rectangles(name, kernel):
    model = make_model(name, EVERYWHERE).train()
    drawn, seeds, found = make_drawn(model, count=1), 60, {}
    for packed in (False, True):
        batch = make_batch(drawn, layout_of(model, packed))
        torch.manual_seed(packed)
        losses = [sum(float(one.family.loss(output, one) @ one.weights) for one, output, _ in model(batch)) for _ in range(seeds)]
        found[packed] = np.mean(losses), np.std(losses) / math.sqrt(seeds)
    (loss, error), (expected, expected_error) = found[True], found[False]
    assert error > 0
    assert abs(loss - expected) < 4 * math.hypot(error, expected_error)


@pytest.mark.parametrize("name", STREAMED)
@torch.no_grad()
def test_outside_training_there_is_no_dropout(name, kernel):
    model, without = make_model(name, EVERYWHERE).eval(), make_model(name).eval()
    drawn = make_drawn(model)
    for found, expected in zip(states_of(model, drawn)[1], states_of(without, drawn)[1], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# ---- R3F


@pytest.mark.parametrize("name", STREAMED)
def test_with_the_same_noise_r3f_in_streams_is_r3f_in_rectangles(name, kernel):
    model, objective = make_model(name), ObjectiveSettings(r3f=1.0, r3f_share=0.5, noise=0.4)
    drawn = make_drawn(model, count=2, noised=True)
    expected_loss, expected = step(deepcopy(model).double(), drawn, layout_of(model, packed=False), 200, objective)
    loss, found = step(model, drawn, layout_of(model, packed=True), 400, objective)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_near(found, expected)
    _, without = step(model, drawn, layout_of(model, packed=True))
    assert norm_of({key: without[key] - expected[key] for key in expected}) > 0.01 * norm_of(expected)


# ---- architectures that read rectangles


@pytest.mark.parametrize("name", PADDED)
def test_what_is_not_read_as_a_stream_is_padded_and_has_the_gradient_of_the_examples_alone(name):
    model, drawn, expected_loss, expected = mixed(name)
    layout = microworld.layout(model, False, token_types(model))
    assert not layout.packed
    for budget in (1, 400, 10_000):
        loss, found = step(model, drawn, layout, budget)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert_near(found, expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in ACCEPTED if name not in STREAMED),
        ("bart", {"encoder_layerdrop": 0.1}),
        ("bart", {"decoder_layerdrop": 0.1}),
        ("bert", {"is_decoder": True}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("ernie", {"use_task_id": True}),
    ],
)
def test_what_streams_do_not_have_is_left_to_transformers(name, settings):
    assert not reads_streams(transformers.AutoConfig.for_model(name, **settings))


def test_bart_with_layerdrop_is_padded_and_read_as_transformers_reads_it():
    model = make_model("bart", tasks=("topic", "summary"), encoder_layerdrop=0.5)
    assert not model.layout(microworld.SimpleNamespace(pad_id=PAD, token_types=False)).packed
    drawn, losses = make_drawn(model, count=2), set()
    for seed in range(6):
        torch.manual_seed(seed)
        losses.add(step(model, drawn, layout_of(model, packed=False))[0])
    assert 1 < len(losses) <= 4  # each of two layers is there or not


# ---- bounds, cuts and groups, by loops

lengths_of_sequences = st.lists(st.integers(0, 9), min_size=1, max_size=8).map(np.array)


@given(lengths_of_sequences)
def test_bounds_tell_where_each_token_is(lengths):
    bounds = Bounds.of(lengths)
    tokens = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert bounds.ends.dtype == torch.int32
    assert (bounds.longest, bounds.total) == (max(lengths), sum(lengths))
    assert bounds.lengths.tolist() == lengths.tolist()
    assert bounds.starts.tolist() == [sum(lengths[:row]) for row in range(len(lengths))]
    assert bounds.places().tolist() == [place for _, place in tokens]
    assert bounds.of_each_token(torch.arange(len(lengths)) * 10).tolist() == [10 * row for row, _ in tokens]
    values = torch.arange(2.0 * bounds.total).reshape(-1, 2)
    padded = torch.full((len(lengths), max(lengths), 2), -1.0)
    for value, (row, place) in zip(values, tokens, strict=True):
        padded[row, place] = value
    assert torch.equal(bounds.spread(values, -1), padded)
    assert bounds.mask().tolist() == [[place < length for place in range(max(lengths))] for length in lengths]


@given(lengths_of_sequences, st.data())
def test_tokens_that_are_kept_are_all_of_some_sequences_and_one_of_others(lengths, data):
    whole = np.array(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    anchors = np.array([data.draw(st.integers(0, max(0, length - 1))) for length in lengths])
    kept, bounds = keep(anchors, whole, lengths)
    expected = []
    for row, length in enumerate(lengths):
        start = int(sum(lengths[:row]))
        expected.append([*range(start, start + length)] if whole[row] else [start + anchors[row]] if length else [])
    assert kept.tolist() == [at for mine in expected for at in mine]
    assert bounds.lengths.tolist() == [len(mine) for mine in expected]


def size_of_several(pieces, tokens):
    """Of the largest of those that hold more than one example."""
    return max((sum(tokens[at] for at in piece) for piece in pieces if len(piece) > 1), default=0)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 20))
@settings(max_examples=200)
def test_an_update_is_cut_into_as_few_streams_as_the_budget_allows_and_those_as_equal_as_can_be(tokens, budget):
    found = [piece.tolist() for piece in divide(tokens, budget)]
    assert [at for piece in found for at in piece] == list(range(len(tokens)))
    cuts = []
    for number in range(len(tokens)):
        for ends in combinations(range(1, len(tokens)), number):
            pieces = [list(range(start, end)) for start, end in pairwise([0, *ends, len(tokens)])]
            if size_of_several(pieces, tokens) <= budget:
                cuts.append(pieces)
    fewest = min(map(len, cuts))
    assert len(found) == fewest
    assert size_of_several(found, tokens) == min(size_of_several(pieces, tokens) for pieces in cuts if len(pieces) == fewest)


@given(lengths_of_sequences.filter(lambda lengths: lengths.max() > 0), st.data())
def test_a_rectangle_holds_its_sequences_tokens(lengths, data):
    chosen = np.flatnonzero(lengths > 0)
    group = np.array(data.draw(st.permutations(list(chosen))))[: data.draw(st.integers(1, len(chosen)))]
    bounds, values = Bounds.of(lengths), torch.randn(int(sum(lengths)), 2, 3)  # [n, h, e]
    rectangle = Rectangle.of(bounds, group)
    taken = rectangle.take(values)  # [g, h, longest, e]
    assert rectangle.longest == max(lengths[group])
    assert tuple(taken.shape) == (len(group), 2, rectangle.longest, 3)
    for at, row in enumerate(group):
        start, length = sum(lengths[:row]), lengths[row]
        assert rectangle.real[at].tolist() == [place < length for place in range(rectangle.longest)]
        assert torch.equal(taken[at, :, :length], values[start : start + length].transpose(0, 1))


many_lengths = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=30)


@given(many_lengths)
def test_sequences_in_a_group_have_about_as_many_queries_and_keys_and_those_with_queries_are_in_one(pairs):
    queries, keys = np.array(pairs).T
    groups = groups_of(queries, keys)
    assert sorted(at for group in groups for at in group) == np.flatnonzero(queries).tolist()
    for lengths in (queries, keys):
        assert all(lengths[group].max() <= GROUP * lengths[group].min() for group in groups)
    bins = {tuple(np.floor(np.log(pair) / np.log(GROUP))) for pair in pairs if pair[0]}
    assert len(groups) == len(bins)  # no more than needed


def attend_in_a_loop(query, key, value, queries, keys, scale, causal=False, window=None):
    """Token by token of each sequence, as the formula says."""
    found = torch.zeros_like(query)
    for row in range(len(queries.lengths)):
        asked = range(*queries.ends[row : row + 2].tolist())
        seen = range(*keys.ends[row : row + 2].tolist())
        for place, at in enumerate(asked):
            first = 0 if window is None else max(0, place - window)
            last = place + 1 if causal else len(seen) if window is None else place + window + 1
            mine = list(seen)[first:last]
            for head in range(query.shape[1]):
                weights = (key[mine, head] @ query[at, head] * scale).softmax(0)
                found[at, head] = weights @ value[mine, head]
    return found


@pytest.mark.parametrize("kind", ["self", "cross", "causal", "window"])
@given(
    # 11 and 12 are padded together, shorter ones go with their like.
    st.lists(st.tuples(st.sampled_from([0, 1, 3, 11, 12]), st.sampled_from([1, 2, 11, 12])), min_size=1, max_size=6),
    st.integers(0, 3),
    st.integers(0, 99),
)
@settings(max_examples=25)
def test_attention_in_groups_is_that_of_each_sequence_alone_with_its_gradient(kind, pairs, window, seed):
    asked, seen = np.array(pairs).T
    queries = Bounds.of(asked)
    keys = Bounds.of(seen) if kind == "cross" else queries
    torch.manual_seed(seed)
    query, key, value, weight = (
        torch.randn(bounds.total, 2, 3, dtype=torch.float64, requires_grad=True) for bounds in (queries, keys, keys, queries)
    )
    seeing = {"causal": {"causal": True}, "window": {"window": window}}.get(kind, {})
    given_, scale = (query, key, value), 0.7
    found = attend_in_groups(*given_, queries, keys, scale=scale, **seeing)
    expected = attend_in_a_loop(*given_, queries, keys, scale, **seeing)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    if queries.total:
        ours, theirs = (torch.autograd.grad((weight.detach() * one).sum(), given_) for one in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


# ---- states computed again in backward


WRITTEN_OUT = [name for name in STREAMED if name not in MODEL_TYPES]


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_states_computed_again_in_backward_give_the_same_gradient_dropout_included(name, kernel):
    kept, again = (make_model(name, EVERYWHERE).train() for _ in range(2))
    again.load_state_dict(kept.state_dict())
    again.backbone.checkpoint_gradients()
    drawn, found = make_drawn(kept, count=2), []
    assert again.backbone.layout(Tokenizer(microworld.tokenizer(), 32)).packed
    for model in (kept, again):
        torch.manual_seed(5)
        found.append(step(model, drawn, layout_of(model, packed=True), 400))
    (loss, expected), (other, gradient) = found
    assert loss == other
    assert_near(gradient, expected)
    assert norm_of(expected) > 0


@pytest.mark.parametrize("name", ["modernbert", "roberta-prelayernorm", "xlm-roberta-xl"])
def test_what_is_read_through_transformers_own_modules_is_padded_when_states_are_computed_again(name):
    model = make_model(name).train()
    drawn = make_drawn(model, count=2)
    loss, expected = step(model, drawn, layout_of(model, packed=False), 400)
    model.backbone.checkpoint_gradients()
    assert not model.backbone.layout(Tokenizer(microworld.tokenizer(), 32)).packed
    again, found = step(model, drawn, layout_of(model, packed=False), 400)
    assert again == pytest.approx(loss, rel=1e-6)
    assert_near(found, expected)


def test_where_transformers_cannot_compute_states_again_the_error_says_so():
    with pytest.raises(InputError, match="gradient_checkpointing: Transformers has none for model type 'albert'"):
        make_model("albert").backbone.checkpoint_gradients()


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_less_is_kept_when_states_are_computed_again(name):
    def kept_by(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda one: one):
            model.backbone(make_batch(make_drawn(model, count=4), layout_of(model, packed=True)))
        return sum(sizes)

    model = make_model(name).train()
    before = kept_by(model)
    model.backbone.checkpoint_gradients()
    assert kept_by(model) < 0.8 * before
