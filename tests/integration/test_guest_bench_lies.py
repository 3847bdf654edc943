# SPDX-License-Identifier: Apache-2.0
"""A guest that lies, floods or goes away spoils its own run and nothing else: no VM, but the agent and its port."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tmem_host.agent_process import AgentProcess
from tmem_host.models import RunCreate, VmCreate

MIB = 1 << 20
HELLO = {"protocol": 1, "kernel": "<script>\x1b[2J" * 100, "clocksource": 7, "cpus": 1, "mem_total_bytes": 100 * MIB}
ROOM = {"meminfo": {"MemAvailable": 64 * MIB}, "swaps": {"/dev/vda": {"bytes": 64 * MIB, "used": 0}}}
START = {"event": "start", "kind": "zipf", "unit": "pages", "items": 1, "seed": 1, "clock_ns": {}}
PHASE = {
    "event": "phase",
    "phase": "access",
    "done": 1,
    "nanoseconds": 1,
    "bad": 0,
    "counts": {},
    "vmstat": {},
}
Say = Callable[[dict[str, Any]], None]


def flood(say: Say) -> None:
    while True:
        say({"event": "bad", "x": "x" * 1_000_000})


def tell(*events: dict[str, Any]) -> Callable[[Say], None]:
    def work(say: Say) -> None:
        for event in (START, *events, {"event": "done", "bad": 0}):
            say(event)

    return work


@contextlib.contextmanager
def guest(path: Path, work: Callable[[Say], None]) -> Iterator[None]:
    """Answers one host as the guest's agent does, and works as it is told."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    thread = threading.Thread(target=_serve, args=(listener, work))
    thread.start()
    try:
        yield
    finally:
        # Wakes whoever waits for a host that never came.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        path.unlink()


def _serve(listener: socket.socket, work: Callable[[Say], None]) -> None:
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                asked = json.loads(line)

                def say(frame: dict[str, Any], number: int = asked["id"]) -> None:
                    stream.write(json.dumps({"id": number, **frame}).encode() + b"\n")
                    stream.flush()

                if asked["op"] == "workload":
                    work(lambda event, say=say: say({"event": "workload", "data": event}))  # type: ignore[misc]
                say({"ok": True, "status": 0, **(HELLO if asked["op"] == "hello" else ROOM)})


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (flood, "says more than 32 MiB"),
        (tell({**PHASE, "phase": "<script>"}), "a phase of zipf that there is none"),
        (tell({**PHASE, "nanoseconds": float("nan")}), "not a finite number"),
        (tell({**PHASE, "bad": 3}), "3 pages, values or files came back wrong"),
        (tell({"event": "progress", "phase": "x" * 10_000, "done": -1, "planned": 2, "bad": 0}), "tell progress"),
        (tell({"event": "phase"}), "lacks what it says"),
    ],
    ids=["flood", "phase", "nan", "bad", "progress", "shape"],
)
def test_a_lie_spoils_the_liars_run(agent: AgentProcess, work: Callable[[Say], None], reason: str) -> None:
    client = agent.client
    client.create_vm(VmCreate(name="liar", channels=("serial",)))
    with guest(agent.state / "vms" / "liar.agent.sock", work):
        run = client.create_run(RunCreate(bench="guest", arms="zipf", rounds=1, settings={"vm": "liar"}))
        for _event in client.follow_run(run.id):
            pass
    ended = client.get_run(run.id)
    assert reason in ended.reason
    (results,) = client.run_results(run.id)
    # What it said before is no figure.
    assert not [record for record in results["records"] if record["dimensions"].get("arm") == "zipf"]
    if ended.report:
        assert b"<script>\x1b" not in client.run_report(run.id)
    assert client.health().status == "ok"


def test_nobody_speaks_for_the_guest(agent: AgentProcess) -> None:
    client = agent.client
    client.create_vm(VmCreate(name="silent", channels=("serial",)))
    run = client.create_run(RunCreate(bench="guest", settings={"vm": "silent"}))
    for _event in client.follow_run(run.id):
        pass
    ended = client.get_run(run.id)
    assert ended.state == "failed"
    assert "the guest of silent cannot be spoken to" in ended.reason
