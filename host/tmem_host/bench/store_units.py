# SPDX-License-Identifier: Apache-2.0
"""Pages of 4 KiB against compound ones: how much denser they are kept, and what 4 KiB out of one cost (claim H16).

The same bytes go into a pool of each page size. What lies together in a compound page belongs together, so `files` are
bytes in a row (programs, libraries and texts of a guest's root disk); `corpus` are single pages of a guest's memory in
random order, which is what a guest that only gathers pages would have.

Metrics, per `contents`, each arm with `unit_bytes`:
- `compression_ratio` (ratio): bytes put over bytes after compression; `held_ratio`: over bytes held, slots and headers
  counted;
- `put_page` (ns): putting a unit, for each 4 KiB of it; `get_unit` (ns): getting a whole unit;
- `get_page` (ns): 4 KiB out of a unit: a get, or a range from anywhere in it; `get_range` (ns): 64 bytes likewise.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tmem_host.bench import store_pages
from tmem_host.bench.runner import Arm, BenchContext, BenchError
from tmem_host.bench.store_ops import open_store
from tmem_host.channel.abi import (
    FEATURES_ALL,
    POOL_ORDER_SHIFT,
    POOL_PERSISTENT,
    VERSION,
    Header,
    Op,
    Reply,
    Status,
)
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.core import Engine, RequestPlan, Store, core_errors, measure_engine
from tmem_host.errors import TmemError
from tmem_host.vm.images import guest_image

if TYPE_CHECKING:
    from tmem_host._core import MeasuredOp

SIZES: Final = {"4K": PAGE_SIZE, "64K": 64 << 10, "2M": 2 << 20}
FILES: Final = "files"
RANGE: Final = 64
_BYTES: Final = 8 * MIB
#: Where a root disk's own tables end, and pieces of it that hold nothing are left out.
_SKIPPED: Final = 2 * MIB
_PIECE: Final = 64 << 10
_SAMPLES: Final = 256


def arms() -> list[Arm]:
    """One for each page size."""
    return [Arm(f"unit-{name}", {"part": "units", "unit_bytes": size, "codec": "lz4"}) for name, size in SIZES.items()]


def contents(ctx: BenchContext, kinds: list[str]) -> dict[str, bytes]:
    """8 MiB of files, and of the corpus if it is among the run's kinds. Without files the part is skipped."""
    try:
        found = {FILES: files()}
    except TmemError as error:
        ctx.skip(str(error), part="units")
        return {}
    if store_pages.CORPUS in kinds:
        found[store_pages.CORPUS] = store_pages.contents(store_pages.CORPUS, _BYTES // PAGE_SIZE, ctx.seed)
    return found


def files() -> bytes:
    """What a guest's root disk holds, in the order of its blocks, without empty pieces. Raises NotFound."""
    disk = guest_image("6.1").rootdisk
    if disk is None:
        raise BenchError("the guest image has no root disk", "run 'make guests'")
    raw = disk.read_bytes()[_SKIPPED:]
    pieces = [raw[at : at + _PIECE] for at in range(0, len(raw) - _PIECE + 1, _PIECE)]
    kept = b"".join(piece for piece in pieces if piece.strip(b"\0"))
    if len(kept) < _BYTES:
        raise BenchError(f"the guest's root disk holds {len(kept) >> 20} MiB only, {_BYTES >> 20} are needed")
    return kept[:_BYTES]


async def turn(ctx: BenchContext, arm: Arm, kinds: dict[str, bytes], folder: Path) -> None:
    """One size's turn in a round."""
    for kind, data in kinds.items():
        ctx.progress(f"{len(data) >> 20} MiB of {kind}")
        with open_store(folder, 3 * len(data) + 64 * MIB) as (store, _), core_errors("units"):
            _one(ctx, arm, kind, data, store)


def _one(ctx: BenchContext, arm: Arm, kind: str, data: bytes, store: Store) -> None:
    size = int(arm.dimensions["unit_bytes"])
    store.vm_create("units")
    engine = Engine(store, "units", codec="lz4")
    _ask(engine, Header(Op.HELLO, index=VERSION, argument=FEATURES_ALL))
    order = (size // PAGE_SIZE).bit_length() - 1
    flags = POOL_PERSISTENT | order << POOL_ORDER_SHIFT
    units = len(data) // size
    pool = _ask(engine, Header(Op.NEW_POOL, argument=flags, count=units)).value
    samples = min(_SAMPLES, units)

    def record(metric: str, unit: str, values: list[float], better: str = "lower") -> None:
        ctx.record(metric, unit, values, arm=arm, better=better, contents=kind)  # type: ignore[arg-type]

    def timed(op: MeasuredOp, requests: int, length: int = 0) -> list[float]:
        times = measure_engine(engine, data, RequestPlan(op, pool, requests, page_bytes=size, length=length))
        return [float(ns) for ns in times]

    timed("put", units)  # the arena takes its memory
    put = timed("put", units)
    facts = next(p for p in store.pools() if p["vm"] == "units")
    record("compression_ratio", "ratio", [len(data) / facts["compressed_bytes"]], "higher")
    record("held_ratio", "ratio", [len(data) / facts["held_bytes"]], "higher")
    record("put_page", "ns", [ns * PAGE_SIZE / size for ns in put[:: max(1, units // samples)]])
    record("get_unit", "ns", timed("get", samples))
    # As many requests as there are pages in the samples of the smallest size: the same number on both sides.
    whole = timed("get", _SAMPLES) if size == PAGE_SIZE else timed("read", _SAMPLES, PAGE_SIZE)
    record("get_page", "ns", whole)
    record("get_range", "ns", timed("read", _SAMPLES, RANGE))


def _ask(engine: Engine, header: Header) -> Reply:
    reply = Reply.decode(engine.request(header.encode(), 0))
    if reply is None or reply.status != Status.OK:
        raise BenchError(f"the engine answers {reply}")
    return reply
