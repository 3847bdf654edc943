# SPDX-License-Identifier: Apache-2.0
"""The vhost-user-blk clients of the channel bench, none of which is ours to tune: qemu-img bench and libblkio."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tmem_host.bench.comparators import CLIENT, Tree
from tmem_host.bench.comparators_process import run
from tmem_host.config import PAGE_SIZE
from tmem_host.errors import VmFailed

Op = Literal["read", "write"]
#: Any byte but zero: a server may treat zeroes apart from other same-filled pages.
_PATTERN = 165
_COMPLETED = re.compile(r"^Run completed in ([0-9.]+) seconds\.$", re.MULTILINE)


@dataclass(frozen=True)
class ClientRun:
    """One run of a client."""

    requests: int
    #: From the first request to the last completion; start-up and connecting are not in it.
    seconds: float
    #: Of single requests, where the client tells.
    latency_ns: list[int]


async def qemu_img_bench(tree: Tree, socket: Path, op: Op, depth: int, count: int, deadline: float) -> ClientRun:
    """`count` sequential requests of one page with `depth` in flight. Writes are one repeated byte.

    The time is the one that qemu-img prints (milliseconds), which it starts after opening the device.
    """
    write = ["-w", f"--pattern={_PATTERN}"] if op == "write" else []
    target = f"driver=virtio-blk-vhost-user,path={socket},cache.direct=on"
    size = ["-s", str(PAGE_SIZE), "-S", str(PAGE_SIZE)]
    argv = tree.command(
        "qemu-img", "bench", *write, "-c", str(count), "-d", str(depth), *size, "-t", "none", "--image-opts", target
    )
    done = await run(argv, env=tree.env, deadline=deadline)
    found = _COMPLETED.search(done.stdout)
    if found is None:
        raise VmFailed("qemu-img bench printed no time", "build the comparators again")
    return ClientRun(count, float(found[1]), [])


async def blkio(
    tree: Tree,
    socket: Path,
    op: Op,
    depth: int,
    count: int,
    deadline: float,
    *,
    pages: Path,
    poll: bool,
    random: bool = False,
    seed: int = 1,
) -> ClientRun:
    """`count` requests by libblkio; page i of the device gets page i (modulo their number) of the file `pages`."""
    argv = _blkio_argv(tree, socket, op, depth, count, pages, poll, random, seed, "samples")
    data = json.loads((await run(argv, env=tree.env, deadline=deadline)).stdout)
    return ClientRun(int(data["requests"]), float(data["seconds"]), [int(ns) for ns in data["latency_ns"]])


async def bad_pages(tree: Tree, socket: Path, device_pages: int, pages: Path, deadline: float) -> int:
    """Reads the whole device and compares it with what `blkio` writes there; returns how many pages differ."""
    argv = _blkio_argv(tree, socket, "read", 32, device_pages, pages, False, False, 1, "verify")
    return int(json.loads((await run(argv, env=tree.env, deadline=deadline)).stdout)["bad"])


def _blkio_argv(
    tree: Tree,
    socket: Path,
    op: Op,
    depth: int,
    count: int,
    pages: Path,
    poll: bool,
    random: bool,
    seed: int,
    result: str,
) -> list[str]:
    wait, order = "poll" if poll else "event", "random" if random else "sequential"
    return tree.command(CLIENT, str(socket), op, wait, str(depth), str(count), order, str(seed), str(pages), result)
