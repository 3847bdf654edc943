# SPDX-License-Identifier: Apache-2.0
"""Runs as jobs: real processes of stand-in benches that do what they are told, followed, cancelled, cut off."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from framework import fake_benches
from framework.api import problem
from tmem_host.bench import all_child
from tmem_host.errors import InvalidInput, NotFound
from tmem_host.models import RunCreate, RunInfo
from tmem_host.runs import Runs
from tmem_host.runs.history import ENDED, FILE, History
from tmem_host.service import Service

DEADLINE = 60.0


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_child, "PROGRAM", fake_benches.PROGRAM)


@pytest.fixture
def runs(state: Path) -> Iterator[Runs]:
    found = Runs(state / "runs")
    found.open()
    yield found
    found.close()


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.02)


def ended(runs: Runs, number: int) -> RunInfo:
    until(lambda: runs.get(number).state in ENDED, f"run {number} ends")
    return runs.get(number)


def wanted(do: str = "measure", **more: Any) -> RunCreate:
    return RunCreate(bench="store", settings={"do": do}, **more)


def hanging(runs: Runs, number: int) -> int:
    """The process id of a run that hangs by now."""
    file = runs.folder(number) / fake_benches.HANGS
    until(lambda: file.is_file() and bool(file.read_text()), f"run {number} hangs")
    return int(file.read_text())


def alive(pid: int) -> bool:
    return Path("/proc", str(pid)).exists()


async def told(runs: Runs, number: int, after: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
    async with asyncio.timeout(DEADLINE):
        return [(e.seq, e.kind, e.data) async for e in runs.follow(number, after) if e is not None]


async def test_a_run_from_its_start_to_its_report(runs: Runs) -> None:
    made = runs.create(wanted(quick=True, seed=7), "somebody")
    assert (made.state, made.who, made.started, made.report) == ("queued", "somebody", None, False)
    events = await told(runs, made.id)
    assert [seq for seq, _, _ in events] == list(range(1, len(events) + 1))
    states = [data["state"] for _, kind, data in events if kind == "state"]
    assert states == ["running", "done"]
    progress = [data for _, kind, data in events if kind == "progress"]
    assert progress[-1]["step"] == "making the report"
    assert progress[-1]["done"] == progress[-1]["steps"] > 0
    found = runs.get(made.id)
    assert (found.state, found.results, found.report, found.reason) == ("done", True, True, "")
    assert found.started is not None
    assert found.ended is not None
    assert found.created <= found.started <= found.ended
    (results,) = runs.results(made.id).results
    assert (results["bench"], results["seed"], results["quick"]) == ("store", 7, True)
    assert b"<html" in runs.report(made.id).read_bytes()
    # Cut off anywhere, a follower goes on behind what it has seen.
    for cut in (0, 1, len(events) - 1, len(events)):
        assert await told(runs, made.id, cut) == events[cut:]


@pytest.mark.parametrize(
    ("do", "end", "words", "results"),
    [
        ("arm-fails", "done", "b: the device is gone", True),
        ("unavailable", "failed", "there is no such device", True),
        ("no-results", "failed", "signal 11", True),
        ("crash", "failed", "signal 11", True),
    ],
)
def test_a_run_that_fails_says_why(runs: Runs, do: str, end: str, words: str, results: bool) -> None:
    found = ended(runs, runs.create(wanted(do), "local").id)
    assert (found.state, found.results) == (end, results)
    assert words in found.reason
    assert "\n" not in found.reason


def test_one_at_a_time_and_a_cancelled_one_leaves_nothing(runs: Runs) -> None:
    first = runs.create(wanted("hang"), "local").id
    second = runs.create(wanted(), "local").id
    third = runs.create(wanted(), "local").id
    pid = hanging(runs, first)
    assert [runs.get(number).state for number in (first, second, third)] == ["running", "queued", "queued"]
    assert runs.cancel(second).state == "cancelled"
    assert runs.cancel(second).state == "cancelled"
    assert runs.cancel(first).state == "cancelling"
    assert runs.cancel(first).state in ("cancelling", "cancelled")
    assert ended(runs, first).state == "cancelled"
    assert not alive(pid)
    assert ended(runs, third).state == "done"
    assert runs.cancel(third).state == "done"
    assert not runs.folder(second).exists()
    assert [run.id for run in runs.list_().runs] == [third, second, first]
    page = runs.list_(limit=2)
    assert (page.next, [run.id for run in runs.list_(before=int(page.next or 0)).runs]) == (str(second), [first])


def test_an_agent_that_stops_ends_a_run_at_once(state: Path) -> None:
    runs = Runs(state / "runs")
    first, second = (runs.create(wanted(do), "local").id for do in ("stubborn", "measure"))
    pid = hanging(runs, first)
    runs.close()
    assert not alive(pid)
    again = Runs(state / "runs")
    again.open()
    assert again.get(first).state == "interrupted"
    # What waited goes on with the next agent.
    assert ended(again, second).state == "done"
    again.close()


async def test_an_agent_that_was_killed_leaves_interrupted_runs(state: Path) -> None:
    history = History(state / "runs")
    number = history.add(wanted(), "local")
    history.move(number, "running")
    history.close()
    runs = Runs(state / "runs")
    runs.open()
    assert [data["state"] for _, _, data in await told(runs, number)] == ["running", "interrupted"]
    assert runs.get(number).reason == "the agent ended meanwhile"
    runs.close()


@pytest.mark.parametrize("content", [b"garbage" * 1000, b""])
def test_a_history_that_cannot_be_read_is_set_aside(state: Path, content: bytes) -> None:
    folder = state / "runs"
    folder.mkdir(mode=0o700)
    (folder / FILE).write_bytes(content)
    runs = Runs(folder)
    runs.open()
    assert runs.list_().runs == []
    runs.close()
    aside = list(folder.glob(f"{FILE}.unreadable-*"))
    assert [file.read_bytes() for file in aside] == ([content] if content else [])
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600


def test_what_is_no_run(runs: Runs) -> None:
    with pytest.raises(InvalidInput, match="no bench 'nonsense'"):
        runs.create(RunCreate(bench="nonsense"), "local")
    with pytest.raises(InvalidInput, match=r"store\.rounds"):
        runs.create(RunCreate(bench="all", rounds=3), "local")
    for call in (runs.get, runs.cancel, runs.results, runs.report, runs.log):
        with pytest.raises(NotFound):
            call(99)


@pytest.mark.parametrize(
    "settings", [{"disk_dir": "/etc"}, {"store.disk_dir": "/"}, {"a b": 1}, {"do": "x\ny"}, {"": 1}]
)
async def test_settings_that_reach_for_the_host_are_refused(api: httpx.AsyncClient, settings: dict[str, Any]) -> None:
    problem(await api.post("/runs", json={"bench": "store", "settings": settings}), 422, "invalid-input")


async def test_runs_over_the_api(api: httpx.AsyncClient, service: Service) -> None:
    made = await api.post("/runs", json={"bench": "store", "settings": {"do": "measure"}})
    assert (made.status_code, made.headers["location"], made.json()["who"]) == (201, "/v1/runs/1", "local")
    await asyncio.to_thread(ended, service.runs, 1)
    stream = await api.get("/runs/1/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = [dict(line.split(": ", 1) for line in part.split("\n")) for part in stream.text.strip().split("\n\n")]
    assert (events[-1]["event"], json.loads(events[-1]["data"])["state"]) == ("state", "done")
    rest = await api.get("/runs/1/events", headers={"last-event-id": events[-2]["id"]})
    assert rest.text.strip() == stream.text.strip().split("\n\n")[-1]
    assert (await api.get("/runs/1/report")).headers["content-type"].startswith("text/html")
    assert (await api.get("/runs/1/results")).json()["results"][0]["bench"] == "store"
    assert (await api.get("/runs/1/log")).status_code == 200
    assert (await api.delete("/runs/1")).json()["state"] == "done"
    assert [run["id"] for run in (await api.get("/runs")).json()["runs"]] == [1]
    for path in ("/runs/2", "/runs/2/events", "/runs/2/report", "/runs/2/log", "/runs/2/results"):
        problem(await api.get(path), 404, "not-found")
    problem(await api.get("/runs/1/events", headers={"last-event-id": "x"}), 422, "invalid-input")
