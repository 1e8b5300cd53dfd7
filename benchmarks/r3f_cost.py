"""What R3F costs, and what a BART-like step needs, in one process run: same updates, cut and optimizer in every variant.

    python benchmarks/r3f_cost.py --out r3f-cost.json

Random weights and token ids, so that it runs anywhere; lengths are log-normal (sources about 90 tokens on average, targets 30).
Times are processor seconds of one thread, medians over interleaved rounds, so that a busy machine matters little. Peak memory
is the largest resident set of a process that runs one variant and nothing else. What it gave is in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator

from prefinetune.batch import Batch, Drawn, Layout, make_batch, micro_batches
from prefinetune.config import ObjectiveSettings, OptimizerSettings
from prefinetune.encoder_decoder import EncoderDecoder
from prefinetune.families import Classification, Encoded, Generation, Span
from prefinetune.loop import make_optimizer
from prefinetune.model import Backbone, MultiTask
from prefinetune.objective import draw_noised
from prefinetune.update import update

EXAMPLES, BUDGET, PAD, END = 64, 4096, 1, 2
VARIANTS = {
    "plain": ObjectiveSettings(),
    "R3F": ObjectiveSettings(r3f=1.0),
    "R3F on a quarter": ObjectiveSettings(r3f=1.0, r3f_share=0.25),
}
ENCODER_FAMILIES = {"topic": Classification("text", labels=("a", "b", "c")), "reading": Span("question", "context")}
ALL_FAMILIES = {**ENCODER_FAMILIES, "summary": Generation("text", "summary")}


def encoder() -> MultiTask:
    """The shape of MiniLM-L6."""
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        attention_probs_dropout_prob=0.0, pad_token_id=PAD,
    )  # fmt: skip
    return MultiTask(Backbone(transformers.AutoModel.from_config(config)), ENCODER_FAMILIES)


def encoder_decoder(families: dict[str, Any]) -> MultiTask:
    """4 + 4 layers of BART, 384 wide."""
    config = transformers.BartConfig(
        vocab_size=30522, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6, decoder_attention_heads=6,
        encoder_ffn_dim=1536, decoder_ffn_dim=1536, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=END,
    )  # fmt: skip
    return MultiTask(EncoderDecoder(transformers.AutoModel.from_config(config)), families)


def draw_examples(families: dict[str, Any], seed: int) -> list[Drawn]:
    """An update's examples, tasks in turn."""
    generator, names = np.random.default_rng(seed), list(families)

    def tokens(mean: float, most: int) -> np.ndarray:
        length = int(np.clip(generator.lognormal(np.log(mean), 0.6), 8, most))
        return np.concatenate([generator.integers(5, 30000, length - 1), [END]])

    drawn = []
    for source in range(EXAMPLES):
        task, ids = names[source % len(names)], tokens(75, 384)
        target = {"topic": [source % 3], "reading": [1, 4], "summary": []}[task]
        output = tokens(27, 128) if task == "summary" else None
        example = Encoded([ids], [len(ids)], np.array(target, dtype=np.int64), source, output=output)
        drawn.append(Drawn(example, task, families[task], 1 / EXAMPLES))
    return drawn


def batches_of(drawn: list[Drawn], objective: ObjectiveSettings, layout: Layout, seed: int) -> list[Batch]:
    """Micro-batches cut as they are without R3F."""
    noised = draw_noised(len(drawn), objective, np.random.default_rng(seed))
    marked = {id(one.example): one._replace(noised=bool(flag)) for one, flag in zip(drawn, noised, strict=True)}
    cut = [[one for segment in batch.segments for one in segment.examples] for batch in micro_batches(drawn, BUDGET, layout)]
    return [make_batch([marked[id(one)] for one in examples], layout) for examples in cut]


def step_of(model: MultiTask, families: dict[str, Any], objective: ObjectiveSettings) -> Callable[[int], None]:
    optimizer, accelerator = make_optimizer(model, OptimizerSettings()), Accelerator(cpu=True)
    layout = model.layout(SimpleNamespace(pad_id=PAD, token_types=False))

    def step(number: int) -> None:
        batches = batches_of(draw_examples(families, number), objective, layout, number)
        update(model, optimizer, batches, 1.0, accelerator, objective)

    return step


def plain_transformers(number: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """The same generation through Transformers' own class in rectangles of least padding, padded labels and all."""
    model.train()
    optimizer.zero_grad(set_to_none=True)
    drawn = draw_examples({"summary": ALL_FAMILIES["summary"]}, number)
    for batch in batches_of(drawn, VARIANTS["plain"], Layout(PAD, decodes=True), number):
        assert batch.outputs is not None
        assert batch.output_bounds is not None
        ids, mask, _ = batch.rectangle()
        labels = batch.output_bounds.spread(batch.outputs, -100)
        logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
        (loss * len(ids) / EXAMPLES).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def memory_of(variant: str) -> float:
    """Peak resident set in MB (Linux) after three updates of one variant; called in a process of its own."""
    torch.manual_seed(0)
    model = encoder_decoder({"summary": ALL_FAMILIES["summary"]})
    if variant == "Transformers":
        whole = transformers.BartForConditionalGeneration(model.backbone.config)
        optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-5, fused=True)
        del model
        for number in range(3):
            plain_transformers(number, whole, optimizer)
    else:
        step = step_of(model, {"summary": ALL_FAMILIES["summary"]}, VARIANTS["plain"])
        for number in range(3):
            step(number)
    status = Path("/proc/self/status").read_text()  # a child's ru_maxrss may be its parent's
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(memory_of(arguments.memory_of))
        return
    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__, "rounds": arguments.rounds}
    shapes = {
        "encoder 6 x 384": (encoder, ENCODER_FAMILIES),
        "BART 4 + 4 x 384": (lambda: encoder_decoder(ALL_FAMILIES), ALL_FAMILIES),
    }
    for shape, (build, families) in shapes.items():
        steps = {}
        for name, objective in VARIANTS.items():
            torch.manual_seed(0)
            steps[name] = step_of(build(), families, objective)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(arguments.rounds + 1):
            for name, step in steps.items():
                started = time.process_time()
                step(number)
                if number:  # the first warms up
                    seconds[name].append(time.process_time() - started)
        middle = {name: median(times) for name, times in seconds.items()}
        found[shape] = {"seconds": middle, "ratio": {name: middle[name] / middle["plain"] for name in middle}}
        print(shape, {name: f"{middle[name]:.2f} s, {middle[name] / middle['plain']:.2f}" for name in middle})
    found["peak MB"] = {}
    for variant in ("ours", "Transformers"):
        done = subprocess.run([sys.executable, __file__, "--memory-of", variant], capture_output=True, text=True, check=True)
        found["peak MB"][variant] = float(done.stdout.split()[-1])
    print("peak MB", found["peak MB"])
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
