# SPDX-License-Identifier: Apache-2.0
"""Arms of `tmem bench channel` for tmem requests without a guest: every operation, on this machine's own processor.

No client but ours speaks this protocol outside a VM, so these arms are measured with our own (`client` is `own`), which
`tmem` tunes as it likes: they tell operations, sizes and ways of waiting from each other, and are compared with no
other server. Three things carry the requests:
- `engine`: nothing does; the host's side of every channel is called in this process;
- `vhost-user-tmem-*`: a virtqueue in shared memory. The client is a thread of the bench's process, the server another
  process; both wait in the same way, asleep (`event`) or looking (`poll`);
- `stream-socket`: frames over a socket, what virtio-serial is to the host. Both sleep.

A time begins before the request is written and ends after its reply is seen; the data of a put lies where the guest
would have it. Metrics, per arm, op, batch (pages in a request), page_bytes and, of ranges, length:
- `tmem_request` (ns): of single requests;
- `tmem_page` (ns): mean time of a page in a run of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from tmem_host.bench.channel_backends import TmemProcess, tmem_process
from tmem_host.bench.results import Scalar
from tmem_host.bench.runner import Arm, BenchContext, BenchError
from tmem_host.channel.abi import (
    BATCH_MAX,
    FEATURES_ALL,
    POOL_ORDER_SHIFT,
    POOL_PERSISTENT,
    REPLY_SIZE,
    VERSION,
    Header,
    Op,
    Reply,
    Status,
)
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.core import Engine, RequestPlan, Store, StreamClient, TmemClient, core_errors, measure_engine

if TYPE_CHECKING:
    from tmem_host._core import MeasuredOp

_ARMS: Final[Mapping[str, Mapping[str, Scalar]]] = {
    "engine": {"channel": "none", "wait": "none"},
    "vhost-user-tmem-event": {"channel": "vhost-user-tmem", "wait": "event", "poll": "off"},
    "vhost-user-tmem-poll": {"channel": "vhost-user-tmem", "wait": "poll", "poll": "on"},
    "stream-socket": {"channel": "virtio-serial", "wait": "event", "poll": "off"},
}
SIZES: Final = (PAGE_SIZE, 64 << 10, 2 << 20)
RANGE: Final = 64
#: The same VM and pool for both ways of waiting.
_VHOST, _STREAM = "vhost", "stream"
#: Pages that one run of a batch size puts or gets, at least one request; and bytes of a run of anything else.
_RUN: Final = 2048
_OTHER_BYTES: Final = 2 * MIB
#: Samples of single requests that a run leaves.
_KEPT: Final = 256
#: Room for all pools of a server, over the bytes of the pages.
ROOM: Final = 8


class Speaker(Protocol):
    """Whatever carries requests."""

    def request(self, message: bytes, room: int | None = None) -> bytes: ...

    def measure(self, pages: bytes, plan: RequestPlan) -> list[int]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Bare:
    """The engine in this process."""

    engine: Engine

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self.engine.request(message, room)

    def measure(self, pages: bytes, plan: RequestPlan) -> list[int]:
        return measure_engine(self.engine, pages, plan)

    def close(self) -> None:
        """The store is closed by who made it."""


@dataclass(frozen=True)
class Point:
    """What one run measures."""

    op: MeasuredOp
    batch: int = 1
    page_bytes: int = PAGE_SIZE
    length: int = 0

    def labels(self) -> dict[str, Scalar]:
        found: dict[str, Scalar] = {"op": self.op, "batch": self.batch, "page_bytes": self.page_bytes, "client": "own"}
        return {**found, "length": self.length} if self.length else found

    @property
    def requests(self) -> int:
        """How many a run makes: batches as many pages each, anything else as many bytes."""
        if self.page_bytes == PAGE_SIZE and self.op in ("put", "get"):
            return max(_RUN // self.batch, 1)
        return max(_OTHER_BYTES // self.page_bytes, 4)


def chosen(wanted: Sequence[str]) -> list[str]:
    """Names of these arms among ``wanted``; all when none is wanted."""
    return [name for name in _ARMS if not wanted or name in wanted]


def batches(quick: bool) -> list[int]:
    """Pages in a request."""
    return [1, 8, BATCH_MAX] if quick else [1, 2, 4, 8, 16, 32, 64, BATCH_MAX]


def points(quick: bool) -> list[Point]:
    """All of an arm. A flush leaves its pages flushed, so a put of all of them comes after it."""
    both: tuple[MeasuredOp, ...] = ("put", "get")
    found = [Point(op, batch=n) for n in batches(quick) for op in both]
    for size in SIZES:
        found += [Point(op, page_bytes=size) for op in both if size != PAGE_SIZE]
        found += [Point("exchange", page_bytes=size), Point("put+get", page_bytes=size)]
        found += [Point("read", page_bytes=size, length=RANGE), Point("write", page_bytes=size, length=RANGE)]
        found += [Point("flush", page_bytes=size)]
    return found


async def measure(
    ctx: BenchContext, folder: Path, pages: bytes, arms: Sequence[str], *, rounds: int, poll_us: int
) -> None:
    """Runs the arms in turn. ``pages``: a multiple of 2 MiB."""
    home = folder / "tmem"
    home.mkdir()
    ctx.note("The arms engine, vhost-user-tmem-* and stream-socket have a client of our own, no QEMU and no guest.")
    async with tmem_process(home, ROOM * len(pages) + 64 * MIB) as process:
        with _engine(home, len(pages)) as engine:
            await process.ask(op="add_tmem", name=_VHOST, socket=str(home / "vhost.sock"), codec="lz4", queues=1)
            run = _Run(ctx, process, home, pages, poll_us, engine)
            await run.fill(arms)
            listed = [Arm(name, {"server": "tmem", "codec": "lz4", **_ARMS[name]}) for name in arms]
            await ctx.interleave(listed, rounds=rounds, run=run.turn)
            await run.check(arms)
            run.close()


@contextlib.contextmanager
def _engine(home: Path, bytes_: int) -> Iterator[Engine]:
    """An engine over a store of its own, in this process."""
    store = Store(str(home / "engine.arena"), limit_bytes=ROOM // 2 * bytes_ + 64 * MIB)
    try:
        store.vm_create("engine")
        yield Engine(store, "engine", codec="lz4")
    finally:
        store.close()


class _Run:
    """Servers with their pools, and a speaker for each turn."""

    def __init__(
        self, ctx: BenchContext, process: TmemProcess, home: Path, pages: bytes, poll_us: int, engine: Engine
    ) -> None:
        self._ctx = ctx
        self._process = process
        self._home = home
        self._pages = pages
        self._poll_us = poll_us
        self._engine = engine
        self._stream: StreamClient | None = None
        #: By channel, then by page size.
        self._pools: dict[str, dict[int, int]] = {}

    async def fill(self, arms: Sequence[str]) -> None:
        """Makes the pools and puts every page once: what is measured is not the arena taking its memory."""
        for name in arms:
            channel = str(_ARMS[name]["channel"])
            if channel in self._pools:
                continue
            self._ctx.progress(f"filling the pools of {name}")
            speaker = await self._speaker(channel, spins=False)
            self._pools[channel] = {}
            for size in SIZES:
                order = (size // PAGE_SIZE).bit_length() - 1
                flags = POOL_PERSISTENT | order << POOL_ORDER_SHIFT
                count = len(self._pages) // size
                pool = _ask(speaker, Header(Op.NEW_POOL, argument=flags, count=count)).value
                self._pools[channel][size] = pool
                await self._put_all(speaker, pool, size)
            self._leave(speaker)

    async def _put_all(self, speaker: Speaker, pool: int, size: int) -> None:
        await self._measure(speaker, Point("put", page_bytes=size), pool, len(self._pages) // size, 0)

    async def turn(self, arm: Arm, index: int) -> None:
        """Every point once."""
        channel, polls = str(arm.dimensions["channel"]), arm.dimensions["wait"] == "poll"
        if channel == "vhost-user-tmem":
            await self._process.ask(op="poll", name=_VHOST, us=self._poll_us if polls else 0)
        speaker = await self._speaker(channel, spins=polls)
        for point in points(self._ctx.quick):
            self._ctx.progress(" ".join(f"{k} {v}" for k, v in point.labels().items()))
            await self._point(arm, speaker, point, index)
        self._leave(speaker)

    async def _point(self, arm: Arm, speaker: Speaker, point: Point, index: int) -> None:
        pool = self._pools[str(arm.dimensions["channel"])][point.page_bytes]
        await self._measure(speaker, point, pool, max(point.requests // 8, 1), index)
        times = await self._measure(speaker, point, pool, point.requests, index * point.requests)
        if point.op == "flush":
            await self._put_all(speaker, pool, point.page_bytes)
        labels = point.labels()
        kept = times[:: max(1, len(times) // _KEPT)]
        self._ctx.record("tmem_request", "ns", kept, arm=arm, better="lower", **labels)
        if point.page_bytes == PAGE_SIZE and point.op in ("put", "get"):
            each = sum(times) / len(times) / point.batch
            self._ctx.record("tmem_page", "ns", each, arm=arm, better="lower", **labels)

    async def check(self, arms: Sequence[str]) -> None:
        """Every page of every pool is still what it was."""
        for channel in dict.fromkeys(str(_ARMS[name]["channel"]) for name in arms):
            speaker = await self._speaker(channel, spins=False)
            for size, pool in self._pools[channel].items():
                count = max(1, BATCH_MAX * PAGE_SIZE // size)
                step = count * size
                for at in range(0, len(self._pages), step):
                    header = Header(Op.GET, pool=pool, index=at // size, count=count)
                    answer = await asyncio.to_thread(speaker.request, header.encode())
                    if answer[REPLY_SIZE:] != self._pages[at : at + step]:
                        raise BenchError(f"a page of {size} bytes from {at // size} on differs from what was put")
            self._leave(speaker)

    async def _speaker(self, channel: str, *, spins: bool) -> Speaker:
        """A channel's other end; HELLO has been said."""
        if channel == "virtio-serial":
            return await self._stream_speaker()
        makers: dict[str, Callable[[], Speaker]] = {
            "none": lambda: Bare(self._engine),
            "vhost-user-tmem": lambda: TmemClient(str(self._home / "vhost.sock"), spins=spins),
        }
        with core_errors("the own client"):
            speaker = await asyncio.to_thread(makers[channel])
        _ask(speaker, Header(Op.HELLO, index=VERSION, argument=FEATURES_ALL))
        return speaker

    async def _stream_speaker(self) -> Speaker:
        """One connection for the whole run: the server comes to where the client listens."""
        if self._stream is None:
            path = str(self._home / "stream.sock")
            with core_errors("the own client"):
                self._stream = StreamClient(path)
            await self._process.ask(op="add_serial", name=_STREAM, socket=path, codec="lz4")
            hello = Header(Op.HELLO, index=VERSION, argument=FEATURES_ALL)
            await asyncio.to_thread(_ask, self._stream, hello)
        return self._stream

    def _leave(self, speaker: Speaker) -> None:
        """One client at a time is all that a vhost-user server takes."""
        if speaker is not self._stream:
            speaker.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    async def _measure(self, speaker: Speaker, point: Point, pool: int, requests: int, start: int) -> list[int]:
        with core_errors("the own client"):
            plan = RequestPlan(
                point.op,
                pool,
                requests,
                batch=point.batch,
                page_bytes=point.page_bytes,
                length=point.length,
                start=start,
            )
            return await asyncio.to_thread(speaker.measure, self._pages, plan)


def _ask(speaker: Speaker, header: Header) -> Reply:
    with core_errors("the own client"):
        reply = Reply.decode(speaker.request(header.encode(), 0))
    if reply is None or reply.status != Status.OK:
        raise BenchError(f"the channel answers {reply}")
    return reply
