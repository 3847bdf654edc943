# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and their parsers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


@dataclass
class Remote:
    """Which agent is meant, when it is not the one of a state folder: options of ``tmem`` itself."""

    url: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None


#: What this command was started with.
remote = Remote()


def client(state: Path | None) -> AgentClient:
    """The agent of ``state``, or the one of ``tmem --host``."""
    from tmem_host.client import AgentClient

    if remote.url is None:
        return AgentClient(state)
    from tmem_host.connect import UrlDoor, read_token

    token = None if remote.token_file is None else read_token(remote.token_file)
    return AgentClient(door=UrlDoor(remote.url, token, remote.ca_file))


def uuid_of(text: str) -> str:
    """A uuid's 32 digits.  Raises BadParameter."""
    from uuid import UUID

    try:
        return UUID(text).hex
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no uuid: 32 hexadecimal digits, with or without dashes") from None


def valid(model: str, **fields: Any) -> Any:
    """A model of :mod:`tmem_host.models`, its complaints as InvalidInput."""
    from pydantic import ValidationError

    from tmem_host import models
    from tmem_host.state import first_error

    try:
        return getattr(models, model)(**fields)
    except ValidationError as error:
        raise InvalidInput(first_error(error), "see the command's --help") from error


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
