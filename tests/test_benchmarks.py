"""The programs in benchmarks/ still fit the library that they measure."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import scaling

BENCHMARKS = Path(scaling.__file__).parent


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_finds_all_that_it_imports(name):
    import_module(name)


def test_the_start_of_a_run_is_measured_step_by_step_until_the_first_update(tiny_model, tmp_path):
    for split, count in (("train", 40), ("validation", 8)):
        folder = tmp_path / "data" / "rotten_tomatoes"
        folder.mkdir(parents=True, exist_ok=True)
        rows = {"text": [f"the film number {at} of {split}" for at in range(count)], "label": [at % 2 for at in range(count)]}
        Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    found = scaling.started(tmp_path / "data", str(tiny_model), tmp_path / "cache")
    assert found["tasks"] == 1
    assert list(found["steps"]) == [
        "imports", "tokenizer", "rows and leaks", "training stores", "validation", "model and heads", "first examples",
        "first update",
    ]  # fmt: skip
    assert all(wall >= 0 for _, wall in found["steps"].values())
    assert found["ready"][1] == pytest.approx(sum(wall for step, (_, wall) in found["steps"].items() if step != "first update"))
