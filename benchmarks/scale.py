"""What a run should take on 1 to 512 GPUs: arithmetic on stated assumptions, not a measurement.

    python benchmarks/scale.py --out scale.json          # tables on the terminal; seconds
    python benchmarks/scale.py --page docs/scale.md      # the same tables put into that page
    python benchmarks/scale.py --host                    # measure what HOST holds
    python benchmarks/scale.py --lengths ../shared/data  # measure the lengths of a mirror's examples again

An update is: every process computes its examples micro-batch by micro-batch, the gradients are summed over all processes, every
process steps; meanwhile a thread of its CPU lays out the next one, and is waited for when that takes longer. It is over when the
slowest process is, so examples are really drawn, by their lengths, and really dealt, by the function that training uses. The sum
starts after the last micro-batch; what it would gain to let it overlap with the last backward pass is told as well.

The hardware is *assumed*, and no line of it was measured; see Cluster. Two things were measured: how long examples are
(benchmarks/results/lengths.json), and what laying them out costs the CPU (HOST, by --host).

Letters: n GPUs, m machines, g GPUs of a machine, S bytes of gradient.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table as Printed

from prefinetune.batch import deal
from prefinetune.files import write
from prefinetune.ranks import BUCKET

LENGTHS = Path(__file__).parent / "results" / "lengths.json"
EXAMPLES, TASKS, SUB_BATCH = 4_800_000, 46, 4  # of the run: MUPPET 3.1 and 3.2; examples of a sub-batch, our default
TOKEN_BUDGET = 16_384  # most tokens of a micro-batch
GPUS = (1, 8, 64, 512)
UPDATES = (64, 512, 4096, 32768)  # examples of an update; 64 is our default
MOST = 2**18  # examples of the largest update that is looked at
SHOWN = 4096  # examples of an update in the table of times


class Shape(NamedTuple):
    """A model, as far as its size goes."""

    name: str
    layers: int
    hidden: int
    feed_forward: int
    vocabulary: int = 50265
    positions: int = 514

    @property
    def layer_matrices(self) -> int:
        """Weights that each token is multiplied with."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.feed_forward)

    @property
    def parameters(self) -> int:
        """Of the trunk: embeddings, and per layer matrices, their biases and two layer norms."""
        embeddings = (self.vocabulary + self.positions + 1 + 2) * self.hidden
        return embeddings + self.layer_matrices + self.layers * (5 * self.hidden + self.feed_forward + 4 * self.hidden)

    def head_parameters(self, labels: int = 3) -> int:
        """Of a classification head: a square matrix and an output layer."""
        return self.hidden * (self.hidden + 1) + labels * (self.hidden + 1)

    def flops(self, tokens: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """Of forward and backward pass: 6 per weight and token, and the two products of attention (4 x hidden per pair of tokens
        of a sequence forward, twice that backward). Embeddings and heads are left out: lookups, and one token of many."""
        return 6.0 * self.layer_matrices * tokens + 12.0 * self.layers * self.hidden * squares


class Cluster(NamedTuple):
    """Machines of g GPUs each. Everything here is assumed."""

    name: str
    flops: float  # peak of matrix products in bfloat16, per second
    utilization: float  # share of it that training reaches on real tokens (MFU)
    memory: float  # bytes per second
    inside: float  # bytes per second that a GPU sends to others of its machine
    between: float  # bytes per second that a GPU sends to other machines, when all of its machine do
    price: float  # US dollars per GPU and hour
    machine: int = 8  # GPUs (g)
    attained: float = 0.8  # share of the bandwidths that is reached
    latency_inside: float = 5e-6  # seconds per step of a ring
    latency_between: float = 15e-6
    launch: float = 0.5e-3  # seconds that a layer's forward and backward pass takes at least, however few tokens there are


H100 = Cluster("H100, InfiniBand", 989e12, 0.30, 3.35e12, 450e9, 50e9, 3.0)
A100 = Cluster("A100, Ethernet", 312e12, 0.40, 2.0e12, 300e9, 100e9 / 8 / 8, 2.0)
BASE, LARGE = Shape("RoBERTa-base", 12, 768, 3072), Shape("RoBERTa-large", 24, 1024, 4096)
CLUSTERS = (H100, A100)
MACHINES = tuple((shape, cluster) for cluster in CLUSTERS for shape in (BASE, LARGE))


class Host(NamedTuple):
    """Processor seconds per example before a GPU has anything to do, on one thread. Measured."""

    stream: float  # for every example of the update, on each of several processes: which it is, how long, whose
    own: float  # for each that a process computes itself: read, mask, lay out


HOST, NO_HOST = Host(stream=7.6e-6, own=39e-6), Host(0, 0)
CONSOLE = Console(width=None if sys.stdout.isatty() else 170)


# ---- lengths, and who computes what


class Lengths(NamedTuple):
    """Examples as a mixture draws them."""

    tokens: np.ndarray  # [examples]
    squares: np.ndarray  # [examples] sum over an example's sequences of length ** 2


@cache
def lengths() -> Lengths:
    found = json.loads(LENGTHS.read_text())
    return Lengths(np.array(found["tokens"]), np.array(found["squares"]))


class Dealt(NamedTuple):
    """An update's examples on n processes."""

    tokens: np.ndarray  # [n]
    squares: np.ndarray  # [n]
    examples: np.ndarray  # [n]

    @property
    def balance(self) -> float:
        """Tokens of a process on average, over those of the fullest."""
        return float(self.tokens.mean() / self.tokens.max())


@cache
def dealt(examples: int, gpus: int) -> tuple[Dealt, ...]:
    """Some updates, drawn at random and dealt; fewer of large ones, which are all alike."""
    updates = []
    for number in range(int(np.clip(8192 // examples, 1, 32))):
        drawn = np.random.default_rng([examples, number]).integers(len(lengths().tokens), size=examples)
        tokens, squares = lengths().tokens[drawn], lengths().squares[drawn]
        ranks = deal(tokens, gpus)
        sums = [[values[rank].sum() for rank in ranks] for values in (tokens, squares)]
        updates.append(Dealt(np.array(sums[0]), np.array(sums[1]), np.array([len(rank) for rank in ranks])))
    return tuple(updates)


# ---- the sum of gradients


class Sent(NamedTuple):
    """Bytes that each GPU sends in one all-reduce."""

    inside: float
    between: float


def all_reduce_sent(size: float, gpus: int, machine: int) -> Sent:
    """A ring in each machine scatters the sum over its g GPUs, m machines sum each GPU's share in a ring of their own, a ring in
    each machine gathers: 2 (g-1)/g S inside and 2 (m-1)/m S/g between. Together that is 2 (n-1)/n S, as in one ring through all
    n GPUs (Patarasuk & Yuan 2009), which no all-reduce can undercut."""
    g = min(gpus, machine)
    m = gpus // g
    return Sent(2 * (g - 1) / g * size, 2 * (m - 1) / m * size / g)


def all_reduce_seconds(size: float, gpus: int, cluster: Cluster) -> float:
    """Bandwidth, and for each message the latency of 2 (g-1) and 2 (m-1) steps."""
    sent = all_reduce_sent(size, gpus, cluster.machine)
    g, messages = min(gpus, cluster.machine), math.ceil(size / 4 / BUCKET)
    steps = 2 * (g - 1) * cluster.latency_inside + 2 * (gpus // g - 1) * cluster.latency_between
    return messages * steps + (sent.inside / cluster.inside + sent.between / cluster.between) / cluster.attained


# ---- an update, and a run of many


@dataclass(frozen=True)
class Estimate:
    """An update on n GPUs, in seconds; means over the updates drawn."""

    gpus: int
    examples: int
    tokens: float
    balance: float
    sent: float  # bytes, by each GPU
    host: float
    compute: float
    communication: float
    hidden: float  # of it, if it overlapped with the last backward pass
    optimizer: float

    @property
    def seconds(self) -> float:
        return self.with_hidden(0)

    def with_hidden(self, hidden: float) -> float:
        """Were so much of the communication hidden behind the backward pass."""
        return max(self.host, self.compute + self.communication - hidden + self.optimizer)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def hours(self, examples: int = EXAMPLES) -> float:
        return self.seconds * examples / self.examples / 3600


def gradient_bytes(shape: Shape, examples: int) -> int:
    """float32, of the trunk and of the heads that an update uses: at most one per sub-batch, and one per task."""
    heads = min(-(-examples // SUB_BATCH), TASKS)
    return 4 * (shape.parameters + heads * shape.head_parameters())


def optimizer_seconds(shape: Shape, cluster: Cluster) -> float:
    """AdamW in float32, on every GPU the same: reads 4 numbers of each parameter and writes 3, after the norm has read 1. Of all
    parameters, though heads without a gradient are passed over."""
    return (shape.parameters + TASKS * shape.head_parameters()) * 4 * 8 / (cluster.memory * cluster.attained)


def compute_seconds(shape: Shape, cluster: Cluster, update: Dealt) -> tuple[np.ndarray, np.ndarray]:
    """Of each process [n], and of its last micro-batch alone [n]. Micro-batches of a process are equal; one costs its products,
    and at least the launch of its kernels."""
    batches = np.maximum(1, -(-update.tokens // TOKEN_BUDGET))
    flops = shape.flops(update.tokens, update.squares) / batches
    last = np.maximum(flops / (cluster.flops * cluster.utilization), shape.layers * cluster.launch)
    return batches * last, last


def estimate(shape: Shape, cluster: Cluster, gpus: int, examples: int, host: Host = HOST) -> Estimate:
    """An update of `examples` examples on `gpus` GPUs; as many examples as GPUs, at least."""
    size = gradient_bytes(shape, examples)
    communication = all_reduce_seconds(size, gpus, cluster)
    updates = dealt(examples, gpus)
    compute, hidden, laid_out = [], [], []
    for update in updates:
        seconds, last = compute_seconds(shape, cluster, update)
        slowest = int(np.argmax(seconds))
        compute.append(seconds[slowest])
        hidden.append(min(communication, last[slowest] * 2 / 3))  # a backward pass is two thirds of the work
        laid_out.append(host.stream * examples * (gpus > 1) + host.own * update.examples.max())
    return Estimate(
        gpus=gpus,
        examples=examples,
        tokens=float(np.mean([update.tokens.sum() for update in updates])),
        balance=float(np.mean([update.balance for update in updates])),
        sent=sum(all_reduce_sent(size, gpus, cluster.machine)),
        host=float(np.mean(laid_out)),
        compute=float(np.mean(compute)),
        communication=communication,
        hidden=float(np.mean(hidden)),
        optimizer=optimizer_seconds(shape, cluster),
    )


def efficiency(shape: Shape, cluster: Cluster, gpus: int, examples: int, host: Host = HOST, overlap: bool = False) -> float:
    """How much of n GPUs' work is not lost: the time on one GPU over n times the time on n, for the same update."""
    one, many = (estimate(shape, cluster, count, examples, host) for count in (1, gpus))
    return one.seconds / (gpus * many.with_hidden(many.hidden * overlap))


def smallest_update(
    shape: Shape, cluster: Cluster, gpus: int, host: Host = HOST, overlap: bool = False, wanted: float = 0.9
) -> int | None:
    """Examples of the smallest update, among powers of two, that loses no more than 10 %; None when MOST loses more."""
    examples = max(64, gpus)
    while examples <= MOST:
        if efficiency(shape, cluster, gpus, examples, host, overlap) >= wanted:
            return examples
        examples *= 2
    return None


# ---- tables


class Table(NamedTuple):
    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: int = 1  # columns of words, at the left; the others are numbers

    def markdown(self) -> str:
        rule = ["---" if at < self.words else "---:" for at in range(len(self.header))]
        return "".join(f"| {' | '.join(row)} |\n" for row in (self.header, rule, *self.rows))

    def printed(self) -> Printed:
        table = Printed(*self.header, title=self.title, title_justify="left")
        for at, column in enumerate(table.columns):
            column.justify = "left" if at < self.words else "right"
        for row in self.rows:
            table.add_row(*row)
        return table


def assumed() -> Table:
    steps = [f"{1e6 * one.latency_inside:g} and {1e6 * one.latency_between:g} µs" for one in CLUSTERS]
    rows = [
        (
            "peak in bfloat16",
            *(f"{one.flops / 1e12:g} TFLOP/s" for one in CLUSTERS),
            "data sheets of H100 SXM and A100 SXM, dense",
        ),
        ("share of it reached (MFU)", *(f"{one.utilization:.0%}" for one in CLUSTERS), "a guess; no GPU could be had"),
        ("memory", *(f"{one.memory / 1e12:g} TB/s" for one in CLUSTERS), "data sheets, 80 GB"),
        (
            "NVLink, per GPU and direction",
            *(f"{one.inside / 1e9:g} GB/s" for one in CLUSTERS),
            "data sheets, halves of 900 and 600",
        ),
        (
            "network, per GPU and direction",
            *(f"{one.between / 1e9:.3g} GB/s" for one in CLUSTERS),
            "InfiniBand of 400 Gb/s per GPU; Ethernet of 100 Gb/s per machine of 8",
        ),
        ("share of memory and links reached", *(f"{one.attained:.0%}" for one in CLUSTERS), "a guess"),
        ("a step of a ring, inside and between machines", *steps, "a guess"),
        (
            "a layer and micro-batch, at least",
            *(f"{1e3 * one.launch:g} ms" for one in CLUSTERS),
            "a guess: some 60 kernels to launch",
        ),
        ("a GPU and hour", *(f"{one.price:g} $" for one in CLUSTERS), "public lists name 2 to 5 and 1 to 3"),
    ]
    header = ("assumed, not measured", *(one.name for one in CLUSTERS), "where it is from")
    return Table("Assumed, not measured", header, [tuple(cell.replace("%", " %") for cell in row) for row in rows], words=4)


def measured() -> Table:
    told = json.loads(LENGTHS.read_text())
    stream, own = (f"{1e6 * seconds:.1f} µs" for seconds in HOST)
    long = ", ".join(map(str, told["cut at"]))
    rows = [
        ("an example has", f"{told['mean']} tokens", f"mean over {told['of']} of them, in proportion; cut at {long} (spans)"),
        ("laying out an update, on each of several processes", f"{stream} per example of the update", "one thread of a Xeon"),
        ("and", f"{own} per example of the process's own", "the same"),
    ]
    return Table("Measured", ("measured", "", "how"), rows, words=3)


def times() -> Table:
    rows = []
    for shape, cluster in MACHINES:
        for gpus in GPUS:
            one = estimate(shape, cluster, gpus, SHOWN)
            parts = (one.host, one.compute, one.communication, one.optimizer)
            rows.append(
                (
                    f"{shape.name}, {cluster.name}",
                    f"{gpus}",
                    f"{one.tokens_per_second:,.0f}",
                    f"{one.balance:.2f}",
                    f"{one.sent / 1e6:,.0f}",
                    *(f"{1000 * seconds:,.1f}" for seconds in parts),
                    f"{efficiency(shape, cluster, gpus, SHOWN):.0%}".replace("%", " %"),
                    f"{60 * one.hours():,.1f}",
                    f"{one.hours() * gpus * cluster.price:,.1f}",
                )
            )
    header = (
        "", "GPUs", "tokens/s", "balance", "MB sent by each GPU", "lay out, ms", "compute, ms", "all-reduce, ms", "AdamW, ms",
        "efficiency", "minutes for 4.8M examples", "$",
    )  # fmt: skip
    return Table(f"Updates of {SHOWN:,} examples", header, rows)


def efficiencies() -> Table:
    rows = []
    for shape in (BASE, LARGE):
        for examples in UPDATES:
            shares = [efficiency(shape, H100, gpus, examples) if examples >= gpus else None for gpus in GPUS[1:]]
            shown = ("" if share is None else f"{share:.0%}".replace("%", " %") for share in shares)
            rows.append((shape.name, f"{examples:,}", f"{EXAMPLES / examples:,.0f}", *shown))
    header = ("", "examples of an update", "updates in 4.8M examples", *(f"{gpus} GPUs" for gpus in GPUS[1:]))
    return Table(f"Efficiency, {H100.name}", header, rows)


def smallest() -> Table:
    """Examples of the smallest update at 90 %: as it is, and with what could be changed."""
    rows = []
    for shape, cluster in MACHINES:
        for gpus in GPUS[2:]:
            cases = ((HOST, False), (HOST, True), (NO_HOST, False), (NO_HOST, True))
            found = [smallest_update(shape, cluster, gpus, *case) for case in cases]
            rows.append((f"{shape.name}, {cluster.name}", f"{gpus}", *(f"{one:,}" if one else "more" for one in found)))
    header = ("", "GPUs", "as it is", "all-reduce overlaps", "laying out costs nothing", "both")
    return Table("Examples of the smallest update that loses no more than 10 %", header, rows)


def tables() -> list[Table]:
    return [assumed(), measured(), times(), efficiencies(), smallest()]


def put_into(page: str, table: Table) -> str:
    """A page with this table in the place of the one that has its header.

    Raises:
        ValueError: there is none.
    """
    header, *_ = table.markdown().splitlines()
    start = page.index(header)
    end = start + len("".join(takewhile(lambda line: line.startswith("|"), page[start:].splitlines(keepends=True))))
    return page[:start] + table.markdown() + page[end:]


# ---- what is measured


def measure_lengths(data: Path, points: int = 1000, rows: int = 200) -> None:
    """Write LENGTHS: examples at even steps through the tokens of a mirror's sets, these in proportion to their rows."""
    from prefinetune.catalog import catalog
    from prefinetune.splits import open_task
    from prefinetune.store import build_store
    from scaling import minilm
    from workload import LENGTH, SPAN_LENGTH, tokenizers_of

    tokenizers, found, sizes = tokenizers_of(minilm()), [], []
    there = [task for task in catalog() if (data / task.slug / "train.parquet").exists() and not task.evaluation_only]
    for task in there:
        few = open_task(task, data, max_rows=rows)
        if few.family.kind == "generation":
            continue
        store = build_store(few, "train", tokenizers[few.family.kind == "span"])
        sizes.append(len(open_task(task, data).split("train")))
        for index in range(len(store)):
            read = np.array([len(sequence) for sequence in store[index].sequences])
            found.append((read.sum(), (read**2).sum(), sizes[-1] / len(store)))
    tokens, squares, weights = np.array(sorted(found)).T
    places = np.searchsorted(np.cumsum(weights), (np.arange(points) + 0.5) / points * weights.sum())
    record = {
        "of": f"{len(sizes)} datasets, {sum(sizes):,} rows",
        "cut at": [LENGTH, SPAN_LENGTH],
        "mean": round(float(np.average(tokens, weights=weights)), 1),
        "tokens": tokens[places].astype(int).tolist(),
        "squares": squares[places].astype(int).tolist(),
    }
    write(LENGTHS, json.dumps(record))


def measure_host(examples: int = SHOWN, turns: int = 15) -> Host:
    """Processor seconds per example of what `train` does before an update is computed, on one of 8 and one of 512 processes: what
    both do for every example, and what each does for its own. Made-up rows of 10 to 120 tokens, read from real stores."""
    import torch

    from prefinetune.batch import Layout, micro_batches
    from prefinetune.config import make_config
    from prefinetune.families import Classification
    from prefinetune.loop import make_mixture
    from prefinetune.quarantine import Account
    from prefinetune.shard import Shard
    from prefinetune.store import Store
    from prefinetune.update import Place, TaskData, draw
    from scaling import Point, number_of_labels, write_stores
    from workload import made_up_tokenizer

    torch.set_num_threads(1)
    tokenizer, layout = made_up_tokenizer()[0], Layout(0, packed=True)
    config = make_config({"mixture": {"sub_batches": examples // SUB_BATCH, "sub_batch_size": SUB_BATCH}})
    with tempfile.TemporaryDirectory() as folder:
        stores = write_stores(Path(folder), Point("small", tasks=TASKS, rows=200_000, lengths=(10, 120)))
        opened = [Store(store, [Shard(store)], Account(store.name, "train", "made up", 0)) for store in stores]
        tasks = [
            TaskData(f"task{at}", Classification("text", labels=tuple(map(str, range(number_of_labels(at))))), one)
            for at, one in enumerate(opened)
        ]
        mixture = make_mixture([len(task.store) for task in tasks], config)

        def seconds(number: int, gpus: int) -> float:
            started = time.process_time()
            micro_batches(draw(mixture, number, tasks, tokenizer, place=Place(0, gpus)), TOKEN_BUDGET, layout)
            return time.process_time() - started

        times = np.array([[seconds(number, gpus) for gpus in (8, 512)] for number in range(turns + 1)])
    few, many = np.median(times[1:], axis=0).tolist()
    own = (few - many) / (examples / 8 - examples / 512)
    return Host(stream=many / examples - own / 512, own=own)


# ---- the command


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON with all that the tables are made of")
    parser.add_argument("--page", type=Path, help="a page in which the tables of these headers are replaced")
    parser.add_argument("--lengths", type=Path, metavar="DATA", help="measure the lengths of a mirror's examples first")
    parser.add_argument("--host", action="store_true", help="only measure what laying out an update costs this processor")
    arguments = parser.parse_args(words)
    if arguments.host:
        found = measure_host()
        print(f"{found.stream * 1e6:.2f} µs for every example, {found.own * 1e6:.1f} µs for each of a process's own")
        return
    if arguments.lengths:
        measure_lengths(arguments.lengths)
    for table in tables():
        CONSOLE.print(table.printed())
        if arguments.page:
            write(arguments.page, put_into(arguments.page.read_text(), table))
    if arguments.out:
        estimates = [
            {"model": shape.name, "cluster": cluster.name, **asdict(one), "seconds": one.seconds, "hours": one.hours()}
            for shape, cluster in MACHINES
            for gpus in GPUS
            for examples in UPDATES
            if examples >= gpus
            for one in [estimate(shape, cluster, gpus, examples)]
        ]
        clusters = [cluster._asdict() for cluster in CLUSTERS]
        record = {"assumed": clusters, "measured": {"host": HOST._asdict()}, "estimates": estimates}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write(arguments.out, json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
