# SPDX-License-Identifier: Apache-2.0
"""The agent's operations that run programs: what they accept, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tmem_guest import workload
from tmem_guest.port import HostGone
from tmem_guest.protocol import OpError, Request
from tmem_guest.server import Server
from tmem_host.vm.imagebuild import build
from tmem_host.vm.images import sources


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hog and the workloads, built as for an image."""
    folder = tmp_path_factory.mktemp("programs")
    build.compile_hog(sources().hog, folder / "hog")
    build.compile_work(sources().work, folder / "work")
    return folder


@pytest.fixture
def installed(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The agent finds its programs there; nothing of a build stays behind in the folder that is returned."""
    monkeypatch.setattr(workload, "FOLDERS", (str(programs),))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    yield scratch
    assert list(scratch.iterdir()) == []


def request(**arguments: object) -> Request:
    return Request(1, "workload", arguments)


def test_command_lines(installed: Path, programs: Path) -> None:
    hog = request(kind="hog", mib=10, seed=3, verify=False, pattern="synthetic:30", passes=2)
    words = workload.arguments(hog)
    assert words[0] == str(programs / "hog")
    assert set(words[1:]) == {"mib=10", "seed=3", "verify=0", "pattern=synthetic:30", "passes=2"}
    words = workload.arguments(request(kind="redis", mib=4, theta=50, value=100))
    assert words[:2] == [str(programs / "work"), "redis"]
    assert set(words[2:]) == {"mib=4", "theta=50", "value=100"}
    assert "dir=/x" in workload.arguments(request(kind="build", mib=1), "/x")


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "hog"},
        {"kind": "hog", "mib": 0},
        {"kind": "hog", "mib": 1, "pattern": "corpus:/etc/passwd"},
        {"kind": "hog", "mib": 1, "pattern": "synthetic:101"},
        {"kind": "hog", "mib": 1, "pattern": "synthetic:"},
        {"kind": "hog", "mib": 1, "pattern": "synthetic:-1"},
        {"kind": "hog", "mib": 1, "passes": 1001},
        {"kind": "hog", "mib": 1, "verify": 1},
        {"kind": "hog", "mib": 1, "theta": 1},
        {"kind": "zipf", "mib": 1, "theta": 100},
        {"kind": "zipf", "mib": 1, "dir": 5},
        {"kind": "zipf", "mib": "1"},
        {"kind": "redis", "mib": 1, "jobs": 2},
        {"kind": "build", "mib": 1, "parallel": 65},
        {"kind": "make", "mib": 1},
        {"mib": 1},
    ],
)
def test_bad_arguments_are_refused(installed: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(OpError) as refused:
        workload.arguments(request(**arguments))
    assert refused.value.kind == "invalid"


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "FOLDERS", ("/nonexistent",))
    with pytest.raises(OpError, match="'work' is not in /nonexistent"):
        workload.arguments(request(kind="zipf", mib=1))


def test_lines_come_and_the_status(installed: Path) -> None:
    lines: list[dict[str, object]] = []
    wanted = request(kind="build", mib=1, jobs=3, object_kib=4, sources=1, dir=str(installed))
    assert workload.workload(wanted, lambda line: lines.append(json.loads(line))) == {"status": 0}
    assert lines[0]["event"] == "start"
    assert lines[-1] == {"event": "done", "bad": 0}


def test_cancelled_it_ends_with_all_its_processes(installed: Path) -> None:
    folder = str(installed)
    wanted = request(kind="build", mib=8, jobs=10_000, dir=folder)
    status: list[object] = []
    begun = threading.Event()

    def on_line(line: bytes) -> None:
        if json.loads(line)["event"] == "progress":
            begun.set()

    thread = threading.Thread(target=lambda: status.append(workload.workload(wanted, on_line)["status"]))
    thread.start()
    assert begun.wait(60)
    workload.workload_cancel(Request(2, "workload_cancel", {"target": 1}))
    thread.join(60)
    assert status == [-9]
    with pytest.raises(OpError) as unknown:
        workload.workload_cancel(Request(2, "workload_cancel", {"target": 1}))
    assert unknown.value.kind == "not-found"


def test_nobody_listens_any_more(installed: Path) -> None:
    def gone(_line: bytes) -> None:
        raise HostGone

    with pytest.raises(HostGone):
        workload.workload(request(kind="zipf", mib=64, count=1 << 40), gone)


def test_a_host_that_comes_unseen_ends_what_another_began(installed: Path) -> None:
    said: list[dict[str, object]] = []
    began = threading.Event()

    def write(data: bytes) -> None:
        said.append(json.loads(data))
        began.set()

    server = Server(write)
    server.feed(b'{"id":1,"op":"workload","kind":"zipf","mib":4,"count":1000000000000}\n')
    assert began.wait(60)
    server.feed(b'{"id":1,"op":"hello","session":"another"}\n')
    until_no_child_is_left()
    server.feed(b'{"id":2,"op":"hello","session":"another"}\n')
    assert [frame["id"] for frame in said if "kernel" in frame] == [1, 2]
    assert "status" not in said[-1]


def until_no_child_is_left() -> None:
    """Waits for every child to be reaped by its worker."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


def test_a_host_that_leaves_ends_what_runs_for_it_and_the_next_hears_nothing_of_it(installed: Path) -> None:
    said: list[bytes] = []
    began = threading.Event()

    def write(data: bytes) -> None:
        said.append(data)
        began.set()

    server = Server(write)
    server.feed(b'{"id":1,"op":"workload","kind":"zipf","mib":4,"count":1000000000000}\n')
    assert began.wait(60)
    server.host_gone()
    said.clear()
    server.feed(b'{"id":1,"op":"report"}\n')
    until_no_child_is_left()
    answers = [json.loads(line) for line in b"".join(said).splitlines()]
    assert [answer["id"] for answer in answers] == [1]
    assert answers[0]["report"]["mem_total"] > 0
