# SPDX-License-Identifier: Apache-2.0
"""The trial of an accelerator, with programs in QEMU's place that hang, die or boot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tmem_host.errors import Denied, NotFound, Unavailable
from tmem_host.vm import accel
from tmem_host.vm.accel import find_accelerator
from tmem_host.vm.images import KernelImage

VERSION = 'if [ "$1" = --version ]; then echo "QEMU emulator version 10.0.0"; exit; fi\n'
HANGS = "exec sleep 1000"
DIES = "echo cannot set MSR 0x10a >&2; exit 1"
BOOTS = 'printf "BIOS\\r\\ntmem-guest: ker"; printf "nel 6.1 up\\n"; exec sleep 1000'


@pytest.fixture
def kernel(tmp_path: Path) -> KernelImage:
    for name in ("vmlinuz", "initramfs"):
        (tmp_path / name).write_bytes(b"x")
    return KernelImage("6.1", "6.1.0-test", tmp_path / "vmlinuz", tmp_path / "initramfs", None)


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))
    device = tmp_path / "kvm"
    device.write_bytes(b"")
    return device


def program(folder: Path, body: str) -> str:
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\necho run >> {folder}/runs\n{VERSION}{body}\n")
    path.chmod(0o755)
    return str(path)


def runs(folder: Path) -> int:
    return (folder / "runs").read_text().count("run")


async def test_boots(tmp_path: Path, kernel: KernelImage, kvm: Path) -> None:
    found = await find_accelerator(program(tmp_path, BOOTS), kernel, kvm=kvm)
    assert found.name == "kvm"
    assert "started in" in found.why


async def test_hangs(tmp_path: Path, kernel: KernelImage, kvm: Path) -> None:
    found = await find_accelerator(program(tmp_path, HANGS), kernel, kvm=kvm, deadline=0.3)
    assert found.name == "tcg"
    assert found.why == "no KVM: Linux 6.1.0-test did not start within 0.3 s under kvm"


async def test_dies(tmp_path: Path, kernel: KernelImage, kvm: Path) -> None:
    found = await find_accelerator(program(tmp_path, DIES), kernel, kvm=kvm)
    assert found.name == "tcg"
    assert "cannot set MSR 0x10a" in found.why
    assert "\n" not in found.why


async def test_answer_is_kept_for_this_kernel_and_qemu(tmp_path: Path, kernel: KernelImage, kvm: Path) -> None:
    qemu = program(tmp_path, DIES)
    first = await find_accelerator(qemu, kernel, kvm=kvm)
    before = runs(tmp_path)
    assert await find_accelerator(qemu, kernel, kvm=kvm) == first
    # only asked for its version
    assert runs(tmp_path) == before + 1
    other = KernelImage("6.1", "6.1.0-other", kernel.vmlinuz, kernel.initramfs, None)
    assert "QEMU ended" in (await find_accelerator(qemu, other, kvm=kvm)).why
    assert runs(tmp_path) == before + 3


async def test_no_device(tmp_path: Path, kernel: KernelImage, kvm: Path) -> None:
    kvm.unlink()
    found = await find_accelerator(program(tmp_path, BOOTS), kernel, kvm=kvm)
    assert found.name == "tcg"
    assert "does not exist" in found.why
    with pytest.raises(Unavailable, match="does not exist"):
        await find_accelerator(program(tmp_path, BOOTS), kernel, wanted="kvm", kvm=kvm)


async def test_no_permission(tmp_path: Path, kernel: KernelImage, kvm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may read everything, so the operating system's answer is given here
    monkeypatch.setattr(accel, "_forbidden", lambda _device: True)
    found = await find_accelerator(program(tmp_path, BOOTS), kernel, kvm=kvm)
    assert found.name == "tcg"
    assert "no permission" in found.why
    with pytest.raises(Denied, match="group"):
        await find_accelerator(program(tmp_path, BOOTS), kernel, wanted="kvm", kvm=kvm)


async def test_no_qemu_and_no_kernel(tmp_path: Path, kernel: KernelImage, kvm: Path) -> None:
    with pytest.raises(Unavailable, match="install"):
        await find_accelerator(str(tmp_path / "nothing"), kernel, kvm=kvm)
    kernel = replace(kernel, vmlinuz=tmp_path / "gone")
    with pytest.raises(NotFound, match="make guests"):
        await find_accelerator(program(tmp_path, BOOTS), kernel, kvm=kvm)


async def test_tcg_asked_for_tries_nothing(tmp_path: Path, kernel: KernelImage) -> None:
    assert (await find_accelerator(program(tmp_path, HANGS), kernel, wanted="tcg")).name == "tcg"
    assert not (tmp_path / "runs").exists()
