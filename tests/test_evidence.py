"""The statistics of a comparison: their coverage on simulated data, and that they say what the files say."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prefinetune.errors import InputError
from prefinetune.evidence import read_comparison, rows_file
from prefinetune.families import FAMILIES
from prefinetune.files import append, read_lines, set_torn_aside
from prefinetune.statistics import effect_over_tasks, paired_effect, resampled_scores

mean_of = FAMILIES["classification"].score_of_means


def simulate(generator, gain, seeds=3, rows=400, between_seeds=0.02):
    """Right or wrong per seed and row in two arms: each row has its difficulty and its gain, each seed its level."""
    difficulty, helped = generator.normal(0, 0.1, rows), generator.normal(gain, 0.1, rows)
    arms = []
    for offset in (helped, 0.0):
        levels = 0.5 + generator.normal(0, between_seeds, seeds)
        arms.append(
            [(generator.random(rows) < np.clip(level + difficulty + offset, 0, 1)).astype(float)[:, None] for level in levels]
        )
    return arms


def effect_of(treated, control, resamples=300):
    draws = resampled_scores([*treated, *control], mean_of, resamples)
    size = len(treated)
    return paired_effect([r.mean() for r in treated], [r.mean() for r in control], draws[:, :size], draws[:, size:])


@pytest.mark.parametrize(("seeds", "rows", "between"), [(3, 400, 0.02), (5, 400, 0.02), (3, 200, 0.0), (5, 1000, 0.06)])
def test_an_interval_of_95_percent_holds_the_true_gain_95_times_in_100(seeds, rows, between):
    generator, gain, times = np.random.default_rng(1), 0.05, 300
    found = [effect_of(*simulate(generator, gain, seeds, rows, between)) for _ in range(times)]
    held = np.mean([effect.low <= gain <= effect.high for effect in found])
    assert 0.93 <= held <= 1.0, held
    # Not by being endless: no wider than four thirds of the exact interval of a known standard deviation with this many seeds.
    true_error = np.std([effect.mean for effect in found])
    width = np.median([effect.high - effect.low for effect in found])
    assert width <= 4 / 3 * 2 * stats.t.ppf(0.975, seeds - 1) * true_error


def test_a_bootstrap_over_three_seeds_alone_would_cover_far_less():
    """Why seeds are not resampled: the reason stands in `paired_effect`, and this is its measurement."""
    generator, held = np.random.default_rng(2), []
    for _ in range(400):
        seeds = generator.normal(0.05, 0.03, 3)
        means = seeds[generator.integers(0, 3, (500, 3))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        held.append(low <= 0.05 <= high)
    assert np.mean(held) < 0.85


def test_without_a_gain_the_interval_excludes_zero_at_most_one_time_in_twenty():
    generator = np.random.default_rng(3)
    found = [effect_of(*simulate(generator, 0.0, seeds=4)) for _ in range(300)]
    assert np.mean([effect.verdict != "unclear" for effect in found]) <= 0.07
    assert 0.4 < np.mean([effect.probability for effect in found]) < 0.6


def test_the_smallest_detectable_gain_is_found_about_four_times_in_five():
    generator, seeds = np.random.default_rng(4), 5
    detectable = np.median([effect_of(*simulate(generator, 0.0, seeds)).detectable for _ in range(100)])
    found = [effect_of(*simulate(generator, detectable, seeds)).verdict == "gain" for _ in range(200)]
    assert 0.68 <= np.mean(found) <= 0.97


def test_many_rows_and_one_level_per_seed_give_the_paired_t_interval():
    """With rows that leave no doubt, what is left is the classical interval over seeds."""
    treated, control = [0.61, 0.66, 0.70, 0.64], [0.60, 0.61, 0.67, 0.66]
    nothing = np.zeros((50, 4))
    effect = paired_effect(treated, control, nothing + treated, nothing + control)
    reference = stats.ttest_rel(treated, control)
    low, high = reference.confidence_interval(0.95)
    assert effect.low == pytest.approx(low, abs=1e-3)
    assert effect.high == pytest.approx(high, abs=1e-3)
    assert effect.probability == pytest.approx(1 - stats.ttest_rel(treated, control, alternative="greater").pvalue, abs=5e-3)


def test_equal_seeds_give_the_bootstrap_interval_over_rows_that_scipy_gives():
    generator = np.random.default_rng(5)
    rows = (generator.random(300) < 0.6).astype(float)[:, None], (generator.random(300) < 0.5).astype(float)[:, None]
    draws = [resampled_scores([one], mean_of) for one in rows]
    effect = paired_effect(
        [rows[0].mean()] * 2, [rows[1].mean()] * 2, np.repeat(draws[0], 2, axis=1), np.repeat(draws[1], 2, axis=1)
    )
    reference = stats.bootstrap(
        (rows[0][:, 0], rows[1][:, 0]), lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, method="percentile", rng=6
    ).confidence_interval
    assert effect.low == pytest.approx(reference.low, abs=0.01)
    assert effect.high == pytest.approx(reference.high, abs=0.01)


def test_one_seed_gives_a_mean_and_no_interval():
    effect = paired_effect([0.6], [0.5], np.zeros((5, 1)), np.zeros((5, 1)))
    assert effect.mean == pytest.approx(0.1)
    assert (effect.low, effect.high, effect.probability, effect.detectable, effect.verdict) == (None, None, None, None, "unclear")


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_the_interval_over_tasks_is_students(gains):
    effect = effect_over_tasks(gains)
    if np.ptp(gains) > 1e-6:
        low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
        assert (effect.low, effect.high) == (pytest.approx(low), pytest.approx(high))
    assert effect.low <= effect.mean + 1e-12
    assert effect.high >= effect.mean - 1e-12


# ---- reading a comparison


def write_comparison(folder, gains, seeds=3, labels=("32",), arms=("base", "further", "pre-finetuned"), rows=200):
    """A finished comparison: `gains` maps task -> what pre-finetuning adds to the share of right rows."""
    (folder / "rows").mkdir(parents=True)
    entry = {"family": "classification", "metric": "accuracy", "labels": {at: int(at) for at in labels}}
    plan = {
        "format": 1, "base": "base", "treated": "pre-finetuned", "arms": {arm: {"start": arm, "weights": arm} for arm in arms},
        "tasks": dict.fromkeys(gains, entry),
        "labels": list(labels), "seeds": list(range(seeds)), "grid": [1e-3], "tuning_seeds": [0], "settings": {}, "left_out": [],
        "command": "", "started": "2026-01-01T00:00:00+00:00", "environment": {},
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(plan))
    generator, lines = np.random.default_rng(0), []
    for task, gain in gains.items():
        for at in labels:
            for arm in arms:
                for seed in range(seeds):
                    share = 0.5 + gain * (arm == "pre-finetuned") + 0.01 * seed
                    right = np.zeros((rows, 1))
                    right[generator.permutation(rows)[: round(share * rows)]] = 1
                    digest = f"{task}-{at}-{arm}-{seed}".replace("/", "-")
                    np.save(rows_file(folder, digest), right)
                    lines.append({
                        "task": task, "family": "classification", "arm": arm, "labels": int(at), "seed": seed,
                        "metric": "accuracy",
                        "score": float(right.mean()), "scores": {"accuracy": float(right.mean()), "majority": 0.4},
                        "learning_rate": 1e-3, "validation": 0.5,
                        "digest": digest, "subset": f"{seed}", "base": arm, "rows": rows,
                    })  # fmt: skip
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_losers_come_first_and_the_sentence_follows_the_numbers(tmp_path):
    found = read_comparison(write_comparison(tmp_path / "c", {"up": 0.2, "down": -0.1, "same": 0.0, "higher": 0.25}))
    assert [line.task for line in found.lines] == ["down", "same", "up", "higher"]
    assert [line.effects["base"].verdict for line in found.lines] == ["harm", "unclear", "gain", "gain"]
    assert found.lines[0].effects["base"].mean == pytest.approx(-0.1, abs=0.01)
    assert not found.missing
    assert not found.problems
    (sentence,) = found.sentences()
    assert sentence.startswith("With 32 labels, no difference that this comparison could show:")
    assert "3 of 4 gained" not in sentence  # `same` gained nothing
    assert "; against further not clearly different: " in sentence


@pytest.mark.parametrize(("gain", "words"), [(0.2, "pre-finetuning helped"), (-0.2, "pre-finetuning hurt")])
def test_gain_and_harm_are_said_with_the_same_words(tmp_path, gain, words):
    tasks = {f"t{i}": gain + 0.01 * i for i in range(5)}
    (sentence,) = read_comparison(write_comparison(tmp_path / "c", tasks)).sentences()
    assert f"With 32 labels, {words}: {gain + 0.02:+.3f}" in sentence
    assert f"; against further {'ahead' if gain > 0 else 'behind'}: " in sentence


def test_what_was_not_run_is_named_and_the_rest_is_still_read(tmp_path):
    folder = write_comparison(tmp_path / "c", {"a": 0.1, "b": 0.2})
    lines = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    found = read_comparison(folder)
    assert found.missing == ("b, 32 labels, pre-finetuned, seed 2",)
    (line,) = [line for line in found.lines if line.task == "b"]
    assert len(line.effects["base"].differences) == 2


def test_a_torn_last_line_is_reported_kept_out_and_moved_aside(tmp_path):
    folder = write_comparison(tmp_path / "c", {"a": 0.1})
    path = folder / "results.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-40])
    assert [number for number, _ in read_lines(path).torn] == [9]
    assert any("line 9" in problem for problem in read_comparison(folder).problems)
    torn = whole.splitlines()[-1][:-39]
    assert set_torn_aside(path) == [(9, torn)]
    assert path.with_name("results.jsonl.torn").read_text() == torn + "\n"
    assert path.read_text().splitlines() == whole.splitlines()[:-1]
    assert set_torn_aside(path) == []


def test_a_line_separator_inside_a_text_does_not_tear_its_record(tmp_path):
    path, record = tmp_path / "results.jsonl", {"task": "a\u2028b\x85c\u2029d", "score": 1.0}
    append(path, record)
    append(path, record)
    assert read_lines(path) == ([record, record], [])
    assert set_torn_aside(path) == []


def test_records_of_another_version_are_left_out_and_counted(tmp_path):
    folder = write_comparison(tmp_path / "c", {"a": 0.1})
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps({"task": "a", "score": 0.9}) + "\n[1, 2]\n")
    found = read_comparison(folder)
    assert len(found.lines) == 1
    assert any("1 records of another kind or version" in problem for problem in found.problems)
    assert any("line 11" in problem for problem in found.problems)


def test_cells_without_their_rows_are_in_no_interval_and_said_so(tmp_path):
    folder = write_comparison(tmp_path / "c", {"a": 0.1})
    rows_file(folder, "a-32-base-0").write_bytes(b"not an array")
    rows_file(folder, "a-32-base-1").unlink()
    found = read_comparison(folder)
    (problem,) = found.problems
    assert problem.startswith("a, 32 labels, base (seed 0), base (seed 1): rows that cannot be read (")
    assert problem.endswith("so these are in no interval")
    assert len(found.lines[0].effects["base"].differences) == 1
    assert len(found.lines[0].scores["base"]) == 3


def test_arms_that_saw_different_rows_are_a_problem(tmp_path):
    folder = write_comparison(tmp_path / "c", {"a": 0.1})
    path = folder / "results.jsonl"
    path.write_text(path.read_text().replace('"subset": "0"', '"subset": "x"', 1))
    assert any("did not see the same labelled rows" in problem for problem in read_comparison(folder).problems)


def test_a_folder_without_a_comparison_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no comparison"):
        read_comparison(tmp_path)
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_comparison(tmp_path)
