"""Which part of the method matters on the demo's tasks: order of batches, log scaling, R3F, raw text beside the labelled tasks;
one at a time, six checkpoints each.

    python benchmarks/demo_parts.py --plan                           # write benchmarks/results/{parts,raw}-protocol.json
    python benchmarks/demo_parts.py --out runs/parts                 # what is finished stays
    python benchmarks/demo_parts.py --out runs/parts --study raw
    python benchmarks/study_page.py parts                            # and `raw`: their sections of docs/results.md

The demo's world is small enough that a pre-finetuning takes 30 to 70 seconds of a core (EPYC), so that checkpoints can be many.
Its tasks are mined from the documentation of installed packages: another installation gives other rows, and the protocol names
how many.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefinetune import Denoising, Suite, Task
from prefinetune.demo.mine import Mined, mine
from prefinetune.demo.run import (
    FINETUNING,
    LAYERS,
    LENGTH,
    PREFINETUNING,
    PRETRAINING,
    VOCABULARY,
    WHOLE,
    WIDTH,
    Training,
    new_model,
    raw_text,
)
from prefinetune.display import Display
from prefinetune.files import write
from prefinetune.study import study
from study_page import keep, protocol_of
from throughput import machine

UPDATES, MEMBERS, SEEDS, LABELS = 600, 6, 3, (128,)
PARTS: Mapping[str, Any] = {
    "factors": ("order", "scaling", "r3f"),
    "claims": [
        "many tasks in every update do at least as well as one task per update",
        "many tasks in every update do at least as well as one task after another",
        "losses divided by the logarithm of their outcomes do at least as well as losses as they are",
    ],
}
RAW: Mapping[str, Any] = {
    "factors": ("denoising",),
    "controls": ("further",),
    "claims": ["labelled tasks alone gain over the base and over as much further training, without raw text among them"],
}


def make_protocol(study: str, mined: Mined) -> dict[str, Any]:
    """All that is decided before the first run."""
    return {
        "model": f"ModernBERT's shape, {LAYERS} layers x {WIDTH}, {VOCABULARY:,} byte pairs, {LENGTH} tokens, random weights",
        "rule": "those of `prefinetune demo`, whose tasks and rates were chosen on validation rows of these targets (base run)",
        "sources": {task.name: len(task.source.read("train")) for task in tasks_of(study, mined)},
        "targets": [task.name for task in mined.targets],
        "kinds": {task.name: task.family.kind for task in mined.targets},
        "texts": len(mined.texts),
        "pretraining": of_length(PRETRAINING, WHOLE.pretraining),
        "prefinetuning": of_length(PREFINETUNING, UPDATES),
        "finetuning": FINETUNING, "labels": LABELS, "seeds": SEEDS, "members": MEMBERS,
        "learning rates, chosen on the base": WHOLE.grid, **(PARTS if study == "parts" else RAW),
    }  # fmt: skip


def tasks_of(study: str, mined: Mined) -> tuple[Task, ...]:
    """Those that are learned from: all of the demo's, or all but its raw text."""
    return tuple(task for task in mined.tasks if study == "parts" or not isinstance(task.family, Denoising))


def of_length(settings: Mapping[str, Any], updates: int) -> dict[str, Any]:
    return {**settings, "train": {**settings["train"], "updates": updates}}


def pretrain(protocol: Mapping[str, Any], mined: Mined, out: Path, display: Display) -> Path:
    """The demo's base model."""
    if not (out / "new" / "config.json").exists():
        new_model(out / "new", mined.texts, seed=0)
    Training("base", Suite("documentation", (raw_text(mined),)), protocol["pretraining"], mined.targets).run(
        out, out / "new", display
    )
    return out / "base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/parts"))
    parser.add_argument("--plan", action="store_true", help="only write the protocols")
    parser.add_argument("--study", choices=("parts", "raw"), default="parts")
    parser.add_argument("--budget", help="the most that the study may take: 2h, 90m, or a number of examples")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    mined, path, display = mine(), protocol_of(given.study), Display()
    if given.plan:
        for name in ("parts", "raw"):
            write(protocol_of(name), json.dumps(make_protocol(name, mined), indent=1) + "\n")
        return
    protocol = json.loads(json.dumps(make_protocol(given.study, mined)))  # as it reads back
    if protocol != json.loads(path.read_text()):
        raise SystemExit(f"{path} is of another protocol or installation; write it anew with --plan, and commit it, before a run")
    base = pretrain(protocol, mined, given.out, display)
    results = study(
        "ablations", Suite("the demo's tasks", tasks_of(given.study, mined)), base, given.out / given.study, mined.targets,
        labels=LABELS, seeds=SEEDS, members=MEMBERS, factors=protocol["factors"], controls=protocol.get("controls", ()),
        config=protocol["prefinetuning"], finetuning=protocol["finetuning"], grid=WHOLE.grid, budget=given.budget,
        cache=given.out / "cache", processes=given.processes, display=display,
    )  # fmt: skip
    for sentence in results.sentences():
        display.say(sentence)
    keep(given.out / given.study, machine("cpu"))


if __name__ == "__main__":
    main()
