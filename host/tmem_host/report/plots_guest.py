# SPDX-License-Identifier: Apache-2.0
"""The plots of workloads in a guest."""

from __future__ import annotations

from tmem_host.bench.results import Record, Results
from tmem_host.report.draw import Plot, bar_plot, strip_plot, tail_plot
from tmem_host.report.registry import plot

_WORDS = {
    "hit": "page at hand",
    "fault": "page from swap",
    "get": "GET",
    "set": "SET",
}
_COLOURS = {"hit": "s7", "fault": "s0", "get": "s2", "set": "s4"}

#: In the plot of lines: a hue for each workload and operation.
_LINES = {
    ("hog", "fault"): "s0",
    ("zipf", "fault"): "s2",
    ("build", "fault"): "s6",
    ("redis", "get"): "s4",
    ("redis", "set"): "s5",
}


def _label(record: Record) -> str:
    op = str(record.dimensions.get("op"))
    return f"{record.arm}: {_WORDS.get(op, op)}"


def _colour(record: Record) -> str:
    return _COLOURS.get(str(record.dimensions.get("op")), "s9")


@plot("guest")
def guest_latency(results: Results) -> Plot | None:
    """What each workload waits for, in the phase that it is about."""
    return strip_plot(
        results,
        "latency",
        "Latency by workload",
        "Each row is a distribution on one logarithmic axis, of the phase that the workload is about, by the guest's "
        "own clock; long mark: median, short mark: 99th percentile.",
        results.find("latency", main=True),
        _label,
        _colour,
    )


@plot("guest")
def guest_tail(results: Results) -> Plot | None:
    """The tail of what waits for a page."""
    return tail_plot(
        results,
        "latency-tail",
        "Slow accesses",
        "Share of accesses to a page from swap, and of operations, that took longer than the time on the axis. Lower "
        "and further left is better.",
        [r for r in results.find("latency", main=True) if (r.arm, r.dimensions.get("op")) in _LINES],
        _label,
        lambda record: _LINES[record.arm, str(record.dimensions.get("op"))],
    )


@plot("guest")
def guest_time(results: Results) -> Plot | None:
    """Each phase's time."""
    records = [r for r in results.find("run_time") if r.dimensions.get("phase") != "all"]
    return bar_plot(
        results,
        "run-time",
        "Time of each phase",
        "Median over the rounds, by the guest's own clock. Dots: rounds; whisker: 95 % interval. A phase that is ended "
        "by the clock takes what it was given.",
        [(f"{r.arm}: {r.dimensions.get('phase')}", [r]) for r in records],
    )


@plot("guest")
def guest_pages(results: Results) -> Plot | None:
    """What the host counted meanwhile."""
    groups = [
        (f"{arm}: {name}", results.find(f"host_{name}s", arm=arm)[:1])
        for arm in results.arms()
        for name in ("put", "get")
    ]
    return bar_plot(
        results,
        "host-pages",
        "Pages that crossed",
        "Puts and gets of the VM while a workload ran, as the host counted them. Dots: rounds; whisker: 95 % interval.",
        groups,
    )
