# SPDX-License-Identifier: Apache-2.0
"""Which plots each bench gets. A new bench adds its functions here and nowhere else.

    @plot("density")
    def cost_over_vms(results: Results) -> Plot | None:
        ...

A function returns None when the records it needs are not there. Bench without functions: a bar plot per metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results
from tmem_host.bench.units import human, human_range
from tmem_host.report import svg


@dataclass(frozen=True)
class Plot:
    """A drawing in two widths with what a reader needs around it."""

    key: str
    """Unique within the bench: becomes the id on the page."""
    title: str
    caption: str
    wide: str
    narrow: str
    legend: Sequence[tuple[str, str, str]] = ()
    """(colour class, dash, label)"""


PlotFunction = Callable[[Results], Plot | None]
_plots: dict[str, list[PlotFunction]] = {}


def plot(bench: str) -> Callable[[PlotFunction], PlotFunction]:
    """Adds a plot to the reports of `bench`, in the order written."""

    def register(function: PlotFunction) -> PlotFunction:
        _plots.setdefault(bench, []).append(function)
        return function

    return register


def plots_for(results: Results) -> list[Plot]:
    """All plots that the records allow."""
    made = [p for function in _plots.get(results.bench, []) if (p := function(results)) is not None]
    return made or [p for metric in _metrics(results) if (p := _bars_of(results, metric)) is not None]


def _metrics(results: Results) -> list[str]:
    return list(dict.fromkeys(r.metric for r in results.records if r.arm != "harness"))


_FAMILIES = (("tmem", ("s0", "s1", "s2", "s3")), ("zram", ("s6",)), ("null", ("s8",)), ("disk", ("s4", "s5")))
_REST = ("s7", "s9", "s3", "s2", "s1", "s0", "s5", "s4", "s6", "s8")


def colours(results: Results) -> dict[str, str]:
    """A colour class per arm: what belongs together looks alike, and an arm looks the same in every plot."""
    found: dict[str, str] = {}
    used: dict[str, int] = {}
    for arm in results.arms():
        base = arm.removesuffix("-poll")
        if base in found:
            found[arm] = found[base]
            continue
        family, classes = next(((f, c) for f, c in _FAMILIES if arm.startswith(f)), ("", _REST))
        index = used.get(family, 0)
        used[family] = index + 1
        found[arm] = classes[index % len(classes)]
    return found


def _label(record: Record, drop: Sequence[str] = ()) -> str:
    """The arm, with the dimensions that are not part of every arm's definition when asked to keep them."""
    return " ".join([record.arm, *(str(v) for k, v in record.dimensions.items() if k in drop)])


def bar_plot(
    results: Results,
    key: str,
    title: str,
    caption: str,
    groups: Sequence[tuple[str, Sequence[Record]]],
    legend: Sequence[tuple[str, str, str]] = (),
    parts: Sequence[str] = (),
) -> Plot | None:
    """Bars of medians with intervals. `groups`: (label, records laid end to end); `parts`: colour class of each part."""
    palette = colours(results)
    rows, unit = [], ""
    for label, records in groups:
        if not records:
            continue
        unit = records[0].unit
        segments = [
            svg.Segment(
                stats.median(r.samples),
                parts[i] if parts else palette.get(r.arm, "s7"),
                f"{label}{' ' + str(r.dimensions.get('phase', '')) if len(records) > 1 else ''}: {human(stats.median(r.samples), unit)}",
            )
            for i, r in enumerate(records)
        ]
        total = sum(s.value for s in segments)
        low = high = None
        dots: list[float] = []
        if len(records) == 1:
            spread = stats.bootstrap_quantile(records[0].samples, 0.5, records[0].round_sizes, seed=results.seed)
            low, high = spread.low, spread.high
            dots = records[0].samples if len(records[0].samples) <= 12 else []
        rows.append(svg.Bar(label, segments, human(total, unit), low, high, dots if len(dots) > 1 else []))
    if not rows:
        return None
    told = "; ".join(f"{r.label} {r.note}" for r in rows)
    return Plot(
        key,
        title,
        caption,
        svg.bars(rows, unit, svg.WIDE, title, told),
        svg.bars(rows, unit, svg.NARROW, title, told),
        legend,
    )


def _bars_of(results: Results, metric: str) -> Plot | None:
    """The plot of last resort: every record of a metric as a bar."""
    records = [r for r in results.find(metric) if r.arm != "harness"]
    names = [n for n in dict.fromkeys(k for r in records for k in r.dimensions) if n != "arm"]
    varying = [n for n in names if len({str(r.dimensions.get(n)) for r in records if r.arm == records[0].arm}) > 1]
    groups = [(_label(r, varying), [r]) for r in records]
    return bar_plot(results, metric, metric.replace("_", " ").capitalize(), "Median; whisker: 95 % interval.", groups)


def strip_plot(results: Results, key: str, title: str, caption: str, records: Sequence[Record]) -> Plot | None:
    """Distributions on a common log axis."""
    if not records:
        return None
    palette = colours(results)
    rows = [svg.Strip(r.arm, r.samples, palette.get(r.arm, "s7")) for r in records]
    told = "; ".join(f"{r.label} median {human(stats.median(r.samples), records[0].unit)}" for r in rows)
    unit = records[0].unit
    return Plot(
        key,
        title,
        caption,
        svg.strips(rows, unit, svg.WIDE, title, told),
        svg.strips(rows, unit, svg.NARROW, title, told),
    )


def tail_plot(results: Results, key: str, title: str, caption: str, records: Sequence[Record]) -> Plot | None:
    """Share of samples slower than x, both axes logarithmic: the tail is where distributions differ."""
    if not records:
        return None
    palette = colours(results)
    series, legend = [], []
    for r in records:
        values, share = stats.ecdf(r.samples)
        points = [(float(v), 1 - float(s)) for v, s in zip(values, share, strict=True) if 1 - s >= 0.5 / len(r.samples)]
        points = [(max(v, 1e-9), s) for v, s in points if s >= 1e-5]
        if len(points) < 2:
            continue
        dash = "5 3" if r.arm.endswith("-poll") else ""
        series.append(
            svg.Line(r.arm, [v for v, _ in points], [s for _, s in points], palette[r.arm], dash=dash, markers=False)
        )
        legend.append((palette[r.arm], dash, r.arm))
    if not series:
        return None
    least = min(min(s.ys) for s in series)
    ticks = [
        (t, n)
        for t, n in ((1.0, "all"), (0.1, "10 %"), (0.01, "1 %"), (1e-3, "0.1 %"), (1e-4, "0.01 %"))
        if t >= least * 0.5
    ]
    unit = records[0].unit
    told = "; ".join(f"{r.arm} p99 {human(stats.p99(r.samples), unit)}" for r in records)

    def drawn(width: int) -> str:
        return svg.lines(series, unit, "", width, title, told, y_ticks=ticks, x_label="slower than")

    return Plot(key, title, caption, drawn(svg.WIDE), drawn(svg.NARROW), legend)


def line_plot(
    results: Results, key: str, title: str, caption: str, records: Sequence[Record], over: str, *, y_log: bool = True
) -> Plot | None:
    """Medians with interval bands over a numeric dimension, one line per arm."""
    by_arm: dict[str, list[tuple[float, Record]]] = {}
    for r in records:
        at = r.dimensions.get(over)
        if isinstance(at, (int, float)) and not isinstance(at, bool):
            by_arm.setdefault(r.arm, []).append((float(at), r))
    if not by_arm or max(len(v) for v in by_arm.values()) < 2:
        return None
    palette = colours(results)
    series, legend = [], []
    for arm, points in by_arm.items():
        points.sort(key=lambda p: p[0])
        spread = [stats.bootstrap_quantile(r.samples, 0.5, r.round_sizes, seed=results.seed) for _, r in points]
        dash = "5 3" if arm.endswith("-poll") else ""
        series.append(
            svg.Line(
                arm,
                [x for x, _ in points],
                [s.value for s in spread],
                palette[arm],
                [s.low for s in spread],
                [s.high for s in spread],
                dash,
            )
        )
        legend.append((palette[arm], dash, arm))
    unit = records[0].unit
    at_all = sorted({x for points in by_arm.values() for x, _ in points})
    told = "; ".join(
        f"{s.label}: {human(s.ys[0], unit)} at {s.xs[0]:g}, {human(s.ys[-1], unit)} at {s.xs[-1]:g}" for s in series
    )

    def drawn(width: int) -> str:
        return svg.lines(
            series, "", unit, width, title, told, y_log=y_log, x_values=at_all if at_all[0] > 0 else (), x_label=over
        )

    return Plot(key, title, caption, drawn(svg.WIDE), drawn(svg.NARROW), legend)


def _interval_text(record: Record, seed: int) -> str:
    spread = stats.bootstrap_quantile(record.samples, 0.5, record.round_sizes, seed=seed)
    return f"{human(spread.value, record.unit)} ({human_range(spread.low, spread.high, record.unit, spread.value)})"


# ---- swap

_PHASES = (
    ("write", "p0", "write everything"),
    ("sequential", "p1", "verify in order"),
    ("random", "p2", "verify at random"),
)


@plot("swap")
def swap_run_time(results: Results) -> Plot | None:
    """Time of the whole work, cut into phases."""
    groups = []
    for arm in results.arms():
        found = [results.find("run_time", arm=arm, phase=phase) for phase, _, _ in _PHASES]
        if all(found):
            groups.append((arm, [f[0] for f in found]))
    return bar_plot(
        results,
        "run-time",
        "Run time by arm",
        "Time the hog took per phase: median over the rounds. Shorter is better.",
        groups,
        [(colour, "", label) for _, colour, label in _PHASES],
        [colour for _, colour, _ in _PHASES],
    )


@plot("swap")
def swap_fault_latency(results: Results) -> Plot | None:
    """Distribution of random accesses that had to wait for a page."""
    return strip_plot(
        results,
        "fault-latency",
        "Latency of a random fault",
        "Each row is a distribution on one logarithmic axis; long mark: median, short mark: 99th percentile. Only accesses "
        "that missed memory are counted (see the bench's notes for how they are told apart).",
        [r for r in results.find("fault_latency") if r.arm in results.arms()],
    )


@plot("swap")
def swap_fault_tail(results: Results) -> Plot | None:
    """The tail of the same samples."""
    return tail_plot(
        results,
        "fault-tail",
        "Slow faults",
        "Share of random faults that took longer than the time on the axis. Lower and further left is better; dashed: polling.",
        results.find("fault_latency"),
    )


def _each_arm(results: Results, metric: str, **where: str) -> list[tuple[str, list[Record]]]:
    return [(arm, results.find(metric, arm=arm, **where)[:1]) for arm in results.arms()]


@plot("swap")
def swap_page_out(results: Results) -> Plot | None:
    """Cost of giving a page up."""
    return bar_plot(
        results,
        "page-out",
        "Time per page swapped out",
        "Write phase beyond what the same writes cost in memory, per page that went out. Whisker: 95 % interval; dots: rounds.",
        _each_arm(results, "page_out"),
    )


@plot("swap")
def swap_page_in(results: Results) -> Plot | None:
    """Cost of getting a page back, random phase."""
    return bar_plot(
        results,
        "page-in",
        "Time per page swapped in, random access",
        "Random phase beyond the same accesses in memory, per page that came in. Whisker: 95 % interval; dots: rounds.",
        _each_arm(results, "page_in", phase="random"),
    )


@plot("swap")
def swap_host_cpu(results: Results) -> Plot | None:
    """Host CPU time, agent and QEMU apart."""
    groups = []
    for arm in results.arms():
        parts = [results.find("host_cpu", arm=arm, process=p) for p in ("qemu", "agent")]
        if all(parts):
            groups.append((arm, [p[0] for p in parts]))
    return bar_plot(
        results,
        "host-cpu",
        "Host CPU time per run",
        "CPU seconds of QEMU (guest included) and of the host agent while the hog ran.",
        groups,
        [("p0", "", "QEMU with the guest"), ("p1", "", "host agent")],
        ["p0", "p1"],
    )


@plot("swap")
def swap_host_held(results: Results) -> Plot | None:
    """Memory that the host gave for the pages."""
    return bar_plot(
        results,
        "host-held",
        "Host memory held for the swapped pages",
        "At the end of the hog, before it frees anything: what the store holds, index and metadata included. For the disk arms: "
        "bytes of the file that are allocated; zram's memory is the guest's own.",
        _each_arm(results, "host_held"),
    )


# ---- store


def _store_plot(op: str, title: str) -> None:
    @plot("store")
    def one(results: Results) -> Plot | None:
        records = [r for r in results.find(op) if r.arm != "harness"]
        contents = list(dict.fromkeys(str(r.dimensions.get("contents", "")) for r in records))
        groups = []
        for content in contents:
            for r in records:
                if str(r.dimensions.get("contents", "")) == content:
                    state = r.dimensions.get("state", "")
                    label = f"{r.arm} ({state})" if state else r.arm
                    groups.append((f"{content} · {label}" if len(contents) > 1 else label, [r]))
        return bar_plot(results, op, title, "Median per page; whisker: 95 % interval. Shorter is better.", groups)


_store_plot("put", "Put: time per page")
_store_plot("get", "Get: time per page")


@plot("store")
def store_memory(results: Results) -> Plot | None:
    """What is held over what is compressed."""
    return bar_plot(
        results,
        "held-over-compressed",
        "Memory held over compressed bytes",
        "Store: bytes held, less 24 a page, over compressed bytes (goal 1.06). zram: memory used over compressed.",
        [
            (
                " · ".join(
                    [r.arm, *(str(r.dimensions[d]) for d in ("stored_mib", "contents", "state") if d in r.dimensions)]
                ),
                [r],
            )
            for r in results.find("held_over_compressed")
        ],
    )


@plot("store")
def store_resident(results: Results) -> Plot | None:
    """The cost of an operation by pages resident."""
    return bar_plot(
        results,
        "by-resident",
        "Cost of an operation by pages resident",
        "Random puts and gets of small pages; median per page, whisker: 95 % interval.",
        [
            (f"{op} · {r.dimensions.get('resident')} pages", [r])
            for op in ("put", "get")
            for r in results.find(f"{op}_by_resident")
        ],
    )


@plot("store")
def store_threads(results: Results) -> Plot | None:
    """Pages per second of one and of two threads."""
    return bar_plot(
        results,
        "threads",
        "Pages per second of one and of two threads",
        "Each thread has a VM of its own. The bare codec shares nothing: it shows what the CPUs allow.",
        [
            (f"{r.dimensions.get('op')} · {r.arm} · {r.dimensions.get('threads')}", [r])
            for op in ("put", "get")
            for r in results.find("throughput", op=op, part="threads")
        ],
    )


# ---- channel


def _channel_plot(metric: str, op: str, client: str, contents: str, title: str, caption: str) -> None:
    @plot("channel")
    def one(results: Results) -> Plot | None:
        records = results.find(metric, op=op, client=client, contents=contents)
        return line_plot(results, f"{metric}-{op}-{client}", title, caption, records, "depth")


_BAND = "band: 95 % interval. Dashed: polling."
_channel_plot(
    "latency",
    "read",
    "qemu-img",
    "compressible",
    "Read latency by queue depth",
    f"qemu-img bench, pages that compress; mean of the requests in flight; {_BAND}",
)
_channel_plot(
    "latency",
    "write",
    "qemu-img",
    "same-filled",
    "Write latency by queue depth",
    f"qemu-img bench, same-filled pages; mean of the requests in flight; {_BAND}",
)
_channel_plot(
    "throughput",
    "read",
    "qemu-img",
    "compressible",
    "Reads per second by queue depth",
    f"qemu-img bench, pages that compress. Higher is better; {_BAND}",
)
_channel_plot(
    "throughput",
    "write",
    "libblkio-event",
    "compressible",
    "Writes per second by queue depth",
    f"libblkio, pages that compress. Higher is better; {_BAND}",
)
_channel_plot(
    "server_cpu",
    "read",
    "qemu-img",
    "compressible",
    "CPU time of the server per read",
    f"qemu-img bench, pages that compress. Lower is better; {_BAND}",
)


@plot("channel")
def channel_requests(results: Results) -> Plot | None:
    """Latency of single reads at depth 1."""
    return strip_plot(
        results,
        "request-latency",
        "Latency of single reads at depth 1",
        "libblkio waiting for events; pages that compress.",
        results.find("request_latency", op="read", depth=1, client="libblkio-event"),
    )
