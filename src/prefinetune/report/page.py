"""One page from runs and comparisons: what it says first, and in which words. charts.py decides what its charts hold, page.css
how it looks and page.js what its filters do; all of it, Plotly too, is inside the one file that `write_report` makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from prefinetune.errors import InputError
from prefinetune.evidence import Comparison, Effect, Line, planned_cells
from prefinetune.report.charts import (
    GROUPS,
    MOST_LINES,
    TaskList,
    Views,
    arm_sign,
    by_gain,
    gain_chart,
    labels_words,
    loss_chart,
    loss_lines,
    mean_gain,
    score_panels,
    share_chart,
    speed_charts,
)
from prefinetune.report.document import document, resource
from prefinetune.report.markup import Markup, embedded, listed, markup, printable, tag
from prefinetune.report.parts import (
    counted,
    effect_cells,
    fixed,
    heading,
    merged,
    moment,
    names,
    number,
    selector,
    short,
    shown_line,
    side_by_side,
    table,
    task_cell,
)
from prefinetune.report.read import Compared, Found, Run, Studied, default_settings, flat, read_folders, starts
from prefinetune.report.studies import AFFINITY, affinity_parts, study_sections
from prefinetune.results import now, write

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
    write(out, printable(Page(found).html()))
    return out


class Page:
    """One page while it is put together: sections add their charts and tasks to lists that the script reads."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.tasks = TaskList()
        self.views = Views((one.comparison for one in found.comparisons), (one.results for one in found.studies))
        self.charts: dict[str, dict[str, Any]] = {}
        self.contents: list[tuple[str, str]] = []  # (anchor, title) of every section

    def html(self) -> str:
        from plotly.offline import get_plotlyjs

        body = self.body()
        contents = tag(
            "nav", listed(tag("a", words, href=f"#{anchor}") for anchor, words in self.contents), aria_label="contents"
        )
        title = "Did pre-finetuning help?" if self.found.comparisons or self.found.studies else "Pre-finetuning runs"
        data = {"tasks": self.tasks.entries, "charts": self.charts}
        return document(
            title,
            tag("a", "Skip to the results", href="#results", class_="skip"),
            tag("header", self.masthead(title), self.opening(), contents),
            self.tools(),
            tag("main", body, id="results", tabindex=-1),
            tag("footer", tag("p", "Written by prefinetune. This file needs no network.")),
            tag("script", embedded(data), type="application/json", id="data"),
            tag("script", Markup(get_plotlyjs())),
            tag("script", Markup(resource("page.js"))),
        )

    # ---- the top

    def masthead(self, title: str) -> Markup:
        kinds = Counter({"study": len(self.found.studies), "comparison": len(self.found.comparisons)})
        kinds = +kinds + Counter(run.kind for run in self.found.runs)
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

    def opening(self) -> Markup:
        """What the numbers justify, in sentences, before anything else."""
        parts = [self.study_verdict(studied) for studied in self.found.studies]
        parts += [self.verdict(compared) for compared in self.found.comparisons]
        if not parts:
            parts.append(
                tag(
                    "p", "No comparison is in these folders, so nothing here says whether pre-finetuning helps. ",
                    tag("code", "prefinetune compare TASK --from RUN"), " makes one.", class_="lead",
                )
            )  # fmt: skip
        if problems := len(self.found.problems):
            words = "1 problem was" if problems == 1 else f"{problems} problems were"
            parts.append(tag("p", f"{words} found while reading the files: ", tag("a", "see the list", href="#problems"), ".",
                             class_="notice"))  # fmt: skip
        return markup(parts)

    def verdict(self, compared: Compared) -> Markup:
        comparison, progress = compared.comparison, compared.progress
        several, missing = len(self.found.comparisons) > 1, f"#{self.place(compared)}-missing"
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

    def study_verdict(self, studied: Studied) -> Markup:
        """What a study justifies, harm first, and at once what it lacks."""
        study = studied.results
        parts: list[Any] = [tag("p", f"Study of {study.kind} · {studied.name}", class_="kicker")]
        sentences = study.sentences() or ["No group of this study can be compared yet, so nothing can be said."]
        parts += [tag("p", sentence, class_="said") for sentence in sentences]
        if study.missing:
            words = f"Not everything was run: {len(study.missing)} line{'s' * (len(study.missing) > 1)} in "
            parts.append(tag("p", words, tag("a", "what was left out", href=f"#{self.study_place(studied)}-missing"), ".",
                             class_="notice"))  # fmt: skip
        return tag("div", parts, class_="verdict")

    def study_place(self, studied: Studied) -> str:
        """The study's anchor on the page."""
        return f"study-{self.found.studies.index(studied)}"

    def place(self, compared: Compared) -> str:
        """The comparison's anchor on the page."""
        return f"comparison-{self.found.comparisons.index(compared)}"

    def of(self, compared: Compared) -> str:
        """What a title adds where there are several comparisons."""
        return f" ({compared.name})" if len(self.found.comparisons) > 1 else ""

    def tools(self) -> Markup:
        """The filters, which hold for the whole page."""
        parts = [
            tag("label", tag("span", "Tasks"),
                tag("input", type="search", id="filter", placeholder="name or family", autocomplete="off")),
        ]  # fmt: skip
        if self.views.labels:
            parts.append(selector("labels", "Labels", self.views.labels))
        if self.views.controls:
            parts.append(selector("control", "Compared with", self.views.controls))
        parts.append(tag("button", "Dark", type="button", id="theme", title="light or dark"))
        return tag("div", tag("div", parts), class_="tools", role="search")

    # ---- the sections

    def body(self) -> Markup:
        parts: list[Any] = [study_sections(self, studied) for studied in self.found.studies]
        for index, compared in enumerate(self.found.comparisons):
            if compared.comparison.lines:
                parts.append(self.targets(compared))
                parts.append(self.definitions() if index == 0 else None)
                parts += [self.gains(compared), self.against_labels(compared)]
            parts.append(self.not_run(compared))
        trainings = [run for run in self.found.runs if run.kind != "finetune"]
        parts += [self.training(run) for run in trainings if not run.damaged or run.points]
        tunings = [run for run in self.found.runs if run.kind == "finetune" and (not run.damaged or run.results)]
        if tunings:
            parts.append(self.fine_tunings(tunings))
        parts += [self.settings(), self.provenance(), self.data()]
        if self.found.stages:
            parts.append(self.stages())
        if self.found.problems:
            parts.append(self.section("Problems", tag("p", "What was in the files and could not be used."),
                                 listed(self.found.problems), anchor="problems"))  # fmt: skip
        return markup(parts)

    def section(self, title: str, *parts: Any, anchor: str = "") -> Markup:
        """A part of the page that the list of contents names."""
        anchor = anchor or f"section-{len(self.contents)}"
        self.contents.append((anchor, title))
        return tag("section", tag("h2", title), *parts, id=anchor)

    def definitions(self) -> Markup:
        terms = [tag("div", tag("dt", term), tag("dd", words)) for term, words in TERMS]
        return self.section("How to read the numbers", tag("dl", terms), tag("p", MANY_LINES))

    def chart(self, spec: Mapping[str, Any], words: str) -> Markup:
        """The place where the script draws a chart, and the sentence that says what it shows."""
        name = f"c{len(self.charts)}"
        self.charts[name] = dict(spec)
        height = spec.get("height", 300)
        return tag("div", class_="chart", id=name, role="img", aria_label=words, style=f"min-height:{height}px")

    def noted(self, spec: Mapping[str, Any], words: str, legend: Any = None) -> Markup:
        """A chart with its sentence above, its legend, and a line in which the script says how much of it is shown."""
        return tag("figure", tag("figcaption", words), legend, shown_line(), self.chart(spec, words))

    # ---- a comparison

    def targets(self, compared: Compared) -> Markup:
        """Every target, those that lost first."""
        comparison = compared.comparison
        arms = list(comparison.plan["arms"])
        start = starts(comparison.plan).get(comparison.treated)
        trained = {task.name for run in self.found.runs if run.folder.resolve() == start for task in run.tasks}
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
        bodies = [self.target_rows(comparison, at, control, arms) for at, control in self.views.of(comparison)]
        origins = [
            markup(
                tag("b", arm), f": starts from {about.get('start', 'an unknown model') if isinstance(about, Mapping) else about}"
            )
            for arm, about in comparison.plan["arms"].items()
        ]
        return self.section(
            f"Targets, losses first{self.of(compared)}",
            tag("p", "Gain is the score of the pre-finetuned arm minus that of the arm chosen above under “Compared with”, "
                "averaged over seeds; both arms saw the same labelled examples and made the same number of updates. Small "
                "numbers are the seeds. Majority is the score of always giving the most frequent answer; an arm at it has "
                "learned nothing."),
            tag("p", f"In the suite of the pre-finetuned run itself: {names(familiar)}. What it gains on these is not transfer "
                "to new tasks.", class_="notice") if familiar else None,
            table(head, bodies),
            tag("details", tag("summary", "The arms"), listed(origins)),
        )  # fmt: skip

    def target_rows(self, comparison: Comparison, at: str, control: str, arms: Sequence[str]) -> Markup:
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
            rows += [self.target_row(line, effect, arms) for line, effect in mine]
        paired = [line for line, _ in pairs]
        rest = [line for line in comparison.at(at) if line not in paired]
        if rest:
            about = f"Not compared yet: {len(rest)} with {labels_words(at)}, against {control}"
            rows.append(tag("tr", tag("th", tag("span", about), colspan=width, scope="rowgroup"), class_="group"))
            rows += [self.target_row(line, None, arms) for line in rest]
        return tag("tbody", rows, data_view=self.views.key(at, control))

    def target_row(self, line: Line, effect: Effect | None, arms: Sequence[str]) -> Markup:
        size = f", {line.labels:,} examples" if line.at == "all" else ""
        name = task_cell(line.task, f"{line.family}, {line.metric}{size}")
        majority = "" if line.majority is None else f"{line.majority:.3f}"
        scores = [arm_cell(list(line.scores.get(arm, {}).values())) for arm in arms]
        effects = effect_cells(effect) if effect else markup([tag("td")] * 4)
        return tag("tr", name, effects, scores, number(majority), data_task=self.tasks.number(line.task, line.family))

    def gains(self, compared: Compared) -> Markup:
        legend = [
            markup(tag("span", sign, class_="sign", style=f"color:var({colour})", aria_hidden="true"), " ", words)
            for words, _, sign, colour in GROUPS
        ]
        legend.append(markup(tag("span", "•", class_="sign", aria_hidden="true"), " one seed"))
        words = "Each row is a target: the triangle is its mean gain, the line its 95 % interval, and each dot one seed."
        spec = gain_chart(compared.comparison, self.views, self.tasks)
        return self.section(f"Gain per target{self.of(compared)}", self.noted(spec, words, listed(legend, class_="legend")))

    def against_labels(self, compared: Compared) -> Markup:
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
            task = self.tasks.number(line.task, line.family) if line else None
            words = f"{title}: score against number of labels, per arm"
            figures.append(
                tag("figure", tag("figcaption", tag("b", title), tag("small", about)), self.chart(spec, words), data_task=task)
            )
        counts = "Each panel is a target: its score (higher is better) by number of labels, a line per arm, a small dot per seed."
        return self.section(
            f"Score against labels{self.of(compared)}",
            tag("p", counts, " The scales differ between panels."),
            listed(legend, class_="legend"),
            shown_line(),
            tag("div", figures, class_="panels", data_most=MOST_PANELS),
        )

    def not_run(self, compared: Compared) -> Markup:
        progress = compared.progress
        missing = missing_words(compared.comparison)
        told = f"{progress.done:,} of {progress.planned:,} planned trainings are done, those that choose learning rates included."
        body = listed(missing) if missing else tag("p", "Everything that was planned was run.")
        return self.section(
            f"What was not run{self.of(compared)}", tag("p", told), body, anchor=f"{self.place(compared)}-missing"
        )

    # ---- runs

    def training(self, run: Run) -> Markup:
        lines = loss_lines(run)
        families = {task.name: task.family for task in run.tasks}
        numbered = [(self.tasks.number(name, families.get(name, "")), line) for name, line in lines.items()]
        arms = [arm for compared in self.found.comparisons for arm, start in starts(compared.comparison.plan).items()
                if start == run.folder.resolve()]  # fmt: skip
        role = f"start of arm {names(list(dict.fromkeys(arms)))} · " if arms else ""
        title = f"Run {run.name}"
        parts: list[Any] = [tag("p", role, run_words(run), class_="about")]
        if not numbered:
            parts.append(tag("p", "No update of this run is recorded yet."))
            return self.section(title, parts)
        last = {name: losses[-1] for name, (_, losses) in lines.items()}
        stuck = [name for name, loss in last.items() if loss is not None and loss >= 1]
        if stuck:
            words = f"{len(stuck)} of {len(last)} tasks stand no better than a uniform guess at the end: {names(stuck)}."
            parts.append(tag("p", words, class_="notice"))
        words = (
            "Each line is a task's training loss, in means over stretches of the run; at 1 it is no better than a uniform guess."
        )
        if len(numbered) > MOST_LINES:
            words += f" The {MOST_LINES} with the highest last loss are in colour; filter by name to colour others."
        parts += [tag("h3", "Loss per task"), self.noted(loss_chart(numbered), words, tag("ul", class_="legend lines"))]
        shares, counted = run.shares()
        if len(shares) > 1:
            shares_words = (
                "Each row is a task: its share of the examples (circle) and of the tokens (diamond) that the model was shown."
            )
            if not counted:
                shares_words += (
                    " Expected shares, from the sizes in suite.yaml and the mixture's rates: the run did not count them."
                )
            parts += [tag("h3", "Share of the mixture"), self.noted(share_chart(run, self.tasks), shares_words)]
        speed = [
            tag("figure", tag("figcaption", tag("b", title)), self.chart(spec, f"{title} over updates"))
            for title, spec in speed_charts(run)
        ]
        parts += [tag("h3", "Throughput and padding"),
                  tag("p", "How fast the run went and how much of what was computed was filling: means between logged updates."),
                  tag("div", speed, class_="panels")]  # fmt: skip
        if affinity := affinity_parts(self, run):
            parts += [tag("h3", AFFINITY), *affinity]
        parts += [tag("h3", "Tasks, highest last loss first"), self.task_table(run, lines)]
        return self.section(title, parts)

    def task_table(self, run: Run, lines: Mapping[str, tuple[list[int], list[float | None]]]) -> Markup:
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
                    data_task=self.tasks.number(name, entry.family if entry else ""),
                )
            )  # fmt: skip
        return table(head, [tag("tbody", rows)])

    def fine_tunings(self, runs: Sequence[Run]) -> Markup:
        columns = ("Score", "Labels", "Updates")
        head = tag("thead", tag("tr", heading("Run"), heading("State"), *(heading(name, right=True) for name in columns),
                                heading("Starts from")))  # fmt: skip
        rows, series = [], []
        for run in runs:
            family = run.tasks[0].family if run.tasks else ""
            task = run.tasks[0].name if run.tasks else ""
            place = self.tasks.number(f"{task} ({run.name})", family)
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
            parts += [tag("h3", "Loss"), self.noted(loss_chart(series), words, tag("ul", class_="legend lines"))]
        return self.section("Fine-tunings", parts)

    # ---- how it was made

    def settings(self) -> Markup:
        """Settings of all runs side by side, those that differ from their defaults first."""
        defaults = default_settings()
        settings = [(run.name, flat(run.config)) for run in self.found.runs]
        settings += [(one.name, flat(one.comparison.plan.get("settings") or {})) for one in self.found.comparisons]
        columns = merged([(name, {key: value for key, value in own.items() if key != "seed"}) for name, own in settings])
        keys = [*defaults, *dict.fromkeys(key for _, values in columns for key in values if key not in defaults)]
        changed = [key for key in keys if any(key in values and values[key] != defaults.get(key) for _, values in columns)]
        rest = [key for key in keys if key not in changed and key != "seed"]
        if not columns:
            return Markup("")
        return self.section(
            "Settings",
            tag("p", "What differs from the defaults that ", tag("code", "prefinetune settings"), " lists, in bold; runs with "
                "equal settings share a column, and seeds stand under Provenance."),
            side_by_side(changed, [("default", defaults), *columns], against_first=True),
            tag("details", tag("summary", f"{len(rest)} settings at their defaults"),
                side_by_side(rest, [("default", defaults)])),
        )  # fmt: skip

    def provenance(self) -> Markup:
        """Versions, machine, seeds, digests and times."""
        columns = []
        for run in self.found.runs:
            digests = {f"digest of {key}": value for key, value in run.identity.items() if key in ("settings", "data")}
            columns.append((run.name, {
                "kind": run.kind, "state": run.state, "model": run.model, "seed": run.config.get("seed"), "started": run.started,
                "ended": run.ended, **flat({k: v for k, v in run.environment.items() if k != "started"}), **digests,
            }))  # fmt: skip
        for compared in self.found.comparisons:
            plan, environment = compared.comparison.plan, compared.comparison.plan.get("environment") or {}
            weights = {
                f"weights of {arm}": about.get("weights") for arm, about in plan["arms"].items() if isinstance(about, Mapping)
            }
            columns.append((compared.name, {
                "kind": "comparison", "seeds": plan["seeds"], "learning rates tried": plan["grid"],
                "seeds that chose among them": plan["tuning_seeds"], "command": plan.get("command"),
                "started": plan.get("started"), "ended": compared.progress.ended,
                **flat({k: v for k, v in environment.items() if k not in ("started", "command")}), **weights,
            }))  # fmt: skip
        keys = list(dict.fromkeys(key for _, values in columns for key in values))
        return self.section("Provenance", side_by_side(keys, columns))

    def data(self) -> Markup:
        """Every task's source, licence and digest."""
        found: dict[tuple[Any, ...], list[str]] = {}
        for run in self.found.runs:
            for task in run.tasks:
                key = (task.name, task.family, task.source, task.license, task.digest)
                found.setdefault(key, []).append(run.name)
        for compared in self.found.comparisons:
            for name, about in compared.comparison.plan["tasks"].items():
                where = str(about.get("source", ""))
                key = (name, str(about.get("family", "")), where, str(about.get("license", "")), str(about.get("data", "")))
                found.setdefault(key, []).append(compared.name)
        if not found:
            return Markup("")
        head = tag("thead", tag("tr", *(heading(name) for name in ("Task", "Used in", "Source", "Licence", "Digest"))))
        rows = [
            tag("tr", task_cell(name, family), tag("td", names(used, 3)), tag("td", source), tag("td", licence),
                tag("td", digest, class_="code"), data_task=self.tasks.number(name, family))
            for (name, family, source, licence, digest), used in sorted(found.items())
        ]  # fmt: skip
        return self.section("Data and licences", table(head, [tag("tbody", rows)]))

    def stages(self) -> Markup:
        parts = []
        for name, seconds in self.found.stages.items():
            rows = [tag("tr", tag("th", stage, scope="row"), number(f"{value:,.0f} s")) for stage, value in seconds.items()]
            head = tag("thead", tag("tr", heading(f"Stage of {name}"), heading("Time", right=True)))
            parts.append(table(head, [tag("tbody", rows)]))
        return self.section("Time per stage", parts)


# ---- cells and sentences


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


def run_words(run: Run) -> str:
    """A run in one line."""
    planned = f" of {run.planned:,}" if run.planned and run.planned != run.updates else ""
    parts = [run.state, f"{run.updates:,}{planned} updates", f"{len(run.tasks):,} task{'s' if len(run.tasks) != 1 else ''}"]
    parts.append(f"from {run.model}")
    if run.score is not None:
        parts.append(f"{'mean' if run.finished else 'best mean'} validation score {run.score:.3f}")
    return " · ".join(parts)


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
