# SPDX-License-Identifier: Apache-2.0
"""Pools: made, found again, shared, bounded, out of reach of others."""

from __future__ import annotations

from conformance.guest import ATTACH, PERSISTENT, SHARED, Guest, collect, page
from conformance.speaker import Case
from tmem_host.channel.abi import POOLS_MAX, Feature, Header, Op, Status

CASES: list[Case] = []
case = collect(CASES)

UUID, OTHER = bytes(range(16)), bytes(range(1, 17))


@case("swap pool: all its keys and no others")
def _swap_keys(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT, pages=10)
    assert g.put(pool, 9, page(1)).status == Status.OK
    assert g.put(pool, 10, page(1)).status == Status.BAD_LENGTH
    assert g.get(pool, 10).status == Status.BAD_LENGTH
    assert g.put(pool, 0, page(1), name=(1, 0, 0)).status == Status.BAD_LENGTH


@case("swap pool: no room for its promise, no pool")
def _no_room(g: Guest) -> None:
    assert g.try_new_pool(PERSISTENT, pages=0xFFFF_FFFF).status in (Status.NO_ROOM, Status.OVER_CAP)
    assert g.try_new_pool(PERSISTENT, pages=8).status == Status.OK


@case("swap pool: a promise above the cap is none")
def _promise_over_cap(g: Guest) -> None:
    g.speaker.set_cap(100 * 4200)
    try:
        assert g.try_new_pool(PERSISTENT, pages=200).status == Status.OVER_CAP
        assert g.try_new_pool(PERSISTENT, pages=90).status == Status.OK
        assert g.try_new_pool(PERSISTENT, pages=90).status == Status.OVER_CAP
    finally:
        g.speaker.set_cap(None)


@case("swap pool: a destroyed one gives its promise back")
def _promise_back(g: Guest) -> None:
    g.speaker.set_cap(100 * 4200)
    try:
        for _ in range(3):
            assert g.destroy(g.new_pool(PERSISTENT, pages=90)) == Status.OK
    finally:
        g.speaker.set_cap(None)


@case("destroy: the pages are gone, and so is the number")
def _destroy(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT, pages=10)
    assert g.put(pool, 1, page(1)).status == Status.OK
    assert g.destroy(pool) == Status.OK
    assert g.destroy(pool) == Status.BAD_POOL
    assert g.get(pool, 1).status == Status.BAD_POOL
    assert g.ask(Header(Op.FLUSH_PAGE, pool=pool, index=1, count=1)).status == Status.BAD_POOL
    again = g.new_pool(PERSISTENT, pages=10)
    assert g.misses(again, 1)


@case("attach: the pool of that uuid with its pages, if it is of that kind")
def _attach(g: Guest) -> None:
    first = g.try_new_pool(PERSISTENT | ATTACH, UUID, pages=10)
    assert (first.status, first.done) == (Status.OK, 0)
    assert g.put(first.value, 1, page(1)).status == Status.OK
    again = g.try_new_pool(PERSISTENT | ATTACH, UUID, pages=10)
    assert (again.status, again.value, again.done) == (Status.OK, first.value, 1)
    assert g.has(again.value, 1, page(1))
    assert g.try_new_pool(PERSISTENT | ATTACH, UUID, pages=11).status == Status.NOT_PERMITTED
    assert g.try_new_pool(ATTACH, UUID).status == Status.NOT_PERMITTED
    other = g.try_new_pool(PERSISTENT | ATTACH, OTHER, pages=10)
    assert other.value != first.value
    assert g.misses(other.value, 1)
    assert g.destroy(first.value) == Status.OK
    fresh = g.try_new_pool(PERSISTENT | ATTACH, UUID, pages=10)
    assert (fresh.status, fresh.done) == (Status.OK, 0)
    assert g.misses(fresh.value, 1)


@case("limit: so many pools and no more")
def _limit(g: Guest) -> None:
    pools = [g.new_pool() for _ in range(POOLS_MAX)]
    assert len(set(pools)) == POOLS_MAX
    assert g.try_new_pool().status == Status.NOT_PERMITTED
    assert g.destroy(pools[3]) == Status.OK
    assert g.try_new_pool().status == Status.OK


@case("isolation: another VM's pools are none")
def _isolation(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT, pages=10)
    assert g.put(pool, 1, page(1)).status == Status.OK
    with Guest(g.speaker.peer()) as other:
        mine = other.new_pool(PERSISTENT, pages=10)
        assert other.misses(mine, 1)
        if mine != pool:
            assert other.get(pool, 1).status == Status.BAD_POOL
            assert other.put(pool, 1, page(2)).status == Status.BAD_POOL
            assert other.destroy(pool) == Status.BAD_POOL
        attached = other.try_new_pool(PERSISTENT | ATTACH, UUID, pages=10)
        assert attached.done == 0
    assert g.has(pool, 1, page(1))


@case("channels: two of one VM reach its pools, each says HELLO")
def _channels(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT, pages=10)
    assert g.put(pool, 1, page(1)).status == Status.OK
    second = Guest(g.speaker.channel(), features=-1)
    assert second.get(pool, 1).status == Status.NOT_NEGOTIATED
    second.hello()
    assert second.has(pool, 1, page(1))
    assert second.put(pool, 2, page(2)).status == Status.OK
    assert g.has(pool, 2, page(2))
    assert second.destroy(pool) == Status.OK
    assert g.get(pool, 1).status == Status.BAD_POOL


@case("shared: not without authorisation", Feature.SHARED)
def _not_authorised(g: Guest) -> None:
    uuid = b"never authorised"
    assert g.try_new_pool(SHARED, uuid).status == Status.NOT_PERMITTED
    g.speaker.authorise(uuid, True)
    assert g.try_new_pool(SHARED, uuid).status == Status.OK
    g.speaker.authorise(uuid, False)
    assert g.try_new_pool(SHARED, uuid[::-1]).status == Status.NOT_PERMITTED


@case("shared: two VMs, one pool; the last takes it along", Feature.SHARED)
def _shared(g: Guest) -> None:
    uuid = b"two share a pool"
    with Guest(g.speaker.peer()) as other:
        for guest in (g, other):
            guest.speaker.authorise(uuid, True)
        first, second = g.try_new_pool(SHARED | PERSISTENT, uuid), other.try_new_pool(SHARED | PERSISTENT, uuid)
        assert (first.done, second.done) == (0, 1)
        assert g.put(first.value, 1, page(1)).status == Status.OK
        assert other.has(second.value, 1, page(1))
        assert other.put(second.value, 1, page(2)).status == Status.OK
        assert g.has(first.value, 1, page(2))
        assert other.try_new_pool(SHARED, uuid).status == Status.NOT_PERMITTED, "of another kind"
        assert g.destroy(first.value) == Status.OK
        assert g.get(first.value, 1).status == Status.BAD_POOL, "left"
        assert other.has(second.value, 1, page(2))
        assert other.destroy(second.value) == Status.OK
        fresh = g.try_new_pool(SHARED | PERSISTENT, uuid)
        assert (fresh.status, fresh.done) == (Status.OK, 0)
        assert g.misses(fresh.value, 1)
