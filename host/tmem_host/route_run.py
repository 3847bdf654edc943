# SPDX-License-Identifier: Apache-2.0
"""Runs the memory hog through routes, in one guest for each kernel, route and number of vCPUs: ``tmem routes``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path

from tmem_host.agent_process import AgentProcess
from tmem_host.client import AgentClient
from tmem_host.config import PAGE_SIZE
from tmem_host.errors import TmemError, VmFailed
from tmem_host.route_plan import Cell, Outcome, RoutePlan, faults
from tmem_host.vm import routes
from tmem_host.vm.console import complaints
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.guest_results import HogResult, HogsProgress, Progress
from tmem_host.vm.images import KernelImage
from tmem_host.vm.spec import VmSpec

#: What is going on, and how far all runs are: 0 to 1.
Report = Callable[[str, float], None]
_NAME = "routes"
_SECTOR = 512
#: Files are dropped in so many parts, each of fewer pages than cleancache lets wait.
_PARTS = 24
#: Counters of cleancache's puts that came to nothing.
_NOT_PUT = ("dropped", "no_room", "over_cap", "frozen", "refused", "channel_errors")


async def run_cells(
    plan: RoutePlan, cells: Sequence[Cell], agent: AgentProcess, *, report: Report, evidence: Path | None = None
) -> AsyncIterator[Outcome]:
    """Runs them one after the other; a run that fails is an outcome, and the next one gets a new guest.

    ``agent``: one that runs and has room for two swap devices of the plan; a run in which it ends has failed.
    ``evidence``: a folder for the logs of guests in which something failed.
    """
    # Looked up once: what is built while this runs must not be mixed in.
    images = {kernel: await asyncio.to_thread(routes.image_of, kernel) for kernel in {cell.kernel for cell in cells}}
    done = 0
    with tempfile.TemporaryDirectory(prefix="tmem-routes-", dir="/dev/shm") as folder:
        guests = itertools.groupby(cells, lambda cell: (cell.kernel, cell.route, cell.vcpus))
        for (kernel, route, vcpus), group in guests:
            waiting = list(group)
            while waiting:
                try:
                    async with _guest(plan, images[kernel], route, vcpus, agent.client, Path(folder), evidence) as vm:
                        while waiting:
                            share = done / len(cells)
                            report(f"{waiting[0]}: swap on", share)
                            far = _scaled(report, share, 1 / len(cells))
                            outcome = await agent.beside(_run(plan, waiting[0], vm, report=far))
                            waiting.pop(0)
                            done += 1
                            yield outcome
                except TmemError as error:
                    if not waiting:
                        raise  # it could not be taken down
                    # Either the guest did not come up, or the run at the head failed in it.
                    done += 1
                    yield Outcome(waiting.pop(0), "failed", str(error))
    report("done", 1.0)


def _scaled(report: Report, start: float, share: float) -> Report:
    return lambda what, fraction: report(what, start + share * fraction)


@contextlib.asynccontextmanager
async def _guest(
    plan: RoutePlan,
    image: KernelImage,
    route: routes.Route,
    vcpus: int,
    client: AgentClient,
    folder: Path,
    evidence: Path | None,
) -> AsyncIterator[DirectVm]:
    """A guest with the route's module loaded, gone with its host end when the block ends."""
    options = plan.options(vcpus)
    async with routes.host_end(route, options, _NAME, folder, client) as fields:
        spec = VmSpec(_NAME, image, plan.memory_mib, vcpus, accel=plan.accel, **fields)
        async with DirectVm(spec) as vm:
            try:
                await routes.module_load(vm, route, options)
                yield vm
            except BaseException:
                if evidence is not None:
                    vm.save_evidence(evidence / f"{image.series}-{route.source}-{route.channel}-{vcpus}")
                raise


async def _run(plan: RoutePlan, cell: Cell, vm: DirectVm, *, report: Report) -> Outcome:
    """One run in a guest that has the route. Raises TmemError when it does not come to its end."""
    route = cell.route
    await routes.swap_on(vm, route, plan.options(cell.vcpus), page_cluster=0)
    before = await _counted(vm, route)
    began = time.monotonic()
    results = await _hogs(plan, cell, vm, report)
    seconds = time.monotonic() - began
    after = await _counted(vm, route)
    moved = {name: after[name] - before.get(name, 0) for name in after}
    if route.source == "cleancache":
        moved |= await _files(plan, cell, vm)
    await routes.swap_off(vm, route, timeout=plan.deadline)
    out, back = _moved(route, moved)
    outcome = Outcome(
        cell,
        "ran",
        accelerator=vm.accelerator.name,
        pages=sum(result.pages for result in results),
        bad=sum(result.bad for result in results),
        out=out,
        back=back,
        seconds=seconds,
        evidence=moved,
    )
    said = await asyncio.to_thread(vm.console_log.read_text, errors="replace")
    if found := [*faults(outcome), *(f"the guest's kernel said: {line}" for line in complaints(said)[:1])]:
        outcome.state, outcome.reason = "failed", "; ".join(found)
    return outcome


async def _hogs(plan: RoutePlan, cell: Cell, vm: DirectVm, report: Report) -> list[HogResult]:
    far = HogsProgress(cell.hogs)

    def progress(number: int, at: Progress) -> None:
        far.take(number, at)
        report(f"{cell}: {at.phase}, {at.bad} bad pages", far.fraction)

    def hog(number: int) -> Coroutine[None, None, HogResult]:
        return vm.agent.hog(
            plan.hog_mib(cell.hogs),
            seed=plan.seed + number,
            progress=lambda at: progress(number, at),
            timeout=plan.deadline,
        )

    tasks = [asyncio.ensure_future(hog(number)) for number in range(cell.hogs)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _counted(vm: DirectVm, route: routes.Route) -> dict[str, int]:
    """Counters that show which way pages went: of the kernel, of its frontswap, of the module."""
    vmstat = await vm.agent.vmstat()
    found = {"pswpout": vmstat["pswpout"], "pswpin": vmstat["pswpin"], **await routes.counters(vm, _swapping(route))}
    if route.source == "frontswap":
        for name in ("succ_stores", "failed_stores", "loads"):
            found[f"frontswap_{name}"] = int(await vm.agent.debugfs_read(f"frontswap/{name}"))
    return found


def _swapping(route: routes.Route) -> routes.Route:
    """The route of the pages that are swapped: cleancache has a swap disk beside it."""
    return routes.Route("swap-disk", route.channel) if route.source == "cleancache" else route


def _moved(route: routes.Route, moved: dict[str, int]) -> tuple[int, int]:
    """Pages that went out and came back. The kernel counts those that go to a block device, the stock driver's too."""
    if route.source == "frontswap":
        return moved["frontswap_succ_stores"], moved["frontswap_loads"]
    if route.source == "virtio-blk":
        return moved["pswpout"], moved["pswpin"]
    return moved["puts"], moved["hits"]


async def _files(plan: RoutePlan, cell: Cell, vm: DirectVm) -> dict[str, int]:
    """Every file of the root disk is read, dropped by the kernel, and read again: from where?"""
    before = await routes.counters(vm, cell.route)
    wanted = await vm.agent.files_read(timeout=plan.deadline)
    for part in range(_PARTS):
        await vm.agent.files_read(part=part, parts=_PARTS, evict=True, timeout=plan.deadline)
        await _drained(plan, cell, vm)
    dropped = await routes.counters(vm, cell.route)
    again = await vm.agent.files_read(timeout=plan.deadline)
    after = await routes.counters(vm, cell.route)
    return {
        "files_pages": again["bytes"] // PAGE_SIZE,
        "files_put": dropped["puts_done"] - before["puts_done"],
        "files_not_put": dropped["dropped"] - before["dropped"],
        "files_from_host": after["hits"] - dropped["hits"],
        "files_from_disk": again["sectors"] * _SECTOR // PAGE_SIZE,
        "files_wrong": int((wanted["bytes"], wanted["crc"]) != (again["bytes"], again["crc"])),
    }


async def _drained(plan: RoutePlan, cell: Cell, vm: DirectVm) -> None:
    """Returns when no put waits in the guest any more: cleancache drops what does not find room to wait."""
    until = time.monotonic() + plan.deadline
    while time.monotonic() < until:
        found = await routes.counters(vm, cell.route)
        if found["puts"] <= found["puts_done"] + sum(found[name] for name in _NOT_PUT):
            return
        await asyncio.sleep(0.02)
    raise VmFailed(f"{cell}: puts of file pages still wait after {plan.deadline:.0f} s", "see the guest's console")
