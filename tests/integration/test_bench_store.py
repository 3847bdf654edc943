# SPDX-License-Identifier: Apache-2.0
"""`tmem bench store` for real, small: every part has figures, zram is put back, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tmem_host.bench.channel_scratch import SHARED_MEMORY
from tmem_host.bench.results import Results
from tmem_host.bench.runner import ArmSkipped
from tmem_host.bench.store_zram import zram

pytestmark = pytest.mark.slow

TINY = ["--rounds", "2", "--set", "pages=512", "--set", "contents=synthetic,random", "--set", "sizes_mib=8"]
SCALE = ["--set", "resident=30000", "--set", "recovery_pages=20000"]


def bench(out: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "tmem_host.cli", "bench", "store", "--quick", "--out", str(out), *args]


def run(out: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(bench(out, *args), capture_output=True, text=True, timeout=300, check=False)


def devices() -> set[str]:
    """zram devices that are set up, and that exist."""
    found = set()
    for path in Path("/sys/block").glob("zram*"):
        found.add(path.name)
        if (path / "initstate").read_text().strip() == "1":
            found.add(f"{path.name} in use")
    return found


def left() -> set[str]:
    return {p.name for p in SHARED_MEMORY.glob("tmem-scratch-*")}


def test_every_part_has_figures(tmp_path: Path) -> None:
    before = devices(), left()
    done = run(tmp_path, *TINY, *SCALE)
    assert done.returncode == 0, done.stderr
    results = Results.read(tmp_path)
    assert results.complete
    assert all(failure.kind == "skipped" for failure in results.failures)
    for op in ("put", "get"):
        for arm in ("tmem-lz4", "bare-lz4", "bare-lz4-reused"):
            assert results.find(op, arm=arm, contents="synthetic"), (op, arm)
        assert results.find(f"{op}_over_bare_lz4", contents="synthetic")
        assert results.find(f"{op}_cost_growth", resident=30000)
    for state in ("first", "fresh", "overwrite"):
        assert results.find("put", arm="tmem-lz4", state=state, contents="random")
    assert results.find("held_over_compressed", part="memory", stored_mib=8, state="filled")
    [recovery] = results.find("recovery", contents="small")
    assert recovery.dimensions["resident"] == 20000
    if not any(failure.dimensions.get("part") == "units" for failure in results.failures):
        for size in (4096, 64 << 10, 2 << 20):
            [ratio] = results.find("compression_ratio", unit_bytes=size)
            assert min(ratio.samples) > 1
            for metric in ("put_page", "get_unit", "get_page", "get_range", "held_ratio"):
                assert results.find(metric, unit_bytes=size, contents="files"), metric
    if len(os.sched_getaffinity(0)) > 1:
        assert results.find("throughput", arm="tmem-lz4", threads=2, op="put")
    assert (devices(), left()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="zram needs root")
def test_zram_is_put_back_also_after_a_failure() -> None:
    before = devices()
    try:
        with zram(1 << 20) as device:
            assert device.device.is_block_device()
            assert device.memory()[0] == 0
            raise RuntimeError("the arm failed")
    except RuntimeError:
        pass
    except ArmSkipped as skipped:
        pytest.skip(str(skipped))
    assert devices() == before


def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    before = devices(), left()
    argv = bench(tmp_path, "--rounds", "500", "--set", "contents=synthetic", "--set", "parts=cost")
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stderr is not None
        while "zram-lz4" not in (line := process.stderr.readline()):
            assert line, "the bench ended before its first round"
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert (devices(), left()) == before
    finally:
        process.kill()
        process.wait()


def test_an_unknown_part_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "--set", "parts=nonsense")
    assert done.returncode != 0
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_root_zram_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ArmSkipped, match="root"), zram(1 << 20):
        pass
