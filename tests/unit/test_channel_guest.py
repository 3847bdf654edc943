# SPDX-License-Identifier: Apache-2.0
"""Requests of a guest over channels: turns, what is counted, and how tables, plots and verdict read it."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from framework.made_channels import COPIES, add_guest, add_own, add_units
from framework.made_results import Maker, exit_results
from tmem_host.bench import channel_copies, channel_guest, channel_probe, channel_tmem
from tmem_host.bench.layout import headline
from tmem_host.bench.layout_more import tables
from tmem_host.bench.results import Results
from tmem_host.core import CoreError, Engine, RequestPlan, Store, measure_engine
from tmem_host.errors import InvalidInput
from tmem_host.report.html_part import bench_part
from tmem_host.report.plots import plots_for
from tmem_host.report.verdict import Judged, evaluate


@functools.cache
def guest(accelerator: str = "tcg") -> Results:
    """Not to be changed: tests share it."""
    m = Maker("channel", per_round=4)
    add_guest(m, accelerator)
    add_own(m)
    return m.done()


def judged(name: str, *results: Results) -> Judged:
    return next(one for one in evaluate(results) if one.hypothesis.id == name)


# ---- turns


def test_each_arm_has_the_turns_that_its_channel_can_carry() -> None:
    by_arm = {name: channel_guest.points(way, [1, 8, 128]) for name, way in channel_guest.WAYS.items()}
    inline = by_arm["guest-inline-pio"]
    assert {p.op for p in inline} == {"put", "get", "flush", "exchange", "put+get", "read", "write"}
    assert {p.page_bytes for p in inline} == {4096, 64 << 10, 2 << 20}
    assert {p.batch for p in inline} == {1, 8, 128}
    assert {p.vcpus for p in inline} == {1, 2}
    assert len(set(inline)) == len(inline)
    disk = by_arm["guest-vhost-user-blk"]
    assert {(p.op, p.page_bytes) for p in disk} == {("put", 4096), ("get", 4096)}
    assert {p.vcpus for p in by_arm["guest-virtio-serial"]} == {1}
    assert "flush" not in {p.op for p in by_arm["guest-ivshmem"]}


def test_what_takes_longer_is_asked_for_less_often() -> None:
    point = channel_guest.Point
    assert point("put").samples(100) == 100
    assert point("put", batch=8).samples(100) == 12
    assert point("put", page_bytes=2 << 20).samples(100) == 5


def test_a_record_says_how_its_pages_cross() -> None:
    for arm, way in channel_guest.WAYS.items():
        assert {"channel", "wait"} <= way.dimensions.keys(), arm
    assert channel_guest.WAYS["guest-vhost-user-tmem-poll"].dimensions["poll"] == "on"
    assert channel_guest.WAYS["guest-inline-bql"].dimensions["lock"] == "on"
    names = [channel_copies.server_name(arm) for arm in channel_guest.WAYS]
    assert len(set(names)) == len(names)
    assert all(
        len(name) <= 20 for name, way in zip(names, channel_guest.WAYS.values(), strict=True) if way.kind == "disk"
    )


def test_the_probe_wants_whole_large_pages(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="4096 bytes of pages"):
        channel_probe.image(bytes(4096), tmp_path)


def test_own_arms_measure_every_operation_at_every_size() -> None:
    found = channel_tmem.points(quick=True)
    assert len(set(found)) == len(found)
    for size in channel_tmem.SIZES:
        ops = {p.op for p in found if p.page_bytes == size}
        assert ops == {"put", "get", "flush", "exchange", "put+get", "read", "write"}
    assert all(p.requests * p.page_bytes >= 2 << 20 for p in found if p.batch == 1)


# ---- copies


def test_pages_not_taken_in_place_are_counted() -> None:
    before = {"direct_pages": 10, "bounced_pages": 1}
    assert channel_copies.staged(before, {"direct_pages": 110, "bounced_pages": 1})[0] == 0
    amount, how = channel_copies.staged(before, {"direct_pages": 85, "bounced_pages": 26})
    assert amount == 1024
    assert how == "counted: 25 of 100 pages not in place"


def test_bytes_of_a_stream_are_those_of_its_puts() -> None:
    before = {"put": 5, "get": 7, "received": 1000}
    # ten puts and twenty gets, each request with its frame
    came = 10 * 4096 + 30 * (8 + 64)
    steps = channel_copies.stream(before, {"put": 15, "get": 27, "received": 1000 + came})
    assert steps["host"][0] == steps["monitor"][0] == 4096
    assert steps["guest"][0] == 8192
    assert steps["host"][1].startswith("counted")
    assert steps["guest"][1].startswith("by code")


# ---- tables and plots


def test_the_tables_below_the_headline() -> None:
    found = {table.title: headline(guest(), table) for table in tables(guest())}
    assert list(found) == ["Inside a guest", "Two vCPUs at once", "Copies", "Without a guest"]
    assert [row.arm for row in found["Inside a guest"]] == list(channel_guest.WAYS)
    assert {row.dimensions["accelerator"] for row in found["Inside a guest"]} == {"tcg"}
    disk = next(row for row in found["Inside a guest"] if row.arm == "guest-vhost-user-blk")
    assert [cell is not None for cell in disk.cells] == [True, True] + [False] * 9
    assert len(found["Copies"]) == 3 * len(COPIES)


def test_plots_of_an_emulated_guest_say_so_and_others_do_not() -> None:
    of_guest = {"guest-operations", "guest-together", "guest-vcpus", "guest-batch-put", "guest-batch-get"}
    own = {"tmem-batch-put", "tmem-batch-get", "operations"}
    emulated = {plot.key: plot.emulated for plot in plots_for(guest())}
    assert emulated == {**dict.fromkeys(of_guest, True), **dict.fromkeys(own, False)}
    assert not any(plot.emulated for plot in plots_for(guest("kvm")))
    assert bench_part(guest(), "channel").count("TCG: says nothing about exits") == len(of_guest)


def test_the_lock_is_seen_in_the_plot_of_two_vcpus() -> None:
    plot = next(p for p in plots_for(guest()) if p.key == "guest-together")
    labels = re.findall(r"(get|put), (inline, [^:<]+): (\d) vCPUs?", plot.wide)
    assert {(op, name) for op, name, _ in labels} >= {("get", "inline, big lock held"), ("put", "inline, PIO doorbell")}


# ---- verdict


def test_copies_of_a_guest_join_the_exit_bench() -> None:
    with_guest = judged("H1", exit_results(), guest())
    assert with_guest.outcome == "supported"
    assert "0 B by virtio-tmem" in with_guest.decision.because
    assert "12.0 KiB by virtio-serial" in with_guest.decision.because
    assert "is not in this" in judged("H1", exit_results()).decision.because


@pytest.mark.parametrize(
    ("channel", "outcome", "because"),
    [("vhost-user-tmem", "refuted", "4.00 KiB by vhost-user-tmem"), ("virtio-serial", "open", "it knows nothing")],
)
def test_a_copy_that_is_counted_refutes_and_one_that_is_not_decides_nothing(
    channel: str, outcome: str, because: str
) -> None:
    results = guest().model_copy(deep=True)
    for record in results.find("bytes_copied", channel=channel):
        of_host = channel == "vhost-user-tmem" and record.dimensions["step"] == "host"
        record.samples = [4096.0 if of_host else 0.0 for _ in record.samples]
    found = judged("H1", exit_results(), results)
    assert found.outcome == outcome
    assert because in found.decision.because


def test_exchange_and_a_woken_thread_stand_beside_batches() -> None:
    because = judged("H12", exit_results(), guest()).decision.because
    assert re.search(r"a put and a get cost [\d.]+× .* with an exit to user space each and [\d.]+×", because)
    assert "where a thread has to wake for each request" in because
    assert "a put and a get" in judged("H12", exit_results()).decision.because


@pytest.mark.parametrize(
    ("gain", "dearer", "outcome"), [(1.2, 1.5, "supported"), (1.2, 8, "refuted"), (1.05, 1, "refuted")]
)
def test_compound_pages(gain: float, dearer: float, outcome: str) -> None:
    m = Maker("store")
    add_units(m, gain, dearer)
    found = judged("H16", m.done(), guest())
    assert found.outcome == outcome
    assert "64 bytes out of a page take 0.6" in found.decision.because
    assert "sixteen of 4 KiB" in found.decision.because


# ---- the core's side


@pytest.mark.parametrize(
    "asked",
    [
        {"op": "nonsense"},
        {"op": "put", "batch": 0},
        {"op": "put", "batch": 129},
        {"op": "exchange", "batch": 2},
        {"op": "put", "page_bytes": 5000},
        {"op": "put", "page_bytes": 4 << 20},
        {"op": "read"},
        {"op": "get", "length": 64},
        {"op": "write", "length": 8192},
    ],
)
def test_what_cannot_be_asked_for_is_refused(tmp_path: Path, asked: dict[str, object]) -> None:
    store = Store(str(tmp_path / "arena"), limit_bytes=8 << 20)
    store.vm_create("vm")
    with pytest.raises(CoreError) as refused:
        RequestPlan(pool=0, requests=1, **asked)  # type: ignore[arg-type]
    assert refused.value.kind == "invalid"
    with pytest.raises(CoreError, match="multiple"):
        measure_engine(Engine(store, "vm"), bytes(6000), RequestPlan("put", 0, 1))
    with pytest.raises(CoreError, match="is answered bad-pool"):
        measure_engine(Engine(store, "vm"), bytes(8192), RequestPlan("put", 7, 1))
    store.close()
