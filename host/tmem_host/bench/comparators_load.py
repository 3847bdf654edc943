# SPDX-License-Identifier: Apache-2.0
"""How busy the machine is with other work: latencies of a shared machine say little, and the results must say so."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tmem_host.bench.runner import BenchContext

_SECONDS = 1.0
#: Share of the machine's CPU time from which a reader is warned.
_BUSY = 0.05
#: Fields of the first line of /proc/stat that are not work: idle and iowait (proc(5)).
_IDLE_FIELDS = (3, 4)


async def note_load(ctx: BenchContext, when: str) -> float:
    """Measures the share of CPU time that others use while we sleep, and keeps it; a warning when it is not small.

    Returns the share, 0 to 1. `when` is start or end.
    """
    before = _times()
    await asyncio.sleep(_SECONDS)
    share = busy_share(before, _times())
    ctx.configure(**{f"busy_{when}": round(share, 3)})
    if share > _BUSY:
        ctx.note(
            f"Others used {share:.0%} of the machine's CPU time at the {when} of the run: repeat it when it is idle."
        )
    return share


def busy_share(before: list[int], after: list[int]) -> float:
    """Share of time that was not idle between two readings of the fields of /proc/stat's first line."""
    passed = [b - a for a, b in zip(before, after, strict=True)]
    total = sum(passed)
    return 1 - sum(passed[i] for i in _IDLE_FIELDS) / total if total > 0 else 0.0


def _times() -> list[int]:
    # Guest time is part of user time already: the first eight fields are all there is.
    return [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
