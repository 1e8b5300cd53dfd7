"""The part of the page that is about a study: groups against the base and one another, curves, targets, runs, what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prefinetune.affinity import Affinity
from prefinetune.report.charts import GROUPS, TaskList, labels_words, loss_chart, loss_lines
from prefinetune.report.markup import Markup, listed, markup, tag
from prefinetune.report.page import Page
from prefinetune.report.parts import (
    chance,
    counted,
    effect_cells,
    fixed,
    heading,
    names,
    number,
    short,
    shown_line,
    side_by_side,
    table,
    task_cell,
)
from prefinetune.report.read import Run, Studied, flat
from prefinetune.report.study_charts import controls_of, curve_chart, forest_chart, map_chart, score_chart, sign_of
from prefinetune.statistics import Effect
from prefinetune.study_results import BASE, Reading, Restarts, StudyResults, TargetGain, range_words

QUESTIONS = {
    "scale": "How many tasks does it take?",
    "labels": "With how many labels does it help?",
    "ablations": "What matters in the recipe?",
    "transfer": "Which source helps which target?",
}
AFFINITY = "Which tasks pull together, and which hurt"
DEEPEST = 50  # per cent of the colour in the strongest cell: text on it stays readable
MOST_PANELS = 12  # small multiples shown before the reader asks for all

READING = (
    "Gain is the score from a pre-finetuning minus the score from the untouched base: same target, labelled rows and seed. "
    "The interval of a mean allows for other targets, other checkpoints and other seeds; the one for these very targets, and "
    "that of a single target, for other checkpoints, seeds and test rows."
)


def study_verdict(page: Page, studied: Studied) -> Markup:
    """What a study justifies, harm first, and at once what it lacks."""
    study = studied.results
    parts: list[Any] = [tag("p", f"Study of {study.kind} · {studied.name}", class_="kicker")]
    sentences = study.sentences() or ["No group of this study can be compared yet, so nothing can be said."]
    parts += [tag("p", sentence, class_="said") for sentence in sentences]
    if study.missing:
        words = f"Not everything was run: {len(study.missing)} line{'s' * (len(study.missing) > 1)} in "
        parts.append(tag("p", words, tag("a", "what was left out", href=f"#{page.study_place(studied)}-missing"), ".",
                         class_="notice"))  # fmt: skip
    return tag("div", parts, class_="verdict")


def study_sections(page: Page, studied: Studied) -> Markup:
    """Everything about a study, with its question as the title of the first section."""
    study, place = studied.results, page.study_place(studied)
    title = QUESTIONS.get(study.kind, study.kind)
    of = f" ({studied.name})" if len(page.found.studies) > 1 else ""
    parts: list[Any] = []
    if study.readings:
        parts.append(page.section(f"{title}{of}", groups(page, study), anchor=place))
        parts.append(curves(page, studied, of))
        parts.append(page.section(f"Gain by target{of}", gains_by_target(page, study)))
        parts.append(every_target(page, study, of))
    parts.append(runs(page, studied, of))
    parts.append(affinities(page, studied, of))
    parts.append(missing(page, studied, of))
    parts.append(protocol(page, study, of))
    return markup(parts)


# ---- every group, harm first


def groups(page: Page, study: StudyResults) -> Markup:
    """Intervals at a glance, then the numbers: every group against the base, and every contrast."""
    told = [
        markup(tag("b", one.name), f" ({one.role})" * (one.role != "point"), f": {one.told}") for one in study.groups.values()
    ]
    legend = [
        markup(tag("span", sign, class_="sign", style=f"color:var({colour})", aria_hidden="true"), " ", words)
        for words, _, sign, colour in GROUPS
    ]
    legend.append(markup(tag("span", "•", class_="sign", aria_hidden="true"), " one checkpoint and one seed, over the targets"))
    parts: list[Any] = [tag("p", READING)]
    for title, readings in (
        ("Against the untouched base, losses first", study.readings),
        ("Group against group, losses first", study.contrasts),
    ):
        spec = forest_chart(study, page.views.labels, readings)
        if spec is None:
            continue
        words = (
            "Each row is a group, controls included: the triangle is its mean gain over the targets, the line its 95 % interval."
        )
        if readings is study.contrasts:
            words = "Each row is a difference of two groups over the same targets; left of zero the first is behind."
        parts += [
            tag("h3", title),
            page.noted(spec, words, listed(legend, class_="legend")),
            reading_table(page, study, readings),
        ]
    return markup(parts, tag("details", tag("summary", "What the groups are"), listed(told)))


def about(study: StudyResults, reading: Reading) -> str:
    """What stands below a group's name: its role where it has one, what it is read against, and how many checkpoints."""
    role, count = study.groups[reading.group].role, len(reading.members)
    parts = [role if role != "point" else ""] if reading.against == BASE else [f"against {reading.against}"]
    return ", ".join(part for part in (*parts, f"{count} checkpoint{'s' * (count > 1)}") if part)


def by_view(page: Page, study: StudyResults, rows: Callable[[str], Sequence[Any]], width: int) -> list[Markup]:
    """A table's bodies, one per label count, each under its name."""
    bodies = []
    for at in study.labels:
        if found := rows(at):
            told = tag("th", tag("span", f"With {labels_words(at)}"), colspan=width, scope="rowgroup")
            bodies.append(tag("tbody", tag("tr", told, class_="group told"), found, data_view=page.views.labels.index(at)))
    return bodies


def reading_table(page: Page, study: StudyResults, readings: Iterable[Reading]) -> Markup:
    """Numbers of every reading: its mean over targets, how many gained and lost, which are surely harmed, how it varies."""
    readings = sorted(readings, key=lambda one: one.effect.mean)
    restarts = {(one.group, one.at): one for one in study.restarts}
    against_base = all(one.against == BASE for one in readings)
    titles = ("95 % interval", "Probability of help", "Smallest detectable effect", "For these very targets", "Gained, lost",
              "Sign test p")  # fmt: skip
    head = tag(
        "thead",
        tag("tr", heading("Group"), tag("th", "Gain", scope="col", class_="gained number"),
            [heading(words, right=True) for words in titles], heading("Surely harmed"),
            heading("Deviation of seeds", right=True) if against_base else None),
    )  # fmt: skip

    def rows(at: str) -> list[Markup]:
        found = []
        for one in readings:
            if one.at != at:
                continue
            cells = [effect_cells(one.effect, seeds=False), number(range_words(one)),
                     number(one.gained, tag("small", f"{one.lost} lost")), number(chance(one.sign_p)),
                     tag("td", names([target.task for target in one.harmed], 4))]  # fmt: skip
            if against_base:
                cells.append(restarts_cell(restarts.get((one.group, at))))
            found.append(tag("tr", task_cell(one.group, about(study, one)), cells))
        base = restarts.get((BASE, at))
        if against_base and base:
            found.append(
                tag("tr", task_cell(BASE, "the untouched model"), [tag("td")] * 8, restarts_cell(base))
            )  # fmt: skip
        return found

    return table(head, by_view(page, study, rows, 10 if against_base else 9))


def restarts_cell(restarts: Restarts | None) -> Markup:
    if restarts is None:
        return tag("td")
    change = restarts.change
    words = None if change is None else tag("small", f"{change.mean:+z.3f} on the base's")
    return number(fixed(restarts.deviation.mean), words)


def interval_words(effect: Effect) -> str:
    return "" if effect.low is None or effect.high is None else f" ({effect.low:+z.3f} to {effect.high:+z.3f})"


# ---- curves


def curves(page: Page, studied: Studied, of: str) -> Markup | None:
    """Gain against the number of tasks, or score against labels; then the same per target. None where there is no curve."""
    study = studied.results
    counts = {task: entry["labels"] for task, entry in studied.progress.plan["tasks"].items()} if studied.progress else {}
    if study.kind == "labels":
        title = "Score against labels"
        words = (
            "Score (higher is better) by number of labelled examples, on a log scale: a line per group, a small dot per "
            "fine-tuning, a hollow circle per checkpoint. The mean is over the targets that have every group at every label "
            "count."
        )
        signs = [sign_of(index) for index in range(len(study.groups) + 1)]
        legend = signed(zip([f"{BASE}, untouched", *study.groups], signs, strict=True))
    else:
        title = "Gain against number of tasks"
        words = (
            "Mean gain over the untouched base, which is the line at zero, by number of tasks on a log scale: a line per budget "
            "with 95 % intervals, a hollow circle per checkpoint, a small dot per fine-tuning. Controls are dotted lines, with "
            "their own dots at the right."
        )
        keys = [*study.series, *(f"{name} (control)" for name in controls_of(study))]
        legend = signed((key, sign_of(index + 1)) for index, key in enumerate(keys))

    def make(task: str | None) -> dict[str, Any] | None:
        return score_chart(study, counts, task) if study.kind == "labels" else curve_chart(study, page.views.labels, task)

    spec = make(None)
    if spec is None:
        return None
    figures = []
    for task, family in panels_of(study):
        panel = make(task)
        if panel is not None:
            figure = tag("figcaption", tag("b", task), tag("small", family))
            chart = page.chart(panel, f"{task}: {title.lower()}")
            figures.append(tag("figure", figure, chart, data_task=page.tasks.number(task, family)))
    return page.section(
        f"{title}{of}",
        page.noted(spec, words, listed(legend, class_="legend")),
        tag("h3", "The same per target"),
        tag("p", "The scales differ between panels; signs and colours are those above."),
        shown_line(),
        tag("div", figures, class_="panels", data_most=MOST_PANELS),
    )


def signed(items: Iterable[tuple[str, tuple[str, str, str]]]) -> list[Markup]:
    return [
        markup(tag("span", letter, class_="sign", style=f"color:var({colour})", aria_hidden="true"), f" {words}")
        for words, (colour, letter, _) in items
    ]


def panels_of(study: StudyResults) -> list[tuple[str, str]]:
    """(target, family), that with the largest loss of any group at any label count first."""
    worst: dict[tuple[str, str], float] = {}
    for reading in study.readings:
        for target in reading.targets:
            key = (target.task, target.family)
            worst[key] = min(worst.get(key, np.inf), target.effect.mean)
    return sorted(worst, key=lambda key: worst[key])


# ---- targets and groups, in colours


def gains_by_target(page: Page, study: StudyResults) -> Markup:
    """A heat map of gains over the base, which is a table: targets against groups, or sources against targets."""
    sources = study.kind == "transfer"
    every = {(target.task, target.family): target.metric for one in study.readings for target in one.targets}
    gains = [target.effect.mean for one in study.readings for target in one.targets]
    most = max(map(abs, gains), default=0.0)
    found: dict[tuple[str, str, str], TargetGain] = {
        (one.at, one.group, target.task): target for one in study.readings for target in one.targets
    }
    columns = [name for name in in_order(study) if any(one.group == name for one in study.readings)]
    targets = sorted(every)

    def cell(at: str, group: str, task: str) -> Markup:
        return heat_cell(found.get((at, group, task)), most)

    if sources:
        head = tag("tr", heading("Source"), [target_heading(page, *one) for one in targets], mean_heading())
    else:
        head = tag("tr", heading("Target"), [heading(name, right=True) for name in columns])

    def rows(at: str) -> list[Markup]:
        readings = {one.group: one for one in study.at(at)}
        if sources:  # the source that hurts most first
            return [
                tag("tr", task_cell(group, about(study, one)), [cell(at, group, task) for task, _ in targets],
                    number(tag("b", f"{one.effect.mean:+z.3f}"), tag("small", interval_words(one.effect).strip(" ()"))),
                    data_task=page.tasks.number(group))
                for group, one in readings.items()
            ]  # fmt: skip
        worst = {one: min(found[key].effect.mean for key in found if key[0] == at and key[2] == one[0]) for one in targets
                 if any(key[0] == at and key[2] == one[0] for key in found)}  # fmt: skip
        mean = [number(tag("b", f"{readings[name].effect.mean:+z.3f}")) if name in readings else tag("td") for name in columns]
        lines = [tag("tr", tag("th", tag("b", "Mean over targets"), scope="row"), mean, class_="mean")]
        return lines + [
            tag("tr", task_cell(task, f"{family}, {every[task, family]}"), [cell(at, name, task) for name in columns],
                data_task=page.tasks.number(task, family))
            for task, family in sorted(worst, key=lambda one: worst[one])
        ]  # fmt: skip

    width = len(targets) + 2 if sources else len(columns) + 1
    words = (
        "Each cell is a gain over the untouched base, losses orange and gains blue. ▼ and ▲ stand where it is clear after Holm's "
        "correction over the targets of its group; all others may be chance."
    )
    listing = harmed_list(study)
    return markup(
        tag("p", words),
        scale(most, soft=True),
        table(tag("thead", head), by_view(page, study, rows, width), kinds="sortable crossed" if sources else "sortable"),
        [tag("h3", "Clearly harmed, after Holm's correction"), listing] if listing else
        tag("p", "No target is clearly harmed by any group after Holm's correction.", class_="caveat"),
    )  # fmt: skip


def in_order(study: StudyResults) -> list[str]:
    """The groups along their curves, then those on none, then the controls."""
    series = study.series

    def key(name: str) -> tuple[bool, int, float]:
        group = study.groups[name]
        place = series.index(group.series) if group.series else len(series)
        return group.role == "control", place, np.inf if group.x is None else group.x

    return sorted(study.groups, key=key)


def target_heading(page: Page, task: str, family: str) -> Markup:
    return tag("th", task, tag("small", family), scope="col", class_="number", data_task=page.tasks.number(task, family))


def mean_heading() -> Markup:
    return tag("th", "Mean over targets", tag("small", "95 % interval"), scope="col", class_="number")


def heat_cell(target: TargetGain | None, most: float) -> Markup:
    """A gain on a ground whose colour is the deeper the larger it is, of the strongest of the table."""
    if target is None:
        return tag("td", tag("small", "not run"), class_="number")
    mean = target.effect.mean
    depth = round(DEEPEST * abs(mean) / most) if most else 0
    clear = target.adjusted is not None and target.adjusted < 0.05
    sign = ("▼ " if mean < 0 else "▲ ") if clear else ""
    words = f"{sign}{mean:+z.3f}"
    kind = "lost" if mean < 0 else "won"
    return tag("td", tag("b", words) if clear else words, class_=f"number {kind}", style=f"--depth:{depth}%")


def scale(most: float, digits: str = "+z.3f", soft: bool = False) -> Markup:
    """What the deepest colours mean; soft ones have text on them."""
    bar = tag("span", class_="bar", style=f"--depth:{DEEPEST if soft else 100}%", aria_hidden="true")
    return tag("p", f"{-most:{digits}} ", bar, f" {most:{digits}}", class_="scale")


def harmed_list(study: StudyResults) -> Markup | None:
    lines = [
        f"With {labels_words(one.at)}, {one.group}: "
        + names([f"{target.task} {target.effect.mean:+z.3f}{interval_words(target.effect)}" for target in one.harmed])
        for at in study.labels
        for one in study.at(at)
        if one.harmed
    ]
    return listed(lines) if lines else None


def every_target(page: Page, study: StudyResults, of: str) -> Markup:
    """Every number: a row per target and group, with each checkpoint's mean and every seed."""
    head = tag("thead", tag("tr", heading("Target"), heading("Group"), tag("th", "Gain", scope="col", class_="gained number"), [
        heading(words, right=True) for words in ("95 % interval", "Probability of help", "Smallest detectable effect",
                                                 "p, Holm-adjusted", "Base")
    ], heading("Every checkpoint, its mean and every seed")))  # fmt: skip

    def rows(at: str) -> list[Markup]:
        found = [(target, one) for one in study.at(at) for target in one.targets]
        found.sort(key=lambda pair: pair[0].effect.mean)
        return [target_row(page, target, one) for target, one in found]

    return page.section(
        f"Every target and group{of}",
        tag("details", tag("summary", "The numbers behind the colours, losses first"),
            table(head, by_view(page, study, rows, 9))),
    )  # fmt: skip


def target_row(page: Page, target: TargetGain, reading: Reading) -> Markup:
    seeds = []
    for member, row in zip(reading.members, target.gains, strict=False):
        done = row[np.isfinite(row)]
        mean = f"{done.mean():+z.3f}" if len(done) else "not finished"
        seeds.append(f"{member}: {mean} ({' '.join(short(value, '+') for value in done)})")
    majority = None if target.majority is None else tag("small", f"majority {target.majority:.3f}")
    control = target.control[np.isfinite(target.control)]
    return tag(
        "tr", task_cell(target.task, f"{target.family}, {target.metric}"), tag("td", reading.group),
        effect_cells(target.effect, seeds=False), number(chance(target.adjusted)),
        number(fixed(float(control.mean()) if len(control) else None), majority),
        tag("td", [tag("small", line) for line in seeds], class_="seeds"),
        data_task=page.tasks.number(target.task, target.family),
    )  # fmt: skip


# ---- runs, what is missing, how it was made


def runs(page: Page, studied: Studied, of: str) -> Markup | None:
    """Every pre-finetuning, and folded away its losses and affinities."""
    if not studied.runs:
        return None
    arms = studied.results.protocol["arms"]
    head = tag("thead", tag("tr", heading("Checkpoint"), heading("Run"), heading("State"), [
        heading(words, right=True) for words in ("Updates", "Tasks", "Tasks not learned", "Mean validation score")
    ]))  # fmt: skip
    rows, folded = [], []
    for place, run in studied.runs.items():
        mine = [name for name, arm in arms.items() if arm["run"] == place]
        lines = loss_lines(run)
        stuck = [task for task, (_, losses) in lines.items() if losses and losses[-1] is not None and losses[-1] >= 1]
        rows.append(
            tag("tr", task_cell(names(mine, 3), ""), tag("td", place, class_="code"), tag("td", run.state),
                number(f"{run.updates:,}"), number(f"{len(run.tasks):,}"), number(f"{len(stuck):,}"), number(fixed(run.score)))
        )  # fmt: skip
        if inside := losses_of(page, run, lines):
            folded.append(tag("details", tag("summary", f"{names(mine, 3)}: losses of its tasks"), inside, class_="screen"))
    words = "A task is not learned when its last training loss is no better than a uniform guess."
    return page.section(f"Pre-finetunings{of}", tag("p", words), table(head, [tag("tbody", rows)]), folded)


def losses_of(page: Page, run: Run, lines: Mapping[str, tuple[list[int], list[float | None]]]) -> list[Any]:
    if not lines:
        return []
    families = {task.name: task.family for task in run.tasks}
    series = [(page.tasks.number(name, families.get(name, "")), line) for name, line in lines.items()]
    words = (
        "Each line is a task's training loss; at 1 it is no better than a uniform guess. The highest last losses are in colour."
    )
    return [page.noted(loss_chart(series), words, tag("ul", class_="legend lines"))]


def affinities(page: Page, studied: Studied, of: str) -> Markup | None:
    """What the sampled gradients of its checkpoints say, the first in full and the others folded away."""
    arms = studied.results.protocol["arms"]
    found: list[Any] = []
    for place, run in studied.runs.items():
        if parts := affinity_parts(page, run):
            name = names([name for name, arm in arms.items() if arm["run"] == place], 3)
            shown = [tag("h3", name), *parts] if not found else tag("details", tag("summary", name), parts, class_="screen")
            found.append(shown)
    return page.section(f"{AFFINITY}{of}", found) if found else None


def affinity_parts(page: Page, run: Run) -> list[Any]:
    """What the sampled gradients of a run say of its tasks: which hurt, a map in cluster order, and the numbers."""
    affinity = page.found.affinities.get(run.folder)
    if affinity is None:
        return []
    families = {task.name: task.family for task in run.tasks}
    order = affinity.order
    cosines = map_chart(page.tasks, families, affinity.cosines, order, order, affinity.clusters)
    parts: list[Any] = [listed([*affinity.sentences(), *affinity.cluster_sentences()])]
    words = (
        "Cosines between the gradients of tasks, in an order that puts similar ones side by side: blue pull the same way, orange "
        "against one another, and frames are clusters. The diagonal compares two samples of one task, which is as high as noise "
        "lets a cosine be."
    )
    parts += [page.noted(cosines, words, scale(cosines["most"], "+z.3g"))]
    sources = [name for name in order if name in affinity.tasks]
    judged = [name for name in order if name in affinity.targets]
    transfer = map_chart(page.tasks, families, affinity.transfer, sources, judged)
    words = (
        "By how much training on a task (row) lowered the loss of a target (column), to first order: orange raised it. What a "
        "task does to itself is left out."
    )
    parts += [page.noted(transfer, words, scale(transfer["most"], "+z.3g")), affinity_table(page.tasks, affinity, families)]
    return parts


def affinity_table(tasks: TaskList, affinity: Affinity, families: Mapping[str, str]) -> Markup:
    """A row per task of the suite, the one that hurts most first."""
    titles = ("Mean transfer to the targets", "95 % interval", "p, Holm-adjusted", "Loss of the targets without it", "Cluster")
    head = tag("thead", tag("tr", heading("Task"), [heading(words, right=True) for words in titles], heading("Clearly hurts")))
    cluster = {name: index + 1 for index, members in enumerate(affinity.clusters) for name in members}
    rows = []
    for name in sorted(affinity.tasks, key=lambda name: affinity.over_targets[name].mean):
        mine, without = affinity.over_targets[name], affinity.removal_over_targets[name]
        hurt = affinity.hurting.get(name, [])
        rows.append(
            tag("tr", task_cell(name, families.get(name, "")), number(signed_number(mine.mean)),
                number(f"{signed_number(mine.low)} to {signed_number(mine.high)}"), number(chance(mine.adjusted)),
                number(signed_number(without.mean)), number(cluster.get(name, "")), tag("td", names(hurt, 4)),
                data_task=tasks.number(name, families.get(name, "")))
        )  # fmt: skip
    return table(head, [tag("tbody", rows)])


def signed_number(value: float) -> str:
    return f"{value:+.3g}" if np.isfinite(value) else "unknown"


def missing(page: Page, studied: Studied, of: str) -> Markup:
    study, progress = studied.results, studied.progress
    told = "Its comparison has not begun."
    if progress:
        told = f"{progress.done:,} of {progress.planned:,} planned fine-tunings are done."
    body = listed(study.missing) if study.missing else tag("p", "Everything that was planned was run.")
    return page.section(f"What was left out or not run{of}", tag("p", told), body, anchor=f"{page.study_place(studied)}-missing")


def protocol(page: Page, study: StudyResults, of: str) -> Markup:
    """The protocol as it was written before the first run, without the lists that stand elsewhere."""
    told = {key: value for key, value in study.protocol.items() if key not in ("arms", "groups", "left_out", "rows")}
    told = {key: value for key, value in flat(told).items() if value not in ("", None, [], {})}
    suite = study.protocol.get("suite")
    tasks = suite.get("tasks", []) if isinstance(suite, Mapping) else []
    return page.section(
        f"Protocol{of}",
        tag("p", f"Written before the first run. Its suite has {counted(tasks) if tasks else 'no tasks'}."),
        tag("details", tag("summary", "All of it"), side_by_side(list(told), [("Value", told)])),
    )
