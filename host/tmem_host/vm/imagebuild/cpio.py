# SPDX-License-Identifier: Apache-2.0
"""An initramfs archive, written directly: device nodes need no root, and equal inputs give equal bytes.

Format: "newc", Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat


class Archive:
    """Entries are owned by root and dated 0, in the order in which they were added."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def folder(self, path: str) -> None:
        self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, content: bytes, *, executable: bool = False) -> None:
        self._entry(path, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def link(self, path: str, target: str) -> None:
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        """The whole archive, padded to a multiple of 512 bytes."""
        self._inode = -1
        self._entry("TRAILER!!!", 0)
        return bytes(self._data) + bytes(-len(self._data) % 512)

    def _entry(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        #         inode, mode, uid, gid, links, mtime, size, device of the file, device of the node, name size, check
        fields = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
        self._data += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)
