"""Trunk and head put back together: a plain Transformers model that gives the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from prefinetune import launcher
from prefinetune.checkpoint import replacing
from prefinetune.lora import merged
from prefinetune.model import MultiTask, quiet, unique
from prefinetune.ranks import whole

if TYPE_CHECKING:
    from prefinetune.tokenizer import Tokenizer


@torch.no_grad()
def assemble(model: MultiTask, task: str, tokenizer: Tokenizer | None = None) -> transformers.PreTrainedModel:
    """One task of a model as its `AutoModelFor...` class, outputs in the task's own labels or units.

    Args:
        tokenizer: tells a model that generates how to begin and to end.
    """
    head = model.head(task)
    config = model.backbone.own_config(head.model.config)
    made = getattr(transformers, head.auto_model).from_config(config, dtype=torch.float32)
    # Some of T5's classes hold the trunk's parts themselves.
    prefix = f"{made.base_model_prefix}." if len(head.parts) == 1 else ""
    trunk = {f"{prefix}{name}": whole(tensor) for name, tensor in merged(model.backbone).state_dict().items()}
    # Some classes build their trunk without the pooler that AutoModel gives it.
    trunk = {name: trunk[name] for name in trunk.keys() & made.state_dict().keys()}
    if (output := made.get_output_embeddings()) is not None and not head.is_tied(model.backbone.trunk):
        output.weight = torch.nn.Parameter(output.weight.clone())  # as the checkpoint's is, whatever its configuration says
    missing, unexpected = made.load_state_dict({**trunk, **head.plain_state()}, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    model.families[task].finish(made, tokenizer)
    return made.eval()


def save_task_model(model: MultiTask, task: str, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `assemble`'s model with its tokenizer; `pipeline()` and `AutoModelFor...` load the folder. Every process takes part,
    as each may hold a piece of the trunk; the main one writes."""
    whole_model = assemble(model, task, tokenizer)
    if not launcher.is_main():
        return
    with replacing(folder) as writing:
        write_model(whole_model, tokenizer, writing)


def write_model(model: transformers.PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    with quiet():
        model.save_pretrained(folder)
    tokenizer.tokenizer.save_pretrained(folder)


def save_trunk_and_heads(model: MultiTask, tokenizer: Tokenizer, folder: Path) -> None:
    """folder/model: the trunk as a plain Transformers folder. folder/heads: every head beside it. Processes as above."""
    trunk = merged(model.backbone)
    trunk_state = {name: whole(tensor) for name, tensor in trunk.state_dict().items()}
    if not launcher.is_main():
        return
    with replacing(folder / "model") as writing:
        with quiet():
            trunk.save_pretrained(writing, state_dict=trunk_state)
            model.backbone.own_config(trunk.config).save_pretrained(writing)
        tokenizer.tokenizer.save_pretrained(writing)
    with replacing(folder / "heads") as writing:
        for key in model.heads:
            tasks = [task for task, its_key in model.head_keys.items() if its_key == key]
            place = writing / slug(key)
            place.mkdir()
            # The output layer of a language-model head may be the trunk's embeddings.
            state = unique(model.head(tasks[0]).plain_state(), without=model.backbone.parameters())
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, place / "head.safetensors")
            about = {"key": key, "tasks": tasks, **identity(model, tasks[0])}
            (place / "head.json").write_text(json.dumps(about, indent=1, ensure_ascii=False))


def load_head(model: MultiTask, task: str, run: Path) -> bool:
    """Start a task's head from an earlier run's, where that run has one of the same key, class and labels: the task's own (in a
    run with separate heads) where no other task would get it too, or the one that its family shares."""
    family, key = model.families[task], model.head_keys[task]
    is_alone = list(model.head_keys.values()).count(key) == 1
    keys = [*([family.head_key(task, separate=True)] if is_alone else []), family.head_key(task)]
    places = [run / "heads" / slug(key) for key in keys]
    place = next((place for place in places if (place / "head.json").exists()), None)
    if place is None:
        return False
    about = json.loads((place / "head.json").read_text())
    if any(about.get(name) != value for name, value in identity(model, task).items()):
        return False
    head, state = model.head(task), load_file(place / "head.safetensors")
    embeddings = model.backbone.trunk.get_input_embeddings().weight
    if any(tensor is embeddings and name in state for name, tensor in head.plain_state().items()):
        head.untie()  # a trunk's folder has no output layer, so that the head was given the embeddings
    head.load_plain_state(state)
    return True


def identity(model: MultiTask, task: str) -> dict[str, Any]:
    """What a saved head must share with a task's to take its place."""
    return {**model.families[task].head_identity(), "class": model.head(task).auto_model}


def slug(key: str) -> str:
    return key.replace("/", "-")
