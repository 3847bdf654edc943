# SPDX-License-Identifier: Apache-2.0
"""The direct driver and the agent in a real guest: start, stop, failure, block I/O."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from framework.vm import DAEMON_SERIAL, MEMORY_MIB, make_sparse, running_vm, storage_daemon, wait_until
from tmem_host.errors import Conflict, VmFailed
from tmem_host.vm.accel import boot_trial
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.guest_client import GuestGone, GuestRefused
from tmem_host.vm.images import SERIES, guest_image
from tmem_host.vm.process import find_qemu
from tmem_host.vm.spec import FileDisk, VhostUserBlk, VmSpec

pytestmark = pytest.mark.vm


def plain(folder: Path, series: str = "6.1") -> VmSpec:
    return VmSpec("plain", guest_image(series), MEMORY_MIB, workdir=folder / "vm")


@pytest.mark.parametrize("series", SERIES)
async def test_tcg_reaches_the_marker_of_the_trial(series: str) -> None:
    trial = await boot_trial(find_qemu("qemu-system-x86_64"), guest_image(series), "tcg", 60)
    assert trial.works, trial.why


@pytest.mark.parametrize("series", SERIES)
async def test_start_hello_stop(series: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with running_vm(plain(tmp_path, series), request) as vm:
        assert vm.state.value == "running"
        hello = await vm.agent.hello()
        assert hello["kernel"] == vm.spec.kernel.version
        assert hello["disks"] == {"tmem-root": "vda"}
        assert (await vm.qmp.execute("query-status"))["status"] == "running"  # type: ignore[index]
        assert vm.accelerator.why
    assert vm.state.value == "stopped"
    assert "agent up" in vm.console_log.read_text()
    with pytest.raises(Conflict):
        _ = vm.agent
    with pytest.raises(Conflict):
        await vm.start()


async def test_files_of_a_vm_without_a_workdir_go_with_it(request: pytest.FixtureRequest) -> None:
    async with running_vm(VmSpec("gone", guest_image("6.1"), MEMORY_MIB), request) as vm:
        folder = vm.workdir
        assert (folder / "argv.txt").is_file()
    assert not folder.exists()


async def test_killed_qemu_is_noticed_by_who_waits(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with running_vm(plain(tmp_path), request) as vm:
        agent = vm.agent
        waiting = asyncio.create_task(agent.hog(20, passes=1000))
        await agent.meminfo()
        await vm.kill()
        with pytest.raises(GuestGone):
            await waiting
        with pytest.raises(GuestGone):
            await agent.meminfo()


async def test_guest_that_dies_is_failed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with running_vm(plain(tmp_path), request) as vm:
        await vm.agent.shutdown()
        await wait_until(lambda: vm.state.value == "failed", "the driver notices that QEMU has ended")
    assert vm.state.value == "failed"


async def test_qemu_that_does_not_start_says_why(tmp_path: Path) -> None:
    spec = VmSpec("bad", guest_image("6.1"), accel="tcg", workdir=tmp_path, extra_args=("-device", "no-such-device"))
    vm = DirectVm(spec)
    with pytest.raises(VmFailed, match="no-such-device"):
        await vm.start()
    assert vm.state.value == "failed"
    vm.save_evidence(tmp_path / "evidence")
    assert "no-such-device" in (tmp_path / "evidence" / "bad-argv.txt").read_text()
    await vm.stop()


async def test_guest_that_panics_says_so(tmp_path: Path) -> None:
    spec = VmSpec("panic", guest_image("6.1"), accel="tcg", workdir=tmp_path, append="rdinit=/nothing init=/nothing")
    with pytest.raises(VmFailed, match="QEMU ended"):
        await DirectVm(spec).start()
    assert "panic" in (tmp_path / "console.log").read_text()


@pytest.mark.parametrize("series", SERIES)
async def test_block_io(series: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with storage_daemon(tmp_path, tmp_path / "disk.img", 64 << 20) as daemon:
        make_sparse(tmp_path / "ro.img", 1 << 20)
        disks = (VhostUserBlk(daemon.socket, queues=1), FileDisk(tmp_path / "ro.img", "read-only", read_only=True))
        spec = VmSpec("io", guest_image(series), MEMORY_MIB, 1, disks, workdir=tmp_path / "vm")
        async with running_vm(spec, request) as vm:

            async def io(action: str, offset: int = 0, size: int = 4 << 20, block: int = 4096, seed: int = 1) -> int:
                answer = await vm.agent.io(DAEMON_SERIAL, action, offset=offset, size=size, block=block, seed=seed)
                assert "error" not in answer
                bad: int = answer["bad_blocks"]
                return bad

            assert await io("write") == 0
            assert await io("flush") == 0
            assert await io("verify", block=65536) == 0
            assert await io("verify", seed=2) == 1024
            assert await io("zero-check") == 1024
            assert await io("write", offset=512 * 9, size=512 * 3, block=512, seed=5) == 0
            assert await io("verify", size=4096) == 0
            assert await io("verify", offset=512 * 9, size=512 * 3, block=512, seed=5) == 0
            assert await io("discard") == 0
            assert await io("zero-check") == 0
            assert await io("write", offset=4 << 20) == 0
            assert await io("write-zeroes", offset=4 << 20, size=1 << 20) == 0
            assert await io("zero-check", offset=4 << 20, size=1 << 20) == 0
            assert await io("verify", offset=5 << 20, size=3 << 20) == 0
            with pytest.raises(GuestRefused):
                await io("write", offset=100)
            with pytest.raises(GuestRefused):
                await vm.agent.io("read-only", "write", size=4096)


async def test_two_vms_side_by_side(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    specs = [VmSpec(f"vm{n}", guest_image(s), MEMORY_MIB, workdir=tmp_path / s) for n, s in enumerate(SERIES[:2])]
    async with running_vm(specs[0], request) as first, running_vm(specs[1], request) as second:
        hellos = await asyncio.gather(first.agent.hello(), second.agent.hello())
        assert [hello["kernel"] for hello in hellos] == [spec.kernel.version for spec in specs]
