# SPDX-License-Identifier: Apache-2.0
"""Made-up records for the rules of the verdict: each figure has just the median and spread a test asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tmem_host.bench.results import Record, Results, Scalar
from tmem_host.report.verdict import Judged, evaluate

FLAVOUR = "software (PVM or alike: /dev/kvm works, the CPU shows neither vmx nor svm)"
ROUNDS = 5
PATHS = {
    "bare": "none",
    "loop": "none",
    "cpuid": "kernel",
    "kernel-device": "kernel",
    "ioeventfd-post": "kernel",
    "virtqueue-submit": "kernel",
    "pio": "user",
    "ioeventfd-sleep": "thread",
    "irqfd-sleep": "thread",
}
PARAMETERS = {"delay": "delay_us", "put-batch": "n", "get-batch": "n", "device": "latency_us"}


def record(
    bench: str,
    metric: str,
    centre: float,
    unit: str = "ns",
    *,
    wobble: float = 0.001,
    rounds: int = ROUNDS,
    **labels: Any,
) -> Record:
    """A record with one sample per round: `centre` in the middle, the others up to `wobble` (a share) beside it.

    Two records with opposite wobbles drift against each other from round to round, so the interval of their ratio is
    wide; with equal ones it is a point.
    """
    half = max(1, rounds // 2)
    samples = [centre * (1 + wobble * (i - rounds // 2) / half) for i in range(rounds)]
    return Record(bench=bench, metric=metric, unit=unit, dimensions=labels, samples=samples, round_sizes=[1] * rounds)


def run(
    bench: str,
    records: Sequence[Record],
    *,
    host: Mapping[str, Scalar] | None = None,
    accelerator: str = "",
    quick: bool = False,
    day: int = 1,
) -> Results:
    """One run with these records."""
    made = Results(
        bench=bench,
        started=datetime(2026, 11, day, 12, tzinfo=UTC),
        complete=True,
        command=["tmem", "bench", bench],
        quick=quick,
        seed=1,
        records=list(records),
    )
    made.properties.host = {"cpu": "Made-Up Processor", "kvm_flavour": FLAVOUR, **(host or {})}
    if accelerator:
        made.properties.guest = {"accelerator": accelerator, "vcpus": 1}
    return made


def trip(arm: str, ns: float, wobble: float = 0.001, *, metric: str = "round_trip", unit: str = "ns") -> Record:
    """A record of the exit bench, its dimensions taken from the arm's name: 'pio+put-batch-32'."""
    kind, _, work = arm.partition("+")
    labels: dict[str, Any] = {"arm": arm, "kind": kind, "path": PATHS[kind], "bits": 0 if kind == "bare" else 64}
    name, _, value = work.rpartition("-")
    if name in PARAMETERS:
        labels[PARAMETERS[name]] = int(value)
        work = name
    return record("exit", metric, ns, unit, wobble=wobble, **labels, work=work or "nothing")


def exit_run(trips: Mapping[str, float], *more: Record, wobbles: Mapping[str, float] | None = None) -> Results:
    """A run of the exit bench: ns by arm, some of them unsteady."""
    return run("exit", [trip(arm, ns, (wobbles or {}).get(arm, 0.001)) for arm, ns in trips.items()] + list(more))


def verdict_on(name: str, *results: Results) -> Judged:
    """What is made of one hypothesis."""
    return next(j for j in evaluate(results) if j.hypothesis.id == name)
