# SPDX-License-Identifier: Apache-2.0
"""A speaker on the patched QEMU's vhost-user-tmem device: requests are executed by the core's server, over vhost-user.

:mod:`.virtqueue` is without QEMU.
"""

from __future__ import annotations

from pathlib import Path

from conformance.device import MEMORY_MIB, Driver
from conformance.served import ServedSpeaker
from conformance.speaker import Speaker
from framework.bare_machine import BareMachine, QtestMachine
from tmem_host.core import Engine, Store, TmemServer
from tmem_host.vm.qemu import comma
from tmem_host.vm.qemubuild.build import patched_qemu


class VhostUserSpeaker(ServedSpeaker):
    """A device, served as a channel of a VM of ``store``."""

    def __init__(self, store: Store, vm: str, folder: Path, engine: Engine | None = None) -> None:
        self._engine = engine or Engine(store, vm)
        super().__init__(store, vm, folder, self._engine)
        self.server = TmemServer(self._engine, str(self._path))
        self._second: VhostUserSpeaker | None = None
        self._machine: BareMachine | None = None
        self.driver: Driver

    @classmethod
    def inside(cls, arena: Path, folder: Path) -> VhostUserSpeaker:
        """A QEMU with a device of one VM, another of it, and one of a second VM; sockets lie in ``folder``."""
        one = cls.over(arena, folder)
        second, other = one.keep(cls(one.store, "one", folder, one._engine)), one.peer()
        assert isinstance(other, cls)
        one._second = second
        speakers = (one, second, other)
        backends = [
            word
            for number, speaker in enumerate(speakers)
            for word in ("-chardev", f"socket,id=c{number},path={comma(speaker._path)}")
        ]
        devices = [f"vhost-user-tmem-pci,chardev=c{number}" for number in range(len(speakers))]
        try:
            one._machine = QtestMachine(patched_qemu(), MEMORY_MIB, devices, folder, backends)
            for speaker, driver in zip(speakers, Driver.of_all(one._machine), strict=True):
                speaker.driver = driver
        except BaseException:
            one.close()
            raise
        return one

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self.driver.request(message, room)

    def reset(self) -> None:
        self.driver.reset()

    def channel(self) -> Speaker:
        assert self._second is not None
        self._second.reset()
        return self._second

    def end(self) -> None:
        if self._machine is not None:
            self._machine.close()
        self.server.stop()
