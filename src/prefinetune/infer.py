"""A folder of files to a suite file: which files are one task, which family each poses, and why.

`infer_suite` accounts for every file it finds: in a proposal, or left out with the reason. What a table poses is guessed in
`guess.py` from a sample of its rows; each proposal is then checked on all rows (`check.py`), so that what is written can be
trained on. The result is meant to be read by a person first: reasons, doubts and alternatives stand beside each entry.
"""

from __future__ import annotations

import os
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefinetune.check import check_task
from prefinetune.errors import InputError, listing
from prefinetune.families import Choice, Classification, Family, Regression
from prefinetune.families.base import plain, read
from prefinetune.guess import LABEL, Guess, Table, called, confidence, guess, look, quoted, says_the_same
from prefinetune.readers import COMPRESSED, KINDS, Text, delimiter, file_kind
from prefinetune.sources import ALIASES, ROLES, Files, Rows, Source
from prefinetune.splits import spread_rows
from prefinetune.task import NAME, Suite, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console

SAMPLE, LEADING = 2000, 200  # rows looked at for a guess, of which so many are the first ones
FEW = 4  # rows of a label: so few may all be held out for validation, and then it must be declared
WIDTH = 110  # characters of a comment

SPLIT_WORDS = {
    **{role: role for role in ROLES}, **ALIASES, "training": "train", "trn": "train", "testing": "test", "devel": "validation",
}  # fmt: skip
SHARD = re.compile(r"[-_.]?(\d+[-_]of[-_]\d+|part[-_]?\d+|\d{3,})$", re.IGNORECASE)
HINTS = {
    ".txt": "texts without a table; write them as JSON lines such as {\"text\": \"...\"}", ".md": "not a table of rows",
    ".xlsx": "a spreadsheet; save its sheet as CSV (UTF-8)", ".xls": "a spreadsheet; save its sheet as CSV (UTF-8)",
    ".ods": "a spreadsheet; save its sheet as CSV (UTF-8)", ".zip": "an archive; unpack it first",
    ".tar": "an archive; unpack it first", ".tgz": "an archive; unpack it first", ".pkl": "a pickle, which is never read",
    ".pickle": "a pickle, which is never read", ".yaml": "not data", ".yml": "not data",
}  # fmt: skip


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


def infer_suite(folder: str | Path) -> Inferred:
    """Look at all files under a folder, and propose a task for each table of rows.

    Raises:
        InputError: it is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is not a folder; expected one with {listing(KINDS)} files in it")
    proposals: list[Proposal] = []
    files, left_out = find_files(folder)
    groups, more = group_files(folder, files)
    left_out.extend(more)
    names: set[str] = set()
    for group in groups:
        for found in propose_group(folder, group, names):
            if isinstance(found, Proposal):
                proposals.append(found)
            else:
                left_out.append(found)
    return Inferred(folder, tuple(proposals), tuple(merge(left_out)))


def infer_task(rows: Any, name: str = "mine") -> Proposal:
    """The task that rows in memory pose.

    Args:
        rows: a DataFrame, a `datasets.Dataset`, a list of dictionaries, or a mapping from split to one of these (a
            `datasets.DatasetDict`, say).
        name: what the task is called.

    Raises:
        InputError: they are no table, or no family fits; with what would be needed.
    """
    tables = rows if isinstance(rows, Mapping) else {"train": rows}
    tables = {SPLIT_WORDS.get(str(split).lower(), str(split)): table for split, table in tables.items()}
    found = propose(name, Rows(tables, name=name), {})
    if isinstance(found, Proposal):
        found = check_proposal(found)
    if isinstance(found, LeftOut):
        raise InputError(f"{name}: {found.reason}")
    return found


# ---- files to groups


@dataclass(frozen=True)
class Group:
    """Files that are one task."""

    folder: Path  # where they are
    name: str  # what they share in their names
    splits: dict[str, list[Path]]
    alone: bool = False  # whether there is no other task in that folder


def find_files(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """(data files, all others with the reason), in order of their paths."""
    files: list[Path] = []
    others: list[LeftOut] = []
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in [name for name in folders if name.startswith(".") or (Path(here) / name).is_symlink()]:
            folders.remove(name)
            others.append(LeftOut((Path(here) / name,), "a hidden folder" if name.startswith(".") else "a link to a folder"))
        for name in sorted(names):
            path = Path(here) / name
            if reason := not_data(path):
                others.append(LeftOut((path,), reason))
            else:
                files.append(path)
    return files, others


def not_data(path: Path) -> str | None:
    """Why a file is not read at all, if so."""
    suffix = path.suffix.lower()
    if path.name.startswith((".", "~$")):
        return "a hidden file"
    if not file_kind(path):
        return HINTS.get(suffix) or f"not a kind of file that is read ({suffix or 'no ending'}); accepted: {listing(KINDS)}"
    if not path.is_file():
        return "not a file"
    if path.stat().st_size == 0:
        return "the file is empty"
    return text_problem(path) if file_kind(path) in ("csv", "json") else None


def text_problem(path: Path) -> str | None:
    """What the beginning of a text file says against it: another encoding, another delimiter, no header."""
    try:
        with Text(path) as text:
            beginning = text.stream.read(1 << 16)
    except Exception as error:  # the many ways in which a compressed file can be damaged
        return f"it cannot be opened: {(str(error) or type(error).__name__).splitlines()[0]}"
    if beginning.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        return "its text is UTF-16; save it as UTF-8"
    if "\0" in beginning:
        return "it holds zero bytes: no text, whatever its ending says"
    if not beginning.strip():
        return "the file is empty"
    return table_problem(path, beginning.splitlines()) if file_kind(path) == "csv" else None


def table_problem(path: Path, lines: Sequence[str]) -> str | None:
    header, mark = lines[0], delimiter(path)
    others = [sign for sign in (";", "\t", "|", ",") if sign != mark and header.count(sign) > header.count(mark)]
    if others and mark not in header:
        sign = others[0]
        wanted = {"\t": "rename it to end in .tsv", ",": "rename it to end in .csv"}.get(sign, f"save it with {mark!r} instead")
        return f"its columns are separated by {sign!r}, not by {mark!r}; {wanted}"
    cells = next(iter(csv_rows(lines[:1], mark)), [])
    rows = [row for row in csv_rows(lines[1:200], mark) if len(row) == len(cells)]
    strange = [
        cell for cell in cells if len(cell) > 60 or len(cell.split()) > 8 or re.fullmatch(r"-?\d+([.,]\d+)?", cell.strip())
    ]
    repeated = [cell for at, cell in enumerate(cells) if cell.strip() and sum(row[at] == cell for row in rows) >= 2]
    if strange or repeated:
        return (
            f"its first line seems to be a row and not the names of columns ({(strange or repeated)[0][:60]!r}); add such a line"
        )
    return None


def csv_rows(lines: Iterable[str], mark: str) -> list[list[str]]:
    import csv

    try:
        return list(csv.reader(lines, delimiter=mark))
    except csv.Error:
        return []


def group_files(folder: Path, files: Sequence[Path]) -> tuple[list[Group], list[LeftOut]]:
    """Files whose names say that they are the splits of one task, together; and files that say so but cannot be."""
    groups: dict[tuple[Path, str], dict[str, list[Path]]] = {}
    alone: list[Path] = []
    for path in files:
        base, role = split_of(path)
        here = path.parent
        if role is None and here != folder and here.name.lower() in SPLIT_WORDS:
            here, role = here.parent, SPLIT_WORDS[here.name.lower()]
        if role is None and base == stem(path):  # a file by itself, whatever others are called
            alone.append(path)
            continue
        groups.setdefault((here, base), {}).setdefault(role or "train", []).append(path)
    folders = Counter([*(here for here, _ in groups), *(path.parent for path in alone)])
    found = [Group(path.parent, stem(path), {"train": [path]}, folders[path.parent] == 1) for path in alone]
    left_out: list[LeftOut] = []
    for (here, base), splits in groups.items():
        kept: dict[str, list[Path]] = {}
        formats = {kind: [role for role, paths in splits.items() if any(file_kind(path) == kind for path in paths)]
                   for kind in ("parquet", "arrow", "json", "csv")}  # fmt: skip
        main = max(formats, key=lambda kind: len(formats[kind]))
        for role in sorted(splits, key=lambda role: ROLES.index(role)):
            paths = splits[role]
            mine = [path for path in paths if file_kind(path) == main] or paths[:1]
            same = [path for path in mine if shard_base(path) == shard_base(mine[0]) and path.suffix == mine[0].suffix]
            kept[role] = same if all(SHARD.search(stem(path)) for path in same) else mine[:1]
            for path in paths:
                if path not in kept[role]:
                    left_out.append(LeftOut((path,), f"the {role} rows of this task already come from {kept[role][0].name}"))
        found.append(Group(here, base, kept, folders[here] == 1))
    return sorted(found, key=lambda group: min(paths[0] for paths in group.splits.values())), left_out


def stem(path: Path) -> str:
    """The name of a file without the endings that say what kind of file it is."""
    name = path.name
    for _ in range(2):
        suffix = Path(name).suffix.lower()
        if suffix in KINDS or suffix in COMPRESSED:
            name = name[: -len(suffix)]
    return name


def shard_base(path: Path) -> str:
    return SHARD.sub("", stem(path))


def split_of(path: Path) -> tuple[str, str | None]:
    """(what is left of a file's name, its split): ("faq", "validation") for faq-dev.jsonl; None where the name has no split."""
    name = stem(path)
    for candidate in dict.fromkeys((shard_base(path), name)):
        parts = re.split(r"([-_. ]+)", candidate)
        for at in (len(parts) - 1, 0):
            if role := SPLIT_WORDS.get(parts[at].lower()):
                rest = parts[:at] if at else parts[1:]
                return "".join(rest).strip("-_. "), role
    return (shard_base(path) or name), None


# ---- groups to proposals


def propose_group(folder: Path, group: Group, names: set[str]) -> Iterator[Proposal | LeftOut]:
    """The task of a group. `names` holds those already given, and gets the new one."""
    files = {split: tuple(paths) for split, paths in group.splits.items()}
    every = tuple(path for paths in files.values() for path in paths)
    source = source_of(group)
    if source is None:
        yield LeftOut(every, "several files are one split; put them into a folder of their own as train-0, train-1 and so on")
        return
    name = task_name(folder, group, names)
    found: Proposal | LeftOut
    try:
        found = propose(name, source, files)
    except InputError as error:
        found = LeftOut(every, without_folder(str(error), every))
    if isinstance(found, Proposal):
        names.add(name)
        used = {path for paths in found.files.values() for path in paths}
        for split, paths in files.items():
            if not used.issuperset(paths):
                reason = next(remark for remark in found.remarks if remark.startswith(f"{split} is not used: "))
                yield LeftOut(paths, reason.removeprefix(f"{split} is not used: "))
        yield check_proposal(found)
    else:
        yield found


def check_proposal(proposal: Proposal) -> Proposal | LeftOut:
    """The proposal with what a check of all its rows has to say, or why it cannot be used as it is."""
    report = check_task(proposal.task)
    every = tuple(path for paths in proposal.files.values() for path in paths)
    if report.errors:
        return LeftOut(every, without_folder("; ".join(report.errors), every), proposal)
    said = ["without a label"]  # of all splits together, already
    said += ["never trained on", "no row has the label"] if any("no train row has" in one for one in proposal.remarks) else []
    more = [without_folder(remark, every) for remark in report.remarks if not any(words in remark for words in said)]
    more += [f"{path.name} begins with a byte order mark, which is passed over" for path in every if has_mark(path)]
    remarks = (*proposal.remarks, *more)
    return replace(proposal, remarks=tuple(dict.fromkeys(remarks)))


def has_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == b"\xef\xbb\xbf"


def without_folder(message: str, files: Sequence[Path]) -> str:
    """A message in which files go by their names only, and a single one by none: the entry says which files it is about."""
    for path in files:
        if len(files) == 1:
            message = message.replace(f"{path}: ", "").replace(f"{path}, ", "")
        message = message.replace(str(path), path.name)
    return message


def source_of(group: Group) -> Files | None:
    """The source as a suite file would give it; None where no source says that."""
    with suppress(InputError):  # of a folder without a file per split; then the files are named one by one
        if Files(str(group.folder)).files == group.splits:
            return Files(str(group.folder))
    if any(len(paths) > 1 for paths in group.splits.values()):
        return None
    if list(group.splits) == ["train"]:
        return Files(str(group.splits["train"][0]))
    return Files({split: str(paths[0]) for split, paths in group.splits.items()})


def task_name(folder: Path, group: Group, names: set[str]) -> str:
    """A name from where the files are, different from those already given also as the name of a folder."""
    parts = [*group.folder.relative_to(folder).parts] if group.alone else [*group.folder.relative_to(folder).parts, group.name]
    parts = [part for part in parts if part] or [group.name or folder.resolve().name]
    plain_parts = [unicodedata.normalize("NFKD", part).encode("ascii", "ignore").decode() for part in parts]
    clean = [re.sub(r"[^A-Za-z0-9_+]+", "-", part).strip("-_+") for part in plain_parts]
    name = "/".join(part for part in clean if part) or "task"
    assert NAME.fullmatch(name), name
    slugs = {other.replace("/", "-") for other in names}
    number, first = 2, name
    while name.replace("/", "-") in slugs:
        name, number = f"{first}-{number}", number + 1
    return name


def propose(name: str, source: Source, files: Mapping[str, tuple[Path, ...]]) -> Proposal | LeftOut:
    """The best guess about a source's rows that holds for all of its splits.

    Raises:
        InputError: its rows cannot be read.
    """
    every = tuple(path for paths in files.values() for path in paths)
    tables: dict[str, Dataset] = {}
    bad: list[str] = []
    for split in source.splits():
        read_table = source.read(split)
        tables[split] = read_table.rows
        if read_table.faults:
            first = without_folder(str(next(iter(read_table.faults.values()))), every)
            bad.append(f"{len(read_table.faults):,} of {len(read_table):,} rows cannot be read; the first: {first}")
        if not len(read_table.rows):
            return LeftOut(every, "; ".join(bad) or "there are no rows")
    main = next((split for split in (*ROLES, *tables) if split in tables), None)
    if main is None:
        return LeftOut(every, "there are no rows")
    table = sample(tables[main])
    if (problem := single_object(tables[main])) is not None:
        return LeftOut(every, problem)
    found = guess(table)
    reasons: list[str] = []
    for at, one in enumerate(found):
        settled = settle(one.family, tables, main)
        if isinstance(settled, str):
            reasons.append(settled)
            continue
        family, splits, remarks = settled
        others = alternatives(found[at + 1 :], one)
        remarks = [*dict.fromkeys([*reasons, *remarks, *one.doubts, *table.remarks, *look_closer(table, family, found, tables)])]
        kept = narrowed(source, splits)
        task = Task(name, kept, family, evaluation_only="train" not in splits)
        if family.kind == "generation":
            remarks.append("only models with a decoder can learn this (BART, T5); for an encoder, take this task out")
        if "train" not in splits:
            remarks.append("there are no training rows: for evaluation only")
        level = "low" if reasons or any(column.is_nested_text for column in table.columns) else confidence(table, found[at:])
        rows = {split: len(tables[split]) for split in splits}
        mine = {split: files[split] for split in splits if split in files}
        return Proposal(task, level, (*one.reasons, *unread(table, family)), tuple(remarks), others, mine, rows)
    there = "; ".join(column.tell() for column in table.columns if column.kind in ("text", "number"))
    why = "; ".join([*reasons, *bad]) or "no column with texts to learn from was found"
    return LeftOut(every, f"{why} (columns: {there or listing(column.name for column in table.columns)})")


def unread(table: Table, family: Family) -> tuple[str, ...]:
    """What is said about columns that the family does not read."""
    used = family.columns()
    others = [column for column in table.columns if "." not in column.name and column.name not in used]
    told = [quoted(column.name) + (" (empty in some rows)" if column.missing and column.is_text else "") for column in others]
    return (f"not used: {listing(told)}",) if told else ()


def sample(rows: Dataset) -> Table:
    """At most SAMPLE rows: the first ones, and others spread evenly."""
    chosen = np.arange(len(rows))
    if len(rows) > SAMPLE:
        chosen = np.union1d(chosen[:LEADING], spread_rows(len(rows), SAMPLE - LEADING))
    return look(rows.select(chosen).to_list(), rows.features)


def single_object(rows: Dataset) -> str | None:
    """What is wrong with a JSON file that is one object around its rows."""
    if len(rows) != 1:
        return None
    lists = [name for name, value in rows[0].items() if isinstance(value, list) and value and isinstance(value[0], Mapping)]
    if not lists:
        return None
    return f"it is one object and not a list of rows; write {listing(map(quoted, lists))} as JSON lines, a row each"


def narrowed(source: Source, splits: Sequence[str]) -> Source:
    """The source without splits that are of no use."""
    if list(source.splits()) == list(splits):
        return source
    if isinstance(source, Files):
        paths = {split: str(source.files[split][0]) for split in splits}
        return Files(paths["train"] if list(paths) == ["train"] else paths)
    assert isinstance(source, Rows)
    return Rows({split: source.tables[split] for split in splits}, name=source.name)


def settle(family: Family, tables: Mapping[str, Dataset], main: str) -> tuple[Family, list[str], list[str]] | str:
    """(family, the splits it can use, remarks) after a look at all labels of all splits: labels that evaluation rows alone have
    are declared, rows without a label skipped, splits without any left out. A text says why the family is not possible."""
    remarks: list[str] = []
    splits: list[str] = []
    for split, rows in tables.items():
        absent = [column for column in family.columns() if column not in rows.column_names]
        if absent and split == main:
            return f"{split} has no column {listing(map(quoted, absent))}"
        if absent:
            remarks.append(f"{split} is not used: it has no column {listing(map(quoted, absent))}")
        elif split in ROLES:
            splits.append(split)
        else:
            remarks.append(f"{split} is not used: a task has rows to train, to validate and to test")
    label: Any = getattr(family, "label", None)
    if not isinstance(family, (Classification, Regression, Choice)) or not isinstance(label, str):
        return declare_lists(family, tables, splits, main, remarks)
    values = {split: Counter(label_values(tables[split], label)) for split in splits}
    known = {value for split in splits for value in values[split] if not unlabelled(value)}
    minus = [value for value in known if str(value) == "-1"]
    numbers = {float(value) for value in known if re.fullmatch(r"-?\d+(\.0)?", str(value))}
    means_nothing = (
        set(minus) if minus and not isinstance(family, Regression) and len(numbers) > 2 and numbers != {-1, 0, 1} else set()
    )
    for split in splits:
        if split != main and all(unlabelled(value) or value in minus for value in values[split]):
            remarks.append(f"{split} is not used: its rows have no label")
    splits = [s for s in splits if s == main or not all(unlabelled(value) or value in minus for value in values[s])]
    blank = {value for split in splits for value in values[split] if unlabelled(value)} | means_nothing
    blank = {value for value in blank if any(values[split][value] for split in splits)}
    if blank:
        count = sum(values[split][value] for split in splits for value in blank)
        remarks.append(f"{count:,} rows without a label ({listing(sorted(map(repr, blank)))}) are skipped")
        family = replace(family, skip=tuple(sorted(blank, key=repr)))
    given = {split: {value: count for value, count in values[split].items() if value not in blank} for split in splits}
    return with_labels(family, given, main, getattr(tables[main].features.get(label), "names", None), remarks)


def with_labels(
    family: Any, values: Mapping[str, Mapping[Any, int]], main: str, named: Sequence[str] | None, remarks: list[str]
) -> tuple[Family, list[str], list[str]] | str:
    """`settle` for families with one label a row, once it is known how often each split has which value.

    Args:
        named: the labels that the table itself declares.
    """
    splits, mine = list(values), set(values[main])
    others = {value for split in splits for value in values[split]}
    if isinstance(family, Classification) and not named:
        if len(mine) < 2:
            has = f"only the value {next(iter(mine))!r}" if mine else "no value"
            return f"{quoted(family.label)} could be a label, but has {has}: there is nothing to tell apart"
        alike: dict[str, list[str]] = {}
        for label in in_order(others):
            alike.setdefault(" ".join(label.split()).casefold(), []).append(repr(label))
        if double := [" and ".join(same) for same in alike.values() if len(same) > 1]:
            remarks.append(f"labels that differ only in capitals or spaces: {listing(double, 4)}; are they the same?")
        if unseen := [name for name in in_order(others) if name not in in_order(mine)]:
            remarks.append(f"labels that no {main} row has: {listing(unseen, 6)}; all labels are declared, so that they count")
            return replace(family, labels=in_order(others)), splits, remarks
        if "validation" not in splits and min(values[main].values()) < FEW:
            family = replace(family, labels=in_order(others))
    if isinstance(family, Regression):
        try:
            bounds = {split: (min(map(float, values[split])), max(map(float, values[split]))) for split in splits}
        except (TypeError, ValueError):
            return f"{quoted(family.label)} is not a number in every row"
        low, high = min(low for low, _ in bounds.values()), max(high for _, high in bounds.values())
        if not low < high:
            return f"every value of {quoted(family.label)} is {low:g}"
        family = replace(family, low=whole(low), high=whole(high))  # held-out rows may have the lowest and the highest
        remarks.append(f"the range is declared as what was found, {low:g} to {high:g}; widen it if there can be more")
    return family, splits, remarks


def declare_lists(
    family: Any, tables: Mapping[str, Dataset], splits: list[str], main: str, remarks: list[str]
) -> tuple[Family, list[str], list[str]] | str:
    """`settle` for families whose rows have several labels, or none: labels of evaluation rows alone are declared."""
    where = {"multi-label": "label", "tagging": "tags"}.get(family.kind)
    label = getattr(family, where) if where else None
    if not isinstance(label, str) or label.split(".")[0] not in tables[main].column_names:
        return family, splits, remarks
    mark = getattr(family, "separator", None)
    seen: dict[str, set[Any]] = {}
    counts: Counter[Any] = Counter()
    for split in splits:
        seen[split] = set()
        for value in label_values(tables[split], label):
            given = value.split(mark) if isinstance(value, str) else value if isinstance(value, (list, tuple)) else ()
            parts = [part.strip() if isinstance(part, str) and mark else part for part in given]
            seen[split].update(parts)
            counts.update(parts)
        seen[split].discard("")
    others = set().union(*seen.values())
    if "validation" not in splits and min(counts.values(), default=FEW) < FEW:
        family = replace(family, labels=in_order(others))
    if names := [name for name in in_order(others) if name not in in_order(seen[main])]:
        remarks.append(f"labels that no {main} row has: {listing(names, 6)}; all labels are declared, so that they count")
        family = replace(family, labels=in_order(others))
    return family, splits, remarks


def whole(number: float) -> float:
    return int(number) if number == int(number) else number


def in_order(labels: Iterable[Any]) -> tuple[str, ...]:
    """The names of labels, numbers by size before words."""
    names = {str(int(one)) if isinstance(one, (bool, float, np.integer)) else str(one) for one in labels if not unlabelled(one)}
    number = lambda name: float(name) if re.fullmatch(r"-?\d+", name) else None  # noqa: E731
    return tuple(sorted(names, key=lambda name: (number(name) is None, number(name) or 0.0, name)))


def label_values(rows: Dataset, where: str) -> Iterator[Any]:
    """All values of a field, read in pieces; lists as tuples."""
    column = where if where in rows.column_names else where.split(".")[0]
    for piece in rows.select_columns([column]).iter(batch_size=10_000):
        for value in piece[column]:
            found = value if column == where else read({column: value}, where)
            yield tuple(found) if isinstance(found, list) else found


def unlabelled(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def alternatives(others: Sequence[Guess], chosen: Guess) -> tuple[tuple[Family, str], ...]:
    """What else it could be: one guess per family and label, without those that hardly fit."""
    found: list[tuple[Family, str]] = []
    seen = {(chosen.family.kind, getattr(chosen.family, "label", None))}
    for one in others:
        key = (one.family.kind, getattr(one.family, "label", None))
        answered = chosen.family.kind in ("choice", "span", "tagging") and key[1] == getattr(chosen.family, "label", None)
        answered |= "." in str(key[1]) and str(key[1]).split(".")[0] in chosen.family.columns()  # a part of what is read anyway
        if key in seen or answered or one.score < chosen.score - 30 or len(found) == 3:
            continue
        seen.add(key)
        found.append((one.family, (*one.doubts, *one.reasons)[0]))
    return tuple(found)


def look_closer(table: Table, family: Family, found: Sequence[Guess], tables: Mapping[str, Dataset]) -> list[str]:
    """Remarks about a table that no single guess makes."""
    remarks = []
    if table.rows < 20:
        remarks.append(f"{table.rows} rows say little about what is in their columns")
    label = getattr(family, "label", None)
    rivals = [
        one.family.label  # type: ignore[attr-defined]
        for one in found
        if one.family.kind in ("classification", "regression", "multi-label")
        and getattr(one.family, "label", None) != label
        and one.score >= 60
        and not isinstance(one.family.label, tuple)  # type: ignore[attr-defined]
        and one.family.label.split(".")[0] not in family.columns()  # type: ignore[attr-defined]
    ]
    mine = [column for column in table.columns if column.name == label]
    same = {column.name for column in table.columns if mine and says_the_same(mine[0], column)}
    rivals = [name for name in dict.fromkeys(rivals) if name not in same]
    if rivals and isinstance(label, str):
        remarks.append(f"{listing(map(quoted, rivals))} could be the label as well as {quoted(label)}")
    for column in table.columns:
        if column.distinct == 1 and called(column.name, LABEL):
            remarks.append(f"{quoted(column.name)} is {column.present[0]!r} in every row: there is nothing to tell apart")
        if column.is_nested_text:
            remarks.append(
                f"{quoted(column.name)} holds lists or records written as text, which are not read as such; JSON lines could"
            )
    return remarks


def merge(left_out: Sequence[LeftOut]) -> list[LeftOut]:
    """Files left out for the same reason, together."""
    together: dict[str, list[Path]] = {}
    for one in left_out:
        if one.proposal is None:
            together.setdefault(one.reason, []).extend(one.files)
    proposals = [one for one in left_out if one.proposal is not None]
    return [*proposals, *(LeftOut(tuple(files), reason) for reason, files in together.items())]


# ---- the suite file


def suite_name(folder: Path) -> str:
    return folder.resolve().name or "suite"


def moved(task: Task, place: Path) -> Task:
    """A task whose files are named as a suite file in the folder `place` leads to them."""
    assert isinstance(task.source, Files)
    paths = task.source.paths
    there = lambda path: str(place / relative(path, place))  # noqa: E731
    new = {split: there(path) for split, path in paths.items()} if isinstance(paths, Mapping) else there(paths)
    return replace(task, source=Files(new))


def relative(path: str, place: Path) -> str:
    """A path as seen from a folder."""
    found = os.path.relpath(path, place).replace(os.sep, "/")
    return f"./{found}" if found.startswith("hub:") else found


def entry_of(task: Task, place: Path | None = None) -> dict[str, Any]:
    """A task as an entry of a suite file; with `place`, paths relative to that folder."""
    source: Any = task.source.describe()
    if place is not None:
        source = {s: relative(p, place) for s, p in source.items()} if isinstance(source, Mapping) else relative(source, place)
    more = {"evaluation_only": True} if task.evaluation_only else {}
    return {"name": task.name, "source": source, task.family.kind: fields_of(task.family), **more}


def fields_of(family: Family) -> dict[str, Any]:
    """A family's fields as a suite file says them: what differs from the default, and columns in any case."""
    columns = {name: getattr(family, name, None) for name in ("text", "pair", "label", "tags", "answers")}
    given = {**family.settings(), **{name: plain(column) for name, column in columns.items() if column is not None}}
    order = [item.name for item in sorted(fields(family), key=lambda item: item.kw_only is True)]
    return {name: given[name] for name in order if name in given}


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


def entry_lines(task: Task, place: Path, indent: str = "  ") -> list[str]:
    entry = entry_of(task, place)
    return [f"{indent}{'- ' if at == 0 else '  '}{key}: {flow(value)}" for at, (key, value) in enumerate(entry.items())]


def comment(text: str, indent: str = "", mark: str = "") -> list[str]:
    """A text as lines of a comment; whatever could end one is taken out of it."""
    clean = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    lines = textwrap.wrap(clean, WIDTH - len(indent), subsequent_indent="  " if mark else "", initial_indent=mark,
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return [f"{indent}# {line}" for line in lines]


def flow(value: Any) -> str:
    """A value on one line of YAML."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()


# ---- on a terminal


def show_inferred(found: Inferred, console: Console) -> None:
    """Print the proposals and what is left out; the suite file has the reasons."""
    from rich.table import Table as Lines
    from rich.text import Text as Words

    table = Lines(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "family", "confidence"):
        table.add_column(heading, overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("reads", overflow="fold")
    for one in found.proposals:
        told = ", ".join(f"{key}={flow(value)}" for key, value in fields_of(one.task.family).items() if key != "labels")
        table.add_row(Words(one.task.name), one.task.family.kind, one.confidence, f"{sum(one.rows.values()):,}", Words(told))
    if found.proposals:
        console.print(table)
    for one in found.proposals:
        for remark in one.remarks:
            console.print(f"! {one.task.name}: {remark}", markup=False, highlight=False)
    for out in found.left_out:
        names = listing((relative(str(path), found.folder) for path in out.files), 4)
        console.print(f"- left out: {names}: {out.reason}", markup=False, highlight=False)
