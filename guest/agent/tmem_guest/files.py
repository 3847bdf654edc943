# SPDX-License-Identifier: Apache-2.0
"""Files read through the page cache, and what the disk under them had to give for it."""

import binascii
import os
import stat
import time

from . import disks
from .protocol import NOT_FOUND, OpError, Request

#: Bytes that are read, or dropped, at once.
_PIECE = 256 * 1024


def disk_sectors(device: int) -> int:
    """Sectors of 512 bytes that were read from a block device (Documentation/block/stat.rst, third number)."""
    return int(disks.read_text(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").split()[2])


def pieces(root: str) -> list[tuple[str, int]]:
    """Every piece of every regular file below `root` on its filesystem, in an order that is the same each time."""
    device = os.stat(root).st_dev
    found = []
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                status = entry.stat(follow_symlinks=False)
                if status.st_dev != device:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.path)
                elif stat.S_ISREG(status.st_mode):
                    found += [(entry.path, at) for at in range(0, status.st_size, _PIECE)]
    return found


def files_read(request: Request) -> dict[str, object]:
    """{path="/", part=0, parts=1, evict=false} -> {bytes, crc, sectors, seconds}: reads a filesystem's files.

    `sectors` is what the disk was asked for meanwhile, by anybody: 0 when all came from memory or from the host.
    Of `parts` parts one is read. `evict`: what nobody maps is dropped from the page cache behind it.
    """
    root = request.text("path", "/")
    parts = request.number("parts", 1, 1, 1024)
    part = request.number("part", 0, 0, parts - 1)
    try:
        device = os.stat(root).st_dev
        wanted = pieces(root)[part::parts]
    except OSError as error:
        raise OpError(NOT_FOUND, f"{root}: {error.strerror}") from error
    before, began = disk_sectors(device), time.monotonic()
    size = crc = 0
    for path, at in wanted:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, _PIECE, at)
        finally:
            os.close(fd)
        size += len(data)
        crc = binascii.crc32(data, crc)
    seconds = time.monotonic() - began
    sectors = disk_sectors(device) - before
    if request.flag("evict", False):
        for path, at in wanted:
            _evict(path, at)
    return {"bytes": size, "crc": crc, "sectors": sectors, "seconds": seconds}


def _evict(path: str, at: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, at, _PIECE, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
