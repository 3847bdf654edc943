# SPDX-License-Identifier: Apache-2.0
"""`tmem report DIR...`: makes report.html again from results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders with a results.json, or such files.", metavar="DIR...")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for report.html [default: the first DIR].")] = None,
    table: Annotated[bool, typer.Option("--table/--no-table", help="Print the tables too.")] = True,
) -> None:
    """Make the HTML report again from results; several folders become one page."""
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
