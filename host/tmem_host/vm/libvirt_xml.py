# SPDX-License-Identifier: Apache-2.0
"""A guest of ours as libvirt's domain XML: a pure function of the spec, like :mod:`tmem_host.vm.qemu` for QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from tmem_host.errors import InvalidInput
from tmem_host.vm import qemu
from tmem_host.vm.spec import Disk, FileDisk, VhostUserBlk, VmSpec

#: What a domain of this name ends with, whatever ends the guest: there is nothing to come back to.
_ENDS: Final = ("on_poweroff", "on_reboot", "on_crash")


def domain_xml(spec: VmSpec, run: qemu.Runtime, accel: str, emulator: str) -> str:
    """The whole domain. Raises InvalidInput for a spec that cannot be, or that only the direct driver has."""
    qemu.check(spec)
    for what, given in (("tmem devices", spec.tmem), ("QEMU arguments", spec.extra_args)):
        if given:
            raise InvalidInput(f"the libvirt driver gives no {what}", "use the direct driver")
    domain = Element("domain", type="kvm" if accel == "kvm" else "qemu")
    SubElement(domain, "name").text = spec.name
    SubElement(domain, "memory", unit="MiB").text = str(spec.memory_mib)
    vcpu = SubElement(domain, "vcpu", current=str(spec.vcpus))
    vcpu.text = str(qemu.possible_cpus(spec.vcpus, accel))
    backing = SubElement(domain, "memoryBacking")
    SubElement(backing, "source", type="memfd")
    SubElement(backing, "access", mode="shared")
    _boot(SubElement(domain, "os"), spec)
    SubElement(SubElement(domain, "features"), "acpi")
    SubElement(domain, "cpu", mode="host-passthrough" if accel == "kvm" else "maximum")
    for name in _ENDS:
        SubElement(domain, name).text = "destroy"
    devices = SubElement(domain, "devices")
    SubElement(devices, "emulator").text = emulator
    SubElement(devices, "controller", type="usb", model="none")
    SubElement(devices, "memballoon", model="none")
    serial = SubElement(devices, "serial", type="file")
    SubElement(serial, "source", path=str(run.console))
    SubElement(serial, "target", port="0")
    _port(devices, run.agent, qemu.AGENT_PORT)
    if spec.pages_port:
        _port(devices, qemu.pages_socket(spec, run), qemu.PAGES_PORT)
    for target, disk in zip(_targets(), _disks(spec), strict=False):
        _disk(devices, disk, target)
    indent(domain)
    return tostring(domain, encoding="unicode")


def _boot(system: Element, spec: VmSpec) -> None:
    SubElement(system, "type", arch="x86_64", machine="pc").text = "hvm"
    SubElement(system, "kernel").text = str(spec.kernel.vmlinuz)
    SubElement(system, "initrd").text = str(spec.kernel.initramfs)
    SubElement(system, "cmdline").text = qemu.kernel_line(spec)


def _port(devices: Element, socket: Path, name: str) -> None:
    channel = SubElement(devices, "channel", type="unix")
    SubElement(channel, "source", mode="bind", path=str(socket))
    SubElement(channel, "target", type="virtio", name=name)


def _targets() -> Iterator[str]:
    for letter in "abcdefghijklmnopqrstuvwxyz":
        yield f"vd{letter}"


def _disks(spec: VmSpec) -> Iterator[Disk]:
    if spec.kernel.rootdisk is not None:
        yield FileDisk(spec.kernel.rootdisk, qemu.ROOT_SERIAL, read_only=True, queues=1)
    yield from spec.disks


def _disk(devices: Element, disk: Disk, target: str) -> None:
    if isinstance(disk, FileDisk):
        node = SubElement(devices, "disk", type="file", device="disk")
        driver = SubElement(node, "driver", name="qemu", type="raw", cache=disk.cache, io=disk.aio, discard="unmap")
        if disk.queue_size is not None:
            driver.set("queue_size", str(disk.queue_size))
        SubElement(node, "source", file=str(disk.path))
    elif isinstance(disk, VhostUserBlk):
        node = SubElement(devices, "disk", type="vhostuser", device="disk")
        driver = SubElement(node, "driver", name="qemu", type="raw", queue_size=str(disk.queue_size))
        source = SubElement(node, "source", type="unix", path=str(disk.socket))
        # libvirt takes whole seconds.
        SubElement(source, "reconnect", enabled="yes", timeout=str(max(1, disk.reconnect_ms // 1000)))
    else:
        raise InvalidInput("the libvirt driver has no disk that keeps nothing", "use the direct driver")
    if disk.queues is not None:
        driver.set("queues", str(disk.queues))
    SubElement(node, "target", dev=target, bus="virtio")
    if isinstance(disk, FileDisk):
        SubElement(node, "serial").text = disk.serial
        if disk.read_only:
            SubElement(node, "readonly")
