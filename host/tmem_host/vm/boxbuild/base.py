# SPDX-License-Identifier: Apache-2.0
"""The box's Debian tree, as a tar file in the cache: mmdebstrap, the machine's own mirror, no rights beyond ours."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tmem_host.config import cache_dir
from tmem_host.errors import NotFound, Unavailable, VmFailed
from tmem_host.vm import images
from tmem_host.vm.imagebuild import apt

#: Raised when the code that builds (not what goes in) changes what comes out.
_BUILDER: Final = 1
_SECONDS: Final = 1800
#: Nobody reads there, and it is a third of the tree.
_NOT_NEEDED: Final = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")


def box_folder() -> Path:
    """vagrant/box of the checkout whose guests are used."""
    folder = images.checkout() / "vagrant" / "box"
    if not (folder / "packages").is_file():
        raise NotFound(f"there is no {folder / 'packages'}", "run it from a checkout")
    return folder


def packages(text: str) -> list[str]:
    """Names out of vagrant/box/packages."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def base_key(folder: Path, more: tuple[Path, ...] = ()) -> str:
    """Changes with the packages' names and with what is done to their tree; a new version of one changes nothing.

    ``more``: further lists of packages.
    """
    digest = hashlib.sha256(f"{_BUILDER} {apt.RELEASE} {' '.join(_NOT_NEEDED)}".encode())
    for path in (folder / "packages", folder / "customize", *more):
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def base_tree(more: tuple[Path, ...] = ()) -> Path:
    """The tar file; made when it is not there, in a minute or two. Raises Unavailable, VmFailed."""
    folder = box_folder()
    done = cache_dir() / "boxes" / f"base-{base_key(folder, more)}.tar"
    if done.is_file():
        return done
    if shutil.which("mmdebstrap") is None:
        raise Unavailable("mmdebstrap is not installed", "apt install mmdebstrap, or run scripts/install-deps")
    done.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=done.parent) as name:
        work = Path(name)
        source = apt.PrivateApt(work / "apt", apt.RELEASE)
        source.update()
        lists = (folder / "packages", *more)
        names = [name for path in lists for name in packages(path.read_text())]
        _mmdebstrap(names, folder / "customize", work / "apt" / "sources.list", work / "base.tar")
        (work / "base.tar").rename(done)
    return done


def _mmdebstrap(names: list[str], customize: Path, sources: Path, target: Path) -> None:
    argv = [
        "mmdebstrap",
        "--quiet",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--variant=minbase",
        f"--include={','.join(names)}",
        "--aptopt=APT::Install-Recommends false",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_NEEDED),
        f"--customize-hook={customize}",
        apt.RELEASE,
        str(target),
        str(sources),
    ]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise VmFailed(f"mmdebstrap took longer than {_SECONDS} s", "is the mirror reachable?") from error
    if done.returncode != 0:
        words = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise VmFailed(f"mmdebstrap failed: {words[-1] if words else done.returncode}", "is the mirror reachable?")
