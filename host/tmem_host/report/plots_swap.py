# SPDX-License-Identifier: Apache-2.0
"""The plots of the swap bench."""

from __future__ import annotations

from tmem_host.bench.results import Record, Results
from tmem_host.report.draw import Plot, bar_plot, colours, strip_plot, tail_plot
from tmem_host.report.registry import plot

_PHASES = (
    ("write", "p0", "write everything"),
    ("sequential", "p1", "verify in order"),
    ("random", "p2", "verify at random"),
)


def _channels(results: Results) -> list[tuple[str, str, str]]:
    """A legend: what hue each channel has. Arms come in the order of their channels."""
    found: dict[str, str] = {}
    for arm, colour in colours(results).items():
        labels = next(r for r in results.records if r.arm == arm).dimensions
        backend = str(labels.get("backend", ""))
        name = str(labels.get("channel", "")) if backend in ("tmem", "ivshmem") else backend
        if name:
            found.setdefault(name, colour.split(" ", maxsplit=1)[0])
    return [(colour, "", name) for name, colour in found.items()]


def _one_of_each(records: list[Record]) -> list[Record]:
    """Lines are few: of arms that differ in codec, doorbell or the like the first."""
    found: dict[tuple[str, ...], Record] = {}
    for record in records:
        # Results that do not say what an arm is are shown whole.
        kinds = ("source", "channel", "backend", "poll")
        found.setdefault(tuple(str(record.dimensions.get(kind, record.arm)) for kind in kinds), record)
    return list(found.values())


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
        "Each row is a distribution on one logarithmic axis; long mark: median, short mark: 99th percentile. Only "
        "major faults are counted: accesses that waited for a page from swap.",
        results.find("fault_latency", phase="random"),
    )


@plot("swap")
def swap_fault_tail(results: Results) -> Plot | None:
    """The tail of the same samples."""
    return tail_plot(
        results,
        "fault-tail",
        "Slow faults",
        "Share of random faults that took longer than the time on the axis. Lower and further left is better; "
        "dashed: polling, dotted: frontswap. One line for each channel: its first codec, its first doorbell.",
        _one_of_each(results.find("fault_latency", phase="random")),
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
        "Write phase beyond what the same writes cost in memory, per page that went out. Dots: rounds; "
        "whisker: 95 % interval.",
        _each_arm(results, "page_out"),
        _channels(results),
    )


@plot("swap")
def swap_page_in(results: Results) -> Plot | None:
    """Cost of getting a page back, random phase."""
    return bar_plot(
        results,
        "page-in",
        "Time per page swapped in, random access",
        "Random phase beyond the same accesses in memory, per page that came in. Dots: rounds; whisker: 95 % interval.",
        _each_arm(results, "page_in", phase="random"),
        _channels(results),
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
def swap_held(results: Results) -> Plot | None:
    """Bytes that the pages occupied, wherever that is."""
    records = [r for arm in results.arms() for r in results.find("held", arm=arm)[:1]]
    groups = [(f"{r.arm} · {r.dimensions.get('where', '')}", [r]) for r in records]
    return bar_plot(
        results,
        "held",
        "What the swapped pages occupied",
        "The most that was held while the hog ran, looked at twice a second: by the store with index and metadata, by "
        "zram in the guest's own memory, or allocated in a file on disk or in shared memory. Dots: rounds; whisker: "
        "95 % interval.",
        groups,
        _channels(results),
    )
