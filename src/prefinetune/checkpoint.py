"""Checkpoints that survive a kill at any moment: written beside, synced, renamed; verified by checksum when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prefinetune.errors import InputError
from prefinetune.model import MultiTask

CHECKSUMS = "checksums.json"


@dataclass
class Checkpoint:
    """What a checkpoint holds, read back."""

    folder: Path
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor] | None
    state: dict[str, Any]


def optimizer_state(model: MultiTask, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as PARAMETER|FIELD; parameters that never had a gradient have none."""
    return {
        f"{name}|{field}": value.detach()
        for name, parameter in model.named_parameters()
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(model: MultiTask, optimizer: torch.optim.Optimizer, state: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in state.items():
        name, _, field = key.rpartition("|")
        optimizer.state[parameters[name]][field] = value.to(parameters[name].device)


def save_checkpoint(
    folder: Path,
    step: int,
    model: MultiTask,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    best: Mapping[str, torch.Tensor] | None = None,
    keep: int = 2,
) -> Path:
    """Write folder/step-XXXXXXXX so that it is there whole or not at all; then remove all but the newest `keep`."""
    final = folder / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.unique_state()
    parts = {
        "model": {name: t for name, t in tensors.items() if not name.startswith("heads.")},
        "heads": {name: t for name, t in tensors.items() if name.startswith("heads.")},
        "optimizer": optimizer_state(model, optimizer),
    }
    if best is not None:
        parts["best"] = dict(best)
    with replacing(final) as writing:
        for name, part in parts.items():
            save_file({key: tensor.contiguous() for key, tensor in part.items()}, writing / f"{name}.safetensors")
        (writing / "state.json").write_text(json.dumps(state))
        sums = {path.name: checksum(path) for path in sorted(writing.iterdir())}
        (writing / CHECKSUMS).write_text(json.dumps(sums, indent=1))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there is none at all. A damaged one is passed over with a warning.

    Raises:
        InputError: there are checkpoints, and every one is damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        problem = damage(path)
        if problem is None:
            best = path / "best.safetensors"
            return Checkpoint(
                path,
                {**load_file(path / "model.safetensors"), **load_file(path / "heads.safetensors")},
                load_file(path / "optimizer.safetensors"),
                load_file(best) if best.exists() else None,
                json.loads((path / "state.json").read_text()),
            )
        warnings.warn(f"checkpoint {path} is damaged ({problem}); using the one before it", stacklevel=2)
    if found:
        raise InputError(f"{folder}: every checkpoint is damaged; start again in another folder")
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.is_dir() else []


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        sums = json.loads((path / CHECKSUMS).read_text())
    except (OSError, ValueError):
        return f"no readable {CHECKSUMS}"
    for name, expected in sums.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if checksum(path / name) != expected:
            return f"{name} does not match its checksum"
    return None


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """A folder to write into that becomes `final`, in place of what was there, when all of it is on disk."""
    final.parent.mkdir(parents=True, exist_ok=True)
    writing = final.with_name(f".writing-{final.name}")
    if writing.exists():  # left by a process that was killed
        shutil.rmtree(writing)
    writing.mkdir()
    yield writing
    for path in [*writing.rglob("*"), writing]:
        sync(path)
    if final.exists():
        shutil.rmtree(final)
    writing.rename(final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Force a file or folder to disk, so that a rename never outruns what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
