# SPDX-License-Identifier: Apache-2.0
"""The host's side of the swap bench: an agent, the other ends of channels, the files of disks, what each holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tmem_host.agent_process import AgentProcess
from tmem_host.bench.disk_folder import cannot_hold
from tmem_host.bench.properties import filesystem_of
from tmem_host.bench.runner import BenchError
from tmem_host.bench.swap_arms import CACHED, CORPUS, DIRECT, MAIN, SERVED, TMEM, Device
from tmem_host.bench.swap_figures import Held
from tmem_host.config import MIB
from tmem_host.errors import TmemError
from tmem_host.models import Codec, VmUpdate
from tmem_host.vm import routes
from tmem_host.vm.routes import Channel, Options, Route

#: A route by which the other end of a channel is made: whose source it is does not matter to the host.
_ENDS: Final[dict[Channel, Route]] = {
    "vhost-user-blk": Route("virtio-blk", "vhost-user-blk"),
    "vhost-user-tmem": Route("swap-disk", "vhost-user-tmem"),
    "virtio-tmem": Route("swap-disk", "virtio-tmem"),
    "virtio-serial": Route("swap-disk", "virtio-serial"),
    "ivshmem": Route("swap-disk", "ivshmem"),
}


def end_name(guest: str, channel: Channel) -> str:
    """What the agent or the device knows the guest by: of the stock disk it is the serial, too."""
    return TMEM if channel == "vhost-user-blk" else f"{guest}-{channel}"


def place_of(device: Device) -> str:
    """Where the device's pages are: a key of `HostSide.missing`."""
    return end_name(device.guest, device.route.channel) if device.route else device.serial


@dataclass
class HostSide:
    """A context manager. `missing` says why a place is not there: its arms cannot run, the others can."""

    devices: Iterable[Device]
    options: Options
    disk_dir: Path
    logs: Path
    corpus: bytes | None
    missing: dict[str, str] = field(default_factory=dict)
    disk_filesystem: str = ""
    files: dict[str, Path] = field(default_factory=dict)
    """The disks' files by serial."""
    fields: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """For each guest what its VM must have, one dict for each channel."""
    agent: AgentProcess | None = None
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _state: Path | None = None
    _shared: Path | None = None

    async def __aenter__(self) -> HostSide:
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self.prepare_files()
            ends = self._ends()
            if ends:
                self._shared = Path(tempfile.mkdtemp(prefix="tmem-bench-", dir="/dev/shm"))
            served = [end for end in ends if end[1] in SERVED]
            if served:
                self._start_agent(len(served))
            for (guest, channel), device in ends.items():
                await self._open_end(guest, channel, device)
        except BaseException:
            await self.close(in_order=False)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(in_order=kind is None)

    # ---- set up

    def prepare_files(self) -> None:
        """Files of the disks, sparse, and the corpus."""
        wanted = {device.serial for device in self.devices} & {DIRECT, CACHED}
        if wanted:
            self.disk_filesystem = filesystem_of(self.disk_dir)
        size = self.options.swap_mib * MIB
        for serial in sorted(wanted):
            if reason := cannot_hold(self.disk_dir, 2 * size, direct=serial == DIRECT):
                self.missing[serial] = reason
                continue
            handle, name = tempfile.mkstemp(prefix=f"tmem-{serial}-", suffix=".img", dir=self.disk_dir)
            os.truncate(handle, size)
            os.close(handle)
            self.files[serial] = Path(name)
        if self.corpus is not None:
            handle, name = tempfile.mkstemp(prefix="tmem-corpus-", suffix=".pages")
            with os.fdopen(handle, "wb") as stream:
                stream.write(self.corpus)
            self.files[CORPUS] = Path(name)

    def _ends(self) -> dict[tuple[str, Channel], Device]:
        """By guest and channel one of the arms that want it. Guests are to be alike in all but the device that carries
        the pages, so where one has a tmem device, all have."""
        found: dict[tuple[str, Channel], Device] = {}
        for device in self.devices:
            if device.route:
                found.setdefault((device.guest, device.route.channel), device)
        guests = {device.guest for device in self.devices}
        if MAIN in guests and len(guests) > 1:
            found.setdefault((MAIN, "vhost-user-tmem"), Device(route=_ENDS["vhost-user-tmem"]))
        return found

    def _start_agent(self, vms: int) -> None:
        """Without it only the arms that it serves are missing."""
        self._state = Path(tempfile.mkdtemp(prefix="tmem-bench-"))
        assert self._shared is not None  # made just before
        # Room for pages that do not compress at all, with index and blocks half full: no arm may be refused a page.
        spare = self.options.swap_mib * MIB // 4
        agent = AgentProcess(self._state, self._shared / "arena", vms * self.options.limit + spare)
        try:
            agent.start()
            self.agent = agent
        except (TmemError, ImportError, OSError) as error:
            for device in self.devices:
                if device.served:
                    self.missing[place_of(device)] = f"the host agent cannot serve: {_line(error)}"
            self._save_agent_log()

    async def _open_end(self, guest: str, channel: Channel, device: Device) -> None:
        name = end_name(guest, channel)
        if name in self.missing:
            return
        how = Options(
            self.options.swap_mib,
            self.options.vcpus,
            device.codec or routes.CODEC,
            doorbell=device.doorbell,
            ioeventfd=device.ioeventfd,
        )
        client = self.agent.client if self.agent else None
        assert self._shared is not None  # there are ends
        try:
            made = await self._stack.enter_async_context(
                routes.host_end(_ENDS[channel], how, name, self._shared, client)
            )
        except (TmemError, ValueError, OSError) as error:
            self.missing[name] = f"{channel} cannot be had: {_line(error)}"
            return
        self.fields.setdefault(guest, []).append(made)

    async def stand_in_memory(self, guest: str) -> dict[str, Any]:
        """An ivshmem device for a guest whose pages go elsewhere: as the others have it."""
        assert self._shared is not None  # there are ends
        end = routes.host_end(_ENDS["ivshmem"], self.options, f"{guest}-stand-in", self._shared, None)
        return await self._stack.enter_async_context(end)

    # ---- agent

    def agent_alive(self) -> bool:
        """Whether the host agent runs and answers."""
        try:
            return self.agent is not None and self.agent.client.health().status == "ok"
        except TmemError:
            return False

    def revive(self) -> None:
        """Starts the agent again if it has gone. Raises VmFailed."""
        if self.agent is not None and not self.agent_alive():
            self.agent.kill()
            self.agent.start()

    async def set_channel(self, name: str, codec: Codec, poll_us: int) -> None:
        """Codec of the pages to come, and how long the channel spins. The pool must be empty: one codec at a time."""
        agent = self._need_agent()
        await asyncio.to_thread(agent.client.update_vm, name, VmUpdate(codec=codec, poll_us=poll_us))

    def _need_agent(self) -> AgentProcess:
        if self.agent is None:
            raise BenchError("the host agent does not run", "")
        return self.agent

    # ---- what is held

    async def held(self, device: Device) -> Held | None:
        """What the device's pages occupy now, as far as this process can see it; None where it cannot."""
        if device.served:
            info = await asyncio.to_thread(self._need_agent().client.get_vm, place_of(device))
            return Held(info.pages, info.compressed_bytes, info.held_bytes)
        file = self.files.get(device.serial)
        if device.route and device.route.channel == "ivshmem" and self._shared is not None:
            file = self._shared / f"{place_of(device)}.shared"
        return Held(0, 0, file.stat().st_blocks * 512) if file else None

    # ---- end

    async def close(self, *, in_order: bool) -> None:
        """Ends everything, also what did not begin."""
        try:
            with contextlib.suppress(TmemError):
                await self._stack.aclose()
        finally:
            self._stop_agent(in_order)
            for file in self.files.values():
                file.unlink(missing_ok=True)
            for folder in (self._state, self._shared):
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)

    def _stop_agent(self, in_order: bool) -> None:
        agent, self.agent = self.agent, None
        if agent is None:
            return
        try:
            agent.stop() if in_order else agent.kill()
        finally:
            self._save_agent_log()

    def _save_agent_log(self) -> None:
        if self._state is not None and (self._state / "agent.log").is_file():
            shutil.copy(self._state / "agent.log", self.logs / "agent.log")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
