# SPDX-License-Identifier: Apache-2.0
"""Which runs there are of every route: guest kernel, source, channel, vCPUs, hogs; and what cannot be run, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.errors import InvalidInput
from tmem_host.vm.routes import KERNELS, Options, Route, missing, routes
from tmem_host.vm.spec import AccelName

#: MiB of swap beyond what the hogs write: the kernel leaves some slots unused.
SPARE_MIB: Final = 32

State = Literal["ran", "cannot", "failed"]


@dataclass(frozen=True)
class RoutePlan:
    """Sizes are of the guest: ``factor`` x ``memory_mib`` is what all its hogs together write and verify."""

    memory_mib: int = 96
    factor: float = 2.5
    seed: int = 1
    accel: AccelName = "auto"
    #: Seconds for one hog, all its phases.
    deadline: float = 900.0

    def hog_mib(self, hogs: int) -> int:
        """MiB of each of them."""
        return max(1, round(self.memory_mib * self.factor / hogs))

    @property
    def swap_mib(self) -> int:
        return round(self.memory_mib * self.factor) + SPARE_MIB

    def options(self, vcpus: int) -> Options:
        return Options(self.swap_mib, vcpus)


@dataclass(frozen=True)
class Cell:
    """One run."""

    kernel: str
    route: Route
    vcpus: int
    hogs: int

    def __str__(self) -> str:
        hogs = "1 hog" if self.hogs == 1 else f"{self.hogs} hogs"
        return f"{self.kernel}, {self.route}, {self.vcpus} vCPU, {hogs}"


@dataclass(frozen=True)
class Cannot:
    """A route that a kernel does not have."""

    kernel: str
    route: Route
    reason: str


@dataclass
class Outcome:
    """What came of a run. ``evidence``: what shows that the pages went this way, by counter."""

    cell: Cell
    state: State
    reason: str = ""
    accelerator: str = ""
    #: Pages that the hogs wrote and verified, and those that were not what had been written.
    pages: int = 0
    bad: int = 0
    #: Pages that went to the host, and that came back.
    out: int = 0
    back: int = 0
    seconds: float = 0.0
    evidence: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Pages moved in a second of the hogs' time."""
        return (self.out + self.back) / self.seconds if self.seconds else 0.0


def cells(
    kernels: Sequence[str] = (),
    chosen: Sequence[Route] = (),
    vcpus: Sequence[int] = (1, 2),
    hogs: Sequence[int] = (1, 2),
) -> tuple[list[Cell], list[Cannot]]:
    """Every run of what is asked for (empty: all), and what cannot be run and why.

    The kernel that is built for cleancache runs that only: all else is the same as in its plain sister.
    """
    runs: list[Cell] = []
    cannot: list[Cannot] = []
    for kernel in kernels or KERNELS:
        for route in chosen or routes():
            if kernel.endswith("-cleancache") and route.source != "cleancache" and not chosen:
                continue
            if reason := missing(route, kernel):
                cannot.append(Cannot(kernel, route, reason))
                continue
            runs += [Cell(kernel, route, count, several) for count in vcpus for several in hogs]
    return runs, cannot


def parse_route(text: str) -> Route:
    """``SOURCE:CHANNEL``. Raises InvalidInput."""
    for route in routes():
        if text == f"{route.source}:{route.channel}":
            return route
    source, _, channel = text.partition(":")
    sources = sorted({route.source for route in routes()})
    channels = sorted({route.channel for route in routes()})
    if source not in sources:
        raise InvalidInput(f"there is no source {source!r}", f"SOURCE:CHANNEL; sources are {', '.join(sources)}")
    raise InvalidInput(f"there is no channel {channel!r}", f"SOURCE:CHANNEL; channels are {', '.join(channels)}")


def faults(outcome: Outcome) -> list[str]:
    """What a run shows that must not be; empty when it is as it should be."""
    found = []
    cell = outcome.cell
    if outcome.bad:
        found.append(f"{outcome.bad} of {outcome.pages} pages came back wrong")
    # The hogs want more than there is: what the guest cannot hold has been out, and was verified, so it came back.
    least = (SPARE_MIB * MIB) // PAGE_SIZE
    if outcome.out < least or outcome.back < least:
        found.append(f"only {outcome.out} pages went out and {outcome.back} came back: the hogs did not swap this way")
    if cell.route.source == "frontswap" and outcome.evidence.get("pswpout"):
        found.append(f"the kernel swapped {outcome.evidence['pswpout']} pages to a device, past frontswap")
    if cell.route.source == "cleancache":
        if not outcome.evidence.get("files_from_host"):
            found.append("no file page came from the host")
        # What found no room to wait was not put: a cache may do that.
        if outcome.evidence.get("files_from_disk", 0) > outcome.evidence.get("files_not_put", 0):
            found.append(f"{outcome.evidence['files_from_disk']} pages of files that were put came from the disk")
        if outcome.evidence.get("files_wrong"):
            found.append("files did not read as they had before")
    return found
