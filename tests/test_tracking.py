"""Trackers are told what the run's files say, go on with a resumed run, and cannot bring a run down."""

import json
import shutil
import sqlite3
import time
from collections import defaultdict
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker

import microworld
from prefinetune import tracking
from prefinetune.checkpoint import checkpoints
from prefinetune.config import Config, make_config
from prefinetune.errors import InputError
from prefinetune.results import RunFolder
from prefinetune.train import train

Curves = dict[str, dict[int, float]]  # what a tracker has, read back: name -> {step: value}


@pytest.fixture
def begun(tmp_path) -> Path:
    """A run's folder, as it is when the loop begins."""
    Accelerator(cpu=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"kind": "train", "model": "https://me:hf_secret@host/model"}))
    return tmp_path / "run"


def record(step: int) -> dict:
    by_task = {"glue/rte": 1 / step, "tasksource:a+b": 2.0}
    return {"step": step, "loss": 0.5 + step, "loss_by_task": by_task, "examples_by_task": dict.fromkeys(by_task, 4), "lr": 1e-3}


def tell(out: Path, tracker: str) -> None:
    """A run of four updates that was stopped after three, and went on from the checkpoint at two."""
    config = make_config(overrides=[f"train.track={tracker}", "seed=7"])
    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        folder = RunFolder(out)
        folder.track(config, done, pytest.fail)
        for step in steps:
            folder.add_metrics(record(step))
            if step > 2:
                folder.add_scores(step, {"glue/rte": 0.5, "tasksource:a+b": 0.7})
        if done:
            folder.add_result({"task": "glue/rte", "score": 0.75, "updates": 4})
        assert folder.tracking is not None
        folder.tracking.finish()


EXPECTED: Curves = {
    "train/loss": {1: 1.5, 2: 2.5, 3: 3.5, 4: 4.5}, "train/lr": dict.fromkeys(range(1, 5), 1e-3),
    "loss/glue-rte": {1: 1.0, 2: 0.5, 3: 1 / 3, 4: 0.25}, "loss/tasksource-a-b": dict.fromkeys(range(1, 5), 2.0),
    "examples/glue-rte": dict.fromkeys(range(1, 5), 4), "examples/tasksource-a-b": dict.fromkeys(range(1, 5), 4),
    "score/glue-rte": {3: 0.5, 4: 0.5}, "score/tasksource-a-b": {3: 0.7, 4: 0.7},
    "validation/mean_score": {3: 0.6, 4: 0.6}, "final/glue-rte": {4: 0.75},
}  # fmt: skip


def assert_curves(found: Curves, settings: dict[str, str]) -> None:
    assert found.keys() == EXPECTED.keys()
    for name, curve in EXPECTED.items():
        assert found[name] == pytest.approx(curve, rel=1e-6), name
    assert settings["seed"] == "7"
    assert settings["optimizer.learning_rate"] == "3e-05"
    assert settings["model"] == "https://***@host/model"


def read_tensorboard(out: Path) -> Curves:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (prefinetune[tensorboard])")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert all(len({one.step for one in curve}) == len(curve) for curve in scalars.values())  # nothing twice
    return {name: {one.step: one.value for one in curve} for name, curve in scalars.items()}


def test_tensorboard_has_one_curve_per_number_also_of_a_run_that_went_on(begun):
    tell(begun, "tensorboard")
    curves = read_tensorboard(begun)
    (written,) = begun.glob("tensorboard/*/hparams.yml")
    settings = {name: str(value) for name, value in tracking.hyper_parameters(begun, make_config({"seed": 7})).items()}
    assert all(f"{name}: " in written.read_text() for name in settings)
    assert "hf_secret" not in written.read_text()
    assert_curves(curves, settings)


def test_weights_and_biases_offline_has_the_curves_under_one_run(begun, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases is not installed (prefinetune[test-trackers])")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tell(begun, "wandb")
    places = sorted(begun.glob("wandb/offline-run-*/*.wandb"))
    curves: Curves = defaultdict(dict)
    settings = {}
    for place in places:
        for one in map(Record.FromString, written_out(place)):
            settings |= {item.key: str(json.loads(item.value_json)) for item in one.config.update}
            for item in one.history.item:
                if "/" in item.nested_key[0]:
                    curves[item.nested_key[0]][one.history.step.num] = json.loads(item.value_json)
    assert len(places) == 2  # `wandb sync` puts them together:
    assert len({place.name for place in places}) == 1
    assert_curves(curves, settings)


def written_out(place: Path, seconds: float = 20) -> list[bytes]:
    """The records of a file that a process of wandb's own may still be writing when `finish` has come back."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + seconds
    while True:
        found = list(leveldb_records(place.read_bytes()))
        if any(Record.FromString(one).HasField("exit") for one in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def leveldb_records(data: bytes, at: int = 7):
    """The records of a log in LevelDB's format: blocks of 32 KiB of pieces, each with its length and what of a record it is."""
    whole = b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole = (b"" if kind in (1, 2) else whole) + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole


def test_mlflow_in_a_local_database_has_the_curves_under_one_run(begun, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (prefinetune[test-trackers])")
    pytest.importorskip("alembic", reason="MLflow's database needs it (prefinetune[test-trackers])")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    tell(begun, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'prefinetune'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    curves = {
        name: {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)} for name in run.data.metrics
    }
    assert_curves(curves, run.data.params)


def test_trackio_has_the_curves_under_one_run(begun, tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="Trackio is not installed (prefinetune[test-trackers])")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    tell(begun, "trackio")
    curves: Curves = defaultdict(dict)
    with sqlite3.connect(SQLiteStorage.get_project_db_path("prefinetune")) as database:
        runs = database.execute("select distinct run_id, run_name from metrics").fetchall()
        for step, values in database.execute("select step, metrics from metrics"):
            for name, value in json.loads(values).items():
                curves[name][step] = value
        ((settings,),) = database.execute("select config from configs")
    assert [name for _, name in runs] == [json.loads((begun / "tracking.json").read_text())["trackio"]]
    assert_curves(curves, {name: str(value) for name, value in json.loads(settings).items()})


# ---- in a run

SETTINGS = {
    "mixture": {"sub_batches": 2, "sub_batch_size": 4},
    "train": {"updates": 6, "log_every": 1, "checkpoint_every": 2, "evaluate_every": 3, "track": "tensorboard"},
}


@pytest.fixture(scope="module")
def suite():
    return microworld.world(0, rows_per_task=48, validation_rows=16).select("micro/subject-category", "micro/find-large")


def test_a_run_tells_what_its_files_say_and_goes_on_in_the_same_curves(suite, tiny_model, tmp_path, cache):
    out = tmp_path / "run"
    train(suite, tiny_model, out, config=SETTINGS)
    for name in ("model", "heads"):
        shutil.rmtree(out / name)
    (out / "results.jsonl").unlink()
    shutil.rmtree(checkpoints(out / "checkpoints")[-1])
    train(suite, tiny_model, out, config=SETTINGS, resume=True)
    curves, folder = read_tensorboard(out), RunFolder(out)
    for record in folder.metrics():
        for name in ("loss", "lr", "grad_norm", "padding", "skipped", "examples_per_second", "tokens_per_second"):
            assert curves[f"train/{name}"][record["step"]] == pytest.approx(record[name], rel=1e-6)
        for group in ("loss", "examples", "tokens"):
            for task, value in record[f"{group}_by_task"].items():
                assert curves[f"{group}/{task.replace('/', '-')}"][record["step"]] == pytest.approx(value, rel=1e-6)
    results = {one["task"]: one["score"] for one in folder.results()}
    assert len(results) == 2
    for task, score in results.items():
        assert curves[f"final/{task.replace('/', '-')}"] == pytest.approx({6: score})
        assert curves[f"score/{task.replace('/', '-')}"].keys() == {3, 6}
        assert curves[f"score/{task.replace('/', '-')}"][6] == pytest.approx(score)


def test_a_tracker_that_fails_is_left_out_with_one_line_and_the_run_goes_on(begun, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to https://me:password@host")

    said: list[str] = []
    folder = RunFolder(begun)
    folder.track(make_config(overrides=["train.track=tensorboard"]), 0, said.append)
    monkeypatch.setattr(TensorBoardTracker, "log", unreachable)
    for step in (1, 2, 3):
        folder.add_metrics(record(step))
    assert said == ["tensorboard failed (no route to https://***@host); going on without it: metrics.jsonl has everything"]
    assert [one["step"] for one in folder.metrics()] == [1, 2, 3]


def test_a_tracker_that_cannot_start_stops_the_run_before_it_begins(suite, begun, monkeypatch):
    def no_key(*_):
        raise ValueError("no API key configured\nand more")

    monkeypatch.setattr(TensorBoardTracker, "start", no_key)
    with pytest.raises(InputError, match=r"train.track: tensorboard could not be started \(no API key configured\)"):
        RunFolder(begun).track(make_config(overrides=["train.track=tensorboard"]), 0, pytest.fail)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"train.track: wandb is not installed: pip install 'prefinetune\[wandb\]'"):
        train(suite, "no model", begun, config={"train": {"track": "wandb"}})


def test_of_several_processes_the_main_one_speaks(begun, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    folder = RunFolder(begun)
    folder.track(make_config(overrides=["train.track=tensorboard"]), 0, pytest.fail)
    folder.add_metrics(record(1))
    assert not (begun / "tensorboard").exists()


def test_trackers_are_named_by_flag_or_setting_and_change_no_digest(command):
    from prefinetune.cli.shared import parse_trackers

    for texts in (["wandb", "mlflow"], ["wandb,mlflow"]):
        assert make_config(overrides=parse_trackers(texts)).train.track == ("wandb", "mlflow")
    assert parse_trackers(None) == []
    assert make_config(overrides=["train.track=[trackio]"]).digest() == Config().digest()
    code, _, errors = command("train", "glue/rte", "--model", "none", "--report-to", "visdom")
    assert code == 2
    assert "'visdom' is not accepted; expected 'tensorboard', 'wandb', 'mlflow' or 'trackio'" in errors
