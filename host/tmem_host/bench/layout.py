# SPDX-License-Identifier: Apache-2.0
"""How a bench's figures are laid out for people: the rows and columns of its headline table, in one place.

Both the terminal table and the report read this; a new bench adds its `Layout` here and its plots in `report.plots`.
A bench without a layout is shown with one column per metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results, Scalar
from tmem_host.bench.units import number


@dataclass(frozen=True)
class Column:
    """One column of a headline table: a statistic of one metric."""

    metric: str
    label: str
    where: Mapping[str, Scalar] = field(default_factory=dict)
    statistic: Literal["median", "p99"] = "median"
    compare: bool = True
    """Whether dividing by the baseline means something."""


@dataclass(frozen=True)
class Layout:
    """The headline table of a bench."""

    bench: str
    title: str
    question: str
    columns: tuple[Column, ...]
    baseline: str | None = None
    """Row that the others are divided by."""
    rows: tuple[str, ...] = ()
    """Dimensions besides the arm that make a row of their own, e.g. depth."""
    row: Literal["arm", "kind"] = "arm"
    """What names a row. By kind: arms `KIND+WORK` share the row of their kind, with a column for each work."""

    def name(self, record: Record) -> str:
        """The row that a record belongs to; empty for none."""
        kind = str(record.dimensions.get("kind", ""))
        if self.row == "kind" and record.arm.partition("+")[0] == kind:
            return kind
        return "" if record.arm == "harness" else record.arm


@dataclass(frozen=True)
class Cell:
    """One figure of the headline table."""

    unit: str
    value: stats.Interval
    ratio: stats.Interval | None
    better: Literal["lower", "higher"] | None
    rounds: int

    @property
    def verdict(self) -> Literal["better", "worse", "same", ""]:
        """How it stands against the baseline; 'same' when the interval of the ratio includes 1; '' after one round."""
        if self.ratio is None or self.better is None or self.rounds < 2:
            return ""
        if self.ratio.low <= 1 <= self.ratio.high:
            return "same"
        return "better" if (self.ratio.high < 1) == (self.better == "lower") else "worse"


@dataclass(frozen=True)
class Row:
    """One row: an arm or kind (and further dimensions) with a cell per column; None where there is no number."""

    arm: str
    """What names the row: see `Layout.row`."""
    dimensions: dict[str, Scalar]
    cells: list[Cell | None]


LAYOUTS: dict[str, Layout] = {
    layout.bench: layout
    for layout in (
        Layout(
            "exit",
            "Exit",
            "What does leaving a guest cost, by kind of exit, and next to the work that it asks for?",
            (
                Column("round_trip", "round trip", {"work": "nothing"}, compare=False),
                Column("round_trip", "same, p99", {"work": "nothing"}, statistic="p99"),
                Column("cpu", "CPU", {"work": "nothing"}, compare=False),
                Column("round_trip", "+ put", {"work": "put"}),
                Column("round_trip", "+ get", {"work": "get"}),
                Column("round_trip", "+ disk write", {"work": "disk-write"}),
                Column("round_trip", "+ disk read", {"work": "disk-read"}),
            ),
            baseline="bare",
            row="kind",
        ),
        Layout(
            "density",
            "Density",
            "A thousand VMs on a few CPUs: who gets pages, how fast, and at what cost?",
            (
                Column("throughput", "pages"),
                Column("page_cpu", "CPU per page"),
                Column("latency", "request"),
                Column("latency", "same, p99", statistic="p99"),
                Column("interval", "between pages, p99", statistic="p99"),
                Column("fairness", "fairness", compare=False),
                Column("slowest_share", "least served", compare=False),
                Column("vm_memory", "memory per VM", compare=False),
                Column("creation", "all made in", compare=False),
            ),
            baseline="sync-disk",
            rows=("cpus", "vms"),
        ),
        Layout(
            "swap",
            "Swap",
            "A guest with more work than memory: what does each place for its pages cost?",
            (
                Column("run_time", "run time", {"phase": "all"}),
                Column("fault_latency", "random fault", {"phase": "random"}),
                Column("fault_latency", "same, p99", {"phase": "random"}, statistic="p99"),
                Column("page_out", "per page out"),
                Column("page_in", "per page in, random", {"phase": "random"}),
                Column("compression_ratio", "compression", compare=False),
                Column("held", "held at most", compare=False),
                Column("host_cpu", "host CPU", {"process": "all"}),
            ),
            baseline="disk-none",
        ),
        Layout(
            "store",
            "Store",
            "What does keeping a page cost over compressing it?",
            (
                Column("put", "put"),
                Column("put", "put over a page", {"state": "overwrite"}),
                Column("get", "get"),
                Column("flush", "flush"),
            ),
            baseline="bare-lz4",
            rows=("contents",),
        ),
        Layout(
            "api",
            "API",
            "Many VMs, and many clients that look once a second: how long do they wait?",
            (
                Column("list_vms", "list of VMs", compare=False),
                Column("list_vms", "same, p99", statistic="p99"),
                Column("scrape", "metrics", compare=False),
                Column("scrape", "same, p99", statistic="p99"),
                Column("agent_cpu", "CPUs of the agent", compare=False),
                Column("requests", "lists", compare=False),
            ),
        ),
        Layout(
            "guest",
            "Workloads in a guest",
            "What does a guest's work feel of its swap? Latencies are its own word; what else is here, the host's.",
            (
                Column("run_time", "run time", {"phase": "all"}, compare=False),
                Column("latency", "fault", {"op": "fault", "main": True}, compare=False),
                Column("latency", "same, p99", {"op": "fault", "main": True}, statistic="p99"),
                Column("latency", "GET", {"op": "get"}, compare=False),
                Column("job_time", "job, mean", compare=False),
                Column("bad", "came back wrong", compare=False),
                Column("host_puts", "put", compare=False),
                Column("host_gets", "get", compare=False),
                Column("host_held", "held at most", compare=False),
            ),
        ),
        Layout(
            "channel",
            "Channel",
            "What does a page cost through vhost-user-blk, by queue depth?",
            (
                Column("latency", "read", {"op": "read", "client": "qemu-img"}),
                Column("latency", "write", {"op": "write", "client": "qemu-img"}),
                Column("throughput", "reads", {"op": "read", "client": "qemu-img"}),
                Column("throughput", "writes that compress", {"op": "write", "client": "libblkio-event"}),
                Column("request_latency", "read, p99", {"op": "read", "client": "libblkio-event"}, statistic="p99"),
                Column("server_cpu", "server CPU, read", {"op": "read", "client": "qemu-img"}),
            ),
            baseline="qsd-tmpfs",
            rows=("depth",),
        ),
    )
}


def layout_for(results: Results) -> Layout:
    """The layout of the results' bench; made from the metrics when none is written down or none of it fits."""
    known = LAYOUTS.get(results.bench)
    if known is not None and any(results.find(c.metric, **c.where) for c in known.columns):
        return replace(known, rows=tuple(d for d in known.rows if d != "cpus" or _differs(results, d)))
    metrics = dict.fromkeys(r.metric for r in results.records if r.arm != "harness")
    columns = tuple(Column(m, m.replace("_", " ")) for m in metrics)
    title = known.title if known else results.bench.capitalize()
    return Layout(results.bench, title, known.question if known else "", columns, rows=_row_dimensions(results))


def _differs(results: Results, dimension: str) -> bool:
    return len({r.dimensions[dimension] for r in results.records if dimension in r.dimensions}) > 1


def _row_dimensions(results: Results) -> tuple[str, ...]:
    """Dimensions that differ among the records of one arm and metric."""
    seen: dict[tuple[str, str], dict[str, set[Scalar]]] = {}
    for record in results.records:
        values = seen.setdefault((record.arm, record.metric), {})
        for name, value in record.dimensions.items():
            values.setdefault(name, set()).add(value)
    names = [n for values in seen.values() for n, found in values.items() if n != "arm" and len(found) > 1]
    return tuple(dict.fromkeys(names))


def headline(results: Results, layout: Layout | None = None) -> list[Row]:
    """The rows of the headline table, arms in the order they first appear, further dimensions ascending."""
    layout = layout or layout_for(results)
    keys: dict[tuple[Scalar, ...], None] = {}
    cells: dict[tuple[int, tuple[Scalar, ...]], Record] = {}
    for record in results.records:
        name = layout.name(record)
        columns = [i for i, c in enumerate(layout.columns) if c.metric == record.metric and _matches(record, c.where)]
        if not name or not columns:
            continue
        key = (name, *(record.dimensions.get(d, "") for d in layout.rows))
        keys[key] = None
        for column in columns:
            cells.setdefault((column, key), record)
    order = {name: i for i, name in enumerate(dict.fromkeys(str(k[0]) for k in keys))}
    rows = []
    for key in sorted(keys, key=lambda k: (order[str(k[0])], [(isinstance(v, str), v) for v in k[1:]])):
        found = [cells.get((i, key)) for i in range(len(layout.columns))]
        bases = [cells.get((i, (layout.baseline or "", *key[1:]))) for i in range(len(layout.columns))]
        row = [
            _cell(column, record, base if key[0] != layout.baseline else None, results.seed) if record else None
            for column, record, base in zip(layout.columns, found, bases, strict=True)
        ]
        labels = {d: v for d, v in zip(layout.rows, key[1:], strict=True) if v != ""}
        rows.append(Row(str(key[0]), labels, row))
    return rows


def _matches(record: Record, where: Mapping[str, Scalar]) -> bool:
    return all(record.dimensions.get(k) == v for k, v in where.items())


def _cell(column: Column, record: Record, base: Record | None, seed: int) -> Cell:
    q = 0.5 if column.statistic == "median" else 0.99
    value = stats.bootstrap_quantile(record.samples, q, record.round_sizes, seed=seed)
    against = None
    if column.compare and column.statistic == "median" and base is not None and stats.median(base.samples) > 0:
        against = stats.ratio(record.samples, base.samples, record.round_sizes, base.round_sizes, seed=seed)
    return Cell(record.unit, value, against, record.better, len(record.round_sizes) or len(record.samples))


def power(results: Results) -> str:
    """What the number of rounds allows to be said; empty when there are enough of them, or none at all."""
    rounds = results.rounds
    if not rounds:
        return ""
    smallest = stats.smallest_p(rounds, rounds)
    if smallest <= 0.05:
        return ""
    return (
        f"{rounds} {'round is' if rounds == 1 else 'rounds are'} too few to call any difference significant: the "
        f"smallest p that a permutation test over rounds can reach is {number(smallest)}. Intervals span the rounds."
    )
