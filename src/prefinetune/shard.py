"""A shard of a token store: the examples of some rows as flat arrays on disk, mapped into memory.

What a shard holds is believed as far as it was checked:
- The sizes of its files are compared whenever it is opened.
- So are the checksums of whole files, if one of them was touched after they were last compared, which was when the file `checked`
  was touched. A store of 50 GB is not read from end to end at each start.
- An example has a checksum of its own, which is compared whenever it is read. A bit that flips on the disk itself leaves no trace
  in the times of files; no such example is trained on.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from prefinetune.errors import InputError
from prefinetune.families import Encoded
from prefinetune.files import read_records
from prefinetune.quarantine import QUARANTINE, Fault, write_records

MANIFEST, CHECKED = "manifest.json", "checked"


class Damaged(InputError):
    """What the cache holds is not what was written."""


class Shard:
    """`shard[i]` is example i of its rows. No file is kept open: a process may map as many shards as it likes.

    Raises:
        Damaged: a file is missing, or is not what was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest = read_manifest(folder)
            self.faults = read_faults(folder, self.manifest["quarantine"])
            check_files(folder, self.manifest["arrays"])
            self._map()
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{folder} is damaged: {error}") from error
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EIO):  # too many open files are no damage
                raise
            name = Path(error.filename or "").name
            raise Damaged(f"{folder} is damaged: {name}: {(error.strerror or str(error)).lower()}") from error

    def _map(self) -> None:
        import pyarrow as pa

        def mapped(name: str) -> np.ndarray:
            dtype, size, _ = self.manifest["arrays"][name]
            if not size:
                return np.zeros(0, dtype)
            with pa.memory_map(str(self.folder / f"{name}.bin")) as file:  # numpy's own would keep the file open
                return np.frombuffer(file.read_buffer(), dtype)

        self.tokens, self.first = mapped("tokens"), mapped("first")
        self.sequence_ends, self.example_ends = mapped("sequence_ends"), mapped("example_ends")
        self.rows, self.checksums = mapped("rows"), mapped("checksums")
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
        if last < first or len(starts) != last - first + 1:
            raise self._damaged(index)
        target = part(self.targets, self.target_ends, index)
        output = part(self.outputs, self.output_ends, index) if len(self.output_ends) else None
        reference = part(self.references, self.reference_ends, index) if len(self.references) else None
        here = slice(starts[0], starts[-1])
        offsets = self.offsets[here] if len(self.offsets) else None
        always = [self.tokens[here], self.sequence_ends[first:last], self.first[first:last], self.rows[index : index + 1], target]
        read = [*always, output, offsets, reference]
        if checksum(one for one in read if one is not None) != self.checksums[index]:
            raise self._damaged(index)
        return Encoded(
            sequences=[self.tokens[starts[i] : starts[i + 1]] for i in range(last - first)],
            first=self.first[first:last].tolist(),
            target=np.array(target),
            source=int(self.rows[index]),
            output=output,
            offsets=None if offsets is None else [self.offsets[starts[i] : starts[i + 1]] for i in range(last - first)],
            reference=None if reference is None else as_tuples(json.loads(reference.tobytes())),
        )

    def _damaged(self, index: int) -> Damaged:
        """The error of an example that is not what was written. Whole files are compared again before the shard is next used."""
        with suppress(OSError):  # where the cache cannot be written, they always are
            (self.folder / CHECKED).unlink(missing_ok=True)
        return Damaged(
            f"{self.folder}: example {index} is not what was written; the disk or the memory of this machine is at fault. Start "
            "again: this part of the data is then built again"
        )

    def all_targets(self) -> list[np.ndarray]:
        """The target of every example."""
        ends = self.target_ends.tolist()
        return [self.targets[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def lengths(self) -> np.ndarray:
        """Tokens per example [n]."""
        totals = np.concatenate([[0], self.sequence_ends])[self.example_ends]
        return np.diff(totals, prepend=0)

    def token_counts(self, examples: np.ndarray) -> np.ndarray:
        """Tokens of some examples by encoder and decoder [n], read off where they end."""
        counts = widths(self.sequence_ends, *spans(self.example_ends, examples))
        return counts + widths(self.output_ends, examples, examples + 1) if len(self.output_ends) else counts


def spans(ends: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each begins and ends, [n] both."""
    return np.where(indices > 0, ends[indices - 1], 0), ends[indices]


def widths(ends: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """How much lies between the beginning of element `first` and the end of the one before `last` [n]."""
    return ends[last - 1] - np.where(first > 0, ends[first - 1], 0)


def part(values: np.ndarray, ends: np.ndarray, index: int) -> np.ndarray:
    """What example `index` has of `values`; `ends` says where each example's end."""
    return values[int(ends[index - 1]) if index else 0 : int(ends[index])]


def as_tuples(value: Any) -> Any:
    """What JSON read, as it was before it was written: references hold texts, numbers and tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


# ---- checking


def checksum(parts: Iterable[Any]) -> int:
    """CRC-32 of bytes, or arrays, end to end."""
    found = 0
    for one in parts:
        found = zlib.crc32(one, found)
    return found


def file_checksum(path: Path) -> int:
    with path.open("rb") as file:
        return checksum(iter(lambda: file.read(1 << 20), b""))


def check_files(folder: Path, arrays: dict[str, tuple[str, int, int]]) -> None:
    """Compare the files of a shard with what was written.

    Raises:
        ValueError: one is something else.
        OSError: one cannot be read.
    """
    touched = 0
    for name, (dtype, size, _) in arrays.items():
        found = os.stat(folder / f"{name}.bin")
        if found.st_size != size * np.dtype(dtype).itemsize:
            raise ValueError(f"{name}.bin has {found.st_size} bytes, not {size * np.dtype(dtype).itemsize}")
        touched = max(touched, found.st_mtime_ns, found.st_ctime_ns)
    stamp = folder / CHECKED
    if stamp.exists() and stamp.stat().st_mtime_ns > touched:  # at equal times, nobody knows which came first
        return
    for name, (*_, expected) in arrays.items():
        if file_checksum(folder / f"{name}.bin") != expected:
            raise ValueError(f"{name}.bin does not match its checksum")
    with suppress(OSError):  # where the cache cannot be written, they are compared again next time
        stamp.touch()


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if manifest.pop("checksum") != checksum([json.dumps(manifest).encode()]):
        raise ValueError(f"{MANIFEST} does not match its checksum")
    return manifest


def read_faults(folder: Path, expected: tuple[int, int]) -> list[Fault]:
    """The rows set aside; `expected` says how many, and the checksum of their file."""
    count, crc = expected
    if not count:
        return []
    if file_checksum(folder / QUARANTINE) != crc:
        raise ValueError(f"{QUARANTINE} does not match its checksum")
    records = read_records(folder / QUARANTINE)
    return [Fault(**{key: value for key, value in one.items() if key not in ("task", "role")}) for one in records]


# ---- writing


class Appender:
    """Arrays appended to files, with their sizes and checksums."""

    def __init__(self, folder: Path, dtypes: dict[str, Any]) -> None:
        self.dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self.open = ExitStack()
        self.files = {name: self.open.enter_context((folder / f"{name}.bin").open("wb")) for name in dtypes}
        self.sizes = dict.fromkeys(dtypes, 0)
        self.checksums = dict.fromkeys(dtypes, 0)

    def written(self) -> int:
        """Bytes so far."""
        return sum(size * self.dtypes[name].itemsize for name, size in self.sizes.items())

    def add(self, name: str, values: Any) -> np.ndarray:
        """Append values; gives them back as they are stored."""
        array = np.ascontiguousarray(values, dtype=self.dtypes[name]).reshape(-1)
        self.files[name].write(array.data)
        self.checksums[name] = zlib.crc32(array.data, self.checksums[name])
        self.sizes[name] += array.size
        return array

    def add_parts(self, name: str, ends: str, parts: Sequence[Any]) -> list[bytes]:
        """Append several arrays end to end, and where each ends; gives them back as they are stored."""
        lengths = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
        self.add(ends, self.sizes[name] + lengths)
        return cut(self.add(name, np.concatenate(parts)), lengths)

    def add_examples(self, encoded: Sequence[Encoded], rows: Sequence[int]) -> None:
        """At least one, all with the same parts."""
        sequences = [sequence for one in encoded for sequence in one.sequences]
        sequence_ends = np.cumsum([len(sequence) for sequence in sequences])
        example_ends = np.cumsum([len(one.sequences) for one in encoded])
        token_ends = sequence_ends[example_ends - 1]
        self.add("example_ends", self.sizes["first"] + example_ends)
        begun = self.sizes["tokens"]
        stored = [
            cut(self.add("tokens", np.concatenate(sequences)), token_ends),
            cut(self.add("sequence_ends", begun + sequence_ends), example_ends),
            cut(self.add("first", [first for one in encoded for first in one.first]), example_ends),
            cut(self.add("rows", rows), np.arange(1, len(encoded) + 1)),
            self.add_parts("targets", "target_ends", [one.target for one in encoded]),
        ]
        if outputs := [one.output for one in encoded if one.output is not None]:
            stored.append(self.add_parts("outputs", "output_ends", outputs))
        if offsets := [part for one in encoded for part in one.offsets or ()]:
            stored.append(cut(self.add("offsets", np.concatenate(offsets)), 2 * token_ends))
        if any(one.reference is not None for one in encoded):
            texts = [json.dumps(one.reference).encode() for one in encoded]
            stored.append(self.add_parts("references", "reference_ends", [np.frombuffer(text, np.uint8) for text in texts]))
        self.add("checksums", [checksum(parts) for parts in zip(*stored, strict=True)])

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def sync(self) -> dict[str, tuple[str, int, int]]:
        """Force all to disk; name -> (dtype, size, checksum)."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: (self.dtypes[name].str, self.sizes[name], self.checksums[name]) for name in self.files}


def cut(values: np.ndarray, ends: np.ndarray) -> list[bytes]:
    """The parts of an array, by where each ends."""
    stored, at = values.tobytes(), (ends * values.itemsize).tolist()
    return [stored[start:end] for start, end in zip([0, *at], at, strict=False)]


def seal(folder: Path, manifest: dict[str, Any], records: Sequence[dict[str, Any]] = ()) -> None:
    """Write what is known of a shard whose arrays are there: `records` name the rows set aside."""
    write_records(folder / QUARANTINE, records)
    manifest = {**manifest, "quarantine": (len(records), file_checksum(folder / QUARANTINE) if records else 0)}
    manifest["checksum"] = checksum([json.dumps(manifest).encode()])
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    (folder / CHECKED).touch()


def array_types(vocab_size: int, target_type: type) -> dict[str, Any]:
    """The arrays of a shard."""
    width = np.uint16 if vocab_size < 2**16 else np.uint32
    return {
        "tokens": width, "first": np.uint32, "sequence_ends": np.int64, "example_ends": np.int64, "rows": np.int64,
        "targets": target_type, "target_ends": np.int64, "outputs": width, "output_ends": np.int64, "offsets": np.int32,
        "references": np.uint8, "reference_ends": np.int64, "checksums": np.uint32,
    }  # fmt: skip
