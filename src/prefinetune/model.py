"""The model: one backbone, and a head per key, each Transformers' own head class with the trunk taken out.

A head built this way is exactly what `AutoModelForSequenceClassification` and its siblings put on this architecture, so that
putting the trunk back gives a plain Transformers model with equal logits (see `export.py`).

Letters: b rows of a micro-batch, l tokens of its longest row, d hidden size, r rows of one segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from prefinetune.errors import InputError, listing
from prefinetune.families import Family, Segment
from prefinetune.mixture import hash_key

if TYPE_CHECKING:
    from prefinetune.batch import Batch


# Model types whose heads, fed with the states of a padded mixed batch, were compared with Transformers' own forward pass of each
# sequence alone. Others may read another token or let padding leak into their states.
ENCODERS = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert", "megatron-bert",
    "mobilebert", "modernbert", "mpnet", "rembert", "roberta", "roberta-prelayernorm", "squeezebert", "xlm", "xlm-roberta",
    "xlm-roberta-xl",
)  # fmt: skip


@dataclass(slots=True)
class States:
    """What the trunk makes of a micro-batch."""

    hidden: torch.Tensor  # [b, l, d]
    pooled: torch.Tensor | None  # [b, d], where the architecture has a pooler
    mask: torch.Tensor  # [b, l] 1 on real tokens


class Given(nn.Module):
    """Stands where a head class expects its trunk, and returns the states it was given."""

    output: Any

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        return self.output


class Head(nn.Module):
    """One of Transformers' head classes on given states."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.given = Given()
        setattr(model, model.base_model_prefix, self.given)
        self.model = model
        # Most architectures read a sentence off its first token; those that average need all of them.
        self.first_token_only = getattr(model.config, "classifier_pooling", "cls") == "cls"

    def _logits(self, hidden: torch.Tensor, pooled: torch.Tensor | None, mask: torch.Tensor) -> Any:
        self.given.output = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
        try:  # ids are asked for by the signature only: the trunk that would read them is gone
            return self.model(input_ids=mask, attention_mask=mask)
        finally:
            del self.given.output

    def _rows(self, states: States, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        last = 1 if self.first_token_only else states.hidden.shape[1]
        pooled = None if states.pooled is None else states.pooled[rows]
        return states.hidden[rows, :last], pooled, states.mask[rows, :last]

    def sentence(self, states: States, rows: torch.Tensor) -> torch.Tensor:
        """Logits [r, labels] of a sentence head."""
        return self._logits(*self._rows(states, rows)).logits

    def option(self, states: States, rows: torch.Tensor) -> torch.Tensor:
        """Scores [r, 1] of a multiple-choice head, each row on its own."""
        hidden, pooled, mask = self._rows(states, rows)
        return self._logits(hidden, pooled, mask[:, None]).logits

    def tokens(self, states: States, rows: torch.Tensor) -> torch.Tensor:
        """Logits [r, l, 2] of a span head."""
        output = self._logits(states.hidden[rows], None, states.mask[rows])
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def chosen_tokens(self, states: States, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Logits [m, vocabulary] of a language-model head for m tokens only, named by row and place."""
        chosen = states.hidden[rows, places][None]  # [1, m, d]
        return self._logits(chosen, None, torch.ones_like(chosen[..., 0], dtype=torch.long)).logits[0]


class Backbone(nn.Module):
    """A Transformers encoder, and the heads its architecture knows."""

    def __init__(self, trunk: transformers.PreTrainedModel, name: str = "", replaced: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.replaced = dict(replaced or {})  # the configuration's own values of what this run overrides
        self.trunk = trunk
        self.name = name  # where its weights came from: a language-model head may have some there too
        self.config = trunk.config

    def forward(self, batch: Batch) -> States:
        types = {} if batch.token_types is None else {"token_type_ids": batch.token_types}
        output = self.trunk(input_ids=batch.ids, attention_mask=batch.mask, **types)
        return States(output.last_hidden_state, getattr(output, "pooler_output", None), batch.mask)

    def own_config(self, config: Any) -> Any:
        """A copy of a configuration of this backbone or its heads without this run's overrides: what is saved."""
        own = deepcopy(config)
        own.update(self.replaced)
        return own

    def new_head(self, auto_model: str, num_labels: int = 1) -> Head:
        """A head of a Transformers class, newly initialised.

        Raises:
            InputError: Transformers has no such class for this architecture.
        """
        config = deepcopy(self.config)
        config.num_labels = num_labels
        with torch.device("meta"):  # its trunk is thrown away, so it need not exist
            model = self._build(auto_model, config)
        head = Head(model)
        head.to_empty(device="cpu")
        for module in head.model.modules():
            head.model._init_weights(module)
        return head

    def language_head(self) -> Head:
        """The masked-language-model head, with the checkpoint's weights where it has them, tied to this trunk's embeddings.

        Raises:
            InputError: Transformers has no such class for this architecture.
        """
        with torch.device("meta" if self.name else "cpu"):
            model = self._build("AutoModelForMaskedLM", deepcopy(self.config))
        if self.name:
            with quiet():
                model = type(model).from_pretrained(self.name, dtype=torch.float32, use_safetensors=True)
        head = Head(model)
        if getattr(self.config, "tie_word_embeddings", True):
            head.model.get_output_embeddings().weight = self.trunk.get_input_embeddings().weight
        return head

    def _build(self, auto_model: str, config: Any) -> transformers.PreTrainedModel:
        try:
            return getattr(transformers, auto_model).from_config(config, dtype=torch.float32)
        except ValueError as error:
            kind = auto_model.removeprefix("AutoModelFor")
            raise InputError(f"model type {config.model_type!r} has no {kind} head in Transformers") from error


class MultiTask(nn.Module):
    """A backbone with the heads of a set of tasks."""

    def __init__(self, backbone: Backbone, families: Mapping[str, Family], seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.families = dict(families)
        self.heads = nn.ModuleDict()
        for task, family in self.families.items():
            key = family.head_key(task)
            if key not in self.heads:
                with torch.random.fork_rng(devices=[]):  # a head's start depends on the seed and its key, not on other heads
                    torch.manual_seed(int(hash_key(seed, *key.encode()) >> 1))
                    self.heads[key] = family.head(backbone)

    def forward(self, batch: Batch) -> Iterator[tuple[Segment, torch.Tensor]]:
        """One forward pass of the trunk for all tasks of a micro-batch; then each segment with its head's output."""
        states = self.backbone(batch)
        for segment in batch.segments:
            head = self.head(segment.task)
            yield segment, segment.family.apply(head, states, segment)

    def head(self, task: str) -> Head:
        head = self.heads[self.families[task].head_key(task)]
        assert isinstance(head, Head)
        return head

    def unique_state(self) -> dict[str, torch.Tensor]:
        """All parameters and buffers by name, tied ones once (safetensors refuses shared memory)."""
        seen: set[int] = set()
        state = {}
        for name, tensor in self.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                state[name] = tensor.detach()
        return state

    def load_unique_state(self, state: Mapping[str, torch.Tensor]) -> None:
        missing = set(self.unique_state()) ^ set(state)
        if missing:
            raise InputError(f"checkpoint and model differ in {sorted(missing)[:4]}")
        self.load_state_dict(state, strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Transformers' bars, and its warnings about weights that a checkpoint has for another head or lacks for ours."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def read_config(name_or_folder: str) -> Any:
    """The configuration of a model.

    Raises:
        InputError: there is none of that name, or it is not an encoder.
    """
    if not isinstance(name_or_folder, str) or not name_or_folder:
        raise InputError(f"model {name_or_folder!r} is not accepted; expected a hub name or a folder")
    path = Path(name_or_folder)
    if path.is_dir() and not (path / "config.json").exists():
        raise InputError(f"model folder {name_or_folder!r} has no config.json; expected a folder written by save_pretrained")
    if not path.exists() and (name_or_folder.startswith((".", "/")) or name_or_folder.count("/") > 1):
        raise InputError(f"no model folder {name_or_folder!r}")
    try:
        config = transformers.AutoConfig.from_pretrained(name_or_folder, trust_remote_code=False)
    except Exception as error:  # hub client failures of every kind are one message
        raise InputError(
            f"model {name_or_folder!r} could not be loaded: it is no folder here, and the hub gave none "
            f"({str(error).strip().splitlines()[0][:160]}). Offline? Give the folder of a downloaded model"
        ) from error
    if config.is_encoder_decoder:
        raise InputError(f"model {name_or_folder!r} ({config.model_type}) is an encoder-decoder; this version trains encoders")
    if config.model_type not in ENCODERS:
        raise InputError(
            f"model {name_or_folder!r}: type {config.model_type!r} is not one whose heads were checked; "
            f"accepted: {listing(ENCODERS, 30)}"
        )
    return config


def load_backbone(name_or_folder: str, attention_dropout: float | None = None) -> Backbone:
    """A backbone with its pre-trained weights, in float32.

    Args:
        attention_dropout: replaces the model's own, where given.

    Raises:
        InputError: it cannot be loaded.
    """
    config = read_config(name_or_folder)
    replaced = {}
    if attention_dropout is not None:
        fields = ("attention_probs_dropout_prob", "attention_dropout")
        replaced = {field: getattr(config, field) for field in fields if hasattr(config, field)}
        config.update(dict.fromkeys(replaced, attention_dropout))
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # weights that the checkpoint lacks (RoBERTa's pooler, say) start the same in every run
            trunk = transformers.AutoModel.from_pretrained(
                name_or_folder, config=config, dtype=torch.float32, use_safetensors=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"model {name_or_folder!r}: its weights could not be loaded ({str(error).splitlines()[0][:200]})"
        ) from error
    return Backbone(trunk, name_or_folder, replaced)
