"""What a run leaves is plain Transformers: other programs load it, without this package, and get the same outputs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from prefinetune.evaluate import predict
from prefinetune.export import assemble, load_head, save_task_model, save_trunk_and_heads, slug
from prefinetune.families import Classification, Regression
from prefinetune.model import MultiTask
from prefinetune.pretrained import load_backbone
from prefinetune.splits import open_task
from prefinetune.store import encode_split
from prefinetune.tokenizer import load_tokenizer

AUTO_MODELS = {  # task -> what its folder must load with
    "micro/subject-category": "AutoModelForSequenceClassification",
    "micro/larger-subject": "AutoModelForSequenceClassification",
    "micro/goodness": "AutoModelForSequenceClassification",
    "micro/choose-large": "AutoModelForMultipleChoice",
    "micro/find-large": "AutoModelForQuestionAnswering",
    "micro/text": "AutoModelForMaskedLM",
}
LOADING = """
import json, sys, torch, transformers
from safetensors.torch import save_file
jobs, inputs, out = json.load(open(sys.argv[1])), torch.tensor(json.loads(sys.argv[2])), sys.argv[3]
found = {}
for folder, auto_model in jobs:
    model = getattr(transformers, auto_model).from_pretrained(folder).eval()
    assert transformers.AutoTokenizer.from_pretrained(folder)("the bali").input_ids[0] == 0
    with torch.no_grad():
        output = model(inputs[None] if auto_model.endswith("Choice") else inputs)
    for name in ("last_hidden_state", "logits", "start_logits", "end_logits"):
        if name in output:
            found[f"{folder}|{name}"] = output[name].contiguous()
save_file(found, out)
assert "prefinetune" not in sys.modules
"""


@pytest.fixture(scope="module")
def opened(world_suite):
    return {task.name: open_task(task) for task in world_suite}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(str(tiny_model), None, transformers.AutoConfig.from_pretrained(tiny_model))


@pytest.fixture(scope="module")
def model(tiny_model, opened):
    """The small suite's model, every weight moved a little so that none is as it was loaded or initialised."""
    model = MultiTask(load_backbone(str(tiny_model)), {name: one.family for name, one in opened.items()})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def saved(model, tokenizer, tmp_path_factory):
    """The run's folder, with the model of every task in tasks/."""
    folder = tmp_path_factory.mktemp("saved")
    save_trunk_and_heads(model, tokenizer, folder)
    for task in AUTO_MODELS:
        save_task_model(model, task, tokenizer, folder / "tasks" / slug(task))
    return folder


@pytest.fixture(scope="module")
def loaded(saved, tmp_path_factory):
    """Outputs on `ids` of everything saved, from a process that never imports this package."""
    jobs = [[str(saved / "model"), "AutoModel"]]
    jobs += [[str(saved / "tasks" / slug(task)), auto_model] for task, auto_model in AUTO_MODELS.items()]
    folder = tmp_path_factory.mktemp("loaded")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", LOADING, folder / "jobs.json", json.dumps(ids().tolist()), folder / "out.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")


def ids():
    return torch.tensor(np.random.default_rng(0).integers(5, 150, (3, 12)))


def test_the_saved_trunk_gives_the_same_states_in_plain_transformers(model, saved, loaded):
    with torch.no_grad():
        expected = model.backbone.trunk(ids()).last_hidden_state
    assert torch.equal(loaded[f"{saved / 'model'}|last_hidden_state"], expected)


@pytest.mark.parametrize("task", AUTO_MODELS)
@torch.no_grad()
def test_the_saved_model_of_a_task_gives_the_logits_we_train_on(task, model, saved, loaded):
    states = model.backbone.trunk(ids())
    head, place = model.head(task).model, f"{saved / 'tasks' / slug(task)}|"
    if "QuestionAnswering" in AUTO_MODELS[task]:
        expected = head.qa_outputs(states.last_hidden_state).unbind(-1)
        found = (loaded[place + "start_logits"], loaded[place + "end_logits"])
    elif "Choice" in AUTO_MODELS[task]:
        expected, found = (head.classifier(states.pooler_output).T,), (loaded[place + "logits"],)
    elif "MaskedLM" in AUTO_MODELS[task]:
        expected, found = (head.lm_head(states.last_hidden_state),), (loaded[place + "logits"],)
    else:
        expected, found = (head.classifier(states.last_hidden_state),), (loaded[place + "logits"],)
    if task == "micro/goodness":
        expected = (expected[0] * 4,)  # the data's units: from 0 to 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_a_classification_pipeline_answers_with_the_names_of_the_labels(model, tokenizer, saved, opened):
    task = "micro/subject-category"
    folder = saved / "tasks" / slug(task)
    texts = opened[task].split("validation").rows["text"]
    answers = transformers.pipeline("text-classification", model=str(folder), device="cpu")(list(texts))
    labels = opened[task].family.labels
    assert sorted(labels) == ["animal", "food", "plant", "tool"]
    found = predict(model, tokenizer, task, encode_split(opened[task], "validation", tokenizer))
    assert [answer["label"] for answer in answers] == [labels[index] for index in found]
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {str(index): label for index, label in enumerate(labels)}
    assert config["label2id"] == {label: index for index, label in enumerate(labels)}


def test_a_saved_regression_model_answers_in_the_datas_units(model, tokenizer, saved, opened):
    task = "micro/goodness"
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(saved / "tasks" / slug(task))
    assert plain.config.problem_type == "regression"
    rows = list(opened[task].split("validation").rows["text"])
    with torch.no_grad():
        answers = plain(**tokenizer.tokenizer(rows, padding=True, return_tensors="pt")).logits[:, 0].tolist()
    found = predict(model, tokenizer, task, encode_split(opened[task], "validation", tokenizer))
    assert answers == pytest.approx(found, abs=1e-5)


def test_a_fill_mask_pipeline_fills_with_words_of_the_vocabulary(saved):
    fill = transformers.pipeline("fill-mask", model=str(saved / "tasks" / slug("micro/text")), device="cpu")
    answers = fill("the bali <mask> balas the bali balo .")
    assert all(answer["token_str"] in fill.tokenizer.get_vocab() for answer in answers)


def test_assembling_does_not_change_the_model_it_was_made_from(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for task in AUTO_MODELS:
        assemble(model, task)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- heads beside the trunk


def new_model(tiny_model, families):
    return MultiTask(load_backbone(str(tiny_model)), families, seed=9)


def test_a_head_comes_back_as_it_was_saved(model, saved, tiny_model):
    def same(task):
        old, new = model.head(task).state_dict(), again.head(task).state_dict()
        own = [name for name in old if "decoder.weight" not in name]  # that one is the trunk's embeddings
        return old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in own)

    again = new_model(tiny_model, model.families)
    assert not any(same(task) for task in model.families)
    assert all(load_head(again, task, saved) for task in model.families)
    assert all(same(task) for task in model.families)


def test_a_head_is_not_taken_for_other_labels_another_range_or_an_unknown_task(model, saved, tiny_model, opened):
    category, goodness = "micro/subject-category", "micro/goodness"
    others = {
        category: Classification("text", labels=tuple(reversed(opened[category].family.labels))),
        goodness: Regression("text", label="score", low=0, high=5),
        "micro/unknown": Classification("text", labels=opened[category].family.labels),
    }
    again = new_model(tiny_model, others)
    before = {name: tensor.clone() for name, tensor in again.state_dict().items()}
    assert [load_head(again, task, saved) for task in others] == [False, False, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


def test_heads_say_which_tasks_they_are_for(saved):
    about = json.loads((saved / "heads" / "choice" / "head.json").read_text())
    assert about["tasks"] == ["micro/choose-large", "micro/fill-verb"]
    assert about["class"] == "AutoModelForMultipleChoice"
