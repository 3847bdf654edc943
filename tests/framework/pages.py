# SPDX-License-Identifier: Apache-2.0
"""Pages that can be told apart, and putting them into an arena that no agent has open."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tmem_host.core import Store

DENSE = bytes(24)


def page(number: int) -> bytes:
    """Page ``number``: half noise of its own, half one byte, so that it compresses about 2:1."""
    return random.Random(number).randbytes(2048) + bytes([number % 256]) * 2048


@contextmanager
def opened(arena: Path, limit: int = 64 << 20) -> Iterator[Store]:
    """The arena, held by this process."""
    store = Store(str(arena), limit_bytes=limit)
    try:
        yield store
    finally:
        store.close()


def swap_pool(store: Store, vm: str) -> int:
    """The number of the VM's dense pool."""
    pool: int = next(p["id"] for p in store.pools() if p["vm"] == vm and p["pages_capacity"] is not None)
    return pool


def fill(store: Store, vm: str, numbers: Iterable[int]) -> None:
    """Puts page N at index N of the VM's pool, for all ``numbers``."""
    pool = swap_pool(store, vm)
    for number in numbers:
        assert store.put(pool, DENSE, number, page(number)) == "stored"


def wrong(store: Store, vm: str, numbers: Iterable[int]) -> list[int]:
    """Those of ``numbers`` whose page is not what :func:`fill` put there."""
    pool = swap_pool(store, vm)
    return [number for number in numbers if store.get(pool, DENSE, number) != page(number)]
