# SPDX-License-Identifier: Apache-2.0
"""The patched QEMU: QEMU's rules over the series, and the guests' machine as the VM driver starts it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from framework.vm import DAEMON_SERIAL, MEMORY_MIB, make_sparse, running_vm, storage_daemon
from tmem_host.vm.images import guest_image
from tmem_host.vm.qemubuild import build, check
from tmem_host.vm.spec import FileDisk, NullDisk, VhostUserBlk, VmSpec

pytestmark = pytest.mark.vm


def test_checkpatch_has_nothing_to_say() -> None:
    check.check(each=False)


def test_the_series_own_qtests_pass() -> None:
    qemu = {"QTEST_QEMU_BINARY": str(build.patched_qemu())}
    for test in build.qtests():
        done = subprocess.run([test], env=qemu, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{test.name}: {done.stdout}{done.stderr}"


async def test_every_kind_of_disk(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for name in ("threads", "native", "io_uring"):
        make_sparse(tmp_path / name, 1 << 20)
    async with storage_daemon(tmp_path, tmp_path / "disk.img", 1 << 20) as daemon:
        disks = (
            VhostUserBlk(daemon.socket, queues=1),
            NullDisk(1 << 20, "null"),
            FileDisk(tmp_path / "threads", "threads"),
            FileDisk(tmp_path / "native", "native", cache="none", aio="native"),
            FileDisk(tmp_path / "io_uring", "io_uring", cache="none", aio="io_uring"),
        )
        qemu = str(build.patched_qemu())
        spec = VmSpec("patched", guest_image("6.1"), MEMORY_MIB, 2, disks, workdir=tmp_path / "vm", qemu_path=qemu)
        async with running_vm(spec, request) as vm:
            assert (await vm.qmp.execute("query-version"))["package"] == "tmem"  # type: ignore[index]
            for serial in (DAEMON_SERIAL, "threads", "native", "io_uring"):
                for action in ("write", "verify"):
                    answer = await vm.agent.io(serial, action, size=1 << 20)
                    assert (answer["bad_blocks"], answer.get("error")) == (0, None)
            assert (await vm.agent.io("null", "zero-check", size=1 << 20))["bad_blocks"] == 0
