# SPDX-License-Identifier: Apache-2.0
"""A speaker on the patched QEMU's virtio-tmem device, which executes requests itself."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping
from pathlib import Path

from conformance.device import MEMORY_MIB, Driver
from conformance.speaker import Speaker
from framework.bare_machine import BareMachine
from tmem_host.vm.qemu import comma
from tmem_host.vm.qemubuild.build import patched_qemu

_LIMIT = 256 << 20


class InlineSpeaker(Speaker):
    """One device. Its peer is a device of another VM, its second channel another of its own, in the same arena."""

    def __init__(self, machine: BareMachine, driver: Driver, name: str) -> None:
        self._machine = machine
        self.driver = driver
        self._name = name
        self._peer: InlineSpeaker | None = None
        self._second: InlineSpeaker | None = None
        self.features = driver.features

    @classmethod
    def over(cls, folder: Path, machine_of: type[BareMachine], **properties: str) -> InlineSpeaker:
        """A QEMU with three devices of those properties, whose arena lies in ``folder``."""
        options = "".join(f",{name.replace('_', '-')}={value}" for name, value in properties.items())
        arena = f"arena={comma(folder / 'arena')},share-arena=on,limit={_LIMIT}"
        names = {"one": "one", "second": "one", "other": "other"}
        devices = [f"virtio-tmem-pci,id={name},vm={vm},{arena}{options}" for name, vm in names.items()]
        machine = machine_of(patched_qemu(), MEMORY_MIB, devices, folder)
        try:
            drivers = Driver.of_all(machine, ports=properties.get("modern_pio_notify") == "on")
            one, second, other = (cls(machine, driver, name) for driver, name in zip(drivers, names, strict=True))
        except BaseException:
            machine.close()
            raise
        one._peer, one._second = other, second
        return one

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self.driver.request(message, room)

    def reset(self) -> None:
        self.driver.reset()

    def freeze(self, frozen: bool) -> None:
        self._set({"frozen": frozen})

    def set_cap(self, cap: int | None) -> None:
        self._set({"cap": cap or 0})

    def authorise(self, uuid: bytes, allowed: bool) -> None:
        text = str(uuids.UUID(bytes=uuid))
        self._machine.qmp.cmd("tmem-authorise", device=self._name, uuid=text, allow=allowed)

    def lose(self, lost: bool) -> None:
        self._machine.qmp.cmd("x-tmem-lose", device=self._name, every=int(lost))

    def _set(self, quota: Mapping[str, object]) -> None:
        self._machine.qmp.cmd("tmem-set", device=self._name, quota=quota)

    def peer(self) -> Speaker:
        assert self._peer is not None
        return self._peer

    def channel(self) -> Speaker:
        assert self._second is not None
        return self._second

    def held(self) -> list[dict[str, object]]:
        """What each device's VM holds and may hold, as ``query-tmem`` has it."""
        found = self._machine.qmp.cmd("query-tmem")
        assert isinstance(found, list)
        return found

    def close(self) -> None:
        """Ends QEMU and with it both devices."""
        self._machine.close()
