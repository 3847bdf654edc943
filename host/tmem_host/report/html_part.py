# SPDX-License-Identifier: Apache-2.0
"""The part of the page that shows one run of one bench."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape

from tmem_host.bench import stats
from tmem_host.bench.layout import layout_for
from tmem_host.bench.layout_more import tables
from tmem_host.bench.progress import human_seconds
from tmem_host.bench.results import Property, Results
from tmem_host.bench.units import human
from tmem_host.report.draw import Plot
from tmem_host.report.html_table import facts_table, headline_table
from tmem_host.report.machine import command_line, emulated, kvm_flavour, machine_line
from tmem_host.report.plots import plots_for


def bench_part(results: Results, key: str) -> str:
    """The section; `key` is its id, unique on the page."""
    layout = layout_for(results)
    plots = "\n".join(_figure(results, p, key) for p in plots_for(results))
    nothing = "" if results.records else "<p><b>No figure was measured.</b></p>"
    return f"""<section id="{key}">
<h2>{escape(layout.title)}</h2>
<p class="question">{escape(layout.question)}</p>
<p class="machine">{escape(machine_line(results))}</p>
{_badges(results)}
{nothing}{_failures(results)}
{_tables(results)}
{_notes(results)}
{plots}
{_harness(results)}
{_properties(results)}
{_download(results, key)}
<script type="application/json" id="data-{key}">{_embedded(results)}</script>
</section>"""


def _tables(results: Results) -> str:
    """The headline table, under the heading of the part itself; further ones under their own titles."""
    found = []
    for layout in tables(results):
        if layout.title != layout_for(results).title:
            found.append(f'<h3>{escape(layout.title)}</h3><p class="question">{escape(layout.question)}</p>')
        found.append(headline_table(results, layout))
    return "\n".join(found)


def _figure(results: Results, plot: Plot, key: str) -> str:
    name = f"{key}-{escape(plot.key)}"
    items = "".join(
        f'<li><svg width="22" height="12" viewBox="0 0 22 12" aria-hidden="true">{_swatch(colour, look)}</svg>'
        f"{escape(label)}</li>"
        for colour, look, label in plot.legend
    )
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    badge = (
        '<span class="badge warn">TCG: says nothing about exits</span>' if plot.emulated or emulated(results) else ""
    )
    return f"""<figure id="{name}" aria-labelledby="{name}-title">
<div class="head"><h3 id="{name}-title">{escape(plot.title)}</h3>{badge}</div>
<p class="caption">{escape(plot.caption)}</p>
{legend}
<div class="wide">{plot.wide}</div>
<div class="narrow">{plot.narrow}</div>
<figcaption>{escape(machine_line(results))}</figcaption>
<pre aria-label="Command that makes this plot again"><code>{escape(command_line(results))}</code></pre>
</figure>"""


def _swatch(colour: str, look: str) -> str:
    """What a legend shows: a dash pattern, one of the marks of a ladder, or a filled box."""
    match look:
        case "dot":
            return f'<circle cx="11" cy="6" r="5" class="{colour} fill"/>'
        case "thick":
            return f'<g class="{colour}"><path d="M2 6H20" class="spread"/></g>'
        case "tick":
            return f'<g class="{colour}"><path d="M2 6H11" class="reach"/><path d="M11 1V11" class="stroke"/></g>'
        case "goal":
            return '<path d="M11 0V12" class="goal"/>'
        case "":
            return f'<rect x="3" y="1" width="16" height="10" rx="2" class="{colour} fill"/>'
    return f'<path d="M1 6H21" class="{colour} stroke" stroke-dasharray="{look}"/>'


def _badges(results: Results) -> str:
    found: list[tuple[str, str]] = [("", f"KVM: {kvm_flavour(results)}")]
    accelerator = results.properties.guest.get("accelerator")
    if emulated(results):
        found.append(("warn", "TCG (emulated CPU): says nothing about the cost of exits"))
    elif accelerator is not None:
        found.append(("", f"accelerator: {accelerator}"))
    if results.quick:
        found.append(("", "quick setting: few rounds, wide intervals"))
    if not results.complete:
        found.append(("warn", "incomplete: the run did not reach its end"))
    if results.seconds is not None:
        found.append(("", f"took {human_seconds(results.seconds)}"))
    rounds = results.rounds
    if rounds:
        found.append(("", f"{rounds} {'rounds' if rounds > 1 else 'round'}, order shuffled with seed {results.seed}"))
    spans = "".join(f'<span class="badge {kind}">{escape(text)}</span>' for kind, text in found)
    return f'<div class="badges">{spans}</div>'


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


def _harness(results: Results) -> str:
    found = [r for r in results.records if r.arm == "harness"]
    rows = []
    for r in found:
        where = ", ".join(str(v) for k, v in r.dimensions.items() if k != "arm")
        tail = f"p99 {human(stats.p99(r.samples), r.unit)}, " if len(r.samples) >= 100 else ""
        text = f"{human(stats.median(r.samples), r.unit)} ({tail}n = {len(r.samples)})"
        rows.append((f"{r.metric.replace('_', ' ')}{f' ({where})' if where else ''}", text))
    return facts_table("What the harness itself costs", rows, opened=True) if rows else ""


def _properties(results: Results) -> str:
    parts = []
    for title, facts in (
        ("Configuration", results.properties.configuration),
        ("Guest", results.properties.guest),
        ("Host", results.properties.host),
    ):
        if facts:
            parts.append(facts_table(title, [(k.replace("_", " "), _said(k, v)) for k, v in facts.items()]))
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


def _download(results: Results, key: str) -> str:
    count = sum(len(r.samples) for r in results.records)
    return (
        f'<p class="small"><a data-from="data-{key}" download="results-{key}.json" href="#data-{key}">Download the '
        f'raw samples (results.json)</a> <span class="soft">· {count:,} in {len(results.records)} records</span></p>'
    )


def _embedded(results: Results) -> str:
    """The results as JSON that cannot end the script element it stands in; whole numbers without their '.0'."""
    data = results.model_dump(mode="json", by_alias=True)
    for record in data["records"]:
        record["samples"] = [int(s) if s.is_integer() else s for s in record["samples"]]
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
