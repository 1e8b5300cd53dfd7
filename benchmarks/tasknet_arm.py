"""tasknet's recipe as an arm: the base, sets, rows and number of examples of small_studies.py, learned by tasknet.

    pip install -c constraints.txt -r benchmarks/requirements.txt
    python benchmarks/tasknet_arm.py --protocol tasknet --model runs/small/base --data-root DIR --seed 0 --out runs/tasknet-0
    prefinetune study labels --arm ours=RUN --arm tasknet=runs/tasknet-0 --model runs/small/base --targets ... --labels 128 \\
        --out runs/tasknet
    python benchmarks/study_page.py tasknet --from runs/tasknet

Every update of tasknet is a batch of one set, sets come as often as they have batches, losses are plain means, sets with the same
names of labels share a head, and an embedding of the set is added to the first token, which its export leaves out. AdamW, a
linear schedule and clipping are those of Transformers' Trainer. Rate, warm-up, precision and limits of rows and tokens are ours,
as are rows and tokens themselves: what differs is the recipe. What is written is a plain model folder, with `tasknet.json` beside
the weights, which has the cost.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers

from prefinetune import Suite, Task, catalog
from prefinetune.config import Config, make_config
from prefinetune.display import Display
from prefinetune.families import Encoded, Family
from prefinetune.files import write
from prefinetune.leaks import leave_out
from prefinetune.prepare import prepare
from prefinetune.splits import OpenTask, open_tasks
from prefinetune.start import model_folder, model_tokenizer
from prefinetune.store import Store
from prefinetune.tokenizer import Tokenizer
from study_page import TITLES, protocol_of
from variants import features, import_tasknet, quiet_peers

KINDS = {"classification": "Classification", "multi-label": "Classification", "regression": "Classification",
         "choice": "MultipleChoice", "span": "QuestionAnswering"}  # fmt: skip


def learn(
    suite: Suite, model: str | Path, out: Path, config: Config, against: Sequence[Task] = (),
    data_root: Path | None = None, cache: Path | None = None, display: Display | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a model on a suite as tasknet does, on as many examples as `config` says, and write its trunk.

    Args:
        config: of our own run on the same: updates, size of an update, rate, warm-up, precision, seed, limits of rows and tokens.
        against: tasks whose evaluation rows must not be trained on.

    Returns:
        What it took, as in tasknet.json.
    """
    display = display or Display(quiet=True)
    tasknet, place = import_tasknet(), str(model_folder(model))
    tokenizer = model_tokenizer(place, suite.tasks, config.data)
    opened, stores = rows_to_learn(suite, against, tokenizer, config, data_root, cache, display)
    batch, updates = config.mixture.sub_batches * config.mixture.sub_batch_size, config.train.updates
    assert updates
    wanted = updates * batch
    made = [as_task(tasknet, at, *pair, tokenizer) for at, pair in enumerate(zip(opened, stores, strict=True))]
    tasks, rows = [task for task, _ in made], [len(mine) for _, mine in made]
    sizes = [max(1, batch // getattr(task, "num_choices", 1)) for task in tasks]  # it divides batches of choices by their options
    batches = sum(math.ceil(count / size) for count, size in zip(rows, sizes, strict=True))
    steps = math.ceil(wanted * batches / sum(rows))
    with tempfile.TemporaryDirectory() as folder:
        hparams = {
            "model_name": place, "output_dir": folder, "per_device_train_batch_size": batch, "max_steps": steps,
            "learning_rate": config.optimizer.learning_rate, "warmup_steps": round(config.optimizer.warmup * steps),
            "seed": config.seed, "bf16": config.train.precision == "bfloat16", "use_cpu": True, "eval_strategy": "no",
            "save_strategy": "no", "logging_strategy": "steps", "logging_steps": max(1, steps // 20), "report_to": "none",
            "disable_tqdm": True,
        }  # fmt: skip
        transformers.set_seed(config.seed)  # of new heads; the order of sets is its loader's, from NumPy's generator
        multitask = tasknet.Model(tasks, hparams)
        trainer = tasknet.Trainer(multitask, tasks, hparams, tokenizer.tokenizer)
        trainer.data_collator = counted = Counted(trainer.data_collator)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    tasknet.models.remove_cls(multitask.task_models_list[0]).base_model.save_pretrained(out)
    tokenizer.tokenizer.save_pretrained(out)
    told = {
        "tasks": len(tasks), "rows": sum(rows), "rows left out": sum(map(len, stores)) - sum(rows), "updates": steps,
        "examples": counted.examples, "examples wanted": wanted, "seconds": round(seconds, 1),
        "examples per second": round(counted.examples / seconds, 1),
        "settings": {name: value for name, value in hparams.items() if name not in ("model_name", "output_dir")},
    }  # fmt: skip
    write(out / "tasknet.json", json.dumps(told) + "\n")
    return told


@dataclass
class Counted:
    """A collator that counts the examples it has put together."""

    collate: Callable[[Sequence[Any]], Any]
    examples: int = 0

    def __call__(self, rows: Sequence[Any]) -> Any:
        self.examples += len(rows)
        return self.collate(rows)


def rows_to_learn(
    suite: Suite, against: Sequence[Task], tokenizer: Tokenizer, config: Config, data_root: Path | None, cache: Path | None,
    display: Display,
) -> tuple[list[OpenTask], list[Store]]:  # fmt: skip
    """The tasks, and their training rows as tokens, as `prefinetune train` finds them: leaks left out."""
    given = {"data_root": data_root, "say": display.say, "bad_rows": config.data.bad_rows, "cache": cache}
    opened = open_tasks(suite, max_rows=config.data.max_rows, needed="train", **given)
    protected = open_tasks(against, **given) if against else []
    opened, _ = leave_out(opened, protected, config.data.leaks, cache, display)
    return opened, prepare(opened, tokenizer, cache, display)


def as_task(tasknet: Any, number: int, opened: OpenTask, store: Store, tokenizer: Tokenizer) -> tuple[Any, datasets.Dataset]:
    """A task as tasknet has it once it is tokenized, and its rows."""
    family, examples = opened.family, [store[at] for at in range(len(store))]
    if family.kind == "choice":  # tasknet has columns of options, so that all rows have as many
        (usual, _), *_ = Counter(len(one.sequences) for one in examples).most_common()
        examples = [one for one in examples if len(one.sequences) == usual]
    rows = rows_of(examples, family, number, tokenizer)
    about = rows.select([0])  # of which it asks what labels there are
    if family.kind == "classification":
        about = about.cast_column("labels", datasets.ClassLabel(names=list(map(str, family.labels))))
    size = len(family.labels) if getattr(family, "labels", None) else 1 if family.kind == "regression" else 2
    options = {"choices": [f"choice{at}" for at in range(len(examples[0].sequences))]} if family.kind == "choice" else {}
    kind = getattr(tasknet, KINDS[family.kind])
    task = kind(datasets.DatasetDict(train=about), name=opened.task.name, num_labels=size, y="labels", **options)
    task.set_tokenizer(tokenizer.tokenizer)
    task.processed_features = {"train": rows, **dict.fromkeys(("validation", "test"), datasets.Dataset.from_list([]))}
    return task, rows


def rows_of(examples: Sequence[Encoded], family: Family, number: int, tokenizer: Tokenizer) -> datasets.Dataset:
    """Examples padded to the longest of them; of choices with an axis for the options."""
    shape = len(examples), len(examples[0].sequences), max(len(ids) for one in examples for ids in one.sequences)
    ids, mask = np.full(shape, tokenizer.pad_id), np.zeros(shape, dtype=np.int64)
    labels = []
    for at, one in enumerate(examples):
        for option, sequence in enumerate(one.sequences):
            ids[at, option, : len(sequence)], mask[at, option, : len(sequence)] = sequence, 1
        row = features(one, family, False)
        labels.append([row["start_positions"], row["end_positions"]] if family.kind == "span" else row["labels"])
    if family.kind != "choice":
        ids, mask = ids[:, 0], mask[:, 0]
    columns = {"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": labels, "task": [[number]] * len(examples)}
    rows = datasets.Dataset.from_dict(columns)
    rows.set_format("torch")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", choices=TITLES, required=True, help="the study whose sets, rows and settings it has")
    parser.add_argument("--model", type=Path, required=True, help="the base: a run or a model folder")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="of token stores: that of the study, so that nothing is tokenized again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    given = parser.parse_args()
    protocol, known = json.loads(protocol_of(given.protocol).read_text()), catalog()
    suite = Suite("shared sets", tuple(known[name] for name in protocol["sources"]))
    config = make_config(protocol["prefinetuning"], {"seed": given.seed})
    with quiet_peers():
        told = learn(
            suite, given.model, given.out, config, [known[name] for name in protocol["targets"]], given.data_root, given.cache,
            Display(),
        )  # fmt: skip
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
