"""The plan of a dry run: what it promises is what the run then does, and what it says of memory is what a process takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import microworld
import processes
from prefinetune.compare import compare
from prefinetune.errors import InputError
from prefinetune.finetune import finetune
from prefinetune.plan import plan_compare, plan_finetune, plan_train
from prefinetune.results import RunFolder
from prefinetune.sources import Rows
from prefinetune.task import Suite, Task
from prefinetune.train import train

SETTINGS = {"mixture": {"sub_batches": 2, "sub_batch_size": 4}, "train": {"epochs": 2, "log_every": 1, "checkpoint_every": None}}


def rows_of(out: Path) -> dict[str, dict[str, int]]:
    return {task["name"]: task["rows"] for task in yaml.safe_load((out / "suite.yaml").read_text())["tasks"]}


def leaking(suite: Suite) -> Suite:
    """The suite with 3 of its first task's validation rows among its training rows, and one row without a label."""
    first, *others = suite
    tables = first.source.tables
    bad = {**tables["train"][0], "label": None}
    more = {"train": [*tables["train"], *tables["validation"][:3], bad], "validation": tables["validation"]}
    return Suite(suite.name, (Task(first.name, Rows(more, name=first.name), first.family), *others))


def test_the_plan_of_a_run_is_what_the_run_does(world_suite, tiny_model, cache, tmp_path):
    suite = leaking(world_suite)
    settings = {**SETTINGS, "data": {"bad_rows": 0.5}}
    plan = plan_train(suite, tiny_model, config=settings, cache=cache)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]

    out = tmp_path / "run"
    done = train(suite, tiny_model, out, config=settings, cache=cache)
    assert plan.updates == done.updates
    for task in plan.tasks:
        account = rows_of(out)[task.name]
        assert task.rows == account["train"]["stored"]
        assert (task.set_aside, task.left_out) == (account["train"].get("quarantined", 0), account["train"].get("leak", 0))
        assert task.validation == account["validation"]["stored"]
    assert (plan.tasks[0].set_aside, plan.tasks[0].left_out) == (1, 3)
    counted = {task.name: 0 for task in plan.tasks}
    for line in RunFolder(out).metrics():
        for task, count in line["examples_by_task"].items():
            counted[task] += count
    assert {task.name: task.examples for task in plan.tasks} == counted
    assert plan.tokens_per_update == pytest.approx(RunFolder(out).metrics()[-1]["tokens"] / done.updates, rel=0.05)


def test_the_plan_of_a_fine_tuning_knows_its_labels_and_its_length(tiny_model, cache, tmp_path):
    task = microworld.targets(0, train_rows=64)[0]
    config = {"train": {"epochs": 3}}
    plan = plan_finetune(task, tiny_model, labels=20, config=config, cache=cache)
    done = finetune(task, tiny_model, tmp_path / "tuned", labels=20, config=config, cache=cache)
    assert (plan.tasks[0].rows, plan.tasks[0].examples) == (20, 60)
    assert plan.updates == done.record["updates"]
    assert plan.parameters > 10_000
    assert plan.trainable == plan.parameters
    assert plan.timed == 3
    assert plan.seconds > plan.updates * plan.update_seconds > 0


def test_the_plan_of_a_comparison_counts_cells_and_those_that_are_there(tiny_model, cache, tmp_path):
    tasks = microworld.targets(0, train_rows=32)[:1]
    given = {"base": tiny_model, "labels": [8, 16, 900], "seeds": 2, "config": {"train": {"updates": 1}}, "cache": cache}
    plan = plan_compare(tasks, tiny_model, tmp_path / "out", grid=(1e-3, 1e-4), **given)
    assert not (tmp_path / "out").exists()
    assert (plan.cells, plan.there) == (2 * 2 * 2 + 2 * 2 * 2, 0)  # labels x rates x tuning seeds, labels x arms x seeds
    assert plan.examples == plan.cells * plan.cell.examples_per_update
    assert len(plan.left_out) == 1  # 900 labels
    compare(tasks, tiny_model, tmp_path / "out", grid=(1e-3,), **{**given, "labels": [8, 16]})
    again = plan_compare(tasks, tiny_model, tmp_path / "out", grid=(1e-3,), **given)
    assert (again.cells, again.there, again.examples, again.seconds) == (8, 8, 0, 0)


def test_several_processes_are_told_to_be_one(world_suite, tiny_model, cache, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--dry-run is for one process"):
        plan_train(world_suite, tiny_model, config=SETTINGS, cache=cache)


# A model whose weights, and then whose activations, are most of what a process takes.
SIZES = {
    "weights": {"hidden_size": 512, "num_hidden_layers": 6, "tokens": 64},
    "activations": {"hidden_size": 128, "num_hidden_layers": 8, "tokens": 8192},
    "activations, recomputed": {"hidden_size": 128, "num_hidden_layers": 8, "tokens": 8192, "recomputed": True},
}
MEASURE = """
import json, sys
sys.path.insert(0, {tests!r})
import microworld, torch, transformers
from prefinetune.batch import micro_batches
from prefinetune.config import make_config
from prefinetune.plan import plan_train
from prefinetune.train import train
given = json.loads({given!r})
tokens, recomputed, folder = given.pop("tokens"), given.pop("recomputed", False), given.pop("folder")
config = microworld.model_config()
config.update({{"num_attention_heads": 4, "intermediate_size": 4 * given["hidden_size"], **given}})
transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder + "/model")
microworld.tokenizer().save_pretrained(folder + "/model")
suite = microworld.world(0, rows_per_task=1200, validation_rows=4).select("micro/subject-category", "micro/larger-subject")
settings = {{"train": {{"updates": 3, "token_budget": tokens, "gradient_checkpointing": recomputed, "checkpoint_every": None}},
            "mixture": {{"sub_batches": 2, "sub_batch_size": max(1, tokens // 16)}}}}
def peak():  # of this process; getrusage tells that of its parent where it was larger
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
small = {{**settings, "train": {{**settings["train"], "token_budget": 32}}, "mixture": {{"sub_batches": 1, "sub_batch_size": 1}}}}
if given["hidden_size"] < 256:  # what libraries take once an update has been made
    train(suite, folder + "/model", folder + "/first", config=small, cache=folder + "/cache")
before = peak()
train(suite, folder + "/model", folder + "/run", config=settings, cache=folder + "/cache")
taken = peak() - before
plan = plan_train(suite, folder + "/model", config=settings, cache=folder + "/cache")
print(json.dumps([taken, plan.memory]))
"""


@pytest.mark.parametrize("what", SIZES)
def test_memory_is_foreseen_to_within_a_factor_of_one_and_a_half(what, tmp_path):
    """What a process has in use: with this setting the C library gives back at once what is no longer."""
    given = json.dumps({**SIZES[what], "folder": str(tmp_path)})
    environment = processes.environment(MALLOC_MMAP_THRESHOLD_="262144")
    code = MEASURE.format(tests=str(Path(__file__).parent), given=given)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    taken, memory = json.loads(done.stdout.splitlines()[-1])
    assert 1 / 1.5 < sum(memory.values()) / taken < 1.5
