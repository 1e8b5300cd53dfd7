"""`prefinetune cache`: what is kept of prepared data, and room made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from prefinetune.cli.shared import Cache, Json, emit, show_table
from prefinetune.errors import InputError

if TYPE_CHECKING:
    from prefinetune.cache import Entry


def cache(
    remove_unused: Annotated[
        str,
        typer.Option(
            metavar="30d", help="Remove what was not opened for so many days (d) or hours (h); it is made anew when needed."
        ),
    ] = "",
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Show what the cache of prepared data holds, or remove what is no longer used."""
    from prefinetune import cache as kept

    root = cache or kept.cache_folder()
    removed = kept.remove_unused(root, parse_age(remove_unused)) if remove_unused else []
    found = kept.entries(root)
    if as_json:
        kinds = {kind: count([one for one in found if one.kind == kind]) for kind in kept.KINDS}
        emit({"cache": str(root), "kinds": kinds, "removed": count(removed)})
        return
    if remove_unused:
        print(f"removed: {len(removed):,} entries, {kept.in_megabytes(count(removed)['bytes'])}")
    rows = []
    for kind, told in kept.KINDS.items():
        mine = [one for one in found if one.kind == kind]
        used = [datetime.fromtimestamp(one.used).strftime("%Y-%m-%d") for one in mine]
        spans = " to ".join(dict.fromkeys((min(used), max(used)))) if used else ""
        rows.append((kind, told, f"{len(mine):,}", kept.in_megabytes(count(mine)["bytes"]), spans))
    show_table(("kind", "what", "entries", "size", "last opened"), rows)
    print(f"{root}: {kept.in_megabytes(count(found)['bytes'])}")


def count(found: Sequence[Entry]) -> dict[str, int]:
    return {"entries": len(found), "bytes": sum(one.bytes for one in found)}


def parse_age(text: str) -> float:
    """30d or 12h in seconds.

    Raises:
        InputError: it is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([dh])", text.strip())
    if not match:
        raise InputError(f"--remove-unused: {text!r} is not accepted; expected days (30d) or hours (12h)")
    return float(match[1]) * {"d": 24 * 3600, "h": 3600}[match[2]]
