# SPDX-License-Identifier: Apache-2.0
"""Workloads in guests under the host's control by REST: guests of the agent's own, and of a libvirt domain."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

from framework.agents import AgentFactory
from framework.libvirtd import private_libvirtd
from framework.vm import MEMORY_MIB, evidence_folder
from tmem_host.agent_process import AgentProcess
from tmem_host.bench.results import Results
from tmem_host.client import AgentClient
from tmem_host.models import MachineSpec, RunCreate, RunInfo, VmCreate
from tmem_host.vm import qemu
from tmem_host.vm.images import KernelImage, guest_image
from tmem_host.vm.spec import VmSpec

pytestmark = pytest.mark.vm

MIB = 1 << 20
#: More than such a guest has to give; and little, as a page that comes back takes a fifth of a millisecond under TCG.
DATA_MIB = 48
#: Seconds for what takes ten on an idle machine.
DEADLINE = 180.0


@pytest.fixture
def agent(make_agent: AgentFactory) -> AgentProcess:
    made = make_agent(limit="1G")
    made.start()
    return made


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.05)


@contextmanager
def evidence(request: pytest.FixtureRequest, agent: AgentProcess, name: str) -> Iterator[None]:
    """What a guest of the agent's said is kept when the test fails."""
    try:
        yield
    except BaseException:
        kept = evidence_folder(request.node.name)
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "agent.log").write_bytes((agent.state / "agent.log").read_bytes())
        for file in (agent.state / "machines" / name).glob("*"):
            (kept / file.name).write_bytes(file.read_bytes())
        raise


def start(client: AgentClient, name: str) -> None:
    client.start_vm(name)

    def told() -> str:
        machine = client.get_vm(name).machine
        assert machine is not None
        assert machine.state != "failed", machine.reason
        return machine.state

    until(lambda: told() == "running", "the guest runs")


def work(vm: str, arms: str, **settings: Any) -> RunCreate:
    return RunCreate(bench="guest", quick=True, arms=arms, settings={"vm": vm, "mib": DATA_MIB, **settings})


def follow(client: AgentClient, run: RunInfo) -> list[tuple[str, dict[str, Any]]]:
    """Events up to its end."""
    return [(kind, data) for _seq, kind, data in client.follow_run(run.id)]


def check(client: AgentClient, run: RunInfo, arms: list[str]) -> Results:
    """What a run that came to its end left."""
    assert (client.get_run(run.id).state, client.get_run(run.id).reason) == ("done", "")
    (found,) = client.run_results(run.id)
    results = Results.model_validate(found)
    assert results.complete
    assert results.arms() == arms
    for arm in arms:
        assert results.find("bad", arm=arm)[0].samples == [0.0]
        # The host's own figures: what did not fit came here.
        assert results.find("host_puts", arm=arm)[0].samples[0] > 0
        assert results.find("host_held", arm=arm)[0].samples[0] > 0
        assert results.find("latency", arm=arm, main=True)
    report = client.run_report(run.id).decode()
    assert "Latency by workload" in report
    assert "the guest's word" in report.replace("&#x27;", "'")
    return results


def test_a_guest_of_the_agent_works_and_is_stopped(agent: AgentProcess, request: pytest.FixtureRequest) -> None:
    client = agent.client
    client.create_vm(VmCreate(name="web", size_bytes=128 * MIB, machine=MachineSpec(memory_mib=MEMORY_MIB)))
    with evidence(request, agent, "web"):
        # Nobody to work: a run says so.
        too_early = client.create_run(work("web", "zipf"))
        follow(client, too_early)
        assert "the guest of web is stopped" in client.get_run(too_early.id).reason

        start(client, "web")
        run = client.create_run(work("web", "zipf,hog", seconds=2))
        events = follow(client, run)
        assert [data["state"] for kind, data in events if kind == "state"] == ["running", "done"]
        told = [data["detail"] for kind, data in events if kind == "progress" and data["detail"]]
        assert any(detail.startswith(("zipf, ", "hog, ")) and " of " in detail for detail in told)
        results = check(client, run, ["zipf", "hog"])
        guest = results.properties.guest
        assert (guest["vm"], guest["source"], guest["vcpus"]) == ("web", "virtio-blk", 1)
        assert guest["accelerator"] in ("tcg", "kvm")

        # Cancelled in its midst, the workload ends in the guest, too: its memory and its swap are free again.
        endless = client.create_run(work("web", "redis", seconds=3600))
        for _seq, kind, data in client.follow_run(endless.id):
            if kind == "progress" and data["detail"]:
                client.cancel_run(endless.id)
        assert client.get_run(endless.id).state == "cancelled"
        again = client.create_run(work("web", "zipf", seconds=1, samples=100))
        follow(client, again)
        check(client, again, ["zipf"])

        client.stop_vm("web")
        until(lambda: (m := client.get_vm("web").machine) is not None and m.state == "stopped", "the guest stops")
        assert not (agent.state / "vms" / "web.agent.sock").exists()
        client.remove_vm("web")


DOMAIN = """\
<domain type='qemu'>
  <name>others</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel.vmlinuz}</kernel><initrd>{kernel.initramfs}</initrd><cmdline>{line}</cmdline>
  </os>
  <features><acpi/></features><cpu mode='maximum'/><on_reboot>destroy</on_reboot>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file={root}/><target dev='vda' bus='virtio'/>
      <serial>tmem-root</serial><readonly/>
    </disk>
    <serial type='file'><source path={console}/></serial>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>
"""


def domain(kernel: KernelImage, console: Path) -> str:
    """Somebody's, with nothing of tmem: its guest's agent gets its port, and its swap, by being attached."""
    return DOMAIN.format(
        memory=MEMORY_MIB,
        kernel=kernel,
        line=qemu.kernel_line(VmSpec("others", kernel)),
        root=quoteattr(str(kernel.rootdisk)),
        console=quoteattr(str(console)),
    )


def test_a_guest_of_libvirts_works(agent: AgentProcess, state: Path) -> None:
    pytest.importorskip("libvirt", reason="libvirt-python is not installed ('make libvirt')")
    from tmem_host.vm import libvirt_attach as attaching
    from tmem_host.vm.libvirt_link import Link

    client = agent.client
    file = state / "domain.xml"
    file.write_text(domain(guest_image("6.1"), state / "console.log"))
    with tempfile.TemporaryDirectory(prefix="tmem-lv-") as folder, private_libvirtd(Path(folder)) as libvirtd:
        libvirtd.virsh("define", str(file))
        link = Link(libvirtd.uri)
        try:
            attaching.attach(client, link, "others", attaching.Request(size_bytes=128 * MIB))
            libvirtd.virsh("start", "others")
            swap_on(agent, "others")
            run = client.create_run(work("others", "zipf", seconds=2))
            follow(client, run)
            results = check(client, run, ["zipf"])
            assert results.properties.guest["accelerator"] == "unknown"
        except BaseException:
            kept = evidence_folder("test_a_guest_of_libvirts_works")
            kept.mkdir(parents=True, exist_ok=True)
            for log in (state / "console.log", state / "agent.log"):
                kept.joinpath(log.name).write_bytes(log.read_bytes() if log.is_file() else b"")
            raise
        finally:
            if libvirtd.virsh("domstate", "others") != "shut off":
                libvirtd.virsh("destroy", "others")
            libvirtd.virsh("undefine", "others")
            link.close()


def swap_on(agent: AgentProcess, name: str) -> None:
    """What an operator, or tmem_guest as a service, does in that guest: here it has no other way in."""
    import asyncio

    from tmem_host.vm.guest_client import GuestClient

    async def ask() -> None:
        guest = GuestClient(name)
        await guest.connect(agent.state / "vms" / f"{name}.agent.sock")
        try:
            await guest.hello(DEADLINE)
            await guest.swap_on(name, require_discard=True)
        finally:
            await guest.close()

    asyncio.run(ask())
