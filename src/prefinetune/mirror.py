"""A mirror: the rows of many tasks in one folder, DIR/SLUG/ROLE.parquet, for machines that do not reach the hub.

A set is written beside its place, in .SLUG.mirroring, and moved there when all its splits are whole: a folder without its
validation split would be taken for a set that has none. What is finished is not fetched again. DIR/manifest.jsonl says what each
set is and where it came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prefinetune.environment import now
from prefinetune.errors import InputError, Unavailable
from prefinetune.files import read_records, write
from prefinetune.safety import is_name
from prefinetune.sources import Files, Hub, Rows
from prefinetune.splits import OpenTask, open_task

if TYPE_CHECKING:
    from datasets import Dataset

    from prefinetune.task import Task

MANIFEST, RECORD = "manifest.jsonl", "manifest.json"  # of a mirror; of a set while it is written
HOPELESS = 3  # sets in a row that the hub could not be asked about, before it is asked no more


@dataclass(frozen=True)
class Mirrored:
    """What became of a task: done now; skipped, as it is there or cannot be had; or failed."""

    task: str
    slug: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    rows: Mapping[str, int] | None = None  # by role

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Damage(NamedTuple):
    """A file of a mirror that is not as it was written."""

    path: Path
    reason: str


def mirror(
    suite: Iterable[Task],
    folder: str | Path,
    progress: Callable[[str], None] | None = None,
    data_root: str | Path | None = None,
) -> list[Mirrored]:
    """Write the splits that tasks use, with all their columns, in the order of their rows.

    Args:
        suite: the tasks. Those whose rows are files of a user's own, or in memory, are skipped.
        folder: the mirror. What it holds already, and is whole, stays as it is, also when the hub has a newer version.
        progress: told of each split that is read, and what became of each task.
        data_root: another mirror: sets that it holds are taken from there. Its overlap lists come along.

    Returns:
        What became of each task. One that fails does not stop the others.

    Raises:
        InputError: `folder` is no folder.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    say = progress or (lambda message: None)
    found: list[Mirrored] = []
    unreachable = 0  # sets in a row
    for task in suite:
        one = standing(task, folder)
        if one is None:
            try:
                opened = open_task(task, data_root)
                if unreachable >= HOPELESS and not isinstance(opened.source, Files):
                    raise InputError(f"not tried: the hub could not be reached for {HOPELESS} sets in a row")
                one = fetch(opened, folder, say)
                unreachable = unreachable if isinstance(opened.source, Files) else 0
            except Unavailable as problem:
                unreachable += problem.unreachable
                one = Mirrored(task.name, task.slug, "failed" if problem.obtainable else "skipped", str(problem))
            except (InputError, OSError) as problem:
                one = Mirrored(task.name, task.slug, "failed", str(problem))
        found.append(one)
        say(f"{one.task}: {one.status}" + (f" ({one.reason})" if one.reason else ""))
    if data_root is not None:
        for path in sorted(Path(data_root).glob("overlap*.json")):  # their rows have the same numbers here
            write(folder / path.name, path.read_text(encoding="utf-8"))
    return found


def standing(task: Task, folder: Path) -> Mirrored | None:
    """What is to be said of a task for which nothing is to be done; None where there is."""
    if isinstance(task.source, (Files, Rows)):
        return Mirrored(task.name, task.slug, "skipped", "its rows are not on the hub")
    known = read_manifest(folder).get(task.slug)
    if known is None and (folder / task.slug).exists():
        reason = f"{folder / task.slug} is there, and {MANIFEST} does not know it; move it away, or choose another folder"
        return Mirrored(task.name, task.slug, "failed", reason)
    if known is not None and known["task"] != task.name:
        return Mirrored(task.name, task.slug, "failed", f"{folder / task.slug} is the folder of {known['task']!r}")
    if known is None or known["asked"] != asked(task) or damages(folder / task.slug, known):
        return None
    return Mirrored(task.name, task.slug, "skipped", "is there", known["rows"])


def asked(task: Task) -> dict[str, Any]:
    """What makes two sets of one name the same."""
    return {"source": task.source.describe(), "splits": dict(task.splits)}


def fetch(opened: OpenTask, folder: Path, say: Callable[[str], None]) -> Mirrored:
    """Bring a set into the mirror, or make a damaged one whole.

    Raises:
        InputError: its rows cannot be had (Unavailable) or written, or they changed meanwhile.
    """
    task = opened.task
    place, beside = folder / task.slug, folder / f".{task.slug}.mirroring"
    roles = dict(opened.names)  # which asks the hub for the splits
    record = {**describe(opened), "rows": {}, "columns": {}, "files": {}}
    known = read_manifest(folder).get(task.slug)
    if known is not None and place.exists() and same_rows(known, record):  # it is damaged
        shutil.rmtree(beside, ignore_errors=True)
        place.rename(beside)
        write(beside / RECORD, json.dumps(known))
    begun = read_record(beside / RECORD)
    if begun is not None and same_rows(begun, record):
        record = begun
    else:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
    for role, split in roles.items():
        if role in record["files"] and not damage(beside, role, record):
            continue
        say(f"{task.name}: reading {role}")
        rows = opened.source.read(split).rows
        record["files"][role] = save(rows, beside / f"{role}.parquet")
        record["rows"][role] = len(rows)
        record["columns"] = {name: str(feature) for name, feature in rows.features.items()}
        write(beside / RECORD, json.dumps(record))
    after = commit_of(opened)
    if None not in (after, record["commit"]) and after != record["commit"]:
        shutil.rmtree(beside)
        raise InputError(f"{task.source.describe()} changed on the hub while it was read; try again")
    put(record, folder)  # first: a folder that the manifest does not know is taken for somebody else's
    if place.exists():
        old = folder / f".{task.slug}.old"
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
        beside.rename(place)
        shutil.rmtree(old)
    else:
        beside.rename(place)
    (place / RECORD).unlink()
    return Mirrored(task.name, task.slug, "done", rows=record["rows"])


def same_rows(known: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether splits of two records may stand beside each other."""
    return all(known[key] == record[key] for key in ("asked", "commit", "from_mirror"))


def describe(opened: OpenTask) -> dict[str, Any]:
    """A set's line of the manifest, without what is known when its rows are there."""
    task, source = opened.task, opened.task.source
    hub = source if isinstance(source, Hub) else Hub(None)
    return {
        "slug": task.slug, "task": task.name, "family": task.family.kind, "asked": asked(task), "hub_id": hub.id,
        "hub_config": hub.config, "revision": hub.revision, "commit": commit_of(opened),
        "from_mirror": isinstance(opened.source, Files), "license": task.license, "cite": task.cite, "when": now(),
    }  # fmt: skip


def commit_of(opened: OpenTask) -> str | None:
    """The commit of the hub's repository that its rows are of; None where that is not to be found out."""
    from huggingface_hub import HfApi

    source = opened.source
    if isinstance(source, Files):
        known = read_manifest(opened.data_root).get(opened.task.slug) if opened.data_root else None
        return known["commit"] if known else None
    if not isinstance(source, Hub) or source.id is None:
        return None
    try:
        return HfApi().dataset_info(source.id, revision=source.revision).sha
    except Exception:  # of the hub's client, of many kinds: rows may be had from a cache all the same
        return None


def origin(opened: OpenTask) -> str | None:
    """Where rows that a mirror holds came from: the hub's set as a suite file names it, at the commit that was mirrored where the
    mirror knows it. None for rows of no mirror, and of none that has a name elsewhere."""
    source = opened.task.source
    if opened.source is source or (isinstance(source, Hub) and source.id is None):
        return None
    commit = commit_of(opened)
    return (replace(source, revision=commit) if isinstance(source, Hub) and commit else source).describe()


def save(rows: Dataset, path: Path) -> dict[str, Any]:
    """Write a split, a row group at a time. Half-written files do no harm: only what is in the record counts.

    Raises:
        InputError: Parquet cannot hold it.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        with path.open("wb") as file:
            rows.to_parquet(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        raise
    except Exception as error:  # pyarrow's, about types that it cannot write
        raise InputError(f"{path.name} could not be written ({type(error).__name__}: {error})") from error
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- the manifest


def read_manifest(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The sets of a mirror by slug, as its manifest has them; none where there is no manifest, or one of another kind.

    Raises:
        InputError: it names a folder or a file outside of the mirror.
    """
    path = Path(folder) / MANIFEST
    found = {record["slug"]: record for record in read_records(path) if "files" in record}
    for name in (name for slug, record in found.items() for name in (slug, *record["files"])):
        if not is_name(name):
            raise InputError(f"{path}: {name!r} is not accepted; expected the name of a folder of the mirror, or of a split")
    return found


def put(record: Mapping[str, Any], folder: Path) -> None:
    """Add a set to the manifest, or replace it there."""
    records = {**read_manifest(folder), record["slug"]: record}
    write(folder / MANIFEST, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records.values()))


def read_record(path: Path) -> dict[str, Any] | None:
    """What is said of a set that is not finished; None where nothing is."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def verify_mirror(folder: str | Path) -> list[Damage]:
    """Files that are missing or not as they were written.

    Raises:
        InputError: the folder is no mirror.
    """
    known = read_manifest(folder)
    if not known:
        raise InputError(f"{folder}: no {MANIFEST} of a mirror; expected a folder that `prefinetune tasks mirror` wrote")
    return [found for slug, record in known.items() for found in damages(Path(folder) / slug, record)]


def damages(place: Path, record: Mapping[str, Any]) -> list[Damage]:
    return [found for role in record["files"] if (found := damage(place, role, record))]


def damage(place: Path, role: str, record: Mapping[str, Any]) -> Damage | None:
    """What is wrong with a split."""
    path, written = place / f"{role}.parquet", record["files"][role]
    if not path.is_file():
        return Damage(path, "is missing")
    if path.stat().st_size != written["bytes"]:
        return Damage(path, f"has {path.stat().st_size:,} bytes; {written['bytes']:,} were written")
    return None if sha256(path) == written["sha256"] else Damage(path, "is not what was written (SHA-256 differs)")
