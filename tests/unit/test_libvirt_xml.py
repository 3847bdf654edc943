# SPDX-License-Identifier: Apache-2.0
"""The libvirt driver's pure parts: a domain out of a spec, and who QEMU runs as."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tmem_host.errors import InvalidInput
from tmem_host.vm import qemu
from tmem_host.vm.images import KernelImage
from tmem_host.vm.libvirt_rights import qemu_user
from tmem_host.vm.libvirt_xml import domain_xml
from tmem_host.vm.spec import FileDisk, NullDisk, VhostUserBlk, VhostUserTmem, VmSpec

KERNEL = KernelImage("6.1", "6.1.0", Path("/k/vmlinuz"), Path("/k/initramfs"), Path("/k/root.img"))
RUN = qemu.Runtime(Path("/run/vm"), Path("/w/console.log"))


def parsed(spec: VmSpec, accel: str = "tcg") -> ElementTree.Element:
    return ElementTree.fromstring(domain_xml(spec, RUN, accel, "/usr/bin/qemu"))


def test_a_guest_with_disks() -> None:
    swap = VhostUserBlk(Path("/s/web.sock"), queues=2, serial="web")
    data = FileDisk(Path("/d/data & more"), "data", cache="none", aio="io_uring", queue_size=64)
    spec = VmSpec("web", KERNEL, 96, 2, disks=(swap, data), append="quiet=1", pages_port=Path("/s/web.serial.sock"))
    domain = parsed(spec)
    assert domain.get("type") == "qemu"
    assert domain.findtext("memory") == "96"
    assert domain.findtext("vcpu") == "2"
    assert domain.findtext("os/cmdline") == qemu.kernel_line(spec)
    root, first, second = domain.findall("devices/disk")
    assert [disk.findtext("serial") for disk in (root, first, second)] == [qemu.ROOT_SERIAL, None, "data"]
    assert root.find("readonly") is not None
    assert first.get("type") == "vhostuser"
    assert [disk.find("target").attrib["dev"] for disk in (root, first, second)] == ["vda", "vdb", "vdc"]  # type: ignore[union-attr]
    driver = second.find("driver")
    assert driver is not None
    assert {"cache": "none", "io": "io_uring", "queue_size": "64"}.items() <= driver.attrib.items()
    assert [source.attrib["path"] for source in domain.findall("devices/channel/source")] == [
        "/run/vm/agent",
        "/s/web.serial.sock",
    ]
    assert parsed(spec, "kvm").get("type") == "kvm"


@pytest.mark.parametrize(("vcpus", "accel", "possible"), [(1, "tcg", "2"), (1, "kvm", "1"), (3, "tcg", "3")])
def test_tcg_has_room_for_a_second_cpu(vcpus: int, accel: str, possible: str) -> None:
    processors = parsed(VmSpec("a", KERNEL, 96, vcpus), accel).find("vcpu")
    assert processors is not None
    assert (processors.attrib, processors.text) == ({"current": str(vcpus)}, possible)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (VmSpec("web", KERNEL, disks=(NullDisk(1 << 20, "none"),)), "keeps nothing"),
        (VmSpec("web", KERNEL, tmem=(VhostUserTmem(Path("/s")),)), "tmem devices"),
        (VmSpec("web", KERNEL, extra_args=("-s",)), "QEMU arguments"),
        (VmSpec("web/..", KERNEL), "cannot name"),
    ],
)
def test_what_only_the_direct_driver_has(spec: VmSpec, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        parsed(spec)


def test_the_user_of_qemu() -> None:
    model = "<secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>{}</baselabel></secmodel>"
    form = "<capabilities><host><secmodel><model>none</model></secmodel>{}</host></capabilities>"
    assert qemu_user(form.format(model.format("+64055:+64055"))) == 64055
    assert qemu_user(form.format(model.format("+0:+0"))) == 0
    assert qemu_user(form.format(model.format("somebody"))) is None
    assert qemu_user(form.format("")) is None
