# SPDX-License-Identifier: Apache-2.0
"""How long `tmem bench all` will take: what each bench took last time on this machine, else what it took on another."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

from tmem_host.bench.all_plan import Setting
from tmem_host.bench.results import write_atomic

TIMES_FILE = "bench-times.json"

FIRST_TIME: Mapping[str, tuple[float, float]] = {
    "exit": (80, 900),
    "store": (40, 900),
    "channel": (90, 900),
    "swap": (170, 1200),
    "density": (270, 3000),
}
"""Seconds of each bench. Quick: as it took on two cores of an AMD EPYC, guests under TCG; full: by what it plans."""
_ELSE = (120.0, 900.0)

Times = dict[str, float]
"""Seconds by `key`."""


def key(name: str, setting: Setting) -> str:
    """What a time is remembered by: the seed is no matter, the machine is (a home folder can be on several)."""
    options = [f"{option}={value}" for option, value in sorted(setting.options.items())]
    return " ".join([platform.node(), name, "quick" if setting.quick else "full", *options])


def expected(name: str, setting: Setting, times: Mapping[str, float]) -> float:
    """Seconds that a bench will take: as last time, else as with other options, else as anywhere."""
    for known in (setting, Setting(setting.quick, setting.seed)):
        if (found := times.get(key(name, known))) is not None:
            return found
    quick, full = FIRST_TIME.get(name, _ELSE)
    return quick if setting.quick else full


def time_left(this: float, elapsed: float, told: float | None, later: Iterable[float]) -> float:
    """Seconds until all is done.

    `this` is what the running bench should take and `elapsed` what it took so far; `told` is what it says itself to
    need, which may be for one of its parts only: so the larger counts.
    """
    return max(0.0, this - elapsed, told or 0.0) + sum(later)


def limit(seconds: float) -> float:
    """How long a bench may take that should take `seconds`: only what hangs needs ten times as long."""
    return max(900.0, 10 * seconds)


def load(folder: Path) -> Times:
    """The times in the cache folder; none when they cannot be read."""
    try:
        data = json.loads((folder / TIMES_FILE).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in data.items() if float(seconds) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def remember(folder: Path, name: str, setting: Setting, seconds: float) -> None:
    """Keeps the time of a bench that reached its end. A cache that cannot be written costs nothing but the estimate."""
    try:
        times = load(folder) | {key(name, setting): round(seconds, 1)}
        write_atomic(folder / TIMES_FILE, json.dumps(times, indent=1, sort_keys=True) + "\n")
    except OSError:
        pass
