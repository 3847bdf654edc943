# SPDX-License-Identifier: Apache-2.0
"""Guests that swap: no page is lost or mixed up, and freed swap gives host memory back.

The disks here are served by QEMU's own programs, so a failure is the guest's, the driver's or QEMU's, not the store's.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from framework.vm import (
    DAEMON_SERIAL,
    HOG_MIB,
    MEMORY_MIB,
    held_bytes,
    make_sparse,
    running_vm,
    storage_daemon,
    wait_until,
)
from tmem_host.vm.guest_results import Progress
from tmem_host.vm.images import SERIES, guest_image
from tmem_host.vm.spec import FileDisk, NullDisk, VhostUserBlk, VmSpec

pytestmark = pytest.mark.vm

SWAP_BYTES = 1 << 30


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("series", SERIES)
async def test_hog_over_vhost_user_and_memory_given_back(
    series: str, vcpus: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    image = tmp_path / "swap.img"
    async with storage_daemon(tmp_path, image, SWAP_BYTES, vcpus) as daemon:
        disks = (VhostUserBlk(daemon.socket, queues=vcpus),)
        spec = VmSpec("hog", guest_image(series), MEMORY_MIB, vcpus, disks, workdir=tmp_path / "vm")
        async with running_vm(spec, request) as vm:
            on = await vm.agent.swap_on(DAEMON_SERIAL, require_discard=True)
            assert (on["discard"], on["rotational"], on["queues"]) == (True, 0, vcpus)
            seen: list[Progress] = []
            # twice what the guest can use; the store's own test takes 2.5 times its whole memory
            results = await asyncio.gather(
                *(vm.agent.hog(HOG_MIB // 2 // vcpus, seed=n, recheck=True, progress=seen.append) for n in range(vcpus))
            )
            assert [result.bad for result in results] == [0] * vcpus
            assert seen
            for result in results:
                assert result.verified
                assert [phase.name for phase in result.phases] == ["write", "sequential", "random", "recheck"]
                assert result.phase("random").rewrites > 0
                assert result.phase("random").major > 1000
                assert len(result.phase("random").major_ns) > 1000
                assert min(result.phase("random").major_ns) > result.clock_ns["median"]
            assert (await vm.agent.vmstat())["pswpout"] > 15_000
            await vm.agent.swap_off(DAEMON_SERIAL)
            assert held_bytes(image) < 1 << 20


async def test_server_killed_and_started_again(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with storage_daemon(tmp_path, tmp_path / "swap.img", SWAP_BYTES) as daemon:
        disks = (VhostUserBlk(daemon.socket, queues=1),)
        spec = VmSpec("reconnect", guest_image("6.1"), MEMORY_MIB, 1, disks, workdir=tmp_path / "vm")
        async with running_vm(spec, request) as vm:
            await vm.agent.swap_on(DAEMON_SERIAL)
            last: list[Progress] = []
            hog = asyncio.create_task(vm.agent.hog(150, recheck=True, progress=last.append))
            for phase in ("write", "sequential", "random"):

                def reached(phase: str = phase) -> bool:
                    return hog.done() or any(p.phase == phase and p.done > p.planned // 3 for p in last)

                await wait_until(reached, f"the hog is within its {phase} phase", 120)
                assert not hog.done()
                await daemon.kill()
                await daemon.start()
            assert (await hog).bad == 0


async def test_file_disks_in_every_cache_mode_take_discards(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    paths = {cache: tmp_path / f"{cache}.img" for cache in ("none", "writeback", "unsafe")}
    for path in paths.values():
        make_sparse(path, 256 << 20)
    disks = tuple(FileDisk(path, cache, cache=cache, size=256 << 20) for cache, path in paths.items())  # type: ignore[arg-type]
    spec = VmSpec("files", guest_image("6.1"), MEMORY_MIB, 1, disks, workdir=tmp_path / "vm")
    async with running_vm(spec, request) as vm:
        for serial, path in paths.items():
            await vm.agent.swap_on(serial, require_discard=True, page_cluster=0)
            result = await vm.agent.hog(60, pattern="same", rewrite=50)
            assert result.bad == 0
            assert result.phase("random").vmstat["swap_ra"] == 0
            await vm.agent.swap_off(serial)
            assert held_bytes(path) < 1 << 20


@pytest.mark.parametrize("series", SERIES)
async def test_zram_with_both_compressors(series: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    spec = VmSpec("zram", guest_image(series), MEMORY_MIB, 1, workdir=tmp_path / "vm")
    async with running_vm(spec, request) as vm:
        for algorithm in ("lz4", "zstd"):
            made = await vm.agent.zram_setup(256, algorithm, page_cluster=0)
            assert f"[{algorithm}]" in made["algorithm"]
            # what zram holds is the guest's own memory: little more than a third of it is free for that
            result = await vm.agent.hog(80, pattern="synthetic:90")
            assert result.bad == 0
            assert result.phase("random").major > 1000
            await vm.agent.swap_off(device="zram0")


async def test_null_disk_loses_only_the_hogs_pages(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    disks = (NullDisk(512 << 20, "null"),)
    spec = VmSpec("null", guest_image("6.12"), MEMORY_MIB, 1, disks, workdir=tmp_path / "vm")
    async with running_vm(spec, request) as vm:
        await vm.agent.swap_on("null")
        result = await vm.agent.hog(90, verify=False)
        assert not result.verified
        assert result.phase("sequential").major > 1000
        # the same with verification: what the hog is there to find
        result = await vm.agent.hog(90, rewrite=0)
        assert result.bad > 1000
        assert result.bad_examples
        await vm.agent.swap_off("null")
        assert (await vm.agent.hello())["ok"]


@pytest.mark.parametrize("series", SERIES)
async def test_corpus_of_real_pages(series: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    spec = VmSpec("sampled", guest_image(series), MEMORY_MIB, 1, workdir=tmp_path / "vm")
    async with running_vm(spec, request) as vm:
        pages = await vm.agent.sample_pages(1024, seed=3)
    assert len(pages) == 1024 * 4096
    distinct = {pages[at : at + 4096] for at in range(0, len(pages), 4096)}
    assert len(distinct) > 512
    corpus, swap = tmp_path / "corpus", tmp_path / "swap"
    corpus.write_bytes(pages)
    make_sparse(swap, SWAP_BYTES)
    disks = (FileDisk(corpus, "corpus", read_only=True), FileDisk(swap, "swap"))
    spec = VmSpec("corpus", guest_image(series), MEMORY_MIB, 2, disks, workdir=tmp_path / "vm2")
    async with running_vm(spec, request) as vm:
        await vm.agent.swap_on("swap")
        results = await asyncio.gather(*(vm.agent.hog(60, corpus="corpus", seed=n, recheck=True) for n in (1, 2)))
        assert [result.bad for result in results] == [0, 0]
