"""The settings of a run: frozen pydantic models, from defaults, a suite file and `section.field=value`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from prefinetune.errors import InputError, nearest
from prefinetune.quarantine import BAD_ROWS


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class ModelSettings(Section):
    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="replaces the model's own; 0 is faster on CPUs without a C++ compiler"
    )


class DataSettings(Section):
    max_length: int | None = Field(None, description="tokens per sequence; what the model takes, at most 512, when left out")
    max_target_length: int | None = Field(None, description="tokens a decoder learns to write; at most 256 when left out")
    max_rows: int | None = Field(None, gt=0, description="most training rows of a task, a fixed sample")
    bad_rows: float = Field(
        BAD_ROWS, ge=0, le=1, description="share of a split's rows that may be of no use and are set aside; 0 stops at the first"
    )
    leaks: Literal["drop", "report", "off"] = Field(
        "drop", description="training rows that show evaluation rows: leave them out, only say so, or do not look"
    )

    @field_validator("leaks", mode="before")
    @classmethod
    def _off_in_yaml(cls, value: Any) -> Any:
        return "off" if value is False else value

    @field_validator("bad_rows", mode="before")
    @classmethod
    def _no_longer_words(cls, value: Any) -> Any:
        if value in ("error", "skip"):
            instead = "0, which stops at the first" if value == "error" else f"{BAD_ROWS}, or 1 for as many as there are"
            raise PydanticCustomError("share", "a share", {"expected": f"the share of rows that may be set aside: {instead}"})
        return value


class MixtureSettings(Section):
    sampling: Literal["natural", "temperature", "uniform"] = Field("natural", description="how often each task is drawn")
    cap: int | None = Field(None, gt=0, description="most examples of a task that count in an epoch")
    temperature: float = Field(2.0, ge=1, description="for temperature sampling: rates go with size ** (1 / temperature)")
    order: Literal["heterogeneous", "batch-homogeneous", "dataset-homogeneous"] = Field(
        "heterogeneous", description="every update mixes tasks, or is one task's, or tasks follow one another"
    )
    sub_batches: int = Field(16, gt=0, description="sub-batches averaged in an update")
    sub_batch_size: int = Field(4, gt=0, description="examples of one task in a sub-batch")


class ObjectiveSettings(Section):
    scaling: Literal["log", "none"] = Field("log", description="each loss divided by the log of its number of outcomes, or not")
    heads: Literal["shared", "separate"] = Field("shared", description="of choice and span: one for all their tasks, or one each")
    balancing: Literal["static", "uncertainty", "pcgrad", "cagrad", "upgrad"] = Field(
        "static",
        description="between tasks: their shares of an update as drawn, learned variances, or gradients that conflict less",
    )
    r3f: float = Field(0.0, ge=0, description="weight of the divergence between clean and noised passes (R3F); 0 is off")
    noise: float = Field(1e-5, ge=0, description="its size on token embeddings: largest (uniform) or standard deviation (normal)")
    noise_kind: Literal["uniform", "normal"] = Field("uniform", description="its distribution")
    r3f_share: float = Field(
        1.0, gt=0, le=1, description="of the examples that have a noised pass; their divergence weighs r3f / r3f_share"
    )
    spectral_norm: bool = Field(False, description="output layers of new heads divided by their spectral norm (R4F, with r3f)")


class OptimizerSettings(Section):
    learning_rate: float = Field(3e-5, gt=0, description="peak, for the trunk")
    head_learning_rate: float | None = Field(None, gt=0, description="peak, for heads; as the trunk's when left out")
    uncertainty_learning_rate: float = Field(0.01, gt=0, description="peak, for the log variances of balancing by uncertainty")
    weight_decay: float = Field(0.01, ge=0, description="on matrices; never on biases and norms")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    epsilon: float = Field(1e-6, gt=0)
    warmup: float = Field(0.06, ge=0, le=1, description="share of updates over which the rate rises")
    decay_power: float = Field(1.0, ge=0, description="of the polynomial decay to zero; 0 keeps the rate")
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 does not clip")


class LoraSettings(Section):
    rank: int | None = Field(
        None,
        gt=0,
        description="of the adapters that are trained instead of the trunk's own weights (docs/lora.md); none if left out",
    )
    alpha: float | None = Field(None, gt=0, description="adapters count alpha / rank times; twice the rank when left out")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what adapters read")
    targets: tuple[str, ...] | None = Field(
        None, min_length=1, description="the layers that get one, such as [query, value]; all linear ones when left out"
    )

    @property
    def scale(self) -> float:
        """PEFT's `lora_alpha`."""
        return self.alpha or 2.0 * (self.rank or 0)

    @model_validator(mode="after")
    def _has_a_rank(self) -> LoraSettings:
        if self.rank is None and self != LoraSettings.model_construct():
            raise PydanticCustomError("rank", "a rank", {"expected": "a rank beside them, such as lora.rank=16"})
        return self


class TrainSettings(Section):
    epochs: float = Field(1.0, gt=0, description="passes over the mixture; the last may be partial")
    updates: int | None = Field(None, gt=0, description="optimizer steps, instead of epochs")
    token_budget: int = Field(4096, gt=0, description="most tokens of a micro-batch, padding included")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 autocast where it pays")
    log_every: int = Field(10, gt=0, description="updates between lines of metrics.jsonl")
    checkpoint_every: int | None = Field(500, gt=0, description="updates between checkpoints; none are written when null")
    keep_checkpoints: int = Field(2, gt=0)
    evaluate_every: int | None = Field(None, gt=0, description="updates between evaluations; only at the end when left out")
    evaluation_rows: int | None = Field(500, gt=0, description="most validation rows of a task scored")
    test_rows: int | None = Field(None, gt=0, description="most test rows scored by finetune and compare; all when left out")
    affinity_every: int | None = Field(
        None,
        gt=0,
        description="updates between samples of where each task pulls the trunk (docs/affinity.md); none when left out",
    )
    affinity_examples: int = Field(32, ge=2, description="of each task in such a sample")
    patience: int | None = Field(
        None, gt=0, description="evaluations without a better mean score before stopping; keeps the best"
    )
    gradient_checkpointing: bool = Field(False, description="less memory for a third more compute: states are computed twice")
    halve_budget: bool = Field(False, description="a smaller token_budget by itself when memory runs out")
    on_failed_checkpoint: Literal["stop", "continue"] = Field("stop", description="what to do when one cannot be written")
    rank_timeout: float = Field(1800, gt=0, description="seconds that a process waits for the others before it gives up")
    max_skipped: int = Field(10, gt=0, description="updates in a row that may be skipped for a loss that is not finite")
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        (), description="experiment trackers that are told what metrics.jsonl is (docs/tracking.md)"
    )

    @field_validator("track", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


# Settings of `train` that have no part in the result.
OPERATIONAL = {
    "token_budget", "checkpoint_every", "keep_checkpoints", "gradient_checkpointing", "halve_budget", "on_failed_checkpoint",
    "rank_timeout", "affinity_every", "affinity_examples", "track",
}  # fmt: skip
# Settings that older runs did not have: at its default each leaves the digest as it was without it, so that they go on.
ADDED = {
    "objective": ("scaling", "heads", "balancing"), "optimizer": ("uncertainty_learning_rate",),
    "lora": ("rank", "alpha", "dropout", "targets"), "train": ("test_rows",),
}  # fmt: skip


class Config(Section):
    """Everything a run depends on beside its suite and its model."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    mixture: MixtureSettings = MixtureSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    lora: LoraSettings = LoraSettings()
    train: TrainSettings = TrainSettings()
    seed: int = Field(0, ge=0, description="of heads, orders, masks and dropout")

    def digest(self) -> str:
        """Of all settings that change what a run comes to; the others may differ when it goes on."""
        settings, defaults = self.model_dump(exclude={"train": OPERATIONAL}), Config().model_dump()
        for section, names in ADDED.items():
            for name in names:
                if settings[section][name] == defaults[section][name]:
                    del settings[section][name]
            if not settings[section]:
                del settings[section]
        return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def same_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records of settings come to the same; one may be of a version that had fewer."""
    return make_config(one).digest() == make_config(other).digest()


def make_config(*layers: Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Merge settings, later ones winning, then `section.field=value` strings.

    Raises:
        InputError: an unknown setting (with the nearest known one), or a value out of its range.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for section, values in layer.items():
            if isinstance(values, Mapping):
                merged.setdefault(section, {}).update(values)
            else:
                merged[section] = values
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"{override!r} is not accepted; expected section.field=value")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"setting {name!r}: {value!r} is not accepted; expected a YAML value") from None
        section, _, field = name.strip().partition(".")
        if field:
            target = merged.setdefault(section, {})
            if not isinstance(target, dict):
                raise InputError(f"setting {name!r}: {section!r} is no section{nearest(name, setting_names())}")
            target[field] = parsed
        else:
            merged[section] = parsed
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise InputError("; ".join(explain(problem) for problem in error.errors())) from None


def setting_names() -> list[str]:
    """All settings as section.field."""
    names = []
    for section, item in Config.model_fields.items():
        inner = item.annotation
        is_section = isinstance(inner, type) and issubclass(inner, Section)
        names.extend([f"{section}.{field}" for field in inner.model_fields] if is_section else [section])  # type: ignore[union-attr]
    return names


def explain(problem: Mapping[str, Any]) -> str:
    """One pydantic complaint as a sentence."""
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name!r}{nearest(name, setting_names())}; `prefinetune settings` lists all"
    accepted = problem.get("ctx", {}).get("expected")
    expected = f"expected {accepted}" if accepted else problem["msg"].removeprefix("Input ").replace("should be", "must be")
    return f"setting {name!r}: {problem['input']!r} is not accepted; {expected}"
