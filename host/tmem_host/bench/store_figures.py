# SPDX-License-Identifier: Apache-2.0
"""The store's figures (design section 11): ratios taken round by round, both sides measured in the same round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results, Scalar
from tmem_host.bench.runner import Arm, BenchContext
from tmem_host.bench.store_scale import SMALL

PUT_GOAL, GET_GOAL, ZRAM_GOAL = 1.25, 1.3, 1.0
MEMORY_GOAL, RESIDENT_GOAL = 1.06, 1.3
#: Seconds for one million pages.
RECOVERY_GOAL = 1.0


@dataclass(frozen=True)
class Figure:
    """A ratio that is to be at most `goal`: a metric of the store over the same metric of another arm."""

    metric: str
    against: str
    goal: float
    #: Dimensions of our record besides the contents.
    where: Mapping[str, Scalar]
    #: Dimensions of the other's.
    other: Mapping[str, Scalar]


def _figures() -> list[Figure]:
    found = []
    for state in ("fresh", "overwrite", "first"):
        ours = {"state": state}
        found.append(Figure("put", "bare-lz4", PUT_GOAL, ours, {}))
        found.append(Figure("put", "bare-lz4-reused", PUT_GOAL, ours, {}))
        found.append(Figure("put", "zram-lz4", ZRAM_GOAL, ours, ours))
    found.append(Figure("get", "bare-lz4", GET_GOAL, {}, {}))
    found.append(Figure("get", "zram-lz4", ZRAM_GOAL, {}, {}))
    return found


def record_figures(ctx: BenchContext, kinds: list[str]) -> None:
    """Adds the ratios as records, and a note for each goal."""
    for figure in _figures():
        for kind in kinds:
            samples = cost_ratios(ctx.results, figure, kind)
            if not samples:
                continue
            metric = f"{figure.metric}_over_{figure.against.replace('-', '_')}"
            ctx.record(
                metric,
                "ratio",
                samples,
                arm=Arm("tmem-lz4"),
                better="lower",
                contents=kind,
                goal=figure.goal,
                **figure.where,
            )
            state = figure.where.get("state")
            name = f"{figure.metric}{f' ({state})' if state else ''}, {kind}: × {figure.against}"
            if figure.against != "bare-lz4-reused":
                ctx.note(verdict(name, stats.median(samples), figure.goal))
    _resident(ctx)
    for record in ctx.results.find("held_over_compressed", part="memory", codec="lz4"):
        where = f"{record.dimensions['stored_mib']} MiB {record.dimensions['contents']}, {record.dimensions['state']}"
        ctx.note(
            verdict(f"held less 24 bytes a page over compressed, {where}", stats.median(record.samples), MEMORY_GOAL)
        )
    for record in ctx.results.find("recovery", part="recovery"):
        pages = int(record.dimensions["resident"])
        name = f"seconds to recover {pages} {record.dimensions['contents']} pages"
        ctx.note(verdict(name, stats.median(record.samples), RECOVERY_GOAL * pages / 1_000_000))


def cost_ratios(results: Results, figure: Figure, kind: str) -> list[float]:
    """Ratio of the medians of each round."""
    ours = results.find(figure.metric, arm="tmem-lz4", part="cost", contents=kind, **figure.where)
    theirs = results.find(figure.metric, arm=figure.against, part="cost", contents=kind, **figure.other)
    if not ours or not theirs:
        return []
    return [a / b for a, b in zip(round_medians(ours[0]), round_medians(theirs[0]), strict=False) if b > 0]


def round_medians(record: Record) -> list[float]:
    """The median of each round's samples."""
    found, start = [], 0
    for size in record.round_sizes:
        found.append(stats.median(record.samples[start : start + size]))
        start += size
    return found


def _resident(ctx: BenchContext) -> None:
    for op in ("put", "get"):
        records = {int(r.dimensions["resident"]): r for r in ctx.results.find(f"{op}_by_resident")}
        large = max(records, default=0)
        if SMALL not in records or large <= SMALL:
            continue
        samples = [
            b / a for a, b in zip(round_medians(records[SMALL]), round_medians(records[large]), strict=False) if a > 0
        ]
        ctx.record(
            f"{op}_cost_growth",
            "ratio",
            samples,
            arm=Arm("tmem-lz4"),
            better="lower",
            resident=large,
            goal=RESIDENT_GOAL,
        )
        ctx.note(verdict(f"{op} at {large} pages over {op} at {SMALL}", stats.median(samples), RESIDENT_GOAL))


def verdict(name: str, value: float, goal: float) -> str:
    """A figure in words."""
    return f"{name}: {value:.3g}; goal at most {goal:g}: {'reached' if value <= goal else 'not reached'}"
