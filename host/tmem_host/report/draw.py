# SPDX-License-Identifier: Apache-2.0
"""From records to plots: every kind of plot that a bench may ask for, drawn wide and narrow, with its legend.

What is drawn as what is said in `plots_BENCH`; how lines and bars look is `svg`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results
from tmem_host.bench.units import human
from tmem_host.report import svg
from tmem_host.report.svg_lines import Level, Line, Mark, Scales, lines


@dataclass(frozen=True)
class Plot:
    """A drawing in two widths with what a reader needs around it."""

    key: str
    """Unique within the bench: becomes the id on the page."""
    title: str
    caption: str
    wide: str
    narrow: str
    legend: Sequence[tuple[str, str, str]] = ()
    """(colour class, dash, label)"""
    emulated: bool = False
    """A guest on an emulated CPU is in it, though the rest of the run had none: said at the plot."""


_FAMILIES = (
    ("tmem", ("s0", "s1", "s1 poll")),
    # A channel has one hue, whatever the source.
    *((f"{source}-virtio-tmem", ("s9",)) for source in ("swap-disk", "frontswap")),
    ("swap-disk-virtio-serial", ("s2",)),
    ("swap-disk-ivshmem", ("s7",)),
    *((source, ("s3",)) for source in ("swap-disk", "frontswap")),
    ("zram", ("s6",)),
    ("null", ("s8",)),
    ("disk", ("s4", "s5")),
)
_WAYS = {
    "sync-store": "s0",
    "async-store": "s2",
    "sync-disk": "s4",
    "async-disk": "s5",
    "fleet-vhost-user-tmem": "s3",
    "fleet-virtio-serial": "s2",
    "fleet-inline": "s9",
    "fleet-engine": "s7",
}
"""The density bench's arms: where pages go, or the channel, decides the hue."""
_REST = ("s7", "s9", "s3", "s2", "s1", "s0", "s5", "s4", "s6", "s8")


def colours(results: Results) -> dict[str, str]:
    """A colour class per arm: what belongs together looks alike, and an arm looks the same in every plot."""
    found: dict[str, str] = {}
    used: dict[str, int] = {}
    for arm in results.arms():
        if arm in _WAYS:
            found[arm] = _WAYS[arm]
            continue
        base = arm.removesuffix("-poll")
        if base != arm and base in found:
            found[arm] = f"{found[base]} poll"
            continue
        family, classes = next(((f, c) for f, c in _FAMILIES if arm.startswith(f)), ("", _REST))
        index = used.get(family, 0)
        used[family] = index + 1
        found[arm] = classes[index % len(classes)]
    return found


def dash_of(arm: str) -> str:
    """Polling, and answers that come later, are dashed; frontswap, which has its channel's hue, is dotted."""
    if arm.startswith("frontswap-"):
        return "1.5 3"
    return "5 3" if arm.endswith("-poll") or arm.startswith("async-") else ""


def line_drawing(
    key: str,
    title: str,
    caption: str,
    series: Sequence[Line],
    scales: Scales,
    legend: Sequence[tuple[str, str, str]],
    *,
    levels: Sequence[Level] = (),
    marks: Sequence[Mark] = (),
    told: str = "",
) -> Plot:
    """A plot of lines in both widths."""
    wide, narrow = (lines(series, scales, w, title, told, levels=levels, marks=marks) for w in (svg.WIDE, svg.NARROW))
    return Plot(key, title, caption, wide, narrow, legend)


def spread(record: Record, seed: int, statistic: Literal["median", "p99"] = "median") -> stats.Interval:
    """A statistic of a record with its 95 % interval."""
    return stats.bootstrap_quantile(
        record.samples, 0.5 if statistic == "median" else 0.99, record.round_sizes, seed=seed
    )


def _label(record: Record, drop: Sequence[str] = ()) -> str:
    """The arm, with the dimensions that are not part of every arm's definition when asked to keep them."""
    return " ".join([record.arm, *(str(v) for k, v in record.dimensions.items() if k in drop)])


def bar_plot(
    results: Results,
    key: str,
    title: str,
    caption: str,
    groups: Sequence[tuple[str, Sequence[Record]]],
    legend: Sequence[tuple[str, str, str]] = (),
    parts: Sequence[str] = (),
) -> Plot | None:
    """Bars of medians with intervals. `groups`: (label, records laid end to end); `parts`: the colour class of each."""
    palette = colours(results)
    rows, unit = [], ""
    for label, records in groups:
        if not records:
            continue
        unit = records[0].unit
        segments = []
        for i, r in enumerate(records):
            middle = stats.median(r.samples)
            part = f" {r.dimensions.get('phase') or r.dimensions.get('process') or ''}" if len(records) > 1 else ""
            colour = parts[i] if parts else palette.get(r.arm, "s7")
            segments.append(svg.Segment(middle, colour, f"{label}{part}: {human(middle, unit)}"))
        total = sum(s.value for s in segments)
        low = high = None
        dots: list[float] = []
        if len(records) == 1:
            only = records[0]
            dots = only.samples if len(only.samples) <= 12 else []
            # With fewer rounds the interval is just their span, which the dots show better.
            if len(only.samples) >= 4:
                around = spread(only, results.seed)
                low, high = around.low, around.high
        rows.append(svg.Bar(label, segments, human(total, unit), low, high, dots if len(dots) > 1 else []))
    if not rows:
        return None
    told = "; ".join(f"{r.label} {r.note}" for r in rows)
    return Plot(
        key,
        title,
        caption,
        svg.bars(rows, unit, svg.WIDE, title, told),
        svg.bars(rows, unit, svg.NARROW, title, told),
        legend,
    )


def metric_plot(results: Results, metric: str) -> Plot | None:
    """The plot of last resort: every record of a metric as a bar."""
    records = [r for r in results.find(metric) if r.arm != "harness"]
    names = [n for n in dict.fromkeys(k for r in records for k in r.dimensions) if n != "arm"]
    varying = [n for n in names if len({str(r.dimensions.get(n)) for r in records if r.arm == records[0].arm}) > 1]
    groups = [(_label(r, varying), [r]) for r in records]
    return bar_plot(results, metric, metric.replace("_", " ").capitalize(), "Median; whisker: 95 % interval.", groups)


def strip_plot(
    results: Results,
    key: str,
    title: str,
    caption: str,
    records: Sequence[Record],
    label: Callable[[Record], str] = lambda record: record.arm,
    colour: Callable[[Record], str] | None = None,
) -> Plot | None:
    """Distributions on a common log axis."""
    if not records:
        return None
    palette = colours(results)
    rows = [svg.Strip(label(r), r.samples, colour(r) if colour else palette.get(r.arm, "s7")) for r in records]
    unit = records[0].unit
    told = "; ".join(f"{r.label} median {human(stats.median(r.samples), unit)}" for r in rows)
    wide, narrow = (svg.strips(rows, unit, width, title, told) for width in (svg.WIDE, svg.NARROW))
    return Plot(key, title, caption, wide, narrow)


_SHARES = ((1.0, "all"), (0.1, "10 %"), (0.01, "1 %"), (1e-3, "0.1 %"), (1e-4, "0.01 %"))


def tail_plot(
    results: Results,
    key: str,
    title: str,
    caption: str,
    records: Sequence[Record],
    label: Callable[[Record], str] = lambda record: record.arm,
    colour: Callable[[Record], str] | None = None,
) -> Plot | None:
    """Share of samples slower than x, both axes logarithmic: the tail is where distributions differ."""
    if not records:
        return None
    palette = colours(results)
    series, legend = [], []
    for r in records:
        values, share = stats.ecdf(r.samples)
        points = [(float(v), 1 - float(s)) for v, s in zip(values, share, strict=True) if 1 - s >= 0.5 / len(r.samples)]
        points = [(max(v, 1e-9), s) for v, s in points if s >= 1e-5]
        if len(points) < 2:
            continue
        look, dash = colour(r) if colour else palette[r.arm], dash_of(r.arm)
        series.append(Line(label(r), [v for v, _ in points], [s for _, s in points], look, dash=dash, markers=False))
        legend.append((look, dash, label(r)))
    if not series:
        return None
    least = min(min(s.ys) for s in series)
    ticks = [(t, n) for t, n in _SHARES if t >= least * 0.5]
    unit = records[0].unit
    told = "; ".join(f"{label(r)} p99 {human(stats.p99(r.samples), unit)}" for r in records)
    scales = Scales(unit, "", y_ticks=ticks, x_label="slower than")
    return line_drawing(key, title, caption, series, scales, legend, told=told)


def line_plot(
    results: Results,
    key: str,
    title: str,
    caption: str,
    records: Sequence[Record],
    over: str,
    *,
    y_log: bool = True,
    statistic: Literal["median", "p99"] = "median",
    name: Callable[[Record], str] = lambda record: record.arm,
    x_label: str = "",
    under: Callable[[float], str] | None = None,
    levels: Sequence[Level] = (),
) -> Plot | None:
    """A statistic with interval bands over a numeric dimension, one line per arm. `under`: more about an x value."""
    by_name: dict[str, list[tuple[float, Record]]] = {}
    for r in records:
        at = r.dimensions.get(over)
        if isinstance(at, (int, float)) and not isinstance(at, bool):
            by_name.setdefault(name(r), []).append((float(at), r))
    if not by_name or max(len(v) for v in by_name.values()) < 2:
        return None
    palette = colours(results)
    series, legend = [], []
    for label, points in by_name.items():
        points.sort(key=lambda p: p[0])
        around = [spread(r, results.seed, statistic) for _, r in points]
        arm = points[0][1].arm
        ys, lows, highs = ([getattr(s, part) for s in around] for part in ("value", "low", "high"))
        series.append(Line(label, [x for x, _ in points], ys, palette[arm], lows, highs, dash_of(arm)))
        legend.append((palette[arm], dash_of(arm), label))
    unit = records[0].unit
    at_all = sorted({x for points in by_name.values() for x, _ in points})
    scales = Scales("", unit, y_log=y_log and all(y > 0 for s in series for y in s.ys), x_label=x_label or over)
    if at_all[0] > 0:
        scales = replace(scales, x_values=at_all, x_under=[under(x) for x in at_all] if under else ())
    else:
        scales = replace(scales, x_log=False)
    told = "; ".join(
        f"{s.label}: {human(s.ys[0], unit)} at {s.xs[0]:g}, {human(s.ys[-1], unit)} at {s.xs[-1]:g}" for s in series
    )
    return line_drawing(key, title, caption, series, scales, legend, levels=levels, told=told)
