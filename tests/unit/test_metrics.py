# SPDX-License-Identifier: Apache-2.0
"""Metrics: what Prometheus' own checker and parser say of them, and that they are the core's figures."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from framework.api import WEB
from framework.promtool import promtool
from tmem_host.metrics import Metric, Page, labels
from tmem_host.service import Service

DASHBOARD = Path(__file__).resolve().parents[2] / "contrib/grafana/tmem.json"
OBJECT = bytes(24)


@pytest.fixture
async def busy(api: httpx.AsyncClient, service: Service) -> httpx.AsyncClient:
    """An agent with two VMs of all channels, pages, misses, refusals and a cap."""
    for name in ("web", "db"):
        made = await api.post("/vms", json={**WEB, "name": name, "channels": ["blk", "tmem", "serial"], "cap": "8M"})
        pool = made.json()["pools"][0]["id"]
        for index in range(64):
            assert service._store.put(pool, OBJECT, index, bytes([index]) * 4096) == "stored"
        for index in range(64):
            service._store.get(pool, OBJECT, index)
    service._store.get(pool, OBJECT, 1000)
    service._store.flush_page(pool, OBJECT, 0)
    await api.post("/vms/db/freeze")
    assert service._store.put(pool, OBJECT, 5, bytes(4096)) == "frozen"
    return api


async def scrape(api: httpx.AsyncClient) -> str:
    answer = await api.get("http://agent/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return answer.text


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def checked(what: str, *arguments: str, text: str = "") -> tuple[int, str, str]:
    """Exit code and words of ``promtool check``."""
    argv = [str(promtool()), "check", what, *arguments]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


async def test_promtool_has_nothing_to_say(busy: httpx.AsyncClient) -> None:
    assert checked("metrics", text=await scrape(busy)) == (0, "", "")


async def test_they_are_the_cores_figures(busy: httpx.AsyncClient) -> None:
    found = samples(await scrape(busy))
    vm = (await busy.get("/vms/db")).json()
    pool = (await busy.get(f"/pools/{vm['pools'][0]['id']}")).json()
    mine = ("vm", "db")
    assert found["tmem_vm_pages", (mine,)] == vm["pages"] == 62
    assert found["tmem_vm_held_bytes", (mine,)] == vm["held_bytes"]
    assert found["tmem_vm_cap_bytes", (mine,)] == 8 << 20
    assert found["tmem_vm_frozen", (mine,)] == 1
    assert found["tmem_vm_puts_total", (mine,)] == 65
    assert found["tmem_vm_gets_total", (("result", "hit"), mine)] == 64
    assert found["tmem_vm_gets_total", (("result", "miss"), mine)] == 1
    assert found["tmem_vm_puts_refused_total", (("reason", "frozen"), mine)] == 1
    assert found["tmem_channel_connected", (("channel", "blk"), mine)] == 0
    where = (("pool", str(pool["id"])), mine)
    assert found["tmem_pool_pages", where] == pool["pages"]
    # A histogram: cumulative, with the core's sum and count.
    put = pool["latency"]["put"]
    operation = (("op", "put"), *where)
    assert found["tmem_pool_operation_seconds_count", operation] == sum(put["count"]) > 0
    assert found["tmem_pool_operation_seconds_sum", operation] == pytest.approx(put["sum_ns"] / 1e9)
    buckets = [
        (float(dict(key[1])["le"]), value)
        for key, value in found.items()
        if key[0] == "tmem_pool_operation_seconds_bucket" and set(operation) <= set(key[1])
    ]
    assert [value for _, value in sorted(buckets)] == sorted(value for _, value in buckets)
    for le, value in buckets:
        exact = sum(n for start, n in zip(put["bucket_ns"], put["count"], strict=True) if 2 * start <= le * 1e9 * 1.001)
        assert value == exact
    store = (await busy.get("/store")).json()
    assert found["tmem_store_limit_bytes", ()] == store["limit_bytes"]
    assert found["tmem_http_requests_total", (("method", "POST"), ("route", "/v1/vms"), ("status", "201"))] == 2


async def test_what_a_client_writes_is_no_label(api: httpx.AsyncClient) -> None:
    for path in ("/vms/nobody", "/vms/UPPER", "/nowhere", "/runs/77"):
        await api.get(path)
    text = await scrape(api)
    for word in ("nobody", "UPPER", "nowhere", "runs/77"):
        assert word not in text


def test_labels_are_escaped() -> None:
    page = Page()
    page.metric(Metric("x", "gauge", "X."), [(labels(a='q"b\\s\nn'), 1)])
    (family,) = text_string_to_metric_families(page.text().decode())
    assert family.samples[0].labels == {"a": 'q"b\\s\nn'}


def expressions(part: Any) -> list[str]:
    """Every query in a dashboard."""
    if isinstance(part, dict):
        own = [part[key] for key in ("expr", "query", "definition") if isinstance(part.get(key), str)]
        return own + [text for value in part.values() for text in expressions(value)]
    return [text for value in part for text in expressions(value)] if isinstance(part, list) else []


async def test_the_dashboard_shows_only_what_there_is(busy: httpx.AsyncClient) -> None:
    text = await scrape(busy)
    known = set(re.findall(r"^# HELP (\S+)", text, re.MULTILINE))
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    queries = expressions(json.loads(DASHBOARD.read_text()))
    used = {name for query in queries for name in re.findall(r"\b(?:tmem|process)_\w+", query)}
    assert len(used) > 20
    assert used - known == set()


def test_the_dashboards_queries_are_queries(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:query{number}", "expr": re.sub(r"\$__rate_interval", "5m", query.replace("$vm", ".*"))}
        for number, query in enumerate(expressions(json.loads(DASHBOARD.read_text())))
        if not query.startswith("label_values")
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    code, out, err = checked("rules", str(file))
    assert code == 0, out + err
