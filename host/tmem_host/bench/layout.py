# SPDX-License-Identifier: Apache-2.0
"""How a bench's figures are laid out for people: the rows and columns of its headline table, in one place.

Both the terminal table and the report read this; a new bench adds its `Layout` here and its plots in `report.plots`.
A bench without a layout is shown with one column per metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """Arm that the others are divided by."""
    rows: tuple[str, ...] = ()
    """Dimensions besides the arm that make a row of their own, e.g. depth."""


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
    """One row: an arm (and further dimensions) with a cell per column; None where there is no number."""

    arm: str
    dimensions: dict[str, Scalar]
    cells: list[Cell | None]


LAYOUTS: dict[str, Layout] = {
    layout.bench: layout
    for layout in (
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
        return known
    metrics = dict.fromkeys(r.metric for r in results.records if r.arm != "harness")
    columns = tuple(Column(m, m.replace("_", " ")) for m in metrics)
    title = known.title if known else results.bench.capitalize()
    return Layout(results.bench, title, known.question if known else "", columns, rows=_row_dimensions(results))


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
    for record in results.records:
        if record.arm in ("", "harness"):
            continue
        if any(record.metric == c.metric for c in layout.columns):
            keys[(record.arm, *(record.dimensions.get(d, "") for d in layout.rows))] = None
    order = {arm: i for i, arm in enumerate(results.arms())}
    rows = []
    for key in sorted(keys, key=lambda k: (order[str(k[0])], [(isinstance(v, str), v) for v in k[1:]])):
        labels = {d: v for d, v in zip(("arm", *layout.rows), key, strict=True) if v != ""}
        rows.append(Row(str(key[0]), labels, [_cell(results, layout, column, labels) for column in layout.columns]))
    return [row for row in rows if any(row.cells)]


def _cell(results: Results, layout: Layout, column: Column, labels: Mapping[str, Scalar]) -> Cell | None:
    record = _one(results, column, labels)
    if record is None:
        return None
    q = 0.5 if column.statistic == "median" else 0.99
    value = stats.bootstrap_quantile(record.samples, q, record.round_sizes, seed=results.seed)
    against = None
    if (
        column.compare
        and layout.baseline is not None
        and column.statistic == "median"
        and labels["arm"] != layout.baseline
    ):
        base = _one(results, column, {**labels, "arm": layout.baseline})
        if base is not None and stats.median(base.samples) > 0:
            against = stats.ratio(record.samples, base.samples, record.round_sizes, base.round_sizes, seed=results.seed)
    return Cell(record.unit, value, against, record.better, len(record.round_sizes) or len(record.samples))


def _one(results: Results, column: Column, labels: Mapping[str, Scalar]) -> Record | None:
    found = results.find(column.metric, **{**labels, **column.where})
    return found[0] if found else None


def power(results: Results) -> str:
    """What the number of rounds allows to be said; empty when there are enough of them, or none at all."""
    rounds = len(results.arm_order)
    if not rounds:
        return ""
    smallest = stats.smallest_p(rounds, rounds)
    if smallest <= 0.05:
        return ""
    return (
        f"{rounds} {'round is' if rounds == 1 else 'rounds are'} too few to call any difference significant: the "
        f"smallest p that a permutation test over rounds can reach is {number(smallest)}. Intervals span the rounds."
    )
