"""The sections that say how all of it was made: settings, versions and machines, data and licences, time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefinetune.report.markup import Markup, tag
from prefinetune.report.page import Page
from prefinetune.report.parts import heading, merged, names, number, side_by_side, table, task_cell
from prefinetune.report.read import default_settings, flat


def settings(page: Page) -> Markup:
    """Settings of all runs side by side, those that differ from their defaults first."""
    defaults = default_settings()
    settings = [(run.name, flat(run.config)) for run in page.found.runs]
    settings += [(one.name, flat(one.comparison.plan.get("settings") or {})) for one in page.found.comparisons]
    columns = merged([(name, {key: value for key, value in own.items() if key != "seed"}) for name, own in settings])
    keys = [*defaults, *dict.fromkeys(key for _, values in columns for key in values if key not in defaults)]
    changed = [key for key in keys if any(key in values and values[key] != defaults.get(key) for _, values in columns)]
    rest = [key for key in keys if key not in changed and key != "seed"]
    if not columns:
        return Markup("")
    return page.section(
        "Settings",
        tag("p", "What differs from the defaults that ", tag("code", "prefinetune settings"), " lists, in bold; runs with "
            "equal settings share a column, and seeds stand under Provenance."),
        side_by_side(changed, [("default", defaults), *columns], against_first=True),
        tag("details", tag("summary", f"{len(rest)} settings at their defaults"),
            side_by_side(rest, [("default", defaults)])),
    )  # fmt: skip


def provenance(page: Page) -> Markup:
    """Versions, machine, seeds, digests and times."""
    columns = []
    for run in page.found.runs:
        digests = {f"digest of {key}": value for key, value in run.identity.items() if key in ("settings", "data")}
        columns.append((run.name, {
            "kind": run.kind, "state": run.state, "model": run.model, "seed": run.config.get("seed"), "started": run.started,
            "ended": run.ended, **flat({k: v for k, v in run.environment.items() if k != "started"}), **digests,
        }))  # fmt: skip
    for compared in page.found.comparisons:
        plan, environment = compared.comparison.plan, compared.comparison.plan.get("environment") or {}
        weights = {f"weights of {arm}": about.get("weights") for arm, about in plan["arms"].items() if isinstance(about, Mapping)}
        columns.append((compared.name, {
            "kind": "comparison", "seeds": plan["seeds"], "learning rates tried": plan["grid"],
            "seeds that chose among them": plan["tuning_seeds"], "command": plan.get("command"),
            "started": plan.get("started"), "ended": compared.progress.ended,
            **flat({k: v for k, v in environment.items() if k not in ("started", "command")}), **weights,
        }))  # fmt: skip
    keys = list(dict.fromkeys(key for _, values in columns for key in values))
    return page.section("Provenance", side_by_side(keys, columns))


def data(page: Page) -> Markup:
    """Every task's source, licence and digest."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for run in page.found.runs:
        for task in run.tasks:
            key = (task.name, task.family, task.source, task.license, task.digest)
            found.setdefault(key, []).append(run.name)
    for compared in page.found.comparisons:
        for name, about in compared.comparison.plan["tasks"].items():
            where = str(about.get("source", ""))
            key = (name, str(about.get("family", "")), where, str(about.get("license", "")), str(about.get("data", "")))
            found.setdefault(key, []).append(compared.name)
    if not found:
        return Markup("")
    head = tag("thead", tag("tr", *(heading(name) for name in ("Task", "Used in", "Source", "Licence", "Digest"))))
    rows = [
        tag("tr", task_cell(name, family), tag("td", names(used, 3)), tag("td", source), tag("td", licence),
            tag("td", digest, class_="code"), data_task=page.tasks.number(name, family))
        for (name, family, source, licence, digest), used in sorted(found.items())
    ]  # fmt: skip
    return page.section("Data and licences", table(head, [tag("tbody", rows)]))


def stages(page: Page) -> Markup:
    parts = []
    for name, seconds in page.found.stages.items():
        rows = [tag("tr", tag("th", stage, scope="row"), number(f"{value:,.0f} s")) for stage, value in seconds.items()]
        head = tag("thead", tag("tr", heading(f"Stage of {name}"), heading("Time", right=True)))
        parts.append(table(head, [tag("tbody", rows)]))
    return page.section("Time per stage", parts)
