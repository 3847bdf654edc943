# SPDX-License-Identifier: Apache-2.0
"""Messages on a byte stream, as ``guest/abi/tmem_abi.h`` says. For both sides: see :mod:`.abi`."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .abi import BATCH_MAX, DATA_MAX, ITEM_SIZE, REQUEST_SIZE

_HEADER = struct.Struct("<II")
FRAME_SIZE = _HEADER.size
FRAME_MAX = DATA_MAX + REQUEST_SIZE + ITEM_SIZE * BATCH_MAX
CONTROL_MAX = 65536
SYNC_SIZE = 16


class Kind(enum.IntEnum):
    """``TMEM_FRAME_*``: the first four bytes, little-endian."""

    REQUEST = 0x716D7430
    REPLY = 0x726D7430
    CONTROL = 0x636D7430
    SYNC = 0x736D7430


_MOST = {Kind.REQUEST: FRAME_MAX, Kind.REPLY: FRAME_MAX, Kind.CONTROL: CONTROL_MAX, Kind.SYNC: SYNC_SIZE}
_KINDS = frozenset(Kind)


class Frame(NamedTuple):
    """One whole frame."""

    kind: Kind
    body: bytes


class BadFrame(Exception):
    """Bytes that are no frame: the stream is at its end."""


def encode(kind: Kind, body: bytes) -> bytes:
    """A frame as bytes."""
    return _HEADER.pack(kind, len(body)) + body


class FrameReader:
    """Cuts a stream into frames, in bounded memory.

    A host gives the bytes of the SYNC that it sent: everything before that comes back is dropped. A guest gives none:
    everything before any SYNC is dropped. That SYNC is the first frame.
    """

    def __init__(self, sync: bytes | None = None) -> None:
        self._wrong = Kind.REPLY if sync is not None else Kind.REQUEST
        self._pattern = encode(Kind.SYNC, sync) if sync is not None else _HEADER.pack(Kind.SYNC, SYNC_SIZE)
        self._buffer = bytearray()
        self._in_step = False
        self._ended: BadFrame | None = None

    @property
    def in_step(self) -> bool:
        """True from the SYNC on."""
        return self._in_step

    @property
    def held(self) -> int:
        """Bytes held of what is not whole yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now, to be iterated over. That raises BadFrame where the stream ends."""
        if self._ended is None:
            self._buffer += data
            if not self._in_step:
                self._seek()
        return self._frames()

    def _frames(self) -> Iterator[Frame]:
        if self._ended is not None:
            raise self._ended
        while self._in_step and len(self._buffer) >= FRAME_SIZE:
            magic, length = _HEADER.unpack_from(self._buffer)
            if magic not in _KINDS or magic == self._wrong or length > _MOST[Kind(magic)]:
                self._end(magic, length)
            if magic == Kind.SYNC and length != SYNC_SIZE:
                self._end(magic, length)
            if len(self._buffer) < FRAME_SIZE + length:
                return
            frame = Frame(Kind(magic), bytes(self._buffer[FRAME_SIZE : FRAME_SIZE + length]))
            del self._buffer[: FRAME_SIZE + length]
            yield frame

    def _end(self, magic: int, length: int) -> None:
        self._buffer.clear()
        self._ended = BadFrame(f"no frame: magic {magic:#010x}, length {length}")
        raise self._ended

    def _seek(self) -> None:
        found = self._buffer.find(self._pattern)
        if found >= 0:
            del self._buffer[:found]
            self._in_step = True
        else:
            del self._buffer[: max(0, len(self._buffer) - len(self._pattern) + 1)]
