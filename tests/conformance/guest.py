# SPDX-License-Identifier: Apache-2.0
"""A guest as the cases write it: operations by name. What holds for every reply is checked on every reply."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from conformance.speaker import NO_FEATURES, Case, Channel, Speaker
from tmem_host.channel.abi import (
    CODEC_LZ4,
    FEATURES_ALL,
    NO_OBJECT,
    PAGE_SIZE,
    POOL_ATTACH,
    POOL_CODEC_SHIFT,
    POOL_ORDER_SHIFT,
    POOL_PACKED,
    POOL_PERSISTENT,
    POOL_SHARED,
    REPLY_SIZE,
    REQUEST_LIST,
    VERSION,
    Feature,
    Header,
    Key,
    Object,
    Op,
    Reply,
    Status,
)

PERSISTENT, SHARED, ATTACH = POOL_PERSISTENT, POOL_SHARED, POOL_ATTACH
PACKED_LZ4 = POOL_PACKED | CODEC_LZ4 << POOL_CODEC_SHIFT


def order(n: int) -> int:
    """The flag of a pool with pages of 4 KiB << n."""
    return n << POOL_ORDER_SHIFT


def uuid_object(uuid: bytes) -> Object:
    """A uuid as NEW_POOL takes it."""
    return int.from_bytes(uuid[:8], "little"), int.from_bytes(uuid[8:], "little"), 0


def page(seed: int, size: int = PAGE_SIZE) -> bytes:
    """A page that compresses, and is no other seed's."""
    part = random.Random(seed).randbytes(size // 4)
    return (part + bytes(size))[:size]


def noise(seed: int, size: int = PAGE_SIZE) -> bytes:
    """A page that does not compress."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True)
class Answer:
    """A reply with its data."""

    status: Status
    value: int
    done: int
    data: bytes


class Guest:
    """Speaks the ABI over a channel, and leaves no pool behind."""

    def __init__(self, channel: Channel, features: int = FEATURES_ALL) -> None:
        self._channel = channel
        self._cookie = 0
        self._pools: list[int] = []
        if features >= 0:
            channel.reset()
            assert self.hello(features).status == Status.OK

    @property
    def speaker(self) -> Speaker:
        """The channel, where it is one whose host a case may change."""
        assert isinstance(self._channel, Speaker)
        return self._channel

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pools:
            self.hello()
        for pool in self._pools:
            self.ask(Header(Op.DESTROY_POOL, pool=pool))

    def ask(self, header: Header, items: Sequence[Key] = (), data: bytes = b"", room: int | None = None) -> Answer:
        """Sends a request as it is."""
        self._cookie += 0x0101_0101_0101_0107
        values = {name: getattr(header, name) for name in header.__slots__} | {"cookie": self._cookie % (1 << 64)}
        return self.send(Header(**values).encode(tuple(items), data), room, op=header.op)

    def send(self, message: bytes, room: int | None = None, op: int | None = None) -> Answer:
        """Sends bytes. ``op``: what holds for its replies is checked."""
        raw = self._channel.request(message, room)
        reply = Reply.decode(raw)
        assert reply is not None, f"no reply: {raw[:REPLY_SIZE].hex()}"
        answer = Answer(reply.status, reply.value, reply.done, raw[REPLY_SIZE:])
        if len(message) >= 64:
            assert reply.cookie == Header.decode(message).cookie
        if answer.status >= Status.BAD_OP:
            assert (answer.value, answer.done) == (VERSION if answer.status == Status.BAD_VERSION else 0, 0)
        if op in (Op.NEW_PAGE, Op.PUT, Op.GET, Op.FLUSH_PAGE, Op.READ, Op.WRITE, Op.EXCHANGE):
            assert answer.value == answer.done.bit_count()
        if op not in (Op.GET, Op.READ, Op.EXCHANGE) or not answer.done:
            assert not answer.data
        return answer

    def hello(self, features: int = FEATURES_ALL, version: int = VERSION) -> Answer:
        return self.ask(Header(Op.HELLO, index=version, argument=features))

    def try_new_pool(self, flags: int = 0, uuid: bytes = bytes(16), pages: int = 0) -> Answer:
        answer = self.ask(Header(Op.NEW_POOL, object=uuid_object(uuid), argument=flags, count=pages))
        if answer.status == Status.OK and answer.value not in self._pools:
            self._pools.append(answer.value)
        return answer

    def new_pool(self, flags: int = 0, uuid: bytes = bytes(16), pages: int = 0) -> int:
        """The number of a new pool, destroyed at the end."""
        answer = self.try_new_pool(flags, uuid, pages)
        assert answer.status == Status.OK
        return answer.value

    def destroy(self, pool: int) -> Status:
        if pool in self._pools:
            self._pools.remove(pool)
        return self.ask(Header(Op.DESTROY_POOL, pool=pool)).status

    def put(self, pool: int, index: int, *pages: bytes, name: Object = NO_OBJECT) -> Answer:
        header = Header(Op.PUT, pool=pool, object=name, index=index, count=len(pages))
        return self.ask(header, data=b"".join(pages))

    def put_packed(self, pool: int, index: int, data: bytes) -> Answer:
        return self.ask(Header(Op.PUT, pool=pool, index=index, count=1, length=len(data)), data=data)

    def get(self, pool: int, index: int, count: int = 1, *, name: Object = NO_OBJECT) -> Answer:
        return self.ask(Header(Op.GET, pool=pool, object=name, index=index, count=count))

    def has(self, pool: int, index: int, data: bytes, name: Object = NO_OBJECT) -> bool:
        """True if a get gives exactly this."""
        answer = self.get(pool, index, name=name)
        return answer.status == Status.OK and answer.data == data

    def misses(self, pool: int, index: int, name: Object = NO_OBJECT) -> bool:
        return self.get(pool, index, name=name).status == Status.MISS

    def flush(self, pool: int, index: int, count: int = 1, *, name: Object = NO_OBJECT) -> Answer:
        answer = self.ask(Header(Op.FLUSH_PAGE, pool=pool, object=name, index=index, count=count))
        assert answer.status == Status.OK
        return answer

    def listed(self, op: Op, pool: int, keys: Sequence[Key], data: bytes = b"") -> Answer:
        return self.ask(Header(op, REQUEST_LIST, pool=pool, count=len(keys)), keys, data)

    def new_page(self, pool: int, index: int) -> Answer:
        return self.ask(Header(Op.NEW_PAGE, pool=pool, index=index, count=1))

    def read(self, pool: int, index: int, offset: int, length: int) -> Answer:
        return self.ask(Header(Op.READ, pool=pool, index=index, count=1, offset=offset, length=length))

    def write(self, pool: int, index: int, offset: int, data: bytes) -> Answer:
        header = Header(Op.WRITE, pool=pool, index=index, count=1, offset=offset, length=len(data))
        return self.ask(header, data=data)

    def exchange(self, pool: int, put: int, data: bytes, get: int) -> Answer:
        return self.ask(Header(Op.EXCHANGE, pool=pool, index=put, count=1), [Key(index=get)], data)


def collect(cases: list[Case]) -> Callable[..., Callable[[Callable[[Guest], None]], Callable[[Guest], None]]]:
    """A decorator that makes a line of the table of a function which is given a guest that has said HELLO."""

    def case(
        name: str, features: Feature = NO_FEATURES, *, room: bool = False
    ) -> Callable[[Callable[[Guest], None]], Callable[[Guest], None]]:
        def add(act: Callable[[Guest], None]) -> Callable[[Guest], None]:
            def run(speaker: Speaker) -> None:
                with Guest(speaker) as guest:
                    act(guest)

            cases.append(Case(name, run, features, room))
            return act

        return add

    return case
