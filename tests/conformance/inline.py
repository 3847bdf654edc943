# SPDX-License-Identifier: Apache-2.0
"""A speaker on the patched QEMU's virtio-tmem device: requests are executed in the write to its doorbell.

No guest runs: this process is the driver (:mod:`framework.virtio_pci`), in memory that it shares with QEMU.
"""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Literal

from conformance.speaker import Ability, Speaker
from framework.bare_machine import BareMachine
from framework.virtio_pci import INDIRECT, VERSION_1, PciBus, Status, VirtioDevice
from tmem_host.channel.abi import DATA_MAX, REPLY_SIZE, VERSION, Feature
from tmem_host.vm.qemu import comma
from tmem_host.vm.qemubuild.build import patched_qemu

_LIMIT = 256 << 20
_MEMORY_MIB = 64
#: Of one device: its queue, a request with its data, and a reply with its.
_SHARE = 8 << 20
#: A ``pc`` has other things below the first megabyte.
_FIRST = 1 << 20
#: Red Hat's, and VIRTIO_ID_TMEM above the first of virtio 1.
_PCI_ID = 0x107F_1AF4
_INLINE = 1 << 1

#: Where chains are cut into descriptors: not at all; behind the header; where it is awkward.
_CUTS = (((), ()), ((64,), (REPLY_SIZE,)), ((10, 63, 97, 4200, 70_001), (1, 39, 41, 4135, 70_001)))


class InlineSpeaker(Speaker):
    """One device, which is a VM with an arena of its own."""

    can = Ability.ROOM | Ability.FREEZE | Ability.CAP | Ability.PEER

    def __init__(self, machine: BareMachine, device: VirtioDevice, name: str) -> None:
        self._machine = machine
        self._device = device
        self._name = name
        self._peer: InlineSpeaker | None = None
        self._turn = 0
        self._offered = device.offered()
        assert self._offered & _INLINE
        version, self.queues, features = struct.unpack("<IIQ", device.configuration(16))
        assert version == VERSION
        self.features = Feature(features)
        self.reset()

    @classmethod
    def over(cls, folder: Path, machine_of: type[BareMachine], doorbell: Literal["mmio", "pio"]) -> InlineSpeaker:
        """A QEMU with two devices, whose arenas lie in ``folder``."""
        options = f"limit={_LIMIT},modern-pio-notify={'on' if doorbell == 'pio' else 'off'}"
        devices = [
            f"virtio-tmem-pci,id={name},vm={name},arena={comma(folder / name)},{options}" for name in ("one", "other")
        ]
        machine = machine_of(patched_qemu(), _MEMORY_MIB, devices, folder)
        try:
            bus = PciBus(machine)
            slots = bus.find(_PCI_ID)
            assert len(slots) == len(devices)
            made = []
            for number, (slot, name) in enumerate(zip(slots, ("one", "other"), strict=True)):
                start = _FIRST + number * _SHARE
                device = VirtioDevice(bus, slot, ports=doorbell == "pio", memory=range(start, start + _SHARE))
                made.append(cls(machine, device, name))
        except BaseException:
            machine.close()
            raise
        made[0]._peer = made[1]
        return made[0]

    def request(self, message: bytes, room: int | None = None) -> bytes:
        room = DATA_MAX if room is None else room
        memory, queue = self._machine.memory, self._device.queue
        sent = queue.buffers.start
        fetched = sent + len(message) + 5
        memory[sent : sent + len(message)] = message
        # What is not written must not look like a reply.
        memory[fetched : fetched + REPLY_SIZE] = b"\xa5" * REPLY_SIZE
        readable, writable = _CUTS[self._turn % len(_CUTS)]
        self._turn += 1
        length = queue.submit(_cut(sent, len(message), readable), _cut(fetched, REPLY_SIZE + room, writable))
        assert length is not None, f"not done when the kick was; {self._device.status!r}"
        assert length <= REPLY_SIZE + room
        return bytes(memory[fetched : fetched + length])

    def reset(self) -> None:
        self._device.start(self._offered & ~INDIRECT | VERSION_1)

    def freeze(self, frozen: bool) -> None:
        self._set(frozen=frozen)

    def set_cap(self, cap: int | None) -> None:
        self._set(cap=cap or 0)

    def _set(self, **quota: object) -> None:
        self._machine.qmp.cmd("tmem-set", device=self._name, quota=quota)

    def peer(self) -> Speaker:
        assert self._peer is not None
        return self._peer

    @property
    def status(self) -> Status:
        return self._device.status

    def held(self) -> list[dict[str, object]]:
        """What each device's VM holds and may hold, as ``query-tmem`` has it."""
        found = self._machine.qmp.cmd("query-tmem")
        assert isinstance(found, list)
        return found

    def close(self) -> None:
        """Ends QEMU and with it both devices."""
        self._machine.close()


def _cut(start: int, length: int, places: tuple[int, ...]) -> list[tuple[int, int]]:
    """(address, length) of each piece of a buffer that is cut there."""
    edges = [0, *(place for place in places if place < length), length]
    return [(start + a, b - a) for a, b in itertools.pairwise(edges) if b > a]
