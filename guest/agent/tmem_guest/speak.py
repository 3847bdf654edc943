# SPDX-License-Identifier: Apache-2.0
"""Speaks the ABI itself over a virtio-serial port, for conformance and latency runs.

Not for swap: a program that forwarded pages would need memory to free memory, see :mod:`.lend`. A stream that failed
in any way is of no use until `abi_open` has brought it in step again.
"""

import array
import base64
import os
import select
import struct
import threading
import time
from collections.abc import Callable

from . import ports
from .abi import BATCH_MAX, PAGE_SIZE, Header, Key, Op, Reply, Status
from .frames import FRAME_MAX, BadFrame, FrameReader, Kind, encode
from .lend import PORT_NAME
from .protocol import BUSY, FAILED, INVALID, NOT_FOUND, OpError, Request

#: What the port's driver takes in one write (drivers/char/virtio_console.c).
_WRITE_MAX = 32 * 1024
#: Seconds that the SYNC of a host that opens the stream just now may take; then it is asked for.
_GRACE = 0.25
#: No frame, so that a host which is in step opens the stream again. One that is not drops it.
_NO_FRAME = struct.pack("<II", 0xFFFF_FFFF, 0xFFFF_FFFF)
#: Seconds for one request.
_PATIENCE = 30.0


class Stream:
    """One open port."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise OpError(BUSY, f"{path}: {error.strerror}; is it lent?") from error
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._fd, select.POLLIN)
        self._writable.register(self._fd, select.POLLOUT)
        self._reader = FrameReader()
        self._replies: list[bytes] = []
        self._syncs = 0
        self._in_step = False
        self.lock = threading.Lock()
        #: The beginning of a message that comes in pieces.
        self.begun = bytearray()

    def close(self) -> None:
        os.close(self._fd)

    def synchronise(self, deadline: float) -> None:
        """Answers the host's next SYNC. Deadlines are those of time.monotonic()."""
        self._in_step = False
        self._reader = FrameReader()
        before, until = self._syncs, min(deadline, time.monotonic() + _GRACE)
        while self._syncs == before:
            try:
                self._take(until)
            except TimeoutError:
                if until == deadline:
                    raise
                until = deadline
                self._write(_NO_FRAME, deadline)
        self._in_step = True

    def ask(self, message: bytes) -> bytes:
        """A request's reply."""
        if not self._in_step:
            raise OpError(INVALID, "the stream is out of step: abi_open first")
        self._in_step = False
        deadline = time.monotonic() + _PATIENCE
        before = self._syncs
        self._write(encode(Kind.REQUEST, message), deadline)
        while not self._replies:
            self._take(deadline)
            if self._syncs != before:
                raise OpError(FAILED, "the host has opened the stream anew: abi_open, then HELLO")
        self._in_step = True
        return self._replies.pop()

    def _take(self, deadline: float) -> None:
        """Takes what has come, or waits for it. Raises TimeoutError."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            if not self._readable.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError("the host does not answer") from None
            return
        if not data:
            # Nobody is at the other end; whoever comes begins with SYNC.
            self._reader = FrameReader()
            if time.monotonic() >= deadline:
                raise TimeoutError("the host has closed the port")
            time.sleep(0.002)
            return
        try:
            for kind, body in self._reader.feed(data):
                if kind == Kind.SYNC:
                    self._replies.clear()
                    self._write(encode(kind, body), deadline)
                    self._syncs += 1
                elif kind == Kind.REPLY:
                    self._replies.append(body)
        except BadFrame as error:
            raise OpError(FAILED, f"the host sent {error}") from error

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view[:_WRITE_MAX]) :]
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the host does not read") from None
                events = self._writable.poll(left * 1000)
                if events and not events[0][1] & select.POLLOUT:
                    # Without a host poll() does not wait.
                    time.sleep(0.002)


_streams: dict[str, Stream] = {}
_opening = threading.Lock()


def _stream(request: Request) -> Stream:
    name = request.text("port", PORT_NAME)
    stream = _streams.get(name)
    if stream is None:
        raise OpError(NOT_FOUND, f"{name} is not open: abi_open first")
    return stream


def abi_open(request: Request) -> dict[str, object]:
    """{port="org.kvm-tmem.pages.0", wait_ms=30000} -> {path}: the port is in step, and no HELLO was said.

    A host that is in step is made to open the stream anew.
    """
    name = request.text("port", PORT_NAME)
    wait = request.number("wait_ms", 30_000, 0, 3_600_000)
    path = ports.path_of(name)
    if not path:
        raise OpError(NOT_FOUND, f"there is no virtio-serial port {name}")
    with _opening:
        stream = _streams.get(name)
        if stream is None:
            stream = _streams[name] = Stream(path)
    with stream.lock:
        stream.begun.clear()
        stream.synchronise(time.monotonic() + wait / 1000)
    return {"path": path}


def abi_request(request: Request) -> dict[str, object]:
    """{data, more=false, port=...} -> {data}: a request's reply with its data, both in base64.

    What is too long for one line comes in pieces: with `more` nothing is sent yet, and {} answered.
    """
    stream = _stream(request)
    try:
        data = base64.b64decode(request.text("data"), validate=True)
    except ValueError as error:
        raise OpError(INVALID, f"data is not base64: {error}") from error
    more = request.flag("more", False)
    with stream.lock:
        if len(stream.begun) + len(data) > FRAME_MAX:
            stream.begun.clear()
            raise OpError(INVALID, f"a request has at most {FRAME_MAX} bytes")
        stream.begun += data
        if more:
            return {}
        message = bytes(stream.begun)
        stream.begun.clear()
        return {"data": base64.b64encode(stream.ask(message)).decode()}


def message_of(op: Op, pool: int, index: int, batch: int, span: int, page: bytes) -> bytes:
    """A request for `batch` pages from `index` on, in a pool of which `span` pages are used."""
    header = Header(op, pool=pool, index=index, count=batch)
    items = (Key(index=(index + 1) % span),) if op == Op.EXCHANGE else ()
    return header.encode(items, page * batch if op in (Op.PUT, Op.EXCHANGE) else b"")


def abi_time(request: Request) -> dict[str, object]:
    """{what, pool, count, batch=1, span=1024, port=...} -> {samples}: what each request took, as seen here.

    `what` is put, get, flush_page or exchange; requests go round the first `span` pages of the pool, which must be
    there for a get. A page put is half noise, half zeroes. `samples` are nanoseconds, 64-bit little-endian, in base64.
    """
    timed = {op.name.lower(): op for op in (Op.PUT, Op.GET, Op.FLUSH_PAGE, Op.EXCHANGE)}
    op = timed.get(request.text("what"))
    if op is None:
        raise OpError(INVALID, f"what must be one of {sorted(timed)}")
    pool, count = request.number("pool"), request.number("count", None, 1, 65536)
    batch = request.number("batch", 1, 1, 1 if op == Op.EXCHANGE else BATCH_MAX)
    span = request.number("span", 1024, batch, 1 << 24)
    page = os.urandom(PAGE_SIZE // 2) + bytes(PAGE_SIZE // 2)
    samples = array.array("Q")
    stream = _stream(request)
    with stream.lock:
        for turn in range(count):
            message = message_of(op, pool, turn * batch % (span - batch + 1), batch, span, page)
            began = time.perf_counter_ns()
            raw = stream.ask(message)
            samples.append(time.perf_counter_ns() - began)
            reply = Reply.decode(raw)
            if reply is None or reply.status != Status.OK:
                raise OpError(FAILED, f"request {turn} was answered {reply.status.name if reply else 'no reply'}")
    return {"samples": base64.b64encode(samples.tobytes()).decode()}


def abi_close(request: Request) -> dict[str, object]:
    """{port=...} -> {}: the port is free to be lent."""
    with _opening:
        stream = _stream(request)
        with stream.lock:
            _streams.pop(request.text("port", PORT_NAME)).close()
    return {}


OPERATIONS: dict[str, Callable[[Request], dict[str, object]]] = {
    "abi_open": abi_open,
    "abi_request": abi_request,
    "abi_time": abi_time,
    "abi_close": abi_close,
}
