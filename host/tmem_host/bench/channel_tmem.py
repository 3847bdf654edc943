# SPDX-License-Identifier: Apache-2.0
"""Arms of `tmem bench channel` for vhost-user-tmem: puts and gets of 1 to 128 pages in one request.

No client but ours speaks this protocol outside a VM, so these arms are measured with our own (`client` is `own`), which
`tmem` tunes as it likes: they tell batch sizes and ways of waiting from each other, and are compared with no other
server. The client is a thread of the bench's process, the server the process that serves the block devices; both wait
in the same way, asleep (`event`) or looking (`poll`). A time begins before the request is written into shared memory
and ends after its reply is seen there.

Metrics, per arm, op (put, get) and batch (pages in a request):
- `tmem_request` (ns): of single requests;
- `tmem_page` (ns): mean time of a page in a run of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tmem_host.bench.channel_backends import TmemProcess, tmem_process
from tmem_host.bench.runner import Arm, BenchContext, BenchError
from tmem_host.channel.abi import (
    BATCH_MAX,
    FEATURES_ALL,
    POOL_PERSISTENT,
    REPLY_SIZE,
    VERSION,
    Header,
    Op,
    Reply,
    Status,
)
from tmem_host.config import PAGE_SIZE
from tmem_host.core import TmemClient, core_errors

_ARMS = {"vhost-user-tmem-event": "event", "vhost-user-tmem-poll": "poll"}
_VM = "own"
#: Pages that one run puts or gets, at least one request.
_RUN = 2048
#: Samples of single requests that a run leaves.
_KEPT = 256


def chosen(wanted: Sequence[str]) -> list[str]:
    """Names of these arms among ``wanted``; all when none is wanted."""
    return [name for name in _ARMS if not wanted or name in wanted]


def batches(quick: bool) -> list[int]:
    """Pages in a request."""
    return [1, 8, BATCH_MAX] if quick else [1, 2, 4, 8, 16, 32, 64, BATCH_MAX]


async def measure(
    ctx: BenchContext, folder: Path, pages: bytes, arms: Sequence[str], *, rounds: int, poll_us: int
) -> None:
    """Runs the arms in turn. ``pages``: a multiple of 128."""
    home = folder / "tmem"
    home.mkdir()
    ctx.note("vhost-user-tmem is measured with a client of our own, without QEMU and without a guest.")
    async with tmem_process(home, 4 * len(pages) + (64 << 20)) as process:
        socket = home / "own.sock"
        await process.ask(op="add_tmem", name=_VM, socket=str(socket), codec="lz4", queues=1)
        run = _Run(ctx, process, socket, pages, poll_us)
        await run.fill()
        listed = [Arm(name, {"server": "tmem", "codec": "lz4", "wait": _ARMS[name]}) for name in arms]
        await ctx.interleave(listed, rounds=rounds, run=run.turn)
        await run.check()


class _Run:
    """One server, and a client for each turn."""

    def __init__(self, ctx: BenchContext, process: TmemProcess, socket: Path, pages: bytes, poll_us: int) -> None:
        self._ctx = ctx
        self._process = process
        self._socket = str(socket)
        self._pages = pages
        self._poll_us = poll_us
        self._pool = 0

    async def fill(self) -> None:
        """Makes the pool and puts every page once: what is measured is not the arena taking its memory."""
        client = await self._connect(spins=False)
        self._pool = _ask(client, Header(Op.NEW_POOL, argument=POOL_PERSISTENT)).value
        await self._client(client, "put", BATCH_MAX, len(self._pages) // PAGE_SIZE // BATCH_MAX, 0)
        client.close()

    async def turn(self, arm: Arm, index: int) -> None:
        """Every batch size once, puts and gets."""
        polls = arm.dimensions["wait"] == "poll"
        await self._process.ask(op="poll", name=_VM, us=self._poll_us if polls else 0)
        client = await self._connect(spins=polls)
        for batch in batches(self._ctx.quick):
            self._ctx.progress(f"own client, {batch} pages a request")
            requests = max(_RUN // batch, 1)
            for op in ("put", "get"):
                await self._client(client, op, batch, max(requests // 8, 1), index)
                times = await self._client(client, op, batch, requests, index * requests)
                step = max(1, len(times) // _KEPT)
                labels = {"op": op, "batch": batch, "client": "own"}
                self._ctx.record("tmem_request", "ns", times[::step], arm=arm, better="lower", **labels)
                each = sum(times) / len(times) / batch
                self._ctx.record("tmem_page", "ns", each, arm=arm, better="lower", **labels)
        client.close()

    async def check(self) -> None:
        """Every page is still what it was."""
        client = await self._connect(spins=False)
        step = BATCH_MAX * PAGE_SIZE
        for at in range(0, len(self._pages), step):
            header = Header(Op.GET, pool=self._pool, index=at // PAGE_SIZE, count=BATCH_MAX)
            if client.request(header.encode())[REPLY_SIZE:] != self._pages[at : at + step]:
                raise BenchError(f"a page from {at // PAGE_SIZE} on differs from what was put")
        client.close()

    async def _connect(self, *, spins: bool) -> TmemClient:
        with core_errors("the own client"):
            client = await asyncio.to_thread(TmemClient, self._socket, spins=spins)
        _ask(client, Header(Op.HELLO, index=VERSION, argument=FEATURES_ALL))
        return client

    async def _client(
        self, client: TmemClient, op: Literal["put", "get"], batch: int, requests: int, start: int
    ) -> list[int]:
        with core_errors("the own client"):
            return await asyncio.to_thread(
                client.measure, self._pages, op=op, pool=self._pool, batch=batch, requests=requests, start=start
            )


def _ask(client: TmemClient, header: Header) -> Reply:
    with core_errors("the own client"):
        reply = Reply.decode(client.request(header.encode(), 0))
    if reply is None or reply.status != Status.OK:
        raise BenchError(f"the channel answers {reply}")
    return reply
