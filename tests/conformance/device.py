# SPDX-License-Identifier: Apache-2.0
"""The driver of a device that carries requests, in a QEMU without a guest (:mod:`framework.bare_machine`)."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Sequence
from typing import Final

from framework.bare_machine import BareMachine
from framework.virtio_pci import INDIRECT, VERSION_1, PciBus, Status, VirtioDevice
from tmem_host.channel.abi import DATA_MAX, REPLY_SIZE, VERSION, Feature

#: Guest memory of such a machine: for three devices.
MEMORY_MIB: Final = 32
#: Of one device: its queue, a request with its data, and a reply with its.
_SHARE = 8 << 20
#: A ``pc`` has other things below the first megabyte.
_FIRST = 1 << 20
#: Red Hat's, and VIRTIO_ID_TMEM above the first of virtio 1.
_PCI_ID = 0x107F_1AF4
_INLINE = 1 << 1
_PATIENCE = 60.0

#: Where chains are cut into descriptors: not at all; behind the header; where it is awkward.
_CUTS = (((), ()), ((64,), (REPLY_SIZE,)), ((10, 63, 97, 4200, 70_001), (1, 39, 41, 4135, 70_001)))


class Driver:
    """Of one device, which is reset first. An inline one must be done when the kick is."""

    def __init__(self, machine: BareMachine, device: VirtioDevice) -> None:
        self._machine = machine
        self._device = device
        self._turn = 0
        self._offered = device.offered()
        self.inline = bool(self._offered & _INLINE)
        version, self.queues, features = struct.unpack("<IIQ", device.configuration(16))
        assert version == VERSION
        self.features = Feature(features)
        self.reset()

    @classmethod
    def of_all(cls, machine: BareMachine, *, ports: bool = False) -> list[Driver]:
        """Of each such device, in the order in which QEMU was given them."""
        bus = PciBus(machine)
        shares = (range(start, start + _SHARE) for start in itertools.count(_FIRST, _SHARE))
        return [
            cls(machine, VirtioDevice(bus, slot, ports=ports, memory=memory))
            for slot, memory in zip(bus.find(_PCI_ID), shares, strict=False)
        ]

    @property
    def broken(self) -> bool:
        return bool(self._device.status & Status.NEEDS_RESET)

    def reset(self) -> None:
        self._device.start(self._offered & ~INDIRECT | VERSION_1)

    def request(self, message: bytes, room: int | None) -> bytes:
        """As :meth:`.speaker.Speaker.request`."""
        room = DATA_MAX if room is None else room
        memory, queue = self._machine.memory, self._device.queue
        sent = queue.buffers.start
        fetched = sent + len(message) + 5
        memory[sent : sent + len(message)] = message
        # What is not written must not look like a reply.
        memory[fetched : fetched + REPLY_SIZE] = b"\xa5" * REPLY_SIZE
        readable, writable = _CUTS[self._turn % len(_CUTS)]
        self._turn += 1
        queue.submit(_cut(sent, len(message), readable), _cut(fetched, REPLY_SIZE + room, writable))
        length = self._used()
        assert length <= REPLY_SIZE + room
        return bytes(memory[fetched : fetched + length])

    def _used(self) -> int:
        end = time.monotonic() + _PATIENCE
        while (length := self._device.queue.used()) is None:
            assert not self.inline, "not done when the kick was"
            assert time.monotonic() < end, "the device does not answer"
            time.sleep(0)
        return length


def _cut(start: int, length: int, places: Sequence[int]) -> list[tuple[int, int]]:
    """(address, length) of each piece of a buffer that is cut there."""
    edges = [0, *(place for place in places if place < length), length]
    return [(start + a, b - a) for a, b in itertools.pairwise(edges) if b > a]
