# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and their parsers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmem_host.errors import InvalidInput, TmemError

if TYPE_CHECKING:
    from tmem_host.client import AgentClient


def size(text: str) -> int:
    """A size option: what :func:`tmem_host.config.parse_size` takes."""
    from tmem_host.config import parse_size

    try:
        return parse_size(text)
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from error


def names(context: typer.Context, incomplete: str) -> list[str]:
    """Completion: the agent's VMs.  Nothing when none answers."""
    try:
        return [vm.name for vm in client(context.params.get("state")).list_vms() if vm.name.startswith(incomplete)]
    except TmemError:
        return []


def client(state: Path | None) -> AgentClient:
    """The agent of ``state``."""
    from tmem_host.client import AgentClient

    return AgentClient(state)


def either(choices: tuple[str, ...]) -> Callable[[str], str]:
    """An option that is one of ``choices``."""

    def choose(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is none of {', '.join(choices)}")
        return text

    return choose


CODECS = ("lz4", "zstd", "none")

State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        envvar="TMEM_STATE",
        show_default="~/.local/state/tmem",
        help="The agent's state folder.",
        file_okay=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Name = Annotated[str, typer.Argument(help="The VM's name.", autocompletion=names, metavar="NAME")]
