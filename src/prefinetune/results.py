"""The run folder: what ran, on what, and what came out, as files that other programs can read. Imports no torch."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prefinetune import launcher
from prefinetune.environment import environment, now
from prefinetune.errors import InputError
from prefinetune.files import append, read_records, refuse_others, set_torn_aside, write, writing_alone

if TYPE_CHECKING:
    from prefinetune.config import Config
    from prefinetune.tracking import Tracking

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}  # what a system says of a disk that is full or broken


class RunFolder:
    """A run's folder; see docs/design.md for its files. Of several processes only the main one writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tracking: Tracking | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @contextmanager
    def claimed(self, identity: Mapping[str, Any], config: str, suite: Any, resume: bool) -> Iterator[None]:
        """Within, the folder is this run's: a new one, or one that goes on. Of several processes the main one claims it for all.

        Raises:
            InputError: it holds another run, or this one and `resume` is off, or something that is no run; another process is
                writing to it; or it cannot be written to.
        """
        if not launcher.is_main():
            yield
            return
        refuse_others(self.path, "run.json", "not a run", before=("config.yaml", "suite.yaml", "environment.json"))
        with writing_alone(self.path):
            try:
                self._start(identity, config, suite, resume)
                yield
            except OSError as error:
                if error.errno not in DISK:
                    raise
                where = error.filename or self.path
                raise InputError(f"{where}: {error.strerror}; put that right and go on with --resume") from error
            finally:
                if self.tracking:
                    self.tracking.finish()

    def _start(self, identity: Mapping[str, Any], config: str, suite: Any, resume: bool) -> None:
        there = self.path / "run.json"
        if there.exists():
            known = json.loads(there.read_text())
            differing = [key for key in {**known, **identity} if known.get(key) != identity.get(key)]
            if differing:
                raise InputError(
                    f"{self.path} already holds another run (it differs in {', '.join(differing)}); choose another --out"
                )
            if not resume:
                raise InputError(f"{self.path} already holds this run; go on with --resume, or choose another --out")
            set_torn_aside(self.path / "results.jsonl")
            return
        write(self.path / "config.yaml", config)
        write(self.path / "suite.yaml", yaml.safe_dump(suite, sort_keys=False, allow_unicode=True, width=120))
        write(self.path / "environment.json", json.dumps(environment(), indent=1))
        write(there, json.dumps(identity, indent=1))  # last: its presence says that the rest is there

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        if launcher.is_main():
            append(self.path / "metrics.jsonl", record)
        if self.tracking:
            self.tracking.metrics(record)

    def track(self, config: Config, done: int, say: Callable[[str], None]) -> None:
        """From now on, tell the trackers that the settings name what this folder is given; after `done` updates.

        Raises:
            InputError: one cannot be started.
        """
        from prefinetune.tracking import Tracking

        if config.train.track and launcher.is_main():
            self.tracking = Tracking(self.path, config, done, say)

    def add_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """An evaluation on the way: the score of each task. Only trackers are told."""
        if self.tracking:
            self.tracking.scores(step, scores)

    def add_affinity(self, record: Mapping[str, Any]) -> None:
        if launcher.is_main():
            append(self.path / "affinity.jsonl", record)

    def add_result(self, record: Mapping[str, Any]) -> None:
        if launcher.is_main():
            append(self.path / "results.jsonl", {**record, "when": now()})
        if self.tracking:
            self.tracking.result(record)

    def write_predictions(self, slug: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """What the scores of a task are of, a line per example."""
        if not launcher.is_main():
            return
        (self.path / "predictions").mkdir(exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write(self.path / "predictions" / f"{slug}.jsonl", text)

    def write_leaks(self, found: Mapping[str, Any]) -> None:
        """Which training rows show evaluation rows, and whether they were left out."""
        if launcher.is_main():
            write(self.path / "leaks.json", json.dumps(found, ensure_ascii=False))

    def metrics(self) -> list[dict[str, Any]]:
        return read_records(self.path / "metrics.jsonl")

    def results(self) -> list[dict[str, Any]]:
        return read_records(self.path / "results.jsonl")

    def forget_metrics_after(self, step: int) -> None:
        """Drop lines that a resumed run will write again."""
        for name in ("metrics.jsonl", "affinity.jsonl"):
            kept = [record for record in read_records(self.path / name) if record["step"] <= step]
            if launcher.is_main() and (self.path / name).exists():
                write(self.path / name, "".join(json.dumps(record) + "\n" for record in kept))
