# SPDX-License-Identifier: Apache-2.0
"""The tree of commands.  What a command needs is imported when it runs: ``tmem --help`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tmem_host.cli import jobs, pool, token, vm
from tmem_host.cli.hog import hog
from tmem_host.cli.options import Json, State, client, remote, size
from tmem_host.cli.routes import routes
from tmem_host.cli.top import top
from tmem_host.errors import Unavailable
from tmem_host.report.cli import app as report

app = typer.Typer(
    name="tmem",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Transcendent memory for KVM: guests swap, compressed, to their host's memory.",
    epilog="Begin with: tmem serve   then: tmem vm add web --size 2G   and see: tmem doctor",
)
app.add_typer(vm.app, name="vm")
app.add_typer(pool.app, name="pool")
app.add_typer(jobs.app, name="run")
app.add_typer(token.app, name="token")

try:
    from tmem_host.bench.cli import app as bench
except ImportError as missing:
    bench = typer.Typer(help="Measure (not available here).")
    reason = str(missing)

    @bench.callback(invoke_without_command=True)
    def _unavailable() -> None:
        raise Unavailable(f"the benches cannot be loaded: {reason}", "run 'make build'")


app.add_typer(bench, name="bench")
app.add_typer(report, name="report")
app.command(epilog="Example: tmem hog --kernel 6.12 --codec zstd --kill-agent 10")(hog)
app.command(epilog="Examples: tmem top; tmem top --once --json | jq '.vms[0]'")(top)
app.command(epilog="Example: tmem routes --route swap-disk:virtio-tmem --kernel 6.12 --vcpus 2")(routes)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    url: Annotated[
        str | None,
        typer.Option(
            "--host",
            envvar="TMEM_HOST",
            metavar="URL",
            show_default="the agent of --state",
            help="A remote agent, as https://host:7080.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", envvar="TMEM_TOKEN_FILE", dir_okay=False, help="With --host: holds the token."),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file", envvar="TMEM_CA_FILE", dir_okay=False, help="With --host: trust this certificate and no other."
        ),
    ] = None,
) -> None:
    remote.url, remote.token_file, remote.ca_file = url, token_file, ca_file
    if version:
        from tmem_host import __version__

        print(f"tmem {__version__}")
        raise typer.Exit


@app.command(
    epilog="Examples: tmem serve --limit 8G; tmem serve --listen 127.0.0.1:7080; "
    "tmem serve --listen 0.0.0.0:7080 --tls-cert agent.pem --tls-key agent.key"
)
def serve(
    state: State = None,
    arena: Annotated[
        Path | None,
        typer.Option(
            "--arena",
            dir_okay=False,
            show_default="in /dev/shm",
            help="The file that holds the pages. In shared memory: tmpfs or hugetlbfs.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            parser=size,
            metavar="SIZE",
            show_default="half of the host's memory",
            help="Host memory for all VMs together.",
        ),
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Start with the pages that are left when the arena is damaged.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Serve the API over TCP, too, to who has a token."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", dir_okay=False, help="With --listen: certificate chain, in PEM.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", dir_okay=False, help="Its key, in PEM.")] = None,
    insecure_plain: Annotated[
        bool,
        typer.Option("--insecure-plain", help="Let tokens cross a network in plain text: no TLS on a public address."),
    ] = False,
    rate: Annotated[float, typer.Option("--rate", min=0.1, help="Requests a second that one token may send.")] = 100.0,
    parent: Annotated[int | None, typer.Option("--parent", hidden=True)] = None,
) -> None:
    """Run the host agent: the store, a vhost-user-blk socket for every VM, the API.

    Stops on Ctrl-C or SIGTERM. Pages outlive it: started again on the same state folder it goes on where it was, also
    after kill -9.
    """
    from tmem_host.agent import run
    from tmem_host.config import AgentConfig, state_dir

    folder = (state or state_dir()).absolute()
    config = AgentConfig(
        state=folder,
        arena=arena,
        limit=limit,
        accept_loss=accept_loss,
        listen=listen,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure_plain=insecure_plain,
        rate=rate,
    )
    run(config, parent=parent)


@app.command(epilog="Example: tmem store --json")
def store(state: State = None, as_json: Json = False) -> None:
    """What the store holds, of what it may."""
    from tmem_host.cli.output import print_json, print_store

    agent = client(state)
    info = agent.store()
    if as_json:
        print_json({**info.model_dump(mode="json"), **agent.tiers().model_dump(mode="json")})
    else:
        print_store(info)


@app.command(epilog="Example: tmem --host https://far:7080 host")
def host(state: State = None, as_json: Json = False) -> None:
    """The agent's host: what it is, can and cannot do, and what to install there."""
    from tmem_host.cli.output import print_host, print_json

    info = client(state).host()
    if as_json:
        print_json(info.model_dump(mode="json"))
    else:
        print_host(info)


@app.command(epilog="Example: tmem metrics | grep tmem_vm_held_bytes")
def metrics(state: State = None) -> None:
    """What the agent counts, as Prometheus reads it."""
    import sys

    sys.stdout.write(client(state).metrics())


@app.command(epilog="Example: tmem doctor")
def doctor(
    trial: Annotated[bool, typer.Option(help="Boot a small guest to find a working accelerator (seconds).")] = True,
    state: State = None,
    as_json: Json = False,
) -> None:
    """What this host can and cannot do, and what to install."""
    from tmem_host.cli.output import print_json
    from tmem_host.doctor import examine, print_findings

    findings = examine(state, trial=trial)
    if as_json:
        print_json({"findings": [finding.model_dump(mode="json") for finding in findings]})
    else:
        print_findings(findings)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(Unavailable.exit_code)
