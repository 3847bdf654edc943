# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG text: bars, distribution strips and lines.

Drawn by hand rather than by a plotting library, because the page's own fonts and colours (CSS classes, so light and
dark come for free) and a second, narrow drawing of every plot are wanted. Nothing here knows what a bench is: a
drawing takes numbers, labels and the name of a colour class, and a width in CSS pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from tmem_host.bench import stats
from tmem_host.bench.units import human, number, scale_of

WIDE = 1000
NARROW = 352
_CHAR = 7.0
"""Mean width of a character at the font size used (13 px); labels are placed with it, so it errs to the wide side."""


@dataclass(frozen=True)
class Segment:
    """A part of a bar."""

    value: float
    colour: str
    title: str


@dataclass(frozen=True)
class Bar:
    """One bar: a label, parts laid end to end, an interval around the end, and what is written beside it."""

    label: str
    segments: Sequence[Segment]
    note: str
    low: float | None = None
    high: float | None = None
    dots: Sequence[float] = ()
    """Single rounds, drawn as dots on the bar."""


@dataclass(frozen=True)
class Strip:
    """One distribution: a label, its samples and a colour."""

    label: str
    samples: Sequence[float]
    colour: str


@dataclass(frozen=True)
class Line:
    """One line with an optional band around it."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    dash: str = ""
    markers: bool = True


@dataclass
class _Canvas:
    width: float
    height: float = 0.0
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        name = f' class="{kind}"' if kind else ""
        at = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{name}{at}>{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')

    def raw(self, text: str) -> None:
        self.parts.append(text)

    def done(self, title: str, description: str) -> str:
        width, height = f"{self.width:.0f}", f"{self.height:.0f}"
        return (
            f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(title, quote=True)}">'
            f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(self.parts)}</svg>"
        )


def _nice_step(span: float, count: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that gives at most `count` ticks over `span`."""
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))


@dataclass(frozen=True)
class _Axis:
    """A value axis: where a value lies between `start` and `end` pixels, and its ticks."""

    place: Callable[[float], float]
    ticks: list[tuple[float, str]]
    grid: list[float]


def _linear(low: float, high: float, start: float, end: float, unit: str, count: int) -> _Axis:
    high = high if high > low else low + 1.0
    divisor, name = scale_of(unit, high)
    step = _nice_step((high - low) / divisor, count)
    first = math.ceil(low / divisor / step - 1e-9)
    last = math.floor(high / divisor / step + 1e-9)
    values = [i * step for i in range(first, last + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [(v * divisor, f"{v:.{digits}f}{name if name in ('×', '%') else ''}") for v in values]
    if ticks and name and name not in ("×", "%"):
        ticks[-1] = (ticks[-1][0], f"{ticks[-1][1]} {name}")
    return _Axis(lambda v: start + (v - low) / (high - low) * (end - start), ticks, [t[0] for t in ticks])


def _log(low: float, high: float, start: float, end: float, unit: str, room: float) -> _Axis:
    """A log axis from `low` to `high` (both > 0), extended to the next 1, 2 or 5. `room`: pixels a label needs."""
    grid = [
        m * 10.0**e for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    below = [g for g in grid if g <= low * 1.0001]
    above = [g for g in grid if g >= high * 0.9999]
    first, last = (below[-1] if below else grid[0]), (above[0] if above else grid[-1])
    if last <= first:
        last = first * 10
    grid = [g for g in grid if first * 0.999 <= g <= last * 1.001]
    span = math.log10(last / first)

    def place(value: float) -> float:
        return start + math.log10(max(value, first) / first) / span * (end - start)

    labelled: list[tuple[float, str]] = []
    decades = [g for g in grid if abs(math.log10(g) - round(math.log10(g))) < 1e-6]
    chosen = grid if abs(end - start) / max(1, len(grid) - 1) >= room else decades
    every = max(1, math.ceil(room * (len(chosen) - 1) / max(1.0, abs(end - start)))) if len(chosen) > 1 else 1
    for i, g in enumerate(chosen):
        if i % every == 0:
            labelled.append((g, human(g, unit).replace(".00", "").replace(".0", "")))
    return _Axis(place, labelled, grid)


def bars(rows: Sequence[Bar], unit: str, width: int, title: str, description: str) -> str:
    """Horizontal bars from zero, one row each. Narrow: label and figure stand above the bar, not beside it."""
    narrow = width < 600
    gutter = 0.0 if narrow else max(len(r.label) for r in rows) * _CHAR + 14
    margin = 8.0 if narrow else max(len(r.note) for r in rows) * _CHAR + 16
    pitch, thick, top = (40.0, 14.0, 8.0) if narrow else (30.0, 18.0, 8.0)
    canvas = _Canvas(width)
    bottom = top + pitch * len(rows)
    peak = max(max(sum(s.value for s in r.segments), r.high or 0, *r.dots, 0.0) for r in rows) or 1.0
    axis = _linear(0.0, peak, gutter, width - margin, unit, 4 if narrow else 7)
    for value in axis.grid:
        canvas.line(axis.place(value), top, axis.place(value), bottom, "grid")
    for i, row in enumerate(rows):
        base = top + pitch * i
        y = base + (pitch - thick - 2 if narrow else (pitch - thick) / 2)
        if narrow:
            canvas.text(0, y - 5, row.label, "label")
            canvas.text(width, y - 5, row.note, "figure", "end")
        else:
            canvas.text(gutter - 10, y + thick / 2 + 4.5, row.label, "label", "end")
        x = axis.place(0)
        for segment in row.segments:
            length = max(axis.place(segment.value) - axis.place(0), 0.5)
            canvas.raw(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{length:.1f}" height="{thick:.1f}" '
                f'class="{segment.colour} fill"><title>{escape(segment.title)}</title></rect>'
            )
            x += length
        for dot in row.dots:
            x = max(x, axis.place(dot))
            canvas.raw(f'<circle cx="{axis.place(dot):.1f}" cy="{y + thick / 2:.1f}" r="2.5" class="dot"/>')
        if row.low is not None and row.high is not None and row.high > row.low:
            a, b, mid = axis.place(row.low), axis.place(row.high), y + thick / 2
            ends = f"M{a:.1f} {mid - 5:.1f}v10M{b:.1f} {mid - 5:.1f}v10"
            canvas.raw(f'<path d="M{a:.1f} {mid:.1f}H{b:.1f}{ends}" class="whisker"/>')
            x = max(x, b)
        if not narrow:
            canvas.text(x + 9, y + thick / 2 + 4.5, row.note, "figure")
    if not narrow:
        canvas.line(axis.place(0), top, axis.place(0), bottom, "axis")
    _ticks_below(canvas, axis, bottom, width)
    return canvas.done(title, description)


def _ticks_below(canvas: _Canvas, axis: _Axis, bottom: float, width: float) -> None:
    for value, text in axis.ticks:
        x = axis.place(value)
        half = len(text) * _CHAR / 2
        anchor = "start" if x - half < 0 else "end" if x + half > width else "middle"
        x = max(x, 0) if anchor == "start" else min(x, width) if anchor == "end" else x
        canvas.text(x, bottom + 17, text, "tick", anchor)
    canvas.height = bottom + 24


def strips(rows: Sequence[Strip], unit: str, width: int, title: str, description: str) -> str:
    """A distribution per row on a common log axis: density as a mirrored area, marks at the median and at p99."""
    narrow = width < 600
    gutter = 0.0 if narrow else max(len(r.label) for r in rows) * _CHAR + 14
    notes = [_note(r, unit) for r in rows]
    margin = 8.0 if narrow else max(len(n) for n in notes) * _CHAR + 14
    pitch, half, top = (50.0, 13.0, 6.0) if narrow else (42.0, 15.0, 6.0)
    canvas = _Canvas(width)
    bottom = top + pitch * len(rows)
    lows = [stats.quantile(r.samples, 0.0005) for r in rows]
    highs = [stats.quantile(r.samples, 0.9995) for r in rows]
    floor = max(min(v for v in lows), 1e-9)
    axis = _log(floor, max(max(highs), floor * 1.01), gutter + 4, width - margin, unit, 58)
    for value in axis.grid:
        canvas.line(axis.place(value), top, axis.place(value), bottom, "grid")
    for i, row in enumerate(rows):
        middle = top + pitch * i + (pitch - half - 2 if narrow else pitch / 2)
        if narrow:
            canvas.text(0, middle - half - 4, row.label, "label")
            canvas.text(width, middle - half - 4, notes[i], "figure", "end")
        else:
            canvas.text(gutter - 10, middle + 4.5, row.label, "label", "end")
            canvas.text(width - margin + 12, middle + 4.5, notes[i], "figure")
        edges, counts = stats.log_histogram(row.samples)
        shape = counts / counts.max() * half
        points = [(axis.place(math.sqrt(edges[k] * edges[k + 1])), shape[k]) for k in range(len(counts))]
        points = [
            (x, h)
            for k, (x, h) in enumerate(points)
            if h > 0 or (k and points[k - 1][1] > 0) or (k + 1 < len(points) and points[k + 1][1] > 0)
        ]
        points = [(min(max(x, gutter + 2), width - margin + 4), h) for x, h in points]
        upper = " ".join(f"{x:.1f},{middle - max(h, 0.6):.1f}" for x, h in points)
        lower = " ".join(f"{x:.1f},{middle + max(h, 0.6):.1f}" for x, h in reversed(points))
        canvas.raw(
            f'<polygon points="{upper} {lower}" class="{row.colour} fill area">'
            f"<title>{escape(row.label)}: {escape(notes[i])}</title></polygon>"
        )
        at, tail = axis.place(stats.median(row.samples)), axis.place(stats.p99(row.samples))
        canvas.line(at, middle - half, at, middle + half, "median")
        canvas.line(tail, middle - 7, tail, middle + 7, "tail")
    _ticks_below(canvas, axis, bottom, width)
    return canvas.done(title, description)


def _note(row: Strip, unit: str) -> str:
    return f"{human(stats.median(row.samples), unit)} · p99 {human(stats.p99(row.samples), unit)}"


def lines(
    series: Sequence[Line],
    x_unit: str,
    y_unit: str,
    width: int,
    title: str,
    description: str,
    *,
    x_log: bool = True,
    y_log: bool = True,
    x_values: Sequence[float] = (),
    y_ticks: Sequence[tuple[float, str]] = (),
    x_label: str = "",
    height: int = 340,
) -> str:
    """Lines over a shared x axis; no legend. `x_values`: label just these. `y_ticks`: own (value, label) ticks."""
    narrow = width < 600
    canvas = _Canvas(width)
    left, right, top = (54.0 if narrow else 64.0), (14.0 if narrow else 22.0), 10.0
    bottom = top + (height * 0.85 if narrow else height)
    xs = [x for s in series for x in s.xs]
    ys = [y for s in series for group in (s.ys, s.lows, s.highs) for y in group if y > 0 or not y_log]
    y_axis = (
        _log(min(ys), max(ys), bottom, top, y_unit, 26)
        if y_log
        else _linear(0.0, max(ys) * 1.03, bottom, top, y_unit, 6)
    )
    x_axis = (
        _log(min(xs), max(max(xs), min(xs) * 1.01), left, width - right, x_unit, 58)
        if x_log
        else _linear(min(xs), max(xs), left, width - right, x_unit, 5 if narrow else 9)
    )
    if x_values:
        span = math.log(max(x_values) / min(x_values)) or 1.0

        def place(value: float) -> float:
            return left + 8 + math.log(value / min(x_values)) / span * (width - right - left - 16)

        x_axis = _Axis(place, [(v, number(v) if v >= 1000 else f"{v:g}") for v in x_values], list(x_values))
    if y_ticks:
        y_axis = _Axis(y_axis.place, list(y_ticks), [v for v, _ in y_ticks])
    for value in y_axis.grid:
        canvas.line(left, y_axis.place(value), width - right, y_axis.place(value), "grid")
    for value in x_axis.grid:
        canvas.line(x_axis.place(value), top, x_axis.place(value), bottom, "grid")
    for value, text in y_axis.ticks:
        canvas.text(left - 8, y_axis.place(value) + 4.5, text, "tick", "end")
    for s in series:
        _line(canvas, s, x_axis, y_axis, y_unit)
    canvas.line(left, bottom, width - right, bottom, "axis")
    _ticks_below(canvas, x_axis, bottom, width)
    if x_label:
        canvas.text((left + width - right) / 2, bottom + 38, x_label, "tick", "middle")
        canvas.height = bottom + 46
    return canvas.done(title, description)


def _line(canvas: _Canvas, s: Line, x_axis: _Axis, y_axis: _Axis, y_unit: str) -> None:
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in zip(s.xs, s.ys, strict=True)]
    canvas.raw('<g class="series">')
    if s.lows and s.highs:
        upper = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in zip(s.xs, s.highs, strict=True))
        lower = " ".join(
            f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in reversed(list(zip(s.xs, s.lows, strict=True)))
        )
        canvas.raw(f'<polygon points="{upper} {lower}" class="{s.colour} fill band"/>')
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dash = f' stroke-dasharray="{s.dash}"' if s.dash else ""
    canvas.raw(f'<path d="{path}" class="{s.colour} stroke"{dash}><title>{escape(s.label)}</title></path>')
    if s.markers:
        for (x, y), value in zip(places, s.ys, strict=True):
            canvas.raw(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{s.colour} fill">'
                f"<title>{escape(s.label)}: {escape(human(value, y_unit))}</title></circle>"
            )
    canvas.raw("</g>")
