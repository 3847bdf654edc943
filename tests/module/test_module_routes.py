# SPDX-License-Identifier: Apache-2.0
"""Pages of a real guest through tmem.ko, route by route, as ``tmem routes`` runs them: none comes back wrong.

``tmem routes`` itself has every route, more memory and more hogs; here is each source, each channel and each kernel.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from framework.agents import AgentFactory
from framework.vm import evidence_folder
from tmem_host.route_plan import Cell, Outcome, RoutePlan, parse_route
from tmem_host.route_run import run_cells

pytestmark = pytest.mark.vm

#: Enough that every page has been out once.
PLAN = RoutePlan(factor=1.5)


@pytest.mark.parametrize(
    ("kernel", "route", "vcpus", "hogs"),
    [
        ("5.10", "swap-disk:vhost-user-tmem", 1, 2),
        ("5.10", "frontswap:virtio-tmem", 2, 1),
        ("5.10-cleancache", "cleancache:virtio-tmem", 1, 1),
        ("6.1", "swap-disk:vhost-user-tmem", 2, 2),
        ("6.1", "swap-disk:virtio-tmem", 2, 2),
        ("6.12", "swap-disk:vhost-user-tmem", 2, 1),
        ("6.12", "swap-disk:virtio-tmem", 2, 2),
        ("6.12", "swap-disk:ivshmem", 1, 1),
    ],
)
async def test_route(
    kernel: str, route: str, vcpus: int, hogs: int, make_agent: AgentFactory, request: pytest.FixtureRequest
) -> None:
    cell = Cell(kernel, parse_route(route), vcpus, hogs)
    agent = make_agent(limit=2 * PLAN.options(vcpus).limit)
    agent.start()
    runs = run_cells(PLAN, [cell], agent, report=_silent, evidence=evidence_folder(request.node.name))
    outcomes: list[Outcome] = [found async for found in runs]
    assert [(found.state, found.reason) for found in outcomes] == [("ran", "")], outcomes


async def test_a_run_has_failed_when_the_agent_ends(make_agent: AgentFactory, tmp_path: Path) -> None:
    """The guest waits for its pages; nobody waits for the guest."""
    cells = [Cell("6.12", parse_route("swap-disk:vhost-user-tmem"), 1, hogs) for hogs in (1, 2)]
    agent = make_agent(limit=2 * PLAN.options(1).limit)
    agent.start()

    def end_agent(what: str, _fraction: float) -> None:
        if "write" in what:
            os.kill(agent.pid, signal.SIGKILL)

    outcomes = [found async for found in run_cells(PLAN, cells, agent, report=end_agent, evidence=tmp_path)]
    assert [found.state for found in outcomes] == ["failed", "failed"]
    assert "has ended" in outcomes[0].reason
    assert [path.name for path in tmp_path.iterdir()] == ["6.12-swap-disk-vhost-user-tmem-1"]
    agent.kill()


def _silent(_what: str, _fraction: float) -> None:
    return
