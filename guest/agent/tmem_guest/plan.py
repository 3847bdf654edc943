# SPDX-License-Identifier: Apache-2.0
"""Which source and channel a guest uses: decided from what it has and what was set, apart from any doing."""

from dataclasses import dataclass

from .probe import DiskFound, Found
from .settings import Settings

#: The module's words for its channels.
MODULE_CHANNELS = {"virtio-tmem": "virtio", "virtio-serial": "serial"}


@dataclass(frozen=True)
class Plan:
    """``device``: as in /dev; ``parameters``: the module's, empty with the stock driver."""

    source: str
    channel: str
    device: str
    parameters: dict[str, str | int]


@dataclass(frozen=True)
class Choice:
    """What is to be done, if anything, and why not what would have come first."""

    plan: Plan | None
    reasons: tuple[str, ...]


def choose(settings: Settings, found: Found) -> Choice:
    """The first that works of: the module over virtio-tmem, the stock disk, the module over virtio-serial."""
    if settings.source == "none":
        return Choice(None, ('no swap is wanted (source = "none")',))
    reasons: list[str] = []
    for channel in ("virtio-tmem", "vhost-user-blk", "virtio-serial"):
        if not _wanted(settings, channel):
            continue
        why = _why_not_disk(settings, found) if channel == "vhost-user-blk" else _why_not(settings, found, channel)
        if why:
            reasons.append(f"{channel}: {why}")
        elif channel == "vhost-user-blk":
            disk = found.swap_disk(settings.serial)
            assert disk is not None  # else there were a reason
            return Choice(Plan("virtio-blk", channel, disk.device, {}), tuple(reasons))
        else:
            return Choice(_module_plan(settings, found, channel), tuple(reasons))
    return Choice(None, tuple(reasons) or ("source and channel of the settings do not go together",))


def _wanted(settings: Settings, channel: str) -> bool:
    if channel == "vhost-user-blk":
        return settings.source in ("auto", "virtio-blk") and settings.channel == "auto"
    return settings.source != "virtio-blk" and settings.channel in ("auto", channel)


def _why_not_disk(settings: Settings, found: Found) -> str:
    disk = found.swap_disk(settings.serial)
    if disk is not None:
        return "" if disk.free or disk.state == "swap" else _taken(disk)
    wanted = settings.serial or found.swap_serial
    free = [disk.serial for disk in found.disks if disk.free]
    hint = f"; blank: {', '.join(free)} [set serial]" if free else ""
    return (f"no disk has the serial {wanted!r}" if wanted else "it is not known by which serial") + hint


def _taken(disk: DiskFound) -> str:
    if disk.state == "unreadable":
        return f"{disk.device} cannot be read [run it as root]"
    what = "is in use" if disk.state == "used" else "holds data that is no swap"
    return f"{disk.device} {what} [wipe it with 'wipefs -a' if nobody needs it, or set another serial]"


def _why_not(settings: Settings, found: Found, channel: str) -> str:
    if channel == "virtio-tmem" and not found.virtio_tmem:
        return "there is no such device"
    if channel == "virtio-serial" and not found.pages_port:
        return "there is no port org.kvm-tmem.pages.0"
    if found.module_loaded and found.module_channel != MODULE_CHANNELS[channel]:
        return f"tmem.ko is loaded with channel={found.module_channel} [unload it first]"
    if not found.module_loaded and not found.module_file:
        return f"there is no tmem.ko for {found.kernel} [install it, or set module to its path]"
    if settings.source == "frontswap" and not found.frontswap:
        return f"{found.kernel} lets no module use frontswap [set source to swap-disk]"
    return ""


def _module_plan(settings: Settings, found: Found, channel: str) -> Plan:
    source = "frontswap" if settings.source == "frontswap" else "swap-disk"
    parameter, device = ("frontswap_mib", "/dev/tmemf0") if source == "frontswap" else ("blkdev_mib", "/dev/tmem0")
    size = settings.size_mib or max(16, 2 * (found.mem_total_bytes >> 20))
    parameters: dict[str, str | int] = {"channel": MODULE_CHANNELS[channel], parameter: size}
    if settings.cleancache and found.cleancache:
        parameters["cleancache"] = 1
    return Plan(source, channel, device, parameters)


def priority_above(settings: Settings, swaps: dict[str, int]) -> int:
    """The set one; else one above all that is active, 100 at least. The kernel has none above 32767."""
    return settings.priority or min(32767, max(100, *(value + 1 for value in swaps.values()), 100))
