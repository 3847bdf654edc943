# SPDX-License-Identifier: Apache-2.0
"""Old guests on new hosts and the reverse: what each pair agrees on works, what it does not is refused, pages stay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance.guest import PACKED_LZ4, PERSISTENT, SHARED, Answer, Guest, order, page
from conformance.local import CoreSpeaker, ReferenceSpeaker
from conformance.speaker import NO_FEATURES, Speaker
from conformance.stream import StreamSpeaker
from conformance.virtqueue import VirtqueueSpeaker
from tmem_host.channel.abi import FEATURES_ALL, REQUEST_LIST, VERSION, Feature, Header, Key, Op, Status
from tmem_host.core import Engine, Store

UUID = b"old and new hosts"[:16]
ALL = Feature(FEATURES_ALL)
#: A host of each age: with nothing but what every host has, with one thing more, lacking one thing, with everything.
HOSTS = [NO_FEATURES, *Feature, *(ALL & ~one for one in Feature), ALL]
#: Guests ask for bits that nobody knows yet, too.
UNKNOWN = ((1 << 64) - 1) & ~FEATURES_ALL
GUESTS = [*(int(one) for one in HOSTS), UNKNOWN, UNKNOWN | Feature.BATCH, UNKNOWN | FEATURES_ALL]


@dataclass(frozen=True)
class Use:
    """How a feature is used, and how a host that did not agree on it answers."""

    ask: Callable[[Guest, int], Answer]
    refusal: Status


def made(guest: Guest, flags: int, uuid: bytes = bytes(16)) -> Answer:
    """Of a pool that is gone again."""
    answer = guest.try_new_pool(flags, uuid)
    if answer.status == Status.OK:
        assert guest.destroy(answer.value) == Status.OK
    return answer


USES = {
    Feature.BATCH: Use(lambda g, pool: g.put(pool, 1, page(1), page(2)), Status.BAD_LENGTH),
    Feature.LIST: Use(
        lambda g, pool: g.ask(Header(Op.FLUSH_PAGE, REQUEST_LIST, pool=pool, count=1), [Key(index=5)]), Status.BAD_FLAGS
    ),
    Feature.RANGE: Use(lambda g, pool: g.read(pool, 0, 8, 16), Status.BAD_OP),
    Feature.EXCHANGE: Use(lambda g, pool: g.exchange(pool, 3, page(3), 0), Status.BAD_OP),
    Feature.LARGE: Use(lambda g, _: made(g, order(1)), Status.BAD_FLAGS),
    Feature.PACKED: Use(lambda g, _: made(g, PACKED_LZ4), Status.BAD_FLAGS),
    Feature.SHARED: Use(lambda g, _: made(g, SHARED, UUID), Status.BAD_FLAGS),
    Feature.NEW_PAGE: Use(lambda g, pool: g.new_page(pool, 4), Status.BAD_OP),
}


@contextlib.contextmanager
def host(kind: str, features: Feature, arena: Path, folder: Path) -> Iterator[Speaker]:
    """A channel of a VM whose host offers ``features``."""
    if kind == "reference":
        yield ReferenceSpeaker.new(int(features))
        return
    store = Store(str(arena), limit_bytes=64 << 20)
    store.vm_create("one")
    engine = Engine(store, "one", features=int(features))
    try:
        if kind == "core":
            yield CoreSpeaker(store, "one", engine)
            return
        served = {"virtqueue": VirtqueueSpeaker, "stream": StreamSpeaker}[kind](store, "one", folder, engine)
        try:
            yield served
        finally:
            served.close()
    finally:
        store.close()


def what_every_host_has(guest: Guest, pool: int) -> None:
    assert guest.put(pool, 6, page(6)).status == Status.OK
    assert guest.has(pool, 6, page(6))
    assert guest.flush(pool, 6).done == 1
    assert guest.misses(pool, 6)
    sparse = guest.new_pool(PERSISTENT)
    assert guest.put(sparse, 6, page(7), name=(1, 2, 3)).status == Status.OK
    assert guest.ask(Header(Op.FLUSH_OBJECT, pool=sparse, object=(1, 2, 3))).value == 1
    assert guest.destroy(sparse) == Status.OK


@pytest.mark.parametrize("features", HOSTS, ids=lambda features: f"{int(features):#04x}")
@pytest.mark.parametrize("kind", ["core", "reference", "virtqueue", "stream"])
def test_every_guest_on_every_host(kind: str, features: Feature, arena: Path, tmp_path: Path) -> None:
    with host(kind, features, arena, tmp_path) as speaker:
        assert speaker.features == features
        speaker.authorise(UUID, True)
        with Guest(speaker, 0) as guest:
            pool = guest.new_pool(PERSISTENT, pages=8)
            assert guest.put(pool, 0, page(0)).status == Status.OK
            for asked in GUESTS:
                agreed = asked & int(features)
                assert (answer := guest.hello(asked)).status == Status.OK
                assert answer.value == agreed, "what both have, and nothing that was not asked for"
                what_every_host_has(guest, pool)
                for feature, use in USES.items():
                    expected = Status.OK if agreed & feature else use.refusal
                    assert use.ask(guest, pool).status == expected, f"{feature!r} of {Feature(agreed)!r}"
                assert guest.has(pool, 0, page(0)), "what an older or a newer guest put is there"


def test_counters_say_what_was_used(arena: Path, tmp_path: Path) -> None:
    """An operator sees by them that a guest is older than its host, or newer."""
    with host("core", Feature.BATCH | Feature.NEW_PAGE, arena, tmp_path) as speaker, Guest(speaker) as guest:
        assert isinstance(speaker, CoreSpeaker)
        pool = guest.new_pool(PERSISTENT, pages=8)
        for use in USES.values():
            use.ask(guest, pool)
        found = speaker.stats()
    used = {name: found[name] for name in ("hello", "put", "new-page", "read", "exchange", "flush-page")}
    assert used == {"hello": 1, "put": 1, "new-page": 1, "read": 1, "exchange": 1, "flush-page": 1}
    refused = {name: found[name] for name in ("bad-op", "bad-flags", "bad-length", "not-negotiated")}
    assert refused == {"bad-op": 2, "bad-flags": 4, "bad-length": 0, "not-negotiated": 0}


@pytest.mark.parametrize("kind", ["core", "reference", "virtqueue", "stream"])
@pytest.mark.parametrize(
    ("speaks", "agreed"),
    [
        ((VERSION,), VERSION),
        # A newer guest does with what the host has.
        ((VERSION + 1, VERSION), VERSION),
        ((0xFFFF_FFFF, VERSION + 5, VERSION), VERSION),
        # One that cannot, and one that is older than any host: neither is let in.
        ((VERSION + 1,), None),
        ((0,), None),
    ],
    ids=str,
)
def test_versions(kind: str, speaks: tuple[int, ...], agreed: int | None, arena: Path, tmp_path: Path) -> None:
    """A guest says its newest version first, and then the one that it is told, if it has that."""
    with host(kind, ALL, arena, tmp_path) as speaker, Guest(speaker, -1) as guest:
        said, answer = speaks[0], guest.hello(UNKNOWN | FEATURES_ALL, version=speaks[0])
        while answer.status == Status.BAD_VERSION and answer.value in speaks:
            said, answer = answer.value, guest.hello(version=answer.value)
        if agreed is None:
            assert (answer.status, answer.value) == (Status.BAD_VERSION, VERSION)
            assert guest.try_new_pool(PERSISTENT, pages=8).status == Status.NOT_NEGOTIATED
            return
        assert (said, answer.status, answer.value) == (agreed, Status.OK, FEATURES_ALL)
        what_every_host_has(guest, guest.new_pool(PERSISTENT, pages=8))
