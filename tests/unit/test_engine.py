# SPDX-License-Identifier: Apache-2.0
"""The core answers as the reference does, byte for byte, whatever two guests send."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.guest import noise, page
from conformance.local import CoreSpeaker, ReferenceSpeaker
from conformance.sequences import Side, data_of, requests
from tmem_host.channel.abi import FEATURES_ALL, Header, Key, Op, Reply


@pytest.fixture(scope="module")
def core() -> Iterator[CoreSpeaker]:
    folder = Path(tempfile.mkdtemp(prefix="tmem-t-", dir="/dev/shm"))
    speaker = CoreSpeaker.over(folder / "arena")
    yield speaker
    speaker.store.close()
    shutil.rmtree(folder, ignore_errors=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 19), requests()), min_size=20, max_size=60))
def test_core_is_the_reference(
    core: CoreSpeaker, steps: list[tuple[int, int, tuple[Header, tuple[Key, ...], int, int]]]
) -> None:
    sides = [Side(core), Side(ReferenceSpeaker.new(core.features))]
    try:
        for vm, freeze, (header, items, stuff, off) in steps:
            for side in sides:
                if freeze < 4:
                    side.freeze(vm, freeze == 0)
            data = data_of(header, stuff, off)
            ours, theirs = (side.ask(vm, header, items, data) for side in sides)
            assert ours == theirs, f"{header} {items}: {Reply.decode(ours)}, not {Reply.decode(theirs)}"
    finally:
        for side in sides:
            side.close()


def test_long_run(core: CoreSpeaker) -> None:
    """Thousands of good requests, so that states are reached that short runs do not."""
    rng = random.Random(7)
    sides = [Side(core), Side(ReferenceSpeaker.new(core.features))]
    try:
        for side in sides:
            side.ask(0, Header(Op.NEW_POOL, argument=1, count=64), (), b"")
        for _ in range(4000):
            op = rng.choice([Op.PUT, Op.PUT, Op.GET, Op.FLUSH_PAGE, Op.READ, Op.WRITE, Op.EXCHANGE, Op.NEW_PAGE])
            count = rng.choice([1, 1, 1, 7]) if op in (Op.PUT, Op.GET, Op.FLUSH_PAGE) else 1
            offset = rng.randrange(4096) if op in (Op.READ, Op.WRITE) else 0
            length = rng.randrange(1, 4097 - offset) if op in (Op.READ, Op.WRITE) else 0
            header = Header(
                op, 0, rng.randrange(1, 5), index=rng.randrange(50), count=count, offset=offset, length=length
            )
            items = (Key(index=rng.randrange(50)),) if op == Op.EXCHANGE else ()
            seed, maker = rng.randrange(1000), rng.choice([page, noise])
            data = b"".join(maker(seed + i) for i in range(count)) if op in (Op.PUT, Op.EXCHANGE) else b""
            if op == Op.WRITE:
                data = maker(seed)[:length]
            ours, theirs = (side.ask(0, header, items, data) for side in sides)
            assert ours == theirs, f"{header} {items}"
    finally:
        for side in sides:
            side.close()


def test_counters(core: CoreSpeaker) -> None:
    hello = Header(Op.HELLO, index=1).encode()
    channel = core.channel()
    assert isinstance(channel, CoreSpeaker)
    channel.request(hello)
    channel.request(Header(99).encode())
    stats = channel.stats()
    assert (stats["hello"], stats["ok"], stats["bad-op"]) == (1, 1, 1)


@given(message=st.binary(max_size=5000), room=st.one_of(st.none(), st.integers(0, 10000)))
def test_any_bytes_are_answered(core: CoreSpeaker, message: bytes, room: int | None) -> None:
    """And answered by both alike."""
    reference = ReferenceSpeaker.new(core.features)
    for speaker in (core, reference):
        speaker.reset()
        speaker.request(Header(Op.HELLO, index=1, argument=FEATURES_ALL).encode())
    assert core.request(message, room)[:8] == reference.request(message, room)[:8]
