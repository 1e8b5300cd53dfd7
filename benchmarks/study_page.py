"""What a study of small_studies.py found: its records into the repository, and from these a section of
docs/results.md.

    python benchmarks/study_page.py labels --from runs/small/labels   # keep the records of a study, and write the page
    python benchmarks/study_page.py labels                              # write the page from what is kept

The scored rows of all fine-tunings are too many to keep, and intervals rest on them: so `table.json` has the readings as they
were computed beside the study. Nothing in the section is written by hand.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefinetune import catalog
from prefinetune.errors import listing
from prefinetune.files import read_records, write
from prefinetune.statistics import LEVEL, Effect, effect_on_these_targets, effect_over_targets, sign_test
from prefinetune.study_design import FURTHER, HOMOGENEOUS, NLI
from prefinetune.study_results import (
    BASE,
    Reading,
    Restarts,
    StudyResults,
    TargetGain,
    over_targets,
    range_words,
    read_group,
    read_study,
)
from prefinetune.task import Task

RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).resolve().parents[1] / "docs" / "results.md"
TITLES = {
    "labels": "A small RoBERTa: does pre-finetuning help with few labels?",
    "longer": "A small RoBERTa that reads and learns for longer: does it help now?",
    "tiny": "A tiny RoBERTa, more of everything: does it help, and does the order of batches matter?",
    "scale": "A small RoBERTa: does it take many tasks?",
    "ablations": "A small RoBERTa: which part of the method matters?",
    "tasknet": "A small RoBERTa: is it better than tasknet's recipe?",
    "minilm": "MiniLM: does it help a model that is good already?",
    "parts": "The demo's tasks: which part of the method matters?",
    "raw": "The demo's tasks: what does raw text beside the labelled tasks do?",
}  # fmt: skip
# The protocols' claims as numbers: at 128 labels the gain of the main group over each of these, on all
# targets or on those of a kind, is at least so large.
CLAIMED_AT = "128"
TASKNET = "tasknet's recipe"  # the group that tasknet_arm.py's models are
CLAIMS: Mapping[str, tuple[float, Sequence[tuple[str, str | None]]]] = {
    "the mean gain at 128 labels is above zero, over the base and over as much further training without labels": (
        0.0, [(BASE, None), (FURTHER, None)],
    ),
    "tasks of pairs and choice gain five points or more": (0.05, [(BASE, "pairs"), (BASE, "choice")]),
    "heterogeneous updates do at least as well as updates of one task": (0.0, [(HOMOGENEOUS, None)]),
    "many tasks do at least as well as NLI alone": (0.0, [(NLI, None)]),
    "pre-finetuning does at least as well as tasknet's recipe": (0.0, [(TASKNET, None)]),
    "many tasks in every update do at least as well as one task per update": (0.0, [("order=batch-homogeneous", None)]),
    "many tasks in every update do at least as well as one task after another": (0.0, [("order=dataset-homogeneous", None)]),
    "losses divided by the logarithm of their outcomes do at least as well as losses as they are": (
        0.0, [("scaling=none", None)],
    ),
    "labelled tasks alone gain over the base and over as much further training, without raw text among them": (
        0.0, [(BASE, None), (FURTHER, None)],
    ),
}  # fmt: skip
VERDICTS = {
    "yes": "**yes**: every interval lies above it", "no": "**no**: an interval lies below it",
    "open": "**open**: the intervals hold it", "untested": "**not tested**: left out or not run",
}  # fmt: skip


def kind_of(task: Task) -> str:
    """The kind of problem that targets are counted by."""
    if task.family.kind != "classification":
        return task.family.kind
    return "pairs" if task.tags & {"nli", "paraphrase"} else "one text"


def protocol_of(study: str) -> Path:
    """Where stands what was decided before a study's first run."""
    return RESULTS / f"{'roberta' if study in ('labels', 'scale', 'ablations', 'tasknet') else study}-protocol.json"


# ---- records


def keep(folder: Path, machine: Mapping[str, Any]) -> Path:
    """Copy into the repository what a study found: its protocol, a line per fine-tuning, and the readings.

    Args:
        folder: of the study.
        machine: where it ran; see `throughput.machine`.
    """
    kept = RESULTS / f"study-{folder.name}"
    kept.mkdir(exist_ok=True)
    found = read_study(folder)
    table = {"machine": machine, "runs": dict(costs(found)), **found.as_dict()}
    texts = {
        "study.json": (folder / "study.json").read_text(), "table.json": json.dumps(table, ensure_ascii=False),
        "results.jsonl": (folder / "comparison" / "results.jsonl").read_text(),
    }  # fmt: skip
    for name, text in texts.items():
        for where in sysconfig.get_path("purelib"), str(folder.absolute().parent):  # where the models of packages were, and runs
            text = text.replace(where, "site-packages" if where.endswith("site-packages") else "runs/small")
        write(kept / name, text)
    return kept


def costs(found: StudyResults) -> Iterator[tuple[str, dict[str, float]]]:
    """What each pre-finetuning took, ours or one of tasknet_arm.py."""
    for name, arm in found.protocol["arms"].items():
        place = found.folder / arm["run"] if arm["run"] else Path(arm["start"])
        for one in [*read_records(place / "results.jsonl"), *read_records(place / "tasknet.json")][:1]:
            yield name, {key: one[key] for key in ("examples", "seconds")}


def read_kept(kept: Path) -> StudyResults:
    """What `keep` kept, as `read_study` gave it."""
    protocol, table = (json.loads((kept / f"{name}.json").read_text()) for name in ("study", "table"))
    groups = {name: read_group(protocol, name) for name in protocol["groups"]}
    readings, contrasts = (tuple(map(reading_of, table[key])) for key in ("readings", "contrasts"))
    restarts = tuple(
        Restarts(one["group"], one["at"], tuple(one["targets"]), effect_of(one["deviation"]),
                 effect_of(one["change"]) if one["change"] else None) for one in table["restarts"]
    )  # fmt: skip
    return StudyResults(kept, protocol, groups, readings, contrasts, restarts, tuple(table["missing"]), tuple(table["problems"]))


def reading_of(plain: Mapping[str, Any]) -> Reading:
    """The reading that `study_results.as_plain` made plain."""
    targets = []
    for one in plain["targets"]:
        arrays = {name: np.array(one[name], dtype=float) for name in ("scores", "control", "gains")}  # null is nan
        others = {name: (ours, theirs) for name, (ours, theirs) in one["others"].items()}
        targets.append(TargetGain(**{**one, **arrays, "effect": effect_of(one["effect"]), "others": others}))
    tuples = {name: tuple(plain[name]) for name in ("members", "seeds")}
    kept = {name: value for name, value in plain.items() if name != "on_these_targets"}  # which follows from the others
    return Reading(**{**kept, **tuples, "targets": tuple(targets), "effect": effect_of(plain["effect"])})


def effect_of(plain: Mapping[str, Any]) -> Effect:
    return Effect(**{**plain, "differences": tuple(plain["differences"])})


# ---- the section


def section(kept: Path, about: Mapping[str, Any], kinds: Mapping[str, str]) -> str:
    """A study as Markdown, harm first.

    Args:
        kept: its records.
        about: the protocol that stood before the first run.
        kinds: target -> kind of problem.
    """
    found, records = read_kept(kept), read_records(kept / "results.jsonl")
    beside = json.loads((kept / "table.json").read_text())
    name = kept.name.removeprefix("study-")
    parts = [f"## {TITLES[name]}", origin(kept, protocol_of(name), found), *bullets(found.sentences())]
    if name not in ("scale", "ablations", "tasknet"):
        later = ", the last before the second sitting" if "second sitting" in about else ""
        parts += [f"What was claimed before the first run{later}:", claims(found, about["claims"], kinds)]
    for at in found.labels:
        parts += [f"### With {at} labels", *at_labels(found, at, kinds), *macro_f1(found, at, records)]
    parts += ["### What it is of", *setting(found, about, records, beside["machine"], beside["runs"])]
    return "\n\n".join(parts) + "\n"


def origin(kept: Path, protocol: Path, found: StudyResults) -> str:
    without_rows = any(target.row_deviation is None for reading in found.readings for target in reading.targets)
    lacking = ", here without what test rows add, which would make it wider" if without_rows else ""
    return (
        "Written by [`benchmarks/study_page.py`](../benchmarks/study_page.py) from "
        f"[`{kept.name}`](../benchmarks/results/{kept.name}/); protocol and claims "
        f"([`{protocol.name}`](../benchmarks/results/{protocol.name})) were in the repository before the first run. Scores are "
        f"each task's own metric, on its test rows; intervals, in brackets, are of {LEVEL:.0%}, over targets, checkpoints, seeds "
        "and rows: what a further target may expect. The one *for these very targets* leaves these as they are"
        f"{lacking} ([evidence.md](evidence.md))."
    )


def at_labels(found: StudyResults, at: str, kinds: Mapping[str, str]) -> list[str]:
    """Everything that was read at one label count."""
    readings, main = found.at(at), main_group(found)
    contrasts = sorted((one for one in found.contrasts if one.at == at), key=lambda one: one.effect.mean)
    parts = ["Mean gain over the untouched base, the largest loss first:", group_table(readings, found)]
    if contrasts:
        parts += ["The same rows from one group and from another:", contrast_table(contrasts)]
    if whole := found.reading(main, at):
        parts += [f"Every target from *{main}*, the largest loss first:", target_table(whole, kinds)]
        if unlearned := [one.task for one in whole.targets if is_unlearned(one)]:
            told = "targets are within a point of the majority class from both starts: nothing was learned that could be compared"
            parts.append(f"{len(unlearned)} of {len(whole.targets)} {told} ({listing(unlearned)}).")
    parts += ["Gains over the base by kind of problem:", kind_table(readings, kinds)]
    if restarts := [one for one in found.restarts if one.at == at]:
        told = "Standard deviation between fine-tunings that differ in their seed alone, on the mean over targets:"
        parts += [told, restart_table(restarts)]
    return parts


def macro_f1(found: StudyResults, at: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same by macro-F1, which a model that gives the most frequent answer does not get: a line per reading."""
    rates = {one["task"]: one["learning_rate"] for one in records if one["arm"] != BASE}  # the base was tried at others too
    cells = {
        (one["arm"], one["task"], one["seed"]): one["scores"]["macro_f1"] for one in records
        if one["metric"] == "accuracy" and "macro_f1" in one["scores"] and str(one["labels"]) == at
        and one["learning_rate"] == rates.get(one["task"])
    }  # fmt: skip
    rows = []
    for one in (*found.at(at), *(other for other in found.contrasts if other.at == at)):
        ours = [found.groups[one.group].arms[member] for member in one.members]
        arms = {} if one.against == BASE else found.groups[one.against].arms
        theirs = [arms[member] for member in one.members] if one.paired else [*arms.values()] or [BASE]
        tasks = [
            target.task for target in one.targets
            if all((arm, target.task, seed) in cells for arm in (*ours, *theirs) for seed in one.seeds)
        ]  # fmt: skip
        if len(tasks) < 2:
            continue
        treated, control = (
            np.array([[[cells[arm, task, seed] for seed in one.seeds] for arm in side] for task in tasks])
            for side in (ours, theirs)
        )
        over = effect_over_targets(treated.mean(axis=2), control.mean(axis=2), one.paired)
        here = effect_on_these_targets(treated, control, one.paired, None)
        gained, lost, p = sign_test(over.differences)
        these = f"{here.low:+.3f} to {here.high:+.3f}" if here.low is not None else ""
        rows.append((one.group, one.against, len(tasks), interval(over), these, lost, gained, chance(p)))
    if not rows:
        return []
    titles = ("group", "against", "targets", "gain in macro-F1", "for these very targets", "lost", "gained", "p (signs)")
    told = (
        "The same by macro-F1 (in no claim), on the targets that are scored by accuracy; *for these very targets* without what "
        "test rows add:"
    )
    return [told, table(titles, rows)]


def main_group(found: StudyResults) -> str:
    """What the study is about."""
    return next(name for name, group in found.groups.items() if group.role == "main")


def claims(found: StudyResults, claimed: Sequence[str], kinds: Mapping[str, str]) -> str:
    rows = []
    for claim in claimed:
        least, places = CLAIMS[claim]
        effects = [(against, kind, effect_on(found, against, kind, kinds)) for against, kind in places]
        told = [
            f"over {against}{f', {kind}' if kind else ''}: {interval(effect) if effect else 'not run'}"
            for against, kind, effect in effects
        ]
        verdict = judge([effect for *_, effect in effects], least)
        rows.append((claim, f"{least:+.2f}", VERDICTS[verdict], "; ".join(told)))
    return table(("claim", "least gain", "does it hold?", "what was found"), rows)


def effect_on(found: StudyResults, against: str, kind: str | None, kinds: Mapping[str, str]) -> Effect | None:
    """What pre-finetuning gained on the targets of a kind (None: on all); None where that was not run."""
    reading = found.reading(main_group(found), CLAIMED_AT, against)
    if reading is None or kind is None:
        return reading.effect if reading else None
    return by_kind(reading, kinds).get(kind)


def judge(effects: Sequence[Effect | None], least: float) -> str:
    """Whether every true gain is at least so large: yes where all intervals lie above that, no where one lies below."""
    if any(effect is None or effect.low is None for effect in effects):
        return "untested"
    if any(effect.high < least for effect in effects):
        return "no"
    return "yes" if all(effect.low > least for effect in effects) else "open"


def by_kind(reading: Reading, kinds: Mapping[str, str]) -> dict[str, Effect]:
    """The mean over the targets of each kind of problem."""
    found: dict[str, list[TargetGain]] = {}
    for target in sorted(reading.targets, key=lambda target: list(kinds).index(target.task)):
        found.setdefault(kinds[target.task], []).append(target)
    return {kind: over_targets(targets, reading.paired) for kind, targets in found.items()}


def group_table(readings: Sequence[Reading], found: StudyResults) -> str:
    titles = (
        "group",
        "what it is",
        "checkpoints",
        "gain over the base",
        "for these very targets",
        "lost",
        "gained",
        "p (signs)",
        "detectable",
        "hurt (Holm)",
    )
    return table(titles, [
        (one.group, found.groups[one.group].told, len(one.members), interval(one.effect), range_words(one), one.lost, one.gained,
         chance(one.sign_p), points(one.effect.detectable), listing(target.task for target in one.harmed) or "none")
        for one in readings
    ])  # fmt: skip


def contrast_table(contrasts: Sequence[Reading]) -> str:
    titles = ("group", "against", "gain over that", "for these very targets", "lost", "gained", "p (signs)", "detectable")
    return table(titles, [
        (one.group, one.against, interval(one.effect), range_words(one), one.lost, one.gained, chance(one.sign_p),
         points(one.effect.detectable)) for one in contrasts
    ])  # fmt: skip


def target_table(reading: Reading, kinds: Mapping[str, str]) -> str:
    titles = ("target", "kind", "metric", "majority", "base", "pre-finetuned", "macro-F1", "gain", "p (Holm)")
    return table(titles, [
        (one.task, kinds[one.task], one.metric, points(one.majority),
         points(np.mean(one.means[1])), points(np.mean(one.means[0])),
         "{1:.3f} to {0:.3f}".format(*one.others["macro_f1"]) if "macro_f1" in one.others else "", interval(one.effect),
         chance(one.adjusted))
        for one in reading.targets
    ])  # fmt: skip


def is_unlearned(target: TargetGain) -> bool:
    """Whether always giving the most frequent answer does about as well as either side."""
    return target.majority is not None and max(map(np.mean, target.means)) < target.majority + 0.01


def kind_table(readings: Sequence[Reading], kinds: Mapping[str, str]) -> str:
    """A row per kind of problem, a column per group."""
    profiles = [by_kind(one, kinds) for one in readings]
    there = dict.fromkeys(kind for profile in profiles for kind in profile)
    counts = {kind: max(sum(kinds[one.task] == kind for one in reading.targets) for reading in readings) for kind in there}
    rows = [
        (kind, counts[kind], *(interval(profile[kind]) if kind in profile else "" for profile in profiles))
        for kind in dict.fromkeys(kinds.values()) if kind in there
    ]  # fmt: skip
    return table(("kind", "targets", *(one.group for one in readings)), rows)


def restart_table(restarts: Sequence[Restarts]) -> str:
    return table(("group", "deviation", "change from the base's"), [
        (one.group, points(one.deviation.mean), interval(one.change) if one.change else "") for one in restarts
    ])  # fmt: skip


def setting(
    found: StudyResults, about: Mapping[str, Any], records: Sequence[Mapping[str, Any]], machine: Mapping[str, Any],
    runs: Mapping[str, Mapping[str, Any]],
) -> list[str]:  # fmt: skip
    """Model, data, seeds, budget, hardware, and what was not run."""
    protocol, made = found.protocol, about["prefinetuning"]
    seeds, rates = len(protocol["seeds"]), " or ".join(f"{rate:g}" for rate in protocol["grid"])
    costs, versions = protocol["costs"], machine["versions"]
    took = [
        f"{name} {one['seconds'] / 60:.0f} minutes ({one['examples'] / one['seconds']:.0f} examples/s)"
        for name, one in runs.items()
    ]
    cells = sum(one.get("seconds", 0.0) for one in records) / 60  # one that failed has none
    speed = f" (planned with {costs['examples_per_second']:,.0f} examples/s)" if costs["examples_per_second"] else ""
    most = f", at most {made['data']['max_rows']:,} rows of each" if "max_rows" in made["data"] else ""
    first = f"; first {examples(about['pretraining'])} of masked words" if "pretraining" in about else ""
    return [
        *bullets([
            f"Model: {about['model']}{first}. One model, of one seed.",
            f"Pre-finetuning: {len(about['sources'])} sets{most}; {examples(made)}.",
            f"Targets: {len(protocol['targets'])}; {about['rule']}.",
            f"Fine-tuning: {seeds} seeds, each of them labelled rows, order and head; {examples(about['finetuning'])}; the "
            f"rate of {rates}, chosen on the base with {len(protocol['tuned_on'])} seeds.",
            f"Budget: {protocol['budget'] or 'none'}{speed}. Pre-finetunings, {protocol['processes']} side by side: "
            f"{listing(took)}; {len(records):,} fine-tunings: {cells:.0f} minutes of training.",
            f"Machine: {machine['processor']}, {machine['processors']} cores; torch {versions['torch']}, transformers "
            f"{versions['transformers']}; precision {made['train'].get('precision', 'float32')}.",
        ]),
        *([f"A second sitting. {about['second sitting']}"] if "second sitting" in about else []),
        "Left out or not run:", *bullets(found.missing or ["nothing"]),
    ]  # fmt: skip


def examples(settings: Mapping[str, Any]) -> str:
    """How many updates of how many examples."""
    mixture = settings["mixture"]
    return f"{settings['train']['updates']:,} updates of {mixture['sub_batches'] * mixture['sub_batch_size']} examples"


# ---- words


def interval(effect: Effect) -> str:
    if effect.low is None or effect.high is None:
        return f"{effect.mean:+.3f}"
    return f"{effect.mean:+.3f} ({effect.low:+.3f} to {effect.high:+.3f})"


def points(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def chance(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def bullets(lines: Iterable[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)]


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


# ---- the page


def put_into(page: str, name: str, text: str) -> str:
    """The page with this text between the marks of a study.

    Raises:
        ValueError: the page has no such marks.
    """
    start, end = (f"<!-- {mark} -->" for mark in (f"study {name}", f"end of study {name}"))
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page has no {start} with an {end} behind it")
    return f"{before}{start}\n{text}{end}{after}"


def section_of(name: str) -> str:
    """A study's section from what is kept of it."""
    about = json.loads(protocol_of(name).read_text())
    kinds = about.get("kinds") or {target: kind_of(catalog()[target]) for target in about["targets"]}
    return section(RESULTS / f"study-{name}", about, kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TITLES, help="what the study's folder is called")
    parser.add_argument("--from", dest="folder", type=Path, help="that folder: keep its records first")
    given = parser.parse_args()
    if given.folder:
        from throughput import machine

        keep(given.folder, machine("cpu"))
    write(PAGE, put_into(PAGE.read_text(), given.name, section_of(given.name)))


if __name__ == "__main__":
    main()
