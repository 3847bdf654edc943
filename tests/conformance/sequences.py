# SPDX-License-Identifier: Apache-2.0
"""Sequences of requests that hypothesis makes up, and one implementation that they are put to, beside another."""

from __future__ import annotations

from dataclasses import replace

import lz4.block
from hypothesis import strategies as st

from conformance.guest import noise, page
from conformance.speaker import Speaker
from tmem_host.channel.abi import FEATURES_ALL, REQUEST_LIST, Header, Key, Op, Reply, Status

UUIDS = ((1, 0, 0), (1, 2, 0))
UUID_BYTES = [b"".join(word.to_bytes(8, "little") for word in uuid[:2]) for uuid in UUIDS]
#: Data of which requests take as much as they need.
STUFF = [page(1), noise(2), bytes(4096), b"\x5a" * 4096, lz4.block.compress(page(3), store_size=False)]

OBJECTS = st.sampled_from([(0, 0, 0), (0, 0, 0), (7, 0, 1 << 63)])
INDICES = st.sampled_from([0, 1, 2, 3, 7, 8, 0xFFFF_FFFE, 0xFFFF_FFFF])
KEYS = st.builds(Key, OBJECTS, INDICES)
NEW_POOL = st.builds(
    Header,
    op=st.just(Op.NEW_POOL),
    object=st.sampled_from([(0, 0, 0), (0, 0, 0), *UUIDS]),
    count=st.sampled_from([0, 0, 8]),
    argument=st.sampled_from([0, 1, 1, 2, 3, 8, 9, 0x10, 0x91, 0x105, 0x205, 0x115, 4, 0xA1, 0x1001]),
)
PAGES = st.builds(
    Header,
    op=st.sampled_from([Op.NEW_PAGE, Op.PUT, Op.PUT, Op.GET, Op.FLUSH_PAGE, Op.READ, Op.WRITE, Op.EXCHANGE, 11]),
    flags=st.sampled_from([0, 0, 0, REQUEST_LIST, 2]),
    # The how manieth of the pools that were made.
    pool=st.integers(0, 4),
    object=OBJECTS,
    index=INDICES,
    count=st.sampled_from([1, 1, 1, 1, 2, 5, 0, 129]),
    offset=st.sampled_from([0, 0, 1, 4095, 4096, 0xFFFF_FFFF]),
    length=st.sampled_from([0, 0, 1, 100, 4096, 4097]),
)
OTHERS = st.one_of(
    st.builds(Header, op=st.sampled_from([Op.DESTROY_POOL, Op.FLUSH_OBJECT]), pool=st.integers(0, 4), object=OBJECTS),
    st.builds(
        Header,
        op=st.just(Op.HELLO),
        index=st.sampled_from([1, 1, 2]),
        argument=st.sampled_from([0xFF, 0xFF, 0xFFFF, 0xF7, 0xFA]),
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[Header, tuple[Key, ...], int, int]:
    """A request, its list, which stuff is its data, and how many bytes the data is off."""
    header = draw([NEW_POOL, OTHERS, PAGES][min(2, draw(st.integers(0, 15)))])
    header = replace(header, cookie=draw(st.integers(0, (1 << 64) - 1)))
    if draw(st.integers(0, 9)):
        header = sensible(header)
    n = 1 if header.op == Op.EXCHANGE else header.count if header.flags & REQUEST_LIST else 0
    items = tuple(draw(st.lists(KEYS, min_size=min(n, 5), max_size=min(n, 5))))
    return header, items, draw(st.integers(0, len(STUFF) - 1)), draw(st.sampled_from([0] * 12 + [-1, 1]))


def sensible(header: Header) -> Header:
    """Without what is refused at once."""
    if header.op == Op.NEW_POOL:
        header = replace(header, object=(0, 0, 0) if not header.argument & 10 else header.object)
    if header.op in (Op.DESTROY_POOL, Op.HELLO):
        header = replace(header, object=(0, 0, 0))
    if header.op in (Op.READ, Op.WRITE):
        header = replace(
            header, offset=header.offset % 4096, length=max(1, min(header.length, 4096 - header.offset % 4096))
        )
    if header.op not in (Op.READ, Op.WRITE, Op.PUT, Op.EXCHANGE):
        header = replace(header, length=0)
    if header.op not in (Op.READ, Op.WRITE):
        header = replace(header, offset=0)
    if header.op in (Op.READ, Op.WRITE, Op.NEW_PAGE, Op.EXCHANGE):
        header = replace(header, flags=0, count=1)
    if header.flags & REQUEST_LIST:
        header = replace(header, object=(0, 0, 0), index=0)
    return header


class Side:
    """One implementation, with its own numbers for the pools that were made."""

    def __init__(self, speaker: Speaker) -> None:
        self._speakers = [speaker, speaker.peer()]
        self._pools: list[list[int]] = [[], []]
        for one in self._speakers:
            one.reset()
            one.request(Header(Op.HELLO, index=1, argument=FEATURES_ALL).encode())
            for name in UUID_BYTES:
                one.authorise(name, True)
        # A swap pool, objects that stay, objects that may go, and a pool of both.
        for vm in (0, 1):
            for flags, pages, uuid in ((1, 8, (0, 0, 0)), (1, 0, (0, 0, 0)), (0, 0, (0, 0, 0)), (2, 0, UUIDS[0])):
                self.ask(vm, Header(Op.NEW_POOL, object=uuid, count=pages, argument=flags), (), b"")

    def freeze(self, vm: int, frozen: bool) -> None:
        self._speakers[vm].freeze(frozen)

    def numbered(self, vm: int, header: Header) -> Header:
        """The request with the number that its pool has here."""
        if header.op in (Op.NEW_POOL, Op.HELLO):
            return header
        known = self._pools[vm]
        return replace(header, pool=known[header.pool] if header.pool < len(known) else 60000 + header.pool)

    def ask(self, vm: int, header: Header, items: tuple[Key, ...], data: bytes) -> bytes:
        reply = self._speakers[vm].request(self.numbered(vm, header).encode(items, data))
        answer = Reply.decode(reply)
        assert answer is not None
        if header.op == Op.NEW_POOL and answer.status == Status.OK:
            pools = self._pools[vm]
            if answer.value not in pools:
                pools.append(answer.value)
            # Numbers may differ; which pool it is may not.
            return Reply(answer.status, answer.cookie, pools.index(answer.value), answer.done).encode()
        return reply

    def close(self) -> None:
        for vm, speaker in enumerate(self._speakers):
            speaker.freeze(False)
            speaker.request(Header(Op.HELLO, index=1, argument=FEATURES_ALL).encode())
            for pool in self._pools[vm]:
                speaker.request(Header(Op.DESTROY_POOL, pool=pool).encode())


def data_of(header: Header, stuff: int, off: int) -> bytes:
    """About as much data as the request should send."""
    if header.op == Op.WRITE or (header.op in (Op.PUT, Op.EXCHANGE) and header.length):
        size = min(header.length, 8192)
    else:
        size = header.count * 4096 if header.op in (Op.PUT, Op.EXCHANGE) and header.count <= 5 else 0
    source = STUFF[stuff] * (size // len(STUFF[stuff]) + 2)
    return bytes(source[: max(0, size + off)])
