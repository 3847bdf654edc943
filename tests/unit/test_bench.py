# SPDX-License-Identifier: Apache-2.0
"""The runner: interleaving, failures, interruption, options; and the tables made of what it leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from rich.console import Console

from tmem_host.bench import command, runner
from tmem_host.bench.layout import Column, Layout, headline, layout_for, power
from tmem_host.bench.progress import PlainProgress, TimeLeft, human_seconds
from tmem_host.bench.results import Results
from tmem_host.bench.runner import Arm, ArmSkipped, BenchAborted, BenchContext, BenchError, run_bench
from tmem_host.bench.table import print_table
from tmem_host.bench.units import human, human_range, number
from tmem_host.errors import InvalidInput

ARMS = [Arm("a", {"codec": "lz4"}), Arm("b"), Arm("c")]
Turn = Callable[[Arm, int], Awaitable[None]]


def context(tmp_path: Path, **options: object) -> BenchContext:
    return BenchContext("made-up", tmp_path, seed=5, options=options)


def run_arms(ctx: BenchContext, turn: Turn, rounds: int = 3, **more: object) -> int:
    async def bench(c: BenchContext) -> None:
        await c.interleave(ARMS, rounds=rounds, run=turn, **more)  # type: ignore[arg-type]

    return run_bench(ctx, bench)


def test_every_arm_has_one_record_per_metric_with_its_rounds(tmp_path: Path) -> None:
    ctx = context(tmp_path)

    async def turn(arm: Arm, index: int) -> None:
        ctx.record("latency", "ns", [1.0, 2.0], arm=arm, better="lower")
        ctx.record("latency", "ns", 3.0, arm=arm, better="lower")
        ctx.record("pages", "pages", index, arm=arm)

    assert run_arms(ctx, turn) == 0
    found = Results.read(tmp_path)
    assert found.complete
    assert [(r.arm, r.metric) for r in found.records if r.arm != "harness"] == [
        (arm.name, metric) for arm in ARMS for metric in ("latency", "pages")
    ]
    record = found.find("latency", arm="a", codec="lz4")[0]
    assert record.samples == [1, 2, 3] * 3
    assert record.round_sizes == [3, 3, 3]
    assert found.find("pages", arm="b")[0].samples == [0, 1, 2]


def test_every_round_has_every_arm_in_an_order_that_the_seed_decides(tmp_path: Path) -> None:
    async def turn(_arm: Arm, _index: int) -> None:
        return None

    orders = []
    for name in ("x", "y"):
        ctx = context(tmp_path / name)
        run_arms(ctx, turn, rounds=8)
        orders.append(ctx.results.arm_order)
    assert orders[0] == orders[1]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders[0])
    assert len({tuple(order) for order in orders[0]}) > 1


def test_a_rotated_order_starts_with_each_arm_in_turn(tmp_path: Path) -> None:
    async def turn(_arm: Arm, _index: int) -> None:
        return None

    ctx = context(tmp_path)
    run_arms(ctx, turn, order="rotate")
    assert ctx.results.arm_order == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_an_arm_that_fails_has_no_number_and_the_others_go_on(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    recovered: list[str] = []

    async def turn(arm: Arm, index: int) -> None:
        ctx.record("latency", "ns", 1.0, arm=arm)
        if arm.name == "b" and index == 1:
            raise BenchError("the device is gone", "plug it in")

    async def recover(arm: Arm, _error: BaseException) -> None:
        recovered.append(arm.name)

    assert run_arms(ctx, turn, recover=recover) == 1
    found = Results.read(tmp_path)
    assert found.find("latency", arm="b") == []
    assert [(f.dimensions["arm"], f.kind, f.reason) for f in found.failures] == [
        ("b", "failed", "the device is gone (plug it in)")
    ]
    assert found.find("latency", arm="c")[0].samples == [1, 1, 1]
    assert recovered == ["b"]
    assert ctx.has_failed(ARMS[1])
    assert not ctx.has_failed(ARMS[0])


def test_what_this_machine_cannot_do_is_skipped_and_no_failure(tmp_path: Path) -> None:
    ctx = context(tmp_path)

    async def turn(arm: Arm, _index: int) -> None:
        if arm.name == "c":
            raise ArmSkipped("no disk here")
        ctx.record("latency", "ns", 1.0, arm=arm)

    assert run_arms(ctx, turn) == 0
    assert [(f.kind, f.reason) for f in ctx.results.failures] == [("skipped", "no disk here")]


def test_when_nothing_can_go_on_every_arm_left_says_so(tmp_path: Path) -> None:
    ctx = context(tmp_path)

    async def turn(arm: Arm, _index: int) -> None:
        raise BenchAborted("the guest will not boot")

    with pytest.raises(BenchAborted):
        run_arms(ctx, turn)
    assert {f.dimensions["arm"] for f in Results.read(tmp_path).failures} == {"a", "b", "c"}
    assert not Results.read(tmp_path).complete


def test_a_bench_that_cannot_start_leaves_its_reason(tmp_path: Path) -> None:
    async def bench(_ctx: BenchContext) -> None:
        raise InvalidInput("no such thing", "choose another")

    ctx = context(tmp_path)
    with pytest.raises(InvalidInput):
        run_bench(ctx, bench)
    assert Results.read(tmp_path).failures[0].reason == "no such thing (choose another)"


@pytest.mark.parametrize("number_", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_was_there(tmp_path: Path, number_: signal.Signals) -> None:
    ctx = context(tmp_path)
    cleaned: list[bool] = []

    async def turn(arm: Arm, index: int) -> None:
        if index == 1:
            os.kill(os.getpid(), number_)
            try:
                await asyncio.sleep(30)
            finally:
                cleaned.append(True)
        ctx.record("latency", "ns", 1.0, arm=arm)

    assert run_arms(ctx, turn) == runner.EXIT_INTERRUPTED
    found = Results.read(tmp_path)
    assert not found.complete
    assert len(found.find("latency")) == 3
    assert any("Interrupted" in note for note in found.notes)
    assert cleaned == [True]


def test_arms_that_never_wait_are_interrupted_between_two(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    done: list[str] = []

    async def turn(arm: Arm, _index: int) -> None:
        done.append(arm.name)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    assert run_arms(ctx, turn) == runner.EXIT_INTERRUPTED
    assert len(done) == 2


def test_no_round_is_begun_that_would_pass_the_deadline(tmp_path: Path) -> None:
    ctx = context(tmp_path)

    async def turn(arm: Arm, _index: int) -> None:
        ctx.record("latency", "ns", 1.0, arm=arm)

    assert run_arms(ctx, turn, rounds=4, deadline=time.monotonic() - 1) == 0
    assert ctx.results.find("latency", arm="a")[0].samples == [1]
    assert any("1 of 4 rounds" in note for note in ctx.results.notes)


def test_a_unit_cannot_change_and_samples_are_finite(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    ctx.record("latency", "ns", 1.0, arm=ARMS[0])
    with pytest.raises(ValueError, match="recorded in ns"):
        ctx.record("latency", "s", 1.0, arm=ARMS[0])
    with pytest.raises(ValueError, match="finite"):
        ctx.record("latency", "ns", float("nan"), arm=ARMS[0])
    ctx.record("nothing", "ns", [], arm=ARMS[0])
    assert ctx.results.find("nothing") == []


def test_host_facts_and_the_harness_cost_are_in_every_result(tmp_path: Path) -> None:
    async def bench(_ctx: BenchContext) -> None:
        return None

    ctx = context(tmp_path)
    run_bench(ctx, bench)
    host = Results.read(tmp_path).properties.host
    assert {"cpu", "kernel", "memory_bytes", "governor", "qemu", "commit", "libraries", "load"} <= host.keys()
    assert ctx.results.find("clock_cost", arm="harness")


def test_options_take_the_type_of_their_default(tmp_path: Path) -> None:
    ctx = context(tmp_path, rounds="7", depths="1,8", fast="yes", ratio="2", name="x")
    assert ctx.option("rounds", 3) == 7
    assert ctx.option("depths", [1]) == [1, 8]
    assert ctx.option("fast", False) is True
    assert ctx.option("ratio", 1.5) == 2.0
    assert ctx.option("name", "") == "x"
    assert ctx.option("other", 3, quick=1) == 3
    ctx.quick = True
    assert ctx.option("other", 3, quick=1) == 1
    with pytest.raises(BenchError, match="rounds"):
        context(tmp_path, rounds="many").option("rounds", 3)


def test_there_is_no_such_bench() -> None:
    with pytest.raises(BenchError, match="no bench called 'tea'") as caught:
        runner.load("tea")
    assert "swap" in caught.value.hint


@pytest.mark.parametrize("name", sorted(runner.MODULES))
def test_every_bench_can_be_loaded(name: str) -> None:
    assert callable(runner.load(name))


# ---- progress


def test_time_left_counts_each_kind_as_long_as_it_took() -> None:
    left = TimeLeft()
    assert left.left(["a"]) is None
    left.done("a", 2)
    left.done("b", 4)
    assert left.left(["a", "b", "unknown"]) == 2 + 4 + 3
    assert left.left([]) == 0


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (185, "3 min 05 s")])
def test_times_as_people_read_them(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_plain_progress_is_a_line_per_step(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainProgress(Console(width=200))
    with view:
        view.plan(2)
        view.step("round 1/1: a")
        view.advance()
        view.step("round 1/1: b", 61)
    lines = capsys.readouterr().out.splitlines()
    assert "1/2 round 1/1: a" in lines[0]
    assert "2/2 round 1/1: b  (~1 min 01 s left)" in lines[1]


# ---- figures for people


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (950, "ns", "950 ns"),
        (12345, "ns", "12.3 µs"),
        (0.0125, "s", "12.5 ms"),
        (999.9, "ns", "1.00 µs"),
        (1536, "bytes", "1.50 KiB"),
        (2.5, "ratio", "2.50×"),
        (123456, "pages/s", "123 k pages/s"),
        (42, "pages", "42.0 pages"),
        (0, "ns", "0 ns"),
        (-25792, "ns", "-25.8 µs"),
    ],
)
def test_figures_as_people_read_them(value: float, unit: str, text: str) -> None:
    assert human(value, unit) == text


def test_a_range_is_in_the_unit_of_its_middle() -> None:
    assert human_range(900, 1500, "ns", 1200) == "0.900–1.50"
    assert number(float("inf")) == "inf"


def two_arms(tmp_path: Path, rounds: int = 6) -> Results:
    ctx = BenchContext("swap", tmp_path)

    async def bench(c: BenchContext) -> None:
        async def turn(arm: Arm, index: int) -> None:
            slow = 1.0 if arm.name == "disk-none" else 0.25
            c.record("run_time", "s", slow * (10 + index), arm=arm, phase="all", better="lower")

        arms = [Arm("tmem-lz4"), Arm("disk-none"), Arm("zram")]

        async def or_fail(arm: Arm, index: int) -> None:
            if arm.name == "zram":
                raise BenchError("out of memory")
            await turn(arm, index)

        await c.interleave(arms, rounds=rounds, run=or_fail)

    run_bench(ctx, bench)
    return Results.read(tmp_path)


def test_the_headline_divides_by_the_baseline_round_by_round(tmp_path: Path) -> None:
    rows = headline(two_arms(tmp_path))
    assert [row.arm for row in rows] == ["tmem-lz4", "disk-none"]
    ours, base = rows[0].cells[0], rows[1].cells[0]
    assert ours is not None
    assert base is not None
    assert ours.ratio is not None
    assert (ours.ratio.low, ours.ratio.value, ours.ratio.high) == (0.25, 0.25, 0.25)
    assert ours.verdict == "better"
    assert base.ratio is None


def test_few_rounds_are_said_to_be_few(tmp_path: Path) -> None:
    assert "2 rounds are too few" in power(two_arms(tmp_path / "two", rounds=2))
    assert power(two_arms(tmp_path / "six", rounds=6)) == ""


def test_a_bench_without_a_layout_shows_every_metric(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    for depth in (1, 8):
        ctx.record("latency", "ns", [1.0, 2.0], arm=ARMS[0], depth=depth)
    layout = layout_for(ctx.results)
    assert layout == Layout("made-up", "Made-up", "", (Column("latency", "latency"),), rows=("depth",))
    assert [row.dimensions["depth"] for row in headline(ctx.results)] == [1, 8]


def test_the_table_names_arms_ratios_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(two_arms(tmp_path))
    text = capsys.readouterr().out
    assert "tmem-lz4" in text
    assert "×0.25" in text
    assert "zram: failed: out of memory" in text


# ---- command line


def test_settings_are_name_and_value() -> None:
    assert command.parse_settings(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    for bad in ("a", "=1", "a b=1"):
        with pytest.raises(InvalidInput):
            command.parse_settings([bad])


def test_the_command_to_reproduce_uses_the_flags_of_its_bench() -> None:
    assert command.reproduce("swap", True, 3, {"disk_dir": "/d", "poll_us": "9"}) == (
        ["tmem", "bench", "swap", "--quick", "--seed", "3", "--disk-dir", "/d", "--set", "poll_us=9"]
    )
    assert command.reproduce("store", False, 1, {"contents": "random", "rounds": 2}) == (
        ["tmem", "bench", "store", "--seed", "1", "--set", "contents=random", "--rounds", "2"]
    )


def test_a_folder_that_cannot_be_written_is_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InvalidInput, match="cannot write"):
        command.check_writable(tmp_path / "file" / "out")
