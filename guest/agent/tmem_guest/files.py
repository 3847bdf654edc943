# SPDX-License-Identifier: Apache-2.0
"""Files read through the page cache, and what the disk under them had to give for it."""

import binascii
import os
import stat
import time

from . import disks
from .protocol import NOT_FOUND, OpError, Request

_CHUNK = 128 * 1024


def disk_sectors(device: int) -> int:
    """Sectors of 512 bytes that were read from a block device (Documentation/block/stat.rst, third number)."""
    return int(disks.read_text(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").split()[2])


def regular_files(root: str) -> list[str]:
    """Every regular file below `root` on its filesystem, in an order that is the same each time."""
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
                    found.append(entry.path)
    return found


def files_read(request: Request) -> dict[str, object]:
    """{path="/"} -> {files, bytes, crc, sectors, seconds}: reads all files of the filesystem at `path`, folders below.

    `sectors` is what the disk was asked for meanwhile, by anybody: 0 when all came from memory or from the host.
    """
    root = request.text("path", "/")
    try:
        device = os.stat(root).st_dev
        paths = regular_files(root)
    except OSError as error:
        raise OpError(NOT_FOUND, f"{root}: {error.strerror}") from error
    before, began = disk_sectors(device), time.monotonic()
    size = crc = 0
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while data := os.read(fd, _CHUNK):
                size += len(data)
                crc = binascii.crc32(data, crc)
        finally:
            os.close(fd)
    seconds = time.monotonic() - began
    sectors = disk_sectors(device) - before
    return {"files": len(paths), "bytes": size, "crc": crc, "sectors": sectors, "seconds": seconds}
