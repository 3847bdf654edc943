# SPDX-License-Identifier: Apache-2.0
"""Progress of what takes longer than a breath."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(first: str = "starting the agent") -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal; else a line on stderr for each tenth."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(first, total=1.0)
            yield lambda what, fraction: bar.update(task, description=what, completed=fraction)
        return
    said = -1

    def line(what: str, fraction: float) -> None:
        nonlocal said
        if int(fraction * 10) > said:
            said = int(fraction * 10)
            print(f"{fraction:4.0%}  {what}", file=sys.stderr, flush=True)

    yield line
