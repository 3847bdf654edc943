# SPDX-License-Identifier: Apache-2.0
"""`tmem bench guest`: workloads in a guest that somebody else runs, by its own agent.

The arms are the workloads. Each is run by the program that came with the guest's agent, on more data than the guest has
memory for, and compares all that it reads. The port of that agent takes one speaker at a time: this bench holds it from
its start to its end, and whatever it began in the guest ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from tmem_host.bench.guest_figures import MAIN, MIB, PHASES, Room, WorkFigures, hog_figures, whole, word, work_figures
from tmem_host.bench.runner import Arm, BenchAborted, BenchContext, BenchError, bench
from tmem_host.client import AgentClient
from tmem_host.config import AgentConfig, check_vm_name, state_dir
from tmem_host.errors import Conflict, InvalidInput, TmemError, Unavailable
from tmem_host.models import VmInfo
from tmem_host.vm.guest_client import GuestClient, GuestGarbled, GuestGone, GuestTimeout, Json
from tmem_host.vm.guest_results import Progress

#: Seconds that a guest may take to answer: under TCG, on a busy host, it may do something else first.
_HELLO: Final = 30.0
#: Seconds between two looks at what the host holds.
_LOOK: Final = 0.5
#: Of the host's counters of a VM: those that are told.
_COUNTERS: Final = ("puts", "gets")
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Plan:
    """Options, with those of a quick run in place. ``mib`` 0: as much as ``factor`` makes of the guest's memory."""

    vm: str
    state: Path
    kinds: tuple[str, ...]
    rounds: int
    mib: int
    factor: float
    seconds: int
    samples: int
    jobs: int
    parallel: int
    turn_seconds: float

    @classmethod
    def of(cls, ctx: BenchContext) -> Plan:
        vm = str(ctx.option("vm", ""))
        if not vm:
            raise InvalidInput("the guest bench needs a VM", "name it: --vm NAME; 'tmem vm list' has them")
        kinds = tuple(dict.fromkeys(str(ctx.option("arms", ",".join(PHASES))).split(",")))
        if unknown := [kind for kind in kinds if kind not in PHASES]:
            raise InvalidInput(f"there is no workload {unknown[0]!r}", f"the choice is {', '.join(PHASES)}")
        return cls(
            vm=check_vm_name(vm),
            state=Path(str(ctx.option("state", str(state_dir())))).absolute(),
            kinds=kinds,
            rounds=_within("rounds", ctx.option("rounds", 3, 1), 1, 1000),
            mib=_within("mib", ctx.option("mib", 0), 0, 1 << 20),
            factor=_within("factor", ctx.option("factor", 1.5, 1.2), 0.1, 10.0),
            seconds=_within("seconds", ctx.option("seconds", 30, 5), 1, 86400),
            samples=_within("samples", ctx.option("samples", 8192, 2048), 1, 65536),
            jobs=_within("jobs", ctx.option("jobs", 32, 8), 1, 100_000),
            parallel=_within("parallel", ctx.option("parallel", 4), 1, 64),
            turn_seconds=_within("turn_seconds", ctx.option("turn_seconds", 3600.0, 600.0), 1.0, 86400.0),
        )


def _within(name: str, value: N, low: N, high: N) -> N:
    if not low <= value <= high:
        raise InvalidInput(f"{name} is {value}", f"it is from {low} to {high}")
    return value


@bench("guest")
async def run(ctx: BenchContext) -> None:
    """Runs the bench. Raises TmemError when the guest cannot be had at all."""
    plan = Plan.of(ctx)
    agent = AgentClient(plan.state)
    vm = await asyncio.to_thread(agent.get_vm, plan.vm)
    async with _guest(plan, vm) as (guest, hello):
        room = Room.of(await guest.request("meminfo"))
        mib = plan.mib or room.mib(plan.factor)
        await _describe(ctx, plan, vm, hello, room, mib)
        turns = _Turns(ctx, plan, agent, guest, mib)
        await ctx.interleave([Arm(kind) for kind in plan.kinds], rounds=plan.rounds, run=turns.run)


@contextlib.asynccontextmanager
async def _guest(plan: Plan, vm: VmInfo) -> AsyncIterator[tuple[GuestClient, Json]]:
    if vm.machine is not None and vm.machine.state != "running":
        raise Conflict(f"the guest of {plan.vm} is {vm.machine.state}", f"see 'tmem vm start {plan.vm}'")
    socket = AgentConfig(state=plan.state).vm_socket(plan.vm, "agent")
    client = GuestClient(plan.vm)
    try:
        await client.connect(socket)
    except OSError as error:
        raise Unavailable(
            f"the guest of {plan.vm} cannot be spoken to: {socket}: {error.strerror}",
            "start it with a port for its agent: machines, and domains that are attached, have one",
        ) from error
    try:
        yield client, await client.hello(_HELLO)
    except GuestTimeout as error:
        raise Unavailable(error.message, "does tmem_guest run in it, and does nobody else speak to it?") from error
    finally:
        await client.close()


async def _describe(ctx: BenchContext, plan: Plan, vm: VmInfo, hello: Json, room: Room, mib: int) -> None:
    accelerator, _, why = (vm.machine.accelerator if vm.machine is not None else "").partition(" ")
    memory = whole("its memory", hello.get("mem_total_bytes"))
    ctx.guest(
        vm=plan.vm,
        kernel_release=word(hello.get("kernel")),
        clocksource=word(hello.get("clocksource")),
        vcpus=whole("its CPUs", hello.get("cpus")),
        # What its kernel leaves to it, as what it was given is not known here.
        memory_mib=memory // MIB,
        available_bytes=room.available,
        swap_free_bytes=room.swap_free,
        accelerator=accelerator or "unknown",
        accelerator_why=why.strip("()") or "its monitor is not the agent's",
        source=vm.machine.spec.source if vm.machine is not None else "unknown",
        channels=", ".join(channel.kind for channel in vm.channels),
    )
    ctx.configure(
        mib=mib,
        rounds=plan.rounds,
        seconds=plan.seconds,
        samples_per_series=plan.samples,
        build_jobs=plan.jobs,
        build_parallel=plan.parallel,
        codec=vm.codec,
    )
    ctx.note(
        "Times, samples and what came back wrong are the guest's word: it took them by its own clock, and compared its "
        "own pages. The host's own are the time of a whole workload, put, get, and what was held."
    )
    if accelerator == "tcg":
        ctx.note(f"The guest ran under TCG ({why.strip('()')}): its CPU is emulated: no time is one of hardware.")
    elif not accelerator:
        ctx.note("Whether the guest's CPU is emulated is not known here: its monitor is not the agent's.")
    if not room.swap_free:
        ctx.note("The guest has no swap: its workloads fit in its memory, and nothing went to the host.")


class _Turns:
    """One workload after the other."""

    def __init__(self, ctx: BenchContext, plan: Plan, agent: AgentClient, guest: GuestClient, mib: int) -> None:
        self._ctx = ctx
        self._plan = plan
        self._agent = agent
        self._guest = guest
        self._mib = mib
        self._peak: VmInfo | None = None

    async def run(self, arm: Arm, index: int) -> None:
        before = self._peak = await self._look()
        looking = asyncio.create_task(self._watch())
        try:
            done = await self._work(arm.name, self._ctx.seed + index)
        except (GuestGone, GuestGarbled) as error:
            raise BenchAborted(error.message, error.hint) from error
        finally:
            looking.cancel()
            await asyncio.wait((looking,))
        after = await self._look()
        if done.bad:
            raise BenchError(f"{done.bad} pages, values or files came back wrong", "see agent.log and the guest's log")
        self._record(arm, done)
        for name in _COUNTERS:
            moved = after.counters.get(name, 0) - before.counters.get(name, 0)
            self._ctx.record(f"host_{name}", "pages", moved, arm=arm)
        self._ctx.record("host_pages", "pages", self._peak.pages, arm=arm)
        self._ctx.record("host_held", "bytes", self._peak.held_bytes, arm=arm, better="lower")

    async def _look(self) -> VmInfo:
        return await asyncio.to_thread(self._agent.get_vm, self._plan.vm)

    async def _watch(self) -> None:
        """Keeps the moment at which most was held. An agent that is away for a while is not seen, no more."""
        while True:
            with contextlib.suppress(TmemError):
                now = await self._look()
                if self._peak is None or now.held_bytes > self._peak.held_bytes:
                    self._peak = now
            await asyncio.sleep(_LOOK)

    async def _work(self, kind: str, seed: int) -> WorkFigures:
        plan, guest, progress = self._plan, self._guest, self._progress(kind)
        common: dict[str, Any] = {"seed": seed, "samples": plan.samples, "timeout": plan.turn_seconds}
        if kind == "hog":
            return hog_figures(await guest.hog(self._mib, progress=progress, **common))
        if kind == "zipf":
            done = await guest.workload("zipf", self._mib, seconds=plan.seconds, progress=progress, **common)
        elif kind == "redis":
            done = await guest.workload("redis", self._mib, seconds=plan.seconds, progress=progress, **common)
        else:
            # Of each job, and so many run at once.
            mib = max(1, self._mib // plan.parallel)
            more = {"jobs": plan.jobs, "parallel": plan.parallel, "seconds": plan.seconds}
            done = await guest.workload("build", mib, progress=progress, **more, **common)
        return work_figures(done, kind)

    def _progress(self, kind: str) -> Callable[[Progress], None]:
        def tell(told: Progress) -> None:
            phase = told.phase if told.phase in PHASES[kind] else "?"
            done, planned = whole("progress", told.done), whole("progress", told.planned)
            self._ctx.progress(f"{kind}, {phase}: {done} of {planned}")

        return tell

    def _record(self, arm: Arm, done: WorkFigures) -> None:
        ctx = self._ctx
        ctx.record("run_time", "s", done.seconds, arm=arm, better="lower", phase="all")
        ctx.record("bad", "items", done.bad, arm=arm, better="lower")
        if done.job_seconds is not None:
            ctx.record("job_time", "s", done.job_seconds, arm=arm, better="lower", statistic="mean")
        for phase in done.phases:
            main = phase.name == MAIN[arm.name]
            ctx.record("run_time", "s", phase.seconds, arm=arm, better="lower", phase=phase.name)
            ctx.record("swapped_in", "pages", phase.swapped_in, arm=arm, phase=phase.name)
            ctx.record("swapped_out", "pages", phase.swapped_out, arm=arm, phase=phase.name)
            for op, samples in phase.latency_ns.items():
                ctx.record("latency", "ns", samples, arm=arm, better="lower", phase=phase.name, op=op, main=main)
