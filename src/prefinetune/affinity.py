"""Which tasks pull the trunk the same way, which hurt which, and what to do about it. Reads a run's affinity.jsonl and computes;
imports no torch. `gradients.py` writes that file during training; see docs/affinity.md.

Letters: n sampled updates, s tasks of the suite, t targets, a tasks of the suite and targets that were kept out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from prefinetune.errors import InputError, listing, nearest
from prefinetune.files import read_lines
from prefinetune.statistics import LEVEL, holm

FILE = "affinity.jsonl"
FEWEST = 5  # sampled updates, under which nothing is said
RESAMPLES, HOLDS = 100, 80  # of sampled updates, to see whether clusters hold; in so many of them one does
# docs/affinity.md has the numbers.
CAVEAT = (
    "These are first-order estimates, which did not predict true leave-one-out runs where that was tried: compare a model of the "
    "smaller suite with this one before relying on it."
)
NEEDED = {"step", "updates", "rate", "tasks", "kept_out", "targets", "shares", "losses", "cosines", "products", "seconds"}


@dataclass(frozen=True)
class Estimate:
    """A mean over sampled updates, and what is known about it."""

    mean: float
    low: float  # of the 95 % interval (Student's t over sampled updates)
    high: float
    adjusted: float  # p that the true mean is not zero, Holm-adjusted over all estimates of its table

    @property
    def verdict(self) -> str:
        """help, hurt or unclear: the sign, where it would be seen by chance in no more than one table of twenty."""
        if not self.adjusted <= 1 - LEVEL:
            return "unclear"
        return "help" if self.mean > 0 else "hurt"


@dataclass(frozen=True)
class Table:
    """Estimates by row and column; where there is none (a task's effect on itself), NaN."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    mean: np.ndarray  # [rows, columns], as are the others
    low: np.ndarray
    high: np.ndarray
    adjusted: np.ndarray

    def __getitem__(self, place: tuple[str, str]) -> Estimate:
        at = self.rows.index(place[0]), self.columns.index(place[1])
        return Estimate(*(float(values[at]) for values in (self.mean, self.low, self.high, self.adjusted)))


@dataclass(frozen=True)
class Affinity:
    """What a run's sampled updates say.

    Attributes:
        tasks: of the suite.
        kept_out: targets that were not trained on, whose gradients were sampled too.
        targets: what the suite is judged by: tasks kept out of it, or its own.
        cosines: [a, a] between the trunk's gradients on a few examples of each; on the diagonal, of two disjoint samples of one
            task, which is as high as noise lets a cosine be.
        transfer: [s, t] by how much the run's steps on a task lowered a target's loss, to first order; below zero it hurts.
        removal: [s, t] by how much a target's loss would be higher, had the task been left out and the others its updates.
        clusters: tasks and kept-out targets by the direction of their gradients, the largest first.
        held: of each cluster, in how many of `RESAMPLES` resamples of the sampled updates it was found again as it is.
        together: [a, a] the share of these resamples in which two tasks were in one cluster.
        order: all of them so that similar ones are neighbours: for a map.
        seconds: what sampling took.
    """

    folder: Path
    tasks: tuple[str, ...]
    kept_out: tuple[str, ...]
    targets: tuple[str, ...]
    samples: int
    updates: int
    cosines: Table
    transfer: Table
    removal: Table
    over_targets: Mapping[str, Estimate]  # task -> the mean of its transfer over targets
    removal_over_targets: Mapping[str, Estimate]
    clusters: tuple[tuple[str, ...], ...]
    held: tuple[int, ...]
    together: np.ndarray
    order: tuple[str, ...]
    seconds: float
    problems: tuple[str, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether there are enough sampled updates to say anything."""
        return self.samples >= FEWEST

    @cached_property
    def hurting(self) -> dict[str, list[str]]:
        """The tasks that clearly hurt the targets on the mean, by their own steps and beside what the others would do with these,
        the worst first; and the targets each hurts clearly by itself."""
        if not self.enough:
            return {}
        both = (self.over_targets, self.removal_over_targets)
        found = [task for task in self.tasks if all(estimates[task].verdict == "hurt" for estimates in both)]
        found.sort(key=lambda task: self.over_targets[task].mean)
        return {task: [t for t in self.targets if self.transfer[task, t].verdict == "hurt"] for task in found}

    def sentences(self) -> list[str]:
        """What the numbers justify."""
        told = f"Sampled at {self.samples:,} of {self.updates:,} updates"
        if not self.enough:
            return [f"{told}: too few to say anything; at least {FEWEST} are needed."]
        judged = f"{len(self.targets)} {'kept-out tasks' if set(self.targets) <= set(self.kept_out) else 'targets'}"
        if not self.hurting:
            return [f"{told}: no set clearly hurts the {judged}."]
        count = len(self.hurting)
        found = [
            f"{told}: {'this set hurts' if count == 1 else f'these {count} sets hurt'} the {judged} on the mean, to first order:"
        ]
        for task, targets in self.hurting.items():
            found.append(
                f"{task}: {shown(self.over_targets[task])}" + (f"; most clearly {listing(targets, 5)}" if targets else "")
            )
        return [*found, CAVEAT]

    def cluster_sentences(self) -> list[str]:
        """Which clusters are more than the luck of which updates were sampled; nothing where there is only one."""
        if not self.enough or len(self.clusters) < 2:
            return []
        firm = [
            f"{listing(cluster, 5)} ({held})"
            for cluster, held in zip(self.clusters, self.held, strict=True) if len(cluster) > 1 and held >= HOLDS
        ]  # fmt: skip
        of = f"{RESAMPLES} resamples of the sampled updates"
        if not firm:
            return [f"No cluster of two sets or more holds in {HOLDS} of {of}: where they end is luck."]
        return [f"Clusters that hold, in so many of {of}: {'; '.join(firm)}."]


def shown(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3g} (95 % interval {estimate.low:+.3g} to {estimate.high:+.3g}, adjusted p {estimate.adjusted:.2g})"


def read_affinity(folder: str | Path, targets: Sequence[str] = ()) -> Affinity:
    """What a run's folder says about its tasks, finished or not.

    Args:
        targets: what the suite is judged by; the kept-out tasks of the run, or else its own, when left out.

    Raises:
        InputError: nothing was sampled in this run, or there is no such target.
    """
    folder = Path(folder)
    records, torn = read_lines(folder / FILE)
    problems = [f"{FILE}, line {number}: not a whole record, passed over" for number, _ in torn]
    whole = [record for record in records if is_whole(record)]
    if len(whole) < len(records):
        problems.append(f"{FILE}: {len(records) - len(whole)} records are damaged or of another version, passed over")
    if not whole:
        raise InputError(f"{folder} holds no affinities ({FILE}): train with train.affinity_every=200, for one")
    last = whole[-1]
    same = [record for record in whole if all(record[key] == last[key] for key in ("tasks", "kept_out"))]
    if len(same) < len(whole):
        problems.append(f"{FILE}: {len(whole) - len(same)} records are about other tasks, passed over")
    tasks, kept_out = tuple(last["tasks"]), tuple(last["kept_out"])
    everything = (*tasks, *kept_out)
    judged = tuple(targets) or tuple(last["targets"]) or tasks
    for name in judged:
        if name not in everything:
            raise InputError(
                f"target {name!r} was not sampled in {folder}{nearest(name, everything)}; there are {listing(everything)}"
            )
    cosines = np.stack([square(record["cosines"]) for record in same])  # [n, a, a]
    transfer, removal = first_order(same, [everything.index(name) for name in judged])
    own = np.array([[task == target for target in judged] for task in tasks])  # what a task does to itself is no transfer
    transfer[:, own] = removal[:, own] = np.nan
    mean = estimate(cosines, symmetric=True)
    groups, order = cluster(mean[0])
    held, together = stability(cosines, groups)
    return Affinity(
        folder, tasks, kept_out, judged, len(same), int(last["updates"]),
        Table(everything, everything, *mean),
        Table(tasks, judged, *estimate(transfer)),
        Table(tasks, judged, *estimate(removal)),
        by_task(tasks, transfer),
        by_task(tasks, removal),
        tuple(tuple(everything[index] for index in group) for group in groups),
        tuple(held),
        together,
        tuple(everything[index] for index in order),
        sum(record["seconds"] for record in same),
        tuple(problems),
    )  # fmt: skip


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a line has all that is read of it, in its shape."""
    if not record.keys() >= NEEDED:
        return False
    try:
        size = len(record["tasks"]) + len(record["kept_out"])
        whole = all([len(row) for row in record[key]] == list(range(1, size + 1)) for key in ("cosines", "products"))
        return whole and len(record["shares"]) == len(record["tasks"]) and len(record["losses"]) == size
    except TypeError:
        return False


def square(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """A symmetric matrix [a, a] from the rows of its lower triangle."""
    found = np.zeros((len(rows), len(rows)))
    found[np.tril_indices(len(rows))] = [value for row in rows for value in row]
    return found + np.tril(found, -1).T


def first_order(records: Sequence[Mapping[str, Any]], targets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """What each task does to each target over a run, to first order, as each sampled update has it: [n, s, t] twice.

    An update moves the trunk by -rate x P x sum of share_s x g_s, with g_s the mean gradient of task s and P the optimizer's
    scaling. A target's loss falls by the product of its own gradient g_t with that (TAG, Fifty et al. 2021, arXiv 2109.04617,
    section 3, whose look-ahead is this but for higher orders; TracIn, Pruthi et al. 2020, arXiv 2002.08484, which sums it over a
    run):

        transfer[s, t] = updates x rate x share_s x g_t P g_s

    With s left out, and its updates given to the others in proportion, share_r becomes share_r / (1 - share_s), and so

        removal[s, t] = updates x rate x share_s / (1 - share_s) x (g_t P g_s - sum over r of share_r x g_t P g_r)

    is how much higher the loss of t ends.
    """
    transfer, removal = [], []
    for record in records:
        shares = np.asarray(record["shares"])[:, None]
        products = square(record["products"])[: len(shares), targets]  # [s, t]
        scale = record["updates"] * record["rate"]
        transfer.append(scale * shares * products)
        left = np.maximum(1 - shares, 1e-12)  # of one task nothing is left
        removal.append(scale * shares / left * (products - (shares * products).sum(axis=0)))
    return np.stack(transfer), np.stack(removal)


def by_task(tasks: Sequence[str], effects: np.ndarray) -> dict[str, Estimate]:
    """The mean over targets of effects [n, s, t], by task; none of a task that is the only target."""
    judged = ~np.isnan(effects[0]).all(axis=1)
    means = np.full(effects.shape[:2], np.nan)
    means[:, judged] = np.nanmean(effects[:, judged], axis=2)
    columns = zip(*estimate(means), strict=True)
    return {task: Estimate(*map(float, column)) for task, column in zip(tasks, columns, strict=True)}


def estimate(values: np.ndarray, symmetric: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means of values [n, ...] with 95 % intervals and Holm-adjusted p: (mean, low, high, adjusted), [...] each.

    Student's t over sampled updates: of few of them a bootstrap's intervals are too narrow, as evidence.py tells of seeds. That
    gradients change over a run only makes them wider. With one sampled update nothing is known: infinite intervals, p = 1.
    """
    count, mean = len(values), values.mean(axis=0)
    if count < 2:
        return mean, np.full_like(mean, -np.inf), np.full_like(mean, np.inf), np.where(np.isnan(mean), np.nan, 1.0)
    error = values.std(axis=0, ddof=1) / np.sqrt(count)
    reach = stats.t.ppf((1 + LEVEL) / 2, count - 1) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = 2 * stats.t.sf(np.abs(mean) / error, count - 1)
    chance = np.where((error == 0) & (mean == 0), 1.0, chance)
    once = np.tri(mean.shape[0], dtype=bool) if symmetric else np.ones(mean.shape, dtype=bool)
    adjusted = np.full(mean.shape, np.nan)
    adjusted[once] = adjust(chance[once])
    if symmetric:
        adjusted = np.where(once, adjusted, adjusted.T)
    return mean, mean - reach, mean + reach, adjusted


def adjust(chances: np.ndarray) -> np.ndarray:
    """p-values after Holm's correction; NaN stays, and is none of them."""
    found, tested = np.full(len(chances), np.nan), ~np.isnan(chances)
    found[tested] = holm(chances[tested].tolist())
    return found


def cluster(cosines: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """Groups of tasks whose gradients point the same way, and an order in which similar ones are neighbours.

    Cosines of noisy gradients are all near zero; divided by the root of both tasks' cosines with themselves they estimate those
    of the expected gradients (Spearman's correction for attenuation). Average linkage; two groups stay apart where the mean
    cosine between them is below the mean over all pairs.

    Args:
        cosines: [a, a], the diagonal between two samples of one task.
    """
    order, labels = list(range(len(cosines))), parts(cosines)
    if len(cosines) > 2:
        pairs = apart(cosines)
        order = leaves_list(optimal_leaf_ordering(linkage(pairs, "average"), pairs)).tolist()
    groups: dict[int, list[int]] = {}
    for index in order:
        groups.setdefault(int(labels[index]), []).append(index)
    return sorted(groups.values(), key=len, reverse=True), order


def apart(cosines: np.ndarray) -> np.ndarray:
    """1 less the cosine of expected gradients, of every pair of tasks [a (a - 1) / 2]."""
    own = np.sqrt(np.maximum(np.diag(cosines), 0.01))
    return squareform(1 - np.clip(cosines / np.outer(own, own), -1, 1), checks=False)


def parts(cosines: np.ndarray) -> np.ndarray:
    """The number of each task's cluster, [a]; of two tasks or one there is one cluster."""
    if len(cosines) < 3:
        return np.ones(len(cosines), dtype=int)
    pairs = apart(cosines)
    return fcluster(linkage(pairs, "average"), pairs.mean(), "distance")


def stability(cosines: np.ndarray, groups: Sequence[Sequence[int]]) -> tuple[list[int], np.ndarray]:
    """Whether clusters hold when sampled updates are drawn anew, with replacement: how often each is found again, no task more or
    less, and the share of resamples [a, a] in which two tasks are in one cluster.

    Args:
        cosines: [n, a, a], of each sampled update.
        groups: the clusters of their mean.
    """
    count, size = cosines.shape[:2]
    members = np.array([np.isin(np.arange(size), group) for group in groups])  # [groups, a]
    held, together = np.zeros(len(groups), dtype=int), np.zeros((size, size))
    for draw in np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES):
        labels = parts(np.tensordot(draw, cosines, 1) / count)
        same = labels[:, None] == labels
        held += (same[[group[0] for group in groups]] == members).all(axis=1)
        together += same
    return held.tolist(), together / RESAMPLES
