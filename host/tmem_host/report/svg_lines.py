# SPDX-License-Identifier: Apache-2.0
"""Lines, points and fitted curves over a shared x axis, with what they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from tmem_host.bench.units import human
from tmem_host.report.canvas import Axis, Canvas, linear_axis, log_axis, text_width, ticks_below, value_axis


@dataclass(frozen=True)
class Line:
    """One line with an optional interval around each point."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    dash: str = ""
    markers: bool = True
    joined: bool = True
    """False: points alone, with whiskers instead of a band: what was measured, where a line is a fit."""


@dataclass(frozen=True)
class Level:
    """A horizontal line: a threshold or a cost to beat."""

    y: float
    label: str = ""
    """Empty where the legend says it, and a label would lie on what is drawn."""
    colour: str = ""
    """With a colour it is in the legend too, which does where there is little room."""


@dataclass(frozen=True)
class Mark:
    """A place that the plot is about, e.g. where two lines cross."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Scales:
    """How a plot of lines is laid out."""

    x_unit: str
    y_unit: str
    x_log: bool = True
    y_log: bool = True
    x_label: str = ""
    x_values: Sequence[float] = ()
    """Label just these."""
    x_under: Sequence[str] = ()
    """A second line under each of them."""
    y_ticks: Sequence[tuple[float, str]] = ()
    """Ticks of one's own: (value, label)."""
    y_from: float | None = None
    """Where a linear axis begins, or a log one ends below; None: 0, or where the points do."""
    height: float = 340.0


def lines(
    series: Sequence[Line],
    scales: Scales,
    width: int,
    title: str,
    description: str,
    *,
    levels: Sequence[Level] = (),
    marks: Sequence[Mark] = (),
) -> str:
    """The drawing; its legend is the page's."""
    canvas = Canvas(width)
    named = "/" in scales.y_unit
    top, right = 34.0 if named else 10.0, width - (14.0 if canvas.narrow else 22.0)
    bottom = top + scales.height * (0.85 if canvas.narrow else 1.0)
    y_axis, left = _y_axis(series, scales, levels, marks, top, bottom)
    if named:
        canvas.text(left, 14, scales.y_unit, "tick")
    x_axis = _x_axis(series, scales, marks, canvas, left, right)
    for value in y_axis.grid:
        canvas.line(left, y_axis.place(value), right, y_axis.place(value), "grid")
    for value in x_axis.grid:
        canvas.line(x_axis.place(value), top, x_axis.place(value), bottom, "grid")
    for value, text in y_axis.ticks:
        canvas.text(left - 8, y_axis.place(value) + 4.5, text, "tick", "end")
    for level in levels:
        canvas.line(left, y_axis.place(level.y), right, y_axis.place(level.y), f"{level.colour} level")
    for s in series:
        _line(canvas, s, x_axis, y_axis, scales.y_unit)
    canvas.line(left, bottom, right, bottom, "axis")
    _labels(canvas, x_axis, y_axis, levels, marks, (left, right, top, bottom))
    ticks_below(canvas, x_axis, bottom, scales.x_under)
    if scales.x_label:
        canvas.text((left + right) / 2, canvas.height + 14, scales.x_label, "tick", "middle")
        canvas.height += 22
    return canvas.done(title, description)


def _y_axis(
    series: Sequence[Line],
    scales: Scales,
    levels: Sequence[Level],
    marks: Sequence[Mark],
    top: float,
    bottom: float,
) -> tuple[Axis, float]:
    """The y axis, and the pixels that its labels need at the left. A rate is named once above, not at every tick."""
    found = [y for s in series for group in (s.ys, s.lows, s.highs) for y in group]
    found += [m.y for m in marks] + [level.y for level in levels]
    ys = [y for y in found if y > 0 or not scales.y_log]
    if scales.y_log:
        floor = scales.y_from if scales.y_from is not None else min(ys)
        axis = log_axis(floor, max(max(ys), floor * 1.01), bottom, top, scales.y_unit, 26)
    else:
        low, high = scales.y_from or 0.0, max(ys)
        axis = linear_axis(low, high + 0.03 * (high - low), bottom, top, scales.y_unit, 8)
    if "/" in scales.y_unit:
        axis = replace(axis, ticks=[(v, text.removesuffix(scales.y_unit).rstrip()) for v, text in axis.ticks])
    if scales.y_ticks:
        axis = replace(axis, ticks=list(scales.y_ticks), grid=[v for v, _ in scales.y_ticks])
    return axis, max(text_width(text, 12.5) for _, text in axis.ticks) + 12


def _x_axis(
    series: Sequence[Line], scales: Scales, marks: Sequence[Mark], canvas: Canvas, left: float, right: float
) -> Axis:
    xs = [x for s in series for x in s.xs] + [m.x for m in marks]
    if scales.x_values:
        return value_axis(scales.x_values, left + 8, right - 8)
    if scales.x_log:
        return log_axis(min(xs), max(max(xs), min(xs) * 1.01), left, right, scales.x_unit, 58)
    return linear_axis(min(xs), max(xs), left, right, scales.x_unit, 5 if canvas.narrow else 9)


def _line(canvas: Canvas, s: Line, x_axis: Axis, y_axis: Axis, y_unit: str) -> None:
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in zip(s.xs, s.ys, strict=True)]
    canvas.raw('<g class="series">')
    if s.lows and s.highs:
        ends = [(y_axis.place(a), y_axis.place(b)) for a, b in zip(s.lows, s.highs, strict=True)]
        if s.joined:
            upper = " ".join(f"{x:.1f},{b:.1f}" for (x, _), (_, b) in zip(places, ends, strict=True))
            lower = " ".join(f"{x:.1f},{a:.1f}" for (x, _), (a, _) in reversed(list(zip(places, ends, strict=True))))
            canvas.raw(f'<polygon points="{upper} {lower}" class="{s.colour} fill band"/>')
        else:
            path = "".join(f"M{x:.1f} {a:.1f}V{b:.1f}" for (x, _), (a, b) in zip(places, ends, strict=True))
            canvas.raw(f'<path d="{path}" class="{s.colour} stroke"/>')
    if s.joined:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dash = f' stroke-dasharray="{s.dash}"' if s.dash else ""
        canvas.raw(f'<path d="{path}" class="{s.colour} stroke"{dash}><title>{escape(s.label)}</title></path>')
    if s.markers:
        for (x, y), value in zip(places, s.ys, strict=True):
            canvas.dot(x, y, 3.5 if s.joined else 4.5, f"{s.colour} fill", f"{s.label}: {human(value, y_unit)}")
    canvas.raw("</g>")


def _labels(
    canvas: Canvas,
    x_axis: Axis,
    y_axis: Axis,
    levels: Sequence[Level],
    marks: Sequence[Mark],
    box: tuple[float, float, float, float],
) -> None:
    """What levels and marks are called: levels at the right, kept apart; marks beside their ring."""
    left, right, top, bottom = box
    taken: list[_Box] = []
    for level in sorted(
        (one for one in levels if one.label and not (canvas.narrow and one.colour)), key=lambda one: -one.y
    ):
        y, size = max(y_axis.place(level.y) - 6, top + 12), text_width(level.label)
        while any(abs(y - other.bottom) < 17 for other in taken):
            y += 17
        taken.append(_Box(right - 6 - size, y - 13, right - 6, y))
        canvas.text(right - 6, y, level.label, "note", "end")
    for mark in marks:
        x, y, size = x_axis.place(mark.x), y_axis.place(mark.y), text_width(mark.label)
        canvas.dot(x, y, 6.5, "mark")
        beside = [
            (max(left + 4, min(x + dx, right - size)), y + dy) for dy in (24, -14, 40, -30) for dx in (10, -size - 10)
        ]
        places = [_Box(at, under - 13, at + size, under) for at, under in beside]
        free = [p for p in places if p.top > top and p.bottom < bottom - 4 and not any(p.meets(o) for o in taken)]
        chosen = (free or places)[0]
        taken.append(chosen)
        canvas.text(chosen.left, chosen.bottom, mark.label, "note strong")


@dataclass(frozen=True)
class _Box:
    """Where a label lies."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right + 4
            and other.left < self.right + 4
            and self.top < other.bottom + 2
            and other.top < self.bottom + 2
        )
