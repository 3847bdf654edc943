# SPDX-License-Identifier: Apache-2.0
"""What a verdict is made of: hypotheses as data, and the decisions on them.

A hypothesis is a claim somebody made, the experiment that tests it, and a rule that was written down before the figures
were there: its thresholds are in `Hypothesis.rule`, in words, and in the function `Hypothesis.decide`, in code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tmem_host.bench.results import Scalar
from tmem_host.bench.stats import Interval
from tmem_host.bench.units import human, human_range

if TYPE_CHECKING:
    from tmem_host.report.verdict.resultset import ResultSet

Outcome = Literal["supported", "refuted", "open"]

OUTCOME_TEXT: Mapping[Outcome, str] = {
    "supported": "supported",
    "refuted": "refuted",
    "open": "not decidable here",
}


@dataclass(frozen=True)
class Figure:
    """A number that a decision rests on, with its 95 % interval; `low == high` where there is none (a count)."""

    label: str
    value: float
    low: float
    high: float
    unit: str

    @classmethod
    def of(cls, label: str, interval: Interval, unit: str) -> Figure:
        """From an interval of `stats`."""
        return cls(label, interval.value, interval.low, interval.high, unit)

    @property
    def text(self) -> str:
        """The number as people read it: '12.3× (11.9–12.8)'."""
        shown = human(self.value, self.unit)
        if self.unit == "percent":  # as in the sentences around it
            shown = f"{shown.removesuffix('%')} %"
        if self.low == self.high:
            return shown
        return f"{shown} ({human_range(self.low, self.high, self.unit, self.value)})"


@dataclass(frozen=True)
class Need:
    """A record that a hypothesis cannot do without."""

    bench: str
    metric: str
    where: Mapping[str, Scalar] = field(default_factory=dict)
    source: str = ""
    """What to do to get it, where that is not `tmem bench BENCH`."""

    @property
    def name(self) -> str:
        """How the missing figure is called in a sentence: 'exit round_trip of pio+put'."""
        labels = dict(self.where)
        arm = labels.pop("arm", None)
        rest = ", ".join(f"{k} {v}" for k, v in labels.items())
        return f"{self.bench} {self.metric}" + (f" of {arm}" if arm else "") + (f" ({rest})" if rest else "")

    @property
    def remedy(self) -> str:
        """What makes the figure: 'run `tmem bench exit`'."""
        return self.source or f"run `tmem bench {self.bench}`"


@dataclass(frozen=True)
class Decision:
    """What the figures say about a claim."""

    outcome: Outcome
    because: str
    """One sentence or two, with the figures and with what they were measured on."""
    figures: tuple[Figure, ...] = ()


Aside = tuple[str, tuple[Figure, ...]]
"""A sentence (or nothing) with its figures."""


@dataclass(frozen=True)
class Hypothesis:
    """A claim and how it is decided."""

    id: str
    claim: str
    who: str
    when: str
    """Date and message, e.g. '31 Oct 2011, message 1b2e4f74-...'."""
    experiment: str
    rule: str
    """The decision rule in words, with every threshold in it."""
    needs: tuple[Need, ...]
    """Without these the rule is not asked at all; what it uses besides is in `experiment`."""
    decide: Callable[[ResultSet], Decision]
    """Pure: the same results give the same decision."""
    aside: Callable[[ResultSet], Aside] | None = None
    """What figures at hand say about a claim that they cannot decide; told when it stays open."""

    @property
    def number(self) -> int:
        """3 for H3."""
        return int(self.id[1:])


@dataclass(frozen=True)
class Judged:
    """A hypothesis with the decision on it."""

    hypothesis: Hypothesis
    decision: Decision

    @property
    def outcome(self) -> Outcome:
        return self.decision.outcome

    @property
    def outcome_text(self) -> str:
        """'supported', 'refuted' or 'not decidable here'."""
        return OUTCOME_TEXT[self.decision.outcome]

    @property
    def line(self) -> str:
        """One line for a terminal: 'H3   refuted: ...'."""
        return f"{self.hypothesis.id:<4} {self.outcome_text}: {self.decision.because}"
