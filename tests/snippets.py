"""The code in README and the documents: found, and run or checked as a reader would.

What a block is follows from its fence, and a fence of another kind is an error:

    ```bash    a command a line: run, or where that cannot be (a cluster, a package index) parsed by the program that would run it
    ```python  run, in one namespace per page; with title="NAME" a file of that name
    ```yaml    read; a suite also by `read_suite`; with title="NAME" a file of that name
    ```text    with title="Output" what the block before printed, numbers aside, `...` for what is left out. A first line that
               ends with / begins a tree of files, which is compared with that folder. Others (formulas, the tree of the README)
               have tests of their own
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser
from typer.main import get_command

from prefinetune.cli import app, main
from prefinetune.config import Config, make_config
from prefinetune.task import read_suite

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
KINDS = ("bash", "python", "yaml", "text")
FENCE = re.compile(r'^```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)

# Training takes hours, and here a few updates; a study is planned. The rest of a command is run as it stands.
FEWER = ("train.updates=2", "mixture.sub_batches=2", "train.evaluation_rows=2", "data.max_length=32", "data.max_target_length=8")
BOUNDS = {
    "train": FEWER,
    "finetune": FEWER,
    "compare": (*FEWER, "--seeds=2", "--grid=1e-3"),
    "study": ("--plan",),
}
CLUSTER = "/shared/"  # a folder that all machines of a cluster see
FILE = re.compile(r"[\w<>-]*[./][\w<>./-]*")  # how a tree names files and folders, before it says what they are
ON_DEMAND = {  # of a run's files
    ".lock", "adapter", "affinity.jsonl", "emissions.jsonl", "leaks.json", "quarantine.jsonl", "tensorboard", "tracking.json",
}  # fmt: skip
SHELL = ("sed",)  # what else a page may ask a shell for


class Block(NamedTuple):
    page: Path
    line: int
    kind: str
    title: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page. A fence that is of no known kind, indented or not closed fails."""
    text = page.read_text()
    found = [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2] or "", match[3]) for match in FENCE.finditer(text)
    ]
    for block in found:
        assert block.kind in KINDS, (
            f"{block.place}: ```{block.kind} is none of {', '.join(KINDS)}: it would be neither run nor checked"
        )
    fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
    assert fences == 2 * len(found), (
        f"{page.name}: {fences} fences, {len(found)} blocks; is one indented, not closed, or titled oddly?"
    )
    return found


def is_tree(block: Block) -> bool:
    return block.text.splitlines()[0].endswith("/")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


# ---- commands


def commands(text: str) -> Iterator[str]:
    """A command a line; some go on in the next."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if shlex.split(line, comments=True):
            yield line.strip()


def check_command(words: list[str]) -> None:
    """Parse a command with what would run it: its verbs, options and settings are known ones. Nothing is run."""
    program, *rest = words
    if words[:3] == ["python", "-m", "prefinetune"] or program == "prefinetune":
        check_prefinetune(rest if program == "prefinetune" else words[3:])
    elif program in ("torchrun", "accelerate"):
        parser = get_args_parser() if program == "torchrun" else launch_command_parser()
        launched = parser.parse_args(rest if program == "torchrun" else rest[1:])
        assert launched.module
        assert launched.training_script == "prefinetune"
        check_prefinetune(launched.training_script_args)
    elif program == "sbatch":
        assert (ROOT / rest[0]).exists(), rest[0]
        check_prefinetune(["train", *rest[1:]])
    elif program == "make":
        known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(known), rest
    elif program == "pip":
        check_pip(rest)
    elif program == "tensorboard":
        assert rest[0] == "--logdir", rest
    elif program == "python":  # a program of ours that takes hours
        assert (ROOT / rest[0]).exists(), rest[0]
    else:
        raise AssertionError(f"{program}: nothing here can check such a command")


def check_prefinetune(words: list[str]) -> None:
    """Verb, arguments, options and settings are known ones."""
    verb: Any = get_command(app)
    while hasattr(verb, "commands"):
        assert words[0] in verb.commands, f"{words[0]}: there are {', '.join(verb.commands)}"
        verb, words = verb.commands[words[0]], words[1:]
    try:
        context = verb.make_context(verb.name, list(words))
    except Exception as error:  # Click's, or Typer's own, by its version
        raise AssertionError(f"{verb.name} {shlex.join(words)}: {error}") from None
    given = context.params.get("settings") or [text for text in context.params.get("tasks") or () if "=" in text]
    make_config(overrides=given)


def check_pip(words: list[str]) -> None:
    """`pip install` of this project, or of an extra that it has."""
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[0] == "install"
    for what in words[1:]:
        name = re.fullmatch(r"(?:prefinetune|\.)(?:\[([\w,-]+)\])?|-e", what)
        assert name, f"pip install {what}"
        assert set((name[1] or "").split(",")) - {""} <= set(extras), f"pip install {what}: there are {', '.join(extras)}"


def check_words(text: str) -> None:
    """A command as prose names it: only verbs and options, with ... or CAPITALS for what is left open."""
    command: Any = get_command(app)
    words = shlex.split(text.split(" > ")[0])[1:]
    while words and hasattr(command, "commands"):
        name, *others = words.pop(0).split("|")
        if not name.islower():
            return
        assert {name, *others} <= set(command.commands), f"`{text}`: there are {', '.join(command.commands)}"
        command = command.commands[name]
    options = {option for parameter in command.params for option in parameter.opts}
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.split("=")[0] not in {*options, "--help"}]
    assert not unknown, f"`{text}`: no option {unknown}"


def check_settings(text: str) -> None:
    """Settings with values that a page names."""
    named = re.findall(r"\b([a-z0-9]+)(\.[a-z0-9_]+=)([\w.+-]*\w)", text)
    make_config(overrides=[section + field + value for section, field, value in named if section in Config.model_fields])


# ---- a page, run


class Reader:
    """Somebody who types a page into a folder, from top to bottom."""

    def __init__(self, folder: Path, names: dict[str, Any]) -> None:
        self.folder, self.names, self.said = folder, {"__name__": "__main__", **names}, ""

    def read(self, block: Block) -> None:
        """Run or check one block.

        Raises:
            AssertionError: it does not do what it says.
        """
        if block.title and block.kind in ("python", "yaml"):
            (self.folder / block.title).write_text(block.text)
            importlib.invalidate_caches()  # the import system may have looked before
        elif block.kind == "python":
            with self.listening():
                exec(compile(block.text, block.place, "exec"), self.names)
        elif block.kind == "bash":
            said = []
            for line in commands(block.text):
                self.run(line, block.place)
                said.append(self.said)
            self.said = "".join(said)
        elif block.title == "Output":
            missing = first_missing(block.text, self.said)
            assert missing is None, f"{block.place}: {missing!r} is not what was said:\n{self.said}"
        elif block.kind == "text" and is_tree(block):
            self.look_at(block)
        if block.kind == "yaml":
            self.read_yaml(block)

    def look_at(self, block: Block) -> None:
        """A tree names all that its folder holds, or `...` for the rest, and nothing else but what is there on demand."""
        head, *lines = block.text.splitlines()
        told: set[str] = set()
        for line in lines:
            if re.match(r" {2}\S", line):  # deeper ones have more spaces
                parts = [part.rstrip(",") for part in line.split()]
                told |= {part.split("/")[0] or part for part in itertools.takewhile(FILE.fullmatch, parts)}
        found = {path.name for path in (self.folder / head).iterdir()}
        assert "..." in told or not found - told, f"{block.place}: {found - told} is there, too"
        missing = told - found - ON_DEMAND - {"..."}
        assert not missing, f"{block.place}: {missing} is not there"

    def read_yaml(self, block: Block) -> None:
        found = yaml.safe_load(block.text)
        assert found is None or isinstance(found, dict), f"{block.place}: not a mapping"
        if found and "tasks" in found:
            path = self.folder / (block.title or f"suite-{block.line}.yaml")
            path.write_text(block.text)
            assert len(read_suite(path))

    def run(self, line: str, place: str) -> None:
        words = shlex.split(line, comments=True)
        if not runs_here(words):
            check_command(words)
            return
        if words[0] in SHELL or re.search(r"[|<>;&*$]", re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", line)):
            scripts = Path(sys.executable).parent
            environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", line], cwd=self.folder, env=environment, capture_output=True, text=True
            )
            self.said = done.stdout + done.stderr
            assert done.returncode == 0, f"{place}: {line}\n{self.said}"
            return
        code: Any = 0
        with self.listening(), argued(words):
            try:
                if words[0] == "prefinetune":
                    main()
                elif words[1] == "-c":
                    exec(compile(words[2], place, "exec"), {"__name__": "__main__"})
                else:
                    sys.path.insert(0, str(Path(words[1]).resolve().parent))
                    runpy.run_path(words[1], run_name="__main__")
            except SystemExit as stop:
                code = stop.code
        assert not code, f"{place}: {line} ended with {code}\n{self.said}"

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        stream = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            try:
                yield
            finally:
                self.said = stream.getvalue()


def runs_here(words: list[str]) -> bool:
    if any(CLUSTER in word for word in words) or ("--push" in words and "--dry-run" not in words):  # machines, or a network
        return False
    if words[0] == "python" and words[1].startswith("benchmarks/"):
        return words[2:] == ["--help"]
    return words[0] in ("prefinetune", "python", *SHELL)


@contextlib.contextmanager
def argued(words: list[str]) -> Iterator[None]:
    """The arguments of this process are `words`, with what bounds the verb; its import path is what it was, afterwards."""
    before = sys.argv, sys.path[:]
    sys.argv = words[1:]
    if words[0] == "prefinetune":
        often = ["train.affinity_every=1"] if any("affinity_every" in word for word in words) else []
        sys.argv = [*words, *BOUNDS.get(words[1], ()), *often]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before


def first_missing(told: str, said: str) -> str | None:
    """The first line of `told` that does not come in `said` after the lines before it. A number is as good as another; where a
    line is `...`, lines may be left out, and elsewhere not."""
    lines = [alike(line) for line in said.splitlines() if alike(line)]
    at, leaving_out = 0, True  # what comes before the first line may be left out, too
    for line in told.splitlines():
        if line.strip() == "...":
            leaving_out = True
            continue
        wanted = alike(line)
        if not wanted:
            continue
        if wanted not in lines[at:] or (not leaving_out and lines[at] != wanted):
            return line
        at, leaving_out = lines.index(wanted, at) + 1, False
    return None


def alike(line: str) -> str:
    return " ".join(re.sub(r"\d[\d,.:]*", "#", line).split())
