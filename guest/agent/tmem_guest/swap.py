# SPDX-License-Identifier: Apache-2.0
"""Swap devices: virtio disks and zram."""

import errno
import os
import struct
import time

from . import disks, libc, procs
from .protocol import BUSY, FAILED, INVALID, NOT_FOUND, OpError, Request

PAGE = 4096


def header(pages: int) -> bytes:
    """First page of a swap device of that many pages (union swap_header, linux/swap.h)."""
    page = bytearray(PAGE)
    struct.pack_into("=III", page, 1024, 1, pages - 1, 0)  # version, last page, number of bad pages
    page[PAGE - 10 :] = b"SWAPSPACE2"
    return bytes(page)


def active() -> dict[str, tuple[int, int]]:
    """Device path -> (bytes, bytes used) of every active swap device."""
    found = {}
    with open("/proc/swaps", encoding="ascii") as stream:
        for line in stream.readlines()[1:]:
            path, _kind, size, used, _priority = line.split()
            found[path] = (int(size) * 1024, int(used) * 1024)
    return found


def _start(disk: disks.Disk, priority: int, discard: bool) -> None:
    if disk.path in active():
        raise OpError(BUSY, f"{disk.name} is already a swap device")
    if disk.size < 10 * PAGE:
        raise OpError(INVALID, f"{disk.name} has {disk.size} bytes: too small for swap")
    flags = libc.SWAP_FLAG_PREFER | priority | (libc.SWAP_FLAG_DISCARD if discard else 0)
    with open(disk.path, "r+b", buffering=0) as stream:
        stream.write(header(disk.size // PAGE))
        os.fsync(stream.fileno())
        # Still open: the header stays in the page cache, where swapon finds it also when the device keeps nothing.
        try:
            libc.swapon(disk.path, flags)
        except OSError as error:
            raise OpError(FAILED, f"swapon {disk.path}: {error.strerror}") from error


def start(disk: disks.Disk, *, priority: int, discard: bool, page_cluster: int | None) -> dict[str, object]:
    """Makes the disk a swap device; what was set and found.

    A virtio disk counts as rotational, and for a rotational disk the kernel keeps no clusters and sends no discards
    when slots are freed: so `queue/rotational` is cleared first. Freed swap then gives the host its memory back.
    """
    discard_max = disk.queue("discard_max_bytes")
    disks.write_text(f"/sys/block/{disk.name}/queue/rotational", "0")
    if page_cluster is not None:
        disks.write_text("/proc/sys/vm/page-cluster", str(page_cluster))
    _start(disk, priority, discard and discard_max > 0)
    return {
        "device": disk.path,
        "bytes": disk.size,
        "discard": discard and discard_max > 0,
        "discard_max_bytes": discard_max,
        "rotational": disk.queue("rotational"),
        "queues": disk.queues(),
        "page_cluster": int(disks.read_text("/proc/sys/vm/page-cluster")),
    }


def swap_on(request: Request) -> dict[str, object]:
    """{serial | device, discard=true, priority=100, page_cluster?, require_discard=false} -> what was set and found."""
    disk = _disk(request)
    discard_max = disk.queue("discard_max_bytes")
    if request.flag("require_discard", False) and discard_max <= 0:
        raise OpError(FAILED, f"{disk.name} takes no discards (discard_max_bytes is {discard_max})")
    return start(
        disk,
        priority=request.number("priority", 100, 0, 32767),
        discard=request.flag("discard", True),
        page_cluster=request.number("page_cluster", high=10) if request.has("page_cluster") else None,
    )


def _swapoff(path: str) -> None:
    """swapoff(2), in a process of its own: when memory gets short the kernel kills whoever is in that call first, and
    this one may be who serves the pages (lend.py).
    """
    pid = os.fork()
    if pid == 0:
        number = errno.EIO
        try:
            libc.swapoff(path)
            number = 0
        except OSError as error:
            number = error.errno or errno.EIO
        finally:
            os._exit(number)
    status = procs.wait(pid)
    if status < 0:
        raise OpError(FAILED, f"swapoff {path}: the kernel ended it, as the pages on it do not fit in memory")
    if status > 0:
        raise OpError(FAILED, f"swapoff {path}: {os.strerror(status)}")


def stop(disk: disks.Disk, *, discard: bool) -> dict[str, object]:
    """Ends a swap device, which reads every page back first. Raises OpError: failed when they do not fit in memory.

    The kernel discards whole clusters (2 MiB) only, so parts of clusters stay behind: `discard` drops the rest.
    """
    known = active()
    if disk.path not in known:
        raise OpError(NOT_FOUND, f"{disk.name} is not a swap device")
    began = time.monotonic()
    _swapoff(disk.path)
    seconds = time.monotonic() - began
    discarded = discard and disk.queue("discard_max_bytes") > 0
    if discarded:
        disk.discard()
    return {"device": disk.path, "seconds": seconds, "used_before": known[disk.path][1], "discarded": discarded}


def swap_off(request: Request) -> dict[str, object]:
    """{serial | device, discard_after=true} -> {seconds, used_before, discarded}."""
    disk = _disk(request)
    ended = stop(disk, discard=request.flag("discard_after", True))
    if disk.name.startswith("zram"):
        disks.write_text(f"/sys/block/{disk.name}/reset", "1")
    return ended


def _disk(request: Request) -> disks.Disk:
    """By serial, or by name where there is none: zram's, and those of tmem.ko."""
    if not request.has("device"):
        return disks.find(request.text("serial"))
    name = request.text("device").removeprefix("/dev/")
    if not name.removeprefix("zram").removeprefix("tmem").removeprefix("f").isdigit():
        raise OpError(INVALID, "device must be one of zram or tmem; other disks are named by serial")
    if not os.path.exists(f"/sys/block/{name}"):
        raise OpError(NOT_FOUND, f"there is no disk {name}")
    return disks.Disk(name)


def zram_setup(request: Request) -> dict[str, object]:
    """{size_mib, algo="lz4", priority=100, page_cluster?} -> zram0 made and swapped on."""
    algo = request.text("algo", "lz4")
    if not algo.replace("-", "").isalnum():
        raise OpError(INVALID, "algo must be a compressor's name")
    size = request.number("size_mib", low=1, high=1 << 20)
    if not os.path.exists("/sys/block/zram0"):
        for name in disks.read_text("/lib/modules/zram.order").split():
            load_module(name)
    if "/dev/zram0" in active():
        raise OpError(BUSY, "zram0 is already a swap device")
    root = "/sys/block/zram0"
    disks.write_text(f"{root}/reset", "1")
    offered = disks.read_text(f"{root}/comp_algorithm").replace("[", "").replace("]", "").split()
    if algo not in offered:
        raise OpError(INVALID, f"this kernel's zram has no {algo}; it has {offered}")
    disks.write_text(f"{root}/comp_algorithm", algo)
    disks.write_text(f"{root}/disksize", f"{size}M")
    if request.has("page_cluster"):
        disks.write_text("/proc/sys/vm/page-cluster", str(request.number("page_cluster", high=10)))
    _start(disks.Disk("zram0"), request.number("priority", 100, 0, 32767), True)
    return {
        "device": "/dev/zram0",
        "algorithm": disks.read_text(f"{root}/comp_algorithm"),
        "offered": offered,
        "page_cluster": int(disks.read_text("/proc/sys/vm/page-cluster")),
    }


def zram_stat(_request: Request) -> dict[str, object]:
    """zram's own counters (Documentation/admin-guide/blockdev/zram.rst, mm_stat): bytes and pages."""
    if not os.path.exists("/sys/block/zram0"):
        raise OpError(NOT_FOUND, "there is no zram device; zram_setup makes one")
    names = ("orig_data_size", "compr_data_size", "mem_used_total", "mem_limit", "mem_used_max", "same_pages")
    values = disks.read_text("/sys/block/zram0/mm_stat").split()
    return {name: int(value) for name, value in zip(names, values, strict=False)}


def load_module(name: str) -> None:
    """Loads /lib/modules/NAME.ko of the root disk, unless it is in the kernel already."""
    if not os.path.exists(f"/sys/module/{name.replace('-', '_')}"):
        procs.run(["/bin/busybox", "insmod", f"/lib/modules/{name}.ko"])
