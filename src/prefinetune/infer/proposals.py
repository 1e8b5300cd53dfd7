"""What is proposed for a folder of files and what is left out, each with its reasons; as records, and as a suite file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefinetune.errors import InputError, listing
from prefinetune.families import Family
from prefinetune.infer.text import comment, entry_lines, entry_of, fields_of, flow, moved, relative, suite_name
from prefinetune.sources import ROLES
from prefinetune.task import Suite, Task


@dataclass(frozen=True)
class Proposal:
    """A task as the files suggest it.

    Attributes:
        task: what is proposed.
        files: the files it reads, by split.
        rows: how many there are, by split.
        confidence: high, medium or low.
        reasons: what speaks for it.
        remarks: what a person should look at.
        alternatives: (other family, why it could be that).
    """

    task: Task
    confidence: str
    reasons: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    alternatives: tuple[tuple[Family, str], ...] = ()
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            **entry_of(self.task), "confidence": self.confidence, "reasons": list(self.reasons), "remarks": list(self.remarks),
            "alternatives": [{one.kind: fields_of(one), "why": why} for one, why in self.alternatives],
            "files": {split: [str(path) for path in paths] for split, paths in self.files.items()}, "rows": dict(self.rows),
        }  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """Files that are in no proposed task, why, and what they would be once that is mended."""

    files: tuple[Path, ...]
    reason: str
    proposal: Proposal | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        would = None if self.proposal is None else self.proposal.as_dict()
        return {"files": [str(path) for path in self.files], "reason": self.reason, "proposal": would}


@dataclass(frozen=True)
class Inferred:
    """What a folder holds: every file under it is in a proposal or left out, and no file is in both."""

    folder: Path
    proposals: tuple[Proposal, ...]
    left_out: tuple[LeftOut, ...]

    def suite(self, at: str | Path | None = None) -> Suite:
        """The proposed tasks; with `at`, exactly as `read_suite` reads them from a suite file in that place.

        Raises:
            InputError: there are none.
        """
        if not self.proposals:
            raise InputError(f"{self.folder}: no task was found in its {len(self.left_out)} kinds of files")
        tasks = [one.task if at is None else moved(one.task, Path(at).parent) for one in self.proposals]
        return Suite(suite_name(self.folder), tuple(tasks))

    def text(self, at: str | Path) -> str:
        """A suite file to be read by a person first, for the place `at`: paths in it are relative to that."""
        return write_text(self, Path(at))

    def write(self, out: str | Path, overwrite: bool = False) -> Path:
        """Write the suite file.

        Raises:
            InputError: it is there already, and `overwrite` is false.
        """
        from prefinetune.files import write

        out = Path(out)
        if out.exists() and not overwrite:
            raise InputError(f"{out} is there already; name another file, or say that it may be overwritten")
        write(out, self.text(out))
        return out

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "folder": str(self.folder), "tasks": [one.as_dict() for one in self.proposals],
            "left_out": [one.as_dict() for one in self.left_out],
        }  # fmt: skip


def write_text(found: Inferred, out: Path) -> str:
    """The suite file of `Inferred.text`."""
    place = out.parent
    count = sum(len(paths) for one in found.proposals for paths in one.files.values())
    left = sum(len(one.files) for one in found.left_out)
    where = relative(str(found.folder), place)
    where = "this folder" if where == "." else where
    others = f"; {'1 file is' if left == 1 else f'{left} files are'} left out, see the end" if left else ""
    lines = comment(
        f"Proposed by `prefinetune tasks infer`: {len(found.proposals)} tasks from {count} files in {where}{others}. All is "
        "guessed from the names and values of columns: read it before you train. `prefinetune tasks preview` shows what rows "
        "become, and `prefinetune tasks check` reads all of them. `prefinetune schema` prints what an editor needs to complete "
        "this file."
    )
    lines += [f"name: {flow(suite_name(found.folder))}", "tasks:" if found.proposals else "tasks: []"]
    for one in found.proposals:
        lines += ["", *describe(one), *entry_lines(one.task, place)]
    if found.left_out:
        lines += ["", *comment("Left out:", "  ")]
        for out_of in found.left_out:
            names = [relative(str(path), place) for path in out_of.files]
            lines += ["  #", *comment(f"{listing(names, 8)}: {out_of.reason}", "  ", "- ")]
            if out_of.proposal is not None:
                lines += comment(f"  Once that is mended ({out_of.proposal.confidence} confidence):", "  ")
                lines += [f"  # {line}" for line in entry_lines(out_of.proposal.task, place, "")]
    return "\n".join(lines) + "\n"


def describe(one: Proposal) -> list[str]:
    """The comments above an entry."""
    words = {"train": "training"}
    rows = ", ".join(f"{one.rows[role]:,} {words.get(role, role)}" for role in ROLES if role in one.rows)
    lines = comment(f"{one.confidence.capitalize()} confidence: {one.task.family.kind}; {rows} rows", "  ")
    for reason in one.reasons:
        lines += comment(reason, "  ", "- ")
    for remark in one.remarks:
        lines += comment(remark, "  ", "! ")
    for family, why in one.alternatives:
        lines += comment(f"or {family.kind}: {flow(fields_of(family))}  ({why})", "  ")
    return lines
