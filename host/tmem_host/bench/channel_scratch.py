# SPDX-License-Identifier: Apache-2.0
"""A folder in shared memory that is gone after the run, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tmem_host.errors import NoSpace

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "tmem-scratch-"


@contextlib.contextmanager
def scratch(need_bytes: int) -> Iterator[Path]:
    """A private folder below /dev/shm with room for `need_bytes`, removed with all it holds when the block ends.

    What an earlier bench left when it was killed outright is removed first. Raises NoSpace.
    """
    remove_left_over()
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < need_bytes:
        raise NoSpace(
            f"{SHARED_MEMORY} has {free >> 20} MiB free and the bench needs {need_bytes >> 20} MiB",
            "make room there, or run with --quick",
        )
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=SHARED_MEMORY))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_over() -> int:
    """Removes folders of benches whose process is gone; returns how many."""
    removed = 0
    for folder in SHARED_MEMORY.glob(f"{_PREFIX}*-*"):
        owner = folder.name[len(_PREFIX) :].split("-", 1)[0]
        if owner.isdigit() and not Path("/proc", owner).exists() and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def memory_available() -> int:
    """Bytes of memory that can be had without swapping: MemAvailable (proc(5))."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
