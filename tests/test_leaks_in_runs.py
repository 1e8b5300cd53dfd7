"""What runs make of leaks: training rows that show evaluation rows are left out, and no score rests on rows trained on."""

import json
import sys

import pytest
import yaml

from prefinetune import compare, finetune, train
from prefinetune.errors import InputError, Unavailable
from prefinetune.families import Classification
from prefinetune.lineage import dropped, trained_rows
from prefinetune.sources import Files, Hub
from prefinetune.splits import open_task, open_tasks
from prefinetune.task import Suite, Task

CONFIG = {
    "mixture": {"sub_batches": 2, "sub_batch_size": 2},
    "optimizer": {"learning_rate": 1e-3},
    "train": {"updates": 2, "checkpoint_every": None, "evaluation_rows": 50},
}
NOUNS = ("dog", "cat", "horse", "bird", "fish", "wolf", "mouse", "lion", "bear", "fox")
VERBS = ("sees", "hears", "finds", "follows", "feeds")
SENTENCES = [
    f"the {noun} in the old garden {verb} the {other}" for noun in NOUNS for verb in VERBS for other in NOUNS if other != noun
]


def rows(sentences):
    return [{"text": text, "label": "short" if len(text) < 43 else "long"} for text in sentences]


@pytest.fixture
def task(tmp_path):
    """A function that writes a task's splits as JSON lines."""

    def write(name, **splits):
        folder = tmp_path / name
        folder.mkdir()
        for split, sentences in splits.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(sentences)))
        return Task(name, Files(str(folder)), Classification("text", label="label"))

    return write


@pytest.fixture
def lines():
    """A display that keeps what it is told."""
    from prefinetune.display import Display

    display = Display(quiet=True)
    display.told = []
    display.say = display.told.append
    return display


@pytest.fixture
def suite(task):
    """Two tasks: five training rows of `one` stand in its own test split in other spelling, three in `two`'s validation split."""
    return Suite(
        "leaky",
        (
            task("one", train=SENTENCES[:60], validation=SENTENCES[100:110],
                 test=[*(text.upper() + "!" for text in SENTENCES[:5]), *SENTENCES[110:120]]),
            task("two", train=SENTENCES[200:260], validation=[*SENTENCES[5:8], *SENTENCES[300:310]]),
        ),
    )  # fmt: skip


def entry(run, name):
    return next(task for task in yaml.safe_load((run / "suite.yaml").read_text())["tasks"] if task["name"] == name)


def test_training_leaves_out_rows_that_show_evaluation_rows_and_says_how_many(suite, tiny_model, tmp_path, cache, lines):
    run = train(suite, tiny_model, tmp_path / "run", config=CONFIG, display=lines).folder
    found = json.loads((run / "leaks.json").read_text())
    assert found["train_rows"] == {"one": {"one/test": [0, 1, 2, 3, 4], "two/validation": [5, 6, 7]}}
    assert found["left_out"]
    assert entry(run, "one")["store"]["examples"] == 52
    assert entry(run, "two")["store"]["examples"] == 60
    assert any("8 of 120 training rows" in line and "left out of training" in line for line in lines.told)
    assert dropped(run)["one"].tolist() == list(range(8))


def test_leaks_are_only_told_of_or_not_looked_for_where_the_setting_says_so(suite, tiny_model, tmp_path, cache, lines):
    told = train(suite, tiny_model, tmp_path / "told", config={**CONFIG, "data": {"leaks": "report"}}, display=lines).folder
    assert entry(told, "one")["store"]["examples"] == 60
    assert not json.loads((told / "leaks.json").read_text())["left_out"]
    assert dropped(told) == {}
    assert any("trained on all the same" in line for line in lines.told)
    lines.told.clear()
    unseen = train(suite, tiny_model, tmp_path / "off", config={**CONFIG, "data": {"leaks": "off"}}, display=lines).folder
    assert entry(unseen, "one")["store"]["examples"] == 60
    assert not (unseen / "leaks.json").exists()
    assert not any("leak" in line for line in lines.told)


def test_evaluation_rows_of_further_tasks_are_protected_too(suite, task, tiny_model, tmp_path, cache):
    judged = task("judged", train=SENTENCES[330:350], test=SENTENCES[205:215], validation=SENTENCES[320:325])
    run = train(suite, tiny_model, tmp_path / "run", config=CONFIG, against=[judged]).folder
    assert json.loads((run / "leaks.json").read_text())["train_rows"]["two"] == {"judged/test": list(range(5, 15))}
    assert entry(run, "two")["store"]["examples"] == 50


def test_what_was_found_once_is_not_looked_for_again_unless_the_rows_change(suite, tiny_model, tmp_path, cache, monkeypatch):
    module, calls = sys.modules["prefinetune.leaks"], []
    true = module.find_leaks
    monkeypatch.setattr(module, "find_leaks", lambda *given, **more: calls.append(1) or true(*given, **more))
    first = train(suite, tiny_model, tmp_path / "first", config=CONFIG).folder
    second = train(suite, tiny_model, tmp_path / "second", config=CONFIG).folder
    assert len(calls) == 1
    assert (first / "leaks.json").read_text() == (second / "leaks.json").read_text()
    with (tmp_path / "two" / "train.jsonl").open("a") as file:
        file.write(json.dumps(rows(SENTENCES[310:311])[0]) + "\n")
    train(suite, tiny_model, tmp_path / "third", config=CONFIG)
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"train_rows": {"one": 3}}', "null"])
def test_what_was_found_and_then_damaged_is_looked_for_again(suite, cache, content):
    from prefinetune.display import Display
    from prefinetune.leaks import known_leaks

    opened = [open_task(task) for task in suite]
    first = known_leaks(opened, [], cache, Display(quiet=True))
    [kept] = (cache / "leaks").iterdir()
    kept.write_text(content)
    again = known_leaks(opened, [], cache, Display(quiet=True))
    assert again.counts == first.counts == {"one": 8}
    assert [path.name for path in (cache / "leaks").iterdir()] == [kept.name]


def test_a_task_all_of_whose_rows_leak_is_refused_by_name(task, tiny_model, tmp_path, cache):
    copied = task("copied", train=SENTENCES[:12], validation=SENTENCES[100:110], test=SENTENCES[:12])
    with pytest.raises(
        InputError, match=r"'copied': every training row shows an evaluation row \(copied/test\).*data\.leaks=report"
    ):
        train(Suite("one", (copied,)), tiny_model, tmp_path / "run", config=CONFIG)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def judged(task):
    """A task six of whose sixteen test rows the suite trains on, and one of whose training rows stands in its own test split."""
    test = [*SENTENCES[20:24], *(f"{text} ." for text in SENTENCES[230:232]), *SENTENCES[340:350]]
    return task("judged", train=[*SENTENCES[350:390], SENTENCES[340]], validation=SENTENCES[390:400], test=test)


def test_no_arm_is_scored_on_rows_that_one_was_trained_on(suite, judged, tiny_model, tmp_path, cache, lines):
    run = train(suite, tiny_model, tmp_path / "run", config=CONFIG).folder
    quick = {"train": {"updates": 2, "evaluation_rows": 20}, "optimizer": {"warmup": 0.1}}
    result = compare([judged], run, tmp_path / "out", labels=(16, None), seeds=1, grid=(1e-3,), config=quick, display=lines)
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {record["arm"] for record in records} == {"base", "pre-finetuned"}
    assert {record["rows"] for record in records} == {10}
    assert {record["labels"] for record in records} == {16, 40}, "the training row that stands in the test split is left out"
    assert result.plan["left_out"] == ["judged: 6 of 16 test rows, on which an arm was trained; no arm is scored on them"]
    assert any("6 of 16 test rows stand in what" in line for line in lines.told)


def test_a_fine_tuned_model_is_not_scored_on_rows_its_run_was_trained_on(suite, judged, tiny_model, tmp_path, cache):
    run = train(suite, tiny_model, tmp_path / "run", config=CONFIG).folder
    quick = {"train": {"updates": 2}}
    assert finetune(judged, run, tmp_path / "tuned", config=quick).record["rows"] == 10
    assert finetune(judged, tiny_model, tmp_path / "base", config=quick).record["rows"] == 16
    told = finetune(judged, run, tmp_path / "told", config={**quick, "data": {"leaks": "report"}})
    assert told.record["rows"] == 16


def test_rows_that_a_run_left_out_are_not_held_against_it(suite, judged, tiny_model, tmp_path, cache):
    run = train(suite, tiny_model, tmp_path / "run", config=CONFIG, against=[judged]).folder
    assert finetune(judged, run, tmp_path / "tuned", config={"train": {"updates": 2}}).record["rows"] == 16


def test_what_cannot_be_opened_again_is_named(suite, judged, tiny_model, tmp_path, cache, lines):
    run = train(suite, tiny_model, tmp_path / "run", config=CONFIG).folder
    (tmp_path / "one").rename(tmp_path / "moved")
    opened, unknown = trained_rows(run)
    assert [one.task.name for one in opened] == ["two"]
    assert "one" in unknown
    assert "no file" in unknown["one"] or "no data" in unknown["one"] or str(tmp_path / "one") in unknown["one"]
    assert finetune(judged, run, tmp_path / "tuned", config={"train": {"updates": 2}}, display=lines).record["rows"] == 14
    assert any("is not known for one, which cannot be opened again" in line for line in lines.told)


def test_records_with_functions_are_opened_again_by_the_catalogue(tiny_model, tmp_path, cache):
    from pathlib import Path

    from prefinetune.catalog import catalog

    hub = Path(__file__).parent / "hub"
    names = ["ethics/virtue", "mutual", "squad/resplit"]  # fields: functions, plain columns, a record
    run = train(Suite("ours", tuple(catalog()[name] for name in names)), tiny_model, tmp_path / "run", config=CONFIG,
                data_root=hub).folder  # fmt: skip
    opened, unknown = trained_rows(run)
    assert not unknown
    for one in opened:
        true = open_task(catalog()[one.task.name], hub)
        assert one.digest("train") == true.digest("train")
        assert one.task.family.fields() == true.task.family.fields()


# ---- datasets that cannot be found


def test_all_missing_datasets_are_named_at_once_and_can_be_skipped(task, tmp_path, monkeypatch):
    asked = []

    def unreachable(self):
        asked.append(self.id)
        raise Unavailable("the hub is away", unreachable=True)

    monkeypatch.setattr(Hub, "splits", unreachable)
    family = Classification("text", label="label")
    tasks = [
        Task("a/first", Hub("owner/first"), family),
        task("local", train=SENTENCES[:5]),
        Task("second", Hub("owner/second", "plain"), family),
        Task("mirrored", Hub(None), family),
    ]
    told = []
    with pytest.raises(InputError) as problem:
        open_tasks(tasks, say=told.append)
    assert "2 datasets cannot be found: a/first, second" in str(problem.value)
    assert "prefinetune tasks mirror" in str(problem.value)
    assert "--skip-missing" in str(problem.value)
    assert asked == ["owner/first"], "a hub that is away is asked once"
    assert [one.task.name for one in open_tasks(tasks, skip_missing=True, say=told.append)] == ["local"]
    assert any("no copy on the hub is known" in line and "mirrored" in line for line in told)
    assert any("cannot be found: a/first, second" in line for line in told)
    with pytest.raises(InputError, match="none of the datasets can be found"):
        open_tasks(tasks[:1], skip_missing=True)


def test_a_task_without_a_split_that_is_needed_counts_as_missing(task):
    with pytest.raises(InputError, match="1 datasets cannot be found: only-test"):
        open_tasks([task("only-test", test=SENTENCES[:5]), task("whole", train=SENTENCES[:5])], needed="train")


def test_a_run_that_kept_clear_of_a_task_is_not_asked_again(task, judged, tiny_model, tmp_path, cache, lines):
    rows_in_memory = [{"text": text, "label": str(at % 2)} for at, text in enumerate(SENTENCES[20:60])]
    from prefinetune.sources import Rows

    memory = Task("memory", Rows({"train": rows_in_memory}), Classification("text", label="label"))
    run = train(Suite("memory", (memory,)), tiny_model, tmp_path / "run", config=CONFIG, against=[judged]).folder
    quick = {"train": {"updates": 2}}
    assert finetune(judged, run, tmp_path / "tuned", config=quick, display=lines).record["rows"] == 16
    assert not any("cannot be opened again" in line for line in lines.told)
    with (tmp_path / "judged" / "test.jsonl").open("a") as file:  # these are not the rows that it kept clear of
        file.write(json.dumps(rows(SENTENCES[399:400])[0]) + "\n")
    finetune(judged, run, tmp_path / "again", config=quick, display=lines)
    assert any("not known for memory, which cannot be opened again" in line for line in lines.told)


def test_what_a_run_started_from_was_trained_on_counts_too(suite, judged, task, tiny_model, tmp_path, cache):
    first = train(suite, tiny_model, tmp_path / "first", config=CONFIG)  # trains on six test rows of `judged`
    other = Suite("other", (task("other", train=SENTENCES[300:330], validation=SENTENCES[110:115]),))
    second = train(other, first.folder, tmp_path / "second", config=CONFIG)
    quick = {"train": {"updates": 2}}
    for at, start in enumerate((second.folder, second.model)):  # a run's folder, and the trunk in it
        assert finetune(judged, start, tmp_path / f"tuned{at}", config=quick).record["rows"] == 10


def test_rows_in_memory_are_not_taken_for_a_file_of_their_name(task, tiny_model, tmp_path, cache, monkeypatch):
    from prefinetune.sources import Rows

    task("same", train=SENTENCES[:40])
    monkeypatch.chdir(tmp_path)
    memory = Task("memory", Rows({"train": rows(SENTENCES[40:80])}, name="same"), Classification("text", label="label"))
    opened, unknown = trained_rows(train(Suite("one", (memory,)), tiny_model, "run", config=CONFIG).folder)
    assert not opened
    assert "in memory" in unknown["memory"]


def test_an_arm_that_was_trained_on_scored_rows_cannot_join_cells_that_were_scored_on_them(
    suite, judged, tiny_model, tmp_path, cache
):
    run = train(suite, tiny_model, tmp_path / "run", config=CONFIG).folder
    quick = {"labels": (16,), "seeds": 1, "grid": (1e-3,), "config": {"train": {"updates": 2}}, "base": tiny_model}
    compare([judged], tiny_model, tmp_path / "out", treated="again", **quick)
    with pytest.raises(InputError, match=r"another comparison .*data of judged"):
        compare([judged], tiny_model, tmp_path / "out", treated="again", arms={"run": run}, **quick)
    compare([judged], tiny_model, tmp_path / "new", treated="again", arms={"run": run}, **quick)
    with pytest.raises(InputError, match=r"another comparison .*data of judged"):
        compare([judged], tiny_model, tmp_path / "new", treated="again", **quick)
