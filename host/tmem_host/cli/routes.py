# SPDX-License-Identifier: Apache-2.0
"""``tmem routes``: the hog through every source and channel that a guest kernel has, and a table of it."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmem_host.cli.options import Json, either
from tmem_host.errors import InvalidInput, VmFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tmem_host.route_plan import Cannot, Cell, Outcome, RoutePlan


def _counts(text: str, option: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise InvalidInput(f"{option} {text!r} is no list of numbers", "as in 1,2") from None
    if not all(1 <= count <= 8 for count in found):
        raise InvalidInput(f"{option} {text} has a number that is not from 1 to 8", "as in 1,2")
    return found


def routes(
    route: Annotated[
        list[str] | None,
        typer.Option(help="SOURCE:CHANNEL, as in swap-disk:virtio-tmem; again for more.", show_default="all"),
    ] = None,
    kernel: Annotated[list[str] | None, typer.Option(help="Guest kernel; again for more.", show_default="all")] = None,
    vcpus: Annotated[str, typer.Option(metavar="N,...")] = "1,2",
    hogs: Annotated[str, typer.Option(metavar="N,...", help="Hogs at once.")] = "1,2",
    memory: Annotated[int, typer.Option(min=96, help="Guest memory in MiB.")] = 96,
    factor: Annotated[float, typer.Option(min=1.2, max=16, help="What the hogs fill, in guest memories.")] = 2.5,
    accel: Annotated[str, typer.Option(parser=either(("auto", "kvm", "tcg")), metavar="auto|kvm|tcg")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--list", help="Say what would be run, and what cannot be, and stop.")
    ] = False,
    logs: Annotated[
        Path | None, typer.Option(file_okay=False, help="Keep console and logs of guests in which a run failed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the memory hog through every source, channel and guest kernel; verify every page; print what ran.

    A run has failed when a page came back wrong, or when counters do not show that pages went that way. What a kernel
    cannot do is in the table with its reason.
    """
    from tmem_host.route_plan import RoutePlan, cells, parse_route

    several = _counts(hogs, "--hogs")
    for count in several:
        if memory * factor / count < 16:
            raise InvalidInput(f"{count} hogs have nothing to do", "give them more: --memory or --factor")
    runs, cannot = cells(kernel or (), [parse_route(text) for text in route or ()], _counts(vcpus, "--vcpus"), several)
    plan = RoutePlan(memory, factor, accel=accel)  # type: ignore[arg-type]  # by its parser
    outcomes = [] if dry_run else _run(plan, runs, logs)
    if as_json:
        _print_json(plan, runs if dry_run else [], outcomes, cannot)
    else:
        _print(runs if dry_run else [], outcomes, cannot)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        raise VmFailed(f"{len(failed)} of {len(outcomes)} runs failed", "run them with --logs DIR and see the console")


def _run(plan: RoutePlan, runs: list[Cell], logs: Path | None) -> list[Outcome]:
    from tmem_host.agent_process import temporary_agent
    from tmem_host.cli.progress import progress
    from tmem_host.vm.routes import image_of

    for series in dict.fromkeys(run.kernel for run in runs):
        image_of(series)  # before anything starts
    with temporary_agent(2 * plan.options(1).limit) as agent, progress() as report:

        async def collect(report: Callable[[str, float], None]) -> list[Outcome]:
            from tmem_host.route_run import run_cells

            # Told as they end: what is interrupted has shown something, too.
            found = []
            async for outcome in run_cells(plan, runs, agent, report=report, evidence=logs):
                found.append(outcome)
                told = f"{outcome.pages} pages, {outcome.bad} bad, {outcome.out} out, {outcome.back} back"
                print(f"{outcome.cell}: {outcome.state}, {outcome.reason or told}", file=sys.stderr, flush=True)
            return found

        return asyncio.run(collect(report))


def _print(planned: list[Cell], outcomes: list[Outcome], cannot: list[Cannot]) -> None:
    from tmem_host.cli.output import print_table

    head = ("KERNEL", "SOURCE", "CHANNEL", "vCPU", "HOGS")

    def name(cell: Cell) -> tuple[str, ...]:
        return (cell.kernel, cell.route.source, cell.route.channel, f"{cell.vcpus}", f"{cell.hogs}")

    if planned:
        print_table(head, [name(cell) for cell in planned], numbers=(3, 4))
    if outcomes:
        print_table(
            (*head, "PAGES", "BAD", "OUT", "BACK", "TIME", "PAGES/s", "RESULT"),
            [
                (
                    *name(found.cell),
                    *(f"{number}" for number in (found.pages, found.bad, found.out, found.back)),
                    f"{found.seconds:.1f} s",
                    f"{found.rate:.0f}",
                    found.state if found.state == "ran" else f"{found.state}: {found.reason}",
                )
                for found in outcomes
            ],
            numbers=range(3, 11),
        )
        _print_evidence(outcomes)
    if cannot:
        print()
        print_table(("SOURCE", "CHANNEL", "KERNEL", "CANNOT, BECAUSE"), _together(cannot))


def _together(cannot: list[Cannot]) -> list[tuple[str, str, str, str]]:
    """One line for each source and reason: the channels and kernels that it holds for."""
    found: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for one in cannot:
        channels, kernels = found.setdefault((one.route.source, one.reason), ({}, {}))
        channels[one.route.channel] = None
        kernels[one.kernel] = None
    return [
        (source, ", ".join(channels), ", ".join(kernels), reason)
        for (source, reason), (channels, kernels) in sorted(found.items())
    ]


def _print_evidence(outcomes: list[Outcome]) -> None:
    """What the counters of the sources say that say more than pages moved."""
    front = [found for found in outcomes if found.cell.route.source == "frontswap" and found.evidence]
    clean = [found for found in outcomes if found.cell.route.source == "cleancache" and found.evidence]
    if front:
        stores = sum(found.evidence["frontswap_succ_stores"] for found in front)
        past = sum(found.evidence["pswpout"] for found in front)
        print(f"\nfrontswap: {stores} pages stored by its hooks, {past} pages swapped to a device (pswpout).")
    if clean:
        pages, host, disk = (
            sum(found.evidence.get(name, 0) for found in clean)
            for name in ("files_pages", "files_from_host", "files_from_disk")
        )
        print(
            f"\ncleancache: of {pages} pages of files read again after the kernel had dropped them, "
            f"{host} came from the host and {disk} from the disk."
        )
    under = {found.accelerator for found in outcomes if found.accelerator}
    if "tcg" in under:
        print("\nGuests were emulated (TCG): what ran is shown, times compare runs with each other and no more.")


def _print_json(plan: RoutePlan, planned: list[Cell], outcomes: list[Outcome], cannot: list[Cannot]) -> None:
    from tmem_host.cli.output import print_json

    def plain(value: Any) -> dict[str, Any]:
        return dataclasses.asdict(value)

    print_json(
        {
            "plan": plain(plan),
            "planned": [plain(cell) for cell in planned],
            "runs": [plain(found) for found in outcomes],
            "cannot": [plain(one) for one in cannot],
        }
    )
