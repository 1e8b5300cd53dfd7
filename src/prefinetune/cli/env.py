"""`prefinetune env`: what a bug report needs."""

from __future__ import annotations

from prefinetune.cli.shared import Json, emit
from prefinetune.safety import visible


def env(as_json: Json = False) -> None:
    """Print versions, machine and settings of the environment, for a bug report."""
    from prefinetune.environment import markdown, report

    found = report()
    if as_json:
        emit(found)
    else:
        print(visible(markdown(found)))
