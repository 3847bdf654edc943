# SPDX-License-Identifier: Apache-2.0
"""A domain that somebody else defined gets a tmem swap disk and a port for the guest's agent, and gives them back.

A running domain whose memory is shared gets them at once. One whose memory is not has to be restarted for that, as QEMU
takes memory at its start: nothing is done then unless the caller agrees. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol
from xml.etree import ElementTree

from tmem_host.config import PAGE_SIZE, check_vm_name
from tmem_host.errors import Conflict, InvalidInput, NotFound, TmemError, VmFailed
from tmem_host.models import VmCreate, VmInfo
from tmem_host.vm import libvirt_edit as edit
from tmem_host.vm import qemu
from tmem_host.vm.libvirt_link import Link, library
from tmem_host.vm.libvirt_rights import check_qemu_user
from tmem_host.vm.spec import SERIAL_MAX

#: Seconds that a guest may take to shut down, and to let go of a disk.
SHUTDOWN_DEADLINE: Final = 180.0
RELEASE_DEADLINE: Final = 30.0
_SOON: Final = 0.1
#: VmCreate's bound.
_QUEUES_MAX: Final = 16
#: What a swap device holds that nobody swaps to: its header.
_HEADER_PAGES: Final = 1

#: When it holds: at once, after the restart that was just made, or from the domain's next start on.
When = Literal["now", "restarted", "next start"]


class Vms(Protocol):
    """The agent's VMs: :class:`tmem_host.client.AgentClient`, or the service within the agent."""

    def get_vm(self, name: str) -> VmInfo: ...
    def create_vm(self, wanted: VmCreate) -> VmInfo: ...
    def remove_vm(self, name: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What was done to a domain. ``disk`` is libvirt's name of the disk (vdb); empty after a detach."""

    domain: str
    vm: str
    when: When
    disk: str = ""
    #: Serial of the disk, as the guest sees it.
    serial: str = ""
    #: The agent's VM went with the disk.
    removed: bool = False


@dataclass(frozen=True)
class Request:
    """``vm``: the agent's VM, the domain's name if None; it is made when it is not there, with a swap device of
    ``size_bytes``, the domain's memory if None. ``restart`` and ``next_start``: what the caller agrees to."""

    vm: str | None = None
    size_bytes: int | None = None
    restart: bool = False
    next_start: bool = False


@dataclass(frozen=True)
class _Domain:
    """What is known of a domain before anything is done to it; ``live`` is None unless it runs."""

    name: str
    config: str
    live: str | None
    memory_bytes: int
    vcpus: int


def attach(agent: Vms, link: Link, domain: str, request: Request) -> Outcome:
    """Raises Conflict, with nothing changed, when it takes a restart that was not agreed to."""
    if request.restart and request.next_start:
        raise InvalidInput("a restart now and none at all exclude each other", "choose one")
    found = link.run(f"domain {domain}", lambda connection: _look(connection, domain))
    if edit.attached(found.config) is not None:
        raise Conflict(f"{domain} is attached already", f"see 'tmem vm show', or 'tmem vm detach {domain}' first")
    when = _when(found, request)
    vm, made = _vm(agent, found, request)
    try:
        _check_channel(link, vm)
        wanted = edit.Wanted(
            vm=vm.name,
            disk=_socket(vm, "blk"),
            ports=_ports(vm, edit.port_names(found.config, found.live)),
            queues=min(vm.queues, found.vcpus),
            made=made,
        )
        config = edit.attach(found.config, wanted)
        target = edit.disk_target(found.live if when == "now" and found.live is not None else found.config)
        link.run(f"{domain} cannot be changed", lambda connection: _define(connection, config))
        try:
            if when == "now" and found.live is not None:
                _attach_live(link, found, wanted, target)
        except BaseException:
            link.run(f"{domain} cannot be changed back", lambda connection: _define(connection, found.config))
            raise
    except BaseException:
        if made:
            with contextlib.suppress(TmemError):
                agent.remove_vm(vm.name)
        raise
    if when == "restarted":
        _restart(link, domain)
    return Outcome(domain, vm.name, when, target, vm.name[:SERIAL_MAX])


def detach(
    agent: Vms, link: Link, domain: str, *, vm: str | None = None, force: bool = False, next_start: bool = False
) -> Outcome:
    """The domain's XML is again what it was. Raises Conflict when a running guest may still have pages there.

    ``vm``: only if it is attached to that VM. ``force``: the guest has no pages there, or may lose them.
    ``next_start``: a running domain keeps what it has until it ends.
    """
    found = link.run(f"domain {domain}", lambda connection: _look(connection, domain))
    mark = edit.attached(found.config)
    if mark is None:
        raise NotFound(f"{domain} is not attached", "see 'virsh dumpxml'")
    if vm not in (None, mark.vm):
        raise Conflict(f"{domain} is attached to VM {mark.vm}, not {vm}", "name that one")
    live = found.live is not None and edit.device(found.live, edit.DISK_ALIAS) is not None
    if live and not next_start:
        _check_empty(agent, domain, mark.vm, force)
        _detach_live(link, domain)
    config = edit.detach(found.config)
    link.run(f"{domain} cannot be changed", lambda connection: _define(connection, config))
    removed = mark.made and not (live and next_start)
    if removed:
        with contextlib.suppress(NotFound):
            agent.remove_vm(mark.vm)
    return Outcome(domain, mark.vm, "next start" if live and next_start else "now", removed=removed)


# -- deciding ---------------------------------------------------------------------------------------------------------


def _when(found: _Domain, request: Request) -> When:
    if found.live is None:
        return "next start"
    if request.next_start:
        return "next start"
    if edit.shares_memory(found.live):
        return "now"
    if request.restart:
        return "restarted"
    raise Conflict(
        f"{found.name} runs and does not share its memory, which takes a restart",
        "add --restart to restart it now, or --next-start to have it when it starts the next time",
    )


def _vm(agent: Vms, found: _Domain, request: Request) -> tuple[VmInfo, bool]:
    """The agent's VM, and whether it was made here."""
    name = check_vm_name(request.vm or found.name)
    try:
        vm = agent.get_vm(name)
    except NotFound:
        size = request.size_bytes or found.memory_bytes // PAGE_SIZE * PAGE_SIZE
        queues = min(found.vcpus, _QUEUES_MAX)
        return agent.create_vm(VmCreate(name=name, size_bytes=size, channels=("blk", "serial"), queues=queues)), True
    states = {channel.kind: channel.state for channel in vm.channels}
    if "blk" not in states:
        raise Conflict(f"the agent's VM {name} has no swap disk", "name another with --vm")
    if states["blk"] == "connected":
        raise Conflict(f"somebody is connected to the agent's VM {name}", "name another with --vm")
    return vm, False


def _socket(vm: VmInfo, kind: str) -> Path:
    return Path(next(channel.socket for channel in vm.channels if channel.kind == kind))


def _ports(vm: VmInfo, taken: set[str]) -> tuple[edit.Port, ...]:
    """One over which the guest reports, if the VM has that channel, and one over which it is asked for work, unless
    somebody else has it by then: a guest has no two ports of one name."""
    agent = _socket(vm, "blk").with_name(f"{vm.name}.agent.sock")
    ports = [edit.Port(edit.AGENT_ALIAS, agent, qemu.AGENT_PORT)] if qemu.AGENT_PORT not in taken else []
    if any(channel.kind == "serial" for channel in vm.channels):
        ports.insert(0, edit.Port(edit.PORT_ALIAS, _socket(vm, "serial"), qemu.PAGES_PORT))
    return tuple(ports)


def _check_channel(link: Link, vm: VmInfo) -> None:
    socket = _socket(vm, "blk")
    try:
        owner = socket.stat().st_uid
    except OSError as error:
        raise InvalidInput(
            f"{socket} cannot be seen here: {error.strerror}", "run this where the agent runs, with its rights"
        ) from error
    check_qemu_user(link, owner)


def _check_empty(agent: Vms, domain: str, name: str, force: bool) -> None:
    try:
        pages = agent.get_vm(name).pages
    except NotFound:
        return
    if pages > _HEADER_PAGES and not force:
        raise Conflict(
            f"{domain} runs and has {pages} pages in the store, which its guest may need",
            "swapoff in the guest, then add --force; or --next-start to have it when it starts the next time",
        )


# -- doing ------------------------------------------------------------------------------------------------------------


def _domain(connection: Any, name: str) -> Any:
    libvirt = library()
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        with contextlib.suppress(libvirt.libvirtError):
            return connection.lookupByUUIDString(name)
        raise error


def _look(connection: Any, name: str) -> _Domain:
    libvirt = library()
    domain = _domain(connection, name)
    if not domain.isPersistent():
        raise Conflict(f"{name} is transient: libvirt forgets it at its end", "'virsh define' it first")
    config = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    live = domain.XMLDesc(0) if domain.isActive() else None
    vcpus = int(ElementTree.fromstring(config).findtext("vcpu") or 1)
    return _Domain(domain.name(), config, live, domain.maxMemory() * 1024, vcpus)


def _define(connection: Any, xml: str) -> None:
    connection.defineXML(xml)


def _attach_live(link: Link, found: _Domain, wanted: edit.Wanted, target: str) -> None:
    """The disk last: when that fails, ports that nobody uses are all that is left to take back."""
    libvirt = library()

    def give(xml: str) -> Callable[[Any], None]:
        return lambda connection: _domain(connection, found.name).attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def take_back(alias: str) -> None:
        with contextlib.suppress(TmemError):
            _take(link, found.name, alias)

    with contextlib.ExitStack() as undo:
        for port in wanted.ports:
            undo.callback(take_back, port.alias)
            link.run(f"{found.name} cannot be given a port", give(edit.port_xml(port)), again=False)
        try:
            link.run(f"{found.name} cannot be given a disk", give(edit.disk_xml(wanted, target)), again=False)
        except VmFailed as error:
            # libvirt (9.0, for one) does not remember over a restart of its own that a machine's memory can be shared.
            raise VmFailed(error.message, "add --next-start, and start the domain anew when it suits") from error
        undo.pop_all()


def _detach_live(link: Link, domain: str) -> None:
    for alias in edit.ALIASES:
        _take(link, domain, alias)


def _take(link: Link, domain: str, alias: str) -> None:
    """Asks the guest to let a device go and waits until it has. Raises VmFailed when it does not."""
    libvirt = library()

    def device(connection: Any) -> str | None:
        found = _domain(connection, domain)
        return edit.device(found.XMLDesc(0), alias) if found.isActive() else None

    def take(connection: Any) -> None:
        xml = device(connection)
        if xml is not None:
            _domain(connection, domain).detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    link.run(f"{domain} cannot be taken {alias}", take, again=False)
    what = f"{domain}: its guest did not let {alias} go"
    _wait(lambda: link.run(domain, device) is None, RELEASE_DEADLINE, what, "swapoff in the guest, or shut it down")


def _restart(link: Link, domain: str) -> None:
    """By the guest's own shutdown: a guest that does not obey keeps running, and is told of."""

    def active(connection: Any) -> bool:
        return bool(_domain(connection, domain).isActive())

    link.run(f"{domain} cannot be shut down", lambda connection: _domain(connection, domain).shutdown())
    what = f"{domain} did not shut down; it has its disk from its next start on"
    _wait(lambda: not link.run(domain, active), SHUTDOWN_DEADLINE, what, "shut it down in the guest, then start it")
    link.run(f"{domain} cannot be started", lambda connection: _domain(connection, domain).create(), again=False)


def _wait(done: Callable[[], bool], deadline: float, what: str, hint: str) -> None:
    until = time.monotonic() + deadline
    while not done():
        if time.monotonic() > until:
            raise VmFailed(f"{what} in {deadline:g} s", hint)
        time.sleep(_SOON)
