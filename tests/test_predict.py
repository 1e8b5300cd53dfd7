"""Predictions of files: every row is answered in its place whatever is killed on the way, memory does not grow, and fitted
temperatures are those of an independent minimisation."""

import csv
import json
import random
import shutil
import tracemalloc

import datasets
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import microworld
import prefinetune.predict
from prefinetune import Classification, Regression, Rows, Suite, Tagging, Task, load, train
from prefinetune.calibration import fit_temperature
from prefinetune.cli.predict import parse_columns
from prefinetune.errors import InputError
from prefinetune.predict import predict_file

CAT, NUMBER, TAGS = "my/cat", "my/number", "my/tags"


@pytest.fixture(scope="module")
def texts():
    sentences = microworld.World(0).sentences(random.Random(3))
    return [next(sentences).text for _ in range(60)]


@pytest.fixture(scope="module")
def run(texts, tiny_model, tmp_path_factory):
    """A run on three tasks; the head for labels gives each of its two to half of the texts."""
    rows = [
        {"text": text, "label": "never" if "never" in text else "always", "n": len(text), "words": text.split(),
         "tags": ["B" if word.endswith("o") else "O" for word in text.split()]}
        for text in texts
    ]  # fmt: skip
    tables = Rows({"train": rows[:40], "validation": rows[40:]})
    tasks = (
        Task(CAT, tables, Classification("text")),
        Task(NUMBER, tables, Regression("text", label="n")),
        Task(TAGS, tables, Tagging("words")),
    )
    settings = {
        "train": {"updates": 15, "checkpoint_every": None},
        "optimizer": {"learning_rate": 0.003},
        "data": {"leaks": "off"},
    }
    folder = train(Suite("small", tasks), tiny_model, tmp_path_factory.mktemp("run") / "run", config=settings).folder
    odds = [np.log(found["never"] / found["always"]) for found in load(folder).predict_proba(CAT, rows)]
    state = load_file(head_of(folder))
    state["classifier.out_proj.bias"][1] -= float(np.median(odds))
    save_file(state, head_of(folder))
    return folder


def head_of(run):
    return run / "heads" / "classification-my-cat" / "head.safetensors"


@pytest.fixture(scope="module")
def loaded(run):
    return load(run)


@pytest.fixture
def file(texts, tmp_path):
    """60 rows, of which row 7 has no text, row 20 too many cells, and row 33 bytes that are no text."""
    lines = [f"{text},{at}".encode() for at, text in enumerate(texts)]
    lines[7], lines[20], lines[33] = b",7", b"a,b,c", b"\xff\xfe,33"
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\n".join([b"body,id", *lines]) + b"\n")
    return path


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 8 rows."""
    monkeypatch.setattr(prefinetune.predict, "AT_ONCE", 8)


def test_lists_frames_datasets_and_files_of_every_kind_get_the_same_answers(loaded, texts, tmp_path):
    rows = [{"text": text, "other": at} for at, text in enumerate(texts)]
    expected = loaded.predict(CAT, rows)
    assert set(expected) == {"never", "always"}
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pandas.DataFrame(rows).to_csv(tmp_path / "rows.tsv", sep="\t", index=False)
    for given in (table, pandas.DataFrame(rows), *(tmp_path / f"rows.{kind}" for kind in ("parquet", "jsonl", "tsv"))):
        assert loaded.predict(CAT, given) == expected
    renamed = [{"title": row["text"][:9], "body": row["text"][10:]} for row in rows]
    assert loaded.predict(CAT, [{"body": row["text"]} for row in rows], columns={"text": "body"}) == expected
    assert loaded.predict(CAT, renamed, columns={"text": ("title", "body")}) == loaded.predict(
        CAT, [{"text": f"{row['title']} {row['body']}"} for row in renamed]
    )
    assert loaded.predict(CAT, []) == []


def test_probabilities_are_a_softmax_and_each_tag_has_that_of_its_word(loaded, texts):
    rows = [{"text": text, "words": text.split()} for text in texts[:5]]
    for row, label, found in zip(rows, loaded.predict(CAT, rows), loaded.predict_proba(CAT, rows), strict=True):
        ids = torch.tensor(loaded.tokenizer.tokenizer(row["text"]).input_ids)[None]
        with torch.no_grad():
            states = loaded.model.backbone.trunk(ids).last_hidden_state
            expected = loaded.model.head(CAT).model.classifier(states).softmax(-1)[0]
        assert list(found.values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert max(found, key=found.get) == label
    tagged = loaded.predict_proba(TAGS, rows)
    assert [len(found) for found in tagged] == [len(row["words"]) for row in rows]
    assert all(0.5 <= one <= 1 for found in tagged for one in found)
    with pytest.raises(InputError, match="regression has no probabilities; classification, multi-label, choice, tagging have"):
        loaded.predict_proba(NUMBER, rows)


def test_a_row_that_cannot_be_used_ends_predict_with_its_number(loaded, file):
    with pytest.raises(InputError, match=r"rows\.csv, row 7: field 'body': '' is not accepted"):
        loaded.predict(CAT, file, columns={"text": "body"})
    with pytest.raises(InputError, match=r"rows in memory.*row 1: field 'text'"):
        loaded.predict(CAT, [{"text": "the duni"}, {"text": None}])


@pytest.mark.parametrize("task", [CAT, NUMBER])
def test_every_row_of_a_file_has_its_line_and_bad_ones_their_reason(task, loaded, texts, file, tmp_path, small_parts):
    good = [at for at in range(60) if at not in (7, 20, 33)]
    rows = [{"text": texts[at]} for at in good]
    expected = dict(zip(good, loaded.predict(task, rows), strict=True))
    shown = dict(zip(good, loaded.predict_proba(task, rows), strict=True)) if task == CAT else {}
    found = {}
    for kind in ("parquet", "jsonl", "csv"):
        done = predict_file(loaded, task, file, tmp_path / f"out.{kind}", columns={"text": "body"}, probabilities=task == CAT)
        assert (done.rows, done.set_aside, [fault.row for fault in done.first]) == (60, 3, [7, 20, 33])
    found["parquet"] = pq.read_table(tmp_path / "out.parquet").to_pylist()
    found["jsonl"] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with (tmp_path / "out.csv").open(newline="") as text:
        lines = [{name: value or None for name, value in line.items()} for line in csv.DictReader(text)]
    found["csv"] = [
        {**line, "row": int(line["row"]), **({"probabilities": json.loads(line["probabilities"] or "null")} if shown else {})}
        for line in lines
    ]
    for kind, lines in found.items():
        assert [line["row"] for line in lines] == list(range(60))
        for line in lines:
            at = line["row"]
            if task == NUMBER and at in expected:
                assert float(line["prediction"]) == pytest.approx(expected[at], rel=1e-5), kind
            else:
                assert line["prediction"] == expected.get(at), kind
            if task == CAT:
                assert line["probabilities"] == (pytest.approx(shown[at], abs=1e-6) if at in shown else None)
    reasons = [line["reason"] for line in found["jsonl"] if line["reason"]]
    assert "'' is not accepted" in reasons[0]
    assert "3 cells, but the header has 2" in reasons[1]
    assert "not valid UTF-8" in reasons[2]
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "out.parquet", "out.jsonl", "out.csv"}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_prediction_that_was_killed_goes_on_and_comes_to_the_same_file(kind, loaded, file, tmp_path, small_parts, monkeypatch):
    answer, asked = loaded.answer, []

    def dying(task, examples, temperature=None):
        if len(asked) == dies_at:
            raise KeyboardInterrupt
        asked.append(len(examples))
        return answer(task, examples, temperature)

    monkeypatch.setattr(loaded, "answer", dying)

    def predicted(name):
        return predict_file(loaded, CAT, file, tmp_path / f"{name}.{kind}", columns={"text": "body"}, probabilities=True)

    dies_at = None
    predicted("whole")
    assert asked == [7, 8, 7, 8, 7, 8, 8, 4]
    asked, dies_at = [], 3
    with pytest.raises(KeyboardInterrupt):
        predicted("killed")
    assert not (tmp_path / f"killed.{kind}").exists()
    asked, dies_at = [], None
    done = predicted("killed")
    assert asked == [8, 7, 8, 8, 4]
    assert (done.rows, done.set_aside) == (60, 3)
    assert (tmp_path / f"killed.{kind}").read_bytes() == (tmp_path / f"whole.{kind}").read_bytes()


def test_parts_of_another_model_task_file_or_temperature_are_not_taken_over(
    run, loaded, file, texts, tmp_path, small_parts, monkeypatch
):
    other = shutil.copytree(run, tmp_path / "other")
    weights = head_of(other).read_bytes()
    head_of(other).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    shorter = tmp_path / "shorter.csv"
    shorter.write_text("body,id\n" + "".join(f"{text},0\n" for text in texts[:59]))
    write_out = prefinetune.predict.write_out

    def begin(model=loaded, task=CAT, of=file, **options):
        """Leave all parts behind; how many were there before."""
        with monkeypatch.context() as patch:
            patch.setattr(prefinetune.predict, "write_out", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            counted = []
            patch.setattr(prefinetune.predict, "answered", lambda *given: counted.append(1) or answered(*given))
            with pytest.raises(KeyboardInterrupt):
                predict_file(model, task, of, tmp_path / "out.parquet", columns={"text": "body"}, **options)
        return 8 - len(counted)

    answered = prefinetune.predict.answered
    assert prefinetune.predict.write_out is write_out
    assert begin() == 0
    assert begin() == 8
    assert begin(probabilities=True) == 0
    loaded.temperatures[CAT] = 2.0
    assert begin(calibrated=True) == 0
    assert begin(calibrated=True) == 8
    assert begin(task=NUMBER) == 0
    assert begin() == 0
    assert begin(of=shorter) == 0
    assert begin(model=load(other)) == 0
    del loaded.temperatures[CAT]


def test_memory_does_not_grow_with_the_number_of_rows(loaded, texts, tmp_path, small_parts, monkeypatch):
    """What Python holds at most; that of the whole process was measured, see docs/export.md."""
    monkeypatch.setattr(prefinetune.predict, "AT_ONCE", 50)

    def peak(count):
        path = tmp_path / f"{count}.parquet"  # text files are read in larger pieces, and once
        datasets.Dataset.from_dict({"text": [texts[at % 60] for at in range(count)]}).to_parquet(path)
        tracemalloc.start()
        predict_file(loaded, CAT, path, tmp_path / f"{count}-out.parquet", probabilities=True)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)  # what is imported or made once
    assert peak(800) < 1.1 * peak(200)


def test_a_second_process_does_not_write_to_the_same_parts(loaded, file, tmp_path, small_parts):
    with (
        prefinetune.predict.claimed(tmp_path / ".out.csv.parts", {}),
        pytest.raises(InputError, match=r"out\.csv\.parts is in use: another process"),
    ):
        predict_file(loaded, CAT, file, tmp_path / "out.csv", columns={"text": "body"})


# ---- temperatures


def overconfident(generator, count=3000, labels=4):
    """Logits [count, labels] three times as large as those that the labels [count] were drawn from."""
    logits = generator.normal(size=(count, labels)) * 1.5
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return 3 * logits, np.array([generator.choice(labels, p=row) for row in chances])


def softmax(logits):
    return torch.softmax(torch.as_tensor(logits), -1).numpy()


def test_a_temperature_is_that_of_an_independent_minimisation_and_makes_probabilities_honest():
    logits, gold = overconfident(np.random.default_rng(0))
    found = fit_temperature(list(logits[:, None]), list(gold[:, None]))
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits) / log.exp(), torch.from_numpy(gold))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert found == pytest.approx(float(log.exp().detach()), rel=1e-4)
    assert found == pytest.approx(3, rel=0.1)

    def calibration_error(probabilities):
        """ECE with 10 bins (Guo et al. 2017, section 2)."""
        sure, right = probabilities.max(1), probabilities.argmax(1) == gold
        bins = np.minimum((sure * 10).astype(int), 9)
        return sum(abs(right[bins == at].mean() - sure[bins == at].mean()) * (bins == at).mean() for at in np.unique(bins))

    assert calibration_error(softmax(logits / found)) < 0.03 < 0.1 < calibration_error(softmax(logits))


def test_choices_of_several_sizes_and_words_that_were_not_read_take_part_as_they_are():
    generator = np.random.default_rng(1)
    logits = [generator.normal(size=(1, size)) * 4 for size in generator.integers(2, 6, 200)]
    gold = [np.array([generator.choice(one.shape[1], p=softmax(one[0] / 4))]) for one in logits]
    found = fit_temperature([*logits, np.full((3, 5), np.nan)], [*gold, np.zeros(3, dtype=int)])

    def loss(temperature):
        pairs = zip(logits, gold, strict=True)
        return np.mean([np.log(np.exp(one[0] / temperature).sum()) - one[0, right[0]] / temperature for one, right in pairs])

    grid = np.geomspace(1, 16, 281)  # steps of 1 %
    assert found == pytest.approx(min(grid, key=loss), rel=0.02)
    assert grid[0] < found < grid[-1]


# ---- the verb


def test_the_verb_predicts_and_tells_of_bad_rows_by_file_and_row(run, file, texts, tmp_path, command, loaded):
    out = tmp_path / "found.jsonl"
    code, printed, err = command("predict", run, file, "--task", CAT, "-o", out, "--columns", "text=body", "--json")
    assert code == 0, err
    told = json.loads(printed)
    assert (told["out"], told["rows"], told["set_aside"]) == (str(out), 60, 3)
    assert "60 rows predicted" in err
    assert f"{file}, row 7: field 'body': '' is not accepted" in err
    assert f"3 of 60 rows could not be predicted; `reason` in {out} says why of each" in err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prediction"] for line in lines[:7]] == loaded.predict(CAT, [{"text": text} for text in texts[:7]])
    for arguments, message in (
        (
            ("--task", CAT, "--columns", "text=body"),
            f"{out} is there already; choose another --out, or replace it with --overwrite",
        ),
        (("--columns", "text=body", "--overwrite"), "which of 3 tasks? Give one with --task: my/cat, my/number, my/tags"),
        (("--task", "my/cut"), "no task 'my/cut' (did you mean 'my/cat'?)"),
        (
            ("--task", CAT, "--overwrite"),
            "no column 'text'; there are body, id. Say which columns the model shall read, as in --columns text=",
        ),
        (("--task", CAT, "--overwrite", "--columns", "txt=body"), "reads no 'txt' (did you mean 'text'?); it reads text"),
        (("--task", CAT, "--overwrite", "--columns", "body"), "--columns: 'body' is not accepted; expected FIELD=COLUMN"),
        (("--task", NUMBER, "--overwrite", "--columns", "text=body", "--probabilities"), "regression has no probabilities"),
        (("--task", CAT, "--overwrite", "--columns", "text=body", "--calibrated"), "no temperature was fitted"),
    ):
        code, _, err = command("predict", run, file, "-o", out, *arguments)
        assert (code, message in err) == (2, True), err
    code, _, err = command("predict", run, file, "--task", CAT, "-o", tmp_path / "found.xlsx", "--columns", "text=body")
    assert (code, "unknown kind of file; accepted: .parquet, .jsonl, .csv" in err) == (2, True)
    assert command("predict", tmp_path, file)[0] == command("predict", run, tmp_path / "none.csv", "--task", CAT)[0] == 2


def test_columns_are_named_once_and_several_are_joined():
    assert parse_columns(["text=a", "pair=b,c"]) == {"text": "a", "pair": ("b", "c")}
    for wrong in (["text"], ["=a"], ["text="], ["text=a", "text=b"]):
        with pytest.raises(InputError, match="--columns"):
            parse_columns(wrong)
