# SPDX-License-Identifier: Apache-2.0
"""Speakers in this process: the core, and the reference that says what it must answer."""

from __future__ import annotations

from pathlib import Path

from conformance.speaker import Speaker
from tmem_host.channel.abi import DATA_MAX, FEATURES_ALL, Feature
from tmem_host.channel.reference import ReferenceChannel, ReferenceHost
from tmem_host.channel.reference_port import ReferencePort
from tmem_host.core import Engine, Store

_LIMIT = 256 << 20


class CoreSpeaker(Speaker):
    """The engine over a store of its own."""

    def __init__(self, store: Store, vm: str, engine: Engine | None = None) -> None:
        self._store = store
        self._vm = vm
        self._engine = engine or Engine(store, vm)
        self._peer: CoreSpeaker | None = None
        self.features = Feature(self._engine.features)

    @classmethod
    def over(cls, arena: Path) -> CoreSpeaker:
        """Over a new arena with two VMs."""
        store = Store(str(arena), limit_bytes=_LIMIT)
        for vm in ("one", "other"):
            store.vm_create(vm)
        speaker = cls(store, "one")
        speaker._peer = cls(store, "other")
        return speaker

    @property
    def store(self) -> Store:
        return self._store

    def stats(self) -> dict[str, int]:
        return self._engine.stats()

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self._engine.request(message, room)

    def reset(self) -> None:
        self._engine.reset()

    def freeze(self, frozen: bool) -> None:
        (self._store.freeze if frozen else self._store.thaw)(self._vm)

    def set_cap(self, cap: int | None) -> None:
        self._store.vm_set(self._vm, cap=cap or 0)

    def authorise(self, uuid: bytes, allowed: bool) -> None:
        self._store.shared_authorise(self._vm, uuid, allowed)

    def lose(self, lost: bool) -> None:
        self._engine.lose(int(lost))

    def peer(self) -> Speaker:
        assert self._peer is not None
        return self._peer

    def channel(self) -> Speaker:
        return CoreSpeaker(self._store, self._vm, self._engine.channel())


class ReferenceSpeaker(Speaker):
    """The reference implementation. ``features``: those of the core that it is compared with, else all."""

    def __init__(self, host: ReferenceHost, vm: str, channel: ReferenceChannel) -> None:
        self._host = host
        self._vm = vm
        self._channel = channel
        self._peer: ReferenceSpeaker | None = None
        self.features = Feature(channel.features)

    @classmethod
    def new(cls, features: int = FEATURES_ALL) -> ReferenceSpeaker:
        """Over a new host with two VMs."""
        host = ReferenceHost(_LIMIT)
        for vm in ("one", "other"):
            host.vm_create(vm)
        speaker = cls(host, "one", host.channel("one", features))
        speaker._peer = cls(host, "other", host.channel("other", features))
        return speaker

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self._channel.request(message, DATA_MAX if room is None else room)

    def port(self, secret: bytes) -> ReferencePort:
        """The channel as a stream's; no HELLO was said on it."""
        return ReferencePort(self._channel, secret)

    def reset(self) -> None:
        self._channel.reset()

    def freeze(self, frozen: bool) -> None:
        self._host.freeze(self._vm, frozen)

    def set_cap(self, cap: int | None) -> None:
        self._host.set_cap(self._vm, cap)

    def authorise(self, uuid: bytes, allowed: bool) -> None:
        self._host.authorise(self._vm, uuid, allowed)

    def lose(self, lost: bool) -> None:
        self._host.lose(self._vm, lost)

    def peer(self) -> Speaker:
        assert self._peer is not None
        return self._peer

    def channel(self) -> Speaker:
        return ReferenceSpeaker(self._host, self._vm, self._channel.channel())
