# SPDX-License-Identifier: Apache-2.0
"""Tables of the page: the headline table of a bench, and lists of facts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tmem_host.bench.layout import Cell, Layout, headline, power
from tmem_host.bench.results import Results
from tmem_host.bench.units import human, human_range, number
from tmem_host.report.words import row_note


def headline_table(results: Results, layout: Layout) -> str:
    """Medians, intervals and ratios to the baseline."""
    rows = headline(results, layout)
    if not rows:
        return ""
    titles = (layout.row, *layout.rows, *(c.label for c in layout.columns))
    head = "".join(f'<th scope="col">{escape(t)}</th>' for t in titles)
    body = []
    for row in rows:
        kind = ' class="baseline"' if row.arm == layout.baseline else ""
        note = row_note(results.bench, row.arm)
        name = escape(row.arm) + (f'<span class="range">{escape(note)}</span>' if note else "")
        extra = "".join(_label(str(row.dimensions.get(d, ""))) for d in layout.rows)
        cells = "".join(_cell(c) for c in row.cells)
        body.append(f'<tr{kind}><th scope="row">{name}</th>{extra}{cells}</tr>')
    told = "First line: median; second: 95 % interval."
    if any(cell and cell.ratio for row in rows for cell in row.cells):
        told += f" Third: ratio to {layout.baseline}, coloured where its interval excludes 1."
    if weak := power(results):
        told += f" {weak}"
    return (
        f'<p class="small soft">{escape(told)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(layout.title)}: headline table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _label(text: str) -> str:
    """A dimension: a number or a word stays on its line, a sentence is to be read."""
    return f'<td class="words">{escape(text)}</td>' if " " in text else f"<td>{escape(text)}</td>"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return '<td class="soft">–</td>'
    spread = cell.value
    text = escape(human(spread.value, cell.unit))
    if spread.low != spread.high:
        text += f'<span class="range">{escape(human_range(spread.low, spread.high, cell.unit, spread.value))}</span>'
    if cell.ratio is not None:
        r = cell.ratio
        interval = f"95 %: {number(r.low)}–{number(r.high)}"
        text += f'<span class="times {cell.verdict}" title="{interval}">{number(r.value)}×</span>'
    return f"<td>{text}</td>"


def facts_table(title: str, rows: Sequence[tuple[str, str]], opened: bool = False) -> str:
    """Names and values, folded away."""
    body = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in rows)
    return (
        f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>"
        f'<div class="scroll"><table class="facts"><tbody>{body}</tbody></table></div></details>'
    )
