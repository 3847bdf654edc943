# SPDX-License-Identifier: Apache-2.0
"""Takes requests from the port and answers them: short ones at once, long ones in a thread each."""

import _thread
import os
import threading
from collections.abc import Callable

from . import blockio, files, hog, lend, modules, pages, protocol, stats, swap
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
    "hog_stop": hog.hog_stop,
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


class Server:
    """One port. `write` takes whole frames and may block."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._reader = protocol.FrameReader()
        self.stopped = False

    def _send(self, data: bytes) -> None:
        with self._lock:
            self._write(data)

    def feed(self, data: bytes) -> None:
        """Handles every whole frame in `data`."""
        for frame in self._reader.feed(data):
            if isinstance(frame, Refusal):
                self._send(protocol.encode({"id": frame.id, "ok": False, "kind": INVALID, "error": frame.reason}))
            else:
                self._dispatch(frame)

    def _dispatch(self, request: Request) -> None:
        if request.op == "shutdown":
            self._send(protocol.encode({"id": request.id, "ok": True}))
            self.stopped = True
            return
        if request.op in SHORT:
            self._answer(request, SHORT[request.op])
            return
        operation: Operation
        if request.op in LONG:
            operation = LONG[request.op]
        elif request.op == "hog":
            operation = self._hog
        elif request.op == "sample_pages":
            operation = self._sample_pages
        else:
            operation = self._unknown
        _thread.start_new_thread(self._answer, (request, operation))

    def _answer(self, request: Request, operation: Operation) -> None:
        try:
            answer = {"id": request.id, "ok": True, **operation(request)}
        except OpError as error:
            answer = {"id": request.id, "ok": False, "kind": error.kind, "error": error.message}
        except Exception as error:  # an operation must not take the agent, which is PID 1, with it
            answer = {"id": request.id, "ok": False, "kind": FAILED, "error": f"{type(error).__name__}: {error}"}
        self._send(protocol.encode(answer))

    def _hog(self, request: Request) -> dict[str, object]:
        return hog.hog(request, lambda line: self._send(protocol.encode_event(request.id, "hog", line)))

    def _sample_pages(self, request: Request) -> dict[str, object]:
        return pages.sample_pages(request, lambda event: self._send(protocol.encode({"id": request.id, **event})))

    def _unknown(self, request: Request) -> dict[str, object]:
        raise OpError(INVALID, f"unknown op {request.op!r}")


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        # The port's driver allocates a buffer as large as each write: keep it small where memory is short.
        view = view[os.write(fd, view[:4096]) :]
