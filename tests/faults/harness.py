"""Runs of the real command in real processes, what clusters do to them, and the question whether they came to the very result of
a run that nobody disturbed.

An injection is: start (or go on with) a run, let it come to a random moment, do it harm, and look at what is left. Several hit
one run, one after another; then it goes on to its end and is compared, bit for bit. Processes are forked from a server that has
imported everything, so that a start takes a second and not ten.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import microworld
import processes
from prefinetune.checkpoint import CHECKSUMS, checkpoints, damage
from prefinetune.files import read_lines
from prefinetune.results import RunFolder

UPDATES, EVERY = 40, 3  # of a run, and between its checkpoints
TASKS = processes.TASKS
SETTINGS = (
    f"train.updates={UPDATES}", f"train.checkpoint_every={EVERY}", "train.log_every=1", "train.evaluate_every=10",
    "train.patience=9", "mixture.sub_batches=3", "optimizer.learning_rate=1e-3", "optimizer.warmup=0.2",
)  # fmt: skip
TIMES = {"examples_per_second", "tokens_per_second", "seconds", "when"}
MOST_SECONDS = 180  # that anything may take on a busy machine

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = (
    "prefinetune.train", "prefinetune.cli", "prefinetune.recipes", "prefinetune.catalog", "prefinetune.infer", "datasets",
    "scipy.stats", "sklearn.metrics", "torch._dynamo", "torch.distributed.tensor", "transformers.convert_slow_tokenizer",
    "transformers.models.roberta.modeling_roberta", "transformers.processing_utils",
)  # fmt: skip
CONTEXT.set_forkserver_preload(list(IMPORTED))


def live(arguments: tuple[str, ...], log: Path, variables: dict[str, str], before: Callable[[], None] | None) -> None:
    """What a process does with its life: the command, as a shell would run it."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(variables)
    sys.argv = ["prefinetune", *arguments]
    from prefinetune.cli import main

    if before:
        before()
    main()


@dataclass
class Attempt:
    """One start of a run: its processes, from the outside."""

    run: Run
    processes: list[BaseProcess]
    logs: list[Path]
    saved: int  # updates that were safe at the start
    stale: int | None  # the metrics that an earlier attempt left
    began: float = field(default_factory=time.perf_counter)
    resumed: float | None = None  # seconds until the first update that was new

    @property
    def said(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in self.logs if log.exists())

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    @property
    def step(self) -> int:
        """The last update that this attempt reported, or -1."""
        path = self.run.out / "metrics.jsonl"
        try:
            if path.stat().st_ino == self.stale:
                return -1
            step = read_lines(path).records[-1]["step"]
        except (OSError, IndexError):
            return -1
        if step <= self.saved:
            return -1
        self.resumed = self.resumed or time.perf_counter() - self.began
        return step

    def until(self, so: Callable[[], bool], pause: float = 0.001) -> bool:
        """Wait until something is so; False when the processes ended before."""
        deadline = time.perf_counter() + MOST_SECONDS
        while not so():
            if not self.alive:
                return so()
            assert time.perf_counter() < deadline, self.said
            time.sleep(pause)
        return True

    def signal(self, number: int, ranks: list[int] | None = None) -> None:
        for rank in range(len(self.processes)) if ranks is None else ranks:
            with suppress(ProcessLookupError):  # it ended meanwhile
                if self.processes[rank].is_alive():
                    os.kill(self.processes[rank].pid, number)

    def end(self, timeout: float = MOST_SECONDS) -> list[int]:
        """Wait for the exit codes; minus a signal where one ended a process."""
        deadline = time.perf_counter() + timeout
        while self.alive and self.resumed is None and time.perf_counter() < deadline:
            time.sleep(0.002 if self.step < 0 else 0)  # looking notes when it resumed
        for process in self.processes:
            process.join(max(0.0, deadline - time.perf_counter()))
        late = [process.is_alive() for process in self.processes]
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.join()
        assert not any(late), f"still running after {timeout:.0f} s\n{self.said}"
        return [process.exitcode for process in self.processes]

    def kill(self) -> bool:
        """Whether one of the processes was still there to be killed."""
        self.signal(signal.SIGKILL)
        return -signal.SIGKILL in self.end()


@dataclass
class Run:
    """A run folder, and how to start what writes to it."""

    folder: Path  # of suite and model
    out: Path
    ranks: int = 1
    settings: tuple[str, ...] = ()
    model: Path | None = None  # where it is not the folder's
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def checkpoints(self) -> list[Path]:
        return checkpoints(self.out / "checkpoints")

    @property
    def saved(self) -> int:
        """Updates that the newest whole checkpoint holds."""
        whole = [path for path in self.checkpoints if damage(path) is None]
        return step_of(whole[-1]) if whole else 0

    @property
    def finished(self) -> bool:
        return len(RunFolder(self.out).results()) == len(TASKS)

    def command(self, *settings: str) -> tuple[str, ...]:
        return (
            "train", str(self.folder / "suite.yaml"), "--model", str(self.model or self.folder / "model"), "--out", str(self.out),
            "--cache", str(self.folder / "cache"), "--resume", *SETTINGS, *self.settings, *settings,
        )  # fmt: skip

    def start(self, *settings: str, before: Callable[[], None] | None = None, log: Path | None = None) -> Attempt:
        """Start all processes of a job, as torchrun would."""
        number, port, arguments = len(self.attempts), processes.free_port(), self.command(*settings)
        metrics = self.out / "metrics.jsonl"
        log = log or self.out.with_name(f"{self.out.name}-{number}")
        logs = [log.with_name(f"{log.name}-{rank}.log") for rank in range(self.ranks)]
        started = []
        stale = metrics.stat().st_ino if metrics.exists() else None
        for rank, log in enumerate(logs):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables = {name: str(value) for name, value in place.items()} if self.ranks > 1 else {}
            started.append(CONTEXT.Process(target=live, args=(arguments, log, variables, before), daemon=True))
        attempt = Attempt(self, started, logs, self.saved, stale)
        self.attempts.append(attempt)
        for process in started:
            process.start()
        return attempt

    def finish(self) -> None:
        attempt = self.start()
        attempt.until(lambda: attempt.step > 0, pause=0.01)
        codes = attempt.end()
        assert codes == [0] * self.ranks, f"exit codes {codes}\n{attempt.said}"
        assert self.finished, attempt.said


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def make_world(folder: Path, model: Path) -> Path:
    """A suite of four tasks as files, and a model with dropout, so that a generator that is not restored shows."""
    shutil.copytree(model, folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    config.update(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    (folder / "model" / "config.json").write_text(json.dumps(config))
    entries = []
    for name in TASKS:
        task = microworld.make_task(0, name, microworld.PROBLEMS[name], {"train": 48, "validation": 16})
        (folder / name).mkdir()
        for split, rows in task.source.tables.items():
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        entries.append({"name": task.name, "source": name, task.family.kind: task.family.settings(), "license": "cc0-1.0"})
    (folder / "suite.yaml").write_text(yaml.safe_dump({"name": "micro", "tasks": entries}))
    return folder


# ---- what a run came to


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """All that a run learned: trunk, heads, and the newest checkpoint with its optimizer."""
    places = [*out.glob("model/*.safetensors"), *out.glob("heads/*/*.safetensors")]
    newest = checkpoints(out / "checkpoints")[-1:]
    places += [place for folder in newest for place in folder.glob("*.safetensors")]
    return {f"{place.relative_to(out)}:{name}": value for place in sorted(places) for name, value in load_file(place).items()}


def without_times(value: Any) -> Any:
    return {key: without_times(inner) for key, inner in value.items() if key not in TIMES} if isinstance(value, dict) else value


def state(out: Path) -> dict[str, Any]:
    newest = checkpoints(out / "checkpoints")[-1]
    return {"checkpoint": newest.name, **without_times(json.loads((newest / "state.json").read_text()))}


def differences(out: Path, undisturbed: Path) -> list[str]:
    """What is not as in the run that nobody disturbed, and what is wrong by itself; nothing, where all is well."""
    found = [f"{name}, line {number} is no record: {line!r}" for name in ("results", "metrics")
             for number, line in read_lines(out / f"{name}.jsonl").torn]  # fmt: skip
    mine, theirs = tensors(out), tensors(undisturbed)
    found += [f"tensor {name} is not there on both sides" for name in mine.keys() ^ theirs.keys()]
    found += [f"tensor {name} differs" for name in mine.keys() & theirs.keys() if not torch.equal(mine[name], theirs[name])]
    for what, of in (("metrics", RunFolder.metrics), ("results", RunFolder.results)):
        one, other = ([without_times(record) for record in of(RunFolder(folder))] for folder in (out, undisturbed))
        if one != other:
            found.append(f"{what} differ: {len(one)} lines for {len(other)}, {[r.get('step', r.get('task')) for r in one]}")
    if state(out) != state(undisturbed):
        found.append(f"state differs: {state(out)} for {state(undisturbed)}")
    files = [{str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in (out, undisturbed)]
    found += [f"file {name} is not there on both sides" for name in files[0] ^ files[1] if not name.endswith(".jsonl.torn")]
    if any(damage(path) for path in checkpoints(out / "checkpoints")):
        found.append("a checkpoint is damaged")
    return found


def look(run: Run) -> None:
    """What must be so at any time: each update reported once, in order; each task's result once."""
    steps = [record["step"] for record in RunFolder(run.out).metrics()]
    assert steps == sorted(set(steps)), f"updates reported: {steps}"
    tasks = [record["task"] for record in RunFolder(run.out).results()]
    assert len(set(tasks)) == len(tasks), f"results reported: {tasks}"
    assert len(read_lines(run.out / "results.jsonl").torn) <= 1


# ---- moments


def strike(run: Run, rng: random.Random, *settings: str, before: Callable[[], None] | None = None) -> Attempt:
    """An attempt that has come to a random moment: between its start and the update in which its third checkpoint falls due."""
    attempt = run.start(*settings, before=before)
    updates = rng.randrange(9)
    if updates:
        attempt.until(lambda: attempt.step >= attempt.saved + updates)
        time.sleep(rng.random() * 0.02)
    else:
        time.sleep(rng.random())
    return attempt


def under_way(run: Run, rng: random.Random, *settings: str, before: Callable[[], None] | None = None) -> Attempt:
    """An attempt that has made a few updates."""
    attempt = run.start(*settings, before=before)
    updates = rng.randrange(1, 6)
    attempt.until(lambda: attempt.step >= attempt.saved + updates)
    return attempt


# ---- one process: faults, each of which gives what there is to know about it, or None when the run had ended before


Told = dict[str, Any] | None


def killed(run: Run, rng: random.Random) -> Told:
    """kill -9 at a random moment."""
    attempt = strike(run, rng)
    if not attempt.kill():
        return None
    return {"at": "start" if attempt.step < 0 else "update"}


def killed_at_the_end(run: Run, rng: random.Random) -> Told:
    """kill -9 after the last update: while examples are scored, or model and results written."""
    attempt = run.start()
    attempt.until(lambda: attempt.step == UPDATES)
    time.sleep(rng.random() * 0.15)
    if not attempt.kill():
        return None
    return {"at": "end", "results": len(RunFolder(run.out).results()), "model": (run.out / "model").is_dir()}


def killed_while_saving(run: Run, rng: random.Random) -> Told:
    """kill -9 while a checkpoint is being written; what has been written of it is random."""
    attempt = run.start()
    due = rng.randrange(3)
    attempt.until(lambda: attempt.step >= attempt.saved + EVERY * due)
    is_saving = lambda: any(run.out.glob("checkpoints/.writing-*"))  # noqa: E731
    if not attempt.until(is_saving, pause=0.0):
        return None
    time.sleep(rng.random() * 0.003)
    if not attempt.kill():
        return None
    left = sorted(path.name for path in run.out.glob("checkpoints/.writing-*/*"))
    return {"at": "checkpoint" if is_saving() else "update", "left": left}


def killed_at_file_operation(run: Run, rng: random.Random) -> Told:
    """kill -9 just before the run opens, renames, makes or removes a file: one of its first 200, up to results and model."""
    number = rng.randrange(1, 200)
    attempt = run.start(before=partial(die_at_file_operation, number, run.out))
    codes = attempt.end()
    return None if codes == [0] else {"at": f"file operation {number}"}


def die_at_file_operation(number: int, out: Path) -> None:
    left = [number]

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(given[0]).startswith(str(out)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def died_within_a_file(run: Run, rng: random.Random) -> Told:
    """The system ends the process in the middle of a write, at a random byte of a file (SIGXFSZ at its default)."""
    attempt = run.start(before=partial(die_at_byte, rng.randrange(5_000, 230_000)))
    codes = attempt.end()
    assert codes in ([0], [-signal.SIGXFSZ]), attempt.said
    return None if codes == [0] else {"at": "within a file"}


def die_at_byte(number: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, resource.RLIM_INFINITY))


def power_cut(run: Run, rng: random.Random) -> Told:
    """kill -9, after which everything is lost that had not been forced to disk."""
    began, log = time.time_ns(), run.out.with_name(f"{run.out.name}-synced")
    log.write_text("")
    attempt = strike(run, rng, before=partial(note_syncs, log))
    at = "start" if attempt.step < 0 else "update"
    if not attempt.kill():
        return None
    synced = {int(inode): int(size) for inode, size in (line.split() for line in log.read_text().splitlines())}
    lost = 0
    for path in (path for path in run.out.rglob("*") if path.is_file()):
        status = path.stat()
        kept = synced.get(status.st_ino, 0)
        if status.st_mtime_ns >= began and status.st_size > kept:
            lost += status.st_size - kept
            os.truncate(path, kept)
    return {"at": at, "bytes_lost": lost}


def note_syncs(log: Path) -> None:
    """Write down what is forced to disk, and how long it was then."""
    output, fsync = os.open(log, os.O_WRONLY | os.O_APPEND), os.fsync

    def noting(handle: Any) -> None:
        fsync(handle)
        status = os.fstat(handle if isinstance(handle, int) else handle.fileno())
        os.write(output, f"{status.st_ino} {status.st_size}\n".encode())

    os.fsync = noting


def told_to_stop(number: int, run: Run, rng: random.Random) -> Told:
    """A notice at a random moment. During updates the one at work is finished and saved, and nothing is done twice."""
    attempt = strike(run, rng)
    if not attempt.alive:
        return None
    before = attempt.step
    attempt.signal(number)
    codes = attempt.end()
    if codes == [-number]:  # there was nothing to save yet, or everything had been
        assert before < 0 or attempt.step == UPDATES, attempt.said
    else:
        assert codes == [0], attempt.said
        name = signal.Signals(number).name
        assert f"told to stop ({name})" in attempt.said or run.finished, attempt.said
        assert "go on with the same command and --resume" in attempt.said or run.finished, attempt.said
        assert run.saved == last_step(run), "what was done was not saved"
    return {"at": "start" if before < 0 else "update", "exit": codes[0]}


def last_step(run: Run) -> int:
    steps = [record["step"] for record in RunFolder(run.out).metrics()]
    return steps[-1] if steps else 0


def fill_disk(attempt: Attempt, size: int | None) -> None:
    """From here on the system refuses to make a file larger than `size`, and at its end takes what fits, as a full disk does."""
    most = resource.RLIM_INFINITY if size is None else size
    if attempt.processes[0].is_alive():
        resource.prlimit(attempt.processes[0].pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def disk_full(run: Run, rng: random.Random) -> Told:
    """No room for a checkpoint: the run says so and stops with 2, and the checkpoints before are as they were."""
    attempt = under_way(run, rng)
    whole = [path for path in run.checkpoints[-1:] if damage(path) is None]
    fill_disk(attempt, rng.randrange(60_000, 230_000))
    codes = attempt.end()
    if codes[0] == 0:
        return None
    assert codes[0] == 2, attempt.said
    assert "could not be written" in attempt.said, attempt.said
    assert "put that right and go on with --resume" in attempt.said, attempt.said
    assert not any(damage(path) for path in whole)
    assert not list(run.out.glob("checkpoints/.writing-*"))
    return {"at": "checkpoint", "exit": codes[0]}


def disk_full_for_a_while(run: Run, rng: random.Random) -> Told:
    """The same where the run was told to go on: it does, and saves again when there is room."""
    attempt = under_way(run, rng, "train.on_failed_checkpoint=continue")
    fill_disk(attempt, rng.randrange(60_000, 230_000))
    went_on = attempt.until(lambda: "going on without it" in attempt.said)
    fill_disk(attempt, None)
    if not went_on:
        return None
    saved = run.saved
    if attempt.until(lambda: run.saved > saved, pause=0.005):
        attempt.signal(signal.SIGTERM)
    codes = attempt.end()
    assert codes[0] in (0, -signal.SIGTERM), attempt.said
    return {"at": "checkpoint"}


def damaged(harm: Callable[[Path, random.Random], None], run: Run, rng: random.Random) -> Told:
    """The newest checkpoint is harmed: the run says which, and goes on from the one before."""
    if len(run.checkpoints) < 2:
        attempt = run.start()
        attempt.until(lambda: len(run.checkpoints) >= 2)
        attempt.kill()
    *_, older, newer = run.checkpoints
    if damage(newer) or damage(older):  # by an injection before this one
        return None
    harmed = rng.choice(sorted(newer.iterdir()))
    lost = step_of(newer) - step_of(older)
    harm(harmed, rng)
    attempt = run.start()
    attempt.until(lambda: attempt.step >= step_of(older) + 1)
    attempt.signal(signal.SIGTERM)
    attempt.end()
    said = " ".join(attempt.said.split())
    assert f"{newer.name} is damaged" in said, said
    assert "using the one before it" in said, said
    assert f"going on from update {step_of(older)} " in said, said
    return {"at": harmed.name, "lost_updates": lost}


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if path.name == CHECKSUMS:  # where not every bit means something: within a checksum
        at = content.index(b'": "') + 4
    content[at] ^= 1 << rng.randrange(2)
    path.write_bytes(content)


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


def second_run(run: Run, rng: random.Random) -> Told:
    """Another process wants the same folder: it is told no, and the first one does not notice. After kill -9 the lock is free."""
    attempt = under_way(run, rng)
    if not attempt.alive:
        return None
    at = attempt.step
    other = Run(run.folder, run.out, attempts=run.attempts).start()
    codes = other.end()
    if run.finished or not attempt.alive:
        return None
    assert codes == [2], other.said
    assert "is in use: another process is writing to it" in " ".join(other.said.split()), other.said
    assert attempt.until(lambda: attempt.step > at), attempt.said
    attempt.kill()
    return {"at": "update"}


def clock_set_back(run: Run, rng: random.Random) -> Told:
    """The clock goes backwards all the time."""
    attempt = strike(run, rng, before=turn_clock_back)
    attempt.signal(signal.SIGTERM)
    attempt.end()
    for record in RunFolder(run.out).metrics():
        assert 0 < record["examples_per_second"] < 1e6, record
        assert math.isfinite(record["tokens_per_second"]), record
    return {"at": "start" if attempt.step < 0 else "update"}


def turn_clock_back() -> None:
    import datetime

    import prefinetune.environment

    began = time.time()
    real = time.perf_counter
    start = real()
    time.time = lambda: began - 3600 * (real() - start)

    class Backwards(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return cls.fromtimestamp(time.time(), tz)

    prefinetune.environment.datetime = Backwards


def half_a_line(run: Run, rng: random.Random) -> Told:
    """A process dies while it adds a line to metrics and results."""
    attempt = strike(run, rng)
    if not attempt.kill():
        return None
    if not (run.out / "run.json").exists():
        return None
    for name, line in (("metrics", '{"step": 1, "loss"'), ("results", '{"task": "micro/')):
        with (run.out / f"{name}.jsonl").open("a") as file:
            file.write(line[: rng.randrange(1, len(line))])
    return {"at": "a line"}


ALONE: dict[str, Callable[[Run, random.Random], Told]] = {
    "kill -9": killed,
    "kill -9 after the last update": killed_at_the_end,
    "kill -9 while a checkpoint is written": killed_while_saving,
    "kill -9 at a file operation": killed_at_file_operation,
    "death in the middle of a file": died_within_a_file,
    "power cut": power_cut,
    "SIGTERM": partial(told_to_stop, signal.SIGTERM),
    "SIGUSR1": partial(told_to_stop, signal.SIGUSR1),
    "disk full": disk_full,
    "disk full for a while": disk_full_for_a_while,
    "checkpoint truncated": partial(damaged, truncate),
    "checkpoint with a flipped bit": partial(damaged, flip_bit),
    "checkpoint without one of its files": partial(damaged, remove),
    "second run in the folder": second_run,
    "clock set back": clock_set_back,
    "half a line": half_a_line,
}


# ---- several processes


def all_killed(run: Run, rng: random.Random) -> Told:
    """kill -9 of all processes."""
    attempt = strike(run, rng)
    if not attempt.kill():
        return None
    return {"at": "start" if attempt.step < 0 else "update"}


def one_lost(number: int, run: Run, rng: random.Random) -> Told:
    """One process dies, or stands still: the others stop within the time-out."""
    attempt = under_way(run, rng)
    if not attempt.alive:
        return None
    lost = rng.randrange(run.ranks)
    others = [rank for rank in range(run.ranks) if rank != lost]
    attempt.signal(number, [lost])
    began = time.perf_counter()
    over = attempt.until(lambda: not any(attempt.processes[rank].is_alive() for rank in others), pause=0.01)
    seconds = time.perf_counter() - began
    attempt.kill()
    if run.finished:
        return None
    assert over, attempt.said
    assert all(attempt.processes[rank].exitcode > 0 for rank in others), [process.exitcode for process in attempt.processes]
    return {"at": "update", "rank": lost, "others_stopped_after": round(seconds, 2)}


def one_told_to_stop(run: Run, rng: random.Random) -> Told:
    """One of the processes gets the notice: all finish the update, and it is saved."""
    attempt = under_way(run, rng)
    if not attempt.alive:
        return None
    attempt.signal(signal.SIGTERM, [rng.randrange(run.ranks)])
    codes = attempt.end()
    assert codes == [0] * run.ranks, f"{codes}\n{attempt.said}"
    assert "go on with the same command and --resume" in attempt.said, attempt.said
    assert run.saved == last_step(run), "what was done was not saved"
    return {"at": "update"}


TOGETHER: dict[str, Callable[[Run, random.Random], Told]] = {
    "all of two processes: kill -9": all_killed,
    "one of two processes: kill -9": partial(one_lost, signal.SIGKILL),
    "one of two processes: stands still": partial(one_lost, signal.SIGSTOP),
    "one of two processes: SIGTERM": one_told_to_stop,
    "two processes: disk full": disk_full,
}


# ---- the engine


@dataclass
class Injection:
    """A fault that was injected, and what came of it."""

    kind: str
    ranks: int
    reported: int  # updates done when it struck, as far as the run had said
    saved: int  # of which the newest checkpoint held so many
    told: dict[str, Any]
    resume_seconds: float | None = None  # of the start after it, up to its first new update; imports are not in it
    survived: bool = False  # whether the run came to the very result of an undisturbed one

    @property
    def lost_updates(self) -> int:
        """Updates that had to be computed again."""
        return self.told.get("lost_updates", max(0, self.reported - self.saved))


def inject(run: Run, kind: str, rng: random.Random) -> Injection | None:
    told = {**ALONE, **TOGETHER}[kind](run, rng)
    look(run)
    return None if told is None else Injection(kind, run.ranks, last_step(run), run.saved, told)


def campaign(
    kinds: list[str], seed: int, ranks: int, world: Path, folder: Path, undisturbed: Path, settings: tuple[str, ...] = ()
) -> Iterator[Injection]:
    """Inject faults of all kinds given, in their order, into as many runs as it takes; each run goes on to its end and is
    compared. A fault that comes too late, as the run had ended, is tried again on another run."""
    rng, left, number = random.Random(seed), list(kinds), 0
    while left:
        run = Run(world, folder / f"run-{seed}-{number}", ranks, settings)
        number += 1
        injected: list[Injection] = []
        misses = 0
        while left and run.saved <= UPDATES - 12 and misses < 3:
            before = len(run.attempts)
            injection = inject(run, left[0], rng)
            if injected and injected[-1].resume_seconds is None and len(run.attempts) > before:
                injected[-1].resume_seconds = run.attempts[before].resumed
            if injection is None:
                misses += 1
                continue
            injected.append(injection)
            left.pop(0)
        before = len(run.attempts)
        run.finish()
        if injected and injected[-1].resume_seconds is None:
            injected[-1].resume_seconds = run.attempts[before].resumed
        wrong = differences(run.out, undisturbed)
        for injection in injected:
            injection.survived = not wrong
            yield injection
        struck = [injection.kind for injection in injected]
        assert not wrong, f"after {struck} in {run.out}:\n" + "\n".join(wrong[:12])
        for leftover in (run.out, *run.out.parent.glob(f"{run.out.name}-*")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def as_record(injection: Injection) -> dict[str, Any]:
    seconds = injection.resume_seconds
    return {**asdict(injection), "lost_updates": injection.lost_updates, "resume_seconds": seconds and round(seconds, 2)}
