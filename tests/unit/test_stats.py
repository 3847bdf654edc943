# SPDX-License-Identifier: Apache-2.0
"""Statistics against what can be worked out by hand, against scipy, and for coverage."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st

from tmem_host.bench import stats

numbers = st.lists(st.floats(0, 1e9), min_size=1, max_size=60)


def test_median_and_p99_by_hand() -> None:
    assert stats.median([3, 1, 2]) == 2
    assert stats.median([1, 2, 3, 4]) == 2.5
    assert stats.p99(range(1, 101)) == 99
    assert stats.p99(range(1, 1001)) == 990
    assert stats.quantile([5], 0.99) == 5


@given(numbers, st.floats(0.01, 0.99))
def test_a_quantile_is_a_value_that_was_measured(values: list[float], q: float) -> None:
    assert stats.quantile(values, q) in values


@pytest.mark.parametrize("bad", [[], [float("nan")], [float("inf")], [[1, 2]]])
def test_what_are_no_samples_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="samples"):
        stats.median(bad)


@given(numbers)
def test_an_interval_holds_its_estimate_and_stays_among_the_samples(values: list[float]) -> None:
    found = stats.bootstrap_quantile(values, 0.5)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(5).lognormal(size=50)
    assert stats.bootstrap_quantile(values, 0.5, seed=3) == stats.bootstrap_quantile(values, 0.5, seed=3)


def test_the_interval_of_the_median_covers_the_truth_as_often_as_it_says() -> None:
    dice = np.random.default_rng(1)
    truth = float(np.exp(0))
    hits = 0
    for trial in range(300):
        found = stats.bootstrap_quantile(dice.lognormal(size=60), 0.5, seed=trial, resamples=400)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / 300 <= 0.99


def test_drawing_the_order_statistic_agrees_with_scipys_bootstrap() -> None:
    values = np.random.default_rng(2).exponential(size=800)
    ours = stats.bootstrap_quantile(values, 0.5)
    theirs = scipy.stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=1500, rng=np.random.default_rng(3)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.15 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.15 * width)


def test_rounds_are_resampled_whole() -> None:
    # Two rounds far apart: a thousand samples each do not make the median certain.
    values = [1.0] * 1000 + [9.0] * 1000
    as_rounds = stats.bootstrap_quantile(values, 0.5, [1000, 1000])
    assert (as_rounds.low, as_rounds.high) == (1.0, 9.0)


def test_rounds_must_add_up() -> None:
    with pytest.raises(ValueError, match="add up"):
        stats.split_rounds([1, 2, 3], [1, 1])


def test_a_ratio_of_the_same_rounds_is_paired() -> None:
    # Each round is twice as slow as the one before, and A always takes half of B.
    b = [1.0, 2.0, 4.0, 8.0, 16.0]
    a = [x / 2 for x in b]
    paired = stats.ratio(a, b, [1] * 5, [1] * 5)
    assert (paired.low, paired.value, paired.high) == (0.5, 0.5, 0.5)
    unpaired = stats.ratio(a, b)
    assert unpaired.low < 0.5 < unpaired.high


def test_a_ratio_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0"):
        stats.ratio([1.0], [0.0])


def test_permutation_by_hand() -> None:
    # 20 ways to take 3 of 6; the observed one and its mirror image are the most extreme.
    found = stats.permutation_test([1, 2, 3], [10, 11, 12])
    assert found.difference == -9
    assert found.p == pytest.approx(2 / comb(6, 3))
    assert found.smallest_p == pytest.approx(found.p)
    assert not found.decidable


def test_permutation_agrees_with_scipy() -> None:
    dice = np.random.default_rng(8)
    a, b = dice.normal(0, 1, 7), dice.normal(0.8, 1, 7)
    theirs = scipy.stats.permutation_test((a, b), lambda x, y: np.mean(x) - np.mean(y), n_resamples=10_000)
    assert stats.permutation_test(a, b).p == pytest.approx(theirs.pvalue)


def test_equal_samples_are_never_significant() -> None:
    assert stats.permutation_test([5.0] * 6, [5.0] * 6).p == 1


def test_p_is_uniform_when_there_is_no_difference() -> None:
    dice = np.random.default_rng(11)
    seen = [stats.permutation_test(dice.normal(size=5), dice.normal(size=5)).p for _ in range(300)]
    assert 0.01 <= np.mean(np.array(seen) <= 0.05) <= 0.10


def test_rounds_change_sides_whole() -> None:
    found = stats.permutation_test([1.0] * 100, [2.0] * 100, [50, 50], [50, 50])
    assert found.p == pytest.approx(2 / comb(4, 2))
    assert not found.decidable


def test_many_permutations_are_drawn() -> None:
    dice = np.random.default_rng(4)
    found = stats.permutation_test(dice.normal(0, 1, 40), dice.normal(3, 1, 40))
    assert found.p == found.smallest_p < 0.001
    assert found.decidable


def test_summary_counts_rounds() -> None:
    found = stats.summary([4, 1, 3, 2], [2, 2])
    assert (found.count, found.rounds, found.median.value, found.minimum, found.maximum) == (4, 2, 2.5, 1, 4)


@example([999999999.9999999])
@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=200))
def test_a_histogram_counts_every_sample(values: list[float]) -> None:
    edges, counts = stats.log_histogram(values)
    assert counts.sum() == len(values)
    assert edges[0] <= min(values)
    assert max(values) <= edges[-1]


@given(numbers)
def test_the_empirical_distribution_rises_to_one(values: list[float]) -> None:
    at, share = stats.ecdf(values)
    assert share[-1] == 1
    assert (np.diff(share) > 0).all()
    assert (np.diff(at) >= 0).all()


def test_a_share_has_the_exact_interval() -> None:
    # Clopper and Pearson 1934; 3 of 20 is tabled as 0.0321 to 0.3789.
    found = stats.share(3, 20)
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (0.15, 0.0321, 0.3789)
    assert stats.share(0, 100).low == 0
    assert stats.share(0, 100).high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert stats.share(100, 100).high == 1
    for count, total in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="share"):
            stats.share(count, total)


def test_a_line_is_found_with_its_interval() -> None:
    x = np.array([1.0, 2.0, 4.0, 8.0])
    rounds = np.array([3 * x + 10 + shift for shift in (-1, 0, 1)])
    line = stats.fit_line(x, rounds)
    assert [line.slope.value, line.intercept.value, line.r2] == pytest.approx([3, 10, 1])
    assert [line.slope.low, line.slope.high, line.intercept.low, line.intercept.high] == pytest.approx([3, 3, 9, 11])
    assert stats.fit_line(x, [[5, 5, 5, 5]]).r2 == 1
    assert stats.fit_line([0, 1, 2], [[0, 3, 0]]).r2 == pytest.approx(0)


@pytest.mark.parametrize(("x", "rounds"), [([1, 2], [[1, 2, 3]]), ([1, 1], [[1, 2]]), ([1, 2], [1, 2]), ([1, 2], [])])
def test_a_line_through_the_wrong_shape_is_refused(x: list[float], rounds: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"rounds|line"):
        stats.fit_line(x, rounds)


def test_a_ratio_of_tails() -> None:
    calm, tailed = [1.0] * 100, [1.0] * 95 + [50.0] * 5
    assert stats.ratio(tailed * 3, calm * 3, [100] * 3, [100] * 3).value == 1
    assert stats.ratio(tailed * 3, calm * 3, [100] * 3, [100] * 3, q=0.99).value == 50
