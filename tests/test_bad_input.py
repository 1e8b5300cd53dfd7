"""What a user can get wrong, each through the real command line.

Exit code 2, no traceback, and a message that names the file, the row or field, the value and what is accepted.
"""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from prefinetune.cli import main
from prefinetune.errors import InputError
from prefinetune.families import Classification, Span
from prefinetune.sources import Rows
from prefinetune.splits import open_task
from prefinetune.store import build_store
from prefinetune.task import Suite, Task
from prefinetune.tokenizer import load_tokenizer

CLASSIFICATION = {"text": "text", "label": "label"}
SPAN = {"question": "q", "context": "c", "answers": "answers"}
CHOICE = {"text": "text", "options": "options", "label": "label"}
GOOD = [{"text": f"the duni kuno {word}", "label": label} for word in ("gilas", "bili", "bano") for label in ("yes", "no")] * 4


@pytest.fixture
def command(monkeypatch, capsys, cache):
    """Runs the command line in this process; gives (exit code, standard error)."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["prefinetune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), " ".join(capsys.readouterr().err.split())

    return run


def table(rows: list[dict]) -> str:
    return pd.DataFrame(rows).to_csv(index=False)


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def suite_file(folder: Path, *entries: object, **rest: object) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"tasks": list(entries), **rest}))
    return path


def refused(outcome: tuple[int, str], *fragments: object) -> None:
    code, message = outcome
    assert code == 2, message
    assert "Traceback" not in message
    for fragment in fragments:
        assert str(fragment) in message, message


def span_row(**other: object) -> dict:
    return {"q": "which ?", "c": "the duni kuno", "answers": {"text": ["kuno"], "answer_start": [9]}, **other}


def with_row(at: int, **other: object) -> list[dict]:
    rows = [dict(row) for row in GOOD]
    rows[at].update(other)
    return rows


# sentence -> (file name, content, family, its fields, what the message must hold beside the file's name)
ONE_FILE = {
    "an unknown column is named with the nearest one": (
        "a.csv", table(GOOD), "classification", {"text": "txt", "label": "label"}, ["'txt'", "did you mean 'text'", "label"]),
    "an empty file": ("a.csv", "", "classification", CLASSIFICATION, ["empty"]),
    "a file with a header only": ("a.csv", "text,label\n", "classification", CLASSIFICATION, ["no rows"]),
    "a label outside the declared ones": (
        "a.csv", table(with_row(7, label="maybe")), "classification", {**CLASSIFICATION, "labels": ["yes", "no"]},
        ["row 7", "'label'", "'maybe'", "yes, no"]),
    "labels that are all the same": (
        "a.csv", table([{**row, "label": "yes"} for row in GOOD]), "classification", CLASSIFICATION,
        ["only the label 'yes'", "at least two"]),
    "an empty text in a table": (
        "a.csv", table(with_row(5, text="")), "classification", CLASSIFICATION,
        ["row 5", "'text'", "''", "not empty", "data.bad_rows=0.1"]),
    "a text of white space only": (
        "a.jsonl", lines(with_row(5, text=" \t")), "classification", CLASSIFICATION, ["row 5", "'text'", "not empty"]),
    "a text that is missing": (
        "a.jsonl", lines(with_row(5, text=None)), "classification", CLASSIFICATION, ["row 5", "'text'", "None", "missing"]),
    "a label that is missing": (
        "a.jsonl", lines(with_row(5, label=None)), "classification", CLASSIFICATION, ["row 5", "'label'", "None", "no, yes"]),
    "a row with a cell too few": (
        "a.csv", "text,label\nthe kuno,yes\nthe bano\n", "classification", CLASSIFICATION, ["line 3", "1 cells", "has 2"]),
    "a row with a cell too many": (
        "a.csv", "text,label\nthe kuno, the bano,yes\nthe bano,no\n", "classification", CLASSIFICATION,
        ["line 2", "3 cells", "has 2", "quotes"]),
    "a ragged row after a text of several lines": (
        "a.csv", 'text,label\n"the\nkuno",yes\nthe bano\n', "classification", CLASSIFICATION, ["line 4", "1 cells"]),
    "bytes that are not UTF-8 in a table": (
        "a.csv", "text,label\nthe kuno,yes\nthe café,no\n".encode("latin-1"), "classification", CLASSIFICATION,
        ["row 1 (line 3)", "byte 0xe9", "not valid UTF-8", "data.bad_rows=1"]),
    "bytes that are not UTF-8 in JSON lines": (
        "a.jsonl", '{"text": "a", "label": "x"}\n{"text": "é", "label": "y"}\n'.encode("latin-1"), "classification",
        CLASSIFICATION, ["row 1 (line 2)", "byte 0xe9", "not valid UTF-8"]),
    "a line that is not JSON": (
        "a.jsonl", lines(GOOD) + '{"text": "the\n', "classification", CLASSIFICATION,
        ["row 24 (line 25)", "not valid JSON", "1 row of 25"]),
    "a file that is not Parquet": ("a.parquet", "no parquet", "classification", CLASSIFICATION, ["parquet"]),
    "a kind of file that nobody reads": ("a.docx", "words", "classification", CLASSIFICATION, ["unknown kind", ".csv"]),
    "an answer that is not where it is said to be": (
        "a.jsonl", lines([span_row(), span_row(answers={"text": ["kuno"], "answer_start": [4]})] * 12), "span", SPAN,
        ["row 1", "answers.answer_start", "4", "'kuno'", "'duni'"]),
    "an answer position before the text": (
        "a.jsonl", lines([span_row(), span_row(answers={"text": ["kuno"], "answer_start": [-4]})] * 12), "span", SPAN,
        ["row 1", "-4", "from 0"]),
    "a choice of an option that is not there": (
        "a.jsonl", lines([{"text": "the", "options": ["kuno", "bano"], "label": label} for label in (0, 1, 2) * 8]), "choice",
        CHOICE, ["row 2", "'label'", "2", "0 to 1"]),
    "a choice with one option": (
        "a.jsonl", lines([{"text": "the", "options": ["kuno"], "label": 0}] * 24), "choice", CHOICE,
        ["row", "'options'", "['kuno']", "at least two"]),
    "a number that is none": (
        "a.csv", table([{"text": "the kuno", "label": value} for value in ("1", "2", "high") * 8]), "regression", CLASSIFICATION,
        ["row 2", "'label'", "'high'", "a number"]),
    "a number outside its range": (
        "a.csv", table([{"text": "the kuno", "label": value} for value in ("1", "2", "7") * 8]), "regression",
        {**CLASSIFICATION, "low": 0, "high": 5}, ["row 2", "'label'", "7", "between 0 and 5"]),
    "numbers that are all the same": (
        "a.csv", table([{"text": "the kuno", "label": 1}] * 24), "regression", CLASSIFICATION, ["'label'", "1", "different"]),
}  # fmt: skip


@pytest.mark.parametrize("sentence", ONE_FILE)
def test_a_file_that_cannot_be_used_is_refused(sentence, tmp_path, tiny_model, command):
    name, content, family, fields, fragments = ONE_FILE[sentence]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "v.jsonl").write_text(lines(GOOD))
    # With a validation split of its own, no row of the file is held out, whatever the order of holding out; it has the same rows.
    entry = {"name": "mine", "source": {"train": name, "validation": "v/v.jsonl"}, family: fields}
    outcome = command("train", suite_file(tmp_path, entry), "--model", tiny_model, "--out", tmp_path / "run", "data.leaks=off")
    refused(outcome, name, *fragments)
    assert not (tmp_path / "run").exists()


def test_a_ragged_row_in_a_compressed_table_is_named(tmp_path, tiny_model, command):
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("text,label\nthe kuno,yes\nthe bano\n")
    entry = {"name": "mine", "source": "a.csv.gz", "classification": CLASSIFICATION}
    outcome = command("train", suite_file(tmp_path, entry), "-m", tiny_model, "-o", tmp_path / "run")
    refused(outcome, "a.csv.gz, row 1 (line 3)", "1 cells")


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_text_in_parquet_or_a_frame_is_refused(missing, tmp_path, tiny_model, command, cache):
    frame = pd.DataFrame(with_row(6, text=missing))
    frame.to_parquet(tmp_path / "a.parquet")
    entry = {"name": "mine", "source": {"train": "a.parquet", "validation": "a.parquet"}, "classification": CLASSIFICATION}
    outcome = command("train", suite_file(tmp_path, entry), "-m", tiny_model, "-o", tmp_path / "run", "data.leaks=off")
    refused(outcome, "a.parquet, row 6", "'text'", "missing")
    task = Task("mine", Rows({"train": frame, "validation": frame}), Classification("text"))
    with pytest.raises(InputError, match=r"rows in memory \[train\], row 6: field 'text'.*missing"):
        build_store(open_task(task), "train", load_tokenizer(str(tiny_model), 64), cache)


def test_rows_of_mixed_types_are_refused():
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": 1}]
    task = Task("mine", Rows({"train": rows, "validation": rows}), Classification("text"))
    with pytest.raises(
        InputError, match=r"rows in memory \[train\], row 1: field 'label': 1 is not accepted; expected string, as"
    ):
        open_task(task).split("train")


# sentence -> (entry or entries of the suite, rest of the suite, more arguments, what the message must hold)
MINE = {"name": "mine", "source": "a.csv", "classification": CLASSIFICATION}
SUITES = {
    "a split that is not there": ({**MINE, "splits": {"validation": "dev"}}, {}, [], ["'mine'", "no split 'dev'", "train"]),
    "a role that does not exist": ({**MINE, "splits": {"dev": "train"}}, {}, [], ["mine", "splits", "dev", "validation"]),
    "a file that is not there": ({**MINE, "source": "b.csv"}, {}, [], ["b.csv", "did you mean 'a.csv'"]),
    "two tasks of one name": ([MINE, MINE], {}, [], ["suite.yaml", "used twice", "mine"]),
    "an unknown setting": (MINE, {}, ["mixture.capp=3"], ["'mixture.capp'", "did you mean 'mixture.cap'"]),
    "an unknown setting in the suite": (
        MINE, {"mixture": {"samplin": "natural"}}, [], ["suite.yaml", "'mixture.samplin'", "did you mean 'mixture.sampling'"]),
    "bad rows in words of old": (
        MINE, {}, ["data.bad_rows=skip"], ["'data.bad_rows'", "'skip'", "the share of rows", "0.01", "or 1"]),
    "more bad rows than there are": (MINE, {}, ["data.bad_rows=2"], ["'data.bad_rows'", "2", "less than or equal to 1"]),
    "a value outside its range": (MINE, {}, ["train.epochs=0"], ["'train.epochs'", "0", "greater than 0"]),
    "a value that is none of those accepted": (
        MINE, {}, ["mixture.order=random"], ["'mixture.order'", "'random'", "'heterogeneous'"]),
    "a value out of range in the suite": (MINE, {"mixture": {"cap": -1}}, [], ["suite.yaml", "'mixture.cap'", "-1"]),
    "a setting without a value": (MINE, {}, ["mixture.cap"], ["'mixture.cap'", "section.field=value"]),
    "a setting that is not YAML": (MINE, {}, ["mixture.cap=[1"], ["'mixture.cap'", "'[1'"]),
    "an unknown key of a task": (
        {**MINE, "sources": "a.csv"}, {}, [], ["suite.yaml", "task 1 (mine)", "'sources'", "did you mean 'source'"]),
    "an unknown key of a suite": (MINE, {"mixtures": {}}, [], ["suite.yaml", "'mixtures'", "did you mean 'mixture'"]),
    "an unknown field of a family": (
        {**MINE, "classification": {"text": "text", "lable": "label"}}, {}, [],
        ["task 1 (mine), classification", "'lable'", "did you mean 'label'"]),
    "a task of two families": (
        {**MINE, "choice": CHOICE}, {}, [], ["task 1 (mine)", "exactly one family", "classification, choice"]),
    "a task of no family": ({"name": "mine", "source": "a.csv"}, {}, [], ["task 1 (mine)", "exactly one family", "none"]),
    "a name with a space": ({**MINE, "name": "my task"}, {}, [], ["'my task'", "letters"]),
    "a name that the catalogue does not know": ("glue/rtee", {}, [], ["'glue/rtee'", "did you mean"]),
    "a task for a decoder": (
        {"name": "mine", "source": "a.csv", "generation": {"text": "text", "target": "label"}}, {}, [],
        ["task 'mine'", "roberta", "generation needs a decoder", "a model such as BART or T5"]),
    "a family that does not exist": (
        {"name": "mine", "source": "a.csv", "summarization": {"text": "text", "target": "label"}}, {}, [],
        ["task 1 (mine)", "unknown key 'summarization'", "accepted: ", "generation"]),
    "a negative weight of R3F": (MINE, {}, ["objective.r3f=-1"], ["'objective.r3f'", "-1", "greater than or equal to 0"]),
    "a share of no examples": (MINE, {}, ["objective.r3f_share=0"], ["'objective.r3f_share'", "0", "greater than 0"]),
    "a task that is for evaluation only": ({**MINE, "evaluation_only": True}, {}, [], ["'mine'", "evaluation only"]),
    "a maximum length beyond the model's": (MINE, {}, ["data.max_length=4096"], ["data.max_length", "4096", "at most"]),
    "a maximum length that holds nothing": (MINE, {}, ["data.max_length=8"], ["data.max_length", "8", "at least 16"]),
    "a data root that is no folder": (MINE, {}, ["--data-root", "nowhere"], ["data root", "nowhere", "not a folder"]),
    "a set on the hub without a network": (
        {**MINE, "source": "hub:nobody/nothing"}, {}, [], ["hub:nobody/nothing", "--data-root"]),
}  # fmt: skip


@pytest.mark.parametrize("sentence", SUITES)
def test_a_suite_or_setting_that_cannot_be_used_is_refused(sentence, tmp_path, tiny_model, command):
    entries, rest, arguments, fragments = SUITES[sentence]
    (tmp_path / "a.csv").write_text(table(GOOD))
    suite = suite_file(tmp_path, *(entries if isinstance(entries, list) else [entries]), **rest)
    refused(command("train", suite, "--model", tiny_model, "--out", tmp_path / "run", *arguments), *fragments)
    assert not (tmp_path / "run").exists()


# sentence -> (rows, fields of the family beside text and target, more arguments, what the message must hold)
SUMMARIES = [{"text": f"the duni kuno {word}", "target": f"the {word}"} for word in ("gilas", "bili", "bano") * 8]
GENERATIONS = {
    "a target that is empty": (
        [*SUMMARIES[:5], {"text": "the", "target": " "}, *SUMMARIES], {}, [], ["a.jsonl, row 5", "'target'", "' '", "not empty"]),
    "a target that is missing": (
        [*SUMMARIES[:5], {"text": "the", "target": None}, *SUMMARIES], {}, [], ["a.jsonl, row 5", "'target'", "missing"]),
    "a setting of decoding that does not exist": (
        SUMMARIES, {"decoding": {"num_beam": 4}}, [], ["task 'mine'", "(bart)", "'num_beam'", "did you mean 'num_beams'"]),
    "no beams": (SUMMARIES, {"decoding": {"num_beams": 0}}, [], ["task 'mine'", "num_beams 0", "a whole number from 1"]),
    "more tokens than the decoder takes": (
        SUMMARIES, {"decoding": {"max_new_tokens": 100}}, [], ["task 'mine'", "max_new_tokens 100", "at most 64"]),
    "targets longer than the decoder takes": (
        SUMMARIES, {}, ["data.max_target_length=65"], ["data.max_target_length", "65", "expected 4 to 64"]),
    "a share of smoothing that leaves nothing": (
        SUMMARIES, {"label_smoothing": 1}, [], ["task 1 (mine), generation", "label_smoothing", "1", "below 1"]),
}  # fmt: skip


@pytest.mark.parametrize("sentence", GENERATIONS)
def test_a_generation_task_that_cannot_be_used_is_refused(sentence, tmp_path, tiny_bart, command):
    rows, fields, arguments, fragments = GENERATIONS[sentence]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    family = {"text": "text", "target": "target", **fields}
    suite = suite_file(tmp_path, {"name": "mine", "source": {"train": "a.jsonl", "validation": "a.jsonl"}, "generation": family})
    refused(command("train", suite, "--model", tiny_bart, "--out", tmp_path / "run", *arguments), *fragments)
    assert not (tmp_path / "run").exists()


def test_generation_on_an_encoder_is_refused_before_any_data_is_read(tmp_path, tiny_model, command):
    entry = {"name": "mine", "source": "nowhere.csv", "generation": {"text": "text", "target": "target"}}
    outcome = command("train", suite_file(tmp_path, entry), "--model", tiny_model, "--out", tmp_path / "run")
    refused(outcome, "task 'mine' with model", tiny_model, "generation needs a decoder")
    assert "nowhere.csv" not in outcome[1]


@pytest.fixture
def good_suite(tmp_path) -> Path:
    (tmp_path / "a.csv").write_text(table(GOOD))
    return suite_file(tmp_path, MINE)


def test_a_model_must_be_named(good_suite, command):
    refused(command("train", good_suite), "--model is missing")
    refused(command("finetune", good_suite), "--from is missing")


def test_a_suite_file_that_is_not_there_is_named_with_the_nearest(good_suite, tiny_model, command):
    outcome = command("train", good_suite.with_name("suit.yaml"), "--model", tiny_model)
    refused(outcome, "suit.yaml", "did you mean 'suite.yaml'")


def test_a_suite_that_is_not_yaml_is_refused(good_suite, tiny_model, command):
    good_suite.write_text("tasks: [")
    refused(command("train", good_suite, "--model", tiny_model), "suite.yaml", "not valid YAML")


def test_models_that_cannot_be_used_are_refused(good_suite, tmp_path, tiny_model, command):
    from transformers import PegasusConfig

    without = {name: shutil.copytree(tiny_model, tmp_path / name) for name in ("tokenizer", "config", "weights")}
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (without["tokenizer"] / file).unlink(missing_ok=True)
    (without["config"] / "config.json").unlink()
    (without["weights"] / "model.safetensors").unlink()
    PegasusConfig(d_model=16).save_pretrained(tmp_path / "pegasus")
    refused(
        command("train", good_suite, "-m", without["tokenizer"], "-o", tmp_path / "r"), without["tokenizer"], "tokenizer.json"
    )
    refused(command("train", good_suite, "-m", without["config"], "-o", tmp_path / "r"), without["config"], "no config.json")
    refused(command("train", good_suite, "-m", "nobody/no-model", "-o", tmp_path / "r"), "nobody/no-model", "Offline?", "folder")
    refused(command("train", good_suite, "-m", tmp_path / "nowhere", "-o", tmp_path / "r"), "no model folder", "nowhere")
    refused(command("train", good_suite, "-m", tmp_path / "pegasus", "-o", tmp_path / "r"), "'pegasus'", "accepted: bart, mbart")
    assert not (tmp_path / "r").exists()
    refused(command("train", good_suite, "-m", without["weights"], "-o", tmp_path / "r"), "weights could not be loaded")


def test_a_folder_that_holds_something_is_not_written_into(good_suite, tmp_path, tiny_model, command):
    small = ["--model", tiny_model, "train.updates=2", "mixture.sub_batches=2", "--out", tmp_path / "run"]
    code, message = command("train", good_suite, *small)
    assert code == 0, message
    before = contents(tmp_path / "run")
    refused(command("train", good_suite, *small), "already holds this run", "--resume")
    refused(command("train", good_suite, *small, "train.epochs=2"), "already holds another run", "settings", "--out")
    refused(command("train", good_suite, *small, "train.epochs=2", "--resume"), "already holds another run", "settings")
    assert contents(tmp_path / "run") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    small[-1] = tmp_path / "other"
    refused(command("train", good_suite, *small), "other", "not a run")
    refused(command("train", good_suite, *small[:-1], tmp_path / "other" / "thesis.txt"), "thesis.txt", "not a run")
    assert contents(tmp_path / "other") == {"thesis.txt": b"years of work"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_was_prepared_before_a_bad_task_is_kept(good_suite, tmp_path, tiny_model, command, cache):
    (tmp_path / "b.csv").write_text(table(with_row(2, text="")))
    suite_file(tmp_path, MINE, {**MINE, "name": "bad", "source": {"train": "b.csv", "validation": "a.csv"}})
    off = "data.leaks=off"
    refused(command("train", good_suite, "-m", tiny_model, "-o", tmp_path / "run", off), "b.csv, row 2")
    kept = {path: path.stat().st_mtime_ns for path in (cache / "stores").glob("*/manifest.json")}
    assert [path.parent.name.startswith("mine-train-") for path in kept] == [True]
    (tmp_path / "b.csv").write_text(table(GOOD))
    arguments = ["train.updates=1", "mixture.sub_batches=2", off]
    assert command("train", good_suite, "-m", tiny_model, "-o", tmp_path / "run", *arguments)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_damaged_overlap_file_is_named(tmp_path, tiny_model, command):
    mirror = tmp_path / "mirror" / "glue-cola"
    mirror.mkdir(parents=True)
    pd.DataFrame([{"sentence": "the kuno", "label": i % 2} for i in range(30)]).to_parquet(mirror / "train.parquet")
    for damaged in ("{", '{"rows": {}}', '{"train_rows": {"glue-cola": [1, 2]}}'):
        (tmp_path / "mirror" / "overlap-all.json").write_text(damaged)
        entry = {"name": "glue/cola", "source": "hub:nyu-mll/glue:cola", "classification": {"text": "sentence", "label": "label"}}
        arguments = ["--data-root", tmp_path / "mirror", "-m", tiny_model, "-o", tmp_path / "run"]
        refused(command("train", suite_file(tmp_path, entry), *arguments), "overlap-all.json", "train_rows")


def test_a_mirror_without_the_set_and_a_set_without_a_hub_are_told_apart(tmp_path, tiny_model, command):
    (tmp_path / "mirror").mkdir()
    arguments = ["--data-root", tmp_path / "mirror", "-m", tiny_model, "-o", tmp_path / "run"]
    refused(command("train", "glue/cola", *arguments), "nyu-mll/glue", "Offline?", "--data-root")


def test_texts_too_long_for_the_model_are_cut_counted_and_reported(tmp_path, tiny_model, command):
    rows = [{"text": "the duni kuno " * (40 if i % 4 == 0 else 2), "label": i % 2} for i in range(40)]
    (tmp_path / "a.csv").write_text(table(rows))
    entry = {**MINE, "source": {"train": "a.csv", "validation": "a.csv"}}
    arguments = ["train.updates=1", "data.max_length=32", "data.leaks=off", "-m", tiny_model, "-o", tmp_path / "run"]
    code, message = command("train", suite_file(tmp_path, entry), *arguments)
    assert code == 0, message
    assert "texts longer than the model reads were cut in 1 tasks: mine 25%" in message
    store = yaml.safe_load((tmp_path / "run" / "suite.yaml").read_text())["tasks"][0]["store"]
    assert store["truncated"] == 10


def test_an_answer_is_never_cut_away(tiny_model, cache):
    tokenizer = load_tokenizer(str(tiny_model), 24)
    rows = []
    for words in range(0, 120, 7):
        context = " ".join(["the"] * words + ["kuno"] + ["bano"] * (119 - words))
        rows.append({"q": "which ?", "c": context, "answers": {"text": ["kuno"], "answer_start": [4 * words]}})
    opened = open_task(Task("mine", Rows({"train": rows, "validation": rows}), Span("q", "c")))
    store = build_store(opened, "train", tokenizer, cache)
    assert store.manifest["truncated"] == len(rows)
    kuno = tokenizer.tokenizer.convert_tokens_to_ids("kuno")
    for index in range(len(store)):
        ids, (start, end) = store[index].sequences[0], store[index].target
        assert len(ids) <= 24
        assert ids[start : end + 1].tolist() == [kuno]


def test_the_python_interface_raises_the_same_errors():
    task = Task("mine", Rows({"train": GOOD}), Classification("text"))
    with pytest.raises(InputError, match="used twice: mine"):
        Suite("both", (task, task))


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["train", "{suite}", "--model", "{model}", "mixture.capp=3"], ["unknown setting 'mixture.capp'", "'mixture.cap'"]),
        (["train", "{suite}", "--model", "{model}", "--out", "{bad}"], ["thesis.txt", "not a run"]),
        (["train", "no-such-task", "--model", "{model}"], ["'no-such-task'"]),
        (["train", "{suite}", "--modell", "{model}"], ["No such option", "--model"]),
    ],
)
def test_a_real_process_exits_with_2(arguments, fragments, good_suite, tmp_path, tiny_model):
    (tmp_path / "thesis.txt").write_text("years of work")
    places = {"suite": good_suite, "model": tiny_model, "bad": tmp_path / "thesis.txt"}
    command = [sys.executable, "-m", "prefinetune", *(argument.format(**places) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    refused((done.returncode, done.stderr), *fragments)
    assert done.stdout == ""
