# SPDX-License-Identifier: Apache-2.0
"""``tmem top``: the VMs as they are now, once a second."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmem_host.cli.options import Json, State, client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from tmem_host.client import AgentClient
    from tmem_host.models import GuestReport, StoreInfo, VmInfo

#: VMs whose latencies are asked for: each pool is a request.
_DETAILED = 40


@dataclass(frozen=True)
class Look:
    """The agent at one moment (of the monotonic clock)."""

    at: float
    store: StoreInfo
    vms: list[VmInfo]
    #: Of each VM: counts by bucket of puts and gets, all pools together.
    latency: dict[str, dict[str, list[int]]]
    guests: dict[str, GuestReport]


@dataclass(frozen=True)
class Row:
    """One VM between two looks.  Rates in 1/s, times in ns; None: nothing happened, or nobody knows."""

    vm: VmInfo
    puts: float
    gets: float
    misses: float
    refused: float
    put_ns: int | None
    get_ns: int | None
    #: Percent of the last 10 s in which some task of the guest waited for memory.
    pressure: float | None


def look(agent: AgentClient) -> Look:
    """Asks the agent."""
    from tmem_host.errors import NotFound

    vms = agent.list_vms()
    latency: dict[str, dict[str, list[int]]] = {}
    guests = {}
    for vm in vms[:_DETAILED]:
        sums: dict[str, list[int]] = {}
        for pool in vm.pools:
            try:
                detail = agent.get_pool(pool.id)
            except NotFound:  # gone since
                continue
            for op, found in detail.latency.items():
                counts = sums.setdefault(op, [0] * len(found["count"]))
                sums[op] = [a + b for a, b in zip(counts, found["count"], strict=True)]
        latency[vm.name] = sums
        if any(channel.kind == "serial" for channel in vm.channels):
            # It may have said nothing yet.
            with contextlib.suppress(NotFound):
                guests[vm.name] = agent.guest(vm.name)
    return Look(time.monotonic(), agent.store(), vms, latency, guests)


def rows(before: Look, now: Look) -> list[Row]:
    """What happened in between, the busiest first.  A VM that was not there before has no rates yet."""
    seconds = max(now.at - before.at, 1e-6)
    old = {vm.name: vm for vm in before.vms}
    found = []
    for vm in now.vms:
        then = old.get(vm.name, vm).counters

        def rate(*names: str, vm: VmInfo = vm, then: dict[str, int] = then) -> float:
            return max(0.0, sum(vm.counters.get(name, 0) - then.get(name, 0) for name in names) / seconds)

        guest = now.guests.get(vm.name)
        found.append(
            Row(
                vm=vm,
                puts=rate("puts"),
                gets=rate("gets"),
                misses=rate("misses"),
                refused=rate("refused_cap", "refused_room", "refused_frozen"),
                put_ns=_quantile(before, now, vm.name, "put"),
                get_ns=_quantile(before, now, vm.name, "get"),
                pressure=None if guest is None else guest.psi_some_avg10,
            )
        )
    return sorted(found, key=lambda row: (-(row.puts + row.gets), -row.vm.held_bytes, row.vm.name))


def _quantile(before: Look, now: Look, name: str, op: str, q: float = 0.99) -> int | None:
    """The upper bound of the bucket of the core's histogram in which the quantile lies."""
    counts = now.latency.get(name, {}).get(op, [])
    then = before.latency.get(name, {}).get(op, [0] * len(counts))
    between = [max(0, b - a) for a, b in zip(then, counts, strict=True)] if len(then) == len(counts) else counts
    total, below = sum(between), 0
    for exponent, count in enumerate(between):
        below += count
        if total and below >= q * total:
            return 2 << exponent
    return None


def top(
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.2, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print once.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Watch the VMs: pages, ratio, rates, latency, memory pressure in the guest. Ctrl-C ends it.

    With --json: one object for each interval, a line each.
    """
    import json
    import sys

    agent = client(state)
    before = look(agent)
    if once or as_json or not sys.stdout.isatty():
        while True:
            time.sleep(interval)
            now = look(agent)
            if as_json:
                print(json.dumps(as_data(now, rows(before, now))), flush=True)
            else:
                from rich.console import Console

                Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(
                    screen(now, rows(before, now))
                )
            if once:
                return
            before = now
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as live:
        live.update(screen(before, rows(before, before), live.console.width), refresh=True)
        while True:
            time.sleep(interval)
            now = look(agent)
            live.update(screen(now, rows(before, now), live.console.width), refresh=True)
            before = now


def as_data(now: Look, found: Sequence[Row]) -> dict[str, Any]:
    """For programs."""
    return {
        "store": {name: getattr(now.store, name) for name in ("limit_bytes", "held_bytes", "reserved_bytes", "pages")},
        "vms": [
            {
                "name": row.vm.name,
                "pages": row.vm.pages,
                "held_bytes": row.vm.held_bytes,
                "cap": row.vm.cap,
                "puts_per_second": round(row.puts, 1),
                "gets_per_second": round(row.gets, 1),
                "misses_per_second": round(row.misses, 1),
                "refused_per_second": round(row.refused, 1),
                "put_p99_ns": row.put_ns,
                "get_p99_ns": row.get_ns,
                "pressure_percent": row.pressure,
            }
            for row in found
        ],
    }


@dataclass(frozen=True)
class _Column:
    title: str
    number: bool = True
    #: Of the terminal, from which on it is shown.
    width: int = 0


_COLUMNS = (
    _Column("VM", number=False),
    _Column("STATE", number=False, width=100),
    _Column("PAGES"),
    _Column("HELD"),
    _Column("OF CAP"),
    _Column("RATIO", width=90),
    _Column("PUT/s"),
    _Column("GET/s"),
    _Column("MISS/s", width=120),
    _Column("REFUSED/s", width=110),
    _Column("PUT 99 %"),
    _Column("GET 99 %"),
    _Column("PRESSURE", width=90),
)


def screen(now: Look, found: Sequence[Row], width: int = 200) -> RenderableType:
    """One screen of so many columns of text: the store in a line, then the VMs."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from tmem_host.cli.output import ratio
    from tmem_host.config import format_size

    store = now.store
    head = Text.assemble(
        ("tmem", "bold"),
        f"  {len(now.vms)} VMs  {store.pages} pages  held {format_size(store.held_bytes)} of "
        f"{format_size(store.limit_bytes)}, promised {format_size(store.reserved_bytes)}, ratio "
        f"{ratio(store.pages, store.held_bytes)}",
    )
    bar = ProgressBar(total=max(1, store.limit_bytes), completed=min(store.held_bytes, store.limit_bytes), width=60)
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    shown = [width >= column.width for column in _COLUMNS]
    for column, wanted in zip(_COLUMNS, shown, strict=True):
        if wanted:
            table.add_column(column.title, justify="right" if column.number else "left", no_wrap=True)
    for row in found:
        vm = row.vm
        full = vm.cap is not None and vm.held_bytes > 0.95 * vm.cap
        cells = (
            Text(vm.name, style="bold"),
            _state(vm),
            f"{vm.pages}",
            format_size(vm.held_bytes),
            Text("-" if vm.cap is None else f"{vm.held_bytes / vm.cap:.0%}", style="red" if full else ""),
            ratio(vm.pages, vm.held_bytes),
            _rate(row.puts),
            _rate(row.gets),
            _rate(row.misses),
            Text(_rate(row.refused), style="red" if row.refused else ""),
            _time(row.put_ns),
            _time(row.get_ns),
            "-" if row.pressure is None else f"{row.pressure:.0f} %",
        )
        table.add_row(*(cell for cell, wanted in zip(cells, shown, strict=True) if wanted))
    rest = [] if found else [Text("no VM yet: tmem vm add NAME --size 2G", style="dim")]
    return Group(head, bar, Text(), table, *rest)


def _state(vm: VmInfo) -> Any:
    from rich.text import Text

    if vm.frozen:
        return Text("frozen", style="yellow")
    states = {channel.state for channel in vm.channels}
    if "broken" in states:
        return Text("broken", style="red")
    if states & {"connected", "in-step"}:
        return Text("connected", style="green")
    return Text(vm.channel, style="dim")


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _time(ns: int | None) -> str:
    if ns is None:
        return "-"
    return f"{ns / 1000:.3g} µs" if ns < 1_000_000 else f"{ns / 1e6:.3g} ms"
