# SPDX-License-Identifier: Apache-2.0
"""Vagrant's settings, and what its machines are told: everything that needs no box."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tmem_host.config import AgentConfig
from tmem_host.errors import InvalidInput, Unavailable
from tmem_host.vm.boxbuild import base, box, machines, nested, settings, units
from tmem_host.vm.boxbuild.settings import Settings


def given(**environment: str) -> Settings:
    return settings.read(environment={f"TMEM_VAGRANT_{key.upper()}": value for key, value in environment.items()})


def test_the_settings_of_the_repository() -> None:
    wanted = given()
    assert wanted.machines == ["tmem1", "tmem2"]
    assert wanted.kinds == ("blk", "serial")
    assert machines.state_folder(wanted) == AgentConfig(state=machines.state_folder(wanted)).state


def test_the_environment_comes_first(tmp_path: Path) -> None:
    wanted = given(guests="3", name="web", kernel="6.12", memory_mib="512", state=str(tmp_path))
    assert (wanted.machines, wanted.kernel, wanted.memory_mib) == (["web1", "web2", "web3"], "6.12", 512)
    assert machines.state_folder(wanted) == tmp_path


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"guests": "0"}, "guests"),
        ({"guests": "many"}, "guests"),
        ({"name": "../x"}, "name"),
        ({"memory_mib": "16"}, "memory_mib"),
        ({"kernel": "2.6"}, "kernel is one of"),
        ({"source": "swap-disk"}, "vhost-user-blk carries reads and writes"),
        ({"source": "swap-disk", "channel": "virtio-tmem"}, "channel is one of"),
        ({"source": "frontswap", "channel": "virtio-serial"}, "frontswap"),
        ({"source": "cleancache", "channel": "virtio-serial", "kernel": "5.10-cleancache"}, "source is one of"),
        ({"libvirt": "xen:///"}, "libvirt"),
        ({"network": "192.168.1.1/24"}, "network"),
        ({"network": "10.0.0.0/8"}, "/16 to /29"),
        ({"accel": "warp"}, "accel"),
        ({"role": "cloud"}, "role"),
        ({"role": "host", "host_memory_mib": "64"}, "host_memory_mib"),
        ({"typo": "1"}, "typo"),
    ],
)
def test_what_cannot_be(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refusal:
        given(**environment)
    assert "settings.toml" in refusal.value.hint


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for text in ("guests =", "\xff"):
        file = tmp_path / "settings.toml"
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(InvalidInput, match="cannot be read"):
            settings.read(file, {})
    with pytest.raises(InvalidInput, match="cannot be read"):
        settings.read(tmp_path / "none", {})


def test_a_machine_with_a_disk(tmp_path: Path) -> None:
    config = AgentConfig(state=tmp_path)
    machine = machines.machine("tmem1", config, given(vcpus="2"), (7, 2), "kvm")
    chardev, device = machine["qemu"][1::2]
    assert chardev == f"socket,id=tmem0c,path={tmp_path}/vms/tmem1.sock,reconnect=1"
    assert device.startswith("vhost-user-blk-pci,chardev=tmem0c")
    assert "num-queues=2" in device
    assert "addr=" in device
    assert [channel["path"] for channel in machine["channels"]] == [
        f"{tmp_path}/vms/tmem1.agent.sock",
        f"{tmp_path}/vms/tmem1.serial.sock",
    ]
    assert "systemd.hostname=tmem1" in machine["cmdline"].split()
    assert "tmem.set" not in machine["cmdline"]


def test_a_machine_with_one_emulated_cpu_has_room_for_another(tmp_path: Path) -> None:
    config = AgentConfig(state=tmp_path)
    words = machines.machine("tmem1", config, given(vcpus="1"), (10, 0), "tcg")["qemu"]
    assert words[:2] == ["-smp", "sockets=2,maxcpus=2"]
    assert words[2] == "-chardev"
    assert "-smp" not in machines.machine("tmem1", config, given(vcpus="2"), (10, 0), "tcg")["qemu"]


def test_a_machine_with_the_module(tmp_path: Path) -> None:
    wanted = given(source="frontswap", channel="virtio-serial", kernel="5.10", swap_mib="64")
    machine = machines.machine("tmem1", AgentConfig(state=tmp_path), wanted, (10, 0), "kvm")
    assert machine["qemu"] == []
    words = machine["cmdline"].split()
    assert {'tmem.set.source="frontswap"', 'tmem.set.channel="virtio-serial"', "tmem.set.size_mib=64"} <= set(words)


def test_a_machine_with_the_module_and_the_patched_qemu(tmp_path: Path) -> None:
    wanted = given(source="swap-disk", channel="vhost-user-tmem")
    assert wanted.kinds == ("tmem", "serial")
    machine = machines.machine("tmem1", AgentConfig(state=tmp_path), wanted, (10, 0), "kvm")
    chardev, device = machine["qemu"][1::2]
    assert f"path={tmp_path}/vms/tmem1.tmem.sock" in chardev
    assert device.startswith("vhost-user-tmem-pci")
    assert 'tmem.set.channel="virtio-tmem"' in machine["cmdline"].split()


def test_a_nested_host(tmp_path: Path) -> None:
    wanted = given(role="host", host_memory_mib="1024")
    assert wanted.machines == ["tmem-host"]
    machine = machines.machine("tmem-host", AgentConfig(state=tmp_path), wanted, (10, 0), "kvm")
    assert (machine["qemu"], machine["channels"]) == ([], [])
    # Its own guest agent has nothing to do.
    assert 'tmem.set.source="none"' in machine["cmdline"].split()


def test_an_agent_that_would_not_run_in_the_box_is_not_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested, "_PYTHON", sys.version_info[:2])
    monkeypatch.setattr(nested, "_C_LIBRARY", (9, 99))
    nested.check()
    monkeypatch.setattr(nested, "_C_LIBRARY", (2, 4))
    with pytest.raises(Unavailable, match=r"C library is 2\.4, and the core was built for 2\.\d+"):
        nested.check()
    monkeypatch.setattr(nested, "_PYTHON", (3, 2))
    with pytest.raises(Unavailable, match=r"the box has Python 3\.2"):
        box.build_box("6.1")


def test_boxes_have_the_units_that_everybody_gets() -> None:
    for name in ("tmem", "tmem-guest"):
        assert "NoNewPrivileges=yes" in units.unit(name).read_text()
    assert units.unit("tmem") in nested.files()


def test_the_packages_of_the_box() -> None:
    listed = base.packages((base.box_folder() / "packages").read_text())
    assert {"openssh-server", "python3", "systemd-sysv", "udev"} <= set(listed)
    assert not any(name.startswith("linux-image") for name in listed)
