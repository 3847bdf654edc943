# SPDX-License-Identifier: Apache-2.0
"""tmem.ko's self-tests in a kernel that checks itself: lockdep, KASAN and kmemleak have nothing to say.

That kernel takes long to build, and so is built on demand: see guest/README.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.vm import running_vm
from tmem_host.errors import NotFound
from tmem_host.vm.console import complaints
from tmem_host.vm.images import guest_image
from tmem_host.vm.modulebuild.module import build_module, with_module
from tmem_host.vm.spec import VmSpec

pytestmark = pytest.mark.vm

SERIES = "5.10-debug"
#: KASAN takes an eighth of it, and keeps freed memory aside.
MEMORY_MIB = 512


async def test_selftests_under_lockdep_kasan_kmemleak(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    try:
        image = guest_image(SERIES)
    except NotFound as error:
        pytest.skip(f"{error.message}; python -m tmem_host.vm.images build --kernel {SERIES}")
    spec = VmSpec("debug", with_module(image, build_module(SERIES)), MEMORY_MIB, 2, workdir=tmp_path / "vm")
    async with running_vm(spec, request) as vm:
        # what the boot itself leaves is not the module's
        await vm.agent.request("debugfs_read", path="kmemleak", write="clear")
        await vm.agent.module_load(selftest=True, timeout=300)
        await vm.agent.module_unload()
        leaks = ""
        for _scan in range(2):  # an object is reported when two scans have not found it
            leaks = (await vm.agent.request("debugfs_read", timeout=300, path="kmemleak", write="scan"))["text"]
        assert leaks == ""
        log = str((await vm.agent.request("dmesg", bytes=200000))["text"])
        assert "self-tests passed" in log
        assert complaints(log) == []
    assert complaints(vm.console_log.read_text(errors="replace")) == []
