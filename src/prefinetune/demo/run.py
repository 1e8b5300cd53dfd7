"""The demo, stage by stage: mine, pre-train, pre-finetune beside its controls, compare on tasks that were kept out, and draw it.

Every stage is a call of the public functions; nothing here is known to the rest of the library.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefinetune.compare import compare
from prefinetune.demo.mine import Mined, mine
from prefinetune.display import Display, clock
from prefinetune.families import Denoising
from prefinetune.files import write
from prefinetune.report import write_report
from prefinetune.sources import Rows
from prefinetune.tables import show_comparison
from prefinetune.task import Suite, Task
from prefinetune.train import train
from prefinetune.workers import Job, side_by_side

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY, LAYERS, WIDTH, HEADS, LENGTH = 8000, 2, 128, 2, 128
FEW = 4  # tasks of the control that pre-finetunes on few

PRETRAINING: Mapping[str, Any] = {
    "optimizer": {"learning_rate": 2e-3, "warmup": 0.1},
    "mixture": {"sub_batches": 64, "sub_batch_size": 1},
    "train": {"checkpoint_every": None, "evaluation_rows": 300, "token_budget": 8192},
}
# Of pre-finetuning and of both controls.
LONGER: Mapping[str, Any] = {"checkpoint_every": None, "evaluation_rows": 100, "token_budget": 8192}
# Natural sampling would spend most of these few updates on the largest tasks. Tasks and rates were chosen on validation rows of
# the targets, the number of updates fitted to six minutes.
PREFINETUNING: Mapping[str, Any] = {
    "data": {"max_length": 64},
    "optimizer": {"learning_rate": 1e-3, "head_learning_rate": 2e-3},
    "mixture": {"sub_batches": 16, "sub_batch_size": 4, "sampling": "temperature", "temperature": 2},
    "train": LONGER,
}
FURTHER: Mapping[str, Any] = {
    "data": {"max_length": 64},
    "optimizer": {"learning_rate": 1e-3},
    "mixture": {"sub_batches": 64, "sub_batch_size": 1},
    "train": LONGER,
}
FINETUNING: Mapping[str, Any] = {
    "data": {"max_length": 64},
    "mixture": {"sub_batches": 6, "sub_batch_size": 4},
    "train": {"updates": 20, "evaluation_rows": 200},
}


@dataclass(frozen=True)
class Size:
    """How much of everything a demo does: what makes it take minutes, or one.

    Attributes:
        pretraining, longer: updates of pre-training; of pre-finetuning and of both controls.
        labels, seeds, grid: of the comparison.
        texts: most of pre-training.
        one_in: so many tasks to learn from, and that are kept out, one is taken.
        told: what is said of the numbers.
    """

    pretraining: int = 250
    longer: int = 850
    labels: tuple[int, ...] = (32, 128)
    seeds: int = 3
    grid: tuple[float, ...] = (1e-3, 3e-3)
    texts: int | None = None
    one_in: int = 1
    told: str = ""

    def cut(self, mined: Mined) -> Mined:
        """As much of what was mined."""
        return Mined(mined.texts[: self.texts], mined.tasks[:: self.one_in], mined.targets[:: self.one_in])


WHOLE = Size()
QUICK = Size(
    pretraining=20, longer=20, labels=(32,), seeds=2, grid=(3e-3,), texts=4000, one_in=4,
    told="This was the quick demo: it shows that all stages work. Its numbers say nothing; those of `prefinetune demo` do.",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One arm of the comparison: what it is trained on, and how."""

    name: str
    suite: Suite
    config: Mapping[str, Any]
    against: tuple[Task, ...]  # whose evaluation rows are kept out

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "-")

    def run(self, out: Path, start: Path, display: Display | None = None) -> None:
        train(
            self.suite, start, out / self.slug, config=self.config, cache=out / "cache", resume=True, against=self.against,
            display=display,
        )  # fmt: skip


def run_demo(out: Path, seed: int, display: Display, size: Size = WHOLE) -> dict[str, Any]:
    """Run all stages in `out`, and print the tables. A folder that holds a demo of that size is gone on with.

    Returns:
        The sentences that the numbers justify, and the seconds of each stage.
    """
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    started = mark = time.monotonic()

    def stage(number: int, text: str, ended: str = "") -> None:
        nonlocal mark
        if ended:
            seconds[ended] = round(time.monotonic() - mark, 1)
        mark = time.monotonic()
        display.say(f"[{clock(mark - started)}] {number}/5 {text}")

    stage(1, "mining labelled tasks from the documentation of installed packages")
    mined = size.cut(mine(seed))
    display.say(summary(mined))
    if not (out / "base" / "config.json").exists():
        new_model(out / "base", mined.texts, seed)

    texts = Suite("documentation", (raw_text(mined),))
    stage(2, f"pre-training {LAYERS} layers x {WIDTH} on {len(mined.texts):,} texts (masked words)", "mining")

    def settings(of: Mapping[str, Any], updates: int) -> dict[str, Any]:
        return {**of, "train": {**of["train"], "updates": updates}, "seed": seed}

    pretraining = Training("pre-trained", texts, settings(PRETRAINING, size.pretraining), mined.targets)
    pretraining.run(out, out / "base", display)

    few = random.Random(f"{seed} few").sample([task for task in mined.tasks if not isinstance(task.family, Denoising)], FEW)
    prefinetuning, further = settings(PREFINETUNING, size.longer), settings(FURTHER, size.longer)
    trainings = [
        Training("pre-finetuned", Suite("documentation tasks", mined.tasks), prefinetuning, mined.targets),
        Training("further training", texts, further, mined.targets),
        Training(f"{FEW} tasks", Suite("few documentation tasks", tuple(few)), prefinetuning, mined.targets),
    ]
    names = ", ".join(task.name for task in few)
    stage(
        3,
        f"{size.longer:,} updates each from there, side by side: on all tasks, on texts, on {FEW} tasks ({names})",
        "pre-training",
    )
    jobs = [Job(one.name, out / one.slug, partial(one.run, out, out / "pre-trained")) for one in trainings]
    for problem in side_by_side(jobs, len(jobs), display).values():
        raise problem

    stage(4, f"learning {len(mined.targets)} tasks that were kept out, from few labels", "pre-finetuning and controls")
    comparison = compare(
        mined.targets, out / "pre-finetuned", out / "comparison", base=out / "pre-trained",
        arms={training.name: out / training.slug for training in trainings[1:]}, labels=size.labels, seeds=size.seeds,
        grid=size.grid, tuning_seeds=1, config=FINETUNING, cache=out / "cache", processes=os.cpu_count() or 1, display=display,
    )  # fmt: skip

    stage(5, "drawing", "few labels")
    seconds["all"] = round(time.monotonic() - started, 1)
    result = {"sentences": comparison.sentences(), "seconds": seconds, "seed": seed, "note": size.told}
    write(out / "demo.json", json.dumps(result, indent=1))
    page = write_report([out], out / "report.html")
    display.say(f"the page is {page}")
    show_comparison(comparison, display)
    if size.told:
        display.say(size.told)
    return result


def raw_text(mined: Mined) -> Task:
    cut = max(1, len(mined.texts) // 100)
    rows = {"train": [{"text": text} for text in mined.texts[cut:]], "validation": [{"text": text} for text in mined.texts[:cut]]}
    return Task("docs/text", Rows(rows), Denoising("text"))


def new_model(folder: Path, texts: Sequence[str], seed: int) -> None:
    """A small encoder with random weights, and a byte-pair tokenizer trained on the texts.

    The shape is ModernBERT's, which reads a sentence off the mean of its tokens: from scratch and in so few updates a first token
    learns too little to be read: a RoBERTa of the same size, 1,000 updates at natural rates, stayed at the majority class in the
    sub-module tasks.
    """
    import torch
    from transformers import AutoModel, ModernBertConfig

    from prefinetune.model import quiet

    tokenizer = byte_pairs(texts, VOCABULARY, LENGTH)
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=WIDTH,
        max_position_embeddings=LENGTH,
        classifier_pooling="mean",
        classifier_dropout=0.1,
        initializer_range=0.06,  # Transformers' 0.02 is for wider layers, and narrow ones start slowly from it
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        cls_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    with quiet():
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_pairs(texts: Sequence[str], vocabulary: int, length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of lower-case byte pairs trained on texts, with RoBERTa's special tokens at RoBERTa's places."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token="<mask>", model_max_length=length,
    )  # fmt: skip


def summary(mined: Mined) -> str:
    kinds: dict[str, int] = {}
    for task in mined.tasks:
        kinds[task.family.kind] = kinds.get(task.family.kind, 0) + 1
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{len(mined.texts):,} texts; {len(mined.tasks)} tasks to learn from ({shown}); {len(mined.targets)} kept out"
