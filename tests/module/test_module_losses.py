# SPDX-License-Identifier: Apache-2.0
"""What tmem.ko does when pages or the host are lost, and clean file pages that come back from the host."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from framework.vm import MEMORY_MIB, running_vm
from tmem_host.config import MIB
from tmem_host.core import Engine, Store, TmemServer
from tmem_host.vm.console import complaints
from tmem_host.vm.guest_client import GuestError, GuestRefused
from tmem_host.vm.routes import image_of, source_counters
from tmem_host.vm.spec import InlineTmem, Tmem, VhostUserTmem, VmSpec

pytestmark = pytest.mark.vm

SWAP_MIB = 192
HOG_MIB = 104
SIGBUS = 7


def spec(folder: Path, series: str, device: Tmem, vcpus: int = 1) -> VmSpec:
    image = image_of(series)
    return VmSpec("losses", image, MEMORY_MIB, vcpus, workdir=folder / "vm", tmem=(device,), append="no_timer_check")


@pytest.mark.parametrize(("series", "source"), [("5.10", "frontswap"), ("5.10", "blkdev"), ("6.12", "blkdev")])
async def test_a_lost_page_is_an_error_for_one_process(
    series: str, source: str, arena: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The hog that needs the page gets SIGBUS; it saw no wrong page before, and the guest goes on."""
    disk = {"frontswap": "tmemf0", "blkdev": "tmem0"}[source]
    async with running_vm(spec(tmp_path, series, InlineTmem(arena, 2 * SWAP_MIB * MIB)), request) as vm:
        sizes = {"frontswap_mib": 0, "blkdev_mib": 0, f"{source}_mib": SWAP_MIB}
        await vm.agent.module_load("tmem", timeout=60.0, fail_get_every=997, **sizes)
        await vm.agent.swap_on(device=disk, discard=False, page_cluster=0)
        events: list[int] = []
        with pytest.raises(GuestError) as killed:
            await vm.agent.hog(HOG_MIB, progress=lambda p: events.append(p.bad))
        assert str(SIGBUS) in str(killed.value) or "SIGBUS" in str(killed.value)
        assert not any(events)
        found = await source_counters(vm, source)
        assert found["injected"] >= 1, found
        assert found["lost"] >= found["injected"], found
        assert found["puts"] == found["puts_done"], found
        await vm.agent.swap_off(device=disk, discard_after=False)
    assert complaints(vm.console_log.read_text(errors="replace")) == []


async def test_a_page_that_the_host_lost_is_an_error_for_one_process(
    state: Path, arena: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As above, by the host's word: the hog gets SIGBUS, the next one finds all its pages."""
    socket = state / "tmem.sock"
    store = Store(str(arena), limit_bytes=2 * SWAP_MIB * MIB)
    store.vm_create("guest")
    engine = Engine(store, "guest")
    server = TmemServer(engine, str(socket))
    try:
        async with running_vm(spec(tmp_path, "6.12", VhostUserTmem(socket)), request) as vm:
            await vm.agent.module_load(blkdev_mib=SWAP_MIB)
            await vm.agent.swap_on(device="tmem0", discard=False, page_cluster=0)
            engine.lose(997)
            events: list[int] = []
            with pytest.raises(GuestError, match=rf"{SIGBUS}|SIGBUS"):
                await vm.agent.hog(HOG_MIB, progress=lambda p: events.append(p.bad))
            assert not any(events)
            engine.lose(0)
            found = await source_counters(vm, "blkdev")
            assert found["lost"] >= 1, found
            # As the host counts it; another process may have asked for a page that it lost.
            assert found["lost"] <= engine.stats()["injected"] == int(server.stats()["refused"]["lost"])
            assert (await vm.agent.hog(HOG_MIB, seed=2)).bad == 0
            await vm.agent.swap_off(device="tmem0", discard_after=False)
        assert complaints(vm.console_log.read_text(errors="replace")) == []
    finally:
        server.stop()
        store.close()


async def test_a_host_agent_that_dies_is_waited_for(
    state: Path, arena: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A new server on the same arena forgot what was agreed on: HELLO is said again and nothing is lost."""
    socket = state / "tmem.sock"

    def serve() -> tuple[Store, TmemServer]:
        store = Store(str(arena), limit_bytes=2 * SWAP_MIB * MIB)
        if not store.vms():
            store.vm_create("guest")
        return store, TmemServer(Engine(store, "guest"), str(socket), queues=2)

    store, server = serve()
    try:
        async with running_vm(spec(tmp_path, "6.1", VhostUserTmem(socket), 2), request) as vm:
            await vm.agent.module_load(blkdev_mib=SWAP_MIB)
            await vm.agent.swap_on(device="tmem0", discard=False, page_cluster=0)
            hogs = asyncio.gather(*(vm.agent.hog(HOG_MIB // 2, seed=1 + i) for i in range(2)))
            while int(server.stats()["requests"]["put"]) < 3000:
                assert not hogs.done()
                await asyncio.sleep(0.01)
            server.stop()
            store.close()
            store, server = serve()
            assert [result.bad for result in await hogs] == [0, 0]
            channel = (await vm.agent.debugfs_read("tmem/channel")).split()
            assert int(channel[channel.index("starts") + 1]) >= 2
            await vm.agent.swap_off(device="tmem0", discard_after=False)
        assert complaints(vm.console_log.read_text(errors="replace")) == []
    finally:
        server.stop()
        store.close()


async def test_without_a_host_there_is_no_swap_disk(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    image = image_of("6.12")
    async with running_vm(VmSpec("alone", image, MEMORY_MIB, workdir=tmp_path / "vm"), request) as vm:
        await vm.agent.module_load(blkdev_mib=SWAP_MIB)
        with pytest.raises(GuestRefused):
            await vm.agent.swap_on(device="tmem0", discard=False)
        await vm.agent.module_unload()


async def test_file_pages_come_back_from_the_host(arena: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Memory pressure drops pages of the root disk; what reads them again gets them without the disk."""
    device = InlineTmem(arena, 2 * SWAP_MIB * MIB)
    async with running_vm(spec(tmp_path, "5.10-cleancache", device), request) as vm:
        await vm.agent.module_load(blkdev_mib=SWAP_MIB, cleancache=True)
        await vm.agent.swap_on(device="tmem0", discard=False, page_cluster=0)
        for seed in (1, 2):
            assert (await vm.agent.hog(HOG_MIB, seed=seed)).bad == 0
        found = await source_counters(vm, "cleancache")
        assert found["puts_done"] > 0, found
        assert found["hits"] > 0, found
        assert int(await vm.agent.debugfs_read("cleancache/succ_gets")) == found["hits"]
        await vm.agent.swap_off(device="tmem0", discard_after=False)
    assert complaints(vm.console_log.read_text(errors="replace")) == []
