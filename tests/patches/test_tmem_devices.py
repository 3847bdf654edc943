# SPDX-License-Identifier: Apache-2.0
"""The devices that carry tmem requests, driven by the probe (``guest/probe``) under a stock kernel."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from framework.vm import evidence_folder, wait_until
from tmem_host.bench import store_pages
from tmem_host.bench.channel_probe import PAGES_MIN, Devices, Probe, probe_vm
from tmem_host.config import PAGE_SIZE
from tmem_host.vm import process
from tmem_host.vm.qemubuild import recipe
from tmem_host.vm.spec import InlineTmem, Tmem, VhostUserTmem

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parents[2]
ABI = ROOT / "guest" / "abi" / "tmem_abi.h"
LIMIT = 64 << 20
PAGES = store_pages.contents(store_pages.SYNTHETIC, PAGES_MIN // PAGE_SIZE, 1)
SIZES = (PAGE_SIZE, 64 << 10, 2 << 20)

_SERVER = """
import sys, time
from tmem_host.core import Engine, Store, TmemServer
store = Store(sys.argv[1], limit_bytes=64 << 20)
if not store.vms():
    store.vm_create("guest")
server = TmemServer(Engine(store, "guest"), sys.argv[2], queues=2)
time.sleep(1000)
"""


@contextlib.asynccontextmanager
async def guest(folder: Path, request: pytest.FixtureRequest, *devices: Tmem) -> AsyncIterator[Probe]:
    """A guest with these devices; when the test fails, what it and QEMU said is kept."""
    logs = folder / "probe"
    try:
        async with probe_vm(Devices(tmem=devices), PAGES, logs) as probe:
            yield probe
    except BaseException:
        shutil.copytree(logs, evidence_folder(request.node.name), dirs_exist_ok=True)
        raise


def inline(folder: Path, name: str, **how: object) -> InlineTmem:
    return InlineTmem(folder / name, LIMIT, **how)  # type: ignore[arg-type]


async def test_inline_pages(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every operation, by one vCPU and by two at once; the probe compares every page."""
    devices = {
        "mmio": inline(tmp_path, "mmio"),
        "pio": inline(tmp_path, "pio", doorbell="pio"),
        "bql": inline(tmp_path, "bql", bql=True),
        "ioeventfd": inline(tmp_path, "ioeventfd", ioeventfd=True),
    }
    async with guest(tmp_path, request, *devices.values()) as probe:
        for number, name in enumerate(devices):
            said = await probe.open(name, "ring", str(number))
            assert said == {"doorbell": "pio" if name == "pio" else "mmio", "inline": str(int(name != "ioeventfd"))}
            for vcpus in (1, 2):
                for op in ("put", "get", "flush", "exchange", "put+get"):
                    turn = await probe.turn(name, op, vcpus=vcpus, samples=50)
                    assert [len(lane) for lane in turn.ns] == [50] * vcpus
                    assert all(ns > 0 for lane in turn.ns for ns in lane)
            for size in SIZES:
                for op, length in (("put", 0), ("get", 0), ("read", 64), ("write", 64)):
                    await probe.turn(name, op, page_bytes=size, length=length, samples=4, warmup=1)
            await probe.turn(name, "put", batch=128, samples=4, warmup=1)
        for found in await probe.query_tmem():
            counters = {c["name"]: c["value"] for c in found["counters"]}
            assert counters["direct-pages"] > 1000
            assert counters["bounced-pages"] == 0
        assert await probe.off() == 0


async def test_resets_while_another_vcpu_kicks(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    devices = (inline(tmp_path, "mmio"), inline(tmp_path, "pio", doorbell="pio"))
    async with guest(tmp_path, request, *devices) as probe:
        for number, name in enumerate(("mmio", "pio")):
            await probe.open(name, "ring", str(number))
            said = await probe.resets(name, 300)
            assert said["resets"] == 300
            assert said["kicks"] > 10
            assert said["status"] == 0
        assert await probe.off() == 0


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Servers of ``tmp_path/sock``; the last is the present one."""
    servers: list[asyncio.subprocess.Process] = []
    yield servers
    for server in servers:
        await process.kill(server)


async def serve(servers: list[asyncio.subprocess.Process], folder: Path) -> None:
    socket = folder / "sock"
    socket.unlink(missing_ok=True)
    argv = [sys.executable, "-c", _SERVER, str(folder / "arena"), str(socket)]
    servers.append(await process.spawn(argv, log=folder / "server.log"))
    await wait_until(socket.is_socket, "the backend listens")


async def test_backend_is_killed_under_requests(
    tmp_path: Path, backend: list[asyncio.subprocess.Process], request: pytest.FixtureRequest
) -> None:
    await serve(backend, tmp_path)
    async with guest(tmp_path, request, VhostUserTmem(tmp_path / "sock")) as probe:
        await probe.patience(100)
        await probe.open("ring", "ring", "0")
        begun, ended = 0, False

        async def ask() -> int:
            """Turns without a pause; each compares every page."""
            nonlocal begun
            while not ended:
                begun += 1
                await probe.turn("ring", "put+get", vcpus=2, samples=500)
            return begun

        async with asyncio.TaskGroup() as group:
            asking = group.create_task(ask())
            for _ in range(3):
                now = begun
                await wait_until(lambda now=now: begun > now, "a turn begins")  # type: ignore[misc]
                backend[-1].send_signal(signal.SIGKILL)
                await backend[-1].wait()
                await serve(backend, tmp_path)
            ended = True
        assert asking.result() >= 3
        assert await probe.off() == 0


def test_the_series_has_the_abi_of_the_guest() -> None:
    def macros(text: str) -> dict[str, str]:
        plain = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        found = re.findall(r"^#define\s+((?:VIRTIO_ID_)?(?:VIRTIO_)?TMEM_?\w*)\s+(\S.*?)\s*$", plain, re.MULTILINE)
        return {name: re.sub(r"\s+", " ", value) for name, value in found}

    def structures(text: str) -> dict[str, str]:
        plain = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        plain = re.sub(r"\b(?:__le|uint)(\d\d)(?:_t)?\b", r"u\1", plain)
        return {name: " ".join(body.split()) for name, body in re.findall(r"struct (\w+) \{(.*?)\};", plain, re.DOTALL)}

    guest = ABI.read_text()
    patches = [path.read_text() for path in recipe.read().patches]
    added = "\n".join(
        line[1:]
        for text in patches
        for part in text.split("diff --git ")
        if part.startswith("a/include/hw/virtio/tmem-abi.h ")
        for line in part.splitlines()
        if line.startswith("+") and not line.startswith("+++")
    )
    ours, theirs = macros(guest), macros(added)
    assert len(theirs) > 50
    assert theirs == {name: ours.get(name) for name in theirs}
    kept, all_of = structures(added), structures(guest)
    assert set(kept) == {"tmem_request", "tmem_item", "tmem_reply", "virtio_tmem_config"}
    assert kept == {name: all_of[name] for name in kept}
