# SPDX-License-Identifier: Apache-2.0
"""Foreign programs as children: they die with us, and leave nothing behind.

The kernel kills a child when the thread that started it ends (PR_SET_PDEATHSIG, prctl(2)): start children from the main
thread only, which an asyncio program does by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tmem_host.errors import Unavailable, VmFailed

_PR_SET_PDEATHSIG = 1
#: Loaded before any fork: between fork and exec only async-signal-safe calls are allowed.
_libc = ctypes.CDLL(None, use_errno=True)


def dies_with_parent(parent: int | None = None) -> Callable[[], None]:
    """What to pass as `preexec_fn`: the child gets SIGKILL when its parent ends, also if that was a moment ago."""
    expected = os.getpid() if parent is None else parent

    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != expected:
            os._exit(127)

    return in_child


@dataclass(frozen=True)
class Finished:
    """A program that ended as it should."""

    stdout: str
    stderr: str


async def run(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, deadline: float = 60, good: Sequence[int] = (0,)
) -> Finished:
    """Runs a program to its end, with one of the statuses `good`, within `deadline` seconds.

    Raises VmFailed with its last line of output, Unavailable when it is not there.
    """
    process = await _start(argv, env, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE)
    try:
        out, err = await asyncio.wait_for(process.communicate(), deadline)
    except TimeoutError:
        raise VmFailed(
            f"{_name(argv)} did not end within {deadline:.0f} s", "see whether the machine is overloaded"
        ) from None
    finally:
        await reap(process)
    stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
    if process.returncode not in good:
        raise VmFailed(f"{_name(argv)} failed: {last_line(stderr or stdout) or f'status {process.returncode}'}")
    return Finished(stdout, stderr)


@contextlib.asynccontextmanager
async def daemon(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    sockets: Sequence[Path] = (),
    log: Path,
    deadline: float = 20,
    stdin: int = asyncio.subprocess.DEVNULL,
    stdout: int | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server for the length of the block, ready when all its `sockets` exist; they are removed at the end."""
    for path in sockets:
        path.unlink(missing_ok=True)
    with log.open("ab") as sink:
        process = await _start(argv, env, stdin=stdin, stdout=sink if stdout is None else stdout, stderr=sink)
    try:
        await _appear(process, argv, sockets, log, deadline)
        yield process
    finally:
        await reap(process)
        for path in sockets:
            path.unlink(missing_ok=True)


async def _appear(
    process: asyncio.subprocess.Process, argv: Sequence[str], sockets: Sequence[Path], log: Path, deadline: float
) -> None:
    """Waits until every socket is there. Raises VmFailed when the program ends before, or the deadline passes."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not all(path.is_socket() for path in sockets):
        if process.returncode is not None:
            said = _last_of(log)
            raise VmFailed(f"{_name(argv)} ended at once: {said or f'status {process.returncode}'}", f"see {log}")
        if loop.time() > end:
            raise VmFailed(f"{_name(argv)} made no socket within {deadline:.0f} s", f"see {log}")
        await asyncio.sleep(0.01)


async def reap(process: asyncio.subprocess.Process, *, grace: float = 5) -> None:
    """Ends the process if it still runs: asked first, killed after `grace` seconds. Survives being cancelled itself."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), grace)
    except TimeoutError:
        _kill(process)
        await process.wait()
    except asyncio.CancelledError:
        _kill(process)
        raise


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


async def _start(
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    *,
    stdin: int,
    stdout: int | object,
    stderr: int | object = asyncio.subprocess.PIPE,
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            env={**os.environ, **env} if env else None,
            stdin=stdin,
            stdout=stdout,  # type: ignore[arg-type]  # a file object is accepted too
            stderr=stderr,  # type: ignore[arg-type]
            preexec_fn=dies_with_parent(),
        )
    except FileNotFoundError:
        raise Unavailable(f"{argv[0]} is not there", "run 'python -m tmem_host.bench.comparators build'") from None
    except PermissionError as error:
        raise Unavailable(
            f"{argv[0]} cannot be run: {error.strerror}", "run 'python -m tmem_host.bench.comparators build'"
        ) from error


def cpu_ns(pid: int) -> int:
    """CPU time of all live threads of a process in nanoseconds, from `/proc/PID/task/*/schedstat` (Linux
    Documentation/scheduler/sched-stats.rst: the first number is time on the CPU).

    `/proc/PID/stat` counts in ticks of 10 ms: too coarse for one short run.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end while we look
            total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total


def _last_of(log: Path) -> str:
    return last_line(log.read_text(encoding="utf-8", errors="replace"))


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _name(argv: Sequence[str]) -> str:
    """The program's own name, also when it is run through the tree's loader (`--argv0 NAME`)."""
    if "--argv0" in argv[:6]:
        return argv[list(argv).index("--argv0") + 1]
    return Path(argv[0]).name
