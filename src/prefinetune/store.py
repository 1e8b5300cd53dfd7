"""Rows to tokens, once: every split of every task becomes a store in the cache, named by the digest of all that it depends on.

A split is built in shards of SHARD rows, of which most splits have one; what a shard is on disk stands in `shard.py`. A shard is
there whole or not at all, so a build that was stopped goes on with those it finished, and one that was damaged is built again
alone. A process that builds a shard holds a lock of the operating system on it. Others, such as the ranks of a job, go on to
the next that nobody builds, and come back: no work is done twice, and none is lost when a process is killed.

A shard is built by reading rows in pieces and appending, so that memory does not grow with the number of rows. Tokenizing runs in
the tokenizer's own threads while the next piece is being adapted.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from prefinetune.cache import building, cache_folder, claimed, mark_used, space_for
from prefinetune.errors import FieldError, InputError
from prefinetune.families import Encoded, Example
from prefinetune.quarantine import NO_LABEL, SET_ASIDE, STORED, Account, Fault
from prefinetune.shard import Appender, Damaged, Shard, array_types, seal
from prefinetune.splits import OpenTask
from prefinetune.tokenizer import Tokenizer

FORMAT = 6  # of the files of a shard; part of a store's digest
CHUNK = 2000  # rows read, adapted and tokenized at a time
SHARD = 100 * CHUNK  # rows that are built, and lost, together
PATIENCE = 1.0  # seconds to wait for another process before looking what has become ready


class Store:
    """The tokens of one split of one task. `store[i]` is example i.

    Attributes:
        folder: of its shards, or of the only one.
        account: what became of the rows of the split.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], account: Account) -> None:
        self.folder, self.shards, self.account = folder, shards, account
        self.ends = list(accumulate(map(len, shards)))  # of each shard, in examples

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Encoded:
        """
        Raises:
            Damaged: the example is not what was written.
        """
        at = bisect_right(self.ends, index)
        return self.shards[at][index - (self.ends[at - 1] if at else 0)]

    @property
    def rows(self) -> np.ndarray:
        """The number of every example's row in the source [n]."""
        return np.concatenate([shard.rows for shard in self.shards])

    def all_targets(self) -> list[np.ndarray]:
        """The target of every example."""
        return [target for shard in self.shards for target in shard.all_targets()]

    def lengths(self) -> np.ndarray:
        """Tokens per example [n]."""
        return np.concatenate([shard.lengths() for shard in self.shards])

    def token_counts(self, examples: np.ndarray) -> np.ndarray:
        """Tokens of some examples by encoder and decoder [n], without reading them."""
        owners = np.searchsorted(self.ends, examples, side="right")
        counts = np.zeros(len(examples), np.int64)
        for at in np.unique(owners).tolist():
            mine = owners == at
            counts[mine] = self.shards[at].token_counts(examples[mine] - (self.ends[at - 1] if at else 0))
        return counts

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the shards counted, all together."""
        faults = self.account.faults
        return {
            **{name: sum(shard.manifest[name] for shard in self.shards) for name in COUNTED},
            "bad_rows": len(faults),
            "first_bad_row": str(faults[0]) if faults else None,
            "digest": self.shards[0].manifest["digest"],
            "account": self.account.as_dict(),
        }

    @property
    def summary(self) -> dict[str, Any]:
        return {key: value for key, value in self.manifest.items() if key != "account"}


COUNTED = ("examples", "tokens", "truncated", "outputs_cut")


# ---- building


def build_store(
    opened: OpenTask,
    role: str,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
    for_training: bool = True,
) -> Store:
    """The store of one split; see `build_stores`."""
    return build_stores([opened], role, tokenizer, cache, progress, for_training)[0]


def build_stores(
    opened: Sequence[OpenTask],
    role: str,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
    for_training: bool = True,
) -> list[Store]:
    """The stores of one split of each task, where the cache does not hold them built together with all processes that want the
    same. Rows that cannot be used are set aside and named in the quarantine.jsonl of their shard.

    Args:
        cache: folder of stores; `cache_folder()` when None.
        progress: called with the number of rows done since the last call.
        for_training: whether to leave out what only scoring needs.

    Raises:
        InputError: more rows of a split cannot be used than the share `opened.bad_rows` (with file, number, field and value),
            none can, or all labels are the same; or the disk is full.
    """
    plans = [Plan(one, role, tokenizer, cache or cache_folder(), for_training) for one in opened]
    waiting = [piece for plan in plans for piece in plan.pieces]
    while waiting:
        left = [piece for piece in waiting if not piece.have(progress)]
        if len(left) == len(waiting):  # other processes build all that is left
            left[0].have(progress, PATIENCE)
            left = [piece for piece in left if piece.shard is None]
        waiting = left
    return [plan.store() for plan in plans]


@dataclass
class Plan:
    """A store that is wanted: which shards it has, and where they belong."""

    opened: OpenTask
    role: str
    tokenizer: Tokenizer
    cache: Path
    for_training: bool

    @cached_property
    def digest(self) -> str:
        """Of all that the store depends on."""
        opened = self.opened
        parts = [FORMAT, SHARD, opened.digest(self.role), opened.family.identity(), self.tokenizer.digest, self.for_training]
        return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()

    @cached_property
    def folder(self) -> Path:
        return self.cache / "stores" / f"{self.opened.task.slug}-{self.role}-{self.digest}"

    @cached_property
    def pieces(self) -> list[Piece]:
        rows = len(self.opened.split(self.role))
        count = max(1, -(-rows // SHARD))
        folders = [self.folder / f"{at:05d}-of-{count:05d}" for at in range(count)] if count > 1 else [self.folder]
        return [Piece(self, folder, range(at * SHARD, min((at + 1) * SHARD, rows))) for at, folder in enumerate(folders)]

    @cached_property
    def known(self) -> Account:
        """The bad rows of the split that are known so far; too many of them end the work."""
        return self.opened.account(self.role)

    def store(self) -> Store:
        """All shards together.

        Raises:
            InputError: more rows cannot be used than are allowed, none can, or nothing can be learned from them.
        """
        shards = [piece.shard for piece in self.pieces if piece.shard is not None]
        account = self.opened.account(self.role)
        for shard in shards:
            for rule, count in shard.manifest["rules"].items():
                account.add(rule, count)
            account.set_aside(*shard.faults)
        store = Store(self.folder, shards, account)
        if not len(store):
            raise nothing_usable(account)
        account.check()
        targets = {target for shard in shards for target in shard.manifest["targets"]}
        each_has_one = sum(len(shard.targets) for shard in shards) == len(store)
        is_whole = self.for_training and self.role == "train" and self.opened.max_rows is None
        if is_whole and len(targets) < 2 and each_has_one:
            where = getattr(self.opened.family, "label", "label")
            raise InputError(f"{account.place}: every row has the same {where!r}; nothing can be learned from it")
        return store


@dataclass
class Piece:
    """A shard that is wanted: some of a split's rows, by index."""

    plan: Plan
    folder: Path
    rows: range
    shard: Shard | None = None
    bytes_per_row: float | None = None

    def have(self, progress: Callable[[int], None] | None = None, wait: float = 0.0) -> bool:
        """Find the shard or build it; false if another process still builds it after so many seconds.

        Raises:
            InputError: too many rows cannot be used, or the disk is full.
        """
        cache = self.plan.cache
        if not self.find():
            with space_for(self.folder, cache, self.needed), claimed(self.folder, cache, wait) as mine:
                if not mine:
                    return False
                if not self.find(remove=True):
                    self.build(progress)
                    return True
        assert self.shard is not None
        self.plan.known.set_aside(*self.shard.faults)
        if progress:
            progress(len(self.rows))
        return True

    def find(self, remove: bool = False) -> bool:
        """Open the shard in the cache, if it is there and whole; with `remove`, a damaged one goes."""
        if not self.folder.exists():
            return False
        try:
            self.shard = Shard(self.folder)
            mark_used(self.folder)
        except Damaged as problem:
            if remove:
                warnings.warn(f"{problem}; it is built again", stacklevel=2)
                shutil.rmtree(self.folder)
        return self.shard is not None

    def build(self, progress: Callable[[int], None] | None) -> None:
        gc.freeze()  # millions of small objects follow: each full collection would else walk through all that torch has loaded
        try:
            with building(self.folder) as made:
                self.write(made, progress)
        finally:
            gc.unfreeze()
        self.shard = Shard(self.folder)

    def write(self, folder: Path, progress: Callable[[int], None] | None) -> None:
        """Append every example's arrays to files in `folder`."""
        plan, opened = self.plan, self.plan.opened
        account = Account(opened.task.name, plan.role, opened.split(plan.role).place, len(self.rows), allowed=1.0)
        counts, targets, done = dict.fromkeys(COUNTED, 0), dict[str, None](), 0
        types = array_types(plan.tokenizer.vocab_size, opened.family.target_type)
        # The reader adapts the next rows while these are tokenized outside the interpreter lock.
        with Appender(folder, types) as arrays, ThreadPoolExecutor(1) as reader:
            for examples, numbers, read in iter_ahead(reader, adapted(plan, self.rows, account)):
                encoded = opened.family.encode(examples, plan.tokenizer, plan.for_training)
                done += read
                if encoded:
                    arrays.add_examples(encoded, [numbers[one.source] for one in encoded])
                    self.bytes_per_row = arrays.written() / done
                    account.add(STORED, len({one.source for one in encoded}))
                    found = (len(encoded), *map(sum, zip(*map(counted, encoded), strict=True)))
                    counts = {name: counts[name] + more for name, more in zip(COUNTED, found, strict=True)}
                    if len(targets) < 2:
                        targets.update(dict.fromkeys(one.target.tobytes().hex() for one in encoded))
                if progress:
                    progress(read)
            sizes = arrays.sync()
        account.check()
        rules = {rule: count for rule, count in account.counts.items() if rule != SET_ASIDE}
        known = {**counts, "rules": rules, "targets": list(targets)[:2], "digest": plan.digest, "arrays": sizes}
        seal(folder, known, account.records())

    def needed(self) -> float | None:
        """Bytes that the rows of the split from here on take, as far as is known."""
        rows = len(self.plan.opened.split(self.plan.role)) - self.rows.start
        return None if self.bytes_per_row is None else self.bytes_per_row * rows


def counted(one: Encoded) -> tuple[int, int, int]:
    """(tokens, whether its texts were cut, whether its output was)."""
    return one.tokens, one.truncated > 0, one.output_cut


def adapted(plan: Plan, which: range, account: Account) -> Iterator[tuple[list[Example], list[int], int]]:
    """Rows of a split through their adapter: (examples, their row numbers, rows read). Rows that cannot be used are set aside.

    Raises:
        InputError: there are more of these than allowed.
    """
    split, family = plan.opened.split(plan.role), plan.opened.family

    def set_aside(index: int, reason: str) -> None:
        fault = Fault(*split.locate(index), reason)
        account.set_aside(fault)
        plan.known.set_aside(fault)

    for start, rows in split.chunks(CHUNK, which):
        examples, numbers = [], []
        for index, row in enumerate(rows, start):
            try:
                if family.skips(row):
                    account.add(NO_LABEL)
                    continue
                examples.append(family.example(row))
                numbers.append(split.number(index))
            except FieldError as error:
                set_aside(index, str(error))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # data has no end of surprises
                set_aside(index, f"the adapter of this {family.kind} task cannot read the row ({type(error).__name__}: {error})")
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
