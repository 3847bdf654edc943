# SPDX-License-Identifier: Apache-2.0
"""Two runs of one bench, record by record: ratio with interval, and a permutation test over rounds. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results, Scalar
from tmem_host.bench.units import number

LEVEL = 0.05
Change = Literal["better", "worse", "higher", "lower", "none shown", "too few rounds"]
_BUSY = re.compile(r"The machine was busy|Others used")
"""How benches begin a note that the machine had other work (`comparators_load`, `runner`)."""
DIFFERS: frozenset[Change] = frozenset(("better", "worse", "higher", "lower"))


@dataclass(frozen=True)
class Pair:
    """One record of both runs."""

    metric: str
    unit: str
    dimensions: dict[str, Scalar]
    a: float
    """Median in run A."""
    b: float
    ratio: stats.Interval | None
    """B over A; None where A's median is 0."""
    test: stats.Comparison
    rounds: tuple[int, int]
    better: Literal["lower", "higher"] | None
    label: str
    """Metric, arm, and the dimensions that tell it from other records of these: 'latency tmem-lz4 (depth 8)'."""

    @property
    def change(self) -> Change:
        """What the test says of B."""
        if not self.test.decidable:
            return "too few rounds"
        # The test is on the mean of the rounds' medians, so that is also what tells the direction.
        if self.test.p > LEVEL or self.test.difference == 0:
            return "none shown"
        direction: Literal["higher", "lower"] = "higher" if self.test.difference > 0 else "lower"
        return direction if self.better is None else "better" if direction == self.better else "worse"


@dataclass(frozen=True)
class Comparison:
    """All that two runs have in common, and what only one has."""

    pairs: list[Pair]
    only_a: list[str]
    only_b: list[str]
    busy: list[str]
    """What the runs noted of other work on their machine."""

    @property
    def tested(self) -> list[Pair]:
        """Pairs with enough rounds to show anything."""
        return [p for p in self.pairs if p.test.decidable]

    @property
    def differing(self) -> list[Pair]:
        return [p for p in self.pairs if p.change in DIFFERS]

    @property
    def standing(self) -> list[Pair]:
        """What still differs when it is corrected for as many tests (Benjamini and Hochberg 1995, at `LEVEL`)."""
        ordered = sorted(self.tested, key=lambda p: p.test.p)
        last = max((k for k, p in enumerate(ordered, 1) if p.test.p <= LEVEL * k / len(ordered)), default=0)
        return [p for p in ordered[:last] if p.change in DIFFERS]

    @property
    def sentences(self) -> list[str]:
        """What a reader must know before believing the figures."""
        said = list(self.busy)
        if weak := [p for p in self.pairs if not p.test.decidable]:
            least = min(weak, key=lambda p: p.test.smallest_p).test.smallest_p
            said.append(
                f"{len(weak)} of {len(self.pairs)} records have too few rounds to call any difference significant: the "
                f"smallest p that a permutation test over their rounds can reach is {number(least)}."
            )
        if self.tested:
            said.append(
                f"{len(self.differing)} of {len(self.tested)} tested records differ at p ≤ {LEVEL:g}; chance alone "
                f"would give about {number(LEVEL * len(self.tested))}. {len(self.standing)} stand after correcting for "
                "so many tests (Benjamini-Hochberg)."
            )
        if self.differing:
            said.append(
                "All rounds of a run share what the machine was like meanwhile: compare two runs of one version first, "
                "to see how far apart those are."
            )
        for side, missing in (("A", self.only_a), ("B", self.only_b)):
            if missing:
                told = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
                said.append(f"Only in {side}, and not compared: {told}.")
        return said


def compare(a: Results, b: Results) -> Comparison:
    """Compares what both have, in A's order. Records of the harness are left out: they are not what is measured."""
    theirs = {_key(r): r for r in b.records if r.arm != "harness"}
    ours = {_key(r): r for r in a.records if r.arm != "harness"}
    varying = _varying([*ours.values(), *theirs.values()])
    return Comparison(
        [_pair(r, theirs[key], a.seed, _name(r, varying)) for key, r in ours.items() if key in theirs],
        [_name(r, varying) for key, r in ours.items() if key not in theirs],
        [_name(r, varying) for key, r in theirs.items() if key not in ours],
        [f"{side}: {note}" for side, run in (("A", a), ("B", b)) for note in run.notes if _BUSY.match(note)],
    )


def _key(record: Record) -> tuple[str, frozenset[tuple[str, Scalar]]]:
    return record.metric, frozenset(record.dimensions.items())


def _varying(records: Sequence[Record]) -> dict[tuple[str, str], set[str]]:
    """Dimensions that differ among the records of one metric of one arm."""
    first: dict[tuple[str, str], Record] = {}
    found: dict[tuple[str, str], set[str]] = {}
    for r in records:
        one = first.setdefault((r.metric, r.arm), r)
        unlike = {k for k, v in r.dimensions.items() ^ one.dimensions.items()}
        found.setdefault((r.metric, r.arm), set()).update(unlike)
    return found


def _name(record: Record, varying: dict[tuple[str, str], set[str]]) -> str:
    wanted = varying[record.metric, record.arm]
    rest = ", ".join(f"{k} {v}" for k, v in record.dimensions.items() if k in wanted)
    return f"{record.metric} {record.arm}".strip() + (f" ({rest})" if rest else "")


def _pair(a: Record, b: Record, seed: int, label: str) -> Pair:
    before, after = stats.median(a.samples), stats.median(b.samples)
    # Rounds of two runs have nothing in common but their number, so they are not paired.
    against = (
        stats.ratio(b.samples, a.samples, b.round_sizes, a.round_sizes, seed=seed, paired=False) if before else None
    )
    test = stats.permutation_test(b.samples, a.samples, b.round_sizes, a.round_sizes, seed=seed)
    rounds = len(a.round_sizes) or len(a.samples), len(b.round_sizes) or len(b.samples)
    return Pair(a.metric, a.unit, a.dimensions, before, after, against, test, rounds, a.better, label)


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison as values that `json.dumps` takes."""
    standing = {id(p) for p in found.standing}
    return {
        "records": [
            {
                "metric": p.metric,
                "unit": p.unit,
                "dimensions": p.dimensions,
                "a": p.a,
                "b": p.b,
                "ratio": {"value": p.ratio.value, "low": p.ratio.low, "high": p.ratio.high} if p.ratio else None,
                "p": p.test.p,
                "smallest_p": p.test.smallest_p,
                "rounds": list(p.rounds),
                "change": p.change,
                "stands_after_correction": id(p) in standing,
            }
            for p in found.pairs
        ],
        "only_in_a": found.only_a,
        "only_in_b": found.only_b,
        "notes": found.sentences,
    }


def ordered(pairs: Sequence[Pair]) -> list[Pair]:
    """Largest changes first."""
    return sorted(pairs, key=lambda p: -_size(p))


def _size(pair: Pair) -> float:
    if pair.ratio is None or pair.ratio.value <= 0:
        return float("inf")
    return max(pair.ratio.value, 1 / pair.ratio.value)
