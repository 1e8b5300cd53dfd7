"""Affinities: what is sampled is right and leaves the training alone; what is read from it is what it says."""

import json
import random
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import microworld
import processes
from prefinetune import ranks
from prefinetune.affinity import FILE, HOLDS, adjust, cluster, first_order, read_affinity, square, stability
from prefinetune.config import LoraSettings, make_config
from prefinetune.errors import InputError
from prefinetune.files import read_records
from prefinetune.gradients import Sampler, between, draw_signs, sketch
from prefinetune.loop import fit, make_optimizer
from prefinetune.lora import adapt
from prefinetune.mixture import Mixture
from prefinetune.model import MultiTask
from prefinetune.pretrained import load_backbone
from prefinetune.prune import prune
from prefinetune.sources import Files
from prefinetune.splits import open_task
from prefinetune.store import build_store
from prefinetune.task import Suite, Task, read_suite
from prefinetune.tokenizer import load_tokenizer
from prefinetune.train import train
from prefinetune.update import TaskData

NAMES = ("subject-category", "larger-subject", "find-large", "choose-large")
SETTINGS = {
    "mixture": {"sub_batches": 3, "sub_batch_size": 4},
    "optimizer": {"learning_rate": 1e-3, "warmup": 0.2},
    "train": {"updates": 14, "log_every": 4, "checkpoint_every": 5, "affinity_every": 3},
}


def small_world() -> Suite:
    return microworld.world(0, rows_per_task=48, validation_rows=16).select(*(f"micro/{name}" for name in NAMES))


def others() -> tuple[Task, ...]:
    return tuple(replace(task, evaluation_only=False) for task in microworld.targets(0, train_rows=64)[:2])


@pytest.fixture(scope="module")
def suite() -> Suite:
    return small_world()


@pytest.fixture(scope="module")
def kept_out() -> tuple[Task, ...]:
    return others()


@pytest.fixture(scope="module")
def sampled(suite, kept_out, dropout_model, tmp_path_factory) -> Path:
    """A run with affinities, and two tasks kept out of it."""
    folder = tmp_path_factory.mktemp("sampled") / "run"
    train(suite, dropout_model, folder, config=SETTINGS, against=kept_out)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    places = [*folder.glob("model/*.safetensors"), *folder.glob("heads/*/*.safetensors")]
    return {f"{place.relative_to(folder)}:{name}": value for place in places for name, value in load_file(place).items()}


def lines(folder: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_records(folder / FILE)]


# ---- what is sampled


def test_sketches_have_the_cosines_of_what_they_are_of():
    generator = np.random.default_rng(0)
    common, size = generator.standard_normal(60_000), 4093
    vectors = [common * share + generator.standard_normal(60_000) * np.linspace(0.1, 2, 60_000) for share in (0, 0.3, 1, 3)]
    exact = np.corrcoef(vectors)  # their means are as good as zero
    found = []
    for seed in range(20):
        signs = draw_signs(60_000, np.random.default_rng(seed), torch.device("cpu"))
        assert set(signs.tolist()) == {1, -1}
        # Cut anyhow: a sketch is of all parameters, one after the other.
        rows = np.stack(
            [sketch([torch.from_numpy(part) for part in np.split(v, [7, 20_000])], signs, [1.0] * 3, size)[0] for v in vectors]
        )
        found.append(np.corrcoef(rows))
    worst = np.abs(np.stack(found) - exact)
    assert worst.max() < 5 / np.sqrt(size)
    assert np.abs(np.mean(found, axis=0) - exact).max() < 2 / np.sqrt(size)  # errors of different signs cancel
    assert worst[:, 0, 1].max() > 0.1 / np.sqrt(size)


def test_a_sketch_as_long_as_the_gradient_is_exact():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 50, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    signs = draw_signs(1050, np.random.default_rng(0), torch.device("cpu"))
    roots = [1.0, 2.0, torch.rand(50, 7, generator=generator, dtype=torch.float64)]
    (one, scaled_one), (other, scaled_other) = (sketch(list(vectors), signs, roots, 1051) for vectors in (first, second))
    assert one @ other == pytest.approx(float((first * second).sum()), rel=1e-12)
    assert one @ one == pytest.approx(float((first * first).sum()), rel=1e-12)
    scaled = sum(float((a * b * root**2).sum()) for a, b, root in zip(first, second, roots, strict=True))
    assert scaled_one @ scaled_other == pytest.approx(scaled, rel=1e-12)


def test_no_gradient_is_multiplied_with_itself():
    sketches = np.random.default_rng(0).standard_normal((3, 2, 5))
    found = square(between(sketches))
    assert found[1, 1] == pytest.approx(sketches[1, 0] @ sketches[1, 1])
    four = [sketches[0, a] @ sketches[2, b] for a in range(2) for b in range(2)]
    assert found[0, 2] == found[2, 0] == pytest.approx(np.mean(four))


def test_training_is_the_same_bit_for_bit(sampled, suite, kept_out, dropout_model, tmp_path):
    settings = {**SETTINGS, "train": {**SETTINGS["train"], "affinity_every": None}}
    torch.manual_seed(7)
    train(suite, dropout_model, tmp_path / "plain", config=settings, against=kept_out)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    train(suite, dropout_model, tmp_path / "sampled", config=SETTINGS, against=kept_out)
    assert torch.equal(torch.get_rng_state(), state)
    plain, with_samples = tensors(tmp_path / "plain"), tensors(tmp_path / "sampled")
    assert plain.keys() == with_samples.keys()
    assert all(torch.equal(value, with_samples[name]) for name, value in plain.items())
    assert not (tmp_path / "plain" / FILE).exists()
    assert [line["step"] for line in lines(sampled)] == [4, 7, 10, 13]
    assert lines(tmp_path / "sampled") == lines(sampled)


def test_a_run_that_goes_on_writes_the_lines_of_one_that_was_not_stopped(sampled, suite, kept_out, dropout_model, tmp_path):
    shutil.copytree(sampled, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000014")  # as if it had been killed behind update 10
    (tmp_path / "run" / "results.jsonl").unlink()
    train(suite, dropout_model, tmp_path / "run", config=SETTINGS, against=kept_out, resume=True)
    assert lines(tmp_path / "run") == lines(sampled)
    assert tensors(tmp_path / "run").keys() == tensors(sampled).keys()


def test_two_processes_find_what_one_does(exact, monkeypatch):
    sampler, optimizer = exact
    alone = sampler.sample(3, optimizer, 4096)
    parts: list[list[np.ndarray]] = []
    for rank in range(2):
        parts.append([])
        monkeypatch.setattr(ranks, "total", lambda values, _: parts[-1].append(values) or values)
        process = SimpleNamespace(process_index=rank, num_processes=2, device=torch.device("cpu"), autocast=nullcontext)
        sampler.accelerator = process
        sampler.sample(3, optimizer, 4096)
    of_both = iter([first + second for first, second in zip(*parts, strict=True)])
    assert all((first == 0).any() and (second == 0).any() for first, second in zip(*parts, strict=True))
    monkeypatch.setattr(ranks, "total", lambda values, _: next(of_both))
    together = sampler.sample(3, optimizer, 4096)
    assert together._replace(seconds=0) == alone._replace(seconds=0)


TOGETHER = """
import sys
sys.path.insert(0, {tests!r})
import test_affinity as given
given.train(given.small_world(), {model!r}, {out!r}, config=given.SETTINGS, against=given.others())
"""


def test_a_run_on_two_processes_writes_the_lines_of_one_up_to_rounding(tiny_model, tmp_path):
    train(small_world(), tiny_model, tmp_path / "alone", config=SETTINGS, against=others())
    script = tmp_path / "run.py"
    names = {"tests": str(Path(__file__).parent), "model": str(tiny_model), "out": str(tmp_path / "both")}
    script.write_text(TOGETHER.format(**names))
    processes.run_job(script, 2, timeout=600, PREFINETUNE_CACHE=str(tmp_path / "cache"))
    alone, both = lines(tmp_path / "alone"), lines(tmp_path / "both")
    assert [one["step"] for one in both] == [one["step"] for one in alone] == [4, 7, 10, 13]
    for one, other in zip(alone, both, strict=True):
        numbers = ("losses", "cosines", "products", "rate")
        assert {key: value for key, value in one.items() if key not in numbers} == {
            key: value for key, value in other.items() if key not in numbers
        }
        assert (one["rate"], one["losses"]) == (pytest.approx(other["rate"], rel=1e-4), pytest.approx(other["losses"], rel=1e-4))
        for key in ("cosines", "products"):
            first, second = square(one[key]), square(other[key])
            np.testing.assert_allclose(first, second, rtol=0, atol=1e-4 * np.abs(first).max())


def test_a_sharded_trunk_is_refused(suite, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "is_sharded", lambda backbone: True)
    with pytest.raises(InputError, match=r"train.affinity_every: .* sharded"):
        train(suite, tiny_model, tmp_path / "run", config=SETTINGS)


# ---- estimates against what happens


@pytest.fixture(params=[None, 2], ids=["the whole trunk", "adapters"])
def exact(request, suite, kept_out, tiny_model, cache, monkeypatch):
    """A model in double precision after some updates, its optimizer, and a sampler without error."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # families compute losses in float32
    tokenizer = load_tokenizer(str(tiny_model), 64)
    opened = [open_task(task) for task in (*suite, *kept_out)]
    data = [TaskData(one.task.name, one.family, build_store(one, "train", tokenizer)) for one in opened]
    tasks, others = data[: len(suite)], data[len(suite) :]
    backbone = load_backbone(str(tiny_model))
    adapt(backbone, LoraSettings(rank=request.param), 0)
    model = MultiTask(backbone, {task.name: task.family for task in tasks}, 0)
    config = make_config(SETTINGS, {"train": {"updates": 6, "checkpoint_every": None}, "optimizer": {"learning_rate": 3e-3}})
    accelerator = fit(model, tokenizer, tasks, {}, config).accelerator
    model.double().zero_grad()
    optimizer = make_optimizer(model, config.optimizer)
    size = sum(parameter.numel() for parameter in learned(model))
    counts = (300, 100, 200, 400)
    mixture = Mixture(counts, counts, 3, 4, updates=10)
    sampler = Sampler(model, tokenizer, tasks, others, (), mixture, config, accelerator, size=size)
    sampler.judge.double()
    sampler.fresh = {task.name: [one.detach().clone() for one in sampler.own(task)] for task in others}
    torch.set_default_dtype(torch.float64)
    yield sampler, optimizer
    torch.set_default_dtype(torch.float32)


def learned(model: MultiTask) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("scaled_by", ["nothing", "AdamW"])
def test_effects_are_those_of_one_step_without_a_task(exact, scaled_by):
    sampler, optimizer = exact
    tasks, trunk = sampler.tasks, learned(sampler.model)
    generator = torch.Generator().manual_seed(1)
    for parameter in trunk:  # what AdamW remembers; 1 where it scales nothing
        square_root = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.1
        kept = square_root.square() if scaled_by == "AdamW" else torch.ones_like(parameter)
        optimizer.state[parameter] = {"step": torch.tensor(1e9), "exp_avg_sq": kept, "exp_avg": torch.zeros_like(parameter)}
    epsilon = optimizer.param_groups[0]["eps"]
    steps = [1 / (optimizer.state[parameter]["exp_avg_sq"].sqrt() + epsilon) for parameter in trunk]

    drawn = [sampler.draw(at, 0, np.random.default_rng([0, 9, 5, at])) for at in range(len(tasks))]  # those of sample 5
    gradients = [sampler.gradient(sampler.model.eval(), mine, trunk, 4096)[0] for mine in drawn]
    shares = np.array([0.3, 0.1, 0.2, 0.4])
    sample = sampler.sample(5, optimizer, 4096)
    rate = 1e-6
    record = {"updates": 1, "rate": rate, "shares": shares.tolist(), "products": sample.products}
    transfer, removal = first_order([record], range(len(tasks)))

    def loss_after(target: int, weights: np.ndarray) -> float:
        """A target's loss on its sampled examples once the trunk has made one step of all tasks' gradients."""
        before = [parameter.detach().clone() for parameter in trunk]
        with torch.no_grad():
            for at, parameter in enumerate(trunk):
                parameter -= rate * steps[at] * sum(w * each[at] for w, each in zip(weights, gradients, strict=True))
        _, loss = sampler.gradient(sampler.model, drawn[target], trunk, 4096)
        with torch.no_grad():
            for parameter, old in zip(trunk, before, strict=True):
                parameter.copy_(old)
        return loss

    for target in range(len(tasks)):
        whole = loss_after(target, shares)
        own = sum((a * b * p).sum() for a, b, p in zip(gradients[target], gradients[target], steps, strict=True))
        # A task with itself is estimated from two samples of it; here the step and the loss are of the same examples.
        noise = shares[target] * rate * (float(own) - square(sample.products)[target, target])
        for source in range(len(tasks)):
            if source == target:
                continue
            without = shares * (np.arange(len(tasks)) != source) / (1 - shares[source])
            happened = loss_after(target, without) - whole
            expected = removal[0, source, target] - shares[source] / (1 - shares[source]) * noise
            assert happened == pytest.approx(expected, rel=1e-2, abs=1e-3 * np.abs(removal).max())
            only = loss_after(target, np.zeros(len(tasks))) - loss_after(target, shares * (np.arange(len(tasks)) == source))
            assert only == pytest.approx(transfer[0, source, target], rel=1e-2, abs=1e-3 * np.abs(transfer).max())


def test_a_target_that_is_not_trained_on_gets_a_head_that_fits_and_leaves_no_trace(exact):
    sampler, optimizer = exact
    before = {name: value.clone() for name, value in sampler.model.state_dict().items()}
    target = sampler.kept_out[0]
    drawn = sampler.draw(len(sampler.tasks), 48, np.random.default_rng(0))
    trunk = learned(sampler.model)
    _, untrained = sampler.gradient(sampler.judge.eval(), drawn[32:], trunk, 4096)
    sampler.fit_head(target, drawn[32:], 4096)
    gradients, fitted = sampler.gradient(sampler.judge, drawn[32:], trunk, 4096)
    assert fitted < untrained - 0.01
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    assert all(torch.equal(value, before[name]) for name, value in sampler.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trunk)
    first = sampler.sample(3, optimizer, 4096)
    assert first._replace(seconds=0) == sampler.sample(3, optimizer, 4096)._replace(seconds=0)  # heads start anew


# ---- what is read


def record(step: int, generator: np.random.Generator, effects: np.ndarray, noise: float = 0.1) -> dict:
    """A line about three tasks and two kept-out ones, whose products with the latter are `effects` [3, 2] and noise."""
    products = np.eye(5)
    products[3:, :3] = effects.T + noise * generator.standard_normal((2, 3))
    rows = [products[at, : at + 1].tolist() for at in range(5)]
    shared = {"updates": 100, "rate": 0.01, "tasks": ["good", "bad", "neutral"], "kept_out": ["x", "y"], "targets": ["x", "y"]}
    return {"step": step, **shared, "shares": [0.5, 0.25, 0.25], "losses": [1.0] * 5, "cosines": rows, "products": rows,
            "seconds": 0.5}  # fmt: skip


EFFECTS = np.array([[0.5, 0.4], [-0.5, -0.3], [0.0, 0.0]])


def write_lines(folder: Path, effects: np.ndarray = EFFECTS, count: int = 12) -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record(10 * at, generator, effects)) + "\n" for at in range(count))
    (folder / FILE).write_text(text)
    return folder


def test_the_set_that_hurts_is_found(tmp_path):
    found = read_affinity(write_lines(tmp_path))
    assert found.targets == ("x", "y")
    assert found.hurting == {"bad": ["x", "y"]}
    assert "this set hurts the 2 kept-out tasks" in found.sentences()[0]
    assert found.sentences()[1].startswith("bad: -")
    estimate = found.transfer["bad", "x"]
    # 100 updates x rate 0.01 x share 0.25 x product -0.5
    assert estimate.low < -0.125 < estimate.high < 0
    assert found.over_targets["good"].verdict == "help"
    assert found.over_targets["neutral"].verdict == "unclear"
    mean = (0.5 * 0.5 - 0.25 * 0.5) / 1  # of all products with x, by share
    assert found.removal["bad", "x"].mean == pytest.approx(0.25 / 0.75 * (-0.5 - mean), abs=0.05)
    assert found.cosines["bad", "x"].mean == found.cosines["x", "bad"].mean


def test_no_set_is_blamed_for_noise(tmp_path):
    blamed = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        text = "".join(json.dumps(record(at, generator, 0 * EFFECTS)) + "\n" for at in range(10))
        (tmp_path / FILE).write_text(text)
        found = read_affinity(tmp_path)
        blamed += bool(found.hurting)
        assert found.hurting or "no set clearly hurts" in found.sentences()[0]
    assert blamed <= 5  # one table of twenty, and only half of those to the bad side


def test_too_few_samples_say_nothing(tmp_path):
    found = read_affinity(write_lines(tmp_path, count=4))
    assert not found.hurting
    assert "too few to say anything" in found.sentences()[0]


def test_a_damaged_line_is_passed_over(tmp_path):
    whole = read_affinity(write_lines(tmp_path))
    text = (tmp_path / FILE).read_text()
    other = json.loads(text.splitlines()[0]) | {"cosines": [[1.0], [0.5]]}
    (tmp_path / FILE).write_text(json.dumps(other) + "\n" + text + text[: len(text) // 24])
    found = read_affinity(tmp_path)
    assert found.samples == whole.samples
    np.testing.assert_array_equal(found.transfer.mean, whole.transfer.mean)
    assert len(found.problems) == 2


def test_what_was_not_sampled_is_no_target(tmp_path):
    write_lines(tmp_path)
    with pytest.raises(InputError, match=r"target 'goood' was not sampled .*did you mean 'good'"):
        read_affinity(tmp_path, ["goood"])
    with pytest.raises(InputError, match=r"holds no affinities .*train.affinity_every"):
        read_affinity(tmp_path / "elsewhere")


def test_a_task_is_not_judged_by_what_it_does_to_itself(tmp_path):
    found = read_affinity(write_lines(tmp_path), ["bad", "x"])
    assert np.isnan(found.transfer["bad", "bad"].mean)
    assert found.over_targets["bad"].mean == pytest.approx(found.transfer["bad", "x"].mean)


def test_holms_correction_passes_over_what_is_not_there():
    chances = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(adjust(chances), [0.03, 0.06, np.nan, 0.06, 0.02])


def test_tasks_that_pull_the_same_way_are_one_cluster(tmp_path):
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((2, 400))
    written = []
    for step in range(8):
        pulls = [directions[at % 2] + 2 * generator.standard_normal((2, 400)) for at in range(5)]
        rows = between(np.stack([pull / np.linalg.norm(pull, axis=1, keepdims=True) for pull in pulls]))
        written.append(json.dumps(record(step, generator, EFFECTS) | {"cosines": rows}))
    (tmp_path / FILE).write_text("\n".join(written))
    found = read_affinity(tmp_path)
    assert {frozenset(group) for group in found.clusters} == {frozenset({"good", "neutral", "y"}), frozenset({"bad", "x"})}
    assert {frozenset(found.order[:3]), frozenset(found.order[:2])} & {frozenset(group) for group in found.clusters}


def cosines_of(blocks: np.ndarray, seed: int, samples: int = 12) -> np.ndarray:
    """[n, a, a]: 0.5 between tasks of one block, 0 between others, 0.8 of a task with itself, and noise."""
    generator = np.random.default_rng(seed)
    noise = 0.2 * generator.standard_normal((samples, len(blocks), len(blocks)))
    mean = np.where(np.eye(len(blocks), dtype=bool), 0.8, 0.5 * (blocks[:, None] == blocks))
    return mean + (noise + noise.transpose(0, 2, 1)) / np.sqrt(2)


@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_are_there_hold_when_updates_are_drawn_anew(seed):
    blocks = np.array([0, 1, 0, 1, 1, 0, 2, 2])
    cosines = cosines_of(blocks, seed)
    groups, _ = cluster(cosines.mean(axis=0))
    held, together = stability(cosines, groups)
    assert {frozenset(group) for group in groups} == {frozenset({0, 2, 5}), frozenset({1, 3, 4}), frozenset({6, 7})}
    assert min(held) >= HOLDS
    one_block = blocks[:, None] == blocks
    assert together[one_block].min() > 0.9
    assert together[~one_block].max() < 0.1


def test_clusters_of_noise_do_not_hold():
    shares, pairs = [], []
    for seed in range(10):
        cosines = cosines_of(np.arange(8), seed)
        groups, _ = cluster(cosines.mean(axis=0))
        held, together = stability(cosines, groups)
        shares += [count for group, count in zip(groups, held, strict=True) if len(group) > 1]
        pairs.append(together[np.tri(8, k=-1, dtype=bool)])
    assert np.mean(np.array(shares) >= HOLDS) < 0.1
    assert ((np.concatenate(pairs) > 0.1) & (np.concatenate(pairs) < 0.9)).mean() > 0.5


def test_which_clusters_hold_is_said(tmp_path):
    names, written = ("good", "bad", "neutral", "x", "y"), []
    for at, cosines in enumerate(cosines_of(np.array([0, 1, 0, 1, 0]), 0)):
        rows = [cosines[row, : row + 1].tolist() for row in range(5)]
        written.append(json.dumps(record(at, np.random.default_rng(at), EFFECTS) | {"cosines": rows}))
    (tmp_path / FILE).write_text("\n".join(written))
    found = read_affinity(tmp_path)
    (sentence,) = found.cluster_sentences()
    assert sentence.startswith("Clusters that hold, in so many of 100 resamples")
    for group, held in zip(found.clusters, found.held, strict=True):
        assert f"({held})" in sentence
        places = [names.index(name) for name in group]
        assert found.together[np.ix_(places, places)].min() >= held / 100
    luck = replace(found, held=(HOLDS - 1,) * len(found.clusters))
    assert luck.cluster_sentences() == [
        "No cluster of two sets or more holds in 80 of 100 resamples of the sampled updates: where they end is luck."
    ]
    assert replace(found, samples=4).cluster_sentences() == replace(found, clusters=(names,)).cluster_sentences() == []


def test_reading_needs_no_torch():
    code = "import sys, prefinetune.affinity, prefinetune.prune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the smaller suite


@pytest.fixture
def run_of_files(tmp_path, tiny_model, cache, monkeypatch) -> Path:
    """A run on three tasks of files of one's own, named relative to the working directory, and lines that blame one."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    world = microworld.World(0)
    (tmp_path / "data").mkdir()
    for name in ("good", "bad", "neutral"):
        rows = [{"t": s.text, "l": s.noun.size} for s, _ in zip(world.sentences(rng), range(40), strict=False)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [
        f"  - {{name: {name}, source: data/{name}.jsonl, classification: {{text: t, label: l}}}}"
        for name in ("good", "bad", "neutral")
    ]
    (tmp_path / "suite.yaml").write_text("\n".join(["tasks:", *tasks, "mixture: {sampling: uniform, cap: 30}"]))
    train("suite.yaml", tiny_model, tmp_path / "run", config={"train": {"updates": 2}})
    return write_lines(tmp_path / "run")


def test_the_smaller_suite_is_what_prune_says(run_of_files, tmp_path, tiny_model, command):
    (tmp_path / "elsewhere").mkdir()
    code, told, _ = command("suite", "prune", run_of_files, "--out", tmp_path / "elsewhere" / "smaller.yaml")
    assert code == 0
    assert "this set hurts the 2 kept-out tasks" in told
    assert "smaller.yaml: without bad, 2 tasks" in told
    text = (tmp_path / "elsewhere" / "smaller.yaml").read_text()
    assert "# - bad is left out: " in text
    suite, whole = read_suite(tmp_path / "elsewhere" / "smaller.yaml"), read_suite(tmp_path / "suite.yaml")
    assert [task.name for task in suite] == ["good", "neutral"]
    assert suite.mixture == whole.mixture
    for task in suite:
        assert isinstance(task.source, Files)
        assert task.source.read("train").digest == whole[task.name].source.read("train").digest
        assert (task.family.text, task.family.label, task.family.labels) == ("t", "l", ("large", "small"))
    train(suite, tiny_model, tmp_path / "again", config={"train": {"updates": 1}})
    assert {line["task"] for line in read_records(tmp_path / "again" / "results.jsonl")} == {"good", "neutral"}


def test_the_suite_stays_as_it_was_where_nothing_clearly_hurts(run_of_files, tmp_path, command):
    write_lines(run_of_files, abs(EFFECTS))
    code, told, _ = command("suite", "prune", run_of_files, "--out", tmp_path / "same.yaml")
    assert code == 0
    assert "no set clearly hurts" in told
    assert "the suite as it was, 3 tasks" in told
    assert [task.name for task in read_suite(tmp_path / "same.yaml")] == ["good", "bad", "neutral"]


def test_prune_can_be_told_what_to_judge_by(run_of_files, tmp_path):
    write_lines(run_of_files, np.array([[0.5, 0.4], [-0.5, 0.5], [0.0, 0.0]]))
    assert prune(run_of_files, tmp_path / "x.yaml", ["x"]).left_out.keys() == {"bad"}
    assert not prune(run_of_files, tmp_path / "y.yaml", ["y"]).left_out
    with pytest.raises(InputError, match=r"y.yaml is there already"):
        prune(run_of_files, tmp_path / "y.yaml", ["x"])
    prune(run_of_files, tmp_path / "y.yaml", ["x"], overwrite=True)
    assert len(read_suite(tmp_path / "y.yaml")) == 2


def test_rows_in_memory_cannot_be_named_in_a_file(sampled, tmp_path):
    with pytest.raises(InputError, match=r"micro/subject-category.*in memory"):
        prune(sampled, tmp_path / "smaller.yaml")
    assert not (tmp_path / "smaller.yaml").exists()


def test_tasks_of_the_catalogue_are_written_by_name(run_of_files, tmp_path):
    from prefinetune.catalog import catalog

    resolved = yaml.safe_load((run_of_files / "suite.yaml").read_text())
    known = catalog()["glue/rte"]
    for entry in resolved["tasks"]:
        if entry["name"] == "neutral":
            settings = {**known.family.settings(), "labels": ["entailment", "not_entailment"]}
            entry.update({"name": "glue/rte", "source": "/mirror/glue-rte", "classification": settings})
    (run_of_files / "suite.yaml").write_text(yaml.safe_dump(resolved))
    prune(run_of_files, tmp_path / "smaller.yaml")
    assert "  - glue/rte\n" in (tmp_path / "smaller.yaml").read_text()
    assert read_suite(tmp_path / "smaller.yaml")["glue/rte"] == known


def test_the_command_shows_tasks_and_clusters(run_of_files, command):
    code, told, _ = command("suite", "affinity", run_of_files)
    assert code == 0
    held = [int(count) for count in re.findall(r"cluster \d+ \(in (\d+) of 100 resamples\): ", told)]
    assert told.index("bad") < told.index("neutral") < told.index("good")
    code, told, _ = command("suite", "affinity", run_of_files, "--targets", "x", "--json")
    assert code == 0
    found = json.loads(told)
    assert found["hurting"] == {"bad": ["x"]}
    assert found["held"] == held
    assert len(held) == len(found["clusters"])
    assert np.diag(found["together"]) == pytest.approx(1)
