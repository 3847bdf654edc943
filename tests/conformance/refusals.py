# SPDX-License-Identifier: Apache-2.0
"""Rule 6, as a table: requests that are refused, why, and that nothing was done."""

from __future__ import annotations

from dataclasses import dataclass, replace

from conformance.guest import PACKED_LZ4, PERSISTENT, Guest, order, page
from conformance.speaker import NO_FEATURES, Case, Speaker
from tmem_host.channel.abi import BATCH_MAX, DATA_MAX, REQUEST_LIST, Feature, Header, Key, Op, Status

#: Pools of the table, by the number that a header has there.
SPARSE, SWAP, PACKED, LARGE, NONE = range(5)
_POOLS = {
    SPARSE: (PERSISTENT, 0, NO_FEATURES),
    SWAP: (PERSISTENT, 10, NO_FEATURES),
    PACKED: (PERSISTENT | PACKED_LZ4, 0, Feature.PACKED),
    LARGE: (PERSISTENT | order(9), 0, Feature.LARGE),
}
#: A number that no VM has a pool of.
_NO_POOL = 0xFFFF_FF00
_PAGE = page(1)

OP, FLAGS, POOL, LENGTH = Status.BAD_OP, Status.BAD_FLAGS, Status.BAD_POOL, Status.BAD_LENGTH


@dataclass(frozen=True)
class Bad:
    """A request, what follows it, and how it is refused."""

    name: str
    status: Status
    header: Header
    data: bytes = b""
    features: Feature = NO_FEATURES


def _item(key: Key, reserved: int = 0) -> bytes:
    return Header(0).encode((key,))[64:92] + reserved.to_bytes(4, "little")


def _h(op: int, pool: int = SPARSE, flags: int = 0, **fields: object) -> Header:
    return replace(Header(op, flags, pool), **fields)  # type: ignore[arg-type]


_1 = {"count": 1}
_L = Feature.LIST
_SOME = {"pool": 1, "object": (1, 0, 0), "index": 1, "count": 1, "offset": 1, "length": 1, "argument": 1}
_STRAY = {
    Op.HELLO: ("pool", "object", "count", "offset", "length"),
    Op.NEW_POOL: ("pool", "index", "offset", "length"),
    Op.DESTROY_POOL: ("object", "index", "count", "offset", "length", "argument"),
    Op.NEW_PAGE: ("offset", "length", "argument"),
    Op.PUT: ("offset", "argument"),
    Op.GET: ("offset", "length", "argument"),
    Op.FLUSH_PAGE: ("offset", "length", "argument"),
    Op.FLUSH_OBJECT: ("index", "count", "offset", "length", "argument"),
    Op.READ: ("argument",),
    Op.WRITE: ("argument",),
    Op.EXCHANGE: ("offset", "argument"),
}
_NEEDS = {
    Op.NEW_PAGE: Feature.NEW_PAGE,
    Op.READ: Feature.RANGE,
    Op.WRITE: Feature.RANGE,
    Op.EXCHANGE: Feature.EXCHANGE,
}


def _needs(op: Op) -> Feature:
    return _NEEDS.get(op, NO_FEATURES)


def _base(op: Op) -> Header:
    """A header that is right but for what is changed; its version and pool are."""
    if op == Op.HELLO:
        return Header(op, index=1)
    return Header(op) if op == Op.NEW_POOL else _h(op)


_TABLE: list[Bad] = [
    *(Bad(f"operation {n} is unknown", OP, Header(n)) for n in (0, 11, 31, 33, 101, 0xFFFF)),
    *(
        Bad(f"{op.name} with flag {bit:#x}", FLAGS, replace(_base(op), flags=bit), features=_needs(op))
        for op in Op
        for bit in (2, 0x8000)
    ),
    *(
        Bad(f"{op.name} with a list", FLAGS, replace(_base(op), flags=REQUEST_LIST), features=_needs(op))
        for op in Op
        if op not in (Op.PUT, Op.GET, Op.FLUSH_PAGE)
    ),
    *(
        Bad(f"{op.name} with {field}", FLAGS, replace(_base(op), **{field: _SOME[field]}), features=_needs(op))  # type: ignore[arg-type]
        for op, fields in _STRAY.items()
        for field in fields
        if not (op in (Op.HELLO, Op.NEW_POOL) and field == "pool")
    ),
    *(
        Bad(f"{op.name} in no pool", POOL, _h(op, NONE, **({} if op in (2, 7) else _1)), features=_needs(op))
        for op in Op
        if op not in (Op.HELLO, Op.NEW_POOL)
    ),
    *(
        Bad(f"{op.name} of {n} pages", LENGTH, _h(op, count=n))
        for op in (Op.PUT, Op.GET, Op.FLUSH_PAGE)
        for n in (0, BATCH_MAX + 1, 0xFFFF_FFFF)
    ),
    *(
        Bad(f"{op.name} of {n} pages", LENGTH, _h(op, count=n, length=1), features=_needs(op))
        for op in (Op.READ, Op.WRITE)
        for n in (0, 2)
    ),
    Bad("NEW_PAGE of 2 pages", LENGTH, _h(Op.NEW_PAGE, count=2), features=Feature.NEW_PAGE),
    Bad("EXCHANGE of 2 pages", LENGTH, _h(Op.EXCHANGE, count=2), _item(Key()) + _PAGE * 2, Feature.EXCHANGE),
    # indices
    Bad("a run past the last index", LENGTH, _h(Op.GET, index=0xFFFF_FFFF, count=2), features=Feature.BATCH),
    Bad("a run past a swap pool's end", LENGTH, _h(Op.GET, SWAP, index=8, count=3), features=Feature.BATCH),
    Bad("a swap pool's index too high", LENGTH, _h(Op.FLUSH_PAGE, SWAP, index=10, **_1)),
    Bad("a swap pool's other object", LENGTH, _h(Op.FLUSH_OBJECT, SWAP, object=(0, 0, 1))),
    # data
    Bad("a put without data", LENGTH, _h(Op.PUT, **_1)),
    Bad("a put with too little data", LENGTH, _h(Op.PUT, **_1), _PAGE[:-1]),
    Bad("a put with too much data", LENGTH, _h(Op.PUT, **_1), _PAGE + b"x"),
    Bad("a put of two pages with one", LENGTH, _h(Op.PUT, count=2), _PAGE, Feature.BATCH),
    Bad("a put with a length", LENGTH, _h(Op.PUT, length=4096, **_1), _PAGE),
    Bad("a get with data", LENGTH, _h(Op.GET, **_1), b"x"),
    Bad("a flush with data", LENGTH, _h(Op.FLUSH_PAGE, **_1), _PAGE),
    Bad("a flush of an object with data", LENGTH, _h(Op.FLUSH_OBJECT), b"x"),
    Bad("a hello with data", LENGTH, Header(Op.HELLO, index=1), b"x"),
    Bad("a new pool with data", LENGTH, Header(Op.NEW_POOL), b"x"),
    Bad("a destroyed pool with data", LENGTH, _h(Op.DESTROY_POOL), b"x"),
    Bad("a new page with data", LENGTH, _h(Op.NEW_PAGE, **_1), _PAGE, Feature.NEW_PAGE),
    # ranges
    *(
        Bad(f"{op.name} of {length} bytes at {offset}", LENGTH, _h(op, offset=offset, length=length, **_1), data, need)
        for op, need in ((Op.READ, Feature.RANGE), (Op.WRITE, Feature.RANGE))
        for offset, length in ((0, 0), (0, 4097), (4096, 1), (4095, 2), (0xFFFF_FFFF, 1), (1, 0xFFFF_FFFF))
        for data in (b"",)
    ),
    Bad("a write with too little data", LENGTH, _h(Op.WRITE, length=8, **_1), b"1234567", Feature.RANGE),
    Bad("a write with too much data", LENGTH, _h(Op.WRITE, length=8, **_1), b"123456789", Feature.RANGE),
    Bad("a read with data", LENGTH, _h(Op.READ, length=1, **_1), b"x", Feature.RANGE),
    # lists
    Bad("a list with an object", FLAGS, _h(Op.GET, flags=1, object=(1, 0, 0), **_1), _item(Key()), _L),
    Bad("a list with an index", FLAGS, _h(Op.GET, flags=1, index=1, **_1), _item(Key()), _L),
    Bad("a list of none", LENGTH, _h(Op.GET, flags=1), b"", _L),
    Bad("a list that is short", LENGTH, _h(Op.GET, flags=1, **_1), _item(Key())[:-1], _L),
    Bad("a list that is long", LENGTH, _h(Op.GET, flags=1, **_1), _item(Key()) * 2, _L),
    Bad("a list that is missing", LENGTH, _h(Op.PUT, flags=1, **_1), _PAGE, _L),
    Bad("a list, then too little data", LENGTH, _h(Op.PUT, flags=1, **_1), _item(Key()) + _PAGE[1:], _L),
    Bad("an item's reserved field", FLAGS, _h(Op.GET, flags=1, **_1), _item(Key(), 1), _L),
    Bad("an item out of a swap pool", LENGTH, _h(Op.GET, SWAP, 1, **_1), _item(Key(index=10)), _L),
    Bad("an item of another object", LENGTH, _h(Op.GET, SWAP, 1, **_1), _item(Key((1, 0, 0))), _L),
    Bad(
        "a last item that is wrong",
        LENGTH,
        _h(Op.PUT, SWAP, 1, count=2),
        _item(Key()) + _item(Key(index=10)) + _PAGE * 2,
        _L | Feature.BATCH,
    ),
    Bad(
        "two items that are wrong: the first counts",
        FLAGS,
        _h(Op.GET, SWAP, 1, count=2),
        _item(Key(), 5) + _item(Key(index=10)),
        _L | Feature.BATCH,
    ),
    # exchange
    Bad("an exchange without an item", LENGTH, _h(Op.EXCHANGE, **_1), _PAGE, Feature.EXCHANGE),
    Bad("an exchange without a page", LENGTH, _h(Op.EXCHANGE, **_1), _item(Key()), Feature.EXCHANGE),
    Bad("an exchange's reserved field", FLAGS, _h(Op.EXCHANGE, **_1), _item(Key(), 9) + _PAGE, Feature.EXCHANGE),
    Bad(
        "an exchange's get out of the pool",
        LENGTH,
        _h(Op.EXCHANGE, SWAP, **_1),
        _item(Key(index=99)) + _PAGE,
        Feature.EXCHANGE,
    ),
    # packed, large
    Bad("packed: no data", LENGTH, _h(Op.PUT, PACKED, **_1), b"", Feature.PACKED),
    Bad("packed: more than a page", LENGTH, _h(Op.PUT, PACKED, length=4097, **_1), _PAGE + b"x", Feature.PACKED),
    Bad("packed: two pages", LENGTH, _h(Op.PUT, PACKED, count=2, length=8), b"12345678", Feature.PACKED),
    Bad("packed: less data than said", LENGTH, _h(Op.PUT, PACKED, length=8, **_1), b"1234567", Feature.PACKED),
    Bad("large: a small page", LENGTH, _h(Op.PUT, LARGE, **_1), _PAGE, Feature.LARGE),
    Bad("large: more than may be", LENGTH, _h(Op.GET, LARGE, count=2), b"", Feature.LARGE | Feature.BATCH),
    Bad("large: a range too long", LENGTH, _h(Op.READ, LARGE, length=DATA_MAX + 1, **_1), b"", Feature.LARGE),
    # pools
    *(
        Bad(f"new pool: {name}", FLAGS, Header(Op.NEW_POOL, argument=flags, object=uuid, count=pages))
        for name, flags, uuid, pages in (
            ("unknown flags", 1 << 12, (0, 0, 0), 0),
            ("unknown flags, high", 1 << 63, (0, 0, 0), 0),
            ("a uuid for nothing", 0, (1, 0, 0), 0),
            ("the third word", 0, (0, 0, 1), 0),
            ("attach without uuid", 8, (0, 0, 0), 0),
            ("shared without uuid", 2, (0, 0, 0), 0),
            ("shared and attached", 10, (1, 1, 0), 0),
            ("an ephemeral swap pool", 0, (0, 0, 0), 8),
            ("a shared swap pool", 3, (1, 1, 0), 8),
            ("a codec without packing", 0x100, (0, 0, 0), 0),
            ("packing without codec", 4, (0, 0, 0), 0),
            ("an unknown codec", 0x304, (0, 0, 0), 0),
            ("order 10", 0xA0, (0, 0, 0), 0),
            ("order 15", 0xF0, (0, 0, 0), 0),
        )
    ),
]


def _act(bad: Bad) -> Case:
    def run(speaker: Speaker) -> None:
        with Guest(speaker) as g:
            wanted = bad.header.pool if bad.header.op != Op.NEW_POOL else SPARSE
            made = {
                which: g.new_pool(flags, pages=pages)
                for which, (flags, pages, _) in _POOLS.items()
                if which in (SPARSE, wanted)
            }
            known = made.get(wanted, _NO_POOL)
            assert g.put(made[SPARSE], 0, _PAGE).status == Status.OK
            takes_pool = bad.header.op in set(Op) - {Op.HELLO, Op.NEW_POOL}
            header = replace(bad.header, pool=known) if takes_pool else bad.header
            answer = g.ask(header, data=bad.data)
            assert answer.status == bad.status
            assert not answer.data
            assert g.has(made[SPARSE], 0, _PAGE), "nothing was done"

    return Case(f"6: {bad.name}", run, features=bad.features)


def _short(speaker: Speaker) -> None:
    with Guest(speaker) as g:
        whole = Header(Op.HELLO, index=1, cookie=7).encode()
        for n in (0, 1, 8, 63):
            answer = g.send(whole[:n])
            assert answer.status == Status.BAD_LENGTH
        assert g.send(whole).status == Status.OK


def _stray_pool(speaker: Speaker) -> None:
    with Guest(speaker) as g:
        for op in (Op.HELLO, Op.NEW_POOL):
            assert g.ask(replace(_base(op), pool=1)).status == Status.BAD_FLAGS


CASES: list[Case] = [
    *map(_act, _TABLE),
    Case("6: less than a request", _short),
    Case("6: HELLO and NEW_POOL with a pool", _stray_pool),
]
