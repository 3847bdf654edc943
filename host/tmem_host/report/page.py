# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML page that needs nothing else, made from results alone.

Nothing is fetched: style, drawings and raw data are inside. Every part names the machine, what KVM is on it and the
accelerator it was measured with, and every plot the command that makes it again. The verdict comes first, then the
benches from the bare exit to the whole guest.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from tmem_host.bench.layout import layout_for
from tmem_host.bench.results import Results, write_atomic
from tmem_host.report.html_part import bench_part
from tmem_host.report.verdict import evaluate
from tmem_host.report.verdict_html import verdict_part

REPORT_FILE = "report.html"
ORDER = ("exit", "density", "channel", "store", "swap")
"""Benches in the order of the page; others come after these."""

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
    ordered = sorted(all_results, key=lambda r: ORDER.index(r.bench) if r.bench in ORDER else len(ORDER))
    titles = ", ".join(dict.fromkeys(layout_for(r).title for r in ordered))
    first = min(ordered, key=lambda r: r.started)
    when = f"{first.started:%Y-%m-%d %H:%M} UTC"
    commits = ", ".join(dict.fromkeys(str(r.properties.host.get("commit") or "unknown") for r in ordered))
    keyed = list(zip(_keys(ordered), ordered, strict=True))
    links = [("verdict", "Verdict"), *((key, layout_for(r).title) for key, r in keyed)]
    nav = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title in links)
    parts = "\n".join(bench_part(r, key) for key, r in keyed)
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
<p class="soft">{escape(titles)} · <span class="whole">{when}</span> · tool {escape(commits)}</p>
<nav aria-label="Parts">{nav}</nav>
</header>
<main>
{verdict_part(evaluate(ordered), ordered)}
{parts}
</main>
<footer>Medians with 95 % bootstrap intervals over whole rounds; arms were interleaved in one run.
An arm that failed has no number.</footer>
<script>{_DOWNLOAD}</script>
</body>
</html>
"""


def _keys(ordered: Sequence[Results]) -> list[str]:
    """An id for each run: the bench's name, with a number when it is there more than once."""
    seen: dict[str, int] = {}
    keys = []
    for results in ordered:
        seen[results.bench] = count = seen.get(results.bench, 0) + 1
        keys.append(escape(results.bench) if count == 1 else f"{escape(results.bench)}-{count}")
    return keys
