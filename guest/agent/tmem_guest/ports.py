# SPDX-License-Identifier: Apache-2.0
"""virtio-serial ports, found by the name that the host gave them."""

import os


def path_of(name: str) -> str:
    """Path of the port of that name; empty when there is none."""
    for entry in os.listdir("/sys/class/virtio-ports"):
        with open(f"/sys/class/virtio-ports/{entry}/name", encoding="ascii") as stream:
            if stream.read().strip() == name:
                return f"/dev/{entry}"
    return ""
