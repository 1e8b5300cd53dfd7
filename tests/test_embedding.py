"""A run's trunk as a SentenceTransformer: the vectors are those of the trunk, and others load what is written."""

import random
import sys

import numpy as np
import pytest
import torch
import transformers

import microworld
from prefinetune import InputError, save_sentence_transformer, sentence_transformer, train

TEXTS = [one.text for one, _ in zip(microworld.World(0).sentences(random.Random(0)), range(7), strict=False)]
TEXTS += ["duni kuno", "never", " ".join(["the duni kuno never gilas"] * 30)]  # the last is longer than the model takes


@pytest.fixture(scope="module")
def run(tiny_model, world_suite, tmp_path_factory):
    """A run of a few updates, so that its trunk is not the one it started from."""
    folder = tmp_path_factory.mktemp("embedding") / "run"
    config = {"train": {"updates": 3, "checkpoint_every": None}, "optimizer": {"learning_rate": 0.01}}
    return train(world_suite.select("micro/subject-category"), tiny_model, folder, config=config).folder


def states(folder, text: str) -> np.ndarray:
    """What Transformers' own model makes of a text by itself [l, d]."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        ids = transformers.AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=64, return_tensors="pt")
        return model(**ids).last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    ("pooling", "pooled"), [("mean", lambda one: one.mean(0)), ("cls", lambda one: one[0]), ("max", lambda one: one.max(0))]
)
def test_a_vector_is_what_pooling_makes_of_the_trunks_states(pooling, pooled, run, tiny_model):
    model = sentence_transformer(run, pooling)
    expected = np.stack([pooled(states(run / "model", text)) for text in TEXTS])
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)
    assert np.abs(expected[0] - pooled(states(tiny_model, TEXTS[0]))).max() > 1e-2, "the run's trunk, not its start"


def test_what_is_saved_is_loaded_by_sentence_transformers_and_is_no_pickle(run, tmp_path):
    from sentence_transformers import SentenceTransformer

    (tmp_path / "sentences").mkdir()
    (tmp_path / "sentences" / "old.txt").write_text("of an earlier one")
    save_sentence_transformer(run, tmp_path / "sentences")
    loaded = SentenceTransformer(str(tmp_path / "sentences"))
    np.testing.assert_array_equal(loaded.encode(TEXTS), sentence_transformer(run).encode(TEXTS))
    assert loaded.max_seq_length == 64
    assert not any(parameter.requires_grad is False for parameter in loaded.parameters()), "it can be trained further"
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written >= {"model.safetensors", "modules.json", "tokenizer.json"}
    assert not {name for name in written if name.endswith((".bin", ".pkl", ".pt"))} | (written & {"old.txt"})
    assert str(run) not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".md"))


def test_setfit_learns_from_the_folder(run, tmp_path):
    setfit = pytest.importorskip("setfit", reason="SetFit is not installed; it is no part of any extra")
    from datasets import Dataset

    rows = {"text": TEXTS[:7] + [f"{text} ." for text in TEXTS[:7]], "label": [int("never" in text) for text in TEXTS[:7] * 2]}
    save_sentence_transformer(run, tmp_path / "sentences")
    model = setfit.SetFitModel.from_pretrained(str(tmp_path / "sentences"))
    before = model.model_body.encode(TEXTS)
    np.testing.assert_allclose(before, sentence_transformer(run).encode(TEXTS), atol=1e-6)
    settings = setfit.TrainingArguments(
        str(tmp_path / "setfit"), num_iterations=2, num_epochs=1, body_learning_rate=0.01, report_to="none", save_strategy="no"
    )
    setfit.Trainer(model=model, args=settings, train_dataset=Dataset.from_dict(rows)).train()
    assert np.abs(model.model_body.encode(TEXTS) - before).max() > 1e-3
    assert model.predict(rows["text"]).tolist() == rows["label"]


def test_what_cannot_be_one_is_refused(run, tiny_bart, tiny_model, tmp_path, monkeypatch):
    def complaint(*arguments) -> str:
        with pytest.raises(InputError) as problem:
            sentence_transformer(*arguments)
        return str(problem.value)

    assert "pooling 'men' is not accepted; expected cls, max, mean" in complaint(run, "men")
    assert "is an encoder-decoder (bart), whose sentences are read off the decoder" in complaint(tiny_bart)
    assert "no model folder '/no/such/run'" in complaint("/no/such/run")
    pickled = tmp_path / "pickled"
    transformers.AutoConfig.from_pretrained(tiny_model).save_pretrained(pickled)
    microworld.tokenizer().save_pretrained(pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    assert "its weights could not be loaded" in complaint(pickled)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert complaint(run).endswith("is not installed: pip install 'prefinetune[sentence-transformers]'")
