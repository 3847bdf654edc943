# SPDX-License-Identifier: Apache-2.0
"""Whether the QEMU that libvirt starts may open the agent's sockets, which are its user's alone (0600)."""

from __future__ import annotations

import pwd
from typing import Any
from xml.etree import ElementTree

from tmem_host.errors import Denied
from tmem_host.vm.libvirt_link import Link


def qemu_user(capabilities: str) -> int | None:
    """The user id of QEMU by libvirt's capabilities, whose DAC model has it as in ``+64055:+64055``; None: not told."""
    for model in ElementTree.fromstring(capabilities).iterfind("host/secmodel"):
        if model.findtext("model") == "dac":
            label = (model.findtext("baselabel") or "").split(":")[0].removeprefix("+")
            return int(label) if label.isdigit() else None
    return None


def check_qemu_user(link: Link, owner: int) -> None:
    """Raises Denied when QEMU runs as somebody else than ``owner``, the user of the agent, and is not root."""

    def capabilities(connection: Any) -> str:
        return str(connection.getCapabilities())

    user = qemu_user(link.run("libvirt's capabilities", capabilities))
    if user is not None and user not in (0, owner):
        raise Denied(
            f"{link.uri} runs QEMU as {_name(user)} and the agent's sockets belong to {_name(owner)}",
            f"run the agent as {_name(user)}, or set user in /etc/libvirt/qemu.conf: see docs/attach-libvirt.md",
        )


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
