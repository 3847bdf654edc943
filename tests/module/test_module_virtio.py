# SPDX-License-Identifier: Apache-2.0
"""Swap through tmem.ko over virtqueues: served by the core over vhost-user-tmem, and by QEMU on the vCPU's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.console import complaints
from framework.vm import MEMORY_MIB, running_vm
from tmem_host.config import MIB
from tmem_host.core import Engine, Store, TmemServer
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.guest_results import HogResult
from tmem_host.vm.images import guest_image
from tmem_host.vm.modulebuild.module import guest_module, with_module
from tmem_host.vm.spec import InlineTmem, Tmem, VhostUserTmem, VmSpec

pytestmark = pytest.mark.vm

SWAP_MIB = 192
#: About one and a half times what a guest of MEMORY_MIB has to give.
HOG_MIB = 104


@pytest.fixture
def served(state: Path, arena: Path) -> Iterator[tuple[VhostUserTmem, TmemServer]]:
    """A vhost-user-tmem socket with one VM's engine behind it."""
    store = Store(str(arena), limit_bytes=2 * SWAP_MIB * MIB)
    store.vm_create("guest")
    socket = state / "tmem.sock"
    server = TmemServer(Engine(store, "guest"), str(socket), queues=2)
    yield VhostUserTmem(socket), server
    server.stop()
    store.close()


def spec(folder: Path, series: str, vcpus: int, device: Tmem) -> VmSpec:
    image = with_module(guest_image(series), guest_module(series))
    return VmSpec("virtio", image, MEMORY_MIB, vcpus, workdir=folder / "vm", tmem=(device,))


async def hogs(vm: DirectVm, count: int) -> list[HogResult]:
    return await asyncio.gather(*(vm.agent.hog(HOG_MIB // count, seed=1 + i) for i in range(count)))


async def counters(vm: DirectVm, source: str) -> dict[str, int]:
    """The source's counters in debugfs: lines of a name and a number."""
    text = await vm.agent.debugfs_read(f"tmem/{source}")
    pairs = (line.split() for line in text.splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2 and words[1].isdigit()}


async def swapped(vm: DirectVm, vcpus: int) -> None:
    """The swap disk of the module, a hog a vCPU, and no page wrong."""
    await vm.agent.module_load(blkdev_mib=SWAP_MIB)
    await vm.agent.swap_on(device="tmem0", discard=False, page_cluster=0)
    assert [result.bad for result in await hogs(vm, vcpus)] == [0] * vcpus
    found = await counters(vm, "blkdev")
    assert found["puts"] > 3000, found
    assert found["hits"] > 3000, found
    await vm.agent.swap_off(device="tmem0", discard_after=False)


@pytest.mark.parametrize(("series", "vcpus"), [("5.10", 1), ("6.1", 2), ("6.12", 2)])
async def test_swap_over_vhost_user_tmem(
    series: str,
    vcpus: int,
    served: tuple[VhostUserTmem, TmemServer],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    device, _server = served
    async with running_vm(spec(tmp_path, series, vcpus, device), request) as vm:
        await swapped(vm, vcpus)
    assert complaints(vm.console_log.read_text(errors="replace")) == []


@pytest.mark.parametrize(("series", "vcpus"), [("5.10", 2), ("6.1", 1), ("6.12", 2)])
async def test_swap_inline_on_the_vcpus_thread(
    series: str, vcpus: int, arena: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    device = InlineTmem(arena, 2 * SWAP_MIB * MIB)
    async with running_vm(spec(tmp_path, series, vcpus, device), request) as vm:
        await swapped(vm, vcpus)
    assert complaints(vm.console_log.read_text(errors="replace")) == []


async def test_frontswap_takes_the_traffic(arena: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """5.10's frontswap: pages go by its hooks, so the kernel counts no page swapped to a device."""
    device = InlineTmem(arena, 2 * SWAP_MIB * MIB)
    async with running_vm(spec(tmp_path, "5.10", 1, device), request) as vm:
        await vm.agent.module_load(frontswap_mib=SWAP_MIB)
        await vm.agent.swap_on(device="tmemf0", discard=False, page_cluster=0)
        before = await vm.agent.vmstat()
        assert [result.bad for result in await hogs(vm, 1)] == [0]
        after = await vm.agent.vmstat()
        assert after["pswpout"] == before["pswpout"]
        assert int(await vm.agent.debugfs_read("frontswap/succ_stores")) > 3000
        assert int(await vm.agent.debugfs_read("frontswap/loads")) > 3000
        await vm.agent.swap_off(device="tmemf0", discard_after=False)
    assert complaints(vm.console_log.read_text(errors="replace")) == []
