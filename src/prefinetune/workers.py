"""Work side by side: processes that share the cores equally and leave when their parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.notice import Notice, Preempted
from prefinetune.results import RunFolder

REPORT_EVERY = 15.0  # seconds between lines about trainings that run side by side


@contextmanager
def workers(processes: int, setup: Callable[..., None] | None = None, *given: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of so many processes, each with its share of the cores, that have called `setup(*given)`. At the end what has begun
    is finished, and what has not is dropped; who presses Ctrl-C in that time does not want to wait for it."""
    spawn = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // processes)
    pool = ProcessPoolExecutor(processes, spawn, initializer=start_worker, initargs=(threads, os.getpid(), setup, given))
    try:
        try:
            yield pool
        finally:
            pool.shutdown(wait=not isinstance(sys.exception(), KeyboardInterrupt), cancel_futures=True)
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.kill()
        raise


def start_worker(threads: int, parent: int, setup: Callable[..., None] | None, given: Sequence[Any]) -> None:
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and decides what becomes of us

    def leave_with_parent() -> None:  # a killed parent cannot
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    if setup:
        setup(*given)


@dataclass(frozen=True)
class Job:
    """A training that may run in a process of its own."""

    name: str
    folder: Path  # of its run
    run: Callable[..., Any]  # travels to that process; here it is given a display


def side_by_side(jobs: Sequence[Job], processes: int, display: Display) -> dict[str, InputError]:
    """Run trainings, so many at once, and say now and then how far they are; one at a time, they run here.

    Returns:
        Those that cannot be done, by name, with the reason.

    Raises:
        Preempted: we, or one of them, were told to go; they have saved what they had done.
    """
    failed: dict[str, InputError] = {}

    def fail(job: Job, problem: InputError) -> None:
        failed[job.name] = problem
        display.say(f"failed: {job.name}: {problem}")

    if processes == 1:
        for number, job in enumerate(jobs, 1):
            display.say(f"{number}/{len(jobs)} {job.name}")
            try:
                job.run(display)
            except InputError as problem:
                fail(job, problem)
        return failed
    finishing = "each finishes its update, then saves"
    with Notice(finishing) as notice, workers(min(processes, len(jobs))) as pool:
        waiting: dict[Future[Any], Job] = {}
        left, said = list(jobs), time.monotonic()
        try:
            while left or waiting:
                while left and len(waiting) < processes:  # no more: what a pool has queued begins even when it is shut down
                    job = left.pop(0)
                    waiting[pool.submit(job.run)] = job
                for future in wait(waiting, 1.0, FIRST_COMPLETED).done:
                    job = waiting.pop(future)
                    try:
                        future.result()
                    except InputError as problem:
                        fail(job, problem)
                if notice.given:
                    raise Preempted("what was done is saved", notice.given)
                if time.monotonic() - said >= REPORT_EVERY:
                    said = time.monotonic()
                    display.say("; ".join(f"{job.name}: {progress(job.folder)}" for job in waiting.values()))
        except BaseException as stop:
            for child in multiprocessing.active_children():  # which save, and leave
                child.terminate()
            if isinstance(stop, BrokenProcessPool) and notice.given:
                raise Preempted("what was done is saved", notice.given) from None
            raise
    return failed


def progress(folder: Path) -> str:
    """How far a run is, from its metrics."""
    metrics = RunFolder(folder).metrics()
    if not metrics:
        return "starting"
    last = metrics[-1]
    loss = "-" if last["loss"] is None else f"{last['loss']:.3f}"
    return f"update {last['step']}, loss {loss}, {last['examples_per_second']:.0f} examples/s"
