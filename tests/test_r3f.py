"""R3F and R4F: the divergence of clean and noised predictions by its formula, its gradient by the definition, the noise, and
output layers of spectral norm 1.

Letters: e examples of a segment, n options, r rows, l tokens of the longest row, m target tokens, v size of the vocabulary.
"""

import math
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from torch.nn.utils import parametrize

import microworld
from prefinetune.batch import Drawn, Layout, make_batch, micro_batches, token_keys
from prefinetune.checkpoint import checkpoints, load_checkpoint
from prefinetune.config import ObjectiveSettings, make_config
from prefinetune.encoder_decoder import EncoderDecoder
from prefinetune.errors import InputError
from prefinetune.export import assemble, load_head, save_trunk_and_heads
from prefinetune.families import Choice, Classification, Denoising, Encoded, Generation, Regression, Span
from prefinetune.families.base import symmetric_kl
from prefinetune.loop import fit
from prefinetune.mixture import Mixture, hash_key
from prefinetune.model import Backbone, MultiTask
from prefinetune.objective import draw_noise, draw_noised, regularized, uniform
from prefinetune.pretrained import load_backbone
from prefinetune.results import RunFolder
from prefinetune.tokenizer import Tokenizer
from prefinetune.train import train
from prefinetune.update import TaskData, draw, update

PAD = 1
FAMILIES = {
    "topic": Classification("text", labels=("a", "b", "c")),
    "likeness": Regression("text", low=-2, high=3),
    "story": Choice("text", "options"),
    "reading": Span("question", "context"),
    "words": Denoising("text"),
    "summary": Generation("text", "target"),
}
ENCODER_TASKS = ("topic", "likeness", "story", "reading", "words")
PLAIN, NO_NOISE = ObjectiveSettings(), ObjectiveSettings(r3f=1, noise=0)

# ---- models and examples


def make_model(name, scale_embedding=False):
    """A model of two layers x 16 without dropout on all families that it knows."""
    torch.manual_seed(0)
    if name == "roberta":
        config = microworld.model_config()
        config.update({"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.2})
        return MultiTask(Backbone(transformers.AutoModel.from_config(config)), {task: FAMILIES[task] for task in ENCODER_TASKS})
    shape = {f"{part}_{of}": size for part in ("encoder", "decoder") for of, size in (("layers", 2), ("attention_heads", 2))}
    shape |= {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64}
    config = transformers.BartConfig(vocab_size=60, dropout=0.0, init_std=0.2, scale_embedding=scale_embedding, **shape)
    return MultiTask(EncoderDecoder(transformers.AutoModel.from_config(config)), FAMILIES)


def sequence(generator, least=6, most=25):
    """<s> words </s>"""
    return np.array([0, *generator.integers(5, 60, generator.integers(least, most)), 2])


def make_example(generator, task, source, decodes):
    sequences = [sequence(generator) for _ in range(2 + source % 3 if task == "story" else 1)]
    places = generator.choice(6, 1 + source % 3, replace=False)
    target = {
        "topic": [source % 3],
        "likeness": [source / 9],
        "story": [source % len(sequences)],
        "reading": [1, 3],
        "words": [] if decodes else [*places, *sequences[0][places]],
        "summary": [],
    }[task]
    output = {"words": sequences[0], "summary": sequence(generator, 1, 9)}.get(task) if decodes else None
    kind = np.float32 if task == "likeness" else np.int64
    return Encoded(sequences, [len(ids) for ids in sequences], np.array(target, dtype=kind), source, output=output)


def make_drawn(name, noised=True, count=3, tasks=None):
    """Examples of all of a model's tasks, all weighing the same; `noised` may be one flag or one of each."""
    generator, decodes = np.random.default_rng(0), name == "bart"
    tasks = tasks or (tuple(FAMILIES) if decodes else ENCODER_TASKS)
    every = [(task, make_example(generator, task, source, decodes)) for source in range(count) for task in tasks]
    flags = [noised] * len(every) if isinstance(noised, bool) else noised
    return [
        Drawn(example, task, FAMILIES[task], 1 / len(every), bool(flag), key)
        for key, ((task, example), flag) in enumerate(zip(every, flags, strict=True))
    ]


def layout(name, packed=True):
    return Layout(PAD, decodes=name == "bart", packed=packed, sentence_id=2 if name == "bart" else None)


def batch_of(drawn, name, packed=True):
    return make_batch(drawn, layout(name, packed))


def step(model, name, drawn, objective, budget=None, packed=True):
    """An update that moves nothing, in one batch unless there is a budget: its report and the gradients."""
    batches = micro_batches(drawn, budget, layout(name, packed)) if budget else [batch_of(drawn, name, packed)]
    report = update(model, torch.optim.SGD(model.parameters(), lr=0.0), batches, 0.0, Accelerator(), objective)
    return report, gradients(model)


def gradients(model):
    return {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(found, expected):
    """As a share of the norm of the expected gradient."""
    assert found.keys() == expected.keys()
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in expected.values()))
    return math.sqrt(sum(float(((found[name] - expected[name]) ** 2).sum()) for name in found)) / norm


def bits_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- the divergence by its formula

levels = st.lists(st.tuples(*[st.floats(-20, 20, width=32)] * 2), min_size=1, max_size=8)


def kl_of_both_directions(first, second):
    """KL(p || q) + KL(q || p) of two lists of logits, in float64."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    log_p, log_q = log_softmax(first), log_softmax(second)
    return float((np.exp(log_p) * (log_p - log_q)).sum() + (np.exp(log_q) * (log_q - log_p)).sum())


@given(levels)
def test_symmetric_kl_is_the_kl_of_both_directions_and_never_negative(pairs):
    first, second = torch.tensor(pairs).T
    p, q = (softmax(np.asarray(one, np.float64)) for one in zip(*pairs, strict=True))
    expected = rel_entr(p, q).sum() + rel_entr(q, p).sum()
    assert float(symmetric_kl(first, second)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(symmetric_kl(first, second)) >= 0


@given(levels)
def test_symmetric_kl_is_the_same_of_swapped_logits_and_zero_of_equal_ones(pairs):
    first, second = torch.tensor(pairs).T
    assert torch.equal(symmetric_kl(first, second), symmetric_kl(second, first))
    assert symmetric_kl(first, first) == 0


@given(levels, st.integers(0, 8))
def test_symmetric_kl_does_not_see_answers_that_are_absent_from_both(pairs, at):
    without = torch.tensor(pairs).T
    padded = torch.tensor([*pairs[:at], (-math.inf, -math.inf), *pairs[at:]]).T.requires_grad_()
    found = symmetric_kl(*padded)
    torch.testing.assert_close(found, symmetric_kl(*without), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found, padded)
    assert gradient.isfinite().all()


def noised_pair(shape, seed=0):
    """Two arrays of logits that are near each other."""
    generator = np.random.default_rng(seed)
    first = generator.normal(0, 2, shape)
    return first, first + generator.normal(0, 0.5, shape)


def divergence(task, first, second, drawn=None, decodes=False):
    """What a family says of two outputs."""
    examples = drawn or make_drawn("bart" if decodes else "roberta", tasks=(task,), count=len(first))
    (segment,) = make_batch(examples, Layout(PAD, decodes=decodes)).segments
    first, second = (torch.tensor(one, dtype=torch.float32) for one in (first, second))
    return FAMILIES[task].divergence(first, second, segment).numpy()


def test_the_divergence_of_classification_is_that_of_the_label_distributions():
    first, second = noised_pair((5, 3))
    expected = [kl_of_both_directions(*rows) for rows in zip(first, second, strict=True)]
    np.testing.assert_allclose(divergence("topic", first, second), expected, rtol=1e-5)


def test_the_divergence_of_choice_is_over_the_options_that_an_example_has():
    first, second = noised_pair((3, 4))  # [e, n]
    for one in (first, second):
        one[0, 2:] = one[1, 3:] = -np.inf
    expected = [kl_of_both_directions(first[at, :size], second[at, :size]) for at, size in enumerate((2, 3, 4))]
    np.testing.assert_allclose(divergence("story", first, second), expected, rtol=1e-5)


def test_the_divergence_of_spans_is_the_mean_of_start_and_end_over_the_real_tokens():
    drawn = make_drawn("roberta", tasks=("reading",), count=4)
    lengths = [one.example.length for one in drawn]
    first, second = noised_pair((4, max(lengths), 2))  # [r, l, 2]
    expected = []
    for row, length in enumerate(lengths):
        ends = [kl_of_both_directions(first[row, :length, end], second[row, :length, end]) for end in (0, 1)]
        expected.append(np.mean(ends))
        first[row, length:] = second[row, length:] = -np.inf
    assert len(set(lengths)) > 1
    np.testing.assert_allclose(divergence("reading", first, second, drawn), expected, rtol=1e-5)


@pytest.mark.parametrize(("task", "decodes"), [("words", False), ("words", True), ("summary", True)])
def test_the_divergence_of_language_is_the_mean_over_the_target_tokens_of_each_example(task, decodes):
    drawn = make_drawn("bart" if decodes else "roberta", tasks=(task,), count=3)
    counts = [len(one.example.output) if decodes else len(one.example.target) // 2 for one in drawn]
    first, second = noised_pair((sum(counts), 30))  # [m, v]
    each = [kl_of_both_directions(*rows) for rows in zip(first, second, strict=True)]
    expected = [part.mean() for part in np.split(np.array(each), np.cumsum(counts)[:-1])]
    assert len(set(counts)) > 1
    np.testing.assert_allclose(divergence(task, first, second, drawn, decodes), expected, rtol=1e-5)


def test_the_divergence_of_regression_is_that_of_two_normals_of_which_the_loss_is_the_log_likelihood():
    first, second = noised_pair(6)
    spread = math.sqrt(1 / 24)
    one, other = (torch.distributions.Normal(torch.tensor(mean), spread) for mean in (first, second))
    both = torch.distributions.kl_divergence(one, other) + torch.distributions.kl_divergence(other, one)
    np.testing.assert_allclose(divergence("likeness", first, second), both.numpy(), rtol=1e-5)
    np.testing.assert_allclose(both.numpy(), 24 * (first - second) ** 2)
    targets = torch.linspace(0, 1, 6, dtype=torch.float64)
    loss = FAMILIES["likeness"].loss(torch.tensor(first), SimpleNamespace(targets=targets))
    best = other.log_prob(other.mean)  # what no target depends on
    torch.testing.assert_close(loss.double(), best - one.log_prob(targets), rtol=1e-5, atol=1e-5)


# ---- off, it is not there


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["roberta", "bart"])
def test_without_weight_an_update_is_the_plain_one_to_the_bit(name, packed):
    model, off = make_model(name), ObjectiveSettings(r3f=0, noise=0.5, r3f_share=0.3)
    flags = draw_noised(len(make_drawn(name)), off, np.random.default_rng(0))
    plain, expected = step(model, name, make_drawn(name, False), PLAIN, packed=packed)
    report, found = step(model, name, make_drawn(name, flags), off, packed=packed)
    assert not flags.any()
    assert report.divergence is plain.divergence is None
    assert report.loss == plain.loss
    assert bits_equal(found, expected)


def fitted(objective, folder):
    """A run of six updates on tasks of random tokens: its weights, and a line of metrics per update."""
    generator, model = np.random.default_rng(0), make_model("roberta")
    stores = {task: [make_example(generator, task, at, False) for at in range(16)] for task in ENCODER_TASKS[:4]}
    tasks = [TaskData(task, FAMILIES[task], store) for task, store in stores.items()]
    settings = {"updates": 6, "log_every": 1, "checkpoint_every": None}
    config = make_config({"train": settings, "mixture": {"sub_batches": 4}, "objective": objective})
    folder.mkdir()
    fit(model, Tokenizer(microworld.tokenizer(), 32), tasks, {}, config, RunFolder(folder))
    return model.unique_state(), RunFolder(folder).metrics()


def test_a_run_without_weight_is_the_plain_one_to_the_bit_and_only_one_with_it_logs_a_divergence(tmp_path):
    plain, lines = fitted({}, tmp_path / "plain")
    off, lines_off = fitted({"r3f": 0, "noise": 0.5, "noise_kind": "normal", "r3f_share": 0.5}, tmp_path / "off")
    on, lines_on = fitted({"r3f": 1, "noise": 0.5, "noise_kind": "normal", "r3f_share": 0.5}, tmp_path / "on")
    assert bits_equal(plain, off)
    assert not bits_equal(plain, on)
    assert [len(one) for one in (lines, lines_off, lines_on)] == [6, 6, 6]
    assert not any("divergence" in line for line in lines + lines_off)
    assert all(line["divergence"] > 0 for line in lines_on)


def test_a_negative_weight_is_refused():
    with pytest.raises(InputError, match=r"setting 'objective.r3f': -0.5 is not accepted; must be greater than or equal to 0"):
        make_config(overrides=["objective.r3f=-0.5"])


# ---- on, its gradient is that of the definition


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["roberta", "bart"])
def test_without_noise_and_dropout_nothing_diverges_and_the_gradient_is_the_plain_one(name, packed):
    model = make_model(name)
    plain, expected = step(model, name, make_drawn(name, False), PLAIN, packed=packed)
    report, found = step(model, name, make_drawn(name), NO_NOISE, packed=packed)
    assert report.divergence == pytest.approx(0, abs=1e-10)
    assert report.loss == pytest.approx(plain.loss, rel=1e-6)
    assert distance(found, expected) < 1e-5


def definition(model, drawn, noise, weight, held):
    """Mean over examples of (loss(x) + weight x KL_S(f(x), f(x + z))) / log 3, each alone and without padding; `held` is the
    pass that is taken for a constant. Returns (loss, divergence, gradients)."""
    trunk, head = model.backbone.trunk, model.head("topic").model.classifier
    model.zero_grad()
    losses, divergences = [], []
    for one, z in zip(drawn, noise, strict=True):
        ids = torch.tensor(one.example.sequences[0])[None]
        embeddings = trunk.embeddings.word_embeddings(ids)
        passes = {"clean": embeddings, "noised": embeddings + z[: ids.shape[1]]}
        log_p, log_q = (head(trunk(inputs_embeds=one).last_hidden_state)[0].log_softmax(-1) for one in passes.values())
        losses.append(-log_p[int(one.example.target[0])])
        log_p, log_q = (log_p.detach() if held == "clean" else log_p), (log_q.detach() if held == "noised" else log_q)
        kl = partial(torch.nn.functional.kl_div, reduction="sum", log_target=True)
        divergences.append(kl(log_q, log_p) + kl(log_p, log_q))
    loss, divergence = (torch.stack(each).mean() / math.log(3) for each in (losses, divergences))
    (loss + weight * divergence).backward()
    return loss.item(), divergence.item(), gradients(model)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("held", [None, "clean", "noised"])
def test_the_gradient_is_that_of_the_definition_and_flows_through_both_passes(held, packed):
    model, drawn = make_model("roberta").double(), make_drawn("roberta", tasks=("topic",), count=6)
    objective = ObjectiveSettings(r3f=2, noise=0.4)
    report, found = step(model, "roberta", drawn, objective, packed=packed)
    noise = [draw_noise(keys_of(one, 0), 16, objective) for one in drawn]
    loss, divergence, expected = definition(model, drawn, noise, 2, held)
    assert report.loss == pytest.approx(loss, rel=1e-5)
    assert report.divergence == pytest.approx(divergence, rel=1e-5)
    assert distance(found, expected) < 1e-5 if held is None else distance(found, expected) > 0.05


def keys_of(one, number):
    """What the noise on the tokens of one sequence of an example is drawn from, [l]."""
    key = torch.from_numpy(hash_key(one.key, np.array([number])).view(np.int64))
    return token_keys(key, torch.arange(len(one.example.sequences[number])))


@pytest.mark.parametrize("name", ["roberta", "bart"])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_each_token_has_its_noise_so_the_gradient_does_not_depend_on_the_layout_and_the_cut(name, kind):
    model, objective = make_model(name), ObjectiveSettings(r3f=1, noise=0.3, noise_kind=kind)
    flags = np.arange(len(make_drawn(name))) % 3 > 0
    report, expected = step(model, name, make_drawn(name, flags), objective)
    assert report.divergence > 0.01
    for packed in (False, True):
        numbers = set()
        for budget in (1, 120, 400, 10_000):
            again, found = step(model, name, make_drawn(name, flags), objective, budget, packed)
            assert distance(found, expected) < 1e-5
            assert again.divergence == pytest.approx(report.divergence, rel=1e-4)
            numbers.add(len(micro_batches(make_drawn(name, flags), budget, layout(name, packed))))
        assert len(numbers) == 4


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["roberta", "bart"])
def test_clean_and_noised_rows_share_one_forward_pass(name, packed):
    model, calls = make_model(name), []
    trunk = model.backbone.trunk
    norms = [part.layernorm_embedding for part in (trunk.get_encoder(), trunk.get_decoder())] if name == "bart" else []
    for norm in norms or [trunk.embeddings.LayerNorm]:
        norm.register_forward_hook(lambda *_: calls.append(1))
    batches = micro_batches(make_drawn(name), 400, layout(name, packed))
    update(model, torch.optim.SGD(model.parameters(), lr=0.0), batches, 0.0, Accelerator(), NO_NOISE)
    assert len(batches) > 1
    assert len(calls) == len(batches) * (len(norms) or 1)


# ---- the noise


@pytest.mark.parametrize(("kind", "spread"), [("uniform", 1 / math.sqrt(3)), ("normal", 1.0)])
def test_noise_has_its_size_and_is_drawn_in_float32(kind, spread):
    noise = draw_noise(torch.arange(2000).reshape(40, 50), 50, ObjectiveSettings(r3f=1, noise=1e-5, noise_kind=kind))
    assert noise.shape == (40, 50, 50)
    assert noise.dtype == torch.float32
    assert len(noise.unique()) > 50_000  # half precision has far fewer values of this size
    assert float(noise.double().std()) == pytest.approx(1e-5 * spread, rel=0.01)
    assert float(noise.double().mean()) == pytest.approx(0, abs=1e-5 * spread * 5 / math.sqrt(100_000))
    assert (float(noise.abs().max()) <= 1e-5) == (kind == "uniform")


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_noise_of_size_zero_is_none(kind):
    assert not draw_noise(torch.ones(2, 3, dtype=torch.int64), 4, ObjectiveSettings(r3f=1, noise=0, noise_kind=kind)).any()


@pytest.mark.parametrize("stride", [1, 0x632BE59BD9B4E019, 1 << 32, 2**40 + 1])
def test_what_noise_is_made_of_is_even_and_tells_nothing_about_its_neighbours(stride):
    """Of keys that follow each other however they do: counts in 100 bins, and correlations with the next key and place."""
    values = uniform(torch.arange(4000) * stride, 96).double()
    counts = torch.histc(values.flatten(), 100, 0, 1)
    expected = values.numel() / 100
    assert float(((counts - expected) ** 2 / expected).sum()) < scipy.stats.chi2.ppf(1 - 1e-6, 99)
    for one, other in ((values[:-1], values[1:]), (values[:, :-1], values[:, 1:]), (values[:-1, :-1], values[1:, 1:])):
        pair = torch.stack([one.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(one.numel())
    assert 0 < float(values.min()) < float(values.max()) < 1


def test_the_sequences_of_an_example_and_the_examples_of_an_update_have_noise_of_their_own():
    batch = batch_of(make_drawn("roberta"), "roberta")
    keys = batch.noise_keys()
    assert len(keys.unique()) == len(keys) == batch.bounds.total - batch.clean_tokens
    padded = batch.noise_keys_in_rectangle()
    for row, at in zip(padded, keys.split(batch.bounds.lengths[batch.clean :].tolist()), strict=True):
        assert torch.equal(row[: len(at)], at)


def copies_of(batch):
    """(rows, rows of their noised copies)"""
    noised = [segment for segment in batch.segments if segment.noised is not None]
    return torch.cat([one.rows for one in noised]), torch.cat([one.noised.rows for one in noised])


def what_enters(norm, model, batch, noise):
    """What a layer norm is given when the model reads a batch: embeddings with positions, [l, d] of each sequence."""
    seen = []
    hook = norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    model.backbone(batch, noise)
    hook.remove()
    (entered,) = seen
    return entered.split(batch.bounds.lengths.tolist()) if batch.layout.packed else list(entered)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "scale_embedding", "factor"), [("roberta", False, 1), ("bart", False, 1), ("bart", True, 4)])
def test_noise_is_added_to_what_is_looked_up_for_the_real_tokens_of_copies(name, scale_embedding, factor, packed):
    """Where embeddings are multiplied by the root of their size, 4, so is their noise."""
    model, noise = make_model(name, scale_embedding), partial(draw_noise, settings=ObjectiveSettings(r3f=1, noise=0.3))
    batch, trunk = batch_of(make_drawn(name), name, packed), model.backbone.trunk
    norm = trunk.embeddings.LayerNorm if name == "roberta" else trunk.get_encoder().layernorm_embedding
    entered, (rows, copies) = what_enters(norm, model, batch, noise), copies_of(batch)
    sequences = batch.ids.split(batch.bounds.lengths.tolist())
    keys = batch.noise_keys_in_rectangle()
    for row, copy in zip(rows.tolist(), copies.tolist(), strict=True):
        assert torch.equal(sequences[copy], sequences[row])
        added = torch.zeros_like(entered[row])
        added[: len(sequences[row])] = factor * noise(keys[copy - batch.clean, : len(sequences[row])], 16)
        torch.testing.assert_close(entered[copy] - entered[row], added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_what_the_decoder_reads_is_not_noised(packed):
    model, batch = make_model("bart"), batch_of(make_drawn("bart", tasks=("topic", "story", "reading")), "bart", packed)
    norm, (rows, copies) = model.backbone.trunk.get_decoder().layernorm_embedding, copies_of(batch)
    entered = what_enters(norm, model, batch, partial(draw_noise, settings=ObjectiveSettings(r3f=1, noise=0.3)))
    assert all(torch.equal(entered[copy], entered[row]) for row, copy in zip(rows.tolist(), copies.tolist(), strict=True))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["roberta", "bart"])
@torch.no_grad()
def test_clean_rows_are_read_as_if_there_were_no_copies(name, packed):
    model = make_model(name)
    flags = np.arange(len(make_drawn(name))) % 3 > 0
    alone = {(segment.task, one.source): row for segment, row, one in outputs_of(model, name, False, packed)}
    for segment, row, one in outputs_of(model, name, flags, packed):
        torch.testing.assert_close(row, alone[segment.task, one.source], rtol=1e-4, atol=1e-5)


def outputs_of(model, name, flags, packed):
    """(segment, clean output, example) of each example in one batch."""
    batch = batch_of(make_drawn(name, flags), name, packed)
    for segment, output, _ in model(batch, lambda keys, width: torch.full((*keys.shape, width), 9.0)):
        for at, example in enumerate(segment.examples):
            mine = segment.targets[0] == at if segment.family.head_kind == "language" else at
            yield segment, output[mine][output[mine].isfinite()], example


# ---- a noised pass for a share of the examples


def at_start(start):
    """A generator whose number is known."""
    return SimpleNamespace(random=lambda: start)


@given(st.integers(0, 300), st.floats(0.01, 1), st.integers(0, 2**32))
def test_as_many_are_noised_as_the_share_says_up_to_one(count, share, seed):
    noised = draw_noised(count, ObjectiveSettings(r3f=1, r3f_share=share), np.random.default_rng(seed))
    assert len(noised) == count
    assert abs(int(noised.sum()) - share * count) < 1 + 1e-9


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 60))
def test_every_example_is_noised_at_exactly_its_share_of_all_starts(some, all_, count):
    """With the share a / b, one start out of each b-th part of [0, 1) stands for all of that part."""
    some = min(some, all_)
    settings = ObjectiveSettings(r3f=1, r3f_share=some / all_)
    times = sum(draw_noised(count, settings, at_start((k + 0.5) / all_)).astype(int) for k in range(all_))
    assert times.tolist() == [some] * count


def test_an_update_draws_the_same_examples_whenever_it_is_drawn_and_others_than_its_neighbours():
    generator = np.random.default_rng(0)
    task = TaskData("topic", FAMILIES["topic"], [make_example(generator, "topic", at, False) for at in range(64)])
    mixture, settings = Mixture((64,), (64,), 4, 4, updates=20), ObjectiveSettings(r3f=1, r3f_share=0.25)
    flags = [tuple(one.noised for one in draw(mixture, number, [task], None, settings)) for number in [*range(12), 0]]
    assert flags[0] == flags[-1]
    assert len(set(flags)) > 2
    assert {sum(each) for each in flags} == {4}


@pytest.mark.parametrize("name", ["roberta", "bart"])
def test_over_all_starts_the_mean_gradient_is_that_of_a_noised_pass_for_every_example(name):
    model, share = make_model(name), ObjectiveSettings(r3f=1, r3f_share=0.25, noise=0.3)
    count = len(make_drawn(name, count=4))
    report, expected = step(model, name, make_drawn(name, count=4), ObjectiveSettings(r3f=1, noise=0.3))
    reports, found = [], []
    for k in range(4):
        flags = draw_noised(count, share, at_start((k + 0.5) / 4))
        one, gradient = step(model, name, make_drawn(name, flags, count=4), share)
        reports.append(one)
        found.append(gradient)
    assert distance({key: sum(one[key] for one in found) / 4 for key in expected}, expected) < 1e-5
    assert distance(found[0], expected) > 0.01
    assert np.mean([one.divergence for one in reports]) == pytest.approx(report.divergence, rel=1e-5)


def test_a_share_weighs_what_it_stands_for():
    losses, divergences = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25])
    found = regularized(losses, divergences, ObjectiveSettings(r3f=0.3, r3f_share=0.1))
    torch.testing.assert_close(found, torch.tensor([1 + 3 * 0.5, 2 + 3 * 0.25]))


# ---- a run that goes on


def test_a_run_with_a_share_of_noised_examples_goes_on_to_the_same_bits(world_suite, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    dropout = transformers.AutoConfig.from_pretrained(tiny_model)
    dropout.hidden_dropout_prob = 0.2
    dropout.save_pretrained(tmp_path / "model")
    config = {
        "objective": {"r3f": 1.0, "noise": 0.1, "r3f_share": 0.5, "spectral_norm": True},
        "mixture": {"sub_batches": 3, "sub_batch_size": 4},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"updates": 6, "log_every": 1, "checkpoint_every": 3},
    }
    suite = world_suite.select("micro/find-large", "micro/goodness")
    arguments = {"config": config, "cache": tmp_path / "cache"}
    train(suite, tmp_path / "model", tmp_path / "whole", **arguments)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "results.jsonl").unlink()
    shutil.rmtree(checkpoints(tmp_path / "again" / "checkpoints")[-1])
    train(suite, tmp_path / "model", tmp_path / "again", resume=True, **arguments)
    whole, again = (load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "again"))
    assert whole.state["updates"] == again.state["updates"] == 6
    assert bits_equal(again.model, whole.model)
    assert bits_equal(again.optimizer, whole.optimizer)
    metrics = [[line["divergence"] for line in RunFolder(tmp_path / name).metrics()] for name in ("whole", "again")]
    assert metrics[0] == metrics[1]
    assert all(metrics[0])


# ---- R4F

OUTPUT_LAYERS = {"topic": "out_proj", "likeness": "out_proj", "story": "classifier", "reading": "qa_outputs"}
OUTPUT_LAYERS_OF_BART = OUTPUT_LAYERS | {"story": "out_proj"}


def layers_of(model, names):
    """The output layer of every new head by task."""
    return {
        task: next(module for path, module in model.head(task).model.named_modules() if path.split(".")[-1] == name)
        for task, name in names.items()
    }


def norm_of(layer):
    """The largest singular value."""
    return float(np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)[0])


@pytest.fixture(params=["roberta", "bart"])
def normalized(request, tiny_model, tiny_bart):
    """(name, folder, model with normalized heads, its output layers by task)"""
    name = request.param
    folder = {"roberta": tiny_model, "bart": tiny_bart}[name]
    families = {task: FAMILIES[task] for task in (FAMILIES if name == "bart" else ENCODER_TASKS)}
    model = MultiTask(load_backbone(str(folder), spectral_norm=True), families)
    return name, folder, model, layers_of(model, OUTPUT_LAYERS if name == "roberta" else OUTPUT_LAYERS_OF_BART)


def trained(model, name, updates=3):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(updates):
        batches = micro_batches(make_drawn(name, False), 1000, layout(name))
        update(model, optimizer, batches, 1.0, Accelerator())
    return model


def test_output_layers_of_new_heads_have_spectral_norm_one_before_and_after_training_moves_them(normalized):
    name, _, model, layers = normalized
    before = {task: layer.weight.detach().clone() for task, layer in layers.items()}
    assert {task: norm_of(layer) for task, layer in layers.items()} == pytest.approx(dict.fromkeys(layers, 1.0), rel=1e-5)
    trained(model, name)
    assert {task: norm_of(layer) for task, layer in layers.items()} == pytest.approx(dict.fromkeys(layers, 1.0), rel=1e-5)
    assert all((layer.weight - before[task]).abs().max() > 1e-3 for task, layer in layers.items())


def test_the_language_head_is_left_alone(normalized):
    _, folder, model, layers = normalized
    found = {task: head for task, head in model.heads.items() if any(map(parametrize.is_parametrized, head.modules()))}
    assert len(found) == len(layers)
    assert "language" not in found
    plain = MultiTask(load_backbone(str(folder)), {"words": FAMILIES["words"]})
    assert bits_equal(model.heads["language"].state_dict(), plain.heads["language"].state_dict())


def test_an_assembled_model_has_the_normalized_layer_as_a_plain_one(normalized):
    name, _, model, _ = normalized
    trained(model, name).eval()
    batch = batch_of(make_drawn(name, False, tasks=("topic",)), name)
    ((segment, output, _),) = model(batch)
    whole = assemble(model, "topic")
    assert not any(map(parametrize.is_parametrized, whole.modules()))
    layer = whole.classifier.out_proj if name == "roberta" else whole.classification_head.out_proj
    assert norm_of(layer) == pytest.approx(1, rel=1e-5)
    for example, expected in zip(segment.examples, output, strict=True):
        alone = whole(input_ids=torch.tensor(example.sequences[0])[None]).logits[0]
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spectral_norm", [True, False])
def test_a_saved_normalized_head_comes_back_with_equal_logits(normalized, spectral_norm, tmp_path):
    name, _, model, _ = normalized
    save_trunk_and_heads(trained(model, name).eval(), Tokenizer(microworld.tokenizer(), 32), tmp_path)
    again = MultiTask(load_backbone(str(tmp_path / "model"), spectral_norm=spectral_norm), model.families, seed=5).eval()
    assert all(load_head(again, task, tmp_path) for task in model.families)
    batch = batch_of(make_drawn(name, False), name)
    for (_, expected, _), (_, found, _) in zip(model(batch), again(batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
