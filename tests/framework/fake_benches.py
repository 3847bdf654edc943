# SPDX-License-Identifier: Apache-2.0
"""`tmem` with benches that fail on demand: what `tmem bench all` is tested with, as real ones do not crash when asked.

Run as a program it is `tmem`, and the children that `tmem bench all` starts are this program, too. Every bench measures
two arms in two rounds; `--set do=...` says what it does in the second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tmem_host.bench import all_child, runner
from tmem_host.bench.all_plan import ORDER
from tmem_host.bench.runner import Arm, ArmSkipped, BenchContext, BenchError, bench
from tmem_host.errors import Unavailable

PROGRAM = (sys.executable, __file__)
HANGS = "hangs"
"""File in the bench's folder: it hangs now. Holds its process id."""
ARMS = [Arm("a"), Arm("b")]


async def act(ctx: BenchContext) -> None:
    """Measures, or does what it is told."""
    do = ctx.option("do", "measure")
    if do == "unavailable":
        raise Unavailable("there is no such device", "plug it in")
    if do == "no-results":
        os.kill(os.getpid(), signal.SIGSEGV)

    async def turn(arm: Arm, index: int) -> None:
        if do == "skip":
            raise ArmSkipped("this machine cannot")
        ctx.record("latency", "ns", [1.0, 2.0], arm=arm, better="lower")
        if index == 1:
            await _second_round(ctx, do, arm)

    await ctx.interleave(ARMS, rounds=2, run=turn)
    if do == "late":
        raise ValueError("a figure does not add up")


async def _second_round(ctx: BenchContext, do: str, arm: Arm) -> None:
    if do == "arm-fails" and arm.name == "b":
        raise BenchError("the device is gone")
    if do == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if do == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if do in ("hang", "stubborn"):
        (ctx.out / HANGS).write_text(str(os.getpid()), encoding="ascii")
        await asyncio.Event().wait()


def install() -> None:
    """Makes all benches of this process stand-ins."""
    for name in ORDER:
        bench(name)(act)


def main() -> None:
    """`tmem`, with stand-ins."""
    from tmem_host.cli import main as tmem

    install()
    all_child.PROGRAM = PROGRAM
    sys.path.insert(0, str(Path(__file__).parent.parent))
    tmem()


if __name__ == "__main__":
    assert runner.MODULES.keys() >= set(ORDER)
    main()
