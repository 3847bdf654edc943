# SPDX-License-Identifier: Apache-2.0
"""What the data plane has to say, in the agent's log."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Final

from tmem_host import core

log = logging.getLogger(__name__)

_LEVELS: Final = {"ERROR": logging.ERROR, "WARN": logging.WARNING, "INFO": logging.INFO}


@contextlib.contextmanager
def told() -> Iterator[None]:
    """While the block runs, lines of the core go to the log, from a thread of their own."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            _take()

    thread = threading.Thread(target=run, name="tmem-journal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        core.journal_call()
        thread.join()


def _take() -> None:
    lines, dropped = core.journal()
    for level, line in lines:
        log.log(_LEVELS[level], "%s", line)
    if dropped:
        log.warning("%d lines of the core were dropped: it said more than could be written", dropped)
