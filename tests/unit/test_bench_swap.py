# SPDX-License-Identifier: Apache-2.0
"""The swap bench's arithmetic and choices, without a guest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tmem_host.bench import swap_arms as arms
from tmem_host.bench import swap_bench as swap
from tmem_host.bench.results import Scalar
from tmem_host.bench.runner import BenchContext
from tmem_host.bench.swap_figures import Held, InMemory, compression, cost_in, cost_out, fullest, overhead, totals
from tmem_host.bench.swap_host import HostSide, place_of
from tmem_host.bench.swap_stage import cpu_of, merged
from tmem_host.errors import InvalidInput, TmemError
from tmem_host.vm.guest_results import HogPhase, HogResult
from tmem_host.vm.routes import Options
from tmem_host.vm.spec import NullDisk


def phase(name: str, seconds: float, swapped_in: int = 0, swapped_out: int = 0, pages: int = 1000) -> HogPhase:
    return HogPhase(
        name=name,
        pages=pages,
        seconds=seconds,
        bad=0,
        major=swapped_in,
        rewrites=0,
        accesses=pages,
        vmstat={"pswpin": swapped_in, "pswpout": swapped_out},
        major_ns=tuple(range(swapped_in)),
        minor_ns=(),
    )


def hog(*phases: HogPhase) -> HogResult:
    return HogResult(1000, 0, True, sum(p.seconds for p in phases), {"median": 50}, phases)


def test_a_page_costs_what_a_phase_took_beyond_memory() -> None:
    total = totals(hog(phase("write", 0.015, swapped_out=500), phase("random", 0.025, swapped_in=100)))
    # 1000 accesses at 10 µs take 10 ms: the other 5 ms are 500 pages out, the other 15 ms 100 pages in.
    assert cost_out(total["write"], 10_000) == pytest.approx(10_000)
    assert cost_in(total["random"], 10_000) == pytest.approx(150_000)


def test_a_phase_that_moved_next_to_nothing_says_nothing() -> None:
    total = totals(hog(phase("write", 1, swapped_out=19), phase("random", 1, swapped_in=0)))
    assert cost_out(total["write"], 1) is None
    assert cost_in(total["random"], 1) is None


def test_passes_of_a_phase_are_added_up() -> None:
    total = totals(hog(phase("random", 1, 2, 3), phase("random", 2, 4, 5)))["random"]
    assert (total.seconds, total.pages, total.swapped_in, total.swapped_out) == (3, 2000, 6, 8)
    assert total.major_ns == (0, 1, 0, 1, 2, 3)


def test_what_memory_costs_comes_from_hogs_that_fit() -> None:
    fits = InMemory.of(hog(phase("write", 0.01), phase("random", 0.002)))
    assert fits.nanoseconds == {"write": pytest.approx(10_000), "random": pytest.approx(2_000)}
    with pytest.raises(ValueError, match="swapped 11 of 1000"):
        InMemory.of(hog(phase("write", 1, swapped_in=11)))
    middle = InMemory.middle([InMemory({"write": v}) for v in (3.0, 1.0, 2.0)])
    assert middle.nanoseconds == {"write": 2.0}


def test_the_fullest_moment_counts() -> None:
    seen = [Held(1, 4096, 8192), Held(10, 20480, 24576), Held(0, 0, 0)]
    best = fullest(seen)
    assert best == Held(10, 20480, 24576)
    assert compression(best, 4096) == 2
    assert overhead(best) == pytest.approx(1.2)
    assert compression(Held(0, 0, 9), 4096) is None
    assert fullest([]) is None


def test_every_arm_that_the_bench_is_for_is_there() -> None:
    table = arms.devices(500)
    disks = ("vhost-user-tmem", "vhost-user-tmem-poll", "virtio-tmem", "virtio-tmem-pio", "virtio-tmem-ioeventfd")
    assert set(table) == {
        *(f"tmem-{codec}{poll}" for codec in ("lz4", "zstd", "none") for poll in ("", "-poll")),
        *(f"swap-disk-{way}" for way in (*disks, "virtio-serial", "ivshmem", "async-vhost-user-tmem")),
        *("frontswap-vhost-user-tmem", "frontswap-virtio-tmem"),
        *("disk-none", "disk-writeback", "null", "zram"),
    }
    assert table["tmem-zstd-poll"].poll_us == table["swap-disk-vhost-user-tmem-poll"].poll_us == 500
    assert not table["null"].verified
    assert not table["swap-disk-async-vhost-user-tmem"].synchronous


def test_arms_can_be_chosen_and_keep_their_order() -> None:
    table = arms.devices(1)
    assert arms.choose("zram,tmem-lz4", table, quick=True, kernel="6.1") == ["tmem-lz4", "zram"]
    with pytest.raises(InvalidInput, match="no arm 'tea'"):
        arms.choose("tea", table, quick=False, kernel="6.1")


def test_what_runs_when_nobody_chooses() -> None:
    table = arms.devices(1)
    full = arms.choose("", table, quick=False, kernel="6.1")
    assert set(table) - set(full) == {"swap-disk-virtio-tmem-pio", "swap-disk-virtio-tmem-ioeventfd"}
    quick = arms.choose("", table, quick=True, kernel="6.1")
    # What the verdict compares.
    assert {"swap-disk-virtio-tmem", "swap-disk-vhost-user-tmem-poll", "tmem-lz4", "disk-none"} <= set(quick)
    assert len(quick) < 12
    assert "swap-disk-virtio-serial" not in quick
    assert not any(name.startswith("frontswap") for name in quick)
    assert "frontswap-virtio-tmem" in arms.choose("", table, quick=True, kernel="5.10")


def test_a_guest_has_one_device_that_the_module_drives_and_one_frontswap() -> None:
    guests: dict[str, set[str]] = {}
    for name, device in arms.devices(1).items():
        guests.setdefault(device.guest, set()).add(name)
    own = {name for names in guests.values() if len(names) == 1 for name in names}
    assert own == {
        *("swap-disk-virtio-tmem", "swap-disk-virtio-tmem-pio", "swap-disk-virtio-tmem-ioeventfd"),
        *("frontswap-vhost-user-tmem", "frontswap-virtio-tmem"),
    }
    assert len(guests[arms.MAIN]) == len(arms.devices(1)) - len(own)


def test_what_loses_pages_is_not_where_the_module_is() -> None:
    table = arms.devices(1)
    assert arms.together(table)["null"].guest == "null"
    stock = {name: table[name] for name in ("tmem-lz4", "disk-none", "null")}
    assert {device.guest for device in arms.together(stock).values()} == {arms.MAIN}


def plan(tmp_path: Path, quick: bool = False, **options: str) -> swap.Plan:
    return swap.Plan.of(BenchContext("swap", tmp_path, quick=quick, options=options))


def labels(name: str, disk_kind: str = "") -> dict[str, Scalar]:
    device = arms.devices(9)[name]
    return arms.arm_of(name, device, kernel="6.1", contents="corpus", disk_kind=disk_kind).labels()


def test_dimensions_tell_arms_apart() -> None:
    table = arms.devices(9)
    found = [{k: v for k, v in labels(name).items() if k != "arm"} for name in table]
    assert len({tuple(sorted(one.items())) for one in found}) == len(table)
    assert labels("tmem-lz4-poll")["poll"] == "on"
    assert labels("tmem-lz4")["channel"] == "vhost-user-blk"
    assert labels("zram")["channel"] == "none"
    inline = labels("swap-disk-virtio-tmem")
    assert (inline["channel"], inline["doorbell"], inline["ioeventfd"]) == ("virtio-tmem", "mmio", "off")
    assert labels("swap-disk-ivshmem")["backend"] == "ivshmem"
    assert labels("frontswap-virtio-tmem")["source"] == "frontswap"
    assert labels("disk-none", "nvme")["device"] == "nvme"
    assert "device" not in labels("tmem-lz4", "nvme")


def test_swap_holds_the_largest_hog_also_in_the_quick_setting(tmp_path: Path) -> None:
    for quick in (False, True):
        made = plan(tmp_path, quick=quick)
        assert made.factor >= 1.5
        assert made.swap_mib > made.factor * made.memory_mib
        assert made.rounds >= 2


@pytest.mark.parametrize("options", [{"factor": "0.5"}, {"factor": "99"}, {"accel": "steam"}, {"memory": "lots"}])
def test_impossible_plans_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(TmemError):
        plan(tmp_path, False, **options)


def test_a_disk_arm_needs_a_disk(tmp_path: Path) -> None:
    device = arms.devices(1)["disk-none"]
    host = HostSide((device,), Options(64), Path("/dev/shm"), tmp_path / "logs", None)
    host.prepare_files()
    assert "is memory and no disk" in host.missing[place_of(device)]
    assert "--disk-dir" in host.missing[place_of(device)]


def test_what_several_channels_want_of_one_vm() -> None:
    disk = NullDisk(4096, "one")
    wanted: list[dict[str, Any]] = [
        {"disks": (disk,)},
        {"pages_port": Path("/p")},
        {"extra_args": ("-a",)},
        {"extra_args": ("-b",)},
    ]
    assert merged(wanted) == {"disks": (disk,), "tmem": (), "extra_args": ("-a", "-b"), "pages_port": Path("/p")}
    assert merged([])["pages_port"] is False


def test_processor_time_of_a_process() -> None:
    import os

    assert cpu_of(os.getpid()) > 0
    assert cpu_of(2**22 + 1) == 0
