"""Studies: the protocol stands before the first run and only grows, what two groups share runs once, nothing finished runs again,
and a budget leaves out what it says. The statistics are proved in test_statistics.py, the reading in test_study_results.py."""

import json
import pickle
import shutil
import sys
from dataclasses import replace

import pytest

import microworld
from prefinetune.config import make_config
from prefinetune.errors import InputError
from prefinetune.evidence import read_plan
from prefinetune.families import Classification
from prefinetune.files import read_records, writing_alone
from prefinetune.sources import Hub, Rows
from prefinetune.study import parse_budget, study
from prefinetune.study_design import cap_for, make_design
from prefinetune.study_results import read_study
from prefinetune.study_runs import portable
from prefinetune.task import find_task

CONFIG = {"optimizer": {"learning_rate": 1e-3}, "train": {"updates": 4, "checkpoint_every": 2, "evaluation_rows": 4}}
CELLS = {"mixture": {"sub_batches": 2}, "train": {"updates": 2, "evaluation_rows": 8}}
runs_module, loop = sys.modules["prefinetune.study_runs"], sys.modules["prefinetune.loop"]


@pytest.fixture(scope="module")
def suite(world_suite):
    """Five tasks of 48 rows, two of them tagged nli; two choices share a head."""
    tasks = [task for task in world_suite if task.name not in ("micro/goodness", "micro/text")]
    return replace(
        world_suite, tasks=tuple(replace(task, tags={*task.tags, *(["nli"] if at < 2 else [])}) for at, task in enumerate(tasks))
    )


@pytest.fixture(scope="module")
def targets():
    """Two, with 60 training and 100 test rows."""
    found = microworld.targets(0, train_rows=60)[:2]
    return tuple(
        replace(task, source=Rows({split: rows[:100] for split, rows in task.source.tables.items()}, task.name)) for task in found
    )


@pytest.fixture(scope="module")
def small(suite):
    """Three of them, one tagged nli: what the tests run."""
    return suite.select("micro/larger-subject", "micro/choose-large", "micro/fill-verb")


@pytest.fixture
def go(small, targets, tiny_model, tmp_path, cache):
    """A small study; keywords change it."""

    def run(kind="labels", **changes):
        given = {
            "suite": small, "model": tiny_model, "out": tmp_path / "out", "targets": targets, "labels": (8,), "seeds": 1,
            "members": 1, "counts": (0, 1, None), "grid": (1e-2,), "config": CONFIG, "finetuning": CELLS, "cache": cache,
            **changes,
        }  # fmt: skip
        return study(kind, *(given.pop(name) for name in ("suite", "model", "out", "targets")), **given)

    return run


@pytest.fixture
def ran(monkeypatch):
    """What was run: the folders of pre-finetunings, and the cells of the comparison as (task, arm, labels, seed)."""
    runs, cells, train, cell = [], [], runs_module.train, sys.modules["prefinetune.compare"].Bench.run

    def counted_train(suite, model, out, **rest):
        runs.append(out.name)
        return train(suite, model, out, **rest)

    def counted_cell(bench, one):
        cells.append((one.task, one.arm, one.labels, one.seed))
        return cell(bench, one)

    monkeypatch.setattr(runs_module, "train", counted_train)
    monkeypatch.setattr(sys.modules["prefinetune.compare"].Bench, "run", counted_cell)
    return runs, cells


# ---- what a study is made of


def design_of(kind, suite, **changes):
    rows = {task.name: 100 * (at + 1) for at, task in enumerate(suite)}
    given = {"config": make_config(), "rows": rows, "begun_with": range(3), "counts": (0, 2, 4, None), **changes}
    return make_design(kind, suite.tasks, **given)


def groups_of(design):
    return {group.name: group for group in design.groups}


def test_numbers_of_tasks_are_nested_in_every_order_and_orders_differ(suite):
    groups = groups_of(design_of("scale", suite))
    orders = []
    for seed in range(6):
        two, four, five = (set(groups[f"{size} tasks"].member(seed).tasks) for size in (2, 4, 5))
        assert len(two) == 2
        assert two < four < five == {task.name for task in suite}
        orders.append(tuple(sorted(two)))
    assert len(set(orders)) > 1


def test_the_second_series_has_as_many_distinct_rows_whatever_the_number_of_tasks(suite):
    rows = {task.name: 100 * (at + 1) for at, task in enumerate(suite)}
    groups = groups_of(design_of("scale", suite))
    smallest = min(sum(rows[name] for name in groups["2 tasks"].member(seed).tasks) for seed in range(3))
    for seed in range(3):
        for size in (2, 4, 5):
            variant = groups[f"{size} tasks, same rows"].member(seed)
            assert variant.tasks == groups[f"{size} tasks"].member(seed).tasks
            cap = variant.settings["data"]["max_rows"] if variant.settings else 10**9
            used = sum(min(rows[name], cap) for name in variant.tasks)
            assert smallest - size < used <= smallest


@pytest.mark.parametrize(("most", "rows", "cap"), [(100, [10, 500, 500], 45), (15, [5, 5, 5], 5), (2, [9, 9, 9], 1)])
def test_a_cap_is_the_largest_that_keeps_to_the_sum(most, rows, cap):
    assert cap_for(most, rows) == cap


def test_every_kind_has_the_controls_that_make_sense_in_it(suite):
    controls = {
        kind: {group.name for group in design_of(kind, suite).groups if group.role == "control"}
        for kind in ("scale", "labels", "ablations", "transfer")
    }
    assert controls == {
        "scale": {"further training", "NLI only", "one task per update"},
        "labels": {"further training", "NLI only", "2 random tasks", "one task per update"},
        "ablations": {"further training", "NLI only", "2 random tasks"},  # one task per update is among its factors
        "transfer": {"further training"},
    }
    for kind, names in controls.items():
        design = design_of(kind, suite)
        (main,) = [group.name for group in design.groups if group.role == "main"]
        assert {(main, name) for name in names} <= set(design.contrasts)
    drawn = groups_of(design_of("labels", suite))["2 random tasks"]
    assert len({tuple(drawn.member(seed).tasks) for seed in range(8)}) > 1


def test_an_ablation_changes_one_thing_of_the_base_run(suite):
    config = make_config({"mixture": {"sampling": "uniform"}})
    groups = groups_of(design_of("ablations", suite, config=config, controls=()))
    assert groups.pop("with denoising").member(0).texts
    assert {name: dict(group.member(0).settings) for name, group in groups.items()} == {
        "base run": {},
        "order=batch-homogeneous": {"mixture": {"order": "batch-homogeneous"}},
        "order=dataset-homogeneous": {"mixture": {"order": "dataset-homogeneous"}},
        "scaling=none": {"objective": {"scaling": "none"}},
        "sampling=natural": {"mixture": {"sampling": "natural"}},
        "sampling=temperature": {"mixture": {"sampling": "temperature"}},
        "r3f=1.0": {"objective": {"r3f": 1.0}},
        "heads=separate": {"objective": {"heads": "separate"}},
    }
    alone = replace(suite, tasks=suite.tasks[:1])
    assert design_of("ablations", alone, factors=("heads",)).left_out == [
        "objective.heads: no two tasks of the suite share a head"
    ]


def test_r3f_alone_is_a_control_of_encoder_decoders(go, tiny_bart, tiny_model, tmp_path):
    """That it is done so is proved in test_compare.py."""
    given = {"kind": "labels", "model": tiny_bart, "plan_only": True}
    found = go(**given, controls=("r3f",))
    assert found.groups["R3F in fine-tuning"].role == "control"
    assert found.protocol["contrasts"] == [["pre-finetuned", "R3F in fine-tuning"]]
    arm = found.protocol["arms"]["R3F in fine-tuning · run 1"]
    assert (arm["start"], arm["objective"], arm["run"]) == (str(tiny_bart), {"r3f": 1.0}, None)
    # Its cells read every example twice: 2 targets x 1 seed x 2 updates of 8.
    without = go(**given, controls=(), out=tmp_path / "without").protocol["costs"]["examples"]
    cells = 2 * (2 * 2 * 8 + 100 / 3)
    assert found.protocol["costs"]["examples"] - without == pytest.approx(cells, abs=1)
    for name, changes in {
        "of an encoder": {"model": tiny_model}, "that all have anyway": {"finetuning": {**CELLS, "objective": {"r3f": 1.0}}},
        "that is not wanted": {"controls": ("further",)}, "of single sources": {"kind": "transfer"},
    }.items():  # fmt: skip
        plan = go(**{**given, "controls": ("r3f",), "out": tmp_path / name, **changes})
        assert "R3F in fine-tuning" not in plan.groups, name


def test_r3f_alone_is_read_beside_the_pre_finetuned_model(go, tiny_bart):
    found = go("labels", model=tiny_bart, controls=("r3f",))
    assert not found.missing
    assert {(one.group, one.against) for one in (*found.readings, *found.contrasts)} == {
        ("pre-finetuned", "base"), ("R3F in fine-tuning", "base"), ("pre-finetuned", "R3F in fine-tuning"),
    }  # fmt: skip
    plan = json.loads((found.folder / "comparison" / "comparison.json").read_text())
    assert {name: arm.get("objective") for name, arm in plan["arms"].items()} == {
        "base": None, "pre-finetuned · seed 0": None, "R3F in fine-tuning · run 1": {"r3f": 1.0},
    }  # fmt: skip


# ---- running


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("scale", {"3 tasks", "1 task", "1 task, same rows", "3 tasks, same rows"}),
        ("labels", {"pre-finetuned", "1 random task"}),
        ("ablations", {"base run", "order=batch-homogeneous", "with denoising", "1 random task"}),
        ("transfer", {"all tasks", "micro/larger-subject", "micro/choose-large", "micro/fill-verb"}),
    ],
)
def test_every_kind_runs_from_one_call_to_readings_of_every_group(go, kind, groups, tmp_path):
    found = go(kind, factors=("order", "denoising"), controls=("further", "random"))
    assert groups | {"further training"} <= set(found.groups)
    assert {reading.group for reading in found.readings} == set(found.groups)
    assert all({target.task for target in reading.targets} == {"micro/target-object-category", "micro/target-object-looks"}
               for reading in found.readings)  # fmt: skip
    assert {(one.group, one.against) for one in found.contrasts} == set(map(tuple, found.protocol["contrasts"]))
    assert not found.missing
    assert not found.problems
    assert found.sentences()
    for arm in found.protocol["arms"].values():
        settings = make_config(json.loads(json.dumps(found.protocol["settings"])), arm["settings"], {"seed": arm["seed"]})
        run = tmp_path / "out" / arm["run"]
        assert settings.to_yaml() == (run / "config.yaml").read_text()
        assert not (run / "checkpoints").exists()


def test_what_two_groups_share_is_run_once(go, ran, tmp_path):
    runs, cells = ran
    found = go("scale", counts=(0, None), controls=())  # all tasks with all rows are all tasks with the same rows
    assert set(found.groups) == {"3 tasks", "3 tasks, same rows"}
    assert len(runs) == 1
    assert len(cells) == 2 * 2  # two targets from the base and from one run
    one, other = (found.reading(name, "8").targets[0] for name in found.groups)
    assert one.scores.tolist() == other.scores.tolist()
    # And by members of a larger study.
    go("scale", counts=(0, None), controls=(), members=2)
    assert len(runs) == 2
    assert len(cells) == 2 * 3


def test_the_protocol_is_written_before_the_first_run_and_plan_writes_nothing_else(go, ran, tmp_path, monkeypatch):
    found = go(plan_only=True)
    assert ran == ([], [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "study.json"]
    assert found.readings == ()
    assert any("5 of 5 are not finished" in line for line in found.missing)
    before = (tmp_path / "out" / "study.json").read_bytes()
    assert go(plan_only=False).readings
    assert (tmp_path / "out" / "study.json").read_bytes() == before


def test_a_killed_study_goes_on_without_running_finished_parts_again(go, ran, monkeypatch, tmp_path):
    runs, cells = ran
    given = {"controls": ("further", "homogeneous"), "seeds": 2}
    whole = go(out=tmp_path / "whole", **given)
    total_runs, total_cells = len(runs), len(cells)
    assert (total_runs, total_cells) == (3, 2 * 2 * 4)
    runs.clear()
    cells.clear()

    updates, update = [], loop.update

    def killed_update(*arguments):
        updates.append(1)
        if len(updates) == 4 + 3:  # in the second run, behind its first checkpoint
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(loop, "update", killed_update)
    with pytest.raises(KeyboardInterrupt):
        go(**given)
    assert not (tmp_path / "out" / "comparison").exists()
    finished = runs[0]

    learn, calls = sys.modules["prefinetune.compare"].learn, []

    def killed_cell(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return learn(*arguments)

    monkeypatch.setattr(sys.modules["prefinetune.compare"], "learn", killed_cell)
    runs.clear()
    with pytest.raises(KeyboardInterrupt):
        go(**given)
    assert finished not in runs
    assert len(runs) == 2
    trained = len([at for at in range(len(updates)) if at >= 4 + 3]) - 5 * 2  # less those of five cells
    assert trained == 2 + 4  # what the checkpoint did not hold, and the third run
    cells.clear()
    monkeypatch.setattr(sys.modules["prefinetune.compare"], "learn", learn)
    found = go(**given)
    assert len(runs) == 2
    assert len(cells) == total_cells - 5

    def scores(study):
        return {(one.group, target.task): target.scores.tolist() for one in study.readings for target in one.targets}

    assert scores(found) == scores(whole)
    cells.clear()
    assert scores(go(**given)) == scores(whole)
    assert not cells


def test_trainings_travel_to_other_processes_and_come_to_the_same(go, monkeypatch, tmp_path):
    """That processes run what travels is proved by test_demo.py and test_compare.py; here it travels, and runs in this one."""
    monkeypatch.setattr(runs_module.Lab, "compare", lambda *_: None)
    one = go(out=tmp_path / "1", controls=("further",))
    sent = []

    def travelled(jobs, processes, display):
        sent.append((len(jobs), processes))
        for job in jobs:
            pickle.loads(pickle.dumps(job)).run()
        return {}

    monkeypatch.setattr(runs_module, "side_by_side", travelled)
    two = go(out=tmp_path / "2", processes=2, controls=("further",))
    assert sent == [(2, 2)]
    assert one.protocol["arms"] == two.protocol["arms"]
    for arm in one.protocol["arms"].values():
        weights = [(found.folder / arm["run"] / "model" / "model.safetensors").read_bytes() for found in (one, two)]
        assert weights[0] == weights[1]


def test_a_task_whose_fields_are_functions_travels_by_its_name_in_the_catalogue(small):
    from prefinetune.catalog import catalog

    unnamed = replace(small.tasks[0], family=Classification(lambda row: row["text"]))
    with pytest.raises(InputError, match="its fields are functions that no module names"):
        portable(unnamed)
    assert portable(small.tasks[0]) is small.tasks[0]
    for task in catalog():
        assert portable(task) in (task, task.name)
        pickle.dumps(portable(task))  # as the pipe to another process does
    lambdas = [task.name for task in catalog() if portable(task) == task.name]
    assert all(find_task(name) in catalog().tasks for name in lambdas)


def test_a_pre_finetuning_that_cannot_be_done_is_said_and_takes_no_other_with_it(go, monkeypatch, tmp_path):
    train = runs_module.train

    def failing(suite, model, out, *, config, **rest):
        if config.mixture.order == "batch-homogeneous":
            raise InputError("10 updates in a row were not finite")
        return train(suite, model, out, config=config, **rest)

    monkeypatch.setattr(runs_module, "train", failing)
    found = go(controls=("homogeneous",))
    assert {reading.group for reading in found.readings} == {"pre-finetuned"}
    assert any("1 of 2 are not finished" in line for line in found.missing)


# ---- the protocol only grows


def test_weights_of_an_arm_that_has_all_its_cells_may_be_deleted_and_are_made_anew_only_for_further_cells(go, ran):
    runs, cells = ran
    first = go("labels", controls=("further",))
    made = first.folder / first.protocol["arms"]["pre-finetuned · seed 0"]["run"]
    before = {path.name: path.read_bytes() for path in (made / "model").glob("*.safetensors")}
    runs.clear()
    cells.clear()
    for gone in (made / "model", first.folder / "runs"):
        shutil.rmtree(gone)
        again = go("labels", controls=("further",))
        assert (runs, cells) == ([], [])
        assert again.as_dict() == first.as_dict()
        assert set(read_plan(again.folder / "comparison")["arms"]) == {"base", *first.protocol["arms"]}
    more = go("labels", controls=("further",), seeds=2)
    assert len(runs) == 2
    assert {seed for _, _, _, seed in cells} == {1}
    assert {path.name: path.read_bytes() for path in (made / "model").glob("*.safetensors")} == before
    assert not more.missing


def test_a_study_grows_by_seeds_members_targets_and_labels_and_keeps_what_it_has(go, ran, targets, tmp_path):
    runs, cells = ran
    first = go("labels", controls=(), targets=targets[:1])
    begun = len(runs), len(cells)
    found = go("labels", controls=(), seeds=2, members=2, labels=(8, 0.5))
    assert len(runs) == begun[0] + 1
    assert len(cells) == 3 * 2 * 2 * 2  # those of the beginning among them: (base, two members) x targets x labels x seeds
    assert found.labels == ["8", "50 %"]
    (reading,) = [one for one in found.readings if one.at == "8"]
    assert (len(reading.targets), len(reading.members), reading.seeds) == (2, 2, (0, 1))
    kept = next(one for one in reading.targets if one.task == targets[0].name)
    assert kept.scores[0, 0] == first.readings[0].targets[0].scores[0, 0]
    (grown,) = found.protocol["grown"]
    assert (grown["seeds"], grown["members"], grown["labels"]) == ([0, 1], 2, ["8", "50 %"])
    assert found.protocol["started"] == first.protocol["started"]
    cells.clear()
    assert go("labels", controls=(), seeds=1, members=1).protocol["seeds"] == [0, 1]  # and never shrinks
    assert not cells


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {**CONFIG, "train": {**CONFIG["train"], "updates": 5}}}, "it differs in settings"),
        ({"finetuning": {"train": {"updates": 3}}}, "settings of the fine-tuning"),
        ({"grid": (1e-3,)}, "grid"),
        ({"controls": ()}, "groups, counts, factors or controls"),
        ({"kind": "transfer"}, "kind"),
        ({"targets": 1}, "target micro/target-object-looks, which is missing"),
        ({"suite": 2}, "suite"),
        ({"suite": "more"}, "suite"),
    ],
)
def test_a_changed_protocol_is_refused_with_what_differs(go, suite, small, targets, tmp_path, changes, message):
    go(plan_only=True)
    before = (tmp_path / "out" / "study.json").read_bytes()
    if "suite" in changes:
        more = suite.select("micro/find-large").tasks
        changes = {"suite": small.add(*more) if changes["suite"] == "more" else replace(small, tasks=small.tasks[:2])}
    if "targets" in changes:
        changes = {"targets": targets[: changes["targets"]]}
    with pytest.raises(InputError, match=message):
        go(**changes)
    assert (tmp_path / "out" / "study.json").read_bytes() == before


def test_a_study_begun_before_there_was_a_setting_goes_on(go, tmp_path):
    go(plan_only=True)
    path = tmp_path / "out" / "study.json"
    older = json.loads(path.read_text())
    del older["finetuning"]["lora"], older["finetuning"]["objective"]["scaling"]
    path.write_text(json.dumps(older))
    assert go(plan_only=True, seeds=3).protocol["seeds"] == [0, 1, 2]


def test_another_model_is_another_study(go, tiny_model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    go(plan_only=True)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="it differs in model"):
        go(model=other)


# ---- budget


def test_a_budget_gives_every_group_a_first_member_before_any_a_second_and_says_what_it_left_out(go):
    whole = go(plan_only=True, members=3)
    total, arms = whole.protocol["costs"]["examples"], whole.protocol["arms"]
    assert len(arms) == 5 * 3
    found = go(plan_only=True, members=3, out=whole.folder.parent / "less", budget=str(round(0.6 * total)))
    members = {name: [arm["member"] for arm in found.protocol["arms"].values() if arm["group"] == name] for name in found.groups}
    assert found.protocol["costs"]["examples"] <= 0.6 * total
    assert {"seed 0"} <= set.intersection(*map(set, members.values()))
    assert {len(one) for one in members.values()} == {1, 2}
    left = [name for name in arms if name not in found.protocol["arms"]]
    assert [line.split(":")[0] for line in found.protocol["left_out"]] == left
    assert all("beyond the budget of" in line for line in found.missing[: len(left)])
    # The same call plans the same; more budget adds to it.
    assert go(plan_only=True, members=3, out=found.folder, budget=found.protocol["budget"]).protocol == found.protocol
    more = go(plan_only=True, members=3, out=found.folder)
    assert {**more.protocol["arms"], **found.protocol["arms"]} == more.protocol["arms"]
    assert len(more.protocol["arms"]) == 15
    assert more.protocol["left_out"] == []


def test_costs_are_the_examples_that_the_runs_and_cells_count(go, tmp_path):
    found = go("labels", controls=(), seeds=2, grid=(1e-3, 1e-2), tuning_seeds=1)
    runs = [read_records(tmp_path / "out" / arm["run"] / "results.jsonl")[0] for arm in found.protocol["arms"].values()]
    cells = read_records(tmp_path / "out" / "comparison" / "results.jsonl")
    trained = sum(one["examples"] for one in (*runs, *cells))
    scored = sum(one["rows"] for one in cells) + 3 * CONFIG["train"]["evaluation_rows"]
    chosen_on = 2 * 2 * 8  # validation rows: two rates, two targets
    again = 2 * (2 * 8 + 100 / 3)  # the cells of the rate that was chosen are not run twice, but counted so
    assert found.protocol["costs"]["examples"] == pytest.approx(trained + (scored + chosen_on) / 3 + again, rel=0.02)


def test_a_time_needs_speed_which_is_measured_by_a_trial_or_by_finished_runs(go, tmp_path):
    found = go(plan_only=True, budget="2h", controls=("further",))
    costs = found.protocol["costs"]
    assert "updates of the base run" in costs["speed"]
    assert costs["seconds"] == pytest.approx(costs["examples"] / costs["examples_per_second"], abs=1)
    assert not (tmp_path / "out" / "runs").exists()  # the trial leaves nothing
    done = go(budget="2h", controls=("further",))
    for run in (done.folder / "runs").iterdir():  # as a fast machine would record them
        lines = [{**record, "seconds": 0.0} for record in read_records(run / "results.jsonl")]
        (run / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    costs = go(plan_only=True, budget="3h", members=2, controls=("further",)).protocol["costs"]
    assert "of 2 finished runs" in costs["speed"]
    examples = sum(read_records(run / "results.jsonl")[-1]["examples"] for run in (done.folder / "runs").iterdir())
    assert costs["examples_per_second"] == pytest.approx(examples / (2 * 0.05))


def test_two_processes_do_not_run_one_study(go, ran, tmp_path):
    with writing_alone(tmp_path / "out"), pytest.raises(InputError, match="out is in use: another process is writing to it"):
        go(controls=())
    assert ran == ([], [])
    assert not (tmp_path / "out" / "study.json").exists()
    assert go(plan_only=True, controls=()).protocol["arms"]


def test_speed_is_that_of_all_trainings_that_run_side_by_side(go, monkeypatch):
    def ran(jobs, processes, display):
        for number, job in enumerate(jobs, 1):
            job.folder.mkdir(parents=True)
            (job.folder / "metrics.jsonl").write_text(json.dumps({"examples_per_second": 100.0 * number}) + "\n")
        assert len(jobs) == processes == 3
        return {}

    monkeypatch.setattr(runs_module, "side_by_side", ran)
    costs = go(plan_only=True, budget="2h", controls=("further",), processes=3).protocol["costs"]
    assert costs["examples_per_second"] == 600
    assert "3 side by side" in costs["speed"]


def test_a_trial_that_cannot_be_run_says_why(go, monkeypatch):
    monkeypatch.setattr(runs_module, "side_by_side", lambda jobs, *_: {jobs[0].name: InputError("out of memory")})
    with pytest.raises(InputError, match="out of memory"):
        go(plan_only=True, budget="2h", controls=("further",))


@pytest.mark.parametrize(
    ("text", "amount"),
    [("2h", (7200, "seconds")), ("90m", (5400, "seconds")), ("1.5 h", (5400, "seconds")), ("45s", (45, "seconds")),
     ("30min", (1800, "seconds")), ("500000", (500_000, "examples")), ("500,000", (500_000, "examples")),
     ("2e6", (2e6, "examples"))],
)  # fmt: skip
def test_a_budget_is_a_time_or_a_number_of_examples(text, amount):
    assert parse_budget(text) == amount


@pytest.mark.parametrize("text", ["", "2 days", "h", "-5", "0", "two hours"])
def test_what_is_no_budget_is_refused_with_what_is_one(text):
    with pytest.raises(InputError, match="expected a time \\(2h, 90m, 45s\\) or a number of examples"):
        parse_budget(text)


# ---- input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "scales"}, "'scales' is not accepted.*did you mean 'scale'.*labels, ablations, transfer"),
        ({"kind": "ablations", "factors": ("ordr",)}, "--factors: 'ordr' is not accepted.*did you mean 'order'"),
        ({"controls": ("further", "nil")}, "--controls: 'nil' is not accepted"),
        ({"kind": "scale", "counts": (-1,)}, "--counts: -1 are not accepted"),
        ({"config": {}}, "train.updates is missing"),
        ({"suite": None}, "a suite is missing"),
        ({"kind": "scale", "arms": {"mine": ["x"]}}, "--arm is for studies of labels"),
        ({"arms": {"mine": ["no/such/run"]}}, "no/such/run"),
        ({"arms": {"base": ["x"]}}, "the name 'base' is taken"),
        ({"finetuning": {"train": {"patience": 3}}}, "does not stop early"),
        ({"seeds": 0}, "at least one of each"),
        ({"members": 0}, "members: 0 is not accepted"),
        ({"budget": "10"}, "the base and one pre-finetuning, with their cells, take [0-9,]+ examples"),
        ({"model": "no/such/model"}, "no/such/model"),
    ],
)
def test_what_cannot_be_studied_is_an_error_before_anything_is_written(go, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        go(**changes)
    assert not (tmp_path / "out").exists()


def test_a_target_that_is_trained_on_is_refused(go, small):
    with pytest.raises(InputError, match="targets: micro/choose-large stand in the suite too"):
        go(targets=[small["micro/choose-large"]])


def test_a_folder_with_something_else_is_refused(go, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("")
    with pytest.raises(InputError, match="holds something that is no study"):
        go()


def test_models_that_are_there_already_make_groups_of_a_study_of_labels(go, ran, tiny_model):
    runs, _ = ran
    found = go("labels", suite=None, arms={"same": [tiny_model, tiny_model], "other": [tiny_model]}, config={}, seeds=2)
    assert not runs
    assert {name: len(group.arms) for name, group in found.groups.items()} == {"same": 2, "other": 1}
    assert found.reading("same", "8").effect.mean == 0.0  # it is the base itself
    assert found.reading("same", "8", "other").effect.mean == 0.0
    assert "one checkpoint" in found.sentences()[-1]


def test_tasks_whose_rows_cannot_be_found_are_left_out_where_that_is_asked_for(go, small, tmp_path):
    suite = small.add(replace(small.tasks[0], name="micro/gone", source=Hub("no/such-set")))
    with pytest.raises(InputError, match="1 datasets cannot be found: micro/gone"):
        go(suite=suite, plan_only=True)
    found = go(suite=suite, plan_only=True, skip_missing=True)
    assert found.protocol["left_out"] == ["micro/gone: its rows cannot be found"]
    assert "micro/gone" not in found.protocol["suite"]["tasks"]
    assert go(suite=suite, plan_only=True, skip_missing=True).protocol == found.protocol


# ---- the command


def arm_run(told):
    return next(iter(told["protocol"]["arms"].values()))["run"]


def test_the_command_plans_runs_and_ends_with_what_the_numbers_justify(command, tiny_model, tmp_path):
    names = {"suite": "abc", "targets": "de"}
    for file, letters in names.items():
        lines = [f"name: {file}", "tasks:"]
        for letter in letters:
            rows = [
                f"the duni kuno {'gilas' if row % 2 else 'bano'} {letter}{row},{'yes' if row % 2 else 'no'}" for row in range(60)
            ]
            (tmp_path / f"{letter}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
            lines.append(f"  - {{name: {letter}, source: {letter}.csv, classification: {{text: text, label: label}}}}")
        (tmp_path / f"{file}.yaml").write_text("\n".join(lines) + "\n")
    arguments = [
        "study", "scale", tmp_path / "suite.yaml", "--targets", tmp_path / "targets.yaml", "--model", tiny_model, "--counts",
        "0,1,all", "--orders", "2", "--labels", "8", "--seeds", "2", "--grid", "1e-2", "--controls", "further", "--finetune",
        "train.updates=2", "--out", tmp_path / "out", "train.updates=2", "train.evaluation_rows=4",
    ]  # fmt: skip
    code, _, errors = command(*arguments, "--plan")
    assert code == 0
    assert "commit it" in errors
    assert "3 tasks" in errors
    code, output, errors = command(*arguments, "--json")
    assert code == 0
    told = json.loads(output)
    assert told["protocol"]["kind"] == "scale"
    assert {one["group"] for one in told["readings"]} == {
        "1 task",
        "3 tasks",
        "1 task, same rows",
        "3 tasks, same rows",
        "further training",
    }
    assert told["sentences"] == read_study(tmp_path / "out").sentences()
    assert told["sentences"][-1] in errors
    arms = ["--arm", f"one={tiny_model}", "--arm", f"two={tiny_model}", "--arm", f"one={tmp_path / 'out' / arm_run(told)}"]
    code, output, _ = command("study", "labels", *arms, *arguments[3:7], "--out", tmp_path / "labels", "--plan", "--json")
    assert code == 0
    assert [arm["group"] for arm in json.loads(output)["protocol"]["arms"].values()] == ["one", "two", "one"]
    code, _, errors = command("study", "scale", tmp_path / "suite.yaml", "--model", tiny_model)
    assert (code, "--targets is missing" in errors) == (2, True)
    code, _, errors = command(*arguments, "--counts", "many")
    assert (code, "expected numbers of tasks such as 0,5,10,all" in errors) == (2, True)
