# SPDX-License-Identifier: Apache-2.0
"""The plots of exit and density: which are drawn from what, what they say, and that labels stay in their drawing."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from framework.made_results import ALL, density_results, exit_results, swap_results
from tmem_host.bench.layout import headline, layout_for
from tmem_host.bench.results import Results
from tmem_host.report import svg
from tmem_host.report.canvas import text_width, trimmed
from tmem_host.report.draw import Plot
from tmem_host.report.plots import plots_for
from tmem_host.report.plots_exit_curves import crossing
from tmem_host.report.words import arm_name, kind_name, row_note

EXIT_PLOTS = ("ladder", "work", "work-disk", "ways", "distribution", "tail", "batch", "delay", "crossover")


@pytest.fixture(scope="module")
def exits() -> Results:
    return exit_results()


def plots(results: Results) -> dict[str, Plot]:
    return {p.key: p for p in plots_for(results)}


def texts(drawing: str, kind: str = "") -> list[str]:
    return [t.text or "" for t in ElementTree.fromstring(drawing).iter("text") if not kind or t.get("class") == kind]


def told(plot: Plot) -> str:
    return ElementTree.fromstring(plot.wide).findtext("desc") or ""


@pytest.mark.parametrize("bench", sorted(ALL))
def test_every_drawing_is_whole_and_its_labels_are_within(bench: str) -> None:
    for plot in plots_for(ALL[bench]()):
        assert len(plot.caption) > 20
        for drawing, width in ((plot.wide, svg.WIDE), (plot.narrow, svg.NARROW)):
            tree = ElementTree.fromstring(drawing)
            assert float(tree.get("width", "0")) == width
            for text in tree.iter("text"):
                x, size = float(text.get("x", "0")), text_width(text.text or "") * 0.9
                left = {"start": x, "middle": x - size / 2, "end": x - size}[text.get("text-anchor", "start")]
                assert left >= -2, (plot.key, text.text)
                assert left + size <= width + 2, (plot.key, text.text)


def test_the_exit_bench_has_its_plots(exits: Results) -> None:
    assert tuple(plots(exits)) == EXIT_PLOTS


def test_the_ladder_goes_from_no_exit_to_the_disk(exits: Results) -> None:
    ladder = plots(exits)["ladder"]
    assert texts(ladder.wide, "group") == [
        "No exit",
        "Exit answered in the kernel",
        "Exit to user space",
        "Handed to another thread",
        "A page in the store, by PIO",
        "A page in a file, by PIO",
    ]
    labels = texts(ladder.wide, "label")
    assert labels[0] == "guest loop that does nothing"
    assert labels[-1] == "io_uring read"
    assert "hypercall" not in labels
    assert "PIO from a minimal C loop" not in labels
    assert len(labels) == len(texts(ladder.narrow, "label")) == 26


def test_exit_and_work_says_the_share_of_the_exit(exits: Results) -> None:
    work = plots(exits)["work"]
    assert "copy 4 KiB, in cache 2.2" in told(work)
    assert "zstd compression 16" in told(work)
    shares = [int(part.rpartition("exit ")[2].rstrip("%")) for part in told(work).split("; ")]
    assert shares[0] > 90
    assert shares[-1] < 20


def test_an_exit_that_is_lost_in_noise_is_not_a_negative_bar(exits: Results) -> None:
    spoilt = exits.model_copy(deep=True)
    record = spoilt.find("round_trip", arm="pio+disk-read")[0]
    record.samples = [s * 0.9 for s in record.samples]
    assert "O_DIRECT read 108 µs · exit lost in noise" in told(plots(spoilt)["work-disk"])


def test_the_batch_curve_has_its_fit(exits: Results) -> None:
    batch = plots(exits)["batch"]
    put = batch.legend[0][2]
    assert put.startswith("put: 2.1")
    assert "/ n + 3.8" in put or "/ n + 3.9" in put
    assert texts(batch.wide, "tick")[-9:-1] == ["1", "2", "4", "8", "16", "32", "64", "128"]


def test_the_delay_that_is_noticed_is_marked(exits: Results) -> None:
    delay = plots(exits)["delay"]
    (mark,) = texts(delay.wide, "note strong")
    # Five percent of a put and an exit of 6.0 µs.
    assert 280 < float(mark.removeprefix("5 % at ").removesuffix(" ns")) < 320
    assert "noticed: 5 % slower" in texts(delay.wide, "note")


def test_the_crossover_is_marked_or_told_to_be_elsewhere(exits: Results) -> None:
    crossover = plots(exits)["crossover"]
    assert "store by PIO exit is faster at every latency tried" in crossover.caption
    assert texts(crossover.wide, "note strong")[0].startswith("even at ")
    slow = exits.model_copy(deep=True)
    for work in ("put", "get"):
        record = slow.find("round_trip", arm=f"pio+{work}")[0]
        record.samples = [s * 10_000 for s in record.samples]
    assert "store by PIO exit is slower at every latency tried" in plots(slow)["crossover"].caption


@pytest.mark.parametrize(
    ("level", "at"), [(10.0, 1.0), (100.0, 10.0), (31.6227766, 3.16227766), (5.0, None), (1001.0, None)]
)
def test_crossings_are_found_on_log_axes(level: float, at: float | None) -> None:
    assert crossing([1, 10, 100], [10, 100, 1000], level) == (at if at is None else pytest.approx(at))


def test_a_flat_piece_is_no_crossing() -> None:
    assert crossing([1, 10, 100], [10, 10, 1000], 100) == pytest.approx(10**1.5)


def test_what_is_missing_is_left_out(exits: Results) -> None:
    few = exits.model_copy(update={"records": [r for r in exits.records if r.dimensions.get("work") == "nothing"]})
    assert list(plots(few)) == ["ladder", "distribution"]


def test_density_is_drawn_over_the_number_of_vms() -> None:
    found = plots(density_results())
    assert list(found) == [
        "throughput",
        "page_cpu",
        "latency",
        "interval",
        "fairness",
        "slowest_share",
        "latency-distribution",
        "vm_memory",
        "creation",
        "quota",
        "channel-throughput",
        "channel-latency",
        "channel-page-cpu",
        "channel-fairness",
        "channel-vm-memory",
    ]
    assert [name for _, _, name in found["channel-throughput"].legend] == [
        *("vhost-user-tmem", "virtio-serial", "inline", "engine")
    ]
    ticks = texts(found["throughput"].wide, "tick")
    assert {"1", "10", "100", "1000", "0.5×", "5×", "50×", "500×", "pages/s"} <= set(ticks)
    assert [label for _, _, label in found["latency"].legend] == [
        "sync-store",
        "async-store",
        "sync-disk",
        "async-disk",
    ]
    assert {dash for _, dash, label in found["latency"].legend if label.startswith("async")} == {"5 3"}


def test_density_with_two_numbers_of_cpus_names_them() -> None:
    results = density_results(counts=(1, 100))
    more = density_results(counts=(1, 100), seed=2)
    for record in more.records:
        record.dimensions["cpus"] = 1
    results.records += [r for r in more.records if r.arm == "sync-store"]
    labels = [label for _, _, label in plots(results)["throughput"].legend]
    assert labels[0] == "sync-store, 2 CPUs"
    assert labels[-1] == "sync-store, 1 CPU"
    assert layout_for(results).rows == ("cpus", "vms")
    assert layout_for(more).rows == ("vms",)


def test_quotas_stand_beside_their_cap_and_share() -> None:
    quota = told(plots(density_results())["quota"])
    assert "with a cap 2" in quota
    assert "cap 256 KiB" in quota
    assert "weight 300" in quota
    assert quota.count("share") == 2
    assert plots(density_results())["quota"].wide.count('class="goal"') == 3


def test_the_headline_of_exit_has_a_row_for_each_kind(exits: Results) -> None:
    rows = {row.arm: row for row in headline(exits)}
    assert "pio+put" not in rows
    assert "reference-c" in rows
    assert "harness" not in rows
    put = rows["pio"].cells[3]
    assert put is not None
    assert put.ratio is not None
    assert 1.4 < put.ratio.value < 1.7
    assert rows["bare"].cells[3] is not None
    assert rows["bare"].cells[3].ratio is None
    assert rows["cpuid"].cells[3] is None


def test_names_in_words(exits: Results) -> None:
    assert kind_name("pio16") == "PIO, 16-bit"
    assert kind_name("something-else") == "something-else"
    assert arm_name(exits.find("round_trip", arm="irqfd-sleep+put")[0]) == "sleeping thread, irqfd back: store put, lz4"
    assert row_note("exit", "loop") == "guest loop that does nothing"
    assert row_note("store", "loop") == ""


@pytest.mark.parametrize(
    ("text", "short"),
    [("10.0 µs", "10 µs"), ("1.00×", "1×"), ("0.500×", "0.5×"), ("1.25 ms", "1.25 ms"), ("100", "100")],
)
def test_ticks_are_short(text: str, short: str) -> None:
    assert trimmed(text) == short


@pytest.mark.parametrize("width", [svg.WIDE, svg.NARROW])
@pytest.mark.parametrize("low", [0.0, 1.0, 1e-9])
def test_odd_rungs_can_be_drawn(low: float, width: int) -> None:
    rungs = [svg.Rung("a", "g", "s0", low, low, low, low), svg.Rung("b", "h", "s1", 5.0, 4.0, 6.0, 5.5)]
    ElementTree.fromstring(svg.ladder(rungs, "ns", width, "t", "d"))


def test_swap_is_drawn_with_a_hue_for_each_channel() -> None:
    made = swap_results()
    found = plots(made)
    legend = found["page-in"].legend
    assert [name for _, _, name in legend] == [
        *("vhost-user-blk", "vhost-user-tmem", "virtio-tmem", "virtio-serial", "ivshmem", "disk-none", "zram", "null")
    ]
    assert len({colour for colour, _, _ in legend}) == len(legend)
    named = [name for _, _, name in found["fault-tail"].legend]
    assert {"swap-disk-virtio-tmem", "frontswap-virtio-tmem", "tmem-lz4-poll"} <= set(named)
    twin = [
        r.model_copy(update={"dimensions": {**r.dimensions, "arm": "tmem-zstd"}})
        for r in made.find("fault_latency", arm="tmem-lz4")
    ]
    made.records += twin
    # One line for each channel, whatever the codec.
    assert [name for _, _, name in plots(made)["fault-tail"].legend] == named
