# SPDX-License-Identifier: Apache-2.0
"""Figures of workloads in a guest: what they are made of, and what a guest that lies can do to them."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import pytest

from tmem_host.bench.guest_bench import Plan
from tmem_host.bench.guest_figures import Room, WorkFigures, hog_figures, word, work_figures
from tmem_host.bench.runner import BenchContext, BenchError
from tmem_host.errors import InvalidInput
from tmem_host.models import RunCreate
from tmem_host.runs import Runs
from tmem_host.runs.job import arguments
from tmem_host.vm.guest_results import collect_hog, collect_workload

MIB = 1 << 20


def samples(*values: int) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}I", *values)).decode()


def hog(**phase: Any) -> WorkFigures:
    """A hog of two random passes."""
    told = {
        "event": "phase",
        "phase": "random",
        "pages": 2,
        "nanoseconds": 10**9,
        "bad": 0,
        "major": 1,
        "rewrites": 0,
        "accesses": 2,
        "vmstat": {"pswpin": 3, "pswpout": 1},
        "samples": samples(1 << 31 | 9, 4),
        **phase,
    }
    start = {"event": "start", "pages": 2, "clock_ns": {}}
    return hog_figures(collect_hog([start, told, told, {"event": "done", "bad": 0, "verified": True}], 0, 2.5))


def build(**series: Any) -> WorkFigures:
    told = [
        {"event": "start", "kind": "build", "unit": "jobs", "items": 2, "seed": 1, "clock_ns": {}},
        {"event": "phase", "phase": "compile", "done": 2, "nanoseconds": 10**9, "bad": 0, "counts": {}, "vmstat": {}},
        {
            "event": "samples",
            "phase": "compile",
            "series": "job",
            "part": 0,
            "seen": 2,
            "faults": 0,
            "total_ns": 8 * 10**9,
            "samples": samples(5, 6),
            **series,
        },
        {"event": "done", "bad": 0},
    ]
    return work_figures(collect_workload("build", told, 0, 3.0), "build")


def test_passes_are_one_phase() -> None:
    made = hog()
    (phase,) = made.phases
    assert (made.kind, made.seconds, made.bad, made.job_seconds) == ("hog", 2.5, 0, None)
    assert (phase.name, phase.seconds, phase.swapped_in, phase.swapped_out) == ("random", 2.0, 6, 2)
    assert phase.latency_ns == {"hit": (4, 4), "fault": (9, 9)}
    assert hog(bad=2).bad == 4


def test_long_jobs_are_told_by_their_mean() -> None:
    made = build()
    assert made.job_seconds == 4.0
    assert made.phases[0].latency_ns == {}


@pytest.mark.parametrize(
    "lie",
    [
        {"phase": "<script>"},
        {"phase": 7},
        {"bad": -1},
        {"bad": True},
        {"bad": 1.5},
        {"bad": 1 << 62},
        {"vmstat": {"pswpin": "3"}},
        {"vmstat": {"pswpout": -3}},
    ],
    ids=str,
)
def test_lies_of_a_hog(lie: dict[str, Any]) -> None:
    with pytest.raises((BenchError, TypeError)):
        hog(**lie)


@pytest.mark.parametrize("lie", [{"series": "<b>"}, {"seen": -1}, {"seen": 0.5}], ids=str)
def test_lies_of_a_build(lie: dict[str, Any]) -> None:
    with pytest.raises(BenchError):
        build(**lie)


def told(available: object, *swaps: object) -> dict[str, Any]:
    return {"meminfo": {"MemAvailable": available}, "swaps": dict(enumerate(swaps))}


def test_data_for_a_guest() -> None:
    room = Room.of(told(100 * MIB, {"bytes": 256 * MIB, "used": 56 * MIB}))
    assert (room.available, room.swap_free) == (100 * MIB, 200 * MIB)
    assert room.mib(1.5) == 150
    # Some swap is left to others, and without any a workload has to fit.
    assert room.mib(9.0) == 250
    assert Room.of(told(100 * MIB)).mib(1.5) == 100
    lies: list[dict[str, Any]] = [told("1"), told(1, 5), told(1, {"bytes": 1}), {"meminfo": [], "swaps": {}}, {}]
    for lie in lies:
        with pytest.raises(BenchError):
            Room.of(lie)


def test_what_a_guest_calls_itself() -> None:
    assert word("6.1.0-56-cloud-amd64") == "6.1.0-56-cloud-amd64"
    assert word("a\x1b[2J\n" * 1000) == ("a[2J" * 16)
    assert word(["x"]) == word("") == "unknown"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs a VM"),
        ({"vm": "../x"}, "cannot name a VM"),
        ({"vm": "web", "arms": "zipf,chess"}, "no workload 'chess'"),
        ({"vm": "web", "samples": "65537"}, "samples is 65537"),
        ({"vm": "web", "seconds": "0"}, "seconds is 0"),
        ({"vm": "web", "mib": "-1"}, "mib is -1"),
        ({"vm": "web", "factor": "nan"}, "factor is nan"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Plan.of(BenchContext("guest", tmp_path, options=options))


def test_a_run_names_its_vm_and_its_agent(tmp_path: Path) -> None:
    wanted = RunCreate(bench="guest", settings={"vm": "web", "seconds": 3})
    assert arguments(wanted, tmp_path)[-6:] == ["--set", "vm=web", "--set", "seconds=3", "--state", str(tmp_path)]
    assert "--state" not in arguments(RunCreate(bench="store"), tmp_path)
    runs = Runs(tmp_path / "runs")
    for settings in ({}, {"vm": 7}, {"vm": "a/b"}):
        with pytest.raises(InvalidInput, match="VM"):
            runs.create(RunCreate(bench="guest", settings=settings), "local")
    with pytest.raises(ValueError, match="names a file of the host"):
        RunCreate(bench="guest", settings={"vm": "web", "state": "/elsewhere"})
    runs.close()
