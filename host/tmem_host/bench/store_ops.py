# SPDX-License-Identifier: Apache-2.0
"""What one put, get and flush cost: the store, the bare codec and the kernel's zram on the same pages.

Each sample is the mean over a batch of pages, in nanoseconds per page. States of a put:
- `first`: the key is new and the memory under it has never been touched: the arena (or zram) grows;
- `fresh`: the key is new, the memory was used before;
- `overwrite`: the key holds another page.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tmem_host._core import bench_block, bench_codec, bench_store
from tmem_host.bench import comparators, comparators_process
from tmem_host.bench.runner import Arm, ArmSkipped, BenchContext
from tmem_host.bench.store_zram import zram
from tmem_host.config import PAGE_SIZE
from tmem_host.core import Store
from tmem_host.errors import TmemError

#: Pages of a sample: enough that the clock's 25 ns do not count, few enough that most batches are not interrupted.
BATCH = 64
_ARENA_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Contents:
    """The pages of a run: one kind, and the same pages moved by one place for overwriting."""

    kind: str
    pages: bytes

    @property
    def count(self) -> int:
        return len(self.pages) // PAGE_SIZE

    @property
    def rounds(self) -> int:
        """Batches in one pass over all pages."""
        return self.count // BATCH

    @property
    def moved(self) -> bytes:
        return self.pages[PAGE_SIZE:] + self.pages[:PAGE_SIZE]


def arms(quick: bool) -> list[Arm]:
    """All arms of this part."""
    codecs = ["lz4"] if quick else ["lz4", "zstd", "none"]
    bare = ["lz4", "lz4-reused"] if quick else ["lz4", "lz4-reused", "zstd", "memcpy"]
    return [
        *(Arm(f"tmem-{codec}", {"part": "cost", "codec": codec, "kind": "store"}) for codec in codecs),
        *(Arm(f"bare-{codec}", {"part": "cost", "codec": codec, "kind": "bare"}) for codec in bare),
        Arm("zram-lz4", {"part": "cost", "codec": "lz4", "kind": "zram"}),
        Arm("zram-lz4-fio", {"part": "cost", "codec": "lz4", "kind": "fio"}),
    ]


async def turn(ctx: BenchContext, arm: Arm, contents: list[Contents], folder: Path) -> None:
    """One arm's turn in a round, over all contents."""
    kind = arm.dimensions["kind"]
    if kind == "fio":
        await _fio(ctx, arm, contents[0].count)
        return
    for pages in contents:
        ctx.progress(f"{pages.count} {pages.kind} pages")
        if kind == "store":
            _store(ctx, arm, pages, folder)
        elif kind == "bare":
            _bare(ctx, arm, pages)
        else:
            _zram(ctx, arm, pages)


@contextlib.contextmanager
def open_store(folder: Path, limit_bytes: int) -> Iterator[tuple[Store, Path]]:
    """A new store with an arena of its own, deleted after the block."""
    arena = folder / f"arena-{next(_ARENA_NUMBERS)}"
    store = Store(str(arena), limit_bytes=limit_bytes)
    try:
        yield store, arena
    finally:
        store.close()
        arena.unlink(missing_ok=True)


def add_pool(store: Store, name: str, pages: int, codec: str) -> int:
    """A swap pool of a VM of its own."""
    store.vm_create(name)
    return store.pool_create(name, persistent=True, pages=pages, codec=codec)


def _store(ctx: BenchContext, arm: Arm, contents: Contents, folder: Path) -> None:
    with open_store(folder, 2 * len(contents.pages) + (256 << 20)) as (store, _):
        pool = add_pool(store, "bench", contents.count, str(arm.dimensions["codec"]))

        def timed(op: str, pages: bytes) -> list[float]:
            return bench_store(store, pool, pages, op=op, rounds=contents.rounds, batch=BATCH)

        first = timed("put", contents.pages)
        overwrite = timed("put", contents.moved)
        timed("verify", contents.moved)
        get = timed("get", contents.moved)
        flush = timed("flush", contents.moved)
        fresh = timed("put", contents.pages)
        timed("verify", contents.pages)
    for state, samples in (("fresh", fresh), ("overwrite", overwrite), ("first", first)):
        ctx.record("put", "ns", samples, arm=arm, better="lower", contents=contents.kind, state=state)
    ctx.record("get", "ns", get, arm=arm, better="lower", contents=contents.kind)
    ctx.record("flush", "ns", flush, arm=arm, better="lower", contents=contents.kind)


def _bare(ctx: BenchContext, arm: Arm, contents: Contents) -> None:
    codec = str(arm.dimensions["codec"])
    for metric, op in (("put", "compress"), ("get", "decompress")):
        samples = bench_codec(contents.pages, codec=codec, op=op, rounds=contents.rounds, batch=BATCH)
        ctx.record(metric, "ns", samples, arm=arm, better="lower", contents=contents.kind)


def _zram(ctx: BenchContext, arm: Arm, contents: Contents) -> None:
    with zram(len(contents.pages)) as device:
        path = str(device.device)

        def timed(op: str, pages: bytes) -> list[float]:
            return bench_block(path, pages, op=op, rounds=contents.rounds, batch=BATCH)

        first = timed("put", contents.pages)
        overwrite = timed("put", contents.moved)
        get = timed("get", contents.moved)
        _, compressed, used = device.memory()
        # An empty device whose slab pages the kernel has just freed: nearest to the store's fresh put.
        device.empty(len(contents.pages), "lz4")
        fresh = timed("put", contents.pages)
    for state, samples in (("fresh", fresh), ("overwrite", overwrite), ("first", first)):
        ctx.record("put", "ns", samples, arm=arm, better="lower", contents=contents.kind, state=state)
    ctx.record("get", "ns", get, arm=arm, better="lower", contents=contents.kind)
    if compressed:
        ctx.record("held_over_compressed", "ratio", used / compressed, arm=arm, better="lower", contents=contents.kind)


async def _fio(ctx: BenchContext, arm: Arm, pages: int) -> None:
    """fio's psync on a zram device: a second opinion on the loop of `bench_block`, with fio's own 2:1 pages."""
    try:
        tree = comparators.find()
    except TmemError as error:
        raise ArmSkipped(f"no fio: {error}") from error
    with zram(pages * PAGE_SIZE) as device:
        for metric, mode in (("put", "write"), ("get", "read")):
            argv = tree.command("fio", *_fio_options(str(device.device), mode))
            done = await comparators_process.run(argv, env=tree.env, deadline=120)
            result = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][mode]
            # Submission to completion: fio makes new contents between two requests, which is not zram's time.
            ctx.record(metric, "ns", result["lat_ns"]["mean"], arm=arm, better="lower", contents="fio 50 %")


def _fio_options(device: str, mode: str) -> list[str]:
    return [
        "--name=zram",
        f"--filename={device}",
        "--ioengine=psync",
        "--direct=1",
        "--bs=4k",
        f"--rw={mode}",
        "--loops=4",
        "--buffer_compress_percentage=50",
        "--refill_buffers=1",
        "--allow_mounted_write=0",
        "--output-format=json",
    ]
