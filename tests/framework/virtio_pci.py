# SPDX-License-Identifier: Apache-2.0
"""A driver for one virtio 1 device on the PCI bus of a :class:`BareMachine`: registers, and one split queue.

Offsets and bits are those of the virtio specification, sections 2.7 and 4.1.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from framework.bare_machine import BareMachine, Width

# PCI
_ADDRESS, _DATA = 0xCF8, 0xCFC
_COMMAND, _BARS, _CAPABILITIES = 0x04, 0x10, 0x34
#: I/O, memory, bus master.
_ALL_ON: Final = 7
_VENDOR_CAPABILITY: Final = 9
#: Where nothing else of a ``pc`` is.
_MEMORY_WINDOW, _PORT_WINDOW = 0xE000_0000, 0xC000

# struct virtio_pci_cap and virtio_pci_common_cfg
_COMMON, _NOTIFY, _DEVICE = 1, 2, 4
_FEATURE_SELECT, _FEATURES, _ACCEPT_SELECT, _ACCEPT = 0x00, 0x04, 0x08, 0x0C
_STATUS, _QUEUE_SELECT, _QUEUE_SIZE, _QUEUE_ENABLE, _QUEUE_NOTIFY = 0x14, 0x16, 0x18, 0x1C, 0x1E
_QUEUE_PARTS: Final = (0x20, 0x28, 0x30)

VERSION_1: Final = 1 << 32
INDIRECT: Final = 1 << 28
_NEXT, _WRITE = 1, 2
_DESCRIPTOR: Final = struct.Struct("<QIHH")
_NO_INTERRUPT: Final = 1


class Status(enum.IntFlag):
    """``device_status``"""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64


@dataclass(frozen=True)
class Region:
    """A place in a BAR; ``ports``: it is one of I/O ports."""

    address: int
    ports: bool
    multiplier: int = 0


class PciBus:
    """The one bus of the machine, and what of its windows was given out."""

    def __init__(self, machine: BareMachine) -> None:
        self.machine = machine
        self._memory, self._ports = _MEMORY_WINDOW, _PORT_WINDOW

    def config(self, slot: int, offset: int, width: Width = 4) -> int:
        self.machine.port_out(_ADDRESS, 4, 1 << 31 | slot << 11 | offset & ~3)
        return self.machine.port_in(_DATA + (offset & 3), width)

    def set_config(self, slot: int, offset: int, value: int, width: Width = 4) -> None:
        self.machine.port_out(_ADDRESS, 4, 1 << 31 | slot << 11 | offset & ~3)
        self.machine.port_out(_DATA + (offset & 3), width, value)

    def find(self, device: int) -> list[int]:
        """Slots with that vendor (low half) and device id."""
        return [slot for slot in range(32) if self.config(slot, 0) == device]

    def enable(self, slot: int) -> dict[int, Region]:
        """Gives the BARs their places and turns the device on."""
        bars = {}
        number = 0
        while number < 6:
            at = _BARS + 4 * number
            self.set_config(slot, at, 0xFFFF_FFFF)
            mask = self.config(slot, at)
            ports, wide = bool(mask & 1), mask & 7 == 4
            if mask:
                size = -(mask & ~(3 if ports else 15)) & (0xFFFF if ports else 0xFFFF_FFFF)
                bars[number] = Region(self._place(size, ports), ports)
                self.set_config(slot, at, bars[number].address)
            if wide:
                self.set_config(slot, at + 4, 0)
            number += 2 if wide else 1
        self.set_config(slot, _COMMAND, _ALL_ON, 2)
        return bars

    def _place(self, size: int, ports: bool) -> int:
        at = -(-(self._ports if ports else self._memory) // size) * size
        if ports:
            self._ports = at + size
        else:
            self._memory = at + size
        return at

    def vendor_capabilities(self, slot: int) -> Iterator[tuple[int, int, int, int]]:
        """(type, bar, offset, where the capability lies) of each."""
        at = self.config(slot, _CAPABILITIES, 1)
        while at:
            if self.config(slot, at, 1) == _VENDOR_CAPABILITY:
                yield self.config(slot, at + 3, 1), self.config(slot, at + 4, 1), self.config(slot, at + 8), at
            at = self.config(slot, at + 1, 1)


class VirtioDevice:
    """The device in a slot. ``ports``: its doorbell is the one in I/O ports; ``memory``: guest memory for it alone."""

    def __init__(self, bus: PciBus, slot: int, *, ports: bool, memory: range) -> None:
        self._machine = bus.machine
        self._memory = memory
        bars = bus.enable(slot)
        found: dict[tuple[int, bool], Region] = {}
        for kind, bar, offset, at in bus.vendor_capabilities(slot):
            # VIRTIO_PCI_CAP_PCI_CFG names no BAR
            if bar in bars:
                multiplier = bus.config(slot, at + 16) if kind == _NOTIFY else 0
                region = Region(bars[bar].address + offset, bars[bar].ports, multiplier)
                found.setdefault((kind, region.ports), region)
        self._common = found[_COMMON, False].address
        self._device = found[_DEVICE, False].address
        self._notify = found[_NOTIFY, ports]
        self.queue: Queue

    def _get(self, offset: int, width: Width) -> int:
        return self._machine.read(self._common + offset, width)

    def _set(self, offset: int, width: Width, value: int) -> None:
        self._machine.write(self._common + offset, width, value)

    @property
    def status(self) -> Status:
        return Status(self._get(_STATUS, 1))

    def configuration(self, length: int) -> bytes:
        """So many bytes, a multiple of four, of the device's own configuration."""
        return b"".join(self._machine.read(self._device + at, 4).to_bytes(4, "little") for at in range(0, length, 4))

    def offered(self) -> int:
        features = 0
        for half in (0, 1):
            self._set(_FEATURE_SELECT, 4, half)
            features |= self._get(_FEATURES, 4) << 32 * half
        return features

    def start(self, features: int) -> None:
        """Resets the device, agrees on features, and gives it its first queue."""
        self._set(_STATUS, 1, 0)
        assert self.status == Status(0)
        self._set(_STATUS, 1, Status.ACKNOWLEDGE | Status.DRIVER)
        for half in (0, 1):
            self._set(_ACCEPT_SELECT, 4, half)
            self._set(_ACCEPT, 4, features >> 32 * half & 0xFFFF_FFFF)
        self._set(_STATUS, 1, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        assert self.status & Status.FEATURES_OK
        self._set(_QUEUE_SELECT, 2, 0)
        bell = self._notify.address + self._get(_QUEUE_NOTIFY, 2) * self._notify.multiplier
        self.queue = Queue(self._machine, self._memory, self._get(_QUEUE_SIZE, 2), Region(bell, self._notify.ports))
        for offset, address in zip(_QUEUE_PARTS, self.queue.parts, strict=True):
            self._set(offset, 4, address)
            self._set(offset + 4, 4, 0)
        self._set(_QUEUE_ENABLE, 2, 1)
        self._set(_STATUS, 1, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK)


class Queue:
    """Queue 0, with one request in it at a time. The rest of its memory is for buffers: see ``buffers``."""

    def __init__(self, machine: BareMachine, memory: range, size: int, bell: Region) -> None:
        self._machine = machine
        self._size = size
        self._bell = bell
        self._descriptors = memory.start
        self._available = self._descriptors + 16 * size
        self._used = -(-(self._available + 6 + 2 * size) // 4096) * 4096
        self.buffers = range(-(-(self._used + 6 + 8 * size) // 4096) * 4096, memory.stop)
        self._turn = self._head = 0
        machine.memory[memory.start : self.buffers.start] = bytes(self.buffers.start - memory.start)
        self._store("<H", self._available, _NO_INTERRUPT)

    @property
    def parts(self) -> tuple[int, int, int]:
        """Addresses of the descriptors, of what is available, of what is used."""
        return self._descriptors, self._available, self._used

    def _store(self, form: str, address: int, *values: int) -> None:
        struct.pack_into(form, self._machine.memory, address, *values)

    def _load(self, form: str, address: int) -> int:
        value: int = struct.unpack_from(form, self._machine.memory, address)[0]
        return value

    def submit(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]]) -> None:
        """Kicks with one chain of (address, length) pieces."""
        pieces = [(*piece, 0) for piece in readable] + [(*piece, _WRITE) for piece in writable]
        assert 0 < len(pieces) <= self._size
        # Not always the same descriptors, nor in their order.
        heads = [(self._turn * 7 + 3 * i) % self._size for i in range(len(pieces))]
        assert len(set(heads)) == len(heads)
        for i, (address, length, flags) in enumerate(pieces):
            last = i + 1 == len(pieces)
            at = self._descriptors + 16 * heads[i]
            chain = 0 if last else heads[i + 1]
            _DESCRIPTOR.pack_into(self._machine.memory, at, address, length, flags | (0 if last else _NEXT), chain)
        self._store("<H", self._available + 4 + 2 * (self._turn % self._size), heads[0])
        self._turn += 1
        self._store("<H", self._available + 2, self._turn & 0xFFFF)
        (self._machine.port_out if self._bell.ports else self._machine.write)(self._bell.address, 2, 0)
        self._head = heads[0]

    def used(self) -> int | None:
        """The length with which what was submitted came back; None: it did not yet."""
        if self._load("<H", self._used + 2) != self._turn & 0xFFFF:
            return None
        at = self._used + 4 + 8 * ((self._turn - 1) % self._size)
        assert self._load("<I", at) == self._head
        return self._load("<I", at + 4)
