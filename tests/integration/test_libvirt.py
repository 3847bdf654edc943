# SPDX-License-Identifier: Apache-2.0
"""libvirt, for real: a libvirtd of the tests' own, domains that others defined, and guests that swap in them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import httpx
import pytest

from framework.agents import AgentFactory
from framework.libvirtd import PrivateLibvirtd, private_libvirtd
from framework.vm import HOG_MIB, MEMORY_MIB, evidence_folder, wait_until
from tmem_host.agent_process import AgentProcess
from tmem_host.errors import Conflict, NotFound, TmemError, Unavailable
from tmem_host.models import VmCreate
from tmem_host.vm import libvirt_attach as attaching
from tmem_host.vm import qemu
from tmem_host.vm.base import Vm
from tmem_host.vm.guest_client import GuestClient
from tmem_host.vm.images import KernelImage, guest_image
from tmem_host.vm.libvirt_attach import Request
from tmem_host.vm.libvirt_link import Lifecycle, Link, library
from tmem_host.vm.libvirt_vm import LibvirtVm
from tmem_host.vm.spec import VhostUserBlk, VmSpec

MIB = 1 << 20


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[PrivateLibvirtd]:
    pytest.importorskip("libvirt", reason="libvirt-python is not installed ('make libvirt')")
    with tempfile.TemporaryDirectory(prefix="tmem-lv-") as folder, private_libvirtd(Path(folder)) as daemon:
        yield daemon


@pytest.fixture
def link(libvirtd: PrivateLibvirtd) -> Iterator[Link]:
    made = Link(libvirtd.uri)
    yield made
    made.close()


@pytest.fixture
def big_agent(make_agent: AgentFactory) -> AgentProcess:
    agent = make_agent(limit=1 << 30)
    agent.start()
    return agent


# -- domains that others defined --------------------------------------------------------------------------------------

#: What people write: something of another program, QEMU arguments, an element that libvirt will fill with defaults.
PLAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>plain</name>
  <title>not ours</title>
  <metadata><app:note xmlns:app="urn:app" owner="somebody"/></metadata>
  <memory unit='MiB'>128</memory>
  <vcpu>2</vcpu>
  {backing}
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'><source file='/nowhere.img'/><target dev='vda' bus='virtio'/></disk>
    <interface type='user'><model type='virtio'/></interface>
    {channel}
  </devices>
  <qemu:commandline><qemu:arg value='-no-user-config'/></qemu:commandline>
</domain>
"""
CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


def canonical(xml: str) -> str:
    return ElementTree.canonicalize(xml, strip_text=True)


@pytest.mark.parametrize("channel", ["", CHANNEL], ids=["no port", "a port"])
@pytest.mark.parametrize(
    "backing",
    ["", "<memoryBacking><source type='anonymous'/><access mode='private'/><locked/></memoryBacking>"],
    ids=["no backing", "a backing"],
)
def test_a_domain_of_others_is_left_as_it_was(
    libvirtd: PrivateLibvirtd, link: Link, agent: AgentProcess, tmp_path: Path, backing: str, channel: str
) -> None:
    file = tmp_path / "plain.xml"
    file.write_text(PLAIN.format(backing=backing, channel=channel))
    libvirtd.virsh("define", str(file))
    try:
        before = libvirtd.virsh("dumpxml", "--inactive", "plain")
        done = attaching.attach(agent.client, link, "plain", Request(size_bytes=16 * MIB))
        assert (done.when, done.disk, done.vm) == ("next start", "vdb", "plain")
        root = ElementTree.fromstring(libvirtd.virsh("dumpxml", "--inactive", "plain"))
        (source,) = root.findall("devices/disk[@type='vhostuser']/source")
        vm = agent.client.get_vm("plain")
        assert source.get("path") == vm.socket
        assert vm.size_bytes == 16 * MIB
        assert root.find("metadata/{urn:app}note") is not None
        with pytest.raises(Conflict, match="attached already"):
            attaching.attach(agent.client, link, "plain", Request())
        assert attaching.detach(agent.client, link, "plain").removed
        assert canonical(libvirtd.virsh("dumpxml", "--inactive", "plain")) == canonical(before)
        assert agent.client.list_vms() == []
        with pytest.raises(NotFound, match="not attached"):
            attaching.detach(agent.client, link, "plain")
    finally:
        libvirtd.virsh("undefine", "plain")


def test_by_rest(libvirtd: PrivateLibvirtd, agent: AgentProcess, tmp_path: Path) -> None:
    file = tmp_path / "plain.xml"
    file.write_text(PLAIN.format(backing="", channel=""))
    libvirtd.virsh("define", str(file))
    try:
        before = libvirtd.virsh("dumpxml", "--inactive", "plain")
        transport = httpx.HTTPTransport(uds=str(agent.state / "api.sock"))
        with httpx.Client(transport=transport, base_url="http://agent/v1/vms", timeout=60) as api:
            where = {"connect": libvirtd.uri, "domain": "plain"}
            done = api.post("/web/attach", json={**where, "size_bytes": "16M"})
            assert (done.status_code, done.json()["disk"], done.json()["when"]) == (200, "vdb", "next start")
            assert api.get("/web").json()["size_bytes"] == 16 * MIB
            assert "vhostuser" in libvirtd.virsh("dumpxml", "--inactive", "plain")
            assert api.post("/web/attach", json=where).status_code == 409
            assert api.post("/other/detach", json=where).status_code == 409
            assert api.post("/web/detach", json=where).json()["removed"] is True
            assert api.post("/web/detach", json=where).status_code == 404
            assert api.get("/web").status_code == 404
        assert libvirtd.virsh("dumpxml", "--inactive", "plain") == before
    finally:
        libvirtd.virsh("undefine", "plain")


def test_what_cannot_be_attached(libvirtd: PrivateLibvirtd, link: Link, agent: AgentProcess, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nobody"):
        attaching.attach(agent.client, link, "nobody", Request())
    file = tmp_path / "plain.xml"
    file.write_text(PLAIN.format(backing="", channel=""))
    libvirtd.virsh("define", str(file))
    try:
        # 128 MiB, the domain's memory, are more than this agent may promise: nothing has changed afterwards.
        before = libvirtd.virsh("dumpxml", "--inactive", "plain")
        with pytest.raises(TmemError):
            attaching.attach(agent.client, link, "plain", Request())
        assert libvirtd.virsh("dumpxml", "--inactive", "plain") == before
        assert agent.client.list_vms() == []
        agent.client.create_vm(VmCreate(name="guest-made", channels=("tmem",)))
        with pytest.raises(Conflict, match="no swap disk"):
            attaching.attach(agent.client, link, "plain", Request(vm="guest-made"))
        agent.client.create_vm(VmCreate(name="kept", size_bytes=16 * MIB))
        assert attaching.attach(agent.client, link, "plain", Request(vm="kept")).vm == "kept"
        # It was there before, so it stays.
        assert not attaching.detach(agent.client, link, "plain").removed
        assert libvirtd.virsh("dumpxml", "--inactive", "plain") == before
        assert {vm.name for vm in agent.client.list_vms()} == {"guest-made", "kept"}
    finally:
        libvirtd.virsh("undefine", "plain")


def test_nobody_there(agent: AgentProcess, tmp_path: Path) -> None:
    pytest.importorskip("libvirt", reason="libvirt-python is not installed ('make libvirt')")
    link = Link(f"qemu+unix:///system?socket={tmp_path / 'none'}")
    with pytest.raises(Unavailable, match="is libvirtd running"):
        attaching.attach(agent.client, link, "plain", Request())
    link.close()


# -- guests -----------------------------------------------------------------------------------------------------------

RUNNING = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel.vmlinuz}</kernel><initrd>{kernel.initramfs}</initrd>
    <cmdline>{line}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_reboot>destroy</on_reboot>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file={root}/><target dev='vda' bus='virtio'/>
      <serial>tmem-root</serial><readonly/>
    </disk>
    <serial type='file'><source path={console}/></serial>
    <channel type='unix'><source mode='bind' path={agent}/><target type='virtio' name='{port}'/></channel>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def running_domain(name: str, kernel: KernelImage, folder: Path) -> str:
    """A domain with a guest of ours in it, but nothing of tmem: somebody's that does not share its memory."""
    return RUNNING.format(
        name=name,
        memory=MEMORY_MIB,
        kernel=kernel,
        line=qemu.kernel_line(VmSpec(name, kernel)),
        root=quoteattr(str(kernel.rootdisk)),
        console=quoteattr(str(folder / "console.log")),
        agent=quoteattr(str(folder / "agent")),
        port=qemu.AGENT_PORT,
    )


@contextlib.asynccontextmanager
async def guest(folder: Path) -> AsyncIterator[GuestClient]:
    client = GuestClient("domain")
    await client.connect(folder / "agent")
    try:
        await client.hello()
        yield client
    finally:
        await client.close()


async def swap_and_check(client: GuestClient, serial: str) -> None:
    # A kernel takes its time over a disk that is plugged in while it runs.
    until = time.monotonic() + 60
    while serial not in (await client.hello())["disks"]:
        assert time.monotonic() < until, f"the guest sees no disk {serial}"
        await asyncio.sleep(0.1)
    await client.swap_on(serial, require_discard=True)
    result = await client.hog(HOG_MIB // 2)
    assert result.bad == 0
    await client.swap_off(serial)


@pytest.mark.vm
async def test_a_running_domain_is_attached_and_detached(
    libvirtd: PrivateLibvirtd, link: Link, big_agent: AgentProcess, state: Path
) -> None:
    vms = big_agent.client
    folder = state / "domain"
    folder.mkdir()
    file = folder / "domain.xml"
    file.write_text(running_domain("others", guest_image("6.1"), folder))
    libvirtd.virsh("define", str(file))
    try:
        libvirtd.virsh("start", "others")
        before = libvirtd.virsh("dumpxml", "--inactive", "others")

        # Its memory is its own, which only a restart changes: nothing happens without consent.
        with pytest.raises(Conflict, match=r"takes a restart .*--restart"):
            await asyncio.to_thread(attaching.attach, vms, link, "others", Request(size_bytes=256 * MIB))
        assert libvirtd.virsh("dumpxml", "--inactive", "others") == before
        assert vms.list_vms() == []

        # With it, the guest is asked to shut down. This one has nobody who hears the power button, so it is told.
        wanted = Request(size_bytes=256 * MIB, restart=True)
        attached = asyncio.create_task(asyncio.to_thread(attaching.attach, vms, link, "others", wanted))
        async with guest(folder) as client:
            await wait_until(lambda: "vhostuser" in libvirtd.virsh("dumpxml", "--inactive", "others"), "it is changed")
            await client.shutdown()
        done = await attached
        assert (done.when, done.disk, done.serial) == ("restarted", "vdb", "others")
        async with guest(folder) as client:
            await swap_and_check(client, "others")
            counted = vms.channel("others", "blk").counters["requests"]
            assert counted["in"] > 1000

            # Pages are left of clusters that were in use in part, and nobody knows that the guest needs none of them.
            if vms.get_vm("others").pages > 1:
                with pytest.raises(Conflict, match="swapoff in the guest"):
                    await asyncio.to_thread(attaching.detach, vms, link, "others")
            gone = await asyncio.to_thread(attaching.detach, vms, link, "others", force=True)
            assert (gone.when, gone.removed) == ("now", True)
            assert canonical(libvirtd.virsh("dumpxml", "--inactive", "others")) == canonical(before)
            assert list((await client.hello())["disks"]) == ["tmem-root"]
            assert vms.list_vms() == []

            # It still shares its memory, so that it can be attached again at once.
            again = await asyncio.to_thread(attaching.attach, vms, link, "others", Request(size_bytes=256 * MIB))
            assert again.when == "now"
            # That libvirtd dies meanwhile changes nothing.
            libvirtd.kill()
            await swap_and_check(client, "others")
            libvirtd.wait_until_up()
            assert await asyncio.to_thread(attaching.detach, vms, link, "others", force=True)
            assert canonical(libvirtd.virsh("dumpxml", "--inactive", "others")) == canonical(before)
            await client.shutdown()
        await wait_until(lambda: libvirtd.virsh("domstate", "others") == "shut off", "the domain ends")
    except BaseException:
        kept = evidence_folder("test_a_running_domain")
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("console.log", "domain.xml"):
            if (folder / name).is_file():
                (kept / name).write_bytes((folder / name).read_bytes())
        raise
    finally:
        with contextlib.suppress(pytest.fail.Exception):  # it has ended already
            libvirtd.virsh("destroy", "others")
        libvirtd.virsh("undefine", "others")


EMPTY = """\
<domain type='qemu'>
  <name>empty</name><memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
</domain>
"""


async def test_a_closed_link_leaves_nothing(libvirtd: PrivateLibvirtd) -> None:
    """Callbacks hold a connection open, and with it what was to end with it."""
    libvirt = library()
    link = Link(libvirtd.uri)
    seen: list[tuple[str, Lifecycle]] = []
    link.watch(lambda name, what: seen.append((name, what)))
    link.run("empty", lambda connection: connection.createXML(EMPTY, libvirt.VIR_DOMAIN_START_AUTODESTROY).name())
    assert libvirtd.virsh("list", "--name") == "empty"
    await wait_until(lambda: ("empty", Lifecycle.STARTED) in seen, "the link hears of it")
    link.close()
    await wait_until(lambda: libvirtd.virsh("list", "--name") == "", "the domain ends")
    with pytest.raises(Conflict, match="was closed"):
        link.run("empty", lambda connection: connection.getHostname())


def state_of(vm: Vm) -> str:
    """Asked anew each time, which a type checker does not know."""
    return vm.state.value


@pytest.mark.vm
async def test_the_driver(
    libvirtd: PrivateLibvirtd, big_agent: AgentProcess, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made = big_agent.client.create_vm(VmCreate(name="driven", size_bytes=256 * MIB, queues=1))
    disk = VhostUserBlk(Path(made.socket), queues=1, serial="driven", reconnect_ms=1000)
    spec = VmSpec("driven", guest_image("6.1"), memory_mib=MEMORY_MIB, disks=(disk,), workdir=tmp_path)
    vm = LibvirtVm(spec, uri=libvirtd.uri)
    seen: list[tuple[str, Lifecycle]] = []
    other = Link(libvirtd.uri)
    unwatch = other.watch(lambda name, what: seen.append((name, what)))
    try:
        async with vm:
            assert ("driven", Lifecycle.STARTED) in seen
            await vm.agent.swap_on("driven", require_discard=True)
            hog = asyncio.create_task(vm.agent.hog(HOG_MIB // 2))
            # The daemon dies and comes again while the guest swaps: the domain goes on, and both links find it.
            libvirtd.kill()
            await wait_until(lambda: ("", Lifecycle.LOOK) in seen, "the other link looks again")
            assert (await hog).bad == 0
            assert state_of(vm) == "running"
        assert state_of(vm) == "stopped"
        assert libvirtd.virsh("list", "--all", "--name") == ""

        # One that somebody else ends has failed.
        vm = LibvirtVm(spec, uri=libvirtd.uri)
        await vm.start()
        libvirtd.virsh("destroy", "driven")
        await wait_until(lambda: state_of(vm) == "failed", "the driver hears of it")
        await vm.stop()
        assert state_of(vm) == "failed"
    except BaseException:
        vm.save_evidence(evidence_folder(request.node.name))
        raise
    finally:
        unwatch()
        other.close()
        await vm.kill()
    assert libvirtd.virsh("list", "--all", "--name") == ""
