"""A run survives what clusters do: after every fault it goes on to the very result of a run that nobody disturbed.

PREFINETUNE_NIGHTLY=1 pytest tests/faults     # more than 200 faults
PREFINETUNE_FAULTS_OUT=faults.json            # where to write what was done and what came of it
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import harness
import numpy as np
import pytest
import torch
from harness import ALONE, TOGETHER, Injection, Run

import processes
from prefinetune.results import RunFolder

NIGHTLY = os.environ.get("PREFINETUNE_NIGHTLY") == "1"
CAMPAIGNS = 14 if NIGHTLY else 2  # each has every kind of fault once
TOGETHER_CAMPAIGNS = 6 if NIGHTLY else 1
TIMEOUT = 10  # seconds that a process waits for the others


@pytest.fixture(scope="session")
def injected() -> Iterator[list[Injection]]:
    """What was done in this session; written down at its end where that was asked for."""
    found: list[Injection] = []
    yield found
    if out := os.environ.get("PREFINETUNE_FAULTS_OUT"):
        Path(out).write_text(json.dumps([harness.as_record(injection) for injection in found], indent=1) + "\n")


@pytest.fixture(scope="session")
def undisturbed(world, tmp_path_factory) -> dict[int, Path]:
    """The run that nobody disturbed, by number of processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = {ranks: Run(world, folder / f"on-{ranks}", ranks) for ranks in (1, 2)}
    for run in runs.values():
        run.finish()
    return {ranks: run.out for ranks, run in runs.items()}


@pytest.mark.parametrize("seed", range(CAMPAIGNS))
def test_a_run_survives_every_fault(seed, world, undisturbed, injected, tmp_path):
    kinds = random.Random(seed).sample(list(ALONE), len(ALONE))
    before = len(injected)
    for injection in harness.campaign(kinds, seed, 1, world, tmp_path, undisturbed[1]):
        injected.append(injection)
    assert sorted(injection.kind for injection in injected[before:]) == sorted(ALONE)


@pytest.mark.parametrize("seed", range(TOGETHER_CAMPAIGNS))
def test_a_run_of_two_processes_survives_every_fault(seed, world, undisturbed, injected, tmp_path):
    kinds = random.Random(seed).sample(list(TOGETHER), len(TOGETHER))
    settings = (f"train.rank_timeout={TIMEOUT}",)
    for injection in harness.campaign(kinds, 1000 + seed, 2, world, tmp_path, undisturbed[2], settings):
        injected.append(injection)
        waited = injection.told.get("others_stopped_after", 0)
        assert waited < 3 * TIMEOUT
        if injection.kind == "one of two processes: stands still":
            assert waited > TIMEOUT / 2  # nothing else would have told


# ---- what needs more than a fault


def test_a_job_of_torchrun_is_restarted_and_comes_to_the_same_result(world, undisturbed, injected, tmp_path):
    run = Run(world, tmp_path / "run", 2)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    command = [sys.executable, *launcher, "--monitor-interval", "0.2", "-m", "prefinetune", *run.command("train.rank_timeout=60")]
    log = tmp_path / "log"
    # Else torchrun keeps addresses of processes that are gone, and one restart in twelve waits for them (pytorch issue 135712).
    environment = processes.environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    with log.open("w") as output:
        job = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    while harness.last_step(run) < 8 and job.poll() is None:
        time.sleep(0.02)
    saved, reported = run.saved, harness.last_step(run)
    os.kill(process_of(job.pid, rank=1), signal.SIGKILL)
    try:
        assert job.wait(harness.MOST_SECONDS) == 0, log.read_text()
    finally:
        job.kill()
    assert harness.differences(run.out, undisturbed[2]) == []
    assert "going on from update " in log.read_text()
    injected.append(Injection("torchrun: one of two processes: kill -9", 2, reported, saved, {"at": "update"}, survived=True))


def process_of(parent: int, rank: int) -> int:
    """The process that a launcher started as a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, variables = (folder / "status").read_text(), (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended
            continue
        if f"\nPPid:\t{parent}\n" in status and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError("no such process")


def test_a_run_may_die_at_any_file_operation_of_its_beginning_and_of_its_results(world, undisturbed, injected, tmp_path):
    run, before = Run(world, tmp_path / "run"), len(injected)
    for kind, watched, operations in (("as a run begins", run.out, 12), ("as results are written", run.out / "results.jsonl", 8)):
        for number in range(1, operations + 1):
            codes = run.start(before=partial(harness.die_at_file_operation, number, watched)).end()
            if codes == [0]:
                break
            assert codes == [-signal.SIGKILL]
            harness.look(run)
            told = {"at": f"file operation {number}"}
            injected.append(Injection(f"kill -9 {kind}", 1, harness.last_step(run), run.saved, told))
    run.finish()
    assert len(injected) - before > 15
    assert harness.differences(run.out, undisturbed[1]) == []
    for injection in injected[before:]:
        injection.survived = True


POISONED = ("micro/subject-category", 7)  # a task and a row of it


def poison() -> None:
    """The loss of one row is infinite."""
    from prefinetune.families import Classification

    loss = Classification.loss

    def poisoned(self, output, segment):
        losses = loss(self, output, segment)
        for index, example in enumerate(segment.examples):
            if (segment.task, example.source) == POISONED:
                print("poison taken", flush=True)
                losses = losses * torch.where(torch.arange(len(losses)) == index, torch.inf, 1.0)
        return losses

    Classification.loss = poisoned


def test_a_loss_that_is_not_finite_on_one_process_skips_the_update_on_all(world, tiny_model, injected, tmp_path):
    # Without dropout, which differs from process to process.
    runs = [Run(world, tmp_path / f"on-{ranks}", ranks, model=tiny_model) for ranks in (1, 2)]
    for run in runs:
        attempt = run.start(before=poison)
        assert attempt.end() == [0] * run.ranks, attempt.said
        skipped = RunFolder(run.out).metrics()[-1]["skipped"]
        assert skipped > 1
        assert attempt.said.count("poison taken") == skipped  # by one of the processes each time
        assert attempt.said.count("skipped: not finite: micro/subject-category row 7") == skipped
    one, two = (RunFolder(run.out).metrics() for run in runs)
    for name in ("loss", "grad_norm", "examples", "skipped"):
        taken = [[record[name] or 0.0 for record in records] for records in (one, two)]
        np.testing.assert_allclose(*taken, rtol=1e-5)
    mine, theirs = (harness.tensors(run.out) for run in runs)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-4)
    injected.append(Injection("infinite loss on one of two processes", 2, 40, 40, {"skipped": skipped}, survived=True))


@pytest.fixture
def mount(tmp_path) -> Iterator[Callable[..., Path]]:
    """Mounts something for the time of a test, where that is permitted."""
    mounted: list[Path] = []

    def mount(*arguments: str) -> Path:
        place = tmp_path / f"mounted-{len(mounted)}"
        place.mkdir()
        done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_full_in_one_place_after_another(world, undisturbed, injected, mount, tmp_path):
    disk = mount("-t", "tmpfs", "-o", "size=4m", "none")
    run, filler = Run(world, disk / "run"), disk / "filler"
    codes = []
    for free in (0, 4, 12, 24, 100, 500, 900, 1100, 1300, 1400, 1500):  # kilobytes
        filler.unlink(missing_ok=True)
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - max(0, free - used(run.out)) * 1024
        filler.write_bytes(bytes(max(0, room)))
        attempt = run.start(log=tmp_path / f"log-{free}")
        codes += attempt.end()
        if codes[-1]:
            assert codes[-1] == 2, attempt.said
            assert "No space left on device" in attempt.said
            assert "go on with --resume" in attempt.said or "choose another --out" in attempt.said
            injected.append(Injection("no space left", 1, harness.last_step(run), run.saved, {"kilobytes": free}))
        harness.look(run)
    filler.unlink()
    run.finish()
    assert codes.count(2) >= 5
    assert harness.differences(run.out, undisturbed[1]) == []
    for injection in injected[-codes.count(2) :]:
        injection.survived = True


def used(folder: Path) -> int:
    """Kilobytes."""
    return sum(path.stat().st_blocks for path in folder.rglob("*") if path.is_file()) // 2


def test_a_place_that_cannot_be_written_to_is_named(world, injected, mount, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "shared").mkdir()
    read_only = mount("-o", "bind,ro", str(tmp_path / "shared"))
    for out, reason in (
        (tmp_path / "file" / "run", "Not a directory"),
        (Path("/proc/run"), "No such file or directory"),
        (read_only / "run", "Read-only file system"),
    ):
        run = Run(world, out)
        attempt = run.start(log=tmp_path / "log")
        assert attempt.end() == [2], attempt.said
        assert f"error: {out} cannot be written to ({reason}); choose another --out" in " ".join(attempt.said.split())
        injected.append(Injection(f"output cannot be written to: {reason}", 1, 0, 0, {}, survived=True))
