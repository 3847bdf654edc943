# SPDX-License-Identifier: Apache-2.0
"""Pools and shared pools over the API, pages of lists, and versions against lost updates."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from framework.api import WEB, problem
from tmem_host.config import AgentConfig
from tmem_host.core import worst_case_bytes
from tmem_host.service import Service

MIB = 1 << 20
OBJECT = bytes(24)
UUID = "00112233445566778899aabbccddeeff"


def put(service: Service, pool: int, pages: int) -> None:
    for index in range(pages):
        assert service._store.put(pool, OBJECT, index, bytes([index + 1]) * 4096) == "stored"


async def test_a_pool_from_post_to_delete(api: httpx.AsyncClient, service: Service) -> None:
    await api.post("/vms", json=WEB)
    before = (await api.get("/store")).json()["reserved_bytes"]
    made = await api.post("/pools", json={"vm": "web", "pages": 256, "codec": "zstd"})
    assert made.status_code == 201
    pool = made.json()
    assert made.headers["location"] == f"/v1/pools/{pool['id']}"
    assert (pool["vm"], pool["pages_capacity"], pool["codec"], pool["persistent"]) == ("web", 256, "zstd", True)
    assert set(pool["latency"]["put"]) == {"bucket_ns", "count", "sum_ns"}
    assert (await api.get("/store")).json()["reserved_bytes"] == before + worst_case_bytes(256)
    assert (await api.patch(f"/pools/{pool['id']}", json={"codec": "none"})).json()["codec"] == "none"
    put(service, pool["id"], 3)
    path = f"/pools/{pool['id']}"
    problem(await api.post(f"{path}/flush"), 409, "conflict")
    problem(await api.delete(path), 409, "conflict")
    assert (await api.get(path)).json()["pages"] == 3
    assert (await api.post(f"{path}/flush?lose_pages=true")).json() == {"pages": 3}
    assert (await api.post(f"{path}/flush")).json() == {"pages": 0}
    gone = await api.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    problem(await api.delete(path), 404, "not-found")
    assert (await api.get("/store")).json()["reserved_bytes"] == before


async def test_an_ephemeral_pool_is_flushed_at_once(api: httpx.AsyncClient, service: Service) -> None:
    await api.post("/vms", json=WEB)
    pool = (await api.post("/pools", json={"vm": "web", "persistent": False})).json()["id"]
    put(service, pool, 5)
    vm = (await api.get("/vms/web")).json()
    assert vm["freeable_bytes"] > 0
    assert (await api.get("/store")).json()["freeable_bytes"] == vm["freeable_bytes"]
    assert (await api.post(f"/pools/{pool}/flush")).json() == {"pages": 5}
    assert (await api.delete(f"/pools/{pool}")).status_code == 204


async def test_the_pool_of_a_device_is_the_vms(api: httpx.AsyncClient, service: Service) -> None:
    vm = (await api.post("/vms", json=WEB)).json()
    pool = vm["pools"][0]["id"]
    assert "is the device of VM web" in problem(await api.delete(f"/pools/{pool}"), 409, "conflict").detail
    assert (await api.patch(f"/pools/{pool}", json={"codec": "zstd"})).json()["codec"] == "zstd"
    assert (await api.get("/vms/web")).json()["codec"] == "zstd"
    put(service, pool, 2)
    assert (await api.post(f"/pools/{pool}/flush?lose_pages=1")).json() == {"pages": 2}


async def test_a_shared_pool(api: httpx.AsyncClient, service: Service) -> None:
    for name in ("one", "two"):
        await api.post("/vms", json={**WEB, "name": name})
    wanted = {"persistent": False, "uuid": "00112233-4455-6677-8899-AABBCCDDEEFF"}
    problem(await api.post("/pools", json={"vm": "one", **wanted}), 403, "denied")
    for name in ("one", "two", "two"):
        assert (await api.put(f"/vms/{name}/shared/{UUID}")).status_code == 204
    assert (await api.get("/vms/two/shared")).json() == {"uuids": [UUID]}
    first = (await api.post("/pools", json={"vm": "one", **wanted})).json()
    second = (await api.post("/pools", json={"vm": "two", **wanted})).json()
    assert (second["id"], second["members"], second["uuid"]) == (first["id"], ["one", "two"], UUID)
    path = f"/pools/{first['id']}"
    assert "say which one" in problem(await api.delete(path), 422, "invalid-input").hint
    problem(await api.delete(f"{path}?vm=nobody"), 404, "not-found")
    put(service, first["id"], 1)
    assert (await api.delete(f"{path}?vm=one")).status_code == 204
    assert (await api.get(path)).json()["members"] == ["two"]
    for _ in range(2):
        assert (await api.delete(f"/vms/two/shared/{UUID}")).status_code == 204
    assert (await api.get("/vms/two/shared")).json() == {"uuids": []}
    assert (await api.delete(path)).status_code == 204
    problem(await api.get(path), 404, "not-found")


async def test_what_cannot_be_promised(api: httpx.AsyncClient) -> None:
    await api.post("/vms", json={**WEB, "cap": 6 * MIB})
    problem(await api.post("/pools", json={"vm": "web", "pages": 1 << 30}), 409, "conflict")
    await api.patch("/vms/web", json={"cap": None})
    problem(await api.post("/pools", json={"vm": "web", "pages": 1 << 30}), 507, "no-space")
    assert len((await api.get("/vms/web")).json()["pools"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"vm": "web", "pages": 0},
        {"vm": "web", "pages": 5, "persistent": False},
        {"vm": "web", "pages": 5, "uuid": UUID},
        {"vm": "web", "uuid": "x"},
        {"vm": "../x"},
        {"vm": "web", "page_size": 5000},
        {"vm": "web", "typo": 1},
    ],
)
async def test_a_pool_that_cannot_be(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    await api.post("/vms", json=WEB)
    problem(await api.post("/pools", json=body), 422, "invalid-input")
    assert len((await api.get("/pools")).json()["pools"]) == 1


async def test_lists_come_in_pages(api: httpx.AsyncClient) -> None:
    names = [f"vm{number}" for number in range(5)]
    for name in reversed(names):
        await api.post("/vms", json={**WEB, "name": name})
    seen: list[str] = []
    cursor: str | None = ""
    asked = 0
    while cursor is not None:
        page = (await api.get(f"/vms?limit=2{cursor and '&cursor=' + cursor}")).json()
        assert len(page["vms"]) <= 2
        seen += [vm["name"] for vm in page["vms"]]
        cursor, asked = page["next"], asked + 1
    assert (seen, asked) == (names, 3)
    first = (await api.get("/pools?limit=3")).json()
    rest = (await api.get(f"/pools?limit=3&cursor={first['next']}")).json()
    assert len({pool["id"] for pool in first["pools"] + rest["pools"]}) == 5
    assert rest["next"] is None
    assert [pool["vm"] for pool in (await api.get("/pools?vm=vm3")).json()["pools"]] == ["vm3"]
    # Gone meanwhile: the list goes on behind it all the same.
    await api.delete("/vms/vm1")
    assert [vm["name"] for vm in (await api.get("/vms?limit=2&cursor=vm1")).json()["vms"]] == ["vm2", "vm3"]
    for query in ("limit=0", "limit=1001", "limit=x", "cursor=../x"):
        problem(await api.get(f"/vms?{query}"), 422, "invalid-input")
    problem(await api.get("/pools?cursor=x"), 422, "invalid-input")
    problem(await api.get("/pools?vm=nobody"), 404, "not-found")


async def test_two_who_change_settings_at_once(api: httpx.AsyncClient) -> None:
    await api.post("/vms", json=WEB)
    seen = await api.get("/vms/web/settings")
    tag, settings = seen.headers["etag"], seen.json()
    assert (await api.get("/vms/web")).headers["etag"] == tag == f'"{(await api.get("/vms/web")).json()["version"]}"'
    path = "/vms/web/settings"
    problem(await api.put(path, json=settings), 428, "must-match")
    first = await api.put(path, json={**settings, "weight": 5}, headers={"if-match": tag})
    assert (first.status_code, first.json()["weight"]) == (200, 5)
    assert first.headers["etag"] != tag
    problem(await api.put(path, json={**settings, "weight": 6}, headers={"if-match": tag}), 412, "changed")
    problem(await api.patch("/vms/web", json={"weight": 7}, headers={"if-match": tag}), 412, "changed")
    assert (await api.get(path)).json()["weight"] == 5
    # The same again is the same, and a list of tags is one of them.
    header = {"if-match": f'"other", {first.headers["etag"]}'}
    for _ in range(2):
        assert (await api.put(path, json=first.json(), headers=header)).json() == first.json()
    assert (await api.put(path, json=settings, headers={"if-match": "*"})).headers["etag"] == tag
    assert (await api.patch("/vms/web", json={"cap": 6 * MIB}, headers={"if-match": tag})).status_code == 200
    weak = {"if-match": f"W/{tag}"}
    problem(await api.patch("/vms/web", json={"weight": 7}, headers=weak), 412, "changed")
    problem(await api.patch("/vms/web", json={"weight": 7}, headers={"if-match": "plain"}), 422, "invalid-input")
    problem(await api.put(path, json={"weight": 7}, headers={"if-match": "*"}), 422, "invalid-input")


async def test_host_and_tiers(api: httpx.AsyncClient, config: AgentConfig) -> None:
    host = (await api.get("/host")).json()
    assert host["cpus"] >= 1
    assert "core" in {finding["subject"] for finding in host["findings"]}
    tiers = (await api.get("/tiers")).json()["tiers"]
    assert [(tier["kind"], tier["path"]) for tier in tiers] == [("memory", str(config.arena))]
