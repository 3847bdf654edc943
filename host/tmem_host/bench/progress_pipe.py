# SPDX-License-Identifier: Apache-2.0
"""Progress from one process to another: each call of a `ProgressView` as a line of JSON in a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Literal, Self

Kind = Literal["plan", "step", "detail", "advance", "note"]
_KINDS = ("plan", "step", "detail", "advance", "note")
#: Seconds between two details: a bench may tell its position thousands of times.
_DETAIL_SECONDS = 0.2


@dataclass(frozen=True)
class Event:
    """One call of the view. `steps` is plan's, `left` (seconds, None: unknown) is step's."""

    kind: Kind
    text: str = ""
    steps: int = 0
    left: float | None = None

    def encode(self) -> bytes:
        """The line, its end included."""
        return json.dumps(asdict(self)).encode() + b"\n"


def decode(line: bytes) -> Event | None:
    """The event of a line; None for what is none: a child that dies may leave half a line."""
    try:
        data = json.loads(line)
        kind, text, steps, left = data["kind"], data["text"], data["steps"], data["left"]
    except (ValueError, KeyError, TypeError):
        return None
    if kind not in _KINDS or not isinstance(text, str) or not isinstance(steps, int):
        return None
    return Event(kind, text, steps, float(left) if isinstance(left, (int, float)) else None)


class PipedProgress:
    """The child's end."""

    def __init__(self, descriptor: int) -> None:
        # Not for the programs that a bench starts: the reader sees the end of this process by the pipe's end.
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._last = 0.0

    def _send(self, event: Event) -> None:
        with contextlib.suppress(OSError):  # a reader that has gone is no reason to stop measuring
            os.write(self._descriptor, event.encode())

    def plan(self, steps: int) -> None:
        self._send(Event("plan", steps=steps))

    def step(self, text: str, left: float | None = None) -> None:
        self._send(Event("step", text, left=left))

    def detail(self, text: str) -> None:
        if time.monotonic() - self._last >= _DETAIL_SECONDS:
            self._last = time.monotonic()
            self._send(Event("detail", text))

    def advance(self) -> None:
        self._send(Event("advance"))

    def note(self, text: str) -> None:
        self._send(Event("note", text))

    def remaining(self, left: float | None) -> None:
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
