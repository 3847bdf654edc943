# SPDX-License-Identifier: Apache-2.0
"""How a comparison looks in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tmem_host.bench.results import Results
from tmem_host.bench.units import human, number
from tmem_host.report.compare import DIFFERS, Comparison, Pair, ordered
from tmem_host.report.machine import machine_line
from tmem_host.report.unlike import Difference

_STYLE = {"better": "green", "worse": "red", "higher": "cyan", "lower": "cyan"}


def print_comparison(
    a: Results, b: Results, found: Comparison, allowed: Sequence[Difference], *, everything: bool
) -> None:
    """Prints what differs, or everything; wide enough to be read when the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    console.print(_render(a, b, found, allowed, everything), highlight=False)


def _render(
    a: Results, b: Results, found: Comparison, allowed: Sequence[Difference], everything: bool
) -> RenderableType:
    parts: list[RenderableType] = [_side("A", a), _side("B", b), Text(machine_line(b), "dim")]
    if allowed:
        parts.append(Text(f"unlike, and allowed to be: {'; '.join(map(str, allowed))}", "bold red"))
    shown = found.pairs if everything else ordered(found.differing)
    if shown:
        parts.append(_table(shown, found.standing))
    parts.extend(Text(sentence, "yellow") for sentence in found.sentences)
    if not everything and len(shown) < len(found.pairs):
        parts.append(Text(f"{len(found.pairs) - len(shown)} records without a difference shown: see them with --all."))
    return Group(*parts)


def _side(name: str, results: Results) -> Text:
    commit = results.properties.host.get("commit") or "unknown"
    rounds = results.rounds
    quick = (", quick" if results.quick else "") + ("" if results.complete else ", incomplete")
    return Text(
        f"{name}: {results.bench}, {results.started:%Y-%m-%d %H:%M} UTC, tool {commit}, {rounds} rounds{quick}", "bold"
    )


def _table(pairs: Sequence[Pair], standing: Sequence[Pair]) -> Table:
    stands = {id(p) for p in standing}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title, right in (
        ("record", False),
        ("A", True),
        ("B", True),
        ("B / A (95 %)", True),
        ("p", True),
        ("B is", False),
    ):
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "record")
    for p in pairs:
        ratio = "–" if p.ratio is None else f"{number(p.ratio.value)} ({number(p.ratio.low)}–{number(p.ratio.high)})"
        doubt = p.change in DIFFERS and id(p) not in stands
        table.add_row(
            p.label,
            human(p.a, p.unit),
            human(p.b, p.unit),
            ratio,
            number(p.test.p),
            Text(f"{p.change}, or chance" if doubt else p.change, "dim" if doubt else _STYLE.get(p.change, "dim")),
        )
    return table
