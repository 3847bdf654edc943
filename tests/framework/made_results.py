# SPDX-License-Identifier: Apache-2.0
"""Made-up results of every bench, in the shape that the real ones have: for tests of the report and of comparing.

The figures are drawn from a seed around plausible medians, with a tail; nothing here was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np

from framework import made_channels
from tmem_host.bench.results import Failure, Record, Results, Scalar

Better = Literal["lower", "higher"] | None

ROUNDS = 5
HOST: dict[str, Scalar | None] = {
    "cpu": "Made-Up Processor 9000 v4 @ 2.40GHz",
    "cpus": 2,
    "cpus_usable": 2,
    "virtualised": True,
    "kvm_flavour": "software (PVM or alike: /dev/kvm works, the CPU shows neither vmx nor svm)",
    "kvm_device": "usable",
    "memory_bytes": 8 << 30,
    "governor": None,
    "kernel": "6.12.0-made-up",
    "qemu": "10.0.2 (Debian)",
    "commit": "0123456789ab",
}


class Maker:
    """Collects the records of one run."""

    def __init__(self, bench: str, *, seed: int = 1, rounds: int = ROUNDS, per_round: int = 40) -> None:
        self.dice = np.random.default_rng([seed, *bench.encode()])
        self.rounds, self.per_round = rounds, per_round
        order = {"exit": 0, "density": 1, "channel": 2, "store": 3, "swap": 4}.get(bench, 5)
        self.results = Results(
            bench=bench,
            started=datetime(2026, 11, 23, 12, tzinfo=UTC) + timedelta(minutes=3 * order),
            seconds=171.5,
            complete=True,
            command=["tmem", "bench", bench, "--quick", "--seed", str(seed)],
            quick=True,
            seed=seed,
        )
        self.results.properties.host = dict(HOST)
        self.results.properties.configuration = {"rounds": rounds, "codec": "lz4"}

    def add(
        self, metric: str, unit: str, samples: Sequence[float], rounds: bool, better: Better, **labels: Any
    ) -> None:
        """A record; `rounds`: whether the samples come in equal rounds or are one for each."""
        sizes = [len(samples) // self.rounds] * self.rounds if rounds else [1] * len(samples)
        self.results.records.append(
            Record(
                bench=self.results.bench,
                metric=metric,
                unit=unit,
                dimensions=labels,
                samples=[float(f"{s:.4g}") for s in samples],
                round_sizes=sizes,
                better=better,
            )
        )

    def latency(self, metric: str, median: float, *, spread: float = 0.06, **labels: Scalar) -> None:
        """Many samples of a time in ns, with rounds that differ a little and a tail of slow ones."""
        count = self.rounds * self.per_round
        drift = np.repeat(1 + 0.01 * self.dice.standard_normal(self.rounds), self.per_round)
        slow = np.where(self.dice.random(count) < 0.02, 1 + self.dice.pareto(1.5, count), 1.0)
        samples = median * drift * np.exp(spread * self.dice.standard_normal(count)) * np.minimum(slow, 40)
        self.add(metric, "ns", samples.tolist(), True, "lower", **labels)

    def each(self, metric: str, unit: str, value: float, better: Better = "lower", **labels: Scalar) -> None:
        """One sample for each round, a little apart."""
        samples = value * (1 + 0.02 * self.dice.standard_normal(self.rounds))
        self.add(metric, unit, samples.tolist(), False, better, **labels)

    def share(self, metric: str, value: float, **labels: Scalar) -> None:
        """One sample for each round, of something that is 1 at best."""
        samples = np.minimum(1.0, value * (1 + 0.005 * self.dice.standard_normal(self.rounds)))
        self.add(metric, "ratio", samples.tolist(), False, "higher", **labels)

    def same(self, metric: str, unit: str, value: float, better: Better = None, **labels: Scalar) -> None:
        """One sample for each round, all alike."""
        self.add(metric, unit, [value] * self.rounds, False, better, **labels)

    def done(self) -> Results:
        """The results, with the order of arms filled in."""
        self.results.arm_order = [self.results.arms() for _ in range(self.rounds)]
        return self.results


KINDS: dict[str, tuple[str, float]] = {
    "bare": ("none", 0.0),
    "loop": ("none", 4.0),
    "shared-poll": ("none", 180.0),
    "cpuid": ("kernel", 700.0),
    "cpuid16": ("kernel", 690.0),
    "kernel-device": ("kernel", 1150.0),
    "kernel-device16": ("kernel", 1160.0),
    "coalesced-mmio": ("kernel", 1500.0),
    "coalesced-pio": ("kernel", 1480.0),
    "ioeventfd-post": ("kernel", 1350.0),
    "virtqueue-submit": ("kernel", 1400.0),
    "pio": ("user", 2100.0),
    "pio16": ("user", 2050.0),
    "mmio": ("user", 2900.0),
    "mmio16": ("user", 2850.0),
    "ioeventfd-sleep": ("thread", 9800.0),
    "ioeventfd-poll": ("thread", 2600.0),
    "irqfd-sleep": ("thread", 21000.0),
    "irqfd-poll": ("thread", 14000.0),
}
"""Kind: path and round trip in ns."""

WORKS: dict[str, float] = {
    "copy-hot": 95.0,
    "copy-cold": 420.0,
    "lz4-compress": 3300.0,
    "lz4-decompress": 1050.0,
    "zstd-compress": 14500.0,
    "zstd-decompress": 5200.0,
    "put": 3900.0,
    "get": 1350.0,
    "flush": 210.0,
    "put-zstd": 15200.0,
    "put-bounce": 4150.0,
    "put-deferred": 900.0,
    "disk-write": 92000.0,
    "disk-read": 118000.0,
    "cached-write": 2600.0,
    "cached-read": 1500.0,
    "uring-write": 95000.0,
    "uring-read": 121000.0,
}
MAIN_WORKS = ("put", "get", "disk-read", "disk-write")


def exit_results(*, seed: int = 1, rounds: int = ROUNDS, slower: float = 1.0) -> Results:
    """`tmem bench exit`. `slower` multiplies the cost of every exit."""
    m = Maker("exit", seed=seed, rounds=rounds)

    def arm(name: str, kind: str, work: str, time: float, **more: Scalar) -> None:
        path, cost = KINDS[kind]
        bits = 0 if kind == "bare" else 16 if kind.endswith("16") else 64
        labels: dict[str, Any] = {"arm": name, "kind": kind, "path": path, "bits": bits, "work": work, **more}
        total = max(cost * slower + time, 0.4)
        m.latency("round_trip", total, **labels)
        m.each("cpu", "ns", total * (1.9 if path == "thread" else 1.0), **labels)

    for kind in KINDS:
        arm(kind, kind, "nothing", 0.0)
    for kind in ("bare", "pio"):
        for work, time in WORKS.items():
            arm(f"{kind}+{work}", kind, work, time)
        for delay in (0, 1, 2, 5, 10, 20, 50, 100):
            arm(f"{kind}+delay-{delay}", kind, "delay", WORKS["put"] + 1000.0 * delay, delay_us=delay)
        for n in (1, 2, 4, 8, 16, 32, 64, 128):
            arm(f"{kind}+put-batch-{n}", kind, "put-batch", WORKS["put"] * n, n=n)
            arm(f"{kind}+get-batch-{n}", kind, "get-batch", WORKS["get"] * n, n=n)
    for kind in ("mmio", "shared-poll", "ioeventfd-sleep", "ioeventfd-poll", "irqfd-sleep", "irqfd-poll"):
        for work in MAIN_WORKS:
            arm(f"{kind}+{work}", kind, work, WORKS[work])
    for latency in (1, 10, 100, 1000, 10000):
        arm(f"irqfd-sleep+device-{latency}", "irqfd-sleep", "device", 1000.0 * latency, latency_us=latency)
    for kind in ("bare", "pio"):
        for work, copied in (("put", 0), ("put-bounce", 4096), ("put-deferred", 4096)):
            m.same("bytes_copied", "bytes", copied, "lower", arm=f"{kind}+{work}", kind=kind, work=work)
        m.each("backlog", "pages", 40.0, arm=f"{kind}+put-deferred", kind=kind, work="put-deferred")
    m.latency("round_trip", 2040.0, arm="reference-c", kind="pio16", path="user", bits=16, work="nothing")
    m.each("over_reference", "ratio", 1.01, arm="pio16", kind="pio16", path="user", bits=16, work="nothing")
    for codec in ("lz4", "zstd"):
        for metric, value in (
            ("torn_pages", 20000),
            ("torn_undecodable", 1),
            ("torn_overruns", 0),
            ("torn_crashes", 0),
        ):
            unit = "crashes" if metric == "torn_crashes" else "pages"
            m.same(metric, unit, float(value), "lower", arm=f"torn-{codec}", codec=codec)
    m.latency("tsc_read", 11.0, arm="harness")
    m.same("tsc_frequency", "Hz", 2.4e9, arm="harness")
    m.same("tsc_drift", "ppm", 1.5, arm="harness")
    m.same("tsc_skew", "ns", 20.0, arm="harness")
    m.same("loop_overhead", "ns", 0.4, arm="harness")
    m.results.failures.append(
        Failure(
            bench="exit",
            dimensions={"arm": "hypercall", "kind": "hypercall"},
            kind="skipped",
            reason="a hypercall does not come back here: /dev/kvm is not the processor's",
        )
    )
    for kind in ("bare", "pio"):
        arm(f"{kind}+exchange", kind, "exchange", WORKS["put"] + WORKS["get"] - 300.0)
        # an exit each
        arm(f"{kind}+put+get", kind, "put+get", WORKS["put"] + WORKS["get"] + KINDS[kind][1] * slower)
    return m.done()


def density_results(*, seed: int = 1, rounds: int = ROUNDS, counts: Sequence[int] = (1, 10, 100, 1000)) -> Results:
    """`tmem bench density`."""
    m = Maker("density", seed=seed, rounds=rounds)
    cpus = 2
    costs = {"sync-store": 6000.0, "async-store": 16000.0, "sync-disk": 110000.0, "async-disk": 60000.0}
    for arm, cost in costs.items():
        channel, _, backend = arm.partition("-")
        for n in counts:
            labels: dict[str, Any] = {
                "arm": arm,
                "vms": n,
                "cpus": cpus,
                "overcommit": n / cpus,
                "channel": channel,
                "backend": backend,
            }
            per_page = cost * (1 + 0.06 * np.log10(n) ** 2)
            busy = min(cpus, n)
            m.each("throughput", "pages/s", busy * 1e9 / per_page, "higher", **labels)
            m.each("work_rate", "loops/s", busy * 5e7 / (1 + per_page / 2e4), "higher", **labels)
            m.each("page_cpu", "ns", per_page * (0.15 if backend == "disk" else 1.0), **labels)
            m.latency("latency", per_page * max(1.0, (n / cpus) ** (0.15 if channel == "sync" else 0.5)), **labels)
            m.latency("interval", 2e4 + per_page * max(1.0, n / cpus), **labels)
            m.share("fairness", 1 - (0.01 if channel == "sync" else 0.04) * np.log10(n), **labels)
            m.share("slowest_share", 1 - 0.08 * np.log10(n), **labels)
            m.same("served", "VMs", n, "higher", **labels)
            m.same("verified", "pages", 5000.0, "higher", **labels)
            m.same("bad_pages", "pages", 0.0, "lower", **labels)
            m.each("creation", "s", 0.0008 * n + 0.002, **labels)
            m.each("vm_memory", "bytes", 180_000 + 900_000 / n, **labels)
            m.each("held", "bytes", n * 400_000.0, **labels)
            if backend == "store":
                m.each("compression_ratio", "ratio", 2.1, "higher", **labels)
    quota: dict[str, Any] = {"arm": "quota", "vms": 100, "cpus": cpus, "channel": "sync", "backend": "store"}
    cap = 262144.0
    for kind, held in (
        ("plain", 420_000.0),
        ("capped", 245_000.0),
        ("weight-100", 210_000.0),
        ("weight-300", 610_000.0),
    ):
        m.each("class_held", "bytes", held, None, **quota, **_class(kind))
    m.same("class_cap", "bytes", cap, **quota, **_class("capped"))
    m.same("over_cap", "bytes", 0.0, "lower", **quota, **_class("capped"))
    m.same("refused", "pages", 812.0, **quota, **_class("capped"))
    m.same("evicted", "pages", 9000.0, **quota, **_class("weight-100"))
    m.each("weight_ratio", "ratio", 2.9, None, **quota)
    m.same("lost_pages", "pages", 0.0, "lower", **quota, **_class("plain"))
    fleets = {"vhost-user-tmem": 9e3, "virtio-serial": 11e3, "inline": 14e3, "engine": 3e3}
    for channel, cost in fleets.items():
        for n in (1, 16, 200):
            one: dict[str, Any] = {"arm": f"fleet-{channel}", "vms": n, "channel": channel, "part": "channels"}
            m.each("channel_throughput", "pages/s", min(cpus, n) * 1e9 / cost, "higher", **one)
            m.latency("channel_latency", cost * max(1.0, n / cpus), **one)
            m.each("channel_page_cpu", "ns", cost, **one)
            m.share("channel_fairness", 1 - 0.01 * np.log10(n), **one)
            m.share("channel_slowest_share", 1 - 0.05 * np.log10(n), **one)
        if channel in ("vhost-user-tmem", "virtio-serial"):
            m.each("channel_agent_cpu", "ns", cost * 0.6, arm=f"fleet-{channel}", vms=200, part="channels")
            m.same("channel_vm_memory", "bytes", 160_000.0, "lower", arm=f"fleet-{channel}", vms=200, part="channels")
    return m.done()


def _class(name: str) -> dict[str, Any]:
    """The dimension `class`, which cannot be written as a keyword."""
    return {"class": name}


def channel_results(*, seed: int = 1, rounds: int = ROUNDS) -> Results:
    """`tmem bench channel`."""
    m = Maker("channel", seed=seed, rounds=rounds)
    arms = {
        "tmem-lz4-event": 14e3,
        "tmem-lz4-poll": 3e3,
        "tmem-none-event": 12e3,
        "qsd-tmpfs": 24e3,
        "qsd-null": 20e3,
    }
    contents: tuple[tuple[str, str, str], ...] = (
        ("read", "qemu-img", "compressible"),
        ("write", "qemu-img", "same-filled"),
        ("write", "libblkio-event", "compressible"),
    )
    for arm, cost in arms.items():
        for op, client, content in contents:
            for depth in (1, 8, 32):
                labels: dict[str, Any] = {
                    "arm": arm,
                    "op": op,
                    "client": client,
                    "contents": content,
                    "depth": depth,
                }
                m.each("latency", "ns", cost * (0.6 + 0.4 * depth), **labels)
                m.each("throughput", "pages/s", 1e9 * depth / (cost * (0.6 + 0.4 * depth)), "higher", **labels)
                m.each("server_cpu", "ns", cost * 0.4, **labels)
        m.latency("request_latency", cost, arm=arm, op="read", depth=1, client="libblkio-event")
    made_channels.add_guest(m)
    made_channels.add_own(m)
    return m.done()


def store_results(*, seed: int = 1, rounds: int = ROUNDS) -> Results:
    """`tmem bench store`."""
    m = Maker("store", seed=seed, rounds=rounds)
    for arm, cost in {"bare-lz4": 3e3, "tmem-lz4": 3.5e3, "tmem-none": 6e2, "zram-lz4": 6e3}.items():
        for contents in ("synthetic", "corpus"):
            for state in ("fresh", "overwrite"):
                m.latency("put", cost, arm=arm, contents=contents, state=state)
            m.latency("get", cost * 0.4, arm=arm, contents=contents)
            if arm != "bare-lz4":
                m.latency("flush", 200.0, arm=arm, contents=contents)
                m.each("held_over_compressed", "ratio", 1.04, arm=arm, contents=contents, stored_mib=256)
    for op in ("put", "get"):
        for resident in (10_000, 1_000_000):
            m.each(f"{op}_by_resident", "ns", 1500.0 + resident / 4000, arm="tmem-lz4", resident=resident)
        for threads in (1, 2):
            for arm in ("bare-lz4", "tmem-lz4"):
                m.each(
                    "throughput", "pages/s", 3e5 * threads, "higher", arm=arm, op=op, threads=threads, part="threads"
                )
    made_channels.add_units(m)
    return m.done()


def swap_results(*, seed: int = 1, rounds: int = ROUNDS, accelerator: str = "tcg") -> Results:
    """`tmem bench swap`."""
    m = Maker("swap", seed=seed, rounds=rounds, per_round=60)
    m.results.properties.guest = {
        "kernel": "6.1",
        "kernel_release": "6.1.0-made-up",
        "memory_mib": 96,
        "vcpus": 1,
        "accelerator": accelerator,
    }
    # Arm: how slow; its dimensions.
    blk, disk = ("virtio-blk", "vhost-user-blk", "tmem"), ("virtio-blk", "virtio-blk")
    made: dict[str, tuple[float, tuple[str, ...]]] = {
        "tmem-lz4": (1.0, blk),
        "tmem-lz4-poll": (0.8, blk),
        "swap-disk-vhost-user-tmem": (0.75, ("swap-disk", "vhost-user-tmem", "tmem")),
        "swap-disk-vhost-user-tmem-poll": (0.6, ("swap-disk", "vhost-user-tmem", "tmem")),
        "swap-disk-virtio-tmem": (0.62, ("swap-disk", "virtio-tmem", "tmem")),
        "swap-disk-virtio-serial": (3.0, ("swap-disk", "virtio-serial", "tmem")),
        "swap-disk-ivshmem": (0.4, ("swap-disk", "ivshmem", "ivshmem")),
        "frontswap-virtio-tmem": (0.6, ("frontswap", "virtio-tmem", "tmem")),
        "disk-none": (4.0, (*disk, "disk-none")),
        "zram": (0.7, ("zram", "none", "zram")),
        "null": (0.5, (*disk, "null")),
    }
    for arm, (slow, (source, channel, backend)) in made.items():
        what: dict[str, Any] = {
            "arm": arm,
            "source": source,
            "channel": channel,
            "backend": backend,
            "poll": "on" if arm.endswith("-poll") else "off",
        }
        if channel == "virtio-tmem":
            what |= {"doorbell": "mmio", "ioeventfd": "off"}
        for phase, share in (("write", 1.0), ("sequential", 0.7), ("random", 1.6), ("all", 3.3)):
            m.each("run_time", "s", slow * share, phase=phase, **what)
        m.latency("fault_latency", slow * 60e3, spread=0.4, phase="random", **what)
        m.each("page_out", "ns", slow * 40e3, phase="write", **what)
        m.each("page_in", "ns", slow * 55e3, phase="random", **what)
        for process, share in (("qemu", 2.8), ("agent", 0.4), ("all", 3.2)):
            m.each("host_cpu", "s", slow * share, process=process, **what)
        m.each("held", "bytes", slow * 30e6, where="host memory", **what)
    m.latency("clock_cost", 50.0, arm="harness", where="host")
    return m.done()


ALL: dict[str, Callable[[], Results]] = {
    "exit": exit_results,
    "density": density_results,
    "channel": channel_results,
    "store": store_results,
    "swap": swap_results,
}


def all_results() -> list[Results]:
    """One run of every bench, in an order that no page should keep."""
    return [ALL[name]() for name in ("swap", "store", "channel", "density", "exit")]
