# SPDX-License-Identifier: Apache-2.0
"""What attaching makes of a domain's XML, and that detaching leaves no trace."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmem_host.errors import Conflict, InvalidInput, NotFound
from tmem_host.vm import libvirt_edit as edit

WANTED = edit.Wanted(
    "web",
    Path("/s/web.sock"),
    (
        edit.Port(edit.PORT_ALIAS, Path("/s/web.serial.sock"), "org.kvm-tmem.pages.0"),
        edit.Port(edit.AGENT_ALIAS, Path("/s/web.agent.sock"), "org.kvm-tmem.agent.0"),
    ),
    queues=2,
    made=True,
)
BACKINGS = (
    "",
    "<memoryBacking/>",
    "<memoryBacking><locked/></memoryBacking>",
    "<memoryBacking>\n  <source type='anonymous'/>\n  <access mode='private'/>\n</memoryBacking>",
    "<memoryBacking><source type='file'/></memoryBacking>",
    "<memoryBacking><hugepages/><access mode='private'/></memoryBacking>",
    "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
)
METADATA = (
    "",
    "<metadata><app:x xmlns:app='urn:a'><app:y z='1'/></app:x></metadata>",
    "<metadata><x xmlns='urn:default'>text &lt; text</x></metadata>",
)
DEVICES = (
    "",
    "<disk type='file' device='disk'><source file='/d'/><target dev='vda' bus='virtio'/></disk>",
    "<controller type='virtio-serial' index='0'/>",
    "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
    "<!-- somebody's word -->",
)


def domain(backing: str = "", metadata: str = "", devices: str = "", cpu: str = "") -> str:
    head = "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n  <name>web</name>"
    tail = "<qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>"
    return f"{head}{metadata}{backing}{cpu}<devices>{devices}</devices>{tail}"


def canonical(xml: str) -> str:
    return ElementTree.canonicalize(xml, strip_text=True, with_comments=True)


@given(st.sampled_from(BACKINGS), st.sampled_from(METADATA), st.lists(st.sampled_from(DEVICES), unique=True))
def test_detaching_undoes_attaching(backing: str, metadata: str, devices: list[str]) -> None:
    before = domain(backing, metadata, "".join(devices))
    after = edit.attach(before, WANTED)
    assert edit.attached(after) == edit.Attached("web", True)
    assert edit.shares_memory(after)
    assert edit.device(after, edit.DISK_ALIAS) is not None
    assert edit.device(after, edit.PORT_ALIAS) is not None
    assert edit.port_names(before, None, after) >= {port.name for port in WANTED.ports}
    assert canonical(edit.detach(after)) == canonical(before)


def test_what_is_added() -> None:
    root = ElementTree.fromstring(edit.attach(domain(devices=DEVICES[1]), WANTED))
    _own, disk = root.findall("devices/disk")
    assert disk.attrib == {"type": "vhostuser", "device": "disk"}
    assert disk.find("driver") is not None
    assert (source := disk.find("source")) is not None
    assert source.attrib == {"type": "unix", "path": "/s/web.sock"}
    assert (reconnect := source.find("reconnect")) is not None
    assert reconnect.attrib == {"enabled": "yes", "timeout": "1"}
    assert (target := disk.find("target")) is not None
    assert target.attrib == {"dev": "vdb", "bus": "virtio"}
    sources = [port.attrib for port in root.findall("devices/channel/source")]
    assert sources == [{"mode": "bind", "path": f"/s/web.{kind}.sock"} for kind in ("serial", "agent")]
    assert (access := root.find("memoryBacking/access")) is not None
    assert access.get("mode") == "shared"


def test_hugepages_stay_and_are_shared() -> None:
    root = ElementTree.fromstring(edit.attach(domain(BACKINGS[5]), WANTED))
    backing = root.find("memoryBacking")
    assert backing is not None
    assert sorted(child.tag for child in backing) == ["access", "hugepages"]


def test_shared_numa_cells_are_left_as_they_are() -> None:
    cpu = "<cpu><numa><cell id='0' memAccess='shared'/><cell id='1' memAccess='shared'/></numa></cpu>"
    assert edit.shares_memory(domain(cpu=cpu))
    assert "memoryBacking" not in edit.attach(domain(cpu=cpu), WANTED)
    with pytest.raises(InvalidInput, match="memAccess"):
        edit.attach(domain(cpu=cpu.replace("shared", "private", 1)), WANTED)


def test_what_others_changed_meanwhile_is_theirs() -> None:
    after = edit.attach(domain(BACKINGS[2]), WANTED)
    changed = after.replace("<locked/><source", "<locked/><nosharepages/><source")
    assert changed != after
    left = edit.detach(changed)
    assert "<nosharepages/>" in left
    assert edit.shares_memory(left)
    # A port of somebody else on the controller that came with ours.
    used = after.replace("</devices>", DEVICES[2] + DEVICES[3] + "</devices>")
    assert "virtio-serial" in edit.detach(used)
    assert "virtio-serial" not in edit.detach(after.replace("</devices>", DEVICES[2] + "</devices>"))


def test_refusals() -> None:
    with pytest.raises(Conflict, match="attached already"):
        edit.attach(edit.attach(domain(), WANTED), WANTED)
    with pytest.raises(NotFound, match="not attached"):
        edit.detach(domain())
    with pytest.raises(InvalidInput, match="cannot be read"):
        edit.attached("<domain>")
    with pytest.raises(InvalidInput, match="no domain"):
        edit.attached("<network/>")


def test_every_disk_has_a_name() -> None:
    disks = "".join(f"<disk><target dev='vd{letter}'/></disk>" for letter in "abcdefghijklmnopqrstuvwxyz")
    assert edit.disk_target(domain(devices=disks)) == "vdaa"
    assert edit.disk_target(domain(devices=disks.replace("vdc", "sdc"))) == "vdc"


def test_paths_are_text() -> None:
    odd = edit.Wanted("web", Path("/s/a&'\"<.sock"), ())
    disk = ElementTree.fromstring(edit.disk_xml(odd, "vda"))
    assert (source := disk.find("source")) is not None
    assert source.get("path") == "/s/a&'\"<.sock"
    assert edit.device(edit.attach(domain(), odd), edit.PORT_ALIAS) is None
