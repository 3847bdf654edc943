# SPDX-License-Identifier: Apache-2.0
"""What guests say beside their pages: taken up in a loop of its own, away from the agent's API.

A guest may lie and flood.  The core lets a bounded amount through (:class:`_core.StreamServer`); what does come through
is read in this thread, so that nothing which waits in the API's loop waits for a guest.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeVar

from pydantic import ValidationError

from tmem_host.channel.serial import SerialPort
from tmem_host.errors import Conflict, InvalidInput
from tmem_host.models import GuestReport
from tmem_host.state import first_error

T = TypeVar("T")

#: What the module counts, by source and name.
_COUNTER: Final = re.compile("(blkdev|frontswap|cleancache)_[a-z_]{1,32}")


class ControlLoop:
    """An event loop in a thread, begun when it is first needed.  Its methods are for other threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, or what it raises.  Conflict after :meth:`close`."""
        with self._lock:
            if self._closed:
                work.close()
                raise Conflict("the agent is stopping", "ask the next one")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="tmem-control", daemon=True)
                self._thread.start()
            loop = self._loop
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    def close(self) -> None:
        """Ends the thread.  Whatever ran in it has been ended before."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


class ChannelServer(Protocol):
    """What serves one channel of a VM: the core's servers, and :class:`SerialChannel`."""

    def stats(self) -> dict[str, Any]: ...
    def set_poll(self, poll_us: int) -> None: ...
    def stop(self) -> None: ...


class SerialChannel:
    """A VM's open port as the service holds it, from any thread."""

    def __init__(self, loop: ControlLoop, port: SerialPort) -> None:
        """Serves; raises :class:`TmemError`."""
        self._loop = loop
        self._port = port
        loop.run(port.open())

    def stats(self) -> dict[str, Any]:
        return self._port.stats()

    def set_poll(self, poll_us: int) -> None:
        """A socket is waited for in the kernel: there is nothing to spin on."""

    def stop(self) -> None:
        self._loop.run(self._port.close())


class GuestReports:
    """The latest that a guest said of itself; called with each of its control messages.

    A report is ``{"op": "report", ...}`` with the fields of :class:`GuestReport`; those of ``counters`` are beside
    the others.
    """

    def __init__(self) -> None:
        #: Replaced as one, so that readers in other threads see a report and its time.
        self._latest: tuple[GuestReport, float] | None = None

    def __call__(self, message: dict[str, Any]) -> None:
        """Keeps a report.  Raises InvalidInput for what is none; the one before stays then."""
        if message.get("op") != "report":
            raise InvalidInput("it is no report")
        counters = {name: value for name, value in message.items() if _COUNTER.fullmatch(name)}
        try:
            report = GuestReport.model_validate({**message, "counters": counters})
        except ValidationError as error:
            raise InvalidInput(f"a report with {first_error(error)}") from error
        self._latest = report, time.monotonic()

    def latest(self) -> GuestReport | None:
        """With its age; None before the first."""
        if self._latest is None:
            return None
        report, at = self._latest
        return report.model_copy(update={"age_seconds": time.monotonic() - at})
