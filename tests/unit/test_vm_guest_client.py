# SPDX-License-Identifier: Apache-2.0
"""The host's client against the guest's own server, over a Unix socket instead of virtio-serial."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tmem_guest.server import Server
from tmem_host.errors import Conflict
from tmem_host.vm.guest_client import (
    ClientState,
    GuestClient,
    GuestGarbled,
    GuestGone,
    GuestRefused,
    GuestTimeout,
)
from tmem_host.vm.guest_results import collect_hog, decode_samples

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def client_of(folder: Path, handler: Handler) -> AsyncIterator[GuestClient]:
    path = folder / "port"
    handlers: list[asyncio.Task[None]] = []

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.create_task(run(reader, writer)))

    server = await asyncio.start_unix_server(accept, path)
    client = GuestClient("test")
    await client.connect(path)
    try:
        yield client
    finally:
        await client.close()
        server.close()
        await asyncio.gather(*handlers)


async def real_agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()

    def write(data: bytes) -> None:
        loop.call_soon_threadsafe(writer.write, data)

    agent = Server(write)
    while data := await reader.read(65536):
        agent.feed(data)


def says(*lines: bytes) -> Handler:
    """An agent that answers the first request with these lines and waits for the client to go."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"".join(lines))
        await writer.drain()
        await reader.read()

    return handler


async def test_real_agent_answers_and_refuses(tmp_path: Path) -> None:
    async with client_of(tmp_path, real_agent) as client:
        assert (await client.meminfo())["meminfo"]["MemTotal"] > 0
        assert "pgfault" in await client.vmstat()
        with pytest.raises(GuestRefused) as caught:
            await client.request("no-such-op")
        assert caught.value.kind == "invalid"
        with pytest.raises(GuestRefused) as caught:
            await client.swap_on("no-such-disk")
        assert caught.value.kind == "not-found"
        with pytest.raises(GuestRefused, match="mib"):
            await client.hog(0)
        await client.shutdown()


async def test_bad_frames_do_not_stop_the_agent(tmp_path: Path) -> None:
    async with client_of(tmp_path, real_agent) as client:
        assert client._writer is not None
        client._writer.write(b"\0\xff nonsense\n{}\n" + b"y" * 600_000 + b"\n")
        assert (await client.meminfo())["ok"]


async def test_requests_side_by_side(tmp_path: Path) -> None:
    async with client_of(tmp_path, real_agent) as client:
        answers = await asyncio.gather(*(client.meminfo() for _ in range(20)))
        assert len({answer["id"] for answer in answers}) == 20


async def test_agent_goes_away(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()

    async with client_of(tmp_path, handler) as client:
        with pytest.raises(GuestGone):
            await client.meminfo()
        assert client.state is ClientState.CLOSED
        with pytest.raises(GuestGone):
            await client.meminfo()


@pytest.mark.parametrize(
    "line", [b"nonsense\n", b"[]\n", b'{"ok":true}\n', b'{"id":1}\n', b'{"id":1,"ok":false}\n', b"\xff\n"]
)
async def test_something_else_than_the_protocol(tmp_path: Path, line: bytes) -> None:
    async with client_of(tmp_path, says(line)) as client:
        with pytest.raises(GuestGarbled):
            await client.meminfo()
        assert client.state is ClientState.CLOSED


async def test_no_answer_in_time_leaves_the_client_usable(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        second = json.loads(await reader.readline())
        # the late answer to the first is of no interest any more
        writer.write(
            b'{"id":1,"ok":true}\n' + json.dumps({"id": second["id"], "ok": True, "vmstat": {"a": 1}}).encode() + b"\n"
        )
        await reader.read()

    async with client_of(tmp_path, handler) as client:
        with pytest.raises(GuestTimeout):
            await client.request("hello", timeout=0.05)
        assert await client.vmstat() == {"a": 1}


async def test_other_protocol_version(tmp_path: Path) -> None:
    async with client_of(tmp_path, says(b'{"id":1,"ok":true,"protocol":99}\n')) as client:
        with pytest.raises(GuestGarbled, match="99"):
            await client.hello()


async def test_pages_come_in_chunks(tmp_path: Path) -> None:
    chunk = base64.b64encode(b"p" * 4096).decode()
    event = json.dumps({"id": 1, "event": "pages", "data": chunk}).encode() + b"\n"
    async with client_of(tmp_path, says(event, event, b'{"id":1,"ok":true,"count":2}\n')) as client:
        assert await client.sample_pages(2) == b"p" * 8192


async def test_error_of_a_progress_callback_surfaces(tmp_path: Path) -> None:
    event = {"event": "progress", "phase": "write", "done": 1, "planned": 2, "bad": 0}
    frame = json.dumps({"id": 1, "event": "workload", "data": event}).encode() + b"\n"

    def broken(_progress: object) -> None:
        raise ZeroDivisionError

    async with client_of(tmp_path, says(frame)) as client:
        with pytest.raises(ZeroDivisionError):
            await client.hog(1, progress=broken)


@pytest.mark.parametrize(
    "data", [{}, [], {"event": "progress"}, {"event": "phase"}, {"event": "done"}, {"event": ["start"]}], ids=str
)
async def test_what_is_no_event_of_a_workload(tmp_path: Path, data: object) -> None:
    frame = json.dumps({"id": 1, "event": "workload", "data": data}).encode() + b"\n"
    start = json.dumps({"id": 1, "event": "workload", "data": {"event": "start"}}).encode() + b"\n"
    done = json.dumps({"id": 1, "event": "workload", "data": {"event": "done"}}).encode() + b"\n"
    async with client_of(tmp_path, says(start, frame, done, b'{"id":1,"ok":true,"status":0}\n')) as client:
        with pytest.raises(GuestGarbled):
            await client.workload("zipf", 1, progress=lambda _told: None)


async def test_a_workload_may_not_say_without_end(tmp_path: Path) -> None:
    frame = json.dumps({"id": 1, "event": "workload", "data": {"event": "bad", "x": "x" * 1_000_000}}).encode() + b"\n"

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        with contextlib.suppress(OSError):
            while True:
                writer.write(frame)
                await writer.drain()

    async with client_of(tmp_path, flood) as client:
        with pytest.raises(GuestGarbled, match="more than 32 MiB"):
            await client.workload("zipf", 1)


async def test_what_a_guest_says_of_an_error_is_a_short_line(tmp_path: Path) -> None:
    error = json.dumps({"id": 1, "ok": False, "kind": "failed", "error": "a\n\x1b[2Jb" * 1000}).encode() + b"\n"
    async with client_of(tmp_path, says(error)) as client:
        with pytest.raises(GuestRefused) as caught:
            await client.workload("zipf", 1)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


async def test_cancelled_hog_is_ended_in_the_guest(tmp_path: Path) -> None:
    stopped: list[int] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            frame = json.loads(line)
            if frame["op"] == "workload_cancel":
                stopped.append(frame["target"])
                writer.write(json.dumps({"id": frame["id"], "ok": True}).encode() + b"\n")

    async with client_of(tmp_path, handler) as client:
        with pytest.raises(GuestTimeout):
            await client.hog(1, timeout=0.05)
    assert stopped == [1]


async def test_client_connects_once(tmp_path: Path) -> None:
    async with client_of(tmp_path, real_agent) as client:
        with pytest.raises(Conflict):
            await client.connect(tmp_path / "port")


def samples(*values: int) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}I", *values)).decode()


def test_samples_are_split_by_kind_of_fault() -> None:
    assert decode_samples(samples(5, 1 << 31 | 70, 6)) == ((70,), (5, 6))


def test_hog_lines_become_a_result() -> None:
    phase = {
        "event": "phase",
        "phase": "write",
        "pages": 2,
        "nanoseconds": 10**9,
        "bad": 0,
        "major": 1,
        "rewrites": 0,
        "accesses": 2,
        "vmstat": {"pswpin": 1},
        "samples": samples(1 << 31 | 9, 4),
    }
    events = [
        {"event": "start", "pages": 2, "corpus_pages": 0, "clock_ns": {"min": 1, "median": 2, "p99": 3}},
        phase,
        {"event": "done", "bad": 0, "verified": True},
    ]
    result = collect_hog(events, 0, 1.5)
    assert (result.pages, result.bad, result.verified) == (2, 0, True)
    assert result.phase("write").major_ns == (9,)
    assert result.phase("write").seconds == 1.0


def test_hog_killed_for_memory_says_so() -> None:
    with pytest.raises(ValueError, match="out of memory"):
        collect_hog([], -9, 1.0)
