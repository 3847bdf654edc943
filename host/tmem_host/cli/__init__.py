# SPDX-License-Identifier: Apache-2.0
"""The command line.  Here: what ``tmem`` starts, and how whatever is raised becomes one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

#: As a shell reports a process that a signal ended: 128 + SIGINT, 128 + SIGPIPE.
INTERRUPTED = 130
BROKEN_PIPE = 141


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code."""
    from typer import TyperException

    from tmem_host.cli.app import app
    from tmem_host.errors import TmemError

    # What libraries log is not for the terminal: errors are raised, and the agent sets up a log of its own.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        answer = app(args=arguments, prog_name="tmem", standalone_mode=False)
        sys.stdout.flush()
    except TmemError as error:
        print(f"tmem: {error}", file=sys.stderr)
        return error.exit_code
    except TyperException as error:
        return _usage(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _no_reader()
    except SystemExit as end:
        # What typer makes of a broken pipe that shows up while the command runs.
        if isinstance(end.__context__, BrokenPipeError):
            return _no_reader()
        raise
    return answer if isinstance(answer, int) else 0


def _no_reader() -> int:
    """The reader has gone, as in ``tmem vm list | head -1``: what is left in the buffer has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return BROKEN_PIPE


def _usage(error: Exception) -> int:
    """A wrong option or argument: one line.  A command without arguments shows its help, as the message is that."""
    context = getattr(error, "ctx", None)
    message = str(getattr(error, "format_message", lambda: str(error))()).strip()
    if type(error).__name__ == "NoArgsIsHelpError":
        if message:
            print(message, file=sys.stderr)
    else:
        path = getattr(context, "command_path", "tmem")
        print(f"tmem: {' '.join(message.split())} (see '{path} --help')", file=sys.stderr)
    return int(getattr(error, "exit_code", 2))
