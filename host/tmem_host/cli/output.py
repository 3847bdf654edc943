# SPDX-License-Identifier: Apache-2.0
"""How answers look: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tmem_host.config import format_size

if TYPE_CHECKING:
    from tmem_host.models import ChannelInfo, GuestReport, HostInfo, PoolDetail, PoolInfo, RunInfo, StoreInfo, VmInfo


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> None:
    """A table without frame.  Columns in ``numbers`` are set to the right."""
    from rich.console import Console
    from rich.table import Table

    right = set(numbers)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, title in enumerate(columns):
        table.add_column(title, justify="right" if at in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Into a pipe a table is as wide as it needs to be: cut cells would be lost data.
    width = None if sys.stdout.isatty() else 1000
    Console(highlight=False, markup=False, width=width).print(table)


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """``name  value`` lines, values aligned."""
    listed = list(fields)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        print(f"{name:<{width}}  {value}")


def ratio(pages: int, held: int, page_size: int = 4096) -> str:
    """How many bytes of guest pages a held byte of host memory stands for, as ``2.31``."""
    return f"{pages * page_size / held:.2f}" if held else "-"


def print_vms(vms: Sequence[VmInfo]) -> None:
    print_table(
        ("NAME", "SIZE", "CHANNEL", "CODEC", "PAGES", "HELD", "RATIO", "RESERVED", "CAP", "WEIGHT", ""),
        [
            (
                vm.name,
                format_size(vm.size_bytes) if vm.size_bytes else "-",
                ", ".join(f"{channel.kind} {channel.state}" for channel in vm.channels),
                vm.codec,
                f"{vm.pages}",
                format_size(vm.held_bytes),
                ratio(vm.pages, vm.held_bytes),
                format_size(vm.reservation),
                "-" if vm.cap is None else format_size(vm.cap),
                f"{vm.weight}",
                "frozen" if vm.frozen else "",
            )
            for vm in vms
        ],
        numbers=(1, 4, 5, 6, 7, 8, 9),
    )


def print_vm(vm: VmInfo) -> None:
    print_fields(
        [
            ("name", vm.name),
            ("device", format_size(vm.size_bytes) if vm.size_bytes else "none"),
            *((f"socket {channel.kind}", f"{channel.socket}, {channel.state}") for channel in vm.channels),
            *_machine(vm),
            ("queues", f"{vm.queues}, poll {vm.poll_us} µs"),
            ("codec", vm.codec),
            ("pages", f"{vm.pages} ({format_size(vm.pages * 4096)})"),
            ("held", f"{format_size(vm.held_bytes)} of host memory, ratio {ratio(vm.pages, vm.held_bytes)}"),
            ("reservation", format_size(vm.reservation)),
            ("cap", "none" if vm.cap is None else format_size(vm.cap)),
            ("weight", f"{vm.weight}"),
            ("frozen", "yes" if vm.frozen else "no"),
            *((name.replace("_", " "), f"{count}") for name, count in sorted(vm.counters.items()) if count),
        ]
    )


def _machine(vm: VmInfo) -> list[tuple[str, str]]:
    """The guest that the agent runs."""
    if vm.machine is None:
        return []
    spec, found = vm.machine.spec, vm.machine
    after = "" if found.boot_seconds is None else f", up after {found.boot_seconds:.1f} s"
    what = f"kernel {spec.kernel}, {spec.memory_mib} MiB, {spec.vcpus} vCPU{'s' * (spec.vcpus > 1)}, {spec.source}"
    lines = [("guest", f"{found.state}{after}: {what}")]
    if found.accelerator:
        lines.append(("under", found.accelerator))
    if found.reason:
        lines.append(("failed", found.reason))
    return lines


def print_channel(found: ChannelInfo) -> None:
    """A channel: what was asked for and refused, then the rest of its counters that are not 0."""
    counters = found.counters
    lines = [("channel", f"{found.kind}, {found.state}"), ("socket", found.socket)]
    lines.append(("queues", f"{found.queues}, poll {found.poll_us} µs"))
    for group in ("requests", "refused", "malformed"):
        lines += [(f"{group} {name}", f"{count}") for name, count in counters.get(group, {}).items() if count]
    for op, histogram in counters.get("latency", {}).items():
        if sum(histogram["count"]):
            lines.append((f"{op} time", _latency(histogram)))
    plain = ((name, value) for name, value in counters.items() if isinstance(value, int) and value)
    lines += [(name.replace("_", " "), f"{value}") for name, value in plain]
    print_fields(lines)


def print_guest(report: GuestReport) -> None:
    """What a guest said; what it did not say is left out."""
    said = report.model_dump(exclude={"counters"})
    sizes = ("mem_total", "mem_available", "swap_total", "swap_free")
    lines = [
        (name.replace("_", " "), format_size(value) if name in sizes else f"{value:g}")
        for name, value in said.items()
        if value is not None
    ]
    print_fields([*lines, *((name.replace("_", " "), f"{count}") for name, count in sorted(report.counters.items()))])


def print_host(host: HostInfo) -> None:
    from tmem_host.doctor import Finding, print_findings

    print_fields(
        [
            ("host", f"{host.name}, Linux {host.kernel}"),
            ("CPUs", f"{host.cpus}, load {' '.join(f'{load:.1f}' for load in host.load)}"),
            ("memory", format_size(host.memory_bytes)),
        ]
    )
    print()
    print_findings([Finding.model_validate(finding.model_dump()) for finding in host.findings])


def print_pools(pools: Sequence[PoolInfo]) -> None:
    print_table(
        ("POOL", "VM", "KIND", "CODEC", "PAGE", "CAPACITY", "PAGES", "HELD", "RATIO", "GETS", "PUTS", ""),
        [
            (
                f"{pool.id}",
                ", ".join(pool.members),
                f"{'persistent' if pool.persistent else 'ephemeral'}{', shared' if pool.shared else ''}",
                pool.codec,
                format_size(pool.page_size),
                "-" if pool.pages_capacity is None else f"{pool.pages_capacity}",
                f"{pool.pages}",
                format_size(pool.held_bytes),
                ratio(pool.pages, pool.held_bytes, pool.page_size),
                f"{pool.counters.get('gets', 0)}",
                f"{pool.counters.get('puts', 0)}",
                "damaged" if pool.damaged else "",
            )
            for pool in pools
        ],
        numbers=(0, 4, 5, 6, 7, 8, 9, 10),
    )


def print_pool(pool: PoolDetail) -> None:
    capacity = "" if pool.pages_capacity is None else f" of {pool.pages_capacity}"
    print_fields(
        [
            ("pool", f"{pool.id}, {'persistent' if pool.persistent else 'ephemeral'}"),
            ("VMs", ", ".join(pool.members)),
            *([("uuid", pool.uuid)] if pool.uuid else []),
            ("codec", f"{pool.codec}{', pages come compressed' if pool.packed else ''}"),
            ("pages", f"{pool.pages}{capacity} of {format_size(pool.page_size)}"),
            ("  as one word", f"{pool.same_filled}"),
            ("  as they are", f"{pool.raw}"),
            ("held", f"{format_size(pool.held_bytes)}, ratio {ratio(pool.pages, pool.held_bytes, pool.page_size)}"),
            ("index", format_size(pool.index_bytes)),
            ("damaged", "yes: a miss may be a lost page" if pool.damaged else "no"),
            *((name.replace("_", " "), f"{count}") for name, count in sorted(pool.counters.items()) if count),
            *((f"{name} time", _latency(found)) for name, found in pool.latency.items() if sum(found["count"])),
        ]
    )


def _latency(found: dict[str, Any]) -> str:
    """Mean and 99th percentile of a histogram, the latter as the bound of its bucket."""
    counts, total = found["count"], sum(found["count"])
    below, bound = 0, 0
    for start, count in zip(found["bucket_ns"], counts, strict=True):
        below += count
        bound = 2 * start
        if below >= 0.99 * total:
            break
    return f"mean {found['sum_ns'] / total / 1000:.1f} µs, 99 % below {bound / 1000:.1f} µs"


def print_how(vm: VmInfo) -> None:
    """What to give to QEMU, and to type in the guest."""
    from tmem_host.vm.qemu import PAGES_PORT

    print()
    kinds = [channel.kind for channel in vm.channels]
    options = []
    if kinds != ["serial"]:
        options += ["-object memory-backend-memfd,id=mem,size=MEMORY,share=on -machine memory-backend=mem"]
    for channel in vm.channels:
        node = f"tmem-{channel.kind}" if len(kinds) > 1 else "tmem"
        if channel.kind == "serial":
            options += [
                "-device virtio-serial-pci",
                f"-chardev socket,id={node},path={channel.socket},server=on,wait=off",
                f"-device virtserialport,chardev={node},name={PAGES_PORT}",
            ]
        else:
            options += [
                f"-chardev socket,id={node},path={channel.socket},reconnect=1",
                f"-device vhost-user-{channel.kind}-pci,chardev={node},num-queues={vm.queues}",
            ]
    print("Give it to QEMU:" if kinds == ["serial"] else "Give it to QEMU, whose guest memory has to be shared:")
    print(" \\\n".join(f"  {option}" for option in options))
    if "tmem" in kinds:
        print("vhost-user-tmem-pci is a device of the patched QEMU (qemu-patches/).")
    print("In the guest:")
    if "blk" in kinds:
        print("  echo 0 > /sys/block/vdX/queue/rotational; mkswap /dev/vdX; swapon --discard /dev/vdX")
    swap = "mkswap /dev/tmem0; swapon /dev/tmem0"
    if "tmem" in kinds:
        print(f"  insmod tmem.ko blkdev_mib=MIB; {swap}")
    if "tmem" in kinds and "serial" in kinds:
        print("or, as the module has one channel:")
    if "serial" in kinds:
        print(f"  insmod tmem.ko channel=serial blkdev_mib=MIB; let tmem_guest lend the port (guest/README.md); {swap}")


def print_runs(runs: Sequence[RunInfo]) -> None:
    print_table(
        ("RUN", "BENCH", "STATE", "CREATED", "TIME", "WHO", ""),
        [
            (
                f"{run.id}",
                f"{run.options.bench}{' quick' if run.options.quick else ''}",
                run.state,
                f"{run.created.astimezone():%Y-%m-%d %H:%M:%S}",
                _run_time(run),
                run.who,
                run.reason or _at(run),
            )
            for run in runs
        ],
        numbers=(0, 4),
    )


def print_run(run: RunInfo) -> None:
    print_fields(
        [
            ("run", f"{run.id}, asked for by {run.who} at {run.created.astimezone():%Y-%m-%d %H:%M:%S}"),
            ("bench", f"{run.options.bench}{', quick' if run.options.quick else ''}, seed {run.options.seed}"),
            *(("set", f"{name}={value}") for name, value in run.options.settings.items()),
            ("state", run.state),
            *([("reason", run.reason)] if run.reason else []),
            *([("at", _at(run))] if _at(run) else []),
            ("time", _run_time(run)),
            ("results", f"tmem run results {run.id}" if run.results else "none"),
            ("report", f"tmem run report {run.id} --out FILE" if run.report else "none"),
        ]
    )


def _at(run: RunInfo) -> str:
    """How far a run is that is under way."""
    if run.state not in ("running", "cancelling"):
        return ""
    at = run.progress
    count = f"{min(at.done + 1, at.steps)}/{at.steps} " if at.steps else ""
    left = "" if at.left_seconds is None else f", about {at.left_seconds:.0f} s left"
    return f"{count}{at.step}{left}"


def _run_time(run: RunInfo) -> str:
    from datetime import UTC, datetime

    if run.started is None:
        return "-"
    seconds = ((run.ended or datetime.now(UTC)) - run.started).total_seconds()
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def print_store(info: StoreInfo) -> None:
    print_fields(
        [
            ("arena", info.arena),
            ("limit", format_size(info.limit_bytes)),
            ("reserved", format_size(info.reserved_bytes)),
            ("freeable", format_size(info.freeable_bytes)),
            ("held", format_size(info.held_bytes)),
            ("  arena", format_size(info.arena_bytes)),
            ("  index", format_size(info.index_bytes)),
            ("  metadata", format_size(info.metadata_bytes)),
            ("pages", f"{info.pages} ({format_size(info.pages * 4096)})"),
            ("compressed", format_size(info.compressed_bytes)),
            ("ratio", ratio(info.pages, info.held_bytes)),
            ("recovery", _recovery(info.recovery)),
        ]
    )


def _recovery(found: dict[str, Any]) -> str:
    if found.get("fresh"):
        return "new arena"
    lost = f", {found['lost_pages']} lost" if found.get("lost_pages") else ""
    return f"{found.get('pages')} pages found again in {found.get('seconds', 0):.3f} s{lost}"
