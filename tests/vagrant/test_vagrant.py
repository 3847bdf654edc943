# SPDX-License-Identifier: Apache-2.0
"""The operator's day: a box, two guests by Vagrant, everything else by curl, and nothing left at the end.

libvirtd is the tests' own; the box is what 'make box' built.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from framework.libvirtd import PrivateLibvirtd, private_libvirtd
from framework.vm import evidence_folder, wait_until
from tmem_host.config import default_arena
from tmem_host.errors import NotFound, Unavailable
from tmem_host.vm.boxbuild import built, nested

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parents[2]
MEMORY_MIB = 192
HOG_MIB = 176
#: Seconds for one command of Vagrant: two boots under emulation on a machine that others use, too.
DEADLINE = 900


@dataclass(frozen=True)
class Place:
    """Where a test's Vagrant and agent have their things; the checkout and the user's own folders stay as they are."""

    folder: Path
    libvirtd: PrivateLibvirtd

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "TMEM_STATE": str(self.state),
            "TMEM_VAGRANT_LIBVIRT": self.libvirtd.uri,
            "TMEM_VAGRANT_GUESTS": "2",
            "TMEM_VAGRANT_NAME": "vg",
            "TMEM_VAGRANT_MEMORY_MIB": str(MEMORY_MIB),
            "TMEM_VAGRANT_SWAP_MIB": "256",
            "TMEM_VAGRANT_NETWORK": "192.168.231.0/24",
            "VAGRANT_CWD": str(ROOT / "vagrant"),
            "VAGRANT_HOME": str(self.folder / "home"),
            "VAGRANT_DOTFILE_PATH": str(self.folder / "dot"),
            "VAGRANT_NO_COLOR": "1",
        }

    def vagrant(self, *words: str, **settings: str) -> str:
        done = subprocess.run(
            ["vagrant", *words, "--no-tty"],
            env={**self.environment, **settings},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=DEADLINE,
        )
        with (self.folder / "vagrant.log").open("a") as log:
            log.write(done.stdout + done.stderr)
        assert done.returncode == 0, f"vagrant {words[0]}: {(done.stdout + done.stderr)[-2000:]}"
        return done.stdout

    def curl(self, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> Any:
        """The answer, which is JSON."""
        return json.loads(self.curl_text(path, method, body))

    def curl_text(self, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> str:
        argv = ["curl", "--silent", "--show-error", "--fail", "--unix-socket", str(self.state / "api.sock")]
        if body is not None:
            argv += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
        argv += ["--request", method, f"http://agent/v1{path}"]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=DEADLINE).stdout


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    pytest.importorskip("libvirt", reason="libvirt-python is not installed ('make box')")
    for tool in ("vagrant", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (scripts/install-deps vagrant)")
    try:
        built.read().box("guests")
    except NotFound as error:
        pytest.fail(str(error))
    # Sockets' paths have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="tmem-vg-") as name, private_libvirtd(Path(name) / "lv") as daemon:
        place = Place(Path(name), daemon)
        (place.folder / "home").mkdir()
        failed = request.session.testsfailed
        try:
            yield place
        finally:
            if request.session.testsfailed > failed:
                _keep(place, evidence_folder(request.node.name))
            end_agent(place.state)
            shutil.rmtree(default_arena(place.state).parent, ignore_errors=True)


def _keep(place: Place, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*place.folder.glob("*.log"), *place.state.glob("agent.log"), *place.state.glob("vms/*.log")):
        shutil.copy(file, folder / file.name)


def processes(state: Path) -> list[int]:
    """Those that were started for this test: its folder is in their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(state).encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def end_agent(state: Path) -> None:
    """What is left of a test that failed."""
    for number in processes(state):
        os.kill(number, 9)


def bridges() -> set[str]:
    """Those of libvirt's networks."""
    return {path.parent.name for path in Path("/sys/class/net").glob("virbr*/bridge")}


def show(unit: str) -> str:
    return f"sudo systemctl show {unit} --property=ActiveState,User,ProtectSystem,NoNewPrivileges"


def swap_of(place: Place, name: str) -> int:
    """Bytes of swap that a guest says it has; 0 before its first report."""
    try:
        report = place.curl(f"/vms/{name}/guest")
    except subprocess.CalledProcessError:
        return 0
    return int(report["swap_total"] or 0)


def hog(place: Place, name: str) -> dict[str, Any]:
    """The guest writes more than its memory, as a run that is followed to its end: what the run came to."""
    settings = {"vm": name, "mib": HOG_MIB}
    run = place.curl("/runs", "POST", {"bench": "guest", "arms": "hog", "rounds": 1, "settings": settings})
    events = place.curl_text(f"/runs/{run['id']}/events")
    assert events.count("event: progress") > 0
    ended: dict[str, Any] = place.curl(f"/runs/{run['id']}")
    return ended


async def test_from_the_box_to_guests_that_swap_and_back_to_nothing(place: Place) -> None:
    before = bridges()
    said = await asyncio.to_thread(place.vagrant, "up", "--provider=libvirt")
    assert said.count("Machine booted and ready!") == 2

    # Its unit is the one that everybody gets, sandbox and all.
    shown = await asyncio.to_thread(place.vagrant, "ssh", "vg1", "--command", show("tmem-guest"))
    assert {"ActiveState=active", "ProtectSystem=strict", "NoNewPrivileges=yes"} <= set(shown.split())

    # Both are there, registered, with the channel up; quotas can be set while they run.
    listed = {vm["name"]: vm for vm in place.curl("/vms")["vms"]}
    assert sorted(listed) == ["vg1", "vg2"]
    assert {vm["channel"] for vm in listed.values()} == {"connected"}
    changed = place.curl("/vms/vg1", "PATCH", {"weight": 300})
    assert changed["weight"] == 300
    place.curl("/vms/vg2", "PATCH", {"cap": "300M", "reservation": "64M"})
    assert place.curl("/vms/vg2")["cap"] == 300 << 20

    # The guests report, and their swap is on.
    await wait_until(lambda: all(swap_of(place, name) for name in listed), "both report their swap", 60)

    # Each writes more than its memory and gets every page back: a run with a bad page fails.
    for name in listed:
        run = await asyncio.to_thread(hog, place, name)
        assert (run["state"], run["reason"]) == ("done", "")
        results = json.dumps(place.curl(f"/runs/{run['id']}/results"))
        assert '"bad"' in results
        assert "<html" in place.curl_text(f"/runs/{run['id']}/report")
        assert place.curl(f"/vms/{name}/channel")["counters"]["requests"]["out"] > 0

    await asyncio.to_thread(place.vagrant, "destroy", "--force")
    assert place.libvirtd.virsh("list", "--all", "--name") == ""
    assert place.libvirtd.virsh("net-list", "--all", "--name") == ""
    assert place.libvirtd.virsh("pool-list", "--all", "--name") == ""
    assert bridges() == before
    assert list((place.state / "vms").iterdir()) == []
    # The agent that 'up' started is gone, too.
    assert not (place.state / "api.sock").exists()
    assert processes(place.state) == []


async def test_a_nested_host_has_an_agent_of_its_own(place: Place) -> None:
    """The other role. A guest in it is not started here: emulated within emulation it takes minutes to boot."""
    try:
        nested.check()
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        built.read().box("host")
    except NotFound:
        pytest.fail("the nested host's box is not built (make nested-box)")
    role = {"TMEM_VAGRANT_ROLE": "host"}
    await asyncio.to_thread(place.vagrant, "up", "--provider=libvirt", **role)
    # Nothing of an agent is on this side.
    assert not (place.state / "api.sock").exists()

    def inside(command: str) -> str:
        return place.vagrant("ssh", "vg-host", "--command", command, **role)

    curl = "sudo curl --silent --fail --unix-socket /var/lib/tmem/api.sock http://agent/v1"
    wait = "for _ in $(seq 300); do sudo systemctl is-active --quiet tmem && exit; sleep 1; done; exit 1"
    await asyncio.to_thread(inside, wait)
    shown = await asyncio.to_thread(inside, show("tmem"))
    assert {"User=tmem", "ProtectSystem=strict", "NoNewPrivileges=yes"} <= set(shown.split())
    body = json.dumps({"name": "inner", "size_bytes": "64M", "machine": {"kernel": "6.1", "memory_mib": 96}})
    header = "--header Content-Type:application/json"
    made = json.loads(await asyncio.to_thread(inside, f"{curl}/vms {header} --data '{body}'"))
    assert (made["name"], made["channel"], made["machine"]["state"]) == ("inner", "listening", "stopped")
    # What a guest of it needs is there.
    found = await asyncio.to_thread(inside, "sudo tmem doctor --no-trial --json")
    states = {finding["subject"]: finding["state"] for finding in json.loads(found)["findings"]}
    assert {states[subject] for subject in ("core", "agent", "qemu-system-x86_64", "guest 6.1")} == {"ok"}
    await asyncio.to_thread(place.vagrant, "destroy", "--force", **role)
    assert place.libvirtd.virsh("list", "--all", "--name") == ""
    assert place.libvirtd.virsh("pool-list", "--all", "--name") == ""
