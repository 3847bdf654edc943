# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML page that needs nothing else, made from results alone.

Nothing is fetched: style, drawings and raw data are inside. Every part names the machine and the accelerator it was
measured with, and every plot the command that makes it again.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from tmem_host.bench import stats
from tmem_host.bench.layout import Cell, Layout, headline, layout_for, power
from tmem_host.bench.progress import human_seconds
from tmem_host.bench.results import Property, Results, write_atomic
from tmem_host.bench.units import human, human_range, number
from tmem_host.report.draw import Plot
from tmem_host.report.plots import plots_for

REPORT_FILE = "report.html"

_DOWNLOAD = """
for (const link of document.querySelectorAll("a[data-from]")) {
  const text = document.getElementById(link.dataset.from).textContent;
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
}
document.documentElement.dataset.ready = "yes";
"""


def write_report(all_results: Sequence[Results], folder: Path) -> Path:
    """Writes `folder/report.html` for the given runs, one part each, and returns its path."""
    return write_atomic(folder / REPORT_FILE, render(all_results))


def render(all_results: Sequence[Results]) -> str:
    """The page as text."""
    style = resources.files("tmem_host.report").joinpath("style.css").read_text(encoding="utf-8")
    first = all_results[0]
    titles = ", ".join(layout_for(r).title for r in all_results)
    commit = first.properties.host.get("commit") or "unknown"
    when = f"{first.started:%Y-%m-%d %H:%M} UTC"
    nav = "".join(f'<a href="#{escape(r.bench)}">{escape(layout_for(r).title)}</a>' for r in all_results)
    parts = "\n".join(_part(r) for r in all_results)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kvm-tmem: {escape(titles)}, {first.started:%Y-%m-%d}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>Transcendent memory for KVM, measured</h1>
<p class="soft">{escape(titles)} · {when} · tool {escape(str(commit))}</p>
{f'<nav aria-label="Benches">{nav}</nav>' if len(all_results) > 1 else ""}
</header>
<main>
{parts}
</main>
<footer>Medians with 95 % bootstrap intervals over whole rounds; arms were interleaved in one run.
An arm that failed has no number.</footer>
<script>{_DOWNLOAD}</script>
</body>
</html>
"""


def _part(results: Results) -> str:
    layout = layout_for(results)
    key = escape(results.bench)
    command = shlex.join(results.command) if results.command else f"tmem bench {results.bench}"
    machine = _machine(results)
    plots = "\n".join(_figure(results, p, command, machine) for p in plots_for(results))
    nothing = "" if results.records else "<p><b>No figure was measured.</b></p>"
    return f"""<section id="{key}">
<h2>{escape(layout.title)}</h2>
<p>{escape(layout.question)}</p>
<p class="machine">{escape(machine)}</p>
{_badges(results)}
{nothing}{_failures(results)}
{_table(results, layout)}
{_notes(results)}
{plots}
{_harness(results)}
{_properties(results)}
{_download(results)}
<script type="application/json" id="data-{key}">{_embedded(results)}</script>
</section>"""


def _download(results: Results) -> str:
    key = escape(results.bench)
    count = sum(len(r.samples) for r in results.records)
    return (
        f'<p class="small"><a data-from="data-{key}" download="results-{key}.json" href="#data-{key}">Download the '
        f'raw samples (results.json)</a> <span class="soft">· {count:,} in {len(results.records)} records</span></p>'
    )


def _embedded(results: Results) -> str:
    """The results as JSON that cannot end the script element it stands in."""
    text = json.dumps(results.model_dump(mode="json", by_alias=True), separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _machine(results: Results) -> str:
    host, guest = results.properties.host, results.properties.guest
    parts = [
        f"{host.get('cpu') or 'unknown CPU'}, {host.get('cpus', '?')} CPUs"
        + (" (itself a virtual machine)" if host.get("virtualised") else ""),
        f"Linux {host.get('kernel', '?')}",
    ]
    if guest:
        kernel = guest.get("kernel_release") or guest.get("kernel")
        parts.append(f"guest: Linux {kernel}, {guest.get('memory_mib', '?')} MiB, {guest.get('vcpus', '?')} vCPU")
        parts.append(f"accelerator: {guest.get('accelerator', 'unknown')}")
    return " · ".join(parts)


def _badges(results: Results) -> str:
    found: list[tuple[str, str]] = []
    accelerator = results.properties.guest.get("accelerator")
    if accelerator == "tcg":
        found.append(("warn", "TCG (emulated CPU): says nothing about the cost of exits"))
    elif accelerator is not None:
        found.append(("", f"accelerator: {accelerator}"))
    if results.quick:
        found.append(("", "quick setting: few rounds, wide intervals"))
    if not results.complete:
        found.append(("warn", "incomplete: the run did not reach its end"))
    if results.seconds is not None:
        found.append(("", f"took {human_seconds(results.seconds)}"))
    rounds = len(results.arm_order)
    if rounds:
        found.append(("", f"{rounds} {'rounds' if rounds > 1 else 'round'}, order shuffled with seed {results.seed}"))
    spans = "".join(f'<span class="badge {kind}">{escape(text)}</span>' for kind, text in found)
    return f'<div class="badges">{spans}</div>' if spans else ""


def _failures(results: Results) -> str:
    if not results.failures:
        return ""
    items = "".join(
        f'<li class="{f.kind}"><b>{escape(str(f.dimensions.get("arm", f.bench)))}</b> {f.kind}: {escape(f.reason)}</li>'
        for f in results.failures
    )
    return f'<h3>Without a number</h3><ul class="failures">{items}</ul>'


def _notes(results: Results) -> str:
    items = "".join(f"<li>{escape(n)}</li>" for n in results.notes)
    return f'<ul class="notes small soft">{items}</ul>' if items else ""


def _table(results: Results, layout: Layout) -> str:
    rows = headline(results, layout)
    if not rows:
        return ""
    head = "".join(
        f'<th scope="col">{escape(t)}</th>' for t in ("arm", *layout.rows, *(c.label for c in layout.columns))
    )
    body = []
    for row in rows:
        kind = ' class="baseline"' if row.arm == layout.baseline else ""
        extra = "".join(f"<td>{escape(str(row.dimensions.get(d, '')))}</td>" for d in layout.rows)
        cells = "".join(_cell(c) for c in row.cells)
        body.append(f'<tr{kind}><th scope="row">{escape(row.arm)}</th>{extra}{cells}</tr>')
    told = "First line: median; second: 95 % interval."
    if layout.baseline in results.arms():
        told += f" Third: ratio to {layout.baseline}, coloured where its interval excludes 1."
    if weak := power(results):
        told += f" {weak}"
    return (
        f'<p class="small soft">{escape(told)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(layout.title)}: headline table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


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


def _figure(results: Results, plot: Plot, command: str, machine: str) -> str:
    name = f"{escape(results.bench)}-{escape(plot.key)}"
    items = "".join(
        '<li><svg width="22" height="10" viewBox="0 0 22 10" aria-hidden="true">'
        f"{_swatch(colour, dash)}</svg>{escape(label)}</li>"
        for colour, dash, label in plot.legend
    )
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    badge = (
        '<span class="badge warn">TCG: says nothing about exits</span>'
        if results.properties.guest.get("accelerator") == "tcg"
        else ""
    )
    return f"""<figure id="{name}" aria-labelledby="{name}-title">
<div class="head"><h3 id="{name}-title">{escape(plot.title)}</h3>{badge}</div>
{legend}
<div class="wide">{plot.wide}</div>
<div class="narrow">{plot.narrow}</div>
<figcaption>{escape(plot.caption)}<br>{escape(machine)}</figcaption>
<pre aria-label="Command that makes this plot again"><code>{escape(command)}</code></pre>
</figure>"""


def _swatch(colour: str, dash: str) -> str:
    if dash:
        return f'<path d="M1 5H21" class="{colour} stroke" stroke-dasharray="{dash}"/>'
    return f'<rect x="3" y="0" width="16" height="10" rx="2" class="{colour} fill"/>'


def _harness(results: Results) -> str:
    found = [r for r in results.records if r.arm == "harness"]
    if not found:
        return ""
    rows = []
    for r in found:
        where = ", ".join(str(v) for k, v in r.dimensions.items() if k != "arm")
        tail = f"p99 {human(stats.p99(r.samples), r.unit)}, " if len(r.samples) >= 100 else ""
        text = f"{human(stats.median(r.samples), r.unit)} ({tail}n = {len(r.samples)})"
        rows.append((f"{r.metric.replace('_', ' ')}{f' ({where})' if where else ''}", text))
    return _facts("What the harness itself costs", rows, opened=True)


def _properties(results: Results) -> str:
    parts = []
    for title, facts in (
        ("Configuration", results.properties.configuration),
        ("Guest", results.properties.guest),
        ("Host", results.properties.host),
    ):
        if facts:
            parts.append(_facts(title, [(k.replace("_", " "), _said(k, v)) for k, v in facts.items()]))
    return "".join(parts)


def _said(name: str, value: Property) -> str:
    if value is None:
        return "not available"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return human(float(value), "bytes")
    return str(value)


def _facts(title: str, rows: Sequence[tuple[str, str]], opened: bool = False) -> str:
    body = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in rows)
    return (
        f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>"
        f'<div class="scroll"><table class="facts"><tbody>{body}</tbody></table></div></details>'
    )
