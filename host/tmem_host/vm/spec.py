# SPDX-License-Identifier: Apache-2.0
"""What a virtual machine is to be: values only, checked by the driver before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tmem_host.vm.images import KernelImage

Cache = Literal["none", "writeback", "unsafe"]
Aio = Literal["threads", "native", "io_uring"]
AccelName = Literal["auto", "kvm", "tcg"]
Doorbell = Literal["mmio", "pio"]

#: The distribution's; devices of ours need the patched one, which the driver then takes instead.
STOCK_QEMU = "qemu-system-x86_64"

#: struct virtio_blk: VIRTIO_BLK_ID_BYTES
SERIAL_MAX = 20


@dataclass(frozen=True)
class VhostUserBlk:
    """A disk served by another process over vhost-user, which also gives it its serial.

    ``queues`` None lets QEMU take one for each vCPU. When the server goes away QEMU connects again each
    ``reconnect_ms``; requests under way are repeated then.
    """

    socket: Path
    queues: int | None = None
    serial: str = ""
    queue_size: int = 128
    reconnect_ms: int = 100


@dataclass(frozen=True)
class FileDisk:
    """A raw file. ``size`` in bytes, when given, is the least the file may have; discards punch holes.

    ``queue_size`` None leaves QEMU its own; kernels keep memory ready for each request, 5.10 some 20 KiB.
    """

    path: Path
    serial: str
    cache: Cache = "writeback"
    size: int | None = None
    read_only: bool = False
    queues: int | None = None
    aio: Aio = "threads"
    queue_size: int | None = None


@dataclass(frozen=True)
class NullDisk:
    """Keeps nothing and reads zeroes: the cost of the way there. Swap on it loses pages: hog with verify off."""

    size: int
    serial: str
    queues: int | None = None
    queue_size: int | None = None


Disk = VhostUserBlk | FileDisk | NullDisk


@dataclass(frozen=True)
class VhostUserTmem:
    """vhost-user-tmem: requests served by another process. ``queues`` None: one for each vCPU."""

    socket: Path
    queues: int | None = None
    queue_size: int = 256
    reconnect_ms: int = 100


@dataclass(frozen=True)
class InlineTmem:
    """virtio-tmem: QEMU itself serves requests, with an arena of its own that may hold ``limit`` bytes.

    Without ``ioeventfd`` that is on the vCPU's thread, in the write to the ``doorbell``; ``bql``: with QEMU's big lock
    held, to measure what that costs. ``features``: TMEM_FEATURE_* to offer, as an older one would; None: all.
    """

    arena: Path
    limit: int
    queues: int | None = None
    queue_size: int = 256
    doorbell: Doorbell = "mmio"
    ioeventfd: bool = False
    bql: bool = False
    features: int | None = None


Tmem = VhostUserTmem | InlineTmem


@dataclass(frozen=True)
class VmSpec:
    """A guest. ``memory_mib`` is what the machine has; the kernel keeps some 35 MiB of it for itself.

    ``workdir`` gets console.log, qemu.log and argv.txt; without one they live in a temporary folder as long as the VM.
    """

    name: str
    kernel: KernelImage
    memory_mib: int = 128
    vcpus: int = 1
    disks: tuple[Disk, ...] = ()
    tmem: tuple[Tmem, ...] = ()
    accel: AccelName = "auto"
    workdir: Path | None = None
    runtime: Path | None = None
    """A folder for the sockets of one run, with a short path: made anew, and gone afterwards. None: a temporary one,
    which stays behind when this process is killed."""
    qemu_path: str = STOCK_QEMU
    append: str = ""
    pages_port: bool | Path = False
    """A second virtio-serial port, for pages: QEMU listens at the driver's ``pages_socket``, which is this path if one
    is given, and else in a folder of the driver's own."""
    agent_port: Path | None = None
    """Where QEMU listens for whoever speaks to the guest's agent; None: in a folder of the driver's own."""
    extra_args: tuple[str, ...] = field(default=())
