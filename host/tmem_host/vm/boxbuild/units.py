# SPDX-License-Identifier: Apache-2.0
"""The systemd units of contrib: a box has the same as everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tmem_host.vm import images

#: Where they lie in a box.
FOLDER: Final = "etc/systemd/system"


def unit(name: str) -> Path:
    """The file of a unit."""
    return images.checkout() / "contrib" / "systemd" / f"{name}.service"
