# SPDX-License-Identifier: Apache-2.0
"""The channel's figures (design section 11): ratios to qemu-storage-daemon with a file on tmpfs, round by round."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tmem_host.bench import stats
from tmem_host.bench.channel_backends import COMPRESSIBLE, SAME_FILLED
from tmem_host.bench.results import Results, Scalar
from tmem_host.bench.runner import Arm, BenchContext

BASELINES = ("qsd-tmpfs", "qsd-tmpfs-native", "qsd-tmpfs-iothread")
"""The daemon's defaults, then what makes it faster: the goal is against the first, honesty wants the others too."""


@dataclass(frozen=True)
class Figure:
    """One goal: the ratio of a metric to the baseline's."""

    name: str
    metric: str
    #: How the arm's name ends.
    wait: str
    where: Mapping[str, Scalar]
    goal: float
    #: operator.le: at most; operator.ge: at least.
    reached: Callable[[float, float], bool]

    @property
    def bound(self) -> str:
        """'at most' or 'at least'."""
        return "at most" if self.reached is operator.le else "at least"


def _both(name: str, metric: str, wait: str, depth: int, goal: float, reached: Callable[..., bool]) -> list[Figure]:
    """The figure for reads and for writes; qemu-img cannot write what compresses, libblkio can."""
    write = "libblkio-event" if depth > 1 else "qemu-img"
    contents = COMPRESSIBLE if depth > 1 else SAME_FILLED
    read: dict[str, Scalar] = {"client": "qemu-img", "op": "read", "depth": depth, "contents": COMPRESSIBLE}
    return [
        Figure(f"{name}, read", metric, wait, read, goal, reached),
        Figure(
            f"{name}, write",
            metric,
            wait,
            {"client": write, "op": "write", "depth": depth, "contents": contents},
            goal,
            reached,
        ),
    ]


FIGURES = [
    *_both("depth 1, polling", "latency", "poll", 1, 0.2, operator.le),
    *_both("depth 1, sleeping", "latency", "event", 1, 1.0, operator.le),
    *_both("depth 32, polling", "throughput", "poll", 32, 5.0, operator.ge),
    *_both("depth 32, sleeping", "throughput", "event", 32, 5.0, operator.ge),
]


def record_figures(ctx: BenchContext) -> None:
    """Adds a `against_*` record for each figure and tmem arm, and a note for each figure of the default codec."""
    for figure in FIGURES:
        for arm in ctx.results.arms():
            if not (arm.startswith("tmem-") and arm.endswith(f"-{figure.wait}")):
                continue
            for baseline in BASELINES:
                samples = ratios(ctx.results, figure, arm, baseline)
                if not samples:
                    continue
                metric = "against_" + baseline.replace("-", "_")
                better = "lower" if figure.reached is operator.le else "higher"
                ctx.record(metric, "ratio", samples, arm=Arm(arm), better=better, figure=figure.name, goal=figure.goal)  # type: ignore[arg-type]
                if arm.startswith("tmem-lz4-"):
                    ctx.note(sentence(figure, baseline, stats.median(samples)))


def ratios(results: Results, figure: Figure, arm: str, baseline: str) -> list[float]:
    """The figure in each round: the arm's sample over the baseline's of the same round."""
    ours = results.find(figure.metric, arm=arm, **figure.where)
    theirs = results.find(figure.metric, arm=baseline, **figure.where)
    if not ours or not theirs:
        return []
    return [a / b for a, b in zip(ours[0].samples, theirs[0].samples, strict=False) if b > 0]


def sentence(figure: Figure, baseline: str, value: float) -> str:
    """The figure in words."""
    if baseline != BASELINES[0]:
        return f"{figure.name}: {value:.2f} × {baseline}"
    verdict = "reached" if figure.reached(value, figure.goal) else "not reached"
    return f"{figure.name}: {value:.2f} × {baseline}; goal {figure.bound} {figure.goal:g}: {verdict}"
