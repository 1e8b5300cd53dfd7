"""benchmarks/tasknet_arm.py: tasknet learns from the rows that we do, as many of them, and leaves a plain trunk."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

import microworld
from prefinetune.compare import compare
from prefinetune.config import make_config
from prefinetune.splits import open_task
from prefinetune.store import build_store
from prefinetune.tokenizer import load_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import tasknet_arm

CONFIG = make_config({
    "mixture": {"sub_batches": 4, "sub_batch_size": 3}, "optimizer": {"learning_rate": 1e-3}, "data": {"max_length": 64},
    "train": {"updates": 12, "precision": "bfloat16"},
})  # fmt: skip


@pytest.mark.skipif(not find_spec("tasknet"), reason="tasknet is not installed (benchmarks/requirements.txt)")
def test_tasknet_learns_from_as_many_examples_in_batches_of_one_set_and_leaves_a_plain_trunk(
    world_suite, tiny_model, tmp_path, cache, monkeypatch
):
    seen = []
    call = tasknet_arm.Counted.__call__
    monkeypatch.setattr(tasknet_arm.Counted, "__call__", lambda one, rows: seen.append(rows) or call(one, rows))
    suite = world_suite.select("micro/subject-category", "micro/find-large", "micro/choose-large", "micro/goodness")
    told = tasknet_arm.learn(suite, tiny_model, tmp_path / "arm", CONFIG, cache=cache)
    assert told == json.loads((tmp_path / "arm" / "tasknet.json").read_text())
    assert told["examples"] == sum(map(len, seen)) == pytest.approx(12 * 12, abs=12)
    assert told["updates"] == len(seen)
    assert told["examples per second"] == pytest.approx(told["examples"] / told["seconds"], rel=0.2)
    assert all(len({row["task"].item() for row in rows}) == 1 for rows in seen)
    assert len({rows[0]["task"].item() for rows in seen}) > 1

    before, after = (transformers.AutoModel.from_pretrained(place).state_dict() for place in (tiny_model, tmp_path / "arm"))
    assert before.keys() == after.keys()
    layers = [name for name in after if "layer" in name and name.endswith("weight")]
    assert all(not torch.equal(before[name], after[name]) for name in layers)
    settings = {"train": {"updates": 2, "evaluation_rows": 8, "precision": "bfloat16"}}
    found = compare(
        microworld.targets(0, train_rows=40)[:1], tiny_model, tmp_path / "out", base=tiny_model, labels=(8,), seeds=1,
        arms={"tasknet": tmp_path / "arm"}, grid=(1e-2,), config=settings, cache=cache,
    )  # fmt: skip
    assert set(found.lines[0].scores) == {"base", "pre-finetuned", "tasknet"}


@pytest.mark.parametrize("name", ["micro/subject-category", "micro/find-large", "micro/choose-large", "micro/goodness"])
def test_its_rows_are_ours_padded(name, world_suite, tiny_model):
    opened = open_task(world_suite[name])
    tokenizer = load_tokenizer(str(tiny_model), 64)
    store = build_store(opened, "train", tokenizer)
    examples = [store[at] for at in range(10)]
    rows = tasknet_arm.rows_of(examples, opened.family, 3, tokenizer)
    for row, one in zip(rows, examples, strict=True):
        assert row["task"].tolist() == [3]
        ids, mask = (row[key].reshape(len(one.sequences), -1) for key in ("input_ids", "attention_mask"))
        for option, sequence in enumerate(one.sequences):
            assert ids[option][mask[option] == 1].tolist() == sequence.tolist()
            assert (ids[option][mask[option] == 0] == tokenizer.pad_id).all()
        assert row["labels"].flatten().tolist() == pytest.approx(one.target.tolist())
