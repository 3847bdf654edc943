# SPDX-License-Identifier: Apache-2.0
"""What the guest's hog reports, as values."""

from __future__ import annotations

import array
import base64
import sys
from dataclasses import dataclass, field
from typing import Any, Final

_MAJOR: Final = 1 << 31


@dataclass(frozen=True)
class Progress:
    """How far a phase has come, in pages; ``bad`` pages so far."""

    phase: str
    done: int
    planned: int
    bad: int


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


def decode_samples(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(major, minor) nanoseconds out of the hog's base64 (guest/hog/hog.c says how they are packed)."""
    values = array.array("I")
    values.frombytes(base64.b64decode(text))
    if sys.byteorder == "big":
        values.byteswap()
    major = tuple(value & ~_MAJOR for value in values if value & _MAJOR)
    return major, tuple(value for value in values if not value & _MAJOR)


def collect_hog(events: list[dict[str, Any]], status: int, seconds: float) -> HogResult:
    """Puts the hog's lines together. Raises ValueError, in one line, when it did not come to its end."""
    kinds = {
        kind: [event for event in events if event["event"] == kind]
        for kind in ("start", "phase", "bad", "done", "error")
    }
    if kinds["error"]:
        raise ValueError(f"the hog failed: {kinds['error'][0]['error']}")
    if not kinds["done"] or not kinds["start"]:
        reason = f"signal {-status}" if status < 0 else f"status {status}"
        memory = ": the guest may have run out of memory and swap" if status == -9 else ""
        raise ValueError(f"the hog ended early with {reason}{memory}")
    start, done = kinds["start"][0], kinds["done"][0]
    phases = tuple(_phase(event) for event in kinds["phase"])
    return HogResult(
        start["pages"], done["bad"], done["verified"], seconds, start["clock_ns"], phases, tuple(kinds["bad"])
    )


def _phase(event: dict[str, Any]) -> HogPhase:
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
