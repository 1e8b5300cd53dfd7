"""What the charts of studies and of task affinities show, in the terms of charts.py.

Where members and seeds are shown, a small dot is one fine-tuning and a hollow circle one checkpoint; the large mark is the mean,
with its 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prefinetune.affinity import Table
from prefinetune.report.charts import (
    MOST_ROWS,
    TaskList,
    effect_traces,
    effect_words,
    labels_words,
    plotly_text,
    rounded,
    sign_of,
)
from prefinetune.statistics import Effect
from prefinetune.study_results import BASE, Reading, StudyResults

AXIS_TITLES = {"scale": "tasks"}
PANEL_MARGIN = {"l": 44, "r": 8, "t": 6, "b": 26}


def controls_of(study: StudyResults) -> list[str]:
    """The groups that are controls, as the protocol lists them."""
    return [group.name for group in study.groups.values() if group.role == "control"]


def by_view(study: StudyResults, labels: Sequence[str], make: Any) -> dict[str, Any]:
    """Per label count of the study what `make` gives for it, by its number in the page's selector; without empty ones."""
    made = {str(labels.index(at)): make(at) for at in study.labels}
    return {key: found for key, found in made.items() if found}


# ---- what a reading has: the mean over targets, or one target


def values_of(reading: Reading, task: str | None) -> tuple[Effect, np.ndarray] | None:
    """A reading's effect and gains [members, seeds]: their means over targets or, given a task, its own; None without any."""
    if task is not None:
        found = [one for one in reading.targets if one.task == task]
        return (found[0].effect, found[0].gains) if found else None
    whole = [one.gains for one in reading.targets if one.gains.shape == reading.targets[0].gains.shape]
    return reading.effect, np.mean(whole, axis=0)  # nan where a target lacks the cell: such a mean would be about other targets


def seed_marks(
    x: float, values: np.ndarray, reading: Reading, colour: str, name: str, small: bool, form: str = "+z.3f"
) -> list[dict[str, Any]]:
    """Every fine-tuning as a small dot and every checkpoint as a hollow circle, members side by side around x of a log axis."""
    dots: dict[str, list[Any]] = {"x": [], "y": [], "words": []}
    circles: dict[str, list[Any]] = {"x": [], "y": [], "words": []}
    for index, row in enumerate(values):
        place = x * 1.035 ** (index - (len(values) - 1) / 2)
        member = reading.members[index] if len(values) == len(reading.members) else ""
        for seed, value in zip(reading.seeds, row, strict=True):
            if np.isfinite(value):
                dots["x"].append(place)
                dots["y"].append(value)
                dots["words"].append(f"{plotly_text(name)}<br>{plotly_text(member)}, fine-tuning {seed}: {value:{form}}")
        done = row[np.isfinite(row)]
        if len(done) and len(values) > 1:
            circles["x"].append(place)
            circles["y"].append(done.mean())
            circles["words"].append(f"{plotly_text(name)}<br>{plotly_text(member)}: {done.mean():{form}}")
    return [
        {
            "type": "scatter", "mode": "markers", "x": rounded(found["x"]), "y": rounded(found["y"]),
            "hovertext": found["words"], "hoverinfo": "text", "marker": {**marker, "color": colour},
        }
        for found, marker in (
            (dots, {"symbol": "circle", "size": 3 if small else 4, "opacity": 0.55}),
            (circles, {"symbol": "circle-open", "size": 5 if small else 7, "line": {"width": 1}}),
        )
        if found["x"]
    ]  # fmt: skip


def bars(effects: Sequence[Effect], colour: str, small: bool) -> dict[str, Any]:
    """Error bars of 95 % intervals, vertical."""
    return {
        "type": "data", "symmetric": False, "color": colour, "thickness": 1 if small else 1.5, "width": 0 if small else 4,
        "array": rounded((e.mean if e.high is None else e.high) - e.mean for e in effects),
        "arrayminus": rounded(e.mean - (e.mean if e.low is None else e.low) for e in effects),
    }  # fmt: skip


# ---- gain against x, a curve per series


def curve_chart(study: StudyResults, labels: Sequence[str], task: str | None = None) -> dict[str, Any] | None:
    """Gain over the base against where groups stand on their curves, with the controls as dotted lines across; None where no
    series has two points. The mean over targets or, given a task, a small multiple of its own."""
    views = by_view(study, labels, lambda at: curve_view(study, at, task))
    if not views:
        return None
    return {"kind": "plain", "views": views, "height": 420 if task is None else 170}


def curve_view(study: StudyResults, at: str, task: str | None) -> dict[str, Any] | None:
    curves = {series: study.curve(series, at) for series in study.series}
    places = sorted({x for points in curves.values() for x, _ in points if x > 0})
    if len(places) < 2:
        return None
    traces: list[dict[str, Any]] = []
    for index, points in enumerate(curves.values()):
        colour, _, symbol = sign_of(index + 1)
        shift = 1.06 ** (index - (len(curves) - 1) / 2)  # so that series with equal gains do not hide one another
        known = [(x * shift, r, found) for x, r in points if x > 0 and (found := values_of(r, task))]
        for x, reading, (_, values) in known:
            traces += seed_marks(x, values, reading, colour, reading.group, task is not None)
        effects = [effect for _, _, (effect, _) in known]
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": rounded(x for x, _, _ in known),
                "y": rounded(effect.mean for effect in effects), "hoverinfo": "text",
                "hovertext": [f"{plotly_text(r.group)}<br>{effect_words(effect)}" for _, r, (effect, _) in known],
                "marker": {"symbol": symbol, "size": 10 if task is None else 7, "color": colour},
                "line": {"color": colour, "width": 2, "dash": "solid" if index == 0 else "dash"},
                "error_y": bars(effects, colour, task is not None),
            }
        )  # fmt: skip
    low, high = places[0], places[-1]
    for index, name in enumerate(controls_of(study)):
        control = study.reading(name, at)
        found = values_of(control, task) if control else None
        if control is None or found is None:
            continue
        colour, _, symbol = sign_of(len(curves) + 1 + index)
        effect, values = found
        place = high * 1.22 * 1.12**index
        words = f"{plotly_text(name)} (control)<br>{effect_words(effect)}"
        traces.append(
            {
                "type": "scatter", "mode": "lines", "x": rounded([low / 1.2, place]), "y": rounded([effect.mean] * 2),
                "hovertext": [words] * 2, "hoverinfo": "text", "line": {"color": colour, "width": 1.5, "dash": "dot"},
            }
        )  # fmt: skip
        traces += seed_marks(place, values, control, colour, name, task is not None)
        traces.append(
            {
                "type": "scatter", "mode": "markers", "x": rounded([place]), "y": rounded([effect.mean]), "hovertext": [words],
                "hoverinfo": "text", "marker": {"symbol": symbol, "size": 9 if task is None else 6, "color": colour},
                "error_y": bars([effect], colour, task is not None),
            }
        )  # fmt: skip
    right = high * 1.3 * 1.12 ** len(controls_of(study))
    xaxis: dict[str, Any] = {
        "type": "log", "range": rounded([math.log10(low / 1.25), math.log10(right)]), "zeroline": False,
        "tickvals": places, "ticktext": [f"{x:g}" for x in places], "showgrid": False,
    }  # fmt: skip
    yaxis: dict[str, Any] = {"zeroline": True, "tickformat": ".3~f", "nticks": 6}
    if task is None:
        xaxis["title"] = {"text": AXIS_TITLES.get(study.kind, "")}
        yaxis["title"] = {"text": f"mean gain over the base, {plotly_text(labels_words(at))}"}
    margin = {"l": 62, "r": 14, "t": 14, "b": 48} if task is None else PANEL_MARGIN
    return {"traces": traces, "layout": {"xaxis": xaxis, "yaxis": yaxis, "margin": margin, "hovermode": "closest"}}


# ---- score against labels, a line per checkpoint


def score_chart(study: StudyResults, counts: Mapping[str, Mapping[str, int]], task: str | None = None) -> dict[str, Any] | None:
    """Score against label count on a log axis: the base and every group. The mean over the targets that have every group at every
    label count or, given a task, a small multiple of its own; None where nothing is left."""
    readings = {(one.group, one.at): {target.task: target for target in one.targets} for one in study.readings}
    groups = [name for name in study.groups if any((name, at) in readings for at in study.labels)]
    everywhere = [set(readings.get((name, at), ())) for name in groups for at in study.labels]
    tasks = [task] if task is not None else sorted(set.intersection(*everywhere)) if everywhere else []
    if not tasks:
        return None
    traces: list[dict[str, Any]] = []
    places: dict[str, float] = {}
    for at in study.labels:
        sizes = [counts[one][at] for one in tasks if at in counts.get(one, {})]
        if sizes:
            places[at] = float(np.exp(np.mean(np.log(sizes))))
    names = [BASE, *groups]
    for index, name in enumerate(names):
        colour, _, symbol = sign_of(index)
        xs, ys, words = [], [], []
        for at, x in places.items():
            found = readings.get((name if name != BASE else groups[0], at), {})
            mine = [found[one].control if name == BASE else found[one].scores for one in tasks if one in found]
            if len(mine) < len(tasks) or len({values.shape for values in mine}) > 1:
                continue
            values = np.mean(mine, axis=0)  # [members, seeds]
            if not np.isfinite(values).any():
                continue
            place = x * 1.05 ** (index - (len(names) - 1) / 2)
            reading = study.reading(name if name != BASE else groups[0], at)
            assert reading is not None  # it has just been looked up
            traces += seed_marks(place, values, reading, colour, name, task is not None, ".3f")
            xs.append(place)
            ys.append(float(np.nanmean(values)))
            about = f"{counts[tasks[0]][at]:,} labels" if task is not None else labels_words(at)
            words.append(f"{plotly_text(name)}<br>{ys[-1]:.3f} with {plotly_text(about)}")
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": rounded(xs), "y": rounded(ys), "hovertext": words,
                "hoverinfo": "text", "marker": {"symbol": symbol, "size": 9 if task is None else 7, "color": colour},
                "line": {"color": colour, "width": 2 if task is None else 1.5, "dash": "dot" if name == BASE else "solid"},
            }
        )  # fmt: skip
    if not places:
        return None
    xaxis: dict[str, Any] = {
        "type": "log", "tickvals": rounded(places.values()), "ticktext": [plotly_text(at) for at in places], "zeroline": False,
        "showgrid": False, "range": rounded([math.log10(min(places.values()) / 1.5), math.log10(max(places.values()) * 1.5)]),
    }  # fmt: skip
    yaxis: dict[str, Any] = {"zeroline": False, "tickformat": ".3~f", "nticks": 5}
    if task is None:
        xaxis["title"] = {"text": "labelled examples"}
        yaxis["title"] = {"text": f"mean score over {len(tasks)} target{'s' * (len(tasks) > 1)}"}
    margin = {"l": 62, "r": 14, "t": 14, "b": 48} if task is None else PANEL_MARGIN
    layout = {"xaxis": xaxis, "yaxis": yaxis, "margin": margin, "hovermode": "closest"}
    return {"kind": "plain", "traces": traces, "layout": layout, "height": 420 if task is None else 170}


# ---- every group and contrast, harm first


def named(reading: Reading) -> str:
    return reading.group if reading.against == BASE else f"{reading.group} − {reading.against}"


def forest_chart(study: StudyResults, labels: Sequence[str], readings: Iterable[Reading]) -> dict[str, Any] | None:
    """A row per reading with its interval, the largest loss first; a dot per checkpoint and seed, over the targets."""
    readings = list(readings)
    names = list(dict.fromkeys(map(named, readings)))

    def view(at: str) -> dict[str, Any] | None:
        mine = sorted((one for one in readings if one.at == at), key=lambda one: one.effect.mean)
        if not mine:
            return None
        rows = []
        for one in mine:
            found = values_of(one, None)
            values = found[1] if found else np.empty((0, 0))
            dots = [
                (float(value), f"{member}, fine-tuning {seed}")
                for member, row in zip(one.members, values, strict=False)
                for seed, value in zip(one.seeds, row, strict=True)
                if np.isfinite(value)
            ]
            rows.append((names.index(named(one)), named(one), one.effect, dots))
        return {
            "order": [row[0] for row in rows], "mean": None, "words": f"With {labels_words(at)}.",
            "traces": effect_traces(rows),
            "layout": {"xaxis": {"zeroline": True, "tickformat": ".3~f", "nticks": 7}, "hovermode": "closest"},
        }  # fmt: skip

    views = by_view(study, labels, view)
    return {"kind": "rows", "names": names, "views": views, "most": MOST_ROWS, "ends": True} if views else None


# ---- affinities


def map_chart(tasks: TaskList, families: Mapping[str, str], table: Table, rows: Sequence[str], columns: Sequence[str],
              clusters: Sequence[Sequence[str]] = ()) -> dict[str, Any]:  # fmt: skip
    """A map of a table in the order of `rows` and `columns`; colours reach as far as the values beside the diagonal.

    Args:
        clusters: parts of `rows` that the map frames, each in one piece.
    """
    places = [[table.rows.index(row) for row in rows], [table.columns.index(column) for column in columns]]
    values = table.mean[np.ix_(*places)]
    clear = table.adjusted[np.ix_(*places)] <= 0.05
    beside = np.array([[row != column for column in columns] for row in rows]) & np.isfinite(values)
    most = float(np.abs(values[beside]).max()) if beside.any() else 1.0
    framed = sorted((min(rows.index(name) for name in cluster), len(cluster)) for cluster in clusters)
    return {
        "kind": "map",
        "rows": [tasks.number(name, families.get(name, "")) for name in rows],
        "columns": [tasks.number(name, families.get(name, "")) for name in columns],
        "z": [shorter(row) for row in values],
        "clear": ["".join("1" if one else "0" for one in row) for row in clear],
        "most": most or 1.0,
        "groups": framed,
        "height": 300,
    }


def shorter(values: Iterable[float]) -> list[float | None]:
    """Three digits that count, as most of a large map is digits."""
    return [float(f"{value:.3g}") if math.isfinite(value) else None for value in values]
