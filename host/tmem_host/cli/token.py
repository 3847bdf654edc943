# SPDX-License-Identifier: Apache-2.0
"""``tmem token``: who may use the API over TCP.  Works on the state folder, whether an agent runs or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmem_host.cli.options import Json, State, either, remote

if TYPE_CHECKING:
    from tmem_host.tokens import Tokens

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens for the API over TCP.")

SCOPES = ("read", "operate", "admin")
Name = Annotated[str, typer.Argument(help="What the audit log calls its owner.", metavar="NAME")]


@app.command(epilog="Examples: tmem token add grafana; tmem token add alice --scope operate > alice.token")
def add(
    name: Name,
    scope: Annotated[
        str,
        typer.Option(
            parser=either(SCOPES),
            metavar="|".join(SCOPES),
            help="read sees; operate changes, too; admin does what cannot be taken back, too.",
        ),
    ] = "read",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it. It cannot be shown again: only its hash is kept."""
    from tmem_host.cli.output import print_json

    value = _tokens(state).add(name, scope)
    if as_json:
        print_json({"name": name, "scope": scope, "token": value})
    else:
        print(value)


@app.command("list", epilog="Example: tmem token list")
def list_(state: State = None, as_json: Json = False) -> None:
    """Every token: its name, its scope, when it was made."""
    from tmem_host.cli.output import print_json, print_table

    tokens = _tokens(state).list_()
    if as_json:
        print_json({"tokens": [token.model_dump(mode="json", exclude={"sha256"}) for token in tokens]})
    else:
        rows = [(token.name, token.scope, f"{token.made.astimezone():%Y-%m-%d %H:%M}") for token in tokens]
        print_table(("TOKEN", "SCOPE", "MADE"), rows)


@app.command(epilog="Example: tmem token revoke alice")
def revoke(name: Name, state: State = None) -> None:
    """Let nobody in with it any more, from the next request on."""
    _tokens(state).revoke(name)


def _tokens(state: Path | None) -> Tokens:
    from tmem_host.config import state_dir
    from tmem_host.errors import InvalidInput
    from tmem_host.tokens import Tokens

    if remote.url is not None:
        raise InvalidInput("tokens are made on the agent's own host", "leave --host and TMEM_HOST out, give --state")
    return Tokens((state or state_dir()).absolute())
