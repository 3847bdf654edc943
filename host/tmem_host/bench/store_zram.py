# SPDX-License-Identifier: Apache-2.0
"""The kernel's zram as a comparator: a device of our own, made for the bench and gone after it.

zram's sysfs interface: Linux Documentation/admin-guide/blockdev/zram.rst.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tmem_host.bench.runner import ArmSkipped
from tmem_host.errors import VmFailed

CONTROL = Path("/sys/class/zram-control")
_NODE_SECONDS = 5


@dataclass(frozen=True)
class Zram:
    """A zram device with its size set."""

    number: int

    @property
    def device(self) -> Path:
        return Path(f"/dev/zram{self.number}")

    @property
    def sysfs(self) -> Path:
        return Path(f"/sys/block/zram{self.number}")

    def empty(self, size_bytes: int, algorithm: str) -> None:
        """Frees all pages, and sets the device up again."""
        _write(self.sysfs / "reset", "1")
        _write(self.sysfs / "comp_algorithm", algorithm)
        _write(self.sysfs / "disksize", str(size_bytes))

    def memory(self) -> tuple[int, int, int]:
        """(bytes stored, bytes of compressed data, bytes of memory used), the first three numbers of mm_stat."""
        original, compressed, used = (self.sysfs / "mm_stat").read_text(encoding="ascii").split()[:3]
        return int(original), int(compressed), int(used)


@contextlib.contextmanager
def zram(size_bytes: int, algorithm: str = "lz4") -> Iterator[Zram]:
    """A zram device of `size_bytes` for the block. Raises ArmSkipped with the reason when there can be none."""
    if os.geteuid() != 0:
        raise ArmSkipped("zram needs root to set a device up; run the bench as root to compare with it")
    number, added = _take()
    device = Zram(number)
    try:
        available = (device.sysfs / "comp_algorithm").read_text(encoding="ascii").replace("[", "").replace("]", "")
        if algorithm not in available.split():
            raise ArmSkipped(f"the kernel's zram has no {algorithm}, only {' '.join(available.split())}")
        device.empty(size_bytes, algorithm)
        with _node(device, added):
            yield device
    finally:
        with contextlib.suppress(VmFailed):
            _write(device.sysfs / "reset", "1")
        if added:
            _write(CONTROL / "hot_remove", str(number))


def _take() -> tuple[int, bool]:
    """A device nobody uses: a new one where the kernel can add them, else one that is there and not set up."""
    if (CONTROL / "hot_add").exists():
        return int((CONTROL / "hot_add").read_text(encoding="ascii")), True
    devices = sorted(Path("/sys/block").glob("zram*"))
    if not devices:
        raise ArmSkipped("the kernel has no zram; load it with 'modprobe zram'")
    for path in devices:
        if (path / "initstate").read_text(encoding="ascii").strip() == "0":
            return int(path.name.removeprefix("zram")), False
    raise ArmSkipped(f"{', '.join(p.name for p in devices)}: in use, and the kernel can add no other")


@contextlib.contextmanager
def _node(device: Zram, added: bool) -> Iterator[None]:
    """Sees to it that the device has a node: devtmpfs makes one, but not every container has it."""
    end = time.monotonic() + (_NODE_SECONDS if _devtmpfs() else 0)
    while not device.device.exists() and time.monotonic() < end:
        time.sleep(0.01)
    made = not device.device.exists()
    if made:
        major, minor = (device.sysfs / "dev").read_text(encoding="ascii").split(":")
        os.mknod(device.device, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
    try:
        yield
    finally:
        if made and added:
            device.device.unlink(missing_ok=True)


def _devtmpfs() -> bool:
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    return any(line.split()[1:3] == ["/dev", "devtmpfs"] for line in mounts.splitlines())


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="ascii")
    except OSError as error:
        raise VmFailed(
            f"cannot write {text} to {path}: {error.strerror}", "see whether the device is in use"
        ) from error
