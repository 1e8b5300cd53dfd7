"""The mixture: orders are permutations, an epoch is exact coverage, and the stream is a pure function of (seed, position)."""

import time
import tracemalloc
from collections import Counter
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from prefinetune.mixture import Mixture, hash_key, permute, shares, unpermute

ORDERS = ("heterogeneous", "batch-homogeneous", "dataset-homogeneous")
orders = pytest.mark.parametrize("order", ORDERS)
sizes_of_tasks = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def mixture(sizes, contributions=None, sub_batches=3, sub_batch_size=4, **more):
    return Mixture(tuple(sizes), tuple(sizes if contributions is None else contributions), sub_batches, sub_batch_size, **more)


def stream(mixture):
    """All updates of a run."""
    return [mixture.update(number) for number in range(mixture.num_updates)]


def examples_of(updates):
    """How often each (task, example) is seen."""
    return Counter((one.task, int(example)) for update in updates for one in update for example in one.examples)


def sub_batches_of(updates):
    """Every sub-batch as a set of examples, with how often it comes."""
    return Counter((one.task, frozenset(one.examples.tolist())) for update in updates for one in update)


# ---- permutations


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_permute_sends_every_index_to_its_own_place(size, key):
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 2**63 - 1)), min_size=1, max_size=5))
def test_permuting_several_ranges_at_once_is_permuting_each(ranges):
    index = np.concatenate([np.arange(size) for size, _ in ranges])
    size, key = (np.concatenate([np.full(one[0], one[part]) for one in ranges]) for part in (0, 1))
    expected = np.concatenate([permute(np.arange(size), size, key) for size, key in ranges])
    np.testing.assert_array_equal(permute(index, size, key), expected)


@pytest.mark.parametrize("size", [10**9, 2**40 + 1, 2**52])
def test_permute_stays_in_range_and_never_repeats_itself_on_ranges_too_large_to_hold(size):
    generator = np.random.default_rng(0)
    index = np.unique(generator.integers(0, size, 20_000))
    found = permute(index, size, 7)
    assert found.min() >= 0
    assert found.max() < size
    assert len(np.unique(found)) == len(index)


@given(st.lists(st.tuples(st.integers(1, 2**52), st.integers(0, 2**63 - 1)), min_size=1, max_size=40), st.randoms())
def test_unpermute_finds_what_was_permuted(ranges, random):
    size, key = (np.array([one[part] for one in ranges]) for part in (0, 1))
    index = np.array([random.randrange(one) for one in size.tolist()])
    np.testing.assert_array_equal(unpermute(permute(index, size, key), size, key), index)
    np.testing.assert_array_equal(permute(unpermute(index, size, key), size, key), index)


def test_every_place_is_equally_likely_to_come_first():
    size, draws = 20, 20_000
    first = permute(np.zeros(draws, np.int64), size, hash_key(3, np.arange(draws)))
    assert chisquare(np.bincount(first, minlength=size)).pvalue > 0.001


@pytest.mark.parametrize("size", [4, 6, 12])
def test_every_pair_is_equally_likely_to_come_first_and_second(size):
    draws = 60_000
    keys = hash_key(4, np.arange(draws))
    one, two = (permute(np.full(draws, index), size, keys) for index in (0, 1))
    counts = np.bincount(one * size + two, minlength=size**2).reshape(size, size)
    assert (np.diag(counts) == 0).all()
    assert chisquare(counts[~np.eye(size, dtype=bool)]).pvalue > 0.001


def test_neighbours_are_sent_to_places_that_have_nothing_to_do_with_each_other():
    size = 50_000
    found = permute(np.arange(size), size, hash_key(5)).astype(float)
    for lag in (1, 2, 16, 256):
        assert abs(np.corrcoef(found[:-lag], found[lag:])[0, 1]) < 4 / np.sqrt(size)
    assert abs(np.corrcoef(found, np.arange(size))[0, 1]) < 4 / np.sqrt(size)


# ---- an epoch


@orders
@given(sizes=sizes_of_tasks, sub_batches=st.integers(1, 5), sub_batch_size=st.integers(1, 7), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_every_example_comes_exactly_once_in_an_epoch(order, sizes, sub_batches, sub_batch_size, seed):
    updates = stream(mixture(sizes, None, sub_batches, sub_batch_size, order=order, seed=seed))
    assert examples_of(updates) == {(task, example): 1 for task, size in enumerate(sizes) for example in range(size)}
    for update in updates:
        assert 0 < len(update) <= sub_batches
        assert all(0 < len(one.examples) <= sub_batch_size for one in update)


@orders
@given(sizes=sizes_of_tasks, seed=st.integers(0, 99))
@settings(max_examples=40)
def test_three_epochs_see_every_example_three_times(order, sizes, seed):
    seen = examples_of(stream(mixture(sizes, order=order, seed=seed, epochs=3)))
    assert set(seen.values()) == {3}
    assert len(seen) == sum(sizes)


@given(sizes_of_tasks, st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=40)
def test_heterogeneous_and_batch_homogeneous_see_the_same_sub_batches(sizes, sub_batches, seed):
    one, other = (stream(mixture(sizes, None, sub_batches, order=order, seed=seed)) for order in ORDERS[:2])
    assert sub_batches_of(one) == sub_batches_of(other)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(1, 20), st.floats(0.05, 2.5))
def test_part_of_an_epoch_has_no_empty_update_and_sees_that_part_of_the_sub_batches(sizes, sub_batches, epochs):
    mixture = Mixture(tuple(sizes), tuple(sizes), sub_batches, 4, epochs=epochs)
    updates = [mixture.update(number) for number in range(mixture.num_updates)]
    assert all(updates)
    assert sum(map(len, updates)) == max(1, round(epochs * mixture.counts.sum()))


@orders
def test_half_an_epoch_is_half_of_the_updates(order):
    whole, half = (mixture((100, 60, 40), order=order, epochs=epochs) for epochs in (1, 0.5))
    assert half.num_updates == np.ceil(whole.num_updates / 2)
    assert set(examples_of(stream(half)).values()) == {1}


@orders
@given(sizes=sizes_of_tasks, updates=st.integers(1, 60))
@settings(max_examples=40)
def test_a_run_of_so_many_updates_repeats_examples_evenly_and_has_no_empty_update(order, sizes, updates):
    drawn = stream(mixture(sizes, order=order, updates=updates))
    assert len(drawn) == updates
    assert all(drawn)
    seen = examples_of(drawn)
    if order == "dataset-homogeneous":  # each task repeats its own examples in its own stretch of the run
        groups = [[seen[task, example] for example in range(size)] for task, size in enumerate(sizes)]
    else:
        groups = [[seen[task, example] for task, size in enumerate(sizes) for example in range(size)]]
    assert all(max(times) - min(times) <= 1 for times in groups)


# ---- the three orders


@pytest.mark.parametrize("order", ORDERS[1:])
@given(sizes=sizes_of_tasks, seed=st.integers(0, 99))
@settings(max_examples=40)
def test_homogeneous_updates_hold_one_task(order, sizes, seed):
    for update in stream(mixture(sizes, order=order, seed=seed)):
        assert len({one.task for one in update}) == 1


@given(sizes_of_tasks, st.integers(0, 99), st.sampled_from([1, 2, 3]))
@settings(max_examples=40)
def test_dataset_homogeneous_finishes_a_task_before_the_next_begins(sizes, seed, epochs):
    tasks = [update[0].task for update in stream(mixture(sizes, order="dataset-homogeneous", seed=seed, epochs=epochs))]
    stints = [task for task, _ in groupby(tasks)]
    assert sorted(stints) == list(range(len(sizes)))


def test_batch_homogeneous_updates_are_shuffled_over_the_tasks():
    tasks = [update[0].task for update in stream(mixture([1200] * 4, order="batch-homogeneous"))]
    changes = sum(one != other for one, other in pairwise(tasks))
    expected = 0.75 * (len(tasks) - 1)
    assert abs(changes - expected) < 4 * np.sqrt(expected / 4)


def test_a_heterogeneous_update_mixes_tasks():
    updates = stream(mixture([400] * 8, sub_batches=8, sub_batch_size=4))
    distinct = [len({one.task for one in update}) for update in updates]
    expected = 8 * (1 - (7 / 8) ** 8)  # tasks hit by 8 draws from 8
    assert min(distinct) >= 2
    assert np.mean(distinct) == pytest.approx(expected, abs=4 * np.std(distinct) / np.sqrt(len(updates)))


def test_the_last_sub_batch_of_a_task_is_the_only_smaller_one():
    sizes = [len(one.examples) for update in stream(mixture((10, 7, 3))) for one in update if one.task == 0]
    assert sorted(sizes) == [2, 4, 4]


# ---- how often each task is drawn


def test_tasks_are_drawn_as_often_as_their_sizes_say():
    sizes = (4000, 2000, 400)
    drawn = examples_of(stream(mixture(sizes, sub_batches=8, updates=50)))
    counts = Counter()
    for (task, _), times in drawn.items():
        counts[task] += times
    found = np.array([counts[task] for task in range(3)])
    share = np.array(sizes) / sum(sizes)
    assert found.sum() == 50 * 8 * 4
    spread = np.sqrt(share * (1 - share) / (50 * 8))  # sub-batches are what is drawn
    assert (np.abs(found / found.sum() - share) < 4 * spread).all()


def test_shares_follow_their_formulas():
    sizes = np.array([10, 1000, 90_000])
    np.testing.assert_array_equal(shares(sizes), sizes)
    np.testing.assert_array_equal(shares(sizes, cap=500), [10, 500, 500])
    np.testing.assert_array_equal(shares(sizes, "uniform"), [30337, 30337, 30337])
    for cap, temperature in [(None, 2.0), (5000, 3.0), (None, 1.0)]:
        capped = np.minimum(sizes, cap or sizes.max())
        rates = capped ** (1 / temperature) / (capped ** (1 / temperature)).sum()
        expected = np.round(rates * capped.sum())
        np.testing.assert_array_equal(shares(sizes, "temperature", cap, temperature), expected)


@orders
@pytest.mark.parametrize("sampling", ["temperature", "uniform"])
def test_a_rebalanced_run_draws_what_its_shares_say_and_repeats_evenly(order, sampling):
    sizes = (5, 40, 300)
    contributions = shares(sizes, sampling, temperature=2.0)
    seen = examples_of(stream(mixture(sizes, contributions, order=order, epochs=2)))
    for task, (size, contribution) in enumerate(zip(sizes, contributions, strict=True)):
        times = [seen[task, example] for example in range(size)]
        assert sum(times) == 2 * contribution
        assert max(times) - min(times) <= 1


@orders
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4), cap=st.integers(1, 30), epochs=st.integers(1, 8))
@settings(max_examples=40)
def test_a_capped_task_goes_through_all_its_examples_in_turn(order, sizes, cap, epochs):
    contributions = shares(sizes, cap=cap)
    seen = examples_of(stream(mixture(sizes, contributions, order=order, epochs=epochs)))
    for task, size in enumerate(sizes):
        times = [seen[task, example] for example in range(size)]
        assert sum(times) == epochs * min(size, cap)
        assert max(times) - min(times) <= 1
        assert min(times) >= 1 or epochs * cap < size


# ---- a pure function


@orders
def test_an_update_is_the_same_from_wherever_the_stream_is_entered(order):
    run = mixture((50, 31, 7), order=order, epochs=3, seed=5)
    forwards = stream(run)
    for number in reversed(range(run.num_updates)):
        again = mixture((50, 31, 7), order=order, epochs=3, seed=5).update(number)
        for one, other in zip(forwards[number], again, strict=True):
            assert (one.task, one.key) == (other.task, other.key)
            np.testing.assert_array_equal(one.examples, other.examples)


@orders
def test_another_seed_is_another_order(order):
    one, other = (stream(mixture((200, 100), order=order, seed=seed)) for seed in (0, 1))
    assert examples_of(one) == examples_of(other)
    assert sub_batches_of(one) != sub_batches_of(other)


def test_an_epoch_is_another_order_of_other_sub_batches_than_the_one_before():
    run = mixture((480,), epochs=2)  # 40 updates of 12 examples an epoch
    half = run.num_updates // 2
    updates = stream(run)
    one, other = ([e for update in part for s in update for e in s.examples] for part in (updates[:half], updates[half:]))
    assert sorted(one) == sorted(other) == list(range(480))
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 12  # about one by chance
    assert not sub_batches_of(updates[:half]) & sub_batches_of(updates[half:])


def test_sub_batches_have_keys_of_their_own_even_when_an_example_comes_again():
    keys = [one.key for update in stream(mixture((40, 20), epochs=5)) for one in update]
    assert len(set(keys)) == len(keys)


def billion() -> np.ndarray:
    """Sizes of a thousand tasks, a billion rows in all; most are small."""
    sizes = np.random.default_rng(0).pareto(1.0, 1000) + 0.01
    sizes = np.maximum(1, sizes / sizes.sum() * 1e9).astype(np.int64)
    sizes[np.argmax(sizes)] += 10**9 - sizes.sum()
    return sizes


@pytest.mark.parametrize("capped", [False, True], ids=["whole", "capped"])
@pytest.mark.parametrize("order", ORDERS[:2])
def test_every_example_of_a_billion_stands_where_the_inverse_says(order, capped):
    """Exact coverage on a sample, by inverse lookup: from (task, example) to the one place in an epoch, and from there back. That
    there is such a place for each of a billion examples, and that there are a billion places, is that each comes exactly once.
    With a cap, a task's passes go on from epoch to epoch."""
    sizes, seed, width, wide = billion(), 5, 4, 16
    contributions = np.minimum(sizes, 200_000) if capped else sizes
    run = mixture(sizes.tolist(), contributions.tolist(), wide, width, order=order, seed=seed, epochs=5000 if capped else 3)
    assert capped or run.contributions == run.sizes
    counts = -(-contributions // width)
    updates = -(-counts // wide)
    generator = np.random.default_rng(1)
    for _ in range(60):
        task = int(generator.choice(1000)) if generator.random() < 0.5 else int(generator.choice(1000, p=sizes / sizes.sum()))
        size, share, count = int(sizes[task]), int(contributions[task]), int(counts[task])
        example, turn = int(generator.integers(size)), int(generator.integers(3))
        # Where the example stands in the task's own endless sequence of shuffled passes; which epoch and sub-batch that is.
        [within] = unpermute(np.array([example]), size, hash_key(seed, 2, task, turn))
        epoch, at = divmod(turn * size + int(within), share)
        sub_batch, column = divmod(at, width)
        # Where this sub-batch, or the update that holds it, stands among all of its epoch.
        if order == "heterogeneous":
            total, place = int(counts.sum()), int(counts[:task].sum()) + sub_batch
            [position] = unpermute(np.array([place]), total, hash_key(seed, 1, epoch))
            number, slot = divmod(epoch * total + int(position), wide)
        else:
            total, place = int(updates.sum()), int(updates[:task].sum()) + sub_batch // wide
            [position] = unpermute(np.array([place]), total, hash_key(seed, 1, epoch))
            number, slot = epoch * total + int(position), sub_batch % wide
        found = run.update(number)[slot]
        assert (found.task, int(found.examples[column])) == (task, example)
        assert sub_batch < count


@orders
def test_the_last_of_a_billion_positions_costs_what_the_first_does(order):
    sizes = billion()

    def seconds(place: int) -> float:
        """Of one update of a mixture that nothing was asked of before: the least of several."""
        taken = []
        for _ in range(7):
            run = mixture(sizes.tolist(), sub_batches=16, sub_batch_size=1, order=order)
            assert run.num_updates == pytest.approx(10**9 / 16, rel=1e-4)
            started = time.process_time()
            run.update(place if place >= 0 else run.num_updates + place)
            taken.append(time.process_time() - started)
        return min(taken)

    assert seconds(-1) < 5 * seconds(0) + 1e-3


@orders
def test_a_billion_rows_of_a_thousand_tasks_are_drawn_from_anywhere_in_milliseconds(order):
    sizes = billion()
    run = mixture(sizes.tolist(), sub_batches=16, sub_batch_size=4, order=order, epochs=3)
    places = np.random.default_rng(1).integers(0, run.num_updates, 50).tolist()
    run.update(places[0])
    seconds = []
    for place in places:
        started = time.process_time()
        update = run.update(place)
        seconds.append(time.process_time() - started)
        assert all(one.examples.min() >= 0 and one.examples.max() < sizes[one.task] for one in update)
    assert np.median(seconds) < 0.005
    tracemalloc.start()
    run.update(places[0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # bytes; a permutation of the rows would take 8,000,000,000
