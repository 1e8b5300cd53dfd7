"""The one error a user can cause. The command line prints it without a traceback and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Something the user gave is not usable; the message names it and says what would have been accepted."""


class Unavailable(InputError):
    """A dataset that cannot be found. `unreachable` says that the hub could not be asked at all; `obtainable` that it may be had
    from there."""

    def __init__(self, message: str, unreachable: bool = False, obtainable: bool = True) -> None:
        super().__init__(message)
        self.unreachable, self.obtainable = unreachable, obtainable


class FieldError(InputError):
    """One value of one row is not usable. Whoever knows the file and the row number adds them with `at`."""

    def __init__(self, field: Any, value: Any, accepted: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        super().__init__(f"field {field_name(field)!r}: {shown} is not accepted; expected {accepted}")

    def at(self, place: str, row: int) -> InputError:
        return InputError(f"{place}, row {row}: {self}")


def field_name(field: Any) -> str:
    """How a field (column, dotted path, function or a tuple of them) is named in messages."""
    if isinstance(field, (tuple, list)):
        return " + ".join(field_name(part) for part in field)
    return getattr(field, "__qualname__", None) or str(field)


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` when something known is close to `name` or ends in it (glue/rte for rte), else an empty string."""
    known = list(known)
    close = [one for one in known if one.endswith(f"/{name}")] or difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listing(names: Iterable[Any], limit: int = 12) -> str:
    """The first `limit` names, comma-separated, with a count of what is left out."""
    names = [str(name) for name in names]
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
