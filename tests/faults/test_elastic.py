"""A run that was saved on some processes goes on with more, or fewer: at the same example, with the same weights, and the same
best score. On as many as before it comes to the same bits."""

import signal
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import pytest
import torch
from harness import Run

from prefinetune.results import RunFolder

# Scored often, and stopped when three scores in a row were no better.
STOPPING = ("train.evaluate_every=2", "train.patience=3", "optimizer.learning_rate=1e-2")
COUNTED = ("step", "examples", "tokens", "examples_by_task", "tokens_by_task", "skipped", "lr", "epoch")


@pytest.fixture(scope="module")
def undisturbed(world, tiny_model, tmp_path_factory) -> Callable[..., Path]:
    """The run that nobody disturbed, on some number of processes; without dropout, which differs from process to process."""
    folder, known = tmp_path_factory.mktemp("whole"), {}

    def get(ranks: int, *settings: str) -> Path:
        if (ranks, settings) not in known:
            run = Run(world, folder / f"{len(known)}", ranks, settings, tiny_model)
            run.finish()
            known[ranks, settings] = run.out
        return known[ranks, settings]

    return get


def interrupted(world: Path, model: Path, out: Path, ranks: int, at: int, number: int, settings: tuple[str, ...] = ()) -> Run:
    """A run that was ended by a signal some time after an update."""
    run = Run(world, out, ranks, settings, model)
    attempt = run.start()
    assert attempt.until(lambda: attempt.step >= at), attempt.said
    attempt.signal(number)
    attempt.end()
    assert at - harness.EVERY <= run.saved < harness.UPDATES, "it was ended too late"
    return run


def go_on(run: Run, ranks: int) -> None:
    saved, run.ranks = run.saved, ranks
    run.finish()
    assert f"going on from update {saved} of" in run.attempts[-1].said


def assert_same_but_for_rounding(one: Path, other: Path) -> None:
    mine, theirs = RunFolder(one).metrics(), RunFolder(other).metrics()
    assert [[line[name] for name in COUNTED] for line in mine] == [[line[name] for name in COUNTED] for line in theirs]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[name] for line in mine], [line[name] for line in theirs], rtol=1e-5)
    for name, value in harness.state(one).items():
        if name != "window":
            known = harness.state(other)[name]
            assert value == (pytest.approx(known, rel=1e-5) if isinstance(value, float) else known), name
    first, second = harness.tensors(one), harness.tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=1e-4)
    for ours, known in zip(RunFolder(one).results(), RunFolder(other).results(), strict=True):
        assert ours["task"] == known["task"]
        assert ours["scores"] == pytest.approx(known["scores"], abs=1e-4)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), (1, 2), (4, 2)])
def test_a_run_goes_on_with_more_processes_or_fewer(before, after, world, tiny_model, undisturbed, tmp_path):
    run = interrupted(world, tiny_model, tmp_path / "run", before, at=14, number=signal.SIGTERM)
    assert run.saved % harness.EVERY or run.saved > 14  # saved as it was told to stop
    go_on(run, after)
    assert_same_but_for_rounding(run.out, undisturbed(1))


def test_on_as_many_processes_as_before_it_comes_to_the_same_bits(world, tiny_model, undisturbed, tmp_path):
    run = interrupted(world, tiny_model, tmp_path / "run", 2, at=14, number=signal.SIGKILL)
    go_on(run, 2)
    assert harness.differences(run.out, undisturbed(2)) == []


@pytest.mark.parametrize("after", [1, 2])
def test_the_best_weights_and_their_score_survive(after, world, tiny_model, undisturbed, tmp_path):
    whole = undisturbed(2, *STOPPING)
    known = harness.state(whole)
    assert known["stopped"]
    assert known["best_update"] + 6 == known["updates"] < harness.UPDATES
    # Ended when the best weights were those of an earlier update, which only the checkpoint had.
    run = interrupted(world, tiny_model, tmp_path / "run", 2, known["best_update"] + 3, signal.SIGKILL, STOPPING)
    assert run.saved > known["best_update"]
    go_on(run, after)
    if after == 2:
        assert harness.differences(run.out, whole) == []
    assert_same_but_for_rounding(run.out, whole)
