# SPDX-License-Identifier: Apache-2.0
"""One bench as a process of its own: watched, asked to stop, ended with all it started."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Literal, Self

from tmem_host.bench.comparators_process import dies_with_parent
from tmem_host.bench.progress_pipe import Event, decode

PROGRAM: Sequence[str] = (sys.executable, "-m", "tmem_host.cli")
"""What a bench is run with, as `PROGRAM bench NAME ...`."""

Watch = Callable[[Event | None], None]
"""Called with each event of the bench, and with None at least twice a second."""

_TICK = 0.5
#: Seconds after the first request to stop: for the second, which also ends what does not wait for anything, and for
#: the end by force. One turn of a thousand micro-VMs on one CPU takes some 20 s, and cannot be cut short.
_INSIST = 20.0
_FORCE = 60.0


class Interrupts:
    """Ctrl-C and SIGTERM as a request that is looked at, for the length of the block: none can cut off a report."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        #: No time is left to end in good order.
        self.forced = False

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._request) for number in self._SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self._SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True


@dataclass(frozen=True)
class Ended:
    """How a bench's process ended. `code` is negative for a signal; `stopped` is why it was asked to, if it was."""

    code: int
    seconds: float
    stopped: Literal["interrupt", "limit"] | None = None


def run_child(arguments: Sequence[str], log: Path, *, watch: Watch, interrupts: Interrupts, limit: float) -> Ended:
    """Runs `PROGRAM arguments` to its end, to an interrupt, or to its time `limit` in seconds.

    What it prints goes to `log`. It has a session of its own, so that a Ctrl-C is ours to handle, and does not outlive
    us; none of its session outlives it.
    """
    start = monotonic()
    reader, writer = os.pipe()
    try:
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*PROGRAM, *arguments, "--progress-fd", str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                env={**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    try:
        stopped = _follow(process.pid, reader, watch, interrupts, start + limit)
    finally:
        os.close(reader)
        # Not waited for yet, its process group is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Ended(process.returncode, monotonic() - start, stopped)


def _follow(
    pid: int, reader: int, watch: Watch, interrupts: Interrupts, end: float
) -> Literal["interrupt", "limit"] | None:
    """Passes events on until the process has ended; asks it to when it must. Returns why it was asked."""
    stopped: Literal["interrupt", "limit"] | None = None
    steps: list[tuple[float, signal.Signals]] = []
    rest = b""
    process = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as waiting:
            waiting.register(process, selectors.EVENT_READ)
            waiting.register(reader, selectors.EVENT_READ)
            while True:
                ready = {found.fd for found, _ in waiting.select(_TICK)}
                if reader in ready:
                    data = os.read(reader, 1 << 16)
                    if not data:
                        waiting.unregister(reader)
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        if (event := decode(line)) is not None:
                            watch(event)
                elif process in ready:
                    return stopped
                watch(None)
                now = monotonic()
                if stopped is None and (interrupts.requested or now > end):
                    stopped = "interrupt" if interrupts.requested else "limit"
                    steps = [(0.0, signal.SIGINT), (_INSIST, signal.SIGINT), (_FORCE, signal.SIGKILL)]
                    steps = [(now + after, number) for after, number in steps]
                if interrupts.forced:
                    steps = [(now, signal.SIGKILL)]
                while steps and now >= steps[0][0]:
                    _send(pid, steps.pop(0)[1])
    finally:
        os.close(process)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
