# SPDX-License-Identifier: Apache-2.0
"""The guest agent's own end of a stream, on a terminal instead of a port, against the reference."""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from collections.abc import Iterator

import pytest

from conformance.guest import page
from conformance.local import ReferenceSpeaker
from tmem_guest import abi
from tmem_guest.protocol import OpError
from tmem_guest.speak import Stream, message_of
from tmem_host.channel.abi import PAGE_SIZE, POOL_PERSISTENT, REPLY_SIZE, Header, Key, Op, Reply, Status

SECRETS = (b"first of secrets", b"second of secret")


class Host:
    """Serves the other end of a terminal. ``mute``: it takes requests and answers with nothing but a new SYNC."""

    def __init__(self) -> None:
        self._fd, slave = os.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        self._slave = slave
        self._speaker = ReferenceSpeaker.new()
        self._port = self._speaker.port(SECRETS[0])
        self.opened = 0
        self.mute = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        self.opened += 1
        os.write(self._fd, self._port.opening)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            if not select.select([self._fd], [], [], 0.02)[0]:
                continue
            answer = self._port.feed(os.read(self._fd, 65536))
            if self._port.ended or (self.mute and answer):
                self._port = self._speaker.port(SECRETS[self.opened % 2])
                self.opened += 1
                answer = self._port.opening
            while answer:
                answer = answer[os.write(self._fd, answer) :]

    def close(self) -> None:
        self._ended.set()
        if self.opened:
            self._thread.join()
        os.close(self._fd)
        os.close(self._slave)


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture
def stream(host: Host) -> Iterator[Stream]:
    made = Stream(host.path)
    yield made
    made.close()


def soon() -> float:
    return time.monotonic() + 20


def ask(stream: Stream, header: Header, items: tuple[Key, ...] = (), data: bytes = b"") -> tuple[Reply, bytes]:
    raw = stream.ask(header.encode(items, data))
    reply = Reply.decode(raw)
    assert reply is not None
    return reply, raw[REPLY_SIZE:]


def test_requests_and_replies(host: Host, stream: Stream) -> None:
    host.start()
    stream.synchronise(soon())
    assert ask(stream, Header(Op.HELLO, index=1, argument=0xFF))[0].status == Status.OK
    pool = ask(stream, Header(Op.NEW_POOL, argument=POOL_PERSISTENT))[0].value
    assert ask(stream, Header(Op.PUT, pool=pool, index=3, count=1), data=page(1))[0].status == Status.OK
    assert ask(stream, Header(Op.GET, pool=pool, index=3, count=1))[1] == page(1)
    assert host.opened == 1


def test_a_host_in_step_is_made_to_open_the_stream_again(host: Host, stream: Stream) -> None:
    host.start()
    stream.synchronise(soon())
    stream.synchronise(soon())
    assert host.opened == 2
    assert ask(stream, Header(Op.HELLO, index=1))[0].status == Status.OK


def test_a_sync_in_place_of_a_reply_ends_the_step(host: Host, stream: Stream) -> None:
    host.start()
    stream.synchronise(soon())
    host.mute = True
    with pytest.raises(OpError, match="opened the stream anew"):
        stream.ask(Header(Op.HELLO, index=1).encode())
    host.mute = False
    with pytest.raises(OpError, match="abi_open first"):
        stream.ask(Header(Op.HELLO, index=1).encode())
    stream.synchronise(soon())
    assert ask(stream, Header(Op.HELLO, index=1))[0].status == Status.OK


def test_a_host_that_does_not_answer(host: Host, stream: Stream) -> None:
    with pytest.raises(TimeoutError, match="does not answer"):
        stream.synchronise(time.monotonic() + 0.05)
    host.start()
    stream.synchronise(soon())
    assert host.opened == 1


def test_messages_that_are_timed() -> None:
    put = message_of(abi.Op.PUT, 7, 5, 3, 16, bytes(PAGE_SIZE))
    assert Header.decode(put) == Header(Op.PUT, pool=7, index=5, count=3)
    assert len(put) == 64 + 3 * PAGE_SIZE
    exchange = message_of(abi.Op.EXCHANGE, 7, 15, 1, 16, bytes(PAGE_SIZE))
    assert exchange[64:96] == Header(0).encode((Key(index=0),))[64:], "round to the first"
    assert message_of(abi.Op.GET, 7, 0, 2, 16, bytes(PAGE_SIZE)) == Header(Op.GET, pool=7, count=2).encode()
