# SPDX-License-Identifier: Apache-2.0
"""What makes a box a nested host: the agent, what it imports, QEMU, and a guest image to run in it.

The core was compiled on this machine, so its C library must not be newer than the box's.
"""

from __future__ import annotations

import compileall
import py_compile
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import tmem_host
from tmem_host.errors import Unavailable
from tmem_host.vm import images

_OWN: Final = "kvm-tmem"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Where it lies in the box; ``host`` and ``guest`` as in a checkout, as the one finds the other there.
_TREE: Final = "opt/tmem"
#: The box's.
_PYTHON: Final = (3, 11)


def _folder() -> Path:
    return images.sources().root.parent / "vagrant" / "host"


def packages() -> tuple[Path, ...]:
    """Lists of packages on top of the box's."""
    return (_folder() / "packages",)


def files() -> list[Path]:
    """Everything of ours that goes in, but the guest image."""
    own = Path(tmem_host.__file__).parent
    found = [path for folder in (own, _folder() / "files") for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def lay_over(series: str, over: Path) -> None:
    """Adds agent, libraries, guest sources and image to the tree that is laid over the box's."""
    own = Path(tmem_host.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_folder() / "files", over, dirs_exist_ok=True)
    shutil.copytree(own, over / _TREE / "host" / "tmem_host", ignore=ignore)
    shutil.copytree(images.sources().root, over / _TREE / "guest", ignore=ignore, symlinks=True)
    for name in sorted(_needed(_OWN)):
        _copy(name, over / _TREE / "lib")
    _compile(over)
    image = images.guest_image(series)
    shutil.copytree(image.vmlinuz.parent, over / "var" / "cache" / "tmem" / "guests" / image.vmlinuz.parent.name)


def _compile(over: Path) -> None:
    """Under emulation an interpreter takes minutes over that; only one of the box's own version can do it here."""
    if sys.version_info[:2] == _PYTHON:
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        folder = over / _TREE
        compileall.compile_dir(folder, quiet=2, stripdir=str(over), prependdir="/", invalidation_mode=mode)


def _needed(name: str) -> set[str]:
    """Distributions that ``name`` needs at run time, without itself."""
    done: set[str] = set()
    wanted = [name]
    while wanted:
        for line in metadata.requires(wanted.pop()) or []:
            requirement, _, marker = line.partition(";")
            matched = _NAME.match(requirement)
            # What only an extra or another platform needs is not installed, or not needed.
            if matched is None or "extra" in marker or matched[0].lower() in done:
                continue
            try:
                metadata.distribution(matched[0])
            except metadata.PackageNotFoundError:
                continue
            done.add(matched[0].lower())
            wanted.append(matched[0])
    return done


def _copy(name: str, target: Path) -> None:
    """The files of an installed distribution that lie beside its modules."""
    for file in metadata.files(name) or []:
        source = Path(str(file.locate()))
        if ".." in file.parts or file.suffix == ".pyc" or not source.is_file():
            continue
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target / file)
    if not target.is_dir():
        raise Unavailable(f"the files of {name} are not known", "run 'make build'")
