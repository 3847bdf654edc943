# SPDX-License-Identifier: Apache-2.0
"""Takes requests from the port and answers them: short ones at once, long ones in a thread each."""

import _thread
import contextlib
import functools
import threading
from collections.abc import Callable

from . import blockio, command, files, lend, modules, pages, protocol, report, stats, swap, workload
from .port import HostGone, Port
from .protocol import FAILED, INVALID, OpError, Refusal, Request

Operation = Callable[[Request], dict[str, object]]


def _speak(request: Request) -> dict[str, object]:
    # Imported by who needs it: it brings more modules than the rest of the agent, and all of them are locked in memory.
    from . import speak

    return speak.OPERATIONS[request.op](request)


SHORT: dict[str, Operation] = {
    "hello": stats.hello,
    "meminfo": stats.meminfo,
    "vmstat": stats.vmstat,
    "dmesg": stats.dmesg,
    "zram_stat": swap.zram_stat,
    "workload_cancel": workload.workload_cancel,
    "command_stop": command.command_stop,
    "report": lambda _request: {"report": report.collect()},
}
LONG: dict[str, Operation] = {
    "swap_on": swap.swap_on,
    "swap_off": swap.swap_off,
    "zram_setup": swap.zram_setup,
    "io": blockio.io,
    "files_read": files.files_read,
    "lend": lend.lend,
    "lend_stop": lend.lend_stop,
    "module_load": modules.module_load,
    "module_unload": modules.module_unload,
    "debugfs_read": modules.debugfs_read,
    **dict.fromkeys(("abi_open", "abi_request", "abi_time", "abi_close"), _speak),
}


#: Operations that say something on the way: how the lines of their programs are passed on.
TALKING: dict[str, Callable[[Request, Callable[[bytes], None]], dict[str, object]]] = {
    "workload": workload.workload,
    "command": command.command,
}


class Server:
    """One port. `write` takes whole frames and may block; it raises HostGone when nobody is there to read."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._reader = protocol.FrameReader()
        #: What the present host asked for. One that comes later is told nothing of it: its numbers begin anew.
        self._connection = object()
        self._session = ""
        self.stopped = False

    def host_gone(self) -> None:
        """Nobody is at the other end: what runs for them ends, what they began to say is forgotten."""
        self._reader = protocol.FrameReader()
        self._forget()

    def _forget(self) -> None:
        with self._lock:
            self._connection = object()
        workload.cancel_all()

    def _send(self, data: bytes, connection: object) -> None:
        with self._lock:
            if connection is not self._connection:
                raise HostGone
            self._write(data)

    def feed(self, data: bytes) -> None:
        """Handles every whole frame in `data`."""
        for frame in self._reader.feed(data):
            if isinstance(frame, Refusal):
                self._tell({"id": frame.id, "ok": False, "kind": INVALID, "error": frame.reason}, self._connection)
            else:
                self._dispatch(frame, self._connection)

    def _tell(self, answer: dict[str, object], connection: object) -> None:
        with contextlib.suppress(HostGone):
            self._send(protocol.encode(answer), connection)

    def _dispatch(self, request: Request, connection: object) -> None:
        if request.op == "shutdown":
            self._tell({"id": request.id, "ok": True}, connection)
            self.stopped = True
            return
        if request.op == "hello":
            connection = self._greet(request)
        if request.op in SHORT:
            self._answer(request, SHORT[request.op], connection)
            return
        operation: Operation
        if request.op in LONG:
            operation = LONG[request.op]
        elif request.op in TALKING:
            operation = functools.partial(self._talk, connection)
        elif request.op == "sample_pages":
            operation = functools.partial(self._sample_pages, connection)
        else:
            operation = self._unknown
        _thread.start_new_thread(self._answer, (request, operation, connection))

    def _greet(self, request: Request) -> object:
        """A host that comes as another has just left is told by what it calls itself: nobody saw the port closed."""
        session = request.args.get("session", "")
        if isinstance(session, str) and session != self._session:
            self._session = session
            self._forget()
        return self._connection

    def _answer(self, request: Request, operation: Operation, connection: object) -> None:
        try:
            answer = {"id": request.id, "ok": True, **operation(request)}
        except HostGone:
            return
        except OpError as error:
            answer = {"id": request.id, "ok": False, "kind": error.kind, "error": error.message}
        except Exception as error:  # an operation must not take the agent, which is PID 1, with it
            answer = {"id": request.id, "ok": False, "kind": FAILED, "error": f"{type(error).__name__}: {error}"}
        self._tell(answer, connection)

    def _talk(self, connection: object, request: Request) -> dict[str, object]:
        def pass_on(line: bytes) -> None:
            self._send(protocol.encode_event(request.id, request.op, line), connection)

        return TALKING[request.op](request, pass_on)

    def _sample_pages(self, connection: object, request: Request) -> dict[str, object]:
        return pages.sample_pages(
            request, lambda event: self._send(protocol.encode({"id": request.id, **event}), connection)
        )

    def _unknown(self, request: Request) -> dict[str, object]:
        raise OpError(INVALID, f"unknown op {request.op!r}")


def serve(port: Port) -> None:
    """Answers on a port until the host asks for the guest's end."""
    server = Server(port.write)
    while not server.stopped:
        data = port.read()
        if data:
            server.feed(data)
        elif data is not None:
            server.host_gone()
