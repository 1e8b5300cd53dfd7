"""Encoder-decoders (BART, mBART, T5) behind the face of `Backbone`.

Tasks with a head are read off the decoder in the way each model's own head class does it: the decoder reads the encoder's
sequence once more, shifted right; a sentence's state is that of the last end-of-sequence token, a span's are all of them. An
option is scored by a sentence head with one output, as these architectures have no multiple-choice class. Generation and
denoising let the decoder read what it shall write, shifted right. All kinds of rows share one forward pass.

T5's sentence and span classes in Transformers are made after BART's, decoder included, and so are ours; reading the encoder alone
would leave half of the model untrained by those tasks, and no class of Transformers could load the result with its decoder.

Letters: b rows of a micro-batch, l tokens of the longest sequence, t of the longest that the decoder reads, d hidden size, r rows
of one segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import transformers
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqModelOutput,
)

from prefinetune import stream
from prefinetune.model import Backbone, Head, States, head_class, noised
from prefinetune.stream import Noise

if TYPE_CHECKING:
    from prefinetune.batch import Batch


class DecoderHead(Head):
    """One of Transformers' head classes on the decoder's states."""

    def __init__(self, model: transformers.PreTrainedModel, auto_model: str, trunk: transformers.PreTrainedModel) -> None:
        super().__init__(model, auto_model)
        self._trunk = (trunk,)  # in a tuple, so that it does not become a part of this module
        self._holds_parts = len(self.parts) > 1
        self.given.weight = torch.empty(0)  # T5 initialises embeddings from the class that holds them

    def _logits(self, hidden: torch.Tensor, pooled: torch.Tensor | None, mask: torch.Tensor) -> Any:
        output = BaseModelOutputWithPastAndCrossAttentions if self._holds_parts else Seq2SeqModelOutput
        self.given.output = output(last_hidden_state=hidden)
        try:  # a sentence's one token is an end of sequence; other heads do not look at ids
            ids = torch.full_like(mask, self.model.config.eos_token_id)
            return self.model(input_ids=ids, attention_mask=mask, encoder_outputs=BaseModelOutput(last_hidden_state=hidden))
        finally:
            del self.given.output

    def option(self, states: States, rows: torch.Tensor) -> torch.Tensor:
        return self.sentence(states, rows)

    def generate(self, states: States, rows: torch.Tensor, config: transformers.GenerationConfig) -> torch.Tensor:
        assert states.encoded is not None
        hidden, mask = states.encoded.sequences(rows)
        with self._whole() as model:
            model.generation_config = config  # or `generate` fills what this leaves open from the checkpoint's own
            return model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=mask,
                generation_config=config,
            )

    @contextmanager
    def _whole(self) -> Iterator[Any]:
        """The head's model with the trunk in its place."""
        (trunk,) = self._trunk
        for name in self.parts:
            setattr(self.model, name, getattr(trunk, name) if self._holds_parts else trunk)
        try:
            yield self.model
        finally:
            for name in self.parts:
                setattr(self.model, name, self.given)


class EncoderHead(Head):
    """A token head on the encoder's states: T5's class for it in Transformers has no decoder."""

    def chosen_tokens(self, states: States, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        assert states.encoded is not None
        return super().chosen_tokens(states.encoded, rows, places)


class EncoderDecoder(Backbone):
    """A Transformers encoder-decoder, and the heads its architecture knows."""

    AUTO_MODELS: ClassVar[Mapping[str, str]] = {
        "sentence": "AutoModelForSequenceClassification",
        "option": "AutoModelForSequenceClassification",
        "span": "AutoModelForQuestionAnswering",
        "token": "AutoModelForTokenClassification",
        "language": "AutoModelForSeq2SeqLM",
    }

    def forward(self, batch: Batch, noise: Noise | None = None) -> States:
        """As in `Backbone`; noise goes on what the encoder reads (as in fairseq's R3F)."""
        if batch.layout.packed:
            decoded, encoded = stream.encode_and_decode(self.trunk, batch, noise, self.recompute)
            states = States.of_stream(decoded, batch.kept_bounds, batch.anchors)
            states.encoded = States.of_stream(encoded, batch.bounds, batch.anchors)
            return states
        ids, mask, _ = batch.rectangle()
        encoder = self.trunk.get_encoder()
        with noised(encoder.get_input_embeddings(), batch, mask, noise):
            encoded = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        states = States.of_rectangle(encoded, batch.bounds, batch.anchors)
        if batch.outputs is None or batch.output_bounds is None:
            return replace(states, encoded=states)
        # Padding stands behind, where a causal decoder does not see it.
        decoded = self.trunk(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            decoder_input_ids=self.shifted(batch.output_bounds.spread(batch.outputs, batch.layout.pad_id)),
            use_cache=False,
        ).last_hidden_state
        return replace(States.of_rectangle(decoded, batch.output_bounds, batch.anchors), encoded=states)

    def shifted(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the decoder reads [b, t] in order to write `outputs`: its start token first, in the model's own way."""
        return head_class(self.config, self.AUTO_MODELS["language"]).prepare_decoder_input_ids_from_labels(self.trunk, outputs)

    def _head(self, model: transformers.PreTrainedModel, kind: str) -> Head:
        if kind == "token":
            return EncoderHead(model, self.AUTO_MODELS[kind])
        return DecoderHead(model, self.AUTO_MODELS[kind], self.trunk)

    def _initialize(self, model: transformers.PreTrainedModel) -> None:
        model.apply(model._init_weights)  # in Transformers' own order: T5 initialises some parts from what holds them
