# SPDX-License-Identifier: Apache-2.0
"""Disks of the guest, found by the serial that the host gave them."""

import fcntl
import os
import struct

from .protocol import FAILED, NOT_FOUND, OpError

# linux/fs.h
BLKDISCARD, BLKZEROOUT, BLKFLSBUF, BLKGETSIZE64 = 0x1277, 0x127F, 0x1261, 0x80081272


def read_text(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as stream:
        return stream.read().strip()


def write_text(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as stream:
            stream.write(text)
    except OSError as error:
        raise OpError(FAILED, f"{path}: {error.strerror}") from error


class Disk:
    """A block device: `name` as in /sys/block, `size` in bytes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/dev/{name}"
        self.size = int(read_text(f"/sys/block/{name}/size")) * 512

    def queue(self, attribute: str) -> int:
        try:
            return int(read_text(f"/sys/block/{self.name}/queue/{attribute}"))
        except (OSError, ValueError):
            return -1

    def queues(self) -> int:
        """Hardware queues; 0 of a device that has none, such as zram."""
        try:
            return len(os.listdir(f"/sys/block/{self.name}/mq"))
        except OSError:
            return 0

    def discard(self, offset: int = 0, length: int | None = None) -> None:
        self._range_ioctl(BLKDISCARD, offset, self.size - offset if length is None else length, "discard")

    def zero(self, offset: int, length: int) -> None:
        self._range_ioctl(BLKZEROOUT, offset, length, "write-zeroes")

    def _range_ioctl(self, number: int, offset: int, length: int, what: str) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, number, struct.pack("=QQ", offset, length))
        except OSError as error:
            raise OpError(FAILED, f"{what} of {self.name}: {error.strerror}") from error
        finally:
            os.close(fd)


def serials() -> dict[str, str]:
    """Serial -> name of every virtio disk."""
    found = {}
    for name in sorted(os.listdir("/sys/block")):
        try:
            serial = read_text(f"/sys/block/{name}/serial")
        except OSError:
            continue
        if serial:
            found[serial] = name
    return found


def find(serial: str) -> Disk:
    """The disk with that serial. Raises OpError(NOT_FOUND), naming those that exist."""
    known = serials()
    # the kernel cuts serials at 20 bytes (VIRTIO_BLK_ID_BYTES)
    name = known.get(serial[:20])
    if name is None:
        raise OpError(NOT_FOUND, f"no disk with serial {serial!r}; there are {sorted(known)}")
    return Disk(name)
