"""YAML files whose parts know where they stand, so that a mistake is answered with its file, line and column.

Built on PyYAML's own nodes. What PyYAML passes over in silence is refused: a key that stands twice, a key that is no text, dates,
tags of other programs. Lines and columns are counted from 1, in characters, as editors do.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefinetune.errors import InputError

TAG = "tag:yaml.org,2002:"
MOST_PARTS, DEEPEST = 100_000, 32  # of a file; aliases of aliases of aliases would otherwise fill the memory
LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class File:
    """A text file: its path as it was given, and its text."""

    path: Path
    text: str

    def at(self, index: int) -> str:
        """PATH:LINE:COLUMN of a character; the end of the text for those that stand behind it."""
        lines = LINE_END.split(self.text[: min(index, len(self.text.rstrip()))])
        return f"{self.path}:{len(lines)}:{len(lines[-1]) + 1}"


@dataclass(frozen=True)
class Part:
    """A value of a YAML file with all that is in it, or a value from elsewhere, which stands nowhere.

    Attributes:
        value: as plain Python: dictionaries with texts as keys, lists, texts, numbers, booleans, None.
        name: what messages call it: "task 3 (intent), classification".
        file: the file that holds it.
        index: of its first character there.
        keys: of a mapping: the index of each key's first character.
        written: how a number, a boolean or nothing is written there; None for everything else.
    """

    value: Any
    name: str = ""
    file: File | None = None
    index: int = 0
    keys: Mapping[str, int] = field(default_factory=dict)
    written: str | None = None
    parts: Mapping[Any, Part] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, value: Any, name: str = "") -> Part:
        """A value that stands in no file."""
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
        return cls(value, name, parts={key: cls.of(part) for key, part in items})

    def __contains__(self, key: str) -> bool:
        return key in self.parts

    def __getitem__(self, key: str | int) -> Part:
        """What stands under a key, or at a position."""
        name = f"{self.name} {key + 1}" if isinstance(key, int) else f"{self.name}, {key}".removeprefix(", ")
        return self.parts[key].called(name)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self.parts else default

    def __iter__(self) -> Iterator[Part]:
        """Of a list: its elements."""
        return (self[index] for index in range(len(self.parts)))

    def called(self, name: str) -> Part:
        return replace(self, name=name)

    @property
    def place(self) -> str:
        return "" if self.file is None else self.file.at(self.index)

    def refuse(self, message: str) -> InputError:
        """An error about this part."""
        return InputError(": ".join(part for part in (self.place, self.name, message) if part))

    def refuse_key(self, key: str, message: str) -> InputError:
        """An error about a key of this mapping."""
        return replace(self, index=self.keys.get(key, self.index)).refuse(message)

    @property
    def quoting(self) -> str:
        """What to do where a text was meant, or an empty string."""
        if self.written is None:
            return ""
        if not self.written:
            return "; nothing stands here"
        read = {bool: "a boolean", type(None): "nothing"}.get(type(self.value), f"the number {self.value}")
        return f'; YAML reads {self.written} without quotes as {read}: write "{self.written}"'


def shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def read_yaml(path: Path) -> Part:
    """The document that a file holds.

    Raises:
        InputError: it cannot be read, is no YAML, or holds something that is refused (see above).
    """
    import yaml

    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror})") from None
    try:
        file = File(path, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        place = File(path, before + "?").at(len(before))
        raise InputError(f"{place}: byte 0x{data[error.start]:02x} is not valid UTF-8") from None
    try:
        loader = shallow_loader()(file.text)
        root = loader.get_single_node()
        if root is None:
            raise InputError(f"{file.at(0)}: the file is empty")
        return Reader(file, loader).part(root)
    except yaml.reader.ReaderError as error:  # a character that YAML does not allow
        raise InputError(f"{file.at(error.position)}: not valid YAML: character U+{error.character:04X}") from None
    except yaml.MarkedYAMLError as error:
        raise InputError(explain(error, file)) from None


def explain(error: Any, file: File) -> str:
    """One complaint of PyYAML's with its place."""
    mark = error.problem_mark or error.context_mark
    index = mark.index if mark else 0
    message = str(error.problem or error.context)
    if "another document" in message:
        message = "a second document begins here; expected one"
    elif file.text[index : index + 1] == "\t":
        message = "a tab; YAML is indented with spaces"
    elif error.context and error.context_mark and error.context_mark.index != index:
        where = file.at(error.context_mark.index).removeprefix(f"{file.path}:")
        message += f", {error.context} that begins at {where}"
    return f"{file.at(index)}: not valid YAML: {message}"


def shallow_loader() -> type:
    """PyYAML's safe loader, which gives up on nesting before Python does."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > DEEPEST:
                mark = self.peek_event().start_mark
                raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} deep", mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return Loader


class Reader:
    """Makes parts of a file's nodes."""

    def __init__(self, file: File, loader: Any) -> None:
        self.file, self.loader = file, loader
        self.count = 0
        self.within: set[int] = set()  # the collections that are being read

    def refuse(self, node: Any, message: str) -> InputError:
        return InputError(f"{self.file.at(node.start_mark.index)}: {message}")

    def part(self, node: Any) -> Part:
        import yaml

        self.count += 1
        if self.count > MOST_PARTS:
            raise self.refuse(node, f"more than {MOST_PARTS:,} values in this file, those of aliases counted each time")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if id(node) in self.within:
            raise self.refuse(node, "this value holds an alias of itself")
        self.within.add(id(node))
        kind, read = ("seq", self.sequence) if isinstance(node, yaml.SequenceNode) else ("map", self.mapping)
        if node.tag != TAG + kind:
            raise self.refuse(node, f"the tag {short(node.tag)} is not accepted")
        made = read(node)
        self.within.remove(id(node))
        return made

    def scalar(self, node: Any) -> Part:
        index = node.start_mark.index
        kind = node.tag.removeprefix(TAG)
        if kind == "str":
            return Part(node.value, file=self.file, index=index)
        if kind not in ("int", "float", "bool", "null"):
            what = "a date" if kind == "timestamp" else f"a value with the tag {short(node.tag)}"
            raise self.refuse(node, f'YAML reads {node.value} as {what}; where a text is meant, write "{node.value}"')
        try:
            value = self.loader.construct_object(node)
        except (ValueError, LookupError):  # such as !!int x
            raise self.refuse(node, f'{node.value!r} is not accepted; where a text is meant, write "{node.value}"') from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self.refuse(node, f'{node.value} is not accepted; where a text is meant, write "{node.value}"')
        return Part(value, file=self.file, index=index, written=node.value)

    def sequence(self, node: Any) -> Part:
        parts = dict(enumerate(self.part(item) for item in node.value))
        return Part([part.value for part in parts.values()], file=self.file, index=node.start_mark.index, parts=parts)

    def mapping(self, node: Any) -> Part:
        """With the keys of what `<<` names, where it has not the same ones itself."""
        own: dict[str, Part] = {}
        keys: dict[str, int] = {}
        merged: list[Part] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{TAG}merge":
                part = self.part(value_node)
                given = list(part) if isinstance(part.value, list) else [part]
                if not all(isinstance(one.value, dict) for one in given):
                    raise self.refuse(value_node, "'<<' takes a mapping, or a list of them")
                merged.extend(given)
                continue
            key = self.part(key_node)
            if not isinstance(key.value, str):
                raise self.refuse(key_node, f"the key {shown(key.value)} is not text{key.quoting}")
            if key.value in keys:
                first = self.file.at(keys[key.value]).removeprefix(f"{self.file.path}:")
                raise self.refuse(key_node, f"the key {key.value!r} stands twice, first at {first}")
            keys[key.value] = key.index
            own[key.value] = self.part(value_node)
        parts = dict(own)
        for one in merged:
            for key, part in one.parts.items():
                if key not in parts:
                    parts[key], keys[key] = part, one.keys[key]
        plain = {key: part.value for key, part in parts.items()}
        return Part(plain, file=self.file, index=node.start_mark.index, keys=keys, parts=parts)


def short(tag: str) -> str:
    return tag.replace(TAG, "!!")
