"""The formulas of docs/method.md in float64, where no mirror of src holds them: all families in one update, AdamW, subsets."""

import math
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

import microworld
from prefinetune.batch import Drawn, make_batch, micro_batches
from prefinetune.config import make_config
from prefinetune.errors import InputError
from prefinetune.families import Choice, Classification, Denoising, Encoded, Example, Regression, Span
from prefinetune.finetune import choose, with_length
from prefinetune.loop import fit
from prefinetune.model import Backbone, MultiTask
from prefinetune.objective import example_weights
from prefinetune.tokenizer import Tokenizer
from prefinetune.update import TaskData, update

# ---- few-label subsets

LABELLED, UNLABELLED = Classification("text"), Choice("text", "options")


class Targets:
    """What `choose` reads of a store."""

    def __init__(self, *sizes):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        self.targets = np.random.default_rng(0).permutation(labels)[:, None]  # [n, 1]

    def __len__(self):
        return len(self.targets)

    def all_targets(self):
        return list(self.targets)


def classes_of(store, chosen, num_classes):
    return np.bincount(store.targets[chosen, 0], minlength=num_classes).tolist()


def seats(sizes, count):
    """Sainte-Laguë: each seat goes where size / (2 x seats + 1) is largest; first one to every class, the largest first."""
    found = [0] * len(sizes)
    for _ in range(count):
        open_ = [c for c, size in enumerate(sizes) if found[c] < size]
        empty = [c for c in open_ if not found[c]]
        found[max(empty or open_, key=lambda c: Fraction(sizes[c], 2 * found[c] + 1))] += 1
    return found


@pytest.mark.parametrize("sizes", [(1, 4, 16, 128), (64, 2, 8), (32,)])  # powers of two, so that no two quotients tie
def test_a_subset_has_the_proportions_of_the_classes_and_one_of_each_where_it_can(sizes):
    store = Targets(*sizes)
    for count in range(1, len(store) + 1):
        chosen = choose(store, LABELLED, count, seed=3)
        assert len(set(chosen.tolist())) == count
        assert classes_of(store, chosen, len(sizes)) == seats(sizes, count)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=4), st.integers(0, 99))
@settings(max_examples=20)
def test_a_smaller_subset_lies_in_a_larger_one_of_the_same_seed(sizes, seed):
    for store, family in ((Targets(*sizes), LABELLED), (Targets(sum(sizes)), UNLABELLED)):
        before = set()
        for count in range(1, len(store) + 1):
            now = set(choose(store, family, count, seed).tolist())
            assert before < now
            before = now
        assert before == set(range(len(store)))


def test_without_labels_every_example_is_as_likely_as_any_other_to_be_chosen():
    store, draws = Targets(40), 1500
    times = np.bincount(np.concatenate([choose(store, UNLABELLED, 10, seed) for seed in range(draws)]), minlength=40)
    expected = draws * 10 / 40
    assert np.abs(times - expected).max() < 4 * math.sqrt(expected * 0.75)


def test_a_number_of_labels_may_be_a_share_and_must_fit():
    store = Targets(20, 20)
    assert choose(store, LABELLED, None, 0) is None
    np.testing.assert_array_equal(choose(store, LABELLED, 0.25, 0), choose(store, LABELLED, 10, 0))
    for wrong in (0, -1, 41, 0.0001):
        with pytest.raises(InputError, match="expected 1 to 40 examples, or a share between 0 and 1"):
            choose(store, LABELLED, wrong, 0)


@pytest.mark.parametrize(("labels", "updates"), [(16, 200), (640, 200), (650, 204), (6400, 2000)])
def test_fine_tuning_runs_ten_epochs_and_at_least_two_hundred_updates_evaluated_ten_times(labels, updates):
    config = make_config({"mixture": {"sub_batches": 8, "sub_batch_size": 4}})
    found = with_length(config, {}, labels)
    assert (found.train.updates, found.train.evaluate_every) == (updates, updates // 10)


# ---- the objective

FAMILIES = {
    "topic": Classification("text", labels=("a", "b", "c")),
    "likeness": Regression("text", low=-2, high=3),
    "story": UNLABELLED,
    "reading": Span("question", "context"),
    "words": Denoising("text"),
}


def random_example(generator, task, source):
    sequences = [generator.integers(5, 60, generator.integers(6, 30)) for _ in range(2 + source % 3 if task == "story" else 1)]
    places = generator.choice(6, 1 + source % 3, replace=False)
    target = {
        "topic": [source % 3],
        "likeness": [generator.random()],
        "story": [source % len(sequences)],
        "reading": [1, 4],
        "words": [*places, *sequences[0][places]],
    }[task]
    kind = np.float32 if task == "likeness" else np.int64
    return Encoded(sequences, [len(ids) for ids in sequences], np.array(target, dtype=kind), source)


def formula(kind, output, target, length):
    """Loss / log(outcomes) of one example from its own unpadded output."""
    if kind == "regression":  # [1]
        return 12 * (output[0] - target[0]) ** 2
    if kind == "span":  # [1, l, 2]
        start, end = output[0].log_softmax(0)[target, [0, 1]]
        return -(start + end) / (2 * math.log(length))
    if kind == "denoising":  # [m, v]
        true = target[len(target) // 2 :]
        return -output.log_softmax(-1)[range(len(true)), true].mean() / math.log(output.shape[1])
    return -output[0].log_softmax(-1)[target[0]] / math.log(output.shape[1])  # [1, labels] or [1, options]


@pytest.mark.parametrize("packed", [False, True])
def test_an_update_of_all_families_has_the_gradient_of_the_formulas_however_it_is_cut(packed):
    generator, model = np.random.default_rng(0), small_model(FAMILIES).double()
    sizes = (("reading", 4), ("topic", 3), ("words", 2), ("story", 4), ("likeness", 1), ("reading", 2), ("topic", 5))
    sub_batches = [(task, [random_example(generator, task, source) for source in range(size)]) for task, size in sizes]
    means = []
    for task, examples in sub_batches:
        family, each = FAMILIES[task], []
        for example in examples:
            alone = make_batch([Drawn(example, task, family, 0.0)], microworld.layout(model, packed=False))  # so without padding
            ((_, output, _),) = model(alone)
            each.append(formula(family.kind, output.double(), torch.tensor(example.target), len(example.sequences[0])))
        means.append(torch.stack(each).mean())
    loss = torch.stack(means).mean()
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in expected.values()))

    weights = example_weights([len(examples) for _, examples in sub_batches])
    drawn = [
        Drawn(example, task, FAMILIES[task], weight)
        for (task, examples), weight in zip(sub_batches, weights, strict=True)
        for example in examples
    ]
    numbers = set()
    for budget in (1, 100, 300, 100_000):
        batches = micro_batches(drawn, budget, microworld.layout(model, packed))
        numbers.add(len(batches))
        report = update(model, torch.optim.SGD(model.parameters(), lr=0.0), batches, 0.0, Accelerator())
        assert report.loss == pytest.approx(loss.item(), rel=1e-6)
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        assert torch.sqrt(sum(((found[name] - expected[name]) ** 2).sum() for name in found)) < 1e-6 * norm
    assert len(numbers) == 4


# ---- the optimizer


def encoded(generator, source, rows, target):
    sequences = [generator.integers(5, 60, generator.integers(6, 20)) for _ in range(rows)]
    return Encoded(sequences, [len(ids) for ids in sequences], np.array([target]), source)


@pytest.fixture
def tasks():
    """Three small tasks of random tokens, each with a head of its own."""
    generator = np.random.default_rng(0)
    return [
        TaskData("topics", FAMILIES["topic"], [encoded(generator, i, 1, i % 3) for i in range(24)]),
        TaskData("others", Classification("text", labels=("a", "b")), [encoded(generator, i, 1, i % 2) for i in range(24)]),
        TaskData("stories", UNLABELLED, [encoded(generator, i, 2, i % 2) for i in range(24)]),
    ]


def small_model(families):
    config = microworld.model_config()
    config.update({"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.2})
    torch.manual_seed(0)
    return MultiTask(Backbone(transformers.AutoModel.from_config(config)), families)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(microworld.tokenizer(), 32)


def test_a_run_is_adamw_with_decay_apart_at_the_scheduled_rate_and_idle_heads_left_out(tasks, tokenizer, monkeypatch):
    """Every weight after ten updates, from the run's gradients by the formulas in float64."""
    rate, head_rate, decay, beta1, beta2, epsilon = 1e-3, 4e-3, 0.1, 0.8, 0.95, 1e-6
    optimizer = {
        "learning_rate": rate, "head_learning_rate": head_rate, "weight_decay": decay, "beta1": beta1, "beta2": beta2,
        "epsilon": epsilon, "warmup": 0.2, "decay_power": 2.0, "clip": 0.5,
    }  # fmt: skip
    mixture = {"sub_batches": 2, "sub_batch_size": 4}
    config = make_config({"optimizer": optimizer, "mixture": mixture, "train": {"updates": 10, "checkpoint_every": None}})
    model = small_model({task.name: task.family for task in tasks})
    before = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    gradients = []

    def recording(model, *arguments):
        report = update(model, *arguments)
        gradients.append({n: None if p.grad is None else p.grad.double().numpy() for n, p in model.named_parameters()})
        return report

    monkeypatch.setattr(import_module("prefinetune.loop"), "update", recording)
    fit(model, tokenizer, tasks, validation={}, config=config)

    shares = [1 / 2, 1] + [(1 - number / 8) ** 2 for number in range(8)]
    rested, moved = set(), {}
    for name, parameter in model.named_parameters():
        value, mean, square, times = before[name], 0.0, 0.0, 0
        peak = head_rate if name.startswith("heads.") else rate
        for share, found in zip(shares, gradients, strict=True):
            gradient = found[name]
            if gradient is None:  # neither the weight nor what Adam remembers of it changes
                rested |= {name} if times else set()
                continue
            times += 1
            mean = beta1 * mean + (1 - beta1) * gradient
            square = beta2 * square + (1 - beta2) * gradient**2
            step = (mean / (1 - beta1**times)) / (np.sqrt(square / (1 - beta2**times)) + epsilon)
            value = value - peak * share * (step + (decay * value if value.ndim > 1 else 0.0))
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=0, atol=1e-6, err_msg=name)
        moved[name] = np.abs(value - before[name]).max()
    assert np.median(list(moved.values())) > 1e-3  # a thousand times what they may differ by
    assert any(name.startswith("heads.") for name in rested)


@pytest.mark.parametrize("clip", [0.5, 1.0, 2.0, 0.0])
def test_the_gradient_is_shortened_to_the_clip_and_never_lengthened(clip, tasks, tokenizer):
    def gradient(clip):
        model = small_model({task.name: task.family for task in tasks})
        drawn = [Drawn(task.store[i], task.name, task.family, 1 / 12) for task in tasks for i in range(4)]
        batches = micro_batches(drawn, 256, model.layout(tokenizer))
        report = update(model, torch.optim.SGD(model.parameters(), lr=0.0), batches, clip, Accelerator())
        found = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat(found).numpy(), report.grad_norm

    whole, norm = gradient(0.0)
    assert norm == pytest.approx(np.sqrt((whole**2).sum()), rel=1e-5)
    factor = min(1, clip) if clip else 1  # `clip` in units of the norm
    found, reported = gradient(clip * norm)
    np.testing.assert_allclose(found, whole * factor, rtol=1e-4, atol=1e-9)
    assert reported == pytest.approx(norm)


# ---- heads and masks


def test_every_regression_task_has_a_head_of_its_own_with_one_output():
    model = small_model({"one": Regression("text", low=0, high=1), "two": Regression("text", low=0, high=9)})
    assert sorted(model.heads) == ["regression/one", "regression/two"]
    assert [head.model.num_labels for head in model.heads.values()] == [1, 1]


@pytest.mark.parametrize(("words", "rate"), [(1, 0.15), (3, 0.15), (7, 0.15), (10, 0.15), (30, 0.15), (1, 0.99), (9, 0.99)])
def test_the_number_of_masked_words_is_the_rate_on_average_and_never_none(words, rate, tokenizer):
    family = Denoising("text", rate=rate)
    text = " ".join(microworld.vocabulary()[:words])
    (stored,) = family.encode([Example(((text, None),), None)], tokenizer)
    assert len(stored.sequences[0]) == words + 2
    counts = [len(family.draw(stored, tokenizer, np.random.default_rng(key)).target) // 2 for key in range(1000)]
    expected = max(1.0, rate * words)
    assert set(counts) <= {math.floor(expected), math.ceil(expected)}
    assert np.mean(counts) == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(1000))
