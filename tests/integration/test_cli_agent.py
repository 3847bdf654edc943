# SPDX-License-Identifier: Apache-2.0
"""The commands that stand for the API, against a real agent: pools, runs, top, guests that cannot be."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path

import pytest

from framework import fake_benches
from framework.agents import LIMIT
from tmem_host import cli
from tmem_host.agent_process import AgentProcess
from tmem_host.models import RunCreate

UUID = "00112233445566778899aabbccddeeff"


class Tmem:
    """``tmem`` in this process, on the test's agent."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What it prints; on stderr when another ``code`` is expected."""
        found = cli.run(list(arguments))
        said = self._capsys.readouterr()
        assert found == code, said
        return said.err if code else said.out


@pytest.fixture
def tmem(agent: AgentProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tmem:
    monkeypatch.setenv("TMEM_STATE", str(agent.state))
    return Tmem(capsys)


def test_pools(tmem: Tmem) -> None:
    tmem("vm", "add", "web", "--size", "4M")
    tmem("vm", "add", "db", "--channel", "tmem")
    made = json.loads(tmem("pool", "create", "web", "--size", "1M", "--codec", "zstd", "--json"))
    assert (made["pages_capacity"], made["codec"]) == (256, "zstd")
    number = str(made["id"])
    assert "persistent" in tmem("pool", "list")
    assert [pool["vm"] for pool in json.loads(tmem("pool", "list", "--vm", "web", "--json"))["pools"]] == ["web", "web"]
    assert json.loads(tmem("pool", "set", number, "--codec", "none", "--json"))["codec"] == "none"
    assert "0 of 256" in tmem("pool", "show", number)
    assert tmem("pool", "flush", number) == "0 pages flushed\n"
    tmem("pool", "destroy", number)
    assert "there is no pool" in tmem("pool", "show", number, code=3)
    assert "not authorised" in tmem("pool", "create", "web", "--ephemeral", "--uuid", UUID, code=6)
    for name in ("web", "db"):
        assert tmem("vm", "share", name, UUID) == f"{UUID}\n"
    shared = json.loads(tmem("pool", "create", "web", "--ephemeral", "--uuid", UUID, "--json"))
    tmem("pool", "create", "db", "--ephemeral", "--uuid", UUID)
    assert "say which one" in tmem("pool", "destroy", str(shared["id"]), code=2)
    tmem("pool", "destroy", str(shared["id"]), "--vm", "web")
    assert json.loads(tmem("pool", "show", str(shared["id"]), "--json"))["members"] == ["db"]
    assert tmem("vm", "share", "web", UUID, "--forbid") == ""
    assert "--size is a multiple" in tmem("pool", "create", "web", "--size", "5000", code=2)


def test_what_there_is_to_see(tmem: Tmem) -> None:
    version = json.loads(tmem("vm", "add", "web", "--size", "4M", "--channel", "blk", "--channel", "serial", "--json"))[
        "version"
    ]
    assert "blk, listening" in tmem("vm", "channel", "web")
    assert json.loads(tmem("vm", "channel", "web", "--kind", "serial", "--json"))["kind"] == "serial"
    assert "has said nothing yet" in tmem("vm", "guest", "web", code=3)
    assert "CPUs" in tmem("host")
    assert json.loads(tmem("host", "--json"))["cpus"] >= 1
    assert 'tmem_vm_pages{vm="web"} 0' in tmem("metrics")
    assert json.loads(tmem("store", "--json"))["tiers"][0]["kind"] == "memory"
    changed = json.loads(tmem("vm", "set", "web", "--weight", "5", "--if-version", version, "--json"))
    assert changed["version"] != version
    assert "no longer those" in tmem("vm", "set", "web", "--weight", "6", "--if-version", version, code=4)


def test_saves(tmem: Tmem) -> None:
    tmem("vm", "add", "web", "--size", "4M")
    assert "0 pages in" in tmem("pool", "save", "0", "now")
    assert "now" in tmem("pool", "saves")
    assert tmem("pool", "restore", "0", "now").startswith("0 pages restored")
    tmem("pool", "forget", "now")
    assert json.loads(tmem("pool", "saves", "--json")) == {"saves": []}
    assert "there is no save now" in tmem("pool", "restore", "0", "now", code=3)


def test_top(tmem: Tmem) -> None:
    assert "no VM yet" in tmem("top", "--once", "-i", "0.2")
    tmem("vm", "add", "web", "--size", "4M", "--cap", "6M")
    tmem("vm", "add", "db", "--channel", "serial")
    text = tmem("top", "--once", "-i", "0.2")
    assert re.search(r"^web\s+listening\s+0", text, re.MULTILINE)
    found = json.loads(tmem("top", "--once", "-i", "0.2", "--json"))
    assert [(vm["name"], vm["cap"], vm["put_p99_ns"]) for vm in found["vms"]] == [
        ("db", None, None),
        ("web", 6 << 20, None),
    ]


def test_guests_that_cannot_be(tmem: Tmem, monkeypatch: pytest.MonkeyPatch) -> None:
    tmem("vm", "add", "plain", "--size", "4M")
    assert "without a machine" in tmem("vm", "start", "plain", code=4)
    assert "stopped" not in tmem("vm", "stop", "plain")
    assert "no console log" in tmem("vm", "console", "plain", code=3)
    bad = ("vm", "add", "web", "--channel", "tmem", "--kernel")
    assert "frontswap left the kernel" in tmem(*bad, "6.12", "--source", "frontswap", code=2)
    assert "needs the channel blk" in tmem(*bad, "6.1", "--source", "virtio-blk", code=2)
    assert "no guest kernel" in tmem(*bad, "9.9", code=2)
    assert "web" not in tmem("vm", "list")


class FakeBenches(AgentProcess):
    """An agent whose benches are stand-ins."""

    @property
    def command(self) -> list[str]:
        plain = super().command
        return [sys.executable, fake_benches.__file__, *plain[plain.index("serve") :]]


def test_runs(
    state: Path, arena: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMEM_STATE", str(state))
    tmem = Tmem(capsys)
    with FakeBenches(state, arena, LIMIT):
        assert cli.run(["run", "start", "store"]) == 0
        said = capsys.readouterr()
        assert re.search(r"^state\s+done$", said.out, re.MULTILINE)
        assert [line for line in said.err.splitlines() if not line.startswith(" ")] == ["running", "done"]
        assert "2/4 round" in said.err
        assert "b: the device is gone" in tmem("run", "start", "store", "--set", "do=arm-fails")
        assert "is not NAME=VALUE" in tmem("run", "start", "store", "--set", "do", code=2)
        hanging = json.loads(tmem("run", "start", "exit", "--set", "do=hang", "--no-follow", "--json"))
        tmem("run", "cancel", str(hanging["id"]))
        tmem("run", "follow", str(hanging["id"]))
        assert json.loads(tmem("run", "show", str(hanging["id"]), "--json"))["state"] == "cancelled"
        assert [run["state"] for run in json.loads(tmem("run", "list", "--json"))["runs"]] == [
            "cancelled",
            "done",
            "done",
        ]
        assert json.loads(tmem("run", "results", "1"))["results"][0]["bench"] == "store"
        tmem("run", "report", "1", "--out", str(tmp_path / "r.html"))
        assert "<html" in (tmp_path / "r.html").read_text()
        tmem("run", "log", "1")
        assert "no bench 'tea'" in tmem("run", "start", "tea", code=2)
        assert "there is no run 99" in tmem("run", "follow", "99", code=3)


def test_an_agent_stops_while_somebody_follows(state: Path, arena: Path) -> None:
    with FakeBenches(state, arena, LIMIT) as agent:
        number = agent.client.create_run(RunCreate(bench="store", settings={"do": "hang"})).id
        heard: list[str] = []
        first = threading.Event()

        def follow() -> None:
            for _seq, kind, _data in agent.client.follow_run(number):
                heard.append(kind)
                if kind == "progress":
                    first.set()

        follower = threading.Thread(target=follow)
        follower.start()
        assert first.wait(30)
        agent.stop()
        follower.join(30)
        assert not follower.is_alive()
        agent.start()
        assert agent.client.get_run(number).state == "interrupted"
        # Behind what it heard: the end.
        rest = [(kind, data.get("state")) for _seq, kind, data in agent.client.follow_run(number, len(heard))]
        assert rest[-1] == ("state", "interrupted")
