# SPDX-License-Identifier: Apache-2.0
"""`tmem bench all` for real, small: interrupted, resumed, reported, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tmem_host.bench.channel_scratch import SHARED_MEMORY
from tmem_host.bench.results import Results

pytestmark = pytest.mark.slow

NAMES = ("exit", "store", "density")
TINY = {
    "exit": ["rounds=1", "arms=pio,pio+put", "contents=text"],
    "store": ["rounds=1", "pages=2048", "contents=synthetic", "sizes_mib=8", "resident=30000", "recovery_pages=20000"],
    "density": ["rounds=1", "vms=1,10", "seconds=0.2", "contents=text"],
}
#: Seconds for what takes twenty on an idle machine.
PATIENCE = 300


def argv(out: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "tmem_host.cli", "bench", "all", "--only", ",".join(NAMES), "--out", str(out)]
    for name in NAMES:
        for option in TINY[name]:
            command += ["--set", f"{name}.{option}"]
    return [*command, *more]


def run(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(out, *more), capture_output=True, text=True, timeout=PATIENCE, check=False)


def left(out: Path) -> list[str]:
    """What the benches of this run left: processes, and folders in shared memory whose process is gone."""
    found = [path.name for path in SHARED_MEMORY.glob("tmem-scratch-*") if not owner(path).exists()]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(out) in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def owner(scratch: Path) -> Path:
    """The process that made a folder of `channel_scratch`."""
    return Path("/proc") / scratch.name.split("-")[2]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was interrupted in its second bench."""
    out = tmp_path_factory.mktemp("bench") / "all"
    process = subprocess.Popen(argv(out, "--quick"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + PATIENCE
        while not (out / NAMES[1] / "results.json").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, errors
    assert said.splitlines()[-1] == f"report: {out}/report.html"
    assert left(out) == []
    return out


def test_interrupted_what_was_measured_is_kept(interrupted: Path) -> None:
    first = Results.read(interrupted / NAMES[0])
    assert first.complete
    assert first.records
    page = (interrupted / "report.html").read_text(encoding="utf-8")
    assert f'<section id="{NAMES[0]}">' in page
    assert f'<section id="{NAMES[-1]}">' not in page
    assert not (interrupted / NAMES[-1]).exists()


def test_resumed_only_what_is_missing_is_measured(interrupted: Path) -> None:
    refused = run(interrupted, "--resume")
    assert refused.returncode == 4
    assert refused.stderr.count("\n") == 1
    assert "another setting: --quick --seed 1" in refused.stderr

    first = (interrupted / NAMES[0] / "results.json").read_bytes()
    done = run(interrupted, "--quick", "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert left(interrupted) == []
    assert (interrupted / NAMES[0] / "results.json").read_bytes() == first
    summary = json.loads(done.stdout)
    assert [bench["name"] for bench in summary["benches"]] == list(NAMES)
    assert summary["benches"][0]["kept"]
    assert not summary["benches"][-1]["kept"]
    assert summary["verdict"]
    page = Path(summary["report"]).read_text(encoding="utf-8")
    for name in NAMES:
        found = Results.read(interrupted / name)
        assert found.complete
        assert found.arms()
        assert f'<section id="{name}">' in page
