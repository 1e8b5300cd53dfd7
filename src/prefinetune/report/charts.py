"""What the charts show, as plain dictionaries in Plotly's terms; page.js filters, colours and draws them.

A chart is of one of four kinds. "rows": a row per task, of which the reader sees those that match the filter, or per entry of its
`names`. "lines": a line per task over time, some in colour and the others grey. "map": tasks against tasks, in colours. "plain":
as it stands. What depends on the label count and the control chosen is in `views`, by their numbers in the selectors.
Tasks are numbers in the page's list of tasks. A colour such as "--gain" is a variable of page.css: charts follow light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from prefinetune.evidence import Comparison, Line
from prefinetune.report.read import Run
from prefinetune.statistics import Effect
from prefinetune.study_results import StudyResults

MOST_ROWS = 36  # as many as fit on a printed page
MOST_LINES = 8  # as many as can be told apart
MOST_POINTS = 80  # of a line over time
MOST_STRETCHES = 32  # of a loss over time
SYMBOLS = (  # of as many lines, the base's first; page.css has a colour for each
    ("square-open", "□"), ("circle", "●"), ("diamond", "◆"), ("triangle-up", "▲"), ("cross", "✚"), ("x", "✖"), ("star", "★"),
    ("pentagon", "⬟"),
)  # fmt: skip


class TaskList:
    """The tasks of a page; charts and tables name them by their number here."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.numbers: dict[tuple[str, str], int] = {}

    def number(self, name: str, family: str = "") -> int:
        if (name, family) not in self.numbers:
            self.numbers[name, family] = len(self.entries)
            self.entries.append({"name": name, "family": family})
        return self.numbers[name, family]


class Views:
    """Which (label count, control) a reader can choose; a view's key is the two numbers page.js builds from the selectors."""

    def __init__(self, comparisons: Iterable[Comparison], studies: Iterable[StudyResults] = ()) -> None:
        self.labels = list(dict.fromkeys(at for study in studies for at in study.labels))
        self.controls: list[str] = []
        for comparison in comparisons:
            shown = {control for line in comparison.lines for control in line.effects}
            self.labels += [at for at in comparison.plan["labels"] if at not in self.labels and comparison.at(at)]
            self.controls += [name for name in comparison.controls if name in shown and name not in self.controls]

    def key(self, at: str, control: str) -> str:
        return f"{self.labels.index(at)}/{self.controls.index(control)}"

    def of(self, comparison: Comparison) -> list[tuple[str, str]]:
        """(label count, control) of a comparison that have something to show, in the order of the selectors."""
        return [(at, control) for at in self.labels for control in self.controls if by_gain(comparison, at, control)]


def plotly_text(value: Any) -> str:
    """A text as Plotly's labels show it: they read some tags, entities and line breaks."""
    return html.escape(" ".join(str(value).split()), quote=False)


def rounded(values: Iterable[float | None], digits: int = 5) -> list[float | None]:
    """Numbers without the digits nobody sees, which would be most of the page."""
    return [None if value is None or not np.isfinite(value) else round(float(value), digits) for value in values]


# ---- a comparison


def by_gain(comparison: Comparison, at: str, control: str) -> list[tuple[Line, Effect]]:
    """The lines of a view with their effects, the largest loss first; without those that came to no number."""
    found = [(line, line.effects[control]) for line in comparison.at(at) if control in line.effects]
    return sorted((pair for pair in found if math.isfinite(pair[1].mean)), key=lambda pair: pair[1].mean)


def mean_gain(comparison: Comparison, at: str, control: str) -> Effect | None:
    """The mean over the targets of a view, where there are several."""
    mean = comparison.over_tasks(at, control)
    return mean if mean is not None and math.isfinite(mean.mean) and len(by_gain(comparison, at, control)) > 1 else None


GROUPS = (
    ("clear loss", "triangle-down", "▼", "--loss"),
    ("loss, interval includes zero", "triangle-down-open", "▽", "--loss"),
    ("gain, interval includes zero", "triangle-up-open", "△", "--gain"),
    ("clear gain", "triangle-up", "▲", "--gain"),
)


def group_of(effect: Effect) -> int:
    """Index into GROUPS."""
    if effect.mean < 0:
        return 0 if effect.verdict == "harm" else 1
    return 3 if effect.verdict == "gain" else 2


def gain_chart(comparison: Comparison, views: Views, tasks: TaskList) -> dict[str, Any]:
    """The gain of every target with its interval, and every seed as a dot."""
    found = {}
    for at, control in views.of(comparison):
        pairs = by_gain(comparison, at, control)
        rows: list[EffectRow] = [
            (tasks.number(line.task, line.family), line.task, effect, [(each, "one seed") for each in effect.differences])
            for line, effect in pairs
        ]
        if mean := mean_gain(comparison, at, control):
            rows.insert(0, ("mean", f"mean over {len(pairs)} targets", mean, []))  # the targets' gains have rows of their own
        found[views.key(at, control)] = {
            "order": [row[0] for row in rows if row[0] != "mean"],
            "mean": rows[0][1] if rows and rows[0][0] == "mean" else None,
            "words": f"{comparison.treated} minus {control}, with {labels_words(at)}.",
            "traces": effect_traces(rows),
            "layout": {"xaxis": {"zeroline": True, "tickformat": ".3~f", "nticks": 7}, "hovermode": "closest"},
        }
    return {"kind": "rows", "views": found, "most": MOST_ROWS, "ends": True}


# A row of a chart of effects: its number (or "mean"), its name, its effect, and single values with what each is.
EffectRow = tuple[int | str, str, Effect, Sequence[tuple[float, str]]]


def effect_traces(rows: Sequence[EffectRow]) -> list[dict[str, Any]]:
    """Per row a triangle with its interval, and a dot per single value; first the dots, then a trace per kind of effect."""
    dots: dict[str, Any] = {"type": "scatter", "mode": "markers", "x": [], "y": [], "hovertext": [], "hoverinfo": "text"}
    for number, name, _, values in rows:
        dots["x"] += rounded(value for value, _ in values)
        dots["y"] += [number] * len(values)
        dots["hovertext"] += [f"{plotly_text(name)}<br>{plotly_text(what)}: {value:+z.3f}" for value, what in values]
    dots["marker"] = {"symbol": "circle", "size": 5, "color": "--dot"}
    traces = [dots]
    for index, (words, symbol, _, colour) in enumerate(GROUPS):
        mine = [row for row in rows if group_of(row[2]) == index]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": rounded(effect.mean for _, _, effect, _ in mine),
                "y": [number for number, _, _, _ in mine],
                "hovertext": [f"{plotly_text(name)}<br>{words}: {effect_words(effect)}" for _, name, effect, _ in mine],
                "hoverinfo": "text",
                "marker": {"symbol": symbol, "size": 10, "color": colour, "line": {"color": colour, "width": 1.5}},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": rounded((e.mean if e.high is None else e.high) - e.mean for _, _, e, _ in mine),
                    "arrayminus": rounded(e.mean - (e.mean if e.low is None else e.low) for _, _, e, _ in mine),
                    "color": colour,
                    "thickness": 1.5,
                    "width": 0,
                },
            }
        )
    return traces


def effect_words(effect: Effect) -> str:
    if effect.low is None or effect.high is None or effect.probability is None:
        return f"{effect.mean:+z.3f}, no interval"
    return (
        f"{effect.mean:+z.3f} (95 % interval {effect.low:+z.3f} to {effect.high:+z.3f})"
        f"<br>probability of help {effect.probability:.0%}"
    )


def labels_words(at: str) -> str:
    return "all labels" if at == "all" else f"{at} labels"


def score_panels(comparison: Comparison) -> list[tuple[Line | None, int, dict[str, Any]]]:
    """Score against labels: (any line of the target, how many targets, chart), first the mean over targets (with no line), then
    a panel per target, the largest loss first.

    The mean is over the targets that have every arm at every label count, so that no point of it is about other tasks."""
    counts = [at for at in comparison.plan["labels"] if comparison.at(at)]
    by_task: dict[str, dict[str, Line]] = {}
    for line in comparison.lines:
        by_task.setdefault(line.task, {})[line.at] = line
    whole = [
        found for found in by_task.values()
        if len(found) == len(counts) and all(len(line.scores) == len(comparison.plan["arms"]) for line in found.values())
    ]  # fmt: skip
    worst = {
        task: min((line.effects[comparison.base].mean for line in found.values() if comparison.base in line.effects), default=1.0)
        for task, found in by_task.items()
    }
    panels: list[tuple[Line | None, int, dict[str, Any]]] = []
    arms = list(comparison.plan["arms"])
    if len(whole) > 1:
        means = {arm: {at: [float(np.mean([found[at].mean(arm) for found in whole]))] for at in counts} for arm in arms}
        panels.append((None, len(whole), panel(comparison, counts, means, {})))
    for task in sorted(by_task, key=worst.__getitem__):
        found = by_task[task]
        scores = {arm: {at: list(line.scores[arm].values()) for at, line in found.items() if arm in line.scores} for arm in arms}
        sizes = {at: line.labels for at, line in found.items()}
        panels.append((next(iter(found.values())), 1, panel(comparison, counts, scores, sizes)))
    return panels


def panel(
    comparison: Comparison, counts: Sequence[str], scores: dict[str, dict[str, list[float]]], sizes: dict[str, int]
) -> dict[str, Any]:
    """One small multiple: per arm the mean score at each label count, and every seed as a dot where there are several."""
    traces: list[dict[str, Any]] = []
    arms = list(scores)
    for index, arm in enumerate(arms):
        colour, _, symbol = arm_sign(comparison, arm)
        at = [count for count in counts if scores[arm].get(count)]
        shift = (index - (len(arms) - 1) / 2) * 0.09  # so that arms with equal scores do not hide one another
        places = [counts.index(count) + shift for count in at]
        if not at:
            continue
        means = [float(np.mean(scores[arm][count])) for count in at]
        traces.append(
            {
                "type": "scatter", "mode": "markers", "hoverinfo": "skip",
                "x": [place for place, count in zip(places, at, strict=True) for _ in scores[arm][count]],
                "y": rounded(score for count in at for score in scores[arm][count]),
                "marker": {"size": 3, "color": colour, "opacity": 0.7},
            }
        )  # fmt: skip
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": places, "y": rounded(means),
                "hovertext": [
                    f"{plotly_text(arm)}<br>{mean:.3f} with {sizes[count]:,} labels" if count in sizes
                    else f"{plotly_text(arm)}<br>{mean:.3f} with {labels_words(count)}"
                    for mean, count in zip(means, at, strict=True)
                ],
                "hoverinfo": "text", "marker": {"symbol": symbol, "size": 8, "color": colour},
                "line": {"color": colour, "width": 1.5, "dash": "solid" if arm == comparison.treated else "dot"},
            }
        )  # fmt: skip
    layout = {
        "xaxis": {
            "tickvals": list(range(len(counts))), "ticktext": [plotly_text(count) for count in counts],
            "range": [-0.5, len(counts) - 0.5], "zeroline": False, "showgrid": False,
        },
        "yaxis": {"nticks": 5, "zeroline": False, "tickformat": ".3~f"},
        "margin": {"l": 44, "r": 6, "t": 6, "b": 26}, "hovermode": "closest",
    }  # fmt: skip
    return {"kind": "plain", "traces": traces, "layout": layout, "height": 170}


def arm_sign(comparison: Comparison, arm: str) -> tuple[str, str, str]:
    """(colour, letter, Plotly symbol) of an arm: the base a hollow square, the pre-finetuned one a full circle."""
    order = [comparison.base, comparison.treated, *(name for name in comparison.controls if name != comparison.base)]
    return sign_of(order.index(arm))


def sign_of(place: int) -> tuple[str, str, str]:
    """(colour, letter, Plotly symbol) of what has a place in a list; what has place 0, the base, shares its own with nothing."""
    at = 1 + (place - 1) % (len(SYMBOLS) - 1) if place else 0
    symbol, letter = SYMBOLS[at]
    return f"--arm-{at}", letter, symbol


# ---- a run


def binned(points: Sequence[tuple[int, float]], edges: np.ndarray) -> tuple[list[int], list[float | None]]:
    """(steps, means) of a line over time, averaged between edges; stretches without a point are left out."""
    steps = np.array([step for step, _ in points])
    values = np.array([value for _, value in points])
    place = np.searchsorted(edges, steps, side="left")
    used = np.unique(place)
    return [int(steps[place == one].max()) for one in used], rounded((values[place == one].mean() for one in used), 4)


def edges_of(steps: Sequence[int], most: int = MOST_POINTS) -> np.ndarray:
    """Where a line over time is cut into at most `most` stretches: at the recorded steps where they are few."""
    distinct = np.unique(np.array(steps))
    if len(distinct) <= most:
        return distinct
    return np.linspace(distinct[0] - 1, distinct[-1], most + 1)[1:]


def loss_lines(run: Run) -> dict[str, tuple[list[int], list[float | None]]]:
    """Per task its loss over time, the highest last first, as means over stretches: in each update a task has few examples."""
    if not run.points:
        return {}
    edges = edges_of([point.step for point in run.points], MOST_STRETCHES)
    by_task: dict[str, list[tuple[int, float]]] = {}
    for point in run.points:
        for task, loss in point.loss_by_task.items():
            by_task.setdefault(task, []).append((point.step, loss))
    found = {task: binned(points, edges) for task, points in by_task.items()}
    return dict(sorted(found.items(), key=lambda item: -(item[1][1][-1] or 0)))


def loss_chart(series: Iterable[tuple[int, tuple[list[int], list[float | None]]]]) -> dict[str, Any]:
    """Losses over time, one line each; the ones given first are those in colour."""
    return {
        "kind": "lines",
        "series": [{"task": number, "x": steps, "y": losses} for number, (steps, losses) in series],
        "most": MOST_LINES,
        "layout": {
            "xaxis": {"title": {"text": "update"}, "zeroline": False, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "loss"}, "rangemode": "tozero", "zeroline": False},
            "hovermode": "closest",
            "shapes": [
                {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1,
                 "line": {"color": "--ink", "width": 2, "dash": "dash"}}
            ],
            "annotations": [
                {"xref": "paper", "x": 1, "y": 1, "xanchor": "right", "yanchor": "bottom", "showarrow": False,
                 "text": "1 = a uniform guess", "bgcolor": "--paper", "font": {"size": 12, "color": "--ink"}}
            ],
        },
        "height": 380,
    }  # fmt: skip


def share_chart(run: Run, tasks: TaskList) -> dict[str, Any]:
    """Shares of examples and of tokens per task, the largest first."""
    found = sorted(run.shares()[0].items(), key=lambda item: -item[1][0])
    families = {task.name: task.family for task in run.tasks}
    numbers = [tasks.number(name, families.get(name, "")) for name, _ in found]
    traces = []
    for index, (words, symbol, colour) in enumerate((("examples", "circle", "--arm-1"), ("tokens", "diamond-open", "--arm-2"))):
        values = [pair[index] for _, pair in found]
        traces.append(
            {
                "type": "scatter", "mode": "markers", "x": rounded(values), "y": numbers, "hoverinfo": "text",
                "hovertext": [
                    f"{plotly_text(name)}<br>{value:.1%} of the {words}"
                    for (name, _), value in zip(found, values, strict=True)
                ],
                "marker": {"symbol": symbol, "size": 9, "color": colour},
            }
        )  # fmt: skip
    layout = {"xaxis": {"tickformat": ".1~%", "rangemode": "tozero", "nticks": 7}, "hovermode": "closest"}
    view = {"order": numbers, "mean": None, "words": "", "traces": traces, "layout": layout}
    return {"kind": "rows", "views": {"": view}, "most": MOST_ROWS, "ends": False}


def speed_charts(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """(title, chart) of throughput and padding over time, those that the metrics have."""
    charts = []
    for title, key, form in (
        ("Tokens per second", "tokens_per_second", ",.2~s"),
        ("Examples per second", "examples_per_second", ",.2~s"),
        ("Padding, share of what was computed", "padding", ".0%"),
    ):
        points = [(point.step, value) for point in run.points if (value := getattr(point, key)) is not None]
        if not points:
            continue
        steps, values = binned(points, edges_of([step for step, _ in points]))
        trace = {
            "type": "scatter", "mode": "lines" if len(steps) > 1 else "markers", "x": steps, "y": values,
            "hovertemplate": f"update %{{x}}: %{{y:{form}}}<extra></extra>", "line": {"color": "--arm-1", "width": 1.5},
            "marker": {"color": "--arm-1"},
        }  # fmt: skip
        layout = {
            "xaxis": {"nticks": 4, "zeroline": False, "rangemode": "tozero"},
            "yaxis": {"rangemode": "tozero", "nticks": 4, "tickformat": form, "zeroline": False},
            "margin": {"l": 48, "r": 10, "t": 6, "b": 26}, "hovermode": "closest",
        }  # fmt: skip
        charts.append((title, {"kind": "plain", "traces": [trace], "layout": layout, "height": 170}))
    return charts
