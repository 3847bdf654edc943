# SPDX-License-Identifier: Apache-2.0
"""Guests that the agent itself runs: booted, swapping, stopped; none outlives the agent, however it ends."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.agents import AgentFactory
from framework.vm import MEMORY_MIB
from tmem_host.agent_process import AgentProcess
from tmem_host.errors import Conflict
from tmem_host.models import MachineSpec, VmCreate

pytestmark = pytest.mark.vm

MIB = 1 << 20
DEADLINE = 120.0


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.05)


def monitors(agent: AgentProcess) -> list[int]:
    """Process ids of QEMUs that have to do with the agent's state folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-system" in line.split(b"\0")[0] and str(agent.state).encode() in line:
                found.append(int(process.name))
    return found


def temporary() -> set[Path]:
    """Folders of guests that have none of their own."""
    return set(Path(tempfile.gettempdir()).glob("tmem-vm-*"))


def state_of(agent: AgentProcess) -> str:
    machine = agent.client.get_vm("web").machine
    assert machine is not None
    assert machine.state != "failed", machine.reason
    return machine.state


def test_a_guest_from_its_boot_to_the_end_of_the_agent(make_agent: AgentFactory) -> None:
    before = temporary()
    agent = make_agent(limit="512M")
    agent.start()
    client = agent.client
    wanted = VmCreate(name="web", size_bytes=128 * MIB, machine=MachineSpec(memory_mib=MEMORY_MIB))
    assert client.create_vm(wanted).machine is not None
    assert state_of(agent) == "stopped"
    started = client.start_vm("web")
    assert started.machine is not None
    assert started.machine.state in ("starting", "running")
    # Twice is as once.
    client.start_vm("web")
    until(lambda: state_of(agent) == "running", "the guest runs")
    found = client.get_vm("web")
    assert found.channel == "connected"
    # mkswap wrote the header of the swap device.
    assert found.counters["puts"] > 0
    assert "tmem-guest" in client.console("web")
    assert len(monitors(agent)) == 1
    with pytest.raises(Conflict, match="stop it first"):
        client.remove_vm("web")
    client.stop_vm("web")
    until(lambda: state_of(agent) == "stopped", "the guest has stopped")
    assert monitors(agent) == []
    # What its swap held is nobody's any more.
    client.start_vm("web")
    until(lambda: len(monitors(agent)) == 1, "the next guest boots")
    # In the middle of a boot: it goes with the agent.
    agent.stop()
    assert monitors(agent) == []
    agent.start()
    assert state_of(agent) == "stopped"
    client.start_vm("web")
    until(lambda: len(monitors(agent)) == 1, "the guest boots once more")
    agent.kill()
    until(lambda: monitors(agent) == [], "the guest has gone with the agent that was killed")
    agent.start()
    assert state_of(agent) == "stopped"
    # It left sockets, where the next one finds and replaces them.
    assert temporary() == before
    client.start_vm("web")
    until(lambda: len(monitors(agent)) == 1, "a guest boots after one that was killed")
    client.stop_vm("web")
    until(lambda: state_of(agent) == "stopped", "that has stopped, too")
    client.remove_vm("web")
    assert not (agent.state / "machines" / "web").exists()


class Unprivileged(AgentProcess):
    """An agent whose user is not root and has no capability, nor have its children."""

    PREFIX = ("unshare", "--user", "--map-user=1000", "--map-group=1000")

    @property
    def command(self) -> list[str]:
        return [*self.PREFIX, *super().command]


def test_nothing_of_it_needs_root(state: Path, arena: Path) -> None:
    if subprocess.run([*Unprivileged.PREFIX, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces cannot be made here")
    with Unprivileged(state, arena, "256M") as agent:
        client = agent.client
        client.create_vm(VmCreate(name="web", size_bytes=64 * MIB, machine=MachineSpec(memory_mib=MEMORY_MIB)))
        client.start_vm("web")
        until(lambda: state_of(agent) == "running", "the guest runs")
        for pid in (agent.pid, *monitors(agent)):
            assert "CapEff:\t0000000000000000" in Path(f"/proc/{pid}/status").read_text()
        assert client.get_vm("web").counters["puts"] > 0
    assert monitors(agent) == []
