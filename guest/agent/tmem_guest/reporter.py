# SPDX-License-Identifier: Apache-2.0
"""The pages port while no module has it: the host's SYNC is answered, and reports go out as control frames."""

import contextlib
import threading
import time
from collections.abc import Callable

from .frames import BadFrame, FrameReader, Kind, encode
from .port import HostGone, Port


class Reporter:
    """Holds the port in a thread of its own, so that a host which does not read keeps nobody else waiting."""

    def __init__(self, path: str, every: float, report: Callable[[], bytes]) -> None:
        """``report`` makes the body of a control frame. Raises OSError: EBUSY when somebody has the port."""
        self._port = Port(path)
        self._every = every
        self._report = report
        self._reader = FrameReader()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # The port may be taken away, as any device may.
        with contextlib.suppress(OSError):
            try:
                self._serve()
            finally:
                self._port.close()

    def _serve(self) -> None:
        due = time.monotonic()
        while True:
            left = due - time.monotonic()
            data = self._port.read(max(0.0, left))
            try:
                if data:
                    self._take(data)
                elif data is not None:
                    # Whoever comes next begins with a SYNC.
                    self._reader = FrameReader()
                if time.monotonic() >= due:
                    if self._reader.in_step:
                        self._port.write(encode(Kind.CONTROL, self._report()))
                    due = time.monotonic() + self._every
            except HostGone:
                self._reader = FrameReader()

    def _take(self, data: bytes) -> None:
        """Answers a SYNC; there is nothing else that a host would have to say here."""
        try:
            for frame in self._reader.feed(data):
                if frame.kind == Kind.SYNC:
                    self._port.write(encode(frame.kind, frame.body))
        except BadFrame:
            self._reader = FrameReader()
