# SPDX-License-Identifier: Apache-2.0
"""Virtual machines in tests: reaped whatever happens, and what they said is kept when a test fails."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from qemu.qmp import QMPError

from tmem_host.errors import TmemError
from tmem_host.vm import process
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.spec import VmSpec

#: The smallest guest in which everything runs reliably on both kernels, and 2.5 times as much for the hog.
MEMORY_MIB = 96
HOG_MIB = 240

#: qemu-storage-daemon gives every export this serial.
DAEMON_SERIAL = "vhost_user_blk"


def evidence_folder(test: str) -> Path:
    """Where a failed test's logs go: $TMEM_EVIDENCE or test-evidence/ of the checkout."""
    root = os.environ.get("TMEM_EVIDENCE")
    base = Path(root) if root else Path(__file__).resolve().parents[2] / "test-evidence"
    return base / "".join(c if c.isalnum() or c in "._-" else "_" for c in test)


@contextlib.asynccontextmanager
async def running_vm(spec: VmSpec, request: pytest.FixtureRequest) -> AsyncIterator[DirectVm]:
    """A started VM; when the body fails, console, QEMU's log and its command line are kept."""
    vm = DirectVm(spec)
    try:
        async with vm:
            try:
                yield vm
            except BaseException:
                # pytest shows it with the failure: where only that is kept, it is all there is.
                print(await _last_words(vm))
                raise
    except BaseException:
        vm.save_evidence(evidence_folder(request.node.name))
        raise


async def _last_words(vm: DirectVm) -> str:
    """The console's end, whether the vCPUs halt, and how far guest and device are in each queue: who waits for whom."""
    words = vm.console_log.read_text(errors="replace").splitlines()[-20:]
    with contextlib.suppress(QMPError, TmemError, TimeoutError):
        async with asyncio.timeout(10):
            words.append(str(await vm.qmp.execute("human-monitor-command", {"command-line": "info cpus"})).strip())
            for device in _mappings(await vm.qmp.execute("x-query-virtio")):
                words += [f"{device['name']} {status}" for status in await _queues(vm, str(device["path"]))]
    return "\n".join(words)


async def _queues(vm: DirectVm, path: str) -> list[str]:
    """Those that were ever used."""
    indices = ("last-avail-idx", "shadow-avail-idx", "used-idx", "signalled-used", "inuse")
    found: list[str] = []
    with contextlib.suppress(QMPError):
        for queue in itertools.count():
            answer = await vm.qmp.execute("x-query-virtio-queue-status", {"path": path, "queue": queue})
            (status,) = _mappings([answer])
            if any(status.get(key) for key in indices):
                found.append(f"queue {queue}: " + " ".join(f"{key}={status.get(key)}" for key in indices))
    return found


def _mappings(answer: object) -> list[dict[str, object]]:
    assert isinstance(answer, list)
    return answer


async def wait_until(condition: Callable[[], bool], what: str, deadline: float = 30.0) -> None:
    """Polls a condition; fails the test, naming it, when the deadline (seconds) has passed."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline:g} s: {what}")
        await asyncio.sleep(0.02)


class StorageDaemon:
    """qemu-storage-daemon serving ``image`` by vhost-user-blk on ``socket``."""

    def __init__(self, program: str, folder: Path, image: Path, queues: int) -> None:
        self.socket = folder / "daemon.sock"
        self._log = folder / "daemon.log"
        export = f"vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={self.socket},writable=on"
        self._argv = [
            *(program, "--blockdev", f"driver=file,node-name=f,filename={image},discard=unmap"),
            *("--export", f"{export},num-queues={queues}"),
        ]
        self._child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._child = await process.spawn(self._argv, log=self._log)
        await wait_until(self.socket.is_socket, "qemu-storage-daemon listens")

    async def kill(self) -> None:
        if self._child is not None:
            await process.kill(self._child)


@contextlib.asynccontextmanager
async def storage_daemon(folder: Path, image: Path, size: int, queues: int = 1) -> AsyncIterator[StorageDaemon]:
    """A started StorageDaemon with a sparse file of ``size`` bytes."""
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        pytest.skip("there is no qemu-storage-daemon (Debian: qemu-system-common)")
    make_sparse(image, size)
    daemon = StorageDaemon(program, folder, image, queues)
    try:
        await daemon.start()
        yield daemon
    finally:
        await daemon.kill()
        image.unlink(missing_ok=True)


def make_sparse(path: Path, size: int) -> None:
    """A file of ``size`` bytes that takes none."""
    with path.open("wb") as stream:
        stream.truncate(size)


def held_bytes(path: Path) -> int:
    """Bytes that a sparse file really takes."""
    return path.stat().st_blocks * 512
