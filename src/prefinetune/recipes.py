"""Recipes: a model and settings under one name, each setting with where it comes from.

The paper (MUPPET, arXiv 2101.11038) states how updates are made; its learning rates, batch sizes and lengths stand in an appendix
that we have not seen. Those are fairseq's for fine-tuning the same models, or ours, and are marked so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefinetune.errors import InputError, listing, nearest

PAPER = "the paper"
FAIRSEQ = "fairseq's fine-tuning recipe"
OURS = "ours; the paper's is unknown"


class Setting(NamedTuple):
    """One setting of a recipe, and who says so."""

    name: str  # section.field
    value: Any
    origin: str


@dataclass(frozen=True)
class Recipe:
    """A model to start from, and settings of the stage."""

    name: str
    model: str
    settings: tuple[Setting, ...]

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """The settings by section, as `train` takes them."""
        found: dict[str, dict[str, Any]] = {}
        for name, value, _ in self.settings:
            section, field = name.split(".")
            found.setdefault(section, {})[field] = value
        return found


# 64 workers with a sub-batch of one dataset each make an update, whatever the number of processes here.
UPDATES = (
    Setting("mixture.sub_batches", 64, f"{PAPER}, section 3.2: 64 workers"),
    Setting("mixture.order", "heterogeneous", f"{PAPER}, section 3.2"),
    Setting("mixture.sampling", "natural", f"{PAPER}, section 3.4"),
    Setting("mixture.sub_batch_size", 8, OURS),
    Setting("train.epochs", 3, "ours; the paper trained to convergence"),
    Setting("optimizer.decay_power", 1.0, FAIRSEQ),
)
ROBERTA = (
    *UPDATES,
    Setting("data.max_length", 512, FAIRSEQ),
    Setting("optimizer.warmup", 0.06, FAIRSEQ),
    Setting("objective.r3f", 0.0, f"{PAPER}: R3F for BART only"),
    Setting("optimizer.beta1", 0.9, FAIRSEQ),
    Setting("optimizer.beta2", 0.98, FAIRSEQ),
    Setting("optimizer.epsilon", 1e-6, FAIRSEQ),
    Setting("optimizer.weight_decay", 0.1, FAIRSEQ),
    Setting("optimizer.clip", 1.0, "ours; fairseq does not clip"),
)
BART = (
    *UPDATES,
    Setting("objective.r3f", 1.0, f"on: {PAPER}; its weight: fairseq's default"),
    Setting("objective.noise", 1e-5, "fairseq's default"),
    Setting("objective.noise_kind", "normal", "fairseq's default for generation"),
    Setting("data.max_length", 512, OURS),
    Setting("data.max_target_length", 256, OURS),
    Setting("optimizer.warmup", 0.06, "ours; fairseq warms up for 500 updates"),
    Setting("optimizer.learning_rate", 3e-5, FAIRSEQ),
    Setting("optimizer.beta1", 0.9, FAIRSEQ),
    Setting("optimizer.beta2", 0.999, FAIRSEQ),
    Setting("optimizer.epsilon", 1e-8, FAIRSEQ),
    Setting("optimizer.weight_decay", 0.01, FAIRSEQ),
    Setting("optimizer.clip", 0.1, FAIRSEQ),
)
RECIPES = (
    Recipe("muppet-roberta-base", "roberta-base", (*ROBERTA, Setting("optimizer.learning_rate", 2e-5, FAIRSEQ))),
    Recipe("muppet-roberta-large", "roberta-large", (*ROBERTA, Setting("optimizer.learning_rate", 1e-5, FAIRSEQ))),
    Recipe("muppet-bart-base", "facebook/bart-base", BART),
    Recipe("muppet-bart-large", "facebook/bart-large", BART),
)


def recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        InputError: there is none of that name.
    """
    known: Mapping[str, Recipe] = {one.name: one for one in RECIPES}
    if name not in known:
        raise InputError(f"no recipe {name!r}{nearest(name, known)}; there are {listing(known)}")
    return known[name]
