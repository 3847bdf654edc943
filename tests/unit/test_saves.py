# SPDX-License-Identifier: Apache-2.0
"""Pools saved to a file and restored into another agent's; what is refused, and that it leaves nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from framework.api import WEB, problem
from tmem_host.config import AgentConfig
from tmem_host.models import PoolCreate, SaveCreate, VmCreate
from tmem_host.service import Service

MIB = 1 << 20
OBJECT = bytes(24)
PAGES = range(0, 1024, 3)


@pytest.fixture
def other(tmp_path: Path, shared: Path) -> Iterator[Service]:
    """Another agent's service."""
    running = Service.open(AgentConfig(state=tmp_path / "o", arena=shared / "other", limit=64 * MIB))
    running.start_channels()
    yield running
    running.close()


def page(number: int) -> bytes:
    return (number.to_bytes(4, "little") * 1024) if number % 2 else bytes([number % 251]) * 4096


def test_every_page_is_equal_in_another_agent(service: Service, other: Service) -> None:
    pool = service.create_vm(VmCreate.model_validate(WEB)).pools[0].id
    for number in PAGES:
        assert service._store.put(pool, OBJECT, number, page(number)) == "stored"
    saved = service.save_pool(pool, SaveCreate(name="web", freeze=True))
    assert (saved.pages, saved.bytes) == (len(PAGES), Path(saved.path).stat().st_size)
    assert Path(saved.path).stat().st_mode & 0o777 == 0o600
    assert not service.get_vm("web").frozen
    other.saves.mkdir(mode=0o700)
    shutil.copy(saved.path, other.saves)
    there = other.create_vm(VmCreate.model_validate(WEB)).pools[0].id
    assert other.restore_pool(there, "web").pages == len(PAGES)
    for number in range(1024):
        assert other._store.get(there, OBJECT, number) == service._store.get(pool, OBJECT, number)
    assert [save.name for save in other.list_saves().saves] == ["web"]


async def test_saves_over_the_api(api: httpx.AsyncClient, service: Service) -> None:
    pool = (await api.post("/vms", json=WEB)).json()["pools"][0]["id"]
    service._store.put(pool, OBJECT, 5, page(5))
    made = await api.post(f"/pools/{pool}/save", json={"name": "one"})
    assert (made.status_code, made.json()["pages"]) == (201, 1)
    problem(await api.post(f"/pools/{pool}/save", json={"name": "one"}), 409, "conflict")
    problem(await api.post(f"/pools/{pool}/restore", json={"name": "one"}), 409, "conflict")
    service._store.put(pool, OBJECT, 6, page(6))
    done = await api.post(f"/pools/{pool}/restore?lose_pages=true", json={"name": "one"})
    assert (done.status_code, done.json()["pages"]) == (200, 1)
    assert service._store.get(pool, OBJECT, 6) is None
    assert [save["name"] for save in (await api.get("/saves")).json()["saves"]] == ["one"]
    assert (await api.delete("/saves/one")).status_code == 204
    problem(await api.delete("/saves/one"), 404, "not-found")
    problem(await api.post(f"/pools/{pool}/restore?lose_pages=true", json={"name": "one"}), 404, "not-found")
    for name in ("../x", "/etc/passwd", "", ".hidden"):
        problem(await api.post(f"/pools/{pool}/save", json={"name": name}), 422, "invalid-input")
    problem(await api.post("/pools/99/save", json={"name": "x"}), 404, "not-found")


def test_what_is_damaged_or_does_not_fit_leaves_nothing(service: Service) -> None:
    pool = service.create_vm(VmCreate.model_validate(WEB)).pools[0].id
    for number in PAGES:
        service._store.put(pool, OBJECT, number, page(number))
    saved = Path(service.save_pool(pool, SaveCreate(name="web")).path)
    empty = service.create_pool(PoolCreate(vm="web", pages=1024)).id
    good = saved.read_bytes()
    for bad in (good[:-1], good + b"x", good[:100] + b"?" + good[101:], b"", b"TMEMPOOL"):
        saved.write_bytes(bad)
        with pytest.raises(Exception, match="cannot be restored"):
            service.restore_pool(empty, "web")
        assert service.get_pool(empty).pages == 0
    saved.write_bytes(good)
    small = service.create_pool(PoolCreate(vm="web", pages=1000)).id
    sparse = service.create_pool(PoolCreate(vm="web")).id
    for wrong in (small, sparse):
        with pytest.raises(Exception, match="cannot be restored"):
            service.restore_pool(wrong, "web")
    assert service.restore_pool(empty, "web").pages == len(PAGES)
    cache = service.create_pool(PoolCreate(vm="web", persistent=False)).id
    with pytest.raises(Exception, match="ephemeral"):
        service.save_pool(cache, SaveCreate(name="cache"))
    assert [file.name for file in service.saves.iterdir()] == ["web.tmem"]
