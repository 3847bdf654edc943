# SPDX-License-Identifier: Apache-2.0
"""A guest that runs out of memory and swaps to the store: one run, checked page by page, measured at the host.

``tmem hog`` and the integration tests are this.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tmem_host.agent_process import AgentProcess
from tmem_host.client import AgentClient, temporary_vm
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.errors import Unavailable
from tmem_host.models import Codec, StoreInfo, VmCreate
from tmem_host.vm.base import Vm
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.guest_results import HogResult, HogsProgress, Progress
from tmem_host.vm.images import guest_image
from tmem_host.vm.spec import AccelName, VhostUserBlk, VmSpec

#: MiB of device beyond what the hogs write: the kernel leaves some slots unused.
DEVICE_SPARE_MIB: Final = 64
#: Seconds between two looks at what the host holds.
SAMPLE_INTERVAL: Final = 0.25
#: Seconds that the store gets to give memory back after swapoff.
SETTLE_DEADLINE: Final = 20.0
#: How far from its start the memory held may be after swapoff, as a share of the start.
SETTLED: Final = 0.05

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class HogPlan:
    """What to run.  ``factor`` x ``memory_mib`` is what all ``hogs`` together write and verify."""

    kernel: str = "6.1"
    vcpus: int = 1
    codec: Codec = "lz4"
    memory_mib: int = 128
    factor: float = 2.5
    hogs: int = 1
    #: How often the agent is killed with SIGKILL and started again meanwhile.
    kills: int = 0
    poll_us: int = 0
    cap: int | None = None
    pattern: str = "synthetic:50"
    seed: int = 1
    accel: AccelName = "auto"
    #: Where libvirtd answers, which then starts the guest; None: QEMU as a child of this process.
    libvirt: str | None = None
    #: Seconds for one hog, all its phases.
    deadline: float = 900.0

    @property
    def hog_mib(self) -> int:
        """MiB of one hog."""
        return max(1, round(self.memory_mib * self.factor / self.hogs))

    @property
    def device_bytes(self) -> int:
        return (self.hog_mib * self.hogs + DEVICE_SPARE_MIB) * MIB


@dataclass(frozen=True)
class HogReport:
    """What came of it.  Bytes are of host memory, the store's own count."""

    plan: HogPlan
    #: The guest kernel's release, and what it ran under with the reason.
    kernel: str
    accelerator: str
    pages: int
    bad: int
    seconds: float
    kills: int
    #: Held by the whole store with swap on and nothing swapped; at the most; after swapoff.
    held_start: int
    held_peak: int
    held_end: int
    #: Of the VM, when it held the most: pages, and bytes of their slots.
    pages_peak: int
    vm_held_peak: int
    swapoff_seconds: float
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Bytes of guest pages for each byte of host memory, when the most was held."""
        return self.pages_peak * PAGE_SIZE / self.vm_held_peak if self.vm_held_peak else 0.0

    @property
    def returned(self) -> bool:
        """Memory held went back to within 5 % of the start."""
        return self.held_end <= self.held_start * (1 + SETTLED)


def _vm(plan: HogPlan, spec: VmSpec) -> Vm:
    if plan.libvirt is None:
        return DirectVm(spec)
    from tmem_host.vm.libvirt_vm import LibvirtVm

    return LibvirtVm(spec, uri=plan.libvirt)


@contextlib.asynccontextmanager
async def guest(
    plan: HogPlan, client: AgentClient, name: str, workdir: Path | None = None, evidence: Path | None = None
) -> AsyncIterator[Vm]:
    """A VM of the agent and the guest on it, both gone when the block ends.  Logs go to ``evidence`` when it fails."""
    wanted = VmCreate(
        name=name,
        size_bytes=plan.device_bytes,
        codec=plan.codec,
        queues=plan.vcpus,
        poll_us=plan.poll_us,
        cap=plan.cap,
    )
    image = guest_image(plan.kernel)
    async with temporary_vm(client, wanted) as made:
        spec = VmSpec(
            name=name,
            kernel=image,
            memory_mib=plan.memory_mib,
            vcpus=plan.vcpus,
            disks=(VhostUserBlk(Path(made.socket), queues=plan.vcpus, serial=name),),
            accel=plan.accel,
            workdir=workdir,
        )
        async with _vm(plan, spec) as vm:
            try:
                yield vm
            except BaseException:
                if evidence is not None:
                    vm.save_evidence(evidence)
                raise


async def run_hog(
    plan: HogPlan,
    agent: AgentProcess,
    name: str = "hog",
    *,
    report: Report | None = None,
    workdir: Path | None = None,
    evidence: Path | None = None,
) -> HogReport:
    """Boots a guest on ``agent``, fills its memory ``factor`` times, verifies every page, ends its swap.

    Raises :class:`tmem_host.errors.VmFailed` when the hog does not finish; bad pages are a result.  ``report`` gets
    what is going on and how far it is, 0 to 1.
    """
    client = agent.client
    say = report or (lambda _what, _fraction: None)
    say("booting the guest", 0.0)
    async with guest(plan, client, name, workdir, evidence) as vm:
        await vm.agent.swap_on(name, require_discard=True)
        start = await asyncio.to_thread(client.store)
        run = HogRun(plan, agent, name, say)
        began = time.monotonic()
        # One that is killed on purpose comes back.
        results = await (run.hogs(vm) if plan.kills else agent.beside(run.hogs(vm)))
        seconds = time.monotonic() - began
        say("swapoff", 1.0)
        off = await vm.agent.swap_off(name)
        end = await _settled(client, start.held_bytes)
        info = await asyncio.to_thread(client.get_vm, name)
        hello = await vm.agent.hello()
        return HogReport(
            plan=plan,
            kernel=str(hello.get("kernel", vm.spec.kernel.version)),
            accelerator=f"{vm.accelerator.name} ({vm.accelerator.why})",
            pages=sum(result.pages for result in results),
            bad=sum(result.bad for result in results),
            seconds=seconds,
            kills=run.killed,
            held_start=start.held_bytes,
            held_peak=run.held_peak,
            held_end=end.held_bytes,
            pages_peak=run.pages_peak,
            vm_held_peak=run.vm_held_peak,
            swapoff_seconds=float(off["seconds"]),
            counters=info.counters,
        )


class HogRun:
    """The hogs of one guest, the killing of the agent meanwhile, and what the host held at the most."""

    def __init__(self, plan: HogPlan, agent: AgentProcess, name: str, say: Report) -> None:
        self._plan = plan
        self._agent = agent
        self._name = name
        self._say = say
        self._progress = HogsProgress(plan.hogs)
        self._moved = asyncio.Event()
        self.killed = 0
        self.held_peak = self.pages_peak = self.vm_held_peak = 0

    async def hogs(self, vm: Vm) -> list[HogResult]:
        hogs = [asyncio.ensure_future(self._hog(vm, number)) for number in range(self._plan.hogs)]
        kill, sample = asyncio.ensure_future(self._kill()), asyncio.ensure_future(self._sample())
        running = asyncio.gather(*hogs)
        tasks: set[asyncio.Future[Any]] = {running, kill, sample}
        try:
            # What goes wrong beside the hogs surfaces at once, and not as a hog that waits for its agent.
            while not running.done():
                ended, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in ended - {running}:
                    task.result()
            return await running
        finally:
            for task in (*hogs, kill, sample):
                task.cancel()
            await asyncio.gather(running, *hogs, kill, sample, return_exceptions=True)

    async def _hog(self, vm: Vm, number: int) -> HogResult:
        return await vm.agent.hog(
            self._plan.hog_mib,
            pattern=self._plan.pattern,
            seed=self._plan.seed + number,
            progress=lambda progress: self._on_progress(number, progress),
            timeout=self._plan.deadline,
        )

    def _on_progress(self, number: int, progress: Progress) -> None:
        self._progress.take(number, progress)
        self._moved.set()
        self._say(f"{progress.phase}, {progress.bad} bad pages", self._progress.fraction)

    async def _kill(self) -> None:
        """Kills the agent evenly over the run, and starts it again."""
        for number in range(self._plan.kills):
            while self._progress.fraction < (number + 1) / (self._plan.kills + 1):
                self._moved.clear()
                await self._moved.wait()
            again = asyncio.ensure_future(asyncio.to_thread(self._kill_and_start))
            try:
                await asyncio.shield(again)
            except asyncio.CancelledError:
                # The hogs are over meanwhile; what comes after needs the agent.
                await again
                raise
            self._say(f"agent killed and started again, {self.killed} times", self._progress.fraction)

    def _kill_and_start(self) -> None:
        self._agent.kill()
        # Counted when it is dead: on a busy host the hogs may be over before it is up again.
        self.killed += 1
        self._agent.start()

    async def _sample(self) -> None:
        while True:
            with contextlib.suppress(Unavailable):  # it may just have been killed
                store = await asyncio.to_thread(self._agent.client.store)
                vm = await asyncio.to_thread(self._agent.client.get_vm, self._name)
                self.held_peak = max(self.held_peak, store.held_bytes)
                if vm.held_bytes > self.vm_held_peak:
                    self.vm_held_peak, self.pages_peak = vm.held_bytes, vm.pages
            await asyncio.sleep(SAMPLE_INTERVAL)


async def _settled(client: AgentClient, start: int) -> StoreInfo:
    """The store's figures when it holds no more than at the start, or when it has had its time."""
    until = time.monotonic() + SETTLE_DEADLINE
    while True:
        info = await asyncio.to_thread(client.store)
        if info.held_bytes <= start * (1 + SETTLED) or time.monotonic() > until:
            return info
        await asyncio.sleep(SAMPLE_INTERVAL)
