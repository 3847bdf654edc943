# SPDX-License-Identifier: Apache-2.0
"""This program's own command line, run for the host as an operator of the guest would run it."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable

from . import procs
from .port import HostGone
from .protocol import INVALID, NOT_FOUND, OpError, Request

_lock = threading.Lock()
_running: dict[int, int] = {}  # request id -> pid


def arguments(request: Request) -> list[str]:
    """The words of the command line, or OpError."""
    words = request.args.get("arguments")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise OpError(INVALID, 'arguments must be a list of words, as in ["probe"]')
    return words


def command(request: Request, emit_line: Callable[[bytes], None]) -> dict[str, object]:
    """{arguments, settings?} -> every line that it prints as an event, then {status}. ``settings``: text of a file."""
    words = arguments(request)
    path = ""
    if request.has("settings"):
        path = f"/run/tmem-guest-{os.getpid()}-{request.id}.toml"
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(request.text("settings"))
        words = [*words, "--config", path]
    try:
        program = [sys.executable or "/usr/bin/python3", "-I", "-S", "-B", "-c"]
        code = f"import sys; sys.path[:] = {sys.path!r}; from tmem_guest import cli; sys.exit(cli.main())"
        pid, read_end = procs.spawn([*program, code, *words], errors=True)
        with _lock:
            _running[request.id] = pid
        try:
            for line in procs.lines(read_end):
                # A host that leaves has set this guest up all the same; the next may ask for `off`.
                with contextlib.suppress(HostGone):
                    emit_line(json.dumps(line.decode(errors="replace")).encode())
        finally:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            with _lock:
                del _running[request.id]
            status = procs.wait(pid)
        return {"status": status}
    finally:
        if path:
            os.unlink(path)


def command_stop(request: Request) -> dict[str, object]:
    """{target}: asks the command that request `target` started to end, as systemd would."""
    with _lock:
        pid = _running.get(request.number("target"))
        if pid is None:
            raise OpError(NOT_FOUND, "no command runs for that request")
        os.kill(pid, signal.SIGTERM)
    return {}
