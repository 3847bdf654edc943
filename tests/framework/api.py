# SPDX-License-Identifier: Apache-2.0
"""The API in this process, over a real service: its client, and problems as tests look at them."""

from __future__ import annotations

from typing import Any

import httpx

from tmem_host.models import Problem

MIB = 1 << 20
WEB: dict[str, Any] = {"name": "web", "size_bytes": 4 * MIB}


def client_of(app: Any) -> httpx.AsyncClient:
    """A client of ``app``; a handler's bug has to be an answer too, so exceptions are not passed on to the test."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://agent/v1")


def problem(answer: httpx.Response, status: int, kind: str) -> Problem:
    """The problem that an answer is, which has that status and kind."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(answer.content)
    assert (found.status, found.kind, found.type) == (status, kind, f"urn:tmem:error:{kind}")
    assert "\n" not in found.detail
    return found
