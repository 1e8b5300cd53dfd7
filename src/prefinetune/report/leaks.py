"""The page of `prefinetune tasks leaks`: which training rows show evaluation rows, with pairs to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefinetune.files import write
from prefinetune.leaks import Leaks, Overlap
from prefinetune.report.document import document
from prefinetune.report.markup import Markup, listed, markup, printable, tag

HEADINGS = (
    ("Training task", ""),
    ("Evaluation split", ""),
    ("Training rows that leak", "exact, normalised, by n-grams"),
    ("Evaluation rows that leak", "share of the split"),
    ("Only the context shared", "evaluation rows"),
    ("Only another text shared", "evaluation rows"),
)
KINDS = {
    "exact": "the very texts",
    "normalised": "the same letters and digits",
    "n-grams": "the same words for a good part",
    "shared context": "no leak: only the longest text is shared",
    "shared text": "no leak: only a shorter text is shared",
}


def write_leaks(found: Leaks, name: str, out: Path) -> Path:
    """Write the page; it is there whole or as it was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, printable(page(found, name)))
    return out


def page(found: Leaks, name: str) -> str:
    leaking = [one for one in found.overlaps if one.rows]
    sharing = [one for one in found.overlaps if not one.rows]
    return document(
        f"Leaks in {name}",
        tag(
            "header",
            tag("p", "prefinetune tasks leaks", class_="kicker"),
            tag("h1", f"Does “{name}” train on evaluation rows?"),
            tag("p", summary(found), class_="lead"),
            tag("p", how(found)),
        ),
        tag(
            "main",
            section("Training rows that show evaluation rows", leaking, "None."),
            section(
                "No leaks, but texts in common",
                sharing,
                "None.",
                "A passage, or a sentence, that stands in both, with another question or another partner. Nothing is left out.",
            ),
            tag(
                "section",
                tag("h2", "What was compared"),
                tag("details", tag("summary", f"{len(found.training_rows)} training splits"), counted(found.training_rows)),
                tag("details", tag("summary", f"{len(found.evaluation_rows)} evaluation splits"), counted(found.evaluation_rows)),
            ),
        ),
        tag("footer", tag("p", "Written by prefinetune. This file needs no network.")),
    )


def summary(found: Leaks) -> str:
    counts = found.counts
    rows, total = sum(counts.values()), sum(found.training_rows.values())
    evaluation = sum(map(len, found.leaking.values()))
    size = sum(found.evaluation_rows.values())
    if not rows:
        return f"No: none of {total:,} training rows shows one of the {size:,} evaluation rows."
    return (
        f"Yes: {rows:,} of {total:,} training rows, in {len(counts)} of {len(found.training_rows)} tasks, show {evaluation:,} of "
        f"{size:,} evaluation rows. Training leaves these training rows out, unless it is told not to."
    )


def how(found: Leaks) -> str:
    return (
        "A training row shows an evaluation row when one of that row's texts stands in it (the same letters and digits, or "
        f"{found.share:.0%} of its {found.n}-grams of words) and all its other texts at least in part. A shared passage with "
        "another question is no leak, and is counted apart. Texts that are worded anew, or translated, are not found."
    )


def section(title: str, overlaps: Sequence[Overlap], nothing: str, words: str = "") -> Markup:
    if not overlaps:
        return tag("section", tag("h2", title), tag("p", nothing))
    header = [tag("th", words, note and tag("small", note), scope="col", class_=at > 1 and "number") for at, (words, note)
              in enumerate(HEADINGS)]  # fmt: skip
    rows = [line(one) for one in overlaps]
    pairs = [
        tag("details", tag("summary", f"{one.task} and {one.against}/{one.role}"), [pair(example) for example in one.examples])
        for one in overlaps
    ]
    return tag(
        "section",
        tag("h2", title),
        words and tag("p", words),
        tag("div", tag("table", tag("thead", tag("tr", header)), tag("tbody", rows)), class_="box"),
        tag("h3", "Pairs to look at"),
        pairs,
    )


def line(one: Overlap) -> Markup:
    share = f"{one.evaluation_rows / max(one.evaluation_size, 1):.1%} of {one.evaluation_size:,}"
    kinds = f"{one.exact:,} + {one.normalised:,} + {one.ngram:,}"
    cells = [
        tag("td", f"{number:,}", tag("small", note), class_="number")
        for number, note in ((one.rows, kinds), (one.evaluation_rows, share))
    ]
    cells += [tag("td", f"{number:,}", class_="number") for number in (one.shared_context, one.shared_text)]
    return tag("tr", tag("th", one.task, scope="row"), tag("td", f"{one.against}/{one.role}"), cells)


def pair(example: dict[str, Any]) -> Markup:
    return markup(
        tag("p", tag("strong", example["kind"]), f": {KINDS[example['kind']]}"),
        tag("p", f"training row {example['training_row']:,}", class_="quiet"),
        listed(example["training"]),
        tag("p", f"evaluation row {example['evaluation_row']:,}", class_="quiet"),
        listed(example["evaluation"]),
    )


def counted(rows: Any) -> Markup:
    return listed(f"{name}: {count:,} rows" for name, count in rows.items())
