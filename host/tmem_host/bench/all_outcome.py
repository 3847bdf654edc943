# SPDX-License-Identifier: Apache-2.0
"""How each bench of a run of all came out: judged from how its process ended and what it left. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tmem_host.bench.all_child import Ended
from tmem_host.bench.progress import human_seconds
from tmem_host.bench.results import Failure, Results
from tmem_host.bench.runner import EXIT_ARM_FAILED, EXIT_INTERRUPTED, EXIT_OK

State = Literal["measured", "arms failed", "skipped", "failed", "interrupted", "not run"]
INTERRUPTED = "Interrupted: the records hold what was measured until then."


@dataclass(frozen=True)
class Outcome:
    """What became of one bench."""

    name: str
    state: State
    seconds: float | None = None
    """How long it ran; None when it did not."""
    reason: str = ""
    """Why there is no number, or not the one asked for."""
    kept: bool = False
    """From the run that this one resumes."""
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    """`ARM: REASON` of each."""

    @property
    def fine(self) -> bool:
        """Whether all is there that this machine can give."""
        return self.state in ("measured", "skipped")

    def said(self) -> str:
        """For the table."""
        counts = [f"{len(arms)} {word}" for arms, word in ((self.failed, "failed"), (self.skipped, "skipped")) if arms]
        what = "measured" if self.state == "arms failed" else self.state
        text = f"{what}; arms: {', '.join(counts)}" if counts and what == "measured" else what
        return f"{text} (kept)" if self.kept else text

    def json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def judge(name: str, ended: Ended, results: Results | None, last_words: str) -> Outcome:
    """The outcome of a bench that was run. `results` is what it left, `last_words` the last line that it printed."""
    # Complete and interrupted: it had just ended.
    if results is not None and results.complete and ended.code in (EXIT_OK, EXIT_ARM_FAILED, EXIT_INTERRUPTED):
        return of_results(results, ended.seconds)
    if ended.stopped == "interrupt" or (ended.stopped is None and ended.code == EXIT_INTERRUPTED):
        return Outcome(name, "interrupted", ended.seconds, "stopped before its end")
    return Outcome(name, "failed", ended.seconds, _reason(ended, results, last_words))


def of_results(results: Results, seconds: float | None, kept: bool = False) -> Outcome:
    """The outcome of a bench that reached its end."""
    failed = _arms(results, "failed")
    skipped = _arms(results, "skipped")
    state: State = "arms failed" if failed else "measured" if results.arms() or not skipped else "skipped"
    reason = skipped[0] if state == "skipped" else ""
    return Outcome(results.bench, state, seconds, reason, kept, failed, skipped)


def _arms(results: Results, kind: str) -> tuple[str, ...]:
    return tuple(f"{_who(f)}: {f.reason}" for f in results.failures if f.kind == kind)


def _who(failure: Failure) -> str:
    return str(failure.dimensions.get("arm", " ".join(map(str, failure.dimensions.values())) or failure.bench))


def _reason(ended: Ended, results: Results | None, last_words: str) -> str:
    if ended.stopped == "limit":
        return f"it did not end within {human_seconds(ended.seconds)}, far more than it should take"
    if ended.code < 0:
        return f"its process crashed: {_signal(-ended.code)}"
    told = [f.reason for f in results.failures if f.kind == "failed" and "arm" not in f.dimensions] if results else []
    told += [f.reason for f in results.failures if f.kind == "failed"] if results else []
    if told:
        return told[0]
    return last_words.removeprefix("tmem: ") or f"its process ended with status {ended.code}"


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def without_number(results: Results, reason: str) -> None:
    """Makes of what a bench left the record of its failure: no figure but the harness's own, and why."""
    results.complete = False
    results.records = [record for record in results.records if record.arm == "harness"]
    whole = [f for f in results.failures if not f.dimensions and f.kind == "failed"]
    if not any(f.reason == reason for f in whole):
        results.failures.append(Failure(bench=results.bench, reason=reason))


def exit_code(outcomes: Sequence[Outcome], interrupted: bool) -> int:
    """0 when all is there that this machine can give, 130 when the user ended it, else 1."""
    if interrupted and any(outcome.state in ("interrupted", "not run") for outcome in outcomes):
        return EXIT_INTERRUPTED
    return EXIT_OK if all(outcome.fine for outcome in outcomes) else EXIT_ARM_FAILED
