"""The sections of runs: losses by task, shares of the mixture, speed, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefinetune.report.charts import MOST_LINES, loss_chart, loss_lines, share_chart, speed_charts
from prefinetune.report.markup import Markup, tag
from prefinetune.report.page import Page
from prefinetune.report.parts import fixed, heading, names, number, table, task_cell
from prefinetune.report.read import Run, starts
from prefinetune.report.studies import AFFINITY, affinity_parts


def training(page: Page, run: Run) -> Markup:
    lines = loss_lines(run)
    families = {task.name: task.family for task in run.tasks}
    numbered = [(page.tasks.number(name, families.get(name, "")), line) for name, line in lines.items()]
    arms = [arm for compared in page.found.comparisons for arm, start in starts(compared.comparison.plan).items()
            if start == run.folder.resolve()]  # fmt: skip
    role = f"start of arm {names(list(dict.fromkeys(arms)))} · " if arms else ""
    title = f"Run {run.name}"
    parts: list[Any] = [tag("p", role, run_words(run), class_="about")]
    if not numbered:
        parts.append(tag("p", "No update of this run is recorded yet."))
        return page.section(title, parts)
    last = {name: losses[-1] for name, (_, losses) in lines.items()}
    stuck = [name for name, loss in last.items() if loss is not None and loss >= 1]
    if stuck:
        words = f"{len(stuck)} of {len(last)} tasks stand no better than a uniform guess at the end: {names(stuck)}."
        parts.append(tag("p", words, class_="notice"))
    words = "Each line is a task's training loss, in means over stretches of the run; at 1 it is no better than a uniform guess."
    if len(numbered) > MOST_LINES:
        words += f" The {MOST_LINES} with the highest last loss are in colour; filter by name to colour others."
    parts += [tag("h3", "Loss per task"), page.noted(loss_chart(numbered), words, tag("ul", class_="legend lines"))]
    shares, counted = run.shares()
    if len(shares) > 1:
        shares_words = (
            "Each row is a task: its share of the examples (circle) and of the tokens (diamond) that the model was shown."
        )
        if not counted:
            shares_words += " Expected shares, from the sizes in suite.yaml and the mixture's rates: the run did not count them."
        parts += [tag("h3", "Share of the mixture"), page.noted(share_chart(run, page.tasks), shares_words)]
    speed = [
        tag("figure", tag("figcaption", tag("b", title)), page.chart(spec, f"{title} over updates"))
        for title, spec in speed_charts(run)
    ]
    parts += [tag("h3", "Throughput and padding"),
              tag("p", "How fast the run went and how much of what was computed was filling: means between logged updates."),
              tag("div", speed, class_="panels")]  # fmt: skip
    if affinity := affinity_parts(page, run):
        parts += [tag("h3", AFFINITY), *affinity]
    parts += [tag("h3", "Tasks, highest last loss first"), task_table(page, run, lines)]
    return page.section(title, parts)


def task_table(page: Page, run: Run, lines: Mapping[str, tuple[list[int], list[float | None]]]) -> Markup:
    entries = {task.name: task for task in run.tasks}
    scores = {result["task"]: result for result in run.results}
    shares, _ = run.shares()
    head = tag("thead", tag("tr", heading("Task"), *(heading(name, right=True) for name in (
        "First loss", "Last loss", "Validation score", "Examples", "Tokens each", "Share of examples", "Share of tokens",
        "Texts cut", "Leaks left out", "Rows set aside",
    ))))  # fmt: skip
    rows = []
    for name in [*lines, *(name for name in entries if name not in lines)]:
        entry, losses = entries.get(name), lines[name][1] if name in lines else [None]
        result = scores.get(name)
        size = entry.examples if entry else None
        share = shares.get(name)
        rows.append(
            tag(
                "tr",
                task_cell(name, entry.family if entry else ""),
                number(fixed(losses[0])),
                number(fixed(losses[-1]), tag("small", "not learned") if (losses[-1] or 0) >= 1 else None),
                number(f"{result['score']:.3f}" if result else "",
                       tag("small", result.get("metric", "")) if result else None),
                number("" if size is None else f"{size:,}"),
                number("" if not entry or not size or entry.tokens is None else f"{entry.tokens / size:.0f}"),
                number("" if share is None else f"{share[0]:.1%}"),
                number("" if share is None else f"{share[1]:.1%}"),
                number("" if not entry or not size or entry.truncated is None else f"{entry.truncated / size:.1%}"),
                number("" if not entry or entry.leaking is None else f"{entry.leaking:,}"),
                number("" if not entry or entry.set_aside is None else f"{entry.set_aside:,}"),
                data_task=page.tasks.number(name, entry.family if entry else ""),
            )
        )  # fmt: skip
    return table(head, [tag("tbody", rows)])


def fine_tunings(page: Page, runs: Sequence[Run]) -> Markup:
    columns = ("Score", "Labels", "Updates")
    head = tag("thead", tag("tr", heading("Run"), heading("State"), *(heading(name, right=True) for name in columns),
                            heading("Starts from")))  # fmt: skip
    rows, series = [], []
    for run in runs:
        family = run.tasks[0].family if run.tasks else ""
        task = run.tasks[0].name if run.tasks else ""
        place = page.tasks.number(f"{task} ({run.name})", family)
        result = run.results[-1] if run.results else {}
        series += [(place, line) for line in loss_lines(run).values()]
        rows.append(
            tag(
                "tr",
                task_cell(task or run.name, run.name),
                tag("td", run.state),
                number(fixed(run.score if run.results else None), tag("small", result.get("metric", ""))),
                number(result.get("labels", run.identity.get("labels"))),
                number(f"{run.updates:,}"),
                tag("td", result.get("base", run.model)),
                data_task=place,
            )
        )
    parts: list[Any] = [table(head, [tag("tbody", rows)])]
    if series:
        series.sort(key=lambda item: -(item[1][1][-1] or 0))
        words = "Each line is a run's training loss; at 1 the model does no better than guessing uniformly."
        parts += [tag("h3", "Loss"), page.noted(loss_chart(series), words, tag("ul", class_="legend lines"))]
    return page.section("Fine-tunings", parts)


def run_words(run: Run) -> str:
    """A run in one line."""
    planned = f" of {run.planned:,}" if run.planned and run.planned != run.updates else ""
    parts = [run.state, f"{run.updates:,}{planned} updates", f"{len(run.tasks):,} task{'s' if len(run.tasks) != 1 else ''}"]
    parts.append(f"from {run.model}")
    if run.score is not None:
        parts.append(f"{'mean' if run.finished else 'best mean'} validation score {run.score:.3f}")
    return " · ".join(parts)
