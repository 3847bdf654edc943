# SPDX-License-Identifier: Apache-2.0
"""Whether an operation costs the same however many pages are resident, and whatever other threads do."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tmem_host._core import bench_codec, bench_store
from tmem_host.bench import stats, store_pages
from tmem_host.bench.channel_scratch import memory_available
from tmem_host.bench.runner import Arm, BenchContext
from tmem_host.bench.store_ops import BATCH, add_pool, open_store
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.core import Store

SMALL = 10_000
#: Bytes of memory a resident page takes here: about 10:1 pages in their slot, header and index.
_RESIDENT = 640
_DISTINCT = 4096
#: Passes of each thread over its pages: enough that all threads run at the same time for most of them.
_PASSES = 12


def resident_pages(ctx: BenchContext, wanted: int) -> int:
    """How many pages can be resident: as many as wanted, or fewer with a note, when they would take half the memory."""
    room = memory_available() // 2 // _RESIDENT
    if room >= wanted:
        return wanted
    ctx.note(f"Memory allows {room} resident pages, not {wanted}: the cost by resident pages is shown for fewer.")
    return room


async def cost_by_resident(ctx: BenchContext, folder: Path, large: int, rounds: int) -> None:
    """Random puts and gets with 10 thousand and with `large` pages resident, interleaved."""
    pages = store_pages.contents(store_pages.SMALL, _DISTINCT, ctx.seed)
    sizes = [SMALL, large]
    arms = [Arm("tmem-lz4", {"part": "resident", "codec": "lz4", "resident": size}) for size in sizes]
    with (
        open_store(folder, SMALL * PAGE_SIZE * 2 + 256 * MIB) as (few, _),
        open_store(folder, large * _RESIDENT * 2 + 1024 * MIB) as (many, _),
    ):
        stores = {
            size: (store, add_pool(store, "bench", size, "lz4")) for size, store in zip(sizes, (few, many), strict=True)
        }
        for size, (store, pool) in stores.items():
            await _fill(ctx, store, pool, pages, size)

        async def one(arm: Arm, index: int) -> None:
            size = int(arm.dimensions["resident"])
            store, pool = stores[size]
            for op in ("put", "get"):
                # One batch a sample: as many operations for both, other indices in each round.
                samples = bench_store(
                    store, pool, pages, op=op, rounds=SMALL // BATCH, batch=BATCH, order="random", start=index * SMALL
                )
                ctx.record(f"{op}_by_resident", "ns", samples, arm=arm, better="lower")

        await ctx.interleave(arms, rounds=rounds, run=one)


async def _fill(ctx: BenchContext, store: Store, pool: int, pages: bytes, count: int) -> None:
    """Puts `count` pages, in parts so that Ctrl-C and the progress line are served."""
    part = 500_000
    for start in range(0, count, part):
        ctx.progress(f"filling: {start} of {count} pages")
        bench_store(store, pool, pages, op="put", rounds=1, batch=min(part, count - start), start=start)
        await asyncio.sleep(0)


async def scaling(ctx: BenchContext, folder: Path, kind: str, count: int, rounds: int) -> None:
    """Pages per second of 1 and of 2 threads, each with a VM of its own; and of the bare codec, which shares nothing.

    Two CPUs of one core, or a busy neighbour, bound the bare codec in the same way.
    """
    if len(os.sched_getaffinity(0)) < 2:
        ctx.skip("one CPU only: nothing can run beside anything", Arm("tmem-lz4", {"part": "threads"}))
        return
    pages = store_pages.contents(kind, count, ctx.seed)
    arms = [
        Arm(name, {"part": "threads", "codec": "lz4", "contents": kind, "threads": threads})
        for name in ("tmem-lz4", "bare-lz4-reused")
        for threads in (1, 2)
    ]
    with open_store(folder, 4 * len(pages) + 256 * MIB) as (store, _), ThreadPoolExecutor(2) as workers:
        pools = [add_pool(store, f"vm{i}", count, "lz4") for i in range(2)]
        for pool in pools:
            bench_store(store, pool, pages, op="put", rounds=1, batch=count)

        def work(arm: Arm, op: str, thread: int) -> float:
            """Pages per second of one thread, from inside its loop: copying the pages in is not part of it."""
            if arm.name == "tmem-lz4":
                samples = bench_store(store, pools[thread], pages, op=op, rounds=_PASSES, batch=count)
            else:
                bare = "compress" if op == "put" else "decompress"
                samples = bench_codec(pages, codec="lz4-reused", op=bare, rounds=_PASSES, batch=count)
            return 1e9 / stats.median(samples)

        async def one(arm: Arm, _index: int) -> None:
            threads = int(arm.dimensions["threads"])
            loop = asyncio.get_running_loop()
            for op in ("put", "get"):
                each = await asyncio.gather(*(loop.run_in_executor(workers, work, arm, op, i) for i in range(threads)))
                ctx.record("throughput", "pages/s", sum(each), arm=arm, better="higher", op=op)

        await ctx.interleave(arms, rounds=rounds, run=one)
