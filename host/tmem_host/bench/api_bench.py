# SPDX-License-Identifier: Apache-2.0
"""`tmem bench api`: an agent of many VMs whose guests are busy, and many clients that look at it once a second.

Guests are drivers of ours, each connected to its VM's vhost-user-tmem socket as a monitor would be; one after the other
they get their pages, which are compared.  Clients keep their connections, and are spread over the second.  Arms are the
doors: ``socket`` (the Unix socket) and ``tcp`` (loopback, with a token).

Metrics, by arm: `list_vms` (ns, GET /v1/vms of all VMs, from the first byte sent to the last one read), `scrape` (ns,
GET /metrics), `agent_cpu` (CPU seconds of the agent for each second), `requests` (1/s that were answered).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tmem_host.agent_process import AgentProcess
from tmem_host.bench import stats
from tmem_host.bench.density_channels import Guest
from tmem_host.bench.harness import record_harness
from tmem_host.bench.runner import Arm, BenchContext, BenchError, bench
from tmem_host.bench.store_figures import verdict
from tmem_host.bench.swap_stage import cpu_of
from tmem_host.config import PAGE_SIZE, default_arena
from tmem_host.core import TmemClient, core_errors
from tmem_host.errors import TmemError
from tmem_host.models import VmCreate
from tmem_host.tokens import Tokens

ARMS: Final = ("socket", "tcp")
#: Seconds between two looks of a client, and of the scraper.
_PERIOD: Final = 1.0
#: Goals in seconds: the 99th percentile of a list, and of a scrape.
_LIST_GOAL, _SCRAPE_GOAL = 0.050, 0.100
#: Pages that a guest puts and gets.
_PAGES: Final = 16
#: Seconds from one guest to the next: 200 of them get their pages every second or so, and leave the CPUs to the agent.
_PAUSE: Final = 0.005
#: Seconds of a request after which a client gives up.
_DEADLINE: Final = 30.0


@dataclass(frozen=True)
class Plan:
    """The bench as configured."""

    vms: int
    clients: int
    seconds: float
    rounds: int
    arms: tuple[str, ...]

    @classmethod
    def of(cls, ctx: BenchContext) -> Plan:
        """Out of the context's options. Raises BenchError."""
        wanted = [name for name in str(ctx.option("arms", "")).split(",") if name]
        if unknown := sorted(set(wanted) - set(ARMS)):
            raise BenchError(f"no arm is called {', '.join(unknown)}", f"choose from: {', '.join(ARMS)}")
        plan = cls(
            vms=ctx.option("vms", 200),
            clients=ctx.option("clients", 50),
            seconds=ctx.option("seconds", 20.0, 6.0),
            rounds=ctx.option("rounds", 5, 2),
            arms=tuple(wanted) or ARMS,
        )
        if not (1 <= plan.vms <= 500 and 1 <= plan.clients <= 500 and plan.seconds > 0):
            raise BenchError("an agent has 1 to 500 VMs and clients here", "for example --vms 200 --clients 50")
        return plan


@bench("api")
async def run(ctx: BenchContext) -> None:
    """Runs the arms in rounds on one agent."""
    plan = Plan.of(ctx)
    ctx.configure(vms=plan.vms, clients=plan.clients, seconds=plan.seconds, rounds=plan.rounds, period_s=_PERIOD)
    record_harness(ctx)
    ctx.view.step(f"making {plan.vms} VMs")
    with _agent() as agent, _guests(agent, plan.vms, ctx) as busy:
        token = Tokens(agent.state).add("bench", "read")

        async def turn(arm: Arm, _index: int) -> None:
            before, began, pages = cpu_of(agent.pid), time.monotonic(), busy.requests
            listed, scraped = await _poll(agent, token if arm.name == "tcp" else None, plan)
            seconds = time.monotonic() - began
            ctx.record("list_vms", "ns", listed, arm=arm, better="lower")
            ctx.record("scrape", "ns", scraped, arm=arm, better="lower")
            ctx.record("agent_cpu", "ratio", (cpu_of(agent.pid) - before) / seconds, arm=arm, better="lower")
            ctx.record("requests", "1/s", len(listed) / seconds, arm=arm, better="higher")
            ctx.record("guest_requests", "1/s", (busy.requests - pages) / seconds, arm=arm, better="higher")
            if busy.failed:
                raise BenchError(f"a guest failed meanwhile: {busy.failed}")

        await ctx.interleave([Arm(name) for name in plan.arms], rounds=plan.rounds, run=turn)
    _judge(ctx, plan)


def _judge(ctx: BenchContext, plan: Plan) -> None:
    for metric, what, goal in (
        ("list_vms", "GET /v1/vms", _LIST_GOAL),
        ("scrape", "GET /metrics", _SCRAPE_GOAL),
    ):
        for record in ctx.results.find(metric):
            late = stats.quantile(record.samples, 0.99) / 1e9
            about = f"{plan.vms} VMs, {plan.clients} clients, {record.arm}: p99 of {what} in s"
            ctx.note(verdict(about, late, goal))


@contextlib.contextmanager
def _agent() -> Iterator[AgentProcess]:
    """An agent that also listens on a port of loopback; all of it is gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="tmem-api-") as folder:
        state = Path(folder)
        arena = default_arena(state)
        try:
            # Tokens are not what is measured.
            with AgentProcess(state, arena, "1G", arguments=("--listen", "127.0.0.1:0", "--rate", "100000")) as agent:
                yield agent
        finally:
            arena.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                arena.parent.rmdir()


class _Busy:
    """Guests that do something all the time, in a thread of this process."""

    def __init__(self, guests: list[Guest]) -> None:
        self._guests = guests
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guests")
        #: So far.
        self.requests = 0
        #: Why one of them did not go on.
        self.failed = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                for guest in self._guests:
                    # Every page of it is got and compared.
                    self.requests += guest.check()
                    if self._end.wait(_PAUSE):
                        return
        except TmemError as error:
            self.failed = str(error)


@contextlib.contextmanager
def _guests(agent: AgentProcess, count: int, ctx: BenchContext) -> Iterator[_Busy]:
    """So many VMs of the agent, and their guests at work while the block runs."""
    with contextlib.ExitStack() as clients:
        guests = []
        for number in range(count):
            ctx.progress(f"VM {number + 1} of {count}")
            made = agent.client.create_vm(VmCreate(name=f"vm{number:03}", channels=("tmem",), queues=1))
            with core_errors(f"the guest of VM {number}"):
                driver = TmemClient(made.socket)
            clients.callback(driver.close)
            guests.append(Guest(driver, os.urandom(PAGE_SIZE // 2).ljust(PAGE_SIZE, b"\0") * _PAGES))
        busy = _Busy(guests)
        busy.start()
        try:
            yield busy
        finally:
            busy.stop()


async def _poll(agent: AgentProcess, token: str | None, plan: Plan) -> tuple[list[int], list[int]]:
    """Nanoseconds of each list and of each scrape, of all clients together."""
    listed: list[int] = []
    scraped: list[int] = []
    start = time.monotonic() + 0.1
    async with asyncio.TaskGroup() as group:
        for number in range(plan.clients):
            first = start + _PERIOD * number / plan.clients
            group.create_task(_client(agent, token, "/v1/vms", first, start + plan.seconds, listed))
        group.create_task(_client(agent, token, "/metrics", start + _PERIOD / 3, start + plan.seconds, scraped))
    return listed, scraped


async def _client(
    agent: AgentProcess, token: str | None, path: str, first: float, end: float, taken: list[int]
) -> None:
    """Asks once a period, whether the answer before came late or not."""
    if token is None:
        reader, writer = await asyncio.open_unix_connection(str(agent.state / "api.sock"))
    else:
        host, port = _address(agent)
        reader, writer = await asyncio.open_connection(host, port)
    authorization = "" if token is None else f"Authorization: Bearer {token}\r\n"
    request = f"GET {path} HTTP/1.1\r\nHost: agent\r\n{authorization}\r\n".encode()
    try:
        at = first
        while at < end:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            began = time.perf_counter_ns()
            writer.write(request)
            async with asyncio.timeout(_DEADLINE):
                await _answer(reader, path)
            taken.append(time.perf_counter_ns() - began)
            at += _PERIOD
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader, path: str) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    status, length = head.split(b" ", 2)[1], re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    if status != b"200" or length is None:
        raise BenchError(f"GET {path} is answered {status.decode(errors='replace')}")
    await reader.readexactly(int(length[1]))


def _address(agent: AgentProcess) -> tuple[str, int]:
    """Where the agent's log says that it listens."""
    found = re.findall(r"and http://([0-9.]+):(\d+)", (agent.state / "agent.log").read_text(encoding="utf-8"))
    if not found:
        raise BenchError("the agent does not say where it listens", "see its agent.log")
    return found[-1][0], int(found[-1][1])
