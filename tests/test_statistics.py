"""The statistics of studies: coverage of their intervals on simulated studies, corrections against examples computed by hand."""

import numpy as np
import pytest
from scipy import stats

from prefinetune.evidence import Effect
from prefinetune.statistics import (
    deviations,
    effect_on_target,
    effect_on_these_targets,
    effect_over_targets,
    effect_over_tasks,
    holm,
    layered_effect,
    sign_test,
)


def simulate(generator, gain, targets, members, seeds=5, **spreads):
    """Scores of a group [t, m, s] and of the base [t, 1, s]. Every source of variation is normal: targets gain differently, so do
    checkpoints, and a checkpoint on each target; a labelled subset helps both arms, and one more than the other."""
    spread = {"target": 0.03, "member": 0.02, "both": 0.02, "seed": 0.03, "rest": 0.02} | spreads
    base = 0.6 + generator.normal(0, 0.1, (targets, 1, 1)) + generator.normal(0, 0.05, (targets, 1, seeds))
    gains = (
        gain
        + generator.normal(0, spread["target"], (targets, 1, 1))
        + generator.normal(0, spread["member"], (1, members, 1))
        + generator.normal(0, spread["both"], (targets, members, 1))
        + generator.normal(0, spread["seed"], (targets, 1, seeds))
        + generator.normal(0, spread["rest"], (targets, members, seeds))
    )
    return base + gains, base


CASES = {
    "few targets": {"targets": 5, "members": 3},
    "many targets": {"targets": 14, "members": 3},
    "checkpoints differ most": {"targets": 14, "members": 3, "member": 0.06, "target": 0.01},
    "checkpoints do not differ": {"targets": 8, "members": 3, "member": 0.0, "both": 0.0},
    "each checkpoint on other targets": {"targets": 8, "members": 4, "member": 0.0, "both": 0.05, "target": 0.0},
    "five checkpoints": {"targets": 8, "members": 5},
}


@pytest.mark.parametrize("case", CASES)
def test_the_interval_over_targets_and_checkpoints_holds_the_true_gain_95_times_in_100(case):
    generator, gain, found = np.random.default_rng(1), 0.04, []
    for _ in range(500):
        treated, base = simulate(generator, gain, **CASES[case])
        found.append(effect_over_targets(treated.mean(axis=2), base.mean(axis=2), paired=False))
    held = np.mean([effect.low <= gain <= effect.high for effect in found])
    assert 0.93 <= held <= 1.0, held
    # Not by being endless: at most half as wide again as the exact interval with the degrees of freedom of the checkpoints.
    true_error = np.std([effect.mean for effect in found])
    width = np.median([effect.high - effect.low for effect in found])
    assert width <= 1.5 * 2 * stats.t.ppf(0.975, CASES[case]["members"] - 1) * true_error


@pytest.mark.parametrize("case", ["few targets", "checkpoints differ most"])
def test_a_plain_hierarchical_bootstrap_would_cover_far_less(case):
    """Why targets and checkpoints are not resampled: the reason stands in `layered_effect`, and this is its measurement."""
    generator, gain, held = np.random.default_rng(2), 0.04, []
    for _ in range(300):
        treated, base = simulate(generator, gain, **CASES[case])
        table = treated.mean(axis=2) - base.mean(axis=2)
        targets, members = table.shape
        chosen = generator.integers(0, targets, (400, targets)), generator.integers(0, members, (400, members))
        means = table[chosen[0][:, :, None], chosen[1][:, None, :]].mean(axis=(1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        held.append(low <= gain <= high)
    assert np.mean(held) < 0.88


@pytest.mark.parametrize("members", [1, 3])
def test_the_interval_of_one_target_holds_what_a_further_checkpoint_and_subset_gain(members):
    generator, gain, held, rows = np.random.default_rng(3), 0.04, [], 0.015
    spread = {"target": 0.0} if members > 1 else {"target": 0.0, "member": 0.0, "both": 0.0}  # one checkpoint: of this one
    for _ in range(300):
        treated, base = simulate(generator, gain, 1, members, **spread)
        luck = generator.normal(0, rows)  # of the test rows, the same for all checkpoints and seeds
        draws = generator.normal((treated - base).mean() + luck, rows, 300)
        effect = effect_on_target(treated[0] + luck, base[0], False, draws)
        held.append(effect.low <= gain <= effect.high)
    assert 0.93 <= np.mean(held) <= 1.0, np.mean(held)


@pytest.mark.parametrize(("targets", "members", "rows"), [(2, 3, 0.015), (13, 2, 0.015), (13, 1, 0.04), (8, 4, None)])
@pytest.mark.parametrize("seeds", [2, 5])
def test_the_interval_for_these_very_targets_holds_what_further_checkpoints_and_subsets_gain_on_them(
    targets, members, rows, seeds
):
    generator, gain, held = np.random.default_rng(7), 0.04, []
    spread = {} if members > 1 else {"member": 0.0, "both": 0.0}
    for _ in range(400):
        treated, base = simulate(generator, gain, targets, members, seeds, target=0.0, **spread)
        luck = generator.normal(0, rows or 0.0, (targets, 1, 1))  # of each target's test rows
        effect = effect_on_these_targets(treated + luck, base, False, None if rows is None else [rows] * targets)
        held.append(effect.low <= gain <= effect.high)
    assert 0.93 <= np.mean(held) <= 1.0, np.mean(held)


def test_with_one_target_and_checkpoint_the_interval_for_these_is_students_over_subsets_and_with_many_it_has_their_freedom():
    treated, base = simulate(np.random.default_rng(9), 0.04, 1, 1)
    effect, differences = effect_on_these_targets(treated, base, False, None), (treated - base).ravel()
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((low, high))
    alike = np.concatenate([treated] * 9), np.concatenate([base] * 9)  # nine targets, equally noisy: nine times the freedom
    error = differences.std(ddof=1) / np.sqrt(5 * 9)
    assert effect_on_these_targets(*alike, False, None).high == pytest.approx(differences.mean() + error * stats.t.ppf(0.975, 36))


def test_how_unlike_the_targets_gain_is_in_the_interval_over_targets_and_not_in_that_for_these():
    treated, base = simulate(np.random.default_rng(8), 0.04, 8, 3)
    apart = treated + np.linspace(-0.3, 0.3, 8)[:, None, None]
    (one, other), (narrow, wide) = (
        (effect(treated), effect(apart)) for effect in (
            lambda scores: effect_on_these_targets(scores, base, False, [0.01] * 8),
            lambda scores: effect_over_targets(scores.mean(axis=2), base.mean(axis=2), False),
        )
    )  # fmt: skip
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_between_two_groups_holds_their_difference(paired):
    generator, gain, found = np.random.default_rng(4), 0.03, []
    for _ in range(500 if paired else 150):
        treated, base = simulate(generator, gain, 10, 3)
        luck = generator.normal(0, 0.03, (1, 3, 1))  # what a seed of pre-finetuning does in both groups, if they are paired
        other = base + generator.normal(0, 0.02, (10, 3, 1)) + (luck if paired else generator.normal(0, 0.03, (1, 3, 1)))
        found.append(effect_over_targets((treated + luck).mean(axis=2), other.mean(axis=2), paired))
    held = np.mean([effect.low <= gain <= effect.high for effect in found])
    assert 0.93 <= held <= 1.0, held


def test_without_a_gain_the_intervals_exclude_zero_at_most_one_time_in_twenty():
    generator, over, single = np.random.default_rng(5), [], []
    for _ in range(200):
        treated, base = simulate(generator, 0.0, 10, 3, target=0.0)
        over.append(effect_over_targets(treated.mean(axis=2), base.mean(axis=2), False).verdict != "unclear")
        of_each = [
            effect_on_target(t, b, False, np.full(5, (t - b).mean())).p for t, b in zip(treated[:3], base[:3], strict=True)
        ]
        single.append(min(holm(of_each)) < 0.05)
    assert np.mean(over) <= 0.065
    assert np.mean(single) <= 0.07  # of the three targets read at once, one false alarm


def test_the_smallest_detectable_gain_is_found_about_four_times_in_five():
    generator = np.random.default_rng(6)

    def effect(gain):
        treated, base = simulate(generator, gain, 10, 3)
        return effect_over_targets(treated.mean(axis=2), base.mean(axis=2), False)

    detectable = np.median([effect(0.0).detectable for _ in range(200)])
    assert 0.68 <= np.mean([effect(detectable).verdict == "gain" for _ in range(300)]) <= 0.97


def test_one_checkpoint_gives_students_interval_over_targets():
    gains = np.array([0.01, 0.05, 0.03, -0.02])
    effect = effect_over_targets(0.5 + gains[:, None], np.full((4, 1), 0.5), False)
    low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (effect.low, effect.high, effect.p) == pytest.approx((low, high, stats.ttest_1samp(gains, 0).pvalue))
    assert effect == effect_over_tasks(effect.differences)


def test_two_layers_give_the_behrens_fisher_interval_that_drawing_gives():
    first, second = np.array([0.02, 0.05, 0.08]), np.array([0.01, 0.04, 0.06, 0.03, 0.11, 0.05])
    generator, size = np.random.default_rng(7), 1_000_000
    drawn = 0.05 + sum(stats.sem(one) * generator.standard_t(len(one) - 1, size) for one in (first, second))
    effect = layered_effect(0.05, (), [first, second])
    assert (effect.low, effect.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-3)
    assert effect.p == pytest.approx(2 * np.mean(drawn < 0), abs=2e-3)


def test_one_target_or_one_seed_gives_a_mean_and_no_interval():
    for effect in (
        effect_over_targets(np.full((1, 3), 0.6), np.full((1, 1), 0.5), False),
        effect_on_target(np.full((3, 1), 0.6), np.full((1, 1), 0.5), False, np.zeros(5)),
    ):
        assert effect.mean == pytest.approx(0.1)
        assert (effect.low, effect.high, effect.p, effect.verdict) == (None, None, None, "unclear")


def test_differences_that_do_not_vary_are_known_exactly():
    assert layered_effect(0.5, (), [np.full(3, 0.5)]) == Effect(0.5, (), 0.5, 0.5, 1.0, 0.0)
    assert layered_effect(0.0, (), [np.zeros(3)]).p == 1.0


def test_the_deviation_over_few_seeds_is_right_on_average():
    scores = np.random.default_rng(8).normal(0.6, 0.04, (20_000, 3))
    assert scores.std(axis=1, ddof=1).mean() < 0.036  # the plain one is an eighth too low
    assert deviations(scores).mean() == pytest.approx(0.04, rel=0.01)


@pytest.mark.parametrize("ratio", [1.0, 0.6])
def test_the_interval_of_a_change_in_restart_deviation_holds_it(ratio):
    generator, held = np.random.default_rng(9), []
    levels = np.array([0.02, 0.03, 0.05, 0.04, 0.02, 0.06, 0.03, 0.04])
    change = (levels * (ratio - 1)).mean()
    for _ in range(400):
        base = generator.normal(0, 1, (8, 1, 5)) * levels[:, None, None]
        treated = generator.normal(0, 1, (8, 3, 5)) * levels[:, None, None] * ratio
        effect = effect_over_targets(deviations(treated), deviations(base), False)
        held.append(effect.low <= change <= effect.high)
    assert 0.93 <= np.mean(held) <= 1.0, np.mean(held)


def test_the_sign_test_counts_and_is_the_binomial_one():
    assert sign_test([0.1, 0.2, -0.1, 0.0, 0.3]) == (3, 1, pytest.approx(10 / 16))  # of 4 tosses: 0, 1, 3 or 4 heads
    assert sign_test([0.1] * 6) == (6, 0, pytest.approx(2 / 64))
    assert sign_test([0.0]) == (0, 0, 1.0)


def test_holm_is_what_the_definition_gives_by_hand():
    # 5 x 0.005, 4 x 0.01, 3 x 0.02 = 0.06, 2 x 0.03 = 0.06, 0.9
    assert holm([0.01, 0.9, 0.005, 0.03, 0.02]) == pytest.approx([0.04, 0.9, 0.025, 0.06, 0.06])
    assert holm([0.04, 0.04]) == pytest.approx([0.08, 0.08])
    assert holm([0.6, 0.5]) == [1.0, 1.0]  # never less than a smaller one's, never above 1
    assert holm([]) == []
