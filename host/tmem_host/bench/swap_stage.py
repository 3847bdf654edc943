# SPDX-License-Identifier: Apache-2.0
"""What the swap bench plays on: guests that are alike in all but the device that carries their pages.

The stock disks, zram and every channel that a guest can have beside others are devices of one guest, `main`, which
loads tmem.ko for a turn and unloads it after. The module drives the first virtio device of its kind, so each way of
virtio-tmem has a guest of its own; so has each frontswap, which never lets go, and the null device, which would lose
the module. Those guests have stand-ins for the devices of `main` that they cannot share: disks cost a guest memory, and
interrupts. All are booted at the start, and those that wait are stopped by their monitor: they use no CPU, and their
clock stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from qemu.qmp import QMPError

from tmem_host.bench.runner import BenchError
from tmem_host.bench.swap_arms import CACHED, CORPUS, DIRECT, MAIN, NULL, TMEM, ZRAM, Device
from tmem_host.bench.swap_figures import Held
from tmem_host.bench.swap_host import HostSide, place_of
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.errors import TmemError, VmFailed
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.images import KernelImage
from tmem_host.vm.qemubuild.build import patched_qemu
from tmem_host.vm.routes import Options
from tmem_host.vm.spec import STOCK_QEMU, AccelName, Cache, Disk, FileDisk, NullDisk, VhostUserBlk, VmSpec

_WATCH_SECONDS: Final = 0.5
#: Requests of each disk: a kernel keeps memory ready for them, so they are as many for all.
_QUEUE: Final = VhostUserBlk.queue_size


@dataclass(frozen=True)
class StageSpec:
    """What to set up."""

    image: KernelImage
    """With tmem.ko in it, if an arm needs that."""
    memory_mib: int
    vcpus: int
    swap_mib: int
    accel: AccelName
    disk_dir: Path
    logs: Path
    """Where console and agent logs stay."""
    corpus: bytes | None
    """Pages that the hog fills its area with; None: it makes them up itself."""
    devices: Mapping[str, Device]
    """By arm."""
    append: str = ""
    """Added to the guest kernel's command line."""


@dataclass
class Stage:
    """A context manager; guests are there inside it. `host.missing` says why a place for pages is not."""

    spec: StageSpec
    boots: int = 0
    _guests: dict[str, DirectVm] = field(default_factory=dict)
    _playing: str = ""
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    def __post_init__(self) -> None:
        spec = self.spec
        options = Options(spec.swap_mib, spec.vcpus)
        self.host = HostSide(tuple(spec.devices.values()), options, spec.disk_dir, spec.logs, spec.corpus)

    async def __aenter__(self) -> Stage:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.host)
            stack.push_async_exit(self._end)
            for guest in self.names():
                await self._first_boot(guest)
            await self.play(self.names()[0])
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def names(self) -> list[str]:
        """The guests, `main` first."""
        found = dict.fromkeys(device.guest for device in self.spec.devices.values())
        return sorted(found, key=lambda name: name != MAIN)

    # ---- guests

    def running(self) -> list[str]:
        """Those that could be booted, the one whose turn it is first."""
        return sorted(self._guests, key=lambda name: name != self._playing)

    @property
    def vm(self) -> DirectVm:
        """The guest whose turn it is."""
        vm = self._guests.get(self._playing)
        if vm is None:
            raise BenchError("the guest is not running", "")
        return vm

    async def play(self, guest: str) -> None:
        """Gives the turn to a guest; the one that had it waits. Raises VmFailed."""
        if guest == self._playing:
            return
        if (before := self._guests.get(self._playing)) is not None:
            await _monitor(before, "stop")
        self._playing = guest
        if (now := self._guests.get(guest)) is not None:
            await _monitor(now, "cont")

    async def _first_boot(self, guest: str) -> None:
        """Boots a guest and lets it wait. Where one of several cannot be had, only its arms are missing."""
        try:
            await self._boot(guest)
        except TmemError as error:
            if guest == MAIN:
                raise
            for device in self.spec.devices.values():
                if device.guest == guest:
                    self.host.missing.setdefault(place_of(device), f"its guest does not start: {error}")
            return
        await _monitor(self._guests[guest], "stop")

    async def _boot(self, guest: str) -> None:
        fields = await self._fields(guest)
        self.boots += 1
        vm = DirectVm(
            VmSpec(
                # The agent's disk has the name of its VM as its serial.
                TMEM if guest == MAIN else f"swap-{guest}",
                self.spec.image,
                memory_mib=self.spec.memory_mib,
                vcpus=self.spec.vcpus,
                accel=self.spec.accel,
                workdir=self.spec.logs / f"boot-{self.boots}-{guest}",
                append=self.spec.append,
                **fields,
            )
        )
        await vm.start()
        self._guests[guest] = vm

    async def _fields(self, guest: str) -> dict[str, Any]:
        """Its devices: those that its pages go to, and for the rest what `main` has, or a stand-in."""
        size = self.spec.swap_mib * MIB
        own = merged(self.host.fields.get(guest, []))
        main = merged(self.host.fields.get(MAIN, []))
        files = self.host.files
        disks: list[Disk] = list(own["disks"])
        caches: dict[str, Cache] = {DIRECT: "none", CACHED: "writeback"}
        for serial, cache in caches.items():
            if serial in files and guest == MAIN:
                disks.append(FileDisk(files[serial], serial, cache=cache, size=size, queue_size=_QUEUE))
        if guest != MAIN:
            alike = len(main["disks"]) + len({DIRECT, CACHED} & files.keys())
            disks += [NullDisk(size, f"stand-in-{i}", queue_size=_QUEUE) for i in range(alike)]
            if main["extra_args"] and not own["extra_args"]:
                own["extra_args"] = (await self.host.stand_in_memory(f"{guest}-{self.boots}"))["extra_args"]
            own["pages_port"] = own["pages_port"] or bool(main["pages_port"])
        if CORPUS in files:
            disks.append(FileDisk(files[CORPUS], CORPUS, read_only=True, queue_size=_QUEUE))
        disks.append(NullDisk(size, NULL, queue_size=_QUEUE))
        # One QEMU for all.
        patched = any(field.get("tmem") for fields in self.host.fields.values() for field in fields)
        return {**own, "disks": tuple(disks), "qemu_path": str(patched_qemu()) if patched else STOCK_QEMU}

    async def reboot(self, guest: str) -> None:
        """A fresh guest, and a fresh agent if it has gone: after an arm that left either in a state nobody knows."""
        vm = self._guests.pop(guest, None)
        if vm is not None:
            await vm.kill()
        if self._playing == guest:
            self._playing = ""
        self.host.revive()
        await self._boot(guest)
        await _monitor(self._guests[guest], "stop")
        await self.play(guest)

    async def _end(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends all guests, in good order if nothing has gone wrong."""
        try:
            if kind is None:
                for guest, vm in self._guests.items():
                    # It must run to power off.
                    if guest != self._playing:
                        await _monitor(vm, "cont")
                    await vm.stop()
        finally:
            for vm in self._guests.values():
                await vm.kill()
            self._guests.clear()

    # ---- what is held

    async def held(self, device: Device) -> Held | None:
        """What the device's pages occupy now; None where nothing is counted (null)."""
        if device.serial == ZRAM:
            seen = await self.vm.agent.request("zram_stat")
            return Held(seen["orig_data_size"] // PAGE_SIZE, seen["compr_data_size"], seen["mem_used_total"])
        if device.route and device.route.channel == "virtio-tmem":
            [told] = await _monitor(self._guests[device.guest], "query-tmem")
            return Held(told["pages"], told["compressed"], told["held"])
        return await self.host.held(device)

    @contextlib.asynccontextmanager
    async def watching(self, device: Device) -> AsyncIterator[list[Held]]:
        """Looks at what the device holds twice a second while the body runs."""
        seen: list[Held] = []

        async def watch() -> None:
            while (now := await self.held(device)) is not None:
                seen.append(now)
                await asyncio.sleep(_WATCH_SECONDS)

        task = asyncio.create_task(watch())
        try:
            yield seen
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, TmemError):
                await task

    # ---- processor time

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time used so far by the QEMU whose turn it is (the guest included) and by the agent."""
        found = {"qemu": cpu_of(self.vm.pid)}
        if self.host.agent is not None:
            found["agent"] = cpu_of(self.host.agent.pid)
        return found

    async def watch_cost(self, looks: int = 40) -> float | None:
        """Seconds of agent CPU that one look at what it holds costs: the harness's share of the agent's CPU time."""
        served = [d for d in self.spec.devices.values() if d.served and place_of(d) not in self.host.missing]
        if self.host.agent is None or not served:
            return None
        before = cpu_of(self.host.agent.pid)
        for _ in range(looks):
            await self.held(served[0])
        return (cpu_of(self.host.agent.pid) - before) / looks


def merged(fields: list[dict[str, Any]]) -> dict[str, Any]:
    """What several channels want of one VM."""
    return {
        "disks": tuple(disk for one in fields for disk in one.get("disks", ())),
        "tmem": tuple(device for one in fields for device in one.get("tmem", ())),
        "extra_args": tuple(word for one in fields for word in one.get("extra_args", ())),
        "pages_port": next((one["pages_port"] for one in fields if "pages_port" in one), False),
    }


async def _monitor(vm: DirectVm, command: str) -> Any:
    """Has QEMU's monitor do something. Raises VmFailed."""
    try:
        return await vm.qmp.execute(command)
    except QMPError as error:
        raise VmFailed(f"{vm.spec.name}: QEMU does not {command}: {error}") from error


def cpu_of(pid: int) -> float:
    """Seconds of CPU time, user and system, that a process has used: 0 when it has gone (proc(5): utime, stime)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    # The name in brackets may hold spaces and brackets itself: fields are counted from its end.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
