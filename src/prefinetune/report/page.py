"""A page while it is put together: what its sections have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefinetune.report.charts import TaskList, Views
from prefinetune.report.markup import Markup, tag
from prefinetune.report.parts import shown_line
from prefinetune.report.read import Compared, Found, Studied


class Page:
    """Sections add their charts and tasks to lists that the script reads."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.tasks = TaskList()
        self.views = Views((one.comparison for one in found.comparisons), (one.results for one in found.studies))
        self.charts: dict[str, dict[str, Any]] = {}
        self.contents: list[tuple[str, str]] = []  # (anchor, title) of every section

    def study_place(self, studied: Studied) -> str:
        """The study's anchor on the page."""
        return f"study-{self.found.studies.index(studied)}"

    def place(self, compared: Compared) -> str:
        """The comparison's anchor on the page."""
        return f"comparison-{self.found.comparisons.index(compared)}"

    def of(self, compared: Compared) -> str:
        """What a title adds where there are several comparisons."""
        return f" ({compared.name})" if len(self.found.comparisons) > 1 else ""

    def section(self, title: str, *parts: Any, anchor: str = "") -> Markup:
        """A part of the page that the list of contents names."""
        anchor = anchor or f"section-{len(self.contents)}"
        self.contents.append((anchor, title))
        return tag("section", tag("h2", title), *parts, id=anchor)

    def chart(self, spec: Mapping[str, Any], words: str) -> Markup:
        """The place where the script draws a chart, and the sentence that says what it shows."""
        name = f"c{len(self.charts)}"
        self.charts[name] = dict(spec)
        height = spec.get("height", 300)
        return tag("div", class_="chart", id=name, role="img", aria_label=words, style=f"min-height:{height}px")

    def noted(self, spec: Mapping[str, Any], words: str, legend: Any = None) -> Markup:
        """A chart with its sentence above, its legend, and a line in which the script says how much of it is shown."""
        return tag("figure", tag("figcaption", words), legend, shown_line(), self.chart(spec, words))
