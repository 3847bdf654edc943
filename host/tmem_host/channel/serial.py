# SPDX-License-Identifier: Apache-2.0
"""A VM's virtio-serial port: pages are served by the core, control frames come here.

The monitor listens on a Unix socket (QEMU: ``-chardev socket,server=on,wait=off``); the core connects whenever somebody
listens there. Control frames carry one JSON object each; what the guest says beyond that shape is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import socket as sockets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tmem_host.channel.frames import CONTROL_MAX
from tmem_host.core import Engine, StreamServer, core_errors
from tmem_host.errors import Conflict, InvalidInput, one_line

Message = Mapping[str, Any]
Listener = Callable[[dict[str, Any]], None]

_LONGEST: Final = CONTROL_MAX + 1
#: Bytes of messages that may wait for a guest.
_UNSENT: Final = 1 << 20


class PortState(enum.Enum):
    """NEW -> OPEN -> CLOSED; nothing else. Whether a guest is there is in :meth:`SerialPort.stats`."""

    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class SerialPort:
    """One VM's port, a channel of ``engine``'s VM; ``vm`` names it in errors and logs.

    ``listener`` is called with each control message of the guest, in the event loop.  What it raises refuses that one.
    """

    def __init__(self, engine: Engine, vm: str, socket: Path, listener: Listener) -> None:
        self._engine = engine
        self._vm = vm
        self._socket = socket
        self._listener = listener
        self._log = logging.getLogger(f"{__name__}.{vm}")
        self._state = PortState.NEW
        self._server: StreamServer | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._refused = 0

    @property
    def state(self) -> PortState:
        return self._state

    async def open(self) -> None:
        """Starts serving. Raises Conflict when it was open before."""
        if self._state is not PortState.NEW:
            raise Conflict(f"the port of {self._vm} is {self._state.value}", "make a new one")
        ours, theirs = sockets.socketpair()
        try:
            with core_errors(f"virtio-serial port of {self._vm}"):
                # The core takes this descriptor over, also when it fails.
                self._server = StreamServer(self._engine, str(self._socket), theirs.detach())
            reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=_LONGEST)
        except BaseException:
            ours.close()
            await self.close()
            raise
        self._state = PortState.OPEN
        self._task = asyncio.create_task(self._read(reader), name=f"serial-{self._vm}")

    def send(self, message: Message) -> None:
        """Sends a control message, once the guest is there. Raises InvalidInput for one that is too long, Conflict when
        the guest did not take those before."""
        line = json.dumps(message, separators=(",", ":")).encode()
        if len(line) > CONTROL_MAX:
            raise InvalidInput(f"a message of {len(line)} bytes is too long", f"{CONTROL_MAX} bytes are the most")
        if self._state is not PortState.OPEN or self._writer is None:
            raise Conflict(f"the port of {self._vm} is {self._state.value}", "open it first")
        if self._writer.transport.get_write_buffer_size() > _UNSENT:
            raise Conflict(f"the guest {self._vm} does not listen", "try again when it does")
        self._writer.write(line + b"\n")

    def stats(self) -> dict[str, Any]:
        """Counters of the core, and ``control_refused``: control frames that are no JSON object, or that the listener
        refused."""
        found = self._server.stats() if self._server is not None else {}
        return {**found, "control_refused": self._refused}

    async def close(self) -> None:
        """Ends the connection; the guest's pages stay in the store."""
        self._state = PortState.CLOSED
        if self._task is not None:
            self._task.cancel()
            # Not awaited itself: its cancellation must not be taken for ours.
            await asyncio.wait((self._task,))
            self._task = None
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._writer = None
        server, self._server = self._server, None
        if server is not None:
            # Waits for the request that is being served.
            await asyncio.to_thread(server.stop)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except (asyncio.IncompleteReadError, OSError):
                return
            except asyncio.LimitOverrunError:
                # The core bounds a frame below that, so this is a bug of ours: say it, do not go round in it.
                self._log.exception("a control line is longer than a control frame")
                return
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            try:
                if not isinstance(message, dict):
                    raise InvalidInput("it is no JSON object")
                self._listener(message)
            except Exception as error:  # what a guest says must not end its channel
                self._refused += 1
                # Once a port: the log is not the guest's to fill.
                level = logging.WARNING if self._refused == 1 else logging.DEBUG
                self._log.log(level, "a control message of the guest was refused: %s", one_line(str(error)))
