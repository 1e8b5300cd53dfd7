"""A folder of files to a suite file: which files are one task, which family each poses, and why.

`infer_suite` accounts for every file it finds: in a proposal, or left out with the reason. What a table poses is guessed in
`guess.py` from a sample of its rows; each proposal is then checked on all rows (`check.py`), so that what is written can be
trained on. The result is meant to be read by a person first: reasons, doubts and alternatives stand beside each entry.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefinetune.check import check_task
from prefinetune.errors import InputError, listing
from prefinetune.families import Choice, Classification, Family, Regression
from prefinetune.families.base import read
from prefinetune.infer.columns import Table, look, quoted
from prefinetune.infer.grouping import SPLIT_WORDS, Group, find_files, group_files
from prefinetune.infer.guess import confidence, guess
from prefinetune.infer.labelled import says_the_same
from prefinetune.infer.proposals import Inferred, LeftOut, Proposal
from prefinetune.infer.roles import Guess
from prefinetune.infer.words import LABEL, called
from prefinetune.readers import KINDS
from prefinetune.sources import ROLES, Files, Rows, Source
from prefinetune.splits import spread_rows
from prefinetune.task import NAME, Task

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE, LEADING = 2000, 200  # rows looked at for a guess, of which so many are the first ones
FEW = 4  # rows of a label: so few may all be held out for validation, and then it must be declared


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


# ---- on a terminal
