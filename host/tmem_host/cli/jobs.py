# SPDX-License-Identifier: Apache-2.0
"""``tmem run``: benches as jobs of the agent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmem_host.cli.options import Json, State, client, valid

if TYPE_CHECKING:
    from tmem_host.client import AgentClient
    from tmem_host.models import RunInfo

app = typer.Typer(
    no_args_is_help=True,
    help="Run benches on the agent's host, one at a time, and look at what came of them.",
)

Number = Annotated[int, typer.Argument(help="The run's number.", metavar="RUN", min=1)]


@app.command(
    epilog="Examples: tmem run start store --full --set parts=cost --no-follow; tmem run start guest --set vm=web"
)
def start(
    bench: Annotated[
        str, typer.Argument(help="all, api, channel, density, exit, guest, store or swap.", metavar="BENCH")
    ],
    full: Annotated[bool, typer.Option("--full", help="All rounds and sizes, not a first look.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of arm order and synthetic pages.")] = 1,
    arms: Annotated[str | None, typer.Option("--arms", help="Only these arms, separated by commas.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often every arm runs.")] = None,
    extra: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other option of the bench.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show how far it is, up to its end.")] = True,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Queue a bench, and follow it."""
    settings = {}
    for text in extra or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {text} is not NAME=VALUE")
        settings[name] = value
    wanted = valid("RunCreate", bench=bench, quick=not full, seed=seed, arms=arms, rounds=rounds, settings=settings)
    agent = client(state)
    made = agent.create_run(wanted)
    if follow:
        _follow(agent, made.id)
        made = agent.get_run(made.id)
    _print(made, as_json)
    if follow:
        raise typer.Exit(0 if made.state == "done" else 1)


@app.command("list", epilog="Example: tmem run list --json")
def list_(
    number: Annotated[int, typer.Option("-n", min=1, max=1000, help="So many, the latest.")] = 20,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Runs, the latest first."""
    from tmem_host.cli.output import print_json, print_runs

    runs = client(state).list_runs(number)
    if as_json:
        print_json({"runs": [run.model_dump(mode="json") for run in runs]})
    else:
        print_runs(runs)


@app.command(epilog="Example: tmem run show 3")
def show(number: Number, state: State = None, as_json: Json = False) -> None:
    """One run: its state, and how far it is."""
    _print(client(state).get_run(number), as_json)


@app.command(epilog="Example: tmem run follow 3")
def follow(number: Number, state: State = None) -> None:
    """Show how far a run is, and what it prints, up to its end."""
    _follow(client(state), number)


@app.command(epilog="Example: tmem run cancel 3")
def cancel(number: Number, state: State = None, as_json: Json = False) -> None:
    """End a run in good order, or take it out of the queue."""
    _print(client(state).cancel_run(number), as_json)


@app.command(epilog="Example: tmem run log 3")
def log(number: Number, state: State = None) -> None:
    """What a run printed."""
    sys.stdout.write(client(state).run_log(number))


@app.command(epilog="Example: tmem run results 3 | jq '.results[0].records | length'")
def results(number: Number, state: State = None) -> None:
    """What a run measured, as JSON."""
    from tmem_host.cli.output import print_json

    print_json({"results": client(state).run_results(number)})


@app.command(epilog="Example: tmem run report 3 --out report.html")
def report(
    number: Number,
    out: Annotated[Path | None, typer.Option("--out", dir_okay=False, help="Write it there [default: stdout].")] = None,
    state: State = None,
) -> None:
    """A run's report, one HTML page."""
    from tmem_host.state import os_error

    content = client(state).run_report(number)
    if out is None:
        sys.stdout.write(content.decode("utf-8", "replace"))
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        raise os_error(error, f"{out} cannot be written") from error


def _follow(agent: AgentClient, number: int) -> None:
    """Shows events on stderr.  A connection that ends before the run does is taken up again."""
    from tmem_host.errors import Unavailable

    seen, lost = 0, 0
    while True:
        try:
            for seq, kind, data in agent.follow_run(number, seen):
                seen, lost = seq, 0
                if text := _line(kind, data):
                    print(text, file=sys.stderr, flush=True)
        except Unavailable:
            lost += 1
            if lost > 3:
                raise
            continue
        if agent.get_run(number).ended is not None:
            return


def _line(kind: str, data: dict[str, Any]) -> str:
    """An event as a line; empty for none."""
    if kind == "state":
        return f"{data['state']}{': ' + data['reason'] if data.get('reason') else ''}"
    if kind == "progress":
        count = f"{min(data['done'] + 1, data['steps'])}/{data['steps']} " if data["steps"] else ""
        return f"  {count}{data['step']}{' · ' + data['detail'] if data['detail'] else ''}"
    return f"  {data.get('text', '')}"


def _print(run: RunInfo, as_json: bool) -> None:
    from tmem_host.cli.output import print_json, print_run

    if as_json:
        print_json(run.model_dump(mode="json"))
    else:
        print_run(run)
