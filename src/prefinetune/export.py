"""Trunk and head put back together: a plain Transformers model that gives the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors.torch import load_file, save_file

from prefinetune.checkpoint import replacing
from prefinetune.model import MultiTask, quiet

if TYPE_CHECKING:
    from prefinetune.tokenizer import Tokenizer


def assemble(model: MultiTask, task: str) -> transformers.PreTrainedModel:
    """One task of a model as its `AutoModelFor...` class, outputs in the task's own labels or units."""
    family = model.families[task]
    head = model.head(task).model
    whole = getattr(transformers, family.auto_model).from_config(model.backbone.own_config(head.config), dtype=torch.float32)
    base, prefix = getattr(whole, whole.base_model_prefix), whole.base_model_prefix
    # Some classes build their trunk without the pooler that AutoModel gives it.
    wanted = base.state_dict()
    trunk = {f"{prefix}.{name}": t for name, t in model.backbone.trunk.state_dict().items() if name in wanted}
    own = {name: tensor for name, tensor in head.state_dict().items() if not name.startswith(f"{prefix}.")}
    missing, unexpected = whole.load_state_dict({**trunk, **own}, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    family.finish(whole)
    return whole.eval()


def save_task_model(model: MultiTask, task: str, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `assemble`'s model with its tokenizer; `pipeline()` and `AutoModelFor...` load the folder."""
    with replacing(folder) as writing:
        with quiet():
            assemble(model, task).save_pretrained(writing)
        tokenizer.tokenizer.save_pretrained(writing)


def save_trunk_and_heads(model: MultiTask, tokenizer: Tokenizer, folder: Path) -> None:
    """folder/model: the trunk as a plain Transformers folder. folder/heads: every head beside it."""
    with replacing(folder / "model") as writing:
        with quiet():
            trunk = model.backbone.trunk
            trunk.save_pretrained(writing)
            model.backbone.own_config(trunk.config).save_pretrained(writing)
        tokenizer.tokenizer.save_pretrained(writing)
    with replacing(folder / "heads") as writing:
        state = model.unique_state()
        for key in model.heads:
            prefix = f"heads.{key}."
            mine = {name.removeprefix(prefix): t.contiguous() for name, t in state.items() if name.startswith(prefix)}
            tasks = [task for task, family in model.families.items() if family.head_key(task) == key]
            place = writing / slug(key)
            place.mkdir()
            save_file(mine, place / "head.safetensors")
            about = {"key": key, "tasks": tasks, **model.families[tasks[0]].head_identity()}
            (place / "head.json").write_text(json.dumps(about, indent=1, ensure_ascii=False))


def load_head(model: MultiTask, task: str, run: Path) -> bool:
    """Start a task's head from an earlier run's, where that run has one of the same key, class and labels."""
    family = model.families[task]
    key = family.head_key(task)
    place = run / "heads" / slug(key)
    if not (place / "head.json").exists():
        return False
    about = json.loads((place / "head.json").read_text())
    if any(about.get(name) != value for name, value in family.head_identity().items()):
        return False
    model.head(task).load_state_dict(load_file(place / "head.safetensors"), strict=False)
    return True


def slug(key: str) -> str:
    return key.replace("/", "-")
