# SPDX-License-Identifier: Apache-2.0
"""Figures as people read them: three significant digits and the unit that suits the size."""

from __future__ import annotations

import math

_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_BYTES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def scale_of(unit: str, value: float) -> tuple[float, str]:
    """(divisor, name) of the unit in which `value`, given in `unit`, is best shown."""
    size = abs(value)
    if unit in ("ns", "us", "ms", "s"):
        nano = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}[unit]
        step, name = _pick(_TIMES, size * nano)
        return step / nano, name
    if unit.partition("/")[0] == "bytes":
        step, name = _pick(_BYTES, size)
        return step, name + unit[len("bytes") :]
    if unit == "ratio":
        return 1.0, "×"
    if unit == "percent":
        return 1.0, "%"
    step, name = _pick(_COUNTS, size) if size >= 1e4 else (1.0, "")
    if unit == "Hz":
        return step, f"{name}{unit}"
    return step, f"{name} {unit}".strip() if name else unit


def _pick(steps: tuple[tuple[float, str], ...], size: float) -> tuple[float, str]:
    for step, name in steps:
        # 999.6 is shown as 1000, so it is time for the next unit from 999.5 on.
        if size >= step * 0.9995:
            return step, name
    return steps[-1]


def number(value: float) -> str:
    """Three significant digits without an exponent where a person would write none."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    value = float(f"{value:.2e}")  # 0.9999 is 1.00, not 1.000
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if digits <= 6 else f"{value:.2e}"


def human(value: float, unit: str) -> str:
    """'12.3 µs', '4.00 MiB', '2.1×'."""
    step, name = scale_of(unit, value)
    text = number(value / step)
    return f"{text}{name}" if name in ("×", "%") else f"{text} {name}".strip()


def human_range(low: float, high: float, unit: str, by: float) -> str:
    """'11.9–12.8' in the unit in which `by` is shown, without naming it."""
    step, _ = scale_of(unit, by)
    return f"{number(low / step)}–{number(high / step)}"
