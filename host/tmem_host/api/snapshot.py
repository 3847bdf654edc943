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

#: Seconds after which an answer is made anew, while the old one still serves.
AGE: Final = 0.1
#: Seconds that figures may be old.
AGE_MAX: Final = 0.5
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

    def good(self, change: int, age: float) -> bool:
        """Nothing was changed since it was begun, and it is still being made, or not older than ``age`` seconds."""
        if self.change != change:
            return False
        if not self.task.done():
            return True
        failed = self.task.cancelled() or self.task.exception() is not None
        return not failed and time.monotonic() - self.began < age


class Snapshots:
    """Answers by question.  For one event loop."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        #: What is made now, or was made last, and what was made before that.
        self._made: dict[object, _Made] = {}
        self._before: dict[object, _Made] = {}

    async def get(self, question: object, make: Callable[[], bytes]) -> bytes:
        """The answer to ``question``, which ``make`` makes in a worker thread."""
        found = self._made.get(question)
        if found is None or not found.good(self._changes.count, AGE):
            task = asyncio.create_task(asyncio.to_thread(make))
            if found is not None and found.good(self._changes.count, AGE_MAX):
                self._before[question] = found
            found = _Made(self._changes.count, time.monotonic(), task)
            self._made.pop(question, None)
            self._made[question] = found
            if len(self._made) > _QUESTIONS:
                oldest = next(iter(self._made))
                del self._made[oldest]
                self._before.pop(oldest, None)
        before = self._before.get(question)
        if not found.task.done() and before is not None and before.good(self._changes.count, AGE_MAX):
            return before.task.result()
        # Who goes away does not take the answer of the others along.
        return await asyncio.shield(found.task)
