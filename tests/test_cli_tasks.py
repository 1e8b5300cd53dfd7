"""The verbs about a user's own data, as a user types them: infer, check, preview, leaks, mirror, schema."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folders of examples/, as a user's own."""
    shutil.copytree(ROOT / "examples", tmp_path / "mine")
    return tmp_path / "mine"


def test_a_folder_of_files_trains_after_three_commands(command, folder, tiny_model, tmp_path):
    code, table, said = command("tasks", "infer", folder)
    assert code == 0, said
    assert "support-tickets" in table
    assert "suite.yaml" in said
    suite = folder / "suite.yaml"
    code, table, said = command("tasks", "check", suite)
    assert code == 0, said
    assert "7 tasks checked, all can be used" in table
    entries = yaml.safe_load(suite.read_text())["tasks"]
    kept = [entry for entry in entries if "generation" not in entry]  # this model is an encoder
    suite.write_text(yaml.safe_dump({"name": "mine", "tasks": kept}))
    out = tmp_path / "run"
    code, _, said = command("train", suite, "--model", tiny_model, "--out", out, "train.updates=2", "mixture.sub_batches=6")
    assert code == 0, said
    assert (out / "model" / "model.safetensors").exists()
    assert {entry["name"] for entry in yaml.safe_load((out / "suite.yaml").read_text())["tasks"]} == {one["name"] for one in kept}


def test_a_suite_file_that_is_there_is_not_overwritten_unless_told(command, folder):
    (folder / "suite.yaml").write_text("mine")
    code, _, said = command("tasks", "infer", folder)
    assert code == 2
    assert "is there already" in said
    assert (folder / "suite.yaml").read_text() == "mine"
    code, out, _ = command("tasks", "infer", folder, "--overwrite", "--json")
    assert code == 0
    assert {task["name"] for task in json.loads(out)["tasks"]} >= {"faq", "quiz"}


def test_check_ends_with_code_2_where_a_task_cannot_be_used(command, tmp_path):
    (tmp_path / "good.csv").write_text("text,label\n" + "".join(f"text number {at},{at % 2}\n" for at in range(40)))
    (tmp_path / "bad.csv").write_text("text,label\n" + "".join(f",{at % 2}\n" for at in range(40)))
    entries = [{"name": name, "source": f"{name}.csv", "classification": {"text": "text"}} for name in ("good", "bad")]
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"tasks": entries}))
    code, table, _ = command("tasks", "check", tmp_path / "suite.yaml")
    assert code == 2
    assert "1 cannot be used: bad" in table
    code, out, _ = command("tasks", "check", tmp_path / "suite.yaml", "--json")
    assert code == 2
    assert [one["ok"] for one in json.loads(out)] == [True, False]


@pytest.fixture
def leaky(tmp_path) -> Path:
    """A suite whose first training row stands in its test split, and whose second in another task's."""
    texts = [f"the delivery number {at} arrived late and the box was open" for at in range(40)]
    table = lambda rows: "text,label\n" + "".join(f"{text},{at % 2}\n" for at, text in enumerate(rows))  # noqa: E731
    for name, splits in {"a": {"train": texts[:20], "test": [texts[0].upper(), *texts[30:34]], "validation": texts[34:36]},
                         "b": {"train": texts[20:30], "validation": [texts[1], texts[36]]}}.items():  # fmt: skip
        (tmp_path / name).mkdir()
        for split, rows in splits.items():
            (tmp_path / name / f"{split}.csv").write_text(table(rows))
    for suite in (("a",), ("b",), ("a", "b")):
        entries = [{"name": name, "source": name, "classification": {"text": "text"}} for name in suite]
        (tmp_path / f"{''.join(suite)}.yaml").write_text(yaml.safe_dump({"tasks": entries}))
    return tmp_path


def test_leaks_are_a_table_a_page_and_a_drop_list(command, leaky):
    code, table, said = command("tasks", "leaks", leaky / "ab.yaml", "--out", leaky / "found")
    assert code == 0, said
    lines = [line.split() for line in table.splitlines()]
    assert ["a", "a/test", "0", "1", "0", "1", "of", "5"] in lines
    assert ["a", "b/validation", "1", "0", "0", "1", "of", "2"] in lines
    assert "2 of 30 training rows show evaluation rows" in said
    assert json.loads((leaky / "found" / "leaks.json").read_text())["train_rows"] == {"a": {"a/test": [0], "b/validation": [1]}}
    page = (leaky / "found" / "leaks.html").read_text()
    assert "the delivery number 1 arrived late" in page
    assert "http" not in page.replace("http-equiv", "")


def test_leaks_against_further_tasks_are_found_too(command, leaky):
    _, out, _ = command("tasks", "leaks", leaky / "a.yaml", "--json")
    assert json.loads(out)["train_rows"] == {"a": {"a/test": [0]}}
    _, out, _ = command("tasks", "leaks", leaky / "a.yaml", "--against", leaky / "b.yaml", "--json")
    assert json.loads(out)["train_rows"] == {"a": {"a/test": [0], "b/validation": [1]}}


def test_a_mirror_of_named_sets_is_written_and_what_cannot_be_had_is_said(command, tmp_path):
    code, out, said = command(
        "tasks", "mirror", "sick,glue/rte", tmp_path / "mirror", "--data-root", ROOT / "tests" / "hub", "--json"
    )
    assert code == 0, said
    assert {one["task"]: one["status"] for one in json.loads(out)} == {"sick": "done", "glue/rte": "done"}
    assert (tmp_path / "mirror" / "glue-rte" / "train.parquet").exists()
    code, _, said = command("tasks", "mirror", "snli,glue/rte", tmp_path / "mirror")  # offline, and without the other mirror
    assert code == 2
    assert "1 failed" in said
    assert "1 skipped" in said


def test_the_schema_is_json_schema(command):
    import jsonschema

    code, out, _ = command("schema")
    assert code == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(out))
    jsonschema.validate(yaml.safe_load("tasks: [{name: a, source: a.csv, classification: {text: t}}]"), json.loads(out))


def test_sets_that_cannot_be_found_are_named_with_the_way_out(command, tmp_path, tiny_model):
    code, _, said = command("train", "glue/rte,glue/cola,taxinli", "--model", tiny_model, "--out", tmp_path / "run")
    assert code == 2
    assert "2 datasets cannot be found: glue/rte, glue/cola" in said
    assert "prefinetune tasks mirror SUITE DIR" in said
    assert "left out, as no copy on the hub is known and the mirror has none: taxinli" in said
