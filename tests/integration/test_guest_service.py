# SPDX-License-Identifier: Apache-2.0
"""The agent as a guest's service: what its command line sets up, tells the host, and takes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from framework.agents import AgentFactory
from framework.vm import running_vm
from tmem_host.client import AgentClient
from tmem_host.config import MIB
from tmem_host.errors import NotFound
from tmem_host.models import ChannelKind, GuestReport, VmCreate
from tmem_host.vm.console import complaints
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.images import KernelImage, guest_image
from tmem_host.vm.routes import image_of
from tmem_host.vm.spec import VhostUserBlk, VmSpec

pytestmark = pytest.mark.vm

#: The service is a second Python in this guest.
MEMORY_MIB = 128
HOG_MIB = 80
SWAP_MIB = 256


@dataclass
class Host:
    """A guest, and the agent that serves it: as an operator has them."""

    vm: DirectVm
    client: AgentClient

    async def report_where(self, name: str, least: float) -> GuestReport:
        """The guest's report once a number in it has grown so far."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(NotFound):  # it said nothing yet
                    report = await asyncio.to_thread(self.client.guest, "guest")
                    if (report.model_dump() | report.counters).get(name, 0) >= least:
                        return report
                await asyncio.sleep(0.1)


@asynccontextmanager
async def host_of(
    image: KernelImage, folder: Path, make_agent: AgentFactory, request: pytest.FixtureRequest, *channels: ChannelKind
) -> AsyncIterator[Host]:
    agent = make_agent(limit="1G")
    await asyncio.to_thread(agent.start)
    size = SWAP_MIB * MIB if "blk" in channels else None
    made = await asyncio.to_thread(
        agent.client.create_vm, VmCreate(name="guest", size_bytes=size, channels=channels, queues=1)
    )
    sockets = {channel.kind: Path(channel.socket) for channel in made.channels}
    disks = (VhostUserBlk(sockets["blk"], queues=1),) if "blk" in channels else ()
    spec = VmSpec("guest", image, MEMORY_MIB, disks=disks, workdir=folder / "vm", pages_port=sockets["serial"])
    async with running_vm(spec, request) as vm:
        yield Host(vm, agent.client)
    assert complaints(vm.console_log.read_text(errors="replace")) == []


class Service:
    """`run` in the guest: what it printed so far, and its end."""

    def __init__(self, vm: DirectVm, settings: str) -> None:
        self.lines: list[str] = []
        self._ready = asyncio.Event()
        self.ended = asyncio.create_task(
            vm.agent.command("run", settings=settings, on_line=self._on_line, timeout=600), name="service"
        )

    def _on_line(self, line: str) -> None:
        self.lines.append(line.removeprefix("tmem-guest: "))
        if self.lines[-1] == "ready":
            self._ready.set()

    async def ready(self) -> None:
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait((ready, self.ended), timeout=120, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        assert self._ready.is_set(), self.lines

    def said(self, start: str) -> str:
        """The line that begins so."""
        return next(line for line in self.lines if line.startswith(start))


async def probe(vm: DirectVm, settings: str) -> dict[str, Any]:
    status, lines = await vm.agent.command("probe", "--json", settings=settings)
    assert status == 0, lines
    found: dict[str, Any] = json.loads("\n".join(lines))
    return found


async def test_a_stock_guest(tmp_path: Path, make_agent: AgentFactory, request: pytest.FixtureRequest) -> None:
    settings = 'serial = "guest"\nreport_seconds = 1\n'
    async with host_of(guest_image("6.1"), tmp_path, make_agent, request, "blk", "serial") as host:
        agent = host.vm.agent
        before = await probe(host.vm, settings)
        assert [disk["state"] for disk in before["disks"] if disk["serial"] == "guest"] == ["blank"]
        assert before["would_use"] == "virtio-blk over vhost-user-blk, /dev/vdb"
        assert not before["virtio_tmem"]
        assert before["pages_port"]
        assert not before["module_loaded"]

        service = Service(host.vm, settings)
        await service.ready()
        assert service.said("swap:").startswith("swap: /dev/vdb is on, virtio-blk over vhost-user-blk, 256 MiB")
        assert service.said("page-cluster:") == "page-cluster: 0 (was 3)"
        assert service.said("reports:") == "reports: every 1 s on org.kvm-tmem.pages.0"
        # The image's own agent has that port.
        assert "somebody else has the port open" in service.said("requests:")

        report = await host.report_where("uptime_seconds", 1)
        assert report.mem_total is not None
        assert report.mem_available is not None
        assert report.mem_total > report.mem_available > 0
        assert report.swap_total == SWAP_MIB * MIB - 4096
        assert (await agent.hog(HOG_MIB)).bad == 0
        assert (await host.report_where("pswpin", 1000)).pswpout

        status, lines = await agent.command("run")
        assert status == 4
        assert "runs already" in lines[-1]
        status, lines = await agent.command("off")
        assert status == 0, (lines, service.lines)
        status, _lines = await service.ended
        assert status == 0
        assert service.said("swap: /dev/vdb is off")
        assert (await agent.meminfo())["swaps"] == {}

        # Nobody's data is given up for swap.
        assert (await agent.io("guest", "write", offset=0, size=65536, seed=4))["bad_blocks"] == 0
        assert "holds data" in (after := await probe(host.vm, settings))["not_used"][-2]
        assert after["page_cluster"] == 3


async def test_a_guest_that_lends_its_port(
    tmp_path: Path, make_agent: AgentFactory, request: pytest.FixtureRequest
) -> None:
    settings = f"report_seconds = 1\nsize_mib = {SWAP_MIB}\n"
    image = image_of("6.1")
    async with host_of(image, tmp_path, make_agent, request, "serial") as host:
        agent = host.vm.agent
        assert (await probe(host.vm, settings))["would_use"] == "swap-disk over virtio-serial, /dev/tmem0"
        service = Service(host.vm, settings)
        await service.ready()
        assert service.said("module:") == f"module: /run/tmem.ko loaded, channel=serial blkdev_mib={SWAP_MIB}"
        assert service.said("port:").endswith("is lent to the module, the host answers")
        assert service.said("reports:").endswith("by the module")

        hog = asyncio.create_task(agent.hog(HOG_MIB))
        try:
            # Between two pages, while there are many.
            counters = (await host.report_where("blkdev_puts_done", 1000)).counters
            assert counters["blkdev_puts"] >= counters["blkdev_puts_done"]
            # What is swapped out has no room anywhere else: told to stop, the service keeps it.
            await host.report_where("pswpin", 1000)
            status, lines = await agent.command("off")
            assert status == 1
            assert "goes on: swap: stays on" in lines[-1]
            assert not service.ended.done()
            assert (await hog).bad == 0
        finally:
            hog.cancel()
        assert (await host.report_where("blkdev_hits", 1000)).counters["blkdev_lost"] == 0

        status, lines = await agent.command("off")
        assert status == 0, (lines, service.lines)
        assert (await service.ended)[0] == 0
        assert [line.split(":")[0] for line in service.lines[-3:]] == ["swap", "port", "module"]
        after = await probe(host.vm, settings)
        assert not after["module_loaded"]
        assert after["swaps"] == {}


async def test_a_guest_with_nothing_for_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    spec = VmSpec("bare", guest_image("6.1"), MEMORY_MIB, workdir=tmp_path / "vm")
    async with running_vm(spec, request) as vm:
        status, lines = await vm.agent.command("run")
        assert status == 3
        assert any("not used: virtio-tmem: there is no such device" in line for line in lines)
        status, lines = await vm.agent.command("run", settings="report_seconds = true\n")
        assert status == 2
        assert "report_seconds is True [it must be a whole number]" in lines[-1]
        status, lines = await vm.agent.command("--help")
        assert status == 0, "\n".join(lines)
        assert "examples:" in lines
        assert (await vm.agent.report())["mem_total"] > 0
