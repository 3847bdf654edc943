# SPDX-License-Identifier: Apache-2.0
"""The libvirt driver: a guest of ours as a transient domain, which ends with our connection.

libvirtd may be restarted under it: the domain goes on, and the driver finds it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from tmem_host.errors import Conflict, NotFound, TmemError, VmFailed
from tmem_host.first_of import first_of
from tmem_host.vm import process, qemu
from tmem_host.vm.accel import find_accelerator
from tmem_host.vm.base import BOOT_DEADLINE, START_DEADLINE, STOP_DEADLINE, Vm, VmState
from tmem_host.vm.direct import check_host
from tmem_host.vm.guest_client import GuestError
from tmem_host.vm.libvirt_link import SYSTEM, Lifecycle, Link, library
from tmem_host.vm.libvirt_rights import check_qemu_user
from tmem_host.vm.libvirt_xml import domain_xml
from tmem_host.vm.spec import VmSpec

#: Seconds between two questions whether the socket of a port listens; there is no event for that.
_SOON: Final = 0.02


class LibvirtVm(Vm):
    """One domain at ``uri``. It does not outlive this process, as libvirtd destroys it when the connection closes."""

    EVIDENCE = ("console.log", "domain.xml")

    def __init__(self, spec: VmSpec, *, uri: str = SYSTEM, boot_deadline: float = BOOT_DEADLINE) -> None:
        super().__init__(spec, logging.getLogger(f"{__name__}.{spec.name}"), boot_deadline)
        self._link = Link(uri)
        self._ended = asyncio.Event()
        self._unwatch: Callable[[], None] | None = None
        self._looking: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> VmState:
        if self._state is VmState.RUNNING and self._ended.is_set():
            self._state = VmState.FAILED
        return self._state

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._check_new()
        check_host(self.spec)
        path = process.find_qemu(self.spec.qemu_path)
        self._accelerator = await find_accelerator(path, self.spec.kernel, wanted=self.spec.accel)
        async with self._starting():
            await asyncio.to_thread(check_qemu_user, self._link, os.getuid())
            self._make_folders("console.log")
            await self._launch(path)

    async def _launch(self, emulator: str) -> None:
        assert self._runtime is not None  # made just before
        run = qemu.Runtime(self._runtime, self.console_log)
        xml = domain_xml(self.spec, run, self.accelerator.name, emulator)
        (self.console_log.parent / "domain.xml").write_text(xml + "\n")
        libvirt = library()
        loop = asyncio.get_running_loop()

        def tell(name: str, what: Lifecycle) -> None:
            loop.call_soon_threadsafe(self._on_event, name, what)

        self._unwatch = await asyncio.to_thread(self._link.watch, tell)
        began = time.monotonic()

        def create(connection: Any) -> None:
            connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)

        await self._link.call(f"{self.spec.name} cannot be started", create, again=False)
        await self._connect(run.agent)
        await self._unless_ended(self._agent.hello(self._boot_deadline))
        self.boot_seconds = time.monotonic() - began

    async def _connect(self, socket: Path) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while True:
            try:
                await self._agent.connect(socket)
                return
            except OSError:
                self._check_alive()
                if time.monotonic() > deadline:
                    raise VmFailed(f"{self.spec.name}: nobody listens at {socket}", "see libvirt's logs") from None
            await asyncio.sleep(_SOON)

    async def _unless_ended(self, waiting: Awaitable[object]) -> None:
        """Waits, but no longer than the domain runs."""
        async with first_of(waiting, self._ended.wait()) as task:
            if not task.done():
                self._check_alive()
            try:
                await task
            except GuestError as error:
                raise VmFailed(f"{error.message}; the console ends: {process.last_line(self.console_log)}") from error

    def _check_alive(self) -> None:
        if self._ended.is_set():
            last = process.last_line(self.console_log)
            raise VmFailed(f"{self.spec.name}: the domain ended; the console ends: {last}", "see libvirt's logs")

    def _on_event(self, name: str, what: Lifecycle) -> None:
        if what is Lifecycle.LOOK:
            task = asyncio.get_running_loop().create_task(self._look())
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)
        elif name == self.spec.name and what in (Lifecycle.STOPPED, Lifecycle.CRASHED):
            self._ended.set()

    async def _look(self) -> None:
        """After libvirtd was away: whether the domain still is."""
        try:
            await self._link.call(self.spec.name, self._lookup)
        except NotFound:
            self._ended.set()
        except TmemError as error:
            self._log.warning("%s", error)

    def _lookup(self, connection: Any) -> Any:
        return connection.lookupByName(self.spec.name)

    async def stop(self) -> None:
        failed = self.state is VmState.FAILED
        try:
            if self._state is VmState.RUNNING:
                await self._agent.shutdown(STOP_DEADLINE)
                try:
                    await asyncio.wait_for(self._ended.wait(), STOP_DEADLINE)
                except TimeoutError:
                    self._log.warning("the guest did not power off, destroying it")
        except GuestError as error:
            self._log.warning("the guest's agent does not answer, destroying it: %s", error)
        finally:
            await self.kill()
            self._state = VmState.FAILED if failed else VmState.STOPPED

    async def kill(self) -> None:
        try:
            if self._state in (VmState.STARTING, VmState.RUNNING) and not self._ended.is_set():
                with contextlib.suppress(NotFound, Conflict):
                    what = f"{self.spec.name} cannot be destroyed"
                    await self._link.call(what, lambda connection: self._lookup(connection).destroy())
        finally:
            await self._agent.close()
            if self._unwatch is not None:
                self._unwatch()
            for task in self._looking:
                task.cancel()
            # Also destroys what is left: it was started to end with this connection.
            await asyncio.to_thread(self._link.close)
            self._remove_folders()
            if self._state is VmState.RUNNING:
                self._state = VmState.STOPPED
