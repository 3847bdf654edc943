# SPDX-License-Identifier: Apache-2.0
"""Swap over a virtio-serial port: tmem.ko forwards pages from inside the agent's ioctl, the host serves them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from framework.vm import MEMORY_MIB, running_vm
from tmem_host.channel.serial import SerialPort
from tmem_host.config import MIB
from tmem_host.core import Engine, Store
from tmem_host.vm.console import complaints
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.routes import image_of
from tmem_host.vm.spec import VmSpec

pytestmark = pytest.mark.vm

SWAP_MIB = 192
#: About one and a half times what a guest of MEMORY_MIB has to give: a page takes a quarter of a millisecond under TCG.
HOG_MIB = 104


@asynccontextmanager
async def served(
    series: str, folder: Path, arena: Path, request: pytest.FixtureRequest, vcpus: int = 1
) -> AsyncIterator[tuple[DirectVm, Engine, SerialPort]]:
    """A guest with its port served out of a store of its own."""
    image = image_of(series)
    spec = VmSpec("serial", image, MEMORY_MIB, vcpus, workdir=folder / "vm", pages_port=True)
    store = Store(str(arena), limit_bytes=2 * SWAP_MIB * MIB)
    try:
        store.vm_create("guest")
        async with running_vm(spec, request) as vm:
            engine = Engine(store, "guest")
            port = SerialPort(engine, "guest", vm.pages_socket, lambda _message: None)
            await port.open()
            try:
                yield vm, engine, port
            finally:
                await port.close()
        assert complaints(vm.console_log.read_text(errors="replace")) == []
    finally:
        store.close()


async def swap_on(vm: DirectVm) -> None:
    await vm.agent.module_load(channel="serial", blkdev_mib=SWAP_MIB)
    await vm.agent.lend()
    await vm.agent.swap_on(device="tmem0", discard=False, page_cluster=0)


def counted(stats: dict[str, Any], name: str) -> int:
    return int(stats["requests"][name])


@pytest.mark.parametrize(("series", "vcpus"), [("5.10", 1), ("6.1", 2), ("6.12", 1)])
async def test_a_guest_swaps_over_its_port(
    series: str, vcpus: int, tmp_path: Path, arena: Path, request: pytest.FixtureRequest
) -> None:
    async with served(series, tmp_path, arena, request, vcpus) as (vm, _engine, port):
        await swap_on(vm)
        hogs = [vm.agent.hog(HOG_MIB // vcpus, seed=1 + i) for i in range(vcpus)]
        results = await asyncio.gather(*hogs)
        assert [result.bad for result in results] == [0] * vcpus
        stats = port.stats()
        assert counted(stats, "put") > 3000
        assert counted(stats, "get") > 3000
        assert stats["malformed"] == {}
        await vm.agent.swap_off(device="tmem0", discard_after=False)
        assert (await vm.agent.lend_stop())["error"] == ""


async def test_a_host_that_goes_away_is_waited_for(tmp_path: Path, arena: Path, request: pytest.FixtureRequest) -> None:
    async with served("6.1", tmp_path, arena, request) as (vm, engine, port):
        await swap_on(vm)
        hog = asyncio.create_task(vm.agent.hog(HOG_MIB))
        try:
            while counted(port.stats(), "put") < 3000:
                assert not hog.done()
                await asyncio.sleep(0.01)
            await port.close()
            again = SerialPort(engine, "guest", vm.pages_socket, lambda _message: None)
            await again.open()
            try:
                assert (await hog).bad == 0
                assert counted(again.stats(), "get") > 1000
            finally:
                await again.close()
        finally:
            hog.cancel()
