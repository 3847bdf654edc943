# SPDX-License-Identifier: Apache-2.0
"""Progress of `tmem bench all`: which bench, where in it, and the time left for all."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tmem_host.bench.all_estimate import time_left
from tmem_host.bench.all_outcome import Outcome
from tmem_host.bench.progress import ProgressView, human_seconds
from tmem_host.bench.progress_pipe import Event

#: Seconds after which a bench that says nothing new has its last word repeated: logs show that it lives.
_STILL = 30.0


class Overall:
    """Shows the events of one bench after the other as one run. `expected`: seconds of each, in their order."""

    def __init__(self, view: ProgressView, expected: Mapping[str, float]) -> None:
        self._view = view
        self._expected = dict(expected)
        self._name = ""
        self._start = 0.0
        self._told: tuple[float, float] | None = None
        self._step = ""
        self._steps = 0
        self._done = 0
        self._said = ""
        self._last = 0.0
        self._saying = False
        view.plan(len(expected) + 2)  # the verdict and the report, too
        if expected:
            view.note(f"{', '.join(expected)}: about {human_seconds(sum(expected.values()))}")

    def begin(self, name: str) -> None:
        """The bench `name` is begun."""
        self._name = name
        self._start = time.monotonic()
        self._told = None
        self._step, self._steps, self._done = "", 0, 0
        self._said, self._last = "at work", self._start
        self._view.step(name, self.left())

    def watch(self, event: Event | None) -> None:
        """What the bench says of itself; None: time passes."""
        if event is None:
            self._view.remaining(self.left())
            if time.monotonic() - self._last >= _STILL:
                self._detail(self._said)
        elif event.kind == "plan":
            self._steps += event.steps
        elif event.kind == "step":
            count = f"{self._done + 1}/{self._steps} " if self._steps else ""
            self._step = f"{count}{event.text}"
            self._told = None if event.left is None else (time.monotonic(), event.left)
            self._view.remaining(self.left())
            self._detail(self._step)
        elif event.kind == "detail":
            self._detail(f"{self._step}: {event.text}" if self._step else event.text)
        elif event.kind == "advance":
            self._done += 1
        else:
            self._view.note(f"{self._name}: {event.text}")

    def _detail(self, text: str) -> None:
        self._said, self._last = text, time.monotonic()
        self._view.detail(text)

    def end(self, outcome: Outcome) -> None:
        """The bench is over."""
        del self._expected[outcome.name]
        took = "" if outcome.seconds is None else f" in {human_seconds(outcome.seconds)}"
        self._view.note(f"{outcome.name}: {outcome.said()}{took}{f': {outcome.reason}' if outcome.reason else ''}")
        self._view.advance()

    def say(self, text: str) -> None:
        """Now doing what belongs to no bench, a step of its own."""
        if self._saying:
            self._view.advance()
        self._saying = True
        self._view.step(text)

    def left(self) -> float:
        """Seconds until all benches are done."""
        now = time.monotonic()
        told = None if self._told is None else self._told[1] - (now - self._told[0])
        later = [seconds for name, seconds in self._expected.items() if name != self._name]
        return time_left(self._expected.get(self._name, 0.0), now - self._start, told, later)
