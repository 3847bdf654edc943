# SPDX-License-Identifier: Apache-2.0
"""What the benches on micro-VMs, exit and density, have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from tmem_host._core import CoreError
from tmem_host.bench import corpus
from tmem_host.bench.runner import ArmSkipped, BenchContext, BenchError
from tmem_host.errors import NotFound

#: Kinds of CoreError that say what this host cannot do; all others are faults.
_NOT_HERE: Final = frozenset({"no-kvm", "not-offered", "hung"})


@contextlib.contextmanager
def arm_errors() -> Iterator[None]:
    """Within an arm: what this host cannot do skips the arm, anything else fails it."""
    try:
        yield
    except CoreError as error:
        if error.kind in _NOT_HERE:
            raise ArmSkipped(str(error)) from error
        raise BenchError(str(error)) from error


async def contents(ctx: BenchContext, name: str, count: int) -> bytes:
    """Pages by name; made-up text, said so, where there is no guest image to take real ones from."""
    try:
        pages = await corpus.contents(name, count, seed=ctx.seed, series="6.1", progress=ctx.progress)
    except NotFound as error:
        name, pages = "text", corpus.text_like(count, ctx.seed)
        ctx.note(f"Pages are made-up text, not sampled from a guest: {error}")
    ctx.configure(contents=name, **corpus.facts(pages).properties())
    return pages
