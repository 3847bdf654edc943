# SPDX-License-Identifier: Apache-2.0
"""Arms of `tmem bench channel` inside a guest: what its vCPU sees of a request, by channel.

One guest has every channel at once and is told what to do by the host, turn by turn (`channel_probe`), so all arms take
part in every round of one boot. Servers are threads of one process beside QEMU; those that poll do so for 50 us after a
request, and sleep while other arms have their turn.

Metrics, each with `accelerator` among its dimensions: an emulated vCPU leaves its guest for nothing, so a run under
TCG tells channels apart, and what they do to each other, but says nothing about what an exit costs.
- `guest_request` (ns): a request of one vCPU with nothing else going on, by `op`, `batch`, `page_bytes`, `length`;
- `guest_page` (ns): the same over the pages in it, by `batch`;
- `guest_run` (ns): a request of each vCPU, the mean of 20 in a row, by `vcpus` at work;
- `guest_together` (ns): the time of the whole turn over the requests of all vCPUs;
- `bytes_copied` (bytes): see `channel_copies`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tmem_host.bench import channel_copies
from tmem_host.bench.channel_backends import TmemProcess, tmem_process
from tmem_host.bench.channel_probe import MEMORY_MIB, PAGES_MAX, VCPUS, Devices, Probe, probe_vm
from tmem_host.bench.harness import HARNESS
from tmem_host.bench.results import Scalar
from tmem_host.bench.runner import Arm, BenchContext
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.vm.qemu import PAGES_PORT
from tmem_host.vm.spec import Disk, InlineTmem, Tmem, VhostUserBlk, VhostUserTmem

LARGE: Final = (64 << 10, 2 << 20)
RANGE: Final = 64
"""Bytes of a range that is read or written."""
EVERY: Final = 20
_LIMIT: Final = 128 * MIB
_PAGE_OPS: Final = ("put", "get")
_TMEM_OPS: Final = ("put", "get", "flush", "exchange", "put+get", "read", "write")


@dataclass(frozen=True)
class Way:
    """How pages leave the guest in one arm."""

    kind: str
    """As the probe names it: ring, stream, disk, shared."""
    dimensions: Mapping[str, Scalar]
    ops: tuple[str, ...] = _TMEM_OPS
    vcpus: tuple[int, ...] = (1, 2)
    """At work together, where that is measured: a port has one stream."""
    sizes: tuple[int, ...] = LARGE
    device: Mapping[str, bool | str] = field(default_factory=dict)
    """What sets an inline device apart."""

    @property
    def channel(self) -> str:
        return str(self.dimensions["channel"])


def _inline(*, doorbell: str = "mmio", lock: str = "off", wait: str = "inline", **device: bool | str) -> Way:
    dimensions = {"channel": "virtio-tmem", "doorbell": doorbell, "wait": wait, "lock": lock}
    return Way("ring", dimensions, device={"doorbell": doorbell, **device})


def _served(channel: str, kind: str, poll: str, **how: tuple[str, ...] | tuple[int, ...]) -> Way:
    wait = "poll" if poll == "on" else "event"
    return Way(kind, {"channel": channel, "wait": wait, "poll": poll}, **how)  # type: ignore[arg-type]


WAYS: Final[Mapping[str, Way]] = {
    "guest-inline-pio": _inline(doorbell="pio"),
    "guest-inline-mmio": _inline(),
    "guest-inline-bql": _inline(lock="on", bql=True),
    "guest-inline-ioeventfd": _inline(wait="event", ioeventfd=True),
    "guest-vhost-user-tmem": _served("vhost-user-tmem", "ring", "off"),
    "guest-vhost-user-tmem-poll": _served("vhost-user-tmem", "ring", "on"),
    "guest-virtio-serial": _served("virtio-serial", "stream", "off", vcpus=()),
    "guest-vhost-user-blk": _served("vhost-user-blk", "disk", "off", ops=_PAGE_OPS, sizes=()),
    "guest-vhost-user-blk-poll": _served("vhost-user-blk", "disk", "on", ops=_PAGE_OPS, sizes=()),
    "guest-ivshmem": Way(
        "shared",
        {"channel": "ivshmem", "wait": "none"},
        ops=tuple(op for op in _TMEM_OPS if op != "flush"),
    ),
}
"""By arm. The last is a copy into memory that the host has, too: the floor of any channel that does not compress."""


@dataclass(frozen=True)
class Point:
    """What one turn measures."""

    op: str
    batch: int = 1
    page_bytes: int = PAGE_SIZE
    length: int = 0
    vcpus: int = 1
    every: int = 1

    def samples(self, most: int) -> int:
        """How many a turn takes of it: fewer of what takes longer."""
        return max(5, most * PAGE_SIZE // (self.batch * self.page_bytes))

    def labels(self) -> dict[str, Scalar]:
        found: dict[str, Scalar] = {"op": self.op, "batch": self.batch, "page_bytes": self.page_bytes}
        if self.length:
            found["length"] = self.length
        return {**found, "vcpus": self.vcpus}


def chosen(wanted: Sequence[str]) -> list[str]:
    """Names of these arms among ``wanted``; all when none is wanted."""
    return [name for name in WAYS if not wanted or name in wanted]


def points(way: Way, batches: Sequence[int]) -> list[Point]:
    """All of an arm, single requests first."""
    found = [Point(op, length=RANGE if op in ("read", "write") else 0) for op in way.ops]
    found += [Point(op, batch=n) for n in batches if n > 1 for op in _PAGE_OPS]
    found += [Point(op, page_bytes=size) for size in way.sizes for op in _PAGE_OPS]
    found += [Point(op, vcpus=n, every=EVERY) for n in way.vcpus for op in _PAGE_OPS]
    return found


async def measure(
    ctx: BenchContext,
    folder: Path,
    pages: bytes,
    names: Sequence[str],
    *,
    rounds: int,
    samples: int,
    batches: Sequence[int],
    poll_us: int,
) -> None:
    """Boots the guest and runs the arms in turn. Raises TmemError when there is no such guest."""
    home = folder / "guest"
    home.mkdir()
    ctx.progress("booting the guest that has every channel")
    async with _stage(home, ctx.out, pages, names, poll_us) as (probe, process):
        _describe(ctx, probe)
        for name in names:
            await _open(probe, name, names)
        ctx.record("guest_clock", "ns", await probe.clock(), arm=HARNESS, better="lower")
        run = _Run(ctx, probe, samples, batches)
        arms = [Arm(name, WAYS[name].dimensions) for name in names]
        await ctx.interleave(arms, rounds=rounds, run=run.turn)
        counted: set[str] = set()
        for arm in arms:
            # What is copied is a matter of the channel, not of how it waits.
            channel = WAYS[arm.name].channel
            if channel not in counted and not ctx.has_failed(arm):
                await channel_copies.count(ctx, probe, process, arm, channel)
                counted.add(channel)
        await probe.off()


@contextlib.asynccontextmanager
async def _stage(
    home: Path, out: Path, pages: bytes, names: Sequence[str], poll_us: int
) -> AsyncIterator[tuple[Probe, TmemProcess]]:
    """The servers, then the guest with all its devices."""
    async with tmem_process(home, 2 * _LIMIT) as process:
        tmem: list[Tmem] = []
        disks: list[Disk] = []
        for name in names:
            way, socket = WAYS[name], home / f"{name}.sock"
            server = channel_copies.server_name(name)
            poll = poll_us if way.dimensions.get("poll") == "on" else 0
            if way.channel == "virtio-tmem":
                tmem.append(InlineTmem(home / f"{name}.arena", _LIMIT, **way.device))  # type: ignore[arg-type]
            elif way.channel == "vhost-user-tmem":
                await process.ask(op="add_tmem", name=server, socket=str(socket), codec="lz4", queues=VCPUS)
                await process.ask(op="poll", name=server, us=poll)
                tmem.append(VhostUserTmem(socket))
            elif way.channel == "vhost-user-blk":
                disk = {"pages": 1024, "codec": "lz4", "socket": str(socket), "queues": VCPUS, "queue_size": 256}
                await process.ask(op="add", name=server, **disk)
                await process.ask(op="poll", name=server, us=poll)
                disks.append(VhostUserBlk(socket, serial=server, queue_size=256))
        shared = home if "guest-ivshmem" in names else None
        serial = "guest-virtio-serial" in names
        devices = Devices(tuple(tmem), tuple(disks), serial, shared)
        async with probe_vm(devices, pages[:PAGES_MAX], out / "probe") as probe:
            if serial:
                name = channel_copies.server_name("guest-virtio-serial")
                await process.ask(op="add_serial", name=name, socket=str(probe.pages_socket), codec="lz4")
            yield probe, process


async def _open(probe: Probe, name: str, names: Sequence[str]) -> None:
    """The arm's channel, by what tells it from others of its kind."""
    which = "-"
    match WAYS[name].kind:
        case "ring":
            which = str([other for other in names if WAYS[other].kind == "ring"].index(name))
        case "stream":
            which = PAGES_PORT
        case "disk":
            which = channel_copies.server_name(name)
    await probe.open(name, WAYS[name].kind, which)


def _describe(ctx: BenchContext, probe: Probe) -> None:
    accelerator = probe.accelerator
    ctx.configure(
        guest_kernel=probe.kernel,
        guest_accelerator=accelerator.name,
        guest_accelerator_why=accelerator.why,
        guest_vcpus=VCPUS,
        guest_memory_mib=MEMORY_MIB,
        guest_qemu=probe.qemu_version,
    )
    if accelerator.name == "tcg":
        ctx.note(
            f"The guest's CPU was emulated (TCG: {accelerator.why}): a request there leaves no guest mode and the "
            "guest's own copies take longer than a processor's, so its times tell channels apart and say nothing "
            "about exits."
        )


class _Run:
    """The turns of the arms."""

    def __init__(self, ctx: BenchContext, probe: Probe, samples: int, batches: Sequence[int]) -> None:
        self._ctx = ctx
        self._probe = probe
        self._samples = samples
        self._batches = batches

    async def turn(self, arm: Arm, index: int) -> None:
        """Every point of the arm once."""
        for point in points(WAYS[arm.name], self._batches):
            self._ctx.progress(" ".join(f"{k} {v}" for k, v in point.labels().items()))
            await self._point(arm, point)

    def _runs(self, arm: Arm) -> int:
        """Samples of a turn of several vCPUs: long enough that what the host's scheduler does in between is little of
        it, and fewer where each request waits for a thread.
        """
        return max(5, self._samples // 4 if arm.dimensions["wait"] == "event" else 2 * self._samples)

    async def _point(self, arm: Arm, point: Point) -> None:
        count = point.samples(self._samples) if point.every == 1 else self._runs(arm)
        turn = await self._probe.turn(
            arm.name,
            point.op,
            batch=point.batch,
            page_bytes=point.page_bytes,
            length=point.length,
            vcpus=point.vcpus,
            samples=count,
            every=point.every,
            warmup=min(20, count),
        )
        labels = {**point.labels(), "accelerator": self._probe.accelerator.name}
        every = [float(ns) for lane in turn.ns for ns in lane]
        record = self._ctx.record
        if point.every > 1:
            record("guest_run", "ns", every, arm=arm, better="lower", **labels)
            each = turn.wall / (count * point.every * point.vcpus)
            record("guest_together", "ns", round(each, 1), arm=arm, better="lower", **labels)
            return
        record("guest_request", "ns", every, arm=arm, better="lower", **labels)
        if point.op in _PAGE_OPS and point.page_bytes == PAGE_SIZE:
            pages = [round(ns / point.batch, 1) for ns in every]
            record("guest_page", "ns", pages, arm=arm, better="lower", **labels)
