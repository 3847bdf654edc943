# SPDX-License-Identifier: Apache-2.0
"""Facts of the host that a reader needs to judge a figure, read once per run. A fact that cannot be had is None."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Collection
from functools import cache
from importlib import metadata
from pathlib import Path

from tmem_host.bench.results import Property

LIBRARIES = ("tmem-host", "kvm-tmem", "numpy", "scipy", "pydantic", "lz4", "zstandard", "qemu.qmp")
_SYS = Path("/sys/devices/system/cpu")


def host_properties() -> dict[str, Property]:
    """Machine, kernel, versions and load at this moment."""
    cpu = _cpuinfo()
    memory = _keyed(Path("/proc/meminfo"))
    return {
        "cpu": cpu.get("model name") or platform.processor() or None,
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "virtualised": "hypervisor" in cpu.get("flags", "").split(),
        "kvm_device": _kvm_device(),
        "hardware_virtualisation": _hardware_virtualisation(cpu.get("flags", "")),
        "kvm_flavour": host_kvm_flavour(),
        "memory_bytes": _kib(memory.get("MemTotal")),
        "memory_available_bytes": _kib(memory.get("MemAvailable")),
        "governor": _text(_SYS / "cpu0/cpufreq/scaling_governor"),
        "cpu_mhz": _float(cpu.get("cpu MHz")),
        "clocksource": _text(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        "transparent_hugepage": _chosen(_text(Path("/sys/kernel/mm/transparent_hugepage/enabled"))),
        "transparent_hugepage_shmem": _chosen(_text(Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled"))),
        "swaps": max(0, len((_text(Path("/proc/swaps")) or "").splitlines()) - 1),
        "kernel": platform.release(),
        "distribution": _distribution(),
        "python": platform.python_version(),
        "qemu": qemu_version(),
        "commit": tool_commit(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "load": [round(x, 2) for x in os.getloadavg()],
    }


@cache
def qemu_version(binary: str = "qemu-system-x86_64") -> str | None:
    """Version line of QEMU, e.g. '10.0.2 (Debian ...)'."""
    line = _output([binary, "--version"])
    found = re.search(r"version (.+)", line or "")
    return found.group(1).strip() if found else None


@cache
def tool_commit() -> str | None:
    """Commit of the source tree this runs from, with '+' when files differ from it; None when installed."""
    here = Path(__file__).resolve().parent
    commit = _output(["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"])
    if not commit:
        return None
    changed = _output(["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"])
    return commit.strip() + ("+" if changed else "")


def filesystem_of(path: Path) -> str:
    """Type of the filesystem that holds `path`, e.g. 'ext4'; 'unknown' when it is not to be found."""
    best, kind = "", "unknown"
    target = str(path.resolve())
    for line in (_text(Path("/proc/self/mounts")) or "").splitlines():
        fields = line.split()
        where = fields[1].encode().decode("unicode_escape")
        if (target == where or target.startswith(where.rstrip("/") + "/")) and len(where) >= len(best):
            best, kind = where, fields[2]
    return kind


def _cpuinfo() -> dict[str, str]:
    """Fields of the first CPU in /proc/cpuinfo."""
    first = (_text(Path("/proc/cpuinfo")) or "").split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _keyed(path: Path) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in (_text(path) or "").splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _kib(value: str | None) -> int | None:
    return int(value.split()[0]) * 1024 if value else None


def _float(value: str | None) -> float | None:
    return float(value) if value else None


def _chosen(value: str | None) -> str | None:
    """The bracketed word of a sysfs choice: 'always [madvise] never' -> 'madvise'."""
    found = re.search(r"\[(.+?)\]", value or "")
    return found.group(1) if found else value


def _kvm_device() -> str:
    device = Path("/dev/kvm")
    if not device.exists():
        return "absent"
    return "usable" if os.access(device, os.R_OK | os.W_OK) else "no permission"


def _hardware_virtualisation(flags: str) -> str:
    words = set(flags.split())
    return "VT-x" if "vmx" in words else "SVM" if "svm" in words else "none visible"


def kvm_flavour(device: str, modules: Collection[str], flags: str) -> str:
    """What KVM is here, in words: which hardware, or which software, runs its guests.

    `device`: as of the property `kvm_device`; `modules`: names below /sys/module that begin with kvm; `flags`: of
    /proc/cpuinfo. PVM is KVM without hardware virtualisation: guests run in user mode on shadow page tables.
    """
    if device != "usable":
        return f"none ({device})"
    words = set(flags.split())
    hardware = next((name for flag, name in (("vmx", "VT-x"), ("svm", "SVM")) if flag in words), None)
    if hardware is None:
        module = "module kvm_pvm" if "kvm_pvm" in modules else "no module of a vendor's hardware"
        return f"software ({'PVM' if 'kvm_pvm' in modules else 'unknown'}: {module}; the CPU shows neither vmx nor svm)"
    return f"hardware, nested ({hardware} in a virtual machine)" if "hypervisor" in words else f"hardware ({hardware})"


def host_kvm_flavour() -> str:
    """The flavour of this host's KVM."""
    modules = [path.name for path in Path("/sys/module").glob("kvm*")]
    return kvm_flavour(_kvm_device(), modules, _cpuinfo().get("flags", ""))


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _output(argv: list[str]) -> str | None:
    if shutil.which(argv[0]) is None:
        return None
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
