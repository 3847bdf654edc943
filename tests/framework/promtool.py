# SPDX-License-Identifier: Apache-2.0
"""Prometheus' own checker: the machine's, else the one of Debian's package, in the cache folder.

Not installed, as the package also starts a server that listens on every address.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tmem_host.config import cache_dir
from tmem_host.vm.imagebuild import apt


def promtool() -> Path:
    """The program.  Raises TmemError when it can neither be found nor fetched."""
    found = shutil.which("promtool")
    if found is not None:
        return Path(found)
    kept = cache_dir() / "tools" / "promtool"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".promtool-", dir=kept.parent) as name:
        folder = Path(name)
        source = apt.PrivateApt(folder / "apt")
        source.update()
        file = source.fetch(source.newest("prometheus"), cache_dir() / "packages")
        apt.unpack(file, folder / "root")
        program = folder / "root/usr/bin/promtool"
        program.chmod(0o755)
        program.rename(kept)
    return kept
