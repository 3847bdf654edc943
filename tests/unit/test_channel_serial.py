# SPDX-License-Identifier: Apache-2.0
"""The host's end of a virtio-serial port: the conformance suite over a real socket, and control messages."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance import CASES, Case
from conformance.stream import FakeGuest, StreamSpeaker
from tmem_host.channel.frames import CONTROL_MAX, Kind
from tmem_host.channel.serial import PortState, SerialPort
from tmem_host.core import Engine, Store
from tmem_host.errors import Conflict, InvalidInput


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamSpeaker]:
    folder = tmp_path_factory.mktemp("ports")
    made = StreamSpeaker.over(folder.parent / "stream-arena", folder)
    yield made
    made.close()
    made.store.close()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case, speaker: StreamSpeaker) -> None:
    case.run(speaker)


class World:
    """A store with one VM, its port, and where the guest's end will be."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder / "arena"), limit_bytes=64 << 20)
        self.store.vm_create("one")
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.path = folder / "port"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.settimeout(20)
        self.engine = Engine(self.store, "one")
        self.port = SerialPort(self.engine, "one", self.path, self.heard.put_nowait)

    def listen(self) -> None:
        self.listener.bind(str(self.path))
        self.listener.listen()

    async def guest(self) -> FakeGuest:
        return await asyncio.to_thread(FakeGuest, self.listener)

    async def close(self) -> None:
        await self.port.close()
        self.listener.close()
        self.store.close()


async def test_control_messages_both_ways(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        # The VM starts after its port is served.
        await world.port.open()
        assert world.port.stats()["state"] == "waiting"
        world.listen()
        guest = await world.guest()
        guest.send(Kind.CONTROL, b'{"hello": {"agent": 1}}')
        assert await asyncio.wait_for(world.heard.get(), 20) == {"hello": {"agent": 1}}
        world.port.send({"run": "hog"})
        assert await asyncio.to_thread(guest.frame) == (Kind.CONTROL, b'{"run":"hog"}')
        guest.close()
    finally:
        await world.close()


async def test_what_is_no_message_is_counted_and_the_channel_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        world.listen()
        await world.port.open()
        guest = await world.guest()
        for body in (b"", b"nonsense", b"[1]", b"\xff\xfe", b"[" * 5000, json.dumps({"x": "y" * 60000}).encode()):
            guest.send(Kind.CONTROL, body)
        guest.send(Kind.CONTROL, b'{"end": true}')
        heard = [await asyncio.wait_for(world.heard.get(), 20) for _ in range(2)]
        assert [list(message) for message in heard] == [["x"], ["end"]]
        assert world.port.stats()["control_refused"] == 5
        guest.close()
    finally:
        await world.close()


async def test_a_listener_that_fails_ends_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)

    def fussy(message: dict[str, Any]) -> None:
        world.heard.put_nowait(message["wanted"])

    world.port = SerialPort(world.engine, "one", world.path, fussy)
    try:
        world.listen()
        await world.port.open()
        guest = await world.guest()
        guest.send(Kind.CONTROL, b'{"other": 1}')
        guest.send(Kind.CONTROL, b'{"wanted": {"a": 1}}')
        assert await asyncio.wait_for(world.heard.get(), 20) == {"a": 1}
        assert world.port.stats()["control_refused"] == 1
        guest.close()
    finally:
        await world.close()


async def test_states_and_bounds(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        with pytest.raises(Conflict):
            world.port.send({})
        await world.port.open()
        with pytest.raises(Conflict):
            await world.port.open()
        with pytest.raises(InvalidInput, match="too long"):
            world.port.send({"x": "y" * CONTROL_MAX})
        await world.port.close()
        assert world.port.state is PortState.CLOSED
        assert world.port.stats() == {"control_refused": 0}
    finally:
        await world.close()
