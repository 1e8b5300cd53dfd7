"""Models taken out of runs: plain Transformers loads each and gives our logits, `load` gives all tasks of a run back, and what a
person gets wrong is answered."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.pipelines import SUPPORTED_TASKS

import microworld
import prefinetune.publish
from prefinetune import (
    Classification,
    Denoising,
    Files,
    Generation,
    MultiLabel,
    Rows,
    Suite,
    Tagging,
    Task,
    export,
    finetune,
    load,
    train,
)
from prefinetune.catalog import catalog
from prefinetune.errors import InputError
from prefinetune.evaluate import ask
from prefinetune.families.base import plain
from prefinetune.files import read_records
from prefinetune.load import family_of, read_about

SETTINGS = {"train": {"updates": 2, "checkpoint_every": None}, "optimizer": {"learning_rate": 0.01}, "data": {"leaks": "off"}}
DECODING = {"num_beams": 2, "max_new_tokens": 6}
# What loads each task's folder, and gives its logits for sequences of ids, in a process that never imports this package.
LOADING = """
import json, sys, torch, transformers
from safetensors.torch import save_file
jobs, out, found, answers = json.load(open(sys.argv[1])), sys.argv[2], {}, {}
for job in jobs:
    model = getattr(transformers, job["class"]).from_pretrained(job["folder"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"])
    for at, (ids, written) in enumerate(job["sequences"]):
        ids = torch.tensor(ids)[None]
        more = {} if written is None else {"labels": torch.tensor(written)[None]}
        with torch.no_grad():
            output = model(ids[None] if job["class"].endswith("Choice") else ids, **more)
        logits = output["logits"] if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)
        found[f"{job['folder']}|{at}"] = logits[0].contiguous()
    if job["pipeline"]:
        pipe = transformers.pipeline(job["pipeline"], model=job["folder"], device="cpu")
        answers[job["folder"]] = [pipe(text, **job["options"]) for text in job["texts"]]
    elif job["class"] == "AutoModelForSeq2SeqLM":
        ids = [tokenizer(text, return_tensors="pt").input_ids for text in job["texts"]]
        answers[job["folder"]] = [tokenizer.decode(model.generate(one)[0], skip_special_tokens=True) for one in ids]
save_file(found, out)
json.dump(answers, open(out + ".json", "w"))
assert "prefinetune" not in sys.modules
"""
PIPELINES = {
    "classification": "text-classification",
    "multi-label": "text-classification",
    "tagging": "token-classification",
    "denoising": "fill-mask",
}


def made_rows(count: int, seed: int) -> list[dict]:
    """Sentences with words, tags, two labels that go together, and a text to write."""
    sentences = microworld.World(0).sentences(random.Random(seed))
    texts = [next(sentences).text for _ in range(count)]
    return [
        {
            "text": text,
            "words": text.split(),
            "tags": ["B-NOUN" if word.endswith("o") else "O" for word in text.split()],
            "both": [label for label, sign in (("denied", "never"), ("with duni", "duni")) if sign in text],
            "start": " ".join(text.split()[:3]),
        }
        for text in texts
    ]


@pytest.fixture(scope="module")
def suites(world_suite):
    """By the model's name, the tasks that it is trained on: all families that it can learn."""
    tables = Rows({"train": made_rows(40, 0), "validation": made_rows(12, 1)})
    both = Task("my/both", tables, MultiLabel("text", label="both"))
    tags = Task("my/tags", tables, Tagging("words"))
    start = Task("my/start", tables, Generation("text", "start", decoding=DECODING))
    return {"roberta": world_suite.add(both, tags), "bart": world_suite.add(both, start)}


@pytest.fixture(scope="module")
def runs(suites, tiny_model, tiny_bart, tmp_path_factory):
    """By the model's name, (a finished run, its export with a model per task)."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model in (("roberta", tiny_model), ("bart", tiny_bart)):
        train(suites[name], model, folder / name, config=SETTINGS)
        export(folder / name, folder / f"{name}-out", every_task=True)
    return {name: (folder / name, folder / f"{name}-out") for name in suites}


def rows_of(task: Task, split: str = "validation") -> list[dict]:
    return [dict(row) for row in task.source.tables[split]]


def masked(rows):
    """Texts with a word hidden, for those who fill it in."""
    return [{"text": " ".join(["<mask>", *row["text"].split()[1:]])} for row in rows]


CASES = [
    ("roberta", f"micro/{name}")
    for name in ("subject-category", "larger-subject", "find-large", "choose-large", "goodness", "text")
]
CASES += [("roberta", "my/both"), ("roberta", "my/tags"), ("bart", "my/start"), ("bart", "my/both"), ("bart", "micro/find-large")]
CASES += [("bart", "micro/choose-large"), ("bart", "micro/goodness")]


def case_rows(suites, name, task):
    rows = rows_of(suites[name][task])[:4]
    return masked(rows) if isinstance(suites[name][task].family, Denoising) else rows


@pytest.fixture(scope="module")
def ours(runs):
    """By the model's name, the run loaded."""
    return {name: load(run) for name, (run, _) in runs.items()}


def encoded_for(loaded, task, rows):
    family = loaded.family(task)
    if isinstance(family, Generation):
        return family.encode([family.example(row) for row in rows], loaded.tokenizer)
    return loaded.encode(task, [family.unanswered(row) for row in rows])


@pytest.fixture(scope="module")
def plainly(suites, runs, ours, tmp_path_factory):
    """(logits, answers of pipelines and of `generate`) of all exported folders, from a clean process."""
    jobs = []
    for name, task in CASES:
        rows, loaded = case_rows(suites, name, task), ours[name]
        family = loaded.family(task)
        examples = encoded_for(loaded, task, rows)
        is_single = "pair" not in vars(family) or family.pair is None
        jobs.append({
            "folder": str(runs[name][1] / "tasks" / task.replace("/", "-")),
            "class": loaded.model.head(task).auto_model,
            "sequences": [
                (ids.tolist(), one.output.tolist() if one.output is not None and len(one.output) else None)
                for one in examples for ids in one.sequences
            ],
            "pipeline": PIPELINES.get(family.kind) if name == "roberta" and is_single else None,
            "options": {"top_k": None} if family.head_kind == "sentence" else {},
            "texts": [row.get("text") for row in rows],
        })  # fmt: skip
    folder = tmp_path_factory.mktemp("plainly")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", LOADING, folder / "jobs.json", folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out"), json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize(("name", "task"), CASES)
def test_an_exported_task_gives_our_logits_in_plain_transformers(name, task, suites, runs, ours, plainly):
    loaded, rows = ours[name], case_rows(suites, name, task)
    family, examples = loaded.family(task), encoded_for(loaded, task, rows)
    folder = runs[name][1] / "tasks" / task.replace("/", "-")
    theirs = [plainly[0][f"{folder}|{at}"] for at in range(sum(len(one.sequences) for one in examples))]

    def outputs(head, states, segment):
        """Per example what the head gives for it, however a family lays it out."""
        output = family.apply(head, states, segment)
        if family.head_kind in ("token", "language"):
            return [output[segment.targets[0] == at] for at in range(len(segment.examples))]
        if family.head_kind == "option":
            return [scores[scores > -torch.inf][:, None] for scores in output]
        if family.kind == "regression":
            output = output[:, None] * (family.high - family.low) + family.low
        return list(output)

    with torch.no_grad():
        mine = ask(loaded.model, loaded.tokenizer, task, examples, outputs)
    if family.head_kind == "option":
        theirs = torch.cat([one.flatten() for one in theirs]).split([len(one.sequences) for one in examples])
    elif family.kind == "tagging":
        theirs = [one[example.target.reshape(3, -1)[1]] for one, example in zip(theirs, examples, strict=True)]
    elif family.kind == "denoising":
        theirs = [one[example.target.reshape(2, -1)[0]] for one, example in zip(theirs, examples, strict=True)]
    assert len(mine) == len(theirs) == 4
    for one, other in zip(mine, theirs, strict=True):
        assert one.numel() > 0
        one = one[: len(other)] if family.kind == "span" else one  # ours are padded
        torch.testing.assert_close(one.reshape(other.shape), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", ["micro/subject-category", "my/both", "my/tags", "micro/text"])
def test_a_pipeline_in_a_clean_process_answers_as_predict_does(task, suites, runs, ours, plainly):
    rows = case_rows(suites, "roberta", task)
    folder = str(runs["roberta"][1] / "tasks" / task.replace("/", "-"))
    found = ours["roberta"].predict(task, rows)
    answers = plainly[1][folder]
    for row, mine, theirs in zip(rows, found, answers, strict=True):
        if task in ("micro/subject-category", "my/both"):  # a pipeline knows no threshold: of several labels it gives all
            theirs = theirs[0] if isinstance(theirs[0], list) else theirs
            [expected] = ours["roberta"].predict_proba(task, [row])
            assert {one["label"]: one["score"] for one in theirs} == pytest.approx(expected, abs=1e-5)
            likely = {label for label, probability in expected.items() if probability > 0.5}
            assert set(mine) == likely if task == "my/both" else mine == max(expected, key=expected.get)
        elif task == "micro/text":
            assert [theirs[0]["token_str"].strip()] == mine
        else:  # it passes over words that are outside
            assert [(one["word"].strip(), one["entity"]) for one in theirs] == [
                (word, tag) for word, tag in zip(row["words"], mine, strict=True) if tag != "O"
            ]


def test_generate_of_an_exported_model_writes_what_predict_does(suites, runs, ours, plainly):
    rows = case_rows(suites, "bart", "my/start")
    written = plainly[1][str(runs["bart"][1] / "tasks" / "my-start")]
    assert [text.strip() for text in written] == ours["bart"].predict("my/start", rows)
    assert len(set(written)) > 1
    config = transformers.GenerationConfig.from_pretrained(runs["bart"][1] / "tasks" / "my-start")
    assert (config.num_beams, config.max_new_tokens) == (2, 6)


def test_no_pipeline_is_left_untested_that_this_transformers_has():
    others = {"question-answering", "text2text-generation", "summarization"} & set(SUPPORTED_TASKS)
    assert not others or transformers.__version__ < "5.1", "load these in the clean process, too"


# ---- all tasks at once


@pytest.mark.parametrize("name", ["roberta", "bart"])
def test_a_run_and_its_export_answer_what_the_runs_scores_are_of(name, suites, runs, ours):
    run, out = runs[name]
    again = load(out)
    assert again.tasks == ours[name].tasks == [task.name for task in suites[name]]
    for task in suites[name]:
        if isinstance(task.family, Denoising):  # scored on holes of its own
            continue
        rows = rows_of(task)
        scored = {record["row"]: record["prediction"] for record in read_records(run / "predictions" / f"{task.slug}.jsonl")}
        expected = [scored[row] for row in range(len(rows))]
        if task.family.kind == "choice":
            expected = [row[task.family.options][index] for row, index in zip(rows, expected, strict=True)]
        found = ours[name].predict(task.name, rows)
        assert again.predict(task.name, rows) == found
        if task.family.kind == "regression":
            assert found == pytest.approx(expected, abs=1e-5)
        else:
            assert found == expected
    assert (
        len({json.dumps(ours[name].predict(task.name, masked(rows_of(task)))) for task in suites[name].select("denoising")}) == 1
    )


def test_the_top_of_an_export_is_the_trunk_and_every_folder_says_how_to_load_it(runs):
    run, out = runs["roberta"]
    trunks = [transformers.AutoModel.from_pretrained(folder).state_dict() for folder in (run / "model", out)]
    assert all(torch.equal(trunks[0][name], trunks[1][name]) for name in trunks[0])
    assert {path.name for path in out.iterdir()} >= {"heads", "tasks", "config.json", "tokenizer.json", "prefinetune.json"}
    assert load(out / "tasks" / "my-tags").tasks == ["my/tags"]
    assert not list(out.rglob("*.bin"))


def test_one_tasks_export_and_a_fine_tuned_run_are_a_model_each(runs, suites, ours, tmp_path, tiny_model):
    run, _ = runs["roberta"]
    for task in ("micro/goodness", "micro/subject-category"):
        rows = rows_of(suites["roberta"][task])
        one = export(run, tmp_path / task, task=task)
        expected = ours["roberta"].predict(task, rows)
        found = load(one).predict(task, rows)
        assert found == (pytest.approx(expected, abs=1e-5) if task == "micro/goodness" else expected)

        tuned = finetune(suites["roberta"][task], run, tmp_path / "tuned" / task, config=SETTINGS)
        records = read_records(tuned.folder / "predictions" / f"{task.replace('/', '-')}.jsonl")
        scored = [rows[record["row"]] for record in records]
        for folder in (tuned.folder, tuned.folder / "model", export(tuned.folder, tmp_path / "out" / task)):
            found = load(folder).predict(task, scored)
            expected = [record["prediction"] for record in records]
            assert found == (pytest.approx(expected, abs=1e-5) if task == "micro/goodness" else expected)
        plain_one = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / task)
        assert plain_one.config.problem_type == ("regression" if task == "micro/goodness" else "single_label_classification")


def test_fields_that_were_functions_are_the_catalogues_or_the_column_of_their_name():
    task = next(task for task in catalog() if callable(getattr(task.family, "text", None)) and task.family.kind == "choice")
    entry = {"name": task.name, "choice": {**task.family.settings()}}
    assert family_of(json.loads(json.dumps(entry))).text is task.family.text
    unknown = {"name": "mine", "classification": Classification(lambda row: row["a"], labels=("x", "y")).settings()}
    assert family_of(unknown) == Classification("text", labels=("x", "y"))
    changed = {"name": task.name, "choice": {**task.family.settings(), "text": plain(lambda row: "other")}}
    assert family_of(changed).text == "text"


# ---- what may go wrong


def test_a_wrong_folder_task_or_combination_is_answered(runs, tmp_path):
    run, _ = runs["roberta"]
    for call, message in (
        (lambda: export(run, tmp_path / "a", task="my/tag"), r"no task 'my/tag' \(did you mean 'my/tags'\?\); there are micro/"),
        (lambda: export(run, tmp_path / "a", task="my/tags", every_task=True), "--task and --all exclude each other"),
        (lambda: export(tmp_path, tmp_path / "a"), "is no run and no export of one; expected what `prefinetune train`"),
        (lambda: load(tmp_path / "nowhere"), "nowhere does not exist"),
        (lambda: load(run).predict("my/tagz", []), "no task 'my/tagz'"),
        (lambda: load(run, ["my/tags"]).predict("my/both", []), "no task 'my/both'.*there are my/tags"),
        (lambda: read_about(run).find(None), "which of 9 tasks\\? Give one with --task"),
        (lambda: export(run, run), "holds something that is no export; choose another --to"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert not (tmp_path / "a").exists()
    unfinished = shutil.copytree(run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("model", "heads"))
    with pytest.raises(InputError, match=r"has not finished.*go on with the same train command and --resume"):
        load(unfinished)


def test_an_export_is_replaced_only_when_asked_and_only_as_a_whole(runs, tmp_path, monkeypatch):
    run, _ = runs["roberta"]
    out = export(run, tmp_path / "out", task="my/tags")
    with pytest.raises(InputError, match="already holds an export; replace it with --overwrite"):
        export(run, out, task="my/both")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prefinetune.publish, "write_about", full)
    with pytest.raises(InputError, match=r"No space left.*choose another --to"):
        export(run, out, task="my/both", overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    assert load(export(run, out, task="my/both", overwrite=True)).tasks == ["my/both"]


# ---- temperatures, and the hub


@pytest.fixture(scope="module")
def filed(tmp_path_factory, tiny_model):
    """A run on a file, so that its validation rows can be read again."""
    folder = tmp_path_factory.mktemp("filed")
    rows = microworld.world(0, rows_per_task=120, validation_rows=60)["micro/subject-category"].source.tables
    for split, table in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in table))
    task = Task("cat", Files({split: str(folder / f"{split}.jsonl") for split in rows}), Classification("text"))
    train(
        Suite("one", (task,)), tiny_model, folder / "run", config={**SETTINGS, "train": {"updates": 20, "checkpoint_every": None}}
    )
    return folder


def test_a_temperature_is_fitted_on_validation_rows_kept_and_used_when_asked(filed, tmp_path, command):
    code, _, err = command("export", filed / "run", "--to", tmp_path / "out", "--task", "cat", "--calibrate")
    assert code == 0, err
    known = json.loads((tmp_path / "out" / "prefinetune.json").read_text())["temperatures"]["cat"]
    assert f"cat: temperature {known:.3f}" in err
    loaded = load(tmp_path / "out")
    assert loaded.calibrate("cat", filed / "validation.jsonl") == pytest.approx(known, rel=1e-4)
    rows = [json.loads(line) for line in (filed / "validation.jsonl").read_text().splitlines()]
    labels = loaded.family("cat").labels
    raw, calibrated = (loaded.predict_proba("cat", rows, calibrated=calibrated) for calibrated in (False, True))
    raw, calibrated = (np.array([[one[label] for label in labels] for one in found]) for found in (raw, calibrated))
    tempered = raw ** (1 / known)
    assert np.allclose(calibrated, tempered / tempered.sum(1, keepdims=True), atol=1e-4)
    gold = [labels.index(row["label"]) for row in rows]
    assert log_loss(calibrated, gold) < log_loss(raw, gold)
    with pytest.raises(InputError, match="no temperature was fitted; `prefinetune export RUN --to DIR --calibrate`"):
        load(filed / "run").predict_proba("cat", rows, calibrated=True)


def log_loss(probabilities, gold):
    return -np.mean(np.log(probabilities[np.arange(len(gold)), gold]))


def test_rows_that_were_in_memory_cannot_be_calibrated_on_without_being_given(runs, tmp_path):
    with pytest.raises(InputError, match=r"rows were in memory; in Python, load\(RUN\)\.calibrate"):
        export(runs["roberta"][0], tmp_path / "out", task="my/both", calibrate=True)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_the_folder_and_lists_the_upload_without_a_network(filed, tmp_path, command, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    code, out, err = command("export", filed / "run", "--to", tmp_path / "out", "--push", "us/cats", "--dry-run")
    assert code == 0, err
    assert "would be uploaded to us/cats (private, if it is new)" in err
    for path in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        line = next(line for line in out.splitlines() if line.startswith(path.relative_to(tmp_path / "out").as_posix() + " "))
        assert line.split()[-1] == f"{path.stat().st_size:,}"
    for wrong, message in (
        (("--push", "a/b/c"), "--push: 'a/b/c' is not accepted"),
        (("--dry-run",), "--dry-run goes with --push"),
    ):
        code, _, err = command("export", filed / "run", "--to", tmp_path / "no", *wrong)
        assert (code, message in err) == (2, True)
    assert command("export", filed / "run")[0] == 2


def test_a_push_makes_a_private_repository_uploads_the_folder_and_says_how_to_go_on(filed, tmp_path, command, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append((name, options))
            return f"https://hub/{name}"

        def upload_folder(self, **options):
            calls.append(options)
            if options["repo_id"] == "us/broken":
                raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    code, out, _ = command("export", filed / "run", "--to", tmp_path / "out", "--push", "us/cats", "--json")
    assert (code, json.loads(out)["address"]) == (0, "https://hub/us/cats")
    assert calls[0] == ("us/cats", {"private": True, "exist_ok": True})
    assert (calls[1]["repo_id"], Path(calls[1]["folder_path"])) == ("us/cats", tmp_path / "out")
    code, _, err = command("export", filed / "run", "--to", tmp_path / "out", "--push", "us/broken", "--public", "--overwrite")
    assert code == 2
    assert calls[2] == ("us/broken", {"private": False, "exist_ok": True})
    assert f"no route to host). {tmp_path / 'out'} is complete" in err
    assert f"`hf upload us/broken {tmp_path / 'out'}` goes on" in err


def test_an_export_of_another_version_or_with_names_that_lead_elsewhere_is_refused(runs, tmp_path):
    out = export(runs["roberta"][0], tmp_path / "out", task="my/tags")
    known = json.loads((out / "prefinetune.json").read_text())
    evil = {**known, "tasks": [{**known["tasks"][0], "name": "../up"}]}
    for text in (json.dumps({**known, "format": 99}), "{", json.dumps({"tasks": []}), json.dumps(evil)):
        (out / "prefinetune.json").write_text(text)
        with pytest.raises(InputError, match=r"prefinetune\.json: "):
            load(out)


# ---- ONNX


def test_an_onnx_file_gives_our_logits_for_any_number_of_rows_options_and_tokens(suites, runs, ours, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for task in ("micro/subject-category", "micro/choose-large"):
        loaded, rows = ours["roberta"], rows_of(suites["roberta"][task])[:3]
        folder = export(runs["roberta"][0], tmp_path / task, task=task, onnx=True)
        session = runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        texts = loaded.family(task).texts
        pairs = [[first if second is None else (first, second) for first, second in texts(row)] for row in rows]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        given = tokenizer([pair for mine in pairs for pair in mine], padding=True, return_tensors="np")
        shape = (3, len(pairs[0]), -1) if "choose" in task else (3, -1)
        [logits] = session.run(["logits"], {one.name: given[one.name].reshape(shape) for one in session.get_inputs()})
        logits = torch.from_numpy(logits).softmax(-1)
        for mine, theirs in zip(loaded.predict_proba(task, rows), logits, strict=True):
            assert list(mine.values() if isinstance(mine, dict) else mine) == pytest.approx(theirs.tolist(), abs=1e-5)


def test_onnx_is_refused_where_there_is_none(runs, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--onnx goes with --task or --all"):
        export(runs["roberta"][0], tmp_path / "out", onnx=True)
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with pytest.raises(InputError, match="--onnx: of encoder-decoders no ONNX files are written"):
        export(runs["bart"][0], tmp_path / "out", task="my/both", onnx=True)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"--onnx: onnxscript is not installed: pip install 'prefinetune\[onnx\]'"):
        export(runs["roberta"][0], tmp_path / "out", task="my/both", onnx=True)
    assert not (tmp_path / "out").exists()
