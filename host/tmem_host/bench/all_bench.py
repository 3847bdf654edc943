# SPDX-License-Identifier: Apache-2.0
"""`tmem bench all`: every bench in a process of its own, one after the other, then one report and the verdict.

What one bench leaves (threads, memory, a crash in native code) does not reach the next. A bench that fails has no
number, only its reason, and the others run; Ctrl-C keeps what was measured. The plan and what may be kept of an earlier
run are in `all_plan`, the time left in `all_estimate`, the judgement of each bench in `all_outcome`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from tmem_host.bench import all_estimate
from tmem_host.bench.all_child import Ended, Interrupts, run_child
from tmem_host.bench.all_outcome import INTERRUPTED, Outcome, exit_code, judge, of_results, without_number
from tmem_host.bench.all_plan import Setting, again, keep
from tmem_host.bench.all_progress import Overall
from tmem_host.bench.channel_scratch import remove_left_over
from tmem_host.bench.command import check_writable, default_folder
from tmem_host.bench.comparators_process import last_line
from tmem_host.bench.progress import ProgressView, human_seconds, progress_view
from tmem_host.bench.progress_pipe import PipedProgress
from tmem_host.bench.properties import host_properties
from tmem_host.bench.results import RESULTS_FILE, Results, ResultsError
from tmem_host.bench.runner import EXIT_ARM_FAILED, EXIT_OK, reason_of
from tmem_host.config import cache_dir
from tmem_host.errors import InvalidInput

LOG_FILE = "bench.log"
"""What a bench printed, beside its results."""
UNFINISHED_FILE = "unfinished.json"
"""The results of a bench that failed on its way: for whoever looks for the fault, not for a report."""


@dataclass(frozen=True)
class Summary:
    """What a run of all came to."""

    out: Path
    outcomes: list[Outcome]
    code: int
    report: Path | None
    """None when nothing was measured, or no report could be made."""
    verdict: list[str]
    judged: list[dict[str, Any]]


def command(
    settings: Mapping[str, Setting],
    out: Path | None,
    *,
    resume: bool,
    as_json: bool,
    limit: float | None,
    progress_fd: int | None = None,
) -> int:
    """The command: runs, prints, and returns the exit code. Raises TmemError when it cannot begin.

    `progress_fd`: a pipe for the progress, which is shown on stderr otherwise.
    """
    from tmem_host.cli.output import print_json

    if resume and out is None:
        raise InvalidInput("--resume needs the folder of the run to resume", "give it with --out")
    folder = out or default_folder("all")
    check_writable(folder)
    view: ProgressView = progress_view(Console(stderr=True)) if progress_fd is None else PipedProgress(progress_fd)
    with Interrupts() as interrupts:
        summary = run_all(settings, folder, resume=resume, limit=limit, view=view, stop=interrupts)
        if as_json:
            print_json(as_data(summary, settings))
        else:
            print_summary(summary, settings)
        sys.stdout.flush()
    return summary.code


def run_all(
    settings: Mapping[str, Setting],
    out: Path,
    *,
    resume: bool,
    limit: float | None,
    view: ProgressView,
    stop: Interrupts,
) -> Summary:
    """Runs the benches of `settings`, in its order, and makes the report of them. Raises Conflict, see `keep`."""
    kept = _kept(settings, out) if resume else {}
    cache = cache_dir()
    times = all_estimate.load(cache)
    todo = {name: all_estimate.expected(name, s, times) for name, s in settings.items() if name not in kept}
    if not resume:
        for name in settings:  # what an earlier run left there is not of this one
            (out / name / RESULTS_FILE).unlink(missing_ok=True)
    outcomes: list[Outcome] = []
    with view:
        overall = Overall(view, todo)
        for name, setting in settings.items():
            if name in kept:
                outcomes.append(of_results(kept[name], kept[name].seconds, kept=True))
                continue
            if stop.requested:
                outcomes.append(Outcome(name, "not run"))
                continue
            overall.begin(name)
            outcome = run_one(name, setting, out / name, overall, stop, limit or all_estimate.limit(todo[name]))
            outcomes.append(outcome)
            overall.end(outcome)
            if outcome.seconds is not None and outcome.state in ("measured", "arms failed"):
                all_estimate.remember(cache, name, setting, outcome.seconds)
        code = exit_code(outcomes, stop.requested)
        found = [results for name in settings if (results := _read(out / name)) is not None]
        overall.say("judging the hypotheses")
        verdict, judged = _verdict(found, view)
        overall.say("making the report")
        report = _report(found, out, view)
        if code == EXIT_OK and (report is None or not verdict):
            code = EXIT_ARM_FAILED
    return Summary(out, outcomes, code, report, verdict, judged)


def _kept(settings: Mapping[str, Setting], out: Path) -> dict[str, Results]:
    """What is there already and stands. Raises Conflict."""
    host = host_properties()
    found = {name: _read(out / name) for name in settings}
    return {name: r for name, r in found.items() if keep(name, r, settings[name], host) and r is not None}


def run_one(name: str, setting: Setting, folder: Path, overall: Overall, stop: Interrupts, limit: float) -> Outcome:
    """Runs one bench, and leaves its results as they may stand in a report."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (RESULTS_FILE, UNFINISHED_FILE):
        (folder / stale).unlink(missing_ok=True)
    log = folder / LOG_FILE
    argv = [*setting.arguments(name), "--out", str(folder)]
    try:
        ended = run_child(argv, log, watch=overall.watch, interrupts=stop, limit=limit)
        words = last_line(log.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:  # no process to be had, say: no reason not to try the next bench
        ended, words = Ended(1, 0.0), reason_of(error)
    remove_left_over()
    results = _read(folder)
    outcome = judge(name, ended, results, words)
    if outcome.state == "failed":
        _settle(outcome.reason, results or _nothing(name, setting), folder)
    elif outcome.state == "interrupted" and results is not None and INTERRUPTED not in results.notes:
        results.notes.append(INTERRUPTED)
        results.write(folder)
    return outcome


def _settle(reason: str, results: Results, folder: Path) -> None:
    """Makes of the results the record of a failure; what had been measured stays beside them."""
    if results.arms():
        (folder / RESULTS_FILE).rename(folder / UNFINISHED_FILE)
    without_number(results, reason)
    results.write(folder)


def _nothing(name: str, setting: Setting) -> Results:
    """Results of a bench that left none."""
    results = Results(
        bench=name,
        started=datetime.now(UTC),
        command=["tmem", *setting.arguments(name)],
        quick=setting.quick,
        seed=setting.seed,
    )
    results.properties.host.update(host_properties())
    return results


def _read(folder: Path) -> Results | None:
    """The results there; None when there are none that can be read."""
    try:
        return Results.read(folder)
    except ResultsError:
        return None


# The figures are safe in their files: a fault in what is made of them is told, and costs no more than that.


def _verdict(found: Sequence[Results], view: ProgressView) -> tuple[list[str], list[dict[str, Any]]]:
    """The verdict's lines, and the verdict as data."""
    if not found:
        return [], []
    try:
        from tmem_host.report.verdict import as_json, evaluate, lines

        judged = evaluate(found)
        return lines(judged), as_json(judged)
    except Exception as error:
        view.note(f"no verdict: {reason_of(error)}")
        return [], []


def _report(found: Sequence[Results], out: Path, view: ProgressView) -> Path | None:
    """The report of all; None when there is nothing to report."""
    if not found:
        return None
    try:
        from tmem_host.report.page import write_report

        return write_report(found, out)
    except Exception as error:
        view.note(f"no report: {reason_of(error)}")
        return None


def print_summary(summary: Summary, settings: Mapping[str, Setting]) -> None:
    """The table of the benches, what failed, the verdict's lines, and where the report is, last."""
    from tmem_host.cli.output import print_table

    rows = [(o.name, o.said(), "–" if o.seconds is None else human_seconds(o.seconds)) for o in summary.outcomes]
    print()
    print_table(("BENCH", "OUTCOME", "TIME"), rows, numbers=(2,))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for outcome in summary.outcomes:
        for text in [outcome.reason] if outcome.reason else outcome.failed:
            log = f" (see {summary.out / outcome.name / LOG_FILE})" if outcome.state == "failed" else ""
            console.print(f"{outcome.name}: {text}{log}", style="yellow" if outcome.fine else "red")
    if summary.verdict:
        console.print()
        for line in summary.verdict:
            console.print(line)
        console.print()
    if any(outcome.state in ("failed", "interrupted", "not run") for outcome in summary.outcomes):
        console.print(f"go on with: {shlex.join(again(settings, summary.out))}")
    if summary.report is None:
        console.print("report: none", style="red")
    else:
        console.print(f"report: {summary.report}")


def as_data(summary: Summary, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The summary for programs."""
    first = next(iter(settings.values()))
    return {
        "out": str(summary.out),
        "quick": first.quick,
        "seed": first.seed,
        "exit_code": summary.code,
        "benches": [
            {**outcome.json(), "results": _file(summary.out / outcome.name / RESULTS_FILE)}
            for outcome in summary.outcomes
        ],
        "verdict": summary.judged,
        "report": None if summary.report is None else str(summary.report),
    }


def _file(path: Path) -> str | None:
    return str(path) if path.is_file() else None
