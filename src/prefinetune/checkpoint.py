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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prefinetune import launcher
from prefinetune.errors import InputError
from prefinetune.model import MultiTask
from prefinetune.ranks import like, whole
from prefinetune.safety import is_name

CHECKSUMS = "checksums.json"
NEEDED = {"model.safetensors", "heads.safetensors", "optimizer.safetensors", "state.json"}


class CannotSave(InputError):
    """A checkpoint or a model could not be written: a full disk, say. `problem` is that without the advice."""

    def __init__(self, final: Path, error: Exception) -> None:
        self.problem = f"{final} could not be written ({error})"
        super().__init__(f"{self.problem}; put that right and go on with --resume")


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
        f"{name}|{field}": whole(value.detach())
        for name, parameter in model.named_parameters()
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(model: MultiTask, optimizer: torch.optim.Optimizer, state: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in state.items():
        name, _, field = key.rpartition("|")
        parameter = parameters[name]
        # A count of steps stays whole.
        optimizer.state[parameter][field] = like(value, parameter) if value.ndim else value.to(parameter.device)


def save_checkpoint(
    folder: Path,
    step: int,
    model: MultiTask,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    best: Mapping[str, torch.Tensor] | None = None,
    keep: int = 2,
) -> Path:
    """Write folder/step-XXXXXXXX so that it is there whole or not at all; then remove all but the newest `keep`. Every process
    takes part, as each may hold a piece of each tensor; the main one writes.

    Raises:
        CannotSave: it cannot be written; those before it are as they were.
    """
    final = folder / f"step-{step:08d}"
    tensors = {name: whole(tensor) for name, tensor in model.unique_state().items()}
    parts = {
        "model": {name: t for name, t in tensors.items() if not name.startswith("heads.")},
        "heads": {name: t for name, t in tensors.items() if name.startswith("heads.")},
        "optimizer": optimizer_state(model, optimizer),
    }
    if best is not None:
        parts["best"] = {name: whole(tensor) for name, tensor in best.items()}
    if not launcher.is_main():
        return final
    sweep(folder)
    write_checkpoint(final, parts, state)
    for old in checkpoints(folder)[:-keep]:
        remove(old)
    return final


def write_checkpoint(final: Path, parts: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    with replacing(final) as writing:
        for name, part in parts.items():
            save_file({key: tensor.contiguous() for key, tensor in part.items()}, writing / f"{name}.safetensors")
        (writing / "state.json").write_text(json.dumps(state))
        sums = {path.name: checksum(path) for path in sorted(writing.iterdir())}
        (writing / CHECKSUMS).write_text(json.dumps(sums, indent=1))


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there is none at all. A damaged one is passed over with a warning; what
    a killed process left half-written or half-removed is cleared away.

    Raises:
        InputError: there are checkpoints, and every one is damaged.
    """
    if launcher.is_main():
        sweep(folder)
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
    if not isinstance(sums, dict) or not sums.keys() >= NEEDED or not all(map(is_name, sums)):
        return f"{CHECKSUMS} is not of a checkpoint's files"
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
    """A folder to write into that becomes `final`, in place of what was there, when all of it is on disk.

    Raises:
        CannotSave: it cannot be written; what was there is as it was.
    """
    writing = final.with_name(f".writing-{final.name}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for left in (writing, removing(final)):  # by a process that was killed
            if left.exists():
                shutil.rmtree(left)
        writing.mkdir()
        yield writing
        for path in [*writing.rglob("*"), writing]:
            sync(path)
        if final.exists():
            remove(final)
        writing.rename(final)
        sync(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise CannotSave(final, error) from error


def remove(path: Path) -> None:
    """Remove a folder; a kill meanwhile leaves no half of it under its name."""
    path.rename(removing(path))
    shutil.rmtree(removing(path))


def removing(path: Path) -> Path:
    return path.with_name(f".removing-{path.name}")


def sweep(folder: Path) -> None:
    """Clear away what processes that were killed left half-written or half-removed."""
    for left in [*folder.glob(".writing-*"), *folder.glob(".removing-*")]:
        shutil.rmtree(left)


def sync(path: Path) -> None:
    """Force a file or folder to disk, so that a rename never outruns what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
