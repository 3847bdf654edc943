# SPDX-License-Identifier: Apache-2.0
"""The history of runs: one SQLite file in the state folder, with what each run told while it was under way.

A file that cannot be trusted is set aside, never written over, and a new one begun: guests are served without it.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tmem_host.errors import NotFound
from tmem_host.models import RunCreate, RunInfo, RunProgress, RunState
from tmem_host.state import os_error, private_folder

log = logging.getLogger(__name__)

FILE: Final = "runs.db"
#: Runs that have an end are forgotten, with their folders, beyond the latest so many.
KEPT: Final = 200
#: Raised with every change of the tables.
_VERSION: Final = 1
_TABLES: Final = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, options TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    who TEXT NOT NULL, created REAL NOT NULL, started REAL, ended REAL, progress TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE TABLE events (
    run INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE, seq INTEGER NOT NULL, kind TEXT NOT NULL,
    data TEXT NOT NULL, PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;
"""
#: States that a run does not leave.
ENDED: Final = frozenset[RunState]({"done", "failed", "cancelled", "interrupted"})


@dataclass(frozen=True)
class RunEvent:
    """Something that a run told: its number in the run, from 1 on, its kind, and what is JSON."""

    seq: int
    kind: str
    data: dict[str, Any]


class History:
    """The file in ``folder``.  May be shared by threads."""

    def __init__(self, folder: Path) -> None:
        private_folder(folder)
        self.folder = folder
        self._lock = threading.Lock()
        path = folder / FILE
        try:
            self._db = _opened(path)
        except sqlite3.DatabaseError as error:
            aside = path.with_name(f"{FILE}.unreadable-{time.time_ns()}")
            log.error("%s cannot be read (%s): set aside as %s, a new history begins", path, error, aside.name)
            try:
                path.rename(aside)
                for rest in ("-wal", "-shm"):
                    path.with_name(f"{FILE}{rest}").unlink(missing_ok=True)
            except OSError as failed:
                raise os_error(failed, f"{path} cannot be set aside") from failed
            self._db = _opened(path)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # -- runs ---------------------------------------------------------------------------------------------------

    def add(self, options: RunCreate, who: str) -> int:
        """A new run, queued; its number."""
        with self._lock, self._db:
            made = self._db.execute(
                "INSERT INTO runs (options, state, who, created) VALUES (?, 'queued', ?, ?)",
                (options.model_dump_json(), who, time.time()),
            )
            assert made.lastrowid is not None
            return made.lastrowid

    def get(self, number: int) -> RunInfo:
        """Raises NotFound."""
        with self._lock:
            row = self._db.execute("SELECT * FROM runs WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise NotFound(f"there is no run {number}", "see 'tmem run list'")
        return self._info(row)

    def list_(self, *, before: int | None = None, limit: int) -> list[RunInfo]:
        """The latest first; those before a number."""
        with self._lock:
            rows = self._db.execute(
                "SELECT * FROM runs WHERE id < ? ORDER BY id DESC LIMIT ?", (before or 1 << 62, limit)
            ).fetchall()
        return [self._info(row) for row in rows]

    def in_state(self, *states: RunState) -> list[int]:
        """Numbers of runs in these states, the oldest first."""
        marks = ", ".join("?" * len(states))
        with self._lock:
            rows = self._db.execute(f"SELECT id FROM runs WHERE state IN ({marks}) ORDER BY id", states).fetchall()
        return [int(row["id"]) for row in rows]

    def move(self, number: int, state: RunState, *, reason: str = "", unless: RunState | None = None) -> bool:
        """Puts a run into a state and tells it as an event; False when it is in the state ``unless``, or has ended."""
        now = time.time()
        with self._lock, self._db:
            done = self._db.execute(
                "UPDATE runs SET state = ?, reason = ?, started = CASE WHEN ? THEN ? ELSE started END, "
                "ended = CASE WHEN ? THEN ? ELSE ended END WHERE id = ? AND state IS NOT ? "
                "AND state NOT IN ('done', 'failed', 'cancelled', 'interrupted')",
                (state, reason, state == "running", now, state in ENDED, now, number, unless),
            )
            if not done.rowcount:
                return False
            self._tell(number, "state", {"state": state, "reason": reason})
        return True

    def progress(self, number: int, progress: RunProgress) -> None:
        """How far a run is, told as an event."""
        data = progress.model_dump(mode="json")
        with self._lock, self._db:
            self._db.execute("UPDATE runs SET progress = ? WHERE id = ?", (json.dumps(data), number))
            self._tell(number, "progress", data)

    def prune(self) -> list[int]:
        """Forgets the oldest runs that have ended, beyond ``KEPT``; their numbers."""
        with self._lock, self._db:
            rows = self._db.execute(
                "SELECT id FROM runs WHERE state IN ('done', 'failed', 'cancelled', 'interrupted') "
                "ORDER BY id DESC LIMIT -1 OFFSET ?",
                (KEPT,),
            ).fetchall()
            gone = [int(row["id"]) for row in rows]
            self._db.executemany("DELETE FROM runs WHERE id = ?", [(number,) for number in gone])
        return gone

    # -- events -------------------------------------------------------------------------------------------------

    def tell(self, number: int, kind: str, *all_data: dict[str, Any]) -> None:
        """Adds events of one kind."""
        with self._lock, self._db:
            for data in all_data:
                self._tell(number, kind, data)

    def events(self, number: int, after: int, limit: int = 500) -> list[RunEvent]:
        """Those behind the number ``after``."""
        with self._lock:
            rows = self._db.execute(
                "SELECT seq, kind, data FROM events WHERE run = ? AND seq > ? ORDER BY seq LIMIT ?",
                (number, after, limit),
            ).fetchall()
        return [RunEvent(row["seq"], row["kind"], json.loads(row["data"])) for row in rows]

    # -- inside -------------------------------------------------------------------------------------------------

    def _tell(self, number: int, kind: str, data: dict[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO events SELECT ?, coalesce(max(seq), 0) + 1, ?, ? FROM events WHERE run = ?",
            (number, kind, json.dumps(data), number),
        )

    def _info(self, row: sqlite3.Row) -> RunInfo:
        folder = self.folder / str(row["id"])
        return RunInfo(
            id=row["id"],
            # What an older agent allowed is told all the same.
            options=RunCreate.model_construct(**json.loads(row["options"])),
            state=row["state"],
            reason=row["reason"],
            who=row["who"],
            created=datetime.fromtimestamp(row["created"], UTC),
            started=None if row["started"] is None else datetime.fromtimestamp(row["started"], UTC),
            ended=None if row["ended"] is None else datetime.fromtimestamp(row["ended"], UTC),
            progress=RunProgress.model_validate_json(row["progress"]),
            results=any(folder.glob("results.json")) or any(folder.glob("*/results.json")),
            report=(folder / "report.html").is_file(),
        )


def _opened(path: Path) -> sqlite3.Connection:
    """The database, its tables made.  Raises sqlite3.DatabaseError for what is none of ours."""
    path.touch(0o600)
    path.chmod(0o600)
    db = sqlite3.connect(path, check_same_thread=False, timeout=10.0)
    try:
        db.row_factory = sqlite3.Row
        # Events come several times a second and may be lost with the power; the states of runs follow them.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        with closing(db.execute("PRAGMA user_version")) as found:
            version = found.fetchone()[0]
        if version == 0:
            db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, this agent knows {_VERSION}")
    except BaseException:
        db.close()
        raise
    return db
