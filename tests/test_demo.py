"""The demo's stages in small: made-up tasks instead of mined ones, and a few updates each."""

import io
import json

from rich.console import Console

import microworld
from prefinetune.demo import run as demo
from prefinetune.demo.mine import Mined
from prefinetune.display import Display
from prefinetune.evidence import read_comparison


def test_all_stages_run_end_with_the_sentence_and_are_not_run_twice(monkeypatch, tmp_path):
    suite = microworld.world(0, rows_per_task=40, validation_rows=8)
    texts = [row["text"] for row in suite.tasks[0].source.tables["train"]] * 3
    targets = [task for task in microworld.targets(0) if task.family.kind == "classification"][:2]
    mined = Mined([f"{text} {index}" for index, text in enumerate(texts)], suite.tasks[:6], tuple(targets))
    few = {"checkpoint_every": None, "evaluation_rows": 4}
    size = demo.Size(pretraining=2, longer=2, labels=(8, 16), seeds=2, told="These numbers say nothing.")
    monkeypatch.setattr(demo, "mine", lambda seed: mined)
    monkeypatch.setattr(demo, "PRETRAINING", {**demo.PRETRAINING, "train": few})
    monkeypatch.setattr(demo, "PREFINETUNING", {**demo.PREFINETUNING, "train": few})
    monkeypatch.setattr(demo, "FURTHER", {**demo.FURTHER, "train": few})
    monkeypatch.setattr(demo, "FINETUNING", {**demo.FINETUNING, "train": {"updates": 2, "evaluation_rows": 10}})

    said = io.StringIO()
    display = Display(console=Console(file=said, width=160))
    result = demo.run_demo(tmp_path / "demo", 0, display, size)
    folder = tmp_path / "demo"
    comparison = read_comparison(folder / "comparison")
    assert list(comparison.plan["arms"]) == ["base", "pre-finetuned", "further training", "4 tasks"]
    assert {(line.task, line.at) for line in comparison.lines} == {(task.name, at) for task in targets for at in ("8", "16")}
    assert not comparison.missing
    assert not comparison.problems
    last = said.getvalue().replace("\n", " ").rstrip()
    assert last.endswith(" ".join(comparison.sentences()[-1].split()) + " These numbers say nothing.")
    assert (folder / "report.html").stat().st_size > 1e6
    assert json.loads((folder / "demo.json").read_text())["sentences"] == result["sentences"]
    updates = {
        arm: json.loads((folder / arm / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        for arm in ("pre-finetuned", "further-training", "4-tasks")
    }
    assert set(updates.values()) == {2}

    cells = (folder / "comparison" / "results.jsonl").read_text()
    demo.run_demo(folder, 0, Display(quiet=True), size)
    assert (folder / "comparison" / "results.jsonl").read_text() == cells
