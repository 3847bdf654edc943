# SPDX-License-Identifier: Apache-2.0
"""`tmem bench density`: one to a thousand micro-VMs at once, paging through one store or to one disk file.

Every VM has its own memory, its own pool and a thread for its vCPU. It plays a trace: a zipf-distributed working set
over fewer frames than pages, computing a little between page operations and changing each page before it goes. Every
page that comes back is compared whole with what was put. Arms:

* ``sync-store``: an exit to user space; the vCPU's thread puts or gets the page in place and enters the guest again. A
  thread that ran for its quantum gives its CPU away at its next exit: that is what an exit is good for;
* ``sync-store-greedy``: the same, but a thread runs until the kernel takes the CPU from it;
* ``async-store``: an ioeventfd; the guest halts, a worker thread puts or gets and wakes it by irqfd;
* ``sync-disk``, ``async-disk``: the same two ways to a file opened with O_DIRECT (`--disk-dir`);
* ``quota``: as many VMs in four classes: plain ones whose room is promised, capped ones, caches of weight 100 and 300;
* ``fleet-...``: many guests over each channel to one host agent (`density_channels`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tmem_host._core import run_fleet
from tmem_host.bench import density_channels, density_quota, micro_vms, stats
from tmem_host.bench.channel_scratch import scratch
from tmem_host.bench.density_fleet import Fleet, jain
from tmem_host.bench.disk_folder import cannot_hold, disk_file
from tmem_host.bench.properties import filesystem_of
from tmem_host.bench.results import Scalar
from tmem_host.bench.runner import Arm, BenchContext, BenchError, bench
from tmem_host.bench.store_figures import verdict
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.core import Store, worst_case_bytes

ARMS: Final = ("sync-store", "sync-store-greedy", "async-store", "sync-disk", "async-disk")
QUOTA: Final = "quota"
_ALL: Final = (*ARMS, QUOTA, *density_channels.ARMS)
#: Seconds to make a thousand VMs (design section 11).
CREATION_GOAL: Final = 2.0
#: Threads that wait for the disk at once, at most: an asynchronous device has many requests in flight.
_DISK_WORKERS: Final = 32
#: A tick of a 250 Hz kernel: nothing less is a turn when threads only compute.
_TICK: Final = 0.004
#: VMs from which on the memory of one can be told from what else the system does with its memory.
_MEMORY_FROM: Final = 64
#: Pages that the VMs' pages look like.
_CONTENTS_PAGES: Final = 1024


@dataclass(frozen=True)
class Plan:
    """The bench as configured."""

    fleet: Fleet
    vms: tuple[int, ...]
    cpus: tuple[int, ...]
    rounds: int
    seconds: float
    turns: float
    """How many turns of the scheduler each VM has while it is watched, at least."""
    quantum_ms: float
    contents: str
    disk_dir: Path
    arms: frozenset[str]
    channel_vms: tuple[int, ...]
    channel_seconds: float

    @classmethod
    def of(cls, ctx: BenchContext) -> Plan:
        """Out of the context's options. Raises BenchError."""
        available = len(os.sched_getaffinity(0))
        vms = tuple(ctx.option("vms", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000], [1, 4, 16, 100, 1000]))
        cpus = tuple(ctx.option("cpus", sorted({1, available}), [available]))
        if not vms or min(vms) < 1 or max(vms) > 4000:
            raise BenchError("a fleet has 1 to 4000 VMs", "for example --vms 1,10,100,1000")
        if not cpus or min(cpus) < 1 or max(cpus) > available:
            raise BenchError(f"this process may use 1 to {available} CPUs", "for example --set cpus=1")
        arms = frozenset(name for name in str(ctx.option("arms", "")).split(",") if name)
        if unknown := sorted(arms - set(_ALL)):
            raise BenchError(f"no arm is called {', '.join(unknown)}", f"choose from: {', '.join(_ALL)}")
        channel_vms = tuple(ctx.option("channel_vms", [1, 2, 4, 8, 16, 32, 64, 128, 200], [1, 16, 100]))
        if not channel_vms or min(channel_vms) < 1 or max(channel_vms) > 1000:
            raise BenchError("1 to 1000 guests can share an agent", "for example --set channel_vms=1,10,100")
        return cls(
            fleet=Fleet(
                frames=ctx.option("frames", 16),
                pages=ctx.option("pages", 64),
                zipf=ctx.option("zipf", 0.9),
                trace=ctx.option("trace", 512),
                compute=ctx.option("compute_us", 20.0) / 1e6,
                seed=ctx.seed,
            ),
            vms=vms,
            cpus=cpus,
            rounds=ctx.option("rounds", 5, 3),
            seconds=ctx.option("seconds", 1.0, 0.4),
            turns=ctx.option("turns", 4.0, 1.5),
            quantum_ms=ctx.option("quantum_ms", 0.5),
            contents=ctx.option("contents", "corpus"),
            disk_dir=Path(ctx.option("disk_dir", str(ctx.out))),
            arms=arms,
            channel_vms=channel_vms,
            channel_seconds=ctx.option("channel_seconds", 1.0, 0.5),
        )

    def watched(self, vms: int, cpus: int) -> float:
        """Seconds that a fleet is watched: each VM gets some turns, should all of them only compute."""
        return max(self.seconds, self.turns * _TICK * vms / cpus)

    def chosen(self, name: str) -> bool:
        """Whether the user wants this arm."""
        return not self.arms or name in self.arms


@bench("density")
async def run(ctx: BenchContext) -> None:
    """Runs all fleets in rounds. Raises TmemError when nothing can be run at all."""
    plan = Plan.of(ctx)
    ctx.loads_the_machine = True
    pages = await micro_vms.contents(ctx, plan.contents, _CONTENTS_PAGES)
    ctx.configure(
        **plan.fleet.facts(),
        vms=list(plan.vms),
        cpus=list(plan.cpus),
        rounds=plan.rounds,
        quantum_ms=plan.quantum_ms,
        disk_dir=str(plan.disk_dir),
        disk_filesystem=filesystem_of(plan.disk_dir),
        channel_vms=list(plan.channel_vms),
    )
    channels = tuple(name for name in density_channels.ARMS if plan.chosen(name))
    if (kvm := str(ctx.results.properties.host.get("kvm_device"))) != "usable":
        ctx.skip(f"micro-VMs need KVM, and /dev/kvm is {kvm}: see 'tmem doctor'", kind="kvm")
    elif arms := _arms(ctx, plan):
        await _micro_vms(ctx, plan, arms, pages)
    elif not channels:
        raise BenchError("no arm is left to run", f"choose from: {', '.join(_ALL)}")
    if channels:
        part = density_channels.Plan(plan.channel_vms, plan.rounds, plan.channel_seconds, plan.fleet, channels)
        await density_channels.run(ctx, part, pages)


async def _micro_vms(ctx: BenchContext, plan: Plan, arms: list[Arm], pages: bytes) -> None:
    """Fleets of every size in rounds."""

    async def one(arm: Arm, _index: int) -> None:
        ctx.progress(f"{arm.dimensions['vms']} VMs on {arm.dimensions['cpus']} CPUs")
        with micro_vms.arm_errors():
            if arm.name == QUOTA:
                density_quota.turn(ctx, plan.fleet, arm, pages, _watched(plan, arm))
            else:
                _turn(ctx, plan, arm, pages)

    await ctx.interleave(arms, rounds=plan.rounds, run=one)
    _figures(ctx)
    density_quota.figures(ctx)


def _arms(ctx: BenchContext, plan: Plan) -> list[Arm]:
    """Every way at every size; the disk's only where there is a disk with room."""
    found = []
    need = 2 * max(plan.vms) * plan.fleet.pages * PAGE_SIZE
    no_disk = cannot_hold(plan.disk_dir, need, direct=True)
    if no_disk and any(plan.chosen(name) for name in ARMS if name.endswith("-disk")):
        ctx.skip(f"no disk arms: {no_disk}", kind="disk")
    for cpus in plan.cpus:
        for vms in plan.vms:
            for name in ARMS:
                channel, backend = name.split("-")[:2]
                if plan.chosen(name) and not (backend == "disk" and no_disk):
                    found.append(arm_of(name, vms, cpus, channel, backend))
    if plan.chosen(QUOTA) and max(plan.vms) >= density_quota.CLASSES:
        found.append(arm_of(QUOTA, max(plan.vms), max(plan.cpus), "sync", "store"))
    return found


def arm_of(name: str, vms: int, cpus: int, channel: str, backend: str) -> Arm:
    """The arm with its dimensions."""
    dimensions: dict[str, Scalar] = {
        "vms": vms,
        "cpus": cpus,
        "overcommit": vms / cpus,
        "channel": channel,
        "backend": backend,
    }
    return Arm(name, dimensions)


def _watched(plan: Plan, arm: Arm) -> float:
    return plan.watched(int(arm.dimensions["vms"]), int(arm.dimensions["cpus"]))


@contextlib.contextmanager
def _place(plan: Plan, arm: Arm) -> Iterator[dict[str, Any]]:
    """Where the pages of one run go: a new store, or a new file."""
    if arm.dimensions["backend"] == "disk":
        with disk_file(plan.disk_dir) as path:
            yield {"disk": str(path)}
        return
    room = worst_case_bytes(int(arm.dimensions["vms"]) * plan.fleet.pages) + 256 * MIB
    with scratch(room) as folder:
        store = Store(str(folder / "arena"), limit_bytes=room)
        try:
            yield {"store": store}
        finally:
            store.close()


def _turn(ctx: BenchContext, plan: Plan, arm: Arm, pages: bytes) -> None:
    vms, cpus = int(arm.dimensions["vms"]), int(arm.dimensions["cpus"])
    on_disk = arm.dimensions["backend"] == "disk"
    with _place(plan, arm) as place:
        seen = run_fleet(
            [("plain", vms, True, 0, None, 100)],
            pages,
            **place,
            **plan.fleet.arguments(),
            channel="async" if arm.dimensions["channel"] == "async" else "sync",
            workers=min(vms, _DISK_WORKERS) if on_disk else cpus,
            cpus=cpus,
            time=plan.watched(vms, cpus),
            quantum=None if arm.name == "sync-store-greedy" else plan.quantum_ms / 1000,
        )
    _record(ctx, arm, seen, file_bytes=vms * plan.fleet.pages * PAGE_SIZE if on_disk else None)


def _record(ctx: BenchContext, arm: Arm, seen: dict[str, Any], *, file_bytes: int | None) -> None:
    """The figures of one run. Raises BenchError when a page was wrong or the fleet did nothing."""
    bad = sum(c["bad"] for c in seen["classes"])
    served = [int(n) for n in seen["ops"]]
    total = sum(served)
    if bad:
        raise BenchError(f"{bad} pages came back different, or not at all")
    if not total:
        raise BenchError("no page was served while the fleet was watched")
    mean = total / len(served)
    ctx.record("throughput", "pages/s", total / seen["seconds"], arm=arm, better="higher")
    ctx.record("work_rate", "loops/s", total * seen["loops"] / seen["seconds"], arm=arm, better="higher")
    ctx.record("page_cpu", "ns", seen["cpu_ns"] / total, arm=arm, better="lower")
    ctx.record("latency", "ns", [round(ns, 1) for ns in seen["latency_ns"]], arm=arm, better="lower")
    ctx.record("interval", "ns", [round(ns, 1) for ns in seen["interval_ns"]], arm=arm, better="lower")
    ctx.record("fairness", "ratio", jain(served), arm=arm, better="higher")
    ctx.record("slowest_share", "ratio", min(served) / mean, arm=arm, better="higher")
    ctx.record("served", "VMs", sum(n > 0 for n in served), arm=arm, better="higher")
    ctx.record("verified", "pages", seen["verified"], arm=arm)
    ctx.record("bad_pages", "pages", 0, arm=arm, better="lower")
    ctx.record("creation", "s", seen["creation"], arm=arm, better="lower")
    if len(served) >= _MEMORY_FROM:
        ctx.record("vm_memory", "bytes", seen["vm_memory"], arm=arm, better="lower")
    if file_bytes is not None:
        ctx.record("held", "bytes", file_bytes, arm=arm, better="lower")
        return
    ctx.record("held", "bytes", seen["stored_slots"], arm=arm, better="lower")
    ratio = seen["stored_pages"] * PAGE_SIZE / max(1, seen["stored_compressed"])
    ctx.record("compression_ratio", "ratio", ratio, arm=arm, better="higher")


def _figures(ctx: BenchContext) -> None:
    """What was asked for, in words: creation, memory, and whether anybody starved."""
    created = ctx.results.find("creation")
    if not created:
        return
    most = max(int(r.dimensions["vms"]) for r in created)
    samples = [s for r in created if r.dimensions["vms"] == most for s in r.samples]
    ctx.note(verdict(f"seconds to create {most} micro-VMs", stats.median(samples), CREATION_GOAL * most / 1000))
    if memory := [s for r in ctx.results.find("vm_memory", vms=most) for s in r.samples]:
        ctx.note(f"memory per VM, without the pages it stored: {stats.median(memory) / 1024:.0f} KiB at {most} VMs")
    for record in ctx.results.find("served", vms=most):
        share = ctx.results.find("slowest_share", arm=record.arm, vms=most, cpus=record.dimensions["cpus"])
        least = f"; the least served had {min(share[0].samples):.2f} of the mean" if share else ""
        ctx.note(
            f"{record.arm}, {most} VMs on {record.dimensions['cpus']} CPUs: {int(min(record.samples))} of {most} "
            f"were served in every round{least}"
        )
