# SPDX-License-Identifier: Apache-2.0
"""What the agent counts, in the text format of Prometheus (exposition format 0.0.4).

Names are ``tmem_NOUN_WHAT_UNIT``; labels are names of VMs, numbers of pools, and words of this project: nothing that a
guest wrote becomes a label.  The series of many VMs are written here, as the library takes 14 µs for a sample and a
scrape of 200 VMs has tens of thousands; what concerns the process and the API is the library's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from tmem_host import __version__

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

#: Exponents of a histogram's upper bounds in ns, of the core's 40 powers of two: 256 ns to 1.1 s.
_BOUNDS: Final = (8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22, 24, 27, 30)
_LE: Final = tuple(f'le="{2.0**exponent / 1e9:.9g}"' for exponent in _BOUNDS)

_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class Measured:
    """Everything at about one moment, as the core tells it."""

    store: Mapping[str, Any]
    recovery: Mapping[str, Any]
    vms: list[dict[str, Any]]
    pools: list[dict[str, Any]]
    #: By VM and kind.
    channels: list[tuple[str, str, dict[str, Any]]]
    #: Reports of guests by VM.
    guests: Mapping[str, Any]
    #: Runs by state, machines by state.
    runs: Mapping[str, int]
    machines: Mapping[str, int]


@dataclass(frozen=True)
class Metric:
    """One metric: its name, kind and help."""

    name: str
    kind: Kind
    about: str


class Page:
    """Lines of the text format, by metric."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def metric(self, metric: Metric, samples: Iterable[tuple[str, float]]) -> None:
        """A gauge or counter: label text as of :func:`labels`, and the value."""
        self._head(metric)
        name = metric.name
        self._lines += [f"{name}{{{label}}} {value}" if label else f"{name} {value}" for label, value in samples]

    def histograms(self, metric: Metric, samples: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """The core's histograms (``count`` by power of two, ``sum_ns``); those that are empty are left out."""
        self._head(metric)
        name, lines = metric.name, self._lines
        for label, found in samples:
            counts = found["count"]
            total = sum(counts)
            if not total:
                continue
            below, at = 0, 0
            for exponent, le in zip(_BOUNDS, _LE, strict=True):
                below += sum(counts[at:exponent])
                at = exponent
                lines.append(f"{name}_bucket{{{label},{le}}} {below}")
            lines.append(f'{name}_bucket{{{label},le="+Inf"}} {total}')
            lines.append(f"{name}_sum{{{label}}} {found['sum_ns'] / 1e9:.9g}")
            lines.append(f"{name}_count{{{label}}} {total}")

    def _head(self, metric: Metric) -> None:
        self._lines.append(f"# HELP {metric.name} {metric.about}")
        self._lines.append(f"# TYPE {metric.name} {metric.kind}")

    def text(self) -> bytes:
        return ("\n".join(self._lines) + "\n").encode("ascii", "replace")


def labels(**named: str) -> str:
    """Labels as the text format has them."""
    escaped = (
        (name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in named.items()
    )
    return ",".join(f'{name}="{value}"' for name, value in escaped)


class Requests:
    """What the API itself counts: requests by route, never by what a client wrote into a path."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._count = Counter(
            "tmem_http_requests_total",
            "Requests of the API by route and status.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tmem_http_request_seconds",
            "Time that requests of the API took, up to the first byte of the answer.",
            ("method", "route"),
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
            registry=self._registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._count.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        # _created series are a habit of another format.
        lines = generate_latest(self._registry).splitlines(keepends=True)
        return b"".join(line for line in lines if b"_created" not in line)


def render(measured: Measured) -> bytes:
    """The page of what was measured."""
    page = Page()
    _store(page, measured)
    _vms(page, measured.vms)
    _pools(page, measured.pools)
    _channels(page, measured.channels)
    _guests(page, measured.guests)
    _agent(page, measured)
    return page.text()


_STORE: Final = {
    "limit_bytes": "Host memory that all VMs together may hold.",
    "held_bytes": "Host memory held: arena, index and tables.",
    "arena_bytes": "Host memory behind the arena's blocks.",
    "index_bytes": "Host memory of all indices.",
    "metadata_bytes": "Host memory of the arena's tables.",
    "compressed_bytes": "Compressed data of all pages.",
    "reserved_bytes": "Host memory promised to VMs.",
    "freeable_bytes": "Host memory of ephemeral pages, which can be taken back at once.",
    "available_bytes": "What the arena's file system could still give.",
    "pages": "Pages stored.",
}


def _store(page: Page, measured: Measured) -> None:
    for name, about in _STORE.items():
        page.metric(Metric(f"tmem_store_{name}", "gauge", about), [("", measured.store[name])])
    found = measured.recovery
    for name, about in {
        "pages": "Pages that the agent found again when it started.",
        "lost_pages": "Pages that were lost when the agent started.",
    }.items():
        page.metric(Metric(f"tmem_recovery_{name}", "gauge", about), [("", found[name])])
    about = "Time that finding them took."
    page.metric(Metric("tmem_recovery_seconds", "gauge", about), [("", found["seconds"])])


#: Of VMs and pools: metric, help, and the counters of the core by the value of the label.
_COUNTERS: Final = (
    ("puts_total", "Puts, whatever their answer.", "", {"": "puts"}),
    ("gets_total", "Gets by result.", "result", {"hit": "hits", "miss": "misses", "lost": "lost"}),
    ("flushes_total", "Flushes of pages and objects.", "", {"": "flushes"}),
    (
        "puts_refused_total",
        "Puts that were refused, by reason.",
        "reason",
        {"cap": "refused_cap", "room": "refused_room", "frozen": "refused_frozen"},
    ),
    ("puts_replaced_total", "Puts that replaced a page.", "", {"": "replaced"}),
    ("puts_failed_replaces_total", "Puts that failed and removed the page before.", "", {"": "failed_replaces"}),
    ("pages_flushed_total", "Pages removed by flushes and by gets that take the page along.", "", {"": "flushed"}),
    ("pages_evicted_total", "Ephemeral pages evicted for room.", "", {"": "evicted"}),
    ("pages_moved_total", "Pages moved by compaction.", "", {"": "moved"}),
)


def _counters(page: Page, noun: str, found: list[tuple[str, dict[str, int]]]) -> None:
    for name, about, label, values in _COUNTERS:
        samples = (
            (f'{labelled},{label}="{value}"' if label else labelled, counters[key])
            for labelled, counters in found
            for value, key in values.items()
        )
        page.metric(Metric(f"tmem_{noun}_{name}", "counter", about), samples)


def _vms(page: Page, vms: list[dict[str, Any]]) -> None:
    named = [(labels(vm=vm["name"]), vm) for vm in vms]
    for key, name, about in (
        ("pages", "pages", "Pages in private pools of the VM."),
        ("held_bytes", "held_bytes", "Host memory held for the VM."),
        ("compressed_bytes", "compressed_bytes", "Compressed data of its pages."),
        ("freeable_bytes", "freeable_bytes", "Host memory of its ephemeral pages."),
        ("reservation", "reservation_bytes", "Host memory promised to it, pools of its guest included."),
        ("weight", "weight", "Its share in ephemeral memory against the sum of all weights."),
    ):
        page.metric(Metric(f"tmem_vm_{name}", "gauge", about), ((label, vm[key]) for label, vm in named))
    capped = ((label, vm["cap"]) for label, vm in named if vm["cap"] is not None)
    page.metric(Metric("tmem_vm_cap_bytes", "gauge", "Host memory that it may hold; absent without a cap."), capped)
    about = "1 while its puts are refused."
    page.metric(Metric("tmem_vm_frozen", "gauge", about), ((label, int(vm["frozen"])) for label, vm in named))
    _counters(page, "vm", [(label, vm["counters"]) for label, vm in named])


def _pools(page: Page, pools: list[dict[str, Any]]) -> None:
    named = [(labels(vm=pool["vm"], pool=str(pool["id"])), pool) for pool in pools]
    for key, name, about in (
        ("pages", "pages", "Pages in the pool."),
        ("held_bytes", "held_bytes", "Host memory of its slots."),
        ("compressed_bytes", "compressed_bytes", "Compressed data of its pages."),
        ("index_bytes", "index_bytes", "Host memory of its index."),
        ("same_filled", "same_filled_pages", "Pages kept as one word."),
        ("raw", "raw_pages", "Pages kept as they are."),
    ):
        page.metric(Metric(f"tmem_pool_{name}", "gauge", about), ((label, pool[key]) for label, pool in named))
    about = "1 if the arena could not be read whole: a miss may be a lost page."
    page.metric(Metric("tmem_pool_damaged", "gauge", about), ((label, int(pool["damaged"])) for label, pool in named))
    _counters(page, "pool", [(label, pool["counters"]) for label, pool in named])
    page.histograms(
        Metric(
            "tmem_pool_operation_seconds",
            "histogram",
            "Time of one operation in eight, by operation, once there is one.",
        ),
        ((f'{label},op="{op}"', found) for label, pool in named for op, found in pool["latency"].items()),
    )


def _channels(page: Page, channels: list[tuple[str, str, dict[str, Any]]]) -> None:
    named = [(labels(vm=vm, channel=kind), stats) for vm, kind, stats in channels if stats]
    connected = ((label, int(stats["state"] in ("connected", "in-step"))) for label, stats in named)
    page.metric(Metric("tmem_channel_connected", "gauge", "1 while a monitor is connected."), connected)
    broken = ((label, int(stats["state"] == "broken")) for label, stats in named)
    page.metric(Metric("tmem_channel_broken", "gauge", "1 once a ring of it made no sense, or a thread died."), broken)
    for key, name, label_name, about in (
        ("requests", "requests_total", "op", "Requests carried out, with any status."),
        ("bytes", "request_bytes_total", "op", "Bytes asked for, once there are some."),
        ("refused", "refused_total", "reason", "What the store did not take or give, and requests that were refused."),
        ("malformed", "malformed_total", "reason", "What was no request, by reason, once there is one."),
    ):
        samples = (
            (f'{label},{label_name}="{word}"', count)
            for label, stats in named
            for word, count in stats.get(key, {}).items()
            # Most operations carry no bytes at all.
            if count or key != "bytes"
        )
        page.metric(Metric(f"tmem_channel_{name}", "counter", about), samples)
    for key, name, about in (
        ("connections", "connections_total", "Monitors that connected."),
        ("kicks", "kicks_total", "Times the guest's kick woke a worker."),
        ("interrupts", "interrupts_total", "Interrupts sent to the guest."),
        ("late_kicks", "late_kicks_total", "Requests found without a kick, though one had been asked for."),
        (
            "late_interrupts",
            "late_interrupts_total",
            "Interrupts sent late, to a guest that waited for what was done.",
        ),
        ("wakeups", "wakeups_total", "Times a worker woke from sleep."),
        ("spin_hits", "spin_hits_total", "Spins that ended with a request."),
        ("spin_misses", "spin_misses_total", "Spins that ended without one."),
        ("direct_pages", "direct_pages_total", "Pages handed over in place."),
        ("bounced_pages", "bounced_pages_total", "Pages that were copied on their way."),
        ("received", "received_bytes_total", "Bytes that came over a port."),
        ("sent", "sent_bytes_total", "Bytes that went over a port."),
    ):
        samples = ((label, stats[key]) for label, stats in named if key in stats)
        page.metric(Metric(f"tmem_channel_{name}", "counter", about), samples)
    cpu = ((label, stats["cpu_ns"] / 1e9) for label, stats in named if "cpu_ns" in stats)
    page.metric(Metric("tmem_channel_cpu_seconds_total", "counter", "CPU time of its workers that run now."), cpu)
    page.histograms(
        Metric("tmem_channel_request_seconds", "histogram", "Time that requests took to serve, once there is one."),
        ((f'{label},op="{op}"', found) for label, stats in named for op, found in stats.get("latency", {}).items()),
    )


_GUEST: Final = {
    "mem_total": ("memory_total_bytes", "Memory of the guest, as it says itself."),
    "mem_available": ("memory_available_bytes", "Memory that the guest has left, as it says itself."),
    "swap_total": ("swap_total_bytes", "Swap of the guest, as it says itself."),
    "swap_free": ("swap_free_bytes", "Swap that the guest has left, as it says itself."),
    "psi_some_avg10": ("memory_pressure_some_ratio", "Share of 10 s in which some task waited for memory."),
    "psi_full_avg10": ("memory_pressure_full_ratio", "Share of 10 s in which all tasks waited for memory."),
}


def _guests(page: Page, guests: Mapping[str, Any]) -> None:
    for key, (name, about) in _GUEST.items():
        scale = 100.0 if name.endswith("_ratio") else 1
        found = ((labels(vm=vm), getattr(report, key)) for vm, report in guests.items())
        samples = ((label, value / scale) for label, value in found if value is not None)
        page.metric(Metric(f"tmem_guest_{name}", "gauge", about), samples)
    for key, about in {"pswpin": "Pages that it swapped in.", "pswpout": "Pages that it swapped out."}.items():
        samples = ((labels(vm=vm), getattr(report, key)) for vm, report in guests.items())
        known = ((label, value) for label, value in samples if value is not None)
        page.metric(Metric(f"tmem_guest_{key}_pages_total", "counter", f"{about} As the guest says itself."), known)


def _agent(page: Page, measured: Measured) -> None:
    version = [(labels(version=__version__), 1)]
    page.metric(Metric("tmem_build_info", "gauge", "1, with the version of the agent."), version)
    runs = [(labels(state=state), count) for state, count in sorted(measured.runs.items())]
    page.metric(Metric("tmem_runs", "gauge", "Runs of benches that wait or are under way."), runs)
    machines = [(labels(state=state), count) for state, count in sorted(measured.machines.items())]
    page.metric(Metric("tmem_machines", "gauge", "Guests that the agent runs, by state."), machines)
