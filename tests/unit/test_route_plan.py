# SPDX-License-Identifier: Apache-2.0
"""Which runs of routes there are, and what counts as a run that failed."""

from __future__ import annotations

import pytest

from tmem_host.errors import InvalidInput
from tmem_host.route_plan import Cell, Outcome, cells, faults, parse_route
from tmem_host.vm.routes import KERNELS, Route, missing, routes

DISK = Route("swap-disk", "virtio-tmem")


def test_every_route_of_every_kernel_runs_or_says_why_not() -> None:
    runs, cannot = cells(chosen=routes())
    seen = {(run.kernel, run.route) for run in runs} | {(one.kernel, one.route) for one in cannot}
    assert seen == {(kernel, route) for kernel in KERNELS for route in routes()}
    assert not {(run.kernel, run.route) for run in runs} & {(one.kernel, one.route) for one in cannot}
    assert all(one.reason for one in cannot)


def test_each_run_is_there_once_for_each_number_of_vcpus_and_hogs() -> None:
    runs, _ = cells(["6.1"], [DISK], (1, 2), (1, 2))
    assert [(run.vcpus, run.hogs) for run in runs] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_the_kernel_built_for_cleancache_runs_that_alone() -> None:
    runs, _ = cells(["5.10-cleancache"])
    assert {run.route.source for run in runs} == {"cleancache"}


@pytest.mark.parametrize(
    ("source", "channel", "kernel", "possible"),
    [
        ("virtio-blk", "vhost-user-blk", "6.12", True),
        ("virtio-blk", "virtio-tmem", "6.12", False),
        ("swap-disk", "vhost-user-blk", "6.12", False),
        ("swap-disk", "virtio-serial", "5.10", True),
        ("frontswap", "virtio-tmem", "5.10", True),
        ("frontswap", "virtio-tmem", "6.1", False),
        ("cleancache", "virtio-tmem", "5.10", False),
        ("cleancache", "virtio-tmem", "5.10-cleancache", True),
        ("cleancache", "ivshmem", "5.10-cleancache", False),
    ],
)
def test_what_a_kernel_has(source: str, channel: str, kernel: str, possible: bool) -> None:
    assert (missing(parse_route(f"{source}:{channel}"), kernel) == "") is possible


@pytest.mark.parametrize("text", ["", "swap-disk", "disk:virtio-tmem", "swap-disk:tcp", "swap-disk:virtio-tmem:x"])
def test_what_is_no_route(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_route(text)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(InvalidInput):
        missing(DISK, "2.4")


def outcome(route: Route = DISK, **changes: object) -> Outcome:
    fine: dict[str, object] = {"pages": 60_000, "out": 90_000, "back": 80_000, "seconds": 10.0}
    return Outcome(Cell("6.1", route, 1, 1), "ran", **{**fine, **changes})  # type: ignore[arg-type]


def test_a_run_as_it_should_be() -> None:
    assert faults(outcome()) == []
    assert outcome().rate == 17_000


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (outcome(bad=1), "wrong"),
        (outcome(out=0), "did not swap this way"),
        (outcome(back=0), "did not swap this way"),
        (outcome(Route("frontswap", "virtio-tmem"), evidence={"pswpout": 3}), "past frontswap"),
        (outcome(Route("cleancache", "virtio-tmem"), evidence={}), "no file page"),
        (
            outcome(Route("cleancache", "virtio-tmem"), evidence={"files_from_host": 9, "files_wrong": 1}),
            "did not read",
        ),
        (
            outcome(
                Route("cleancache", "virtio-tmem"),
                evidence={"files_from_host": 9, "files_from_disk": 3, "files_not_put": 2},
            ),
            "came from the disk",
        ),
    ],
)
def test_runs_that_failed(found: Outcome, word: str) -> None:
    assert any(word in fault for fault in faults(found))
