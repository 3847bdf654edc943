# SPDX-License-Identifier: Apache-2.0
"""The plots of the exit bench that set arms side by side: the ladder, exit and work, distributions.

What is drawn over a number (pages in a batch, a delay, a latency) is in `plots_exit_curves`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results
from tmem_host.bench.units import human
from tmem_host.report import svg
from tmem_host.report.draw import Plot, strip_plot, tail_plot
from tmem_host.report.registry import plot
from tmem_host.report.words import KINDS, PATHS, arm_name, kind_name, work_name

_STORE_WORKS = ("put", "get")
_DISK_WORKS = ("cached-write", "cached-read", "disk-write", "disk-read", "uring-write", "uring-read")
_MEMORY_WORKS = (
    "copy-hot",
    "copy-cold",
    "lz4-decompress",
    "lz4-compress",
    "zstd-decompress",
    "zstd-compress",
    "flush",
    "get",
    "put",
    "put-bounce",
    "put-deferred",
    "put-zstd",
)
_MARKS = (
    ("s7", "dot", "median"),
    ("s7", "thick", "where 90 of 100 requests lie"),
    ("s7", "tick", "1 of 100 is slower"),
)


def trips(results: Results, **where: str) -> list[Record]:
    """Round trips of the bench's own arms, not of the C loop it is checked against."""
    return [r for r in results.find("round_trip", **where) if r.arm not in ("harness", "reference-c")]


def trip(results: Results, kind: str, work: str) -> Record | None:
    """The round trip of one kind with one work."""
    found = trips(results, kind=kind, work=work)
    return found[0] if found else None


def path_colour(record: Record) -> str:
    """The colour class of what a record passes through: of its work where that leaves the exit behind."""
    work = str(record.dimensions.get("work", "nothing"))
    path = "disk" if work in _DISK_WORKS else str(record.dimensions.get("path", "user"))
    return PATHS.get(path, PATHS["user"])[1]


def _rungs(records: Iterable[Record], path: str, labelled: bool) -> list[svg.Rung]:
    group, colour = PATHS[path]
    rungs = [
        svg.Rung(
            work_name(str(r.dimensions["work"])) if labelled else arm_name(r),
            group,
            colour,
            stats.median(r.samples),
            stats.quantile(r.samples, 0.05),
            stats.quantile(r.samples, 0.95),
            stats.p99(r.samples),
        )
        for r in records
    ]
    return sorted(rungs, key=lambda rung: rung.median)


@plot("exit")
def cost_ladder(results: Results) -> Plot | None:
    """From no exit at all to a disk, every kind on one axis."""
    bare = trips(results, work="nothing")
    rungs = [
        rung
        for path in ("none", "kernel", "user", "thread")
        for rung in _rungs((r for r in bare if r.dimensions.get("path") == path and r.arm != "bare"), path, False)
    ]
    for path, works in (("store", _STORE_WORKS), ("disk", _DISK_WORKS)):
        rungs += _rungs((r for w in works if (r := trip(results, "pio", w))), path, True)
    if not rungs:
        return None
    title = "The cost ladder: from no exit to a disk"
    caption = (
        "Time of one round trip on a logarithmic axis. The upper rows do nothing but leave the guest and come back; "
        "the last two groups carry one 4 KiB page by PIO to user space. How far left of the disk a row lies is what "
        "the exit leaves to be won."
    )
    told = "; ".join(f"{r.label} {human(r.median, 'ns')}" for r in rungs)
    wide, narrow = (svg.ladder(rungs, "ns", width, title, told) for width in (svg.WIDE, svg.NARROW))
    return Plot("ladder", title, caption, wide, narrow, _MARKS)


def _stacked(results: Results, key: str, title: str, caption: str, works: Sequence[str]) -> Plot | None:
    """The bare work, and on it what the same work took longer when a guest asked for it by PIO."""
    rows = []
    for work in works:
        alone, through = trip(results, "bare", work), trip(results, "pio", work)
        if alone is None or through is None:
            continue
        bare, whole = stats.median(alone.samples), stats.median(through.samples)
        added = max(0.0, whole - bare)
        share = f"exit {added / whole:.0%}" if whole > bare else "exit lost in noise"
        name = work_name(work)
        rows.append(
            svg.Bar(
                name,
                [
                    svg.Segment(min(bare, whole), "p0", f"{name} alone: {human(bare, 'ns')}"),
                    svg.Segment(added, "p1", f"exit and entry: {human(added, 'ns')}"),
                ],
                f"{human(whole, 'ns')} · {share}",
            )
        )
    if not rows:
        return None
    told = "; ".join(f"{r.label} {r.note}" for r in rows)
    wide, narrow = (svg.bars(rows, "ns", width, title, told) for width in (svg.WIDE, svg.NARROW))
    legend = (("p0", "", "the work alone, in a host thread"), ("p1", "", "added by asking for it with a PIO exit"))
    return Plot(key, title, caption, wide, narrow, legend)


_READ_STACK = "The second part is the difference of the two medians; the percentage is its share of the whole."


@plot("exit")
def exit_and_memory(results: Results) -> Plot | None:
    """Exit + work in memory."""
    return _stacked(
        results,
        "work",
        "Exit and work: one page in memory",
        f"One 4 KiB page per exit. {_READ_STACK} Where the second part is the larger one, the exit is what costs.",
        _MEMORY_WORKS,
    )


@plot("exit")
def exit_and_disk(results: Results) -> Plot | None:
    """Exit + work on a file."""
    return _stacked(
        results,
        "work-disk",
        "Exit and work: one page of a file",
        f"The same with a file instead of the store: through the page cache, past it, and by io_uring. {_READ_STACK}",
        _DISK_WORKS,
    )


@plot("exit")
def ways_to_the_store(results: Results) -> Plot | None:
    """Put and get by every kind that carries them."""
    rungs = []
    for work, colour in (("put", "s7"), ("get", "s0"), ("disk-write", "s4"), ("disk-read", "s5")):
        found = trips(results, work=work)
        if len(found) > 1:
            rungs += [
                svg.Rung(
                    kind_name(str(r.dimensions["kind"])),
                    work_name(work),
                    colour,
                    stats.median(r.samples),
                    stats.quantile(r.samples, 0.05),
                    stats.quantile(r.samples, 0.95),
                    stats.p99(r.samples),
                )
                for r in sorted(found, key=lambda r: list(KINDS).index(str(r.dimensions["kind"]).removesuffix("16")))
            ]
    if not rungs:
        return None
    title = "One page, by every way to the host"
    told = "; ".join(f"{r.group} by {r.label} {human(r.median, 'ns')}" for r in rungs)
    wide, narrow = (svg.ladder(rungs, "ns", width, title, told) for width in (svg.WIDE, svg.NARROW))
    return Plot(
        "ways",
        title,
        "The same work asked for in different ways. Within a group the distance from the first row, the work alone, is "
        "what the way to the host adds: for the store it is much, for the disk little.",
        wide,
        narrow,
        _MARKS,
    )


_CHOSEN = (
    ("shared-poll", "nothing"),
    ("cpuid", "nothing"),
    ("pio", "nothing"),
    ("ioeventfd-poll", "nothing"),
    ("irqfd-sleep", "nothing"),
    ("pio", "get"),
    ("pio", "put"),
    ("irqfd-sleep", "put"),
    ("pio", "disk-write"),
    ("pio", "disk-read"),
)


@plot("exit")
def exit_distributions(results: Results) -> Plot | None:
    """Whole distributions of chosen arms."""
    records = [r for kind, work in _CHOSEN if (r := trip(results, kind, work))]
    return strip_plot(
        results,
        "distribution",
        "How single requests are spread",
        "Each row is the distribution of one arm's requests on one logarithmic axis: the thicker, the more of them. "
        "Long mark: median; short mark: 1 of 100 is slower. Two humps mean two ways that a request can go.",
        records,
        arm_name,
        path_colour,
    )


@plot("exit")
def exit_tails(results: Results) -> Plot | None:
    """The slow requests of arms that put a page, and of the disk."""
    wanted = (("pio", "put"), ("ioeventfd-poll", "put"), ("irqfd-sleep", "put"), ("pio", "disk-write"))
    records = [r for kind, work in wanted if (r := trip(results, kind, work))]
    looks = dict(zip((r.arm for r in records), ("s2", "s0", "s6", "s4"), strict=False))
    return tail_plot(
        results,
        "tail",
        "Slow requests",
        "Share of requests that took longer than the time on the axis. A line that bends to the right low down has a "
        "long tail: few requests, but those wait.",
        records,
        arm_name,
        lambda r: looks[r.arm],
    )
