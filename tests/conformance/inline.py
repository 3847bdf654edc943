# SPDX-License-Identifier: Apache-2.0
"""A speaker on the patched QEMU's virtio-tmem device, which executes requests itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from conformance.device import MEMORY_MIB, Driver
from conformance.speaker import Ability, Speaker
from framework.bare_machine import BareMachine
from tmem_host.vm.qemu import comma
from tmem_host.vm.qemubuild.build import patched_qemu

_LIMIT = 256 << 20


class InlineSpeaker(Speaker):
    """One device, which is a VM with an arena of its own; its peer is another device."""

    can = Ability.ROOM | Ability.FREEZE | Ability.CAP | Ability.PEER

    def __init__(self, machine: BareMachine, driver: Driver, name: str) -> None:
        self._machine = machine
        self.driver = driver
        self._name = name
        self._peer: InlineSpeaker | None = None
        self.features = driver.features

    @classmethod
    def over(cls, folder: Path, machine_of: type[BareMachine], **properties: str) -> InlineSpeaker:
        """A QEMU with two devices of those properties, whose arenas lie in ``folder``."""
        options = "".join(f",{name.replace('_', '-')}={value}" for name, value in properties.items())
        names = ("one", "other")
        devices = [
            f"virtio-tmem-pci,id={name},vm={name},arena={comma(folder / name)},limit={_LIMIT}{options}"
            for name in names
        ]
        machine = machine_of(patched_qemu(), MEMORY_MIB, devices, folder)
        try:
            drivers = Driver.of_all(machine, ports=properties.get("modern_pio_notify") == "on")
            one, other = (cls(machine, driver, name) for driver, name in zip(drivers, names, strict=True))
        except BaseException:
            machine.close()
            raise
        one._peer = other
        return one

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self.driver.request(message, room)

    def reset(self) -> None:
        self.driver.reset()

    def freeze(self, frozen: bool) -> None:
        self._set({"frozen": frozen})

    def set_cap(self, cap: int | None) -> None:
        self._set({"cap": cap or 0})

    def _set(self, quota: Mapping[str, object]) -> None:
        self._machine.qmp.cmd("tmem-set", device=self._name, quota=quota)

    def peer(self) -> Speaker:
        assert self._peer is not None
        return self._peer

    def held(self) -> list[dict[str, object]]:
        """What each device's VM holds and may hold, as ``query-tmem`` has it."""
        found = self._machine.qmp.cmd("query-tmem")
        assert isinstance(found, list)
        return found

    def close(self) -> None:
        """Ends QEMU and with it both devices."""
        self._machine.close()
