# SPDX-License-Identifier: Apache-2.0
"""Every route of the API over a real service: shapes, states, and errors as problem+json."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from framework.api import WEB, problem
from tmem_host.models import VmList
from tmem_host.service import Service

MIB = 1 << 20


async def test_a_vm_from_post_to_delete(api: httpx.AsyncClient) -> None:
    made = await api.post("/vms", json=WEB)
    assert made.status_code == 201
    assert made.headers["location"] == "/v1/vms/web"
    assert made.json()["channel"] == "listening"
    assert (await api.get("/vms/web")).json() == made.json()
    assert (await api.get("/vms")).json() == {"vms": [made.json()], "next": None}
    changed = await api.patch("/vms/web", json={"cap": 6 * MIB, "reservation": "1M", "weight": 5})
    assert changed.status_code == 200
    assert (changed.json()["cap"], changed.json()["reservation"], changed.json()["weight"]) == (6 * MIB, MIB, 5)
    assert (await api.patch("/vms/web", json={"cap": None})).json()["cap"] is None
    assert (await api.post("/vms/web/freeze")).json()["frozen"] is True
    assert (await api.post("/vms/web/thaw")).json()["frozen"] is False
    channel = (await api.get("/vms/web/channel")).json()
    assert (channel["state"], channel["socket"]) == ("listening", made.json()["socket"])
    gone = await api.delete("/vms/web")
    assert (gone.status_code, gone.content) == (204, b"")
    problem(await api.delete("/vms/web"), 404, "not-found")


async def test_health_and_store(api: httpx.AsyncClient) -> None:
    health = (await api.get("/health")).json()
    assert (health["status"], health["vms"]) == ("ok", 0)
    store = (await api.get("/store")).json()
    assert store["limit_bytes"] == 64 * MIB
    assert store["recovery"]["fresh"] is True


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "name"),
        ({**WEB, "name": "../x"}, "name"),
        ({**WEB, "size_bytes": 5}, "size_bytes"),
        ({**WEB, "size_bytes": "much"}, "size_bytes"),
        ({**WEB, "size_bytes": 1e400}, "size_bytes"),
        ({**WEB, "codec": "gzip"}, "codec"),
        ({**WEB, "typo": 1}, "typo"),
        ([], ""),
        ("text", ""),
        (None, ""),
    ],
)
async def test_a_wrong_body_is_a_problem_that_names_the_place(api: httpx.AsyncClient, body: Any, place: str) -> None:
    text = httpx.Request("POST", "http://x", json=body).content if body != {**WEB, "size_bytes": 1e400} else b""
    content = text or b'{"name": "web", "size_bytes": 1e400}'
    answer = await api.post("/vms", content=content, headers={"content-type": "application/json"})
    assert place in problem(answer, 422, "invalid-input").detail
    assert (await api.get("/vms")).json()["vms"] == []


async def test_what_is_no_json_is_a_problem(api: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    problem(await api.post("/vms", content=b"{", headers=headers), 422, "invalid-input")
    problem(await api.post("/vms", content=b"\xff\xfe", headers=headers), 422, "invalid-input")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/vms/nobody", 404, "not-found"),
        ("PATCH", "/vms/nobody", 404, "not-found"),
        ("DELETE", "/vms/nobody", 404, "not-found"),
        ("POST", "/vms/nobody/freeze", 404, "not-found"),
        ("POST", "/vms/nobody/thaw", 404, "not-found"),
        ("GET", "/vms/nobody/channel", 404, "not-found"),
        ("GET", "/vms/UPPER", 422, "invalid-input"),
        ("GET", "/vms/" + "x" * 64, 422, "invalid-input"),
        ("GET", "/vms/..%2Fetc", 404, "not-found"),
        ("GET", "/nowhere", 404, "not-found"),
        ("PUT", "/vms", 405, "invalid-input"),
        ("DELETE", "/store", 405, "invalid-input"),
    ],
)
async def test_what_is_not_there_or_not_allowed(
    api: httpx.AsyncClient, method: str, path: str, status: int, kind: str
) -> None:
    body: dict[str, Any] | None = {} if method == "PATCH" else None
    problem(await api.request(method, path, json=body), status, kind)


async def test_conflicts_and_too_little_room(api: httpx.AsyncClient) -> None:
    await api.post("/vms", json=WEB)
    problem(await api.post("/vms", json=WEB), 409, "conflict")
    full = problem(await api.post("/vms", json={**WEB, "name": "big", "size_bytes": 1 << 30}), 507, "no-space")
    assert full.hint
    problem(await api.patch("/vms/web", json={"weight": None}), 422, "invalid-input")
    problem(await api.patch("/vms/web", json={"cap": 4096}), 409, "conflict")


async def test_a_bug_is_an_answer_too(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_self: Service) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Service, "health", broken)
    found = problem(await api.get("/health"), 500, "tmem-error")
    assert "secret" not in found.detail
    assert "secret" in caplog.text


async def test_openapi_describes_problems(app: FastAPI) -> None:
    routes = app.openapi()["paths"]
    assert set(routes["/v1/vms"]) == {"get", "post"}
    assert "application/problem+json" in routes["/v1/vms"]["post"]["responses"]["507"]["content"]


async def test_who_polls_sees_changes_at_once_and_one_answer_serves_many(
    api: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    plain = Service.list_vms

    def counted(self: Service, *, after: str = "", limit: int | None = None) -> VmList:
        made.append(after)
        return plain(self, after=after, limit=limit)

    monkeypatch.setattr(Service, "list_vms", counted)
    for number in range(5):
        await api.post("/vms", json={**WEB, "name": f"vm{number}", "reservation": 0})
        answers = await asyncio.gather(*(api.get("/vms") for _ in range(20)))
        assert {len(answer.json()["vms"]) for answer in answers} == {number + 1}
    assert 5 <= len(made) < 100
    await api.delete("/vms/vm0")
    assert [vm["name"] for vm in (await api.get("/vms")).json()["vms"]] == ["vm1", "vm2", "vm3", "vm4"]
    # An answer that could not be made is nobody's but theirs who asked.
    monkeypatch.setattr(Service, "list_vms", lambda *_args, **_more: 1 / 0)
    await api.post("/vms/vm1/freeze")
    problem(await api.get("/vms"), 500, "tmem-error")
    monkeypatch.undo()
    assert (await api.get("/vms")).json()["vms"][0]["frozen"] is True
