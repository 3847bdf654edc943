# SPDX-License-Identifier: Apache-2.0
"""Runs the memory hog and passes its lines on."""

import os
import signal
from collections.abc import Callable

from . import disks, procs
from .protocol import INVALID, NOT_FOUND, OpError, Request

HOG = "/bin/hog"
_NUMBERS = {"passes": 1000, "rewrite": 100, "samples": 65536, "seed": 1 << 62}
_FLAGS = ("recheck", "verify")

_running: dict[int, int] = {}  # request id -> pid


def arguments(request: Request) -> list[str]:
    """The hog's command line for a request, or OpError."""
    argv = [HOG, f"mib={request.number('mib', low=1, high=1 << 20)}"]
    argv += [f"{name}={request.number(name, high=high)}" for name, high in _NUMBERS.items() if request.has(name)]
    argv += [f"{name}={int(request.flag(name))}" for name in _FLAGS if request.has(name)]
    if request.has("corpus"):
        argv.append(f"pattern=corpus:{disks.find(request.text('corpus')).path}")
    else:
        pattern = request.text("pattern", "synthetic:50")
        head, _, percent = pattern.partition(":")
        if pattern not in ("same", "zero") and (head != "synthetic" or not percent.isdecimal() or int(percent) > 100):
            raise OpError(INVALID, "pattern must be same, zero or synthetic:PERCENT; a corpus is named by `corpus`")
        argv.append(f"pattern={pattern}")
    return argv


def hog(request: Request, emit_line: Callable[[bytes], None]) -> dict[str, object]:
    """{mib, pattern|corpus, seed, passes, rewrite, recheck, verify, samples} -> every line of the hog as an event."""
    pid, read_end = procs.spawn(arguments(request))
    _running[request.id] = pid
    try:
        for line in procs.lines(read_end):
            emit_line(line)
    finally:
        status = procs.wait(pid)
        del _running[request.id]
    return {"status": status}


def hog_stop(request: Request) -> dict[str, object]:
    """{target}: ends the hog that request `target` started."""
    pid = _running.get(request.number("target"))
    if pid is None:
        raise OpError(NOT_FOUND, "no hog runs for that request")
    os.kill(pid, signal.SIGKILL)
    return {}
