# SPDX-License-Identifier: Apache-2.0
"""What drawings are made of: a canvas of SVG text, value axes, and how wide a word is.

A drawing is a column of elements with CSS classes for colours, so light and dark come for free. Lengths are CSS pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from tmem_host.bench.units import human, number, scale_of

WIDE = 1000
NARROW = 352
"""Widths that every plot is drawn in: what fits a page of 1280 pixels, and one of 400 and less."""

_NARROW_SIGNS = frozenset(" .,:;|!'`ijlI()[]/\\·")
_WIDE_SIGNS = frozenset("mwMW%@—…×")


def text_width(text: str, size: float = 13.0) -> float:
    """Pixels that `text` takes at most, in the widest of the common fonts (DejaVu Sans), so labels never collide."""
    units = sum(0.42 if c in _NARROW_SIGNS else 0.97 if c in _WIDE_SIGNS else 0.63 for c in text)
    return units * size


@dataclass
class Canvas:
    """Collects elements; `height` is settled last."""

    width: float
    height: float = 0.0
    parts: list[str] = field(default_factory=list)

    @property
    def narrow(self) -> bool:
        """Whether labels go above what they name rather than beside it."""
        return self.width < 600

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        name = f' class="{kind}"' if kind else ""
        at = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{name}{at}>{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str, title: str = "") -> None:
        told = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}">{told}</rect>'
        )

    def dot(self, x: float, y: float, radius: float, kind: str, title: str = "") -> None:
        told = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}">{told}</circle>')

    def whisker(self, low: float, high: float, middle: float, half: float = 5.0) -> None:
        """A horizontal interval with ends."""
        ends = f"M{low:.1f} {middle - half:.1f}v{2 * half:g}M{high:.1f} {middle - half:.1f}v{2 * half:g}"
        self.raw(f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}{ends}" class="whisker"/>')

    def raw(self, text: str) -> None:
        self.parts.append(text)

    def done(self, title: str, description: str) -> str:
        """The whole as an `svg` element that can be read aloud."""
        width, height = f"{self.width:.0f}", f"{self.height:.0f}"
        return (
            f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(title, quote=True)}">'
            f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(self.parts)}</svg>"
        )


def nice_step(span: float, count: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that gives at most `count` ticks over `span`."""
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))


@dataclass(frozen=True)
class Axis:
    """A value axis: where a value lies between two pixels, its ticks (value, label), and where grid lines go."""

    place: Callable[[float], float]
    ticks: Sequence[tuple[float, str]]
    grid: Sequence[float]


def linear_axis(low: float, high: float, start: float, end: float, unit: str, count: int) -> Axis:
    """From `low` to `high` in round steps, at most about `count` of them."""
    high = high if high > low else low + 1.0
    divisor, name = scale_of(unit, high)
    step = nice_step((high - low) / divisor, count)
    first = math.ceil(low / divisor / step - 1e-9)
    last = math.floor(high / divisor / step + 1e-9)
    values = [i * step for i in range(first, last + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    attached = name in ("×", "%")
    ticks = [(v * divisor, f"{v:.{digits}f}{name if attached else ''}") for v in values]
    if ticks and name and not attached:
        ticks[-1] = (ticks[-1][0], f"{ticks[-1][1]} {name}")
    return Axis(lambda v: start + (v - low) / (high - low) * (end - start), ticks, [t[0] for t in ticks])


def log_axis(low: float, high: float, start: float, end: float, unit: str, room: float) -> Axis:
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

    decades = [g for g in grid if abs(math.log10(g) - round(math.log10(g))) < 1e-6]
    # 1, 2 and 5 are 0.3 to 0.4 of a decade apart: the narrowest of these has to hold a label.
    fits = abs(end - start) / span * 0.3 >= room
    chosen = grid if fits or len(decades) < 2 else decades
    every = 1 if fits else max(1, math.ceil(room * span / max(1.0, abs(end - start)))) if len(decades) >= 2 else 2
    labelled = [(g, trimmed(human(g, unit))) for i, g in enumerate(chosen) if i % every == 0]
    return Axis(place, labelled, grid if span <= 4 or not decades else decades)


def trimmed(text: str) -> str:
    """'10.0 µs' as '10 µs': a tick says a round number."""
    figure, space, unit = text.partition(" ")
    suffix = figure.lstrip("0123456789.-e+")
    digits = figure[: len(figure) - len(suffix)]
    if "." in digits and "e" not in digits:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits}{suffix}{space}{unit}"


def value_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """A log axis that labels just the values that were measured: depths, numbers of VMs."""
    low, high = min(values), max(values)
    span = math.log(high / low) or 1.0

    def place(value: float) -> float:
        return start + math.log(max(value, low * 1e-9) / low) / span * (end - start)

    return Axis(place, [(v, number(v) if v >= 10_000 else f"{v:g}") for v in values], list(values))


def ticks_below(canvas: Canvas, axis: Axis, bottom: float, under: Sequence[str] = ()) -> None:
    """Tick labels under a drawing, kept inside it and apart; `under`: a second line for each. Settles the height."""
    taken = -math.inf
    for at, (value, text) in enumerate(axis.ticks):
        second = under[at] if at < len(under) else ""
        half = max(text_width(text, 12.5), text_width(second, 12.5)) / 2
        x = min(max(axis.place(value), half), canvas.width - half)
        if x - half < taken:
            continue
        taken = x + half + 4
        canvas.text(x, bottom + 17, text, "tick", "middle")
        if second:
            canvas.text(x, bottom + 33, second, "tick", "middle")
    canvas.height = bottom + (40 if under else 24)
