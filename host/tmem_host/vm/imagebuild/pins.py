# SPDX-License-Identifier: Apache-2.0
"""Pins that outlive the mirror.

The repository pins packages by version and checksum. A mirror keeps a version until a newer one comes, so on a machine
with an empty cache a pin sooner or later names what nobody can have any more. Then what the mirror has now takes its
place, for that file of pins and on this machine only: integrity is then by the archive's signature, which apt checks,
and what was taken is written to the cache folder, so that every later build is made of the same.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tmem_host.config import cache_dir
from tmem_host.vm.imagebuild.apt import PackageGone

T = TypeVar("T")


def pinned(path: Path) -> Path:
    """The file to read for the repository's ``path``: itself, unless the mirror has dropped something that it names."""
    renewed = _renewed(path)
    return renewed if renewed.is_file() else path


def _renewed(path: Path) -> Path:
    # By content: pins that the repository renews are tried first again.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "none"
    return cache_dir() / "pins" / f"{path.name}-{digest}"


def renewing(path: Path, renew: Callable[[Path], None], build: Callable[[], T]) -> T:
    """``build()``; if the mirror has dropped what ``path`` pins, once more after ``renew`` has written what it has now.

    ``renew`` gets the file to write. Raises what ``build`` and ``renew`` raise, PackageGone among it when what was
    written before is gone in turn and so is what was written now.
    """
    try:
        return build()
    except PackageGone as error:
        print(f"tmem: {error.message}; taking what the mirror has now", file=sys.stderr)
    target = _renewed(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pinning-", dir=target.parent) as name:
        fresh = Path(name) / path.name
        renew(fresh)
        fresh.replace(target)
    return build()
