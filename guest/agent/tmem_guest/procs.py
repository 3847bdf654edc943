# SPDX-License-Identifier: Apache-2.0
"""Child processes, without the weight of the subprocess module."""

import functools
import os
import signal
from collections.abc import Callable, Iterator

from .protocol import FAILED, OpError


def spawn(argv: list[str], *, group: bool = False, errors: bool = False) -> tuple[int, int]:
    """Starts argv with its stdout on a pipe: (pid, read end). ``group``: it leads one, to be signalled as a whole.

    ``errors``: its stderr goes there, too.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, write_end, target) for target in ((1, 2) if errors else (1,))]
        begin = functools.partial(os.posix_spawn, setpgroup=0) if group else os.posix_spawn
        pid = begin(argv[0], argv, {"PATH": "/bin:/usr/bin:/sbin:/usr/sbin"}, file_actions=actions)
    except OSError as error:
        os.close(read_end)
        raise OpError(FAILED, f"{argv[0]}: {error.strerror}") from error
    finally:
        os.close(write_end)
    return pid, read_end


def lines(read_end: int) -> Iterator[bytes]:
    """Lines from a pipe until its end, without their newlines."""
    with open(read_end, "rb", buffering=65536) as stream:
        for line in stream:
            yield line.rstrip(b"\n")


def wait(pid: int) -> int:
    """Exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(argv: list[str]) -> str:
    """Output of a short command. Raises OpError when it fails."""
    pid, read_end = spawn(argv)
    output = b"\n".join(lines(read_end)).decode(errors="replace")
    status = wait(pid)
    if status != 0:
        raise OpError(FAILED, f"{' '.join(argv)}: status {status}")
    return output


def spawn_child(work: Callable[[], None]) -> tuple[int, Callable[[], None]]:
    """Forks a child that runs `work` and then waits: (pid, function that ends it)."""
    ready_r, ready_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            os.write(ready_w, b"1")
            status = 0
            while True:
                signal.pause()
        finally:
            os._exit(status)
    os.close(ready_w)
    ok = os.read(ready_r, 1)
    os.close(ready_r)

    def end() -> None:
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own
        wait(pid)

    if not ok:
        wait(pid)
        raise OpError(FAILED, "the sampled workload ended early")
    return pid, end
