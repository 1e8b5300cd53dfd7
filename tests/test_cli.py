"""The command line: what each verb prints and leaves, what settings mean, and that looking around needs neither torch nor net."""

import json
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from prefinetune.cli import app, find_suite
from prefinetune.config import Config, make_config, setting_names
from prefinetune.errors import InputError
from prefinetune.results import RunFolder


@pytest.fixture
def suite(tmp_path) -> Path:
    """A CSV of 40 labelled texts and a suite file around it."""
    lines = [f'"the duni kuno {"gilas" if row % 2 else "bano"} {row}",{"yes" if row % 2 else "no"}' for row in range(40)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    entry = {"name": "mine", "source": "a.csv", "classification": {"text": "text", "label": "label"}, "license": "cc0"}
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "ours", "tasks": [entry], "mixture": {"sub_batches": 2, "cap": 30}}))
    return path


def test_the_catalogue_is_listed_as_a_table_and_as_json(command):
    code, table, _ = command("tasks", "list", "nli")
    assert code == 0
    assert "snli" in table
    assert "glue/cola" not in table
    code, out, _ = command("tasks", "list", "--json")
    records = json.loads(out)
    assert code == 0
    assert {record["name"] for record in records} > {"snli", "glue/cola"}
    assert all({"name", "source", "slug", "splits", "tags", "license"} <= record.keys() for record in records)
    assert command("tasks", "list", "nlii")[0] == 2


def test_names_and_tags_may_be_followed_by_what_is_left_out_again():
    chosen = {task.name for task in find_suite("commonsense,snli,-generation,-e_care")}
    assert {"snli", "piqa/resplit"} <= chosen
    assert not chosen & {"e_care", "e_care/explanation", "common_gen"}
    with pytest.raises(InputError, match="no task, family or tag 'generations'"):
        find_suite("commonsense,-generations")


def test_one_record_is_shown_as_yaml_and_as_json(command):
    _, text, _ = command("tasks", "show", "glue/cola")
    code, out, _ = command("tasks", "show", "glue/cola", "--json")
    assert code == 0
    assert yaml.safe_load(text) == json.loads(out)
    assert json.loads(out)["slug"] == "glue-cola"


def test_a_preview_shows_rows_examples_tokens_and_targets(command, suite, tiny_model):
    code, out, _ = command("tasks", "preview", suite, "--rows", "3", "--model", tiny_model, "--json")
    assert code == 0
    [task] = json.loads(out)
    assert task["rows"] == {"train": 38, "validation": 2}
    assert len(task["examples"]) == 3
    for example in task["examples"]:
        assert example["target"] == ("yes" if example["row"] % 2 else "no")
        assert example["texts"][0][0].endswith(f" {example['row']}")
        assert example["tokens"][0].startswith("<s>")
    _, text, _ = command("tasks", "preview", suite)
    assert "mine: classification, 38 training, 2 validation rows" in text


def test_settings_are_listed_with_their_defaults(command):
    _, table, _ = command("settings")
    code, out, _ = command("settings", "--json")
    listed = json.loads(out)
    assert code == 0
    assert set(listed) == set(setting_names())
    assert listed["mixture.cap"]["default"] is None
    assert all(name in table for name in listed)


VERBS = {
    "train": ["--model", "--out", "--against", "--data-root", "--skip-missing", "--cache", "--seed", "--resume", "--json"],
    "finetune": ["--from", "--out", "--labels", "--new-head", "--data-root", "--cache", "--seed", "--resume", "--json"],
    "settings": ["--json"],
    "recipes": ["--json"],
    "tasks list": ["--json"],
    "tasks show": ["--json"],
    "tasks infer": ["--out", "--overwrite", "--json"],
    "tasks check": ["--model", "--data-root", "--json"],
    "tasks preview": ["--rows", "--model", "--data-root", "--json"],
    "tasks mirror": ["--data-root", "--json"],
    "tasks leaks": ["--against", "--out", "--ngram", "--share", "--data-root", "--skip-missing", "--json"],
    "schema": [],
    "card": ["--out", "--evidence", "--json"],
    "cache": ["--cache", "--remove-unused", "--json"],
    "env": ["--json"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_screens_mention_their_options(verb, command):
    code, out, _ = command(*verb.split(), "--help")
    assert code == 0
    for option in VERBS[verb]:
        assert option in out


def test_the_first_help_screen_names_every_verb(command):
    _, out, _ = command("--help")
    for verb in [*(one.name or one.callback.__name__ for one in app.registered_commands), "tasks"]:
        assert verb in out


def test_a_run_and_a_fine_tuning_on_a_table_leave_what_they_should(command, suite, tmp_path, tiny_model):
    out = tmp_path / "run"
    code, printed, said = command(
        "train", suite, "mixture.cap=20", "train.updates=6", "train.log_every=2", "train.checkpoint_every=3",
        "--model", tiny_model, "--out", out, "--seed", "5", "--json",
    )  # fmt: skip
    assert code == 0, said
    result = json.loads(printed)
    assert result.keys() == {"out", "model", "updates", "examples", "seconds", "scores"}
    assert (result["updates"], result["examples"]) == (6, 48)
    assert set(result["scores"]["mine"]) >= {"accuracy", "macro_f1"}

    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "suite.yaml", "environment.json", "run.json", "metrics.jsonl", "results.jsonl", "checkpoints", "model",
        "heads", "predictions", "leaks.json", ".lock",
    }  # fmt: skip
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["mixture"]["sub_batches"] == 2  # of the suite
    assert config["mixture"]["cap"] == 20  # of the command line, over the suite's
    assert (config["seed"], config["mixture"]["order"]) == (5, "heterogeneous")
    assert Config.model_validate(config).to_yaml() == (out / "config.yaml").read_text()
    resolved = yaml.safe_load((out / "suite.yaml").read_text())
    [task] = resolved["tasks"]
    assert resolved["name"] == "ours"
    assert task["classification"]["labels"] == ["no", "yes"]
    assert task["license"] == "cc0"
    assert task["splits"]["validation"] == "held out of train"
    assert (task["store"]["examples"], task["store"]["bad_rows"]) == (38, 0)
    environment = json.loads((out / "environment.json").read_text())
    assert environment.keys() == {"python", "platform", "cores", "devices", "packages", "started", "command"}
    assert environment["command"].startswith("prefinetune train ")
    assert environment["packages"]["torch"]
    assert json.loads((out / "run.json").read_text()).keys() == {"kind", "model", "settings", "data"}
    lines = RunFolder(out).metrics()
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert line.keys() == {
            "step", "epoch", "loss", "loss_by_task", "examples_by_task", "tokens_by_task", "lr", "grad_norm", "examples",
            "tokens", "padding", "examples_per_second", "tokens_per_second", "skipped",
        }  # fmt: skip
    [record] = RunFolder(out).results()
    assert record.keys() >= {
        "task", "family", "arm", "base", "labels", "seed", "metric", "score", "examples", "updates", "seconds", "digest", "when",
    }  # fmt: skip

    tuned = tmp_path / "tuned"
    code, printed, said = command(
        "finetune", suite, "train.updates=4", "--from", out, "--labels", "16", "--out", tuned, "--json"
    )  # fmt: skip
    assert code == 0, said
    record = json.loads(printed)
    assert (record["labels"], record["head"], record["updates"]) == (16, "kept", 4)
    assert json.loads((tuned / "run.json").read_text())["kind"] == "finetune"
    from transformers import pipeline

    answer = pipeline("text-classification", model=str(tuned / "model"))("the duni kuno gilas")
    assert answer[0]["label"] in ("no", "yes")
    assert command("finetune", suite, "--from", out, "--labels", "many")[0] == 2
    assert command("finetune", suite, "--from", out, "--labels", "1000", "--out", tmp_path / "none")[0] == 2

    code, listed, said = command("runs", tmp_path)
    assert code == 0, said
    assert f"{out}  train, finished: 1 tasks, 6 updates" in listed
    assert f"    next: prefinetune compare TASK --from {out}" in listed
    code, printed, said = command("report", tmp_path, "-o", tmp_path / "page.html", "--json")
    assert code == 0, said
    assert json.loads(printed) == {"out": str(tmp_path / "page.html")}
    assert "mine" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_without_json_the_result_of_a_run_is_on_standard_error(command, suite, tmp_path, tiny_model):
    code, printed, said = command("train", suite, "train.updates=2", "-m", tiny_model, "-o", tmp_path / "run")
    assert (code, printed) == (0, "")
    assert "2 updates, 14 examples" in said  # the last sub-batch of 30 holds 2
    assert "update 2/2" in said


def test_an_interrupt_exits_with_130(command, monkeypatch, suite, tiny_model):
    def interrupted(*_: object, **__: object) -> typing.NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("prefinetune.train"), "train", interrupted)
    code, _, said = command("train", suite, "-m", tiny_model)
    assert code == 130
    assert "--resume" in said


# ---- settings


def test_later_settings_win():
    config = make_config(
        {"mixture": {"cap": 5, "order": "batch-homogeneous"}}, {"mixture": {"cap": 6}}, overrides=["mixture.cap=7"]
    )
    assert config.mixture.cap == 7
    assert config.mixture.order == "batch-homogeneous"
    assert config.mixture.sub_batches == Config().mixture.sub_batches
    assert make_config(overrides=["mixture.cap=null"]).mixture.cap is None
    assert make_config(overrides=["optimizer.learning_rate=1e-4"]).optimizer.learning_rate == 1e-4
    assert make_config(overrides=["seed=3"]).seed == 3


def test_the_digest_of_settings_tells_them_apart():
    digests = {make_config(overrides=[text]).digest() for text in ("seed=0", "seed=1", "mixture.cap=1", "train.epochs=2")}
    assert len(digests) == 4
    assert Config().digest() == make_config(overrides=["seed=0"]).digest()


def test_settings_that_came_later_leave_the_digest_of_older_runs_as_it_was():
    older = "0d1e442ee973ade4a8f2e2cd31d0b4b0"  # as runs have it in run.json that were made when there were none of these
    assert Config().digest() == older
    assert make_config({"objective": {"scaling": "log", "heads": "shared", "balancing": "static"}}).digest() == older
    switches = ("objective.scaling=none", "objective.heads=separate", "objective.balancing=uncertainty")
    others = {make_config(overrides=[text]).digest() for text in (*switches, "optimizer.uncertainty_learning_rate=1")}
    assert len(others | {older}) == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=1", r"unknown setting 'learning_rate' \(did you mean 'optimizer.learning_rate'\?\)"),
        ("seed=-1", "setting 'seed': -1 is not accepted; must be greater than or equal to 0"),
        ("seed.x=1", "'seed' is no section"),
        ("train.updates=many", "setting 'train.updates': 'many' is not accepted"),
        ("optimizer.clip=.nan", "setting 'optimizer.clip': nan is not accepted"),
        ("mixture=natural", "setting 'mixture': 'natural' is not accepted"),
    ],
)
def test_a_setting_that_cannot_be_used_is_explained(override, message):
    with pytest.raises(InputError, match=message):
        make_config({"seed": 0}, overrides=[override])


# ---- lightness

LIGHT = """
import socket, sys, time
def refuse(*_, **__):
    raise AssertionError("a network was asked for")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
started = time.perf_counter()
import prefinetune
seconds = time.perf_counter() - started
sys.argv = ["prefinetune", "tasks", "list", "--json"]
from prefinetune.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
heavy = [name for name in ("torch", "transformers", "datasets", "pandas") if name in sys.modules]
print(seconds, heavy, file=sys.stderr)
"""


def test_importing_and_listing_are_quick_and_load_neither_torch_nor_network():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, heavy = done.stderr.strip().split(" ", 1)
    assert float(seconds) < 0.3
    assert heavy == "[]"
    assert len(json.loads(done.stdout)) > 50


def test_public_functions_stay_functions_when_the_files_of_their_names_are_imported():
    code = (
        "import prefinetune.finetune, prefinetune.compare, prefinetune.train, prefinetune.catalog\n"
        "from prefinetune import train, finetune, compare, catalog\n"
        "assert all(callable(f) for f in (train, finetune, compare, catalog)), (train, finetune, compare, catalog)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
