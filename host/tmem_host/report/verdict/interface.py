# SPDX-License-Identifier: Apache-2.0
"""What the operations themselves are worth: H16, and figures over channels that stand beside H1 and H12.

From the store's compound pages (bench `store`), and from requests over channels without a guest (bench `channel`), so
that an emulated guest has no part in them. Copies are counted, and are the same under any accelerator.
"""

from __future__ import annotations

from tmem_host.bench.results import Record, Scalar
from tmem_host.bench.units import human
from tmem_host.config import PAGE_SIZE
from tmem_host.report.verdict.mails import ANDREA_OCT31
from tmem_host.report.verdict.model import Aside, Decision, Figure, Hypothesis, Need
from tmem_host.report.verdict.resultset import ResultSet
from tmem_host.report.verdict.rules import decided, listed, scaled, side, times

DENSER = 1.1
DEARER = 2.0
ROWS = {"contents": "files"}
"""Bytes in a row, as a compound page has them."""
ADDRESSES = ("virtio-tmem", "vhost-user-tmem")
"""Channels that hand over where a page lies, not the page."""
SERIAL = "virtio-serial"

UNITS = Need("store", "compression_ratio", {"unit_bytes": PAGE_SIZE, **ROWS})
GET_PAGE = Need("store", "get_page", {"unit_bytes": PAGE_SIZE, **ROWS})


def larger_units_pay(results: ResultSet) -> Decision:
    """H16. Units larger than a page pay when they compress clearly better (10 %) and 4 KiB can still be had out of one
    at no more than twice the cost; one such unit is enough. Bytes and time of the store itself: no guest in it. The
    bytes of a compound page belong together, so those in a row decide; what single pages in random order would gain is
    told, as are what a range of bytes saves against its page, and what one request for 64 KiB saves against sixteen:
    an interface may be worth its place where the store's units are not.
    """
    base, single = results.need(UNITS), results.need(GET_PAGE)
    figures: list[Figure] = []
    verdicts: list[str] = []
    told = []
    for record in results.all("store", "compression_ratio", ROWS):
        unit = record.dimensions.get("unit_bytes")
        cost = results.maybe("store", "get_page", unit_bytes=unit, **ROWS) if isinstance(unit, int) else None
        if not isinstance(unit, int) or unit <= PAGE_SIZE or cost is None:
            continue
        gain, dearer = results.ratio(record, base), results.ratio(cost, single)
        name = human(unit, "bytes")
        figures += [times(f"compression over that of 4 KiB, {name}", gain), times(f"4 KiB out of {name}", dearer)]
        pays = side(gain, DENSER) == "above" and side(dearer, DEARER) == "below"
        fails = side(gain, DENSER) == "below" or side(dearer, DEARER) == "above"
        verdicts.append("pays" if pays else "fails" if fails else "unsure")
        told.append(f"{name}: {figures[-2].text} as dense, 4 KiB out of it {figures[-1].text} as dear")
    if not verdicts:
        return Decision("open", "there are no figures of units larger than 4 KiB: run `tmem bench store`")
    said = f"units against 4 KiB: {'; '.join(told)}"
    for more, beside in (_random_pages(results), _ranges(results), _one_request(results)):
        said += more
        figures += beside
    if "pays" in verdicts:
        return decided("supported", said, figures)
    return decided("open" if "unsure" in verdicts else "refuted", said, figures, "1.1× or 2×")


def _random_pages(results: ResultSet) -> Aside:
    """How much denser 64 KiB of pages are that do not belong together."""
    where = {"contents": "corpus"}
    base = results.maybe("store", "compression_ratio", unit_bytes=PAGE_SIZE, **where)
    unit = results.maybe("store", "compression_ratio", unit_bytes=16 * PAGE_SIZE, **where)
    if base is None or unit is None:
        return "", ()
    figure = times("compression over that of 4 KiB, 64 KiB of pages in random order", results.ratio(unit, base))
    return f"; of pages gathered at random 64 KiB are {figure.text} as dense", (figure,)


def _ranges(results: ResultSet) -> Aside:
    """What 64 bytes of a page cost against the page."""
    part = results.maybe("store", "get_range", unit_bytes=PAGE_SIZE, **ROWS)
    page = results.maybe("store", "get_page", unit_bytes=PAGE_SIZE, **ROWS)
    if part is None or page is None:
        return "", ()
    figure = times("64 bytes out of a page over the page", results.ratio(part, page))
    return f"; 64 bytes out of a page take {figure.text} the page", (figure,)


def _one_request(results: ResultSet) -> Aside:
    """A put of 64 KiB over sixteen of 4 KiB, each with a request of its own, through a channel that sleeps."""
    both = [_request(results, "put", page_bytes=size) for size in (16 * PAGE_SIZE, PAGE_SIZE)]
    if both[0] is None or both[1] is None:
        return "", ()
    saved = scaled(results.ratio(both[0], both[1]), 1 / 16)
    figure = times("put of 64 KiB over sixteen of 4 KiB, vhost-user-tmem asleep", saved)
    return f"; over a channel that sleeps a put of 64 KiB takes {figure.text} sixteen of 4 KiB", (figure,)


def _request(results: ResultSet, op: str, **where: Scalar) -> Record | None:
    labels = {"batch": 1, "page_bytes": PAGE_SIZE, **where}
    return results.maybe("channel", "tmem_request", arm="vhost-user-tmem-event", op=op, **labels)


def exchange_saves(results: ResultSet) -> Aside:
    """What a put and a get cost with an exit each, against both in one; and the same where a thread has to wake."""
    told, figures = [], []
    pairs = (
        ("an exit to user space", results.maybe("exit", "round_trip", arm="pio+put+get"),
         results.maybe("exit", "round_trip", arm="pio+exchange")),
        ("a thread that wakes", _request(results, "put+get"), _request(results, "exchange")),
    )  # fmt: skip
    for what, two, one in pairs:
        if two is not None and one is not None:
            figures.append(times(f"put and get over exchange, {what}", results.ratio(two, one)))
            told.append(f"{figures[-1].text} with {what} each")
    if not told:
        return "", ()
    return f"; a put and a get cost {listed(told)} what an exchange costs", tuple(figures)


def batches_over_a_channel(results: ResultSet) -> Aside:
    """A page alone over one in the largest batch, where a thread has to wake for each request."""
    found = results.all("channel", "tmem_page", {"arm": "vhost-user-tmem-event", "op": "put"})
    by_size = {int(r.dimensions["batch"]): r for r in found if "batch" in r.dimensions}
    if 1 not in by_size or max(by_size) == 1:
        return "", ()
    most = max(by_size)
    figure = times(
        f"page alone over one in a batch of {most}, put, woken thread", results.ratio(by_size[1], by_size[most])
    )
    return f"; where a thread has to wake for each request, a page alone costs {figure.text} one in a batch", (figure,)


def copies_by_channel(results: ResultSet) -> tuple[str, list[Figure], list[Figure]]:
    """What the channels copy: a sentence, figures of those that hand over addresses, and of the one that hands over
    bytes. Empty without the arms inside a guest.
    """
    totals: dict[tuple[str, str], float] = {}
    for record in results.all("channel", "bytes_copied"):
        key = (str(record.dimensions.get("channel", "")), record.arm)
        totals[key] = totals.get(key, 0.0) + max(record.samples)
    by_channel: dict[str, float] = {}
    for (channel, _arm), total in totals.items():
        by_channel[channel] = max(total, by_channel.get(channel, 0.0))
    if not by_channel:
        return "", [], []
    figures = {c: Figure(f"bytes copied by {c}", n, n, n, "bytes") for c, n in by_channel.items()}
    said = listed([f"{human(n, 'bytes')} by {c}" for c, n in by_channel.items()])
    return said, [figures[c] for c in ADDRESSES if c in figures], [figures[SERIAL]] if SERIAL in figures else []


HYPOTHESES = (
    Hypothesis(
        "H16",
        "An interface should take compound pages, and ranges of bytes.",
        "Andrea Arcangeli",
        ANDREA_OCT31,
        "The store with units of 64 KiB and 2 MiB against 4 KiB, over bytes that lie in a row: compression, and the "
        "cost of getting 4 KiB out. Beside it 64 bytes out of a page, and one request for 64 KiB against sixteen.",
        "Supported: a unit with compression wholly above 1.1 times that of 4 KiB, and 4 KiB out of it wholly at most 2 "
        "times as dear. Refuted: every unit wholly fails one of the two.",
        (UNITS, GET_PAGE),
        larger_units_pay,
    ),
)
