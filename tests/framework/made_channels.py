# SPDX-License-Identifier: Apache-2.0
"""Made-up requests over channels, inside a guest and without one, as the channel bench records them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tmem_host.bench import channel_guest, channel_tmem

if TYPE_CHECKING:
    from framework.made_results import Maker

#: What one request costs before any work, ns, by the way of waiting.
_WAITS = {"inline": 500.0, "poll": 900.0, "event": 9000.0, "none": 0.0}
_WORK = {
    "put": 3200.0,
    "get": 1100.0,
    "flush": 300.0,
    "exchange": 4200.0,
    "put+get": 4300.0,
    "read": 700.0,
    "write": 3500.0,
}
COPIES = {"virtio-tmem": 0.0, "vhost-user-tmem": 0.0, "vhost-user-blk": 0.0, "virtio-serial": 4096.0, "ivshmem": 4096.0}


def add_guest(m: Maker, accelerator: str = "tcg") -> None:
    """The arms inside a guest; the big lock makes two vCPUs wait for each other."""
    for arm, way in channel_guest.WAYS.items():
        wait = _WAITS[str(way.dimensions["wait"])]
        for point in channel_guest.points(way, [1, 8, 128]):
            labels: dict[str, Any] = {"arm": arm, **way.dimensions, **point.labels(), "accelerator": accelerator}
            work = _WORK[point.op] * point.batch * point.page_bytes / 4096
            each = wait * (2 if point.op == "put+get" else 1) + work
            if point.every > 1:
                locked = way.dimensions.get("lock") == "on" and point.vcpus > 1
                m.latency("guest_run", each * (2 if locked else 1), **labels)
                m.each("guest_together", "ns", each if locked else each / point.vcpus, **labels)
                continue
            m.latency("guest_request", each, **labels)
            if point.op in ("put", "get") and point.page_bytes == 4096:
                m.latency("guest_page", each / point.batch, **labels)
    first: dict[str, str] = {}
    for arm, way in channel_guest.WAYS.items():
        first.setdefault(way.channel, arm)
    for channel, arm in first.items():
        for step, how in (("guest", "by code: made up"), ("monitor", "by code: made up"), ("host", "counted: made up")):
            labels = {"arm": arm, "channel": channel, "op": "put", "step": step, "how": how}
            m.same("bytes_copied", "bytes", COPIES[channel], "lower", **labels)


def add_own(m: Maker) -> None:
    """The arms without a guest."""
    for arm in channel_tmem.chosen([]):
        wait = _WAITS["none" if arm == "engine" else "poll" if arm.endswith("poll") else "event"]
        for point in channel_tmem.points(quick=True):
            labels: dict[str, Any] = {"arm": arm, **point.labels()}
            work = _WORK[point.op] * point.batch * point.page_bytes / 4096
            each = wait * (2 if point.op == "put+get" else 1) + work
            m.latency("tmem_request", each, **labels)
            if point.op in ("put", "get") and point.page_bytes == 4096:
                m.each("tmem_page", "ns", each / point.batch, **labels)


def add_units(m: Maker, gain: float = 1.2, dearer: float = 8.0) -> None:
    """Compound pages in the store: `gain` times as dense, 4 KiB out of one `dearer` times as dear."""
    for name, size in (("4K", 4096), ("64K", 64 << 10), ("2M", 2 << 20)):
        for contents in ("files", "corpus"):
            labels: dict[str, Any] = {"arm": f"unit-{name}", "unit_bytes": size, "part": "units", "contents": contents}
            large = size > 4096
            m.same("compression_ratio", "ratio", 2 * (gain if large else 1), "higher", **labels)
            m.same("held_ratio", "ratio", 1.9 * (gain if large else 1), "higher", **labels)
            m.latency("put_page", 3000, **labels)
            m.latency("get_unit", 1000 * size / 4096, **labels)
            m.latency("get_page", 1000 * (dearer if large else 1), **labels)
            m.latency("get_range", 600 * (dearer if large else 1), **labels)
