# SPDX-License-Identifier: Apache-2.0
"""What modules are built with: a kernel's header packages, unpacked into the cache and made to work from there."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Final

from tmem_host.config import cache_dir
from tmem_host.errors import NotFound
from tmem_host.vm.imagebuild import apt, build
from tmem_host.vm.imagebuild.lockfile import Lock

#: Raised when the code that prepares (not the packages) changes what comes out.
_PREPARER: Final = 1


def headers_key(series: str, lock: Lock) -> str:
    """Changes with the packages' checksums."""
    if series not in lock.headers:
        raise NotFound(f"no headers are pinned for kernel {series}", "run 'python -m tmem_host.vm.images lock'")
    digests = " ".join(package.sha256 for package in lock.headers[series])
    return hashlib.sha256(f"{_PREPARER} {digests}".encode()).hexdigest()[:16]


def kernel_build_folder(series: str, lock: Lock) -> Path:
    """The folder for ``make -C``, prepared if it is not there yet. Raises NotFound, Unavailable."""
    root = cache_dir() / "headers" / f"{series}-{headers_key(series, lock)}"
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root.parent) as name:
            made = Path(name) / "root"
            releases = apt.Releases(Path(name) / "apt")
            build.unpack_all(releases, list(lock.headers[series]), cache_dir() / "packages", made)
            _relocate(made, root)
            build.keep(made, root)
    return _flavour(root)


def _flavour(root: Path) -> Path:
    """The one folder that has a configuration; the others are what all flavours share."""
    (config,) = (root / "usr" / "src").glob("linux-headers-*/.config")
    return config.parent


def _relocate(made: Path, root: Path) -> None:
    """Points the flavour's Makefile into the tree: the links to scripts and tools are relative already.

    6.12 ships a vmlinux for its type information, which modules get with pahole: without it, they go without.
    """
    flavour = _flavour(made)
    makefile = flavour / "Makefile"
    makefile.write_text(makefile.read_text().replace("include /usr/src/", f"include {root}/usr/src/"))
    (flavour / "vmlinux").unlink(missing_ok=True)
