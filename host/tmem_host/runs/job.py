# SPDX-License-Identifier: Apache-2.0
"""One run of a bench, from its process's start to the report."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from tmem_host.bench import all_child
from tmem_host.bench.all_child import Ended, Interrupts, run_child
from tmem_host.bench.channel_scratch import remove_left_over
from tmem_host.bench.comparators_process import dies_with_parent
from tmem_host.bench.progress_pipe import Event
from tmem_host.errors import one_line
from tmem_host.models import RunCreate, RunProgress
from tmem_host.runs.history import History

log = logging.getLogger(__name__)

#: What can be run.  `all`: one after the other, with the verdict.
BENCHES: Final = ("all", "api", "channel", "density", "exit", "guest", "store", "swap")

#: Seconds after which a run is ended as failed.
_LIMIT: Final = 6 * 3600.0
#: Seconds that the report of a run may take.
_REPORT_LIMIT: Final = 300.0
#: Seconds between two tellings of a detail: a bench may say its position thousands of times.
_DETAIL: Final = 1.0
#: Lines of a run's log that are told as events; all of them are in the log.
_LINES: Final = 10_000
#: Characters of a line that are told.
_LINE: Final = 2000
#: Exit codes of `tmem bench`: see `tmem_host.bench.runner`.
_MEASURED, _ARM_FAILED = 0, 1


class Job:
    """Carries one run out.  Calls ``news`` whenever there is an event."""

    #: What the bench printed, beside its results.
    LOG: Final = "run.log"

    def __init__(
        self, history: History, number: int, folder: Path, interrupts: Interrupts, news: Callable[[], None]
    ) -> None:
        self._history = history
        self._number = number
        self._folder = folder
        #: Runs are kept in the agent's state folder.
        self._state = history.folder.parent
        self._interrupts = interrupts
        self._news = news
        self._progress = RunProgress()
        self._told = 0.0
        self._log = folder / self.LOG
        self._read = 0
        self._half = b""
        self._lines = 0

    def run(self) -> None:
        """Returns when the run has ended, and nothing of it is left but its folder."""
        options = self._history.get(self._number).options
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log.info("run %d of bench %s begins", self._number, options.bench)
        try:
            argv = [*arguments(options, self._state), "--out", str(self._folder)]
            ended = run_child(argv, self._log, watch=self._watch, interrupts=self._interrupts, limit=_LIMIT)
        except OSError as error:
            self._end("failed", f"no process is to be had: {error.strerror}")
            return
        finally:
            remove_left_over()
        self._tail(last=True)
        if self._interrupts.forced:
            self._end("interrupted", "the agent was stopped")
            return
        words = self._last_words()
        if ended.code in (_MEASURED, _ARM_FAILED) or ended.stopped is not None:
            self._make_report(options)
        self._judge(ended, words)

    def _judge(self, ended: Ended, words: str) -> None:
        if ended.stopped == "interrupt":
            self._end("cancelled", "")
        elif ended.stopped == "limit":
            self._end("failed", f"not done after {_LIMIT / 3600:.0f} hours")
        elif ended.code < 0:
            self._end("failed", f"its process was ended by signal {-ended.code}")
        elif ended.code == _MEASURED:
            self._end("done", "")
        else:
            complete, failures = failures_in(self._folder / "results.json")
            reason = "; ".join(failures) or words or f"it ended with {ended.code}"
            self._end("done" if complete else "failed", reason)

    def _end(self, state: Literal["done", "failed", "cancelled", "interrupted"], reason: str) -> None:
        self._history.move(self._number, state, reason=reason)
        log.info("run %d: %s%s", self._number, state, f", {reason}" if reason else "")
        self._news()

    def _make_report(self, options: RunCreate) -> None:
        """In a process of its own: what it needs takes more memory than the agent."""
        if options.bench == "all" or not (self._folder / "results.json").is_file():
            return
        self._progress.step, self._progress.detail = "making the report", ""
        self._tell_progress()
        argv = [*all_child.PROGRAM, "report", "page", str(self._folder), "--no-table"]
        try:
            with self._log.open("ab") as sink:
                subprocess.run(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    timeout=_REPORT_LIMIT,
                    check=False,
                    start_new_session=True,
                    preexec_fn=dies_with_parent(),
                )
        except (OSError, subprocess.TimeoutExpired) as error:
            log.error("run %d has no report: %s", self._number, error)

    def _watch(self, event: Event | None) -> None:
        """What the bench says of itself; None: time passes."""
        self._tail()
        if event is None:
            return
        progress = self._progress
        if event.kind == "plan":
            progress.steps += event.steps
        elif event.kind == "step":
            progress.step, progress.detail, progress.left_seconds = event.text, "", event.left
        elif event.kind == "advance":
            # Told with the next step.
            progress.done += 1
            return
        elif event.kind == "note":
            self._history.tell(self._number, "note", {"text": event.text})
            self._news()
            return
        else:
            progress.detail = event.text
            if time.monotonic() - self._told < _DETAIL:
                return
        self._tell_progress()

    def _tell_progress(self) -> None:
        self._told = time.monotonic()
        self._history.progress(self._number, self._progress)
        self._news()

    def _tail(self, *, last: bool = False) -> None:
        """Tells new lines of the log."""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            file.seek(self._read)
            found = file.read(1 << 20)
            self._read += len(found)
            *lines, self._half = (self._half + found).split(b"\n")
            if last and self._half:
                lines.append(self._half)
            told = lines[: max(0, _LINES - self._lines)]
            self._lines += len(lines)
            if told:
                texts = [line[:_LINE].decode("utf-8", "replace").rstrip("\r") for line in told]
                self._history.tell(self._number, "log", *({"text": text} for text in texts))
                self._news()

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return one_line(next((line for line in reversed(lines) if line.strip()), "")).removeprefix("tmem: ")


def failures_in(file: Path) -> tuple[bool, list[str]]:
    """Whether results are complete, and why arms have no number: ``ARM: REASON`` each.  Read as they are: what knows
    their format better takes more memory than the agent."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        failed = [failure for failure in found["failures"] if failure["kind"] == "failed"]
        told = [f"{f['dimensions'].get('arm', '')}: {f['reason']}".removeprefix(": ") for f in failed]
        return bool(found["complete"]), [one_line(text) for text in told]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False, []


def arguments(options: RunCreate, state: Path) -> list[str]:
    """The command, behind ``tmem``.  ``state``: folder of the agent whose guest is to work."""
    argv = ["bench", options.bench, *(["--quick"] if options.quick else []), "--seed", str(options.seed)]
    if options.arms is not None:
        argv += ["--arms", options.arms]
    if options.rounds is not None:
        argv += ["--rounds", str(options.rounds)]
    for name, value in options.settings.items():
        argv += ["--set", f"{name}={value}"]
    if options.bench == "guest":
        argv += ["--state", str(state)]
    return argv
