# SPDX-License-Identifier: Apache-2.0
"""`tmem bench store`: what keeping a page costs over compressing it, and what it holds.

Parts, each interleaved on its own, all on the same pages: the cost of put, get and flush against the bare codec and
against the kernel's zram (`store_ops`); memory held over compressed bytes (`store_memory`); the cost with millions of
pages resident and with a second thread (`store_scale`); compound pages against single ones (`store_units`); recovery
after `kill -9` (`store_recovery`). `--set parts=cost,memory,resident,threads,units,recovery` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tmem_host.bench import store_memory, store_ops, store_pages, store_recovery, store_scale, store_units
from tmem_host.bench.channel_scratch import scratch
from tmem_host.bench.comparators_load import note_load
from tmem_host.bench.harness import record_harness
from tmem_host.bench.runner import Arm, BenchContext, BenchError, bench
from tmem_host.bench.store_figures import record_figures
from tmem_host.config import MIB

PARTS = ["cost", "memory", "resident", "threads", "units", "recovery"]


@dataclass(frozen=True)
class Plan:
    """The bench as configured."""

    parts: list[str]
    kinds: list[str]
    pages: int
    rounds: int
    sizes_mib: list[int]
    resident: int
    recovery_pages: int
    arms: list[str]


@bench("store")
async def run(ctx: BenchContext) -> None:
    """Runs the parts. Raises TmemError when nothing can be run at all."""
    plan = _plan(ctx)
    record_harness(ctx)
    await note_load(ctx, "start")
    with scratch(512 * MIB) as folder:
        if "cost" in plan.parts:
            await _cost(ctx, plan, folder)
        if "memory" in plan.parts:
            await _memory(ctx, plan, folder)
        if "resident" in plan.parts:
            large = store_scale.resident_pages(ctx, plan.resident)
            await store_scale.cost_by_resident(ctx, folder, large, 3 * plan.rounds)
        if "threads" in plan.parts:
            await store_scale.scaling(ctx, folder, plan.kinds[0], plan.pages, plan.rounds)
        if "units" in plan.parts:
            await _units(ctx, plan, folder)
        if "recovery" in plan.parts:
            await _recovery(ctx, plan, folder)
    await note_load(ctx, "end")
    record_figures(ctx, plan.kinds)


def _plan(ctx: BenchContext) -> Plan:
    plan = Plan(
        parts=ctx.option("parts", PARTS),
        kinds=ctx.option(
            "contents",
            [store_pages.SYNTHETIC, store_pages.CORPUS, store_pages.SAME_FILLED, store_pages.RANDOM],
            [store_pages.SYNTHETIC, store_pages.CORPUS],
        ),
        pages=ctx.option("pages", 16384, 8192),
        rounds=ctx.option("rounds", 9, 5),
        sizes_mib=ctx.option("sizes_mib", [64, 256, 1024], [64, 256]),
        resident=ctx.option("resident", 10_000_000, 1_000_000),
        recovery_pages=ctx.option("recovery_pages", 1_000_000, 200_000),
        arms=[name for name in str(ctx.option("arms", "")).split(",") if name],
    )
    if unknown := sorted(set(plan.parts) - set(PARTS)):
        raise BenchError(f"there are no parts called {', '.join(unknown)}", f"choose from: {', '.join(PARTS)}")
    for kind in list(plan.kinds):
        if reason := store_pages.available(kind, ctx.seed):
            ctx.skip(reason, contents=kind)
            plan.kinds.remove(kind)
    if plan.pages < store_ops.BATCH:
        raise BenchError(f"{plan.pages} pages are less than a batch", f"give at least {store_ops.BATCH}")
    ctx.configure(
        parts=list(plan.parts),
        contents=list(plan.kinds),
        pages=plan.pages,
        batch=store_ops.BATCH,
        rounds=plan.rounds,
        sizes_mib=list(plan.sizes_mib),
        resident=plan.resident,
        recovery_pages=plan.recovery_pages,
    )
    return plan


async def _cost(ctx: BenchContext, plan: Plan, folder: Path) -> None:
    contents = [store_ops.Contents(kind, store_pages.contents(kind, plan.pages, ctx.seed)) for kind in plan.kinds]
    arms = [arm for arm in store_ops.arms(ctx.quick) if not plan.arms or arm.name in plan.arms]
    if not arms:
        known = ", ".join(arm.name for arm in store_ops.arms(ctx.quick))
        raise BenchError(f"no arm is called {', '.join(plan.arms)}", f"choose from: {known}")

    async def one(arm: Arm, _index: int) -> None:
        await store_ops.turn(ctx, arm, contents, folder)

    await ctx.interleave(arms, rounds=plan.rounds, run=one)


async def _memory(ctx: BenchContext, plan: Plan, folder: Path) -> None:
    kinds = [kind for kind in plan.kinds if kind in (store_pages.SYNTHETIC, store_pages.CORPUS)]

    async def one(arm: Arm, _index: int) -> None:
        await store_memory.turn(ctx, arm, folder, kinds)

    await ctx.interleave(store_memory.arms(ctx.quick, plan.sizes_mib), rounds=1, run=one)


async def _units(ctx: BenchContext, plan: Plan, folder: Path) -> None:
    kinds = store_units.contents(ctx, plan.kinds)

    async def one(arm: Arm, _index: int) -> None:
        await store_units.turn(ctx, arm, kinds, folder)

    if kinds:
        await ctx.interleave(store_units.arms(), rounds=plan.rounds, run=one)


async def _recovery(ctx: BenchContext, plan: Plan, folder: Path) -> None:
    async def one(arm: Arm, _index: int) -> None:
        await store_recovery.turn(ctx, arm, folder)

    await ctx.interleave(store_recovery.arms([plan.recovery_pages]), rounds=1 if ctx.quick else 3, run=one)
