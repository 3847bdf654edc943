# SPDX-License-Identifier: Apache-2.0
"""What the user sees while a bench runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


def human_seconds(seconds: float) -> str:
    """'45 s', '3 min 05 s': as long as a person wants to read."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


class TimeLeft:
    """Estimates the time left from the steps done so far: each step counts as long as its kind took on average.

    A step is (kind); kinds not seen yet count as the mean of all steps seen.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def done(self, kind: str, seconds: float) -> None:
        """One step of `kind` took `seconds`."""
        self._seconds.setdefault(kind, []).append(seconds)

    def left(self, kinds: list[str]) -> float | None:
        """Seconds that the steps still to come will take; None before anything was measured."""
        every = [s for values in self._seconds.values() for s in values]
        if not every:
            return None
        mean = sum(every) / len(every)
        return sum(sum(self._seconds[k]) / len(self._seconds[k]) if k in self._seconds else mean for k in kinds)


class ProgressView(Protocol):
    """Where progress goes."""

    def plan(self, steps: int) -> None:
        """`steps` are still to come (adds to what was planned before)."""

    def step(self, text: str, left: float | None = None) -> None:
        """Now doing `text`; `left` seconds remain, if known."""

    def detail(self, text: str) -> None:
        """A finer position within the step."""

    def advance(self) -> None:
        """One step is finished."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def remaining(self, left: float | None) -> None:
        """`left` seconds remain from now on, within the step; None: unknown."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LiveProgress:
    """A bar and one line on a terminal (stderr, so that --json output stays clean)."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[bench]}", style="bold"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="cyan"),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=console,
            transient=True,
        )
        self._task: TaskID = self._progress.add_task("starting", total=None, bench="tmem", left="", detail="")

    def plan(self, steps: int) -> None:
        total = self._progress.tasks[0].total or 0
        self._progress.update(self._task, total=total + steps)

    def step(self, text: str, left: float | None = None) -> None:
        self.remaining(left)
        self._progress.update(self._task, description=text, detail="")

    def detail(self, text: str) -> None:
        self._progress.update(self._task, detail=text)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def remaining(self, left: float | None) -> None:
        self._progress.update(self._task, left="" if left is None else f"~{human_seconds(left)} left")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class PlainProgress:
    """One line per step, for logs and pipes. Details are shown at most every 5 s."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()
        self._steps = 0
        self._done = 0
        self._last = 0.0
        self._left: float | None = None

    def _print(self, text: str) -> None:
        at = human_seconds(time.monotonic() - self._start)
        self._last = time.monotonic()
        self._console.print(f"[{at:>11}] {text}", highlight=False, markup=False, soft_wrap=True)

    def plan(self, steps: int) -> None:
        self._steps += steps

    def step(self, text: str, left: float | None = None) -> None:
        count = f"{self._done + 1}/{self._steps} " if self._steps else ""
        self._left = None
        self._print(f"{count}{text}{_in_brackets(left)}")

    def detail(self, text: str) -> None:
        if time.monotonic() - self._last >= 5:
            self._print(f"  {text}{_in_brackets(self._left)}")

    def advance(self) -> None:
        self._done += 1

    def note(self, text: str) -> None:
        self._print(text)

    def remaining(self, left: float | None) -> None:
        self._left = left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def _in_brackets(left: float | None) -> str:
    return "" if left is None else f"  (~{human_seconds(left)} left)"


class NoProgress(PlainProgress):
    """Nothing at all: for tests and for callers that show their own."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))


def progress_view(console: Console) -> ProgressView:
    """The view that suits the console."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)
