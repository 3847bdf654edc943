# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3): tells the service manager, or whoever set ``$NOTIFY_SOCKET``, how far this process is."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(message: str) -> bool:
    """Sends ``message`` (``READY=1``, ``STOPPING=1``); False when nobody asked for it or nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    # A leading @ is an address in the abstract namespace.
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(message.encode("utf-8"), target)
    except OSError as error:
        log.warning("the service manager cannot be told %s: %s", message, error)
        return False
    return True
