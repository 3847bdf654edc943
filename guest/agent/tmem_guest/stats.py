# SPDX-License-Identifier: Apache-2.0
"""Counters of the guest's kernel."""

import os

from . import PROTOCOL_VERSION, disks, libc, swap
from .protocol import Request


def hello(_request: Request) -> dict[str, object]:
    """Versions and what this guest offers."""
    uname = os.uname()
    return {
        "protocol": PROTOCOL_VERSION,
        "kernel": uname.release,
        "kernel_version": uname.version,
        "cpus": os.cpu_count(),
        "mem_total_bytes": read_meminfo()["MemTotal"],
        "clocksource": disks.read_text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "uptime_seconds": float(disks.read_text("/proc/uptime").split()[0]),
        "disks": disks.serials(),
    }


def read_meminfo() -> dict[str, int]:
    """/proc/meminfo, in bytes."""
    found = {}
    with open("/proc/meminfo", encoding="ascii") as stream:
        for line in stream:
            name, value = line.split(":")
            words = value.split()
            found[name] = int(words[0]) * (1024 if len(words) > 1 else 1)
    return found


def meminfo(_request: Request) -> dict[str, object]:
    """/proc/meminfo in bytes, and the active swap devices."""
    swaps = {path: {"bytes": size, "used": used} for path, (size, used) in swap.active().items()}
    return {"meminfo": read_meminfo(), "swaps": swaps}


def read_vmstat() -> dict[str, int]:
    """/proc/vmstat."""
    with open("/proc/vmstat", encoding="ascii") as stream:
        return {name: int(value) for name, value in (line.split() for line in stream)}


def vmstat(_request: Request) -> dict[str, object]:
    """/proc/vmstat."""
    return {"vmstat": read_vmstat()}


def dmesg(request: Request) -> dict[str, object]:
    """{bytes=16384} -> the end of the kernel's log."""
    length = request.number("bytes", 16384, 1, 200_000)
    return {"text": libc.kernel_log().decode(errors="replace")[-length:]}
