"""LoRA: only adapters and heads move, what leaves a run is what PEFT makes of it, and a run goes on bit for bit."""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

import microworld
from prefinetune import ranks
from prefinetune.checkpoint import checkpoints
from prefinetune.cli.shared import parse_lora
from prefinetune.config import Config, LoraSettings, make_config
from prefinetune.errors import InputError
from prefinetune.finetune import finetune
from prefinetune.lora import adapt, check_lora
from prefinetune.model import MultiTask
from prefinetune.pretrained import load_backbone
from prefinetune.train import train

SETTINGS = {
    "mixture": {"sub_batches": 2, "sub_batch_size": 4},
    "optimizer": {"learning_rate": 1e-2, "warmup": 0.2},
    "train": {"updates": 8, "log_every": 1, "checkpoint_every": 4},
    "lora": {"rank": 2, "dropout": 0.1},
}
IDS = torch.arange(5, 25).view(2, 10)


@pytest.fixture(scope="module")
def suite():
    return microworld.world(0, rows_per_task=48, validation_rows=16).select("micro/subject-category", "micro/find-large")


@pytest.fixture(scope="module")
def run(suite, dropout_model, tmp_path_factory):
    """A pre-finetuning with adapters, beside a model with dropout."""
    out = tmp_path_factory.mktemp("lora") / "run"
    train(suite, dropout_model, out, config=SETTINGS, cache=out.parent / "stores")
    return out


@torch.no_grad()
def states(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state


def test_the_adapter_on_its_base_is_the_merged_model_and_the_base_has_not_moved_by_a_bit(run, dropout_model):
    from peft import PeftModel

    base = transformers.AutoModel.from_pretrained(dropout_model)
    before = states(base)
    kept = PeftModel.from_pretrained(base, run / "adapter")
    merged = transformers.AutoModel.from_pretrained(run / "model")
    torch.testing.assert_close(states(merged), states(kept), rtol=0, atol=1e-5)
    assert float((states(merged) - before).abs().max()) > 1e-2
    mine, theirs = load_file(run / "model" / "model.safetensors"), load_file(dropout_model / "model.safetensors")
    theirs = {name.removeprefix("roberta."): tensor for name, tensor in theirs.items()}
    still = {name for name, tensor in mine.items() if name in theirs and torch.equal(tensor, theirs[name])}
    adapted = {name for name in mine if name.endswith("weight") and "embeddings" not in name and "Norm" not in name}
    assert {name for name in mine if "pooler" not in name} - adapted == still
    assert not adapted & still


def test_a_checkpoint_has_adapters_and_heads_and_nothing_of_what_stands_still(run):
    newest = checkpoints(run / "checkpoints")[-1]
    names = load_file(newest / "model.safetensors").keys()
    assert names
    assert all("lora_" in name for name in names if not name.endswith("_ids"))
    moments = {name.partition("|")[0] for name in load_file(newest / "optimizer.safetensors")}
    assert any(name.startswith("heads.") for name in moments)
    assert all("lora_" in name or name.startswith("heads.") for name in moments)


def test_a_run_with_adapters_goes_on_to_the_very_result_of_one_that_nobody_interrupted(run, suite, dropout_model, tmp_path):
    again = shutil.copytree(run, tmp_path / "run")
    for name in ("model", "heads", "adapter"):
        shutil.rmtree(again / name)
    (again / "results.jsonl").unlink()
    shutil.rmtree(checkpoints(again / "checkpoints")[-1])
    train(suite, dropout_model, again, config=SETTINGS, cache=run.parent / "stores", resume=True)
    places = [place.relative_to(run) for place in run.rglob("*.safetensors") if "step-00000004" not in str(place)]
    assert len(places) > 5
    for place in places:
        one, other = load_file(run / place), load_file(again / place)
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()), place


def test_an_encoder_decoder_is_fine_tuned_with_adapters_on_the_layers_that_were_named(tiny_bart, tmp_path, cache):
    from peft import PeftModel

    task = microworld.targets(0, train_rows=48)[0]
    settings = {"lora": {"rank": 2, "targets": ["q_proj", "fc1"]}, "optimizer": {"learning_rate": 1e-2}}
    settings["train"] = {"updates": 4, "evaluate_every": 4}
    tuned = finetune(task, tiny_bart, tmp_path / "run", config=settings)
    base = transformers.AutoModel.from_pretrained(tiny_bart)
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tuned.folder / "model")
    moved = {name.rpartition(".")[0] for name, one in base.named_parameters() if not one.equal(whole.model.get_parameter(name))}
    assert {name.rpartition(".")[2] for name in moved} == {"q_proj", "fc1"}
    assert len(moved) == 2 * 2 + 2 * 3  # of two layers each: the decoder attends twice
    kept = PeftModel.from_pretrained(base, tuned.folder / "adapter")
    torch.testing.assert_close(states(whole.model), states(kept), rtol=0, atol=1e-5)


def test_the_flag_is_a_short_form_of_settings():
    config = make_config(overrides=parse_lora("r=16,alpha=32,dropout=0.05,targets=query+value"))
    assert config.lora == LoraSettings(rank=16, alpha=32, dropout=0.05, targets=("query", "value"))
    assert make_config(overrides=parse_lora("")) == Config()
    assert make_config(overrides=["lora.rank=8"]).lora.scale == 16
    for wrong in ("16", "r=", "q=16"):
        with pytest.raises(InputError, match="is not accepted; expected r=16"):
            parse_lora(wrong)
    with pytest.raises(InputError, match=r"expected a rank beside them, such as lora\.rank=16"):
        make_config(overrides=["lora.alpha=3"])
    with pytest.raises(InputError, match=r"setting 'lora\.rank': 0 is not accepted; must be greater than 0"):
        make_config(overrides=parse_lora("r=0"))
    assert len({make_config(overrides=parse_lora(text)).digest() for text in ("", "r=1", "r=1,alpha=3", "r=1,targets=key")}) == 4


def test_what_cannot_be_adapted_is_refused(tiny_model, monkeypatch):
    backbone = load_backbone(str(tiny_model))
    with pytest.raises(
        InputError, match=r"lora.targets: 'q_proj' is no linear layer of .* \(roberta\); expected some of dense, key"
    ):
        adapt(backbone, LoraSettings(rank=2, targets=("q_proj",)), 0)
    assert adapt(backbone, LoraSettings(), 0) == ""
    assert adapt(backbone, LoraSettings(rank=2, targets=("query",)), 0).startswith("LoRA of rank 2 on 2 layers: 256 numbers")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(ranks, "FullyShardedDataParallelPlugin", lambda: type("Plugin", (), {"fsdp_version": 2}))
    with pytest.raises(InputError, match="a trunk with adapters cannot be sharded"):
        ranks.shard(MultiTask(backbone, {}), type("Accelerator", (), {"num_processes": 2}))
    monkeypatch.setattr("prefinetune.lora.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"PEFT is not installed: pip install 'prefinetune\[lora\]'"):
        check_lora(LoraSettings(rank=2))
