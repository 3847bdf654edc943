# SPDX-License-Identifier: Apache-2.0
"""The page: whole in itself, well-formed, with every plot, figure, failure and sample in it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tmem_host.bench.results import Failure, Record, Results
from tmem_host.report import svg
from tmem_host.report.canvas import nice_step
from tmem_host.report.draw import colours
from tmem_host.report.page import render, write_report
from tmem_host.report.plots import plots_for

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Checks nesting, and keeps what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attrs}
        if "id" in found:
            self.ids.append(found["id"])
        self.links += [found[k] for k in ("href", "src") if k in found]
        if tag == "script":
            self._script = found.get("id", "code")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return None

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


def record(metric: str, unit: str, arm: str, samples: list[float], **dimensions: str) -> Record:
    return Record(
        bench="swap", metric=metric, unit=unit, dimensions={"arm": arm, **dimensions}, samples=samples, better="lower"
    )


@pytest.fixture
def results() -> Results:
    made = Results(
        bench="swap",
        started=datetime(2026, 11, 23, 12, tzinfo=UTC),
        command=["tmem", "bench", "swap", "--quick"],
        quick=True,
        seed=1,
        arm_order=[["tmem-lz4", "disk-none"]] * 2,
        failures=[Failure(bench="swap", dimensions={"arm": "zram"}, reason="no <memory> left")],
        notes=["a note </script> with & signs"],
    )
    made.properties.host = {"cpu": "Test CPU", "cpus": 2, "kernel": "6.18", "governor": None, "memory_bytes": 1 << 30}
    made.properties.host["kvm_flavour"] = "absent"
    made.properties.guest = {"kernel_release": "6.1.0", "memory_mib": 96, "vcpus": 1, "accelerator": "tcg"}
    for arm, slow in (("tmem-lz4", 1.0), ("tmem-lz4-poll", 0.5), ("disk-none", 4.0)):
        for phase in ("write", "sequential", "random", "all"):
            made.records.append(record("run_time", "s", arm, [slow, slow * 1.1], phase=phase))
        faults = [slow * 1000 * (1 + i % 37) for i in range(400)]
        made.records.append(record("fault_latency", "ns", arm, faults, phase="random"))
        made.records.append(record("page_out", "ns", arm, [slow * 100] * 5))
        made.records.append(record("held", "bytes", arm, [slow * 1e6], where="host memory"))
    made.records.append(record("clock_cost", "ns", "harness", [50.0] * 100, where="host"))
    return made


def test_the_page_is_well_formed_and_fetches_nothing(results: Results) -> None:
    text = render([results])
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert [link for link in page.links if not link.startswith(("#", "data:"))] == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#|data:)", text)


def test_every_plot_is_drawn_wide_and_narrow_and_can_be_read_aloud(results: Results) -> None:
    plots = plots_for(results)
    assert [p.key for p in plots] == ["run-time", "fault-latency", "fault-tail", "page-out", "held"]
    for plot in plots:
        for drawing, width in ((plot.wide, svg.WIDE), (plot.narrow, svg.NARROW)):
            tree = ElementTree.fromstring(drawing)
            assert tree.get("role") == "img"
            assert tree.get("aria-label") == plot.title
            assert tree.findtext("title") == plot.title
            assert tree.findtext("desc")
            assert float(tree.get("width", "0")) == width


def test_nothing_is_drawn_outside_of_a_plot(results: Results) -> None:
    for plot in plots_for(results):
        for drawing in (plot.wide, plot.narrow):
            tree = ElementTree.fromstring(drawing)
            width, height = float(tree.get("width", "0")), float(tree.get("height", "0"))
            for text in tree.iter("text"):
                x, size = float(text.get("x", "0")), len(text.text or "") * 6.0
                left = {"start": x, "middle": x - size / 2, "end": x - size}[text.get("text-anchor", "start")]
                assert left >= -1, (plot.key, text.text)
                assert left + size <= width + 1, (plot.key, text.text)
                assert 0 <= float(text.get("y", "0")) <= height, (plot.key, text.text)


def test_each_part_says_machine_accelerator_and_how_to_do_it_again(results: Results) -> None:
    text = render([results])
    figures = len(plots_for(results))
    assert text.count("tmem bench swap --quick</code>") == figures
    assert text.count("TCG: says nothing about exits") == figures
    machine = "Test CPU, 2 CPUs · Linux 6.18 · KVM: absent · guest: Linux 6.1.0, 96 MiB, 1 vCPU · accelerator: tcg"
    assert text.count(machine) > figures
    assert "TCG (emulated CPU)" in text
    assert "not available" in text


def test_under_kvm_there_is_no_warning(results: Results) -> None:
    results.properties.guest["accelerator"] = "kvm"
    text = render([results])
    assert "says nothing about" not in text
    assert "accelerator: kvm" in text


def test_the_raw_data_is_inside_and_whole(results: Results) -> None:
    page = Page(render([results]))
    assert Results.model_validate(json.loads(page.scripts["data-swap"])) == results
    assert "#data-swap" in page.links


def test_failures_and_notes_are_listed_and_escaped(results: Results) -> None:
    text = render([results])
    assert "<b>zram</b> failed: no &lt;memory&gt; left" in text
    assert "a note &lt;/script&gt; with &amp; signs" in text


def test_a_run_without_figures_still_makes_a_page(tmp_path: Path) -> None:
    empty = Results(bench="swap", started=datetime(2026, 1, 1, tzinfo=UTC), command=[], seed=1)
    empty.failures.append(Failure(bench="swap", reason="no guest"))
    page = Page(write_report([empty], tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    assert plots_for(empty) == []


def test_several_benches_make_one_page(results: Results) -> None:
    other = results.model_copy(update={"bench": "density", "records": [], "failures": []})
    other.records = [
        Record(bench="density", metric="cost", unit="ns", dimensions={"arm": "x", "vms": n}, samples=[n])
        for n in (1, 9)
    ]
    page = Page(render([results, other]))
    assert {"swap", "density", "data-density", "density-cost"} <= set(page.ids)


def test_an_arm_looks_the_same_in_every_plot(results: Results) -> None:
    palette = colours(results)
    assert palette["tmem-lz4-poll"] == f"{palette['tmem-lz4']} poll"
    assert palette["disk-none"] != palette["tmem-lz4"]


@pytest.mark.parametrize("width", [svg.WIDE, svg.NARROW])
@pytest.mark.parametrize("samples", [[5.0], [5.0, 5.0], [1.0, 1e9], [0.0, 0.0, 3.0]])
def test_odd_samples_can_be_drawn(samples: list[float], width: int) -> None:
    ElementTree.fromstring(svg.strips([svg.Strip("a", samples, "s0")], "ns", width, "t", "d"))
    bar = svg.Bar("a", [svg.Segment(samples[0], "s0", "t")], "n", low=-1.0, high=samples[-1], dots=samples)
    ElementTree.fromstring(svg.bars([bar], "ns", width, "t", "d"))


@pytest.mark.parametrize(("span", "count", "step"), [(10, 5, 2), (1, 4, 0.5), (7, 7, 1), (0.03, 6, 0.005)])
def test_ticks_are_round_numbers(span: float, count: int, step: float) -> None:
    assert nice_step(span, count) == pytest.approx(step)
