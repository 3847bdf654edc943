# SPDX-License-Identifier: Apache-2.0
"""What the core says reaches the agent's log; and a monitor that makes it say much is cut short."""

from __future__ import annotations

import contextlib
import socket
import time

from framework.agents import AgentFactory
from tmem_host.models import VmCreate

MIB = 1 << 20


def test_a_broken_session_is_in_the_agents_log(make_agent: AgentFactory) -> None:
    agent = make_agent()
    agent.start()
    made = agent.client.create_vm(VmCreate(name="web", size_bytes=4 * MIB))
    log = agent.state / "agent.log"

    def told() -> list[str]:
        return [line for line in log.read_text().splitlines() if "tmem_host.journal" in line and "web.sock" in line]

    end = time.monotonic() + 30
    while not told():
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(made.socket)
            monitor.sendall(b"\xff" * 64)
            monitor.settimeout(5)
            # It hangs up, bytes unread or not: these are no message.
            with contextlib.suppress(ConnectionResetError):
                assert monitor.recv(1) == b""
        assert time.monotonic() < end, log.read_text()
    assert all(" WARNING " in line for line in told())
    agent.stop()
