# SPDX-License-Identifier: Apache-2.0
"""What every driver of virtual machines offers."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from tmem_host.vm.accel import Accelerator
from tmem_host.vm.guest_client import GuestClient
from tmem_host.vm.spec import VmSpec


class VmState(enum.Enum):
    """CREATED -> STARTING -> RUNNING -> STOPPED; FAILED from STARTING or RUNNING when the machine ends by itself."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


class Vm(ABC):
    """A virtual machine with the guest agent in it; an async context manager that starts and stops it."""

    spec: VmSpec

    @property
    @abstractmethod
    def state(self) -> VmState: ...

    @property
    @abstractmethod
    def agent(self) -> GuestClient:
        """The agent in the guest. Raises Conflict unless RUNNING."""

    @property
    @abstractmethod
    def accelerator(self) -> Accelerator:
        """What it runs under. Raises Conflict before start."""

    @property
    @abstractmethod
    def console_log(self) -> Path:
        """The serial console's file."""

    @abstractmethod
    async def start(self) -> None:
        """Returns when the agent answers. Leaves nothing behind when it fails."""

    @abstractmethod
    async def stop(self) -> None:
        """Asks the guest to power off, then insists. May be called in any state."""

    @abstractmethod
    async def kill(self) -> None:
        """Ends it at once, as a crash of the host's process would."""

    @abstractmethod
    def save_evidence(self, folder: Path) -> None:
        """Copies console, logs and command line to ``folder``; done before a failed run is cleaned up."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
