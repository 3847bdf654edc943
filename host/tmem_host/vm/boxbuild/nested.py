# SPDX-License-Identifier: Apache-2.0
"""What makes a box a nested host: the agent, what it imports, QEMU, and a guest image to run in it.

Core and libraries are those of this machine's virtual environment, so that Python must be the box's, and the C library
that they want not newer than the box's.
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
from tmem_host import _core
from tmem_host.errors import Unavailable
from tmem_host.vm import images
from tmem_host.vm.boxbuild import units

_OWN: Final = "kvm-tmem"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Where it lies in the box; ``host`` and ``guest`` as in a checkout, as the one finds the other there.
_TREE: Final = "opt/tmem"
#: The box's, which is Debian 12.
_PYTHON: Final = (3, 11)
_C_LIBRARY: Final = (2, 36)
#: A version of the C library that a shared object asks for.
_WANTS: Final = re.compile(rb"GLIBC_(\d+)\.(\d+)")


def _folder() -> Path:
    return images.checkout() / "vagrant" / "host"


def check() -> None:
    """Raises Unavailable where the agent of this virtual environment would not run in the box."""
    here, there = sys.version_info[:2], _PYTHON
    if here != there:
        raise Unavailable(
            f"the box has Python {there[0]}.{there[1]}, and the agent's libraries here are for {here[0]}.{here[1]}",
            "make the virtual environment anew with PYTHON=python3.11, or use the role 'guests'",
        )
    core = Path(str(_core.__file__)).read_bytes()
    wanted = max((int(major), int(minor)) for major, minor in _WANTS.findall(core))
    if wanted > _C_LIBRARY:
        has, wants = (".".join(map(str, version)) for version in (_C_LIBRARY, wanted))
        raise Unavailable(
            f"the box's C library is {has}, and the core was built for {wants}",
            "build it on Debian 12, or use the role 'guests'",
        )


def packages() -> tuple[Path, ...]:
    """Lists of packages on top of the box's."""
    return (_folder() / "packages",)


def files() -> list[Path]:
    """Everything of ours that goes in, but the guest image."""
    own = Path(tmem_host.__file__).parent
    found = [path for folder in (own, _folder() / "files") for path in folder.rglob("*") if path.is_file()]
    return [units.unit("tmem"), *sorted(path for path in found if "__pycache__" not in path.parts)]


def lay_over(series: str, over: Path) -> None:
    """Adds agent, libraries, guest sources and image to the tree that is laid over the box's."""
    own = Path(tmem_host.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_folder() / "files", over, dirs_exist_ok=True)
    shutil.copy2(units.unit("tmem"), over / units.FOLDER)
    shutil.copytree(own, over / _TREE / "host" / "tmem_host", ignore=ignore)
    shutil.copytree(images.sources().root, over / _TREE / "guest", ignore=ignore, symlinks=True)
    for name in sorted(_needed(_OWN)):
        _copy(name, over / _TREE / "lib")
    _compile(over)
    image = images.guest_image(series)
    shutil.copytree(image.vmlinuz.parent, over / "var" / "cache" / "tmem" / "guests" / image.vmlinuz.parent.name)


def _compile(over: Path) -> None:
    """Under emulation an interpreter takes minutes over that."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(over / _TREE, quiet=2, stripdir=str(over), prependdir="/", invalidation_mode=mode)


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
