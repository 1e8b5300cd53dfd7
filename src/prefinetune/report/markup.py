"""HTML that escapes by itself: whatever is not made by `tag` is text, whoever wrote it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

EMPTY = ("input", "br", "col")  # elements without an end


class Markup(str):
    """A text that is HTML already."""


def markup(*parts: Any) -> Markup:
    """Parts one after the other: Markup as it is, everything else as text; None is nothing, lists are their parts."""
    found: list[str] = []
    for part in parts:
        if isinstance(part, Markup):
            found.append(part)
        elif isinstance(part, (list, tuple)):
            found.append(markup(*part))
        elif part is not None:
            found.append(html.escape(str(part)))
    return Markup("".join(found))


def tag(name: str, *parts: Any, **attributes: Any) -> Markup:
    """An element. Of attributes, None and False are left out, True has no value; class_ is class and data_task is data-task."""
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"')
    opened = f"<{name}{''.join(written)}>"
    return Markup(opened if name in EMPTY else f"{opened}{markup(*parts)}</{name}>")


def listed(items: Iterable[Any], **attributes: Any) -> Markup:
    return tag("ul", [tag("li", item) for item in items], **attributes)


def embedded(value: Any) -> Markup:
    """JSON that can stand inside a script element: nothing in it can end that element or open a comment.

    Raises:
        ValueError: a number in it is not finite.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def printable(text: str) -> str:
    """The text as UTF-8 can hold it: half a surrogate pair, which JSON allows, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
