# SPDX-License-Identifier: Apache-2.0
"""The plots of the channel bench for tmem requests: inside a guest by every channel, and without one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results, Scalar
from tmem_host.bench.units import human, human_range
from tmem_host.config import PAGE_SIZE
from tmem_host.report import svg
from tmem_host.report.draw import Plot, line_plot, spread
from tmem_host.report.registry import plot

_NAMES: Final[Mapping[str, tuple[str, str]]] = {
    "guest-inline-pio": ("inline, PIO doorbell", "s0"),
    "guest-inline-mmio": ("inline, MMIO doorbell", "s0"),
    "guest-inline-bql": ("inline, big lock held", "s4"),
    "guest-inline-ioeventfd": ("QEMU's main loop, ioeventfd", "s5"),
    "guest-vhost-user-tmem": ("vhost-user-tmem, asleep", "s2"),
    "guest-vhost-user-tmem-poll": ("vhost-user-tmem, polling", "s3"),
    "guest-virtio-serial": ("virtio-serial", "s6"),
    "guest-vhost-user-blk": ("vhost-user-blk, asleep", "s9"),
    "guest-vhost-user-blk-poll": ("vhost-user-blk, polling", "s1"),
    "guest-ivshmem": ("ivshmem: a copy, no exit", "s8"),
    "engine": ("no channel", "s8"),
    "vhost-user-tmem-event": ("vhost-user-tmem, asleep", "s2"),
    "vhost-user-tmem-poll": ("vhost-user-tmem, polling", "s3"),
    "stream-socket": ("frames over a socket", "s6"),
}
"""In words, and the colour class: a channel has one colour, inside a guest and without one."""

_MARKS: Final = (
    ("s7", "dot", "median"),
    ("s7", "thick", "where 90 of 100 requests lie"),
    ("s7", "tick", "1 of 100 is slower"),
)
_ONE: Final[Mapping[str, Scalar]] = {"batch": 1, "page_bytes": PAGE_SIZE}


def _name(record: Record) -> str:
    return _NAMES.get(record.arm, (record.arm, ""))[0]


def _of(records: Iterable[Record], made: Plot | None) -> Plot | None:
    """The plot, marked if an emulated guest is in it."""
    emulated = any(r.dimensions.get("accelerator") == "tcg" for r in records)
    return replace(made, emulated=True) if made is not None and emulated else made


def _rung(record: Record, label: str, group: str, colour: str) -> svg.Rung:
    return svg.Rung(
        label,
        group,
        colour,
        stats.median(record.samples),
        stats.quantile(record.samples, 0.05),
        stats.quantile(record.samples, 0.95),
        stats.p99(record.samples),
    )


def _ladder(key: str, title: str, caption: str, rungs: Sequence[svg.Rung]) -> Plot | None:
    if not rungs:
        return None
    told = "; ".join(f"{r.group} {r.label} {human(r.median, 'ns')}" for r in rungs)
    wide, narrow = (svg.ladder(rungs, "ns", width, title, told) for width in (svg.WIDE, svg.NARROW))
    return Plot(key, title, caption, wide, narrow, _MARKS)


_OPS: Final = (
    ("put", "Put of 4 KiB"),
    ("get", "Get of 4 KiB"),
    ("exchange", "Exchange: put one, get another"),
    ("put+get", "Put, then get, a request each"),
    ("read", "Read of 64 bytes"),
)


def _by_operation(results: Results, metric: str) -> tuple[list[svg.Rung], list[Record]]:
    """Rows by channel under each operation, the quickest first."""
    rungs: list[svg.Rung] = []
    records: list[Record] = []
    for op, group in _OPS:
        found = [r for r in results.find(metric, op=op, **_ONE) if r.arm in _NAMES]
        records += found
        rungs += sorted((_rung(r, _name(r), group, _NAMES[r.arm][1]) for r in found), key=lambda rung: rung.median)
    return rungs, records


@plot("channel")
def guest_operations(results: Results) -> Plot | None:
    """What a vCPU waits for each operation, by channel."""
    rungs, records = _by_operation(results, "guest_request")
    made = _ladder(
        "guest-operations",
        "Inside a guest: an operation by channel",
        "From before the request is written to after its answer is seen, on a logarithmic axis; one vCPU, nothing else "
        "going on. Inline: done on the vCPU's thread before the guest goes on.",
        rungs,
    )
    return _of(records, made)


_INLINE: Final = ("guest-inline-pio", "guest-inline-mmio", "guest-inline-bql")


@plot("channel")
def guest_together(results: Results) -> Plot | None:
    """What the big lock does to two vCPUs: requests that get through."""
    rows: list[svg.Bar] = []
    records: list[Record] = []
    for op in ("get", "put"):
        for arm in _INLINE:
            for vcpus, colour in ((1, "p0"), (2, "p1")):
                for record in results.find("guest_together", arm=arm, op=op, vcpus=vcpus):
                    records.append(record)
                    rows.append(
                        _together(record, f"{op}, {_name(record)}: {vcpus} vCPU{'s'[: vcpus - 1]}", colour, results)
                    )
    if not rows:
        return None
    title = "Two vCPUs at an inline device, with and without QEMU's big lock"
    caption = (
        "The time of a turn over the requests of all its vCPUs, median of the rounds; in brackets its 95 % interval. A "
        "second vCPU that works at the same time halves it; where it grows the two wait for each other."
    )
    told = "; ".join(f"{r.label} {r.note}" for r in rows)
    wide, narrow = (svg.bars(rows, "ns", width, title, told) for width in (svg.WIDE, svg.NARROW))
    legend = (("p0", "", "1 vCPU"), ("p1", "", "2 vCPUs, all requests together"))
    return _of(records, Plot("guest-together", title, caption, wide, narrow, legend))


def _together(record: Record, label: str, colour: str, results: Results) -> svg.Bar:
    """Without a whisker: a round on a busy machine can be a hundred times as long, and would flatten the rest."""
    around = spread(record, results.seed)
    note = f"{human(around.value, 'ns')} ({human_range(around.low, around.high, 'ns', around.value)})"
    return svg.Bar(label, [svg.Segment(around.value, colour, f"{label}: {note}")], note)


@plot("channel")
def guest_vcpus(results: Results) -> Plot | None:
    """What each of two vCPUs waits, with and without the big lock."""
    rungs: list[svg.Rung] = []
    records: list[Record] = []
    for op in ("get", "put"):
        for arm in (*_INLINE, "guest-inline-ioeventfd", "guest-vhost-user-tmem", "guest-vhost-user-tmem-poll"):
            for vcpus, label in ((1, "alone"), (2, "each of two")):
                found = results.find("guest_run", arm=arm, op=op, vcpus=vcpus)
                records += found
                group = f"{op.capitalize()}: as a vCPU sees it"
                rungs += [_rung(r, f"{_name(r)}: {label}", group, _NAMES[r.arm][1]) for r in found]
    made = _ladder(
        "guest-vcpus",
        "What one of two vCPUs waits",
        "A request, the mean of 20 in a row, on a logarithmic axis: by a vCPU alone, and by each of two at once.",
        rungs,
    )
    return _of(records, made)


def _batches(metric: str, op: str, key: str, title: str, caption: str) -> None:
    @plot("channel")
    def one(results: Results) -> Plot | None:
        records = results.find(metric, op=op)
        made = line_plot(
            results,
            key,
            title,
            f"{caption} Band: 95 % interval. Dashed: polling.",
            records,
            "batch",
            name=_name,
            x_label="pages in a request",
        )
        return _of(records, made)


for _op in ("put", "get"):
    _batches(
        "guest_page",
        _op,
        f"guest-batch-{_op}",
        f"Inside a guest: time of a page by batch, {_op}",
        "The time of a request over the pages in it, each page a piece of its own.",
    )
for _op in ("put", "get"):
    _batches(
        "tmem_page",
        _op,
        f"tmem-batch-{_op}",
        f"Without a guest: time of a page by batch, {_op}",
        "This machine's own processor, no VM in the way.",
    )


@plot("channel")
def operations(results: Results) -> Plot | None:
    """What each operation costs without a guest."""
    rungs, _ = _by_operation(results, "tmem_request")
    return _ladder(
        "operations",
        "Without a guest: an operation by channel",
        "This machine's own processor, no VM in the way: what remains where a channel leaves the guest at no cost.",
        rungs,
    )
