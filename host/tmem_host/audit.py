# SPDX-License-Identifier: Apache-2.0
"""The audit log: who changed what, when, and with which outcome.  One JSON object a line, never a token's value.

``audit.log`` in the state folder, mode 0600; at 8 MiB it becomes ``audit.log.1``, and the one before is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

FILE: Final = "audit.log"
_BYTES: Final = 8 << 20


class AuditLog:
    """Appends to ``path``.  May be shared by threads.  What cannot be written is said in the agent's log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def record(self, who: str, method: str, path: str, operation: str, status: int, body: Any = None) -> None:
        """One change: its HTTP status is its outcome.  ``body``: what it asked for, as JSON has it."""
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": who,
            "operation": operation,
            "method": method,
            "path": path,
            "status": status,
        }
        if body is not None:
            entry["body"] = body
        line = json.dumps(entry, ensure_ascii=True) + "\n"
        with self._lock:
            try:
                self._append(line.encode("ascii"))
            except OSError as error:
                log.error("the audit log %s cannot be written: %s", self.path, error.strerror)

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size > _BYTES:
                with contextlib.suppress(FileNotFoundError):
                    self.path.replace(self.path.with_name(f"{self.path.name}.1"))
                os.close(descriptor)
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
