# SPDX-License-Identifier: Apache-2.0
"""Whether caps, promises and weights hold while a whole fleet pages: the arm `quota` of the density bench."""

from __future__ import annotations

from typing import Any, Final

import lz4.block

from tmem_host._core import run_fleet
from tmem_host.bench import corpus, stats
from tmem_host.bench.channel_scratch import scratch
from tmem_host.bench.density_fleet import Fleet
from tmem_host.bench.runner import Arm, BenchContext, BenchError
from tmem_host.config import MIB
from tmem_host.core import Store, worst_case_bytes

#: plain, capped, weight-100, weight-300.
CLASSES: Final = 4
HEAVY: Final = 3
"""How many times the weight of the others the heavy caches have."""
#: Pages that a cache of weight 100 has room for; the heavy ones have three times as many, and all want more.
_LIGHT_PAGES: Final = 8
#: Pages that a capped VM may hold: less than it pages out.
_CAPPED_PAGES: Final = 20
#: Looks kept of each run.
_LOOKS: Final = 100
#: Bytes of a slot that are not the page's: its header, and what its size class rounds up (3 % at most).
_HEADER, _ROUNDING = 40, 1.03


def slot_bytes(pages: bytes) -> int:
    """What a page of this kind takes in the store, on average."""
    sizes = [min(len(lz4.block.compress(page, store_size=False)), 4096) for page in corpus.split(pages)[:256]]
    return round((sum(sizes) / len(sizes) + _HEADER) * _ROUNDING)


def turn(ctx: BenchContext, fleet: Fleet, arm: Arm, pages: bytes, seconds: float) -> None:
    """One run. Raises BenchError when a promise, a cap or a page did not hold."""
    vms = int(arm.dimensions["vms"])
    each, slot = vms // CLASSES, slot_bytes(pages)
    promise = worst_case_bytes(fleet.pages)
    cap = _CAPPED_PAGES * slot
    caches = each * _LIGHT_PAGES * (1 + HEAVY) * slot
    limit = max(each * (promise + cap) + caches, 8 * MIB)
    with scratch(2 * limit + 256 * MIB) as folder:
        store = Store(str(folder / "arena"), limit_bytes=limit)
        try:
            seen = run_fleet(
                [
                    ("plain", vms - 3 * each, True, promise, None, 100),
                    ("capped", each, True, 0, cap, 100),
                    ("weight-100", each, False, 0, None, 100),
                    ("weight-300", each, False, 0, None, 100 * HEAVY),
                ],
                pages,
                store=store,
                **fleet.arguments(),
                channel="sync",
                workers=1,
                cpus=int(arm.dimensions["cpus"]),
                time=seconds,
            )
        finally:
            store.close()
    _record(ctx, arm, {c["name"]: c for c in seen["classes"]}, cap)


def _record(ctx: BenchContext, arm: Arm, classes: dict[str, dict[str, Any]], cap: int) -> None:
    bad = sum(c["bad"] for c in classes.values())
    plain, capped = classes["plain"], classes["capped"]
    if bad:
        raise BenchError(f"{bad} pages came back different, or not at all")
    if plain["no_room"] or plain["missed"]:
        raise BenchError(f"a VM below its reservation was refused {plain['no_room']} times")
    if capped["over_cap_bytes"]:
        raise BenchError(f"a capped VM held {capped['over_cap_bytes']} bytes more than its cap of {cap}")

    def record(name: str, metric: str, unit: str, samples: list[float] | float) -> None:
        # `class` is a word of the language, so it cannot be written as a keyword argument.
        ctx.record(metric, unit, samples, arm=Arm(arm.name, {**arm.dimensions, "class": name}))

    for name, seen in classes.items():
        every = max(1, len(seen["held"]) // _LOOKS)
        record(name, "class_held", "bytes", seen["held"][::every])
        record(name, "evicted", "pages", seen["evicted"])
        record(name, "missed", "pages", seen["missed"])
    record("capped", "class_cap", "bytes", cap)
    record("capped", "over_cap", "bytes", capped["over_cap_bytes"])
    record("capped", "refused", "pages", capped["over_cap"])
    record("plain", "lost_pages", "pages", plain["bad"])
    light, heavy = (_settled(classes[name]["held"]) for name in ("weight-100", f"weight-{100 * HEAVY}"))
    if light > 0:
        record(f"weight-{100 * HEAVY}", "weight_ratio", "ratio", heavy / light)


def figures(ctx: BenchContext) -> None:
    """What held, in words. Nothing when the arm has no number: its reason says what did not hold."""
    ratios = ctx.results.find("weight_ratio")
    refused = ctx.results.find("refused")
    if not ratios or not refused:
        return
    held = stats.median(ratios[0].samples)
    ctx.note(
        f"quota, {ratios[0].dimensions['vms']} VMs: no capped VM was ever seen above its cap "
        f"({int(sum(refused[0].samples))} puts refused), no page of a plain VM was lost or refused, and a cache of "
        f"weight {100 * HEAVY} held {held:.2f} times what one of weight 100 held (by weight: {HEAVY})"
    )


def _settled(held: list[float]) -> float:
    """The median of the second half: what a class holds when the run has settled."""
    return stats.median(held[len(held) // 2 :])
