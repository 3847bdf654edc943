# SPDX-License-Identifier: Apache-2.0
"""tmem.ko in a kernel that checks itself: lockdep, KASAN and kmemleak have nothing to say, nor of its swap.

That kernel takes long to build, and so is built on demand: see guest/README.md.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from framework.agents import AgentFactory
from framework.vm import running_vm
from tmem_host.errors import NotFound
from tmem_host.vm import routes
from tmem_host.vm.console import complaints
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.images import KernelImage, guest_image
from tmem_host.vm.modulebuild.module import build_module, with_module
from tmem_host.vm.routes import Route
from tmem_host.vm.spec import VmSpec

pytestmark = pytest.mark.vm

SERIES = "5.10-debug"
#: KASAN takes an eighth of it, and keeps freed memory aside: some 120 MiB are left.
MEMORY_MIB = 256
SWAP_MIB = 192
#: Two of them are more than such a guest has to give; and no more, as this kernel takes a millisecond for a page.
HOG_MIB = 68

ROUTES = [
    Route("swap-disk", "virtio-serial"),
    Route("swap-disk", "vhost-user-tmem"),
    Route("frontswap", "virtio-tmem"),
]


@pytest.fixture
def image() -> KernelImage:
    try:
        found = guest_image(SERIES)
    except NotFound as error:
        pytest.skip(f"{error.message}; python -m tmem_host.vm.images build --kernel {SERIES}")
    return with_module(found, build_module(SERIES))


async def leaks(vm: DirectVm) -> str:
    """What kmemleak found since the boot's own was cleared: an object is reported when two scans have not found it."""
    for _scan in range(2):
        found = (await vm.agent.request("debugfs_read", timeout=300, path="kmemleak", write="scan"))["text"]
    return str(found)


async def clear(vm: DirectVm) -> None:
    """What the boot itself leaves is not the module's."""
    await vm.agent.request("debugfs_read", path="kmemleak", write="clear")


async def test_selftests_under_lockdep_kasan_kmemleak(
    image: KernelImage, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with running_vm(VmSpec("debug", image, MEMORY_MIB, 2, workdir=tmp_path / "vm"), request) as vm:
        await clear(vm)
        await vm.agent.module_load(selftest=True, timeout=300)
        await vm.agent.module_unload()
        assert await leaks(vm) == ""
        log = str((await vm.agent.request("dmesg", bytes=200000))["text"])
        assert "self-tests passed" in log
        assert complaints(log) == []
    assert complaints(vm.console_log.read_text(errors="replace")) == []


@pytest.mark.parametrize("route", ROUTES, ids=str)
async def test_swap_under_lockdep_kasan_kmemleak(
    route: Route, image: KernelImage, make_agent: AgentFactory, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two hogs, two vCPUs; then what can be is taken down."""
    options = routes.Options(SWAP_MIB, vcpus=2)
    agent = make_agent(limit="2G")
    await asyncio.to_thread(agent.start)
    async with routes.host_end(route, options, "debug", tmp_path, agent.client) as fields:
        spec = VmSpec("debug", image, MEMORY_MIB, 2, workdir=tmp_path / "vm", **fields)
        async with running_vm(spec, request) as vm:
            await clear(vm)
            await routes.module_load(vm, route, options)
            await routes.swap_on(vm, route, options)
            results = await asyncio.gather(*(vm.agent.hog(HOG_MIB, seed=seed) for seed in (1, 2)))
            assert [result.bad for result in results] == [0, 0]
            assert sum((await routes.counters(vm, route)).values()) > 1000
            await routes.swap_off(vm, route)
            # A kernel with frontswap has no way to take a backend back: the module stays.
            if route.source == "swap-disk":
                await routes.module_unload(vm, route)
            assert await leaks(vm) == ""
            assert complaints(str((await vm.agent.request("dmesg", bytes=200000))["text"])) == []
        assert complaints(vm.console_log.read_text(errors="replace")) == []
