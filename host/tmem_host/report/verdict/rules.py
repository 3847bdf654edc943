# SPDX-License-Identifier: Apache-2.0
"""What rules of several subjects share: which side of a threshold an interval is on, and how figures are said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tmem_host.bench.results import Record
from tmem_host.bench.stats import Interval
from tmem_host.report.verdict.model import Decision, Figure, Need, Outcome
from tmem_host.report.verdict.resultset import Missing, ResultSet

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


# ---- the bench `exit`


def trip(arm: str) -> Need:
    """The round trip of an arm of the exit bench."""
    return Need("exit", "round_trip", {"arm": arm})


def cheapest_exit(results: ResultSet) -> Record:
    """The exit that KVM answers in the kernel at the lowest cost, 64-bit where there is one.

    Which instruction that is differs between processors and flavours of KVM (CPUID is slow on new Intel parts, a
    hypercall may be missing), and a claim about "an exit" gets the benefit of the cheapest. Submitting to a virtqueue
    is no bare exit: the guest's stores are in it.
    """
    found = results.all("exit", "round_trip", {"path": "kernel", "work": "nothing"})
    found = [r for r in found if r.dimensions.get("kind") != "virtqueue-submit"]
    found = [r for r in found if r.dimensions.get("bits") == 64] or found
    if not found:
        raise Missing("there is no figure exit round_trip of any exit answered in the kernel: run `tmem bench exit`")
    return min(found, key=lambda r: results.median(r).value)
