"""benchmarks/throughput.py on a tiny model: that all variants learn from the same, and that what is counted is so."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from prefinetune.families import Encoded

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import throughput
import variants
import workload

BATCH, GROUPS = 8, 3
KEYS = ["longest", "script", "tuned", "muppet", "muppet-r3f", "sentence-transformers", "ours", "ours-r3f"]


@pytest.fixture(scope="module")
def lengths():
    """Limits that the tiny model takes."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (workload, variants):
            patch.setattr(module, "LENGTH", 32)
            patch.setattr(module, "SPAN_LENGTH", 48)
        yield


@pytest.fixture(scope="module")
def mix(lengths, tiny_model, world_suite, tmp_path_factory):
    """Two rounds of all families but self-supervised ones."""
    tokenizers = workload.tokenizers_of(str(tiny_model))
    suite, cache = world_suite.without("denoising"), tmp_path_factory.mktemp("stores")
    return workload.real_mix("R", "tiny", suite, tokenizers, None, 2, GROUPS, BATCH, cache)


@pytest.fixture(scope="module")
def setup(tiny_model):
    return variants.Setup(str(tiny_model), folder=str(tiny_model))


@pytest.fixture(scope="module")
def found(mix, setup):
    with variants.quiet_peers():
        entry = throughput.compare(mix, setup, KEYS, "processor")
    entry["exactness"] = throughput.exactness(mix, setup)
    settings = {"model": "tiny", "clock": "processor", "threads": 1}
    whole = {"machine": throughput.machine("cpu"), "settings": settings, "mixes": {"R": entry}}
    return {**whole, "goals": throughput.goals(whole)}


def entries(found, key):
    return [entry["variants"][key] for entry in found["mixes"]["R"]["rounds"]]


def test_every_variant_makes_a_step_per_batch_of_the_same_examples(found):
    for entry in found["mixes"]["R"]["rounds"]:
        assert {"longest", "script", "tuned", "muppet", "muppet-r3f", "ours", "ours-r3f"} <= entry["variants"].keys()
        assert {one["examples"] for one in entry["variants"].values()} == {GROUPS * BATCH}
        assert {one["steps"] for key, one in entry["variants"].items() if key != "tasknet"} == {GROUPS}
        assert len({one["tokens"] for key, one in entry["variants"].items() if key != "tuned"}) == 1


def test_the_updates_of_a_round_are_its_groups_mixed(mix):
    for examples in mix.rounds:
        grouped = Counter((group.task, index) for group in examples.groups for index in group.examples.tolist())
        mixed = Counter((part.task, index) for update in examples.updates for part in update for index in part.examples.tolist())
        assert grouped == mixed
        assert max(grouped.values()) == 1
        assert [sum(len(part.examples) for part in update) for update in examples.updates] == [BATCH] * GROUPS
        assert any(len(update) > 1 for update in examples.updates)
    assert len({frozenset(group.task for group in examples.groups) for examples in mix.rounds}) == 2, "rounds cover other tasks"


def test_what_each_variant_computes_is_counted_with_its_padding(found):
    for at, ours in enumerate(entries(found, "ours")):
        computed = {
            key: entries(found, key)[at]["computed tokens"] for key in ("longest", "script", "muppet", "muppet-r3f", "ours-r3f")
        }
        assert ours["computed tokens"] == ours["tokens"], "a stream has no padding"
        assert computed["ours-r3f"] == 2 * ours["tokens"]
        assert ours["tokens"] < computed["longest"] < computed["script"]
        assert computed["muppet-r3f"] == 2 * computed["muppet"]
    assert found["mixes"]["R"]["variants"]["ours"]["padding"] == 0 < found["mixes"]["R"]["variants"]["longest"]["padding"] < 1


def test_trainers_padding_is_that_of_each_batch_alone(found, mix):
    """Against a count from the lengths."""
    for examples, entry in zip(mix.rounds, found["mixes"]["R"]["rounds"], strict=True):
        longest = 0
        for group in examples.groups:
            lengths = [len(ids) for one in mix.examples(group) for ids in one.sequences]
            longest += len(lengths) * max(lengths)
        assert entry["variants"]["longest"]["computed tokens"] == longest


def test_ratios_are_to_the_reference_and_peers_that_do_not_fit_are_told(found):
    mine = found["mixes"]["R"]["variants"]
    assert mine["longest"]["ratio"] == {"all": 1, "median": 1, "low": 1, "high": 1}
    rounds = [
        (a["tokens"] / a["processor"]) / (b["tokens"] / b["processor"])
        for a, b in zip(entries(found, "ours"), entries(found, "longest"), strict=True)
    ]
    assert mine["ours"]["ratio"]["low"] == pytest.approx(min(rounds))
    assert min(rounds) <= mine["ours"]["ratio"]["all"] <= max(rounds)
    assert "one head for all datasets" in found["mixes"]["R"]["skipped"]["sentence-transformers"]


def test_loss_and_gradient_are_those_of_the_plain_step_and_a_difference_would_be_seen(found, mix, setup, monkeypatch):
    exact = found["mixes"]["R"]["exactness"]
    assert exact["exact"]
    assert exact["families"] == ["choice", "classification", "regression", "span"]
    plain = variants.plain_losses
    monkeypatch.setattr(variants, "plain_losses", lambda *given: (plain(*given)[0] * 1.001, plain(*given)[1]))
    assert not throughput.exactness(mix, setup)["exact"]


def test_a_peer_that_fails_is_left_out_with_its_reason_and_ours_must_not_fail(mix, setup, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(variants.Muppet, "update", fail)
    entry = throughput.compare(mix, setup, ["longest", "muppet", "ours"], "processor")
    assert entry["skipped"] == {"muppet": "failed: RuntimeError: out of luck"}
    assert set(entry["variants"]) == {"longest", "ours"}
    monkeypatch.setattr(variants.Ours, "step", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        throughput.compare(mix, setup, ["ours"], "processor")


def test_sentence_transformers_learns_from_texts_of_the_same_tokens(lengths, tiny_model, setup, world_suite, tmp_path):
    pytest.importorskip("sentence_transformers")
    tokenizers = workload.tokenizers_of(str(tiny_model))
    mix = workload.real_mix("C", "tiny", world_suite.select("classification"), tokenizers, None, 1, 2, BATCH, tmp_path)
    with variants.quiet_peers():
        entry = throughput.compare(mix, setup, ["longest", "sentence-transformers", "ours"], "processor")
    assert not entry["skipped"]
    one, reference = (entry["rounds"][0]["variants"][key] for key in ("sentence-transformers", "longest"))
    assert one["steps"] == reference["steps"] == 2
    beside = 2 * BATCH  # one of the tasks has one text: an empty one beside it makes two more tokens
    assert one["computed tokens"] == reference["computed tokens"] + beside, "these texts come to the same tokens again"


def test_operations_are_those_that_pytorch_counts():
    """Forward and backward pass of one sequence without padding, in eager attention, whose products all are seen."""
    bert = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, vocab_size=50
    )
    bart = transformers.BartConfig(
        vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=48, decoder_ffn_dim=48, pad_token_id=0,
    )  # fmt: skip
    ids, output = torch.arange(5, 28)[None], torch.arange(5, 16)[None]
    encoder = transformers.BertModel._from_config(bert, attn_implementation="eager", add_pooling_layer=False)
    with FlopCounterMode(display=False) as counted:
        encoder(input_ids=ids).last_hidden_state.sum().backward()
    work = workload.Work.of([Encoded([ids[0].numpy()], [23], np.zeros(1))])
    assert throughput.model_flops(bert, work) == counted.get_total_flops()

    both = transformers.BartForConditionalGeneration._from_config(bart, attn_implementation="eager")
    with FlopCounterMode(display=False) as counted:
        both(input_ids=ids, labels=output).loss.backward()
    work = workload.Work.of([Encoded([ids[0].numpy()], [23], np.zeros(0), output=output[0].numpy())])
    hidden = 3 * 12 * 32 * 11**2 / 2  # the half of the decoder's pairs that PyTorch computes and masks
    assert throughput.model_flops(bart, work) + hidden == counted.get_total_flops()


def test_length_grouping_gives_batches_of_similar_lengths_that_cover_all():
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 128, 1600).tolist()
    batches = [[lengths[at] for at in workload.similar(lengths, 10**6, number, 32)] for number in range(40)]
    assert np.mean([sum(batch) / (32 * max(batch)) for batch in batches]) > 0.95
    assert abs(np.mean(batches) - np.mean(lengths)) < 6, "long and short ones come as often as they are"
    assert np.mean([sum(one) / (32 * max(one)) for one in (generator.choice(lengths, 32) for _ in range(40))]) < 0.6


def test_missed_goals_are_named_and_the_page_shows_every_variant(found):
    goals = {check["goal"]: check for check in found["goals"]}
    assert {
        "R: ours / Trainer padded to longest",
        "R: MFU",
        "R: ours with R3F / MUPPET step with R3F",
        "R: exact to 1e-05",
    } <= goals.keys()
    for check in goals.values():
        assert check["met"] == (check["found"] >= check["expected"])
    page = throughput.chart(found)
    assert all(one["label"] in page for one in found["mixes"]["R"]["variants"].values())
    assert "cdn.plot.ly" not in page.split("<body")[0]
    throughput.show(found)


def test_random_mixes_have_the_shape_they_tell(monkeypatch):
    monkeypatch.setattr(workload, "LENGTH", 128)
    monkeypatch.setattr(workload, "SPAN_LENGTH", 384)
    pair = workload.made_up_tokenizer()
    mix = workload.load_mix("S", pair, None, 2)
    work = [workload.Work.of(mix.examples(group)) for examples in mix.rounds for group in examples.groups]
    assert sum(one.examples for one in work) == 8 * 32
    assert 85 < sum(one.tokens for one in work) / (8 * 32) < 100
    decoding = workload.load_mix("E", pair, None, 8)
    work = workload.Work.of(
        [one for examples in decoding.rounds for group in examples.groups for one in decoding.examples(group)]
    )
    assert 25 < work.outputs / work.examples < 45
    assert 240 < (work.tokens - work.outputs) / work.examples < 330
