"""The JSON Schema of suite files, and the check of a part of one against it.

Nothing is said twice: the schema comes from the fields of `Task` and of the families, with their types and docstrings, and from
the settings of mixtures. What `task.py` reads is checked against the same pieces that editors get as one document.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, get_type_hints

from prefinetune.config import MixtureSettings
from prefinetune.errors import listing, nearest
from prefinetune.families import FAMILIES, Field
from prefinetune.positions import Part, shown
from prefinetune.sources import ROLES

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
ONE_OR_MORE = [TEXT, {"type": "array", "items": TEXT, "minItems": 1}]
NOTHING: Schema = {"type": "null"}
COLUMN = "a column, a dotted path into a nested one, or a list of these"
LABELS = "a list of texts or numbers"
# What YAML holds for the types that fields of records have; functions can be given in Python only.
PLAIN: Mapping[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    float: {"type": "number"},
    Field: {"description": COLUMN, "anyOf": ONE_OR_MORE},
    tuple[str, ...]: {"description": LABELS, "type": "array", "items": {"type": ["string", "number"]}, "minItems": 1},
    tuple[Any, ...]: {"type": "array", "items": {"type": ["string", "number", "boolean", "null"]}},
    Collection[str]: {"type": "array", "items": TEXT},
    Mapping[str, Any]: {"type": "object"},
}
TYPES = {
    **PLAIN,
    **{
        hint | None: {"anyOf": [*found.get("anyOf", [found]), NOTHING]} | ({"description": COLUMN} if hint == Field else {})
        for hint, found in PLAIN.items()
    },
}
WORDS = {
    "string": "a text", "boolean": "true or false", "integer": "a whole number", "number": "a number", "array": "a list",
    "object": "a mapping", "null": "nothing",
}  # fmt: skip
SOURCE: Schema = {
    "description": "a file, a folder, hub:ID, hub:ID:CONFIG, hub:ID@REVISION, tasksource:NAME, or a mapping from split to file",
    "anyOf": [TEXT, {"type": "object", "additionalProperties": TEXT, "minProperties": 1}],
}
SPLITS: Schema = {
    "type": "object",
    "properties": {role: {"anyOf": [TEXT, NOTHING]} for role in ROLES},
    "additionalProperties": False,
}
INCLUDE: Schema = {
    "description": "tasks by name, tag, family or pattern (glue/*), tasksource:NAME, other suite files (their tasks, not their "
    "mixture), or a list of these; tasks for evaluation only come along when they are named",
    "anyOf": ONE_OR_MORE,
}
EXCLUDE: Schema = {"description": "names, tags, families or patterns of tasks to leave out again", "anyOf": ONE_OR_MORE}


# ---- pieces


def record_schema(record: type, **own: Schema) -> Schema:
    """Of the fields of a dataclass.

    Args:
        own: fields that YAML says in another way.
    """
    hints = get_type_hints(record)
    fields = {item.name: item for item in dataclasses.fields(record)}
    properties = {}
    for name, item in sorted(fields.items(), key=lambda pair: pair[1].kw_only is True):
        found = own[name] if name in own else TYPES[hints[name]]
        simple = isinstance(item.default, (str, int, float)) and item.default != ""
        properties[name] = {**found, "default": item.default} if simple else found
    optional = (dataclasses.MISSING, dataclasses.MISSING)
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name, item in fields.items() if (item.default, item.default_factory) == optional],
        "additionalProperties": False,
    }


@cache
def family_schema(kind: str) -> Schema:
    family = FAMILIES[kind]
    return {"description": inspect.getdoc(family), **record_schema(family)}


@cache
def task_schema() -> Schema:
    """Of a task of one's own. That it has exactly one family is not among its properties."""
    from docstring_parser import parse

    from prefinetune.task import Task

    schema = record_schema(Task, source=SOURCE, splits=SPLITS, family={}, name=TEXT)
    told = {param.arg_name: " ".join((param.description or "").split()) for param in parse(inspect.getdoc(Task) or "").params}
    described = {name: {"description": told[name], **found} for name, found in schema["properties"].items() if name != "family"}
    families = {kind: family_schema(kind) for kind in FAMILIES}
    return {**schema, "properties": {**described, **families}, "required": ["name", "source"]}


def mixture_schema() -> Schema:
    schema = MixtureSettings.model_json_schema()
    properties = {
        name: {key: value for key, value in found.items() if key != "title"} for name, found in schema["properties"].items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def entry_schema(**keys: Schema) -> Schema:
    """Of an entry that has no family of its own; the first key must be there."""
    return {"type": "object", "properties": keys, "required": [next(iter(keys))], "additionalProperties": False}


def include_schema() -> Schema:
    return entry_schema(include=INCLUDE, exclude=EXCLUDE)


@cache
def tasksource_schema() -> Schema:
    """Of a task of the tasksource catalogue, with what shall differ from there."""
    properties = task_schema()["properties"]
    own = {name: found for name, found in properties.items() if name not in FAMILIES and name != "source"}
    return entry_schema(tasksource={"description": "a name of the tasksource catalogue", **TEXT}, **own)


def suite_keys() -> Schema:
    """The keys of a suite file."""
    return {
        "name": {"description": "what the suite is called; its file's name when left out", **TEXT},
        "include": INCLUDE,
        "exclude": EXCLUDE,
        "tasks": {"type": "array", "minItems": 1},
        "mixture": {"description": "how tasks are mixed, where it differs from the defaults", "type": ["object", "null"]},
    }


def suite_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a suite file, as editors use it: names and tags of the catalogue are offered."""
    from prefinetune.catalog import catalog
    from prefinetune.task import NAME

    names = [task.name for task in catalog()]
    tags = sorted({tag for task in catalog() for tag in task.tags} | set(FAMILIES) | {"all"})
    task = task_schema()
    named = {"name": {**task["properties"]["name"], "pattern": f"^(?:{NAME.pattern})$"}}
    keys = suite_keys()
    offered = {"anyOf": [{"enum": [*tags, *names]}, *ONE_OR_MORE]}
    own = {
        **task,
        "properties": {**task["properties"], **named},
        "oneOf": [{"required": [kind]} for kind in FAMILIES],
        "description": "a task of your own: a name, where its rows are, and exactly one family with the columns it reads",
        "examples": [{"name": "intent", "source": "intent.csv", "classification": {"text": "message", "label": "intent"}}],
    }
    tasksource = tasksource_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A suite of prefinetune",
        "description": "Tasks to be learned together, and how they are mixed.",
        "type": "object",
        "properties": {
            **keys,
            "include": {**INCLUDE, **offered},
            "exclude": {**EXCLUDE, **offered},
            "tasks": {**keys["tasks"], "items": {"$ref": "#/$defs/entry"}},
            "mixture": {"description": keys["mixture"]["description"], "anyOf": [mixture_schema(), NOTHING]},
        },
        "anyOf": [{"required": ["tasks"]}, {"required": ["include"]}],
        "additionalProperties": False,
        "examples": [
            {"name": "support", "tasks": [*own["examples"], {"include": "nli"}], "mixture": {"sampling": "natural"}},
        ],
        "$defs": {
            "entry": {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in ("name", "included", "tasksource", "task")]},
            "name": {"description": "a task of the catalogue, or tasksource:NAME", "anyOf": [{"enum": names}, TEXT]},
            "included": {**include_schema(), "description": "tasks of the catalogue and of other suite files"},
            "tasksource": {
                **tasksource,
                "properties": {**tasksource["properties"], **named},
                "description": "a task of the tasksource catalogue",
            },
            "task": own,
        },
    }


# ---- the check


def check(part: Part, schema: Schema) -> None:
    """Whether a part is as a piece of the schema says.

    Raises:
        InputError: it is not, or something in it is not; at the place of what is wrong.
    """
    options = [option for option in schema.get("anyOf", [schema]) if kinds(part.value) & accepted(option)]
    if not options:
        wanted = set().union(*map(accepted, schema.get("anyOf", [schema])))
        expected = " or ".join(WORDS[kind] for kind in WORDS if kind in wanted)
        if "description" in schema:  # its first sentence
            expected += ": " + re.split(r"[.;](?:\s|$)|\n\n", " ".join(schema["description"].split()))[0]
        quoting = part.quoting if "string" in wanted or not part.written else ""
        raise part.refuse(f"{shown(part.value)} is not accepted; expected {expected}{quoting}")
    found = options[0]
    if isinstance(part.value, str) and len(part.value) < found.get("minLength", 0):
        raise part.refuse("an empty text is not accepted")
    if isinstance(part.value, list):
        if len(part.value) < found.get("minItems", 0):
            raise part.refuse("an empty list is not accepted")
        for item in part:
            check(item, found.get("items", {}))
    if isinstance(part.value, dict):
        if len(part.value) < found.get("minProperties", 0):
            raise part.refuse("an empty mapping is not accepted")
        properties, others = found.get("properties", {}), found.get("additionalProperties", {})
        for key in part.value:
            if key not in properties and others is False:
                raise part.refuse_key(key, f"unknown key {key!r}{nearest(key, properties)}; accepted: {listing(properties, 20)}")
            check(part[key], properties.get(key, others))
        missing = [key for key in found.get("required", ()) if key not in part]
        if missing:
            raise part.refuse(f"{listing(map(repr, missing))} missing")


def accepted(schema: Schema) -> set[str]:
    """The kinds of values that a schema without alternatives takes."""
    given = schema.get("type", list(WORDS))
    return {given} if isinstance(given, str) else set(given)


def kinds(value: Any) -> set[str]:
    """What JSON Schema calls a value."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names = {str: "string", float: "number", list: "array", dict: "object"}
    return {next((name for kind, name in names.items() if isinstance(value, kind)), "null")}
