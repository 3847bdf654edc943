# SPDX-License-Identifier: Apache-2.0
"""Runs as a rule sees them: look-ups that say what is missing, ratios with intervals, facts of the machine.

A rule compares only within one run: of several runs of a bench it is given one, that which has most of what the
hypothesis needs; then one under KVM rather than an emulated one, a complete one rather than an interrupted one, a full
one rather than a quick one, a newer one rather than an older one. Figures of two machines never meet in one ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results, Scalar
from tmem_host.bench.stats import Interval
from tmem_host.report.verdict.model import Decision, Figure, Hypothesis, Need

MIN_ROUNDS = 3
"""Fewer rounds say nothing about the spread between rounds: nothing is decided on them."""
_KEPT = {0.5: 100, 0.99: 1000}
"""Samples of a round that are enough for the interval of this quantile, evenly spaced in rank."""


class Undecided(Exception):
    """A rule cannot decide; the text says why. Ends as an open decision, never leaves this package."""

    def __init__(self, reason: str, figures: Sequence[Figure] = ()) -> None:
        super().__init__(reason)
        self.figures = tuple(figures)


class Missing(Undecided):
    """A figure is not there."""


@dataclass(frozen=True)
class _Thinned:
    samples: list[float]
    sizes: list[int]


class ResultSet:
    """Runs of any benches, in any order."""

    def __init__(self, results: Sequence[Results], *, name_machines: bool = False) -> None:
        self._results = list(results)
        self._name_machines = name_machines
        self._fewest: int | None = None

    # ---- deciding

    def judge(self, hypothesis: Hypothesis) -> Decision:
        """The hypothesis' rule on those runs that suit it best. Never raises."""
        view = self._narrow(hypothesis.needs)
        try:
            for need in hypothesis.needs:
                view.need(need)
            decision = hypothesis.decide(view)
        except Undecided as reason:
            return _left_open(hypothesis, view, str(reason), reason.figures)
        if decision.outcome != "open" and (few := view._few_rounds()):
            return Decision(decision.outcome, f"{decision.because}; {few}", decision.figures)
        return decision

    def _narrow(self, needs: Sequence[Need]) -> ResultSet:
        """One run of each bench."""

        def worth(run: Results) -> tuple[int, bool, bool, bool, float]:
            wanted = [n for n in needs if n.bench == run.bench]
            here = sum(1 for n in wanted if run.find(n.metric, **n.where))
            emulated = run.properties.guest.get("accelerator") == "tcg"
            return here, not emulated, run.complete, not run.quick, run.started.timestamp()

        chosen: dict[str, Results] = {}
        for run in self._results:
            if run.bench not in chosen or worth(run) > worth(chosen[run.bench]):
                chosen[run.bench] = run
        return ResultSet(list(chosen.values()), name_machines=len({_machine(r) for r in self._results}) > 1)

    def _few_rounds(self) -> str:
        """A caution where no permutation of so few rounds could reach 5 %."""
        if self._fewest is None or stats.smallest_p(self._fewest, self._fewest) <= 0.05:
            return ""
        return f"only {self._fewest} rounds, which the intervals span"

    # ---- records

    def run(self, bench: str) -> Results | None:
        """The run of this bench, if there is one."""
        return next((r for r in self._results if r.bench == bench), None)

    def all(self, bench: str, metric: str, where: Mapping[str, Scalar] | None = None) -> list[Record]:
        """Records in file order; empty when there are none."""
        run = self.run(bench)
        return run.find(metric, **(where or {})) if run else []

    def maybe(self, bench: str, metric: str, **where: Scalar) -> Record | None:
        """The record, or None."""
        found = self.all(bench, metric, where)
        return found[0] if found else None

    def get(self, bench: str, metric: str, **where: Scalar) -> Record:
        """The record. Raises Missing with what would make it."""
        return self.need(Need(bench, metric, where))

    def need(self, need: Need) -> Record:
        """The record that a hypothesis needs. Raises Missing with what would make it."""
        found = self.all(need.bench, need.metric, need.where)
        if not found:
            raise Missing(f"there is no figure {need.name}{self._why_not(need)}: {need.remedy}")
        return found[0]

    def _why_not(self, need: Need) -> str:
        """What the run itself says about an arm without a number."""
        run = self.run(need.bench)
        arm = need.where.get("arm")
        if run is None or arm is None:
            return ""
        told = next((f for f in run.failures if f.dimensions.get("arm") == arm), None)
        return f" ({told.kind}: {told.reason})" if told else ""

    # ---- statistics

    def median(self, record: Record) -> Interval:
        """The median with its interval. Raises Undecided after too few rounds."""
        self._count_rounds(record)
        thin = _thin(record, 0.5)
        found = stats.bootstrap_quantile(thin.samples, 0.5, thin.sizes)
        point = stats.median(record.samples)
        return Interval(point, min(found.low, point), max(found.high, point))

    def ratio(self, top: Record, bottom: Record, q: float = 0.5) -> Interval:
        """Ratio of the quantiles with its interval. Raises Undecided after too few rounds or over nothing."""
        self._count_rounds(top)
        self._count_rounds(bottom)
        below = _quantile(bottom, q)
        if below <= 0:
            raise Undecided(f"{_name(bottom)} is not above 0: nothing can be divided by it")
        ours, theirs = _thin(top, q), _thin(bottom, q)
        try:
            found = stats.ratio(ours.samples, theirs.samples, ours.sizes, theirs.sizes, q=q)
        except (ValueError, IndexError):
            raise Undecided(f"{_name(bottom)} is 0 too often: nothing can be divided by it") from None
        point = _quantile(top, q) / below
        return Interval(point, min(found.low, point), max(found.high, point))

    def rounds(self, records: Sequence[Record]) -> NDArray[np.float64]:
        """Medians by round: one row per round that all records have, one column per record."""
        for record in records:
            self._count_rounds(record)
        columns = [[stats.median(r) for r in stats.split_rounds(x.samples, x.round_sizes)] for x in records]
        shortest = min(len(c) for c in columns)
        return np.array([c[:shortest] for c in columns], dtype=np.float64).T

    def over_rounds(self, values: Sequence[float]) -> Interval:
        """The median of one value per round, with its interval."""
        return stats.bootstrap_quantile(values, 0.5)

    def _count_rounds(self, record: Record) -> None:
        count = len(record.round_sizes) or len(record.samples)
        if count < MIN_ROUNDS:
            rounds = "round" if count == 1 else "rounds"
            raise Undecided(
                f"{_name(record)} has {count} {rounds}, and {MIN_ROUNDS} are the least that show a spread: "
                f"run `tmem bench {record.bench}` with more rounds"
            )
        self._fewest = count if self._fewest is None else min(self._fewest, count)

    # ---- facts

    def kvm(self, bench: str) -> str:
        """What KVM was in this bench's run: 'KVM in software (PVM or alike)'; the CPU, too, if runs are of several."""
        run = self.run(bench)
        flavour = run.properties.host.get("kvm_flavour") if run else None
        where = f" on {run.properties.host.get('cpu')}" if run and self._name_machines else ""
        if not isinstance(flavour, str) or not flavour:
            return f"a KVM of unknown flavour{where}"
        head, colon, _ = flavour.partition(":")
        return f"KVM in {head + ')' if colon and '(' in head else flavour}{where}"

    def accelerator(self, bench: str = "swap") -> str:
        """'tcg', 'kvm', or '' when there was no guest."""
        run = self.run(bench)
        return str(run.properties.guest.get("accelerator") or "") if run else ""

    def under_kvm(self, what: str, figures: Sequence[Figure] = ()) -> str:
        """'KVM in ...' when the swap bench's guest ran under it. Raises Undecided when what it says is no evidence."""
        accelerator = self.accelerator("swap")
        if accelerator != "kvm":
            how = "was emulated (TCG)" if accelerator == "tcg" else "ran under an accelerator that is not named"
            raise Undecided(
                f"the guest of the swap bench {how}, and that says nothing about {what}: run `tmem bench swap` where "
                "/dev/kvm runs a stock kernel",
                figures,
            )
        return self.kvm("swap")


def _left_open(hypothesis: Hypothesis, view: ResultSet, reason: str, figures: tuple[Figure, ...]) -> Decision:
    """Open, with what is known all the same."""
    if hypothesis.aside is not None:
        try:
            told, more = hypothesis.aside(view)
        except Undecided:
            told, more = "", ()
        if told:
            return Decision("open", f"{reason}. {told}", (*figures, *more))
    return Decision("open", reason, figures)


def _machine(run: Results) -> tuple[str, str]:
    host = run.properties.host
    return str(host.get("cpu")), str(host.get("kvm_flavour"))


def _name(record: Record) -> str:
    return f"{record.bench} {record.metric}" + (f" of {record.arm}" if record.arm else "")


def _quantile(record: Record, q: float) -> float:
    return stats.median(record.samples) if q == 0.5 else stats.quantile(record.samples, q)


def _thin(record: Record, q: float) -> _Thinned:
    """At most so many samples of each round, evenly spaced in rank: quantiles stay, resampling gets fast."""
    keep = _KEPT.get(q, 1000)
    samples: list[float] = []
    sizes: list[int] = []
    for values in stats.split_rounds(record.samples, record.round_sizes):
        kept = values
        if values.size > keep:
            kept = np.sort(values)[((np.arange(keep) + 0.5) * values.size / keep).astype(np.intp)]
        samples += kept.tolist()
        sizes.append(int(kept.size))
    return _Thinned(samples, sizes if record.round_sizes else [])
