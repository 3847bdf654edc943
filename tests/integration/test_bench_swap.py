# SPDX-License-Identifier: Apache-2.0
"""The swap bench as a user runs it: a guest is booted, arms run, and results, table and report are there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jsonschema
import pytest

from tmem_host.bench import stats
from tmem_host.bench.properties import filesystem_of
from tmem_host.bench.results import Results, json_schema
from tmem_host.config import cache_dir

pytestmark = pytest.mark.vm

STOCK = ("tmem-lz4", "tmem-zstd-poll", "disk-writeback", "null", "zram")
BY_MODULE = ("swap-disk-vhost-user-tmem-poll", "swap-disk-virtio-tmem", "swap-disk-ivshmem")
ARMS = (*STOCK, *BY_MODULE)
#: Seconds for the whole command on a busy machine under TCG.
PATIENCE = 600


def command(out: Path, *more: str) -> list[str]:
    argv = [sys.executable, "-m", "tmem_host.cli", "bench", "swap", "--quick", "--rounds", "1", "--seed", "3"]
    return [*argv, "--out", str(out), "--disk-dir", str(disk()), *more]


def disk() -> Path:
    """A folder on a real disk: the temporary one may be in memory."""
    folder = Path(tempfile.gettempdir())
    if filesystem_of(folder) != "tmpfs":
        return folder
    cache_dir().mkdir(parents=True, exist_ok=True)
    return cache_dir()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run of the bench that all tests look at."""
    out = tmp_path_factory.mktemp("bench") / "out"
    argv = command(out, "--arms", ",".join(ARMS), "--set", "seconds=0")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return out, done


def test_every_arm_has_figures_and_no_page_is_bad(finished: tuple[Path, object]) -> None:
    found = Results.read(finished[0])
    assert found.complete
    assert found.failures == []
    assert sorted(found.arms()) == sorted(ARMS)
    for arm in ARMS:
        assert found.find("bad_pages", arm=arm)[0].samples == [0]
        assert sum(found.find("pages_out", arm=arm, phase="write")[0].samples) > 100
        assert len(found.find("fault_latency", arm=arm, phase="random")[0].samples) > 50
        assert found.find("host_cpu", arm=arm, process="qemu")[0].samples[0] > 0
        assert bool(found.find("run_time", arm=arm, phase="all")) == (arm != "null")


def test_pages_went_through_the_module_by_its_channel(finished: tuple[Path, object]) -> None:
    found = Results.read(finished[0])
    for arm in BY_MODULE:
        assert found.find("module_puts", arm=arm)[0].samples[0] > 3000
        assert found.find("module_gets", arm=arm)[0].samples[0] > 3000
        # The agent is at the other end of these alone.
        served = arm not in ("swap-disk-virtio-tmem", "swap-disk-ivshmem")
        assert bool(found.find("host_cpu", arm=arm, process="agent")[0].samples[0]) == served
    for arm in STOCK:
        assert found.find("module_puts", arm=arm) == []
    # main, the inline device's, and null's.
    guests = found.properties.guest["available_bytes_by_guest"]
    assert isinstance(guests, dict)
    sizes = [float(size or 0) for size in guests.values()]
    assert len(sizes) == 3
    assert max(sizes) < 1.03 * min(sizes)


def test_frontswap_and_virtio_serial_on_the_oldest_kernel(tmp_path: Path) -> None:
    """A small hog: a page takes a quarter of a millisecond over virtio-serial under TCG."""
    arms = "frontswap-virtio-tmem,swap-disk-virtio-serial"
    argv = command(tmp_path, "--arms", arms, "--set", "kernel=5.10", "--set", "factor=1.1")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    found = Results.read(tmp_path)
    for arm in arms.split(","):
        assert found.find("module_puts", arm=arm)[0].samples[0] > 1000
        # Frontswap's pages reach no device that the kernel counts.
        swapped = found.find("pages_out", arm=arm, phase="sequential")[0].samples[0] > 0
        assert swapped == (arm == "swap-disk-virtio-serial")


def test_an_arm_that_the_kernel_cannot_have_says_why(tmp_path: Path) -> None:
    argv = command(tmp_path, "--arms", "frontswap-virtio-tmem")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    [skipped] = Results.read(tmp_path).failures
    assert (skipped.kind, "no module can register" in skipped.reason) == ("skipped", True)


def test_pages_are_compressed_where_they_should_be_and_given_back(finished: tuple[Path, object]) -> None:
    found = Results.read(finished[0])
    lz4 = stats.median(found.find("compression_ratio", arm="tmem-lz4")[0].samples)
    zstd = stats.median(found.find("compression_ratio", arm="tmem-zstd-poll")[0].samples)
    assert 1.5 < lz4 < zstd
    assert stats.median(found.find("compression_ratio", arm="zram")[0].samples) > 1.5
    for arm in ("tmem-lz4", "tmem-zstd-poll"):
        peak = found.find("held", arm=arm)[0].samples[0]
        before = found.find("held_before", arm=arm)[0].samples[0]
        after = found.find("held_after_swapoff", arm=arm)[0].samples[0]
        assert after - before <= 0.05 * peak


def test_properties_say_what_was_measured_where(finished: tuple[Path, object]) -> None:
    properties = Results.read(finished[0]).properties
    assert properties.guest["accelerator"] in ("kvm", "tcg")
    assert properties.guest["accelerator_why"]
    assert str(properties.guest["kernel_release"]).startswith("6.1.")
    assert properties.configuration["contents"] == "corpus"
    assert properties.configuration["corpus_lz4_ratio"]
    assert properties.configuration["disk_folder_filesystem"] not in ("unknown", "unused", "tmpfs")


def test_files_and_output_are_what_is_documented(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = finished
    data = json.loads((out / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(data, json.loads(json_schema()))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="swap-run-time"' in page
    assert 'id="swap-fault-latency"' in page
    assert "random fault" in done.stdout
    assert str(out / "report.html") in done.stdout
    assert "left)" in done.stderr
    assert list(disk().glob("tmem-disk-*.img")) == []


def test_ctrl_c_leaves_what_was_measured_and_nothing_running(tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = command(out, "--arms", "null,disk-writeback")
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        try:
            assert run.stderr is not None
            for line in run.stderr:
                if "1/2 round 1/1" in line:
                    break
            children = _tree(run.pid)
            run.send_signal(signal.SIGINT)
            run.stderr.read()
            assert run.wait(60) == 130
        finally:
            run.kill()
    assert children
    deadline = time.monotonic() + 10
    while any(_alive(child) for child in children):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)
    found = Results.read(out)
    assert not found.complete
    assert (out / "report.html").is_file()
    assert list(disk().glob("tmem-disk-*.img")) == []


def _tree(pid: int) -> list[int]:
    """Process ids below `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_tree(int(child))]
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
