"""What people and their scripts take for granted: Ctrl-C loses nothing, --json is all of standard output, terminals are
respected, shells complete."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

import microworld
import processes
from prefinetune.checkpoint import checkpoints, load_checkpoint
from prefinetune.cli import app
from prefinetune.files import read_records
from prefinetune.results import RunFolder


@pytest.fixture
def world(tmp_path) -> Path:
    """A folder with a suite of two tables and one to learn from few labels, of made-up sentences."""
    chosen = microworld.world(0, rows_per_task=40, validation_rows=8).tasks[:2]
    for number, task in enumerate((*chosen, microworld.targets(0, train_rows=40)[0])):
        lines = [json.dumps(row) for split in ("train", "validation") for row in task.source.tables[split]]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
        entry = {"name": f"task-{number}", "source": f"{number}.jsonl", task.family.kind: task.family.settings()}
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump({"tasks": [entry]}))
    entries = [yaml.safe_load((tmp_path / f"{number}.yaml").read_text())["tasks"][0] for number in (0, 1)]
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"tasks": entries, "mixture": {"sub_batches": 2}}))
    return tmp_path


# ---- Ctrl-C


@pytest.fixture
def answers(monkeypatch) -> list[str]:
    """What Ctrl-C is answered with, at once."""
    found: list[str] = []
    monkeypatch.setattr(import_module("prefinetune.notice"), "answer", found.append)
    return found


@pytest.fixture
def press(monkeypatch):
    """Arranges that Ctrl-C is pressed so often within call number so and so of a function that a module uses."""

    def arrange(module: str, function: str, call: int, times: int = 1) -> None:
        place = import_module(module)
        true, calls = getattr(place, function), []

        def pressed(*arguments: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == call:
                monkeypatch.setattr(place, function, true)
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGINT)
            return true(*arguments, **named)

        monkeypatch.setattr(place, function, pressed)

    return arrange


ASKED = "finishing the update, then saving; press Ctrl-C again to stop now"


@pytest.mark.parametrize("verb", ["train", "finetune"])  # the second writes no checkpoints unless it is stopped
def test_ctrl_c_finishes_the_update_saves_and_says_how_to_go_on(verb, command, world, tiny_model, press, answers):
    words = {
        "train": ["train", world / "suite.yaml", "-m", tiny_model],
        "finetune": ["finetune", world / "2.yaml", "--from", tiny_model, "--labels", "16"],
    }[verb]
    words += ["train.updates=6", "train.log_every=1", "--json"]
    code, whole, _ = command(*words, "-o", world / "whole")
    assert code == 0
    press("prefinetune.loop", "update", 3)
    code, printed, said = command(*words, "-o", world / "run")
    assert code == 130
    assert answers == [ASKED]
    told = "told to stop (SIGINT): 3 of 6 updates are done and saved; go on with the same command and --resume"
    assert told in said
    assert json.loads(printed) == {"stopped": told}
    assert load_checkpoint(world / "run" / "checkpoints").state["updates"] == 3
    code, printed, _ = command(*words, "-o", world / "run", "--resume")
    assert code == 0
    scores = [json.loads(text)["scores"] for text in (printed, whole)]
    assert scores[0] == scores[1]


def test_ctrl_c_twice_stops_at_once(command, world, tiny_model, press):
    press("prefinetune.loop", "update", 3, times=2)
    words = ["train", world / "suite.yaml", "-m", tiny_model, "train.updates=6", "train.log_every=1", "-o", world / "run"]
    code, _, said = command(*words)
    assert code == 130
    assert "interrupted: what was finished stays" in said
    assert [line["step"] for line in RunFolder(world / "run").metrics()] == [1, 2]
    assert not checkpoints(world / "run" / "checkpoints")


def test_ctrl_c_in_a_comparison_and_in_a_study_keeps_what_is_finished(command, world, tiny_model, press, answers):
    words = [
        "study", "scale", world / "suite.yaml", "train.updates=4", "train.log_every=1", "-t", world / "2.yaml", "-m", tiny_model,
        "--counts", "0,1", "--orders", "1", "--controls", "none", "--labels", "8", "--seeds", "3", "--grid", "1e-3",
        "--finetune", "train.updates=2", "-o", world / "study",
    ]  # fmt: skip
    press("prefinetune.loop", "update", 2)
    code, _, said = command(*words)
    assert code == 130
    assert "2 of 4 updates are done and saved; go on with the same command\n" in said
    press("prefinetune.compare", "learn", 2)
    code, _, said = command(*words)
    assert code == 130
    assert answers[1:] == ["finishing the cells that are being run; what is finished stays; press Ctrl-C again to stop now"]
    cells = world / "study" / "comparison"
    assert f"2 of 6 cells are done and stay in {cells}; go on with the same command\n" in said
    assert len(read_records(cells / "results.jsonl")) == 2
    code, _, said = command(*words)
    assert code == 0, said
    assert "going on from update" not in said  # the run was finished before
    assert len(read_records(cells / "results.jsonl")) == 6


def test_ctrl_c_reaches_all_processes_of_torchrun_once_and_all_save(world, tiny_model):
    out = world / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "prefinetune", "train",
        world / "suite.yaml", "train.updates=100000", "train.log_every=1", "-m", tiny_model, "-o", out,
        "--cache", world / "cache",
    ]  # fmt: skip
    with started(command) as process:
        wait_for(out / "metrics.jsonl", process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    assert said.count(ASKED) == 1
    done = load_checkpoint(out / "checkpoints").state["updates"]
    assert f"told to stop (SIGINT): {done:,} of 100,000 updates are done and saved" in said
    assert RunFolder(out).metrics()[-1]["step"] == done


def test_a_notice_finishes_cells_that_run_side_by_side_and_ctrl_c_twice_does_not_wait_for_them(world, tiny_model):
    command = [
        sys.executable, "-m", "prefinetune", "compare", world / "2.yaml", "train.updates=20", "--from", tiny_model,
        "--base", tiny_model, "--labels", "16", "--seeds", "50", "--grid", "1e-3", "--processes", "2", "-o", world / "out",
        "--cache", world / "cache",
    ]  # fmt: skip
    cells = world / "out" / "results.jsonl"
    count = 0
    for told, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        with started(command, start_new_session=True) as process:
            while len(read_records(cells)) == count:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.05)
            os.killpg(process.pid, told)  # as a terminal and a cluster do: to all of them
            said = process.communicate(timeout=120)[1]
        assert process.returncode == code, said
        count = len(read_records(cells))
        assert f"{count:,} of 100 cells are done and stay in {world / 'out'}; go on with the same command" in said
        assert "Traceback" not in said
    command[command.index("train.updates=20")] = "train.updates=1000000"
    command[command.index(world / "out")] = world / "long"
    with started(command, start_new_session=True) as process:
        wait_for(world / "long" / "comparison.json", process)
        time.sleep(8)  # some seconds into cells that would take hours
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.5)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said


def started(command: list[Any], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(map(str, command)), env=processes.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file has something in it."""
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


# ---- --json


def verbs() -> dict[str, Any]:
    """Every verb of the command line by its words."""

    def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, inner in command.commands.items():
            if hasattr(inner, "commands"):
                yield from leaves(inner, (*words, name))
            else:
                yield " ".join((*words, name)), inner

    return dict(leaves(get_command(app), ()))


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_json_and_tells_what_is_wrong_in_it(verb, command):
    assert any("--json" in option.opts for option in verbs()[verb].params)
    code, printed, said = command(*verb.split(), "--no-such-option", "--json")
    assert code == 2
    assert json.loads(printed).keys() == {"error"}
    assert "--no-such-option" in said


# The rest of the command line of verbs that need no model; {0} is a folder with a suite and its tables.
CHEAP = {
    "runs": "{0}", "settings": "", "schema": "", "recipes": "", "tasks list": "nli", "tasks show": "glue/rte",
    "tasks infer": "{0} --out {0}/found.yaml", "tasks check": "{0}/suite.yaml", "tasks preview": "{0}/suite.yaml",
    "tasks mirror": "{0}/suite.yaml {0}/mirror", "tasks leaks": "{0}/suite.yaml",
}  # fmt: skip
REFUSED = {
    "train": "{0}/suite.yaml", "finetune": "{0}/2.yaml", "compare": "{0}/2.yaml", "report": "{0}", "suite affinity": "{0}",
    "suite prune": "{0}", "study scale": "{0}/suite.yaml", "runs": "{0}/none", "tasks show": "rte", "recipes": "none",
}  # fmt: skip


@pytest.mark.parametrize("verb", CHEAP)
def test_json_is_all_of_standard_output(verb, command, world):
    code, printed, said = command(*verb.split(), *CHEAP[verb].format(world).split(), "--json")
    assert code == 0, said
    json.loads(printed)


@pytest.mark.parametrize("verb", REFUSED)
def test_what_is_refused_is_told_as_json_and_to_people(verb, command, world):
    code, printed, said = command(*verb.split(), *REFUSED[verb].format(world).split(), "--json")
    assert code == 2
    assert f"error: {json.loads(printed)['error']}" in said


@pytest.mark.parametrize("verb", ["train", "finetune", "compare"])
def test_a_dry_run_says_what_would_be_done_and_writes_no_run(verb, command, world, tiny_model):
    words = {
        "train": ["train", world / "suite.yaml", "-m", tiny_model],
        "finetune": ["finetune", world / "2.yaml", "--from", tiny_model, "--labels", "16"],
        "compare": ["compare", world / "2.yaml", "--from", tiny_model, "--base", tiny_model, "--labels", "16", "--seeds", "2"],
    }[verb]
    before = sorted(world.iterdir())
    code, printed, said = command(*words, "train.updates=6", "--dry-run", "--json", "-o", world / "run")
    assert code == 0, said
    found = json.loads(printed)
    cell = found["cell"] if verb == "compare" else found
    assert cell["updates"] == 6
    assert set(cell["memory"]) == {"weights", "gradients", "optimizer", "activations"}
    assert "6 updates of" in said
    assert f"{cell['parameters']:,} weights, on cpu" in said
    assert "memory: about" in said
    assert "Nothing was written" in said
    if verb == "compare":
        assert (found["cells"], found["there"]) == (3 * 2 + 2 * 2, 0)  # rates x tuning seeds, arms x seeds
        assert f"10 cells; what is to be run learns from {found['examples']:,} examples" in said
    assert sorted(path for path in world.iterdir() if path.name != "cache") == before


# ---- what is wrong, and what to type next


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train {0}/suite.yaml", "`prefinetune recipes` lists them"),
        ("train {0} -m x", "`prefinetune tasks infer {0}` proposes one"),
        ("finetune {0}/0.jsonl --from x", "`prefinetune tasks infer {0}` proposes one"),
        ("tasks show rte", "(did you mean 'glue/rte'?)"),
        ("compare {0}/2.yaml --from x", "`prefinetune runs` lists runs"),
        ("runs {0}/none", "`prefinetune train SUITE --model MODEL --out {0}/none/NAME` begins a run"),
        ("train {0}/suite.yaml -m {0}/begun", "`prefinetune runs {0}/begun` says how to go on with it"),
        ("study scale {0}/suite.yaml", "--targets is missing: the tasks to learn from few labels"),
    ],
)
def test_an_error_names_the_next_command(words, told, command, world):
    (world / "begun").mkdir()
    (world / "begun" / "run.json").write_text("{}")
    code, _, said = command(*words.format(world).split())
    assert code == 2
    assert told.format(world) in said


# ---- terminals, pipes, locales, shells

LIGHT = """import sys
from prefinetune.cli import main
sys.argv[0] = 'prefinetune'
try:
    main()
finally:
    assert 'torch' not in sys.modules
"""


def piped(*words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in processes.environment().items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-c", LIGHT, *words]
    return subprocess.run(command, env={**environment, **variables}, capture_output=True)


def on_terminal(*words: str, columns: int = 100, **variables: str) -> str:
    """What a verb shows on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in processes.environment().items() if name not in ("COLUMNS", "NO_COLOR")}
    command = [sys.executable, "-c", LIGHT, *words]
    process = subprocess.Popen(
        command, env={**environment, "TERM": "xterm-256color", **variables}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*\b(?:3[0-9]|9[0-7])(?:;[0-9;]*)?m")
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def test_runs_are_a_coloured_table_on_a_terminal_without_colour_where_none_is_wanted_and_fit_a_narrow_one(tmp_path):
    run = tmp_path / "runs" / "größe"
    (run / "model").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"kind": "train", "model": "roberta-base", "settings": "", "data": ""}))
    shown = on_terminal("runs", str(tmp_path / "runs"))
    assert COLOUR.search(shown)
    assert "größe" in shown
    assert "state" in shown
    plain = on_terminal("runs", str(tmp_path / "runs"), NO_COLOR="1")
    assert not COLOUR.search(plain)
    assert SEQUENCE.sub("", shown) == SEQUENCE.sub("", plain)
    for words in (("tasks", "list", "nli"), ("settings",), ("--help",)):
        lines = SEQUENCE.sub("", on_terminal(*words, columns=40)).splitlines()
        assert max(map(len, lines)) <= 40


def test_a_pipe_gets_a_line_per_row_whatever_its_width(tmp_path):
    done = piped("tasks", "list", "nli")
    lines = done.stdout.decode().splitlines()
    assert lines[0].split() == ["task", "family", "tags", "licence"]
    assert f"{len(lines) - 1} tasks" in done.stderr.decode()


def test_a_reader_that_leaves_early_is_no_fault():
    command = f'{sys.executable} -c "{LIGHT}" schema | head -n 1'
    done = subprocess.run(["bash", "-c", command], env=processes.environment(), capture_output=True, text=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_an_encoding_that_lacks_letters_gets_escapes(tmp_path):
    (tmp_path / "suite.yaml").write_text("tasks: [größe]", encoding="utf-8")
    for variables in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = piped("tasks", "preview", str(tmp_path / "suite.yaml"), "--json", **variables)
        assert done.returncode == 2
        assert "'größe'" in json.loads(done.stdout.decode("ascii"))["error"]
        assert r"'gr\xf6\xdfe'" in done.stderr.decode("ascii")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("prefinetune tr", {"train"}),
        ("prefinetune train glue/r", {"glue/rte"}),
        ("prefinetune train nli,-gener", {"nli,-generation"}),
        ("prefinetune train nli objective.r3", {"objective.r3f=", "objective.r3f_share="}),
        ("prefinetune train nli --recipe muppet-bart-b", {"muppet-bart-base"}),
    ],
)
def test_shells_complete_verbs_tasks_settings_and_recipes_without_loading_torch(typed, completed):
    variables = {"_PREFINETUNE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = piped(**variables)
    assert set(done.stdout.decode().split()) == completed
    assert b"Traceback" not in done.stderr


def test_completion_can_be_had_and_help_has_room_for_the_verbs():
    shown = piped("--help").stdout.decode()
    assert "--show-completion" not in shown
    assert "prefinetune --install-completion" in " ".join(shown.split())
    command = f'{sys.executable} -c "{LIGHT}" --show-completion; true'  # which shell it is, is seen from who calls
    done = subprocess.run(["bash", "-c", command], env=processes.environment(), capture_output=True, text=True)
    assert "_PREFINETUNE_COMPLETE=complete_bash" in done.stdout
