"""What a bug report is told of a machine, and what not; the files by which the project is cited and checked."""

import io
import json
import os
import re
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import psutil
import pytest
import torch
import yaml
from rich.console import Console

import microworld
from prefinetune import environment, native, train
from prefinetune.display import Display

ROOT = Path(__file__).parents[1]
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


def test_a_bug_report_names_versions_machine_and_kernels(command):
    code, out, _ = command("env", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["packages"]["transformers"] == metadata.version("transformers")
    assert found["torch"].startswith(f"{torch.__version__} (")
    assert found["memory_gib"]["total"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.06)
    assert found["cores"]["logical"] == os.cpu_count()
    assert found["extras"]["balancing"]["torchjd"] == metadata.version("torchjd")
    code, text, _ = command("env")
    lines = text.splitlines()
    assert code == 0
    assert all(re.match(r"(  )?- \S", line) for line in lines)
    assert f"- torch: {found['torch']}" in lines
    assert f"- kernels: {found['kernels']}" in lines


def test_values_that_may_be_secrets_are_not_shown_and_the_users_folder_is_not_named(command, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", TOKEN)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:word@proxy")
    monkeypatch.setenv("PREFINETUNE_DATA_ROOT", "https://user:word@host/data")
    monkeypatch.setenv("HF_HOME", str(Path.home() / "hub"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MY_DIARY", "dear diary")
    _, out, _ = command("env", "--json")
    variables = json.loads(out)["variables"]
    assert (variables["HF_TOKEN"], variables["WANDB_API_KEY"], variables["HTTPS_PROXY"]) == ("set", "set", "set")
    assert (variables["HF_HOME"], variables["CUDA_VISIBLE_DEVICES"]) == ("~/hub", "")
    _, text, _ = command("env")
    for shown in (out, text):
        assert not [word for word in (TOKEN, "word", "diary", "DIARY", str(Path.home() / "hub")) if word in shown]
    assert "  - CUDA_VISIBLE_DEVICES: (empty)" in text


def test_gpus_are_named_with_their_memory_and_with_what_the_driver_says_of_them(monkeypatch, tmp_path):
    card = SimpleNamespace(name="NVIDIA H200", total_memory=140 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    assert environment.gpus() == [{"name": "NVIDIA H200", "memory_gib": 140.0, "capability": "9.0"}] * 2
    assert environment.environment()["devices"] == ["NVIDIA H200"] * 2
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.driver() is None
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 570.1'\n")
    program.chmod(0o755)
    assert environment.driver() == ["NVIDIA H200, 143771 MiB, 570.1"]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert environment.driver() == ["nvidia-smi fails (CalledProcessError)"]


def test_the_state_of_the_compiled_kernels_is_told_without_building_them(cache, monkeypatch):
    assert environment.kernels().startswith("built when first needed, by ")
    assert not cache.exists()
    _, folder = native.recipe()
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("[]")
    assert environment.kernels().startswith("built by ")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert environment.kernels() == "none: there is no C++ compiler 'no-such-compiler'"
    monkeypatch.setenv("PREFINETUNE_NATIVE", "0")
    assert environment.kernels() == "switched off by PREFINETUNE_NATIVE=0"


# ---- files of the project

CITATION = {  # what cffconvert's schema asks for, as far as this file uses it
    "type": "object",
    "required": ["cff-version", "message", "title", "authors", "version", "license", "references"],
    "properties": {
        "cff-version": {"const": "1.2.0"},
        "type": {"enum": ["software", "dataset"]},
        "version": {"type": "string"},
        "license": {"const": "Apache-2.0"},
        "authors": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/author"}},
        "references": {
            "type": "array",
            "items": {"required": ["type", "title", "authors"], "properties": {"authors": {"items": {"$ref": "#/$defs/author"}}}},
        },
    },
    "$defs": {
        "author": {"type": "object", "propertyNames": {"enum": ["name", "family-names", "given-names"]}, "minProperties": 1}
    },
}


def test_the_citation_is_whole_and_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    jsonschema.validate(citation, CITATION)
    assert citation["version"] == version
    assert re.search(rf"^## {re.escape(version)} \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_hooks_before_a_commit_run_what_make_check_runs():
    makefile = (ROOT / "Makefile").read_text()
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["entry"].split(" --")[0] for hook in repository["hooks"]}
    recipe = makefile.partition("\ncheck:")[2].partition("\n\n")[0]
    assert hooks == {line.strip().split(" --")[0].removesuffix(" .") for line in recipe.splitlines()[1:]}


def test_the_three_commands_of_contributing_are_targets():
    told = re.findall(r"^(make \w+)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(told) == 3
    for line in told:
        assert re.search(rf"^{line.removeprefix('make ')}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("capabilities", "precision", "is_told"), [
    ({"avx2": True, "avx512_bf16": False}, "bfloat16", True), ({"avx2": True, "avx512_bf16": True}, "bfloat16", False),
    ({"neon": True, "bf16": True}, "bfloat16", False), ({}, "bfloat16", False), ({"avx2": True}, "auto", False),
])  # fmt: skip
def test_who_asks_for_bfloat16_of_a_processor_that_does_not_multiply_it_is_told(
    capabilities, precision, is_told, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    told = io.StringIO()
    config = {"mixture": {"sub_batches": 1, "sub_batch_size": 2}, "train": {"updates": 1, "precision": precision}}
    suite = microworld.world(0, rows_per_task=8, validation_rows=4).select("micro/subject-category")
    train(
        suite, tiny_model, tmp_path / "run", config=config, cache=tmp_path, display=Display(console=Console(file=told, width=160))
    )
    assert ("float32 is faster" in told.getvalue()) == is_told
