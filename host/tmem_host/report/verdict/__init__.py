# SPDX-License-Identifier: Apache-2.0
"""The verdict: hypotheses H1 to H20, each decided by a rule that was written down before the figures were there.

    judged = evaluate([Results.read(Path("out/exit")), Results.read(Path("out/density"))])
    print(*lines(judged), sep="\\n")

A figure that is missing, too few rounds, or an interval that includes the threshold leave a claim open, and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tmem_host.bench.results import Results
from tmem_host.report.verdict.model import OUTCOME_TEXT, Decision, Figure, Hypothesis, Judged, Need, Outcome

__all__ = [
    "OUTCOME_TEXT",
    "Decision",
    "Figure",
    "Hypothesis",
    "Judged",
    "Need",
    "Outcome",
    "as_json",
    "evaluate",
    "lines",
]


def evaluate(results: Sequence[Results]) -> list[Judged]:
    """All hypotheses in order, decided over these runs. Never raises for what results hold or lack."""
    from tmem_host.report.verdict.catalogue import HYPOTHESES
    from tmem_host.report.verdict.resultset import ResultSet

    found = ResultSet(results)
    return [Judged(h, found.judge(h)) for h in HYPOTHESES]


def lines(judged: Sequence[Judged]) -> list[str]:
    """One line each, for a terminal."""
    return [one.line for one in judged]


def as_json(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The verdict as values that `json.dumps` takes; `figures` in the unit each names."""
    return [_as_json(one) for one in judged]


def _as_json(one: Judged) -> dict[str, Any]:
    h, d = one.hypothesis, one.decision
    return {
        "id": h.id,
        "claim": h.claim,
        "who": h.who,
        "when": h.when,
        "experiment": h.experiment,
        "rule": h.rule,
        "needs": [{"bench": n.bench, "metric": n.metric, "where": dict(n.where)} for n in h.needs],
        "outcome": d.outcome,
        "outcome_text": one.outcome_text,
        "because": d.because,
        "figures": [
            {"label": f.label, "value": f.value, "low": f.low, "high": f.high, "unit": f.unit} for f in d.figures
        ],
    }
