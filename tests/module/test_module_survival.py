# SPDX-License-Identifier: Apache-2.0
"""The host agent killed, stalled and restarted while a guest swaps through tmem.ko: the guest waits, then goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from framework.agents import AgentFactory
from framework.vm import MEMORY_MIB, running_vm
from tmem_host.agent_process import AgentProcess
from tmem_host.vm.console import complaints
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.guest_results import HogResult, Progress
from tmem_host.vm.routes import (
    Channel,
    Options,
    Route,
    counters,
    host_end,
    image_of,
    module_load,
    swap_off,
    swap_on,
)
from tmem_host.vm.spec import VmSpec

pytestmark = pytest.mark.vm

NAME = "guest"
#: Seconds that the agent is stopped: more than the 20 for which the kernel's watchdogs let a CPU be.
STALL = 30.0
#: Seconds for what comes to pass at all, on a busy host.
DEADLINE = 240.0
#: Seconds within which a guest answers that can. One that waits for its swap has no memory for an answer.
ANSWER = 5.0
#: Pages by which traffic is told from what was under way.
SOME = 100


class Swapping:
    """A guest whose hog swaps over ``route``, seen from the guest and from the host."""

    def __init__(self, vm: DirectVm, route: Route, agent: AgentProcess) -> None:
        self._vm = vm
        self._route = route
        self._agent = agent
        #: Done by phase: fractions of what the phase has planned.
        self._done: dict[str, float] = {}
        self._hog: asyncio.Task[HogResult] | None = None

    @contextlib.asynccontextmanager
    async def hog(self, mib: int) -> AsyncIterator[asyncio.Task[HogResult]]:
        self._hog = asyncio.create_task(self._vm.agent.hog(mib, progress=self._progress, timeout=3 * DEADLINE))
        try:
            yield self._hog
        finally:
            self._hog.cancel()
            await asyncio.gather(self._hog, return_exceptions=True)

    def _progress(self, progress: Progress) -> None:
        assert not progress.bad
        self._done[progress.phase] = progress.done / max(1, progress.planned)

    async def reaches(self, fraction: float) -> None:
        """Of its three phases: write, sequential, random."""
        assert self._hog is not None
        async with asyncio.timeout(DEADLINE):
            while sum(self._done.values()) < 3 * fraction:
                assert not self._hog.done()
                await asyncio.sleep(0.02)

    async def stands_still(self, seconds: float = 0.0) -> None:
        """Returns when the guest has come to a stand, and has stood for so long."""
        async with asyncio.timeout(DEADLINE + seconds):
            last = await self._pages()
            while last is not None and (now := await self._pages()) != last:
                last = now
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                now = await self._pages()
                last = now if last is None else last
                assert now in (last, None)
                await asyncio.sleep(0.5)

    async def _pages(self) -> int | None:
        """Pages that the guest has put and got; None when it cannot say so."""
        try:
            async with asyncio.timeout(ANSWER):
                found = await counters(self._vm, self._route)
        except TimeoutError:
            return None
        return found["puts_done"] + found["hits"]

    async def goes_on(self) -> None:
        """Returns when the agent has served more than what was under way."""
        async with asyncio.timeout(DEADLINE):
            first = served = await self._served()
            while served < first + SOME:
                await asyncio.sleep(0.05)
                served = await self._served()

    async def _served(self) -> int:
        vm = await asyncio.to_thread(self._agent.client.get_vm, NAME)
        return vm.channels[0].requests["put"] + vm.channels[0].requests["get"]


@contextlib.contextmanager
def stopped(agent: AgentProcess) -> Iterator[None]:
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("channel", "series", "vcpus", "hog_mib"),
    # A page over virtio-serial takes a quarter of a millisecond under TCG.
    [("vhost-user-tmem", "6.12", 2, 88), ("virtio-serial", "6.1", 1, 64)],
)
async def test_a_guest_outlives_what_becomes_of_the_agent(
    channel: Channel,
    series: str,
    vcpus: int,
    hog_mib: int,
    make_agent: AgentFactory,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    route, options = Route("swap-disk", channel), Options(192, vcpus)
    agent = make_agent(limit=2 * options.limit)
    agent.start()
    async with host_end(route, options, NAME, tmp_path, agent.client) as fields:
        spec = VmSpec(NAME, image_of(series), MEMORY_MIB, vcpus, workdir=tmp_path / "vm", **fields)
        async with running_vm(spec, request) as vm:
            await module_load(vm, route, options)
            await swap_on(vm, route, options, page_cluster=0)
            assert (await counters(vm, route))["hits"] == 0
            swapping = Swapping(vm, route, agent)
            async with swapping.hog(hog_mib) as hog:
                await swapping.reaches(0.2)
                agent.kill()
                await swapping.stands_still()
                await asyncio.to_thread(agent.start)
                await swapping.goes_on()

                await swapping.reaches(0.45)
                with stopped(agent):
                    await swapping.stands_still(STALL)
                await swapping.goes_on()

                await swapping.reaches(0.7)
                await asyncio.to_thread(agent.stop)
                await swapping.stands_still()
                await asyncio.to_thread(agent.start)
                await swapping.goes_on()
                result = await hog
            assert (result.bad, result.verified) == (0, True)
            assert (await counters(vm, route))["lost"] == 0
            await swap_off(vm, route)
        assert complaints(vm.console_log.read_text(errors="replace")) == []
