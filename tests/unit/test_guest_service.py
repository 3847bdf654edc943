# SPDX-License-Identifier: Apache-2.0
"""The guest's service, what needs no guest: settings, what is chosen, what is told, what is noted."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import socket
import termios
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmem_guest import cli, plan, probe, report, server, service, settings
from tmem_guest.frames import FrameReader, Kind, encode
from tmem_guest.plan import Plan, choose
from tmem_guest.port import Port
from tmem_guest.probe import DiskFound, Found
from tmem_guest.reporter import Reporter
from tmem_guest.settings import BadSettings, Settings
from tmem_host.models import GuestReport

# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings_have_defaults_and_a_file_changes_them(tmp_path: Path) -> None:
    assert settings.parse("", "f") == Settings()
    path = tmp_path / "tmem.toml"
    path.write_text('source = "swap-disk"\nsize_mib = 512\ndiscard = false\n')
    assert settings.read(str(path)) == Settings(source="swap-disk", size_mib=512, discard=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("colour = 1", "no setting 'colour'"),
        ("size_mib = -1", "from 0 to"),
        ('size_mib = "1"', "a whole number"),
        ("size_mib = true", "a whole number"),
        ("discard = 1", "true or false"),
        ("serial = 5", "a string"),
        ('source = "disk"', "one of auto"),
        ("report_seconds = 3601", "3600"),
        ("source", "TOML"),
    ],
)
def test_wrong_settings_are_one_line_with_what_to_do(text: str, reason: str) -> None:
    with pytest.raises(BadSettings) as refused:
        settings.parse(text, "my.toml")
    said = str(refused.value)
    assert said.startswith("my.toml: ")
    assert reason in said
    assert "\n" not in said
    assert said.endswith("]")


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="No such file"):
        settings.read(str(tmp_path / "none"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(BadSettings, match="UTF-8"):
        settings.read(str(tmp_path / "bytes"))


def test_help_names_every_setting() -> None:
    for field in dataclasses.fields(Settings):
        assert f"  {field.name} = " in cli._SETTINGS


# ---- what is chosen --------------------------------------------------------------------------------------------------

BLANK = DiskFound("web", "/dev/vdb", 1 << 30, "blank")
BARE = Found(
    kernel="6.1.0",
    root=True,
    mem_total_bytes=512 << 20,
    frontswap=False,
    cleancache=False,
    psi=True,
    zswap=False,
    page_cluster=3,
    module_file="",
    module_loaded=False,
    module_channel="",
    virtio_tmem=False,
    pages_port="",
    agent_port="",
    swap_serial="web",
    disks=(),
    swaps={},
)


def found(**changes: object) -> Found:
    return dataclasses.replace(BARE, **changes)  # type: ignore[arg-type]


ALL = found(module_file="/m/tmem.ko", virtio_tmem=True, pages_port="/dev/vport1p2", disks=(BLANK,))


def chosen(wanted: Settings, there: Found) -> Plan:
    choice = choose(wanted, there)
    assert choice.plan is not None, choice.reasons
    return choice.plan


def test_the_first_that_works_is_chosen() -> None:
    assert chosen(Settings(), ALL) == Plan(
        "swap-disk", "virtio-tmem", "/dev/tmem0", {"channel": "virtio", "blkdev_mib": 1024}
    )
    without = dataclasses.replace(ALL, virtio_tmem=False)
    assert chosen(Settings(), without) == Plan("virtio-blk", "vhost-user-blk", "/dev/vdb", {})
    assert chosen(Settings(), dataclasses.replace(without, disks=())).parameters["channel"] == "serial"


def test_settings_narrow_the_choice() -> None:
    assert chosen(Settings(source="virtio-blk"), ALL).device == "/dev/vdb"
    assert chosen(Settings(channel="virtio-serial", size_mib=64), ALL).parameters == {
        "channel": "serial",
        "blkdev_mib": 64,
    }
    old = dataclasses.replace(ALL, frontswap=True, cleancache=True)
    assert chosen(Settings(source="frontswap"), old) == Plan(
        "frontswap", "virtio-tmem", "/dev/tmemf0", {"channel": "virtio", "frontswap_mib": 1024, "cleancache": 1}
    )
    assert choose(Settings(source="none"), ALL).plan is None


@pytest.mark.parametrize(
    ("wanted", "there", "reason"),
    [
        (Settings(), found(), "no disk has the serial 'web'"),
        (Settings(), found(disks=(DiskFound("db", "/dev/vdb", 1 << 30, "blank"),)), "blank: db [set serial]"),
        (Settings(serial="db"), found(disks=(BLANK,)), "no disk has the serial 'db'"),
        (Settings(), found(disks=(DiskFound("web", "/dev/vdb", 1, "data"),)), "holds data that is no swap"),
        (Settings(), found(disks=(DiskFound("web", "/dev/vdb", 1, "used"),)), "is in use"),
        (Settings(), found(disks=(DiskFound("web", "/dev/vdb", 1, "unreadable"),)), "run it as root"),
        (Settings(), found(virtio_tmem=True), "virtio-tmem: there is no tmem.ko for 6.1.0"),
        (Settings(), found(module_file="/m"), "there is no port"),
        (
            Settings(),
            found(virtio_tmem=True, module_loaded=True, module_channel="local"),
            "tmem.ko is loaded with channel=local",
        ),
        (Settings(source="frontswap"), ALL, "lets no module use frontswap"),
        (Settings(source="virtio-blk", channel="virtio-serial"), ALL, "do not go together"),
    ],
)
def test_why_not(wanted: Settings, there: Found, reason: str) -> None:
    choice = choose(wanted, there)
    assert choice.plan is None
    assert any(reason in said for said in choice.reasons), choice.reasons


def test_a_serial_is_cut_as_the_kernel_cuts_it() -> None:
    disk = DiskFound("a" * 20, "/dev/vdc", 1 << 30, "swap")
    assert chosen(Settings(serial="a" * 25), found(disks=(disk,))).device == "/dev/vdc"


@pytest.mark.parametrize(
    ("swaps", "wanted"), [({}, 100), ({"/dev/sda2": -2}, 100), ({"/dev/sda2": 150}, 151), ({"/a": 32767}, 32767)]
)
def test_priority_is_above_all_others(swaps: dict[str, int], wanted: int) -> None:
    assert plan.priority_above(Settings(), swaps) == wanted
    assert plan.priority_above(Settings(priority=7), swaps) == 7


def test_whose_a_disk_is() -> None:
    head = bytearray(131072)
    assert probe.contents(bytes(head), bytes(65536)) == "blank"
    assert probe.contents(bytes(head), bytes(65535) + b"x") == "data"
    head[1080:1082] = b"\x53\xef"  # ext4's
    assert probe.contents(bytes(head), bytes(65536)) == "data"
    head[4086:4096] = b"SWAPSPACE2"
    assert probe.contents(bytes(head), bytes(65536)) == "formatted"


def test_this_machine_can_be_looked_at() -> None:
    there = probe.look()
    assert there.mem_total_bytes > 0
    assert there.kernel == os.uname().release
    assert json.loads(json.dumps(there.as_json()))["kernel"] == there.kernel
    assert all(probe.lines(there))


def test_priorities_out_of_proc_swaps() -> None:
    text = "Filename\tType\tSize\tUsed\tPriority\n/dev/vdb partition 1048572 12 -2\n/dev/tmem0 partition 4 0 100\n"
    assert probe.priorities(text) == {"/dev/vdb": -2, "/dev/tmem0": 100}
    assert probe.priorities("") == {}


# ---- reports ---------------------------------------------------------------------------------------------------------


def test_pressure_is_read() -> None:
    text = "some avg10=1.50 avg60=0.20 avg300=0.00 total=9\nfull avg10=0.75 avg60=0.00 avg300=0.00 total=1\n"
    assert report.pressure(text) == {"psi_some_avg10": 1.5, "psi_full_avg10": 0.75}
    assert report.pressure("") == {}


def test_counters_of_a_source_are_read() -> None:
    text = "puts 10\nputs_done 9\nwait_put_ns 1024:3 2048:1\nsecret 5\nhits -1\n"
    assert report.counters("blkdev", text) == {"blkdev_puts": 10, "blkdev_puts_done": 9}


def test_what_a_kernel_does_not_have_is_left_out() -> None:
    assert report.memory({"MemTotal": 5}, {"pswpin": 1, "pgfault": 2}) == {"mem_total": 5, "pswpin": 1}


def test_a_report_of_this_machine_is_one_that_the_host_takes() -> None:
    body = service._frame()
    assert len(body) < 4096
    told = json.loads(body)
    assert told["op"] == "report"
    kept = GuestReport.model_validate({name: value for name, value in told.items() if name != "op"})
    assert kept.mem_total == told["mem_total"]
    assert kept.uptime_seconds == told["uptime_seconds"]
    assert kept.pswpin == told["pswpin"]


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """The host's end of something that is opened by a path, and that path."""
    host, guest = os.openpty()
    tty.setraw(guest)
    yield host, os.ttyname(guest)
    os.close(guest)
    os.close(host)


def frames(host: int, reader: FrameReader, count: int) -> list[tuple[Kind, bytes]]:
    """The next frames that the guest sends."""
    came: list[tuple[Kind, bytes]] = []
    deadline = time.monotonic() + 30
    while len(came) < count:
        assert select.select([host], [], [], deadline - time.monotonic())[0], came
        came += reader.feed(os.read(host, 65536))
    return came


def test_reports_go_out_once_the_host_is_in_step(terminal: tuple[int, str]) -> None:
    host, path = terminal
    number = iter(range(1000))
    Reporter(path, 0.05, lambda: b"%d" % next(number))
    token = b"0123456789abcdef"
    reader = FrameReader(token)
    os.write(host, b"noise" + encode(Kind.SYNC, token))
    came = frames(host, reader, 4)
    assert [kind for kind, _body in came[:4]] == [Kind.SYNC, Kind.CONTROL, Kind.CONTROL, Kind.CONTROL]
    assert [int(body) for _kind, body in came[1:4]] == [0, 1, 2]
    # A host that comes anew.
    termios.tcflush(host, termios.TCIFLUSH)
    token = b"fedcba9876543210"
    os.write(host, encode(Kind.SYNC, token))
    assert frames(host, FrameReader(token), 2)[0] == (Kind.SYNC, token)


def test_requests_are_answered_on_a_port_until_the_host_asks_for_the_end(terminal: tuple[int, str]) -> None:
    host, path = terminal
    serving = threading.Thread(target=server.serve, args=(Port(path),))
    serving.start()
    os.write(host, b'nonsense\n{"id":1,"op":"report"}\n{"id":2,"op":"shutdown"}\n')
    serving.join(30)
    assert not serving.is_alive()
    said = b""
    while said.count(b"\n") < 3:
        said += os.read(host, 65536)
    answers = [json.loads(line) for line in said.splitlines()]
    assert [answer["ok"] for answer in answers] == [False, True, True]
    assert answers[1]["report"]["mem_total"] > 0


# ---- what is noted ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(service, "STATE", str(tmp_path / "state.json"))
    monkeypatch.setattr(service, "LOCK", str(tmp_path / "lock"))
    return tmp_path


def test_changes_are_noted_and_read(run_folder: Path) -> None:
    assert service.noted() == service.Changes()
    changes = service.Changes(pid=5, swap="/dev/vdb", module=True, page_cluster=3)
    changes.save()
    assert service.noted() == changes


@given(st.binary(max_size=60))
def test_a_note_that_is_damaged_is_none(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.mktemp("note") / "state"
    path.write_bytes(text)
    before, service.STATE = service.STATE, str(path)
    try:
        assert isinstance(service.noted(), service.Changes)
    finally:
        service.STATE = before


def test_one_service_at_a_time(run_folder: Path) -> None:
    service.Changes(pid=77).save()
    lock = service.claim()
    with pytest.raises(service.Running) as running:
        service.claim()
    assert running.value.pid == 77
    os.close(lock)
    os.close(service.claim())


def test_off_where_nothing_is_on(run_folder: Path) -> None:
    said: list[str] = []
    assert service.off(said.append) == 0
    assert said == ["nothing is on"]


def test_off_after_a_crash_forgets_what_is_not_there_any_more(run_folder: Path) -> None:
    """The guest was booted anew, or somebody else has swapped it off."""
    service.Changes(pid=1, swap="/dev/vdz").save()
    assert service.off(lambda _line: None) == 0
    assert service.noted() == service.Changes()


def test_systemd_is_told(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service.notify("READY=1")  # nobody asked
    address = str(run_folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        service.notify("READY=1")
        assert heard.recv(100) == b"READY=1"
    service.notify("READY=1")  # nobody listens any more


# ---- the command line ------------------------------------------------------------------------------------------------


def test_probe_prints_lines_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe"]) == 0
    assert "run would use" in capsys.readouterr().out
    assert cli.main(["probe", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kernel"] == os.uname().release
    assert "would_use" in told


def test_wrong_settings_are_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").write_text("x = 1")
    assert cli.main(["probe", "--config", str(tmp_path / "f")]) == 2
    assert capsys.readouterr().err.startswith("tmem-guest: ")
    with pytest.raises(SystemExit) as left:
        cli.main(["walk"])
    assert left.value.code == 2


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "exit status:" in text
    assert max(map(len, text.splitlines())) <= 120
