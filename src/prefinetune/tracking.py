"""What a run writes while it goes on, told to experiment trackers as well: TensorBoard, Weights & Biases, MLflow and Trackio,
through Accelerate's classes for them. `metrics.jsonl` and `results.jsonl` have all of it in any case.

A tracker that cannot be started stops the run before its first update; one that fails later is left out, and the run goes on.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefinetune.errors import InputError
from prefinetune.files import write
from prefinetune.safety import without_secrets

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from prefinetune.config import Config

PROJECT = "prefinetune"  # where the environment names none
KNOWN = "tracking.json"  # in the run's folder: by tracker, what it calls this run


def check_trackers(names: Sequence[str]) -> None:
    """Whether trackers are installed; asked before any data is read.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"train.track: {name} is not installed: pip install 'prefinetune[{name}]'")


class Tracking:
    """The trackers of a run, begun, or gone on with if the run had them before.

    Args:
        folder: the run's.
        done: updates that were done before.
        say: takes a line for the user.

    Raises:
        InputError: a tracker cannot be started.
    """

    def __init__(self, folder: Path, config: Config, done: int, say: Callable[[str], None]) -> None:
        self.say = say
        self.trackers: list[GeneralTracker] = []
        known = json.loads((folder / KNOWN).read_text()) if (folder / KNOWN).exists() else {}
        for name in config.train.track:
            try:
                with redirect_stdout(sys.stderr):  # standard output is for results
                    tracker, run_id = start(name, folder, config, known.get(name), done)
            except Exception as error:  # of any kind: each has its own for a missing login, say
                self.finish()
                raise InputError(
                    f"train.track: {name} could not be started ({reason(error)}); put that right, or leave it out and go on "
                    "with --resume"
                ) from error
            self.trackers.append(tracker)
            known[name] = run_id
        write(folder / KNOWN, json.dumps(known))

    def metrics(self, record: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: train/LOSS and so on, and by task loss/TASK, examples/TASK and so on."""
        values: dict[str, float] = {}
        for name, value in record.items():
            if name.endswith("_by_task"):
                values |= {f"{name.removesuffix('_by_task')}/{slug(task)}": one for task, one in value.items()}
            elif name != "step" and value is not None:
                values[f"train/{name}"] = value
        self._tell(values, record["step"])

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """An evaluation: score/TASK, and their mean."""
        by_task = {f"score/{slug(task)}": score for task, score in scores.items()}
        self._tell(by_task | {"validation/mean_score": sum(scores.values()) / len(scores)}, step)

    def result(self, record: Mapping[str, Any]) -> None:
        """A line of results.jsonl."""
        self._tell({f"final/{slug(record['task'])}": record["score"]}, record["updates"])

    def finish(self) -> None:
        self._each(finish)

    def _tell(self, values: Mapping[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.log(dict(values), step=step))

    def _each(self, do: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                with redirect_stdout(sys.stderr):
                    do(tracker)
            except Exception as error:  # whatever it is, it is no reason to lose a run
                self.trackers.remove(tracker)
                self.say(f"{tracker.name} failed ({reason(error)}); going on without it: metrics.jsonl has everything")


def start(name: str, folder: Path, config: Config, run_id: str | None, done: int) -> tuple[GeneralTracker, str]:
    """A tracker on the run it calls `run_id`, or on a new one; and what it calls it."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    new, title = run_id is None, folder.resolve().name
    run_id = run_id or f"{slug(title)}-{uuid.uuid4().hex[:8]}"
    project, settings = os.environ.get(f"{name.upper()}_PROJECT", PROJECT), hyper_parameters(folder, config)
    given: dict[str, dict[str, Any]] = {
        # What was written after the checkpoint that the run goes on from is written again.
        "tensorboard": {"run_name": "tensorboard", "logging_dir": folder, "purge_step": None if new else done + 1},
        "wandb": {"run_name": project, "id": run_id, "name": title, "dir": str(folder), "resume": "allow"},
        "mlflow": {"experiment_name": PROJECT, "run_name": title, "run_id": None if new else run_id},
        "trackio": {"run_name": project, "name": run_id, "resume": "allow", "embed": False, "config": settings},
    }
    tracker = LOGGER_TYPE_TO_CLASS[name](**given[name])
    tracker.main_process_only = False  # only the main process comes here, and it need not ask
    tracker.start()
    if new and name != "trackio":  # which takes them as it starts only
        tracker.store_init_configuration(settings)
    return tracker, tracker.tracker.info.run_id if name == "mlflow" else run_id


def finish(tracker: GeneralTracker) -> None:
    if tracker.name == "trackio":
        import trackio

        trackio.finish()  # or it does so once more as the process ends, with a line on standard output
    else:
        tracker.finish()


def hyper_parameters(folder: Path, config: Config) -> dict[str, bool | int | float | str]:
    """What a run depends on, as names and plain values; what was left out is left out."""
    identity = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    found: dict[str, Any] = {name: identity[name] for name in ("kind", "model") if name in identity}
    for section, values in config.model_dump(exclude={"train": {"track"}}).items():
        fields = values if isinstance(values, dict) else {"": values}
        found |= {f"{section}.{field}".rstrip("."): value for field, value in fields.items()}
    texts = {name: "+".join(value) if isinstance(value, tuple) else value for name, value in found.items() if value is not None}
    return {name: without_secrets(value) if isinstance(value, str) else value for name, value in texts.items()}


def slug(task: str) -> str:
    """A task's name in that of a curve: what stands before the slash is the group, and trackers differ in what else they take."""
    return re.sub(r"[^\w.-]", "-", task)


def reason(error: Exception) -> str:
    """An error in a line without secrets."""
    return without_secrets((str(error).strip() or type(error).__name__).splitlines()[0][:200])
