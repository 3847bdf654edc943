# SPDX-License-Identifier: Apache-2.0
"""The rules at the head of ``guest/abi/tmem_abi.h``. The sixth is :mod:`conformance.refusals`."""

from __future__ import annotations

from conformance.guest import PERSISTENT, Guest, collect, noise, page
from conformance.speaker import Case
from tmem_host.channel.abi import Feature, Header, Op, Status

CASES: list[Case] = []
case = collect(CASES)

#: Room for some twenty pages that do not compress.
CAP = 20 * 4200


@case("1: a put over a page replaces it")
def _replaces(g: Guest) -> None:
    for flags, pages in ((PERSISTENT, 8), (PERSISTENT, 0), (0, 0)):
        pool = g.new_pool(flags, pages=pages)
        for seed in (1, 2, 3):
            assert g.put(pool, 5, page(seed)).status == Status.OK
        assert g.has(pool, 5, page(3))


@case("1: a put refused by the cap removes the old page")
def _refused_by_cap(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT)
    g.speaker.set_cap(CAP)
    try:
        # Small pages first: when the cap is full, one of them is put over by one that has no room.
        for i in range(4):
            assert g.put(pool, 1000 + i, page(i)).status == Status.OK
        answers = [g.put(pool, i, noise(i)).status for i in range(40)]
        assert Status.OVER_CAP in answers
        assert set(answers) == {Status.OK, Status.OVER_CAP}
        for i in range(4):
            assert g.put(pool, 1000 + i, noise(1000 + i)).status == Status.OVER_CAP or i > 0
            if i == 0:
                assert g.misses(pool, 1000)
        for i, status in enumerate(answers):
            assert g.misses(pool, i) if status != Status.OK else g.has(pool, i, noise(i))
    finally:
        g.speaker.set_cap(None)


@case("1, 5: a put while frozen removes the old page")
def _frozen(g: Guest) -> None:
    pools = [g.new_pool(PERSISTENT, pages=8), g.new_pool(PERSISTENT), g.new_pool()]
    for pool in pools:
        for i in range(4):
            assert g.put(pool, i, page(i)).status == Status.OK
    g.speaker.freeze(True)
    try:
        for pool in pools:
            assert g.put(pool, 0, page(9)).status == Status.FROZEN
            assert g.put(pool, 5, page(9)).status == Status.FROZEN
            assert g.misses(pool, 0)
            assert g.misses(pool, 5)
            assert g.has(pool, 1, page(1)), "a get is served"
            assert g.flush(pool, 2).done == 1, "a flush is obeyed"
            assert g.misses(pool, 2)
            answer = g.ask(Header(Op.FLUSH_OBJECT, pool=pool))
            assert answer.status == Status.OK
            assert g.misses(pool, 3)
    finally:
        g.speaker.freeze(False)
    for pool in pools:
        assert g.put(pool, 0, page(7)).status == Status.OK
        assert g.has(pool, 0, page(7))


@case("5: frozen, new page, write and exchange are puts", Feature.NEW_PAGE | Feature.RANGE)
def _frozen_puts(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT)
    assert g.put(pool, 0, page(0)).status == Status.OK
    assert g.put(pool, 1, page(1)).status == Status.OK
    g.speaker.freeze(True)
    try:
        assert g.new_page(pool, 0).status == Status.FROZEN
        assert g.misses(pool, 0)
        assert g.write(pool, 1, 0, b"x").status == Status.FROZEN
        assert g.misses(pool, 1)
        assert g.read(pool, 1, 0, 1).status == Status.MISS
    finally:
        g.speaker.freeze(False)


@case("5: frozen, an exchange gets nothing and both pages are as they must be", Feature.EXCHANGE)
def _frozen_exchange(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT)
    assert g.put(pool, 0, page(0)).status == Status.OK
    assert g.put(pool, 1, page(1)).status == Status.OK
    g.speaker.freeze(True)
    try:
        answer = g.exchange(pool, 0, page(2), 1)
        assert (answer.status, answer.done, answer.data) == (Status.FROZEN, 0, b"")
        assert g.misses(pool, 0)
        assert g.has(pool, 1, page(1))
    finally:
        g.speaker.freeze(False)


@case("2: after a miss a key keeps missing")
def _misses(g: Guest) -> None:
    for flags, pages in ((PERSISTENT, 8), (PERSISTENT, 0), (0, 0)):
        pool = g.new_pool(flags, pages=pages)
        assert all(g.misses(pool, 3) for _ in range(3))
        assert g.put(pool, 3, page(1)).status == Status.OK
        g.flush(pool, 3)
        assert all(g.misses(pool, 3) for _ in range(3))


@case("3: a persistent page comes back, bit for bit, as often as it is asked for")
def _persistent(g: Guest) -> None:
    for pages in (64, 0):
        pool = g.new_pool(PERSISTENT, pages=pages)
        contents = [bytes(4096), b"\xa5" * 4096, *(page(i) for i in range(10)), *(noise(i) for i in range(10))]
        contents.append(noise(99)[:4095] + b"\0")
        for i, data in enumerate(contents):
            assert g.put(pool, i, data).status == Status.OK
        for _ in range(2):
            assert all(g.has(pool, i, data) for i, data in enumerate(contents))


@case("3: a lost page is said to be lost")
def _lost(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT, pages=8)
    assert g.put(pool, 1, page(1)).status == Status.OK
    g.speaker.lose(True)
    try:
        answer = g.get(pool, 1)
        assert (answer.status, answer.done, answer.data) == (Status.LOST, 0, b"")
    finally:
        g.speaker.lose(False)
    assert g.put(pool, 1, page(2)).status == Status.OK
    assert g.has(pool, 1, page(2))


@case("4: a get removes the page from a private ephemeral pool")
def _ephemeral(g: Guest) -> None:
    pool = g.new_pool()
    assert g.put(pool, 1, page(1)).status == Status.OK
    assert g.has(pool, 1, page(1))
    assert g.misses(pool, 1)


@case("4: a get leaves the page in a shared ephemeral pool", Feature.SHARED)
def _shared_ephemeral(g: Guest) -> None:
    uuid = b"ephemeral shared"
    g.speaker.authorise(uuid, True)
    pool = g.new_pool(2, uuid)
    assert g.put(pool, 1, page(1)).status == Status.OK
    assert all(g.has(pool, 1, page(1)) for _ in range(3))
