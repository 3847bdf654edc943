# SPDX-License-Identifier: Apache-2.0
"""An open virtio-serial port. A host that leaves is noticed, and nothing waits for it in the middle of a message."""

import os
import select
import time

#: The driver allocates a buffer as large as each write: small, where memory is short.
_WRITE = 4096
#: Seconds between two looks while nobody is at the other end: there is no event to wait for.
_SOON, _LATER = 0.02, 0.5


class HostGone(Exception):
    """Nobody is at the other end: what was to be written is not, or in part."""


class Port:
    """One reader and any number of writers, who take turns among themselves."""

    def __init__(self, path: str) -> None:
        """Raises OSError: EBUSY when somebody has the port open."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._fd, select.POLLIN)
        self._writable.register(self._fd, select.POLLOUT)
        self._pause = _SOON

    def close(self) -> None:
        os.close(self._fd)

    def read(self, seconds: float | None = None) -> bytes | None:
        """What has come, waiting for it; None when nothing came in time, empty while nobody is at the other end."""
        events = self._readable.poll(None if seconds is None else seconds * 1000)
        if not events:
            return None
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return None
        if data:
            self._pause = _SOON
        else:
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, _LATER)
        return data

    def write(self, data: bytes) -> None:
        """Writes all of it, however slowly it is read. Raises HostGone."""
        view = memoryview(data)
        while view:
            (_fd, events), *_ = self._writable.poll()
            if events & select.POLLHUP:
                raise HostGone
            try:
                view = view[os.write(self._fd, view[:_WRITE]) :]
            except BlockingIOError:
                continue
