# SPDX-License-Identifier: Apache-2.0
"""What the commands of the benches share: options, how they are run, and the argv that repeats a run."""

from __future__ import annotations

import inspect
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from tmem_host.errors import InvalidInput

Quick = Annotated[bool, typer.Option("--quick", help="Few rounds and small sizes: a first look.")]
Out = Annotated[Path | None, typer.Option("--out", show_default="out/NAME-TIME", help="Folder for the results.")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of a table.")]
Seed = Annotated[int, typer.Option(help="Seed of arm order and synthetic pages.")]


@dataclass(frozen=True)
class Shared:
    """The options that every bench has, as typer declares them."""

    quick: Quick = False
    out: Out = None
    as_json: Json = False
    seed: Seed = 1
    arms: Annotated[str | None, typer.Option("--arms", help="Only these arms, separated by commas.")] = None
    rounds: Annotated[int | None, typer.Option(min=1, help="How often every arm runs.")] = None
    extra: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other option of the bench.")
    ] = None
    progress_fd: Annotated[int | None, typer.Option("--progress-fd", hidden=True)] = None


_OPTIONS = ("arms", "rounds")
"""Fields of `Shared` that are options of the bench itself."""
_flags: dict[str, frozenset[str]] = {}


def bench_command(app: typer.Typer, **more: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a bench's command out of a function that has its name, docstring and own options, and no body.

    Every bench is run alike, and what all have stands in `Shared` once: a command only says what is its own.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.rstrip("_")  # of Python's own names
        shared = list(inspect.signature(Shared, eval_str=True).parameters.values())
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        _flags[name] = frozenset([*_OPTIONS, *(parameter.name for parameter in own)])

        def command(**given: Any) -> None:
            options = {p.name: given.pop(p.name) for p in own}
            run(name, Shared(**given), options)

        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
        app.command(name, **more)(command)
        return function

    return register


def run(name: str, shared: Shared, own: Mapping[str, Any]) -> None:
    """Runs a bench, prints its table (or JSON), writes its report, and exits with its code.

    As a part of `tmem bench all` (progress_fd) it only leaves its results: table and report are made of all together.
    """
    from tmem_host.bench.progress import ProgressView, progress_view
    from tmem_host.bench.progress_pipe import PipedProgress
    from tmem_host.bench.runner import BenchContext, load, run_bench
    from tmem_host.bench.table import print_table
    from tmem_host.report.page import write_report

    named = {"arms": shared.arms, "rounds": shared.rounds, **own}
    options = {key: value for key, value in named.items() if value is not None} | parse_settings(shared.extra or [])
    folder = shared.out or default_folder(name)
    check_writable(folder)
    function = load(name)
    alone = shared.progress_fd is None
    view: ProgressView = (
        progress_view(Console(stderr=True)) if shared.progress_fd is None else PipedProgress(shared.progress_fd)
    )
    ctx = BenchContext(
        name,
        folder,
        quick=shared.quick,
        seed=shared.seed,
        options=options,
        command=reproduce(name, shared.quick, shared.seed, options),
        view=view,
    )
    try:
        code = run_bench(ctx, function)
    finally:
        if alone:
            with _Uninterrupted():
                report = write_report([ctx.results], folder)
    if alone and shared.as_json:
        sys.stdout.write((folder / "results.json").read_text(encoding="utf-8"))
    elif alone:
        print_table(ctx.results)
        Console().print(f"report: {report}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def default_folder(name: str) -> Path:
    """Where the results of a run go when nobody says."""
    return Path("out") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def flags_of(name: str) -> frozenset[str]:
    """Options of a bench that have a flag of their own; all others are given with --set."""
    import tmem_host.bench.cli  # noqa: F401  # declares them

    return _flags.get(name, frozenset())


def reproduce(name: str, quick: bool, seed: int, options: Mapping[str, Any]) -> list[str]:
    """The argv that runs the same bench again, without --out."""
    argv = ["tmem", "bench", name, *(["--quick"] if quick else []), "--seed", str(seed)]
    flags = flags_of(name)
    for key, value in options.items():
        argv += [f"--{key.replace('_', '-')}", str(value)] if key in flags else ["--set", f"{key}={value}"]
    return argv


def parse_settings(settings: list[str]) -> dict[str, str]:
    """`NAME=VALUE` strings as a dict. Raises InvalidInput."""
    found = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise InvalidInput(f"--set {shlex.quote(text)} is not NAME=VALUE", "for example --set rounds=5")
        found[key] = value
    return found


def check_writable(folder: Path) -> None:
    """Makes the folder, so that a run of minutes does not end in a permission error. Raises InvalidInput."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidInput(f"cannot write to {folder}: {error.strerror}", "choose another folder with --out") from error


class _Uninterrupted:
    """A second Ctrl-C does not cut off the report that the first one asked for."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._ignore)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    @staticmethod
    def _ignore(_number: int, _frame: FrameType | None) -> None:
        return None
