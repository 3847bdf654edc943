# SPDX-License-Identifier: Apache-2.0
"""How a bench is written and run.

A bench is an async function registered by name in a module listed in `MODULES`:

    @bench("store")
    async def run(ctx: BenchContext) -> None:
        ctx.configure(rounds=rounds, codec="lz4")
        arms = [Arm("tmem-lz4", {"codec": "lz4"}), Arm("bare-lz4", {"codec": "lz4"})]

        async def one(arm: Arm, index: int) -> None:
            ctx.record("put", "ns", samples, arm=arm, better="lower")

        await ctx.interleave(arms, rounds=5, run=one)

What the runner promises: arms are interleaved in rounds, in an order shuffled by a recorded seed; an arm that raises
has no number at all (what it recorded before is dropped) and its reason is kept; results.json is written atomically
after every round, so Ctrl-C, SIGTERM or a crash leave what was there; the exit code says whether an arm failed.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from tmem_host.bench.progress import NoProgress, ProgressView, TimeLeft
from tmem_host.bench.results import Failure, Property, Record, Results, Scalar
from tmem_host.errors import TmemError

MODULES = {
    "swap": "tmem_host.bench.swap_bench",
    "store": "tmem_host.bench.store_bench",
    "channel": "tmem_host.bench.channel_bench",
    "exit": "tmem_host.bench.exit_bench",
    "density": "tmem_host.bench.density_bench",
    "api": "tmem_host.bench.api_bench",
    "guest": "tmem_host.bench.guest_bench",
}
"""Where each bench lives; imported only when it is run, so that `tmem --help` stays quick."""

EXIT_OK = 0
EXIT_ARM_FAILED = 1
EXIT_INTERRUPTED = 130

T = TypeVar("T")
BenchFunction = Callable[["BenchContext"], Awaitable[None]]
_registry: dict[str, BenchFunction] = {}


class BenchError(TmemError):
    """A bench cannot run, or an arm of it cannot; the message is the reason that the report shows."""


class ArmSkipped(Exception):
    """This machine cannot run the arm; args[0] is the reason. Not an error: the exit code stays 0."""


class BenchAborted(BenchError):
    """Nothing more can be run (the guest is gone, say): the arms that are left fail with this reason."""


def bench(name: str) -> Callable[[BenchFunction], BenchFunction]:
    """Registers a bench under `name`."""

    def register(function: BenchFunction) -> BenchFunction:
        _registry[name] = function
        return function

    return register


def load(name: str) -> BenchFunction:
    """The bench called `name`. Raises BenchError when there is none."""
    if name not in _registry:
        module = MODULES.get(name)
        if module is None:
            raise BenchError(f"no bench called {name!r}", f"choose one of: {', '.join(sorted(MODULES))}")
        importlib.import_module(module)
    if name not in _registry:
        raise BenchError(f"{MODULES[name]} does not register a bench called {name!r}", "decorate it with @bench")
    return _registry[name]


@dataclass(frozen=True)
class Arm:
    """One of the things compared. `dimensions` tell it from the others besides its name."""

    name: str
    dimensions: Mapping[str, Scalar] = field(default_factory=dict)

    def labels(self) -> dict[str, Scalar]:
        """Dimensions with the name as `arm`."""
        return {"arm": self.name, **self.dimensions}


class BenchContext:
    """What a bench gets: its options, and where its figures go."""

    def __init__(
        self,
        name: str,
        out: Path,
        *,
        quick: bool = False,
        seed: int = 1,
        options: Mapping[str, Any] | None = None,
        command: Sequence[str] = (),
        view: ProgressView | None = None,
    ) -> None:
        self.name = name
        self.out = out
        self.quick = quick
        self.seed = seed
        self.options: dict[str, Any] = dict(options or {})
        self.view: ProgressView = view or NoProgress()
        self.results = Results(bench=name, started=datetime.now(UTC), command=list(command), quick=quick, seed=seed)
        self.loads_the_machine = False
        """The bench itself makes more threads runnable than there are CPUs: its load is no neighbour's."""
        self._start = time.monotonic()
        self._by_key: dict[tuple[str, tuple[tuple[str, Scalar], ...]], Record] = {}
        self._now_round: int | None = None
        self._round_of: dict[int, int] = {}
        self._eta = TimeLeft()
        self._arms: dict[str, int] = {}

    # ---- options and properties

    def option(self, name: str, default: T, quick: T | None = None) -> T:
        """Option `name` as the user gave it, as the type of `default`; else `quick` in a quick run; else `default`."""
        value = self.options.get(name)
        if value is None:
            return quick if self.quick and quick is not None else default
        return _as(name, value, default)

    def host(self, **facts: Property) -> None:
        """Adds facts of the host that only this bench knows."""
        self.results.properties.host.update(facts)

    def guest(self, **facts: Property) -> None:
        """Adds facts of the guest."""
        self.results.properties.guest.update(facts)

    def configure(self, **facts: Property) -> None:
        """Adds to the configuration: what was really used, defaults included."""
        self.results.properties.configuration.update(facts)

    def note(self, text: str) -> None:
        """A sentence that must stand beside the figures."""
        if text not in self.results.notes:
            self.results.notes.append(text)

    # ---- figures

    def record(
        self,
        metric: str,
        unit: str,
        samples: Iterable[float] | float,
        *,
        arm: Arm | None = None,
        better: Literal["lower", "higher"] | None = None,
        **dimensions: Scalar,
    ) -> None:
        """Adds samples (in `unit`) to the record of `metric` with these dimensions, in the current round if any.

        A record grows over the rounds: one record per arm and metric. No samples: nothing is recorded.
        """
        values = [float(samples)] if isinstance(samples, (int, float)) else [float(s) for s in samples]
        if not values:
            return
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{metric}: a sample is not a finite number")
        labels = {**(arm.labels() if arm else {}), **dimensions}
        key = (metric, tuple(sorted(labels.items())))
        found = self._by_key.get(key)
        if found is None:
            found = Record(bench=self.name, metric=metric, unit=unit, dimensions=labels, samples=values, better=better)
            self._by_key[key] = found
            self.results.records.append(found)
            if self._now_round is not None:
                found.round_sizes.append(len(values))
        else:
            if found.unit != unit:
                raise ValueError(f"{metric}: recorded in {found.unit} before, now in {unit}")
            found.samples.extend(values)
            if self._now_round is None:
                found.round_sizes.clear()
            elif self._round_of.get(id(found)) == self._now_round:
                found.round_sizes[-1] += len(values)
            else:
                found.round_sizes.append(len(values))
        if self._now_round is not None:
            self._round_of[id(found)] = self._now_round

    def fail(self, reason: str, arm: Arm | None = None, **dimensions: Scalar) -> None:
        """The arm has no number, and this is why. Drops what it recorded before."""
        self._without_number("failed", reason, arm, dimensions)

    def skip(self, reason: str, arm: Arm | None = None, **dimensions: Scalar) -> None:
        """This machine cannot run the arm, and this is why."""
        self._without_number("skipped", reason, arm, dimensions)

    def _without_number(
        self, kind: Literal["failed", "skipped"], reason: str, arm: Arm | None, dimensions: Mapping[str, Scalar]
    ) -> None:
        labels = {**(arm.labels() if arm else {}), **dimensions}
        if arm is not None:
            self.results.records = [r for r in self.results.records if not labels.items() <= r.dimensions.items()]
            kept = {id(r) for r in self.results.records}
            self._by_key = {k: r for k, r in self._by_key.items() if id(r) in kept}
        line = " ".join(reason.split()) or "no reason given"
        self.results.failures.append(Failure(bench=self.name, dimensions=labels, kind=kind, reason=line))
        self.view.note(f"{arm.name if arm else self.name}: {kind}: {line}")

    # ---- progress

    def progress(self, text: str) -> None:
        """A finer position within the current step (phase, pages done): shown, not kept."""
        self.view.detail(text)

    # ---- arms

    async def interleave(
        self,
        arms: Sequence[Arm],
        *,
        rounds: int,
        run: Callable[[Arm, int], Awaitable[None]],
        order: Literal["shuffle", "rotate"] = "shuffle",
        recover: Callable[[Arm, BaseException], Awaitable[None]] | None = None,
        deadline: float | None = None,
        enough: Callable[[int], bool] | None = None,
    ) -> None:
        """Runs `run(arm, round)` for every arm in every round: what drifts (heat, neighbours) hits all arms alike.

        The order within a round is shuffled by the run's seed, or rotated by one each round, and is recorded.
        An arm that raises is failed and left out of later rounds; `recover` may then bring the system back.
        `deadline` (time.monotonic): no new round is started that would not end before it, judged by the longest
        round so far; the first round always runs. `enough(rounds so far)` may end it earlier.
        """
        dice = random.Random(f"{self.seed}/{self.name}")
        alive = list(arms)
        for arm in arms:
            self._arms.setdefault(arm.name, len(self._arms))
        longest = 0.0
        self.view.plan(rounds * len(arms))
        for index in range(rounds):
            start = time.monotonic()
            if deadline is not None and index and start + longest > deadline:
                self.note(f"{index} of {rounds} rounds run: the time limit left no room for another.")
                break
            turn = list(alive)
            if order == "shuffle":
                dice.shuffle(turn)
            elif turn:
                shift = index % len(turn)
                turn = turn[shift:] + turn[:shift]
            self.results.arm_order.append([arm.name for arm in turn])
            for position, arm in enumerate(turn):
                await asyncio.sleep(0)  # where Ctrl-C reaches a bench that never waits for anything
                left = self._time_left(turn[position:], alive * (rounds - index - 1), deadline)
                self.view.step(f"round {index + 1}/{rounds}: {arm.name}", left)
                begin = time.monotonic()
                self._now_round = index
                try:
                    await run(arm, index)
                except ArmSkipped as skipped:
                    alive.remove(arm)
                    self.skip(str(skipped), arm)
                except BenchAborted as aborted:
                    for rest in alive:
                        self.fail(str(aborted), rest)
                    raise
                except Exception as error:  # one arm's fault is not the others'
                    alive.remove(arm)
                    self.fail(reason_of(error), arm)
                    if recover is not None:
                        await recover(arm, error)
                finally:
                    self._now_round = None
                self._eta.done(_kind(arm), time.monotonic() - begin)
                self.view.advance()
            longest = max(longest, time.monotonic() - start)
            self.save()
            if not alive or (enough is not None and enough(index + 1)):
                break

    def _time_left(self, now: Sequence[Arm], later: Sequence[Arm], deadline: float | None) -> float | None:
        """Seconds until the end: this round will be finished, later ones only as far as the deadline allows."""
        this = self._eta.left([_kind(arm) for arm in now])
        rest = self._eta.left([_kind(arm) for arm in later])
        if this is None or rest is None or deadline is None:
            return None if this is None or rest is None else this + rest
        return this + min(rest, max(0.0, deadline - time.monotonic() - this))

    # ---- results

    def save(self, complete: bool = False) -> Path:
        """Writes results.json as it stands. May be called at any time."""
        self.results.seconds = round(time.monotonic() - self._start, 3)
        self.results.complete = complete
        # The order of the bench's own list, not of the shuffled rounds: tables and plots follow it.
        self.results.records.sort(key=lambda r: self._arms.get(r.arm, -1))
        return self.results.write(self.out)

    def has_failed(self, arm: Arm) -> bool:
        """Whether the arm was failed or skipped: it has no number and must not be given one."""
        return any(f.dimensions.get("arm") == arm.name for f in self.results.failures)

    @property
    def failed(self) -> bool:
        """Whether anything that should have worked did not."""
        return any(f.kind == "failed" for f in self.results.failures)


def _kind(arm: Arm) -> str:
    """What takes the same time each round: arms of one name may differ in size."""
    return f"{arm.name} {sorted(arm.dimensions.items())}"


def reason_of(error: BaseException) -> str:
    """One line for the report: the message, with the type when the message alone says little."""
    text = " ".join(str(error).split())
    if isinstance(error, TmemError):
        return text
    if isinstance(error, TimeoutError):
        return f"timed out{': ' + text if text else ''}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _as(name: str, value: Any, like: T) -> T:
    """`value` converted to the type of `like`. Raises BenchError."""
    if like is None or isinstance(value, type(like)):
        return value  # type: ignore[no-any-return]
    try:
        if isinstance(like, bool):
            words = {
                "1": True,
                "true": True,
                "yes": True,
                "on": True,
                "0": False,
                "false": False,
                "no": False,
                "off": False,
            }
            return words[str(value).lower()]  # type: ignore[return-value]
        if isinstance(like, (list, tuple)):
            inner = type(like[0]) if like else str
            return type(like)(inner(part) for part in str(value).split(","))
        return type(like)(value)  # type: ignore[call-arg]
    except (KeyError, ValueError, TypeError):
        raise BenchError(f"option {name} cannot be {value!r}", f"it must be like {like!r}") from None


def run_bench(ctx: BenchContext, function: BenchFunction | None = None) -> int:
    """Runs the bench of `ctx` to its end or to Ctrl-C, writes results.json whatever happens, returns the exit code.

    Raises TmemError when the bench could not run at all; results.json then holds the reason.
    """
    from tmem_host.bench.harness import record_harness
    from tmem_host.bench.properties import host_properties

    function = function or load(ctx.name)
    ctx.out.mkdir(parents=True, exist_ok=True)
    ctx.host(**host_properties())
    record_harness(ctx)
    ctx.save()
    code = EXIT_OK
    try:
        with ctx.view:
            asyncio.run(_with_sigterm(function, ctx))
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = EXIT_INTERRUPTED
        ctx.note("Interrupted: the records hold what was measured until then.")
    except Exception as error:
        if not ctx.failed:
            ctx.fail(reason_of(error))
        ctx.save()
        if isinstance(error, TmemError) and not ctx.results.arms():
            raise
        if not isinstance(error, TmemError):
            raise
        code = EXIT_ARM_FAILED
    _note_load(ctx)
    ctx.save(complete=code == EXIT_OK)
    if code == EXIT_OK and ctx.failed:
        code = EXIT_ARM_FAILED
    return code


def _note_load(ctx: BenchContext) -> None:
    """Says so when others used the machine too: before the run, or more at its end than a bench itself needs."""
    after = [round(x, 2) for x in os.getloadavg()]
    ctx.host(load_at_end=list(after))
    cpus = os.cpu_count() or 1
    before = ctx.results.properties.host.get("load")
    first = before[0] if isinstance(before, list) and before else 0.0
    crowded = after[0] > 2 * cpus and not ctx.loads_the_machine
    if isinstance(first, (int, float)) and (first > 0.5 * cpus or crowded):
        ctx.note(
            f"The machine was busy with other work: load {first:g} when the run began and {after[0]:g} when it ended, "
            f"on {cpus} CPUs. Times are inflated and intervals wide."
        )


async def _with_sigterm(function: BenchFunction, ctx: BenchContext) -> None:
    """Runs the bench so that SIGTERM ends it like Ctrl-C does: by cancellation, with every `finally` run."""
    task = asyncio.current_task()
    assert task is not None  # asyncio.run always runs a task
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    except (NotImplementedError, RuntimeError):  # not the main thread: the caller handles signals
        pass
    else:
        try:
            await function(ctx)
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
        return
    await function(ctx)
