# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line, version, and the checks before it starts."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tmem_host.errors import InvalidInput, NoSpace, NotFound, Unavailable
from tmem_host.vm import direct, qemu
from tmem_host.vm.images import KernelImage
from tmem_host.vm.spec import FileDisk, InlineTmem, NullDisk, VhostUserBlk, VhostUserTmem, VmSpec

KERNEL = KernelImage("6.1", "6.1.0-test", Path("/k/vmlinuz"), Path("/k/initramfs"), Path("/k/root.img"))
RUN = qemu.Runtime(Path("/run/x"), Path("/log/console.log"))


def line(spec: VmSpec, version: qemu.Version = (10, 0), accel: str = "tcg") -> str:
    return " ".join(qemu.argv(spec, RUN, version, accel))


def test_memory_is_shared() -> None:
    text = line(VmSpec("a", KERNEL, memory_mib=96, vcpus=2))
    assert "memory-backend-memfd,id=mem0,size=96M,share=on" in text
    assert "memory-backend=mem0" in text
    assert "-smp 2 " in text


@pytest.mark.parametrize(("vcpus", "accel", "words"), [(1, "tcg", "1,maxcpus=2"), (1, "kvm", "1"), (3, "tcg", "3")])
def test_tcg_has_room_for_a_second_cpu(vcpus: int, accel: str, words: str) -> None:
    assert f"-smp {words} -accel {accel}" in line(VmSpec("a", KERNEL, vcpus=vcpus), accel=accel)


@pytest.mark.parametrize(
    ("version", "option"), [((10, 0), "reconnect-ms=100"), ((9, 2), "reconnect-ms=100"), ((7, 2), "reconnect=1")]
)
def test_reconnect_by_version(version: qemu.Version, option: str) -> None:
    spec = VmSpec("a", KERNEL, disks=(VhostUserBlk(Path("/s.sock"), queues=2),))
    assert f"path=/s.sock,{option}" in line(spec, version)
    assert "vhost-user-blk-pci,chardev=disk0c,queue-size=128,num-queues=2" in line(spec, version)


@pytest.mark.parametrize(
    ("cache", "option"), [("none", "cache.direct=on"), ("writeback", "aio=threads,discard"), ("unsafe", "no-flush=on")]
)
def test_file_disk_cache(cache: str, option: str) -> None:
    spec = VmSpec("a", KERNEL, disks=(FileDisk(Path("/d,e"), "swap", cache=cache),))  # type: ignore[arg-type]
    assert option in line(spec)
    assert "filename=/d,,e" in line(spec)
    assert "virtio-blk-pci,drive=disk0,serial=swap" in line(spec)


def test_null_disk() -> None:
    assert "driver=null-co,node-name=disk0,size=4096" in line(VmSpec("a", KERNEL, disks=(NullDisk(4096, "null"),)))


def test_tmem_devices() -> None:
    inline = InlineTmem(Path("/a,b"), 1 << 30)
    text = line(VmSpec("a", KERNEL, vcpus=3, tmem=(VhostUserTmem(Path("/s.sock")), inline)))
    assert "-chardev socket,id=tmem0c,path=/s.sock,reconnect-ms=100" in text
    assert "-device vhost-user-tmem-pci,id=tmem0,chardev=tmem0c,num-queues=3,queue-size=256" in text
    assert "-device virtio-tmem-pci,id=tmem1,arena=/a,,b,limit=1073741824,vm=a,num-queues=3,queue-size=256" in text
    assert "=on" not in text.split("virtio-tmem-pci")[1]
    arms = replace(inline, queues=1, doorbell="pio", bql=True, ioeventfd=True)
    assert "num-queues=1,queue-size=256,modern-pio-notify=on,ioeventfd=on,x-bql=on" in line(
        VmSpec("a", KERNEL, tmem=(arms,))
    )
    assert line(VmSpec("a", KERNEL, tmem=(replace(inline, features=0),))).endswith("queue-size=256,features=0")


def test_tmem_devices_want_the_patched_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "patched_qemu", lambda: Path("/patched"))
    spec = VmSpec("a", KERNEL, tmem=(InlineTmem(Path("/a"), 1 << 30),))
    assert direct.qemu_path(spec) == "/patched"
    assert direct.qemu_path(replace(spec, tmem=())) == "qemu-system-x86_64"
    assert direct.qemu_path(replace(spec, qemu_path="/mine")) == "/mine"


def test_accelerators() -> None:
    assert "-accel kvm -cpu host" in line(VmSpec("a", KERNEL), accel="kvm")
    assert "-accel tcg -cpu max" in line(VmSpec("a", KERNEL))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a,b"},
        {"name": ""},
        {"memory_mib": 32},
        {"vcpus": 0},
        {"disks": (NullDisk(1, "x" * 21),)},
        {"disks": (NullDisk(1, "a,b"),)},
        {"disks": (NullDisk(1, "a"), NullDisk(2, "a"))},
        {"disks": (NullDisk(1, "tmem-root"),)},
    ],
)
def test_impossible_specs(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        line(replace(VmSpec("a", KERNEL), **change))  # type: ignore[arg-type]


def test_versions() -> None:
    assert qemu.parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds)\nCopyright") == (10, 0)
    with pytest.raises(Unavailable, match="too old"):
        qemu.parse_version("QEMU emulator version 6.2.0")
    with pytest.raises(Unavailable):
        qemu.parse_version("something else")


@pytest.fixture
def kernel(tmp_path: Path) -> KernelImage:
    for name in ("vmlinuz", "initramfs", "root.img"):
        (tmp_path / name).write_bytes(b"x")
    return KernelImage("6.1", "v", tmp_path / "vmlinuz", tmp_path / "initramfs", tmp_path / "root.img")


def test_missing_kernel(kernel: KernelImage) -> None:
    kernel.vmlinuz.unlink()
    with pytest.raises(NotFound, match="make guests"):
        direct.check_host(VmSpec("a", kernel))


def test_missing_and_small_disks(kernel: KernelImage, tmp_path: Path) -> None:
    disk = FileDisk(tmp_path / "disk", "d", size=1 << 20)
    with pytest.raises(NotFound):
        direct.check_host(VmSpec("a", kernel, disks=(disk,)))
    disk.path.write_bytes(bytes(4096))
    with pytest.raises(NoSpace, match="4096 bytes, 1048576 are needed"):
        direct.check_host(VmSpec("a", kernel, disks=(disk,)))
    direct.check_host(VmSpec("a", kernel, disks=(replace(disk, size=None),)))
    with pytest.raises(InvalidInput, match="cannot be a disk"):
        direct.check_host(VmSpec("a", kernel, disks=(replace(disk, path=tmp_path),)))


def test_nobody_serves_the_socket(kernel: KernelImage, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(NotFound, match="tmem serve"):
        direct.check_host(VmSpec("a", kernel, disks=(VhostUserBlk(path),)))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        direct.check_host(VmSpec("a", kernel, disks=(VhostUserBlk(path),)))
    with pytest.raises(InvalidInput, match="too long"):
        direct.check_host(VmSpec("a", kernel, disks=(VhostUserBlk(tmp_path / ("s" * 120)),)))
