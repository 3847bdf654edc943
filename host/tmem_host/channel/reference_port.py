# SPDX-License-Identifier: Apache-2.0
"""The reference of the host's end of a stream: bytes in, bytes out. :mod:`.reference` answers the requests in it."""

from __future__ import annotations

from tmem_host.channel.frames import BadFrame, FrameReader, Kind, encode
from tmem_host.channel.reference import ReferenceChannel


class ReferencePort:
    """One connection. ``secret``: of its SYNC, 16 bytes that the guest cannot guess."""

    def __init__(self, channel: ReferenceChannel, secret: bytes) -> None:
        channel.reset()
        self._channel = channel
        self._reader = FrameReader(secret)
        #: What is sent first.
        self.opening = encode(Kind.SYNC, secret)
        #: Bodies of the control frames that came.
        self.control: list[bytes] = []
        #: Bytes came that are no frame: the connection is at its end, and what follows them is not looked at.
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """What is answered to it."""
        replies = []
        try:
            for kind, body in self._reader.feed(data):
                if kind is Kind.REQUEST:
                    replies.append(encode(Kind.REPLY, self._channel.request(body)))
                elif kind is Kind.CONTROL:
                    self.control.append(body)
        except BadFrame:
            self.ended = True
        return b"".join(replies)
