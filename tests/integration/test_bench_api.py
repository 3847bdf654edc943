# SPDX-License-Identifier: Apache-2.0
"""`tmem bench api` as its user runs it, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tmem_host import cli

pytestmark = pytest.mark.slow


def test_it_measures_and_leaves_nothing(tmp_path: Path) -> None:
    before = set(Path("/dev/shm").glob("tmem-*"))
    arguments = ["bench", "api", "--vms", "3", "--clients", "4", "--seconds", "1.5", "--rounds", "1"]
    assert cli.run([*arguments, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["complete"]
    found = {(record["dimensions"].get("arm"), record["metric"]): record for record in results["records"]}
    for arm in ("socket", "tcp"):
        assert len(found[arm, "list_vms"]["samples"]) >= 4
        assert found[arm, "list_vms"]["unit"] == "ns"
        assert found[arm, "guest_requests"]["samples"][0] > 0
        assert found[arm, "scrape"]["samples"]
    assert sum("p99 of GET /v1/vms" in note for note in results["notes"]) == 2
    assert (tmp_path / "report.html").is_file()
    assert set(Path("/dev/shm").glob("tmem-*")) <= before
