# SPDX-License-Identifier: Apache-2.0
"""From what a hog reports to figures: pure functions.

The cost of a page is what a phase took beyond the same accesses in memory, over the pages that crossed: the work of
making and comparing contents is the same for every arm and is not the swap's. What it takes in memory is measured by a
hog that fits, in the same guest and round.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from tmem_host.vm.guest_results import HogPhase, HogResult

#: A phase that moved fewer pages than this share of its accesses says nothing about the cost of one.
LEAST_SHARE = 0.02


@dataclass(frozen=True)
class InMemory:
    """Nanoseconds of one access with its work when nothing is swapped, by phase."""

    nanoseconds: dict[str, float]

    @classmethod
    def of(cls, result: HogResult) -> InMemory:
        """From a hog that fitted. Raises ValueError when it did not fit after all."""
        swapped = sum(p.vmstat.get("pswpin", 0) for p in result.phases)
        if swapped > 0.01 * result.pages:
            raise ValueError(f"the hog that should fit in memory swapped {swapped} of {result.pages} pages in")
        return cls({name: 1e9 * total.seconds / total.pages for name, total in totals(result).items()})

    @classmethod
    def middle(cls, several: list[InMemory]) -> InMemory:
        """The median of each phase."""
        return cls(
            {name: statistics.median(one.nanoseconds[name] for one in several) for name in several[0].nanoseconds}
        )


@dataclass(frozen=True)
class PhaseTotal:
    """All passes of one phase together."""

    seconds: float
    pages: int
    swapped_in: int
    swapped_out: int
    major: int
    major_ns: tuple[int, ...]


def totals(result: HogResult) -> dict[str, PhaseTotal]:
    """By phase name, passes added up."""
    by_name: dict[str, list[HogPhase]] = {}
    for phase in result.phases:
        by_name.setdefault(phase.name, []).append(phase)
    return {
        name: PhaseTotal(
            seconds=sum(p.seconds for p in group),
            pages=sum(p.pages for p in group),
            swapped_in=sum(p.vmstat.get("pswpin", 0) for p in group),
            swapped_out=sum(p.vmstat.get("pswpout", 0) for p in group),
            major=sum(p.major for p in group),
            major_ns=tuple(ns for p in group for ns in p.major_ns),
        )
        for name, group in by_name.items()
    }


def cost_out(total: PhaseTotal, memory_ns: float) -> float | None:
    """Nanoseconds per page swapped out in the write phase; None when too few were. May be negative: noise is data."""
    if total.swapped_out < LEAST_SHARE * total.pages:
        return None
    return (total.seconds * 1e9 - memory_ns * total.pages) / total.swapped_out


def cost_in(total: PhaseTotal, memory_ns: float) -> float | None:
    """Nanoseconds per page swapped in; None when too few were.

    Pages that go out meanwhile to make room are part of it, and so is what was read ahead.
    """
    if total.swapped_in < LEAST_SHARE * total.pages:
        return None
    return (total.seconds * 1e9 - memory_ns * total.pages) / total.swapped_in


@dataclass(frozen=True)
class Held:
    """What an arm's pages occupied at one moment: pages, their bytes after compression, and bytes taken in all."""

    pages: int
    compressed_bytes: int
    held_bytes: int


def fullest(seen: list[Held]) -> Held | None:
    """The moment at which most was held."""
    return max(seen, key=lambda h: h.held_bytes, default=None)


def compression(held: Held, page_size: int) -> float | None:
    """Bytes of pages over bytes after compression."""
    return held.pages * page_size / held.compressed_bytes if held.compressed_bytes and held.pages else None


def overhead(held: Held) -> float | None:
    """Bytes taken in all over bytes after compression: what index, headers and unused room add."""
    return held.held_bytes / held.compressed_bytes if held.compressed_bytes else None
