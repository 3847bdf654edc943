# SPDX-License-Identifier: Apache-2.0
"""The exit and density benches without running them: arms, plans, and what is said of a host."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmem_host._core import CoreError, ExitRig, exit_kinds, run_fleet
from tmem_host.bench import density_bench, density_channels, density_quota, exit_bench, exit_vmexit
from tmem_host.bench.density_fleet import jain
from tmem_host.bench.exit_arms import BATCHES, DELAYS_US, LATENCIES_US, Turn, arm_of, turns
from tmem_host.bench.properties import kvm_flavour
from tmem_host.bench.runner import Arm, BenchContext, BenchError
from tmem_host.core import Engine, Store
from tmem_host.errors import InvalidInput


def test_names_of_arms_are_unique_and_made_of_their_dimensions() -> None:
    arms = [arm_of(turn) for turn in turns()]
    names = [arm.name for arm in arms]
    assert len(set(names)) == len(names)
    for arm in arms:
        assert arm.name.startswith(str(arm.dimensions["kind"]))
        assert arm.dimensions["path"] in ("none", "kernel", "user", "thread")
        assert arm.dimensions["bits"] in (0, 16, 64)
    for prefix, numbers in (
        ("pio+delay", DELAYS_US),
        ("bare+get-batch", BATCHES),
        ("irqfd-sleep+device", LATENCIES_US),
    ):
        assert {f"{prefix}-{n}" for n in numbers} <= set(names)


def test_every_kind_of_exit_is_an_arm_of_its_own() -> None:
    assert {str(kind["name"]) for kind in exit_kinds()} <= {turn.name for turn in turns()}


def test_kinds_that_the_kernel_answers_carry_no_work() -> None:
    loops = {str(kind["name"]) for kind in exit_kinds() if kind["loops"]}
    assert loops
    assert all(turn.work == "nothing" for turn in turns() if turn.kind in loops)


def test_what_a_turn_needs() -> None:
    assert Turn("bare", "copy-hot").needs == set()
    assert Turn("bare", "put").needs == {"store"}
    assert Turn("pio", "delay", 5).needs == {"kvm", "store"}
    assert Turn("mmio", "disk-read").needs == {"kvm", "disk"}
    assert Turn("pio", "get-batch", 8).needs == {"kvm", "store"}


@pytest.mark.parametrize(
    ("device", "modules", "flags", "said"),
    [
        ("absent", [], "fpu vmx", "none (absent)"),
        ("no permission", ["kvm"], "vmx", "none (no permission)"),
        ("usable", ["kvm", "kvm_intel"], "fpu vmx", "hardware (VT-x)"),
        ("usable", ["kvm", "kvm_amd"], "svm hypervisor", "hardware, nested (SVM in a virtual machine)"),
        (
            "usable",
            ["kvm", "kvm_pvm"],
            "hypervisor",
            "software (PVM: module kvm_pvm; the CPU shows neither vmx nor svm)",
        ),
        (
            "usable",
            ["kvm"],
            "",
            "software (unknown: no module of a vendor's hardware; the CPU shows neither vmx nor svm)",
        ),
    ],
)
def test_flavours_of_kvm(device: str, modules: list[str], flags: str, said: str) -> None:
    assert kvm_flavour(device, modules, flags) == said


def context(tmp_path: Path, name: str, **options: object) -> BenchContext:
    return BenchContext(name, tmp_path, quick=True, options=options)


def test_plans_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="at least 1"):
        exit_bench.Plan.of(context(tmp_path, "exit", samples="0"))
    with pytest.raises(InvalidInput, match=r"vmexit\.flat"):
        exit_bench.Plan.of(context(tmp_path, "exit", vmexit=str(tmp_path / "none")))
    for options in ({"vms": "0"}, {"vms": "5000"}, {"cpus": "4096"}, {"arms": "sync-tape"}):
        with pytest.raises(BenchError):
            density_bench.Plan.of(context(tmp_path, "density", **options))


def test_large_fleets_are_watched_for_as_long_as_the_scheduler_needs(tmp_path: Path) -> None:
    plan = density_bench.Plan.of(context(tmp_path, "density", seconds="0.5", turns="2"))
    assert plan.watched(1, 2) == 0.5
    assert plan.watched(1000, 2) == pytest.approx(2 * 0.004 * 1000 / 2)


def test_medians_that_are_not_settled_yet(tmp_path: Path) -> None:
    ctx = context(tmp_path, "exit")
    for index, (steady, wild) in enumerate(zip([100.0] * 6, [100.0, 150, 90, 200, 110, 80], strict=True)):
        ctx._now_round = index
        ctx.record("round_trip", "ns", [steady] * 3, arm=Arm("pio", {"work": "nothing"}))
        ctx.record("round_trip", "ns", [wild] * 3, arm=Arm("mmio", {"work": "nothing"}))
        ctx.record("round_trip", "ns", [wild] * 3, arm=Arm("pio+disk-read", {"work": "disk-read"}))
    assert exit_bench.unsettled(ctx, 0.02) == ["mmio"]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=50))
def test_fairness_is_between_one_of_n_and_one(served: list[int]) -> None:
    index = jain(served)
    if not any(served):
        assert index == 0
    else:
        assert 1 / len(served) - 1e-9 <= index <= 1 + 1e-9
    assert jain([7] * len(served)) == pytest.approx(1)


def test_a_slot_is_what_the_page_compresses_to_and_a_little() -> None:
    assert density_quota.slot_bytes(bytes(4096 * 4)) < 200
    noise = random.Random(1).randbytes(4096 * 4)
    assert 4096 < density_quota.slot_bytes(noise) < 4400


def test_vmexit_prints_are_understood() -> None:
    said = "enabling apic\r\ncpuid 2130\r\n\r\ninl_from_qemu 12345\r\n"
    assert exit_vmexit.cycles_of(said, "cpuid") == 2130
    assert exit_vmexit.cycles_of(said, "inl_from_qemu") == 12345
    with pytest.raises(ValueError, match="vmcall"):
        exit_vmexit.cycles_of(said, "vmcall")
    assert "accel=kvm" in " ".join(exit_vmexit.argv(Path("vmexit.flat"), "cpuid", "host"))


def test_bad_arguments_are_one_line_errors() -> None:
    rig = ExitRig(bytes(4096))
    for kind, work in (("pio17", "nothing"), ("bare", "nonsense"), ("cpuid", "put")):
        with pytest.raises(CoreError) as caught:
            rig.turn(kind, work, samples=1, warmup=0, seconds=0.1)
        assert caught.value.kind == "invalid"
        assert "\n" not in str(caught.value)
    with pytest.raises(CoreError):
        rig.turn("bare", "nothing", samples=0, warmup=0, seconds=0.1)
    with pytest.raises(CoreError):
        rig.turn("bare", "nothing", samples=1, warmup=0, seconds=float("nan"))
    with pytest.raises(CoreError):
        ExitRig(bytes(100))


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0},
        {"frames": 64, "pages": 64},
        {"pages": 1 << 20},
        {"trace": 0},
        {"zipf": float("inf")},
        {"channel": "radio"},
        {"cpus": 0},
        {"time": -1.0},
        {"disk": None},
    ],
)
def test_fleets_that_cannot_be(wrong: dict[str, object]) -> None:
    good: dict[str, object] = {
        "disk": "/nonexistent",
        "frames": 4,
        "pages": 8,
        "zipf": 1.0,
        "trace": 10,
        "channel": "sync",
        "workers": 1,
        "cpus": 1,
        "time": 0.1,
        "compute": 0.0,
        "seed": 1,
    }
    with pytest.raises(CoreError) as caught:
        run_fleet([("plain", 1, True, 0, None, 100)], bytes(4096), **(good | wrong))  # type: ignore[arg-type]
    assert caught.value.kind == "invalid"


def test_a_fleets_guests_have_pages_of_their_own() -> None:
    pages = b"".join(bytes([i]) * 4096 for i in range(8))
    own = [density_channels._own(pages, guest, 4) for guest in range(8)]
    assert {len(one) for one in own} == {4 * 4096}
    assert len(set(own)) == 8
    assert len(density_channels._own(pages, 1, 64)) == 64 * 4096


def test_a_fleets_guest_finds_out_about_a_page_that_is_not_its_own(arena: Path) -> None:
    store = Store(str(arena), limit_bytes=64 << 20)
    try:
        for name in ("one", "two"):
            store.vm_create(name)
        pages = b"".join(bytes([i]) * 4096 for i in range(1, 9))
        one = density_channels.Guest(density_channels._Direct(Engine(store, "one")), pages)
        assert one.check() == 8
        assert len(one.play(density_channels.Start(1, 0.01))) > 0
        other = density_channels.Guest(density_channels._Direct(Engine(store, "two")), bytes(8 * 4096))
        other._pages = pages
        with pytest.raises(BenchError, match="came back different"):
            other.check()
    finally:
        store.close()
