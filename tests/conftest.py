"""What the tests share: a tiny model with its tokenizer, a small suite of all families, and a cache that is thrown away."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub client
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import random
import shutil
import sys
from pathlib import Path

import hypothesis
import pytest

import microworld
from prefinetune.families import Denoising, Regression
from prefinetune.sources import Rows
from prefinetune.task import Suite, Task

# The same cases in every run, and no time limit per case: machines differ.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """No test writes to the user's cache, also where it does not ask for one."""
    os.environ["PREFINETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a RoBERTa of 2 layers x 32 without dropout, and the micro-world's tokenizer (one token per word)."""
    import torch
    import transformers

    config = microworld.model_config()
    config.update({"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64})
    folder = tmp_path_factory.mktemp("tiny") / "roberta"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    microworld.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dropout_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with dropout, so that a generator that is not restored shows."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("dropout") / "model")
    config = json.loads((folder / "config.json").read_text())
    config.update(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory) -> Path:
    """A folder with a BART of 2 + 2 layers x 32 without dropout and with large random weights, and the same tokenizer."""
    import torch
    import transformers

    tokenizer = microworld.tokenizer()
    shape = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 2), ("attention_heads", 2))}
    shape |= {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}
    config = transformers.BartConfig(vocab_size=len(tokenizer), dropout=0.0, init_std=0.2, **shape)
    folder = tmp_path_factory.mktemp("tiny") / "bart"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def world_suite() -> Suite:
    """Seven tasks of 48 training and 16 validation rows: one label, a pair, a span, two choices, a number, raw text."""
    names = ("subject-category", "larger-subject", "find-large", "choose-large", "fill-verb")
    suite = microworld.world(0, rows_per_task=48, validation_rows=16).select(*(f"micro/{name}" for name in names))
    world, rng = microworld.World(0), random.Random(0)
    sentences = world.sentences(rng)

    def rows(count: int) -> list[dict]:
        found = [next(sentences) for _ in range(count)]
        return [{"text": s.text, "score": 1.0 + sum(v == "good" for v in (s.adjective.polarity, s.outcome))} for s in found]

    tables = {"train": rows(48), "validation": rows(16)}
    return Suite(
        "small",
        (
            *suite.tasks,
            Task("micro/goodness", Rows(tables, name="micro/goodness"), Regression("text", label="score", low=0, high=4)),
            Task("micro/text", Rows(tables, name="micro/text"), Denoising("text")),
        ),
    )


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A folder for token stores; also the default one while the test runs."""
    monkeypatch.setenv("PREFINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def command(monkeypatch, capsys, cache):
    """Runs the command line in this process; gives (exit code, standard output, standard error)."""

    from prefinetune.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefinetune", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A mirror of hub datasets, DATA_ROOT/SLUG/SPLIT.parquet."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PREFINETUNE_DATA_ROOT") or beside)
    if not folder.is_dir():
        pytest.skip("no mirror of datasets: PREFINETUNE_DATA_ROOT is not set, and ../shared/data is not there")
    return folder
