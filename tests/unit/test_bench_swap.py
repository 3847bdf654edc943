# SPDX-License-Identifier: Apache-2.0
"""The swap bench's arithmetic and choices, without a guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmem_host.bench import swap_bench as swap
from tmem_host.bench.runner import BenchContext
from tmem_host.bench.swap_figures import Held, InMemory, compression, cost_in, cost_out, fullest, overhead, totals
from tmem_host.bench.swap_stage import DIRECT, Stage, StageSpec, cpu_of
from tmem_host.errors import InvalidInput, TmemError
from tmem_host.vm.guest_results import HogPhase, HogResult
from tmem_host.vm.images import KernelImage


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
    table = swap.devices(500)
    assert list(table) == [
        *(f"tmem-{codec}{poll}" for codec in ("lz4", "zstd", "none") for poll in ("", "-poll")),
        "disk-none",
        "disk-writeback",
        "null",
        "zram",
    ]
    assert table["tmem-zstd-poll"].poll_us == 500
    assert not table["null"].verified


def test_arms_can_be_chosen_and_keep_their_order() -> None:
    table = swap.devices(1)
    assert swap._choose("zram,tmem-lz4", table) == ["tmem-lz4", "zram"]
    with pytest.raises(InvalidInput, match="no arm 'tea'"):
        swap._choose("tea", table)


def plan(tmp_path: Path, quick: bool = False, **options: str) -> swap.Plan:
    return swap.Plan.of(BenchContext("swap", tmp_path, quick=quick, options=options))


def test_dimensions_tell_arms_apart(tmp_path: Path) -> None:
    table = swap.devices(9)
    labels = [swap.arm_of(name, device, plan(tmp_path)).labels() for name, device in table.items()]
    assert len({tuple(sorted(one.items())) for one in labels}) == len(table)
    assert labels[1]["poll"] == "on"
    assert labels[0]["channel"] == "vhost-user-blk"
    assert all(one["kernel"] == "6.1" for one in labels)


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
    image = KernelImage("6.1", "6.1.0", tmp_path, tmp_path, None)
    spec = StageSpec(image, 96, 1, 64, "tcg", Path("/dev/shm"), tmp_path / "logs", None, tmem=False)
    stage = Stage(spec)
    stage._prepare_files()
    assert "is memory and no disk" in stage.missing[DIRECT]
    assert "--disk-dir" in stage.missing[DIRECT]


def test_processor_time_of_a_process() -> None:
    import os

    assert cpu_of(os.getpid()) > 0
    assert cpu_of(2**22 + 1) == 0
