# SPDX-License-Identifier: Apache-2.0
"""What a bare exit is in the records of the bench `exit`, and whether this KVM runs the guest's instructions at all.

An exit that KVM answers in the kernel is measured in a loop, so the loop's own time is in it; the arm `loop` is that
loop with nothing to ask for, and is taken off. On a processor this is a nanosecond. A KVM in software may emulate a
guest's instructions one by one instead (PVM does, for a guest that does not know it): the loop then takes as long as
what it is the floor of, and nothing that is answered in the kernel has left a guest. Decisions stand for such a KVM,
and say so.
"""

from __future__ import annotations

from tmem_host.bench.results import Record
from tmem_host.bench.units import human
from tmem_host.report.verdict.model import Need
from tmem_host.report.verdict.resultset import Missing, ResultSet, Undecided

EMULATED_SHARE = 0.25
"""A loop that takes more than this share of the cheapest exit is not run by a processor: its three instructions take a
nanosecond there, and the one exit to user space that ends 128 turns adds less than a tenth even where KVM is nested."""


def trip(arm: str) -> Need:
    """The round trip of an arm."""
    return Need("exit", "round_trip", {"arm": arm})


def cheapest_exit(results: ResultSet) -> Record:
    """The exit that KVM answers in the kernel at the lowest cost, less the loop; 64-bit where there is one.

    Which instruction that is differs between processors and flavours of KVM (CPUID is slow on new Intel parts, a
    hypercall may be missing), and a claim about "an exit" gets the benefit of the cheapest. Submitting to a virtqueue
    is no bare exit: the guest's stores are in it.
    """
    exits = _in_kernel(results)
    return less_loop(results, min(exits, key=lambda r: results.median(r).value))


def less_loop(results: ResultSet, record: Record) -> Record:
    """The record round by round, less what the loop around it takes. As it is where the loop was not measured."""
    floor = results.maybe("exit", "round_trip", arm="loop")
    if floor is None:
        return record
    rows = results.rounds([record, floor])
    samples = [float(x) for x in rows[:, 0] - rows[:, 1]]
    return record.model_copy(update={"samples": samples, "round_sizes": [1] * len(samples)})


def emulation(results: ResultSet) -> str:
    """What a turn of the loop takes, '1.93 µs', where the guest's instructions are emulated; empty where they run."""
    floor = results.maybe("exit", "round_trip", arm="loop")
    if floor is None:
        return ""
    try:
        cheapest = min(results.median(r).value for r in _in_kernel(results))
        turn = results.median(floor).value
    except Undecided:
        return ""
    return human(turn, "ns") if turn > EMULATED_SHARE * cheapest else ""


def exit_kvm(results: ResultSet) -> str:
    """What KVM was: 'KVM in software (PVM) emulating its guest'."""
    return results.kvm("exit") + (" emulating its guest" if emulation(results) else "")


def _in_kernel(results: ResultSet) -> list[Record]:
    found = results.all("exit", "round_trip", {"path": "kernel", "work": "nothing"})
    found = [r for r in found if r.dimensions.get("kind") != "virtqueue-submit"]
    found = [r for r in found if r.dimensions.get("bits") == 64] or found
    if not found:
        raise Missing("there is no figure exit round_trip of any exit answered in the kernel: run `tmem bench exit`")
    return found
