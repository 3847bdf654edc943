# SPDX-License-Identifier: Apache-2.0
"""The kernel that a box is started with: a guest's, and drivers and an init of the box's own behind its initramfs."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from pathlib import Path
from typing import Final

from tmem_host.config import cache_dir
from tmem_host.vm import images
from tmem_host.vm.boxbuild import base
from tmem_host.vm.imagebuild import apt, build, lockfile, modules
from tmem_host.vm.imagebuild.cpio import Archive
from tmem_host.vm.modulebuild.module import GUEST_FOLDER, build_module

#: Raised when the code that builds (not what goes in) changes what comes out.
_BUILDER: Final = 1
#: Besides those of a guest: the box has a network, a source of randomness, and systemd, which asks for the last.
DRIVERS: Final = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "ext4", "autofs4")


def _key(image: images.KernelImage, module_key: str, folder: Path) -> str:
    digest = hashlib.sha256(f"{_BUILDER} {image.key} {module_key} {' '.join(DRIVERS)}".encode())
    digest.update((folder / "init").read_bytes())
    return digest.hexdigest()[:16]


def _target(image: images.KernelImage, module_key: str) -> Path:
    return cache_dir() / "boxes" / f"initramfs-{image.series}-{_key(image, module_key, base.box_folder())}"


def build_kernel(series: str) -> images.KernelImage:
    """The kernel and the box's initramfs, without a root disk. Builds what is missing of them and of tmem.ko."""
    image = images.build_image(series)
    module = build_module(series)
    target = _target(image, module.key)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as name:
            work = Path(name)
            lock = lockfile.read(images.sources().lock)
            releases = apt.Releases(work / "apt")
            build.unpack_all(releases, [lock.kernels[series]], cache_dir() / "packages", work / "kernel")
            made = work / "initramfs"
            made.write_bytes(image.initramfs.read_bytes() + _behind(work / "kernel", module.path))
            made.rename(target)
    return dataclasses.replace(image, initramfs=target, rootdisk=None, key=target.name)


def _behind(kernel_tree: Path, module: Path) -> bytes:
    """The second archive: the kernel unpacks it over the first."""
    archive = Archive()
    archive.file("init", (base.box_folder() / "init").read_bytes(), executable=True)
    drivers = modules.resolve(kernel_tree / "lib" / "modules", list(DRIVERS))
    for driver in drivers:
        archive.file(f"lib/modules/{driver.name}.ko", driver.image)
    archive.file("lib/modules/initramfs.order", "".join(f"{driver.name}\n" for driver in drivers).encode())
    archive.folder(GUEST_FOLDER)
    archive.file(f"{GUEST_FOLDER}/tmem.ko", module.read_bytes())
    return archive.finish()
