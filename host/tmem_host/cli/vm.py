# SPDX-License-Identifier: Apache-2.0
"""``tmem vm``: what the agent's VMs are, and what they may take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tmem_host.cli.options import CODECS, Json, Name, State, client, either, size

app = typer.Typer(no_args_is_help=True, help="Add, list, change, freeze and remove VMs.")

CHANNELS = ("blk", "tmem", "serial")

Size = Annotated[
    int | None, typer.Option("--size", parser=size, metavar="SIZE", help="Size of the swap device (blk), as 2G.")
]
Channel = Annotated[
    list[str],
    typer.Option(
        "--channel",
        parser=either(CHANNELS),
        metavar="|".join(CHANNELS),
        help="Once for each. blk: a swap device, for any guest. tmem, serial: requests of a guest with the module, by "
        "a device of the patched QEMU, or by a port of any.",
    ),
]
Codec = Annotated[str, typer.Option("--codec", parser=either(CODECS), metavar="|".join(CODECS))]
Poll = Annotated[int, typer.Option("--poll-us", min=0, max=10_000, help="µs to spin before sleeping.")]
Reservation = Annotated[
    int | None,
    typer.Option(
        "--reservation", parser=size, metavar="SIZE", show_default="the device's worst case", help="Promised."
    ),
]
Cap = Annotated[int | None, typer.Option("--cap", parser=size, metavar="SIZE", show_default="none", help="At most.")]
Weight = Annotated[int, typer.Option("--weight", min=1, max=10_000, help="Who is evicted last.")]


@app.command(
    epilog="Examples: tmem vm add web --size 2G --cap 1G; tmem vm add db --channel tmem --cap 4G; "
    "tmem vm add all --channel blk --channel serial --size 2G"
)
def add(
    name: Annotated[str, typer.Argument(help="The VM's name: a-z, 0-9, dot, underscore, dash.", metavar="NAME")],
    size_bytes: Size = None,
    channel: Channel = ["blk"],  # noqa: B006 - typer copies it
    codec: Codec = "lz4",
    queues: Annotated[int, typer.Option(min=1, max=16, help="Request queues: one a vCPU is plenty.")] = 2,
    poll_us: Poll = 0,
    reservation: Reservation = None,
    cap: Cap = None,
    weight: Weight = 100,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a VM: its place in the store, and a socket for each channel to its monitor."""
    from tmem_host.cli.output import print_how, print_json, print_vm

    if ("blk" in channel) != (size_bytes is not None):
        raise typer.BadParameter("--size is for the swap device of --channel blk, which needs it")
    wanted = _valid(
        "VmCreate",
        name=name,
        size_bytes=size_bytes,
        channels=channel,
        codec=codec,
        queues=queues,
        poll_us=poll_us,
        reservation=reservation,
        cap=cap,
        weight=weight,
    )
    made = client(state).create_vm(wanted)
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    print_vm(made)
    print_how(made)


@app.command("list", epilog="Example: tmem vm list --json | jq '.vms[].name'")
def list_(state: State = None, as_json: Json = False) -> None:
    """Every VM: pages, host memory held, quota."""
    from tmem_host.cli.output import print_json, print_vms

    vms = client(state).list_vms()
    if as_json:
        print_json({"vms": [vm.model_dump(mode="json") for vm in vms]})
    else:
        print_vms(vms)


@app.command(epilog="Example: tmem vm show web")
def show(name: Name, state: State = None, as_json: Json = False) -> None:
    """One VM with its counters."""
    _print(client(state).get_vm(name), as_json)


@app.command("set", epilog="Examples: tmem vm set web --cap 1G --weight 50; tmem vm set web --no-cap")
def set_(
    name: Name,
    codec: Annotated[str | None, typer.Option("--codec", parser=either(CODECS), metavar="|".join(CODECS))] = None,
    poll_us: Annotated[int | None, typer.Option("--poll-us", min=0, max=10_000, help="µs to spin.")] = None,
    reservation: Annotated[int | None, typer.Option("--reservation", parser=size, metavar="SIZE")] = None,
    cap: Annotated[int | None, typer.Option("--cap", parser=size, metavar="SIZE", help="At most.")] = None,
    no_cap: Annotated[bool, typer.Option("--no-cap", help="Lift the cap.")] = False,
    weight: Annotated[int | None, typer.Option("--weight", min=1, max=10_000)] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Change quota, codec or polling while the guest runs."""
    if cap is not None and no_cap:
        raise typer.BadParameter("--cap and --no-cap exclude each other")
    given: dict[str, Any] = {
        "codec": codec,
        "poll_us": poll_us,
        "reservation": reservation,
        "cap": cap,
        "weight": weight,
    }
    change = {key: value for key, value in given.items() if value is not None}
    if no_cap:
        change["cap"] = None
    if not change:
        raise typer.BadParameter("nothing to change: give --cap, --weight, --reservation, --codec or --poll-us")
    _print(client(state).update_vm(name, _valid("VmUpdate", **change)), as_json)


@app.command(epilog="Example: tmem vm freeze web")
def freeze(name: Name, state: State = None, as_json: Json = False) -> None:
    """Refuse puts and obey flushes, until thawed."""
    _print(client(state).freeze_vm(name), as_json)


@app.command(epilog="Example: tmem vm thaw web")
def thaw(name: Name, state: State = None, as_json: Json = False) -> None:
    """End a freeze."""
    _print(client(state).thaw_vm(name), as_json)


@app.command(epilog="Example: tmem vm remove web")
def remove(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also when it has pages: its guest loses them.")] = False,
    state: State = None,
) -> None:
    """Forget a VM and its pages."""
    from tmem_host.errors import Conflict

    agent = client(state)
    found = agent.get_vm(name)
    if found.pages and not force:
        raise Conflict(
            f"{name} has {found.pages} pages in the store",
            "swapoff in the guest or stop it, or add --force to lose them",
        )
    agent.remove_vm(name)


def _print(vm: Any, as_json: bool) -> None:
    from tmem_host.cli.output import print_json, print_vm

    if as_json:
        print_json(vm.model_dump(mode="json"))
    else:
        print_vm(vm)


def _valid(model: str, **fields: Any) -> Any:
    """A model of :mod:`tmem_host.models`, its complaints as InvalidInput."""
    from pydantic import ValidationError

    from tmem_host import models
    from tmem_host.errors import InvalidInput
    from tmem_host.state import first_error

    try:
        return getattr(models, model)(**fields)
    except ValidationError as error:
        raise InvalidInput(first_error(error), "see 'tmem vm --help'") from error
