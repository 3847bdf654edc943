# SPDX-License-Identifier: Apache-2.0
"""The terminal table: medians with their intervals, and how each arm stands against the baseline."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tmem_host.bench.layout import Cell, Layout, headline, power
from tmem_host.bench.layout_more import tables
from tmem_host.bench.results import Results
from tmem_host.bench.units import human, human_range, number

_STYLE = {"better": "green", "worse": "red", "same": "dim", "": "dim"}


def render(results: Results) -> RenderableType:
    """The headline table and further ones, what has no number and why, and the notes."""
    parts: list[RenderableType] = []
    for layout in tables(results):
        parts += _table(results, layout)
    if weak := power(results):
        parts.append(Text(weak, "yellow"))
    for failure in results.failures:
        who = failure.dimensions.get("arm", failure.bench)
        parts.append(Text(f"{who}: {failure.kind}: {failure.reason}", "red" if failure.kind == "failed" else "yellow"))
    parts.extend(Text(note, "yellow") for note in results.notes)
    return Group(*parts)


def _table(results: Results, layout: Layout) -> list[RenderableType]:
    table = Table(
        title=f"{layout.title}: {layout.question}" if layout.question else layout.title,
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column(layout.row, no_wrap=True)
    for dimension in layout.rows:
        # Words are to be read, numbers to be compared.
        table.add_column(dimension, justify="left" if dimension == "how" else "right", no_wrap=dimension != "how")
    for column in layout.columns:
        table.add_column(column.label, justify="right")
    before = ""
    rows = headline(results, layout)
    for row in rows:
        name = row.arm if row.arm != before else ""
        before = row.arm
        extra = [str(row.dimensions.get(d, "")) for d in layout.rows]
        table.add_row(Text(name, "bold" if row.arm == layout.baseline else ""), *extra, *map(_cell, row.cells))
    parts: list[RenderableType] = [table]
    if any(cell and cell.ratio for row in rows for cell in row.cells):
        parts.append(
            Text(f"second line: 95 % interval; ×: ratio to {layout.baseline}, green = better, red = worse", "dim")
        )
    return parts


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("–", "dim")
    text = Text(human(cell.value.value, cell.unit))
    if cell.ratio is not None:
        text.append(f"  ×{number(cell.ratio.value)}", _STYLE[cell.verdict])
    if cell.value.low != cell.value.high:
        text.append(f"\n{human_range(cell.value.low, cell.value.high, cell.unit, cell.value.value)}", "dim")
    return text


def print_table(results: Results, console: Console | None = None) -> None:
    """Prints the table; wide enough to be read when the output is not a terminal."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=150)
    console.print(render(results))
