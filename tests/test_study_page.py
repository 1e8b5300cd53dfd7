"""benchmarks/study_page.py: what is kept of a study reads back as it was, and docs/results.md says what that says."""

import json
import re
import sys
from dataclasses import replace
from itertools import dropwhile, takewhile
from pathlib import Path

import numpy as np
import pytest

from prefinetune.files import read_records
from prefinetune.statistics import Effect
from prefinetune.study_results import read_study
from test_study_results import write_study

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import study_page

ABOUT, *OTHERS = (json.loads(study_page.protocol_of(name).read_text()) for name in ("labels", "minilm", "parts", "raw", "tiny"))
CLAIMED = list(dict.fromkeys(claim for about in (ABOUT, *OTHERS) for claim in about["claims"]))
MACHINE = {"processor": "a processor", "processors": 2, "versions": {"torch": "2", "transformers": "5"}}


KINDS = {"b": "pairs", "c": "pairs", "d": "choice", "a": "one text"}
GAINS = {
    "pre-finetuned": {"1": dict(zip("abcd", (-0.1, 0.05, 0.1, 0.2), strict=True))}, "further training": {"1": 0.02},
    "NLI only": {"1": -0.05}, "one task per update": {"1": 0.1},
}  # fmt: skip
MORE = {  # of a protocol, which the section tells
    "suite": {"tasks": ["x", "y"]}, "targets": list("abcd"), "seeds": [0, 1, 2], "grid": [3e-4, 1e-3], "tuned_on": [0, 1],
    "budget": "2h", "costs": {"examples_per_second": 200.4}, "processes": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished study of labels with the controls of the real one, and made-up scores."""
    contrasts = [("pre-finetuned", other) for other in list(GAINS)[1:]]
    found = write_study(tmp_path_factory.mktemp("runs") / "labels", GAINS, contrasts, labels=("128",))
    protocol = json.loads((found / "study.json").read_text())
    (found / "study.json").write_text(json.dumps({**protocol, **MORE, "model": str(found.parent / "base")}))
    for at, arm in enumerate(protocol["arms"].values()):
        (found / arm["run"] / "results.jsonl").write_text(
            json.dumps({"task": "x", "examples": 44800, "seconds": 1265.0 + 60 * at})
        )
    return found


@pytest.fixture
def kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(study_page, "RESULTS", tmp_path)
    return study_page.keep(folder, MACHINE)


def test_what_is_kept_reads_back_as_the_study_did_and_names_no_place_of_the_machine(folder, kept):
    assert study_page.read_kept(kept).as_dict() == read_study(folder).as_dict()
    assert {path.name for path in kept.iterdir()} == {"study.json", "table.json", "results.jsonl"}
    for path in [*kept.iterdir(), *(Path(study_page.__file__).parent / "results").glob("study-*/*")]:
        assert str(folder.parent) not in path.read_text()
        assert not re.search(r'"/(work|tmp|home|root|usr)/', path.read_text())


def rows_of(text, title):
    """The cells of each line of the table that stands behind a title, or is begun by it."""
    lines = text[text.index(title) :].splitlines()
    table = takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_section_has_the_numbers_of_the_records_and_losses_first(folder, kept):
    text = study_page.section(kept, ABOUT, KINDS)
    records = read_records(folder / "comparison" / "results.jsonl")
    arms = {name: arm["group"] for name, arm in json.loads((folder / "study.json").read_text())["arms"].items()} | {
        "base": "base"
    }

    def mean(group, task, name="accuracy"):
        return np.mean([one["scores"][name] for one in records if (arms[one["arm"]], one["task"]) == (group, task)])

    whole = {group: np.mean([mean(group, task) - mean("base", task) for task in KINDS]) for group in arms.values()}
    groups = rows_of(text, "Mean gain over the untouched base")[2:]
    assert {row[0] for row in groups} == {"pre-finetuned", "further training", "NLI only", "one task per update"}
    found = [float(row[3].split()[0]) for row in groups]
    assert found == sorted(found)
    assert found == pytest.approx([whole[row[0]] for row in groups], abs=6e-4)
    targets = rows_of(text, "Every target from *pre-finetuned*")[2:]
    assert {row[0] for row in targets} == set(KINDS)
    for row in targets:
        name = row[0]
        assert row[1] == KINDS[name]
        assert [float(row[4]), float(row[5])] == pytest.approx([mean("base", name), mean("pre-finetuned", name)], abs=6e-4)
        f1 = [mean(group, name, "macro_f1") for group in ("base", "pre-finetuned")]
        assert list(map(float, row[6].split(" to "))) == pytest.approx(f1, abs=6e-4)
    gains = [float(row[7].split()[0]) for row in targets]
    assert gains == sorted(gains)
    of_f1 = {tuple(row[:2]): float(row[3].split()[0]) for row in rows_of(text, "The same by macro-F1")[2:]}
    assert set(of_f1) == {(group, "base") for group in whole if group != "base"} | {
        ("pre-finetuned", other) for other in whole if other not in ("base", "pre-finetuned")
    }
    for (group, against), gain in of_f1.items():
        expected = [mean(group, task, "macro_f1") - mean(against, task, "macro_f1") for task in KINDS]
        assert gain == pytest.approx(np.mean(expected), abs=6e-4)
    pairs = rows_of(text, "Gains over the base by kind")[2]
    column = rows_of(text, "Gains over the base by kind")[0].index("pre-finetuned")
    expected = np.mean([mean("pre-finetuned", name) - mean("base", name) for name, kind in KINDS.items() if kind == "pairs"])
    assert pairs[:2] == ["pairs", "2"]
    assert float(pairs[column].split()[0]) == pytest.approx(expected, abs=6e-4)
    assert "- Budget: 2h (planned with 200 examples/s). Pre-finetunings, 2 side by side: " in text
    assert "side by side: pre-finetuned · 1 21 minutes (35 examples/s), further training · 1 22 minutes" in text
    assert "; 60 fine-tunings: 0 minutes of training." in text
    for sentence in read_study(folder).sentences():
        assert f"- {sentence}" in text


def effect(mean, reach):
    return Effect(mean, (), mean - reach, mean + reach, 0.5, 0.1)


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([effect(0.1, 0.04)], "yes"), ([effect(0.1, 0.06)], "open"), ([effect(0.06, 0.02)], "open"),
        ([effect(-0.1, 0.2), effect(0.2, 0.1)], "open"), ([effect(0.2, 0.1), effect(0.0, 0.04)], "no"),
        ([effect(0.2, 0.1), None], "untested"), ([Effect(0.2, ())], "untested"),
    ],
)  # fmt: skip
def test_a_claim_holds_where_its_intervals_lie_above_it_and_not_where_one_lies_below(effects, verdict):
    assert study_page.judge(effects, 0.05) == verdict


def test_every_claim_of_the_protocol_is_judged_by_its_own_groups(kept):
    assert list(study_page.CLAIMS) == CLAIMED
    found = study_page.read_kept(kept)
    rows = rows_of(study_page.claims(found, ABOUT["claims"], KINDS), "| claim")[2:]
    assert [row[0] for row in rows] == ABOUT["claims"]
    told = {
        against: study_page.interval(found.reading("pre-finetuned", "128", against).effect)
        for against in ("base", "further training", "one task per update", "NLI only")
    }
    assert rows[0][3] == f"over base: {told['base']}; over further training: {told['further training']}"
    choice = next(name for name, kind in KINDS.items() if kind == "choice")
    (alone,) = [one.effect for one in found.reading("pre-finetuned", "128").targets if one.task == choice]
    assert rows[1][3].endswith(f"over base, choice: {study_page.interval(alone)}")
    assert rows[2][3] == f"over one task per update: {told['one task per update']}"
    assert rows[3][3] == f"over NLI only: {told['NLI only']}"


def test_only_what_stands_between_the_marks_is_replaced():
    page = "above\n<!-- study labels -->\nold\n<!-- end of study labels -->\nbelow\n"
    once = study_page.put_into(page, "labels", "new\n")
    assert once == page.replace("old", "new")
    assert study_page.put_into(once, "labels", "new\n") == once
    with pytest.raises(ValueError, match="the page has no <!-- study scale -->"):
        study_page.put_into(page, "scale", "new\n")


def test_targets_that_neither_side_learned_are_named(kept):
    (target, *_) = study_page.read_kept(kept).reading("pre-finetuned", "128").targets
    best = max(target.scores.mean(), target.control.mean())
    assert not study_page.is_unlearned(replace(target, majority=best - 0.011))
    assert study_page.is_unlearned(replace(target, majority=best - 0.009))
    assert not study_page.is_unlearned(replace(target, majority=None))


@pytest.mark.parametrize("name", study_page.TITLES)
def test_the_page_says_what_the_kept_records_say(name):
    if not (study_page.RESULTS / f"study-{name}" / "table.json").exists():
        pytest.skip(f"no study of {name} is kept in benchmarks/results yet")
    page = study_page.PAGE.read_text()
    written = f"`python benchmarks/study_page.py {name}` brings docs/results.md up to date"
    assert page == study_page.put_into(page, name, study_page.section_of(name)), written
