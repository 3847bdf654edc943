# SPDX-License-Identifier: Apache-2.0
"""HELLO: versions, features, old guests on new hosts and the reverse."""

from __future__ import annotations

from conformance.guest import PERSISTENT, Guest, collect, order, page
from conformance.speaker import Case
from tmem_host.channel.abi import REQUEST_LIST, VERSION, Feature, Header, Key, Op, Status

CASES: list[Case] = []
case = collect(CASES)


@case("hello: before it everything is refused")
def _first(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT, pages=8)
    g.speaker.reset()
    for op in (*Op, 0, 11, 33, 0xFFFF):
        if op != Op.HELLO:
            assert g.ask(Header(op, pool=pool, count=1)).status == Status.NOT_NEGOTIATED
    assert g.ask(Header(Op.PUT, 0xFFFF, pool=pool, length=9)).status == Status.NOT_NEGOTIATED
    assert g.hello().status == Status.OK
    assert g.put(pool, 1, page(1)).status == Status.OK, "pools outlive a channel"


@case("hello: features are those that both have")
def _features(g: Guest) -> None:
    for features in (0, int(Feature.BATCH), 0xFF, (1 << 64) - 1):
        answer = g.hello(features)
        assert (answer.status, answer.value, answer.done) == (Status.OK, features & int(g.speaker.features), 0)


@case("hello: an unknown version is answered with the host's")
def _version(g: Guest) -> None:
    for version in (0, VERSION + 1, 0xFFFF_FFFF):
        answer = g.hello(version=version)
        assert (answer.status, answer.value) == (Status.BAD_VERSION, VERSION)
    assert g.new_pool() >= 0, "a HELLO that was refused changes nothing"
    g.speaker.reset()
    assert g.hello(version=9).status == Status.BAD_VERSION
    assert g.try_new_pool().status == Status.NOT_NEGOTIATED
    assert g.hello().status == Status.OK


@case("hello: an old guest does with what every host has")
def _old_guest(g: Guest) -> None:
    assert g.hello(0).value == 0
    pool = g.new_pool(PERSISTENT)
    assert g.put(pool, 1, page(1)).status == Status.OK
    assert g.has(pool, 1, page(1))
    assert g.flush(pool, 1).done == 1
    assert g.ask(Header(Op.FLUSH_OBJECT, pool=pool)).status == Status.OK


@case("hello: what was not agreed on is refused as unknown")
def _not_agreed(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT)
    assert g.put(pool, 1, page(1)).status == Status.OK
    g.hello(0)
    assert g.new_page(pool, 1).status == Status.BAD_OP
    assert g.read(pool, 1, 0, 8).status == Status.BAD_OP
    assert g.write(pool, 1, 0, b"x").status == Status.BAD_OP
    assert g.exchange(pool, 1, page(2), 1).status == Status.BAD_OP
    assert g.put(pool, 1, page(1), page(2)).status == Status.BAD_LENGTH
    assert g.get(pool, 1, 2).status == Status.BAD_LENGTH
    assert g.ask(Header(Op.GET, REQUEST_LIST, pool=pool, count=1), [Key()]).status == Status.BAD_FLAGS
    assert g.try_new_pool(order(1)).status == Status.BAD_FLAGS
    assert g.try_new_pool(0x104).status == Status.BAD_FLAGS
    assert g.try_new_pool(2, bytes(range(16))).status == Status.BAD_FLAGS
    assert g.has(pool, 1, page(1))


@case("hello: what is not offered is not agreed on")
def _not_offered(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT)
    offered = g.speaker.features
    if not offered & Feature.LARGE:
        assert g.try_new_pool(order(1)).status == Status.BAD_FLAGS
    if not offered & Feature.PACKED:
        assert g.try_new_pool(0x104).status == Status.BAD_FLAGS
    if not offered & Feature.SHARED:
        assert g.try_new_pool(2, bytes(range(16))).status == Status.BAD_FLAGS
    if not offered & Feature.NEW_PAGE:
        assert g.new_page(pool, 1).status == Status.BAD_OP
