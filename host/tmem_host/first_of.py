# SPDX-License-Identifier: Apache-2.0
"""Work that is worth nothing any more once something else has happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

_T = TypeVar("_T")


@asynccontextmanager
async def first_of(work: Awaitable[_T], other: Awaitable[object]) -> AsyncIterator[asyncio.Future[_T]]:
    """Waits until one of the two is over; the block sees from the work, which it is given, whether that is the one.

    At the end of the block, and when the wait is cancelled, both are over: cancelled if need be.
    """
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(other)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        yield tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
