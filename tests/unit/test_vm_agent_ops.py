# SPDX-License-Identifier: Apache-2.0
"""Parts of the agent's operations that need no guest."""

from __future__ import annotations

import mmap
import struct

import pytest

from tmem_guest import blockio, modules, pages, swap
from tmem_guest.protocol import OpError, Request


def test_swap_header_is_what_the_kernel_reads() -> None:
    page = swap.header(1000)
    assert len(page) == 4096
    assert page[-10:] == b"SWAPSPACE2"
    assert struct.unpack_from("<III", page, 1024) == (1, 999, 0)


def test_io_contents_depend_on_place_and_seed() -> None:
    sectors = []
    for offset, seed in ((0, 1), (512, 1), (0, 2)):
        buffer = mmap.mmap(-1, 4096)
        blockio.fill(buffer, offset, seed)
        sectors.append(buffer[:512])
    assert len(set(sectors)) == 3


def elf_head(segments: list[tuple[int, int, int, int]]) -> bytes:
    """An ELF64 head with program headers (type, physical address, length, offset)."""
    head = bytearray(64)
    head[:4] = b"\x7fELF"
    struct.pack_into("<Q", head, 32, 64)
    struct.pack_into("<HH", head, 54, 56, len(segments))
    for kind, physical, length, offset in segments:
        head += struct.pack("<IIQQQQQQ", kind, 7, offset, 0, physical, length, length, 0)
    return bytes(head)


def test_ram_segments_leave_out_notes_and_what_has_no_physical_address() -> None:
    head = elf_head([(4, 0, 100, 10), (1, (1 << 64) - 1, 4096, 20), (1, 0x1000, 8192, 30), (1, 1 << 20, 4096, 40)])
    assert pages.ram_segments(head) == [(0x1000, 8192, 30), (1 << 20, 4096, 40)]


def test_ram_segments_of_something_else() -> None:
    with pytest.raises(OpError):
        pages.ram_segments(bytes(64))


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../etc", "tmem/../../x", "tmem//version", "./x"])
def test_paths_outside_debugfs_are_refused(path: str) -> None:
    with pytest.raises(OpError):
        modules.debugfs_path(Request(1, "debugfs_read", {"path": path}))


def test_debugfs_path() -> None:
    assert (
        modules.debugfs_path(Request(1, "debugfs_read", {"path": "tmem/version"})) == "/sys/kernel/debug/tmem/version"
    )


@pytest.mark.parametrize(
    "arguments", [{"name": "../x"}, {"name": ""}, {"parameters": []}, {"parameters": {"a": "b c=d"}}, {"name": 1}]
)
def test_bad_module_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(OpError) as refused:
        modules.module_load(Request(1, "module_load", arguments))
    assert refused.value.kind == "invalid"
