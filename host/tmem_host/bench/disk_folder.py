# SPDX-License-Identifier: Apache-2.0
"""Whether a folder is a place for the disk arms: on a disk, with room, and with direct I/O."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tmem_host.bench.properties import filesystem_of
from tmem_host.config import MIB

#: File systems that are memory and no disk.
_MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
_HINT: Final = "choose a folder on a real disk with --disk-dir"


def cannot_hold(folder: Path, need_bytes: int, *, direct: bool) -> str:
    """Why a file of a disk arm cannot lie in the folder; empty when it can. `direct`: opened with O_DIRECT."""
    kind = filesystem_of(folder)
    if kind in _MEMORY:
        return f"{folder} is on {kind}, which is memory and no disk: {_HINT}"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder}: {error.strerror}: {_HINT}"
    if free < need_bytes:
        return f"{folder} has {free // MIB} MiB free and {need_bytes // MIB} are needed: {_HINT}"
    if direct:
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            try:
                os.close(os.open(probe.name, os.O_RDWR | os.O_DIRECT))
            except OSError:
                return f"{kind} at {folder} has no direct I/O (O_DIRECT): {_HINT}"
    return ""


def disk_kind(folder: Path) -> str:
    """hdd, ssd or nvme, after the kernel's name and word for the disk under the folder; empty for all others."""
    number = folder.stat().st_dev
    found = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not found.exists():
        return ""
    device = found.resolve()
    if (device / "partition").exists():
        device = device.parent
    if device.name.startswith("nvme"):
        return "nvme"
    if not device.name.startswith("sd"):
        return ""
    return "hdd" if (device / "queue" / "rotational").read_text().strip() == "1" else "ssd"


@contextlib.contextmanager
def disk_file(folder: Path) -> Iterator[Path]:
    """An empty file in the folder, removed when the block ends."""
    handle, name = tempfile.mkstemp(prefix="tmem-disk-", suffix=".img", dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
