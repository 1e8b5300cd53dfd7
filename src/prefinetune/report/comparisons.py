"""The sections of a comparison: what it justifies, every target with its losses first, its charts, what was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from prefinetune.evidence import Comparison, Effect, Line, planned_cells
from prefinetune.report.charts import GROUPS, arm_sign, by_gain, gain_chart, labels_words, mean_gain, score_panels
from prefinetune.report.markup import Markup, listed, markup, tag
from prefinetune.report.page import Page
from prefinetune.report.parts import counted, effect_cells, heading, names, number, short, shown_line, table, task_cell
from prefinetune.report.read import Compared, starts

MOST_PANELS = 11  # small multiples shown before the reader asks for all: with their mean, full rows of two, three or four
TERMS = (
    (
        "95 % interval",
        "The differences that are compatible with what was measured: for a target, given its few seeds and its test rows; for "
        "the mean, given how much the targets differ. Of such intervals 95 in 100 hold the true difference. Where it includes "
        "zero, this comparison cannot tell a gain from a loss.",
    ),
    (
        "Probability of help",
        "How probable it is, from the same seeds and rows, that the true difference is above zero. 50 % says nothing either way.",
    ),
    (
        "Smallest detectable effect",
        "The smallest true difference that a comparison of this size would show, with an interval that excludes zero, four times "
        "in five. Where it is 0.05, a gain of 0.02 is likely to be missed.",
    ),
)

ONE_CHECKPOINT = (
    "The pre-finetuned arm is one checkpoint, from one pre-finetuning. How much another pre-finetuning with another seed would "
    "differ is not known and is in none of the intervals."
)

MANY_LINES = (
    "Among many targets some intervals exclude zero by chance: of twenty without any difference, one. What the comparison says "
    "as a whole is in the sentences at the top."
)


def verdict(page: Page, compared: Compared) -> Markup:
    comparison, progress = compared.comparison, compared.progress
    several, missing = len(page.found.comparisons) > 1, f"#{page.place(compared)}-missing"
    sentences = comparison.sentences() or ["No cell of this comparison can be compared yet, so nothing can be said."]
    parts: list[Any] = [tag("p", compared.name, class_="kicker")] if several else []
    parts += [tag("p", sentence, class_="lead") for sentence in sentences]
    if progress.done < progress.planned:
        parts.append(
            tag("p", f"This comparison is not finished: {progress.done:,} of {progress.planned:,} planned trainings are "
                "done, and the numbers will change. ", tag("a", "What was not run", href=missing), ".",
                class_="notice")
        )  # fmt: skip
    elif comparison.missing:
        parts.append(
            tag("p", "Not everything was run: ", tag("a", "what was left out", href=missing), ".",
                class_="notice")
        )  # fmt: skip
    parts.append(tag("p", ONE_CHECKPOINT, class_="caveat"))
    return tag("div", parts, class_="verdict")


def definitions(page: Page) -> Markup:
    terms = [tag("div", tag("dt", term), tag("dd", words)) for term, words in TERMS]
    return page.section("How to read the numbers", tag("dl", terms), tag("p", MANY_LINES))


def targets(page: Page, compared: Compared) -> Markup:
    """Every target, those that lost first."""
    comparison = compared.comparison
    arms = list(comparison.plan["arms"])
    start = starts(comparison.plan).get(comparison.treated)
    trained = {task.name for run in page.found.runs if run.folder.resolve() == start for task in run.tasks}
    familiar = [name for name in comparison.plan["tasks"] if name in trained]
    head = tag(
        "thead",
        tag(
            "tr",
            heading("Target"), tag("th", "Gain", scope="col", class_="gained number"), heading("95 % interval", right=True),
            heading("Probability of help", right=True), heading("Smallest detectable effect", right=True),
            [heading(arm, right=True) for arm in arms], heading("Majority", right=True),
        ),
    )  # fmt: skip
    bodies = [target_rows(page, comparison, at, control, arms) for at, control in page.views.of(comparison)]
    origins = [
        markup(tag("b", arm), f": starts from {about.get('start', 'an unknown model') if isinstance(about, Mapping) else about}")
        for arm, about in comparison.plan["arms"].items()
    ]
    return page.section(
        f"Targets, losses first{page.of(compared)}",
        tag("p", "Gain is the score of the pre-finetuned arm minus that of the arm chosen above under “Compared with”, "
            "averaged over seeds; both arms saw the same labelled examples and made the same number of updates. Small "
            "numbers are the seeds. Majority is the score of always giving the most frequent answer; an arm at it has "
            "learned nothing."),
        tag("p", f"In the suite of the pre-finetuned run itself: {names(familiar)}. What it gains on these is not transfer "
            "to new tasks.", class_="notice") if familiar else None,
        table(head, bodies),
        tag("details", tag("summary", "The arms"), listed(origins)),
    )  # fmt: skip


def target_rows(page: Page, comparison: Comparison, at: str, control: str, arms: Sequence[str]) -> Markup:
    """One view of the table: lost, unchanged, gained, each under its own heading."""
    pairs = by_gain(comparison, at, control)
    width = 6 + len(arms)
    rows: list[Any] = []
    if mean := mean_gain(comparison, at, control):
        name = tag("th", tag("b", f"Mean over {len(pairs)} targets"), scope="row")
        means = [mean_of_arm([line for line, _ in pairs], arm) for arm in arms]
        rows.append(tag("tr", name, effect_cells(mean, seeds=False), means, tag("td"), class_="mean"))
    for words, mine in (
        ("Lost", [pair for pair in pairs if pair[1].mean < 0]),
        ("Unchanged", [pair for pair in pairs if pair[1].mean == 0]),
        ("Gained", [pair for pair in pairs if pair[1].mean > 0]),
    ):
        if not mine and words == "Unchanged":
            continue
        about = f"{words}: {len(mine)} of {len(pairs)} with {labels_words(at)}, against {control}"
        rows.append(tag("tr", tag("th", tag("span", about), colspan=width, scope="rowgroup"), class_="group"))
        rows += [target_row(page, line, effect, arms) for line, effect in mine]
    paired = [line for line, _ in pairs]
    rest = [line for line in comparison.at(at) if line not in paired]
    if rest:
        about = f"Not compared yet: {len(rest)} with {labels_words(at)}, against {control}"
        rows.append(tag("tr", tag("th", tag("span", about), colspan=width, scope="rowgroup"), class_="group"))
        rows += [target_row(page, line, None, arms) for line in rest]
    return tag("tbody", rows, data_view=page.views.key(at, control))


def target_row(page: Page, line: Line, effect: Effect | None, arms: Sequence[str]) -> Markup:
    size = f", {line.labels:,} examples" if line.at == "all" else ""
    name = task_cell(line.task, f"{line.family}, {line.metric}{size}")
    majority = "" if line.majority is None else f"{line.majority:.3f}"
    scores = [arm_cell(list(line.scores.get(arm, {}).values())) for arm in arms]
    effects = effect_cells(effect) if effect else markup([tag("td")] * 4)
    return tag("tr", name, effects, scores, number(majority), data_task=page.tasks.number(line.task, line.family))


def gains(page: Page, compared: Compared) -> Markup:
    legend = [
        markup(tag("span", sign, class_="sign", style=f"color:var({colour})", aria_hidden="true"), " ", words)
        for words, _, sign, colour in GROUPS
    ]
    legend.append(markup(tag("span", "•", class_="sign", aria_hidden="true"), " one seed"))
    words = "Each row is a target: the triangle is its mean gain, the line its 95 % interval, and each dot one seed."
    spec = gain_chart(compared.comparison, page.views, page.tasks)
    return page.section(f"Gain per target{page.of(compared)}", page.noted(spec, words, listed(legend, class_="legend")))


def against_labels(page: Page, compared: Compared) -> Markup:
    """A small multiple per target."""
    comparison = compared.comparison
    panels = score_panels(comparison)
    if not panels:
        return Markup("")
    legend = []
    for arm in comparison.plan["arms"]:
        colour, sign, _ = arm_sign(comparison, arm)
        legend.append(markup(tag("span", sign, class_="sign", style=f"color:var({colour})", aria_hidden="true"), f" {arm}"))
    figures = []
    for line, size, spec in panels:
        title = line.task if line else f"Mean over {size} targets"
        about = f"{line.family}, {line.metric}" if line else "their scores, as they are"
        task = page.tasks.number(line.task, line.family) if line else None
        words = f"{title}: score against number of labels, per arm"
        figures.append(
            tag("figure", tag("figcaption", tag("b", title), tag("small", about)), page.chart(spec, words), data_task=task)
        )
    counts = "Each panel is a target: its score (higher is better) by number of labels, a line per arm, a small dot per seed."
    return page.section(
        f"Score against labels{page.of(compared)}",
        tag("p", counts, " The scales differ between panels."),
        listed(legend, class_="legend"),
        shown_line(),
        tag("div", figures, class_="panels", data_most=MOST_PANELS),
    )


def not_run(page: Page, compared: Compared) -> Markup:
    progress = compared.progress
    missing = missing_words(compared.comparison)
    told = f"{progress.done:,} of {progress.planned:,} planned trainings are done, those that choose learning rates included."
    body = listed(missing) if missing else tag("p", "Everything that was planned was run.")
    return page.section(f"What was not run{page.of(compared)}", tag("p", told), body, anchor=f"{page.place(compared)}-missing")


def arm_cell(scores: Sequence[float]) -> Markup:
    """The mean of an arm, and every seed under it."""
    if not scores:
        return tag("td")
    seeds = tag("small", " ".join(short(score) for score in scores)) if len(scores) > 1 else None
    return number(f"{sum(scores) / len(scores):.3f}", seeds)


def mean_of_arm(lines: Sequence[Line], arm: str) -> Markup:
    """The mean over targets, where the arm has all of them."""
    if not all(arm in line.scores for line in lines):
        return tag("td")
    return number(f"{sum(line.mean(arm) for line in lines) / len(lines):.3f}")


def missing_words(comparison: Comparison) -> list[str]:
    """What was planned and not run, grouped: hundreds of cells in a few sentences."""
    plan, missing = comparison.plan, set(comparison.missing)
    sentences = []
    waiting: dict[str, list[str]] = {}
    cells: dict[tuple[str, str, str], dict[str, set[int]]] = {}  # (label count, arm, what is wrong) -> task -> seeds
    failed = {text.partition(": it failed (")[0]: text for text in missing if ": it failed (" in text}
    for task, at, _ in planned_cells(plan):
        if f"{task}, {at} labels: the learning rate is not chosen yet" in missing:
            waiting.setdefault(at, []).append(task)
        for arm, seed in product(plan["arms"], plan["seeds"]):
            cell = f"{task}, {at} labels, {arm}, seed {seed}"
            if cell in missing or cell in failed:
                wrong = "failed on" if cell in failed else "lacks"
                cells.setdefault((at, arm, wrong), {}).setdefault(task, set()).add(seed)
    for at, tasks in waiting.items():
        sentences.append(f"With {labels_words(at)}, the learning rate is not chosen yet for {counted(tasks)}.")
    for (at, arm, wrong), by_task in cells.items():
        seeds = sorted(set().union(*by_task.values()))
        said = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        sentences.append(f"With {labels_words(at)}, arm {arm} {wrong} {counted(list(by_task))} ({said}).")
    return sentences + list(plan.get("left_out", ()))
