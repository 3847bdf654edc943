# SPDX-License-Identifier: Apache-2.0
"""One arm's turn of the swap bench after the other, and the figures that it leaves.

Metrics, by arm, one sample a round unless said: `run_time` (s, by phase); `fault_latency` (ns, samples of accesses that
waited for a page); `page_out`, `page_in` (ns a page beyond the same accesses in memory); `pages_out`, `pages_in`,
`major_faults` as the guest's kernel counts them; `swap_rate`; `module_puts`, `module_gets` (pages, as tmem.ko counts
them: frontswap's are in no counter of the kernel); `host_cpu` (s, by process), `host_cpu_share`, `agent_cpu_per_page`;
`held`, `held_before`, `held_after_swapoff`, `compression_ratio`, `held_over_compressed`; `swapoff`; `bad_pages`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tmem_host.bench.harness import HARNESS
from tmem_host.bench.runner import Arm, ArmSkipped, BenchAborted, BenchContext, BenchError
from tmem_host.bench.swap_arms import CORPUS, ZRAM, Device
from tmem_host.bench.swap_figures import (
    Held,
    InMemory,
    compression,
    cost_in,
    cost_out,
    fullest,
    overhead,
    totals,
)
from tmem_host.bench.swap_host import place_of
from tmem_host.bench.swap_stage import Stage
from tmem_host.config import PAGE_SIZE
from tmem_host.errors import TmemError
from tmem_host.vm import routes
from tmem_host.vm.guest_client import GuestError, GuestRefused
from tmem_host.vm.guest_results import PHASES, HogResult, Progress
from tmem_host.vm.routes import Options, Route

if TYPE_CHECKING:
    from tmem_host.bench.swap_bench import Plan

#: A hog of this share of the guest's memory fits: what an access costs when nothing is swapped.
_FITS: Final = 0.2
_IN_MEMORY_REPEATS: Final = 3
#: A guest's clock that is faster than the host's by more than this makes no figures.
_CLOCK_OFF: Final = 1.05

_LITTLE: Final = "zram keeps what it compresses in the guest's own memory: a smaller --factor leaves it room"


class Turns:
    """What `interleave` asks for."""

    def __init__(self, ctx: BenchContext, plan: Plan, stage: Stage, table: dict[str, Device], hog_mib: int) -> None:
        self._hog_mib = hog_mib
        self._ctx = ctx
        self._plan = plan
        self._stage = stage
        self._table = table
        self._memory: dict[tuple[str, bool], InMemory] = {}
        self._memory_round: dict[str, int] = {}
        self._loaded: set[str] = set()
        """Guests whose module stays."""

    async def run(self, arm: Arm, index: int) -> None:
        """Swap on, hog, swap off, figures. Raises BenchError when a page was bad."""
        device = self._table[arm.name]
        if reason := self._stage.host.missing.get(place_of(device)):
            raise BenchError(reason) if device.route else ArmSkipped(reason)
        await self._stage.play(device.guest)
        if self._memory_round.get(device.guest) != index:
            await self._measure_memory(device.guest, index)
        if device.served and device.codec is not None:
            await self._stage.host.set_channel(place_of(device), device.codec, device.poll_us)
        before = await self._stage.held(device) if device.serial != ZRAM else None
        await self._swap_on(device)
        counted = await self._counters(device)
        cpu = self._stage.cpu_seconds()
        start = time.monotonic()
        async with self._stage.watching(device) as seen:
            try:
                result = await self._hog(self._hog_mib, device.verified, arm.name)
            except GuestError as error:
                if device.served and not self._stage.host.agent_alive():
                    raise BenchError(f"the host agent has ended; {error.message}", "see logs/agent.log") from error
                refused = isinstance(error, GuestRefused)
                raise BenchError(error.message, _LITTLE if device.serial == ZRAM and refused else "") from error
        wall = time.monotonic() - start
        used = {name: now - cpu.get(name, 0.0) for name, now in self._stage.cpu_seconds().items()}
        crossed = {name: now - counted[name] for name, now in (await self._counters(device)).items() if name in counted}
        off = await self._swap_off(device)
        after = await self._stage.held(device) if device.serial != ZRAM else None
        if result.bad:
            raise BenchError(f"{result.bad} of {result.pages} pages came back wrong")
        if device.by_module and not (crossed.get("puts_done") and crossed.get("hits")):
            raise BenchError("no page went through tmem.ko: the guest swapped elsewhere")
        self._record_phases(arm, device, result, crossed)
        self._record_cpu(arm, device, used, wall, _moved(result, crossed))
        self._record_held(arm, device, seen, before, after)
        self._ctx.record("swapoff", "s", off, arm=arm, better="lower")
        self._ctx.record("bad_pages", "pages", result.bad, arm=arm, better="lower")

    async def recover(self, arm: Arm, _error: BaseException) -> None:
        """A fresh guest for the arms to come. Raises BenchAborted when there is none to be had."""
        device = self._table[arm.name]
        if place_of(device) in self._stage.host.missing:
            return
        self._loaded.discard(device.guest)
        self._memory_round.pop(device.guest, None)
        try:
            await self._stage.reboot(device.guest)
        except TmemError as error:
            raise BenchAborted(f"the guest could not be started again: {error.message}", error.hint) from error

    async def _measure_memory(self, guest: str, index: int) -> None:
        """What accesses cost in memory, with and without comparing, in this round."""
        size = max(8, round(self._plan.memory_mib * _FITS))
        for verified in sorted({device.verified for device in self._table.values() if device.guest == guest}):
            seen = []
            for repeat in range(1 + _IN_MEMORY_REPEATS):
                result = await self._hog(size, verified, "in memory")
                # The first one warms the guest up: memory never touched before, code never translated before.
                if repeat:
                    try:
                        seen.append(InMemory.of(result))
                    except ValueError as error:
                        raise BenchAborted(str(error), "give the guest more memory with --memory") from error
                    self._ctx.record("clock_cost", "ns", result.clock_ns["median"], arm=HARNESS, where=guest)
            for phase in PHASES:
                values = [one.nanoseconds[phase] for one in seen]
                verify = "on" if verified else "off"
                self._ctx.record("in_memory", "ns", values, arm=HARNESS, phase=phase, verify=verify, where=guest)
            self._memory[guest, verified] = InMemory.middle(seen)
        self._memory_round[guest] = index

    # ---- guest

    async def _hog(self, mib: int, verify: bool, who: str) -> HogResult:
        plan = self._plan

        def progress(at: Progress) -> None:
            self._ctx.progress(f"{who}: {at.phase} {100 * at.done // max(1, at.planned)} %")

        synthetic = CORPUS not in self._stage.host.files
        result = await self._stage.vm.agent.hog(
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
        # Its phases are timed by the guest's clock, the whole by this host's.
        told = sum(phase.seconds for phase in result.phases)
        if told > _CLOCK_OFF * result.seconds:
            raise BenchError(
                f"the guest's clock is wrong: {told:.1f} s passed for it in {result.seconds:.1f} s",
                "run again when the machine is less busy",
            )
        return result

    def _options(self, device: Device) -> Options:
        return Options(self._plan.swap_mib, self._plan.vcpus, synchronous=device.synchronous)

    async def _swap_on(self, device: Device) -> None:
        vm, cluster = self._stage.vm, self._plan.page_cluster
        if device.route:
            if device.guest not in self._loaded:
                await routes.module_load(vm, device.route, self._options(device))
            if _stays(device.route):
                self._loaded.add(device.guest)
            await routes.swap_on(vm, device.route, self._options(device), page_cluster=cluster)
        elif device.serial == ZRAM:
            await vm.agent.zram_setup(self._plan.swap_mib, device.codec or "lz4", page_cluster=cluster)
        else:
            await vm.agent.swap_on(device.serial, page_cluster=cluster)

    async def _swap_off(self, device: Device) -> float:
        """Seconds of the swapoff; the module goes, too, if it can."""
        vm, timeout = self._stage.vm, self._plan.turn_seconds
        if device.route:
            seconds = await routes.swap_off(vm, device.route, timeout=timeout)
            if not _stays(device.route):
                await routes.module_unload(vm, device.route)
            return seconds
        if device.serial == ZRAM:
            return float((await vm.agent.swap_off(device="zram0", timeout=timeout))["seconds"])
        return float((await vm.agent.swap_off(device.serial, timeout=timeout))["seconds"])

    async def _counters(self, device: Device) -> dict[str, int]:
        return await routes.counters(self._stage.vm, device.route) if device.route else {}

    # ---- figures

    def _record_phases(self, arm: Arm, device: Device, result: HogResult, crossed: dict[str, int]) -> None:
        record = self._ctx.record
        memory = self._memory[device.guest, device.verified].nanoseconds
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
            record("run_time", "s", seconds, arm=arm, phase="all", better="lower")
            record("swap_rate", "pages/s", _moved(result, crossed) / seconds, arm=arm, better="higher")
        if crossed:
            record("module_puts", "pages", crossed["puts_done"], arm=arm)
            record("module_gets", "pages", crossed["hits"], arm=arm)

    def _record_cpu(self, arm: Arm, device: Device, used: dict[str, float], wall: float, moved: int) -> None:
        record = self._ctx.record
        # The agent idles in the other arms; what it takes then is the harness's looking.
        mine = {name: s for name, s in used.items() if name == "qemu" or device.served}
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


def _stays(route: Route) -> bool:
    """The kernel does not let go of these sources: swap on and off is all that can be done."""
    return route.source in ("frontswap", "cleancache")


def _moved(result: HogResult, crossed: dict[str, int]) -> int:
    """Pages that went in or out, as the kernel counts them; as the module does, where the kernel does not."""
    counted = sum(t.swapped_in + t.swapped_out for t in totals(result).values())
    return counted or crossed.get("puts_done", 0) + crossed.get("hits", 0)
