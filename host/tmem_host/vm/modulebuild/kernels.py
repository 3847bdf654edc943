# SPDX-License-Identifier: Apache-2.0
"""The kernels that the module is built for: the distribution's, by their header packages."""

from __future__ import annotations

from pathlib import Path

from tmem_host.vm import images
from tmem_host.vm.imagebuild import lockfile
from tmem_host.vm.modulebuild import headers


def kernel_key(series: str) -> str:
    """Changes with the kernel that the module is for."""
    return headers.headers_key(series, lockfile.read(images.sources().lock))


def kernel_build_folder(series: str) -> Path:
    """The folder for ``make -C``, prepared if need be."""
    return headers.kernel_build_folder(series, lockfile.read(images.sources().lock))
