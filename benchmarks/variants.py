"""The ways of learning that throughput.py compares: one object each, whose `step` learns from the examples of a round.

All start from the same weights, with the same AdamW (fused, which is also Trainer's default) and gradients clipped at 1, and make
one optimizer step per batch of examples. What makes a variant ready (models, tensors of text that its users would have on disk)
happens outside the clock; laying out and padding batches happens inside.

Letters: e examples of a batch, r sequences, l tokens of the longest.
"""

from __future__ import annotations

import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments

from prefinetune import native
from prefinetune.batch import Drawn, micro_batches
from prefinetune.config import ObjectiveSettings, OptimizerSettings, TrainSettings
from prefinetune.encoder_decoder import EncoderDecoder
from prefinetune.families import Encoded, Family
from prefinetune.loop import make_optimizer
from prefinetune.mixture import SubBatch
from prefinetune.model import Backbone, MultiTask
from prefinetune.pretrained import load_backbone
from prefinetune.update import draw, update
from workload import LENGTH, SPAN_LENGTH, Listed, Mix, Round

CLIP, R3F = 1.0, ObjectiveSettings(r3f=1.0)
SHAPES: dict[str, Callable[..., Any]] = {
    "minilm-shaped": lambda **kw: transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, **kw
    ),
    "roberta-base-shaped": lambda **kw: transformers.RobertaConfig(max_position_embeddings=514, type_vocab_size=2, **kw),
}


class Unfit(Exception):
    """A peer that cannot learn from a mix, or is not installed; says why."""


@dataclass
class Setup:
    """What all variants share."""

    model: str  # one of SHAPES, or a folder with weights
    device: str = "cpu"
    dropout: float | None = None  # replaces all of the model's own rates, in float32: for comparing gradients
    folder: str = ""  # of the weights, for those that load them by themselves
    token_budget: int = TrainSettings().token_budget  # of our micro-batches

    @property
    def precision(self) -> str:
        return "bf16" if self.device == "cuda" and self.dropout is None else "no"

    @property
    def autocast(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def accelerator(self) -> Any:
        if self.dropout is None:
            return Accelerator(cpu=self.device == "cpu", mixed_precision=self.precision)
        # A process has Accelerators of one precision only.
        return SimpleNamespace(
            device=torch.device(self.device), num_processes=1, autocast=nullcontext, backward=torch.Tensor.backward
        )

    def multitask(self, mix: Mix, attention_dropout: float | None = None) -> MultiTask:
        """Trunk and heads of a mix's tasks, equal weights whenever it is called."""
        families = {task.name: task.family for task in mix.tasks}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = MultiTask(self._backbone(mix, attention_dropout), families)
        if self.dropout is not None:
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = self.dropout
        return model.to(self.device)

    def _backbone(self, mix: Mix, attention_dropout: float | None) -> Backbone:
        if mix.decodes:
            return EncoderDecoder(transformers.AutoModel.from_config(bart_config(mix, self.dropout)))
        if self.model not in SHAPES:
            return load_backbone(self.model, attention_dropout)
        rates = {} if attention_dropout is None else {"attention_probs_dropout_prob": attention_dropout}
        config = SHAPES[self.model](vocab_size=mix.tokenizer.vocab_size, pad_token_id=mix.tokenizer.pad_id, **rates)
        return Backbone(transformers.AutoModel.from_config(config))


def bart_config(mix: Mix, dropout: float | None = None) -> Any:
    """4 + 4 layers of BART, 384 wide; its own dropout (0.1, of attention 0) unless another is given."""
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in
             (("layers", 4), ("attention_heads", 6), ("ffn_dim", 1536))}  # fmt: skip
    return transformers.BartConfig(
        vocab_size=mix.tokenizer.vocab_size, d_model=384, max_position_embeddings=512, pad_token_id=mix.tokenizer.pad_id,
        bos_token_id=3, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
        dropout=0.1 if dropout is None else dropout, **sides,
    )  # fmt: skip


class Clock:
    """Adds up the seconds within: of this process on all processors, and on the wall."""

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.processor, self.wall = device, 0.0, 0.0

    def __enter__(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self._started = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.processor += time.process_time() - self._started[0]
        self.wall += time.perf_counter() - self._started[1]


@dataclass
class Meter:
    """What a variant was seen to do: tokens looked up, padding included, and optimizer steps."""

    tokens: int = 0
    steps: int = 0

    def watch(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, vocabulary: int) -> None:
        def looked_up(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
            self.tokens += inputs[0].numel()

        def stepped(*_: Any) -> None:
            self.steps += 1

        for module in model.modules():  # each once
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings >= vocabulary:
                module.register_forward_hook(looked_up)
        optimizer.register_step_post_hook(stepped)


class Variant:
    """A way of learning from a mix."""

    label: ClassVar[str]
    passes: ClassVar[int] = 1  # forward passes over an example: 2 with R3F
    draws: ClassVar[str] = "the same examples"

    def __init__(self, mix: Mix, setup: Setup) -> None:
        self.mix, self.setup, self.meter = mix, setup, Meter()
        self.prepare()

    def prepare(self) -> None:
        """Make models and an optimizer.

        Raises:
            Unfit: this peer cannot learn from the mix.
        """
        raise NotImplementedError

    def step(self, examples: Round, clock: Clock) -> None:
        """Learn from a round; only what is done within the clock counts."""
        raise NotImplementedError

    def learned(self, examples: Round) -> Iterator[Encoded]:
        """The examples that a step learns from."""
        return (one for group in examples.groups for one in self.mix.examples(group))


# ---- ours


class Ours(Variant):
    """`prefinetune.train`, from the drawing of an update on."""

    label = "prefinetune"
    attention_dropout: ClassVar[float | None] = None
    objective: ClassVar[ObjectiveSettings] = ObjectiveSettings()

    def prepare(self) -> None:
        self.model = self.setup.multitask(self.mix, self.attention_dropout)
        self.optimizer = make_optimizer(self.model, OptimizerSettings())
        self.accelerator = self.setup.accelerator()
        self.layout = self.model.layout(self.mix.tokenizer)
        self.meter.watch(self.model.backbone.trunk, self.optimizer, self.mix.tokenizer.vocab_size)

    def step(self, examples: Round, clock: Clock) -> None:
        for number in range(len(examples.updates)):
            with clock:
                drawn = draw(Listed(examples.updates), number, self.mix.tasks, self.mix.tokenizer, self.objective)
                batches = micro_batches(drawn, self.setup.token_budget, self.layout)
                update(self.model, self.optimizer, batches, CLIP, self.accelerator, self.objective)


class OursWithoutAttentionDropout(Ours):
    label, attention_dropout = "prefinetune, attention dropout 0", 0.0


class OursInPlainTorch(Ours):
    label = "prefinetune, PyTorch alone"

    def step(self, examples: Round, clock: Clock) -> None:
        with mock.patch.object(native, "takes", return_value=False):
            super().step(examples, clock)


class OursWithR3F(Ours):
    label, passes, objective = "prefinetune, R3F", 2, R3F


# ---- Transformers' Trainer


class TrainerLoop(Variant):
    """A Trainer per task, one after the other, as people do who train on several tasks with it; what it sets up before its loop
    begins is not counted. Padded to the longest of a batch: the reference."""

    label = "Trainer, padded to longest"
    attention_dropout: ClassVar[float | None] = None

    def prepare(self) -> None:
        self.models, self.optimizer = plain_models(self.setup.multitask(self.mix, self.attention_dropout))
        self.meter.watch(next(iter(self.models.values())).base_model, self.optimizer, self.mix.tokenizer.vocab_size)

    def step(self, examples: Round, clock: Clock) -> None:
        for group in self.groups(examples):
            family = self.mix.family(group)
            model = self.models[family.head_key(self.mix.tasks[group.task].name)]
            rows = [self.features(one, family) for one in self.mix.examples(group)]
            run_trainer(Trainer, model, self.optimizer, self.setup, clock, len(rows),
                        train_dataset=datasets.Dataset.from_list(rows), data_collator=self.collator(family))  # fmt: skip

    def groups(self, examples: Round) -> list[SubBatch]:
        return examples.groups

    def features(self, one: Encoded, family: Family) -> dict[str, Any]:
        return features(one, family, self.mix.tokenizer.token_types)

    def collator(self, family: Family) -> Any:
        return collator(family, self.mix.tokenizer.tokenizer)


class TrainerAsScripts(TrainerLoop):
    """Padding of run_glue.py (to 128 tokens) and of run_qa.py (to 384); run_swag.py pads to the longest."""

    label = "Trainer, padded as its example scripts do"

    def features(self, one: Encoded, family: Family) -> dict[str, Any]:
        row = super().features(one, family)
        if family.kind == "choice":
            return row
        tokenizer = self.mix.tokenizer.tokenizer
        longest = SPAN_LENGTH if family.kind == "span" else LENGTH
        return dict(tokenizer.pad(row, padding="max_length", max_length=longest))

    def collator(self, family: Family) -> Any:
        return super().collator(family) if family.kind == "choice" else transformers.default_data_collator


class TunedTrainer(TrainerLoop):
    """Batches of similar lengths (`train_sampling_strategy="group_by_length"` over up to 50 batches), no attention dropout, with
    which PyTorch has a fast attention for CPUs, and fused AdamW. Its batches are of the same tasks and as many, but of other
    examples, since they are chosen by length among many: it is compared by real tokens per second."""

    label, attention_dropout = "Trainer, best tuned", 0.0
    draws = "other examples of the same tasks, in batches of similar lengths"

    def groups(self, examples: Round) -> list[SubBatch]:
        return examples.alike

    def learned(self, examples: Round) -> Iterator[Encoded]:
        return (one for group in examples.alike for one in self.mix.examples(group))


class Seq2SeqTrainerLoop(Variant):
    """Seq2SeqTrainer with its collator, padded to the longest text and to the longest target of a batch: E's reference."""

    label = "Seq2SeqTrainer, padded to longest"

    def prepare(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = transformers.BartForConditionalGeneration(bart_config(self.mix, self.setup.dropout)).to(
                self.setup.device
            )
        self.optimizer = plain_adamw(self.model, OptimizerSettings())
        self.meter.watch(self.model.base_model, self.optimizer, self.mix.tokenizer.vocab_size)

    def step(self, examples: Round, clock: Clock) -> None:
        collator = transformers.DataCollatorForSeq2Seq(self.mix.tokenizer.tokenizer, self.model)
        for group in examples.groups:
            rows = [seq2seq_features(one) for one in self.mix.examples(group)]
            run_trainer(transformers.Seq2SeqTrainer, self.model, self.optimizer, self.setup, clock, len(rows),
                        train_dataset=datasets.Dataset.from_list(rows), data_collator=collator)  # fmt: skip


def plain_models(multitask: MultiTask) -> tuple[dict[str, Any], torch.optim.Optimizer]:
    """Transformers' own models by head key, all around one trunk, and an optimizer of them all."""
    optimizer = make_optimizer(multitask, OptimizerSettings())
    models = {}
    for task, family in multitask.families.items():
        head = multitask.head(task)
        for part in head.parts:
            setattr(head.model, part, multitask.backbone.trunk)
        head.model.config.problem_type = PROBLEMS.get(family.kind)
        models[family.head_key(task)] = head.model
    return models, optimizer


PROBLEMS = {
    "classification": "single_label_classification",
    "regression": "regression",
    "multi-label": "multi_label_classification",
}


def plain_adamw(model: torch.nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.epsilon,
        weight_decay=settings.weight_decay, fused=True,
    )  # fmt: skip


class ClockedLoop(TrainerCallback):
    """The clock runs while a Trainer's loop does."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.__enter__()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.clock.__exit__()


def training_arguments(setup: Setup, batch: int, kind: type[TrainingArguments] = TrainingArguments, **more: Any) -> Any:
    """Trainer's defaults, but for the batch, saving and talking."""
    return kind(
        output_dir=tempfile.gettempdir(), per_device_train_batch_size=batch, num_train_epochs=1, save_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=setup.device == "cpu", bf16=setup.device == "cuda", **more,
    )  # fmt: skip


def run_trainer(
    trainer: type[Trainer], model: Any, optimizer: torch.optim.Optimizer, setup: Setup, clock: Clock, batch: int, **more: Any
) -> None:
    kind = transformers.Seq2SeqTrainingArguments if trainer is transformers.Seq2SeqTrainer else TrainingArguments
    made = trainer(
        model=model, args=training_arguments(setup, batch, kind), callbacks=[ClockedLoop(clock)], optimizers=(optimizer, None),
        **more,
    )  # fmt: skip
    made.remove_callback(transformers.PrinterCallback)
    made.train()


def features(one: Encoded, family: Family, token_types: bool) -> dict[str, Any]:
    """An example as Transformers' scripts have it: lists, one per option where it is a choice."""
    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)} for ids in one.sequences]
    if token_types:
        for row, first in zip(rows, one.first, strict=True):
            row["token_type_ids"] = [int(place >= first) for place in range(len(row["input_ids"]))]
    if family.kind == "choice":
        return {name: [row[name] for row in rows] for name in rows[0]} | {"labels": int(one.target[0])}
    if family.kind == "span":
        return rows[0] | {"start_positions": int(one.target[0]), "end_positions": int(one.target[1])}
    label = {"classification": int, "regression": float, "multi-label": lambda _: one.target.astype(float).tolist()}
    return rows[0] | {"labels": label[family.kind](one.target[0])}


def seq2seq_features(one: Encoded) -> dict[str, Any]:
    assert one.output is not None
    ids = one.sequences[0].tolist()
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": one.output.tolist()}


def collator(family: Family, tokenizer: Any) -> Any:
    """Pads to the longest of a batch."""
    if family.kind == "choice":
        return transformers.DataCollatorForMultipleChoice(tokenizer)
    return transformers.DataCollatorWithPadding(tokenizer)


# ---- MUPPET, written down as one would first


class Muppet(Variant):
    """The paper's step in the plainest way: a padded forward pass per task, gradients added up, one optimizer step."""

    label = "MUPPET step, a padded batch per task"
    r3f: ClassVar[bool] = False

    def prepare(self) -> None:
        self.models, self.optimizer = plain_models(self.setup.multitask(self.mix))
        trunk = next(iter(self.models.values())).base_model
        self.meter.watch(trunk, self.optimizer, self.mix.tokenizer.vocab_size)
        self.parameters = list({id(p): p for model in self.models.values() for p in model.parameters()}.values())
        self.collators = {kind: collator(SimpleNamespace(kind=kind), self.mix.tokenizer.tokenizer) for kind in ("choice", "")}
        for model in self.models.values():
            model.train()

    def step(self, examples: Round, clock: Clock) -> None:
        for number in range(len(examples.updates)):
            with clock:
                self.update(draw(Listed(examples.updates), number, self.mix.tasks, self.mix.tokenizer))

    def update(self, drawn: Sequence[Drawn]) -> float:
        """Returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        by_task: dict[str, list[Drawn]] = {}
        for one in drawn:
            by_task.setdefault(one.task, []).append(one)
        total = 0.0
        for task, group in by_task.items():
            family, weights = group[0].family, torch.tensor([one.weight for one in group], device=self.setup.device)
            rows = [features(one.example, family, self.mix.tokenizer.token_types) for one in group]
            batch = self.collators["choice" if family.kind == "choice" else ""](rows)
            batch = {name: value.to(self.setup.device) for name, value in batch.items()}
            with self.setup.autocast:
                loss = (self.losses(self.models[family.head_key(task)], family, batch) * weights).sum()
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        return float(total)

    def losses(self, model: Any, family: Family, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Scaled loss per example [e], with R3F the divergence from a second, noised forward pass added (both are followed back
        by the gradient)."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        output = answers(model(**inputs), batch["attention_mask"])
        losses, outcomes = plain_losses(output, family.kind, batch)
        if self.r3f:
            words = model.get_input_embeddings()(inputs.pop("input_ids"))
            noised = answers(
                model(inputs_embeds=words + torch.empty_like(words).uniform_(-R3F.noise, R3F.noise), **inputs),
                batch["attention_mask"],
            )
            if family.kind == "regression":
                output, noised = output.squeeze(-1), noised.squeeze(-1)
            losses = losses + R3F.r3f * family.divergence(output, noised, None)  # these families read no segment
        return losses / torch.as_tensor(outcomes, device=losses.device, dtype=losses.dtype).log()


class MuppetWithR3F(Muppet):
    label, passes, r3f = "MUPPET step with R3F, two padded forward passes per task", 2, True


def answers(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """Logits [e, n], or of spans [e, l, 2] with -inf on padding."""
    if "start_logits" not in output:
        return output.logits.float()
    logits = torch.stack([output.start_logits, output.end_logits], dim=-1).float()
    return logits.masked_fill(mask[..., None] == 0, -torch.inf)


def plain_losses(output: torch.Tensor, kind: str, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Loss per example [e], and among how many answers a uniform guess chooses (MUPPET 3.3)."""
    if kind == "span":
        starts, ends = output.unbind(-1)
        losses = functional.cross_entropy(starts, batch["start_positions"], reduction="none")
        losses = (losses + functional.cross_entropy(ends, batch["end_positions"], reduction="none")) / 2
        return losses, batch["attention_mask"].sum(-1)
    if kind == "regression":
        return 12 * (output.squeeze(-1) - batch["labels"]) ** 2, np.e
    if kind == "multi-label":
        losses = functional.binary_cross_entropy_with_logits(output, batch["labels"], reduction="none").mean(-1)
        return losses, 2.0
    return functional.cross_entropy(output, batch["labels"], reduction="none"), float(output.shape[-1])


# ---- other libraries


def import_tasknet() -> Any:
    """tasknet, which asks the hub for a metric's code when it is imported.

    Raises:
        Unfit: it is not installed.
    """
    try:
        import evaluate

        with mock.patch.object(evaluate, "load"):
            import tasknet
    except ImportError as error:
        raise Unfit(f"not installed ({error})") from None
    return tasknet


class Tasknet(Variant):
    """tasknet's multi-task Trainer: batches of one task, tasks in turn as chance has it; tokenized beforehand and padded to the
    limit on disk, as it does, and cut to the longest of a batch before the forward pass. A step on choices takes fewer
    examples: it divides the batch by the number of options."""

    label = "tasknet"

    def prepare(self) -> None:
        tasknet = import_tasknet()
        unknown = {task.family.kind for task in self.mix.tasks} - {
            "classification",
            "choice",
            "span",
            "regression",
            "multi-label",
        }
        if unknown:
            raise Unfit(f"has no {', '.join(sorted(unknown))}")
        self.tasknet, self.hparams = tasknet, self._hparams()
        self.tasks = [self._task(task.name, task.family, task.store) for task in self.mix.tasks]
        self.model = tasknet.Model(self.tasks, self.hparams)
        self.optimizer = plain_adamw(self.model, OptimizerSettings())
        self.meter.watch(self.model, self.optimizer, self.mix.tokenizer.vocab_size)

    def _hparams(self) -> dict[str, Any]:
        return {
            "model_name": self.setup.folder, "per_device_train_batch_size": self.mix.batch, "num_train_epochs": 1,
            "eval_strategy": "no", "logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
            "output_dir": tempfile.gettempdir(), "use_cpu": self.setup.device == "cpu", "bf16": self.setup.device == "cuda",
        }  # fmt: skip

    def _task(self, name: str, family: Family, store: Any) -> Any:
        """A task as tasknet has it once it is tokenized."""
        made = {"choice": self.tasknet.MultipleChoice, "span": self.tasknet.QuestionAnswering}
        kind = made.get(family.kind, self.tasknet.Classification)
        rows = self._rows([store[0]], family, 0)
        size = len(family.labels) if getattr(family, "labels", None) else 1 if family.kind == "regression" else 2
        more = {"choices": [f"choice{at}" for at in range(len(store[0].sequences))]} if family.kind == "choice" else {}
        task = kind(datasets.DatasetDict(train=rows), name=name, num_labels=size, y="labels", **more)
        task.set_tokenizer(self.mix.tokenizer.tokenizer)
        return task

    def _rows(self, examples: Sequence[Encoded], family: Family, task: int) -> datasets.Dataset:
        longest = SPAN_LENGTH if family.kind == "span" else LENGTH
        rows = []
        for one in examples:
            row = features(one, family, False)
            if family.kind == "span":
                row["labels"] = [row.pop("start_positions"), row.pop("end_positions")]
            padded = self.mix.tokenizer.tokenizer.pad(
                {name: row[name] for name in ("input_ids", "attention_mask")}, padding="max_length", max_length=longest
            )
            rows.append({**padded, "labels": row["labels"], "task": [task]})
        return datasets.Dataset.from_list(rows)

    def step(self, examples: Round, clock: Clock) -> None:
        empty = datasets.Dataset.from_list([])
        for task in self.tasks:
            task.processed_features = dict.fromkeys(("train", "validation", "test"), empty)
        for group in examples.groups:
            rows = self._rows(self.mix.examples(group), self.mix.family(group), group.task)
            rows.set_format("torch", columns=["input_ids", "attention_mask", "labels", "task"])
            self.tasks[group.task].processed_features = {"train": rows, "validation": empty, "test": empty}
        trainer = self.tasknet.Trainer(
            self.model, self.tasks, self.hparams, self.mix.tokenizer.tokenizer, callbacks=[ClockedLoop(clock)],
            optimizers=(self.optimizer, None),
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


class CrossEncoders(Variant):
    """sentence-transformers' CrossEncoderTrainer with a dataset per task, batches in proportion to the datasets. It has one head
    for all of them, here as wide as the widest task needs; it tokenizes as it goes, so it is given texts."""

    label = "sentence-transformers, CrossEncoderTrainer"

    def prepare(self) -> None:
        try:
            from sentence_transformers import CrossEncoder
            from sentence_transformers.cross_encoder.losses import CrossEntropyLoss
        except ImportError as error:
            raise Unfit(f"not installed ({error})") from None
        unknown = {task.family.kind for task in self.mix.tasks} - {"classification"}
        if unknown:
            raise Unfit(f"its CrossEncoder has one head for all datasets, and none for {', '.join(sorted(unknown))}")
        labels = max(3, *(len(task.family.labels) for task in self.mix.tasks))
        self.model = CrossEncoder(self.setup.folder, num_labels=labels, max_length=LENGTH, device=self.setup.device)
        self.loss = CrossEntropyLoss(self.model)
        self.optimizer = plain_adamw(self.model, OptimizerSettings())
        self.meter.watch(self.model, self.optimizer, self.mix.tokenizer.vocab_size)

    def step(self, examples: Round, clock: Clock) -> None:
        from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments

        tables = {self.mix.tasks[group.task].name: self.table(self.mix.examples(group)) for group in examples.groups}
        trainer = CrossEncoderTrainer(
            model=self.model, train_dataset=tables, loss=dict.fromkeys(tables, self.loss), callbacks=[ClockedLoop(clock)],
            args=training_arguments(self.setup, len(examples.groups[0].examples), CrossEncoderTrainingArguments),
            optimizers=(self.optimizer, None),
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()

    def table(self, examples: Sequence[Encoded]) -> datasets.Dataset:
        """Texts that come to these tokens again, or nearly. Its loss takes pairs: a text alone has an empty one beside it."""
        tokenizer, rows = self.mix.tokenizer.tokenizer, []
        for one in examples:
            (ids,), (first,) = one.sequences, one.first
            parts = [ids[:first], ids[first:]] if first < len(ids) else [ids]
            texts = [tokenizer.decode(part, skip_special_tokens=True) for part in parts]
            text, pair = (*texts, "")[:2]
            rows.append({"text": text, "pair": pair, "label": int(one.target[0])})
        return datasets.Dataset.from_list(rows)


# ---- the registry

ENCODER_VARIANTS: dict[str, type[Variant]] = {
    "longest": TrainerLoop,
    "script": TrainerAsScripts,
    "tuned": TunedTrainer,
    "muppet": Muppet,
    "muppet-r3f": MuppetWithR3F,
    "tasknet": Tasknet,
    "sentence-transformers": CrossEncoders,
    "ours": Ours,
    "ours-attention-0": OursWithoutAttentionDropout,
    "ours-plain": OursInPlainTorch,
    "ours-r3f": OursWithR3F,
}
DECODER_VARIANTS: dict[str, type[Variant]] = {"longest": Seq2SeqTrainerLoop, "ours": Ours, "ours-plain": OursInPlainTorch}
REFERENCE = "longest"


def variants_of(mix: Mix) -> dict[str, type[Variant]]:
    return DECODER_VARIANTS if mix.decodes else ENCODER_VARIANTS


@contextmanager
def quiet_peers() -> Iterator[None]:
    """Without what the peers say about themselves each time one is made."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peak_memory(device: str) -> float:
    """MB that this process held at most (on a GPU: that were allocated there)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # a child's ru_maxrss may be its parent's
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
