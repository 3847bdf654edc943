# SPDX-License-Identifier: Apache-2.0
"""An agent as a child process, for tests and benches: started, killed, started again on the same state."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from tmem_host.client import AgentClient
from tmem_host.config import default_arena
from tmem_host.errors import VmFailed, one_line
from tmem_host.first_of import first_of

#: Seconds that a start may take: recovery of a large arena, and a machine busy with guests.
START_DEADLINE: Final = 60.0
#: Seconds that a stop in good order may take before the agent is killed.
STOP_DEADLINE: Final = 30.0

_T = TypeVar("_T")


class AgentProcess:
    """``tmem serve`` on ``state``; ends with the ``with`` block, and with this process whatever happens to it.

    Extra arguments go to the command as they are.  Not for several threads at once.
    """

    def __init__(
        self,
        state: Path | str,
        arena: Path | str | None = None,
        limit: int | str | None = None,
        *,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.state = Path(state).absolute()
        self.arena = None if arena is None else Path(arena).absolute()
        self.limit = limit
        self.arguments = arguments
        self.client = AgentClient(self.state)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running agent; :class:`VmFailed` when none runs."""
        if self._process is None:
            raise VmFailed(f"no agent runs on {self.state}", "call start()")
        return self._process.pid

    @property
    def command(self) -> list[str]:
        options = ["--state", str(self.state), "--parent", str(os.getpid())]
        if self.arena is not None:
            options += ["--arena", str(self.arena)]
        if self.limit is not None:
            options += ["--limit", str(self.limit)]
        return [sys.executable, "-m", "tmem_host.cli", "serve", *options, *self.arguments]

    def start(self, deadline: float = START_DEADLINE) -> None:
        """Returns when the agent serves; raises :class:`VmFailed` with its last words when it ends before."""
        if self._process is not None:
            raise VmFailed(f"an agent runs on {self.state} already", "stop it first")
        with tempfile.TemporaryDirectory(prefix="tmem-") as folder, contextlib.ExitStack() as stack:
            ready = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
            address = str(Path(folder) / "notify")
            ready.bind(address)
            words = stack.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                env={**os.environ, "NOTIFY_SOCKET": address},
                # Ctrl-C is for the one who started us; the agent ends in good order after the guests.
                start_new_session=True,
            )
            try:
                self._await_ready(self._process, ready, time.monotonic() + deadline)
            except VmFailed as error:
                self.kill()
                words.seek(0)
                last = words.read().decode("utf-8", "replace").strip().splitlines()
                raise VmFailed(f"{error.message}: {one_line(last[-1]) if last else 'it said nothing'}") from None
            except BaseException:
                self.kill()
                raise

    def kill(self) -> None:
        """SIGKILL, and reaped when this returns.  Nothing to do when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self, deadline: float = STOP_DEADLINE) -> None:
        """SIGTERM; killed after ``deadline`` seconds.  :class:`VmFailed` when it did not end in good order."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(deadline)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise VmFailed(f"the agent on {self.state} did not stop in {deadline:.0f} s", "see agent.log") from None
        except BaseException:
            process.kill()
            process.wait()
            raise
        if code != 0:
            raise VmFailed(f"the agent on {self.state} ended with {code}", "see agent.log")

    def restart(self) -> None:
        """Started again on the same state; stopped in good order first when it runs."""
        self.stop()
        self.start()

    async def ended(self) -> None:
        """Returns when the agent that runs now has ended, of itself or by another's hand."""
        watched = os.pidfd_open(self.pid)
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(watched, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(watched)
            os.close(watched)

    async def beside(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What ``work`` comes to. It is cancelled with :class:`VmFailed` when the agent that runs now ends before."""
        async with first_of(work, self.ended()) as working:
            if not working.done():
                raise VmFailed(f"the agent on {self.state} has ended meanwhile", "see agent.log there")
            return await working

    @staticmethod
    def _await_ready(process: subprocess.Popen[bytes], ready: socket.socket, until: float) -> None:
        watched = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(ready, select.POLLIN)
            poll.register(watched, select.POLLIN)
            while True:
                events = dict(poll.poll(max(0.0, until - time.monotonic()) * 1000))
                if ready.fileno() in events and b"READY=1" in ready.recv(4096).split(b"\n"):
                    return
                if watched in events:
                    raise VmFailed(f"the agent ended with {process.wait()} before it was ready")
                if not events:
                    raise VmFailed("the agent was not ready in time")
        finally:
            os.close(watched)


@contextlib.contextmanager
def temporary_agent(limit: int | str) -> Iterator[AgentProcess]:
    """An agent on a state folder and an arena of its own; both are gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="tmem-agent-") as folder:
        state = Path(folder)
        arena = default_arena(state)
        try:
            with AgentProcess(state, arena, limit) as agent:
                yield agent
        finally:
            arena.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                arena.parent.rmdir()
