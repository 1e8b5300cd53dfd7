"""The model: heads give what Transformers gives, gradients are the mean over sub-batches, and what is idle stays still."""

import math

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator

import microworld
from prefinetune.batch import Drawn, make_batch, micro_batches
from prefinetune.config import OptimizerSettings, make_config
from prefinetune.errors import InputError
from prefinetune.export import assemble
from prefinetune.families import Choice, Classification, Denoising, Encoded, Regression, Span
from prefinetune.loop import fit, make_optimizer, schedule
from prefinetune.mixture import Mixture, hash_key
from prefinetune.model import Backbone, MultiTask
from prefinetune.pretrained import load_backbone
from prefinetune.splits import open_task
from prefinetune.store import build_store
from prefinetune.stream import reads_streams
from prefinetune.tokenizer import load_tokenizer
from prefinetune.update import TaskData, draw, update

FAMILIES = {
    "topic": Classification("text", labels=("a", "b", "c")),
    "likeness": Regression("text", low=-2, high=3),
    "story": Choice("text", "options"),
    "reading": Span("question", "context"),
    "words": Denoising("text"),
}

# ---- heads are Transformers' own

VOCABULARY, PAD = 60, 1
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SHAPE |= {"max_position_embeddings": 40, "pad_token_id": PAD, "initializer_range": 0.2}
CONFIGS = {
    "bert": transformers.BertConfig(**SHAPE),
    "roberta": transformers.RobertaConfig(**SHAPE, type_vocab_size=1),
    "xlm-roberta": transformers.XLMRobertaConfig(**SHAPE, type_vocab_size=1),
    "electra": transformers.ElectraConfig(**SHAPE, embedding_size=8),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24, pad_token_id=PAD, initializer_range=0.2
    ),
    "deberta-v2": transformers.DebertaV2Config(
        **SHAPE, type_vocab_size=0, relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"]
    ),
    "modernbert": transformers.ModernBertConfig(**SHAPE, classifier_pooling="cls"),
    "modernbert-mean": transformers.ModernBertConfig(**SHAPE, classifier_pooling="mean"),
    "mpnet": transformers.MPNetConfig(**SHAPE),
    "albert": transformers.AlbertConfig(**SHAPE, embedding_size=8),
}


def random_examples(generator, count=4):
    """A few examples of every family with random tokens and lengths."""
    for source in range(count):
        for task, family in FAMILIES.items():
            rows = 2 + source % 3 if task == "story" else 1
            sequences = [generator.integers(5, VOCABULARY, generator.integers(6, 25)) for _ in range(rows)]
            places = generator.choice(6, 1 + source % 3, replace=False)
            target = {
                "topic": np.array([source % 3]),
                "likeness": np.array([source / count], dtype=np.float32),
                "story": np.array([source % rows]),
                "reading": np.array([1, 3]),
                "words": np.concatenate([places, sequences[0][places]]),
            }[task]
            first = [int(generator.integers(1, len(ids))) for ids in sequences]
            yield Drawn(Encoded(sequences, first, target, source), task, family, 1.0)


def plain_logits(whole, ids, first, token_types):
    """One sequence, unpadded, through a plain Transformers model."""
    inputs = {"input_ids": torch.tensor(ids)[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if token_types:
        inputs["token_type_ids"] = torch.tensor([[0] * first + [1] * (len(ids) - first)])
    if "MultipleChoice" in type(whole).__name__:
        inputs = {name: value[None] for name, value in inputs.items()}
    return whole(**inputs)


@pytest.mark.parametrize(
    ("name", "packed"), [(name, packed) for name in CONFIGS for packed in (False, True)[: 1 + reads_streams(CONFIGS[name])]]
)
@torch.no_grad()
def test_heads_on_a_mixed_batch_equal_plain_transformers_on_each_sequence_alone(name, packed):
    torch.manual_seed(0)
    model = MultiTask(Backbone(transformers.AutoModel.from_config(CONFIGS[name])), FAMILIES).eval()
    token_types = name in ("bert", "electra", "albert")
    layout = microworld.layout(model, packed, token_types)
    batch = make_batch(list(random_examples(np.random.default_rng(0))), layout)
    close = {"rtol": 1e-5, "atol": 1e-5}
    for segment, output, _ in model(batch):
        whole = assemble(model, segment.task)
        assert isinstance(whole, getattr(transformers, model.head(segment.task).auto_model)._model_mapping[type(CONFIGS[name])])
        for at, example in enumerate(segment.examples):
            pairs = zip(example.sequences, example.first, strict=True)
            alone = [plain_logits(whole, ids, first, token_types) for ids, first in pairs]
            if segment.task == "topic":
                torch.testing.assert_close(output[at], alone[0].logits[0], **close)
            elif segment.task == "likeness":
                torch.testing.assert_close(output[at] * 5 - 2, alone[0].logits[0, 0], **close)
            elif segment.task == "story":
                torch.testing.assert_close(output[at, : len(alone)], torch.cat([one.logits[0] for one in alone]), **close)
                assert (output[at, len(alone) :] == -math.inf).all()
            elif segment.task == "reading":
                length = len(example.sequences[0])
                expected = torch.stack([alone[0].start_logits[0], alone[0].end_logits[0]], dim=-1)
                torch.testing.assert_close(output[at, :length], expected, **close)
                assert (output[at, length:] == -math.inf).all()
            else:
                places, _ = example.target.reshape(2, -1)
                mine = output[segment.targets[0] == at]
                torch.testing.assert_close(mine, alone[0].logits[0, places], **close)
        assert output[output.isfinite()].std() > 1e-3  # they are not equal for being all the same


def test_classification_has_a_head_per_task_and_choice_and_span_one_each_with_nothing_added_to_the_trunk():
    trunk = transformers.AutoModel.from_config(CONFIGS["roberta"])
    size = trunk.num_parameters()
    labels = {f"c{count}": Classification("text", labels=tuple("abcdefgh"[:count])) for count in range(2, 7)}
    shared = {f"{kind}{number}": FAMILIES[kind] for kind in ("story", "reading", "words") for number in range(4)}
    model = MultiTask(Backbone(trunk), labels | shared)
    assert sorted(model.heads) == sorted([f"classification/{task}" for task in labels] + ["choice", "language", "span"])
    assert model.head("story0") is model.head("story3")
    assert model.head("c2") is not model.head("c3")
    assert [model.head(task).model.num_labels for task in labels] == [2, 3, 4, 5, 6]
    assert model.backbone.trunk.num_parameters() == size == sum(p.numel() for p in model.backbone.parameters())


def test_a_head_starts_from_the_seed_and_its_key_whatever_other_tasks_there_are():
    def state(families, seed=0):
        torch.manual_seed(len(families))  # must not matter
        model = MultiTask(Backbone(transformers.AutoModel.from_config(CONFIGS["roberta"])), families, seed)
        return model.head("topic").state_dict()

    alone, among, other = state({"topic": FAMILIES["topic"]}), state(dict(reversed(FAMILIES.items()))), state(FAMILIES, 1)
    assert alone.keys() == among.keys()
    assert all(torch.equal(alone[name], among[name]) for name in alone)
    assert not all(torch.equal(alone[name], other[name]) for name in alone)
    spread = alone["model.classifier.dense.weight"].std()
    assert float(spread) == pytest.approx(0.2, rel=0.2)  # as the architecture's initializer_range says


# ---- one update


@pytest.fixture(scope="module")
def data(tiny_model, world_suite, tmp_path_factory):
    """(tokenizer, tasks) of the small suite."""
    tokenizer = load_tokenizer(str(tiny_model), None, transformers.AutoConfig.from_pretrained(tiny_model))
    folder, tasks = tmp_path_factory.mktemp("stores"), []
    for one in (open_task(task) for task in world_suite):
        tasks.append(TaskData(one.task.name, one.family, build_store(one, "train", tokenizer, folder)))
    return tokenizer, tasks


@pytest.fixture
def model(tiny_model, data):
    return MultiTask(load_backbone(str(tiny_model)), {task.name: task.family for task in data[1]})


def mixture_of(tasks, sub_batches=12):
    sizes = tuple(len(task.store) for task in tasks)
    return Mixture(sizes, sizes, sub_batches, sub_batch_size=5, updates=100)


def step(model, data, number=0, budget=512, clip=0.0, optimizer=None, tasks=None, packed=True):
    """One update of the small suite, by SGD that does not move unless an optimizer is given."""
    tokenizer, every = data
    drawn = draw(mixture_of(tasks or every), number, tasks or every, tokenizer)
    batches = micro_batches(drawn, budget, microworld.layout(model, packed))
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.0)
    return update(model, optimizer, batches, clip, Accelerator())


def gradients(model):
    return {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def norm_of(found):
    return math.sqrt(sum(float((gradient**2).sum()) for gradient in found.values()))


def assert_near(found, expected, tolerance=1e-5):
    """Equal up to a share of the whole gradient's norm, and none missing."""
    assert found.keys() == expected.keys()
    distance = norm_of({name: found[name] - expected[name] for name in found})
    assert distance < tolerance * norm_of(expected)


def naive_gradients(model, data, number=0):
    """The mean over sub-batches of each one's mean scaled loss, one sub-batch after another, formulas written out."""
    tokenizer, tasks = data
    model.zero_grad()
    sub_batches = mixture_of(tasks).update(number)
    losses = []
    for sub_batch in sub_batches:
        task, drawn = tasks[sub_batch.task], []
        for place, index in enumerate(sub_batch.examples.tolist()):
            generator = np.random.default_rng(int(hash_key(sub_batch.key, place)) >> 1)
            drawn.append(Drawn(task.family.draw(task.store[index], tokenizer, generator), task.name, task.family, 0.0))
        ((segment, output, _),) = model(make_batch(drawn, microworld.layout(model, packed=False)))
        each = []
        for at, example in enumerate(segment.examples):
            target = torch.tensor(example.target)
            match task.family.kind:
                case "classification":
                    each.append(-output[at].log_softmax(-1)[target[0]] / math.log(output.shape[1]))
                case "choice":
                    count = len(example.sequences)
                    each.append(-output[at, :count].log_softmax(-1)[target[0]] / math.log(count))
                case "regression":
                    each.append(12 * (output[at] - target[0]) ** 2)
                case "span":
                    length = len(example.sequences[0])
                    start, end = output[at, :length].log_softmax(0)[target, [0, 1]]
                    each.append(-(start + end) / 2 / math.log(length))
                case "denoising":
                    mine = output[segment.targets[0] == at].log_softmax(-1)
                    true = target[len(target) // 2 :]
                    each.append(-mine[torch.arange(len(true)), true].mean() / math.log(output.shape[1]))
        losses.append(torch.stack(each).mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("packed", [False, True])
def test_an_updates_gradient_is_the_mean_over_its_sub_batches_of_their_mean_scaled_losses(model, data, packed):
    loss, expected = naive_gradients(model, data)
    report = step(model, data, packed=packed)
    assert_near(gradients(model), expected)
    assert report.loss == pytest.approx(loss, rel=1e-5)
    assert report.grad_norm == pytest.approx(norm_of(expected), rel=1e-5)
    assert len(report.loss_by_task) >= 2


@pytest.mark.parametrize("packed", [False, True])
def test_the_gradient_does_not_depend_on_how_the_update_is_cut_into_micro_batches(model, data, packed):
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    step(model, data, budget=100_000, packed=packed)
    expected, before = gradients(model), len(passes)
    numbers = {before}
    for budget in (1, 60, 300, 1000):
        passes.clear()
        step(model, data, budget=budget, packed=packed)
        assert_near(gradients(model), expected)
        numbers.add(len(passes))
    assert len(numbers) > 3  # they were cut differently


def test_clipping_happens_once_to_the_gradient_of_the_whole_update(model, data):
    step(model, data, budget=60)
    whole = gradients(model)
    report = step(model, data, budget=60, clip=0.01)
    assert report.grad_norm == pytest.approx(norm_of(whole), rel=1e-4)  # as it was before
    assert_near(gradients(model), {name: gradient * 0.01 / norm_of(whole) for name, gradient in whole.items()}, 1e-4)


def test_a_head_that_no_example_used_has_no_gradient_and_is_not_moved_not_even_after_it_was_used(model, data):
    optimizer = make_optimizer(model, OptimizerSettings(learning_rate=1e-2, weight_decay=0.1))
    _, tasks = data
    assert len(step(model, data, optimizer=optimizer).loss_by_task) > 2
    step(model, data, 1, optimizer=optimizer)
    used, state = tasks[:2], {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, data, 2, optimizer=optimizer, tasks=used)
    mine = tuple(f"heads.{task.family.head_key(task.name)}." for task in used)
    for name, parameter in model.named_parameters():
        if name.startswith("heads.") and not name.startswith(mine):
            assert parameter.grad is None
            assert torch.equal(parameter, state[name]), name
        elif name.startswith(mine):
            assert not torch.equal(parameter, state[name]), name


def test_an_update_with_a_loss_that_is_not_finite_moves_nothing_and_names_the_row(model, data):
    tokenizer, tasks = data
    drawn = [Drawn(task.store[3], task.name, task.family, 0.5) for task in tasks if task.family.kind == "regression"]
    drawn[0].example.target[:] = np.nan
    drawn += [Drawn(tasks[0].store[0], tasks[0].name, tasks[0].family, 0.5)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = micro_batches(drawn, 512, model.layout(tokenizer))
    report = update(model, make_optimizer(model, OptimizerSettings()), batches, 1.0, Accelerator())
    assert report.skipped
    assert report.bad == [(drawn[0].task, drawn[0].example.source)]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


# ---- optimizer and schedule


def test_the_rate_rises_linearly_and_falls_as_a_power():
    for power in (1.0, 2.0, 0.0):
        expected = [(n + 1) / 6 for n in range(6)] + [(1 - (n - 6) / 94) ** power for n in range(6, 100)]
        assert [schedule(n, 100, 0.06, power) for n in range(100)] == pytest.approx(expected)
    assert [schedule(n, 4, 0.0, 1.0) for n in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert schedule(0, 1, 0.06, 1.0) > 0  # a run of one update moves


def test_heads_move_at_their_own_rate(model, data):
    """The first step of Adam is the rate itself, whatever the gradient."""
    rates = {"learning_rate": 1e-5, "head_learning_rate": 1e-3, "warmup": 0.0, "weight_decay": 0.0, "epsilon": 1e-12}
    config = make_config({"optimizer": rates, "train": {"updates": 1, "checkpoint_every": None}})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, *data, validation={}, config=config)
    moved = {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters()}
    heads = [value for name, value in moved.items() if name.startswith("heads.") and value]
    trunk = [value for name, value in moved.items() if name.startswith("backbone.")]
    # The bias of the choice head has a gradient of rounding errors only (a softmax does not see it), so not every one is exact.
    assert np.median(heads) == pytest.approx(1e-3, rel=0.001)
    assert max(heads) == pytest.approx(1e-3, rel=0.02)
    assert max(trunk) == pytest.approx(1e-5, rel=0.02)


def test_weights_decay_in_matrices_only(model):
    groups = make_optimizer(model, OptimizerSettings(weight_decay=0.1)).param_groups
    assert {(parameter.ndim > 1, group["weight_decay"]) for group in groups for parameter in group["params"]} == {
        (True, 0.1),
        (False, 0.0),
    }
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


# ---- the language-model head


def test_the_denoising_head_starts_from_the_checkpoints_language_model_head(model, tiny_model):
    whole = transformers.AutoModelForMaskedLM.from_pretrained(tiny_model)
    assert torch.equal(model.heads["language"].model.lm_head.dense.weight, whole.lm_head.dense.weight)


def test_the_denoising_heads_output_layer_stays_the_embedding_matrix_in_training_and_loading(model, data, tiny_model):
    def is_tied(one):
        embeddings = one.backbone.trunk.get_input_embeddings().weight
        return one.heads["language"].model.get_output_embeddings().weight is embeddings

    before = model.backbone.trunk.get_input_embeddings().weight.detach().clone()
    assert is_tied(model)
    fit(model, *data, validation={}, config=make_config({"train": {"updates": 2, "checkpoint_every": None}}))
    assert is_tied(model)
    assert not torch.equal(before, model.backbone.trunk.get_input_embeddings().weight)
    again = MultiTask(load_backbone(str(tiny_model)), model.families)
    again.load_unique_state(model.unique_state())
    assert is_tied(again)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_denoising_is_refused_where_the_architecture_has_no_language_model_head(tmp_path):
    trunk = transformers.AutoModel.from_config(transformers.XLNetConfig(vocab_size=9, d_model=8, n_layer=1, n_head=1, d_inner=8))
    trunk.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="model type 'xlnet' has no MaskedLM head"):
        MultiTask(Backbone(trunk), {"words": FAMILIES["words"]})


def test_an_architecture_whose_heads_were_not_compared_with_transformers_is_refused(tmp_path):
    transformers.XLNetConfig(vocab_size=9, d_model=8, n_layer=1, n_head=1, d_inner=8).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="type 'xlnet' is not one whose heads were checked; accepted: albert, bert"):
        load_backbone(str(tmp_path))
