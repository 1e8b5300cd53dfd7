"""The demo, stage by stage: mine, pre-train, pre-finetune, and learn tasks that were kept out from few labels.

Every stage is a call of the public functions; nothing here is known to the rest of the library.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefinetune.demo.mine import Mined, mine
from prefinetune.display import Display, clock
from prefinetune.families import Denoising
from prefinetune.finetune import finetune
from prefinetune.results import RunFolder, write
from prefinetune.sources import Rows
from prefinetune.task import Suite, Task
from prefinetune.train import train

LABELS, SEEDS = 128, (0, 1, 2)
VOCABULARY, LAYERS, WIDTH, HEADS, LENGTH = 8000, 2, 128, 2, 128

PRETRAINING: Mapping[str, Any] = {
    "optimizer": {"learning_rate": 2e-3, "warmup": 0.1},
    "mixture": {"sub_batches": 64, "sub_batch_size": 1},
    "train": {"updates": 650, "checkpoint_every": None, "evaluation_rows": 300, "token_budget": 8192},
}
# Natural sampling would spend most of these few updates on the largest tasks, which pair texts and are learned last.
PREFINETUNING: Mapping[str, Any] = {
    "data": {"max_length": 64},
    "optimizer": {"learning_rate": 5e-4},
    "mixture": {"sub_batches": 32, "sub_batch_size": 2, "sampling": "temperature", "temperature": 3},
    "train": {"updates": 1200, "checkpoint_every": None, "evaluation_rows": 100, "token_budget": 8192},
}
FINETUNING: Mapping[str, Any] = {
    "data": {"max_length": 64},
    "optimizer": {"learning_rate": 5e-4},
    "mixture": {"sub_batches": 8, "sub_batch_size": 4},
    "train": {"updates": 80, "evaluate_every": 20, "evaluation_rows": 100, "patience": 2, "log_every": 50},
}
ARMS = {"pre-trained": "pretrained", "pre-finetuned": "prefinetuned"}


@dataclass(frozen=True)
class Line:
    """A target's scores in one arm, over seeds."""

    task: str
    family: str
    metric: str
    majority: float | None
    scores: dict[str, list[float]]  # arm -> one score per seed

    @property
    def gain(self) -> float:
        """Mean over seeds of the paired difference, pre-finetuned minus pre-trained."""
        before, after = (self.scores[arm] for arm in ARMS)
        return statistics.mean(b - a for a, b in zip(before, after, strict=True))


def run_demo(out: Path, seed: int, display: Display) -> dict[str, Any]:
    """Run all stages in `out`, and print the table. A folder that holds a demo is gone on with.

    Returns:
        The lines of the table and the seconds of each stage.
    """
    out.mkdir(parents=True, exist_ok=True)
    started, seconds = time.monotonic(), {}

    def stage(number: int, text: str) -> None:
        display.say(f"[{clock(time.monotonic() - started)}] {number}/5 {text}")

    stage(1, "mining labelled tasks from the documentation of installed packages")
    mined = mine(seed)
    seconds["mining"] = time.monotonic() - started
    display.say(summary(mined))
    base = out / "base"
    if not (base / "config.json").exists():
        new_model(base, mined.texts, seed)

    stage(2, f"pre-training {LAYERS} layers x {WIDTH} on {len(mined.texts):,} texts (masked language modelling)")
    mark = time.monotonic()
    texts = Suite("documentation", (raw_text(mined),))
    shared: Any = {"cache": out / "cache", "resume": True}
    train(texts, base, out / "pretrained", config={**PRETRAINING, "seed": seed}, display=display, **shared)
    seconds["pre-training"] = time.monotonic() - mark

    stage(3, f"pre-finetuning on {len(mined.tasks)} tasks at once")
    mark = time.monotonic()
    suite = Suite("documentation tasks", mined.tasks)
    train(suite, out / "pretrained", out / "prefinetuned", config={**PREFINETUNING, "seed": seed}, display=display, **shared)
    seconds["pre-finetuning"] = time.monotonic() - mark

    cells = len(mined.targets) * len(ARMS) * len(SEEDS)
    stage(4, f"learning {len(mined.targets)} tasks that were kept out from {LABELS} labels: {cells} runs")
    mark = time.monotonic()
    lines = compare(mined.targets, out, display)
    seconds["few labels"] = time.monotonic() - mark
    seconds["all"] = time.monotonic() - started
    stage(5, "done")
    show(lines, display)
    result = {"lines": [{**vars(line), "gain": line.gain} for line in lines], "seconds": seconds, "labels": LABELS, "seed": seed}
    write(out / "demo.json", json.dumps(result, indent=1))
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
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import AutoModel, ModernBertConfig, PreTrainedTokenizerFast

    from prefinetune.model import quiet

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    )
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token="<mask>", model_max_length=LENGTH,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=LENGTH,
        classifier_pooling="mean",
        classifier_dropout=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        cls_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    with quiet():
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Cell:
    """One fine-tuning: a kept-out task from one start with one seed."""

    task: Task
    arm: str
    seed: int
    out: Path

    def run(self) -> dict[str, Any]:
        """Its result record, read if it is there."""
        start = ARMS[self.arm]
        folder = self.out / "cells" / f"{self.task.slug}-{start}-{self.seed}"
        if known := RunFolder(folder).results():
            return known[-1]
        return finetune(
            self.task, self.out / start, folder, labels=LABELS, config={**FINETUNING, "seed": self.seed},
            cache=self.out / "cache", resume=True, save_weights=False, arm=self.arm,
        ).record  # fmt: skip


def compare(targets: Sequence[Task], out: Path, display: Display) -> list[Line]:
    """Every target from the pre-trained and from the pre-finetuned model: same examples, same updates, several seeds.

    A small model gains little from a second thread, so cells run side by side with one each.
    """
    cells = [Cell(task, arm, seed, out) for task in targets for arm in ARMS for seed in SEEDS]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, initializer=one_thread) as pool, display.counting("runs", len(cells)) as done:
        for cell, record in zip(cells, pool.map(Cell.run, cells), strict=True):
            found.setdefault((cell.task.name, cell.arm), []).append(record)
            done(1)
    lines = []
    for task in targets:
        scores = {arm: [record["score"] for record in found[task.name, arm]] for arm in ARMS}
        record = found[task.name, next(iter(ARMS))][0]
        majority = record["scores"].get("majority")
        lines.append(Line(task.name, record["family"], record["metric"], majority, scores))
    return lines


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def summary(mined: Mined) -> str:
    kinds: dict[str, int] = {}
    for task in mined.tasks:
        kinds[task.family.kind] = kinds.get(task.family.kind, 0) + 1
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{len(mined.texts):,} texts; {len(mined.tasks)} tasks to learn from ({shown}); {len(mined.targets)} kept out"


def show(lines: Sequence[Line], display: Display) -> None:
    """The table, losers first, and the sentence that its numbers justify."""
    from rich.table import Table

    table = Table(title=f"{LABELS} labels, {len(SEEDS)} seeds: mean ± standard deviation", title_justify="left", box=None)
    table.add_column("kept-out task")
    for name in ("metric", "majority", *ARMS, "gain"):
        table.add_column(name, justify="right")
    for line in sorted(lines, key=lambda line: line.gain):
        cells = [f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}" for scores in line.scores.values()]
        majority = "" if line.majority is None else f"{line.majority:.3f}"
        table.add_row(f"{line.task} ({line.family})", line.metric, majority, *cells, f"{line.gain:+.3f}")
    display.console.print(table)
    display.say(verdict(lines))


def verdict(lines: Sequence[Line]) -> str:
    """One sentence: the mean gain over targets with a 95 % interval (Student's t over targets), whichever way it goes."""
    from scipy import stats

    gains = [line.gain for line in lines]
    mean = statistics.mean(gains)
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    better = sum(gain > 0 for gain in gains)
    interval = (
        f"{mean:+.3f} on the mean over {len(gains)} kept-out tasks (95 % interval {mean - half:+.3f} to {mean + half:+.3f})"
    )
    if mean - half > 0:
        judged = "Pre-finetuning helped"
    elif mean + half < 0:
        judged = "Pre-finetuning hurt"
    else:
        judged = "No difference that this run could show"
    return f"{judged}: {interval}; {better} of {len(gains)} gained."
