# SPDX-License-Identifier: Apache-2.0
"""`tmem bench swap`: the same work in the same guest, with its swap in different places.

In each round every arm has its turn, in shuffled order: its device becomes the guest's only swap, a hog larger than
what the guest has free writes its pages, verifies them in order and at random, and the swap is taken off again. What is
compared:

* ``tmem-CODEC``, ``tmem-CODEC-poll``: the stock driver, over vhost-user-blk to the host agent, which sleeps between
  requests or spins;
* ``swap-disk-CHANNEL``: the disk of tmem.ko, synchronous, over vhost-user-tmem (``-poll``: the agent spins), inline
  over virtio-tmem, over virtio-serial; ``swap-disk-async-...``: the kernel is not told that the disk is synchronous;
  ``-pio``, ``-ioeventfd``: other ways of virtio-tmem to kick, for those who name them;
* ``swap-disk-ivshmem``: the same disk on memory of the host that the guest has mapped, nothing compressed: no exit at
  all, the floor;
* ``frontswap-CHANNEL``: 5.10 only (`--set kernel=5.10`);
* ``disk-none``, ``disk-writeback``: virtio-blk on a file on a real disk, past or through the host's page cache;
* ``null``: virtio-blk on a device that keeps nothing: the cost of the way there and back. Pages read back as zeroes, so
  nothing is compared, and only the hog's own area may be swapped (hog and agent are locked in memory). It does less
  work than the others: it has latencies and costs per page, but no run time;
* ``zram``: compressed in the guest's own memory.

One guest has every device that it can have beside others, and loads tmem.ko for a turn: whatever else differs between
two guests does not differ between two arms. Where the module would find two devices of its kind, cannot be unloaded, or
would be lost (`null`), an arm has a guest of its own, alike in all but that device, stopped while others have their
turn (`swap_stage`). What an access costs in memory is measured in each of them.

A bad page fails the arm, and so does one whose module counted no page. Metrics are listed in `swap_turns`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tmem_host._core import ExitRig
from tmem_host.bench import corpus
from tmem_host.bench.disk_folder import disk_kind
from tmem_host.bench.harness import HARNESS
from tmem_host.bench.runner import Arm, BenchContext, bench
from tmem_host.bench.swap_arms import DIRECT, Device, arm_of, choose, devices, together
from tmem_host.bench.swap_stage import Stage, StageSpec
from tmem_host.bench.swap_turns import Turns
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.errors import InvalidInput, NotFound
from tmem_host.vm import routes
from tmem_host.vm.images import guest_image
from tmem_host.vm.qemubuild.build import patched_qemu
from tmem_host.vm.spec import AccelName

_HOG_PATTERNS = ("same", "zero", "synthetic")


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
        kernel = ctx.option("kernel", "6.1")
        # 5.10 keeps more for the requests of its disks.
        memory = ctx.option("memory", 256, 176 if kernel.startswith("5.10") else 144)
        factor = ctx.option("factor", 1.5)
        if not 1 < factor <= 16:
            raise InvalidInput(f"a factor of {factor:g} is not between 1 and 16", "choose 1.5, for example")
        accel = ctx.option("accel", "auto")
        if accel not in get_args(AccelName):
            raise InvalidInput(f"there is no accelerator {accel!r}", f"choose one of {', '.join(get_args(AccelName))}")
        cluster = ctx.option("page_cluster", -1)
        return cls(
            kernel=kernel,
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
            turn_seconds=ctx.option("turn_seconds", 600.0, 240.0),
        )


@bench("swap")
async def run(ctx: BenchContext) -> None:
    """Runs the bench. Raises TmemError when no guest can be had at all."""
    began = time.monotonic()
    plan = Plan.of(ctx)
    table = devices(plan.poll_us)
    chosen = choose(str(ctx.option("arms", "")), table, quick=ctx.quick, kernel=plan.kernel)
    possible: dict[str, Device] = {}
    for name in chosen:
        arm = _arm(ctx, plan, name, table[name])
        if reason := _impossible(table[name], plan.kernel):
            ctx.skip(reason, arm)
        elif reason := _unbuilt(table[name], plan.kernel):
            ctx.fail(reason, arm)
        else:
            possible[name] = table[name]
    possible = together(possible)
    if not possible:
        return
    by_module = any(device.by_module for device in possible.values())
    pages = await _pages(ctx, plan)
    spec = StageSpec(
        image=routes.image_of(plan.kernel) if by_module else guest_image(plan.kernel),
        memory_mib=plan.memory_mib,
        vcpus=plan.vcpus,
        swap_mib=plan.swap_mib,
        accel=plan.accel,
        disk_dir=plan.disk_dir,
        logs=ctx.out / "logs",
        corpus=pages,
        devices=possible,
        append=f"{_clock()} {f'sysctl.vm.min_free_kbytes={plan.min_free_kib}' if plan.min_free_kib else ''}",
    )
    ctx.progress("booting guests")
    async with Stage(spec) as stage:
        available = await _available(stage)
        hog_mib = max(1, round(plan.factor * min(available.values()) / MIB))
        await stage.play(next(iter(available)))
        await _describe(ctx, plan, stage, hog_mib, available)
        turns = Turns(ctx, plan, stage, possible, hog_mib)
        arms = [_arm(ctx, plan, name, device) for name, device in possible.items()]
        await ctx.interleave(
            arms, rounds=plan.rounds, run=turns.run, recover=turns.recover, deadline=began + plan.seconds
        )


def _clock() -> str:
    """For the guest's command line: how fast its TSC counts, which is as fast as this host's.

    A guest under TCG finds that out by counting ticks, and on a busy host is wrong by a factor of several.
    """
    seen = ExitRig(bytes(PAGE_SIZE)).calibration()
    return f"tsc_early_khz={round(seen['hz'] / 1000)}" if seen["invariant"] else ""


def _impossible(device: Device, kernel: str) -> str:
    """Why a kernel cannot have the arm; empty if it can."""
    return routes.missing(device.route, kernel) if device.route and device.by_module else ""


def _unbuilt(device: Device, kernel: str) -> str:
    """What the arm needs that is not built yet; empty if nothing."""
    try:
        if device.by_module:
            routes.image_of(kernel)
        if device.route and device.route.channel in ("vhost-user-tmem", "virtio-tmem"):
            patched_qemu()
    except NotFound as error:
        return str(error)
    return ""


def _arm(ctx: BenchContext, plan: Plan, name: str, device: Device) -> Arm:
    # What a virtual machine takes for its disk may be anything.
    virtual = ctx.results.properties.host.get("virtualised") is not False
    kind = "" if virtual or device.serial != DIRECT else disk_kind(plan.disk_dir)
    return arm_of(name, device, kernel=plan.kernel, contents=plan.contents, disk_kind=kind)


async def _available(stage: Stage) -> dict[str, int]:
    """Bytes that each guest has to give, just booted."""
    found = {}
    for guest in stage.running():
        await stage.play(guest)
        found[guest] = int((await stage.vm.agent.meminfo())["meminfo"]["MemAvailable"])
    return found


async def _pages(ctx: BenchContext, plan: Plan) -> bytes | None:
    """The pages for the corpus disk; None when the hog makes them up itself."""
    if plan.contents.partition(":")[0] in _HOG_PATTERNS:
        return None
    pages = await corpus.contents(
        plan.contents, plan.corpus_pages, seed=ctx.seed, series=plan.kernel, progress=ctx.view.note
    )
    ctx.configure(**corpus.facts(pages).properties())
    return pages


async def _describe(ctx: BenchContext, plan: Plan, stage: Stage, hog_mib: int, available: dict[str, int]) -> None:
    """Properties, notes, and the harness's own cost."""
    vm = stage.vm
    hello = await vm.agent.hello()
    ctx.guest(
        kernel=plan.kernel,
        kernel_release=hello["kernel"],
        memory_mib=plan.memory_mib,
        usable_bytes=hello["mem_total_bytes"],
        available_bytes=next(iter(available.values())),
        available_bytes_by_guest={**available},
        guests=len(available),
        qemu=vm.spec.qemu_path,
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
        disk_folder_filesystem=stage.host.disk_filesystem or "unused",
    )
    cost = await stage.watch_cost()
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
