# SPDX-License-Identifier: Apache-2.0
"""guest/image/packages.toml: which packages guests are made of, pinned by version and checksum."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from tmem_host.errors import NotFound
from tmem_host.vm.imagebuild.apt import RELEASE, Package, Releases

#: Series -> the release and its package that always depends on the newest kernel of that series.
META = {
    "6.1": (RELEASE, "linux-image-cloud-amd64"),
    "6.12": (RELEASE, "linux-image-6.12-cloud-amd64"),
}
USERLAND = (
    "busybox-static",
    "libc6",
    "libexpat1",
    "libffi8",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
    "zlib1g",
)
_HEAD = """\
# SPDX-License-Identifier: Apache-2.0
# What guests are made of. Written by 'python -m tmem_host.vm.images lock'.
"""


@dataclass(frozen=True)
class Lock:
    """The kernel package of each series, and the packages of user space."""

    kernels: dict[str, Package]
    userland: tuple[Package, ...]


def read(path: Path) -> Lock:
    """Raises NotFound when there is no such file or it is not a lock."""
    try:
        content = tomllib.loads(path.read_text())
        kernels = {series: Package(**fields) for series, fields in content["kernel"].items()}
        return Lock(kernels, tuple(Package(**fields) for fields in content["userland"]))
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise NotFound(
            f"{path.name} cannot be read: {error}", "'git checkout' the file, or write it anew with 'lock'"
        ) from error


def write(path: Path, lock: Lock) -> None:
    lines = [_HEAD]
    for series, package in lock.kernels.items():
        lines.append(f'\n[kernel."{series}"]\n{_fields(package)}')
    lines += [f"\n[[userland]]\n{_fields(package)}" for package in lock.userland]
    path.write_text("".join(lines))


def newest(releases: Releases) -> Lock:
    """What the mirror has now."""
    kernels = {}
    for series, (release, meta) in META.items():
        apt = releases[release]
        # Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
        kernels[series] = apt.newest(apt.show(meta)["Depends"].split()[0])
    return Lock(kernels, tuple(releases[RELEASE].newest(name) for name in USERLAND))


def _fields(package: Package) -> str:
    release = "" if package.release == RELEASE else f'release = "{package.release}"\n'
    return f'name = "{package.name}"\nversion = "{package.version}"\nsha256 = "{package.sha256}"\n{release}'
