# SPDX-License-Identifier: Apache-2.0
"""How many bytes of a page are copied before it is compressed, by channel and by who copies them.

Counted where a counter exists: pages that the engine could not take where they lie, bytes that came over a stream.
The rest is read off the code, and the record names the file that copies, or that shows that nothing does. A copy that
is the channel itself (ivshmem: into shared memory) counts as the guest's.

Metric `bytes_copied` (bytes of a put of 4 KiB), by `step` (guest, monitor, host) and `how`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tmem_host.bench.channel_backends import TmemProcess
from tmem_host.bench.channel_probe import Probe
from tmem_host.bench.runner import Arm, BenchContext
from tmem_host.channel.abi import REQUEST_SIZE
from tmem_host.channel.frames import FRAME_SIZE
from tmem_host.config import PAGE_SIZE

_PUTS: Final = 64
"""Samples of the turn that is counted; what it puts and gets besides is in the counters, too."""
NOBODY: Final = (0, "by code: its address goes into the ring (guest/module/virtio_queue.c)")
_DISK: Final = (0, "by code: swap hands the page itself to the block layer (mm/page_io.c)")
_BYPASSED: Final = (0, "by code: the request never reaches QEMU's own code (hw/virtio/vhost-user.c)")
_MAPPED: Final = (0, "by code: QEMU maps the page where it lies (qemu-patches, hw/virtio/virtio-tmem.c)")


def server_name(arm: str) -> str:
    """What the server calls an arm's VM; also the serial of its disk, which has 20 bytes."""
    return arm.removeprefix("guest-")


def staged(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[float, str]:
    """Bytes copied per page by the host's side, from the counters of pages taken in place and not."""
    direct, bounced = (after[name] - before[name] for name in ("direct_pages", "bounced_pages"))
    share = bounced / max(1, direct + bounced)
    return PAGE_SIZE * share, f"counted: {bounced} of {direct + bounced} pages not in place"


async def count(ctx: BenchContext, probe: Probe, process: TmemProcess, arm: Arm, channel: str) -> None:
    """Puts some pages and records who copied what."""
    if channel == "ivshmem":
        steps: dict[str, tuple[float, str]] = {
            "guest": (PAGE_SIZE, "by code: the put is this copy (guest/probe/shared.c)"),
            "monitor": (0, "by code: the guest's store is the host's memory"),
            "host": (0, "by code: nothing is compressed"),
        }
    else:
        before = await _counters(probe, process, arm, channel)
        await probe.turn(arm.name, "put", samples=_PUTS)
        after = await _counters(probe, process, arm, channel)
        steps = _steps(channel, before, after)
    for step, (amount, how) in steps.items():
        ctx.record("bytes_copied", "bytes", float(amount), arm=arm, better="lower", op="put", step=step, how=how)


def _steps(channel: str, before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[float, str]]:
    match channel:
        case "virtio-tmem":
            return {"guest": NOBODY, "monitor": _MAPPED, "host": staged(before, after)}
        case "vhost-user-tmem":
            return {"guest": NOBODY, "monitor": _BYPASSED, "host": staged(before, after)}
        case "vhost-user-blk":
            return {"guest": _DISK, "monitor": _BYPASSED, "host": staged(before, after)}
        case _:
            return stream(before, after)


def stream(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[float, str]]:
    """Of a stream: what came in over the puts and gets of the turn.

    A get sends a request alone, so the page bytes are what came less the requests' own.
    """
    puts, gets, came = (after[name] - before[name] for name in ("put", "get", "received"))
    page = (came - (puts + gets) * (FRAME_SIZE + REQUEST_SIZE)) / max(1, puts)
    counted = f"counted: {came} bytes came in {puts + gets} requests"
    return {
        "guest": (
            2 * PAGE_SIZE,
            "by code: into the port's buffer (guest/module/serial_port.c), out of it (drivers/char/virtio_console.c)",
        ),
        "monitor": (page, f"{counted}; QEMU writes them to a socket (hw/char/virtio-serial-bus.c)"),
        "host": (page, f"{counted}; the agent reads them (host/core/stream/src/port.rs)"),
    }


async def _counters(probe: Probe, process: TmemProcess, arm: Arm, channel: str) -> dict[str, int]:
    if channel == "virtio-tmem":
        # Devices have no name of their own there; their arenas do.
        found = next(d for d in await probe.query_tmem() if f"/{arm.name}.arena" in str(d["arena"]))
        return {str(c["name"]).replace("-", "_"): int(c["value"]) for c in found["counters"]}
    stats: Mapping[str, Any] = (await process.ask(op="stats"))["channels"][server_name(arm.name)]
    return {k: int(v) for k, v in {**stats, **stats["requests"]}.items() if isinstance(v, int)}
