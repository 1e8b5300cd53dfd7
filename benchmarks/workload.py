"""What throughput.py runs: mixes of tasks, and the fixed lists of examples that every variant learns from.

R is every dataset of a mirror that an encoder can learn, in proportion to its rows; C is the classification among it; S is random
ids in the shape of a mix in which most tokens are of questions and choices; E is random ids for an encoder-decoder. Sequences are
cut at 128 tokens, and at 384 where spans are to be found, as Transformers' example scripts do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast
from transformers.trainer_pt_utils import get_length_grouped_indices

from prefinetune.catalog import catalog
from prefinetune.families import Choice, Classification, Encoded, Family, Generation, Span
from prefinetune.mixture import SubBatch
from prefinetune.pretrained import read_config
from prefinetune.splits import open_task
from prefinetune.store import build_store
from prefinetune.task import Suite
from prefinetune.tokenizer import Tokenizer, load_tokenizer
from prefinetune.update import TaskData

LENGTH, SPAN_LENGTH = 128, 384  # tokens of a sequence, and of one in which a span is to be found
BATCH = 32  # examples of an optimizer step; 8 in E
ROWS = 1600  # of a task that are tokenized: what examples are drawn from, as many as length grouping sorts at a time
GOLDEN = 0.6180339887498949  # its multiples fall evenly between 0 and 1, however many there are


class Round(NamedTuple):
    """The examples of one round, by task and number in the task's store."""

    groups: list[SubBatch]  # an optimizer step each, for trainers that know one task
    updates: list[list[SubBatch]]  # the same examples mixed: what an update draws of each task
    alike: list[SubBatch]  # steps of the same tasks that length grouping would have made, of other examples


@dataclass
class Mix:
    """Tasks, and which of their examples each round takes."""

    name: str
    told: str
    tasks: list[TaskData]
    pools: list[np.ndarray]  # by task, the examples that can be drawn
    rounds: list[Round]
    tokenizer: Tokenizer
    warm_up: Round  # a few examples: optimizer states come to be, kernels are chosen
    batch: int
    decodes: bool = False

    def examples(self, part: SubBatch) -> list[Encoded]:
        store = self.tasks[part.task].store
        return [store[index] for index in part.examples.tolist()]

    def family(self, part: SubBatch) -> Family:
        return self.tasks[part.task].family


class Listed:
    """Stands for a Mixture in `prefinetune.update.draw`: its updates are given."""

    seed = 0

    def __init__(self, updates: Sequence[list[SubBatch]]) -> None:
        self.updates = updates

    def update(self, number: int) -> list[SubBatch]:
        return self.updates[number]


class Work(NamedTuple):
    """What there is to learn from in some examples: none of it is padding."""

    examples: int
    tokens: int
    squares: int  # sum over sequences of length ** 2, which attention grows with
    outputs: int  # tokens that a decoder writes, counted in `tokens` too
    output_squares: int
    crossed: int  # sum over sequences of length x tokens written

    @classmethod
    def of(cls, examples: Iterable[Encoded]) -> Work:
        rows = [(len(ids), 0 if one.output is None else len(one.output)) for one in examples for ids in one.sequences]
        read, written = np.array(rows).T
        count = sum(1 for _ in examples)
        return cls(
            count,
            int(read.sum() + written.sum()),
            int((read**2).sum()),
            int(written.sum()),
            int((written**2).sum()),
            int((read * written).sum()),
        )


def load_mix(
    name: str,
    tokenizers: tuple[Tokenizer, Tokenizer],
    data: Path | None,
    rounds: int,
    batch: int | None = None,
    cache: Path | None = None,
) -> Mix:
    """A mix by its letter.

    Args:
        tokenizers: for sequences of LENGTH and of SPAN_LENGTH tokens.
        data: a mirror of hub datasets, DATA_ROOT/SLUG/SPLIT.parquet; R and C need one.
        batch: examples of an optimizer step; BATCH when left out.
    """
    batch = batch or (8 if name == "E" else BATCH)
    if name == "S":
        return synthetic_mix(tokenizers[0], rounds, batch)
    if name == "E":
        return decoding_mix(tokenizers[0], rounds, batch)
    if data is None or not data.is_dir():
        raise SystemExit(f"mix {name} needs a mirror of datasets: --data DIR, DIR/SLUG/SPLIT.parquet (given: {data})")
    there = (task for task in catalog() if (data / task.slug / "train.parquet").exists() and not task.evaluation_only)
    suite = Suite(name, tuple(there)).without("generation")
    if name == "C":
        return real_mix("C", "classification alone", suite.select("classification"), tokenizers, data, rounds, 4, batch, cache)
    return real_mix("R", "every set for encoders", suite, tokenizers, data, rounds, 4, batch, cache)


# ---- real datasets


def real_mix(
    name: str,
    told: str,
    suite: Suite,
    tokenizers: tuple[Tokenizer, Tokenizer],
    data: Path | None,
    rounds: int,
    groups: int,
    batch: int,
    cache: Path | None = None,
) -> Mix:
    """Tasks in proportion to their rows: each round's groups are spread evenly over all rows, these in the order of family and
    length, so that a round has some of everything and all rounds together are as the whole is."""
    found = []
    for task in suite:
        opened, few = open_task(task, data), open_task(task, data, max_rows=ROWS)
        store = build_store(few, "train", tokenizers[opened.family.kind == "span"], cache)
        usable = usable_examples(store, opened.family)
        if len(usable) >= batch:
            key = (opened.family.kind != "classification", opened.family.kind, store.lengths().mean())
            found.append((key, len(opened.split("train")), TaskData(task.name, opened.family, store), usable))
    found.sort(key=lambda entry: entry[0])
    ends = np.cumsum([rows for _, rows, _, _ in found])
    places = [((group + (0.5 + GOLDEN * number) % 1) / groups) for number in range(rounds) for group in range(groups)]
    chosen = np.searchsorted(ends, np.array(places) * ends[-1], side="right")
    used = sorted(set(chosen.tolist()))
    _, sizes, tasks, pools = (list(column) for column in zip(*(found[at] for at in used), strict=True))
    drawn = np.array([used.index(at) for at in chosen]).reshape(rounds, groups)
    planned = [plan(tasks, pools, sizes, row, number, batch) for number, row in enumerate(drawn)]
    told = f"{told}: {len(found)} of {len(suite)} tasks with {ends[-1]:,} rows in natural proportion, {len(tasks)} of them drawn"
    return Mix(name, told, tasks, pools, planned, tokenizers[0], warm_up(planned[0]), batch)


def usable_examples(store: Any, family: Family) -> np.ndarray:
    """Numbers of the examples that every peer takes: of a choice task those with the most common number of options, since
    Transformers' collator stacks options."""
    options = np.array([len(store[index].sequences) for index in range(len(store))])
    if family.kind != "choice":
        return np.arange(len(store))
    return np.flatnonzero(options == Counter(options.tolist()).most_common(1)[0][0])


def plan(
    tasks: Sequence[TaskData], pools: Sequence[np.ndarray], sizes: Sequence[int], drawn: np.ndarray, number: int, batch: int
) -> Round:
    """A round whose groups are of the tasks drawn; `sizes` are the tasks' rows."""
    generator = np.random.default_rng([7, number])
    groups = [SubBatch(int(task), generator.choice(pools[task], batch, replace=False), 0) for task in drawn]
    mixed = generator.permutation([(group.task, index) for group in groups for index in group.examples])
    updates = [by_task(mixed[at : at + batch]) for at in range(0, len(mixed), batch)]
    alike = []
    for at, task in enumerate(drawn):
        lengths = [tasks[task].store[int(index)].length for index in pools[task]]
        alike.append(SubBatch(int(task), pools[task][similar(lengths, sizes[task], number + at, batch)], 0))
    return Round(groups, updates, alike)


def by_task(examples: np.ndarray) -> list[SubBatch]:
    """Examples [n, 2] of (task, number) as one sub-batch per task."""
    return [SubBatch(int(task), examples[examples[:, 0] == task, 1], 0) for task in np.unique(examples[:, 0])]


def similar(lengths: Sequence[int], size: int, number: int, batch: int) -> list[int]:
    """A batch that Trainer's own length grouping makes in a dataset of `size` rows, of which these are a sample; which of its
    batches it is changes evenly with `number`, so that over the rounds long and short ones come as often as they are."""
    sorted_at_a_time = max(1, min(size // (4 * batch), 50))  # batches: Trainer's own rule
    order = get_length_grouped_indices(lengths, batch, sorted_at_a_time, torch.Generator().manual_seed(number))
    start = int((0.5 + GOLDEN * number) % 1 * (len(order) // batch)) * batch
    return order[start : start + batch]


def warm_up(first: Round, examples: int = 4) -> Round:
    """The first few examples of each group of a round."""
    few = [group._replace(examples=group.examples[:examples]) for group in first.groups]
    return Round(few, [few], few)


# ---- random ids


def synthetic_mix(tokenizer: Tokenizer, rounds: int, batch: int) -> Mix:
    """Eight tasks that are drawn equally often, half of them in every other round: two of one text, four of two, one of spans and
    one of four options."""
    generator = np.random.default_rng(3)

    def around(mean: float, spread: float, least: int, most: int) -> int:
        return int(np.clip(generator.normal(mean, spread), least, most))

    def classes(mean: float, spread: float, pair: bool, labels: int) -> tuple[Family, list[Encoded]]:
        family = Classification("text", "pair" if pair else None, labels=tuple("abc"[:labels]))
        lengths = [around(mean, spread, 8, LENGTH) for _ in range(ROWS)]
        return family, [made([length], pair, [int(generator.integers(labels))]) for length in lengths]

    def made(lengths: list[int], pair: bool, target: list[int]) -> Encoded:
        sequences = [generator.integers(5, tokenizer.vocab_size, length) for length in lengths]
        return Encoded(sequences, [length // 2 if pair else length for length in lengths], np.array(target, dtype=np.int64))

    def span() -> Encoded:
        length = int(generator.integers(100, SPAN_LENGTH + 1))
        start = int(generator.integers(20, length - 8))
        return made([length], True, [start, start + int(generator.integers(6))])

    spans = (Span("question", "context"), [span() for _ in range(ROWS)])
    options = [made([around(60, 12, 20, LENGTH) for _ in range(4)], True, [int(generator.integers(4))]) for _ in range(ROWS)]
    tables: dict[str, tuple[Family, list[Encoded]]] = {  # the first four and the last four have about as many tokens
        "single 1": classes(24, 8, False, 2),
        "pair 1": classes(40, 12, True, 3),
        "pair 4": classes(75, 25, True, 2),
        "span": spans,
        "single 2": classes(27, 10, False, 3),
        "pair 2": classes(50, 15, True, 2),
        "pair 3": classes(60, 20, True, 3),
        "choice": (Choice("text", "options"), options),
    }
    tasks = [TaskData(name, family, store) for name, (family, store) in tables.items()]
    pools = [np.arange(ROWS)] * len(tasks)
    halves = np.arange(len(tasks)).reshape(2, -1)
    planned = [plan(tasks, pools, [10**6] * len(tasks), halves[number % 2], number, batch) for number in range(rounds)]
    told = "random ids: two tasks of one text (24 and 27 tokens), four of two (40 to 75), spans (100 to 384), four options of 60"
    return Mix("S", told, tasks, pools, planned, tokenizer, warm_up(planned[0]), batch)


def decoding_mix(tokenizer: Tokenizer, rounds: int, batch: int, steps: int = 2) -> Mix:
    """One task of long texts with short targets, log-normal lengths of 300 and 35 tokens on average."""
    generator = np.random.default_rng(4)

    def ids(mean: float, least: int, most: int) -> np.ndarray:
        length = int(np.clip(generator.lognormal(np.log(mean) - 0.5 * 0.6**2, 0.6), least, most))
        return np.append(generator.integers(5, tokenizer.vocab_size, length - 1), 2)  # the end of a text

    count = batch * steps * rounds
    store = [
        Encoded([source], [len(source)], np.zeros(0, np.int64), output=ids(35, 4, 128))
        for source in (ids(300, 16, 512) for _ in range(count))
    ]
    task = TaskData("summary", Generation("text", "target", label_smoothing=0.0), store)
    planned = []
    for number in range(rounds):
        numbers = np.arange(number * batch * steps, (number + 1) * batch * steps).reshape(steps, batch)
        groups = [SubBatch(0, row, 0) for row in numbers]
        planned.append(Round(groups, [[group] for group in groups], groups))
    told = f"random ids for an encoder-decoder: texts of 300 tokens on average, targets of 35, {batch} examples per step"
    return Mix("E", told, [task], [np.arange(count)], planned, tokenizer, warm_up(planned[0]), batch, decodes=True)


def tokenizers_of(folder: str) -> tuple[Tokenizer, Tokenizer]:
    """A model's own, for sequences of LENGTH and of SPAN_LENGTH tokens."""
    config = read_config(folder)
    return load_tokenizer(folder, LENGTH, config), load_tokenizer(folder, SPAN_LENGTH, config)


def made_up_tokenizer() -> tuple[Tokenizer, Tokenizer]:
    """As many ids as BERT has words, for runs that read random ids."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel

    words = ["[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]", *(f"w{number}" for number in range(30517))]
    backend = Backend(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "sep_token": "[SEP]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **roles)
    return Tokenizer(tokenizer, LENGTH), Tokenizer(tokenizer, SPAN_LENGTH)
