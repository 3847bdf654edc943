# SPDX-License-Identifier: Apache-2.0
"""A guest's swap saved while it swaps, and restored into another agent: every page equal."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from pathlib import Path

import pytest

from framework.agents import AgentFactory
from framework.pages import opened
from framework.vm import MEMORY_MIB, evidence_folder
from tmem_host.agent_process import AgentProcess
from tmem_host.client import AgentClient
from tmem_host.models import SaveCreate, VmCreate
from tmem_host.vm.direct import DirectVm
from tmem_host.vm_run import HogPlan, guest

pytestmark = pytest.mark.vm

OBJECT = bytes(24)


async def _filled(client: AgentClient, pool: int) -> None:
    """Returns when the guest has swapped some pages out."""
    async with asyncio.timeout(120):
        while True:
            if (await asyncio.to_thread(client.get_pool, pool)).pages >= 5000:
                break
            await asyncio.sleep(0.05)


async def test_a_pool_is_saved_while_its_guest_swaps(
    make_agent: AgentFactory, arena: Path, shared: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    plan = dataclasses.replace(HogPlan(memory_mib=MEMORY_MIB), factor=2.0)
    agent = make_agent(limit="1G")
    agent.start()
    client = agent.client
    with AgentProcess(tmp_path / "other", shared / "other", "1G") as other:
        saves = other.state / "saves"
        saves.mkdir(mode=0o700)

        def moved(name: str) -> int:
            """Pages of the save, restored into a VM of that name of the other agent."""
            shutil.copy(agent.state / "saves" / f"{name}.tmem", saves)
            made = other.client.create_vm(VmCreate(name=name, size_bytes=plan.device_bytes))
            return other.client.restore_pool(made.pools[0].id, name).pages

        async with guest(plan, client, "web", evidence=evidence_folder(request.node.name)) as vm:
            pool = (await asyncio.to_thread(client.get_vm, "web")).pools[0].id
            assert isinstance(vm, DirectVm)
            await vm.agent.swap_on("web", require_discard=True)
            hog = asyncio.ensure_future(vm.agent.hog(plan.hog_mib, recheck=True, timeout=plan.deadline))
            await _filled(client, pool)
            live = await asyncio.to_thread(client.save_pool, pool, SaveCreate(name="live", passes=3))
            assert not hog.done()
            assert live.pages > 4000
            assert live.passes > 1
            assert await asyncio.to_thread(moved, "live") == live.pages
            assert (await hog).bad == 0
            # At one moment, with the delta: the guest stands still in the middle of its work, as for a migration.
            again = asyncio.ensure_future(vm.agent.hog(plan.hog_mib, seed=2, recheck=True, timeout=plan.deadline))
            await _filled(client, pool)
            await vm.qmp.execute("stop")
            end = await asyncio.to_thread(client.save_pool, pool, SaveCreate(name="end", freeze=True))
            found = await asyncio.to_thread(client.get_vm, "web")
            assert (end.pages, found.frozen) == (found.pages, False)
            assert await asyncio.to_thread(moved, "end") == end.pages > 1000
            there = (await asyncio.to_thread(other.client.get_vm, "end")).pools[0].id
            agent.kill()
            other.kill()
            with opened(arena) as one, opened(shared / "other") as two:
                pages = plan.device_bytes // 4096
                different = [i for i in range(pages) if one.get(pool, OBJECT, i) != two.get(there, OBJECT, i)]
                assert different == []
                assert sum(one.get(pool, OBJECT, i) is not None for i in range(pages)) == end.pages
            agent.start()
            await vm.qmp.execute("cont")
            assert (await again).bad == 0
