"""A study read back says what its files say: means, pairs, corrections and words against independent computations."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from prefinetune.errors import InputError
from prefinetune.evidence import rows_file
from prefinetune.statistics import deviations, effect_on_target, effect_over_targets, holm
from prefinetune.study_results import NO_ROWS, read_protocol, read_study

ROWS = 100
TARGETS = ("a", "b", "c", "d")


def write_study(folder, gains, contrasts=(), seeds=3, labels=("32",), skip=()):
    """A study whose comparison is finished but for `skip`, a set of (arm, target, seed).

    Args:
        gains: group -> member -> what it adds to the share of right rows, by target; a number is for all targets.
    """
    arms = {
        f"{group} · {member}": {"group": group, "member": member, "x": None, "tasks": [], "settings": {}, "texts": 0, "seed": 0,
                                "run": f"runs/{group}-{member}", "start": "model", "cells": f"{group} · {member}"}
        for group, members in gains.items() for member in members
    }  # fmt: skip
    protocol = {
        "format": 1, "kind": "labels", "targets": list(TARGETS), "labels": list(labels), "seeds": list(range(seeds)),
        "arms": arms, "contrasts": [list(pair) for pair in contrasts],
        "left_out": ["left over"],
        "groups": {
            group: {"told": group, "x": at + 1.0, "series": "line", "role": "main" if at == 0 else "point"}
            for at, group in enumerate(gains)
        },
    }  # fmt: skip
    (folder / "comparison" / "rows").mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(protocol))
    entry = {"family": "classification", "metric": "accuracy", "labels": {at: int(at) for at in labels}}
    plan = {
        "format": 1, "base": "base", "treated": next(iter(arms)), "arms": {arm: {} for arm in ("base", *arms)},
        "tasks": dict.fromkeys(TARGETS, entry), "labels": list(labels), "seeds": list(range(seeds)), "grid": [1e-3],
        "tuning_seeds": [0], "left_out": [],
    }  # fmt: skip
    (folder / "comparison" / "comparison.json").write_text(json.dumps(plan))
    for arm in arms.values():
        (folder / arm["run"] / "model").mkdir(parents=True)
        (folder / arm["run"] / "model" / "config.json").write_text("{}")
    generator, lines = np.random.default_rng(0), []
    for at in labels:
        for target in TARGETS:
            base = [0.5 + generator.integers(-3, 4) / ROWS for _ in range(seeds)]
            for name, added in [("base", 0.0), *((name, gains[arm["group"]][arm["member"]]) for name, arm in arms.items())]:
                for seed in range(seeds):
                    share = base[seed] + (added[target] if isinstance(added, dict) else added)
                    if name != "base":
                        share += generator.integers(-2, 3) / ROWS
                    right = np.zeros((ROWS, 1))
                    right[generator.permutation(ROWS)[: round(share * ROWS)]] = 1
                    if (name, target, seed) in skip:
                        continue
                    digest, share = f"{target}-{at}-{len(lines)}", float(right.mean())
                    np.save(rows_file(folder / "comparison", digest), right)
                    lines.append({
                        "task": target, "family": "classification", "arm": name, "labels": int(at), "seed": seed,
                        "metric": "accuracy", "score": share,
                        "scores": {"accuracy": share, "macro_f1": share / 2, "majority": 0.4},
                        "learning_rate": 1e-3, "validation": 0.5, "digest": digest, "subset": f"{seed}", "rows": ROWS,
                    })  # fmt: skip
    (folder / "comparison" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def scores(folder, arm, labels=32):
    """[targets, seeds] straight from the records."""
    records = [json.loads(line) for line in (folder / "comparison" / "results.jsonl").read_text().splitlines()]
    found = {(one["task"], one["seed"]): one["score"] for one in records if (one["arm"], one["labels"]) == (arm, labels)}
    return np.array([[found.get((target, seed), np.nan) for seed in range(3)] for target in TARGETS])


def numbers(effect):
    return (effect.mean, effect.low, effect.high, effect.probability, effect.detectable)


MEMBERS = ("1", "2", "3")


def same(gain):
    return dict.fromkeys(MEMBERS, gain)


def test_a_reading_is_the_mean_over_targets_members_and_seeds_of_paired_differences(tmp_path):
    folder = write_study(tmp_path, {"many": same(0.1), "few": same(-0.05)}, labels=("32", "64"))
    found = read_study(folder)
    assert [(one.at, one.group) for one in found.readings] == [("32", "many"), ("32", "few"), ("64", "many"), ("64", "few")]
    for reading in found.readings:
        base = scores(folder, "base", int(reading.at))
        treated = np.stack([scores(folder, f"{reading.group} · {member}", int(reading.at)) for member in MEMBERS], axis=1)
        assert reading.effect.mean == pytest.approx((treated - base[:, None]).mean())
        assert numbers(reading.effect) == pytest.approx(
            numbers(effect_over_targets(treated.mean(2), base.mean(1)[:, None], False))
        )
        for target in reading.targets:
            at = TARGETS.index(target.task)
            assert target.scores == pytest.approx(treated[at])
            assert target.gains == pytest.approx(treated[at] - base[at])
            assert target.effect.mean == pytest.approx(target.gains.mean())
            assert target.effect.differences == pytest.approx(target.gains.mean(axis=1))
            assert target.majority == 0.4
            assert target.others == {"macro_f1": (pytest.approx(treated[at].mean() / 2), pytest.approx(base[at].mean() / 2))}
        assert [target.effect.mean for target in reading.targets] == sorted(target.effect.mean for target in reading.targets)
        assert [one.adjusted for one in reading.targets] == pytest.approx(holm([one.effect.p for one in reading.targets]))
        assert (reading.gained, reading.lost) == ((4, 0) if reading.group == "many" else (0, 4))
        assert reading.sign_p == pytest.approx(2 / 16)
        assert reading.by_family() == {"classification": reading.effect}
    assert [one.group for one in found.at("32")] == ["few", "many"]  # harm first
    assert [(x, one.group) for x, one in found.curve("line", "64")] == [(1.0, "many"), (2.0, "few")]
    assert [one.at for one in found.by_labels("few")] == ["32", "64"]
    assert found.missing == ("left over",)


def test_members_of_the_same_name_are_paired_and_others_are_not(tmp_path):
    luck = dict(zip(MEMBERS, (-0.2, 0.0, 0.2), strict=True))  # of an order of tasks, the same in both groups
    gains = {
        "many": {member: 0.1 + value for member, value in luck.items()}, "few": luck,
        "other": {f"other {member}": value for member, value in luck.items()}, "one": {"2": 0.0},
    }  # fmt: skip
    folder = write_study(tmp_path, gains, [("many", "few"), ("many", "other"), ("many", "one")])
    found = read_study(folder)
    paired, unpaired, single = found.contrasts
    assert (paired.paired, unpaired.paired, single.paired) == (True, False, True)
    assert paired.effect.mean == pytest.approx(0.1, abs=0.02)
    assert unpaired.effect.mean == pytest.approx(0.1, abs=0.02)
    assert paired.effect.verdict == "gain"
    assert unpaired.effect.verdict == "unclear"  # without pairs their luck does not cancel
    assert single.members == ("2",)
    ours, theirs = (
        [scores(folder, f"{group} · {name}{m}") for m in MEMBERS] for group, name in (("many", ""), ("other", "other "))
    )
    (target,) = [one for one in unpaired.targets if one.task == "b"]
    assert target.gains == pytest.approx(np.stack([one[1] for one in ours]) - np.mean([one[1] for one in theirs], axis=0))


def test_while_a_study_goes_on_what_is_finished_is_read_and_the_rest_is_counted(tmp_path):
    skip = {("many · 1", "b", 2), *(("many · 3", target, seed) for target in "bcd" for seed in range(3))}
    skip |= {("many · 2", "d", seed) for seed in range(3)} | {("many · 1", "d", seed) for seed in range(3)}
    folder = write_study(tmp_path, {"many": same(0.1)}, skip=skip)
    (folder / "runs" / "many-3" / "model" / "config.json").unlink()
    found = read_study(folder)
    (reading,) = found.readings
    assert reading.members == ("1", "2")  # the third has only begun
    assert {one.task for one in reading.targets} == {"a", "b", "c"}
    (target,) = [one for one in reading.targets if one.task == "b"]
    assert np.isnan(target.gains).tolist() == [[False, False, True], [False] * 3]
    both = scores(folder, "many · 1")[1, :2] + scores(folder, "many · 2")[1, :2] - 2 * scores(folder, "base")[1, :2]
    assert target.effect.mean == pytest.approx(both.mean() / 2)
    assert found.missing == (
        "left over", "pre-finetunings: 1 of 3 are not finished (runs/many-3)", f"{len(skip)} cells of the comparison"
    )  # fmt: skip


def test_before_the_comparison_there_is_a_protocol_and_nothing_else(tmp_path):
    folder = write_study(tmp_path, {"many": same(0.1)})
    (folder / "comparison" / "comparison.json").unlink()
    found = read_study(folder)
    assert (found.readings, found.contrasts, found.restarts, found.labels, found.sentences()) == ((), (), (), [], [])
    assert "the comparison: it has not begun" in found.missing


def test_sentences_tell_harm_first_and_name_targets_that_are_hurt_after_correction(tmp_path):
    gains = {"main": same({"a": -0.3, "b": 0.1, "c": 0.12, "d": 0.11}), "worse": same(-0.1), "alike": same(0.0)}
    found = read_study(write_study(tmp_path, gains, [("main", "worse"), ("main", "alike")]))
    first, second = found.sentences()
    assert re.fullmatch(r"With 32 labels, these hurt: worse -0\.\d+ \(95 % interval -0\.\d+ to -0\.\d+\)\.", first)
    assert second.startswith("With 32 labels, main: no difference that this study could show: ")
    told = r"on the mean over 4 targets and 3 checkpoints, 3 gained and 1 lost, for these very targets \S+ to \S+, after Holm's "
    assert re.search(told + "correction also a; ", second)
    assert "not clearly different from alike (+0.0" in second
    assert [one.task for one in found.reading("main", "32").harmed] == ["a"]


@pytest.mark.parametrize(("sign", "word"), [(1, "helped"), (-1, "hurt")])
def test_what_is_clear_for_these_targets_and_not_over_targets_is_told_so_and_harm_first(tmp_path, sign, word):
    gains = {"main": same({"a": 0.02 * sign, "b": 0.1 * sign, "c": 0.2 * sign, "d": 0.35 * sign}), "alike": same(0.0)}
    found = read_study(write_study(tmp_path, gains, [("main", "alike")]))
    reading = found.reading("main", "32")
    here = reading.on_these_targets
    assert reading.effect.low < 0 < reading.effect.high
    assert here.mean == pytest.approx(reading.effect.mean)
    assert here.low * sign > 0 < here.high * sign
    *first, last = found.sentences()
    assert f"main: {word} on these targets, and may not on others: {reading.effect.mean:+.3f} (95 % interval" in last
    assert f"for these very targets {here.low:+.3f} to {here.high:+.3f}" in last
    assert re.search(rf"not clearly different from alike \(\{'+' if sign > 0 else '-'}0.\d+, for these targets", last)
    if sign < 0:
        assert first == [
            f"With 32 labels, these hurt on these very targets: main ({here.mean:+.3f}, for these targets {here.low:+.3f} to "
            f"{here.high:+.3f})."
        ]
    (told,) = [one for one in found.as_dict()["readings"] if one["group"] == "main"]
    assert told["on_these_targets"]["low"] == here.low


def test_restarts_are_the_unbiased_deviation_over_seeds_and_its_change_from_the_base(tmp_path):
    folder = write_study(tmp_path, {"many": same(0.1)})
    base, many = read_study(folder).restarts
    assert (base.group, base.change) == ("base", None)
    order = [TARGETS.index(task) for task in many.targets]
    of_base = deviations(scores(folder, "base"))[order]
    of_many = np.mean([deviations(scores(folder, f"many · {member}")) for member in MEMBERS], axis=0)[order]
    assert base.deviation.differences == pytest.approx(of_base)
    assert many.deviation.mean == pytest.approx(of_many.mean())
    assert many.change.differences == pytest.approx(of_many - of_base)
    assert many.change.low < many.change.mean < many.change.high


def test_a_single_target_is_read_by_its_own_interval(tmp_path):
    folder = write_study(tmp_path, {"many": same(0.1)}, skip={("base", target, seed) for target in "bcd" for seed in range(3)})
    (reading,) = read_study(folder).readings
    assert reading.effect == reading.targets[0].effect
    assert reading.effect.low is not None


def test_the_result_is_plain_json(tmp_path):
    folder = write_study(tmp_path, {"many": same(0.1)}, skip={("many · 2", "a", 1)})
    told = json.loads(json.dumps(read_study(folder).as_dict(), allow_nan=False))
    (target,) = [one for one in told["readings"][0]["targets"] if one["task"] == "a"]
    assert target["gains"][1][1] is None
    assert target["gains"][0][0] == pytest.approx(scores(folder, "many · 1")[0, 0] - scores(folder, "base")[0, 0])


def test_cells_whose_rows_cannot_be_read_keep_their_scores_and_the_interval_of_their_target_is_over_checkpoints_and_seeds(
    tmp_path,
):
    folder = write_study(tmp_path, {"many": same(0.1)})
    (whole,) = read_study(folder).readings
    next(iter((folder / "comparison" / "rows").glob("a-32-*.npy"))).write_bytes(b"no array")
    found = read_study(folder)
    (problem,) = found.problems
    assert problem.startswith("a, 32 labels, ")
    assert "rows that cannot be read" in problem
    assert problem.endswith(NO_ROWS)
    (reading,) = found.readings
    assert reading.effect == whole.effect  # rows are in no interval over targets
    for one, before in ((target, known) for target in reading.targets for known in whole.targets if known.task == target.task):
        np.testing.assert_array_equal(one.gains, before.gains)
        alone = effect_on_target(one.scores, one.control, reading.paired, None)
        assert one.effect == (alone if one.task == "a" else before.effect)
        assert alone.high - alone.low < before.effect.high - before.effect.low


def test_a_folder_without_a_study_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no study"):
        read_study(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_protocol(tmp_path)


def test_reading_a_study_loads_no_torch():
    code = "import sys, prefinetune.study_results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
