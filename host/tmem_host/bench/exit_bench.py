# SPDX-License-Identifier: Apache-2.0
"""`tmem bench exit`: what one exit costs, by kind and by what is done in it.

The guests are micro-VMs of a few dozen bytes of machine code on the real /dev/kvm. A sample is the time from one
request reaching the host to the next: entry, the guest's few instructions, exit, and the work. The work alone, in a
host thread without any guest, is kind `bare`: the difference is what the exit adds. Arms are listed in `exit_arms`.

A run ends when the medians of all arms but the disk's are known well enough, or when its time is up. Every turn has a
deadline: a kind of exit that never comes back on this host is skipped with that reason.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tmem_host._core import CoreError, ExitRig
from tmem_host.bench import exit_reference, exit_torn, exit_vmexit, micro_vms, stats
from tmem_host.bench.channel_scratch import scratch
from tmem_host.bench.disk_folder import cannot_hold, disk_file
from tmem_host.bench.exit_arms import COPIED, DISK, PAIR, Turn, arm_of, turns
from tmem_host.bench.harness import HARNESS
from tmem_host.bench.properties import filesystem_of
from tmem_host.bench.runner import Arm, ArmSkipped, BenchContext, BenchError, bench
from tmem_host.bench.store_figures import round_medians, verdict
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.core import Store
from tmem_host.errors import TmemError

REFERENCE: Final = Arm("reference-c", {"kind": "pio16", "path": "user", "bits": 16, "work": "nothing"})
#: Most that our loop may take over the minimal one in C (design section 11).
REFERENCE_GOAL: Final = 1.05
#: Fewest rounds before a run may end because its figures are good enough.
_MIN_ROUNDS: Final = 5


@dataclass(frozen=True)
class Plan:
    """The bench as configured."""

    rounds: int
    samples: int
    warmup: int
    turn_seconds: float
    seconds: float
    precision: float
    """Half the width of a median's 95 % interval over the median, at which an arm is known well enough."""
    pages: int
    span: int
    disk_pages: int
    contents: str
    torn_seconds: float
    disk_dir: Path
    arms: frozenset[str]
    vmexit: Path | None

    @classmethod
    def of(cls, ctx: BenchContext) -> Plan:
        """Out of the context's options. Raises BenchError or InvalidInput."""
        vmexit = str(ctx.option("vmexit", ""))
        plan = cls(
            rounds=ctx.option("rounds", 40, 20),
            samples=ctx.option("samples", 300, 160),
            warmup=ctx.option("warmup", 30),
            turn_seconds=ctx.option("turn_seconds", 0.25, 0.1),
            seconds=float(ctx.option("seconds", 900.0, 140.0)),
            precision=ctx.option("precision", 0.02),
            pages=ctx.option("pages", 2048),
            span=ctx.option("span", 4096),
            disk_pages=ctx.option("disk_pages", 8192, 2048),
            contents=ctx.option("contents", "corpus"),
            torn_seconds=ctx.option("torn_seconds", 1.0, 0.3),
            disk_dir=Path(ctx.option("disk_dir", str(ctx.out))),
            arms=frozenset(name for name in str(ctx.option("arms", "")).split(",") if name),
            vmexit=Path(vmexit) if vmexit else None,
        )
        if plan.vmexit is not None:
            exit_vmexit.check(plan.vmexit)
        if min(plan.samples, plan.pages, plan.span, plan.disk_pages) < 1:
            raise BenchError("samples, pages, span and disk_pages must be at least 1")
        return plan


@bench("exit")
async def run(ctx: BenchContext) -> None:
    """Runs all arms in rounds. Raises TmemError when nothing can be run at all."""
    plan = Plan.of(ctx)
    pages = await micro_vms.contents(ctx, plan.contents, plan.pages)
    rig = ExitRig(pages)
    _record_clock(ctx, rig)
    cpus = rig.cpus()
    ctx.configure(
        rounds=plan.rounds,
        samples=plan.samples,
        warmup=plan.warmup,
        turn_seconds=plan.turn_seconds,
        precision=plan.precision,
        pages=plan.pages,
        store_pages=plan.span,
        disk_pages=plan.disk_pages,
        disk_dir=str(plan.disk_dir),
        disk_filesystem=filesystem_of(plan.disk_dir),
        vcpu_cpu=cpus[0],
        server_cpu=cpus[1],
    )
    with _store(plan) as (store, lz4, zstd), _disk(ctx, plan, rig) as has_disk:
        rig.set_store(store, lz4, zstd)
        wanted = _wanted(ctx, plan, rig, has_disk)
        by_name = {turn.name: turn for turn in wanted}
        arms = [arm_of(turn) for turn in wanted]
        if rig.no_kvm() is None and _chosen(plan, REFERENCE.name):
            arms.append(REFERENCE)
        arms += [
            Arm(f"torn-{codec}", {"codec": codec, "work": "torn", "kind": "bare", "path": "none"})
            for codec in exit_torn.CODECS
            if _chosen(plan, f"torn-{codec}")
        ]
        if not arms:
            raise BenchError("no arm is left to run", f"choose from: {', '.join(turn.name for turn in turns())}")

        async def one(arm: Arm, index: int) -> None:
            if arm is REFERENCE:
                samples = await exit_reference.turn(
                    float(rig.calibration()["hz"]), warmup=plan.warmup, samples=plan.samples, cpu=cpus[0]
                )
                ctx.record("round_trip", "ns", _rounded(samples), arm=arm, better="lower")
            elif arm.name in by_name:
                _turn(ctx, plan, rig, arm, by_name[arm.name])
            else:
                await _torn(ctx, plan, arm, pages[: 256 * PAGE_SIZE], index)

        await ctx.interleave(
            arms,
            rounds=plan.rounds,
            run=one,
            deadline=time.monotonic() + plan.seconds,
            enough=lambda rounds: rounds >= _MIN_ROUNDS and not unsettled(ctx, plan.precision),
        )
    _figures(ctx, plan)
    if plan.vmexit is not None:
        await _vmexit(ctx, plan.vmexit, float(rig.calibration()["hz"]))


def _record_clock(ctx: BenchContext, rig: ExitRig) -> None:
    """What the clock is worth, beside the figures it could distort."""
    clock = rig.calibration()
    ctx.record("tsc_read", "ns", clock["read_ns"], arm=HARNESS, better="lower")
    ctx.record("loop_overhead", "ns", clock["loop_ns"], arm=HARNESS, better="lower")
    ctx.record("tsc_drift", "ppm", clock["drift_ppm"], arm=HARNESS)
    ctx.record("tsc_frequency", "Hz", float(clock["hz"]), arm=HARNESS)
    if clock["skew_ns"] is not None:
        for bound, value in zip(("at least", "at most"), clock["skew_ns"], strict=True):
            ctx.record("tsc_skew", "ns", float(value), arm=HARNESS, between="two CPUs", bound=bound)
    ctx.host(tsc_invariant=bool(clock["invariant"]), tsc_mhz=round(float(clock["hz"]) / 1e6, 3))
    if not clock["invariant"]:
        ctx.note("The CPU does not promise a constant rate of its time stamp counter: see the drift measured.")


@contextlib.contextmanager
def _store(plan: Plan) -> Iterator[tuple[Store, int, int]]:
    """A store of its own with two pools of `span` pages, lz4 and zstd."""
    need = 2 * 2 * plan.span * PAGE_SIZE + 256 * MIB
    with scratch(need) as folder:
        store = Store(str(folder / "arena"), limit_bytes=need)
        try:
            store.vm_create("exit")
            pools = [
                store.pool_create("exit", persistent=True, pages=plan.span, codec=codec) for codec in ("lz4", "zstd")
            ]
            yield store, pools[0], pools[1]
        finally:
            store.close()


@contextlib.contextmanager
def _disk(ctx: BenchContext, plan: Plan, rig: ExitRig) -> Iterator[bool]:
    """Gives the rig a file on a disk. False: there is none, and the report says why."""
    if reason := cannot_hold(plan.disk_dir, 2 * plan.disk_pages * PAGE_SIZE, direct=True):
        ctx.skip(f"no disk arms: {reason}", kind="disk")
        yield False
        return
    with disk_file(plan.disk_dir) as path:
        ctx.progress(f"writing {plan.disk_pages} pages to {path.parent}")
        try:
            rig.set_disk(str(path), plan.disk_pages)
        except CoreError as error:
            ctx.fail(f"no disk arms: {error}", kind="disk")
            yield False
            return
        yield True


def _chosen(plan: Plan, name: str) -> bool:
    return not plan.arms or name in plan.arms


def _wanted(ctx: BenchContext, plan: Plan, rig: ExitRig, has_disk: bool) -> list[Turn]:
    """The turns that this host may be able to run. What all need and is missing is said once, not for each."""
    chosen = [turn for turn in turns() if _chosen(plan, turn.name)]
    missing = set() if has_disk else {"disk"}
    if reason := rig.no_kvm():
        missing.add("kvm")
        count = sum("kvm" in turn.needs for turn in chosen)
        ctx.skip(f"{reason}. {count} arms need KVM; the work alone is measured all the same", kind="kvm")
    return [turn for turn in chosen if not turn.needs & missing]


def _turn(ctx: BenchContext, plan: Plan, rig: ExitRig, arm: Arm, turn: Turn) -> None:
    with micro_vms.arm_errors():
        done = rig.turn(
            turn.kind,
            turn.work,
            n=turn.n,
            # Each page of the pool can be flushed once.
            samples=min(plan.samples, plan.span - plan.warmup - 1) if turn.work == "flush" else plan.samples,
            warmup=plan.warmup,
            seconds=plan.turn_seconds,
        )
    samples, exits = done["ns"], 1
    if turn.work == PAIR:
        samples, exits = [put + get for put, get in zip(samples[::2], samples[1::2], strict=False)], 2
    ctx.record("round_trip", "ns", _rounded(samples), arm=arm, better="lower")
    ctx.record("cpu", "ns", round(exits * float(done["cpu_ns"]), 1), arm=arm, better="lower")
    if done["backlog"] is not None:
        ctx.record("backlog", "pages", int(done["backlog"]), arm=arm, better="lower")
    if turn.work in COPIED:
        ctx.record("bytes_copied", "bytes", COPIED[turn.work], arm=arm, better="lower")


def _rounded(nanoseconds: list[float]) -> list[float]:
    """To a tenth: the counter itself is no finer, and the results stay small."""
    return [round(ns, 1) for ns in nanoseconds]


async def _torn(ctx: BenchContext, plan: Plan, arm: Arm, pages: bytes, index: int) -> None:
    seen = await exit_torn.trial(
        str(arm.dimensions["codec"]), pages, seconds=plan.torn_seconds, seed=1000 * ctx.seed + index
    )
    ctx.record("torn_crashes", "crashes", seen.crashes, arm=arm, better="lower")
    if not seen.crashes:
        ctx.record("torn_pages", "pages", seen.pages, arm=arm)
        ctx.record("torn_undecodable", "pages", seen.undecodable, arm=arm, better="lower")
        ctx.record("torn_overruns", "pages", seen.overruns, arm=arm, better="lower")


def unsettled(ctx: BenchContext, precision: float) -> list[str]:
    """Arms whose median is not known to within `precision` yet. The disk's are left out: nobody can wait for them."""
    found = []
    for record in ctx.results.find("round_trip"):
        if record.dimensions.get("work") in DISK or ctx.has_failed(Arm(record.arm)):
            continue
        spread = stats.bootstrap_quantile(round_medians(record), 0.5, resamples=400, seed=ctx.seed)
        if spread.value > 0 and (spread.high - spread.low) / 2 > precision * spread.value:
            found.append(record.arm)
    return found


def _figures(ctx: BenchContext, plan: Plan) -> None:
    """Our loop over the reference's, and which medians are less certain than was asked for."""
    ours = ctx.results.find("round_trip", arm="pio16")
    theirs = ctx.results.find("round_trip", arm=REFERENCE.name)
    if ours and theirs:
        samples = [a / b for a, b in zip(round_medians(ours[0]), round_medians(theirs[0]), strict=False)]
        ctx.record("over_reference", "ratio", samples, arm=arm_of(Turn("pio16")), better="lower", goal=REFERENCE_GOAL)
        ctx.note(verdict("an exit to user space over the minimal loop in C", stats.median(samples), REFERENCE_GOAL))
    if left := unsettled(ctx, plan.precision):
        shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
        ctx.note(
            f"{len(left)} medians are known less well than to ±{100 * plan.precision:g} %, time was up before: {shown}."
        )


async def _vmexit(ctx: BenchContext, flat: Path, hz: float) -> None:
    arm = Arm("kvm-unit-tests", {"kind": "vmexit", "path": "user", "bits": 64, "work": "nothing"})
    ctx.progress("kvm-unit-tests' vmexit")
    try:
        found, missing = await exit_vmexit.run(flat)
    except ArmSkipped as skipped:
        ctx.skip(str(skipped), arm)
        return
    except TmemError as error:
        ctx.fail(str(error), arm)
        return
    for test, cycles in found.items():
        ctx.record("cycles", "cycles", cycles, arm=arm, better="lower", test=test, counterpart=exit_vmexit.TESTS[test])
        ctx.record("cycles_ns", "ns", cycles * 1e9 / hz, arm=arm, better="lower", test=test)
    for test, reason in missing.items():
        # Not the arm: its other tests keep their figures.
        ctx.skip(f"kvm-unit-tests' {test}: {reason}", kind="vmexit", test=test)
    ours = {r.dimensions["kind"]: stats.median(r.samples) for r in ctx.results.find("round_trip", work="nothing")}
    beside = [
        f"{test} {cycles / hz * 1e6:.1f} µs ({kind} here {ours[kind] / 1000:.1f})"
        for test, cycles in found.items()
        if (kind := exit_vmexit.TESTS[test]) in ours
    ]
    ctx.note(f"kvm-unit-tests' vmexit, through QEMU: {', '.join(beside)}")
