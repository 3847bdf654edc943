# SPDX-License-Identifier: Apache-2.0
"""The workloads themselves, small, on this machine: they are plain Linux programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tmem_host.vm.guest_results import WorkloadResult, collect_workload
from tmem_host.vm.imagebuild import build
from tmem_host.vm.images import sources

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("work") / "work"
    build.compile_work(sources().work, program)
    return program


def run(work: Path, kind: str, *arguments: str) -> tuple[int, Events]:
    done = subprocess.run([str(work), kind, *arguments], capture_output=True, check=False, timeout=120)
    assert done.stderr == b""
    lines = done.stdout.splitlines()
    assert all(len(line) < 65536 for line in lines), "a line fits into a control frame"
    return done.returncode, [json.loads(line) for line in lines]


def result(work: Path, kind: str, *arguments: str) -> WorkloadResult:
    status, events = run(work, kind, *arguments)
    assert status == 0
    return collect_workload(kind, events, status, 1.0)


def test_zipf(work: Path) -> None:
    done = result(work, "zipf", "mib=8", "count=30000", "samples=20000")
    assert (done.items, done.unit, done.bad) == (2048, "pages", 0)
    access = done.phase("access")
    assert access.done == access.counts["accesses"] == 30000
    assert 1200 < access.counts["rewrites"] < 1800
    hit, fault = access.series["hit"], access.series["fault"]
    assert hit.seen + fault.seen == 30000
    # More than fit into one line.
    assert len(hit.all_ns) == min(20000, hit.seen) > 8192
    assert len(fault.all_ns) == fault.seen == access.counts["faults"]
    assert len(fault.minor_ns) == len(hit.major_ns) == 0
    assert done.phase("check").done == 2048


def test_redis(work: Path) -> None:
    done = result(work, "redis", "mib=4", "count=20000", "samples=100")
    serve = done.phase("serve")
    assert serve.counts["gets"] + serve.counts["sets"] == 20000
    assert 1600 < serve.counts["sets"] < 2400
    assert len(serve.series["get"].all_ns) == 100
    assert serve.series["get"].seen == serve.counts["gets"]
    assert serve.series["set"].total_seconds > 0
    assert done.phase("check").done == done.items > 4000


@pytest.mark.parametrize("kind", ["zipf", "redis"])
def test_the_last_pass_can_be_left_out(work: Path, kind: str) -> None:
    assert [phase.name for phase in result(work, kind, "mib=1", "check=0").phases][1:] in (["access"], ["serve"])


def test_redis_of_nothing_but_sets_stays_in_its_memory(work: Path) -> None:
    done = result(work, "redis", "mib=1", "count=100000", "rewrite=100", "value=64")
    assert done.phase("serve").counts["sets"] == 100000


def test_build(work: Path, tmp_path: Path) -> None:
    done = result(work, "build", "mib=1", "jobs=9", "parallel=3", f"dir={tmp_path}", "object_kib=8", "sources=2")
    compiled = done.phase("compile")
    assert compiled.done == compiled.counts["jobs"] == compiled.series["job"].seen == 9
    # each reads two headers and a source and writes an object, two pages each
    assert compiled.counts["file_pages"] == 9 * 8
    assert compiled.series["hit"].seen + compiled.series["fault"].seen == compiled.counts["accesses"]
    assert done.phase("link").counts["file_pages"] == 18
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "arguments"), [("zipf", ("count=3000",)), ("redis", ("count=3000",)), ("build", ("jobs=4", "dir={}"))]
)
def test_a_seed_says_what_is_done(work: Path, tmp_path: Path, kind: str, arguments: tuple[str, ...]) -> None:
    def counts(seed: int) -> list[dict[str, int]]:
        words = [word.format(tmp_path) for word in arguments]
        phases = result(work, kind, "mib=2", f"seed={seed}", *words).phases
        return [{name: n for name, n in phase.counts.items() if name != "faults"} for phase in phases]

    assert counts(5) == counts(5)
    assert counts(5) != counts(6)


def test_it_stops_when_its_time_is_over(work: Path) -> None:
    done = result(work, "zipf", "mib=2", "count=1000000000", "seconds=1")
    assert 0 < done.phase("access").done < 1_000_000_000


def test_hot_items_are_as_hot_as_zipf_says(work: Path, tmp_path: Path) -> None:
    """Drawn with the program's own functions: shares of the first ranks against 1 / rank ** theta."""
    source = tmp_path / "draw.c"
    source.write_text(
        '#include <stdio.h>\n#include "work.h"\nstruct options opt;\nint main(void) {\n'
        "struct zipf z = zipf_over(50000, 99);\nstruct rng r = rng_from(1);\n"
        'for (int i = 0; i < 200000; i++) printf("%llu\\n", (unsigned long long)zipf_next(&z, &r));\n}\n'
    )
    program = tmp_path / "draw"
    folder = sources().work[0].parent
    argv = ["cc", "-O2", f"-I{folder}", "-o", str(program), str(source)]
    argv += [str(folder / "common.c"), str(folder / "base.c"), "-lm"]
    subprocess.run(argv, check=True)
    drawn = Counter(subprocess.run([str(program)], capture_output=True, check=True).stdout.split())
    total = sum(1 / rank**0.99 for rank in range(1, 50001))
    top = [count / 200000 for _item, count in drawn.most_common(2)]
    assert top[0] == pytest.approx(1 / total, rel=0.05)
    assert top[1] == pytest.approx(0.5**0.99 / total, rel=0.05)
    assert all(int(item) < 50000 for item in drawn)
    assert 15000 < len(drawn) < 45000


def overwrite_data(pid: int, pages: int) -> None:
    """Writes over pages of the largest private mapping, as a host would that gives wrong pages back."""
    largest = (0, 0)
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0\s*$", line)
        if found:
            start, end = int(found[1], 16), int(found[2], 16)
            largest = max(largest, (end - start, start))
    size, start = largest
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for number in range(pages):
            memory.seek(start + number * (size // pages) // 4096 * 4096)
            memory.write((b"\xff", b"\0", os.urandom(1))[number % 3] * 4096)


@pytest.mark.parametrize(("kind", "pages"), [("zipf", 1), ("zipf", 500), ("redis", 20), ("redis", 2000)])
def test_wrong_pages_are_bad(work: Path, kind: str, pages: int) -> None:
    """Also where they hold the chains of a table: nothing crashes, and nothing bad is taken for good."""
    argv = [str(work), kind, "mib=16", "count=1000000000", "seconds=1"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for line in child.stdout:
            event = json.loads(line)
            if event["event"] == "progress" and event["phase"] in ("access", "serve"):
                overwrite_data(child.pid, pages)
                break
        events = [json.loads(line) for line in child.stdout]
    assert child.returncode == 1
    assert events[-1]["event"] == "done"
    assert events[-1]["bad"] >= 1
    told = [event for event in events if event["event"] == "bad"]
    assert 1 <= len(told) <= 8


def test_a_wrong_file_is_bad(work: Path, tmp_path: Path) -> None:
    argv = [str(work), "build", "mib=1", "jobs=200", f"dir={tmp_path}", "sources=1"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if json.loads(line)["event"] == "phase":  # prepared
                with (tmp_path / "header-0").open("r+b") as header:
                    header.seek(4096)
                    header.write(b"wrong")
                break
        events = [json.loads(line) for line in child.stdout]
    assert child.returncode == 1
    assert events[-1]["bad"] >= 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "the first argument"),
        (("hog", "mib=1"), "the first argument"),
        (("zipf",), "mib"),
        (("zipf", "mib=0"), "mib"),
        (("zipf", "mib=1x"), "mib"),
        (("zipf", "mib=1", "theta=100"), "theta"),
        (("zipf", "mib"), "without ="),
        (("zipf", "mib=1", 'we"ird=1'), "unknown argument: we?ird"),
        (("build", "mib=1"), "dir"),
        (("build", "mib=1", "dir=/nonexistent"), "No such file"),
    ],
)
def test_wrong_use_is_one_line(work: Path, arguments: tuple[str, ...], reason: str) -> None:
    done = subprocess.run([str(work), *arguments], capture_output=True, check=False)
    assert done.returncode == 2
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "error"
    assert reason in last["error"]


def test_a_full_disk_is_said(work: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    script = 'mount -t tmpfs -o size=200k none /mnt && exec "$0" build mib=1 dir=/mnt'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(work)], capture_output=True, check=False, timeout=60
    )
    if b"event" not in done.stdout:
        pytest.skip(f"no mount name space here: {done.stderr.decode().strip()}")
    assert done.returncode == 2
    assert "No space left" in json.loads(done.stdout.splitlines()[-1])["error"]
