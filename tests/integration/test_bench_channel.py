# SPDX-License-Identifier: Apache-2.0
"""`tmem bench channel` for real, small: foreign clients against all servers, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tmem_host.bench import channel_clients, channel_guest, channel_tmem, comparators, store_pages
from tmem_host.bench.channel_backends import tmem_process
from tmem_host.bench.channel_scratch import SHARED_MEMORY, remove_left_over
from tmem_host.bench.comparators_process import cpu_ns
from tmem_host.bench.results import Results
from tmem_host.errors import Unavailable

pytestmark = pytest.mark.slow

PAGES = 4096
TINY = ["--rounds", "1", "--set", "depths=1,32", "--set", "seconds=0.01", "--set", f"device_pages={PAGES}"]
SYNTHETIC = ["--set", "contents=synthetic"]


@pytest.fixture(scope="session")
def tree() -> comparators.Tree:
    """The Debian 13 tree, built when it is not there."""
    try:
        return comparators.find()
    except Unavailable:
        pass
    try:
        return comparators.build()
    except Unavailable as error:
        pytest.skip(f"no Debian 13 tree: {error}")


def bench(out: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "tmem_host.cli", "bench", "channel", "--quick", "--out", str(out), *args]


def mine() -> set[str]:
    """Folders of benches in shared memory."""
    return {p.name for p in SHARED_MEMORY.glob("tmem-scratch-*")}


def test_all_quick_arms_have_figures(tree: comparators.Tree, tmp_path: Path) -> None:
    before = mine()
    arms = "tmem-lz4-event,tmem-lz4-poll,qsd-null,qsd-tmpfs,qsd-tmpfs-native"
    own = channel_tmem.chosen([])
    argv = bench(tmp_path, *TINY, *SYNTHETIC, "--arms", ",".join([arms, *own]))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = Results.read(tmp_path)
    assert results.complete
    assert not results.failures
    assert set(results.arms()) >= {*arms.split(","), *own}
    for arm in arms.split(","):
        for op in ("read", "write"):
            assert results.find("throughput", arm=arm, op=op, client="qemu-img", depth=32)
    for arm in own:
        for op in ("put", "get"):
            for batch in (1, 8, 128):
                assert results.find("tmem_request", arm=arm, op=op, client="own", batch=batch)
        for size in channel_tmem.SIZES:
            for op in ("exchange", "put+get", "read", "write", "flush"):
                assert results.find("tmem_request", arm=arm, op=op, page_bytes=size)
    assert results.find("request_latency", arm="tmem-lz4-poll", client="libblkio-event", op="write", depth=1)
    assert results.find("server_cpu", arm="qsd-tmpfs")
    assert results.find("against_qsd_tmpfs", arm="tmem-lz4-poll")
    assert (tmp_path / "report.html").is_file()
    assert mine() == before


@pytest.mark.vm
def test_every_channel_from_inside_a_guest(tmp_path: Path) -> None:
    before = mine()
    ways = channel_guest.WAYS
    few = ["--rounds", "1", "--set", "guest_samples=5"]
    argv = bench(tmp_path, *few, *SYNTHETIC, "--arms", ",".join(ways))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = Results.read(tmp_path)
    assert results.complete
    assert not results.failures
    accelerator = results.properties.configuration["guest_accelerator"]
    for arm, way in ways.items():
        for point in channel_guest.points(way, [1, 8, 128]):
            metric = "guest_request" if point.every == 1 else "guest_together"
            [record] = results.find(metric, arm=arm, accelerator=str(accelerator), **point.labels())
            assert all(ns > 0 for ns in record.samples)
            assert {"channel", "wait"} <= record.dimensions.keys()
    copied: dict[str, float] = {}
    for record in results.find("bytes_copied"):
        channel = str(record.dimensions["channel"])
        copied[channel] = copied.get(channel, 0) + record.samples[0]
    assert copied == {
        **dict.fromkeys(("virtio-tmem", "vhost-user-tmem", "vhost-user-blk"), 0.0),
        "virtio-serial": 4 * 4096.0,
        "ivshmem": 4096.0,
    }
    assert ("nothing here is about exits" in " ".join(done.stdout.split())) == bool(results.find("guest_request"))
    assert mine() == before


def test_an_unknown_arm_is_one_line(tree: comparators.Tree, tmp_path: Path) -> None:
    done = subprocess.run(
        bench(tmp_path, *TINY, *SYNTHETIC, "--arms", "nonsense"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_interrupted_it_leaves_nothing(tree: comparators.Tree, tmp_path: Path) -> None:
    before = mine()
    argv = bench(tmp_path, "--rounds", "50", *SYNTHETIC, "--arms", "tmem-lz4-event,qsd-tmpfs")
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        while "round" not in line:
            assert line, "the bench ended before its first round"
            line = process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert group(process.pid) == []
        assert mine() == before
        assert not Results.read(tmp_path).complete
    finally:
        process.kill()
        process.wait()


def test_killed_outright_its_servers_die_and_the_next_run_tidies_up(tree: comparators.Tree, tmp_path: Path) -> None:
    before = mine()
    argv = bench(tmp_path, "--rounds", "50", *SYNTHETIC, "--arms", "tmem-lz4-event,qsd-tmpfs")
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    while "round" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stderr.close()
    end = time.monotonic() + 20
    while group(process.pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert group(process.pid) == []
    remove_left_over()
    assert mine() <= before


async def test_foreign_clients_get_back_what_they_wrote(tree: comparators.Tree, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.write_bytes(store_pages.contents("synthetic", 1024, 1))
    other = tmp_path / "other"
    other.write_bytes(store_pages.contents("random", 1024, 1))
    async with tmem_process(tmp_path, 256 << 20) as server:
        socket = await server.add("disk", PAGES, "lz4")
        start = cpu_ns(server.pid)
        for poll_us in (0, 50):
            await server.ask(op="poll", name="disk", us=poll_us)
            await channel_clients.blkio(tree, socket, "write", 32, PAGES, 60, pages=other, poll=False)
            await channel_clients.blkio(tree, socket, "write", 32, PAGES, 60, pages=pages, poll=True)
            assert await channel_clients.bad_pages(tree, socket, PAGES, pages, 60) == 0
            assert await channel_clients.bad_pages(tree, socket, PAGES, other, 60) == PAGES
        read = await channel_clients.qemu_img_bench(tree, socket, "read", 8, 2 * PAGES, 60)
        assert read.requests == 2 * PAGES
        assert read.seconds > 0
        assert cpu_ns(server.pid) > start
        stats = await server.ask(op="stats")
        assert stats["pools"][0]["pages"] == PAGES
    assert not socket.exists()


def group(leader: int) -> list[int]:
    """Live processes of the session that `leader` began; zombies are not alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found
