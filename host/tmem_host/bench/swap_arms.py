# SPDX-License-Identifier: Apache-2.0
"""The arms of the swap bench: where a guest's swap may be, what each needs, and which run when nobody chooses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from tmem_host.bench.results import Scalar
from tmem_host.bench.runner import Arm
from tmem_host.errors import InvalidInput
from tmem_host.models import Codec
from tmem_host.vm.routes import CODEC, Channel, Route
from tmem_host.vm.spec import Doorbell

#: Serials of the stock disks; the agent gives its device the name of the VM.
TMEM, DIRECT, CACHED, NULL, CORPUS = "swap-bench", "disk-none", "disk-writeback", "null", "corpus"
ZRAM: Final = "zram"
#: Channels whose other end is the host agent.
SERVED: Final[frozenset[Channel]] = frozenset({"vhost-user-blk", "vhost-user-tmem", "virtio-serial"})
MAIN: Final = "main"

Where = Literal["host memory", "disk", "guest memory", ""]


@dataclass(frozen=True)
class Device:
    """Where an arm's pages go, and how. ``route``: through tmem.ko, or by the stock driver to the agent's disk."""

    serial: str = ""
    """Of a stock virtio disk, or zram."""
    codec: Codec | None = None
    poll_us: int = 0
    verified: bool = True
    where: Where = ""
    route: Route | None = None
    synchronous: bool = True
    doorbell: Doorbell = "mmio"
    ioeventfd: bool = False
    apart: bool = False
    """In a guest of its own, whatever it is."""

    @property
    def by_module(self) -> bool:
        """Whether the guest needs tmem.ko."""
        return self.route is not None and self.route.source != "virtio-blk"

    @property
    def served(self) -> bool:
        """Whether the host agent keeps the pages."""
        return self.route is not None and self.route.channel in SERVED

    @property
    def guest(self) -> str:
        """The guest that it takes its turns in: the module drives the first virtio device of its kind, and frontswap is
        never unloaded."""
        if self.route is None or not self.by_module:
            return self.serial if self.apart else MAIN
        inline = f"virtio-tmem-{self.doorbell}{'-ioeventfd' if self.ioeventfd else ''}"
        if self.route.source == "frontswap":
            return f"frontswap-{inline if self.route.channel == 'virtio-tmem' else self.route.channel}"
        return inline if self.route.channel == "virtio-tmem" else MAIN

    @property
    def backend(self) -> str:
        """What keeps the pages: the store, shared memory as it is, or a disk by its serial."""
        if self.route is None:
            return self.serial
        return "ivshmem" if self.route.channel == "ivshmem" else "tmem"


def devices(poll_us: int) -> dict[str, Device]:
    """Every arm by name, in the order of tables and plots."""
    found: dict[str, Device] = {}
    blk = Route("virtio-blk", "vhost-user-blk")
    for codec in get_args(Codec):
        found[f"tmem-{codec}"] = Device(TMEM, codec, where="host memory", route=blk)
        found[f"tmem-{codec}-poll"] = Device(TMEM, codec, poll_us, where="host memory", route=blk)

    def disk(name: str, channel: Channel, **how: object) -> None:
        codec = None if channel == "ivshmem" else CODEC
        made = Device(codec=codec, where="host memory", route=Route("swap-disk", channel), **how)  # type: ignore[arg-type]
        found[name] = made

    disk("swap-disk-vhost-user-tmem", "vhost-user-tmem")
    disk("swap-disk-vhost-user-tmem-poll", "vhost-user-tmem", poll_us=poll_us)
    disk("swap-disk-async-vhost-user-tmem", "vhost-user-tmem", synchronous=False)
    disk("swap-disk-virtio-tmem", "virtio-tmem")
    disk("swap-disk-virtio-tmem-pio", "virtio-tmem", doorbell="pio")
    disk("swap-disk-virtio-tmem-ioeventfd", "virtio-tmem", ioeventfd=True)
    disk("swap-disk-virtio-serial", "virtio-serial")
    disk("swap-disk-ivshmem", "ivshmem")
    for channel in ("vhost-user-tmem", "virtio-tmem"):
        route = Route("frontswap", channel)
        found[f"frontswap-{channel}"] = Device(codec=CODEC, where="host memory", route=route)
    found["disk-none"] = Device(DIRECT, where="disk")
    found["disk-writeback"] = Device(CACHED, where="disk")
    found["null"] = Device(NULL, verified=False)
    found["zram"] = Device(ZRAM, "lz4", where="guest memory")
    return found


def together(chosen: dict[str, Device]) -> dict[str, Device]:
    """The arms of one run. The null device loses what it is given, and tmem.ko, which is read anew for each turn, lies
    in a file system that is swapped: they cannot share a guest."""
    if not any(device.by_module for device in chosen.values()):
        return chosen
    return {name: replace(device, apart=device.serial == NULL) for name, device in chosen.items()}


#: Only when somebody names them: what they add to their neighbours is a figure of the exit bench, too.
_NAMED_ONLY: Final = frozenset({"swap-disk-virtio-tmem-pio", "swap-disk-virtio-tmem-ioeventfd"})
#: Left out of a quick run: a page by virtio-serial takes long under TCG, and the rest has a neighbour that is in it.
_FULL_ONLY: Final = frozenset(
    {
        *("tmem-zstd-poll", "tmem-none", "tmem-none-poll"),
        *("swap-disk-async-vhost-user-tmem", "swap-disk-virtio-serial"),
    }
)


def choose(wanted: str, table: dict[str, Device], *, quick: bool, kernel: str) -> list[str]:
    """The arms to run: those named in ``wanted`` (by commas), else the default set. Raises InvalidInput."""
    names = [name for name in wanted.split(",") if name]
    for name in names:
        if name not in table:
            raise InvalidInput(f"there is no arm {name!r}", f"choose from {', '.join(table)}")
    if names:
        return [name for name in table if name in names]
    left_out = _NAMED_ONLY | _FULL_ONLY if quick else _NAMED_ONLY
    if quick and kernel != "5.10":
        left_out |= {name for name, device in table.items() if device.route and device.route.source == "frontswap"}
    return [name for name in table if name not in left_out]


def arm_of(name: str, device: Device, *, kernel: str, contents: str, disk_kind: str = "") -> Arm:
    """The arm with the dimensions of every record of it. ``disk_kind``: hdd, ssd or nvme, where that is known."""
    route = device.route
    labels: dict[str, Scalar] = {
        "source": route.source if route else ("zram" if device.serial == ZRAM else "virtio-blk"),
        "channel": route.channel if route else ("none" if device.serial == ZRAM else "virtio-blk"),
        "backend": device.backend,
        "codec": device.codec or "none",
        "poll": "on" if device.poll_us else "off",
        "kernel": kernel,
        "contents": contents,
    }
    if device.by_module:
        labels["synchronous"] = "on" if device.synchronous else "off"
    if route and route.channel == "virtio-tmem":
        labels |= {"doorbell": device.doorbell, "ioeventfd": "on" if device.ioeventfd else "off"}
    if device.where == "disk" and disk_kind:
        labels["device"] = disk_kind
    return Arm(name, labels)
