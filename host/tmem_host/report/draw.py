# SPDX-License-Identifier: Apache-2.0
"""From records to plots: every kind of plot that a bench may ask for, drawn wide and narrow, with its legend.

What is drawn as what is said in `plots_BENCH`; how lines and bars look is `svg`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results
from tmem_host.bench.units import human
from tmem_host.report import svg


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


_FAMILIES = (("tmem", ("s0", "s1", "s2", "s3")), ("zram", ("s6",)), ("null", ("s8",)), ("disk", ("s4", "s5")))
_REST = ("s7", "s9", "s3", "s2", "s1", "s0", "s5", "s4", "s6", "s8")


def colours(results: Results) -> dict[str, str]:
    """A colour class per arm: what belongs together looks alike, and an arm looks the same in every plot."""
    found: dict[str, str] = {}
    used: dict[str, int] = {}
    for arm in results.arms():
        base = arm.removesuffix("-poll")
        if base != arm and base in found:
            found[arm] = f"{found[base]} poll"
            continue
        family, classes = next(((f, c) for f, c in _FAMILIES if arm.startswith(f)), ("", _REST))
        index = used.get(family, 0)
        used[family] = index + 1
        found[arm] = classes[index % len(classes)]
    return found


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
                spread = stats.bootstrap_quantile(only.samples, 0.5, only.round_sizes, seed=results.seed)
                low, high = spread.low, spread.high
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


def strip_plot(results: Results, key: str, title: str, caption: str, records: Sequence[Record]) -> Plot | None:
    """Distributions on a common log axis."""
    if not records:
        return None
    palette = colours(results)
    rows = [svg.Strip(r.arm, r.samples, palette.get(r.arm, "s7")) for r in records]
    told = "; ".join(f"{r.label} median {human(stats.median(r.samples), records[0].unit)}" for r in rows)
    unit = records[0].unit
    return Plot(
        key,
        title,
        caption,
        svg.strips(rows, unit, svg.WIDE, title, told),
        svg.strips(rows, unit, svg.NARROW, title, told),
    )


def tail_plot(results: Results, key: str, title: str, caption: str, records: Sequence[Record]) -> Plot | None:
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
        dash = "5 3" if r.arm.endswith("-poll") else ""
        series.append(
            svg.Line(r.arm, [v for v, _ in points], [s for _, s in points], palette[r.arm], dash=dash, markers=False)
        )
        legend.append((palette[r.arm], dash, r.arm))
    if not series:
        return None
    least = min(min(s.ys) for s in series)
    ticks = [
        (t, n)
        for t, n in ((1.0, "all"), (0.1, "10 %"), (0.01, "1 %"), (1e-3, "0.1 %"), (1e-4, "0.01 %"))
        if t >= least * 0.5
    ]
    unit = records[0].unit
    told = "; ".join(f"{r.arm} p99 {human(stats.p99(r.samples), unit)}" for r in records)

    def drawn(width: int) -> str:
        return svg.lines(series, unit, "", width, title, told, y_ticks=ticks, x_label="slower than")

    return Plot(key, title, caption, drawn(svg.WIDE), drawn(svg.NARROW), legend)


def line_plot(
    results: Results, key: str, title: str, caption: str, records: Sequence[Record], over: str, *, y_log: bool = True
) -> Plot | None:
    """Medians with interval bands over a numeric dimension, one line per arm."""
    by_arm: dict[str, list[tuple[float, Record]]] = {}
    for r in records:
        at = r.dimensions.get(over)
        if isinstance(at, (int, float)) and not isinstance(at, bool):
            by_arm.setdefault(r.arm, []).append((float(at), r))
    if not by_arm or max(len(v) for v in by_arm.values()) < 2:
        return None
    palette = colours(results)
    series, legend = [], []
    for arm, points in by_arm.items():
        points.sort(key=lambda p: p[0])
        spread = [stats.bootstrap_quantile(r.samples, 0.5, r.round_sizes, seed=results.seed) for _, r in points]
        dash = "5 3" if arm.endswith("-poll") else ""
        series.append(
            svg.Line(
                arm,
                [x for x, _ in points],
                [s.value for s in spread],
                palette[arm],
                [s.low for s in spread],
                [s.high for s in spread],
                dash,
            )
        )
        legend.append((palette[arm], dash, arm))
    unit = records[0].unit
    at_all = sorted({x for points in by_arm.values() for x, _ in points})
    told = "; ".join(
        f"{s.label}: {human(s.ys[0], unit)} at {s.xs[0]:g}, {human(s.ys[-1], unit)} at {s.xs[-1]:g}" for s in series
    )

    def drawn(width: int) -> str:
        return svg.lines(
            series, "", unit, width, title, told, y_log=y_log, x_values=at_all if at_all[0] > 0 else (), x_label=over
        )

    return Plot(key, title, caption, drawn(svg.WIDE), drawn(svg.NARROW), legend)
