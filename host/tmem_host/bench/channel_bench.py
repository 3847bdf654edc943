# SPDX-License-Identifier: Apache-2.0
"""`tmem bench channel`: what a page costs through vhost-user-blk by queue depth, and through every channel in a guest.

Servers: tmem (by codec, waiting for events or polling) and qemu-storage-daemon with a null device and with a file on
tmpfs, in its default configuration and in its best (Linux AIO; an I/O thread). Each server is a process of its own.
Clients, none of them ours: `qemu-img bench` (the headline), and libblkio, which waits for events or polls, writes pages
that compress, and tells the latency of single requests. All servers take part in every round.

Metrics, per arm, client, depth, op and contents:
- `throughput` (pages/s): requests over the time the client took for them, without its start-up;
- `latency` (ns): mean time of a request in flight, depth x time / requests (Little's law);
- `request_latency` (ns): of single requests, libblkio only;
- `server_cpu` (ns): CPU time of the server's process per request.

Arms of tmem requests are apart: see `channel_guest` for those inside a guest, `channel_tmem` for those without one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tmem_host.bench import channel_clients as clients
from tmem_host.bench import channel_guest, channel_tmem, comparators, store_pages
from tmem_host.bench.channel_backends import (
    COMPRESSIBLE,
    CONTENTS,
    SAME_FILLED,
    Backend,
    DaemonOptions,
    TmemArm,
    names,
    storage_daemon,
    tmem_process,
)
from tmem_host.bench.channel_figures import record_figures
from tmem_host.bench.channel_scratch import scratch
from tmem_host.bench.comparators_load import note_load
from tmem_host.bench.harness import record_harness
from tmem_host.bench.runner import Arm, BenchContext, BenchError, bench
from tmem_host.config import PAGE_SIZE
from tmem_host.errors import NotFound, TmemError, Unavailable

DEPTHS = [1, 2, 4, 8, 16, 32, 64]
QUICK_DEPTHS = [1, 8, 32]
Client = Literal["qemu-img", "libblkio-event", "libblkio-poll"]

DAEMONS = {
    "qsd-null": DaemonOptions("null-co"),
    "qsd-tmpfs": DaemonOptions("file"),
    "qsd-tmpfs-native": DaemonOptions("file", aio="native"),
    "qsd-tmpfs-iothread": DaemonOptions("file", iothread=True),
}
QUICK_DAEMONS = ("qsd-null", "qsd-tmpfs", "qsd-tmpfs-native")

_DISTINCT = 4096
#: Seconds that a client may take over what was planned: a machine can be busy.
_PATIENCE = 60
#: Requests of the run that finds out how long one takes.
_PROBE = 400


@dataclass(frozen=True)
class Point:
    """What one run of a client measures on a server."""

    client: Client
    op: clients.Op
    depth: int
    contents: str


@dataclass(frozen=True)
class Plan:
    """The bench as configured."""

    depths: list[int]
    codecs: list[str]
    #: Seconds that each run of a client should take.
    seconds: float
    rounds: int
    device_pages: int
    poll_us: int
    #: Requests of a page that a turn times inside a guest.
    guest_samples: int
    quick: bool

    def points(self) -> list[Point]:
        """All points of an arm; the headline ones first, because tables show the first that fits."""
        found = []
        for depth in self.depths:
            found.append(Point("qemu-img", "read", depth, COMPRESSIBLE))
            found.append(Point("qemu-img", "write", depth, SAME_FILLED))
            found.append(Point("libblkio-event", "write", depth, COMPRESSIBLE))
            found.append(Point("libblkio-event", "read", depth, COMPRESSIBLE))
            if depth in QUICK_DEPTHS and not self.quick:
                found.append(Point("qemu-img", "read", depth, SAME_FILLED))
            if depth in (1, 32):
                found.append(Point("libblkio-poll", "write", depth, COMPRESSIBLE))
                found.append(Point("libblkio-poll", "read", depth, COMPRESSIBLE))
        return found


@bench("channel")
async def run(ctx: BenchContext) -> None:
    """Runs the bench. Raises TmemError when the comparators or shared memory cannot be had."""
    plan = _plan(ctx)
    wanted = [name for name in str(ctx.option("arms", "")).split(",") if name]
    inside, own = channel_guest.chosen(wanted), channel_tmem.chosen(wanted)
    others = not wanted or bool(set(wanted) - set(own) - set(inside))
    with scratch(_need(plan)) as folder:
        pages_file = folder / "pages"
        pages = _pages(ctx)
        pages_file.write_bytes(pages)
        if inside:
            await _guest(ctx, plan, folder, pages, inside)
        if own:
            await channel_tmem.measure(ctx, folder, pages, own, rounds=plan.rounds, poll_us=plan.poll_us)
        if not others:
            return
        tree = _comparators(ctx)
        async with _servers(plan, tree, folder, wanted) as backends:
            chosen = names(backends, wanted)
            if not chosen:
                raise BenchError(f"no arm is called {', '.join(wanted)}", f"choose from: {', '.join(backends)}")
            bench_run = _Run(ctx, plan, tree, pages_file, backends)
            record_harness(ctx)
            await note_load(ctx, "start")
            arms = [Arm(name, _dimensions(name)) for name in chosen]
            await ctx.interleave(arms, rounds=plan.rounds, run=bench_run.turn)
            await bench_run.check(arms)
    await note_load(ctx, "end")
    record_figures(ctx)


async def _guest(ctx: BenchContext, plan: Plan, folder: Path, pages: bytes, arms: list[str]) -> None:
    """The arms inside a guest; where there is no such guest the others are measured all the same."""
    try:
        await channel_guest.measure(
            ctx,
            folder,
            pages,
            arms,
            rounds=plan.rounds,
            samples=plan.guest_samples,
            batches=channel_tmem.batches(plan.quick),
            poll_us=plan.poll_us,
        )
    except NotFound as missing:
        ctx.skip(f"no arms inside a guest: {missing}", where="guest")
    except TmemError as error:
        ctx.fail(f"the guest with every channel: {error}", where="guest")


def _plan(ctx: BenchContext) -> Plan:
    plan = Plan(
        depths=ctx.option("depths", DEPTHS, QUICK_DEPTHS),
        codecs=ctx.option("codecs", ["lz4", "zstd", "none"], ["lz4"]),
        seconds=ctx.option("seconds", 0.25, 0.12),
        rounds=ctx.option("rounds", 7, 5),
        device_pages=ctx.option("device_pages", 65536, 32768),
        poll_us=ctx.option("poll_us", 50),
        guest_samples=ctx.option("guest_samples", 100, 60),
        quick=ctx.quick,
    )
    if not plan.depths or min(plan.depths) < 1 or max(plan.depths) > 128:
        raise BenchError("depths must be 1 to 128", "for example --set depths=1,8,32")
    if plan.seconds <= 0 or plan.device_pages < _DISTINCT:
        raise BenchError(
            f"seconds must be above 0 and device_pages at least {_DISTINCT}", "leave them out for the defaults"
        )
    ctx.configure(
        depths=list(plan.depths),
        codecs=list(plan.codecs),
        rounds=plan.rounds,
        seconds_per_run=plan.seconds,
        device_pages=plan.device_pages,
        poll_us=plan.poll_us,
        guest_samples=plan.guest_samples,
        queues=1,
        qemu_img_times="printed by qemu-img in ms, from the first request on, without start-up",
    )
    return plan


def _comparators(ctx: BenchContext) -> comparators.Tree:
    """The Debian 13 tree, built now if it is not there."""
    try:
        tree = comparators.find()
    except Unavailable:
        ctx.progress("building the Debian 13 tree of the comparators (once, about 10 s)")
        tree = comparators.build()
    ctx.host(**tree.facts())
    return tree


def _pages(ctx: BenchContext) -> bytes:
    """The pages that compress: the real corpus, or made-up ones of 2:1 with a note where there is no corpus."""
    kind = ctx.option("contents", store_pages.CORPUS)
    if reason := store_pages.available(kind, ctx.seed):
        ctx.note(f"The pages that compress are made up (2:1), not real ones: {reason}")
        kind = store_pages.SYNTHETIC
    ctx.configure(compressible=kind)
    return store_pages.contents(kind, _DISTINCT, ctx.seed)


def _need(plan: Plan) -> int:
    """Bytes of shared memory: one device for each tmpfs file and tmem channel, and the pages."""
    device = plan.device_pages * PAGE_SIZE
    files = sum(options.driver == "file" for options in DAEMONS.values())
    return (
        len(CONTENTS) * device * (files + len(plan.codecs)) + 2 * channel_tmem.ROOM * _DISTINCT * PAGE_SIZE + (64 << 20)
    )


def _dimensions(name: str) -> dict[str, str]:
    """What the name of an arm says, as dimensions."""
    server, _, rest = name.partition("-")
    if server != "tmem":
        return {"server": "qemu-storage-daemon", "backend": rest}
    codec, _, wait = rest.partition("-")
    return {"server": "tmem", "codec": codec, "wait": wait}


@contextlib.asynccontextmanager
async def _servers(
    plan: Plan, tree: comparators.Tree, folder: Path, wanted: list[str]
) -> AsyncIterator[dict[str, Backend]]:
    """Starts every server that an arm needs; ends them all with the block."""
    backends: dict[str, Backend] = {}
    async with contextlib.AsyncExitStack() as stack:
        for codec in plan.codecs:
            arms = {f"tmem-{codec}-event": 0, f"tmem-{codec}-poll": plan.poll_us}
            if wanted and not set(arms) & set(wanted):
                continue
            # A process for each codec, so that the memory of one does not change where another's lies.
            home = folder / codec
            home.mkdir()
            limit = 2 * len(CONTENTS) * plan.device_pages * PAGE_SIZE + (64 << 20)
            process = await stack.enter_async_context(tmem_process(home, limit))
            channels = {}
            for contents in CONTENTS:
                name = f"{codec}-{contents}"
                channels[contents] = (name, await process.add(name, plan.device_pages, codec))
            for arm, poll_us in arms.items():
                backends[arm] = TmemArm(process, channels, poll_us)
        for name, options in DAEMONS.items():
            if name not in wanted and (wanted or (plan.quick and name not in QUICK_DAEMONS)):
                continue
            home = folder / name
            home.mkdir()
            backends[name] = await stack.enter_async_context(storage_daemon(tree, options, home, plan.device_pages))
        yield backends


def _failed(ctx: BenchContext, arm: Arm) -> bool:
    return any(failure.dimensions.get("arm") == arm.name for failure in ctx.results.failures)


class _Run:
    """The state between the rounds: which devices are filled, and how long a request takes."""

    def __init__(
        self, ctx: BenchContext, plan: Plan, tree: comparators.Tree, pages: Path, backends: dict[str, Backend]
    ) -> None:
        self._ctx = ctx
        self._plan = plan
        self._tree = tree
        self._pages = pages
        self._backends = backends
        self._filled: set[Path] = set()
        self._counts: dict[tuple[str, Point], int] = {}

    async def turn(self, arm: Arm, index: int) -> None:
        """One arm's turn in a round: every point once."""
        backend = self._backends[arm.name]
        await backend.ready()
        await self._fill(arm, backend)
        for point in self._plan.points():
            self._ctx.progress(f"{point.client} {point.op} depth {point.depth} {point.contents}")
            if (arm.name, point) not in self._counts:
                self._counts[arm.name, point] = await self._calibrate(backend, point)
            await self._measure(arm, backend, point, self._counts[arm.name, point])

    async def _fill(self, arm: Arm, backend: Backend) -> None:
        """Writes both devices full before anything is measured, and checks that what compresses can be read back."""
        compressible, same = backend.socket(COMPRESSIBLE), backend.socket(SAME_FILLED)
        count = self._plan.device_pages
        if same not in self._filled:
            await clients.qemu_img_bench(self._tree, same, "write", 32, count, _PATIENCE)
            self._filled.add(same)
        if compressible not in self._filled:
            await clients.blkio(self._tree, compressible, "write", 32, count, _PATIENCE, pages=self._pages, poll=False)
            self._filled.add(compressible)
        await self._expect_pages(arm, compressible)

    async def _expect_pages(self, arm: Arm, socket: Path) -> None:
        if arm.name == "qsd-null":
            return  # it keeps nothing
        bad = await clients.bad_pages(self._tree, socket, self._plan.device_pages, self._pages, _PATIENCE)
        if bad:
            raise BenchError(f"{bad} of {self._plan.device_pages} pages read back differ from what was written")

    async def check(self, arms: list[Arm]) -> None:
        """After the last round: every page must still be what it was. An arm that lost a page has no figures."""
        for arm in arms:
            backend = self._backends[arm.name]
            if backend.socket(COMPRESSIBLE) not in self._filled or _failed(self._ctx, arm):
                continue
            try:
                await self._expect_pages(arm, backend.socket(COMPRESSIBLE))
            except BenchError as error:
                self._ctx.fail(error.message, arm)

    async def _calibrate(self, backend: Backend, point: Point) -> int:
        """Requests that take about the planned time, from a short run that is not recorded."""
        probe = await self._client(backend, point, _PROBE * max(1, point.depth // 2))
        each = max(probe.seconds, 0.001) / probe.requests
        return max(_PROBE, math.ceil(self._plan.seconds / each))

    async def _measure(self, arm: Arm, backend: Backend, point: Point, count: int) -> None:
        before = backend.cpu_ns()
        done = await self._client(backend, point, count)
        cpu = backend.cpu_ns() - before
        labels = {"client": point.client, "op": point.op, "depth": point.depth, "contents": point.contents}
        record = self._ctx.record
        record("latency", "ns", point.depth * done.seconds / done.requests * 1e9, arm=arm, better="lower", **labels)
        record("throughput", "pages/s", done.requests / done.seconds, arm=arm, better="higher", **labels)
        record("server_cpu", "ns", cpu / done.requests, arm=arm, better="lower", **labels)
        # A few hundred of each run are enough for the 99th percentile over the rounds, and keep the results small.
        step = max(1, len(done.latency_ns) // 400)
        record("request_latency", "ns", done.latency_ns[::step], arm=arm, better="lower", **labels)

    async def _client(self, backend: Backend, point: Point, count: int) -> clients.ClientRun:
        socket = backend.socket(point.contents)
        deadline = _PATIENCE + 20 * self._plan.seconds
        if point.client == "qemu-img":
            return await clients.qemu_img_bench(self._tree, socket, point.op, point.depth, count, deadline)
        return await clients.blkio(
            self._tree,
            socket,
            point.op,
            point.depth,
            count,
            deadline,
            pages=self._pages,
            poll=point.client == "libblkio-poll",
        )
