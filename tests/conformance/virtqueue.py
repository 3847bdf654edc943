# SPDX-License-Identifier: Apache-2.0
"""A speaker on a virtqueue: our own vhost-user driver on a real socket of the core's server."""

from __future__ import annotations

from pathlib import Path

from conformance.local import CoreSpeaker
from conformance.speaker import Ability, Speaker
from tmem_host.core import Engine, Store, TmemClient, TmemServer

_LIMIT = 256 << 20


class VirtqueueSpeaker(Speaker):
    """A VM of `store` behind vhost-user-tmem."""

    can = Ability.ROOM | Ability.FREEZE | Ability.CAP | Ability.AUTHORISE | Ability.PEER | Ability.CHANNEL

    def __init__(self, store: Store, vm: str, folder: Path, engine: Engine | None = None) -> None:
        self._engine = engine or Engine(store, vm)
        self._inner = CoreSpeaker(store, vm, self._engine)
        self._store, self._vm, self._folder = store, vm, folder
        self._made: list[VirtqueueSpeaker] = []
        self._peer: VirtqueueSpeaker | None = None
        self.features = self._inner.features
        self._socket = str(folder / f"{vm}-{len(list(folder.iterdir()))}")
        self.server = TmemServer(self._engine, self._socket)
        self._client = TmemClient(self._socket)

    @classmethod
    def over(cls, arena: Path, folder: Path) -> VirtqueueSpeaker:
        """Over a new arena with two VMs, with sockets in `folder`."""
        store = Store(str(arena), limit_bytes=_LIMIT)
        for vm in ("one", "other"):
            store.vm_create(vm)
        speaker = cls(store, "one", folder)
        speaker._peer = cls(store, "other", folder)
        speaker._made.append(speaker._peer)
        return speaker

    @property
    def store(self) -> Store:
        return self._store

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self._client.request(message, room)

    def reset(self) -> None:
        self._client.close()
        self._client = TmemClient(self._socket)

    def freeze(self, frozen: bool) -> None:
        self._inner.freeze(frozen)

    def set_cap(self, cap: int | None) -> None:
        self._inner.set_cap(cap)

    def authorise(self, uuid: bytes, allowed: bool) -> None:
        self._inner.authorise(uuid, allowed)

    def peer(self) -> Speaker:
        assert self._peer is not None
        return self._peer

    def channel(self) -> Speaker:
        other = VirtqueueSpeaker(self._store, self._vm, self._folder, self._engine)
        self._made.append(other)
        return other

    def close(self) -> None:
        """Ends this one and all that were made of it."""
        for other in self._made:
            other.close()
        self._client.close()
        self.server.stop()
