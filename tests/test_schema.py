"""The JSON Schema of suite files says what the reader says, and comes from the same records."""

import dataclasses
import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prefinetune.catalog import catalog
from prefinetune.config import MixtureSettings
from prefinetune.errors import InputError
from prefinetune.families import FAMILIES
from prefinetune.schema import suite_schema
from prefinetune.task import Task, read_suite

HERE = Path(__file__).resolve().parents[1]
SUITE: dict[str, Any] = {
    "name": "support",
    "include": ["nli", "glue/*"],
    "exclude": "glue/wnli",
    "tasks": [
        {
            "name": "intent",
            "source": "a.csv",
            "classification": {"text": "t", "pair": None, "labels": ["a", 1, 2.5], "skip": [-1]},
        },
        {"name": "topics", "source": "a.csv", "multi-label": {"text": ["a", "b"], "label": "l", "separator": ";"}},
        {"name": "hours", "source": "hub:a/b", "regression": {"text": "t", "low": 0, "high": 2.5}, "tags": ["x"], "note": "n"},
        {"name": "route", "source": {"train": "a.csv"}, "choice": {"text": "t", "options": ["a", "b"], "keys": "k"}},
        {
            "name": "qa",
            "source": "a.csv",
            "span": {"question": "q", "context": "c"},
            "splits": {"test": None, "validation": "dev"},
        },
        {"name": "names", "source": "a.csv", "tagging": {"tokens": "t"}, "license": "MIT", "cite": "c", "evaluation_only": True},
        {"name": "mail", "source": "a.csv", "generation": {"text": "t", "target": "r", "decoding": {"num_beams": 2}}},
        {"name": "raw", "source": "a.csv", "denoising": {"text": "t", "rate": 0.2, "permute_sentences": True}},
        {"include": "sentiment", "exclude": ["imdb"]},
        "sick",
    ],
    "mixture": {"sampling": "uniform", "cap": None, "temperature": 2},
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return suite_schema()


@pytest.fixture(scope="module")
def fits(schema):
    validator = jsonschema.Draft202012Validator(schema)
    return lambda suite: not list(validator.iter_errors(suite))


def reads(folder: Path, suite: Any) -> bool:
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, allow_unicode=True))
    try:
        read_suite(folder / "suite.yaml")
    except InputError:
        return False
    return True


def test_the_schema_is_one_and_plain_json(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    for example in schema["examples"]:
        jsonschema.validate(example, schema)


def test_it_has_every_family_field_and_setting_and_no_other(schema):
    task = schema["$defs"]["task"]
    assert set(task["properties"]) == {field.name for field in dataclasses.fields(Task)} - {"family"} | set(FAMILIES)
    for kind, family in FAMILIES.items():
        found = task["properties"][kind]
        assert set(found["properties"]) == {field.name for field in dataclasses.fields(family)}
        assert set(found["required"]) == {
            field.name for field in dataclasses.fields(family) if field.default is dataclasses.MISSING
        }
        assert found["additionalProperties"] is False
        assert found["description"].split()[:3] == (family.__doc__ or "").split()[:3]
    mixture = schema["properties"]["mixture"]["anyOf"][0]["properties"]
    assert {name: found["description"] for name, found in mixture.items()} == {
        name: field.description for name, field in MixtureSettings.model_fields.items()
    }
    assert mixture["order"]["enum"] == ["heterogeneous", "batch-homogeneous", "dataset-homogeneous"]


def test_editors_are_told_what_each_key_of_a_task_is(schema):
    described = schema["$defs"]["task"]["properties"]
    assert all(found["description"] for found in described.values())
    assert described["evaluation_only"] == {
        "description": "keeps the task out of training mixtures.", "type": "boolean", "default": False}  # fmt: skip
    offered = schema["properties"]["include"]["anyOf"][0]["enum"]
    assert {"nli", "glue/rte", "regression", "all"} <= set(offered)
    assert set(schema["$defs"]["name"]["anyOf"][0]["enum"]) == {task.name for task in catalog()}


def test_suites_of_the_readme_and_the_documents_fit(fits):
    blocks = [
        block
        for path in (HERE / "README.md", *sorted((HERE / "docs").glob("*.md")))
        for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)
    ]
    suites = [suite for suite in map(yaml.safe_load, blocks) if isinstance(suite, dict) and "tasks" in suite]
    suites += [yaml.safe_load(path.read_text()) for path in (HERE / "examples").rglob("*.yaml")]
    assert suites
    assert all(map(fits, suites))


def test_suites_of_the_tests_fit(fits, tmp_path):
    from test_suite_files import SUPPORT

    assert fits(SUITE)
    assert reads(tmp_path, SUITE)
    assert fits(yaml.safe_load(SUPPORT))


def test_a_suite_that_one_wrote_oneself_is_complete_and_checked_beside_an_editor(fits, tmp_path):
    text = "# yaml-language-server: $schema=suite.schema.json\n" + yaml.safe_dump(SUITE)
    (tmp_path / "suite.yaml").write_text(text)
    assert len(read_suite(tmp_path / "suite.yaml")) > len(SUITE["tasks"])


FAULTS = {
    "an unknown key": lambda suite: suite.update(task=[]),
    "an unknown key of a task": lambda suite: suite["tasks"][0].update(sources="a.csv"),
    "an unknown field": lambda suite: suite["tasks"][0]["classification"].update(lable="l"),
    "a missing name": lambda suite: suite["tasks"][0].pop("name"),
    "a missing source": lambda suite: suite["tasks"][0].pop("source"),
    "a missing field": lambda suite: suite["tasks"][4]["span"].pop("context"),
    "no family": lambda suite: suite["tasks"][0].pop("classification"),
    "two families": lambda suite: suite["tasks"][0].update(denoising={"text": "t"}),
    "a family that is none": lambda suite: suite["tasks"][0].update(summary={"text": "t"}),
    "no tasks": lambda suite: (suite.pop("tasks"), suite.pop("include")),
    "an empty list of tasks": lambda suite: suite.update(tasks=[]),
    "an entry that is a number": lambda suite: suite["tasks"].append(3),
    "an entry that is nothing": lambda suite: suite["tasks"].append(None),
    "an empty include": lambda suite: suite.update(include=[]),
    "a name with a space": lambda suite: suite["tasks"][0].update(name="a b"),
    "a role that does not exist": lambda suite: suite["tasks"][4]["splits"].update(dev="x"),
    "a setting that does not exist": lambda suite: suite["mixture"].update(capp=3),
    "a setting out of its range": lambda suite: suite["mixture"].update(cap=0),
    "a setting that is none of those accepted": lambda suite: suite["mixture"].update(order="random"),
    "an entry with more than an include": lambda suite: suite["tasks"][8].update(name="x"),
    "an unknown key of a task of tasksource": lambda suite: suite["tasks"].append({"tasksource": "glue/rte", "source": "x"}),
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_a_structural_fault_is_refused_by_both(sentence, fits, tmp_path):
    suite = deepcopy(SUITE)
    FAULTS[sentence](suite)
    assert not fits(suite)
    assert not reads(tmp_path, suite)


VALUES = st.sampled_from(
    [None, True, 0, 3, -1, 2.5, "", "x", "hub:a/b", "a b", [], ["a"], [1], [None], [[]], {}, {"a": "b"}, {"a": 1}]
).map(deepcopy)
KEYS = ["name", "tasks", "include", "exclude", "mixture", "source", "labels", "cap", "text", "pair", "span", "denoising", "other"]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_the_schema_refuses_the_reader_refuses_and_wrong_types_the_other_way_round(data, fits, tmp_path_factory):
    suite = deepcopy(SUITE)
    for _ in range(data.draw(st.integers(1, 2))):
        *path, key = data.draw(st.sampled_from(places(suite)[1:]))
        parent: Any = suite
        for step in path:
            parent = parent[step]
        action = data.draw(st.sampled_from(["put", "put", "take", "add"]))
        if action == "put":
            parent[key] = data.draw(VALUES)
        elif action == "take":
            parent.pop(key)
        elif isinstance(parent, dict):
            parent[data.draw(st.sampled_from(KEYS))] = data.draw(VALUES)
    folder = tmp_path_factory.getbasetemp()
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    message = ""
    try:
        read_suite(folder / "suite.yaml")
    except InputError as error:
        message = str(error)
    if not fits(suite):
        assert message, suite
    elif message:  # what only the reader can know: what is there, and what goes together
        known = (
            "no task", "excludes nothing", "used twice", "no suite file", "names no task", "at least two", "declared twice",
            "is not below", "a share of", "expected one field", "a label of several",
        )  # fmt: skip
        assert any(words in message for words in known), (message, suite)
