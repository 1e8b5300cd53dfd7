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
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prefinetune.cache import building, cache_folder
from prefinetune.errors import FieldError, InputError
from prefinetune.families import Encoded, Example
from prefinetune.quarantine import NO_LABEL, QUARANTINE, SET_ASIDE, STORED, Account, Fault, write_records
from prefinetune.results import read_records
from prefinetune.sources import OpenTask
from prefinetune.tokenizer import Tokenizer

FORMAT = 5  # of the files below; part of their digest
CHUNK = 2000  # rows read, adapted and tokenized at a time


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
        self.rows = mapped("rows")
        self.targets, self.target_ends = mapped("targets"), mapped("target_ends")
        self.outputs, self.output_ends = mapped("outputs"), mapped("output_ends")
        self.offsets = mapped("offsets").reshape(-1, 2)
        self.references, self.reference_ends = mapped("references"), mapped("reference_ends")

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
            target=np.array(part(self.targets, self.target_ends, index)),
            source=int(self.rows[index]),
            output=part(self.outputs, self.output_ends, index) if len(self.output_ends) else None,
            offsets=[self.offsets[starts[i] : starts[i + 1]] for i in range(last - first)] if len(self.offsets) else None,
            reference=self._reference(index) if len(self.references) else None,
        )

    def _reference(self, index: int) -> Any:
        return as_tuples(json.loads(part(self.references, self.reference_ends, index).tobytes()))

    def all_targets(self) -> list[np.ndarray]:
        """The target of every example."""
        targets, ends = np.asarray(self.targets), self.target_ends.tolist()
        return [targets[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def lengths(self) -> np.ndarray:
        """Tokens per example [n]."""
        totals = np.concatenate([[0], self.sequence_ends])[self.example_ends]
        return np.diff(totals, prepend=0)

    @cached_property
    def account(self) -> Account:
        """What became of the rows of the split."""
        counts = {rule: count for rule, count in self.manifest["account"].items() if rule not in ("rows", "blank_lines")}
        known = {key: self.manifest[key] for key in ("task", "role", "place")}
        account = Account(
            **known,
            rows=self.manifest["account"]["rows"],
            counts=counts,
            blank_lines=self.manifest["account"].get("blank_lines", 0),
        )
        account.faults = [
            Fault(**{key: value for key, value in record.items() if key not in ("task", "role")})
            for record in read_records(self.folder / QUARANTINE)
        ]
        return account

    @property
    def summary(self) -> dict[str, Any]:
        keys = ("examples", "tokens", "truncated", "outputs_cut", "bad_rows", "first_bad_row", "digest")
        return {key: self.manifest[key] for key in keys}


def part(values: np.ndarray, ends: np.ndarray, index: int) -> np.ndarray:
    """What example `index` has of `values`; `ends` says where each example's end."""
    return values[int(ends[index - 1]) if index else 0 : int(ends[index])]


def as_tuples(value: Any) -> Any:
    """What JSON read, as it was before it was written: references hold texts, numbers and tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def store_digest(opened: OpenTask, role: str, tokenizer: Tokenizer, for_training: bool = True) -> str:
    parts = [FORMAT, opened.digest(role), opened.family.identity(), tokenizer.digest, for_training]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def build_store(
    opened: OpenTask,
    role: str,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
    for_training: bool = True,
) -> Store:
    """The store of one split, built if the cache does not hold it. Rows that cannot be used are set aside and named in its
    quarantine.jsonl.

    Args:
        cache: folder of stores; `cache_folder()` when None.
        progress: called with the number of rows done since the last call.
        for_training: whether to leave out what only scoring needs.

    Raises:
        InputError: more rows cannot be used than the share `opened.bad_rows` (with file, number, field and value), none can, or
            all labels are the same.
    """
    digest = store_digest(opened, role, tokenizer, for_training)
    folder = (cache or cache_folder()) / "stores" / f"{opened.task.slug}-{role}-{digest}"
    store = open_store(folder)
    if store is None:
        gc.freeze()  # millions of small objects follow: each full collection would else walk through all that torch has loaded
        try:
            with building(folder) as made:
                manifest, account = write_store(made, opened, role, tokenizer, progress, for_training)
                write_records(made / QUARANTINE, account.records())
                (made / "manifest.json").write_text(json.dumps({**manifest, "digest": digest}, indent=1))
        finally:
            gc.unfreeze()
        store = open_store(folder)
        assert store is not None, "it was written a moment ago"
    elif progress:
        progress(len(opened.split(role)))
    store.account.allowed = opened.bad_rows
    store.account.limit()  # it may have been built when more was allowed
    return store


def open_store(folder: Path) -> Store | None:
    """A store in the cache; None where there is none. A damaged one is removed."""
    if not folder.exists():
        return None
    try:
        store = Store(folder, json.loads((folder / "manifest.json").read_text()))
        if store.account.counts.get(SET_ASIDE, 0) != len(store.account.faults):
            raise ValueError(f"{QUARANTINE} does not match")
        return store
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


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

    def add_parts(self, name: str, ends: str, parts: Sequence[Any]) -> None:
        """Several arrays end to end, and where each ends."""
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        self.add(ends, self.sizes[name] + np.cumsum(lengths))
        self.add(name, np.concatenate(parts))

    def add_examples(self, encoded: Sequence[Encoded], rows: Sequence[int]) -> None:
        """At least one, all with the same parts."""
        sequences = [sequence for one in encoded for sequence in one.sequences]
        self.add("example_ends", self.sizes["first"] + np.cumsum([len(one.sequences) for one in encoded]))
        self.add("first", [first for one in encoded for first in one.first])
        self.add_parts("tokens", "sequence_ends", sequences)
        self.add("rows", rows)
        self.add_parts("targets", "target_ends", [one.target for one in encoded])
        if outputs := [one.output for one in encoded if one.output is not None]:
            self.add_parts("outputs", "output_ends", outputs)
        if offsets := [part for one in encoded for part in one.offsets or ()]:
            self.add("offsets", np.concatenate(offsets))
        if any(one.reference is not None for one in encoded):
            texts = [json.dumps(one.reference).encode() for one in encoded]
            self.add_parts("references", "reference_ends", [np.frombuffer(text, np.uint8) for text in texts])

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


def array_types(vocab_size: int, target_type: type) -> dict[str, Any]:
    """The arrays of a store."""
    width = np.uint16 if vocab_size < 2**16 else np.uint32
    return {
        "tokens": width, "first": np.uint32, "sequence_ends": np.int64, "example_ends": np.int64, "rows": np.int64,
        "targets": target_type, "target_ends": np.int64, "outputs": width, "output_ends": np.int64, "offsets": np.int32,
        "references": np.uint8, "reference_ends": np.int64,
    }  # fmt: skip


def write_store(
    folder: Path,
    opened: OpenTask,
    role: str,
    tokenizer: Tokenizer,
    progress: Callable[[int], None] | None = None,
    for_training: bool = True,
) -> tuple[dict[str, Any], Account]:
    """Append every example's arrays to files in `folder`; returns the manifest, and what became of the rows."""
    counts = dict.fromkeys(("examples", "tokens", "truncated", "outputs_cut"), 0)
    targets_seen: set[bytes] = set()
    split, account = opened.split(role), opened.account(role)
    types = array_types(tokenizer.vocab_size, opened.family.target_type)
    # The reader adapts the next rows while these are tokenized outside the interpreter lock.
    with Appender(folder, types) as arrays, ThreadPoolExecutor(1) as reader:
        for examples, numbers, done in iter_ahead(reader, adapted(opened, role, account)):
            encoded = opened.family.encode(examples, tokenizer, for_training)
            if encoded:
                arrays.add_examples(encoded, [numbers[one.source] for one in encoded])
                counts["examples"] += len(encoded)
                account.add(STORED, len({one.source for one in encoded}))
                counts["tokens"] += sum(one.tokens for one in encoded)
                counts["truncated"] += sum(one.truncated > 0 for one in encoded)
                counts["outputs_cut"] += sum(one.output_cut for one in encoded)
                if len(targets_seen) < 2:
                    targets_seen.update(one.target.tobytes() for one in encoded)
            if progress:
                progress(done)
        sizes = arrays.sync()
    if not counts["examples"]:
        raise nothing_usable(account)
    is_whole = for_training and role == "train" and opened.max_rows is None
    if is_whole and len(targets_seen) < 2 and sizes["targets"][1] == counts["examples"]:
        where = getattr(opened.family, "label", "label")
        raise InputError(f"{split.place}: every row has the same {where!r}; nothing can be learned from it")
    account.check()
    bad = {"bad_rows": len(account.faults), "first_bad_row": str(account.faults[0]) if account.faults else None}
    known = {"task": opened.task.name, "role": role, "place": split.place}
    return {**known, **counts, **bad, "account": account.as_dict(), "arrays": sizes}, account


def adapted(opened: OpenTask, role: str, account: Account) -> Iterator[tuple[list[Example], list[int], int]]:
    """Rows of a split through their adapter: (examples, their row numbers, rows read). Rows that cannot be used are set aside.

    Raises:
        InputError: there are more of these than allowed.
    """
    split, family = opened.split(role), opened.family
    for start, rows in split.chunks(CHUNK):
        examples, numbers = [], []
        for index, row in enumerate(rows, start):
            try:
                if family.skips(row):
                    account.add(NO_LABEL)
                    continue
                examples.append(family.example(row))
                numbers.append(split.number(index))
            except FieldError as error:
                account.set_aside(Fault(*split.locate(index), str(error)))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # data has no end of surprises
                reason = f"the adapter of this {family.kind} task cannot read the row ({type(error).__name__}: {error})"
                account.set_aside(Fault(*split.locate(index), reason))
        yield examples, numbers, len(rows)


def nothing_usable(account: Account) -> InputError:
    first = f"; the first bad one: {account.faults[0]}" if account.faults else ""
    without, bad = account.counts.get(NO_LABEL, 0), len(account.faults)
    return InputError(f"{account.place}: no row can be used ({without:,} without a label, {bad:,} bad){first}")


def iter_ahead(pool: ThreadPoolExecutor, items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each computed while the one before is in use."""
    pending = pool.submit(next, items, None)
    while (item := pending.result()) is not None:
        pending = pool.submit(next, items, None)
        yield item


class EncodedSplit(Sequence[Encoded]):
    """Examples of a split with what scoring needs, read from their store when they are first asked for."""

    def __init__(self, store: Store) -> None:
        self.store, self.account = store, store.account

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: Any) -> Any:
        return self._examples[index]

    @cached_property
    def _examples(self) -> list[Encoded]:
        return [self.store[index] for index in range(len(self.store))]


def encode_split(opened: OpenTask, role: str, tokenizer: Tokenizer, most: int | None = None) -> EncodedSplit:
    """Examples of a split with what scoring needs, from a store of their own in `opened.cache`; at most `most` rows, spread
    evenly over the split.

    Raises:
        InputError: more rows cannot be used than the share `opened.bad_rows`, or none can.
    """
    if most is not None:
        opened = replace(opened, _cache={**opened._cache, role: opened.split(role).spread(most)})
    return EncodedSplit(build_store(opened, role, tokenizer, opened.cache, for_training=False))
