"""The run folder: what ran, on what, and what came out, as files that other programs can read. Imports no torch."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from prefinetune.errors import InputError

PACKAGES = (
    "prefinetune",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "safetensors",
    "numpy",
)


COMMANDS = ("prefinetune", "__main__.py")  # what a process is called that runs our command line


class RunFolder:
    """A run's folder; see docs/design.md for its files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def start(self, identity: Mapping[str, Any], config: str, suite: Any, resume: bool) -> None:
        """Claim the folder for a run, or go on with the run it holds.

        Raises:
            InputError: it holds another run, or this one and `resume` is off, or something that is no run.
        """
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
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(f"{self.path} exists and holds something that is not a run; choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        write(self.path / "config.yaml", config)
        write(self.path / "suite.yaml", yaml.safe_dump(suite, sort_keys=False, allow_unicode=True, width=120))
        write(self.path / "environment.json", json.dumps(environment(), indent=1))
        write(there, json.dumps(identity, indent=1))  # last: its presence says that the rest is there

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        append(self.path / "metrics.jsonl", record)

    def add_result(self, record: Mapping[str, Any]) -> None:
        append(self.path / "results.jsonl", {**record, "when": now()})

    def write_predictions(self, slug: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """What the scores of a task are of, a line per example."""
        (self.path / "predictions").mkdir(exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write(self.path / "predictions" / f"{slug}.jsonl", text)

    def write_leaks(self, found: Mapping[str, Any]) -> None:
        """Which training rows show evaluation rows, and whether they were left out."""
        write(self.path / "leaks.json", json.dumps(found, ensure_ascii=False))

    def metrics(self) -> list[dict[str, Any]]:
        return read_records(self.path / "metrics.jsonl")

    def results(self) -> list[dict[str, Any]]:
        return read_records(self.path / "results.jsonl")

    def forget_metrics_after(self, step: int) -> None:
        """Drop lines that a resumed run will write again."""
        kept = [record for record in self.metrics() if record["step"] <= step]
        if (self.path / "metrics.jsonl").exists():
            write(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Versions and machine, for whoever wants to repeat the run."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "command": shlex.join(["prefinetune", *sys.argv[1:]]) if Path(sys.argv[0]).name in COMMANDS else None,
        "packages": versions,
        "started": now(),
    }


def write(path: Path, text: str) -> None:
    """Replace a file so that it is there whole or as it was."""
    beside = path.with_name(f".{path.name}.writing")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line, whole: a line that a crash left half-written is ended first, so that it harms no other."""
    line = json.dumps(record, ensure_ascii=False) + "\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())


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
