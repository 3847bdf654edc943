# SPDX-License-Identifier: Apache-2.0
"""Every operation on pages does what it says."""

from __future__ import annotations

import lz4.block

from conformance.guest import PACKED_LZ4, PERSISTENT, Guest, collect, noise, order, page
from conformance.speaker import Case
from tmem_host.channel.abi import BATCH_MAX, DATA_MAX, PAGE_SIZE, Feature, Header, Key, Op, Status

CASES: list[Case] = []
case = collect(CASES)

FAR = (1 << 63, 2, (1 << 64) - 1)


@case("keys: object and index in full width")
def _keys(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT)
    keys = [((0, 0, 0), 0), ((0, 0, 0), 0xFFFF_FFFF), ((1, 0, 0), 0), ((0, 1, 0), 0), ((0, 0, 1), 0), (FAR, 7)]
    for i, (name, index) in enumerate(keys):
        assert g.put(pool, index, page(i), name=name).status == Status.OK
    for i, (name, index) in enumerate(keys):
        assert g.has(pool, index, page(i), name)


@case("pools: the same key in two pools is two pages")
def _two_pools(g: Guest) -> None:
    one, two = g.new_pool(PERSISTENT), g.new_pool(PERSISTENT)
    assert g.put(one, 1, page(1)).status == Status.OK
    assert g.misses(two, 1)
    assert g.put(two, 1, page(2)).status == Status.OK
    assert g.has(one, 1, page(1))
    assert g.destroy(one) == Status.OK
    assert g.get(one, 1).status == Status.BAD_POOL
    assert g.has(two, 1, page(2))


@case("flush page: done says what was there")
def _flush_page(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT)
    assert g.put(pool, 1, page(1)).status == Status.OK
    assert [g.flush(pool, 1).done for _ in range(2)] == [1, 0]


@case("flush object: its pages and no others, counted")
def _flush_object(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT)
    for i in range(5):
        assert g.put(pool, i * 1000, page(i), name=FAR).status == Status.OK
    assert g.put(pool, 0, page(9)).status == Status.OK
    answer = g.ask(Header(Op.FLUSH_OBJECT, pool=pool, object=FAR))
    assert (answer.status, answer.value, answer.done) == (Status.OK, 5, 0)
    assert g.ask(Header(Op.FLUSH_OBJECT, pool=pool, object=FAR)).value == 0
    assert all(g.misses(pool, i * 1000, FAR) for i in range(5))
    assert g.has(pool, 0, page(9))


@case("flush object: a swap pool is emptied")
def _flush_swap(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT, pages=16)
    for i in range(16):
        assert g.put(pool, i, page(i)).status == Status.OK
    assert g.ask(Header(Op.FLUSH_OBJECT, pool=pool)).value == 16
    assert all(g.misses(pool, i) for i in range(16))


@case("batch: pages in a row, put, got and flushed", features=Feature.BATCH)
def _batch(g: Guest) -> None:
    for flags, pages in ((PERSISTENT, 2 * BATCH_MAX), (PERSISTENT, 0)):
        pool = g.new_pool(flags, pages=pages)
        for n in (1, 2, 3, 64, 65, BATCH_MAX):
            contents = [page(n * 1000 + i) for i in range(n)]
            full = (1 << n) - 1
            answer = g.put(pool, 7, *contents)
            assert (answer.status, answer.done, answer.value) == (Status.OK, full, n)
            answer = g.get(pool, 7, n)
            assert (answer.status, answer.done, answer.data) == (Status.OK, full, b"".join(contents))
            assert g.flush(pool, 7, n).done == full
            answer = g.get(pool, 7, n)
            assert (answer.status, answer.done, answer.data) == (Status.MISS, 0, b"")


@case("batch: each page for itself, the data ends with the last that was there", features=Feature.BATCH)
def _batch_holes(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT, pages=16)
    for i in (1, 3, 4):
        assert g.put(pool, i, page(i)).status == Status.OK
    answer = g.get(pool, 0, 8)
    assert (answer.status, answer.done) == (Status.MISS, 0b11010)
    assert answer.data == bytes(4096) + page(1) + bytes(4096) + page(3) + page(4)
    assert g.flush(pool, 0, 8).done == 0b11010


@case("list: keys of several objects, in their order", features=Feature.LIST | Feature.BATCH)
def _list(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT)
    keys = [Key((1, 2, 3), 9), Key(FAR, 0), Key((0, 0, 0), 0xFFFF_FFFF), Key((1, 2, 3), 1)]
    contents = [page(i) for i in range(4)]
    answer = g.listed(Op.PUT, pool, keys, b"".join(contents))
    assert (answer.status, answer.done) == (Status.OK, 15)
    assert all(g.has(pool, key.index, data, key.object) for key, data in zip(keys, contents, strict=True))
    assert g.listed(Op.GET, pool, keys[::-1]).data == b"".join(contents[::-1])
    answer = g.listed(Op.FLUSH_PAGE, pool, [keys[2], Key((5, 5, 5), 5), keys[2], keys[0]])
    assert (answer.status, answer.done) == (Status.OK, 0b1001)
    many = [Key((i % 7, 0, 0), i) for i in range(BATCH_MAX)]
    data = [page(i) for i in range(BATCH_MAX)]
    assert g.listed(Op.PUT, pool, many, b"".join(data)).value == BATCH_MAX
    assert g.listed(Op.GET, pool, many).data == b"".join(data)


@case("list: one key twice is put twice and got as in two requests", features=Feature.LIST | Feature.BATCH)
def _list_twice(g: Guest) -> None:
    pool = g.new_pool()
    twice = [Key(index=1), Key(index=1)]
    assert g.listed(Op.PUT, pool, twice, page(1) + page(2)).done == 3
    answer = g.listed(Op.GET, pool, twice)
    assert (answer.status, answer.done, answer.data) == (Status.MISS, 1, page(2))


@case("list: one key without batches", features=Feature.LIST)
def _list_of_one(g: Guest) -> None:
    g.hello(Feature.LIST)
    pool = g.new_pool(PERSISTENT)
    assert g.listed(Op.PUT, pool, [Key(FAR, 3)], page(1)).status == Status.OK
    assert g.has(pool, 3, page(1), FAR)
    assert g.listed(Op.GET, pool, [Key(), Key()]).status == Status.BAD_LENGTH


@case("new page: zeroes without data", features=Feature.NEW_PAGE)
def _new_page(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT, pages=4)
    assert g.put(pool, 1, page(1)).status == Status.OK
    for i in (1, 2):
        answer = g.new_page(pool, i)
        assert (answer.status, answer.done) == (Status.OK, 1)
        assert g.has(pool, i, bytes(4096))


@case("read: any range, and the page stays", features=Feature.RANGE)
def _read(g: Guest) -> None:
    for flags, data in ((PERSISTENT, page(1)), (PERSISTENT, noise(2)), (0, page(3)), (PERSISTENT, bytes(4096))):
        pool = g.new_pool(flags)
        assert g.put(pool, 1, data).status == Status.OK
        for offset, length in ((0, 1), (0, 4096), (4095, 1), (1, 4094), (512, 512), (2047, 3)):
            answer = g.read(pool, 1, offset, length)
            assert (answer.status, answer.done) == (Status.OK, 1)
            assert answer.data == data[offset : offset + length]
        assert g.has(pool, 1, data)
        answer = g.read(pool, 2, 0, 1)
        assert (answer.status, answer.data) == (Status.MISS, b"")


@case("write: any range, the rest stays; needs the page", features=Feature.RANGE)
def _write(g: Guest) -> None:
    for flags, pages in ((PERSISTENT, 4), (PERSISTENT, 0), (0, 0)):
        pool = g.new_pool(flags, pages=pages)
        assert g.write(pool, 1, 0, noise(1)).status == Status.MISS
        assert g.misses(pool, 1)
        data = page(1)
        assert g.put(pool, 1, data).status == Status.OK
        for offset, length in ((0, 1), (4095, 1), (1, 4094), (512, 512), (2047, 3), (0, 4096)):
            part = noise(offset + length, length)
            assert g.write(pool, 1, offset, part).status == Status.OK
            data = data[:offset] + part + data[offset + length :]
            assert g.read(pool, 1, 0, 4096).data == data


@case("exchange: one is put, another is got", features=Feature.EXCHANGE)
def _exchange(g: Guest) -> None:
    for flags, pages in ((PERSISTENT, 8), (PERSISTENT, 0), (0, 0)):
        pool = g.new_pool(flags, pages=pages)
        assert g.put(pool, 1, page(1)).status == Status.OK
        answer = g.exchange(pool, 2, page(2), 1)
        assert (answer.status, answer.done, answer.data) == (Status.OK, 3, page(1))
        assert g.misses(pool, 1) == (flags == 0)
        answer = g.exchange(pool, 3, page(3), 7)
        assert (answer.status, answer.done, answer.data) == (Status.MISS, 1, b""), "the put is done all the same"
        answer = g.exchange(pool, 4, page(4), 4)
        assert (answer.done, answer.data) == (3, page(4)), "one key twice"
        assert g.has(pool, 3, page(3))
        assert g.has(pool, 2, page(2))


@case("large pages: put, got, read and written", features=Feature.LARGE)
def _large(g: Guest) -> None:
    for n in (1, 4, 9):
        size = PAGE_SIZE << n
        for flags, pages in ((PERSISTENT, 4), (PERSISTENT, 0), (0, 0)):
            pool = g.new_pool(flags | order(n), pages=pages)
            for data in (page(n, size), noise(n, size), bytes(size)):
                assert g.put(pool, 1, data).status == Status.OK
                assert g.read(pool, 1, size - 5000, 5000).data == data[-5000:]
                assert g.write(pool, 1, size // 2 - 3, b"middle").status == Status.OK
                changed = data[: size // 2 - 3] + b"middle" + data[size // 2 + 3 :]
                assert g.has(pool, 1, changed)


@case("large pages: as many in one request as data may be", features=Feature.LARGE | Feature.BATCH)
def _large_batch(g: Guest) -> None:
    size = PAGE_SIZE << 5
    pool = g.new_pool(PERSISTENT | order(5))
    contents = [page(i, size) for i in range(DATA_MAX // size)]
    assert g.put(pool, 0, *contents).status == Status.OK
    assert g.get(pool, 0, len(contents)).data == b"".join(contents)
    assert g.get(pool, 0, len(contents) + 1).status == Status.BAD_LENGTH


@case("packed: compressed pages come back whole, bad ones are refused", features=Feature.PACKED)
def _packed(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT | PACKED_LZ4, pages=8)
    for data in (page(1), bytes(4096)):
        assert g.put_packed(pool, 1, lz4.block.compress(data, store_size=False)).status == Status.OK
        assert g.has(pool, 1, data)
    assert g.put_packed(pool, 2, noise(2)).status == Status.OK, "as it is"
    assert g.has(pool, 2, noise(2))
    good = lz4.block.compress(page(3), store_size=False)
    wrong = lz4.block.compress(page(3)[:4000], store_size=False)
    larger = lz4.block.compress(page(3) + bytes(100), store_size=False)
    for bad in (b"\0", b"\xff" * 100, good[:-1], good + b"\0", wrong, larger):
        assert g.put_packed(pool, 1, good).status == Status.OK
        assert g.put_packed(pool, 1, bad).status == Status.BAD_DATA
        assert g.misses(pool, 1), "rule 1"


@case("packed: other operations work on the page", features=Feature.PACKED | Feature.RANGE | Feature.EXCHANGE)
def _packed_parts(g: Guest) -> None:
    pool = g.new_pool(PERSISTENT | PACKED_LZ4)
    data = lz4.block.compress(page(1), store_size=False)
    assert g.put_packed(pool, 1, data).status == Status.OK
    assert g.read(pool, 1, 100, 100).data == page(1)[100:200]
    assert g.write(pool, 1, 0, b"new").status == Status.OK
    assert g.has(pool, 1, b"new" + page(1)[3:])
    header = Header(Op.EXCHANGE, pool=pool, index=2, count=1, length=len(data))
    answer = g.ask(header, [Key(index=1)], data)
    assert (answer.done, answer.data) == (3, b"new" + page(1)[3:])


@case("room: a reply fits exactly or the request is refused", room=True)
def _room(g: Guest) -> None:
    pool = g.new_pool()
    assert g.put(pool, 1, page(1)).status == Status.OK
    get = Header(Op.GET, pool=pool, index=1, count=1)
    assert g.ask(get, room=4095).status == Status.BAD_LENGTH
    assert g.ask(get, room=0).status == Status.BAD_LENGTH
    answer = g.ask(get, room=4096)
    assert answer.data == page(1), "what was refused removed nothing"
