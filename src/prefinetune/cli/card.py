"""`prefinetune card`: the model card of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefinetune.cli.shared import Json, emit
from prefinetune.errors import InputError


def card(
    run: Annotated[Path, typer.Argument(help="A run that is finished.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file; RUN/model/README.md when left out.")] = None,
    evidence: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A comparison or study of it, instead of those beside it. May be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the model card of a run: datasets, licences, scores, what it hurt and what it helped."""
    from prefinetune.card import write_card
    from prefinetune.display import Display

    try:
        page = write_card(run, run / "model", out=out, evidence=evidence)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written ({error.strerror}); choose another --out") from None
    Display().say(f"the card is in {page}")
    if as_json:
        emit({"out": str(page)})
