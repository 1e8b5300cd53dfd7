"""LoRA (Hu et al. 2021, arXiv 2106.09685) through PEFT: the trunk's weights stand still, and the product of two thin matrices,
its adapter, is learned beside each of its linear layers. Heads learn as ever.

Inside a run the trunk is Transformers' own model with PEFT's layers in it. What leaves a run is either the plain trunk with
adapters added to its weights, so that everything else goes on with it, or the adapters alone in PEFT's own format.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from torch import nn

from prefinetune import launcher
from prefinetune.checkpoint import replacing
from prefinetune.errors import InputError, listing
from prefinetune.mixture import hash_key

if TYPE_CHECKING:
    from prefinetune.config import LoraSettings
    from prefinetune.model import Backbone


def check_lora(settings: LoraSettings) -> None:
    """Whether what LoRA needs is installed; asked before any data is read.

    Raises:
        InputError: it is not.
    """
    if settings.rank and find_spec("peft") is None:
        raise InputError("lora.rank: PEFT is not installed: pip install 'prefinetune[lora]'")


def adapt(backbone: Backbone, settings: LoraSettings, seed: int) -> str:
    """Give a trunk adapters, in place, and let nothing else of it be trained; without a rank it stays as it is.

    Returns:
        What was done, in words; nothing without a rank.

    Raises:
        InputError: `lora.targets` names what is no linear layer of the trunk, or PEFT is not installed.
    """
    if not settings.rank:
        return ""
    check_lora(settings)
    from peft import LoraConfig, get_peft_model

    trunk = backbone.trunk
    layers = [name.rpartition(".")[2] for name, module in trunk.named_modules() if isinstance(module, nn.Linear)]
    for target in settings.targets or ():
        if target not in layers:
            raise InputError(
                f"lora.targets: {target!r} is no linear layer of {backbone.name} ({trunk.config.model_type}); "
                f"expected some of {listing(sorted(set(layers)), 30)}"
            )
    chosen = sorted(set(settings.targets or layers))
    config = LoraConfig(
        task_type="FEATURE_EXTRACTION",  # of AutoModel, which the trunk is
        r=settings.rank,
        lora_alpha=settings.scale,  # type: ignore[arg-type]  # a number by which it divides
        lora_dropout=settings.dropout,
        target_modules=chosen,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks Transformers 5.23 by a name that is old by now
        torch.manual_seed(int(hash_key(seed, 10) >> 1))
        backbone.adapted = (get_peft_model(trunk, config),)
    learned = sum(one.numel() for one in trunk.parameters() if one.requires_grad)
    total = sum(one.numel() for one in trunk.parameters()) - learned
    num_layers = sum(name in chosen for name in layers)
    return f"LoRA of rank {settings.rank} on {num_layers} layers: {learned:,} numbers are learned beside the trunk's {total:,}"


def merged(backbone: Backbone) -> transformers.PreTrainedModel:
    """The trunk as Transformers knows it: where it has adapters, a copy with them added to its weights."""
    if not backbone.adapted:
        return backbone.trunk
    (model,) = backbone.adapted
    return deepcopy(model).merge_and_unload()


def save_adapter(backbone: Backbone, folder: Path) -> None:
    """Write the adapters as PEFT does; `PeftModel.from_pretrained(AutoModel of the base, folder)` loads them. Nothing without."""
    if not (backbone.adapted and launcher.is_main()):
        return
    (model,) = backbone.adapted
    with replacing(folder) as writing:
        model.save_pretrained(writing)
