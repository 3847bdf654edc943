# SPDX-License-Identifier: Apache-2.0
"""guest/image/packages.toml: which packages guests are made of, pinned by version and checksum."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from tmem_host.errors import NotFound
from tmem_host.vm.imagebuild import pins
from tmem_host.vm.imagebuild.apt import RELEASE, Package, PrivateApt, Releases

#: Series -> the release and its package that always depends on the newest kernel of that series.
META = {
    "5.10": ("bullseye", "linux-image-cloud-amd64"),
    "6.1": (RELEASE, "linux-image-cloud-amd64"),
    "6.12": (RELEASE, "linux-image-6.12-cloud-amd64"),
}
#: Series -> the release and its package with the kernel's sources, of which flavours of our own are built.
SOURCE = {"5.10": ("bullseye", "linux-source-5.10")}
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
_PART = re.compile(r"linux-headers-.*-common|linux-kbuild-.*")
_HEAD = """\
# SPDX-License-Identifier: Apache-2.0
# What guests are made of. Written by 'python -m tmem_host.vm.images lock'.
"""


@dataclass(frozen=True)
class Lock:
    """By series: the kernel's package, those with which modules are built for it, and its sources; and user space."""

    kernels: dict[str, Package]
    userland: tuple[Package, ...]
    headers: dict[str, tuple[Package, ...]] = field(default_factory=dict)
    sources: dict[str, Package] = field(default_factory=dict)


def read(path: Path) -> Lock:
    """What the file pins, or what took its place (:mod:`.pins`). Raises NotFound when it is not there or is no lock."""
    try:
        content = tomllib.loads(pins.pinned(path).read_text())
        kernels = {series: Package(**fields) for series, fields in content["kernel"].items()}
        headers = {series: _packages(listed) for series, listed in content.get("headers", {}).items()}
        sources = {series: Package(**fields) for series, fields in content.get("source", {}).items()}
        return Lock(kernels, _packages(content["userland"]), headers, sources)
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise NotFound(
            f"{path.name} cannot be read: {error}", "'git checkout' the file, or write it anew with 'lock'"
        ) from error


def _packages(listed: list[dict[str, str]]) -> tuple[Package, ...]:
    return tuple(Package(**fields) for fields in listed)


def write(path: Path, lock: Lock) -> None:
    lines = [_HEAD]
    for series, package in lock.kernels.items():
        lines.append(f'\n[kernel."{series}"]\n{_fields(package)}')
        lines += [f'\n[[headers."{series}"]]\n{_fields(part)}' for part in lock.headers.get(series, ())]
        if series in lock.sources:
            lines.append(f'\n[source."{series}"]\n{_fields(lock.sources[series])}')
    lines += [f"\n[[userland]]\n{_fields(package)}" for package in lock.userland]
    path.write_text("".join(lines))


def newest(releases: Releases) -> Lock:
    """What the mirror has now."""
    kernels, headers = {}, {}
    for series, (release, meta) in META.items():
        apt = releases[release]
        # Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
        kernels[series] = apt.newest(apt.show(meta)["Depends"].split()[0])
        headers[series] = _headers(apt, kernels[series].name.replace("linux-image-", "linux-headers-"))
    sources = {series: releases[release].newest(name) for series, (release, name) in SOURCE.items()}
    return Lock(kernels, tuple(releases[RELEASE].newest(name) for name in USERLAND), headers, sources)


def _headers(apt: PrivateApt, name: str) -> tuple[Package, ...]:
    """The flavour's headers, those common to all flavours, and the programs that build modules."""
    needed = [part.split()[0] for part in apt.show(name)["Depends"].split(", ")]
    return tuple(apt.newest(part) for part in [name, *filter(_PART.fullmatch, needed)])


def _fields(package: Package) -> str:
    release = "" if package.release == RELEASE else f'release = "{package.release}"\n'
    return f'name = "{package.name}"\nversion = "{package.version}"\nsha256 = "{package.sha256}"\n{release}'
