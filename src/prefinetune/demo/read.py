"""Documented objects of Python packages, read from their source: `ast` finds them, `docstring_parser` takes their fields apart.

Nothing is imported, so nothing of what is read is run. What comes out is plain prose: markup, code, tables and formulas are taken
off or left out. `mine` makes tasks from it.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import inspect
import multiprocessing
import os
import re
import signal
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
from docstring_parser.common import DocstringStyle

STDLIB = "python"  # what the standard library is called as a package
SKIPPED_FOLDERS = {
    "test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "lib-dynload", "site-packages", "dist-packages",
    "_vendor", "vendored", "extern", "externals", "array_api_compat", "array_api_extra", "_distutils_hack", "__pycache__",
}  # fmt: skip
SKIPPED_PACKAGES = {"prefinetune", "pip", "pkg_resources", "setuptools"}  # ourselves, and copies of others
TARGET_PACKAGES = {"scipy": 10, "sklearn": 10}  # whose sub-modules targets ask for, and how many of these; read whole
MOST_BYTES = 6_000_000  # of source per other package; one that has more gives a sample of its files
MOST_FILE_BYTES = 1_000_000  # longer files are generated
CHUNK = 40  # files that a process reads at a time

do_next: Callable[[Any], Any]  # of this process
Item = TypeVar("Item")
Result = TypeVar("Result")
Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Param:
    name: str
    type: str  # as the docstring or else the annotation says it
    text: str
    optional: bool | None  # None: not known


@dataclass(frozen=True, slots=True)
class Doc:
    """One documented object. All texts are plain; `returned` and `raised` are (type, text)."""

    package: str
    module: str  # dotted, without the package
    name: str
    kind: str
    summary: str
    body: tuple[str, ...] = ()  # sentences
    params: tuple[Param, ...] = ()
    returned: tuple[str, str] = ("", "")
    raised: tuple[tuple[str, str], ...] = ()
    key: str = ""  # digest of the normalised summary: objects of one key are never divided

    def pieces(self) -> Iterator[str]:
        """Every text of it that could stand in another object as well."""
        yield self.summary
        yield from self.body
        yield from (param.text for param in self.params if param.text)
        if self.returned[1]:
            yield self.returned[1]
        yield from (text for _, text in self.raised if text)


@dataclass
class Reading:
    docs: list[Doc] = field(default_factory=list)
    files: int = 0
    unreadable: int = 0  # files that are not Python as this interpreter knows it
    unparsed: int = 0  # docstrings whose fields docstring_parser refused


def read_packages(packages: Sequence[Path] | None = None, progress: Callable[[str], None] | None = None) -> Reading:
    """All documented objects, once each, in an order that depends on the installation only."""
    roots = installed() if packages is None else named(packages)
    files = [item for name, root in roots.items() for item in sample(name, root)]
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    total, seen = Reading(), set()
    for done, part in enumerate(in_processes(read_files, chunks), 1):
        total.files += part.files
        total.unreadable += part.unreadable
        total.unparsed += part.unparsed
        for doc in part.docs:
            once = normal(" ".join([doc.package, *doc.pieces()]))
            if once not in seen:
                seen.add(once)
                total.docs.append(doc)
        if progress is not None:
            progress(f"read {min(done * CHUNK, len(files)):,} of {len(files):,} files: {len(total.docs):,} objects")
    return total


def in_processes(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """A process per core where they can be forked; a spawned one would run the caller's main module again.

    A fork has all that `work` refers to; only items and results are sent.
    """
    cores = os.cpu_count() or 1
    if len(items) > 4 and "fork" in multiprocessing.get_all_start_methods() and cores > 1:
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(cores, mp_context=context, initializer=set_work, initargs=(work,)) as pool:
            yield from pool.map(do_work, items)
    else:
        yield from map(work, items)


def set_work(work: Callable[[Any], Any]) -> None:
    global do_next
    do_next = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and leaves without what we make


def do_work(item: Any) -> Any:
    return do_next(item)


# ---- which files


def installed() -> dict[str, Path]:
    """The standard library and every package beside this interpreter."""
    roots = {STDLIB: Path(sysconfig.get_path("stdlib"))}
    for folder in sys.path:
        if Path(folder).name in ("site-packages", "dist-packages") and Path(folder).is_dir():
            for path in sorted(Path(folder).iterdir()):
                if path.is_dir() and path.name.isidentifier() and path.name not in SKIPPED_PACKAGES | SKIPPED_FOLDERS:
                    roots.setdefault(path.name, path)
    return roots


def named(packages: Sequence[Path]) -> dict[str, Path]:
    stdlib = sysconfig.get_path("stdlib")
    return {STDLIB if str(path) == stdlib else Path(path).stem: Path(path) for path in sorted(packages)}


def sample(package: str, root: Path) -> list[tuple[str, str, str]]:
    """(package, dotted module, path) of files, in the order of a hash of the module until the package has given its share."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        for name in names:
            if name.endswith(".py") and not name.startswith(("test_", "conftest")):
                path = Path(folder) / name
                parts = path.relative_to(root).with_suffix("").parts
                found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    taken, size = [], 0
    for module, path in sorted(found, key=lambda item: (digest(item[0]), item[0])):
        length = path.stat().st_size
        if length > MOST_FILE_BYTES:
            continue
        size += length
        if size > MOST_BYTES and package not in TARGET_PACKAGES:
            break
        taken.append((package, module, str(path)))
    return taken


# ---- a file


def read_files(files: Iterable[tuple[str, str, str]]) -> Reading:
    total = Reading()
    collecting = gc.isenabled()
    gc.disable()  # syntax trees have no cycles, and looking for some takes a third of the time
    try:
        for package, module, path in files:
            total.files += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # odd escapes in the files of others
                    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
                total.unreadable += 1
                continue
            for node, name, kind in documented(tree, module):
                total.docs.extend(read_object(node, package, module, name, kind, total))
    finally:
        if collecting:
            gc.enable()
    return total


def documented(tree: ast.Module, module: str) -> Iterator[tuple[Node, str, str]]:
    """(node, name, kind) of the module, its classes and functions, and theirs; not what functions hold."""
    yield tree, module.rpartition(".")[2], "module"
    todo: list[tuple[ast.stmt, bool]] = [(node, False) for node in tree.body]
    while todo:
        node, in_class = todo.pop(0)
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            failure = any(re.search(r"(Error|Exception|Warning)$", base) for base in bases)
            yield node, node.name, "exception" if failure else "class"
            todo.extend((child, True) for child in node.body)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
            kind = "property" if marks & {"property", "cached_property"} else "method" if in_class else "function"
            yield node, node.name, kind
        elif isinstance(node, (ast.If, ast.Try)):  # definitions that depend on a platform or an import
            todo.extend((child, in_class) for child in [*node.body, *node.orelse])


def read_object(node: Node, package: str, module: str, name: str, kind: str, total: Reading) -> Iterator[Doc]:
    raw = ast.get_docstring(node, clean=False)
    if not raw or not raw.strip() or len(raw) > 60_000:
        return
    text = inspect.cleandoc(raw.expandtabs())
    try:
        parsed = docstring_parser.parse(text, style=style(text))
    except Exception:  # whatever it stumbles over in the writing of others: the description is still there
        total.unparsed += 1
        parsed = docstring_parser.parse(cut_fields(text), style=DocstringStyle.GOOGLE)
    between = "\n\n" if parsed.blank_after_short_description else "\n"  # a first sentence may run over several lines
    paragraphs = prose(between.join(part for part in (parsed.short_description, parsed.long_description) if part))
    summary, *rest = [sentence for part in paragraphs for sentence in sentences(part)] or [""]
    if not readable(summary) or summary.endswith(":") or not 3 <= len(summary.split()) <= 60:
        return
    body = [sentence for sentence in rest if readable(sentence) and sentence[0].isupper() and sentence[-1] in ".!?"]
    known = signature(node)
    params = [
        Param(name_of(param), said_type(param, known), text, optional(param, known))
        for param in parsed.params
        if param.args[0] in ("param", "parameter", "arg")  # not an attribute
        and name_of(param).isidentifier()
        and (text := first_prose(param.description))
    ]
    returned = ("", "")
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and kind != "property":
        annotation = ast.unparse(node.returns) if node.returns is not None else ""
        said = parsed.returns
        returned = (annotation, "") if said is None else (said.type_name or annotation, first_prose(said.description))
    raised = [((item.type_name or "").strip("`: "), first_prose(item.description)) for item in parsed.raises]
    yield Doc(
        package=package,
        module=module,
        name=name,
        kind=kind,
        summary=summary,
        body=tuple(body[:30]),
        params=tuple(params[:30]),
        returned=returned,
        raised=tuple((what, text) for what, text in raised if what and text),
        key=digest(normal(summary)),
    )


NUMPY = re.compile(
    r"^[ \t]*(Parameters|Returns|Yields|Attributes|Raises|See Also|Notes|Examples?|References)[ \t]*\n[ \t]*-{3,}", re.M
)
GOOGLE = re.compile(r"^(Args|Arguments|Param(eter)?s|Returns|Yields|Raises|Except(ions)?|Attributes|Examples?):[ \t]*$", re.M)
SPHINX = re.compile(r"^[ \t]*:(param|type|returns?|rtype|raises?)\b[^:\n]*:", re.M)


def style(text: str) -> DocstringStyle:
    """Told from its headings; trying all styles on every docstring takes too long."""
    if NUMPY.search(text):
        return DocstringStyle.NUMPYDOC
    return DocstringStyle.REST if SPHINX.search(text) and not GOOGLE.search(text) else DocstringStyle.GOOGLE


def cut_fields(text: str) -> str:
    ends = [match.start() for pattern in (NUMPY, GOOGLE, SPHINX) if (match := pattern.search(text))]
    return text[: min(ends)] if ends else text


def signature(node: Node) -> dict[str, tuple[bool, str]]:
    """Argument -> (has a default, annotation), from the function or the class's constructor."""
    if isinstance(node, ast.ClassDef):
        made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        return signature(made[0]) if made else {}
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return {}
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [False] * (len(positional) - len(given.defaults)) + [True] * len(given.defaults)
    pairs = [*zip(positional, defaults, strict=True)]
    pairs += [(one, value is not None) for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return {one.arg: (has, ast.unparse(one.annotation) if one.annotation else "") for one, has in pairs}


def name_of(param: docstring_parser.DocstringParam) -> str:
    return param.arg_name.strip("*` ")


def said_type(param: docstring_parser.DocstringParam, known: Mapping[str, tuple[bool, str]]) -> str:
    return (param.type_name or known.get(name_of(param), (False, ""))[1]).strip()


def optional(param: docstring_parser.DocstringParam, known: Mapping[str, tuple[bool, str]]) -> bool | None:
    if name_of(param) in known:
        return known[name_of(param)][0]
    return True if param.is_optional or "optional" in (param.type_name or "").lower() else None


# ---- prose


FENCE = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", re.M | re.S)
UNDERLINED = re.compile(r"^.*\n[ \t]*([-=~^*#\"'`+])\1{3,}[ \t]*$", re.M)
TABLE = re.compile(r"^[ \t]*([|+]|={3,}|-{3,}|#+ |<).*$", re.M)
HEADINGS = (
    "Args|Arguments|Parameters|Params|Returns?|Yields|Raises|Attributes|Inputs?|Outputs?|Shape|Usage|Keyword [Aa]rguments?|"
    "Examples?|References?|See [Aa]lso|Notes?|Warnings?|Todo|TODO|Tips?"
)
FIELDS = re.compile(rf"^[ \t]*(:[a-z]+\b[^:\n]*:(?!`)|({HEADINGS})\s*:[ \t]*$).*\Z", re.M | re.S)
BULLET = re.compile(r"^[ \t]*([-*+•>]|\(?\w{1,2}[.)]|#\.)[ \t]+", re.M)
INLINE = [
    (re.compile(r"<(https?:|/?\w+[ >/]|!--)[^>]*>"), " "),
    (re.compile(r"`+\[`?~?(?:[\w.]*\.)?(\w+)(?:\(\))?`?\]`*|\[`~?(?:[\w.]*\.)?(\w+)(?:\(\))?`\](\([^)\s]*\))?"), r"\1\2"),
    (re.compile(r":(?:\w+:)?\w+:`([^`<]+?)\s*<[^`>]*>`"), r"\1"),
    (re.compile(r":(?:\w+:)?\w+:`[~!]?(?:[A-Za-z_][\w.]*\.)?([^`]+)`"), r"\1"),
    (re.compile(r"!?\[([^\]\n]+)\]\([^)\s]*\)"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),
    (re.compile(r"\[(\d+|#\w*)\]_?|\|\w+\|"), ""),
    (re.compile(r"`+~?([^`]*)`+_{0,2}"), r"\1"),
    (re.compile(r"(\*\*?)(\S|\S[^*]*\S)\1(?!\*)"), r"\2"),
    (re.compile(r"https?://\S+"), ""),
    (re.compile(r"\s+"), " "),
    (re.compile(r" ([.,;:)])"), r"\1"),
]
NO_END = re.compile(r"\b(e\.g|i\.e|etc|vs|cf|Fig|Eq|Sec|approx|resp|al|Dr|no|ca|incl|viz)\.$")
SPACE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


def prose(text: str) -> list[str]:
    """The paragraphs of a text without code, tables, headings, directives and markup."""
    text = FENCE.sub("\n", text)
    text = FIELDS.sub("", text)
    text = TABLE.sub("", UNDERLINED.sub("\n", text))
    return [part for block in blocks(text) if (part := plain(block))]


def first_prose(text: str | None, most: int = 60) -> str:
    """The first sentences of a field's description, as many as `most` words hold; empty if it is not prose."""
    paragraphs = prose(text or "")
    taken: list[str] = []
    for sentence in sentences(paragraphs[0]) if paragraphs else []:
        if not readable(sentence) or len(" ".join([*taken, sentence]).split()) > most:
            break
        taken.append(sentence)
    return " ".join(taken) if len(" ".join(taken).split()) >= 3 else ""


def blocks(text: str) -> Iterator[str]:
    """Paragraphs and list items, without doctests, directives with what they hold, and blocks indented after an empty line."""
    current: list[str] = []
    hidden: int | None = None  # inside something left out: what is indented deeper than this belongs to it
    doctest, empty = False, True  # a doctest ends at an empty line
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip())
        stripped = line.strip()
        if not stripped:
            yield "\n".join(current)
            current, doctest, empty = [], False, True
            continue
        if not doctest and (hidden is None or indent <= hidden):
            hidden = None
            if stripped.startswith((">>>", "...", "In [", "$ ")):
                doctest = True
            elif stripped.startswith((".. ", "@", "\\")):
                hidden = indent
            elif empty and indent >= 4 and not BULLET.match(line):
                hidden = indent - 1
            elif BULLET.match(line):
                yield "\n".join(current)
                current = [BULLET.sub("", line)]
            else:
                current.append(stripped)
                if stripped.endswith("::"):
                    hidden = indent
        empty = False
    yield "\n".join(current)


MARKUP = re.compile(r"[<`\[|*]|https?:| [.,;:)]")


def plain(text: str) -> str:
    text = " ".join(text.split())
    if MARKUP.search(text):  # most texts have none, and a dozen patterns take their time
        for pattern, new in INLINE:
            text = pattern.sub(new, text)
    return re.sub(r":+$", ":", text.replace("::", ":").strip())


def sentences(text: str) -> list[str]:
    found: list[str] = []
    for part in SPACE.split(text):
        if found and NO_END.search(found[-1]):
            found[-1] += " " + part
        elif part.strip():
            found.append(part.strip())
    return found


ODD = re.compile(r"[\\{}|$`]|^TODO|^\w+ \([^)]*\)?:|\(\W*$|>>>|__\w+__ *=|->|=>|\w\(.*\(|\.\.$|\[\[")


def readable(sentence: str) -> bool:
    """Whether it reads as a sentence and not as code, a formula or a signature."""
    letters = sum(map(str.isalpha, sentence)) + sentence.count(" ")
    return (
        len(sentence) >= 8
        and letters >= 0.82 * len(sentence)
        and sentence[0].isalnum()
        and not ODD.search(sentence)
        and sentence.count("=") < 2
        and len(sentence.split()) <= 80
        and max(map(len, sentence.split())) <= 40
    )


# ---- identity


WORDS = re.compile(r"[^\W_]+")


def normal(text: str) -> str:
    """Its letters and digits in lower case, single spaces: texts that differ in no more are the same text."""
    return " ".join(WORDS.findall(text.lower()))


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
