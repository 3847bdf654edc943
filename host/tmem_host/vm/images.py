# SPDX-License-Identifier: Apache-2.0
"""Guest images in the cache: where they are, and how they get there.

``python -m tmem_host.vm.images build [--kernel SERIES ...]`` makes those that are missing; ``lock`` pins what the
mirror has now.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from tmem_host.config import cache_dir
from tmem_host.errors import InvalidInput, NotFound, TmemError
from tmem_host.vm.imagebuild import apt, build, kernel, lockfile, pins

T = TypeVar("T")

#: The distribution's kernels.
SERIES: Final = ("5.10", "6.1", "6.12")
#: Those, and what is built besides unless somebody asks for others.
USUAL: Final = (*SERIES, "5.10-cleancache")
#: All there are.
ALL: Final = (*SERIES, *kernel.FLAVOURS)
#: Raised when the code that builds (not what goes in) changes what comes out.
_BUILDER: Final = 2


@dataclass(frozen=True)
class KernelImage:
    """A guest to boot: ``series`` as in 6.1, ``version`` the kernel's release, ``key`` what it was made from."""

    series: str
    version: str
    vmlinuz: Path
    initramfs: Path
    rootdisk: Path | None
    key: str = ""


def sources() -> build.Sources:
    """The guest's sources: ``$TMEM_GUEST_SOURCES``, else the guest folder of the checkout this package runs from."""
    given = os.environ.get("TMEM_GUEST_SOURCES")
    found = build.Sources(Path(given) if given else Path(__file__).resolve().parents[3] / "guest")
    if not found.lock.is_file():
        raise NotFound(f"there are no guest sources in {found.root}", "set TMEM_GUEST_SOURCES to guest/ of a checkout")
    return found


def checkout() -> Path:
    """The checkout that :func:`sources` lie in."""
    return sources().root.parent


def _check(series: str) -> None:
    if series not in ALL:
        raise InvalidInput(f"there is no guest kernel {series!r}", f"the choice is {', '.join(ALL)}")


def image_key(series: str, origin: build.Sources, lock: lockfile.Lock) -> str:
    """Changes with the packages' checksums and with every source file."""
    digest = hashlib.sha256(f"{_BUILDER} {series} {' '.join(build.HOG_FLAGS)}".encode())
    own = series in kernel.FLAVOURS
    digest.update((kernel.kernel_key(series, origin, lock) if own else lock.kernels[series].sha256).encode())
    for package in lock.userland:
        digest.update(package.sha256.encode())
    for path in origin.files():
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(origin.root)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _folder(series: str, key: str) -> Path:
    return cache_dir() / "guests" / f"{series}-{key}"


def guest_image(series: str) -> KernelImage:
    """The built image of a kernel series. Raises NotFound when it has not been built."""
    _check(series)
    origin = sources()
    key = image_key(series, origin, lockfile.read(origin.lock))
    folder = _folder(series, key)
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise NotFound(f"the guest image for kernel {series} is not built", "run 'make guests'") from error
    image = KernelImage(series, manifest["version"], folder / "vmlinuz", folder / "initramfs", folder / "root.img", key)
    for path in (image.vmlinuz, image.initramfs, folder / "root.img"):
        if not path.is_file():
            raise NotFound(f"{path} is missing", f"remove {folder} and run 'make guests'")
    return image


def build_image(series: str) -> KernelImage:
    """Builds what is missing. An interrupted build leaves nothing under the image's name."""
    _check(series)
    try:
        return guest_image(series)
    except NotFound:
        return with_pins(lambda: _build_image(series))


def with_pins(build: Callable[[], T]) -> T:
    """A build out of the packages that are pinned, or out of those that the mirror has in their place."""
    return pins.renewing(sources().lock, write_lock, build)


def _build_image(series: str) -> KernelImage:
    origin = sources()
    lock = lockfile.read(origin.lock)
    folder = _folder(series, image_key(series, origin, lock))
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    store = cache_dir() / "packages"
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as name:
        work = Path(name)
        releases = apt.Releases(work / "apt")
        if series in kernel.FLAVOURS:
            kernel_tree = kernel.built_kernel(series, origin, lock)
        else:
            kernel_tree = work / "kernel"
            build.unpack_all(releases, [lock.kernels[series]], store, kernel_tree)
        build.unpack_all(releases, list(lock.userland), store, work / "userland")
        programs = work / "programs"
        programs.mkdir()
        build.compile_hog(origin.hog, programs / "hog")
        build.compile_work(origin.work, programs / "work")
        build.root_tree(kernel_tree, work / "userland", programs, origin, work / "root")
        done = work / "done"
        done.mkdir()
        version, vmlinuz = build.kernel_image(kernel_tree)
        shutil.copy(vmlinuz, done / "vmlinuz")
        ramfs = build.initramfs(kernel_tree, work / "userland" / "bin" / "busybox", origin)
        (done / "initramfs").write_bytes(ramfs)
        build.root_disk(work / "root", done / "root.img")
        (done / "manifest.json").write_text(json.dumps({"series": series, "version": version}))
        done.rename(folder)
    return guest_image(series)


def write_lock(path: Path) -> None:
    """Pins what the mirror has now."""
    with tempfile.TemporaryDirectory(prefix="tmem-apt-") as name:
        lockfile.write(path, lockfile.newest(apt.Releases(Path(name))))


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tmem_host.vm.images", description="Guest images.")
    commands = parser.add_subparsers(dest="command", required=True)
    build_command = commands.add_parser("build", help="build the images that are missing")
    build_command.add_argument("--kernel", action="append", choices=ALL, help=f"default: {', '.join(USUAL)}")
    commands.add_parser("lock", help="pin the package versions that the mirror has now")
    options = parser.parse_args(arguments)
    try:
        if options.command == "lock":
            write_lock(sources().lock)
            return 0
        for series in options.kernel or USUAL:
            image = build_image(series)
            print(f"guest {series}: Linux {image.version}, {image.vmlinuz.parent}")
    except TmemError as error:
        print(f"tmem: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
