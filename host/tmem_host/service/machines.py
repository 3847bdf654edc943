# SPDX-License-Identifier: Apache-2.0
"""Guests that the agent itself runs, by the direct driver, on VMs that were made with a machine.

::

    stopped -> starting -> running -> stopping -> stopped
                   └──────────┴─────> failed          (may be started again)

Such a guest is the agent's child and ends with it: asked to power off when the agent stops, at once when it is killed.
It is for trying, for tests and benches, and for VMs that come and go with the agent; a VM that is to outlive the agent
has a monitor of somebody else's (libvirt's, say), which connects again.  Nothing is started by itself after a restart.

A guest that starts knows nothing of what its device holds: those pages were of one whose memory is gone, and are
flushed.  Whatever waits for a guest runs in the agent's loop; calls return at once and the state says how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tmem_host.config import check_socket_path
from tmem_host.errors import Conflict, InvalidInput, NotFound, TmemError, VmFailed
from tmem_host.first_of import first_of
from tmem_host.models import MachineInfo, MachineSpec, VmInfo
from tmem_host.service.pools import Pools
from tmem_host.state import VmEntry

if TYPE_CHECKING:
    from tmem_host.vm.direct import DirectVm
    from tmem_host.vm.routes import Route

log = logging.getLogger(__name__)

#: Seconds between two looks at whether QEMU still runs.
_WATCH: Final = 0.5
#: Bytes of a console that are told at once.
CONSOLE_MAX: Final = 1 << 20


@dataclass
class _Running:
    """One guest from its start to its end."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Machines:
    """The guests of one service.  All but :meth:`console` in the agent's loop."""

    def __init__(self, service: Pools) -> None:
        self._service = service
        self._running: dict[str, _Running] = {}

    async def start(self, name: str) -> VmInfo:
        """Begins to boot the guest; nothing happens when it starts or runs already.  Raises Conflict, NotFound."""
        entry = self._service.entry(name)
        spec = entry.machine
        if spec is None:
            raise Conflict(f"VM {name} was made without a machine", "its own monitor starts it")
        if name in self._running:
            if self._running[name].stop.is_set():
                raise Conflict(f"the guest of {name} is stopping", "start it when it has stopped")
            return await asyncio.to_thread(self._service.get_vm, name)
        running = self._running[name] = _Running()
        try:
            await asyncio.to_thread(self._prepare, entry)
        except BaseException:
            del self._running[name]
            raise
        self._told(name, MachineInfo(spec=spec, state="starting"))
        running.task = asyncio.create_task(self._run(entry, spec, running), name=f"machine-{name}")
        log.info("VM %s: its guest starts, kernel %s", name, spec.kernel)
        return await asyncio.to_thread(self._service.get_vm, name)

    async def stop(self, name: str) -> VmInfo:
        """Asks the guest to power off, and insists after a while; nothing happens when none runs."""
        self._service.entry(name)
        running = self._running.get(name)
        if running is not None and not running.stop.is_set():
            running.stop.set()
            told = self._service.guests.get(name)
            if told is not None:
                self._told(name, told.model_copy(update={"state": "stopping"}))
            log.info("VM %s: its guest is to stop", name)
        return await asyncio.to_thread(self._service.get_vm, name)

    async def close(self) -> None:
        """Stops all guests, and returns when they have."""
        for running in self._running.values():
            running.stop.set()
        tasks = [running.task for running in self._running.values() if running.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def console(self, name: str, tail: int) -> bytes:
        """The last ``tail`` bytes of what the guest's serial console said since it was started last."""
        entry = self._service.entry(name)
        path = self._folder(entry) / "console.log"
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - min(tail, CONSOLE_MAX)))
                return file.read(CONSOLE_MAX)
        except FileNotFoundError:
            raise NotFound(f"VM {name} has no console log", "only guests that the agent runs have one") from None

    def _folder(self, entry: VmEntry) -> Path:
        return self._service.config.machines / entry.name

    def _told(self, name: str, info: MachineInfo) -> None:
        self._service.guests[name] = info

    def _prepare(self, entry: VmEntry) -> None:
        if any(channel.state in ("connected", "in-step") for channel in self._service.get_vm(entry.name).channels):
            raise Conflict(f"a monitor is connected to VM {entry.name}", "end that guest first")
        if entry.pool is not None:
            self._service.flush_pool(entry.pool, lose_pages=True)

    async def _run(self, entry: VmEntry, spec: MachineSpec, running: _Running) -> None:
        """The guest's whole life.  Whatever goes wrong is told as its state."""
        told = MachineInfo(spec=spec, state="starting")
        try:
            vm = await self._make(entry, spec)
            try:
                async with first_of(self._boot(vm, entry, spec), running.stop.wait()) as booting:
                    if booting.done():
                        await booting
                        told = told.model_copy(
                            update={
                                "state": "running",
                                "accelerator": f"{vm.accelerator.name} ({vm.accelerator.why})",
                                "boot_seconds": vm.boot_seconds,
                            }
                        )
                        if not running.stop.is_set():
                            self._told(entry.name, told)
                        log.info("VM %s: its guest runs, after %.1f s", entry.name, vm.boot_seconds)
                        await self._watch(vm, running)
            finally:
                await vm.stop()
            told = MachineInfo(spec=spec, state="stopped")
            log.info("VM %s: its guest has stopped", entry.name)
        except TmemError as error:
            told = told.model_copy(update={"state": "failed", "reason": str(error)})
            log.error("VM %s: its guest failed: %s", entry.name, error)
        except Exception as error:
            told = told.model_copy(update={"state": "failed", "reason": f"{type(error).__name__}: {error}"})
            log.exception("VM %s: its guest failed", entry.name)
        finally:
            self._running.pop(entry.name, None)
            if told.state in ("stopped", "failed"):
                self._told(entry.name, told)

    async def _make(self, entry: VmEntry, spec: MachineSpec) -> DirectVm:
        from tmem_host.vm.direct import DirectVm
        from tmem_host.vm.images import guest_image
        from tmem_host.vm.routes import image_of
        from tmem_host.vm.spec import VhostUserBlk, VhostUserTmem, VmSpec

        module = spec.source in ("swap-disk", "frontswap")
        image = await asyncio.to_thread(image_of if module else guest_image, spec.kernel)
        sockets = {kind: self._service.config.vm_socket(entry.name, kind) for kind in entry.channels}
        ends: dict[str, Any] = {"agent_port": check_socket_path(self._service.config.vm_socket(entry.name, "agent"))}
        if "blk" in sockets:
            ends["disks"] = (VhostUserBlk(sockets["blk"], queues=entry.queues, serial=entry.name[:20]),)
        if "tmem" in sockets:
            ends["tmem"] = (VhostUserTmem(sockets["tmem"], queues=entry.queues),)
        if "serial" in sockets:
            ends["pages_port"] = sockets["serial"]
        return DirectVm(
            VmSpec(
                name=entry.name,
                kernel=image,
                memory_mib=spec.memory_mib,
                vcpus=spec.vcpus,
                accel=spec.accel,
                workdir=self._folder(entry),
                runtime=self._folder(entry) / "run",
                **ends,
            )
        )

    async def _boot(self, vm: DirectVm, entry: VmEntry, spec: MachineSpec) -> None:
        await vm.start()
        await self._set_up(vm, entry, spec)
        # Who runs a workload in it speaks to it next.
        await vm.let_go()

    async def _set_up(self, vm: DirectVm, entry: VmEntry, spec: MachineSpec) -> None:
        from tmem_host.vm.routes import Options, module_load, swap_on

        if spec.source == "virtio-blk":
            await vm.agent.swap_on(entry.name[:20], require_discard=True)
        elif spec.source != "none":
            route, options = route_of(entry.channels, spec), Options(swap_mib=spec.swap_mib, vcpus=spec.vcpus)
            await module_load(vm, route, options)
            await swap_on(vm, route, options)

    async def _watch(self, vm: DirectVm, running: _Running) -> None:
        """Returns when the guest is to stop.  Raises VmFailed when it ended by itself."""
        from tmem_host.vm.base import VmState

        while not running.stop.is_set():
            if vm.state is not VmState.RUNNING:
                raise VmFailed(f"the guest of {vm.spec.name} ended by itself", f"see {vm.console_log}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.stop.wait(), _WATCH)


def route_of(channels: Collection[str], spec: MachineSpec) -> Route:
    """The way that pages of a machine with a source take."""
    from tmem_host.vm.routes import Route

    assert spec.source != "none"
    if spec.source == "virtio-blk":
        return Route(spec.source, "vhost-user-blk")
    return Route(spec.source, "vhost-user-tmem" if "tmem" in channels else "virtio-serial")


def check_machine(channels: Collection[str], spec: MachineSpec) -> None:
    """Raises InvalidInput for a machine that cannot be, with the reason."""
    from tmem_host.vm.routes import missing

    if spec.source == "none":
        return
    if spec.source == "virtio-blk" and "blk" not in channels:
        raise InvalidInput("the source virtio-blk needs the channel blk", "choose another source, or add that channel")
    if spec.source != "virtio-blk" and not {"tmem", "serial"} & set(channels):
        raise InvalidInput(f"the source {spec.source} needs the channel tmem or serial", "add one of them")
    if why := missing(route_of(channels, spec), spec.kernel):
        raise InvalidInput(f"a guest of kernel {spec.kernel} cannot have the source {spec.source}: {why}", "")
