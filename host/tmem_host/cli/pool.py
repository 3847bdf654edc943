# SPDX-License-Identifier: Apache-2.0
"""``tmem pool``: the store's pools."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tmem_host.cli.options import CODECS, Json, State, client, either, names, size, uuid_of, valid

app = typer.Typer(no_args_is_help=True, help="List, make, flush, save, restore and destroy pools.")

Number = Annotated[int, typer.Argument(help="The pool's number.", metavar="POOL", min=0)]
Vm = Annotated[
    str | None, typer.Option("--vm", help="Only those that this VM uses.", autocompletion=names, metavar="NAME")
]
LosePages = Annotated[
    bool, typer.Option("--lose-pages", help="Also when persistent pages go, which may be the only copies.")
]


@app.command("list", epilog="Example: tmem pool list --vm web")
def list_(vm: Vm = None, state: State = None, as_json: Json = False) -> None:
    """Every pool: its VMs, what it holds, how it is compressed."""
    from tmem_host.cli.output import print_json, print_pools

    pools = client(state).list_pools(vm)
    if as_json:
        print_json({"pools": [pool.model_dump(mode="json") for pool in pools]})
    else:
        print_pools(pools)


@app.command(epilog="Example: tmem pool show 0")
def show(number: Number, state: State = None, as_json: Json = False) -> None:
    """One pool, with counters and latencies."""
    _print(client(state).get_pool(number), as_json)


@app.command(
    epilog="Examples: tmem pool create web --ephemeral; tmem pool create web --size 1G; "
    "tmem pool create web --ephemeral --uuid 00112233-4455-6677-8899-aabbccddeeff"
)
def create(
    vm: Annotated[str, typer.Argument(help="The VM that it is for.", autocompletion=names, metavar="VM")],
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Its pages may be evicted.")] = False,
    size_bytes: Annotated[
        int | None, typer.Option("--size", parser=size, metavar="SIZE", help="A dense pool of that size: a swap disk.")
    ] = None,
    uuid: Annotated[str | None, typer.Option("--uuid", help="Of a shared pool, made or joined.")] = None,
    codec: Annotated[str, typer.Option("--codec", parser=either(CODECS), metavar="|".join(CODECS))] = "lz4",
    page_size: Annotated[int, typer.Option("--page-size", parser=size, metavar="SIZE", help="4K to 2M.")] = 4096,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a pool for a VM, or join it to a shared one."""
    if size_bytes is not None and (page_size == 0 or size_bytes % page_size):
        raise typer.BadParameter("--size is a multiple of --page-size")
    wanted = valid(
        "PoolCreate",
        vm=vm,
        persistent=not ephemeral,
        pages=None if size_bytes is None else size_bytes // page_size,
        uuid=None if uuid is None else uuid_of(uuid),
        codec=codec,
        page_size=page_size,
    )
    _print(client(state).create_pool(wanted), as_json)


@app.command("set", epilog="Examples: tmem pool set 3 --codec none; tmem pool set 3 --codec zstd")
def set_(
    number: Number,
    codec: Annotated[str, typer.Option("--codec", parser=either(CODECS), metavar="|".join(CODECS))],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Turn compression on, off (none) or to another codec, for what is put from now on."""
    _print(client(state).update_pool(number, valid("PoolUpdate", codec=codec)), as_json)


@app.command(epilog="Example: tmem pool flush 3")
def flush(number: Number, lose_pages: LosePages = False, state: State = None, as_json: Json = False) -> None:
    """Remove all pages; the pool stays."""
    from tmem_host.cli.output import print_json

    pages = client(state).flush_pool(number, lose_pages=lose_pages)
    if as_json:
        print_json({"pages": pages})
    else:
        print(f"{pages} pages flushed")


@app.command(epilog="Example: tmem pool save 0 web-swap --freeze")
def save(
    number: Number,
    name: Annotated[str, typer.Argument(help="Of the save.", metavar="NAME")],
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Refuse the VM's puts while the last changes are written.")
    ] = False,
    passes: Annotated[int, typer.Option(min=1, max=100, help="Over the pool at most, while its guest goes on.")] = 4,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Write a persistent pool to a file of the agent's state folder, while its guest goes on."""
    from tmem_host.cli.output import print_json
    from tmem_host.config import format_size

    saved = client(state).save_pool(number, valid("SaveCreate", name=name, freeze=freeze, passes=passes))
    if as_json:
        print_json(saved.model_dump(mode="json"))
    else:
        size = format_size(saved.bytes)
        print(f"{saved.pages} pages in {saved.passes} passes, {size}, {saved.seconds:.2f} s: {saved.path}")


@app.command(epilog="Example: tmem pool restore 0 web-swap")
def restore(
    number: Number,
    name: Annotated[str, typer.Argument(help="Of the save.", metavar="NAME")],
    lose_pages: LosePages = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Put a save's pages into a pool of the same kind that no guest uses: all of them, or none."""
    from tmem_host.cli.output import print_json

    restored = client(state).restore_pool(number, valid("RestoreFrom", name=name).name, lose_pages=lose_pages)
    if as_json:
        print_json(restored.model_dump(mode="json"))
    else:
        print(f"{restored.pages} pages restored, {restored.seconds:.2f} s")


@app.command(epilog="Example: tmem pool saves")
def saves(state: State = None, as_json: Json = False) -> None:
    """List what was saved."""
    from tmem_host.cli.output import print_json, print_table
    from tmem_host.config import format_size

    found = client(state).list_saves()
    if as_json:
        print_json({"saves": [save.model_dump(mode="json") for save in found]})
    else:
        rows = [(s.name, format_size(s.bytes), f"{s.made.astimezone():%Y-%m-%d %H:%M}", s.path) for s in found]
        print_table(("SAVE", "SIZE", "MADE", "FILE"), rows, numbers=(1,))


@app.command(epilog="Example: tmem pool forget web-swap")
def forget(name: Annotated[str, typer.Argument(help="Of the save.", metavar="NAME")], state: State = None) -> None:
    """Remove a save."""
    client(state).delete_save(name)


@app.command(epilog="Examples: tmem pool destroy 3; tmem pool destroy 4 --vm web")
def destroy(
    number: Number,
    vm: Annotated[
        str | None, typer.Option("--vm", help="Who leaves a shared pool.", autocompletion=names, metavar="NAME")
    ] = None,
    lose_pages: LosePages = False,
    state: State = None,
) -> None:
    """Destroy a pool that is no VM's device; a shared one goes with its last VM."""
    client(state).destroy_pool(number, vm=vm, lose_pages=lose_pages)


def _print(pool: Any, as_json: bool) -> None:
    from tmem_host.cli.output import print_json, print_pool

    if as_json:
        print_json(pool.model_dump(mode="json"))
    else:
        print_pool(pool)
