# SPDX-License-Identifier: Apache-2.0
"""How the guest's module is keyed, found and put into a guest, without a mirror or a compiler run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tmem_host.errors import NotFound
from tmem_host.vm import images
from tmem_host.vm.console import complaints
from tmem_host.vm.imagebuild import kernel, lockfile
from tmem_host.vm.imagebuild.cpio import Archive
from tmem_host.vm.modulebuild import headers, module


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the guest's sources and an empty cache."""
    guest = tmp_path / "guest"
    shutil.copytree(Path(__file__).parents[2] / "guest", guest, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("TMEM_GUEST_SOURCES", str(guest))
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel, "compiler_version", lambda: "gcc 12")
    return guest


def test_key_changes_with_every_source_and_kernel(checkout: Path) -> None:
    keys = {module.module_key(series) for series in images.SERIES}
    sources = module.module_sources()
    assert {"Kbuild", "main.c", "tmem_abi.h"} <= {path.name for path in sources}
    for path in sources:
        path.write_text(path.read_text() + "\n")
        keys.add(module.module_key("6.1"))
    assert len(keys) == len(images.SERIES) + len(sources)


def test_object_files_are_no_sources(checkout: Path) -> None:
    before = module.module_key("6.1")
    (checkout / "module" / "main.o").write_text("x")
    assert module.module_key("6.1") == before


def test_not_built_says_what_to_run(checkout: Path) -> None:
    with pytest.raises(NotFound, match="make module"):
        module.guest_module("6.1")


def test_kernel_without_headers(checkout: Path) -> None:
    with pytest.raises(NotFound, match="lock"):
        headers.headers_key("4.19", lockfile.read(checkout / "image" / "packages.toml"))


def test_every_series_has_headers() -> None:
    lock = lockfile.read(images.sources().lock)
    assert set(lock.headers) == set(lock.kernels) == set(images.SERIES)
    for series in images.SERIES:
        versions = {package.version for package in (lock.kernels[series], *lock.headers[series])}
        assert len(versions) == 1
        assert len(lock.headers[series]) == 3


def test_module_is_appended_to_the_initramfs(tmp_path: Path) -> None:
    archive = Archive()
    archive.folder("bin")
    archive.file("bin/x", b"x")
    (tmp_path / "initramfs").write_bytes(archive.finish())
    (tmp_path / "tmem.ko").write_bytes(b"module")
    image = images.KernelImage("6.1", "6.1.0", tmp_path / "vmlinuz", tmp_path / "initramfs", None, "k")
    carrying = module.with_module(image, module.GuestModule("6.1", tmp_path / "tmem.ko", "m"))
    # the accelerator's trial is remembered for the image, whatever module it carries
    assert carrying.key == image.key
    data = carrying.initramfs.read_bytes()
    assert data.startswith((tmp_path / "initramfs").read_bytes())
    second = data[(tmp_path / "initramfs").stat().st_size :]
    if shutil.which("cpio") is None:
        pytest.skip("there is no cpio to read it with")
    subprocess.run(["cpio", "-i", "--quiet"], input=second, cwd=tmp_path, check=True)
    assert (tmp_path / "extra" / "tmem.ko").read_bytes() == b"module"
    with pytest.raises(NotFound):
        module.with_module(image, module.GuestModule("6.12", tmp_path / "tmem.ko", "m"))


def test_complaints_of_a_kernel() -> None:
    log = (
        "[1.0] WARNING: CPU: 0 PID: 1 at mm/x.c:1\nSpectre V2 : WARNING: x\n[2.0] BUG: KASAN: bad\nno loops_per_jiffy\n"
    )
    assert [line.split("] ")[1][:7] for line in complaints(log)] == ["WARNING", "BUG: KA"]
