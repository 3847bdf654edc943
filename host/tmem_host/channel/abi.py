# SPDX-License-Identifier: Apache-2.0
"""What a guest asks its host, and what it is answered: ``guest/abi/tmem_abi.h`` in Python; the header is the manual.

One file for both sides: ``guest/agent/tmem_guest/abi.py`` is a link to it, so it needs the standard library only, and
little of that. Bytes become a typed :class:`Request` or :class:`Refusal` by :func:`parse`, before anything acts.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass

VERSION = 1
BATCH_MAX = 128
DATA_MAX = 2 << 20
POOLS_MAX = 16
PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
ORDER_MAX = 9
REQUEST_LIST = 1

_REQUEST = struct.Struct("<HHI3QIIIIQQ")
_ITEM = struct.Struct("<3QII")
_REPLY = struct.Struct("<IIQQQQ")
REQUEST_SIZE, ITEM_SIZE, REPLY_SIZE = _REQUEST.size, _ITEM.size, _REPLY.size

#: Three words of 64 bits.
Object = tuple[int, int, int]
NO_OBJECT: Object = (0, 0, 0)


class Feature(enum.IntFlag):
    """``TMEM_FEATURE_*``"""

    BATCH = 1 << 0
    LIST = 1 << 1
    RANGE = 1 << 2
    EXCHANGE = 1 << 3
    LARGE = 1 << 4
    PACKED = 1 << 5
    SHARED = 1 << 6
    NEW_PAGE = 1 << 7


FEATURES_ALL = 0xFF


class Op(enum.IntEnum):
    """``TMEM_OP_*``"""

    NEW_POOL = 1
    DESTROY_POOL = 2
    NEW_PAGE = 3
    PUT = 4
    GET = 5
    FLUSH_PAGE = 6
    FLUSH_OBJECT = 7
    READ = 8
    WRITE = 9
    EXCHANGE = 10
    HELLO = 32


class Status(enum.IntEnum):
    """``TMEM_OK`` to ``TMEM_HOST_ERROR``"""

    OK = 0
    MISS = 1
    NO_ROOM = 2
    OVER_CAP = 3
    FROZEN = 4
    LOST = 5
    BAD_DATA = 6
    BAD_OP = 16
    BAD_FLAGS = 17
    BAD_POOL = 18
    BAD_LENGTH = 19
    BAD_VERSION = 20
    NOT_NEGOTIATED = 21
    NOT_PERMITTED = 22
    HOST_ERROR = 23


POOL_PERSISTENT = 1 << 0
POOL_SHARED = 1 << 1
POOL_PACKED = 1 << 2
POOL_ATTACH = 1 << 3
POOL_ORDER_SHIFT = 4
POOL_CODEC_SHIFT = 8
POOL_FLAGS = 0xFFF
CODEC_LZ4 = 1
CODEC_ZSTD = 2


@dataclass(frozen=True, slots=True)
class Key:
    """A page in a pool."""

    object: Object = NO_OBJECT
    index: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """``struct tmem_request``, not checked."""

    op: int
    flags: int = 0
    pool: int = 0
    object: Object = NO_OBJECT
    index: int = 0
    count: int = 0
    offset: int = 0
    length: int = 0
    argument: int = 0
    cookie: int = 0

    def encode(self, items: tuple[Key, ...] = (), data: bytes = b"") -> bytes:
        """A request with what it sends."""
        listed = b"".join(_ITEM.pack(*key.object, key.index, 0) for key in items)
        start = (self.op, self.flags, self.pool, *self.object, self.index, self.count)
        return _REQUEST.pack(*start, self.offset, self.length, self.argument, self.cookie) + listed + data

    @classmethod
    def decode(cls, message: bytes) -> Header:
        """From the first 64 bytes, of at least so many."""
        op, flags, pool, a, b, c, *rest = _REQUEST.unpack_from(message)
        return cls(op, flags, pool, (a, b, c), *rest)


@dataclass(frozen=True, slots=True)
class Reply:
    """``struct tmem_reply``"""

    status: Status
    cookie: int = 0
    value: int = 0
    done: int = 0

    def encode(self, data: bytes = b"") -> bytes:
        """A reply with what it fetches."""
        low, high = self.done & (1 << 64) - 1, self.done >> 64
        return _REPLY.pack(self.status, 0, self.cookie, self.value, low, high) + data

    @classmethod
    def decode(cls, message: bytes) -> Reply | None:
        """None: it is too short, its status is unknown or its reserved field is not 0."""
        if len(message) < REPLY_SIZE:
            return None
        status, reserved, cookie, value, low, high = _REPLY.unpack_from(message)
        if reserved or status not in _STATUSES:
            return None
        return cls(Status(status), cookie, value, low | high << 64)


@dataclass(frozen=True, slots=True)
class Shape:
    """What the parser must know of a pool. ``pages``: of a swap pool, else 0."""

    page_size: int = PAGE_SIZE
    pages: int = 0
    packed: bool = False

    def holds(self, name: Object, index: int, count: int = 1) -> bool:
        """True if the pool can have all keys from ``index`` on."""
        if self.pages:
            return name == NO_OBJECT and index + count <= self.pages
        return index + count <= 1 << 32


@dataclass(frozen=True, slots=True)
class NewPool:
    """A pool to be made. ``uuid``: of one that is shared or attached to, else zeroes."""

    flags: int
    uuid: bytes
    pages: int

    @property
    def persistent(self) -> bool:
        return bool(self.flags & POOL_PERSISTENT)

    @property
    def shared(self) -> bool:
        return bool(self.flags & POOL_SHARED)

    @property
    def attach(self) -> bool:
        return bool(self.flags & POOL_ATTACH)

    @property
    def codec(self) -> int:
        return self.flags >> POOL_CODEC_SHIFT & 0xF

    @property
    def shape(self) -> Shape:
        order = self.flags >> POOL_ORDER_SHIFT & 0xF
        return Shape(PAGE_SIZE << order, self.pages, bool(self.flags & POOL_PACKED))


@dataclass(frozen=True, slots=True)
class Request:
    """A request that passed every check. ``packed``: the data is compressed; ``get``: an exchange's second key."""

    op: Op
    header: Header
    keys: tuple[Key, ...] = ()
    data: bytes = b""
    packed: bool = False
    get: Key | None = None
    new_pool: NewPool | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that nothing was done for."""

    status: Status
    cookie: int = 0

    @property
    def reply(self) -> Reply:
        return Reply(self.status, self.cookie, VERSION if self.status == Status.BAD_VERSION else 0)


_OPS = frozenset(Op)
_STATUSES = frozenset(Status)
_BATCHES = (Op.PUT, Op.GET, Op.FLUSH_PAGE)
#: Fields of a header besides op, flags and cookie, in their order.
_FIELDS = ("pool", "object", "index", "count", "offset", "length", "argument")
_KEY = frozenset(("pool", "object", "index", "count"))
_NAMED = {
    Op.HELLO: frozenset(("index", "argument")),
    Op.NEW_POOL: frozenset(("object", "count", "argument")),
    Op.DESTROY_POOL: frozenset(("pool",)),
    Op.FLUSH_OBJECT: frozenset(("pool", "object")),
    Op.NEW_PAGE: _KEY,
    Op.GET: _KEY,
    Op.FLUSH_PAGE: _KEY,
    Op.PUT: _KEY | {"length"},
    Op.EXCHANGE: _KEY | {"length"},
    Op.READ: _KEY | {"offset", "length"},
    Op.WRITE: _KEY | {"offset", "length"},
}
_NEEDED = {
    Op.NEW_PAGE: Feature.NEW_PAGE,
    Op.READ: Feature.RANGE,
    Op.WRITE: Feature.RANGE,
    Op.EXCHANGE: Feature.EXCHANGE,
}


class _Refused(Exception):  # never leaves this module
    def __init__(self, status: Status) -> None:
        self.status = status


def parse(
    message: bytes, agreed: int | None, pool: Callable[[int], Shape | None], room: int = DATA_MAX
) -> Request | Refusal:
    """Parses one request with what it sends.

    ``agreed``: the features, once HELLO was said; ``pool``: the guest's pool of that number; ``room``: bytes of data
    that a reply may have.
    """
    if len(message) < REQUEST_SIZE:
        return Refusal(Status.BAD_LENGTH)
    header = Header.decode(message)
    try:
        return _parse(header, message[REQUEST_SIZE:], agreed, pool, room)
    except _Refused as refused:
        return Refusal(refused.status, header.cookie)


def _check(holds: bool, status: Status) -> None:
    if not holds:
        raise _Refused(status)


def _parse(header: Header, sent: bytes, agreed: int | None, pool: Callable[[int], Shape | None], room: int) -> Request:
    _check(agreed is not None or header.op == Op.HELLO, Status.NOT_NEGOTIATED)
    features = agreed or 0
    _check(header.op in _OPS, Status.BAD_OP)
    op = Op(header.op)
    needed = _NEEDED.get(op, 0)
    _check(features & needed == needed, Status.BAD_OP)
    listed = bool(header.flags & REQUEST_LIST)
    _check(not header.flags & ~REQUEST_LIST, Status.BAD_FLAGS)
    _check(not listed or (op in _BATCHES and bool(features & Feature.LIST)), Status.BAD_FLAGS)
    named = _NAMED[op] - {"object", "index"} if listed else _NAMED[op]
    for field in _FIELDS:
        empty: object = NO_OBJECT if field == "object" else 0
        _check(field in named or getattr(header, field) == empty, Status.BAD_FLAGS)

    if op == Op.HELLO:
        _check(header.index == VERSION, Status.BAD_VERSION)
    new_pool = _new_pool(header, features) if op == Op.NEW_POOL else None
    if op in (Op.HELLO, Op.NEW_POOL):
        _check(not sent, Status.BAD_LENGTH)
        return Request(op, header, new_pool=new_pool)
    shape = pool(header.pool)
    if shape is None:
        raise _Refused(Status.BAD_POOL)
    if op in (Op.DESTROY_POOL, Op.FLUSH_OBJECT):
        _check(not sent and (op == Op.DESTROY_POOL or shape.holds(header.object, 0)), Status.BAD_LENGTH)
        return Request(op, header)
    return _parse_pages(op, header, sent, features, shape, listed, room)


def _new_pool(header: Header, features: int) -> NewPool:
    flags = header.argument
    low, high, rest = header.object
    new = NewPool(flags, struct.pack("<QQ", low, high), header.count)
    named = any(new.uuid)
    codec_fits = new.codec in (CODEC_LZ4, CODEC_ZSTD) if new.shape.packed else new.codec == 0
    holds = (
        not flags & ~POOL_FLAGS
        and rest == 0
        and new.shape.page_size <= PAGE_SIZE << ORDER_MAX
        and codec_fits
        and not (new.shared and new.attach)
        and named == (new.shared or new.attach)
        and (not new.pages or (new.persistent and not new.shared))
        and (new.shape.page_size == PAGE_SIZE or bool(features & Feature.LARGE))
        and (not new.shape.packed or bool(features & Feature.PACKED))
        and (not new.shared or bool(features & Feature.SHARED))
    )
    _check(holds, Status.BAD_FLAGS)
    return new


def _parse_pages(op: Op, header: Header, sent: bytes, features: int, shape: Shape, listed: bool, room: int) -> Request:
    many = op in _BATCHES and features & Feature.BATCH and not (op == Op.PUT and shape.packed)
    _check(1 <= header.count <= (BATCH_MAX if many else 1), Status.BAD_LENGTH)
    pages = header.count * shape.page_size
    part = op in (Op.READ, Op.WRITE)
    put = op in (Op.PUT, Op.EXCHANGE)
    if part:
        _check(header.length > 0 and header.offset + header.length <= shape.page_size, Status.BAD_LENGTH)
    elif put and shape.packed:
        _check(0 < header.length <= shape.page_size, Status.BAD_LENGTH)
    else:
        _check(header.length == 0, Status.BAD_LENGTH)
    sends = header.length if op == Op.WRITE or (put and shape.packed) else pages if put else 0
    fetches = header.length if op == Op.READ else pages if op in (Op.GET, Op.EXCHANGE) else 0
    _check(sends <= DATA_MAX and fetches <= DATA_MAX, Status.BAD_LENGTH)
    _check(listed or shape.holds(header.object, header.index, header.count), Status.BAD_LENGTH)
    items = header.count if listed else 1 if op == Op.EXCHANGE else 0
    _check(len(sent) == items * ITEM_SIZE + sends and room >= fetches, Status.BAD_LENGTH)

    listing = []
    for at in range(items):
        a, b, c, index, reserved = _ITEM.unpack_from(sent, at * ITEM_SIZE)
        _check(reserved == 0, Status.BAD_FLAGS)
        _check(shape.holds((a, b, c), index), Status.BAD_LENGTH)
        listing.append(Key((a, b, c), index))
    run = tuple(Key(header.object, header.index + i) for i in range(header.count))
    return Request(
        op,
        header,
        keys=tuple(listing) if listed else run,
        data=sent[items * ITEM_SIZE :],
        packed=put and shape.packed and header.length < shape.page_size,
        get=listing[0] if op == Op.EXCHANGE else None,
    )
