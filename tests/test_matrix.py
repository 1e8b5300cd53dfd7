"""Every architecture with every family that it can learn: one short run each, which leaves plain Transformers models with equal
logits. And what an architecture cannot learn is refused before any data is read.

The models are tiny and random, with a tokenizer of one token per word that marks texts as the architecture's own does.
"""

import json
import math
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import models, pre_tokenizers, processors

from microworld import PROBLEMS, SEVERAL, TAGS, Problem, World, make_task, vocabulary
from prefinetune import finetune, train
from prefinetune.batch import Drawn, make_batch
from prefinetune.errors import InputError
from prefinetune.evaluate import predict, readable
from prefinetune.export import assemble, load_head, save_task_model
from prefinetune.families import Denoising, Generation, Regression, Segment
from prefinetune.model import MultiTask
from prefinetune.pretrained import load_backbone
from prefinetune.sources import Files
from prefinetune.splits import OpenTask, open_task
from prefinetune.store import build_store, encode_split
from prefinetune.task import Suite, Task
from prefinetune.tokenizer import Tokenizer, load_tokenizer
from prefinetune.train import Run


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More cost time on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- the architectures


class Style(NamedTuple):
    """How a tokenizer marks texts."""

    specials: str  # in the order of their ids, from 0
    single: str
    pair: str
    roles: dict[str, str]
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")


BERT = Style(
    "[PAD] [UNK] [CLS] [SEP] [MASK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1",
    {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    ("input_ids", "token_type_ids", "attention_mask"),
)  # fmt: skip
MODERNBERT = BERT._replace(inputs=("input_ids", "attention_mask"))
ROBERTA = Style(
    "<s> <pad> </s> <unk> <mask>", "<s> $A </s>", "<s> $A </s> </s> $B </s>",
    {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>",
     "unk_token": "<unk>", "mask_token": "<mask>"},
)  # fmt: skip
MBART = ROBERTA._replace(specials=f"{ROBERTA.specials} en_XX", single="$A </s> en_XX", pair="$A </s> $B </s> en_XX")
T5 = Style(
    "<pad> </s> <unk> <extra_id_0> <extra_id_1> <extra_id_2>", "$A </s>", "$A </s> $B </s>",
    {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
)  # fmt: skip

LAYERS = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.2,
    "max_position_embeddings": 40,
}  # fmt: skip
RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
BART_LAYERS = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "init_std": 0.2, "max_position_embeddings": 40,
}  # fmt: skip
T5_LAYERS = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

ENCODERS = {
    "roberta": (ROBERTA, transformers.RobertaConfig, LAYERS | {"type_vocab_size": 1}),
    "bert": (BERT, transformers.BertConfig, LAYERS),
    "deberta-v2": (BERT, transformers.DebertaV2Config, LAYERS | RELATIVE),
    "electra": (BERT, transformers.ElectraConfig, LAYERS | {"embedding_size": 8}),
    "modernbert": (MODERNBERT, transformers.ModernBertConfig, LAYERS | {"local_attention": 8, "classifier_pooling": "mean"}),
    "mpnet": (ROBERTA, transformers.MPNetConfig, LAYERS),
    "xlm-roberta": (ROBERTA, transformers.XLMRobertaConfig, LAYERS | {"type_vocab_size": 1}),
    "albert": (BERT, transformers.AlbertConfig, LAYERS | {"embedding_size": 8}),
}
ENCODER_DECODERS = {
    "bart": (ROBERTA, transformers.BartConfig, BART_LAYERS),
    "mbart": (MBART, transformers.MBartConfig, BART_LAYERS | {"scale_embedding": True}),
    "t5": (T5, transformers.T5Config, T5_LAYERS),
    "t5-v1.1": (T5, transformers.T5Config, T5_LAYERS | GATED),
    "mt5": (T5, transformers.MT5Config, T5_LAYERS | GATED),
}
ARCHITECTURES = ENCODERS | ENCODER_DECODERS
STARTS = {"bart": "</s>", "mbart": "en_XX", "t5": "<pad>", "t5-v1.1": "<pad>", "mt5": "<pad>"}  # what a decoder reads first
UNTIED = ("t5-v1.1", "mt5")  # their checkpoints have an output layer beside the embeddings, and Transformers goes by that


def save_config(architecture: str, folder: Path, **wrong: Any) -> Any:
    """The configuration and the tokenizer of a model, saved; `wrong` replaces parts of the tokenizer's style."""
    style, config_class, shape = ARCHITECTURES[architecture]
    style = style._replace(**wrong)
    specials = style.specials.split()
    ids = {word: at for at, word in enumerate([*specials, *vocabulary()])}
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(style, ids), model_max_length=40, model_input_names=list(style.inputs), **style.roles,
        additional_special_tokens=[token for token in specials if token not in style.roles.values()],
    )  # fmt: skip
    words.save_pretrained(folder)
    special_ids = {f"{role}_token_id": getattr(words, f"{role}_token_id") for role in ("pad", "bos", "eos", "cls", "sep")}
    config = config_class(vocab_size=len(ids), **special_ids, **shape)
    config.save_pretrained(folder)
    return config


def word_tokenizer(style: Style, ids: dict[str, int]) -> Any:
    from tokenizers import Tokenizer

    words = Tokenizer(models.WordLevel(ids, unk_token=style.roles["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special_tokens = [(token, ids[token]) for token in style.specials.split()]
    words.post_processor = processors.TemplateProcessing(single=style.single, pair=style.pair, special_tokens=special_tokens)
    return words


def save_model(architecture: str, folder: Path) -> Path:
    config = save_config(architecture, folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, MATRIX[architecture, "raw"]).from_config(config)
        if architecture in UNTIED:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    model.save_pretrained(folder)
    return folder


# ---- the tasks


def tell(world: World, rng: random.Random) -> dict[str, Any]:
    sentence = next(world.sentences(rng))
    score = -1 + sum(value == "good" for value in (sentence.adjective.polarity, sentence.outcome))
    return {"text": sentence.text, "score": score, "target": f"the {sentence.noun2.text} {sentence.verb.text} ."}


DECODING = {"num_beams": 2, "max_new_tokens": 6}
TASKS = {  # with 12 rows to train on and 4 to validate
    name: make_task(0, name, problem, {"train": 12, "validation": 4})
    for name, problem in {
        "label": PROBLEMS["subject-category"],
        "pair": PROBLEMS["larger-subject"],
        "several": SEVERAL,
        "number": Problem("number", Regression("text", label="score", low=-1, high=3), tell),
        "choice": PROBLEMS["choose-large"],
        "fill": PROBLEMS["fill-verb"],
        "span": PROBLEMS["find-plant"],
        "tags": TAGS,
        "raw": Problem("raw", Denoising("text"), tell),
        "retelling": Problem("retelling", Generation("text", "target", decoding=DECODING), tell),
    }.items()
}

# ---- the matrix

CLASSES = {  # family -> the class that loads the model of a task
    "classification": "AutoModelForSequenceClassification",
    "multi-label": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "choice": "AutoModelForMultipleChoice",
    "span": "AutoModelForQuestionAnswering",
    "tagging": "AutoModelForTokenClassification",
    "denoising": "AutoModelForMaskedLM",
}
T5_CLASSES = CLASSES | {
    "choice": "AutoModelForSequenceClassification",
    "denoising": "AutoModelForSeq2SeqLM",
    "generation": "AutoModelForSeq2SeqLM",
}
BART_CLASSES = {kind: name for kind, name in T5_CLASSES.items() if kind != "tagging"}
MATRIX = {
    (architecture, name): classes[task.family.kind]
    for architecture in ARCHITECTURES
    for classes in [CLASSES if architecture in ENCODERS else BART_CLASSES if "bart" in architecture else T5_CLASSES]
    for name, task in TASKS.items()
    if task.family.kind in classes
}


class Trained(NamedTuple):
    """A run on all tasks that apply, and its model taken up again from the run's folder."""

    start: Path
    run: Run
    model: MultiTask
    tokenizer: Tokenizer
    opened: dict[str, OpenTask]  # by the tasks' short names
    outputs: dict[str, list[tuple[Segment, torch.Tensor]]]  # three training examples of each task, all in one batch per layout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """From an architecture to what it has learned."""
    folder = tmp_path_factory.mktemp("matrix")

    @cache
    def learn(architecture: str) -> Trained:
        tasks = {name: task for name, task in TASKS.items() if (architecture, name) in MATRIX}
        config = {
            "mixture": {"sub_batches": 6 * len(tasks), "sub_batch_size": 2},
            "optimizer": {"learning_rate": 1e-2},
            "train": {"updates": 2, "log_every": 1, "checkpoint_every": None},
        }
        start, out, stores = save_model(architecture, folder / architecture), folder / f"{architecture}-run", folder / "stores"
        run = train(Suite("matrix", tuple(tasks.values())), start, out, config=config, cache=stores)

        tokenizer = load_tokenizer(str(run.model), None, transformers.AutoConfig.from_pretrained(run.model))
        opened = {name: open_task(task) for name, task in tasks.items()}
        model = MultiTask(load_backbone(str(run.model)), {one.task.name: one.family for one in opened.values()}, seed=1).eval()
        assert all(load_head(model, task, out) for task in model.families)
        drawn = []
        for one in opened.values():
            store, generator = build_store(one, "train", tokenizer, stores), np.random.default_rng(0)
            examples = [one.family.draw(store[at], tokenizer, generator) for at in range(3)]
            drawn += [Drawn(example, one.task.name, one.family, 1.0) for example in examples]
        outputs: dict[str, list[tuple[Segment, torch.Tensor]]] = {name: [] for name in opened}
        own = model.layout(tokenizer)
        for layout in dict.fromkeys((own, own._replace(packed=False))):
            with torch.no_grad():
                for name, (segment, output, _) in zip(opened, model(make_batch(drawn, layout)), strict=True):
                    outputs[name].append((segment, output))
        return Trained(start, run, model, tokenizer, opened, outputs)

    return learn


def predictions(one: Trained, name: str) -> list[Any]:
    """What the model says of the validation rows, as a run writes it."""
    task = one.opened[name].task.name
    examples = encode_split(one.opened[name], "validation", one.tokenizer)
    found = predict(one.model, one.tokenizer, task, examples)
    return [line["prediction"] for line in readable(one.model.families[task], examples, found)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_update_of_a_run_mixes_all_families_and_every_task_is_scored(architecture, trained):
    run, tasks = trained(architecture).run, trained(architecture).model.families.keys()
    updates = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [update["loss_by_task"].keys() for update in updates] == [tasks, tasks]
    assert all(math.isfinite(loss) for update in updates for loss in update["loss_by_task"].values())
    assert run.scores.keys() == tasks
    assert all(math.isfinite(score) for scores in run.scores.values() for score in scores.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_that_is_taken_up_again_predicts_what_it_wrote(architecture, trained):
    one = trained(architecture)
    for name, opened in one.opened.items():
        lines = (one.run.folder / "predictions" / f"{opened.task.slug}.jsonl").read_text().splitlines()
        assert len(lines) == 4
        expected = predictions(one, name)
        found = [json.loads(line)["prediction"] for line in lines]
        assert found == (pytest.approx(expected, abs=1e-6) if name == "number" else expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_before_training_the_language_model_is_the_checkpoints_own(architecture, trained):
    one, task = trained(architecture), TASKS["raw"]
    ours = assemble(MultiTask(load_backbone(str(one.start)), {task.name: task.family}), task.name).state_dict()
    theirs = getattr(transformers, MATRIX[architecture, "raw"]).from_pretrained(one.start).state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# ---- what a run leaves is plain Transformers

LOADING = """
import json, sys, torch, transformers
from safetensors.torch import save_file
torch.set_num_threads(1)
found = {}
for folder, auto_model, inputs, texts in json.load(open(sys.argv[1])):
    model = getattr(transformers, auto_model).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        for at, one in enumerate(inputs):
            output = model(**{name: torch.tensor(value) for name, value in one.items()})
            logits = output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)
            found[f"{folder} {at}"] = logits[0].contiguous()
        for at, text in enumerate(texts):
            found[f"{folder} text {at}"] = model.generate(**tokenizer(text, return_tensors="pt"))[0]
save_file(found, sys.argv[2])
assert "prefinetune" not in sys.modules
"""


def inputs_of(segment: Segment, tokenizer: Tokenizer, auto_model: str) -> list[dict[str, Any]]:
    """Each sequence of a segment alone, as the class takes it."""
    inputs = []
    for example in segment.examples:
        for ids, first in zip(example.sequences, example.first, strict=True):
            one = {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)}
            if tokenizer.token_types:
                one["token_type_ids"] = [0] * first + [1] * (len(ids) - first)
            if example.output is not None and len(example.output):
                one["labels"] = example.output.tolist()
            inputs.append({name: [[value]] if "MultipleChoice" in auto_model else [value] for name, value in one.items()})
    return inputs


@pytest.fixture(scope="module")
def plain(trained, tmp_path_factory):
    """Logits and texts of every task's saved model, from one process that never imports this package."""
    folder, jobs = tmp_path_factory.mktemp("plain"), []
    for (architecture, name), auto_model in MATRIX.items():
        one, place = trained(architecture), folder / architecture / name
        opened, (segment, _) = one.opened[name], one.outputs[name][0]
        save_task_model(one.model, opened.task.name, one.tokenizer, place)
        texts = list(opened.split("validation").rows["text"]) if name == "retelling" else []
        jobs.append([str(place), auto_model, inputs_of(segment, one.tokenizer, auto_model), texts])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", LOADING, folder / "jobs.json", folder / "out.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {key.removeprefix(f"{folder}/"): value for key, value in load_file(folder / "out.safetensors").items()}


@pytest.mark.parametrize(("architecture", "name"), MATRIX)
def test_logits_in_a_batch_of_all_families_are_those_of_plain_transformers_on_each_sequence_alone(
    architecture, name, trained, plain
):
    """Padded, and as a stream where the architecture reads streams."""
    layouts = trained(architecture).outputs[name]
    assert len(layouts) == 1 + (architecture in ("albert", "bart", "bert", "electra", "modernbert", "roberta", "xlm-roberta"))
    for segment, output in layouts:
        assert output[output.isfinite()].std() > 1e-3  # they are not equal for being all the same
        assert_plain(segment, output, lambda sequence: plain[f"{architecture}/{name} {sequence}"])


def assert_plain(segment, output, alone_at):
    sequence = 0
    for at, example in enumerate(segment.examples):
        alone = [alone_at(sequence + option) for option in range(len(example.sequences))]
        sequence += len(alone)
        match segment.family.kind:
            case "classification" | "multi-label":
                ours, theirs = output[at], alone[0]
            case "regression":  # the saved model answers in the data's units, from -1 to 3
                ours, theirs = 4 * output[at, None] - 1, alone[0]
            case "choice":
                ours, theirs = output[at, : len(alone)], torch.cat(alone)
            case "span":
                ours, theirs = output[at, : len(example.sequences[0])], alone[0]
            case "tagging":
                owner, _, places, _ = segment.targets
                ours, theirs = output[owner == at], alone[0][places[owner == at]]
            case "denoising" | "generation":
                owner, places, _ = segment.targets
                ours, theirs = output[owner == at], alone[0][places[owner == at]]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_plain_transformers_generates_what_we_predict(architecture, trained, plain):
    one, written = trained(architecture), [plain[f"{architecture}/retelling text {at}"] for at in range(4)]
    assert {one.tokenizer.tokenizer.decode(ids[0]) for ids in written} == {STARTS[architecture]}
    texts = one.tokenizer.texts(written)
    assert texts == predictions(one, "retelling")
    assert all(texts)


def test_tagging_alone_moves_t5s_encoder_and_leaves_its_decoder_as_it_was(tmp_path, trained):
    start = save_model("t5", tmp_path / "t5")
    config = {"train": {"updates": 2, "log_every": 1, "checkpoint_every": None}, "objective": {"r3f": 1.0, "noise": 0.1}}
    run = train(Suite("tags", (TASKS["tags"],)), start, tmp_path / "run", config=config, cache=tmp_path / "stores")
    updates = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < update["divergence"] < math.inf for update in updates)
    ((segment, _),) = trained("t5").outputs["tags"]
    assert [len(example.output) for example in segment.examples] == [0, 0, 0]  # nor has the decoder anything to read
    before, after = (transformers.AutoModel.from_pretrained(folder).state_dict() for folder in (start, run.model))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"encoder", "shared"} <= moved
    assert not [name for name in before if "decoder.block" in name and not torch.equal(before[name], after[name])]


# ---- what a model cannot learn

UNMASKED = {"roles": {role: token for role, token in ROBERTA.roles.items() if role != "mask_token"}}
UNENDED = {"single": "$A", "pair": "$A $B"}
REFUSED = [  # architecture, what is wrong with its tokenizer, task, message
    *((name, {}, "retelling", "generation needs a decoder, and this model is an encoder") for name in ENCODERS),
    ("roberta", UNMASKED, "raw", "denoising needs a mask token, and this tokenizer has none"),
    ("bart", UNMASKED, "raw", "denoising needs a mask token, and this tokenizer has none"),
    ("t5", {"specials": "<pad> </s> <unk>"}, "raw", "needs sentinel tokens (<extra_id_0>, ...), and this tokenizer has none"),
    *(
        ("bart", UNENDED, name, "this tokenizer does not end a text with one")
        for name in ("label", "several", "number", "choice")
    ),
    *((name, {}, "tags", f"model type '{name}' has no TokenClassification head in Transformers") for name in ("bart", "mbart")),
    *(("bart", UNENDED, name, "a decoder's targets must end, and this tokenizer adds no") for name in ("retelling", "raw")),
    ("t5", UNENDED, "label", "classification on an encoder-decoder is read off the end-of-sequence token"),
]


@pytest.mark.parametrize("stage", [lambda task, *rest: train(Suite("one", (task,)), *rest), finetune], ids=["train", "finetune"])
@pytest.mark.parametrize(("architecture", "wrong", "name", "message"), REFUSED)
def test_what_a_model_cannot_learn_is_refused_before_any_data_is_read(architecture, wrong, name, message, stage, tmp_path):
    model = tmp_path / "model"
    model_type = save_config(architecture, model, **wrong).model_type
    task = Task("mine", Files(str(tmp_path / "nowhere.csv")), TASKS[name].family)
    with pytest.raises(InputError) as refusal:
        stage(task, model, tmp_path / "out")
    assert str(refusal.value).startswith(f"task 'mine' with model '{model}' ({model_type}): ")
    assert message in str(refusal.value)
    assert not (tmp_path / "out").exists()
