"""When a device has too little memory for a micro-batch: smaller ones, whose gradients add up to the same. And what a process no
longer needs goes back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from prefinetune.batch import Batch, Drawn, Layout, micro_batches
from prefinetune.display import Display
from prefinetune.errors import InputError

Result = TypeVar("Result")


class Work(NamedTuple):
    """An update to come."""

    number: int
    drawn: Sequence[Drawn]
    batches: list[Batch]
    budget: int  # that they were cut for


def give_back() -> None:
    """Return to the system what was freed. glibc keeps most of what tensors of ever other sizes leave behind: after ten
    fine-tunings 2.0 GB where 0.8 GB were in use."""
    with suppress(OSError, AttributeError):  # another C library, which has no such call
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Memory:
    """The token budget of a run, which may fall."""

    budget: int
    halves: bool  # whether it falls by itself when memory runs out

    def run(self, update: Callable[[list[Batch]], Result], work: Work, layout: Layout, display: Display) -> Result:
        """An update's result, from smaller micro-batches if need be.

        Raises:
            InputError: memory ran out, and the budget must not fall, or no longer can.
        """
        batches = work.batches
        if work.budget > self.budget:  # it fell since
            batches = micro_batches(work.drawn, self.budget, layout)
        while True:
            try:
                return update(batches)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if not self.halves or len(batches) == len(work.drawn):
                    raise InputError(self.advice(batches, len(work.drawn))) from error
            # Only here is what the failed pass had kept no longer held by the error.
            clear_device_cache(garbage_collection=True)
            self.budget = min(self.budget, max(batch.bounds.total for batch in batches)) // 2
            batches = micro_batches(work.drawn, self.budget, layout)
            display.say(f"memory ran out; train.token_budget is {self.budget:,} from here on")

    def advice(self, batches: Sequence[Batch], examples: int) -> str:
        largest = max(batch.bounds.total for batch in batches)
        ran_out = f"memory ran out (train.token_budget={self.budget}, largest micro-batch {largest:,} tokens)"
        if len(batches) == examples:
            return f"{ran_out}, with one example in each; train.gradient_checkpointing=true or a smaller data.max_length may fit"
        return (
            f"{ran_out}; train.token_budget={min(self.budget, largest) // 2} gives the same gradients from smaller "
            "micro-batches, and train.halve_budget=true finds what fits. Go on with --resume"
        )
