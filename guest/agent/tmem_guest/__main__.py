# SPDX-License-Identifier: Apache-2.0
"""Entry of the small image: PID 1 of the guest. It never returns: a crash is a kernel panic, which ends the VM and
shows in its log. Run as a program: the command line (:mod:`.cli`).
"""

import os
import sys
import time

from . import PORT_NAME, libc, ports, server
from .port import Port


def find_port() -> str:
    """Path of the port, waiting for the kernel to announce its name. Raises RuntimeError after 10 s."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if path := ports.path_of(PORT_NAME):
            return path
        time.sleep(0.01)
    raise RuntimeError(f"no virtio-serial port named {PORT_NAME}")


def main() -> None:
    import threading

    # Swapping the agent out would disturb what is measured, and lose it on a device that keeps nothing.
    libc.mlockall()
    threading.stack_size(256 * 1024)
    port = Port(find_port())
    print(f"tmem-guest: agent up {time.monotonic():.2f} s after boot", flush=True)
    server.serve(port)
    os.sync()
    # reboot(LINUX_REBOOT_CMD_POWER_OFF)
    libc.power_off()


def start() -> None:
    """main(), with its failure on the console before the kernel's panic."""
    try:
        main()
    except BaseException as error:
        print(f"tmem-guest: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise


if __name__ == "__main__":
    from .cli import main as command_line

    sys.exit(command_line())
