"""A BART-shaped model from nothing: denoising, then pre-finetuning with all families at once, then two summarization tasks.

    python benchmarks/bart_from_scratch.py --data-root DIR --out runs/bart

Four arms: the denoised model and the pre-finetuned one, each fine-tuned without and with R3F. "R3F alone" is the control that the
paper's BART results need: it had R3F in both stages. DIR is a mirror, DIR/SLUG/SPLIT.parquet. Finished stages are not run again.
What it gave, with its budget, is in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefinetune import Denoising, Files, Generation, Rows, Suite, Task, catalog, compare, train
from prefinetune.demo.run import byte_pairs
from prefinetune.display import Display
from prefinetune.evidence import best_rates, read_plan
from prefinetune.families.base import read_text
from prefinetune.files import read_records
from prefinetune.splits import open_task
from prefinetune.tables import show_comparison

VOCABULARY, LAYERS, WIDTH, HEADS = 8000, 4, 256, 4
TEXTS_PER_TASK = 2500
TARGETS = {  # task -> how it is decoded, in all arms
    "dialogsum": {"num_beams": 4, "no_repeat_ngram_size": 3, "max_new_tokens": 64},
    "aeslc": {"num_beams": 4, "no_repeat_ngram_size": 3, "max_new_tokens": 20},
}
ENCODER_TASKS = (
    "snli", "sick", "taxinli", "conj_nli", "recast/megaveridicality", "recast/verbnet", "glue/mrpc", "glue/stsb", "glue/cola",
    "medical_questions_pairs", "glue/sst2", "rotten_tomatoes", "SetFit/sst5", "ag_news", "SetFit/20_newsgroups", "clinc_oos/plus",
    "hwu64", "tweet_eval/emotion", "tweet_eval/irony", "social_i_qa/resplit", "piqa/resplit", "ai2_arc/ARC-Easy",
    "openbookqa/main", "squad/resplit", "tweet_qa/extractive",
)  # fmt: skip
# Denoising, twice: with permuted sentences, then without and on shorter pieces, where a model learns to copy sooner.
PERMUTED: Mapping[str, Any] = {
    "data": {"max_length": 160},
    "mixture": {"sub_batches": 64, "sub_batch_size": 1},
    "optimizer": {"learning_rate": 1e-3, "warmup": 0.1},
    "train": {"token_budget": 8192, "evaluation_rows": 300, "checkpoint_every": 100},
}
PRETRAINING: Mapping[str, Any] = {**PERMUTED, "data": {"max_length": 96}}
PREFINETUNING: Mapping[str, Any] = {
    "data": {"max_length": 160, "max_target_length": 64},
    "mixture": {"sub_batches": 64, "sub_batch_size": 1, "cap": 4000},
    "objective": {"r3f": 1.0, "r3f_share": 0.25},
    "optimizer": {"learning_rate": 5e-4, "head_learning_rate": 1e-3, "warmup": 0.06},
    "train": {"token_budget": 8192, "evaluation_rows": 40, "checkpoint_every": 100},
}
FINETUNING: Mapping[str, Any] = {
    "data": {"max_length": 160, "max_target_length": 64},
    "mixture": {"sub_batches": 16, "sub_batch_size": 1},
    "train": {"token_budget": 8192, "evaluation_rows": 100},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/bart"))
    parser.add_argument("--permuted-updates", type=int, default=450)
    parser.add_argument("--pretraining-updates", type=int, default=600)
    parser.add_argument("--prefinetuning-updates", type=int, default=400)
    parser.add_argument("--finetuning-updates", type=int, default=60)
    parser.add_argument("--labels", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    out, display = arguments.out, Display()
    out.mkdir(parents=True, exist_ok=True)

    def length(config: Mapping[str, Any], updates: int) -> dict[str, Any]:
        return {**config, "model": {"attention_dropout": 0.0}, "train": {**config["train"], "updates": updates}}

    if not (out / "pretrained" / "model").exists():
        texts = raw_texts(catalog(), arguments.data_root)
        display.say(f"{len(texts):,} texts")
        if not (out / "base" / "config.json").exists():
            new_model(out / "base", texts)
        cut = len(texts) // 100
        rows = {"train": [{"text": text} for text in texts[cut:]], "validation": [{"text": text} for text in texts[:cut]]}
        texts_as = partial(Task, "texts", Rows(rows))
        train(
            Suite("texts", (texts_as(Denoising("text", permute_sentences=True)),)), out / "base", out / "permuted",
            config=length(PERMUTED, arguments.permuted_updates), cache=out / "cache", resume=True, display=display,
        )  # fmt: skip
        train(
            Suite("texts", (texts_as(Denoising("text")),)), out / "permuted", out / "pretrained",
            config=length(PRETRAINING, arguments.pretraining_updates), cache=out / "cache", resume=True, display=display,
        )  # fmt: skip
    there = (task for task in catalog().select("generation") if not task.evaluation_only)
    generation = [task for task in there if (arguments.data_root / task.slug).is_dir()]
    tasks = (*map(brief, generation), *(catalog()[name] for name in ENCODER_TASKS))
    if not (out / "pre-finetuned" / "model").exists():
        train(
            Suite("all families", tasks), out / "pretrained", out / "pre-finetuned",
            config=length(PREFINETUNING, arguments.prefinetuning_updates), data_root=arguments.data_root, cache=out / "cache",
            resume=True, display=display,
        )  # fmt: skip
    targets = [target(name, arguments.data_root, out) for name in TARGETS]
    finetuning = length(FINETUNING, arguments.finetuning_updates)
    same: dict[str, Any] = {
        "base": out / "pretrained", "labels": [arguments.labels], "seeds": arguments.seeds, "tuning_seeds": 1,
        "cache": out / "cache", "processes": arguments.processes, "display": display,
    }  # fmt: skip
    plain = out / "comparison-plain"
    show_comparison(compare(targets, out / "pre-finetuned", plain, grid=(3e-4, 1e-3), config=finetuning, **same), display)
    rates = best_rates(read_plan(plain), read_records(plain / "results.jsonl"))
    for task in targets:  # at the rate that was chosen without R3F
        with_r3f = {**finetuning, "objective": {"r3f": 1.0}}
        grid = (rates[task.name, arguments.labels],)
        display.say(f"{task.name} with R3F in fine-tuning")
        found = compare([task], out / "pre-finetuned", out / f"comparison-r3f-{task.slug}", grid=grid, config=with_r3f, **same)
        show_comparison(found, display)


def brief(task: Task) -> Task:
    """The task decoded greedily and shortly where it is only looked at on the way."""
    assert isinstance(task.family, Generation)
    return replace(task, family=replace(task.family, decoding={"num_beams": 1, "max_new_tokens": 32}))


def target(name: str, data_root: Path, out: Path) -> Task:
    """A task scored on those of its official validation rows whose source is in no training row; rates are chosen on training
    rows held out for that."""
    task = catalog()[name]
    family = task.family
    assert isinstance(family, Generation)
    opened = open_task(task, data_root)
    seen = {words(read_text(row, family.text)) for _, rows in opened.split("train").chunks(1000) for row in rows}
    kept = [
        row
        for _, rows in opened.split("validation").chunks(1000)
        for row in rows
        if words(read_text(row, family.text)) not in seen
    ]
    print(f"{name}: {len(kept)} of {len(opened.split('validation'))} validation rows have a source that is in no training row")
    scored = out / f"{task.slug}-validation.jsonl"
    scored.write_text("".join(json.dumps(row) + "\n" for row in kept))
    source = Files({"train": str(data_root / task.slug / "train.parquet"), "test": str(scored)})
    return replace(task, source=source, family=replace(family, decoding=TARGETS[name]))


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def raw_texts(tasks: Iterable[Task], data_root: Path) -> list[str]:
    """Distinct texts of the training rows of tasks, in random order."""
    found: dict[str, None] = {}
    for task in tasks:
        opened = open_task(task, data_root, max_rows=TEXTS_PER_TASK)
        if "train" not in opened.roles or task.evaluation_only:
            continue
        for _, rows in opened.split("train").chunks(1000):
            for row in rows:
                if opened.family.skips(row):
                    continue
                example = opened.family.example(row)
                texts = [text for pair in example.texts for text in pair if text]
                texts += [example.target] if isinstance(example.target, str) else []
                found.update(dict.fromkeys(text for text in texts if len(text) >= 40))
    texts = list(found)
    random.Random(0).shuffle(texts)
    return texts


def new_model(folder: Path, texts: Sequence[str]) -> None:
    """A small BART with random weights, and a byte-pair tokenizer trained on the texts."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = byte_pairs(texts, VOCABULARY, 512)
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=4 * WIDTH, decoder_ffn_dim=4 * WIDTH, max_position_embeddings=512,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2, init_std=0.03,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
