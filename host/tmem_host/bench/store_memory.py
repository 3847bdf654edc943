# SPDX-License-Identifier: Apache-2.0
"""Memory that the store holds over the compressed bytes in it, at several sizes, and after churn.

Design section 11 allows 1.06 x + 24 bytes a page, so what is recorded is (held - 24 x pages) / compressed. Held is what
the kernel says the arena file occupies (st_blocks, stat(2)) plus the index in the process's own memory.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tmem_host._core import bench_store
from tmem_host.bench import store_pages
from tmem_host.bench.channel_scratch import memory_available
from tmem_host.bench.runner import Arm, ArmSkipped, BenchContext
from tmem_host.bench.store_ops import add_pool, open_store
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.core import Store

#: Bytes of index and slot headers a page may cost on top (design section 11).
PER_PAGE = 24
#: Different pages that a size is made of; they repeat, which no codec here can see.
_DISTINCT = 16384
#: Overwrites, as a multiple of the pages stored.
_CHURN = 2


def arms(quick: bool, sizes_mib: list[int]) -> list[Arm]:
    """An arm for each codec and size: a size that does not fit has its own reason."""
    codecs = ["lz4"] if quick else ["lz4", "zstd"]
    return [Arm(f"tmem-{c}", {"part": "memory", "codec": c, "stored_mib": s}) for c in codecs for s in sizes_mib]


async def turn(ctx: BenchContext, arm: Arm, folder: Path, kinds: list[str]) -> None:
    """Measures one codec and size for each kind of contents."""
    count = int(arm.dimensions["stored_mib"]) * MIB // PAGE_SIZE
    need = 2 * count * PAGE_SIZE
    if need > memory_available():
        raise ArmSkipped(f"{need // MIB} MiB of memory are needed and {memory_available() // MIB} MiB available")
    for kind in kinds:
        ctx.progress(f"{arm.dimensions['stored_mib']} MiB of {kind} pages")
        pages = store_pages.contents(kind, min(count, _DISTINCT), ctx.seed)
        with open_store(folder, need + 256 * MIB) as (store, arena):
            pool = add_pool(store, "bench", count, str(arm.dimensions["codec"]))
            bench_store(store, pool, pages, op="put", rounds=1, batch=count)
            _record(ctx, arm, store, arena, kind, "filled")
            for step in range(_CHURN):
                # Other pages at every index, and so other sizes, in an order in which no block empties at once.
                bench_store(
                    store, pool, _shuffled(pages, ctx.seed + step), op="put", rounds=1, batch=count, order="random"
                )
            _record(ctx, arm, store, arena, kind, "churned")
            store.maintain()
            _record(ctx, arm, store, arena, kind, "churned, maintained")
            _flush_half(store, pool, pages, count)
            store.maintain()
            _record(ctx, arm, store, arena, kind, "half flushed, maintained")


def _record(ctx: BenchContext, arm: Arm, store: Store, arena: Path, kind: str, state: str) -> None:
    stats = store.stats()
    held = arena.stat().st_blocks * 512 + stats["index_bytes"]
    ratio = (held - PER_PAGE * stats["pages"]) / stats["compressed_bytes"]
    labels: dict[str, Any] = {"contents": kind, "state": state}
    ctx.record("held_over_compressed", "ratio", ratio, arm=arm, better="lower", **labels)
    ctx.record("held", "bytes", held, arm=arm, better="lower", **labels)
    ctx.record("held_by_store", "bytes", stats["held_bytes"], arm=arm, better="lower", **labels)
    ctx.record("compressed", "bytes", stats["compressed_bytes"], arm=arm, **labels)


def _shuffled(pages: bytes, seed: int) -> bytes:
    """The same pages in another order."""
    order = list(range(len(pages) // PAGE_SIZE))
    random.Random(seed).shuffle(order)
    return b"".join(pages[i * PAGE_SIZE : (i + 1) * PAGE_SIZE] for i in order)


def _flush_half(store: Store, pool: int, pages: bytes, count: int) -> None:
    """Flushes half of the pages, scattered: what is left must not keep nearly empty blocks alive."""
    bench_store(store, pool, pages, op="flush", rounds=1, batch=count // 2, order="random")
