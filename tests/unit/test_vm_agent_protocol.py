# SPDX-License-Identifier: Apache-2.0
"""The agent's frames: whatever arrives, the next good request is answered."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmem_guest import protocol
from tmem_guest.protocol import FrameReader, OpError, Refusal, Request


def only(frames: list[Request | Refusal]) -> Request | Refusal:
    assert len(frames) == 1
    return frames[0]


def test_request_is_read() -> None:
    frame = only(FrameReader().feed(b'{"id": 3, "op": "hog", "mib": 5}\n'))
    assert isinstance(frame, Request)
    assert (frame.id, frame.op, frame.args) == (3, "hog", {"mib": 5})


@pytest.mark.parametrize("cut", range(1, 30))
def test_frame_in_two_pieces(cut: int) -> None:
    whole = b'{"id":1,"op":"hello","a":"b"}\n'
    reader = FrameReader()
    frames = reader.feed(whole[:cut]) + reader.feed(whole[cut:])
    assert isinstance(only(frames), Request)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not an object"),
        (b'{"op": "hello"}', "id must"),
        (b'{"id": true, "op": "hello"}', "id must"),
        (b'{"id": -1, "op": "hello"}', "id must"),
        (b'{"id": 1, "op": 2}', "op must"),
    ],
)
def test_what_is_no_request_is_refused_and_the_next_is_read(line: bytes, reason: str) -> None:
    refusal, request = FrameReader().feed(line + b'\n{"id":9,"op":"hello"}\n')
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason
    assert isinstance(request, Request)
    assert request.id == 9


def test_endless_line_is_refused_once_and_skipped() -> None:
    reader = FrameReader()
    frames = []
    for _ in range(40):
        frames += reader.feed(b"x" * 32768)
    assert [type(frame) for frame in frames] == [Refusal]
    assert isinstance(only(reader.feed(b'tail\n{"id":1,"op":"hello"}\n')), Request)


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_then_a_request(noise: bytes, step: int) -> None:
    reader = FrameReader()
    stream = noise + b'\n{"id":7,"op":"last"}\n'
    frames = [frame for i in range(0, len(stream), step) for frame in reader.feed(stream[i : i + step])]
    assert isinstance(frames[-1], Request)
    assert frames[-1].op == "last"


@pytest.mark.parametrize("value", [None, True, -1, 11, 2.5, "3", [1]])
def test_number_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(OpError) as caught:
        Request(1, "op", {"n": value}).number("n", high=10)
    assert caught.value.kind == protocol.INVALID


def test_getters_give_defaults_and_values() -> None:
    request = Request(1, "op", {"n": 4, "t": "x", "f": False})
    assert (request.number("n"), request.text("t"), request.flag("f")) == (4, "x", False)
    assert (request.number("m", 2), request.text("u", "y"), request.flag("g", True)) == (2, "y", True)
    with pytest.raises(OpError):
        request.text("n")
    with pytest.raises(OpError):
        request.flag("n")


def test_event_passes_a_line_on_unread() -> None:
    assert json.loads(protocol.encode_event(4, "hog", b'{"a":1}')) == {"id": 4, "event": "hog", "data": {"a": 1}}
