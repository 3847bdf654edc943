# SPDX-License-Identifier: Apache-2.0
"""Attaching libvirt domains by REST: what is refused, and that nothing is made then. tests/integration has the rest."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from framework.api import problem


@pytest.mark.parametrize("verb", ["attach", "detach"])
async def test_nobody_answers(api: httpx.AsyncClient, tmp_path: Path, verb: str) -> None:
    body = {"connect": f"qemu+unix:///system?socket={tmp_path / 'none'}"}
    said = problem(await api.post(f"/vms/web/{verb}", json=body), 409, "conflict")
    assert "is libvirtd running" in said.hint or "make libvirt" in said.hint
    assert (await api.get("/vms")).json()["vms"] == []


@pytest.mark.parametrize(
    "body",
    [
        # Another host, and a program that a URI can have started.
        {"connect": "qemu+ssh://elsewhere/system"},
        {"connect": "qemu:///system?command=/bin/sh"},
        {"connect": "qemu+ext:///system?command=/bin/sh"},
        {"connect": "qemu+unix:///system?socket=/a&command=/bin/sh"},
        {"domain": ""},
        {"domain": "a/b"},
        {"restart": "now"},
        {"typo": True},
    ],
)
async def test_wrong_bodies(api: httpx.AsyncClient, body: dict[str, object]) -> None:
    (place,) = body
    assert place in problem(await api.post("/vms/web/attach", json=body), 422, "invalid-input").detail
