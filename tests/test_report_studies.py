"""Studies and affinities on the page: made-up folders, read as those of real studies are, in a real browser without a network."""
# ruff: noqa: F811 (fixtures)

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from prefinetune import evidence
from prefinetune.report import list_runs, write_report
from prefinetune.report.read import read_folders
from test_report import (  # noqa: F401 (fixtures)
    DRAWN,
    ENVIRONMENT,
    FILTERED,
    READ_THROUGH,
    SOON,
    Reader,
    add_line,
    browser,
    fewer_resamples,
    make_run,
    visit,
)

LABELS = {"32": 32, "128": 128, "all": 900}
FAMILIES = ("classification", "regression", "choice")
TARGETS = [f"glue/target-{index}" for index in range(6)]


def make_study(
    root: Path,
    kind: str,
    groups: dict[str, dict],
    targets: list[str] | None = None,
    labels: dict[str, int] | None = None,
    members: int = 2,
    seeds: int = 2,
    contrasts: tuple[tuple[str, str], ...] = (),
    runs: int = 1,
    tasks: int = 6,
    rows: int = 30,
    without: str = "",
) -> Path:
    """A study's folder: each group's `gain` is what it adds to the chance of a right answer, from target to target less by its
    `spread`, so that the last ones are harmed. `runs` of the pre-finetunings are there; `without` an arm of the comparison."""
    targets, labels, rng = targets or TARGETS, labels or LABELS, np.random.default_rng(0)
    arms = {
        f"{name} · seed {member}": {
            "group": name, "member": f"seed {member}", "x": group.get("x"), "tasks": ["a"], "settings": {}, "texts": 0,
            "seed": member, "run": f"runs/{index}-{member}", "start": "some/model", "cells": f"{name} · seed {member}",
        }
        for index, (name, group) in enumerate(groups.items()) for member in range(members)
    }  # fmt: skip
    protocol = {
        "format": 1, "kind": kind, "model": "some/model", "suite": {"name": "suite", "tasks": ["a", "b"]}, "targets": targets,
        "settings": {"train": {"updates": 100}}, "labels": list(labels), "seeds": list(range(seeds)),
        "groups": {
            name: {"told": f"what {name} is", "role": "point", "series": "", "x": None, **group, "gain": 0}
            for name, group in groups.items()
        },
        "contrasts": contrasts, "arms": arms, "left_out": ["80 tasks: the suite has 40"], "statistics": {"interval": "95 %"},
        "command": "prefinetune study scale suite.yaml", "started": "2026-11-24T03:00:00+00:00", "environment": ENVIRONMENT,
    }  # fmt: skip
    root.mkdir(parents=True)
    (root / "study.json").write_text(json.dumps(protocol))
    for entry in list(arms.values())[:runs]:
        make_run(root / entry["run"], [f"source/{index}" for index in range(tasks)])
    comparison = root / "comparison"
    (comparison / "rows").mkdir(parents=True)
    plan = {
        "format": 1, "base": "base", "treated": next(iter(arms)), "arms": {"base": {"start": "b"}, **{arm: {} for arm in arms}},
        "tasks": {
            name: {"family": FAMILIES[index % 3], "metric": "accuracy", "labels": labels} for index, name in enumerate(targets)
        },
        "labels": list(labels), "seeds": list(range(seeds)), "grid": [1e-4], "tuning_seeds": [0], "settings": {}, "left_out": [],
        "command": "prefinetune study scale suite.yaml",
    }  # fmt: skip
    (comparison / "comparison.json").write_text(json.dumps(plan))
    lines, number = [], 0
    for index, name in enumerate(targets):
        for step, count in enumerate(labels.values()):
            for arm, group in [("base", ""), *((arm, entry["group"]) for arm, entry in arms.items())]:
                if arm == without:
                    continue
                gain = (
                    groups[group].get("gain", 0.0) * (1 - groups[group].get("spread", 1.2) * index / len(targets))
                    if group
                    else 0.0
                )
                for seed in range(seeds):
                    right = (rng.random(rows) < 0.45 + 0.1 * step + gain + rng.normal(0, 0.02)).astype(float)[:, None]
                    np.save(comparison / "rows" / f"{number}.npy", right)
                    score = float(right.mean())
                    lines.append({
                        "task": name, "family": "classification", "arm": arm, "labels": count, "seed": seed, "metric": "accuracy",
                        "score": score, "scores": {"accuracy": score, "majority": 0.3}, "learning_rate": 1e-4, "validation": 0.5,
                        "digest": str(number), "subset": "s", "rows": rows, "when": "2026-11-24T04:00:00+00:00",
                    })  # fmt: skip
                    number += 1
    (comparison / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def make_affinity(run: Path, tasks: list[str], kept_out: list[str], samples: int = 8) -> None:
    """Two directions that pull against each other, of which a kept-out task has the first: the tasks of the second hurt it."""
    rng = np.random.default_rng(0)
    everything = [*tasks, *kept_out]
    size = len(everything)
    side = np.array([1.0 if index % 2 == 0 else -1.0 for index in range(len(tasks))] + [1.0] * len(kept_out))
    for sample in range(samples):
        noise = rng.normal(0, 0.05, (size, size))
        cosines = np.clip(0.5 * np.outer(side, side) + noise + noise.T, -1, 1)
        np.fill_diagonal(cosines, 0.6)
        add_line(run / "affinity.jsonl", {
            "step": 10 * (sample + 1), "updates": 100, "rate": 0.1, "tasks": tasks, "kept_out": kept_out, "targets": kept_out,
            "shares": [1 / len(tasks)] * len(tasks), "losses": [0.9] * size,
            "cosines": [row[: index + 1].round(4).tolist() for index, row in enumerate(cosines)],
            "products": [row[: index + 1].round(4).tolist() for index, row in enumerate(cosines)], "seconds": 0.1,
        })  # fmt: skip


def scale_groups(most: int = 40) -> dict[str, dict]:
    groups: dict[str, dict] = {
        f"{most} tasks": {"role": "main", "series": "same updates", "x": most, "gain": 0.2},
        "further training": {"role": "control", "gain": 0.02},
        "NLI only": {"role": "control", "gain": -0.25, "spread": 0.0},
    }
    for size, gain in ((5, 0.02), (10, 0.08), (20, 0.14)):
        groups[f"{size} tasks"] = {"series": "same updates", "x": size, "gain": gain}
    for size, gain in ((5, -0.05), (10, 0.0), (20, 0.05), (most, 0.1)):
        groups[f"{size} tasks, same rows"] = {"series": "same updates and rows", "x": size, "gain": gain}
    return groups


@pytest.fixture(scope="module")
def scale(tmp_path_factory) -> Path:
    root = make_study(
        tmp_path_factory.mktemp("scale") / "study", "scale", scale_groups(), without="NLI only · seed 1", seeds=3,
        contrasts=(("40 tasks", "further training"), ("40 tasks", "NLI only"), ("40 tasks", "5 tasks")),
    )  # fmt: skip
    make_affinity(root / "runs/0-0", [f"source/{index}" for index in range(6)], TARGETS[:2])
    return root


@pytest.fixture(scope="module")
def scale_page(scale, tmp_path_factory) -> Path:
    return write_report([scale], tmp_path_factory.mktemp("page") / "scale.html")


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of every other kind of study."""
    root = tmp_path_factory.mktemp("kinds")
    main = {"role": "main", "gain": 0.2}
    kinds = {
        "labels": {"pre-finetuned": main, "further training": {"role": "control", "gain": 0.02}},
        "ablations": {"base run": main, "order=dataset-homogeneous": {"gain": -0.2}, "r3f=1.0": {"gain": 0.2}},
        "transfer": {"all tasks": main, **{f"source/{index}": {"gain": index / 10 - 0.2} for index in range(5)}},
    }
    found = {}
    for kind, groups in kinds.items():
        names = list(groups)
        make_study(root / kind, kind, groups, contrasts=tuple((names[0], other) for other in names[1:]))
        found[kind] = write_report([root / kind], root / f"{kind}.html")
    return found


# ---- what is read


def test_a_study_stands_for_its_runs_and_its_comparison(scale):
    found = read_folders([scale.parent])
    assert [(one.name, list(one.runs)) for one in found.studies] == [(f"{scale.parent.name}/study", ["runs/0-0"])]
    assert found.runs == found.comparisons == ()
    assert list(found.affinities) == [scale / "runs/0-0"]
    (line,) = list_runs(scale.parent)
    cells = 6 * 3 * 3 * (1 + 2 * 10)  # targets, label counts, seeds, the base and two checkpoints of each group
    assert (line.kind, line.state, line.tasks) == ("study", "running or stopped", 6)
    assert line.done == f"{cells - 6 * 3 * 3:,} of {cells:,} cells"
    assert line.next_command == "prefinetune study scale suite.yaml"


def test_a_study_that_has_not_begun_has_a_page_that_says_so(tmp_path):
    root = make_study(tmp_path / "study", "scale", scale_groups(), runs=0)
    (root / "comparison" / "comparison.json").unlink()
    text = Reader(write_report([root], tmp_path / "page.html")).text
    assert "No group of this study can be compared yet, so nothing can be said." in text
    assert "Its comparison has not begun." in text
    assert "the comparison: it has not begun" in text
    assert [line.state for line in list_runs(root)] == ["planned"]
    (root / "study.json").write_text("{")
    assert list_runs(root)[0].state == "damaged"


@pytest.mark.parametrize(
    "damage", ["{", "[]", {"kind": None}, {"groups": 7}, {"arms": None}, {"groups": {"40 tasks": {"told": "", "x": "many"}}}]
)
def test_a_damaged_protocol_is_a_problem_and_the_comparison_is_still_shown(tmp_path, damage):
    root = make_study(tmp_path / "study", "scale", {"40 tasks": {"gain": 0.2}}, labels={"32": 32}, members=1)
    whole = json.loads((root / "study.json").read_text())
    (root / "study.json").write_text(damage if isinstance(damage, str) else json.dumps({**whole, **damage}))
    found = read_folders([root])
    assert len(found.comparisons) == 1
    assert len(found.runs) == 1
    text = Reader(write_report([root], tmp_path / "page.html")).text
    assert "the study cannot be shown" in text


def test_a_damaged_line_of_affinities_is_told_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path / "run", ["a", "b", "c"])
    make_affinity(run, ["a", "b", "c"], ["d"])
    with (run / "affinity.jsonl").open("a") as file:
        file.write('{"step": 1')
    text = Reader(write_report([run], tmp_path / "page.html")).text
    assert "affinity.jsonl, line 9: not a whole record, passed over" in text
    assert "this set hurts the 1 kept-out tasks on the mean" in text


def test_no_path_of_a_protocol_leads_out_of_its_folder(tmp_path):
    make_run(tmp_path / "secret", ["hidden-task"])
    root = make_study(tmp_path / "study", "scale", {"40 tasks": {"gain": 0.2}}, labels={"32": 32}, members=1)
    protocol = json.loads((root / "study.json").read_text())
    for arm in protocol["arms"].values():
        arm["run"] = "runs/../../secret"
    (root / "study.json").write_text(json.dumps(protocol))
    assert read_folders([root]).studies[0].runs == {}


# ---- the page as a file


def test_harm_is_said_first_and_what_is_missing_is_listed(scale, scale_page):
    study = read_folders([scale]).studies[0].results
    text = Reader(scale_page).text
    sentences = study.sentences()
    places = [text.index(sentence) for sentence in sentences]
    assert places == sorted(places)
    assert places[-1] < text.index("How many tasks does it take?")
    assert any("these hurt: NLI only" in sentence for sentence in sentences)
    for line in study.missing:
        assert line in text
    assert "80 tasks: the suite has 40" in study.missing


def test_every_group_stands_in_the_table_harm_first_with_the_controls(scale, scale_page):
    study = read_folders([scale]).studies[0].results
    page = scale_page.read_text(encoding="utf-8")
    body = page.split("Against the untouched base, losses first")[1].split("Group against group")[0]
    for number, at in enumerate(study.labels):
        rows = body.split(f'<tbody data-view="{number}">')[1].split("</tbody>")[0]
        order = [one.group for one in study.at(at)]
        places = [rows.index(f'<th scope="row">{name}<wbr><small>') for name in order]
        assert places == sorted(places)
        assert {"further training", "NLI only", "40 tasks"} <= set(order)


def test_text_on_the_deepest_colours_can_be_read():
    css = (Path(evidence.__file__).parent / "report" / "page.css").read_text()
    from prefinetune.report.studies import DEEPEST

    colours = dict(part.split(": light-dark(") for part in css.split("--") if ": light-dark(" in part)

    def channels(name: str, scheme: int) -> np.ndarray:
        text = colours[name].split(")")[0].split(",")[scheme].strip().lstrip("#")
        text = "".join(letter * 2 for letter in text) if len(text) == 3 else text
        return np.array([int(text[at : at + 2], 16) for at in (0, 2, 4)]) / 255

    def luminance(colour: np.ndarray) -> float:
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for scheme in (0, 1):
        for kind in ("loss", "gain"):
            mixed = DEEPEST / 100 * channels(kind, scheme) + (1 - DEEPEST / 100) * channels("paper", scheme)
            one, other = luminance(mixed), luminance(channels("ink", scheme))
            assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5, (kind, scheme)


def test_as_many_groups_as_there_are_symbols_differ_in_symbol_and_colour_and_none_looks_like_the_base():
    css = (Path(evidence.__file__).parent / "report" / "page.css").read_text()
    from prefinetune.report.charts import SYMBOLS, sign_of

    signs = [sign_of(place) for place in range(40)]
    for parts in zip(*signs[: len(SYMBOLS)], strict=True):
        assert len(set(parts)) == len(SYMBOLS)
    assert not set(signs[0]) & {part for sign in signs[1:] for part in sign}
    colours = [css.split(f"{colour}: light-dark(")[1].split(")")[0] for colour, _, _ in signs[: len(SYMBOLS)]]
    assert len(set(colours)) == len(SYMBOLS)


# ---- the page in a browser

DATA = "id => document.getElementById(id).data.map(trace => ({x: trace.x, y: trace.y, words: trace.hovertext ?? []}))"


def chart_of(page, words: str) -> str:
    """The id of the chart whose sentence starts so, drawn."""
    figure = page.locator("figure", has=page.locator("figcaption", has_text=words)).first
    figure.scroll_into_view_if_needed()
    chart = figure.locator(".chart")
    chart.locator(".main-svg").first.wait_for()
    return chart.get_attribute("id")


def test_every_member_and_seed_is_a_dot_of_the_curve(scale, scale_page, visit):
    study = read_folders([scale]).studies[0].results
    page = visit(scale_page, viewport={"width": 1200, "height": 900})
    page.select_option("#labels", label="128")
    traces = page.evaluate(DATA, chart_of(page, "Mean gain over the untouched base"))
    drawn = {}  # what is said of a dot -> where it stands
    for trace in traces:
        drawn |= dict(zip(trace["words"], trace["y"], strict=False))
    for reading in study.at("128"):
        control = " (control)" if reading.group in ("further training", "NLI only") else ""
        mean = [
            y for words, y in drawn.items() if words.startswith(f"{reading.group}{control}<br>{reading.effect.mean:+z.3f} (95")
        ]
        assert mean == [pytest.approx(reading.effect.mean, abs=1e-5)]
        gains = np.mean([target.gains for target in reading.targets], axis=0)
        for member, row in zip(reading.members, gains, strict=True):
            for seed, gain in zip(reading.seeds, row, strict=True):
                words = f"{reading.group}<br>{member}, fine-tuning {seed}: {gain:+z.3f}"
                assert drawn[words] == pytest.approx(gain, abs=1e-5)
    assert not [words for words in drawn if words.startswith("NLI only<br>seed 1")]  # it is missing


def test_charts_are_drawn_on_the_pages_of_all_kinds(scale_page, pages, visit):
    for path in (scale_page, *pages.values()):
        page = visit(path, viewport={"width": 1200, "height": 900})
        page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true; })")
        page.evaluate(READ_THROUGH)
        page.evaluate(READ_THROUGH)
        shown = page.locator(".chart:visible")
        kinds = page.evaluate("() => JSON.parse(document.getElementById('data').textContent).charts")
        assert shown.count() > 2
        for chart in shown.all():
            name = chart.get_attribute("id")
            drawn = ".hm image" if kinds[name]["kind"] == "map" else "path.js-line, .points path"
            assert chart.locator(drawn).count() > 0, (path, chart.get_attribute("aria-label"))


def test_scores_stand_against_labels_on_a_log_axis_with_the_base(pages, visit):
    page = visit(pages["labels"], viewport={"width": 1200, "height": 900})
    name = chart_of(page, "Score (higher is better)")
    axis = page.evaluate("id => document.getElementById(id)._fullLayout.xaxis", name)["type"]
    assert axis == "log"
    words = " ".join(words for trace in page.evaluate(DATA, name) for words in trace["words"])
    for expected in ("base<br>", "pre-finetuned<br>", "further training<br>", "with 32 labels", "with all labels"):
        assert expected in words


def test_ablations_are_a_forest_with_the_worst_first(pages, visit):
    study = read_folders([pages["ablations"].with_suffix("")]).studies[0].results
    page = visit(pages["ablations"], viewport={"width": 1200, "height": 900})
    name = chart_of(page, "Each row is a difference of two groups")
    worst = sorted((one for one in study.contrasts if one.at == "32"), key=lambda one: one.effect.mean)
    marks = page.locator(f"#{name} .ytick text").all()
    from_above = sorted(marks, key=lambda mark: mark.bounding_box()["y"])
    assert [mark.text_content() for mark in from_above] == [f"{one.group} − {one.against}" for one in worst]


SHOWN = """() => { const table = document.querySelector('table.crossed'); return {
    rows: [...table.querySelectorAll('tbody:not([hidden]) tr[data-task]:not([hidden])')].map(row => row.cells[0].textContent),
    columns: [...table.tHead.rows[0].cells].filter(cell => !cell.hidden && cell.dataset.task).map(cell => cell.textContent)}; }"""


def test_a_search_reaches_sources_or_targets_of_a_crossed_table(pages, visit):
    page = visit(pages["transfer"], viewport={"width": 1200, "height": 900})
    everything = page.evaluate(SHOWN)
    assert (len(everything["rows"]), len(everything["columns"])) == (6, 6)
    page.fill("#filter", "source/3")
    page.wait_for_timeout(300)
    found = page.evaluate(SHOWN)
    assert [name.startswith("source/3") for name in found["rows"]] == [True]
    assert len(found["columns"]) == 6
    page.fill("#filter", "target-2")
    page.wait_for_timeout(300)
    found = page.evaluate(SHOWN)
    assert len(found["rows"]) == 6
    assert [name.startswith("glue/target-2") for name in found["columns"]] == [True]


def test_cells_have_the_colour_of_their_sign_and_deeper_ones_are_larger(scale_page, visit):
    page = visit(scale_page, viewport={"width": 1200, "height": 900})
    cells = page.evaluate("""() => [...document.querySelectorAll('td.lost, td.won')].filter(cell => cell.checkVisibility())
        .map(cell => [Number(cell.textContent.replace(/[^-+.0-9]/g, '')), cell.className, getComputedStyle(cell).backgroundColor,
                      parseFloat(cell.style.getPropertyValue('--depth'))])""")
    assert len(cells) == 6 * 10
    assert all((gain < 0) == ("lost" in kind) or gain == 0 for gain, kind, _, _ in cells)
    ordered = sorted(cells, key=lambda cell: abs(cell[0]))
    assert all(one[3] <= other[3] + 1 for one, other in pairwise(ordered))
    assert len({ground for _, _, ground, _ in cells}) > 10


def test_an_affinity_map_stands_in_the_order_of_its_clusters(scale, scale_page, visit):
    affinity = read_folders([scale]).affinities[scale / "runs/0-0"]
    page = visit(scale_page, viewport={"width": 1200, "height": 900})
    name = chart_of(page, "Cosines between the gradients")
    drawn = page.evaluate(
        "id => { const chart = document.getElementById(id); return [chart.data[0].z, chart.layout.shapes.length]; }", name
    )
    places = [affinity.cosines.rows.index(task) for task in affinity.order]
    assert np.allclose(drawn[0], affinity.cosines.mean[np.ix_(places, places)], rtol=0.01)
    assert drawn[1] == len(affinity.clusters) == 2
    assert page.locator(f"#{name} .ytick text").all_text_contents() == list(affinity.order)
    page.fill("#filter", "source/2")
    page.wait_for_timeout(400)
    assert page.evaluate("id => document.getElementById(id).data[0].z.length", name) == 1
    assert "these 3 sets hurt the 2 kept-out tasks on the mean" in page.locator("main").inner_text()


def test_a_study_fits_a_phone_and_prints_in_light(scale_page, pages, visit, tmp_path):
    for path in (scale_page, pages["transfer"]):
        page = visit(path, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme="dark")
        page.evaluate(READ_THROUGH)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    page = visit(scale_page, viewport={"width": 1200, "height": 900}, color_scheme="dark")
    page.evaluate("""() => addEventListener('beforeprint', () => {
        window.widths = [...document.querySelectorAll('.chart svg')].map(svg => svg.getBoundingClientRect().right);
        const charts = [...document.querySelectorAll('.chart')].filter(one => one.checkVisibility());
        window.empty = charts.filter(one => !one.children.length).length;
        window.ink = getComputedStyle(document.body).color; })""")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 900})
    page.evaluate("() => document.documentElement.classList.add('printing')")
    rights = "() => [...document.querySelectorAll('table')].map(one => one.getBoundingClientRect().right)"
    assert max(page.evaluate(rights)) <= 703  # A4 less two margins of 12 mm, at 96 dots an inch
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert max(page.evaluate("window.widths")) <= 703
    assert page.evaluate("window.empty") == 0
    assert page.evaluate("window.ink") == "rgb(27, 31, 36)"


def test_two_hundred_sources_stay_responsive_with_their_map(tmp_path, visit):
    names, groups = [f"group{index % 7}/target-{index}" for index in range(40)], scale_groups()
    few = {name: groups[name] for name in ("40 tasks", "10 tasks", "further training")}
    root = make_study(tmp_path / "study", "scale", few, names, {"32": 32}, members=1, rows=10, tasks=200)
    make_affinity(root / "runs/0-0", [f"source/{index}" for index in range(200)], names[:5], samples=2)
    path = write_report([root], tmp_path / "page.html")
    opened = []
    for _ in range(2):  # the machine may be busy for a moment
        page = visit(path, viewport={"width": 1200, "height": 900})
        opened.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
    assert 0 < min(opened) < SOON
    name = chart_of(page, "Cosines between the gradients")
    assert page.evaluate("id => document.getElementById(id).data[0].z.length", name) == 205
    for words, rows in (("source/17", 11), ("group3", 1), ("", 205)):
        assert min(page.evaluate(FILTERED, words) for _ in range(2)) < SOON
        assert page.evaluate("id => document.getElementById(id).data[0].z.length", name) == rows
