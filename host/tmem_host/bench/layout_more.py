# SPDX-License-Identifier: Apache-2.0
"""Further tables of a bench, below the headline table: each has a question of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tmem_host.bench.layout import LAYOUTS, Column, Layout, headline, layout_for
from tmem_host.bench.results import Results, Scalar
from tmem_host.config import PAGE_SIZE

_PAGE: Final[Mapping[str, Scalar]] = {"batch": 1, "page_bytes": PAGE_SIZE}


def _operations(metric: str) -> tuple[Column, ...]:
    """A column for each operation of one page, then larger pages."""
    columns = [
        Column(metric, label, {"op": op, **_PAGE})
        for op, label in (
            ("put", "put"),
            ("get", "get"),
            ("flush", "flush page"),
            ("exchange", "exchange"),
            ("put+get", "put, then get"),
            ("read", "read 64 B"),
            ("write", "write 64 B"),
        )
    ]
    for size, label in ((64 << 10, "64K"), (2 << 20, "2M")):
        columns += [
            Column(metric, f"{op} {label}", {"op": op, "batch": 1, "page_bytes": size}) for op in ("put", "get")
        ]
    return tuple(columns)


def _vcpus(op: str) -> tuple[Column, ...]:
    """One vCPU against two: what each sees, and what both get through."""
    return (
        Column("guest_run", f"{op}, 1 vCPU", {"op": op, "vcpus": 1}),
        Column("guest_run", f"{op}, each of 2", {"op": op, "vcpus": 2}),
        Column("guest_together", f"{op}, 1 alone", {"op": op, "vcpus": 1}, compare=False),
        Column("guest_together", f"{op}, 2 together", {"op": op, "vcpus": 2}, compare=False),
    )


FURTHER: Final[Mapping[str, tuple[Layout, ...]]] = {
    "channel": (
        Layout(
            "channel",
            "Inside a guest",
            "What does a vCPU wait for each operation, by channel? Under tcg the CPU is emulated, and nothing here is "
            "about exits.",
            _operations("guest_request"),
            baseline="guest-inline-pio",
            rows=("accelerator",),
        ),
        Layout(
            "channel",
            "Two vCPUs at once",
            "Do they wait for each other? Each: a request as its vCPU sees it. Together: the turn's time over the "
            "requests of all. Under tcg the CPU is emulated.",
            (*_vcpus("get"), *_vcpus("put")),
            baseline="guest-inline-pio",
            rows=("accelerator",),
        ),
        Layout(
            "channel",
            "Copies",
            "How many bytes of a page are copied before it is compressed, by whom, and how is that known?",
            (Column("bytes_copied", "bytes of a put of 4 KiB"),),
            rows=("channel", "step", "how"),
        ),
        Layout(
            "channel",
            "Without a guest",
            "What does each operation cost on this processor, with no VM in the way?",
            _operations("tmem_request"),
            baseline="engine",
        ),
    ),
    "guest": (
        Layout(
            "guest",
            "Latencies",
            "How long does each operation of a workload take, phase by phase, by the guest's own clock?",
            (Column("latency", "median", compare=False), Column("latency", "p99", statistic="p99")),
            rows=("phase", "op"),
        ),
        Layout(
            "guest",
            "Phases",
            "How long does each phase take, and how much of the guest was swapped meanwhile?",
            (
                Column("run_time", "time", compare=False),
                Column("swapped_out", "swapped out", compare=False),
                Column("swapped_in", "swapped in", compare=False),
            ),
            rows=("phase",),
        ),
    ),
    "store": (
        Layout(
            "store",
            "Compound pages",
            "How much denser is a unit of 64 KiB or 2 MiB kept than single pages, and what do 4 KiB out of it cost?",
            (
                Column("compression_ratio", "compression"),
                Column("held_ratio", "held"),
                Column("put_page", "put, each 4 KiB"),
                Column("get_unit", "get the unit", compare=False),
                Column("get_page", "get 4 KiB of it"),
                Column("get_range", "get 64 B of it"),
            ),
            baseline="unit-4K",
            rows=("contents",),
        ),
    ),
    "density": (
        Layout(
            "density",
            "Channels",
            "How does each channel hold up as the guests that share a host become many?",
            (
                Column("channel_throughput", "pages"),
                Column("channel_latency", "request"),
                Column("channel_latency", "same, p99", statistic="p99"),
                Column("channel_page_cpu", "CPU per page"),
                Column("channel_agent_cpu", "the agent's part"),
                Column("channel_fairness", "fairness", compare=False),
                Column("channel_slowest_share", "least served", compare=False),
                Column("channel_vm_memory", "memory per VM", compare=False),
            ),
            baseline="fleet-vhost-user-tmem",
            rows=("vms",),
        ),
    ),
    "exit": (
        Layout(
            "exit",
            "Put and get in one exit",
            "What does an exchange save against a put and a get, each with an exit of its own?",
            (
                Column("round_trip", "exchange", {"work": "exchange"}),
                Column("round_trip", "put, then get", {"work": "put+get"}),
            ),
            baseline="bare",
            row="kind",
        ),
    ),
}
"""By bench, in the order of the page."""


def tables(results: Results) -> list[Layout]:
    """All tables that have a row, the headline's first."""
    further = [table for table in FURTHER.get(results.bench, ()) if headline(results, table)]
    known = LAYOUTS.get(results.bench)
    fits = known is not None and any(results.find(c.metric, **c.where) for c in known.columns)
    return further if further and not fits else [layout_for(results), *further]
