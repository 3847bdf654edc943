# SPDX-License-Identifier: Apache-2.0
"""The plots of the exit bench over a number: pages in one exit, microseconds of delay, latency of a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results
from tmem_host.bench.units import human
from tmem_host.report.draw import Plot, line_drawing, spread
from tmem_host.report.plots_exit import trip, trips
from tmem_host.report.registry import plot
from tmem_host.report.svg_lines import Level, Line, Mark, Scales

NOTICED = 1.05
"""From where on a slowdown counts as noticed: 5 %, the threshold of hypothesis H9."""


def over(records: Sequence[Record], dimension: str) -> list[tuple[float, Record]]:
    """(value of the dimension, record), ascending; records without a number there are left out."""
    found = [(float(x), r) for r in records if isinstance(x := r.dimensions.get(dimension), (int, float))]
    return sorted(found, key=lambda one: one[0])


def fitted(points: Sequence[tuple[float, Record]], x: Sequence[float], divide: Sequence[float]) -> stats.Line | None:
    """A line through the round medians, each divided by `divide`; None with fewer than three points."""
    if len(points) < 3:
        return None
    each = [[float(np.median(part)) for part in stats.split_rounds(r.samples, r.round_sizes)] for _, r in points]
    rounds = min(map(len, each))
    return stats.fit_line(x, [[column[k] / d for column, d in zip(each, divide, strict=True)] for k in range(rounds)])


def crossing(xs: Sequence[float], ys: Sequence[float], level: float) -> float | None:
    """The x at which a rising polyline on two log axes reaches `level`; None when it does not, within the points."""
    for (x1, y1), (x2, y2) in zip(zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False):
        if y1 <= level <= y2 and y1 < y2:
            part = math.log(level / y1) / math.log(y2 / y1)
            return float(x1 * (x2 / x1) ** part)
    return None


def _series(label: str, points: Sequence[tuple[float, Record]], colour: str, seed: int, divide: bool = False) -> Line:
    around = [(x, spread(r, seed), x if divide else 1.0) for x, r in points]
    return Line(
        label,
        [x for x, _, _ in around],
        [s.value / d for _, s, d in around],
        colour,
        [s.low / d for _, s, d in around],
        [s.high / d for _, s, d in around],
        joined=False,
    )


@plot("exit")
def batch_curve(results: Results) -> Plot | None:
    """Cost of a page by the number of pages in one exit, with a/n + b through it."""
    series, legend, levels, told = [], [], [], []
    for work, name, colour in (("put-batch", "put", "s2"), ("get-batch", "get", "s0")):
        points = over(trips(results, kind="pio", work=work), "n")
        line = fitted(points, [1 / n for n, _ in points], [n for n, _ in points])
        if line is None:
            continue
        a, b = line.slope.value, line.intercept.value
        counts = [float(n) for n in np.geomspace(points[0][0], points[-1][0], 60)]
        said = f"{name}: {human(a, 'ns')} / n + {human(b, 'ns')}"
        curve = [max(a / n + b, 1e-3) for n in counts]
        series += [
            Line(f"{said} (fitted)", counts, curve, colour, markers=False),
            _series(f"{name}, measured", points, colour, results.seed, divide=True),
        ]
        legend.append((colour, "", said))
        if b > 0:
            levels.append(Level(b, colour=colour))
        told.append(f"{said}, fit r² {line.r2:.3f}")
    if not series:
        return None
    counted = sorted({x for s in series if not s.joined for x in s.xs})
    return line_drawing(
        "batch",
        "Pages in one exit",
        "Cost of one page when n pages cross in one PIO exit: points with 95 % intervals, and the fitted line a/n + b. "
        "a is what an exit costs, b what a page costs; dashed: b alone. Once the line lies on the dashes, larger "
        "batches win nothing.",
        series,
        Scales("", "ns", y_log=False, x_label="pages in one exit (n)", x_values=counted),
        legend,
        levels=levels,
        told="; ".join(told),
    )


@plot("exit")
def delay_slope(results: Results) -> Plot | None:
    """How much slower an operation is with a delay in it."""
    series, legend, marks, told = [], [], [], []
    for kind, name, colour in (("pio", "put by PIO exit", "s2"), ("bare", "put without a VM", "s8")):
        points = over(trips(results, kind=kind, work="delay"), "delay_us")
        line = fitted(points, [x for x, _ in points], [1.0] * len(points))
        if line is None or points[0][0] != 0 or line.slope.value <= 0:
            continue
        base = stats.median(points[0][1].samples)
        slower = _series(name, points, colour, results.seed)
        measured = _percent_more(slower, base)
        threshold = (NOTICED - 1) * base / line.slope.value
        xs = [float(x) for x in np.geomspace(min(threshold / 2, 1.0), points[-1][0], 40)]
        said = f"{name}: {human(line.slope.value, 'ns')} for each µs, from {human(base, 'ns')}"
        series += [
            Line(said, xs, [100 * line.slope.value * x / base for x in xs], colour, markers=False),
            measured,
        ]
        legend.append((colour, "", said))
        told.append(f"{said}; 5 % at {human(threshold * 1000, 'ns')}")
        if kind == "pio":
            marks.append(Mark(threshold, 5.0, f"5 % at {human(threshold * 1000, 'ns')}"))
    if not series:
        return None
    return line_drawing(
        "delay",
        "What a delay in every operation does",
        "The udelay experiment: a busy-wait of so many µs is put into each operation (a page put, one per exit); how "
        "much slower does it get? Points: measured; line: straight fit. Above the dashed line the delay is noticed. A "
        "point that is missing at the left was within noise.",
        series,
        Scales("", "percent", x_label="delay in each operation, µs (logarithmic)"),
        legend,
        levels=[Level((NOTICED - 1) * 100, "noticed: 5 % slower")],
        marks=marks,
        told="; ".join(told),
    )


def _percent_more(line: Line, base: float) -> Line:
    """How much more than `base` each point is, in percent; points that are not clearly more are left out."""
    rows = [
        (x, *(100 * (v / base - 1) for v in (y, low, high)))
        for x, y, low, high in zip(line.xs, line.ys, line.lows, line.highs, strict=True)
        if x > 0
    ]
    rows = [row for row in rows if row[2] > 0]
    xs, ys, lows, highs = ([row[k] for row in rows] for k in range(4))
    return replace(line, xs=xs, ys=ys, lows=lows, highs=highs)


@plot("exit")
def device_crossover(results: Results) -> Plot | None:
    """From which latency of a device on the store is the faster place for a page."""
    points = [(1000 * us, r) for us, r in over(trips(results, work="device"), "latency_us")]
    if len(points) < 2:
        return None
    device = _series("device that answers after the latency on the axis", points, "s4", results.seed)
    joined = Line(device.label, device.xs, device.ys, "s4", markers=False)
    levels, marks, told = [], [], []
    for kind, way, colour in (("pio", "PIO exit", "s2"), ("irqfd-sleep", "sleeping thread", "s6")):
        put, get = trip(results, kind, "put"), trip(results, kind, "get")
        if put is None or get is None:
            continue
        mean = (stats.median(put.samples) + stats.median(get.samples)) / 2
        levels.append(Level(mean, f"store by {way}: {human(mean, 'ns')}", colour))
        at = crossing(device.xs, device.ys, mean)
        if at is not None:
            marks.append(Mark(at, mean, f"even at {human(at, 'ns')}"))
            told.append(f"store by {way} is faster above {human(at, 'ns')}")
        elif mean < device.ys[0]:
            told.append(f"store by {way} is faster at every latency tried")
        else:
            told.append(f"store by {way} is slower at every latency tried")
    said = "; ".join(told)
    return line_drawing(
        "crossover",
        "From which device on is the store faster?",
        "Round trip to an emulated device (request by ioeventfd, answer by irqfd) against its latency; dashed: one "
        "page to or from the store, the mean of put and get. Left of a crossing the device wins, right of it the store"
        f"{': ' if said else ''}{said}.",
        [joined, device],
        Scales("ns", "ns", x_label="latency of the device alone"),
        (("s4", "", device.label), *((level.colour, "5 3", level.label) for level in levels)),
        levels=levels,
        marks=marks,
        told=said,
    )
