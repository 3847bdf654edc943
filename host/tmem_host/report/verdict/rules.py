# SPDX-License-Identifier: Apache-2.0
"""What rules of several subjects share: which side of a threshold an interval is on, and how figures are said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tmem_host.bench.stats import Interval
from tmem_host.report.verdict.model import Decision, Figure, Outcome

Side = Literal["below", "above", "astride"]


def side(interval: Interval, threshold: float) -> Side:
    """Where the whole interval lies. What is exactly at the threshold counts as below: 'at most'."""
    if interval.high <= threshold:
        return "below"
    return "above" if interval.low > threshold else "astride"


def outcome_of(where: Side, *, below: Outcome, above: Outcome) -> Outcome:
    """The outcome for either side; an interval astride the threshold decides nothing."""
    return below if where == "below" else above if where == "above" else "open"


def decided(outcome: Outcome, because: str, figures: Sequence[Figure], threshold: str = "") -> Decision:
    """A decision; an open one says which threshold its interval includes."""
    if outcome == "open" and threshold:
        because = f"{because}; the interval includes the threshold of {threshold}"
    return Decision(outcome, because, tuple(figures))


def times(label: str, interval: Interval) -> Figure:
    """A ratio as a figure."""
    return Figure.of(label, interval, "ratio")


def percent(label: str, share: Interval) -> Figure:
    """A share as a figure in percent."""
    return Figure.of(label, scaled(share, 100), "percent")


def scaled(interval: Interval, by: float) -> Interval:
    """The interval in other units; `by` is positive."""
    return Interval(interval.value * by, interval.low * by, interval.high * by)


def listed(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
