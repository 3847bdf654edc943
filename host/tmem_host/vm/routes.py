# SPDX-License-Identifier: Apache-2.0
"""Routes: a source in the guest and a channel into its host. Which exist for a kernel, and how one is set up.

A route has two ends. :func:`host_end` makes the host's and says what the VM must have for it; :func:`swap_on` makes the
guest's, in a guest that carries tmem.ko, and :func:`swap_off` takes it down again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from tmem_host.client import AgentClient, temporary_vm
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.core import worst_case_bytes
from tmem_host.errors import InvalidInput
from tmem_host.models import ChannelKind, Codec, VmCreate
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.images import KernelImage, guest_image
from tmem_host.vm.modulebuild.module import guest_module, with_module
from tmem_host.vm.qemu import comma
from tmem_host.vm.spec import Doorbell, InlineTmem, VhostUserBlk, VhostUserTmem

Source = Literal["virtio-blk", "swap-disk", "frontswap", "cleancache"]
Channel = Literal["vhost-user-blk", "vhost-user-tmem", "virtio-tmem", "virtio-serial", "ivshmem"]

#: Guest kernels of the routes; cleancache needs one that was built with it.
KERNELS: Final = ("5.10", "5.10-cleancache", "6.1", "6.12")
#: The store's codec, unless somebody wants another.
CODEC: Final[Codec] = "lz4"

#: Channels that the host agent serves, by its names for them.
_SERVED: Final[dict[Channel, ChannelKind]] = {
    "vhost-user-blk": "blk",
    "vhost-user-tmem": "tmem",
    "virtio-serial": "serial",
}
#: Why a kernel lacks a source: its history, and how the distribution configures it.
_WITHOUT: Final[dict[Source, dict[str, str]]] = {
    "frontswap": {
        "6.1": "6.1 does not export frontswap_register_ops, so no module can register",
        "6.12": "frontswap left the kernel in 6.6",
    },
    "cleancache": {
        "5.10": "the distribution builds 5.10 without CONFIG_CLEANCACHE; 5.10-cleancache is built with it",
        "6.1": "cleancache left the kernel in 5.17",
        "6.12": "cleancache left the kernel in 5.17",
    },
}


@dataclass(frozen=True, order=True)
class Route:
    """A source and a channel."""

    source: Source
    channel: Channel

    def __str__(self) -> str:
        return f"{self.source} over {self.channel}"


def routes() -> list[Route]:
    """Every pair, also those that cannot be: :func:`missing` says why."""
    return [Route(source, channel) for source in get_args(Source) for channel in get_args(Channel)]


def missing(route: Route, series: str) -> str:
    """Why a guest kernel cannot have the route; empty if it can."""
    if series not in KERNELS:
        raise InvalidInput(f"there is no guest kernel {series!r}", f"the choice is {', '.join(KERNELS)}")
    if (route.source == "virtio-blk") != (route.channel == "vhost-user-blk"):
        if route.source == "virtio-blk":
            return "the stock driver speaks to a disk: vhost-user-blk is its only channel"
        return "vhost-user-blk carries reads and writes of a disk, not the tmem ABI"
    if route == Route("cleancache", "ivshmem"):
        return "shared memory without a host behind it keeps one swap pool, and cleancache needs ephemeral ones"
    return _WITHOUT.get(route.source, {}).get(series, "")


def image_of(series: str) -> KernelImage:
    """The guest image with tmem.ko in it. Raises NotFound for what is not built."""
    return with_module(guest_image(series), guest_module(series))


@dataclass(frozen=True)
class Options:
    """How a channel is to be; what does not concern one is ignored by it."""

    swap_mib: int
    vcpus: int = 1
    codec: Codec = CODEC
    #: vhost-user: microseconds that the server spins before it sleeps.
    poll_us: int = 0
    #: virtio-tmem: how the guest kicks, whether by ioeventfd, and whether QEMU's big lock is held.
    doorbell: Doorbell = "mmio"
    ioeventfd: bool = False
    bql: bool = False
    #: swap-disk: whether the kernel is told that the disk is synchronous.
    synchronous: bool = True

    @property
    def limit(self) -> int:
        """Bytes of host memory that the swap device takes at most, with room for what else the VM makes."""
        return worst_case_bytes(self.swap_mib * MIB // PAGE_SIZE) + 64 * MIB


@contextlib.asynccontextmanager
async def host_end(
    route: Route, options: Options, name: str, folder: Path, client: AgentClient | None
) -> AsyncIterator[dict[str, Any]]:
    """Fields of the :class:`~tmem_host.vm.spec.VmSpec` called ``name``, whose other end is there while the block runs.

    ``client``: an agent with room for ``options.limit``, for the channels that it serves. ``folder``: on tmpfs, for the
    others' memory.
    """
    kind = _SERVED.get(route.channel)
    if kind is not None:
        if client is None:
            raise InvalidInput(f"{route.channel} is served by the host agent", "start one")
        async with _served(kind, options, name, client) as fields:
            yield fields
    elif route.channel == "virtio-tmem":
        arena = folder / f"{name}.arena"
        device = InlineTmem(
            arena,
            options.limit,
            queues=options.vcpus,
            doorbell=options.doorbell,
            ioeventfd=options.ioeventfd,
            bql=options.bql,
        )
        try:
            yield {"tmem": (device,)}
        finally:
            arena.unlink(missing_ok=True)
    else:
        shared = folder / f"{name}.shared"
        # A PCI BAR is a power of two.
        size = 1 << (options.swap_mib * MIB - 1).bit_length()
        memory = f"memory-backend-file,id=shared,share=on,mem-path={comma(shared)},size={size}"
        try:
            yield {"extra_args": ("-object", memory, "-device", "ivshmem-plain,memdev=shared")}
        finally:
            shared.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _served(kind: ChannelKind, options: Options, name: str, client: AgentClient) -> AsyncIterator[dict[str, Any]]:
    wanted = VmCreate(
        name=name,
        size_bytes=options.swap_mib * MIB if kind == "blk" else None,
        channels=(kind,),
        codec=options.codec,
        queues=options.vcpus,
        poll_us=options.poll_us,
    )
    async with temporary_vm(client, wanted) as made:
        socket = Path(made.socket)
        if kind == "blk":
            yield {"disks": (VhostUserBlk(socket, queues=options.vcpus, serial=name),)}
        elif kind == "tmem":
            yield {"tmem": (VhostUserTmem(socket, queues=options.vcpus),)}
        else:
            yield {"pages_port": socket}


def disk_of(route: Route) -> str | None:
    """The guest's name of the swap device; None: a virtio disk, known by its serial."""
    if route.source == "virtio-blk":
        return None
    return "tmemf0" if route.source == "frontswap" else "tmem0"


async def module_load(vm: DirectVm, route: Route, options: Options) -> None:
    """Loads tmem.ko for the route and brings its channel up. Nothing to do for the stock driver."""
    if route.source == "virtio-blk":
        return
    parameters: dict[str, str | int | bool] = {
        "channel": {"virtio-serial": "serial", "ivshmem": "local"}.get(route.channel, "virtio"),
        "frontswap_mib" if route.source == "frontswap" else "blkdev_mib": options.swap_mib,
    }
    if route.channel == "ivshmem":
        parameters["local_mib"] = 0
    if route.source == "cleancache":
        parameters["cleancache"] = True
    if not options.synchronous:
        parameters["blkdev_sync"] = False
    await vm.agent.module_load("tmem", timeout=120.0, **parameters)
    if route.channel == "virtio-serial":
        await vm.agent.lend()


async def swap_on(vm: DirectVm, route: Route, options: Options, *, page_cluster: int | None = None) -> None:
    """Makes the route the guest's swap; the module must be there (:func:`module_load`)."""
    disk = disk_of(route)
    if disk is None:
        await vm.agent.swap_on(vm.spec.name, require_discard=True, page_cluster=page_cluster)
    else:
        # The module hears of freed slots from the kernel itself.
        await vm.agent.swap_on(device=disk, discard=False, page_cluster=page_cluster)


async def swap_off(vm: DirectVm, route: Route, *, timeout: float = 300.0) -> float:
    """Ends the swap, which reads every page back; the seconds that took."""
    disk = disk_of(route)
    if disk is None:
        return float((await vm.agent.swap_off(vm.spec.name, timeout=timeout))["seconds"])
    return float((await vm.agent.swap_off(device=disk, discard_after=False, timeout=timeout))["seconds"])


async def module_unload(vm: DirectVm, route: Route) -> None:
    """Takes the channel down and the module out. Nothing to do for the stock driver."""
    if route.source == "virtio-blk":
        return
    if route.channel == "virtio-serial":
        await vm.agent.lend_stop()
    await vm.agent.module_unload()


async def counters(vm: DirectVm, route: Route) -> dict[str, int]:
    """The source's own counters in the guest; none for the stock driver."""
    if route.source == "virtio-blk":
        return {}
    return await source_counters(vm, {"swap-disk": "blkdev"}.get(route.source, route.source))


async def source_counters(vm: DirectVm, name: str) -> dict[str, int]:
    """What tmem.ko counts of a source that it calls ``name``: lines of a name and a number in debugfs."""
    text = await vm.agent.debugfs_read(f"tmem/{name}")
    pairs = (line.split() for line in text.splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2 and words[1].isdigit()}
