# SPDX-License-Identifier: Apache-2.0
"""Many guests over each channel to one host: the arms `fleet-...` of the density bench.

A guest is a driver of ours in a thread of this process, with pages of its own: it puts and gets them, one request at a
time and nothing else to do, over a real socket of one host agent, as a monitor would connect to it. Arms:

* ``fleet-vhost-user-tmem``: rings in shared memory, an eventfd each way;
* ``fleet-virtio-serial``: frames on a stream, which the kernel copies;
* ``fleet-inline``: micro-VMs whose exits are answered on the vCPU's thread, with no agent: what virtio-tmem is, without
  the emulated device (needs KVM);
* ``fleet-engine``: the same requests by a call in this process: neither exit nor channel, the floor.

Metrics, by arm and number of guests: `channel_throughput` (pages/s of all), `channel_latency` (ns of a request; inline:
from one to the next, as a micro-VM has no clock),
`channel_page_cpu` (ns, both ends together), `channel_agent_cpu` (ns, the agent's part), `channel_fairness`,
`channel_slowest_share`, `channel_verified` (pages compared); once for each channel `channel_vm_memory` (bytes of the
agent for one VM that is connected, without its pages) and `channel_vm_creation` (s, a call of the API each).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from tmem_host._core import run_fleet
from tmem_host.agent_process import AgentProcess, temporary_agent
from tmem_host.bench import micro_vms
from tmem_host.bench.channel_scratch import scratch
from tmem_host.bench.density_fleet import Fleet, jain
from tmem_host.bench.results import Scalar
from tmem_host.bench.runner import Arm, ArmSkipped, BenchContext, BenchError
from tmem_host.bench.swap_stage import cpu_of
from tmem_host.channel.abi import FEATURES_ALL, POOL_PERSISTENT, REPLY_SIZE, VERSION, Header, Op, Reply, Status
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.core import (
    Engine,
    RequestPlan,
    Store,
    StreamClient,
    TmemClient,
    core_errors,
    measure_engine,
    worst_case_bytes,
)
from tmem_host.errors import TmemError
from tmem_host.models import ChannelKind, VmCreate

INLINE: Final = "fleet-inline"
ENGINE: Final = "fleet-engine"
#: Arms over a socket of the agent.
_SERVED: Final[dict[str, ChannelKind]] = {"fleet-vhost-user-tmem": "tmem", "fleet-virtio-serial": "serial"}
ARMS: Final = (*_SERVED, INLINE, ENGINE)
_CHANNEL: Final = {"fleet-vhost-user-tmem": "vhost-user-tmem", "fleet-virtio-serial": "virtio-serial"}
#: Between two looks at the clock.
_CHUNK_SECONDS: Final = 0.002
#: Latencies kept of each run.
_KEPT: Final = 400
#: Fewer guests say nothing about the memory of one: what a process takes now and then is as much.
_MEMORY_FROM: Final = 16


@dataclass(frozen=True)
class Plan:
    """The part as configured."""

    guests: tuple[int, ...]
    rounds: int
    seconds: float
    fleet: Fleet
    arms: tuple[str, ...]


class Driver(Protocol):
    """A guest's end of a channel."""

    def request(self, message: bytes, room: int | None = None) -> bytes: ...

    def measure(self, pages: bytes, plan: RequestPlan) -> list[int]: ...


class _Direct:
    """A guest without a channel."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self._engine.request(message, room)

    def measure(self, pages: bytes, plan: RequestPlan) -> list[int]:
        return measure_engine(self._engine, pages, plan)


class Start:
    """All guests begin at once, and what they do after the same moment does not count."""

    def __init__(self, guests: int, seconds: float) -> None:
        self._seconds = seconds
        self._end = 0.0
        self._barrier = threading.Barrier(guests, self._begin)

    def _begin(self) -> None:
        self._end = time.monotonic() + self._seconds

    def wait(self) -> float:
        """The end, when all are there."""
        self._barrier.wait()
        return self._end


class Guest:
    """One guest with its pool; ``pages`` are its own, so that another's would be noticed."""

    def __init__(self, driver: Driver, pages: bytes) -> None:
        self._driver = driver
        self._pages = pages
        self._count = len(pages) // PAGE_SIZE
        self._ask(Header(Op.HELLO, index=VERSION, argument=FEATURES_ALL))
        self._pool = self._ask(Header(Op.NEW_POOL, argument=POOL_PERSISTENT)).value
        self._measure("put", self._count, 0)

    def _ask(self, header: Header) -> Reply:
        with core_errors("a guest"):
            reply = Reply.decode(self._driver.request(header.encode(), 0))
        if reply is None or reply.status != Status.OK:
            raise BenchError(f"the channel answers {reply}")
        return reply

    def _measure(self, op: Literal["put", "get"], requests: int, start: int) -> list[int]:
        with core_errors("a guest"):
            return self._driver.measure(self._pages, RequestPlan(op, self._pool, requests, start=start))

    def play(self, start: Start) -> list[int]:
        """Puts and gets in turn; nanoseconds of those that were answered within the time."""
        end = start.wait()
        taken: list[int] = []
        step, size, began = 0, 1, time.monotonic()
        while True:
            chunk = self._measure("put" if step % 2 else "get", size, len(taken) // 2)
            now = time.monotonic()
            if now > end:
                return taken
            taken += chunk
            step += 1
            # Long enough that calls from Python are a small part of it, short enough that little of the end is lost.
            if now - began < _CHUNK_SECONDS / 2 and size < self._count:
                size *= 2
            elif now - began > 2 * _CHUNK_SECONDS and size > 1:
                size //= 2
            began = now

    def check(self) -> int:
        """Compares every page; how many there are. Raises BenchError."""
        for index in range(self._count):
            header = Header(Op.GET, pool=self._pool, index=index, count=1)
            with core_errors("a guest"):
                data = self._driver.request(header.encode())[REPLY_SIZE:]
            if data != self._pages[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]:
                raise BenchError(f"page {index} of a guest came back different")
        return self._count


async def run(ctx: BenchContext, plan: Plan, pages: bytes) -> None:
    """Runs the arms in turn. Raises TmemError when the agent cannot be had."""
    ctx.note(
        "fleet-...: drivers of ours, without a monitor and a guest's kernel around them, on the CPUs that the agent is "
        "on, too. They tell how a channel holds up as guests become many."
    )
    async with _guests(ctx, plan, pages) as guests:
        arms = [_arm(name, n) for n in plan.guests for name in plan.arms]

        async def one(arm: Arm, _index: int) -> None:
            n = int(arm.dimensions["vms"])
            ctx.progress(f"{n} guests")
            if arm.name == INLINE:
                _inline(ctx, plan, arm, pages)
            else:
                await asyncio.to_thread(_turn, ctx, plan, arm, guests[arm.name][:n], guests.agent)

        await ctx.interleave(arms, rounds=plan.rounds, run=one)


def _arm(name: str, guests: int) -> Arm:
    labels: dict[str, Scalar] = {
        "vms": guests,
        "channel": _CHANNEL.get(name, "inline" if name == INLINE else "none"),
        "backend": "store",
        "part": "channels",
    }
    return Arm(name, labels)


# ---- guests


class _Guests(dict[str, list[Guest]]):
    """By arm; and the agent that serves those over a socket."""

    agent: AgentProcess | None = None


@contextlib.asynccontextmanager
async def _guests(ctx: BenchContext, plan: Plan, pages: bytes) -> AsyncIterator[_Guests]:
    """As many as there will ever be, of every arm that is played by threads."""
    most = max(plan.guests)
    room = worst_case_bytes(most * plan.fleet.pages) + 64 * MIB
    found = _Guests()
    with contextlib.ExitStack() as stack:
        served = [name for name in plan.arms if name in _SERVED]
        if served:
            found.agent = await asyncio.to_thread(stack.enter_context, temporary_agent(room * len(served)))
            for name in served:
                ctx.progress(f"{name}: connecting {most} guests")
                found[name] = await asyncio.to_thread(_connect, ctx, stack, found.agent, name, most, plan, pages)
        if ENGINE in plan.arms:
            folder = stack.enter_context(scratch(room))
            store = Store(str(folder / "arena"), limit_bytes=room)
            stack.callback(store.close)
            found[ENGINE] = [_direct(store, i, plan, pages) for i in range(most)]
        yield found


def _connect(
    ctx: BenchContext, stack: contextlib.ExitStack, agent: AgentProcess, name: str, most: int, plan: Plan, pages: bytes
) -> list[Guest]:
    """VMs of the agent, each with a guest on its socket; what they cost is recorded."""
    arm, kind = _arm(name, most), _SERVED[name]
    before, times, guests = _private_memory(agent.pid), [], []
    for i in range(most):
        began = time.monotonic()
        made = agent.client.create_vm(VmCreate(name=f"{kind}-{i}", channels=(kind,), queues=1))
        times.append(time.monotonic() - began)
        with core_errors(f"{name}, guest {i}"):
            driver = TmemClient(made.socket) if kind == "tmem" else StreamClient(made.socket)
        stack.callback(driver.close)
        guests.append(Guest(driver, _own(pages, i, plan.fleet.pages)))
    ctx.record("channel_vm_creation", "s", times, arm=arm, better="lower")
    if most >= _MEMORY_FROM:
        each = (_private_memory(agent.pid) - before) / most
        ctx.record("channel_vm_memory", "bytes", max(0.0, each), arm=arm, better="lower")
    return guests


def _direct(store: Store, index: int, plan: Plan, pages: bytes) -> Guest:
    name = f"direct-{index}"
    store.vm_create(name)
    return Guest(_Direct(Engine(store, name)), _own(pages, index, plan.fleet.pages))


def _own(pages: bytes, index: int, count: int) -> bytes:
    """Pages of one guest: others than its neighbours', as far as there are some."""
    start = index * PAGE_SIZE * (count + 1) % len(pages)
    turned = pages[start:] + pages[:start]
    return (turned * (1 + count * PAGE_SIZE // len(turned)))[: count * PAGE_SIZE]


def _private_memory(pid: int) -> int:
    """Bytes that the process has to itself, page tables included; the arena is none of it (proc(5))."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmPTE"))


# ---- turns


def _turn(ctx: BenchContext, plan: Plan, arm: Arm, guests: list[Guest], agent: AgentProcess | None) -> None:
    """All guests at once, each in a thread. Raises BenchError when a page was wrong, or an agent ended."""
    start = Start(len(guests), plan.seconds)
    agent_pid = agent.pid if agent is not None and arm.name in _SERVED else None
    before = cpu_of(agent_pid) if agent_pid else 0.0
    own = time.process_time()
    with ThreadPoolExecutor(len(guests)) as threads:
        played = list(threads.map(lambda guest: guest.play(start), guests))
    theirs = cpu_of(agent_pid) - before if agent_pid else 0.0
    own = time.process_time() - own
    if agent_pid and not agent_alive(agent):
        raise BenchError("the host agent has ended", "")
    served = [len(times) for times in played]
    taken = [ns for times in played for ns in times]
    _record(ctx, arm, served, plan.seconds, taken, own + theirs)
    if agent_pid:
        ctx.record("channel_agent_cpu", "ns", theirs * 1e9 / max(1, sum(served)), arm=arm, better="lower")
    ctx.record("channel_verified", "pages", sum(guest.check() for guest in guests), arm=arm)


def _inline(ctx: BenchContext, plan: Plan, arm: Arm, pages: bytes) -> None:
    """As many micro-VMs, with nothing to compute between two pages. Raises ArmSkipped without KVM."""
    if (kvm := str(ctx.results.properties.host.get("kvm_device"))) != "usable":
        raise ArmSkipped(f"micro-VMs need KVM, and /dev/kvm is {kvm}: see 'tmem doctor'")
    n = int(arm.dimensions["vms"])
    room = worst_case_bytes(n * plan.fleet.pages) + 256 * MIB
    with scratch(room) as folder, micro_vms.arm_errors():
        store = Store(str(folder / "arena"), limit_bytes=room)
        try:
            seen = run_fleet(
                [("plain", n, True, 0, None, 100)],
                pages,
                store=store,
                **{**plan.fleet.arguments(), "compute": 0.0},
                channel="sync",
                workers=1,
                cpus=len(os.sched_getaffinity(0)),
                time=plan.seconds,
            )
        finally:
            store.close()
    if bad := sum(c["bad"] for c in seen["classes"]):
        raise BenchError(f"{bad} pages came back different, or not at all")
    _record(ctx, arm, [int(x) for x in seen["ops"]], seen["seconds"], seen["interval_ns"], seen["cpu_ns"] / 1e9)
    ctx.record("channel_verified", "pages", seen["verified"], arm=arm)


def _record(
    ctx: BenchContext, arm: Arm, served: list[int], seconds: float, taken: list[int] | list[float], cpu: float
) -> None:
    total = sum(served)
    if not total:
        raise BenchError("no page was served in time", "give it more with --set channel_seconds=5")
    ctx.record("channel_throughput", "pages/s", total / seconds, arm=arm, better="higher")
    ctx.record("channel_latency", "ns", taken[:: max(1, len(taken) // _KEPT)], arm=arm, better="lower")
    ctx.record("channel_page_cpu", "ns", cpu * 1e9 / total, arm=arm, better="lower")
    ctx.record("channel_fairness", "ratio", jain(served), arm=arm, better="higher")
    ctx.record("channel_slowest_share", "ratio", min(served) * len(served) / total, arm=arm, better="higher")


def agent_alive(agent: AgentProcess | None) -> bool:
    """Whether it answers."""
    try:
        return agent is not None and agent.client.health().status == "ok"
    except TmemError:
        return False
