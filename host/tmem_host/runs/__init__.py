# SPDX-License-Identifier: Apache-2.0
"""Runs of benches as jobs: one at a time, the others wait; each a process of its own that leaves nothing behind.

::

    queued ──> running ──> done, failed
       │          └──> cancelling ──> cancelled
       └──> cancelled            (interrupted: the agent ended meanwhile)

What a run tells (its states, its progress, its notes, the lines that it prints) are its events, numbered from 1 and
kept with it, so that whoever follows can go on where it was cut off.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from tmem_host.bench.all_child import Interrupts
from tmem_host.config import check_vm_name
from tmem_host.errors import Conflict, InvalidInput, NotFound
from tmem_host.models import RunCreate, RunInfo, RunList, RunResults
from tmem_host.runs.history import ENDED, History, RunEvent
from tmem_host.runs.job import Job

log = logging.getLogger(__name__)

#: Runs that may wait.
QUEUE: Final = 100
#: Seconds without an event after which a follower hears that its connection lives.
BEAT: Final = 15.0
#: Bytes of a log that are told at once.
LOG_MAX: Final = 1 << 20


class Runs:
    """The runs of one state folder.  May be shared by threads; what waits, waits in the agent's loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._history: History | None = None
        self._opening = threading.Lock()
        #: Guards the three below; said when something is to be done.
        self._todo = threading.Condition()
        self._thread: threading.Thread | None = None
        self._current: tuple[int, Interrupts] | None = None
        self._closed = False
        #: Who follows a run: a loop, and the event to set in it.
        self._followers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def open(self) -> None:
        """Marks what was under way when an agent ended as interrupted, and goes on with what waits."""
        history = self._open()
        for number in history.in_state("running", "cancelling"):
            history.move(number, "interrupted", reason="the agent ended meanwhile")
            log.warning("run %d was under way when the agent ended: interrupted", number)
        if history.in_state("queued"):
            self._work()

    def stop(self) -> None:
        """Ends the run that is under way at once, and all followers.  Waiting ones wait for the next agent."""
        with self._todo:
            self._closed = True
            if self._current is not None:
                self._current[1].forced = True
            self._todo.notify_all()
            thread = self._thread
        self.wake()
        if thread is not None:
            thread.join()

    def close(self) -> None:
        """Stops, if that was not done, and closes the history."""
        self.stop()
        if self._history is not None:
            self._history.close()

    # -- asked for ----------------------------------------------------------------------------------------------

    def create(self, options: RunCreate, who: str) -> RunInfo:
        """Queues a run.  Raises InvalidInput, Conflict."""
        from tmem_host.runs.job import BENCHES

        if options.bench not in BENCHES:
            raise InvalidInput(f"there is no bench {options.bench!r}", f"the choice is {', '.join(BENCHES)}")
        if options.bench == "all" and (options.arms or options.rounds):
            raise InvalidInput("arms and rounds are of one bench", "give them as settings, store.rounds for example")
        if options.bench == "guest":
            if not isinstance(name := options.settings.get("vm"), str):
                raise InvalidInput("the guest bench needs a VM", 'name it in settings: {"vm": "NAME"}')
            check_vm_name(name)
        history = self._open()
        if len(history.in_state("queued")) >= QUEUE:
            raise Conflict(f"{QUEUE} runs wait already", "cancel some, or wait")
        number = history.add(options, who)
        for gone in history.prune():
            shutil.rmtree(self.folder(gone), ignore_errors=True)
        log.info("run %d of bench %s queued", number, options.bench)
        self._work()
        return history.get(number)

    def list_(self, *, before: int | None = None, limit: int = 100) -> RunList:
        """The latest first."""
        found = self._open().list_(before=before, limit=limit + 1)
        page = found[:limit]
        return RunList(runs=page, next=str(page[-1].id) if len(page) < len(found) else None)

    def get(self, number: int) -> RunInfo:
        """Raises NotFound."""
        return self._open().get(number)

    def cancel(self, number: int) -> RunInfo:
        """Ends a run, or takes it out of the queue; one that has ended stays as it is."""
        history = self._open()
        history.get(number)
        with self._todo:
            if self._current is not None and self._current[0] == number:
                if history.move(number, "cancelling", unless="cancelling"):
                    log.info("run %d is to end", number)
                self._current[1].requested = True
            elif history.move(number, "cancelled"):
                log.info("run %d cancelled before it began", number)
        self.wake()
        return history.get(number)

    def results(self, number: int) -> RunResults:
        """What it measured.  Raises NotFound."""
        self.get(number)
        folder = self.folder(number)
        files = sorted([*folder.glob("results.json"), *folder.glob("*/results.json")])
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if not found:
            raise NotFound(f"run {number} has no results", "see its state")
        return RunResults(results=found)

    def report(self, number: int) -> Path:
        """The file of its report.  Raises NotFound."""
        self.get(number)
        file = self.folder(number) / "report.html"
        if not file.is_file():
            raise NotFound(f"run {number} has no report", "see its state")
        return file

    def log(self, number: int, tail: int = LOG_MAX) -> bytes:
        """The last ``tail`` bytes of what it printed."""
        self.get(number)
        try:
            with (self.folder(number) / Job.LOG).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - min(tail, LOG_MAX)))
                return file.read(LOG_MAX)
        except FileNotFoundError:
            return b""

    def counts(self) -> dict[str, int]:
        """How many wait, and how many are under way."""
        history = self._open()
        return {"queued": len(history.in_state("queued")), "running": len(history.in_state("running", "cancelling"))}

    async def follow(self, number: int, after: int = 0) -> AsyncIterator[RunEvent | None]:
        """Its events behind the number ``after``, as they come, up to its end or the agent's; None: time passes."""
        history = await asyncio.to_thread(self._open)
        news = asyncio.Event()
        follower = (asyncio.get_running_loop(), news)
        self._followers.add(follower)
        try:
            while True:
                news.clear()
                ended = (await asyncio.to_thread(history.get, number)).state in ENDED
                while found := await asyncio.to_thread(history.events, number, after):
                    for event in found:
                        yield event
                        after = event.seq
                if ended or self._closed:
                    return
                try:
                    await asyncio.wait_for(news.wait(), BEAT)
                except TimeoutError:
                    yield None
        finally:
            self._followers.discard(follower)

    def folder(self, number: int) -> Path:
        """Where a run's results are."""
        return self._folder / str(number)

    # -- inside -------------------------------------------------------------------------------------------------

    def _open(self) -> History:
        with self._opening:
            if self._history is None:
                self._history = History(self._folder)
            return self._history

    def _work(self) -> None:
        with self._todo:
            if self._closed:
                raise Conflict("the agent is stopping", "ask the next one")
            if self._thread is None:
                # Its children die with this very thread (prctl(2)), which lives as long as the agent.
                self._thread = threading.Thread(target=self._run_all, name="runs", daemon=True)
                self._thread.start()
            self._todo.notify_all()

    def _run_all(self) -> None:
        history = self._open()
        while True:
            with self._todo:
                while not self._closed and not (waiting := history.in_state("queued")):
                    self._todo.wait()
                if self._closed:
                    return
                number, interrupts = waiting[0], Interrupts()
                if not history.move(number, "running"):
                    continue
                self._current = (number, interrupts)
            self.wake()
            try:
                job = Job(history, number, self.folder(number), interrupts, self.wake)
                job.run()
            except Exception:
                log.exception("run %d failed", number)
                history.move(number, "failed", reason="the agent failed: see its log")
            finally:
                with self._todo:
                    self._current = None
                self.wake()

    def wake(self) -> None:
        """Tells every follower that there may be news.  From any thread."""
        for loop, news in tuple(self._followers):
            # A loop that is gone has nobody left who follows.
            if not loop.is_closed():
                loop.call_soon_threadsafe(news.set)


def as_sse(event: RunEvent | None) -> str:
    """An event in the format of server-sent events (HTML, 9.2.6); None: a comment, which keeps a connection alive."""
    if event is None:
        return ": still here\n\n"
    data: Any = json.dumps(event.data, ensure_ascii=False)
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n"
