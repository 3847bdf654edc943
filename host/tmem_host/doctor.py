# SPDX-License-Identifier: Apache-2.0
"""What this host can and cannot do, and what to install: a list of findings, each with its advice.

``ok``: works.  ``limited``: works without something, and the advice says what.  ``missing``: nothing runs without it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel

from tmem_host.config import cache_dir, default_arena, default_limit, format_size, state_dir
from tmem_host.errors import TmemError, one_line

#: Guest kernels that the tests and benches use.
KERNELS: Final = ("5.10", "6.1", "6.12")
#: The one that guests have unless another is asked for.
TRIAL_KERNEL: Final = "6.1"
#: Seconds for a tool to say its version.
VERSION_DEADLINE: Final = 10.0


class Finding(BaseModel):
    """One thing that was looked at."""

    subject: str
    state: Literal["ok", "limited", "missing"]
    found: str
    advice: str = ""


def examine(state: Path | None = None, *, trial: bool = True) -> list[Finding]:
    """Looks at everything.  With ``trial`` a small guest is booted to find an accelerator that works: seconds."""
    folder = (state or state_dir()).absolute()
    checks: list[Callable[[], Finding]] = [
        _core,
        lambda: _agent(folder),
        lambda: _shared_memory(default_arena(folder).parent),
        _files,
        lambda: _tool("qemu-system-x86_64", "missing", "guests", "qemu-system-x86"),
        _kvm,
        *((lambda series=series: _image(series)) for series in KERNELS),
    ]
    if trial:
        checks.append(_accelerator)
    checks += [
        lambda: _tool("qemu-storage-daemon", "limited", "the channel bench", "qemu-system-common"),
        lambda: _tool("mmdebstrap", "limited", "the channel bench's other client", "mmdebstrap"),
        _zram,
        _libvirt,
        lambda: _tool("vagrant", "limited", "guests by Vagrant", "vagrant and vagrant-libvirt: make box"),
    ]
    return [check() for check in checks]


def print_findings(findings: list[Finding]) -> None:
    """One line a finding on stdout."""
    marks = {"ok": "ok", "limited": "--", "missing": "!!"}
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        advice = f"  ({finding.advice})" if finding.advice else ""
        print(f"{marks[finding.state]}  {finding.subject:<{width}}  {finding.found}{advice}")


def _core() -> Finding:
    try:
        from tmem_host import core
    except TmemError as error:
        return Finding(subject="core", state="missing", found=error.message, advice=error.hint)
    return Finding(subject="core", state="ok", found=f"loaded ({core.Store.__module__})")


def _agent(folder: Path) -> Finding:
    from tmem_host.client import AgentClient

    try:
        health = AgentClient(folder).health()
    except TmemError as error:
        return Finding(subject="agent", state="limited", found=error.message, advice=error.hint)
    found = f"version {health.version} serves {health.vms} VMs, process {health.pid}"
    return Finding(subject="agent", state="ok", found=found)


def _shared_memory(folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.parent
    system = os.statvfs(folder)
    room = system.f_bavail * system.f_frsize
    found = (
        f"{folder} has room for {format_size(room)}; without --limit the agent takes {format_size(default_limit(room))}"
    )
    if room < 256 << 20:
        return Finding(
            subject="shared memory", state="limited", found=found, advice=f"mount -o remount,size=50% {folder}"
        )
    return Finding(subject="shared memory", state="ok", found=found)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} at once (at most {hard})"
    if soft < 4096:
        advice = "about 20 a VM are needed: raise it with 'ulimit -n'"
        return Finding(subject="open files", state="limited", found=found, advice=advice)
    return Finding(subject="open files", state="ok", found=found)


def _tool(name: str, without: Literal["limited", "missing"], purpose: str, package: str) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(subject=name, state=without, found=f"not found; {purpose} need it", advice=f"install {package}")
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_DEADLINE, check=False
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(subject=name, state=without, found=one_line(str(error)), advice=f"reinstall {package}")
    return Finding(subject=name, state="ok", found=said.splitlines()[0] if said else path)


def _kvm() -> Finding:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Finding(
            subject="/dev/kvm", state="limited", found="not there; guests are emulated", advice="enable virtualisation"
        )
    except OSError as error:
        return Finding(
            subject="/dev/kvm",
            state="limited",
            found=f"{error.strerror}; guests are emulated",
            advice="add yourself to the group kvm and log in again",
        )
    from tmem_host.bench.properties import host_kvm_flavour

    found = f"opens: {host_kvm_flavour()}; micro-VMs run, whether a whole guest does, a trial tells"
    return Finding(subject="/dev/kvm", state="ok", found=found)


def _image(series: str) -> Finding:
    subject = f"guest {series}"
    try:
        from tmem_host.vm.images import guest_image

        image = guest_image(series)
    except TmemError as error:
        return Finding(subject=subject, state="limited", found=error.message, advice=error.hint)
    return Finding(subject=subject, state="ok", found=f"Linux {image.version} in {cache_dir()}")


def _accelerator() -> Finding:
    from tmem_host.vm.accel import find_accelerator
    from tmem_host.vm.images import guest_image

    try:
        found = asyncio.run(find_accelerator("qemu-system-x86_64", guest_image(TRIAL_KERNEL)))
    except TmemError as error:
        return Finding(subject="accelerator", state="limited", found=error.message, advice=error.hint)
    said = f"{found.name}: {one_line(found.why)}"
    if found.name == "kvm":
        return Finding(subject="accelerator", state="ok", found=said)
    advice = "guests are emulated: good for tests, not for figures about exits"
    return Finding(subject="accelerator", state="limited", found=said, advice=advice)


def _zram() -> Finding:
    if Path("/sys/class/zram-control").exists() or Path("/sys/block/zram0").exists():
        return Finding(subject="zram", state="ok", found="the kernel has it")
    return Finding(
        subject="zram", state="limited", found="the store bench cannot compare with it", advice="modprobe zram"
    )


def _libvirt() -> Finding:
    from tmem_host.vm.libvirt_link import SYSTEM, Link

    link = Link(SYSTEM)
    try:
        version = link.run("libvirt", lambda connection: connection.getLibVersion())
    except TmemError as error:
        return Finding(subject="libvirt", state="limited", found=error.message, advice=error.hint)
    finally:
        link.close()
    # Major, minor and release, three digits each.
    said = f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
    return Finding(subject="libvirt", state="ok", found=f"{said} answers at {SYSTEM}")
