# SPDX-License-Identifier: Apache-2.0
"""Statistics of raw samples: quantiles, bootstrap intervals, ratios, permutation tests. Pure functions.

Samples taken in one round share what the machine was doing in that round, so they are not independent. Where rounds
are known (`round_sizes`: samples per round, in order), whole rounds are resampled or permuted, never single samples.
With few rounds the intervals are then wide and the tests cannot reach a small p: that is the truth about such a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
EXACT_LIMIT = 20_000
"""Permutations up to this number are all tried; beyond it as many are drawn at random."""


@dataclass(frozen=True)
class Interval:
    """An estimate with a bootstrap percentile interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """What a table shows of one record."""

    count: int
    rounds: int
    median: Interval
    p99: Interval
    mean: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Comparison:
    """A against B by a permutation test on the difference of medians."""

    difference: float
    p: float
    smallest_p: float
    """The smallest p that this number of rounds could give at all."""

    @property
    def decidable(self) -> bool:
        """Whether the run had enough rounds to call any difference significant at 5 %."""
        return self.smallest_p <= 0.05


def _floats(samples: ArrayLike) -> Floats:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError("samples must be a non-empty list of numbers")
    if not np.isfinite(values).all():
        raise ValueError("samples must be finite")
    return values


def quantile(samples: ArrayLike, q: float) -> float:
    """The q-quantile as a value that was measured (inverse of the empirical distribution; Hyndman and Fan's type 1)."""
    return float(np.quantile(_floats(samples), q, method="inverted_cdf"))


def median(samples: ArrayLike) -> float:
    """The usual median: the mean of the two middle values when their number is even."""
    return float(np.median(_floats(samples)))


def p99(samples: ArrayLike) -> float:
    """The 99th percentile, as a value that was measured."""
    return quantile(samples, 0.99)


def _point(samples: ArrayLike, q: float) -> float:
    return median(samples) if q == 0.5 else quantile(samples, q)


def split_rounds(samples: ArrayLike, round_sizes: Sequence[int] = ()) -> list[Floats]:
    """The samples of each round. Without rounds every sample is a round of its own."""
    values = _floats(samples)
    if not round_sizes:
        return [values[i : i + 1] for i in range(values.size)]
    if sum(round_sizes) != values.size or min(round_sizes) < 1:
        raise ValueError("round_sizes must be positive and add up to the number of samples")
    return np.split(values, np.cumsum(round_sizes)[:-1])


def bootstrap_quantile(
    samples: ArrayLike,
    q: float,
    round_sizes: Sequence[int] = (),
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 1,
) -> Interval:
    """Bootstrap percentile interval of the q-quantile (Efron 1979), over rounds if there are several.

    Independent samples: the quantile of a resample is the order statistic at a Beta-distributed rank, so it is drawn
    directly, exactly as resampling would give it, whatever the number of samples.
    """
    values = _floats(samples)
    point = _point(values, q)
    dice = np.random.default_rng(seed)
    if len(round_sizes) > 1 and max(round_sizes) > 1:
        draws = _cluster_quantiles(split_rounds(values, round_sizes), q, _picks(len(round_sizes), resamples, dice))
    elif q == 0.5 and values.size < 200:
        # Few samples: the middle pair matters, so resample them literally.
        draws = np.median(dice.choice(values, size=(resamples, values.size)), axis=1)
    else:
        ordered = np.sort(values)
        rank = max(1, int(np.ceil(q * values.size)))
        at = dice.beta(rank, values.size - rank + 1, size=resamples)
        draws = ordered[np.minimum((at * values.size).astype(np.intp), values.size - 1)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(point, min(float(low), point), max(float(high), point))


def _picks(rounds: int, resamples: int, dice: np.random.Generator) -> NDArray[np.intp]:
    """How often each round is drawn in each resample: shape (resamples, rounds)."""
    drawn = dice.integers(0, rounds, size=(resamples, rounds))
    return np.stack([(drawn == r).sum(axis=1) for r in range(rounds)], axis=1)


def _cluster_quantiles(rounds: Sequence[Floats], q: float, picks: NDArray[np.intp]) -> Floats:
    """The q-quantile of each resample of rounds. Equal resamples are computed once."""
    values = np.concatenate(list(rounds))
    owner = np.repeat(np.arange(len(rounds)), [r.size for r in rounds])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    distinct, back = np.unique(picks, axis=0, return_inverse=True)
    found = np.empty(len(distinct))
    for i, counts in enumerate(distinct):
        weight = np.cumsum(counts[owner])
        found[i] = values[int(np.searchsorted(weight, q * weight[-1]))]
    return found[back.reshape(-1)]


def summary(samples: ArrayLike, round_sizes: Sequence[int] = (), *, seed: int = 1) -> Summary:
    """All that a table needs of one record."""
    values = _floats(samples)
    return Summary(
        count=values.size,
        rounds=len(round_sizes) or values.size,
        median=bootstrap_quantile(values, 0.5, round_sizes, seed=seed),
        p99=bootstrap_quantile(values, 0.99, round_sizes, seed=seed),
        mean=float(values.mean()),
        minimum=float(values.min()),
        maximum=float(values.max()),
    )


def ratio(
    samples: ArrayLike,
    baseline: ArrayLike,
    round_sizes: Sequence[int] = (),
    baseline_sizes: Sequence[int] = (),
    *,
    q: float = 0.5,
    resamples: int = RESAMPLES,
    seed: int = 1,
    paired: bool = True,
) -> Interval:
    """Ratio of medians (or of other quantiles) with its interval. Same rounds: the same ones are drawn for both.

    `paired` false: the rounds are of two runs, and drawn apart even if there are as many.
    Raises ValueError when the baseline's quantile is 0.
    """
    ours, theirs = split_rounds(samples, round_sizes), split_rounds(baseline, baseline_sizes)
    below = _point(baseline, q)
    if below == 0:
        raise ValueError("the baseline's quantile is 0")
    point = _point(samples, q) / below
    dice = np.random.default_rng(seed)
    picks = _picks(len(ours), resamples, dice)
    paired = paired and bool(round_sizes) and len(round_sizes) == len(baseline_sizes)
    top = _cluster_quantiles(ours, q, picks)
    bottom = _cluster_quantiles(theirs, q, picks if paired else _picks(len(theirs), resamples, dice))
    usable = bottom != 0
    low, high = np.quantile(top[usable] / bottom[usable], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(point, min(float(low), point), max(float(high), point))


def share(count: int, total: int) -> Interval:
    """A share of independent trials with its exact interval (Clopper and Pearson 1934). `total` is at least 1."""
    if not 0 <= count <= total or total < 1:
        raise ValueError("a share needs 0 <= count <= total, and a trial")
    from scipy.special import betaincinv  # a tenth of a second that only this function needs

    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return Interval(count / total, low, high)


@dataclass(frozen=True)
class Line:
    """A straight line through measured points, with intervals over rounds."""

    slope: Interval
    intercept: Interval
    r2: float
    """Share of the variance of the medians that the line explains; 1 when they do not vary at all."""


def fit_line(x: ArrayLike, rounds: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 1) -> Line:
    """Least squares through the medians over rounds at each `x`; whole rounds are resampled for the intervals.

    `rounds` has one row per round and one column per `x`. Raises ValueError when the shapes do not fit or all `x` are
    equal.
    """
    at, values = _floats(x), np.asarray(rounds, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] != at.size or not np.isfinite(values).all():
        raise ValueError("rounds must be finite and have a column for each x")
    if at.min() == at.max():
        raise ValueError("a line needs two different x")
    dice = np.random.default_rng(seed)
    drawn = dice.integers(0, values.shape[0], size=(resamples, values.shape[0]))
    heights = np.vstack([np.median(values, axis=0), np.median(values[drawn], axis=1)])
    away = at - at.mean()
    slopes = heights @ away / (away @ away)
    intercepts = heights.mean(axis=1) - slopes * at.mean()
    rest = heights[0] - intercepts[0] - slopes[0] * at
    spread = heights[0] - heights[0].mean()
    r2 = 1 - float(rest @ rest) / float(spread @ spread) if float(spread @ spread) > 0 else 1.0
    return Line(_percentiles(slopes), _percentiles(intercepts), r2)


def _percentiles(values: Floats) -> Interval:
    """The first value with the percentile interval of the others."""
    point = float(values[0])
    low, high = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(point, min(float(low), point), max(float(high), point))


def permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    a_sizes: Sequence[int] = (),
    b_sizes: Sequence[int] = (),
    *,
    seed: int = 1,
) -> Comparison:
    """Two-sided permutation test (Fisher 1935) on the difference of the mean of the rounds' medians.

    The units that change sides are rounds, or samples where there are none. All permutations are tried when there are
    at most `EXACT_LIMIT` of them, else that many are drawn.
    """
    left = np.array([np.median(r) for r in split_rounds(a, a_sizes)])
    right = np.array([np.median(r) for r in split_rounds(b, b_sizes)])
    pool = np.concatenate([left, right])
    n, total = left.size, float(pool.sum())
    seen = abs(float(left.mean() - right.mean()))
    ways = comb(pool.size, n)
    if ways <= EXACT_LIMIT:
        sums = np.array([pool[list(chosen)].sum() for chosen in combinations(range(pool.size), n)])
    else:
        dice = np.random.default_rng(seed)
        sums = _drawn_sums(pool, n, EXACT_LIMIT, dice)
    differences = np.abs(sums / n - (total - sums) / right.size)
    # Sums in another order differ in the last bits: what equals the observed difference must count.
    extreme = int((differences >= seen * (1 - 1e-9) - 1e-300).sum())
    exact = ways <= EXACT_LIMIT
    p = extreme / ways if exact else (extreme + 1) / (EXACT_LIMIT + 1)
    return Comparison(float(left.mean() - right.mean()), float(p), smallest_p(left.size, right.size))


def _drawn_sums(pool: Floats, n: int, count: int, dice: np.random.Generator) -> Floats:
    """Sums of `n` values of the pool drawn without replacement, `count` times; some at once, within a few MiB."""
    rows = max(1, 500_000 // pool.size)
    starts = range(0, count, rows)
    drawn = [dice.permuted(np.tile(pool, (min(rows, count - at), 1)), axis=1)[:, :n].sum(axis=1) for at in starts]
    return np.concatenate(drawn)


def smallest_p(left: int, right: int) -> float:
    """The smallest p that a two-sided permutation test can give for so many units on either side."""
    ways = comb(left + right, left)
    if ways > EXACT_LIMIT:
        return 1 / (EXACT_LIMIT + 1)
    return min(1.0, (2 if left == right else 1) / ways)


def log_histogram(samples: ArrayLike, per_decade: int = 20) -> tuple[Floats, Floats]:
    """Counts in bins of equal width on a log axis: (edges, counts). Samples below 1e-12 count as 1e-12."""
    values = np.maximum(_floats(samples), 1e-12)
    first, last = np.floor(np.log10(values.min())), np.ceil(np.log10(values.max()) + 1e-9)
    edges = np.logspace(first, last, int(last - first) * per_decade + 1)
    # The logarithm of a value next to a power of ten rounds to it.
    edges[0], edges[-1] = min(edges[0], values.min()), max(edges[-1], values.max())
    counts, _ = np.histogram(values, edges)
    return edges, counts.astype(np.float64)


def ecdf(samples: ArrayLike, points: int = 400) -> tuple[Floats, Floats]:
    """The empirical distribution at up to `points` places, denser towards the tail: (values, share at or below)."""
    ordered = np.sort(_floats(samples))
    share = np.unique(
        np.concatenate([np.linspace(0, 0.98, points // 2), 1 - np.logspace(np.log10(0.02), -5, points // 2)])
    )
    at = np.unique(np.minimum((share * ordered.size).astype(np.intp), ordered.size - 1))
    at = np.unique(np.concatenate([at, [ordered.size - 1]]))
    return ordered[at], (at + 1) / ordered.size
