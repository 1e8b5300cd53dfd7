"""What training starts from: a hub name, a model folder, or the folder of an earlier run, whose trunk stands for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefinetune.checkpoint import checksum
from prefinetune.config import DataSettings
from prefinetune.errors import InputError
from prefinetune.files import digest_of
from prefinetune.model import head_class
from prefinetune.pretrained import backbone_class, hub_commit, read_config
from prefinetune.task import Task
from prefinetune.tokenizer import Tokenizer, load_tokenizer

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class Start:
    """Where an arm starts from, where its fine-tunings have an objective of their own: R3F, for one, as a control of models that
    were pre-finetuned with it. All else is the same in every arm."""

    place: str | Path  # a run, a hub name or a model folder
    objective: Mapping[str, Any] = field(default_factory=dict)  # settings of config.ObjectiveSettings


def as_start(given: str | Path | Start) -> Start:
    return given if isinstance(given, Start) else Start(given)


def model_folder(model: str | Path) -> str | Path:
    """Where weights are: a run's folder stands for the trunk in it."""
    inner = Path(model) / "model"
    return inner if (Path(model) / "run.json").exists() and inner.is_dir() else model


def model_tokenizer(name: str, tasks: Sequence[Task], settings: DataSettings) -> Tokenizer:
    """A model's tokenizer, when it is clear that the model can learn these tasks.

    Raises:
        InputError: it cannot, or there is no such model or tokenizer.
    """
    architecture = read_config(name)
    tokenizer = load_tokenizer(name, settings.max_length, architecture, settings.max_target_length)
    check_tasks(tasks, architecture, tokenizer, name)
    return tokenizer


def check_tasks(tasks: Sequence[Task], config: Any, tokenizer: Tokenizer, name: str) -> None:
    """Whether a model can learn these tasks; asked before any data is read.

    Raises:
        InputError: naming the task, the model, and what is missing.
    """
    auto_models = backbone_class(config).AUTO_MODELS
    for task in tasks:
        try:
            task.family.check(tokenizer)
            head_class(config, auto_models[task.family.head_kind])
        except InputError as error:
            raise InputError(f"task {task.name!r} with model {name!r} ({config.model_type}): {error}") from None


def weights_digest(start: str | Path) -> str:
    """What tells two starting points apart: a digest of a folder's weights, heads, configuration and tokenizer, or a commit."""
    read_config(str(model_folder(start)))  # its errors are the clear ones
    if not Path(start).is_dir():
        return f"hub {hub_commit(str(start))}"
    root = Path(start)
    model = Path(model_folder(root))
    files = sorted([*(file for kind in MODEL_FILES for file in model.glob(kind)), *(root / "heads").rglob("*.safetensors")])
    return digest_of([(str(file.relative_to(root)), checksum(file)) for file in files])
