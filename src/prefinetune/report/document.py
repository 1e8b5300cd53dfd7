"""An HTML file that needs nothing from anywhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from prefinetune.report.markup import Markup, tag

# A browser that obeys this would fetch nothing if it tried.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def document(title: str, *body: Any) -> str:
    """A page in our style; `body` is what markup.tag takes."""
    return (
        "<!doctype html>\n"
        + tag(
            "html",
            tag(
                "head",
                Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
                Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
                Markup('<meta name="color-scheme" content="light dark">'),
                tag("title", title),
                tag("style", Markup(resource("page.css"))),
            ),
            tag("body", *body),
            lang="en",
        )
        + "\n"
    )


def resource(name: str) -> str:
    return (files("prefinetune.report") / name).read_text(encoding="utf-8")
