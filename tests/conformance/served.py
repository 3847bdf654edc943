# SPDX-License-Identifier: Apache-2.0
"""Speakers whose VM is a store's in this process: what an operator sets goes to the store itself."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Self

from conformance.local import CoreSpeaker
from conformance.speaker import Speaker
from tmem_host.core import Engine, Store

_LIMIT = 256 << 20


class ServedSpeaker(Speaker):
    """A VM of `store` behind a server; sockets lie in `folder`. A subclass starts the server and speaks to it."""

    def __init__(self, store: Store, vm: str, folder: Path, engine: Engine | None = None) -> None:
        self._inner = CoreSpeaker(store, vm, engine)
        self._store, self._vm, self._folder = store, vm, folder
        self._made: list[Self] = []
        self._peer: Self | None = None
        self.features = self._inner.features
        self._path = folder / f"{vm}-{len(list(folder.iterdir()))}"

    @classmethod
    def over(cls, arena: Path, folder: Path) -> Self:
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

    def freeze(self, frozen: bool) -> None:
        self._inner.freeze(frozen)

    def set_cap(self, cap: int | None) -> None:
        self._inner.set_cap(cap)

    def authorise(self, uuid: bytes, allowed: bool) -> None:
        self._inner.authorise(uuid, allowed)

    def lose(self, lost: bool) -> None:
        self._inner.lose(lost)

    def peer(self) -> Speaker:
        assert self._peer is not None
        return self._peer

    def keep(self, other: Self) -> Self:
        """One that was made of this one, and ends with it."""
        self._made.append(other)
        return other

    def close(self) -> None:
        """Ends this one and all that were made of it."""
        for other in self._made:
            other.close()
        self.end()

    @abstractmethod
    def end(self) -> None:
        """Ends this one alone."""
