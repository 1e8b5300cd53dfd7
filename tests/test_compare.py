"""Comparisons: every arm gets the same, nothing finished runs twice, and what is told follows the cells."""

import json
import math
import shutil
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

import microworld
from prefinetune import compare as compare_function
from prefinetune import train
from prefinetune.cli import main
from prefinetune.cli.shared import parse_arm
from prefinetune.config import make_config
from prefinetune.errors import InputError
from prefinetune.evidence import read_comparison, rows_file
from prefinetune.families import Choice, Classification, Denoising, Encoded, Regression, Span
from prefinetune.files import digest_of, read_records, writing_alone
from prefinetune.results import RunFolder
from prefinetune.start import Start

QUICK = {"optimizer": {"warmup": 0.1}, "train": {"updates": 3, "evaluation_rows": 20}}
module = sys.modules["prefinetune.compare"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, world_suite):
    """A pre-finetuned run of a few updates."""
    folder = tmp_path_factory.mktemp("run")
    config = {"train": {"updates": 4, "checkpoint_every": None}, "optimizer": {"learning_rate": 1e-3}}
    train(world_suite, tiny_model, folder / "run", config=config, cache=folder / "cache")
    return folder / "run"


@pytest.fixture(scope="module")
def tasks():
    return [task for task in microworld.targets(0) if task.family.kind == "classification"][:2]


@pytest.fixture
def compare(run, tasks, tmp_path, cache):
    """A small comparison; keywords change it."""

    def go(**changes):
        given = {
            "tasks": tasks, "start": run, "out": tmp_path / "out", "labels": (16, 40), "seeds": 2, "grid": (1e-3, 1e-2),
            "tuning_seeds": 1, "config": QUICK, "cache": cache, **changes,
        }  # fmt: skip
        return compare_function(given.pop("tasks"), given.pop("start"), given.pop("out"), **given)

    return go


@pytest.fixture
def learned(monkeypatch):
    """Every call of `learn`: (start, number of examples, seed, learning rate)."""
    calls, true = [], module.learn

    def counted(prepared, start, examples, config, *rest):
        calls.append((str(start), len(examples), config.seed, config.optimizer.learning_rate))
        return true(prepared, start, examples, config, *rest)

    monkeypatch.setattr(module, "learn", counted)
    return calls


def test_arms_differ_in_nothing_but_where_they_start(compare, tmp_path, tiny_model):
    compare(arms={"control": tiny_model})
    records = read_records(tmp_path / "out" / "results.jsonl")
    groups = {}
    for record in records:
        groups.setdefault((record["task"], record["labels"], record["seed"]), []).append(record)
    assert len(groups) == 2 * 2 * 2
    for group in groups.values():
        assert {record["arm"] for record in group} == {"base", "control", "pre-finetuned"}
        assert {record["arm"] for record in group if record["validation"] is not None} == {"base"}
        for key in ("subset", "updates", "examples", "split", "rows"):
            assert len({record[key] for record in group}) == 1, key
    # The control starts where the base does, so all its scores are the base's.
    score = {(r["task"], r["labels"], r["seed"], r["arm"], r["learning_rate"]): r["score"] for r in records}
    for (task, labels, seed, arm, rate), value in score.items():
        if arm == "control":
            assert value == score[task, labels, seed, "base", rate]


def test_the_learning_rate_is_the_one_that_is_best_on_the_bases_validation_rows(compare, tmp_path):
    found = compare()
    records = read_records(tmp_path / "out" / "results.jsonl")
    for line in found.lines:
        tried = {
            record["learning_rate"]: record["validation"]
            for record in records
            if (record["task"], record["labels"], record["arm"], record["seed"]) == (line.task, line.labels, "base", 0)
        }
        assert set(tried) == {1e-3, 1e-2}
        assert line.rate == min(tried, key=lambda rate: (-tried[rate], rate))
        used = {
            r["learning_rate"] for r in records if (r["task"], r["labels"], r["arm"]) == (line.task, line.labels, "pre-finetuned")
        }
        assert used == {line.rate}


def test_finished_cells_are_not_run_again_and_a_comparison_can_grow(compare, learned, tmp_path, tiny_model):
    first = compare(seeds=1)
    count = len(learned)
    assert count == 2 * 2 * (2 + 1)  # tasks x labels x (two rates of the base + one pre-finetuned)
    assert compare(seeds=1).lines == first.lines
    assert len(learned) == count
    grown = compare(seeds=2, arms={"control": tiny_model})
    assert len(learned) == count + 2 * 2 * (2 + 2)  # the second seed of both arms, and the control's two
    assert not grown.missing
    scores = {(line.task, line.at): line.scores["base"][0] for line in first.lines}
    assert {(line.task, line.at): line.scores["base"][0] for line in grown.lines} == scores
    count = len(learned)
    assert compare(seeds=2).lines == grown.lines  # the control of the call before stays
    assert len(learned) == count


def test_an_arm_with_another_tokenizer_may_be_added_and_learns_from_the_same_rows(compare, learned, tmp_path, tiny_model):
    first = compare(seeds=1, labels=(16,))
    count = len(learned)
    other = tmp_path / "other-model"
    shutil.copytree(tiny_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["zzz"] = words.pop("never")
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    grown = compare(seeds=1, labels=(16,), arms={"other": other})
    assert len(learned) == count + 2
    assert not grown.problems
    before = {line.task: line.scores["base"] for line in first.lines}
    assert {line.task: line.scores["base"] for line in grown.lines} == before


def test_a_crash_loses_one_cell_and_what_follows_is_what_would_have_been(compare, monkeypatch, tmp_path):
    whole = compare(out=tmp_path / "whole")
    true, calls = module.learn, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return true(*arguments)

    monkeypatch.setattr(module, "learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare()
    assert len(read_records(tmp_path / "out" / "results.jsonl")) == 5
    assert read_comparison(tmp_path / "out").missing
    monkeypatch.setattr(module, "learn", true)
    assert compare().lines == whole.lines


def test_a_torn_line_is_set_aside_and_its_cell_runs_again(compare, learned, tmp_path):
    whole, count = compare(), len(learned)
    path = tmp_path / "out" / "results.jsonl"
    path.write_text(path.read_text()[:-30])
    again = compare()
    assert len(learned) == count + 1
    assert again.lines == whole.lines
    assert not again.problems
    assert path.with_name("results.jsonl.torn").exists()


def test_side_by_side_gives_what_one_after_the_other_gives(compare, tmp_path):
    assert compare(out=tmp_path / "a", processes=2, seeds=1).lines == compare(out=tmp_path / "b", seeds=1).lines


def test_a_rate_at_which_nothing_is_learned_is_recorded_as_failed_and_not_chosen(compare, monkeypatch, tmp_path):
    true = module.learn

    def failing(prepared, start, examples, config, *rest):
        if config.optimizer.learning_rate > 5e-3:
            raise InputError("10 updates in a row were not finite")
        return true(prepared, start, examples, config, *rest)

    monkeypatch.setattr(module, "learn", failing)
    found = compare(seeds=1)
    assert {line.rate for line in found.lines} == {1e-3}
    assert sum("failed" in record for record in read_records(tmp_path / "out" / "results.jsonl")) == 4


def test_a_label_count_that_a_task_does_not_have_is_named_as_not_run(compare):
    found = compare(labels=(16, 5000, None), seeds=1)
    total = found.plan["tasks"][found.lines[0].task]["labels"]["all"]
    assert f"{found.lines[0].task}, 5000 labels: it has {total:,} training examples" in found.missing
    assert {line.at for line in found.lines} == {"16", "all"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": (5000,)}, "5000 are not accepted; .* has .* training examples"),
        ({"seeds": 0}, "at least one of each"),
        ({"arms": {"base": "x"}}, "the name 'base' is taken"),
        ({"config": {"train": {"patience": 3}}}, "it does not stop early"),
        ({"base": "no/such/folder"}, "no/such/folder"),
        ({"tasks": ["glue/no-such-task"]}, "no-such-task"),
    ],
)
def test_what_cannot_be_compared_is_an_error_before_anything_is_written(compare, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        compare(**changes)
    assert not (tmp_path / "out").exists()


def test_a_task_given_twice_is_an_error(compare, tasks):
    with pytest.raises(InputError, match="given twice"):
        compare(tasks=[tasks[0], tasks[0]])


def test_a_model_that_is_no_run_needs_a_base(compare, tiny_model):
    with pytest.raises(InputError, match="--base is missing"):
        compare(start=tiny_model)


def test_a_comparison_begun_before_there_was_a_setting_goes_on(compare, tmp_path):
    compare(seeds=1, labels=(16,))
    path = tmp_path / "out" / "comparison.json"
    older, lines = json.loads(path.read_text()), (tmp_path / "out" / "results.jsonl").read_bytes()
    del older["settings"]["lora"], older["settings"]["train"]["track"]
    path.write_text(json.dumps(older))
    compare(seeds=1, labels=(16,))
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == lines


def test_a_folder_with_another_comparison_is_refused(compare, run, tmp_path, tiny_model):
    compare(seeds=1, labels=(16,))
    with pytest.raises(InputError, match="differs in settings"):
        compare(seeds=1, labels=(16,), config={"train": {"updates": 4}})
    with pytest.raises(InputError, match="differs in weights of pre-finetuned"):
        compare(seeds=1, labels=(16,), start=tiny_model, base=tiny_model)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(InputError, match="holds something that is no comparison"):
        compare(out=tmp_path / "other")


def test_a_comparison_takes_no_folder_of_a_run_and_a_run_none_of_a_comparison(compare, run, tmp_path):
    with pytest.raises(InputError, match="holds something that is no comparison"):
        compare(out=run, seeds=1, labels=(16,))
    folder = compare(seeds=1, labels=(16,)).folder
    assert (folder / ".lock").exists()  # as in a folder of a run
    held = {path.name for path in folder.iterdir()}
    with pytest.raises(InputError, match="holds something that is not a run"), RunFolder(folder).claimed({}, "", {}, resume=True):
        raise AssertionError("it was taken")
    assert {path.name for path in folder.iterdir()} == held


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", ".comparison.json.writing")])
def test_a_comparison_goes_on_where_a_process_died_before_its_plan_was_whole(compare, tmp_path, left):
    (tmp_path / "begun").mkdir()
    for name in left:
        (tmp_path / "begun" / name).write_text("{")
    assert compare(out=tmp_path / "begun", seeds=1, labels=(16,)).lines


def test_the_command_prints_losers_first_ends_with_the_sentence_and_exits_with_0(
    run, tmp_path, cache, capsys, monkeypatch, tiny_model
):
    task = tmp_path / "task.yaml"
    rows = [f"the duni kuno {'gilas' if row % 2 else 'bano'} {row},{'yes' if row % 2 else 'no'}" for row in range(80)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    task.write_text("name: t\ntasks:\n  - {name: mine, source: a.csv, classification: {text: text, label: label}}\n")
    arguments = [task, "--from", run, "--labels", "16,all", "--seeds", "2", "--grid", "1e-3", "--out", tmp_path / "out"]
    arguments += ["--arm", f"control={tiny_model}", "train.updates=3", "--json"]
    monkeypatch.setattr(sys, "argv", ["prefinetune", "compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert not stop.value.code
    out = json.loads(captured.out)
    assert [line["at"] for line in out["lines"]] == ["16", "all"]
    assert out["sentences"][0].startswith("With 16 labels, ")
    assert "16 labels" in captured.err
    assert captured.err.rstrip().endswith(out["sentences"][-1])
    assert captured.err.index("gain by seed") < captured.err.index(out["sentences"][1][:30])


@pytest.mark.parametrize("text", ["1e-3,x", "0", "2"])
def test_a_grid_that_is_none_is_an_error(text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prefinetune", "compare", "a.yaml", "--from", "x", "--grid", text])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "expected learning rates" in capsys.readouterr().err


# ---- row statistics


def example(target, reference=None, sequences=1):
    return Encoded([np.zeros(3, np.int64)] * sequences, [3] * sequences, np.asarray(target), reference=reference)


def cases():
    generator = np.random.default_rng(0)
    size = 40
    labels, found = generator.integers(0, 3, size), generator.integers(0, 3, size)
    words = ["the red cat", "red cat", "a dog", "cat sat", ""]
    texts = [(words[i], words[j]) for i, j in generator.integers(0, 5, (size, 2))]
    numbers = generator.normal(0.5, 0.2, size)
    yield Classification("t", labels=("a", "b", "c")), found.tolist(), [example([label]) for label in labels]
    yield Choice("t", "o"), found.tolist(), [example([label], sequences=3) for label in labels]
    yield Span("q", "c"), [text for text, _ in texts], [example([0, 0], ("", (gold,) if gold else ())) for _, gold in texts]
    noisy = (numbers + generator.normal(0, 0.3, size)).tolist()
    yield Regression("t", low=0.0, high=1.0), noisy, [example(np.array([n], np.float32)) for n in numbers]
    yield Denoising("t"), [(int(a), int(a + b)) for a, b in generator.integers(1, 5, (size, 2))], [example([])] * size


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0].kind)
def test_scores_of_resampled_rows_are_what_the_family_scores_on_them(case):
    family, predictions, examples = case
    table = family.row_statistics(predictions, examples)
    generator = np.random.default_rng(1)
    for chosen in [np.arange(len(examples)), *generator.integers(0, len(examples), (5, len(examples)))]:
        reference = family.score([predictions[i] for i in chosen], [examples[i] for i in chosen])[family.metric]
        assert float(family.score_of_means(table[chosen].mean(axis=0))) == pytest.approx(reference, abs=1e-6)


def test_answers_that_do_not_vary_have_no_correlation():
    family = Regression("t", low=0.0, high=1.0)
    table = family.row_statistics([0.3] * 4, [example(np.array([n], np.float32)) for n in (0.1, 0.2, 0.3, 0.4)])
    assert float(family.score_of_means(table.mean(axis=0))) == 0.0
    assert not math.isnan(float(family.score_of_means(table[:1].mean(axis=0))))


def test_rows_that_were_written_are_rows_that_were_scored(compare, tmp_path):
    compare(seeds=1)
    for record in read_records(tmp_path / "out" / "results.jsonl"):
        rows = np.load(rows_file(tmp_path / "out", record["digest"]), allow_pickle=False)
        assert len(rows) == record["rows"]
        assert rows[:, 0].mean() == pytest.approx(record["score"])


def test_two_processes_do_not_run_cells_of_one_comparison(compare, learned, tmp_path):
    small = {"labels": (16,), "seeds": 1, "grid": (1e-3,)}
    with writing_alone(tmp_path / "out"), pytest.raises(InputError, match="out is in use: another process is writing to it"):
        compare(**small)
    assert not learned
    compare(**small)  # what a process that died leaves behind is in nobody's way
    assert len(learned) == len(read_records(tmp_path / "out" / "results.jsonl")) == 4


@pytest.mark.parametrize("told", [None, "SIGTERM"])
def test_a_worker_that_dies_is_a_fault_unless_all_were_told_to_go(told, monkeypatch):
    notice = SimpleNamespace(given=None)

    class Pool:
        def submit(self, *_):
            notice.given = told
            future = Future()
            future.set_exception(BrokenProcessPool("a process died"))
            return future

    monkeypatch.setattr(module, "workers", lambda *_: nullcontext(Pool()))
    with module.cell_runner(module.Bench({}, make_config(), {}, None, None), 2) as run:
        if told:
            assert list(run(["first", "second", "third"], notice)) == []
        else:
            with pytest.raises(BrokenProcessPool):
                list(run(["first", "second", "third"], notice))


# ---- an arm with an objective of its own


@pytest.fixture(scope="module")
def bart_run(tmp_path_factory, tiny_bart, world_suite):
    """A pre-finetuned encoder-decoder."""
    folder = tmp_path_factory.mktemp("bart")
    config = {"train": {"updates": 2, "checkpoint_every": None, "evaluation_rows": 4}}
    train(world_suite.select("micro/subject-category"), tiny_bart, folder / "run", config=config, cache=folder / "cache")
    return folder / "run"


def test_r3f_alone_is_an_arm_that_differs_from_the_base_in_its_objective_and_nothing_else(
    compare, bart_run, tiny_bart, tasks, monkeypatch, tmp_path
):
    configs, learn = {}, module.learn

    def kept(prepared, start, examples, config, *rest):
        configs[str(start), config.objective.r3f > 0] = config
        return learn(prepared, start, examples, config, *rest)

    monkeypatch.setattr(module, "learn", kept)
    given = {"tasks": tasks[:1], "start": bart_run, "labels": (16,), "grid": (1e-2,)}
    before = compare(**given)
    assert {noised for _, noised in configs} == {False}
    r3f = Start(tiny_bart, {"r3f": 1.0, "noise": 0.5})
    found = compare(**given, arms={"R3F": r3f})
    assert set(configs) == {(str(tiny_bart), False), (str(bart_run), False), (str(tiny_bart), True)}
    base, noised = configs[str(tiny_bart), False], configs[str(tiny_bart), True]
    assert noised == make_config(base.model_dump(), {"objective": {"r3f": 1.0, "noise": 0.5}})
    assert found.plan["arms"]["R3F"] == {**before.plan["arms"]["base"], "objective": {"r3f": 1.0, "noise": 0.5}}

    records = read_records(tmp_path / "out" / "results.jsonl")
    assert len(records) == 2 * 3, "cells that were there are not run again"
    for seed in range(2):
        assert len({record["subset"] for record in records if record["seed"] == seed}) == 1
        (mine,) = [record for record in records if (record["arm"], record["seed"]) == ("R3F", seed)]
        assert (mine["validation"], mine["learning_rate"]) == (None, 1e-2)
    # What R3F itself changes shows with noise so large.
    rows = {
        (record["arm"], record["seed"]): np.load(rows_file(tmp_path / "out", record["digest"])).tolist() for record in records
    }
    assert any(rows["R3F", seed] != rows["base", seed] for seed in range(2))

    with pytest.raises(InputError, match=r"already holds another comparison .*R3F"):
        compare(**given, arms={"R3F": Start(tiny_bart, {"r3f": 2.0})})
    with pytest.raises(InputError, match=r"already holds another comparison .*R3F"):
        compare(**given, arms={"R3F": tiny_bart})
    with pytest.raises(InputError, match="r4f"):
        compare(**given, arms={"other": Start(tiny_bart, {"r4f": 1.0})})


def test_a_cell_is_known_by_what_it_was_known_by_before_arms_had_objectives(compare, tmp_path):
    """results.jsonl of an earlier version is gone on with."""
    found = compare(labels=(16,), grid=(1e-2,), seeds=1)
    told = found.plan["settings"]
    for record in read_records(tmp_path / "out" / "results.jsonl"):
        config = make_config(told, {"seed": 0, "optimizer": {"learning_rate": 1e-2}, "train": {"updates": 3}})
        weights, data = found.plan["arms"][record["arm"]]["weights"], found.plan["tasks"][record["task"]]["data"]
        assert record["digest"] == digest_of([weights, data, 16, config.digest(), record["task"], record["arm"]])


@pytest.mark.parametrize(
    ("text", "name", "place", "objective"),
    [
        ("nli=runs/nli", "nli", "runs/nli", {}), ("r3f=C:/models/bart:objective.r3f=1", "r3f", "C:/models/bart", {"r3f": 1.0}),
        ("x=a:objective.r3f=0.5:objective.noise_kind=normal", "x", "a", {"r3f": 0.5, "noise_kind": "normal"}),
    ],
)  # fmt: skip
def test_an_arm_on_the_command_line_may_have_an_objective(text, name, place, objective):
    assert parse_arm(text) == (name, Start(place, objective))


@pytest.mark.parametrize(
    ("text", "message"),
    [("x", "expected NAME=MODEL_OR_RUN"), ("=a", "expected NAME"), ("x=", "expected NAME"),
     ("x=a:optimizer.learning_rate=1", "updates and learning rate are the same in all"),
     ("x=a:objective.r3=1", "objective.r3'.*did you mean 'objective.r3f'")],
)  # fmt: skip
def test_an_arm_that_is_none_is_an_error(text, message):
    with pytest.raises(InputError, match=message):
        parse_arm(text)
