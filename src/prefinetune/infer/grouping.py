"""Files to groups: which of them hold rows, and which are the splits and shards of one task, by their names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefinetune.errors import listing
from prefinetune.infer.proposals import LeftOut
from prefinetune.readers import COMPRESSED, KINDS, Text, delimiter, file_kind
from prefinetune.sources import ALIASES, ROLES

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
