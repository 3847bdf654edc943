# SPDX-License-Identifier: Apache-2.0
"""``tmem vm``: what the agent's VMs are, and what they may take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmem_host.cli.attach import attach, detach
from tmem_host.cli.options import CODECS, Json, Name, State, client, either, size, uuid_of, valid

if TYPE_CHECKING:
    from tmem_host.client import AgentClient
    from tmem_host.models import VmInfo

app = typer.Typer(no_args_is_help=True, help="Add, list, change, freeze and remove VMs.")
app.command(epilog="Examples: tmem vm attach web; tmem vm attach db --size 8G --restart")(attach)
app.command(epilog="Example: tmem vm detach web")(detach)

CHANNELS = ("blk", "tmem", "serial")
SOURCES = ("virtio-blk", "swap-disk", "frontswap", "none")

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
    kernel: Annotated[
        str | None, typer.Option(help="Run a guest of this kernel on it: 5.10, 6.1 or 6.12; 'tmem vm start' boots it.")
    ] = None,
    memory: Annotated[int, typer.Option(min=64, help="With --kernel: the guest's memory in MiB.")] = 256,
    vcpus: Annotated[int, typer.Option(min=1, max=64, help="With --kernel: its vCPUs.")] = 1,
    accel: Annotated[str, typer.Option(parser=either(("auto", "kvm", "tcg")), metavar="auto|kvm|tcg")] = "auto",
    source: Annotated[
        str | None,
        typer.Option(
            parser=either(SOURCES),
            metavar="|".join(SOURCES),
            show_default="by the channel",
            help="With --kernel: what swaps in the guest.",
        ),
    ] = None,
    swap_mib: Annotated[int, typer.Option(min=16, help="With a source of tmem.ko: MiB that it may hold.")] = 512,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a VM: its place in the store, and a socket for each channel to its monitor.

    With --kernel the agent itself runs a guest on it, which ends with the agent.
    """
    from tmem_host.cli.output import print_how, print_json, print_vm

    if ("blk" in channel) != (size_bytes is not None):
        raise typer.BadParameter("--size is for the swap device of --channel blk, which needs it")
    machine = None
    if kernel is not None:
        machine = {
            "kernel": kernel,
            "memory_mib": memory,
            "vcpus": vcpus,
            "accel": accel,
            "source": source or ("virtio-blk" if "blk" in channel else "swap-disk"),
            "swap_mib": swap_mib,
        }
    wanted = valid(
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
        machine=machine,
    )
    made = client(state).create_vm(wanted)
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    print_vm(made)
    if kernel is None:
        print_how(made)
    else:
        print(f"\nBoot its guest: tmem vm start {name}")


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
    version: Annotated[
        str | None,
        typer.Option("--if-version", help="Only if the settings are still those of that version: see show --json."),
    ] = None,
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
    _print(client(state).update_vm(name, valid("VmUpdate", **change), version=version), as_json)


@app.command(epilog="Example: tmem vm freeze web")
def freeze(name: Name, state: State = None, as_json: Json = False) -> None:
    """Refuse puts and obey flushes, until thawed."""
    _print(client(state).freeze_vm(name), as_json)


@app.command(epilog="Example: tmem vm thaw web")
def thaw(name: Name, state: State = None, as_json: Json = False) -> None:
    """End a freeze."""
    _print(client(state).thaw_vm(name), as_json)


@app.command(epilog="Example: tmem vm start web")
def start(
    name: Name,
    wait: Annotated[bool, typer.Option(help="Return when it runs, or has failed.")] = True,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Boot the guest of a VM that was made with --kernel."""
    agent = client(state)
    _print(_settled(agent, agent.start_vm(name), wait), as_json)


@app.command(epilog="Example: tmem vm stop web")
def stop(
    name: Name,
    wait: Annotated[bool, typer.Option(help="Return when it has stopped.")] = True,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Ask the guest that the agent runs to power off, and insist after some seconds."""
    agent = client(state)
    _print(_settled(agent, agent.stop_vm(name), wait), as_json)


@app.command(epilog="Example: tmem vm console web | tail -20")
def console(
    name: Name,
    tail: Annotated[int, typer.Option("--bytes", min=1, max=1 << 20, help="How much of its end.")] = 65536,
    state: State = None,
) -> None:
    """What the serial console of the agent's own guest said since it was started last."""
    # A guest's text on a terminal: no escape sequence of it reaches the terminal.
    text = client(state).console(name, tail)
    print("".join(c if c == "\n" or c == "\t" or c.isprintable() else "" for c in text), end="")


@app.command(epilog="Examples: tmem vm channel web; tmem vm channel web --kind serial --json")
def channel(
    name: Name,
    kind: Annotated[
        str | None, typer.Option("--kind", parser=either(CHANNELS), metavar="|".join(CHANNELS), help="Else the first.")
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """One channel of a VM, with all that it counts."""
    from tmem_host.cli.output import print_channel, print_json

    found = client(state).channel(name, kind)  # type: ignore[arg-type]  # by its parser
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_channel(found)


@app.command(epilog="Example: tmem vm guest web")
def guest(name: Name, state: State = None, as_json: Json = False) -> None:
    """What the guest last said of itself, over its channel serial."""
    from tmem_host.cli.output import print_guest, print_json

    report = client(state).guest(name)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_guest(report)


@app.command(epilog="Example: tmem vm share web 00112233-4455-6677-8899-aabbccddeeff")
def share(
    name: Name,
    uuid: Annotated[str | None, typer.Argument(help="The shared pool's uuid.", show_default=False)] = None,
    forbid: Annotated[bool, typer.Option("--forbid", help="No longer. What it joined stays joined.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Let a VM make or join a shared pool; without a uuid: list those it may."""
    from tmem_host.cli.output import print_json

    agent = client(state)
    if uuid is not None:
        agent.authorise(name, uuid_of(uuid), allow=not forbid)
    uuids = agent.shared(name)
    if as_json:
        print_json({"uuids": uuids})
    else:
        print("".join(f"{one}\n" for one in uuids), end="")


def _settled(agent: AgentClient, vm: VmInfo, wait: bool) -> VmInfo:
    """The VM when its guest neither starts nor stops any more.  Raises VmFailed when it failed."""
    import time

    from tmem_host.errors import VmFailed

    while wait and vm.machine is not None and vm.machine.state in ("starting", "stopping"):
        time.sleep(0.2)
        vm = agent.get_vm(vm.name)
    if vm.machine is not None and vm.machine.state == "failed":
        raise VmFailed(f"the guest of {vm.name} failed: {vm.machine.reason}")
    return vm


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
