# SPDX-License-Identifier: Apache-2.0
"""Claims that a swapping guest decides: H8, H10, H17 and H20. From the bench `swap`.

Under TCG the guest's CPU is emulated: such a run says nothing about time, and is asked about bytes only.
"""

from __future__ import annotations

from tmem_host.bench.results import Record
from tmem_host.bench.stats import Interval
from tmem_host.report.verdict.exits import exit_kvm
from tmem_host.report.verdict.mails import ANDREA_OCT31, DAN_NOV1, SEED
from tmem_host.report.verdict.model import Aside, Decision, Figure, Hypothesis, Need
from tmem_host.report.verdict.resultset import ResultSet, Undecided
from tmem_host.report.verdict.rules import decided, outcome_of, side, times

CLEAR = 1.05
RUN_TIME = {"phase": "all"}
TMEM, DISK = "tmem-lz4", "disk-none"

REMOTE = Need("swap", "run_time", {"backend": "remote", **RUN_TIME}, "there is no remote tier to measure yet")


def page_cache_does_it(results: ResultSet) -> Decision:
    """H8. The host's page cache keeps a guest's swapped pages as they are, 4096 bytes each. tmem adds something if it
    holds the same pages in fewer bytes, everything it takes counted, by more than 5 %; or, failing that, if it is
    faster by more than 5 %. Bytes held do not depend on the accelerator; time does, so it is looked at under KVM only,
    and only when the bytes have not decided. Host swap with zswap, which compresses too, is not measured.
    """
    ratio = results.get("swap", "compression_ratio", arm=TMEM)
    extra = results.get("swap", "held_over_compressed", arm=TMEM)
    rows = results.rounds([ratio, extra])
    if (rows <= 0).any():
        raise Undecided("the bytes held or the bytes compressed are not above 0")
    saved = results.over_rounds((rows[:, 0] / rows[:, 1]).tolist())
    figures = [times("bytes in the page cache over bytes held by tmem, same pages", saved)]
    how = results.accelerator("swap") or "accelerator unknown"
    said = (
        f"the page cache takes {figures[0].text} the bytes that tmem with lz4 takes for the same pages, all it needs "
        f"counted (guest under {how.upper()}, which changes no bytes)"
    )
    if side(saved, CLEAR) == "above":
        return Decision("refuted", said, tuple(figures))
    ours = results.maybe("swap", "fault_latency", arm=TMEM, phase="random")
    cached = results.maybe("swap", "fault_latency", arm="disk-writeback", phase="random")
    if ours is None or cached is None:
        raise Undecided(f"{said}; which is faster is not measured: run `tmem bench swap`", figures)
    kvm = results.under_kvm("time", figures)
    slower = results.ratio(cached, ours)
    figures.append(times("fault from the page cache over fault from tmem", slower))
    said += f"; with {kvm}, a fault from it takes {figures[-1].text} one from tmem"
    if side(slower, CLEAR) == "above":
        return Decision("refuted", said, tuple(figures))
    both = side(saved, CLEAR) == "below" and side(slower, CLEAR) == "below"
    return decided("supported" if both else "open", said, figures, "1.05×")


def remote_still_pays(results: ResultSet) -> Decision:
    """H10. Pages kept on another host pay when the guest gets through its work in less time than with a disk."""
    ours, disk = results.need(REMOTE), results.get("swap", "run_time", arm=DISK, **RUN_TIME)
    kvm = results.under_kvm("run time")
    ratio = results.ratio(ours, disk)
    figures = [times("run time, remote tier over disk", ratio)]
    said = f"with {kvm}, a guest takes {figures[0].text} the time with a remote tier that it takes with a disk"
    return decided(outcome_of(side(ratio, 1.0), below="supported", above="refuted"), said, figures, "1×")


def time_left_for_a_network(results: ResultSet) -> Aside:
    """What the exit bench says about H10: how much longer a get may take before this machine's disk is as fast."""
    get, disk = (results.maybe("exit", "round_trip", arm=f"pio+{work}") for work in ("get", "disk-read"))
    if get is None or disk is None:
        return "", ()
    rows = results.rounds([disk, get])
    left = Figure.of(
        "disk read less get, both through an exit", results.over_rounds(list(rows[:, 0] - rows[:, 1])), "ns"
    )
    if left.low <= 0:
        return "", ()
    said = f"With {exit_kvm(results)}, a get could take {left.text} longer before this disk is as fast"
    return said, (left,)


def only_loses_in_a_corner(results: ResultSet) -> Decision:
    """H17. A cell is a codec of tmem against a disk past the page cache; tmem loses it when its run time is wholly
    above the disk's. The corner that Dan names is an NVMe device and a guest with one CPU. One losing cell elsewhere
    refutes; to support, nothing may be lost elsewhere, and a fast device must have been among the disks, else the map
    has a hole just where it matters. The disk's kind is the dimension `device` (hdd, ssd, nvme) of its arm.
    """
    results.need(_run_time(TMEM))
    results.need(_run_time(DISK))
    kvm = results.under_kvm("run time")
    found = results.all("swap", "run_time", RUN_TIME)
    ours = [r for r in found if r.arm.startswith("tmem-")]
    disks = [r for r in found if r.arm.startswith("disk-") and r.arm != "disk-writeback"]
    cpus = _vcpus(results)
    figures: list[Figure] = []
    lost: list[str] = []
    unsure = False
    for disk in disks:
        corner = disk.dimensions.get("device") == "nvme" and cpus == 1
        for one in ours:
            cell = times(f"run time, {one.arm} over {disk.arm}", results.ratio(one, disk))
            figures.append(cell)
            where = side(Interval(cell.value, cell.low, cell.high), 1.0)
            if not corner:
                lost += [f"{one.arm} against {disk.arm} {cell.text}"] if where == "above" else []
                unsure |= where == "astride"
    said = f"with {kvm}, of {len(figures)} pairs of codec and disk tmem loses {len(lost)} outside of that corner"
    if lost:
        return Decision("refuted", f"{said}: {', '.join(lost)}", tuple(figures))
    if unsure:
        return decided("open", said, figures, "1× in at least one of them")
    if not any(d.dimensions.get("device") == "nvme" for d in disks):
        return Decision("open", f"{said}, but no disk among them was an NVMe device", tuple(figures))
    return Decision("supported", said, tuple(figures))


def benefits_on_kvm(results: ResultSet) -> Decision:
    """H20. "Sometimes some benefits": a guest on KVM with more work than memory is done sooner with tmem than with the
    disk it would have without. A stock guest decides; frontswap itself, which kernels since 5.17 keep from modules, and
    the module's disk by each channel are told.
    """
    ours, disk = results.need(_run_time(TMEM)), results.need(_run_time(DISK))
    kvm = results.under_kvm("run time")
    ratio = results.ratio(ours, disk)
    figures = [times("run time, tmem with lz4 over disk", ratio)]
    said = (
        f"with {kvm}, a guest with more work than memory takes {figures[0].text} the time with tmem that it takes with "
    )
    said += "a disk"
    told = []
    for record in _by_module(results):
        figures.append(times(f"run time, {record.arm} over disk", results.ratio(record, disk)))
        told.append(f"{record.arm} {figures[-1].text}")
    said += f" ({', '.join(told)})" if told else ""
    return decided(outcome_of(side(ratio, 1.0), below="supported", above="refuted"), said, figures, "1×")


def _by_module(results: ResultSet) -> list[Record]:
    """Run times of guests whose pages tmem.ko sends to the store."""
    found = results.all("swap", "run_time", {"backend": "tmem", **RUN_TIME})
    return [record for record in found if record.dimensions.get("source") in ("swap-disk", "frontswap")]


def pages_of_many_vms(results: ResultSet) -> Aside:
    """What the density bench says about H20: pages per second to the store and to a disk."""
    found: dict[int, dict[str, Record]] = {}
    for record in results.all("density", "throughput"):
        found.setdefault(int(record.dimensions.get("vms", 0)), {})[record.arm] = record
    both = [n for n, arms in found.items() if {"sync-store", "async-disk"} <= arms.keys()]
    if not both:
        return "", ()
    most = max(both)
    ratio = results.ratio(found[most]["sync-store"], found[most]["async-disk"])
    figure = times(f"pages/s, synchronous store over asynchronous disk, {most} VMs", ratio)
    kvm = results.kvm("density")
    return f"With {kvm}, {most} micro-VMs move {figure.text} the pages to the store that they move to a disk", (figure,)


def _run_time(arm: str) -> Need:
    return Need("swap", "run_time", {"arm": arm, **RUN_TIME})


def _vcpus(results: ResultSet) -> int:
    run = results.run("swap")
    found = run.properties.guest.get("vcpus") if run else None
    return found if isinstance(found, int) else 0


HYPOTHESES = (
    Hypothesis(
        "H8",
        "The host's page cache already does what tmem does: file_read_actor is that copy.",
        "Andrea Arcangeli",
        ANDREA_OCT31,
        "The same guest swaps to tmem and to a disk file through the host's page cache: host bytes for the same pages, "
        "and under KVM the time of a fault.",
        "Page cache over tmem. Refuted: bytes wholly above 1.05, or else the time of a random fault, under KVM, wholly "
        "above 1.05. Supported: both wholly at most 1.05.",
        tuple(Need("swap", metric, {"arm": TMEM}) for metric in ("compression_ratio", "held_over_compressed")),
        page_cache_does_it,
    ),
    Hypothesis(
        "H10",
        "RAMster over a LAN adds much more than a microsecond and still pays.",
        "Dan Magenheimer",
        SEED,
        "A guest under KVM swaps to a remote tier and to a disk.",
        "Run time with the remote tier over that with the disk. Supported: wholly at most 1. Refuted: wholly above 1.",
        (REMOTE, _run_time(DISK)),
        remote_still_pays,
        time_left_for_a_network,
    ),
    Hypothesis(
        "H17",
        "It loses only where swap is on a PCIe SSD and the CPU is an old single core.",
        "Dan Magenheimer, to James Bottomley",
        DAN_NOV1,
        "Run time of a guest under KVM, each codec of tmem against each disk.",
        "Refuted: a pair of codec and disk whose run time over the disk's is wholly above 1, other than NVMe with one "
        "vCPU. Supported: all others wholly at most 1, with an NVMe device among the disks.",
        (_run_time(TMEM), _run_time(DISK)),
        only_loses_in_a_corner,
    ),
    Hypothesis(
        "H20",
        "Whoever implements frontswap on KVM will find that it does, sometimes, provide some benefits.",
        "Dan Magenheimer, of Sasha Levin and Neo Jia",
        SEED,
        "The same over-committed guest under KVM with its swap in tmem and on a disk.",
        "Run time with tmem (lz4) over that with the disk. Supported: wholly at most 1. Refuted: wholly above 1.",
        (_run_time(TMEM), _run_time(DISK)),
        benefits_on_kvm,
        pages_of_many_vms,
    ),
)
