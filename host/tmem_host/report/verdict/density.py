# SPDX-License-Identifier: Apache-2.0
"""Claims about many VMs at once: H7. From the micro-VMs of the bench `density`."""

from __future__ import annotations

from tmem_host.bench.results import Record
from tmem_host.bench.stats import Interval
from tmem_host.report.verdict.mails import ANDREA_OCT31, SEED
from tmem_host.report.verdict.model import Decision, Figure, Hypothesis, Need
from tmem_host.report.verdict.resultset import Missing, ResultSet
from tmem_host.report.verdict.rules import decided, listed, outcome_of, side, times

NO_LESS = 0.95
ARMS = ("sync-store", "async-store", "async-disk", "sync-disk")


def waiting_costs_nothing(results: ResultSet) -> Decision:
    """H7. The dispute: does a vCPU that stays in the exit while its page is stored take CPU time from other VMs, which
    an asynchronous channel would have left to them? What differs between `sync-store` and `async-store` is that alone,
    so they decide, by the pages that all VMs together get through, at the largest number of VMs measured that is larger
    than the number of CPUs; the claim speaks of a thousand. At most 5 % less counts as no less. By number of VMs, and
    against paging to disk as such VMs do it today, it is told.
    """
    by_count = _by_count(results, "throughput")
    shared = [n for n in sorted(by_count) if {"sync-store", "async-store"} <= by_count[n].keys()]
    crowded = [n for n in shared if _overcommit(by_count[n]["sync-store"]) > 1]
    if not crowded:
        raise Missing(
            "there is no density throughput of sync-store and async-store with more VMs than CPUs: "
            "run `tmem bench density`"
        )
    ratios: dict[int, Interval] = {}
    figures: list[Figure] = []
    for n in reversed(crowded):
        arms = by_count[n]
        ratios[n] = results.ratio(arms["sync-store"], arms["async-store"])
        figures.append(times(f"pages/s, synchronous over asynchronous store, {n} VMs", ratios[n]))
        figures += [
            times(f"pages/s, synchronous store over {other}, {n} VMs", results.ratio(arms["sync-store"], arms[other]))
            for other in ("async-disk", "sync-disk")
            if other in arms
        ]
    largest = crowded[-1]
    figures += _work(results, largest)
    cpus = by_count[largest]["sync-store"].dimensions.get("cpus", "?")
    said = (
        f"with {results.kvm('density')}, {largest} VMs on {cpus} CPUs get {figures[0].text} the pages per second "
        "through the synchronous exit that they get through ioeventfd and worker threads"
    )
    others = [f"{n} VMs {times('', ratios[n]).text}" for n in crowded[:-1]]
    said += f" ({listed(others)})" if others else ""
    if disk := next((f for f in figures if "async-disk" in f.label and f.label.endswith(f" {largest} VMs")), None):
        said += f", and {disk.text} those through a disk, asynchronously"
    outcome = outcome_of(side(ratios[largest], NO_LESS), below="refuted", above="supported")
    return decided(outcome, said, figures, "0.95×")


def _work(results: ResultSet, vms: int) -> list[Figure]:
    """What the guests compute beside, and the CPU time of a page."""
    found = []
    for metric, label in (("work_rate", "guests' own work"), ("page_cpu", "CPU time of a page")):
        arms = _by_count(results, metric).get(vms, {})
        if {"sync-store", "async-store"} <= arms.keys():
            ratio = results.ratio(arms["sync-store"], arms["async-store"])
            found.append(times(f"{label}, synchronous over asynchronous store, {vms} VMs", ratio))
    return found


def _by_count(results: ResultSet, metric: str) -> dict[int, dict[str, Record]]:
    """Records by number of VMs and arm, all on as many CPUs: the most that were measured."""
    records = [r for r in results.all("density", metric) if r.arm in ARMS and "vms" in r.dimensions]
    most = max((_cpus(r) for r in records), default=1.0)
    found: dict[int, dict[str, Record]] = {}
    for record in records:
        if _cpus(record) == most:
            found.setdefault(int(record.dimensions["vms"]), {})[record.arm] = record
    return found


def _overcommit(record: Record) -> float:
    """VMs for each CPU."""
    return float(record.dimensions.get("vms", 0)) / _cpus(record)


def _cpus(record: Record) -> float:
    return max(1.0, float(record.dimensions.get("cpus", 1)))


HYPOTHESES = (
    Hypothesis(
        "H7",
        "A synchronous exit is no loss with many VMs: it lets the host run another of the thousand.",
        "Dan Magenheimer, against Andrea Arcangeli: the CPU has another 1000 VMs to schedule",
        f"{SEED}; {ANDREA_OCT31}",
        "N micro-VMs on few CPUs page through the synchronous exit and through ioeventfd with worker threads, to the "
        "same store, and to a disk file; pages per second of all together.",
        "Throughput of sync-store over async-store at the largest N that is larger than the number of CPUs. Supported: "
        "wholly above 0.95. Refuted: wholly at most 0.95.",
        (
            Need("density", "throughput", {"arm": "sync-store"}),
            Need("density", "throughput", {"arm": "async-store"}),
        ),
        waiting_costs_nothing,
    ),
)
