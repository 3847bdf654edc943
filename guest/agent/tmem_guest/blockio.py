# SPDX-License-Identifier: Apache-2.0
"""Direct I/O on a disk with verified contents: tests of a channel without any swapping."""

import errno
import mmap
import os
import time

from . import disks, swap
from .protocol import BUSY, FAILED, INVALID, OpError, Request

PAGE = 4096


def fill(buffer: mmap.mmap, offset: int, seed: int) -> None:
    """Content that depends on each sector's place and on the seed, half of it compressible."""
    for at in range(0, len(buffer), 512):
        word = ((offset + at) * 0x9E3779B97F4A7C15 + seed * 0xBF58476D1CE4E5B9) % (1 << 64)
        head = b"".join((word * (k + 1) % (1 << 64)).to_bytes(8, "little") for k in range(4))
        buffer[at : at + 512] = head * 8 + bytes(256)


def io(request: Request) -> dict[str, object]:
    """{serial, action, offset=0, bytes, block=65536, seed=1} -> {bad_blocks, nanoseconds: [per block], error?}

    action: write, verify (reads and compares), zero-check (reads and expects zeroes), discard, write-zeroes, flush.
    `error` is an errno name when the device failed a request: that is an answer, so that tests can ask for it.
    """
    disk = disks.find(request.text("serial"))
    if disk.path in swap.active():
        raise OpError(BUSY, f"{disk.name} is in use as swap")
    action = request.text("action")
    offset = request.number("offset", 0, 0, disk.size)
    size = request.number("bytes", disk.size - offset, 0, disk.size - offset)
    block = request.number("block", 65536, 512, 1 << 20)
    if offset % 512 or size % block or block % 512:
        raise OpError(INVALID, "offset and block must be multiples of 512, bytes of block")
    if action in ("discard", "write-zeroes"):
        began = time.monotonic_ns()
        (disk.discard if action == "discard" else disk.zero)(offset, size)
        return {"bad_blocks": 0, "nanoseconds": [time.monotonic_ns() - began]}
    if action not in ("write", "verify", "zero-check", "flush"):
        raise OpError(INVALID, f"unknown action {action!r}")
    fd = os.open(disk.path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        return _blocks(fd, action, offset, size, block, request.number("seed", 1))
    finally:
        os.close(fd)


def _blocks(fd: int, action: str, offset: int, size: int, block: int, seed: int) -> dict[str, object]:
    bad = 0
    times: list[int] = []
    wanted = mmap.mmap(-1, max(block, PAGE))
    found = mmap.mmap(-1, max(block, PAGE))
    answer: dict[str, object] = {}
    try:
        if action == "flush":
            began = time.monotonic_ns()
            os.fsync(fd)
            times.append(time.monotonic_ns() - began)
            size = 0
        for at in range(offset, offset + size, block):
            if action != "zero-check":
                fill(wanted, at, seed)
            view = memoryview(wanted if action == "write" else found)[:block]
            began = time.monotonic_ns()
            done = os.pwritev(fd, [view], at) if action == "write" else os.preadv(fd, [view], at)
            times.append(time.monotonic_ns() - began)
            view.release()
            if done != block:
                raise OpError(FAILED, f"only {done} of {block} bytes at {at}")
            if action != "write":
                bad += found[:block] != wanted[:block]
    except OSError as error:
        answer["error"] = errno.errorcode.get(error.errno or 0, "unknown")
    return {"bad_blocks": bad, "nanoseconds": times, **answer}
