# SPDX-License-Identifier: Apache-2.0
"""What every driver of virtual machines offers."""

from __future__ import annotations

import enum
import logging
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from tmem_host.errors import Conflict
from tmem_host.vm.accel import Accelerator
from tmem_host.vm.guest_client import GuestClient
from tmem_host.vm.spec import VmSpec

#: Seconds until the monitor listens on its sockets, until the agent answers (TCG on a busy machine takes 5 to 15), and
#: until a guest that was asked to has powered off.
START_DEADLINE: Final = 20.0
BOOT_DEADLINE: Final = 120.0
STOP_DEADLINE: Final = 10.0


class VmState(enum.Enum):
    """CREATED -> STARTING -> RUNNING -> STOPPED; FAILED from STARTING or RUNNING when the machine ends by itself."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


class Vm(ABC):
    """A virtual machine with the guest agent in it; an async context manager that starts and stops it."""

    #: Files of ``workdir`` that :meth:`save_evidence` keeps.
    EVIDENCE: ClassVar[tuple[str, ...]]

    def __init__(self, spec: VmSpec, log: logging.Logger, boot_deadline: float) -> None:
        self.spec = spec
        self._log = log
        self._state = VmState.CREATED
        self._boot_deadline = boot_deadline
        self._runtime: Path | None = None
        self._workdir = spec.workdir
        self._accelerator: Accelerator | None = None
        self._agent = GuestClient(spec.name)
        #: Seconds from the start of the machine to the agent's first answer.
        self.boot_seconds = 0.0

    @property
    @abstractmethod
    def state(self) -> VmState: ...

    @property
    def agent(self) -> GuestClient:
        """The agent in the guest. Raises Conflict unless RUNNING."""
        if self._state is not VmState.RUNNING:
            raise Conflict(f"{self.spec.name} is {self._state.value}", "start it first")
        return self._agent

    @property
    def accelerator(self) -> Accelerator:
        """What it runs under. Raises Conflict before start."""
        if self._accelerator is None:
            raise Conflict(f"{self.spec.name} has not been started", "start it first")
        return self._accelerator

    @property
    def workdir(self) -> Path:
        """The folder of its logs. Raises Conflict when there is none: before start, or afterwards without one kept."""
        if self._workdir is None:
            raise Conflict(f"{self.spec.name} has no folder now", "give the spec a workdir to keep its logs")
        return self._workdir

    @property
    def console_log(self) -> Path:
        """The serial console's file."""
        return self.workdir / "console.log"

    @abstractmethod
    async def start(self) -> None:
        """Returns when the agent answers. Leaves nothing behind when it fails."""

    @abstractmethod
    async def stop(self) -> None:
        """Asks the guest to power off, then insists. May be called in any state."""

    @abstractmethod
    async def kill(self) -> None:
        """Ends it at once, as a crash of the host's process would."""

    def save_evidence(self, folder: Path) -> None:
        """Copies console, logs and command line to ``folder``; done before a failed run is cleaned up."""
        if self._workdir is None or not self._workdir.is_dir():
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.EVIDENCE:
            if (self._workdir / name).is_file():
                shutil.copy(self._workdir / name, folder / f"{self.spec.name}-{name}")

    def _check_new(self) -> None:
        if self._state is not VmState.CREATED:
            raise Conflict(f"{self.spec.name} is {self._state.value}", "a VM object is started once")

    @asynccontextmanager
    async def _starting(self) -> AsyncIterator[None]:
        """The block starts the machine: RUNNING behind it, or killed and FAILED."""
        self._state = VmState.STARTING
        try:
            yield
        except BaseException:
            await self.kill()
            self._state = VmState.FAILED
            raise
        self._state = VmState.RUNNING

    def _make_folders(self, *logs: str) -> None:
        """The runtime and working folders, without the ``logs`` of an earlier machine."""
        # Short and private: sockets have 107 bytes for their path, and whoever opens them rules the VM.
        if self.spec.runtime is None:
            self._runtime = Path(tempfile.mkdtemp(prefix="tmem-vm-"))
        else:
            self._runtime = self.spec.runtime
            shutil.rmtree(self._runtime, ignore_errors=True)
            self._runtime.mkdir(mode=0o700, parents=True)
        if self._workdir is None:
            self._workdir = self._runtime
        self._workdir.mkdir(parents=True, exist_ok=True)
        for log in logs:
            (self._workdir / log).unlink(missing_ok=True)

    def _remove_folders(self) -> None:
        """What :meth:`_make_folders` made; a workdir that was given stays."""
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)
            if self._workdir == self._runtime:
                self._workdir = None
            self._runtime = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
