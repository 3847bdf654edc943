# SPDX-License-Identifier: Apache-2.0
"""Answers for whoever polls: made once for all who ask within a moment, and never older than the last change.

The list of 200 VMs takes tens of milliseconds of the one interpreter to make; fifty clients that look once a second
would keep it busy with nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: Seconds that figures may be old.
AGE: Final = 0.1
#: Different questions that are remembered.
_QUESTIONS: Final = 16


class Changes:
    """Counts what was changed through the API, in the loop's thread."""

    def __init__(self) -> None:
        self.count = 0


@dataclass
class _Made:
    change: int
    began: float
    task: asyncio.Task[bytes]


class Snapshots:
    """Answers by question.  For one event loop."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._made: dict[object, _Made] = {}

    async def get(self, question: object, make: Callable[[], bytes]) -> bytes:
        """The answer to ``question``, which ``make`` makes in a worker thread."""
        found = self._made.get(question)
        if found is None or not self._good(found):
            task = asyncio.create_task(asyncio.to_thread(make))
            found = _Made(self._changes.count, time.monotonic(), task)
            self._made.pop(question, None)
            self._made[question] = found
            if len(self._made) > _QUESTIONS:
                del self._made[next(iter(self._made))]
        # Who goes away does not take the answer of the others along.
        return await asyncio.shield(found.task)

    def _good(self, made: _Made) -> bool:
        """Nothing was changed since it was begun, and it is young or still being made."""
        if made.change != self._changes.count:
            return False
        if not made.task.done():
            return True
        failed = made.task.cancelled() or made.task.exception() is not None
        return not failed and time.monotonic() - made.began < AGE
