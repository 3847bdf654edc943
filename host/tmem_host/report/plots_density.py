# SPDX-License-Identifier: Apache-2.0
"""The plots of the density bench: everything against the number of VMs, and what quotas made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results
from tmem_host.bench.units import human, number
from tmem_host.report import svg
from tmem_host.report.canvas import trimmed
from tmem_host.report.draw import Plot, bar_plot, line_plot, spread, strip_plot
from tmem_host.report.registry import plot
from tmem_host.report.words import CLASSES

_ARMS = (
    "Solid: the vCPU leaves the guest and does it itself; dashed: another thread does it, the vCPU sleeps meanwhile."
)


def _curve(
    metric: str,
    title: str,
    caption: str,
    *,
    y_log: bool = True,
    statistic: Literal["median", "p99"] = "median",
) -> None:
    @plot("density")
    def one(results: Results) -> Plot | None:
        records = [r for r in results.find(metric) if r.arm not in ("quota", "harness")]
        several = len({r.dimensions.get("cpus") for r in records}) > 1
        return line_plot(
            results,
            metric,
            title,
            f"{caption} {_ARMS}",
            records,
            "vms",
            y_log=y_log,
            statistic=statistic,
            name=_with_cpus if several else _arm,
            x_label="virtual machines" if several else "virtual machines; below: for each CPU",
            under=None if several else _per_cpu(records),
        )


def _arm(record: Record) -> str:
    return record.arm


def _with_cpus(record: Record) -> str:
    cpus = record.dimensions.get("cpus")
    return f"{record.arm}, {cpus} CPU{'' if cpus == 1 else 's'}"


def _per_cpu(records: list[Record]) -> Callable[[float], str]:
    """Overcommit of a number of VMs: VMs for each CPU that the run was confined to."""
    found = {r.dimensions.get("vms"): r.dimensions.get("overcommit") for r in records}

    def said(vms: float) -> str:
        value = found.get(int(vms))
        return f"{trimmed(number(float(value)))}×" if value is not None else ""

    return said


_curve("throughput", "Pages per second, all VMs together", "One page is one put or one get. Higher is better.")
_curve(
    "page_cpu",
    "CPU time for one page",
    "CPU time of the whole process, guests' code included, per page. Lower is better; waiting for a disk costs none.",
)
_curve(
    "latency",
    "The slowest of 100 requests",
    "99th percentile of the time from the host seeing a request to its answer. Lower is better.",
    statistic="p99",
)
_curve(
    "interval",
    "The longest 1 of 100 waits between two pages of a VM",
    "99th percentile of the time from one request of a VM to its next: its computing, its page, and its turn on a CPU. "
    "With more VMs than CPUs the turn is most of it. Lower is better.",
    statistic="p99",
)
_curve(
    "fairness",
    "Fairness",
    "Jain's index over the pages that each VM was served: 1 is an equal share for all, 1/n is one VM served alone.",
    y_log=False,
)
_curve(
    "slowest_share",
    "The VM that was served least",
    "Pages of the VM that was served least, over the mean. 0 would be a VM that starved.",
    y_log=False,
)


@plot("density")
def latency_distributions(results: Results) -> Plot | None:
    """Distribution of requests with the most VMs, and with one."""
    found = [r for r in results.find("latency") if isinstance(r.dimensions.get("vms"), int) and r.arm != "quota"]
    if not found:
        return None
    counts = sorted({int(r.dimensions["vms"]) for r in found})
    records = [
        r
        for arm in results.arms()
        for n in dict.fromkeys((counts[0], counts[-1]))
        for r in found
        if (r.arm, r.dimensions["vms"]) == (arm, n)
    ]
    return strip_plot(
        results,
        "latency-distribution",
        "How requests are spread, with few and with many VMs",
        "Each row is the distribution of one arm's requests on one logarithmic axis. Long mark: median; short mark: "
        "1 of 100 is slower.",
        records,
        lambda r: f"{r.arm}, {int(r.dimensions['vms']):,} VM{'s' if r.dimensions['vms'] != 1 else ''}",
    )


_curve(
    "vm_memory",
    "Host memory for one VM",
    "Memory of the host per VM without the pages it stored: guest memory touched, KVM's own, ours. With few VMs "
    "it is small against what the process itself needs, and lost in that. Lower is better.",
)
_curve("creation", "Time until all VMs are ready", "All VMs made, with memory and pool, one after the other.")


@plot("density")
def quota_bars(results: Results) -> Plot | None:
    """Memory held per VM of each class, against its cap or the share that its weight gives it."""
    held = {str(r.dimensions.get("class", "")): r for r in results.find("class_held")}
    middle = {name: stats.median(r.samples) for name, r in held.items()}
    goals = {n: stats.median(r.samples) for r in results.find("class_cap") if (n := str(r.dimensions.get("class", "")))}
    weights = {name: int(name.removeprefix("weight-")) for name in held if name.startswith("weight-")}
    for name, weight in weights.items():
        goals[name] = sum(middle[n] for n in weights) * weight / sum(weights.values())
    rows = []
    for name, record in held.items():
        around, goal = spread(record, results.seed), goals.get(name)
        kind = "share" if name in weights else "cap"
        note = human(middle[name], "bytes") + (f" · {kind} {human(goal, 'bytes')}" if goal is not None else "")
        colour = "p1" if name in weights else "p2" if goal is not None else "p0"
        title = f"{name}: {human(middle[name], 'bytes')} per VM"
        rows.append(
            svg.Bar(
                CLASSES.get(name, name),
                [svg.Segment(middle[name], colour, title)],
                note,
                around.low if len(record.samples) >= 4 else None,
                around.high if len(record.samples) >= 4 else None,
                goal=goal,
            )
        )
    if not rows:
        return None
    title = "Quotas: what each VM held"
    told = "; ".join(f"{r.label} {r.note}" for r in rows)
    wide, narrow = (svg.bars(rows, "bytes", width, title, told) for width in (svg.WIDE, svg.NARROW))
    return Plot(
        "quota",
        title,
        "Store memory per VM of each class: median, whisker its 95 % interval. Long mark: the cap, which must not be "
        "passed, or the share that the weights of the two weighted classes give each of them (as many VMs in both).",
        wide,
        narrow,
        (
            ("p0", "", "no limit of its own"),
            ("p2", "", "capped"),
            ("p1", "", "weighted"),
            ("", "goal", "cap, or share by weight"),
        ),
    )


_FLEET = "By number of guests that share one host agent; inline and engine do without one."


def _channel_curve(
    metric: str,
    title: str,
    caption: str,
    *,
    y_log: bool = True,
    statistic: Literal["median", "p99"] = "median",
) -> None:
    @plot("density")
    def one(results: Results) -> Plot | None:
        return line_plot(
            results,
            metric.replace("_", "-"),
            title,
            f"{caption} {_FLEET}",
            results.find(metric),
            "vms",
            y_log=y_log,
            statistic=statistic,
            name=_channel,
            x_label="guests",
        )


def _channel(record: Record) -> str:
    return record.arm.removeprefix("fleet-")


_channel_curve("channel_throughput", "Channels: pages per second, all guests together", "Higher is better.")
_channel_curve(
    "channel_latency",
    "Channels: the slowest of 100 requests",
    "99th percentile of the time that a guest waits for one page; inline, from one page to its next. Lower is better.",
    statistic="p99",
)
_channel_curve(
    "channel_page_cpu",
    "Channels: CPU time for one page",
    "Both ends together, the guest's side included. Lower is better.",
)
_channel_curve(
    "channel_fairness",
    "Channels: fairness",
    "Jain's index over the pages that each guest was served: 1 is an equal share for all.",
    y_log=False,
)


@plot("density")
def channel_memory(results: Results) -> Plot | None:
    """Agent memory for one VM by channel."""
    return bar_plot(
        results,
        "channel-vm-memory",
        "Channels: agent memory for one VM",
        "Memory that the agent has to itself for each VM that is connected, without the pages it stored.",
        [(_channel(r), [r]) for r in results.find("channel_vm_memory")],
    )
