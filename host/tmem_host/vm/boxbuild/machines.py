# SPDX-License-Identifier: Apache-2.0
"""What vagrant/Vagrantfile asks for: the plan of the machines, and what is done before and after one's life."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from tmem_host.client import AgentClient
from tmem_host.config import AgentConfig, cache_dir, state_dir
from tmem_host.errors import Conflict, NotFound, Unavailable, VmFailed
from tmem_host.models import VmCreate
from tmem_host.state import private_folder
from tmem_host.vm import process, qemu
from tmem_host.vm.accel import find_accelerator
from tmem_host.vm.boxbuild import built as built_files
from tmem_host.vm.boxbuild.settings import Settings
from tmem_host.vm.libvirt_link import Link, library
from tmem_host.vm.qemubuild.build import patched_qemu
from tmem_host.vm.spec import STOCK_QEMU, VhostUserBlk, VhostUserTmem

#: Of the pool and of the network, which exist as long as there are machines.
NAME: Final = "tmem-vagrant"
#: libvirt gives addresses from below, and the devices of ours are none that it knows.
_PCI_SLOT: Final = "0x1e"
#: The guest's words for the channels of its module: a virtqueue is one, whoever is at its other end.
_GUEST_CHANNELS: Final = {"vhost-user-tmem": "virtio-tmem", "virtio-serial": "virtio-serial"}
_AGENT_DEADLINE: Final = 60.0
_STOP_DEADLINE: Final = 30.0
#: How Vagrant writes a box's name as that of a folder.
_SLASH: Final = "-VAGRANTSLASH-"


def state_folder(settings: Settings) -> Path:
    return Path(settings.state).expanduser().absolute() if settings.state else state_dir()


def pool_folder(settings: Settings) -> Path:
    """Disks of the machines, and a copy of the box's that they share."""
    return state_folder(settings) / "vagrant"


# -- plan -------------------------------------------------------------------------------------------------------------


def plan(settings: Settings) -> dict[str, Any]:
    """Everything the Vagrantfile needs, fit for JSON. Raises NotFound when there is no box.

    A kernel or QEMU that is not built is no hindrance yet: machines must be destroyed also when the settings name one.
    """
    built = built_files.read()
    made = built.box(settings.role)
    image = built.kernels.get(settings.kernel)
    try:
        emulator = _emulator(settings)
    except NotFound:
        emulator = None
    path = process.find_qemu(emulator or STOCK_QEMU)
    version, _text = process.qemu_version(path)
    accelerator = "tcg"
    if image is not None:
        accelerator = asyncio.run(find_accelerator(path, image, wanted=settings.accel)).name
    config = AgentConfig(state=state_folder(settings))
    return {
        "box": {"name": made.name, "file": str(made.file), "key": str(made.key)},
        "libvirt": {"uri": settings.libvirt, "pool": NAME, "network": NAME, "address": settings.network},
        "accelerator": accelerator,
        "emulator": emulator,
        "memory": settings.host_memory_mib if settings.role == "host" else settings.memory_mib,
        "cpus": settings.vcpus,
        "kernel": str(image.vmlinuz) if image else "",
        "initrd": str(image.initramfs) if image else "",
        "machines": [machine(name, config, settings, version, accelerator) for name in settings.machines],
    }


def _emulator(settings: Settings) -> str | None:
    """The patched QEMU, whose device vhost-user-tmem needs; None: libvirt's own choice. Raises NotFound."""
    return str(patched_qemu()) if settings.channel == "vhost-user-tmem" else None


def machine(
    name: str, config: AgentConfig, settings: Settings, version: qemu.Version, accelerator: str
) -> dict[str, Any]:
    """One machine of the plan: a pure function."""
    # The first words are why qemu.kernel_line says.
    line = ["console=ttyS0", "quiet", "tsc=reliable", "no_timer_check", "net.ifnames=0", f"systemd.hostname={name}"]
    words: list[str] = []
    if settings.role == "host":
        line += ['tmem.set.source="none"']
    elif "blk" in settings.kinds:
        disk = VhostUserBlk(config.vm_socket(name), settings.vcpus, reconnect_ms=1000)
        words = qemu.vhost_user_blk("tmem0", disk, version)
    else:
        if "tmem" in settings.kinds:
            device = VhostUserTmem(config.vm_socket(name, "tmem"), settings.vcpus, reconnect_ms=1000)
            words = qemu.vhost_user_tmem("tmem0", device, settings.vcpus, version)
        # By vagrant/box/init these become the guest agent's settings.
        line += [f'tmem.set.source="{settings.source}"', f'tmem.set.channel="{_GUEST_CHANNELS[settings.channel]}"']
        line += [f"tmem.set.size_mib={settings.swap_mib}"]
    if words:
        words[-1] += f",addr={_PCI_SLOT}"
    return {
        "name": name,
        "cmdline": " ".join(line),
        "console": str(config.sockets / f"{name}.console.log"),
        "qemu": [*qemu.room_for_cpus(settings.vcpus, accelerator), *words],
        "channels": [] if settings.role == "host" else _ports(name, config),
    }


def _ports(name: str, config: AgentConfig) -> list[dict[str, str]]:
    return [
        {"name": qemu.AGENT_PORT, "path": str(config.vm_socket(name, "agent"))},
        {"name": qemu.PAGES_PORT, "path": str(config.vm_socket(name, "serial"))},
    ]


# -- before and after -------------------------------------------------------------------------------------------------


def prepare(settings: Settings, name: str) -> str:
    """Before a machine starts: a pool for its disk and, unless it has an agent of its own, one that answers here, with
    a VM of that name. What was done, in a line."""
    folder = state_folder(settings)
    built_files.read().kernel(settings.kernel)
    _emulator(settings)
    with _one_at_a_time():
        if settings.role == "host":
            private_folder(folder)
            private_folder(AgentConfig(state=folder).sockets)
            _ensure_pool(settings)
            return f"{name}: has an agent of its own"
        _check_rights(settings)
        client = AgentClient(folder)
        # It makes the state folder, where the pool is, this user's alone.
        _ensure_agent(client, folder)
        _ensure_pool(settings)
        size = settings.swap_mib << 20 if "blk" in settings.kinds else None
        wanted = VmCreate(name=name, size_bytes=size, channels=settings.kinds, queues=settings.vcpus)
        try:
            found = client.get_vm(name)
        except NotFound:
            found = client.create_vm(wanted)
        if (found.size_bytes or None) != size or {channel.kind for channel in found.channels} != set(settings.kinds):
            raise Conflict(
                f"the agent has a VM {name} of another kind", "'vagrant destroy' it, or choose another name in settings"
            )
        return f"{name}: the agent serves {found.socket}"


def forget(settings: Settings, name: str) -> None:
    """After a machine's end. After the last one's, pool, network and an agent that was started here end, too."""
    folder = state_folder(settings)
    with _one_at_a_time():
        client = AgentClient(folder)
        with contextlib.suppress(NotFound, Unavailable):
            if settings.role != "host":
                client.remove_vm(name)
        for path in (
            AgentConfig(state=folder).sockets / f"{name}.console.log",
            AgentConfig(state=folder).vm_socket(name, "agent"),
            AgentConfig(state=folder).vm_socket(name, "serial"),
        ):
            path.unlink(missing_ok=True)
        if _others(settings, name):
            return
        _remove_pool_and_network(settings)
        _remove_old_boxes({made.name for made in built_files.read().boxes.values()})
        _stop_own_agent(client, folder)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Vagrant brings machines up side by side."""
    with (cache_dir() / "boxes" / ".machines").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# -- the agent --------------------------------------------------------------------------------------------------------


def _note(folder: Path) -> Path:
    """Holds the process id of an agent that was started here."""
    return folder / "vagrant.pid"


def _ensure_agent(client: AgentClient, folder: Path) -> None:
    try:
        client.health()
        return
    except Unavailable:
        pass
    argv = [sys.executable, "-m", "tmem_host.cli", "serve", "--state", str(folder)]
    # What it has to say is in its log; Vagrant waits for whoever holds its own output open.
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    until = time.monotonic() + _AGENT_DEADLINE
    while True:
        try:
            health = client.health()
        except Unavailable as error:
            if child.poll() is not None or time.monotonic() > until:
                raise VmFailed("the agent did not start", f"see {folder / 'agent.log'}") from error
            time.sleep(0.05)
        else:
            _note(folder).write_text(f"{health.pid}\n")
            return


def _stop_own_agent(client: AgentClient, folder: Path) -> None:
    try:
        pid = int(_note(folder).read_text())
        mine = client.health().pid == pid and not client.list_vms()
    except (OSError, ValueError, Unavailable):
        return
    if not mine:
        return
    watched = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(watched, signal.SIGTERM)
        ended = select.poll()
        ended.register(watched, select.POLLIN)
        if not ended.poll(_STOP_DEADLINE * 1000):
            raise VmFailed(f"the agent, process {pid}, does not stop", "see its agent.log")
    finally:
        os.close(watched)
    _note(folder).unlink(missing_ok=True)


# -- libvirt ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _link(settings: Settings) -> Iterator[Link]:
    link = Link(settings.libvirt)
    try:
        yield link
    finally:
        link.close()


def _check_rights(settings: Settings) -> None:
    """The agent's sockets are its user's alone, so a QEMU that another user runs cannot open them."""
    from tmem_host.vm.libvirt_rights import check_qemu_user

    with _link(settings) as link:
        check_qemu_user(link, os.getuid())


def _ensure_pool(settings: Settings) -> None:
    folder = pool_folder(settings)
    folder.mkdir(exist_ok=True)
    xml = f"<pool type='dir'><name>{NAME}</name><target><path>{escape(str(folder))}</path></target></pool>"

    def ensure(connection: Any) -> None:
        known = {pool.name(): pool for pool in connection.listAllStoragePools()}
        pool = known.get(NAME) or connection.storagePoolDefineXML(xml)
        if not pool.isActive():
            pool.create()

    with _link(settings) as link:
        link.run(f"the pool {NAME}", ensure)


def _others(settings: Settings, name: str) -> list[str]:
    """Domains of the other machines of these settings' name."""

    def names(connection: Any) -> list[str]:
        return [domain.name() for domain in connection.listAllDomains()]

    with _link(settings) as link:
        found = link.run("the domains", names)
    ours = re.compile(re.escape(settings.name) + r"(\d+|-host)")
    return [other for other in found if other != name and ours.fullmatch(other)]


def _remove_pool_and_network(settings: Settings) -> None:
    libvirt = library()

    def remove(connection: Any) -> None:
        for network in connection.listAllNetworks():
            if network.name() == NAME:
                if network.isActive():
                    network.destroy()
                network.undefine()
        for pool in connection.listAllStoragePools():
            if pool.name() == NAME:
                if pool.isActive():
                    pool.refresh()
                    for volume in pool.listAllVolumes():
                        with contextlib.suppress(libvirt.libvirtError):
                            volume.delete()
                    pool.destroy()
                pool.undefine()

    with _link(settings) as link:
        link.run("the end of pool and network", remove)
    with contextlib.suppress(OSError):
        pool_folder(settings).rmdir()


def _remove_old_boxes(current: set[str]) -> None:
    """Vagrant keeps a copy of each box that it ever took, and ours has another name whenever it changes."""
    home = Path(os.environ.get("VAGRANT_HOME") or Path.home() / ".vagrant.d")
    kept = {name.replace("/", _SLASH) for name in current}
    for folder in (home / "boxes").glob(f"tmem{_SLASH}debian-*"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)
