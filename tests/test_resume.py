"""A run that was killed anywhere goes on to the very result of one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import microworld
from prefinetune import ranks
from prefinetune.checkpoint import checkpoints, damage, load_checkpoint, remove
from prefinetune.errors import InputError
from prefinetune.files import append, read_records
from prefinetune.finetune import finetune
from prefinetune.loop import restore, schedule
from prefinetune.results import RunFolder
from prefinetune.train import train

SETTINGS = {
    "mixture": {"sub_batches": 3, "sub_batch_size": 4},
    "optimizer": {"learning_rate": 1e-3, "warmup": 0.2},
    "train": {"updates": 30, "log_every": 4, "checkpoint_every": 5, "evaluate_every": 10, "keep_checkpoints": 3},
}
TIMES = {"examples_per_second", "tokens_per_second"}


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def suite():
    names = ("subject-category", "larger-subject", "find-large", "choose-large")
    return microworld.world(0, rows_per_task=48, validation_rows=16).select(*(f"micro/{name}" for name in names))


@pytest.fixture(scope="module")
def whole(suite, dropout_model, stores, tmp_path_factory) -> Path:
    """The run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(suite, dropout_model, folder, config=SETTINGS, cache=stores)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that a run learned: trunk, heads, and the newest checkpoint with its optimizer."""
    places = [*folder.glob("model/*.safetensors"), *folder.glob("heads/*/*.safetensors")]
    places += checkpoints(folder / "checkpoints")[-1].glob("*.safetensors")
    return {f"{p.relative_to(folder)}:{name}": value for p in sorted(places) for name, value in load_file(p).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def metrics(folder: Path) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in RunFolder(folder).metrics()]


def scores(folder: Path) -> dict[str, dict]:
    found = RunFolder(folder).results()
    assert len({record["task"] for record in found}) == len(found)
    return {record["task"]: record["scores"] for record in found}


def assert_same_run(one: Path, other: Path) -> None:
    assert equal(tensors(one), tensors(other))
    assert metrics(one) == metrics(other)
    assert scores(one) == scores(other)


RUN = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import microworld
import importlib
import prefinetune.checkpoint as checkpoint
import prefinetune.loop as loop
train_module = importlib.import_module("prefinetune.train")  # prefinetune.train is the function
from prefinetune.results import RunFolder

names = ("subject-category", "larger-subject", "find-large", "choose-large")
suite = microworld.world(0, rows_per_task=48, validation_rows=16).select(*(f"micro/{name}" for name in names))
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
moment = sys.argv[6]
calls = []

def at_call(number, function, before=True):
    def wrapped(*arguments, **named):
        calls.append(1)
        if before and len(calls) == number:
            die()
        result = function(*arguments, **named)
        if len(calls) == number:
            die()
        return result
    return wrapped

if moment == "in an update":
    loop.update = at_call(18, loop.update)
elif moment == "while a checkpoint is written":
    checkpoint.save_file = at_call(8, checkpoint.save_file, before=False)
elif moment == "before a checkpoint is renamed":
    checkpoint.sync = at_call(10, checkpoint.sync)
elif moment == "while the model is written":
    train_module.save_trunk_and_heads = at_call(1, train_module.save_trunk_and_heads)
elif moment == "between two results":
    RunFolder.add_result = at_call(2, RunFolder.add_result, before=False)
import json
train_module.train(suite, sys.argv[2], sys.argv[3], config=json.loads(sys.argv[4]), cache=sys.argv[5], resume=moment == "resume")
"""


def run_in_process(model: Path, out: Path, cache: Path, moment: str) -> subprocess.Popen:
    arguments = map(str, (Path(__file__).parent, model, out, json.dumps(SETTINGS), cache, moment))
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], stderr=subprocess.PIPE, text=True)


MOMENTS = [
    "in an update", "while a checkpoint is written", "before a checkpoint is renamed", "while the model is written",
    "between two results",
]  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_result(moment, suite, dropout_model, stores, whole, tmp_path):
    process = run_in_process(dropout_model, tmp_path / "run", stores, moment)
    _, message = process.communicate()
    assert process.returncode == -signal.SIGKILL, message
    left = list((tmp_path / "run" / "checkpoints").glob(".writing-*"))
    assert bool(left) == (moment in ("while a checkpoint is written", "before a checkpoint is renamed"))
    train(suite, dropout_model, tmp_path / "run", config=SETTINGS, cache=stores, resume=True)
    assert_same_run(tmp_path / "run", whole)
    assert not list((tmp_path / "run").rglob(".writing-*"))


def test_a_run_killed_from_outside_again_and_again_goes_on_in_other_processes(dropout_model, stores, whole, tmp_path):
    out = tmp_path / "run"
    process = run_in_process(dropout_model, out, stores, "none")
    while process.poll() is None and not checkpoints(out / "checkpoints"):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    process = run_in_process(dropout_model, out, stores, "resume")
    _, message = process.communicate()
    assert process.returncode == 0, message
    assert_same_run(out, whole)


def interrupted(whole: Path, at: Path, update: int) -> Path:
    """A copy of a run as it was at an update."""
    folder = shutil.copytree(whole, at)
    for name in ("model", "heads"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "results.jsonl").unlink()
    for checkpoint in checkpoints(folder / "checkpoints"):
        if int(checkpoint.name.removeprefix("step-")) > update:
            shutil.rmtree(checkpoint)
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARMS = {
    "a flipped bit": lambda folder: flip(folder / "model.safetensors"),
    "a flipped bit of the optimizer": lambda folder: flip(folder / "optimizer.safetensors"),
    "a truncated file": lambda folder: os.truncate(folder / "heads.safetensors", 100),
    "a missing file": lambda folder: (folder / "state.json").unlink(),
    "missing checksums": lambda folder: (folder / "checksums.json").unlink(),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(harm, suite, dropout_model, stores, whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", 25)
    older, newer = checkpoints(folder / "checkpoints")
    HARMS[harm](newer)
    assert damage(older) is None
    with pytest.warns(UserWarning, match=rf"{newer.name} is damaged \(.*\); using the one before it"):
        train(suite, dropout_model, folder, config=SETTINGS, cache=stores, resume=True)
    assert_same_run(folder, whole)


def test_a_checkpoint_whose_removal_was_cut_off_is_none_and_is_cleared_away(whole, tmp_path, monkeypatch):
    folder = shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    oldest, *others = checkpoints(folder)

    def cut_off(path):
        next(path.iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            remove(oldest)
    assert checkpoints(folder) == others
    assert len(list(folder.iterdir())) == len(others) + 1
    assert load_checkpoint(folder).folder == others[-1]
    assert sorted(folder.iterdir()) == others


def test_a_process_that_finds_no_checkpoint_tells_the_others_and_does_not_begin_alone(tmp_path, monkeypatch):
    def disagree(what, mine, accelerator):
        raise InputError(f"process 0 found {what} step-00000005, another {mine}")

    monkeypatch.setattr(ranks, "agree", disagree)
    with pytest.raises(InputError, match="another None"):
        restore(None, None, RunFolder(tmp_path / "run"), None)


def test_a_run_whose_checkpoints_are_all_damaged_says_so(suite, dropout_model, stores, whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", 30)
    for checkpoint in checkpoints(folder / "checkpoints"):
        flip(checkpoint / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="every checkpoint is damaged; start again in another folder"):
            train(suite, dropout_model, folder, config=SETTINGS, cache=stores, resume=True)


def test_the_newest_checkpoints_are_kept_and_hold_no_pickle(whole):
    found = checkpoints(whole / "checkpoints")
    assert [folder.name for folder in found] == ["step-00000020", "step-00000025", "step-00000030"]
    assert {path.suffix for folder in found for path in folder.iterdir()} == {".safetensors", ".json"}
    assert load_checkpoint(whole / "checkpoints").state["updates"] == 30
    assert load_checkpoint(whole / "nothing") is None


def test_a_complete_run_has_nothing_left_to_do(suite, dropout_model, stores, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    done = train(suite, dropout_model, folder, config=SETTINGS, cache=stores, resume=True)
    assert done.scores == scores(whole)
    assert_same_run(folder, whole)


def test_the_learning_rate_runs_on_without_a_jump(whole):
    rates = {record["step"]: record["lr"] for record in RunFolder(whole).metrics()}
    assert list(rates) == [4, 8, 12, 16, 20, 24, 28, 30]
    for step, rate in rates.items():  # written out: 6 updates of warm-up, then linear to zero at update 30
        expected = 1e-3 * (step / 6 if step <= 6 else 1 - (step - 1 - 6) / 24)
        assert rate == pytest.approx(expected, rel=1e-12)
    shares = [schedule(number, 30, 0.2, 1.0) for number in range(30)]
    assert max(abs(a - b) for a, b in pairwise(shares)) <= 1 / 6 + 1e-12


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(suite, dropout_model, stores, whole, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        train(suite, dropout_model, tmp_path / name, config={**SETTINGS, "seed": seed}, cache=stores)
    assert_same_run(tmp_path / "same", whole)
    assert not equal(tensors(tmp_path / "other"), tensors(whole))
    assert metrics(tmp_path / "other") != metrics(whole)


def test_early_stopping_goes_on_where_it_was(dropout_model, stores, tmp_path):
    task = microworld.targets(0, train_rows=64)[0]
    config = {
        "mixture": {"sub_batches": 2, "sub_batch_size": 4}, "optimizer": {"learning_rate": 1e-5},
        "train": {"updates": 40, "evaluate_every": 2, "patience": 4, "checkpoint_every": 1, "keep_checkpoints": 99,
                  "log_every": 1},
    }  # fmt: skip
    arguments = {"labels": 32, "config": config, "cache": stores}
    done = finetune(task, dropout_model, tmp_path / "whole", **arguments)
    state = load_checkpoint(tmp_path / "whole" / "checkpoints").state
    assert state["stopped"]
    assert done.record["updates"] < 40
    assert state["evaluations_since_best"] == 4
    for update in (state["best_update"] + 1, state["best_update"] + 5):  # with one and three evaluations of patience spent
        folder = interrupted(tmp_path / "whole", tmp_path / f"from {update}", update)
        again = finetune(task, dropout_model, folder, resume=True, **arguments)
        assert again.record["scores"] == done.record["scores"]
        assert again.record["updates"] == done.record["updates"]
        assert again.predictions == done.predictions
        assert metrics(folder) == metrics(tmp_path / "whole")


def test_a_half_written_line_harms_no_other(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, {"task": "one"})
    with path.open("a") as file:
        file.write('{"task": "tw')
    append(path, {"task": "three"})
    assert read_records(path) == [{"task": "one"}, {"task": "three"}]
