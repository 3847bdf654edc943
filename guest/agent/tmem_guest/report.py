# SPDX-License-Identifier: Apache-2.0
"""What the host is told of this guest: its memory, its swap traffic, how long its tasks wait for memory."""

import contextlib
import os

from . import disks, stats

#: Where the module counts, a file for each source; and what of it is told.
_COUNTERS = "/sys/kernel/debug/tmem"
SOURCES = ("blkdev", "frontswap", "cleancache")
COUNTERS = (
    *("puts", "puts_done", "gets", "hits", "misses", "lost", "no_room", "over_cap", "frozen", "refused", "dropped"),
    *("channel_errors", "flushes_sent"),
)
_PRESSURE = "/proc/pressure/memory"

Report = dict[str, int | float]


def pressure(text: str) -> Report:
    """psi_some_avg10 and psi_full_avg10, percent, out of /proc/pressure/memory."""
    found: Report = {}
    for line in text.splitlines():
        kind, *words = line.split()
        for word in words:
            name, _, value = word.partition("=")
            if kind in ("some", "full") and name == "avg10":
                found[f"psi_{kind}_avg10"] = float(value)
    return found


def counters(source: str, text: str) -> Report:
    """A source's counters under names that begin with it, as in blkdev_puts."""
    found: Report = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name in COUNTERS and value.isdecimal():
            found[f"{source}_{name}"] = int(value)
    return found


def memory(meminfo: dict[str, int], vmstat: dict[str, int]) -> Report:
    """Bytes of /proc/meminfo, pages of /proc/vmstat; what this kernel does not have is left out."""
    told = {
        "mem_total": "MemTotal",
        "mem_available": "MemAvailable",
        "swap_total": "SwapTotal",
        "swap_free": "SwapFree",
    }
    found: Report = {name: meminfo[theirs] for name, theirs in told.items() if theirs in meminfo}
    found.update({name: vmstat[name] for name in ("pswpin", "pswpout") if name in vmstat})
    return found


def collect() -> Report:
    """A flat object of numbers; well below the 64 KiB of a control frame."""
    report = memory(stats.read_meminfo(), stats.read_vmstat())
    report["uptime_seconds"] = float(disks.read_text("/proc/uptime").split()[0])
    if os.path.exists(_PRESSURE):
        # A kernel that was told psi=0 has the file all the same.
        with contextlib.suppress(OSError):
            report.update(pressure(disks.read_text(_PRESSURE)))
    for source in SOURCES:
        if os.path.exists(f"{_COUNTERS}/{source}"):
            report.update(counters(source, disks.read_text(f"{_COUNTERS}/{source}")))
    return report
