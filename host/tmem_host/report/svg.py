# SPDX-License-Identifier: Apache-2.0
"""Plots of rows as SVG text: bars, distribution strips, and the ladder. Lines are in `svg_lines`.

Drawn by hand rather than by a plotting library, because the page's own fonts and colours (CSS classes, so light and
dark come for free) and a second, narrow drawing of every plot are wanted. Nothing here knows what a bench is: a
drawing takes numbers, labels and the name of a colour class, and a width in CSS pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tmem_host.bench import stats
from tmem_host.bench.units import human
from tmem_host.report.canvas import NARROW, WIDE, Axis, Canvas, linear_axis, log_axis, text_width, ticks_below

__all__ = ["NARROW", "WIDE", "Bar", "Rung", "Segment", "Strip", "bars", "ladder", "strips"]


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
    goal: float | None = None
    """What the bar is held against: a cap, a share."""


@dataclass(frozen=True)
class Strip:
    """One distribution: a label, its samples and a colour."""

    label: str
    samples: Sequence[float]
    colour: str


@dataclass(frozen=True)
class Rung:
    """One row of a ladder: a median on a log axis, the span of most samples, and where the slowest of 100 lies."""

    label: str
    group: str
    """Rows of one group stand under one heading; groups come in the order they first appear."""
    colour: str
    median: float
    low: float
    high: float
    tail: float


@dataclass(frozen=True)
class _Rows:
    """Where labels, notes and drawings of a plot of rows go; wide: beside each other, narrow: above each other."""

    canvas: Canvas
    gutter: float
    """Pixels left of the drawing that belong to labels."""
    margin: float
    """Pixels right of the drawing that belong to notes."""
    caption: float
    """Pixels above a row's drawing that belong to its label and note."""

    @classmethod
    def of(cls, labels: Sequence[str], notes: Sequence[str], width: int) -> _Rows:
        canvas = Canvas(width)
        if not canvas.narrow:
            return cls(canvas, max(map(text_width, labels)) + 14, max(map(text_width, notes)) + 16, 0.0)
        pairs = zip(labels, notes, strict=True)
        tight = any(text_width(a) + text_width(b) + 8 > width for a, b in pairs)
        return cls(canvas, 4.0, 10.0, 36.0 if tight else 19.0)

    def write(self, top: float, middle: float, label: str, note: str, x: float | None = None) -> None:
        """Label and note of one row. `top`: where the row begins; `x`: where a wide note goes, else at the right."""
        canvas = self.canvas
        if canvas.narrow:
            canvas.text(0, top + 13, label, "label")
            second = top + 30 if self.caption > 20 else top + 13
            canvas.text(canvas.width, second, note, "figure", "end")
            return
        canvas.text(self.gutter - 10, middle + 4.5, label, "label", "end")
        canvas.text(canvas.width - self.margin + 14 if x is None else x, middle + 4.5, note, "figure")

    @property
    def right(self) -> float:
        """Where the drawing ends."""
        return self.canvas.width - self.margin

    def grid(self, axis: Axis, top: float, bottom: float) -> None:
        for value in axis.grid:
            self.canvas.line(axis.place(value), top, axis.place(value), bottom, "grid")


def bars(rows: Sequence[Bar], unit: str, width: int, title: str, description: str) -> str:
    """Horizontal bars from zero, one row each; the axis begins below it where a round or an interval does."""
    where = _Rows.of([r.label for r in rows], [r.note for r in rows], width)
    canvas, thick, top = where.canvas, 14.0 if width < 600 else 18.0, 8.0
    pitch = where.caption + thick + (9.0 if canvas.narrow else 12.0)
    bottom = top + pitch * len(rows)
    peak = max(max(sum(s.value for s in r.segments), r.high or 0, r.goal or 0, *r.dots, 0.0) for r in rows) or 1.0
    least = min(min(r.low or 0, *r.dots, 0.0) for r in rows)
    axis = linear_axis(least, peak, where.gutter, where.right, unit, 4 if canvas.narrow else 7)
    where.grid(axis, top, bottom)
    for i, row in enumerate(rows):
        y = top + pitch * i + (where.caption if canvas.narrow else (pitch - thick) / 2)
        end = _bar(canvas, axis, row, y, thick)
        where.write(top + pitch * i, y + thick / 2, row.label, row.note, end + 9)
    if not canvas.narrow:
        canvas.line(axis.place(0), top, axis.place(0), bottom, "axis")
    ticks_below(canvas, axis, bottom)
    return canvas.done(title, description)


def _bar(canvas: Canvas, axis: Axis, row: Bar, y: float, thick: float) -> float:
    """Draws one bar and returns where it ends."""
    x, middle = axis.place(0), y + thick / 2
    for segment in row.segments:
        length = max(axis.place(segment.value) - axis.place(0), 0.5)
        canvas.rect(x, y, length, thick, f"{segment.colour} fill", segment.title)
        x += length
    for dot in row.dots:
        x = max(x, axis.place(dot))
        canvas.dot(axis.place(dot), middle, 2.5, "dot")
    if row.low is not None and row.high is not None and row.high > row.low:
        a, b = axis.place(max(row.low, 0.0)), axis.place(row.high)
        canvas.whisker(a, b, middle)
        x = max(x, b)
    if row.goal is not None:
        at = axis.place(row.goal)
        canvas.line(at, y - 4, at, y + thick + 4, "goal")
        x = max(x, at)
    return x


def strips(rows: Sequence[Strip], unit: str, width: int, title: str, description: str) -> str:
    """A distribution per row on a common log axis: density as a mirrored area, marks at the median and at p99."""
    notes = [_note(r, unit) for r in rows]
    where = _Rows.of([r.label for r in rows], notes, width)
    canvas, half, top = where.canvas, 13.0 if width < 600 else 15.0, 6.0
    pitch = where.caption + 2 * half + (8.0 if canvas.narrow else 12.0)
    bottom = top + pitch * len(rows)
    floor = max(min(stats.quantile(r.samples, 0.0005) for r in rows), 1e-9)
    peak = max(stats.quantile(r.samples, 0.9995) for r in rows)
    axis = log_axis(floor, max(peak, floor * 1.01), where.gutter + 4, where.right, unit, 58)
    where.grid(axis, top, bottom)
    for i, row in enumerate(rows):
        middle = top + pitch * i + (where.caption + half + 2 if canvas.narrow else pitch / 2)
        where.write(top + pitch * i, middle, row.label, notes[i])
        points = _density(row.samples, axis, half, where.gutter + 2, where.right + 4)
        upper = " ".join(f"{x:.1f},{middle - max(h, 0.6):.1f}" for x, h in points)
        lower = " ".join(f"{x:.1f},{middle + max(h, 0.6):.1f}" for x, h in reversed(points))
        canvas.raw(
            f'<polygon points="{upper} {lower}" class="{row.colour} fill area">'
            f"<title>{escape(row.label)}: {escape(notes[i])}</title></polygon>"
        )
        at, tail = axis.place(stats.median(row.samples)), axis.place(stats.p99(row.samples))
        canvas.line(at, middle - half, at, middle + half, "median")
        canvas.line(tail, middle - 7, tail, middle + 7, "tail")
    ticks_below(canvas, axis, bottom)
    return canvas.done(title, description)


def _density(samples: Sequence[float], axis: Axis, half: float, left: float, right: float) -> list[tuple[float, float]]:
    """(x, half height) along a strip; empty bins only next to filled ones, so that areas close."""
    edges, counts = stats.log_histogram(samples)
    shape = counts / counts.max() * half
    filled = [k for k in range(len(shape)) if shape[max(0, k - 1) : k + 2].any()]
    return [(min(max(axis.place(math.sqrt(edges[k] * edges[k + 1])), left), right), float(shape[k])) for k in filled]


def _note(row: Strip, unit: str) -> str:
    return f"{human(stats.median(row.samples), unit)} · p99 {human(stats.p99(row.samples), unit)}"


def ladder(rows: Sequence[Rung], unit: str, width: int, title: str, description: str) -> str:
    """Medians of many things, orders of magnitude apart, on one log axis, in groups."""
    told = [f"{human(r.median, unit)} · p99 {human(r.tail, unit)}" for r in rows]
    notes = [human(r.median, unit) for r in rows] if width < 600 else told
    where = _Rows.of([r.label for r in rows], notes, width)
    canvas, heading = where.canvas, 34.0
    pitch = where.caption + (20.0 if canvas.narrow else 25.0)
    groups = list(dict.fromkeys(r.group for r in rows))
    top, bottom = 4.0, 4.0 + heading * len(groups) + pitch * len(rows)
    floor = max(min(min(r.low, r.median) for r in rows), 1e-3)
    axis = log_axis(floor, max(max(r.tail, r.high) for r in rows), where.gutter + 6, where.right - 4, unit, 58)
    where.grid(axis, top + heading - 4, bottom)
    y = top
    for group in groups:
        canvas.rect(0, y + 10, 10, 10, f"{next(r.colour for r in rows if r.group == group)} fill")
        canvas.text(17, y + 20, group, "group")
        y += heading
        for row, note, whole in zip(rows, notes, told, strict=True):
            if row.group == group:
                middle = y + where.caption + (7.0 if canvas.narrow else pitch / 2)
                where.write(y, middle, row.label, note)
                canvas.line(where.gutter, middle, axis.place(row.median), middle, "guide")
                _rung(canvas, axis, row, middle, f"{row.label}: {whole}")
                y += pitch
    ticks_below(canvas, axis, bottom)
    return canvas.done(title, description)


def _rung(canvas: Canvas, axis: Axis, row: Rung, middle: float, told: str) -> None:
    low, at, high, tail = (axis.place(v) for v in (row.low, row.median, row.high, row.tail))
    canvas.raw(f'<g class="{row.colour}">')
    canvas.line(low, middle, max(high, low + 1), middle, "spread")
    canvas.line(min(high, tail), middle, tail, middle, "reach")
    canvas.line(tail, middle - 5, tail, middle + 5, "stroke")
    canvas.dot(at, middle, 4.5, "fill ring", told)
    canvas.raw("</g>")
