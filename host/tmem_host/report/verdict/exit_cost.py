# SPDX-License-Identifier: Apache-2.0
"""Claims about what a bare exit costs next to other things: H2 to H6. All from the micro-VMs of the bench `exit`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tmem_host.bench.results import Record
from tmem_host.bench.units import human, number
from tmem_host.report.verdict.exits import cheapest_exit, emulation, exit_kvm, less_loop, trip
from tmem_host.report.verdict.mails import ANDREA_OCT31, DAN_OCT31, SEED
from tmem_host.report.verdict.model import Decision, Figure, Hypothesis, Need, Outcome
from tmem_host.report.verdict.resultset import ResultSet, Undecided
from tmem_host.report.verdict.rules import Side, decided, outcome_of, side, times

SMALL_SHARE = 0.1
NOTICED = 1.05
MUCH_FASTER = 1 / 3
ORDER = 10.0
NOT_MUCH_SHORTER = 0.5
HALF_ORDER = math.sqrt(10)

PER_EXIT = Need(
    "swap",
    "run_time",
    {"source": "swap-disk", "channel": "virtio-tmem", "ioeventfd": "off", "phase": "all"},
)
WITHOUT_EXIT = Need(
    "swap",
    "run_time",
    {"source": "swap-disk", "channel": "vhost-user-tmem", "poll": "on", "phase": "all"},
)


def too_slow(results: ResultSet) -> Decision:
    """H2. "Too slow" is a statement about what a user sees, so both have to hold: the exit is a real part of the
    operation (more than a tenth of a put), and the run time of a swapping guest shows it (more than 5 % over the same
    store reached without exits). A small share alone refutes: a tenth of an operation cannot move a run by more. A
    large one alone proves nothing, since an operation that replaces a disk access may still be a win.
    """
    bare, put = results.get("exit", "round_trip", arm="pio"), results.get("exit", "round_trip", arm="pio+put")
    share = results.ratio(bare, put)
    figures = [times("exit over exit and put (lz4)", share)]
    if zstd := results.maybe("exit", "round_trip", arm="pio+put-zstd"):
        figures.append(times("exit over exit and put (zstd)", results.ratio(bare, zstd)))
    said = f"with {exit_kvm(results)}, the exit to user space is {number(100 * share.value)} % of a put with lz4"
    if side(share, SMALL_SHARE) == "below":
        return Decision("refuted", said, tuple(figures))
    try:
        slow, fast = results.need(PER_EXIT), results.need(WITHOUT_EXIT)
        kvm = results.under_kvm("run time")
    except Undecided as reason:
        raise Undecided(f"{said}; whether run time shows it is not known, as {reason}", figures) from None
    moved = results.ratio(slow, fast)
    figures.append(times("run time with an exit per page over without", moved))
    said += f"; with {kvm} a swapping guest takes {figures[-1].text} the time it takes without exits"
    where = side(moved, NOTICED)
    if where == "above" and side(share, SMALL_SHARE) == "astride":
        return decided("open", said, figures, "10 % of a put")
    return decided(outcome_of(where, below="refuted", above="supported"), said, figures, "1.05×")


def same_order_as_copy(results: ResultSet) -> Decision:
    """H3. Two times are of the same order of magnitude when the decimal logarithm of their ratio rounds to 0: a ratio
    within half an order either way. The copy is a hot one, as Dan's "256 cycles" was; the exit is the cheapest that KVM
    answers in the kernel, which is what a hypercall of his would be. The exit to user space and the cold copy are told
    beside it, since a page about to be swapped is not in the cache.
    """
    hot, exit_ = results.get("exit", "round_trip", arm="bare+copy-hot"), cheapest_exit(results)
    headline = results.ratio(exit_, hot)
    figures = [times(f"{exit_.arm} over a hot copy", headline)]
    others = []
    cold = results.maybe("exit", "round_trip", arm="bare+copy-cold")
    pio = results.get("exit", "round_trip", arm="pio")
    for top, bottom, label in (
        (exit_, cold, f"{exit_.arm} over a cold copy"),
        (pio, hot, "exit to user space over a hot copy"),
        (pio, cold, "exit to user space over a cold copy"),
    ):
        if top is not None and bottom is not None:
            figures.append(times(label, results.ratio(top, bottom)))
            others.append(f"{label}: {figures[-1].text}")
    said = f"with {exit_kvm(results)}, the cheapest exit ({exit_.arm}) costs {figures[0].text} a hot copy of 4 KiB"
    if turn := emulation(results):
        said += f", less the loop around it, which takes {turn}"
    said += f" ({'; '.join(others)})" if others else ""
    inside = side(headline, HALF_ORDER), side(headline, 1 / HALF_ORDER)
    if inside == ("below", "above"):
        return decided("supported", said, figures)
    outside = inside[0] == "above" or inside[1] == "below"
    return decided("refuted" if outside else "open", said, figures, "half an order of magnitude, 3.16× or 0.316×")


def much_faster_than_compression(results: ResultSet) -> Decision:
    """H4. "Much faster" is at most a third. Dan names no algorithm and no kind of exit, so the claim has to hold for
    each of lz4 and zstd, compressing and decompressing, for the exit that the kernel answers and for the one that user
    space answers; it falls with any that is wholly above a third. Waking a thread is no exit but what an asynchronous
    channel adds to one: it is told, and does not decide.
    """
    works = [f"{codec}-{op}" for codec in ("lz4", "zstd") for op in ("compress", "decompress")]
    kernel = cheapest_exit(results)
    channels: list[tuple[str, Record, bool]] = [
        (f"in the kernel ({kernel.arm})", kernel, True),
        ("to user space (pio)", results.get("exit", "round_trip", arm="pio"), True),
    ]
    if woken := results.maybe("exit", "round_trip", arm="ioeventfd-sleep"):
        channels.append(("waking a thread", woken, False))
    figures: list[Figure] = []
    sides: list[Side] = []
    told = []
    for label, record, counts in channels:
        row = {}
        for work in works:
            found = results.ratio(record, results.get("exit", "round_trip", arm=f"bare+{work}"))
            row[work] = times(f"{label} over {work}", found)
            sides += [side(found, MUCH_FASTER)] if counts else []
        figures += row.values()
        most, least = (choose(row, key=lambda work: row[work].value) for choose in (max, min))
        told.append(f"{label} {row[least].text} of {least} to {row[most].text} of {most}")
    outcome: Outcome = "refuted" if "above" in sides else "open" if "astride" in sides else "supported"
    held = sides.count("below")
    said = f"with {exit_kvm(results)}, an exit is at most a third of the work in {held} of {len(sides)} cases"
    return decided(outcome, f"{said}; {'; '.join(told)}", figures, "a third")


def faster_than_disk(results: ResultSet) -> Decision:
    """H5. At least one order of magnitude, against the cheaper of reading and writing 4 KiB past the page cache, for
    the exit to user space, the dearest that answers on the vCPU's thread. "Orders", plural, would be two: the text says
    how many it is. Beside it: from which latency of a device on a put and a get through the exit are cheaper than two
    requests to that device, interpolated between the latencies measured.
    """
    exit_ = results.get("exit", "round_trip", arm="pio")
    found, figures = [], []
    for op in ("read", "write"):
        ratio = results.ratio(results.get("exit", "round_trip", arm=f"bare+disk-{op}"), exit_)
        figures.append(times(f"disk {op} (4 KiB, O_DIRECT) over the exit to user space", ratio))
        found.append(ratio)
    worst = min(found, key=lambda r: r.value)
    said = (
        f"with {exit_kvm(results)}, a disk read takes {figures[0].text} and a write {figures[1].text} the exit to "
        f"user space, {number(math.log10(max(worst.value, 1e-9)))} orders of magnitude for the cheaper"
    )
    crossing, more = _crossover(results)
    figures += more
    outcome = outcome_of(side(worst, ORDER), below="refuted", above="supported")
    return decided(outcome, f"{said}{crossing}", figures, "10×")


def _crossover(results: ResultSet) -> tuple[str, list[Figure]]:
    """At which latency of an emulated device half of (put + get) costs the same as one request to it."""
    put, get = (results.maybe("exit", "round_trip", arm=f"pio+{op}") for op in ("put", "get"))
    devices = results.all("exit", "round_trip", {"kind": "irqfd-sleep", "work": "device"})
    devices = sorted(
        (d for d in devices if "latency_us" in d.dimensions), key=lambda d: float(d.dimensions["latency_us"])
    )
    if put is None or get is None or len(devices) < 2:
        return "", []
    rows = results.rounds([put, get, *devices])
    latencies = np.array([1000 * float(d.dimensions["latency_us"]) for d in devices])
    levels, answers = rows[:, :2].mean(axis=1), rows[:, 2:]
    crossed = [_meets(latencies, answer, level) for level, answer in zip(levels, answers, strict=True)]
    known = [x for x in crossed if 0 < x < math.inf]
    if len(known) == len(crossed):
        figure = Figure.of("device latency from which put and get are cheaper", results.over_rounds(known), "ns")
        return f"; put and get are cheaper than a device that takes longer than {figure.text}", [figure]
    if all(x == 0 for x in crossed):
        return f"; put and get are cheaper even than a device that answers in {human(latencies[0], 'ns')}", []
    if all(x == math.inf for x in crossed):
        return f"; put and get are dearer even than a device that answers in {human(latencies[-1], 'ns')}", []
    return "", []


def _meets(x: NDArray[np.float64], y: NDArray[np.float64], level: float) -> float:
    """Where the line through the points reaches `level`; 0 before the first, infinite after the last."""
    if y[0] >= level:
        return 0.0
    for i in range(1, y.size):
        if y[i] >= level:
            return float(x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1]))
    return math.inf


def submission_is_an_exit(results: ResultSet) -> Decision:
    """H6. "Not much shorter" is at least half. The micro-VM's submission is the driver's part alone (descriptor, ring,
    kick); Linux's block layer is not in it, so it is a lower bound of what Dan means, and a bound from below can
    support the claim against any exit, but not refute it against the dear one to user space. So: supported where the
    submission is at least half of an exit answered in the kernel, the plain vmexit and vmenter of the claim. That is
    nearly so by construction, as a kick *is* an exit, and the text says so. The comparison with the exit to user space
    says how much the block layer would have to add for the claim to hold there, too. Where the guest's instructions are
    emulated, its stores cost what no processor takes for them: then the kick alone is counted, a lower bound still.
    """
    emulated = emulation(results)
    arm = "ioeventfd-post" if emulated else "virtqueue-submit"
    submit = less_loop(results, results.get("exit", "round_trip", arm=arm))
    exit_, pio = cheapest_exit(results), results.get("exit", "round_trip", arm="pio")
    kernel, user = results.ratio(submit, exit_), results.ratio(submit, pio)
    what = "the kick of a submission alone" if emulated else "the driver's part of a submission"
    figures = [
        times(f"{what} over the cheapest exit ({exit_.arm})", kernel),
        times(f"{what} over the exit to user space (pio)", user),
    ]
    said = (
        f"with {exit_kvm(results)}, {what} takes {figures[0].text} the cheapest exit ({exit_.arm}) and "
        f"{figures[1].text} the exit to user space; the kick is an exit itself, and Linux's block layer comes on top"
    )
    if side(user, NOT_MUCH_SHORTER) == "below":
        rest = NOT_MUCH_SHORTER * results.median(pio).value - results.median(submit).value
        said += f" (it would have to add {human(rest, 'ns')} to reach half of the exit to user space)"
    outcome = outcome_of(side(kernel, NOT_MUCH_SHORTER), below="refuted", above="supported")
    return decided(outcome, said, figures, "half an exit")


HYPOTHESES = (
    Hypothesis(
        "H2",
        "One vmexit and vmenter for each 4 KiB page is too slow.",
        "Andrea Arcangeli",
        ANDREA_OCT31,
        "The exit to user space as a share of a put through it; run time of a guest that swaps with an exit per page "
        "against one whose pages cross without exits, under KVM.",
        "Supported: the exit is more than 10 % of a put with lz4, and the run time with an exit per page is more than "
        "1.05 times that without. Refuted: the exit is at most 10 % of the put, or the run time at most 1.05 times.",
        (trip("pio"), trip("pio+put")),
        too_slow,
    ),
    Hypothesis(
        "H3",
        "A vmexit and vmenter is about the same order of magnitude as a copy of the page.",
        "Dan Magenheimer",
        DAN_OCT31,
        "The cheapest exit that KVM answers in the kernel against a 4 KiB copy in the host, source in the cache; "
        "beside it the exit to user space, and a copy that is not in the cache.",
        "Cheapest exit over hot copy. Supported: wholly within half an order of magnitude, 0.316 to 3.16. Refuted: "
        "wholly outside.",
        (trip("bare+copy-hot"), trip("pio")),
        same_order_as_copy,
    ),
    Hypothesis(
        "H4",
        "A vmexit and vmenter is much faster than compression and decompression.",
        "Dan Magenheimer",
        DAN_OCT31,
        "Exits answered in the kernel, in user space, and by a thread that has to wake, against lz4 and zstd "
        "compressing and decompressing real pages.",
        "Each of the two synchronous exits over each of the four works. Supported: all eight ratios wholly at most "
        "1/3. Refuted: any wholly above 1/3. The woken thread is told and does not decide.",
        (
            trip("pio"),
            *(trip(f"bare+{codec}-{op}") for codec in ("lz4", "zstd") for op in ("compress", "decompress")),
        ),
        much_faster_than_compression,
    ),
    Hypothesis(
        "H5",
        "Even if a vmexit and vmenter takes thousands of cycles, it is orders of magnitude faster than a disk access.",
        "Dan Magenheimer",
        DAN_OCT31,
        "Reading and writing 4 KiB past the page cache on this machine's disk against the exit to user space; the "
        "latency of an emulated device from which put and get through the exit are cheaper than it.",
        "The cheaper of disk read and write over the exit to user space. Supported: wholly above 10. Refuted: wholly "
        "at most 10.",
        (trip("pio"), trip("bare+disk-read"), trip("bare+disk-write")),
        faster_than_disk,
    ),
    Hypothesis(
        "H6",
        "The path through the block layer that sets up the I/O of a swap page is not much shorter than a vmexit and "
        "vmenter.",
        "Dan Magenheimer, as a guess",
        SEED,
        "What a virtio driver does to submit a request (descriptors, ring, kick), in a micro-VM, against the cheapest "
        "exit and the exit to user space. A lower bound: Linux's block layer is not in it. The kick alone where KVM "
        "emulates the guest's instructions.",
        "Submission over the cheapest exit. Supported: wholly above 0.5. Refuted, as far as a micro-VM can: wholly at "
        "most 0.5.",
        (trip("virtqueue-submit"), trip("pio")),
        submission_is_an_exit,
    ),
)
