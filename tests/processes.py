"""Small runs in processes of their own, alone or several of a job, for tests that count on what processes do: take part, be told
to go, die."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

TASKS = ("subject-category", "larger-subject", "find-large", "choose-large")
SETTINGS: dict[str, Any] = {
    "mixture": {"sub_batches": 3, "sub_batch_size": 4},
    "optimizer": {"learning_rate": 1e-3, "warmup": 0.2},
    "train": {"updates": 12, "log_every": 1, "checkpoint_every": 4, "rank_timeout": 60},
}

# What a process runs: `train` on a small world. `before` may change the library first, for one rank or all.
RUN = """
import json, os, sys
sys.path.insert(0, {tests!r})
import microworld
given = json.loads({given!r})
rank = int(os.environ.get("RANK", "0"))
exec({before!r})
from prefinetune.errors import InputError
from prefinetune.notice import Preempted
from prefinetune.display import Display
from prefinetune.train import train
suite = microworld.world(0, rows_per_task=given["rows"], validation_rows=16).select(*("micro/" + name for name in given["tasks"]))
try:
    train(suite, given["model"], given["out"], config=given["settings"], cache=given["cache"], resume=True, display=Display())
except InputError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(2)
except Preempted as notice:
    print(notice, file=sys.stderr)
"""


def merged(*settings: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for layer in settings:
        for section, values in layer.items():
            found[section] = {**found.get(section, {}), **values} if isinstance(values, dict) else values
    return found


def script(
    folder: Path, model: Path, out: Path, settings: dict[str, Any] | None = None, *, tasks: tuple[str, ...] = TASKS,
    rows: int = 48, before: str = "", name: str = "run.py",
) -> Path:  # fmt: skip
    """A file to run: a training that goes on if it was begun."""
    given = {
        "tasks": tasks, "rows": rows, "model": str(model), "out": str(out), "cache": str(folder / "cache"),
        "settings": merged(SETTINGS, settings or {}),
    }  # fmt: skip
    path = folder / name
    path.write_text(RUN.format(tests=str(Path(__file__).parent), given=json.dumps(given), before=before))
    return path


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **more}


def start(path: Path, rank: int | None = None, ranks: int = 1, port: int = 0, **more: str) -> subprocess.Popen[str]:
    """One process; with a rank, one of a job."""
    if rank is not None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        more |= {key: str(value) for key, value in place.items()}
    command = [sys.executable, str(path)]
    return subprocess.Popen(command, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_job(path: Path, ranks: int, **more: str) -> list[subprocess.Popen[str]]:
    """The processes of a job, as torchrun starts them."""
    if ranks == 1:
        return [start(path, **more)]
    port = free_port()
    return [start(path, rank, ranks, port, **more) for rank in range(ranks)]


def run_job(path: Path, ranks: int, timeout: float = 240, **more: str) -> list[str]:
    """Run a job to its end; what each process said. Fails unless all ended well."""
    processes = start_job(path, ranks, **more)
    said = [process.communicate(timeout=timeout)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(said)[-4000:]
    return said


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
