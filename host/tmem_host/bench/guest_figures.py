# SPDX-License-Identifier: Apache-2.0
"""From what a guest says of its workloads to figures: pure functions.

The guest is not believed more than it has to be: names are those of the workloads that there are, counts are whole and
not negative. What it says beyond that is refused, and spoils its own figures alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tmem_host.bench.runner import BenchError
from tmem_host.vm.guest_results import HogResult, WorkloadResult

MIB: Final = 1 << 20
#: Phases of each workload, in their order.
PHASES: Final[Mapping[str, tuple[str, ...]]] = {
    "hog": ("write", "sequential", "random"),
    "zipf": ("fill", "access", "check"),
    "redis": ("load", "serve", "check"),
    "build": ("prepare", "compile", "link"),
}
#: The phase that a workload is about.
MAIN: Final = {"hog": "random", "zipf": "access", "redis": "serve", "build": "compile"}
#: What is timed: an access to a page that is there, one that waits for a page, an operation.
OPERATIONS: Final = ("hit", "fault", "get", "set")
#: A build's processes, which may take longer than the 2.1 s that a sample can say: only their mean is told.
_JOB: Final = "job"
#: Swap that is left for others than the workload, of eight parts.
_SWAP_EIGHTHS: Final = 6


@dataclass(frozen=True)
class PhaseFigures:
    """One phase. ``latency_ns`` by operation; pages that were swapped are the whole guest's."""

    name: str
    seconds: float
    swapped_in: int
    swapped_out: int
    latency_ns: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WorkFigures:
    """One workload from its start to its end; ``bad``: pages, values or files that came back wrong."""

    kind: str
    seconds: float
    bad: int
    phases: tuple[PhaseFigures, ...]
    #: Mean of a build's processes.
    job_seconds: float | None = None


def hog_figures(result: HogResult) -> WorkFigures:
    """Raises BenchError for what no hog says. Passes over the same pages are one phase."""
    found: dict[str, list[PhaseFigures]] = {}
    for phase in result.phases:
        latency = {"hit": phase.minor_ns, "fault": phase.major_ns}
        found.setdefault(phase.name, []).append(_phase("hog", phase.name, phase.seconds, phase.vmstat, latency))
    phases = tuple(_joined(parts) for parts in found.values())
    bad = max(sum(whole("bad", phase.bad) for phase in result.phases), whole("bad", result.bad))
    return WorkFigures("hog", result.seconds, bad, phases)


def work_figures(result: WorkloadResult, kind: str) -> WorkFigures:
    """Raises BenchError for what no workload of that kind says."""
    phases = tuple(
        _phase(
            kind,
            phase.name,
            phase.seconds,
            phase.vmstat,
            {name: series.all_ns for name, series in phase.series.items() if name != _JOB},
        )
        for phase in result.phases
    )
    jobs = [phase.series[_JOB] for phase in result.phases if _JOB in phase.series]
    ended = sum(whole("jobs", series.seen) for series in jobs)
    mean = sum(series.total_seconds for series in jobs) / ended if ended else None
    bad = max(sum(whole("bad", phase.bad) for phase in result.phases), whole("bad", result.bad))
    return WorkFigures(kind, result.seconds, bad, phases, mean)


def _phase(
    kind: str, name: str, seconds: float, vmstat: Mapping[str, Any], latency: Mapping[str, tuple[int, ...]]
) -> PhaseFigures:
    if name not in PHASES[kind]:
        raise BenchError(f"the guest tells of a phase of {kind} that there is none", "does its agent fit this version?")
    if not set(latency) <= set(OPERATIONS):
        raise BenchError(f"the guest times what {kind} does not do", "does its agent fit this version?")
    swapped_in, swapped_out = (whole(counter, vmstat.get(counter, 0)) for counter in ("pswpin", "pswpout"))
    return PhaseFigures(name, seconds, swapped_in, swapped_out, latency)


def _joined(parts: Sequence[PhaseFigures]) -> PhaseFigures:
    names = dict.fromkeys(name for part in parts for name in part.latency_ns)
    return PhaseFigures(
        parts[0].name,
        sum(part.seconds for part in parts),
        sum(part.swapped_in for part in parts),
        sum(part.swapped_out for part in parts),
        {name: tuple(ns for part in parts for ns in part.latency_ns.get(name, ())) for name in names},
    )


def whole(name: str, value: object) -> int:
    """A count that the guest tells. Raises BenchError for what is none."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise BenchError(f"the guest does not tell {name} as a count", "does its agent fit this version?")
    return value


def word(value: object) -> str:
    """Something that the guest calls itself, as a short line."""
    text = value if isinstance(value, str) else ""
    return "".join(letter for letter in text if letter.isprintable())[:64] or "unknown"


@dataclass(frozen=True)
class Room:
    """Bytes that a guest has for a workload: memory that it can give, and free swap."""

    available: int
    swap_free: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Room:
        """From the answer to ``meminfo``. Raises BenchError for another."""
        try:
            available, swaps = told["meminfo"]["MemAvailable"], list(told["swaps"].values())
            free = sum(whole("swap", swap["bytes"]) - whole("swap", swap["used"]) for swap in swaps)
        except (KeyError, TypeError, AttributeError):
            raise BenchError("the guest does not tell its memory", "does its agent fit this version?") from None
        return cls(whole("memory", available), max(0, free))

    def mib(self, factor: float) -> int:
        """MiB of data: ``factor`` times the memory, if swap takes the rest and leaves some for others."""
        return max(1, int(min(factor * self.available, self.available + self.swap_free * _SWAP_EIGHTHS / 8)) // MIB)
