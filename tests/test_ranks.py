"""One process or several: the same losses, the same weights, and the same files."""

import json
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import microworld
import processes
from prefinetune import ranks, train
from prefinetune.errors import InputError
from prefinetune.results import RunFolder

R3F = {"objective": {"r3f": 1.0, "noise": 0.1, "r3f_share": 0.5}}


def weights(out: Path) -> dict[str, torch.Tensor]:
    places = [*out.glob("model/*.safetensors"), *out.glob("heads/*/*.safetensors")]
    return {f"{place.relative_to(out)}:{name}": value for place in sorted(places) for name, value in load_file(place).items()}


def losses(out: Path) -> list[tuple[float, ...]]:
    return [(line["loss"], line.get("divergence", 0.0), line["grad_norm"]) for line in RunFolder(out).metrics()]


def counts(out: Path) -> list[dict]:
    names = ("step", "examples", "tokens", "examples_by_task", "tokens_by_task", "skipped", "lr")
    return [{name: line[name] for name in names} for line in RunFolder(out).metrics()]


def assert_same(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(losses(one), losses(other), rtol=tolerance)
    assert counts(one) == counts(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=10 * tolerance)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(tiny_model, folder) -> Path:
    """50 updates on one process, R3F on; the last update of an epoch is smaller than the others."""
    out = folder / "alone"
    settings = processes.merged(R3F, {"train": {"updates": 50, "checkpoint_every": 25}})
    processes.run_job(processes.script(folder, tiny_model, out, settings), 1)
    return out


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_compute_what_one_does(alone, tiny_model, folder, count):
    out = folder / f"on-{count}"
    settings = processes.merged(R3F, {"train": {"updates": 50, "checkpoint_every": 25}})
    processes.run_job(processes.script(folder, tiny_model, out, settings), count)
    assert_same(alone, out)
    for one, other in zip(RunFolder(alone).results(), RunFolder(out).results(), strict=True):
        assert one["task"] == other["task"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    names = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (alone, out)]
    assert names[0] == names[1]


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}


def test_a_sharded_trunk_computes_what_a_whole_one_does(alone, tiny_model, folder):
    out = folder / "sharded"
    settings = processes.merged(R3F, {"train": {"updates": 50, "checkpoint_every": 25}})
    said = processes.run_job(processes.script(folder, tiny_model, out, settings), 2, **FSDP)
    assert "each with a piece of the trunk" in said[0]
    assert_same(alone, out)


# ---- what ranks.py does, between two processes

TOGETHER = """
import atexit, copy, json, math, os, sys, weakref
import numpy as np, torch
import torch.distributed as dist
from torch import nn
from prefinetune import ranks
from prefinetune.errors import InputError

atexit.register(lambda: print("" if world() else "nothing of the group is left", file=sys.stderr))  # after later ones
accelerator = ranks.Process("float32", 240)
world = weakref.ref(dist.group.WORLD)
rank = accelerator.process_index
torch.manual_seed(0)
model = nn.ModuleDict({"trunk": nn.Linear(4, 4), "both": nn.Linear(4, 3), "second": nn.Linear(4, 2), "none": nn.Linear(4, 5)})
def loss(model, rank):
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(rank)).to(model["trunk"].weight)
    return sum(model[name](model["trunk"](x).tanh()).square().sum() for name in (["both", "second"] if rank else ["both"]))
alone = copy.deepcopy(model).double()
(loss(alone, 0) + loss(alone, 1)).backward()
loss(model, rank).backward()
ranks.add_up(model.parameters(), accelerator)
gradients = lambda one: {name: None if p.grad is None else p.grad.tolist() for name, p in one.named_parameters()}
mine, theirs = gradients(model), gradients(alone)

norm = ranks.clip(model.parameters(), 0.5)
clipped = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
try:
    ranks.agree("checkpoint", f"step-{rank}", accelerator)
    refused = None
except InputError as error:
    refused = str(error)
ranks.agree("checkpoint", "step-3", accelerator)
print(json.dumps({
    "mine": mine, "theirs": theirs, "norm": norm, "clipped": clipped, "refused": refused,
    "total": ranks.total(np.array([1.0, rank, 0.1]), accelerator).tolist(),
    "anyone": [ranks.anyone(rank == 1, accelerator), ranks.anyone(False, accelerator)],
    "told": ranks.tell({"rank": rank, "text": "é" * (1 + 100 * rank), "nan": float("nan")}, accelerator),
    "merged": ranks.merged({f"task {rank}": [1, rank]}, accelerator),
}))
"""


@pytest.fixture(scope="module")
def together(folder) -> list[dict]:
    """What each of two processes came to."""
    path = folder / "together.py"
    path.write_text(TOGETHER)
    job = processes.start_job(path, 2)
    said = [process.communicate(timeout=240) for process in job]
    assert [process.returncode for process in job] == [0, 0], said[0][1] + said[1][1]
    assert all("nothing of the group is left" in errors for _, errors in said), said  # with it its threads, which could abort
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_gradients_are_those_of_one_process_with_all_examples_and_a_head_that_nobody_used_has_none(together):
    for one in together:
        assert {name for name, gradient in one["mine"].items() if gradient is None} == {"none.weight", "none.bias"}
        assert one["mine"].keys() == one["theirs"].keys()
        for name, gradient in one["mine"].items():
            if gradient is not None:
                np.testing.assert_allclose(gradient, one["theirs"][name], rtol=1e-5, atol=1e-6)
    assert together[0]["mine"] == together[1]["mine"]


def test_the_norm_that_is_clipped_is_that_of_the_summed_gradient(together):
    values = [gradient for gradient in together[0]["mine"].values() if gradient is not None]
    norm = math.sqrt(sum(float((np.array(value) ** 2).sum()) for value in values))
    for one in together:
        assert one["norm"] == pytest.approx(norm, rel=1e-5)
        assert one["clipped"] == pytest.approx(0.5, rel=1e-4)


def test_what_one_process_knows_all_are_told(together):
    for one in together:
        assert one["total"] == pytest.approx([2, 1, 0.2])
        assert one["anyone"] == [True, False]
        assert [(told["rank"], told["text"]) for told in one["told"]] == [(0, "é"), (1, "é" * 101)]
        assert all(math.isnan(told["nan"]) for told in one["told"])
        assert one["merged"] == {"task 0": [1, 0], "task 1": [1, 1]}
        assert "process 0 found checkpoint step-0, another step-1" in one["refused"]


LEFT_ALONE = """
import datetime, os, signal
from torch.distributed import distributed_c10d
from prefinetune import ranks

accelerator = ranks.Process("float32", 240)
distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=5))  # not earlier: processes begin at different times
if accelerator.process_index:
    os.kill(os.getpid(), signal.FATE)
ranks.anyone(False, accelerator)
"""


@pytest.mark.parametrize("fate", ["SIGKILL", "SIGSTOP"])
def test_a_process_whose_fellow_died_or_stands_still_ends_within_the_time_out(fate, folder):
    path = folder / f"{fate}.py"
    path.write_text(LEFT_ALONE.replace("FATE", fate))
    alone, other = processes.start_job(path, 2)
    try:
        _, said = alone.communicate(timeout=200)
        assert alone.returncode == 1, said  # by its exception, not by an abort (-6)
        assert "RuntimeError" in said
    finally:
        other.kill()
        other.communicate()


def test_the_group_of_a_program_that_made_one_itself_is_left_to_it(tmp_path, monkeypatch):
    registered = []
    monkeypatch.setattr(ranks.Accelerator, "__init__", lambda self, **_: None)
    monkeypatch.setattr(ranks.atexit, "register", lambda *given: registered.append(given))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    group = weakref.ref(dist.group.WORLD)
    ranks.Process("float32", 60)
    ranks.leave(lambda: None)
    assert not registered
    assert dist.group.WORLD is group()
    ranks.leave(group)  # as it is with one that a `Process` made
    assert not dist.is_initialized()
    assert group() is None
    ranks.leave(group)


def test_a_run_has_its_own_precision_and_its_whole_loss_whatever_ran_before_it_or_a_launcher_says(
    tiny_model, tmp_path, monkeypatch
):
    suite = microworld.world(0, rows_per_task=8, validation_rows=4).select("micro/subject-category", "micro/find-large")

    def run(precision):
        config = {
            "mixture": {"sub_batches": 2, "sub_batch_size": 2}, "optimizer": {"clip": 1e6},
            "train": {"updates": 3, "log_every": 1, "precision": precision, "checkpoint_every": None},
        }  # fmt: skip
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        train(suite, tiny_model, folder, config=config, cache=tmp_path / "cache")
        return folder

    first, half = run("float32"), run("bfloat16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    AcceleratorState._reset_state()
    try:
        Accelerator(mixed_precision="bf16")  # a script's own
        again = run("float32")
    finally:
        AcceleratorState._reset_state()
    assert_same(first, again, 0.0)
    assert losses(half) != losses(first)
    np.testing.assert_allclose(losses(half), losses(first), rtol=0.05)


def test_an_engine_that_moves_idle_heads_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="Use FSDP2 instead"):
        ranks.Process("float32", 60)


@pytest.mark.parametrize("sizes", [[3], [5, 5, 5], [1, 2, 30, 4, 50, 6, 7]])
def test_buckets_hold_every_parameter_once_in_order_and_one_type_each(sizes, monkeypatch):
    monkeypatch.setattr(ranks, "BUCKET", 10)
    kinds = [torch.float32, torch.float32, torch.float64]
    given = [torch.nn.Parameter(torch.zeros(size, dtype=kinds[at % 3])) for at, size in enumerate(sizes)]
    found = list(ranks.buckets(given))
    assert [id(one) for bucket in found for one in bucket] == [id(one) for one in given]
    assert all(len({one.dtype for one in bucket}) == 1 for bucket in found)
    assert all(sum(one.numel() for one in bucket[:-1]) < 10 for bucket in found)
