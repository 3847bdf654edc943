# SPDX-License-Identifier: Apache-2.0
"""The plots of the store bench."""

from __future__ import annotations

from tmem_host.bench.results import Results
from tmem_host.report.draw import Plot, bar_plot
from tmem_host.report.registry import plot


def _store_plot(op: str, title: str) -> None:
    @plot("store")
    def one(results: Results) -> Plot | None:
        records = [r for r in results.find(op) if r.arm != "harness"]
        contents = list(dict.fromkeys(str(r.dimensions.get("contents", "")) for r in records))
        groups = []
        for content in contents:
            for r in records:
                if str(r.dimensions.get("contents", "")) == content:
                    state = r.dimensions.get("state", "")
                    label = f"{r.arm} ({state})" if state else r.arm
                    groups.append((f"{content} · {label}" if len(contents) > 1 else label, [r]))
        return bar_plot(results, op, title, "Median per page; whisker: 95 % interval. Shorter is better.", groups)


_store_plot("put", "Put: time per page")
_store_plot("get", "Get: time per page")


@plot("store")
def store_memory(results: Results) -> Plot | None:
    """What is held over what is compressed."""
    return bar_plot(
        results,
        "held-over-compressed",
        "Memory held over compressed bytes",
        "Store: bytes held, less 24 a page, over compressed bytes (goal 1.06). zram: memory used over compressed.",
        [
            (
                " · ".join(
                    [r.arm, *(str(r.dimensions[d]) for d in ("stored_mib", "contents", "state") if d in r.dimensions)]
                ),
                [r],
            )
            for r in results.find("held_over_compressed")
        ],
    )


@plot("store")
def store_resident(results: Results) -> Plot | None:
    """The cost of an operation by pages resident."""
    return bar_plot(
        results,
        "by-resident",
        "Cost of an operation by pages resident",
        "Random puts and gets of small pages; median per page, whisker: 95 % interval.",
        [
            (f"{op} · {r.dimensions.get('resident')} pages", [r])
            for op in ("put", "get")
            for r in results.find(f"{op}_by_resident")
        ],
    )


@plot("store")
def store_threads(results: Results) -> Plot | None:
    """Pages per second of one and of two threads."""
    return bar_plot(
        results,
        "threads",
        "Pages per second of one and of two threads",
        "Each thread has a VM of its own. The bare codec shares nothing: it shows what the CPUs allow.",
        [
            (f"{r.dimensions.get('op')} · {r.arm} · {r.dimensions.get('threads')}", [r])
            for op in ("put", "get")
            for r in results.find("throughput", op=op, part="threads")
        ],
    )
