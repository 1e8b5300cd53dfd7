"""A notice that the process is to go: what clusters send before they take a machine away, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from prefinetune import launcher

CLUSTER = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
INTERRUPTED = 130  # the exit code of what was ended by Ctrl-C


class Preempted(Exception):
    """Something stopped early because it was told to; what it had done is saved.

    Args:
        done: what that is.
        by: the signal's name; None where another process of the run was told.
        again: what goes on with it.
    """

    def __init__(self, done: str, by: str | None = None, again: str = "the same command and --resume") -> None:
        super().__init__(done, by, again)
        self.done, self.by, self.again = done, by, again

    def __str__(self) -> str:
        return f"told to stop ({self.by or 'another process was'}): {self.done}; go on with {self.again}"

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.by == "SIGINT" else 0


class Notice:
    """Within, a notice is taken down instead of ending the process: what is being done can be finished. Ctrl-C is one the first
    time, and is answered at once; the second time it does what it did before.

    Args:
        finishing: what will be finished, as the answer to Ctrl-C says it.
        active: whether what is done could be saved.
    """

    def __init__(self, finishing: str, active: bool = True) -> None:
        self.finishing, self.active = finishing, active
        self.given: str | None = None  # the signal's name
        self._before: dict[int, Any] = {}

    def _take_down(self, number: int, _: FrameType | None) -> None:
        self.given = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
            if launcher.is_main():
                answer(f"{self.finishing}; press Ctrl-C again to stop now")

    def __enter__(self) -> Notice:
        # In other threads Python does not let signals be handled.
        if self.active and threading.current_thread() is threading.main_thread():
            for number in (*CLUSTER, signal.SIGINT):
                if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # whoever ignores it goes on doing so
                    self._before[number] = signal.signal(number, self._take_down)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def answer(text: str) -> None:
    """Write to standard error, but not through Python's buffers, which the signal may have come in the middle of."""
    os.write(2, f"\n{text}\n".encode())
