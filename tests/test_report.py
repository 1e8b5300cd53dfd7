"""The page and the list: whatever state folders are in, and in a real browser without a network."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from prefinetune import evidence, statistics
from prefinetune.config import Config
from prefinetune.errors import InputError
from prefinetune.report import list_runs, write_report
from prefinetune.report.charts import TaskList, Views, gain_chart, loss_chart, loss_lines, score_panels, share_chart, speed_charts
from prefinetune.report.comparisons import missing_words
from prefinetune.report.read import read_folders, read_run

NASTY = [
    "<script>alert(1)</script>",
    "quote\"' &amp; <b>bold</b> %{x}",
    "ünïcødé/日本語 😀",
    "plain/one",
    "long/" + "-".join(["word"] * 30),
]
FAMILIES = ("classification", "regression", "choice", "span")
ENVIRONMENT = {
    "python": "3.11.7", "platform": "Linux", "cores": 2, "packages": {"torch": "2.13.0"}, "started": "2026-11-24T02:05:14+00:00",
}  # fmt: skip


# ---- synthetic folders


def make_run(
    folder: Path, names: list[str], updates: int = 100, done: int | None = None, kind: str = "train", **settings
) -> Path:
    """A run's folder; `done` updates of those planned, and results where that is all of them."""
    done = updates if done is None else done
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    config = Config().model_dump()
    config["train"]["updates"] = updates
    for section, values in settings.items():
        config[section].update(values)
    tasks = [
        {
            "name": name, "source": f"hub:{name}", "splits": {"train": "train"}, FAMILIES[index % 4]: {"text": "text"},
            "license": "mit",
            "store": {"examples": 100 * (index + 1), "tokens": 1000 * (index + 2), "truncated": 1, "digest": "d"},
        }
        for index, name in enumerate(names)
    ]  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "suite.yaml").write_text(yaml.safe_dump({"name": "suite", "model": "base", "tasks": tasks}, allow_unicode=True))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "run.json").write_text(json.dumps({"kind": kind, "model": "some/model", "settings": "s", "data": "d"}))
    for step in range(10, done + 1, 10):
        losses = {name: float(1.1 - 0.008 * step * (index % 3) + rng.normal(0, 0.02)) for index, name in enumerate(names)}
        add_line(folder / "metrics.jsonl", {
            "step": step, "loss": 0.9, "loss_by_task": losses, "lr": 1e-4, "padding": 0.1, "examples_per_second": 300.0,
            "tokens_per_second": 9000.0, "skipped": 0,
        })  # fmt: skip
    if done == updates:
        for name in names:
            add_line(folder / "results.jsonl", {
                "task": name, "metric": "accuracy", "score": 0.5, "scores": {}, "updates": updates, "when": "2026-11-24T03:00:00",
            })  # fmt: skip
    return folder


def make_comparison(
    folder: Path,
    names: list[str],
    labels: dict[str, int],
    arms: tuple[str, ...] = ("base", "pre-finetuned", "further"),
    seeds: int = 2,
    rows: int = 30,
    without: tuple[str, int] | None = None,
) -> Path:
    """A comparison's folder in which tasks lose and gain by turns; `without` an (arm, seed)."""
    rng = np.random.default_rng(0)
    (folder / "rows").mkdir(parents=True)
    plan = {
        "format": 1, "base": "base", "treated": "pre-finetuned",
        "arms": {arm: {"start": str(folder.parent / arm), "weights": f"w-{arm}"} for arm in arms},
        "tasks": {
            name: {"family": "classification", "metric": "accuracy", "labels": labels, "source": "hub:x", "license": "mit"}
            for name in names
        },
        "labels": list(labels), "seeds": list(range(seeds)), "grid": [3e-5, 1e-4], "tuning_seeds": [0],
        "settings": {"optimizer": {"warmup": 0.1}}, "left_out": ["plain/one, 512 labels: it has 300 rows"],
        "command": "prefinetune compare t.yaml --from x", "started": "2026-11-24T03:00:00+00:00", "environment": ENVIRONMENT,
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(plan))
    number = 0
    for index, name in enumerate(names):
        for count in labels.values():
            for arm in arms:
                for seed in range(seeds):
                    for rate in (3e-5, 1e-4) if arm == "base" and seed == 0 else (3e-5,):
                        if (arm, seed) == without:
                            continue
                        chance = 0.5 + (arm == "pre-finetuned") * (0.2 if index % 2 else -0.2) + rng.normal(0, 0.02)
                        right = (rng.random(rows) < chance).astype(float)[:, None]
                        np.save(folder / "rows" / f"{number}.npy", right)
                        score = float(right.mean())
                        add_line(folder / "results.jsonl", {
                            "task": name, "family": "classification", "arm": arm, "labels": count, "seed": seed,
                            "metric": "accuracy", "score": score, "scores": {"accuracy": score, "majority": 0.3},
                            "learning_rate": rate, "validation": 1 - rate, "digest": str(number), "subset": "s", "rows": rows,
                            "when": "2026-11-24T04:00:00+00:00",
                        })  # fmt: skip
                        number += 1
    return folder


def add_line(path: Path, record: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


@pytest.fixture(scope="module", autouse=True)
def fewer_resamples():
    """The intervals are not looked at here, and two thousand resamples of hundreds of cells take half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "resampled_scores", partial(evidence.resampled_scores, resamples=50))
        patch.setattr(statistics, "ROW_SHARES", (np.arange(41) + 0.5) / 41)
        patch.setattr(statistics, "T_SHARES", (np.arange(41) + 0.5) / 41)
        yield


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> Path:
    """A demo's folder: two runs, a fine-tuning, a comparison at two label counts, and damage."""
    root = tmp_path_factory.mktemp("five") / "demo"
    make_run(root / "pre-finetuned", NASTY)
    make_run(root / "base", ["docs/text"])
    make_run(root / "tuned", NASTY[:1], kind="finetune")
    make_comparison(root / "comparison", NASTY, {"32": 32, "all": 400})
    (root / "demo.json").write_text(json.dumps({"seconds": {"mining": 31.0, NASTY[0]: 4.0}}))
    with (root / "base" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "loss_by_')
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("many")
    names = [f"group{index % 7}/task-{index}" for index in range(200)]
    make_run(root / "pre-finetuned", names)
    make_comparison(root / "comparison", names, {"32": 32}, arms=("base", "pre-finetuned"), seeds=2, rows=10)
    return root


@pytest.fixture(scope="module")
def five_page(five, tmp_path_factory) -> Path:
    return write_report([five], tmp_path_factory.mktemp("page") / "new" / "report.html")


@pytest.fixture(scope="module")
def many_page(many, tmp_path_factory) -> Path:
    return write_report([many], tmp_path_factory.mktemp("page") / "report.html")


class Reader(HTMLParser):
    """A page's text outside scripts, its tags, and the JSON its script reads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.inside, self.text, self.tags, self.scripts = "", "", [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data


# ---- what is read


def test_reports_import_no_torch(five, tmp_path):
    code = (
        "import sys; from prefinetune.report import list_runs, write_report\n"
        "run, out = sys.argv[1:]; write_report([run], out); list_runs(run)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(five / "pre-finetuned"), str(tmp_path / "page.html")], check=True)


def test_nested_folders_are_found_once_and_hidden_ones_and_caches_are_not_walked(tmp_path):
    make_run(tmp_path / "a" / "deep" / "run", ["t"])
    for folder in (".hidden", "cache", "stores", "run/checkpoints"):
        make_run(tmp_path / folder / "inner", ["t"])
    found = read_folders([tmp_path, tmp_path / "a", tmp_path / "a" / "deep" / "run"])
    assert [run.name for run in found.runs] == [f"{tmp_path.name}/a/deep/run"]


def test_a_folder_without_runs_or_that_does_not_exist_is_refused_with_what_would_be_accepted(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, said in ((tmp_path, "there is no run in"), (tmp_path / "no", "does not exist"), (tmp_path / "file", "is a file")):
        with pytest.raises(InputError, match=said) as raised:
            write_report([folder], tmp_path / "page.html")
        assert "expected the folder of a run (with run.json)" in str(raised.value)
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(InputError, match="is a folder; expected the name of a file"):
        write_report([make_run(tmp_path / "run", ["t"])], tmp_path)


def test_a_torn_line_is_kept_out_and_told_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path / "run", ["t"])
    for name in ("metrics.jsonl", "results.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 1')
    comparison = make_comparison(tmp_path / "comparison", ["t"], {"32": 32})
    with (comparison / "results.jsonl").open("a") as file:
        file.write('{"task"\n')
    found = read_folders([tmp_path])
    assert found.runs[0].updates == 100
    assert found.runs[0].state == "finished"
    assert [problem.split(": ", 1)[1] for problem in found.problems] == [
        "results.jsonl, line 8: not a whole record, passed over",
        "metrics.jsonl, line 11: not a whole record, passed over",
        "results.jsonl, line 2: not a whole record, passed over",
    ]
    text = Reader(write_report([tmp_path], tmp_path / "page.html")).text
    assert all(problem in text for problem in found.problems)


def test_records_of_other_versions_and_losses_that_are_not_finite_are_passed_over(tmp_path):
    run = make_run(tmp_path / "run", ["t"], done=10)
    for record in (
        {"step": 20, "loss": None, "loss_by_task": {"t": float("nan")}},
        {"step": 30},
        {"step": 40, "loss_by_task": "none", "padding": "much", "tokens_per_second": float("inf")},
        {"step": 50, "loss_by_task": {"t": 0.25}},
        {"epoch": 1},
        {"step": "60"},
    ):
        add_line(run / "metrics.jsonl", record)
    add_line(run / "results.jsonl", {"task": "t", "score": None})
    add_line(run / "results.jsonl", {"score": 0.5})
    read = read_run(run)
    assert [point.step for point in read.points] == [10, 20, 30, 40, 50]
    assert loss_lines(read)["t"][0] == [10, 50]
    assert read.results == ()
    assert read.problems == (
        "metrics.jsonl: 2 records without a step were left out",
        "metrics.jsonl: 1 losses are not finite numbers and are not drawn",
        "results.jsonl: 2 records without a task or a finite score were left out",
    )
    write_report([run], tmp_path / "page.html")


def test_rows_that_leaked_and_rows_set_aside_are_counted_by_task(tmp_path):
    run = make_run(tmp_path / "run", ["clean", "leaky", "older"])
    suite = yaml.safe_load((run / "suite.yaml").read_text())
    suite["tasks"][0]["rows"] = {"train": {"rows": 100, "stored": 100}}
    suite["tasks"][1]["rows"] = {"train": {"rows": 1500, "leak": 1234, "quarantined": 56, "stored": 210}}
    (run / "suite.yaml").write_text(yaml.safe_dump(suite))
    page = write_report([run], tmp_path / "page.html").read_text()
    ends = {}
    for name in ("clean", "leaky", "older"):  # the last two cells of a task's row
        [row] = [row for row in page.split("<tr")[1:] if f">{name}<" in row.split("</tr>")[0] and 'class="number"' in row]
        ends[name] = re.findall(r'<td class="number">(.*?)</td>', row.split("</tr>")[0])[-2:]
    assert ends == {"clean": ["0", "0"], "leaky": ["1,234", "56"], "older": ["", ""]}


def test_a_run_without_metrics_has_a_page(tmp_path):
    text = Reader(write_report([make_run(tmp_path / "run", ["t"], done=0)], tmp_path / "page.html")).text
    assert "No update of this run is recorded yet." in text
    assert "nothing here says whether pre-finetuning helps" in text


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "suite.yaml"])
@pytest.mark.parametrize("content", ["{[", "7", "\xff\x00"])
def test_a_run_with_a_damaged_file_is_shown_as_damaged(tmp_path, name, content):
    run = make_run(tmp_path / "run", ["t"])
    (run / name).write_bytes(content.encode("latin-1"))
    text = Reader(write_report([run], tmp_path / "page.html")).text
    assert f"run: {name}" in text
    (line,) = list_runs(tmp_path)
    assert (line.state, line.next_command) == ("damaged", "")
    assert name in line.problems[0]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"base": "b", "treated": "t", "arms": 1, "tasks": 2, "labels": 3, "seeds": 4, "grid": 5}']
)
def test_a_damaged_comparison_is_a_problem_and_no_crash(tmp_path, content):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "comparison.json").write_text(content)
    text = Reader(write_report([tmp_path], tmp_path / "page.html")).text
    assert "the comparison cannot be shown" in text
    assert [line.state for line in list_runs(tmp_path)] == ["damaged"]


def test_a_surrogate_half_in_a_name_does_not_stop_the_page(tmp_path):
    run = make_run(tmp_path / "run", ["t"], done=10)
    (run / "suite.yaml").write_text('tasks: [{name: "half \\ud800", classification: {}}]')
    assert "half ?" in Reader(write_report([run], tmp_path / "page.html")).text


def test_expected_shares_follow_the_mixture(tmp_path):
    mixture = {"sampling": "temperature", "temperature": 2.0}
    shares = read_run(make_run(tmp_path / "run", ["a", "b"], mixture=mixture)).expected_shares()
    root = [100**0.5, 200**0.5]
    assert shares["a"][0] == pytest.approx(root[0] / sum(root), abs=0.01)
    each = [root[0] * 20, root[1] * 15]  # tokens per example: 2000 / 100 and 3000 / 200
    assert shares["a"][1] == pytest.approx(each[0] / sum(each), abs=0.01)


def test_shares_are_counted_where_the_metrics_count_them(tmp_path):
    run = make_run(tmp_path / "run", ["a", "b"])
    _, counted = read_run(run).shares()
    assert not counted
    (run / "metrics.jsonl").unlink()
    for step, (a, b) in enumerate([(3, 1), (2, 2)], 1):
        add_line(
            run / "metrics.jsonl", {"step": step, "examples_by_task": {"a": a, "b": b}, "tokens_by_task": {"a": 10, "b": 30}}
        )
    shares, counted = read_run(run).shares()
    assert counted
    assert shares == {"a": (5 / 8, 20 / 80), "b": (3 / 8, 60 / 80)}


# ---- the list of runs


def test_every_state_of_a_run_has_its_next_command(tmp_path):
    make_run(tmp_path / "planned", ["glue/cola"], done=0, optimizer={"learning_rate": 1e-4})
    make_run(tmp_path / "stopped", ["mine"], done=50)
    make_run(tmp_path / "with space", ["mine"])
    make_run(tmp_path / "tuned", ["mine"], kind="finetune")
    make_run(tmp_path / "again", ["glue/cola"], kind="finetune", done=50)
    lines = {Path(line.folder).name: line for line in list_runs(tmp_path)}
    assert {name: (line.state, line.done) for name, line in lines.items()} == {
        "planned": ("planned", "0 of 100 updates"),
        "stopped": ("running or stopped", "50 of 100 updates"),
        "with space": ("finished", "100 updates"),
        "tuned": ("finished", "100 updates"),
        "again": ("running or stopped", "50 of 100 updates"),
    }
    assert lines["with space"].best == "0.500"
    assert lines["with space"].next_command == f"prefinetune compare TASK --from '{tmp_path}/with space'"
    assert lines["planned"].next_command == (
        f"prefinetune train glue/cola --model some/model --out {tmp_path}/planned --resume "
        "optimizer.learning_rate=0.0001 train.updates=100"
    )
    assert lines["stopped"].next_command.startswith("prefinetune train SUITE --model some/model")
    assert lines["tuned"].next_command == f"prefinetune report {tmp_path}/tuned --open"
    assert lines["again"].next_command.startswith("prefinetune finetune glue/cola --from some/model")
    (tmp_path / "empty").mkdir()
    assert list_runs(tmp_path / "empty") == []


def test_a_recorded_command_is_repeated_with_resume(tmp_path):
    run = make_run(tmp_path / "run", ["mine"], done=50)
    (run / "environment.json").write_text(json.dumps({"command": "prefinetune train 'my suite.yaml' --model m"}))
    assert list_runs(run)[0].next_command == "prefinetune train 'my suite.yaml' --model m --resume"


def test_updates_planned_by_epochs_are_those_of_the_mixture(tmp_path):
    run = make_run(tmp_path / "run", ["a", "b"], done=10, train={"updates": None, "epochs": 2.0})
    assert read_run(run).planned == 10  # 2 epochs of (25 + 50) sub-batches of 4, 16 an update


def test_a_comparison_counts_its_cells_and_says_its_gain(tmp_path):
    make_comparison(tmp_path / "whole", ["a", "b"], {"32": 32})
    make_comparison(tmp_path / "part", ["a", "b"], {"32": 32}, without=("further", 1))
    make_comparison(tmp_path / "none", ["a"], {"32": 32})
    (tmp_path / "none" / "results.jsonl").unlink()
    none, part, whole = sorted(list_runs(tmp_path), key=lambda line: line.folder)
    # Per task: 2 rates on 1 tuning seed, and 3 arms with 2 seeds, of which one cell was a trial already.
    assert (none.state, part.state, whole.state) == ("planned", "running or stopped", "finished")
    assert (none.done, part.done, whole.done) == ("0 of 7 cells", "12 of 14 cells", "14 cells")
    assert whole.next_command == f"prefinetune report {tmp_path}/whole --open"
    assert part.next_command == "prefinetune compare t.yaml --from x"
    gain = evidence.read_comparison(tmp_path / "whole").over_tasks("32").mean
    assert whole.scores == {"gain at 32 labels": pytest.approx(gain)}
    assert whole.best == f"{gain:+.3f} (32)"


def test_what_was_not_run_is_told_in_groups(tmp_path):
    names = [f"task, {index}" for index in range(40)]
    folder = make_comparison(tmp_path / "c", names, {"32": 32, "all": 99}, without=("further", 1))
    lines = (folder / "results.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["task"] != names[3]]
    (folder / "results.jsonl").write_text("".join(line + "\n" for line in kept))
    failed = {**json.loads(kept[3]), "score": None, "failed": "not finite"}  # a later record of the same cell
    add_line(folder / "results.jsonl", {})
    add_line(folder / "results.jsonl", failed)
    comparison = evidence.read_comparison(folder)
    said = missing_words(comparison)
    assert len(comparison.missing) > 80
    assert said[0] == "With 32 labels, the learning rate is not chosen yet for 1 task: task, 3."
    assert sum("arm further lacks 39 tasks: task, 0, task, 1" in text and "and 27 others (seed 1)" in text for text in said) == 2
    assert sum(" failed on 1 task: task, 0 (seed " in text for text in said) == 1
    assert said[-1] == "plain/one, 512 labels: it has 300 rows"
    assert len(said) == 6


# ---- the page as a file


def test_the_page_opens_with_what_the_numbers_justify_and_has_every_task(many, many_page):
    reader = Reader(many_page)
    for sentence in evidence.read_comparison(many / "comparison").sentences():
        assert 0 < reader.text.index(sentence) < reader.text.index("Lost: ") < reader.text.index("Gained: ")
    assert "one checkpoint, from one pre-finetuning" in reader.text
    for index in range(200):
        assert f"group{index % 7}/task-{index}" in reader.text
    assert many_page.stat().st_size < 8e6


def test_tables_have_headers_and_headings_are_in_order(five_page):
    tags = Reader(five_page).tags
    assert all(attrs.get("scope") in ("col", "row", "rowgroup") for tag, attrs in tags if tag == "th")
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_nothing_is_loaded_from_outside_and_no_data_is_markup(five_page):
    page = five_page.read_text(encoding="utf-8")
    tags = Reader(five_page).tags
    assert not [attrs for _, attrs in tags if "src" in attrs or attrs.get("href", "#")[0] != "#"]
    assert page.count("<script") == page.count("</script>") == 3
    assert "<b>bold" not in page
    assert page.count("plotly.js v") == 1


def test_charts_are_figures_that_plotly_accepts(five):
    import plotly.graph_objects as go

    found = read_folders([five])
    comparison, run = found.comparisons[0].comparison, next(run for run in found.runs if len(run.tasks) == 5)
    tasks, views = TaskList(), Views([comparison])
    specs = [*gain_chart(comparison, views, tasks)["views"].values(), *share_chart(run, tasks)["views"].values()]
    specs += [spec for _, _, spec in score_panels(comparison)] + [spec for _, spec in speed_charts(run)]
    assert len(specs) == 4 + 1 + 6 + 3
    specs.append({"traces": [], "layout": loss_chart([])["layout"]})
    for spec in specs:
        text = re.sub(r'"--[a-z0-9-]+"', '"#000"', json.dumps({"data": spec["traces"], "layout": spec["layout"]}))
        go.Figure(json.loads(text))


def test_texts_can_be_read_on_their_background():
    css = (Path(evidence.__file__).parent / "report" / "page.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): light-dark\(([^)]+)\)", css))

    def luminance(text: str) -> float:
        parts = text.strip().lstrip("#")
        parts = "".join(letter * 2 for letter in parts) if len(parts) == 3 else parts
        linear = [int(parts[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in linear]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str, scheme: int) -> float:
        bright, dark = sorted((luminance(colours[name].split(",")[scheme]) for name in (one, other)), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    for scheme in (0, 1):
        for text in ("ink", "quiet", "accent", "loss", "gain"):
            for ground in ("paper", "raised"):
                assert contrast(text, ground, scheme) >= 4.5, (text, ground, scheme)
        for line in [name for name in colours if re.match(r"(line|arm)-\d|dot", name)]:
            assert contrast(line, "paper", scheme) >= 3, (line, scheme)


# ---- the page in a browser


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None and not {"CI", "PREFINETUNE_NEEDS_BROWSER"} & set(os.environ):
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    from playwright.sync_api import sync_playwright

    quiet = (
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "no-first-run",
    )
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=[f"--{name}" for name in quiet])
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Opens a page; at the end there must have been no message, no dialog and no request but for the file itself."""
    opened, heard, requested = [], [], []

    def open_page(path: Path, **options):
        context = browser.new_context(**options)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(path.as_uri())
        opened.append((context, path.as_uri()))
        return page

    yield open_page
    for context, _ in opened:
        context.close()
    assert heard == []
    assert requested == [uri for _, uri in opened]


READ_THROUGH = """async () => {  // charts are drawn when they come near the window
    const frame = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    for (let at = 0; at < document.body.scrollHeight; at += 1500) { scrollTo(0, at); await frame(); await frame(); }
    scrollTo(0, 0); await frame();
}"""
DRAWN = """() => [...document.querySelectorAll('.chart')].filter(chart => chart.clientWidth).map(chart =>
    chart.querySelectorAll('svg path.js-line, svg .point, svg .points path').length)"""
SOON = 6000  # milliseconds; 2,000 on a machine that does nothing else, and tests run beside others
FILTERED = """async words => {  // milliseconds until the page has followed the filter
    const field = document.getElementById('filter'), start = performance.now();
    field.value = words; field.dispatchEvent(new Event('input'));
    await new Promise(done => setTimeout(done, 130));
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - start; }"""
FIRST_CHART = """() => new Promise((done, failed) => {  // at the first chart, drawn
    const chart = document.querySelector('.chart'), start = performance.now();
    chart.scrollIntoView({block: 'center'});
    const look = () => chart.querySelector('.points path') ? done(performance.now())
        : performance.now() - start > 5000 ? failed('no chart') : requestAnimationFrame(look);
    look(); })"""
ROWS = "() => [...document.querySelectorAll('tr[data-task]')].filter(row => row.offsetParent).length"
GAINS = "() => document.querySelector('.chart').data.flatMap(trace => trace.x)"
POINTS = "() => [...document.querySelectorAll('.chart')].map(chart => (chart.data || []).flatMap(trace => trace.y).length)"


def test_every_chart_is_drawn_and_markup_in_names_is_text(five_page, visit):
    page = visit(five_page, viewport={"width": 1200, "height": 900})
    page.evaluate(READ_THROUGH)
    drawn = page.evaluate(DRAWN)
    assert len(drawn) > 15
    assert all(count > 0 for count in drawn)
    labels = page.locator(".chart").first.locator(".ytick text").all_text_contents()
    assert "<script>alert(1)</script>" in labels
    assert "quote\"' &amp; <b>bold</b> %{x}" in labels
    assert "ünïcødé/日本語 😀" in labels
    assert any(label.startswith("long/word") and label.endswith("…") for label in labels)
    chart = "document.querySelector('.chart')"
    for curve, points in enumerate(page.evaluate(f"() => {chart}.data.map(trace => trace.x.length)")):
        for point in range(points if curve else 1):  # curve 0 are the seeds' dots, the others the triangles
            page.wait_for_timeout(60)  # Plotly shows at most one label in 50 ms
            page.evaluate(f"() => Plotly.Fx.hover({chart}, [{{curveNumber: {curve}, pointNumber: {point}}}])")
            shown = page.locator(".chart").first.locator(".hoverlayer").text_content()
            name = page.evaluate(f"() => {chart}.data[{curve}].hovertext[{point}]").split("<br>")[0]
            assert html.unescape(name) in shown
            assert ("one seed" if curve == 0 else "interval") in shown


def test_the_filter_reduces_rows_traces_and_panels(many_page, visit):
    from playwright.sync_api import expect

    page = visit(many_page, viewport={"width": 1200, "height": 900})
    page.evaluate(READ_THROUGH)
    rows, points = page.evaluate(ROWS), page.evaluate(POINTS)
    assert rows > 600  # targets, training tasks, data
    assert page.locator(".panels[data-most] figure:visible").count() == 12
    page.locator(".shown button:visible").first.click()
    ticks = page.locator(".chart").first.locator(".ytick text")
    expect(ticks).to_have_count(201)
    page.fill("#filter", "GROUP3/ task-17")
    expect(ticks).to_have_count(4)  # the mean, and task-17, task-171 and task-178
    assert 0 < page.evaluate(ROWS) < rows / 20
    fewer = page.evaluate(POINTS)
    assert sum(fewer) < sum(points)
    page.fill("#filter", "nothing like it")
    expect(page.locator(".shown").first).to_contain_text("No task matches.")
    assert page.evaluate(ROWS) == 0


def test_the_label_count_and_the_control_change_table_and_chart(five_page, visit):
    page = visit(five_page, viewport={"width": 1200, "height": 900})
    page.evaluate(FIRST_CHART)
    seen = []
    for labels, control in (("32", "base"), ("all", "base"), ("all", "further"), ("32", "further")):
        page.select_option("#labels", label=labels)
        page.select_option("#control", label=control)
        seen.append((page.evaluate(GAINS), page.locator("tbody[data-view]:visible").inner_text()))
        words = "all labels" if labels == "all" else f"{labels} labels"
        assert f"with {words}, against {control}" in seen[-1][1]
        assert f"pre-finetuned minus {control}, with {words}" in page.locator(".shown").first.inner_text()
    assert len({str(gains) for gains, _ in seen}) == 4


@pytest.mark.parametrize("which", ["five_page", "many_page"])
def test_a_phone_needs_no_sideways_scrolling(which, visit, request):
    page = visit(request.getfixturevalue(which), viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.evaluate(READ_THROUGH)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert (
        page.evaluate("Math.max(...[...document.querySelectorAll('.chart svg')].map(svg => svg.getBoundingClientRect().right))")
        <= 390
    )
    assert all(count > 0 for count in page.evaluate(DRAWN))


def test_dark_follows_the_system_and_the_button(five_page, visit):
    page = visit(five_page, color_scheme="dark")
    page.evaluate(FIRST_CHART)
    ground = "getComputedStyle(document.body).backgroundColor"
    writing = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"
    dark = page.evaluate(ground), page.evaluate(writing)
    page.click("#theme")
    light = page.evaluate(ground), page.evaluate(writing)
    assert (dark[0], light[0]) == ("rgb(20, 23, 27)", "rgb(255, 255, 255)")
    assert dark[1] != light[1]
    page.click("#theme")
    assert (page.evaluate(ground), page.evaluate(writing)) == dark
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == dark[0]  # what the reader chose stays


def test_printing_is_light_and_cuts_no_chart(five_page, visit, tmp_path):
    page = visit(five_page, viewport={"width": 1200, "height": 900}, color_scheme="dark")
    page.evaluate("""() => addEventListener('beforeprint', () => { window.widths = [...document.querySelectorAll('.chart svg')]
        .map(svg => svg.getBoundingClientRect().right); window.ink = getComputedStyle(document.body).color; })""")
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert max(page.evaluate("window.widths")) <= 703  # A4 less two margins of 12 mm, at 96 dots an inch
    assert page.evaluate("window.ink") == "rgb(27, 31, 36)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"  # and back again


def test_a_heading_sorts_its_table_up_down_and_as_it_was_with_the_keyboard_too(many, many_page, visit):
    page = visit(many_page, viewport={"width": 1200, "height": 900})
    lines = evidence.read_comparison(many / "comparison").at("32")
    names = page.evaluate("""() => [...document.querySelector('table.sortable').tBodies[0].querySelectorAll('tr[data-task]')]
        .map(row => row.cells[0].textContent.replace('classification, accuracy', ''))""")
    assert names == [line.task for line in lines]
    order = """() => [...document.querySelector('table.sortable').tBodies[0].rows].filter(row => row.offsetParent)
        .map(row => row.className || row.cells[0].textContent.replace('classification, accuracy', ''))"""
    written = page.evaluate(order)
    assert written[0] == "mean"
    assert written.count("group") == 3  # lost, unchanged, gained
    by_base = sorted(lines, key=lambda line: round(line.mean("base"), 3))  # equal ones stay as they are
    heading = page.locator("table.sortable").first.locator(".sort", has_text="base")
    heading.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('th').ariaSort") == "ascending"
    assert page.evaluate(order) == ["mean", *[line.task for line in by_base]]
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.closest('th').ariaSort") == "descending"
    descending = sorted(lines, key=lambda line: -round(line.mean("base"), 3))
    assert page.evaluate(order) == ["mean", *[line.task for line in descending]]
    page.locator("table.sortable").first.locator(".sort", has_text="Target").click()
    assert page.locator("table.sortable").first.locator("[aria-sort]").count() == 1
    by_name = sorted((line.task for line in lines), key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    assert page.evaluate(order) == ["mean", *by_name]
    for _ in range(2):
        page.locator("table.sortable").first.locator(".sort", has_text="Target").click()
    assert page.evaluate(order) == written
    assert page.locator("table.sortable").first.locator("[aria-sort]").count() == 0


def test_every_control_is_reached_by_the_tab_key_and_can_be_seen(five_page, visit):
    page = visit(five_page, viewport={"width": 1200, "height": 900})
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    wanted = page.evaluate("""() => { const all = [...document.querySelectorAll('a[href], button, input, select, summary, .box')]
        .filter(one => one.checkVisibility()); all.forEach((one, at) => { one.dataset.at = at; }); return all.length; }""")
    reached = set()
    for _ in range(2 * wanted):
        page.keyboard.press("Tab")
        if len(reached) == wanted:
            break
        at, outline = page.evaluate("""() => { const one = document.activeElement, style = getComputedStyle(one);
            return [one.dataset.at ?? null, style.outlineStyle]; }""")
        if at is not None and int(at) not in reached:
            reached.add(int(at))
            assert outline != "none", page.evaluate("document.activeElement.outerHTML")
    assert reached == set(range(wanted))


def test_two_hundred_tasks_open_filter_and_sort_soon(many_page, visit):
    pages = [visit(many_page, viewport={"width": 1200, "height": 900}) for _ in range(2)]  # the machine may be busy for a moment
    loaded = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    assert 0 < min(page.evaluate(loaded) for page in pages) < SOON
    for page in pages:
        page.evaluate(FIRST_CHART)
    for words in ("group3/", "task-17", ""):
        assert min(page.evaluate(FILTERED, words) for page in pages) < SOON
    sort = "() => { const start = performance.now(); document.querySelector('.sort').click(); return performance.now() - start; }"
    assert min(page.evaluate(sort) for page in pages) < SOON
