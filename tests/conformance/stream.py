# SPDX-License-Identifier: Apache-2.0
"""A speaker on a byte stream: the guest's end of a port, at a real socket, spoken by this process."""

from __future__ import annotations

import socket
from pathlib import Path

from conformance.served import ServedSpeaker
from conformance.speaker import Speaker
from tmem_host.channel.frames import FrameReader, Kind, encode
from tmem_host.core import Engine, Store, StreamServer

_PATIENCE = 20.0


class FakeGuest:
    """The other end of one connection, in step."""

    def __init__(self, listener: socket.socket) -> None:
        self.stream, _ = listener.accept()
        self.stream.settimeout(_PATIENCE)
        self._reader = FrameReader()
        self._frames: list[tuple[Kind, bytes]] = []
        kind, token = self.frame()
        assert kind is Kind.SYNC
        self.send(Kind.SYNC, token)

    def send(self, kind: Kind, body: bytes) -> None:
        self.stream.sendall(encode(kind, body))

    def frame(self) -> tuple[Kind, bytes]:
        """The next frame of the host."""
        while not self._frames:
            data = self.stream.recv(1 << 20)
            assert data, "the host hung up"
            self._frames.extend(self._reader.feed(data))
        return self._frames.pop(0)

    def ask(self, message: bytes) -> bytes:
        """A request's reply."""
        self.send(Kind.REQUEST, message)
        kind, body = self.frame()
        assert kind is Kind.REPLY
        return body

    def close(self) -> None:
        self.stream.close()


class StreamSpeaker(ServedSpeaker):
    """A VM of `store` behind the core's stream server."""

    rooms = False

    def __init__(self, store: Store, vm: str, folder: Path, engine: Engine | None = None) -> None:
        # One engine for all channels of a VM: its pools are the VM's.
        self._engine = engine or Engine(store, vm)
        super().__init__(store, vm, folder, self._engine)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(_PATIENCE)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._control, theirs = socket.socketpair()
        self.server = StreamServer(self._engine, str(self._path), theirs.detach())
        self.guest = FakeGuest(self._listener)

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self.guest.ask(message)

    def reset(self) -> None:
        self.guest.close()
        self.guest = FakeGuest(self._listener)

    def raw(self) -> socket.socket:
        """The server's next connection, on which nothing was read yet."""
        self.guest.close()
        connection, _ = self._listener.accept()
        connection.settimeout(_PATIENCE)
        return connection

    def channel(self) -> Speaker:
        return self.keep(StreamSpeaker(self._store, self._vm, self._folder, self._engine))

    def end(self) -> None:
        self.server.stop()
        self.guest.close()
        self._listener.close()
        self._control.close()
