# SPDX-License-Identifier: Apache-2.0
"""Workloads in a guest that is too small for them: they swap to the host, nothing is bad, samples come, they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from framework.agents import AgentFactory
from framework.vm import MEMORY_MIB, evidence_folder
from tmem_host.client import AgentClient
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.guest_client import GuestClient, GuestError, GuestGone
from tmem_host.vm.guest_results import Progress
from tmem_host.vm.qemu import Runtime
from tmem_host.vm_run import HogPlan, guest

pytestmark = pytest.mark.vm

#: More than such a guest has to give; and little, as a page that comes back takes a fifth of a millisecond under TCG.
DATA_MIB = 48


#: Bytes of swap that others than a workload may use.
FEW = 12 << 20

#: Pages that Linux discards together, at the most: SWAPFILE_CLUSTER of mm/swapfile.c with CONFIG_THP_SWAP.
SWAP_CLUSTER = 512


@asynccontextmanager
async def swapping_guest(
    make_agent: AgentFactory, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[DirectVm, AgentClient]]:
    agent = make_agent(limit="1G")
    await asyncio.to_thread(agent.start)
    plan = HogPlan(memory_mib=MEMORY_MIB)
    async with guest(plan, agent.client, "work", evidence=evidence_folder(request.node.name)) as vm:
        assert isinstance(vm, DirectVm)
        await vm.agent.swap_on("work", require_discard=True, page_cluster=0)
        yield vm, agent.client


async def swap_used(agent: GuestClient) -> int:
    """Bytes."""
    report = await agent.report()
    return int(report["swap_total"] - report["swap_free"])


async def until_nothing_is_swapped(agent: GuestClient, deadline: float = 60.0) -> None:
    """What was ended has given its memory back: a few MiB of others may stay."""
    end = time.monotonic() + deadline
    while (used := await swap_used(agent)) > FEW:
        assert time.monotonic() < end, f"{used} bytes are swapped still"
        await asyncio.sleep(0.05)


async def test_workloads_swap_and_nothing_is_bad(make_agent: AgentFactory, request: pytest.FixtureRequest) -> None:
    async with swapping_guest(make_agent, request) as (vm, _host):
        seen: list[Progress] = []
        zipf = await vm.agent.workload("zipf", DATA_MIB, count=2000, progress=seen.append)
        assert zipf.bad == 0
        assert {progress.phase for progress in seen} >= {"fill", "access", "check"}
        access = zipf.phase("access")
        assert access.counts["faults"] == access.series["fault"].seen > 100
        assert len(access.series["fault"].major_ns) == min(8192, access.counts["faults"])
        assert access.vmstat["pswpin"] > 100

        redis = await vm.agent.workload("redis", DATA_MIB, count=4000, samples=1000)
        serve = redis.phase("serve")
        assert redis.bad == 0
        assert len(serve.series["get"].major_ns) > 10
        assert len(serve.series["get"].all_ns) == 1000

        build = await vm.agent.workload("build", DATA_MIB // 3, jobs=4, parallel=3, object_kib=16)
        compiled = build.phase("compile")
        assert build.bad == 0
        assert compiled.counts["jobs"] == len(compiled.series["job"].all_ns) == 4
        assert compiled.vmstat["pswpout"] > 100

        await until_nothing_is_swapped(vm.agent)


async def test_a_workload_ends_when_it_is_cancelled_and_when_its_host_leaves(
    make_agent: AgentFactory, request: pytest.FixtureRequest
) -> None:
    async with swapping_guest(make_agent, request) as (vm, host):
        filled = asyncio.Event()

        def on_progress(progress: Progress) -> None:
            if progress.phase == "access":
                filled.set()

        def endless() -> asyncio.Task[object]:
            filled.clear()
            work = vm.agent.workload("zipf", DATA_MIB, count=1 << 40, progress=on_progress)
            return asyncio.create_task(work, name="endless")

        running = endless()
        await asyncio.wait_for(filled.wait(), 120)
        assert await swap_used(vm.agent) > FEW
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until_nothing_is_swapped(vm.agent)

        running = endless()
        await asyncio.wait_for(filled.wait(), 120)
        most = (await asyncio.to_thread(host.get_vm, "work")).pages
        await vm.agent.close()
        with pytest.raises(GuestGone):
            await running
        # What is freed there is discarded here, by the cluster: one that holds any other page of the guest stays.
        end = time.monotonic() + 60
        while (pages := (await asyncio.to_thread(host.get_vm, "work")).pages) > most - SWAP_CLUSTER:
            assert time.monotonic() < end, f"{pages} of {most} pages are kept still"
            await asyncio.sleep(0.05)
        again = GuestClient("again")
        await again.connect(agent_socket(vm))
        try:
            await again.hello()
            await until_nothing_is_swapped(again)
            with pytest.raises(GuestError, match="no workload runs"):
                await again.request("workload_cancel", target=2)
            await again.shutdown()
        finally:
            await again.close()


def agent_socket(vm: DirectVm) -> Path:
    """Where QEMU listens for who talks to the guest's agent."""
    return Runtime(vm.pages_socket.parent if vm.spec.pages_port else Path(vm.workdir), vm.console_log).agent
