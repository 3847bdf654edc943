# SPDX-License-Identifier: Apache-2.0
"""Children die with their parent, even when it has no chance to say so."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from tmem_host.vm import process

PARENT = """
import asyncio, sys
from pathlib import Path
from tmem_host.vm import process

async def main():
    child = await process.spawn(["sleep", "1000"], log=Path(sys.argv[1]))
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path / "log"), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    assert alive(child)
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    deadline = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_kill_reaps_and_may_be_repeated(tmp_path: Path) -> None:
    child = await process.spawn(["sleep", "1000"], log=tmp_path / "log")
    assert await process.kill(child) == -signal.SIGKILL
    assert await process.kill(child) == -signal.SIGKILL


async def test_stderr_is_kept(tmp_path: Path) -> None:
    child = await process.spawn(["sh", "-c", "echo first >&2; echo last words >&2"], log=tmp_path / "log")
    await child.wait()
    assert process.last_line(tmp_path / "log") == "last words"
    assert process.last_line(tmp_path / "nothing") == ""
