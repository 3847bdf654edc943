# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line: a pure function of the spec, so that it can be read and tested without starting anything."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tmem_host.errors import InvalidInput, Unavailable
from tmem_host.vm.spec import SERIAL_MAX, FileDisk, InlineTmem, NullDisk, VhostUserBlk, VhostUserTmem, VmSpec

AGENT_PORT: Final = "org.kvm-tmem.agent.0"
PAGES_PORT: Final = "org.kvm-tmem.pages.0"
ROOT_SERIAL: Final = "tmem-root"
#: `reconnect` (seconds) became `reconnect-ms`, and was then removed (QEMU's docs/about/deprecated.rst, 9.2).
_RECONNECT_MS_SINCE: Final = (9, 2)
OLDEST: Final = (7, 2)

Version = tuple[int, int]


@dataclass(frozen=True)
class Runtime:
    """Files of one run: ``folder`` is short and private, as Unix sockets need; ``console`` is kept."""

    folder: Path
    console: Path

    @property
    def qmp(self) -> Path:
        return self.folder / "qmp"

    @property
    def agent(self) -> Path:
        return self.folder / "agent"

    @property
    def pages(self) -> Path:
        return self.folder / "pages"


def parse_version(text: str) -> Version:
    """(major, minor) out of ``QEMU emulator version 10.0.2 (Debian ...)``. Raises Unavailable."""
    found = re.search(r"version (\d+)\.(\d+)", text)
    if found is None:
        raise Unavailable(f"cannot tell QEMU's version from {text.splitlines()[:1]}", "is qemu_path a QEMU?")
    version = int(found[1]), int(found[2])
    if version < OLDEST:
        raise Unavailable(f"QEMU {version[0]}.{version[1]} is too old", f"{OLDEST[0]}.{OLDEST[1]} or newer is needed")
    return version


def accelerator_arguments(accel: str) -> list[str]:
    return ["-accel", accel, "-cpu", "host" if accel == "kvm" else "max"]


def possible_cpus(vcpus: int, accel: str) -> int:
    """How many vCPUs the machine has room for: TCG gets room for a second one.

    With room for one only, TCG translates the guest's ``lock`` instructions to plain ones (``tcg_cpu_init_cflags`` in
    accel/tcg, ``do_nonatomic_op`` in tcg/tcg-op-ldst.c), which are no barriers to QEMU's other threads and to backends
    of vhost-user. A driver that says that it sleeps and looks once more then looks first, the device's interrupt is not
    sent, and the guest waits for ever (tests/integration/test_memory_order.py shows it).
    """
    return max(vcpus, 2) if accel == "tcg" else vcpus


def _processors(vcpus: int, accel: str) -> str:
    possible = possible_cpus(vcpus, accel)
    return str(vcpus) if possible == vcpus else f"{vcpus},maxcpus={possible}"


def room_for_cpus(vcpus: int, accel: str) -> list[str]:
    """What gives :func:`possible_cpus` to a command line of libvirt's, which names as many as there are."""
    possible = possible_cpus(vcpus, accel)
    return [] if possible == vcpus else ["-smp", f"sockets={possible},maxcpus={possible}"]


def kernel_line(spec: VmSpec, append: str = "") -> str:
    """The kernel's command line: any panic ends the VM, as does a power-off.

    tsc=reliable: on a busy host the kernel's watchdog finds TCG's TSC unstable, and a clock that costs 20 times as much
    then takes its place in the middle of a measurement. no_timer_check: there, too, the kernel now and then misses the
    ticks it waits for when it tries its timer, and panics.
    """
    return " ".join(f"console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check {append} {spec.append}".split())


def boot_arguments(spec: VmSpec, append: str) -> list[str]:
    """Kernel, initramfs and :func:`kernel_line`; a reboot ends QEMU."""
    return [
        *("-kernel", str(spec.kernel.vmlinuz), "-initrd", str(spec.kernel.initramfs)),
        *("-append", kernel_line(spec, append), "-no-reboot"),
    ]


def agent_socket(spec: VmSpec, run: Runtime) -> Path:
    """Where QEMU listens for whoever speaks to the guest's agent: one at a time."""
    return spec.agent_port or run.agent


def pages_socket(spec: VmSpec, run: Runtime) -> Path:
    """Where QEMU listens for whoever serves the pages port."""
    return spec.pages_port if isinstance(spec.pages_port, Path) else run.pages


def argv(spec: VmSpec, run: Runtime, version: Version, accel: str) -> list[str]:
    """The whole command line. Raises InvalidInput for a spec that cannot be."""
    check(spec)
    memory = f"memory-backend-memfd,id=mem0,size={spec.memory_mib}M,share=on"
    arguments = [
        *(spec.qemu_path, "-name", spec.name, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "pc,memory-backend=mem0", "-object", memory, "-m", f"{spec.memory_mib}M"),
        *("-smp", _processors(spec.vcpus, accel), *accelerator_arguments(accel), *boot_arguments(spec, "")),
        *("-chardev", f"file,id=console,path={comma(run.console)}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,path={comma(run.qmp)},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={comma(agent_socket(spec, run))},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"),
    ]
    if spec.pages_port:
        arguments += [
            *("-chardev", f"socket,id=pages,path={comma(pages_socket(spec, run))},server=on,wait=off"),
            *("-device", f"virtserialport,chardev=pages,name={PAGES_PORT}"),
        ]
    if spec.kernel.rootdisk is not None:
        root = FileDisk(spec.kernel.rootdisk, ROOT_SERIAL, read_only=True, queues=1)
        arguments += _file_disk("root", root)
    for number, disk in enumerate(spec.disks):
        node = f"disk{number}"
        if isinstance(disk, VhostUserBlk):
            arguments += vhost_user_blk(node, disk, version)
        elif isinstance(disk, FileDisk):
            arguments += _file_disk(node, disk)
        else:
            arguments += _null_disk(node, disk)
    for number, device in enumerate(spec.tmem):
        queues = device.queues or spec.vcpus
        if isinstance(device, VhostUserTmem):
            arguments += vhost_user_tmem(f"tmem{number}", device, queues, version)
        else:
            arguments += _inline_tmem(f"tmem{number}", device, queues, spec.name)
    return [*arguments, *spec.extra_args]


def check(spec: VmSpec) -> None:
    """Raises InvalidInput for what no QEMU could start."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", spec.name):
        raise InvalidInput(f"{spec.name!r} cannot name a VM", "use letters, digits, dot, dash and underscore")
    if spec.memory_mib < 64:
        raise InvalidInput(f"{spec.memory_mib} MiB are too little for a guest", "give it 96 or more")
    if not 1 <= spec.vcpus <= 255:
        raise InvalidInput(f"{spec.vcpus} vCPUs cannot be", "1 to 255")
    serials = [disk.serial for disk in spec.disks if disk.serial] + [ROOT_SERIAL]
    for serial in serials:
        if not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{SERIAL_MAX}}}", serial):
            raise InvalidInput(f"{serial!r} cannot be a disk's serial", f"1 to {SERIAL_MAX} letters, digits, ._-")
    if len(set(serials)) < len(serials):
        raise InvalidInput("two disks have one serial", "the guest finds its disks by serial")


def comma(path: Path) -> str:
    """A path within an option list: QEMU doubles commas (qemu-option)."""
    return str(path).replace(",", ",,")


def _queues(count: int | None, size: int | None = None) -> str:
    return ("" if count is None else f",num-queues={count}") + ("" if size is None else f",queue-size={size}")


def _reconnecting(node: str, socket: Path, reconnect_ms: int, version: Version) -> list[str]:
    if version >= _RECONNECT_MS_SINCE:
        reconnect = f"reconnect-ms={reconnect_ms}"
    else:
        reconnect = f"reconnect={max(1, reconnect_ms // 1000)}"
    return ["-chardev", f"socket,id={node}c,path={comma(socket)},{reconnect}"]


def vhost_user_blk(node: str, disk: VhostUserBlk, version: Version) -> list[str]:
    """The socket and the device; the last word can be added to."""
    return [
        *_reconnecting(node, disk.socket, disk.reconnect_ms, version),
        *("-device", f"vhost-user-blk-pci,chardev={node}c,queue-size={disk.queue_size}{_queues(disk.queues)}"),
    ]


def _file_disk(node: str, disk: FileDisk) -> list[str]:
    cache = {"none": ",cache.direct=on", "writeback": "", "unsafe": ",cache.no-flush=on"}[disk.cache]
    mode = ",read-only=on" if disk.read_only else ",discard=unmap"
    return [
        *("-blockdev", f"driver=file,node-name={node},filename={comma(disk.path)},aio={disk.aio}{cache}{mode}"),
        *("-device", f"virtio-blk-pci,drive={node},serial={disk.serial}{_queues(disk.queues, disk.queue_size)}"),
    ]


def _null_disk(node: str, disk: NullDisk) -> list[str]:
    return [
        *("-blockdev", f"driver=null-co,node-name={node},size={disk.size},read-zeroes=on"),
        *("-device", f"virtio-blk-pci,drive={node},serial={disk.serial}{_queues(disk.queues, disk.queue_size)}"),
    ]


def vhost_user_tmem(node: str, device: VhostUserTmem, queues: int, version: Version) -> list[str]:
    """The socket and the device; the last word can be added to."""
    sizes = f"num-queues={queues},queue-size={device.queue_size}"
    return [
        *_reconnecting(node, device.socket, device.reconnect_ms, version),
        *("-device", f"vhost-user-tmem-pci,id={node},chardev={node}c,{sizes}"),
    ]


def _inline_tmem(node: str, device: InlineTmem, queues: int, name: str) -> list[str]:
    arms = [("modern-pio-notify", device.doorbell == "pio"), ("ioeventfd", device.ioeventfd), ("x-bql", device.bql)]
    options = [
        *(f"virtio-tmem-pci,id={node}", f"arena={comma(device.arena)}", f"limit={device.limit}", f"vm={name}"),
        *(f"num-queues={queues}", f"queue-size={device.queue_size}"),
        *(f"{arm}=on" for arm, on in arms if on),
        *([] if device.features is None else [f"features={device.features}"]),
    ]
    return ["-device", ",".join(options)]
