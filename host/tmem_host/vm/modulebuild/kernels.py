# SPDX-License-Identifier: Apache-2.0
"""The kernels that the module is built for: the distribution's, by their header packages, and those that we build."""

from __future__ import annotations

from pathlib import Path

from tmem_host.vm import images
from tmem_host.vm.imagebuild import kernel, lockfile
from tmem_host.vm.modulebuild import headers


def kernel_key(series: str) -> str:
    """Changes with the kernel that the module is for."""
    origin = images.sources()
    lock = lockfile.read(origin.lock)
    if series in kernel.FLAVOURS:
        return kernel.kernel_key(series, origin, lock)
    return headers.headers_key(series, lock)


def kernel_build_folder(series: str) -> Path:
    """The folder for ``make -C``, prepared if need be."""
    origin = images.sources()
    lock = lockfile.read(origin.lock)
    if series in kernel.FLAVOURS:
        return kernel.built_kernel(series, origin, lock) / "source" / "build"
    return headers.kernel_build_folder(series, lock)
