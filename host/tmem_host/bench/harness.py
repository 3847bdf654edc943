# SPDX-License-Identifier: Apache-2.0
"""What the harness itself costs: measured in every run and shown beside the figures it could distort."""

from __future__ import annotations

import time

from tmem_host.bench.runner import Arm, BenchContext

HARNESS = Arm("harness")
"""Arm of the harness's own figures; tables and plots leave it out of comparisons."""


def clock_cost(samples: int = 2000) -> list[float]:
    """Nanoseconds between two readings of the clock with nothing between them, each the mean of 16 in a row."""
    read = time.perf_counter_ns
    costs = []
    for _ in range(samples):
        start = read()
        read(), read(), read(), read(), read(), read(), read(), read()
        read(), read(), read(), read(), read(), read(), read()
        costs.append((read() - start) / 16)
    return costs


def clock_step(tries: int = 2000) -> float:
    """Smallest step of the clock that was seen, in nanoseconds."""
    read = time.perf_counter_ns
    best = float("inf")
    for _ in range(tries):
        start = now = read()
        while now == start:
            now = read()
        best = min(best, now - start)
    return best


def record_harness(ctx: BenchContext) -> None:
    """Records the cost of the host's clock as this process sees it."""
    ctx.record("clock_cost", "ns", clock_cost(), arm=HARNESS, better="lower", where="host")
    ctx.record("clock_step", "ns", clock_step(), arm=HARNESS, better="lower", where="host")
