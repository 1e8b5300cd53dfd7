"""The run folder: what ran, on what, and what came out, as files that other programs can read. Imports no torch."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

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


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a half-written line is passed over."""
    return list(_records(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def _records(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue  # of a process that was killed while writing; what it held was not reported as done
