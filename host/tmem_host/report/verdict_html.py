# SPDX-License-Identifier: Apache-2.0
"""The verdict as the page shows it: what was decided as cards with figures, what could not be as a list of reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html import escape

from tmem_host.bench.results import Results
from tmem_host.report.machine import distinct_machines
from tmem_host.report.verdict import OUTCOME_TEXT, Figure, Judged

SHOWN = 5
"""Figures of a claim that are not folded away."""

_SIGNS = {"supported": "✓", "refuted": "✗", "open": "?"}


def verdict_part(judged: Sequence[Judged], all_results: Sequence[Results]) -> str:
    """The section; decided claims first, in order of their number."""
    decided = [j for j in judged if j.outcome != "open"]
    left = [j for j in judged if j.outcome == "open"]
    count = Counter(j.outcome for j in judged)
    benches = ", ".join(dict.fromkeys(r.bench for r in all_results))
    machines = "".join(f'<p class="machine">{escape(line)}</p>' for line in distinct_machines(all_results))
    summary = "".join(f'<li class="{o}"><b>{count[o]}</b> {escape(text)}</li>' for o, text in OUTCOME_TEXT.items())
    cards = f'<div class="cards">{"".join(_card(j) for j in decided)}</div>' if decided else ""
    return f"""<section id="verdict" class="verdict">
<h2>Verdict</h2>
<p class="question">What was claimed when transcendent memory for KVM was discussed in 2011, and what these figures say.
Each claim is judged by a rule with fixed thresholds, on 95 % intervals; the rule stands below its figures.</p>
<ul class="tally">{summary}</ul>
{machines}
{cards}
{_left(left, opened=bool(decided))}
<p class="small soft">From the results of {escape(benches)}. Said again in a terminal by:</p>
<pre aria-label="Command that prints the verdict"><code>tmem report verdict DIR...</code></pre>
</section>"""


def _card(judged: Judged) -> str:
    h, d = judged.hypothesis, judged.decision
    return f"""<article class="card {d.outcome}" id="{escape(h.id)}">
<div class="head"><span class="id">{escape(h.id)}</span>{_outcome(judged)}</div>
<blockquote>{escape(h.claim)}</blockquote>
<p class="small soft">{escape(h.who)}, {escape(_date(h.when))}</p>
<p class="because">{_prose(d.because)}</p>
{_figures(d.figures)}
<details><summary>Experiment, rule and source</summary><p>{escape(h.experiment)}</p>
<p>{escape(h.rule)}</p><p class="soft">{escape(h.who)}, {escape(h.when)}</p></details>
</article>"""


def _outcome(judged: Judged) -> str:
    sign = _SIGNS[judged.outcome]
    return f'<span class="outcome {judged.outcome}"><span aria-hidden="true">{sign} </span>{judged.outcome_text}</span>'


def _figures(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    rows = [f"<div><dt>{escape(f.label)}</dt><dd>{escape(f.text)}</dd></div>" for f in figures]
    shown = f'<dl class="figures">{"".join(rows[:SHOWN])}</dl>'
    if len(rows) <= SHOWN:
        return shown
    rest = f'<dl class="figures">{"".join(rows[SHOWN:])}</dl>'
    more = len(rows) - SHOWN
    return f"{shown}<details><summary>{more} more figure{'s' if more > 1 else ''}</summary>{rest}</details>"


def _left(left: Sequence[Judged], *, opened: bool) -> str:
    """Claims that stay open: nothing is left out, but they take a line or three each."""
    if not left:
        return ""
    items = "".join(_open_claim(j) for j in left)
    return (
        f'<details class="undecided"{" open" if opened else ""}><summary>Not decidable here, and why ({len(left)})'
        f'</summary><ul class="undecided">{items}</ul></details>'
    )


def _open_claim(judged: Judged) -> str:
    h, d = judged.hypothesis, judged.decision
    return (
        f'<li id="{escape(h.id)}"><span class="id">{escape(h.id)}</span><div><p>{escape(h.claim)} '
        f'<span class="soft small">{escape(h.who)}, {escape(_date(h.when))}</span></p>'
        f'<p class="because">{_prose(d.because)}</p>{_figures(d.figures)}</div></li>'
    )


def _date(when: str) -> str:
    """When something was said, without the names of the mails that say it."""
    days = re.sub(r",? message [^\s,;]+", "", when).split("; ")
    return "; ".join(dict.fromkeys(days))


def _prose(text: str) -> str:
    """A sentence as HTML, with commands set as such."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text[:1].upper() + text[1:]))
