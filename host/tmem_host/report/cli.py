# SPDX-License-Identifier: Apache-2.0
"""`tmem report`: the page, the verdict, and two runs compared, all from results.json files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="What results say: the page, the verdict, two runs compared.")

Folders = Annotated[
    list[Path], typer.Argument(help="Folders with a results.json, or such files.", metavar="DIR...", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: tmem report page out/exit out/density --out out/all")
def page(
    folders: Folders,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for report.html [default: the first DIR].")] = None,
    table: Annotated[bool, typer.Option("--table/--no-table", help="Print the tables too.")] = True,
) -> None:
    """Make the HTML report again from results; several folders become one page, the verdict first."""
    from rich.console import Console

    from tmem_host.bench.results import Results
    from tmem_host.bench.table import print_table
    from tmem_host.report.page import write_report

    found = [Results.read(folder) for folder in folders]
    first = folders[0] if folders[0].is_dir() else folders[0].parent
    written = write_report(found, out or first)
    if table:
        for results in found:
            print_table(results)
    Console().print(f"report: {written}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: tmem report verdict out/exit out/density out/swap")
def verdict(folders: Folders, as_json: Json = False) -> None:
    """Say which of the claims H1 to H20 these results support, refute or leave open, and why."""
    from tmem_host.bench.results import Results
    from tmem_host.report import verdict as rules

    judged = rules.evaluate([Results.read(folder) for folder in folders])
    if as_json:
        sys.stdout.write(json.dumps({"verdict": rules.as_json(judged)}, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in rules.lines(judged)))


@app.command(
    epilog="Example: tmem report compare out/before out/after --all     "
    "Exit code 0: compared; 2: refused, since the runs are unlike; 1: results that cannot be read."
)
def compare(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="Folder or results.json of the run before.", show_default=False)
    ],
    b: Annotated[
        Path, typer.Argument(metavar="B", help="Folder or results.json of the run after.", show_default=False)
    ],
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="NAME",
            help="Compare although this differs, and say so: quick, complete, host, kvm, accelerator, guest, "
            "configuration, or one of their parts as in host.kernel. Repeatable.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show records without a difference, too.")] = False,
    as_json: Json = False,
) -> None:
    """Compare two runs of one bench record by record: ratio with interval, permutation test over rounds.

    Runs that are unlike (bench, units, dimensions, settings, machine, KVM, accelerator) are refused.
    """
    from tmem_host.bench.results import Results
    from tmem_host.report import compare as comparing
    from tmem_host.report.compare_text import print_comparison
    from tmem_host.report.unlike import differences, refuse

    before, after = Results.read(a), Results.read(b)
    allowed = refuse(differences(before, after), allow or [])
    found = comparing.compare(before, after)
    if as_json:
        told = [{"name": d.name, "a": d.a, "b": d.b} for d in allowed]
        head = {"bench": before.bench, "a": str(a), "b": str(b), "allowed": told}
        sys.stdout.write(json.dumps(head | comparing.as_json(found), indent=2) + "\n")
    else:
        print_comparison(before, after, found, allowed, everything=everything)
