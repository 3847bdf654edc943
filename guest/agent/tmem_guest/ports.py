# SPDX-License-Identifier: Apache-2.0
"""virtio-serial ports, found by the name that the host gave them."""

import contextlib
import os

ROOT = "/sys/class/virtio-ports"


def path_of(name: str) -> str:
    """Path of the port of that name; empty when there is none."""
    # Without the driver there is no such folder, and a port's file for its name comes when the host tells it.
    with contextlib.suppress(OSError):
        for entry in os.listdir(ROOT):
            with contextlib.suppress(OSError), open(f"{ROOT}/{entry}/name", encoding="ascii") as stream:
                if stream.read().strip() == name:
                    return f"/dev/{entry}"
    return ""
