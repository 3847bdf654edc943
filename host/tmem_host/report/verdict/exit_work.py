# SPDX-License-Identifier: Apache-2.0
"""Claims about what is done in an exit: H1, H9, H12 to H15. From the micro-VMs of the bench `exit`."""

from __future__ import annotations

import numpy as np

from tmem_host.bench import stats
from tmem_host.bench.results import Record
from tmem_host.bench.units import human, number
from tmem_host.config import PAGE_SIZE
from tmem_host.report.verdict.exits import exit_kvm, trip
from tmem_host.report.verdict.interface import batches_over_a_channel, copies_by_channel, exchange_saves
from tmem_host.report.verdict.mails import ANDREA_NOV1, ANDREA_OCT31, DAN_NOV2, DAN_OCT31, RIK_NOV2, SEED
from tmem_host.report.verdict.model import Decision, Figure, Hypothesis, Need
from tmem_host.report.verdict.resultset import ResultSet, Undecided
from tmem_host.report.verdict.rules import decided, listed, outcome_of, percent, scaled, side, times

NOTICED = 1.05
MICROSECOND = 1000.0
SHOWSTOPPER = 2.0
CODECS = ("lz4", "zstd")


def no_copy_before(results: ResultSet) -> Decision:
    """H1. The claim about Xen and zcache was settled in 2011 by reading their code; what is decided here is whether it
    can be had on KVM: a put through an exit that compresses from the guest's page where it lies, as the bench states of
    its own code, and puts through channels out of a guest, where the host's side counts the pages that it could not
    take in place, and the rest is reading code again (what a copy costs is H13's). A statement that does not know of
    the page that a bounce buffer copies is none, and decides nothing; the byte stream is the same for the counts.
    """
    direct = results.get("exit", "bytes_copied", arm="pio+put")
    bounced = results.get("exit", "bytes_copied", arm="pio+put-bounce")
    most, control = max(direct.samples), min(bounced.samples)
    told, in_place, streams = copies_by_channel(results)
    figures = (
        Figure("bytes copied before compressing, put in place", most, most, most, "bytes"),
        Figure("the same through a bounce buffer", control, control, control, "bytes"),
        *in_place,
        *streams,
    )
    for figure, what in ((figures[1], "a bounce buffer"), *((one, "a byte stream") for one in streams)):
        if figure.value < PAGE_SIZE:
            raise Undecided(
                f"the bench knows of {human(figure.value, 'bytes')} for {what}, which copies a page: it knows nothing",
                figures,
            )
    said = (
        f"with {exit_kvm(results)}, a put through an exit copies {human(most, 'bytes')} before it compresses, "
        f"against {human(control, 'bytes')} by way of a bounce buffer, as the bench states of its code; "
    )
    said += f"out of a guest it is {told}" if told else "what a guest with another channel copies is not in this"
    none = most == 0 and all(one.value == 0 for one in in_place)
    return Decision("supported" if none else "refuted", said, figures)


def a_microsecond_more(results: ResultSet) -> Decision:
    """H9. Taken at its word: one microsecond of busy waiting moves an operation by at most 5 %. The operation is a put
    through an exit to user space, back to back, the most sensitive case there is: a guest that spends a share of its
    time in operations moves by that share of it, and which share makes 5 % is told. Judged on the wait that moves a put
    by 5 %, from the line through all waits: they carry much more than the one wait of 1 µs, which is told. A slope far
    from 1 would say that waiting does not add up with the rest.
    """
    sweep = _sweep(results, "delay", "delay_us")
    waits = np.array([1000 * us for us, _ in sweep])
    rows = results.rounds([record for _, record in sweep])
    base = rows[:, 0]
    slope = stats.fit_line(waits, rows).slope
    slopes = np.array([stats.fit_line(waits, row[np.newaxis, :], resamples=1).slope.value for row in rows])
    steep = Figure.of("ns of put per ns of waiting", slope, "ratio")
    if slope.low <= 0 or slopes.min() <= 0 or base.min() <= 0:
        raise Undecided("waiting does not make a put longer in every round of the exit bench", [steep])
    felt = results.over_rounds(((NOTICED - 1) * base / slopes).tolist())
    none, one = (results.get("exit", "round_trip", arm=f"pio+delay-{us}") for us in (0, 1))
    moved = results.ratio(one, none)
    figures = [
        Figure.of("wait that moves a put by 5 %", felt, "ns"),
        steep,
        times("put with 1 µs more over put", moved),
    ]
    said = f"with {exit_kvm(results)}, a put is 5 % longer with {figures[0].text} more (1 µs: {figures[2].text})"
    where = side(felt, MICROSECOND)
    if where == "below":
        needed = felt.value / MICROSECOND
        said += f"; 1 µs shows in the run time of a guest that spends {number(100 * needed)} % of it in puts"
    return decided(outcome_of(where, below="refuted", above="supported"), said, figures, "1 µs")


def batching_can_wait(results: ResultSet) -> Decision:
    """H12. A page at a time is a showstopper if batching could at least halve the cost of a page; below that it is an
    optimisation that can come later. Judged on what was measured, one page in an exit against the largest batch, not on
    the fit, which may be poor where an exit costs next to nothing. The fit a/n + b tells the two apart: a is paid once
    for each exit, b for each page. What the last page of a batch waits is the price, told as the p99 of the whole
    batch. Gets are told and do not decide: only puts can be held back until there are enough of them. So are what one
    request for a put and a get saves, and batches over a channel that wakes a thread, which is no exit.
    """
    sweep = _sweep(results, "put-batch", "n")
    single, (most, large) = results.get("exit", "round_trip", arm="pio+put-batch-1"), sweep[-1]
    gain = scaled(results.ratio(single, large), most)
    figures = [times(f"cost of a page alone over one in a batch of {most:g}, put", gain)]
    said = f"with {exit_kvm(results)}, a page put alone costs {figures[0].text} one in a batch of {most:g}"
    if len(sweep) >= 3:
        sizes = np.array([n for n, _ in sweep])
        fit = stats.fit_line(1 / sizes, results.rounds([r for _, r in sweep]) / sizes)
        once, each = (
            Figure.of("a, once for each exit", fit.slope, "ns"),
            Figure.of("b, for each page", fit.intercept, "ns"),
        )
        figures += [once, each, Figure("R² of a/n + b", fit.r2, fit.r2, fit.r2, "")]
        said += f"; cost of a page = a/n + b with a = {once.text}, b = {each.text}, R² = {number(fit.r2)}"
    whole = stats.p99(large.samples)
    figures.append(Figure(f"p99 of a batch of {most:g}", whole, whole, whole, "ns"))
    gets = _sweep(results, "get-batch", "n")
    if len(gets) >= 2 and gets[0][0] == 1:
        n, last = gets[-1]
        figures.append(
            times(f"cost of a page alone over one in a batch of {n:g}, get", scaled(results.ratio(gets[0][1], last), n))
        )
    for more, beside in (exchange_saves(results), batches_over_a_channel(results)):
        said += more
        figures += beside
    return decided(outcome_of(side(gain, SHOWSTOPPER), below="supported", above="refuted"), said, figures, "2×")


def zero_copy_pays(results: ResultSet) -> Decision:
    """H13. Worth it means more than 5 % of the whole operation, exit and compression included: a change that nobody can
    see in the operation is not worth an interface.
    """
    copied = results.get("exit", "round_trip", arm="pio+put-bounce")
    direct = results.get("exit", "round_trip", arm="pio+put")
    ratio = results.ratio(copied, direct)
    figures = [times("put by way of a bounce buffer over put in place", ratio)]
    figures += [
        Figure.of(f"a copy alone, {heat}", results.median(record), "ns")
        for heat in ("hot", "cold")
        if (record := results.maybe("exit", "round_trip", arm=f"bare+copy-{heat}"))
    ]
    extra = results.median(copied).value - results.median(direct).value
    said = (
        f"with {exit_kvm(results)}, a put by way of a bounce buffer takes {figures[0].text} a put in place, "
        f"{human(extra, 'ns')} of {human(results.median(direct).value, 'ns')}"
    )
    return decided(outcome_of(side(ratio, NOTICED), below="refuted", above="supported"), said, figures, "1.05×")


def deferring_shortens(results: ResultSet) -> Decision:
    """H14. The synchronous part is shorter when its median is, and its tail is not longer: a queue that makes one put
    in a hundred wait has moved the work, not taken it away. CPU time and the pages that pile up are the price, and
    told.
    """
    later = results.get("exit", "round_trip", arm="pio+put-deferred")
    now = results.get("exit", "round_trip", arm="pio+put")
    half, tail = results.ratio(later, now), results.ratio(later, now, 0.99)
    figures = [times("deferred over synchronous put, median", half), times("the same, p99", tail)]
    said = (
        f"with {exit_kvm(results)}, copying now and compressing in a thread makes the put {figures[0].text} as long, "
        f"its p99 {figures[1].text}"
    )
    cpu = [results.maybe("exit", "cpu", arm=f"pio+{work}") for work in ("put-deferred", "put")]
    if cpu[0] is not None and cpu[1] is not None:
        figures.append(times("the same, CPU time", results.ratio(cpu[0], cpu[1])))
        said += f", its CPU time {figures[-1].text}"
    if backlog := results.maybe("exit", "backlog", arm="pio+put-deferred"):
        most = max(backlog.samples)
        figures.append(Figure("most pages waiting", most, most, most, "pages"))
        said += f", with up to {human(most, 'pages')} waiting"
    sides = side(half, 1.0), side(tail, 1.0)
    outcome = "refuted" if "above" in sides else "supported" if sides[0] == "below" else "open"
    return decided(outcome, said, figures, "1×")  # type: ignore[arg-type]


def torn_pages_are_safe(results: ResultSet) -> Decision:
    """H15. Safe: no process died and nothing was written beyond the destination, in any of the trials of either codec;
    a single case refutes. No number of trials proves that it cannot happen, so how often it may at most is told (exact
    95 % bound). A block that does not decode is no crash, and the kernel rewrites such a page; how many is told.
    """
    figures: list[Figure] = []
    told, untried = [], []
    bad = pages = 0
    for codec in CODECS:
        crashes = _total(results.get("exit", "torn_crashes", arm=f"torn-{codec}"))
        # A process that died took its counts with it.
        tried, overruns, undecodable = (
            _total(results.maybe("exit", f"torn_{what}", arm=f"torn-{codec}"))
            for what in ("pages", "overruns", "undecodable")
        )
        bad += overruns + crashes
        pages += tried
        figures += [Figure(f"crashes and writes past the end, {codec}", n, n, n, "") for n in [overruns + crashes]]
        if tried:
            figures.append(percent(f"blocks that do not decode, {codec}", stats.share(min(undecodable, tried), tried)))
            told.append(f"{codec} {figures[-1].text}")
        else:
            untried.append(codec)
    said = f"{bad} crashes or writes past the end in {pages:,} pages compressed while another thread rewrote them"
    if bad:
        return Decision("refuted", f"{said} (a matter of the codecs, not of KVM)", tuple(figures))
    if untried:
        raise Undecided(
            f"no page was compressed while it changed with {listed(untried)}: run `tmem bench exit`", figures
        )
    bound = stats.share(0, pages)
    figures.append(percent("crashes and writes past the end, at most", bound))
    said += f" (at most {number(100 * bound.high)} % at 95 %; a matter of the codecs, not of KVM)"
    return Decision("supported", f"{said}; blocks that do not decode: {', '.join(told)}", tuple(figures))


def _total(record: Record | None) -> int:
    """A count over all rounds; 0 where nothing was counted."""
    if record is None:
        return 0
    return round(sum(max(0.0, sample) for sample in record.samples))


def _sweep(results: ResultSet, work: str, dimension: str) -> list[tuple[float, Record]]:
    """The arms of one work at the exit to user space, ascending in what they vary."""
    found = results.all("exit", "round_trip", {"kind": "pio", "work": work})
    known = [(float(r.dimensions[dimension]), r) for r in found if dimension in r.dimensions]
    return sorted(known, key=lambda pair: pair[0])


HYPOTHESES = (
    Hypothesis(
        "H1",
        "Nothing is copied before a page is compressed: neither zcache nor Xen does it.",
        "Dan Magenheimer; conceded by Andrea Arcangeli",
        f"{SEED}; {ANDREA_NOV1}",
        "Bytes copied before compression by a put through an exit that maps the guest's page, as the bench states "
        "them, with a put by way of a bounce buffer as the control; puts out of a guest by channel, counted where "
        "there is a counter, with the byte stream as the control. For Xen and zcache: their code.",
        "Supported: 0 bytes in every round of the put in place, and through each channel that hands over addresses, if "
        "a guest was measured. Refuted: any. Only if the controls show the 4096 bytes that they copy.",
        tuple(Need("exit", "bytes_copied", {"arm": arm}) for arm in ("pio+put", "pio+put-bounce")),
        no_copy_before,
    ),
    Hypothesis(
        "H9",
        "Adding udelay(1) to an operation will not be noticeable.",
        "Andrea Arcangeli, in irony; Dan Magenheimer thought it worth trying",
        f"{ANDREA_OCT31}; {SEED}",
        "A put through an exit to user space with 0 to 100 µs of busy waiting in it.",
        "The wait that makes a put 1.05 times as long, from the line through all waits. Supported: wholly above 1 µs. "
        "Refuted: wholly at most 1 µs.",
        tuple(trip(f"pio+delay-{us}") for us in (0, 1, 10, 100)),
        a_microsecond_more,
    ),
    Hypothesis(
        "H12",
        "Batching can be added later and is no showstopper.",
        "Dan Magenheimer; Rik van Riel wanted a vector in the API; Dan then thought of batching in the guest",
        f"{DAN_OCT31}; {RIK_NOV2}; {DAN_NOV2}",
        "1 to 128 pages put in one exit to user space; cost of a page fitted as a/n + b. Beside it an exchange against "
        "a put and a get, and batches over a channel without a guest.",
        "Cost of a page alone over that of a page in the largest batch. Supported: wholly at most 2. Refuted: wholly "
        "above 2.",
        (trip("pio+put-batch-1"), trip("pio+put-batch-32")),
        batching_can_wait,
    ),
    Hypothesis(
        "H13",
        "Handing over page pointers without a copy is worth it.",
        "Andrea Arcangeli",
        ANDREA_OCT31,
        "A put through an exit to user space from the guest's page in place, and by way of a bounce buffer.",
        "Put by way of a bounce buffer over put in place. Supported: wholly above 1.05. Refuted: wholly at most 1.05.",
        (trip("pio+put"), trip("pio+put-bounce")),
        zero_copy_pays,
    ),
    Hypothesis(
        "H14",
        "Copying now and compressing in a thread shortens the synchronous part of a put.",
        "Seth Jennings and Dan Magenheimer",
        SEED,
        "A put that compresses at once against one that copies the page for another thread, through an exit to user "
        "space: median, p99, CPU time, pages waiting.",
        "Deferred over synchronous put. Supported: median wholly at most 1 and p99 not wholly above 1. Refuted: either "
        "wholly above 1.",
        (trip("pio+put"), trip("pio+put-deferred")),
        deferring_shortens,
    ),
    Hypothesis(
        "H15",
        "Compressing a page that changes meanwhile is safe as long as the algorithm does not crash.",
        "Andrea Arcangeli",
        ANDREA_OCT31,
        "lz4 and zstd compress pages that another thread keeps rewriting, in a process of their own, into a "
        "destination with a canary behind it; each block is then decompressed.",
        "Over all trials of both codecs. Supported: no crash and no write past the destination. Refuted: one of "
        "either.",
        tuple(Need("exit", "torn_crashes", {"arm": f"torn-{codec}"}) for codec in CODECS),
        torn_pages_are_safe,
    ),
)
