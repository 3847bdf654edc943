# SPDX-License-Identifier: Apache-2.0
"""Claims whose experiments no bench makes yet: H11, H18 and H19. The rules stand before the figures do."""

from __future__ import annotations

from tmem_host.report.verdict.mails import ANDREA_OCT31, DAN_OCT31, SEED
from tmem_host.report.verdict.model import Decision, Figure, Hypothesis, Need
from tmem_host.report.verdict.resultset import ResultSet
from tmem_host.report.verdict.rules import Side, decided, outcome_of, percent, side

RARE = 0.02
"""Dan's own figure: normal workloads spend no more than 2 % of CPU in tmem with compression (tmem-internals)."""
IDLE = 0.1

CPU_SHARE = Need("workload", "tmem_cpu_share", {}, "no bench runs real workloads yet")
VIOLATIONS = Need("conformance", "violations", {}, "no bench plays old guests against new hosts yet")
RUNNABLE = Need("swap", "runnable_share", {}, "no guest reports its runnable tasks yet")


def rare_by_definition(results: ResultSet) -> Decision:
    """H11. Rare is what costs no more than Dan's own bound, 2 % of the guest's CPU time; in each workload, as it is a
    claim about all that swaps. Time shares need a CPU that is not emulated.
    """
    results.need(CPU_SHARE)
    run = results.run("workload")
    accelerator = results.accelerator("workload")
    if run is None or accelerator != "kvm":
        return Decision("open", f"the workloads ran under {accelerator or 'an unknown accelerator'}: no share of time")
    figures: list[Figure] = []
    sides: list[Side] = []
    for record in results.all("workload", "tmem_cpu_share"):
        share = results.median(record)
        figures.append(percent(f"CPU time in puts and gets, {record.dimensions.get('workload', record.arm)}", share))
        sides.append(side(share, RARE))
    said = f"with {results.kvm('workload')}, puts and gets take at most 2 % of CPU time in {sides.count('below')} of "
    said += f"{len(sides)} workloads ({', '.join(f.text for f in figures)})"
    if "above" in sides:
        return decided("refuted", said, figures)
    return decided("open" if "astride" in sides else "supported", said, figures, "2 %")


def abi_extends(results: ResultSet) -> Decision:
    """H18. Extensible means that an old guest on a new host, and the reverse, keep every rule of the conformance suite,
    with faults injected. One violation refutes.
    """
    results.need(VIOLATIONS)
    found = results.all("conformance", "violations")
    pairs = {str(r.dimensions.get("pair", "")) for r in found}
    bad = sum(max(0.0, sample) for r in found for sample in r.samples)
    figures = (Figure("violations", bad, bad, bad, ""),)
    said = f"{bad:g} violations of the conformance suite in {len(pairs)} pairings of guest and host"
    if bad:
        return Decision("refuted", said, figures)
    wanted = {"old guest, new host", "new guest, old host"}
    if not wanted <= pairs:
        return Decision("open", f"{said}, not all of them: {', '.join(sorted(wanted - pairs))}", figures)
    return Decision("supported", said, figures)


def nothing_else_to_run(results: ResultSet) -> Decision:
    """H19. A vCPU has little else to do when in at most a tenth of the time that it waits for swap another task of its
    guest could have run. A share of time: under KVM only.
    """
    record = results.need(RUNNABLE)
    kvm = results.under_kvm("shares of time")
    share = results.median(record)
    figures = [percent("time waiting for swap with another task runnable", share)]
    said = f"with {kvm}, another task could have run in {figures[0].text} of the time that a guest waits for swap"
    return decided(outcome_of(side(share, IDLE), below="supported", above="refuted"), said, figures, "10 %")


HYPOTHESES = (
    Hypothesis(
        "H11",
        "Puts and gets are rare by definition, as they replace reads and writes of a swap disk.",
        "Dan Magenheimer; Andrea Arcangeli: as frequent as bounce buffers",
        f"{DAN_OCT31}; {ANDREA_OCT31}",
        "Share of the guest's CPU time spent in puts and gets by real workloads (kernel build, redis, JVM, sort) that "
        "lack memory, under KVM.",
        "CPU share, by workload. Supported: each wholly at most 2 %. Refuted: any wholly above 2 %.",
        (CPU_SHARE,),
        rare_by_definition,
    ),
    Hypothesis(
        "H18",
        "The API and ABI are very extensible, and the same as cleancache's.",
        "Dan Magenheimer",
        f"{DAN_OCT31}; {SEED}",
        "The conformance suite with an added operation, old guest on new host and the reverse, with faults injected.",
        "Supported: no violation in either pairing. Refuted: one.",
        (VIOLATIONS,),
        abi_extends,
    ),
    Hypothesis(
        "H19",
        "A guest that swaps is out of memory anyway, so its CPU has little else to do.",
        "Dan Magenheimer",
        SEED,
        "Share of the time in which a guest waits for swap that another of its tasks could have run, under KVM.",
        "Supported: wholly at most 10 %. Refuted: wholly above 10 %.",
        (RUNNABLE,),
        nothing_else_to_run,
    ),
)
