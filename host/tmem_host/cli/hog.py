# SPDX-License-Identifier: Apache-2.0
"""``tmem hog``: the shortest way to see a stock guest swap to host memory."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from tmem_host.cli.options import CODECS, Json, either
from tmem_host.errors import VmFailed

if TYPE_CHECKING:
    from tmem_host.vm_run import HogPlan, HogReport


def hog(
    kernel: Annotated[str, typer.Option(help="Guest kernel: 5.10, 6.1 or 6.12.")] = "6.1",
    vcpus: Annotated[int, typer.Option(min=1, max=16)] = 1,
    codec: Annotated[str, typer.Option("--codec", parser=either(CODECS), metavar="|".join(CODECS))] = "lz4",
    memory: Annotated[int, typer.Option(min=96, help="Guest memory in MiB.")] = 128,
    factor: Annotated[float, typer.Option(min=0.5, max=50, help="What the hogs fill, in guest memories.")] = 2.5,
    hogs: Annotated[int, typer.Option(min=1, max=16, help="Hogs at the same time.")] = 1,
    kill_agent: Annotated[
        int, typer.Option(min=0, max=1000, help="Kill -9 the agent and start it again N times.", metavar="N")
    ] = 0,
    pattern: Annotated[str, typer.Option(help="Pages: same, zero or synthetic:PERCENT.")] = "synthetic:50",
    poll_us: Annotated[int, typer.Option("--poll-us", min=0, max=10_000, help="µs to spin before sleeping.")] = 0,
    accel: Annotated[str, typer.Option(parser=either(("auto", "kvm", "tcg")), metavar="auto|kvm|tcg")] = "auto",
    libvirt: Annotated[
        str | None,
        typer.Option(metavar="URI", show_default="QEMU as a child", help="Let libvirt start the guest: qemu:///system"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Boot a guest on an agent of its own, fill its memory several times, verify every page.

    Prints bad pages, what the host held, and what it held after swapoff. Nothing is left behind.
    """
    from tmem_host.agent_process import temporary_agent
    from tmem_host.cli.output import print_json
    from tmem_host.cli.progress import progress
    from tmem_host.config import MIB, PAGE_SIZE
    from tmem_host.core import worst_case_bytes
    from tmem_host.vm.images import guest_image
    from tmem_host.vm_run import HogPlan, run_hog

    guest_image(kernel)  # before anything starts
    plan = HogPlan(
        kernel=kernel,
        vcpus=vcpus,
        codec=codec,  # type: ignore[arg-type]  # one of CODECS, by its parser
        memory_mib=memory,
        factor=factor,
        hogs=hogs,
        kills=kill_agent,
        pattern=pattern,
        poll_us=poll_us,
        accel=accel,  # type: ignore[arg-type]  # by its parser
        libvirt=libvirt,
    )
    limit = worst_case_bytes(plan.device_bytes // PAGE_SIZE) + 64 * MIB
    with temporary_agent(limit) as agent, progress() as report:
        found = asyncio.run(run_hog(plan, agent, report=report))
    if as_json:
        plain = dataclasses.asdict(found)
        print_json({**plain, "ratio": found.ratio, "returned": found.returned})
    else:
        _print(found)
    check(plan, found)


def check(plan: HogPlan, found: HogReport) -> None:
    """Raises VmFailed when the run shows something that must not be."""
    if found.bad:
        raise VmFailed(f"{found.bad} of {found.pages} pages came back wrong", "keep the guest's console and report it")
    if found.kills < plan.kills:
        raise VmFailed(
            f"the hogs ended after {found.kills} of {plan.kills} kills", "give them more to do: --factor or --memory"
        )
    if not found.returned:
        raise VmFailed(f"{found.held_end} bytes are held after swapoff, {found.held_start} were at the start")


def _print(found: HogReport) -> None:
    from tmem_host.cli.output import print_fields
    from tmem_host.config import PAGE_SIZE, format_size

    plan = found.plan
    most = f"{format_size(found.vm_held_peak)} for {found.pages_peak} swapped pages at the most"
    bytes_held = f"{found.held_end} bytes held, {found.held_start} at the start, {found.held_peak} at the most"
    print_fields(
        [
            ("guest", f"Linux {found.kernel}, {plan.vcpus} vCPU, {plan.memory_mib} MiB, {found.accelerator}"),
            ("pages", f"{found.pages} written and verified ({format_size(found.pages * PAGE_SIZE)})"),
            ("bad pages", f"{found.bad}"),
            ("time", f"{found.seconds:.1f} s, agent killed {found.kills} times"),
            ("host holds", f"{most}, ratio {found.ratio:.2f} ({plan.codec})"),
            ("after swapoff", f"{bytes_held} (swapoff took {found.swapoff_seconds:.1f} s)"),
        ]
    )
