"""When memory runs out: a clear error, or smaller micro-batches with the same gradient."""

import ctypes
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import microworld
from prefinetune.config import make_config
from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.families import Classification, Encoded
from prefinetune.loop import fit
from prefinetune.memory import Memory, Work
from prefinetune.model import MultiTask
from prefinetune.pretrained import load_backbone
from prefinetune.results import RunFolder
from prefinetune.tokenizer import Tokenizer
from prefinetune.update import TaskData

OUT = "CUDA out of memory. Tried to allocate 2.00 GiB"  # torch's own words begin so
FAMILY = Classification("text", "label", labels=("a", "b", "c"))


def examples(count=64):
    generator = np.random.default_rng(0)
    return [
        Encoded([np.array([0, *generator.integers(5, 60, generator.integers(4, 28)), 2])], [30], np.array([at % 3]), at)
        for at in range(count)
    ]


def run(tiny_model, folder, most=None, **train):
    """A few updates on a device that has room for `most` tokens; (weights, metrics, sizes of the micro-batches that did fit)."""
    model = MultiTask(load_backbone(str(tiny_model)), {"topic": FAMILY})
    sizes = []

    def limited(_, given):
        (batch, *_) = given
        if most is not None and batch.bounds.total > most:
            raise torch.OutOfMemoryError(OUT)
        sizes.append(batch.bounds.total)

    model.register_forward_pre_hook(limited)
    settings = {"updates": 6, "log_every": 1, "token_budget": 400, "checkpoint_every": None, **train}
    config = make_config({"train": settings, "mixture": {"sub_batches": 4, "sub_batch_size": 4}})
    folder.mkdir()
    fit(model, Tokenizer(microworld.tokenizer(), 32), [TaskData("topic", FAMILY, examples())], {}, config, RunFolder(folder))
    lines = [(line["loss"], line["grad_norm"], line["examples"]) for line in RunFolder(folder).metrics()]
    return model.unique_state(), lines, sizes


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="a C library that cannot be asked")
def test_what_was_freed_goes_back_to_the_system():
    code = """
import psutil, torch
from prefinetune.memory import give_back
def resident(): return psutil.Process().memory_info().rss
before = resident()
kept = [torch.ones(4096 + at) for at in range(20_000)]  # 16 kB each, which come from the heap
full = resident()
del kept[:-1]  # one at the end, so that the heap cannot shrink from there
freed = resident()
give_back()
after = resident()
assert full - before > 300e6, (before, full)
assert freed - before > (full - before) / 2, "nothing was kept back: this test proves nothing"
assert after - before < (full - before) / 5, (before, full, freed, after)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_smaller_budget_by_itself_gives_the_same_run(tiny_model, tmp_path):
    expected, lines, sizes = run(tiny_model, tmp_path / "roomy")
    assert max(sizes) > 120
    found, again, fitting = run(tiny_model, tmp_path / "tight", most=120, halve_budget=True)
    np.testing.assert_allclose(again, lines, rtol=1e-5)
    assert max(fitting) <= 120
    assert sum(fitting) >= sum(sizes)  # what was computed before memory ran out was computed again
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def test_without_leave_the_error_says_what_would_fit(tiny_model, tmp_path):
    with pytest.raises(InputError, match=r"token_budget=400.*token_budget=1\d\d gives the same gradients.*halve_budget=true"):
        run(tiny_model, tmp_path / "tight", most=120)


def test_when_one_example_is_too_much_the_error_says_so(tiny_model, tmp_path):
    with pytest.raises(InputError, match=r"one example in each; train.gradient_checkpointing=true"):
        run(tiny_model, tmp_path / "tight", most=3, halve_budget=True)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken(batches):
        raise RuntimeError("a fault of ours")

    batches = [SimpleNamespace(bounds=SimpleNamespace(total=10))]
    with pytest.raises(RuntimeError, match="a fault of ours"):
        Memory(100, halves=True).run(broken, Work(0, [], batches, 100), None, Display(quiet=True))


def test_an_update_that_was_laid_out_before_the_budget_fell_is_laid_out_again(tiny_model, tmp_path):
    """Updates are laid out ahead of time: none fails twice for the budget it was cut for."""
    failed = []
    original = Memory.run

    def counting(self, update, work, layout, display):
        def tried(batches):
            try:
                return update(batches)
            except torch.OutOfMemoryError:
                failed.append(work.number)
                raise

        return original(self, tried, work, layout, display)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Memory, "run", counting)
        run(tiny_model, tmp_path / "tight", most=120, halve_budget=True)
    assert set(failed) == {0}
    assert len(failed) <= math.ceil(math.log2(400 / 120)) + 1
