# SPDX-License-Identifier: Apache-2.0
"""A speaker on a virtqueue: our own vhost-user driver on a real socket of the core's server."""

from __future__ import annotations

from pathlib import Path

from conformance.served import ServedSpeaker
from conformance.speaker import Speaker
from tmem_host.core import Engine, Store, TmemClient, TmemServer


class VirtqueueSpeaker(ServedSpeaker):
    """A VM of `store` behind vhost-user-tmem."""

    def __init__(self, store: Store, vm: str, folder: Path, engine: Engine | None = None) -> None:
        # One engine for all channels of a VM: its pools are the VM's.
        self._engine = engine or Engine(store, vm)
        super().__init__(store, vm, folder, self._engine)
        self._socket = str(self._path)
        self.server = TmemServer(self._engine, self._socket)
        self._client = TmemClient(self._socket)

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self._client.request(message, room)

    def reset(self) -> None:
        self._client.close()
        self._client = TmemClient(self._socket)

    def channel(self) -> Speaker:
        return self.keep(VirtqueueSpeaker(self._store, self._vm, self._folder, self._engine))

    def end(self) -> None:
        self._client.close()
        self.server.stop()
