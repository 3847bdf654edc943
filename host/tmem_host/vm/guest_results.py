# SPDX-License-Identifier: Apache-2.0
"""What the guest's hog and workloads report, as values."""

from __future__ import annotations

import array
import base64
import sys
from dataclasses import dataclass, field
from typing import Any, Final

_MAJOR: Final = 1 << 31

#: Of a hog of one pass, in their order.
PHASES: Final = ("write", "sequential", "random")

#: A line of the guest's program.
Event = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far a phase has come, in pages (of a workload: in its own unit); ``bad`` so far."""

    phase: str
    done: int
    planned: int
    bad: int


class HogsProgress:
    """How far ``hogs`` hogs are that run at once."""

    def __init__(self, hogs: int) -> None:
        self._hogs = hogs
        self._passed: dict[int, float] = {}

    def take(self, number: int, at: Progress) -> None:
        """What hog ``number`` says.  It tells a phase's end by the next one's beginning only."""
        if at.phase in PHASES:
            self._passed[number] = PHASES.index(at.phase) + at.done / max(1, at.planned)

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return min(1.0, sum(self._passed.values()) / (len(PHASES) * self._hogs))


@dataclass(frozen=True)
class HogPhase:
    """One phase: write, sequential, random (one for each pass), recheck.

    ``major_ns`` and ``minor_ns`` are latency samples in nanoseconds of the first access to a page, drawn evenly from
    all ``accesses``: those that were major faults (the page came from swap) and the rest. ``seconds`` is the phase's
    wall time, making and comparing contents included. ``vmstat`` holds the guest-wide differences over the phase.
    """

    name: str
    pages: int
    seconds: float
    bad: int
    major: int
    rewrites: int
    accesses: int
    vmstat: dict[str, int]
    major_ns: tuple[int, ...]
    minor_ns: tuple[int, ...]

    @property
    def all_ns(self) -> tuple[int, ...]:
        return self.major_ns + self.minor_ns


@dataclass(frozen=True)
class HogResult:
    """A hog that came to its end.

    ``clock_ns``: min, median and p99 of reading the clock twice, a cost that every sample has in it.
    """

    pages: int
    bad: int
    verified: bool
    seconds: float
    clock_ns: dict[str, int]
    phases: tuple[HogPhase, ...]
    bad_examples: tuple[dict[str, Any], ...] = field(default=())

    def phase(self, name: str) -> HogPhase:
        """The first phase of that name. Raises KeyError."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise KeyError(name)


@dataclass(frozen=True)
class Series:
    """Latency samples of one kind, in nanoseconds, drawn evenly from ``seen``; of a build's processes each apart.

    ``major_ns``: those that waited for a major fault (``faults`` in all), ``minor_ns`` the rest. ``total_seconds`` is
    the sum over all that were seen.
    """

    name: str
    seen: int
    faults: int
    total_seconds: float
    major_ns: tuple[int, ...]
    minor_ns: tuple[int, ...]

    @property
    def all_ns(self) -> tuple[int, ...]:
        return self.major_ns + self.minor_ns


@dataclass(frozen=True)
class WorkloadPhase:
    """One phase: fill, access, check (zipf); prepare, compile, link (build); load, serve, check (redis).

    ``done`` counts pages, jobs, files or keys and operations. ``seconds`` is wall time, making and comparing contents
    included. ``counts`` are the workload's own, ``vmstat`` guest-wide differences over the phase.
    """

    name: str
    done: int
    seconds: float
    bad: int
    counts: dict[str, int]
    vmstat: dict[str, int]
    series: dict[str, Series]


@dataclass(frozen=True)
class WorkloadResult:
    """A workload that came to its end, of so many ``items``: pages, keys or jobs, as ``unit`` says."""

    kind: str
    unit: str
    items: int
    seed: int
    bad: int
    seconds: float
    clock_ns: dict[str, int]
    phases: tuple[WorkloadPhase, ...]
    bad_examples: tuple[dict[str, Any], ...] = field(default=())

    def phase(self, name: str) -> WorkloadPhase:
        """The phase of that name. Raises KeyError."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise KeyError(name)


def decode_samples(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(major, minor) nanoseconds out of the hog's base64 (guest/hog/hog.c says how they are packed)."""
    values = array.array("I")
    values.frombytes(base64.b64decode(text))
    if sys.byteorder == "big":
        values.byteswap()
    major = tuple(value & ~_MAJOR for value in values if value & _MAJOR)
    return major, tuple(value for value in values if not value & _MAJOR)


def collect_hog(events: list[Event], status: int, seconds: float) -> HogResult:
    """Puts the hog's lines together. Raises ValueError, in one line, when it did not come to its end."""
    kinds = _by_kind("the hog", events, status)
    start, done = kinds["start"][0], kinds["done"][0]
    phases = tuple(_phase(event) for event in kinds["phase"])
    return HogResult(
        start["pages"], done["bad"], done["verified"], seconds, start["clock_ns"], phases, tuple(kinds["bad"])
    )


def _by_kind(who: str, events: list[Event], status: int) -> dict[str, list[Event]]:
    """Events by their kind. Raises ValueError when they do not come to an end."""
    names = ("start", "phase", "samples", "bad", "done", "error")
    kinds = {kind: [event for event in events if event["event"] == kind] for kind in names}
    if kinds["error"]:
        raise ValueError(f"{who} failed: {kinds['error'][0]['error']}")
    if not kinds["done"] or not kinds["start"]:
        reason = f"signal {-status}" if status < 0 else f"status {status}"
        memory = ": the guest may have run out of memory and swap" if status == -9 else ""
        raise ValueError(f"{who} ended early with {reason}{memory}")
    return kinds


def collect_workload(kind: str, events: list[Event], status: int, seconds: float) -> WorkloadResult:
    """Puts a workload's lines together. Raises ValueError, in one line, when it did not come to its end."""
    kinds = _by_kind(f"the workload {kind}", events, status)
    start, done = kinds["start"][0], kinds["done"][0]
    phases = tuple(_workload_phase(event, kinds["samples"]) for event in kinds["phase"])
    return WorkloadResult(
        kind=start["kind"],
        unit=start["unit"],
        items=start["items"],
        seed=start["seed"],
        bad=done["bad"],
        seconds=seconds,
        clock_ns=start["clock_ns"],
        phases=phases,
        bad_examples=tuple(kinds["bad"]),
    )


def _workload_phase(event: Event, samples: list[Event]) -> WorkloadPhase:
    mine = [part for part in samples if part["phase"] == event["phase"]]
    names = dict.fromkeys(part["series"] for part in mine)
    return WorkloadPhase(
        name=event["phase"],
        done=event["done"],
        seconds=event["nanoseconds"] / 1e9,
        bad=event["bad"],
        counts=event["counts"],
        vmstat=event["vmstat"],
        series={name: _series(name, [part for part in mine if part["series"] == name]) for name in names},
    )


def _series(name: str, parts: list[Event]) -> Series:
    """One series out of its lines: those of one reservoir (``part`` counts them), and those of others."""
    decoded = [decode_samples(part["samples"]) for part in parts]
    firsts = [part for part in parts if part["part"] == 0]
    return Series(
        name=name,
        seen=sum(part["seen"] for part in firsts),
        faults=sum(part["faults"] for part in firsts),
        total_seconds=sum(part["total_ns"] for part in firsts) / 1e9,
        major_ns=tuple(value for major, _minor in decoded for value in major),
        minor_ns=tuple(value for _major, minor in decoded for value in minor),
    )


def _phase(event: Event) -> HogPhase:
    major_ns, minor_ns = decode_samples(event["samples"])
    return HogPhase(
        name=event["phase"],
        pages=event["pages"],
        seconds=event["nanoseconds"] / 1e9,
        bad=event["bad"],
        major=event["major"],
        rewrites=event["rewrites"],
        accesses=event["accesses"],
        vmstat=event["vmstat"],
        major_ns=major_ns,
        minor_ns=minor_ns,
    )
