"""The statistics of comparisons and studies: from scores to effects with intervals. Pure functions of numbers.

An effect is a mean of paired differences. Several layers could have been otherwise (targets, checkpoints, seeds, test rows), and
an interval must allow for each. Rows are many and are bootstrapped; the others are few, and their part is Student's t.

Letters: t targets, m members (checkpoints of a group), s seeds of the fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

RESAMPLES = 2000  # of rows
LEVEL, POWER = 0.95, 0.8
# Shares at which quantiles stand for a distribution when two are added: of the rows' bootstrap, and, further into its tails, of
# Student's t.
ROW_SHARES, T_SHARES = ((np.arange(count) + 0.5) / count for count in (101, 801))


@dataclass(frozen=True)
class Effect:
    """A mean paired difference and what is known about it. Where a layer has one value only, there is no interval: all None."""

    mean: float
    differences: tuple[float, ...]  # one per seed, per member or per task
    low: float | None = None  # of the 95 % interval
    high: float | None = None
    probability: float | None = None  # that the true difference is above zero
    detectable: float | None = None  # the smallest true difference that such a run would show (exclude zero) four times in five

    @property
    def verdict(self) -> str:
        """gain, harm, or unclear: whether the interval excludes zero."""
        if self.low is None or self.high is None:
            return "unclear"
        return "gain" if self.low > 0 else "harm" if self.high < 0 else "unclear"

    @property
    def p(self) -> float | None:
        """Two-sided, of no difference."""
        return None if self.probability is None else min(1.0, 2 * min(self.probability, 1 - self.probability))


def resampled_scores(
    rows: Sequence[np.ndarray], score: Callable[[np.ndarray], np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Scores [resamples, cells] of cells on resampled test rows, the same rows in every cell.

    Args:
        rows: per cell, row statistics [r, k] (see `Family.row_statistics`).
        score: the score that means of them [..., k] stand for.
    """
    table = np.stack(rows, axis=1).astype(np.float64)  # [r, cells, k]
    size, flat, generator = len(table), table.reshape(len(table), -1), np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, 100):
        counts = generator.multinomial(size, np.full(size, 1 / size), min(100, resamples - start))
        found.append(counts.astype(np.float64) @ flat / size)
    return score(np.concatenate(found).reshape(-1, *table.shape[1:]))


def layered_effect(
    mean: float,
    differences: Sequence[float],
    layers: Sequence[np.ndarray],
    resampled: np.ndarray | None = None,
    pooled: tuple[float, float] | None = None,
) -> Effect:
    """A mean with the uncertainty of every layer that it is a mean over.

    A layer's few values are not resampled: resampling three of them never leaves their range, and intervals made so cover far
    less than they say. Each layer's part is Student's t with its number of values less one degrees of freedom; the parts, and
    the rows' bootstrap distribution, are added as independent (the Behrens-Fisher distribution, whose intervals err to the wide
    side).

    Args:
        mean: the mean difference.
        differences: what `Effect` is to show of it.
        layers: per layer [n] the means over everything else; one of a single value adds nothing.
        resampled: [resamples] the mean on resampled rows, where no layer contains what the rows add.
        pooled: (standard error, degrees of freedom) of a layer whose variance was measured more than once.
    """
    known = [
        (float(np.std(layer, ddof=1)) / math.sqrt(len(layer)), float(len(layer) - 1)) for layer in layers if len(layer) > 1
    ] + ([pooled] if pooled else [])
    parts = sorted(((error, df) for error, df in known if error > 0), key=lambda part: part[1])
    rest = np.full(1, mean) if resampled is None else np.quantile(resampled, ROW_SHARES)
    shown = tuple(float(value) for value in differences)
    if not parts:
        low, high = np.quantile(rest, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        above = float((rest > 0).mean() + (rest == 0).mean() / 2)
        reach = (high - low) / 2 + stats.norm.ppf(POWER) * rest.std()
        return Effect(mean, shown, float(low), float(high), above, float(reach))
    (error, df), *others = parts  # the heaviest tails stay exact; what is added to them is a grid of equally likely values
    for other, other_df in others:
        rest = np.add.outer(rest, other * special.stdtrit(other_df, T_SHARES)).ravel()
        rest = np.quantile(rest, T_SHARES) if len(rest) > len(T_SHARES) else rest
    low, high = (mean + error * sum_quantile(share, (rest - mean) / error, df) for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    above = float(special.stdtr(df, rest / error).mean())
    spread = math.hypot(*(one for one, _ in parts), 0.0 if resampled is None else float(np.std(resampled)))
    return Effect(mean, shown, low, high, above, (high - low) / 2 + float(special.stdtrit(df, POWER)) * spread)


def sum_quantile(share: float, values: np.ndarray, df: float) -> float:
    """A quantile of the sum of Student's t and one of some equally likely values, by bisection of its distribution."""
    quantile = float(special.stdtrit(df, share))
    least, most = float(values.min()) + quantile, float(values.max()) + quantile
    if most - least < 1e-9:
        return least
    return float(optimize.brentq(lambda place: float(special.stdtr(df, place - values).mean()) - share, least, most))


def paired_effect(
    treated: Sequence[float], control: Sequence[float], treated_resampled: np.ndarray, control_resampled: np.ndarray
) -> Effect:
    """The mean over seeds of treated minus control, with the uncertainty of both the seeds and the test rows, paired over both.

    Args:
        treated, control: [s] scores by seed, in the same order.
        treated_resampled, control_resampled: [resamples, s] the same on resampled rows.
    """
    differences = np.asarray(treated, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Effect(mean, tuple(differences.tolist()))
    return layered_effect(mean, differences.tolist(), [differences], (treated_resampled - control_resampled).mean(axis=1))


def effect_over_tasks(gains: Sequence[float]) -> Effect:
    """The mean over tasks, with Student's t over them: what a further task like these may expect."""
    values = np.asarray(gains, dtype=np.float64)
    if len(values) < 2:
        return Effect(float(values.mean()), tuple(values.tolist()))
    return layered_effect(float(values.mean()), values.tolist(), [values])


def effect_on_target(treated: np.ndarray, control: np.ndarray, paired: bool, resampled: np.ndarray | None) -> Effect:
    """What a group changes on one target, as a further checkpoint and a further labelled subset would show it.

    Args:
        treated, control: [m, s] scores on the same labelled subsets; the base has one member.
        paired: whether row m of one belongs to row m of the other (the same seed or order), so that its luck cancels.
        resampled: [resamples] the mean difference on resampled rows; None leaves out what the rows add.

    Returns:
        An effect whose differences are by member. Without two seeds it has no interval.
    """
    by_member, layers = member_layers(treated.mean(axis=1), control.mean(axis=1), paired)
    by_seed = treated.mean(axis=0) - control.mean(axis=0)
    mean = float(by_seed.mean())
    if len(by_seed) < 2:
        return Effect(mean, tuple(by_member.tolist()))
    return layered_effect(mean, by_member.tolist(), [*layers, by_seed], resampled)


def effect_over_targets(treated: np.ndarray, control: np.ndarray, paired: bool) -> Effect:
    """What a group changes on the mean over targets, as a further target and a further checkpoint would show it.

    Targets and members are crossed. The variance of the mean is that of the target means over t plus that of the member means
    over m; the target means hold what seeds and test rows add, which are each target's own, and the part that a member changes in
    one target only is in both, so the sum errs to the wide side.

    Args:
        treated, control: [t, m] scores, means over seeds; of the base m is 1.
        paired: as in `effect_on_target`.

    Returns:
        An effect whose differences are by target. Without two targets it has no interval.
    """
    by_target = treated.mean(axis=1) - control.mean(axis=1)
    _, layers = member_layers(treated.mean(axis=0), control.mean(axis=0), paired)
    mean = float(by_target.mean())
    if len(by_target) < 2:
        return Effect(mean, tuple(by_target.tolist()))
    return layered_effect(mean, by_target.tolist(), [by_target, *layers])


def effect_on_these_targets(
    treated: np.ndarray, control: np.ndarray, paired: bool, row_deviations: Sequence[float] | None
) -> Effect:
    """What a group changes on the mean over these very targets, as a further checkpoint and further labelled subsets would show
    it. Whether a further target would gain is the question of `effect_over_targets`.

    Args:
        treated, control: [t, m, s] scores on the same labelled subsets; of the base m is 1.
        paired: as in `effect_on_target`.
        row_deviations: [t] of each target's mean difference on resampled rows, which are its own; None leaves them out.

    Returns:
        An effect whose differences are by member. Without two seeds it has no interval.
    """
    by_member, layers = member_layers(treated.mean(axis=(0, 2)), control.mean(axis=(0, 2)), paired)
    by_seed = treated.mean(axis=1) - control.mean(axis=1)  # [t, s]
    mean, (targets, seeds) = float(by_seed.mean()), by_seed.shape
    if seeds < 2:
        return Effect(mean, tuple(by_member.tolist()))
    # Labelled subsets are each target's own: their variances add up, and so do their degrees of freedom (Satterthwaite).
    variances = by_seed.var(axis=1, ddof=1) / seeds
    total, squares = float(variances.sum()), float((variances**2).sum())
    pooled = (math.sqrt(total) / targets, (seeds - 1) * total**2 / squares) if squares else None
    resampled = None
    if row_deviations is not None:
        resampled = mean + math.hypot(*row_deviations) / targets * special.ndtri(ROW_SHARES)
    return layered_effect(mean, by_member.tolist(), layers, resampled, pooled)


def member_layers(treated: np.ndarray, control: np.ndarray, paired: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """[m] differences by member, and the layers that they are made of: one of differences where members are paired or the control
    has only one, otherwise both sides' own."""
    if paired or len(control) == 1:
        differences = treated - control
        return differences, [differences]
    return treated - control.mean(), [treated, control]


def deviations(scores: np.ndarray) -> np.ndarray:
    """Standard deviation over seeds without the bias that few of them have (for normal scores): [..., s] -> [...].

    E[sample deviation] = c4 x deviation, with c4 = sqrt(2 / (s - 1)) Gamma(s / 2) / Gamma((s - 1) / 2).
    """
    size = scores.shape[-1]
    c4 = math.sqrt(2 / (size - 1)) * math.exp(math.lgamma(size / 2) - math.lgamma((size - 1) / 2))
    return scores.std(axis=-1, ddof=1) / c4


def sign_test(gains: Sequence[float]) -> tuple[int, int, float]:
    """How many are above zero, how many below, and the two-sided probability of a split at least so uneven by coin tosses."""
    gained, lost = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return gained, lost, float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values so adjusted that the chance of a single false one among all those below a level is at most that level (Holm 1979):
    the k-th smallest of n times n - k + 1, never less than a smaller one's."""
    size, largest, adjusted = len(p_values), 0.0, [1.0] * len(p_values)
    for rank, index in enumerate(sorted(range(size), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (size - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
