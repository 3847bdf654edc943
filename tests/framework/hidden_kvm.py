# SPDX-License-Identifier: Apache-2.0
"""A command on a host without /dev/kvm: the real thing, in a mount namespace of its own."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence

#: What programs need of /dev.
_KEPT = ("null", "zero", "full", "random", "urandom", "tty")


def cannot_hide() -> str:
    """Why no such command can be made here; empty when it can."""
    if os.geteuid() != 0:
        return "a mount namespace needs root"
    return "" if shutil.which("unshare") else "unshare (util-linux) is not installed"


def without_kvm(argv: Sequence[str]) -> list[str]:
    """argv that runs `argv` where /dev has no kvm."""
    script = "\n".join(
        [
            "set -e",
            "d=$(mktemp -d)",
            "mount -t tmpfs none $d",
            *(f"touch $d/{name}; mount --bind /dev/{name} $d/{name}" for name in _KEPT),
            "mkdir $d/shm; mount --bind /dev/shm $d/shm",
            "mount --rbind $d /dev",
            # Its folder outside must not outlive this; what is mounted over /dev stays until the process ends.
            "umount -R $d; rmdir $d",
            f"exec {shlex.join(argv)}",
        ]
    )
    return ["unshare", "--mount", "--propagation", "private", "bash", "-c", script]
