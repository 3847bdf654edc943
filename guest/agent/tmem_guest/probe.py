# SPDX-License-Identifier: Apache-2.0
"""What this guest has for tmem: the kernel's hooks, the module, channels, disks. Looks, and changes nothing."""

import os
from dataclasses import asdict, dataclass

from . import PORT_NAME, disks, modules, ports
from .lend import PORT_NAME as PAGES_PORT

#: VIRTIO_ID_TMEM (guest/abi/tmem_abi.h)
_VIRTIO_TMEM = 63
_PAGE = 4096
#: Where file systems and volumes keep their signatures: at the start and at the end.
_HEAD, _TAIL = 128 * 1024, 64 * 1024


@dataclass(frozen=True)
class DiskFound:
    """A virtio disk. ``state``: swap (active), used, data, blank, formatted (as swap), unreadable."""

    serial: str
    device: str
    size_bytes: int
    state: str

    @property
    def free(self) -> bool:
        """Nobody's data is on it."""
        return self.state in ("blank", "formatted")


@dataclass(frozen=True)
class Found:
    """A path or a name is empty, a module's channel too, when there is none."""

    kernel: str
    root: bool
    mem_total_bytes: int
    frontswap: bool
    cleancache: bool
    psi: bool
    zswap: bool
    page_cluster: int
    module_file: str
    module_loaded: bool
    module_channel: str
    virtio_tmem: bool
    pages_port: str
    agent_port: str
    swap_serial: str
    disks: tuple[DiskFound, ...]
    #: Device -> priority of what is active.
    swaps: dict[str, int]

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def swap_disk(self, serial: str) -> DiskFound | None:
        """The disk that is meant to be swap, whatever is on it."""
        names = [name[:20] for name in (serial or self.swap_serial,) if name]
        return next((disk for disk in self.disks if disk.serial in names), None)


def look(module_path: str = "") -> Found:
    """Everything. ``module_path``: tmem.ko, if it is not where it is looked for."""
    from . import stats

    exported = kernel_exports()
    release = os.uname().release
    return Found(
        kernel=release,
        root=os.geteuid() == 0,
        mem_total_bytes=stats.read_meminfo()["MemTotal"],
        frontswap="frontswap_register_ops" in exported,
        cleancache="cleancache_register_ops" in exported,
        psi=_readable("/proc/pressure/memory"),
        zswap=_text("/sys/module/zswap/parameters/enabled") == "Y",
        page_cluster=int(_text("/proc/sys/vm/page-cluster") or 0),
        module_file=module_path if os.path.isfile(module_path) else "" if module_path else modules.find("tmem"),
        module_loaded=os.path.isdir("/sys/module/tmem"),
        module_channel=module_channel(),
        virtio_tmem=_has_virtio(_VIRTIO_TMEM),
        pages_port=ports.path_of(PAGES_PORT),
        agent_port=ports.path_of(PORT_NAME),
        swap_serial=_named(_text("/proc/cmdline")) or os.uname().nodename.replace("(none)", ""),
        disks=tuple(DiskFound(serial, f"/dev/{name}", *_state(name)) for serial, name in disks.serials().items()),
        swaps=priorities(_text("/proc/swaps")),
    )


def module_channel() -> str:
    """What tmem.ko was loaded with; empty when it is not."""
    return _text("/sys/module/tmem/parameters/channel")


def module_has_hooks() -> bool:
    """True when tmem.ko has registered with frontswap or cleancache, which keep it for good."""
    parameters = "/sys/module/tmem/parameters"
    frontswap = _text(f"{parameters}/frontswap_mib") not in ("", "0")
    return frontswap or _text(f"{parameters}/cleancache") in ("Y", "1")


def _text(path: str) -> str:
    """Empty when it cannot be read."""
    try:
        return disks.read_text(path)
    except OSError:
        return ""


def _readable(path: str) -> bool:
    return bool(_text(path))


def _named(command_line: str) -> str:
    for word in command_line.split():
        name, _, value = word.partition("=")
        if name == "tmem.swap":
            return value
    return ""


def kernel_exports() -> set[str]:
    """Those of the hooks that modules may use: 5.10 exports frontswap's, 6.1 has it and does not."""
    wanted = ("frontswap_register_ops", "cleancache_register_ops")
    found = set()
    try:
        with open("/proc/kallsyms", "rb") as stream:
            rest = b""
            while data := stream.read(1 << 16):
                text = rest + data
                found |= {name for name in wanted if b" __ksymtab_" + name.encode() in text}
                rest = text[-64:]
    except OSError:
        pass
    if "cleancache_register_ops" not in found and os.path.isdir("/sys/kernel/debug/cleancache"):
        found.add("cleancache_register_ops")
    return found


def _has_virtio(device_id: int) -> bool:
    root = "/sys/bus/virtio/devices"
    names = os.listdir(root) if os.path.isdir(root) else []
    return any(_text(f"{root}/{name}/device") == f"0x{device_id:04x}" for name in names)


def priorities(text: str) -> dict[str, int]:
    """Device -> priority, out of /proc/swaps."""
    return {words[0]: int(words[4]) for words in map(str.split, text.splitlines()[1:]) if len(words) == 5}


def _state(name: str) -> tuple[int, str]:
    """(bytes, state) of a disk."""
    disk = disks.Disk(name)
    if disk.path in priorities(_text("/proc/swaps")):
        return disk.size, "swap"
    if any(entry.startswith(name) for entry in os.listdir(f"/sys/block/{name}")):
        return disk.size, "used"  # it has partitions
    try:
        # Exclusive: refused when it is mounted, or part of a volume.
        fd = os.open(disk.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError:
        return disk.size, "used" if os.path.exists(disk.path) and os.access(disk.path, os.R_OK) else "unreadable"
    try:
        head = os.pread(fd, _HEAD, 0)
        tail = os.pread(fd, _TAIL, max(0, disk.size - _TAIL))
    except OSError:
        return disk.size, "unreadable"
    finally:
        os.close(fd)
    return disk.size, contents(head, tail)


def contents(head: bytes, tail: bytes) -> str:
    """Whether a disk that starts and ends so has anybody's data: blank, formatted or data."""
    if head[_PAGE - 10 : _PAGE] == b"SWAPSPACE2":
        return "formatted"
    return "data" if head.strip(b"\0") or tail.strip(b"\0") else "blank"


def lines(found: Found) -> list[str]:
    """For people: one thing a line."""

    def yes(value: object) -> str:
        return "yes" if value else "no"

    loaded = f"loaded, channel {found.module_channel or 'unknown'}" if found.module_loaded else "not loaded"
    hooks = f"frontswap {yes(found.frontswap)}, cleancache {yes(found.cleancache)}, pressure {yes(found.psi)}"
    told = [
        f"kernel        {found.kernel}, {found.mem_total_bytes >> 20} MiB; {hooks}, zswap {yes(found.zswap)}",
        f"module        {found.module_file or 'no tmem.ko'}, {loaded}",
        f"virtio-tmem   {yes(found.virtio_tmem)}",
        f"virtio-serial pages {found.pages_port or 'no'}, agent {found.agent_port or 'no'}",
    ]
    told += [
        f"disk          {disk.device} {disk.size_bytes >> 20} MiB, serial {disk.serial}: {disk.state}"
        for disk in found.disks
    ]
    told += [f"swap          {device}, priority {priority}" for device, priority in found.swaps.items()]
    return told
