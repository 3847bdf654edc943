# SPDX-License-Identifier: Apache-2.0
"""How long a store takes to come back after `kill -9`, and whether every page is there.

A child process fills a store and is killed in the middle of more puts; this process opens the arena again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tmem_host._core import bench_store
from tmem_host.bench import store_pages
from tmem_host.bench.channel_backends import read_text
from tmem_host.bench.channel_scratch import memory_available
from tmem_host.bench.comparators_process import daemon, last_line
from tmem_host.bench.runner import Arm, ArmSkipped, BenchContext, BenchError
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.core import Store

_DISTINCT = 4096
_READY = b"filled\n"


def arms(sizes: list[int]) -> list[Arm]:
    """An arm for each number of pages and kind of contents."""
    kinds = (store_pages.SYNTHETIC, store_pages.SMALL)
    return [
        Arm("tmem-lz4", {"part": "recovery", "codec": "lz4", "resident": size, "contents": kind})
        for size in sizes
        for kind in kinds
    ]


def limit_of(pages: int) -> int:
    """Bytes the store may hold: all pages at their worst."""
    return pages * (PAGE_SIZE + 64) + 256 * MIB


async def turn(ctx: BenchContext, arm: Arm, folder: Path) -> None:
    """Fill in a child, kill it, reopen here, check every page."""
    pages, kind = int(arm.dimensions["resident"]), str(arm.dimensions["contents"])
    if memory_available() < pages * PAGE_SIZE * 3 // 4:
        raise ArmSkipped(f"{pages} {kind} pages need more memory than there is")
    arena = folder / "recovery"
    try:
        await _fill_and_kill(arena, pages, kind, ctx.seed, folder / "recovery.log")
        start = time.perf_counter()
        store = Store(str(arena), limit_bytes=limit_of(pages))
        opened = time.perf_counter() - start
        try:
            _check(ctx, store, pages, kind)
            ctx.record("recovery", "s", opened, arm=arm, better="lower")
            ctx.record("recovery_per_page", "ns", opened * 1e9 / pages, arm=arm, better="lower")
        finally:
            store.close()
    finally:
        arena.unlink(missing_ok=True)


async def _fill_and_kill(arena: Path, pages: int, kind: str, seed: int, log: Path) -> None:
    argv = [sys.executable, "-m", "tmem_host.bench.store_recovery", str(arena), str(pages), kind, str(seed)]
    async with daemon(argv, log=log, stdout=asyncio.subprocess.PIPE) as child:
        assert child.stdout is not None  # opened as a pipe
        line = await asyncio.wait_for(child.stdout.readline(), 600)
        if line != _READY:
            raise BenchError(f"the child that fills the store ended: {last_line(read_text(log))}")
        child.kill()
        await child.wait()


def _check(ctx: BenchContext, store: Store, pages: int, kind: str) -> None:
    """Every page must be there with its bytes. Raises BenchError."""
    found = store.recovery()
    if found["fresh"] or found["pages"] != pages or found["lost_pages"]:
        raise BenchError(f"of {pages} pages {found['pages']} came back, {found['lost_pages']} lost")
    contents = store_pages.contents(kind, _DISTINCT, ctx.seed)
    pool = store.pools()[0]["id"]
    bench_store(store, pool, contents, op="verify", rounds=1, batch=pages)


def main(argv: Sequence[str] | None = None) -> int:
    """The child: fills the store, says so, and overwrites pages with themselves until it is killed."""
    parser = argparse.ArgumentParser(prog="python -m tmem_host.bench.store_recovery")
    parser.add_argument("arena")
    parser.add_argument("pages", type=int)
    parser.add_argument("kind")
    parser.add_argument("seed", type=int)
    options = parser.parse_args(argv)
    contents = store_pages.contents(options.kind, _DISTINCT, options.seed)
    store = Store(options.arena, limit_bytes=limit_of(options.pages))
    store.vm_create("bench")
    pool = store.pool_create("bench", persistent=True, pages=options.pages, codec="lz4")
    bench_store(store, pool, contents, op="put", rounds=1, batch=options.pages)
    sys.stdout.buffer.write(_READY)
    sys.stdout.flush()
    while True:
        bench_store(store, pool, contents, op="put", rounds=1, batch=options.pages, order="random")


if __name__ == "__main__":
    sys.exit(main())
