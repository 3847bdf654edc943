# SPDX-License-Identifier: Apache-2.0
"""Entry: PID 1 of the guest. It never returns: a crash is a kernel panic, which ends the VM and shows in its log."""

import os
import sys
import time

from . import PORT_NAME, libc, ports, server


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
    fd = os.open(find_port(), os.O_RDWR | os.O_CLOEXEC)
    service = server.Server(lambda data: server.write_all(fd, data))
    print(f"tmem-guest: agent up {time.monotonic():.2f} s after boot", flush=True)
    while not service.stopped:
        data = os.read(fd, 65536)
        if data:
            service.feed(data)
        else:
            # The host has no one at its end, and the driver then neither blocks nor has an event to wait for.
            time.sleep(0.02)
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
    start()
