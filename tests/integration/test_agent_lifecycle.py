# SPDX-License-Identifier: Apache-2.0
"""``tmem serve`` as a process: started, stopped, killed, started again, and what it refuses to start on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework.agents import LIMIT, AgentFactory
from framework.pages import fill, opened, wrong
from tmem_host.agent_process import AgentProcess, temporary_agent
from tmem_host.config import default_arena
from tmem_host.errors import NoSpace, NotFound, Unavailable, VmFailed
from tmem_host.models import VmCreate, VmUpdate

MIB = 1 << 20
PAGES = range(0, 1024, 5)
#: Seconds after which something that is to happen has not happened.
DEADLINE = 30.0


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.01)


def refused(agent: AgentProcess, code: int, words: str) -> None:
    """Starting ends with that code and one line that holds the words, and that agent does not run."""
    done = subprocess.run(agent.command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last.startswith("tmem: ")) == (code, True), done.stderr
    assert words in last
    assert "Traceback" not in done.stderr
    with pytest.raises(Unavailable):
        agent.client.health()


def with_pages(agent: AgentProcess, *names: str) -> None:
    """VMs of those names with PAGES, and the agent stopped."""
    agent.start()
    for name in names:
        agent.client.create_vm(VmCreate(name=name, size_bytes=4 * MIB))
    agent.kill()
    assert agent.arena is not None
    with opened(agent.arena) as store:
        for name in names:
            fill(store, name, PAGES)


def test_start_serve_stop(make_agent: AgentFactory, state: Path) -> None:
    agent = make_agent()
    agent.start()
    assert agent.client.health().pid == agent.pid
    made = agent.client.create_vm(VmCreate(name="web", size_bytes=4 * MIB))
    for path in (state / "api.sock", Path(made.socket)):
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o600
    assert agent.arena is not None
    assert agent.arena.stat().st_mode & 0o077 == 0
    agent.stop()
    assert not (state / "api.sock").exists()
    assert not Path(made.socket).exists()
    assert "stopped; every page stays in the arena" in (state / "agent.log").read_text()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_goes_on_where_it_was(make_agent: AgentFactory, arena: Path, end: str) -> None:
    agent = make_agent()
    with_pages(agent, "web", "db")
    agent.start()
    agent.client.update_vm("web", VmUpdate(codec="zstd", cap=8 * MIB, weight=9))
    agent.client.freeze_vm("db")
    before = agent.client.list_vms()
    assert [vm.pages for vm in before] == [len(PAGES)] * 2
    for _ in range(3):
        getattr(agent, end)()
        agent.start()
    after = agent.client.list_vms()
    assert [vm.model_dump(exclude={"counters", "pools"}) for vm in after] == [
        vm.model_dump(exclude={"counters", "pools"}) for vm in before
    ]
    assert agent.client.store().recovery["pages"] == 2 * len(PAGES)
    agent.client.remove_vm("db")
    agent.kill()
    agent.start()
    assert [vm.name for vm in agent.client.list_vms()] == ["web"]
    agent.kill()
    with opened(arena) as store:
        assert wrong(store, "web", PAGES) == []


def test_what_was_acknowledged_survives_a_kill(make_agent: AgentFactory) -> None:
    agent = make_agent()
    agent.start()
    for number in range(5):
        agent.client.create_vm(VmCreate(name=f"vm{number}", size_bytes=1 * MIB))
        agent.kill()
        agent.start()
        assert len(agent.client.list_vms()) == number + 1
        assert {vm.channel for vm in agent.client.list_vms()} == {"listening"}


def test_the_state_remembers_the_arena(make_agent: AgentFactory, arena: Path) -> None:
    with_pages(make_agent(), "web")
    agent = make_agent()
    agent.arena = None
    agent.start()
    assert agent.client.store().arena == str(arena)
    assert agent.client.get_vm("web").pages == len(PAGES)
    agent.stop()
    agent.arena = arena.with_name("other")
    refused(agent, 2, "have their pages in")


def test_one_agent_a_state_folder(agent: AgentProcess, make_agent: AgentFactory) -> None:
    second = make_agent()
    done = subprocess.run(second.command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 4
    assert f"process id {agent.pid}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert agent.client.health().pid == agent.pid


def test_one_agent_an_arena(agent: AgentProcess, make_agent: AgentFactory, shared: Path) -> None:
    refused(make_agent(folder=shared / "second"), 4, "in use by another process")
    assert agent.client.health().pid == agent.pid


def test_a_state_that_cannot_be_read_is_left_alone(make_agent: AgentFactory, state: Path) -> None:
    with_pages(make_agent(), "web")
    good = (state / "state.json").read_bytes()
    for broken in (good[:100], b"", b"\x00" * 50, good.replace(b"lz4", b"gzip")):
        (state / "state.json").write_bytes(broken)
        refused(make_agent(), 7, "nothing was changed")
        assert (state / "state.json").read_bytes() == broken
    (state / "state.json").unlink()
    agent = make_agent()
    agent.start()
    assert agent.client.get_vm("web").pages == len(PAGES)


def test_a_missing_arena_is_an_error_until_the_loss_is_accepted(make_agent: AgentFactory, arena: Path) -> None:
    with_pages(make_agent(), "web")
    arena.unlink()
    refused(make_agent(), 7, "--accept-loss")
    assert not arena.exists()
    agent = make_agent("--accept-loss")
    agent.start()
    assert agent.client.get_vm("web").pages == 0


def test_a_truncated_arena_is_an_error_and_left_alone(make_agent: AgentFactory, arena: Path) -> None:
    with_pages(make_agent(), "web")
    whole = arena.stat().st_size
    for size in (100, 4096, whole - 4096):
        os.truncate(arena, size)
        refused(make_agent(), 7, str(arena))
        assert arena.stat().st_size == size


def test_a_corrupt_arena_is_an_error_and_left_alone(make_agent: AgentFactory, arena: Path) -> None:
    with_pages(make_agent(), "web")
    with arena.open("r+b") as file:
        file.write(b"garbage!" * 16)
    before = arena.read_bytes()
    refused(make_agent(), 7, str(arena))
    assert arena.read_bytes() == before


def test_a_file_that_is_no_arena_is_left_alone(make_agent: AgentFactory, arena: Path) -> None:
    arena.write_text("my thesis, the only copy\n" * 1000)
    before = arena.read_bytes()
    refused(make_agent(), 7, str(arena))
    assert arena.read_bytes() == before


def test_socket_paths(make_agent: AgentFactory, shared: Path) -> None:
    with pytest.raises(Exception, match="107"):
        make_agent(folder=shared / ("d" * 100))
    agent = make_agent(folder=shared / ("d" * 60))
    agent.start()
    with pytest.raises(Exception, match="107 are possible"):
        agent.client.create_vm(VmCreate(name="n" * 60, size_bytes=MIB))
    assert agent.client.list_vms() == []


def test_sockets_in_use(make_agent: AgentFactory, state: Path) -> None:
    agent = make_agent()
    with_pages(agent, "web")
    for path in (state / "vms" / "web.sock", state / "api.sock"):
        with socket.socket(socket.AF_UNIX) as other:
            path.unlink(missing_ok=True)
            other.bind(str(path))
            other.listen()
            done = subprocess.run(agent.command, capture_output=True, text=True, timeout=DEADLINE, check=False)
            assert (done.returncode, str(path) in done.stderr.splitlines()[-1]) == (4, True)
    # both are stale now
    agent.start()
    assert agent.client.get_vm("web").pages == len(PAGES)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 24 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24M,mode=700", "tmem-test", str(where)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "--lazy", str(where)], check=True)


def test_a_tmpfs_that_is_too_small(make_agent: AgentFactory, small: Path) -> None:
    agent = make_agent(limit="64M")
    agent.arena = small / "arena"
    refused(agent, 5, "choose another --limit")
    agent.limit = "16M"
    agent.start()
    agent.client.create_vm(VmCreate(name="web", size_bytes=4 * MIB))
    (small / "other").write_bytes(bytes(16 * MIB))
    with pytest.raises(NoSpace):
        agent.client.create_vm(VmCreate(name="db", size_bytes=8 * MIB))
    assert [vm.name for vm in agent.client.list_vms()] == ["web"]


def test_a_state_folder_on_a_full_file_system(make_agent: AgentFactory, small: Path) -> None:
    agent = make_agent(folder=small / "state")
    agent.start()
    agent.client.create_vm(VmCreate(name="web", size_bytes=MIB))
    with (small / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
        while other.write(bytes(4096)):
            pass
    with pytest.raises(NoSpace, match=r"state\.json"):
        agent.client.create_vm(VmCreate(name="db", size_bytes=MIB))
    assert [vm.name for vm in agent.client.list_vms()] == ["web"]
    (small / "other").unlink()
    agent.client.create_vm(VmCreate(name="db", size_bytes=MIB))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_good_order(agent: AgentProcess, number: signal.Signals) -> None:
    process = agent._process
    assert process is not None
    process.send_signal(number)
    assert process.wait(DEADLINE) == 0
    assert not (agent.state / "api.sock").exists()


def test_a_second_signal_ends_it_at_once_and_loses_nothing(make_agent: AgentFactory) -> None:
    agent = make_agent()
    with_pages(agent, "web")
    agent.start()
    process = agent._process
    assert process is not None
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(agent.state / "api.sock"))
        # A request under way, which a stop in good order waits for.
        slow.sendall(b"POST /v1/vms HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n")
        agent.client.health()
        process.send_signal(signal.SIGTERM)
        until(lambda: "SIGTERM: stopping" in (agent.state / "agent.log").read_text(), "the first signal is taken")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 128 + signal.SIGTERM
    agent.kill()
    agent.start()
    assert agent.client.get_vm("web").pages == len(PAGES)


def test_an_agent_that_was_not_ready_says_why(make_agent: AgentFactory, state: Path) -> None:
    (state / "state.json").write_text("{")
    with pytest.raises(VmFailed, match="is not JSON"):
        make_agent().start()


def test_it_does_not_outlive_who_started_it(state: Path, arena: Path) -> None:
    code = (
        "import sys, time; from tmem_host.agent_process import AgentProcess\n"
        f"agent = AgentProcess({str(state)!r}, {str(arena)!r}, {LIMIT})\n"
        "agent.start(); print(agent.pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        ended = os.pidfd_open(pid)
        try:
            starter.kill()
            starter.wait()
            until(lambda: not (state / "api.sock").exists(), "the agent has ended")
        finally:
            os.close(ended)


def test_a_temporary_agent_leaves_nothing() -> None:
    with temporary_agent(LIMIT) as agent:
        assert agent.client.health().vms == 0
        state, folder = agent.state, default_arena(agent.state).parent
        assert folder.is_dir()
    assert not state.exists()
    assert not folder.exists()


def test_many_clients_at_once(agent: AgentProcess) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def come_and_go(number: int) -> None:
        name = f"vm{number}"
        agent.client.create_vm(VmCreate(name=name, size_bytes=MIB))
        for _ in range(5):
            agent.client.list_vms()
            agent.client.update_vm(name, VmUpdate(weight=number + 1))
        assert agent.client.get_vm(name).weight == number + 1
        agent.client.remove_vm(name)
        with pytest.raises(NotFound):
            agent.client.get_vm(name)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(come_and_go, range(32)))
    assert agent.client.list_vms() == []
    assert agent.client.store().reserved_bytes == 0


def test_what_goes_to_the_journal_has_a_priority(make_agent: AgentFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    agent = make_agent("--listen", "127.0.0.1:0")
    with subprocess.Popen(agent.command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        lines = []
        for line in running.stderr:
            lines.append(line)
            if "API on" in line:
                break
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=DEADLINE)
    assert all(re.match(r"<[346]>\S", line) for line in lines)
    assert any(line.startswith("<4>there is no token yet") for line in lines)
