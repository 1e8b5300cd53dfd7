"""What became of every row: counted by the rule that decided, and, where a row could not be used, named with the reason.

The rows of a source are the rows of its table and its faults; `splits.py` leaves some out by rule, `store.py` makes the others
into examples or sets them aside. An account follows a role of a task through both, and stops the run when too many are bad.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from prefinetune.errors import InputError
from prefinetune.files import read_records, write

QUARANTINE = "quarantine.jsonl"
BAD_ROWS = 0.01  # the share of rows that may be unusable, where nothing else is said
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # what a message suggests instead

STORED, SET_ASIDE, NO_LABEL = "stored", "quarantined", "skip"
OVERLAP, LEAK, HELD_OUT, BEYOND_MOST, NOT_SCORED = "overlap", "leak", "held_out", "max_rows", "evaluation_rows"
RULES = {  # every row of a role is under exactly one of these
    OVERLAP: "listed by the mirror as rows of another set's evaluation split",
    LEAK: "training rows that show evaluation rows",
    HELD_OUT: "held out for validation",
    BEYOND_MOST: "beyond data.max_rows",
    NOT_SCORED: "beyond train.evaluation_rows or train.test_rows",
    NO_LABEL: "without a label, as the record's `skip` says",
    SET_ASIDE: f"of no use; {QUARANTINE} says why",
    STORED: "made into examples",
}
BEFORE_READING = (OVERLAP, LEAK, HELD_OUT, BEYOND_MOST, NOT_SCORED)


class Fault(NamedTuple):
    """A row that cannot be used."""

    place: str  # its file
    row: int  # counted from 0 in that file
    reason: str
    line: int | None = None  # the first one of the row, in a text file, counted from 1

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.place}, row {self.row}{line}: {self.reason}"

    def record(self) -> dict[str, Any]:
        """As a line of quarantine.jsonl."""
        return {name: value for name, value in self._asdict().items() if value is not None}


@dataclass
class Account:
    """What became of the rows of one role of a task.

    Attributes:
        rows: how many the source has for the role.
        allowed: the share of those that were read that may be of no use.
        counts: rows by rule; see RULES.
        faults: the rows set aside.
        blank_lines: lines of a text file that hold nothing, and so are no rows.
    """

    task: str
    role: str
    place: str
    rows: int
    allowed: float = BAD_ROWS
    counts: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    blank_lines: int = 0

    @property
    def read(self) -> int:
        """Rows that no rule took out before anyone looked at them."""
        return self.rows - sum(self.counts.get(rule, 0) for rule in BEFORE_READING)

    def add(self, rule: str, rows: int = 1) -> None:
        self.counts[rule] = self.counts.get(rule, 0) + rows

    def set_aside(self, *faults: Fault) -> None:
        """Enter rows that cannot be used.

        Raises:
            InputError: they are more than the share allowed.
        """
        if faults:
            self.faults.extend(faults)
            self.counts[SET_ASIDE] = len(self.faults)
            self.limit()

    def limit(self) -> None:
        """Raises InputError where more rows are of no use than is allowed."""
        if len(self.faults) > self.allowed * self.read + 1e-9:
            raise too_many(self.faults, f"{self.read:,}", len(self.faults) / max(self.read, 1), self.allowed)

    def check(self) -> None:
        """Raises RuntimeError where a row is under no rule or under two: an error of ours."""
        if self.rows != sum(self.counts.values()) or set(self.counts) - set(RULES) or min(self.counts.values(), default=0) < 0:
            raise RuntimeError(f"{self.task}, {self.role}: {self.rows} rows, but accounted for are {self.counts}")

    def as_dict(self) -> dict[str, int]:
        """Counts, the whole first; `blank_lines` is not part of it."""
        counted = {rule: self.counts[rule] for rule in RULES if self.counts.get(rule)}
        return {"rows": self.rows, **counted, **({"blank_lines": self.blank_lines} if self.blank_lines else {})}

    def told(self) -> str | None:
        """One line about the rows set aside, if there are any."""
        if not self.faults:
            return None
        which = "rows" if self.role == "train" else f"{self.role} rows"
        return f"{self.task}: {len(self.faults):,} of {self.read:,} {which} set aside ({QUARANTINE}); the first: {self.faults[0]}"

    def records(self) -> list[dict[str, Any]]:
        """Lines of quarantine.jsonl."""
        return [{"task": self.task, "role": self.role, **fault.record()} for fault in self.faults]


def too_many(faults: Iterable[Fault], rows: str, share: float, allowed: float) -> InputError:
    """The error of a split with more rows of no use than is allowed: the first few, and how to go on.

    Args:
        rows: the number of rows in the split, as the message says it.
        share: of them that is bad, as far as is known.
    """
    faults = list(faults)
    shown = "; ".join(str(fault) for fault in faults[:3])
    enough = next((one for one in SHARES if one >= 1.5 * share), 1.0)
    many = "1 row" if len(faults) == 1 else f"{len(faults):,} rows"
    more = f"; and {len(faults) - 3:,} more" if len(faults) > 3 else ""
    return InputError(
        f"{shown}{more}. {many} of {rows} cannot be used, more than data.bad_rows={allowed:g} allows; correct them, or set up to "
        f"{enough:.0%} of the rows aside with data.bad_rows={enough:g}"
    )


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A line each; no file where there are none."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if text:
        write(path, text)


def write_quarantine(folder: Path, accounts: Iterable[Account]) -> None:
    """Name the rows set aside in a folder's quarantine.jsonl, those of other tasks staying as they are."""
    accounts = list(accounts)
    mine = {account.task for account in accounts}
    kept = [record for record in read_records(folder / QUARANTINE) if record["task"] not in mine]
    new = [record for account in accounts for record in account.records()]
    if new or kept:
        write_records(folder / QUARANTINE, [*kept, *new])
    else:
        (folder / QUARANTINE).unlink(missing_ok=True)
