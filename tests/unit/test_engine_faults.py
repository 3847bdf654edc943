# SPDX-License-Identifier: Apache-2.0
"""Pages that an engine loses on purpose: said to be lost, never zeroes or anybody's data, counted, and still there."""

from __future__ import annotations

from pathlib import Path

from conformance.guest import PERSISTENT, Guest, page
from conformance.local import CoreSpeaker
from tmem_host.channel.abi import PAGE_SIZE, Status
from tmem_host.core import Engine, Store

PAGES = range(12)


def test_every_third_page_is_lost_until_none_is(arena: Path) -> None:
    store = Store(str(arena), limit_bytes=64 << 20)
    store.vm_create("one")
    engine = Engine(store, "one")
    # Another channel than the one that is told: the VM loses pages.
    with Guest(CoreSpeaker(store, "one", engine.channel())) as guest:
        pool = guest.new_pool(PERSISTENT, pages=len(PAGES))
        assert guest.put(pool, 0, *(page(i) for i in PAGES)).status == Status.OK
        engine.lose(3)
        found = [guest.get(pool, i) for i in PAGES]
        assert [answer.status for answer in found] == [Status.OK, Status.OK, Status.LOST] * 4
        assert all(answer.data == (b"" if answer.status else page(i)) for i, answer in zip(PAGES, found, strict=True))
        many = guest.get(pool, 0, len(PAGES))
        assert (many.status, many.done) == (Status.LOST, 0b011_011_011_011)
        expected = b"".join(page(i) if many.done >> i & 1 else bytes(PAGE_SIZE) for i in PAGES[:-1])
        assert many.data == expected
        assert engine.stats()["injected"] == 8

        engine.lose(1)
        assert guest.read(pool, 1, 0, 8).status == Status.LOST
        swapped = guest.exchange(pool, 2, page(77), 1)
        assert (swapped.status, swapped.done, swapped.data) == (Status.LOST, 1, b"")
        assert guest.put(pool, 3, page(78)).status == Status.OK
        assert engine.stats()["injected"] == 10

        engine.lose(0)
        kept = {**{i: page(i) for i in PAGES}, 2: page(77), 3: page(78)}
        assert all(guest.has(pool, i, data) for i, data in kept.items())
        assert engine.stats()["injected"] == 10
    store.close()
