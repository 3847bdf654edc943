# SPDX-License-Identifier: Apache-2.0
"""Compressing a page that its guest changes meanwhile (hypothesis H15), in a process of its own.

A codec that leaves its bounds may take its process down: that is then a figure, not the end of the bench.
`python -m tmem_host.bench.exit_torn CODEC SECONDS SEED < PAGES` prints the counts as JSON.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import dataclass
from typing import Final

from tmem_host.bench import comparators_process
from tmem_host.bench.runner import BenchError

CODECS: Final = ("lz4", "zstd")


@dataclass(frozen=True)
class Torn:
    """What one trial saw."""

    pages: int
    undecodable: int
    overruns: int
    crashes: int


async def trial(codec: str, pages: bytes, *, seconds: float, seed: int) -> Torn:
    """One trial. Raises BenchError when it could not be made."""
    argv = [sys.executable, "-m", "tmem_host.bench.exit_torn", codec, str(seconds), str(seed)]
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=comparators_process.dies_with_parent(),
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(pages), seconds + 60)
    finally:
        await comparators_process.reap(process)
    status = process.returncode or 0
    if status < 0 and -status in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        return Torn(0, 0, 0, 1)
    if status != 0:
        raise BenchError(f"the trial ended with status {status}: {err.decode(errors='replace').strip()[-200:]}")
    found = json.loads(out)
    return Torn(found["pages"], found["undecodable"], found["overruns"], 0)


def main() -> None:
    """The process of a trial."""
    from tmem_host._core import torn_pages

    codec, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(torn_pages(sys.stdin.buffer.read(), codec_name=codec, seconds=seconds, seed=seed)))


if __name__ == "__main__":
    main()
