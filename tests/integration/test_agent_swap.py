# SPDX-License-Identifier: Apache-2.0
"""Stock guests that swap to the agent: every page comes back, whatever happens to the agent meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from pathlib import Path

import pytest

from framework.agents import AgentFactory
from framework.vm import MEMORY_MIB, evidence_folder
from tmem_host.agent_process import AgentProcess
from tmem_host.errors import VmFailed
from tmem_host.models import Codec, VmUpdate
from tmem_host.vm.guest_client import GuestError
from tmem_host.vm.images import SERIES
from tmem_host.vm_run import HogPlan, HogReport, HogRun, guest, run_hog

pytestmark = pytest.mark.vm

MIB = 1 << 20
PLAN = HogPlan(memory_mib=MEMORY_MIB)


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Path:
    """Where logs go when the test fails."""
    return evidence_folder(request.node.name)


@pytest.fixture
def big_agent(make_agent: AgentFactory) -> AgentProcess:
    agent = make_agent(limit="1G")
    agent.start()
    return agent


def check(report: HogReport) -> None:
    plan = report.plan
    assert report.bad == 0
    assert report.pages == plan.hog_mib * plan.hogs * 256
    # The guest cannot have kept more than its memory, so the rest was here.
    assert report.pages_peak >= report.pages - plan.memory_mib * 256
    assert report.kills == plan.kills
    assert report.returned, f"{report.held_end} bytes held after swapoff, {report.held_start} at the start"
    if plan.codec == "none":
        assert 0.9 < report.ratio <= 1.01
    else:
        assert report.ratio > 1.5
    assert not any(report.counters.get(name) for name in ("refused_cap", "refused_room", "refused_frozen"))


#: The oldest kernel once: what differs between codecs is the host's.
RUNS = [
    (series, vcpus, codec)
    for series in SERIES
    for vcpus in (1, 2)
    for codec in ("lz4", "zstd", "none")
    if series != "5.10" or (vcpus, codec) == (1, "lz4")
]


@pytest.mark.parametrize(("series", "vcpus", "codec"), RUNS)
async def test_two_and_a_half_times_the_memory(
    series: str, vcpus: int, codec: Codec, big_agent: AgentProcess, evidence: Path
) -> None:
    plan = dataclasses.replace(PLAN, kernel=series, vcpus=vcpus, hogs=vcpus, codec=codec)
    check(await run_hog(plan, big_agent, evidence=evidence))


@pytest.mark.parametrize("series", SERIES)
async def test_ten_kills_in_one_run(series: str, big_agent: AgentProcess, evidence: Path) -> None:
    plan = dataclasses.replace(PLAN, kernel=series, vcpus=2, hogs=2, kills=10, poll_us=50)
    check(await run_hog(plan, big_agent, evidence=evidence))


async def test_a_kill_in_each_of_ten_runs_in_a_row(big_agent: AgentProcess, evidence: Path) -> None:
    plan = dataclasses.replace(PLAN, factor=1.5, kills=1)
    async with guest(plan, big_agent.client, "hog", evidence=evidence) as vm:
        await vm.agent.swap_on("hog", require_discard=True)
        for number in range(10):
            again = dataclasses.replace(plan, seed=number)
            run = HogRun(again, big_agent, "hog", lambda _what, _fraction: None)
            results = await run.hogs(vm)
            assert [result.bad for result in results] == [0], f"run {number}"
            assert run.killed == 1
        await vm.agent.swap_off("hog")


async def test_a_stop_in_good_order_loses_nothing_either(big_agent: AgentProcess, evidence: Path) -> None:
    plan = dataclasses.replace(PLAN, factor=2.0)
    async with guest(plan, big_agent.client, "hog", evidence=evidence) as vm:
        await vm.agent.swap_on("hog", require_discard=True)
        hog = asyncio.ensure_future(vm.agent.hog(plan.hog_mib, recheck=True, timeout=plan.deadline))
        for _ in range(3):
            await _grown(big_agent, "hog")
            await asyncio.to_thread(big_agent.restart)
        assert (await hog).bad == 0


async def _grown(agent: AgentProcess, name: str) -> None:
    """Returns when the VM has put a thousand pages more."""
    before = (await asyncio.to_thread(agent.client.get_vm, name)).counters["puts"]
    async with asyncio.timeout(120):
        while True:
            if (await asyncio.to_thread(agent.client.get_vm, name)).counters["puts"] >= before + 1000:
                return
            await asyncio.sleep(0.05)


async def test_a_run_has_failed_when_the_agent_ends(big_agent: AgentProcess) -> None:
    """The guest waits for its pages; nobody waits for the guest."""

    def end_agent(what: str, _fraction: float) -> None:
        if "write" in what:
            os.kill(big_agent.pid, signal.SIGKILL)

    with pytest.raises(VmFailed, match="has ended"):
        await run_hog(PLAN, big_agent, report=end_agent)
    big_agent.kill()


async def test_two_vms_never_see_each_others_pages(make_agent: AgentFactory, evidence: Path) -> None:
    agent = make_agent(limit="1G")
    agent.start()
    plans = {
        "one": dataclasses.replace(PLAN, kernel="6.1", codec="lz4", seed=1000),
        "two": dataclasses.replace(PLAN, kernel="6.12", codec="zstd", seed=2000),
    }
    reports = await asyncio.gather(
        *(run_hog(plan, agent, name, evidence=evidence / name) for name, plan in plans.items())
    )
    for report in reports:
        # The other one holds memory too, so only the pages are looked at: each hog knows its own by their seed.
        assert report.bad == 0
        assert report.pages_peak > 0
    assert agent.client.list_vms() == []


async def test_a_vm_over_its_cap_is_told_and_harms_nobody(make_agent: AgentFactory, evidence: Path) -> None:
    agent = make_agent(limit="1G")
    agent.start()
    small = dataclasses.replace(PLAN, cap=24 * MIB, seed=1)
    other = dataclasses.replace(PLAN, seed=2)
    async with guest(small, agent.client, "small", evidence=evidence) as vm:
        await vm.agent.swap_on("small")
        harmless = asyncio.ensure_future(run_hog(other, agent, "other", evidence=evidence))
        # Its memory and its swap are full: the kernel ends the hog. It does not end the guest.
        with pytest.raises(GuestError):
            await vm.agent.hog(small.hog_mib, timeout=small.deadline)
        told = await asyncio.to_thread(agent.client.get_vm, "small")
        channel = await asyncio.to_thread(agent.client.channel, "small")
        assert told.counters["refused_cap"] > 0
        assert sum(channel.counters["refused"].values()) > 0
        assert told.held_bytes <= 24 * MIB
        assert "error" in vm.console_log.read_text().lower()
        report = await harmless
        assert report.bad == 0
        assert not report.counters["refused_cap"]
        assert not report.counters["refused_room"]
        # With the cap lifted it goes on, and what is there is right.
        await asyncio.to_thread(agent.client.update_vm, "small", VmUpdate(cap=None))
        assert (await vm.agent.hog(small.hog_mib, seed=7, timeout=small.deadline)).bad == 0
