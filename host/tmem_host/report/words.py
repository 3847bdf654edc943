# SPDX-License-Identifier: Apache-2.0
"""What the arms of the exit and density benches are called in plots and tables: in words, not in option names."""

from __future__ import annotations

from collections.abc import Mapping

from tmem_host.bench.results import Record

PATHS: Mapping[str, tuple[str, str]] = {
    "none": ("No exit", "s8"),
    "kernel": ("Exit answered in the kernel", "s0"),
    "user": ("Exit to user space", "s2"),
    "thread": ("Handed to another thread", "s6"),
    "store": ("A page in the store, by PIO", "s7"),
    "disk": ("A page in a file, by PIO", "s4"),
}
"""Path of an exit (dimension `path`; store and disk: by its work): heading and colour class, cheapest first."""

KINDS: Mapping[str, str] = {
    "bare": "host thread, no VM",
    "loop": "guest loop that does nothing",
    "shared-poll": "shared memory, both sides poll",
    "cpuid": "CPUID",
    "hypercall": "hypercall",
    "kernel-device": "port of KVM's own PIC",
    "coalesced-mmio": "coalesced MMIO write",
    "coalesced-pio": "coalesced PIO write",
    "ioeventfd-post": "ioeventfd, nobody waits",
    "virtqueue-submit": "virtqueue filled and kicked",
    "pio": "PIO",
    "mmio": "MMIO",
    "ioeventfd-sleep": "ioeventfd to a sleeping thread",
    "ioeventfd-poll": "ioeventfd to a polling thread",
    "irqfd-sleep": "sleeping thread, irqfd back",
    "irqfd-poll": "polling thread, irqfd back",
    "reference-c": "PIO from a minimal C loop",
}

WORKS: Mapping[str, str] = {
    "nothing": "nothing",
    "copy-hot": "copy 4 KiB, in cache",
    "copy-cold": "copy 4 KiB, from memory",
    "lz4-compress": "lz4 compression",
    "lz4-decompress": "lz4 decompression",
    "zstd-compress": "zstd compression",
    "zstd-decompress": "zstd decompression",
    "put": "store put, lz4",
    "put-zstd": "store put, zstd",
    "put-bounce": "put by bounce buffer",
    "put-deferred": "put, compressed later",
    "get": "store get, lz4",
    "flush": "store flush",
    "exchange": "put and get at once",
    "put+get": "put, then get in an exit of its own",
    "cached-write": "write to page cache",
    "cached-read": "read from page cache",
    "disk-write": "O_DIRECT write",
    "disk-read": "O_DIRECT read",
    "uring-write": "io_uring write",
    "uring-read": "io_uring read",
}

CLASSES: Mapping[str, str] = {
    "plain": "neither cap nor weight set",
    "capped": "with a cap",
    "weight-100": "weight 100",
    "weight-300": "weight 300",
}


def kind_name(kind: str) -> str:
    """'PIO, 16-bit' for pio16; the name itself when it is not known."""
    if kind in KINDS:
        return KINDS[kind]
    base = kind.removesuffix("16")
    return f"{KINDS[base]}, 16-bit" if base != kind and base in KINDS else kind


def work_name(work: str) -> str:
    """'store put, lz4' for put."""
    return WORKS.get(work, work)


def arm_name(record: Record) -> str:
    """An arm of the exit bench in words: kind, then work where there is one."""
    kind, work = str(record.dimensions.get("kind", record.arm)), str(record.dimensions.get("work", "nothing"))
    name = kind_name(record.arm if record.arm in KINDS else kind)
    return name if work == "nothing" else f"{name}: {work_name(work)}"


def row_note(bench: str, row: str) -> str:
    """What a row of a headline table is, where its name alone does not say it."""
    if bench != "exit":
        return ""
    name = kind_name(row)
    return "" if name == row else name
