"""The run folder: what ran, on what, and what came out, as files that other programs can read. Imports no torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from filelock import FileLock, Timeout

from prefinetune import launcher
from prefinetune.environment import environment, now
from prefinetune.errors import InputError

if TYPE_CHECKING:
    from prefinetune.config import Config
    from prefinetune.tracking import Tracking

LOCK = ".lock"  # in a folder, held while a process writes to it
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
        claimed = any((self.path / name).exists() for name in (LOCK, "run.json"))  # by us: a process may have died in between
        if self.path.exists() and not claimed and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(f"{self.path} exists and holds something that is not a run; choose another --out")
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


@contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """Within, no other process writes to a folder; it is made where it is missing.

    Raises:
        InputError: another process is writing to it, or it cannot be written to.
    """
    lock = FileLock(folder / LOCK, timeout=0)  # the system takes it back from a process that dies
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder} is in use: another process is writing to it; wait, or choose another --out") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}); choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def refuse_others(folder: Path, mark: str, what: str) -> None:
    """Make sure that a folder is new, empty, or has what we left there.

    Args:
        mark: the file that ours have.
        what: what ours is called.

    Raises:
        InputError: it holds something else.
    """
    if not folder.exists() or (folder / mark).exists():
        return
    if not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir()):
        raise InputError(f"{folder} exists and holds something that is no {what}; choose another --out")


def digest_of(value: Any) -> str:
    """What tells values apart that JSON can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def write(path: Path, text: str) -> None:
    """Replace a file so that it is there whole or as it was."""
    beside = path.with_name(f".{path.name}.writing")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line, whole and on disk: a line that a crash left half-written is ended first, so that it harms no other."""
    line = json.dumps(record, ensure_ascii=False) + "\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


class Lines(NamedTuple):
    """A JSON-lines file, read: its records, and the lines that are none with their numbers from 1."""

    records: list[dict[str, Any]]
    torn: list[tuple[int, str]]


def read_lines(path: Path) -> Lines:
    """The records of a JSON-lines file, and what a process that was killed while writing left half-written in it."""
    found = Lines([], [])
    if not path.exists():
        return found
    # Only \n ends a line here: splitlines() would also cut at U+2028 and its like, which may stand inside a text.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            found.records.append(record)
        elif line.strip():
            found.torn.append((number, line))
    return found


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a half-written line is passed over: what it held was not reported as done."""
    return read_lines(path).records


def set_torn_aside(path: Path) -> list[tuple[int, str]]:
    """Move lines that are no records from `path` to `path`.torn, so that the file is whole again; gives them back."""
    records, torn = read_lines(path)
    if torn:
        aside = path.with_name(path.name + ".torn")
        kept = aside.read_text(encoding="utf-8") if aside.exists() else ""
        write(aside, kept + "".join(line + "\n" for _, line in torn))
        write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return torn
