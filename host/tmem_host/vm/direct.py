# SPDX-License-Identifier: Apache-2.0
"""The direct driver: QEMU as a child of this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from qemu.qmp import ConnectError, QMPClient, QMPError

from tmem_host.config import SOCKET_PATH_MAX
from tmem_host.errors import Conflict, Denied, InvalidInput, NoSpace, NotFound, Unavailable, VmFailed
from tmem_host.first_of import first_of
from tmem_host.vm import process, qemu
from tmem_host.vm.accel import find_accelerator
from tmem_host.vm.base import BOOT_DEADLINE, START_DEADLINE, STOP_DEADLINE, Vm, VmState
from tmem_host.vm.guest_client import ClientState, GuestClient, GuestError
from tmem_host.vm.qemubuild.build import patched_qemu
from tmem_host.vm.spec import STOCK_QEMU, FileDisk, VhostUserBlk, VhostUserTmem, VmSpec


class DirectVm(Vm):
    """One QEMU. Whatever happens to this process, it does not outlive it."""

    EVIDENCE = ("console.log", "qemu.log", "argv.txt")

    def __init__(self, spec: VmSpec, *, boot_deadline: float = BOOT_DEADLINE) -> None:
        super().__init__(spec, logging.getLogger(f"{__name__}.{spec.name}"), boot_deadline)
        self._child: asyncio.subprocess.Process | None = None
        self._qmp: QMPClient | None = None

    @property
    def state(self) -> VmState:
        if self._state is VmState.RUNNING and self._child is not None and self._child.returncode is not None:
            self._state = VmState.FAILED
        return self._state

    @property
    def qmp(self) -> QMPClient:
        """QEMU's monitor. Raises Conflict unless RUNNING."""
        if self._qmp is None:
            raise Conflict(f"{self.spec.name} is {self._state.value}", "start it first")
        return self._qmp

    @property
    def pages_socket(self) -> Path:
        """Where QEMU listens for who serves the pages port. Raises Conflict before the start or without such a port."""
        if self._runtime is None or not self.spec.pages_port:
            raise Conflict(f"{self.spec.name} has no pages port now", "set pages_port and start it")
        return qemu.pages_socket(self.spec, qemu.Runtime(self._runtime, self.console_log))

    @property
    def pid(self) -> int:
        if self._child is None:
            raise Conflict(f"{self.spec.name} has not been started", "start it first")
        return self._child.pid

    @property
    def qemu_log(self) -> Path:
        return self.workdir / "qemu.log"

    async def start(self) -> None:
        self._check_new()
        check_host(self.spec)
        path = process.find_qemu(qemu_path(self.spec))
        version, _text = process.qemu_version(path)
        self._accelerator = await find_accelerator(path, self.spec.kernel, wanted=self.spec.accel)
        async with self._starting():
            self._make_folders("console.log", "qemu.log")
            await self._launch(path, version)

    async def _launch(self, path: str, version: qemu.Version) -> None:
        assert self._runtime is not None  # made just before
        run = qemu.Runtime(self._runtime, self.console_log)
        argv = [path, *qemu.argv(self.spec, run, version, self.accelerator.name)[1:]]
        (self.workdir / "argv.txt").write_text(shlex.join(argv) + "\n")
        began = time.monotonic()
        self._child = await process.spawn(argv, log=self.qemu_log)
        self._qmp = QMPClient(self.spec.name)
        # What it logs as an error, it raises too.
        self._qmp.logger = self._log.getChild("qmp")
        self._qmp.logger.setLevel(logging.CRITICAL)
        await self._connect(lambda: self._connect_qmp(run.qmp))
        await self._connect(lambda: self._agent.connect(qemu.agent_socket(self.spec, run)))
        await self._unless_ended(self._agent.hello(self._boot_deadline))
        self.boot_seconds = time.monotonic() - began

    async def _connect_qmp(self, path: Path) -> None:
        assert self._qmp is not None  # made in _launch
        # QMPClient logs an attempt on a socket that is not there yet as an error.
        if not exists(path):
            raise FileNotFoundError(path)
        try:
            await self._qmp.connect(str(path))
        except ConnectError as error:
            # not listening yet; anything else is no matter of waiting
            if isinstance(error.exc, OSError):
                raise error.exc from error
            # It listens early and then ends, when it cannot make a device: its last words are the reason.
            await self._ended_within(1.0)
            self._check_alive()
            raise VmFailed(f"{self.spec.name}: QEMU's monitor does not answer: {error}", "see its log") from error

    async def _ended_within(self, seconds: float) -> bool:
        assert self._child is not None  # spawned in _launch
        try:
            await asyncio.wait_for(asyncio.shield(self._child.wait()), seconds)
        except TimeoutError:
            return False
        return True

    async def _connect(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Tries until QEMU listens, has ended, or the deadline has passed."""
        deadline = time.monotonic() + START_DEADLINE
        while True:
            try:
                await attempt()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise VmFailed(
                        f"{self.spec.name}: QEMU does not listen after {START_DEADLINE:g} s", f"see {self.qemu_log}"
                    ) from None
            self._check_alive()
            await asyncio.sleep(0.01)

    async def _unless_ended(self, waiting: Awaitable[object]) -> None:
        """Waits, but no longer than QEMU runs."""
        assert self._child is not None  # spawned in _launch
        async with first_of(waiting, self._child.wait()) as task:
            if not task.done():
                self._check_alive()
            try:
                await task
            except GuestError as error:
                # QEMU's own last words say more than the closed channel, if it is about to end.
                await self._ended_within(1.0)
                self._check_alive()
                raise VmFailed(f"{error.message}; the console ends: {process.last_line(self.console_log)}") from error

    def _check_alive(self) -> None:
        if self._child is not None and self._child.returncode is not None:
            words = process.last_line(self.qemu_log) or f"the console ends: {process.last_line(self.console_log)}"
            raise VmFailed(
                f"{self.spec.name}: QEMU ended with status {self._child.returncode}: {words}",
                f"see {self.console_log} and {self.qemu_log}" if self.spec.workdir else "",
            )

    async def let_go(self) -> None:
        """Hangs up, so that somebody else may speak to the guest's agent: its port takes one at a time."""
        await self.agent.close()

    async def _speak_again(self) -> None:
        """Comes after :meth:`let_go`. Somebody who speaks still keeps us waiting."""
        if self._agent.state is ClientState.CLOSED and self.spec.agent_port is not None:
            self._agent = GuestClient(self.spec.name)
            await self._agent.connect(self.spec.agent_port)

    async def stop(self) -> None:
        failed = self.state is VmState.FAILED
        try:
            if self._state is VmState.RUNNING and self._child is not None:
                await self._speak_again()
                await self._agent.shutdown(STOP_DEADLINE)
                if not await self._ended_within(STOP_DEADLINE):
                    self._log.warning("the guest did not power off, killing it")
        except (GuestError, OSError) as error:
            self._log.warning("the guest's agent does not answer, killing it: %s", error)
        finally:
            await self.kill()
            self._state = VmState.FAILED if failed else VmState.STOPPED

    async def kill(self) -> None:
        if self._child is not None:
            await process.kill(self._child)
        await self._agent.close()
        if self._qmp is not None:
            # What it raises is the end of the QEMU that we have just ended.
            with contextlib.suppress(QMPError, EOFError, OSError):
                await self._qmp.disconnect()
            self._qmp = None
        if self._child is not None and self.spec.agent_port is not None:
            # Killed, QEMU left its socket.
            self.spec.agent_port.unlink(missing_ok=True)
        self._remove_folders()
        if self._state is VmState.RUNNING:
            self._state = VmState.STOPPED


def exists(path: Path) -> bool:
    return path.exists()


def qemu_path(spec: VmSpec) -> str:
    """The spec's QEMU; the patched one for devices of ours, unless the spec names another. Raises NotFound."""
    return str(patched_qemu()) if spec.tmem and spec.qemu_path == STOCK_QEMU else spec.qemu_path


def check_host(spec: VmSpec) -> None:
    """Finds in the files that a spec names what would make QEMU fail. Raises a TmemError that says what to do."""
    qemu.check(spec)
    images = [spec.kernel.vmlinuz, spec.kernel.initramfs, *([spec.kernel.rootdisk] if spec.kernel.rootdisk else [])]
    for image in images:
        if not image.is_file():
            raise NotFound(f"there is no {image}", "run 'make guests'")
    for disk in spec.disks:
        if isinstance(disk, FileDisk):
            _check_file(disk)
    for device in (*spec.disks, *spec.tmem):
        if isinstance(device, VhostUserBlk | VhostUserTmem):
            if len(os.fsencode(device.socket)) > SOCKET_PATH_MAX:
                raise InvalidInput(f"the path {device.socket} is too long for a socket", "use a shorter state folder")
            if not device.socket.is_socket():
                raise NotFound(f"nothing serves {device.socket}", "is 'tmem serve' running?")


def _check_file(disk: FileDisk) -> None:
    try:
        # not stat: a disk may be a block device
        with disk.path.open("rb" if disk.read_only else "r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {disk.path}", "make the file first, for example with truncate") from error
    except PermissionError as error:
        raise Denied(f"no permission on {disk.path}", "give this user the right to read and write it") from error
    except OSError as error:
        raise InvalidInput(
            f"{disk.path} cannot be a disk: {error.strerror}", "name a file or a block device"
        ) from error
    if size < (disk.size or 512):
        raise NoSpace(f"{disk.path} has {size} bytes, {disk.size or 512} are needed", "make it larger with truncate")
    if disk.cache == "none":
        try:
            os.close(os.open(disk.path, os.O_RDONLY | os.O_DIRECT))
        except OSError as error:
            raise Unavailable(
                f"{disk.path} cannot be opened with cache=none: {error.strerror}",
                "its file system has no direct I/O: put it on a disk",
            ) from error
