# SPDX-License-Identifier: Apache-2.0
"""tmem.ko on hosts of several ages: with everything, with what every host has, and one that becomes the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from framework.vm import MEMORY_MIB, running_vm, wait_until
from tmem_host.channel.abi import FEATURES_ALL
from tmem_host.config import MIB
from tmem_host.core import Engine, Store, TmemServer
from tmem_host.vm.console import complaints
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.routes import image_of, source_counters
from tmem_host.vm.spec import InlineTmem, VhostUserTmem, VmSpec

pytestmark = pytest.mark.vm

SWAP_MIB = 128
HOG_MIB = 72
#: At about every third a batch of flushes is under way.
FLIPS = 6
#: Seconds, on a busy host.
DEADLINE = 240.0
#: What the module asks for: batches and lists.
WANTED = 0x3


class Host:
    """A server of one VM whose features can be others after a restart; its counters begin anew with each."""

    def __init__(self, arena: Path, socket: Path) -> None:
        self._arena = arena
        self.socket = socket
        self._store = Store(str(arena), limit_bytes=2 * SWAP_MIB * MIB)
        self._store.vm_create("guest")
        self._serve(FEATURES_ALL)

    def _serve(self, features: int) -> None:
        self._server = TmemServer(Engine(self._store, "guest", features=features), str(self.socket))

    def restart(self, features: int) -> None:
        self._server.stop()
        self._serve(features)

    def counts(self, kind: str) -> dict[str, int]:
        return dict(self._server.stats()[kind])

    def counted(self, kind: str, name: str) -> int:
        return self.counts(kind)[name]

    @property
    def flushed(self) -> int:
        return sum(int(pool["counters"]["flushed"]) for pool in self._store.pools())

    @property
    def pages(self) -> int:
        return sum(int(pool["pages"]) for pool in self._store.pools())

    def close(self) -> None:
        self._server.stop()
        self._store.close()


@pytest.fixture
def host(arena: Path, state: Path) -> Iterator[Host]:
    made = Host(arena, state / "tmem.sock")
    yield made
    made.close()


async def agreed(vm: DirectVm) -> int:
    words = (await vm.agent.debugfs_read("tmem/channel")).split()
    return int(words[words.index("features") + 1], 16)


async def flushes(vm: DirectVm) -> tuple[int, int]:
    """Pages flushed, and the requests that it took."""
    found = await source_counters(vm, "blkdev")
    return found["flushes_sent"], found["flush_requests"]


def refusals(host: Host) -> int:
    """Requests that were refused for what they asked."""
    return sum(host.counted("refused", name) for name in ("bad_op", "bad_flags", "bad_length"))


async def test_swap_on_hosts_of_several_ages(host: Host, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """One guest on all of them: it says HELLO anew to each, and uses what that one has."""
    spec = VmSpec("guest", image_of("6.12"), MEMORY_MIB, 2, workdir=tmp_path / "vm", tmem=(VhostUserTmem(host.socket),))
    async with running_vm(spec, request) as vm:
        await vm.agent.module_load(blkdev_mib=SWAP_MIB)
        await vm.agent.swap_on(device="tmem0", discard=False, page_cluster=0)
        seed = 1

        def got(pages: int) -> bool:
            return host.counted("requests", "get") >= pages

        @contextlib.asynccontextmanager
        async def hog(gets: int) -> AsyncIterator[None]:
            """The block runs when this hog has got so many pages from the present host; none is bad in the end."""
            nonlocal seed
            seed += 1
            running = asyncio.create_task(vm.agent.hog(HOG_MIB, seed=seed))
            try:
                await wait_until(lambda: running.done() or got(gets), "the hog swaps", DEADLINE)
                assert not running.done()
                yield
                assert (await running).bad == 0
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        # Everything: one request flushes many pages.
        async with hog(3000):
            assert await agreed(vm) == WANTED
        pages, requests = await flushes(vm)
        assert 0 < requests < pages / 2
        assert refusals(host) == 0

        # The base alone, from the next hog on: a request for each page.
        host.restart(0)
        async with hog(100):
            assert await agreed(vm) == 0
            before = await flushes(vm)
            await wait_until(lambda: got(3000), "the hog swaps on", DEADLINE)
            after = await flushes(vm)
            pages, requests = after[0] - before[0], after[1] - before[1]
            # The one on its way may be in one of the two counters.
            assert abs(pages - requests) <= 1
            assert requests > 100
            # A batch that was under way when the host changed.
            assert refusals(host) <= 1
            used = {op for op, n in host.counts("requests").items() if n}
            assert used == {"hello", "new_pool", "put", "get", "flush_page"}
            # In the middle of this hog everything again ...
            host.restart(FEATURES_ALL)
        assert await agreed(vm) == WANTED
        assert refusals(host) == 0
        # ... and in the middle of another the one and the other in turn: batches of flushes are under way.
        async with hog(0):
            for features in (0, FEATURES_ALL) * FLIPS + (0,):
                await wait_until(lambda: got(200), "the hog swaps on", DEADLINE)
                host.restart(features)
        assert await agreed(vm) == 0
        await vm.agent.swap_off(device="tmem0", discard_after=False)
        # What the guest takes for flushed is: what was refused for its size was sent again, page by page.
        async with asyncio.timeout(DEADLINE):
            sent = -1
            while host.pages or sent != host.flushed:
                await asyncio.sleep(0.1)
                sent, _ = await flushes(vm)
    assert complaints(vm.console_log.read_text(errors="replace")) == []


@pytest.mark.parametrize("features", [0, 1, FEATURES_ALL])
async def test_swap_on_inline_devices_of_several_ages(
    features: int, arena: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    device = InlineTmem(arena, 2 * SWAP_MIB * MIB, features=features)
    spec = VmSpec("guest", image_of("6.12"), MEMORY_MIB, 2, workdir=tmp_path / "vm", tmem=(device,))
    async with running_vm(spec, request) as vm:
        await vm.agent.module_load(blkdev_mib=SWAP_MIB)
        await vm.agent.swap_on(device="tmem0", discard=False, page_cluster=0)
        assert (await vm.agent.hog(HOG_MIB)).bad == 0
        assert await agreed(vm) == WANTED & features
        await vm.agent.swap_off(device="tmem0", discard_after=False)
        pages, requests = await flushes(vm)
        assert pages > 1000
        # Lists hold any pages, batches such as are in a row; without either it is a request for each.
        least, most = {0: (pages, pages), 1: (1, pages)}.get(features, (1, pages // 2))
        assert least <= requests <= most
        await vm.agent.module_unload()
    assert complaints(vm.console_log.read_text(errors="replace")) == []
