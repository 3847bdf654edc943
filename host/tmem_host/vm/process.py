# SPDX-License-Identifier: Apache-2.0
"""Child processes that cannot outlive this one."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tmem_host.errors import Unavailable
from tmem_host.vm import qemu

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> Callable[[], None]:
    """A function for the child, between fork and exec: SIGKILL when the thread that forked it ends (prctl(2))."""
    parent = os.getpid()

    def set_signal() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have gone before the call.
        if os.getppid() != parent:
            os._exit(127)

    return set_signal


def find_qemu(path: str) -> str:
    """The program's full path. Raises Unavailable."""
    found = shutil.which(path)
    if found is None:
        raise Unavailable(f"there is no {path}", "install qemu-system-x86, or run scripts/install-deps")
    return found


def qemu_version(path: str) -> tuple[qemu.Version, str]:
    """((major, minor), the whole first line). Raises Unavailable when it cannot be run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{path} does not run: {error}", "reinstall QEMU, or give another qemu_path") from error
    return qemu.parse_version(done.stdout), done.stdout.splitlines()[0]


async def spawn(
    argv: list[str], *, stdout: int | None = asyncio.subprocess.DEVNULL, log: Path
) -> asyncio.subprocess.Process:
    """Starts argv in a session of its own (a Ctrl-C is ours to handle), stderr into ``log``."""
    with log.open("ab") as errors:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=errors,
            preexec_fn=die_with_parent(),
            start_new_session=True,
        )


async def kill(child: asyncio.subprocess.Process) -> int:
    """SIGKILL, if it still runs, and its exit status. Reaps it even when the caller is cancelled meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    return await asyncio.shield(child.wait())


def last_line(path: Path) -> str:
    """The last words of a log, or nothing."""
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
