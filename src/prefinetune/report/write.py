"""One page from runs and comparisons: what it says first, and in which order. charts.py decides what its charts hold, page.css
how it looks and page.js what its filters do; all of it, Plotly too, is inside the one file that `write_report` makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefinetune.environment import now
from prefinetune.errors import InputError
from prefinetune.files import write
from prefinetune.report.comparisons import against_labels, definitions, gains, not_run, targets, verdict
from prefinetune.report.document import document, resource
from prefinetune.report.markup import Markup, embedded, listed, markup, printable, tag
from prefinetune.report.origins import data, provenance, settings, stages
from prefinetune.report.page import Page
from prefinetune.report.parts import moment, selector
from prefinetune.report.read import Found, read_folders
from prefinetune.report.studies import study_sections, study_verdict
from prefinetune.report.trainings import fine_tunings, training


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page of every run and comparison under some folders.

    Args:
        folders: folders of runs or comparisons, or folders that hold some.
        out: the file to write; it is there whole or as it was.

    Raises:
        InputError: a folder does not exist, or none of them holds a run or a comparison; or `out` is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out} is a folder; expected the name of a file such as report.html")
    found = read_folders(folders)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, printable(html(found)))
    return out


def html(found: Found) -> str:
    """The page of what was read."""
    from plotly.offline import get_plotlyjs

    page = Page(found)
    parts = body(page)
    contents = tag("nav", listed(tag("a", words, href=f"#{anchor}") for anchor, words in page.contents), aria_label="contents")
    title = "Did pre-finetuning help?" if page.found.comparisons or page.found.studies else "Pre-finetuning runs"
    data = {"tasks": page.tasks.entries, "charts": page.charts}
    return document(
        title,
        tag("a", "Skip to the results", href="#results", class_="skip"),
        tag("header", masthead(page, title), opening(page), contents),
        tools(page),
        tag("main", parts, id="results", tabindex=-1),
        tag("footer", tag("p", "Written by prefinetune. This file needs no network.")),
        tag("script", embedded(data), type="application/json", id="data"),
        tag("script", Markup(get_plotlyjs())),
        tag("script", Markup(resource("page.js"))),
    )


def masthead(page: Page, title: str) -> Markup:
    kinds = Counter({"study": len(page.found.studies), "comparison": len(page.found.comparisons)})
    kinds = +kinds + Counter(run.kind for run in page.found.runs)
    words = {
        "study": "study",
        "comparison": "comparison",
        "train": "pre-finetuning or pre-training run",
        "finetune": "fine-tuning",
        "unknown": "folder that is damaged",
    }
    plural = {"study": "studies"}
    counted = [
        f"{count} {plural.get(kind, words.get(kind, 'run') + 's') if count > 1 else words.get(kind, 'run')}"
        for kind, count in kinds.items()
    ]
    return markup(tag("h1", title), tag("p", ", ".join(counted), f" · {moment(now())}", class_="about"))


def opening(page: Page) -> Markup:
    """What the numbers justify, in sentences, before anything else."""
    parts = [study_verdict(page, studied) for studied in page.found.studies]
    parts += [verdict(page, compared) for compared in page.found.comparisons]
    if not parts:
        parts.append(
            tag(
                "p", "No comparison is in these folders, so nothing here says whether pre-finetuning helps. ",
                tag("code", "prefinetune compare TASK --from RUN"), " makes one.", class_="lead",
            )
        )  # fmt: skip
    if problems := len(page.found.problems):
        words = "1 problem was" if problems == 1 else f"{problems} problems were"
        parts.append(tag("p", f"{words} found while reading the files: ", tag("a", "see the list", href="#problems"), ".",
                         class_="notice"))  # fmt: skip
    return markup(parts)


def tools(page: Page) -> Markup:
    """The filters, which hold for the whole page."""
    parts = [
        tag("label", tag("span", "Tasks"),
            tag("input", type="search", id="filter", placeholder="name or family", autocomplete="off")),
    ]  # fmt: skip
    if page.views.labels:
        parts.append(selector("labels", "Labels", page.views.labels))
    if page.views.controls:
        parts.append(selector("control", "Compared with", page.views.controls))
    parts.append(tag("button", "Dark", type="button", id="theme", title="light or dark"))
    return tag("div", tag("div", parts), class_="tools", role="search")


def body(page: Page) -> Markup:
    parts: list[Any] = [study_sections(page, studied) for studied in page.found.studies]
    for index, compared in enumerate(page.found.comparisons):
        if compared.comparison.lines:
            parts.append(targets(page, compared))
            parts.append(definitions(page) if index == 0 else None)
            parts += [gains(page, compared), against_labels(page, compared)]
        parts.append(not_run(page, compared))
    trainings = [run for run in page.found.runs if run.kind != "finetune"]
    parts += [training(page, run) for run in trainings if not run.damaged or run.points]
    tunings = [run for run in page.found.runs if run.kind == "finetune" and (not run.damaged or run.results)]
    if tunings:
        parts.append(fine_tunings(page, tunings))
    parts += [settings(page), provenance(page), data(page)]
    if page.found.stages:
        parts.append(stages(page))
    if page.found.problems:
        parts.append(page.section("Problems", tag("p", "What was in the files and could not be used."),
                             listed(page.found.problems), anchor="problems"))  # fmt: skip
    return markup(parts)
