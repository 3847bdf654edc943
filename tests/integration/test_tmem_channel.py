# SPDX-License-Identifier: Apache-2.0
"""vhost-user-tmem: the conformance suite over it, and agents that serve it, are killed and go on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance import CASES, Case
from conformance.virtqueue import VirtqueueSpeaker
from framework.agents import AgentFactory
from framework.pages import page
from tmem_host.agent_process import AgentProcess
from tmem_host.channel.abi import (
    FEATURES_ALL,
    POOL_ATTACH,
    POOL_PERSISTENT,
    VERSION,
    Header,
    Op,
    Reply,
    Status,
)
from tmem_host.core import TmemClient
from tmem_host.models import VmCreate, VmUpdate

MIB = 1 << 20
UUID = 0x746D656D
SWAP_PAGES = 256


@pytest.fixture(scope="module")
def speaker() -> Iterator[VirtqueueSpeaker]:
    folder = Path(tempfile.mkdtemp(prefix="tmem-t-", dir="/dev/shm"))
    (folder / "sockets").mkdir()
    speaker = VirtqueueSpeaker.over(folder / "arena", folder / "sockets")
    yield speaker
    speaker.close()
    speaker.store.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case, speaker: VirtqueueSpeaker) -> None:
    case.run(speaker)
    stats = speaker.server.stats()
    assert stats["queues"][0] == "running"


# -- the agent --------------------------------------------------------------------------------------------------------


class Guest:
    """A guest's driver: says HELLO, and finds its pool by its uuid."""

    def __init__(self, agent: AgentProcess, name: str) -> None:
        socket = next(c.socket for c in agent.client.get_vm(name).channels if c.kind == "tmem")
        self.client = TmemClient(socket)
        self.tell(Header(Op.HELLO, index=VERSION, argument=FEATURES_ALL))

    def ask(self, header: Header, data: bytes = b"") -> tuple[Reply, bytes]:
        raw = self.client.request(header.encode(data=data))
        reply = Reply.decode(raw)
        assert reply is not None
        return reply, raw[40:]

    def tell(self, header: Header) -> Reply:
        reply, _ = self.ask(header)
        assert reply.status == Status.OK
        return reply

    def pool(self, pages: int = 0) -> Reply:
        """A persistent pool, a swap pool if `pages` is not 0; of each size one."""
        flags = POOL_PERSISTENT | POOL_ATTACH
        return self.tell(Header(Op.NEW_POOL, object=(UUID, pages, 0), count=pages, argument=flags))

    def put(self, pool: int, number: int) -> Status:
        return self.ask(Header(Op.PUT, pool=pool, index=number, count=1), page(number))[0].status

    def get(self, pool: int, number: int) -> bytes:
        return self.ask(Header(Op.GET, pool=pool, index=number, count=1))[1]


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("channels", [("tmem",), ("blk", "tmem")], ids="-".join)
def test_pools_are_found_again(make_agent: AgentFactory, channels: tuple[str, ...], end: str) -> None:
    agent = make_agent()
    agent.start()
    size = 4 * MIB if "blk" in channels else None
    made = agent.client.create_vm(VmCreate.model_validate({"name": "web", "size_bytes": size, "channels": channels}))
    assert [channel.kind for channel in made.channels] == list(channels)
    guest = Guest(agent, "web")
    sparse, swap = guest.pool().value, guest.pool(SWAP_PAGES).value
    for number in range(100):
        assert guest.put(sparse, number) == guest.put(swap, number) == Status.OK
    promised = agent.client.store().reserved_bytes
    assert promised >= made.reservation + SWAP_PAGES * 4096
    for _ in range(3):
        guest.client.close()
        getattr(agent, end)()
        agent.start()
        assert agent.client.store().reserved_bytes == promised
        guest = Guest(agent, "web")
        for pool, pages in ((sparse, 0), (swap, SWAP_PAGES)):
            found = guest.pool(pages)
            assert (found.value, found.done) == (pool, 1)
        assert all(guest.get(pool, number) == page(number) for pool in (sparse, swap) for number in range(100))
    vm = agent.client.update_vm("web", VmUpdate(reservation=made.reservation, weight=7))
    assert agent.client.store().reserved_bytes == promised
    assert vm.pages == 200
    channel = next(channel for channel in vm.channels if channel.kind == "tmem")
    assert channel.requests["get"] == 200
    assert agent.client.channel("web", "tmem").counters["direct_pages"] == 200
    agent.client.remove_vm("web")
    assert agent.client.store().reserved_bytes == 0


def test_a_guest_does_not_reach_its_device(make_agent: AgentFactory) -> None:
    agent = make_agent()
    agent.start()
    made = agent.client.create_vm(VmCreate(name="web", size_bytes=4 * MIB, channels=("blk", "tmem")))
    guest = Guest(agent, "web")
    device = made.pools[0].id
    assert guest.ask(Header(Op.DESTROY_POOL, pool=device))[0].status == Status.BAD_POOL
    assert guest.put(device, 0) == Status.BAD_POOL
    guest.tell(Header(Op.DESTROY_POOL, pool=guest.pool(SWAP_PAGES).value))
    agent.kill()
    agent.start()
    assert [pool.id for pool in agent.client.get_vm("web").pools] == [device]


def test_two_vms_do_not_meet(make_agent: AgentFactory) -> None:
    agent = make_agent()
    agent.start()
    for name in ("a", "b"):
        agent.client.create_vm(VmCreate(name=name, channels=("tmem",)))
    a, b = Guest(agent, "a"), Guest(agent, "b")
    pool = a.pool().value
    assert a.put(pool, 1) == Status.OK
    assert b.put(pool, 1) == Status.BAD_POOL
    assert b.pool().value != pool
    agent.client.freeze_vm("a")
    assert a.put(pool, 2) == Status.FROZEN
    assert b.put(b.pool().value, 2) == Status.OK
