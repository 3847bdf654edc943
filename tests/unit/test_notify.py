# SPDX-License-Identifier: Apache-2.0
"""sd_notify to a socket in the file system, in the abstract namespace, and to nobody."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import pytest

from tmem_host.notify import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_it_arrives(state: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"@tmem-{uuid.uuid4()}" if abstract else str(state / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_nobody_asked_or_nobody_listens(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(state / "gone"))
    assert not notify("READY=1")
