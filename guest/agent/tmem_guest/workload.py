# SPDX-License-Identifier: Apache-2.0
"""Programs that need more memory than there is: started on request, their lines passed on, ended with the host."""

import os
import signal
import threading
from collections.abc import Callable

from . import disks, procs
from .protocol import INVALID, NOT_FOUND, OpError, Request

#: Where the programs may be: of an installed agent, and of the small image.
FOLDERS = ("/usr/lib/tmem-guest", "/bin")
#: Where a build's files go, unless the request names another folder.
SCRATCH = ("/var/tmp", "/run")

#: Names and bounds of what is a number; the programs' heads say what each means (guest/hog/hog.c, guest/work/main.c).
_SEED = 1 << 62
_COMMON = {"mib": 1 << 20, "seed": _SEED, "samples": 65536}
_HOG = {**_COMMON, "passes": 1000, "rewrite": 100}
_HOG_FLAGS = ("recheck", "verify")
_WORK = {**_COMMON, "seconds": 1_000_000, "percent": 100}
_WORKLOADS = {
    "zipf": {**_WORK, "count": 1 << 40, "rewrite": 100, "check": 1, "theta": 99},
    "redis": {**_WORK, "count": 1 << 40, "rewrite": 100, "check": 1, "theta": 99, "value": 32768},
    "build": {**_WORK, "jobs": 100_000, "parallel": 64, "object_kib": 65536, "sources": 1000},
}
_OTHERS = {"hog": (*_HOG_FLAGS, "corpus", "pattern"), "build": ("dir",)}
KINDS = ("hog", *_WORKLOADS)


class _Running:
    """Process groups by the request that started them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: dict[int, int] = {}

    def add(self, request_id: int, pid: int) -> None:
        with self._lock:
            self._groups[request_id] = pid

    def kill(self, request_id: int) -> bool:
        """False when there is none."""
        with self._lock:
            pid = self._groups.get(request_id)
            if pid is not None:
                os.killpg(pid, signal.SIGKILL)
        return pid is not None

    def kill_all(self) -> None:
        with self._lock:
            for pid in self._groups.values():
                os.killpg(pid, signal.SIGKILL)

    def reap(self, request_id: int, pid: int) -> int:
        """Waits for the end; its exit status, negative for a signal. Until it is reaped its number is nobody else's."""
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            del self._groups[request_id]
        return procs.wait(pid)


_running = _Running()


def arguments(request: Request, scratch: str = "") -> list[str]:
    """The command line for a request, or OpError. ``scratch``: an empty folder, which a build needs."""
    kind = request.text("kind")
    if kind not in KINDS:
        raise OpError(INVALID, f"kind must be one of {', '.join(KINDS)}")
    numbers = _WORKLOADS.get(kind, _HOG)
    known = {"kind", *numbers, *_OTHERS.get(kind, ())}
    if unknown := sorted(set(request.args) - known):
        raise OpError(INVALID, f"{kind} has no argument {unknown[0]!r}")
    request.number("mib", low=1)
    words = [f"{name}={request.number(name, high=high)}" for name, high in numbers.items() if request.has(name)]
    if kind == "hog":
        words += [f"{name}={int(request.flag(name))}" for name in _HOG_FLAGS if request.has(name)]
        words.append(f"pattern={_pattern(request)}")
        return [_program("hog"), *words]
    if kind == "build":
        words.append(f"dir={scratch}")
    return [_program("work"), kind, *words]


def _program(name: str) -> str:
    for folder in FOLDERS:
        if os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    raise OpError(NOT_FOUND, f"the program {name!r} is not in {' or '.join(FOLDERS)}")


def _pattern(request: Request) -> str:
    if request.has("corpus"):
        return f"corpus:{disks.find(request.text('corpus')).path}"
    pattern = request.text("pattern", "synthetic:50")
    head, _, percent = pattern.partition(":")
    if pattern not in ("same", "zero") and (head != "synthetic" or not percent.isdecimal() or int(percent) > 100):
        raise OpError(INVALID, "pattern must be same, zero or synthetic:PERCENT; a corpus is named by `corpus`")
    return pattern


def workload(request: Request, emit_line: Callable[[bytes], None]) -> dict[str, object]:
    """{kind, mib, ...} -> every line of the program as an event, then {status}; negative: the signal that ended it."""
    scratch = _make_scratch(request) if request.args.get("kind") == "build" else ""
    try:
        pid, read_end = procs.spawn(arguments(request, scratch), group=True)
        _running.add(request.id, pid)
        try:
            for line in procs.lines(read_end):
                emit_line(line)
        except BaseException:
            # Nobody listens any more: it would run for nothing.
            _running.kill(request.id)
            raise
        finally:
            status = _running.reap(request.id, pid)
        return {"status": status}
    finally:
        if scratch:
            _remove_scratch(scratch)


def _make_scratch(request: Request) -> str:
    folder = request.text("dir") if request.has("dir") else next(filter(os.path.isdir, SCRATCH), SCRATCH[0])
    path = f"{folder}/tmem-work-{os.getpid()}-{request.id}"
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise OpError(INVALID, f"dir: {path}: {error.strerror}") from error
    return path


def _remove_scratch(path: str) -> None:
    for name in os.listdir(path):
        os.unlink(f"{path}/{name}")
    os.rmdir(path)


def workload_cancel(request: Request) -> dict[str, object]:
    """{target}: ends the workload that request `target` started; its answer then has a negative status."""
    if not _running.kill(request.number("target")):
        raise OpError(NOT_FOUND, "no workload runs for that request")
    return {}


def cancel_all() -> None:
    """Nobody is there any more to be told."""
    _running.kill_all()
