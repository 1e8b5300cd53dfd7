"""Rows to tokens, once: flat arrays on disk, mapped into memory, with the digest of everything they depend on.

Building reads rows in pieces and appends, so that its memory does not grow with the number of rows; tokenizing runs in the
tokenizer's own threads while the next piece is being adapted.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefinetune.errors import FieldError, InputError
from prefinetune.families import Encoded, Example
from prefinetune.sources import OpenTask
from prefinetune.tokenizer import Tokenizer

FORMAT = 3  # of the files below; part of their digest
CHUNK = 2000  # rows read, adapted and tokenized at a time


def cache_folder() -> Path:
    """Where token stores are kept: $PREFINETUNE_CACHE, or prefinetune in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("PREFINETUNE_CACHE") or Path(home) / "prefinetune")


@dataclass
class Store:
    """The tokens of one split of one task. `store[i]` is example i."""

    folder: Path
    manifest: dict[str, Any]

    def __post_init__(self) -> None:
        def mapped(name: str) -> np.ndarray:
            dtype, size, checksum = self.manifest["arrays"][name]
            path = self.folder / f"{name}.bin"
            found = path.stat().st_size if path.exists() else -1
            if found != size * np.dtype(dtype).itemsize:
                raise OSError(f"{path}: {found} bytes found, {size * np.dtype(dtype).itemsize} expected")
            if file_checksum(path) != checksum:
                raise OSError(f"{path} does not match its checksum")
            return np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)

        self.tokens, self.first = mapped("tokens"), mapped("first")
        self.sequence_ends, self.example_ends = mapped("sequence_ends"), mapped("example_ends")
        self.rows, self.targets = mapped("rows"), mapped("targets").reshape(len(self), -1)
        self.outputs, self.output_ends = mapped("outputs"), mapped("output_ends")

    def __len__(self) -> int:
        return int(self.manifest["examples"])

    def __getitem__(self, index: int) -> Encoded:
        first = int(self.example_ends[index - 1]) if index else 0
        last = int(self.example_ends[index])
        ends = self.sequence_ends[max(first - 1, 0) : last].tolist()
        starts = [0, *ends] if first == 0 else ends
        return Encoded(
            sequences=[self.tokens[starts[i] : starts[i + 1]] for i in range(last - first)],
            first=self.first[first:last].tolist(),
            target=np.array(self.targets[index]),
            source=int(self.rows[index]),
            output=self._output(index) if len(self.output_ends) else None,
        )

    def _output(self, index: int) -> np.ndarray:
        return self.outputs[int(self.output_ends[index - 1]) if index else 0 : int(self.output_ends[index])]

    def lengths(self) -> np.ndarray:
        """Tokens per example [n]."""
        totals = np.concatenate([[0], self.sequence_ends])[self.example_ends]
        return np.diff(totals, prepend=0)

    @property
    def summary(self) -> dict[str, Any]:
        keys = ("examples", "tokens", "truncated", "outputs_cut", "skipped", "bad_rows", "first_bad_row", "digest")
        return {key: self.manifest[key] for key in keys}


def store_digest(opened: OpenTask, role: str, tokenizer: Tokenizer, skip_bad_rows: bool) -> str:
    parts = [FORMAT, opened.digest(role), opened.family.identity(), tokenizer.digest, skip_bad_rows]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def build_store(
    opened: OpenTask,
    role: str,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    skip_bad_rows: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Store:
    """The store of one split, built if the cache does not hold it.

    Args:
        cache: folder of stores; `cache_folder()` when None.
        skip_bad_rows: leave out rows that cannot be used, and count them, instead of stopping at the first.
        progress: called with the number of rows done since the last call.

    Raises:
        InputError: a row cannot be used (with its file, number, field and value), or all labels are the same.
    """
    digest = store_digest(opened, role, tokenizer, skip_bad_rows)
    folder = (cache or cache_folder()) / "stores" / f"{opened.task.slug}-{role}-{digest}"
    if folder.exists():
        try:
            store = Store(folder, json.loads((folder / "manifest.json").read_text()))
            if progress:
                progress(len(opened.split(role)))
            return store
        except (OSError, ValueError, KeyError, TypeError):  # damaged: build it again
            shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    gc.freeze()  # millions of small objects follow: each full collection would else walk through all that torch has loaded
    try:
        manifest = write_store(building, opened, role, tokenizer, skip_bad_rows, progress)
        manifest["digest"] = digest
        (building / "manifest.json").write_text(json.dumps(manifest, indent=1))
        try:
            building.rename(folder)
        except OSError:  # another process was faster; both are the same
            if not (folder / "manifest.json").exists():
                raise
    finally:
        gc.unfreeze()
        shutil.rmtree(building, ignore_errors=True)
    return Store(folder, manifest)


class Appender:
    """Arrays appended to files, with their sizes and checksums."""

    def __init__(self, folder: Path, dtypes: dict[str, Any]) -> None:
        self.dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self.files = {name: (folder / f"{name}.bin").open("wb") for name in dtypes}
        self.sizes = dict.fromkeys(dtypes, 0)
        self.checksums = dict.fromkeys(dtypes, 0)

    def add(self, name: str, values: Any) -> None:
        array = np.asarray(values, dtype=self.dtypes[name]).reshape(-1)
        array.tofile(self.files[name])
        self.checksums[name] = zlib.crc32(array.data, self.checksums[name])
        self.sizes[name] += array.size

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def sync(self) -> dict[str, tuple[str, int, int]]:
        """Force all to disk; name -> (dtype, size, checksum)."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: (self.dtypes[name].str, self.sizes[name], self.checksums[name]) for name in self.files}


def file_checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def write_store(
    folder: Path,
    opened: OpenTask,
    role: str,
    tokenizer: Tokenizer,
    skip_bad_rows: bool,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Append every example's arrays to files in `folder`; returns the manifest."""
    width = np.uint16 if tokenizer.vocab_size < 2**16 else np.uint32
    target_type = opened.family.target_type
    dtypes = {
        "tokens": width, "first": np.uint32, "sequence_ends": np.int64, "example_ends": np.int64, "rows": np.int64,
        "targets": target_type, "outputs": width, "output_ends": np.int64,
    }  # fmt: skip
    counts: dict[str, Any] = {
        "examples": 0,
        "tokens": 0,
        "truncated": 0,
        "outputs_cut": 0,
        "skipped": 0,
        "bad_rows": 0,
        "first_bad_row": None,
    }
    targets_seen: set[bytes] = set()
    split = opened.split(role)
    # The reader adapts the next rows while these are tokenized outside the interpreter lock.
    with Appender(folder, dtypes) as arrays, ThreadPoolExecutor(1) as reader:
        pending = iter_ahead(reader, adapted(opened, role, skip_bad_rows, counts))
        for examples, numbers, done in pending:
            encoded = opened.family.encode(examples, tokenizer)
            if encoded:
                sequences = [sequence for one in encoded for sequence in one.sequences]
                lengths = np.array([len(sequence) for sequence in sequences])
                arrays.add("tokens", np.concatenate(sequences))
                arrays.add("first", [first for one in encoded for first in one.first])
                arrays.add("sequence_ends", arrays.sizes["tokens"] - lengths.sum() + np.cumsum(lengths))
                arrays.add(
                    "example_ends",
                    arrays.sizes["first"] - len(sequences) + np.cumsum([len(one.sequences) for one in encoded]),
                )
                arrays.add("rows", [numbers[one.source] for one in encoded])
                arrays.add("targets", np.concatenate([one.target for one in encoded]))
                outputs = [one.output for one in encoded if one.output is not None]
                if outputs:
                    arrays.add("output_ends", arrays.sizes["outputs"] + np.cumsum([len(output) for output in outputs]))
                    arrays.add("outputs", np.concatenate(outputs))
                counts["examples"] += len(encoded)
                counts["tokens"] += sum(one.tokens for one in encoded)
                counts["truncated"] += sum(one.truncated > 0 for one in encoded)
                counts["outputs_cut"] += sum(one.output_cut for one in encoded)
                if len(targets_seen) < 2:
                    targets_seen.update(one.target.tobytes() for one in encoded)
            if progress:
                progress(done)
        sizes = arrays.sync()
    if not counts["examples"]:
        raise InputError(f"{split.place}: no row can be used ({counts['skipped']} without a label, {counts['bad_rows']} bad)")
    if role == "train" and opened.max_rows is None and len(targets_seen) < 2 and sizes["targets"][1] == counts["examples"]:
        where = getattr(opened.family, "label", "label")
        raise InputError(f"{split.place}: every row has the same {where!r}; nothing can be learned from it")
    return {**counts, "arrays": sizes, "task": opened.task.name, "role": role, "place": split.place}


def adapted(
    opened: OpenTask, role: str, skip_bad_rows: bool, counts: dict[str, Any]
) -> Iterator[tuple[list[Example], list[int], int]]:
    """Rows of a split through their adapter: (examples, their row numbers, rows read)."""
    split, family = opened.split(role), opened.family
    for start, rows in split.chunks(CHUNK):
        examples, numbers = [], []
        for index, row in enumerate(rows, start):
            try:
                if family.skips(row):
                    counts["skipped"] += 1
                    continue
                examples.append(family.example(row))
                numbers.append(split.number(index))
            except FieldError as error:
                problem = error.at(split.place, split.number(index))
                if not skip_bad_rows:
                    raise InputError(f"{problem}. (data.bad_rows=skip leaves such rows out and counts them)") from None
                counts["bad_rows"] += 1
                counts["first_bad_row"] = counts["first_bad_row"] or str(problem)
        yield examples, numbers, len(rows)


def iter_ahead(pool: ThreadPoolExecutor, items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each computed while the one before is in use."""
    pending = pool.submit(next, items, None)
    while (item := pending.result()) is not None:
        pending = pool.submit(next, items, None)
        yield item


def encode_split(
    opened: OpenTask, role: str, tokenizer: Tokenizer, most: int | None = None, skip_bad_rows: bool = False
) -> list[Encoded]:
    """Examples of a split with what scoring needs, in memory; at most `most` rows, spread evenly over the split."""
    split = opened.split(role)
    if most is not None and len(split) > most:
        split = split.take(np.linspace(0, len(split) - 1, most).astype(np.int64))
        opened = OpenTask(opened.task, opened.source, opened.data_root, opened.max_rows, {**opened._cache, role: split})
    counts = {"skipped": 0, "bad_rows": 0, "first_bad_row": None}
    encoded: list[Encoded] = []
    for examples, numbers, _ in adapted(opened, role, skip_bad_rows, counts):
        part = opened.family.encode(examples, tokenizer, for_training=False)
        for one in part:
            one.source = numbers[one.source]
        encoded.extend(part)
    if not encoded:
        raise InputError(f"{split.place}: no row can be used")
    return encoded
