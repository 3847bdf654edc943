# SPDX-License-Identifier: Apache-2.0
"""`tmem bench swap`: the same work in the same guest, with its swap in different places.

One guest is booted with every device attached. In each round every arm has its turn, in shuffled order: its device
becomes the guest's only swap, a hog larger than what the guest has free writes its pages, verifies them in order and at
random, and the swap is taken off again. What is compared:

* ``tmem-CODEC``, ``tmem-CODEC-poll``: vhost-user-blk to the host agent, which sleeps between requests or spins;
* ``disk-none``, ``disk-writeback``: virtio-blk on a file on a real disk, past or through the host's page cache;
* ``null``: virtio-blk on a device that keeps nothing: the cost of the way there and back. Pages read back as zeroes, so
  nothing is compared, and only the hog's own area may be swapped (hog and agent are locked in memory). It does less
  work than the others: it has latencies and costs per page, but no run time;
* ``zram``: compressed in the guest's own memory.

A bad page fails the arm. Metrics are listed in `_Turn`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from tmem_host.bench import corpus
from tmem_host.bench.harness import HARNESS
from tmem_host.bench.results import Scalar
from tmem_host.bench.runner import Arm, ArmSkipped, BenchAborted, BenchContext, BenchError, bench
from tmem_host.bench.swap_figures import (
    PHASES,
    Held,
    InMemory,
    compression,
    cost_in,
    cost_out,
    fullest,
    overhead,
    totals,
)
from tmem_host.bench.swap_stage import CACHED, CORPUS, DIRECT, NULL, TMEM, Stage, StageSpec
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.errors import InvalidInput, TmemError
from tmem_host.models import Codec
from tmem_host.vm.guest_client import GuestError, GuestRefused
from tmem_host.vm.guest_results import HogResult, Progress
from tmem_host.vm.images import guest_image
from tmem_host.vm.spec import AccelName

ZRAM: Final = "zram"
#: A hog of this share of the guest's memory fits: what an access costs when nothing is swapped.
_FITS: Final = 0.2
_IN_MEMORY_REPEATS: Final = 3
_HOG_PATTERNS: Final = ("same", "zero", "synthetic")


_LITTLE: Final = "zram keeps what it compresses in the guest's own memory: a smaller --factor leaves it room"


@dataclass(frozen=True)
class Plan:
    """Options of the bench, resolved."""

    kernel: str
    memory_mib: int
    vcpus: int
    factor: float
    """The hog's memory over what the guest has to give: its MemAvailable when it has just booted."""
    swap_mib: int
    rounds: int
    passes: int
    samples: int
    contents: str
    corpus_pages: int
    poll_us: int
    page_cluster: int | None
    min_free_kib: int
    """vm.min_free_kbytes of the guest, the same for all arms; 0 leaves the kernel's own choice."""
    accel: AccelName
    disk_dir: Path
    seconds: float
    turn_seconds: float

    @classmethod
    def of(cls, ctx: BenchContext) -> Plan:
        """Out of the context's options. Raises InvalidInput."""
        memory = ctx.option("memory", 256, 144)
        factor = ctx.option("factor", 1.5)
        if not 1 < factor <= 16:
            raise InvalidInput(f"a factor of {factor:g} is not between 1 and 16", "choose 1.5, for example")
        accel = ctx.option("accel", "auto")
        if accel not in get_args(AccelName):
            raise InvalidInput(f"there is no accelerator {accel!r}", f"choose one of {', '.join(get_args(AccelName))}")
        cluster = ctx.option("page_cluster", -1)
        return cls(
            kernel=ctx.option("kernel", "6.1"),
            memory_mib=memory,
            vcpus=ctx.option("vcpus", 1),
            factor=factor,
            # A guest never has more memory to give than it has, so this is enough for every hog.
            swap_mib=round(memory * factor) + 32,
            rounds=ctx.option("rounds", 5, 3),
            passes=ctx.option("passes", 2, 1),
            samples=ctx.option("samples", 8192, 2048),
            contents=ctx.option("contents", "corpus"),
            corpus_pages=ctx.option("corpus_pages", 2048, 1024),
            poll_us=ctx.option("poll_us", 500),
            page_cluster=cluster if cluster >= 0 else None,
            # Left to itself a small guest keeps 1 MiB for reclaim, and then zram, which allocates in order to free, now
            # and then crawls for a minute (seen in 2 of 9 runs on 6.1, 144 MiB).
            min_free_kib=ctx.option("min_free_kib", 4096),
            accel=accel,  # type: ignore[arg-type]
            disk_dir=Path(ctx.option("disk_dir", str(ctx.out))),
            seconds=ctx.option("seconds", 3600.0, 200.0),
            turn_seconds=ctx.option("turn_seconds", 600.0, 90.0),
        )


@dataclass(frozen=True)
class Device:
    """Where an arm's pages go."""

    serial: str
    codec: Codec | None = None
    poll_us: int = 0
    verified: bool = True
    where: Literal["host memory", "disk", "guest memory", ""] = ""


def devices(poll_us: int) -> dict[str, Device]:
    """Every arm by name, in the order of tables and plots."""
    found: dict[str, Device] = {}
    for codec in get_args(Codec):
        found[f"tmem-{codec}"] = Device(TMEM, codec, 0, where="host memory")
        found[f"tmem-{codec}-poll"] = Device(TMEM, codec, poll_us, where="host memory")
    found["disk-none"] = Device(DIRECT, where="disk")
    found["disk-writeback"] = Device(CACHED, where="disk")
    found["null"] = Device(NULL, verified=False)
    found["zram"] = Device(ZRAM, "lz4", where="guest memory")
    return found


def arm_of(name: str, device: Device, plan: Plan) -> Arm:
    """The arm with the dimensions of every record of it."""
    channel = {TMEM: "vhost-user-blk", ZRAM: "none"}.get(device.serial, "virtio-blk")
    labels: dict[str, Scalar] = {
        "source": "swap",
        "channel": channel,
        "backend": "tmem" if device.serial == TMEM else device.serial,
        "codec": device.codec or "none",
        "poll": "on" if device.poll_us else "off",
        "kernel": plan.kernel,
        "contents": plan.contents,
    }
    return Arm(name, labels)


@bench("swap")
async def run(ctx: BenchContext) -> None:
    """Runs the bench. Raises TmemError when no guest can be had at all."""
    began = time.monotonic()
    plan = Plan.of(ctx)
    table = devices(plan.poll_us)
    chosen = _choose(str(ctx.option("arms", "")), table)
    image = guest_image(plan.kernel)
    pages = await _pages(ctx, plan)
    spec = StageSpec(
        image=image,
        memory_mib=plan.memory_mib,
        vcpus=plan.vcpus,
        swap_mib=plan.swap_mib,
        accel=plan.accel,
        disk_dir=plan.disk_dir,
        logs=ctx.out / "logs",
        corpus=pages,
        append=f"sysctl.vm.min_free_kbytes={plan.min_free_kib}" if plan.min_free_kib else "",
        tmem=any(table[name].serial == TMEM for name in chosen),
        disks=any(table[name].serial in (DIRECT, CACHED) for name in chosen),
    )
    ctx.progress("booting the guest")
    async with Stage(spec) as stage:
        available = (await stage.vm.agent.meminfo())["meminfo"]["MemAvailable"]
        hog_mib = max(1, round(plan.factor * available / MIB))
        await _describe(ctx, plan, stage, hog_mib, available)
        turns = _Turns(ctx, plan, stage, table, hog_mib)
        arms = [arm_of(name, table[name], plan) for name in chosen]
        await ctx.interleave(
            arms, rounds=plan.rounds, run=turns.run, recover=turns.recover, deadline=began + plan.seconds
        )


def _choose(wanted: str, table: dict[str, Device]) -> list[str]:
    names = [name for name in wanted.split(",") if name]
    for name in names:
        if name not in table:
            raise InvalidInput(f"there is no arm {name!r}", f"choose from {', '.join(table)}")
    return [name for name in table if not names or name in names]


async def _pages(ctx: BenchContext, plan: Plan) -> bytes | None:
    """The pages for the corpus disk; None when the hog makes them up itself."""
    if plan.contents.partition(":")[0] in _HOG_PATTERNS:
        return None
    pages = await corpus.contents(
        plan.contents, plan.corpus_pages, seed=ctx.seed, series=plan.kernel, progress=ctx.view.note
    )
    ctx.configure(**corpus.facts(pages).properties())
    return pages


async def _describe(ctx: BenchContext, plan: Plan, stage: Stage, hog_mib: int, available: int) -> None:
    """Properties, notes, and the harness's own cost."""
    vm = stage.vm
    hello = await vm.agent.hello()
    ctx.guest(
        kernel=plan.kernel,
        kernel_release=hello["kernel"],
        memory_mib=plan.memory_mib,
        usable_bytes=hello["mem_total_bytes"],
        available_bytes=available,
        vcpus=plan.vcpus,
        clocksource=hello["clocksource"],
        accelerator=vm.accelerator.name,
        accelerator_why=vm.accelerator.why,
        boot_seconds=round(vm.boot_seconds, 2),
    )
    ctx.configure(
        hog_mib=hog_mib,
        hog_over_available=plan.factor,
        swap_mib=plan.swap_mib,
        rounds=plan.rounds,
        random_passes=plan.passes,
        samples_per_phase=plan.samples,
        contents=plan.contents,
        poll_us=plan.poll_us,
        page_cluster="kernel default" if plan.page_cluster is None else plan.page_cluster,
        min_free_kib=plan.min_free_kib or "kernel default",
        disk_folder_filesystem=stage.disk_filesystem or "unused",
    )
    cost = await stage.watch_cost() if TMEM not in stage.missing else None
    if cost is not None:
        ctx.record("held_look", "s", cost, arm=HARNESS, better="lower", where="agent CPU, twice a second")
    if vm.accelerator.name == "tcg":
        ctx.note(
            f"The guest ran under TCG ({vm.accelerator.why}): the CPU is emulated, so compare arms, not absolute times."
        )
    if plan.contents == "corpus":
        ctx.note(
            f"Pages are {plan.corpus_pages} real ones sampled from a guest's memory, repeated over the hog's area; the "
            "hog marks each with 16 bytes of its own, so none is same-filled."
        )
    ctx.note(
        "A fault is counted when the kernel counts it as major, i.e. it waited for a page from swap; its time includes "
        "two readings of the guest's clock. The null device returns zeroes: its hog compares nothing, so no run time."
    )


class _Turns:
    """One arm's turn after the other, in one guest."""

    def __init__(self, ctx: BenchContext, plan: Plan, stage: Stage, table: dict[str, Device], hog_mib: int) -> None:
        self._hog_mib = hog_mib
        self._ctx = ctx
        self._plan = plan
        self._stage = stage
        self._table = table
        self._memory: dict[bool, InMemory] = {}
        self._memory_round = -1

    async def run(self, arm: Arm, index: int) -> None:
        """Swap on, hog, swap off, figures. Raises BenchError when a page was bad."""
        device = self._table[arm.name]
        if device.serial in self._stage.missing:
            raise (
                ArmSkipped(self._stage.missing[device.serial])
                if device.serial != TMEM
                else BenchError(self._stage.missing[TMEM])
            )
        if index != self._memory_round:
            await self._measure_memory(index)
        if device.serial == TMEM and device.codec is not None:
            await self._stage.set_channel(device.codec, device.poll_us)
        before = await self._stage.held(device.serial) if device.serial != ZRAM else None
        await self._swap_on(device)
        cpu = self._stage.cpu_seconds()
        start = time.monotonic()
        async with self._stage.watching(device.serial) as seen:
            try:
                result = await self._hog(self._hog_mib, device.verified, arm.name)
            except GuestError as error:
                if device.serial == TMEM and not self._stage.agent_alive():
                    raise BenchError(f"the host agent has ended; {error.message}", "see logs/agent.log") from error
                refused = isinstance(error, GuestRefused)
                raise BenchError(error.message, _LITTLE if device.serial == ZRAM and refused else "") from error
        wall = time.monotonic() - start
        used = {name: now - cpu.get(name, 0.0) for name, now in self._stage.cpu_seconds().items()}
        off = await self._swap_off(device)
        after = await self._stage.held(device.serial) if device.serial != ZRAM else None
        if result.bad:
            raise BenchError(f"{result.bad} of {result.pages} pages came back wrong")
        self._record_phases(arm, device, result)
        self._record_cpu(arm, device, used, wall, result)
        self._record_held(arm, device, seen, before, after)
        self._ctx.record("swapoff", "s", off, arm=arm, better="lower")
        self._ctx.record("bad_pages", "pages", result.bad, arm=arm, better="lower")

    async def recover(self, _arm: Arm, _error: BaseException) -> None:
        """A fresh guest for the arms to come. Raises BenchAborted when there is none to be had."""
        try:
            await self._stage.reboot()
        except TmemError as error:
            raise BenchAborted(f"the guest could not be started again: {error.message}", error.hint) from error

    async def _measure_memory(self, index: int) -> None:
        """What accesses cost in memory, with and without comparing, in this round."""
        size = max(8, round(self._plan.memory_mib * _FITS))
        for verified in (True, False):
            seen = []
            for repeat in range(1 + _IN_MEMORY_REPEATS):
                result = await self._hog(size, verified, "in memory")
                # The first one warms the guest up: memory never touched before, code never translated before.
                if repeat:
                    try:
                        seen.append(InMemory.of(result))
                    except ValueError as error:
                        raise BenchAborted(str(error), "give the guest more memory with --memory") from error
                    self._ctx.record("clock_cost", "ns", result.clock_ns["median"], arm=HARNESS, where="guest")
            for phase in PHASES:
                values = [one.nanoseconds[phase] for one in seen]
                verify = "on" if verified else "off"
                self._ctx.record("in_memory", "ns", values, arm=HARNESS, phase=phase, verify=verify)
            self._memory[verified] = InMemory.middle(seen)
        self._memory_round = index

    # ---- guest

    async def _hog(self, mib: int, verify: bool, who: str) -> HogResult:
        plan = self._plan

        def progress(at: Progress) -> None:
            self._ctx.progress(f"{who}: {at.phase} {100 * at.done // max(1, at.planned)} %")

        synthetic = plan.contents.partition(":")[0] in _HOG_PATTERNS
        return await self._stage.vm.agent.hog(
            mib,
            pattern=plan.contents if synthetic else None,
            corpus=None if synthetic else CORPUS,
            seed=self._ctx.seed,
            passes=plan.passes,
            verify=verify,
            samples=plan.samples,
            progress=progress,
            timeout=plan.turn_seconds,
        )

    async def _swap_on(self, device: Device) -> None:
        agent = self._stage.vm.agent
        if device.serial == ZRAM:
            await agent.zram_setup(self._plan.swap_mib, device.codec or "lz4", page_cluster=self._plan.page_cluster)
        else:
            await agent.swap_on(device.serial, page_cluster=self._plan.page_cluster)

    async def _swap_off(self, device: Device) -> float:
        agent = self._stage.vm.agent
        timeout = self._plan.turn_seconds
        if device.serial == ZRAM:
            return float((await agent.swap_off(device="zram0", timeout=timeout))["seconds"])
        return float((await agent.swap_off(device.serial, timeout=timeout))["seconds"])

    # ---- figures

    def _record_phases(self, arm: Arm, device: Device, result: HogResult) -> None:
        record = self._ctx.record
        memory = self._memory[device.verified].nanoseconds
        by_phase = totals(result)
        for phase in PHASES:
            total = by_phase[phase]
            if device.verified:
                record("run_time", "s", total.seconds, arm=arm, phase=phase, better="lower")
            record("pages_out", "pages", total.swapped_out, arm=arm, phase=phase, better="lower")
            record("pages_in", "pages", total.swapped_in, arm=arm, phase=phase, better="lower")
            record("major_faults", "faults", total.major, arm=arm, phase=phase, better="lower")
            if phase != "write":
                record("fault_latency", "ns", total.major_ns, arm=arm, phase=phase, better="lower")
                if (cost := cost_in(total, memory[phase])) is not None:
                    record("page_in", "ns", cost, arm=arm, phase=phase, better="lower")
            elif (cost := cost_out(total, memory[phase])) is not None:
                record("page_out", "ns", cost, arm=arm, phase=phase, better="lower")
        if device.verified:
            seconds = sum(by_phase[phase].seconds for phase in PHASES)
            moved = sum(by_phase[phase].swapped_in + by_phase[phase].swapped_out for phase in PHASES)
            record("run_time", "s", seconds, arm=arm, phase="all", better="lower")
            record("swap_rate", "pages/s", moved / seconds, arm=arm, better="higher")

    def _record_cpu(self, arm: Arm, device: Device, used: dict[str, float], wall: float, result: HogResult) -> None:
        record = self._ctx.record
        moved = sum(t.swapped_in + t.swapped_out for t in totals(result).values())
        # The agent idles in the other arms; what it takes then is the harness's looking.
        mine = {name: s for name, s in used.items() if name == "qemu" or device.serial == TMEM}
        for process in ("qemu", "agent"):
            record("host_cpu", "s", mine.get(process, 0.0), arm=arm, process=process, better="lower")
        record("host_cpu", "s", sum(mine.values()), arm=arm, process="all", better="lower")
        record("host_cpu_share", "CPUs", sum(mine.values()) / wall, arm=arm, better="lower")
        if moved and "agent" in mine:
            record("agent_cpu_per_page", "ns", mine["agent"] * 1e9 / moved, arm=arm, better="lower")

    def _record_held(self, arm: Arm, device: Device, seen: list[Held], before: Held | None, after: Held | None) -> None:
        record: Callable[..., None] = self._ctx.record
        peak = fullest(seen)
        if peak is None or not device.where:
            return
        record("held", "bytes", peak.held_bytes, arm=arm, where=device.where, better="lower")
        if (ratio := compression(peak, PAGE_SIZE)) is not None:
            record("compression_ratio", "ratio", ratio, arm=arm, better="higher")
        if (extra := overhead(peak)) is not None:
            record("held_over_compressed", "ratio", extra, arm=arm, better="lower")
        if before is not None and after is not None:
            record("held_before", "bytes", before.held_bytes, arm=arm, where=device.where, better="lower")
            record("held_after_swapoff", "bytes", after.held_bytes, arm=arm, where=device.where, better="lower")
