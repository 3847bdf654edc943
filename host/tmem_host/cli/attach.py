# SPDX-License-Identifier: Apache-2.0
"""``tmem vm attach`` and ``detach``: libvirt domains that somebody else defined."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tmem_host.cli.options import Json, State, client, size

if TYPE_CHECKING:
    from tmem_host.vm.libvirt_attach import Outcome
    from tmem_host.vm.libvirt_link import Link

Domain = Annotated[str, typer.Argument(help="The domain's name or uuid.", metavar="DOMAIN")]
Connect = Annotated[
    str, typer.Option("--connect", "-c", metavar="URI", envvar="LIBVIRT_DEFAULT_URI", help="Where libvirtd answers.")
]
NextStart = Annotated[
    bool, typer.Option("--next-start", help="Leave a running domain as it is: it holds from its next start on.")
]
_SYSTEM = "qemu:///system"


def attach(
    domain: Domain,
    connect: Connect = _SYSTEM,
    vm: Annotated[
        str | None, typer.Option("--vm", metavar="NAME", show_default="the domain's name", help="The agent's VM.")
    ] = None,
    size_bytes: Annotated[
        int | None,
        typer.Option(
            "--size", parser=size, metavar="SIZE", show_default="the domain's memory", help="Of the swap device."
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Shut a running domain down and start it, if that is what it takes.")
    ] = False,
    next_start: NextStart = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Give a libvirt domain a swap disk and a port for the guest's agent; its VM is made unless it is there."""
    from tmem_host.vm.libvirt_attach import Request
    from tmem_host.vm.libvirt_attach import attach as attach_domain

    request = Request(vm, size_bytes, restart=restart, next_start=next_start)
    with _link(connect) as link:
        done = attach_domain(client(state), link, domain, request)
    if not _json(done, as_json):
        print(f"{done.domain}: disk {done.disk}, serial {done.serial}, served by VM {done.vm}; {_WHEN[done.when]}")
        print(f"In the guest, swap on the disk with that serial: {_IN_GUEST}")


def detach(
    domain: Domain,
    connect: Connect = _SYSTEM,
    force: Annotated[bool, typer.Option("--force", help="The guest has no pages there, or may lose them.")] = False,
    next_start: NextStart = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Take back what attach gave: the domain's XML is again what it was."""
    from tmem_host.vm.libvirt_attach import detach as detach_domain

    with _link(connect) as link:
        done = detach_domain(client(state), link, domain, force=force, next_start=next_start)
    if not _json(done, as_json):
        end = "is removed" if done.removed else "stays; 'tmem vm remove' forgets it"
        print(f"{done.domain}: detached, {_WHEN[done.when]}; VM {done.vm} {end}")


_WHEN = {
    "now": "it holds now",
    "restarted": "the domain was restarted, it holds now",
    "next start": "it holds when the domain starts next",
}
_IN_GUEST = "python3 -m tmem_guest run, or swapon by hand (docs/attach-libvirt.md)"


@contextmanager
def _link(uri: str) -> Iterator[Link]:
    from tmem_host.vm.libvirt_link import Link

    link = Link(uri)
    try:
        yield link
    finally:
        link.close()


def _json(done: Outcome, as_json: bool) -> bool:
    """Whether it was printed as JSON."""
    if as_json:
        from dataclasses import asdict

        from tmem_host.cli.output import print_json

        print_json(asdict(done))
    return as_json
