# SPDX-License-Identifier: Apache-2.0
"""`tmem bench NAME`: the commands. What is imported when one runs stands in it: `tmem --help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tmem_host.bench.command import Json, Quick, Seed, bench_command

app = typer.Typer(
    no_args_is_help=True,
    help="Measure. Each bench leaves results.json and report.html in the folder given with --out.",
    epilog="""Everything, a first look, with the verdict: tmem bench all --quick --out out/all

Interrupted or failed, go on: tmem bench all --quick --out out/all --resume

What an exit costs, in 3 minutes: tmem bench exit --quick

One arm, once: tmem bench store --arms tmem-lz4 --rounds 1

Options that have no flag: tmem bench channel --set depths=1,32 --set contents=synthetic

The page again, of several runs: tmem report page out/a out/b""",
)

DiskDir = Annotated[Path | None, typer.Option(help="Folder on a real disk for the disk arms.")]


@bench_command(app, epilog="Example: tmem bench exit --quick --arms pio,pio+put,pio+disk-write")
def exit_(
    vmexit: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="vmexit.flat of kvm-unit-tests, to run side by side in this host's QEMU."),
    ] = None,
    disk_dir: DiskDir = None,
) -> None:
    """What one exit costs, by kind and by what is done in it."""


@bench_command(app, epilog="Example: tmem bench store --quick --set parts=cost,memory")
def store() -> None:
    """The store against bare compression and against the kernel's zram."""


@bench_command(app, epilog="Example: tmem bench channel --quick --set depths=1,32")
def channel() -> None:
    """vhost-user-blk by depth against qemu-storage-daemon; operations by channel, inside a guest and without."""


@bench_command(app, epilog="Example: tmem bench swap --quick --kernel 6.12 --factor 2")
def swap(
    kernel: Annotated[str | None, typer.Option(help="Guest kernel: 6.1 or 6.12.")] = None,
    memory: Annotated[int | None, typer.Option(min=64, help="Guest memory in MiB.")] = None,
    vcpus: Annotated[int | None, typer.Option(min=1, help="vCPUs of the guest.")] = None,
    factor: Annotated[float | None, typer.Option(help="The hog's memory over what the guest has to give.")] = None,
    contents: Annotated[
        str | None, typer.Option(help="Pages: corpus, text, random, zero, same or synthetic:PERCENT.")
    ] = None,
    disk_dir: DiskDir = None,
    accel: Annotated[str | None, typer.Option(help="auto, kvm or tcg.")] = None,
) -> None:
    """A guest under memory pressure: tmem against disk, a null device and zram."""


@bench_command(app, epilog="Example: tmem bench density --quick --vms 1,1000 --seconds 5")
def density(
    vms: Annotated[str | None, typer.Option(metavar="N,N...", help="How many VMs at once, for each run.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of each run.")] = None,
    disk_dir: DiskDir = None,
) -> None:
    """1 to 1000 micro-VMs at once: through the store and to a disk file, cost and fairness by their number."""


@bench_command(app, epilog="Example: tmem bench api --quick --vms 200 --clients 50")
def api(
    vms: Annotated[int | None, typer.Option(min=1, max=500, help="VMs of the agent.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, max=500, help="Clients that look once a second.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of each turn.")] = None,
) -> None:
    """The agent's API under many VMs and many who look: the list of VMs, and a scrape of its metrics."""


@bench_command(app, epilog="Example: tmem bench guest --quick --vm web --arms zipf,redis --seconds 10")
def guest(
    vm: Annotated[str | None, typer.Option(help="VM of the agent whose guest works; its own agent has to run.")] = None,
    mib: Annotated[
        int | None, typer.Option(min=1, show_default="1.5 times the free memory", help="Data of each workload.")
    ] = None,
    seconds: Annotated[int | None, typer.Option(min=1, help="Of the part that a workload is about, at most.")] = None,
    state: Annotated[Path | None, typer.Option(help="State folder of the agent.")] = None,
) -> None:
    """Workloads in a guest that runs already: hog, zipf cache, redis-like, build-like; arms are their names."""


@app.command("all", epilog="Example: tmem bench all --quick --skip swap --set store.rounds=3 --out out/all")
def everything(
    quick: Quick = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", show_default="out/all-TIME", help="Folder: results in OUT/NAME, the report beside them."),
    ] = None,
    as_json: Json = False,
    seed: Seed = 1,
    only: Annotated[str | None, typer.Option("--only", help="Only these benches, separated by commas.")] = None,
    skip: Annotated[str | None, typer.Option("--skip", help="All but these.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what is complete in --out, run what is not. Same setting only.")
    ] = False,
    disk_dir: DiskDir = None,
    limit: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            show_default="10 times what is expected, at least 15 minutes",
            help="How long one bench may take before it is ended as failed.",
        ),
    ] = None,
    extra: Annotated[
        list[str] | None, typer.Option("--set", metavar="BENCH.NAME=VALUE", help="An option of one bench.")
    ] = None,
    progress_fd: Annotated[int | None, typer.Option("--progress-fd", hidden=True)] = None,
) -> None:
    """All benches one after the other, each in a process of its own; then the verdict and one report."""
    from tmem_host.bench import all_bench, all_plan

    names = all_plan.choose(only, skip)
    options = all_plan.options_of(extra or [], disk_dir, names)
    settings = {name: all_plan.Setting(quick, seed, options[name]) for name in names}
    raise typer.Exit(
        all_bench.command(settings, out, resume=resume, as_json=as_json, limit=limit, progress_fd=progress_fd)
    )
