"""The model: one backbone, and a head per key, each Transformers' own head class with the trunk taken out.

A head built this way is exactly what `AutoModelForSequenceClassification` and its siblings put on this architecture, so that
putting the trunk back gives a plain Transformers model with equal logits (see `export.py`).

Letters: b sequences ("rows") of a micro-batch, n tokens of them all, d hidden size, r rows of one segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import transformers
import transformers.modeling_utils  # it is needed anyway, and `import transformers` leaves it for later
from torch import nn
from torch.nn.utils import parametrize
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import BaseModelOutputWithPooling

from prefinetune import stream
from prefinetune.balancing import Balancing
from prefinetune.batch import Batch, Layout
from prefinetune.errors import InputError
from prefinetune.families import Family, Segment
from prefinetune.mixture import hash_key
from prefinetune.ops import Bounds
from prefinetune.ranks import like
from prefinetune.stream import Noise

if TYPE_CHECKING:
    from prefinetune.tokenizer import Tokenizer


@dataclass(slots=True)
class States:
    """What the trunk makes of a micro-batch: states of tokens, and where each of its b sequences has its own."""

    hidden: torch.Tensor  # [n, d]; of an encoder-decoder, the decoder's
    starts: torch.Tensor  # [b] the first of each sequence
    lengths: torch.Tensor  # [b] how many it has
    longest: int
    sentences: torch.Tensor  # [b] the one that a sentence is read off
    pooled: torch.Tensor | None = None  # [b, d], where the architecture has a pooler
    encoded: States | None = None  # of an encoder-decoder's encoder

    @classmethod
    def of_stream(cls, hidden: torch.Tensor, bounds: Bounds, anchors: torch.Tensor) -> States:
        """States [n, d] of a stream; a sequence may have kept no others than the one that a sentence is read off."""
        sentences = bounds.starts + torch.minimum(anchors, bounds.lengths - 1)
        return cls(hidden, bounds.starts, bounds.lengths, bounds.longest, sentences)

    @classmethod
    def of_rectangle(cls, hidden: torch.Tensor, bounds: Bounds, anchors: torch.Tensor) -> States:
        """States [b, longest, d] with padding."""
        starts = torch.arange(len(hidden), device=hidden.device) * hidden.shape[1]
        return cls(hidden.flatten(0, 1), starts, bounds.lengths, hidden.shape[1], starts + anchors)

    def sentence(self, rows: torch.Tensor) -> torch.Tensor:
        """[r, d] of the tokens that sentences are read off."""
        return self.hidden[self.sentences[rows]]

    def at(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """[m, d] of some tokens, by row and place."""
        return self.hidden[self.starts[rows] + places]

    def sequences(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[r, longest, d] of whole sequences, and which are real [r, longest]; the others have the state of some other token."""
        place = torch.arange(self.longest, device=self.hidden.device)
        mask = place < self.lengths[rows, None]
        return self.hidden[self.starts[rows, None] + torch.where(mask, place, 0)], mask.long()


class Given(nn.Module):
    """Stands where a head class expects its trunk, and returns the states it was given."""

    output: Any

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


class SpectralNorm(nn.Module):
    """A matrix divided by its largest singular value (R4F). Heads are small enough to have it exactly; torch's own
    parametrization comes nearer with every forward pass, so that the gradient would depend on how an update is cut."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / torch.linalg.matrix_norm(weight, ord=2)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


class Head(nn.Module):
    """One of Transformers' head classes on given states."""

    def __init__(self, model: transformers.PreTrainedModel, auto_model: str) -> None:
        super().__init__()
        self.auto_model = auto_model  # the class that loads it with a trunk
        self.given = Given()
        self._output = (model.get_output_embeddings(),)  # in a tuple, so that it does not become a part of this module twice
        self.parts = trunk_parts(model)
        for name in self.parts:
            setattr(model, name, self.given)
        self.model = model
        self.pools = pools(model.config)

    def _logits(self, hidden: torch.Tensor, pooled: torch.Tensor | None, mask: torch.Tensor) -> Any:
        self.given.output = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
        try:  # ids are asked for by the signature only: the trunk that would read them is gone
            return self.model(input_ids=mask, attention_mask=mask)
        finally:
            del self.given.output

    def _rows(self, states: States, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        if self.pools:
            hidden, mask = states.sequences(rows)
        else:
            hidden = states.sentence(rows)[:, None]
            mask = torch.ones_like(hidden[..., 0], dtype=torch.long)
        return hidden, None if states.pooled is None else states.pooled[rows], mask

    def sentence(self, states: States, rows: torch.Tensor) -> torch.Tensor:
        """Logits [r, labels] of a sentence head."""
        return self._logits(*self._rows(states, rows)).logits

    def option(self, states: States, rows: torch.Tensor) -> torch.Tensor:
        """Scores [r, 1] of a multiple-choice head, each row on its own."""
        hidden, pooled, mask = self._rows(states, rows)
        return self._logits(hidden, pooled, mask[:, None]).logits

    def tokens(self, states: States, rows: torch.Tensor) -> torch.Tensor:
        """Logits [r, l, 2] of a span head."""
        hidden, mask = states.sequences(rows)
        output = self._logits(hidden, None, mask)
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def chosen_tokens(self, states: States, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Logits [m, n] of a token head, or of a language-model head with its n words, for m tokens only, by row and place."""
        chosen = states.at(rows, places)[None]  # [1, m, d]
        return self._logits(chosen, None, torch.ones_like(chosen[..., 0], dtype=torch.long)).logits[0]

    def generate(self, states: States, rows: torch.Tensor, config: transformers.GenerationConfig) -> torch.Tensor:
        """Token ids [r, t] that the model writes; only encoder-decoders do."""
        raise NotImplementedError

    def normalize(self) -> None:
        """Keep the output layer's spectral norm at 1 (R4F)."""
        output = [module for module in self.model.modules() if isinstance(module, nn.Linear)][-1]
        parametrize.register_parametrization(output, "weight", SpectralNorm())

    def is_tied(self, trunk: transformers.PreTrainedModel) -> bool:
        """Whether the output layer is a trunk's embeddings."""
        (output,) = self._output
        return output is not None and output.weight is trunk.get_input_embeddings().weight

    def untie(self) -> None:
        """Give the output layer weights of its own."""
        (output,) = self._output
        output.weight = nn.Parameter(output.weight.detach().clone())

    def plain_state(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers under the names that Transformers' class gives them; of a parametrized one, what it comes to."""
        state = self.model.state_dict(keep_vars=True)
        for name, module in self.model.named_modules():
            if parametrize.is_parametrized(module, "weight"):
                del state[f"{name}.parametrizations.weight.original"]
                state[f"{name}.weight"] = module.weight
        return state

    def load_plain_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `plain_state` gave; what is missing stays."""
        state = dict(state)
        for name, module in self.model.named_modules():
            if parametrize.is_parametrized(module, "weight") and f"{name}.weight" in state:
                module.weight = state.pop(f"{name}.weight")
        self.model.load_state_dict(state, strict=False)


def pools(config: Any) -> bool:
    """Whether a sentence head averages over all tokens; most read one of them."""
    return getattr(config, "classifier_pooling", "cls") != "cls"


def trunk_parts(model: transformers.PreTrainedModel) -> list[str]:
    """The attributes under which a head class holds its trunk: one, or (in some of T5's) the trunk's own three."""
    prefix = model.base_model_prefix
    return [prefix] if hasattr(model, prefix) else ["shared", "encoder", "decoder"]


class Backbone(nn.Module):
    """A Transformers encoder, and the heads its architecture knows."""

    # Which class has the head that reads a sentence, an option, a span, a token's label, or tokens of the vocabulary.
    AUTO_MODELS: ClassVar[Mapping[str, str]] = {
        "sentence": "AutoModelForSequenceClassification",
        "option": "AutoModelForMultipleChoice",
        "span": "AutoModelForQuestionAnswering",
        "token": "AutoModelForTokenClassification",
        "language": "AutoModelForMaskedLM",
    }

    def __init__(
        self,
        trunk: transformers.PreTrainedModel,
        name: str = "",
        replaced: Mapping[str, Any] | None = None,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.replaced = dict(replaced or {})  # the configuration's own values of what this run overrides
        self.trunk = trunk
        self.name = name  # where its weights came from: a language-model head may have some there too
        self.config = trunk.config
        self.spectral_norm = spectral_norm  # of new heads
        self.adapted: tuple[Any, ...] = ()  # PEFT's model around the trunk, if it has adapters; in a tuple: it is no part of this
        self.recompute = False  # whether states are computed again in backward
        self._blank: dict[tuple[str, int], Head] = {}  # heads without weights, by kind and size: new ones are copies

    def layout(self, tokenizer: Tokenizer) -> Layout:
        """How this backbone reads its micro-batches."""
        return Layout(
            pad_id=tokenizer.pad_id,
            token_types=tokenizer.token_types,
            decodes=self.config.is_encoder_decoder,
            packed=stream.reads_streams(self.config, self.recompute),
            sentence_id=self.config.eos_token_id if self.config.is_encoder_decoder else None,
            pools=pools(self.config),
        )

    def forward(self, batch: Batch, noise: Noise | None = None) -> States:
        """The states of all sequences; `noise` goes on the token embeddings of those that are copies."""
        if batch.layout.packed:
            states = States.of_stream(stream.encode(self.trunk, batch, noise, self.recompute), batch.kept_bounds, batch.anchors)
            states.pooled = stream.pool(self.trunk, states.hidden[states.sentences])
            return states
        ids, mask, types = batch.rectangle()
        typed = {} if types is None else {"token_type_ids": types}
        with noised(self.trunk.get_input_embeddings(), batch, mask, noise):
            output = self.trunk(input_ids=ids, attention_mask=mask, **typed)
        states = States.of_rectangle(output.last_hidden_state, batch.bounds, batch.anchors)
        states.pooled = getattr(output, "pooler_output", None)
        return states

    def checkpoint_gradients(self) -> None:
        """Compute the states of layers again in backward instead of keeping them (Chen et al. 2016, arXiv 1604.06174).

        Raises:
            InputError: Transformers cannot do that with this architecture.
        """
        if not self.trunk.supports_gradient_checkpointing:
            raise InputError(f"train.gradient_checkpointing: Transformers has none for model type {self.config.model_type!r}")
        self.recompute = True
        # Transformers 5.20 gave it another name.
        enable = getattr(self.trunk, "activation_checkpointing_enable", self.trunk.gradient_checkpointing_enable)
        enable({"use_reentrant": False})

    def own_config(self, config: Any) -> Any:
        """A copy of a configuration of this backbone or its heads without this run's overrides: what is saved."""
        own = deepcopy(config)
        own.update(self.replaced)
        return own

    def new_head(self, kind: str, num_labels: int = 1) -> Head:
        """A head of a Transformers class, newly initialised.

        Raises:
            InputError: Transformers has no such class for this architecture.
        """
        if (kind, num_labels) not in self._blank:
            config = deepcopy(self.config)
            config.num_labels = num_labels
            with torch.device("meta"), no_init_weights():  # its trunk is thrown away, so it need not exist
                self._blank[kind, num_labels] = self._head(self._build(kind, config), kind)
        # An encoder-decoder's heads refer to the trunk, and go on to do so.
        head = deepcopy(self._blank[kind, num_labels], {id(self.trunk): self.trunk})
        head.to_empty(device="cpu")
        self._initialize(head.model)
        if self.spectral_norm:
            head.normalize()
        return head

    def language_head(self) -> Head:
        """The language-model head, with the checkpoint's weights where it has them, tied to this trunk's embeddings where the
        checkpoint's is tied.

        Raises:
            InputError: Transformers has no such class for this architecture.
        """
        with torch.device("meta" if self.name else "cpu"):
            model = self._build("language", deepcopy(self.config))
        if self.name:
            with quiet():
                model = type(model).from_pretrained(self.name, dtype=torch.float32, use_safetensors=True)
        # Not as the configuration has it: T5 1.1's says tied, and its checkpoints have an output layer of their own.
        if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
            model.get_output_embeddings().weight = self.trunk.get_input_embeddings().weight
        return self._head(model, "language")

    def _head(self, model: transformers.PreTrainedModel, kind: str) -> Head:
        return Head(model, self.AUTO_MODELS[kind])

    def _initialize(self, model: transformers.PreTrainedModel) -> None:
        for module in model.modules():
            model._init_weights(module)

    def _build(self, kind: str, config: Any) -> transformers.PreTrainedModel:
        head_class(config, self.AUTO_MODELS[kind])
        return getattr(transformers, self.AUTO_MODELS[kind]).from_config(config, dtype=torch.float32)


def head_class(config: Any, auto_model: str) -> Any:
    """The Transformers class that `auto_model` loads for an architecture.

    Raises:
        InputError: there is none.
    """
    known = getattr(transformers, auto_model)._model_mapping
    if type(config) not in known:
        kind = auto_model.removeprefix("AutoModelFor")
        raise InputError(f"model type {config.model_type!r} has no {kind} head in Transformers")
    return known[type(config)]


@contextmanager
def noised(embedding: nn.Module, batch: Batch, mask: torch.Tensor, noise: Noise | None) -> Iterator[None]:
    """Within, an embedding layer adds noise to real tokens of a rectangle's copies. Gradients flow through both kinds of rows."""

    def add(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        assert noise is not None
        copies, real = output[batch.clean :], mask[batch.clean :, :, None]
        # Some scale what they look up; the noise is on what is looked up.
        made = noise(batch.noise_keys_in_rectangle(), copies.shape[-1])
        return torch.cat([output[: batch.clean], copies + real * made * getattr(module, "embed_scale", 1.0)])

    if noise is None:
        yield
        return
    hook = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


class MultiTask(nn.Module):
    """A backbone with the heads of a set of tasks.

    Args:
        separate_heads: one head per task also in families whose tasks share one.
    """

    def __init__(self, backbone: Backbone, families: Mapping[str, Family], seed: int = 0, separate_heads: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.families = dict(families)
        self.head_keys = {task: family.head_key(task, separate_heads) for task, family in self.families.items()}
        self.heads = nn.ModuleDict()
        self.balancing = Balancing()
        for task, key in self.head_keys.items():
            if key not in self.heads:
                family = self.families[task]
                # A head's start depends on the seed and its key, not on other heads; one of several starts as a shared one does.
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(int(hash_key(seed, *family.head_key(task).encode()) >> 1))
                    self.heads[key] = family.head(backbone)

    def forward(self, batch: Batch, noise: Noise | None = None) -> Iterator[tuple[Segment, torch.Tensor, torch.Tensor | None]]:
        """One forward pass of the trunk for all tasks of a micro-batch, noised copies among them; then each segment with its
        head's output, and with that of its copies where it has some."""
        states = self.backbone(batch, noise)
        for segment in batch.segments:
            head, family = self.head(segment.task), segment.family
            output = family.apply(head, states, segment)
            yield segment, output, None if segment.noised is None else family.apply(head, states, segment.noised)

    def layout(self, tokenizer: Tokenizer) -> Layout:
        """How this model reads its micro-batches."""
        return self.backbone.layout(tokenizer)._replace(one_task=self.balancing.by_task)

    def head(self, task: str) -> Head:
        head = self.heads[self.head_keys[task]]
        assert isinstance(head, Head)
        return head

    def unique_state(self) -> dict[str, torch.Tensor]:
        """All parameters and buffers by name, tied ones once. Not those of a trunk that stands still beside its adapters."""
        state = self.state_dict(keep_vars=True)
        if self.backbone.adapted:
            state = {name: one for name, one in state.items() if one.requires_grad or not isinstance(one, nn.Parameter)}
        return unique(state)

    def load_unique_state(self, state: Mapping[str, torch.Tensor]) -> None:
        mine = self.unique_state()
        missing = set(mine) ^ set(state)
        if missing:
            raise InputError(f"checkpoint and model differ in {sorted(missing)[:4]}")
        self.load_state_dict({name: like(tensor, mine[name]) for name, tensor in state.items()}, strict=False)


def unique(state: Mapping[str, torch.Tensor], without: Iterable[torch.Tensor] = ()) -> dict[str, torch.Tensor]:
    """The tensors of a state by name, each once (safetensors refuses shared memory), and none of `without`."""
    seen = {id(tensor) for tensor in without}
    found = {}
    for name, tensor in state.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


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
