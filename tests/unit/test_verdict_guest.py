# SPDX-License-Identifier: Apache-2.0
"""Rules on many VMs and on guests that swap: made-up figures that support, refute and leave open each claim."""

from __future__ import annotations

from typing import Any

import pytest

from framework.made_verdict import exit_run, record, run, trip, verdict_on
from tmem_host.bench.results import Record, Results

LOUD = 0.6


def throughput(arm: str, vms: int, pages: float, wobble: float = 0.001, cpus: int = 2) -> Record:
    labels: dict[str, Any] = {"arm": arm, "vms": vms, "cpus": cpus, "overcommit": vms / cpus}
    return record("density", "throughput", pages, "pages/s", wobble=wobble, **labels)


def density(sync: float, asynchronous: float, wobble: float = 0.001, vms: int = 1000) -> Results:
    pair = [throughput("sync-store", vms, sync, wobble), throughput("async-store", vms, asynchronous)]
    return run("density", [*pair, throughput("async-disk", vms, 100)])


def taken(arm: str, seconds: float, wobble: float = 0.001, **labels: Any) -> Record:
    return record("swap", "run_time", seconds, "s", wobble=wobble, arm=arm, phase="all", **labels)


def swap(*records: Record, accelerator: str = "kvm") -> Results:
    return run("swap", records, accelerator=accelerator)


def held(ratio: float, extra: float = 1.02, wobble: float = 0.001) -> list[Record]:
    return [
        record("swap", "compression_ratio", ratio, "ratio", wobble=wobble, arm="tmem-lz4"),
        record("swap", "held_over_compressed", extra, "ratio", arm="tmem-lz4"),
    ]


def faults(tmem: float, cached: float, wobble: float = 0.001) -> list[Record]:
    return [
        record("swap", "fault_latency", tmem, wobble=wobble, arm="tmem-lz4", phase="random"),
        record("swap", "fault_latency", cached, arm="disk-writeback", phase="random"),
    ]


def workloads(*shares: float, wobble: float = 0.001, accelerator: str = "kvm") -> Results:
    records = [
        record("workload", "tmem_cpu_share", share, "ratio", wobble=wobble, workload=f"w{i}")
        for i, share in enumerate(shares)
    ]
    return run("workload", records, accelerator=accelerator)


def units(gain: float, dearer: float, wobble: float = 0.001) -> Results:
    return run(
        "store",
        [
            record("store", "compression_ratio", 2, "ratio", unit_bytes=4096, contents="files"),
            record("store", "compression_ratio", 2 * gain, "ratio", wobble=wobble, unit_bytes=65536, contents="files"),
            record("store", "get_page", 1000, unit_bytes=4096, contents="files"),
            record("store", "get_page", 1000 * dearer, unit_bytes=65536, contents="files"),
        ],
    )


def conformance(*pairs: tuple[str, float]) -> Results:
    found = [record("conformance", "violations", n, "violations", wobble=0, pair=pair) for pair, n in pairs]
    return run("conformance", found)


OLD, NEW = "old guest, new host", "new guest, old host"
INLINE: dict[str, Any] = {"source": "swap-disk", "channel": "virtio-tmem", "ioeventfd": "off"}
RING: dict[str, Any] = {"source": "swap-disk", "channel": "vhost-user-tmem", "poll": "on"}
DEAR = exit_run({"pio": 2000, "pio+put": 5000})

CASES: list[tuple[str, str, list[Results]]] = [
    ("H2", "supported", [DEAR, swap(taken("inline", 12, **INLINE), taken("ring", 10, **RING))]),
    ("H2", "refuted", [DEAR, swap(taken("inline", 10.1, **INLINE), taken("ring", 10, **RING))]),
    ("H2", "open", [DEAR, swap(taken("inline", 12, **INLINE), taken("ring", 10, **RING), accelerator="tcg")]),
    ("H2", "open", [DEAR, swap(taken("inline", 10.5, LOUD, **INLINE), taken("ring", 10, **RING))]),
    ("H7", "supported", [density(2000, 1000)]),
    ("H7", "supported", [density(980, 1000)]),
    ("H7", "refuted", [density(500, 1000)]),
    ("H7", "open", [density(950, 1000, LOUD)]),
    ("H7", "open", [density(2000, 1000, vms=1)]),
    ("H8", "refuted", [swap(*held(2.5), accelerator="tcg")]),
    ("H8", "refuted", [swap(*held(1.0), *faults(5000, 50_000))]),
    ("H8", "supported", [swap(*held(1.0), *faults(50_000, 5000))]),
    ("H8", "open", [swap(*held(1.0), *faults(5000, 50_000), accelerator="tcg")]),
    ("H8", "open", [swap(*held(1.0))]),
    ("H8", "open", [swap(*held(1.1, wobble=LOUD), *faults(50_000, 5000))]),
    ("H10", "supported", [swap(taken("remote", 5, backend="remote"), taken("disk-none", 10))]),
    ("H10", "refuted", [swap(taken("remote", 15, backend="remote"), taken("disk-none", 10))]),
    ("H10", "open", [swap(taken("remote", 10, LOUD, backend="remote"), taken("disk-none", 10))]),
    ("H10", "open", [swap(taken("remote", 5, backend="remote"), taken("disk-none", 10), accelerator="tcg")]),
    ("H11", "supported", [workloads(0.001, 0.01)]),
    ("H11", "refuted", [workloads(0.001, 0.1)]),
    ("H11", "open", [workloads(0.02, wobble=LOUD)]),
    ("H11", "open", [workloads(0.1, accelerator="tcg")]),
    ("H16", "supported", [units(1.3, 1.5)]),
    ("H16", "refuted", [units(1.3, 8)]),
    ("H16", "refuted", [units(1.05, 1.5)]),
    ("H16", "open", [units(1.1, 1.5, LOUD)]),
    ("H17", "supported", [swap(taken("tmem-lz4", 5), taken("disk-hdd", 10), taken("disk-none", 4, device="nvme"))]),
    ("H17", "refuted", [swap(taken("tmem-lz4", 15), taken("disk-none", 10, device="hdd"))]),
    ("H17", "open", [swap(taken("tmem-lz4", 5), taken("disk-none", 10, device="hdd"))]),
    ("H17", "open", [swap(taken("tmem-lz4", 10, LOUD), taken("disk-none", 10, device="hdd"))]),
    ("H17", "open", [swap(taken("tmem-lz4", 15), taken("disk-none", 10), accelerator="tcg")]),
    ("H18", "supported", [conformance((OLD, 0), (NEW, 0))]),
    ("H18", "refuted", [conformance((OLD, 0), (NEW, 1))]),
    ("H18", "open", [conformance((OLD, 0))]),
    ("H19", "supported", [swap(record("swap", "runnable_share", 0.02, "ratio", arm="tmem-lz4"))]),
    ("H19", "refuted", [swap(record("swap", "runnable_share", 0.4, "ratio", arm="tmem-lz4"))]),
    ("H19", "open", [swap(record("swap", "runnable_share", 0.1, "ratio", wobble=LOUD, arm="tmem-lz4"))]),
    ("H19", "open", [swap(record("swap", "runnable_share", 0.4, "ratio", arm="tmem-lz4"), accelerator="tcg")]),
    ("H20", "supported", [swap(taken("tmem-lz4", 5), taken("disk-none", 10))]),
    ("H20", "refuted", [swap(taken("tmem-lz4", 15), taken("disk-none", 10))]),
    ("H20", "open", [swap(taken("tmem-lz4", 10, LOUD), taken("disk-none", 10))]),
    ("H20", "open", [swap(taken("tmem-lz4", 5), taken("disk-none", 10), accelerator="tcg")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "outcome", "results"), CASES)
def test_decides(name: str, outcome: str, results: list[Results]) -> None:
    judged = verdict_on(name, *results)
    assert judged.outcome == outcome, judged.line
    assert judged.decision.because
    if outcome != "open":
        assert judged.decision.figures


@pytest.mark.parametrize("name", ["H10", "H17", "H19", "H20"])
def test_an_emulated_guest_is_no_evidence_of_time(name: str) -> None:
    results = next(
        r for n, _, r in CASES if n == name and any(x.properties.guest.get("accelerator") == "tcg" for x in r)
    )
    assert "was emulated (TCG), and that says nothing about" in verdict_on(name, *results).decision.because


def test_the_largest_number_of_vms_decides_and_the_others_are_told() -> None:
    results = density(500, 1000)
    results.records += [throughput("sync-store", 10, 2000), throughput("async-store", 10, 1000)]
    judged = verdict_on("H7", results)
    assert judged.outcome == "refuted"
    assert "1000 VMs on 2 CPUs get 0.500×" in judged.decision.because
    assert "10 VMs 2.00×" in judged.decision.because
    assert "5.00× those through a disk" in judged.decision.because


def test_what_an_open_claim_can_be_told_all_the_same() -> None:
    emulated = swap(taken("tmem-lz4", 5), taken("disk-none", 10), accelerator="tcg")
    judged = verdict_on("H20", emulated, density(500, 1000))
    assert judged.outcome == "open"
    assert "1000 micro-VMs move 5.00× the pages to the store that they move to a disk" in judged.decision.because
    away = exit_run({"pio+get": 5000, "pio+disk-read": 105_000})
    assert "a get could take 100 µs (99.9–100) longer" in verdict_on("H10", away).decision.because
    assert "longer" not in verdict_on("H10", exit_run({"pio+get": 5000, "pio+disk-read": 4000})).decision.because
    assert "longer" not in verdict_on("H10", exit_run({"pio+get": 5000})).decision.because


def test_the_share_of_an_exit_is_told_when_run_time_is_missing() -> None:
    results = exit_run({"pio": 2000, "pio+put": 5000}, trip("pio+put-zstd", 20_000))
    judged = verdict_on("H2", results)
    assert "the exit to user space is 40.0 % of a put with lz4" in judged.decision.because
    assert [round(f.value, 3) for f in judged.decision.figures] == [0.4, 0.1]


def test_ways_of_the_module_are_told_and_do_not_decide() -> None:
    slow = taken("swap-disk-virtio-serial", 30, source="swap-disk", channel="virtio-serial", backend="tmem")
    judged = verdict_on("H20", swap(taken("tmem-lz4", 5), taken("disk-none", 10), slow))
    assert judged.outcome == "supported"
    assert "(swap-disk-virtio-serial 3.00×" in judged.decision.because


def test_an_ioeventfd_is_no_exit_for_each_page() -> None:
    posted = {**INLINE, "ioeventfd": "on"}
    judged = verdict_on("H2", DEAR, swap(taken("posted", 12, **posted), taken("ring", 10, **RING)))
    assert judged.outcome == "open"
    assert "there is no figure swap run_time" in judged.decision.because
