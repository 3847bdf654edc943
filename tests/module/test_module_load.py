# SPDX-License-Identifier: Apache-2.0
"""tmem.ko in real guests: it loads, tests itself, shows its files and unloads, and the kernel has nothing to say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from framework.vm import HOG_MIB, MEMORY_MIB, make_sparse, running_vm
from tmem_host.vm.console import complaints
from tmem_host.vm.guest_client import GuestRefused
from tmem_host.vm.images import USUAL, guest_image
from tmem_host.vm.routes import image_of
from tmem_host.vm.spec import FileDisk, VmSpec

pytestmark = pytest.mark.vm


def with_tmem(folder: Path, series: str) -> VmSpec:
    image = image_of(series)
    return VmSpec("module", image, MEMORY_MIB, workdir=folder / "vm")


@pytest.mark.parametrize("series", USUAL)
async def test_load_selftest_debugfs_unload(series: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with running_vm(with_tmem(tmp_path, series), request) as vm:
        await vm.agent.module_load(selftest=True)
        assert "abi 1" in (await vm.agent.debugfs_read("tmem/version")).splitlines()
        with pytest.raises(GuestRefused) as twice:
            await vm.agent.module_load()
        assert twice.value.kind == "busy"
        await vm.agent.module_unload()
        with pytest.raises(GuestRefused) as gone:
            await vm.agent.debugfs_read("tmem/version")
        assert gone.value.kind == "not-found"
        await vm.agent.module_load()
        await vm.agent.module_unload()
        log = str((await vm.agent.request("dmesg"))["text"])
        assert "self-tests passed" in log
        assert complaints(log) == []
    assert complaints(vm.console_log.read_text(errors="replace")) == []


async def test_kernel_of_our_own_swaps_and_has_cleancache(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    disk = FileDisk(tmp_path / "swap", "swap", size=(HOG_MIB + 32) << 20)
    make_sparse(disk.path, disk.size or 0)
    spec = dataclasses.replace(with_tmem(tmp_path, "5.10-cleancache"), vcpus=2, disks=(disk,))
    async with running_vm(spec, request) as vm:
        for file in ("cleancache/succ_gets", "frontswap/succ_stores"):
            assert await vm.agent.debugfs_read(file) == "0\n"
        await vm.agent.swap_on("swap")
        assert (await vm.agent.hog(HOG_MIB)).bad == 0
        await vm.agent.swap_off("swap")
        await vm.agent.zram_setup(16)
    assert complaints(vm.console_log.read_text(errors="replace")) == []


async def test_guest_without_the_module_says_so(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    spec = VmSpec("none", guest_image("6.1"), MEMORY_MIB, workdir=tmp_path / "vm")
    async with running_vm(spec, request) as vm:
        with pytest.raises(GuestRefused) as missing:
            await vm.agent.module_load()
        assert missing.value.kind == "not-found"
