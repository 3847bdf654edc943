# SPDX-License-Identifier: Apache-2.0
"""`tmem bench NAME`: every bench has the same shape, so every command here is the same three lines."""

from __future__ import annotations

import shlex
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from tmem_host.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Measure: swap, store, channel. Each leaves results.json and report.html.")

FLAGS = frozenset({"arms", "rounds", "kernel", "memory", "vcpus", "factor", "contents", "disk_dir", "accel"})
"""Options that have a flag of their own in some command; all others are given with --set."""

Quick = Annotated[bool, typer.Option("--quick", help="Few rounds and small sizes: a first look.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results [default: out/NAME-TIME].")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of a table.")]
Seed = Annotated[int, typer.Option(help="Seed of arm order and synthetic pages.")]
Arms = Annotated[str | None, typer.Option("--arms", help="Only these arms, separated by commas.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="How often every arm runs.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other option of the bench.")]


@app.command()
def swap(
    quick: Quick = False,
    out: Out = None,
    as_json: Json = False,
    seed: Seed = 1,
    arms: Arms = None,
    rounds: Rounds = None,
    kernel: Annotated[str | None, typer.Option(help="Guest kernel: 6.1 or 6.12.")] = None,
    memory: Annotated[int | None, typer.Option(min=64, help="Guest memory in MiB.")] = None,
    vcpus: Annotated[int | None, typer.Option(min=1, help="vCPUs of the guest.")] = None,
    factor: Annotated[float | None, typer.Option(help="The hog's memory over what the guest has to give.")] = None,
    contents: Annotated[
        str | None, typer.Option(help="Pages: corpus, text, random, zero, same or synthetic:PERCENT.")
    ] = None,
    disk_dir: Annotated[Path | None, typer.Option(help="Folder on a real disk for the disk arms.")] = None,
    accel: Annotated[str | None, typer.Option(help="auto, kvm or tcg.")] = None,
    extra: Set = None,
) -> None:
    """A guest under memory pressure: tmem against disk, a null device and zram."""
    named = {
        "arms": arms,
        "rounds": rounds,
        "kernel": kernel,
        "memory": memory,
        "vcpus": vcpus,
        "factor": factor,
        "contents": contents,
        "disk_dir": disk_dir,
        "accel": accel,
    }
    run("swap", quick, out, as_json, seed, named, extra)


@app.command()
def store(
    quick: Quick = False,
    out: Out = None,
    as_json: Json = False,
    seed: Seed = 1,
    arms: Arms = None,
    rounds: Rounds = None,
    extra: Set = None,
) -> None:
    """The store against bare compression and against the kernel's zram."""
    run("store", quick, out, as_json, seed, {"arms": arms, "rounds": rounds}, extra)


@app.command()
def channel(
    quick: Quick = False,
    out: Out = None,
    as_json: Json = False,
    seed: Seed = 1,
    arms: Arms = None,
    rounds: Rounds = None,
    extra: Set = None,
) -> None:
    """vhost-user-blk by queue depth, against qemu-storage-daemon, with a client that is not ours."""
    run("channel", quick, out, as_json, seed, {"arms": arms, "rounds": rounds}, extra)


def run(
    name: str,
    quick: bool,
    out: Path | None,
    as_json: bool,
    seed: int,
    named: dict[str, Any],
    extra: list[str] | None,
) -> None:
    """Runs a bench, prints its table (or JSON), writes its report, and exits with its code."""
    from tmem_host.bench.runner import BenchContext, load, run_bench

    options = {key: value for key, value in named.items() if value is not None} | parse_settings(extra or [])
    folder = out or Path("out") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    check_writable(folder)
    function = load(name)
    from tmem_host.bench.progress import progress_view
    from tmem_host.bench.table import print_table
    from tmem_host.report.page import write_report

    errors = Console(stderr=True)
    ctx = BenchContext(
        name,
        folder,
        quick=quick,
        seed=seed,
        options=options,
        command=reproduce(name, quick, seed, options),
        view=progress_view(errors),
    )
    try:
        code = run_bench(ctx, function)
    finally:
        with _Uninterrupted():
            report = write_report([ctx.results], folder)
    if as_json:
        sys.stdout.write((folder / "results.json").read_text(encoding="utf-8"))
    else:
        print_table(ctx.results)
        Console().print(f"report: {report}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def reproduce(name: str, quick: bool, seed: int, options: dict[str, Any]) -> list[str]:
    """The argv that runs the same bench again, without --out."""
    argv = ["tmem", "bench", name, *(["--quick"] if quick else []), "--seed", str(seed)]
    for key, value in options.items():
        argv += [f"--{key.replace('_', '-')}", str(value)] if key in FLAGS else ["--set", f"{key}={value}"]
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
