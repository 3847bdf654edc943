# SPDX-License-Identifier: Apache-2.0
"""Kernel modules out of a package's tree: found by name, decompressed, ordered by what they depend on.

The order differs between kernels (on 6.1 virtio_ring comes before virtio, on 5.10 after it), and packages carry no
modules.dep (depmod makes it on installation), so the modules' own .modinfo is asked.
"""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True)
class Module:
    """A loadable module: its ELF image and the names of those it needs."""

    name: str
    image: bytes
    depends: tuple[str, ...]


def canonical(name: str) -> str:
    """The name as the kernel has it: virtio-ring and virtio_ring are one."""
    return name.replace("-", "_")


def load(path: Path) -> Module:
    image = path.read_bytes()
    if path.suffix == ".xz":
        image = lzma.decompress(image)
    found = _DEPENDS.search(image)
    depends = found[1].decode().split(",") if found and found[1] else []
    return Module(canonical(path.name.split(".ko")[0]), image, tuple(map(canonical, depends)))


def resolve(tree: Path, wanted: list[str]) -> list[Module]:
    """The wanted modules and all they need, in an order in which they load.

    A name that the tree does not have is left out: it is built into that kernel, or another series' name for the same.
    """
    files = {canonical(path.name.split(".ko")[0]): path for path in tree.rglob("*.ko*")}
    done: dict[str, Module] = {}

    def visit(name: str) -> None:
        if name in done or name not in files:
            return
        module = load(files[name])
        for other in module.depends:
            visit(other)
        done[name] = module

    for name in wanted:
        visit(canonical(name))
    return list(done.values())
