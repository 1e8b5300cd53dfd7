"""What the sections of a page are made of: cells, tables, selectors, and numbers and names as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefinetune.report.charts import GROUPS, group_of
from prefinetune.report.markup import Markup, markup, tag
from prefinetune.statistics import Effect

MOST_NAMES = 12  # in a sentence


def heading(words: str, right: bool = False) -> Markup:
    return tag("th", words, scope="col", class_="number" if right else None)


def task_cell(name: str, below: str) -> Markup:
    """A row's first cell. A long name may break after the signs that join its parts."""
    parts = [markup(part, Markup("<wbr>")) for part in re.split(r"(?<=[/_.:])", name)]
    return tag("th", parts, tag("small", below), scope="row")


def number(*parts: Any) -> Markup:
    return tag("td", *parts, class_="number")


def table(head: Markup, bodies: Iterable[Markup], kinds: str = "sortable") -> Markup:
    """A table in a box of its own, which scrolls where the page must not; the tab key reaches it, so that no mouse is needed.

    Args:
        kinds: "sortable", where the script makes the headings buttons, and "crossed", with tasks in rows and in columns.
    """
    return tag("div", tag("table", head, *bodies, class_=kinds or None), class_="box", tabindex=0, role="group")


def selector(name: str, words: str, options: Sequence[str]) -> Markup:
    chosen = [tag("option", option, value=index) for index, option in enumerate(options)]
    return tag("label", tag("span", words), tag("select", chosen, id=name))


def shown_line() -> Markup:
    return tag("p", tag("span"), " ", tag("button", "Show all", type="button", hidden=True), class_="shown", aria_live="polite")


def effect_cells(effect: Effect, seeds: bool = True) -> Markup:
    """The gain in figures and in words; its interval over every seed's gain; its probability; the smallest detectable effect."""
    group = GROUPS[group_of(effect)]
    sign, kind = ("=", None) if effect.mean == 0 else (group[2], "loss" if effect.mean < 0 else "gain")
    words = "no change" if kind is None else f"clear {kind}" if effect.verdict != "unclear" else f"{kind}, not clear"
    by_seed = tag("small", " ".join(short(each, "+") for each in effect.differences)) if seeds else None
    low, high = effect.low, effect.high
    return markup(
        tag("td", tag("b", f"{sign} {effect.mean:+z.3f}", class_=kind), tag("small", words), class_="gained"),
        number("no interval" if low is None or high is None else f"{low:+z.3f} to {high:+z.3f}", by_seed),
        number("" if effect.probability is None else f"{effect.probability:.0%}"), number(fixed(effect.detectable)),
    )  # fmt: skip


def merged(columns: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Columns with equal values under one name."""
    found: list[tuple[list[str], dict[str, Any]]] = []
    for name, values in columns:
        same = [names_ for names_, known in found if known == values]
        if same:
            same[0].append(name)
        elif values:
            found.append(([name], values))
    return [(names(named, 3), values) for named, values in found]


def side_by_side(keys: Sequence[str], columns: Sequence[tuple[str, Mapping[str, Any]]], against_first: bool = False) -> Markup:
    """A table with a row per key and a column per mapping; bold, on request, is what differs from the first column."""
    head = tag("thead", tag("tr", heading("Name"), [heading(name) for name, _ in columns]))
    rows = []
    for key in keys:
        cells = []
        for index, (_, values) in enumerate(columns):
            value = shown_value(values[key]) if key in values else ""
            changed = against_first and index and key in values and values[key] != columns[0][1].get(key)
            cells.append(tag("td", tag("b", value) if changed else value))
        rows.append(tag("tr", tag("th", key, scope="row", class_="code"), cells))
    return table(head, [tag("tbody", rows)], kinds="")


def shown_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(shown_value(part) for part in value)
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*", value):
        return moment(value)
    return "none" if value is None else str(value)


def moment(text: str) -> str:
    """2026-11-24T02:05:14+00:00 as people read it."""
    return text[:16].replace("T", " ") + (" UTC" if text.endswith("+00:00") else text[19:])


def fixed(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def chance(p: float | None) -> str:
    """A p-value; the smallest are only said to be small."""
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def short(value: float, sign: str = "") -> str:
    """A number below 1 without its zero, as it stands where many are side by side."""
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{sign}z.3f}")


def names(items: Sequence[str], most: int = MOST_NAMES) -> str:
    """Names in a sentence; of many the first, and how many others there are."""
    shown = list(items[:most])
    return ", ".join(shown) + (f" and {len(items) - most:,} others" if len(items) > most else "")


def counted(tasks: Sequence[str]) -> str:
    return f"1 task: {tasks[0]}" if len(tasks) == 1 else f"{len(tasks)} tasks: {names(tasks)}"
