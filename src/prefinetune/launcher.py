"""What the launcher (torchrun, accelerate launch) told this process about itself: known before the processes have met, and
without torch."""

from __future__ import annotations

import os


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def count() -> int:
    """Processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))
