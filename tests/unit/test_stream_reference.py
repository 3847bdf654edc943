# SPDX-License-Identifier: Apache-2.0
"""The core's end of a stream answers as the reference does, frame by frame, however the bytes come."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.local import ReferenceSpeaker
from conformance.sequences import Side, data_of, requests
from conformance.stream import StreamSpeaker
from tmem_host.channel.abi import FEATURES_ALL, Header, Key, Op
from tmem_host.channel.frames import CONTROL_MAX, FRAME_MAX, FRAME_SIZE, SYNC_SIZE, Frame, FrameReader, Kind, encode

Step = tuple[Header, tuple[Key, ...], int, int] | bytes

#: What ends a stream: each is no frame of a guest.
ENDS = (
    b"\xff" * 8,
    encode(Kind.REPLY, bytes(40)),
    encode(Kind.SYNC, bytes(8)),
    encode(Kind.CONTROL, bytes(CONTROL_MAX + 1)),
    Kind.REQUEST.to_bytes(4, "little") + (FRAME_MAX + 1).to_bytes(4, "little"),
)
#: Requests whose answers do not depend on the numbers that pools have.
REQUESTS = requests().filter(lambda request: request[0].op not in (Op.NEW_POOL, Op.DESTROY_POOL))
STEPS = st.lists(st.one_of(REQUESTS, REQUESTS, REQUESTS, st.binary(max_size=200)), max_size=40)


@dataclass(frozen=True)
class Script:
    """What a guest sends on a connection, with the numbers that its pools have on one side."""

    before: bytes
    after: bytes
    replies: int
    ends: bool
    sizes: list[int]

    @classmethod
    def of(cls, side: Side, before: bytes, steps: list[Step], end: bytes, sizes: list[int]) -> Script:
        asked = [Header(Op.HELLO, index=1, argument=FEATURES_ALL).encode()]
        # From the same beginning each time.
        for pool in range(4):
            asked += [
                side.numbered(0, Header(Op.FLUSH_OBJECT, pool=pool, object=name)).encode()
                for name in ((0, 0, 0), (7, 0, 1 << 63))
            ]
        frames = [encode(Kind.REQUEST, message) for message in asked]
        for step in steps:
            if isinstance(step, bytes):
                frames.append(encode(Kind.CONTROL, step))
            else:
                header, items, stuff, off = step
                message = side.numbered(0, header).encode(items, data_of(header, stuff, off))
                frames.append(encode(Kind.REQUEST, message))
        controls = sum(isinstance(step, bytes) for step in steps)
        return cls(before, b"".join(frames) + end, len(frames) - controls, bool(end), sizes)

    def pieces(self, opening: bytes) -> Iterator[bytes]:
        """The whole stream, cut into pieces of the given sizes, over and over."""
        data = self.before + opening + self.after
        at = 0
        for size in itertools.cycle(self.sizes):
            if at >= len(data):
                return
            yield data[at : at + size]
            at += size


def core_says(connection: socket.socket, script: Script) -> tuple[bytes, list[Frame]]:
    """The secret of the core's SYNC, and the frames that it then sends."""
    opening = connection.recv(FRAME_SIZE + SYNC_SIZE, socket.MSG_WAITALL)

    def send() -> None:
        # It hangs up in the middle of what ends the stream.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in script.pieces(opening):
                connection.sendall(piece)

    sender = threading.Thread(target=send)
    sender.start()
    reader = FrameReader()
    frames = list(reader.feed(opening))
    with contextlib.suppress(ConnectionResetError):
        while len(frames) <= script.replies or script.ends:
            data = connection.recv(1 << 20)
            if not data:
                break
            frames += reader.feed(data)
    sender.join()
    return opening[FRAME_SIZE:], frames


def reference_says(speaker: ReferenceSpeaker, secret: bytes, script: Script) -> list[Frame]:
    port = speaker.port(secret)
    answered = b"".join(port.feed(piece) for piece in script.pieces(port.opening))
    assert port.ended == script.ends
    return list(FrameReader().feed(port.opening + answered))


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[StreamSpeaker, Side, ReferenceSpeaker, Side]]:
    folder = Path(tempfile.mkdtemp(prefix="tmem-t-", dir="/dev/shm"))
    (folder / "ports").mkdir()
    core = StreamSpeaker.over(folder / "arena", folder / "ports")
    reference = ReferenceSpeaker.new(core.features)
    yield core, Side(core), reference, Side(reference)
    core.close()
    core.store.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    before=st.binary(max_size=100),
    steps=STEPS,
    end=st.sampled_from([b"", b"", *ENDS]),
    sizes=st.lists(st.sampled_from([1, 7, 8, 9, 72, 4096, 70_000]), min_size=1, max_size=5).filter(
        lambda sizes: max(sizes) > 9
    ),
)
def test_core_is_the_reference(
    sides: tuple[StreamSpeaker, Side, ReferenceSpeaker, Side],
    before: bytes,
    steps: list[Step],
    end: bytes,
    sizes: list[int],
) -> None:
    core, ours, reference, theirs = sides
    with core.raw() as connection:
        secret, said = core_says(connection, Script.of(ours, before, steps, end, sizes))
    expected = reference_says(reference, secret, Script.of(theirs, before, steps, end, sizes))
    assert said == expected
