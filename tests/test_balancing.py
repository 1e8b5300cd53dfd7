"""The switches of the objective: losses scaled or not, heads shared or separate, and balancing between tasks, each against its
formula; the default against itself, however gradients are kept apart.

Letters: t tasks, m target tokens, l tokens of a sequence, n labels or options, v size of the vocabulary.
"""

import json
import math
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar

import microworld
import processes
from prefinetune import ranks
from prefinetune.balancing import CAGRAD_RADIUS, Aggregation, Uncertainty, balancing_of
from prefinetune.batch import Drawn, make_batch, micro_batches
from prefinetune.config import LoraSettings, ObjectiveSettings, OptimizerSettings, make_config
from prefinetune.encoder_decoder import EncoderDecoder
from prefinetune.errors import InputError
from prefinetune.export import load_head
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
from prefinetune.finetune import finetune
from prefinetune.loop import fit, make_optimizer
from prefinetune.lora import adapt
from prefinetune.model import Backbone, MultiTask
from prefinetune.objective import example_weights
from prefinetune.pretrained import load_backbone
from prefinetune.results import RunFolder
from prefinetune.tokenizer import Tokenizer
from prefinetune.train import train
from prefinetune.update import TaskData, update

FAMILIES = {
    "topic": Classification("text", labels=("a", "b", "c")),
    "likeness": Regression("text", low=-2, high=3),
    "story": Choice("text", "options"),
    "reading": Span("question", "context"),
    "words": Denoising("text"),
    "several": MultiLabel("text", label="labels", labels=("a", "b", "c", "d")),
    "tags": Tagging("tokens", labels=("O", "B", "I")),
    "summary": Generation("text", "target", label_smoothing=0.0),
}
OF_ENCODERS = ("topic", "likeness", "story", "reading", "words", "several", "tags")
AGGREGATORS = ("pcgrad", "cagrad", "upgrad")
STATIC = ObjectiveSettings()


@pytest.fixture
def torchjd():
    pytest.importorskip("torchjd", reason="TorchJD is not installed (pip install prefinetune[balancing])")


# ---- models, examples, and what their losses are by the formulas


def small_model(families, **options):
    """A RoBERTa of 2 layers x 16 without dropout, in float64."""
    config = microworld.model_config()
    config.update({"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.2})
    torch.manual_seed(0)
    return MultiTask(Backbone(transformers.AutoModel.from_config(config)), families, **options).double()


def adapted_model(families):
    """The small model with adapters, which are not nothing, as they are before the first update."""
    model = small_model(families)
    adapt(model.backbone, LoraSettings(rank=2), 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


def small_bart(families):
    shape = {f"{part}_{of}": size for part in ("encoder", "decoder") for of, size in (("layers", 2), ("attention_heads", 2))}
    shape |= {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64}
    config = transformers.BartConfig(vocab_size=60, dropout=0.0, init_std=0.2, **shape)
    torch.manual_seed(0)
    return MultiTask(EncoderDecoder(transformers.AutoModel.from_config(config)), families).double()


def layout(model, packed=True):
    if model.backbone.config.is_encoder_decoder:
        return model.layout(Tokenizer(microworld.tokenizer(), 32))._replace(packed=packed)
    return microworld.layout(model, packed)


def random_example(generator, task, source, sequences=None):
    count = 2 + source % 3 if task == "story" else 1
    sequences = sequences or [generator.integers(5, 60, generator.integers(8, 30)) for _ in range(count)]
    places = generator.choice(6, 1 + source % 3, replace=False)
    target = {
        "topic": [source % 3],
        "likeness": [generator.random()],
        "story": [source % len(sequences)],
        "reading": [1, 4],
        "words": [*places, *sequences[0][places]],
        "several": generator.integers(0, 2, 4),
        "tags": [0, 0, 0, 1, 3, 4, 0, 1, 2],  # three words: row, place and tag of each
        "summary": [],
    }[task]
    kind = {"likeness": np.float32, "several": np.uint8, "tags": np.int32}.get(task, np.int64)
    output = np.array([0, *generator.integers(5, 60, 1 + source % 4), 2]) if task == "summary" else None
    return Encoded(sequences, [len(ids) for ids in sequences], np.array(target, dtype=kind), source, output=output)


def formula(kind, output, example):
    """(loss, outcomes) of one example from its own unpadded output in float64."""
    target = torch.tensor(example.target.astype(np.float64 if kind == "regression" else np.int64))
    match kind:
        case "regression":  # output [1]
            return 12 * (output[0] - target[0]) ** 2, math.e
        case "span":  # [1, l, 2]
            start, end = output[0].log_softmax(0)[target, [0, 1]]
            return -(start + end) / 2, len(example.sequences[0])
        case "denoising":  # [m, v]
            true = target[len(target) // 2 :]
            return -output.log_softmax(-1)[range(len(true)), true].mean(), output.shape[1]
        case "generation":  # [m, v]
            return -output.log_softmax(-1)[range(len(output)), example.output].mean(), output.shape[1]
        case "multi-label":  # [1, n]
            right = torch.where(target > 0, output[0].sigmoid(), 1 - output[0].sigmoid())
            return -right.log().mean(), 2
        case "tagging":  # [m, n]
            tags = target.reshape(3, -1)[2]
            return -output.log_softmax(-1)[range(len(tags)), tags].mean(), output.shape[1]
    return -output[0].log_softmax(-1)[target[0]], output.shape[1]  # [1, n]


def losses_of(model, sub_batches):
    """Per sub-batch its mean loss, scaled and not, each example read alone, with their graphs."""
    found = []
    for task, examples in sub_batches:
        family, each = model.families[task], []
        for example in examples:
            ((_, output, _),) = model(make_batch([Drawn(example, task, family, 0.0)], layout(model, packed=False)))
            loss, outcomes = formula(family.kind, output.double(), example)
            each.append(torch.stack([loss / math.log(outcomes), loss]))
        found.append(torch.stack(each).mean(0))
    return found


def drawn_of(model, sub_batches):
    weights = example_weights([len(examples) for _, examples in sub_batches])
    return [
        Drawn(example, task, model.families[task], weight)
        for (task, examples), weight in zip(sub_batches, weights, strict=True)
        for example in examples
    ]


def step(model, sub_batches, objective=STATIC, budget=200, optimizer=None):
    """One update, by SGD that does not move unless an optimizer is given."""
    batches = micro_batches(drawn_of(model, sub_batches), budget, layout(model))
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.0)
    return update(model, optimizer, batches, 0.0, Accelerator(), objective)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def flat(found, part="backbone."):
    return torch.cat([gradient.flatten() for name, gradient in found.items() if name.startswith(part)])


def assert_near(found, expected, tolerance=1e-6):
    """Equal up to a share of the whole gradient's norm, and none missing."""
    assert found.keys() == expected.keys()
    assert (flat(found, "") - flat(expected, "")).norm() < tolerance * flat(expected, "").norm()


def sub_batches_of(tasks, seed=0, size=3):
    """A sub-batch of each task, and one more of the first."""
    generator = np.random.default_rng(seed)
    return [(task, [random_example(generator, task, at) for at in range(size)]) for task in (*tasks, tasks[0])]


# ---- scaling


@pytest.mark.parametrize("scaling", ["log", "none"])
@pytest.mark.parametrize(("make", "tasks"), [(small_model, OF_ENCODERS), (small_bart, ("summary", "story", "topic"))])
def test_losses_of_all_families_are_divided_by_the_log_of_their_outcomes_or_not(make, tasks, scaling):
    model = make({task: FAMILIES[task] for task in tasks})
    sub_batches = sub_batches_of(tasks)
    means = [both[0 if scaling == "log" else 1] for both in losses_of(model, sub_batches)]
    loss = torch.stack(means).mean()
    loss.backward()
    expected = gradients(model)
    report = step(model, sub_batches, ObjectiveSettings(scaling=scaling))
    assert report.loss == pytest.approx(loss.item(), rel=1e-6)
    for (task, _), mean in zip(sub_batches[1:-1], means[1:-1], strict=True):
        assert report.loss_by_task[task] == pytest.approx(mean.item(), rel=1e-6)
    assert_near(gradients(model), expected)


# ---- heads


def test_with_separate_heads_there_are_as_many_as_tasks_but_for_the_language_model():
    families = {f"{task}-{at}": FAMILIES[task] for task in ("topic", "story", "reading", "words") for at in (1, 2)}
    shared, separate = (
        MultiTask(small_model({}).backbone, families),
        MultiTask(small_model({}).backbone, families, separate_heads=True),
    )
    of_topics = ["classification/topic-1", "classification/topic-2"]
    assert sorted(shared.heads) == [*["choice"], *of_topics, "language", "span"]
    others = ["choice/story-1", "choice/story-2", "span/reading-1", "span/reading-2"]
    assert sorted(separate.heads) == sorted([*of_topics, *others, "language"])
    for key, head in separate.heads.items():  # so that runs that differ in this only start alike
        start = shared.heads[key if key in shared.heads else key.split("/")[0]].state_dict()
        assert all(torch.equal(value, start[name]) for name, value in head.state_dict().items())


def test_a_separate_head_is_moved_by_its_own_task_only():
    model = small_model({"one": FAMILIES["story"], "other": FAMILIES["story"]}, separate_heads=True)
    generator = np.random.default_rng(0)
    step(model, [("one", [random_example(generator, "story", at) for at in range(3)])])
    assert all(p.grad is not None for p in model.heads["choice/one"].parameters())
    assert all(p.grad is None for p in model.heads["choice/other"].parameters())


@pytest.mark.parametrize("task", ["story", "reading"])
def test_with_one_task_a_separate_head_learns_what_a_shared_one_does(task):
    generator = np.random.default_rng(0)
    data = [TaskData(task, FAMILIES[task], [random_example(generator, task, at) for at in range(12)])]
    trained = []
    for heads in ("shared", "separate"):
        model = small_model({task: FAMILIES[task]}, separate_heads=heads == "separate").float()
        mixture = {"sub_batches": 2, "sub_batch_size": 3}
        config = make_config(
            {"mixture": mixture, "train": {"updates": 4, "checkpoint_every": None}, "objective": {"heads": heads}}
        )
        fit(model, Tokenizer(microworld.tokenizer(), 32), data, {}, config)
        trained.append(list(model.state_dict().values()))
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


SETTINGS = {
    "mixture": {"sub_batches": 4, "sub_batch_size": 3},
    "optimizer": {"learning_rate": 1e-3, "warmup": 0.2},
    "train": {"updates": 6, "log_every": 1, "checkpoint_every": 2, "keep_checkpoints": 9},
}
CHOICES = ("micro/choose-large", "micro/fill-verb")


@pytest.fixture(scope="module")
def suite(world_suite):
    return world_suite.select("micro/subject-category", "micro/find-large", *CHOICES)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stores")


def run(suite, model, out, stores, **objective):
    train(suite, model, out, config=processes.merged(SETTINGS, {"objective": objective}), cache=stores)
    return out


def tensors(folder: Path, *patterns) -> dict[str, torch.Tensor]:
    places = [
        place
        for pattern in patterns or ("model", "heads/*", "checkpoints/step-00000006")
        for place in folder.glob(f"{pattern}/*.safetensors")
    ]
    return {f"{place.relative_to(folder)}:{name}": value for place in sorted(places) for name, value in load_file(place).items()}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def assert_goes_on_alike(suite, model, whole: Path, tmp_path, stores, **objective):
    """A run that has come to its first checkpoint comes to the same when it goes on from there."""
    again = shutil.copytree(whole, tmp_path / "again")
    for path in (*again.glob("checkpoints/step-0000000[46]"), again / "model", again / "heads"):
        shutil.rmtree(path)
    (again / "results.jsonl").unlink()
    train(suite, model, again, config=processes.merged(SETTINGS, {"objective": objective}), cache=stores, resume=True)
    assert_same_bits(tensors(whole), tensors(again))
    times = {"examples_per_second", "tokens_per_second"}
    lines = [[{k: v for k, v in line.items() if k not in times} for line in RunFolder(one).metrics()] for one in (whole, again)]
    assert lines[0] == lines[1]


def test_separate_heads_go_through_resuming_saving_and_fine_tuning(suite, dropout_model, tiny_model, stores, tmp_path):
    out = run(suite, dropout_model, tmp_path / "separate", stores, heads="separate")
    assert_goes_on_alike(suite, dropout_model, out, tmp_path, stores, heads="separate")
    heads = {path.name for path in (out / "heads").iterdir()}
    assert {"choice-micro-choose-large", "choice-micro-fill-verb", "span-micro-find-large"} <= heads
    assert len(heads) == 4

    family = FAMILIES["story"]
    for task in CHOICES:  # what fine-tuning asks for: the family's head, of a model of one task
        model = MultiTask(load_backbone(str(tiny_model)), {task: family}, seed=5)
        assert load_head(model, task, out)
        saved = load_file(out / "heads" / f"choice-{task.replace('/', '-')}" / "head.safetensors")
        found = model.head(task).plain_state()
        assert all(torch.equal(value, found[name]) for name, value in saved.items())
    both = MultiTask(load_backbone(str(tiny_model)), dict.fromkeys(CHOICES, family))
    assert not any(load_head(both, task, out) for task in CHOICES), "one head cannot take over two"

    short = {"train": {"updates": 2, "evaluate_every": 2, "checkpoint_every": None, "patience": None}}
    (task,) = suite.select(CHOICES[1])
    assert finetune(task, out, tmp_path / "tuned", config=short, cache=stores).record["head"] == "kept"


def test_separate_heads_start_from_the_one_that_an_earlier_run_shares(suite, tiny_model, stores, tmp_path):
    out = run(suite, tiny_model, tmp_path / "shared", stores)
    assert not any("weight_by_task" in line for line in RunFolder(out).metrics()), "static balancing has none"
    model = MultiTask(load_backbone(str(tiny_model)), dict.fromkeys(CHOICES, FAMILIES["story"]), seed=5, separate_heads=True)
    saved = load_file(out / "heads" / "choice" / "head.safetensors")
    for task in CHOICES:
        assert load_head(model, task, out)
        found = model.head(task).plain_state()
        assert all(torch.equal(value, found[name]) for name, value in saved.items())


# ---- balancing by uncertainty


def uncertain(model, values=None):
    model.balancing = Uncertainty(list(model.families)).double()
    for task, value in (values or {}).items():
        model.balancing.log_variance(task).data.fill_(value)
    return model


def test_uncertainty_has_the_gradient_of_losses_over_variances_and_half_their_logs():
    values = {task: 0.3 * at - 1 for at, task in enumerate(OF_ENCODERS)}
    model = uncertain(small_model({task: FAMILIES[task] for task in OF_ENCODERS}), values)
    sub_batches = sub_batches_of(OF_ENCODERS)
    each = []
    for (task, _), (scaled, _) in zip(sub_batches, losses_of(model, sub_batches), strict=True):
        log_variance = model.balancing.log_variance(task)
        each.append(scaled / log_variance.exp() + log_variance / 2)
    torch.stack(each).mean().backward()
    expected = gradients(model)
    assert sum(name.startswith("balancing.") for name in expected) == len(OF_ENCODERS)
    report = step(model, sub_batches)
    assert_near(gradients(model), expected)
    assert report.weight_by_task == pytest.approx({task: math.exp(-value) for task, value in values.items()})
    scaled = torch.stack([both[0] for both in losses_of(model, sub_batches)]).mean()
    assert report.loss == pytest.approx(scaled.item(), rel=1e-6), "what is reported can be compared with other balancing"


def test_uncertainty_starts_as_static_and_leaves_the_variance_of_an_idle_task_alone():
    families = {task: FAMILIES[task] for task in ("topic", "story", "reading")}
    plain, model = small_model(families), uncertain(small_model(families))
    step(plain, sub_batches_of(("topic", "story")))
    optimizer = make_optimizer(model, OptimizerSettings(uncertainty_learning_rate=0.5))
    step(model, sub_batches_of(("topic", "story", "reading")), optimizer=optimizer)
    model.load_state_dict(uncertain(small_model(families)).state_dict())
    idle = model.balancing.log_variance("reading")
    step(model, sub_batches_of(("topic", "story")), optimizer=optimizer)
    assert idle.grad is None
    assert idle.item() == 0
    assert model.balancing.log_variance("topic").item() != 0
    found = gradients(model)
    assert_near({name: value for name, value in found.items() if not name.startswith("balancing.")}, gradients(plain))


def test_log_variances_move_at_a_rate_of_their_own_and_do_not_decay():
    """The first step of Adam is the rate itself, whatever the gradient."""
    generator = np.random.default_rng(0)
    data = [TaskData("topic", FAMILIES["topic"], [random_example(generator, "topic", at) for at in range(12)])]
    model = small_model({"topic": FAMILIES["topic"]}).float()
    optimizer = {"uncertainty_learning_rate": 0.03, "weight_decay": 0.5, "warmup": 0.0}
    objective, length = {"balancing": "uncertainty"}, {"updates": 1, "checkpoint_every": None}
    fit(
        model,
        Tokenizer(microworld.tokenizer(), 32),
        data,
        {},
        make_config({"optimizer": optimizer, "objective": objective, "train": length}),
    )
    assert abs(model.balancing.log_variance("topic").item()) == pytest.approx(0.03, rel=1e-3)
    groups = make_optimizer(model, OptimizerSettings(**optimizer)).param_groups
    (group,) = (group for group in groups if model.balancing.log_variance("topic") in set(group["params"]))
    assert (group["peak"], group["weight_decay"]) == (0.03, 0.0)


@pytest.mark.parametrize("balancing", ["uncertainty", "pcgrad"])
def test_a_balanced_run_goes_on_to_the_same_bits(balancing, suite, dropout_model, stores, tmp_path, request):
    if balancing == "pcgrad":
        request.getfixturevalue("torchjd")
    out = run(suite, dropout_model, tmp_path / "whole", stores, balancing=balancing)
    assert_goes_on_alike(suite, dropout_model, out, tmp_path, stores, balancing=balancing)
    last = RunFolder(out).metrics()[-1]["weight_by_task"]
    assert any(weight != 1 for line in RunFolder(out).metrics() for weight in line["weight_by_task"].values())
    if balancing == "uncertainty":
        saved = tensors(out, "checkpoints/step-00000006")
        variances = {name.split("|")[0] for name in saved if "log_variance" in name}
        assert len(variances) == 2 * len(suite)  # each, and what the optimizer remembers of it
        assert last.keys() == {task.name for task in suite}


# ---- gradients kept apart


def apart(model, weighting=lambda gramian: torch.ones(len(gramian))):
    model.balancing = Aggregation(weighting)
    return model


@pytest.mark.parametrize("make", [small_model, adapted_model, small_bart])
def test_gradients_kept_apart_and_added_up_are_those_of_static_balancing(make):
    tasks = ("summary", "story", "topic") if make is small_bart else OF_ENCODERS
    families = {task: FAMILIES[task] for task in tasks}
    plain, model, sub_batches = make(families), apart(make(families)), sub_batches_of(tasks)
    expected = step(plain, sub_batches)
    for budget in (30, 100_000):
        found = step(model, sub_batches, budget=budget)
        assert_near(gradients(model), gradients(plain))
        assert found.loss == pytest.approx(expected.loss)
        assert found.grad_norm == pytest.approx(expected.grad_norm)
        assert found.weight_by_task == dict.fromkeys(tasks, 1)
    few = sub_batches_of(("summary",) if make is small_bart else ("words", "reading"))
    step(plain, few)
    step(model, few)
    assert_near(gradients(model), gradients(plain))
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert any(name.startswith("heads.") for name in idle)
    assert any("pooler" in name for name in idle) == (make is not small_bart)  # no task that reads it
    if make is adapted_model:
        assert {p.requires_grad for name, p in model.named_parameters() if "lora_" not in name and "heads." not in name} == {
            False
        }


@pytest.mark.parametrize("make", [small_model, adapted_model])
def test_the_products_that_weights_are_made_of_are_those_of_tasks_gradients_on_the_trunk(make):
    families, seen = {task: FAMILIES[task] for task in OF_ENCODERS}, []

    def weighting(gramian):
        seen.append(gramian)
        return torch.arange(1.0, len(gramian) + 1)

    plain, model, sub_batches = make(families), apart(make(families), weighting), sub_batches_of(OF_ENCODERS)
    rows, heads = trunk_rows(plain, sub_batches)
    step(model, sub_batches)
    tasks = sorted(OF_ENCODERS)
    matrix = torch.stack([rows[task] for task in tasks])  # [t, numbers of the trunk]
    expected = matrix @ matrix.T
    torch.testing.assert_close(seen[0], expected / expected.trace(), rtol=1e-5, atol=1e-7)
    combined = torch.arange(1.0, len(tasks) + 1).double() @ matrix
    assert (all_of(model, "backbone.") - combined).norm() < 1e-6 * combined.norm()
    assert (all_of(model, "heads.") - heads).norm() < 1e-6 * heads.norm()


def all_of(model, part):
    """The gradient on a part, with zeros where there is none."""
    every = [
        (p.grad if p.grad is not None else torch.zeros_like(p)) for name, p in model.named_parameters() if name.startswith(part)
    ]
    return torch.cat([one.flatten() for one in every]).clone()


def trunk_rows(model, sub_batches):
    """Each task's part of the update's gradient on the trunk, and the sum of those on heads, from plain backward passes."""
    rows, heads = {}, 0
    for task in dict.fromkeys(task for task, _ in sub_batches):
        model.zero_grad()
        means = [scaled for (one, _), (scaled, _) in zip(sub_batches, losses_of(model, sub_batches), strict=True) if one == task]
        (torch.stack(means).sum() / len(sub_batches)).backward()
        rows[task], heads = all_of(model, "backbone."), heads + all_of(model, "heads.")
    return rows, heads


def test_every_micro_batch_is_of_one_task_and_every_example_is_in_one():
    model = apart(small_model({task: FAMILIES[task] for task in OF_ENCODERS}))
    drawn = drawn_of(model, sub_batches_of(OF_ENCODERS, size=9))
    for budget in (60, 10_000):
        batches = micro_batches(drawn, budget, layout(model))
        assert all(len({segment.task for segment in batch.segments}) == 1 for batch in batches)
        found = [(s.task, id(example)) for batch in batches for s in batch.segments for example in s.examples]
        assert sorted(found) == sorted((one.task, id(one.example)) for one in drawn)
    assert len(batches) == len(OF_ENCODERS)


# ---- TorchJD's aggregators


def opposed(same=False):
    """Two tasks of one head that read the same, with opposite labels (or the same)."""
    families = {"one": FAMILIES["story"], "other": FAMILIES["story"]}
    generator = np.random.default_rng(3)
    read = [[generator.integers(5, 60, 12) for _ in range(2)] for _ in range(4)]
    sub_batches = [
        (task, [random_example(generator, "story", at + flip, sequences) for at, sequences in enumerate(read)])
        for task, flip in (("one", 0), ("other", 0 if same else 1))
    ]
    return families, [*sub_batches, ("one", sub_batches[0][1][:1])] if not same else sub_batches


def aggregated(balancing, families, sub_batches):
    model = small_model(families)
    objective = ObjectiveSettings(balancing=balancing)
    model.balancing = balancing_of(objective, model)
    torch.manual_seed(0)
    step(model, sub_batches, objective)
    return model


@pytest.mark.usefixtures("torchjd")
@pytest.mark.parametrize("balancing", AGGREGATORS)
def test_with_one_task_every_aggregator_is_static(balancing):
    families, sub_batches = {"topic": FAMILIES["topic"]}, sub_batches_of(("topic",))
    plain = small_model(families)
    step(plain, sub_batches)
    assert_near(gradients(aggregated(balancing, families, sub_batches)), gradients(plain), 1e-5)


@pytest.mark.usefixtures("torchjd")
@pytest.mark.parametrize("balancing", AGGREGATORS)
def test_where_gradients_are_the_same_every_aggregator_is_static(balancing):
    families, sub_batches = opposed(same=True)
    plain = small_model(families)
    step(plain, sub_batches)
    assert_near(gradients(aggregated(balancing, families, sub_batches)), gradients(plain), 1e-5)


@pytest.mark.usefixtures("torchjd")
@pytest.mark.parametrize("balancing", AGGREGATORS)
def test_two_gradients_that_conflict_are_put_together_as_the_papers_say(balancing):
    families, sub_batches = opposed()
    rows, heads = trunk_rows(small_model(families), sub_batches)
    one, other = rows["one"], rows["other"]
    assert one @ other < -0.1 * one.norm() * other.norm()
    if balancing == "cagrad":
        mean = (one + other) / 2
        radius = CAGRAD_RADIUS * mean.norm()

        def dual(share):  # what Liu et al. minimize over the weights of the worst-off
            mix = share * one + (1 - share) * other
            return float(mix @ mean + radius * mix.norm())

        share = minimize_scalar(dual, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}).x
        mix = share * one + (1 - share) * other
        expected = 2 * (mean + radius * mix / mix.norm()) / (1 + CAGRAD_RADIUS)
    else:  # of two gradients, each loses its part along the other, by PCGrad as by the projection to the dual cone
        expected = one - (one @ other) / (other @ other) * other + other - (one @ other) / (one @ one) * one
    model = aggregated(balancing, families, sub_batches)
    tolerance = {"pcgrad": 1e-6, "cagrad": 1e-4, "upgrad": 1e-3}[balancing]  # UPGrad's problem has 1e-4 on its diagonal
    assert (all_of(model, "backbone.") - expected).norm() < tolerance * expected.norm()
    assert (expected - one - other).norm() > 0.05 * expected.norm()
    assert (all_of(model, "heads.") - heads).norm() < 1e-6 * heads.norm(), "heads have their plain gradients"


@pytest.mark.usefixtures("torchjd")
@pytest.mark.parametrize("balancing", AGGREGATORS)
def test_weights_do_not_depend_on_the_size_of_gradients(balancing):
    """TorchJD takes small products for nothing."""
    model = small_model({})
    weigh = balancing_of(ObjectiveSettings(balancing=balancing), model).weights
    products = torch.tensor([[4.0, -1.0, 0.5], [-1.0, 2.0, -1.5], [0.5, -1.5, 3.0]], dtype=torch.float64)
    torch.manual_seed(0)
    expected = weigh(products)
    assert expected != [1, 1, 1]
    for scale in (1e-12, 1e9):
        assert weigh(scale * products) == pytest.approx(expected, rel=1e-6)
    assert weigh(0 * products) == [1, 1, 1]
    assert weigh(math.nan * products) == [1, 1, 1]  # the update will be skipped


@pytest.mark.usefixtures("torchjd")
def test_the_order_that_pcgrad_takes_tasks_in_is_a_function_of_the_updates_seed():
    model, generator = small_model({}), np.random.default_rng(0)
    weigh = balancing_of(ObjectiveSettings(balancing="pcgrad"), model).weights
    rows = torch.tensor(generator.normal(size=(9, 4)))
    found = []
    for seed, draws in ((3, 0), (3, 7), (4, 0)):
        torch.manual_seed(seed)
        torch.rand(draws)
        state = torch.get_rng_state()
        found.append(weigh(rows @ rows.T))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1] != found[2]


# ---- several processes


SEVERAL = """
import json, sys
sys.path.insert(0, {tests!r})
import microworld
from prefinetune.train import train
given = json.loads({given!r})
suite = microworld.world(0, rows_per_task=48, validation_rows=16).select(*given["tasks"])
for balancing, settings in given["runs"].items():
    train(suite, given["model"], given["out"] + "/" + balancing, config=settings, cache=given["cache"])
"""


def test_two_processes_balance_as_one_does(tiny_model, stores, tmp_path):
    tasks = ("micro/subject-category", "micro/find-large", *CHOICES)
    suite = microworld.world(0, rows_per_task=48, validation_rows=16).select(*tasks)
    runs = {
        balancing: processes.merged(SETTINGS, {"objective": {"balancing": balancing, "heads": "separate"}})
        for balancing in ("uncertainty", *(AGGREGATORS if find_spec("torchjd") else ()))
    }
    for balancing, settings in runs.items():
        train(suite, tiny_model, tmp_path / "alone" / balancing, config=settings, cache=stores)
    given = {"tasks": tasks, "runs": runs, "model": str(tiny_model), "out": str(tmp_path / "both"), "cache": str(stores)}
    path = tmp_path / "run.py"
    path.write_text(SEVERAL.format(tests=str(Path(__file__).parent), given=json.dumps(given)))
    processes.run_job(path, 2)
    for balancing in runs:
        alone, both = tmp_path / "alone" / balancing, tmp_path / "both" / balancing
        for mine, theirs in zip(RunFolder(alone).metrics(), RunFolder(both).metrics(), strict=True):
            assert mine["weight_by_task"] == pytest.approx(theirs["weight_by_task"], rel=1e-3)
            assert (mine["loss"], mine["grad_norm"]) == pytest.approx((theirs["loss"], theirs["grad_norm"]), rel=1e-4)
        first, second = tensors(alone), tensors(both)
        assert first.keys() == second.keys()
        assert any("log_variance" in name for name in first) == (balancing == "uncertainty")
        for name, value in first.items():
            torch.testing.assert_close(value, second[name], rtol=0, atol=1e-4)


# ---- what cannot be had


@pytest.mark.parametrize("balancing", AGGREGATORS)
def test_without_torchjd_an_aggregator_is_refused_before_data_is_read(balancing, suite, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(InputError, match=rf"'{balancing}' needs TorchJD .*`pip install prefinetune\[balancing\]`"):
        train(suite, tiny_model, tmp_path / "run", config={"objective": {"balancing": balancing}}, cache=tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("torchjd")
def test_an_aggregator_is_refused_on_a_sharded_trunk(monkeypatch):
    model = small_model({"topic": FAMILIES["topic"]})
    monkeypatch.setattr(ranks, "is_sharded", lambda backbone: True)
    with pytest.raises(
        InputError, match=r"'upgrad' is not possible with a sharded trunk \(FSDP\).*expected static or uncertainty"
    ):
        balancing_of(ObjectiveSettings(balancing="upgrad"), model)
    assert isinstance(balancing_of(ObjectiveSettings(balancing="uncertainty"), model), Uncertainty)
