# SPDX-License-Identifier: Apache-2.0
"""Ratios, verdicts and page contents of the store and channel benches."""

from __future__ import annotations

import operator
from pathlib import Path

import lz4.block
import pytest

from tmem_host.bench import channel_figures, store_figures, store_pages
from tmem_host.bench.channel_backends import DaemonOptions, daemon_argv
from tmem_host.bench.comparators import Tree
from tmem_host.bench.comparators_load import busy_share
from tmem_host.bench.runner import Arm, BenchContext
from tmem_host.config import PAGE_SIZE
from tmem_host.errors import InvalidInput


def context(tmp_path: Path) -> BenchContext:
    return BenchContext("channel", tmp_path)


def rounds(ctx: BenchContext, metric: str, arm: Arm, values: list[list[float]], **labels: str | int) -> None:
    """Records the samples of some rounds as `interleave` does."""
    for index, samples in enumerate(values):
        ctx._now_round = index
        ctx.record(metric, "ns", samples, arm=arm, better="lower", **labels)
    ctx._now_round = None


def test_channel_ratios_pair_the_samples_of_one_round(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    where: dict[str, str | int] = {"client": "qemu-img", "op": "read", "depth": 1, "contents": "compressible"}
    rounds(ctx, "latency", Arm("tmem-lz4-poll"), [[10], [30]], **where)
    rounds(ctx, "latency", Arm("qsd-tmpfs"), [[100], [100]], **where)
    figure = channel_figures.FIGURES[0]
    assert channel_figures.ratios(ctx.results, figure, "tmem-lz4-poll", "qsd-tmpfs") == [0.1, 0.3]
    assert channel_figures.ratios(ctx.results, figure, "tmem-lz4-poll", "qsd-null") == []
    channel_figures.record_figures(ctx)
    [record] = ctx.results.find("against_qsd_tmpfs", arm="tmem-lz4-poll")
    assert record.samples == [0.1, 0.3]
    assert any(
        "depth 1, polling, read: 0.20 × qsd-tmpfs; goal at most 0.2: reached" in note for note in ctx.results.notes
    )


def test_channel_sentence_says_when_a_goal_is_missed() -> None:
    figure = next(f for f in channel_figures.FIGURES if f.reached is operator.ge)
    assert "at least 5: not reached" in channel_figures.sentence(figure, "qsd-tmpfs", 4.9)
    assert "goal" not in channel_figures.sentence(figure, "qsd-tmpfs-native", 4.9)


def test_store_ratio_is_of_the_medians_of_each_round(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    part = {"part": "cost"}
    rounds(ctx, "get", Arm("tmem-lz4", part), [[2, 4, 90], [6, 6]], contents="synthetic")
    rounds(ctx, "get", Arm("bare-lz4", part), [[4], [3, 3, 3]], contents="synthetic")
    figure = store_figures.Figure("get", "bare-lz4", 1.3, {}, {})
    assert store_figures.cost_ratios(ctx.results, figure, "synthetic") == [1.0, 2.0]
    store_figures.record_figures(ctx, ["synthetic", "corpus"])
    assert ctx.results.find("get_over_bare_lz4", contents="synthetic")
    assert not ctx.results.find("get_over_bare_lz4", contents="corpus")


def test_store_verdict() -> None:
    assert store_figures.verdict("x", 1.25, 1.25).endswith("reached")
    assert store_figures.verdict("x", 1.26, 1.25).endswith("not reached")


@pytest.mark.parametrize(("kind", "low", "high"), [("synthetic", 1.9, 2.1), ("small", 4.5, 6), ("random", 0.9, 1.01)])
def test_pages_compress_as_their_name_says(kind: str, low: float, high: float) -> None:
    pages = store_pages.contents(kind, 64, 1)
    assert pages == store_pages.contents(kind, 64, 1)
    assert pages != store_pages.contents(kind, 64, 2)
    one = [pages[i * PAGE_SIZE : (i + 1) * PAGE_SIZE] for i in range(64)]
    packed = sum(len(lz4.block.compress(page, store_size=False)) for page in one)
    assert low < len(pages) / packed < high
    assert len(set(one)) == 64


def test_same_filled_pages_and_unknown_ones() -> None:
    pages = store_pages.contents("same-filled", 3, 1)
    assert all(len(set(pages[i * PAGE_SIZE : (i + 1) * PAGE_SIZE])) == 1 for i in range(3))
    with pytest.raises(InvalidInput, match="nonsense"):
        store_pages.contents("nonsense", 1, 1)
    assert "nonsense" in store_pages.available("nonsense", 1)
    assert store_pages.available("synthetic", 1) == ""


def test_storage_daemon_command_line() -> None:
    tree = Tree(Path("/tree"), {})
    sockets, files = {"a": Path("/s/a.sock")}, {"a": Path("/s/a.raw")}
    plain = daemon_argv(tree, DaemonOptions("file"), sockets, files, 16)
    assert "driver=file,node-name=node0,filename=/s/a.raw,cache.direct=off" in plain
    assert not any("iothread" in word for word in plain)
    best = daemon_argv(tree, DaemonOptions("file", aio="native", iothread=True), sockets, files, 16)
    assert "driver=file,node-name=node0,filename=/s/a.raw,cache.direct=on,aio=native" in best
    assert best[-1].endswith("iothread=io")
    null = daemon_argv(tree, DaemonOptions("null-co"), sockets, files, 16)
    assert "driver=null-co,node-name=node0,size=65536,read-zeroes=on" in null


def test_busy_share_counts_what_is_not_idle() -> None:
    assert busy_share([0] * 8, [25, 0, 25, 40, 10, 0, 0, 0]) == pytest.approx(0.5)
    assert busy_share([0] * 8, [0] * 8) == 0.0
