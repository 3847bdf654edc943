# SPDX-License-Identifier: Apache-2.0
"""Every route there is, from the app itself: what a stranger, a token of too little and a wrong body get."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from framework.api import MIB, client_of, problem
from tmem_host.api.app import make_app, scoped_routes
from tmem_host.api.doors import BODY_MAX, Buckets, LocalDoor, TokenDoor
from tmem_host.api.scoped import ScopedRoute
from tmem_host.audit import FILE as AUDIT_FILE
from tmem_host.config import AgentConfig
from tmem_host.service import Service
from tmem_host.tokens import SCOPES, Tokens

#: What is open to all: the description, which holds nothing of the agent's, and the web page's files.
OPEN = {"/openapi.json", "", "/"}
#: For a path's parameters.
PARAMETERS = {"name": "web", "number": "1", "uuid": "00112233445566778899aabbccddeeff"}


def path_of(route: ScopedRoute) -> str:
    return re.sub(r"{(\w+)}", lambda found: PARAMETERS[found[1]], route.path)


@pytest.fixture
def tokens(config: AgentConfig) -> Tokens:
    return Tokens(config.state)


def over_tcp(app: FastAPI, tokens: Tokens, scope: str | None, *, rate: float = 1e6) -> httpx.AsyncClient:
    """A client of a door with tokens; one of ``scope``, None without any."""
    client = client_of(TokenDoor(app, tokens, rate=rate))
    client.base_url = httpx.URL("http://agent")
    if scope is not None:
        client.headers["authorization"] = f"Bearer {tokens.add(f'of-{scope}', scope)}"
    return client


def test_every_route_has_a_scope(app: FastAPI) -> None:
    routes = scoped_routes(app)
    assert len(routes) > 30
    for route in app.routes:
        assert isinstance(route, ScopedRoute) or getattr(route, "path", None) in OPEN, route
        if isinstance(route, APIRoute):
            assert isinstance(route, ScopedRoute)
    described = app.openapi()["paths"]
    for route in routes:
        for method in route.methods or ():
            operation = described[route.path][method.lower()]
            assert operation["x-tmem-scope"] == route.needs
            assert operation["security"] == [{"token": []}]
            assert {"401", "403", "413", "422", "429"} <= operation["responses"].keys()
            assert route.needs == "read" if method == "GET" else route.needs in ("operate", "admin")


async def test_a_stranger_gets_nothing(app: FastAPI, tokens: Tokens) -> None:
    stranger = over_tcp(app, tokens, None)
    for route in scoped_routes(app):
        for method in route.methods or ():
            for content in (None, b"{", b"[]"):
                answer = await stranger.request(method, path_of(route), content=content)
                found = problem(answer, 401, "unauthorised")
                assert answer.headers["www-authenticate"] == "Bearer"
                assert found.hint


@pytest.mark.parametrize("scope", ["read", "operate"])
async def test_a_token_of_too_little_changes_nothing(
    app: FastAPI, tokens: Tokens, scope: str, service: Service, config: AgentConfig
) -> None:
    local = client_of(LocalDoor(app))
    assert (await local.post("/vms", json={"name": "web", "size_bytes": 4 * MIB})).status_code == 201
    before = (config.state_file.read_text(), service.list_pools().model_dump())
    client = over_tcp(app, tokens, scope)
    seen = 0
    for route in scoped_routes(app):
        if SCOPES.index(route.needs) <= SCOPES.index(scope):
            continue
        for method in route.methods or ():
            for content in (None, b"{", b"{}"):
                answer = await client.request(
                    method, path_of(route), content=content, headers={"content-type": "application/json"}
                )
                assert route.needs in problem(answer, 403, "denied").detail
                seen += 1
    assert seen > 30 or scope != "read"
    assert (config.state_file.read_text(), service.list_pools().model_dump()) == before


async def test_a_wrong_body_is_a_problem_on_every_route_that_takes_one(
    app: FastAPI, tokens: Tokens, service: Service
) -> None:
    client = over_tcp(app, tokens, "admin")
    await client.post("/v1/vms", json={"name": "web", "size_bytes": 4 * MIB})
    seen = 0
    for route in scoped_routes(app):
        if route.body_field is None:
            continue
        for method in route.methods or ():
            bodies: list[Any] = [[], "text", 5, {"no such field": 1}, {"weight": {}}, None]
            for body in bodies:
                answer = await client.request(method, path_of(route), json=body)
                problem(answer, 422, "invalid-input")
            for content in (b"{", b"\xff\xfe", b"[" * 10_000, b'{"name": 1e999}'):
                headers = {"content-type": "application/json"}
                problem(
                    await client.request(method, path_of(route), content=content, headers=headers), 422, "invalid-input"
                )
            large = await client.request(method, path_of(route), content=b" " * (BODY_MAX + 1))
            problem(large, 413, "too-large")
            seen += 1
    assert seen >= 6


async def test_a_body_without_a_length_is_cut_off(api: httpx.AsyncClient) -> None:
    async def endless() -> Any:
        while True:
            yield b" " * 65536

    problem(await api.post("/vms", content=endless()), 413, "too-large")


async def test_a_token_is_looked_at_before_all_else(app: FastAPI, tokens: Tokens) -> None:
    client = over_tcp(app, tokens, "read")
    assert (await client.get("/v1/vms")).json()["vms"] == []
    value = client.headers["authorization"].removeprefix("Bearer ")
    for header in ("Bearer", "Bearer x", f"Basic {value}", f"bearer {value}x", value):
        client.headers["authorization"] = header
        problem(await client.get("/v1/vms"), 401, "unauthorised")
    client.headers["authorization"] = f"bearer {value}"
    assert (await client.get("/v1/vms")).status_code == 200
    tokens.revoke("of-read")
    problem(await client.get("/v1/vms"), 401, "unauthorised")


async def test_who_comes_too_often_waits(app: FastAPI, tokens: Tokens) -> None:
    client = over_tcp(app, tokens, "read", rate=1.0)
    other = client_of(client._transport.app)  # type: ignore[attr-defined]
    other.headers["authorization"] = f"Bearer {tokens.add('other', 'read')}"
    answers = [(await client.get("/v1/health")) for _ in range(4)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    late = answers[-1]
    problem(late, 429, "too-many")
    assert 1 <= int(late.headers["retry-after"]) <= 2
    # Its neighbour does not.
    assert (await other.get("/health")).status_code == 200


async def test_who_guesses_waits_longer_and_harms_nobody(app: FastAPI, tokens: Tokens) -> None:
    client = over_tcp(app, tokens, "read")
    value = client.headers["authorization"]
    statuses = []
    for guess in range(12):
        client.headers["authorization"] = f"Bearer {guess}"
        statuses.append((await client.get("/v1/vms")).status_code)
    assert statuses[:10] == [401] * 10
    assert statuses[-1] == 429
    client.headers["authorization"] = value
    assert (await client.get("/v1/vms")).status_code == 200


def test_buckets_forget_who_came_least_recently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmem_host.api.doors._CLIENTS", 2)
    monkeypatch.setattr("tmem_host.api.doors.time.monotonic", lambda: 0.0)
    buckets = Buckets(1.0, 1.0)
    assert [buckets.take(name) for name in "aab"] == [0.0, 1.0, 0.0]
    assert buckets.take("a") == 1.0
    assert buckets.take("c") == 0.0
    assert len(buckets._left) == 2
    assert buckets.take("b") == 0.0


async def test_changes_are_written_down_and_tokens_are_not(app: FastAPI, tokens: Tokens, config: AgentConfig) -> None:
    client = over_tcp(app, tokens, "admin")
    value = client.headers["authorization"].removeprefix("Bearer ")
    await client.post("/v1/vms", json={"name": "web", "size_bytes": 4 * MIB})
    await client.get("/v1/vms")
    await client.patch("/v1/vms/web", json={"cap": 1})
    await client.delete("/v1/vms/nobody")
    await client.delete("/v1/vms/web", headers={"authorization": ""})
    file = config.state / AUDIT_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert value not in text
    entries = [json.loads(line) for line in text.splitlines()]
    assert [(entry["who"], entry["operation"], entry["status"]) for entry in entries] == [
        ("of-admin", "create_vm", 201),
        ("of-admin", "update_vm", 422),
        ("of-admin", "remove_vm", 404),
    ]
    assert entries[1]["body"] == {"cap": 1}
    assert all(entry["time"].endswith("+00:00") for entry in entries)


async def test_what_nobody_may_is_written_down_too(app: FastAPI, tokens: Tokens, config: AgentConfig) -> None:
    await over_tcp(app, tokens, None).delete("/v1/vms/web")
    await over_tcp(app, tokens, "read").delete("/v1/vms/web")
    entries = [json.loads(line) for line in (config.state / AUDIT_FILE).read_text().splitlines()]
    assert [(entry["who"], entry["status"]) for entry in entries] == [("nobody", 401), ("of-read", 403)]


async def test_an_audit_log_that_cannot_be_written_is_said(
    service: Service, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    (config.state / AUDIT_FILE).mkdir()
    client = client_of(LocalDoor(make_app(service)))
    assert (await client.post("/vms", json={"name": "web", "size_bytes": 4 * MIB})).status_code == 201
    assert "audit log" in caplog.text
